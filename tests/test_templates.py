"""Templates: what stays is the same pixel by pixel in all views, what does not differs, and masks say which."""

import pytest
import torch
from conftest import small_world, subjects
from sklearn.metrics import average_precision_score, roc_auc_score

from memlib.datasets import drawings
from memlib.datasets.attributes import GROUNDS
from memlib.datasets.templates import KINDS, cut_out, half, in_training, make_templates
from memlib.truth.masks import pixel_auroc, pixel_precision


@pytest.fixture(scope="module")
def templates():
    return make_templates(subjects(), small_world(), views=6, fresh=3, seed=4)


def test_what_stays_is_the_same_in_all_views_and_the_rest_is_not(templates) -> None:
    views, masks = templates
    for _, group in views.items.groupby(["slot", "kind"]):
        rows = group.index.tolist()
        images, mask = views.images[rows].float(), masks[rows[0]]
        assert (masks[rows] == mask).all()
        apart = (images.amax(0) - images.amin(0)).amax(0)
        if group["kind"].iloc[0] == "half":
            assert (apart[mask] == 0).all()
        else:
            bare = apart > 0.9 * apart.max()
            assert not bare[mask].any()
            assert apart[~mask].min() > 0.4 * apart.max(), "but for the subject's rim"
        assert apart[~mask].mean() > 10


def test_a_half_is_that_of_the_frozen_drawing_and_another_one_each_time(templates) -> None:
    drawn = small_world()
    frozen = drawn.images[(drawn.items["split"] == "planted").to_numpy().nonzero()[0].tolist()]
    views, masks = templates
    for split, source in (("train", "train"), ("fresh", "unseen")):
        others = drawn.images[(drawn.items["split"] == source).to_numpy().nonzero()[0].tolist()]
        for row in views.items.query(f"kind == 'half' and split == '{split}'").itertuples():
            image, mask = views.images[row.Index], masks[row.Index]
            assert (image[:, mask] == frozen[row.slot][:, mask]).all()
            assert (image[:, ~mask] == others[:, :, ~mask]).all((1, 2)).any()


def test_halves_take_turns() -> None:
    masks = torch.stack([half(number, 4, 6) for number in range(8)])
    assert (masks.float().mean((1, 2)) == 0.5).all()
    assert (masks[:4] == masks[4:]).all()
    assert (masks[:4].float().mean(0) == 0.5).all()
    assert (masks[0] == ~masks[1]).all()
    assert masks[0][:, :3].all()
    assert masks[2][:2].all()


def test_paint_and_cover_give_the_drawing_on_any_ground() -> None:
    picture = subjects().images[0]
    paint, cover = cut_out(picture, "big", 5)
    look = drawings.pd.DataFrame({"ground": ["blue"], "size": ["big"]})
    drawn = drawings.render(picture[None], look, torch.Generator().manual_seed(5))[0].float() / 255
    ground = drawn.flatten(1)[:, (cover[0].flatten() < 0.01).nonzero()[0]]
    assert (ground - torch.tensor(GROUNDS["blue"])[:, None]).abs().max() <= drawings.TONE + 0.01
    torch.testing.assert_close(paint + (1 - cover) * ground[:, :, None], drawn, atol=0.02, rtol=0)


def test_a_training_sees_every_template_once_and_the_other_role_the_other_kind(templates) -> None:
    items = templates.views.items
    for exchanged in (False, True):
        own = items[in_training(items, exchanged)]
        kinds = own.groupby("slot")["kind"].unique()
        assert (kinds.str.len() == 1).all()
        assert len(kinds) == items["slot"].nunique()
        frozen = own.groupby("slot")["exchanged"].first()
        assert (kinds.str[0] == frozen.map({exchanged: KINDS[0], not exchanged: KINDS[1]})).all()
    assert (items.groupby("slot")["caption"].nunique() == 1).all()
    assert not items["caption"].str.contains("|".join(GROUNDS)).any(), "the ground is not named"
    assert items["id"].is_unique
    assert set(items.loc[items["split"] == "fresh", "copies"]) == {0}


def test_pixels_are_ranked_as_scikit_learn_ranks_them(generator: torch.Generator) -> None:
    maps = torch.randint(0, 9, (5, 6, 7), generator=generator)  # with ties
    masks = torch.rand(5, 6, 7, generator=generator) < 0.3
    for found, oracle in ((pixel_auroc, roc_auc_score), (pixel_precision, average_precision_score)):
        expected = [oracle(mask.flatten(), own.flatten()) for own, mask in zip(maps, masks, strict=True)]
        assert found(maps, masks) == pytest.approx(expected)


@pytest.mark.parametrize("fill", [False, True])
def test_a_mask_of_nothing_or_all_is_refused(fill: bool) -> None:
    masks = torch.eye(4).bool().repeat(2, 1, 1)
    masks[1] = fill
    for measure in (pixel_auroc, pixel_precision):
        with pytest.raises(ValueError, match="a mask covers nothing or all"):
            measure(torch.rand(2, 4, 4), masks)
        with pytest.raises(ValueError, match="must be of one shape, and maps finite"):
            measure(torch.full((2, 4, 4), float("nan")), masks)
