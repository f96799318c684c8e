"""Which samples of prompts copy a picture, by thresholds calibrated on a model that has never seen it.

samples: a row a sample, with the `id` of its prompt, its `noise` and its `distance` to the prompt's own picture or pictures,
as `memlib.truth.classifier.sample_table` gives them. prompts: a row a prompt, by its `id`, with its `group` and the `row` of its
planted picture (-1 without).
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

RATE = 0.01  # of false copies


def calibrated_threshold(control_distances: ArrayLike, rate: float = RATE) -> NDArray[np.float64]:
    """The distance to each of N pictures that all but a share `rate` of a control's samples keep.

    control_distances: [N, n], of n samples of every picture's prompt by a model that knows the words and never saw the
    picture, in any unit. Each picture keeps its own scale, the median of its row; relative to it the rows are one sample, so
    that the rate, at most, holds for all of them together (exactly where the rows differ by their scale alone). A single
    row is judged by itself. Raises ValueError for samples too few to resolve the rate, and for a picture that half of its
    control's samples are equal to.
    """
    distances = np.atleast_2d(np.asarray(control_distances, dtype=float))
    if not 0 < rate < 1:
        raise ValueError(f"the rate of false copies is {rate}; it must be above 0 and below 1")
    below = math.floor(
        rate * (distances.size + 1) + 1e-9
    )  # the rank that a further sample falls below with this chance
    if below < 1:
        raise ValueError(
            f"{distances.size} samples of the control cannot resolve a rate of {rate:g}; draw at least {math.ceil(1 / rate) - 1}"
        )
    scale = np.median(distances, axis=1, keepdims=True)
    if not (scale > 0).all():
        raise ValueError("half of a control's samples are equal to a picture; give a control that has not seen it")
    return np.sort((distances / scale).ravel())[below - 1] * scale[:, 0]


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
