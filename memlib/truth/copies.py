"""Which samples of prompts copy a picture, by thresholds calibrated on a model that has never seen it.

samples: a row a sample, with the `id` of its prompt, its `noise` and its `distance` to the prompt's own picture or pictures,
as `memlib.truth.classifier.sample_table` gives them. prompts: a row a prompt, by its `id`, with its `group` and the `row` of its
planted picture (-1 without).
"""

import pandas as pd

from memlib.truth.thresholds import calibrated_threshold

RATE = 0.01  # of false copies


def picture_thresholds(control: pd.DataFrame, prompts: pd.DataFrame, rate: float = RATE) -> pd.Series:
    """The distance below which a sample copies a planted picture, by its `row`.

    control: samples, as many of each, of the prompts that the pictures would be trained on, by a model that has not seen them.
    """
    distances = control.pivot(index="id", columns="noise", values="distance")
    return pd.Series(calibrated_threshold(distances, rate), prompts["row"][distances.index].to_numpy())


def with_copies(
    samples: pd.DataFrame, prompts: pd.DataFrame, thresholds: pd.Series, rate: float = RATE
) -> pd.DataFrame:
    """Samples with the column `copies_own`, whether each copies the picture of its prompt.

    For a prompt without a planted picture: one of the drawings of its look, nearer than all but a share `rate` of the samples
    of `unseen` prompts come to the drawings of theirs, which no model has seen (nothing where there are no such samples).
    Raises ValueError for a planted picture without a threshold.
    """
    row, group = samples["id"].map(prompts["row"]), samples["id"].map(prompts["group"])
    limit = row.map(thresholds)
    if limit[row >= 0].isna().any():
        raise ValueError(
            f"the picture of the prompt {samples['id'][limit.isna() & (row >= 0)].iloc[0]!r} has no threshold; sample it in the "
            "control"
        )
    unseen = samples.loc[group == "unseen", "distance"]
    if len(unseen):
        limit[row < 0] = calibrated_threshold(unseen, rate)[0]
    return samples.assign(copies_own=samples["distance"] < limit)
