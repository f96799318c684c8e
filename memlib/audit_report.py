"""The report of an audit: one HTML file that asks for nothing else, without scripts; all text that it is given is escaped."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from memlib.evaluation.whole_set import SetTest

LONGEST = 192  # side of a shown picture, in pixels
SHARP = 64  # up to this side a picture is shown pixel by pixel, losslessly
BINS = 30
DARK = 0.15  # light of a place of a picture where its map is 0
LISTED = 200  # notes that are listed; the table has all


class Finding(NamedTuple):
    """What one detector says of a collection.

    table: items by score, as `memlib.audit.judged` gives them. nulls: their scores. rate: of false discoveries, its share.
    """

    detector: str
    setting: str
    evaluations: int
    table: pd.DataFrame
    nulls: NDArray[np.float64] | None
    rate: float

    @property
    def discovered(self) -> set[str]:
        """The items that are discoveries."""
        return set(self.table.index[self.table["discovery"]]) if "discovery" in self.table else set()

    @property
    def expected_false(self) -> float:
        """False discoveries to be expected if none of the items were memorised: items times the largest p-value of the list."""
        found = self.table[self.table["discovery"]]
        return len(self.table) * float(found["p_value"].max()) if len(found) else 0.0

    @property
    def most_false(self) -> int:
        """Upper bound on the false ones among the discoveries."""
        found = self.table[self.table["discovery"]]
        return int(found["most_false"].iloc[-1]) if len(found) else 0


class Match(NamedTuple):
    """The training picture [H, W, C] nearest to a picture, and its root mean squared distance on the scale [-1, 1]."""

    name: str
    picture: NDArray[np.uint8]
    distance: float


class Suspect(NamedTuple):
    """An item with its evidence.

    prompt: its own or its caption. picture: [H, W, C], its own or one drawn for its prompt. tokens: with weights from 0 to
    1. readings: detector, rank and row of its table. match: the training picture nearest to `picture`. copied: a map [H, W], 0
    and above, of what of the picture the model holds fixed.
    """

    name: str
    prompt: str | None
    picture: NDArray[np.uint8] | None
    drawn: bool
    tokens: Sequence[tuple[str, float]] | None
    readings: Sequence[tuple[str, int, pd.Series]]
    match: Match | None
    copied: NDArray[np.float64] | None = None


class Section(NamedTuple):
    """What an audit says of a collection of pictures or prompts.

    notes: why items were not scored. cut: what was cut of long prompts. bound: chance that the bound of false ones fails.
    whole: the test of the collection as a whole.
    """

    kind: str
    source: str
    null_source: str | None
    findings: Sequence[Finding]
    suspects: Sequence[Suspect]
    notes: Mapping[str, str]
    cut: Mapping[str, str]
    remarks: Sequence[str]
    rate: float
    bound: float
    whole: SetTest | None

    @property
    def items(self) -> int:
        """How many items were scored."""
        return len(self.findings[0].table)

    @property
    def null_count(self) -> int:
        """How many nulls they were compared with."""
        nulls = self.findings[0].nulls
        return 0 if nulls is None else len(nulls)

    @property
    def discovered(self) -> int | None:
        """How many items any detector has discovered; None where no rate can be given."""
        return len(set().union(*(finding.discovered for finding in self.findings))) if self.null_count else None

    @property
    def expected_false(self) -> float | None:
        """How many of them are to be expected to be false."""
        return sum(finding.expected_false for finding in self.findings) if self.null_count else None

    @property
    def most_false(self) -> int | None:
        """How many of them are false at most, but for a chance of `bound`."""
        return min(self.discovered, sum(finding.most_false for finding in self.findings)) if self.null_count else None


MEANT = {  # by a discovery
    "pictures": "A discovery is evidence that the picture was trained on; whether the model reproduces it is another question.",
    "prompts": "A discovery is a prompt that changes the prediction more than the nulls do. One whose picture is memorised does, "
    "and so does an ordinary one that says more of its picture than the nulls say of theirs. So it is no evidence of a copy yet: "
    "compare what it draws with the training data.",
}

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; --items: #c2410c; --nulls: #2563eb; }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin-top: 1.5rem; }
.verdict { font-size: 1.1rem; border-left: .3rem solid var(--items); padding: .3rem .8rem; background: var(--soft); }
.warning { border-left: .3rem solid #d97706; padding: .3rem .8rem; background: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; background: var(--soft); }
.card.found { border-color: var(--items); }
.card h4 { margin: 0 0 .4rem; font-size: .95rem; } .card p { margin: .2rem 0 .4rem; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: .4rem 0 0; font-size: .9rem; }
.card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.pair { display: flex; gap: .6rem; } figure { margin: 0; } figcaption { font-size: .8rem; }
img { width: 7rem; height: auto; display: block; border: 1px solid var(--line); } img.sharp { image-rendering: pixelated; }
.token { border-radius: .2rem; padding: 0 .1rem; }
code { font-size: .9em; white-space: pre-wrap; } svg { max-width: 100%; height: auto; }
svg .items { fill: var(--items); fill-opacity: .55; } svg .nulls { fill: var(--nulls); fill-opacity: .45; }
svg text { fill: currentColor; font: 11px system-ui, sans-serif; } svg line { stroke: currentColor; }
details { margin: .8rem 0; } summary { cursor: pointer; }
"""


def as_page(sections: Sequence[Section], facts: Mapping[str, str], warnings: Sequence[str]) -> str:
    """The report as HTML."""
    body = [
        "<h1>Audit of a diffusion model</h1>",
        *(f'<p class="warning">{_text(text)}</p>' for text in warnings),
        *(part for section in sections for part in _section(section)),
        "<h2>How this was made</h2>",
        _table(["", ""], [[f"<b>{_text(name)}</b>", _made(name, value)] for name, value in facts.items()]),
        _table(
            ["Collection", "Detector", "Evaluations an item", "Items and nulls", "Evaluations in all"],
            [
                [section.kind, _text(finding.detector), finding.evaluations, count, f"{finding.evaluations * count:,}"]
                for section in sections
                for finding in section.findings
                for count in [section.items + section.null_count]
            ],
        ),
        "<p>All scores are in <code>scores.parquet</code> beside this page.</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Audit of a diffusion model</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def verdict(section: Section) -> str:
    """What a section says, in two sentences or so."""
    counted = f"{section.items:,} {section.kind}"
    if not section.null_count:
        return (
            f"{counted} are ranked. No error rate can be given: nothing says how items score that the model has never seen. "
            f"Name some with --null-{'images' if section.kind == 'pictures' else 'prompts'}, chosen at random from the same "
            "source and known to be outside of the training."
        )
    rate = f"{100 * section.rate:g} %"
    if not section.discovered:
        return f"None of {counted} is a discovery at a rate of false discoveries of {rate}."
    bound = (
        f"at most {section.most_false:,} are, but for a chance of {100 * section.bound:g} %"
        if section.most_false < section.discovered
        else "it cannot be ruled out that all are"
    )
    return (
        f"{section.discovered:,} of {counted} {'is a discovery' if section.discovered == 1 else 'are discoveries'} at a rate of "
        f"false discoveries of {rate}. At most about {section.expected_false:.1f} are expected to be false, and {bound}."
    )


def whole_words(test: SetTest) -> str:
    """What the test of a whole collection says."""
    return (
        f"Was this collection trained on? On a random half, {test.suspects:,} items and {test.outside:,} nulls, an item "
        f"scores higher than a null with a chance of {test.larger:.2f} (0.5 if there is no difference); the p-value of a "
        f"permutation test is {test.p_value:.2g}. What was compared, {test.reading}, was chosen on the other half. A small "
        "p-value says that items and nulls differ. That is due to the training if they are alike in all else."
    )


def _section(section: Section) -> Iterable[str]:
    yield f"<h2>{section.kind.capitalize()}: {_text(section.source)}</h2>"
    yield f'<p class="verdict">{_text(verdict(section))}</p>'
    for remark in section.remarks:
        yield f"<p>{_text(remark[:1].upper() + remark[1:])}.</p>"
    if section.null_count:
        yield (
            f"<p>The {section.null_count:,} nulls are from {_text(section.null_source)}. A p-value is the share of nulls that "
            "score as high as the item, the item itself counted among them. The rates hold if the nulls and the items that are "
            "not memorised are alike: of the same source, chosen at random, prepared in the same way. They do not hold if the "
            "nulls are older, simpler or of another style. A rate of false discoveries is a mean over many such audits. "
            f"{MEANT[section.kind]}</p>"
        )
    if len(section.findings) > 1 and section.null_count:
        yield (
            f"<p>Each of the {len(section.findings)} detectors has its share of the rate, so that the list of all that any of "
            "them finds keeps it.</p>"
        )
    heads = ["Detector", "Setting", "Evaluations an item"]
    heads += ["Discoveries", "Expected false", "At most false"] if section.null_count else []
    yield _table(heads, [_finding(finding) for finding in section.findings])
    if section.whole is not None:
        yield f"<h3>The collection as a whole</h3><p>{_text(whole_words(section.whole))}</p>"
    for finding in section.findings:
        yield f"<h3>Scores by {_text(finding.detector)}</h3>"
        yield histogram(finding.table["score"].to_numpy(dtype=float), finding.nulls)
    if section.suspects:
        yield f"<h3>The first {len(section.suspects)} of {section.items:,}</h3>"
        if any(suspect.tokens for suspect in section.suspects):
            yield "<p>The stronger a word is coloured, the more of the magnitude is due to it, within its prompt.</p>"
        yield f'<div class="cards">{"".join(_card(suspect) for suspect in section.suspects)}</div>'
    yield from _listed("Not scored", section.notes)
    yield from _listed("Longer than the model takes: this part was cut", section.cut)


def _finding(finding: Finding) -> list[object]:
    cells: list[object] = [_text(finding.detector), _text(finding.setting), finding.evaluations]
    if finding.nulls is not None:
        cells += [len(finding.discovered), f"{finding.expected_false:.1f}", finding.most_false]
    return cells


def _card(suspect: Suspect) -> str:
    found = any(bool(row.get("discovery", False)) for _, _, row in suspect.readings)
    lines = []
    for detector, rank, row in suspect.readings:
        lines.append((f"{detector}, rank", f"{rank:,}"))
        lines.append(("score", f"{row['score']:.4g}"))
        if "p_value" in row:
            lines.append(("p-value", f"{row['p_value']:.3g}"))
            lines.append((f"false among the first {rank:,}", f"at most {int(row['most_false']):,}"))
    pictures = []
    if suspect.picture is not None:
        pictures.append(_figure(suspect.picture, "drawn for this prompt" if suspect.drawn else "the item"))
    if suspect.picture is not None and suspect.copied is not None:
        pictures.append(
            _figure(
                lit(suspect.picture, suspect.copied), "where, not whether: brightest where its prompt fixes it most"
            )
        )
    if suspect.match is not None:
        near = f"nearest in training: {suspect.match.name}, distance {suspect.match.distance:.3f}"
        pictures.append(_figure(suspect.match.picture, near))
    return (
        f'<div class="card{" found" if found else ""}"><h4>{_text(_title(suspect))}{" · discovery" if found else ""}</h4>'
        + _words(suspect)
        + (f'<div class="pair">{"".join(pictures)}</div>' if pictures else "")
        + "<dl>"
        + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in lines)
        + "</dl></div>"
    )


def _title(suspect: Suspect) -> str:
    """What a reader knows an item by: its prompt or caption, or, without any, its name."""
    return (suspect.prompt or "").strip() or suspect.name


def _words(suspect: Suspect) -> str:
    """The name, where it is not the title, and the coloured tokens of the prompt."""
    own = "" if _title(suspect) == suspect.name else f"<p><code>{_text(suspect.name)}</code></p>"
    tokens = " ".join(
        f'<span class="token" style="background: rgba(234, 88, 12, {0.75 * weight:.2f})">{_text(token)}</span>'
        for token, weight in suspect.tokens or ()
    )
    return own + (f"<p>{tokens}</p>" if tokens else "")


def _figure(picture: NDArray[np.uint8], caption: str) -> str:
    kind, data = encoded(picture)
    sharp = ' class="sharp"' if kind == "png" else ""
    return (
        f'<figure><img{sharp} alt="{_text(caption)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def lit(picture: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A picture [H, W, C] lit where a map [H, W], 0 and above, is large; where it is 0, nearly black."""
    largest = values.max()
    share = values / largest if largest > 0 else np.zeros_like(values)
    return (picture * (DARK + (1 - DARK) * share)[..., None]).round().astype(np.uint8)


def encoded(picture: NDArray[np.uint8]) -> tuple[str, str]:
    """A picture [H, W, 1 or 3] as PNG or, if it is large, made smaller as JPEG: the kind, and the file in base64."""
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    kind = "png" if max(image.size) <= SHARP else "jpeg"
    image.thumbnail((LONGEST, LONGEST))
    file = BytesIO()
    image.save(file, format=kind)
    return kind, base64.b64encode(file.getvalue()).decode()


def histogram(items: NDArray[np.float64], nulls: NDArray[np.float64] | None) -> str:
    """Scores of items and nulls as bars, each group's by its share."""
    groups = {"items": items} | ({} if nulls is None else {"nulls": nulls})
    every = np.concatenate([*groups.values()])
    edges = np.histogram_bin_edges(every, BINS)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in groups.items()}
    top = max(float(share.max()) for share in shares.values())
    width, height = 600, 120
    bars = [
        f'<rect class="{name}" x="{10 + place * width / BINS:.1f}" y="{10 + height * (1 - value / top):.1f}" '
        f'width="{width / BINS - 1:.1f}" height="{height * value / top:.1f}"></rect>'
        for name, share in shares.items()
        for place, value in enumerate(share)
        if value
    ]
    legend = [
        f'<rect class="{name}" x="{12 + 140 * place}" y="160" width="10" height="10"></rect>'
        f'<text x="{27 + 140 * place}" y="169">{len(values):,} {name}</text>'
        for place, (name, values) in enumerate(groups.items())
    ]
    return (
        f'<svg viewBox="0 0 620 180" width="620" height="180" role="img" aria-label="scores">{"".join(bars)}'
        f'<line x1="10" x2="610" y1="130" y2="130"></line><text x="10" y="145">{edges[0]:.3g}</text>'
        f'<text x="610" y="145" text-anchor="end">{edges[-1]:.3g}</text>{"".join(legend)}</svg>'
    )


def _listed(title: str, notes: Mapping[str, str]) -> Iterable[str]:
    if notes:
        rows = [[_text(name), _text(note)] for name, note in list(notes.items())[:LISTED]]
        more = f"<p>and {len(notes) - LISTED:,} more</p>" if len(notes) > LISTED else ""
        yield f"<details><summary>{_text(title)}: {len(notes):,}</summary>{_table(['', ''], rows)}{more}</details>"


def _made(name: str, value: str) -> str:
    return f"<code>{_text(value)}</code>" if name == "Command" else _text(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of cells that are escaped already; numbers to the right."""

    def cell(value: object) -> str:
        return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{value}</td>"

    kinds = [' class="number"' if isinstance(value, int) else "" for value in rows[0]] if rows else [""] * len(heads)
    names = "".join(f"<th{kind}>{_text(text)}</th>" for text, kind in zip(heads, kinds, strict=True))
    head = f"<tr>{names}</tr>" if any(heads) else ""
    lines = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _text(text: object) -> str:
    return html.escape(str(text))
