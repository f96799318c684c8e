"""Pictures to the latents of a diffusion model and back (Rombach et al., arXiv 2112.10752)."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

MAX_BATCH = (
    64  # pictures in one call of the autoencoder; more are taken in turn, since large calls are slower on processors
)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents [N, ...] of pictures [N, 3, H, W] in [-1, 1], times the scaling factor: the means of their distributions.

    float32, where the pictures lie.
    """
    parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mode() for part in images.split(MAX_BATCH)]
    return torch.cat([part.to(images.device, torch.float32) for part in parts]) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures in [-1, 1] of scaled latents, float32, where the latents lie."""
    parts = [
        vae.decode((part / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
        for part in latents.split(MAX_BATCH)
    ]
    return torch.cat([part.to(latents.device, torch.float32) for part in parts]).clamp(-1, 1)


def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """What the autoencoder gives back of pictures in [-1, 1]: all that a model of its latents sees of them."""
    return decode(vae, encode(vae, images))
