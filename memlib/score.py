"""Items x detectors -> one table: scores are computed once, and all that is judged, drawn or said reads them.

A score table is a parquet file with a row an item and setting: `item`, `setting` (`key=value` pairs, sorted), `score` (float32,
larger for what is more likely memorised), `evaluations` (of the network, for this item) and `note` (why a score is missing).
Its metadata says of which model, detector, settings and items it is. Equal runs give equal bytes, whatever the number of items
in a batch, their order, or the number of processes: an item's randomness depends on its id and the seed, every call of a
network has the same number of rows, and on a processor it has one thread (more of them round by how they share the rows: start
more processes instead).
"""

import glob
import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from memlib.detectors.api import Detector, Items, as_list
from memlib.fields.digest import weights_digest
from memlib.fields.unet import UNetField
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


def score(
    field: UNetField | None,
    items: Items,
    detector: Detector,
    settings: Sequence[Mapping[str, Any]],
    output: str | Path,
    model: str = "",
    batch: int | None = None,
    replace: bool = False,
    notes: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Score items by a detector at some settings; write the table to `output` and return it.

    `batch` items (as many as a call of the network takes, if not given) are scored at a time, and kept in a folder beside the
    output, from which a run that was killed goes on. Processes started together (by accelerate or torchrun) share the batches.
    `model` names the weights (see `weights_digest`). `notes`: items that could not be read, by their id, with the reason; their
    rows have no score.

    Raises ValueError, before any work, for settings that the detector does not know, items that lack what it needs, ids
    that are there twice, no items at all, and an output that holds another table (unless `replace`); and for scores that are
    not one finite number an item.
    """
    settings = [dict(setting) for setting in settings] or [dict(setting) for setting in detector.settings]
    for setting in settings:
        detector.check(field, items, setting)
    ids = sorted(items.ids)
    doubled = next((first for first, second in pairwise(ids) if first == second), None)
    if doubled is not None:
        raise ValueError(f"the item {doubled!r} is there twice; every item needs an id of its own")
    if not ids:
        raise ValueError("there are no items to be scored")
    items = items.rows(sorted(range(len(ids)), key=items.ids.__getitem__))
    output = Path(output)
    about = {
        "model": model,
        "detector": detector.name,
        "settings": settings,
        "seed": items.seed,
        "items": _items_digest(items, {*detector.needs, *("prompt" for setting in settings if setting.get("prompt"))}),
    }
    check_output(output, about, replace)
    code = inspect.getsource(sys.modules[getattr(detector.score, "func", detector.score).__module__])
    rows = None if field is None else field.rows
    batch = batch or rows or len(ids)
    parts = output.with_name(f"{output.stem}.{_digest([about, batch, rows, code])[:12]}.parts")
    state = processes()
    field = field if field is None else field.with_rows(rows, pad=True)
    starts = list(range(0, len(ids), batch))[state.process_index :: state.num_processes]
    todo = [start for start in starts if not (parts / f"{start}.parquet").exists()]
    what = f"{detector.name} of {len(ids)} items"
    for start in progress(todo, what, len(starts) - len(todo)) if state.is_main_process else todo:
        with one_thread():
            table = _table(field, items.rows(range(len(ids))[start : start + batch]), detector, settings)
        _write(parts / f"{start}.parquet", table, {})
    state.wait_for_everyone()
    if state.is_main_process:
        found = [pd.read_parquet(parts / f"{start}.parquet") for start in range(0, len(ids), batch)]
        table = pd.concat([*found, _unread(notes or {}, found)], ignore_index=True)
        _write(output, table.sort_values(["setting", "item"], ignore_index=True), about)
        for left in output.parent.glob(f"{glob.escape(output.stem)}.{'[0-9a-f]' * 12}.parts"):
            shutil.rmtree(left)
    state.wait_for_everyone()
    return pd.read_parquet(output)


def check_output(output: Path, about: Mapping[str, Any], replace: bool) -> None:
    """Raise ValueError where there is a table of another model, detector, setting or set of items at the output."""
    if not output.exists() or replace:
        return
    metadata = pq.read_schema(output).metadata or {}
    there = json.loads(metadata.get(KEY, b"{}"))
    different = [name for name in about if there.get(name) != json.loads(json.dumps(about[name]))]
    if different:
        raise ValueError(
            f"{output} holds scores {DIFFERENT[different[0]]}; name another output, or replace it with --replace"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the processor compute with a single thread for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _table(field: UNetField | None, items: Items, detector: Detector, settings: list[dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for setting in settings:
        for found in as_list(detector.score(field, items, **setting)):
            value = found.value.detach().float().cpu()
            if value.shape != (len(items.ids),):
                raise ValueError(
                    f"the detector {detector.name} gave scores of the shape {list(value.shape)} for {len(items.ids)} items; "
                    "it must give one an item"
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


def _write(path: Path, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    metadata = {KEY: json.dumps(about, sort_keys=True).encode()}
    arrow = pa.Table.from_pandas(table, SCHEMA, preserve_index=False).replace_schema_metadata(metadata)
    with atomic_write(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _items_digest(items: Items, needs: set[str]) -> str:
    """Digest of the items, sorted, with what of them and beside them is needed."""
    given = {
        "picture": items.pictures,
        "prompt": items.prompts,
        "samples": items.samples,
        "training": items.training,
        "reference": items.reference,
    }
    contents = [_content(given[need]) for need in sorted(needs & given.keys())]
    return _digest([list(items.ids), contents])


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).hexdigest()
    return weights_digest(value) if isinstance(value, UNetField) else list(value)
