"""Every stage at toy size in a scratch copy of the working tree; tracked results stay as they are.

The run is killed while it trains and taken up again. Then: a second `dvc repro` does nothing, a changed parameter of
one chapter runs that chapter and the book again, and the pages pass tests/test_book.py.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from memlib import pipeline, profiles

ROOT = Path(__file__).parent.parent
# Stages at this size are mostly imports on one core, so those that do not wait for one another run side by side.
LANES = (
    (("train", "replication", "volume", "frontier"), ("reference", "repeat", "mixtures", "landscape", "model")),
    (
        ("selection", "mirrored", "scratch", "retrain", "repeats", "modification"),
        ("drawings", "estimators", "flow", "flux", "peaks", "autoencoder", "text_base", "text_arm"),
    ),
    (
        ("text_model", "tokens", "prompt_mitigation", "training_mitigation"),
        ("detection", "latent", "text_audit", "false_alarms", "ancestral"),
    ),
)


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`dvc repro`, one thread a stage, waiting for the lock of a run beside it."""
    environment = profiles.environment(folder) | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["dvc", "--wait-for-lock", "repro", *arguments], cwd=folder, env=environment, text=True, **options
    )


def repro(folder: Path, *lanes: Sequence[str]) -> tuple[set[str], float]:
    """Names of the stages that runs of `dvc repro` beside one another run, and the seconds; all of one without arguments."""
    started = time.monotonic()
    runs = [start(folder, *arguments, stdout=subprocess.PIPE) for arguments in lanes or [()]]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda run: run.communicate()[0], runs))
    for run, output in zip(runs, outputs, strict=True):
        if run.returncode:
            print(output)
            sys.exit("smoke: a stage failed")
    return set(re.findall(r"Running stage '([^']+)'", "\n".join(outputs))), time.monotonic() - started


def kill_while_training(folder: Path) -> None:
    """Start `dvc repro` and kill it with all it has started as soon as the training has written a checkpoint."""
    process = start(folder, "-q", "train", start_new_session=True)
    while not (folder / "results/checkpoints/train.pt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "results/model").exists(), "a killed training has left a model"


def main() -> None:
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="smoke-") as name:
        folder = Path(name)
        profiles.project_copy(folder, [profiles.read_profile("smoke")])
        with contextlib.chdir(folder):
            stages = set(pipeline.stage_names())
        kill_while_training(folder)
        ran, seconds = set(), 0.0
        for lanes in (*([("--single-item", *lane) for lane in step] for step in LANES), [()]):
            stages_of_step, seconds_of_step = repro(folder, *lanes)
            ran |= stages_of_step
            seconds += seconds_of_step
        assert stages - ran == {"data"}, f"after a kill while training, these stages did not run: {stages - ran}"
        print(f"smoke: killed while training, `dvc repro` went on and ended in {seconds:.0f} s")
        ran, seconds = repro(folder)
        assert not ran, f"nothing had changed, yet these stages ran again: {ran}"
        seconds = min(seconds, repro(folder)[1])  # the better of two: a shared machine may be busy with something else
        assert seconds < 3, f"a `dvc repro` with nothing to do took {seconds:.1f} s"
        print(f"smoke: a second `dvc repro` did nothing in {seconds:.1f} s")
        parameters = yaml.safe_load((folder / "params.yaml").read_text())
        parameters["mixtures"]["repeats"] += 1
        (folder / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))
        ran, seconds = repro(folder)
        assert ran == {"mixtures", "reproducibility", "book", "study"}, (
            f"a parameter of one chapter was changed, and these stages ran: {ran}"
        )
        print(f"smoke: a changed parameter ran {', '.join(sorted(ran))} in {seconds:.0f} s")
        before_again = {
            path.name: path.read_bytes() for path in (folder / "metrics").glob("*.json") if path.name != "study.json"
        }
        repro(folder, ("--force", "--single-item", "train", "replication", "volume"))
        different = [
            name for name, content in before_again.items() if (folder / "metrics" / name).read_bytes() != content
        ]
        assert not different, f"the same run twice gives other metrics: {different}"
        print("smoke: the same run twice gives the same metrics, byte for byte")
        pages = subprocess.run(
            [sys.executable, "-m", "pytest", "tests/test_book.py", "-rs"],
            cwd=ROOT,
            env=os.environ | {"BOOK_HTML": str(folder / "book/_build/html")},
        )
        if pages.returncode:
            sys.exit("smoke: the pages of the book failed")
    after = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    assert before == after, "the working tree has changed"


if __name__ == "__main__":
    main()
