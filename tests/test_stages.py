"""What a stage records beside its results, and files that appear whole or not at all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from memlib import files
from memlib.study.sections import read_section
from memlib.study.stages import made_here, reporting_errors, stage_times, timed_stage

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def test_a_stage_records_its_time_and_memory_under_the_name_that_dvc_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with timed_stage("truth") as stage:
        stage.earlier_seconds = 100.0
        time.sleep(0.2)
    monkeypatch.setenv("DVC_STAGE", "truth@main")
    with timed_stage("truth"):
        pass
    times = stage_times()
    assert times.keys() == {"truth", "truth@main"}
    assert 100.1 < times["truth"]["seconds"] < 110
    assert times["truth@main"]["seconds"] < 10
    assert 10 < times["truth"]["peak_memory_mib"] < 10**5


def test_a_stage_that_fails_records_nothing_and_says_one_sentence(capsys) -> None:
    with pytest.raises(SystemExit) as ended, reporting_errors("data"), timed_stage("data"):
        raise ValueError("data.root is 'x'; it must be a folder")
    assert str(ended.value) == "stage data: data.root is 'x'; it must be a folder"
    assert stage_times() == {}


def test_tables_know_whether_they_were_made_here(folder: Path) -> None:
    from_git = folder / "tables/old/table.json"
    from_git.parent.mkdir(parents=True)
    from_git.write_text("1")
    long_ago = time.time() - 3600
    os.utime(from_git, (long_ago, long_ago))
    with timed_stage("new"):
        files.write_json("tables/new/table.json", 1)
        files.write_json("metrics/new.json", 1)
    assert made_here(["tables/new"]) is True
    assert made_here(["tables/new/table.json"]) is True
    assert made_here(["tables/old"]) is False
    assert made_here(["tables/new", "tables/old"]) is None
    files.write_json("tables/new/table.json", 2)  # as git would
    assert made_here(["tables/new"]) is False
    with timed_stage("new"):
        files.write_json("tables/new/other.json", 1)
    assert made_here(["tables/new/other.json"]) is True
    assert files.read_json("results/made/new.json").keys() == {"tables/new/table.json", "tables/new/other.json"}


def test_a_section_that_is_missing_is_named_with_the_nearest(folder: Path) -> None:
    (folder / "params.yaml").write_text("volume: {steps: 3}")
    assert read_section("volume") == {"steps": 3}
    with pytest.raises(ValueError, match="params.yaml has no section 'volum'; did you mean 'volume'"):
        read_section("volum")


def test_files_appear_whole_or_not_at_all(folder: Path) -> None:
    target = folder / "folder"
    for content in ("old", "new"):
        with files.atomic_write(target) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
    with pytest.raises(KeyError), files.atomic_write(target) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("broken")
        raise KeyError
    assert (target / "file").read_text() == "new"
    assert [path.name for path in folder.iterdir()] == ["folder"]


def test_a_kill_at_any_moment_leaves_a_folder_whole_or_absent(folder: Path) -> None:
    program = (
        "import itertools\nfrom memlib import files\n"
        "for i in itertools.count():\n"
        "    with files.atomic_write('folder') as new:\n"
        "        new.mkdir()\n"
        "        for j in range(30): (new / str(j)).write_text(str(i))\n"
    )
    seen = set()
    for wait in range(12):
        process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)})
        while process.poll() is None and not (folder / "folder").exists():
            time.sleep(0.001)
        time.sleep(0.1 + wait * 0.00137)
        process.kill()
        process.wait()
        contents = [path.read_text() for path in (folder / "folder").glob("*")]
        assert len(contents) in (0, 30)
        assert len(set(contents)) <= 1
        seen.add(len(contents))
    assert 30 in seen
    with files.atomic_write(folder / "folder") as temporary:
        temporary.mkdir()
    assert [path.name for path in folder.iterdir()] == ["folder"], "what a kill has left is cleared"


def test_what_another_machine_is_writing_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder / "a[1].json"
    monkeypatch.setattr(files.psutil, "pid_exists", lambda process: False)
    left = []
    for process, host in ((1, "elsewhere.org"), (2, "here")):
        monkeypatch.setattr(files.os, "getpid", lambda process=process: process)
        monkeypatch.setattr(files.socket, "gethostname", lambda host=host: host)
        with files.atomic_write(target) as temporary:
            temporary.write_text("1")
            left.append(temporary)
    monkeypatch.setattr(files.os, "getpid", lambda: 3)
    for path in left:
        path.write_text("a part")
    files.write_json(target, 2)
    assert sorted(folder.iterdir()) == sorted([target, left[0]])


class Pair(NamedTuple):
    value: float
    low: float


def test_named_tuples_become_objects_at_any_depth(folder: Path) -> None:
    files.write_json("m.json", {"a": Pair(0.5, 0.4), "b": [{"c": Pair(1, 0)}, 1, None], "d": {"e": [Pair(0, 0)]}})
    assert json.loads((folder / "m.json").read_text()) == {
        "a": {"value": 0.5, "low": 0.4},
        "b": [{"c": {"value": 1, "low": 0}}, 1, None],
        "d": {"e": [{"value": 0, "low": 0}]},
    }
