"""Where the results of a page come from: stages, commits, parameters, time and machine, and whether they are stale."""

import hashlib
import html
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from memlib.study.history import UNCOMMITTED, has_history, last_changes
from memlib.study.stages import made_here, stage_times

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCK = Path("dvc.lock")
TABLES = "tables/"


def origin(name: str, reads: Iterable[str]) -> str:
    """The last line of a page: its stage, how long it took, and where the tables that it reads come from."""
    where = {
        True: "were made on this machine",
        False: "are those of the repository, which `make study` makes on this machine",
        None: "were made on this machine but for some, which are those of the repository",
    }
    tables = [path for path in reads if path.startswith(TABLES)]
    took = f"Stage `{name}`, {stage_times()[name]['seconds']:.0f} seconds on this machine."
    return f"*{took} The tables that it reads {where[made_here(tables)]}.*" if tables else f"*{took}*"


def lock_entries(text: str) -> dict[str, str]:
    """The entries of dvc.lock as text, by their stages."""
    return dict(re.findall(r"^  (\S.*):\n((?:    .*\n)*)", text, re.MULTILINE))


def provenance(names: Iterable[str], machine: Mapping[str, Any]) -> dict[str, str]:
    """HTML of what made the results of each of these stages, those that have run on this machine (`memlib.study.book.machine`).

    The commit is that at which the stage's entry of dvc.lock became what it is: its code, parameters, inputs or results.
    """
    times, entries = stage_times(), lock_entries(LOCK.read_text()) if LOCK.exists() else {}
    commits = last_changes(LOCK, lock_entries) if entries and has_history() else {}
    device = ", ".join([f"{machine['processor']} ({machine['cores']} cores)", *machine["gpus"]])
    return {
        name: _origin_of(name, entries.get(name, ""), commits.get(name), times[name]["seconds"], device)
        for name in names
        if name in times
    }


def _origin_of(name: str, entry: str, commit: str | None, seconds: float, device: str) -> str:
    parameters = (yaml.safe_load(entry) or {}).get("params", {})
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
    digested = f"Digest of its parameters: <code>{digest}</code>. " if parameters else ""
    took, known = f"{seconds:.0f} s", "What it reads and makes"
    short, changed = "", ""
    if commit == UNCOMMITTED:
        changed = f"{known} is not committed yet. "
    elif commit:
        short, changed = f", commit {commit[:7]}", f"{known} last changed in commit <code>{commit}</code>. "
    return (
        f'<details class="origin"><summary>Stage {name}{short}</summary><p>Made in {took} on {html.escape(device)}. '
        f"{changed}{digested}To make it again from the tables that are there:</p>"
        f'<div class="highlight"><pre>dvc repro -f -s {name}</pre></div></details>'
    )


def stale(repo: "Repo") -> set[str]:
    """The stages whose command, code, parameters or results are not as dvc.lock has them; what is not there counts as such."""
    return {
        stage.addressing
        for stage in repo.index.stages
        if stage.changed_stage() or any(part.exists and part.workspace_status() for part in (*stage.deps, *stage.outs))
    }


def banner(reads: Iterable[str], old: Collection[str]) -> str:
    """HTML for the top of a page: which of its stages are stale, else whether its tables come from elsewhere, else nothing."""
    if old:
        names = ", ".join(f"<code>{name}</code>" for name in sorted({kind(name) for name in old}))
        return (
            '<div class="admonition warning"><p class="admonition-title">Older than the code or the parameters</p><p>What this '
            f"page reads was made before these stages were changed: {names}. <code>make study</code> makes it anew.</p></div>"
        )
    tables = [path for path in reads if path.startswith(TABLES)]
    if tables and made_here(tables) is False:
        return '<p class="elsewhere">The tables of this page are those of the repository, not made on this machine.</p>'
    return ""


def kind(stage: str) -> str:
    """Name of a stage without the item that it is for."""
    return stage.partition("@")[0]
