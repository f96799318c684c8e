"""Ground truth: which training images a model's samples are nearest to, and how near."""

from typing import NamedTuple

import torch
from torch import Tensor


class Matches(NamedTuple):
    """For N samples: the row of the nearest training image [N], the distance to it and to the second nearest [N] (pixels, L2)."""

    nearest: Tensor
    distance: Tensor
    second_distance: Tensor

    @property
    def ratio(self) -> Tensor:
        """Distance to the nearest over distance to the second nearest training image [N]; small for a copy."""
        return self.distance / self.second_distance


def match(samples: Tensor, training: Tensor, mirrored: bool = False) -> Matches:
    """Nearest and second nearest training image of each sample, both as [N, ...] on one scale.

    Every training image is to be listed once, however often it was seen; one that was also seen `mirrored` counts as one
    with its mirror image, at the smaller distance of the two. Raises ValueError with fewer than two.
    """
    if len(training) < 2:
        raise ValueError(
            f"the nearest and second nearest training image need at least two of them; there are {len(training)}"
        )
    views = [training.flatten(1), training.flip(-1).flatten(1)] if mirrored else [training.flatten(1)]
    found = [
        torch.stack([torch.cdist(block, view) for view in views]).amin(0).topk(2, largest=False)
        for block in samples.flatten(1).split(4096)
    ]
    distances, indices = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    return Matches(indices[:, 0], distances[:, 0], distances[:, 1])
