"""Controlled discovery: the rates that are promised, on items whose truth is drawn; closed testing by brute force."""

from fractions import Fraction
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memlib.evaluation.discovery import conformal_p_values, discoveries, fewest_nulls, most_false, set_p_value

RNG = np.random.default_rng(7)


def test_p_values_count_the_nulls_that_score_as_high() -> None:
    nulls = [0.0, 1.0, 1.0, 2.0]
    assert conformal_p_values([-1, 0, 1, 1.5, 3], nulls).tolist() == [1.0, 1.0, 0.8, 0.4, 0.2]


def test_p_values_of_exchangeable_items_are_uniform_on_their_grid() -> None:
    scores = RNG.normal(size=(4000, 20))
    p = [conformal_p_values(row[:2], row[2:])[0] for row in scores]
    counts = np.unique(np.round(np.multiply(p, 19)), return_counts=True)[1]
    assert len(counts) == 19
    assert stats.chisquare(counts).pvalue > 1e-3


@given(
    st.lists(st.sampled_from([0.01, 0.02, 0.03, 0.05, 0.2, 0.5, 1.0]), min_size=2, max_size=30),
    st.sampled_from([0.05, 0.1, 0.3]),
)
def test_discoveries_are_benjamini_and_hochbergs(p: list[float], rate: float) -> None:
    """In fractions, where no tie is lost to rounding."""
    exact, ordered = Fraction(str(rate)), sorted(Fraction(str(each)) for each in p)
    passing = [value for k, value in enumerate(ordered, 1) if value <= exact * k / len(p)]
    limit = max(passing, default=Fraction(0))
    assert discoveries(p, rate).tolist() == [Fraction(str(each)) <= limit for each in p]


@pytest.mark.parametrize(("shift", "power"), [(0.0, (0.6, 0.75)), (-0.5, None)])
def test_the_rate_of_false_discoveries_holds_for_exchangeable_nulls_alone(shift: float, power: tuple | None) -> None:
    """200 items, 20 of them 3 sd higher, 400 nulls; nulls that score half an sd lower than the rest break the promise."""
    rate, false, found = 0.1, [], []
    for _ in range(300):
        scores = RNG.normal(size=200) + 3 * (np.arange(200) < 20)
        chosen = discoveries(conformal_p_values(scores, RNG.normal(shift, size=400)), rate)
        false.append(chosen[20:].sum() / max(1, chosen.sum()))
        found.append(chosen[:20].mean())
    error = np.std(false) / np.sqrt(len(false))
    if power:
        assert np.mean(false) <= rate * 180 / 200 + 3 * error
        assert power[0] < np.mean(found) < power[1]
    else:
        assert np.mean(false) > rate + 5 * error


@pytest.mark.parametrize(
    ("items", "found", "rate"), [(200, 20, 0.1), (1000, 5, 0.1), (50, 50, 0.05), (7, 2, 0.3), (3, 1, 0.3), (9, 3, 0.15)]
)
def test_fewer_nulls_can_find_nothing(items: int, found: int, rate: float) -> None:
    needed = fewest_nulls(items, found, rate)
    for count, expected in ((needed, found), (needed - 1, 0)):
        p = np.r_[np.full(found, 1 / (count + 1)), np.ones(items - found)]
        assert discoveries(p, rate).sum() == expected


def brute_force(p: np.ndarray, level: float) -> list[int]:
    """Most false ones among the k smallest by closed testing: their largest overlap with a set that Simes does not reject."""
    m = len(p)
    sets = [set(part) for part in chain.from_iterable(combinations(range(m), size) for size in range(1, m + 1))]

    def simes(part: set[int]) -> bool:
        own = np.sort(p[list(part)])
        return bool((own <= level * np.arange(1, len(own) + 1) / len(own)).any())

    kept = [part for part in sets if not simes(part)]
    order = np.argsort(p, kind="stable")
    return [max((len(part & set(order[:k])) for part in kept), default=0) for k in range(1, m + 1)]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.001, 0.004, 0.008, 0.01, 0.012, 0.016, 0.02, 0.03, 0.049, 0.05, 0.06, 0.3, 1.0]),
        min_size=1,
        max_size=8,
    )
)
def test_bounds_are_those_of_closed_testing(p: list[float]) -> None:
    values = np.array(p)
    assert most_false(values, 0.05).tolist() == brute_force(values, 0.05)


def test_bounds_hold_for_all_numbers_of_items_at_once() -> None:
    broken = []
    for _ in range(400):
        scores = RNG.normal(size=120) + 3 * (np.arange(120) < 40)
        p = conformal_p_values(scores, RNG.normal(size=500))
        false = np.cumsum(np.argsort(p, kind="stable") >= 40)
        broken.append((false > most_false(p, 0.1)).any())
    assert np.mean(broken) <= 0.1 + 3 * np.sqrt(0.09 / 400)
    assert most_false(p, 0.1)[29] <= 15, "bounds that say something"


def test_a_set_is_told_by_permutation() -> None:
    inside, outside = RNG.normal(0.5, size=60), RNG.normal(size=60)
    assert set_p_value(inside, outside) < 0.05
    p = [set_p_value(RNG.exponential(size=8), RNG.exponential(size=12), 199, seed) for seed in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    exact = stats.permutation_test(
        ([2.0, 3.0, 5.0], [0.0, 1.0, 4.0]),
        lambda a, b: np.mean(a) - np.mean(b),
        alternative="greater",
        n_resamples=10**5,
    )
    assert set_p_value([2.0, 3.0, 5.0], [0.0, 1.0, 4.0]) == pytest.approx(exact.pvalue)


@pytest.mark.parametrize("call", [conformal_p_values, set_p_value])
@pytest.mark.parametrize(
    ("scores", "nulls", "message"), [([1.0, np.nan], [0.0, 1.0], "not finite"), ([1.0, 2.0], [0.0], "at least two")]
)
def test_scores_that_say_nothing_are_refused(call, scores: list, nulls: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(scores, nulls)
