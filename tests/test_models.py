"""Noise prediction of networks against the scheduler's own conversions, and refused models."""

import json
from pathlib import Path

import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet
from diffusers import DDPMPipeline
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib import models
from memlib.models import NetworkNoise, load_network, schedule_sigmas


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0, 10, 500, 999])
def test_every_prediction_type_is_converted_as_the_scheduler_does(
    prediction_type: str, t: int, generator: torch.Generator
) -> None:
    noise_scheduler, unet = scheduler(prediction_type), small_unet()
    eps = NetworkNoise(unet, noise_scheduler)
    sigma = schedule_sigmas(noise_scheduler)[t]
    x_t = torch.randn(4, 3, 8, 8, generator=generator)
    x = x_t * (1 + sigma**2).sqrt().float()
    with torch.no_grad():
        clean = noise_scheduler.step(unet(x_t, t).sample, t, x_t).pred_original_sample
        torch.testing.assert_close(eps(x, float(sigma)), (x - clean) / sigma.float(), rtol=1e-3, atol=1e-3)


def test_timesteps_of_the_schedule_are_found_again() -> None:
    eps = NetworkNoise(small_unet(), scheduler())
    torch.testing.assert_close(
        eps.timestep(schedule_sigmas(scheduler())), torch.arange(1000).double(), atol=1e-6, rtol=0
    )


def test_between_two_timesteps_t_is_interpolated_in_log_sigma() -> None:
    eps, sigmas = NetworkNoise(small_unet(), scheduler()), schedule_sigmas(scheduler())
    middle = (sigmas[:-1] * sigmas[1:]).sqrt()
    torch.testing.assert_close(eps.timestep(middle), torch.arange(999).double() + 0.5, atol=1e-6, rtol=0)
    x, sigma = torch.ones(1, 3, 8, 8), float(middle[500])
    expected = eps.unet(x / (1 + sigma**2) ** 0.5, torch.tensor([500.5])).sample
    torch.testing.assert_close(eps(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_one_noise_level_an_item(generator: torch.Generator) -> None:
    eps = NetworkNoise(small_unet(), scheduler())
    x, levels = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 20.0])
    singly = torch.cat([eps(row[None], float(level)) for row, level in zip(x, levels, strict=True)])
    torch.testing.assert_close(eps(x, levels), singly, rtol=1e-4, atol=1e-5)


def test_many_items_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    eps, x = NetworkNoise(small_unet(), scheduler()), torch.randn(7, 3, 8, 8, generator=generator)
    with sdpa_kernel(SDPBackend.MATH):
        whole, tangents = torch.func.jvp(lambda y: eps(y, 0.5), (x,), (torch.ones_like(x),))
        monkeypatch.setattr(models, "MAX_BATCH", 3)
        split, split_tangents = torch.func.jvp(lambda y: eps(y, 0.5), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split_tangents, tangents, rtol=1e-3, atol=1e-4)
    levels = torch.linspace(0.1, 2, 7)
    torch.testing.assert_close(eps(x, levels)[4], eps(x[4:5], float(levels[4]))[0], rtol=1e-4, atol=1e-5)


def test_a_noise_level_outside_of_the_schedule_is_refused() -> None:
    eps = NetworkNoise(small_unet(), scheduler())
    for sigma in (1e-3, 1e3, float("nan")):
        with pytest.raises(ValueError, match=r"outside of the schedule, which goes from 0\.01 to 157\.4"):
            eps(torch.zeros(1, 3, 8, 8), sigma)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'flow' is not supported; known: epsilon, v_prediction, sample"):
        NetworkNoise(small_unet(), scheduler("flow"))


def test_a_saved_model_gives_the_same_field(tmp_path: Path, generator: torch.Generator) -> None:
    unet = small_unet()
    DDPMPipeline(unet, scheduler("v_prediction")).save_pretrained(tmp_path)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    torch.testing.assert_close(load_network(tmp_path)(x, 0.5), NetworkNoise(unet, scheduler("v_prediction"))(x, 0.5))


def test_models_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a diffusers model; it must hold unet/config.json"):
        load_network(tmp_path)
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 3 channels but the pictures have 1"):
        load_network(tmp_path, channels=1)
    for settings, message in (
        ({"out_channels": 6}, "also predicts a variance"),
        ({"num_class_embeds": 10}, "conditioned on classes"),
    ):
        config = tmp_path / "unet/config.json"
        saved = config.read_text()
        config.write_text(json.dumps(json.loads(saved) | settings))
        with pytest.raises(ValueError, match=message):
            load_network(tmp_path)
        config.write_text(saved)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="diffusion_pytorch_model.bin, which is pickled and is not opened"):
        load_network(tmp_path)


def test_a_prompt_is_a_further_input_of_the_network() -> None:
    pipe = small_pipeline()
    eps = NetworkNoise(pipe.unet, pipe.scheduler)
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    embeddings = [pipe.encode_prompt(prompt, "cpu", 1, False)[0].detach() for prompt in ("a red apple", "the whale")]
    level = float(schedule_sigmas(pipe.scheduler)[300])
    found = [eps.under(encoder_hidden_states=embedding)(x, level) for embedding in embeddings]
    assert (found[0] - found[1]).abs().max() > 1e-2, "the prompts say different things"
    for embedding, output in zip(embeddings, found, strict=True):
        x_t = x / (1 + level**2) ** 0.5
        expected = pipe.unet(x_t, 300, embedding.expand(3, -1, -1)).sample
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
