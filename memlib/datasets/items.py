"""What is to be scored, from an image set, a folder of images, or a prompt file."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from memlib.datasets import folders
from memlib.datasets import images as image_sets
from memlib.datasets.prompts import read_prompts
from memlib.detectors.api import Items
from memlib.fields import Field
from memlib.files import atomic_write
from memlib.tensors import to_float


def load_items(
    images: str | Path | None = None,
    splits: Sequence[str] = (),
    prompts: str | Path | None = None,
    samples: str | Path | None = None,
    training: str | Path | None = None,
    training_splits: Sequence[str] = (),
    size: tuple[int, int, int] | None = None,
    seed: int = 0,
    reference: Field | None = None,
) -> tuple[Items, dict[str, str]]:
    """Items, and the reasons of those that could not be read, by their id.

    images: the folder of an image set (all, or some of its splits), any folder of images (captions become prompts), or a file of
    samples, of which the first generation of each item is taken.
    prompts: a prompt file, or a table with the columns id and prompt. samples: generations of every item, as `write_samples`
    writes them. training: the folder of an image set or of images that the model was trained on. size: channels, height and
    width that pictures must have. reference: a field trained without the items.

    Raises ValueError for no items, for both pictures and prompts, and for what is missing or of another kind.
    """
    if (images is None) == (prompts is None):
        raise ValueError("give either pictures or a prompt file to be scored")
    notes: dict[str, str] = {}
    if prompts is not None and Path(prompts).suffix == ".parquet":
        table = pd.read_parquet(prompts, columns=["id", "prompt"])
        items = Items(table["id"].tolist(), seed, prompts=table["prompt"].tolist())
    elif prompts is not None:
        asked = read_prompts(prompts)
        items = Items(asked, seed, prompts=asked)
    else:
        ids, pictures, captions, notes = _pictures(Path(images), splits, size)
        items = Items(ids, seed, pictures, captions)
    more = {} if reference is None else {"reference": reference}
    if samples is not None:
        more["samples"] = _samples_of(samples, items.ids)
    if training is not None:
        more["training"] = _pictures(Path(training), training_splits, size)[1]
    return Items(items.ids, seed, items.pictures, items.prompts, **more), notes


def _pictures(
    folder: Path, splits: Sequence[str], size: tuple[int, int, int] | None
) -> tuple[list[str], Tensor, list[str] | None, dict[str, str]]:
    """Ids, pictures in [-1, 1], captions (None without any), and why some could not be read."""
    if (folder / "items.parquet").exists():
        image_set = image_sets.load(folder)
        if splits:
            parts = [image_set.split(name) for name in splits]
            ids = [name for part in parts for name in part.items["id"]]
            captions = [text for part in parts for text in part.items["caption"]]
            pictures = torch.cat([part.floats for part in parts])
        else:
            ids, captions, pictures = list(image_set.items["id"]), list(image_set.items["caption"]), image_set.floats
        if size is not None and tuple(pictures.shape[1:]) != tuple(size):
            raise ValueError(f"{folder} holds pictures of {_named(pictures.shape[1:])}; the model takes {_named(size)}")
        return ids, pictures, captions if any(captions) else None, {}
    if folder.suffix == ".safetensors":
        samples, ids = read_samples(folder)
        return ids, to_float(samples[:, 0]), None, {}
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} with pictures")
    paths = folders.picture_paths(folder)
    known = folders.captions(folder)
    found, notes = {}, {}
    for path in paths:
        try:
            picture = torch.from_numpy(folders.open_picture(path).copy()).permute(2, 0, 1)
            if size is not None:
                picture = picture[:1] if size[0] == 1 else picture
                if tuple(picture.shape) != tuple(size):
                    raise ValueError(f"{path} is {_named(picture.shape)}; the model takes {_named(size)}")
            found[path.name] = picture
        except ValueError as error:
            notes[path.name] = str(error)
    if not found:
        raise ValueError(f"none of the pictures in {folder} can be scored: {next(iter(notes.values()))}")
    shapes = {tuple(picture.shape) for picture in found.values()}
    if len(shapes) > 1:
        raise ValueError(f"the pictures in {folder} differ in size; give all of them one size")
    captions = [known.get(name, "") for name in found]
    return list(found), to_float(torch.stack([*found.values()])), captions if any(captions) else None, notes


def _named(shape: Sequence[int]) -> str:
    return f"{shape[0]} channels of {shape[1]}x{shape[2]} pixels"


def _samples_of(path: str | Path, ids: Sequence[str]) -> Tensor:
    """Generations [N, n, C, H, W] in [-1, 1] of the items, from a file of `write_samples`."""
    samples, known = read_samples(path)
    rows = {name: row for row, name in enumerate(known)}
    missing = next((name for name in ids if name not in rows), None)
    if missing is not None:
        raise ValueError(f"{path} holds no samples of the item {missing!r}")
    return to_float(samples[[rows[name] for name in ids]])


def write_samples(path: str | Path, samples: Tensor, ids: Sequence[str]) -> None:
    """Write generations uint8 [N, n, C, H, W] of N items by their ids."""
    with atomic_write(path) as temporary:
        save_file({"samples": samples.contiguous()}, temporary, {"ids": json.dumps(list(ids))})


def read_samples(path: str | Path) -> tuple[Tensor, list[str]]:
    """Generations uint8 [N, n, C, H, W] and the ids of their N items; raises ValueError for another kind of file."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file of samples {path}")
    with safe_open(path, "pt") as file:
        if "samples" not in file.keys() or "ids" not in (file.metadata() or {}):  # noqa: SIM118
            raise ValueError(
                f"{path} is no file of samples; it must hold the tensor `samples` and the ids of its items"
            )
        return file.get_tensor("samples"), json.loads(file.metadata()["ids"])
