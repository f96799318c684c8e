"""The probability-flow ODE dx/dsigma = eps(x, sigma): images to latents and back (Song et al., arXiv 2011.13456, eq. 13)."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from memlib.models import NoisePredictor

Method = Literal["euler", "heun"]


def check_method(method: str) -> None:
    """Raise ValueError for a method that is not known."""
    if method not in get_args(Method):
        raise ValueError(f"unknown ODE method {method!r}; known: {', '.join(get_args(Method))}")


def sigma_grid(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> Tensor:
    """Noise levels [steps + 1] from `sigma_min` up to `sigma_max`, even in sigma^(1/rho).

    Karras et al. (arXiv 2206.00364, eq. 5). `rho = inf` makes them even in log sigma. Raises ValueError unless 0 <
    sigma_min < sigma_max and steps >= 1.
    """
    if not 0 < sigma_min < sigma_max or steps < 1:
        raise ValueError(
            f"a sigma grid needs 0 < sigma_min < sigma_max and at least one step; got {sigma_min}, {sigma_max} and {steps}"
        )
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64)
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if rho == float("inf"):
        return (ends[0].log() + ramp * (ends[1] / ends[0]).log()).exp()
    low, high = ends ** (1 / rho)
    return (low + ramp * (high - low)) ** rho


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


@torch.no_grad()
def sample(
    eps: NoisePredictor,
    shape: tuple[int, ...],
    sigmas: Tensor,
    generator: torch.Generator,
    method: Method = "heun",
    device: str | torch.device = "cpu",
) -> Tensor:
    """Draw images [*shape]: decode Gaussian latents at the largest of `sigmas`, then take off the noise left at the smallest.

    The noise is drawn on the processor, so that a seed gives the same latents on every device.
    """
    levels = sigmas.sort().values
    latent = torch.randn(shape, generator=generator).to(device) * float(levels[-1])
    x = decode(eps, latent, levels, method)
    return x - float(levels[0]) * eps(x, float(levels[0]))


@torch.no_grad()
def sample_ancestral(
    eps: NoisePredictor,
    shape: tuple[int, ...],
    sigmas: Tensor,
    generator: torch.Generator,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Draw images [*shape] with fresh noise at every step: the stochastic sampler of Ho et al. (arXiv 2006.11239, eq. 6 and 7).

    In variance-exploding coordinates the posterior of the next level b < a has the mean x0 + (b/a)^2 (x - x0) and the
    variance b^2 (1 - (b/a)^2), with x0 = x - a eps. One network evaluation a level; the last step gives x0.
    """
    levels = sigmas.sort(descending=True).values.tolist()
    x = torch.randn(shape, generator=generator).to(device) * levels[0]
    for here, there in pairwise([*levels, 0.0]):
        clean = x - here * eps(x, here)
        keep = (there / here) ** 2
        noise = torch.randn(shape, generator=generator).to(device)
        x = clean + keep * (x - clean) + there * (1 - keep) ** 0.5 * noise
    return x
