"""Local intrinsic dimension of the data around a picture: low where a model has memorised it (Ross et al., arXiv 2411.00113)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors.api import Detector, Items, Scores, conditioned
from memlib.detectors.derivatives import adjoint_derivative
from memlib.fields import Field, NoisePredictor
from memlib.tensors import average, check_seeds, generators, signs, total


@torch.no_grad()
def length_and_traces(
    eps: NoisePredictor, x: Tensor, sigma: float, directions: int, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """|eps|^2 [N] at the items x [N, ...] themselves, and tr(d eps / dx) [directions, N] by each random sign alone.

    1 + directions network evaluations, a backward pass counting one; an item's signs from its own seed.
    """
    tangents = signs(generators(check_seeds(seeds, x)), directions, x)
    with sdpa_kernel(SDPBackend.MATH):
        noise, pull_back = adjoint_derivative(eps, x, sigma)
        traces = total((tangents * pull_back(tangents)).flatten(2))
    return total(noise.square().flatten(1)), traces


def score_flipd(
    field: Field, items: Items, *, sigma: float, directions: list[int], prompt: bool = False
) -> list[Scores]:
    """Minus FLIPD (Kamkari et al., arXiv 2406.03537), d - sigma tr(d eps / dx) + |eps|^2 at the clean picture.

    In variance-exploding coordinates it is d + sigma^2 (Laplacian + |score|^2): the growth rate and the bare length of the
    noise prediction together. Both are readings of the same evaluations; d is the number of dimensions that the network sees.
    """
    x = field.to_latents(items.pictures)
    squared, traces = length_and_traces(conditioned(field, items, prompt), x, sigma, max(directions), items.seeds)
    rates = {k: sigma * average(traces[:k], 0) for k in directions}
    return [
        Scores(-squared.sqrt(), 1, {"quantity": "length"}),
        *(Scores(rate, 1 + k, {"directions": k, "quantity": "rate"}) for k, rate in rates.items()),
        *(
            Scores(rate - squared - x[0].numel(), 1 + k, {"directions": k, "quantity": "flipd"})
            for k, rate in rates.items()
        ),
    ]


FLIPD = Detector("flipd", {"model", "picture"}, ({"sigma": 0.2, "directions": [1, 4]},), score_flipd)
