"""The plain detectors and the measures of simplicity, against diffusers and known values."""

import pytest
import torch
from conftest import scheduler, small_unet
from diffusers import DDIMInverseScheduler, DDIMScheduler

from memlib import baselines, simplicity
from memlib.data import to_float
from memlib.mixtures import PointMasses
from memlib.models import NetworkNoise


def test_the_t_error_is_that_of_ddim_steps_of_diffusers(generator: torch.Generator) -> None:
    noise_scheduler = scheduler()
    eps = NetworkNoise(small_unet(), noise_scheduler)
    x = torch.randn(3, 3, 8, 8, generator=generator)
    timesteps = [0, 100, 200, 300]
    score = baselines.secmi(eps, x, eps.log_sigmas.exp()[timesteps])
    abar = noise_scheduler.alphas_cumprod
    inverse = DDIMInverseScheduler.from_config(noise_scheduler.config, timestep_spacing="leading")
    forward = DDIMScheduler.from_config(noise_scheduler.config)
    inverse.set_timesteps(10)
    forward.set_timesteps(10)
    y = abar[0].sqrt() * x
    for here, there in ((0, 100), (100, 200)):
        slope = eps.unet(y, here).sample
        clean = (y - (1 - abar[here]).sqrt() * slope) / abar[here].sqrt()
        y = abar[there].sqrt() * clean + (1 - abar[there]).sqrt() * slope
    end = inverse.step(eps.unet(y, 200).sample, 300, y).prev_sample
    back = forward.step(eps.unet(end, 300).sample, 300, end).prev_sample
    expected = -((back - y) / abar[200].sqrt()).square().flatten(1).sum(1)
    torch.testing.assert_close(score, expected, rtol=2e-3, atol=1e-6)


def test_pia_is_the_distance_of_two_noise_predictions(generator: torch.Generator) -> None:
    noise_scheduler = scheduler()
    eps = NetworkNoise(small_unet(), noise_scheduler)
    x, t = torch.randn(3, 3, 8, 8, generator=generator), 200
    abar = noise_scheduler.alphas_cumprod
    first = eps.unet(abar[0].sqrt() * x, 0).sample
    second = eps.unet(abar[t].sqrt() * x + (1 - abar[t]).sqrt() * first, t).sample
    expected = -(second - first).abs().pow(4).flatten(1).sum(1).pow(0.25)
    score = baselines.pia(eps, x, float(eps.log_sigmas[t].exp()), eps.sigma_min)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-4)


def test_every_baseline_finds_what_a_perfect_memoriser_has_seen(generator: torch.Generator) -> None:
    seen, unseen = (torch.rand(20, 3, 4, 4, generator=generator) * 2 - 1 for _ in range(2))
    memoriser = PointMasses(seen)
    for score in (
        lambda x: baselines.denoising_loss(memoriser, x, 0.3, 2, torch.Generator().manual_seed(0)),
        lambda x: baselines.secmi(memoriser, x, torch.tensor([0.1, 0.2, 0.4])),
        lambda x: baselines.pia(memoriser, x, 0.3, 0.1),
    ):
        assert score(seen).min() > score(unseen).max()


def test_a_t_error_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least two noise levels"):
        baselines.secmi(PointMasses(torch.zeros(2, 1, 2, 2)), torch.zeros(1, 1, 2, 2), torch.tensor([0.1]))


def test_measures_of_simplicity(generator: torch.Generator) -> None:
    flat = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    half = flat.clone()
    half[..., 8:] = 0
    noisy = torch.randint(0, 256, (1, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images = torch.cat([flat, half, noisy])
    sizes = simplicity.compressed_size(images)
    assert sizes[0] <= sizes[1] < sizes[2]
    assert sizes[2] > 16 * 16 * 3
    assert simplicity.flat_share(images).tolist() == [1.0, 0.5, 1 / 256]
    step = torch.zeros(1, 1, 2, 3)
    step[..., 1:] = 1.0
    assert float(simplicity.total_variation(step)) == pytest.approx((0 + 0.5) / 2)
    assert simplicity.total_variation(to_float(images)).argsort().tolist() == [0, 1, 2]
    assert simplicity.compressed_size(images[:, :1]).shape == (3,)


def test_a_picture_is_not_its_own_neighbour(generator: torch.Generator) -> None:
    training = torch.randn(5, 3, 4, 4, generator=generator)
    distances = torch.cdist(training.flatten(1), training.flatten(1)).fill_diagonal_(float("inf")).min(1).values
    torch.testing.assert_close(simplicity.nearest_distance(training, training), distances)
    torch.testing.assert_close(
        simplicity.nearest_distance(training[:1] + 1.0, training[:1]), torch.tensor([48.0]).sqrt()
    )


def test_generations_that_differ_in_one_corner_are_far_apart() -> None:
    same = torch.zeros(1, 3, 3, 8, 8)
    corner = same.clone()
    corner[0, 1, :, :2, :2] = 1.0
    spread = same.clone()
    spread[0, 1] = 0.25  # as far in the mean square over the whole
    scores = baselines.between_generations(torch.cat([same, corner, spread]))
    torch.testing.assert_close(scores, torch.tensor([0.0, -2 / 3, -0.25 * 2 / 3]))
    with pytest.raises(ValueError, match="generations are compared with one another; there is 1"):
        baselines.between_generations(same[:, :1])
