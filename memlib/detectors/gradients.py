"""Length of the gradient that a picture's loss has for each layer of the network (GSA: Pang et al., arXiv 2308.06405)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from memlib.detectors.api import Detector, Items, Scores, conditioned
from memlib.fields.network import NetworkField
from memlib.tensors import check_images, generators, norm, normal


def layer_norms(field: NetworkField, x: Tensor, sigmas: Sequence[float], seed: int) -> dict[str, Tensor]:
    """Length of the gradient of one item's loss x [1, ...] by each of the network's parameters, by their names.

    The loss is the mean squared error of the noise prediction over the noise levels, one noise each, of one call of the
    network: an evaluation a level, and as many in the backward pass.
    """
    names, weights = zip(*field.network.named_parameters(), strict=True)
    levels = torch.tensor(sigmas, dtype=torch.float64)
    noise = normal(generators([seed]), len(sigmas), x)[:, 0]
    with torch.enable_grad(), trainable(weights):
        noisy = x + levels.to(x)[:, None, None, None] * noise
        loss = (field.with_rows(len(sigmas))(noisy, levels) - noise).square().mean()
        gradients = torch.autograd.grad(loss, weights)
    return {name: norm(gradient.float().flatten()) for name, gradient in zip(names, gradients, strict=True)}


@contextmanager
def trainable(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to parameters for a while."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def score_gsa(field: NetworkField, items: Items, *, sigmas: list[float], prompt: bool = False) -> list[Scores]:
    """Minus the length of the loss's gradient, a reading for each of the network's parameters and for all of them together.

    GSA1: the losses of all levels are averaged before one backward pass. The authors train a classifier on these features
    with labels; see `memlib.evaluation.combination`. An item is a call of its own, since a gradient is one of all its rows.
    """
    x = field.to_latents(check_images(items.pictures))
    cond = conditioned(field, items, prompt).cond
    found = []
    for row, seed in enumerate(items.seeds):
        own = {name: value[[row % len(value)]] for name, value in cond.items()}
        found.append(layer_norms(field.with_conditioning(own), x[[row]], sigmas, seed))
    lengths = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    lengths["all"] = norm(torch.stack([*lengths.values()], 1))
    return [Scores(-value, 2 * len(sigmas), {"layer": name}) for name, value in lengths.items()]


GSA = Detector("gsa", {"model", "picture"}, ({"sigmas": [0.1, 0.2, 0.5, 1.0, 2.0]},), score_gsa)
