"""When an entry of a file was last changed, read from git."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

UNCOMMITTED = "uncommitted"


def has_history() -> bool:
    """Whether this folder is that of a git checkout with all of its history: no exported tree, and no shallow clone."""
    asked = _git("rev-parse", "--is-shallow-repository", "--show-prefix", "--verify", "HEAD")
    return asked is not None and asked.splitlines()[:2] == ["false", ""]


def is_committed(path: str | Path) -> bool:
    """Whether a file is as HEAD has it."""
    return _git("diff", "--quiet", "HEAD", "--", str(path)) is not None


def last_changes(path: str | Path, read: Callable[[str], Mapping[str, Any]]) -> dict[str, str]:
    """For each entry of a file, the commit at which it became what it is now; `uncommitted` where that is not yet in HEAD.

    read: the entries of the file's text, by name. Renamed files count as new.
    """
    lines = (_git("rev-list", "--parents", "HEAD", "--", str(path)) or "").splitlines()
    parents = {commit: others for commit, *others in map(str.split, lines)}
    versions: dict[str, Mapping[str, Any]] = {}

    def version(commit: str) -> Mapping[str, Any]:
        if commit not in versions:
            text = _git("show", f"{commit}:./{path}")
            versions[commit] = {} if text is None else read(text)
        return versions[commit]

    def changed(name: str, entry: Any) -> str:
        commit = lines[0].split()[0] if lines else ""
        if not commit or version(commit).get(name) != entry:
            return UNCOMMITTED
        while older := [parent for parent in parents.get(commit, []) if version(parent).get(name) == entry]:
            commit = older[0]
        return commit

    return {name: changed(name, entry) for name, entry in read(Path(path).read_text()).items()}


def day_of(commit: str) -> str | None:
    """The day on which a commit was made, as YYYY-MM-DD; None for a commit that is not known."""
    found = _git("show", "--no-patch", "--format=%cs", commit)
    return found.strip() if found else None


def is_before(first: str, second: str) -> bool:
    """Whether a commit is a proper ancestor of another."""
    return first != second and _git("merge-base", "--is-ancestor", first, second) is not None


def _git(*arguments: str) -> str | None:
    """What git says, or None where it fails or is not there."""
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return run.stdout if run.returncode == 0 else None
