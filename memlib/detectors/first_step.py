"""What a prompt does at the first step of sampling, beyond the magnitude (see `memlib.detectors.text`).

Predictions with the prompt and without are compared as expected clean data, D = (x_t - noise eps) / signal, so that all stays
right where nothing of the data is left (signal 0); what a paper has in eps is then its formula up to a constant of the step.
Derivatives are by the noisy latents x_t. What has no prompt in it is computed once for all prompts: an evaluation more a noise.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors.api import Detector, Items, Scores
from memlib.detectors.derivatives import adjoint_derivative
from memlib.fields import Conditioning
from memlib.fields.network import NetworkField
from memlib.fields.parameterisation import expected_noise
from memlib.sampling.pipeline import check_prompts, shared_noise, warn_of_cuts
from memlib.tensors import average, in_calls, norm, total

EDGE = 1.5  # least gradient of an edge in a picture in [0, 1]: the authors', of Sobel's filter
Several = Annotated[int, Ge(2)]


class Level(NamedTuple):
    """A step of sampling: its timestep, and x_t = signal * x0 + noise * n."""

    t: float
    signal: float
    noise: float

    def eps(self, x: Tensor, guess: Tensor) -> Tensor:
        """Expected noise at x_t, from the expected clean data."""
        return expected_noise("sample", guess, x, self.signal, self.noise)


def level(field: NetworkField, sampling_steps: int, number: int) -> Level:
    """The step of that number, of so many that a model's own scheduler takes."""
    t = field.timesteps(sampling_steps)[number]
    return Level(t, *map(float, field.schedule.at(torch.tensor(t, dtype=torch.float64))))


class Start:
    """N prompts and the n noises that all of them start from; predictions there are [n, N, ...].

    noise: [n, C, H, W]; cond: the prompts' conditions. Raises ValueError for no prompts.
    """

    def __init__(self, field: NetworkField, items: Items, noises: int) -> None:
        check_prompts(items.prompts)
        warn_of_cuts(field.pipe, items.prompts)
        self.field, self.count = field, len(items.prompts)
        self.noise = shared_noise(field.shape, noises, items.seed).to(field.device)
        self.cond = field.encode_prompts(items.prompts)

    def each(self, function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
        """function(noise, condition, *parts) of every noise and prompt [n, N, ...], as many at once as a call takes.

        parts: more of every noise and prompt [n, N, ...].
        """
        n, names = len(self.noise), list(self.cond)
        conditions = [value.repeat(n, *[1] * (value.ndim - 1)) for value in self.cond.values()]

        def call(x: Tensor, *given: Tensor) -> Tensor:
            return function(x, dict(zip(names, given, strict=False)), *given[len(names) :])

        rows = [self.noise.repeat_interleave(self.count, 0), *conditions, *(part.flatten(0, 1) for part in parts)]
        return in_calls(call, self.field.rows, self.field.pad, *rows).unflatten(0, (n, self.count))

    def guesses(self, at: Level) -> Tensor:
        """Expected clean data with each prompt [n, N, ...], of the noises as they are."""
        return self.each(lambda x, cond: self.field.data_at(x, at.t, cond))

    def without(self, at: Level) -> Tensor:
        """Expected clean data without a prompt [n, 1, ...]; the same call for any prompts."""
        field = self.field.with_rows(self.field.rows)
        return field.data_at(self.noise, at.t, field.unconditional())[:, None]


def dispersion(guesses: Tensor) -> Tensor:
    """Root mean squared distance [N] of the guesses [n, N, ...] of a prompt to their mean."""
    squared = (guesses - average(guesses, 0)).square().flatten(2)
    return average(total(squared), 0).sqrt()


def common_edges(pictures: Tensor) -> Tensor:
    """Share of the pixels [N] at which more than half of pictures [n, N, C, H, W] in [-1, 1] have an edge.

    An edge is where the lengths of Sobel's gradient, added up over the colours, exceed `EDGE`. As in the authors' code the filter
    smooths over neighbouring colours, too.
    """
    wide = F.pad((pictures + 1) / 2, (1, 1, 1, 1, 1, 1), mode="replicate")

    def smooth(x: Tensor, dim: int) -> Tensor:
        count = x.shape[dim] - 2
        return x.narrow(dim, 0, count) + 2 * x.narrow(dim, 1, count) + x.narrow(dim, 2, count)

    def change(x: Tensor, dim: int) -> Tensor:
        count = x.shape[dim] - 2
        return x.narrow(dim, 2, count) - x.narrow(dim, 0, count)

    mixed = smooth(wide, 2)
    down, across = change(smooth(mixed, 4), 3), change(smooth(mixed, 3), 4)
    steepness = total((down.square() + across.square()).sqrt(), 2)
    common = (steepness > EDGE).to(pictures.dtype).mean(0) > 0.5
    return average(common.to(pictures.dtype).flatten(1))


@torch.no_grad()
def score_one_step(
    field: NetworkField, items: Items, *, noises: list[Several], sampling_steps: int = 50
) -> list[Scores]:
    """How alike the pictures are that one step makes of different noises, of the first so many; no unconditional pass.

    Readings: minus the `dispersion` of the expected clean data; `edges`, the share of pixels at which most of the pictures
    have an edge, since one step gives only copies sharp ones (Webster, arXiv 2305.08694, the black-box attack).
    """
    guesses = Start(field, items, max(noises)).guesses(level(field, sampling_steps, 0))
    pictures = field.to_pictures(guesses.flatten(0, 1)).unflatten(0, guesses.shape[:2])
    return [
        scores
        for n in noises
        for scores in (
            Scores(-dispersion(guesses[:n]), n, {"noises": n, "quantity": "dispersion"}),
            Scores(common_edges(pictures[:n]), n, {"noises": n, "quantity": "edges"}),
        )
    ]


@torch.no_grad()
def score_anisotropy(field: NetworkField, items: Items, *, noises: int, sampling_steps: int = 50) -> list[Scores]:
    """The two parts of arXiv 2601.20642, both of the same pure noise: readings `magnitude` and `alignment` for each noise.

    Magnitude of what the prompt changes at the first step; and, at the timestep of the last one, the mean over pixels of the
    cosine over channels between the noise prediction without the prompt and what the prompt changes of it. The authors weigh
    them by hand, a model at a time; combine them by ranks.
    """
    start, first, last = Start(field, items, noises), level(field, sampling_steps, 0), level(field, sampling_steps, -1)
    magnitude = norm((start.guesses(first) - start.without(first)).flatten(2))
    without = start.without(last)
    bare = last.eps(start.noise[:, None], without)
    change = without - start.guesses(last)  # its sign is that of the change of eps
    lengths = norm(bare.movedim(2, -1)) * norm(change.movedim(2, -1))
    cosine = total(bare * change, 2) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    alignment = average(cosine.flatten(2))
    return [
        scores
        for number in range(noises)
        for scores in (
            Scores(magnitude[number], 1, {"noise": number, "part": "magnitude"}),
            Scores(alignment[number], 1, {"noise": number, "part": "alignment"}),
        )
    ]


@torch.no_grad()
def score_sail(field: NetworkField, items: Items, *, noises: int, sampling_steps: int = 50) -> list[Scores]:
    """Sharpness at the first step, a reading for each noise: |J change|, J the derivative of change = D_c - D_u (Jeon et al.).

    SAIL (ICML 2025) is the product of the Hessian of log p(c|x) with its gradient: this, times (signal / noise^2)^2. A
    forward-mode derivative of the pair, which counts four evaluations, beside that of the prompt itself.
    """
    start, at = Start(field, items, noises), level(field, sampling_steps, 0)
    change = start.guesses(at) - start.without(at)
    bare = field.unconditional()

    def sharpness(x: Tensor, cond: Conditioning, along: Tensor) -> Tensor:
        def changed(x: Tensor) -> Tensor:
            return field.data_at(x, at.t, cond) - field.data_at(x, at.t, bare)

        return norm(torch.func.jvp(changed, (x,), (along,))[1].flatten(1))

    with sdpa_kernel(SDPBackend.MATH):
        found = start.each(sharpness, change)
    return [Scores(value, 5, {"noise": number}) for number, value in enumerate(found)]


@torch.no_grad()
def score_gradient_difference(
    field: NetworkField, items: Items, *, noises: int, sampling_steps: int = 50
) -> list[Scores]:
    """|J_c' eps_c - J_u' eps_u|^2 at the first step, the gradients of |eps|^2 / 2, times (noise / signal)^2; by each noise.

    With the derivative of D in place of that of eps it is |(D_c - D_u) / noise + J_Dc' eps_c - J_Du' eps_u|^2. A forward and a
    backward pass under the prompt; those without it, as many, are the same for all prompts.
    """
    start, at = Start(field, items, noises), level(field, sampling_steps, 0)
    alone = field.with_rows(field.rows)

    def pulled(x: Tensor, cond: Conditioning) -> Tensor:
        """D / noise + J_D' eps [N, ...]."""
        guess, pull_back = adjoint_derivative(lambda y, t: alone.data_at(y, t, cond), x, at.t)
        return guess / at.noise + pull_back(at.eps(x, guess)[None])[0]

    with sdpa_kernel(SDPBackend.MATH):
        found, without = start.each(pulled), pulled(start.noise, field.unconditional())
    value = total((found - without[:, None]).square().flatten(2))
    return [Scores(value[number], 2, {"noise": number}) for number in range(noises)]


@torch.no_grad()
def score_guided_change(
    field: NetworkField, items: Items, *, noises: int, guidance: float = 7.5, sampling_steps: Several = 50
) -> list[Scores]:
    """|eps_c(x_1) - eps_c(x_0)|^2, the change of the prompt's noise prediction over the first guided step; by each noise.

    The step from x_0 to x_1 is that of DDIM. Predictions with the prompt at both ends, and the one without it at the start.
    """
    start, here, there = Start(field, items, noises), level(field, sampling_steps, 0), level(field, sampling_steps, 1)
    guesses, without = start.guesses(here), start.without(here)
    guided, x = without + guidance * (guesses - without), start.noise[:, None]
    reached = there.signal * guided + there.noise * here.eps(x, guided)
    after = start.each(lambda _, cond, x: there.eps(x, field.data_at(x, there.t, cond)), reached)
    value = total((after - here.eps(x, guesses)).square().flatten(2))
    return [Scores(value[number], 2, {"noise": number}) for number in range(noises)]


NEEDS = {"model", "prompt"}
ONE_STEP = Detector("one_step", NEEDS, ({"noises": [4]},), score_one_step)
ANISOTROPY = Detector("anisotropy", NEEDS, ({"noises": 4},), score_anisotropy)
SAIL = Detector("sail", NEEDS, ({"noises": 4},), score_sail)
GRADIENT_DIFFERENCE = Detector("gradient_difference", NEEDS, ({"noises": 4},), score_gradient_difference)
GUIDED_CHANGE = Detector("guided_change", NEEDS, ({"noises": 4},), score_guided_change)
