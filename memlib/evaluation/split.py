"""Settings chosen on one half of the items and reported on the other."""

from collections.abc import Hashable, Mapping, Sequence
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


def development(
    scores: pd.DataFrame, contrast: Contrast, choosing: NDArray[np.bool_], trainings: ArrayLike | None = None
) -> pd.Series:
    """AUROC of each column on the choosing half: the mean over trainings.

    scores: a row an item and training, a column a setting (a level, a power, a step, a sign, a weight); contrast: masks [N] of
    positives and negatives; choosing: mask [N]; trainings [N]: that of each row, by default one. Raises ValueError for a table
    without settings, masks of another length, and fewer than two items of a group in a half.
    """
    if scores.shape[1] == 0:
        raise ValueError("there is no setting to choose from: the table of scores has no columns")
    trainings = np.zeros(len(choosing), dtype=int) if trainings is None else np.asarray(trainings)
    parts = [choosing & (trainings == name) for name in np.unique(trainings)]
    reached = [auroc_by_setting(scores, *(side & part for side in contrast)) for part in parts]
    return pd.Series(np.mean(reached, axis=0), scores.columns)


def best_setting(
    scores: pd.DataFrame, contrast: Contrast, choosing: NDArray[np.bool_], trainings: ArrayLike | None = None
) -> tuple[int, float]:
    """The column that separates best on the choosing half, the first of several, and its AUROC there (see `development`)."""
    reached = development(scores, contrast, choosing, trainings)
    best = int(np.argmax(reached))
    return best, float(reached.iloc[best])


def choose(scores: pd.DataFrame, contrast: Contrast, choosing: NDArray[np.bool_], seed: int = 0) -> Choice:
    """The setting that separates best on the choosing half, the first of several, and what it reaches on the other half.

    scores, contrast, choosing, and what is refused: as `development` has them, of one training.
    """
    positive, negative = contrast
    best, chosen_by = best_setting(scores, contrast, choosing)
    values = scores.iloc[:, best].to_numpy(np.float64)
    reported = values[positive & ~choosing], values[negative & ~choosing]
    return Choice(scores.columns[best], chosen_by, auroc(*reported, seed), *reported)


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


def with_and_without_prompt(
    scores: pd.DataFrame,
    about: pd.DataFrame,
    contrasts: Mapping[str, Contrast],
    choosing: NDArray[np.bool_],
    seed: int = 0,
) -> pd.DataFrame:
    """Each detector at its best noise level under the prompt, and without a prompt; a row a contrast and detector.

    scores: a row an item, a column (detector, setting); about: a row for each of these columns, with its `sigma` and whether
    it is under the `prompt`. Columns: contrast, detector, `sigma with`, `sigma without`, `with` and `without` (AUROC on the
    half that is not chosen by), and `with minus without`, paired over the items of that half.
    """
    kinds = [(detector, bool(about.loc[(detector, setting), "prompt"])) for detector, setting in scores]
    rows = []
    for contrast, sides in contrasts.items():
        chosen = choose_each(scores, kinds, sides, choosing, seed)
        for detector in dict.fromkeys(detector for detector, _ in kinds):
            prompted, without = chosen[detector, True], chosen[detector, False]
            rows.append(
                {
                    "contrast": contrast,
                    "detector": detector,
                    "sigma with": about.loc[prompted.setting, "sigma"],
                    "sigma without": about.loc[without.setting, "sigma"],
                    "with": prompted.reported,
                    "without": without.reported,
                    "with minus without": choice_difference(prompted, without, seed),
                }
            )
    return pd.DataFrame(rows)
