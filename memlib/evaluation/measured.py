"""What is measured on items and over trainings: its interval at any level, differences of two, p-values and power.

An interval has two parts. That of the *items* is a score interval or the bootstrap over items, whichever is wider. That of the
*trainings*, where there are several, is Student's for the mean over trainings. The two are independent, so that their
half-widths are added as squares (Zou & Donner 2008), which stays honest for two trainings, whose spread is hardly known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from memlib.evaluation.intervals import Estimate, percentiles, square_and_add, wider

LEVEL = 0.95
SMALLEST_P, LARGEST_P = 1e-6, 0.999  # between which an interval is inverted
POWER = 0.8


@dataclass(frozen=True)
class Measured:
    """A value with what its interval, and that of its difference from another, are made of.

    by_training [T]: the value in each training. deviations [C]: what each cluster of items adds to the value's deviation
    from its expectation, so that the sum of their squares is its variance. resampled [R]: the value when items are drawn again.
    freedom: degrees of freedom of that variance. limits: the score interval that a value would have at a level, on these items.
    bounds: between which all values lie.
    """

    value: float
    by_training: NDArray[np.float64]
    deviations: NDArray[np.float64]
    freedom: int
    resampled: NDArray[np.float64]
    limits: Callable[[float, float], tuple[float, float]]
    bounds: tuple[float, float]

    def over_items(self, level: float = LEVEL) -> Estimate:
        """The value with the interval for other items, of the same trainings."""
        return wider(self.value, percentiles(self.resampled, level), self.limits(self.value, level))

    def spread(self, level: float = LEVEL) -> float:
        """Half-width of Student's interval for other trainings; 0 for a single one, which cannot tell."""
        return _half_width(self.by_training, level)

    def interval(self, level: float = LEVEL) -> Estimate:
        """The value with its interval."""
        value, low, high = _widened(self.over_items(level), self.spread(level))
        return Estimate(value, max(low, self.bounds[0]), min(high, self.bounds[1]))

    @property
    def largest(self) -> float:
        """The largest value there can be."""
        return self.bounds[1]

    def if_found(self, value: float, level: float = LEVEL) -> Estimate:
        """What the interval over items would be had another value been found."""
        return Estimate(value, *self.limits(value, level))


@dataclass(frozen=True)
class Difference:
    """A first measured value minus a second on the same items.

    The interval over items is the square-and-add method's (MOVER; Newcombe 2006, Zou & Donner 2008) on the limits of the two,
    with the correlation of their deviations (DeLong's for two AUROCs), or Student's of the deviations item by item (DeLong's
    own interval, with a quantile for few items), whichever is wider. Each fails where the other does not. A score interval is
    lopsided near 1, and a high correlation cancels two such intervals as if they were alike: with AUROCs of 0.98 and 0.90, or
    0.995 and 0.95, at a correlation of 0.95, square-and-add alone covers 90 to 92 %. Student's has no width where both
    detectors are perfect. Over trainings it is Student's of the differences training by training where both are of the
    `same_trainings`, else Welch's.

    tried: the side whose outcome was open, which a power is told of, the other being as found: the first where a detector is
    compared with another, the second where a mitigation is taken from its control.
    """

    first: Measured
    second: Measured
    same_trainings: bool = True
    tried: Literal["first", "second"] = "first"

    def __post_init__(self) -> None:
        a, b = self.first, self.second
        if a.deviations.shape != b.deviations.shape:
            raise ValueError(
                f"two detectors can only be compared on the same items; there are {len(a.deviations)} and "
                f"{len(b.deviations)}"
            )
        counts = {len(a.by_training), len(b.by_training)}
        if len(counts) > 1 and (self.same_trainings or 1 in counts):
            raise ValueError(
                f"a difference over trainings needs two of either side or more; there are {len(a.by_training)} and "
                f"{len(b.by_training)}"
            )

    @property
    def value(self) -> float:
        """The first value minus the second."""
        return self.first.value - self.second.value

    @property
    def largest(self) -> float:
        """The largest difference there can be with the side that is not tried as found."""
        if self.tried == "first":
            return self.first.largest - self.second.value
        return self.first.value - self.second.bounds[0]

    @property
    def correlation(self) -> float:
        """Of the two values over items; 0 where one of them does not vary."""
        a, b = self.first.deviations, self.second.deviations
        scale = np.sqrt((a**2).sum() * (b**2).sum())
        return float(np.clip((a * b).sum() / scale, -1, 1)) if scale > 0 else 0.0

    def over_items(self, level: float = LEVEL) -> Estimate:
        """The difference with the interval for other items, of the same trainings."""
        sides = self.first.over_items(level), self.second.over_items(level)
        return self._at_least_students(*sides, self.first.deviations - self.second.deviations, level)

    def spread(self, level: float = LEVEL) -> float:
        """Half-width of the interval for other trainings; 0 for a single one of either side."""
        a, b = self.first.by_training, self.second.by_training
        if self.same_trainings:
            return _half_width(a - b, level)
        errors = [group.var(ddof=1) / len(group) if len(group) > 1 else 0.0 for group in (a, b)]
        if sum(errors) == 0:
            return 0.0
        freedom = sum(errors) ** 2 / sum(e**2 / (len(group) - 1) for e, group in zip(errors, (a, b), strict=True))
        return float(_students(level, freedom) * np.sqrt(sum(errors)))

    def interval(self, level: float = LEVEL) -> Estimate:
        """The difference with its interval, no wider than differences can be."""
        value, low, high = _widened(self.over_items(level), self.spread(level))
        (a, b), (c, d) = self.first.bounds, self.second.bounds
        return Estimate(value, max(low, a - d), min(high, b - c))

    def if_found(self, value: float, level: float = LEVEL) -> Estimate:
        """What the interval over items would be had the side that is tried come out otherwise, at the same correlation.

        Its deviations are taken in proportion to its score interval.
        """
        sides = {"first": self.first, "second": self.second}
        own = value + self.second.value if self.tried == "first" else self.first.value - value
        moved, found = (sides[self.tried].if_found(at, level) for at in (own, sides[self.tried].value))
        estimates = {name: side.over_items(level) for name, side in sides.items()} | {self.tried: moved}
        deviations = {name: side.deviations for name, side in sides.items()}
        deviations[self.tried] = deviations[self.tried] * (moved.high - moved.low) / (found.high - found.low)
        return self._at_least_students(*estimates.values(), deviations["first"] - deviations["second"], level)

    def _at_least_students(
        self, first: Estimate, second: Estimate, deviations: NDArray[np.float64], level: float
    ) -> Estimate:
        added = square_and_add(first, second, self.correlation)
        freedom = min(self.first.freedom, self.second.freedom)
        half = _students(level, freedom) * np.sqrt((deviations**2).sum())
        return wider(added.value, added[1:], (added.value - float(half), added.value + float(half)))


def p_value(found: Measured | Difference, threshold: float) -> float:
    """Two-sided p-value that the value is the threshold, at least 1e-6: 1 minus the level at which its interval reaches it."""

    def beyond(log_alpha: float) -> float:
        estimate = found.interval(1 - np.exp(log_alpha))
        return estimate.low - threshold if found.value > threshold else threshold - estimate.high

    if found.value == threshold:
        return 1.0
    least, most = np.log(SMALLEST_P), np.log(LARGEST_P)
    if beyond(least) > 0:
        return SMALLEST_P
    return float(np.exp(optimize.bisect(beyond, least, most, xtol=1e-4))) if beyond(most) > 0 else 1.0


def settleable(found: Measured | Difference, threshold: float) -> bool:
    """Whether the best value that could have been found on these items would have had its whole interval above the threshold."""
    return found.if_found(found.largest).low > threshold


def detectable(found: Measured | Difference, threshold: float) -> float | None:
    """The smallest true value that the items and trainings would put above the threshold in 80 % of studies; None: no value.

    In the normal approximation: that exceeds the threshold by the lower half-width of its interval, with the spread over
    trainings as found, times (z_0.975 + z_0.8) / z_0.975.
    """
    factor = 1 + stats.norm.ppf(POWER) / stats.norm.ppf((1 + LEVEL) / 2)
    spread = found.spread()

    def excess(value: float) -> float:
        planned = _widened(found.if_found(value), spread)
        return value - factor * (value - planned.low) - threshold

    if threshold >= found.largest or excess(found.largest) < 0:
        return None
    return float(optimize.bisect(excess, threshold, found.largest, xtol=1e-4))


@cache
def _students(level: float, freedom: float) -> float:
    """The quantile of Student's distribution that a two-sided interval of this level reaches to."""
    return float(stats.t.ppf((1 + level) / 2, freedom))


def _half_width(values: NDArray[np.float64], level: float) -> float:
    count = len(values)
    return float(_students(level, count - 1) * values.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0


def _widened(estimate: Estimate, spread: float) -> Estimate:
    value, low, high = estimate
    return Estimate(value, value - float(np.hypot(value - low, spread)), value + float(np.hypot(high - value, spread)))
