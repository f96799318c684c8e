"""Collections of pictures or prompts that are scored a part at a time.

Pictures of a folder are read with their part, so that memory does not grow with them; those of an image set, which is one file,
are all held.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from memlib.datasets import folders
from memlib.datasets import images as image_sets
from memlib.datasets.items import PictureFiles, is_image_set, open_pictures
from memlib.datasets.prompts import read_prompts
from memlib.detectors.api import Items
from memlib.progress import progress
from memlib.tensors import to_float

Kind = Literal["pictures", "prompts"]


@dataclass(frozen=True)
class Collection:
    """N items of a kind, each once, with what is known of them before any is scored.

    ids and digests (of their content): of the items that can be scored. refer: the items of some ids, whose pictures stay in
    their files. notes: why the others cannot be scored, by id. remarks: what else was found. source: where they come from.
    captioned: whether they are pictures that all have a caption.
    """

    kind: Kind
    source: str
    ids: list[str]
    digests: list[str]
    refer: Callable[[Sequence[str]], Items]
    notes: dict[str, str]
    remarks: list[str]
    captioned: bool = False

    @property
    def digest(self) -> str:
        """Of the ids and of what they stand for, in their order."""
        return _digest("\0".join([*self.ids, *self.digests]).encode())

    def read(self, ids: Sequence[str]) -> Items:
        """The items of some ids."""
        return self.refer(ids).rows(range(len(ids)))


def picture_collection(
    folder: str | Path, splits: Sequence[str], size: tuple[int, int, int], seed: int = 0
) -> Collection:
    """The pictures of a folder of images, or of an image set (all, or some of its splits); captions become prompts.

    Pictures that cannot be read, have another size (channels, height, width) or repeat an earlier one are noted. Raises
    ValueError for a folder without pictures that can be scored, splits of what has none, and an id that is there twice.
    """
    folder = Path(folder)
    if is_image_set(folder):
        return _image_set(folder, splits, size, seed)
    if splits:
        raise ValueError(f"the splits {', '.join(splits)} are asked for, but {folder} is no image set; name no splits")
    paths, known = folders.picture_paths(folder), folders.captions(folder)
    digests, notes = {}, folders.unread_folders(folder)
    for path in progress(paths, f"reading {folder}"):
        found, unread = open_pictures([path], size)
        digests |= dict(zip(found, content_digests(list(found.values())), strict=True))
        notes |= unread
    captions = {name: known.get(name, "") for name in digests}
    captioned = any(captions.values())

    def refer(ids: Sequence[str]) -> Items:
        prompts = [captions[name] for name in ids] if captioned else None
        return Items(list(ids), seed, PictureFiles(folder, list(ids), tuple(size)), prompts)

    if not digests:
        raise ValueError(f"none of the pictures in {folder} can be scored: {next(iter(notes.values()))}")
    return _distinct("pictures", str(folder), digests, refer, notes, captions)


def _image_set(folder: Path, splits: Sequence[str], size: tuple[int, int, int], seed: int) -> Collection:
    whole = image_sets.load(folder)
    if "id" not in whole.items:
        raise ValueError(f"{folder / 'items.parquet'} has no column 'id'; every item needs an id of its own")
    parts = [whole.split(name) for name in splits] or [whole]
    images = torch.cat([part.images for part in parts])
    ids = [str(name) for part in parts for name in part.items["id"]]
    captions = [text for part in parts for text in part.items["caption"].fillna("")]
    if tuple(images.shape[1:]) != tuple(size):
        raise ValueError(
            f"{folder} holds pictures of {' x '.join(map(str, images.shape[1:]))}; the model takes {' x '.join(map(str, size))}"
        )
    rows = {name: row for row, name in enumerate(ids)}
    _check_ids(ids, rows, folder)

    def refer(names: Sequence[str]) -> Items:
        chosen = [rows[name] for name in names]
        prompts = [captions[row] for row in chosen] if any(captions) else None
        return Items(list(names), seed, to_float(images[chosen]), prompts)

    digests = dict(zip(ids, content_digests(images), strict=True))
    source = f"{folder} ({', '.join(splits)})" if splits else str(folder)
    return _distinct("pictures", source, digests, refer, {}, dict(zip(ids, captions, strict=True)))


def prompt_collection(path: str | Path, seed: int = 0) -> Collection:
    """The prompts of a file, or of a table with the columns id and prompt; empty and repeated ones are left out and counted.

    Raises ValueError as `memlib.datasets.prompts.read_prompts`, for an id that is there twice, and for no prompts.
    """
    if Path(path).suffix == ".parquet":
        table = image_sets.read_table(Path(path), ("id", "prompt"))
        ids, prompts = (table[name].fillna("").astype(str).tolist() for name in ("id", "prompt"))
    else:
        ids = prompts = read_prompts(path)
    given: dict[str, str] = {}
    for name, prompt in zip(ids, prompts, strict=True):
        if given.get(name, prompt) != prompt:
            raise ValueError(f"{path} has the id {name!r} twice; every item needs an id of its own")
        if prompt.strip():
            given[name] = prompt
    if not given:
        raise ValueError(f"{path} holds only empty prompts; give at least one prompt")

    def refer(names: Sequence[str]) -> Items:
        return Items(list(names), seed, prompts=[given[name] for name in names])

    digests = dict(zip(given, content_digests(given.values()), strict=True))
    found = _distinct("prompts", str(path), digests, refer, {})
    empty = sum(not prompt.strip() for prompt in prompts)
    repeated = len(prompts) - empty - len(found.ids)
    remarks = [
        *([f"{empty} empty prompts are left out"] if empty else []),
        *([f"{repeated} prompts that repeat an earlier one are counted once"] if repeated else []),
    ]
    return Collection("prompts", found.source, found.ids, found.digests, refer, {}, remarks)


def _distinct(
    kind: Kind,
    source: str,
    digests: dict[str, str],
    refer: Callable[[Sequence[str]], Items],
    notes: dict[str, str],
    captions: Mapping[str, str] | None = None,
) -> Collection:
    """Every content once, under its first id in order: a repeated item would be tested twice; captions: of pictures."""
    first: dict[str, str] = {}
    repeats = {}
    for name in sorted(digests):
        if first.setdefault(digests[name], name) != name:
            repeats[name] = f"the same as {first[digests[name]]}, counted once"
    ids = [name for name in sorted(digests) if name not in repeats]
    without = sum(not captions[name] for name in ids) if captions else len(ids)
    remarks = (
        [f"{without} pictures have no caption, so the usual detector reads none"] if 0 < without < len(ids) else []
    )
    return Collection(
        kind, source, ids, [digests[name] for name in ids], refer, notes | repeats, remarks, captioned=not without
    )


def _check_ids(ids: Sequence[str], distinct: dict[str, int], where: Path) -> None:
    if len(distinct) < len(ids):
        doubled = next(name for row, name in enumerate(ids) if distinct[name] != row)
        raise ValueError(f"{where} has the id {doubled!r} twice; every item needs an id of its own")


def content_digests(contents: Iterable[Tensor | str]) -> list[str]:
    """Digests of pictures uint8 [C, H, W] or prompts, as a collection has them."""
    return [_digest(each.encode() if isinstance(each, str) else each.numpy().tobytes()) for each in contents]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
