"""Image sets: every source, planted copies, and refused input."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import planted
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memlib.datasets import folders, sources
from memlib.datasets.images import distinct, load, plant, save
from memlib.datasets.prompts import read_prompts
from memlib.tensors import to_float, to_uint8


def write_pictures(folder: Path, n: int, size: int = 8) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    return pixels


def test_a_folder_with_captions(tmp_path: Path) -> None:
    pixels = write_pictures(tmp_path, 3)
    (tmp_path / "metadata.jsonl").write_text(
        '\ufeff{"file_name": "00.png", "text": "from the\u2028table"}\n{"file_name": "01.png", "caption": "a caption"}\n\n'
    )
    (tmp_path / "02.txt").write_text("\ufefffrom its own file\n")
    images, names, captions = sources.load_pictures("folder", 8, str(tmp_path))
    assert (images.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert names == ["00.png", "01.png", "02.png"]
    assert captions == ["from the\u2028table", "a caption", "from its own file"]
    assert sources.load_pictures("folder", 4, str(tmp_path))[0].shape == (3, 3, 4, 4)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(tmp_path / "a.png")
    images, _, _ = sources.load_pictures("folder", 8, str(tmp_path))
    expected = torch.arange(64).reshape(8, 8) * 1000 / 257
    torch.testing.assert_close(images[0, 1].float(), expected, atol=0.51, rtol=0)


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (sources.load_pictures("folder", 8, str(tmp_path))[0] == 255).all()


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root is empty; set it to the folder with the images"):
        sources.load_pictures("folder", 8)
    with pytest.raises(ValueError, match="nowhere is not a folder; name one with images"):
        sources.load_pictures("folder", 8, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there are no images in"):
        sources.load_pictures("folder", 8, str(tmp_path))
    write_pictures(tmp_path, 2)
    (tmp_path / "02.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"02.png cannot be read as an image"):
        sources.load_pictures("folder", 8, str(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "02.png")
    with pytest.raises(ValueError, match=r"02.png is 9x9 but 00.png is 8x8; give all images one size"):
        sources.load_pictures("folder", 8, str(tmp_path))
    (tmp_path / "02.png").unlink()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "02.tiff")
    with pytest.raises(ValueError, match=r"02.tiff has NaN or infinite values"):
        sources.load_pictures("folder", 8, str(tmp_path))
    Image.fromarray(np.full((8, 8), 200, np.float32)).save(tmp_path / "02.tiff")
    with pytest.raises(ValueError, match=r"02.tiff has values from 200 to 200; a float image must lie in 0 to 1"):
        sources.load_pictures("folder", 8, str(tmp_path))
    (tmp_path / "02.tiff").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "good"}\n{"file": 1}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl line 2 is not an object with file_name"):
        sources.load_pictures("folder", 8, str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "00.png", "text": null}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl line 1: the caption of 00.png is None, which is no text"):
        sources.load_pictures("folder", 8, str(tmp_path))


def test_pictures_of_a_folder_are_opened_one_by_one(tmp_path: Path) -> None:
    pixels = write_pictures(tmp_path, 2)
    Image.fromarray(pixels[0][:4]).save(tmp_path / "oblong.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "00.png").read_bytes()[:60])
    (tmp_path / "notes.txt").write_text("no picture")
    paths = folders.picture_paths(tmp_path)
    assert [path.name for path in paths] == ["00.png", "01.png", "broken.png", "oblong.png"]
    assert (folders.open_picture(paths[0]) == pixels[0]).all()
    assert folders.open_picture(paths[3]).shape == (4, 8, 3)
    with pytest.raises(ValueError, match=r"broken.png cannot be read as an image \(.*\); remove it"):
        folders.open_picture(paths[2])
    assert folders.captions(tmp_path)["notes.png"] == "no picture"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "a red apple\n\n  the whale \n", ["a red apple", "the whale"]),
        ("a.txt", "\ufeffa red\u2028apple\r\nthe whale", ["a red\u2028apple", "the whale"]),
        ("a.jsonl", '{"caption": "a red apple", "more": 1}\n', ["a red apple"]),
    ],
)
def test_prompt_files(name: str, content: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_prompts(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "a.txt is empty; give at least one prompt"),
        ("a.txt", b"caf\xe9", "a.txt is not text in UTF-8"),
        ("a.jsonl", b'{"caption": "good"}\nplain text', "a.jsonl line 2 is not an object with a caption"),
        ("a.jsonl", b'{"text": "good"}', "a.jsonl line 1 is not an object with a caption"),
        ("a.jsonl", b'{"caption": 3}', "a.jsonl line 1: the caption is not a text"),
    ],
)
def test_prompt_files_that_cannot_be_read_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no prompt file .*nowhere.txt"):
        read_prompts(tmp_path / "nowhere.txt")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown data.name 'openmojis'; did you mean 'openmoji'"):
        sources.load_pictures("openmojis", 8)


def test_fashion_mnist_from_idx_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    header = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in pixels.shape)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x05" + bytes([9, 0, 1, 2, 3]))
    images, _, captions = sources.load_pictures("fashion_mnist", 28, str(tmp_path))
    assert (images[:, 0].numpy() == pixels).all()
    assert captions[:2] == ["ankle boot", "t-shirt"]


@pytest.mark.parametrize("kind", ["png", "bin"])
def test_cifar10_from_files(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    for batch in range(2):
        part = pixels[3 * batch : 3 * batch + 3]
        if kind == "png":
            Image.fromarray(part.transpose(0, 2, 3, 1).reshape(3, 1024, 3)).save(
                tmp_path / f"data_batch_{batch + 1}.png"
            )
        else:
            labels = np.full((3, 1), 3, np.uint8)
            np.concatenate([labels, part.reshape(3, -1)], 1).tofile(tmp_path / f"data_batch_{batch + 1}.bin")
    if kind == "png":
        (tmp_path / "train_lables.json").write_text(json.dumps([3] * 6))
    images, _, captions = sources.load_pictures("cifar10", 32, str(tmp_path))
    assert (images.numpy() == pixels).all()
    assert captions == ["cat"] * 6


@pytest.mark.ci
def test_openmoji_is_drawn_in_colour_with_names() -> None:
    images, names, captions = sources.load_pictures("openmoji", 16)
    assert len(images) > 1800
    assert len(set(names)) == len(names)
    heart = images[captions.index("red heart"), :, 8, 8].int()
    assert heart[0] > heart[1] + 80
    assert heart[0] > heart[2] + 80
    assert (images[:, :, 0, 0] == 255).float().mean() > 0.9
    assert not any("skin tone" in caption for caption in captions)


@given(st.integers(0, 10**6), st.floats(0.3, 1.2))
def test_distinct_pictures_are_the_greedy_choice(seed: int, limit: float) -> None:
    images = torch.randint(0, 256, (40, 1, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    flat = to_float(images).flatten(1)
    kept: list[int] = []
    for i, picture in enumerate(flat):
        if all((picture - flat[j]).square().mean().sqrt() >= limit for j in kept):
            kept.append(i)
    assert distinct(images, limit).tolist() == kept


def test_distinct_pictures_across_blocks() -> None:
    images = torch.randint(0, 256, (3000, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    kept = to_float(images[distinct(images, 0.3)]).flatten(1)
    assert torch.pdist(kept).min() / 2 >= 0.3
    assert torch.cdist(to_float(images).flatten(1), kept).min(1).values.max() / 2 < 0.3


def test_splits_are_disjoint_and_copies_are_planted(tmp_path: Path) -> None:
    image_set = planted({16: 2, 4: 3})
    items = image_set.items
    assert items["split"].value_counts().to_dict() == {"train": 10, "heldout": 8, "reference": 6}
    assert items.loc[items["split"] == "train", "copies"].value_counts().to_dict() == {16: 2, 4: 3, 1: 5}
    assert (items.loc[items["split"] == "heldout", "copies"] == 0).all()
    assert (items.loc[items["split"] == "reference", "copies"] == 1).all()
    assert items["id"].is_unique
    assert (items["id"] == items["name"]).all()
    assert (image_set.images[:, 0, 0, 0].numpy() == items["name"].astype(int)).all()
    save(image_set, tmp_path / "set")
    again = load(tmp_path / "set")
    assert torch.equal(again.images, image_set.images)
    assert again.items.equals(items)
    assert planted({16: 2, 4: 3}).items.equals(items)
    assert not planted({16: 2, 4: 3}, seed=1).items.equals(items)


def test_plans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="11 pictures are to be planted in the split train, which holds only 10"):
        planted({16: 11})
    with pytest.raises(ValueError, match="splits need 34 pictures .* only 30 distinct ones"):
        planted({}, train=20)
    with pytest.raises(ValueError, match="numbers of copies from 2 up"):
        planted({1: 3})
    with pytest.raises(ValueError, match="there is no split 'test'"):
        planted({}).split("test")
    with pytest.raises(ValueError, match="two pictures are named 'b'; give every picture a name of its own"):
        plant(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), ["a", "b", "b"], ["", "", ""], {"train": 2}, {}, 0)


def test_a_folder_that_is_no_image_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not an image set: there is no images.safetensors in it"):
        load(tmp_path / "nowhere")
    save(planted({4: 2}), tmp_path / "set")
    (tmp_path / "set/items.parquet").unlink()
    with pytest.raises(ValueError, match=r"set is not an image set: there is no items.parquet in it"):
        load(tmp_path / "set")


def test_a_split_is_an_image_set_of_its_own() -> None:
    image_set = planted({16: 2, 4: 3})
    part = image_set.split("heldout")
    assert part.items["split"].unique() == ["heldout"]
    assert (part.images[:, 0, 0, 0].numpy() == part.items["name"].astype(int)).all()
    assert torch.equal(part.floats, to_float(part.images))
    turned = part.rows([3, 1])
    assert turned.items["name"].tolist() == part.items["name"].iloc[[3, 1]].tolist()
    assert torch.equal(turned.images, part.images[[3, 1]])


def test_scales_are_inverse() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(images)), images)
    assert (float(to_float(images).min()), float(to_float(images).max())) == (-1.0, 1.0)


def test_pictures_are_taken_of_each_number_of_copies_in_turn() -> None:
    image_set = planted({16: 1, 4: 2})
    taken = image_set.in_turn(["train", "heldout"], 6)
    assert taken.items["copies"].tolist() == [16, 4, 1, 0, 4, 1]
    assert set(taken.items["split"]) == {"train", "heldout"}
    assert taken.items["id"].is_unique
    assert len(image_set.in_turn(["train"], 99).items) == 10
