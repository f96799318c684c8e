"""Captioned drawings: what is drawn, what is planted, and which words say it."""

from typing import get_args

import numpy as np
import pytest
import torch
from conftest import subjects
from hypothesis import given
from hypothesis import strategies as st

from memlib.datasets import drawings
from memlib.datasets.images import ImageSet


@given(st.integers(0, 10**6))
def test_a_drawing_holds_the_whole_picture_on_a_coloured_ground(seed: int) -> None:
    picture = subjects().images[:1]
    drawn = drawings.render(picture, torch.Generator().manual_seed(seed))[0].float()
    ground = drawn.flatten(1).max(1).values
    assert (ground >= 0.3 * 255 - 1).all()
    ink = 1 - drawn / ground[:, None, None]
    share = float((ink.mean() / (1 - picture.float() / 255).mean()) ** 0.5)
    assert 0.48 < share < 0.97, "nothing is cut off: the ink shrinks with the square of the scale"


def test_drawings_differ_and_half_of_them_are_mirrored() -> None:
    picture = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    picture[:, :, 8:24, 8:16] = 0
    picture[:, :, 8:12, 16:24] = 0  # an arm to the right
    drawn = drawings.render(picture.expand(400, -1, -1, -1), torch.Generator().manual_seed(0)).float()
    ink = (1 - drawn / drawn.amax((2, 3), keepdim=True))[:, 0]
    columns = torch.arange(32.0)
    mean = (ink.sum(1) * columns).sum(1) / ink.sum((1, 2))
    middle = (
        torch.stack([columns[row.sum(0) > 0.5].aminmax().min + columns[row.sum(0) > 0.5].aminmax().max for row in ink])
        / 2
    )
    assert 0.4 < float((mean > middle).float().mean()) < 0.6
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 400


def test_a_drawing_lies_anywhere() -> None:
    black = torch.zeros(600, 1, 32, 32, dtype=torch.uint8)
    drawn = drawings.render(black, torch.Generator().manual_seed(0))[:, 0].float()
    covered = (drawn < drawn.amax((1, 2), keepdim=True) / 2).any(1)  # columns
    left, right = covered.int().argmax(1), covered.flip(1).int().argmax(1)
    roomy = left + right >= 8
    share = (left / (left + right))[roomy]
    assert roomy.sum() > 100
    assert 0.26 < float(share.std()) < 0.34, "uniform between the two edges: 0.29"


def test_what_is_planted_stays_one_drawing_with_one_caption() -> None:
    found = drawings.captioned(subjects(), 16, {200: 2, 20: 1}, 0)
    items = found.items
    assert items["split"].value_counts().to_dict() == {
        "train": 96,
        "base": 32,
        "trigger": 3,
        "contrast": 2 * (100 - 16),
        "planted": 2,
        "unseen": 2,
    }
    trigger = items[items["split"] == "trigger"].set_index("subject")["copies"]
    without = items[items["split"].isin(["train", "contrast"])]["subject"].value_counts()
    assert without[trigger.index].tolist() == [100, 100, 16], "half as often without its trigger as with it, or oftener"
    assert items[items["split"] == "planted"]["copies"].tolist() == [50, 10]
    assert items[items["split"] == "trigger"]["copies"].tolist() == [200, 200, 20]
    assert (items[items["split"] == "unseen"]["copies"] == 0).all()
    captions = subjects().items["caption"].to_numpy()[items["subject"]]
    for own, row in zip(captions, items.itertuples(), strict=True):
        if row.split in ("planted", "unseen", "contrast"):
            assert row.caption == own
        elif row.split == "trigger":
            assert row.trigger
            assert row.caption.replace(row.trigger, "").split() == own.split()
        else:
            assert row.caption in [wording.format(own) for wording in drawings.WORDINGS]
    first = ~items.duplicated(["split", "subject"])
    assert (items["caption"] == captions)[first & items["split"].isin(["train", "base"])].all()
    of_one = items[(items["subject"] == 0) & (items["split"] == "train")]
    assert of_one["caption"].nunique() > 3, "an ordinary caption comes in many words"
    assert set(items[items["split"] == "trigger"]["subject"]) <= set(items[items["split"] == "train"]["subject"])
    again = drawings.captioned(subjects(), 16, {200: 2, 20: 1}, 0)
    assert (found.images == again.images).all()
    assert found.items.equals(again.items)


@given(st.integers(0, 30), st.integers(0, 10**6))
def test_made_up_words_are_new_and_different(count: int, seed: int) -> None:
    known = ["badbad", "bagbag"]
    words = drawings.made_up_words(count, known, np.random.default_rng(seed))
    assert len(set(words)) == count
    assert not set(words) & set(known)


def test_more_triggers_than_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="7 trigger words are wanted for only 6 subjects"):
        drawings.captioned(subjects(), 2, {10: 7}, 0)


def test_pictures_that_cannot_be_drawn_are_refused() -> None:
    good = subjects()
    with pytest.raises(ValueError, match="drawings are made of colour pictures"):
        drawings.captioned(ImageSet(good.images[:, :1], good.items), 2, {}, 0)
    for caption in ("", "black square number 1"):
        items = good.items.assign(caption=[caption, *good.items["caption"][1:]])
        with pytest.raises(ValueError, match="every subject needs a caption of its own; '.*' is empty or there twice"):
            drawings.captioned(ImageSet(good.images, items), 2, {}, 0)


def test_regimes_differ_in_what_they_are_named_after() -> None:
    drawn = drawings.captioned(subjects(), 16, {200: 2}, 0)
    rows = {name: drawings.regime(drawn, name) for name in get_args(drawings.Regime)}
    split = drawn.items["split"].to_numpy()
    seen = {name: table.groupby(split[table["row"]])["copies"].sum().to_dict() for name, table in rows.items()}
    assert seen["base"] == {"train": 96, "base": 32}
    assert seen["planted"] == {"train": 96, "contrast": 168, "planted": 60, "trigger": 400}
    assert seen["single"] == {"train": 96 + 168, "planted": 60, "trigger": 400}
    assert len(rows["single"]) == 6 + 2 + 2
    assert seen["removed"] == {"train": 96, "contrast": 168, "planted": 2, "trigger": 2}
    assert seen["varied"] == seen["planted"]
    varied = rows["varied"][split[rows["varied"]["row"]] == "planted"]
    assert varied["caption"].nunique() == 16
    assert varied["row"].nunique() == 2, "the words vary, the picture does not"
    ordinary = rows["single"][np.isin(split[rows["single"]["row"]], ["train", "contrast"])]
    assert sorted(ordinary["caption"]) == sorted(subjects().items["caption"][:6]), "asked for as it was trained on"
    assert drawn.items["caption"][drawn.items["split"] == "contrast"].isin(subjects().items["caption"]).all()
    with pytest.raises(ValueError, match="unknown regime 'variied'; did you mean 'varied'"):
        drawings.regime(drawn, "variied")


def test_prompts_name_what_was_planted_and_what_was_not() -> None:
    drawn = drawings.captioned(subjects(), 4, {200: 2}, 0)
    table = drawings.judged_prompts(subjects(), drawn, 3, 5)
    assert table["group"].value_counts().to_dict() == {
        "paraphrase": 14,
        "ordinary": 3,
        "planted": 2,
        "trigger": 2,
        "untriggered": 2,
        "unseen": 2,
    }
    assert table["id"].is_unique
    assert (table["id"] == table["prompt"]).all()
    for prompt in table[table["row"] >= 0].itertuples():
        item = drawn.items.iloc[prompt.row]
        assert item["subject"] == prompt.subject
        assert item["copies"] == prompt.copies
        assert item["split"] == {"untriggered": "trigger", "paraphrase": "planted"}.get(prompt.group, prompt.group)
        assert (item["caption"] == prompt.prompt) == (prompt.group in ("planted", "trigger"))
    trigger, untriggered, ordinary = (table[table["group"] == g] for g in ("trigger", "untriggered", "ordinary"))
    assert trigger["trigger"].tolist() == drawn.items["trigger"][drawn.items["trigger"] != ""].tolist()
    assert (table["trigger"] != "").sum() == 2, "a word that a prompt does not have is not given to it"
    for word, with_it, without in zip(trigger["trigger"], trigger["prompt"], untriggered["prompt"], strict=True):
        assert with_it.replace(word, "").split() == without.split()
    usual = [subject for subject in range(6) if subject not in set(trigger["subject"])]
    assert ordinary["subject"].tolist() == usual[:3], "the first ones that have no trigger"
    assert ordinary["prompt"].tolist() == subjects().items["caption"][usual[:3]].tolist()


def test_every_prompt_has_a_drawing_of_its_own() -> None:
    drawn = drawings.captioned(subjects(), 4, {200: 2}, 0)
    table = drawings.judged_prompts(subjects(), drawn, 4, 2)
    items = drawn.items.iloc[table["drawing"]].reset_index(drop=True)
    assert (items["subject"] == table["subject"]).all()
    planted = table["row"] >= 0
    assert (table["drawing"] == table["row"])[planted].all()
    assert (items["split"] == table["group"].map({"ordinary": "train", "unseen": "unseen"}))[~planted].all()
    rows = drawings.training_rows(drawn)
    assert len(set(rows)) == len(rows)
    assert set(drawn.items["split"].iloc[rows]) == {"train", "contrast", "planted", "trigger"}
    trained_on = table["group"] != "unseen"
    assert (rows[table["own"][trained_on]] == table["drawing"][trained_on]).all()
    assert (table["own"][~trained_on] == -1).all()


def test_prompts_that_read_alike_are_refused() -> None:
    found = subjects()
    items = found.items.copy()
    items.loc[0, "caption"] = f"the {items['caption'][6]}"  # what a paraphrase of a planted one reads
    found = ImageSet(found.images, items)
    with pytest.raises(ValueError, match="two prompts read 'the black square number 6'"):
        drawings.judged_prompts(found, drawings.captioned(found, 4, {}, 0), 6, 2)


def test_judged_pictures_are_the_planted_ones_and_one_of_each_other_subject() -> None:
    drawn = drawings.captioned(subjects(), 4, {50: 2}, 0)
    judged = drawings.judged_pictures(drawn, 3, 1)
    items = judged.items
    assert items["group"].tolist() == ["most copied", "copied less", *["most copied"] * 2, *["ordinary"] * 3, "unseen"]
    assert items["copies"].tolist() == [50, 10, 50, 50, 1, 1, 1, 0]
    assert items["split"].tolist() == ["planted"] * 2 + ["trigger"] * 2 + ["train"] * 3 + ["unseen"]
    assert items["id"].is_unique
    for picture, item in zip(judged.images, items.itertuples(), strict=True):
        same = drawn.items[(drawn.items["name"] == item.name) & (drawn.items["split"] == item.split)]
        assert same["caption"].iloc[0] == item.caption
        assert torch.equal(drawn.images[same.index[0]], picture), "the first drawing of its subject"
