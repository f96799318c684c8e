"""An audit rehearsed where the truth is known: how much of what it names is right, and how much it finds.

In every rehearsal the items known to be outside of the training are parted at random into nulls and suspects, to which the
positives are added. So nulls and outside suspects are exchangeable, whatever the pictures are, and only the part differs.
"""

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
    the positives that are named. true_share_each, found_each: the same where every item of a p-value of at most `rate` is named.

    Raises ValueError for more nulls, suspects or positives than there are, and fewer than two nulls or suspects.
    """
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
    rng, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        order, chosen = rng.permutation(len(others)), rng.permutation(len(inside))[:asked]
        known = order[held[order]][:nulls]
        tested = order[~np.isin(order, known)] if apart is None else order[~held[order]]
        scores = np.r_[inside[chosen], others[tested[:wanted]]]
        p = conformal_p_values(scores, others[known])
        true = np.arange(len(p)) < asked
        whole, each = discoveries(p, rate), p <= rate
        rows.append((whole.sum(), *_shares(whole, true), *_shares(each, true)))
    return pd.DataFrame(rows, columns=["named", "true_share", "found", "true_share_each", "found_each"])


def _shares(named: NDArray[np.bool_], true: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of what is named that is true (1 if nothing is), and share of what is true that is named."""
    return float(true[named].mean()) if named.any() else 1.0, float(named[true].mean())
