"""Pictures in exchanged roles: a Latin square, sets that follow it, and contrasts in which the picture itself cancels."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlib.datasets import images
from memlib.datasets.images import ImageSet
from memlib.datasets.pairs import ROLES, assign_roles, in_roles
from memlib.evaluation import pairs
from memlib.evaluation.measures import auroc
from memlib.study.make_pairs import make_pairs

IDS = [f"p{n}" for n in range(36)]
COPIES = {16: 4, 6: 5, 3: 3}


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 50))
def test_over_three_rounds_every_picture_has_every_role(seed: int, first: int) -> None:
    roles = assign_roles(IDS, COPIES, range(first, first + 3), seed)
    assert roles.groupby("item")["role"].agg(set).map(lambda found: found == set(ROLES)).all()
    counts = roles.groupby(["roles", "role"]).size()
    assert (counts == 12).all()
    assert [*roles.groupby(["role", "copies"]).size().items()] == [
        (("kept out", 0), 36),
        (("once", 1), 36),
        *((("planted", k), 3 * COPIES[k]) for k in sorted(COPIES)),
    ]


def test_a_picture_is_planted_alike_in_every_square_and_the_groups_are_drawn_at_random() -> None:
    roles = assign_roles(IDS, COPIES, range(6), 0)
    again = roles.assign(square=roles["roles"] // 3, turn=roles["roles"] % 3).pivot(
        index=["item", "turn"], columns="square", values="copies"
    )
    assert (again[0] == again[1]).all()
    assert assign_roles(IDS, COPIES, range(6), 0).equals(roles)
    other = assign_roles(IDS, COPIES, range(6), 1)
    assert 0.2 < (other["role"] == roles["role"]).mean() < 0.5


@pytest.mark.parametrize("copies", [{16: 4}, {16: 13}, {}])
def test_copies_that_do_not_fill_a_third_are_refused(copies: dict[int, int]) -> None:
    with pytest.raises(ValueError, match=r"pairs.copies is .*; they must be a third of data.splits.pairs, which is 36"):
        assign_roles(IDS, copies, range(3), 0)


def test_sets_hold_the_pictures_in_their_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = ImageSet(
        torch.arange(36, dtype=torch.uint8).reshape(36, 1, 1, 1).expand(36, 1, 4, 4).contiguous(),
        pd.DataFrame({"id": IDS, "name": IDS, "caption": "", "split": "pairs", "copies": 0}),
    )
    trainings = {"pair-0": {"roles": 0}, "pair-1": {"roles": 1}, "again": {"roles": 1}, "small": {"roles": "small"}}
    make_pairs(pictures, trainings, COPIES, 5)
    roles = pd.read_parquet("tables/pairs/roles.parquet")
    assert roles["training"].unique().tolist() == [*trainings]
    for name, training in trainings.items():
        part = roles[roles["training"] == name].set_index("item")
        found = images.load(f"results/pairs/{training['roles']}")
        assert torch.equal(found.images, pictures.images)
        assert found.items.set_index("id")["copies"].to_dict() == part["copies"].to_dict()
        assert (found.items["split"].eq("heldout").to_numpy() == part["role"].eq("kept out").to_numpy()).all()
    small, first = (roles[roles["training"] == name].set_index("item") for name in ("small", "pair-0"))
    assert set(small.index[small["copies"] == 1]) == set(first.index[first["role"] == "planted"])
    assert small["copies"].isin([0, 1]).all()
    with pytest.raises(ValueError, match="there is no split 'train'"):
        in_roles(pictures, first.assign(copies=0).reset_index()).split("train")


def simulated(rng: np.random.Generator, effect: float, memory: float, own: float = 3.0) -> pd.DataFrame:
    """Scores that hold the picture's own level, the training's, an effect of being seen and one of being reproduced."""
    table = assign_roles([f"p{n}" for n in range(90)], {4: 30}, range(6), 1).rename(columns={"roles": "training"})
    table["training"] = "pair-" + table["training"].astype(str)
    level = dict(zip(table["item"].unique(), own * rng.normal(size=90), strict=True))
    table["reproduced"] = (table["copies"] == 4) & (rng.random(len(table)) < 0.5)
    table["score"] = (
        table["item"].map(level)
        + 50.0 * table["training"].str[-1].astype(int)
        + effect * (table["copies"] > 0)
        + memory * table["reproduced"]
        + rng.normal(size=len(table))
    )
    return table


def test_a_contrast_in_one_picture_sees_what_the_pictures_own_level_hides() -> None:
    table = simulated(np.random.default_rng(0), effect=1.5, memory=0.0)
    found = pairs.members(table)
    assert set(found["role"]) == {"once", "kept out"}
    across = pairs.of_score(found, "score").interval()
    within = pairs.share_above(pairs.same_picture(table, found, "score")).interval()
    assert 0.5 < across.value < 0.75, "the pictures' own levels blur it"
    assert within.low > 0.85
    by_hand = [auroc(part["score"], part["positive"]).value for _, part in found.groupby("training")]
    assert across.value == pytest.approx(np.mean(by_hand))


def test_nothing_is_seen_where_there_is_nothing_to_see() -> None:
    covered = []
    for seed in range(15):
        table = simulated(np.random.default_rng(seed), effect=0.0, memory=0.0)
        for contrast in (pairs.members(table), pairs.planted(table, 4), pairs.memorised(table, 4)):
            for found in (
                pairs.of_score(contrast, "score"),
                pairs.share_above(pairs.same_picture(table, contrast, "score")),
            ):
                low, high = found.interval()[1:]
                covered.append(low <= 0.5 <= high)
    assert np.mean(covered) > 0.9


def test_memorised_is_compared_among_pictures_seen_equally_often() -> None:
    table = simulated(np.random.default_rng(3), effect=5.0, memory=2.0)
    found = pairs.memorised(table, 4)
    assert (found["copies"] == 4).all()
    assert (found["positive"] == found["reproduced"]).all()
    differences = pairs.same_picture(table, found, "score")
    both = found.groupby("item")["positive"].nunique()
    assert set(differences.index) == set(both.index[both == 2]), "reproduced in one training and not in another"
    assert pairs.share_above(differences).interval().low > 0.6
    few = table.assign(reproduced=(table["item"] == "p1") & (table["copies"] == 4))
    assert pairs.memorised(few, 4).empty, "a training with one picture on a side says nothing"


def test_a_score_of_the_picture_alone_cancels_in_the_same_picture() -> None:
    table = simulated(np.random.default_rng(4), effect=1.0, memory=0.0)
    blind = table.assign(blind=table["item"].str[1:].astype(int) % 17)
    contrast = pairs.members(blind)
    differences = pairs.same_picture(blind, contrast, "blind")
    assert len(differences) == 90
    assert (differences == 0).all()
    assert pairs.share_above(differences).value == 0.5


def arms(shares: dict[str, float], draws: int = 3) -> pd.DataFrame:
    """Pictures of which each training sees two thirds; the first of them are reproduced."""
    rows = [
        {"item": f"p{n}", "training": f"pair-{k}", "choice": choice, "draw": draw, "reproduced": n // 3 < share * 20}
        for choice, share in shares.items()
        for k in range(3)
        for draw in range(draws if choice == "random" else 1)
        for n in range(60)
        if n % 3 != k
    ]
    return pd.DataFrame(rows)


def test_what_a_choice_saves_is_over_the_draws_and_the_trainings() -> None:
    table = arms({"growth": 0.25, "random": 0.5})
    found = pairs.saved(table, "random", "growth")
    assert found.value == pytest.approx(0.25)
    assert found.first.by_training.tolist() == pytest.approx([0.5] * 3)
    low, high = found.interval()[1:]
    assert 0 < low < 0.25 < high
    drawn = table["choice"] == "random"
    table.loc[drawn & (table["draw"] == 2), "reproduced"] = False
    assert pairs.saved(table, "random", "growth").value == pytest.approx(2 / 3 * 0.5 - 0.25)
    table.loc[drawn & (table["training"] == "pair-1"), "reproduced"] = False
    spread = pairs.saved(table, "random", "growth")
    assert spread.second.by_training.tolist() == pytest.approx([0.25] * 3)
    assert spread.interval().low < 0, "one training of three says otherwise"
    message = "growth was tried in the trainings pair-0, pair-1, pair-2 and random was tried in the trainings pair-0, pair-1; "
    with pytest.raises(ValueError, match=message):
        pairs.saved(table[~drawn | (table["training"] != "pair-2")], "growth", "random")


def test_outcomes_stand_beside_the_roles_of_their_training() -> None:
    roles = pd.DataFrame(
        {
            "item": ["a", "b", "c"] * 2,
            "training": ["one"] * 3 + ["two"] * 3,
            "role": [*ROLES] * 2,
            "copies": [4, 1, 0] * 2,
        }
    )
    matches = pd.DataFrame({"picture": ["b", "b", "c", "a"] * 25, "relative": [0.5, 0.9, 1.1, 2.0] * 25})
    matches = matches.assign(
        nearest="a", distance=1.0, second_distance=1.0, embedded_picture="a", embedded_relative=2.0
    )
    found = pairs.with_outcomes(roles, {"two": matches})
    assert found["training"].eq("two").all()
    assert found.set_index("item")["generated_copies"].to_dict() == {"a": 0, "b": 50, "c": 0}
    assert found.set_index("item")["reproduced"].to_dict() == {"a": False, "b": True, "c": False}


def test_contrasts_by_name_are_those_that_have_both_sides() -> None:
    rows = [("a", "kept out", 0, False), ("b", "once", 1, False), ("c", "planted", 6, True), ("d", "planted", 16, True)]
    rows += [(f"{item}2", *rest) for item, *rest in rows] + [("e", "planted", 6, False), ("e2", "planted", 6, False)]
    table = pd.DataFrame(rows, columns=["item", "role", "copies", "reproduced"]).assign(training="t")
    found = pairs.by_name(table)
    assert list(found) == [
        "seen once against kept out",
        "x16 against kept out",
        "x6 against kept out",
        "reproduced or not, x6",
    ]
    assert found["reproduced or not, x6"].groupby("positive")["item"].agg(list).to_dict() == {
        False: ["e", "e2"],
        True: ["c", "c2"],
    }
