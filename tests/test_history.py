"""Criteria before results: what git's history says of the claims, in repositories made here and in this one."""

import subprocess
from pathlib import Path

import pytest
import yaml

from memlib.files import read_json, write_json
from memlib.study import claims, criteria, history

ROOT = Path(__file__).parent.parent


def git(*arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(**entries: int) -> str:
    """Commit the entries of a file, and give the commit."""
    Path("claims.yml").write_text(yaml.safe_dump(entries))
    git("add", "-A")
    git("commit", "-qm", "x", "--allow-empty")
    return git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "-qb", "main")
    return tmp_path


def test_an_entry_was_last_changed_where_it_became_what_it_is(repository: Path) -> None:
    commit(a=1, b=1)
    second = commit(a=2, b=1)
    commit(a=3, b=1)
    back = commit(a=2, b=1, c=1)
    commit(a=2, b=2, c=1)
    Path("other").write_text("1")
    last = commit(a=2, b=3, c=1)
    assert history.last_changes("claims.yml", yaml.safe_load) == {"a": back, "b": last, "c": back}
    assert history.is_before(second, back)
    assert not history.is_before(back, second)
    assert not history.is_before(back, back)
    assert history.is_committed("claims.yml")
    today = git("show", "-s", "--format=%cd", "--date=short", last)
    assert history.last_change("claims.yml") == (today, last)
    assert history.day_of(last) == today
    assert history.day_of("unknown") is None
    assert history.last_change("absent") is None
    Path("claims.yml").write_text(yaml.safe_dump({"a": 2, "b": 4, "d": 1}))
    assert history.last_change("claims.yml") is None, "changed since"
    assert history.last_changes("claims.yml", yaml.safe_load) == {"a": back, "b": "uncommitted", "d": "uncommitted"}
    assert not history.is_committed("claims.yml")


def test_a_merge_changes_nothing_that_one_side_has(repository: Path) -> None:
    first = commit(a=1, b=1)
    git("checkout", "-qb", "side")
    side = commit(a=1, b=2)
    git("checkout", "-q", "main")
    Path("other").write_text("1")
    commit(a=1, b=1)
    git("merge", "-q", "--no-edit", "side")
    assert history.last_changes("claims.yml", yaml.safe_load) == {"a": first, "b": side}


def test_without_its_history_a_checkout_says_nothing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not history.has_history(), "no commit"
    for number in range(2):
        commit(a=number)
    assert history.has_history()
    git("clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    (repository / "inner").mkdir()
    for folder in ("shallow", "inner"):
        monkeypatch.chdir(repository / folder)
        assert not history.has_history(), folder
        assert history.last_change("claims.yml") is None, folder
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(repository)
    assert not history.has_history(), "no git"


def late_criteria() -> list[str]:
    """Claims of metrics/claims.json whose criterion was changed with their result, or after it, by the history of HEAD."""
    found = {row["id"]: row for row in read_json(claims.FOUND)}
    criterion_at = history.last_changes(criteria.REGISTRY, criteria.digests)
    result_at = history.last_changes(claims.FOUND, lambda text: {row["id"]: row for row in yaml.safe_load(text)})
    digests = criteria.digests(criteria.REGISTRY.read_text())
    return [
        name
        for name, row in found.items()
        if row["verdict"] != "open"
        and not (
            row["criterion"]["digest"] == digests.get(name)
            and criterion_at[name] != history.UNCOMMITTED
            and (result_at[name] == history.UNCOMMITTED or history.is_before(criterion_at[name], result_at[name]))
        )
    ]


def result(name: str, value: float) -> None:
    digest = criteria.digests(criteria.REGISTRY.read_text())[name]
    write_json(claims.FOUND, [{"id": name, "verdict": "reproduced", "value": value, "criterion": {"digest": digest}}])


def registry(above: float, claim: str = "It grows.") -> None:
    Path("book").mkdir(exist_ok=True)
    criteria.REGISTRY.write_text(yaml.safe_dump({"volume": {"grows": {"claim": claim, "criterion": {"above": above}}}}))


def test_a_criterion_that_comes_with_its_result_or_after_it_is_found(repository: Path) -> None:
    registry(0.5)
    result("volume.grows", 0.8)
    commit()
    assert late_criteria() == ["volume.grows"], "with its result"
    registry(0.6)
    commit()
    assert late_criteria() == ["volume.grows"], "after its result"
    result("volume.grows", 0.8)
    commit()
    assert late_criteria() == [], "before a result that is judged by it"
    registry(0.6, "It grows more.")
    commit()
    assert late_criteria() == [], "another wording is no other criterion"


def test_every_criterion_of_the_study_is_older_than_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if not history.has_history():
        pytest.skip("no git, or a shallow clone: the history cannot be read")
    assert not late_criteria()
    named = [row["criterion"]["commit"] for row in read_json(claims.FOUND) if row["verdict"] != "open"]
    commits = history.last_changes(criteria.REGISTRY, criteria.digests)
    assert named == [commits[row["id"]] for row in read_json(claims.FOUND) if row["verdict"] != "open"]
