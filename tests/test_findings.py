"""Sentences of the first page: each says what its numbers say, whichever way they fall."""

import re
from itertools import product
from typing import Any

import pytest

from memlib.evaluation.bench import ADAPTIVE, BASELINES, LEARNED, RANKS
from memlib.study.findings import (
    PLAIN,
    TOGETHER,
    answers,
    counted,
    counts,
    findings,
    in_short,
    other_trainings,
    page,
    wins,
)

AHEAD, BEHIND, NEITHER = (0.1, 0.02, 0.18), (-0.1, -0.18, -0.02), (0.05, -0.03, 0.13)


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def row(detector: str = "sima", budget: float = 4, items: str = "pictures", minus: Any = NEITHER, **more: Any) -> dict:
    return {
        "family": "pixel U-Net",
        "items": items,
        "contrast": "reproduced or not, x16",
        "budget": budget,
        "detector": detector,
        "positives": 30,
        "negatives": 60,
        "AUROC": estimate(0.8, 0.7123, 0.9),
        "baseline": None if minus is None else estimate(0.75, 0.65, 0.85),
        "minus baseline": None if minus is None else estimate(*minus),
    } | more


def found(**more: Any) -> dict[str, Any]:
    control = [{"family": "pixel U-Net", "items": "pictures", "intervals": 40, "hold one half": 37}]
    return {"for_a_budget": [row()], "combined": [], "upper": [], "blind": [], "control_groups": control} | more


@pytest.mark.parametrize(
    ("minus", "ending"),
    [
        (AHEAD, "the detector is ahead."),
        (BEHIND, "the detector is behind."),
        (NEITHER, "the interval contains 0, so neither is ahead."),
    ],
)
def test_a_family_is_compared_with_the_plain_loss_as_the_interval_says(minus: tuple, ending: str) -> None:
    first, over_all, control = findings(found(for_a_budget=[row(minus=minus)]))
    assert first == (
        "**Pixel U-Net. Which pictures does the model reproduce?** n: 30 against 60. For at most 4 network evaluations SimA "
        "reaches an AUROC of 0.800 [0.712, 0.900], the plain loss 0.750 [0.650, 0.850]; difference "
        f"{minus[0]:+.3f} [{minus[1]:+.3f}, {minus[2]:+.3f}]: {ending}"
    )
    assert "hold 0.5 in 37 of 40 (pixel U-Net, pictures) cases" in control
    counts = [int(minus is each) for each in (AHEAD, BEHIND, NEITHER)]
    assert [int(n) for n in re.findall(r"(?:ahead .*? in|behind in|neither in) (\d+)", over_all)] == counts


def test_the_plain_loss_may_be_what_is_chosen_or_too_dear() -> None:
    same, over_all, _ = findings(found(for_a_budget=[row("loss", minus=(0, 0, 0))]))
    assert "nothing is better on the first half than the plain loss itself, which reaches an AUROC of 0.800" in same
    assert "in 0 cases, behind in 0, and neither in 0; in 1 the plain one itself is chosen." in over_all
    dear, over_all, _ = findings(found(for_a_budget=[row("one_step", items="prompts", minus=None)]))
    assert dear.endswith(
        "the likeness after one step reaches an AUROC of 0.800 [0.712, 0.900]; the text magnitude costs more."
    )
    assert "in 0 cases, behind in 0, and neither in 0; in 0 the plain" in over_all


def test_all_budgets_are_counted_and_a_small_one_is_told() -> None:
    rows = [row(budget=budget, minus=minus) for budget, minus in product((1, 4, 64), (AHEAD,))]
    rows += [row(budget=16, minus=BEHIND, items="prompts"), row(budget=64, minus=NEITHER, items="prompts")]
    pictures, prompts, over_all, _ = findings(found(for_a_budget=rows))
    assert "at most 4 network" in pictures
    assert "at most 16 network" in prompts, "there is none as small"
    assert "budgets of 1, 4, 16 and 64 evaluations" in over_all
    assert "in 3 cases, behind in 1, and neither in 1; in 0" in over_all


def test_the_other_sentences_count_what_they_say() -> None:
    together = [{"detector": RANKS, "minus best part": estimate(*minus)} for minus in (AHEAD, AHEAD, BEHIND)]
    together += [{"detector": ADAPTIVE, "minus best part": estimate(*NEITHER)}]
    blind = [row("png_size", AUROC=estimate(0.52, 0.4, 0.64)), row("variation", AUROC=estimate(0.6, 0.51, 0.7))]
    blind += [row("flat_share", AUROC=estimate(0.3, 0.2, 0.49))]
    upper = [row("nearest_training", AUROC=estimate(0.9, 0.8, 0.95), family="latent U-Net")]
    told = findings(found(combined=together, blind=blind, upper=upper))
    assert told[2].endswith("reaches 0.900 [0.800, 0.950] (latent U-Net) on prompts.")
    assert told[3].endswith(
        "the mean of all detectors' ranks is ahead in 2 of 3 questions and behind in 1 and AdaDetect is ahead in 0 of 1 "
        "questions and behind in 0."
    )
    assert (
        "reach AUROCs of 0.300 to 0.600 on the same questions; 1 of 3 intervals hold 0.5; not those of total variation (pixel "
        "U-Net, pictures) and share of one colour" in told[4]
    )
    (told,) = findings(found(blind=blind[:1]))[2:3]
    assert told.endswith("1 of 1 intervals hold 0.5, as they should.")
    assert page(found()).count("\n- ") == 2
    assert set(TOGETHER) == {RANKS, ADAPTIVE, LEARNED}
    assert set(PLAIN) == set(BASELINES)


@pytest.mark.parametrize(
    ("minus", "ending"),
    [
        (AHEAD, "+0.100 [+0.020, +0.180]: the detector is ahead."),
        (BEHIND, "-0.100 [-0.180, -0.020]: the detector is behind."),
        (NEITHER, "+0.050 [-0.030, +0.130]: the interval contains 0, so neither is ahead."),
    ],
)
def test_an_answer_names_the_best_of_a_budget_and_the_plain_baseline(minus: tuple, ending: str) -> None:
    first, second = answers([row("length", minus=minus)] * 2)
    assert first == (
        "**Pictures, at most 4 network evaluations. Which pictures does the model reproduce?** On one half of the items the "
        "length of the prediction (`length`: how short the predicted noise is for the picture itself, without noise added) is "
        "best: AUROC **0.800 [0.712, 0.900]** on the other (0.5 is a coin toss), n: 30 "
        f"against 60; the plain loss reaches 0.750 [0.650, 0.850]; paired difference {ending}"
    )
    assert second == first.replace(" (0.5 is a coin toss)", "")


def test_an_answer_in_short_has_the_same_numbers() -> None:
    rows = [row("length", minus=AHEAD), row("loss"), row("one_step", 2, "prompts", minus=None)]
    low = row("length", AUROC=estimate(0.6, 0.4, 0.9))
    ahead, same, dear, chance = in_short([*rows, low])
    begun = "**Which pictures does the model reproduce?** At 4 evaluations: "
    reached = "AUROC **0.800 [0.712, 0.900]** (n = 30 + 60)"
    assert ahead == (
        f"{begun}the length of the prediction, {reached}; the plain loss 0.750 [0.650, 0.850], difference +0.100 "
        "[+0.020, +0.180]."
    )
    assert same == f"{begun}nothing better than the plain loss itself, {reached}."
    assert dear.endswith(f"{reached}; the text magnitude costs more.")
    assert "AUROC **0.600 [0.400, 0.900]** (n = 30 + 60), perhaps chance;" in chance
    second = [row("calibrated_loss", minus=each, evaluations=8) for each in (AHEAD, NEITHER)]
    *_, added = in_short(rows, second)
    asked = "(calibrated loss, 8 evaluations: *Which pictures does the model reproduce?*)"
    assert added == (f"A second model adds +0.100 [+0.020, +0.180] {asked}; +0.050 [-0.030, +0.130] {asked} in AUROC.")


def test_an_answer_says_where_the_plain_baseline_is_best_and_where_it_is_too_dear() -> None:
    rows = [
        row("magnitude", 2, "prompts", contrast="x4 against kept out"),
        row("one_step", items="prompts", minus=None),
    ]
    same, dear = answers(rows)
    assert same.startswith(
        "**Prompts, at most 2 network evaluations. x4 against kept out?** On one half of the items nothing"
    )
    assert "is better than the text magnitude itself: AUROC **0.800" in same
    assert "difference" not in same
    assert dear.endswith("n: 30 against 60; the text magnitude costs more.")


def test_a_second_model_adds_a_sentence_that_the_interval_decides() -> None:
    second = [row("calibrated_loss", minus=minus, training="short", evaluations=8) for minus in (AHEAD, NEITHER)]
    assert answers([row()]) == answers([row()], second)[:1]
    said = answers([row()], second)[1]
    assert said.startswith("**With a second model, trained without these pictures.** *Which pictures does")
    assert said.count("The calibrated loss (8 evaluations) reaches AUROC **0.800 [0.712, 0.900]**") == 2
    assert "+0.100 [+0.020, +0.180]: the detector is ahead." in said
    assert said.endswith("+0.050 [-0.030, +0.130]: the interval contains 0, so neither is ahead.")
    begun = answers([row()], [each | {"training": "9 steps from the reference"} for each in second])[1]
    assert begun == f"{said} It is the model that these trainings began from, which favours it."


def test_what_chance_could_have_given_is_said_to_be_no_more() -> None:
    for low, said in ((0.51, False), (0.5, True), (0.3, True)):
        (sentence,) = answers([row(AUROC=estimate(0.6, low, 0.9))])
        assert ("not shown to be above chance" in sentence) == said


def test_items_are_counted_once_more_as_different_ones_where_a_row_knows_them() -> None:
    assert counted(row()) == "30 against 60"
    assert counted(row(distinct=45, trainings=6)) == "30 against 60 (45 pictures in 6 trainings)"
    assert counted(row(items="prompts", distinct=9, trainings=1)) == "30 against 60 (9 prompts in 1 training)"


def test_wins_are_named_and_the_plain_baseline_never_wins_over_itself() -> None:
    rows = [row(minus=minus) for minus in (AHEAD, BEHIND, NEITHER)]
    rows += [row("loss", minus=AHEAD), row("one_step", minus=None), row(budget=16, minus=AHEAD, family="other")]
    where = "Which pictures does the model reproduce?"
    difference = "difference +0.100 [+0.020, +0.180]"
    assert wins(rows) == [
        f"SimA at a budget of 4 ({where} pixel U-Net, {difference})",
        f"SimA at a budget of 16 ({where} other, {difference})",
    ]
    assert counts(rows) == {"ahead": 2, "behind": 1, "neither": 1, "same": 1}
    assert not wins(rows[1:3])


def test_other_trainings_tell_where_they_differ() -> None:
    assert other_trainings([]) == ""
    calm = [row(minus=NEITHER, training="short", budget=budget) for budget in (1, 4)]
    said = other_trainings(calm)
    assert said.endswith("at the budgets of 1 and 4: ahead in 0 of 2 comparisons, behind in 0.")
    won = [row("length", minus=AHEAD, training="long", budget=budget) for budget in (1, 16)]
    lost = [row(minus=BEHIND, training="long", budget=4)]
    said = other_trainings(calm + won + lost)
    assert "ahead in 2 of 5 comparisons, behind in 1." in said
    assert (
        "Ahead at 1 and 16: pixel U-Net, long, *Which pictures does the model reproduce?* (at 1: length of the prediction, "
        in said
    )
    assert "Behind at 4: pixel U-Net, long," in said
    assert "short" not in said


@pytest.mark.parametrize("minus", [AHEAD, BEHIND, NEITHER, None])
def test_no_sentence_tells_the_difference_of_the_baseline_with_itself(minus: tuple | None) -> None:
    same = row("loss", minus=minus, training="long")
    for said in (*answers([same]), *findings(found(for_a_budget=[same]))[:1], other_trainings([same])):
        assert "difference" not in said


def test_the_control_is_counted_by_family() -> None:
    groups = [
        {"family": family, "items": "prompts", "intervals": 9, "hold one half": n} for n, family in enumerate("ab")
    ]
    assert (
        "hold 0.5 in 0 of 9 (a, prompts) and 1 of 9 (b, prompts) cases." in findings(found(control_groups=groups))[-1]
    )
