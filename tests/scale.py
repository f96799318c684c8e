"""Seconds and memory of `memlib score` against the number of items: `make scale`.

Writes metrics/scale.json and the tables of book/scale.md. Seconds are of the processor (user and system) of one process with
one thread, which on an idle machine are those of the clock.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from memlib.files import read_json, write_json

METRICS, PAGE = Path("metrics/scale.json"), Path("book/scale.md")
MODEL, TEXT = "results/models/main", "results/text/base"
PICTURES, PROMPTS, NO_NETWORK = (1_000, 20_000), (200, 1_000), (1_000, 20_000, 200_000)
LOSS = ("--detectors", "loss", "--setting", "sigma=0.2", "draws=[1]")
MAGNITUDE = ("--detectors", "magnitude", "--setting", "noises=1")
KINDS = {
    "pictures": "pictures, the loss with 1 draw",
    "prompts": "prompts, the magnitude with 1 noise",
    "no_network": "prompts, their length: no network",
}
WORKERS, LARGE = (1, 8, 64), {"pictures": 10**6, "prompts": 10**8}
START, END = "<!-- measured -->", "<!-- end of what is measured -->"


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds of the processor and most memory of `memlib score` in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "memlib.cli", "score", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"memlib score {' '.join(arguments)} ended with the status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(usage.ru_utime + usage.ru_stime, 1), "memory_mib": round(usage.ru_maxrss / 1024, 1)}


def write_pictures(folder: Path, count: int, size: int) -> list[str]:
    """A folder of pictures of noise; gives the arguments that name it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number:07}.png")
    return ["--images", str(folder), *LOSS]


def write_prompts(path: Path, count: int, detector: Sequence[str]) -> list[str]:
    """A file of prompts; gives the arguments that name it."""
    path.write_text("".join(f"a red apple on a tree {number}\n" for number in range(count)))
    return ["--prompts", str(path), *detector]


def linear(found: dict[int, dict[str, float]]) -> dict[str, float]:
    """What an item more takes, between the first and the last number of items; memory of the second against the first."""
    (few, first), (_, second), *_ = found.items()
    many, last = [*found.items()][-1]
    each = {name: (last[name] - first[name]) / (many - few) for name in first}
    return {
        "seconds_each": each["seconds"],
        "bytes_each": each["memory_mib"] * 2**20,
        "memory_ratio": second["memory_mib"] / first["memory_mib"],
    }


def duration(seconds: float) -> str:
    """Seconds in words."""
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"


def tables(result: dict) -> str:
    """What was measured, and what it comes to for many items, as MyST."""
    lines = ["| Items | Number | Seconds | Memory, MiB |", "|---|---:|---:|---:|"]
    for kind, name in KINDS.items():
        for count, run in result[kind]["runs"].items():
            lines.append(f"| {name} | {int(count):,} | {run['seconds']:.0f} | {run['memory_mib']:.0f} |")
    heads = " | ".join(f"{workers} workers" if workers > 1 else "1 worker" for workers in WORKERS)
    lines += ["", f"| Items | Milliseconds each | {heads} |", "|---|---:|" + "---:|" * len(WORKERS)]
    for kind, count in LARGE.items():
        each = result[kind]["seconds_each"]
        spans = " | ".join(duration(count * each / workers) for workers in WORKERS)
        lines.append(f"| {count:,} {KINDS[kind]} | {1000 * each:.1f} | {spans} |")
    return "\n".join(lines)


def with_tables(page: str, result: dict) -> str:
    """The page with the tables of a result between its two marks."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{tables(result)}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="folder of an unconditional model")
    parser.add_argument("--text", default=TEXT, help="folder of a text-to-image model")
    options = parser.parse_args()
    size = read_json(Path(options.model) / "unet" / "config.json")["sample_size"]
    kinds: dict[str, tuple[str, Sequence[int], Callable[[Path, int], list[str]]]] = {
        "pictures": (options.model, PICTURES, lambda path, count: write_pictures(path, count, size)),
        "prompts": (options.text, PROMPTS, lambda path, count: write_prompts(path, count, MAGNITUDE)),
        "no_network": (
            options.text,
            NO_NETWORK,
            lambda path, count: write_prompts(path, count, ("--detectors", "prompt_length")),
        ),
    }
    result = {"machine": platform.machine(), "cores": os.cpu_count(), "size": size}
    for kind, (model, counts, write) in kinds.items():
        found = {}
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                given = write(Path(folder) / "items", count)
                found[count] = measured([model, *given, "--output", f"{folder}/scores"])
            print(kind, count, found[count], flush=True)
        result[kind] = {"runs": {str(count): run for count, run in found.items()}} | linear(found)
    write_json(METRICS, result)
    PAGE.write_text(with_tables(PAGE.read_text(), result))


if __name__ == "__main__":
    main()
