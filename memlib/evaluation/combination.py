"""Many scores made one: by ranks, or learned with labels on one half of the items, to be judged on the other."""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from memlib.evaluation.contrasts import Contrast


def learned(
    scores: pd.DataFrame, contrast: Contrast, choosing: NDArray[np.bool_], penalty: float = 1.0
) -> pd.DataFrame:
    """Log-odds of being a positive, by logistic regression on the choosing half: a column `learned`, a row an item.

    scores: a row an item, a column a score, such as the losses of a loss curve, the layers of GSA or blind measures; they are
    brought to mean 0 and variance 1 on the items that are learned from. contrast: masks [N] of positives and negatives. The
    squared weights, times half the penalty, are added to the summed loss. `memlib.evaluation.split.choose` judges the column on
    the other half. Raises ValueError for a group without items on the choosing half and scores that are not finite.
    """
    values = scores.to_numpy(np.float64)
    broken = scores.columns[~np.isfinite(values).all(0)]
    if len(broken):
        raise ValueError(f"the score {broken[0]!r} is not finite for every item")
    positive, negative = (group & choosing for group in contrast)
    if not (positive.any() and negative.any()):
        raise ValueError(f"{positive.sum()} positives and {negative.sum()} negatives are there to learn from")
    known = positive | negative
    spread = values[known].std(0)
    features = (values - values[known].mean(0)) / np.where(spread > 0, spread, 1)
    design, labels = np.column_stack([features[known], np.ones(known.sum())]), positive[known]

    def objective(weights: NDArray) -> tuple[float, NDArray]:
        odds, shrunk = design @ weights, np.append(weights[:-1], 0)
        loss = np.logaddexp(0, np.where(labels, -odds, odds)).sum() + penalty / 2 * (shrunk**2).sum()
        return loss, design.T @ (expit(odds) - labels) + penalty * shrunk

    weights = minimize(objective, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", options={"gtol": 1e-8}).x
    return pd.DataFrame({"learned": features @ weights[:-1] + weights[-1]}, scores.index)


def by_ranks(scores: pd.DataFrame, kinds: Sequence[Hashable], trainings: ArrayLike) -> pd.Series:
    """Mean rank of each row among those of its training, between 0 and 1, without any label.

    scores: a row an item and training, a column a setting; kinds: the detector of each column, of which all weigh the same.
    """
    ranks = scores.groupby(np.asarray(trainings)).rank(pct=True)
    return ranks.T.groupby(np.asarray(kinds)).mean().mean()
