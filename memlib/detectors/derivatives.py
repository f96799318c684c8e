"""Derivatives of a map along several directions at once."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from memlib.fields import NoisePredictor
from memlib.fields.memory import count_rows, row_digests
from memlib.fields.network import as_levels


def adjoint_derivative(eps: NoisePredictor, x: Tensor, sigma: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Noise prediction at x [N, ...], and its adjoint derivative there, of cotangents [k, N, ...].

    One forward pass serves all cotangents, of which as many are pulled back at once as fill a call of the network: one, where
    the network fills its calls up itself. What a field remembers (see `memlib.fields.memory`) is not computed again. Call it
    under `torch.no_grad()`, so that no parameter's gradient is kept, and under `sdpa_kernel(SDPBackend.MATH)`.
    """
    n = len(x)
    filled, rows = getattr(eps, "pad", False), getattr(eps, "rows", x.numel())

    @cache
    def forward() -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]:
        return torch.func.vjp(lambda y: eps(y, sigma), x)

    def pull_back(cotangents: Tensor) -> Tensor:
        count_rows(len(cotangents) * n)
        return torch.vmap(forward()[1], chunk_size=1 if filled else max(1, rows // n))(cotangents)[0]

    memory = getattr(eps, "memory", None)
    if memory is None or not filled or not memory.serves(x, *eps.cond.values()):
        return forward()[0], pull_back
    keys = eps.keys("adjoint", x, as_levels(sigma), eps.cond)

    def remembered(cotangents: Tensor) -> Tensor:
        def pulled(numbers: list[int]) -> Tensor:
            needed = sorted({number // n for number in numbers})
            found = pull_back(cotangents[needed])
            return torch.stack([found[needed.index(number // n), number % n] for number in numbers])

        digests = row_digests(cotangents.flatten(0, 1))
        named = [(*keys[number % n], digest) for number, digest in enumerate(digests)]
        return memory.recall(named, pulled).reshape(cotangents.shape)

    return memory.recall(keys, lambda numbers: forward()[0][numbers]), remembered


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
