"""Choosing on one half and reporting on the other: nothing of the second half may reach the choice."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlib.evaluation import roc, split


@given(st.integers(0, 999), st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=60))
def test_a_split_parts_every_group_and_outcome_evenly(seed: int, items: list[tuple[int, bool]]) -> None:
    groups, outcomes = (np.array(column) for column in zip(*items, strict=True))
    first = split.stratified_split(groups, outcomes, seed)
    for group in range(3):
        for part in (groups == group, (groups == group) & outcomes, (groups == group) & ~outcomes, groups >= 0):
            assert abs(int((part & first).sum()) - int((part & ~first).sum())) <= 1
    assert (first == split.stratified_split(groups, outcomes, seed)).all()


def test_a_split_is_random() -> None:
    shares = np.mean([split.stratified_split(np.zeros(10), np.zeros(10), seed) for seed in range(400)], axis=0)
    assert np.abs(shares - 0.5).max() < 0.1


def scores_of(n: int = 80, settings: int = 30, seed: int = 0) -> tuple[pd.DataFrame, tuple[np.ndarray, np.ndarray]]:
    """Scores that say nothing, of items of which the first half are positive."""
    noise = np.random.default_rng(seed).normal(size=(n, settings))
    positive = np.arange(n) < n // 2
    return pd.DataFrame(noise, columns=[f"sigma={k}" for k in range(settings)]), (positive, ~positive)


def test_a_choice_among_scores_that_say_nothing_reports_chance() -> None:
    chosen, reported = [], []
    for seed in range(60):
        scores, contrast = scores_of(seed=seed)
        choice = split.choose(scores, contrast, split.stratified_split(contrast[0], np.zeros(80), seed))
        chosen.append(choice.chosen_by)
        reported.append(choice.reported.value)
    assert np.mean(chosen) > 0.65, "the best of thirty looks good on the half that chose it"
    assert abs(np.mean(reported) - 0.5) < 0.03


def test_the_best_setting_of_the_choosing_half_is_reported_on_the_other() -> None:
    scores, (positive, negative) = scores_of(settings=4)
    choosing = split.stratified_split(positive, np.zeros(80), 1)
    scores.loc[positive & choosing, "sigma=2"] += 2
    scores.loc[positive & ~choosing, "sigma=3"] += 9  # better, but on the reporting half alone
    choice = split.choose(scores, (positive, negative), choosing, seed=5)
    column = scores["sigma=2"]
    assert choice.setting == "sigma=2"
    assert choice.chosen_by == roc.auroc_value(column[positive & choosing], column[negative & choosing])
    assert choice.reported == roc.auroc(column[positive & ~choosing], column[negative & ~choosing], 5)
    other = split.choose(scores[["sigma=3"]], (positive, negative), choosing, seed=5)
    assert split.choice_difference(other, choice, 7) == roc.auroc_difference(
        *((scores["sigma=3"][group & ~choosing], column[group & ~choosing]) for group in (positive, negative)), 7
    )


def test_every_kind_has_a_choice_of_its_own() -> None:
    scores, contrast = scores_of(settings=6)
    choosing = split.stratified_split(contrast[0], np.zeros(80), 1)
    kinds = [("flux", 2), "loss", ("flux", 2), "loss", ("flux", 4), "loss"]
    found = split.choose_each(scores, kinds, contrast, choosing, 3)
    assert list(found) == [("flux", 2), "loss", ("flux", 4)]
    for kind, choice in found.items():
        own = scores[[name for name, k in zip(scores, kinds, strict=True) if k == kind]]
        assert choice.setting == split.choose(own, contrast, choosing, 3).setting
    both = pd.concat({"flux": scores, "loss": scores + 1}, axis=1)
    assert split.choose_each(both, both.columns.get_level_values(0), contrast, choosing)["loss"].setting[0] == "loss"
    with pytest.raises(ValueError, match="there are 6 settings and 5 kinds"):
        split.choose_each(scores, kinds[1:], contrast, choosing)


def test_a_choice_that_cannot_be_made_is_refused() -> None:
    scores, (positive, negative) = scores_of(settings=2)
    with pytest.raises(ValueError, match="no setting to choose from"):
        split.choose(scores[[]], (positive, negative), positive)
    with pytest.raises(ValueError, match="the negative group has 0 items"):
        split.choose(scores, (positive, negative), positive)


def test_a_contrast_is_usable_where_both_halves_hold_two_of_either_group() -> None:
    choosing = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    full = np.array([1, 1, 0, 0, 1, 1, 0, 0], dtype=bool)
    few = np.array([1, 1, 0, 0, 1, 0, 0, 0], dtype=bool)
    contrasts = {"good": (full, ~full), "few": (few, ~full), "other side": (full, ~full & choosing)}
    assert list(split.usable(contrasts, choosing)) == ["good"]


def test_each_detector_is_compared_with_itself_without_the_prompt() -> None:
    scores, contrast = scores_of(settings=8)
    settings = [("loss", prompt, sigma) for prompt in (True, False) for sigma in (1.0, 2.0)]
    settings += [("flux", prompt, sigma) for prompt in (False, True) for sigma in (1.0, 2.0)]
    scores.columns = pd.MultiIndex.from_tuples([(name, f"prompt={p} sigma={s}") for name, p, s in settings])
    about = pd.DataFrame({"prompt": [p for _, p, _ in settings], "sigma": [s for *_, s in settings]}, scores.columns)
    about["prompt"] = about["prompt"].astype(object)  # as a table of many detectors has it
    choosing = split.stratified_split(contrast[0], np.zeros(80), 1)
    scores.loc[contrast[0], ("loss", "prompt=True sigma=2.0")] += 2
    scores.loc[contrast[0], ("loss", "prompt=False sigma=1.0")] += 1
    table = split.with_and_without_prompt(scores, about, {"a against b": contrast}, choosing, seed=3)
    assert table[["contrast", "detector"]].to_numpy().tolist() == [["a against b", "loss"], ["a against b", "flux"]]
    loss = table.iloc[0]
    assert (loss["sigma with"], loss["sigma without"]) == (2, 1)
    prompted, bare = (scores["loss", name] for name in ("prompt=True sigma=2.0", "prompt=False sigma=1.0"))
    sides = [group & ~choosing for group in contrast]
    assert loss["with"] == roc.auroc(*(prompted[side] for side in sides), 3)
    assert loss["without"] == roc.auroc(*(bare[side] for side in sides), 3)
    assert loss["with minus without"] == roc.auroc_difference(*((prompted[side], bare[side]) for side in sides), 3)
    assert table.iloc[1]["with"] == split.choose(scores.iloc[:, 6:], contrast, choosing, 3).reported
