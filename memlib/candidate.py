"""A user's own detector on the bench: read from a file, checked, and scored on the study's models beside the others."""

import importlib.util
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from memlib.datasets.items import load_items
from memlib.detectors import ALL
from memlib.detectors.api import Detector, Items
from memlib.evaluation.bench import with_means
from memlib.fields.digest import weights_digest
from memlib.fields.load import load_field
from memlib.fields.network import NetworkField
from memlib.score import Table, one_thread, write_tables
from memlib.tables import read_detectors

PROBED = 4  # items that are also scored by themselves
TOLERANCE = 1e-3  # of a score in other company, in standard deviations of all scores


def read_candidates(path: Path) -> list[Detector]:
    """The detectors that a file of Python defines; raises ValueError for none, and for a name that the bench has."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"candidate_{path.stem}", path)
    if spec is None:
        raise ValueError(f"{path} is no file of Python; its name must end in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its source is looked for
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    found = list({id(value): value for value in vars(module).values() if isinstance(value, Detector)}.values())
    own = [each for each in found if each.name not in ALL]
    names = [each.name for each in own]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} defines two Detectors of the name {twice!r}; give each its own")
    if not own:
        taken = f", only {found[0].name}, which the bench has; give yours another name" if found else ""
        raise ValueError(f"{path} defines no Detector of its own{taken}")
    return own


def check(detector: Detector, field: NetworkField, items: Items) -> float:
    """Score a few items in different company; seconds that a call for them took.

    Raises ValueError for scores that are not one finite number an item, that depend on the other items, or cost the model its
    weights, in a sentence that names the item.
    """
    rows = range(min(len(items.ids), field.rows))
    whole, few = items.rows(rows), items.rows([*rows][:PROBED][::-1])
    padded = field.with_rows(field.rows, pad=True)
    before = _fingerprint(field)
    begun = time.monotonic()
    together = _scored(detector, padded, whole)
    seconds = time.monotonic() - begun
    if _fingerprint(field) != before:
        raise ValueError(
            f"the detector {detector.name} changes the model: its weights, mode or hooks are others after {items.ids[0]!r} was "
            "scored; leave the model as you find it"
        )
    alone = _scored(detector, padded, few)
    for name, values in together.items():
        spread = float(values.std()) or 1.0
        for place, item in enumerate(few.ids):
            here, there = float(values[whole.ids.index(item)]), float(alone[name][place])
            if abs(here - there) > TOLERANCE * spread:
                raise ValueError(
                    f"the detector {detector.name} gives the item {item!r} {here:.6g} beside {len(whole.ids) - 1} others and "
                    f"{there:.6g} beside {len(few.ids) - 1}; a score must depend on its item alone, and its random numbers on "
                    "items.seeds"
                )
    return seconds


def _scored(detector: Detector, field: NetworkField, items: Items) -> dict[str, torch.Tensor]:
    with TemporaryDirectory() as folder, reported(detector):
        write_tables(field, [Table(items, detector, [], Path(folder) / "scores.parquet")], share=False)
        scores = read_detectors({"": Path(folder) / "scores.parquet"})[0].loc[list(items.ids)]
    return {name: torch.from_numpy(scores[name].to_numpy().copy()) for name in scores}


@contextmanager
def reported(detector: Detector) -> Iterator[None]:
    """Turn what a user's detector raises into a sentence."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"the detector {detector.name} failed with {type(error).__name__}: {error} "
            f"({Path(place.filename).name}, line {place.lineno})"
        ) from error


def _fingerprint(field: NetworkField) -> tuple[str, list[tuple[bool, int]]]:
    modules = field.network.modules()
    hooks = [(each.training, len(each._forward_hooks) + len(each._forward_pre_hooks)) for each in modules]
    return weights_digest(field), hooks


def score_candidates(
    detectors: Sequence[Detector], known: Mapping[str, Mapping[str, Any]], seconds: float
) -> tuple[dict[str, tuple[pd.DataFrame, pd.DataFrame]], list[str]]:
    """Scores of detectors on models, as `memlib.bench.scores_of` gives those of tables, and a sentence for each model.

    known: the bench's entries by the models' names, in the order in which models are asked, while there is time; of the first
    of them only as many items as there is time for. Raises ValueError as `check` does on the first model that has what the
    detectors need, and where none has; what a later one refuses is told.
    """
    found: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    told: list[str] = []
    refused = ""
    begun, each = time.monotonic(), 0.0  # seconds an item
    for name, entry in known.items():
        left = seconds - (time.monotonic() - begun)
        if found and left < each * len(next(iter(found.values()))[0]):
            told.append(f"{name}: not asked, {seconds:.0f} s are over")
            continue
        if not Path(entry["model"]).exists():
            raise ValueError(f"there is no model {entry['model']}, which {name} stands for; `make study` trains it")
        field = load_field(entry["model"])
        source, given = Path(entry["items"]["source"]), dict(entry["items"])
        given["prompts" if source.suffix == ".parquet" else "images"] = given.pop("source")
        if "reference" in given:
            given["reference"] = load_field(given["reference"])
        seed = next(iter(entry["tables"].values()))["seed"]
        items, _ = load_items(**given, size=field.picture_shape, seed=seed)
        try:
            for detector in detectors:
                for setting in detector.settings:
                    detector.check(field, items, setting)
        except ValueError as error:
            refused = str(error)
            continue
        probed, count = min(len(items.ids), field.rows), len(items.ids)
        try:
            with one_thread():
                each = sum(check(detector, field, items) for detector in detectors) / probed
            affordable = int(max(seconds - (time.monotonic() - begun), 0) / each) if each else count
            if not found and affordable < count:
                order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
                count = max(affordable, probed)
                items = items.rows(order[:count].tolist())
            with TemporaryDirectory() as folder:
                paths = {detector.name: Path(folder) / f"{number}.parquet" for number, detector in enumerate(detectors)}
                for detector, path in zip(detectors, paths.values(), strict=True):
                    with reported(detector):
                        write_tables(field, [Table(items, detector, [], path)], share=False)
                scores, about = read_detectors(paths)
        except ValueError as error:
            if not found:
                raise
            told.append(f"{name}: not scored; {error}")
            continue
        found[name] = with_means(scores, about[["evaluations"]])
        told.append(f"{name}: {count} items, {each * count:.0f} s")
    if not found:
        raise ValueError(refused)
    return found, told
