"""The first page in what a run can change: counts of claims and comparisons, the scale, and sentences on both."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from memlib.evaluation.intervals import Estimate
from memlib.files import read_json, write_json, write_pictures, write_table
from memlib.study import front
from memlib.study.criteria import read_claims

ROOT = Path(__file__).parents[1]


def budget_row(minus: tuple[float, float, float] | None, detector: str = "sima", **more: Any) -> dict[str, Any]:
    def estimate(values: tuple[float, float, float]) -> dict[str, float]:
        return dict(zip(("value", "low", "high"), values, strict=True))

    return {
        "family": "pixel U-Net",
        "items": "pictures",
        "contrast": "seen once against kept out",
        "budget": 4,
        "detector": detector,
        "positives": 96,
        "negatives": 95,
        "AUROC": estimate((0.8, 0.7, 0.9)),
        "baseline": estimate((0.7, 0.6, 0.8)),
        "minus baseline": None if minus is None else estimate(minus),
    } | more


BENCH = {
    "for_a_budget": [
        budget_row((0.1, 0.02, 0.2)),
        budget_row((-0.1, -0.2, -0.02)),
        budget_row((0.1, -0.1, 0.3)),
        budget_row((0, 0, 0), "loss"),
        budget_row(None),
    ]
}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.chdir(ROOT)
    return read_json("metrics/claims.json")


def test_the_answer_counts_what_is_left_of_the_papers_claims_after_correction(rows: list[dict[str, Any]]) -> None:
    claims = read_claims()
    papers = [row for row in rows if claims[row["id"]].paper]
    stated = [row for row in papers if not claims[row["id"]].variant]
    for row in papers:
        row["holm_verdict"] = "inconclusive" if row in stated else "reproduced"
    for row, left in zip(stated, ("reproduced", "reproduced", "not reproduced", "underpowered"), strict=False):
        row["holm_verdict"] = left
    said = front.answer(rows, BENCH)
    assert f"Of {len(stated)} claims as the papers state them, 2 hold here" in said
    assert f"1 fail, and {len(stated) - 3} stay undecided" in said
    variants = len(papers) - len(stated)
    assert f"of {variants} variants asked here, {variants} hold" in said
    assert "in 1 of 4 comparisons" in said, (
        "where the plain one is chosen it is not beaten; where it costs more, no one asks"
    )
    stated[2]["holm_verdict"] = "inconclusive"
    assert ", none fail, and " in front.answer(rows, BENCH)
    stated[0]["verdict"] = "open"
    assert f"Of {len(stated) - 1} claims as the papers state them, 1 hold here" in front.answer(rows, BENCH)


def test_the_figure_says_what_it_shows() -> None:
    shown = front.figure(BENCH)
    assert shown.startswith("```{figure} _static/bench.png")
    assert "in 1 of 4 comparisons: SimA at a budget of 4" in shown
    assert "It is worse in 1, and is the plain one itself in 1;" in shown


def test_uses_say_what_they_reached(rows: list[dict[str, Any]]) -> None:
    found = {row["id"]: Estimate(row["value"], *row["ci95"]) for row in rows}
    said = front.uses(rows)
    assert f"it found {found['audit.finds_planted_pictures']:+} of the pictures that were seen ten times" in said
    assert f"and {found['audit.finds_memorised_prompts']:+} of the planted prompts" in said
    assert "both less what it finds in the control" in said
    assert f"it stopped {found['guard.first_step_stops_copies']} of the copies" in said
    assert f"it named {found['monitor.named_before_copied']} of the pictures" in said
    rates = [row for row in rows if row["id"] in ("audit.finds_memorised_prompts", "guard.first_step_stops_copies")]
    assert said.count("(too few to rely on)") == sum(row["ci95"][1] < 0.5 for row in rates)
    assert "{" not in said.replace("{doc}", "")
    (guard,) = (row for row in rows if row["id"] == "guard.first_step_stops_copies")
    guard["verdict"] = "open"
    assert "false alarms, not judged in this study." in front.uses(rows)


def test_each_finding_leads_to_the_page_that_shows_it(rows: list[dict[str, Any]]) -> None:
    bench = {"answers": [budget_row((0.1, 0.02, 0.2))], "second_model": []}
    said = front.findings(rows, bench)
    assert len(said) == 1 + len(front.PICKED)
    assert said[0].endswith("({doc}`chapters/bench`)")
    assert "0.800 [0.700, 0.900]" in said[0]
    claims = read_claims()
    for name, sentence in zip(front.PICKED, said[1:], strict=True):
        assert sentence.startswith(f"**{claims[name].claim}**")
        assert sentence.endswith(f"({{doc}}`{claims[name].page.removesuffix('.ipynb')}`)")
    assert len(front.findings(rows, read_json("metrics/bench.json"))) == 4 + len(front.PICKED)
    (row,) = (row for row in rows if row["id"] == front.PICKED[0])
    left_open = {"id": row["id"], "verdict": "open", "reason": "the tables hold too little"}
    others = front.findings([left_open if each is row else each for each in rows], bench)
    assert others == [said[0], *said[2:]], "what is not judged is not found"


def test_the_scale_is_that_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json("tables/training/main/model.json", {"parameters": 898_627})
    write_json("tables/text_base/model.json", {"parameters": {"unet": 1_200_000, "vae": 300_000}})
    write_table("tables/data/items.parquet", pd.DataFrame({"split": ["train"] * 1234 + ["heldout"]}))
    groups = pd.DataFrame({"split": ["train", "train", "unseen"], "drawings": [6000, 720, 99]})
    write_table("tables/drawings/groups.parquet", groups)
    for name, size in (("data", 16), ("drawings", 32)):
        write_pictures(f"tables/{name}/pictures.png", torch.zeros(3, 3, size, size, dtype=torch.uint8))
    said = (
        "**Scale**: image models of 0.9 million parameters, trained on 1,234 pictures of 16 x 16 pixels; text-to-image models "
        "of 1.5 million, trained on 6,720 captioned drawings of 32 x 32"
    )
    assert front.scale() == f"{said}."
    machine = {"cores": 2, "gpus": []}
    seconds = {"train@main": 1.0, "pair@a": 2.0, "pair@b": 3.0, "truth@main": 4.0}
    measured = {"seconds": seconds, "wall_seconds": None, "total_seconds": 600.0, "machine": machine}
    write_json("metrics/study.json", measured)
    assert front.scale() == f"{said}; 3 trainings, 10 minutes on 2 cores."
    write_json("metrics/study.json", measured | {"wall_seconds": 120.0, "machine": machine | {"gpus": ["a GPU"]}})
    assert front.scale() == f"{said}; 3 trainings, 2 minutes on a GPU."


def test_every_stage_that_trains_is_counted() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    commands = {name: (stage.get("do", stage))["cmd"] for name, stage in stages.items()}
    train = {name for name, command in commands.items() if "memlib.study.train_" in command or "fine_tuning" in command}
    assert set(front.TRAININGS) == train - {"judge"}, "but the judge, which generates nothing"
