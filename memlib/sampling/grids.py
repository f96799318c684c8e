"""Grids of noise levels, rising, on the processor in float64."""

import torch
from torch import Tensor

from memlib.fields import Field


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


def check_timesteps(field: Field, last: int) -> None:
    """Raise ValueError where a model's schedule has no such timestep."""
    if last >= len(field.sigmas):
        raise ValueError(f"there is no timestep {last}; the model's schedule goes to {len(field.sigmas) - 1}")


def ratio_grid(sigma_min: float, ratio: float, steps: int) -> Tensor:
    """Noise levels [steps + 1], each `ratio` times the one before; raises ValueError unless they rise from above 0."""
    if not (sigma_min > 0 and ratio > 1 and steps >= 1):
        raise ValueError(
            f"a grid needs sigma_min > 0, a ratio above 1 and at least one step; got {sigma_min}, {ratio} and {steps}"
        )
    return sigma_min * ratio ** torch.arange(steps + 1, dtype=torch.float64)
