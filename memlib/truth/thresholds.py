"""When a sample of a prompt copies a picture: it is nearer to it than samples of a model that never saw the picture come."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def calibrated_threshold(control_distances: ArrayLike, rate: float = 0.01) -> NDArray[np.float64]:
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


def copied(distances: ArrayLike, thresholds: ArrayLike) -> NDArray[np.bool_]:
    """Whether samples at distances [N, ...] of N pictures copy them: nearer than the picture's threshold [N]."""
    distances, thresholds = np.asarray(distances, dtype=float), np.asarray(thresholds, dtype=float)
    return distances < thresholds.reshape(-1, *[1] * (distances.ndim - 1))
