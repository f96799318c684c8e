"""Scores that never look at a model: how simple a picture is, how long a prompt.

Plain measures that could explain a detector's score without any memorisation.
"""

import io
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from memlib.detectors.api import Detector, Items, Scores
from memlib.fields import Field
from memlib.tensors import average, to_uint8


def compressed_size(images: Tensor) -> Tensor:
    """Bytes of each uint8 picture [N, C, H, W] as PNG: small for a simple picture [N]."""
    sizes = []
    for picture in images.permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(buffer, format="png", optimize=True)
        sizes.append(buffer.tell())
    return torch.tensor(sizes, dtype=torch.float64)


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of float pictures [N, C, H, W], both ways [N]."""
    down, right = images.diff(dim=-2).abs(), images.diff(dim=-1).abs()
    return (average(down.flatten(1)) + average(right.flatten(1))) / 2


def flat_share(images: Tensor) -> Tensor:
    """Share of the pixels of each uint8 picture [N, C, H, W] that have its commonest colour: its flat background [N]."""
    shares = []
    for picture in images.flatten(2).mT.numpy():
        counts = np.unique(picture, axis=0, return_counts=True)[1]
        shares.append(counts.max() / counts.sum())
    return torch.tensor(shares, dtype=torch.float64)


def looks(images: Tensor, cells: int) -> dict[str, Tensor]:
    """Mean and standard deviation [N] of each channel in each cell of float pictures [N, C, H, W] cut cells x cells, by name."""
    mean = F.adaptive_avg_pool2d(images, cells)
    spread = (F.adaptive_avg_pool2d(images.square(), cells) - mean.square()).clamp_min(0).sqrt()
    return {
        f"{name}{number}": column
        for name, values in (("mean", mean), ("spread", spread))
        for number, column in enumerate(values.flatten(1).T)
    }


def nearest_distance(images: Tensor, training: Tensor) -> Tensor:
    """Distance [N] (L2 over float pixels) of each picture [N, ...] to the nearest training picture [M, ...] but itself."""
    distances = torch.cdist(images.flatten(1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(distances == 0, float("inf")).min(1).values


def score_png_size(field: Field | None, items: Items) -> Scores:
    """Minus the bytes of the picture as PNG."""
    return Scores(-compressed_size(to_uint8(items.pictures)), 0)


def score_variation(field: Field | None, items: Items) -> Scores:
    """Minus the total variation."""
    return Scores(-total_variation(items.pictures), 0)


def score_flat_share(field: Field | None, items: Items) -> Scores:
    """Share of the pixels of the commonest colour."""
    return Scores(flat_share(to_uint8(items.pictures)), 0)


def score_looks(field: Field | None, items: Items, *, cells: int = 3) -> list[Scores]:
    """What a small classifier is given that never sees the model, a reading for each of the `looks`, without a direction.

    With labels `memlib.evaluation.combination.learned` makes one score of them; above 0.5 it tells items apart by their source.
    """
    return [Scores(value, 0, {"part": name}) for name, value in looks(items.pictures, cells).items()]


def score_nearest_picture(field: Field | None, items: Items) -> Scores:
    """Minus the distance to the nearest training picture but itself."""
    return Scores(-nearest_distance(items.pictures, items.training), 0)


def score_prompt_length(field: Field | None, items: Items) -> Scores:
    """Words of the prompt."""
    return Scores(torch.tensor([len(prompt.split()) for prompt in items.prompts]), 0)


def score_rarest_word(field: Field | None, items: Items) -> Scores:
    """Minus the number of training captions that hold the prompt's rarest word."""
    found = Counter(word for caption in items.captions for word in set(caption.split()))
    return Scores(torch.tensor([-min((found[w] for w in prompt.split()), default=0) for prompt in items.prompts]), 0)


PNG_SIZE = Detector("png_size", {"picture"}, ({},), score_png_size)
VARIATION = Detector("variation", {"picture"}, ({},), score_variation)
FLAT_SHARE = Detector("flat_share", {"picture"}, ({},), score_flat_share)
LOOKS = Detector("looks", {"picture"}, ({},), score_looks)
NEAREST_PICTURE = Detector("nearest_picture", {"picture", "training"}, ({},), score_nearest_picture)
PROMPT_LENGTH = Detector("prompt_length", {"prompt"}, ({},), score_prompt_length)
RAREST_WORD = Detector("rarest_word", {"prompt", "captions"}, ({},), score_rarest_word)
