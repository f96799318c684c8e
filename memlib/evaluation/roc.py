"""How well scores separate two groups, with 95 % confidence intervals. Larger scores mean more memorised."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from memlib.evaluation import measures
from memlib.evaluation.contrasts import Contrast
from memlib.evaluation.intervals import Estimate, bootstrap_interval, proportion, two_groups, wider
from memlib.evaluation.measured import Difference, Measured


def _auroc(positive: NDArray, negative: NDArray, axis: int = -1) -> NDArray:
    """Share of pairs in which the positive score is larger, ties counting half, along an axis."""
    u = stats.mannwhitneyu(positive, negative, axis=axis, method="asymptotic", use_continuity=False).statistic
    return u / (positive.shape[axis] * negative.shape[axis])


def _tpr_at_fpr(positive: NDArray, negative: NDArray, fpr: float) -> NDArray:
    """Largest TPR among thresholds whose FPR is at most `fpr`, along the last axis."""
    allowed = int(np.floor(fpr * negative.shape[-1] + 1e-9))
    threshold = np.sort(negative, axis=-1)[..., -allowed - 1]
    return (positive > threshold[..., None]).mean(-1)


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
    return _measured(*two_groups(positive, negative), seed).interval()


def auroc_of_clusters(positive: ArrayLike, clusters: ArrayLike, negative: ArrayLike, seed: int = 0) -> Estimate:
    """AUROC whose positives come in clusters that are not independent, such as the copies of one picture.

    positive, clusters: a score and the cluster's name for each [M]. The interval is the bootstrap's that draws whole clusters
    and single negatives again, or Newcombe's with as many positives as there are clusters, whichever is wider.
    """
    positive, negative = two_groups(positive, negative)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    own = np.concatenate([cluster, len(cluster) + np.arange(len(negative))])
    return _measured(positive, negative, seed, own).interval()


def auroc_difference(
    positive: tuple[ArrayLike, ArrayLike], negative: tuple[ArrayLike, ArrayLike], seed: int = 0
) -> Estimate:
    """AUROC of a first detector minus that of a second on the same items, by square-and-add with DeLong's correlation.

    positive, negative: the scores of the two detectors, item by item. The percentile bootstrap of a difference covers too
    little with few positives near 1; see `memlib.evaluation.measured.Difference`.
    """
    pairs = [two_groups(p, n) for p, n in zip(positive, negative, strict=True)]
    return Difference(*(_measured(*pair, seed) for pair in pairs)).interval()


def _measured(positive: NDArray, negative: NDArray, seed: int, clusters: NDArray | None = None) -> Measured:
    labels = np.arange(len(positive) + len(negative)) < len(positive)
    return measures.auroc(np.concatenate([positive, negative]), labels, clusters, seed=seed)


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
