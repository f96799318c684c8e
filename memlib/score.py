"""Items x detectors -> one table: scores are computed once, and all that is judged, drawn or said reads them.

A score table is a parquet file with a row an item and setting: `item`, `setting` (`key=value` pairs, sorted), `score` (float32,
larger for what is more likely memorised), `evaluations` (of the network, for this item) and `note` (why a score is missing).
Its metadata says of which model, detector, settings and items it is. Equal runs give equal bytes, whatever the number of items
in a batch, their order, or the number of processes: an item's randomness depends on its id and the seed, and every call of a
network has the same number of rows.
"""

import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState

from memlib.detectors.api import Detector, Items, as_list
from memlib.fields.unet import UNetField
from memlib.files import atomic_write
from memlib.progress import progress
from memlib.tables import KEY, SCHEMA, setting_name


def score(
    field: UNetField | None,
    items: Items,
    detector: Detector,
    settings: Sequence[Mapping[str, Any]],
    output: str | Path,
    model: str = "",
    batch: int = 256,
    replace: bool = False,
    notes: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Score items by a detector at some settings; write the table to `output` and return it.

    `batch` items are scored at a time, and kept in a folder beside the output, from which a run that was killed goes on.
    Processes started together (by accelerate) share the batches. `model` names the model's weights (see `weights_digest`).
    `notes`: items that could not be read, by their id, with the reason; their rows have no score.

    Raises ValueError, before any work, for settings that the detector does not know, items that lack what it needs, ids
    that are there twice, and an output that holds another table (unless `replace`).
    """
    settings = [dict(setting) for setting in settings] or [dict(setting) for setting in detector.settings]
    for setting in settings:
        detector.check(field, items, setting)
    ids = list(items.ids)
    doubled = pd.Index(ids)[pd.Index(ids).duplicated()]
    if len(doubled):
        raise ValueError(f"the item {doubled[0]!r} is there twice; every item needs an id of its own")
    output = Path(output)
    about = {
        "model": model,
        "detector": detector.name,
        "settings": settings,
        "seed": items.seed,
        "items": _digest(sorted(ids)),
    }
    check_output(output, about, replace)
    code = inspect.getsource(sys.modules[detector.score.__module__])
    parts = output.with_name(f"{output.stem}.{_digest([about, ids, batch, code])[:12]}.parts")
    state = PartialState()
    field = field if field is None else field.with_rows(field.rows, pad=True)
    starts = list(range(0, len(ids), batch))[state.process_index :: state.num_processes]
    todo = [start for start in starts if not (parts / f"{start}.parquet").exists()]
    what = f"{detector.name} of {len(ids)} items"
    for start in progress(todo, what, len(starts) - len(todo)) if state.is_main_process else todo:
        part = items.rows(start, start + batch)
        _write(parts / f"{start}.parquet", _table(field, part, detector, settings), {})
    state.wait_for_everyone()
    if state.is_main_process:
        found = [pd.read_parquet(parts / f"{start}.parquet") for start in range(0, len(ids), batch)]
        table = pd.concat([*found, _unread(notes or {}, found)], ignore_index=True)
        _write(output, table.sort_values(["setting", "item"], ignore_index=True), about)
        shutil.rmtree(parts)
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
            f"{output} holds scores with another {different[0]}; name another output, or replace it with --replace"
        )


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
    return pd.concat(rows, ignore_index=True)


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


def weights_digest(field: UNetField) -> str:
    """Digest of a network's weights, which names the model in a table."""
    digest = hashlib.sha256()
    for name, value in sorted(field.unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
