"""What counts as a copy: closed forms of the limits, and planted copies that each of three rules is asked about."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memlib.tensors import to_float, to_uint8
from memlib.training.embedding import contrastive_loss, train_embedding
from memlib.training.settings import EmbeddingConfig
from memlib.truth import calibration, embedding, outcomes
from memlib.truth.verdicts import judge_samples

SIZE = 16
CONFIG = EmbeddingConfig(
    steps=120,
    batch=96,
    learning_rate=3e-3,
    warmup_steps=10,
    ema_decay=0.97,
    precision="no",
    compile=False,
    checkpoint_every=1000,
    seed=0,
    temperature=0.1,
)


def scenes(n: int, seed: int, subject_seed: int | None = None) -> Tensor:
    """Pictures [n, 3, SIZE, SIZE] in [-1, 1] of three ellipses on white; a `subject_seed` paints the last two anew."""
    first, last = (torch.Generator().manual_seed(s) for s in (seed, seed if subject_seed is None else subject_seed))
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pictures = torch.ones(n, 3, SIZE, SIZE)
    for draw in (first, last, last):
        cy, cx, ry, rx = torch.rand(4, n, 1, 1, generator=draw)
        inside = ((y - SIZE * cy) / (2 + 4 * ry)) ** 2 + ((x - SIZE * cx) / (2 + 4 * rx)) ** 2 < 1
        colour = 2 * torch.rand(n, 3, 1, 1, generator=draw) - 1
        pictures = torch.where(inside[:, None], colour, pictures)
    return pictures


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.02, 0.1]), st.integers(1, 6))
def test_no_more_of_the_control_than_the_level_lies_within_the_limits(seed: int, level: float, pictures: int) -> None:
    control = torch.from_numpy(np.random.default_rng(seed).gamma(3.0, size=(200, pictures)))
    allowed = round(200 * level)
    own, common = calibration.own_limits(control, level), calibration.common_limits(control, level)
    assert ((control < own).sum(0) == allowed).all()
    assert (calibration.nearest(control, common).relative < 1 - 1e-12).sum() == allowed
    assert (common <= own).all()


def test_a_limit_is_a_quantile_of_the_control(generator: torch.Generator) -> None:
    control = torch.rand(1001, 4, generator=generator)
    expected = np.quantile(control.numpy(), 0.01, axis=0, method="higher")
    np.testing.assert_allclose(calibration.own_limits(control, 0.01), expected)
    torch.testing.assert_close(
        calibration.common_limits(control[:, :1], 0.01)[0], calibration.own_limits(control, 0.01)[0]
    )


def test_samples_of_the_control_are_copies_at_the_level_and_no_more(generator: torch.Generator) -> None:
    control, fresh = torch.rand(4000, 30, generator=generator), torch.rand(4000, 30, generator=generator)
    found = calibration.nearest(fresh, calibration.common_limits(control, 0.02))
    assert float((found.relative < 1).float().mean()) == pytest.approx(0.02, abs=0.008)
    assert found.picture.unique().numel() == 30, "no picture draws them all"


def test_a_plain_picture_is_not_copied_by_every_plain_sample(generator: torch.Generator) -> None:
    """Strangers come near to a plain picture: its limit is a smaller one, whatever the unit of its distances."""
    control = torch.rand(500, 2, generator=generator) * torch.tensor([1.0, 50.0])
    limits = calibration.common_limits(control, 0.01)
    scaled = calibration.common_limits(control * torch.tensor([50.0, 1.0]), 0.01)
    torch.testing.assert_close(scaled / limits, torch.tensor([50.0, 1.0]))
    found = calibration.nearest(torch.stack([limits * 0.9, limits * torch.tensor([2.0, 1.5])]), limits)
    torch.testing.assert_close(found.relative, torch.tensor([0.9, 1.5]))
    assert found.picture[1] == 1


@pytest.mark.parametrize(
    ("samples", "level", "message"),
    [
        (99, 0.01, "99 samples of the control cannot say what all but 0.01 of them stay away from; draw 100 or more"),
        (50, 0.0, "the level of a copy is 0.0; it must be a share above 0 and below 1"),
        (50, 1.0, "the level of a copy is 1.0; it must be a share above 0 and below 1"),
    ],
)
def test_a_level_that_cannot_be_resolved_is_refused(samples: int, level: float, message: str) -> None:
    for limits in (calibration.own_limits, calibration.common_limits):
        with pytest.raises(ValueError, match=message):
            limits(torch.ones(samples, 3), level)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_limits_of_several_controls_hold_for_each(seed: int, pictures: int) -> None:
    rng = np.random.default_rng(seed)
    controls = [torch.from_numpy(rng.gamma(k, size=(n, pictures))) for k, n in ((3.0, 200), (2.0, 100), (9.0, 100))]
    limits = calibration.strictest_limits(controls, 0.01)
    within = [int((calibration.nearest(control, limits).relative < 1 - 1e-12).sum()) for control in controls]
    assert all(count <= len(control) // 100 for count, control in zip(within, controls, strict=True))
    single = torch.stack([calibration.common_limits(control, 0.01) for control in controls])
    assert ((limits == single).any(0) & (limits <= single).all(0)).all(), "each is that of one of them, and no smaller"


def test_distances_are_root_mean_squares_over_pixels(generator: torch.Generator) -> None:
    samples, pictures = torch.rand(5, 3, 4, 4, generator=generator), torch.rand(7, 3, 4, 4, generator=generator)
    distances = calibration.pixel_distance(samples, pictures)
    direct = (samples[:, None] - pictures[None]).square().mean((2, 3, 4)).sqrt()
    torch.testing.assert_close(distances, direct, atol=1e-5, rtol=1e-4)
    both = calibration.pixel_distance(samples.flip(-1), pictures, mirrored=True)
    torch.testing.assert_close(both, calibration.pixel_distance(samples, pictures, mirrored=True), atol=1e-5, rtol=1e-4)
    assert (both <= calibration.pixel_distance(samples.flip(-1), pictures) + 1e-6).all()


def test_blur_is_that_of_scipy(generator: torch.Generator) -> None:
    from scipy.ndimage import gaussian_filter

    pictures = torch.rand(3, 2, 9, 7, generator=generator)
    sigma = torch.tensor([0.3, 0.7, 1.0])
    found = embedding.blurred(pictures, sigma)
    for picture, blurred, width in zip(pictures, found, sigma, strict=True):
        expected = [
            gaussian_filter(plane, float(width), mode="nearest", radius=3) for plane in picture.double().numpy()
        ]
        np.testing.assert_allclose(blurred, np.stack(expected), atol=1e-5)


def test_the_contrastive_loss_is_its_formula(generator: torch.Generator) -> None:
    first, second = torch.randn(2, 4, 5, generator=generator).double()
    vectors = torch.nn.functional.normalize(torch.cat([first, second]))
    total = 0.0
    for i in range(8):
        others = [(vectors[i] @ vectors[k] / 0.2).exp() for k in range(8) if k != i]
        total -= float(torch.log((vectors[i] @ vectors[(i + 4) % 8] / 0.2).exp() / sum(others)))
    assert float(contrastive_loss(first, second, 0.2)) == pytest.approx(total / 8, rel=1e-5)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """An embedding trained on scenes that no test shows it again."""
    torch.manual_seed(0)
    found = embedding.build_embedding(3, SIZE, width=16)
    train_embedding(found, to_uint8(scenes(300, 7)), CONFIG, tmp_path_factory.mktemp("embedding") / "checkpoint.pt")
    return found


PICTURES, STRANGERS, OTHERS = scenes(60, 1), scenes(1000, 2), scenes(1000, 5)
COARSE = STRANGERS + 0.6 * torch.randn(STRANGERS.shape, generator=torch.Generator().manual_seed(6))
COPIES = {
    "slightly noisy": PICTURES + 0.1 * torch.randn(PICTURES.shape, generator=torch.Generator().manual_seed(3)),
    "blurred": embedding.blurred(PICTURES, torch.full((60,), 1.0)),
    "shifted": torch.roll(torch.nn.functional.pad(PICTURES, (2, 2, 2, 2), mode="replicate"), (1, 2), (2, 3))[
        ..., 2:-2, 2:-2
    ],
    "mirrored": PICTURES.flip(-1),
}
NEIGHBOURS = scenes(60, 1, subject_seed=9)  # of the same ground, with other subjects
IDS = [str(n) for n in range(60)]


def judged(network: torch.nn.Module, samples: Tensor, control: Tensor, strangers: Tensor, **how: bool) -> pd.DataFrame:
    """Which picture each rule takes the samples for copies of, by its id, else nothing."""
    seen = torch.ones(60, dtype=torch.bool)
    matches, _ = judge_samples(samples, control, strangers, PICTURES, IDS, seen, network, **how)
    return pd.DataFrame(
        {rule: outcomes.original(matches, rule).where(outcomes.is_copy(matches, rule)) for rule in outcomes.RULES}
    )


def test_each_rule_on_planted_copies_and_near_neighbours(network: torch.nn.Module) -> None:
    shares = pd.DataFrame(
        {
            name: judged(network, samples, STRANGERS, STRANGERS).eq(IDS, axis=0).mean()
            for name, samples in COPIES.items()
        }
    ).T
    print(shares)
    assert (shares.loc["slightly noisy"] > 0.9).all()
    assert shares.loc["blurred", "calibrated"] > 0.95 > 0.2 > shares.loc["blurred", "ratio"], (
        "a copy that the ratio misses"
    )
    assert (shares.loc[["shifted", "mirrored"], ["calibrated", "ratio"]] < 0.2).all(axis=None)
    assert (shares.loc[["blurred", "mirrored"], "embedding"] > 0.95).all()
    assert shares.loc["shifted", "embedding"] > 0.75
    assert (judged(network, NEIGHBOURS, STRANGERS, STRANGERS).notna().mean() < 0.1).all()
    both = judged(network, COPIES["mirrored"], STRANGERS, STRANGERS, mirrored=True)
    assert both[["calibrated", "ratio"]].eq(IDS, axis=0).all(axis=None), "where a mirrored copy is a copy"


def test_sharp_pictures_that_are_none_pass_where_a_coarse_control_judges_alone(network: torch.nn.Module) -> None:
    """A weak model comes near to nothing, so that the limits by its samples are wide: what it was trained on is as sharp."""
    found = [judged(network, OTHERS, COARSE, more) for more in (COARSE, STRANGERS)]
    alone, calibrated = (verdicts["calibrated"].notna() for verdicts in found)
    assert alone.mean() > 0.3
    assert calibrated.mean() == pytest.approx(0.01, abs=0.01)
    assert not (calibrated & ~alone).any()
    assert found[0]["embedding"].equals(found[1]["embedding"]), "which goes by the samples alone"
    for name in ("slightly noisy", "blurred"):
        assert judged(network, COPIES[name], COARSE, STRANGERS)["calibrated"].eq(IDS).mean() > 0.95
    sharp = judged(network, OTHERS, STRANGERS, COARSE)["calibrated"].notna()
    assert sharp.equals(calibrated), "the stricter of the two, whichever it is"


def test_where_a_mirrored_copy_counts_strangers_come_near_in_the_mirror_too(network: torch.nn.Module) -> None:
    near, nearer = (
        PICTURES[:5] + sigma * torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(8))
        for sigma in (0.2, 0.1)
    )
    strangers = torch.cat([STRANGERS[:95], nearer.flip(-1)])
    found = {
        how: judged(network, near, STRANGERS, strangers, mirrored=how)["calibrated"].eq(IDS[:5]).sum()
        for how in (False, True)
    }
    assert found[False] == 5
    assert found[True] <= 1, "one in a hundred strangers may come as near"


def test_the_embedding_finds_altered_pictures_again_that_it_never_saw(network: torch.nn.Module) -> None:
    altered = embedding.altered(PICTURES, torch.Generator().manual_seed(4))
    found = embedding.embedding_distance(network, altered, PICTURES).argmin(1) == torch.arange(60)
    by_pixels = calibration.pixel_distance(altered, PICTURES).argmin(1) == torch.arange(60)
    assert found.float().mean() > 0.9 > by_pixels.float().mean() + 0.2
    lengths = embedding.embed(network, PICTURES).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(60))
    assert to_float(to_uint8(altered)).sub(altered).abs().max() < 0.01


def test_pictures_are_first_reproduced_at_the_earliest_step_with_enough_copies() -> None:
    ids = ["a", "b", "c", "d"]
    copies = {0: "", 10: "bbbc", 20: "aaabbb", 30: "aaa"}  # one copy of c is not enough, and d has none
    rows = [
        {
            "step": step,
            "picture": names[sample] if sample < len(names) else "d",
            "relative": 0.5 if sample < len(names) else 2.0,
        }
        for step, names in copies.items()
        for sample in range(40)
    ]
    others = {"embedded_relative": 2.0, "distance": 1.0, "second_distance": 1.0}
    assert outcomes.least_copies(40, 4) == 2
    found = outcomes.first_reproduced(pd.DataFrame(rows).assign(**others), ids)
    assert found[["a", "b"]].tolist() == [20.0, 10.0]
    assert found[["c", "d"]].isna().all()
