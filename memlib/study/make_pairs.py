"""The training sets in which the pictures of the split `pairs` exchange their roles, for the stage `data`.

An image set `results/pairs/ROLES` for each round of roles that `run.trainings` name; `small`, the paper's small-data case,
holds the pictures that are planted in the round 0, each once. For the chapters `tables/pairs/roles.parquet`: item, training,
role and copies, a row a picture and training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.datasets import images
from memlib.datasets.images import ImageSet
from memlib.datasets.pairs import assign_roles, in_roles
from memlib.files import write_table


def make_pairs(
    pictures: ImageSet, trainings: Mapping[str, Mapping[str, Any]], copies: dict[int, int], seed: int
) -> None:
    """Write the sets and the table of roles of these pictures, from `run.trainings` and the parameters of the section `pairs`."""
    asked = {training["roles"] for training in trainings.values()}
    rounds = assign_roles(pictures.items["id"], copies, sorted({0} | asked - {"small"}), seed)
    tables = dict([*rounds.groupby("roles")])
    planted = tables[0]["role"] == "planted"
    tables["small"] = tables[0].assign(role=np.where(planted, "once", "kept out"), copies=planted.astype(int))
    for name in asked:
        images.save(in_roles(pictures, tables[name]), Path("results/pairs") / str(name))
    parts = [tables[training["roles"]].assign(training=name) for name, training in trainings.items()]
    write_table(Path("tables/pairs/roles.parquet"), pd.concat(parts)[["item", "training", "role", "copies"]])
