"""How a prompt's attention spreads over its tokens (Ren et al., ECCV 2024)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memlib.detectors.api import Detector, FromZero, Items, Scores
from memlib.detectors.first_step import Start, level
from memlib.fields import Conditioning
from memlib.fields.network import NetworkField
from memlib.tensors import average, total

JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")  # picture and text attend to one another in one sequence
CROSS = ("PixArtTransformer2DModel", "SanaTransformer2DModel")


def prompt_layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of attention to the prompt of a text-to-image network, in the order in which data pass them.

    Raises ValueError for one whose prompts' tokens cannot be told from those of the picture.
    """
    kind = type(network).__name__
    if kind in JOINT:
        return [
            block.attn for block in [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())]
        ]
    if kind in CROSS:
        return [block.attn2 for block in network.transformer_blocks]
    if not hasattr(network, "down_blocks"):
        raise ValueError(
            f"attention to the tokens of a prompt is read in U-Nets and in {', '.join((*JOINT, *CROSS))}; this is a {kind}"
        )
    blocks = [*network.down_blocks, network.mid_block, *network.up_blocks]
    return [layer for block in blocks for name, layer in block.named_modules() if name.endswith("attn2")]


def mean_attention(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Attention [N, tokens], the mean over heads and places; query [N, heads, places, d], key [N, heads, tokens, d].

    mask: added to the logits, as torch's attention has it.
    """
    logits = scale * query.float() @ key.float().mT
    return average((logits if mask is None else logits + mask.float()).softmax(-1).flatten(1, 2), 1)


def entropy(attention: Tensor) -> Tensor:
    """Entropy [...] of attention [..., tokens], or what some of its tokens add to it."""
    return -total(torch.special.xlogy(attention, attention))


class _Reading(TorchFunctionMode):
    """Mean attention to the prompt in each call of torch's attention by the layer that is `within`."""

    def __init__(self, text: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.text, self.within, self.found = text, False, []

    def __torch_function__(
        self, function: Callable, types: Any, args: Sequence = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and self.within:
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            query, key = self.text(given["query"], given["key"])
            scale = given.get("scale") or query.shape[-1] ** -0.5
            self.found.append(mean_attention(query, key, scale, given.get("attn_mask")))
        return function(*args, **kwargs)


@contextmanager
def attentions(field: NetworkField, layers: Sequence[torch.nn.Module], tokens: int) -> Iterator[list[Tensor]]:
    """Mean attention [N, tokens] of a picture's places to a prompt of so many tokens, of each call of the layers meanwhile.

    In joint attention it is the attention among the prompt's tokens alone, whatever share goes to the picture's own.
    """
    kind = type(field.network).__name__

    def text(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if kind == "SD3Transformer2DModel":  # the prompt stands behind the picture
            return query[:, :, :-tokens], key[:, :, -tokens:]
        if kind == "FluxTransformer2DModel":
            return query[:, :, tokens:], key[:, :, :tokens]
        return query, key

    reading = _Reading(text)

    def within(inside: bool) -> Callable[..., None]:
        return lambda *_: setattr(reading, "within", inside)

    handles = [
        handle
        for layer in layers
        for handle in (layer.register_forward_pre_hook(within(True)), layer.register_forward_hook(within(False)))
    ]
    try:
        with reading:
            yield reading.found
    finally:
        for handle in handles:
            handle.remove()


def guess_and_attention(
    field: NetworkField, layers: Sequence[torch.nn.Module], x: Tensor, t: float, cond: Conditioning
) -> tuple[Tensor, Tensor]:
    """Expected clean data under prompts, and the mean attention [N, tokens] of the layers meanwhile.

    Raises ValueError where attention is computed by other means than torch's.
    """
    tokens = cond["encoder_hidden_states"].shape[1]
    with attentions(field, layers, tokens) as found:
        guess = field.data_at(x, t, cond)
    if len(found) != len(layers):
        raise ValueError(
            "the entropy of attention is read where torch's scaled_dot_product_attention computes it, and this model has other "
            "processors; set diffusers' default ones"
        )
    return guess, average(torch.stack(found), 0)


@torch.no_grad()
def score_attention_entropy(
    field: NetworkField, items: Items, *, noises: int, layer: FromZero = 3, sampling_steps: int = 50
) -> list[Scores]:
    """Entropy of the mean attention over tokens in one layer at the first step, a reading for each noise: higher for memorised.

    The layer is counted from 0 as data pass them; the authors take the fourth of Stable Diffusion's sixteen. One evaluation.
    Raises ValueError where there is no such layer.
    """
    layers = prompt_layers(field.network)
    if layer >= len(layers):
        raise ValueError(
            f"there is no layer {layer} of attention to the prompt; the model has {len(layers)}, counted from 0"
        )
    at = level(field, sampling_steps, 0)
    found = Start(field, items, noises).each(
        lambda x, cond: entropy(guess_and_attention(field, layers[layer : layer + 1], x, at.t, cond)[1])
    )
    return [Scores(value, 1, {"noise": number}) for number, value in enumerate(found)]


@torch.no_grad()
def score_sampled_entropy(
    field: NetworkField,
    items: Items,
    *,
    noises: int,
    guidance: float = 7.5,
    last: int = 10,
    sampling_steps: int = 50,
) -> list[Scores]:
    """Mean entropy over the last steps of sampling and how much of the padding's is gained since the first, for each noise.

    The authors' D: of the mean attention of all layers; padding is all from the end token on. The steps are those of DDIM. Two
    evaluations a step. Raises ValueError for a model whose prompts are not filled up behind their end, and too few steps.
    """
    if hasattr(field.pipe, "transformer"):
        raise ValueError(
            "the entropy of the padding is read in pipelines with a U-Net, whose prompts are filled up behind their end; this "
            f"is a {type(field.pipe).__name__}"
        )
    if last > sampling_steps:
        raise ValueError(f"the last {last} of {sampling_steps} steps are asked for")
    layers, start, bare = prompt_layers(field.network), Start(field, items, noises), field.unconditional()
    levels = [level(field, sampling_steps, number) for number in range(sampling_steps)]
    size, x, steps = start.noise[0].numel(), start.noise[:, None].expand(-1, len(items.prompts), -1, -1, -1), []

    def call(t: float) -> Callable[[Tensor, Conditioning, Tensor], Tensor]:
        """Expected clean data with the prompt and without, and attention, as one row of numbers."""

        def both(_: Tensor, cond: Conditioning, x: Tensor) -> Tensor:
            guess, attention = guess_and_attention(field, layers, x, t, cond)
            return torch.cat([guess.flatten(1), field.data_at(x, t, bare).flatten(1), attention.to(guess)], 1)

        return both

    for here, there in zip(levels, levels[1:] + levels[-1:], strict=True):  # after the last step nothing is read
        found = start.each(call(here.t), x)
        guess, without = (part.unflatten(2, field.shape) for part in (found[..., :size], found[..., size : 2 * size]))
        guided = without + guidance * (guess - without)
        x = there.signal * guided + there.noise * here.eps(x, guided)
        steps.append(found[..., 2 * size :])
    attention = torch.stack(steps)  # [steps, noises, N, tokens]
    tokenizer = field.pipe.tokenizer
    lengths = [
        len(tokenizer(p, truncation=True, max_length=tokenizer.model_max_length).input_ids) for p in items.prompts
    ]
    ends = torch.tensor(lengths, device=attention.device)[:, None] - 1
    padding = torch.arange(attention.shape[-1], device=attention.device) >= ends
    filled = entropy(torch.where(padding, attention, 0.0))
    value = average(entropy(attention[-last:]) + filled[-last:], 0) - filled[0]
    return [Scores(each, 2 * sampling_steps, {"noise": number}) for number, each in enumerate(value)]


NEEDS = {"model", "prompt"}
ATTENTION_ENTROPY = Detector("attention_entropy", NEEDS, ({"noises": 4},), score_attention_entropy)
SAMPLED_ENTROPY = Detector("sampled_entropy", NEEDS, ({"noises": 4},), score_sampled_entropy)
