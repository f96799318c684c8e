"""Controlled discovery: which items are memorised, with a stated rate of false discoveries, and whether a whole set is.

The nulls are items known to be outside of the training and exchangeable with the tested ones: of the same source, chosen at
random, and scored alike. Larger scores mean more likely memorised. No labels of members are needed.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from memlib.evaluation.intervals import two_groups

NUMBERS = 10**6  # that a permutation test holds at a time
ROUNDING = 1e-9  # by which a ratio that is a whole number may come out larger


def conformal_p_values(scores: ArrayLike, nulls: ArrayLike) -> NDArray[np.float64]:
    """Conformal p-value of each item [M]: (1 + how many of the n nulls score as high) / (n + 1).

    Bates et al. (arXiv 2104.08279, eq. 2): below u with a chance of at most u for an item exchangeable with the nulls. Raises
    ValueError for fewer than two items or nulls and for scores that are not finite.
    """
    tested, outside = two_groups(scores, nulls)
    as_high = len(outside) - np.searchsorted(np.sort(outside), tested, side="left")
    return (1 + as_high) / (len(outside) + 1)


def discoveries(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Which items [M] are discoveries by Benjamini and Hochberg's procedure.

    Of conformal p-values, the share of false discoveries is at most `rate` on average over sets of nulls (Bates et al., arXiv
    2104.08279, theorem 2).
    """
    return stats.false_discovery_control(p_values) <= rate * (1 + ROUNDING)


def fewest_nulls(items: int, found: int, rate: float) -> int:
    """How many nulls are needed before `found` of so many items can be discoveries at this rate of false ones.

    The smallest p-value of n nulls is 1 / (n + 1), and `found` items pass where it is at most rate * found / items.
    """
    return max(1, math.ceil(items / (rate * found) - ROUNDING) - 1)


def most_false(p_values: ArrayLike, level: float = 0.05) -> NDArray[np.int64]:
    """Upper bound on the false discoveries among the k items of the smallest p-values, for every k from 1 to M: [M].

    All M bounds hold together with a chance of at least 1 - `level`, so that k may be chosen after a look at them: closed testing
    with Simes's test (Goeman et al., Biometrika 2019, eq. 5), which conformal p-values allow (they are PRDS: Bates et al.,
    arXiv 2104.08279, theorem 2).
    """
    p = np.sort(np.asarray(p_values, dtype=np.float64))
    m = len(p)
    if p[-1] <= level:
        return np.zeros(m, dtype=np.int64)
    below = np.flatnonzero(p < level)
    # Hommel's number: the most hypotheses, those of the largest p-values, that Simes's test does not reject together
    limits = np.ceil((m - 1 - below) / (1 - p[below] / level) - ROUNDING) - 1
    hommel = min(m, int(limits.min(initial=m)))
    needed = np.maximum(np.ceil(hommel * p / level - ROUNDING), 1)  # u at which each item counts
    true, k = np.zeros(m, dtype=np.int64), np.arange(1, m + 1)
    for u in np.unique(needed[needed <= m]).astype(int):
        counted = np.searchsorted(needed, u, side="right")
        true = np.maximum(true, np.where(k >= u, 1 - u + np.minimum(k, counted), 0))
    return k - true


def set_p_value(suspects: ArrayLike, outside: ArrayLike, resamples: int = 9999, seed: int = 0) -> float:
    """p-value of whether a set scores no higher than items from outside of the training, by permutation of who is which.

    Exact for exchangeable items, whatever the distribution of scores (up to the resamples); one-sided. What the score is (level,
    weights) is chosen on other items of both. Raises ValueError as `conformal_p_values`.
    """
    groups = two_groups(suspects, outside)
    found = stats.permutation_test(
        groups,
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        alternative="greater",
        n_resamples=resamples,
        batch=max(1, NUMBERS // sum(map(len, groups))),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
