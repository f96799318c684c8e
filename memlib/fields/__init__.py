"""The one abstraction of the study: the expected noise eps(y, sigma) in variance-exploding coordinates.

A *noise predictor* is any callable that takes noisy data y [N, ...] = x0 + sigma n and the noise level sigma (a number, or a
tensor [N]) and returns E[n | y] in the shape of y. Score, probability-flow ODE and every detector follow from it. Gaussian
mixtures and training sets (`memlib.fields.mixtures`) are noise predictors in closed form; a trained network is a *field*, a
noise predictor that also knows its noise levels, its conditions and its data space.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Size, Tensor, device

NoisePredictor = Callable[[Tensor, Tensor | float], Tensor]
Conditioning = dict[str, Tensor]  # inputs of a network by name, [N, ...], or [1, ...] for all items


class Field(Protocol):
    """Noise prediction of a trained network.

    shape: of an item y in the network's data space (pixels or latents). sigmas: the noise levels of its timesteps but that of
    pure noise, rising, float64 on the processor. rows: items in one call of the network; more are taken in turn by the field
    itself. pad: whether every call has exactly so many (see `memlib.tensors.in_calls`).
    """

    device: device
    shape: Size
    sigmas: Tensor
    sigma_min: float
    sigma_max: float
    rows: int
    pad: bool
    takes_prompts: bool

    def __call__(self, y: Tensor, sigma: Tensor | float, cond: Conditioning | None = None) -> Tensor:
        """E[n | y, cond] in the shape of y. Conditions of N items are repeated for m N rows, whose leading axis is m."""

    def with_conditioning(self, cond: Conditioning) -> "Field":
        """The same network under a condition."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditions of N prompts."""

    def unconditional(self) -> Conditioning:
        """The condition of no prompt."""

    def timesteps(self, sampling_steps: int) -> list[float]:
        """The timesteps that sampling in so many steps visits, the noisiest first, in the unit of the scheduler."""

    def data_at(self, x_t: Tensor, t: float, cond: Conditioning | None = None) -> Tensor:
        """E[x0 | x_t, cond] in the network's own coordinates at a timestep, also at pure noise, where sigma is infinite."""

    def to_latents(self, pictures: Tensor) -> Tensor:
        """Pictures [N, C, H, W] in [-1, 1] in the network's data space."""

    def to_pictures(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1] of points of the network's data space."""


def denoised(eps: NoisePredictor, y: Tensor, sigma: float) -> Tensor:
    """Expected clean data E[x0 | y] = y - sigma eps(y, sigma), in the shape of y."""
    return y - sigma * eps(y, sigma)
