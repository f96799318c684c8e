"""Many audits of trainings whose truth is known, summed up."""

import numpy as np
from numpy.typing import ArrayLike

from memlib.evaluation.intervals import Estimate, proportion, wider


def false_where_named(false_share: ArrayLike, silent: ArrayLike, audits: int) -> Estimate | None:
    """Mean share that is false of what an audit names, over the audits that name anything; None where none does.

    false_share [T]: the mean over all audits of each training, of which one that names nothing counts as 0. silent [T]: the
    share of those. audits: how many of each training. The interval is Wilson's for as many audits as one training has, on
    average, that name anything: all trainings are audited on the same random parts.
    """
    false_share, naming = np.asarray(false_share, dtype=float), 1 - np.asarray(silent, dtype=float)
    if not naming.any():
        return None
    value = float(false_share.mean() / naming.mean())
    n = max(1, round(naming.mean() * audits))
    limits = proportion(min(n, round(value * n)), n)
    return wider(value, (value, value), (limits.low, limits.high))
