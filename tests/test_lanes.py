"""Stages side by side, on small DVC projects that the tests make."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from memlib.study import run

ROOT = Path(__file__).parent.parent
CODE = {
    "cmd": "mkdir -p results/code && echo 1 > results/code/any",
    "always_changed": True,
    "outs": [{"results/code": {"cache": False, "persist": True}}],
}


def project(folder: Path, stages: dict[str, dict], **params: object) -> Path:
    """A DVC project of these stages; each depends on `code` and writes results/NAME, if it says nothing else."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    named = {}
    for name, stage in stages.items():
        inner = {"outs": [f"results/{name}"]} | stage
        inner["deps"] = ["results/code/any", *(f"results/{need}" for need in stage.get("deps", []))]
        named[name] = inner
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"code": CODE} | named}))
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", "memlib.study.run", "--lanes", "2", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored in what a shell runs in the background
    )


def ran(folder: Path, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Exit status, how each stage that ran has ended, and what was said on stderr."""
    process = start(folder, *arguments)
    output, errors = process.communicate(timeout=60)
    return process.returncode, dict(re.findall(r"^\S+  (\S+) (done|failed) in", output, re.MULTILINE)), errors


def wait_for(path: Path) -> None:
    for _ in range(400):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has not come")


@pytest.mark.ci  # a whole run by a process of its own, as the three below; the smoke run asks the same of the study
def test_independent_stages_run_side_by_side_with_one_thread_each(tmp_path: Path) -> None:
    meet = "touch {0}; for i in $(seq 200); do [ -e {1} ] && break; sleep 0.05; done; [ -e {1} ] && {2}"
    project(
        tmp_path,
        {
            "left": {"cmd": meet.format("l", "r", "echo $OMP_NUM_THREADS > results/left")},
            "right": {"cmd": meet.format("r", "l", "echo right > results/right")},
            "sum": {"cmd": "cat results/left results/right > results/sum", "deps": ["left", "right"]},
        },
    )
    assert ran(tmp_path)[:2] == (0, {"left": "done", "right": "done", "sum": "done"})
    assert (tmp_path / "results/sum").read_text() == "1\nright\n"
    assert ran(tmp_path)[:2] == (0, {}), "nothing has changed"


@pytest.mark.ci
def test_a_stage_is_kept_with_the_code_of_its_start(tmp_path: Path) -> None:
    """Code that is changed while a stage runs is no part of what it has run with."""
    project(tmp_path, {"slow": {"cmd": "cat results/code/any > results/slow; echo 2 > results/code/any"}})
    assert ran(tmp_path)[:2] == (0, {"slow": "done"})
    assert (tmp_path / "results/slow").read_text() == "1\n"
    assert ran(tmp_path)[:2] == (0, {}), "the stage `code` has put back the code that it ran with"


@pytest.mark.ci
def test_a_stage_runs_again_when_what_it_reads_has_changed_and_is_known(tmp_path: Path) -> None:
    """What DVC has in its cache of a stage is of other inputs."""
    stages = {
        "one": {"cmd": "grep number params.yaml > results/one", "params": ["number"]},
        "two": {"cmd": "cat results/one > results/two", "deps": ["one"]},
    }
    project(tmp_path, stages, number=1)
    for number in (1, 2, 1):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"number": number}))
        assert ran(tmp_path)[:2] == (0, {"one": "done", "two": "done"})
        assert (tmp_path / "results/two").read_text() == f"number: {number}\n"


@pytest.mark.ci
def test_dvc_itself_finds_done_what_lanes_have_done(tmp_path: Path) -> None:
    long = {
        "text": "a sentence that is so long that the writer of YAML has to break it somewhere: here, or there",
        "x": [1e-3],
    }
    project(
        tmp_path,
        {
            "one": {"cmd": "echo 1 > results/one", "params": ["long"]},
            "two": {"cmd": "cat results/one > results/two  # " + "x" * 90, "deps": ["one"]},
        },
        long=long,
    )
    assert ran(tmp_path)[0] == 0
    written = (tmp_path / "dvc.lock").read_bytes()
    dvc = [sys.executable, "-m", "dvc", "repro"]
    output = subprocess.run(dvc, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.findall("Running stage '(.+)'", output) == ["code"]
    assert (tmp_path / "dvc.lock").read_bytes() == written, "the lock file is in DVC's own form"
    params = yaml.safe_dump({"long": long | {"x": [2e-3]}})
    (tmp_path / "params.yaml").write_text(params)
    assert ran(tmp_path)[:2] == (0, {"one": "done"}), "a stage whose inputs came out the same is not run"
    again = (tmp_path / "dvc.lock").read_text()
    assert list(yaml.safe_load(again)["stages"]) == ["code", "one", "two"]
    assert again.replace("0.002", "0.001").encode() == written


@pytest.mark.ci
def test_a_failing_stage_stops_only_those_that_need_it(tmp_path: Path) -> None:
    project(
        tmp_path,
        {
            "bad": {"cmd": "echo stage bad: the sky is green >&2; test -e mended && echo 1 > results/bad"},
            "good": {"cmd": "sleep 1; echo 1 > results/good"},
            "after_good": {"cmd": "cat results/good > results/after_good", "deps": ["good"]},
            "after_bad": {"cmd": "cat results/bad > results/after_bad", "deps": ["bad", "good"]},
        },
    )
    status, outcomes, errors = ran(tmp_path)
    assert (status, outcomes) == (1, {"bad": "failed", "good": "done", "after_good": "done"})
    assert "bad failed; the end of results/logs/bad.txt:" in errors
    assert "stage bad: the sky is green" in errors
    assert "Not run, since they need bad: after_bad" in errors
    assert "Traceback" not in errors
    (tmp_path / "mended").touch()
    assert ran(tmp_path)[:2] == (0, {"bad": "done", "after_bad": "done"})


@pytest.mark.ci
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_ends_its_stages_and_goes_on_with_the_same_command(tmp_path: Path, sent: int) -> None:
    project(
        tmp_path,
        {
            "quick": {"cmd": "echo 1 > results/quick"},
            "slow": {"cmd": "echo $$ > slow_pid; touch slow_pid.whole; while ! [ -e enough ]; do sleep 0.1; done; "
                            "cat results/quick > results/slow", "deps": ["quick"]},
        },
    )  # fmt: skip
    process = start(tmp_path)
    wait_for(tmp_path / "slow_pid.whole")
    stage = psutil.Process(int((tmp_path / "slow_pid").read_text()))
    process.send_signal(sent)
    process.communicate(timeout=20)
    assert process.returncode != 0
    stage.wait(10)  # raises if it goes on
    (tmp_path / "enough").touch()
    status, outcomes, errors = ran(tmp_path)
    assert (status, outcomes) == (0, {"slow": "done"}), errors


@pytest.mark.ci
def test_a_program_of_the_package_runs_in_a_fork_as_python_would_run_it(tmp_path: Path) -> None:
    project(
        tmp_path,
        {
            "bad": {"cmd": "python -m memlib.study.notebook 'no such'"},
            "two": {"cmd": ["python -m memlib.cli --help", "test $DVC_STAGE = two && echo 1 > results/two"]},
            "half": {"cmd": ["python -m memlib.cli nothing", "echo 1 > results/half"]},
        },
    )
    status, outcomes, errors = ran(tmp_path)
    assert (status, outcomes) == (1, {"bad": "failed", "two": "done", "half": "failed"})
    assert "stage bad: there is no notebook 'no such'" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "results/logs/two.txt").read_text().startswith("usage: ")
    assert not (tmp_path / "results/half").exists()


@pytest.mark.ci
def test_the_book_is_made_from_tables_that_are_there(tmp_path: Path) -> None:
    project(
        tmp_path,
        {
            "train": {"cmd": "echo 1 > results/train"},
            "scores": {"cmd": "cat results/train > table", "deps": ["train"], "outs": [{"table": {"cache": False}}]},
            "page": {"cmd": "mkdir -p results/chapters; cat table > results/chapters/page.ipynb",
                     "outs": ["results/chapters/page.ipynb"]},
            "claims": {"cmd": "cat results/chapters/page.ipynb > results/claims", "deps": ["chapters/page.ipynb"]},
            "book": {"cmd": "cat results/claims > results/book", "deps": ["claims"]},
        },
    )  # fmt: skip
    stages = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    stages["stages"]["page"]["deps"].append("table")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stages))
    (tmp_path / "table").write_text("from git\n")
    assert ran(tmp_path, "--book")[:2] == (0, {"page": "done", "claims": "done", "book": "done"})
    assert (tmp_path / "results/book").read_text() == "from git\n"
    assert ran(tmp_path, "page")[1] == {"train": "done", "scores": "done", "page": "done"}, "with all that it needs"


def test_a_stage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    project(tmp_path, {"growth": {"cmd": "echo 1 > results/growth"}})
    status, outcomes, errors = ran(tmp_path, "grow")
    assert (status, outcomes) == (1, {})
    assert errors.strip() == "there is no stage 'grow'; did you mean 'growth'? known: code, growth"


@pytest.mark.ci
def test_the_wall_time_is_that_of_runs_until_every_stage_had_run_once(tmp_path: Path) -> None:
    timed = (
        "mkdir -p results/times; sleep 0.5; echo '{\"seconds\": 1}' > results/times/%s.json; echo $RANDOM > results/%s"
    )
    project(tmp_path, {name: {"cmd": timed % (name, name)} for name in ("one", "two")}, n=1)
    stages = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    stages["stages"]["code"]["cmd"] += "; mkdir -p results/times; echo '{\"seconds\": 0}' > results/times/code.json"
    stages["stages"]["two"]["params"] = ["n"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stages))
    wall = tmp_path / "results/wall.json"
    ran(tmp_path, "one")
    assert not wall.exists(), "not a run of all stages"
    ran(tmp_path)
    first = json.loads(wall.read_text())["seconds"]
    assert 0.5 < first < 30
    (tmp_path / "params.yaml").write_text("n: 2")
    assert ran(tmp_path)[1] == {"two": "done"}
    assert json.loads(wall.read_text())["seconds"] == first


GRAPH = {"code": set(), "data": {"code"}, "train": {"data"}, "scores": {"train"}, "page": {"scores"}, "other": {"code"}}


def test_parts_of_a_graph() -> None:
    assert run.with_needed(GRAPH, ["train"]).keys() == {"train", "data", "code"}
    assert run.only(GRAPH, {"page", "train"}) == {"page": set(), "train": set()}


def test_the_head_of_the_longest_chain_comes_first() -> None:
    seconds = {"code": 0.0, "data": 2.0, "train": 100.0, "scores": 10.0, "page": 5.0, "other": 50.0}
    chains = run.longest_chains(GRAPH, seconds)
    assert chains == {"page": 5, "scores": 15, "train": 115, "data": 117, "other": 50, "code": 117}


def test_the_time_left_is_that_of_the_longest_chain_or_of_all_the_work(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/study.json").write_text(
        json.dumps({"seconds": {"train": 100.0, "scores": 10.0, "other": 50.0}})
    )
    display = run.Display(run.only(GRAPH, {"train", "scores", "other"}), lanes=2)
    assert display.left() == 110
    display.end("train", "unchanged")
    assert display.left() == 50
    display.lanes = 1
    assert display.left() == 60


def test_the_time_left_follows_the_pace_of_what_has_ended(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "expected_seconds", lambda graph: {"train": 100.0, "scores": 10.0, "other": 50.0})
    display = run.Display(run.only(GRAPH, {"train", "scores", "other"}), lanes=2)
    monkeypatch.setattr(run.time, "monotonic", lambda: 0.0)
    display.start("train")
    monkeypatch.setattr(run.time, "monotonic", lambda: 200.0)
    display.end("train", "done")
    assert 90 < display.left() < 100, "this machine is half as fast"
    assert "train done in 3 min  (1 of 3 stages, about 96 s left)" in capsys.readouterr().out


def test_the_time_left_is_not_that_of_a_short_first_stage(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "expected_seconds", lambda graph: {"train": 1000.0, "other": 1.0})
    display = run.Display(run.only(GRAPH, {"train", "other"}), lanes=1)
    monkeypatch.setattr(run.time, "monotonic", lambda: 0.0)
    display.start("other")
    monkeypatch.setattr(run.time, "monotonic", lambda: 10.0)
    display.end("other", "done")
    assert 1000 < display.left() < 1200, "ten times as slow, for a second of a thousand"


def test_a_terminal_shows_what_runs_and_its_last_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    display = run.Display(run.only(GRAPH, {"train", "scores", "other"}), lanes=2)
    display.console = run.Console(force_terminal=True, width=80, file=io.StringIO(), highlight=False)
    display.live = run.Live(console=display.console, auto_refresh=False)
    (tmp_path / "results/logs").mkdir(parents=True)
    (tmp_path / "results/logs/train.txt").write_text("loading\ntraining: 300 of 1300, 40 s left\n")
    with display.live:
        display.start("train")
        display.refresh()
    shown = display.console.file.getvalue()
    assert re.search(r"train +0 of about 10 s +training: 300 of 1300, 40 s left", shown)
    assert re.search(r"0 of 3 stages +about 20 s left", shown)
