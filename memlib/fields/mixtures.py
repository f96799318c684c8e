"""Distributions whose noise prediction is known in closed form: Gaussian mixtures and training sets."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memlib.tensors import per_item


@dataclass(frozen=True)
class GaussianMixture:
    """Mixture of Gaussians; smoothed by noise of level sigma it has the covariances `covariances + sigma^2 I`.

    weights: [K], positive, summing to 1. means: [K, d]. covariances: [K, d, d], symmetric, positive semi-definite.
    Points are [N, d]; sigma is a number or a tensor [N].
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        components, d = self.means.shape
        if self.weights.shape != (components,) or self.covariances.shape != (components, d, d):
            raise ValueError(
                f"a mixture needs weights [K], means [K, d] and covariances [K, d, d]; these have {list(self.weights.shape)}, "
                f"{list(self.means.shape)} and {list(self.covariances.shape)}"
            )
        if (self.weights <= 0).any() or not torch.isclose(self.weights.sum(), torch.ones_like(self.weights[0])):
            raise ValueError(
                f"the weights of a mixture must be positive and sum to 1; these are {self.weights.tolist()}"
            )
        _ = self._eigen  # now, for a value first computed inside a functional transform must not outlive it

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [K, d] and axes [K, d, d] of the covariances."""
        return torch.linalg.eigh(self.covariances)

    def _components(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted log-densities [N, K], scores [N, K, d] and variances [N or 1, K, d] of the smoothed components."""
        d = x.shape[-1]
        variance = per_item(sigma, x).square()[..., None, None]
        eigenvalues, axes = self._eigen
        spread = eigenvalues + variance.squeeze(-1)  # [N or 1, K, d]
        offset = x[:, None] - self.means
        score = -_turned(_turned(offset, axes.mT) / spread, axes)
        log_density = 0.5 * (offset * score).sum(-1) - 0.5 * spread.log().sum(-1) - 0.5 * d * math.log(2 * math.pi)
        return self.weights.log() + log_density, score, spread

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p_sigma(x) [N]."""
        return self._components(x, sigma)[0].logsumexp(-1)

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """grad log p_sigma(x) [N, d]."""
        log_density, score, _ = self._components(x, sigma)
        return (log_density.softmax(-1)[..., None] * score).sum(1)

    def hessian(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Hessian of log p_sigma at x [N, d, d]."""
        log_density, score, spread = self._components(x, sigma)
        axes = self._eigen[1]
        precision = axes / spread[..., None, :] @ axes.mT
        share = log_density.softmax(-1)[..., None, None]
        second = (share * (score[..., :, None] * score[..., None, :] - precision)).sum(1)
        mean = (share[..., 0] * score).sum(1)
        return second - mean[:, :, None] * mean[:, None, :]

    def p_laplacian(self, x: Tensor, sigma: Tensor | float, p: float) -> Tensor:
        """div(|s|^(p-2) s) [N] of the score s of log p_sigma; for p < 2 it has no limit where the score vanishes."""
        log_density, scores, spread = self._components(x, sigma)
        share = log_density.softmax(-1)
        score = (share[..., None] * scores).sum(1)
        squared = score.square().sum(-1)
        trace = (share * (scores.square().sum(-1) - (1 / spread).sum(-1))).sum(1) - squared
        bent = _turned(score[:, None].expand_as(scores), self._eigen[1].mT).square() / spread  # s' precision s, by axis
        along = (share * ((scores @ score[..., None])[..., 0].square() - bent.sum(-1))).sum(1) / squared - squared
        along = along.where(squared > 0, 0.0)  # at a mode: bounded, and its factor vanishes or is 0 for p >= 2
        return squared ** (p / 2 - 1) * (trace + (p - 2) * along)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Expected noise eps = -sigma * score [N, d]."""
        return -per_item(sigma, x) * self.score(x, sigma)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, d] of the mixture itself (sigma 0)."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        eigenvalues, axes = self._eigen
        root = axes * eigenvalues.clamp_min(0).sqrt()[:, None, :]
        normal = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + (root[component] @ normal[..., None])[..., 0]


def _turned(x: Tensor, axes: Tensor) -> Tensor:
    """axes [K, d, d] applied to vectors [N, K, d]."""
    return torch.einsum("kij,nkj->nki", axes, x)


def gaussian_growth(eigenvalues: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
    """Log-volume growth of the probability-flow ODE of a single Gaussian, from its covariance eigenvalues [..., d]."""
    return 0.5 * ((eigenvalues + sigma_to**2) / (eigenvalues + sigma_from**2)).log().sum(-1)


class PointMasses:
    """The optimal denoiser of a finite training set, which is the perfect memoriser: a point mass at each training item.

    points: [M, ...]. weights: [M], how often each is repeated (equal if not given).
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None) -> None:
        self.points = points.flatten(1).double()
        self.log_weights = torch.zeros(len(points)).double() if weights is None else weights.double().log()

    def posterior(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Probability [N, M] that each training item is the one under the noise, in float64."""
        flat = x.flatten(1).double()
        squared = flat.square().sum(1, keepdim=True) - 2 * flat @ self.points.T + self.points.square().sum(1)
        return (self.log_weights - squared / (2 * per_item(sigma, flat).square())).softmax(-1)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Expected noise (x - E[x0 | x]) / sigma, in the shape of x."""
        denoised = self.posterior(x, sigma) @ self.points
        return (x - denoised.reshape(x.shape).to(x.dtype)) / per_item(sigma, x)

    def divergence(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """tr(d eps / dx) [N] = d / sigma - tr Cov[x0 | x] / sigma^3, in float64."""
        level = per_item(sigma, x.flatten(1).double())[:, 0]
        posterior = self.posterior(x, sigma)
        spread = posterior @ self.points.square().sum(1) - (posterior @ self.points).square().sum(1)
        return self.points.shape[1] / level - spread / level**3
