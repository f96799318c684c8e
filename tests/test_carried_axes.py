"""Axes carried along the flow and the paper's edges: closed forms, the full Jacobian, Hadamard's inequality."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from conftest import scheduler, small_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mixtures import points, random_mixture

from memlib.detectors import volume
from memlib.detectors.volume import growth
from memlib.fields.mixtures import GaussianMixture, PointMasses, gaussian_growth
from memlib.fields.unet import UNetField
from memlib.sampling import ode
from memlib.sampling.grids import sigma_grid

INF = float("inf")


def turned_gaussian(eigenvalues: torch.Tensor, seed: int = 0) -> tuple[GaussianMixture, torch.Tensor]:
    """A Gaussian with these eigenvalues, and its axes as columns."""
    d = len(eigenvalues)
    axes = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    return GaussianMixture(
        torch.ones(1).double(), torch.zeros(1, d).double(), (axes * eigenvalues @ axes.T)[None]
    ), axes


@given(st.lists(st.floats(1e-3, 10.0), min_size=2, max_size=64), st.integers(1, 64), st.integers(0, 100))
@settings(max_examples=8)
def test_carried_axes_span_the_volume_that_the_closed_form_gives(eigenvalues: list[float], k: int, seed: int) -> None:
    spread, d = torch.tensor(eigenvalues, dtype=torch.float64), len(eigenvalues)
    k = min(k, d)
    gaussian, axes = turned_gaussian(spread)
    sigmas = sigma_grid(0.1, 3.0, 40, INF)
    result = growth(gaussian, torch.zeros(1, d).double(), sigmas, k, [seed], estimator="axes")
    frame = torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).T
    stretched = ((spread + 9) / (spread + 0.01)).sqrt()[:, None] * (axes.T @ torch.linalg.qr(frame).Q)
    truth = 0.5 * torch.linalg.slogdet(stretched.T @ stretched).logabsdet * d / k
    assert float(result.value) == pytest.approx(float(truth), rel=1e-3, abs=1e-3 * d)
    if k == d:
        assert float(truth) == pytest.approx(float(gaussian_growth(spread, 0.1, 3.0)), rel=1e-9)
        assert not result.standard_error.any()


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_all_axes_give_the_log_determinant_of_the_solvers_map(method: ode.Method) -> None:
    mixture, x, sigmas = random_mixture(3), points(4, 3), sigma_grid(0.2, 3.0, 5, INF)
    result = growth(mixture, x, sigmas, seeds=range(3), method=method, estimator="axes")
    jacobians = [
        torch.autograd.functional.jacobian(lambda y: ode.encode(mixture, y[None], sigmas, method)[0], row) for row in x
    ]
    truth = torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])
    torch.testing.assert_close(result.value, truth, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(result.rate @ sigmas.log().diff(), truth, rtol=1e-8, atol=1e-8)


@pytest.mark.ci
def test_trace_and_log_determinant_meet_as_the_steps_shrink() -> None:
    mixture, x = random_mixture(3), points(4, 6)
    gaps = []
    for steps in (32, 64, 128):
        sigmas = sigma_grid(0.3, 3.0, steps, INF)
        trace, axes = (growth(mixture, x, sigmas, seeds=range(6), estimator=e) for e in ("trace", "axes"))
        gaps.append(float((trace.value - axes.value).abs().max()))
    assert (torch.tensor(gaps).log2().diff() < -1.6).all(), gaps


def test_all_axes_of_a_network_give_its_log_determinant(generator: torch.Generator) -> None:
    eps = UNetField(small_unet(channels=1), scheduler())
    x, sigmas = torch.randn(1, 1, 8, 8, generator=generator), torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(lambda y: ode.encode(eps, y[None], sigmas)[0], row).reshape(64, 64)
        for row in x
    ]
    truth = torch.stack([torch.linalg.slogdet(j.double()).logabsdet for j in jacobians]).float()
    result = growth(eps, x, sigmas, seeds=[0], estimator="axes")
    torch.testing.assert_close(result.value, truth, rtol=1e-4, atol=1e-3)


def test_few_carried_axes_lie_above_the_whole_and_all_of_them_do_not() -> None:
    spread = torch.tensor([1e-3] * 4 + [4.0] * 12, dtype=torch.float64)
    gaussian, _ = turned_gaussian(spread)
    sigmas, x = sigma_grid(0.05, 5.0, 25, INF), torch.zeros(60, 16).double()
    truth = float(gaussian_growth(spread, 0.05, 5.0))
    means = [float(growth(gaussian, x, sigmas, k, range(60), "heun", "axes").value.mean()) for k in (1, 4, 8, 16)]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.3 * truth
    assert means[-1] == pytest.approx(truth, rel=0.01)
    fresh = growth(gaussian, x, sigmas, 4, range(60))
    z = (float(fresh.value.mean()) - truth) / (float(fresh.value.std()) / 60**0.5)
    assert abs(z) < 4, "directions drawn afresh estimate the whole"


def test_axes_that_are_carried_know_no_error_but_that_of_all_of_them() -> None:
    gaussian, _ = turned_gaussian(torch.linspace(0.5, 1.5, 8, dtype=torch.float64))
    x, sigmas = torch.zeros(3, 8).double(), sigma_grid(0.3, 3.0, 3, INF)
    for estimator in ("axes", "edges"):
        for k in (1, 2, 7):
            assert growth(gaussian, x, sigmas, k, range(3), "euler", estimator).standard_error.isnan().all()
        assert (growth(gaussian, x, sigmas, 8, range(3), "euler", estimator).standard_error == 0).all()


def test_an_items_axes_do_not_depend_on_its_neighbours() -> None:
    mixture, x, sigmas = random_mixture(1), points(2, 5), sigma_grid(0.1, 3.0, 3, INF)
    for estimator in ("axes", "edges"):
        whole = growth(mixture, x, sigmas, 2, range(5), "euler", estimator)
        few = growth(mixture, x[[4, 1]], sigmas, 2, [4, 1], "euler", estimator)
        torch.testing.assert_close(few.by_direction, whole.by_direction[:, [4, 1]], rtol=1e-12, atol=1e-12)


@given(st.lists(st.floats(1e-3, 10.0), min_size=3, max_size=16), st.integers(2, 16), st.integers(0, 100))
@settings(max_examples=15)
def test_edges_before_orthogonalising_are_an_upper_bound(eigenvalues: list[float], k: int, seed: int) -> None:
    spread = torch.tensor(eigenvalues, dtype=torch.float64)
    gaussian, _ = turned_gaussian(spread)
    x, sigmas = torch.zeros(4, len(spread)).double(), sigma_grid(0.05, 3.0, 8, INF)
    axes, edges = (
        growth(gaussian, x, sigmas, min(k, len(spread)), range(seed, seed + 4), "euler", estimator)
        for estimator in ("axes", "edges")
    )
    assert (edges.rate >= axes.rate - 1e-6).all()
    if spread.max() > 2 * spread.min():
        assert (edges.value > axes.value).all()


def test_edges_are_the_papers_procedure_written_out() -> None:
    mixture, x = random_mixture(2, d=6), points(5, 3, 6)
    sigmas, k = sigma_grid(0.2, 2.0, 7, INF), 3
    result = growth(mixture, x, sigmas, k, [4, 5, 6], "euler", "edges")
    starts = [
        torch.randn(k, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).T for seed in (4, 5, 6)
    ]
    frames = torch.linalg.qr(torch.stack(starts)).Q
    for item in range(3):
        point, frame, total = x[item], list(frames[item].T), 0.0
        for here, there in pairwise(sigmas.tolist()):
            length = 0.05 * (1 + here**2) ** 0.5
            new_point = point + (there - here) * mixture(point[None], here)[0]
            ends = [point + length * axis for axis in frame]
            edges = [end + (there - here) * mixture(end[None], here)[0] - new_point for end in ends]
            total += sum(float((edge.norm() / length).log()) for edge in edges)
            point, frame = new_point, []
            for edge in edges:  # Gram-Schmidt
                rest = edge - sum((edge @ axis) * axis for axis in frame)
                frame.append(rest / rest.norm())
        assert float(result.value[item]) == pytest.approx(total * 6 / k, rel=1e-6)


def test_a_point_mass_freezes_every_axis() -> None:
    centres = points(0, 10, 24) * 5
    sigmas = sigma_grid(0.01, 0.5, 10, INF)
    for estimator, tolerance in (("axes", 1e-6), ("edges", 1e-3)):
        result = growth(PointMasses(centres), centres[:4], sigmas, 2, range(4), "euler", estimator)
        torch.testing.assert_close(
            result.value, torch.full((4,), 24 * torch.log(torch.tensor(50.0)).item()).double(), rtol=tolerance, atol=0
        )


@pytest.mark.parametrize("estimator", ["axes", "edges"])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_evaluations_are_counted_as_they_happen(estimator: volume.Estimator, method: ode.Method) -> None:
    mixture, x = random_mixture(0), points(1, 5)
    seen: Counter[str] = Counter()

    def counting(y: torch.Tensor, sigma: float) -> torch.Tensor:
        seen["evaluations"] += len(y) * (2 if torch._C._functorch.is_functorch_wrapped_tensor(y) else 1)
        return mixture(y, sigma)

    result = growth(counting, x, sigma_grid(0.1, 3.0, 4, INF), 3, range(5), method, estimator)
    assert seen["evaluations"] == result.evaluations * len(x)


def test_bad_requests_are_refused() -> None:
    mixture, x, sigmas = random_mixture(0), points(1), sigma_grid(0.1, 3.0, 4)
    with pytest.raises(ValueError, match="unknown growth estimator 'axis'; known: trace, axes, edges"):
        growth(mixture, x, sigmas, 1, range(5), estimator="axis")
    for directions, estimator in ((0, "trace"), (0, "axes"), (5, "edges")):
        with pytest.raises(ValueError, match=f"{directions} directions cannot be followed around an item of 4"):
            growth(mixture, x, sigmas, directions, range(5), estimator=estimator)
    with pytest.raises(ValueError, match="5 items need a seed each; there are 0"):
        growth(mixture, x, sigmas, estimator="axes")
