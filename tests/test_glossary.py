"""The glossary has every abbreviation that a reader meets: in the book's pages, the README and the prose of the notebooks."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "book/glossary.md"
NAMES = {"AMD", "EPYC", "NVIDIA", "OpenMoji", "PixArt", "PyTorch", "TensorBoard", "XL"} | {"MIT", "CC", "BY", "SA"}
SKIPPED = re.compile(
    r"```.*?```|<!--.*?-->|<[^>]+>|\{[\w:]+\}`[^`]*`|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+|[\w/-]+\.[a-z]\w+",
    flags=re.DOTALL,
)  # code, comments, tags, citations, formulas, where links lead to, files
ABBREVIATION = re.compile(r"\b[A-Z]-[A-Z]\w+|\b\w*[A-Z][a-z0-9]*[A-Z]\w*")


def abbreviations(prose: str) -> set[str]:
    """Words with two capitals, in the singular; no names of products and licences, and no placeholders, which code shows too."""
    placeholders = set(re.findall(r"\b[A-Z]+\b", " ".join(re.findall(r"```.*?```|`[^`]+`", prose, flags=re.DOTALL))))
    words = {word.removesuffix("s") for word in ABBREVIATION.findall(SKIPPED.sub(" ", prose))}
    return words - placeholders - NAMES


def prose() -> Iterator[tuple[str, str]]:
    """Each page's name and what it says, for notebooks also the sentences that their cells write."""
    for path in [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]:
        yield path.name, path.read_text()
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                yield path.name, source
            else:
                yield path.name, "\n".join(sentences(source))


def sentences(code: str) -> Iterator[str]:
    """Strings of a cell that hold more than one word."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.value


def explained() -> set[str]:
    """What stands in the first column of the glossary's last table."""
    rows = re.findall(r"^\| ([^|]+) \|", GLOSSARY.read_text().split("## Abbreviations")[1], flags=re.MULTILINE)
    return {name for row in rows for name in row.split(", ")}


def test_glossary_has_every_abbreviation() -> None:
    known = explained()
    lacking: dict[str, set[str]] = {}
    for name, text in prose():
        for word in abbreviations(text) - known:
            lacking.setdefault(word, set()).add(name)
    assert not lacking, f"book/glossary.md lacks {lacking}"


def test_glossary_is_sorted_and_says_each_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", GLOSSARY.read_text().split("## Abbreviations")[1], flags=re.MULTILINE)
    names = [row for row in rows if row.strip()]
    assert names == sorted(set(names), key=str.lower)
    for table in GLOSSARY.read_text().split("\n## ")[1:-1]:
        here = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)
        assert len(here) == len(set(here))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("AUROCs and the SNR of a U-Net, CIFAR-10", {"AUROC", "SNR", "U-Net", "CIFAR"}),
        (
            "SecMI, SimA, LoRA, MMDiT, CLiD; PyTorch and an OpenMoji picture of MODEL",
            {"SecMI", "SimA", "LoRA", "MMDiT", "CLiD"},
        ),
        (
            "`DDIM`, {cite}`XY2020`, $AB$, <b title='QQ'>, README.md, [a](RR.md), MODEL\n```sh\nmemlib MODEL VV\n```",
            set(),
        ),
    ],
)
def test_abbreviations_are_found(text: str, found: set[str]) -> None:
    assert abbreviations(text + "\n`memlib score MODEL`") == found
