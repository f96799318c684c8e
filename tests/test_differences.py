"""A paired difference in words."""

import pytest

from memlib.evaluation.intervals import Estimate
from memlib.study import differences


@pytest.mark.parametrize(
    ("low", "high", "expected", "ending", "beats", "stands"),
    [
        (0.1, 0.3, "ahead", "the detector is ahead", "yes", "lies above"),
        (-0.3, -0.1, "behind", "the detector is behind", "no, it is worse", "lies below"),
        (-0.1, 0.3, "neither", "the interval contains 0, so neither is ahead", "not shown", "cannot be told from"),
        (0, 0.3, "neither", "the interval contains 0, so neither is ahead", "not shown", "cannot be told from"),
        (-0.3, 0, "neither", "the interval contains 0, so neither is ahead", "not shown", "cannot be told from"),
    ],
)
def test_a_difference_is_said_by_its_interval(
    low: float, high: float, expected: str, ending: str, beats: str, stands: str
) -> None:
    found = differences.verdict(Estimate((low + high) / 2, low, high))
    assert found == expected
    assert (differences.ENDINGS[found], differences.BEATS[found], differences.STANDS[found]) == (ending, beats, stands)


def test_a_method_beats_the_plain_baseline_or_is_worse_as_the_interval_says() -> None:
    assert differences.BEYOND == {
        "ahead": "so the method beats it",
        "behind": "so the method is worse",
        "neither": "whose interval contains 0",
    }
