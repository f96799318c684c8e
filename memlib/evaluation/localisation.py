"""How well maps find what is copied in pictures: the picture counts once, however many pixels and views it has."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.evaluation.intervals import mean

MEASURES = ("auroc", "precision")
PICTURE = ["kind", "slot"]  # a template of one kind is one picture, whatever its views


def by_picture(judged: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure of each picture, the mean over its views and trainings: a row a (kind, slot), a column a (method, sigma).

    judged: a row a view, method and noise level, as the experiment writes them; a method without a level has nan.
    """
    levels = judged.assign(sigma=judged["sigma"].fillna(0.0))
    return levels.pivot_table(index=PICTURE, columns=["method", "sigma"], values=measure)


def best_levels(pictures: pd.DataFrame, choosing: NDArray[np.bool_]) -> dict[str, float]:
    """Noise level of each method with the largest mean over the pictures to choose by, both kinds weighing the same.

    pictures: of `by_picture`; choosing: mask [N] over them.
    """
    means = pictures[choosing].groupby(level="kind").mean().mean()
    return {method: own.idxmax()[1] for method, own in means.groupby(level="method", sort=False)}


def reported(
    judged: pd.DataFrame, levels: Mapping[str, float], pictures: pd.Index, minus: str | None = None
) -> pd.DataFrame:
    """Each method at its level, the means over these pictures with their intervals: a row a method and kind of picture.

    Columns: method, sigma, kind, auroc and precision; with `minus`, the difference in both to that method at its own level,
    paired over pictures.
    """
    tables = {measure: by_picture(judged, measure).loc[pictures] for measure in MEASURES}
    rows = []
    for method, sigma in levels.items():
        for kind in pictures.unique("kind"):
            row = {"method": method, "sigma": sigma, "kind": kind}
            for measure, table in tables.items():
                own = table.loc[kind]
                values = own[method, sigma] - (own[minus, levels[minus]] if minus else 0)
                row[measure] = mean(values)
            rows.append(row)
    return pd.DataFrame(rows)
