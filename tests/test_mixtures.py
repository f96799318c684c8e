"""The closed forms against autodiff in float64, scipy and each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from memlib.fields.mixtures import GaussianMixture, PointMasses, gaussian_growth


def random_mixture(seed: int, components: int = 3, d: int = 4) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(components, d, d, generator=generator, dtype=torch.float64)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.1
    means = 2 * torch.randn(components, d, generator=generator, dtype=torch.float64)
    return GaussianMixture(weights / weights.sum(), means, root @ root.mT)


def points(seed: int, n: int = 5, d: int = 4) -> torch.Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


seeds = st.integers(0, 10**6)
sigmas = st.floats(0.01, 50.0)


@given(seeds, sigmas)
def test_density_is_that_of_scipy(seed: int, sigma: float) -> None:
    mixture, x = random_mixture(seed), points(seed + 1)
    components = [
        np.log(float(w)) + multivariate_normal(m.numpy(), c.numpy() + sigma**2 * np.eye(4)).logpdf(x.numpy())
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    ]
    expected = torch.from_numpy(logsumexp(components, axis=0))
    torch.testing.assert_close(mixture.log_density(x, sigma), expected, rtol=1e-9, atol=1e-9)


@given(seeds, sigmas)
@settings(max_examples=25)
def test_score_and_hessian_are_derivatives_of_the_density(seed: int, sigma: float) -> None:
    mixture, x = random_mixture(seed), points(seed + 1)
    score = torch.stack([torch.func.grad(lambda y: mixture.log_density(y[None], sigma)[0])(row) for row in x])
    hessian = torch.stack([torch.func.hessian(lambda y: mixture.log_density(y[None], sigma)[0])(row) for row in x])
    torch.testing.assert_close(mixture.score(x, sigma), score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.hessian(x, sigma), hessian, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(mixture(x, sigma), -sigma * score, rtol=1e-8, atol=1e-8)


@given(seeds, sigmas, st.floats(1.0, 4.0))
@settings(max_examples=25)
def test_p_laplacian_is_the_divergence_of_the_scaled_score(seed: int, sigma: float, p: float) -> None:
    mixture, x = random_mixture(seed), points(seed + 1)

    def flow(y: torch.Tensor) -> torch.Tensor:
        score = torch.func.grad(lambda z: mixture.log_density(z[None], sigma)[0])(y)
        return score.norm() ** (p - 2) * score

    expected = torch.stack([torch.func.jacrev(flow)(row).trace() for row in x])
    torch.testing.assert_close(mixture.p_laplacian(x, sigma, p), expected, rtol=1e-6, atol=1e-8)


def test_one_noise_level_an_item() -> None:
    mixture, x, levels = random_mixture(0), points(1), torch.tensor([0.1, 0.5, 1.0, 3.0, 9.0], dtype=torch.float64)
    singly = torch.cat([mixture(row[None], float(level)) for row, level in zip(x, levels, strict=True)])
    torch.testing.assert_close(mixture(x, levels), singly)


def test_samples_have_the_moments_of_the_mixture(generator: torch.Generator) -> None:
    mixture = random_mixture(3)
    x = mixture.sample(200_000, generator)
    mean = mixture.weights @ mixture.means
    centred = mixture.means - mean
    covariance = (
        mixture.weights[:, None, None] * (mixture.covariances + centred[:, :, None] * centred[:, None, :])
    ).sum(0)
    standard_error = (covariance.diagonal() / len(x)).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * standard_error).all()
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.05, atol=0.1)


@given(seeds, st.floats(0.05, 5.0))
def test_point_masses_are_a_mixture_of_vanishing_gaussians(seed: int, sigma: float) -> None:
    centres, x = points(seed, 6), points(seed + 1)
    weights = torch.tensor([16.0, 4, 1, 1, 1, 1], dtype=torch.float64)
    mixture = GaussianMixture(weights / weights.sum(), centres, torch.zeros(6, 4, 4, dtype=torch.float64))
    memoriser = PointMasses(centres, weights)
    torch.testing.assert_close(memoriser(x, sigma), mixture(x, sigma), rtol=1e-6, atol=1e-6)
    divergence = -sigma * mixture.hessian(x, sigma).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(memoriser.divergence(x, sigma), divergence, rtol=1e-6, atol=1e-5)


def test_point_masses_keep_precision_at_low_noise_in_float32(generator: torch.Generator) -> None:
    pictures = torch.rand(20, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(pictures.shape, generator=generator)
    torch.testing.assert_close(PointMasses(pictures)(pictures + 0.01 * noise, 0.01), noise, rtol=1e-3, atol=1e-3)


def test_growth_of_a_gaussian_is_the_integral_of_its_divergence() -> None:
    from scipy.integrate import quad

    eigenvalues = torch.tensor([0.01, 1.0, 4.0], dtype=torch.float64)
    integral = quad(lambda s: float((s / (eigenvalues + s**2)).sum()), 0.1, 7.0)[0]
    assert float(gaussian_growth(eigenvalues, 0.1, 7.0)) == pytest.approx(integral, rel=1e-8)


def test_wrong_shapes_and_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights \[K\], means \[K, d\]"):
        GaussianMixture(torch.ones(2) / 2, torch.zeros(3, 2), torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="sum to 1"):
        GaussianMixture(torch.ones(3), torch.zeros(3, 2), torch.zeros(3, 2, 2))


def test_p_laplacian_at_the_top_of_a_mode() -> None:
    gaussian = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 3).double(), 0.1 * torch.eye(3).double()[None])
    top = torch.zeros(1, 3).double()
    assert float(gaussian.p_laplacian(top, 0.3, 2.0)) == pytest.approx(-3 / 0.19)
    assert float(gaussian.p_laplacian(top, 0.3, 3.0)) == 0
    assert float(gaussian.p_laplacian(top, 0.3, 1.5)) == -float("inf")
    near = top + 1e-3
    for p in (1.0, 1.5, 2.0, 3.0):
        truth = -(3 + p - 2) * (1e-3 * 3**0.5) ** (p - 2) / 0.19 ** (p - 1)
        assert float(gaussian.p_laplacian(near, 0.3, p)) == pytest.approx(truth)
