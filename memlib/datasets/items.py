"""What is to be scored, from an image set, a folder of images, or a prompt file."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memlib.datasets import folders
from memlib.datasets import images as image_sets
from memlib.datasets.prompts import read_prompts
from memlib.detectors.api import Items
from memlib.fields import Field
from memlib.files import atomic_write, suggest
from memlib.tensors import to_float


@dataclass(frozen=True)
class PictureFiles:
    """Pictures [N, C, H, W] in [-1, 1] in files of a folder, read when they are asked for.

    size: channels, height and width that they had when they were looked at. Raises ValueError for one that has changed since.
    """

    folder: Path
    names: Sequence[str]
    size: tuple[int, int, int]

    @property
    def shape(self) -> torch.Size:
        """As of the tensor of all of them."""
        return torch.Size([len(self.names), *self.size])

    def __getitem__(self, rows: slice | Sequence[int]) -> "PictureFiles | Tensor":
        if isinstance(rows, slice):
            return replace(self, names=self.names[rows])
        names = [self.names[row] for row in rows]
        found, unread = open_pictures([self.folder / name for name in names], self.size)
        if unread:
            raise ValueError(f"{next(iter(unread.values()))}; it could be read when the work began")
        return to_float(torch.stack([found[name] for name in names]))


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
    prompts: a prompt file, or a table with the columns id and prompt, of which `splits` may name groups. samples: generations
    of every item, as `write_samples` writes them. training: the folder of an image set or of images that the model was trained
    on. size: channels, height and width that pictures must have. reference: a field trained without the items.

    Raises ValueError for no items, for both pictures and prompts, for what is missing, broken or of another kind or size, for
    splits of what has none, and for a training picture that cannot be read: distances to the nearest one would be wrong.
    """
    if (images is None) == (prompts is None):
        raise ValueError("give either pictures or a prompt file to be scored")
    grouped = prompts is not None and Path(prompts).suffix == ".parquet"
    for named, folder in ((() if grouped else splits, images), (training_splits, training)):
        if named and (folder is None or not is_image_set(Path(folder))):
            where = "no image set is given" if folder is None else f"{folder} is no image set"
            raise ValueError(f"the splits {', '.join(named)} are asked for, but {where}; name one, or no splits")
    notes: dict[str, str] = {}
    if grouped:
        table = image_sets.read_table(Path(prompts), ("id", "prompt", *(["group"] if splits else [])))
        unknown = set(splits).difference(table["group"]) if splits else ()
        if unknown:
            raise ValueError(f"{prompts} has no group {min(unknown)!r}{suggest(min(unknown), table['group'].unique())}")
        table = table[table["group"].isin(splits)] if splits else table
        items, notes = _asked(
            table["id"].astype(str), _texts(table["prompt"].astype(object).fillna(""), prompts), prompts, seed
        )
    elif prompts is not None:
        asked = read_prompts(prompts)
        items, notes = _asked(asked, asked, prompts, seed)
    else:
        ids, pictures, captions, notes = _pictures(Path(images), splits, size)
        if not ids:
            raise ValueError(f"{Path(images) / 'items.parquet'} has no column 'id'; every item needs an id of its own")
        items = Items(ids, seed, pictures, captions)
    more = {} if reference is None else {"reference": reference}
    if samples is not None:
        more["samples"] = _samples_of(samples, items.ids, size)
    if training is not None:
        _, more["training"], more["captions"] = training_pictures(training, training_splits, size)
    parts = {"pictures": items.pictures, "samples": more.get("samples"), "training pictures": more.get("training")}
    shapes = {name: part.shape[-3:] for name, part in parts.items() if part is not None}
    for (one, first), (other, second) in pairwise(shapes.items()):
        if first != second:
            raise ValueError(f"the {one} are {_named(first)}, but the {other} are {_named(second)}; give them one size")
    return Items(items.ids, seed, items.pictures, items.prompts, **more), notes


def _asked(ids: Sequence[str], prompts: Sequence[str], path: str | Path, seed: int) -> tuple[Items, dict[str, str]]:
    """Prompts as items, and by their ids why the empty ones are none."""
    given = [(name, prompt) for name, prompt in zip(ids, prompts, strict=True) if prompt.strip()]
    if not given:
        raise ValueError(f"{path} holds only empty prompts; give at least one prompt")
    notes = {name: "its prompt is empty" for name, prompt in zip(ids, prompts, strict=True) if not prompt.strip()}
    names, asked = map(list, zip(*given, strict=True))
    return Items(names, seed, prompts=asked), notes


def _pictures(
    folder: Path, splits: Sequence[str], size: tuple[int, int, int] | None
) -> tuple[list[str], Tensor | PictureFiles, list[str] | None, dict[str, str]]:
    """Ids (none of an image set without), pictures in [-1, 1], captions (None without any), and why some could not be read.

    The pictures of a folder stay in their files.
    """
    if is_image_set(folder):
        image_set = image_sets.load(folder)
        if splits:
            parts = [image_set.split(name) for name in splits]
            items = pd.concat([part.items for part in parts])
            pictures = torch.cat([part.floats for part in parts])
        else:
            items, pictures = image_set.items, image_set.floats
        ids, captions = [*map(str, items.get("id", ()))], _texts(items["caption"].fillna(""), folder)
        if size is not None and tuple(pictures.shape[1:]) != tuple(size):
            raise ValueError(f"{folder} holds pictures of {_named(pictures.shape[1:])}; the model takes {_named(size)}")
        return ids, pictures, captions if any(captions) else None, {}
    if folder.suffix == ".safetensors":
        samples, ids = read_samples(folder, size)
        return ids, to_float(samples[:, 0]), None, {}
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} with pictures")
    paths = folders.picture_paths(folder)
    known = folders.captions(folder)
    names, shapes, notes = [], set(), folders.unread_folders(folder)
    for path in paths:
        found, unread = open_pictures([path], size)
        names += found
        shapes |= {tuple(picture.shape) for picture in found.values()}
        notes |= unread
    if not names:
        raise ValueError(f"none of the pictures in {folder} can be scored: {next(iter(notes.values()))}")
    if len(shapes) > 1:
        raise ValueError(f"the pictures in {folder} differ in size; give all of them one size")
    captions = [known.get(name, "") for name in names]
    return names, PictureFiles(folder, names, *shapes), captions if any(captions) else None, notes


def open_pictures(paths: Sequence[Path], size: tuple[int, int, int] | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Pictures uint8 [C, H, W] by the names of their files, and why some cannot be used: unreadable, or of another size."""
    found, notes = {}, {}
    for path in paths:
        try:
            picture = torch.from_numpy(folders.open_picture(path).copy()).permute(2, 0, 1)
            if size is not None:
                if size[0] == 1:
                    if not (picture == picture[:1]).all():
                        raise ValueError(f"{path} is in colour; the model takes {_named(size)}, so make it grey")
                    picture = picture[:1]
                if tuple(picture.shape) != tuple(size):
                    raise ValueError(f"{path} is {_named(picture.shape)}; the model takes {_named(size)}")
            found[path.name] = picture
        except ValueError as error:
            notes[path.name] = str(error)
    return found, notes


def training_pictures(
    folder: str | Path, splits: Sequence[str] = (), size: tuple[int, int, int] | None = None
) -> tuple[list[str], Tensor, list[str] | None]:
    """Ids, pictures in [-1, 1] and captions (None without any) of a training set.

    Raises ValueError where one of the pictures cannot be read: distances to the nearest one would be wrong.
    """
    ids, pictures, captions, unread = _pictures(Path(folder), splits, size)
    if unread:
        first = next(iter(unread.values()))
        raise ValueError(f"all training pictures are needed, and {len(unread)} of them cannot be used: {first}")
    return ids, pictures if isinstance(pictures, Tensor) else pictures[range(len(ids))], captions


def is_image_set(folder: Path) -> bool:
    """Whether a folder holds an image set, and not files of images."""
    return (folder / "items.parquet").exists()


def _texts(column: pd.Series, source: str | Path) -> list[str]:
    """The texts of a column; raises ValueError for an entry that is none."""
    row = next((row for row, text in enumerate(column) if not isinstance(text, str)), None)
    if row is not None:
        raise ValueError(f"{source}, row {row + 1}: the {column.name} is {column.iloc[row]!r}, which is no text")
    return column.tolist()


def _named(shape: Sequence[int]) -> str:
    return f"{shape[0]} channels of {shape[1]}x{shape[2]} pixels"


def _samples_of(path: str | Path, ids: Sequence[str], size: tuple[int, int, int] | None) -> Tensor:
    """Generations [N, n, C, H, W] in [-1, 1] of the items, from a file of `write_samples`."""
    samples, known = read_samples(path, size)
    rows = {name: row for row, name in enumerate(known)}
    missing = next((name for name in ids if name not in rows), None)
    if missing is not None:
        raise ValueError(f"{path} holds no samples of the item {missing!r}")
    return to_float(samples[[rows[name] for name in ids]])


def write_samples(path: str | Path, samples: Tensor, ids: Sequence[str]) -> None:
    """Write generations uint8 [N, n, C, H, W] of N items by their ids."""
    with atomic_write(path) as temporary:
        save_file({"samples": samples.contiguous()}, temporary, {"ids": json.dumps(list(ids))})


def read_samples(path: str | Path, size: tuple[int, int, int] | None = None) -> tuple[Tensor, list[str]]:
    """Generations uint8 [N, n, C, H, W] and the ids of their N items, all different.

    size: channels, height and width that they must have. Raises ValueError for another kind of file, and for a broken one.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file of samples {path}")
    try:
        with safe_open(path, "pt") as file:
            ids = json.loads((file.metadata() or {}).get("ids", "null"))
            samples = file.get_tensor("samples") if "samples" in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no file of samples, or it is broken or cut off ({error}); make it again"
        ) from error
    if samples is None or not isinstance(ids, list):
        raise ValueError(f"{path} is no file of samples; it must hold the tensor `samples` and the ids of its items")
    if samples.dtype != torch.uint8 or samples.ndim != 5 or 0 in samples.shape:
        raise ValueError(
            f"the samples in {path} are {samples.dtype} {list(samples.shape)}; they must be uint8 [N, n, C, H, W]"
        )
    doubled = next((name for name, count in Counter(map(str, ids)).items() if count > 1), None)
    if len(ids) != len(samples) or doubled is not None:
        wrong = f"{len(ids)} ids for {len(samples)} items" if doubled is None else f"the id {doubled!r} twice"
        raise ValueError(f"{path} has {wrong}; every item needs an id of its own")
    if size is not None and tuple(samples.shape[2:]) != tuple(size):
        raise ValueError(f"{path} holds pictures of {_named(samples.shape[2:])}; the model takes {_named(size)}")
    return samples, [*map(str, ids)]
