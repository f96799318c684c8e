"""Repeated looks: the levels, the test's p-values, false alarms of a whole run by simulation, and that a memoriser is told."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from memlib.evaluation.intervals import Estimate
from memlib.evaluation.looks import Look, first_named, judge, level_at, look_p_values, named_at
from memlib.evaluation.roc import auroc, auroc_value


def test_the_levels_sum_to_alpha() -> None:
    levels = [level_at(look, 0.05) for look in range(1, 10**5)]
    assert sum(levels) == pytest.approx(0.05, abs=1e-6)
    assert sum(levels) < 0.05
    assert levels[0] == 0.025


def exact(trained: np.ndarray, heldout: np.ndarray) -> float:
    """The share of all ways to choose the trained items whose rank sum is as large."""
    ranks = np.concatenate([trained, heldout]).argsort().argsort()
    chosen = np.array([*combinations(range(len(ranks)), len(trained))])
    return float(np.mean(ranks[chosen].sum(1) >= ranks[: len(trained)].sum()))


def test_p_values_of_small_groups_are_those_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    trained, heldout = rng.normal(0.8, 1, (20, 5)), rng.normal(0, 1, (20, 6))
    found = look_p_values(trained, heldout)
    assert found == pytest.approx([exact(a, b) for a, b in zip(trained, heldout, strict=True)])


@pytest.mark.ci
def test_p_values_of_larger_groups_are_no_smaller_where_an_alarm_is_decided() -> None:
    rng = np.random.default_rng(1)
    trained, heldout = rng.normal(1.1, 1, (40, 9)), rng.normal(0, 1, (40, 9))
    truth = np.array([exact(a, b) for a, b in zip(trained, heldout, strict=True)])
    decided = truth < 0.025
    assert decided.sum() > 10
    assert (look_p_values(trained, heldout) >= truth)[decided].all()


RUNS, LOOKS, EACH = 3000, 20, 24


def paths(drift: float, seed: int) -> np.ndarray:
    """Changes [RUNS, LOOKS, 2 EACH] of a training that moves all items together and each by itself, trained ones by a drift."""
    rng = np.random.default_rng(seed)
    own = rng.standard_t(3, (RUNS, LOOKS, 2 * EACH)).cumsum(1)
    common = rng.normal(0, 5, (RUNS, LOOKS, 1)).cumsum(1)
    own[..., :EACH] += drift * np.arange(1, LOOKS + 1)[:, None]
    return own + common


def alarms(changes: np.ndarray, levels: np.ndarray) -> float:
    return float((look_p_values(changes[..., :EACH], changes[..., EACH:]) <= levels).any(1).mean())


def test_without_memorisation_a_whole_run_alarms_at_most_at_the_stated_rate() -> None:
    alpha = 0.05
    levels = np.array([level_at(look, alpha) for look in range(1, LOOKS + 1)])
    changes = paths(0.0, 2)
    error = 3 * (alpha * (1 - alpha) / RUNS) ** 0.5
    assert alarms(changes, levels) <= alpha + error
    assert alarms(changes, np.full(LOOKS, alpha)) > 2 * alpha  # which each look by itself would not hold


def test_independent_looks_alarm_at_the_stated_rate_too() -> None:
    rng = np.random.default_rng(3)
    levels = np.array([level_at(look, 0.2) for look in range(1, LOOKS + 1)])
    found = alarms(rng.normal(size=(RUNS, LOOKS, 2 * EACH)), levels)
    assert 0.12 < found <= 0.2 + 3 * (0.16 / RUNS) ** 0.5


def test_trained_items_that_drift_are_told() -> None:
    levels = np.array([level_at(look, 0.05) for look in range(1, LOOKS + 1)])
    assert alarms(paths(2.0, 4), levels) > 0.99


def test_a_look_names_the_items_beyond_the_held_out_ones() -> None:
    heldout = np.linspace(-1, 1, 60)
    trained = np.concatenate([np.full(12, 5.0), np.linspace(-1, 1, 28)])
    look = judge(trained, heldout, 2, 0.05, 0.1)
    assert look.named[:12].all()
    assert look.named.sum() < 16
    assert look.level == level_at(2, 0.05)
    assert look.auroc.value == pytest.approx(auroc_value(trained, heldout))
    assert look.auroc == pytest.approx(auroc(trained, heldout), abs=0.03)
    assert look.told_apart == (look.p_value <= look.level)
    assert judge(trained + 5, heldout, 2, 0.05, 0.1).told_apart
    assert not judge(-trained - 5, heldout, 2, 0.05, 0.1).told_apart


def test_items_are_first_named_at_the_earliest_look_that_names_them() -> None:
    rng = np.random.default_rng(5)
    items = [*(f"t{i}" for i in range(20)), *(f"h{i}" for i in range(60))]
    changes = pd.DataFrame(rng.normal(size=(4, 80)), [10, 20, 30, 40], items)
    changes.iloc[1, :8] += 20
    changes.iloc[2:, 4:12] += 20  # four of them a second time
    first = first_named(changes, items[:20], 0.1)
    assert first[[f"t{i}" for i in range(8)]].tolist() == [20.0] * 8
    assert first[[f"t{i}" for i in range(8, 12)]].tolist() == [30.0] * 4
    assert len(first) < 16
    assert not {*first.index} & {*items[20:]}
    for step in changes.index:
        look = judge(changes.loc[step, items[:20]], changes.loc[step, items[20:]], 1, 0.05, 0.1)
        assert (first[first == step].index.isin(np.array(items[:20])[look.named])).all()


def test_names_are_of_the_change_since_the_first_look_and_of_the_score_itself() -> None:
    rng = np.random.default_rng(6)
    trained, heldout = [f"t{i}" for i in range(20)], [f"h{i}" for i in range(60)]
    start = pd.Series(rng.normal(0, 100, 80), [*trained, *heldout])  # what an item is by itself
    wide = pd.DataFrame([start, start + rng.normal(size=80), start + rng.normal(size=80)], [0, 10, 20])
    wide.loc[20, trained] += 30
    rows = wide.rename_axis(index="step", columns="item").stack().rename("score").reset_index()
    scores = rows.assign(detector="loss", trained=rows["item"].isin(trained))
    found = named_at(scores)
    assert found["loss_named_at"][trained].tolist() == [20.0] * 20
    assert found["loss_itself_named_at"].isna().all()
    seen = scores.assign(
        score=scores["score"] + 1000 * scores["trained"]
    )  # before the training, where no look is judged
    assert named_at(seen)["loss_itself_named_at"][trained].tolist() == [10.0] * 20
    other = pd.concat([scores, scores.assign(detector="pia", score=-scores["score"])])
    assert list(named_at(other)) == ["loss_named_at", "loss_itself_named_at", "pia_named_at", "pia_itself_named_at"]
    assert named_at(other)["pia_named_at"].isna().all()


def test_an_alarm_is_a_p_value_at_or_below_the_level() -> None:
    estimate, named = Estimate(0.7, 0.6, 0.8), np.zeros(2, dtype=bool)
    assert [Look(estimate, p, 0.01, named).told_apart for p in (0.005, 0.01, 0.0101)] == [True, True, False]


def test_a_training_that_has_diverged_is_no_alarm() -> None:
    look = judge([1.0, np.nan, 3.0], [0.0, 0.0, 0.0], 1, 0.05, 0.1)
    assert (look.p_value, look.told_apart, look.named.sum()) == (1.0, False, 0)
    assert np.isnan(look.auroc.value)
