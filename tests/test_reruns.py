"""What runs again after an edit: by the digests of the code, the parameters and DVC's graph, without running anything.

`make smoke` asks `dvc status` the same of a study that has run.
"""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from dvc.repo import Repo

from memlib.detectors import ALL
from memlib.study import digests as digesting
from memlib.study.digests import digest_files, score_files
from memlib.study.parameters import read
from memlib.study.prepare import packed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc")
ROOT = Path(__file__).parent.parent
CODE, PARAMETERS = "code", "results/params.json"  # the stage that writes digests, and what it makes of params.yaml
STUDY = read(ROOT / "params.yaml")
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PAGES = {*CHAPTERS, "claims", "book"}
JUDGING = {"audits", "report"}  # what judges and is no page, in seconds
EVALUATION = sorted(path.name for path in (ROOT / "memlib/evaluation").glob("*.py") if path.name != "__init__.py")


@pytest.fixture(scope="module", autouse=True)
def digested_once() -> Iterator[None]:
    """A source that no edit has changed is parsed and digested once: each test edits one of a hundred."""
    parse, kept = digesting._parse, functools.cache(digesting._parse)
    changed = Path("memlib/detectors/__init__.py")  # whose tree loses what belongs to each detector by itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digesting, "_parse", lambda source, path: (parse if path == changed else kept)(source, path))
        patch.setattr(digesting, "_digest", kept_by_tree(digesting._digest))
        patch.setattr(digesting, "imports", kept_by_tree(digesting.imports))
        yield


def kept_by_tree(function: Callable) -> Callable:
    """A function of one syntax tree or several, computed once for each of them."""
    found = functools.cache(lambda trees, *given: function(list(trees) if isinstance(trees, tuple) else trees, *given))
    return lambda trees, *given: found(tuple(trees) if isinstance(trees, list) else trees, *given)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of the project, without anything that a stage makes."""
    for folder in ("memlib", "notebooks", "book"):
        ignored = shutil.ignore_patterns("__pycache__", "_build", "chapters", "generated")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for name in ("dvc.yaml", "params.yaml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Plan(NamedTuple):
    """What DVC knows of the stages after `code`: the parameters and files that each reads, and the stages that it needs."""

    params: dict[str, list[str]]
    files: dict[str, list[str]]
    needs: dict[str, set[str]]


def plan() -> Plan:
    graph = Repo().index.graph
    made = [out.def_path for stage in graph for out in stage.outs if out.def_path != "results/code"]
    params, files, needs = {}, {}, {}
    for stage in graph:
        name = stage.addressing
        if name == CODE:
            continue
        params[name] = [key for dep in stage.deps for key in getattr(dep, "params", ()) if dep.def_path == PARAMETERS]
        plain = [dep.def_path for dep in stage.deps if not getattr(dep, "params", ())]
        files[name] = [path for path in plain if is_source(path, made)]
        needs[name] = {need.addressing for need in graph.successors(stage)} - {CODE}
    return Plan(params, files, needs)


def is_source(path: str, made: list[str]) -> bool:
    """Whether no stage makes a path, what lies in it, or the folder that it lies in."""
    return not any(f"{path}/".startswith(f"{out}/") or f"{out}/".startswith(f"{path}/") for out in made)


def reads(stages: Plan, digests: dict[str, str]) -> dict[str, Any]:
    """What each stage reads of the sources: digests of its code, files, and values of parameters."""
    values = read("params.yaml")
    content: dict[str, Any] = {}
    for path in {path for paths in stages.files.values() for path in paths}:
        if path.startswith("results/code/"):
            content[path] = digests[Path(path).name]
        else:
            files = [Path(path), *sorted(Path(path).rglob("*"))]
            content[path] = [file.read_bytes() for file in files if file.is_file()]
    return {
        name: ([value_of(values, key) for key in stages.params[name]], [content[path] for path in paths])
        for name, paths in stages.files.items()
    }


def value_of(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values[name]
    return values


@functools.cache
def as_it_is() -> tuple[Plan, dict[str, str], dict[str, Any]]:
    """The plan of the project, the digests of its code, and what its stages read before any edit."""
    with contextlib.chdir(ROOT):
        stages, digests = plan(), digests_of_all()
        return stages, digests, reads(stages, digests)


def digests_of_all() -> dict[str, str]:
    files = digest_files()
    return files | score_files(files, read("params.yaml")["scores"])


def would_run(edit: Callable[[], object]) -> tuple[set[str], set[str]]:
    """Stages that read something else after an edit of code, and these with all that may read something else of theirs."""
    edit()
    return differing(as_it_is()[0], digests_of_all())


def differing(stages: Plan, digests: dict[str, str]) -> tuple[set[str], set[str]]:
    before, after = as_it_is()[2], reads(stages, digests)
    first = {name for name, content in after.items() if before.get(name) != content}
    found = set(first)
    while more := {name for name, needs in stages.needs.items() if needs & found} - found:
        found |= more
    return first, found


def append(path: str, text: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(Path(path).read_text() + text)


def change_cell(name: str, kind: str, text: str) -> Callable[[], object]:
    """Add text to the last cell of a kind of a notebook."""

    def edit() -> None:
        path = Path(f"notebooks/{name}.ipynb")
        notebook = json.loads(path.read_text())
        cell = [cell for cell in notebook["cells"] if cell["cell_type"] == kind][-1]
        cell["source"] = ["".join(cell["source"]) + text]
        path.write_text(json.dumps(notebook))

    return edit


def set_parameters(**values: Any) -> Callable[[], object]:
    """Lay values over sections of params.yaml."""

    def edit() -> None:
        study = read("params.yaml")
        for section, content in values.items():
            study[section] |= content
        Path("params.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    return edit


def test_a_comment_anywhere_runs_nothing(tree: Path) -> None:
    def edit() -> None:
        for path in [*tree.rglob("memlib/**/*.py")]:
            path.write_text(f"# A comment.\n{path.read_text()}\n\n# Another.\n")
        append("README.md", "More.\n")()

    assert would_run(edit) == (set(), set())


def test_the_words_of_the_pages_run_the_book(tree: Path) -> None:
    assert would_run(lambda: [change_cell(name, "markdown", " More words.")() for name in CHAPTERS])[1] == {"book"}


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_of_a_page_runs_the_page(tree: Path, name: str) -> None:
    first, found = would_run(change_cell(name, "code", "\n1 + 1"))
    assert first - {"book"} == {name}
    assert found <= PAGES


@pytest.mark.parametrize("name", [f"memlib/evaluation/{name}" for name in EVALUATION] + ["memlib/study/plotting.py"])
def test_statistics_and_figures_run_pages_and_the_book(tree: Path, name: str) -> None:
    first, found = would_run(append(name, "\nMORE = 1\n"))
    assert first or name in files_behind("memlib.cli"), "no page uses it, nor a command"
    assert found <= PAGES | JUDGING


def files_behind(entry: str) -> set[str]:
    """Files of the modules that a module imports, directly or through others."""
    files = {digesting._name(path): path for path in Path("memlib").rglob("*.py")}
    imported = {name: digesting.imports(digesting._parse(path.read_text(), path), name) for name, path in files.items()}
    found, todo = set(), {entry}
    while todo:
        found |= todo
        todo = set().union(*(imported[name] for name in todo)) - found
    return {str(files[name]) for name in found}


def test_trainings_do_not_depend_on_how_models_are_loaded_and_sampled(tree: Path) -> None:
    first, _ = would_run(append("memlib/fields/transformer.py", "\nMORE = 1\n"))
    assert not {name.split("@")[0] for name in first} & {
        "text_base",
        "text_arm",
        "flow_base",
        "flow_arm",
        "autoencoder",
    }


FAMILIES = {
    key: {ALL[table["detector"]].split(":")[0].split(".")[-1] for table in entry["tables"].values()}
    for key, entry in STUDY["scores"].items()
}


@pytest.mark.parametrize("family", sorted(set().union(*FAMILIES.values())))
def test_a_detector_runs_its_own_scores_again(tree: Path, family: str) -> None:
    first, _ = would_run(append(f"memlib/detectors/{family}.py", "\nMORE = 1\n"))
    scores = {f"scores@{key}" for key, families in FAMILIES.items() if family in families}
    assert {name for name in first if name.startswith("scores@")} == scores
    assert not {name for name in first if name.split("@")[0] in TRAININGS}


TRAININGS = {
    "train",
    "picture_control",
    "pair",
    "retrain",
    "autoencoder",
    "text_base",
    "flow_base",
    "flow_arm",
    "judge",
    "sets",
}


def test_reading_other_pictures_trains_and_scores_nothing_by_itself(tree: Path) -> None:
    assert would_run(append("memlib/datasets/sources.py", "\nMORE = 1\n"))[0] == {"data", "drawings"}


def test_a_new_arm_runs_by_itself_and_where_arms_are_shown(tree: Path) -> None:
    scored = {
        "scores": STUDY["scores"] | {"more-text": STUDY["scores"]["share-5-text"] | {"model": "results/text/more"}}
    }
    run = {"run": STUDY["run"] | {"text_arms": STUDY["run"]["text_arms"] | {"more": {"random_words": 4}}}}
    set_parameters(**scored, **run)()
    first, found = differing(plan(), digests_of_all())
    assert {"text_arm@more", "scores@more-text", "arm@more"} <= first
    assert {name for name in found if not name.endswith(("@more", "@more-text"))} <= PAGES


def test_the_wording_of_a_claim_runs_claims_and_book(tree: Path) -> None:
    path = Path("book/claims.yml")
    path.write_text(path.read_text().replace("claim: ", "claim: Indeed, "))
    assert differing(*as_it_is()[:2])[1] == {"claims", "book"}


@pytest.mark.parametrize("name", [name for name in CHAPTERS if STUDY.get(name)])
def test_a_parameter_of_a_chapter_runs_it_and_the_book(tree: Path, name: str) -> None:
    set_parameters(**{name: {"seed": 12345}})()
    assert differing(*as_it_is()[:2])[1] - {"claims"} == {name, "book"}


@pytest.mark.parametrize(
    "path", [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/experiments/*.ipynb")], ids=lambda path: path.stem
)
def test_every_notebook_is_a_stage_with_its_code_and_its_section(path: Path) -> None:
    stages = as_it_is()[0]
    names = [name for name, files in stages.files.items() if f"results/code/{path.stem}" in files]
    assert names
    for name in names:
        assert path.stem in stages.params[name] or path.stem not in STUDY


def test_a_chapter_reads_tables_and_no_models() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name in CHAPTERS:
        other = [dep for dep in stages[name]["deps"] if not dep.startswith(("results/code/", "tables/", "metrics/"))]
        assert not other, name


def test_the_pipeline_is_short_and_names_no_module() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert len(text.splitlines()) < 250
    assert ".py" not in text


def test_dvc_finds_every_parameter_that_stages_name_with_its_value() -> None:
    values = json.loads(packed(STUDY))
    for name, keys in as_it_is()[0].params.items():
        for key in keys:
            assert unpacked(value_of(values, key)) == json.loads(json.dumps(value_of(STUDY, key))), name


def unpacked(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else {name: unpacked(entry) for name, entry in value.items()}
