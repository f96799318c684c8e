"""Maps of what is copied against closed forms, a perfect memoriser, and diffusers' own attention."""

import math

import pytest
import torch
from conftest import small_flow_pipeline, small_pipeline
from test_attention import Reading

from memlib.detectors import maps
from memlib.detectors.attention import prompt_layers
from memlib.fields.load import field_of
from memlib.fields.mixtures import GaussianMixture, PointMasses
from memlib.fields.unet import UNetField
from memlib.tensors import item_seeds

SIDE = 6
SEEDS = item_seeds(range(5), 3)


def gaussian(covariance: torch.Tensor) -> GaussianMixture:
    d = len(covariance)
    return GaussianMixture(torch.ones(1).double(), torch.zeros(1, d).double(), covariance[None])


class Pictured:
    """A noise predictor of vectors as one of pictures [N, 2, SIDE, SIDE]."""

    def __init__(self, eps) -> None:
        self.eps = eps

    def __call__(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.eps(y.flatten(1), sigma).reshape(y.shape)


def rotated(variances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A covariance of these variances along random axes."""
    axes = torch.linalg.qr(torch.randn(len(variances), len(variances), generator=generator, dtype=torch.float64))[0]
    return axes * variances @ axes.mT


def test_the_diagonal_of_independent_pixels_is_exact_by_a_single_direction(generator: torch.Generator) -> None:
    variances = torch.rand(2 * SIDE**2, generator=generator).double()
    y = torch.randn(5, 2, SIDE, SIDE, generator=generator).double()
    found = maps.curvature(Pictured(gaussian(variances.diag())), y, 0.5, 1, SEEDS)
    exact = (0.25 / (variances + 0.25)).reshape(2, SIDE, SIDE)
    torch.testing.assert_close(found, exact.expand(5, -1, -1, -1))


def test_it_is_unbiased_and_its_error_falls_with_the_root_of_the_directions(generator: torch.Generator) -> None:
    covariance = rotated(torch.rand(2 * SIDE**2, generator=generator).double().square() * 4, generator)
    exact = 0.25 * torch.linalg.inv(covariance + 0.25 * torch.eye(len(covariance))).diagonal()
    errors = {}
    for directions in (4, 64):
        y = torch.zeros(200, 2, SIDE, SIDE).double()
        found = maps.curvature(Pictured(gaussian(covariance)), y, 0.5, directions, item_seeds(range(200), directions))
        off = found.flatten(1) - exact
        errors[directions] = float(off.square().mean().sqrt())
        spread = off.std(0) / math.sqrt(len(off))
        assert (off.mean(0).abs() < 5 * spread).all(), "no pixel is off but by chance"
    assert errors[4] / errors[64] == pytest.approx(4, rel=0.05)


def test_an_item_has_its_own_directions(generator: torch.Generator) -> None:
    field = Pictured(gaussian(rotated(torch.rand(2 * SIDE**2, generator=generator).double(), generator)))
    y = torch.randn(5, 2, SIDE, SIDE, generator=generator).double()
    whole = maps.curvature(field, y, 0.5, 3, SEEDS)
    torch.testing.assert_close(maps.curvature(field, y[3:4], 0.5, 3, SEEDS[3:4])[0], whole[3])
    assert not torch.allclose(maps.curvature(field, y[3:4], 0.5, 3, SEEDS[:1])[0], whole[3])


def test_the_map_is_the_share_that_is_frozen_beyond_the_other_model() -> None:
    varied = torch.ones(2, SIDE, SIDE).double()
    frozen = varied.clone()
    frozen[:, :, :3] = 1e-6
    varied[0, 0] = 1e-6  # what both hold fixed, and what only the other one does
    frozen[0, 0] = 1e-6
    varied[:, 5, 5] = 0.1
    fields = [Pictured(gaussian(part.flatten().diag())) for part in (frozen, varied)]
    y = torch.zeros(5, 2, SIDE, SIDE).double()
    found = maps.curvature_difference(*(maps.curvature(field, y, 1.0, 2, SEEDS) for field in fields))
    expected = torch.zeros(SIDE, SIDE).double()
    expected[:, :3] = 2 * (1 - 0.5)
    expected[0, :3] = 1 - 0.5
    torch.testing.assert_close(found, expected.expand(5, -1, -1), atol=1e-5, rtol=0)


def test_channels_are_summed_before_what_is_below_zero_is_cut_off() -> None:
    first = torch.tensor([[[[3.0, 1.0, 0.0]], [[1.0, 1.0, 5.0]]]])
    second = torch.tensor([[[[0.0, 1.0, 4.0]], [[2.0, 3.0, 0.0]]]])
    assert maps.curvature_difference(first, second).tolist() == [[[2, 0, 1]]]


def half_repeated(generator: torch.Generator) -> tuple[PointMasses, PointMasses, torch.Tensor]:
    """A memoriser of pictures of which the left half is one and the same, another of free pictures, and a fresh such one."""
    free = torch.randn(400, 2, SIDE, SIDE, generator=generator).double()
    same = free.clone()
    same[:, :, :, :3] = free[0, :, :, :3]
    return PointMasses(same[:200]), PointMasses(torch.cat([same[:200], free[200:]])), same[200:205]


def test_of_a_perfect_memoriser_the_half_lights_up_that_is_repeated(generator: torch.Generator) -> None:
    template, everything, fresh = half_repeated(generator)
    y = fresh + 10 * torch.randn(fresh.shape, generator=generator)  # no picture is told by itself
    left = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    left[:, :3] = True
    pairs = template, everything
    curved = maps.curvature_difference(*(maps.curvature(eps, y, 10.0, 64, SEEDS) for eps in pairs))
    squared = maps.squared_difference(*pairs, y, 10.0)
    nearer = maps.error_difference(*pairs, fresh, y, 10.0)
    for found in (curved, squared, nearer):
        assert found.shape == (5, SIDE, SIDE)
        assert found[:, left].mean() > 2 * found[:, ~left].abs().mean()
    assert (curved >= 0).all()
    assert (squared >= 0).all()
    both = maps.curvature_difference(*(maps.curvature(template, y, 10.0, 4, SEEDS) for _ in pairs))
    assert (both == 0).all(), "the same model holds nothing fixed beyond itself"


def test_the_proxy_and_the_error_are_those_of_the_denoised_pictures(generator: torch.Generator) -> None:
    one, other = (torch.randn(5, 3, SIDE, SIDE, generator=generator) for _ in range(2))
    y, clean = (torch.randn(5, 3, SIDE, SIDE, generator=generator) for _ in range(2))
    pair = (lambda *_: one), (lambda *_: other)
    torch.testing.assert_close(maps.squared_difference(*pair, y, 2.0), 4 * (one - other).square().sum(1))
    expected = (y - 2 * other - clean).square().sum(1) - (y - 2 * one - clean).square().sum(1)
    torch.testing.assert_close(maps.error_difference(*pair, clean, y, 2.0), expected)


def test_all_maps_of_a_pair_are_those_by_themselves(generator: torch.Generator) -> None:
    template, everything, fresh = half_repeated(generator)
    y = fresh + torch.randn(fresh.shape, generator=generator)
    pair = template, everything
    curved = tuple(maps.curvature(eps, y, 1.0, 2, SEEDS) for eps in pair)
    found = maps.compare(*pair, curved, fresh, y, 1.0)
    assert torch.equal(found["curvature"], maps.curvature_difference(*curved))
    assert torch.equal(found["squared difference"], maps.squared_difference(*pair, y, 1.0))
    assert torch.equal(found["error"], maps.error_difference(*pair, fresh, y, 1.0))
    assert found["error"].abs().max() > 0
    turned = maps.compare(*pair[::-1], curved[::-1], fresh, y, 1.0)
    torch.testing.assert_close(turned["error"], -found["error"])


def test_edges_are_the_length_of_the_gradient_and_the_centre_is_nearest_to_itself() -> None:
    down, across = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    slope = torch.stack([3 * down + 4 * across, down])[None]
    torch.testing.assert_close(maps.edges(slope), torch.full((1, 5, 7), 6.0))  # 5 of the first channel, 1 of the second
    near = maps.nearness_to_centre(5, 7)
    torch.testing.assert_close(near, -((down - 2).square() + (across - 3).square()).sqrt())


def test_a_value_of_latents_is_that_of_all_their_pixels() -> None:
    found = maps.at_pixels(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), (4, 4))
    assert found[0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_noise_is_an_items_own_and_of_its_level() -> None:
    x = torch.zeros(5, 3, 40, 40)
    y = maps.noised(x, 2.0, SEEDS)
    assert float(y.std()) == pytest.approx(2, rel=0.02)
    assert torch.equal(maps.noised(x[3:4], 2.0, SEEDS[3:4])[0], y[3])
    torch.testing.assert_close(maps.noised(x + 1, 2.0, SEEDS), y + 1)


@torch.no_grad()
def test_attention_is_that_of_diffusers_at_its_place(generator: torch.Generator) -> None:
    pipe = small_pipeline()
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=2)
    prompts, y = ["a red apple", "the whale", "a blue tree on a whale"], torch.randn(3, 4, 4, 4, generator=generator)
    found = maps.attention(field, prompts, y, 1.0)
    assert not any(module._forward_pre_hooks for module in prompt_layers(pipe.unet)), "no hook is left"
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True).input_ids
    ends = [row.index(pipe.tokenizer.eos_token_id) for row in tokens]
    readings = [Reading() for _ in prompt_layers(pipe.unet)]
    for layer, reading in zip(prompt_layers(pipe.unet), readings, strict=True):
        layer.set_processor(reading)
    field.with_rows(3)(y, 1.0, field.encode_prompts(prompts))
    for kind in ("words", "end"):
        for number, end in enumerate(ends):
            expected = torch.zeros(4, 4)
            for reading in readings:
                seen = reading.seen[number].mean(0)  # [places, tokens]
                chosen = seen[:, 1:end].sum(1) if kind == "words" else seen[:, end]
                side = math.isqrt(len(chosen))
                for row in range(4):
                    for column in range(4):
                        place = row * side // 4 * side + column * side // 4
                        expected[row, column] += chosen[place] / len(readings)
            torch.testing.assert_close(found[kind][number], expected, rtol=1e-4, atol=1e-6)


def test_attention_of_a_transformer_is_refused() -> None:
    field = field_of(small_flow_pipeline())
    with pytest.raises(ValueError, match="read in U-Nets with cross-attention; this is a SD3Transformer2DModel"):
        maps.attention(field, ["a"], torch.zeros(1, *field.shape), 1.0)


@pytest.mark.parametrize("pipeline", [small_pipeline, small_flow_pipeline])
def test_the_map_of_a_picture_is_of_its_size_and_its_own(pipeline, generator: torch.Generator) -> None:
    field = field_of(pipeline())
    pictures = torch.rand(3, *field.picture_shape, generator=generator) * 2 - 1
    prompts = ["a red apple", "the whale", "a tree"]
    found = maps.copied_map(field, pictures, prompts, 1.0, 2, SEEDS[:3])
    assert found.shape == (3, *pictures.shape[2:])
    assert (found >= 0).all()
    assert found.flatten(1).std(1).min() > 0
    y = maps.noised(field.to_latents(pictures), 1.0, item_seeds(SEEDS[:3], 1))
    conditions = field.encode_prompts(prompts), field.unconditional()
    curved = [maps.curvature(field.with_conditioning(cond), y, 1.0, 2, SEEDS[:3]) for cond in conditions]
    torch.testing.assert_close(found, maps.at_pixels(maps.curvature_difference(*curved), pictures.shape[2:]))
    alone = maps.copied_map(field, pictures[1:2], prompts[1:2], 1.0, 2, SEEDS[1:2])
    torch.testing.assert_close(alone[0], found[1], rtol=1e-3, atol=1e-4)
