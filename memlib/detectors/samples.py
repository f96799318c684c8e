"""Detectors on what a prompt draws: how alike its samples are, and how near they come to the training pictures."""

import torch
from torch import Tensor

from memlib.detectors.api import Detector, Items, Scores
from memlib.fields import Field
from memlib.tensors import average


def between_generations(samples: Tensor, tiles: int = 4) -> Tensor:
    """Mean tiled distance [N] between the generations of a prompt: pictures [N, n, C, H, W], n at least 2.

    The distance of two pictures is the largest root mean square over the tiles that they are cut into, tiles x tiles (Carlini
    et al., arXiv 2301.13188, section 4.2), so that equal grounds do not make different pictures alike. Raises ValueError for
    a single generation and for sides that do not divide into tiles.
    """
    n, _, height, width = samples.shape[1:]
    if n < 2:
        raise ValueError(f"generations are compared with one another; there is {n}")
    if height % tiles or width % tiles:
        raise ValueError(f"pictures of {height}x{width} do not divide into {tiles} tiles a side")
    cut = samples.unflatten(4, (tiles, -1)).unflatten(3, (tiles, -1))  # [N, n, C, rows, h, columns, w]
    cut = cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)  # [N, n, tiles^2, pixels]
    first, second = torch.triu_indices(n, n, 1)
    return average(average((cut[:, first] - cut[:, second]).square()).sqrt().amax(2))


def nearest_training(samples: Tensor, training: Tensor) -> Tensor:
    """Distance [N, n] (L2 over pixels) of each generation [N, n, C, H, W] to the nearest training picture [M, C, H, W]."""
    distances = torch.cdist(
        samples.flatten(2).flatten(0, 1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances.amin(1).unflatten(0, samples.shape[:2])


def score_between(field: Field | None, items: Items, *, generations: list[int]) -> list[Scores]:
    """Minus the mean distance between the first generations of each prompt."""
    _check_generations(items, generations)
    return [Scores(-between_generations(items.samples[:, :n]), 0, {"generations": n}) for n in generations]


def score_nearest(field: Field | None, items: Items, *, generations: list[int]) -> list[Scores]:
    """Minus the mean distance of the first generations to their nearest training pictures: an upper bound, with the truth."""
    _check_generations(items, generations)
    distances = nearest_training(items.samples, items.training)
    return [Scores(-average(distances[:, :n]), 0, {"generations": n}) for n in generations]


def _check_generations(items: Items, generations: list[int]) -> None:
    there = items.samples.shape[1]
    if not 1 <= min(generations) <= max(generations) <= there:
        raise ValueError(f"the first {generations} generations of a prompt are to be looked at; there are {there}")


BETWEEN = Detector("between_generations", {"samples"}, ({"generations": [4]},), score_between)
NEAREST = Detector("nearest_training", {"samples", "training"}, ({"generations": [4]},), score_nearest)
