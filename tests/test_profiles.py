"""Profiles: the study with other parameters in a copy of the project."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from memlib.files import read_json, write_json
from memlib.study import profiles

ROOT = Path(__file__).parent.parent
CODE = {
    "cmd": "mkdir -p results/code && echo 1 > results/code/any",
    "always_changed": True,
    "outs": [{"results/code": {"cache": False, "persist": True}}],
}
PARAMS = {
    "data": {"root": "", "size": 8},
    "drawings": {"root": "mine.txt"},
    "growth": {"n": 1, "m": 2},
}
PYTHON = "import yaml, memlib; print(yaml.safe_load(open('params.yaml'))['growth']['n'], file=open('tables/n', 'w'))"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project under git whose default study has run: one stage, its table, its metrics."""
    monkeypatch.chdir(tmp_path)
    stages = {
        "code": CODE,
        "growth": {
            "cmd": f'mkdir -p tables metrics && python -c "{PYTHON}" && cp tables/n metrics/growth.json',
            "deps": ["results/code/any"],
            "params": ["growth"],
            "outs": [{"tables/n": {"cache": False}}, {"kept.png": {"cache": False}}],
            "metrics": [{"metrics/growth.json": {"cache": False}}],
        },
    }
    stages["growth"]["cmd"] += " && touch kept.png"
    for name, content in {
        "dvc.yaml": {"stages": stages},
        "params.yaml": PARAMS,
        "profiles/large.yaml": {"growth": {"n": 100}},
        "profiles/wrong.yaml": {"growht": {"n": 100}},
        ".dvc/config": None,
        "dvc.lock": None,
        "mine.txt": None,
        "kept.png": None,
        "notebooks/old.ipynb": None,
        "tables/n": None,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if content is None else yaml.safe_dump(content))
    (tmp_path / ".gitignore").write_text("/results/\n")
    write_json("metrics/growth.json", 1)
    subprocess.run(["git", "init", "-q"], check=True)
    return tmp_path


@pytest.mark.ci
def test_a_profile_is_laid_over_a_copy_without_what_the_study_has_made(project: Path) -> None:
    folder = project / "results/profiles/large"
    profiles.project_copy(folder, [profiles.read_profile("large")])
    (project / "notebooks/old.ipynb").rename(project / "notebooks/new.ipynb")
    profiles.project_copy(folder, [profiles.read_profile("large")])
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".dvc" not in path.parts}
    assert files == {
        ".gitignore", "dvc.yaml", "params.yaml", "profiles/large.yaml", "profiles/wrong.yaml", "mine.txt", "notebooks/new.ipynb",
    }  # fmt: skip
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    assert parameters["growth"] == {"n": 100, "m": 2}
    assert parameters["drawings"]["root"] == str(project / "mine.txt"), "a user's file is where it was"
    assert parameters["data"]["root"] == ""


@pytest.mark.ci
def test_a_profile_runs_beside_the_default_study_without_an_activated_environment(project: Path) -> None:
    environment = os.environ | {"PATH": "/usr/bin:/bin", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "memlib.study.profiles"]
    run = subprocess.run([*command, "large"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "The metrics are in metrics/large" in run.stdout
    assert read_json("metrics/large/growth.json") == 100
    assert yaml.safe_load((project / "metrics/large/params.yaml").read_text())["growth"]["n"] == 100
    assert read_json("metrics/large/study.json")["machine"]["python"]
    assert read_json("metrics/growth.json") == 1
    assert (project / "tables/n").read_text() == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("larg", "profile larg: there is no profile 'larg'; did you mean 'large'? known: large, wrong"),
        ("wrong", "profile wrong: profiles/wrong.yaml has an unknown section 'growht'; did you mean 'growth'?"),
    ],
)
def test_what_is_no_profile_is_refused(project: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["profiles", name])
    with pytest.raises(SystemExit) as refused:
        profiles.main()
    assert str(refused.value).startswith(message)
    assert not (project / "results/profiles").exists()


def without_dvc(command: list[str], run: Callable = subprocess.run, **how: Any) -> subprocess.CompletedProcess | None:
    """Run what is no configuration of DVC, which takes a third of a second."""
    return None if "dvc" in command else run(command, **how)


@pytest.mark.ci
def test_every_profile_of_the_project_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(profiles.subprocess, "run", without_dvc)
    for path in sorted((ROOT / "profiles").glob("*.yaml")):
        profiles.project_copy(tmp_path / path.stem, [profiles.read_profile(path.stem)])
    smoke = yaml.safe_load((tmp_path / "smoke/params.yaml").read_text())
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert smoke["train"] == default["train"] | profiles.read_profile("smoke")["train"]
    assert (tmp_path / "smoke/memlib/score.py").exists()
    for name in ("dvc.lock", "tables", "metrics", "book/_static/growth.png"):
        assert not (tmp_path / "smoke" / name).exists(), "results of the default study are no sources"
