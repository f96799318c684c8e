"""Was a whole collection trained on? Its items together tell what none of them tells alone (CDI, arXiv 2411.12858).

What is compared is chosen on one half of both groups, and tested on the other by permutation of who is which (see
`memlib.evaluation.discovery.set_p_value`): exact where items of the collection and from outside of the training are exchangeable.
"""

from collections.abc import Sequence
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


def power_by_size(
    suspects: pd.DataFrame,
    outside: pd.DataFrame,
    sizes: Sequence[int],
    level: float = 0.05,
    repeats: int = 200,
    seed: int = 0,
    resamples: int = 199,
) -> NDArray[np.float64]:
    """How often the test rejects at a level, for collections of each size [sizes], each a random part of the suspects.

    Each is compared with as many from outside. Raises ValueError for a size that is not there, or below four.
    """
    largest = min(len(suspects), len(outside))
    for size in sizes:
        if not LEAST <= size <= largest:
            raise ValueError(f"a collection of {size} is asked for; it must be from {LEAST} to {largest}")
    rng = np.random.default_rng(seed)
    shares = []
    for size in sizes:
        rejected = [
            set_test(
                suspects.iloc[rng.permutation(len(suspects))[:size]],
                outside.iloc[rng.permutation(len(outside))[:size]],
                int(rng.integers(2**32)),
                resamples,
            ).p_value
            <= level
            for _ in range(repeats)
        ]
        shares.append(np.mean(rejected))
    return np.array(shares)


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
