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
