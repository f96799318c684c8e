"""Means, shares, rank correlations and differences, each with its 95 % confidence interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 2000


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self}"

    def __format__(self, sign: str) -> str:
        """The value with its interval; a difference is written with the sign "+", so that it is not taken for a value."""
        value, low, high = (f"{round(number, 3) + 0.0:{sign}.3f}" for number in self)  # no "-0.000"
        return f"{value} [{low}, {high}]"


def two_groups(positive: ArrayLike, negative: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of two groups as arrays; raises ValueError for a group of fewer than two and for values that are not finite."""
    groups = tuple(np.asarray(scores, dtype=np.float64) for scores in (positive, negative))
    for name, scores in zip(("positive", "negative"), groups, strict=True):
        if scores.ndim != 1 or len(scores) < 2:
            raise ValueError(f"the {name} group has {scores.size} scores; two groups of at least two are needed")
        if not np.isfinite(scores).all():
            raise ValueError(f"the {name} group has scores that are not finite")
    return groups


def bootstrap_interval(
    statistic: Callable[[NDArray, NDArray], NDArray], positive: NDArray, negative: NDArray, seed: int
) -> tuple[float, float]:
    """Percentile interval of the stratified bootstrap: each group is drawn again on its own.

    statistic: of the resampled groups [resamples, M] and [resamples, N], along the last axis.
    """
    rng = np.random.default_rng(seed)
    values = statistic(*(group[rng.integers(0, len(group), (RESAMPLES, len(group)))] for group in (positive, negative)))
    return percentiles(values)


def percentiles(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The range of the middle of resampled values, a share `level` of them; those that are nan are left out."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wider(value: float, *intervals: tuple[float, float]) -> Estimate:
    """The value with the interval that covers all of the given ones."""
    return Estimate(value, min(low for low, _ in intervals), max(high for _, high in intervals))


def square_and_add(first: Estimate, second: Estimate, correlation: float) -> Estimate:
    """A first value minus a second with the interval that adds the squares of their half-widths (MOVER; Zou & Donner 2008).

    correlation: of the two values; 0 where they are of different items.
    """

    def half_width(own: float, other: float) -> float:
        return float(np.sqrt(max(own**2 - 2 * correlation * own * other + other**2, 0.0)))

    (a, low_a, high_a), (b, low_b, high_b) = first, second
    return Estimate(a - b, a - b - half_width(a - low_a, high_b - b), a - b + half_width(high_a - a, b - low_b))


def proportion(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is no share")
    share, z2 = successes / trials, stats.norm.ppf((1 + level) / 2) ** 2
    centre, half = share + z2 / (2 * trials), np.sqrt(z2 * (share * (1 - share) + z2 / (4 * trials)) / trials)
    low, high = ((centre + side * half) / (1 + z2 / trials) for side in (-1, 1))
    return Estimate(share, 0.0 if successes == 0 else float(low), 1.0 if successes == trials else float(high))


def mean(values: ArrayLike) -> Estimate:
    """Mean over items with Student's interval, which is honest for few items; for outcomes near 0 or 1 see `mean_share`."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("a mean with an interval needs at least two finite values")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def mean_share(shares: ArrayLike, seed: int = 0) -> Estimate:
    """Mean over items that each have a share between 0 and 1, such as copies among the samples of each prompt.

    The interval is the bootstrap's over items or Wilson's for the nearest whole number of items, whichever is wider, so that
    it has a width also where all shares are 0 or 1. Raises ValueError for no shares and for values that are none.
    """
    shares = np.asarray(shares, dtype=np.float64)
    n = len(shares)
    if n == 0 or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("a mean share needs values between 0 and 1")
    value = float(shares.mean())
    resampled = shares[np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))].mean(1)
    wilson = proportion(round(value * n), n)
    return wider(value, percentiles(resampled), (wilson.low, wilson.high))


def spearman_value(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two scores of the same items; 0 where one of them is constant."""
    a, b = _same_items(a, b)
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.spearmanr(a, b).statistic)


def spearman(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of two scores of the same items, with a bootstrap interval.

    Where one of them is constant nothing is known, and the estimate is 0 with the interval from -1 to 1.
    """
    a, b = _same_items(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(0.0, -1.0, 1.0)
    rows = np.random.default_rng(seed).integers(0, len(a), (RESAMPLES, len(a)))
    ranks_a, ranks_b = (stats.rankdata(scores[rows], axis=1) for scores in (a, b))
    centred_a, centred_b = (ranks - ranks.mean(1, keepdims=True) for ranks in (ranks_a, ranks_b))
    norms = np.sqrt((centred_a**2).sum(1) * (centred_b**2).sum(1))
    correlations = (centred_a * centred_b).sum(1)[norms > 0] / norms[norms > 0]
    return Estimate(spearman_value(a, b), *percentiles(correlations))


def _same_items(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = two_groups(a, b)
    if len(a) != len(b):
        raise ValueError(f"two scores are correlated over the same items; there are {len(a)} and {len(b)} items")
    return a, b


def explained_variance_of_ranks(features: pd.DataFrame, target: ArrayLike) -> float:
    """Share of the variance of the target's ranks that a linear function of the features' ranks explains (R squared).

    Raises ValueError where the target is constant.
    """
    ranks = stats.rankdata(target)
    if np.ptp(ranks) == 0:
        raise ValueError("the target is constant, so that it has no variance to explain")
    design = np.column_stack([np.ones(len(ranks)), features.rank()])
    residual = ranks - design @ np.linalg.lstsq(design, ranks)[0]
    return float(1 - residual.var() / ranks.var())


def resampled_gaps(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, NDArray[np.float64]]:
    """How far a first curve lies above a second, over the range of x that both cover, and the same in each resample [R].

    A curve goes through the means over the items of (x, y) at each of S strengths, both [S, N] of the same N items, linearly
    in x. The bootstrap draws items again; resamples without a common range are nan. Raises ValueError where the two curves have
    none.
    """
    curves = [np.asarray(part, dtype=np.float64) for curve in (first, second) for part in curve]
    n = curves[0].shape[1]
    value = float(_gaps(*(curve.mean(1) for curve in curves)))
    if np.isnan(value):
        raise ValueError("the two curves cover no common range, so that they cannot be compared")
    rows = np.random.default_rng(seed).integers(0, n, (resamples, n))
    means = [curve[:, rows].mean(2).T for curve in curves]  # [R, S]
    return value, _gaps(*means)


def common_range(x1: ArrayLike, x2: ArrayLike) -> tuple[float, float] | None:
    """Smallest and largest x that two curves through the points x1 [S] and x2 [T] both cover; None where there is none."""
    low, high = map(float, _overlap(np.asarray(x1), np.asarray(x2)))
    return (low, high) if low < high else None


def _overlap(x1: NDArray, x2: NDArray) -> tuple[NDArray, NDArray]:
    """Ends [...] of what the ranges of x1 [..., S] and x2 [..., T] have in common; the first above the second without any."""
    return np.maximum(x1.min(-1), x2.min(-1)), np.minimum(x1.max(-1), x2.max(-1))


def _gaps(x1: NDArray, y1: NDArray, x2: NDArray, y2: NDArray) -> NDArray:
    """Mean height [...] of first curves [..., S] over second ones [..., T] on their common ranges of x, nan without one."""
    low, high = _overlap(x1, x2)
    x = np.linspace(low, high, 201, axis=-1)
    heights = _interpolated(x, x1, y1) - _interpolated(x, x2, y2)
    return np.trapezoid(heights, x) / np.where(low < high, high - low, np.nan)


def _interpolated(x: NDArray, xs: NDArray, ys: NDArray) -> NDArray:
    """Heights at x [..., M], within their range, of curves through the points xs, ys [..., S]: `numpy.interp` of many at once."""
    order = np.argsort(xs)
    xs, ys = np.take_along_axis(xs, order, -1), np.take_along_axis(ys, order, -1)
    left = np.maximum((xs[..., None, :] <= x[..., :, None]).sum(-1) - 1, 0)
    right = np.minimum(left + 1, xs.shape[-1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(part, place, -1) for part in (xs, ys) for place in (left, right))
    return y0 + (y1 - y0) * (x - x0) / np.where(x1 > x0, x1 - x0, 1)


def flat(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with each interval in three columns, as CSV wants it."""
    parts = {}
    for name, column in rows.items():
        if column.map(lambda value: isinstance(value, Estimate)).any():
            for place, suffix in enumerate(("", " low", " high")):
                parts[f"{name}{suffix}"] = column.map(
                    lambda value, place=place: value[place] if isinstance(value, Estimate) else float("nan")
                )
        else:
            parts[str(name)] = column
    return pd.DataFrame(parts)
