"""Stage `scores`: tables of one model and one kind of items, named in params.yaml: `python -m memlib.study.score KEY`."""

import math
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memlib.datasets.items import load_items
from memlib.detectors import find
from memlib.fields.digest import weights_digest
from memlib.fields.load import load_field
from memlib.files import write_json
from memlib.processes import processes
from memlib.score import Table, write_tables
from memlib.study.sections import expanded, read_section
from memlib.study.stages import reporting_errors, timed_stage

MADE = "evaluations.json"  # beside the tables: the network evaluations that were made for each, over all items
COSTS = Path("results/costs")  # KEY.json: the same with seconds, which differ between machines


def score_tables(key: str, model: str | None, items: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
    """Write tables/scores/KEY/NAME.parquet for every table, from an entry of the section `scores`.

    model: a folder, or None where no detector asks it. items: arguments of `memlib.datasets.items.load_items`, of which
    `source` is the prompts or the pictures, by what kind of file it is, and `reference` the folder of a model. tables: by name
    detector, settings (see `memlib.study.sections.expanded`) and seed.
    """
    source = Path(items["source"])
    kind = "images" if source.is_dir() or source.suffix == ".safetensors" else "prompts"
    named = {kind: source} | {name: value for name, value in items.items() if name != "source"}
    if "reference" in items:
        named["reference"] = load_field(items["reference"])
    field = None if model is None else load_field(model)
    digest = "" if field is None else weights_digest(field)
    folder, wanted = Path("tables/scores") / key, []
    whole, notes = load_items(**named, size=None if field is None else field.picture_shape)
    if field is not None:  # calls of one size, so that the last is no emptier than the others
        field = field.with_rows(math.ceil(len(whole.ids) / math.ceil(len(whole.ids) / field.rows)))
    seeded = {seed: replace(whole, seed=seed) for seed in {table["seed"] for table in tables.values()}}
    for name, table in tables.items():
        settings = [each for setting in table["settings"] for each in expanded(setting)]
        part, output = seeded[table["seed"]], folder / f"{name}.parquet"
        wanted.append(Table(part, find(table["detector"]), settings, output, notes))
    costs = write_tables(field, wanted, digest, replace=True)
    if processes().is_main_process:
        write_json(folder / MADE, {path.stem: cost.evaluations for path, cost in costs.items()})
        remove_others(folder, [*(table.output for table in wanted), folder / MADE])
        write_json(COSTS / f"{key}.json", {path.stem: cost for path, cost in costs.items()})


def remove_others(folder: Path, tables: Collection[Path]) -> None:
    """Remove what a folder holds beside the tables: those that are no longer named, and batches that killed runs have left."""
    for path in folder.iterdir():
        if path not in tables:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    with reporting_errors("scores"), timed_stage("scores"):
        score_tables(sys.argv[1], **read_section("scores")[sys.argv[1]])
