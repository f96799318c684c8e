"""Stage `book`: the prose of the notebooks joined with what running them gave, and the pages built by Jupyter Book.

The output of the stage is a list of digests of what the pages are made of. The pages themselves also tell how long each stage
took here, which differs between equal runs.
"""

import hashlib
import html
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml

from memlib.files import atomic_write, read_json, write_json
from memlib.study import front
from memlib.study.claims import answers, dropdown, fill_markers, table
from memlib.study.digests import NOTEBOOKS, tree_digest
from memlib.study.history import last_change
from memlib.study.notebook import normalise, tagged
from memlib.study.pages import finish
from memlib.study.provenance import banner, kind, origin, provenance, stale
from memlib.study.sections import PARAMS
from memlib.study.stages import STUDY, WALL, reporting_errors, stage_times, timed_stage

BOOK, EXECUTED, PAGES = Path("book"), Path("results/chapters"), Path("book/chapters")
HTML = BOOK / "_build/html"
SOURCES = "sources.txt"
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "papermill",
    "dvc",
)
COLUMN, BOX, ROW = 170, 130, 30  # pixels of the drawn graph
REPRODUCIBILITY = """# Reproducibility

Every number and figure of this book comes from the run that this page describes. Each stage reads its section of \
`params.yaml`, fixes its random seeds and writes its results whole or not at all. The same run twice on one machine gives the \
same tables, byte for byte. On another processor, or with another precision, a training differs in its last digits and then in \
its course, and so do the numbers; the intervals of this book cover the choice of pictures, not that."""


def assemble(name: str) -> Any:
    """The page of a chapter: the cells of notebooks/NAME.ipynb, with the outputs of results/chapters and claims filled in.

    What the chapter found (`memlib.study.plotting.answer`) and how its claims came out stand after its title and first paragraph.

    Raises ValueError where the code that was run is not the notebook's.
    """
    source, made = NOTEBOOKS / f"{name}.ipynb", EXECUTED / f"{name}.ipynb"
    page, executed = (nbformat.read(path, as_version=4) for path in (source, made))
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    injected = [cell for cell in ran if tagged(cell, "injected-parameters")]
    ran = [cell for cell in ran if cell not in injected]
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    if tree_digest([cell.source for cell in ran], made) != tree_digest([cell.source for cell in code], source):
        raise ValueError(f"{made} was made by other code than that of {source}; run `dvc repro {name}`")
    for cell, done in zip(code, ran, strict=True):
        cell.outputs = done.outputs
    cells, sentences = [], []
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = fill_markers(cell.source)
        if tagged(cell, "answer"):
            sentences += [output["data"]["text/markdown"] for output in cell.outputs]
            cell.outputs = []
        cells += [cell, *injected] if tagged(cell, "parameters") else [cell]
    parts = page.cells[0].source.split("\n\n", 2)
    parts.insert(2, answers(f"chapters/{name}.ipynb", sentences))
    page.cells[0].source = "\n\n".join(filter(None, parts))
    page.cells, page.metadata = cells, executed.metadata
    return normalise(page)


def study(times: Mapping[str, Mapping[str, float]], wall: float | None = None) -> dict[str, Any]:
    """What stages took: seconds of each and in all, seconds on the clock (None if not known), peak memory, and the machine."""
    return {
        "seconds": {name: time["seconds"] for name, time in times.items()},
        "total_seconds": round(sum(time["seconds"] for time in times.values()), 1),
        "wall_seconds": wall,
        "peak_memory_mib": max((time["peak_memory_mib"] for time in times.values()), default=0),
        "machine": machine(),
    }


def full_study(stages: Collection[str]) -> dict[str, Any] | None:
    """What all the stages took on this machine, or None where one has not run here."""
    times = stage_times()
    if not times.keys() >= set(stages):
        return None
    return study({name: times[name] for name in sorted(stages)}, read_json(WALL)["seconds"] if WALL.exists() else None)


def write_study(stages: Collection[str]) -> None:
    """Write metrics/study.json once all stages have run on this machine; until then the committed one stays."""
    measured = full_study(stages)
    if measured is not None:
        write_json(STUDY, measured)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and package versions of this machine."""
    import joblib
    import psutil
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": joblib.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def reproducibility(stages: Mapping[str, Collection[str]]) -> str:
    """The page on how the results were made, as MyST: on this machine once all stages have run here, else the committed ones."""
    measured = full_study(stages.keys() - {"book"})
    where = "on this machine" if measured else "where the results of the repository were made"
    measured = measured or (read_json(STUDY) if STUDY.exists() else None)
    parts = [REPRODUCIBILITY]
    if measured:
        wall = measured["wall_seconds"]
        side_by_side = f", in {wall / 60:.1f} minutes on the clock, independent stages side by side" if wall else ""
        groups: dict[str, list[float]] = {}
        for name, seconds in measured["seconds"].items():
            groups.setdefault(kind(name), []).append(seconds)
        rows = sorted(
            ((group, len(each), round(sum(each), 1)) for group, each in groups.items()), key=lambda row: -row[2]
        )
        about = dict(measured["machine"])
        versions = about.pop("packages")
        parts += [
            "## Time and memory",
            f"The stages took {measured['total_seconds'] / 60:.1f} minutes {where}{side_by_side}; the largest process took "
            f"{measured['peak_memory_mib'] / 1024:.1f} GiB. Stages of one kind stand in one row.",
            table(rows, ("stage", "runs", "seconds")),
            "## Machine and versions",
            table([*about.items(), *versions.items()], ("what", "value")),
        ]
    parts += [
        "## The stages",
        "Each stage runs again when its code, its parameters or what it reads has changed. A line leads from a stage to those "
        "that read its results. Stages of one kind that come at the same place are one box with their number.",
        draw(stages),
        "## Parameters and seeds",
        *(
            dropdown(name, [table(_flat(name, section), ("parameter", "value"))])
            for name, section in yaml.safe_load(PARAMS.read_text()).items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def draw(stages: Mapping[str, Collection[str]]) -> str:
    """The graph of the stages from left to right, as SVG in a box that scrolls; `code`, which all need, is left out."""
    import networkx as nx

    graph = nx.DiGraph((need, name) for name, needed in stages.items() for need in needed if need != "code")
    depths = {name: depth for depth, names in enumerate(nx.topological_generations(graph)) for name in names}
    box = {name: (depth, kind(name)) for name, depth in depths.items()}
    count = {key: sum(other == key for other in box.values()) for key in sorted(set(box.values()))}
    links = nx.transitive_reduction(nx.DiGraph({(box[need], box[name]) for need, name in graph.edges}))
    place: dict[tuple[int, str], tuple[float, float]] = {}
    for depth in range(max(depths.values()) + 1):
        heights = {key: [place[need][1] for need in links.predecessors(key)] for key in count if key[0] == depth}
        column = sorted(heights, key=lambda key: sum(heights[key]) / max(len(heights[key]), 1))
        place |= {key: (depth * COLUMN, (row - len(column) / 2) * ROW) for row, key in enumerate(column)}
    top, bottom = (extreme(y for _, y in place.values()) for extreme in (min, max))
    width, height = (max(depths.values()) + 1) * COLUMN, bottom - top + 2 * ROW
    curves = [
        f'<path d="M{x + BOX} {y} C{x + COLUMN} {y} {to_x - COLUMN + BOX} {to_y} {to_x} {to_y}"/>'
        for (x, y), (to_x, to_y) in ((place[need], place[key]) for need, key in links.edges)
    ]
    boxes = [
        f'<rect x="{x}" y="{y - 11}" width="{BOX}" height="22" rx="4"/><text x="{x + 6}" y="{y + 4}">'
        f"{html.escape(key[1])}{f' ({count[key]})' if count[key] > 1 else ''}</text>"
        for key, (x, y) in place.items()
    ]
    label = "Graph of the stages, from the data at the left to the book at the right"
    svg = f'<svg class="stages" role="img" aria-label="{label}" width="{width}" height="{height}"'
    lines = [f'<div class="scrolling">{svg} viewBox="0 {top - ROW} {width} {height}">', *curves, *boxes, "</svg></div>"]
    return "\n".join(lines)


def _flat(prefix: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested parameters; none where there is none."""
    if isinstance(content, dict) and content:
        for name, value in content.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), value)
    else:
        yield prefix, "none" if content in (None, {}, []) else content


def build(
    reads: Mapping[str, Collection[str]],
    stages: Mapping[str, Collection[str]],
    old: Collection[str] = (),
    images: Mapping[str, str] | None = None,
) -> None:
    """Write the pages, build the book from them with warnings as errors, and put it whole to book/_build/html.

    reads: what each stage reads. stages: the stages that each needs. old: those that are stale. images: the stage that made a
    picture of book/_static, by the name of its file.
    """
    import networkx as nx

    chapters = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    images = images or {}
    graph = nx.DiGraph((need, name) for name, needed in stages.items() for need in needed)
    banners = {name: banner(reads[name], {name, *nx.ancestors(graph, name)} & set(old)) for name in chapters}
    sources = {path: path.read_bytes() for path in BOOK.rglob("*") if path.is_file() and not _is_made(path)}
    with atomic_write(PAGES) as folder:
        folder.mkdir()
        for name in chapters:
            page = assemble(name)
            sources[NOTEBOOKS / f"{name}.ipynb"] = nbformat.writes(page).encode()
            page.cells.append(nbformat.v4.new_markdown_cell(origin(name, reads[name]), id="origin"))
            nbformat.write(page, folder / f"{name}.ipynb")
        (folder / "reproducibility.md").write_text(reproducibility(stages))
        for name, text in front.parts().items():
            (folder / f"{name}.md").write_text(text)
    program = Path(sys.executable).with_name("jupyter-book")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "build", str(BOOK), "-W", "-n", "--keep-going", "-q", "--path-output", folder]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"the book does not build:\n{result.stdout}\n{result.stderr}")
        with atomic_write(HTML) as temporary:
            shutil.copytree(Path(folder) / "_build/html", temporary)
            texts = {f"{PAGES.name}/{name}": NOTEBOOKS / f"{name}.ipynb" for name in chapters}
            texts |= {path.stem: path for path in BOOK.glob("*.md")}
            changed = {page: last for page, path in texts.items() if (last := last_change(path))}
            finish(temporary, provenance({*chapters, *images.values()}, machine()), banners, images, changed)
            lines = [f"{hashlib.sha256(content).hexdigest()} {path}\n" for path, content in sorted(sources.items())]
            (temporary / SOURCES).write_text("".join(lines))


def _is_made(path: Path) -> bool:
    return path.is_relative_to(BOOK / "_build") or path.is_relative_to(PAGES)


def main() -> None:
    """Build the book and, once all stages have run on this machine, write metrics/study.json."""
    from dvc.repo import Repo

    with reporting_errors("book"):
        with timed_stage("book"):
            repo = Repo()
            graph = repo.index.graph
            stages = {stage.addressing: {other.addressing for other in graph.successors(stage)} for stage in graph}
            made = [(Path(out.def_path), stage.addressing) for stage in graph for out in stage.outs]
            images = {path.name: name for path, name in made if path.parent == BOOK / "_static"}
            reads = {stage.addressing: [dep.def_path for dep in stage.deps] for stage in graph}
            build(reads, stages, stale(repo) - {"code", "book"}, images)
        write_study(stages)


if __name__ == "__main__":
    main()
