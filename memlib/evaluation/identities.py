"""What the papers' quantities have in common, on mixtures: each by its detector, and by a closed form without it."""

from collections.abc import Sequence

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from memlib.detectors.denoising import length
from memlib.detectors.p_laplacian import p_laplacian
from memlib.detectors.text import guess_distance
from memlib.detectors.volume import divergence, growth
from memlib.fields import NoisePredictor
from memlib.fields.mixtures import GaussianMixture
from memlib.sampling.ode import integrate
from memlib.tensors import trapezoid_weights

NODES = 60  # of the quadrature in each dimension


def under_caption(mixture: GaussianMixture, chances: Tensor) -> GaussianMixture:
    """The mixture p(x|c) of what bears a caption, from the chance [K] that what a component gives bears it."""
    weights = mixture.weights * chances
    bear = weights > 0
    return GaussianMixture(weights[bear] / weights.sum(), mixture.means[bear], mixture.covariances[bear])


def log_caption(mixture: GaussianMixture, chances: Tensor, x: Tensor, sigma: float) -> Tensor:
    """log p(c|x) [N] at noisy points x, by Bayes' rule."""
    share = (mixture.weights * chances).sum().log()
    return under_caption(mixture, chances).log_density(x, sigma) + share - mixture.log_density(x, sigma)


def over_noise(d: int, nodes: int = NODES) -> tuple[Tensor, Tensor]:
    """Points n [Q, d] and weights [Q] of a quadrature over standard normal noise (Gauss-Hermite, a product over dimensions)."""
    places, weights = (torch.from_numpy(part) for part in hermegauss(nodes))
    grid = torch.cartesian_prod(*[places] * d).reshape(-1, d)
    shares = torch.cartesian_prod(*[weights / weights.sum()] * d).reshape(-1, d)
    return grid, shares.prod(1)


def expected_loss(eps: NoisePredictor, x: Tensor, sigma: float, nodes: int = NODES) -> Tensor:
    """What `denoising_loss` is on average over all noise [N], at points x [N, d] of few dimensions, in float64."""
    noise, weights = over_noise(x.shape[1], nodes)
    points = (x[:, None] + sigma * noise).flatten(0, 1)
    errors = (eps(points, sigma).reshape(len(x), *noise.shape) - noise).square().mean(2)
    return errors @ weights


def identities(
    mixture: GaussianMixture, chances: Tensor, x: Tensor, sigma: float, sigmas: Tensor, powers: Sequence[float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of what a detector gives and a closed form without it, each [N] at points x [N, d] of float64, by name.

    chances: of a caption, see `under_caption`. sigmas: levels of the growth, along the same steps in both. The closed forms
    take derivatives of the log-density by automatic differentiation; where a p-Laplacian is asked for, of the flow |s|^(p-2) s.
    """
    d = x.shape[1]
    captioned = under_caption(mixture, chances)
    rate, rate_of_caption = (sigma * divergence(eps, x, sigma)[0] for eps in (mixture, captioned))
    pairs = {"growth rate": (rate, -(sigma**2) * _laplacian(mixture, x, sigma))}

    levels = sigmas.sort().values
    path = [x]
    integrate(mixture, x, levels, callback=lambda _, y: path.append(y))
    rates = [-(level**2) * _laplacian(mixture, y, level) for y, level in zip(path, levels.tolist(), strict=True)]
    grown = growth(mixture, x, levels).value
    pairs["growth"] = grown, torch.stack(rates, 1) @ trapezoid_weights(levels.log())
    ends = (mixture.log_density(y, float(level)) for y, level in ((x, levels[0]), (path[-1], levels[-1])))
    pairs["growth, as a likelihood"] = grown, next(ends) - next(ends)

    pairs["FLIPD"] = d - rate + length(mixture, x, sigma).square(), d + _by_log_sigma(mixture, x, sigma)
    noise, weights = over_noise(d)
    around = (x[:, None] + sigma * noise).flatten(0, 1)
    objective = mixture.score(around, sigma).square().sum(1) + 2 * mixture.p_laplacian(around, sigma, 2.0)
    expected = 1 + sigma**2 / d * objective.reshape(len(x), -1) @ weights
    pairs["loss"] = expected_loss(mixture, x, sigma), expected
    found = p_laplacian(mixture, x, sigma, powers).value
    for p, value in zip(powers, found, strict=True):
        pairs[f"{p:g}-Laplacian"] = value, _divergence_of_flow(mixture, x, sigma, p)

    def of_caption(y: Tensor) -> Tensor:
        return log_caption(mixture, chances, y[None], sigma)[0]

    steepness = torch.vmap(torch.func.grad(of_caption))(x).norm(dim=1)
    bend = torch.vmap(lambda y: torch.func.hessian(of_caption)(y).trace())(x)
    pairs["magnitude"] = guess_distance(captioned, mixture, x, sigma) / sigma, sigma * steepness
    pairs["growth rate, what the prompt adds"] = rate_of_caption - rate, -(sigma**2) * bend
    return pairs


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest error of values [N], relative to the largest of the expected ones."""
    return float((found - expected).abs().max() / expected.abs().max())


def _laplacian(mixture: GaussianMixture, x: Tensor, sigma: float) -> Tensor:
    """Laplacian of log p_sigma [N], by second derivatives of the density."""
    hessian = torch.func.hessian(lambda y: mixture.log_density(y[None], sigma)[0])
    return torch.vmap(lambda y: hessian(y).trace())(x)


def _divergence_of_flow(mixture: GaussianMixture, x: Tensor, sigma: float, p: float) -> Tensor:
    score = torch.func.grad(lambda y: mixture.log_density(y[None], sigma)[0])

    def flow(y: Tensor) -> Tensor:
        return score(y).norm() ** (p - 2) * score(y)

    return torch.vmap(lambda y: torch.func.jacrev(flow)(y).trace())(x)


def _by_log_sigma(mixture: GaussianMixture, x: Tensor, sigma: float) -> Tensor:
    """Derivative of log p_sigma(x) [N] by log sigma, at fixed x."""
    log_sigma = torch.full((len(x),), sigma, dtype=x.dtype).log().requires_grad_()
    return torch.autograd.grad(mixture.log_density(x, log_sigma.exp()).sum(), log_sigma)[0]
