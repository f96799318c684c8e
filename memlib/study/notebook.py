"""A notebook as a stage: run by papermill with its section of params.yaml, stored so that equal runs give equal bytes."""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import yaml

from memlib.files import atomic_write, suggest
from memlib.study.digests import NOTEBOOKS
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

EXPERIMENTS = "experiments"  # notebooks whose results are tables, not pages


def run_notebook(name: str, settings: dict[str, Any] | None = None) -> None:
    """Run notebooks/NAME.ipynb with its section of params.yaml, over which `settings` are laid.

    The executed notebook goes to results/chapters, that of an experiment, under the name of its stage, to
    results/experiments. When a cell fails, the notebook stays, as far as it came, in results/failed; ValueError is
    raised with memlib's sentence where an input was refused, RuntimeError otherwise.
    """
    import papermill

    source = NOTEBOOKS / f"{name}.ipynb"
    if not source.exists():
        known = [str(path.relative_to(NOTEBOOKS).with_suffix("")) for path in NOTEBOOKS.rglob("*.ipynb")]
        raise ValueError(f"there is no notebook {name!r}{suggest(name, sorted(known))}")
    stage = os.environ.get("DVC_STAGE", source.stem)
    parameters = _parameters(source, settings or {})
    running = Path("results/failed") / f"{stage}.ipynb"
    running.parent.mkdir(parents=True, exist_ok=True)
    try:
        with forked_kernel() as kernel:
            papermill.execute_notebook(
                source,
                running,
                parameters,
                km=kernel,
                kernel_name="python3",
                progress_bar=False,
                stderr_file=sys.stderr,
                request_save_on_cell_execute=False,
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == "ValueError":
            raise ValueError(f"{error.evalue} ({running} shows where)") from error
        raise RuntimeError(f"{error}\na cell of {source} failed ({running} shows where)") from error
    executed = normalise(nbformat.read(running, as_version=4))
    folder = Path("results", EXPERIMENTS if source.parent.name == EXPERIMENTS else "chapters")
    with atomic_write(folder / running.name) as temporary:
        nbformat.write(executed, temporary)
    running.unlink()


@contextmanager
def forked_kernel() -> "Iterator[AsyncKernelManager]":
    """A Jupyter kernel in a fork of this process, so that it need not import again what this one has imported."""
    from jupyter_client.manager import AsyncKernelManager

    class Forked(AsyncKernelManager):
        has_kernel = True

        async def _async_is_alive(self) -> bool:
            return process.is_alive()

        is_alive = _async_is_alive

    # Sockets of the file system, so that no port is opened, in a folder of their own, since kernels run side by side.
    with tempfile.TemporaryDirectory() as folder:
        manager = Forked(transport="ipc", ip=f"{folder}/kernel", connection_file=f"{folder}/connection.json")
        manager.write_connection_file()
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        process = context.Process(target=_run_kernel, args=(manager.connection_file,), daemon=True)
        process.start()
        try:
            yield manager
        finally:
            process.terminate()
            process.join()


def _run_kernel(connection_file: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # the kernel ends with its parent
    sys.argv = [sys.argv[0]]
    IPKernelApp.launch_instance(["-f", connection_file])


def _parameters(source: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """A notebook's section of params.yaml with `settings` laid over it; one without a cell tagged `parameters` has none."""
    cells = nbformat.read(source, as_version=4).cells
    section = read_section(source.stem) if any(tagged(cell, "parameters") for cell in cells) else {}
    for name in settings:
        if name not in section:
            raise ValueError(f"{source} has no parameter {name!r}{suggest(name, section)}")
    return section | settings


def tagged(cell: Any, tag: str) -> bool:
    """Whether a cell of a notebook has a tag."""
    return tag in cell.metadata.get("tags", [])


def normalise(notebook: Any) -> Any:
    """Drop from an executed notebook what differs between equal runs: times, random ids, progress on stderr, split streams."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if outputs and output.output_type == "stream" == outputs[-1].output_type:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs
    return notebook


def main() -> None:
    """Command line: run a notebook."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", help="of a chapter, or experiments/NAME")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="laid over the section")
    arguments = parser.parse_args()
    with reporting_errors(arguments.name), timed_stage(Path(arguments.name).name):
        pairs = [setting.partition("=") for setting in arguments.set]
        run_notebook(arguments.name, {key: yaml.safe_load(value) for key, _, value in pairs})


if __name__ == "__main__":
    main()
