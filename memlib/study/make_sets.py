"""Stage `sets`: training sets with the pictures modified that an auditor would choose by growth.

The auditor scores the pictures that a training has seen, without knowing which were copied, and picks
`modified` of them; others pick as many by the denoising loss, by the known copies (the oracle), and at random, each `randomN` by
a draw of its own. Writes an image set `results/sets/ARM` for each of `run.arms`; for the chapters `tables/sets`:
`chosen.parquet` (training, choice, item: what each has chosen), and `pictures.png` (the last `SHOWN` pictures of the first
training's set with the choice of the oracle augmented, then masked).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from memlib.datasets import images
from memlib.datasets.images import ImageSet
from memlib.files import write_pictures, write_table
from memlib.mitigation.data import modify
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tables import read_score
from memlib.tensors import generators, item_seeds

SHOWN = 32
RESULTS, TABLES = Path("results/sets"), Path("tables/sets")


def make_sets(arms: Mapping[str, Mapping[str, Any]], modified: int, seed: int) -> None:
    """Write the sets and their tables, from `run.arms` and the parameters of the section `sets`."""
    chosen = {}
    for name, arm in arms.items():
        seen = images.load(f"results/pairs/{arm['roles']}").split("train")
        [generator] = generators(item_seeds([name], seed))
        rows = _largest(_values(arm["choice"], arm["roles"], seen.items, seed), modified)
        images.save(ImageSet(*modify(seen.images, seen.items, rows, arm["how"], generator)), RESULTS / name)
        chosen[arm["roles"], arm["choice"]] = seen.items["id"][rows].tolist()
    long = [(f"pair-{k}", choice, item) for (k, choice), items in chosen.items() for item in items]
    write_table(TABLES / "chosen.parquet", pd.DataFrame(long, columns=["training", "choice", "item"]))
    first = images.load(f"results/pairs/{min(arm['roles'] for arm in arms.values())}").split("train")
    known = _largest(first.items["copies"], modified)
    sheet = [
        modify(first.images, first.items, known, how, generators([seed])[0])[0][-SHOWN:] for how in ("augment", "mask")
    ]
    write_pictures(TABLES / "pictures.png", torch.cat(sheet))


def _values(choice: str, training: int, items: pd.DataFrame, seed: int) -> pd.Series:
    """What a choice ranks these pictures of a training by, a value a row."""
    if choice == "oracle":
        return items["copies"]
    if choice.startswith("random"):
        [generator] = generators(item_seeds([f"{choice}-{training}"], seed))
        return pd.Series(torch.rand(len(items), generator=generator).numpy())
    return (
        read_score(f"tables/scores/pair-{training}/{choice}.parquet", rate_at=None)
        .loc[items["id"]]
        .reset_index(drop=True)
    )


def _largest(values: pd.Series, count: int) -> list[int]:
    """Rows of the largest values, in rising order; of equal ones the first."""
    return sorted(values.sort_values(ascending=False, kind="stable").index[:count].tolist())


if __name__ == "__main__":
    with reporting_errors("sets"), timed_stage("sets"):
        make_sets(read_section("run")["arms"], **read_section("sets"))
