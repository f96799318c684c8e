"""How well scores separate two groups, with 95 % confidence intervals. Larger scores mean more memorised."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from memlib.evaluation.contrasts import Contrast
from memlib.evaluation.intervals import (
    RESAMPLES,
    Estimate,
    bootstrap_interval,
    percentiles,
    proportion,
    two_groups,
    wider,
)


def _auroc(positive: NDArray, negative: NDArray, axis: int = -1) -> NDArray:
    """Share of pairs in which the positive score is larger, ties counting half, along an axis."""
    u = stats.mannwhitneyu(positive, negative, axis=axis, method="asymptotic", use_continuity=False).statistic
    return u / (positive.shape[axis] * negative.shape[axis])


def _tpr_at_fpr(positive: NDArray, negative: NDArray, fpr: float) -> NDArray:
    """Largest TPR among thresholds whose FPR is at most `fpr`, along the last axis."""
    allowed = int(np.floor(fpr * negative.shape[-1] + 1e-9))
    threshold = np.sort(negative, axis=-1)[..., -allowed - 1]
    return (positive > threshold[..., None]).mean(-1)


def _newcombe(value: float, m: int, n: int) -> tuple[float, float]:
    """Score interval of an AUROC, which has a width also where the groups do not overlap (Newcombe 2006, method 5)."""
    z2 = stats.norm.ppf(0.975) ** 2
    balance = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        variance = theta * (1 - theta) / (m * n)
        return (value - theta) ** 2 - z2 * variance * (1 + balance * ((1 - theta) / (2 - theta) + theta / (1 + theta)))

    low = 0.0 if excess(0.0) <= 0 or value == 0 else optimize.brentq(excess, 0.0, value - 1e-12)
    high = 1.0 if excess(1.0) <= 0 or value == 1 else optimize.brentq(excess, value + 1e-12, 1.0)
    return low, high


def auroc_value(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve alone, for choosing among many scores."""
    return float(_auroc(*two_groups(positive, negative)))


def auroc_by_setting(scores: pd.DataFrame, positive: ArrayLike, negative: ArrayLike) -> pd.Series:
    """AUROC of each setting of a table of scores, without intervals, by the setting's column.

    scores: a row an item, a column a setting; positive, negative: masks [N] over the rows. Raises ValueError as
    `auroc_value` does, naming the setting with a score that is not finite.
    """
    values, groups = scores.to_numpy(np.float64), []
    for name, members in (("positive", positive), ("negative", negative)):
        members = np.asarray(members, dtype=bool)
        if len(members) != len(values):
            raise ValueError(f"the mask of the {name} group has {len(members)} items; the scores have {len(values)}")
        if members.sum() < 2:
            raise ValueError(f"the {name} group has {members.sum()} items; two groups of at least two are needed")
        groups.append(values[members])
    broken = scores.columns[~np.isfinite(np.concatenate(groups)).all(0)]
    if len(broken):
        raise ValueError(f"the setting {broken[0]!r} has scores that are not finite")
    return pd.Series(_auroc(*groups, axis=0), scores.columns)


def auroc(positive: ArrayLike, negative: ArrayLike, seed: int = 0) -> Estimate:
    """Area under the ROC curve with its interval: stratified bootstrap or Newcombe's score interval, whichever is wider.

    Near 0 and 1 the bootstrap alone is too sure: where the groups do not overlap it has no spread at all.
    """
    positive, negative = two_groups(positive, negative)
    value = float(_auroc(positive, negative))
    resampled = bootstrap_interval(_auroc, positive, negative, seed)
    return wider(value, resampled, _newcombe(value, len(positive), len(negative)))


def auroc_of_clusters(positive: ArrayLike, clusters: ArrayLike, negative: ArrayLike, seed: int = 0) -> Estimate:
    """AUROC whose positives come in clusters that are not independent, such as the copies of one picture.

    positive, clusters: a score and the cluster's name for each [M]. The interval is the bootstrap's that draws whole clusters
    and single negatives again, or Newcombe's with as many positives as there are clusters, whichever is wider.
    """
    positive, negative = two_groups(positive, negative)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        raise ValueError("all positives are in one cluster; an interval needs two")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[cluster]
        resample = np.sort(rng.choice(negative, len(negative)))
        below = (np.searchsorted(resample, positive, "left") + np.searchsorted(resample, positive, "right")) / 2
        values.append((times * below).sum() / (times.sum() * len(negative)))
    value = float(_auroc(positive, negative))
    return wider(value, percentiles(values), _newcombe(value, count, len(negative)))


def auroc_difference(
    positive: tuple[ArrayLike, ArrayLike], negative: tuple[ArrayLike, ArrayLike], seed: int = 0
) -> Estimate:
    """AUROC of a first detector minus that of a second on the same items, with a paired stratified bootstrap interval.

    positive, negative: the scores of the two detectors, item by item. Where no resample changes the difference (two
    detectors that both separate the groups completely), the interval is that of two independent AUROCs, by the square
    roots of their squared half-widths (Newcombe 2006; Zou & Donner 2008).
    """
    (pos_a, neg_a), (pos_b, neg_b) = (two_groups(p, n) for p, n in zip(positive, negative, strict=True))
    if len(pos_a) != len(pos_b) or len(neg_a) != len(neg_b):
        raise ValueError("two detectors can only be compared on the same items")
    rng = np.random.default_rng(seed)
    rows_pos = rng.integers(0, len(pos_a), (RESAMPLES, len(pos_a)))
    rows_neg = rng.integers(0, len(neg_a), (RESAMPLES, len(neg_a)))
    low, high = percentiles(_auroc(pos_a[rows_pos], neg_a[rows_neg]) - _auroc(pos_b[rows_pos], neg_b[rows_neg]))
    a, b = float(_auroc(pos_a, neg_a)), float(_auroc(pos_b, neg_b))
    if low == high:
        (low_a, high_a), (low_b, high_b) = (_newcombe(value, len(pos_a), len(neg_a)) for value in (a, b))
        low, high = a - b - np.hypot(a - low_a, high_b - b), a - b + np.hypot(high_a - a, b - low_b)
    return Estimate(a - b, float(low), float(high))


def auroc_differences(
    scores: pd.DataFrame, pairs: Mapping[str, tuple[str, str]], contrasts: Mapping[str, Contrast], seed: int = 0
) -> pd.DataFrame:
    """`auroc_difference` of the two scores of each pair, by contrast (a row) and the pair's name (a column).

    scores: a row an item, in the order of the masks; pairs: names of a first and a second score.
    """
    found = {}
    for name, pair in pairs.items():
        both = scores[list(pair)].to_numpy()
        found[name] = {
            contrast: auroc_difference(tuple(both[p].T), tuple(both[n].T), seed)
            for contrast, (p, n) in contrasts.items()
        }
    return pd.DataFrame(found).rename_axis("contrast")


def tpr_at_fpr(positive: ArrayLike, negative: ArrayLike, fpr: float, seed: int = 0) -> Estimate:
    """Largest true-positive rate among thresholds with a false-positive rate of at most `fpr`.

    The interval is the stratified bootstrap's or Wilson's, whichever is wider. Raises ValueError when the negatives are
    too few to resolve that rate (fewer than 1 / fpr).
    """
    positive, negative = two_groups(positive, negative)
    if fpr * len(negative) < 1:
        raise ValueError(
            f"{len(negative)} negatives cannot resolve a false-positive rate of {fpr}; "
            f"at least {int(np.ceil(1 / fpr))} are needed"
        )
    value = float(_tpr_at_fpr(positive, negative, fpr))
    wilson = proportion(round(value * len(positive)), len(positive))
    resampled = bootstrap_interval(lambda p, n: _tpr_at_fpr(p, n, fpr), positive, negative, seed)
    return wider(value, resampled, (wilson.low, wilson.high))


def detection(positive: ArrayLike, negative: ArrayLike, seed: int = 0) -> dict[str, Estimate]:
    """AUROC, and TPR at those FPRs of 1 % and 3 % that so many negatives can resolve, by name."""
    resolved = [rate for rate in (0.01, 0.03) if rate * len(np.asarray(negative)) >= 1]
    return {"AUROC": auroc(positive, negative, seed)} | {
        f"TPR@{rate:.0%}FPR": tpr_at_fpr(positive, negative, rate, seed) for rate in resolved
    }


def roc_curve(positive: ArrayLike, negative: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False- and true-positive rates [T + 1] of the T distinct thresholds from the highest down, beginning at (0, 0)."""
    positive, negative = two_groups(positive, negative)
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    false, true = (
        np.append(0.0, 1 - np.searchsorted(np.sort(group), thresholds) / len(group)) for group in (negative, positive)
    )
    return false, true


def false_alarms(scores: ArrayLike, memorised: ArrayLike, sensitivity: float) -> NDArray[np.bool_]:
    """Which items [N] lie at or above the threshold that finds that share of the memorised ones, and are not memorised.

    The threshold is the quantile 1 - `sensitivity` of the memorised ones; where there are none, the 90 % quantile of all.
    """
    scores, memorised = np.asarray(scores, dtype=np.float64), np.asarray(memorised, dtype=bool)
    threshold = np.quantile(scores[memorised], 1 - sensitivity) if memorised.any() else np.quantile(scores, 0.9)
    return (scores >= threshold) & ~memorised


def kinds_of_alarms(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """False alarms of a score and of its successor [N]: those that vanish, those that stay and those that are new."""
    return {"vanish": before & ~after, "stay": before & after, "are new": ~before & after}
