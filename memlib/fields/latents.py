"""Pictures to the latents of a diffusion model and back (Rombach et al., arXiv 2112.10752)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL

    Autoencoder = AutoencoderKL | AutoencoderDC

MAX_BATCH = (
    64  # pictures in one call of the autoencoder; more are taken in turn, since large calls are slower on processors
)


@torch.no_grad()
def encode(vae: "Autoencoder", images: Tensor) -> Tensor:
    """Latents [N, ...] of pictures [N, 3, H, W] in [-1, 1], less the shift and times the factor that the autoencoder names.

    The means of their distributions, where the autoencoder gives one; float32, where the pictures lie.
    """
    parts = [_means(vae, part.to(vae.device, vae.dtype)) for part in images.split(MAX_BATCH)]
    latents = torch.cat([part.to(images.device, torch.float32) for part in parts])
    return (latents - _shift(vae)) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: "Autoencoder", latents: Tensor) -> Tensor:
    """Pictures in [-1, 1] of scaled latents, float32, where the latents lie."""
    parts = [
        vae.decode((part / vae.config.scaling_factor + _shift(vae)).to(vae.device, vae.dtype)).sample
        for part in latents.split(MAX_BATCH)
    ]
    return torch.cat([part.to(latents.device, torch.float32) for part in parts]).clamp(-1, 1)


def _means(vae: "Autoencoder", images: Tensor) -> Tensor:
    found = vae.encode(images)
    return found.latent if hasattr(found, "latent") else found.latent_dist.mode()


def _shift(vae: "Autoencoder") -> float:
    return vae.config.get("shift_factor") or 0.0


def reconstruct(vae: "Autoencoder", images: Tensor) -> Tensor:
    """What the autoencoder gives back of pictures in [-1, 1]: all that a model of its latents sees of them."""
    return decode(vae, encode(vae, images))
