"""Points of mixtures that two detectors of one Laplacian order differently, small enough for closed forms.

Two Gaussians in the plane, too far apart to see each other: at a point of either, every reading is that of one Gaussian.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from memlib.detectors.denoising import length
from memlib.detectors.p_laplacian import p_laplacian
from memlib.detectors.text import guess_distance
from memlib.detectors.volume import divergence, growth
from memlib.evaluation.identities import expected_loss, under_caption
from memlib.fields.mixtures import GaussianMixture, gaussian_growth
from memlib.sampling.grids import sigma_grid

APART = 1000.0  # between the two means
LOW, HIGH, STEPS = 0.01, 3.0, 200  # levels of the growth
MORE = {  # whether a larger reading means more memorised
    "growth rate": True,
    "growth": True,
    "loss": False,
    "length": False,
    "FLIPD": False,
    "1-Laplacian": False,
    "3-Laplacian": False,
    "log-density": True,
}
NEITHER = 1e-6  # relative difference below which two readings are equal


class Point(NamedTuple):
    """A Gaussian of the plane by its widths along two axes and its weight, and a point so far from its mean."""

    widths: tuple[float, float]
    offset: tuple[float, float]
    weight: float = 0.5


class Pair(NamedTuple):
    """What two points show, in a sentence, and the noise level at which they are read."""

    says: str
    first: Point
    second: Point
    sigma: float


PAIRS = {
    "same Laplacian, other score": Pair(
        "The same Gaussian twice: a point near the top of one, and a typical point of the other.",
        Point((1.0, 1.0), (0.1, 0.0)),
        Point((1.0, 1.0), (1.4, 0.0)),
        0.5,
    ),
    "same ingredients, other recipe": Pair(
        "A typical point of a narrow Gaussian, and the top of one that is broader by two thirds.",
        Point((0.25, 0.25), (0.35, 0.0)),
        Point((0.41, 0.41), (0.01, 0.0)),
        0.5,
    ),
    "narrow, not heavy": Pair(
        "A Gaussian of width 0.1 that holds a thousandth of the data, and one of width 1 that holds the rest.",
        Point((0.1, 0.1), (0.1, 0.0), 0.001),
        Point((1.0, 1.0), (1.0, 0.0), 0.999),
        0.5,
    ),
    "narrow at one scale": Pair(
        "A line: one direction frozen at every scale, one free; and a small cluster, frozen only seen from afar.",
        Point((0.005, 10.0), (0.005, 0.0)),
        Point((0.1, 0.1), (0.1, 0.0)),
        0.03,
    ),
}


def mixture_of(first: Point, second: Point) -> tuple[GaussianMixture, Tensor]:
    """The mixture of the two Gaussians, and the two points [2, 2], in float64."""
    weights, widths, offsets = (
        torch.tensor([getattr(point, name) for point in (first, second)], dtype=torch.float64)
        for name in ("weight", "widths", "offset")
    )
    means = torch.tensor([[-APART / 2, 0.0], [APART / 2, 0.0]], dtype=torch.float64)
    return GaussianMixture(weights, means, torch.diag_embed(widths.square())), means + offsets


def measured(pair: Pair) -> pd.DataFrame:
    """What detectors read at the two points, with all directions: a row a quantity, columns `first` and `second`.

    The loss is that over all noise (see `expected_loss`); the log-density at `LOW`, the growth from there to `HIGH`.
    """
    (mixture, x), sigma = mixture_of(pair.first, pair.second), pair.sigma
    rate, size = sigma * divergence(mixture, x, sigma)[0], length(mixture, x, sigma)
    one, three = p_laplacian(mixture, x, sigma, [1.0, 3.0]).value
    return pd.DataFrame(
        {
            "growth rate": rate,
            "growth": growth(mixture, x, sigma_grid(LOW, HIGH, STEPS, float("inf"))).value,
            "loss": expected_loss(mixture, x, sigma),
            "length": size,
            "FLIPD": x.shape[1] - rate + size.square(),
            "1-Laplacian": one,
            "3-Laplacian": three,
            "log-density": mixture.log_density(x, LOW),
        },
        ["first", "second"],
    ).T


def rates(pair: Pair, sigmas: Sequence[float]) -> pd.DataFrame:
    """Growth rate at the two points over noise levels: a row a level, columns `first` and `second`."""
    mixture, x = mixture_of(pair.first, pair.second)
    found = [(sigma * divergence(mixture, x, sigma)[0]).tolist() for sigma in sigmas]
    return pd.DataFrame(found, list(sigmas), ["first", "second"])


def closed_form(point: Point, sigma: float) -> dict[str, float]:
    """The same readings at one point, of its Gaussian N(0, diag(v)) alone.

    The score is s = -offset / (v + sigma^2), the Hessian H = -1 / (v + sigma^2), the p-Laplacian
    |s|^(p-2) (tr H + (p - 2) s'Hs / |s|^2), and the loss the mean of (v^2 + sigma^2 offset^2) / (v + sigma^2)^2 over dimensions.
    """
    variances, offset = (torch.tensor(part, dtype=torch.float64) for part in (point.widths, point.offset))
    variances = variances.square()
    spread = variances + sigma**2
    score = -offset / spread
    squared, trace = score.square().sum(), -(1 / spread).sum()
    along = -(score.square() / spread).sum() / squared
    low = variances + LOW**2
    found = {
        "growth rate": -(sigma**2) * trace,
        "growth": gaussian_growth(variances, LOW, HIGH),
        "loss": ((variances.square() + sigma**2 * offset.square()) / spread.square()).mean(),
        "length": sigma * squared.sqrt(),
        "FLIPD": len(offset) + sigma**2 * (trace + squared),
        "1-Laplacian": squared**-0.5 * (trace - along),
        "3-Laplacian": squared**0.5 * (trace + along),
        "log-density": torch.tensor(point.weight, dtype=torch.float64).log()
        - 0.5 * ((offset.square() / low).sum() + (2 * torch.pi * low).log().sum()),
    }
    return {name: float(value) for name, value in found.items()}


def verdicts(readings: pd.DataFrame) -> pd.Series:
    """Which of the two points each reading calls more memorised: first, second or neither."""
    difference = (readings["first"] - readings["second"]) * [1 if MORE[name] else -1 for name in readings.index]
    size = readings.abs().max(axis=1)
    named = difference.map(lambda value: "first" if value > 0 else "second")
    return named.where(difference.abs() > NEITHER * size, "neither")


class Captioned(NamedTuple):
    """What a caption and its picture are, in a sentence; the picture's component, and those that may bear the caption."""

    says: str
    picture: int
    bearers: Sequence[int]


COMPONENTS, RADIUS, WIDTH, COPY, CLEAN, NOISY = 8, 4.0, 0.5, 0.05, 0.2, 10.0
CAPTIONS = {
    "names its picture alone": Captioned("an ordinary picture, its caption given to no other", 2, [2]),
    "fits half of all": Captioned("an ordinary picture, its caption given to half of all", 2, [0, 1, 2, 3]),
    "fits everything": Captioned("the copy, its caption given to all", 0, range(COMPONENTS)),
}


def ring() -> GaussianMixture:
    """Pictures as equal Gaussians on a circle, of which the first is ten times narrower: a copy."""
    angles = torch.arange(COMPONENTS, dtype=torch.float64) * (2 * torch.pi / COMPONENTS)
    widths = torch.full((COMPONENTS,), WIDTH, dtype=torch.float64)
    widths[0] = COPY
    means = RADIUS * torch.stack([angles.cos(), angles.sin()], 1)
    covariances = widths.square()[:, None, None] * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(torch.full_like(widths, 1 / COMPONENTS), means, covariances)


def captioned(noise: Tensor) -> pd.DataFrame:
    """The magnitude of each caption and the growth rate at its picture; rows: `CAPTIONS`.

    The magnitude at the noise level `NOISY`, the mean over starting points NOISY n of noises n [N, 2]; the rate at `CLEAN`,
    without the caption.
    """
    mixture, rows = ring(), {}
    for name, (_, picture, bearers) in CAPTIONS.items():
        under = under_caption(
            mixture, torch.zeros(COMPONENTS, dtype=torch.float64).index_fill(0, torch.tensor([*bearers]), 1.0)
        )
        rows[name] = {
            "magnitude": float(guess_distance(under, mixture, NOISY * noise, NOISY).mean() / NOISY),
            "growth rate": float(CLEAN * divergence(mixture, mixture.means[picture][None], CLEAN)[0]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
