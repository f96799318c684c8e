"""What a mitigation saves and what it costs, read from tables of judged samples.

samples: a row a sample, with the `id` of its prompt, its `similarity` to the prompt's training picture, its `agreement` with
the prompt, whether it `copies_own` picture, and columns that name what was done, such as `method` and `strength`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.evaluation import measures
from memlib.evaluation.intervals import Estimate, common_range, mean, mean_share, proportion
from memlib.evaluation.measured import Difference

UNCHANGED = "unchanged"  # the method that every curve begins with


def summarise(samples: pd.DataFrame, keys: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Estimates over prompts for each combination of the keys, in order of appearance.

    similarity, agreement: means over the prompts' means. copies: mean share of a prompt's samples that copy its picture.
    drawn at all: share of prompts with such a sample.
    """
    rows = []
    for names, group in samples.groupby(list(keys), sort=False):
        prompts = group.groupby("id")[["similarity", "agreement", "copies_own"]].mean()
        rows.append(
            {
                **dict(zip(keys, names, strict=True)),
                "similarity": mean(prompts["similarity"]),
                "agreement": mean(prompts["agreement"]),
                "copies": mean_share(prompts["copies_own"], seed),
                "drawn at all": proportion(int((prompts["copies_own"] > 0).sum()), len(prompts)),
            }
        )
    return pd.DataFrame(rows)


def curve(samples: pd.DataFrame, method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean similarity and agreement of each prompt [S, N] over the strengths of a method, the unchanged prompts first."""
    means = samples.groupby(["method", "strength", "id"])[["similarity", "agreement"]].mean()
    points = pd.concat([means.loc[UNCHANGED], means.loc[method]])
    return tuple(points[name].unstack().to_numpy() for name in ("similarity", "agreement"))


def at_equal_similarity(
    samples: pd.DataFrame, pairs: Iterable[tuple[str, str]], seed: int = 0, resamples: int | None = None
) -> pd.DataFrame:
    """How much more agreement a method keeps than another at equal similarity; columns method, minus, difference, low, high.

    A method's curve goes through its strengths and the unchanged prompts; `difference` is the mean over the range of
    similarity from `low` to `high` that both curves cover, with the interval that claims are judged by. Pairs whose curves
    share no range are left out.
    """
    rows = []
    for pair in pairs:
        first, second = (curve(samples, method) for method in pair)
        covered = common_range(first[0].mean(1), second[0].mean(1))
        if covered:
            rows.append((*pair, measures.gap(first, second, seed, resamples).interval(), *covered))
    return pd.DataFrame(rows, columns=["method", "minus", "difference", "low", "high"])


def curves_from_unchanged(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each method, by its name, after that of the unchanged prompts; table: what `summarise` gives."""
    is_start = table["method"] == UNCHANGED
    methods = table[~is_start].groupby("method", sort=False)
    return {name: pd.concat([table[is_start], rows]) for name, rows in methods}


def targets_reached(moves: pd.DataFrame) -> pd.DataFrame:
    """How near embeddings came to their target, a row a target: its magnitude, the mean reached, the share at or below it.

    moves: a row a sample, with `target` (share of the mean magnitude), `target_magnitude`, `magnitude` and `iterations`.
    """
    moves = moves.assign(there=moves["magnitude"] <= moves["target_magnitude"])
    columns = ["target_magnitude", "magnitude", "there", "iterations"]
    names = ["target magnitude", "mean magnitude reached", "share at the target", "mean iterations"]
    return moves.groupby("target", sort=False)[columns].mean().set_axis(names, axis=1).reset_index()


def shares_saved(samples: pd.DataFrame, plain: str, seed: int = 0, resamples: int | None = None) -> dict[str, Estimate]:
    """Share of prompts drawn at all in the arm `plain` minus that in each other arm, paired over the prompts.

    The interval is the one that claims are judged by. samples: with the column `arm`. Raises ValueError where an arm has other
    prompts.
    """
    drawn = samples.groupby(["id", "arm"])["copies_own"].any().unstack()
    if drawn.isna().any(axis=None):
        raise ValueError(f"the arm {drawn.columns[drawn.isna().any()][0]!r} lacks prompts that others have")
    arms = [arm for arm in samples["arm"].unique() if arm != plain]
    shares = {arm: measures.share(drawn[arm].astype(bool), seed, resamples) for arm in (plain, *arms)}
    return {arm: Difference(shares[plain], shares[arm], same_trainings=False).interval() for arm in arms}
