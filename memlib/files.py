"""Files written whole or not at all, and the one-sentence hints of error messages."""

import difflib
import glob
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it (file or folder) to `path` when the block ends without an error.

    What processes of this machine that were killed have left beside `path` is removed first. A kill leaves the old content,
    the new or, between the two renames of a folder, none, but never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.{glob.escape(host)}.*.tmp"):
        process = int(left.name.split(".")[-2])
        if process == os.getpid() or not psutil.pid_exists(process):
            _remove(left)
    temporary, replaced = (path.with_name(f".{path.name}.{what}.{host}.{os.getpid()}.tmp") for what in ("new", "old"))
    try:
        yield temporary
        if path.is_dir():
            os.replace(path, replaced)
        os.replace(temporary, path)
    finally:
        _remove(temporary)
        _remove(replaced)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON with sorted keys, so that equal content gives equal bytes; a named tuple as an object."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(_as_objects(content), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _as_objects(content: Any) -> Any:
    if hasattr(content, "_asdict"):
        return content._asdict()
    if isinstance(content, dict):
        return {key: _as_objects(value) for key, value in content.items()}
    return [_as_objects(value) for value in content] if isinstance(content, list) else content


def write_table(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table as parquet, without its index; equal tables give equal bytes."""
    with atomic_write(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")


def write_pictures(path: str | Path, images: "Tensor") -> None:
    """Write uint8 pictures [N, C, H, W], C 1 or 3, as one PNG, each below the one before."""
    from PIL import Image

    rows = images.permute(0, 2, 3, 1).flatten(0, 1).contiguous().numpy()
    with atomic_write(path) as temporary:
        Image.fromarray(rows.squeeze(-1) if rows.shape[-1] == 1 else rows).save(temporary, format="png", optimize=True)


def read_pictures(path: str | Path) -> "NDArray[np.uint8]":
    """Square pictures that `write_pictures` has written, as an array [N, H, W, C]."""
    import numpy as np
    from PIL import Image

    rows = np.asarray(Image.open(path))
    side = rows.shape[1]
    return rows.reshape(-1, side, side, 1 if rows.ndim == 2 else rows.shape[2])


def read_json(path: str | Path) -> Any:
    """Content of a JSON file."""
    return json.loads(Path(path).read_text())


def suggest(word: str, known: Iterable[str]) -> str:
    """End of an error message: the nearest valid name if one is near, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} known: {', '.join(known)}"


def to_project_root() -> None:
    """Change to the nearest folder upwards that holds dvc.yaml, so that a notebook runs the same from anywhere in the project."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "dvc.yaml").exists():
            os.chdir(folder)
            return
    raise ValueError(f"{Path.cwd()} is not inside the study: no folder upwards holds dvc.yaml")
