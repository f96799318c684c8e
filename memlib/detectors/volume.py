"""Volume growth along the probability-flow ODE (Hasegawa & Yasuda, arXiv 2503.19429).

The log-volume of a small region around an image grows by d log det J / dsigma = tr(d eps / dx). In log sigma the
rate is sigma * tr(d eps / dx): d at a point mass, so the rate counts the directions that are frozen at that noise level.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.data import check_images
from memlib.models import MAX_BATCH, NoisePredictor
from memlib.ode import Method, check_method, integrate, solver_step

Estimator = Literal["trace", "axes", "edges"]
EVALUATIONS = {"euler": 1, "heun": 2}  # of the network, by one step of the solver
EDGE = 0.05  # length of the paper's edges, on its scale sqrt(abar) x


class Growth(NamedTuple):
    """Log-volume growth of N items, in variance-exploding coordinates, from the smallest to the largest noise level.

    value: [N]. standard_error: [N], of the choice of directions alone (nan with a single one, 0 with all). by_direction:
    growth per unit of log sigma that each of k directions alone would give, [k, N, S + 1] at each noise level (`trace`) or
    [k, N, S] over each step (`axes`, `edges`). evaluations: network evaluations per item, a forward-mode derivative
    counting two.
    """

    value: Tensor
    standard_error: Tensor
    by_direction: Tensor
    evaluations: int

    @property
    def rate(self) -> Tensor:
        """Growth per unit of log sigma, the mean over directions: [N, S + 1] or [N, S]."""
        return self.by_direction.mean(0)


def growth(
    eps: NoisePredictor,
    x: Tensor,
    sigmas: Tensor,
    directions: int | None = None,
    generator: torch.Generator | None = None,
    method: Method = "heun",
    estimator: Estimator = "trace",
    max_batch: int = MAX_BATCH,
) -> Growth:
    """Log-volume growth around items x [N, ...] along the ODE from the smallest to the largest of `sigmas` [S + 1].

    With `directions` None all d of them are used. The estimators:

    - `trace`: the divergence at every level (see `divergence`), integrated over log sigma by the trapezoid rule; random
      directions are drawn afresh at every level, and the estimate is unbiased for the sum of all directions.
    - `axes`: orthonormal axes carried along by the derivative of every solver step and made orthonormal again by QR; a
      step grows the volume that they span by the product of the diagonal of R. With all d axes that is the
      log-determinant of the solver's map. With fewer, d times the mean over the axes is given; axes that are carried
      turn towards the directions that grow fastest, so this lies above the whole where directions differ.
    - `edges`: the paper's procedure (section 4). Finite differences of length 0.05 stand for the derivative, and edges
      are measured before they are made orthogonal: an upper bound of `axes` by Hadamard's inequality.

    Derivatives are taken `max_batch` at a time, which changes nothing but memory. Raises ValueError for images that are
    not finite, an unknown method or estimator, and less than one direction or more axes than d.
    """
    if x.ndim == 4:
        check_images(x)
    check_method(method)
    d = x[0].numel()
    if estimator not in get_args(Estimator):
        raise ValueError(f"unknown growth estimator {estimator!r}; known: {', '.join(get_args(Estimator))}")
    if directions is not None and (directions < 1 or (estimator != "trace" and directions > d)):
        raise ValueError(f"{directions} directions cannot be followed around an item of {d} dimensions")
    levels = sigmas.sort().values.to(torch.float64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if estimator == "trace":
            return _trace_growth(eps, x, levels, directions, generator, method, max_batch)
        return _carried_growth(eps, x, levels, directions, generator, method, max_batch, estimator == "edges")


def divergence(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    directions: int | None = None,
    generator: torch.Generator | None = None,
    max_batch: int = MAX_BATCH,
) -> tuple[Tensor, Tensor]:
    """tr(d eps / dx) and its standard error (nan with a single direction), each [N], by forward-mode derivatives.

    With a number of `directions`, Hutchinson's estimate over random signs (Grathwohl et al., arXiv 1810.01367, eq. 7);
    without, the exact trace over all d axes.
    """
    samples = _divergences(eps, x, sigma, directions, generator, max_batch)
    return samples.mean(0), standard_error(samples, directions is None)


def _divergences(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    directions: int | None,
    generator: torch.Generator | None,
    max_batch: int,
) -> Tensor:
    """The divergence that each direction alone gives [k, N]."""
    d = x[0].numel()
    if directions is None:
        tangents = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    elif directions < 1:
        raise ValueError(f"a divergence needs at least one direction; got {directions}")
    else:
        signs = torch.randint(0, 2, (directions, *x.shape), generator=generator)
        tangents = (2 * signs - 1).to(x)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, derivatives = directional_derivatives(lambda y: eps(y, sigma), x, tangents, max_batch)
    return (tangents * derivatives).flatten(2).sum(2) * (d if directions is None else 1)


def directional_derivatives(
    function: Callable[[Tensor], Tensor], x: Tensor, tangents: Tensor, max_batch: int, edge: float | None = None
) -> tuple[Tensor, Tensor]:
    """The function's values at x [N, ...] and its derivatives along tangents [k, N, ...], `max_batch` at a time.

    By forward mode or, given the length of an edge, by finite differences.
    """
    n = len(x)
    values, derivatives = [], []
    for rows in torch.arange(len(tangents) * n, device=x.device).split(max_batch):
        start, tangent = x[rows % n], tangents[rows // n, rows % n]
        if edge is None:
            value, derivative = torch.func.jvp(function, (start,), (tangent,))
            values.append(value[: max(0, n - int(rows[0]))])
        else:
            derivative = function(start + edge * tangent)
        derivatives.append(derivative)
    derivatives = torch.cat(derivatives).reshape(tangents.shape)
    if edge is None:
        return torch.cat(values), derivatives
    values = torch.cat([function(rows) for rows in x.split(max_batch)])
    return values, (derivatives - values) / edge


def _trace_growth(
    eps: NoisePredictor,
    x: Tensor,
    levels: Tensor,
    directions: int | None,
    generator: torch.Generator | None,
    method: Method,
    max_batch: int,
) -> Growth:
    rates: list[Tensor] = []

    def measure(x: Tensor, sigma: float) -> None:
        rates.append(sigma * _divergences(eps, x, sigma, directions, generator, max_batch))

    measure(x, float(levels[0]))
    integrate(eps, x, levels, method, callback=lambda step, x: measure(x, float(levels[step + 1])))
    by_direction = torch.stack(rates, 2)
    weights = trapezoid_weights(levels.log()).to(by_direction)
    error = standard_error(by_direction, directions is None)
    cost = (len(levels) - 1) * EVALUATIONS[method] + len(levels) * 2 * (directions or x[0].numel())
    return Growth(by_direction.mean(0) @ weights, (error.square() @ weights.square()).sqrt(), by_direction, cost)


def _carried_growth(
    eps: NoisePredictor,
    x: Tensor,
    levels: Tensor,
    directions: int | None,
    generator: torch.Generator | None,
    method: Method,
    max_batch: int,
    edges: bool,
) -> Growth:
    n, d = len(x), x[0].numel()
    k = directions or d
    axes = torch.linalg.qr(torch.randn(n, d, k, generator=generator, dtype=x.dtype).to(x.device)).Q
    steps = []
    for here, there in pairwise(levels.tolist()):
        edge = EDGE * (1 + here**2) ** 0.5 if edges else None
        tangents = axes.permute(2, 0, 1).reshape(k, *x.shape)
        x, pushed = directional_derivatives(
            lambda y, a=here, b=there: solver_step(eps, y, a, b, method), x, tangents, max_batch, edge
        )
        pushed = pushed.reshape(k, n, d).permute(1, 2, 0)
        axes, r = torch.linalg.qr(pushed)
        diagonal = r.diagonal(dim1=-2, dim2=-1)
        axes = axes * diagonal.sign()[:, None]  # as Gram-Schmidt has it; a finite difference sees the sign
        lengths = pushed.norm(dim=1) if edges else diagonal.abs()
        steps.append(lengths.log())
    per_step = d * torch.stack(steps).permute(2, 1, 0)  # [k, N, S]
    total = per_step.sum(2)
    error = standard_error(total, k == d) * (1 - k / d) ** 0.5
    cost = (len(levels) - 1) * EVALUATIONS[method] * ((k + 1) if edges else 2 * k)
    return Growth(total.mean(0), error, per_step / levels.log().diff().to(x), cost)


def standard_error(samples: Tensor, all_directions: bool) -> Tensor:
    """Standard error of the mean over directions of samples [k, ...]: nan for a single one, 0 for all there are."""
    if all_directions:
        return torch.zeros_like(samples[0])
    if len(samples) == 1:
        return torch.full_like(samples[0], float("nan"))
    return samples.std(0) / len(samples) ** 0.5


def trapezoid_weights(nodes: Tensor) -> Tensor:
    """Weights [S + 1] of the trapezoid rule on increasing nodes."""
    step = nodes.diff()
    edge = torch.zeros(1, dtype=nodes.dtype)
    return (torch.cat([step, edge]) + torch.cat([edge, step])) / 2
