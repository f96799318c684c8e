"""Stage `sets`: training sets with the pictures modified that an auditor would choose by growth.

The auditor scores the training pictures of `retrain` without knowing which were copied, and picks `modified` of them; others
pick as many by the denoising loss, at random, and by the known copies (the oracle). Writes an image set `results/sets/ARM`
for each choice and modification, for the main model (its pictures of largest growth seen once), and for the mirrored set; for
the chapters `tables/sets`: `chosen.parquet` (id, and a column of booleans a choice), `pictures.png` (the last `SHOWN` pictures
of `oracle-augment`, then of `oracle-mask`) and `summary.json` (planted pictures and copies among those of each choice).
"""

from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from memlib.datasets import images
from memlib.datasets.images import ImageSet
from memlib.files import write_json, write_pictures, write_table
from memlib.mitigation import Modification
from memlib.mitigation.data import modify
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tables import read_score

SHOWN = 32
SCORES, RESULTS, TABLES = Path("tables/scores"), Path("results/sets"), Path("tables/sets")


def make_sets(modified: int, seed: int) -> None:
    """Write the sets and their tables, from the parameters of the section `sets`."""
    data = images.load("results/data")
    training, main = data.split("retrain"), data.split("train")
    items = training.items
    uniform = torch.rand(len(items), generator=torch.Generator().manual_seed(seed))
    ranking = {
        "growth": _scores("repeat-0-volume/growth", items["id"]),
        "loss": _scores("repeat-0-denoising/loss", items["id"]),
        "random": pd.Series(uniform.numpy()),
        "oracle": items["copies"],
    }
    chosen = {choice: sorted(_largest(values, modified)) for choice, values in ranking.items()}
    plans = {
        f"{choice}-{how}": ImageSet(*modify(training.images, items, rows, how, torch.Generator().manual_seed(seed)))
        for choice, rows in chosen.items()
        for how in get_args(Modification)
    }
    suspected = _largest(_scores("main-volume/growth", main.items["id"]), int((main.items["copies"] > 1).sum()))
    plans["main"] = ImageSet(*modify(main.images, main.items, suspected, "drop", torch.Generator()))
    both = torch.cat([training.images, training.images.flip(-1)])
    plans["mirrored"] = ImageSet(both, pd.concat([items] * 2, ignore_index=True).assign(copies=1))
    for name, plan in plans.items():
        images.save(plan, RESULTS / name)
    marks = {choice: items.index.isin(rows) for choice, rows in chosen.items()}
    write_table(TABLES / "chosen.parquet", pd.DataFrame({"id": items["id"], **marks}))
    sheet = [plans[f"oracle-{how}"].images[-SHOWN:] for how in ("augment", "mask")]
    write_pictures(TABLES / "pictures.png", torch.cat(sheet))
    summary = {
        choice: {"planted": int((copies > 1).sum()), "copies": int(copies.sum())}
        for choice, copies in ((choice, items.loc[rows, "copies"]) for choice, rows in chosen.items())
    }
    write_json(TABLES / "summary.json", {"modified": modified, "chosen": summary})


def _scores(table: str, ids: pd.Series) -> pd.Series:
    """Scores of these items, in their order, from a table of one setting; the rates of growth at single levels count not."""
    return read_score(SCORES / f"{table}.parquet", rate_at=None).loc[ids].reset_index(drop=True)


def _largest(values: pd.Series, count: int) -> list[int]:
    """Rows of the largest values; of equal ones the first."""
    return values.sort_values(ascending=False, kind="stable").index[:count].tolist()


if __name__ == "__main__":
    with reporting_errors("sets"), timed_stage("sets"):
        make_sets(**read_section("sets"))
