"""Entropy of the attention to a prompt against diffusers' own attention, in U-Nets and transformers."""

import pytest
import torch
from conftest import small_pipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import apply_rotary_emb
from test_transformers import tiny

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.detectors.attention import entropy, mean_attention, prompt_layers
from memlib.fields.network import NetworkField
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
            self.means = [*getattr(self, "means", []), self.seen.mean((1, 2))]  # [N, tokens] a call


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
    attention, reading = prompt_layers(pipe.unet)[layer], Reading()
    attention.set_processor(reading)
    states = field.encode_prompts(PROMPTS)["encoder_hidden_states"]
    pipe.scheduler.set_timesteps(10)
    for scores, start in zip(found, shared_noise((4, 4, 4), 2, 3), strict=True):
        pipe.unet(start.repeat(3, 1, 1, 1), pipe.scheduler.timesteps[0], states)
        mean = reading.seen.mean((1, 2))
        torch.testing.assert_close(scores.value, -(mean * mean.log()).sum(1), rtol=1e-4, atol=0)


def test_layers_are_counted_as_data_pass_them() -> None:
    pipe, passed = small_pipeline(), []
    layers = prompt_layers(pipe.unet)
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: passed.append(layer))
    pipe("a whale", num_inference_steps=1, guidance_scale=0.0, output_type="latent")
    assert layers == passed
    field = UNetField(pipe.unet, pipe.scheduler, pipe)
    with pytest.raises(
        ValueError, match="there is no layer 7 of attention to the prompt; the model has 7, counted from 0"
    ):
        find("attention_entropy").score(field, ITEMS, noises=1, layer=7)


def test_known_entropies() -> None:
    def spread(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        heads = (part.unflatten(2, (2, -1)).transpose(1, 2) for part in (query, key))
        return entropy(mean_attention(*heads, 0.5, mask))

    keys = torch.zeros(1, 8, 4)
    torch.testing.assert_close(spread(torch.randn(1, 5, 4), keys), torch.tensor([8.0]).log())
    mask = torch.tensor([0.0] * 3 + [-1e4] * 5).expand(1, 2, 1, 8)
    torch.testing.assert_close(spread(torch.randn(1, 5, 4), keys, mask), torch.tensor([3.0]).log())
    keys[0, 3] = 1000.0
    assert float(spread(torch.ones(1, 5, 4), keys)) == 0, "all on one token"
    keys = torch.zeros(1, 2, 4)
    keys[0, 0, :2], keys[0, 1, 2:] = 1000.0, 1000.0  # one head on either token: the mean is even
    keys[0, 0, 2:], keys[0, 1, :2] = -1000.0, -1000.0
    torch.testing.assert_close(spread(torch.ones(1, 5, 4), keys), torch.tensor([2.0]).log())


@torch.no_grad()
def test_the_sampled_entropy_is_that_of_the_pipelines_own_loop() -> None:
    pipe, steps, last = small_pipeline(), 5, 2
    for layer in prompt_layers(pipe.unet):  # so that attention changes along sampling
        layer.to_q.weight.data *= 30
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=4)
    found = find("sampled_entropy").score(field, ITEMS, noises=2, guidance=3.0, last=last, sampling_steps=steps)
    assert [(scores.reading, scores.evaluations) for scores in found] == [({"noise": n}, 2 * steps) for n in (0, 1)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())
    for scores, start in zip(found, shared_noise((4, 4, 4), 2, 3), strict=True):
        for number, prompt in enumerate(PROMPTS):
            readings = [Reading() for _ in prompt_layers(pipe.unet)]
            for layer, reading in zip(prompt_layers(pipe.unet), readings, strict=True):
                layer.set_processor(reading)
            pipe(prompt, latents=start[None], num_inference_steps=steps, guidance_scale=3.0, output_type="latent")
            mean = torch.stack([torch.stack(reading.means) for reading in readings]).mean(0)[:, 1]  # [steps, tokens]
            parts = -mean * mean.log()
            padding = parts[:, len(pipe.tokenizer(prompt).input_ids) - 1 :].sum(1)
            expected = parts[-last:].sum(1).mean() + padding[-last:].mean() - padding[0]
            assert (parts[-last:] - parts[:last]).sum(1).abs().max() > 0.01
            torch.testing.assert_close(scores.value[number], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_in_joint_attention_the_picture_looks_at_the_prompts_tokens() -> None:
    pipe, field = tiny("SD3")
    attention, seen = pipe.transformer.transformer_blocks[0].attn, []
    found = find("attention_entropy").score(field, ITEMS, noises=2, layer=0, sampling_steps=4)
    handle = attention.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    start = shared_noise(field.shape, 2, 3)
    cond = field.encode_prompts(PROMPTS)
    for scores, x in zip(found, start, strict=True):
        pipe.transformer(x.expand(3, -1, -1, -1), timestep=torch.full([3], 1000.0), **cond)
        query, key = attention.to_q(seen[-1]["hidden_states"]), attention.add_k_proj(seen[-1]["encoder_hidden_states"])
        assert (query.shape[1], key.shape[1]) == (16, 8 + 256)
        query, key = (part.unflatten(2, (2, 8)) for part in (query, key))
        mean = (torch.einsum("nphd,nthd->nhpt", query, key) / 8**0.5).softmax(-1).mean((1, 2))
        torch.testing.assert_close(scores.value, -(mean * mean.log()).sum(1), rtol=1e-4, atol=1e-5)
    handle.remove()
    assert scores.value.std() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_in_flux_tokens_come_first_and_are_turned(layer: int) -> None:
    pipe, field = tiny("Flux dev")
    network = pipe.transformer
    attention, seen = [network.transformer_blocks[0], network.single_transformer_blocks[0]][layer].attn, []
    found = find("attention_entropy").score(field, ITEMS, noises=1, layer=layer, sampling_steps=4)[0].value
    handle = attention.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    cond = field.encode_prompts(PROMPTS)
    field.data_at(shared_noise(field.shape, 1, 3).expand(3, -1, -1, -1), field.timesteps(4)[0], cond)
    handle.remove()
    given, text = seen[-1], cond["encoder_hidden_states"].shape[1]
    if layer == 0:
        queries = attention.norm_q(attention.to_q(given["hidden_states"]).unflatten(2, (2, 16)))
        keys = attention.norm_added_k(attention.add_k_proj(given["encoder_hidden_states"]).unflatten(2, (2, 16)))
    else:
        queries = attention.norm_q(attention.to_q(given["hidden_states"]).unflatten(2, (2, 16)))[:, text:]
        keys = attention.norm_k(attention.to_k(given["hidden_states"]).unflatten(2, (2, 16)))[:, :text]
    cosines, sines = given["image_rotary_emb"]
    queries = apply_rotary_emb(queries, (cosines[text:], sines[text:]), sequence_dim=1)
    keys = apply_rotary_emb(keys, (cosines[:text], sines[:text]), sequence_dim=1)
    mean = (torch.einsum("nphd,nthd->nhpt", queries, keys) / 4).softmax(-1).mean((1, 2))
    torch.testing.assert_close(found, -(mean * mean.log()).sum(1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["PixArt", "Sana"])
def test_padding_that_is_masked_has_no_share(name: str) -> None:
    pipe, field = tiny(name)
    found = find("attention_entropy").score(field, ITEMS, noises=1, layer=0, sampling_steps=4)[0].value
    reading, cond = Reading(), field.encode_prompts(PROMPTS)
    pipe.transformer.transformer_blocks[0].attn2.set_processor(reading)
    field.data_at(shared_noise(field.shape, 1, 3).expand(3, -1, -1, -1), field.timesteps(4)[0], cond)
    mean = reading.seen.mean((1, 2))
    assert (mean[cond["encoder_attention_mask"] == 0] < 1e-6).all()
    torch.testing.assert_close(found, -torch.special.xlogy(mean, mean).sum(1), rtol=1e-4, atol=1e-5)


def test_attention_that_cannot_be_read_is_refused() -> None:
    pipe = small_pipeline()
    field: NetworkField = UNetField(pipe.unet, pipe.scheduler, pipe)
    pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(ValueError, match="this model has other processors; set diffusers' default ones"):
        find("attention_entropy").score(field, ITEMS, noises=1)
    with pytest.raises(ValueError, match="the last 10 of 5 steps are asked for"):
        find("sampled_entropy").score(field, ITEMS, noises=1, last=10, sampling_steps=5)
    _, field = tiny("Lumina 2")
    with pytest.raises(ValueError, match="is read in U-Nets and in SD3Transformer2DModel, .*; this is a Lumina2Tr"):
        find("attention_entropy").score(field, ITEMS, noises=1, layer=0)
    _, field = tiny("SD3")
    with pytest.raises(
        ValueError, match="in pipelines with a U-Net, whose prompts are filled up .*; this is a StableDiff"
    ):
        find("sampled_entropy").score(field, ITEMS, noises=1, sampling_steps=2, last=1)
