"""README.md and the pages beside the chapters: short enough, and every command, link and example in them works."""

import argparse
import ast
import importlib
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from memlib import cli
from memlib.study import readme

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]
TYPED = ("index", "verdicts", "glossary", "method")  # pages that say what was found, beside what a run writes
WORDS = 900  # of the README, its tables of claims not counted


def prose(path: Path) -> str:
    """A page without what a run writes into it."""
    text = path.read_text()
    return readme.filled(text, dict.fromkeys(("answer", "verdicts"), "")) if path.name == "README.md" else text


def commands(path: Path) -> list[list[str]]:
    """The command lines of a page, of its blocks and within its sentences, but for what only names a command or has a gap."""
    text = prose(path)
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.strip() for block in blocks for line in block.splitlines()] + inline
    shown = [line for line in lines if re.match(r"(make|memlib|python -m) [a-z]", line) and "..." not in line]
    return [shlex.split(line, comments=True) for line in shown if line not in ("memlib audit", "memlib score")]


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_readme_says_what_the_run_found(there: None) -> None:
    text = Path("README.md").read_text()
    assert readme.filled(text, readme.written()) == text, "run `python -m memlib.study.readme`"


def test_readme_is_short(there: None) -> None:
    text = readme.between_markers(Path("README.md").read_text(), "verdicts", "")
    assert len(re.sub("<!--.*?-->", "", text).split()) <= WORDS


def test_pages_type_no_result() -> None:
    """Results stand in what a run writes; in prose a number with two decimals is none that a run could change."""
    for path in (ROOT / name for name in ("README.md", *(f"book/{page}.md" for page in TYPED))):
        text = re.sub(r"```.*?```|https?://\S+|arXiv \S+", "", prose(path), flags=re.DOTALL)
        assert not re.findall(r"\b0\.\d{2,}|\d+ of \d+ ", text)
    numbers = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|seventeen"
    assert not re.findall(rf"(?i)({numbers}) of ({numbers}|the) (rows|claims|verdicts)", prose(PAGES[0]))


def test_chapters_type_no_result() -> None:
    """Three decimals are a result, which code writes, unless a paper reports it; two may be a setting's."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text = re.sub(r"```.*?```|`[^`]*`|https?://\S+|arXiv:? ?\S+", "", text, flags=re.DOTALL)
        typed = [
            said for said in re.split(r"(?<=[.:;?])\s", text) if re.search(r"\b\d\.\d{3,}|\b\d+ of (the )?\d+\b", said)
        ]
        assert not [said for said in typed if "report" not in said], path.name


def test_what_a_run_writes_goes_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = readme.markers("verdicts")
    for text in ("no markers", f"{end}{begin}", begin, f"{begin}{end}" * 2):
        with pytest.raises(ValueError, match="goes between the lines '<!-- verdicts.*, once each"):
            readme.between_markers(text, "verdicts", "x")
    answer = "\n".join(readme.markers("answer"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readme, "written", lambda: {"answer": "Yes.", "verdicts": "| holds |"})
    Path("README.md").write_text(f"Before.\n{answer}\nBetween.\n{begin}\nold\n{end}\nAfter.\n")
    readme.main()
    said = answer.replace("\n", "\nYes.\n")
    assert Path("README.md").read_text() == f"Before.\n{said}\nBetween.\n{begin}\n| holds |\n{end}\nAfter.\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_of_a_page_are_there(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    asked: list[argparse.Namespace] = []
    for name in ("_score", "_detectors", "_bench", "_audit"):
        monkeypatch.setattr(cli, name, asked.append)
    found = commands(page)
    for program, *arguments in found:
        if program == "make":
            assert arguments[0] in targets
        elif program == "python":
            assert find_spec(arguments[1])
        elif program == "memlib":
            cli.main(arguments)
    assert len(asked) == sum(program == "memlib" for program, *_ in found)
    if page.name == "README.md":
        assert {options.command for options in asked} == {"audit", "score", "detectors", "bench"}


def test_links_of_readme_lead_to_files() -> None:
    text = PAGES[0].read_text()
    links = {link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")}
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link
    for path in re.findall(r"^- (.*?):", text.split("## Where things are")[1], flags=re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", path):
            assert (ROOT / name).exists(), name


def test_what_the_examples_of_readme_import_is_there() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
