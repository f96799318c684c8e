"""The probability-flow ODE: convergence orders, torchdiffeq as the oracle, samples of known distributions."""

import numpy as np
import pytest
import torch
from conftest import scheduler, small_unet
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from test_mixtures import points, random_mixture
from torchdiffeq import odeint

from memlib import ode
from memlib.mixtures import GaussianMixture, PointMasses
from memlib.models import NetworkNoise


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_order_against_torchdiffeq(method: ode.Method, order: int) -> None:
    mixture, x = random_mixture(0), points(1, 16)
    ends = torch.tensor([0.1, 5.0], dtype=torch.float64)
    truth = odeint(lambda sigma, y: mixture(y, sigma), x, ends, rtol=1e-11, atol=1e-12, method="dopri8")[-1]
    steps = [32, 64, 128, 256]
    errors = [
        float((ode.encode(mixture, x, ode.sigma_grid(0.1, 5.0, n, float("inf")), method) - truth).abs().max())
        for n in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.15)
    assert errors[-1] < 0.1


def test_decoding_undoes_encoding() -> None:
    mixture = random_mixture(2)
    x = mixture.sample(16, torch.Generator().manual_seed(3))
    sigmas = ode.sigma_grid(0.05, 20.0, 400)
    latent = ode.encode(mixture, x, sigmas)
    torch.testing.assert_close(ode.decode(mixture, latent, sigmas), x, atol=2e-3, rtol=0)
    assert (latent - x).abs().max() > 1


def test_samples_follow_the_distribution(generator: torch.Generator) -> None:
    gaussian = GaussianMixture(
        torch.ones(1).double(), torch.tensor([[3.0]]).double(), torch.tensor([[[0.25]]]).double()
    )
    x = ode.sample(lambda y, s: gaussian(y.double(), s), (4000, 1), ode.sigma_grid(0.002, 1000.0, 60), generator)
    assert kstest(x[:, 0].numpy(), "norm", args=(3.0, 0.5)).pvalue > 0.01


def test_the_noise_left_at_the_end_is_taken_off(generator: torch.Generator) -> None:
    point = torch.full((1, 5), 2.0)
    x = ode.sample(PointMasses(point), (8, 5), ode.sigma_grid(0.7, 80.0, 10), generator)
    torch.testing.assert_close(x, point.expand(8, 5), rtol=1e-4, atol=1e-4)


def test_ancestral_steps_are_those_of_diffusers() -> None:
    noise_scheduler = scheduler()
    eps = NetworkNoise(small_unet(), noise_scheduler)
    noise_scheduler.set_timesteps(10)
    abar = noise_scheduler.alphas_cumprod
    levels = eps.log_sigmas.exp()[noise_scheduler.timesteps]
    x = ode.sample_ancestral(eps, (2, 3, 8, 8), levels, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(2, 3, 8, 8, generator=generator) * (1 - abar[noise_scheduler.timesteps[0]]).sqrt()
    for t in noise_scheduler.timesteps:
        y = noise_scheduler.step(eps.unet(y, t).sample, t, y, generator=generator).prev_sample
    torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)


def test_ancestral_samples_follow_the_distribution(generator: torch.Generator) -> None:
    gaussian = GaussianMixture(
        torch.ones(1).double(), torch.tensor([[3.0]]).double(), torch.tensor([[[0.25]]]).double()
    )
    levels = ode.sigma_grid(0.002, 300.0, 400, float("inf"))
    x = ode.sample_ancestral(lambda y, s: gaussian(y.double(), s), (4000, 1), levels, generator)
    assert kstest(x[:, 0].numpy(), "norm", args=(3.0, 0.5)).pvalue > 0.01


def test_sampling_depends_on_the_generator_alone() -> None:
    mixture, sigmas = random_mixture(0), ode.sigma_grid(0.1, 10.0, 5)
    first, again, other = (ode.sample(mixture, (3, 4), sigmas, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(st.floats(1e-3, 1.0), st.floats(1.5, 1e4), st.integers(1, 50), st.sampled_from([1.0, 7.0, float("inf")]))
def test_grids_rise_from_end_to_end(low: float, factor: float, steps: int, rho: float) -> None:
    grid = ode.sigma_grid(low, low * factor, steps, rho)
    assert len(grid) == steps + 1
    assert (grid.diff() > 0).all()
    torch.testing.assert_close(grid[[0, -1]], torch.tensor([low, low * factor], dtype=torch.float64))
    if rho == float("inf"):
        torch.testing.assert_close(grid.log().diff(), grid.log().diff().mean().expand(steps))


def test_bad_grids_and_methods_are_refused() -> None:
    for arguments in ((0.0, 1.0, 5), (2.0, 1.0, 5), (0.1, 1.0, 0)):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max and at least one step"):
            ode.sigma_grid(*arguments)
    with pytest.raises(ValueError, match="unknown ODE method 'rk4'; known: euler, heun"):
        ode.integrate(random_mixture(0), points(0), ode.sigma_grid(0.1, 1, 2), "rk4")
