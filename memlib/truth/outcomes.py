"""Which samples are copies and which training pictures are reproduced, read from a table of matches.

matches: a row a sample; `nearest` is the id of the training picture nearest to it, `distance` that to it and
`second_distance` that to the second nearest (L2 over pixels), as `memlib.truth.replication.match` finds them.
"""

from collections.abc import Sequence

import pandas as pd

RATIO = 1 / 3


def ratio(matches: pd.DataFrame) -> pd.Series:
    """Distance to the nearest over distance to the second nearest training picture, by sample; small for a copy."""
    return matches["distance"] / matches["second_distance"]


def is_copy(matches: pd.DataFrame) -> pd.Series:
    """Whether each sample is a copy: at less than a third of the distance to the second nearest training picture.

    The criterion of Yoon et al. (Diffusion probabilistic models generalize when they fail to memorize, 2023) and
    Gu et al. (arXiv 2310.02664).
    """
    return ratio(matches) < RATIO


def reproduced(matches: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """Per training picture, in how many samples it is copied (`generated_copies`) and whether in any (`reproduced`).

    The index holds the ids in the order given. Raises ValueError where a sample's nearest picture is none of them.
    """
    strangers = set(matches["nearest"]).difference(ids)
    if strangers:
        name = min(strangers)
        raise ValueError(f"the samples were matched with other pictures: {name!r} is none of the {len(ids)} ids")
    counts = matches.loc[is_copy(matches), "nearest"].value_counts().reindex(pd.Index(ids, name="id"), fill_value=0)
    return pd.DataFrame({"generated_copies": counts, "reproduced": counts > 0})


def judged(items: pd.DataFrame, matches: pd.DataFrame, split: str) -> pd.DataFrame:
    """The pictures of a split and those held out, with what the samples reproduce; the index holds their ids.

    items: a row a picture of the study, with its `id` and `split`; matches: of samples with the pictures of the split.
    """
    pictures = items[items["split"].isin([split, "heldout"])].set_index("id")
    counts = reproduced(matches, pictures.index[pictures["split"] == split])["generated_copies"]
    counts = counts.reindex(pictures.index, fill_value=0)
    return pictures.assign(generated_copies=counts, reproduced=counts > 0)


def clearest(matches: pd.DataFrame, count: int) -> list[int]:
    """Rows of the samples of the smallest ratio, one for each of at most `count` different training pictures."""
    ordered = matches.assign(ratio=ratio(matches)).sort_values("ratio", kind="stable")
    return ordered.drop_duplicates("nearest").index[:count].tolist()


def borderline(matches: pd.DataFrame, count: int) -> list[int]:
    """Rows of the samples whose ratio is nearest to the criterion of a copy, on either side."""
    return (ratio(matches) - RATIO).abs().sort_values(kind="stable").index[:count].tolist()
