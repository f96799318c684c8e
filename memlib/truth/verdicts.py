"""Three rules on what samples copy, side by side: distances calibrated on a control, their ratio, and an embedding."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from memlib.truth.calibration import common_limits, nearest, pixel_distance, strictest_limits
from memlib.truth.embedding import embedding_distance
from memlib.truth.outcomes import LEVEL
from memlib.truth.replication import match


def judge_samples(
    samples: Tensor,
    control: Tensor,
    strangers: Tensor,
    pictures: Tensor,
    ids: Sequence[str],
    seen: Tensor,
    network: nn.Module,
    mirrored: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples [N, C, H, W] of a model compared with M pictures, and the pictures with the samples; all in [-1, 1].

    control: samples of a model that saw none of the pictures; strangers: other pictures, which it was trained on. ids: of the
    pictures; seen [M]: which of them the model was trained on. network: an embedding of pictures. With `mirrored`, a mirrored
    copy is a copy by pixels too.

    The first table has a row a sample: `picture`, the id of the picture that the sample comes nearest to by that picture's
    limit, and `relative`, the distance over the limit (`memlib.truth.calibration`); `embedded_picture` and
    `embedded_relative`, the same in the embedding, by the control's samples alone; `nearest`, `distance` and
    `second_distance` (L2 over pixels), of the ratio rule, among the pictures seen. The second has a row a picture, by its id:
    in `relative` and `embedded_relative` the smallest of all samples, which is its similarity to what the model draws.
    """
    names = np.asarray(ids)
    by_row = {"sample": range(len(samples))}
    by_picture = {}
    own = {
        "": (
            pixel_distance(samples, pictures, mirrored),
            strictest_limits([pixel_distance(others, pictures, mirrored) for others in (control, strangers)], LEVEL),
        ),
        "embedded_": (
            embedding_distance(network, samples, pictures),
            common_limits(embedding_distance(network, control, pictures), LEVEL),
        ),
    }
    for prefix, (distances, limits) in own.items():
        found = nearest(distances, limits)
        by_row |= {f"{prefix}picture": names[found.picture.numpy()], f"{prefix}relative": found.relative.numpy()}
        by_picture[f"{prefix}relative"] = nearest(distances.T, limits[:, None]).relative.numpy()
    by_ratio = match(samples, pictures[seen], mirrored)
    by_row |= {
        "nearest": names[seen.numpy()][by_ratio.nearest.numpy()],
        "distance": by_ratio.distance.numpy(),
        "second_distance": by_ratio.second_distance.numpy(),
    }
    return pd.DataFrame(by_row), pd.DataFrame(by_picture, pd.Index(names, name="id"))
