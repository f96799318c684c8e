"""The table of the papers' claims: what each says, how it is judged here, and how it came out."""

from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml

from memlib.files import read_json, suggest, whole_file, write_json
from memlib.pipeline import reporting_errors, timed_stage
from memlib.statistics import Estimate

REGISTRY = Path("book/claims.yml")
Verdict = Literal["reproduced", "not reproduced", "inconclusive"]


def read_registry(path: str | Path = REGISTRY) -> dict[str, dict[str, Any]]:
    """All claims by their id, `section.name`: paper, claim, criterion and the page that settles it (None while open)."""
    sections = yaml.safe_load(Path(path).read_text())
    return {f"{section}.{name}": entry for section, entries in sections.items() for name, entry in entries.items()}


def criterion(claim_id: str) -> str:
    """How a claim is judged; raises ValueError for one that is not in the registry or that no page settles."""
    registry = read_registry()
    if claim_id not in registry:
        raise ValueError(f"there is no claim {claim_id!r}{suggest(claim_id, registry)}")
    if registry[claim_id]["page"] is None:
        raise ValueError(f"{REGISTRY} names no page for the claim {claim_id!r}; give the page that settles it")
    return registry[claim_id]["criterion"]


def judge(estimate: Estimate, threshold: float, also: bool = True) -> Verdict:
    """Reproduced if the whole interval lies above the threshold (and `also` holds), not if it lies below, else inconclusive."""
    if estimate.high < threshold:
        return "not reproduced"
    return "reproduced" if estimate.low > threshold and also else "inconclusive"


def settled(claim_id: str, estimate: Estimate, verdict: Verdict, baseline: Estimate) -> dict[str, Any]:
    """A notebook's entry, in its metrics file, for a claim that it has settled; `baseline` is what a plain detector reaches."""
    criterion(claim_id)
    return {"id": claim_id, "verdict": verdict} | _rounded("", estimate) | _rounded("baseline_", baseline)


def _rounded(prefix: str, estimate: Estimate) -> dict[str, Any]:
    value, low, high = (round(number, 4) for number in estimate)
    return {f"{prefix}value": value, f"{prefix}ci95": [low, high]}


def collect(metrics: str | Path = "metrics") -> list[dict[str, Any]]:
    """All claims of the registry with what the metrics files of the chapters say of them; the others are open."""
    found = {}
    for path in sorted(Path(metrics).glob("*.json")):
        content = read_json(path)
        found |= {entry["id"]: entry for entry in content.get("claims", [])} if isinstance(content, dict) else {}
    nothing = {"value": None, "ci95": None, "verdict": "open"}
    return [{"id": claim_id} | entry | found.get(claim_id, nothing) for claim_id, entry in read_registry().items()]


def verdicts(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """A chapter's table of the claims that it settles: claim, verdict, what was found here, and the plain baseline."""
    registry = read_registry()
    rows = [_row(registry[entry["id"]] | entry) for entry in entries]
    return pd.DataFrame(rows, columns=["claim", "verdict", "found here", "plain baseline"])


def _row(claim: dict[str, Any]) -> tuple[str, str, str, str]:
    if claim["verdict"] == "open":
        return claim["claim"], "open", "", ""
    found, baseline = (Estimate(claim[f"{kind}value"], *claim[f"{kind}ci95"]) for kind in ("", "baseline_"))
    return claim["claim"], claim["verdict"], f"{claim['measure']} {found}", str(baseline)


def table(claims: list[dict[str, Any]]) -> str:
    """The claims as a MyST table, each linked to the page that settles it, and how each is judged in a box to open."""
    lines = ["| Claim | Verdict | Found here | Plain baseline |", "|---|---|---|---|"]
    for claim in claims:
        text, verdict, found, baseline = _row(claim)
        linked = verdict if verdict == "open" else f"[**{verdict}**]({claim['page']})"
        lines.append(f"| {text} {{cite}}`{claim['paper']}` | {linked} | {found} | {baseline} |")
    criteria = [f"- *{claim['claim']}* {claim['criterion']}" for claim in claims]
    return "\n".join([*lines, "", ":::{dropdown} How each claim is judged", *criteria, ":::", ""])


def main() -> None:
    """Write metrics/claims.json and the table that the first page includes."""
    with reporting_errors("claims"), timed_stage("claims"):
        claims = collect()
        write_json("metrics/claims.json", claims)
        with whole_file("book/generated/claims.md") as temporary:
            temporary.write_text(table(claims))


if __name__ == "__main__":
    main()
