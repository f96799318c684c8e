"""What is loaded to be scored, against what was written, and what is refused by one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import planted
from PIL import Image
from safetensors.torch import save_file

from memlib.datasets import images
from memlib.datasets.collection import picture_collection
from memlib.datasets.items import load_items, read_samples, write_samples
from memlib.tensors import to_uint8

SIZE = (3, 8, 8)


def write_folder(folder: Path, count: int = 3, size: tuple[int, int] = (8, 8), seed: int = 0) -> np.ndarray:
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return pixels


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A folder of pictures, one of training pictures, samples, prompts and an image set of its own size."""
    write_folder(tmp_path / "pictures")
    write_folder(tmp_path / "training", 2, seed=1)
    samples = torch.arange(3 * 2 * 192).reshape(3, 2, *SIZE).to(torch.uint8)
    write_samples(tmp_path / "samples.safetensors", samples, [f"{number}.png" for number in range(3)])
    pd.DataFrame({"id": ["a", "b"], "prompt": ["a whale", "a tree"]}).to_parquet(tmp_path / "prompts.parquet")
    (tmp_path / "prompts.txt").write_text("a whale\na tree\n")
    images.save(planted({2: 3}), tmp_path / "set")
    return tmp_path


def test_what_was_written_is_loaded(given: Path) -> None:
    found, notes = load_items(
        images=given / "pictures", samples=given / "samples.safetensors", training=given / "training", size=SIZE, seed=4
    )
    assert list(found.ids) == ["0.png", "1.png", "2.png"]
    assert (found.seed, found.prompts, notes) == (4, None, {})
    for path, picture in zip(sorted((given / "pictures").iterdir()), to_uint8(found.pictures[range(3)]), strict=True):
        assert (np.asarray(Image.open(path)) == picture.permute(1, 2, 0).numpy()).all()
    assert torch.equal(to_uint8(found.samples), read_samples(given / "samples.safetensors")[0])
    assert found.training.shape == (2, *SIZE)
    assert found.captions is None
    prompts, _ = load_items(prompts=given / "prompts.parquet")
    assert (prompts.ids, prompts.prompts) == (["a", "b"], ["a whale", "a tree"])
    own = images.load(given / "set")
    parts, _ = load_items(images=given / "set", splits=["train"], training=given / "set", training_splits=["heldout"])
    assert torch.equal(to_uint8(parts.pictures), own.split("train").images)
    assert torch.equal(to_uint8(parts.training), own.split("heldout").images)
    assert parts.captions == own.split("heldout").items["caption"].tolist()


def test_a_picture_that_cannot_be_scored_is_noted_but_all_training_pictures_are_needed(given: Path) -> None:
    for name in ("pictures", "training"):
        (given / name / "1.png").write_bytes(b"\x89PNG broken")
    Image.new("RGB", (9, 8)).save(given / "training" / "2.png")
    found, notes = load_items(images=given / "pictures", size=SIZE)
    assert list(found.ids) == ["0.png", "2.png"]
    assert list(notes) == ["1.png"]
    message = r"^all training pictures are needed, and 2 of them cannot be used: .*training/1.png cannot be read as an"
    with pytest.raises(ValueError, match=message):
        load_items(images=given / "pictures", training=given / "training", size=SIZE)


def test_colour_is_not_given_to_a_grey_model(given: Path) -> None:
    Image.new("RGB", (8, 8), (90, 90, 90)).save(given / "pictures" / "grey.png")
    found, notes = load_items(images=given / "pictures", size=(1, 8, 8))
    assert list(found.ids) == ["grey.png"]
    assert "0.png is in colour; the model takes 1 channels of 8x8 pixels, so make it grey" in notes["0.png"]


def test_numbers_as_ids_and_texts_that_are_none(given: Path) -> None:
    table = pd.DataFrame({"id": [1, 2], "prompt": ["a whale", "a tree"]})
    table.to_parquet(given / "prompts.parquet")
    assert list(load_items(prompts=given / "prompts.parquet")[0].ids) == ["1", "2"]
    table.assign(prompt=[0.5, None]).to_parquet(given / "prompts.parquet")
    with pytest.raises(ValueError, match=r"prompts.parquet, row 1: the prompt is .*, which is no text"):
        load_items(prompts=given / "prompts.parquet")
    own = pd.read_parquet(given / "set" / "items.parquet")
    own.assign(id=range(len(own)), caption=None).to_parquet(given / "set" / "items.parquet")
    found, _ = load_items(images=given / "set")
    assert found.ids[0] == "0"
    assert found.prompts is None, "no captions"


def test_an_empty_prompt_of_a_table_is_left_out_and_told(given: Path) -> None:
    table = pd.DataFrame({"id": ["a", "b", "c", "d"], "prompt": ["a whale", None, " ", "a tree"]})
    table.to_parquet(given / "prompts.parquet")
    found, notes = load_items(prompts=given / "prompts.parquet")
    assert (list(found.ids), found.prompts) == (["a", "d"], ["a whale", "a tree"])
    assert notes == {"b": "its prompt is empty", "c": "its prompt is empty"}
    table[1:3].to_parquet(given / "prompts.parquet")
    with pytest.raises(ValueError, match="prompts.parquet holds only empty prompts"):
        load_items(prompts=given / "prompts.parquet")


def test_subfolders_with_pictures_are_named(given: Path) -> None:
    write_folder(given / "pictures" / "more")
    (given / "pictures" / "empty").mkdir()
    found, notes = load_items(images=given / "pictures", size=SIZE)
    assert not any("more" in name or "empty" in name for name in found.ids)
    assert "more is a subfolder, whose images are not read" in notes["more/"]
    assert "empty/" not in notes
    collection = picture_collection(given / "pictures", (), SIZE)
    assert collection.notes["more/"] == notes["more/"]
    (given / "nest").mkdir()
    (given / "pictures" / "more").rename(given / "nest" / "more")
    with pytest.raises(ValueError, match=r"no images in .*nest; those of its subfolders, such as more/, are not read$"):
        load_items(images=given / "nest", size=SIZE)


def test_parts_of_different_sizes_are_refused(given: Path) -> None:
    write_folder(given / "large", size=(16, 16))
    samples = torch.zeros(3, 2, 3, 16, 16, dtype=torch.uint8)
    write_samples(given / "large.safetensors", samples, [f"{number}.png" for number in range(3)])
    small, large = "3 channels of 8x8 pixels", "3 channels of 16x16 pixels"
    for named, message in (
        ({"training": given / "large"}, f"^the pictures are {small}, but the training pictures are {large}; give them"),
        ({"samples": given / "large.safetensors"}, f"^the pictures are {small}, but the samples are {large}; give"),
        (
            {"training": given / "large", "size": SIZE},
            f"large can be scored: .*0.png is {large}; the model takes {small}",
        ),
        ({"samples": given / "large.safetensors", "size": SIZE}, f"holds pictures of {large}; the model takes {small}"),
    ):
        with pytest.raises(ValueError, match=message):
            load_items(images=given / "pictures", **named)
    with pytest.raises(ValueError, match=f"holds pictures of {large}; the model takes {small}"):
        load_items(images=given / "large.safetensors", size=SIZE)


@pytest.mark.parametrize("named", ["pictures", "samples.safetensors", "prompts.txt", "prompts.parquet"])
def test_splits_of_what_has_none_are_refused(named: str, given: Path) -> None:
    kind = "prompts" if "prompts" in named else "images"
    message = "no image set is given" if kind == "prompts" else f"{named} is no image set"
    refusal = f"the splits train, heldout are asked for, but .*{message}; name one"
    if named == "prompts.parquet":  # its splits would be groups
        refusal = "prompts.parquet has no column 'group'"
    with pytest.raises(ValueError, match=refusal):
        load_items(**{kind: given / named}, splits=["train", "heldout"])
    with pytest.raises(ValueError, match=r"the splits train are asked for, but .*training is no image set; name one"):
        load_items(images=given / "pictures", training=given / "training", training_splits=["train"])
    with pytest.raises(ValueError, match="the splits train are asked for, but no image set is given"):
        load_items(images=given / "pictures", training_splits=["train"])


U8 = torch.zeros(2, 3, *SIZE, dtype=torch.uint8)
IDS = {"ids": json.dumps(["a", "b"])}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"samples": U8.float()}, IDS, r"are torch.float32 \[2, 3, 3, 8, 8\]; they must be uint8 \[N, n, C, H, W\]"),
        ({"samples": U8[0]}, IDS, r"are torch.uint8 \[3, 3, 8, 8\]; they must be"),
        ({"samples": U8[:, :0]}, IDS, r"are torch.uint8 \[2, 0, 3, 8, 8\]; they must be"),
        ({"samples": U8}, {"ids": '["a"]'}, "has 1 ids for 2 items; every item needs an id of its own"),
        ({"samples": U8}, {"ids": '["a", "a"]'}, "has the id 'a' twice; every item needs an id of its own"),
        ({"samples": U8}, {}, "must hold the tensor `samples` and the ids of its items"),
        ({"samples": U8}, {"ids": "{}"}, "must hold the tensor `samples` and the ids of its items"),
        ({"samples": U8}, {"ids": "["}, "is no file of samples, or it is broken"),
        ({"other": U8}, IDS, "must hold the tensor `samples` and the ids of its items"),
    ],
)
def test_samples_of_another_kind_are_refused(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "x.safetensors", metadata)
    for load in (read_samples, lambda path: load_items(images=path)):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "x.safetensors")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("breaking", [cut, lambda path: path.write_bytes(b"")], ids=["cut", "empty"])
def test_a_broken_file_is_refused_by_its_name(breaking: Callable[[Path], object], given: Path) -> None:
    for name, load in (
        ("samples.safetensors", lambda: load_items(images=given / "samples.safetensors")),
        ("samples.safetensors", lambda: load_items(images=given / "pictures", samples=given / "samples.safetensors")),
        ("prompts.parquet", lambda: load_items(prompts=given / "prompts.parquet")),
        ("set/images.safetensors", lambda: load_items(images=given / "set")),
        ("set/items.parquet", lambda: load_items(images=given / "set")),
    ):
        whole = (given / name).read_bytes()
        breaking(given / name)
        with pytest.raises(ValueError, match=rf"^{given / name} [^\n]*; make it again$"):
            load()
        (given / name).write_bytes(whole)


def test_tables_and_image_sets_of_another_kind_are_refused(given: Path) -> None:
    pd.DataFrame({"id": ["a"], "text": ["a whale"]}).to_parquet(given / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet has no column 'prompt'; it needs id, prompt"):
        load_items(prompts=given / "other.parquet")
    prompts = pd.DataFrame({"id": list("abc"), "prompt": list("xyz"), "group": ["planted", "ordinary", "planted"]})
    prompts.to_parquet(given / "groups.parquet")
    assert load_items(prompts=given / "groups.parquet", splits=["planted"])[0].prompts == ["x", "z"]
    assert load_items(prompts=given / "groups.parquet")[0].ids == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"groups.parquet has no group 'plantd'; did you mean 'planted'"):
        load_items(prompts=given / "groups.parquet", splits=["ordinary", "plantd"])
    with pytest.raises(ValueError, match=r"there is no table .*none.parquet"):
        load_items(prompts=given / "none.parquet")
    table = pd.read_parquet(given / "set" / "items.parquet")
    table.drop(columns="split").to_parquet(given / "set" / "items.parquet")
    with pytest.raises(ValueError, match=r"items.parquet has no column 'split'; it needs name, caption, split, copies"):
        load_items(images=given / "set")
    table.drop(columns="id").to_parquet(given / "set" / "items.parquet")
    with pytest.raises(ValueError, match=r"items.parquet has no column 'id'; every item needs an id of its own"):
        load_items(images=given / "set")
    table[:-1].to_parquet(given / "set" / "items.parquet")
    with pytest.raises(
        ValueError, match=r"must hold `images`, uint8 \[23, C, H, W\], .*; it holds torch.uint8 \[24, 1"
    ):
        load_items(images=given / "set")
    save_file({"pictures": torch.zeros(1)}, given / "set" / "images.safetensors")
    with pytest.raises(ValueError, match="it holds nothing of the name"):
        load_items(images=given / "set")
    (given / "pictures" / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"pictures/0.txt is not text in UTF-8"):
        load_items(images=given / "pictures")
