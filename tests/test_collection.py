"""Collections: every content once, what is left out is said, and parts are the items that a whole reading gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from memlib.datasets.collection import content_digests, picture_collection, prompt_collection
from memlib.datasets.images import ImageSet, save
from memlib.datasets.items import load_items
from memlib.tensors import item_seeds, to_uint8

SIZE = (3, 4, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "dbca":
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "b.txt").write_text("the second")
    return folder


def test_parts_of_a_folder_are_the_items_of_the_whole(folder: Path) -> None:
    found = picture_collection(folder, [], SIZE, 7)
    whole, _ = load_items(images=folder, size=SIZE, seed=7)
    whole = whole.rows(range(4))
    assert found.ids == whole.ids == ["a.png", "b.png", "c.png", "d.png"]
    part = found.read(["c.png", "b.png"])
    assert torch.equal(part.pictures, whole.pictures[[2, 1]])
    assert part.prompts == ["", "the second"]
    assert part.seeds == [whole.seeds[2], whole.seeds[1]]
    assert found.digests == content_digests(to_uint8(whole.pictures))
    (folder / "c.png").write_bytes(b"broken since")
    with pytest.raises(ValueError, match=r"c.png cannot be read as an image .*; it could be read when the work began"):
        found.read(["c.png"])


def test_what_cannot_be_scored_or_is_there_twice_is_noted(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "z.png")
    Image.open(folder / "a.png").save(folder / "y.bmp")
    (folder / "e.png").write_bytes(b"broken")
    found = picture_collection(folder, [], SIZE)
    assert found.ids == ["a.png", "b.png", "c.png", "d.png"]
    assert found.notes["z.png"] == found.notes["y.bmp"] == "the same as a.png, counted once"
    assert "cannot be read as an image" in found.notes["e.png"]
    with pytest.raises(ValueError, match="none of the pictures in .* can be scored"):
        picture_collection(folder, [], (3, 5, 5))


def test_an_image_set_gives_each_id_its_own_picture_and_caption(tmp_path: Path) -> None:
    """Ids are not in order, the splits are asked for in another one, and a picture is there twice."""
    ids = ["d", "b", "a", "c", "e"]
    levels = torch.tensor([3, 1, 0, 2, 0], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(5, *SIZE).clone()
    items = pd.DataFrame({"id": ids, "name": ids, "caption": [f"the {name}" for name in ids], "copies": 1})
    save(ImageSet(images, items.assign(split=["u", "v", "u", "v", "u"])), tmp_path / "set")
    found = picture_collection(tmp_path / "set", ["v", "u"], SIZE, 7)
    assert found.ids == ["a", "b", "c", "d"]
    assert found.notes == {"e": "the same as a, counted once"}
    assert found.digests == content_digests(images[[2, 1, 3, 0]])
    part = found.read(["c", "a", "d"])
    assert torch.equal(to_uint8(part.pictures), images[[3, 2, 0]])
    assert part.prompts == ["the c", "the a", "the d"]
    assert part.seeds == item_seeds(["c", "a", "d"], 7)
    assert found.digest == picture_collection(tmp_path / "set", [], SIZE).digest
    assert found.digest != picture_collection(tmp_path / "set", ["v"], SIZE).digest


def test_prompts_are_counted_once_and_empty_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"caption": text}) + "\n" for text in ("b", "", "a", "b", "b", "   ")))
    found = prompt_collection(path)
    assert found.ids == ["a", "b"]
    assert found.remarks == ["2 empty prompts are left out", "2 prompts that repeat an earlier one are counted once"]
    assert found.read(["b"]).prompts == ["b"]
    path.write_text('{"caption": ""}\n')
    with pytest.raises(ValueError, match="holds only empty prompts"):
        prompt_collection(path)


def test_a_table_of_prompts_keeps_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    table = pd.DataFrame({"id": ["x", "w", "v"], "prompt": ["a whale", "a tree", "a whale"]})
    table.to_parquet(path)
    found = prompt_collection(path)
    assert found.ids == ["v", "w"]
    assert found.read(["w", "v"]).prompts == ["a tree", "a whale"]
    assert found.remarks == ["1 prompts that repeat an earlier one are counted once"]
    table.assign(prompt=["a whale", None, "a tree"]).to_parquet(path)
    assert prompt_collection(path).remarks == ["1 empty prompts are left out"]
    table.assign(id="x").to_parquet(path)
    with pytest.raises(ValueError, match="has the id 'x' twice"):
        prompt_collection(path)
