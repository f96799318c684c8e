"""The magnitude along sampling: tables of it in the paper's unit, and how well single steps and means over steps separate."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from memlib.evaluation.intervals import Estimate
from memlib.evaluation.prompts import by_generations
from memlib.evaluation.roc import auroc, auroc_by_setting
from memlib.tables import parse_setting


def by_noise(scores: pd.DataFrame) -> pd.DataFrame:
    """A score table whose columns are its noises, in rising order; scores: a row a prompt, every setting holds `noise`."""
    return scores.set_axis([parse_setting(name)["noise"] for name in scores], axis=1).sort_index(axis=1)


def by_step(scores: pd.DataFrame) -> pd.DataFrame:
    """A score table whose columns are (noise, step, sigma), in rising order; every setting holds these three."""
    names = ["noise", "step", "sigma"]
    places = [tuple(parse_setting(setting)[name] for name in names) for setting in scores]
    return scores.set_axis(pd.MultiIndex.from_tuples(places, names=names), axis=1).sort_index(axis=1)


def in_paper_unit(values: pd.DataFrame) -> pd.DataFrame:
    """|eps_c - eps_u| from |D_c - D_u| in columns (noise, step, sigma): each divided by its sigma."""
    return values / values.columns.get_level_values("sigma")


def mean_of_first_steps(values: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Mean over the first steps: a row a prompt, a column a noise; values: with columns (noise, step, sigma)."""
    chosen = values.loc[:, values.columns.get_level_values("step") < steps]
    return chosen.T.groupby(level="noise").mean().T


def averages(first: pd.DataFrame, values: pd.DataFrame, runs: Mapping[int, int]) -> dict[tuple[int, int], pd.Series]:
    """Mean magnitude of each prompt over the first steps and generations, by (steps, generations).

    first: at the first step alone, with a column a noise; values: at every step, with columns (noise, step, sigma), of the
    same prompts. runs: for numbers of steps the most generations; fewer are those of `by_generations`.
    """
    found = {}
    for steps, generations in runs.items():
        by_noise = first.loc[values.index] if steps == 1 else mean_of_first_steps(values, steps)
        for count, mean in by_generations(by_noise.iloc[:, :generations]).items():
            found[steps, count] = mean
    return found


def rescaled(path: pd.DataFrame, series: str) -> pd.DataFrame:
    """A path of `auroc_by_step` in the paper's unit, with its `series` also over the field's length and times sigma.

    path: with magnitudes |D_c - D_u| and the `length` of the unconditional noise prediction.
    """
    paper = path.assign(magnitude=path["magnitude"] / path["sigma"])
    own = paper[paper["series"] == series]
    ways = {
        "sampled, over the field's length": own["magnitude"] / own["length"],
        "sampled, times sigma": own["magnitude"] * own["sigma"],
    }
    return pd.concat([paper, *(own.assign(series=name, magnitude=value) for name, value in ways.items())])


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


def in_short(by_step: pd.DataFrame) -> pd.DataFrame:
    """AUROC of the first, the middle and the last step alone and of the mean over all, by series; see `auroc_by_step`."""
    series = by_step.sort_values("step").groupby("series", sort=False)
    middle = series["alone"].agg(lambda values: values.iloc[len(values) // 2])
    ends = {"first": series["alone"].first(), "middle": middle, "last": series["alone"].last()}
    return pd.DataFrame(ends | {"mean": series["so_far"].last()}).loc[by_step["series"].unique()]


def auroc_of_prompts(values: pd.Series, positive: Collection[str], seed: int = 0) -> Estimate:
    """AUROC with its interval of one value of each prompt; positive: the ids of the positives, the others are negatives."""
    member = values.index.isin(list(positive))
    return auroc(values[member], values[~member], seed)
