"""Pictures drawn from a model without prompts."""

import torch
from torch import Tensor

from memlib.fields.unet import UNetField
from memlib.progress import progress
from memlib.sampling.ancestral import sample_ancestral
from memlib.sampling.grids import sigma_grid
from memlib.sampling.ode import sample
from memlib.tensors import item_seeds, to_uint8

BATCH = 256


def sampled(field: UNetField, samples: int, steps: int, sampler: str, seed: int) -> Tensor:
    """Samples uint8 [samples, C, H, W], each from a noise that depends on its number and the seed alone."""
    seeds = item_seeds(range(samples), seed)
    sigmas = noise_levels(field, sampler, steps)
    draw = {"heun": sample, "ancestral": sample_ancestral}[sampler]
    parts = [seeds[start : start + BATCH] for start in range(0, samples, BATCH)]
    return to_uint8(torch.cat([draw(field, part, sigmas).cpu() for part in progress(parts, "sampling")]))


def noise_levels(field: UNetField, sampler: str, steps: int) -> Tensor:
    """The levels of a sampler: those of Karras et al. for the ODE, evenly strided timesteps of training for fresh noise."""
    if sampler == "heun":
        return sigma_grid(field.sigma_min, field.sigma_max, steps)
    return field.sigmas[torch.linspace(0, len(field.sigmas) - 1, steps).round().long()]
