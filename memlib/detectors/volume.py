"""Volume growth along the probability-flow ODE (Hasegawa & Yasuda, arXiv 2503.19429).

The log-volume of a small region around an image grows by d log det J / dsigma = tr(d eps / dx). In log sigma the
rate is sigma * tr(d eps / dx): d at a point mass, so the rate counts the directions that are frozen at that noise level.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors.api import Detector, Items, Ratio, Scores, calibrated, conditioned
from memlib.detectors.derivatives import adjoint_derivative, directional_derivatives
from memlib.fields import Field, NoisePredictor
from memlib.sampling.grids import check_timesteps, ratio_grid, sigma_grid
from memlib.sampling.ode import EVALUATIONS, Method, check_method, integrate, solver_step
from memlib.tensors import (
    average,
    check_images,
    check_seeds,
    generators,
    norm,
    signs,
    standard_error,
    total,
    trapezoid_weights,
)

Estimator = Literal["trace", "axes", "edges"]
EDGE = 0.05  # length of the paper's edges, on its scale sqrt(abar) x


class Growth(NamedTuple):
    """Log-volume growth of N items, in variance-exploding coordinates, from the smallest to the largest noise level.

    value: [N]. standard_error: [N], of the choice of directions alone: 0 with all of them; nan with a single one, and for
    axes that are carried along, which depend on one another. by_direction: growth per unit of log sigma that each of k
    directions alone would give, [k, N, S + 1] at each noise level (`trace`) or [k, N, S] over each step (`axes`, `edges`).
    evaluations: network evaluations per item: a backward pass counts one, a forward-mode derivative (`axes`) two.
    """

    value: Tensor
    standard_error: Tensor
    by_direction: Tensor
    evaluations: int

    @property
    def rate(self) -> Tensor:
        """Growth per unit of log sigma, the mean over directions: [N, S + 1] or [N, S]."""
        return average(self.by_direction, 0)


def growth(
    eps: NoisePredictor,
    x: Tensor,
    sigmas: Tensor,
    directions: int | None = None,
    seeds: Sequence[int] | None = None,
    method: Method = "heun",
    estimator: Estimator = "trace",
) -> Growth:
    """Log-volume growth around items x [N, ...] along the ODE from the smallest to the largest of `sigmas` [S + 1].

    With `directions` None all d of them are used. `seeds`, one an item, decide the random directions. The estimators:

    - `trace`: the divergence at every level (see `divergence`), integrated over log sigma by the trapezoid rule; random
      directions are drawn afresh at every level, and the estimate is unbiased for the sum of all directions.
    - `axes`: orthonormal axes carried along by the derivative of every solver step and made orthonormal again by QR; a
      step grows the volume that they span by the product of the diagonal of R. With all d axes that is the
      log-determinant of the solver's map. With fewer, d times the mean over the axes is given; axes that are carried
      turn towards the directions that grow fastest, so this lies above the whole where directions differ.
    - `edges`: the paper's procedure (section 4). Finite differences of length 0.05 stand for the derivative, and edges
      are measured before they are made orthogonal: an upper bound of `axes` by Hadamard's inequality.

    Raises ValueError for images that are not finite, an unknown method or estimator, less than one direction or more axes
    than d, and random directions without a seed for every item.
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
            return _trace_growth(eps, x, levels, directions, seeds, method)
        return _carried_growth(eps, x, levels, directions, check_seeds(seeds, x), method, estimator == "edges")


def divergence(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    directions: int | None = None,
    seeds: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """tr(d eps / dx) and its standard error (nan with a single direction), each [N].

    With a number of `directions`, Hutchinson's estimate over random signs (Grathwohl et al., arXiv 1810.01367, eq. 7), an
    item's from its own seed; without, the exact trace over all d axes.
    """
    items = None if directions is None else generators(check_seeds(seeds, x))
    samples = _divergences(eps, x, sigma, directions, items)
    return average(samples, 0), standard_error(samples, directions is None)


def _divergences(
    eps: NoisePredictor, x: Tensor, sigma: float, directions: int | None, items: list[torch.Generator] | None
) -> Tensor:
    """The divergence that each direction v alone gives [k, N]: v . J'v, a backward pass each after one forward pass."""
    d = x[0].numel()
    if directions is None:
        tangents = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    elif directions < 1:
        raise ValueError(f"a divergence needs at least one direction; got {directions}")
    else:
        tangents = signs(items, directions, x)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, pull_back = adjoint_derivative(eps, x, sigma)
        pulled = pull_back(tangents)
    return total((tangents * pulled).flatten(2)) * (d if directions is None else 1)


def _trace_growth(
    eps: NoisePredictor,
    x: Tensor,
    levels: Tensor,
    directions: int | None,
    seeds: Sequence[int] | None,
    method: Method,
) -> Growth:
    items = None if directions is None else generators(check_seeds(seeds, x))
    rates: list[Tensor] = []

    def measure(x: Tensor, sigma: float) -> None:
        rates.append(sigma * _divergences(eps, x, sigma, directions, items))

    measure(x, float(levels[0]))
    integrate(eps, x, levels, method, callback=lambda step, x: measure(x, float(levels[step + 1])))
    by_direction = torch.stack(rates, 2)
    weights = trapezoid_weights(levels.log()).to(by_direction)
    error = standard_error(by_direction, directions is None)
    cost = (len(levels) - 1) * EVALUATIONS[method] + len(levels) * (1 + (directions or x[0].numel()))
    value, error = total(average(by_direction, 0) * weights), (error.square() @ weights.square()).sqrt()
    return Growth(value, error, by_direction, cost)


def _carried_growth(
    eps: NoisePredictor,
    x: Tensor,
    levels: Tensor,
    directions: int | None,
    seeds: Sequence[int],
    method: Method,
    edges: bool,
) -> Growth:
    n, d = len(x), x[0].numel()
    k = directions or d
    start = torch.stack([torch.randn(k, d, generator=item, dtype=x.dtype) for item in generators(seeds)])
    axes = torch.linalg.qr(start.mT).Q.to(x.device)  # the first of them are the same, whatever their number
    steps = []
    for here, there in pairwise(levels.tolist()):
        edge = EDGE * (1 + here**2) ** 0.5 if edges else None
        tangents = axes.permute(2, 0, 1).reshape(k, *x.shape)
        x, pushed = directional_derivatives(
            lambda y, a=here, b=there: solver_step(eps, y, a, b, method), x, tangents, edge
        )
        pushed = pushed.reshape(k, n, d).permute(1, 2, 0)
        axes, r = (part.to(x.device) for part in torch.linalg.qr(pushed.cpu()))  # a GPU's way depends on their number
        diagonal = r.diagonal(dim1=-2, dim2=-1)
        axes = axes * diagonal.sign()[:, None]  # as Gram-Schmidt has it; a finite difference sees the sign
        lengths = norm(pushed.mT) if edges else diagonal.abs()
        steps.append(lengths.log())
    per_step = d * torch.stack(steps).permute(2, 1, 0)  # [k, N, S]
    grown = total(per_step)
    error = torch.zeros_like(grown[0]) if k == d else torch.full_like(grown[0], float("nan"))
    cost = (len(levels) - 1) * EVALUATIONS[method] * ((k + 1) if edges else 2 * k)
    return Growth(average(grown, 0), error, per_step / levels.log().diff().to(x), cost)


def noise_levels(
    field: Field,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    steps: int = 1,
    ratio: float | None = None,
    timesteps: int | None = None,
) -> Tensor:
    """The noise levels [S + 1] that a setting names.

    Even in log sigma from `sigma_min` to `sigma_max` (the schedule's ends if not given); with `ratio`, each so many times the
    one before; with `timesteps`, the first so many steps of the training schedule.
    """
    if timesteps is not None:
        check_timesteps(field, timesteps)
        return field.sigmas[: timesteps + 1]
    low = field.sigma_min if sigma_min is None else sigma_min
    if ratio is not None:
        return ratio_grid(low, ratio, steps)
    return sigma_grid(low, field.sigma_max if sigma_max is None else sigma_max, steps, float("inf"))


def score_growth(
    field: Field,
    items: Items,
    *,
    directions: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    steps: int = 1,
    ratio: Ratio | None = None,
    method: Method = "heun",
    prompt: bool = False,
) -> list[Scores]:
    """Growth by the trace, and the rate that it adds up at each noise level alone (reading `rate_at`)."""
    levels = noise_levels(field, sigma_min, sigma_max, steps, ratio)
    x = field.to_latents(items.pictures)
    run = growth(conditioned(field, items, prompt), x, levels, directions, items.seeds, method)
    rates = [
        Scores(rate, i * EVALUATIONS[method] + 1 + directions, {"rate_at": float(f"{sigma:.4g}")})
        for i, (rate, sigma) in enumerate(zip(run.rate.T, levels.tolist(), strict=True))
    ]
    return [Scores(run.value, run.evaluations), *rates]


def score_carried(
    field: Field,
    items: Items,
    *,
    axes: list[int],
    steps: list[int],
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    ratio: Ratio | None = None,
    timesteps: int | None = None,
    method: Method = "euler",
    estimator: Literal["axes", "edges"] = "edges",
    prompt: bool = False,
) -> list[Scores]:
    """Growth of carried axes, the first of them over the first steps of one run: what a run of so many gives."""
    levels = noise_levels(field, sigma_min, sigma_max, max(steps), ratio, timesteps)
    if not 1 <= min(steps) <= max(steps) < len(levels) or min(axes) < 1:
        raise ValueError(f"growth over the first {steps} of {len(levels) - 1} steps and of {axes} axes cannot be read")
    x = field.to_latents(items.pictures)
    run = growth(conditioned(field, items, prompt), x, levels, max(axes), items.seeds, method, estimator)
    growths = run.by_direction * levels.log().diff().to(x)
    cost = {k: EVALUATIONS[method] * ((k + 1) if estimator == "edges" else 2 * k) for k in axes}
    return [
        Scores(total(average(growths[:k, :, :s], 0)), cost[k] * s, {"axes": k, "steps": s}) for k in axes for s in steps
    ]


def score_rate(
    field: Field, items: Items, *, sigma: float, directions: list[int], prompt: bool = False
) -> list[Scores]:
    """Growth rate sigma tr(d eps / dx) at the picture itself at one noise level; readings by the number of directions."""
    if min(directions) < 1:
        raise ValueError(f"a divergence needs at least one direction; got {min(directions)}")
    x = field.to_latents(items.pictures)
    samples = sigma * _divergences(
        conditioned(field, items, prompt), x, sigma, max(directions), generators(items.seeds)
    )
    return [Scores(average(samples[:k], 0), 1 + k, {"directions": k}) for k in directions]


GROWTH = Detector("growth", {"model", "picture"}, ({"sigma_min": 0.02, "steps": 16, "directions": 2},), score_growth)
AXES = Detector(
    "axes",
    {"model", "picture"},
    ({"sigma_min": 0.02, "steps": [16], "axes": [2]},),
    partial(score_carried, estimator="axes"),
)
EDGES = Detector(
    "edges", {"model", "picture"}, ({"sigma_min": 0.2, "ratio": 1.75, "steps": [1], "axes": [1]},), score_carried
)
RATE = Detector("rate", {"model", "picture"}, ({"sigma": 0.2, "directions": [1, 2]},), score_rate)
CALIBRATED_GROWTH = calibrated("calibrated_growth", GROWTH)
