"""ROC statistics against sklearn, scipy and known values."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from memlib.evaluation import intervals, roc

scores = st.lists(st.integers(-8, 8).map(float), min_size=2, max_size=40)


@given(scores, scores)
def test_auroc_is_that_of_sklearn(positive: list[float], negative: list[float]) -> None:
    estimate = roc.auroc(positive, negative)
    labels = [1] * len(positive) + [0] * len(negative)
    assert estimate.value == pytest.approx(roc_auc_score(labels, positive + negative))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert roc.auroc_value(positive, negative) == estimate.value


@given(scores, st.lists(st.integers(-8, 8).map(float), min_size=20, max_size=60), st.sampled_from([0.05, 0.1, 0.33]))
def test_tpr_at_fpr_is_the_best_point_of_the_curve_that_keeps_the_limit(
    positive: list[float], negative: list[float], fpr: float
) -> None:
    false, true, _ = roc_curve([1] * len(positive) + [0] * len(negative), positive + negative, drop_intermediate=False)
    assert roc.tpr_at_fpr(positive, negative, fpr).value == pytest.approx(true[false <= fpr + 1e-12].max())


def test_an_fpr_that_the_negatives_cannot_resolve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"50 negatives cannot resolve a false-positive rate of 0.01; at least 100"):
        roc.tpr_at_fpr([1, 2], np.arange(50), 0.01)


def test_only_rates_that_the_negatives_resolve_are_reported() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(2, 1, 40), rng.normal(0, 1, 120)
    found = {n: roc.detection(positive, negative[:n], seed=3) for n in (33, 34, 99, 120)}
    assert {n: list(f) for n, f in found.items()} == {
        33: ["AUROC"],
        34: ["AUROC", "TPR@3%FPR"],
        99: ["AUROC", "TPR@3%FPR"],
        120: ["AUROC", "TPR@1%FPR", "TPR@3%FPR"],
    }
    assert found[120]["AUROC"] == roc.auroc(positive, negative, 3)
    assert found[120]["TPR@3%FPR"] == roc.tpr_at_fpr(positive, negative, 0.03, 3)


def test_intervals_cover_the_truth() -> None:
    rng, truth = np.random.default_rng(0), stats.norm.cdf(1 / np.sqrt(2))
    covered = [
        e.low <= truth <= e.high for e in (roc.auroc(rng.normal(1, 1, 60), rng.normal(0, 1, 60)) for _ in range(200))
    ]
    assert 0.89 <= np.mean(covered) <= 0.99


def test_a_perfect_separation_is_not_certain() -> None:
    estimate = roc.auroc(np.arange(10, 30), np.arange(5))
    assert (estimate.value, estimate.high) == (1, 1)
    assert 0.6 < estimate.low < 0.95
    assert roc.tpr_at_fpr(np.arange(40, 48), np.arange(20), 0.05).low == intervals.proportion(8, 8).low
    reverse = roc.auroc(np.arange(5), np.arange(10, 30))
    assert reverse == pytest.approx((0, 0, 1 - estimate.low))
    swapped = roc.auroc(np.r_[4.5, np.arange(11, 30)], np.r_[np.arange(4), 5])
    assert swapped.low < estimate.low, "one pair in the wrong order makes the interval no better"


def test_a_paired_comparison_is_sharper_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, 200)
    positive, negative = common[:100] + 1, common[100:]
    noisy = [group + rng.normal(0, 0.1, 100) for group in (positive, negative)]
    difference = roc.auroc_difference((positive, noisy[0]), (negative, noisy[1]))
    single = roc.auroc(positive, negative)
    assert difference.low < difference.value < difference.high
    assert difference.value == pytest.approx(single.value - roc.auroc(*noisy).value)
    assert difference.high - difference.low < 0.5 * (single.high - single.low)
    with pytest.raises(ValueError, match="same items"):
        roc.auroc_difference((positive, positive[1:]), (negative, negative))


def test_paired_intervals_cover_the_truth() -> None:
    rng, covered = np.random.default_rng(1), []
    truth = stats.norm.cdf(1 / np.sqrt(2)) - stats.norm.cdf(1 / np.sqrt(2 * 1.25))
    for _ in range(200):
        positive, negative = rng.normal(1, 1, 50), rng.normal(0, 1, 25)
        noisy = [group + rng.normal(0, 0.5, len(group)) for group in (positive, negative)]
        estimate = roc.auroc_difference((positive, noisy[0]), (negative, noisy[1]))
        covered.append(estimate.low <= truth <= estimate.high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_two_perfect_detectors_do_not_differ_for_certain() -> None:
    difference = roc.auroc_difference((np.arange(10, 30), np.arange(50, 70)), (np.arange(5), np.arange(5)))
    alone = roc.auroc(np.arange(10, 30), np.arange(5))
    assert difference == pytest.approx((0, alone.low - 1, 1 - alone.low))


def test_groups_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="the positive group has 1 scores"):
        roc.auroc([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="the negative group has scores that are not finite"):
        roc.auroc([1.0, 2.0], [1.0, float("nan")])


def test_clusters_of_one_give_the_plain_interval_and_repeats_a_wider_one() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 40), rng.normal(0, 1, 200)
    plain = roc.auroc(positive, negative)
    single = roc.auroc_of_clusters(positive, np.arange(40), negative)
    assert single.value == plain.value
    assert single == pytest.approx(plain, abs=0.02)
    tenfold = roc.auroc_of_clusters(positive.repeat(10), np.arange(40).repeat(10), negative)
    assert tenfold == pytest.approx(single, abs=0.02), "ten times the same says no more than once"
    naive = roc.auroc(positive.repeat(10), negative)
    assert naive.high - naive.low < 0.8 * (tenfold.high - tenfold.low)
    with pytest.raises(ValueError, match="all positives are in one cluster"):
        roc.auroc_of_clusters(positive, np.zeros(40), negative)


def test_the_auroc_of_every_setting_is_that_of_its_column() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 9, (30, 3)), columns=["p=1", "p=2", "p=3"], index=[f"i{k}" for k in range(30)])
    positive, negative = np.arange(30) < 8, np.arange(30) > 12
    found = roc.auroc_by_setting(table, positive, negative)
    assert found.to_dict() == {name: roc.auroc_value(table[name][positive], table[name][negative]) for name in table}
    broken = table.astype(float)
    broken.loc["i10", "p=1"] = broken.loc["i20", "p=2"] = np.nan
    with pytest.raises(ValueError, match="the setting 'p=2' has scores that are not finite"):
        roc.auroc_by_setting(broken, positive, negative)
    with pytest.raises(ValueError, match="the mask of the negative group has 29 items; the scores have 30"):
        roc.auroc_by_setting(table, positive, negative[1:])
    with pytest.raises(ValueError, match="the positive group has 1 items"):
        roc.auroc_by_setting(table, np.arange(30) < 1, negative)


def test_false_alarms_lie_above_the_threshold_that_finds_the_memorised() -> None:
    score = np.arange(100.0)
    memorised = np.isin(score, (40, 60, 70, 80, 90))
    alarms = roc.false_alarms(score, memorised, 0.75)
    assert alarms.tolist() == [s >= 60 and not m for s, m in zip(score, memorised, strict=True)]
    assert (memorised & (score >= 60)).mean() >= 0.75 * memorised.mean()
    tied = roc.false_alarms([5.0, 5.0, 4.0, 6.0], [True, False, False, True], 1.0)
    assert tied.tolist() == [False, True, False, False], "a score at the threshold is an alarm"
    nothing = roc.false_alarms(score, np.zeros(100), 0.75)
    assert nothing.sum() == 10, "where nothing is memorised, the highest tenth"


def test_every_false_alarm_of_two_scores_is_of_one_kind() -> None:
    before, after = np.array([1, 1, 0, 0], dtype=bool), np.array([0, 1, 1, 0], dtype=bool)
    kinds = roc.kinds_of_alarms(before, after)
    assert {name: np.flatnonzero(kind).tolist() for name, kind in kinds.items()} == {
        "vanish": [0],
        "stay": [1],
        "are new": [2],
    }


def test_differences_are_those_of_each_pair_over_each_contrast() -> None:
    scores = pd.DataFrame(np.random.default_rng(3).normal(size=(40, 3)), columns=["a", "b", "c"])
    positive = np.arange(40) < 15
    groups = {"first against others": (positive, ~positive), "others against first": (~positive, positive)}
    found = roc.auroc_differences(scores, {"a minus b": ("a", "b"), "c minus a": ("c", "a")}, groups, 5)
    assert found.loc["others against first", "c minus a"] == roc.auroc_difference(
        (scores["c"][~positive], scores["a"][~positive]), (scores["c"][positive], scores["a"][positive]), 5
    )
    aurocs = {name: roc.auroc_value(scores[name][positive], scores[name][~positive]) for name in scores}
    assert found.loc["first against others", "a minus b"].value == pytest.approx(aurocs["a"] - aurocs["b"])
