"""The claims of the papers: their wording from book/claims.yml joined with the verdicts that chapters have settled.

Stage `claims` writes metrics/claims.json and the table of the book's first page. Chapters do not read the wording: a marker
in their text, filled when the book is built, stands for the criteria or the verdicts of some claims.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from memlib.evaluation.intervals import Estimate
from memlib.files import atomic_write, read_json, suggest, write_json
from memlib.study.stages import reporting_errors, timed_stage

REGISTRY = Path("book/claims.yml")
METRICS = Path("metrics")
FOUND = METRICS / "claims.json"
MARKER = re.compile(r"<!--\s*(\w+):\s*(.*?)\s*-->")
HEADER = ("Claim", "Verdict", "Found here", "Plain baseline")


def read_registry() -> dict[str, dict[str, Any]]:
    """All claims by their id, `section.name`: paper, claim, measure, criterion and the page that settles it (None: open)."""
    sections = yaml.safe_load(REGISTRY.read_text())
    return {f"{section}.{name}": entry for section, entries in sections.items() for name, entry in entries.items()}


def collect() -> list[dict[str, Any]]:
    """All claims of the registry with what the metrics files of the chapters say of them; the others are open.

    Raises ValueError for a chapter that settles a claim that the registry does not have or that another page settles.
    """
    registry, found = read_registry(), {}
    for path in sorted(METRICS.glob("*.json")):
        content = read_json(path)
        for entry in content.get("claims", []) if isinstance(content, dict) else []:
            name = entry["id"]
            if name not in registry:
                raise ValueError(f"{path} settles {name!r}, which {REGISTRY} does not have{suggest(name, registry)}")
            if registry[name]["page"] is None or Path(registry[name]["page"]).stem != path.stem:
                raise ValueError(
                    f"{path} settles {name!r}, whose page in {REGISTRY} is {registry[name]['page']}; "
                    f"it should be chapters/{path.stem}.ipynb"
                )
            found[name] = entry
    nothing = {"value": None, "ci95": None, "verdict": "open"}
    return [{"id": name} | claim | found.get(name, nothing) for name, claim in registry.items()]


def first_page(claims: Sequence[Mapping[str, Any]]) -> str:
    """All claims as a MyST table, each linked to the page that settles it, and how each is judged in a box to open."""
    rows = []
    for claim in claims:
        text, verdict, *numbers = _row(claim)
        linked = verdict if verdict == "open" else f"[**{verdict}**]({claim['page']})"
        rows.append((f"{text} {{cite}}`{claim['paper']}`", linked, *numbers))
    criteria = [f"- *{claim['claim']}* {claim['criterion']}" for claim in claims]
    return "\n".join([_table(rows), "", ":::{dropdown} How each claim is judged", *criteria, ":::", ""])


def fill_markers(markdown: str) -> str:
    """Markdown with its markers replaced by what they stand for, as MyST.

    `<!-- criteria: ID, ID -->` becomes a list of how these claims are judged, `<!-- verdicts: ID, ID -->` a table of how they
    came out, from metrics/claims.json. Raises ValueError for another kind of marker and an unknown claim.
    """
    return MARKER.sub(lambda marker: _filled(marker[1], re.split(r"\s*,\s*", marker[2])), markdown)


def _filled(kind: str, names: list[str]) -> str:
    if kind == "criteria":
        registry = read_registry()
        return "\n".join(f"- *{name}*: {_claim(registry, name, REGISTRY)['criterion']}" for name in names)
    if kind == "verdicts":
        claims = {claim["id"]: claim for claim in read_json(FOUND)}
        return _table([_row(_claim(claims, name, FOUND)) for name in names])
    raise ValueError(f"a marker says {kind!r}{suggest(kind, ('criteria', 'verdicts'))}")


def _claim(claims: Mapping[str, dict[str, Any]], name: str, source: Path) -> dict[str, Any]:
    if name not in claims:
        raise ValueError(f"a marker names the claim {name!r}, which {source} does not have{suggest(name, claims)}")
    return claims[name]


def _row(claim: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Cells of a table: the claim, its verdict, what was found here, and the plain baseline."""
    if claim["verdict"] == "open":
        return claim["claim"], "open", "", ""
    found, baseline = (Estimate(claim[f"{kind}value"], *claim[f"{kind}ci95"]) for kind in ("", "baseline_"))
    return claim["claim"], claim["verdict"], f"{claim['measure']} {found}", str(baseline)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write metrics/claims.json and the table that the first page includes."""
    claims = collect()
    write_json(FOUND, claims)
    with atomic_write("book/generated/claims.md") as temporary:
        temporary.write_text(first_page(claims))


if __name__ == "__main__":
    with reporting_errors("claims"), timed_stage("claims"):
        main()
