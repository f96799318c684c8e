"""Where in a picture a copy lies: maps [N, H, W] of what a model holds fixed there (Kim & Lee, arXiv 2605.26756).

Two noise predictions are compared at one noisy picture: under the prompt and without it or, without prompts, of the model and
of a control or an earlier state of it. What only the first holds fixed is copied; what both do is the data's own. Predictions
are compared as expected clean data D = y - sigma eps, so that flows and U-Nets read alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors.attention import prompt_layers
from memlib.detectors.derivatives import adjoint_derivative
from memlib.fields import NoisePredictor, denoised
from memlib.fields.network import NetworkField
from memlib.tensors import average, check_seeds, generators, item_seeds, normal, signs, total


@torch.no_grad()
def curvature(eps: NoisePredictor, y: Tensor, sigma: float, directions: int, seeds: Sequence[int]) -> Tensor:
    """sigma diag(d eps / dy) in the shape of y [N, ...]: 1 where the data do not vary, 0 where they vary far more than sigma.

    -sigma^2 times the diagonal of the Hessian of log p_sigma. Hutchinson's estimate, the mean of v * (J' v) over random signs v
    (Bekas, Kokiopoulou & Saad 2007): J' has the diagonal of J, and all signs share one forward pass. An item's signs from its
    own seed; 1 + directions evaluations, a backward pass counting one.
    """
    tangents = signs(generators(check_seeds(seeds, y)), directions, y)
    with sdpa_kernel(SDPBackend.MATH):
        pulled = adjoint_derivative(eps, y, sigma)[1](tangents)
    return sigma * average(tangents * pulled, 0)


def curvature_difference(first: Tensor, second: Tensor) -> Tensor:
    """relu(sum over channels of diag J_(eps_first - eps_second)) [N, H, W], of two of what `curvature` gives [N, C, H, W].

    The map of arXiv 2605.26756, times sigma. With the same signs for both, what they share cancels before it is noise.
    """
    return total(first - second, 1).relu()


@torch.no_grad()
def squared_difference(first: NoisePredictor, second: NoisePredictor, y: Tensor, sigma: float) -> Tensor:
    """Sum over channels of (D_first - D_second)^2 [N, H, W]: sigma^2 times the proxy (eps_first - eps_second)^2."""
    return total((denoised(first, y, sigma) - denoised(second, y, sigma)).square(), 1)


@torch.no_grad()
def error_difference(first: NoisePredictor, second: NoisePredictor, clean: Tensor, y: Tensor, sigma: float) -> Tensor:
    """How much nearer the first prediction is to the clean picture [N, C, H, W] than the second, pixel by pixel [N, H, W].

    |D_second - x|^2 - |D_first - x|^2: the difference of denoising losses before it is summed up. It needs the clean picture.
    """
    errors = [(denoised(eps, y, sigma) - clean).square() for eps in (second, first)]
    return total(errors[0] - errors[1], 1)


def compare(
    first: NoisePredictor,
    second: NoisePredictor,
    curvatures: tuple[Tensor, Tensor],
    clean: Tensor,
    y: Tensor,
    sigma: float,
) -> dict[str, Tensor]:
    """All maps [N, H, W] of a first noise prediction against a second: `curvature`, `squared difference` and `error`.

    curvatures: what `curvature` gives of both [N, C, H, W], by the same seeds.
    """
    return {
        "curvature": curvature_difference(*curvatures),
        "squared difference": squared_difference(first, second, y, sigma),
        "error": error_difference(first, second, clean, y, sigma),
    }


@contextmanager
def _reading(layers: Sequence[torch.nn.Module]) -> Iterator[list[Tensor]]:
    """Attention [rows, places, tokens] of each call of layers of cross-attention meanwhile, the mean over heads."""
    found: list[Tensor] = []

    def read(layer: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        query = layer.head_to_batch_dim(layer.to_q(given[0]))
        key = layer.head_to_batch_dim(layer.to_k(named["encoder_hidden_states"]))
        found.append(average(layer.get_attention_scores(query, key).unflatten(0, (-1, layer.heads)), 1))

    handles = [layer.register_forward_pre_hook(read, with_kwargs=True) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attention(field: NetworkField, prompts: Sequence[str], y: Tensor, sigma: float) -> dict[str, Tensor]:
    """Attention of each place of y [N, C, H, W] to its prompt [N, H, W], the mean over heads and layers, by kind of token.

    `words`: to all tokens between start and end. `end`: to the end token, the bright ending of Chen et al. (arXiv 2410.21665),
    who read it at the last step. Layers of a coarser grid are repeated. Raises ValueError for a network without a U-Net's
    cross-attention.
    """
    if not hasattr(field.network, "down_blocks"):
        raise ValueError(
            f"maps of attention are read in U-Nets with cross-attention; this is a {type(field.network).__name__}"
        )
    layers, n, (height, width) = prompt_layers(field.network), len(y), y.shape[2:]
    with _reading(layers) as found:
        field(y, sigma, field.encode_prompts(prompts))
    maps = []
    for number in range(len(layers)):
        of_layer = torch.cat(found[number :: len(layers)])[:n]  # calls may be filled up
        coarse = round((height * width / of_layer.shape[1]) ** 0.5)
        grid = of_layer.mT.unflatten(2, (height // coarse, width // coarse))
        maps.append(F.interpolate(grid, (height, width)))
    mean = average(torch.stack(maps), 0)  # [N, tokens, H, W]
    tokenizer = field.pipe.tokenizer
    ends = [len(tokenizer(p, truncation=True, max_length=tokenizer.model_max_length).input_ids) - 1 for p in prompts]
    return {
        "words": torch.stack([total(each[1:end], 0) for each, end in zip(mean, ends, strict=True)]),
        "end": torch.stack([each[end] for each, end in zip(mean, ends, strict=True)]),
    }


def at_pixels(maps: Tensor, side: Sequence[int]) -> Tensor:
    """Maps [N, h, w] of latents as maps of pixels [N, H, W]: each value for all pixels of its latent."""
    return F.interpolate(maps[:, None], tuple(side))[:, 0]


def edges(pictures: Tensor) -> Tensor:
    """Length of the gradient at each pixel of pictures [N, C, H, W], summed over channels [N, H, W]: it sees no model."""
    down, across = torch.gradient(pictures, dim=(2, 3))
    return total((down.square() + across.square()).sqrt(), 1)


def nearness_to_centre(height: int, width: int) -> Tensor:
    """Minus the distance of each pixel [H, W] from the centre: it sees neither model nor picture."""
    down, across = (torch.arange(size) - (size - 1) / 2 for size in (height, width))
    return -(down[:, None].square() + across.square()).sqrt()


def noised(x: Tensor, sigma: float, seeds: Sequence[int]) -> Tensor:
    """x + sigma n of items x [N, ...], the noise of each from its own seed."""
    return x + sigma * normal(generators(check_seeds(seeds, x)), 1, x)[0]


@torch.no_grad()
def copied_map(
    field: NetworkField, pictures: Tensor, prompts: Sequence[str], sigma: float, directions: int, seeds: Sequence[int]
) -> Tensor:
    """Map [N, H, W], 0 and above, of what a text-to-image model holds fixed in pictures [N, 3, H, W] under their prompts.

    The `curvature_difference` with the prompt and without, after noise of level sigma; H and W are the picture's. Evaluations:
    2 + 2 directions.
    """
    y = noised(field.to_latents(pictures), sigma, item_seeds(seeds, 1))
    under = field.encode_prompts(prompts), field.unconditional()
    found = [curvature(field.with_conditioning(cond), y, sigma, directions, seeds) for cond in under]
    return at_pixels(curvature_difference(*found), pictures.shape[2:])
