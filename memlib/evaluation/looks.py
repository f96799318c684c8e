"""Repeated looks at one training: is it told apart what it trains on, with one rate of false alarms for the whole run?

Trained and held-out items are drawn at random from one pool before the training, and the same items are scored with the same
noises at every look. A training that does nothing to its own items in particular leaves the groups exchangeable, at all looks
together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from memlib.evaluation.discovery import conformal_p_values, discoveries
from memlib.evaluation.intervals import Estimate
from memlib.evaluation.measures import newcombe

RATE = 0.1  # of false discoveries among the items that are named


class Look(NamedTuple):
    """What a look says: AUROC of trained against held-out items, its p-value, and the level below which that is an alarm.

    named [N]: which of the trained items are discoveries by themselves.
    """

    auroc: Estimate
    p_value: float
    level: float
    named: NDArray[np.bool_]

    @property
    def told_apart(self) -> bool:
        """Whether trained items are told apart from held-out ones at this look."""
        return self.p_value <= self.level


def level_at(look: int, alpha: float) -> float:
    """Level of the look with this number, from 1: alpha / (look (look + 1)).

    They sum to alpha over all looks, however many there will be, so the chance of any false alarm is at most alpha, whatever the
    dependence between looks (the union bound; a spending function as of Lan & DeMets, Biometrika 1983).
    """
    return alpha / (look * (look + 1))


def look_p_values(trained: ArrayLike, heldout: ArrayLike) -> NDArray[np.float64]:
    """One-sided p-values [...] of Mann and Whitney's test: trained items [..., N] score no higher than held-out ones [..., M].

    Exact up to eight items of a group; beyond, the normal approximation, which is larger than the exact value below 0.025.
    """
    return np.asarray(stats.mannwhitneyu(trained, heldout, axis=-1, alternative="greater").pvalue)


def named_items(trained: ArrayLike, heldout: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Which trained items [N] are discoveries by themselves, at a rate of false ones, with the held-out items [M] as nulls."""
    return discoveries(conformal_p_values(trained, heldout), rate)


def first_named(changes: pd.DataFrame, trained: Sequence[str], rate: float) -> pd.Series:
    """The first step at which each trained item is named, by the item; without those that never are.

    changes: a row a step, in their order, a column an item, trained and held out.
    """
    own, others = changes[list(trained)], changes.drop(columns=list(trained))
    first = {
        item: step
        for step in reversed(changes.index)
        for item in own.columns[named_items(own.loc[step], others.loc[step], rate)]
    }
    return pd.Series(first, dtype=float)


def named_at(scores: pd.DataFrame, rate: float = RATE) -> pd.DataFrame:
    """The first step after the first look at which each trained item is named, by the item; nan where that never happens.

    scores: rows of step, detector, item, trained and score. A column for each detector, `DETECTOR_named_at`, by the change of
    its score since the first look, and one, `DETECTOR_itself_named_at`, by the score itself.
    """
    trained = scores.loc[scores["trained"], "item"].unique()
    columns = {}
    for detector, part in scores.groupby("detector"):
        wide = part.pivot(index="step", columns="item", values="score")
        for name, changes in ((detector, wide - wide.iloc[0]), (f"{detector}_itself", wide)):
            columns[f"{name}_named_at"] = first_named(changes.iloc[1:], trained, rate).reindex(trained)
    return pd.DataFrame(columns).rename_axis("item")


def judge(trained: ArrayLike, heldout: ArrayLike, look: int, alpha: float, rate: float) -> Look:
    """Judge the changes of scores since the first look, of N trained and M held-out items; larger means more memorised.

    look: its number after the first one. alpha: rate of false alarms of all looks together. rate: share of false discoveries
    among the items that are named, on average and at this look alone. The AUROC's interval is Newcombe's. Changes that are not
    finite, of a training that has diverged, tell nothing apart.
    """
    trained, heldout = (np.asarray(changes, dtype=np.float64) for changes in (trained, heldout))
    n, m, level = len(trained), len(heldout), level_at(look, alpha)
    if not (np.isfinite(trained).all() and np.isfinite(heldout).all()):
        return Look(Estimate(np.nan, np.nan, np.nan), 1.0, level, np.zeros(n, dtype=bool))
    auroc = float(stats.mannwhitneyu(trained, heldout).statistic) / (n * m)
    named = named_items(trained, heldout, rate)
    return Look(Estimate(auroc, *newcombe(auroc, n, m)), float(look_p_values(trained, heldout)), level, named)
