"""A paired difference in words: which side is ahead, by its interval, as tables and sentences say it."""

from memlib.evaluation.intervals import Estimate

ENDINGS = {  # of a sentence with a detector, the plain baseline and the difference
    "ahead": "the detector is ahead",
    "behind": "the detector is behind",
    "neither": "the interval contains 0, so neither is ahead",
}
BEYOND = {  # after the difference of a method to the plain baseline
    "ahead": "so the method beats it",
    "behind": "so the method is worse",
    "neither": "whose interval contains 0",
}
BEATS = {
    "ahead": "yes",
    "behind": "no, it is worse",
    "neither": "not shown",
}  # whether a method beats the plain baseline
STANDS = {"ahead": "lies above", "behind": "lies below", "neither": "cannot be told from"}  # between two values


def verdict(difference: Estimate) -> str:
    """Whether what the second is taken from is `ahead`, `behind` or, where the interval contains 0, `neither`."""
    return "ahead" if difference.low > 0 else "behind" if difference.high < 0 else "neither"
