"""Entropy of the cross-attention against diffusers' own attention."""

import pytest
import torch
from conftest import small_pipeline
from diffusers.models.attention_processor import AttnProcessor

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.detectors.attention import cross_attentions, token_entropy
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import shared_noise

PROMPTS = ["a red apple", "the whale", "a blue tree on a whale"]
ITEMS = Items(PROMPTS, 3, prompts=PROMPTS)


class Reading(AttnProcessor):
    """Attention as diffusers computes it without fused kernels; keeps the probabilities [N, heads, pixels, tokens]."""

    def __call__(self, attn: torch.nn.Module, hidden_states: torch.Tensor, **keywords) -> torch.Tensor:
        scores, seen = attn.get_attention_scores, []
        attn.get_attention_scores = lambda *given: seen.append(scores(*given)) or seen[-1]
        try:
            return super().__call__(attn, hidden_states, **keywords)
        finally:
            attn.get_attention_scores = scores
            self.seen = seen[0].unflatten(0, (-1, attn.heads))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2, 6])
def test_the_entropy_is_that_of_diffusers_attention(layer: int) -> None:
    pipe = small_pipeline()
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=4)
    found = find("attention_entropy").score(field, ITEMS, noises=2, layer=layer, sampling_steps=10)
    assert not any(module._forward_hooks for module in pipe.unet.modules()), "no hook is left"
    processors = list(pipe.unet.attn_processors)
    assert [type(each).__name__ for each in pipe.unet.attn_processors.values()] == ["AttnProcessor2_0"] * len(
        processors
    )
    attention, reading = cross_attentions(pipe.unet)[layer], Reading()
    attention.set_processor(reading)
    states = field.encode_prompts(PROMPTS)["encoder_hidden_states"]
    pipe.scheduler.set_timesteps(10)
    for scores, start in zip(found, shared_noise((4, 4, 4), 2, 3), strict=True):
        pipe.unet(start.repeat(3, 1, 1, 1), pipe.scheduler.timesteps[0], states)
        mean = reading.seen.mean((1, 2))
        torch.testing.assert_close(scores.value, -(mean * mean.log()).sum(1), rtol=1e-4, atol=0)


def test_layers_are_counted_as_data_pass_them() -> None:
    pipe, passed = small_pipeline(), []
    layers = cross_attentions(pipe.unet)
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: passed.append(layer))
    pipe("a whale", num_inference_steps=1, guidance_scale=0.0, output_type="latent")
    assert layers == passed
    field = UNetField(pipe.unet, pipe.scheduler, pipe)
    with pytest.raises(ValueError, match="there is no layer 7 of cross-attention; the model has 7, counted from 0"):
        find("attention_entropy").score(field, ITEMS, noises=1, layer=7)


def test_known_entropies() -> None:
    keys = torch.zeros(1, 8, 4)
    torch.testing.assert_close(token_entropy(torch.randn(1, 5, 4), keys, 2, 0.5), torch.tensor([8.0]).log())
    keys[0, 3] = 1000.0
    assert float(token_entropy(torch.ones(1, 5, 4), keys, 2, 0.5)) == 0, "all on one token"
    keys = torch.zeros(1, 2, 4)
    keys[0, 0, :2], keys[0, 1, 2:] = 1000.0, 1000.0  # one head on either token: the mean is even
    keys[0, 0, 2:], keys[0, 1, :2] = -1000.0, -1000.0
    torch.testing.assert_close(token_entropy(torch.ones(1, 5, 4), keys, 2, 0.5), torch.tensor([2.0]).log())
