"""Statistics against sklearn, scipy and known values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from memlib import statistics

scores = st.lists(st.integers(-8, 8).map(float), min_size=2, max_size=40)


@given(scores, scores)
def test_auroc_is_that_of_sklearn(positive: list[float], negative: list[float]) -> None:
    estimate = statistics.auroc(positive, negative)
    labels = [1] * len(positive) + [0] * len(negative)
    assert estimate.value == pytest.approx(roc_auc_score(labels, positive + negative))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert statistics.auroc_value(positive, negative) == estimate.value


@given(scores, st.lists(st.integers(-8, 8).map(float), min_size=20, max_size=60), st.sampled_from([0.05, 0.1, 0.33]))
def test_tpr_at_fpr_is_the_best_point_of_the_curve_that_keeps_the_limit(
    positive: list[float], negative: list[float], fpr: float
) -> None:
    false, true, _ = roc_curve([1] * len(positive) + [0] * len(negative), positive + negative, drop_intermediate=False)
    assert statistics.tpr_at_fpr(positive, negative, fpr).value == pytest.approx(true[false <= fpr + 1e-12].max())


def test_an_fpr_that_the_negatives_cannot_resolve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"50 negatives cannot resolve a false-positive rate of 0.01; at least 100"):
        statistics.tpr_at_fpr([1, 2], np.arange(50), 0.01)


def test_only_rates_that_the_negatives_resolve_are_reported() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(2, 1, 40), rng.normal(0, 1, 120)
    found = {n: statistics.detection(positive, negative[:n], seed=3) for n in (33, 34, 99, 120)}
    assert {n: list(f) for n, f in found.items()} == {
        33: ["AUROC"],
        34: ["AUROC", "TPR@3%FPR"],
        99: ["AUROC", "TPR@3%FPR"],
        120: ["AUROC", "TPR@1%FPR", "TPR@3%FPR"],
    }
    assert found[120]["AUROC"] == statistics.auroc(positive, negative, 3)
    assert found[120]["TPR@3%FPR"] == statistics.tpr_at_fpr(positive, negative, 0.03, 3)


def test_intervals_cover_the_truth() -> None:
    rng, truth = np.random.default_rng(0), stats.norm.cdf(1 / np.sqrt(2))
    covered = [
        e.low <= truth <= e.high
        for e in (statistics.auroc(rng.normal(1, 1, 60), rng.normal(0, 1, 60)) for _ in range(200))
    ]
    assert 0.89 <= np.mean(covered) <= 0.99


def test_a_perfect_separation_is_not_certain() -> None:
    estimate = statistics.auroc(np.arange(10, 30), np.arange(5))
    assert (estimate.value, estimate.high) == (1, 1)
    assert 0.6 < estimate.low < 0.95
    assert statistics.tpr_at_fpr(np.arange(40, 48), np.arange(20), 0.05).low == statistics.proportion(8, 8).low
    reverse = statistics.auroc(np.arange(5), np.arange(10, 30))
    assert reverse == pytest.approx((0, 0, 1 - estimate.low))
    swapped = statistics.auroc(np.r_[4.5, np.arange(11, 30)], np.r_[np.arange(4), 5])
    assert swapped.low < estimate.low, "one pair in the wrong order makes the interval no better"


def test_a_paired_comparison_is_sharper_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, 200)
    positive, negative = common[:100] + 1, common[100:]
    noisy = [group + rng.normal(0, 0.1, 100) for group in (positive, negative)]
    difference = statistics.auroc_difference((positive, noisy[0]), (negative, noisy[1]))
    single = statistics.auroc(positive, negative)
    assert difference.low < difference.value < difference.high
    assert difference.value == pytest.approx(single.value - statistics.auroc(*noisy).value)
    assert difference.high - difference.low < 0.5 * (single.high - single.low)
    with pytest.raises(ValueError, match="same items"):
        statistics.auroc_difference((positive, positive[1:]), (negative, negative))


def test_paired_intervals_cover_the_truth() -> None:
    rng, covered = np.random.default_rng(1), []
    truth = stats.norm.cdf(1 / np.sqrt(2)) - stats.norm.cdf(1 / np.sqrt(2 * 1.25))
    for _ in range(200):
        positive, negative = rng.normal(1, 1, 50), rng.normal(0, 1, 25)
        noisy = [group + rng.normal(0, 0.5, len(group)) for group in (positive, negative)]
        estimate = statistics.auroc_difference((positive, noisy[0]), (negative, noisy[1]))
        covered.append(estimate.low <= truth <= estimate.high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_two_perfect_detectors_do_not_differ_for_certain() -> None:
    difference = statistics.auroc_difference((np.arange(10, 30), np.arange(50, 70)), (np.arange(5), np.arange(5)))
    alone = statistics.auroc(np.arange(10, 30), np.arange(5))
    assert difference == pytest.approx((0, alone.low - 1, 1 - alone.low))


def test_rank_correlation_is_that_of_scipy_and_its_interval_covers() -> None:
    rng, covered = np.random.default_rng(2), []
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    for _ in range(200):
        a = rng.normal(size=60)
        b = 0.6 * a + 0.8 * rng.normal(size=60)
        estimate = statistics.spearman(a, b, resamples=500)
        covered.append(estimate.low <= truth <= estimate.high)
    assert estimate.value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert 0.89 <= np.mean(covered) <= 0.99
    assert statistics.spearman(a, np.exp(a)).value == pytest.approx(1)
    assert statistics.spearman(a, np.zeros(60)) == (0, -1, 1)
    with pytest.raises(ValueError, match="same items"):
        statistics.spearman(a, b[1:])


def test_difference_of_two_shares_of_the_same_items() -> None:
    rng, covered = np.random.default_rng(3), []
    for _ in range(200):
        first = rng.random(80) < 0.5
        second = np.where(rng.random(80) < 0.3, rng.random(80) < 0.2, first)
        estimate = statistics.proportion_difference(first, second)
        covered.append(estimate.low <= 0.5 - (0.7 * 0.5 + 0.3 * 0.2) <= estimate.high)
    assert 0.89 <= np.mean(covered) <= 0.99
    assert estimate.value == pytest.approx(first.mean() - second.mean())
    same = statistics.proportion_difference(first, first)
    assert same.low < 0 == same.value < same.high
    few = statistics.proportion_difference([1] * 4 + [0] * 60, [0] * 64)
    assert few.low < 0 < few.value, "four items that differ, all one way: p = 0.125 by McNemar's exact test"


def test_paired_shares_cover_the_truth_where_few_items_differ() -> None:
    rng, covered = np.random.default_rng(4), []
    for _ in range(500):
        kind = rng.choice(4, 64, p=[0.1, 0.06, 0.01, 0.83])  # both, the first alone, the second alone, neither
        estimate = statistics.proportion_difference(kind <= 1, (kind == 0) | (kind == 2))
        covered.append(estimate.low <= 0.05 <= estimate.high)
        swapped = statistics.proportion_difference((kind == 0) | (kind == 2), kind <= 1)
        assert swapped == pytest.approx((-estimate.value, -estimate.high, -estimate.low))
    assert 0.92 <= np.mean(covered) <= 0.99


def test_welch_and_effect_size() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 2, 4000), rng.normal(0, 1, 3000)
    test = statistics.welch(positive, negative)
    standard_error = np.sqrt(positive.var(ddof=1) / 4000 + negative.var(ddof=1) / 3000)
    assert test.t == pytest.approx((positive.mean() - negative.mean()) / standard_error)
    assert test.p_value == pytest.approx(2 * stats.t.sf(abs(test.t), test.degrees_of_freedom))
    effect = statistics.effect_size(positive, negative)
    assert effect.low < 1 / np.sqrt(2.5) < effect.high


def test_shares() -> None:
    assert statistics.proportion(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert statistics.proportion(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    with pytest.raises(ValueError, match="is no share"):
        statistics.proportion(3, 2)


def test_groups_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="the positive group has 1 scores"):
        statistics.auroc([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="the negative group has scores that are not finite"):
        statistics.auroc([1.0, 2.0], [1.0, float("nan")])


@given(st.integers(0, 999), st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=60))
def test_halves_split_every_group_and_outcome_evenly(seed: int, items: list[tuple[int, bool]]) -> None:
    groups, outcomes = (np.array(column) for column in zip(*items, strict=True))
    first = statistics.halves(groups, outcomes, seed)
    for group in range(3):
        for part in (groups == group, (groups == group) & outcomes, (groups == group) & ~outcomes, groups >= 0):
            assert abs(int((part & first).sum()) - int((part & ~first).sum())) <= 1
    assert (first == statistics.halves(groups, outcomes, seed)).all()


def test_halves_are_random() -> None:
    drawn = np.mean([statistics.halves(np.zeros(10), np.zeros(10), seed) for seed in range(400)], axis=0)
    assert np.abs(drawn - 0.5).max() < 0.1


def test_clusters_of_one_give_the_plain_interval_and_repeats_a_wider_one() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 40), rng.normal(0, 1, 200)
    plain = statistics.auroc(positive, negative)
    single = statistics.auroc_of_clusters(positive, np.arange(40), negative)
    assert single.value == plain.value
    assert single == pytest.approx(plain, abs=0.02)
    tenfold = statistics.auroc_of_clusters(positive.repeat(10), np.arange(40).repeat(10), negative)
    assert tenfold == pytest.approx(single, abs=0.02), "ten times the same says no more than once"
    naive = statistics.auroc(positive.repeat(10), negative)
    assert naive.high - naive.low < 0.8 * (tenfold.high - tenfold.low)
    with pytest.raises(ValueError, match="all positives are in one cluster"):
        statistics.auroc_of_clusters(positive, np.zeros(40), negative)


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(3).normal(2, 1, 7)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    estimate = statistics.mean(values)
    assert estimate == pytest.approx((values.mean(), expected.low, expected.high))
    with pytest.raises(ValueError, match="at least two finite values"):
        statistics.mean([1.0])


def test_a_mean_share_is_as_wide_as_wilsons_interval_and_covers() -> None:
    for outcomes in ([0, 0, 0, 0], [1, 1, 1], [0, 1, 1, 0, 1, 1, 1, 1]):
        wilson = statistics.proportion(sum(outcomes), len(outcomes))
        estimate = statistics.mean_share(outcomes)
        assert estimate.low <= wilson.low + 1e-12
        assert estimate.high >= wilson.high - 1e-12
        assert estimate.value == wilson.value
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(200):
        chance = rng.beta(0.5, 1.5, 16)  # of each prompt, with mean 1/4
        estimate = statistics.mean_share(rng.binomial(4, chance) / 4, seed)
        covered.append(estimate.low <= 0.25 <= estimate.high)
    assert np.mean(covered) >= 0.93
    with pytest.raises(ValueError, match="values between 0 and 1"):
        statistics.mean_share([0.5, 1.5])


def test_curves_are_compared_at_equal_x_over_their_common_range() -> None:
    rng = np.random.default_rng(0)
    item = rng.normal(0, 0.1, 40)
    x1, x2 = np.linspace(0, 0.8, 5)[:, None] + item, np.linspace(1, 0.2, 9)[:, None] + item
    # y = 2 x + 0.3 and y = x over 0.2 ... 0.8: the mean of x + 0.3
    difference = statistics.difference_of_curves((x1, 2 * x1 + 0.3), (x2, x2))
    assert difference.value == pytest.approx(0.8 + item.mean(), abs=1e-9)
    shift = 1.96 * item.std() / 40**0.5
    assert difference.high - difference.low == pytest.approx(2 * shift, rel=0.1)
    assert statistics.difference_of_curves((x2, x2), (x1, 2 * x1 + 0.3)).value == pytest.approx(-difference.value)
    with pytest.raises(ValueError, match="no common range"):
        statistics.difference_of_curves((x1, x1), (x1 + 2, x1))
