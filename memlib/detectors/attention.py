"""How a prompt's cross-attention spreads over its tokens (Ren et al., ECCV 2024)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from memlib.detectors.api import Detector, FromZero, Items, Scores
from memlib.detectors.first_step import Start, level
from memlib.fields import Conditioning
from memlib.fields.unet import UNetField
from memlib.tensors import average, total


def cross_attentions(unet: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of cross-attention of a text-to-image U-Net, in the order in which data pass them."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [layer for block in blocks for name, layer in block.named_modules() if name.endswith("attn2")]


@contextmanager
def projections(layer: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """Queries and keys [N, places, width] of an attention layer's calls meanwhile, `to_q` and `to_k`, whatever computes it."""
    seen: dict[str, Tensor] = {}
    handles = [
        getattr(layer, name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name in ("to_q", "to_k")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def token_entropy(queries: Tensor, keys: Tensor, heads: int, scale: float) -> Tensor:
    """Entropy [N] over tokens of the mean attention of heads and pixels; queries [N, pixels, width], keys [N, tokens, width]."""
    query, key = (part.float().unflatten(2, (heads, -1)).transpose(1, 2) for part in (queries, keys))
    attention = average((scale * query @ key.mT).softmax(-1).flatten(1, 2), 1)
    return -total(torch.special.xlogy(attention, attention))


@torch.no_grad()
def score_attention_entropy(
    field: UNetField, items: Items, *, noises: int, layer: FromZero = 3, sampling_steps: int = 50
) -> list[Scores]:
    """Entropy of the mean attention over tokens in one layer at the first step, a reading for each noise: higher for memorised.

    The layer is counted from 0 as data pass them; the authors take the fourth of Stable Diffusion's sixteen. One evaluation.
    Raises ValueError where there is no such layer.
    """
    layers = cross_attentions(field.unet)
    if layer >= len(layers):
        raise ValueError(f"there is no layer {layer} of cross-attention; the model has {len(layers)}, counted from 0")
    attention, at = layers[layer], level(field, sampling_steps, 0)

    def entropy(x: Tensor, cond: Conditioning) -> Tensor:
        with projections(attention) as seen:
            field.data_at(x, at.t, cond)
        return token_entropy(seen["to_q"], seen["to_k"], attention.heads, attention.scale)

    found = Start(field, items, noises).each(entropy)
    return [Scores(value, 1, {"noise": number}) for number, value in enumerate(found)]


ATTENTION_ENTROPY = Detector("attention_entropy", {"model", "prompt"}, ({"noises": 4},), score_attention_entropy)
