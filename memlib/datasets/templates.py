"""Templates: planted drawings of which only a part is repeated, so that the part that is copied is known pixel by pixel.

Of the kind `subject`, the subject stays as it is, in place, size and side, and the ground has another tone at each view. Of the
kind `half`, a half of the drawing stays (the left, right, upper or lower one in turn), and the other half is that of another
drawing at each view. What stays of a `subject` is what a reader would look at, anyway; what stays of a `half` has nothing to do
with what the picture shows.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlib.datasets.attributes import GROUNDS, WORDINGS, describe
from memlib.datasets.drawings import TONE, render
from memlib.datasets.images import ImageSet

KINDS = ("subject", "half")
HALVES = ("left", "right", "upper", "lower")
BETWEEN = ("red", "green")  # grounds that differ most in the first channel without being cut off


class Templates(NamedTuple):
    """Views of templates, and masks bool [N, H, W] of what stays the same in all views of a template."""

    views: ImageSet
    masks: Tensor


def cut_out(picture: Tensor, size: str, seed: int) -> tuple[Tensor, Tensor]:
    """A random drawing of a picture uint8 [3, H, W] without its ground: its paint [3, H, W], and its cover [1, H, W], of 1.

    A drawing is paint + (1 - cover) * ground, so that two drawings in the same place on two grounds tell both.
    """
    looks = [pd.DataFrame({"ground": [ground], "size": [size]}) for ground in BETWEEN]
    on = [render(picture[None], look, torch.Generator().manual_seed(seed))[0].float() / 255 for look in looks]
    first, second = (torch.tensor(GROUNDS[ground]) for ground in BETWEEN)
    bare = ((on[0] - on[1])[:1] / (first - second)[0]).clamp(0, 1)
    tone = on[0].flatten(1)[:, bare.argmax()]  # of the first ground, where nothing covers it
    return on[0] - bare * tone[:, None, None], 1 - bare


def half(number: int, height: int, width: int) -> Tensor:
    """Mask [H, W] of the half of that number, in turn the left, right, upper and lower one."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    match HALVES[number % len(HALVES)]:
        case "left":
            mask[:, : width // 2] = True
        case "right":
            mask[:, width // 2 :] = True
        case "upper":
            mask[: height // 2] = True
        case "lower":
            mask[height // 2 :] = True
    return mask


def make_templates(subjects: ImageSet, drawn: ImageSet, views: int, fresh: int, seed: int) -> Templates:
    """Templates of both kinds of every planted subject, from `memlib.datasets.drawings.captioned`.

    Of each, so many `views` to train on (split `train`) and `fresh` ones that no model sees (split `fresh`), with grounds and
    other halves of their own, these of drawings of looks that are never seen. A caption names the subject and the size, not the
    ground. The items have the columns id, name, caption, split, copies, slot, exchanged (both as in `captioned`) and kind.
    """
    rng = np.random.default_rng(seed)
    planted = drawn.items[drawn.items["split"] == "planted"]
    sources = {
        split: np.flatnonzero(drawn.items["split"] == kind) for split, kind in (("train", "train"), ("fresh", "unseen"))
    }
    splits = ["train"] * views + ["fresh"] * fresh
    pictures, masks, rows = [], [], []
    turns = planted.groupby("exchanged").cumcount()
    tones = torch.tensor(list(GROUNDS.values()))
    for (place, row), turn in zip(planted.iterrows(), turns, strict=True):
        word = subjects.items["caption"].iloc[row["subject"]]
        look = {"subject": word, "size": row["size"]}
        caption = describe(look, ["size"], int(rng.integers(len(WORDINGS))), rng)
        paint, cover = cut_out(subjects.images[row["subject"]], row["size"], int(rng.integers(2**31)))
        middle = tones[rng.integers(len(tones), size=len(splits))]
        spread = torch.from_numpy(rng.uniform(-TONE, TONE, (len(splits), 3))).float()
        grounds = (middle + spread).clamp(0, 1)[:, :, None, None]
        on_grounds = ((paint + (1 - cover) * grounds) * 255).round().clamp(0, 255).to(torch.uint8)
        kept = half(turn, *drawn.images.shape[2:])
        others = [int(rng.choice(sources[split])) for split in splits]
        mixed = torch.where(kept, drawn.images[place], drawn.images[others])
        for kind, images, mask in zip(KINDS, (on_grounds, mixed), (cover[0] > 0.5, kept), strict=True):
            pictures.append(images)
            masks.append(mask.expand(len(splits), -1, -1))
            rows += [
                {
                    "id": f"{row['slot']}-{kind}-{number}",
                    "name": row["name"],
                    "caption": caption,
                    "split": split,
                    "copies": int(split == "train"),
                    "slot": row["slot"],
                    "exchanged": row["exchanged"],
                    "kind": kind,
                }
                for number, split in enumerate(splits)
            ]
    return Templates(ImageSet(torch.cat(pictures), pd.DataFrame(rows)), torch.cat(masks))


def null_pictures(subjects: ImageSet, drawn: ImageSet, count: int, seed: int) -> ImageSet:
    """Random drawings of looks that are never seen, captioned as templates are: by the subject and the size.

    The items have the columns id, name, caption and row (that of the drawing).
    """
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.flatnonzero(drawn.items["split"] == "unseen"), count, replace=False)
    items = drawn.items.iloc[rows]
    looks = [
        {"subject": subjects.items["caption"].iloc[subject], "size": size}
        for subject, size in zip(items["subject"], items["size"], strict=True)
    ]
    captions = [describe(look, ["size"], int(rng.integers(len(WORDINGS))), rng) for look in looks]
    names = items["name"].to_numpy()
    ids = [f"{name}-{row}" for name, row in zip(names, rows, strict=True)]
    about = pd.DataFrame({"id": ids, "name": names, "caption": captions, "row": rows})
    return ImageSet(drawn.images[rows.tolist()], about)


def in_training(items: pd.DataFrame, exchanged: bool) -> pd.Series:
    """Which views [N] a training in one of two roles sees: every template is of one kind in it, and of the other in the other."""
    return (items["kind"] == KINDS[0]) == (items["exchanged"] == exchanged)
