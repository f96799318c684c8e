"""The claims of the papers and of this study, judged on the tables by the criteria of book/claims.yml.

Stage `claims` writes metrics/claims.json and the tables of the book's first page; `memlib.study.readme` puts the same tables
into README.md. Chapters do not read them: a marker in their text, filled when the book is built, stands for the criteria or the
verdicts of some claims.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memlib.evaluation.claims import after_correction, estimate_in, rounded, settle
from memlib.files import atomic_write, read_json, suggest, write_json
from memlib.study import cases, history
from memlib.study.criteria import REGISTRY, Claim, Comparison, committed_criteria, digests, is_the_study, read_claims
from memlib.study.differences import BEATS, BEYOND, verdict
from memlib.study.stages import reporting_errors, timed_stage

FOUND = Path("metrics/claims.json")
MARKER = re.compile(r"<!--\s*(\w+):\s*(.*?)\s*-->")
HEADER = ("Claim", "Verdict", "Found here", "Threshold", "n", "Beats the plain baseline?", "How it is judged")
KINDS = ("positive", "negative", "items")
ITEMS = 4  # of a box that is read on a phone
FAMILIES = ("Claims of the papers", "Claims of this study")  # p-values are corrected within each
OWN = {"reproduced": "holds", "not reproduced": "does not hold"}  # verdicts on claims that no paper makes


def collect() -> list[dict[str, Any]]:
    """All claims with their verdicts; all are read and checked before any is judged.

    Raises ValueError for what `committed_criteria` refuses, and for a claim whose tables are not there or hold too little. In
    another study than the committed one, with other parameters or in the copy of a profile, such a claim is left open, with the
    reason.
    """
    claims, commits = read_claims(), committed_criteria()
    the_study = is_the_study()
    read: dict[str, cases.Cases | str] = {}
    for name, claim in claims.items():
        try:
            read[name] = cases.read_cases(name, claim.criterion)
        except ValueError as error:
            if the_study:
                raise
            read[name] = str(error)
    criteria = digests(REGISTRY.read_text())
    rows = [
        {
            "id": name,
            "criterion": {"digest": criteria[name], "commit": commits[name], "day": history.day_of(commits[name])},
        }
        | _judged(claim, read[name])
        for name, claim in claims.items()
    ]
    for family in _families(rows, claims).values():
        judged = [row for row in family if row["verdict"] != "open"]
        for row, p in zip(judged, holm([row["p_value"] for row in judged]), strict=True):
            row["holm_p_value"] = p
            row["holm_verdict"] = after_correction(row["verdict"], p)
    return rows


def _families(rows: Sequence[Mapping[str, Any]], claims: Mapping[str, Claim]) -> dict[str, list[Any]]:
    """The claims of the papers and this study's own by a heading, those families that there are."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(FAMILIES[claims[row["id"]].paper is None], []).append(row)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the family by Holm's step-down method (1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(f"{p:.3g}") for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def _judged(claim: Claim, read: cases.Cases | str) -> dict[str, Any]:
    if isinstance(read, str):
        return {"verdict": "open", "reason": read}
    found, chosen = cases.measure(read)
    baseline, _ = cases.measure(read, claim.criterion.baseline)
    beside = rounded("baseline_", baseline.interval())
    beyond = cases.beyond_baseline(claim.criterion)
    if beyond:
        beside |= rounded("beyond_baseline_", cases.measure(read, beyond)[0].interval())
    if claim.criterion.control:
        control, _ = cases.measure(read, Comparison(first=claim.criterion.control))
        beside |= rounded("control_", control.interval())
    return {"items": read.counts, "chosen": chosen} | settle(found, claim.criterion.above) | beside


def first_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """All claims as MyST tables, each linked to its page, with how it is judged in a fold."""
    claims = read_claims()

    def line(row: Mapping[str, Any]) -> tuple[str, ...]:
        claim = claims[row["id"]]
        text, outcome, *others = _row(claim, row)
        cited = f"{text} {'Variant of ' if claim.variant else ''}{{cite}}`{claim.paper}`" if claim.paper else text
        return cited, f"[**{outcome}**]({claim.page})", *others

    return "\n".join(_tables(rows, claims, line))


def _criteria(title: str, claims: Iterable[Claim]) -> str:
    """How claims are judged, as a box to open."""
    lines = [f"- *{claim.claim}* {criterion(claim)}" for claim in claims]
    return dropdown(title, lines)


def dropdown(title: str, lines: Iterable[str]) -> str:
    """A box of MyST to open."""
    return "\n".join([f":::{{dropdown}} {title}", *lines, ":::"])


def answers(page: str, sentences: Sequence[str] = ()) -> str:
    """What a page found and how its claims came out, as MyST: a box with a sentence for each; nothing where there is none.

    sentences: items of a Markdown list. Where there would be more than `ITEMS`, the box counts the verdicts, and the sentences on
    the claims stand below it, to unfold.
    """
    rows = {row["id"]: row for row in read_json(FOUND)} if FOUND.exists() else {}
    judged = [
        (claim, rows[name])
        for name, claim in read_claims().items()
        if claim.page == page and name in rows and rows[name]["verdict"] != "open"
    ]
    lines = [line for each in sentences for line in each.splitlines()]
    told = [f"- {said(claim, row)}" for claim, row in judged]
    below = []
    if len(lines) + len(told) > ITEMS and told:
        counts = Counter(_verdict(claim, row, "holm_verdict") for claim, row in judged)
        verdicts = ", ".join(f"{verdict} ({count})" for verdict, count in counts.items())
        below = ["", dropdown("The claims with what was found, n and the plain baseline", told)]
        told = [f"- **Claims**, {len(told)} on this page, after correction for their number: {verdicts}."]
    lines += told
    return (
        "\n".join([":::{admonition} What this run found", ":class: answer", "", *lines, ":::", *below]) if lines else ""
    )


def said(claim: Claim, row: Mapping[str, Any]) -> str:
    """How a claim came out, in sentences: what was found, the threshold, the plain baseline and the difference to it, n."""
    text, outcome, found, threshold, n, *_ = _row(claim, row)
    beside = f"The plain baseline, {claim.plain}: {_signed(row, claim.criterion.baseline, 'baseline_')}"
    if "beyond_baseline_value" in row:
        beside += f"; paired difference {estimate_in(row, 'beyond_baseline_'):+}, {BEYOND[_ahead(row)]}"
    return f"**{text}** {outcome[0].upper()}{outcome[1:]}: {found}, asked {threshold}; n = {n}. {beside}."


def findings(rows: Sequence[Mapping[str, Any]]) -> str:
    """All claims as plain Markdown tables."""
    claims = read_claims()

    def line(row: Mapping[str, Any]) -> tuple[str, ...]:
        claim = claims[row["id"]]
        text, outcome, *others, _ = _row(claim, row)
        asked = f"{text} (*variant, asked here*)" if claim.variant else text
        return asked, f"[**{outcome}**](notebooks/{Path(claim.page).name})", *others

    return "\n".join(_tables(rows, claims, line, HEADER[:-1])).strip()


def _tables(
    rows: Sequence[Mapping[str, Any]],
    claims: Mapping[str, Claim],
    line: Callable[[Mapping[str, Any]], tuple[str, ...]],
    header: Sequence[str] = HEADER,
) -> Iterator[str]:
    """The lines of a table for each family of claims, under its heading if there are two."""
    families = _families(rows, claims)
    for heading, family in families.items():
        yield from (f"**{heading}**", "") if len(families) > 1 else ()
        yield from (table(map(line, family), header), "")


def criterion(claim: Claim) -> str:
    """How a claim is judged, in words."""
    asked = claim.criterion
    yes, no = ("holds", "does not") if claim.paper is None else ("reproduced", "not reproduced")
    items = " and ".join(f"{count} {kind}" for kind, count in asked.at_least.items())
    return (
        f"{asked.says}; {yes} if its whole 95 % interval is above {asked.above:g}, {no} if the whole interval is below; needs "
        f"at least {items}{'' if 'items' in asked.at_least else ' items'}."
    )


def fill_markers(markdown: str) -> str:
    """Markdown with its markers replaced by what they stand for, as MyST.

    `<!-- criteria: ID, ID -->` becomes a list of how these claims are judged, in a box to open, `<!-- verdicts: ID, ID -->` a
    table of how they came out, from metrics/claims.json. Raises ValueError for another kind of marker and an unknown claim.
    """
    return MARKER.sub(lambda marker: _filled(marker[1], re.split(r"\s*,\s*", marker[2])), markdown)


def _filled(kind: str, names: list[str]) -> str:
    if kind not in ("criteria", "verdicts"):
        raise ValueError(f"a marker says {kind!r}{suggest(kind, ('criteria', 'verdicts'))}")
    claims = read_claims()
    if kind == "criteria":
        judged = [_entry(claims, name, REGISTRY) for name in names]
        return _criteria("How it is judged" if len(names) == 1 else "How they are judged", judged)
    rows = {row["id"]: row for row in read_json(FOUND)}
    return table([_row(_entry(claims, name, REGISTRY), _entry(rows, name, FOUND)) for name in names])


def _entry(entries: Mapping[str, Any], name: str, source: Path) -> Any:
    if name not in entries:
        raise ValueError(f"a marker names the claim {name!r}, which {source} does not have{suggest(name, entries)}")
    return entries[name]


def _row(claim: Claim, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of a table, as `HEADER` names them."""
    if row["verdict"] == "open":
        return claim.claim, "open", *[""] * (len(HEADER) - 2)
    alone = _verdict(claim, row, "verdict")
    return (
        claim.claim,
        _verdict(claim, row, "holm_verdict")
        + (f" (uncorrected: {alone})" if row["verdict"] != row["holm_verdict"] else ""),
        f"{claim.criterion.measure} {_signed(row, claim.criterion)}",
        f"above {claim.criterion.above:g}",
        " + ".join(str(row["items"][kind]) for kind in KINDS if kind in row["items"]),
        _beyond(claim, row),
        f"<details><summary>Criterion</summary>{criterion(claim)} {_evidence(claim, row)}</details>",
    )


def _verdict(claim: Claim, row: Mapping[str, Any], key: str) -> str:
    return OWN.get(row[key], row[key]) if claim.paper is None else row[key]


def _beyond(claim: Claim, row: Mapping[str, Any]) -> str:
    """Whether the method beats the plain baseline, and which, with the paired difference."""
    if "beyond_baseline_value" not in row:
        return f"not comparable ({claim.plain})"
    return f"{BEATS[_ahead(row)]}: difference {estimate_in(row, 'beyond_baseline_'):+} to {claim.plain}"


def _signed(row: Mapping[str, Any], compared: Comparison, prefix: str = "") -> str:
    """What a comparison gave, with a sign where it is a difference."""
    return f"{estimate_in(row, prefix):{'+' if compared.minus else ''}}"


def _ahead(row: Mapping[str, Any]) -> str:
    return verdict(estimate_in(row, "beyond_baseline_"))


def _evidence(claim: Claim, row: Mapping[str, Any]) -> str:
    """When the criterion was committed, and the figures beside the verdict."""
    commit, day = row["criterion"]["commit"], row["criterion"]["day"]
    parts = [
        f"Committed on {day} (`{commit[:7]}`)" if day else "",
        f"p {_small(row['p_value'])}, corrected {_small(row['holm_p_value'])}",
        f"plain baseline {_signed(row, claim.criterion.baseline, 'baseline_')}",
        f"control {estimate_in(row, 'control_')}" if "control_value" in row else "",
        f"detectable {'nothing' if row['detectable'] is None else format(row['detectable'], '.3f')}",
    ]
    return "; ".join(filter(None, parts)) + "."


def _small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def table(rows: Iterable[Iterable[Any]], header: Sequence[str] = HEADER) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *([str(cell).replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def judge_all() -> None:
    """Write metrics/claims.json and the tables that the first page includes."""
    rows = collect()
    write_json(FOUND, rows)
    with atomic_write("book/generated/claims.md") as temporary:
        temporary.write_text(first_page(rows))


if __name__ == "__main__":
    with reporting_errors("claims"), timed_stage("claims"):
        judge_all()
