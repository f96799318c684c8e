"""Image sets with planted copies: pictures, captions, splits and how often each training picture is repeated."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlib.files import atomic_write, suggest
from memlib.tensors import to_float

COLUMNS = ("name", "caption", "split", "copies")


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one study, each once.

    images: uint8 [N, C, H, W]. items: one row a picture, in the same order, with the columns `id` (unique), `name`, `caption`,
    `split` and `copies` (how often it is seen in one training epoch; 0 for pictures that no model sees).
    """

    images: Tensor
    items: pd.DataFrame

    @property
    def floats(self) -> Tensor:
        """The pictures in [-1, 1], float32 [N, C, H, W]."""
        return to_float(self.images)

    def rows(self, rows: Sequence[int]) -> "ImageSet":
        """The pictures of these rows, in this order."""
        return ImageSet(self.images[list(rows)], self.items.iloc[list(rows)].reset_index(drop=True))

    def split(self, name: str) -> "ImageSet":
        """The pictures of one split; raises ValueError if there is none of that name."""
        rows = (self.items["split"] == name).to_numpy().nonzero()[0]
        if len(rows) == 0:
            known = sorted(self.items["split"].unique())
            raise ValueError(f"there is no split {name!r} in this image set{suggest(name, known)}")
        return self.rows(rows.tolist())

    def in_turn(self, splits: Sequence[str], count: int) -> "ImageSet":
        """`count` pictures of these splits, one of each number of copies in turn, the most copied first."""
        items = self.items[self.items["split"].isin(splits)]
        order = items.assign(turn=items.groupby("copies").cumcount()).sort_values(
            ["turn", "copies"], ascending=[True, False]
        )
        return self.rows(order.index[:count].tolist())


def check_copies(copies: dict[int, int], pictures: int, split: str) -> None:
    """Raise ValueError unless `copies` maps numbers of copies to numbers of pictures that a split of so many can hold."""
    if min(copies, default=2) < 2 or min(copies.values(), default=0) < 0:
        raise ValueError(
            f"the copies planted in the split {split} must map numbers of copies from 2 up to numbers of pictures; "
            f"they are {copies}"
        )
    if sum(copies.values()) > pictures:
        raise ValueError(
            f"{sum(copies.values())} pictures are to be planted in the split {split}, which holds only {pictures}; "
            "plant fewer or give it more"
        )


def distinct(images: Tensor, min_distance: float) -> Tensor:
    """Indices [M] of the pictures kept when each one nearer than `min_distance` to an earlier kept one is dropped.

    The distance is the root mean square over pixels on the scale [-1, 1].
    """
    flat = to_float(images).flatten(1)
    limit = min_distance * math.sqrt(flat.shape[1])
    kept: list[int] = []
    for start, block in _blocks(flat):
        near_kept = (
            torch.cdist(block, flat[kept]).lt(limit).any(dim=1) if kept else torch.zeros(len(block), dtype=torch.bool)
        )
        near_block = torch.cdist(block, block).lt(limit).tril(-1)
        for row in range(len(block)):
            if not near_kept[row] and not near_block[row, ~near_kept].any():
                kept.append(start + row)
            else:
                near_kept[row] = True
    return torch.tensor(kept)


def _blocks(flat: Tensor, rows: int = 1024) -> Iterator[tuple[int, Tensor]]:
    return ((start, flat[start : start + rows]) for start in range(0, len(flat), rows))


def plant(
    images: Tensor,
    names: list[str],
    captions: list[str],
    splits: dict[str, int],
    copies: dict[str, dict[int, int]],
    seed: int,
) -> ImageSet:
    """Random disjoint splits of the given sizes, with copies planted in some of them.

    `copies` maps a split to how many of its pictures are seen k times; the others are seen once, and pictures of splits
    that are not listed never. The names become the ids. Raises ValueError if a name is there twice, if there are fewer
    pictures than the splits need, or fewer in a split than are to be planted.
    """
    repeated = pd.Series(names)[pd.Series(names).duplicated()]
    if len(repeated):
        raise ValueError(f"two pictures are named {repeated.iloc[0]!r}; give every picture a name of its own")
    wanted = sum(splits.values())
    if wanted > len(images):
        sizes = " + ".join(f"{name} {count}" for name, count in splits.items())
        raise ValueError(
            f"the splits need {wanted} pictures ({sizes}) but there are only {len(images)} distinct ones; "
            "make some of data.splits smaller"
        )
    repeats: list[int] = []
    for split, count in splits.items():
        planted = copies.get(split, {})
        check_copies(planted, count, split)
        several = [k for k, n in sorted(planted.items(), reverse=True) for _ in range(n)]
        repeats += several + [1 if split in copies else 0] * (count - len(several))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:wanted]
    chosen = [names[i] for i in order]
    items = pd.DataFrame(
        {
            "id": chosen,
            "name": chosen,
            "caption": [captions[i] for i in order],
            "split": [split for split, count in splits.items() for _ in range(count)],
            "copies": repeats,
        }
    )
    return ImageSet(images[order], items)


def save(image_set: ImageSet, directory: str | Path) -> None:
    """Write `images.safetensors` and `items.parquet` to a directory, both or none."""
    with atomic_write(directory) as temporary:
        temporary.mkdir(parents=True)
        save_file({"images": image_set.images}, temporary / "images.safetensors")
        image_set.items.to_parquet(temporary / "items.parquet", index=False)


def load(directory: str | Path) -> ImageSet:
    """Read what `save` wrote; raises ValueError for a folder that holds no image set, and for broken files and other pictures."""
    images, items = Path(directory) / "images.safetensors", Path(directory) / "items.parquet"
    for file in (images, items):
        if not file.is_file():
            raise ValueError(f"{directory} is not an image set: there is no {file.name} in it")
    try:
        pictures = load_file(images).get("images")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{images} is broken or cut off ({error}); make it again") from error
    table = read_table(items, COLUMNS)
    if pictures is None or pictures.dtype != torch.uint8 or pictures.ndim != 4 or len(pictures) != len(table):
        found = "nothing of the name" if pictures is None else f"{pictures.dtype} {list(pictures.shape)}"
        raise ValueError(
            f"{images} must hold `images`, uint8 [{len(table)}, C, H, W], a picture an item; it holds {found}"
        )
    return ImageSet(pictures, table)


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table from a parquet file; raises ValueError for a file that is missing or broken, and one without these columns."""
    if not path.is_file():
        raise ValueError(f"there is no table {path}")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # of arrow, too
        raise ValueError(
            f"{path} cannot be read as a parquet file ({str(error).splitlines()[0]}); make it again"
        ) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it needs {', '.join(columns)}")
    return table
