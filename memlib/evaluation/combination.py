"""Many scores made one: with labels, learned on one half of the items and judged on the other; and without, by ranks or nulls.

All scores are larger for what is more likely memorised, but those that are learned from with labels may have either sign.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtri
from scipy.stats import rankdata

from memlib.evaluation.contrasts import Contrast

KNOTS = (1.0, 2.0)  # standard deviations of the normal scores of what `adaptive` learns from


def learned(
    scores: pd.DataFrame, contrast: Contrast, choosing: NDArray[np.bool_], penalty: float = 1.0
) -> pd.DataFrame:
    """Log-odds of being a positive, by logistic regression on the choosing half: a column `learned`, a row an item.

    scores: a row an item, a column a score, such as the losses of a loss curve, the layers of GSA or blind measures; they are
    brought to mean 0 and variance 1 on the items that are learned from. contrast: masks [N] of positives and negatives. The
    squared weights, times half the penalty, are added to the summed loss. `memlib.evaluation.split.choose` judges the column on
    the other half. Raises ValueError for a group without items on the choosing half and scores that are not finite.
    """
    values = _finite(scores)
    positive, negative = (group & choosing for group in contrast)
    if not (positive.any() and negative.any()):
        raise ValueError(f"{positive.sum()} positives and {negative.sum()} negatives are there to learn from")
    known = positive | negative
    spread = values[known].std(0)
    features = (values - values[known].mean(0)) / np.where(spread > 0, spread, 1)
    weights = _logistic(features[known], positive[known], penalty)
    return pd.DataFrame({"learned": features @ weights[:-1] + weights[-1]}, scores.index)


def normal_scores(
    scores: pd.DataFrame, kinds: Sequence[Hashable] | None = None, groups: ArrayLike | None = None
) -> pd.DataFrame:
    """Quantiles of the normal distribution at the share of items with a lower score, ties counting half; no labels are needed.

    scores: a row an item, a column a score. kinds: that of each column, such as its detector, of which the mean is given: a
    column a kind (by default, each column is one). groups [N]: an item is ranked among those of its group, such as its training.
    Rank nulls together with what is tested: then those that are exchangeable stay so, and their p-values hold
    (`memlib.evaluation.discovery.conformal_p_values`).
    """
    values, found = _finite(scores), np.zeros(scores.shape)
    groups = np.zeros(len(scores)) if groups is None else np.asarray(groups)
    for name in np.unique(groups):
        own = groups == name
        found[own] = ndtri((rankdata(values[own], axis=0) - 0.5) / own.sum())
    if kinds is None:
        return pd.DataFrame(found, scores.index, scores.columns)
    names = list(dict.fromkeys(kinds))
    means = {name: found[:, [kind == name for kind in kinds]].mean(1) for name in names}
    return pd.DataFrame(means, scores.index)


def ranked(
    scores: pd.DataFrame, kinds: Sequence[Hashable] | None = None, groups: ArrayLike | None = None
) -> pd.DataFrame:
    """Mean over the kinds of `normal_scores`: a column `ranked`, a row an item.

    So all kinds weigh the same, whatever their unit and however many columns they have.
    """
    return pd.DataFrame({"ranked": normal_scores(scores, kinds, groups).mean(axis=1)}, scores.index)


def adaptive(
    tested: pd.DataFrame, nulls: pd.DataFrame, share: float = 0.5, penalty: float = 1.0, seed: int = 0
) -> tuple[pd.Series, pd.Series]:
    """One score of tested items and of the nulls to compare them with, learned without labels: conformal p-values of it hold.

    AdaDetect (Marandon et al., arXiv 2208.06685): a `share` of the nulls, drawn at random, is told apart from the
    mixture of the other nulls and the tested items, so that the score favours what only the mixture has; it does not depend on
    the order of the mixture, so the other nulls, which are given back, stay exchangeable with tested ones that are null.
    By logistic regression on `normal_scores` and what of them lies above each of `KNOTS`, so that a score may count
    for more where it is high, as few items are memorised; no weight lies below 0, since larger means memorised.

    tested, nulls: a row an item, a column a score, the same ones. Raises ValueError for other columns, scores that are not
    finite, and fewer than two nulls on either side of the split.
    """
    if list(tested.columns) != list(nulls.columns):
        raise ValueError("tested items and nulls need the same scores in the same order")
    count = round(share * len(nulls))
    if min(count, len(nulls) - count) < 2:
        raise ValueError(
            f"of {len(nulls)} nulls {count} are to be learned from; at least two are needed, and two others"
        )
    order = np.random.default_rng(seed).permutation(len(nulls))
    together = pd.concat([nulls.iloc[order], tested])
    plain = normal_scores(together).to_numpy()
    features = np.concatenate([plain, *(np.maximum(plain - knot, 0) for knot in KNOTS)], 1)
    weights = _logistic(features, np.arange(len(together)) >= count, penalty, least=0.0)
    found = pd.Series(features @ weights[:-1], together.index)
    return found.iloc[len(nulls) :], found.iloc[count : len(nulls)]


def _finite(scores: pd.DataFrame) -> NDArray[np.float64]:
    values = scores.to_numpy(np.float64)
    broken = scores.columns[~np.isfinite(values).all(0)]
    if len(broken):
        raise ValueError(f"the score {broken[0]!r} is not finite for every item")
    return values


def _logistic(features: NDArray, labels: NDArray[np.bool_], penalty: float, least: float | None = None) -> NDArray:
    """Weights [K + 1], that of the constant last and not shrunk, of a logistic regression; none of the others below `least`."""
    design = np.column_stack([features, np.ones(len(features))])

    def objective(weights: NDArray) -> tuple[float, NDArray]:
        odds, shrunk = design @ weights, np.append(weights[:-1], 0)
        loss = np.logaddexp(0, np.where(labels, -odds, odds)).sum() + penalty / 2 * (shrunk**2).sum()
        return loss, design.T @ (expit(odds) - labels) + penalty * shrunk

    bounds = [(least, None)] * features.shape[1] + [(None, None)]
    start = np.zeros(design.shape[1])
    return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-8}).x
