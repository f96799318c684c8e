"""The claims of the papers and of this study, judged on the tables by the criteria of book/claims.yml.

Stage `claims` writes metrics/claims.json and the table of the book's first page; `python -m memlib.study.claims README.md` puts
the same table, of results that are there, between two markers of a file. Chapters do not read them: a marker in their text,
filled when the book is built, stands for the criteria or the verdicts of some claims.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from memlib.evaluation.claims import after_correction, rounded, settle
from memlib.evaluation.intervals import Estimate
from memlib.files import atomic_write, read_json, read_pictures, suggest, write_json
from memlib.study import cases
from memlib.study.criteria import REGISTRY, Claim, Comparison, committed_criteria, digests, is_the_study, read_claims
from memlib.study.stages import reporting_errors, timed_stage

FOUND = Path("metrics/claims.json")
MARKER = re.compile(r"<!--\s*(\w+):\s*(.*?)\s*-->")
HEADER = ("Claim", "Verdict", "Found here", "Threshold", "Plain baseline", "Control", "Detectable")
FAMILIES = ("Claims of the papers", "Claims of this study")  # p-values are corrected within each
OWN = {"reproduced": "holds", "not reproduced": "does not hold"}  # verdicts on claims that no paper makes
READING = Path("book/verdicts.md")  # how the table is read, and what it does not show
BEGIN, END = "<!-- verdicts, written by `python -m memlib.study.claims README.md` -->", "<!-- end of verdicts -->"


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
        {"id": name, "criterion": {"digest": criteria[name], "commit": commits[name]}} | _judged(claim, read[name])
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
    if claim.criterion.control:
        control, _ = cases.measure(read, Comparison(first=claim.criterion.control))
        beside |= rounded("control_", control.interval())
    return {"items": read.counts, "chosen": chosen} | settle(found, claim.criterion.above) | beside


def first_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scale, all claims as a MyST table, each linked to its page, and how they are judged in a box to open."""
    claims = read_claims()

    def line(row: Mapping[str, Any]) -> tuple[str, ...]:
        claim = claims[row["id"]]
        text, verdict, *others = _row(claim, row)
        cited = f"{text} {{cite}}`{claim.paper}`" if claim.paper else text
        return cited, f"[{verdict}]({claim.page})", *others

    judged = _criteria("How each claim is judged", claims.values())
    return "\n".join([scale(), "", *_tables(rows, claims, line), judged, ""])


def _criteria(title: str, claims: Iterable[Claim]) -> str:
    """How claims are judged, as a box to open."""
    lines = [f"- *{claim.claim}* {criterion(claim)}" for claim in claims]
    return "\n".join([f":::{{dropdown}} {title}", *lines, ":::"])


def answers(page: str, sentences: Sequence[str] = ()) -> str:
    """What a page found and how its claims came out, as MyST: a box with a sentence for each; nothing where there is none."""
    rows = {row["id"]: row for row in read_json(FOUND)} if FOUND.exists() else {}
    lines = [
        *sentences,
        *(
            _answer(claim, rows[name])
            for name, claim in read_claims().items()
            if claim.page == page and name in rows and rows[name]["verdict"] != "open"
        ),
    ]
    return "\n".join([":::{admonition} What this run found", ":class: answer", "", *lines, ":::"]) if lines else ""


def _answer(claim: Claim, row: Mapping[str, Any]) -> str:
    text, verdict, found, threshold, baseline, *_ = _row(claim, row)
    counts = " and ".join(f"{count} {kind}" for kind, count in row["items"].items())
    reached = f"{found[0].upper()}{found[1:]}, asked {threshold}"
    return f"- {verdict}: {text} {reached}; plain baseline {baseline}; n: {counts}."


def findings(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scale, all claims as a plain Markdown table, and how it is read."""
    claims = read_claims()

    def line(row: Mapping[str, Any]) -> tuple[str, ...]:
        claim = claims[row["id"]]
        text, verdict, *others = _row(claim, row)
        return text, f"[{verdict}](notebooks/{Path(claim.page).name})", *others

    return "\n".join([scale(), "", *_tables(rows, claims, line), READING.read_text().strip()])


def _tables(
    rows: Sequence[Mapping[str, Any]], claims: Mapping[str, Claim], line: Callable[[Mapping[str, Any]], tuple[str, ...]]
) -> Iterator[str]:
    """The lines of a table for each family of claims, under its heading if there are two."""
    families = _families(rows, claims)
    for heading, family in families.items():
        yield from (f"**{heading}**", "") if len(families) > 1 else ()
        yield from (_table(map(line, family)), "")


def scale() -> str:
    """The size of everything in one line, from the tables of the trainings and of their pictures."""
    image, text = (read_json(f"tables/{name}/model.json") for name in ("training/main", "text_base"))
    pictures = pd.read_parquet("tables/data/items.parquet")
    drawings = pd.read_parquet("tables/drawings/groups.parquet").query("split == 'train'")
    pixels = {name: read_pictures(f"tables/{name}/pictures.png").shape[1] for name in ("data", "drawings")}
    return (
        f"**Scale**: image models of {image['parameters'] / 1e6:.1f} million parameters, trained on "
        f"{(pictures['split'] == 'train').sum():,} pictures of {pixels['data']} x {pixels['data']} pixels; text-to-image "
        f"models of {sum(text['parameters'].values()) / 1e6:.1f} million, trained on {drawings['drawings'].sum():,} captioned "
        f"drawings of {pixels['drawings']} x {pixels['drawings']}."
    )


def between_markers(text: str, content: str) -> str:
    """A text with what stands between its two markers replaced; raises ValueError where they are not there, once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the table of verdicts goes between the lines {BEGIN!r} and {END!r}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


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
    return _table([_row(_entry(claims, name, REGISTRY), _entry(rows, name, FOUND)) for name in names])


def _entry(entries: Mapping[str, Any], name: str, source: Path) -> Any:
    if name not in entries:
        raise ValueError(f"a marker names the claim {name!r}, which {source} does not have{suggest(name, entries)}")
    return entries[name]


def _row(claim: Claim, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells of a table, as `HEADER` names them."""
    if row["verdict"] == "open":
        return claim.claim, "open", *[""] * (len(HEADER) - 2)
    p, words = row["holm_p_value"], OWN if claim.paper is None else {}
    verdict, kept = (words.get(row[key], row[key]) for key in ("verdict", "holm_verdict"))
    corrected = "" if kept == verdict else f", after Holm's correction {kept}"
    return (
        claim.claim,
        f"**{verdict}**, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}{corrected}",
        f"{claim.criterion.measure} {_estimate(row, '')}",
        f"above {claim.criterion.above:g}",
        _estimate(row, "baseline_"),
        _estimate(row, "control_") if "control_value" in row else "",
        "nothing" if row["detectable"] is None else f"{row['detectable']:.3f}",
    )


def _estimate(row: Mapping[str, Any], prefix: str) -> str:
    return str(Estimate(row[f"{prefix}value"], *row[f"{prefix}ci95"]))


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Judge all claims and write metrics/claims.json and the table of the first page; or put the table into a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="file with the two markers; nothing is judged")
    file = parser.parse_args().file
    if file:
        content = between_markers(file.read_text(), findings(read_json(FOUND)))
        with atomic_write(file) as temporary:
            temporary.write_text(content)
    else:
        with timed_stage("claims"):
            judge_all()


def judge_all() -> None:
    """Write metrics/claims.json and the table that the first page includes."""
    rows = collect()
    write_json(FOUND, rows)
    with atomic_write("book/generated/claims.md") as temporary:
        temporary.write_text(first_page(rows))


if __name__ == "__main__":
    with reporting_errors("claims"):
        main()
