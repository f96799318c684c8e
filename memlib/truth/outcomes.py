"""Which samples are copies and which pictures are reproduced, read from tables of `memlib.truth.verdicts.judge_samples`.

matches: a row a sample, with what each rule says of it. A sample copies one picture at most, and the copies of a picture count
as one reproduction of it: the picture is the unit.
"""

from collections.abc import Sequence
from itertools import count

import pandas as pd
from scipy.special import bdtrc

LEVEL = 0.01  # share of what is no copy that comes as near to some picture as a copy does
RATIO = 1 / 3
RULES = ("calibrated", "ratio", "embedding")


def ratio(matches: pd.DataFrame) -> pd.Series:
    """Distance to the nearest over distance to the second nearest training picture, by sample; small for a copy."""
    return matches["distance"] / matches["second_distance"]


def is_copy(matches: pd.DataFrame, rule: str = "calibrated") -> pd.Series:
    """Whether each sample is a copy, by one of `RULES`.

    *calibrated*, the truth of this study: nearer to a picture than all but a share `LEVEL` of the samples of a model that
    never saw it come to any, and than as many of the pictures that this model was trained on. *embedding*: by the samples
    alone, in an embedding that forgives blur, shift and mirror, and passes more of other pictures. *ratio*: at less
    than a third of the distance to the second nearest training picture (Yoon et al., Diffusion probabilistic models generalize
    when they fail to memorize, 2023; Gu et al., arXiv 2310.02664). Raises KeyError for another rule.
    """
    return {
        "calibrated": matches["relative"] < 1,
        "ratio": ratio(matches) < RATIO,
        "embedding": matches["embedded_relative"] < 1,
    }[rule]


def original(matches: pd.DataFrame, rule: str = "calibrated") -> pd.Series:
    """The id of the picture that each sample copies by one of `RULES`, or comes nearest to where it copies none."""
    return matches[{"calibrated": "picture", "ratio": "nearest", "embedding": "embedded_picture"}[rule]]


def agreement(matches: pd.DataFrame) -> pd.DataFrame:
    """How often the rules agree: a row for each combination of their verdicts that occurs, with its number of samples.

    Columns: a boolean a rule, `samples`, and `one picture`: in how many of them the rules that see a copy name one picture.
    """
    verdicts = pd.DataFrame({rule: is_copy(matches, rule) for rule in RULES})
    named = pd.DataFrame({rule: original(matches, rule).where(verdicts[rule]) for rule in RULES})
    table = verdicts.assign(samples=1, **{"one picture": named.nunique(axis=1) == 1})
    found = table.groupby([*RULES])[["samples", "one picture"]].sum().reset_index()
    return found.sort_values("samples", ascending=False, kind="stable", ignore_index=True)


def least_copies(samples: int, pictures: int) -> int:
    """How many of the samples must copy a picture so that it counts as reproduced.

    A model that saw none of the pictures copies some in at most a share `LEVEL` of its samples, so each in `LEVEL` / pictures:
    the least number that at most a share `LEVEL` of its pictures reaches by chance (binomial).
    """
    return next(k for k in count(1) if bdtrc(k - 1, samples, LEVEL / pictures) <= LEVEL)


def reproduced(matches: pd.DataFrame, ids: Sequence[str], rule: str = "calibrated") -> pd.DataFrame:
    """Per picture, in how many samples it is copied (`generated_copies`), and whether in enough of them (`reproduced`).

    By the rule `ratio`, which knows no chance, one copy is enough; else `least_copies`. The index holds the ids of all
    pictures that the samples were compared with, in the order given. Raises ValueError where a sample comes near another one.
    """
    named = original(matches, rule)
    strangers = set(named).difference(ids)
    if strangers:
        name = min(strangers)
        raise ValueError(f"the samples were matched with other pictures: {name!r} is none of the {len(ids)} ids")
    index = pd.Index(ids, name="id")
    counts = named[is_copy(matches, rule)].value_counts().reindex(index, fill_value=0)
    enough = 1 if rule == "ratio" else least_copies(len(matches), len(index))
    return pd.DataFrame({"generated_copies": counts, "reproduced": counts >= enough})


def first_reproduced(matches: pd.DataFrame, ids: Sequence[str]) -> pd.Series:
    """The first step at which enough samples copy each picture, by its id; nan where that never happens.

    matches: of samples that were drawn at several steps of a training, with their `step`; ids: of all pictures compared.
    """
    found = {step: reproduced(part.reset_index(drop=True), ids)["reproduced"] for step, part in matches.groupby("step")}
    copied = pd.DataFrame(found)
    return copied.idxmax(axis=1).where(copied.any(axis=1)).astype(float)


def judged(items: pd.DataFrame, matches: pd.DataFrame, split: str, rule: str = "calibrated") -> pd.DataFrame:
    """The pictures of a split and those held out, with what the samples reproduce; the index holds their ids.

    items: a row a picture of the study, with its `id` and `split`; matches: of samples with these pictures.
    """
    pictures = items[items["split"].isin([split, "heldout"])].set_index("id")
    return pictures.join(reproduced(matches, pictures.index, rule))


def clearest(matches: pd.DataFrame, count: int) -> list[int]:
    """Rows of the samples that lie deepest within a limit, one for each of at most `count` different pictures."""
    ordered = matches.sort_values("relative", kind="stable")
    return ordered.drop_duplicates("picture").index[:count].tolist()


def borderline(matches: pd.DataFrame, count: int) -> list[int]:
    """Rows of the samples that lie nearest to the limit of a copy, on either side."""
    return (matches["relative"] - 1).abs().sort_values(kind="stable").index[:count].tolist()
