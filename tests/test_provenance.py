"""What a page says of the stages that its results come from, and when it warns, on small projects that the tests make."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from memlib.files import write_json
from memlib.study import provenance

MACHINE = {"processor": "Abacus <1>", "cores": 2, "gpus": ["Jet"]}


def git(*arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(**seeds: int) -> str:
    """Commit a dvc.lock of stages with these seeds, and give the commit."""
    entries = {name: {"cmd": "x", "params": {"p.json": {"seed": seed}}} for name, seed in seeds.items()}
    provenance.LOCK.write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))
    git("add", "-A")
    git("commit", "-qm", "x")
    return git("rev-parse", "HEAD")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("growth", "pair@a"):
        write_json(f"results/times/{name}.json", {"seconds": 11.4, "peak_memory_mib": 1})
    return tmp_path


def digest(page: str) -> str:
    return page.split("parameters: <code>")[1].split("<")[0]


def test_a_stage_is_told_with_the_commit_of_its_entry_and_its_parameters(project: Path) -> None:
    git("init", "-qb", "main")
    first = commit(**{"growth": 1, "pair@a": 1})
    second = commit(**{"growth": 1, "pair@a": 2})
    told = provenance.provenance(["growth", "pair@a", "never run"], MACHINE)
    assert told.keys() == {"growth", "pair@a"}
    assert f"<summary>Stage growth, commit {first[:7]}</summary>" in told["growth"]
    assert second in told["pair@a"]
    assert "Made in 11 s on Abacus &lt;1&gt; (2 cores), Jet" in told["growth"]
    assert "<pre>dvc repro -f -s pair@a</pre>" in told["pair@a"]
    assert digest(told["growth"]) != digest(told["pair@a"]), "other parameters"
    provenance.LOCK.write_text(provenance.LOCK.read_text().replace("seed: 2", "seed: 1"))
    told = provenance.provenance(["growth", "pair@a"], MACHINE)
    assert digest(told["growth"]) == digest(told["pair@a"])
    assert "not committed yet" in told["pair@a"]
    assert "not committed yet" not in told["growth"]


def test_without_a_history_no_commit_is_told(project: Path) -> None:
    provenance.LOCK.write_text("schema: '2.0'\nstages:\n  growth:\n    cmd: x\n")
    (told,) = provenance.provenance(["growth"], MACHINE).values()
    assert "commit" not in told
    assert "parameters" not in told, "it has none"


def test_what_has_changed_since_it_was_made_is_stale_and_what_is_not_here_is_not(project: Path) -> None:
    from dvc.repo import Repo

    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    stages = {
        "model": {"cmd": "cp code model", "deps": ["code"], "outs": ["model"]},
        "table": {
            "cmd": "cp model table",
            "deps": ["model"],
            "params": ["seed"],
            "outs": [{"table": {"cache": False, "persist": True}}],
        },
        "page": {"cmd": "cp table page", "deps": ["table"], "outs": ["page"]},
    }
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (project / "params.yaml").write_text("seed: 1\n")
    (project / "code").write_text("1\n")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    assert provenance.stale(Repo()) == set()
    shutil.rmtree(project / ".dvc/cache")
    assert provenance.stale(Repo()) == set(), "what is not in DVC's cache is none the older"
    (project / "model").unlink()
    assert provenance.stale(Repo()) == set(), "as in a clone, which has the tables only"
    (project / "code").write_text("2\n")
    assert provenance.stale(Repo()) == {"model"}
    (project / "params.yaml").write_text("seed: 2\n")
    assert provenance.stale(Repo()) == {"model", "table"}
    (project / "code").write_text("1\n")
    (project / "params.yaml").write_text("seed: 1\n")
    (project / "table").write_text("by hand\n")
    assert provenance.stale(Repo()) == {"table", "page"}
    (project / "table").write_text("1\n")
    stages["page"]["cmd"] = "cp table page && true"
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert provenance.stale(Repo()) == {"page"}


def test_a_page_warns_of_stages_by_their_kind_else_of_tables_made_elsewhere(project: Path) -> None:
    write_json("tables/a.json", [1])
    warning = provenance.banner(["tables/a.json"], ["pair@a", "pair@b", "data"])
    assert "warning" in warning
    assert "<code>data</code>, <code>pair</code>." in warning
    assert "not made on this machine" in provenance.banner(["results/code/x", "tables/a.json"], [])
    assert provenance.banner(["results/code/x"], []) == "", "no tables"
