"""The statistics that claims are judged by, each measured with what its interval needs: AUROC, share of items, gap of curves.

Tables are long: a row an item and training. Items of one cluster (copies of one picture, points of one mode, the same picture
in several trainings) are drawn again together, by default `intervals.RESAMPLES` times.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from memlib.evaluation.intervals import RESAMPLES, proportion, resampled_gaps
from memlib.evaluation.measured import Measured


def newcombe(value: float, positives: int, negatives: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of an AUROC, which has a width also where the groups do not overlap (Newcombe 2006, method 5)."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    balance = (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        variance = theta * (1 - theta) / (positives * negatives)
        return (value - theta) ** 2 - z2 * variance * (1 + balance * ((1 - theta) / (2 - theta) + theta / (1 + theta)))

    low = 0.0 if value == 0 else optimize.brentq(excess, 0.0, value - 1e-12)
    high = 1.0 if value == 1 else optimize.brentq(excess, value + 1e-12, 1.0)
    return low, high


def auroc(
    scores: ArrayLike,
    positive: ArrayLike,
    clusters: ArrayLike | None = None,
    trainings: ArrayLike | None = None,
    seed: int = 0,
    resamples: int | None = None,
) -> Measured:
    """AUROC of scores [N, K] of which the mask `positive` [N] holds the positives: the mean over K and over trainings.

    K: repeats of one score of each item, such as its noises, each with an AUROC of its own; scores may be [N]. clusters,
    trainings [N]: what a row belongs to; by default, every row is a cluster and all are of one training. An item can be
    positive in one training and negative in another; it is then one cluster.

    deviations: DeLong's structural components (DeLong, DeLong & Clarke-Pearson 1988), summed over a cluster (Obuchowski
    1997), with as many degrees of freedom as the smaller side has clusters, less one. limits: Newcombe's, with as many positives
    and negatives as there are clusters that hold one.

    Raises ValueError for masks or labels of another length, scores that are not finite, a training with fewer than two
    positives or negatives, and fewer than two clusters of either.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    scores = scores[:, None] if scores.ndim == 1 else scores
    clusters = np.arange(len(scores)) if clusters is None else np.asarray(clusters)
    trainings = np.zeros(len(scores), dtype=int) if trainings is None else np.asarray(trainings)
    for name, labels in (("positives", positive), ("clusters", clusters), ("trainings", trainings)):
        if len(labels) != len(scores):
            raise ValueError(f"the {name} have {len(labels)} items; the scores have {len(scores)}")
    if not np.isfinite(scores).all():
        raise ValueError(f"the scores of {(~np.isfinite(scores)).any(1).sum()} items are not finite")
    cluster, _ = pd.factorize(clusters)  # in order of appearance, whatever their names
    resamples = resamples or RESAMPLES
    counts = _cluster_counts(cluster, positive, resamples, np.random.default_rng(seed))
    size, rows = counts.shape[1], [np.flatnonzero(trainings == name) for name in np.unique(trainings)]
    values, resampled, parts = [], np.zeros(resamples), np.zeros((2, size))
    for own in rows:
        p, n = own[positive[own]], own[~positive[own]]
        for name, group in (("positive", p), ("negative", n)):
            if len(group) < 2:
                raise ValueError(f"the {name} group has {len(group)} scores; two groups of at least two are needed")
        wins = np.mean([_wins(scores[p, k], scores[n, k]) for k in range(scores.shape[1])], axis=0)
        values.append(wins.mean())
        np.add.at(parts[0], cluster[p], (wins.mean(1) - values[-1]) / len(p) / len(rows))
        np.add.at(parts[1], cluster[n], (wins.mean(0) - values[-1]) / len(n) / len(rows))
        times, others = counts[:, cluster[p]], counts[:, cluster[n]]
        with np.errstate(invalid="ignore"):  # a resample without positives says nothing
            resampled += ((times @ wins) * others).sum(1) / (times.sum(1) * others.sum(1)) / len(rows)
    held = [len(np.unique(cluster[side])) for side in (positive, ~positive)]
    for name, count in zip(("positives", "negatives"), held, strict=True):
        if count < 2:
            raise ValueError(f"all {name} are in one cluster; an interval needs two")
    unbiased = [np.sqrt(count / (count - 1)) for count in held]
    return Measured(
        value=float(np.mean(values)),
        by_training=np.array(values),
        deviations=parts[0] * unbiased[0] + parts[1] * unbiased[1],
        freedom=min(held) - 1,
        resampled=resampled,
        limits=lambda value, level: newcombe(value, *held, level),
        bounds=(0.0, 1.0),
    )


def share(outcomes: ArrayLike, seed: int = 0, resamples: int | None = None) -> Measured:
    """Mean share of outcomes [N, T] between 0 and 1, of N items in T trainings; outcomes may be [N], of one training.

    An outcome is nan where the item is none of the training's, as a prompt whose picture is planted in the other role. Each item
    is the mean of its trainings, and items weigh the same. limits: Wilson's, for the nearest whole number of items. Raises
    ValueError for fewer than two items, values that are no shares, and items or trainings without any.
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    outcomes = outcomes[:, None] if outcomes.ndim == 1 else outcomes
    n, absent = len(outcomes), np.isnan(outcomes)
    if n < 2 or not ((outcomes >= 0) & (outcomes <= 1) | absent).all() or absent.all(0).any() or absent.all(1).any():
        raise ValueError("a share needs two items or more, with outcomes between 0 and 1")
    items = np.nanmean(outcomes, axis=1)
    counts = _counts(n, resamples or RESAMPLES, np.random.default_rng(seed))
    return Measured(
        value=float(items.mean()),
        by_training=np.nanmean(outcomes, axis=0),
        deviations=(items - items.mean()) / np.sqrt(n * (n - 1)),
        freedom=n - 1,
        resampled=counts @ items / n,
        limits=lambda value, level: tuple(proportion(int(np.clip(round(value * n), 0, n)), n, level)[1:]),
        bounds=(0.0, 1.0),
    )


def gap(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], seed: int = 0, resamples: int | None = None
) -> Measured:
    """How far a first curve lies above a second over their common range; see `intervals.resampled_gaps`.

    limits: Student's, with the standard deviation of the resamples as the standard error.
    """
    value, resampled = resampled_gaps(first, second, seed, resamples or RESAMPLES)
    error, items = np.nanstd(resampled), np.shape(first[0])[1]
    return Measured(
        value=value,
        by_training=np.array([value]),
        deviations=np.zeros(1),
        freedom=items - 1,
        resampled=resampled,
        limits=lambda value, level: stats.t.interval(level, items - 1, value, error),
        bounds=(-1.0, 1.0),
    )


def _wins(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each pair [M, N], whether the positive score is the larger one; 1/2 for ties."""
    return np.heaviside(positive[:, None] - negative, 0.5)


def _cluster_counts(
    cluster: NDArray[np.intp], positive: NDArray[np.bool_], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """How often each cluster is drawn in each resample [R, C]; those that hold positives, negatives or both are drawn apart."""
    size = int(cluster.max()) + 1
    kind = np.zeros(size, dtype=int)
    for bit, side in ((1, positive), (2, ~positive)):
        kind[np.unique(cluster[side])] += bit
    counts = np.empty((resamples, size))
    for stratum in np.unique(kind):
        members = np.flatnonzero(kind == stratum)
        counts[:, members] = _counts(len(members), resamples, rng)
    return counts


def _counts(n: int, resamples: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """How often each of n is drawn in each resample [R, n]."""
    drawn = rng.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
