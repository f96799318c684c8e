"""Detectors that compare a picture with variations of it: those that the model makes, and crops."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memlib.detectors.api import Detector, Items, Scores, conditioned
from memlib.detectors.denoising import denoising_loss
from memlib.fields import Field, NoisePredictor, denoised
from memlib.sampling.grids import sigma_grid
from memlib.sampling.ode import decode
from memlib.tensors import average, check_images, check_seeds, generators, norm, normal


@torch.no_grad()
def variations(eps: NoisePredictor, x: Tensor, levels: Tensor, draws: int, seeds: Sequence[int]) -> Tensor:
    """What the model makes [draws, N, ...] of the items x [N, ...] from noise of the largest of `levels` [S].

    Euler steps (those of DDIM) down the levels, from the smallest to the expected clean data: S network evaluations a draw,
    as image-to-image pipelines do. An item's noises are from its own seed.
    """
    rising = levels.sort().values
    noisy = x + float(rising[-1]) * normal(generators(check_seeds(seeds, x)), draws, x)
    reached = decode(eps, noisy.flatten(0, 1), rising, "euler")
    return denoised(eps, reached, float(rising[0])).reshape(noisy.shape)


def central_crop(pictures: Tensor, share: float) -> Tensor:
    """The middle of pictures [N, C, H, W], a share of either side, brought to the whole size by bilinear interpolation.

    Raises ValueError for a share above 1.
    """
    if share > 1:
        raise ValueError(f"a crop takes at most the whole of either side of a picture; its share is {share:g}")
    scale = torch.tensor([[[share, 0, 0], [0, share, 0]]], dtype=pictures.dtype, device=pictures.device)
    grid = F.affine_grid(scale, [1, *pictures.shape[1:]], align_corners=False)
    return F.grid_sample(pictures, grid.expand(len(pictures), -1, -1, -1), align_corners=False)


def score_rediffuse(
    field: Field, items: Items, *, sigma: float, steps: int, draws: list[int], prompt: bool = False
) -> list[Scores]:
    """Minus the distance of a picture to the mean of its first variations by the model (ReDiffuse, arXiv 2405.20771).

    Pictures are compared, so that access to an image-to-image service is enough. `steps` network evaluations a draw.
    """
    x = field.to_latents(items.pictures)
    last = torch.tensor([sigma], dtype=torch.float64)
    levels = last if steps == 1 else sigma_grid(field.sigma_min, sigma, steps - 1, float("inf"))
    made = variations(conditioned(field, items, prompt), x, levels, max(draws), items.seeds)
    pictures = field.to_pictures(made.flatten(0, 1)).unflatten(0, made.shape[:2])
    original = items.pictures.to(pictures)
    return [Scores(-norm((average(pictures[:k], 0) - original).flatten(1)), steps * k, {"draws": k}) for k in draws]


def score_pfami(
    field: Field, items: Items, *, sigmas: list[float], crops: list[float], draws: int = 1, prompt: bool = False
) -> Scores:
    """Mean denoising loss of crops of a picture minus that of the picture, at the same noise: it lies at a peak if memorised.

    PFAMI (Fu et al., arXiv 2308.12143), the mean over crops, shares of either side of the picture, and over noise levels.
    """
    check_images(items.pictures)
    eps = conditioned(field, items, prompt)
    pictures = [items.pictures, *(central_crop(items.pictures, share) for share in crops)]
    latents = [field.to_latents(each) for each in pictures]
    losses = torch.stack(
        [
            torch.stack([average(denoising_loss(eps, x, sigma, draws, items.seeds), 0) for x in latents])
            for sigma in sigmas
        ]
    )  # [levels, 1 + crops, N]
    fluctuation = average(losses[:, 1:], 1) - losses[:, 0]
    return Scores(average(fluctuation, 0), draws * len(sigmas) * len(latents))


REDIFFUSE = Detector("rediffuse", {"model", "picture"}, ({"sigma": 0.5, "steps": 5, "draws": [10]},), score_rediffuse)
PFAMI = Detector(
    "pfami",
    {"model", "picture"},
    ({"sigmas": [0.1, 0.2, 0.4, 0.8], "crops": [0.95, 0.9, 0.85, 0.8, 0.75, 0.7]},),
    score_pfami,
)
