"""What counts as a copy, calibrated on a control: a model that never saw the pictures, and what it was trained on instead.

Distances are in any unit in which a smaller one means more alike, such as `pixel_distance` or that of an embedding.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # samples compared at a time


class Nearest(NamedTuple):
    """For N samples: the row of the picture that each is nearest to by its limit, and the distance over that limit [N].

    Below 1 the sample is a copy of the picture.
    """

    picture: Tensor
    relative: Tensor


def pixel_distance(samples: Tensor, pictures: Tensor, mirrored: bool = False) -> Tensor:
    """Root mean square over pixels of each sample [N, ...] minus each picture [M, ...], as [N, M].

    With `mirrored`, the smaller of the distances to the picture and to its mirror image.
    """
    views = [pictures.flatten(1), pictures.flip(-1).flatten(1)] if mirrored else [pictures.flatten(1)]
    scale = math.sqrt(views[0].shape[1])
    blocks = samples.flatten(1).split(ROWS)
    return torch.cat([torch.stack([torch.cdist(block, view) for view in views]).amin(0) for block in blocks]) / scale


def own_limits(control: Tensor, level: float) -> Tensor:
    """The distance [M] to each picture that all but a share `level` of the control's samples stay away from.

    control: distances [N, M] of N samples of a model that never saw the M pictures; for a prompt, of samples of that prompt.
    At most `level` of them lie nearer than the limit. Raises ValueError where N samples cannot resolve the level.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level of a copy is {level}; it must be a share above 0 and below 1")
    if len(control) * level < 1 - 1e-9:
        raise ValueError(
            f"{len(control)} samples of the control cannot say what all but {level:g} of them stay away from; "
            f"draw {math.ceil(1 / level)} or more"
        )
    return control.sort(0).values[math.floor(len(control) * level + 1e-9)]


def common_limits(control: Tensor, level: float) -> Tensor:
    """Limits [M] such that a share `level` of the control's samples, at most, lies within the limit of *any* picture.

    Where no prompt says which picture to compare with, a sample has M chances to be near one. Each picture keeps its own
    scale, `own_limits`, since strangers come nearer to a plain picture than to a busy one; one factor shrinks all of them
    (the minimum over the pictures takes the place of Westfall and Young's maximum, Resampling-based multiple testing, 1993).
    """
    scale = own_limits(control, level).clamp_min(torch.finfo(control.dtype).tiny)
    return scale * own_limits((control / scale).amin(1, keepdim=True), level)


def strictest_limits(controls: Iterable[Tensor], level: float) -> Tensor:
    """Limits [M] that hold for several controls, distances [N, M] each: the smallest of their `common_limits`.

    Samples alone set wide limits where a model draws blurred or noisy: real pictures of the kind are as sharp as the M, and
    some come nearer to them than any sample.
    """
    return torch.stack([common_limits(control, level) for control in controls]).amin(0)


def nearest(distances: Tensor, limits: Tensor) -> Nearest:
    """The picture whose limit each sample comes nearest to or lies deepest within; distances [N, M], limits [M]."""
    relative = distances / limits.clamp_min(torch.finfo(distances.dtype).tiny)
    return Nearest(*relative.min(1)[::-1])
