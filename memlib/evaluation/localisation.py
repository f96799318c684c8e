"""How well maps find what is copied in pictures: the picture counts once, however many pixels and views it has."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.evaluation.intervals import mean
from memlib.evaluation.split import stratified_split

MEASURES = ("auroc", "precision")
PICTURE = ["kind", "slot"]  # a template of one kind is one picture, whatever its views


def by_picture(judged: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure of each picture, the mean over its views and trainings: a row a (kind, slot), a column a (method, sigma).

    judged: a row a view, method and noise level, as the experiment writes them; a method without a level has nan.
    """
    levels = judged.assign(sigma=judged["sigma"].fillna(0.0))
    return levels.pivot_table(index=PICTURE, columns=["method", "sigma"], values=measure)


def choosing_half(pictures: pd.DataFrame, seed: int) -> NDArray[np.bool_]:
    """Which pictures of `by_picture` [N] levels are chosen by: a random half of the subjects, in all their kinds."""
    slots = pictures.index.get_level_values("slot")
    unique = slots.unique().sort_values()
    alike = np.zeros(len(unique))
    return slots.isin(unique[stratified_split(alike, alike, seed)])


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


def by_rank(results: pd.DataFrame) -> pd.DataFrame:
    """Rows of `reported`, the method of the largest AUROC first, the mean over kinds."""
    values = results["auroc"].map(lambda estimate: estimate.value).groupby(results["method"]).transform("mean")
    return results.loc[values.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def paired(
    judged: pd.DataFrame, levels: Mapping[str, float], pictures: pd.Index, pairs: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    """Differences (method, minus) in AUROC and precision over the same pictures, each at its own level, a row a pair and kind."""
    parts = []
    for method, minus in pairs:
        table = reported(judged, {name: levels[name] for name in (method, minus)}, pictures, minus)
        parts.append(table[table["method"] == method].assign(minus=minus))
    return pd.concat(parts, ignore_index=True)[["method", "minus", "kind", *MEASURES]]


def marked_shares(judged: pd.DataFrame, levels: Mapping[str, float], pictures: pd.Index) -> pd.DataFrame:
    """Share of pixels above the threshold of null pictures, `inside` of the mask and `outside`, with intervals over pictures.

    Of the methods that have a threshold, each at its level; a row a method and kind.
    """
    own = judged[judged["inside"].notna() & (judged["sigma"] == judged["method"].map(levels))]
    shares = own.groupby(["method", *PICTURE], sort=False)[["inside", "outside"]].mean().reset_index()
    shares = shares[pd.MultiIndex.from_frame(shares[PICTURE]).isin(pictures)]
    parts = shares.groupby(["method", "kind"], sort=False)[["inside", "outside"]]
    return parts.agg(mean).reset_index()


def distances(samples: pd.DataFrame) -> pd.DataFrame:
    """Means over pictures, with intervals, of the distance of samples to their template, over each part of it.

    samples: a row a sample, with its kind, slot, model and the distances `repeated` and `other`; a row a kind and model.
    """
    parts = ["repeated", "other"]
    pictures = samples.groupby(["kind", "model", "slot"], sort=False)[parts].mean()
    return pictures.groupby(["kind", "model"], sort=False).agg(mean).reset_index()
