"""The p-Laplacian's estimators against closed forms, their own stated errors and one another."""

from collections import Counter

import pytest
import torch
from conftest import scheduler, small_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from test_carried_axes import turned_gaussian
from test_mixtures import points, random_mixture

from memlib.detectors import p_laplacian as module
from memlib.detectors.p_laplacian import p_laplacian
from memlib.detectors.volume import divergence, growth
from memlib.fields.mixtures import GaussianMixture, PointMasses
from memlib.fields.unet import UNetField
from memlib.sampling import ode
from memlib.sampling.grids import sigma_grid

P = [1.0, 1.5, 2.0, 3.0]
SURFACES = [
    (estimator, scheme) for estimator in ("flux", "cosine") for scheme in ("independent", "antithetic", "orthogonal")
]
ESTIMATORS = [("autodiff", "antithetic"), ("ball", "antithetic"), *SURFACES]


def truth(mixture: GaussianMixture, x: torch.Tensor, sigma: float, p: list[float]) -> torch.Tensor:
    return torch.stack([mixture.p_laplacian(x, sigma, power) for power in p])


@given(st.integers(0, 10**6), st.floats(0.05, 20.0), st.lists(st.floats(1.0, 5.0), min_size=1, max_size=3))
@settings(max_examples=40)
def test_all_axes_give_the_closed_form(seed: int, sigma: float, p: list[float]) -> None:
    mixture, x = random_mixture(seed), points(seed + 1)
    result = p_laplacian(mixture, x, sigma, p)
    torch.testing.assert_close(result.value, truth(mixture, x, sigma, p), rtol=1e-6, atol=1e-9)
    assert not result.standard_error.any()


@pytest.mark.parametrize(("estimator", "scheme"), [*ESTIMATORS[1:], pytest.param(*ESTIMATORS[0], marks=pytest.mark.ci)])
def test_every_estimator_means_the_closed_form(estimator: module.Estimator, scheme: module.Scheme) -> None:
    mixture, x, sigma, radius = random_mixture(0), points(1), 1.0, 0.02
    p = [1.0] if estimator == "cosine" else P
    result = p_laplacian(mixture, x, sigma, p, 40_000, range(5), estimator, radius, scheme)
    expected = truth(mixture, x, sigma, p) * (radius / 4 if estimator == "cosine" else 1)
    bias = 2e-3 * expected.abs()  # of the radius
    assert ((result.value - expected).abs() < 4 * result.standard_error + bias).all()


@pytest.mark.parametrize(("estimator", "scheme"), ESTIMATORS)
def test_the_stated_error_is_the_spread(estimator: module.Estimator, scheme: module.Scheme) -> None:
    gaussian, _ = turned_gaussian(torch.linspace(0.05, 2.0, 16, dtype=torch.float64))
    x = 0.5 * torch.ones(400, 16, dtype=torch.float64)
    for directions in (24, 64) if estimator in ("flux", "cosine") else (8,):
        p = [1.0] if estimator == "cosine" else P
        result = p_laplacian(gaussian, x, 1.0, p, directions, range(400), estimator, 1.0, scheme)
        spread = result.value.std(1)
        stated = result.standard_error.square().mean(1).sqrt()
        if directions == 64 and scheme == "orthogonal":  # two whole frames: exact for p = 2, whose terms are quadratic
            quadratic = torch.tensor([power == 2 for power in p])
            assert (spread[quadratic] < 1e-12).all()
            spread, stated = spread[~quadratic], stated[~quadratic]
        torch.testing.assert_close(stated, spread, rtol=0.15, atol=1e-12)


def test_one_whole_frame_knows_its_error_for_quadratic_terms_only() -> None:
    gaussian, _ = turned_gaussian(torch.linspace(0.05, 2.0, 16, dtype=torch.float64))
    x = 0.5 * torch.ones(50, 16, dtype=torch.float64)
    result = p_laplacian(gaussian, x, 1.0, P, 32, range(50), "flux", 1.0, "orthogonal")
    for p, value, error in zip(P, result.value, result.standard_error, strict=True):
        if p == 2:
            assert value.std() < 1e-12
            assert (error < 1e-12).all()
        else:
            assert value.std() > 1e-4
            assert error.isnan().all()


def test_the_error_falls_with_the_root_of_the_samples_and_the_bias_with_the_square_of_the_radius() -> None:
    mixture, x = random_mixture(2, d=2), points(3, 1, 2).expand(300, -1)
    few, many = (p_laplacian(mixture, x, 1.0, P, k, range(300), "flux", 0.5).value.std(1) for k in (16, 256))
    torch.testing.assert_close(few / many, torch.full((4,), 4.0).double(), rtol=0.25, atol=0)
    expected = truth(mixture, x[:1], 1.0, P)
    bias = [
        p_laplacian(mixture, x[:1], 1.0, P, 4 * 5000, [0], "flux", radius, "orthogonal").value - expected
        for radius in (0.4, 0.2)
    ]
    torch.testing.assert_close(bias[0] / bias[1], torch.full((4, 1), 4.0).double(), rtol=0.15, atol=0)


def test_flux_and_ball_measure_the_same_mean() -> None:
    mixture, x = random_mixture(5), points(6)
    flux = p_laplacian(mixture, x, 0.7, P, 40_000, range(5), "flux", 1.5)
    ball = p_laplacian(mixture, x, 0.7, P, 40_000, range(5, 10), "ball", 1.5)
    error = (flux.standard_error.square() + ball.standard_error.square()).sqrt()
    assert ((flux.value - ball.value).abs() < 4 * error).all()
    assert ((flux.value - truth(mixture, x, 0.7, P)).abs() > 4 * error).any(), "the radius would not matter"


def test_known_values() -> None:
    gaussian = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.1 * torch.eye(2).double()[None])
    at = torch.tensor([[1.0, 0.0]]).double()
    flux = p_laplacian(gaussian, at, 1e-3, [2.0], 400, [0], "flux", 0.5)
    assert float(flux.value) == pytest.approx(-20, abs=0.2)
    point = PointMasses(torch.zeros(1, 12).double())
    x = 0.3 * torch.ones(1, 12).double()
    found = p_laplacian(point, x, 0.5, [1.0, 2.0, 3.0]).value[:, 0]
    length = 0.3 * 12**0.5  # the score is -x / sigma^2
    expected = torch.tensor([-11 / length, -12 / 0.25, -13 * length / 0.25**2]).double()
    torch.testing.assert_close(found, expected)
    peak = p_laplacian(point, torch.zeros(1, 12).double(), 0.5, [1.0], 100, [0], "cosine")
    assert float(peak.value) == pytest.approx(-1)


def test_at_the_very_top_of_a_peak_the_value_is_finite_and_documented() -> None:
    point, top = PointMasses(torch.zeros(1, 12).double()), torch.zeros(1, 12).double()
    floor = module.FLOOR * 12**0.5 / 0.5
    result = p_laplacian(point, top, 0.5, [1.0, 1.5, 2.0, 3.0, 5.0])
    expected = torch.tensor([-48 / floor, -48 / floor**0.5, -48, 0, 0]).double()
    torch.testing.assert_close(result.value[:, 0], expected)
    near = top + 1e-6
    length = 1e-6 * 12**0.5 / 0.25
    expected = torch.tensor([-13 * length * 4, -15 * length**3 * 4]).double()
    torch.testing.assert_close(p_laplacian(point, near, 0.5, [3.0, 5.0]).value[:, 0], expected, rtol=1e-6, atol=0)
    ball = p_laplacian(point, near, 0.5, [3.0], 4000, [0], "ball", 1e-7)
    step = module.STEP * 0.5
    assert float(ball.value) == pytest.approx(-step * 12**1.5 / 0.5**4, rel=1e-3), (
        "differences see nothing below a step"
    )


def test_the_cosine_forgets_the_length_of_the_score() -> None:
    mixture, x = random_mixture(0), points(1)
    stretched = lambda y, sigma: mixture(y, sigma) * (1 + y.square().sum(1, keepdim=True))  # noqa: E731
    cosines = [p_laplacian(eps, x, 1.0, [1.0], 32, range(5), "cosine").value for eps in (mixture, stretched)]
    torch.testing.assert_close(*cosines)
    flux = p_laplacian(mixture, x, 1.0, [1.0], 32, range(5), "flux")
    torch.testing.assert_close(flux.value * 1.0 / 4**0.5, cosines[0])  # radius / d = sigma / sqrt(d)


def test_integrated_over_the_levels_it_is_the_volume_growth() -> None:
    mixture, x = random_mixture(0), points(1)
    sigmas = sigma_grid(0.1, 5.0, 16, float("inf"))
    rates, at = [], x
    for i, sigma in enumerate(sigmas.tolist()):
        rates.append(-(sigma**2) * p_laplacian(mixture, at, sigma, [2.0]).value[0])
        if i < 16:
            at = ode.solver_step(mixture, at, sigma, float(sigmas[i + 1]))
    integral = torch.trapezoid(torch.stack(rates), sigmas.log(), dim=0)
    torch.testing.assert_close(integral, growth(mixture, x, sigmas).value)


def test_on_a_network_it_is_the_trace_of_the_jacobian(generator: torch.Generator) -> None:
    eps = UNetField(small_unet(channels=1).double(), scheduler())
    x = torch.randn(2, 1, 8, 8, generator=generator).double()
    result = p_laplacian(eps, x, 0.5, P)
    torch.testing.assert_close(result.value[2], -divergence(eps, x, 0.5)[0] / 0.5, rtol=1e-6, atol=1e-6)
    row = x[:1].requires_grad_()
    score = -eps(row, 0.5) / 0.5
    flow = (score.norm() ** -1 * score).flatten()
    rows = [torch.autograd.grad(flow[i], row, retain_graph=True)[0].flatten()[i] for i in range(64)]
    torch.testing.assert_close(result.value[0, 0], torch.stack(rows).sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("estimator", "scheme"), [("autodiff", "antithetic"), ("ball", "antithetic"), *SURFACES[:3]])
def test_evaluations_are_counted_and_neighbours_change_nothing(
    estimator: module.Estimator, scheme: module.Scheme, backward_rows: Counter[str]
) -> None:
    mixture, x = random_mixture(0), points(1, 9)
    seen: Counter[str] = Counter()

    def counting(y: torch.Tensor, sigma: float) -> torch.Tensor:
        seen["forward"] += len(y)
        return mixture(y, sigma)

    result = p_laplacian(counting, x, 1.0, P, 6, range(9), estimator, None, scheme)
    assert (seen + backward_rows).total() == result.evaluations * len(x)
    few = p_laplacian(mixture, x[[7, 2]], 1.0, P, 6, [7, 2], estimator, None, scheme)
    torch.testing.assert_close(few.value, result.value[:, [7, 2]], rtol=1e-9, atol=1e-9)


def test_bad_requests_are_refused() -> None:
    mixture, x = random_mixture(0), points(1)
    for arguments, message in (
        ({"p": [0.5]}, r"sequence of p of at least 1; got \[0.5\]"),
        ({"p": [float("inf")]}, "sequence of p of at least 1"),
        ({"p": []}, "sequence of p of at least 1"),
        ({"p": 2.0}, "sequence of p of at least 1; got 2.0"),
        ({"p": [2.0], "x": x[:0]}, "at least one item; there are none"),
        ({"p": [2.0], "sigma": 0.0}, "noise level of a p-Laplacian must be positive; got 0.0"),
        ({"p": [2.0], "radius": -1.0}, "radius of a p-Laplacian must be positive; got -1.0"),
        ({"p": [2.0], "directions": 0}, "at least one direction; got 0"),
        ({"p": [2.0], "estimator": "flux", "directions": 5}, "come with their opposites; 5 is odd"),
        ({"p": [2.0], "estimator": "flux", "directions": 10, "scheme": "orthogonal"}, "do not fill frames of 8"),
        ({"p": [2.0], "estimator": "flux"}, "the estimator flux needs a number of directions"),
        ({"p": [2.0], "estimator": "cosine", "directions": 2}, "mean cosine is the 1-Laplacian"),
        ({"p": [2.0], "directions": 2, "seeds": range(3)}, "5 items need a seed each; there are 3"),
        ({"p": [2.0], "estimator": "fluxx"}, "unknown p-Laplacian estimator 'fluxx'; known: autodiff, flux"),
        ({"p": [2.0], "scheme": "both"}, "unknown p-Laplacian scheme 'both'; known: independent"),
    ):
        with pytest.raises(ValueError, match=message):
            p_laplacian(**{"eps": mixture, "x": x, "sigma": 1.0} | arguments)
    with pytest.raises(ValueError, match=r"for items \[\d+, 4\] has the shape \[\d+, 1\]"):
        p_laplacian(lambda y, s: mixture(y, s)[:, :1], x, 1.0, [2.0])
    broken = lambda y, s: mixture(y, s) / (y[:, :1] != x[3, 0])  # noqa: E731
    with pytest.raises(ValueError, match="at sigma 1 is not finite around item 3"):
        p_laplacian(broken, x, 1.0, [2.0], 4, range(5))
    with pytest.raises(ValueError, match="outside of the schedule"):
        p_laplacian(UNetField(small_unet(), scheduler()), torch.zeros(1, 3, 8, 8), 1e-5, [2.0], 1, [0])
