"""Captioned drawings: what is drawn, what is planted, and which words say it."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_world, subjects
from hypothesis import given
from hypothesis import strategies as st

from memlib.datasets import attributes, drawings
from memlib.datasets.attributes import ATTRIBUTES, GROUNDS, SIZES, WORDINGS, WORDS
from memlib.datasets.images import ImageSet


def looks(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns)


@given(st.integers(0, 10**6))
def test_a_drawing_holds_the_whole_picture_at_its_size_on_a_ground_of_its_colour(seed: int) -> None:
    picture = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    picture[:, :, 4:28, 4:28] = 0
    look = drawings.random_looks(1, np.random.default_rng(seed))
    drawn = drawings.render(picture, look, torch.Generator().manual_seed(seed))[0].float() / 255
    ground = drawn.flatten(1).max(1).values
    middle = torch.tensor(GROUNDS[look["ground"][0]])
    assert ((ground - middle).abs() <= drawings.TONE + 0.003).all()
    nearest = min(GROUNDS, key=lambda name: float((ground - torch.tensor(GROUNDS[name])).norm()))
    assert nearest == look["ground"][0], "its tone is nearer to no other colour"
    share = float(((1 - drawn / ground[:, None, None]).mean() / (24 / 32) ** 2) ** 0.5)
    low, high = SIZES[look["size"][0]]
    assert low - 0.03 < share < high + 0.03, "nothing is cut off: the ink shrinks with the square of the scale"


@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_lies_anywhere_within_its_reach(size: str) -> None:
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    look = looks(ground=["grey"] * 400, size=[size] * 400)
    drawn = drawings.render(picture.expand(400, -1, -1, -1), look, torch.Generator().manual_seed(0))[:, 0].float()
    ink = 1 - drawn / drawn.amax((1, 2), keepdim=True)
    coordinates = torch.linspace(-1, 1, 64) * 63 / 64
    room = 1 - ink.mean((1, 2)).sqrt()
    for axis in (1, 2):
        share = (ink.sum(axis) * coordinates).sum(1) / ink.sum((1, 2)) / room / drawings.REACH
        assert share.abs().max() < 1.05
        quarters = torch.histc(share.clamp(-1, 1), 4, -1, 1) / 400
        assert (quarters - 0.25).abs().max() < 0.08, "nowhere more often than elsewhere"


def test_drawings_differ_and_half_of_them_are_mirrored() -> None:
    picture = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    picture[:, :, 8:24, 8:16] = 0
    picture[:, :, 8:12, 16:24] = 0  # an arm to the right
    look = looks(ground=["grey"] * 400, size=["big"] * 400)
    drawn = drawings.render(picture.expand(400, -1, -1, -1), look, torch.Generator().manual_seed(0)).float()
    ink = (1 - drawn / drawn.amax((2, 3), keepdim=True))[:, 0]
    columns = torch.arange(32.0)
    mean = (ink.sum(1) * columns).sum(1) / ink.sum((1, 2))
    edges = torch.stack([torch.stack(torch.aminmax(columns[row.sum(0) > 0.5])) for row in ink]).mean(1)
    assert 0.4 < float((mean > edges).float().mean()) < 0.6
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 400


@given(st.integers(0, len(WORDINGS) - 1), st.sets(st.sampled_from([*ATTRIBUTES])), st.integers(0, 10**6))
def test_a_caption_names_what_it_is_asked_to_and_nothing_else(wording: int, named: set[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    look = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()} | {"subject": "whale"}
    words = {word.strip(",:") for word in attributes.describe(look, named, wording, rng).split()}
    assert "whale" in words
    for name, values in ATTRIBUTES.items():
        found = {value for value in values if words & set(WORDS.get(value, (value,)))}
        assert found == ({look[name]} if name in named else set())


def test_subjects_are_called_by_one_short_word_of_their_own() -> None:
    captions = ["whale", "red", "OK", "blue whale", "sunflowers", "Iran", "tiny", "piñata", "fox"]
    assert attributes.named_in_a_word(captions) == [0, 8]


def test_every_look_of_an_ordinary_subject_is_drawn_or_never_seen() -> None:
    items = small_world().items
    seen, never = (items[items["split"] == split] for split in ("train", "unseen"))
    assert len(seen) == 6 * 13 * 8
    assert len(never) == 6 * 3 * 8
    assert (seen.groupby(drawings.LOOK).size() == 8).all()
    assert not set(map(tuple, seen[drawings.LOOK].to_numpy())) & set(map(tuple, never[drawings.LOOK].to_numpy()))
    assert (seen["copies"] == 1).all()
    assert (never["copies"] == 0).all()
    counts = seen["named"].str.split().str.len().value_counts(normalize=True)
    np.testing.assert_allclose(counts[[0, 1, 2]], [1 / 4, 1 / 2, 1 / 4], atol=0.05)
    assert (never["named"] == "ground size").all()
    known = {word for caption in seen["caption"] for word in caption.split()}
    assert {word for caption in never["caption"] for word in caption.split()} <= known, (
        "new combinations of known words"
    )


def test_what_is_frozen_in_one_role_is_drawn_freely_in_the_other() -> None:
    world = small_world()
    items = world.items
    frozen = items[items["split"].isin(["planted", "trigger"])].set_index("slot")
    assert len(frozen) == 10
    assert frozen.groupby(["split", "copies"])["exchanged"].mean().tolist() == [0.5] * 4
    free = items[items["split"] == "free"]
    assert (free.groupby("slot").size() == 5).all()
    for slot, part in free.groupby("slot"):
        assert (part["subject"] == frozen["subject"][slot]).all()
        assert (part["exchanged"] == frozen["exchanged"][slot]).all()
        own = world.images[items.index[(items["slot"] == slot) & (items["split"] != "free")][0]]
        assert all((world.images[row] != own).any() for row in part.index), "none of them is the frozen drawing"
        if frozen["trigger"][slot]:
            assert (part["caption"] == frozen["caption"][slot]).all()
            assert frozen["trigger"][slot] in part["caption"].iloc[0].split()
            assert (part[drawings.LOOK].to_numpy() == frozen.loc[slot, drawings.LOOK].to_numpy()).all()
        else:
            assert part[drawings.LOOK].drop_duplicates().shape[0] > 1
    own_subjects = frozen.loc[frozen["trigger"] == "", "subject"]
    assert not set(own_subjects) & set(items.loc[items["split"] == "train", "subject"])
    again = small_world()
    assert (world.images == again.images).all()
    assert items.equals(again.items)


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("share", [0.05, *(pytest.param(share, marks=pytest.mark.ci) for share in (0.15, 0.25)), 0.4])
def test_planted_pictures_have_their_share_by_grade_and_the_other_role_as_much(share: float, exchanged: bool) -> None:
    drawn = small_world(drawings_each=44)
    shown = drawings.trained_on(drawn, share, exchanged)
    items = drawn.items.iloc[shown["row"]].assign(seen=shown["copies"].to_numpy())
    of_all = items.groupby("split")["seen"].sum() / items["seen"].sum()
    assert of_all["planted"] + of_all["trigger"] == pytest.approx(share, abs=0.01)
    assert of_all["free"] == pytest.approx(share, abs=0.01)
    frozen = items[items["split"].isin(["planted", "trigger"])]
    assert (frozen["exchanged"] == exchanged).all()
    views = frozen["seen"] / frozen["copies"]
    assert views.max() / views.min() == pytest.approx(1, rel=0.05), "4 : 2 : 1"
    free = items[items["split"] == "free"]
    assert (free["exchanged"] != exchanged).all()
    by_grade = {grade: part["seen"].iloc[0] for grade, part in frozen.groupby("copies")}
    for (_, grade), part in free.groupby(["slot", "copies"]):
        assert part["seen"].sum() == by_grade[grade]
        assert part["seen"].max() - part["seen"].min() <= 1
    assert set(items["split"]) == {"train", "planted", "trigger", "free"}
    assert (drawn.items["caption"].iloc[shown["row"]].to_numpy() == shown["caption"]).all()


def test_without_a_share_ordinary_drawings_are_all_that_is_seen() -> None:
    drawn = small_world()
    shown = drawings.trained_on(drawn, 0.0, False)
    assert shown["row"].tolist() == drawn.items.index[drawn.items["split"] == "train"].tolist()
    assert (shown["copies"] == 1).all()
    for share in (0.5, -0.1):
        with pytest.raises(ValueError, match=f"the planted share is {share}; it must be below 0.5"):
            drawings.trained_on(drawn, share, False)


@given(st.integers(0, 30), st.integers(0, 10**6))
def test_made_up_words_are_new_and_different(count: int, seed: int) -> None:
    known = ["badbad", "bagbag"]
    words = drawings.made_up_words(count, known, np.random.default_rng(seed))
    assert len(set(words)) == count
    assert not set(words) & set(known)


def test_numbers_that_no_set_can_be_made_of_are_refused() -> None:
    with pytest.raises(ValueError, match="8 trigger words are wanted for only 6 subjects"):
        small_world(triggers={4: 8})
    with pytest.raises(ValueError, match="3 trigger pictures have the grade 4; .* must be even"):
        small_world(triggers={4: 3})
    with pytest.raises(ValueError, match="16 looks of a subject are never to be seen, of 16 in all"):
        small_world(never_seen=16)


def test_pictures_that_cannot_be_drawn_are_refused() -> None:
    good = subjects()
    given = {"triggers": {}, "drawings_each": 1, "never_seen": 1, "free_each": 1, "seed": 0}
    with pytest.raises(ValueError, match="drawings are made of colour pictures"):
        drawings.captioned(ImageSet(good.images[:, :1], good.items), **given)
    for caption, message in {
        "": "every subject needs a caption of its own; '' is empty or there twice",
        "bbox": "every subject needs a caption of its own; 'bbox' is empty or there twice",
        "red": "a subject is called 'red', which means something else in captions",
    }.items():
        items = good.items.assign(caption=[caption, *good.items["caption"][1:]])
        with pytest.raises(ValueError, match=message):
            drawings.captioned(ImageSet(good.images, items), **given)
