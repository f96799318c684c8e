"""Scores combined with labels, against scikit-learn's regression and chance, and without, against what p-values promise."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import scheduler, small_unet
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from memlib.detectors import LEARNED, find
from memlib.detectors.api import Items, as_list
from memlib.evaluation.combination import adaptive, learned, normal_scores, ranked
from memlib.evaluation.discovery import conformal_p_values, discoveries
from memlib.evaluation.roc import auroc_value
from memlib.evaluation.split import choose, stratified_split
from memlib.fields.unet import UNetField
from memlib.tables import setting_name


def table(n: int = 120, columns: int = 4, signal: float = 0.0, seed: int = 0) -> tuple[pd.DataFrame, tuple, np.ndarray]:
    """Scores of which each says as little, of items of which a third are positive, a third negative, and a third neither."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % 3
    values = rng.normal(size=(n, columns)) * 10.0 ** np.arange(columns) + 5
    values += signal * (group == 0)[:, None] * 10.0 ** np.arange(columns)
    scores = pd.DataFrame(values, [f"item {i}" for i in range(n)], [f"score {i}" for i in range(columns)])
    return scores, (group == 0, group == 1), stratified_split(group, np.zeros(n), seed)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_weights_are_those_of_scikit_learn(penalty: float) -> None:
    scores, (positive, negative), choosing = table(signal=0.7)
    known = (positive | negative) & choosing
    scaler = StandardScaler().fit(scores[known])
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(scores[known]), positive[known])
    expected = model.decision_function(scaler.transform(scores))
    found = learned(scores, (positive, negative), choosing, penalty)
    assert found.index.equals(scores.index)
    np.testing.assert_allclose(found["learned"], expected, rtol=1e-3, atol=1e-4)


def test_nothing_of_the_other_half_reaches_the_weights() -> None:
    scores, contrast, choosing = table(signal=0.7)
    other = scores.copy()
    other[~choosing] *= -3
    turned = tuple(np.where(choosing, group, ~group) for group in contrast)
    found, again = learned(scores, contrast, choosing), learned(other, turned, choosing)
    pd.testing.assert_frame_equal(found[choosing], again[choosing])


def test_weak_scores_are_stronger_together_and_none_is_made_of_chance() -> None:
    together, alone, chance = [], [], []
    for seed in range(30):
        scores, contrast, choosing = table(240, signal=0.7, seed=seed)
        together.append(choose(learned(scores, contrast, choosing), contrast, choosing).reported.value)
        alone.append(choose(scores[["score 0"]], contrast, choosing).reported.value)
        scores, contrast, choosing = table(240, columns=30, seed=seed)
        chance.append(choose(learned(scores, contrast, choosing), contrast, choosing).reported.value)
    assert np.mean(together) > np.mean(alone) + 0.1
    assert abs(np.mean(chance) - 0.5) < 0.04


def test_what_cannot_be_learned_is_refused() -> None:
    scores, (positive, negative), choosing = table()
    with pytest.raises(ValueError, match="0 positives and 20 negatives are there to learn from"):
        learned(scores, (positive & ~choosing, negative), choosing)
    scores["constant"] = 3.0
    assert np.isfinite(learned(scores, (positive, negative), choosing)["learned"]).all()
    scores.loc["item 7", "score 2"] = np.nan
    with pytest.raises(ValueError, match="the score 'score 2' is not finite for every item"):
        learned(scores, (positive, negative), choosing)


@pytest.mark.parametrize("name", [LEARNED[0], *(pytest.param(name, marks=pytest.mark.ci) for name in LEARNED[1:])])
def test_labels_at_random_teach_a_learned_detector_nothing(name: str, generator: torch.Generator) -> None:
    """Its features of real pictures, learned from one half of the items under labels by lot: 0.5 on the other."""
    items = Items([str(i) for i in range(80)], 0, torch.rand(80, 3, 8, 8, generator=generator) * 2 - 1)
    field, detector = UNetField(small_unet(), scheduler()), find(name)
    settings = {"gsa": [{"sigmas": [0.5]}], "looks": [{}]}.get(name, [{**s, "draws": [1]} for s in detector.settings])
    columns = {
        setting_name(setting | scores.reading): scores.value.double().numpy()
        for setting in settings
        for scores in as_list(detector.score(field, items, **setting))
    }
    scores = pd.DataFrame(columns, items.ids)
    found = []
    for seed in range(60):
        positive = np.random.default_rng(seed).permutation(80) < 40
        choosing = stratified_split(positive, np.zeros(80), seed)
        found.append(choose(learned(scores, (positive, ~positive), choosing), (positive, ~positive), choosing).reported)
    assert abs(np.mean([each.value for each in found]) - 0.5) < 0.04
    assert sum(each.low <= 0.5 <= each.high for each in found) >= 53, "95 % of the intervals, to three standard errors"


def scored(n: int, k: int, rng: np.random.Generator, signal: np.ndarray | float = 0.0) -> pd.DataFrame:
    """n items by k scores of different units, with so many standard deviations of signal [n, k]."""
    values = np.exp(rng.normal(size=(n, k)) + signal) * 10.0 ** (np.arange(k) % 3)
    return pd.DataFrame(values, columns=[f"score {i}" for i in range(k)])


@pytest.mark.ci
def test_p_values_of_an_adaptive_score_are_valid() -> None:
    """Of items that are all outside of the training, by scores enough to learn any set of nulls by heart."""
    small = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        p_values = conformal_p_values(*adaptive(scored(30, 30, rng), scored(60, 30, rng), penalty=0.01, seed=seed))
        small.append([(p_values <= u).mean() for u in (0.1, 0.3)])
    mean, error = np.mean(small, 0), stats.sem(small, 0)
    assert (mean <= np.array([0.1, 0.3]) + 3 * error).all(), mean
    assert (mean >= np.array([0.04, 0.18])).all(), "and not empty"


def test_false_discoveries_by_an_adaptive_score_stay_below_the_rate() -> None:
    shares, found = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        signal = np.zeros((60, 6))
        signal[:20, :3] = 3.0
        p_values = conformal_p_values(*adaptive(scored(60, 6, rng, signal), scored(160, 6, rng), seed=seed))
        hits = discoveries(p_values, 0.2)
        shares.append(hits[20:].sum() / max(1, hits.sum()))
        found.append(hits[:20].mean())
    assert np.mean(shares) <= 0.2 * 40 / 60 + 3 * stats.sem(shares)
    assert np.mean(found) > 0.9


def test_two_scores_that_know_half_each_find_more_together() -> None:
    """Beside three that know nothing."""
    power: dict[str, list[float]] = {"adaptive": [], "ranked": [], "first": [], "second": []}
    area: dict[str, list[float]] = {"ranked": [], "first": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        signal = np.zeros((200, 5))
        signal[:20, 0], signal[20:40, 1] = 4.0, 4.0
        tested, nulls = scored(200, 5, rng, signal), scored(800, 5, rng)
        pairs = {
            "adaptive": adaptive(tested, nulls, seed=seed),
            "first": (tested["score 0"], nulls["score 0"]),
            "second": (tested["score 1"], nulls["score 1"]),
        }
        together = ranked(pd.concat([tested, nulls])[["score 0", "score 1"]])["ranked"]
        pairs["ranked"] = together[:200], together[200:]
        for name, pair in pairs.items():
            power[name].append(discoveries(conformal_p_values(*pair), 0.1)[:40].mean())
        for name in area:
            area[name].append(auroc_value(pairs[name][0][:40], pairs[name][1]))
    mean = {name: np.mean(values) for name, values in power.items()}
    assert max(mean["first"], mean["second"]) < 0.55
    assert mean["adaptive"] > 0.75
    assert mean["adaptive"] > mean["ranked"] + 0.3, "ranks alone forget how far ahead the few are"
    assert np.mean(area["ranked"]) > np.mean(area["first"]) + 0.1


def test_an_adaptive_score_does_not_know_who_is_tested() -> None:
    """Nulls that are compared with and tested items in exchanged roles have the same scores."""
    rng = np.random.default_rng(0)
    tested, nulls = scored(40, 4, rng, 1.0), scored(80, 4, rng)
    scores, others = adaptive(tested, nulls)
    assert (len(scores), len(others)) == (40, 40)
    assert scores.index.equals(tested.index)
    exchanged = nulls.copy()
    exchanged.loc[others.index] = tested.to_numpy()
    swapped, back = adaptive(nulls.loc[others.index], exchanged)
    np.testing.assert_allclose(swapped, others, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(back, scores, rtol=1e-3, atol=1e-4)
    again, _ = adaptive(tested.sample(frac=1, random_state=1), nulls)
    np.testing.assert_allclose(again.loc[scores.index], scores, rtol=1e-3, atol=1e-4)
    assert len(adaptive(tested, nulls, share=0.25)[1]) == 60
    assert set(adaptive(tested, nulls, seed=1)[1].index) != set(others.index)


def test_no_score_is_turned_round() -> None:
    """What is lower for tested items makes none of them stand out, since larger means memorised."""
    rng = np.random.default_rng(0)
    tested, nulls = scored(100, 2, rng, np.array([2.0, -2.0])), scored(400, 2, rng)
    assert auroc_value(*adaptive(tested, nulls)) > 0.9
    assert auroc_value(*adaptive(tested[["score 1"]], nulls[["score 1"]])) < 0.5


def test_ranks_know_no_units_and_no_spread() -> None:
    scores = pd.DataFrame({"a": [3.0, 1.0, 2.0, 2.0], "b": [1e6, 0.0, 10.0, -5.0]}, list("wxyz"))
    quantiles = stats.norm.ppf([[3.5 / 4, 3.5 / 4], [0.5 / 4, 1.5 / 4], [0.5, 2.5 / 4], [0.5, 0.5 / 4]])
    found = ranked(scores)
    assert found.index.tolist() == list("wxyz")
    np.testing.assert_allclose(found["ranked"], quantiles.mean(1), atol=1e-12)
    np.testing.assert_allclose(ranked(scores**3), found, atol=1e-12)


@given(st.integers(0, 99))
def test_ranks_are_among_those_of_a_training_and_kinds_weigh_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, trainings = pd.DataFrame(rng.normal(size=(24, 3)), columns=list("abc")), np.arange(24) % 2
    found = ranked(scores, ["x", "x", "y"], trainings)["ranked"]
    stretched = np.exp(scores) * np.where(trainings == 0, 1, 1000)[:, None]
    np.testing.assert_allclose(ranked(stretched, ["x", "x", "y"], trainings)["ranked"], found)
    normal = stats.norm.ppf((scores.groupby(trainings).rank() - 0.5) / 12)
    np.testing.assert_allclose(found, (normal[:, 0] + normal[:, 1]) / 4 + normal[:, 2] / 2)
    by_kind = normal_scores(scores, ["x", "x", "y"], trainings)
    assert by_kind.columns.tolist() == ["x", "y"]
    np.testing.assert_allclose(by_kind["x"], normal[:, :2].mean(1))


def test_nulls_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(0)
    tested, nulls = scored(5, 2, rng), scored(10, 2, rng)
    with pytest.raises(ValueError, match="need the same scores in the same order"):
        adaptive(tested[["score 1", "score 0"]], nulls)
    with pytest.raises(
        ValueError, match="of 10 nulls 1 are to be learned from; at least two are needed, and two others"
    ):
        adaptive(tested, nulls, share=0.1)
    with pytest.raises(ValueError, match="of 10 nulls 9 are to be learned from"):
        adaptive(tested, nulls, share=0.9)
    nulls.iloc[3, 1] = np.inf
    for call in (lambda: adaptive(tested, nulls), lambda: ranked(nulls)):
        with pytest.raises(ValueError, match="the score 'score 1' is not finite for every item"):
            call()
