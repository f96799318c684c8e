"""Plain detectors that any of the papers' methods has to beat. Larger scores mean more memorised."""

import torch
from torch import Tensor

from memlib.data import check_images
from memlib.models import NoisePredictor


@torch.no_grad()
def denoising_loss(
    eps: NoisePredictor, x: Tensor, sigma: float, draws: int, generator: torch.Generator, max_batch: int = 256
) -> Tensor:
    """Minus the mean squared error of the noise prediction at one noise level [N], over `draws` noises an image.

    The loss that training minimises (Ho et al., arXiv 2006.11239, eq. 14), used as a membership score by Matsumoto et al.
    (arXiv 2302.03262). `draws` network evaluations an image.
    """
    check_images(x)
    noise = torch.randn(draws, *x.shape, generator=generator).to(x)
    index = torch.arange(draws * len(x), device=x.device)
    errors = []
    for rows in index.split(max_batch):
        n = noise[rows // len(x), rows % len(x)]
        errors.append((eps(x[rows % len(x)] + sigma * n, sigma) - n).square().flatten(1).mean(1))
    return -torch.cat(errors).reshape(draws, len(x)).mean(0)
