"""Image sets: every source, planted copies, and refused input."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memlib import data


def write_pictures(folder: Path, n: int, size: int = 8) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    return pixels


def test_a_folder_with_captions(tmp_path: Path) -> None:
    pixels = write_pictures(tmp_path, 3)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "00.png", "text": "from the table"}\n{"file_name": "01.png", "caption": "a caption"}\n'
    )
    (tmp_path / "02.txt").write_text("from its own file\n")
    images, names, captions = data.load_pictures("folder", 8, str(tmp_path))
    assert (images.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert names == ["00", "01", "02"]
    assert captions == ["from the table", "a caption", "from its own file"]
    assert data.load_pictures("folder", 4, str(tmp_path))[0].shape == (3, 3, 4, 4)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)).save(tmp_path / "a.png")
    images, _, _ = data.load_pictures("folder", 8, str(tmp_path))
    expected = torch.arange(64).reshape(8, 8) * 1000 / 257
    torch.testing.assert_close(images[0, 1].float(), expected, atol=0.51, rtol=0)


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (data.load_pictures("folder", 8, str(tmp_path))[0] == 255).all()


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder; set data.root"):
        data.load_pictures("folder", 8, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there are no images in"):
        data.load_pictures("folder", 8, str(tmp_path))
    write_pictures(tmp_path, 2)
    (tmp_path / "02.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"02.png cannot be read as an image"):
        data.load_pictures("folder", 8, str(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "02.png")
    with pytest.raises(ValueError, match=r"02.png is 9x9 but 00.png is 8x8; give all images one size"):
        data.load_pictures("folder", 8, str(tmp_path))
    (tmp_path / "02.png").unlink()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "02.tiff")
    with pytest.raises(ValueError, match=r"02.tiff has NaN or infinite values"):
        data.load_pictures("folder", 8, str(tmp_path))
    Image.fromarray(np.full((8, 8), 200, np.float32)).save(tmp_path / "02.tiff")
    with pytest.raises(ValueError, match=r"02.tiff has values from 200 to 200; a float image must lie in 0 to 1"):
        data.load_pictures("folder", 8, str(tmp_path))
    (tmp_path / "02.tiff").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "good"}\n{"file": 1}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl line 2 is not an object with file_name"):
        data.load_pictures("folder", 8, str(tmp_path))


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown data.name 'openmojis'; did you mean 'openmoji'"):
        data.load_pictures("openmojis", 8)


def test_fashion_mnist_from_idx_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    header = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in pixels.shape)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x05" + bytes([9, 0, 1, 2, 3]))
    images, _, captions = data.load_pictures("fashion_mnist", 28, str(tmp_path))
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
    images, _, captions = data.load_pictures("cifar10", 32, str(tmp_path))
    assert (images.numpy() == pixels).all()
    assert captions == ["cat"] * 6


def test_openmoji_is_drawn_in_colour_with_names() -> None:
    images, names, captions = data.load_pictures("openmoji", 16)
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
    flat = data.to_float(images).flatten(1)
    kept: list[int] = []
    for i, picture in enumerate(flat):
        if all((picture - flat[j]).square().mean().sqrt() >= limit for j in kept):
            kept.append(i)
    assert data.distinct(images, limit).tolist() == kept


def test_distinct_pictures_across_blocks() -> None:
    images = torch.randint(0, 256, (3000, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    kept = data.to_float(images[data.distinct(images, 0.3)]).flatten(1)
    assert torch.pdist(kept).min() / 2 >= 0.3
    assert torch.cdist(data.to_float(images).flatten(1), kept).min(1).values.max() / 2 < 0.3


def planted(copies: dict[int, int], train: int = 10, seed: int = 0) -> data.ImageSet:
    images = torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1, 1).expand(30, 1, 4, 4).contiguous()
    names = [str(i) for i in range(30)]
    return data.plant(
        images, names, names, {"train": train, "heldout": 8, "reference": 6}, {"train": copies, "reference": {}}, seed
    )


def test_splits_are_disjoint_and_copies_are_planted(tmp_path: Path) -> None:
    image_set = planted({16: 2, 4: 3})
    items = image_set.items
    assert items["split"].value_counts().to_dict() == {"train": 10, "heldout": 8, "reference": 6}
    assert items.loc[items["split"] == "train", "copies"].value_counts().to_dict() == {16: 2, 4: 3, 1: 5}
    assert (items.loc[items["split"] == "heldout", "copies"] == 0).all()
    assert (items.loc[items["split"] == "reference", "copies"] == 1).all()
    assert items["name"].is_unique
    assert (image_set.images[:, 0, 0, 0].numpy() == items["name"].astype(int)).all()
    data.save(image_set, tmp_path / "set")
    again = data.load(tmp_path / "set")
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


def test_a_split_is_an_image_set_of_its_own() -> None:
    image_set = planted({16: 2, 4: 3})
    part = image_set.split("heldout")
    assert part.items["split"].unique() == ["heldout"]
    assert (part.images[:, 0, 0, 0].numpy() == part.items["name"].astype(int)).all()
    assert torch.equal(part.floats, data.to_float(part.images))
    turned = part.rows([3, 1])
    assert turned.items["name"].tolist() == part.items["name"].iloc[[3, 1]].tolist()
    assert torch.equal(turned.images, part.images[[3, 1]])


def test_scales_are_inverse() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(data.to_uint8(data.to_float(images)), images)
    assert (float(data.to_float(images).min()), float(data.to_float(images).max())) == (-1.0, 1.0)
