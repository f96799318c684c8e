"""Stage `book`: the prose of the notebooks joined with what running them gave, and the pages built by Jupyter Book.

The output of the stage is a digest of what the pages are made of. The pages themselves also tell how long each stage took
here, which differs between equal runs.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml

from memlib.files import atomic_write, read_json, write_json
from memlib.study.claims import fill_markers
from memlib.study.digests import NOTEBOOKS, code_cells, tree_digest
from memlib.study.sections import PARAMS
from memlib.study.stages import STUDY, TIMES, WALL, made_here, reporting_errors, timed_stage

BOOK, EXECUTED, PAGES = Path("book"), Path("results/chapters"), Path("book/chapters")
HTML = BOOK / "_build/html"
STAMP = HTML / "sources.txt"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scipy", "scikit-learn", "pandas", "jupyter-book", "papermill", "dvc")  # fmt: skip
Needs = dict[str, set[str]]  # the stages that each stage needs


def assemble(name: str) -> Any:
    """The page of a chapter: cells of notebooks/NAME.ipynb, markers of claims filled, with the outputs of results/chapters.

    Raises ValueError where the code that was run is not the notebook's.
    """
    source, made = NOTEBOOKS / f"{name}.ipynb", EXECUTED / f"{name}.ipynb"
    page, executed = nbformat.read(source, as_version=4), nbformat.read(made, as_version=4)
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    injected = [cell for cell in ran if "injected-parameters" in cell.metadata.get("tags", [])]
    ran = [cell for cell in ran if cell not in injected]
    if tree_digest([cell.source for cell in ran], made) != tree_digest(code_cells(source), source):
        raise ValueError(f"{made} was not made by the code of {source} as it is now; run `dvc repro {name}`")
    cells = []
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = fill_markers(cell.source)
        elif cell.cell_type == "code":
            cell.outputs = ran.pop(0).outputs
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            cells += injected
    page.cells = cells
    return page


def origin(name: str, tables: Collection[str]) -> str:
    """The last line of a page: its stage, how long it took, and where the tables that it reads come from."""
    line = f"*Stage `{name}`, {read_json(TIMES / f'{name}.json')['seconds']:.0f} seconds on this machine."
    if tables:
        where = {
            True: "were made on this machine",
            False: "are those of the repository; `make study` makes them here",
            None: "were in part made on this machine; the others are those of the repository",
        }
        line += f" The tables that it reads {where[made_here(tables)]}."
    return f"{line}*"


def study(stages: Collection[str]) -> dict[str, Any] | None:
    """What a full run on this machine took, or None while the time of a stage is not known."""
    if not all((TIMES / f"{name}.json").exists() for name in stages):
        return None
    times = {name: read_json(TIMES / f"{name}.json") for name in sorted(stages)}
    return {
        "seconds": {name: time["seconds"] for name, time in times.items()},
        "total_seconds": round(sum(time["seconds"] for time in times.values()), 1),
        "wall_seconds": read_json(WALL)["seconds"] if WALL.exists() else None,
        "peak_memory_mib": max(time["peak_memory_mib"] for time in times.values()),
        "machine": machine(),
    }


def write_study(stages: Collection[str]) -> None:
    """Write metrics/study.json after a full run; the one that is there stays while the time of a stage is not known."""
    measured = study(stages)
    if measured:
        write_json(STUDY, measured)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, Python and package versions of this machine."""
    import psutil
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(),
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
    """The page on how this copy of the book was made, as MyST: from this machine's full run, else from metrics/study.json."""
    measured = study(stages.keys() - {"book"})
    here = measured is not None
    measured = measured or (read_json(STUDY) if STUDY.exists() else None)
    parts = [PREFACE]
    if measured is None:
        parts.append("The stages were not all run on this machine, and no full run of these parameters is on record.")
    else:
        where = "on this machine" if here else "where the results of the repository were made"
        wall = measured.get("wall_seconds")
        side_by_side = f", in {wall / 60:.1f} minutes with independent stages side by side" if wall else ""
        parts.append(
            f"## Time and memory\n\nThe stages took {measured['total_seconds'] / 60:.1f} minutes {where}{side_by_side}; "
            f"the largest process took {measured['peak_memory_mib'] / 1024:.1f} GiB. Stages of one kind stand in one row."
        )
        groups: dict[str, list[float]] = {}
        for name, seconds in measured["seconds"].items():
            groups.setdefault(_kind(name), []).append(seconds)
        rows = sorted(((kind, len(each), sum(each)) for kind, each in groups.items()), key=lambda row: -row[2])
        parts.append(_table(("stage", "runs", "seconds"), [(kind, n, f"{seconds:.1f}") for kind, n, seconds in rows]))
        about = dict(measured["machine"])
        parts.append("## Machine and versions\n\n" + _table(("what", "value"), [*(about.pop("packages") | about).items()]))
    parts.append(
        "## The stages\n\nEach stage runs again when its code, its parameters or what it reads has changed. An arrow leads from "
        "a stage to those that read its results; stages of one kind that wait for the same are one box with their number.\n\n"
        + draw(stages)
    )
    parameters = [*_flat("", yaml.safe_load(PARAMS.read_text()))]
    parts.append("## Parameters and seeds\n\n" + _table(("parameter", "value"), parameters))
    return "\n\n".join(parts) + "\n"


PREFACE = """# Reproducibility

Every number and figure of this book comes from the run that this page describes. Each stage reads its section of \
`params.yaml`, fixes its random seeds and writes its results whole or not at all. The same run twice on one machine gives the \
same tables, byte for byte. On another processor, or with another precision, the training differs in its last digits and then \
in its course, and so do the numbers; the intervals of this book cover the choice of pictures, not that."""


def draw(stages: Mapping[str, Collection[str]]) -> str:
    """The graph of the stages as SVG in a box that scrolls, from left to right; all stages need `code`, which is left out."""
    import networkx as nx

    graph = nx.DiGraph((need, name) for name, needed in stages.items() for need in needed if need != "code")
    depths = {name: depth for depth, names in enumerate(nx.topological_generations(graph)) for name in names}
    boxes: dict[tuple[int, str], int] = {}
    for name, depth in sorted(depths.items()):
        boxes[depth, _kind(name)] = boxes.get((depth, _kind(name)), 0) + 1
    links = nx.DiGraph((((depths[a], _kind(a)), (depths[b], _kind(b))) for a, b in graph.edges))
    links = nx.transitive_reduction(links)
    places: dict[tuple[int, str], tuple[float, float]] = {}
    for depth in range(max(depths.values()) + 1):
        column = [box for box in boxes if box[0] == depth]
        middle = {box: [places[need][1] for need in links.predecessors(box)] for box in column}
        column.sort(key=lambda box: sum(middle[box]) / max(len(middle[box]), 1))
        for row, box in enumerate(column):
            places[box] = (depth * COLUMN, (row + 0.5 - len(column) / 2) * ROW)
    top = min(y for _, y in places.values()) - ROW
    width, height = (max(depths.values()) + 1) * COLUMN, max(y for _, y in places.values()) + ROW - top
    lines = [
        '<div class="scrolling">',
        f'<svg class="stages" role="img" aria-label="Graph of the stages from the data at the left to the book at the right" '
        f'width="{width}" height="{height:.0f}" viewBox="0 {top:.0f} {width} {height:.0f}">',
    ]
    for (x, y), (to_x, to_y) in ((places[a], places[b]) for a, b in links.edges):
        start, bend = x + BOX, (to_x - x - BOX) / 2
        lines.append(f'<path d="M{start} {y} C{start + bend} {y} {to_x - bend} {to_y} {to_x} {to_y}"/>')
    for box, (x, y) in places.items():
        label = box[1] if boxes[box] == 1 else f"{box[1]} × {boxes[box]}"
        lines.append(f'<rect x="{x}" y="{y - 11}" width="{BOX}" height="22" rx="4"/><text x="{x + 6}" y="{y + 4}">{label}</text>')
    return "\n".join([*lines, "</svg>", "</div>"])


COLUMN, BOX, ROW = 170, 130, 30  # pixels of the drawn graph


def _kind(stage: str) -> str:
    """Name of a stage without the item of a foreach."""
    return stage.partition("@")[0]


def _flat(prefix: str, content: Any) -> Any:
    """Rows (dotted name, value) of nested parameters."""
    if isinstance(content, dict) and content:
        for name, value in content.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), value)
    else:
        yield prefix, content


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [[str(cell).replace("|", r"\|") for cell in line] for line in (head, ("---",) * len(head), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def build() -> None:
    """Write the pages, build the book from them with warnings as errors, and put it whole to book/_build/html."""
    from dvc.repo import Repo

    with Repo() as repo:
        graph = repo.index.graph
        stages = {stage.addressing: {needed.addressing for needed in graph.successors(stage)} for stage in graph}
        reads = {stage.addressing: [dep.def_path for dep in stage.deps] for stage in graph}
    sources = {path: path.read_bytes() for path in sorted(BOOK.rglob("*")) if path.is_file() and _is_source(path)}
    with atomic_write(PAGES) as folder:
        folder.mkdir()
        for source in sorted(NOTEBOOKS.glob("*.ipynb")):
            page = assemble(source.stem)
            sources[source] = nbformat.writes(page).encode()
            tables = [path for path in reads[source.stem] if path.startswith("tables/")]
            page.cells.append(nbformat.v4.new_markdown_cell(origin(source.stem, tables)))
            nbformat.write(page, folder / source.name)
        (folder / "reproducibility.md").write_text(reproducibility(stages))
    program = Path(sys.executable).with_name("jupyter-book")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "build", str(BOOK), "-W", "-n", "--keep-going", "-q", "--path-output", folder]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"the book does not build:\n{result.stdout}\n{result.stderr}")
        with atomic_write(HTML) as temporary:
            shutil.copytree(Path(folder) / "_build/html", temporary)
            stamp = [f"{hashlib.sha256(content).hexdigest()} {path}\n" for path, content in sorted(sources.items())]
            (temporary / STAMP.name).write_text("".join(stamp))


def _is_source(path: Path) -> bool:
    return not path.is_relative_to(BOOK / "_build") and not path.is_relative_to(PAGES)


def main() -> None:
    """Build the book, and after a full run on this machine write metrics/study.json."""
    with reporting_errors("book"):
        with timed_stage("book"):
            build()
        write_study()


if __name__ == "__main__":
    main()
