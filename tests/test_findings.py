"""Sentences of the first page: each says what its numbers say, whichever way they fall."""

import re
from itertools import product
from typing import Any

import pytest

from memlib.evaluation.bench import ADAPTIVE, BASELINES, LEARNED, RANKS
from memlib.study.findings import PLAIN, TOGETHER, answers, findings, page

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
    control = {"intervals": 40, "hold one half": 37}
    return {"for_a_budget": [row()], "combined": [], "upper": [], "blind": [], "control": control} | more


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
        "**Pixel U-Net, pictures** (reproduced or not, x16; 30 against 60): for at most 4 network evaluations `sima` reaches an "
        "AUROC of 0.800 [0.712, 0.900], the plain loss 0.750 [0.650, 0.850]; difference "
        f"{minus[0]:.3f} [{minus[1]:.3f}, {minus[2]:.3f}]: {ending}"
    )
    assert "hold 0.5 in 37 of 40 cases" in control
    counts = [int(minus is each) for each in (AHEAD, BEHIND, NEITHER)]
    assert [int(n) for n in re.findall(r"(?:ahead .*? in|behind in|neither in) (\d+)", over_all)] == counts


def test_the_plain_loss_may_be_what_is_chosen_or_too_dear() -> None:
    same, over_all, _ = findings(found(for_a_budget=[row("loss", minus=(0, 0, 0))]))
    assert "nothing is better on the first half than the plain loss itself, which reaches an AUROC of 0.800" in same
    assert "in 0 cases, behind in 0, and neither in 0; in 1 the plain one itself is chosen." in over_all
    dear, over_all, _ = findings(found(for_a_budget=[row("one_step", items="prompts", minus=None)]))
    assert dear.endswith("`one_step` reaches an AUROC of 0.800 [0.712, 0.900]; the text magnitude costs more.")
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
        "reach AUROCs of 0.300 to 0.600 on the same questions; 1 of 3 intervals hold 0.5; not those of `variation` (pixel "
        "U-Net, pictures) and `flat_share`" in told[4]
    )
    (told,) = findings(found(blind=blind[:1]))[2:3]
    assert told.endswith("1 of 1 intervals hold 0.5, as they should.")
    assert page(found()).count("\n- ") == 2
    assert set(TOGETHER) == {RANKS, ADAPTIVE, LEARNED}
    assert set(PLAIN) == set(BASELINES)


@pytest.mark.parametrize(
    ("minus", "ending"),
    [
        (AHEAD, "0.100 [0.020, 0.180]: the detector is ahead."),
        (BEHIND, "-0.100 [-0.180, -0.020]: the detector is behind."),
        (NEITHER, "0.050 [-0.030, 0.130]: the interval contains 0, so neither is ahead."),
    ],
)
def test_an_answer_names_the_best_of_a_budget_and_the_plain_baseline(minus: tuple, ending: str) -> None:
    first, second = answers([row("length", minus=minus)] * 2)
    assert first == (
        "**Pictures, at most 4 network evaluations. Which pictures does the model reproduce?** On one half of the items the "
        "length of the prediction (`length`) is best: AUROC **0.800 [0.712, 0.900]** on the other (0.5 is a coin toss), n: 30 "
        f"against 60; the plain loss reaches 0.750 [0.650, 0.850]; paired difference {ending}"
    )
    assert second == first.replace(" (0.5 is a coin toss)", "")


def test_an_answer_says_where_the_plain_baseline_is_best_and_where_it_is_too_dear() -> None:
    rows = [
        row("magnitude", 2, "prompts", contrast="x4 against kept out"),
        row("one_step", items="prompts", minus=None),
    ]
    same, dear = answers(rows)
    assert same.startswith(
        "**Prompts, at most 2 network evaluations. x4 against kept out?** On one half of the items nothing"
    )
    assert "is better than the text magnitude itself (`magnitude`): AUROC **0.800" in same
    assert "difference" not in same
    assert dear.endswith("n: 30 against 60; the text magnitude costs more.")
