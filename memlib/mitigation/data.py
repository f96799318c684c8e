"""Pictures modified before training, so that the model reproduces them less (the use that Hasegawa & Yasuda propose)."""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
import torch
from torch import Tensor

from memlib.files import suggest
from memlib.mitigation import Modification


def modify(
    images: Tensor, items: pd.DataFrame, rows: Sequence[int], how: Modification, generator: torch.Generator
) -> tuple[Tensor, pd.DataFrame]:
    """Training pictures with those of some rows modified, and their items; an auditor need not know which are copies.

    images: uint8 [N, C, H, W]; items: a row a picture, numbered from 0, with its `copies` in training. `drop` keeps each
    of the chosen once. `augment` replaces every copy by one of its own: mirrored or not, shifted by up to an eighth of the
    side, the edge repeated. `mask` replaces every copy by one with a grey square of half the side somewhere. The others
    stay as they are. Raises ValueError for an unknown modification and for a row that is not there.
    """
    if how not in get_args(Modification):
        raise ValueError(f"unknown modification {how!r}{suggest(how, get_args(Modification))}")
    for row in rows:
        if not 0 <= row < len(items):
            raise ValueError(f"there is no picture {row} to modify; the rows go from 0 to {len(items) - 1}")
    if how == "drop":
        changed = items.copy()
        changed.loc[list(rows), "copies"] = 1
        return images, changed
    kept = sorted(set(range(len(items))) - set(rows))
    copies = [row for row in rows for _ in range(items.loc[row, "copies"])]
    change = {"augment": _shifted_and_mirrored, "mask": _masked}[how]
    return (
        torch.cat([images[kept], change(images[copies], generator)]),
        pd.concat([items.iloc[kept], items.iloc[copies].assign(copies=1)], ignore_index=True),
    )


def _shifted_and_mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    reach = max(1, height // 8)
    down, right = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator)
    y = (torch.arange(height) - down).clamp(0, height - 1)
    x = (torch.arange(width) - right).clamp(0, width - 1)
    return images[torch.arange(n)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _masked(images: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = images.shape
    side = height // 2
    top, left = torch.randint(0, height - side + 1, (2, n, 1), generator=generator)
    inside_y = (torch.arange(height) >= top) & (torch.arange(height) < top + side)
    inside_x = (torch.arange(width) >= left) & (torch.arange(width) < left + side)
    hidden = inside_y[:, :, None] & inside_x[:, None, :]
    return images.masked_fill(hidden[:, None], 127)
