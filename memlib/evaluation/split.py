"""Settings chosen on one half of the items and reported on the other."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from memlib.evaluation.contrasts import Contrast
from memlib.evaluation.intervals import Estimate
from memlib.evaluation.roc import auroc, auroc_by_setting, auroc_difference


class Choice(NamedTuple):
    """The setting of the best AUROC on one half of the items (`chosen_by`) and its AUROC on the other (`reported`).

    positive [M], negative [N]: its scores on the half that it is reported on.
    """

    setting: Hashable
    chosen_by: float
    reported: Estimate
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]


def stratified_split(groups: ArrayLike, outcomes: ArrayLike, seed: int) -> NDArray[np.bool_]:
    """Which items [N] are in the first of two random halves, each group and each outcome within it split evenly.

    The first half is to choose by, the second to report on.
    """
    random = np.random.default_rng(seed).random(len(np.asarray(groups)))
    first = np.zeros(len(random), dtype=bool)
    first[np.lexsort((random, outcomes, groups))[::2]] = True
    return first


def usable(contrasts: dict[str, Contrast], choosing: NDArray[np.bool_]) -> dict[str, Contrast]:
    """The contrasts of which both halves hold at least two positives and two negatives; choosing [N]: the first half."""
    return {
        name: groups
        for name, groups in contrasts.items()
        if min((group & half).sum() for group in groups for half in (choosing, ~choosing)) >= 2
    }


def choose(scores: pd.DataFrame, contrast: Contrast, choosing: NDArray[np.bool_], seed: int = 0) -> Choice:
    """The setting that separates best on the choosing half, the first of several, and what it reaches on the other half.

    scores: a row an item, a column a setting; contrast: masks [N] of positives and negatives; choosing: mask [N].
    Raises ValueError for a table without settings, masks of another length, and fewer than two items of a group in a half.
    """
    if scores.shape[1] == 0:
        raise ValueError("there is no setting to choose from: the table of scores has no columns")
    positive, negative = contrast
    chosen_by = auroc_by_setting(scores, positive & choosing, negative & choosing).to_numpy()
    best = int(np.argmax(chosen_by))
    values = scores.iloc[:, best].to_numpy(np.float64)
    reported = values[positive & ~choosing], values[negative & ~choosing]
    return Choice(scores.columns[best], float(chosen_by[best]), auroc(*reported, seed), *reported)


def choose_each(
    scores: pd.DataFrame,
    kinds: Sequence[Hashable],
    contrast: Contrast,
    choosing: NDArray[np.bool_],
    seed: int = 0,
) -> dict[Hashable, Choice]:
    """`choose` among the settings of each kind; kinds: that of every column, such as the detector or its price."""
    if len(kinds) != scores.shape[1]:
        raise ValueError(f"every setting needs its kind; there are {scores.shape[1]} settings and {len(kinds)} kinds")
    columns: dict[Hashable, list[int]] = {}
    for column, kind in enumerate(kinds):
        columns.setdefault(kind, []).append(column)
    return {kind: choose(scores.iloc[:, own], contrast, choosing, seed) for kind, own in columns.items()}


def choice_difference(first: Choice, second: Choice, seed: int = 0) -> Estimate:
    """AUROC of a first choice minus that of a second, paired over the items of the half that both are reported on."""
    return auroc_difference((first.positive, second.positive), (first.negative, second.negative), seed)
