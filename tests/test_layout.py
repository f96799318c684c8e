"""The layout of the package: imports point one way, importing is light, and installing leaves what is there alone."""

import ast
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from memlib.study.digests import imports

ROOT = Path(__file__).parent.parent
HELPERS = ("tensors", "files", "progress", "words", "tables", "processes")  # of all folders; they import none of them
FOLDERS = ("fields", "sampling", "detectors", "mitigation", "truth", "evaluation", "datasets", "training")
# Each may import those before it, itself and the helpers
LAYERS = (
    *FOLDERS,
    "watched",
    "monitor",
    "score",
    "cluster",
    "candidate",
    "bench",
    "audit_report",
    "audit",
    "cli",
    "study",
)
MODULES = sorted((ROOT / "memlib").rglob("*.py"))


def layer(module: str) -> str:
    """The folder of a module of the package, or its name if it lies in none; "" for the package."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    own, imported = layer(name), {layer(module) for module in imports(ast.parse(path.read_text()), name)}
    if own == "tensors" or name == "memlib":
        allowed = set()
    elif own in HELPERS:
        allowed = set(HELPERS)
    else:
        allowed = {*HELPERS, *LAYERS[: LAYERS.index(own) + 1]}
    assert imported <= allowed


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_light_and_changes_nothing() -> None:
    loaded = run(
        "import os, sys\nbefore = dict(os.environ), set(sys.modules)\nimport memlib\n"
        "assert dict(os.environ) == before[0]\nprint(*(set(sys.modules) - before[1]))"
    )
    assert loaded.split() == ["memlib"]


def test_what_chapters_read_tables_with_loads_no_networks() -> None:
    names = ["evaluation.roc", "evaluation.claims", "evaluation.intervals", "study.plotting", "study.parameters", "cli"]
    heavy = run(
        f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(f'memlib.{{name}}')\n"
        "    print(*(f'{name}:{heavy}' for heavy in ('torch', 'diffusers', 'transformers') if heavy in sys.modules))"
    )
    assert not heavy.split()


FIGURES = {"matplotlib", "seaborn", "sklearn", "papermill"}
PROGRAMS = [
    f"memlib.study.{name}"
    for name in ("train_image", "train_text", "make_data", "score", "draw_samples", "make_control")
]


def test_what_trains_samples_and_scores_imports_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the top of its modules; inside functions it may."""
    monkeypatch.chdir(ROOT)  # where `imports` looks for modules
    found, todo = set(), [*PROGRAMS]
    while todo:
        name = todo.pop()
        tree = ast.parse(Path(importlib.util.find_spec(name).origin).read_text())
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        todo += imports(tree, name) - found
        found |= {name, *imports(tree, name)}
        named = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not FIGURES & {module.partition(".")[0] for module in named}, name


@pytest.mark.ci
def test_what_trains_samples_and_scores_loads_no_figures() -> None:
    """Neither itself nor by what it imports of others."""
    heavy = run(f"import sys, {', '.join(PROGRAMS)}\nprint(*({FIGURES} & set(sys.modules)))")
    assert not heavy.split()


def test_the_package_asks_for_little_and_pins_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) < 18
    bounds = [bound.operator for need in project["dependencies"] for bound in Requirement(need).specifier]
    assert set(bounds) == {">="}
    assert project["scripts"] == {"memlib": "memlib.cli:main"}


@pytest.mark.ci
def test_installing_into_an_environment_with_torch_leaves_it_alone(tmp_path: Path) -> None:
    """pip would install nothing but this package, from what is there and without the network."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-build-isolation", "--quiet"]
    command = [*pip, "--report", "-", str(ROOT)]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert [found["metadata"]["name"] for found in json.loads(report)["install"]] == ["memlib"]


def test_all_folders_are_in_the_package() -> None:
    from setuptools import find_packages

    found = set(find_packages(str(ROOT), include=["memlib*"]))
    assert found == {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}


def test_the_pins_cover_all_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [
        *project["dependencies"],
        *project["optional-dependencies"]["study"],
        *project["optional-dependencies"]["test"],
    ]
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    plain = {canonicalize_name(Requirement(need).name) for need in named}
    assert plain <= pinned


def test_the_pins_lie_within_the_bounds() -> None:
    lines = [line.partition(" ;") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line]
    pins = [pin.partition("==") for pin, _, _ in lines]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for need in map(Requirement, project["dependencies"]):
        versions = [version.strip() for name, _, version in pins if name == canonicalize_name(need.name)]
        assert versions
        assert all(need.specifier.contains(version) for version in versions), need
