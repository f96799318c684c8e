"""What is measured, its intervals, p-values and power: against closed forms, other formulas, and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportions_ztest

from memlib.evaluation import intervals, measures
from memlib.evaluation.measured import Difference, Measured, detectable, p_value, settleable


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap can only widen an interval, so that a coverage with few resamples is told by few as well."""
    monkeypatch.setattr(measures, "RESAMPLES", 200)


def correlated(rng: np.random.Generator, positives: int, negatives: int, aurocs: list[float], rho: float) -> np.ndarray:
    """Scores [N, 2] of two binormal detectors with these AUROCs, correlated within each group; the positives first."""
    scores = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], positives + negatives)
    scores[:positives] += np.sqrt(2) * stats.norm.ppf(aurocs)
    return scores


def delong(scores: np.ndarray, positives: int) -> np.ndarray:
    """DeLong's covariance matrix of the AUROCs of K detectors [N, K], by midranks (Sun & Xu 2014)."""
    own, other = scores[:positives], scores[positives:]
    m, n = len(own), len(other)
    ranks = stats.rankdata(scores, axis=0)
    v10 = (ranks[:m] - stats.rankdata(own, axis=0)) / n
    v01 = 1 - (ranks[m:] - stats.rankdata(other, axis=0)) / m
    return np.cov(v10.T) / m + np.cov(v01.T) / n


@given(st.integers(0, 999), st.integers(3, 20), st.integers(3, 30), st.booleans())
@settings(deadline=None, max_examples=30)
def test_deviations_have_delongs_covariance(seed: int, positives: int, negatives: int, ties: bool) -> None:
    scores = correlated(np.random.default_rng(seed), positives, negatives, [0.8, 0.7], 0.6)
    scores = scores.round(0) if ties else scores
    label = np.arange(len(scores)) < positives
    a, b = (measures.auroc(scores[:, k], label) for k in (0, 1))
    expected = delong(scores, positives)
    found = np.array([[(x.deviations * y.deviations).sum() for x in (a, b)] for y in (a, b)])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert a.value == pytest.approx(roc_auc_score(label, scores[:, 0]))
    scale = np.sqrt(expected[0, 0] * expected[1, 1])
    assert Difference(a, b).correlation == pytest.approx(expected[0, 1] / scale if scale else 0)


@given(st.floats(0.02, 0.98), st.integers(2, 40), st.integers(2, 200), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_newcombes_limits_solve_his_equation(value: float, positives: int, negatives: int, level: float) -> None:
    for theta in measures.newcombe(value, positives, negatives, level):
        if 0 < theta < 1:
            mean = (positives + negatives) / 2
            variance = theta * (1 - theta) / (positives * negatives)
            variance *= 1 + (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
            assert abs(value - theta) == pytest.approx(stats.norm.ppf((1 + level) / 2) * np.sqrt(variance), abs=1e-6)
    low, high = measures.newcombe(value, positives, negatives, level)
    assert measures.newcombe(1 - value, positives, negatives, level) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=20)
def test_only_ranks_matter_and_a_difference_turned_round_is_its_negative(seed: int) -> None:
    scores = correlated(np.random.default_rng(seed), 9, 40, [0.95, 0.9], 0.8)
    label = np.arange(49) < 9
    a, b = (measures.auroc(scores[:, k], label) for k in (0, 1))
    assert measures.auroc(np.exp(scores[:, 0]), label).interval() == a.interval()
    difference, reverse = Difference(a, b).interval(), Difference(b, a).interval()
    assert reverse == pytest.approx((-difference.value, -difference.high, -difference.low))


def test_no_interval_of_a_difference_is_wider_than_differences_can_be() -> None:
    trainings, label = np.repeat([0, 1], 10), np.tile(np.arange(10) < 4, 2)
    scores = np.random.default_rng(1).normal(size=20)
    apart = np.where(trainings == 0, 1, -1) * np.where(label, 5.0, -5.0)
    a, b = (measures.auroc(values, label, np.arange(20), trainings) for values in (apart, scores))
    assert a.by_training.tolist() == [1, 0]
    for found in (Difference(a, b).interval(), Difference(b, a).interval()):
        assert -1 <= found.low < found.value < found.high <= 1
    assert Difference(a, b).spread() > 1, "so that the bounds are needed"
    assert Difference(a, b).interval()[1:] == (-1, 1)


def test_a_difference_of_other_items_is_refused() -> None:
    rng = np.random.default_rng(0)
    a, b = (measures.auroc(rng.normal(size=n), np.arange(n) < n / 3) for n in (60, 90))
    with pytest.raises(ValueError, match="only be compared on the same items; there are 60 and 90"):
        Difference(a, b)


def test_square_and_add_is_that_of_two_means() -> None:
    rng = np.random.default_rng(3)
    x = rng.multivariate_normal([1, 0], [[1, 0.7], [0.7, 2]], 50).T
    half = 1.96 * x.std(1, ddof=1) / np.sqrt(50)
    means = [intervals.Estimate(v, v - h, v + h) for v, h in zip(x.mean(1), half, strict=True)]
    found = intervals.square_and_add(*means, np.corrcoef(x)[0, 1])
    error = (x[0] - x[1]).std(ddof=1) / np.sqrt(50)
    assert found == pytest.approx((np.diff(-x.mean(1))[0], found.value - 1.96 * error, found.value + 1.96 * error))


def test_a_difference_on_the_same_items_is_at_least_delongs() -> None:
    scores = correlated(np.random.default_rng(8), 30, 100, [0.98, 0.9], 0.95)
    a, b = (measures.auroc(scores[:, k], np.arange(130) < 30) for k in (0, 1))
    covariance = delong(scores, 30)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    half = stats.t.ppf(0.975, 29) * error
    added = intervals.square_and_add(a.over_items(), b.over_items(), Difference(a, b).correlation)
    found = Difference(a, b).interval()
    assert found.low == pytest.approx(min(found.value - half, added.low))
    assert found.high == pytest.approx(max(found.value + half, added.high))
    assert found.low < added.low - 0.005, "here square-and-add alone is too narrow"
    perfect = measures.auroc(np.arange(130) < 30, np.arange(130) < 30)
    assert np.ptp(Difference(perfect, perfect).interval()) > 0, "here DeLong's is"
    assert Difference(a, b).if_found(found.value).low == pytest.approx(found.low)
    for shift in (-0.3, -0.03, 1 - a.value):
        other = Difference(a, b).if_found(found.value + shift)
        limits = measures.newcombe(a.value + shift, 30, 100)
        scale = np.ptp(limits) / np.ptp(measures.newcombe(a.value, 30, 100))
        variance = scale**2 * covariance[0, 0] + covariance[1, 1] - 2 * scale * covariance[0, 1]
        half = stats.t.ppf(0.975, 29) * np.sqrt(variance)
        moved = intervals.Estimate(a.value + shift, *limits)
        added = intervals.square_and_add(moved, b.over_items(), Difference(a, b).correlation)
        assert other == pytest.approx(
            (added.value, min(added.low, added.value - half), max(added.high, added.value + half))
        )
    assert added.low > added.value - half, "so that the scale is seen"


def test_repeats_of_the_same_say_no_more() -> None:
    rng = np.random.default_rng(1)
    scores, label, item = rng.normal(size=60) + (np.arange(60) < 20), np.arange(60) < 20, np.arange(60)
    once = measures.auroc(scores, label)
    as_noises = measures.auroc(np.column_stack([scores] * 3), label)
    as_clusters = measures.auroc(np.tile(scores, 3), np.tile(label, 3), clusters=np.tile(item, 3))
    as_trainings = measures.auroc(np.tile(scores, 3), np.tile(label, 3), np.tile(item, 3), np.repeat([5, 6, 7], 60))
    for found in (as_noises, as_clusters, as_trainings):
        assert found.interval() == pytest.approx(once.interval())
        np.testing.assert_allclose(found.deviations, once.deviations)
    alone = measures.auroc(np.tile(scores, 3), np.tile(label, 3))
    assert np.ptp(alone.interval()) < 0.7 * np.ptp(once.interval()), "taken for other items, they would"


def test_one_generation_is_not_the_mean_of_several() -> None:
    rng = np.random.default_rng(2)
    noises, label = rng.normal(size=(80, 16)) + (np.arange(80) < 20)[:, None], np.arange(80) < 20
    each = [roc_auc_score(label, noises[:, k]) for k in range(16)]
    assert measures.auroc(noises, label).value == pytest.approx(np.mean(each))
    assert measures.auroc(noises.mean(1), label).value > np.mean(each) + 0.1


def test_trainings_widen_an_interval_by_students_of_their_means() -> None:
    rng = np.random.default_rng(5)
    shift, item = [0.5, 1.5, 2.5], np.tile(np.arange(50), 3)
    scores = np.concatenate([rng.normal(size=50) + s * (np.arange(50) < 14) for s in shift])
    found = measures.auroc(scores, item < 14, item, np.repeat(range(3), 50))
    by_hand = [roc_auc_score(np.arange(50) < 14, scores[k * 50 : k * 50 + 50]) for k in range(3)]
    np.testing.assert_allclose(found.by_training, by_hand)
    student, items = stats.ttest_1samp(by_hand, 0).confidence_interval(), found.over_items()
    half = (student.high - student.low) / 2
    estimate = found.interval()
    assert estimate.low == pytest.approx(found.value - np.hypot(found.value - items.low, half))
    assert estimate.high == 1 < found.value + np.hypot(items.high - found.value, half)


def test_an_item_positive_in_one_training_and_negative_in_another_is_one_cluster() -> None:
    rng = np.random.default_rng(7)
    item, training = np.tile(np.arange(40), 2), np.repeat([0, 1], 40)
    own = rng.normal(0, 3, 40)[item]  # what a picture is by itself
    label = (item < 20) == (training == 0)
    found = measures.auroc(own + 2 * label + 0.1 * rng.normal(size=80), label, item, training)
    assert len(found.deviations) == 40
    naive = measures.auroc(own + 2 * label + 0.1 * rng.normal(size=80), label, np.arange(80), training)
    assert (found.deviations**2).sum() < 0.3 * (naive.deviations**2).sum(), "what a picture is by itself cancels"


def test_shares_over_trainings_of_two_arms() -> None:
    rng = np.random.default_rng(3)
    control, arm = (rng.random((64, t)) < p for t, p in ((8, 0.5), (3, 0.3)))
    a, b = measures.share(control), measures.share(arm)
    difference = Difference(a, b, same_trainings=False)
    assert difference.value == pytest.approx(control.mean() - arm.mean())
    welch = stats.ttest_ind(control.mean(0), arm.mean(0), equal_var=False).confidence_interval()
    assert difference.spread() == pytest.approx((welch.high - welch.low) / 2)
    assert difference.correlation == pytest.approx(np.corrcoef(control.mean(1), arm.mean(1))[0, 1])
    with pytest.raises(ValueError, match="two of either side or more; there are 8 and 1"):
        Difference(a, measures.share(arm[:, 0]), same_trainings=False)
    for wrong in ([0.5, 1.5], [1], [[1, np.nan], [0, np.nan]], [[1, 0], [np.nan, np.nan]]):
        with pytest.raises(ValueError, match="two items or more, with outcomes between 0 and 1"):
            measures.share(wrong)


def test_a_share_of_items_that_are_not_of_every_training() -> None:
    found = measures.share([[1, np.nan], [1, np.nan], [0, np.nan], [np.nan, 1], [1, 0]])
    assert found.value == pytest.approx(np.mean([1, 1, 0, 1, 0.5]))
    assert found.by_training == pytest.approx([3 / 4, 1 / 2])
    assert (found.deviations**2).sum() == pytest.approx(np.var([1, 1, 0, 1, 0.5], ddof=1) / 5)


@pytest.mark.parametrize(("successes", "n", "threshold"), [(14, 20, 0.5), (3, 40, 0.2), (25, 60, 0.4), (60, 60, 0.95)])
def test_a_p_value_inverts_the_interval(successes: int, n: int, threshold: float) -> None:
    found = measures.share(np.arange(n) < successes)
    found = replace(found, resampled=np.full(9, found.value))  # Wilson's interval alone, which inverts the score test
    expected = proportions_ztest(successes, n, threshold, prop_var=threshold)[1]
    assert p_value(found, threshold) == pytest.approx(expected, rel=1e-3)


@given(st.integers(0, 999), st.sampled_from([0.3, 0.5, 0.8, 0.95]))
@settings(deadline=None, max_examples=15)
def test_a_p_value_is_below_five_percent_where_the_interval_holds_no_threshold(seed: int, threshold: float) -> None:
    scores = correlated(np.random.default_rng(seed), 9, 40, [0.9, 0.6], 0.5)
    a, b = (measures.auroc(scores[:, k], np.arange(49) < 9) for k in (0, 1))
    for found, level in ((a, threshold), (Difference(a, b), threshold - 0.5)):
        estimate = found.interval()
        assert (p_value(found, level) < 0.05) == (not estimate.low <= level <= estimate.high)


def test_a_claim_is_settleable_where_the_best_outcome_would_settle_it() -> None:
    label = np.arange(30) < 4
    poor = measures.auroc(np.random.default_rng(0).normal(size=30), label)
    perfect = measures.auroc(label.astype(float), label).interval()
    assert settleable(poor, perfect.low - 0.01)
    assert not settleable(poor, perfect.low + 0.01)
    ceiling = measures.auroc(label + 0.1 * np.random.default_rng(0).random(30), label)
    assert not settleable(Difference(poor, ceiling), 0.0), "nothing can be better than a perfect detector"
    assert settleable(Difference(poor, poor), 0.0)
    assert detectable(poor, perfect.low + 0.01) is None


def test_a_mitigation_is_settleable_where_it_could_have_saved_everything() -> None:
    control, arm = measures.share(np.ones(13)), measures.share(np.arange(13) < 9)
    best = Difference(control, measures.share(np.zeros(13))).interval()
    mitigation = Difference(control, arm, tried="second")
    assert mitigation.largest == 1
    found = mitigation.interval()
    assert mitigation.if_found(found.value)[1:] == pytest.approx(
        intervals.square_and_add(control.over_items(), intervals.Estimate(9 / 13, *arm.limits(9 / 13, 0.95)), 0.0)[1:],
        abs=0.03,
    )
    assert mitigation.if_found(1.0).low == pytest.approx(best.low, abs=0.1)
    assert settleable(mitigation, 0.0)
    assert not settleable(Difference(control, arm), 0.0), "the control already copies all"
    assert found.value < detectable(mitigation, 0.0) < 1


def test_a_detectable_effect_is_found_in_four_of_five_studies(few_resamples: None) -> None:
    rng, n = np.random.default_rng(0), 60
    effect = detectable(measures.share(np.arange(n) < 30), 0.5)
    above = [measures.share(rng.random(n) < effect).interval().low > 0.5 for _ in range(300)]
    assert 0.7 < np.mean(above) < 0.9
    effect = detectable(measures.auroc(rng.normal(size=60), np.arange(60) < 20), 0.5)
    drawn = (correlated(rng, 20, 40, [effect, 0.5], 0) for _ in range(300))
    above = [measures.auroc(scores[:, 0], np.arange(60) < 20).interval().low > 0.5 for scores in drawn]
    assert 0.7 < np.mean(above) < 0.9


def covers(found: Measured | Difference, truth: float) -> bool:
    estimate = found.interval()
    return estimate.low <= truth <= estimate.high


REGIME = [(9, 100, 0.98, 0.9, 0.95), (14, 60, 0.999, 0.98, 0.8), (30, 100, 0.98, 0.9, 0.95)]
REST = [
    (m, n, a, b, rho)
    for m, n in ((9, 100), (14, 60), (30, 100))
    for a, b in ((0.9, 0.9), (0.95, 0.9), (0.98, 0.9), (0.98, 0.95), (0.995, 0.95), (0.999, 0.98), (0.995, 0.995))
    for rho in (0, 0.8, 0.95)
]


@pytest.mark.parametrize(
    ("positives", "negatives", "first", "second", "rho"),
    [*REGIME, *(pytest.param(*row, marks=pytest.mark.ci) for row in REST if row not in REGIME)],
)
def test_intervals_cover_where_the_study_works(
    few_resamples: None, positives: int, negatives: int, first: float, second: float, rho: float
) -> None:
    rng, label, covered = np.random.default_rng(11), np.arange(positives + negatives) < positives, []
    for _ in range(400):
        scores = correlated(rng, positives, negatives, [first, second], rho)
        a, b = (measures.auroc(scores[:, k], label) for k in (0, 1))
        covered.append((covers(a, first), covers(b, second), covers(Difference(a, b), first - second)))
    assert (np.mean(covered, axis=0) >= 0.93).all()


@pytest.mark.parametrize(
    ("count", "mean", "spread"),
    [
        (2, 1.5, 1.0),
        (3, 1.5, 1.0),
        *(
            pytest.param(count, mean, spread, marks=pytest.mark.ci)
            for count in (2, 3, 6)
            for mean in (1.5, 2.5, 3.5)  # AUROCs of 0.86, 0.96 and 0.99
            for spread in (0, 0.5, 1)
            if (mean, spread) != (1.5, 1.0) or count == 6
        ),
    ],
)
def test_intervals_over_few_trainings_cover(few_resamples: None, count: int, mean: float, spread: float) -> None:
    """Shifts differ between trainings; half of a score's variance is the item's, the same in all of them."""
    rng, covered = np.random.default_rng(13), []
    label, item = np.arange(74) < 14, np.tile(np.arange(74), count)
    shifts = rng.normal(mean, spread, 200_000)
    first, second = (np.mean(stats.norm.cdf(shifts / np.sqrt(2 * variance))) for variance in (1, 1.5))
    for _ in range(400):
        shift = rng.normal(mean, spread, (count, 1)) * label
        scores = np.sqrt(0.5) * (rng.normal(size=74) + rng.normal(size=(count, 74))) + shift
        noisy = scores + np.sqrt(0.5) * rng.normal(size=(count, 74))
        labels = np.tile(label, count), item, np.repeat(np.arange(count), 74)
        a, b = (measures.auroc(values.ravel(), *labels) for values in (scores, noisy))
        covered.append((covers(a, first), covers(Difference(a, b), first - second)))
    assert (np.mean(covered, axis=0) >= 0.93).all()


def test_shares_of_arms_with_few_trainings_cover(few_resamples: None) -> None:
    """Eight random controls against three trainings of an arm: a training shifts the chance of all its items."""
    rng, covered = np.random.default_rng(17), []
    for _ in range(400):
        item = rng.normal(size=(64, 1))
        shares = []
        for count, level in ((8, 0.0), (3, -0.5)):
            chance = stats.norm.cdf(level + item + rng.normal(0, 0.3, count))
            shares.append(measures.share(rng.random((64, count)) < chance))
        truth = stats.norm.cdf(0) - stats.norm.cdf(-0.5 / np.sqrt(1 + 1 + 0.09))
        covered.append(covers(Difference(*shares, same_trainings=False), truth))
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2, 3], [True, False]), "the positives have 2 items; the scores have 3"),
        (([1.0, 2, 3, 4], [True, True, False, False], [0, 1, 2]), "the clusters have 3 items"),
        (([1.0, np.nan, 3, 4], [True, True, False, False]), "the scores of 1 items are not finite"),
        (([1.0, 2, 3], [True, False, False]), "the positive group has 1 scores"),
        (([1.0, 2, 3, 4], [True, True, False, False], [7, 7, 8, 9]), "all positives are in one cluster"),
    ],
)
def test_an_auroc_that_cannot_be_measured_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measures.auroc(*arguments)
