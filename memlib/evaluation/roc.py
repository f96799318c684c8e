"""How well scores separate two groups, with confidence intervals. Larger scores mean more memorised."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (round(number, 3) + 0.0 for number in self)  # no "-0.000"
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"


class WelchTest(NamedTuple):
    """Welch's t-test of two means; t is positive where the first mean is larger."""

    t: float
    degrees_of_freedom: float
    p_value: float


def _groups(positive: ArrayLike, negative: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    groups = tuple(np.asarray(scores, dtype=np.float64) for scores in (positive, negative))
    for name, scores in zip(("positive", "negative"), groups, strict=True):
        if scores.ndim != 1 or len(scores) < 2:
            raise ValueError(f"the {name} group has {scores.size} scores; two groups of at least two are needed")
        if not np.isfinite(scores).all():
            raise ValueError(f"the {name} group has scores that are not finite")
    return groups


def _auroc(positive: NDArray, negative: NDArray, axis: int = -1) -> NDArray:
    """Share of pairs in which the positive score is larger, ties counting half, along an axis."""
    u = stats.mannwhitneyu(positive, negative, axis=axis, method="asymptotic", use_continuity=False).statistic
    return u / (positive.shape[axis] * negative.shape[axis])


def _tpr_at_fpr(positive: NDArray, negative: NDArray, fpr: float) -> NDArray:
    """Largest TPR among thresholds whose FPR is at most `fpr`, along the last axis."""
    allowed = int(np.floor(fpr * negative.shape[-1] + 1e-9))
    threshold = np.sort(negative, axis=-1)[..., -allowed - 1]
    return (positive > threshold[..., None]).mean(-1)


def _interval(
    statistic: Callable[[NDArray, NDArray], NDArray],
    positive: NDArray,
    negative: NDArray,
    seed: int,
    resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile interval of the stratified bootstrap: each group is drawn again on its own."""
    rng = np.random.default_rng(seed)
    values = statistic(*(group[rng.integers(0, len(group), (resamples, len(group)))] for group in (positive, negative)))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


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


def _wider(value: float, *intervals: tuple[float, float]) -> Estimate:
    return Estimate(value, min(low for low, _ in intervals), max(high for _, high in intervals))


def halves(groups: ArrayLike, outcomes: ArrayLike, seed: int) -> NDArray[np.bool_]:
    """Which items [N] are in the first of two random halves, each group and each outcome within it split evenly.

    The first half is to choose by, the second to report on.
    """
    drawn = np.random.default_rng(seed).random(len(np.asarray(groups)))
    first = np.zeros(len(drawn), dtype=bool)
    first[np.lexsort((drawn, outcomes, groups))[::2]] = True
    return first


def auroc_value(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve alone, for choosing among many scores."""
    return float(_auroc(*_groups(positive, negative)))


def auroc(positive: ArrayLike, negative: ArrayLike, seed: int = 0) -> Estimate:
    """Area under the ROC curve with its interval: stratified bootstrap or Newcombe's score interval, whichever is wider.

    Near 0 and 1 the bootstrap alone is too sure: where the groups do not overlap it has no spread at all.
    """
    positive, negative = _groups(positive, negative)
    value = float(_auroc(positive, negative))
    return _wider(value, _interval(_auroc, positive, negative, seed), _newcombe(value, len(positive), len(negative)))


def auroc_of_clusters(positive: ArrayLike, clusters: ArrayLike, negative: ArrayLike, seed: int = 0) -> Estimate:
    """AUROC whose positives come in clusters that are not independent, such as the copies of one picture.

    positive, clusters: a score and the cluster's name for each [M]. The interval is the bootstrap's that draws whole clusters
    and single negatives again, or Newcombe's with as many positives as there are clusters, whichever is wider.
    """
    positive, negative = _groups(positive, negative)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        raise ValueError("all positives are in one cluster; an interval needs two")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(2000):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[cluster]
        drawn = np.sort(rng.choice(negative, len(negative)))
        below = (np.searchsorted(drawn, positive, "left") + np.searchsorted(drawn, positive, "right")) / 2
        values.append((times * below).sum() / (times.sum() * len(negative)))
    low, high = np.percentile(values, [2.5, 97.5])
    value = float(_auroc(positive, negative))
    return _wider(value, (float(low), float(high)), _newcombe(value, count, len(negative)))


def tpr_at_fpr(positive: ArrayLike, negative: ArrayLike, fpr: float, seed: int = 0) -> Estimate:
    """Largest true-positive rate among thresholds with a false-positive rate of at most `fpr`.

    The interval is the stratified bootstrap's or Wilson's, whichever is wider. Raises ValueError when the negatives are
    too few to resolve that rate (fewer than 1 / fpr).
    """
    positive, negative = _groups(positive, negative)
    if fpr * len(negative) < 1:
        raise ValueError(
            f"{len(negative)} negatives cannot resolve a false-positive rate of {fpr}; "
            f"at least {int(np.ceil(1 / fpr))} are needed"
        )
    value = float(_tpr_at_fpr(positive, negative, fpr))
    wilson = proportion(round(value * len(positive)), len(positive))
    bootstrap = _interval(lambda p, n: _tpr_at_fpr(p, n, fpr), positive, negative, seed)
    return _wider(value, bootstrap, (wilson.low, wilson.high))


def auroc_difference(
    positive: tuple[ArrayLike, ArrayLike], negative: tuple[ArrayLike, ArrayLike], seed: int = 0, resamples: int = 2000
) -> Estimate:
    """AUROC of a first detector minus that of a second on the same items, with a paired stratified bootstrap interval.

    positive, negative: the scores of the two detectors, item by item. Where no resample changes the difference (two
    detectors that both separate the groups completely), the interval is that of two independent AUROCs, by the square
    roots of their squared half-widths (Newcombe 2006; Zou & Donner 2008).
    """
    (pos_a, neg_a), (pos_b, neg_b) = (_groups(p, n) for p, n in zip(positive, negative, strict=True))
    if len(pos_a) != len(pos_b) or len(neg_a) != len(neg_b):
        raise ValueError("two detectors can only be compared on the same items")
    rng = np.random.default_rng(seed)
    rows_pos = rng.integers(0, len(pos_a), (resamples, len(pos_a)))
    rows_neg = rng.integers(0, len(neg_a), (resamples, len(neg_a)))
    differences = _auroc(pos_a[rows_pos], neg_a[rows_neg]) - _auroc(pos_b[rows_pos], neg_b[rows_neg])
    low, high = np.percentile(differences, [2.5, 97.5])
    a, b = float(_auroc(pos_a, neg_a)), float(_auroc(pos_b, neg_b))
    if low == high:
        (low_a, high_a), (low_b, high_b) = (_newcombe(value, len(pos_a), len(neg_a)) for value in (a, b))
        low, high = a - b - np.hypot(a - low_a, high_b - b), a - b + np.hypot(high_a - a, b - low_b)
    return Estimate(a - b, float(low), float(high))


def spearman(a: ArrayLike, b: ArrayLike, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Spearman's rank correlation of two scores of the same items, with a bootstrap interval.

    Where one of them is constant nothing is known, and the estimate is 0 with the interval from -1 to 1.
    """
    a, b = _groups(a, b)
    if len(a) != len(b):
        raise ValueError("two scores can only be correlated over the same items")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate(0.0, -1.0, 1.0)
    rows = np.random.default_rng(seed).integers(0, len(a), (resamples, len(a)))
    ranks_a, ranks_b = (stats.rankdata(scores[rows], axis=1) for scores in (a, b))
    centred_a, centred_b = (ranks - ranks.mean(1, keepdims=True) for ranks in (ranks_a, ranks_b))
    norms = np.sqrt((centred_a**2).sum(1) * (centred_b**2).sum(1))
    correlations = (centred_a * centred_b).sum(1)[norms > 0] / norms[norms > 0]
    low, high = np.percentile(correlations, [2.5, 97.5])
    return Estimate(float(stats.spearmanr(a, b).statistic), float(low), float(high))


def proportion_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Share of a first outcome minus that of a second over the same items (0 or 1 each).

    Newcombe's interval for paired shares (1998, method 10), which is honest where few items differ.
    """
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n = len(one)
    a, b = proportion(int(one.sum()), n), proportion(int(two.sum()), n)
    both, only_one, only_two, neither = (int(c.sum()) for c in (one & two, one & ~two, ~one & two, ~one & ~two))
    scale = np.sqrt(float(one.sum()) * (n - one.sum()) * two.sum() * (n - two.sum()))
    excess = both * neither - only_one * only_two
    phi = (max(excess - n / 2, 0) if excess > 0 else excess) / scale if scale else 0.0
    difference = a.value - b.value
    down, up = a.value - a.low, a.high - a.value
    other_down, other_up = b.value - b.low, b.high - b.value
    return Estimate(
        difference,
        difference - float(np.sqrt(down**2 - 2 * phi * down * other_up + other_up**2)),
        difference + float(np.sqrt(up**2 - 2 * phi * up * other_down + other_down**2)),
    )


def proportion(successes: int, trials: int) -> Estimate:
    """Share of successes with Wilson's score interval."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is no share")
    interval = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


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
    drawn = shares[np.random.default_rng(seed).integers(0, n, (2000, n))].mean(1)
    wilson = proportion(round(value * n), n)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return _wider(value, (float(low), float(high)), (wilson.low, wilson.high))


def difference_of_curves(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], seed: int = 0, resamples: int = 2000
) -> Estimate:
    """How far a first curve lies above a second, over the range of x that both cover, with the interval over items.

    A curve goes through the means over the items of (x, y) at each of S strengths, both [S, N] of the same N items, linearly
    in x. The bootstrap draws items again; resamples without a common range are left out. Raises ValueError where the two
    curves have none.
    """
    curves = [np.asarray(part, dtype=np.float64) for curve in (first, second) for part in curve]
    n = curves[0].shape[1]
    value = _gap(*(curve.mean(1) for curve in curves))
    if np.isnan(value):
        raise ValueError("the two curves cover no common range, so that they cannot be compared")
    rows = np.random.default_rng(seed).integers(0, n, (resamples, n))
    gaps = [_gap(*(curve[:, drawn].mean(1) for curve in curves)) for drawn in rows]
    low, high = np.nanpercentile(gaps, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _gap(x1: NDArray, y1: NDArray, x2: NDArray, y2: NDArray) -> float:
    """Mean height of a first curve over a second on the common range of x; nan where there is none."""
    low, high = max(x1.min(), x2.min()), min(x1.max(), x2.max())
    if low >= high:
        return float("nan")
    at = np.linspace(low, high, 201)
    one, two = (np.interp(at, x[np.argsort(x)], y[np.argsort(x)]) for x, y in ((x1, y1), (x2, y2)))
    return float(np.trapezoid(one - two, at) / (high - low))


def detection(positive: ArrayLike, negative: ArrayLike, seed: int = 0) -> dict[str, Estimate]:
    """AUROC, and TPR at those FPRs of 1 % and 3 % that so many negatives can resolve, by name."""
    resolved = [rate for rate in (0.01, 0.03) if rate * len(np.asarray(negative)) >= 1]
    return {"AUROC": auroc(positive, negative, seed)} | {
        f"TPR@{rate:.0%}FPR": tpr_at_fpr(positive, negative, rate, seed) for rate in resolved
    }


def _cohen(positive: NDArray, negative: NDArray) -> NDArray:
    pooled = np.sqrt((positive.var(-1, ddof=1) + negative.var(-1, ddof=1)) / 2)
    return (positive.mean(-1) - negative.mean(-1)) / pooled


def effect_size(positive: ArrayLike, negative: ArrayLike, seed: int = 0) -> Estimate:
    """Cohen's d (with the mean of the two variances) with a stratified bootstrap interval."""
    positive, negative = _groups(positive, negative)
    return Estimate(float(_cohen(positive, negative)), *_interval(_cohen, positive, negative, seed))


def welch(positive: ArrayLike, negative: ArrayLike) -> WelchTest:
    """Two-sided Welch's t-test that the means of two groups differ."""
    positive, negative = _groups(positive, negative)
    result = stats.ttest_ind(positive, negative, equal_var=False)
    return WelchTest(float(result.statistic), float(result.df), float(result.pvalue))
