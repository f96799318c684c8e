"""How simple a picture is. Plain measures that could explain a detector's score without any memorisation."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
    return (down.flatten(1).mean(1) + right.flatten(1).mean(1)) / 2


def flat_share(images: Tensor) -> Tensor:
    """Share of the pixels of each uint8 picture [N, C, H, W] that have its commonest colour: its flat background [N]."""
    shares = []
    for picture in images.flatten(2).mT.numpy():
        counts = np.unique(picture, axis=0, return_counts=True)[1]
        shares.append(counts.max() / counts.sum())
    return torch.tensor(shares, dtype=torch.float64)


def nearest_distance(images: Tensor, training: Tensor) -> Tensor:
    """Distance [N] (L2 over float pixels) of each picture [N, ...] to the nearest training picture [M, ...] but itself."""
    distances = torch.cdist(images.flatten(1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(distances == 0, float("inf")).min(1).values
