"""Digests of the code that each entry point imports: what changes them, and for whom."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memlib.study.digests import digest_files, score_files

ROOT = Path(__file__).parent.parent
TREE = {
    "memlib/__init__.py": ['"""Package."""'],
    "memlib/base.py": [
        '"""Base."""',
        "",
        "SIZE = 3",
        "def half(x):",
        '    """Half of x."""',
        "    return x / 2  # exact",
    ],
    "memlib/other.py": ["NAME = 'other'"],
    "memlib/progress.py": ["EVERY = 15"],
    "memlib/fields/__init__.py": ["DTYPE = 'float32'"],
    "memlib/fields/unet.py": [
        "from memlib.base import half",
        "def load():",
        "    from memlib import other",
        "    return other.NAME",
    ],
    "memlib/detectors/__init__.py": [
        "ALL = {'growth': 'memlib.detectors.volume:GROWTH', 'loss': 'memlib.detectors.denoising:LOSS'}",
        "BATCH = 4",
    ],
    "memlib/detectors/volume.py": ["from memlib.fields.unet import load", "GROWTH = load"],
    "memlib/detectors/denoising.py": ["from memlib.fields import DTYPE", "LOSS = DTYPE"],
    "memlib/study/__init__.py": [],
    "memlib/study/score.py": [
        "from memlib import progress",
        "from memlib.detectors import BATCH",
        "if __name__ == '__main__':",
        "    print(BATCH)",
    ],
    "memlib/study/train.py": [
        "from typing import TYPE_CHECKING",
        "if TYPE_CHECKING:",
        "    from memlib.other import NAME",
        "if __name__ == '__main__':",
        "    import memlib.base",
    ],
    "memlib/study/plotting.py": ["from . import helper"],
    "memlib/study/helper.py": ["COLOUR = 'red'"],
}
ENTRIES = {"score", "train", "score-volume", "score-denoising", "growth", "solver"}


def notebook(*code: str, prose: str = "# Title") -> str:
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [prose]}]
    cells += [{"cell_type": "code", "metadata": {}, "source": source.splitlines(keepends=True)} for source in code]
    return json.dumps({"cells": cells})


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {name: "\n".join(lines) for name, lines in TREE.items()} | {
        "notebooks/growth.ipynb": notebook("from memlib.study import plotting", "plotting.helper"),
        "notebooks/experiments/solver.ipynb": notebook("import memlib.base as base\n\nbase.half(1)"),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(edit: Callable[[], object]) -> set[str]:
    """Entry points whose digest file an edit changes."""
    before = digest_files()
    edit()
    after = digest_files()
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def replace(name: str, old: str, new: str) -> Callable[[], object]:
    path = Path(name)
    assert old in path.read_text()
    return lambda: path.write_text(path.read_text().replace(old, new))


def test_every_entry_point_has_a_digest_of_its_own(tree: Path) -> None:
    files = digest_files()
    assert files.keys() == ENTRIES
    assert [line.split()[0] for line in files["score-volume"].splitlines()] == [
        "memlib.base",
        "memlib.detectors",
        "memlib.detectors.volume",
        "memlib.fields.unet",
        "memlib.other",
        "memlib.study.score",
        "growth:",
    ], "a package counts only where something is taken from it, and a lazy import like any other"


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("memlib/base.py", "x / 2  # exact", "(\n        x / 2\n    )", set()),
        ("memlib/base.py", "Half of x.", "Half.", set()),
        ("memlib/base.py", '"""Base."""\n', "", set()),
        ("memlib/base.py", "x / 2", "x * 0.5", {"score-volume", "train", "solver"}),
        ("memlib/other.py", "other", "another", {"score-volume"}),
        ("memlib/progress.py", "15", "20", set()),
        ("memlib/fields/__init__.py", "float32", "float16", {"score-denoising"}),
        ("memlib/study/helper.py", "red", "blue", {"growth"}),
        ("memlib/detectors/volume.py", "= load", "= load()", {"score-volume"}),
        ("memlib/detectors/__init__.py", "BATCH = 4", "BATCH = 8", {"score", "score-volume", "score-denoising"}),
        (
            "memlib/detectors/__init__.py",
            "'loss':",
            "'pia': 'memlib.detectors.denoising:PIA', 'loss':",
            {"score-denoising"},
        ),
        ("notebooks/growth.ipynb", "# Title", "# Another title", set()),
        ("notebooks/growth.ipynb", "plotting.helper", "plotting.helper  # a remark", set()),
        ("notebooks/growth.ipynb", "plotting.helper", "plotting.helper.COLOUR", {"growth"}),
    ],
)
def test_an_edit_changes_the_digests_of_those_that_import_it(
    tree: Path, name: str, old: str, new: str, expected: set[str]
) -> None:
    assert changed(replace(name, old, new)) == expected


def test_a_new_family_of_detectors_is_an_entry_point(tree: Path) -> None:
    (tree / "memlib/detectors/text.py").write_text("MAGNITUDE = 1\n")
    edit = replace("memlib/detectors/__init__.py", "ALL = {", "ALL = {'magnitude': 'memlib.detectors.text:MAGNITUDE', ")
    assert changed(edit) == {"score-text"}


def test_an_entry_of_scores_holds_the_families_of_its_detectors(tree: Path) -> None:
    def entry(*detectors: str) -> dict:
        return {"tables": {name: {"detector": name} for name in detectors}}

    files = digest_files()
    found = score_files(files, {"a": entry("growth"), "b": entry("loss", "growth", "pia")})
    assert found == {"scores-a": files["score-volume"], "scores-b": files["score-denoising"] + files["score-volume"]}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "memlib/fields/unet.py",
            "memlib.base",
            "memlib.bass",
            "memlib.fields.unet imports memlib.bass, which does not",
        ),
        (
            "notebooks/growth.ipynb",
            "memlib.study",
            "memlib.studies",
            "growth.ipynb imports memlib.studies, which does not",
        ),
        (
            "memlib/detectors/__init__.py",
            "volume:",
            "volumes:",
            "memlib.detectors imports memlib.detectors.volumes, which",
        ),
        ("memlib/detectors/__init__.py", "ALL", "SOME", "assigns no ALL"),
        ("memlib/base.py", "SIZE = 3", "SIZE = = 3", "memlib/base.py is not plain Python: invalid syntax"),
        ("notebooks/growth.ipynb", "plotting.helper", "%matplotlib inline", "growth.ipynb is not plain Python"),
    ],
)
def test_code_that_cannot_be_read_is_refused(tree: Path, name: str, old: str, new: str, message: str) -> None:
    replace(name, old, new)()
    with pytest.raises(ValueError, match=message):
        digest_files()


def test_two_entry_points_of_one_name_are_refused(tree: Path) -> None:
    (tree / "notebooks/train.ipynb").write_text(notebook("1"))
    with pytest.raises(ValueError, match="two entry points are named 'train'"):
        digest_files()


@pytest.mark.ci  # test_reruns asks it of comments
def test_no_comment_docstring_or_format_in_the_project_changes_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("memlib", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    before = digest_files()
    assert len(before) > 20
    for path in tmp_path.rglob("memlib/**/*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                node.body[0].value.value = "Another docstring."
        path.write_text("# A comment.\n" + ast.unparse(tree))
    assert digest_files() == before
