"""What prompts and their words do, read from tables: which token ranks first, what a word carries, how many generations."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from memlib.evaluation.intervals import Estimate, mean, proportion

KINDS = ("trigger", "next word", "other word")


def around_triggers(tokens: pd.DataFrame, triggers: Mapping[str, str]) -> pd.DataFrame:
    """The tokens of the prompts that have a trigger word, each with what it is to the trigger.

    tokens: a row a token, with `way` (how it was asked), `id` (of the prompt), `place`, `token` and `significance`. triggers:
    the trigger word of each prompt by its id, "" where there is none.

    Adds `offset`, the place counted from the trigger (nan where the tokenizer has split or cut it); `kind`, one of `KINDS`;
    `first`, whether the token has the largest significance of its prompt, the first of several; and `share` of the largest
    significance (nan where none is positive).
    """
    trigger = tokens["id"].map(triggers).fillna("")
    table = tokens[trigger != ""].reset_index(drop=True)
    trigger = trigger[trigger != ""].to_numpy()
    keys = [table["way"], table["id"]]
    own = table["place"].where(table["token"] == trigger).groupby(keys).transform("min")
    largest = table.groupby(["way", "id"])["significance"]
    offset = table["place"] - own
    return table.assign(
        offset=offset,
        kind=np.select([offset == 0, offset == 1], KINDS[:2], KINDS[2]),
        first=table.index.isin(largest.idxmax()),
        share=table["significance"] / largest.transform("max").where(lambda value: value > 0),
    )


def kinds_ranked_first(found: pd.DataFrame) -> pd.DataFrame:
    """How many prompts have a token of each kind first, by way of asking; found: what `around_triggers` gives."""
    first = found[found["first"]]
    return pd.crosstab(first["way"], first["kind"]).reindex(found["way"].unique()).reindex(columns=KINDS, fill_value=0)


def trigger_first(found: pd.DataFrame) -> dict[str, Estimate]:
    """Share of the prompts whose trigger ranks first, by way of asking; found: what `around_triggers` gives."""
    counts = kinds_ranked_first(found)
    return {way: proportion(int(row[KINDS[0]]), int(row.sum())) for way, row in counts.iterrows()}


def chance_first(found: pd.DataFrame) -> float:
    """Mean over prompts of the share of one token among its tokens, by the way of asking that comes first."""
    own = found[found["way"] == found["way"].iloc[0]]
    return float((1 / own.groupby("id").size()).mean())


def mean_significance(found: pd.DataFrame) -> dict[str, Estimate]:
    """Mean over prompts of the significance of the trigger and of the mean of the other words, of one way of asking."""
    is_trigger = (found["kind"] == KINDS[0]).map({True: "the trigger", False: "another word"})
    means = found.groupby(["id", is_trigger])["significance"].mean().unstack()
    return {name: mean(means[name].dropna()) for name in ("the trigger", "another word")}


def by_generations(values: pd.DataFrame) -> dict[int, pd.Series]:
    """Mean of the first 1, 4, 16 and all of n generations; values: a row a prompt, a column a generation."""
    n = values.shape[1]
    return {m: values.iloc[:, :m].mean(axis=1) for m in sorted({1, 4, 16, n}) if m <= n}
