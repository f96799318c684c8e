"""The magnitude along sampling: tables of it in the paper's unit, and how well single steps and means over steps separate."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from memlib.evaluation.roc import auroc_by_setting
from memlib.tables import parse_setting


def in_paper_unit(scores: pd.DataFrame) -> pd.DataFrame:
    """|eps_c - eps_u| from a score table of |D_c - D_u|, by dividing by sigma; columns (noise, step), in rising order.

    scores: a row a prompt; the name of every column holds `noise`, `step` and `sigma`.
    """
    settings = [parse_setting(name) for name in scores]
    values = scores / [setting["sigma"] for setting in settings]
    places = [(setting["noise"], setting["step"]) for setting in settings]
    values.columns = pd.MultiIndex.from_tuples(places, names=["noise", "step"])
    return values.sort_index(axis=1)


def mean_of_first_steps(values: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Mean over the first steps: a row a prompt, a column a noise; values: with columns (noise, step)."""
    chosen = values.loc[:, values.columns.get_level_values("step") < steps]
    return chosen.T.groupby(level="noise").mean().T


def auroc_by_step(table: pd.DataFrame, positive: Collection[str]) -> pd.DataFrame:
    """AUROC of each step `alone` and of the mean up to it (`so_far`), in columns series, step, sigma, alone and so_far.

    table: a row a series, prompt (`id`), noise and step, with its `sigma` and `magnitude`; the mean over noises is taken.
    positive: the ids of the positives; the other prompts are the negatives.
    """
    found = []
    for series, rows in table.groupby("series", sort=False):
        values = rows.pivot_table("magnitude", "id", "step")
        member = values.index.isin(list(positive))
        mean = values.cumsum(axis=1) / np.arange(1, values.shape[1] + 1)
        found.append(
            pd.DataFrame(
                {
                    "series": series,
                    "step": values.columns,
                    "sigma": rows.groupby("step")["sigma"].first().to_numpy(),
                    "alone": auroc_by_setting(values, member, ~member).to_numpy(),
                    "so_far": auroc_by_setting(mean, member, ~member).to_numpy(),
                }
            )
        )
    return pd.concat(found, ignore_index=True)
