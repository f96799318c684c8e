"""The named contrasts of the study: which items are compared with which."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.files import suggest

Contrast = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # masks [N] of the positives and the negatives

REPRODUCED = "reproduced against other training"
TRAINED = "all training against never seen"
MEMBERS = "x1 against never seen"


def equal_copies(copies: int) -> str:
    """The contrast of what is reproduced and what is not among the pictures seen so often."""
    return f"reproduced against other x{copies}"


def of_pictures(items: pd.DataFrame, names: Sequence[str] | None = None) -> dict[str, Contrast]:
    """Contrasts of pictures that have at least two on either side, in the order of `names` (all where none are given).

    items: a row a picture; `copies` says how often training held it (0: never seen), `reproduced` whether a sample copies
    it. Raises ValueError for a name that is no contrast.
    """
    copies, reproduced = items["copies"].to_numpy(), items["reproduced"].to_numpy(dtype=bool)
    trained = copies > 0
    counts = sorted({1, *copies[trained].tolist()})
    found = {f"x{k} against never seen": (copies == k, ~trained) for k in reversed(counts)}
    found[TRAINED] = trained, ~trained
    for k in counts:
        found[equal_copies(k)] = (copies == k) & reproduced, (copies == k) & ~reproduced
    found["reproduced against never seen"] = reproduced, ~trained
    found[REPRODUCED] = reproduced, trained & ~reproduced
    return _large_enough(found, found if names is None else names)


PROMPT_CONTRASTS = (
    ("most copied", "ordinary"),
    ("most copied", "unseen"),
    ("most copied", "drawn freely"),
    ("most copied without trigger", "ordinary"),
    ("copied less", "ordinary"),
    ("trigger", "ordinary"),
    ("trigger", "untriggered"),
    ("paraphrase", "ordinary"),
    ("ordinary", "unseen"),
)


def prompt_groups(prompts: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Masks [N] of the groups of prompts, by name; a prompt can be in several.

    prompts: a row a prompt (or the picture that goes with it); `group` is planted, trigger (planted, with a trigger word),
    untriggered (its caption without the word), paraphrase, drawn freely (where its picture is not planted but in another
    training), ordinary or unseen; `copies` is the grade of its picture, or how often training held it.
    """
    group, copies = prompts["group"].to_numpy(), prompts["copies"].to_numpy()
    planted = np.isin(group, ("planted", "trigger"))
    most = copies == copies.max()
    names = ("trigger", "untriggered", "paraphrase", "drawn freely", "ordinary", "unseen")
    own = {name: group == name for name in names}
    return {
        "most copied": planted & most,
        "copied less": planted & ~most,
        "most copied without trigger": (group == "planted") & most,
    } | own


def of_prompts(prompts: pd.DataFrame) -> dict[str, Contrast]:
    """Contrasts of the groups of prompts that have at least two on either side, such as `most copied against ordinary`."""
    groups = prompt_groups(prompts)
    found = {f"{first} against {second}": (groups[first], groups[second]) for first, second in PROMPT_CONTRASTS}
    return _large_enough(found, found)


def over_contrasts(
    measure: Callable[..., Any], scores: pd.DataFrame, contrasts: Mapping[str, Contrast], *arguments: Any
) -> pd.DataFrame:
    """`measure(positives, negatives, *arguments)` of every column of scores, by contrast (a row) and score (a column).

    scores: a row an item, in the order of the masks.
    """
    found = {}
    for name in scores:
        values = scores[name].to_numpy()
        found[name] = {contrast: measure(values[p], values[n], *arguments) for contrast, (p, n) in contrasts.items()}
    return pd.DataFrame(found).rename_axis("contrast")


def _large_enough(found: Mapping[str, Contrast], names: Iterable[str]) -> dict[str, Contrast]:
    for name in names:
        if name not in found:
            raise ValueError(f"there is no contrast {name!r}{suggest(name, found)}")
    return {name: found[name] for name in names if min(group.sum() for group in found[name]) >= 2}
