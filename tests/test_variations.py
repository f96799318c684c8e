"""Detectors that compare a picture with variations of it, against closed forms and other libraries."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet
from diffusers import DDIMScheduler
from scipy.ndimage import map_coordinates
from test_detectors import ClosedField

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.detectors.variations import central_crop, variations
from memlib.fields.mixtures import GaussianMixture, PointMasses
from memlib.fields.unet import UNetField
from memlib.tensors import generators, normal


def gaussian(variance: float) -> ClosedField:
    return ClosedField(GaussianMixture(torch.ones(1), torch.zeros(1, 16), variance * torch.eye(16)[None]))


@torch.no_grad()
def test_variations_are_ddim_steps_of_diffusers(generator: torch.Generator) -> None:
    field = UNetField(small_unet(), scheduler())
    x, times = torch.randn(2, 3, 8, 8, generator=generator), [300, 200, 100]
    found = variations(field, x, field.sigmas[times], 2, [5, 6])
    ddim = DDIMScheduler.from_config(field.scheduler.config, set_alpha_to_one=True)
    ddim.set_timesteps(10)
    noise, abar = normal(generators([5, 6]), 2, x), field.scheduler.alphas_cumprod
    assert found.shape == noise.shape
    for made, own in zip(found, noise, strict=True):
        x_t = ddim.add_noise(x, own, torch.tensor([300, 300]))
        for t in times:
            step = ddim.step(field.unet(x_t, t).sample, t, x_t)
            x_t = step.prev_sample
        torch.testing.assert_close(made, step.pred_original_sample, rtol=2e-3, atol=2e-4)
    assert abar[300] < abar[200]


def test_the_mean_of_many_variations_of_a_gaussian_is_known() -> None:
    """In one step E[x0 | y] = y v / (v + sigma^2), and the noise cancels in the mean."""
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    items = Items("a", 0, x)
    one, many = find("rediffuse").score(gaussian(0.5), items, sigma=1.0, steps=1, draws=[1, 20_000])
    assert -float(many.value) == pytest.approx(float(x.norm()) * (1 - 0.5 / 1.5), rel=0.02)
    assert (one.evaluations, many.evaluations) == (1, 20_000)
    noise = normal(generators(items.seeds), 1, x)[0]
    assert -float(one.value) == pytest.approx(float((x - (x + noise) / 3).norm()), rel=1e-4)


def test_steps_go_down_to_the_lowest_level() -> None:
    """Euler steps of a Gaussian in closed form: y falls by 1 + (b - a) a / (v + a^2) a step."""
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    (found,) = find("rediffuse").score(gaussian(0.5), Items("a", 0, x), sigma=2.0, steps=3, draws=[20_000])
    kept = 0.5 / (0.5 + 0.02**2)
    for a, b in ((2.0, 0.2), (0.2, 0.02)):  # even in log sigma
        kept *= 1 + (b - a) * a / (0.5 + a**2)
    assert -float(found.value) == pytest.approx(float(x.norm()) * (1 - kept), rel=0.02)


def test_a_memorised_picture_comes_back(generator: torch.Generator) -> None:
    seen, unseen = (torch.rand(6, 1, 4, 4, generator=generator) * 2 - 1 for _ in range(2))
    memoriser = ClosedField(GaussianMixture(torch.ones(1), torch.zeros(1, 16), torch.eye(16)[None]))
    points = PointMasses(seen)
    memoriser.mixture = lambda y, sigma: points(y.reshape(-1, 1, 4, 4), sigma).flatten(1)
    items = Items([str(i) for i in range(12)], 0, torch.cat([seen, unseen]))
    (found,) = find("rediffuse").score(memoriser, items, sigma=0.3, steps=3, draws=[4])
    assert found.value[:6].min() > found.value[6:].max()


def test_pictures_of_a_latent_model_are_compared_as_pictures() -> None:
    pipe = small_pipeline()
    field = UNetField(pipe.unet, pipe.scheduler, pipe)
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    (found,) = find("rediffuse").score(field, Items("ab", 0, pictures), sigma=0.5, steps=2, draws=[1])
    bare = field.with_conditioning(field.unconditional())
    levels = torch.tensor([field.sigma_min, 0.5], dtype=torch.float64)
    made = variations(bare, field.to_latents(pictures), levels, 1, Items("ab", 0).seeds)[0]
    decoded = pipe.vae.decode(made / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(-found.value, (decoded - pictures).flatten(1).norm(dim=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.95, 1.0])
def test_a_crop_is_the_middle_at_the_whole_size(share: float, generator: torch.Generator) -> None:
    pictures = torch.randn(2, 3, 8, 6, generator=generator)
    found = central_crop(pictures, share)
    middle = [(np.arange(n) + 0.5 - n / 2) * share + n / 2 - 0.5 for n in (8, 6)]
    grid = np.meshgrid(*middle, indexing="ij")
    for picture, crop in zip(pictures.flatten(0, 1).numpy(), found.flatten(0, 1).numpy(), strict=True):
        np.testing.assert_allclose(crop, map_coordinates(picture, grid, order=1, mode="nearest"), atol=1e-5)
    with pytest.raises(ValueError, match="at most the whole of either side of a picture; its share is 1.1"):
        central_crop(pictures, 1.1)


def gaussian_loss(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Expected loss of each picture under a standard normal distribution (see test_denoising)."""
    return (1 + sigma**2 * x.square().flatten(1).mean(1)) / (1 + sigma**2) ** 2


def test_pfami_is_the_loss_of_crops_beyond_that_of_the_picture(generator: torch.Generator) -> None:
    pictures = 3 * torch.randn(4, 1, 4, 4, generator=generator)
    levels, shares = [0.5, 1.0], [0.9, 0.75]
    found = find("pfami").score(gaussian(1.0), Items("abcd", 0, pictures), sigmas=levels, crops=shares, draws=4000)
    crops: Sequence[torch.Tensor] = [central_crop(pictures, share) for share in shares]
    gaps = [gaussian_loss(crop, sigma) - gaussian_loss(pictures, sigma) for crop in crops for sigma in levels]
    torch.testing.assert_close(found.value, torch.stack(gaps).mean(0), rtol=0.05, atol=0.01)
    assert found.evaluations == 4000 * 2 * 3
    whole = find("pfami").score(gaussian(1.0), Items("abcd", 0, pictures), sigmas=[0.5], crops=[1.0])
    torch.testing.assert_close(whole.value, torch.zeros(4), atol=1e-5, rtol=0)
