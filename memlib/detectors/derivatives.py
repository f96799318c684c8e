"""Derivatives of a map along several directions at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from memlib.fields import NoisePredictor


def adjoint_derivative(eps: NoisePredictor, x: Tensor, sigma: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Noise prediction at x [N, ...], and its adjoint derivative there, of cotangents [k, N, ...].

    One forward pass serves all cotangents, of which as many are pulled back at once as fill a call of the network: one, where
    the network fills its calls up itself. Call it under `torch.no_grad()`, so that no parameter's gradient is kept, and under
    `sdpa_kernel(SDPBackend.MATH)`.
    """
    noise, adjoint = torch.func.vjp(lambda y: eps(y, sigma), x)
    filled, rows = getattr(eps, "pad", False), getattr(eps, "rows", x.numel())
    several = torch.vmap(adjoint, chunk_size=1 if filled else max(1, rows // len(x)))
    return noise, lambda cotangents: several(cotangents)[0]


def directional_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor, tangents: Tensor, edge: float | None = None
) -> tuple[Tensor, Tensor]:
    """The function's values at x [N, ...] and its derivatives along tangents [k, N, ...], in one call.

    By forward mode or, given the length of an edge, by finite differences. Fused attention has no forward mode: call it
    under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    k, n = tangents.shape[:2]
    if edge is None:
        values, derivatives = torch.func.jvp(function, (x.repeat(k, *[1] * (x.ndim - 1)),), (tangents.flatten(0, 1),))
        return values[:n], derivatives.reshape(tangents.shape)
    pushed = function(torch.cat([x, (x + edge * tangents).flatten(0, 1)]))
    return pushed[:n], (pushed[n:].reshape(tangents.shape) - pushed[:n]) / edge
