"""Volume growth against closed forms, the full Jacobian of a network, and its own promises."""

from collections import Counter
from functools import cache

import pytest
import torch
from conftest import scheduler, small_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mixtures import points, random_mixture

from memlib.detectors.volume import divergence, growth
from memlib.fields.mixtures import GaussianMixture, PointMasses, gaussian_growth
from memlib.fields.unet import UNetField
from memlib.sampling import ode
from memlib.sampling.grids import sigma_grid

INF = float("inf")


@cache
def far_away() -> torch.Tensor:
    return ode.encode(random_mixture(0), points(1, 6), sigma_grid(0.1, 30.0, 1000, INF))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_growth_of_a_mixture_converges_to_the_drop_of_the_log_density(method: ode.Method, order: int) -> None:
    mixture, x = random_mixture(0), points(1, 6)
    truth = mixture.log_density(x, 0.1) - mixture.log_density(far_away(), 30.0)
    errors = [
        float((growth(mixture, x, sigma_grid(0.1, 30.0, n, INF), method=method).value - truth).abs().max())
        for n in (50, 100, 200)
    ]
    rates = torch.tensor(errors).log2().diff()
    assert (rates < -order + 0.35).all(), errors
    assert errors[-1] < 0.2


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=64), st.floats(0.01, 0.1), st.floats(1.0, 100.0))
@settings(max_examples=12)
def test_growth_of_a_gaussian_of_any_shape_and_up_to_64_dimensions(
    eigenvalues: list[float], low: float, high: float
) -> None:
    spread, d = torch.tensor(eigenvalues, dtype=torch.float64), len(eigenvalues)
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)).Q
    gaussian = GaussianMixture(torch.ones(1).double(), torch.zeros(1, d).double(), (axes * spread @ axes.T)[None])
    result = growth(gaussian, torch.zeros(1, d).double(), sigma_grid(low, high, 60, INF), method="euler")
    assert float(result.value) == pytest.approx(float(gaussian_growth(spread, low, high)), abs=2e-3 * d)


def test_growth_of_a_point_mass_is_the_largest_there_is() -> None:
    memoriser = PointMasses(points(0, 10, 24) * 5)
    x = (points(0, 10, 24) * 5)[:4]
    result = growth(memoriser, x, sigma_grid(0.01, 0.5, 10, INF))
    torch.testing.assert_close(
        result.value, torch.full((4,), 24 * torch.log(torch.tensor(50.0)).item()).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(result.rate, torch.full((4, 11), 24.0).double(), rtol=1e-6, atol=0)


def test_hutchinson_is_unbiased_and_knows_its_error() -> None:
    mixture, x = random_mixture(5, d=16), points(6, 200, 16)
    exact, no_error = divergence(mixture, x, 0.3)
    estimate, error = divergence(mixture, x, 0.3, 1000, range(200))
    z = (estimate - exact) / error
    assert not no_error.any()
    assert divergence(mixture, x[:2], 0.3, 1, range(2))[1].isnan().all()
    assert abs(float(z.mean())) < 4 / 200**0.5
    assert 0.85 < float(z.std()) < 1.15


def test_error_of_the_growth_is_that_of_repeated_estimates() -> None:
    mixture, x, sigmas = random_mixture(5, d=16), points(6, 3, 16), sigma_grid(0.05, 5.0, 8, INF)
    run = growth(mixture, x.repeat(150, 1), sigmas, 8, range(450))
    spread = run.value.unflatten(0, (150, 3)).std(0)
    claimed = run.standard_error.square().unflatten(0, (150, 3)).mean(0).sqrt()
    torch.testing.assert_close(claimed, spread, rtol=0.25, atol=0)


@pytest.mark.parametrize("attention", [False, True])
def test_divergence_of_a_network_is_the_trace_of_its_jacobian(attention: bool, generator: torch.Generator) -> None:
    eps = UNetField(small_unet(attention=attention), scheduler())
    x = torch.randn(2, 3, 8, 8, generator=generator)
    traces = [
        torch.autograd.functional.jacobian(lambda y: eps(y[None], 0.4)[0], row).reshape(192, 192).trace() for row in x
    ]
    value, _ = divergence(eps, x, 0.4)
    torch.testing.assert_close(value, torch.stack(traces), rtol=1e-3, atol=1e-2)


def test_an_item_does_not_depend_on_its_neighbours() -> None:
    mixture, x, sigmas = random_mixture(1), points(2, 7), sigma_grid(0.1, 3.0, 4, INF)
    whole = growth(mixture, x, sigmas, 3, range(7))
    few = growth(mixture, x[[5, 2]], sigmas, 3, [5, 2])
    torch.testing.assert_close(few.value, whole.value[[5, 2]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(few.by_direction, whole.by_direction[:, [5, 2]], rtol=1e-12, atol=1e-12)
    other = growth(mixture, x, sigmas, 3, range(1, 8))
    assert (other.value != whole.value).all()


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_growth_does_not_depend_on_the_axes(seed: int) -> None:
    mixture, x, sigmas = random_mixture(seed), points(seed + 1), sigma_grid(0.1, 3.0, 6, INF)
    turn = torch.linalg.qr(points(seed + 2, 4)).Q
    turned = GaussianMixture(mixture.weights, mixture.means @ turn.T, turn @ mixture.covariances @ turn.T)
    torch.testing.assert_close(
        growth(turned, x @ turn.T, sigmas).value, growth(mixture, x, sigmas).value, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize(("directions", "method"), [(3, "heun"), (2, "euler"), (None, "heun")])
def test_network_evaluations_are_counted_as_they_happen(
    directions: int | None, method: ode.Method, backward_rows: Counter[str]
) -> None:
    mixture, x = random_mixture(0), points(1, 5)
    seen: Counter[str] = Counter()

    def counting(y: torch.Tensor, sigma: float) -> torch.Tensor:
        seen["forward"] += len(y)
        return mixture(y, sigma)

    result = growth(counting, x, sigma_grid(0.1, 3.0, 4, INF), directions, range(5), method)
    assert (seen + backward_rows).total() == result.evaluations * len(x)


def test_bad_input_is_refused() -> None:
    eps = UNetField(small_unet(), scheduler())
    pictures = torch.zeros(3, 3, 8, 8)
    pictures[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="picture 1 of 3 has NaN or infinite values"):
        growth(eps, pictures, sigma_grid(0.1, 1, 2), 1, range(3))
    with pytest.raises(ValueError, match="at least one direction; got 0"):
        divergence(eps, torch.zeros(1, 3, 8, 8), 0.1, 0, [0])
    for seeds in (None, range(2)):
        with pytest.raises(ValueError, match="1 items need a seed each; there are"):
            divergence(eps, torch.zeros(1, 3, 8, 8), 0.1, 1, seeds)
