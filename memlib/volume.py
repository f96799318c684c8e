"""Volume growth along the probability-flow ODE (Hasegawa & Yasuda, arXiv 2503.19429).

The log-volume of a small region around an image grows by d log det J / dsigma = tr(d eps / dx). In log sigma the
rate is sigma * tr(d eps / dx): d at a point mass, so the rate counts the directions that are frozen at that noise level.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.data import check_images
from memlib.models import NoisePredictor
from memlib.ode import Method, integrate


class Growth(NamedTuple):
    """Log-volume growth of N items, in variance-exploding coordinates.

    value: [N], from the smallest to the largest noise level. standard_error: [N], of the divergence estimate alone
    (nan with a single direction, 0 when the divergence is exact). rate: [N, S + 1], growth per unit of log sigma at each
    noise level. evaluations: network evaluations per item, a forward-mode derivative counting two.
    """

    value: Tensor
    standard_error: Tensor
    rate: Tensor
    evaluations: int


def divergence(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    directions: int | None = None,
    generator: torch.Generator | None = None,
    max_batch: int = 256,
) -> tuple[Tensor, Tensor]:
    """tr(d eps / dx) and its standard error (nan with a single direction), each [N], by forward-mode derivatives.

    With a number of `directions`, Hutchinson's estimate over random signs (Grathwohl et al., arXiv 1810.01367, eq. 7);
    without, the exact trace over all d axes. Derivatives of all items and directions are taken `max_batch` at a time,
    which changes nothing but memory.
    """
    d = x[0].numel()
    if directions is None:
        tangents = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    elif directions < 1:
        raise ValueError(f"a divergence needs at least one direction; got {directions}")
    else:
        signs = torch.randint(0, 2, (directions, *x.shape), generator=generator)
        tangents = (2 * signs - 1).to(x)
    index = torch.arange(len(tangents) * len(x), device=x.device)
    products = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for rows in index.split(max_batch):
            tangent = tangents[rows // len(x), rows % len(x)]
            _, derivative = torch.func.jvp(lambda y: eps(y, sigma), (x[rows % len(x)],), (tangent,))
            products.append((tangent * derivative).flatten(1).sum(1))
    samples = torch.cat(products).reshape(len(tangents), len(x))
    if directions is None:
        return samples.sum(0), torch.zeros_like(samples[0])
    spread = samples.std(0) if directions > 1 else torch.full_like(samples[0], float("nan"))
    return samples.mean(0), spread / directions**0.5


def growth(
    eps: NoisePredictor,
    x: Tensor,
    sigmas: Tensor,
    directions: int | None = None,
    generator: torch.Generator | None = None,
    method: Method = "heun",
    max_batch: int = 256,
) -> Growth:
    """Log-volume growth around images x [N, ...] along the ODE from the smallest to the largest of `sigmas` [S + 1].

    The divergence (see `divergence`) is taken at every noise level and integrated over log sigma by the trapezoid rule;
    its directions are drawn afresh at every level. Raises ValueError for images that are not finite.
    """
    if x.ndim == 4:
        check_images(x)
    sigmas = sigmas.sort().values
    levels = sigmas.tolist()
    rates, errors = [], []

    def measure(x: Tensor, sigma: float) -> None:
        value, error = divergence(eps, x, sigma, directions, generator, max_batch)
        rates.append(sigma * value)
        errors.append(sigma * error)

    measure(x, levels[0])
    with torch.no_grad():
        integrate(eps, x, sigmas, method, callback=lambda step, x: measure(x, levels[step + 1]))
    rate, error = torch.stack(rates, 1), torch.stack(errors, 1)
    weights = trapezoid_weights(sigmas.log()).to(rate)
    steps_cost = (len(levels) - 1) * {"euler": 1, "heun": 2}[method]
    cost = steps_cost + len(levels) * 2 * (directions or x[0].numel())
    return Growth(rate @ weights, (error.square() @ weights.square()).sqrt(), rate, cost)


def trapezoid_weights(nodes: Tensor) -> Tensor:
    """Weights [S + 1] of the trapezoid rule on increasing nodes."""
    step = nodes.diff()
    edge = torch.zeros(1, dtype=nodes.dtype)
    return (torch.cat([step, edge]) + torch.cat([edge, step])) / 2
