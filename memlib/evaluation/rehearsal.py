"""An audit rehearsed where the truth is known: how much of what it names is right, and how much it finds.

In every rehearsal the items known to be outside of the training are parted at random into nulls and suspects, to which the
positives are added. So nulls and outside suspects are exchangeable, whatever the pictures are, and only the part differs.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from memlib.evaluation.discovery import conformal_p_values, discoveries


def rehearse(
    positives: ArrayLike,
    outside: ArrayLike,
    nulls: int,
    rate: float,
    repeats: int,
    seed: int = 0,
    suspects: int | None = None,
    copies: int | None = None,
    apart: ArrayLike | None = None,
) -> pd.DataFrame:
    """A row a rehearsal, of scores of positives [P] and of items from outside [Q].

    nulls: how many of those outside are nulls. suspects: how many others are suspected (all, if not given). copies: how many
    of the positives are (all, if not given), at random. apart: a mask [Q]; nulls are then taken from what it holds alone and
    suspects from the rest, so that they are not exchangeable. The parts depend on the seed and the numbers alone.

    named: how many are discoveries. true_share: the share of positives among them, 1 if none is named. found: the share of
    the positives that are named. true_share_each: as true_share, where every item of a p-value of at most `rate` is named.

    Raises ValueError for more nulls, suspects or positives than there are, and for none.
    """
    rows = []
    for _, p, true in _rehearsals(positives, outside, nulls, repeats, seed, suspects, copies, apart):
        named = discoveries(p, rate)
        rows.append((named.sum(), _true_share(named, true), named[true].mean(), _true_share(p <= rate, true)))
    return pd.DataFrame(rows, columns=["named", "true_share", "found", "true_share_each"])


def found_shares(
    positives: ArrayLike,
    outside: ArrayLike,
    nulls: int,
    rate: float,
    repeats: int,
    seed: int = 0,
    suspects: int | None = None,
) -> NDArray[np.float64]:
    """The share of rehearsals [P] in which each of the positives is named, in the rehearsals of `rehearse`."""
    times = np.zeros(len(np.asarray(positives)))
    for chosen, p, true in _rehearsals(positives, outside, nulls, repeats, seed, suspects):
        times[chosen] += discoveries(p, rate)[true]
    return times / repeats


def _rehearsals(
    positives: ArrayLike,
    outside: ArrayLike,
    nulls: int,
    repeats: int,
    seed: int,
    suspects: int | None = None,
    copies: int | None = None,
    apart: ArrayLike | None = None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.bool_]]]:
    """Of each rehearsal: which positives are suspected, the p-values of all suspects, and which of these are positives."""
    inside, others = np.asarray(positives, dtype=float), np.asarray(outside, dtype=float)
    held = np.ones(len(others), dtype=bool) if apart is None else np.asarray(apart, dtype=bool)
    free = len(others) - nulls if apart is None else int((~held).sum())
    wanted = free if suspects is None else suspects
    asked = len(inside) if copies is None else copies
    for what, count, there in (
        ("nulls", nulls, int(held.sum())),
        ("suspects from outside", wanted, free),
        ("positives", asked, len(inside)),
    ):
        if not 1 <= count <= there:
            raise ValueError(f"a rehearsal asks for {count} {what}; there are {there}")
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        order, chosen = rng.permutation(len(others)), rng.permutation(len(inside))[:asked]
        known = order[held[order]][:nulls]
        tested = order[~np.isin(order, known)] if apart is None else order[~held[order]]
        scores = np.r_[inside[chosen], others[tested[:wanted]]]
        p = conformal_p_values(scores, others[known])
        yield chosen, p, np.arange(len(p)) < asked


def _true_share(named: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Share of what is named that is true, 1 if nothing is."""
    return float(true[named].mean()) if named.any() else 1.0
