"""Any folder of images, with captions where there are some."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def picture_paths(folder: str | Path) -> list[Path]:
    """The image files of a folder, sorted by name; raises ValueError if it is no folder or holds none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one with images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        below = next(iter(unread_folders(folder)), None)
        put = (
            f"those of its subfolders, such as {below}, are not read"
            if below
            else f"put files ending in {', '.join(IMAGE_SUFFIXES)} there"
        )
        raise ValueError(f"there are no images in {folder}; {put}")
    return paths


def unread_folders(folder: str | Path) -> dict[str, str]:
    """The subfolders of a folder that hold images, each with why these are not read: those of the folder itself alone are."""
    found = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    return {
        f"{path.name}/": f"{path} is a subfolder, whose images are not read; put them into {folder} itself"
        for path in found
        if any(inner.suffix.lower() in IMAGE_SUFFIXES for inner in path.iterdir())
    }


def captions(folder: str | Path) -> dict[str, str]:
    """Captions by file name, from `metadata.jsonl` (keys file_name and text or caption) and from NAME.txt files.

    The convention of the imagefolder of `datasets`. Raises ValueError for a line of `metadata.jsonl` that is something else,
    and for what is not UTF-8.
    """
    folder = Path(folder)
    found = {}
    metadata = folder / "metadata.jsonl"
    if metadata.exists():
        for number, line in enumerate(lines(metadata), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, caption = row["file_name"], row["text"] if "text" in row else row["caption"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{metadata} line {number} is not an object with file_name and text or caption"
                ) from error
            if not isinstance(caption, str):
                raise ValueError(f"{metadata} line {number}: the caption of {name} is {caption!r}, which is no text")
            found[name] = caption
    for path in folder.glob("*.txt"):
        caption = "\n".join(lines(path)).strip()
        found |= {path.with_suffix(suffix).name: caption for suffix in IMAGE_SUFFIXES}
    return found


def lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, with a byte order mark or without; raises ValueError for another file.

    Unlike `str.splitlines` it does not break at the separators that Unicode has within a text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start})") from error


def open_picture(path: str | Path) -> np.ndarray:
    """A picture as uint8 [H, W, 3]; a transparent one is laid on white.

    Raises ValueError for a file that cannot be read as an image, and for float values that are not finite or outside of 0 to 1.
    """
    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
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
