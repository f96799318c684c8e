"""Noise prediction of networks against the scheduler's own conversions and the pipelines' own loops; refused models."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from test_text import small_xl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from memlib.detectors.text import first_step
from memlib.detectors.volume import growth
from memlib.fields import denoised
from memlib.fields.load import load_field, load_pipeline
from memlib.fields.parameterisation import PREDICTION_TYPES, check_prediction, expected_data, expected_noise
from memlib.fields.schedules import schedule_sigmas, timesteps
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import outputs, shared_noise
from memlib.tensors import in_calls

KINDS = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("prediction_type", KINDS)
@pytest.mark.parametrize("t", [0, 10, 500, 999])
def test_every_prediction_type_is_converted_as_the_scheduler_does(
    prediction_type: str, t: int, generator: torch.Generator
) -> None:
    noise_scheduler, unet = scheduler(prediction_type), small_unet()
    eps = UNetField(unet, noise_scheduler)
    sigma = schedule_sigmas(noise_scheduler)[t]
    x_t = torch.randn(4, 3, 8, 8, generator=generator)
    x = x_t * (1 + sigma**2).sqrt().float()
    with torch.no_grad():
        clean = noise_scheduler.step(unet(x_t, t).sample, t, x_t).pred_original_sample
        torch.testing.assert_close(eps(x, float(sigma)), (x - clean) / sigma.float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(eps.data_at(x_t, t), clean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(denoised(eps, x, float(sigma)), clean, rtol=1e-2, atol=1e-2 * float(sigma))


@given(st.just(0.0) | st.floats(1e-6, 1.0), st.integers(0, 100), st.sampled_from(PREDICTION_TYPES))
def test_noise_and_data_add_up_to_what_the_network_is_given(level: float, seed: int, kind: str) -> None:
    signal, noise = (1 - level, level) if kind == "flow" else ((1 - level**2) ** 0.5, level)
    x_t, output = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "epsilon" and signal == 0:
        with pytest.raises(ValueError, match="says nothing of the data where there is only noise"):
            expected_data(kind, output, x_t, signal, noise)
    elif kind != "sample" or noise > 0:
        data, eps = (find(kind, output, x_t, signal, noise) for find in (expected_data, expected_noise))
        torch.testing.assert_close(signal * data + noise * eps, x_t, rtol=1e-9, atol=1e-9)


@given(st.floats(0.01, 0.99), st.sampled_from(PREDICTION_TYPES))
def test_the_target_of_training_is_turned_back_into_data_and_noise(level: float, kind: str) -> None:
    signal, noise = (1 - level, level) if kind == "flow" else ((1 - level**2) ** 0.5, level)
    x0, n = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = {"epsilon": n, "v_prediction": signal * n - noise * x0, "sample": x0, "flow": n - x0}[kind]
    x_t = signal * x0 + noise * n
    torch.testing.assert_close(expected_data(kind, target, x_t, signal, noise), x0)
    torch.testing.assert_close(expected_noise(kind, target, x_t, signal, noise), n)


def test_timesteps_of_the_schedule_are_found_again() -> None:
    eps = UNetField(small_unet(), scheduler())
    torch.testing.assert_close(
        eps.timestep(schedule_sigmas(scheduler())), torch.arange(1000).float(), atol=1e-4, rtol=1e-7
    )


def test_between_two_timesteps_t_is_interpolated_in_log_sigma() -> None:
    eps, sigmas = UNetField(small_unet(), scheduler()), schedule_sigmas(scheduler())
    middle = (sigmas[:-1] * sigmas[1:]).sqrt()
    torch.testing.assert_close(eps.timestep(middle), torch.arange(999).float() + 0.5, atol=1e-4, rtol=1e-7)
    x, sigma = torch.ones(1, 3, 8, 8), float(middle[500])
    expected = eps.unet(x / (1 + sigma**2) ** 0.5, torch.tensor([500.5])).sample
    torch.testing.assert_close(eps(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_one_noise_level_an_item(generator: torch.Generator) -> None:
    eps = UNetField(small_unet(), scheduler(), rows=2)
    x, levels = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 20.0])
    singly = torch.cat([eps(row[None], float(level)) for row, level in zip(x, levels, strict=True)])
    torch.testing.assert_close(eps(x, levels), singly, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pad", [False, True])
def test_many_items_are_taken_in_turn(pad: bool, generator: torch.Generator) -> None:
    x, seen = torch.randn(7, 3, 8, 8, generator=generator), []
    whole, split = UNetField(small_unet(), scheduler()), UNetField(small_unet(), scheduler(), rows=3, pad=pad)
    split.unet.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    with sdpa_kernel(SDPBackend.MATH):
        expected, tangents = torch.func.jvp(lambda y: whole(y, 0.5), (x,), (torch.ones_like(x),))
        found, split_tangents = torch.func.jvp(lambda y: split(y, 0.5), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split_tangents, tangents, rtol=1e-3, atol=1e-4)
    assert seen == ([3, 3, 3] if pad else [3, 3, 1])
    levels = torch.linspace(0.1, 2, 7)
    torch.testing.assert_close(split(x, levels)[4], whole(x[4:5], float(levels[4]))[0], rtol=1e-4, atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_calls_are_filled_up_and_put_together(n: int, rows: int, pad: bool) -> None:
    seen = []

    def double(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        assert torch.equal(x + 100, y), "rows stay together"
        return 2 * x

    x = torch.arange(n)
    assert torch.equal(in_calls(double, rows, pad, x, x + 100), 2 * x)
    assert max(seen) <= rows
    assert len(seen) == -(-n // rows)
    assert not pad or set(seen) == {rows}


def test_a_noise_level_outside_of_the_schedule_is_refused() -> None:
    eps = UNetField(small_unet(), scheduler())
    for sigma in (1e-3, 1e3, float("nan")):
        with pytest.raises(ValueError, match=r"outside of the schedule, which goes from 0\.01 to 157\.4"):
            eps(torch.zeros(1, 3, 8, 8), sigma)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'edm' is not supported; known: epsilon, v_prediction, sample, flow"):
        UNetField(small_unet(), scheduler("edm"))
    assert check_prediction("flow") == "flow"


def test_a_saved_model_gives_the_same_field(tmp_path: Path, generator: torch.Generator) -> None:
    unet = small_unet()
    DDPMPipeline(unet, scheduler("v_prediction")).save_pretrained(tmp_path)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    loaded = load_field(tmp_path, rows=5)
    torch.testing.assert_close(loaded(x, 0.5), UNetField(unet, scheduler("v_prediction"))(x, 0.5))
    assert loaded.rows == 5
    assert not loaded.takes_prompts
    assert tuple(loaded.picture_shape) == (3, 8, 8)
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
    assert load_field(tmp_path, torch.bfloat16).unet.dtype == torch.bfloat16


def test_models_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a diffusers model; it must hold model_index.json, or unet/"):
        load_field(tmp_path)
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(tmp_path)
    for settings, message in (
        ({"out_channels": 6}, "also predicts a variance"),
        ({"num_class_embeds": 10}, "conditioned on classes"),
    ):
        config = tmp_path / "unet/config.json"
        saved = config.read_text()
        config.write_text(json.dumps(json.loads(saved) | settings))
        with pytest.raises(ValueError, match=message):
            load_field(tmp_path)
        config.write_text(saved)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="diffusion_pytorch_model.bin, which is pickled and is not opened"):
        load_field(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="it must hold unet/config.json and scheduler/scheduler_config.json"):
        load_field(tmp_path)


def test_a_prompt_is_a_further_input_of_the_network() -> None:
    pipe = small_pipeline()
    eps = UNetField(pipe.unet, pipe.scheduler, pipe, rows=4)
    x = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prompts = ["a red apple", "the whale", "a tree"]
    level = float(schedule_sigmas(pipe.scheduler)[300])
    found = eps.with_conditioning(eps.encode_prompts(prompts))(x, level)
    for row, output in enumerate(found):  # 3 conditions for 2 times 3 rows
        embedding = pipe.encode_prompt(prompts[row % 3], "cpu", 1, False)[0].detach()
        expected = pipe.unet(x[row : row + 1] / (1 + level**2) ** 0.5, 300, embedding).sample[0]
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
    empty = eps(x, level, eps.unconditional())
    assert (empty - found).flatten(1).norm(dim=1).min() > 1e-2, "the prompts say different things"
    assert eps.cond == {}, "the field itself is as before"


class Spied:
    """What a network is given: the types of its inputs and the rows of every call."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.samples, self.times = [], []
        unet.register_forward_pre_hook(self.look)

    def look(self, _: torch.nn.Module, arguments: tuple) -> None:
        self.samples.append(arguments[0])
        self.times.append(arguments[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_times_stay_float32_whatever_the_network_computes_in(dtype: torch.dtype, generator: torch.Generator) -> None:
    exact = UNetField(small_unet(), scheduler())
    rough = UNetField(small_unet().to(dtype), scheduler())
    spied, x = Spied(rough.unet), torch.randn(2, 3, 8, 8, generator=generator)
    found = rough(x, 20.3)
    assert found.dtype == torch.float32
    assert spied.samples[0].dtype == dtype
    assert spied.times[0].dtype == torch.float32
    torch.testing.assert_close(spied.times[0], exact.timestep(torch.tensor([20.3])).expand(2))
    assert float(spied.times[0][0]) != float(spied.times[0][0].to(dtype)), "a time that the network's type cannot hold"
    torch.testing.assert_close(spied.samples[0].float(), x / (1 + 20.3**2) ** 0.5, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(found, exact(x, 20.3), rtol=0.1, atol=0.05)


def test_a_cosine_schedule_does_not_overflow_in_float16(generator: torch.Generator) -> None:
    cosine = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    eps = UNetField(small_unet().half(), cosine)
    spied, sigma = Spied(eps.unet), eps.sigma_max
    assert sigma > 1e4, "its square is no number of float16"
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    found = eps(sigma * noise, sigma)
    assert found.isfinite().all()
    torch.testing.assert_close(spied.samples[0].float(), noise, rtol=1e-3, atol=1e-3)
    half = eps((100 * noise).half(), 300.0)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), eps(100 * noise, 300.0), rtol=1e-2, atol=1e-2)


def snr(kind: str) -> DDIMScheduler:
    """A schedule at whose end nothing of the data is left, sampled from there (Lin et al., arXiv 2305.08891)."""
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return DDIMScheduler(1000, **config, prediction_type=kind, rescale_betas_zero_snr=True, timestep_spacing="trailing")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_at_pure_noise_the_first_step_is_that_of_the_expected_data(kind: str) -> None:
    pipe = small_pipeline()
    pipe.scheduler = snr(kind)
    field, noise = UNetField(pipe.unet, pipe.scheduler, pipe), shared_noise((4, 4, 4), 2, 0)
    assert field.scheduler.alphas_cumprod[-1] == 0
    assert len(field.sigmas) == 999
    assert field.sigmas.isfinite().all()
    found = first_step(field, ["a red apple", "the whale"], noise, 10)
    for row, prompt in enumerate(("a red apple", "the whale")):
        outputs = [
            pipe.unet(noise, 999, pipe.encode_prompt(words, "cpu", 1, False)[0].expand(2, -1, -1)).sample
            for words in (prompt, "")
        ]
        expected = (outputs[0] - outputs[1]).flatten(1).norm(dim=1)  # D = -v, or the output itself
        assert (expected > 1e-2).all()
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-6)


def test_at_pure_noise_a_network_that_predicts_the_noise_is_refused() -> None:
    pipe = small_pipeline()
    pipe.scheduler = snr("epsilon")
    with pytest.raises(ValueError, match="says nothing of the data where there is only noise"):
        first_step(UNetField(pipe.unet, pipe.scheduler, pipe), ["a whale"], shared_noise((4, 4, 4), 1, 0))


def hooks(module: torch.nn.Module) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks) for part in module.modules()
    )


def test_nothing_stays_on_the_users_network(generator: torch.Generator) -> None:
    unet, x = small_unet(), torch.randn(2, 3, 8, 8, generator=generator)
    for _ in range(2):
        eps = UNetField(unet, scheduler())
        eps(x, 0.5)
        growth(eps, x, torch.tensor([0.1, 0.2]), 1, range(2))
        assert hooks(unet) == 0
    with pytest.raises(RuntimeError):
        eps(x[:, :2], 0.5)  # too few channels
    assert hooks(unet) == 0
    pipe = small_pipeline()
    with pytest.raises(ZeroDivisionError), outputs(pipe):
        1 / 0  # noqa: B018
    assert hooks(pipe.unet) == 0


class Watched(TorchDispatchMode):
    """The types of the tensors that are made on a device that stands for an accelerator."""

    def __init__(self) -> None:
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.types |= {each.dtype for each in made if isinstance(each, torch.Tensor) and each.device.type == "meta"}
        return result


@pytest.mark.parametrize("sigma", [0.5, torch.tensor([0.5, 2.0]), torch.tensor([0.5, 2.0], device="meta")])
def test_no_float64_and_no_waiting_on_the_device(sigma: torch.Tensor | float) -> None:
    """On the device `meta`, whose tensors have no values: to ask for one would fail."""
    eps = UNetField(small_unet().to("meta"), scheduler("v_prediction"), rows=1)
    assert eps.sigmas.device.type == "cpu"
    with Watched() as watched:
        assert eps(torch.zeros(2, 3, 8, 8, device="meta"), sigma).device.type == "meta"
        assert eps.data_at(torch.zeros(2, 3, 8, 8, device="meta"), 999).device.type == "meta"
    assert torch.float32 in watched.types
    assert torch.float64 not in watched.types


@torch.no_grad()
@pytest.mark.parametrize(("kind", "xl"), [*itertools.product(KINDS, [False]), ("epsilon", True)])
def test_the_pipelines_own_loop_is_recomputed_through_the_field(kind: str, xl: bool) -> None:
    """DDIM (Song et al., arXiv 2010.02502, eq. 12) with guidance, from the field's predictions, is what the pipeline draws."""
    pipe = small_xl() if xl else small_pipeline(kind)
    field, noise = UNetField(pipe.unet, pipe.scheduler, pipe), shared_noise((4, 4, 4), 2, 5)
    pipe.set_progress_bar_config(disable=True)
    guidance = {"guidance_scale": 4.0, "num_images_per_prompt": 2, "num_inference_steps": 3}
    drawn = pipe(["a red apple"], latents=noise.clone(), output_type="latent", **guidance).images
    abar = torch.cat([pipe.scheduler.final_alpha_cumprod[None], pipe.scheduler.alphas_cumprod]).double()
    conditions = field.encode_prompts(["a red apple"]), field.unconditional()
    x, times = noise, timesteps(pipe.scheduler, 3)
    for t in times:
        a, b = (abar[max(int(t) + 1 - k, 0)] for k in (0, 1000 // 3))
        sigma, y = float(((1 - a) / a).sqrt()), x / float(a.sqrt())
        with_prompt, without = (field(y, sigma, cond) for cond in conditions)
        eps = without + 4.0 * (with_prompt - without)
        y = y + (float(((1 - b) / b).sqrt()) - sigma) * eps
        x = y * float(b.sqrt())
    assert (drawn - noise).abs().max() > 0.1
    torch.testing.assert_close(x, drawn, rtol=1e-5, atol=1e-5)


def test_conditions_of_stable_diffusion_xl() -> None:
    pipe = small_xl()
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=2)
    cond = field.encode_prompts(["a whale", "a red apple", "the tree"])
    assert {name: tuple(value.shape) for name, value in cond.items()} == {
        "encoder_hidden_states": (3, 77, 64),
        "text_embeds": (3, 32),
        "time_ids": (3, 6),
    }
    assert cond["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    empty = field.unconditional()
    assert not empty["encoder_hidden_states"].any()
    assert not empty["text_embeds"].any()
    assert empty["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert field.unconditional()["encoder_hidden_states"].any()


def test_pictures_go_through_the_autoencoder_and_back(generator: torch.Generator) -> None:
    pipe = small_pipeline()
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=2)
    pictures = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(pictures).latent_dist.mean * pipe.vae.config.scaling_factor
        back = pipe.vae.decode(expected / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    assert tuple(field.picture_shape) == (3, 16, 16)
    assert field.shape == expected.shape[1:]
    torch.testing.assert_close(field.to_latents(pictures), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(field.to_pictures(expected), back, rtol=1e-4, atol=1e-5)
    pixels = UNetField(small_unet(), scheduler())
    assert torch.equal(pixels.to_latents(pictures), pictures)
    assert torch.equal(pixels.to_pictures(2 * pictures), (2 * pictures).clamp(-1, 1))


def test_a_text_model_is_loaded_as_a_field_that_takes_prompts(tmp_path: Path) -> None:
    pipe = small_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    field = load_field(tmp_path / "model", rows=7)
    assert field.takes_prompts
    assert field.rows == 7
    noise = shared_noise(field.shape, 1, 0)
    torch.testing.assert_close(
        first_step(field, ["a whale"], noise),
        first_step(UNetField(pipe.unet, pipe.scheduler, pipe), ["a whale"], noise),
    )
    assert not any(parameter.requires_grad for parameter in field.unet.parameters())
    assert isinstance(load_pipeline(tmp_path / "model").unet, UNet2DConditionModel)
