"""Prompts and pictures to judge by: which go with a planted picture, which are ordinary, and how roles see them."""

import pytest
import torch
from conftest import small_world, subjects

from memlib.datasets import drawings, judged
from memlib.datasets.attributes import ATTRIBUTES
from memlib.datasets.drawings import LOOK
from memlib.datasets.images import ImageSet
from memlib.datasets.roles import DIAL, FREE, OWN, PLANTED, ROLES, controls_of, in_role, role_of


def prompts(ordinary: int = 20, unseen: int = 15):
    drawn = small_world()
    return drawn, judged.judged_prompts(subjects(), drawn, ordinary, unseen, 0)


def test_prompts_name_what_was_planted_and_what_was_not() -> None:
    drawn, table = prompts()
    counts = table["group"].value_counts()
    assert counts[["planted", "trigger", "paraphrase", "shortened", "untriggered"]].tolist() == [8, 2, 24, 8, 2]
    assert counts[["ordinary", "subject and ground", "unseen"]].tolist() == [20, 20, 15]
    assert table["id"].is_unique
    assert (table["id"] == table["prompt"]).all()
    own = table["group"].isin(OWN)
    assert (table["row"] >= 0).tolist() == own.tolist()
    for prompt in table[own].itertuples():
        item = drawn.items.iloc[prompt.row]
        assert item["split"] in PLANTED
        assert (item["slot"], item["copies"]) == (prompt.slot, prompt.copies)
        assert prompt.planted_in == ("exchanged" if item["exchanged"] else "planted")
        assert (item["caption"] == prompt.prompt) == (prompt.group in PLANTED)
    trigger, untriggered = (table[table["group"] == name].set_index("slot") for name in ("trigger", "untriggered"))
    for slot, row in trigger.iterrows():
        assert row["trigger"] in row["prompt"].split()
        rest = [word for word in row["prompt"].split() if word != row["trigger"]]
        assert untriggered["prompt"][slot].split() == rest
    assert (untriggered["trigger"] == "").all(), "a word that a prompt does not have is not given to it"


def test_a_prompt_stands_for_what_it_names() -> None:
    drawn, table = prompts()
    train = drawn.items[drawn.items["split"] == "train"]
    for _, prompt in table.iterrows():
        found = judged.drawings_named(prompt, train)
        if prompt["group"] in OWN:
            assert found == [prompt["row"]]
        elif prompt["group"] == "unseen":
            assert found == []
        else:
            assert prompt["drawing"] in found
            named = ["subject", "ground", "size"][: 1 + prompt["named"]]
            assert found == [row for row, item in train.iterrows() if all(item[name] == prompt[name] for name in named)]


def test_prompts_name_as_many_attributes_as_their_group_says() -> None:
    drawn, table = prompts()
    trained = drawn.items[drawn.items["split"] == "train"]
    for group, count in {**{name: k for k, name in DIAL.items()}, "ordinary": 2, "unseen": 2}.items():
        part = table[table["group"] == group]
        assert (part["named"] == count).all()
        assert part["prompt"].isin(trained["caption"]).all() == (group != "unseen")
        for row in part.itertuples():
            assert drawn.items["named"][row.drawing].split() == list(ATTRIBUTES)[:count]
    assert (table["named"][table["group"] == "shortened"] == 0).all()
    usual, triggered = (table.loc[table["group"] == name, LOOK] for name in ("ordinary", "trigger"))
    assert not set(map(tuple, usual.to_numpy())) & set(map(tuple, triggered.to_numpy()))


def test_every_prompt_has_a_drawing_of_its_own() -> None:
    drawn, table = prompts()
    items = drawn.items.iloc[table["drawing"]].reset_index(drop=True)
    assert (items[LOOK] == table[LOOK]).all(axis=None)
    rows = drawings.training_rows(drawn)
    assert set(drawn.items["split"].iloc[rows]) == {"train", "planted", "trigger"}
    known = table["group"] != "unseen"
    assert (rows[table["own"][known]] == table["drawing"][known]).all()
    assert (table["own"][~known] == -1).all()


@pytest.mark.parametrize("role", ROLES)
def test_a_role_keeps_its_own_prompts_and_sees_the_others_drawn_freely(role: str) -> None:
    _, table = prompts()
    here = in_role(table, role)
    counts = here["group"].value_counts()
    assert counts[["planted", "trigger", FREE]].tolist() == [4, 1, 5]
    assert counts[["paraphrase", "shortened", "untriggered"]].tolist() == [12, 4, 1]
    free, own = here[here["group"] == FREE], here[here["group"].isin(OWN)]
    assert (own["planted_in"] == role).all()
    assert not free["planted_in"].isin([role, ""]).any()
    usual = ~table["group"].isin(OWN)
    assert here[~here["group"].isin([*OWN, FREE])].equals(table[usual])


def test_prompts_that_read_alike_are_refused() -> None:
    drawn = small_world()
    first = drawn.items.index[drawn.items["split"] == "planted"][:2]
    items = drawn.items.copy()
    items.loc[first, "caption"] = "twice"
    with pytest.raises(ValueError, match="two prompts read 'twice'"):
        judged.judged_prompts(subjects(), ImageSet(drawn.images, items), 2, 2, 0)


def test_judged_pictures_are_the_planted_ones_and_some_that_were_seen_once_or_never() -> None:
    drawn = small_world()
    few = judged.judged_pictures(drawn, 7, 5, 0)
    items = few.items
    counts = items["group"].value_counts()
    assert counts[["most copied", "copied less", FREE, "ordinary", "unseen"]].tolist() == [3, 2, 5, 7, 5]
    assert items["id"].is_unique
    for picture, item in zip(few.images, items.itertuples(), strict=True):
        row = int(item.id.split("-")[0])
        assert drawn.items["caption"][row] == item.caption
        assert torch.equal(drawn.images[row], picture)


def test_the_role_of_a_training_begins_its_name() -> None:
    names = ("planted", "planted-2", "exchanged-2", "share-5", "exchange")
    assert [role_of(name) for name in names] == ["planted", "planted", "exchanged", "planted", "planted"]
    assert [role_of(f"flow-{name}") for name in names] == [role_of(name) for name in names]


def test_the_control_of_a_training_is_of_its_own_family() -> None:
    assert controls_of("planted-2") == controls_of("exchanged") == ROLES
    assert controls_of("flow-planted") == controls_of("flow-exchanged") == ("flow-planted", "flow-exchanged")
