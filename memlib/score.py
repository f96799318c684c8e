"""Items x detectors -> one table: scores are computed once, and all that is judged, drawn or said reads them.

A score table is a parquet file with a row an item and setting: `item`, `setting` (`key=value` pairs, sorted), `score` (float32,
larger for what is more likely memorised), `evaluations` (of the network, for this item) and `note` (why a score is missing).
Its metadata says of which model, detector, settings and items it is. Equal runs give equal bytes, whatever the number of items
in a batch, their order, or the number of processes: an item's randomness depends on its id and the seed, every call of a
network has the same number of rows, and on a processor it has one thread (more of them round by how they share the rows: start
more processes instead). Workers of a Ray cluster are given the batches of a single process (see `memlib.cluster`).
"""

import dataclasses
import glob
import hashlib
import inspect
import json
import marshal
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from memlib.datasets.items import PictureFiles
from memlib.detectors.api import Detector, Items, Scores, as_list
from memlib.fields.digest import weights_digest
from memlib.fields.memory import counting
from memlib.fields.network import NetworkField
from memlib.files import atomic_write
from memlib.processes import processes
from memlib.progress import progress
from memlib.tables import KEY, SCHEMA, setting_name

DIFFERENT = {
    "model": "of another model",
    "detector": "by another detector",
    "settings": "at other settings",
    "seed": "with another seed",
    "items": "of other items",
}
READ = 64  # pictures that are read at a time
FORGOTTEN_SECONDS = 24 * 3600  # after which nobody goes on with the batches that a killed run has left


@dataclass(frozen=True)
class Table:
    """A table to be made: of which items, by which detector, at which settings (the usual ones, if none are named), and where.

    notes: items that could not be read, by their id, with the reason; their rows have no score.
    """

    items: Items
    detector: Detector
    settings: Sequence[Mapping[str, Any]]
    output: Path
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Job(NamedTuple):
    """A batch of items that a detector is to score at some settings, and where the file of its scores is to lie."""

    items: Items
    detector: Detector
    settings: Sequence[Mapping[str, Any]]
    path: Path


Made = tuple[Path, bytes]  # the file of a job's scores
# Who does the jobs of batches, sharing what is computed or not, in any order
Workers = Callable[[Sequence[Sequence[Job]], bool], Iterator[Sequence[Made]]]


class Cost(NamedTuple):
    """What a table has cost: network evaluations that were made for it, over all items, and seconds.

    What tables of a batch share is made for the first of them.
    """

    evaluations: int
    seconds: float


def score(
    field: NetworkField | None,
    items: Items,
    detector: Detector,
    settings: Sequence[Mapping[str, Any]],
    output: str | Path,
    model: str = "",
    batch: int | None = None,
    replace: bool = False,
) -> pd.DataFrame:
    """Score items by a detector at some settings; write the table to `output` and return it (see `write_tables`)."""
    write_tables(field, [Table(items, detector, settings, Path(output))], model, batch, replace)
    return pd.read_parquet(output)


def write_tables(
    field: NetworkField | None,
    tables: Sequence[Table],
    model: str = "",
    batch: int | None = None,
    replace: bool = False,
    share: bool = True,
    tell: bool = True,
    workers: Workers | None = None,
) -> dict[Path, Cost]:
    """Write tables of scores of one model; give what each that was written has cost, in the first of several processes.

    `batch` items (if not given: pictures as a call of the network takes, prompts four times as many, which share what is
    computed without them) are scored at a time, by all detectors in turn: with `share`, what one has asked the network is not
    computed again for another (see `memlib.fields.memory`). Batches are kept in a folder beside the output until all tables
    are there, from which a run that was killed goes on. Processes started together (by accelerate or torchrun) share the
    batches; `workers` do all of them in place of this process. `model` names the weights (see `weights_digest`). A table that
    is there, of the same model, detector, settings and items, stays as it is, unless `replace`. With `tell` it is told how far
    each is.

    Raises ValueError, before any work, for settings that a detector does not know, items that lack what it needs, ids that
    are there twice, no items at all, and an output that holds another table (unless `replace`); and for scores that are not
    one finite number an item.
    """
    ordered: dict[int, Items] = {}
    planned = [_planned(field, table, model, ordered) for table in tables]
    outputs = [table.output for table in tables]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"{max(outputs, key=outputs.count)} is named for two tables; each needs a file of its own")
    todo = [(table, about) for table, about in planned if not _is_there(table.output, about, replace)]
    rows = None if field is None else field.rows
    state, costs = processes(), {}
    loops: dict[tuple[int, tuple[str, ...]], list[tuple[Table, dict[str, Any], Path]]] = {}
    for table, about in todo:
        size = batch or _usual_batch(table, rows)
        code = [package_digest(), _source(table.detector)]
        parts = table.output.with_name(f"{table.output.stem}.{_digest([about, size, rows, code])[:12]}.parts")
        loops.setdefault((size, tuple(table.items.ids)), []).append((table, about, parts))
    if workers is not None:
        asked = [_batches([(table, parts) for table, _, parts in loop], size) for (size, _), loop in loops.items()]
        _collect([batch for batches in asked for batch in batches], workers, share)
    for (size, _), loop in loops.items():
        _score_batches(field, [(table, parts) for table, _, parts in loop], size, share, tell and workers is None)
        state.wait_for_everyone()
        for table, about, parts in loop if state.is_main_process else ():
            costs[table.output] = _write_whole(table, about, parts, size)
        state.wait_for_everyone()
    for loop in loops.values() if state.is_main_process else ():
        for table, _, parts in loop:
            _remove_parts(table.output, parts)
    return costs


def _write_whole(table: Table, about: Mapping[str, Any], parts: Path, size: int) -> Cost:
    """Write a table of its batches; give what they have cost."""
    paths = [parts / f"{start}.parquet" for start in range(0, len(table.items.ids), size)]
    found = [pd.read_parquet(path) for path in paths]
    whole = pd.concat([*found, _unread(table.notes, found)], ignore_index=True)
    _write(table.output, _as_parquet(whole.sort_values(["setting", "item"], ignore_index=True), about))
    return Cost(*map(sum, zip(*(_metadata(path)["cost"] for path in paths), strict=True)))


def _usual_batch(table: Table, rows: int | None) -> int:
    """Items in a batch. A backward pass keeps a graph of all pictures of a batch; prompts share the unconditional pass."""
    if rows is None:
        return len(table.items.ids)
    return rows if "picture" in table.detector.needs else 4 * rows


def _planned(
    field: NetworkField | None, table: Table, model: str, ordered: dict[int, Items]
) -> tuple[Table, dict[str, Any]]:
    """The table with its items sorted and all settings named, and what its metadata will say.

    ordered: sorted items by the identity of those given, so that tables of the same items share one copy.
    """
    settings = [dict(setting) for setting in table.settings or table.detector.settings]
    for setting in settings:
        table.detector.check(field, table.items, setting)
    if id(table.items) not in ordered:
        ordered[id(table.items)] = _sorted(table.items)
    items = ordered[id(table.items)]
    needs = {*table.detector.needs, *("prompt" for setting in settings if setting.get("prompt"))}
    about = {
        "model": model,
        "detector": table.detector.name,
        "settings": settings,
        "seed": items.seed,
        "items": _items_digest(items, needs),
    }
    return dataclasses.replace(table, items=items, settings=settings), about


def _sorted(items: Items) -> Items:
    """The items by their ids, read only where they are not in order; raises ValueError for none, and for two of an id."""
    ids = sorted(items.ids)
    doubled = next((first for first, second in pairwise(ids) if first == second), None)
    if doubled is not None:
        raise ValueError(f"the item {doubled!r} is there twice; every item needs an id of its own")
    if not ids:
        raise ValueError("there are no items to be scored")
    if ids == list(items.ids):
        return items
    return items.rows(sorted(range(len(ids)), key=items.ids.__getitem__))


def _is_there(output: Path, about: Mapping[str, Any], replace: bool) -> bool:
    """Whether the table is there and stays; raises ValueError where there is another table, or no place for one."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; the tables need a folder, so name another output")
    if replace or not output.exists():
        return False
    try:
        there = _metadata(output)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{output} is no table of scores; name another output, or replace it with --replace"
        ) from error
    different = [name for name in about if there.get(name) != json.loads(json.dumps(about[name]))]
    if different:
        raise ValueError(
            f"{output} holds scores {DIFFERENT[different[0]]}; name another output, or replace it with --replace"
        )
    return True


def _batches(tables: Sequence[tuple[Table, Path]], size: int) -> list[list[Job]]:
    """The batches of the tables' items, each with the jobs whose scores do not yet lie in the table's folder.

    tables: of the same ids, each with its folder.
    """
    found = []
    for start in range(0, len(tables[0][0].items.ids), size):
        parts = {id(table.items): table.items.part(start, start + size) for table, _ in tables}
        jobs = [
            Job(parts[id(table.items)], table.detector, table.settings, folder / f"{start}.parquet")
            for table, folder in tables
        ]
        found.append([job for job in jobs if not job.path.exists()])
    return found


def _score_batches(
    field: NetworkField | None, tables: Sequence[tuple[Table, Path]], size: int, share: bool, tell: bool
) -> None:
    """Score this process's share of the batches of the tables' items, but what is there, and keep each in its folder."""
    state = processes()
    own = _batches(tables, size)[state.process_index :: state.num_processes]
    todo = [jobs for jobs in own if jobs]
    count = len(tables[0][0].items.ids)
    what = f"{tables[0][0].detector.name if len(tables) == 1 else f'{len(tables)} tables'} of {count} items"
    for jobs in progress(todo, what, len(own) - len(todo)) if tell and state.is_main_process else todo:
        for path, content in score_jobs(field, jobs, share):
            _write(path, content)


def _collect(batches: Sequence[Sequence[Job]], workers: Workers, share: bool) -> None:
    """Have workers do the jobs of batches, and keep the scores as they come."""
    todo = [jobs for jobs in batches if jobs]
    told = progress(todo, f"{len(batches)} batches", len(batches) - len(todo))
    for _, made in zip(told, workers(todo, share), strict=True):
        for path, content in made:
            _write(path, content)


def score_jobs(field: NetworkField | None, jobs: Sequence[Job], share: bool) -> Iterator[Made]:
    """The files of the scores of a batch, one job after the other; its pictures are read here."""
    given = [each for job in jobs for each in (field, job.items.reference) if each is not None]
    parts = {id(job.items): job.items for job in jobs}
    read = {key: items.rows(range(len(items.ids))) for key, items in parts.items()}
    with one_thread(), counting(*{each.network for each in given}) as count:
        own = {id(each): _of_batch(each, given[0].rows, share) for each in given}
        for job in jobs:
            items = read[id(job.items)]
            items = dataclasses.replace(items, reference=own.get(id(items.reference)))
            made, begun = count.made, time.perf_counter()
            scores = _scores(own.get(id(field)), items, job.detector, job.settings)
            cost = Cost(count.made - made, round(time.perf_counter() - begun, 3))
            yield job.path, _as_parquet(scores, {"cost": cost})


def _of_batch(field: NetworkField, rows: int, share: bool) -> NetworkField:
    """A field whose every call has so many rows, and which remembers what it has computed if that is shared."""
    filled = field.with_rows(rows, pad=True)
    return filled.remembering() if share else filled


def _remove_parts(output: Path, parts: Path) -> None:
    """Remove the batches that a table was made of, and forgotten ones of its output; with younger ones a run may go on."""
    shutil.rmtree(parts)
    for left in output.parent.glob(f"{glob.escape(output.stem)}.{'[0-9a-f]' * 12}.parts"):
        if time.time() - left.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(left)


@cache
def package_digest() -> str:
    """Digest of this package's code: batches scored by other code are not gone on with."""
    package = Path(__file__).parent
    return _digest([path.read_text() for path in sorted(package.rglob("*.py"))])


def _source(detector: Detector) -> str:
    """The code of a detector, which may be defined outside of this package."""
    function = inspect.unwrap(getattr(detector.score, "func", detector.score))
    for place in (sys.modules[function.__module__], function):
        with suppress(OSError, TypeError):
            return inspect.getsource(place)
    return marshal.dumps(function.__code__).hex()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the processor compute with a single thread for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scores(
    field: NetworkField | None, items: Items, detector: Detector, settings: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    rows = []
    for setting in settings:
        for found in as_list(detector.score(field, items, **setting)):
            if not (isinstance(found, Scores) and isinstance(found.value, Tensor)):
                what = (
                    f"Scores of a {type(found.value).__name__}" if isinstance(found, Scores) else type(found).__name__
                )
                raise ValueError(
                    f"the detector {detector.name} gave {what} for {len(items.ids)} items, the first of which is "
                    f"{items.ids[0]!r}; it must give Scores(value, evaluations), value a tensor of one number an item, or a list"
                )
            value = found.value.detach().float().cpu()
            if value.shape != (len(items.ids),):
                raise ValueError(
                    f"the detector {detector.name} gave scores of the shape {list(value.shape)} for {len(items.ids)} items, the "
                    f"first of which is {items.ids[0]!r}; it must give one an item"
                )
            bad = (~value.isfinite()).nonzero()
            if len(bad):
                raise ValueError(
                    f"the detector {detector.name} gave {float(value[bad[0]])} for the item {items.ids[int(bad[0])]!r} at "
                    f"{setting_name(setting | found.reading)}; a score must be finite"
                )
            rows.append(
                pd.DataFrame(
                    {
                        "item": list(items.ids),
                        "setting": setting_name(setting | found.reading),
                        "score": value.numpy(),
                        "evaluations": found.evaluations,
                        "note": "",
                    }
                )
            )
    table = pd.concat(rows, ignore_index=True)
    doubled = table.loc[table.duplicated(["item", "setting"]), "setting"]
    if len(doubled):
        raise ValueError(
            f"two settings of the detector {detector.name} give the same scores, {doubled.iloc[0]!r}; name one"
        )
    return table


def _unread(notes: Mapping[str, str], scored: list[pd.DataFrame]) -> pd.DataFrame:
    settings = scored[0]["setting"].unique() if scored else [""]
    rows = [(name, setting, float("nan"), 0, note) for name, note in notes.items() for setting in settings]
    return pd.DataFrame(rows, columns=SCHEMA.names)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _as_parquet(table: pd.DataFrame, about: Mapping[str, Any]) -> bytes:
    """The file of a table; equal tables give equal bytes."""
    metadata = {KEY: json.dumps(about, sort_keys=True).encode()}
    arrow = pa.Table.from_pandas(table, SCHEMA, preserve_index=False).replace_schema_metadata(metadata)
    file = BytesIO()
    pq.write_table(arrow, file, compression="zstd")
    return file.getvalue()


def _metadata(path: Path) -> dict[str, Any]:
    return json.loads((pq.read_schema(path).metadata or {}).get(KEY, b"{}"))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _items_digest(items: Items, needs: set[str]) -> str:
    """Digest of the items, sorted, with what of them and beside them is needed."""
    given = {
        "picture": items.pictures,
        "prompt": items.prompts,
        "samples": items.samples,
        "training": items.training,
        "captions": items.captions,
        "reference": items.reference,
    }
    contents = [_content(given[need]) for need in sorted(needs & given.keys())]
    return _digest([list(items.ids), contents])


def _content(value: Any) -> Any:
    if isinstance(value, Tensor | PictureFiles):
        digest = hashlib.sha256()
        for start in range(0, value.shape[0], READ):
            part = value[start : start + READ]
            rows = part if isinstance(part, Tensor) else part[range(part.shape[0])]
            digest.update(rows.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
    return weights_digest(value) if isinstance(value, NetworkField) else list(value)
