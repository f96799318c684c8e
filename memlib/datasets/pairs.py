"""The same pictures in exchanged roles: each is planted in one training, seen once in a second and kept out of a third."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from memlib.datasets.images import ImageSet

ROLES = ("planted", "once", "kept out")


def assign_roles(ids: Iterable[str], copies: dict[int, int], rounds: Iterable[int], seed: int) -> pd.DataFrame:
    """The role of every picture in every round of trainings, a row each; columns item, roles (the round), role and copies.

    Three random groups of one size take the `ROLES` in turn (a Latin square), so that over any three rounds in a row every
    picture has every role. copies: how many pictures of a group are seen k times where it is planted; which, is drawn once,
    so a picture planted in two rounds has as many copies in both. Raises ValueError unless the copies fill a third.
    """
    ids = list(ids)
    planted = [k for k, pictures in copies.items() for _ in range(pictures)]
    if 3 * len(planted) != len(ids):
        raise ValueError(
            f"pairs.copies is {copies}, {len(planted)} pictures; they must be a third of data.splits.pairs, which is {len(ids)}"
        )
    random = np.random.default_rng(seed)
    order = random.permutation(len(ids))
    group, own = np.empty(len(ids), dtype=int), np.empty(len(ids), dtype=int)
    group[order] = np.arange(len(ids)) % 3
    for third in range(3):
        own[group == third] = random.permutation(planted)
    tables = []
    for number in rounds:
        role = np.array(ROLES)[(group + number) % 3]
        seen = np.select([role == "planted", role == "once"], [own, 1], 0)
        tables.append(pd.DataFrame({"item": ids, "roles": number, "role": role, "copies": seen}))
    return pd.concat(tables, ignore_index=True)


def in_roles(pictures: ImageSet, roles: pd.DataFrame) -> ImageSet:
    """The pictures with the copies of one round: the split `train` is seen, `heldout` kept out.

    roles: a row a picture, in their order, with its `copies`.
    """
    copies = roles["copies"].to_numpy()
    split = np.where(copies > 0, "train", "heldout")
    return ImageSet(pictures.images, pictures.items.assign(split=split, copies=copies))
