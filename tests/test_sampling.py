"""Sampling along the probability-flow ODE: convergence orders, torchdiffeq as the oracle, samples of known distributions."""

import numpy as np
import pytest
import torch
from conftest import scheduler, small_unet
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from test_mixtures import points, random_mixture
from torchdiffeq import odeint

from memlib.fields import NoisePredictor
from memlib.fields.mixtures import GaussianMixture, PointMasses
from memlib.fields.unet import UNetField
from memlib.sampling import grids, ode
from memlib.sampling.ancestral import sample_ancestral
from memlib.tensors import generators, item_seeds

INF = float("inf")


class ClosedForm:
    """A noise predictor in closed form, in float64, as a field."""

    device = torch.device("cpu")

    def __init__(self, eps: NoisePredictor, d: int) -> None:
        self.eps, self.shape = eps, torch.Size([d])

    def __call__(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.eps(y.double(), sigma)


def gaussian() -> ClosedForm:
    """Normal numbers of mean 3 and standard deviation 0.5."""
    mean, variance = torch.tensor([[3.0]]).double(), torch.tensor([[[0.25]]]).double()
    return ClosedForm(GaussianMixture(torch.ones(1).double(), mean, variance), 1)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_convergence_order_against_torchdiffeq(method: ode.Method, order: int) -> None:
    mixture, x = random_mixture(0), points(1, 16)
    ends = torch.tensor([0.1, 5.0], dtype=torch.float64)
    truth = odeint(lambda sigma, y: mixture(y, sigma), x, ends, rtol=1e-11, atol=1e-12, method="dopri8")[-1]
    steps = [32, 64, 128, 256]
    errors = [
        float((ode.encode(mixture, x, grids.sigma_grid(0.1, 5.0, n, INF), method) - truth).abs().max()) for n in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(-order, abs=0.15)
    assert errors[-1] < 0.1


def test_decoding_undoes_encoding() -> None:
    mixture = random_mixture(2)
    x = mixture.sample(16, torch.Generator().manual_seed(3))
    sigmas = grids.sigma_grid(0.05, 20.0, 400)
    latent = ode.encode(mixture, x, sigmas)
    torch.testing.assert_close(ode.decode(mixture, latent, sigmas), x, atol=2e-3, rtol=0)
    assert (latent - x).abs().max() > 1


def test_every_intermediate_state_is_seen() -> None:
    mixture, x, sigmas, seen = random_mixture(2), points(0), grids.sigma_grid(0.1, 3.0, 4), []
    end = ode.integrate(mixture, x, sigmas, "heun", lambda step, state: seen.append((step, state)))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    torch.testing.assert_close(seen[1][1], ode.integrate(mixture, x, sigmas[:3]))
    assert torch.equal(seen[-1][1], end)


def test_samples_follow_the_distribution() -> None:
    x = ode.sample(gaussian(), range(4000), grids.sigma_grid(0.002, 1000.0, 60))
    assert kstest(x[:, 0].numpy(), "norm", args=(3.0, 0.5)).pvalue > 0.01


def test_the_noise_left_at_the_end_is_taken_off() -> None:
    point = torch.full((1, 5), 2.0)
    x = ode.sample(ClosedForm(PointMasses(point), 5), range(8), grids.sigma_grid(0.7, 80.0, 10))
    torch.testing.assert_close(x, point.expand(8, 5).double(), rtol=1e-4, atol=1e-4)


def test_ancestral_steps_are_those_of_diffusers() -> None:
    noise_scheduler = scheduler()
    eps = UNetField(small_unet(), noise_scheduler)
    noise_scheduler.set_timesteps(10)
    abar = noise_scheduler.alphas_cumprod
    x = sample_ancestral(eps, [1, 7], eps.sigmas[noise_scheduler.timesteps])
    for row, seed in enumerate((1, 7)):
        (generator,) = generators([seed])
        y = torch.randn(1, 3, 8, 8, generator=generator) * (1 - abar[noise_scheduler.timesteps[0]]).sqrt()
        for t in noise_scheduler.timesteps:
            with torch.no_grad():
                y = noise_scheduler.step(eps.unet(y, t).sample, t, y, generator=generator).prev_sample
        torch.testing.assert_close(x[row : row + 1], y, rtol=2e-3, atol=2e-3)


def test_ancestral_samples_follow_the_distribution() -> None:
    x = sample_ancestral(gaussian(), range(1500), grids.sigma_grid(0.002, 300.0, 100, INF))
    assert kstest(x[:, 0].numpy(), "norm", args=(3.0, 0.5)).pvalue > 0.01


@pytest.mark.parametrize("draw", [ode.sample, sample_ancestral])
def test_a_sample_depends_on_its_seed_alone(draw) -> None:
    field, sigmas = ClosedForm(random_mixture(0), 4), grids.sigma_grid(0.1, 10.0, 5)
    x = draw(field, [5, 6, 7], sigmas)
    torch.testing.assert_close(draw(field, [7, 5], sigmas), x[[2, 0]], rtol=1e-12, atol=1e-12)
    assert not torch.equal(x[0], x[1])


def test_seeds_come_from_ids_and_the_common_seed() -> None:
    assert item_seeds(["a", "b"], 1) == [*item_seeds(["a"], 1), *item_seeds(["b"], 1)]
    found = {*item_seeds(["a", "b"], 1), *item_seeds(["a", "b"], 2), *item_seeds(["1\0a"], 1)}
    assert len(found) == 5
    assert all(0 <= seed < 2**63 for seed in found)
    assert item_seeds(["cat"], 0) == [item_seeds(["cat"], 0)[0]]


@given(st.floats(1e-3, 1.0), st.floats(1.5, 1e4), st.integers(1, 50), st.sampled_from([1.0, 7.0, INF]))
def test_grids_rise_from_end_to_end(low: float, factor: float, steps: int, rho: float) -> None:
    grid = grids.sigma_grid(low, low * factor, steps, rho)
    assert len(grid) == steps + 1
    assert (grid.diff() > 0).all()
    torch.testing.assert_close(grid[[0, -1]], torch.tensor([low, low * factor], dtype=torch.float64))
    if rho == INF:
        torch.testing.assert_close(grid.log().diff(), grid.log().diff().mean().expand(steps))


def test_a_grid_of_ratios() -> None:
    torch.testing.assert_close(grids.ratio_grid(0.2, 1.5, 3), 0.2 * torch.tensor([1, 1.5, 2.25, 3.375]).double())
    with pytest.raises(ValueError, match=r"a ratio above 1 and at least one step; got 0\.2, 1 and 3"):
        grids.ratio_grid(0.2, 1, 3)


def test_bad_grids_and_methods_are_refused() -> None:
    for arguments in ((0.0, 1.0, 5), (2.0, 1.0, 5), (0.1, 1.0, 0)):
        with pytest.raises(ValueError, match="0 < sigma_min < sigma_max and at least one step"):
            grids.sigma_grid(*arguments)
    with pytest.raises(ValueError, match="unknown ODE method 'rk4'; known: euler, heun"):
        ode.integrate(random_mixture(0), points(0), grids.sigma_grid(0.1, 1, 2), "rk4")
