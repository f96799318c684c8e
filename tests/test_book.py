"""The book: pages of stored prose and stored outputs, and what they say of where their numbers come from."""

import os
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from memlib.files import write_json
from memlib.study import book, front
from memlib.study.criteria import read_claims
from memlib.study.notebook import normalise
from memlib.study.stages import timed_stage

ROOT = Path(__file__).parent.parent
TOC = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
CHAPTERS = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [TOC["root"], *(page["file"] for chapter in CHAPTERS for page in (chapter, *chapter.get("sections", [])))]
CONFIG = yaml.safe_load((ROOT / "book/_config.yml").read_text())
STAGES = {
    "code": set(),
    "data": {"code"},
    "scores@a": {"data", "code"},
    "scores@b": {"data", "code"},
    "sets": {"scores@a", "code"},
    "scores@c": {"sets", "code"},
    "growth": {"scores@a", "scores@c", "code"},
    "book": {"growth", "code"},
}
READS = {"growth": ["results/code/growth", "tables/scores/a", "tables/scores/c"]}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one chapter that has run, with a claim, two tables and a book of three pages."""
    monkeypatch.chdir(tmp_path)
    v4 = nbformat.v4
    source = [
        v4.new_markdown_cell("# Growth\n\nText of the page.\n\n<!-- criteria: volume.trained -->"),
        v4.new_code_cell("n = 1", metadata={"tags": ["parameters", "remove-cell"]}),
        v4.new_code_cell("n + 1  # a remark", metadata={"tags": ["hide-input"]}),
        v4.new_markdown_cell("Words between."),
        v4.new_code_cell("print(n)"),
    ]
    write_notebook("notebooks/growth.ipynb", source)
    ran = [
        v4.new_markdown_cell("# Old words"),
        v4.new_code_cell("n = 1", metadata={"tags": ["parameters", "remove-cell"]}),
        v4.new_code_cell("# Parameters\nn = 7\n", metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell("n + 1", outputs=[v4.new_output("execute_result", {"text/plain": "8"}, execution_count=1)]),
        v4.new_code_cell("print( n )", outputs=[v4.new_output("stream", name="stdout", text="7\n")]),
    ]
    write_notebook("results/chapters/growth.ipynb", ran)
    side = {"outcome": "reproduced"}
    criterion = {
        "says": "Share told",
        "statistic": "share",
        "above": 0.5,
        "items": "tables/items.parquet",
        "first": side,
        "baseline": {"first": side},
    }
    criterion |= {"trainings": ["main"], "at_least": {"items": 9}, "seed": 1}
    claim = {
        "paper": "x",
        "claim": "Growth tells.",
        "plain": "loss",
        "page": "chapters/growth.ipynb",
        "criterion": criterion,
    }
    (tmp_path / "book").mkdir()
    (tmp_path / "book/claims.yml").write_text(yaml.safe_dump({"volume": {"trained": claim}}))
    (tmp_path / "book/_config.yml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "book/_static").symlink_to(ROOT / "book/_static")
    (tmp_path / "book/references.bib").write_text("")
    toc = [{"file": "chapters/growth"}, {"file": "chapters/reproducibility"}]
    (tmp_path / "book/_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "index", "chapters": toc}))
    (tmp_path / "book/index.md").write_text("# Findings\n\nSee {doc}`chapters/growth`.\n")
    (tmp_path / "params.yaml").write_text("growth: {n: 7}\nrun: {arms: {single: {}}}")
    write_json("tables/scores/c/growth.json", [1])
    os.utime("tables/scores/c/growth.json", (0, 0))
    for name in ("scores@a", "growth"):
        monkeypatch.setenv("DVC_STAGE", name)
        with timed_stage(name):
            if name == "scores@a":
                write_json("tables/scores/a/growth.json", [2])
    return tmp_path


def write_notebook(path: str, cells: list) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    nbformat.write(normalise(nbformat.v4.new_notebook(cells=cells, metadata=metadata)), path)


def edit(path: str, old: str, new: str) -> None:
    content = Path(path).read_text()
    assert old in content
    Path(path).write_text(content.replace(old, new))


def all_ran(study: Path) -> None:
    for number, name in enumerate(STAGES, 1):
        write_json(f"results/times/{name}.json", {"seconds": float(number), "peak_memory_mib": 10 * number})


def test_a_page_has_the_words_of_the_notebook_and_the_outputs_of_its_run(study: Path) -> None:
    edit("notebooks/growth.ipynb", "Words between.", "Better words.")
    cells = book.assemble("growth").cells
    assert [cell.source.splitlines()[0] for cell in cells] == [
        "# Growth", "n = 1", "# Parameters", "n + 1  # a remark", "Better words.", "print(n)",
    ]  # fmt: skip
    assert "Share told; reproduced if" in cells[0].source, "the claim is filled in"
    assert [len(cell.get("outputs", [])) for cell in cells] == [0, 0, 0, 1, 0, 1]
    assert cells[3].outputs[0]["data"]["text/plain"] == "8"
    assert cells[3].metadata.tags == ["hide-input"]
    assert cells[5].outputs[0].text == "7\n"


def test_the_answer_stands_after_the_question(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, made = Path("notebooks/growth.ipynb"), Path("results/chapters/growth.ipynb")
    page, executed = (nbformat.read(path, as_version=4) for path in (source, made))
    for notebook in (page, executed):
        notebook.cells.append(nbformat.v4.new_code_cell("say()", metadata={"tags": ["answer"]}))
    said = nbformat.v4.new_output("execute_result", {"text/markdown": "- It grows."}, execution_count=9)
    executed.cells[-1].outputs = [said]
    nbformat.write(page, source)
    nbformat.write(executed, made)
    monkeypatch.setattr(book, "answers", "The answer of {}: {}".format)
    cells = book.assemble("growth").cells
    title, question, answer, criteria = cells[0].source.split("\n\n")
    assert (title, question) == ("# Growth", "Text of the page.")
    assert answer == "The answer of chapters/growth.ipynb: ['- It grows.']"
    assert cells[-1].outputs == [], "the answer stands once"
    assert "Share told" in criteria


def test_outputs_of_other_code_are_refused(study: Path) -> None:
    edit("notebooks/growth.ipynb", "print(n)", "print(n + 1)")
    with pytest.raises(
        ValueError, match="was made by other code than that of notebooks/growth.ipynb; run `dvc repro growth`"
    ):
        book.assemble("growth")


def test_the_last_line_says_where_the_tables_come_from(study: Path) -> None:
    line = book.origin("growth", READS["growth"])
    assert re.match(
        r"\*Stage `growth`, 0 seconds on this machine\. The tables .* were made on this machine but for some", line
    )
    assert "reads were made on this machine.*" in book.origin("growth", ["tables/scores/a"])
    assert "are those of the repository" in book.origin("growth", ["tables/scores/c"])
    assert book.origin("growth", []) == "*Stage `growth`, 0 seconds on this machine.*"


def test_a_full_run_is_on_record_and_a_part_is_not(study: Path) -> None:
    write_json("metrics/study.json", {"seconds": {"data": 600.0}, "committed": True})
    book.write_study(STAGES)
    assert book.read_json("metrics/study.json")["committed"], "some stages have not run here"
    all_ran(study)
    write_json("results/wall.json", {"seconds": 20.5})
    book.write_study(STAGES)
    found = book.read_json("metrics/study.json")
    assert found["seconds"]["scores@a"] == 3
    assert found["total_seconds"] == 36
    assert found["wall_seconds"] == 20.5
    assert found["peak_memory_mib"] == 80
    assert found["machine"]["packages"]["dvc"]


def test_the_page_on_reproducibility_tells_of_this_machine_or_of_the_committed_run(study: Path) -> None:
    assert "## Time and memory" not in book.reproducibility(STAGES), "nothing is on record"
    all_ran(study)
    book.write_study(STAGES)
    write_json("results/times/scores@a.json", {"seconds": 100.0, "peak_memory_mib": 1})
    text = book.reproducibility(STAGES)
    assert "| scores | 3 | 110.0 |" in text
    assert "minutes on this machine" in text
    folds = dict(re.findall(r"^:::\{dropdown\} (\S+)\n(.*?)\n:::$", text, re.MULTILINE | re.DOTALL))
    assert list(folds) == ["growth", "run"]
    assert "| growth.n | 7 |" in folds["growth"]
    assert "| run.arms.single | none |" in folds["run"]
    (study / "results/times/sets.json").unlink()
    text = book.reproducibility(STAGES)
    assert "minutes where the results of the repository were made" in text
    assert "| scores | 3 | 13.0 |" in text


def test_the_graph_is_drawn_from_what_is_needed_to_what_needs_it() -> None:
    svg = book.draw(STAGES)
    x = {label: float(at) for at, label in re.findall(r'<text x="([-\d.]+)" y="[-\d.]+">([^<]+)</text>', svg)}
    assert x["data"] < x["scores (2)"] < x["sets"] < x["scores"] < x["growth"] < x["book"]
    assert len(x) == 6, "no box for the stage that all need"
    assert svg.count("<path") == 5, "what another line says is not drawn"


@pytest.mark.ci
def test_equal_runs_make_an_equal_stamp_and_a_broken_page_keeps_the_book(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "parts", lambda: {"answer": "Some can."})
    book.build(READS, STAGES)
    stamp = (study / "book/_build/html/sources.txt").read_text()
    page = (study / "book/_build/html/chapters/growth.html").read_text()
    assert "Text of the page." in page
    assert "were made on this machine but for some" in page
    assert "svg" in (study / "book/_build/html/chapters/reproducibility.html").read_text()
    all_ran(study)
    edit("notebooks/growth.ipynb", "Text of the page.", "See {doc}`nowhere`.")
    with pytest.raises(RuntimeError, match="(?s)the book does not build:.*nowhere"):
        book.build(READS, STAGES)
    assert (study / "book/_build/html/chapters/growth.html").read_text() == page
    edit("notebooks/growth.ipynb", "See {doc}`nowhere`.", "Text of the page.")
    book.build(READS, STAGES)
    assert (study / "book/_build/html/sources.txt").read_text() == stamp
    assert "9 seconds" not in page
    assert "7 seconds on this machine" in (study / "book/_build/html/chapters/growth.html").read_text()


def test_every_notebook_is_a_page_and_every_page_is_there() -> None:
    chapters = {page.removeprefix("chapters/") for page in PAGES if page.startswith("chapters/")}
    assert chapters == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} | {"reproducibility"}
    assert all((ROOT / f"book/{page}.md").exists() for page in PAGES if not page.startswith("chapters/"))


def test_every_citation_is_in_the_bibliography(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    keys = {line.split("{")[1].rstrip(",\n") for line in (ROOT / "book/references.bib").open() if line.startswith("@")}
    assert {entry.paper for entry in read_claims().values() if entry.paper} <= keys
