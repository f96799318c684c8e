"""README.md and the pages beside the chapters: short enough, and every command, link and example in them works."""

import argparse
import ast
import importlib
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from memlib import cli
from memlib.study.claims import BEGIN, END

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]
WORDS = 900  # of the README, its tables of claims not counted


def written(path: Path) -> str:
    """A page without the tables of claims."""
    text = path.read_text()
    return text.split(BEGIN)[0] + text.split(END)[1] if BEGIN in text else text


def commands(path: Path) -> list[list[str]]:
    """The command lines of a page, of its blocks and within its sentences, but for what only names a command or has a gap."""
    text = written(path)
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.strip() for block in blocks for line in block.splitlines()] + inline
    shown = [line for line in lines if re.match(r"(make|memlib|python -m) [a-z]", line) and "..." not in line]
    return [shlex.split(line, comments=True) for line in shown if line not in ("memlib audit", "memlib score")]


def test_readme_is_short() -> None:
    assert len(written(PAGES[0]).split()) <= WORDS


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
