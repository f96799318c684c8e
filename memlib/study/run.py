"""The study in lanes: `python -m memlib.study.run` reproduces DVC's stages, those that do not wait for one another side by side.

A lane is a process that reproduces single stages on request, with one thread each. What DVC finds unchanged is not run
again, so a run that was killed goes on with the same command; `dvc repro` does the same work, one stage after the other.
"""

import argparse
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import joblib
import psutil
from dvc import lock as dvc_lock
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from rich.console import Console
from rich.live import Live
from rich.table import Table

from memlib.files import atomic_write, read_json, suggest, write_json
from memlib.study.stages import STUDY, WALL, stage_times

if TYPE_CHECKING:
    from dvc.stage import Stage

Graph = dict[str, set[str]]  # the stages that each stage needs
Result = TypeVar("Result")
Outcome = Literal["done", "unchanged", "failed"]
CODE = "code"  # the stage that always runs, before all others
BOOK = ("claims", "book")  # what a book needs besides the pages, which lie in PAGES
PAGES = "results/chapters/"
LOGS, LOCK = Path("results/logs"), Path("dvc.lock")
GPUS = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
MOST_LANES = 8  # each takes about a GiB of memory, and the longest chain of stages leaves no work for more
KEPT_MEMORY = {  # glibc keeps what is freed: without page faults a training step takes 7 % less, a forward pass 13 %
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
USUAL_SECONDS = 10.0  # of a stage that nothing is known of
PATIENCE = 20  # seconds
SHOWN_LINES = 15  # of the output of a stage that has failed


def read_graph(repo: Repo) -> Graph:
    """The stages of DVC's graph and those that each needs."""
    graph = repo.index.graph
    return {stage.addressing: {needed.addressing for needed in graph.successors(stage)} for stage in graph}


def with_needed(graph: Graph, names: Iterable[str]) -> Graph:
    """The part of a graph with these stages and all that they need; raises ValueError for a stage that is not there."""
    found: Graph = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in graph:
            raise ValueError(f"there is no stage {name!r}{suggest(name, graph)}")
        if name not in found:
            found[name] = graph[name]
            todo += graph[name]
    return found


def only(graph: Graph, names: Collection[str]) -> Graph:
    """The part of a graph with these stages, which wait for none but one another."""
    return {name: needed & set(names) for name, needed in graph.items() if name in names}


def book_stages(repo: Repo) -> set[str]:
    """The stages that make the book from the tables that are there: the pages, and what gathers them."""
    outs = [(stage.addressing, out.def_path) for stage in repo.index.stages for out in stage.outs]
    return {*BOOK, *(name for name, path in outs if path.startswith(PAGES))}


def outdated(repo: Repo, graph: Graph) -> set[str]:
    """The stages whose code, parameters, inputs or outputs have changed, and all that need one of them."""

    def changed() -> set[str]:
        with lock_repo(repo):
            return {stage.addressing for stage in repo.index.stages if stage.addressing in graph and stage.changed()}

    found = patiently(changed)
    while more := {name for name, needed in graph.items() if needed & found} - found:
        found |= more
    return found


def expected_seconds(graph: Graph) -> dict[str, float]:
    """Seconds that each stage took when it last ran, here or where the committed results were made."""
    known = read_json(STUDY)["seconds"] if STUDY.exists() else {}
    known |= {name: time["seconds"] for name, time in stage_times().items()}
    return {name: known.get(name, USUAL_SECONDS) for name in graph}


def longest_chains(graph: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds from the start of each stage to the end of the longest chain of stages that wait for it."""
    chains: dict[str, float] = {}
    while len(chains) < len(graph):
        for name in graph.keys() - chains.keys():
            waiting = [other for other, needed in graph.items() if name in needed]
            if chains.keys() >= set(waiting):
                chains[name] = seconds[name] + max((chains[other] for other in waiting), default=0.0)
    return chains


def count_lanes() -> int:
    """A lane a core; a single one, with all threads, where there is one core or a GPU."""
    return 1 if any(Path(device).exists() for device in GPUS) else min(joblib.cpu_count(), MOST_LANES)


class Display:
    """What runs, what is done, and how long it will take: a table on a terminal, a line a stage elsewhere."""

    def __init__(self, graph: Graph, lanes: int) -> None:
        self.graph, self.lanes = graph, lanes
        self.seconds = expected_seconds(graph)
        self.console = Console(soft_wrap=True, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.started: dict[str, float] = {}
        self.ended: set[str] = set()
        self.took = self.expected = 0.0  # seconds of the stages that have ended

    def start(self, name: str) -> None:
        """A stage has started."""
        self.started[name] = time.monotonic()

    def end(self, name: str, outcome: Outcome) -> None:
        """A stage has ended."""
        self.ended.add(name)
        if outcome != "unchanged":
            took = time.monotonic() - self.started[name]
            self.took, self.expected = self.took + took, self.expected + self.seconds[name]
            progress = f"{len(self.ended)} of {len(self.graph)} stages, about {duration(self.left())} left"
            self.console.print(f"{time.strftime('%H:%M:%S')}  {name} {outcome} in {duration(took)}  ({progress})")

    def left(self) -> float:
        """Seconds until all stages have run: the longest chain, or all work over the lanes, at the pace of those that ended."""
        now = time.monotonic()
        seconds = {
            name: max(self.seconds[name] - (now - self.started.get(name, now)), 0.0)
            for name in self.graph
            if name not in self.ended
        }
        chains = longest_chains(only(self.graph, seconds), seconds)
        pace = self.took / self.expected if self.expected else 1.0
        return pace * max([*chains.values(), sum(seconds.values()) / self.lanes])

    def refresh(self) -> None:
        """Show what runs now: since when, how long it took before, and the last line that it has written."""
        if not self.console.is_terminal:
            return
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(no_wrap=True)
        for name, started in self.started.items():
            if name not in self.ended:
                clock = f"{time.monotonic() - started:.0f} of about {self.seconds[name]:.0f} s"
                table.add_row(name, clock, "".join(log_end(name, 1)))
        table.add_row(f"{len(self.ended)} of {len(self.graph)} stages", f"about {duration(self.left())} left", "")
        self.live.update(table, refresh=True)


def duration(seconds: float) -> str:
    """A length of time in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def log_end(name: str, lines: int) -> list[str]:
    """The last lines that a stage has written."""
    path = LOGS / f"{name}.txt"
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-lines:]


def run_stages(graph: Graph, pool: ProcessPoolExecutor, lanes: int) -> Iterator[tuple[str, Outcome]]:
    """Reproduce the stages of a graph, the heads of the longest chains first, and yield each with how it ended.

    What needs a stage that has failed is left out, the others go on.
    """
    display = Display(graph, lanes)
    chains = longest_chains(graph, display.seconds)
    running: dict[Future[Outcome], str] = {}
    good: set[str] = set()
    with display.live:
        while True:
            ready = [name for name in graph.keys() - display.started.keys() if graph[name] <= good]
            for name in sorted(ready, key=lambda name: (-chains[name], name))[: lanes - len(running)]:
                display.start(name)
                running[pool.submit(reproduce, name)] = name
            if not running:
                return
            for future in wait(running, 1.0, FIRST_COMPLETED).done:
                name, outcome = running.pop(future), future.result()
                good |= {name} if outcome != "failed" else set()
                display.end(name, outcome)
                yield name, outcome
            display.refresh()


def patiently(attempt: Callable[[], Result]) -> Result:
    """What an attempt gives, made again while another DVC process holds its files: one that was killed is gone in seconds."""
    for _ in range(PATIENCE):
        try:
            return attempt()
        except dvc_lock.LockError:
            time.sleep(1)
    return attempt()


def enter_lane(parent: int, alone: bool) -> None:
    """Make this process a lane, which ends with the process that started it, and its stage with it."""
    os.environ.update(KEPT_MEMORY)
    if not alone:
        os.environ["OMP_NUM_THREADS"] = "1"
    dvc_lock.DEFAULT_TIMEOUT = 0.3  # DVC tries six times in it; what lanes hold the lock for is short
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C ends the stage
    signal.signal(signal.SIGTERM, lambda *_: end_lane())
    threading.Thread(target=watch, args=(parent,), daemon=True).start()


def watch(parent: int) -> NoReturn:
    """End the lane once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    end_lane()


def end_lane() -> NoReturn:
    """Kill what this lane has started, and end it."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def reproduce(name: str) -> Outcome:
    """In a lane: reproduce a stage as `dvc repro --single-item` does, with its output in results/logs."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.txt").open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())

    def attempt() -> Outcome:
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            (stage,) = repo.stage.collect(name)
            if not stage.reproduce():
                return "unchanged"
            record(stage)
            return "done"

    try:
        return patiently(attempt)
    except Exception as error:
        if hasattr(error, "__pretty_exc__"):  # of a file of DVC: shows the line
            error.__pretty_exc__()
        else:
            print(error if isinstance(error, DvcException) else traceback.format_exc(), file=sys.stderr, flush=True)
        return "failed"


def record(stage: "Stage") -> None:
    """Put what a stage has read and written into dvc.lock: in DVC's own form, but whole or not at all.

    DVC writes the file in place, where a kill leaves a part of it, and takes a second to format all stages for one.
    """
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    entry = dumps_yaml({"stages": to_lockfile(stage)}).removeprefix("stages:\n")
    text = LOCK.read_text() if LOCK.exists() else "schema: '2.0'\nstages:\n"
    earlier = re.search(rf"^{re.escape(entry.partition(chr(10))[0])}\n(?:(?:    .*)?\n)*", text, re.MULTILINE)
    start, end = earlier.span() if earlier else (len(text), len(text))
    with atomic_write(LOCK) as temporary:
        temporary.write_text(text[:start] + entry + text[end:])


def report(graph: Graph, outcomes: Mapping[str, Outcome]) -> str:
    """What has failed, with the end of its output, and what was left out for it."""
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    parts = [
        f"{name} failed; the end of {LOGS / name}.txt:\n" + "\n".join(log_end(name, SHOWN_LINES)) for name in failed
    ]
    left_out = sorted(graph.keys() - outcomes.keys())
    if left_out:
        parts.append(f"Not run, since they need {' or '.join(failed)}: {', '.join(left_out)}")
    return "\n\n".join([*parts, "The same command goes on from here"])


def run(targets: Collection[str], book_only: bool, lanes: int) -> None:
    """Reproduce the targets and what they need (all stages, if none is given), or with `book_only` the book from its tables.

    Raises ValueError for a target that is no stage and for bad parameters, RuntimeError when a stage has failed.
    """
    started = time.monotonic()
    pool = ProcessPoolExecutor(lanes, initializer=enter_lane, initargs=(os.getpid(), lanes == 1))
    if pool.submit(reproduce, CODE).result() == "failed":
        from memlib.study.parameters import check

        check()  # in words, where DVC only says that it cannot read params.yaml
        raise RuntimeError(report({}, {CODE: "failed"}))
    with Repo(_wait_for_lock=True) as repo:
        everything = read_graph(repo)
        graph = only(everything, book_stages(repo)) if book_only else with_needed(everything, targets or everything)
        graph = only(graph, outdated(repo, only(graph, graph.keys() - {CODE})))
    full = not targets and not book_only and not everything.keys() <= stage_times().keys()
    earlier = read_json(WALL)["seconds"] if full and WALL.exists() else 0.0
    outcomes = {}
    for name, outcome in run_stages(graph, pool, lanes):
        outcomes[name] = outcome
        if full:  # the seconds of runs until every stage has run once
            write_json(WALL, {"seconds": round(earlier + time.monotonic() - started, 1)})
    pool.shutdown()
    if "failed" in outcomes.values():
        raise RuntimeError(report(graph, outcomes))
    if full:
        from memlib.study.book import write_study

        write_study(everything)  # again, with the time that the book took


def main() -> None:
    """Command line: all stages, or some and what they need."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stages", nargs="*")
    parser.add_argument(
        "--book", action="store_true", help="only the pages and the book, from the tables that are there"
    )
    parser.add_argument("--lanes", type=int, help="stages side by side")
    arguments = parser.parse_args()
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # of the stages' `python`
    try:
        run(arguments.stages, arguments.book, arguments.lanes or count_lanes())
    except (ValueError, RuntimeError, DvcException) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here", flush=True)
        os._exit(130)  # without waiting for the stages: the lanes end them
    print(f"The book is at {Path('book/_build/html/index.html').resolve()}")


if __name__ == "__main__":
    main()
