"""The magnitude of a pipeline of Stable Diffusion's architecture with tiny widths, at all steps, against a loop by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from memlib.detectors.text import first_step
from memlib.fields.load import load_field
from memlib.sampling.pipeline import cut_parts, shared_noise, trajectory
from memlib.training.text_model import build_scheduler, train_tokenizer

SUSPECTED = [
    "The No Limits Business Woman Podcast",
    "Here's Who Will Be on the Cover of the New York Times Magazine, and Why It Matters to Readers in Every State, "
    "from the first page to the last one, with a list of all the names that were left out " + "and why they were " * 12,
    "Renegade RSS Laptop Backpack - View 5",
]
ORDINARY = ["a photo of a dog on a beach", "an oil painting of mountains at dawn", "two children and a kite", "a cup"]
SEED, ROWS, NOISES, STEPS, GENERATIONS, SAMPLING_STEPS = 23, 4, 3, 3, 2, 5


def stable_diffusion(folder: Path) -> None:
    """The blocks of Stable Diffusion v1.4 with few channels, untrained; prompts of 77 tokens, and its own scheduler."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(SUSPECTED + ORDINARY, 77)
    encoder = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(encoder),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 16, 32, 32),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler=PNDMScheduler.from_config(build_scheduler(TEXT).config, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


@pytest.mark.filterwarnings("ignore:of the prompt .* only 77 tokens are used:UserWarning")
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.ci)])
def test_magnitudes_are_those_of_a_loop_by_hand(precision: str, tmp_path: Path) -> None:
    stable_diffusion(tmp_path)
    dtype, prompts, seen = getattr(torch, precision), SUSPECTED + ORDINARY, []
    field = load_field(tmp_path, dtype, ROWS)
    field.pipe.scheduler = DDIMScheduler.from_config(field.pipe.scheduler.config)
    field.pipe.unet.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    noise = shared_noise(field.shape, NOISES, SEED)
    first = first_step(field, prompts, noise, SAMPLING_STEPS)
    run = trajectory(field.pipe, prompts, noise[:GENERATIONS], STEPS, SAMPLING_STEPS, 3.0, ROWS)
    assert max(seen) <= ROWS, "never more items in a call than the pipeline's machine can hold"
    assert [*cut_parts(field.pipe, prompts)] == [SUSPECTED[1]]
    expected, mean = by_hand(tmp_path, dtype)
    tolerance = 1e-4 if precision == "float32" else 0.1
    np.testing.assert_allclose(first, expected, rtol=tolerance)
    np.testing.assert_allclose((run.value / run.sigmas).mean(2), mean, rtol=tolerance)


@torch.no_grad()
def by_hand(folder: Path, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """|D_c - D_u| at the first step [N, noises], and the mean of |eps_c - eps_u| over the first steps of DDIM."""
    field = load_field(folder, dtype)
    pipe, abar = field.pipe, field.scheduler.alphas_cumprod
    noise = shared_noise(field.shape, NOISES, SEED)
    times = [1 + i * (1000 // SAMPLING_STEPS) for i in reversed(range(SAMPLING_STEPS))]

    def change(x: torch.Tensor, t: int, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        eps = [
            pipe.unet(x.to(dtype), t, pipe.encode_prompt(words, "cpu", 1, False)[0].expand(len(x), -1, -1)).sample
            for words in ("", prompt)
        ]
        return eps[0].float(), eps[1].float() - eps[0].float()

    first, means = [], []
    for prompt in SUSPECTED + ORDINARY:
        ratio = float(((1 - abar[times[0]]) / abar[times[0]]).sqrt())
        first.append(ratio * change(noise, times[0], prompt)[1].flatten(1).norm(dim=1))
        x, lengths = noise[:GENERATIONS], []
        for t in times[:STEPS]:
            without, difference = change(x, t, prompt)
            lengths.append(difference.flatten(1).norm(dim=1))
            eps, before = without + 3.0 * difference, abar[max(t - 1000 // SAMPLING_STEPS, 0)]
            clean = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            x = before.sqrt() * clean + (1 - before).sqrt() * eps
        means.append(torch.stack(lengths).mean(0))
    return torch.stack(first).numpy(), torch.stack(means).numpy()
