"""Was a whole collection trained on? Its items together tell what none of them tells alone (CDI, arXiv 2411.12858).

What is compared is chosen on one half of both groups, and tested on the other by permutation of who is which (see
`memlib.evaluation.discovery.set_p_value`): exact where items of the collection and from outside of the training are exchangeable.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.evaluation.discovery import set_p_value

LEAST = 4  # items of a group: two in each half


class SetTest(NamedTuple):
    """The test of a collection: the reading that was chosen, the p-value on the held-out half, and what was compared there.

    larger: chance that an item of the collection scores higher than one from outside.
    """

    reading: str
    p_value: float
    suspects: int
    outside: int
    larger: float


def set_test(suspects: pd.DataFrame, outside: pd.DataFrame, seed: int = 0, resamples: int = 9999) -> SetTest:
    """Whether a collection scores higher than items from outside of the training; rows are items, columns readings.

    On a random half of both the reading is chosen by which they differ most, in standard deviations; on the other half it is
    tested. Raises ValueError for fewer than four of a group.
    """
    rng = np.random.default_rng(seed)
    halves = [_halves(group, rng) for group in (suspects, outside)]
    reading = _best(halves[0][0], halves[1][0])
    tested, nulls = (held_out[reading].to_numpy(dtype=float) for _, held_out in halves)
    p_value = set_p_value(tested, nulls, resamples, seed)
    order = np.searchsorted(np.sort(nulls), tested, side="left") + np.searchsorted(np.sort(nulls), tested, side="right")
    return SetTest(reading, p_value, len(tested), len(nulls), float(order.mean() / 2 / len(nulls)))


def rejections(
    members: pd.DataFrame,
    outside: pd.DataFrame,
    size: int,
    share: float = 1.0,
    level: float = 0.05,
    repeats: int = 200,
    seed: int = 0,
    resamples: int = 199,
) -> NDArray[np.bool_]:
    """Whether the test rejects at a level [repeats], for random collections of a size of which a share was in the training.

    Their members, and what else they hold, are drawn at random, the latter from outside; what is left outside is what they are
    compared with. Raises ValueError for a collection that is too small, or asks for more than there is of either.
    """
    inside = round(share * size)
    if size < LEAST or inside > len(members) or size - inside > len(outside) - LEAST:
        raise ValueError(
            f"a collection of {size}, {inside} of them in the training, is asked for; it must hold at least {LEAST}, and there "
            f"are {len(members)} in the training and {len(outside)} outside, of which {LEAST} must be left"
        )
    rng, rejected = np.random.default_rng(seed), []
    for _ in range(repeats):
        own, others = members.iloc[rng.permutation(len(members))[:inside]], outside.iloc[rng.permutation(len(outside))]
        suspects = pd.concat([own, others[: size - inside]])
        test = set_test(suspects, others[size - inside :], int(rng.integers(2**32)), resamples)
        rejected.append(test.p_value <= level)
    return np.array(rejected)


def _halves(group: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    if len(group) < LEAST:
        raise ValueError(f"there are {len(group)} items in a group; a test of a whole set needs at least {LEAST}")
    order = rng.permutation(len(group))
    return group.iloc[order[: len(group) // 2]], group.iloc[order[len(group) // 2 :]]


def _best(suspects: pd.DataFrame, outside: pd.DataFrame) -> str:
    """The column with the largest difference of means, in standard deviations of both groups together."""
    spread = pd.concat([suspects - suspects.mean(), outside - outside.mean()]).std()
    gap = (suspects.mean() - outside.mean()) / spread.replace(0, np.nan)
    return gap.fillna(0).idxmax()
