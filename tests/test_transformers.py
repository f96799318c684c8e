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
from memlib.detectors.text import first_step
from memlib.detectors.volume import divergence, growth
from memlib.fields import denoised
from memlib.fields.digest import weights_digest
from memlib.fields.load import field_of, load_field
from memlib.fields.mixtures import PointMasses
from memlib.fields.schedules import FlowSchedule
from memlib.fields.transformer import ADAPTERS, TransformerField
from memlib.sampling.pipeline import cut_parts, generate, shared_noise, trajectory

WORDS = "<pad> <eos> <unk> a the red green blue apple tree whale on Given user prompt You are an assistant".split()
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
    config = CLIPTextConfig(len(WORDS), eos_token_id=1, pad_token_id=0, bos_token_id=2, **sizes, **layers)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(len(WORDS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def gemma() -> Gemma2Model:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024}
    return Gemma2Model(Gemma2Config(len(WORDS), pad_token_id=0, eos_token_id=1, bos_token_id=2, **sizes, **heads))


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
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 1, "sample_size": 4, "timestep_scale": 0.5}
    network = SanaTransformer2DModel(**heads, **text, **sizes)
    return SanaPipeline(tokenizer(1000), gemma(), vae, network, FlowMatchEulerDiscreteScheduler(shift=3.0))


def lumina() -> Lumina2Pipeline:
    heads = {"num_attention_heads": 2, "num_kv_heads": 1, "axes_dim_rope": (4, 2, 2), "axes_lens": (300, 8, 8)}
    sizes = {"sample_size": 4, "hidden_size": 16, "num_layers": 1, "num_refiner_layers": 1, "multiple_of": 8}
    network = Lumina2Transformer2DModel(in_channels=4, cap_feat_dim=8, **heads, **sizes)
    schedule = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return Lumina2Pipeline(network, schedule, autoencoder(4), gemma(), tokenizer(1000))


FLUX_LOOP = {"negative_prompt": [""] * 2, "true_cfg_scale": GUIDANCE}
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
    "Sana": (sana, NO_BINS, 4),
    "Lumina 2": (lumina, {"guidance_scale": GUIDANCE, "cfg_normalization": False}, 4),
}


def tiny(name: str, dtype: torch.dtype = torch.float32, rows: int = 64) -> tuple[DiffusionPipeline, TransformerField]:
    """A pipeline of random weights, in which every input of the network counts, and its field."""
    torch.manual_seed(0)
    build, _, side = PIPELINES[name]
    pipe = build()
    generator = torch.Generator().manual_seed(1)
    for parameter in pipe.transformer.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
    pipe.transformer.requires_grad_(False)
    pipe = pipe.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    field = TransformerField(pipe, rows)
    field.shape = torch.Size([field.shape[0], side, side])
    return pipe, field


@torch.no_grad()
def own_loop(pipe: DiffusionPipeline, how: dict, side: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the network is given at each step of the pipeline's own loop, [2, ...] and the end, and what it gives, a call each."""
    seen: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def read(_: object, arguments: tuple, keywords: dict, output: tuple) -> None:
        x_t = arguments[0] if arguments else keywords["hidden_states"]
        if not given or not torch.equal(given[-1], x_t[:2]):
            given.append(x_t[:2].clone())
        seen.append(output[0].float())

    handle = pipe.transformer.register_forward_hook(read, with_kwargs=True)
    try:
        sides = {"height": side * pipe.vae_scale_factor, "width": side * pipe.vae_scale_factor}
        generator = torch.Generator().manual_seed(3)
        end = pipe(PROMPTS, num_inference_steps=STEPS, generator=generator, output_type="latent", **sides, **how)
    finally:
        handle.remove()
    return [*given, end.images], seen


def unpacked(pipe: DiffusionPipeline, x: torch.Tensor, side: int) -> torch.Tensor:
    if isinstance(pipe, FluxPipeline):
        sides = side * pipe.vae_scale_factor
        x = pipe._unpack_latents(x, sides, sides, pipe.vae_scale_factor)
    return x.float()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", PIPELINES)
def test_the_pipelines_own_loop_is_recomputed(name: str, dtype: torch.dtype) -> None:
    _, how, side = PIPELINES[name]
    pipe, field = tiny(name, dtype)
    states, _ = own_loop(pipe, how, side)
    states = [unpacked(pipe, x, side) for x in states]
    assert len(states) == STEPS + 1
    times = field.timesteps(STEPS)
    cond, without = field.encode_prompts(PROMPTS), field.unconditional()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.08}
    for (x, reached), (here, there) in zip(pairwise(states), pairwise([*times, 0.0]), strict=True):
        pair = [field.data_at(x, here, each) for each in (cond, without)]
        assert (pair[0] - pair[1]).square().mean().sqrt() > 0.01, "guidance matters"
        clean = pair[1] + GUIDANCE * (pair[0] - pair[1])
        if name.startswith("PixArt"):
            abar = pipe.scheduler.alphas_cumprod[int(here)]
            eps = (x - abar.sqrt() * clean) / (1 - abar).sqrt()
            expected = pipe.scheduler.step(eps, int(here), x).prev_sample
        else:
            expected = x + (there - here) / here * (x - clean)
        torch.testing.assert_close(expected, reached, **close)
        signal, noise = (float(part) for part in field.schedule.at(torch.tensor(here)))
        if signal > 0:
            y, sigma = x / signal, noise / signal
            again = [denoised(lambda y, s, c=each: field(y, s, c), y, sigma) for each in (cond, without)]
            torch.testing.assert_close(torch.stack(again), torch.stack(pair), **close)
