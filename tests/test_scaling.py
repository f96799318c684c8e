"""Orders and prices, on errors that follow the law exactly."""

import numpy as np
import pandas as pd
import pytest

from memlib.evaluation.scaling import evaluations_for, exponent


def test_the_exponent_of_a_power_law() -> None:
    steps = np.array([4, 8, 32])
    assert exponent(1 / steps, -3.0 / steps**2) == pytest.approx(2)
    assert exponent([1, 2], [5.0, 5.0]) == pytest.approx(0)
    noisy = exponent([1, 2, 4], [1.0, 1.0, 4.0])  # the line through the logarithms, not through the ends or neighbours
    assert noisy == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y"), [([1], [1.0]), ([1, 2], [1.0, 0.0]), ([0, 2], [1.0, 1.0]), ([1, 2], [1.0, np.nan])]
)
def test_what_has_no_slope_is_refused(x: list[int], y: list[float]) -> None:
    with pytest.raises(ValueError, match="a power law needs two points or more, none of them 0"):
        exponent(x, y)


def test_evaluations_for_an_error() -> None:
    directions = np.array([8, 2])
    runs = pd.DataFrame({"directions": directions, "evaluations": 2 * directions + 2, "error": 0.3 / directions**0.5})
    assert evaluations_for(runs, 0.1) == 2 * 9 + 2
    assert evaluations_for(runs, 0.3 / 8**0.5) == 18
    assert evaluations_for(runs, 0.2) == 2 * 3 + 2  # 2.25 directions are 3
    other_start = runs.assign(error=[0.3 / 8**0.5, 99.0])
    assert evaluations_for(other_start, 0.1) == 20
