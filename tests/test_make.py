"""The programs that make pictures, drawings and modified training sets: what they write, and that they write it again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import subjects
from PIL import Image

from memlib.datasets import images
from memlib.datasets.judged import judged_prompts
from memlib.files import read_json, read_pictures, write_table
from memlib.study import make_data, make_drawings, make_sets


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """30 random colour pictures with captions, in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"thing{chr(97 + i // 26)}{chr(97 + i % 26)}")
    return str(folder)


def bytes_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def as_shown(pictures: torch.Tensor) -> np.ndarray:
    return pictures.permute(0, 2, 3, 1).numpy()


def test_data_writes_the_image_set_and_what_a_chapter_shows(folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = {
        "name": "folder",
        "root": folder,
        "size": 8,
        "min_distance": 0.2,
        "splits": {"train": 8, "heldout": 6, "reference": 5, "pairs": 4},
        "copies": {"train": {4: 2}, "reference": {}},
        "seed": 0,
    }
    make_data.make_data(**section)
    image_set = images.load("results/data")
    items = pd.read_parquet("tables/data/items.parquet")
    assert items.equals(image_set.items)
    assert list(items.columns) == ["id", "name", "caption", "split", "copies"]
    shown = items["split"] != "reference"
    assert (read_pictures("tables/data/pictures.png") == as_shown(image_set.images[shown.tolist()])).all()
    summary = {"name": "folder", "pictures": 30, "distinct": 30, "size": 8}
    assert read_json("tables/data/summary.json") == summary
    first = bytes_of("tables/data")
    make_data.make_data(**section)
    assert bytes_of("tables/data") == first


def test_drawings_write_prompts_pictures_and_what_a_chapter_shows(folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    section = {
        "name": "folder",
        "root": folder,
        "size": 8,
        "min_distance": 0.2,
        "subjects": {"train": 8, "planted": 6},
        "copies": {4: 4},
        "triggers": {4: 2},
        "drawings_each": 1,
        "never_seen": 6,
        "free_each": 2,
        "followed": {"ordinary": 2, "unseen": 1},
        "prompts": {"ordinary": 4, "unseen": 3},
        "pictures": {"ordinary": 3, "unseen": 2},
        "further": {"ordinary": 5, "shorter": 3},
        "seed": 0,
    }
    make_drawings.make_drawings(**section)
    chosen, drawn, judged = (images.load(f"results/drawings/{name}") for name in ("subjects", "drawn", "judged"))
    prompts = pd.read_parquet("tables/drawings/prompts.parquet")
    assert prompts.equals(judged_prompts(chosen, drawn, 4, 3, 0))
    followed = pd.read_parquet("tables/drawings/followed.parquet")
    assert followed["group"].value_counts().to_dict() == {"planted": 6, "trigger": 2, "ordinary": 2, "unseen": 1}
    assert followed.equals(prompts[prompts["id"].isin(followed["id"])].reset_index(drop=True))
    assert judged.items["group"].value_counts().to_dict() == {
        "most copied": 3,
        "copied less": 1,
        "drawn freely": 4,
        "ordinary": 3,
        "unseen": 2,
    }
    shown = pd.read_parquet("tables/drawings/shown.parquet")
    pictures = read_pictures("tables/drawings/pictures.png")
    assert (pictures == as_shown(drawn.images[shown["row"].tolist()])).all()
    assert shown["row"].is_unique
    same = drawn.items.iloc[shown["row"]].reset_index(drop=True)
    columns = ["subject", "split", "slot", "copies", "trigger", "caption"]
    assert shown[columns].equals(same[columns])
    assert shown["split"].tolist()[:40] == ["train"] * 40, "ten drawings of four ordinary subjects first"
    assert shown["subject"][:40].nunique() == 4
    assert set(prompts["drawing"]) <= set(shown["row"])
    most = drawn.items.index[drawn.items["split"].isin(["planted", "trigger"])]
    assert set(most) <= set(shown["row"])
    groups = pd.read_parquet("tables/drawings/groups.parquet").set_index(["split", "copies"])
    assert groups.loc[("planted", 4)].tolist() == [4, 4]
    assert groups.loc[("train", 1)].tolist() == [80, 8]
    assert pd.read_parquet("tables/drawings/judged.parquet").equals(judged.items)
    summary = read_json("tables/drawings/summary.json")
    assert (summary["pictures"], summary["to_choose_from"]) == (30, 30)
    assert summary["words"] == len({word for caption in drawn.items["caption"] for word in caption.split()})
    further = pd.read_parquet("tables/drawings/further.parquet")
    assert further["group"].tolist() == ["ordinary"] * 5 + ["shorter"] * 3
    named = drawn.items.drop_duplicates("caption").set_index("caption")
    assert named.loc[further["prompt"], "split"].eq("train").all()
    assert named.loc[further["prompt"], "named"].str.split().str.len().tolist() == [2] * 5 + [1] * 3
    assert not further["prompt"].isin(prompts["prompt"]).any(), "none that detectors are judged by"
    assert further["prompt"].is_unique
    assert (further["id"] == further["prompt"]).all()
    first = bytes_of("tables/drawings")
    make_drawings.make_drawings(**section)
    assert bytes_of("tables/drawings") == first


def write_scores(table: str, score: pd.Series, settings: tuple[str, ...] = ("steps=2",)) -> None:
    tables = [
        pd.DataFrame(
            {"item": score.index, "setting": s, "score": score.to_numpy("float32"), "evaluations": 2, "note": ""}
        )
        for s in settings
    ]
    write_table(f"tables/scores/{table}.parquet", pd.concat(tables).sort_values(["setting", "item"]))


def test_sets_take_the_pictures_of_the_largest_scores(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = subjects(6, 4)
    copies = {0: [3, 1, 1, 3, 1, 5, 1, 1, 0, 0], 1: [0, 0, 1, 1, 3, 1, 1, 5, 1, 1]}
    for roles, planted in copies.items():
        split = ["train" if k else "heldout" for k in planted]
        items = found.items.assign(split=split, copies=planted)
        images.save(images.ImageSet(found.images, items), f"results/pairs/{roles}")
    score = pd.Series(0.0, index=pd.Index(found.items["id"]).sort_values(ascending=False))
    for roles, (growth, loss) in {0: (("s2", "s4"), ("s0", "s7")), 1: (("s2", "s9"), ("s3", "s5"))}.items():
        held = 9 * score.index.isin(["s8", "s1" if roles else "s9"])
        write_scores(
            f"pair-{roles}/growth", score + score.index.isin(growth) + held, ("steps=2", "rate_at=0.1 steps=2")
        )
        write_scores(f"pair-{roles}/loss", score + score.index.isin(loss))
    held_out = {0: ["s8", "s9"], 1: ["s0", "s1"]}
    wanted = ["growth-drop-0", "loss-drop-1", "oracle-mask-0", "random1-drop-0", "random2-drop-0", "random1-drop-1"]
    parts = {name: name.split("-") for name in wanted}
    arms = {name: {"choice": choice, "how": how, "roles": int(roles)} for name, (choice, how, roles) in parts.items()}
    make_sets.make_sets(arms, modified=2, seed=3)
    chosen = pd.read_parquet("tables/sets/chosen.parquet").groupby(["training", "choice"])["item"].agg(list)
    assert chosen["pair-0", "growth"] == ["s2", "s4"], "held-out pictures are not the auditor's to modify"
    assert chosen["pair-1", "loss"] == ["s3", "s5"]
    assert chosen["pair-0", "oracle"] == ["s0", "s5"]
    drawn = [chosen["pair-0", "random1"], chosen["pair-0", "random2"], chosen["pair-1", "random1"]]
    assert len({tuple(items) for items in drawn}) == 3, "a draw of its own each"
    for (training, _), items in chosen.items():
        assert len(items) == 2
        assert not set(items) & set(held_out[int(training[-1])])
    dropped = images.load("results/sets/growth-drop-0").items.set_index("id")["copies"]
    assert dropped.to_dict() == {"s0": 3, "s1": 1, "s2": 1, "s3": 3, "s4": 1, "s5": 5, "s6": 1, "s7": 1}
    pictures = read_pictures("tables/sets/pictures.png")
    first = images.load("results/pairs/0").split("train")
    kept = as_shown(first.images)[[1, 2, 3, 4, 6, 7]]
    for sheet in np.split(pictures, 2):
        assert len(sheet) == 6 + 3 + 5
        assert (sheet[:6] == kept).all()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    make_sets.make_sets(arms, modified=2, seed=3)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    write_scores("pair-1/loss", score, ("steps=2", "steps=4"))
    with pytest.raises(
        ValueError,
        match=r"pair-1/loss.parquet has 2 settings with .*; one is needed; known: steps=2, steps=4",
    ):
        make_sets.make_sets(arms, modified=2, seed=3)
