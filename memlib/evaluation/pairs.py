"""Contrasts of pictures whose roles are exchanged between trainings: what a picture is by itself cancels.

Tables are long, a row a picture and training: `item`, `training`, `role` (planted, once or kept out), `copies`, what
`memlib.truth.outcomes.reproduced` says (`generated_copies`, `reproduced`), and a column a score. Each contrast is such a table of
the rows that it compares, with the column `positive`; its columns go to `memlib.evaluation.measures.auroc`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from memlib.evaluation.measured import Difference, Measured
from memlib.evaluation.measures import auroc, share
from memlib.truth.outcomes import reproduced

SIDES = 2  # items that a training needs on either side of a contrast


def with_outcomes(roles: pd.DataFrame, matches: Mapping[str, pd.DataFrame], rule: str = "calibrated") -> pd.DataFrame:
    """The rows of the trainings that there are matches of, with what their samples reproduce.

    roles: item, training, role and copies; matches: by training, of samples with all its pictures (`judge_samples`).
    """
    parts = [
        part.join(reproduced(matches[training], part["item"], rule), on="item")
        for training, part in roles.groupby("training", sort=False)
        if training in matches
    ]
    return pd.concat(parts, ignore_index=True)


def members(table: pd.DataFrame) -> pd.DataFrame:
    """Seen once against kept out: membership, without copies."""
    return _sides(table[table["role"] != "planted"], lambda rows: rows["role"] == "once")


def planted(table: pd.DataFrame, copies: int) -> pd.DataFrame:
    """Seen so many times against kept out; on a model that saw none of them, every score must lie at 0.5."""
    rows = table[(table["copies"] == copies) | (table["copies"] == 0)]
    return _sides(rows, lambda rows: rows["copies"] > 0)


def memorised(table: pd.DataFrame, copies: int) -> pd.DataFrame:
    """Reproduced against not reproduced, among pictures seen equally often."""
    return _sides(table[table["copies"] == copies], lambda rows: rows["reproduced"])


def by_name(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Every contrast by its name, in the order of a table of them, without those that lack a side."""
    counts = sorted(set(table["copies"]) - {0, 1}, reverse=True)
    found = {"seen once against kept out": members(table)}
    found |= {f"x{k} against kept out": planted(table, k) for k in counts}
    found |= {f"reproduced or not, x{k}": memorised(table, k) for k in counts}
    return {name: rows for name, rows in found.items() if len(rows)}


def of_score(contrast: pd.DataFrame, score: str, seed: int = 0) -> Measured:
    """AUROC of a score over the trainings of a contrast, a picture being one cluster in all of them."""
    return auroc(contrast[score], contrast["positive"], contrast["item"], contrast["training"], seed)


def same_picture(table: pd.DataFrame, contrast: pd.DataFrame, score: str) -> pd.Series:
    """How much higher a picture scores where it is positive than where it is negative, by item; pictures that are both.

    A score is first put on one scale over trainings: less the mean of all pictures in the training, over their standard
    deviation. table: all rows, of which the contrast is a part; since every training has as many pictures of each role, a
    score that sees no model has the same scale in all of them, and no difference.
    """
    scale = table.groupby("training")[score].agg(["mean", "std"]).loc[contrast["training"]]
    standardised = (contrast[score].to_numpy() - scale["mean"].to_numpy()) / scale["std"].to_numpy()
    means = (
        pd.Series(standardised, pd.MultiIndex.from_frame(contrast[["item", "positive"]])).groupby(level=[0, 1]).mean()
    )
    sides = means.unstack().reindex(columns=[False, True]).dropna()
    return sides[True] - sides[False]


def share_above(differences: pd.Series, seed: int = 0) -> Measured:
    """Share of pictures with a difference above 0, ties counting half: 0.5 for a score that tells nothing."""
    return share(np.heaviside(differences.to_numpy(), 0.5), seed)


def saved(arms: pd.DataFrame, first: str, second: str, seed: int = 0) -> Difference:
    """Share of pictures reproduced after one way to choose what is modified minus that after another, over trainings.

    arms: item, training, choice and reproduced, a row a picture that the training saw and draw of the choice; the draws are
    averaged. Raises ValueError where the two were not tried in the same trainings.
    """
    means = arms.groupby(["choice", "training", "item"])["reproduced"].mean()
    tried = {choice: means[choice].index.unique("training") for choice in (first, second)}
    if not tried[first].equals(tried[second]):
        names = [f"{choice} was tried in the trainings {', '.join(found)}" for choice, found in tried.items()]
        raise ValueError(f"{' and '.join(names)}; compare them in the same")
    return Difference(*(_over_trainings(means[choice], seed) for choice in (first, second)))


def _over_trainings(outcomes: pd.Series, seed: int) -> Measured:
    """Share over pictures, each the mean of the trainings that saw it; outcomes: by training and item."""
    found = share(outcomes.groupby("item").mean(), seed)
    return replace(found, by_training=outcomes.groupby("training").mean().to_numpy())


def _sides(rows: pd.DataFrame, positive: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
    """The rows of those trainings that hold enough on both sides."""
    marked = rows.assign(positive=positive(rows).to_numpy(dtype=bool))
    counts = marked.groupby("training")["positive"].agg(["sum", "size"])
    enough = counts.index[(counts["sum"] >= SIDES) & (counts["size"] - counts["sum"] >= SIDES)]
    return marked[marked["training"].isin(enough)].reset_index(drop=True)
