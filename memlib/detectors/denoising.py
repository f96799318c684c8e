"""Plain detectors on the noise prediction that any of the papers' methods has to beat."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from memlib.detectors.api import Detector, FromZero, Items, Ratio, Scores, calibrated, conditioned, difference
from memlib.fields import Field, NoisePredictor
from memlib.sampling.grids import check_timesteps, sigma_grid
from memlib.sampling.ode import integrate, solver_step
from memlib.tensors import average, check_images, check_seeds, generators, norm, normal, total


@torch.no_grad()
def denoising_loss(eps: NoisePredictor, x: Tensor, sigma: float, draws: int, seeds: Sequence[int]) -> Tensor:
    """Mean squared error of the noise prediction at one noise level [draws, N], one noise a draw, an item's from its own seed.

    The loss that training minimises (Ho et al., arXiv 2006.11239, eq. 14). One network evaluation a draw and item. Raises
    ValueError for items that are not finite or have no seed each.
    """
    if x.ndim == 4:
        check_images(x)
    noise = normal(generators(check_seeds(seeds, x)), draws, x)
    predicted = eps((x + sigma * noise).flatten(0, 1), sigma).reshape(noise.shape)
    return average((predicted - noise).square().flatten(2))


@torch.no_grad()
def secmi(eps: NoisePredictor, x: Tensor, sigmas: Tensor) -> Tensor:
    """SecMI's t-error [N]: how far one step of the deterministic sampler and one back miss the starting point.

    Duan et al. (arXiv 2302.01316, eq. 9). The items x [N, ...] are carried up through the levels `sigmas` [S + 1] by Euler
    steps, which are those of DDIM; the error is that of the last of them undone by a step back. S + 1 network evaluations.
    Raises ValueError for items that are not finite and fewer than two levels.
    """
    check_images(x)
    if len(sigmas) < 2:
        raise ValueError("the t-error takes a step up and one back; give at least two noise levels")
    *_, here, there = sigmas.sort().values.tolist()
    start = integrate(eps, x, sigmas.sort().values[:-1], "euler")
    end = solver_step(eps, start, here, there, "euler")
    back = solver_step(eps, end, there, here, "euler")
    return total((back - start).square().flatten(1))


@torch.no_grad()
def pia(eps: NoisePredictor, x: Tensor, sigma: float, sigma_min: float, normalised: bool = False) -> Tensor:
    """Proximal initialisation error [N]: how far (L4 norm) the noise found at `sigma_min` is not found at `sigma`.

    Kong et al. (arXiv 2305.18355, eq. 12): the noise predicted at the item itself x [N, ...] is added to it at the
    larger level, and predicted again there. With `normalised`, as the authors' PIAN has it, it is
    first brought to the mean absolute value of standard normal numbers, sqrt(2 / pi). Two network evaluations. Raises
    ValueError for items that are not finite.
    """
    check_images(x)
    noise = eps(x, sigma_min)
    if normalised:
        noise = noise * ((2 / math.pi) ** 0.5 / average(noise.abs().flatten(1)))[:, None, None, None]
    return norm((eps(x + sigma * noise, sigma) - noise).flatten(1).square()).sqrt()


@torch.no_grad()
def length(eps: NoisePredictor, x: Tensor, sigma: float) -> Tensor:
    """Length of the noise prediction at the item itself [N]: sigma times that of the score. One network evaluation."""
    return norm(eps(x, sigma).flatten(1))


def score_loss(field: Field, items: Items, *, sigma: float, draws: list[int], prompt: bool = False) -> list[Scores]:
    """Minus the denoising loss, the mean over the first draws of one run: a membership score (Matsumoto et al., 2302.03262)."""
    if min(draws) < 1:
        raise ValueError(f"a denoising loss needs at least one draw; got {min(draws)}")
    x = field.to_latents(items.pictures)
    losses = denoising_loss(conditioned(field, items, prompt), x, sigma, max(draws), items.seeds)
    return [Scores(-average(losses[:count], 0), count, {"draws": count}) for count in draws]


def score_length(field: Field, items: Items, *, sigma: float, prompt: bool = False) -> Scores:
    """Minus the bare length of the noise prediction."""
    return Scores(-length(conditioned(field, items, prompt), field.to_latents(items.pictures), sigma), 1)


@torch.no_grad()
def score_sima(field: Field, items: Items, *, sigma: float, power: list[int], prompt: bool = False) -> list[Scores]:
    """Minus the sum of a power of the noise prediction's absolute values at the item itself, a reading for each power.

    The fourth is SimA's (arXiv 2509.25003); the second ranks as `length` does. All of one network evaluation.
    """
    noise = conditioned(field, items, prompt)(field.to_latents(items.pictures), sigma).flatten(1).abs()
    return [Scores(-total(math.prod([noise] * p)), 1, {"power": p}) for p in power]


def score_clid(field: Field, items: Items, *, sigma: float, draws: list[int]) -> list[Scores]:
    """Denoising loss under the empty prompt minus that under the item's own, at the same noise.

    CLiD (Zhai et al., arXiv 2405.14800) with the empty caption as the only other one. Two evaluations a draw.
    """
    return difference(*(score_loss(field, items, sigma=sigma, draws=draws, prompt=prompt) for prompt in (True, False)))


def score_secmi(
    field: Field,
    items: Items,
    *,
    sigma: float | None = None,
    ratio: Ratio | None = None,
    below: FromZero = 0,
    timesteps: list[FromZero] | None = None,
    prompt: bool = False,
) -> Scores:
    """Minus SecMI's t-error of the step from `sigma` to `ratio` times it, after `below` steps up to it, or through timesteps."""
    if timesteps is not None:
        check_timesteps(field, max(timesteps))
        levels = field.sigmas[timesteps]
    elif sigma is None or ratio is None:
        raise ValueError("a setting of the detector secmi names timesteps, or sigma and ratio")
    else:
        last = torch.tensor([sigma, sigma * ratio], dtype=torch.float64)
        up = sigma_grid(field.sigma_min, sigma, below, float("inf"))[:-1] if below else last[:0]
        levels = torch.cat([up, last])
    x = field.to_latents(items.pictures)
    return Scores(-secmi(conditioned(field, items, prompt), x, levels), len(levels))


def score_pia(field: Field, items: Items, *, sigma: float, normalised: bool = False, prompt: bool = False) -> Scores:
    """Minus the proximal initialisation error, the noise found at the lowest level of the schedule."""
    x = field.to_latents(items.pictures)
    return Scores(-pia(conditioned(field, items, prompt), x, sigma, field.sigma_min, normalised), 2)


LOSS = Detector("loss", {"model", "picture"}, ({"sigma": 0.2, "draws": [4]},), score_loss)
LOSS_CURVE = Detector(
    "loss_curve",
    {"model", "picture"},
    tuple({"sigma": sigma, "draws": [4]} for sigma in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.5, 5.0, 10.0)),
    score_loss,
)
LENGTH = Detector("length", {"model", "picture"}, ({"sigma": 0.2},), score_length)
SECMI = Detector("secmi", {"model", "picture"}, ({"timesteps": list(range(0, 111, 10))},), score_secmi)
PIA = Detector("pia", {"model", "picture"}, ({"sigma": 0.2},), score_pia)
PIAN = Detector("pian", {"model", "picture"}, ({"sigma": 0.2},), partial(score_pia, normalised=True))
SIMA = Detector("sima", {"model", "picture"}, ({"sigma": 0.2, "power": [2, 4]},), score_sima)
CLID = Detector(
    "clid",
    {"model", "picture", "prompt"},
    tuple({"sigma": sigma, "draws": [2]} for sigma in (0.5, 1.0, 2.0)),
    score_clid,
)
CALIBRATED_LOSS = calibrated("calibrated_loss", LOSS)
