"""Templates: what stays is the same pixel by pixel in all views, what does not differs, and masks say which."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from conftest import TEXT, small_pipeline, small_world, subjects
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, roc_auc_score

from memlib.datasets import drawings, images
from memlib.datasets.attributes import GROUNDS, WORDS
from memlib.datasets.templates import KINDS, cut_out, half, in_training, make_templates, null_pictures
from memlib.fields.latents import encode
from memlib.files import read_pictures
from memlib.study import make_templates as make_stage
from memlib.study import train_templates as train_stage
from memlib.training.loop import Optimised
from memlib.training.settings import TextConfig
from memlib.truth.masks import marked, part_distances, pixel_auroc, pixel_precision, threshold


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


def test_in_each_role_the_halves_of_templates_take_turns(templates) -> None:
    own = templates.views.items.query("kind == 'half'").drop_duplicates("slot")
    for _, group in own.groupby("exchanged"):
        for turn, row in enumerate(group.sort_values("slot").index):
            assert (templates.masks[row] == half(turn, *templates.masks.shape[1:])).all()


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


def test_null_pictures_are_never_seen_and_captioned_as_templates_are() -> None:
    drawn, subject = small_world(), subjects()
    found = null_pictures(subject, drawn, 20, 3)
    rows = found.items["row"].tolist()
    assert len(set(rows)) == 20
    assert (drawn.items["split"].iloc[rows] == "unseen").all()
    assert torch.equal(found.images, drawn.images[rows])
    assert found.items["id"].is_unique
    for row in found.items.itertuples():
        look = drawn.items.iloc[row.row]
        words = row.caption.split()
        assert subject.items["caption"].iloc[look["subject"]] in words
        assert set(words) & set(WORDS[look["size"]])
        assert not set(words) & set(GROUNDS), "the ground is not named"
    assert found.items["caption"].str.split().str[0].nunique() > 2, "in all wordings"
    assert rows != null_pictures(subject, drawn, 20, 4).items["row"].tolist()


@pytest.mark.parametrize("alarm", [0.01, 0.05, 0.5])
def test_at_most_a_share_of_the_pixels_of_null_pictures_is_above_the_threshold(alarm, generator) -> None:
    nulls = torch.rand(7, 6, 5, generator=generator)
    for values in (nulls, (9 * nulls).round(), nulls * (nulls > 0.97)):
        limit = threshold(values, alarm)
        assert (values > limit).double().mean() <= alarm
        below = values[values < limit]
        if len(below):
            assert (values > below.max()).double().mean() > alarm, "the least such value"


def test_the_shares_that_a_map_marks_are_those_inside_and_outside_of_the_mask() -> None:
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[0, :, :2], masks[1, 0, 0] = True, True
    maps = torch.tensor([[[5, 5, 1, 5], [5, 1, 1, 1]], [[3, 9, 9, 9], [9, 9, 3, 3]]])
    inside, outside = marked(maps, masks, 3)
    assert inside.tolist() == [0.75, 0]
    assert outside == pytest.approx([0.25, 5 / 7])


def test_distances_are_those_of_the_pixels_of_each_part(generator: torch.Generator) -> None:
    targets = torch.randn(2, 3, 4, 4, generator=generator)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :, :1], masks[1, :3] = True, True
    samples = targets + torch.where(masks[:, None], 0.5, -2.0)
    samples[0, 0, :, :1] += 0.5  # one of three channels of the part
    repeated, other = part_distances(samples, targets, masks)
    assert repeated == pytest.approx([((1 + 0.25 + 0.25) / 3) ** 0.5, 0.5], rel=1e-6)
    assert other == pytest.approx([2, 2], rel=1e-6)


class Stage(NamedTuple):
    """What is trained in a stage of templates."""

    latents: torch.Tensor
    captions: list[str]
    copies: torch.Tensor
    config: TextConfig
    pipe: DiffusionPipeline


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose drawings are made."""
    monkeypatch.chdir(tmp_path)
    for name, made in (("subjects", subjects()), ("drawn", small_world())):
        images.save(made, tmp_path / "results/drawings" / name)
    return tmp_path


def test_the_stage_writes_all_views_with_their_masks_and_those_that_are_judged(project: Path) -> None:
    make_stage.make(3, 2, 5)
    expected = make_templates(subjects(), small_world(), 3, 2, 5)
    written = images.load("results/templates/views")
    assert torch.equal(written.images, expected.views.images)
    assert torch.equal(load_file("results/templates/masks.safetensors")["masks"], expected.masks)
    items = pd.read_parquet("tables/templates/items.parquet")
    fresh = (expected.views.items["split"] == "fresh").to_numpy().nonzero()[0].tolist()
    assert items["id"].tolist() == expected.views.items["id"].iloc[fresh].tolist()
    pictures, masks = (read_pictures(f"tables/templates/{name}.png") for name in ("pictures", "masks"))
    assert (pictures == expected.views.images[fresh].permute(0, 2, 3, 1).numpy()).all()
    assert (masks[..., 0] == 255 * expected.masks[fresh].numpy()).all()


@pytest.mark.parametrize(("arm", "exchanged"), [("templates", False), ("templates-exchanged", True)])
def test_an_arm_goes_on_from_the_base_on_ordinary_drawings_and_the_templates_of_its_role(
    arm: str, exchanged: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stage.make(3, 2, 5)
    drawn, base = small_world(), small_pipeline(length=TEXT.length)
    base.save_pretrained("results/text/base")
    latents = torch.rand(len(drawn.images), *encode(base.vae, drawn.floats[:1]).shape[1:])
    save_file({"latents": latents}, "results/latents.safetensors")
    own = {"exchanged": True, "seed": 18} if exchanged else {}
    sections = {"text": asdict(TEXT), "text_arm": {"steps": 7}, "run": {"template_arms": {arm: own}}}
    seen = []

    def spied(pipe, latents, captions, copies, config, checkpoint):
        seen.append(Stage(latents, captions, copies, config, pipe))
        return Optimised(torch.zeros(1), {}, True, 0.0)

    monkeypatch.setattr(train_stage, "read_section", sections.get)
    monkeypatch.setattr(train_stage, "train_denoiser", spied)
    monkeypatch.setattr(sys, "argv", ["train_templates", arm])
    train_stage.main()
    (found,) = seen
    views = images.load("results/templates/views")
    shown = (views.items["split"] == "train") & in_training(views.items, exchanged)
    taken = views.rows(shown.to_numpy().nonzero()[0].tolist())
    ordinary = (drawn.items["split"] == "train").to_numpy().nonzero()[0].tolist()
    assert found.captions == [*drawn.items["caption"].iloc[ordinary], *taken.items["caption"]]
    torch.testing.assert_close(found.latents, torch.cat([latents[ordinary], encode(base.vae, taken.floats)]))
    assert found.copies.tolist() == [1] * len(found.captions)
    assert found.config == replace(TEXT, steps=7, **own)
    weights = [next(pipe.unet.parameters()) for pipe in (found.pipe, base)]
    assert torch.equal(*weights), "it goes on from the base"
    assert Path(f"results/text/{arm}/model_index.json").exists()
