"""Seconds and memory of `memlib score` and `memlib audit` against the number of items: `make scale`.

Writes metrics/scale.json and the tables of book/scale.md. Seconds are of the processor (user and system) of one process, and
beside them those of the clock, from the start of the command to its end.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from memlib.files import read_json, write_json

METRICS, PAGE = Path("metrics/scale.json"), Path("book/scale.md")
MODEL, TEXT = "results/models/main", "results/text/base"
PICTURES, PROMPTS, NO_NETWORK = (1_000, 20_000), (1_000, 20_000), (1_000, 20_000, 200_000)
NULLS = 300  # of an audit
AIMS = {"clock_seconds": 60, "memory_ratio": 1.1}  # of an audit of 1,000 pictures, and of 20,000 against 1,000
LOSS = ("--detectors", "loss", "--setting", "sigma=0.2", "draws=[1]")
MAGNITUDE = ("--detectors", "magnitude", "--setting", "noises=1")
LENGTH = ("--detectors", "prompt_length")
KINDS = {
    "pictures": "pictures, the loss with 1 draw",
    "prompts": "prompts, the magnitude with 1 noise",
    "no_network": "prompts, their length: no network",
    "audit": f"pictures, a whole audit with {NULLS} nulls",
}
WORKERS, LARGE = (1, 8, 64), {"pictures": 10**6, "prompts": 10**8}
START, END = "<!-- measured -->", "<!-- end of what is measured -->"


def measured(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds of the processor and of the clock, and most memory, of a command of memlib in a process of its own."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "memlib.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"memlib {' '.join(arguments)} ended with the status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "clock_seconds": round(time.perf_counter() - begun, 1),
        "memory_mib": round(usage.ru_maxrss / 1024, 1),
    }


def write_pictures(folder: Path, count: int, size: int, seed: int = 0) -> str:
    """A folder of pictures of noise; gives its name."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number:07}.png")
    return str(folder)


def write_prompts(path: Path, count: int) -> str:
    """A file of prompts; gives its name."""
    path.write_text("".join(f"a red apple on a tree {number}\n" for number in range(count)))
    return str(path)


def write_audit(folder: Path, count: int, size: int) -> list[str]:
    """Pictures of noise to be audited, and nulls; gives the arguments that name them."""
    folder.mkdir()
    suspects, nulls = (
        write_pictures(folder / name, number, size, seed)
        for seed, (name, number) in enumerate({"suspects": count, "nulls": NULLS}.items())
    )
    return ["--images", suspects, "--null-images", nulls]


def linear(found: dict[int, dict[str, float]]) -> dict[str, float]:
    """What an item more takes, between the first and the last number of items; memory of the second against the first."""
    (few, first), (_, second), *_ = found.items()
    many, last = [*found.items()][-1]
    each = {name: (last[name] - first[name]) / (many - few) for name in ("seconds", "memory_mib")}
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
    """What was measured of each kind, what an item more takes, and what it comes to for many items, as MyST."""
    kinds = {kind: name for kind, name in KINDS.items() if kind in result}
    lines = ["| Items | Number | Seconds of the processor | Memory, MiB |", "|---|---:|---:|---:|"]
    for kind, name in kinds.items():
        for count, run in sorted(result[kind]["runs"].items(), key=lambda pair: int(pair[0])):
            lines.append(f"| {name} | {int(count):,} | {run['seconds']:.0f} | {run['memory_mib']:.0f} |")
    lines += ["", "| An item more of | Milliseconds of the processor | Bytes of memory |", "|---|---:|---:|"]
    for kind, name in kinds.items():
        lines.append(f"| {name} | {1000 * result[kind]['seconds_each']:.2f} | {result[kind]['bytes_each']:,.0f} |")
    if "audit" in result:
        found = {"clock_seconds": result["audit"]["runs"]["1000"]["clock_seconds"]} | result["audit"]
        held = {name: "met" if found[name] <= aim else "missed" for name, aim in AIMS.items()}
        lines += [
            "",
            f"An audit of 1,000 pictures took {found['clock_seconds']:.0f} seconds of the clock, from its start to its report, "
            f"on a machine of {result['cores']} cores; the aim of {AIMS['clock_seconds']} is {held['clock_seconds']}. Of 20,000 "
            f"pictures it took {found['memory_ratio']:.2f} times the memory; the aim of {AIMS['memory_ratio']} is "
            f"{held['memory_ratio']}.",
        ]
    heads = " | ".join(
        f"{workers} workers, if shared without loss" if workers > 1 else "1 worker" for workers in WORKERS
    )
    lines += ["", f"| Items | {heads} |", "|---|" + "---:|" * len(WORKERS)]
    for kind, count in LARGE.items():
        each = result[kind]["seconds_each"]
        spans = " | ".join(duration(count * each / workers) for workers in WORKERS)
        lines.append(f"| {count:,} {KINDS[kind]} | {spans} |")
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
    kinds: dict[str, tuple[Sequence[int], Callable[[Path, int], list[str]]]] = {
        "pictures": (
            PICTURES,
            lambda path, count: ["score", options.model, "--images", write_pictures(path, count, size), *LOSS],
        ),
        "prompts": (
            PROMPTS,
            lambda path, count: ["score", options.text, "--prompts", write_prompts(path, count), *MAGNITUDE],
        ),
        "no_network": (
            NO_NETWORK,
            lambda path, count: ["score", options.text, "--prompts", write_prompts(path, count), *LENGTH],
        ),
        "audit": (PICTURES, lambda path, count: ["audit", options.model, *write_audit(path, count, size)]),
    }
    result = {"machine": platform.machine(), "cores": os.cpu_count(), "size": size}
    for kind, (counts, write) in kinds.items():
        found = {}
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                found[count] = measured([*write(Path(folder) / "items", count), "--output", f"{folder}/output"])
            print(kind, count, found[count], flush=True)
        result[kind] = {"runs": {str(count): run for count, run in found.items()}} | linear(found)
    write_json(METRICS, result)
    PAGE.write_text(with_tables(PAGE.read_text(), result))


if __name__ == "__main__":
    main()
