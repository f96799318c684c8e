"""How well a map finds the pixels that are copied, picture by picture, where a mask says which they are."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def pixel_auroc(maps: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """AUROC [N] over the pixels of each map [N, H, W]: the chance that a masked pixel lies above another, ties counting half.

    Raises ValueError for a mask that covers nothing or all.
    """
    values, inside = _flat(maps, masks)
    ranks = stats.rankdata(values, axis=1)
    positives, negatives = inside.sum(1), (~inside).sum(1)
    return ((ranks * inside).sum(1) - positives * (positives + 1) / 2) / (positives * negatives)


def pixel_precision(maps: ArrayLike, masks: ArrayLike) -> NDArray[np.float64]:
    """Average precision [N] over the pixels of each map [N, H, W]: the precision at each threshold, weighted by what it adds.

    Pixels of one value come together. Raises ValueError for a mask that covers nothing or all.
    """
    values, inside = _flat(maps, masks)
    found = []
    for own, positive in zip(values, inside, strict=True):
        order = np.argsort(-own, kind="stable")
        last = np.append(np.diff(own[order]) != 0, True)  # of each value
        true = np.cumsum(positive[order])[last]
        found.append(float((np.diff(true, prepend=0) * true / (np.flatnonzero(last) + 1)).sum() / positive.sum()))
    return np.array(found)


def threshold(nulls: ArrayLike, alarm: float) -> float:
    """The least value of maps of null pictures [N, H, W] that at most a share `alarm` of their pixels lies above."""
    return float(np.quantile(np.asarray(nulls, dtype=np.float64), 1 - alarm, method="inverted_cdf"))


def marked(maps: ArrayLike, masks: ArrayLike, limit: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the pixels above a limit, inside of each mask [N] and outside of it [N], of maps [N, H, W].

    Raises ValueError for a mask that covers nothing or all.
    """
    values, inside = _flat(maps, masks)
    above = values > limit
    return (above & inside).sum(1) / inside.sum(1), (above & ~inside).sum(1) / (~inside).sum(1)


def part_distances(
    samples: ArrayLike, targets: ArrayLike, masks: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """RMS distance of samples [N, C, H, W] to their targets over the pixels inside of each mask [N], and outside of it [N]."""
    off = np.asarray(samples, dtype=np.float64) - np.asarray(targets, dtype=np.float64)
    squared, inside = _flat((off**2).mean(1), masks)
    return tuple(np.sqrt((squared * part).sum(1) / part.sum(1)) for part in (inside, ~inside))


def _flat(maps: ArrayLike, masks: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, inside = np.asarray(maps, dtype=np.float64), np.asarray(masks, dtype=bool)
    if values.shape != inside.shape or not np.isfinite(values).all():
        raise ValueError(
            f"maps and masks must be of one shape, and maps finite; they are {list(values.shape)} and {list(inside.shape)}"
        )
    values, inside = values.reshape(len(values), -1), inside.reshape(len(inside), -1)
    if inside.all(1).any() or not inside.any(1).all():
        raise ValueError("a mask covers nothing or all of its picture, so that there is nothing to tell apart")
    return values, inside
