"""The named contrasts: who stands on which side."""

import numpy as np
import pandas as pd
import pytest

from memlib.evaluation import contrasts

PICTURES = pd.DataFrame(
    {
        "copies": [16, 16, 16, 16, 4, 4, 1, 1, 1, 0, 0, 0],
        "reproduced": [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    }
).astype({"reproduced": bool})


def sides(contrast: contrasts.Contrast) -> tuple[list[int], list[int]]:
    return tuple(np.flatnonzero(side).tolist() for side in contrast)


def test_contrasts_of_pictures() -> None:
    found = contrasts.of_pictures(PICTURES)
    assert {name: sides(contrast) for name, contrast in found.items()} == {
        "x16 against never seen": ([0, 1, 2, 3], [9, 10, 11]),
        "x4 against never seen": ([4, 5], [9, 10, 11]),
        "x1 against never seen": ([6, 7, 8], [9, 10, 11]),
        "all training against never seen": (list(range(9)), [9, 10, 11]),
        "reproduced against other x16": ([0, 1], [2, 3]),
        "reproduced against never seen": ([0, 1, 4], [9, 10, 11]),
        "reproduced against other training": ([0, 1, 4], [2, 3, 5, 6, 7, 8]),
    }
    for side in found["reproduced against other x16"]:
        assert PICTURES["copies"][side].eq(16).all()


def test_contrasts_are_given_by_name_and_left_out_where_a_side_is_too_small() -> None:
    names = [contrasts.REPRODUCED, "x1 against never seen", "reproduced against other x4", contrasts.TRAINED]
    assert list(contrasts.of_pictures(PICTURES, names)) == [names[0], names[1], names[3]]
    none = PICTURES.assign(reproduced=False, copies=PICTURES["copies"].replace(1, 4))
    assert list(contrasts.of_pictures(none, names)) == [contrasts.TRAINED]
    with pytest.raises(ValueError, match="no contrast 'x1 against unseen'; did you mean 'x1 against never seen'"):
        contrasts.of_pictures(PICTURES, ["x1 against unseen"])


def test_a_measure_is_taken_of_every_score_over_every_contrast() -> None:
    scores = pd.DataFrame({"growth": [5.0, 4.0, 1.0, 0.0], "loss": [0.0, 2.0, 1.0, 3.0]}, index=list("wxyz"))
    groups = {
        "upper half": (np.array([1, 1, 0, 0], dtype=bool), np.array([0, 0, 1, 1], dtype=bool)),
        "inner": (np.array([0, 1, 1, 0], dtype=bool), np.array([1, 0, 0, 1], dtype=bool)),
    }
    measured = contrasts.over_contrasts(lambda p, n, factor: factor * (p.max() - n.max()), scores, groups, 10)
    assert measured.to_dict() == {
        "growth": {"upper half": 40.0, "inner": -10.0},
        "loss": {"upper half": -10.0, "inner": -10.0},
    }
    assert measured.index.name == "contrast"


PROMPTS = pd.DataFrame(
    [
        *[("planted", 200)] * 3,
        *[("planted", 50)] * 2,
        *[("trigger", 200)] * 2,
        *[("untriggered", 200)] * 2,
        *[("paraphrase", 200)] * 2,
        *[("drawn freely", 200)] * 2,
        *[("ordinary", 1)] * 3,
        *[("unseen", 0)] * 2,
    ],
    columns=["group", "copies"],
)


def test_groups_and_contrasts_of_prompts() -> None:
    groups = {name: np.flatnonzero(members).tolist() for name, members in contrasts.prompt_groups(PROMPTS).items()}
    assert groups == {
        "most copied": [0, 1, 2, 5, 6],
        "copied less": [3, 4],
        "most copied without trigger": [0, 1, 2],
        "trigger": [5, 6],
        "untriggered": [7, 8],
        "paraphrase": [9, 10],
        "drawn freely": [11, 12],
        "ordinary": [13, 14, 15],
        "unseen": [16, 17],
    }
    found = contrasts.of_prompts(PROMPTS)
    assert len(found) == 9
    for name, contrast in found.items():
        assert sides(contrast) == tuple(groups[side] for side in name.split(" against "))
    assert "most copied against unseen" not in contrasts.of_prompts(PROMPTS[:-1])
