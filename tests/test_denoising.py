"""The plain detectors on the noise prediction, and those on samples, against diffusers and known values."""

import pytest
import torch
from conftest import scheduler, small_unet
from diffusers import DDIMInverseScheduler, DDIMScheduler

from memlib.detectors import denoising, find, samples
from memlib.detectors.api import Items
from memlib.fields.mixtures import GaussianMixture, PointMasses
from memlib.fields.unet import UNetField


@torch.no_grad()
def test_the_t_error_is_that_of_ddim_steps_of_diffusers(generator: torch.Generator) -> None:
    noise_scheduler = scheduler()
    eps = UNetField(small_unet(), noise_scheduler)
    x = torch.randn(3, 3, 8, 8, generator=generator)
    timesteps = [0, 100, 200, 300]
    error = denoising.secmi(eps, x, eps.sigmas[timesteps])
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
    expected = ((back - y) / abar[200].sqrt()).square().flatten(1).sum(1)
    torch.testing.assert_close(error, expected, rtol=2e-3, atol=1e-6)


@torch.no_grad()
def test_pia_is_the_distance_of_two_noise_predictions(generator: torch.Generator) -> None:
    noise_scheduler = scheduler()
    eps = UNetField(small_unet(), noise_scheduler)
    x, t = torch.randn(3, 3, 8, 8, generator=generator), 200
    abar = noise_scheduler.alphas_cumprod
    first = eps.unet(abar[0].sqrt() * x, 0).sample
    second = eps.unet(abar[t].sqrt() * x + (1 - abar[t]).sqrt() * first, t).sample
    expected = (second - first).abs().pow(4).flatten(1).sum(1).pow(0.25)
    error = denoising.pia(eps, x, float(eps.sigmas[t]), eps.sigma_min)
    torch.testing.assert_close(error, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(denoising.length(eps, x, eps.sigma_min), first.flatten(1).norm(dim=1))


@torch.no_grad()
def test_pian_brings_the_noise_to_the_mean_of_standard_normal_numbers(generator: torch.Generator) -> None:
    noise_scheduler = scheduler()
    eps = UNetField(small_unet(), noise_scheduler)
    x, t = torch.randn(3, 3, 8, 8, generator=generator), 200
    abar = noise_scheduler.alphas_cumprod
    first = eps.unet(abar[0].sqrt() * x, 0).sample
    scaled = torch.stack(
        [each / each.abs().mean() * torch.randn(10**6, generator=generator).abs().mean() for each in first]
    )
    second = eps.unet(abar[t].sqrt() * x + (1 - abar[t]).sqrt() * scaled, t).sample
    expected = torch.stack([torch.linalg.vector_norm(each, 4) for each in scaled - second])
    found = find("pian").score(eps, Items("abc", 0, x), sigma=float(eps.sigmas[t]))
    torch.testing.assert_close(-found.value, expected, rtol=5e-3, atol=0)
    plain = find("pia").score(eps, Items("abc", 0, x), sigma=float(eps.sigmas[t])).value
    assert ((plain - found.value).abs() > 0.1 * plain.abs()).all()


@torch.no_grad()
def test_sima_is_a_power_of_the_noise_found_in_the_clean_picture(generator: torch.Generator) -> None:
    noise_scheduler = scheduler()
    eps = UNetField(small_unet(), noise_scheduler)
    x, t = torch.randn(3, 3, 8, 8, generator=generator), 300
    noise = eps.unet(noise_scheduler.alphas_cumprod[t].sqrt() * x, t).sample.flatten(1)
    found = find("sima").score(eps, Items("abc", 0, x), sigma=float(eps.sigmas[t]), power=[2, 4])
    for scores, power in zip(found, (2, 4), strict=True):
        assert (scores.reading, scores.evaluations) == ({"power": power}, 1)
        torch.testing.assert_close(
            -scores.value, torch.linalg.vector_norm(noise, power, dim=1) ** power, rtol=1e-3, atol=0
        )
    length = find("length").score(eps, Items("abc", 0, x), sigma=float(eps.sigmas[t])).value
    torch.testing.assert_close(-found[0].value, length.square(), rtol=1e-4, atol=0)


class Prompted:
    """Pictures [1, 2, 2] of a prompt are normal around the number that it is, those of no prompt around 0, all of variance 1."""

    takes_prompts, sigma_min, sigma_max, means = True, 0.01, 10.0, torch.zeros(1)

    def with_conditioning(self, means: torch.Tensor) -> "Prompted":
        other = Prompted()
        other.means = means
        return other

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([float(prompt) for prompt in prompts])

    def unconditional(self) -> torch.Tensor:
        return torch.zeros(1)

    def to_latents(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures

    def __call__(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
        means = self.means.repeat(len(y) // len(self.means)).reshape(-1, 1, 1, 1)
        return sigma * (y - means) / (1 + sigma**2)


def test_clid_is_what_the_caption_takes_off_the_loss() -> None:
    items = Items("abc", 0, torch.full((3, 1, 2, 2), 2.0), ["2", "0", "-1"])
    (found,) = find("clid").score(Prompted(), items, sigma=0.5, draws=[40_000])
    truth = (
        0.25 * (torch.tensor([4.0, 4.0, 4.0]) - torch.tensor([0.0, 4.0, 9.0])) / 1.25**2
    )  # of (n - s (x - mean)) / (1 + s^2)
    torch.testing.assert_close(found.value, truth, rtol=0.02, atol=1e-4)
    assert found.evaluations == 2 * 40_000


def test_denoising_loss_is_that_of_each_picture_in_closed_form() -> None:
    x = torch.tensor([0.0, 1.0, 3.0])[:, None, None, None].expand(3, 1, 2, 2)
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 4), torch.eye(4)[None])
    losses = denoising.denoising_loss(lambda y, s: gaussian(y.flatten(1), s).reshape(y.shape), x, 0.5, 10_000, range(3))
    assert losses.shape == (10_000, 3)
    truth = (1 + 0.25 * x[:, 0, 0, 0].square()) / 1.25**2  # what is left of the noise: (n - sigma x) / (1 + sigma^2)
    torch.testing.assert_close(losses.mean(0), truth, rtol=0.02, atol=0)
    alone = denoising.denoising_loss(lambda y, s: gaussian(y.flatten(1), s).reshape(y.shape), x[2:], 0.5, 10_000, [2])
    torch.testing.assert_close(losses[:, 2:], alone, rtol=1e-5, atol=1e-6)


def test_a_loss_curve_is_losses_at_many_levels() -> None:
    curve = find("loss_curve")
    levels = [setting["sigma"] for setting in curve.settings]
    assert len(set(levels)) == 10
    assert curve.score is find("loss").score


def test_every_baseline_finds_what_a_perfect_memoriser_has_seen(generator: torch.Generator) -> None:
    seen, unseen = (torch.rand(20, 3, 4, 4, generator=generator) * 2 - 1 for _ in range(2))
    memoriser = PointMasses(seen)
    for error in (
        lambda x: denoising.denoising_loss(memoriser, x, 0.3, 2, range(20)).mean(0),
        lambda x: denoising.secmi(memoriser, x, torch.tensor([0.1, 0.2, 0.4])),
        lambda x: denoising.pia(memoriser, x, 0.3, 0.1),
        lambda x: denoising.length(memoriser, x, 0.3),
    ):
        assert error(seen).max() < error(unseen).min()


def test_a_t_error_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least two noise levels"):
        denoising.secmi(PointMasses(torch.zeros(2, 1, 2, 2)), torch.zeros(1, 1, 2, 2), torch.tensor([0.1]))


def test_pictures_that_are_not_finite_are_refused() -> None:
    eps, pictures = UNetField(small_unet(), scheduler()), torch.zeros(3, 3, 8, 8)
    pictures[1, 0, 0, 0] = float("nan")
    for call in (
        lambda: denoising.denoising_loss(eps, pictures, 0.1, 1, range(3)),
        lambda: denoising.secmi(eps, pictures, torch.tensor([0.1, 0.2])),
        lambda: denoising.pia(eps, pictures, 0.2, 0.1),
    ):
        with pytest.raises(ValueError, match="picture 1 of 3 has NaN or infinite values"):
            call()
    with pytest.raises(ValueError, match="3 items need a seed each; there are 2"):
        denoising.denoising_loss(eps, torch.zeros(3, 3, 8, 8), 0.1, 1, range(2))


def test_generations_that_differ_in_one_corner_are_far_apart() -> None:
    same = torch.zeros(1, 3, 3, 8, 8)
    corner = same.clone()
    corner[0, 1, :, :2, :2] = 1.0
    spread = same.clone()
    spread[0, 1] = 0.25  # as far in the mean square over the whole
    distances = samples.between_generations(torch.cat([same, corner, spread]))
    torch.testing.assert_close(distances, torch.tensor([0.0, 2 / 3, 0.25 * 2 / 3]))
    with pytest.raises(ValueError, match="generations are compared with one another; there is 1"):
        samples.between_generations(same[:, :1])


def test_tiles_of_oblong_pictures(generator: torch.Generator) -> None:
    pair = torch.zeros(1, 2, 3, 8, 12)
    pair[0, 1, :, 6:, 9:] = 1.0  # the last of 4 x 4 tiles of 2 x 3 pixels
    assert float(samples.between_generations(pair)) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="pictures of 8x10 do not divide into 4 tiles a side"):
        samples.between_generations(torch.zeros(1, 2, 3, 8, 10))


def test_the_nearest_training_picture_of_every_generation(generator: torch.Generator) -> None:
    training = torch.randn(30, 3, 4, 4, generator=generator)
    generations = torch.stack([training[[3, 5]], training[[7, 9]] + 0.1])
    expected = torch.tensor([[0.0, 0.0], [0.1 * 48**0.5] * 2])
    torch.testing.assert_close(samples.nearest_training(generations, training), expected, rtol=1e-4, atol=1e-6)
