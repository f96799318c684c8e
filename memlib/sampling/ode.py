"""The probability-flow ODE dx/dsigma = eps(x, sigma): images to latents and back (Song et al., arXiv 2011.13456, eq. 13)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from memlib.fields import Field, NoisePredictor
from memlib.tensors import generators

Method = Literal["euler", "heun"]
EVALUATIONS = {"euler": 1, "heun": 2}  # of the network, by one step


def check_method(method: str) -> None:
    """Raise ValueError for a method that is not known."""
    if method not in get_args(Method):
        raise ValueError(f"unknown ODE method {method!r}; known: {', '.join(get_args(Method))}")


def solver_step(eps: NoisePredictor, x: Tensor, here: float, there: float, method: Method = "heun") -> Tensor:
    """One step of the solver from noise level `here` to `there`: Euler (one network evaluation) or Heun (two)."""
    slope = eps(x, here)
    if method == "heun":
        slope = (slope + eps(x + (there - here) * slope, there)) / 2
    return x + (there - here) * slope


def integrate(
    eps: NoisePredictor,
    x: Tensor,
    sigmas: Tensor,
    method: Method = "heun",
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Carry x [N, ...] along the ODE through the noise levels `sigmas` [S + 1], rising or falling.

    `callback(step, x)` sees every intermediate state.
    """
    check_method(method)
    for step, (here, there) in enumerate(pairwise(sigmas.tolist())):
        x = solver_step(eps, x, here, there, method)
        if callback is not None:
            callback(step, x)
    return x


def encode(eps: NoisePredictor, x: Tensor, sigmas: Tensor, method: Method = "heun") -> Tensor:
    """Latents [N, ...] at the largest of `sigmas` of images x, taken to lie at the smallest."""
    return integrate(eps, x, sigmas.sort().values, method)


def decode(eps: NoisePredictor, latent: Tensor, sigmas: Tensor, method: Method = "heun") -> Tensor:
    """Images [N, ...] at the smallest of `sigmas` of latents at the largest; the inverse of `encode`."""
    return integrate(eps, latent, sigmas.sort(descending=True).values, method)


def start(field: Field, seeds: Sequence[int], sigma: float) -> Tensor:
    """Gaussian latents [N, ...] at a noise level, each from its own seed, drawn on the processor."""
    noise = torch.stack([torch.randn(field.shape, generator=item) for item in generators(seeds)])
    return sigma * noise.to(field.device)


@torch.no_grad()
def sample(field: Field, seeds: Sequence[int], sigmas: Tensor, method: Method = "heun") -> Tensor:
    """Draw items [N, ...], one a seed: decode Gaussian latents at the largest of `sigmas`, then take off the noise left."""
    levels = sigmas.sort().values
    x = decode(field, start(field, seeds, float(levels[-1])), levels, method)
    return x - float(levels[0]) * field(x, float(levels[0]))
