"""What every stage leaves beside its results: its time and memory, the digests of its tables, and a clear error.

None of these files is an output of DVC: they differ between equal runs and between machines, and dvc.lock must not.
"""

import hashlib
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from memlib.files import read_json, write_json

TIMES = Path("results/times")  # STAGE.json: seconds, peak_memory_mib
MADE = Path("results/made")  # STAGE.json: digest of each file under tables/ that the stage has written on this machine
TABLES = Path("tables")
WALL = Path("results/wall.json")  # seconds of the runs side by side until every stage had run once
STUDY = Path(
    "metrics/study.json"
)  # seconds by stage, their sum and on the clock, peak memory and machine of a full run


@contextmanager
def timed_stage(name: str) -> Iterator[SimpleNamespace]:
    """Record a block that ends well: seconds, peak memory (MiB) and the tables that it has written.

    The name is that of DVC's stage where DVC runs the block. `earlier_seconds` of the object given may be set to what
    interrupted runs had spent before.
    """
    name = os.environ.get("DVC_STAGE", name)
    stage = SimpleNamespace(earlier_seconds=0.0)
    started, clock = time.time(), time.monotonic()
    yield stage
    made = MADE / f"{name}.json"
    written = _digests(TABLES, changed_since=started - 1)  # a second, since file systems keep coarse times
    if written:
        write_json(made, (read_json(made) if made.exists() else {}) | written)
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    scale = 2**20 if sys.platform == "darwin" else 2**10
    seconds = round(stage.earlier_seconds + time.monotonic() - clock, 1)
    write_json(TIMES / f"{name}.json", {"seconds": seconds, "peak_memory_mib": round(kilobytes / scale)})


@contextmanager
def reporting_errors(name: str) -> Iterator[None]:
    """Turn a refused input or a failed cell into a message on stderr and exit status 1."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        sys.exit(f"stage {os.environ.get('DVC_STAGE', name)}: {error}")


def stage_times(root: str | Path = ".") -> dict[str, dict[str, float]]:
    """Seconds and peak memory of the last run of each stage that has run on this machine."""
    return {path.stem: read_json(path) for path in sorted(Path(root, TIMES).glob("*.json"))}


def forget_times() -> None:
    """Forget the times of stages and the time of the run, but that of the stage `code`, which runs before all others."""
    for path in [*TIMES.glob("*.json"), WALL]:
        if path.stem != "code":
            path.unlink(missing_ok=True)


def made_here(paths: Iterable[str | Path]) -> bool | None:
    """Whether all files at or under the paths are as a stage has written them on this machine; None where only some are."""
    made = {item for record in MADE.glob("*.json") for item in read_json(record).items()}
    found = {item in made for path in paths for item in _digests(path).items()}
    return None if len(found) == 2 else found == {True}


def _digests(path: str | Path, changed_since: float = 0.0) -> dict[str, str]:
    """Digests of the file at a path, or of all under it; stages beside this one may be writing some of them."""
    path, found = Path(path), {}
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    for file in files:
        try:
            if file.stat().st_mtime >= changed_since and ".tmp" not in str(file):
                found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
        except FileNotFoundError:
            continue
    return found
