"""Transformers against their pipelines' own loops, closed forms and finite differences; what of them is loaded and refused."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    ModelMixin,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from memlib.cli import main
from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.detectors.text import first_step, token_significance
from memlib.detectors.volume import divergence, growth
from memlib.fields import denoised
from memlib.fields.digest import weights_digest
from memlib.fields.load import field_of, load_field
from memlib.fields.mixtures import PointMasses
from memlib.fields.schedules import FlowSchedule
from memlib.fields.transformer import ADAPTERS, TransformerField
from memlib.sampling.pipeline import cut_parts, generate, shared_noise, trajectory
from memlib.tables import parse_setting, setting_name

WORDS = ["<pad>", "<eos>", "<unk>", "a", "the", "red", "green", "blue", "apple", "tree", "whale", "on"]
WORDS += ["Given", "user", "prompt", "You", "are", "an", "assistant"]  # of the pipelines' own texts
PROMPTS = ["a red apple", "the whale on a green tree"]
GUIDANCE, STEPS = 3.0, 3


def tokenizer(length: int = 8) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, **names)


def clip(projected: bool) -> torch.nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 16}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    config = CLIPTextConfig(vocab_size=len(WORDS), eos_token_id=1, pad_token_id=0, bos_token_id=2, **sizes, **layers)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def gemma() -> Gemma2Model:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024}
    return Gemma2Model(
        Gemma2Config(vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1, bos_token_id=2, **sizes, **heads)
    )


def autoencoder(levels: int = 2, shift: float | None = 0.3) -> AutoencoderKL:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    sizes = {"block_out_channels": [4] * levels, "norm_num_groups": 2, "layers_per_block": 1}
    return AutoencoderKL(**blocks, **sizes, latent_channels=4, scaling_factor=1.4, shift_factor=shift)


def sd3(encoders: int = 3, shift: float = 3.0, **moved: object) -> StableDiffusion3Pipeline:
    text = {"joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32}
    sizes = {"sample_size": 4, "patch_size": 1, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 8}
    network = SD3Transformer2DModel(num_layers=1, attention_head_dim=8, num_attention_heads=2, **text, **sizes)
    third = (t5(), tokenizer(256)) if encoders == 3 else (None, None)
    parts = (clip(True), tokenizer(), clip(True), tokenizer(), *third)
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=shift, **moved), autoencoder(), *parts
    )


def flux(guided: bool) -> FluxPipeline:
    text = {"joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": [4, 4, 8]}
    sizes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1}
    network = FluxTransformer2DModel(
        attention_head_dim=16, num_attention_heads=2, guidance_embeds=guided, **text, **sizes
    )
    schedule = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided)
    pipe = FluxPipeline(schedule, autoencoder(), clip(False), tokenizer(), t5(), tokenizer(512), network)
    pipe.default_sample_size = 8
    return pipe


def pixart(sample_size: int = 8) -> PixArtAlphaPipeline:
    text = {"caption_channels": 32, "cross_attention_dim": 24, "norm_type": "ada_norm_single"}
    sizes = {"sample_size": sample_size, "patch_size": 2, "out_channels": 8, "num_layers": 1}
    network = PixArtTransformer2DModel(attention_head_dim=8, num_attention_heads=3, **text, **sizes)
    return PixArtAlphaPipeline(tokenizer(120), t5(), autoencoder(shift=None), network, DDIMScheduler(clip_sample=False))


def sana() -> SanaPipeline:
    channels = {"encoder_block_out_channels": (4, 8), "decoder_block_out_channels": (4, 8)}
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    plain = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.4, **channels, **layers, **plain)
    heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2}
    text = {"cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 8}
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 1, "sample_size": 16, "timestep_scale": 0.5}
    network = SanaTransformer2DModel(**heads, **text, **sizes)
    return SanaPipeline(tokenizer(1000), gemma(), vae, network, FlowMatchEulerDiscreteScheduler(shift=3.0))


def lumina(by_tokens: bool = False) -> Lumina2Pipeline:
    heads = {"num_attention_heads": 2, "num_kv_heads": 1, "axes_dim_rope": (4, 2, 2), "axes_lens": (300, 8, 8)}
    sizes = {"sample_size": 4, "hidden_size": 16, "num_layers": 1, "num_refiner_layers": 1, "multiple_of": 8}
    network = Lumina2Transformer2DModel(in_channels=4, cap_feat_dim=8, **heads, **sizes)
    schedule = FlowMatchEulerDiscreteScheduler(shift=6.0, use_dynamic_shifting=by_tokens)
    return Lumina2Pipeline(network, schedule, autoencoder(4), gemma(), tokenizer(1000))


FLUX_LOOP = {"negative_prompt": [""] * 2, "true_cfg_scale": GUIDANCE}
LUMINA_LOOP = {"guidance_scale": GUIDANCE, "cfg_normalization": False}
NO_BINS = {"guidance_scale": GUIDANCE, "use_resolution_binning": False}
# Each pipeline, how its own loop is run with guidance, and the latents that it is asked for
PIPELINES: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, object], int]] = {
    "SD3": (sd3, {"guidance_scale": GUIDANCE}, 4),
    "SD3, two encoders": (lambda: sd3(2), {"guidance_scale": GUIDANCE}, 4),
    "SD3, shifted by tokens": (lambda: sd3(2, use_dynamic_shifting=True), {"guidance_scale": GUIDANCE}, 4),
    "Flux dev": (lambda: flux(True), FLUX_LOOP, 8),
    "Flux schnell": (lambda: flux(False), FLUX_LOOP, 8),
    "PixArt": (pixart, NO_BINS, 8),
    "PixArt 1024": (lambda: pixart(128), NO_BINS, 8),
    "Sana": (sana, NO_BINS, 16),
    "Lumina 2": (lumina, LUMINA_LOOP, 4),
    "Lumina 2, shifted by tokens": (lambda: lumina(True), LUMINA_LOOP, 4),
}


def tiny(name: str, dtype: torch.dtype = torch.float32, rows: int = 64) -> tuple[DiffusionPipeline, TransformerField]:
    """A pipeline of random weights, in which every input of the network counts, and its field, as if it were loaded."""
    torch.manual_seed(0)
    build, _, side = PIPELINES[name]
    pipe = build()
    generator = torch.Generator().manual_seed(1)
    for name, part in pipe.components.items():
        for parameter in part.eval().parameters() if part and ("transformer" in name or "encoder" in name) else ():
            parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
    pipe.transformer.requires_grad_(False)
    pipe = pipe.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    field = TransformerField(pipe, rows)
    field.shape = torch.Size([field.shape[0], side, side])
    return pipe, field


@torch.no_grad()
def own_loop(pipe: DiffusionPipeline, how: dict, side: int) -> list[torch.Tensor]:
    """What the network is given at each step of the pipeline's own loop, [2, ...] each, and where it ends."""
    given: list[torch.Tensor] = []

    def read(_: object, arguments: tuple, keywords: dict) -> None:
        x_t = (arguments[0] if arguments else keywords["hidden_states"])[:2]
        if not given or not torch.equal(given[-1], x_t):  # two calls a step where prompt and no prompt go apart
            given.append(x_t.clone())

    handle = pipe.transformer.register_forward_pre_hook(read, with_kwargs=True)
    try:
        sides = {"height": side * pipe.vae_scale_factor, "width": side * pipe.vae_scale_factor}
        generator = torch.Generator().manual_seed(3)
        end = pipe(PROMPTS, num_inference_steps=STEPS, generator=generator, output_type="latent", **sides, **how)
    finally:
        handle.remove()
    return [*given, end.images]


def unpacked(pipe: DiffusionPipeline, x: torch.Tensor, side: int) -> torch.Tensor:
    if isinstance(pipe, FluxPipeline):
        sides = side * pipe.vae_scale_factor
        x = pipe._unpack_latents(x, sides, sides, pipe.vae_scale_factor)
    return x.float()


def guided(pair: torch.Tensor) -> torch.Tensor:
    """What guidance makes of predictions without the prompt and with it [2, ...]."""
    return pair[0] + GUIDANCE * (pair[1] - pair[0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_pipelines_own_loop_is_recomputed(name: str, dtype: torch.dtype) -> None:
    _, how, side = PIPELINES[name]
    pipe, field = tiny(name, dtype)
    states = [unpacked(pipe, x, side) for x in own_loop(pipe, how, side)]
    assert len(states) == STEPS + 1
    times = field.timesteps(STEPS)
    cond, without = field.encode_prompts(PROMPTS), field.unconditional()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.08}
    for (x, reached), (here, there) in zip(pairwise(states), pairwise([*times, 0.0]), strict=True):
        signal, noise = (float(part) for part in field.schedule.at(torch.tensor(here, dtype=torch.float64)))
        clean = torch.stack([field.data_at(x, here, each) for each in (without, cond)])
        assert (clean[1] - clean[0]).square().mean().sqrt() > 0.01 * noise, "guidance matters"
        if signal > 0:
            y, sigma = x / signal, noise / signal
            eps = torch.stack([field(y, sigma, each) for each in (without, cond)])
            torch.testing.assert_close((y - sigma * eps) / max(1, sigma), clean / max(1, sigma), **close)
        if name.startswith("PixArt"):
            expected = pipe.scheduler.step(guided(eps), int(here), x).prev_sample
        else:
            expected = x + (there - here) / here * (x - guided(clean))
        size = reached.square().mean().sqrt()
        torch.testing.assert_close(expected / size, reached / size, **close)


FAMILIES = ["SD3", "Flux dev", "PixArt 1024", "Sana", "Lumina 2"]


def items_for(field: TransformerField, n: int = 2) -> Items:
    pictures = torch.rand(n, *field.picture_shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return Items([f"item {i}" for i in range(n)], 0, pictures, [PROMPTS[i % 2] for i in range(n)])


def noisy(field: TransformerField, n: int = 2, sigma: float = 0.7) -> torch.Tensor:
    return (1 + sigma) * torch.randn(n, *field.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_levels_stay_float32_and_nothing_is_left_on_the_network(name: str) -> None:
    _, field = tiny(name, torch.bfloat16)
    seen: list[torch.Tensor] = []
    handle = field.network.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["timestep"]), with_kwargs=True
    )
    cond, hooks = field.encode_prompts(PROMPTS), len(field.network._forward_pre_hooks)
    sigma = 0.7131
    found = field(noisy(field), sigma, cond)
    assert found.dtype is torch.float32
    t = sigma / (1 + sigma)
    told = {
        "Flux dev": t,
        "Sana": 500 * t,
        "Lumina 2": 1 - t,
        "PixArt 1024": float(field.timestep(torch.tensor([sigma]))),
    }
    torch.testing.assert_close(seen[0], torch.full([2], told.get(name, 1000 * t)), rtol=1e-6, atol=0)
    assert len(field.network._forward_pre_hooks) == hooks
    handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_items_in_turn_are_those_at_once(name: str) -> None:
    _, field = tiny(name)
    y, sigmas = noisy(field, 6), torch.tensor([0.2, 0.7, 3.0, 0.2, 0.7, 3.0])
    cond = field.encode_prompts([*PROMPTS, "a"])
    whole = field(y, sigmas, cond)
    for rows in (1, 4):
        torch.testing.assert_close(field.with_rows(rows, pad=True)(y, sigmas, cond), whole, rtol=1e-4, atol=1e-5)
    one = field.with_conditioning({part: value[1:2] for part, value in cond.items()})(y[4:5], 0.7)
    torch.testing.assert_close(one, whole[4:5], rtol=1e-4, atol=1e-5)


def memoriser(field: TransformerField, points: torch.Tensor) -> TransformerField:
    """The field of a network that has learnt the velocity of a training set by heart."""

    def velocity(_: object, x_t: torch.Tensor, t: torch.Tensor, __: object) -> torch.Tensor:
        t = (t / 1000).reshape(-1, 1, 1, 1)
        return (x_t - exact_data(PointMasses(points), x_t, t)) / t

    field.adapter = field.adapter._replace(predict=velocity)
    return field


def exact_data(exact: PointMasses, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t] of point masses from the likelihood of x_t itself, also at t = 1."""
    flat = x_t.flatten(1).double()
    squared = (flat[:, None] - (1 - t.double()).flatten()[:, None, None] * exact.points).square().sum(2)
    weights = (-squared / (2 * t.double().flatten()[:, None].square())).softmax(1)
    return (weights @ exact.points).reshape(x_t.shape).to(x_t)


def test_a_flow_that_has_learnt_its_data_by_heart_is_known_at_every_level(generator: torch.Generator) -> None:
    _, field = tiny("SD3, two encoders")
    points = torch.randn(5, *field.shape, generator=generator)
    flow, exact = memoriser(field, points), PointMasses(points)
    for sigma in (field.sigma_min, 0.1, 0.8, 1.7, 30.0, field.sigma_max):
        y = points[:3] + sigma * torch.randn(3, *field.shape, generator=generator)
        torch.testing.assert_close(flow(y, sigma), exact(y, sigma), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(denoised(flow, y, sigma), denoised(exact, y, sigma), rtol=1e-3, atol=4e-3)
    start = torch.randn(3, *field.shape, generator=generator)
    torch.testing.assert_close(flow.data_at(start, 1000.0), points.mean(0).expand(3, -1, -1, -1), rtol=1e-4, atol=1e-5)
    t = torch.full([3, 1, 1, 1], 0.6)
    torch.testing.assert_close(flow.data_at(start, 600.0), exact_data(exact, start, t), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_loss_of_a_flow_is_that_of_its_noise(generator: torch.Generator) -> None:
    """|v - (n - x0)|^2 = |eps - n|^2 / (1 - t)^2."""
    pipe, field = tiny("SD3")
    cond = field.encode_prompts(PROMPTS)
    clean, n = (torch.randn(2, *field.shape, generator=generator) for _ in range(2))
    for t in (0.1, 0.5, 0.9):
        v = pipe.transformer((1 - t) * clean + t * n, timestep=torch.full([2], 1000 * t), return_dict=False, **cond)[0]
        eps = field(clean + t / (1 - t) * n, t / (1 - t), cond)
        expected = (eps - n).square().flatten(1).sum(1) / (1 - t) ** 2
        torch.testing.assert_close((v - (n - clean)).square().flatten(1).sum(1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    _, field = tiny(name)
    cond = field.encode_prompts(PROMPTS[:1])
    field.network.double()
    eps, y, sigma, step = field.with_conditioning(cond), noisy(field, 1).double(), 0.7, 1e-3
    for level, seed in ((sigma, 7), (2.5, 8)):
        trace, _ = divergence(eps, y, level, 1, [seed])
        v = 2.0 * torch.randint(0, 2, y.shape[1:], generator=torch.Generator().manual_seed(seed))[None] - 1
        with torch.no_grad():
            slope = (eps(y + step * v, level) - eps(y - step * v, level)) / (2 * step)
        torch.testing.assert_close(trace, (v * slope).flatten(1).sum(1), rtol=1e-3, atol=1e-3)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            _, pushed = torch.func.jvp(lambda x, a=level: eps(x, a), (y,), (v.to(y),))
        assert (pushed - slope).norm() < 0.01 * slope.norm()  # Sana's attention has kinks


def test_the_whole_trace_is_the_sum_of_finite_differences() -> None:
    _, field = tiny("SD3, two encoders")
    eps, y, step = field.with_conditioning(field.unconditional()), noisy(field, 1).double(), 1e-4
    field.network.double()
    d = y.numel()
    ends = y + step * torch.cat([torch.eye(d), -torch.eye(d)]).reshape(2 * d, *y.shape[1:])
    with torch.no_grad():
        ahead, behind = eps(ends, 0.7).reshape(2, d, d)
    expected = (ahead - behind).diagonal().sum() / (2 * step)
    trace, error = divergence(eps, y, 0.7)
    torch.testing.assert_close(trace[0], expected.to(trace.dtype), rtol=1e-4, atol=1e-3)
    assert error == 0
    run = growth(eps, y, torch.tensor([0.7, 0.8]))
    torch.testing.assert_close(run.by_direction.mean(0)[0, 0], 0.7 * expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prompt", [False, True])
def test_growth_and_flux_are_measured_on_a_transformer(prompt: bool) -> None:
    _, field = tiny("SD3, two encoders", rows=8)
    items = items_for(field)
    for name, setting in (
        ("growth", {"sigma_min": 0.2, "sigma_max": 4.0, "steps": 2, "directions": 2}),
        ("flux", {"sigma": 0.5, "p": [1.0, 2.0], "directions": 4}),
    ):
        found = find(name).score(field, items, **setting, prompt=prompt)
        again = find(name).score(field, items.rows([1]), **setting, prompt=prompt)
        for whole, alone in zip(found, again, strict=True):
            assert whole.value.isfinite().all()
            torch.testing.assert_close(alone.value, whole.value[1:], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["SD3", "Sana", "PixArt"])
def test_pictures_and_latents_are_the_pipelines(name: str) -> None:
    pipe, field = tiny(name)
    how, side = PIPELINES[name][1], PIPELINES[name][2]
    sides = {"height": side * pipe.vae_scale_factor, "width": side * pipe.vae_scale_factor}
    how = how | sides | {"num_inference_steps": 1}
    latents, pictures = (
        pipe("a whale", generator=torch.Generator().manual_seed(4), output_type=kind, **how).images
        for kind in ("latent", "pt")
    )
    assert pictures.shape[1:] == field.picture_shape
    torch.testing.assert_close(field.to_pictures(latents), 2 * pictures - 1, rtol=1e-4, atol=1e-4)
    if name == "Sana":
        expected = 0.4 * pipe.vae.encode(pictures).latent
    else:
        expected = 1.4 * (pipe.vae.encode(pictures).latent_dist.mean - (0.3 if name == "SD3" else 0.0))
    torch.testing.assert_close(field.to_latents(pictures), expected)
    assert field.to_latents(pictures).shape[1:] == field.shape


@torch.no_grad()
def test_the_first_step_of_a_flow_is_told_by_its_clean_latents() -> None:
    """At t = 1 the noise predictions agree whatever the prompt, and |D_c - D_u| = |v_c - v_u|."""
    pipe, field = tiny("SD3", rows=4)
    noise = shared_noise(field.shape, 2, 0)
    found = first_step(field, PROMPTS, noise, 10)
    for number, prompt in enumerate(PROMPTS):
        e, _, p, _ = pipe.encode_prompt(["", prompt], None, None, do_classifier_free_guidance=False)
        for place, x in enumerate(noise):
            given = {"encoder_hidden_states": e, "pooled_projections": p, "timestep": torch.full([2], 1000.0)}
            v = pipe.transformer(x.expand(2, -1, -1, -1), return_dict=False, **given)[0]
            torch.testing.assert_close(found[number, place], (v[1] - v[0]).norm(), rtol=1e-4, atol=1e-5)
    assert (found > 0.05).all()
    run = trajectory(pipe, PROMPTS, noise, sampling_steps=4, guidance=GUIDANCE, rows=8)
    torch.testing.assert_close(run.value[..., 0], found, rtol=1e-4, atol=1e-5)
    t = torch.tensor(field.timesteps(4), dtype=torch.float64) / 1000
    torch.testing.assert_close(run.sigmas, (t / (1 - t)).float())
    torch.testing.assert_close(run.unconditional[..., 0], noise.flatten(1).norm(dim=1).expand(2, 2))
    scores = find("sampled_magnitude").score(field, items_for(field), noises=1, guidance=GUIDANCE, sampling_steps=2)
    assert scores[0].reading == {"noise": 0, "step": 0, "sigma": float("inf")}
    assert parse_setting(setting_name(scores[0].reading)) == scores[0].reading


@torch.no_grad()
def test_what_a_pipeline_with_a_transformer_draws() -> None:
    pipe, field = tiny("SD3, two encoders")
    noise = shared_noise(field.shape, 2, 0)
    drawn = generate(pipe, PROMPTS, noise, 2, GUIDANCE)
    one = pipe(PROMPTS[1], latents=noise[1:], num_inference_steps=2, guidance_scale=GUIDANCE, output_type="pt").images
    torch.testing.assert_close(drawn[1, 1], 2 * one[0] - 1, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has a transformer; embeddings of prompts are moved"):
        token_significance(field, PROMPTS, noise)
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has a transformer; embeddings of prompts are moved"):
        generate(pipe, torch.zeros(2, 2, 8, 32), noise)


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_cut_of_a_long_prompt_is_told(name: str) -> None:
    """The first token too many, and no other, changes nothing of what the network is told."""
    pipe, field = tiny(name)
    told: dict[int, bool] = {}
    for n in (2, 7, 8, 119, 120, 255, 256, 299, 300, 511, 512):
        long, longer = (" ".join(["apple"] * n + [last]) for last in ("red", "blue"))
        same = all(torch.equal(a[:1], a[1:]) for a in field.encode_prompts([long, longer]).values())
        told[n] = long in cut_parts(pipe, [long])
        assert told[n] == same, n
    assert len(set(told.values())) == 2


def test_there_is_no_largest_noise_level_but_a_last_timestep() -> None:
    _, field = tiny("SD3")
    assert (field.sigma_min, field.sigma_max) == pytest.approx((1 / 999, 999))
    assert field.sigmas.diff().min() > 0
    torch.testing.assert_close(field.timestep(field.sigmas), torch.arange(1.0, 1000.0))
    for sigma in (float("inf"), 1010.0, 0.00099):
        with pytest.raises(ValueError, match="lies outside of the schedule, which goes from 0.001001 to 999"):
            field(noisy(field), sigma)
    assert [round(t) for t in field.timesteps(4)] == [1000, 858, 602, 9], "shifted by 3, and its end once more"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd3"
    tiny("SD3, two encoders")[0].save_pretrained(folder)
    return folder


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_loaded_as_it_was_saved(saved: Path) -> None:
    pipe, field = tiny("SD3, two encoders")
    loaded = load_field(saved)
    assert isinstance(loaded, TransformerField)
    cond, other = (each.encode_prompts(PROMPTS) for each in (field, loaded))
    torch.testing.assert_close(loaded(noisy(field), 0.7, other), field(noisy(field), 0.7, cond))
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    name = weights_digest(loaded)
    assert name == weights_digest(field)
    field.shape = torch.Size([4, 8, 8])
    assert weights_digest(field) != name
    pipe.transformer.proj_out.bias.data[0] += 1
    assert weights_digest(field_of(pipe)) != name
    assert weights_digest(load_field(saved, torch.bfloat16)) != name


INDEX = "model_index.json"
SCHEDULE = "scheduler/scheduler_config.json"
NETWORK = "transformer/config.json"
REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "another transformer": (
        INDEX,
        {"transformer": ["diffusers", "HiDreamImageTransformer2DModel"]},
        "HiDreamImageTransformer2DModel is not known; known are SD3Transformer2DModel, FluxTransformer2DModel",
    ),
    "another network": (NETWORK, {"_class_name": "UNet2DModel"}, "the transformer UNet2DModel is not known"),
    "no second encoder": (INDEX, {"text_encoder_2": [None, None]}, "Pipeline has no text_encoder_2; supported are"),
    "no second tokenizer": (INDEX, {"tokenizer_2": [None, None]}, "Pipeline has no tokenizer_2; supported are"),
    "no autoencoder": (INDEX, {"vae": [None, None]}, "Pipeline has no vae; supported are"),
    "a U-Net, too": (INDEX, {"unet": ["diffusers", "UNet2DModel"]}, "has a U-Net beside its transformer"),
    "another schedule": (
        INDEX,
        {"scheduler": ["diffusers", "DDPMScheduler"]},
        "DDPMScheduler is not set to a rectified flow; supported are FlowMatchEulerDiscreteScheduler",
    ),
    "turned round": (SCHEDULE, {"invert_sigmas": True}, "is not set to a rectified flow"),
    "no scheduler": (INDEX, {"scheduler": ["diffusers", "MyScheduler"]}, "has no scheduler 'MyScheduler'"),
    "more than a picture": (NETWORK, {"in_channels": 33}, "is given 33 channels to predict 4: not a picture alone"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_refused_before_it_is_loaded(
    what: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (DiffusionPipeline, ModelMixin):
        monkeypatch.setattr(kind, "from_pretrained", classmethod(lambda *_, **__: pytest.fail("it is loaded")))
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    name, changes, message = REFUSED[what]
    edit(folder / name, **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        load_field(folder)
    assert "\n" not in str(refusal.value)


def test_pickled_weights_are_not_opened(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"no safetensors weights, only diffusion_pytorch_model.bin, which is pickled"):
        load_field(folder)


def test_schedules_in_memory_that_do_not_fit_are_refused() -> None:
    pipe, _ = tiny("Sana")
    pipe.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=1
    )
    assert isinstance(TransformerField(pipe).schedule, FlowSchedule)
    pipe.scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler is not set to a rectified flow"):
        TransformerField(pipe)
    pipe, _ = tiny("PixArt")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no discrete schedule"):
        TransformerField(pipe)
    pipe.scheduler = DDPMScheduler()
    pipe.transformer = tiny("SD3")[0].vae
    with pytest.raises(
        ValueError, match="the transformer AutoencoderKL is not known; known are " + ", ".join(ADAPTERS)
    ):
        field_of(pipe)


def test_a_saved_transformer_is_scored_from_the_command_line(saved: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, prompt in enumerate([*PROMPTS, "a whale"]):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(prompt)
    command = ["score", str(saved), "--images", str(images), "--rows", "2", "--detectors", "loss", "magnitude"]
    main([*command, "--output", str(tmp_path / "whole")])
    main([*command, "--output", str(tmp_path / "parts"), "--batch", "1"])
    for name in ("loss", "magnitude"):
        paths = [tmp_path / run / f"{name}.parquet" for run in ("whole", "parts")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        table = pd.read_parquet(paths[0])
        assert table["score"].notna().all()
        assert table["item"].nunique() == 3
    table = pd.read_parquet(tmp_path / "whole" / "magnitude.parquet")
    field = load_field(saved)
    expected = first_step(field, [*PROMPTS, "a whale"], shared_noise(field.shape, 4, 0))
    scores = table.pivot(index="item", columns="setting", values="score").to_numpy()
    torch.testing.assert_close(torch.tensor(scores), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(SystemExit, match="memlib score: .* not a diffusers model"):
        main(["score", str(images), "--images", str(images), "--detectors", "loss"])
