"""How errors fall with effort."""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def exponent(x: ArrayLike, y: ArrayLike) -> float:
    """k of the power law |y| ~ x^k through points x, y [N], by least squares between the logarithms.

    For the order of a method, the errors y of steps of size x. Raises ValueError for fewer than two points and for values
    that have no logarithm.
    """
    x, y = np.asarray(x, dtype=np.float64), np.abs(np.asarray(y, dtype=np.float64))
    if len(x) < 2 or not ((x > 0) & (y > 0)).all():
        raise ValueError(f"a power law needs two points or more, none of them 0; there are x = {x} and |y| = {y}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def evaluations_for(runs: pd.DataFrame, target: float) -> int:
    """Network evaluations that an estimator needs for an error of `target`, as its run of the most directions says.

    runs: a row a run, with different numbers of `directions`, `evaluations` (linear in that number) and `error`, which falls
    with the root of the number, as it does for independent directions.
    """
    ordered = runs.sort_values("directions")
    least, most = ordered.iloc[0], ordered.iloc[-1]
    each = (most["evaluations"] - least["evaluations"]) / (most["directions"] - least["directions"])
    directions = math.ceil(round(most["directions"] * (most["error"] / target) ** 2, 6))
    return round(most["evaluations"] + each * (directions - most["directions"]))
