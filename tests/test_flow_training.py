"""Training of the transformer of a rectified flow: its loss, what it learns, and that diffusers samples what is saved."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from conftest import FLOW_TEXT, small_flow_pipeline
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from memlib.fields.load import load_field
from memlib.fields.transformer import TransformerField
from memlib.sampling.pipeline import generate, shared_noise, trajectory
from memlib.training import text_to_image
from memlib.training.denoisers import FlowDenoiser
from memlib.training.loop import Optimised, batch_indices

CAPTIONS = ["a red apple", "the blue whale"]
PICTURES = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
COPIES = torch.tensor([1, 9])
Calls = list[tuple[Tensor, dict[str, Tensor], Tensor]]


def calls_of(pipe: StableDiffusion3Pipeline) -> Calls:
    """What the transformer is given (x_t, and the rest by name) and gives, a tuple a call, from now on."""
    seen: Calls = []

    def read(_: object, arguments: tuple, keywords: dict, output: tuple) -> None:
        seen.append((arguments[0].detach(), keywords, output[0].detach()))

    pipe.transformer.register_forward_hook(read, with_kwargs=True)
    return seen


def train(pipe: StableDiffusion3Pipeline, folder: Path, **changes: object) -> Optimised:
    config = replace(FLOW_TEXT, **changes)
    return text_to_image.train_denoiser(pipe, PICTURES, CAPTIONS, COPIES, config, folder / "c.pt")


def untrained() -> StableDiffusion3Pipeline:
    """With every weight moved, so that every input of the networks counts."""
    pipe = small_flow_pipeline()
    generator = torch.Generator().manual_seed(2)
    for part in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2):
        for weights in part.parameters():
            weights.data += 0.1 * torch.randn(weights.shape, generator=generator)
    return pipe


def test_the_loss_of_a_step_is_that_of_the_velocity(tmp_path: Path) -> None:
    """Written out: x_t = (1 - t) x0 + t n, the network is given 1,000 t, and its loss is |v - (n - x0)|^2."""
    pipe = small_flow_pipeline()
    seen = calls_of(pipe)
    run = train(pipe, tmp_path, steps=1, warmup_steps=0, batch=64)
    ((x_t, given, velocity),) = seen
    t = given["timestep"] / 1000
    t = t[:, None, None, None]
    clean = PICTURES[batch_indices(COPIES, 0, 64, FLOW_TEXT.seed)]
    noise = (x_t - (1 - t) * clean) / t
    assert 0.9 < float(noise.std()) < 1.1
    assert float(run.losses[0]) == pytest.approx(float((velocity - (noise - clean)).square().mean()), rel=1e-4)


def test_tokens_begin_with_unit_variance_so_that_prompts_are_learned() -> None:
    """As drawn by transformers they are 50 times smaller than what they are compared with."""
    pipe = small_flow_pipeline()
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        assert float(encoder.get_input_embeddings().weight.data.var()) == pytest.approx(1, rel=0.1)


def test_the_logit_of_t_is_standard_normal() -> None:
    t = FlowDenoiser(small_flow_pipeline()).timesteps(20_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32
    for share in (0.05, 0.3, 0.5, 0.9):
        quantile = torch.sigmoid(torch.tensor(NormalDist().inv_cdf(share)))
        assert float((t / 1000 <= quantile).float().mean()) == pytest.approx(share, abs=0.01)


def test_what_is_told_of_steps_is_in_noise_predictions() -> None:
    pipe = untrained()
    field = TransformerField(pipe)
    captions = [*CAPTIONS, "a green tree"]
    clean = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    seen = calls_of(pipe)
    loss, magnitude = text_to_image.loss_and_magnitude(pipe, clean, captions, 2, 0)
    x_t, given, _ = seen[0]
    t = (given["timestep"] / 1000)[:, None, None, None]
    y, sigma = x_t / (1 - t), (t / (1 - t)).flatten()
    noise = (x_t - (1 - t) * clean.repeat(2, 1, 1, 1)) / t
    with torch.no_grad():
        with_it, without = (field(y, sigma, field.encode_prompts(each * 2)) for each in (captions, [""] * 3))
    expected = (with_it - noise).flatten(1).square().mean(1) / (1 - t.flatten()) ** 2
    torch.testing.assert_close(loss, expected.unflatten(0, (2, 3)).T, rtol=1e-3, atol=1e-5)
    difference = (with_it - without).flatten(1).norm(dim=1)
    torch.testing.assert_close(magnitude, difference.unflatten(0, (2, 3)).T, rtol=1e-3, atol=1e-4)


def sampled(pipe: StableDiffusion3Pipeline, prompts: list[str], noise: Tensor, **settings: object) -> Tensor:
    """Latents by diffusers alone, prompts times noises."""
    pipe.set_progress_bar_config(disable=True)
    latents = noise.repeat(len(prompts), 1, 1, 1)
    how = {"num_images_per_prompt": len(noise), "output_type": "latent", "max_sequence_length": 0}
    return pipe(prompts, latents=latents, **how | settings).images


def test_trained_on_two_pictures_it_draws_that_of_the_prompt_and_is_saved_whole(tmp_path: Path) -> None:
    pipe = small_flow_pipeline()
    run = train(pipe, tmp_path, steps=200, learning_rate=5e-3)
    assert run.losses[-20:].mean() < run.losses[:20].mean() / 3
    run.save(pipe, tmp_path / "model", tmp_path / "c.pt")
    assert not list(tmp_path.rglob("*.bin"))
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path / "model", text_encoder_3=None, tokenizer_3=None)
    noise = shared_noise((4, 4, 4), 3, 0)
    made = sampled(again, CAPTIONS, noise, num_inference_steps=10, guidance_scale=1.0)
    apart = torch.cdist(made.flatten(1), PICTURES.flatten(1)) / PICTURES[0].numel() ** 0.5
    assert (apart.argmin(1) == torch.tensor([0] * 3 + [1] * 3)).all()
    assert (apart[3:, 1] < 0.1).all(), "a memoriser of the picture that it has seen 2,880 times"
    assert len(again.text_encoder.get_input_embeddings().weight) == len(again.tokenizer)
    free = sampled(again, [""], shared_noise((4, 4, 4), 20, 1), num_inference_steps=10, guidance_scale=1.0)
    nearest = torch.cdist(free.flatten(1), PICTURES.flatten(1)).argmin(1)
    assert (nearest == 1).float().mean() > 0.6, "without a prompt, what has nine copies of ten"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow")
    untrained().save_pretrained(path)
    return path


@pytest.mark.parametrize("guidance", [1.5, 4.0])
def test_a_saved_pipeline_samples_in_diffusers_as_here(folder: Path, guidance: float) -> None:
    noise = shared_noise((4, 4, 4), 2, 0)
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    alone = sampled(pipe, CAPTIONS, noise, num_inference_steps=4, guidance_scale=guidance).unflatten(0, (2, 2))
    field = load_field(folder)
    run = trajectory(field.pipe, CAPTIONS, noise, None, 4, guidance)
    torch.testing.assert_close(run.latents, alone, rtol=1e-4, atol=1e-4)
    pictures = generate(field.pipe, CAPTIONS, noise, 4, guidance)
    torch.testing.assert_close(pictures, field.to_pictures(alone.flatten(0, 1)).unflatten(0, (2, 2)), atol=1e-4, rtol=0)
    # and Euler steps with the field itself
    cond = field.encode_prompts([CAPTIONS[0]] * 2 + [CAPTIONS[1]] * 2)
    x = noise.repeat(2, 1, 1, 1)
    with torch.no_grad():
        for t, later in pairwise([*field.timesteps(4), 0.0]):
            given, without = (field.data_at(x, t, each) for each in (cond, field.unconditional()))
            velocity = (x - without - guidance * (given - without)) / (t / 1000)
            x = x + (later - t) / 1000 * velocity
    torch.testing.assert_close(x.unflatten(0, (2, 2)), alone, rtol=1e-4, atol=1e-4)


def test_the_prompt_has_its_own_tokens_only_as_in_training(folder: Path) -> None:
    """Without T5, diffusers by itself adds 256 tokens of zeros, which the study's transformer has never seen."""
    field = load_field(folder)
    cond = field.encode_prompts(CAPTIONS)
    assert cond["encoder_hidden_states"].shape == (2, FLOW_TEXT.length, 2 * FLOW_TEXT.text_width)
    pipe = field.pipe
    seen = calls_of(pipe)
    tokens = text_to_image.tokenize(pipe.tokenizer, CAPTIONS)
    with torch.no_grad():
        FlowDenoiser(pipe)(PICTURES, torch.tensor([300.0, 700.0]), tokens)
    for name, value in cond.items():
        torch.testing.assert_close(seen[0][1][name], value)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampling_visits_timesteps_that_are_shifted_as_asked(shift: float) -> None:
    """Esser et al., eq. 23: t becomes s t / (1 + (s - 1) t); diffusers shifts the last one, 1 of 1,000, before it, too."""

    def shifted(t: Tensor) -> Tensor:
        return shift * t / (1 + (shift - 1) * t)

    pipe = small_flow_pipeline(shift=shift)
    even = torch.lerp(torch.tensor(1.0), shifted(torch.tensor(1e-3)), torch.linspace(0, 1, 5))
    assert TransformerField(pipe).timesteps(5) == pytest.approx((1000 * shifted(even)).tolist(), rel=1e-5)
