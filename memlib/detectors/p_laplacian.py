"""p-Laplacian of the log-density of noisy data, from the noise prediction (Brokman et al., arXiv 2505.08246).

With the score s = -eps / sigma it is div(|s|^(p-2) s): the Laplacian for p = 2; for p = 1 only the direction of the score
counts. Around a Gaussian of variance v it is -(d + p - 2) r^(p-2) / v^(p-1) at a distance r from the top, so the value at the
top is the lowest there is for p < 2, the narrower the lower for p = 2, and 0 for p > 2. A detector takes minus the value.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors.api import Detector, Items, Scores, conditioned
from memlib.detectors.derivatives import adjoint_derivative
from memlib.fields import Field, NoisePredictor
from memlib.tensors import average, check_seeds, generators, norm, signs, standard_error, total

Estimator = Literal["autodiff", "flux", "ball", "cosine"]
Scheme = Literal["independent", "antithetic", "orthogonal"]
FLOOR = 1e-3  # least length of the noise prediction, relative to sqrt(d), in negative powers of it
STEP = 1e-2  # of the finite differences in `ball`, relative to sigma


class PLaplacian(NamedTuple):
    """p-Laplacian of N items for P values of p: value and standard_error [P, N]; evaluations: of the network, per item.

    The standard error is that of the choice of directions (nan with a single one, 0 with all of them). A backward pass
    counts one evaluation, as a forward pass does.
    """

    value: Tensor
    standard_error: Tensor
    evaluations: int


def p_laplacian(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    p: Sequence[float],
    directions: int | None = None,
    seeds: Sequence[int] | None = None,
    estimator: Estimator = "autodiff",
    radius: float | None = None,
    scheme: Scheme = "antithetic",
) -> PLaplacian:
    """p-Laplacian of log p_sigma around items x [N, ...], for every p of a sequence from the same network evaluations.

    `seeds`, one an item, decide the random directions. The estimators, with d the number of dimensions and n a random
    direction of length 1:

    - `autodiff`: at x itself, |s|^(p-2) (tr H + (p-2) s'Hs / |s|^2) with the Hessian H of the log-density; the trace by
      random signs (all d axes if `directions` is None), the rest by one derivative along s. Where p < 2 and |eps| is
      below 0.001 sqrt(d), as at the very top of a peak, that length is taken in its place, so that the value stays finite.
    - `flux`: mean over the ball of a radius around x, from the flow through its surface (divergence theorem):
      d / radius * E[|s|^(p-2) s.n] at x + radius n.
    - `ball`: the same mean over the ball, from central differences of |s|^(p-2) s along random signs at random points
      of it, with the same least length.
    - `cosine`: E[s.n / |s|] on the sphere, the paper's 1-Laplacian of images: `flux` with p = 1 without d / radius.

    The radius is sigma sqrt(d), where noise of that level lies, if not given. The directions of `flux` and `cosine` are
    drawn by a scheme: `independent`; `antithetic`, each with its opposite; `orthogonal`, those of an orthonormal frame
    with their opposites (several frames, if more than 2 d are wanted). The standard error of a part of one frame is that
    of a function quadratic in n; of one whole frame it is 0 for p = 2 and otherwise not known (nan).

    Raises ValueError for p < 1, a radius, noise level or number of directions that is not positive, directions that do
    not fill the scheme, and a noise prediction that is not finite or not of the shape of x.
    """
    if len(x) == 0:
        raise ValueError("a p-Laplacian needs at least one item; there are none")
    d = x[0].numel()
    _check(p, sigma, directions, estimator, radius, scheme, d)
    radius = sigma * d**0.5 if radius is None else radius
    powers = torch.tensor(p, dtype=x.dtype, device=x.device)[:, None, None]
    random = None if directions is None else generators(check_seeds(seeds, x))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if estimator == "autodiff":
            terms = _autodiff(eps, x, sigma, powers, directions, random)
        elif estimator == "ball":
            terms = _ball(eps, x, sigma, powers, directions, random, radius)
        else:
            normals = _normals(x, directions, scheme, random)
            field = _scores_around(eps, x, radius * normals, sigma)
            length = norm(field)
            cosine = total(field * normals) / length.clamp_min(torch.finfo(x.dtype).tiny)
            scale = 1 if estimator == "cosine" else d / radius
            terms = scale * _raised(length, powers - 1) * cosine
    by_direction = terms.transpose(0, 1)  # [k, P, N]
    bad = (~by_direction.isfinite().all(0).all(0)).nonzero()
    if len(bad):
        raise ValueError(f"the noise prediction at sigma {sigma:.4g} is not finite around item {int(bad[0])}")
    samples, share = by_direction, 0.0
    if estimator in ("flux", "cosine") and scheme != "independent":
        samples = by_direction.unflatten(0, (2, -1)).mean(0)  # pairs
        if scheme == "orthogonal" and len(samples) > d:
            samples = samples.unflatten(0, (-1, d)).mean(1)  # frames
        elif scheme == "orthogonal":
            share = len(samples) / d
    error = standard_error(samples, directions is None) * (1 - share) ** 0.5
    if share == 1:
        error[powers[:, 0, 0] != 2] = float("nan")
    around = 2 if estimator == "autodiff" else 0  # the score itself, and the derivative along it
    cost = len(by_direction) * (2 if estimator == "ball" else 1) + around
    return PLaplacian(average(by_direction, 0), error, cost)


def _check(
    p: Sequence[float],
    sigma: float,
    directions: int | None,
    estimator: str,
    radius: float | None,
    scheme: str,
    d: int,
) -> None:
    """Refuse what p_laplacian cannot compute, before any work starts."""
    for name, value, known in (("estimator", estimator, Estimator), ("scheme", scheme, Scheme)):
        if value not in get_args(known):
            raise ValueError(f"unknown p-Laplacian {name} {value!r}; known: {', '.join(get_args(known))}")
    if not isinstance(p, Sequence) or not p or not all(1 <= value < float("inf") for value in p):
        raise ValueError(f"the p-Laplacian is estimated for a sequence of p of at least 1; got {p}")
    if estimator == "cosine" and list(p) != [1]:
        raise ValueError(f"the mean cosine is the 1-Laplacian; give p as [1], not {list(p)}")
    for name, value in (("noise level", sigma), ("radius", radius)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"the {name} of a p-Laplacian must be positive; got {value}")
    if directions is None and estimator != "autodiff":
        raise ValueError(f"the estimator {estimator} needs a number of directions")
    if directions is not None and directions < 1:
        raise ValueError(f"a p-Laplacian needs at least one direction; got {directions}")
    if estimator in ("flux", "cosine") and scheme != "independent":
        if directions % 2:
            raise ValueError(f"directions of the scheme {scheme} come with their opposites; {directions} is odd")
        if scheme == "orthogonal" and directions > 2 * d and directions % (2 * d):
            raise ValueError(f"{directions} orthogonal directions in {d} dimensions do not fill frames of {2 * d}")


def _score(eps: NoisePredictor, x: Tensor, sigma: float) -> Tensor:
    """Score of items [N, ...] in their shape."""
    return -_of_shape(eps(x, sigma), x) / sigma


def _of_shape(noise: Tensor, x: Tensor) -> Tensor:
    if noise.shape != x.shape:
        raise ValueError(f"the noise prediction for items {list(x.shape)} has the shape {list(noise.shape)}")
    return noise


def _scores_around(eps: NoisePredictor, x: Tensor, offsets: Tensor, sigma: float) -> Tensor:
    """Score at x + offset [k, N, d], for items [N, ...] and offsets [k, N, d]."""
    points = (x + offsets.reshape(-1, *x.shape)).flatten(0, 1)
    return _score(eps, points, sigma).reshape(offsets.shape)


def _autodiff(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    powers: Tensor,
    directions: int | None,
    random: list[torch.Generator] | None,
) -> Tensor:
    d = x[0].numel()
    if directions is None:
        tangents = torch.eye(d, dtype=x.dtype, device=x.device)[:, None].expand(d, len(x), d)
    else:
        tangents = signs(random, directions, x.flatten(1))
    noise, pull_back = adjoint_derivative(eps, x, sigma)
    score = -_of_shape(noise, x) / sigma
    length = norm(score.flatten(1))
    unit = score.flatten(1) / length.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
    tangents = torch.cat([tangents, unit[None]])
    curvatures = total(
        tangents * pull_back(-tangents.reshape(-1, *x.shape) / sigma).flatten(2)
    )  # v'Hv, the last along the score [k + 1, N]
    trace, along = curvatures[:-1] * (d if directions is None else 1), curvatures[-1]
    return _power(length, powers - 2, d, sigma) * (trace + (powers - 2) * along)


def _ball(
    eps: NoisePredictor,
    x: Tensor,
    sigma: float,
    powers: Tensor,
    directions: int,
    random: list[torch.Generator],
    radius: float,
) -> Tensor:
    d = x[0].numel()
    depth = torch.stack([torch.rand(directions, 1, generator=item) for item in random], 1).to(x) ** (1 / d)
    centres = radius * depth * _normals(x, directions, "independent", random)
    along = signs(random, directions, x.flatten(1))
    step = STEP * sigma * along
    ahead, behind = (_scores_around(eps, x, offsets, sigma) for offsets in (centres + step, centres - step))

    def flow(field: Tensor) -> Tensor:
        """|s|^(p-2) s along the signs [P, k, N]."""
        return _power(norm(field), powers - 2, d, sigma) * total(field * along)

    return (flow(ahead) - flow(behind)) / (2 * STEP * sigma)


def _power(length: Tensor, exponents: Tensor, d: int, sigma: float) -> Tensor:
    """Lengths [k, N] of scores to powers [P, 1, 1]: [P, k, N]; where a power is negative, of a least length."""
    return _raised(torch.where(exponents < 0, length.clamp_min(FLOOR * d**0.5 / sigma), length), exponents)


def _raised(length: Tensor, exponents: Tensor) -> Tensor:
    """Lengths to powers [P, 1, 1]; `torch.pow` rounds an element differently by its place in the tensor."""
    return (exponents * length.clamp_min(torch.finfo(length.dtype).tiny).log()).exp()


def _normals(x: Tensor, directions: int, scheme: Scheme, random: list[torch.Generator]) -> Tensor:
    """Unit vectors [k, N, d] of a scheme, each item's from its own generator; opposites lie half of k apart."""
    d = x[0].numel()
    half = directions if scheme == "independent" else directions // 2
    normal = torch.stack([torch.randn(half, d, generator=item, dtype=x.dtype) for item in random])
    if scheme == "orthogonal":
        frames = normal.reshape(len(x), -1, min(half, d), d).mT
        q, r = torch.linalg.qr(frames)
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        unit = q.mT.reshape(len(x), half, d).transpose(0, 1)
    else:
        unit = (normal / norm(normal)[..., None]).transpose(0, 1)
    unit = unit.to(x.device)
    return unit if scheme == "independent" else torch.cat([unit, -unit])


def score_p_laplacian(
    field: Field,
    items: Items,
    *,
    sigma: float,
    p: list[float],
    directions: int,
    radius: float | None = None,
    scheme: Scheme = "antithetic",
    estimator: Estimator = "flux",
    prompt: bool = False,
) -> list[Scores]:
    """Minus the p-Laplacian, a reading for every p."""
    x = field.to_latents(items.pictures)
    run = p_laplacian(
        conditioned(field, items, prompt), x, sigma, p, directions, items.seeds, estimator, radius, scheme
    )
    return [Scores(-value, run.evaluations, {"p": power}) for power, value in zip(p, run.value, strict=True)]


FLUX = Detector("flux", {"model", "picture"}, ({"sigma": 0.2, "p": [1.0], "directions": 16},), score_p_laplacian)
DERIVATIVES = Detector(
    "derivatives",
    {"model", "picture"},
    ({"sigma": 0.2, "p": [1.0], "directions": 2},),
    partial(score_p_laplacian, estimator="autodiff"),
)
BALL = Detector(
    "ball",
    {"model", "picture"},
    ({"sigma": 0.2, "p": [1.0], "directions": 16},),
    partial(score_p_laplacian, estimator="ball"),
)
