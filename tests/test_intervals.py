"""Means, shares, correlations and differences against scipy, sklearn and known values; intervals by what they cover."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from memlib.evaluation import intervals, measures


def correlated(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Thirty pairs of a normal distribution of correlation 0.6."""
    a = rng.normal(size=30)
    return a, 0.6 * a + 0.8 * rng.normal(size=30)


@pytest.mark.ci
def test_the_interval_of_a_rank_correlation_covers() -> None:
    rng, truth = np.random.default_rng(2), 6 / np.pi * np.arcsin(0.6 / 2)
    estimates = [intervals.spearman(*correlated(rng)) for _ in range(200)]
    assert 0.89 <= np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]) <= 0.99


def test_rank_correlation_is_that_of_scipy() -> None:
    a, b = correlated(np.random.default_rng(2))
    estimate = intervals.spearman(a, b)
    assert estimate.value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert intervals.spearman(a, np.exp(a)).value == pytest.approx(1)
    assert intervals.spearman_value(a, b) == estimate.value
    assert intervals.spearman(a, np.zeros(30)) == (0, -1, 1)
    assert intervals.spearman_value(np.zeros(30), b) == 0
    for correlation in (intervals.spearman, intervals.spearman_value):
        with pytest.raises(ValueError, match="over the same items; there are 30 and 29 items"):
            correlation(a, b[1:])


def test_an_interval_contains_its_ends() -> None:
    estimate = intervals.Estimate(0.6, 0.5, 0.7)
    assert [estimate.contains(value) for value in (0.49, 0.5, 0.7, 0.71)] == [False, True, True, False]


def test_csv_has_each_interval_in_three_columns() -> None:
    rows = pd.DataFrame({"n": [1, 2], "AUROC": [intervals.Estimate(0.6, 0.5, 0.7), None]})
    flat = intervals.flat(rows)
    assert list(flat) == ["n", "AUROC", "AUROC low", "AUROC high"]
    assert flat.iloc[0].tolist() == [1, 0.6, 0.5, 0.7]
    assert flat.iloc[1, 1:].isna().all()


def test_shares() -> None:
    assert intervals.proportion(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert intervals.proportion(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    with pytest.raises(ValueError, match="is no share"):
        intervals.proportion(3, 2)


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(3).normal(2, 1, 7)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    estimate = intervals.mean(values)
    assert estimate == pytest.approx((values.mean(), expected.low, expected.high))
    with pytest.raises(ValueError, match="at least two finite values"):
        intervals.mean([1.0])


def test_a_mean_share_is_as_wide_as_wilsons_interval_and_covers() -> None:
    for outcomes in ([0, 0, 0, 0], [1, 1, 1], [0, 1, 1, 0, 1, 1, 1, 1]):
        wilson = intervals.proportion(sum(outcomes), len(outcomes))
        estimate = intervals.mean_share(outcomes)
        assert estimate.low <= wilson.low + 1e-12
        assert estimate.high >= wilson.high - 1e-12
        assert estimate.value == wilson.value
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        chance = rng.beta(0.5, 1.5, 16)  # of each prompt, with mean 1/4
        estimate = intervals.mean_share(rng.binomial(4, chance) / 4, seed)
        covered.append(estimate.low <= 0.25 <= estimate.high)
    assert np.mean(covered) >= 0.93
    with pytest.raises(ValueError, match="values between 0 and 1"):
        intervals.mean_share([0.5, 1.5])


def test_curves_are_compared_at_equal_x_over_their_common_range() -> None:
    rng = np.random.default_rng(0)
    item = rng.normal(0, 0.1, 40)
    x1, x2 = np.linspace(0, 0.8, 5)[:, None] + item, np.linspace(1, 0.2, 9)[:, None] + item
    # y = 2 x + 0.3 and y = x over 0.2 ... 0.8: the mean of x + 0.3
    difference = measures.gap((x1, 2 * x1 + 0.3), (x2, x2)).interval()
    assert difference.value == pytest.approx(0.8 + item.mean(), abs=1e-9)
    shift = 1.96 * item.std() / 40**0.5
    assert difference.high - difference.low == pytest.approx(2 * shift, rel=0.1)
    assert measures.gap((x2, x2), (x1, 2 * x1 + 0.3)).value == pytest.approx(-difference.value)
    assert intervals.common_range(x1.mean(1), x2.mean(1)) == pytest.approx((0.2 + item.mean(), 0.8 + item.mean()))
    assert intervals.common_range([0, 1, 2], [5, 3, 2]) is None, "a single x is no range"
    with pytest.raises(ValueError, match="no common range"):
        measures.gap((x1, x1), (x1 + 2, x1))


def test_many_curves_are_read_as_numpy_reads_each() -> None:
    rng = np.random.default_rng(1)
    for points in (2, 5):
        xs, ys, x = rng.normal(size=(60, points)), rng.normal(size=(60, points)), rng.uniform(size=(60, 9))
        x = xs.min(1, keepdims=True) + x * np.ptp(xs, axis=1)[:, None]
        x[:, :2] = np.stack([xs.min(1), xs.max(1)], 1)
        order = np.argsort(xs)
        one_by_one = [np.interp(at, a[to], b[to]) for at, a, b, to in zip(x, xs, ys, order, strict=True)]
        assert intervals._interpolated(x, xs, ys) == pytest.approx(np.array(one_by_one), abs=1e-12)
    steps = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 3.0, 3.0])
    assert np.isfinite(intervals._interpolated(np.array([1.0, 2.0]), *steps)).all(), "two points at one x"


def test_explained_variance_is_that_of_a_regression_of_ranks() -> None:
    rng = np.random.default_rng(5)
    features = pd.DataFrame(rng.normal(size=(50, 3)).round(1), columns=list("abc"), index=range(100, 150))
    target = np.exp(features["a"] + 0.5 * features["b"] + rng.normal(0, 0.5, 50)).round(1)
    for columns in (["a"], ["a", "b"], ["a", "b", "c"]):
        ranks = features[columns].rank()
        expected = LinearRegression().fit(ranks, target.rank()).score(ranks, target.rank())
        assert intervals.explained_variance_of_ranks(features[columns], target) == pytest.approx(expected)
    assert intervals.explained_variance_of_ranks(target.to_frame(), target**3) == pytest.approx(1)
    with pytest.raises(ValueError, match="the target is constant"):
        intervals.explained_variance_of_ranks(features, np.ones(50))


def test_estimates_read_as_a_value_with_its_interval() -> None:
    assert str(intervals.Estimate(0.98765, 0.9, 1.0)) == "0.988 [0.900, 1.000]"
    assert str(intervals.Estimate(-0.0001, -0.25, 0.1)) == "0.000 [-0.250, 0.100]"
