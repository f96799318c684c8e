"""The study in lanes: `python -m memlib.study.run` reproduces DVC's stages, those that do not wait for one another side by side.

What DVC finds unchanged is not run again, so a run that was killed goes on with the same command; `dvc repro` does the same
work, one stage after the other.
"""

import argparse
import contextlib
import logging
import multiprocessing.connection
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import joblib
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.stage.cache import RunCacheNotFoundError
from rich.console import Console
from rich.live import Live
from rich.table import Table

from memlib.files import atomic_write, read_json, suggest, write_json
from memlib.study import lane
from memlib.study.criteria import REGISTRY, check_before_run
from memlib.study.stages import STUDY, WALL, forget_times, stage_times

if TYPE_CHECKING:
    from dvc.stage import Stage

Graph = dict[str, set[str]]  # the stages that each stage needs
Outcome = Literal["done", "unchanged", "failed"]
CODE = "code"  # the stage that runs before all others
BOOK = ("claims", "book")  # what a book needs besides the pages, which lie in PAGES
PAGES = "results/chapters/"
LOGS, LOCK = Path("results/logs"), Path("dvc.lock")
GPUS = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
MOST_LANES = 8  # each takes about a GiB of memory, and the longest chain of stages leaves no work for more
USUAL_SECONDS = 10.0  # of a stage that nothing is known of
FIRM_SHARE = 0.05  # of all work, after which the pace of this run weighs as much as that of the one before
FEW = 8  # stages for which importing all that programs import does not pay
FAILURES = (DvcException, OSError, RuntimeError)  # of one stage, which stop only those that need it
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
    found = {stage.addressing for stage in repo.index.stages if stage.addressing in graph and stage.changed()}
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
    """A lane a core; a single one where there is a GPU."""
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
        """Seconds until all stages have run: the longest chain, or all work over the lanes, at the pace of those that ended.

        As if some had ended at the pace of before: the first ones are short, and take longer for reasons of their own.
        """
        now = time.monotonic()
        seconds = {
            name: max(self.seconds[name] - (now - self.started.get(name, now)), 0.0)
            for name in self.graph
            if name not in self.ended
        }
        chains = longest_chains(only(self.graph, seconds), seconds)
        known = FIRM_SHARE * sum(self.seconds.values())
        pace = (self.took + known) / (self.expected + known)
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


class Lanes:
    """Stages that run side by side, each begun and ended in DVC's books as `dvc repro --single-item` does it."""

    def __init__(self, repo: Repo) -> None:
        self.stages = {stage.addressing: stage for stage in repo.index.stages}
        self.running: dict[str, BaseProcess] = {}

    def reproduce_here(self, name: str) -> None:
        """Reproduce a stage as DVC does, in no lane; raises RuntimeError when it fails, having said why on stderr."""
        try:
            done = self.stages[name].reproduce()
        except DvcException as error:
            raise RuntimeError(f"stage {name} failed") from error
        if done:
            record(done)

    def start(self, name: str) -> Outcome | None:
        """Start a stage by the code and parameters that are there now; gives how it has ended where nothing is to run."""
        stage = self.stages[name]
        try:
            self.reproduce_here(CODE)
            if not stage.changed():
                return "unchanged"
            stage.remove_outs()
            with contextlib.suppress(RunCacheNotFoundError):
                stage.repo.stage_cache.restore(stage)
                return self._keep(name)
            stage.save_deps()
        except FAILURES as error:
            return self._failed(name, error)
        commands = [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd
        self.running[name] = lane.start(name, commands, LOGS / f"{name}.txt")
        return None

    def wait(self, seconds: float) -> Iterator[tuple[str, Outcome]]:
        """The stages that end within some seconds, and how."""
        sentinels = {process.sentinel: name for name, process in self.running.items()}
        for sentinel in multiprocessing.connection.wait(list(sentinels), seconds):
            name = sentinels[sentinel]
            process = self.running.pop(name)
            process.join()
            yield name, "failed" if process.exitcode else self._keep(name)

    def _keep(self, name: str) -> Outcome:
        stage = self.stages[name]
        try:
            stage.save_outs()  # what it depends on is that of its start: code may have changed since
            stage.md5 = stage.compute_md5()
            stage.repo.stage_cache.save(stage)
            stage.commit()
            record(stage)
        except FAILURES as error:  # most likely an output that the stage has not written
            return self._failed(name, error)
        return "done"

    def _failed(self, name: str, error: Exception) -> Outcome:
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / f"{name}.txt").open("a") as log:
            log.write(f"{error}\n")
        return "failed"


def run_stages(graph: Graph, lanes: Lanes, count: int) -> Iterator[tuple[str, Outcome]]:
    """Reproduce the stages of a graph, the heads of the longest chains first, and yield each with how it ended.

    What needs a stage that has failed is left out, the others go on.
    """
    display = Display(graph, count)
    chains = longest_chains(graph, display.seconds)
    good: set[str] = set()
    with display.live:
        while True:
            ready = [name for name in graph.keys() - display.started.keys() if graph[name] <= good]
            ended = []
            for name in sorted(ready, key=lambda name: (-chains[name], name))[: count - len(lanes.running)]:
                display.start(name)
                if outcome := lanes.start(name):
                    ended.append((name, outcome))
            if not ended and not lanes.running:
                return
            for name, outcome in ended or lanes.wait(1.0):
                good |= {name} if outcome != "failed" else set()
                display.end(name, outcome)
                yield name, outcome
            display.refresh()


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


def run(targets: Collection[str], book_only: bool, count: int) -> None:
    """Reproduce the targets and what they need (all stages, if none is given), or with `book_only` the book from its tables.

    Raises ValueError for a target that is no stage and for bad parameters, RuntimeError when a stage has failed.
    """
    started = time.monotonic()
    with Repo() as repo, lock_repo(repo):
        everything = read_graph(repo)
        graph = only(everything, book_stages(repo)) if book_only else with_needed(everything, targets or everything)
        lanes = Lanes(repo)
        lanes.reproduce_here(CODE)
        graph = only(graph, outdated(repo, only(graph, graph.keys() - {CODE})))
        lane.prepare(imports=len(graph) > FEW)
        if graph.keys() == everything.keys() - {CODE}:
            forget_times()  # of the run before
        full = not targets and not book_only and not everything.keys() <= stage_times().keys()
        earlier = read_json(WALL)["seconds"] if full and WALL.exists() else 0.0
        outcomes = {}
        for name, outcome in run_stages(graph, lanes, count):
            outcomes[name] = outcome
            if full:  # the seconds of runs until every stage has run once
                write_json(WALL, {"seconds": round(earlier + time.monotonic() - started, 1)})
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
    if arguments.book and arguments.stages:
        parser.error("--book makes all pages; name no stages with it")
    if arguments.lanes is not None and arguments.lanes < 1:
        parser.error(f"--lanes is {arguments.lanes}; it must be at least 1")
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]]
    )  # of the stages' `python`
    logging.getLogger("dvc").setLevel(logging.WARNING)  # it tells what it runs
    try:
        if REGISTRY.exists() and not arguments.stages:
            check_before_run()
        run(arguments.stages, arguments.book, arguments.lanes or count_lanes())
    except (ValueError, RuntimeError, DvcException) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here", flush=True)
        os._exit(130)  # without waiting for the stages: the lanes end them
    if not arguments.stages:
        print(f"The book is at {Path('book/_build/html/index.html').resolve()}")


if __name__ == "__main__":
    main()
