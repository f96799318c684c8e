"""Every stage at toy size in a scratch copy of the working tree; tracked results stay as they are.

The run is killed while it trains and taken up again. Then: `dvc repro` finds nothing to do; edits are made and `dvc status` is
asked what would run; a changed parameter of one chapter runs that chapter and the book; the same stages run twice write the
same tables; and the book is made from tables alone.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from memlib.detectors import ALL
from memlib.files import read_json
from memlib.study import profiles

ROOT = Path(__file__).parent.parent
RUN = [sys.executable, "-m", "memlib.study.run"]
DVC = [sys.executable, "-m", "dvc"]


def run(*arguments: str) -> tuple[set[str], float]:
    """The stages that a run of `memlib.study.run` has run, and its seconds; ends the smoke test when one fails."""
    started = time.monotonic()
    done = subprocess.run([*RUN, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"smoke: {done.stderr}")
    return set(re.findall(r"^\S+  (\S+) done in", done.stdout, re.MULTILINE)), time.monotonic() - started


def repro(*arguments: str) -> tuple[set[str], float]:
    """The same of `dvc repro`."""
    started = time.monotonic()
    done = subprocess.run([*DVC, "repro", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"smoke: {done.stdout}\n{done.stderr}")
    return set(re.findall(r"Running stage '([^']+)'", done.stdout)) - {"code"}, time.monotonic() - started


def kill_while_training() -> float:
    """Start a run and kill it with all it has started as soon as the training has written a checkpoint; its seconds."""
    started = time.monotonic()
    process = subprocess.Popen([*RUN, "train@main"], start_new_session=True, stdout=subprocess.DEVNULL)
    while not Path("results/checkpoints/train@main.pt").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("results/models/main").exists(), "a killed training has left a model"
    return time.monotonic() - started


def status() -> set[str]:
    """The stages that `dvc status` finds changed once the digests of the code are written."""
    subprocess.run([sys.executable, "-m", "memlib.study.prepare"], check=True)
    found = subprocess.run([*DVC, "status", "--json"], capture_output=True, text=True, check=True).stdout
    return json.loads(found).keys() - {"code"}


@contextlib.contextmanager
def edited(path: str, change: Callable[[str], str]) -> Iterator[set[str]]:
    """Edit a file, give the stages that would run, and put it back as it was."""
    before = Path(path).read_text()
    after = change(before)
    assert after != before, path
    Path(path).write_text(after)
    try:
        yield status()
    finally:
        Path(path).write_text(before)


def appended(text: str) -> Callable[[str], str]:
    return lambda content: content + text


def laid_over(**values: dict) -> Callable[[str], str]:
    """params.yaml with values in the place of those of some sections."""

    def change(content: str) -> str:
        study = yaml.safe_load(content)
        return yaml.safe_dump(
            study | {name: study[name] | section for name, section in values.items()}, sort_keys=False
        )

    return change


def check_edits(pages: set[str]) -> None:
    """What `dvc status` says after each kind of edit; `pages` are the chapters."""
    scores = yaml.safe_load(Path("params.yaml").read_text())["scores"]
    arms = yaml.safe_load(Path("params.yaml").read_text())["run"]["text_arms"]
    family = {
        f"scores@{key}"
        for key, entry in scores.items()
        if any(ALL[table["detector"]].startswith("memlib.detectors.p_laplacian:") for table in entry["tables"].values())
    }
    for path in ("memlib/datasets/sources.py", "memlib/training/loop.py", "memlib/detectors/volume.py"):
        with edited(path, lambda text: re.sub(r'"""', '"""More: ', text, count=1) + "\n\n# A comment.\n") as found:
            assert found == set(), f"a comment and a docstring in {path} would run {found}"
    with edited("README.md", appended("More.\n")) as found:
        assert found == set(), f"README: {found}"
    with edited(f"notebooks/{min(pages)}.ipynb", lambda text: text.replace('"# ', '"# More: ', 1)) as found:
        assert found == {"book"}, f"the prose of a page would run {found}"
    for path in ("memlib/study/plotting.py", "memlib/evaluation/roc.py"):
        with edited(path, appended("\nMORE = 1\n")) as found:
            assert found, path
            assert found <= pages | {"claims", "book"}, f"{path} would run {found - pages}"
    with edited("memlib/detectors/p_laplacian.py", appended("\nMORE = 1\n")) as found:
        assert {name for name in found if name.startswith("scores@")} == family
        assert not found & {"data", "train@main", "train@reference", "drawings", "text_base", "sets"}, (
            f"a detector would run {found}"
        )
    more = {"more": {"random_words": 4}}
    change = laid_over(
        run={"text_arms": arms | more},
        scores={"more-text": scores["share-5-text"] | {"model": "results/text/more"}},
    )
    with edited("params.yaml", change) as found:
        new = {name for name in found if name.endswith(("@more", "@more-text"))}
        assert {"text_arm@more", "scores@more-text"} <= new
        assert found - new <= {*pages, "book"}, f"a new arm would run {found - new}"
    with edited("book/claims.yml", lambda text: text.replace("claim: ", "claim: Indeed, ", 1)) as found:
        assert found == {"claims", "book"}, f"the wording of a claim would run {found}"
    with edited("params.yaml", laid_over(mixtures={"seed": 12345})) as found:
        assert found == {"mixtures", "book"}, f"a parameter of one chapter would run {found}"
    assert status() == set(), "the edits were undone"


def check_same_bytes(*stages: str) -> None:
    """Run stages again and compare all tables and metrics with what they were."""
    kept = [path for folder in ("tables", "metrics") for path in Path(folder).rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in kept if path.name != "study.json"}
    repro("--force", "--single-item", *stages)
    different = [str(path) for path, content in before.items() if path.read_bytes() != content]
    assert not different, f"the same run twice gives other {different}"


def check_book(folder: Path, other: Path) -> None:
    """Make the book in another copy from the tables of this one."""
    for name in ("tables", "metrics", "dvc.lock", "book/_static"):
        source, target = folder / name, other / name
        shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)
    with contextlib.chdir(other):
        os.environ.update(profiles.environment("."))
        ran, seconds = run("--book")
        assert not (other / "results/models").exists()
        assert (other / "book/_build/html/index.html").exists()
        assert (other / "dvc.lock").read_bytes() == (folder / "dvc.lock").read_bytes(), "equal runs keep the lock file"
    print(f"smoke: the book was made from tables alone, by {len(ran)} stages in {seconds:.0f} s")


def main() -> None:
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="smoke-") as name:
        folder, other = Path(name, "study"), Path(name, "clone")
        for copy in (folder, other):
            profiles.project_copy(copy, [profiles.read_profile("smoke")])
        with contextlib.chdir(folder):
            os.environ.update(profiles.environment("."))
            killed = kill_while_training()
            ran, seconds = run()
            study = read_json("metrics/study.json")
            assert study["seconds"].keys() - ran == {"code", "data"}, (
                f"these did not run: {study['seconds'].keys() - ran}"
            )
            assert 0 < study["wall_seconds"] <= killed + seconds
            print(f"smoke: killed while training, the same command went on and ended in {seconds:.0f} s")
            ran, seconds = repro()
            assert not ran, f"nothing had changed, yet these stages ran again: {ran}"
            print(f"smoke: a second `dvc repro` did nothing in {seconds:.1f} s")
            pages = {path.stem for path in Path("notebooks").glob("*.ipynb")}
            check_edits(pages)
            print("smoke: after each kind of edit, `dvc status` names what it should")
            check_same_bytes("train@main", "truth@main", "scores@main-volume")
            print("smoke: the same run twice writes the same tables, byte for byte")
        check_book(folder, other)
    after = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    assert before == after, "the working tree has changed"


if __name__ == "__main__":
    main()
