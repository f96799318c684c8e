"""`memlib bench` on a small study of its own: the table, the CSV, and a user's detector beside the others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import scheduler, small_unet
from diffusers import DDPMPipeline
from test_candidate import FILE

from memlib import candidate, cli
from memlib.bench import cases, entries, evaluations_made
from memlib.datasets import images
from memlib.files import read_json
from memlib.study.score import score_tables

TABLES = {
    "loss": {"detector": "loss", "settings": [{"each": {"sigma": [0.2, 0.5]}, "draws": [1, 2]}], "seed": 25},
    "length": {"detector": "length", "settings": [{"sigma": 0.2}], "seed": 25},
    "sima": {"detector": "sima", "settings": [{"sigma": 0.2, "power": [2, 4]}], "seed": 25},
    "png_size": {"detector": "png_size", "settings": [{}], "seed": 25},
}
ENTRY = {
    "model": "results/models/main",
    "items": {"source": "results/data", "splits": ["train", "heldout"]},
    "tables": TABLES,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, forty pictures, their truth and the scores of an entry of the bench."""
    root = tmp_path_factory.mktemp("study")
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    ids = [f"p{i:02}" for i in range(40)]
    items = pd.DataFrame({"id": ids, "name": ids, "caption": "", "split": ["train", "heldout"] * 20})
    items["copies"] = (items["split"] == "train").astype(int)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        images.save(images.ImageSet(pictures, items), "results/data")
        DDPMPipeline(small_unet(), scheduler()).save_pretrained("results/models/main")
        Path("tables/truth/main").mkdir(parents=True)
        truth = items[["id", "copies"]].assign(reproduced=np.arange(40) % 8 == 0)
        truth.to_parquet("tables/truth/main/pictures.parquet")
        parameters = {
            "scores": {"bench-main": ENTRY},
            "run": {"text_arms": {}, "flow_arms": {}},
            "arm": {"guidance": 3.0, "sampling_steps": 25},
        }
        Path("params.yaml").write_text(yaml.safe_dump(parameters))
        score_tables("bench-main", **ENTRY)
    return root


@pytest.fixture
def here(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study)
    return study


def test_the_tables_become_cases(here: Path) -> None:
    found = {case.contrast: case for case in cases(0)}
    assert set(found) == {"seen once against kept out", "reproduced or not, x1"} - (
        {"reproduced or not, x1"} - set(found)
    )
    case = found["seen once against kept out"]
    assert (case.family, case.kind, case.items) == ("pixel U-Net", "membership", "pictures")
    assert len(case.rows) == 40
    assert case.rows["positive"].sum() == 20
    by_item = case.scores["length", "sigma=0.2"].set_axis(case.rows["item"])
    table = pd.read_parquet("tables/scores/bench-main/length.parquet").set_index("item")["score"]
    pd.testing.assert_series_equal(by_item.sort_index(), table.sort_index(), check_names=False)


def test_what_was_really_computed_stands_beside_the_tables(here: Path) -> None:
    made = evaluations_made(entries())
    assert made.loc[0, ["items", "by rows", "by runs", "made"]].tolist() == [40, 40 * 9, 40 * 6, 40 * 5]
    costs = read_json("results/costs/bench-main.json")
    assert {name: cost["evaluations"] for name, cost in costs.items()} == {
        "loss": 160,
        "length": 40,
        "sima": 0,
        "png_size": 0,
    }
    assert all(cost["seconds"] > 0 for cost in costs.values())


def test_the_bench_is_printed_and_written(here: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["bench", "--seed", "0", "--output", "rows.csv"])
    text = capsys.readouterr().out
    rows = pd.read_csv("rows.csv")
    assert {"loss", "length", "sima", "png_size"} <= set(rows["detector"])
    for detector in rows["detector"]:
        assert detector in text
    assert rows["seconds"].notna().all()
    cli.main(["bench", "--contrast", "membership", "--budget", "1", "--output", "rows.csv"])
    assert set(pd.read_csv("rows.csv")["evaluations"]) == {0, 1}
    with pytest.raises(SystemExit, match="memlib bench: there is no family 'latent'; known: pixel U-Net"):
        cli.main(["bench", "--family", "latent"])
    with pytest.raises(SystemExit, match="--budget is -1; it must be at least 0"):
        cli.main(["bench", "--budget", "-1"])


def test_a_detector_of_ones_own_stands_beside_the_others(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("mine.py").write_text(FILE.format(name="mine"))
    cli.main(["bench", "--contrast", "membership", "--seed", "0", "--with", "mine.py", "--output", "rows.csv"])
    text = capsys.readouterr().out
    assert "mine: scored in at most 90 s; the others are read from tables." in text
    assert "main: 40 items" in text
    rows = pd.read_csv("rows.csv").set_index("detector")
    same = rows.loc[["mine", "length"], ["AUROC", "AUROC low", "minus loss", "evaluations", "FPR reached"]]
    assert same.iloc[0].equals(same.iloc[1]), "it is the length"
    cli.main(["bench", "--contrast", "membership", "--with", "mine.py", "--seconds", "0", "--output", "rows.csv"])
    assert "main: 40 items" in capsys.readouterr().out, "a call of the network takes more"
    Path("mine.py").write_text(FILE.format(name="mine").replace('"picture"', '"prompt"'))
    with pytest.raises(
        SystemExit, match="memlib bench: the detector mine needs prompts: .* nothing of the kind is given"
    ):
        cli.main(["bench", "--with", "mine.py"])


def test_a_model_that_is_not_there_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(FILE.format(name="mine"))
    Path("results/models/main").rename("results/models/gone")
    try:
        with pytest.raises(
            SystemExit, match="there is no model results/models/main, which main stands for; `make study`"
        ):
            cli.main(["bench", "--with", "mine.py"])
    finally:
        Path("results/models/gone").rename("results/models/main")


def test_a_further_model_that_a_detector_fails_on_is_told_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.py").write_text(FILE.format(name="mine"))
    detectors, known, asked = candidate.read_candidates(Path("mine.py")), entries(), []

    def fails_the_second_time(*given: object) -> float:
        asked.append(given)
        if len(asked) > 1:
            raise ValueError("mine gave nan")
        return 0.01

    monkeypatch.setattr(candidate, "check", fails_the_second_time)
    found, told = candidate.score_candidates(detectors, known | {"again": known["main"]}, 60)
    assert list(found) == ["main"]
    assert told[1] == "again: not scored; mine gave nan"
    with pytest.raises(ValueError, match="mine gave nan"):
        candidate.score_candidates(detectors, known, 60)
