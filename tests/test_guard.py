"""The guard: it reads what the pipeline predicts anyway, alarms at the stated rate, acts as it says, and leaves no trace."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_pipeline
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from test_transformers import GUIDANCE, NO_BINS, PIPELINES, tiny

from memlib.detectors.text import first_step
from memlib.fields.load import field_of
from memlib.fields.transformer import packed
from memlib.mitigation.guard import Guard, MemorisedPrompt, calibrate, fresh_noise, holds_several, load, threshold_rank
from memlib.mitigation.prompts import optimise_prompts
from memlib.tensors import generators, item_seeds

STEPS = 4
WORDS = ("red", "green", "blue", "apple", "tree", "whale", "big")
ORDINARY = [f"a {a} {b} on the {c}" for a in WORDS for b in WORDS for c in WORDS[:2]]
PROMPTS = ["a red apple", "the whale on a tree", "a blue apple"]
HOW = {
    "U-Net": {"guidance_scale": GUIDANCE},
    "SD3": {"guidance_scale": GUIDANCE},
    "PixArt": NO_BINS,
    "Sana": NO_BINS,
    "Lumina 2": {"guidance_scale": GUIDANCE, "cfg_normalization": False},
    "Flux dev": {"negative_prompt": "", "true_cfg_scale": GUIDANCE},
}
JOINT = ("U-Net", "SD3", "PixArt", "Sana")


def made(name: str) -> tuple[DiffusionPipeline, dict]:
    """A pipeline and how it is called."""
    if name == "U-Net":
        pipe = small_pipeline()
        pipe.set_progress_bar_config(disable=True)
        return pipe, HOW[name] | {"num_inference_steps": STEPS}
    pipe, field = tiny(name)
    side = field.shape[1] * pipe.vae_scale_factor
    return pipe, HOW[name] | {"num_inference_steps": STEPS, "height": side, "width": side}


def noises(pipe: DiffusionPipeline, prompts: list[str], seed: int, name: str) -> torch.Tensor:
    """The noise that each prompt of a calibration starts from."""
    field = field_of(pipe)
    shape = field.shape if name == "U-Net" else torch.Size([field.shape[0], PIPELINES[name][2], PIPELINES[name][2]])
    return torch.cat([torch.randn(1, *shape, generator=item) for item in generators(item_seeds(prompts, seed))])


def expected(pipe: DiffusionPipeline, prompts: list[str], noise: torch.Tensor) -> torch.Tensor:
    """Magnitudes by the detector, which runs no pipeline."""
    field = field_of(pipe)
    field.shape = noise.shape[1:]
    return torch.cat([first_step(field, [p], noise[[i]], STEPS)[:, 0] for i, p in enumerate(prompts)])


def untouched(pipe: DiffusionPipeline) -> bool:
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    patched = {"set_timesteps", "step"} & pipe.scheduler.__dict__.keys()
    return not (network._forward_hooks or network._forward_pre_hooks or patched)


@pytest.mark.parametrize("name", HOW)
def test_the_threshold_is_a_quantile_of_the_detectors_magnitudes(name: str) -> None:
    pipe, how = made(name)
    prompts = ORDINARY[:9]
    guard = calibrate(pipe, [*prompts, prompts[0]], 0.3, seed=5, rows=4, **how)
    magnitudes = expected(pipe, prompts, noises(pipe, prompts, 5, name))
    assert guard.threshold == pytest.approx(float(magnitudes.sort().values[6]), rel=1e-4)
    assert (guard.false_alarms, guard.ordinary) == (0.3, 9)
    assert guard.timestep == field_of(pipe).timesteps(STEPS)[0]
    assert untouched(pipe)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 1 / 3, 0.5])
def test_the_rank_is_the_smallest_that_keeps_the_rate(rate: float) -> None:
    """A further one is as likely in each of the n + 1 gaps: it exceeds the k-th smallest with a chance of 1 - k / (n + 1)."""
    least = next(n for n in range(1, 1000) if 1 / (n + 1) <= rate + 1e-12)
    for count in (least, least + 1, 2 * least + 1, 500):
        rank = threshold_rank(count, rate)
        assert 1 - rank / (count + 1) <= rate + 1e-9
        assert rank == 1 or 1 - (rank - 1) / (count + 1) > rate + 1e-9
    if least > 1:
        message = (
            f"a rate of {100 * rate:g} % of false alarms needs at least {least} different ordinary prompts; there are"
        )
        with pytest.raises(ValueError, match=f"{message} {least - 1}"):
            threshold_rank(least - 1, rate)


def test_fresh_ordinary_prompts_alarm_at_the_stated_rate() -> None:
    """Of random magnitudes, over many calibrations: exactly 1 - k / (n + 1)."""
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(4000):
        sample = rng.normal(size=31)
        alarms.append(sample[-1] > np.sort(sample[:-1])[threshold_rank(30, 0.1) - 1])
    assert np.mean(alarms) == pytest.approx(3 / 31, abs=0.015)


def guarded(pipe: DiffusionPipeline, how: dict, quantile: float, name: str) -> tuple[Guard, list[float], dict]:
    """A guard whose threshold lies at a quantile of the prompts' magnitudes, those, and how the pipeline is called with them."""
    noise = noises(pipe, PROMPTS, 0, name)
    magnitudes = expected(pipe, PROMPTS, noise).tolist()
    shape = list((packed(noise) if name == "Flux dev" else noise).shape[1:])
    empty = calibrate(pipe, PROMPTS, 0.5, **how).empty
    threshold, first = float(np.quantile(magnitudes, quantile)), field_of(pipe).timesteps(STEPS)[0]
    guard = Guard(threshold, 0.01, 99, first, shape, empty, "")
    call = how | {"prompt": PROMPTS, "output_type": "latent"}
    if isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * len(PROMPTS)
    return guard, magnitudes, call


def drawn(pipe: DiffusionPipeline, call: dict) -> torch.Tensor:
    return pipe(generator=generators(item_seeds(PROMPTS, 0)), **call).images


@pytest.mark.parametrize("name", HOW)
def test_nothing_changes_and_nothing_is_asked_where_there_is_no_alarm(name: str) -> None:
    pipe, how = made(name)
    guard, magnitudes, call = guarded(pipe, how, 1.0, name)
    guard = replace(guard, threshold=1.01 * guard.threshold)
    calls = []
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    before = drawn(pipe, call)
    count = len(calls)
    with guard.on(pipe) as watch:
        first, second = drawn(pipe, call), drawn(pipe, call)
    handle.remove()
    assert torch.equal(first, before)
    assert torch.equal(second, before)
    assert len(calls) == 3 * count
    assert watch.magnitudes == pytest.approx(magnitudes, rel=1e-4)
    assert watch.alarms == 0
    assert untouched(pipe)


@pytest.mark.parametrize("name", HOW)
def test_a_prompt_above_the_threshold_is_refused_or_warned_of(name: str) -> None:
    pipe, how = made(name)
    guard, magnitudes, call = guarded(pipe, how, 0.7, name)
    worst = int(np.argmax(magnitudes))
    before = drawn(pipe, call)
    message = f"likely to be copied from the training data .picture {worst}: "
    with pytest.raises(MemorisedPrompt, match=message) as refused, guard.on(pipe):
        drawn(pipe, call)
    assert refused.value.rows == [worst]
    assert refused.value.magnitudes == pytest.approx(magnitudes, rel=1e-4)
    assert untouched(pipe)
    assert torch.equal(drawn(pipe, call), before)
    with pytest.warns(UserWarning, match="likely to be copied"), guard.on(pipe, "warn") as watch:
        assert torch.equal(drawn(pipe, call), before)
    assert watch.alarms == 1


def test_the_threshold_itself_is_no_alarm_and_what_is_no_number_is() -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 1.0, "U-Net")
    with replace(guard, threshold=1e9).on(pipe) as watch:
        drawn(pipe, call)
    with replace(guard, threshold=max(watch.magnitudes)).on(pipe) as again:
        drawn(pipe, call)
    assert again.alarms == 0
    pipe.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(MemorisedPrompt) as refused, guard.on(pipe):
        drawn(pipe, call)
    assert refused.value.rows == [0, 1, 2]


@pytest.mark.parametrize("name", JOINT)
def test_less_guidance_is_guidance_that_brings_the_magnitude_to_the_threshold(name: str) -> None:
    pipe, how = made(name)
    guard, magnitudes, call = guarded(pipe, how, 0.6, name)
    worst = int(np.argmax(magnitudes))
    before = drawn(pipe, call)
    with guard.on(pipe, "less guidance"):
        found = drawn(pipe, call)
    weaker = drawn(pipe, call | {"guidance_scale": GUIDANCE * guard.threshold / magnitudes[worst]})
    torch.testing.assert_close(found[worst], weaker[worst], rtol=1e-3, atol=1e-4)
    others = [row for row in range(3) if row != worst]
    torch.testing.assert_close(found[others], before[others], rtol=1e-3, atol=1e-5)
    assert (found[worst] - before[worst]).abs().max() > 1e-3
    assert untouched(pipe)


@pytest.mark.parametrize(
    "name", ["SD3", "Euler", *(pytest.param(name, marks=pytest.mark.ci) for name in ("U-Net", "PixArt", "Sana"))]
)
def test_another_seed_is_a_run_from_other_noise(name: str) -> None:
    pipe, how = made("U-Net" if name == "Euler" else name)
    if name == "Euler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        name = "U-Net"
    guard, magnitudes, call = guarded(pipe, how, 0.6, name)
    seen: list[torch.Tensor] = []
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet

    def read(_: object, arguments: tuple, keywords: dict) -> None:
        seen.append((arguments[0] if arguments else keywords["hidden_states"]).clone())

    handle = network.register_forward_pre_hook(read, with_kwargs=True)
    drawn(pipe, call)
    handle.remove()
    with guard.on(pipe, "another seed", iterations=60) as watch:
        found = drawn(pipe, call)
    worst = int(np.argmax(magnitudes))
    assert max(watch.magnitudes) <= guard.threshold
    assert watch.alarms == 1
    start = noises(pipe, PROMPTS, 0, name)
    for number in range(60):  # the first of these below the threshold
        start[worst] = fresh_noise(seen[0][worst], number)
        if expected(pipe, PROMPTS[worst : worst + 1], start[[worst]]) <= guard.threshold:
            break
    torch.testing.assert_close(found, pipe(latents=start, **call).images, rtol=1e-3, atol=1e-4)
    with guard.on(pipe, "another seed", iterations=60):
        assert torch.equal(drawn(pipe, call), found), "the same seed gives the same picture"
    assert untouched(pipe)


def test_a_moved_embedding_is_that_of_the_mitigation() -> None:
    pipe, how = made("U-Net")
    guard, magnitudes, call = guarded(pipe, how, 0.6, "U-Net")
    worst = int(np.argmax(magnitudes))
    with guard.on(pipe, "moved embedding", iterations=60, learning_rate=0.02) as watch:
        found = drawn(pipe, call)
    noise = noises(pipe, PROMPTS, 0, "U-Net")
    field = field_of(pipe)
    moved = optimise_prompts(field, PROMPTS[worst : worst + 1], noise[[worst]], guard.threshold, 60, 0.02, STEPS)
    assert watch.magnitudes[worst] == pytest.approx(float(moved.magnitude), rel=1e-3)
    alone = call | {"prompt": None, "prompt_embeds": moved.embeddings[0]}
    run = pipe(latents=noise[[worst]], **alone).images
    torch.testing.assert_close(found[[worst]], run, rtol=1e-3, atol=1e-4)
    assert untouched(pipe)


@pytest.mark.parametrize("name", ["SD3", "PixArt", "Sana"])
def test_an_embedding_of_a_transformer_is_moved_until_the_magnitude_is_low(name: str) -> None:
    pipe, how = made(name)
    guard, magnitudes, call = guarded(pipe, how, 0.6, name)
    worst = int(np.argmax(magnitudes))
    before = drawn(pipe, call)
    with guard.on(pipe, "moved embedding", iterations=200, learning_rate=0.02) as watch:
        found = drawn(pipe, call)
    assert watch.magnitudes[worst] <= guard.threshold
    assert (found[worst] - before[worst]).abs().max() > 1e-4
    others = [row for row in range(3) if row != worst]
    torch.testing.assert_close(found[others], before[others], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("action", ["another seed", "moved embedding"])
def test_where_a_redirection_does_not_help_the_prompt_is_refused(action: str) -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 0.0, "U-Net")
    tight = replace(guard, threshold=1e-9)
    message = "; 2 other seeds were tried|; the embedding was moved 2 times"
    with pytest.raises(MemorisedPrompt, match=message), tight.on(pipe, action, iterations=2):
        drawn(pipe, call)
    assert untouched(pipe)


def test_it_is_saved_and_loaded_for_its_own_model(tmp_path: Path) -> None:
    pipe, how = made("U-Net")
    guard = calibrate(pipe, ORDINARY[:9], 0.2, **how)
    guard.save(tmp_path / "guard.json")
    assert load(tmp_path / "guard.json", pipe) == guard
    assert json.loads((tmp_path / "guard.json").read_text())["false_alarms"] == 0.2
    with pytest.raises(ValueError, match="is of another model"):
        load(tmp_path / "guard.json", small_pipeline(seed=1))
    (tmp_path / "guard.json").write_text('{"threshold": 1}')
    for path in ("guard.json", "nowhere.json"):
        with pytest.raises(ValueError, match=f"{path} holds no guard"):
            load(tmp_path / path, pipe)


def refused(name: str, change: dict, message: str) -> tuple[str, Callable[[], None], str]:
    def run() -> None:
        pipe, how = made(name)
        guard, _, call = guarded(pipe, how, 1.0, name)
        try:
            with guard.on(pipe):
                drawn(pipe, call | change)
        finally:
            assert untouched(pipe)

    return name, run, message


NO_CFG = {"negative_prompt": None, "true_cfg_scale": 1.0}
REFUSED = (
    refused("U-Net", {"guidance_scale": 1.0}, "StableDiffusionPipeline makes no prediction without the prompt"),
    refused("SD3", {"guidance_scale": 1.0}, "makes no prediction without the prompt"),
    refused("PixArt", {"guidance_scale": 1.0}, "makes no prediction without the prompt"),
    refused("Lumina 2", {"guidance_scale": 1.0}, "makes no prediction without the prompt"),
    refused("Flux dev", NO_CFG, "set a guidance above 1, and a negative prompt"),
    refused("Flux dev", NO_CFG | {"num_inference_steps": 1}, "set a guidance above 1, and a negative prompt"),
    refused("U-Net", {"num_inference_steps": 7}, "but the guard was calibrated at .*the same number of steps"),
)


@pytest.mark.parametrize(("name", "run", "message"), REFUSED, ids=[f"{n}: {m[:30]}" for n, _, m in REFUSED])
def test_calls_that_it_cannot_read_are_refused(name: str, run: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


@pytest.mark.parametrize("action", ["less guidance", "moved embedding", "another seed"])
def test_what_is_done_to_a_call_is_not_done_to_the_next(action: str) -> None:
    pipe, how = made("U-Net")
    guard, magnitudes, call = guarded(pipe, how, 0.6, "U-Net")
    worst = int(np.argmax(magnitudes))
    safe = [row for row in range(3) if row != worst]
    start = noises(pipe, PROMPTS, 0, "U-Net")[safe]
    fine = call | {"prompt": [PROMPTS[row] for row in safe], "latents": start}
    before = pipe(**fine).images
    with guard.on(pipe, action, iterations=60, learning_rate=0.02) as watch:
        drawn(pipe, call)
        assert watch.alarms == 1
        assert torch.equal(pipe(**fine).images, before)
        assert watch.alarms == 1


def test_two_prompts_from_one_noise_are_not_taken_for_guidance() -> None:
    """Without guidance both rows are given the same latents, as with it."""
    pipe, how = made("U-Net")
    guard, _, _ = guarded(pipe, how, 1.0, "U-Net")
    same = noises(pipe, PROMPTS[:1], 0, "U-Net").repeat(2, 1, 1, 1)
    guard = replace(guard, threshold=1e9)
    with pytest.raises(ValueError, match="makes no prediction without the prompt"), guard.on(pipe):
        pipe(PROMPTS[:2], latents=same, **how | {"guidance_scale": 1.0})


def test_a_run_from_a_picture_is_refused() -> None:
    """It starts later than from pure noise, where the guard was calibrated."""
    pipe, how = made("U-Net")
    guard, _, _ = guarded(pipe, how, 1.0, "U-Net")
    guard = replace(guard, threshold=1e9)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    varying = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    varying.set_progress_bar_config(disable=True)
    picture = torch.zeros(1, 3, 16, 16)
    for threshold in (1e9, 0.0):
        late = replace(guard, threshold=threshold)
        with pytest.raises(ValueError, match="starts at the timestep .* not from pure noise"), late.on(varying):
            varying(PROMPTS[0], image=picture, strength=0.5, **how)
    with pytest.raises(ValueError, match="not from pure noise"):
        calibrate(varying, [f"{k}" for k in range(9)], 0.1, image=picture, strength=0.5, **how)
    assert untouched(varying)


def test_another_size_of_pictures_is_refused() -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 1.0, "U-Net")
    height, width = (2 * pipe.vae_scale_factor * side for side in guard.shape[1:])
    with pytest.raises(ValueError, match=r"calibrate it with the same height and width"), guard.on(pipe):
        drawn(pipe, call | {"height": height, "width": width})
    assert untouched(pipe)


def without_guidance_from(step: int) -> Callable:
    """The callback of diffusers' guide that ends guidance in mid-run: from there the network is given the prompts alone."""

    def ended(pipe: DiffusionPipeline, number: int, t: object, given: dict) -> dict:
        if number == step:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[1]
        return given

    return ended


def test_a_moved_embedding_stays_moved_where_guidance_ends() -> None:
    pipe, how = made("U-Net")
    guard, magnitudes, call = guarded(pipe, how, 0.6, "U-Net")
    worst, seen = int(np.argmax(magnitudes)), []
    ending = {"callback_on_step_end": without_guidance_from(1), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    given = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    with guard.on(pipe, "moved embedding", iterations=60, learning_rate=0.02):
        handle = pipe.unet.register_forward_pre_hook(
            lambda _, arguments, keywords: seen.append(keywords["encoder_hidden_states"]), with_kwargs=True
        )
        drawn(pipe, call | ending)
        handle.remove()
    last = seen[-1]
    assert last.shape == given.shape, "the prompts alone"
    assert not torch.allclose(last[worst], given[worst], atol=1e-3), "moved"
    least = int(np.argmin(magnitudes))
    torch.testing.assert_close(last[least], given[least])


def test_guidance_that_ends_cannot_be_made_less() -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 0.6, "U-Net")
    ending = {"callback_on_step_end": without_guidance_from(1), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with pytest.raises(ValueError, match="predicts without guidance, or once more; choose refuse or warn"):  # noqa: SIM117
        with guard.on(pipe, "less guidance"):
            drawn(pipe, call | ending)
    assert untouched(pipe)


def test_a_scheduler_that_is_exchanged_is_no_way_around() -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 0.0, "U-Net")
    first = pipe.scheduler
    with pytest.raises(ValueError, match="the scheduler was exchanged while the guard was on"), guard.on(pipe):
        pipe.scheduler = copy.copy(first)
        drawn(pipe, call)
    pipe.scheduler = first
    assert untouched(pipe)


@pytest.mark.parametrize("name", ["U-Net", "SD3", "Flux dev"])
def test_another_negative_prompt_is_refused_and_the_calibrated_one_is_not(name: str) -> None:
    pipe, how = made(name)
    other = how | {"negative_prompt": "big blue whale"}
    guard = replace(calibrate(pipe, ORDINARY[:9], 0.3, **other), threshold=1e9)
    asked = {"prompt": ORDINARY[0], "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    with guard.on(pipe, "warn"):
        pipe(**asked, **other)
        with pytest.raises(ValueError, match="another negative prompt than the guard was calibrated with"):
            pipe(**asked, **how | {"negative_prompt": "a red apple on the tree"})
    assert untouched(pipe)


def test_magnitudes_that_are_not_finite_are_no_threshold() -> None:
    pipe, how = made("U-Net")
    handle = pipe.unet.register_forward_hook(lambda _, given, output: (output[0] * torch.nan,))
    with pytest.raises(
        ValueError, match=rf"the magnitude of '{ORDINARY[0]}' is nan; load the model in another precision"
    ):
        calibrate(pipe, ORDINARY[:9], 0.3, **how)
    handle.remove()
    assert untouched(pipe)


def test_weights_that_are_not_there_are_told_before_any_work() -> None:
    pipe, how = made("U-Net")
    pipe.unet.to("meta")
    with pytest.raises(ValueError, match="weights are offloaded; calibrate the guard before that"):
        calibrate(pipe, ORDINARY[:9], 0.3, **how)


def test_what_follows_from_noise_or_prompt_besides_is_found() -> None:
    tensor = torch.zeros(1)
    assert not holds_several(
        {"encoder_hidden_states": tensor, "added_cond_kwargs": {"time_ids": tensor}, "return_dict": False}
    )
    assert holds_several({"encoder_hidden_states": tensor, "down_block_additional_residuals": (tensor, tensor)})
    assert holds_several({"added_cond_kwargs": {"image_embeds": [tensor]}})


@pytest.mark.parametrize("action", ["another seed", "moved embedding", "less guidance"])
def test_a_network_that_is_given_more_is_not_asked_again(action: str) -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 0.6, "U-Net")
    handle = pipe.unet.register_forward_pre_hook(
        lambda _, arguments, keywords: (
            arguments,
            keywords | {"added_cond_kwargs": {"image_embeds": [torch.zeros(1)]}},
        ),
        with_kwargs=True,
    )
    with guard.on(pipe, action):
        if action == "less guidance":
            drawn(pipe, call)
        else:
            with pytest.raises(ValueError, match="as a ControlNet or an IP-Adapter does; choose refuse or warn"):
                drawn(pipe, call)
    handle.remove()


def test_bad_requests_are_refused() -> None:
    pipe, how = made("U-Net")
    with pytest.raises(
        ValueError, match="a rate of 1 % of false alarms needs at least 99 different ordinary prompts; there are 1"
    ):
        calibrate(pipe, ["a red apple"] * 200, **how)
    for rate in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="a rate of false alarms lies between 0 and 1"):
            calibrate(pipe, ORDINARY, rate, **how)
    with pytest.raises(ValueError, match="the list of prompts is empty"):
        calibrate(pipe, [], 0.5, **how)
    with pytest.raises(ValueError, match="makes no prediction without the prompt"):
        calibrate(pipe, ORDINARY, 0.5, **how | {"guidance_scale": 1.0})
    assert untouched(pipe)
    guard, _, _ = guarded(pipe, how, 1.0, "U-Net")
    with pytest.raises(ValueError, match="unknown action 'refuze'; did you mean 'refuse'"), guard.on(pipe, "refuze"):
        pass
    flux, _ = made("Flux dev")
    message = "FluxPipeline predicts with the prompt before it predicts without; choose refuse or warn"
    with pytest.raises(ValueError, match=message), guard.on(flux, "less guidance"):
        pass


def test_an_error_inside_leaves_the_pipeline_as_it_was() -> None:
    pipe, how = made("U-Net")
    guard, _, call = guarded(pipe, how, 1.0, "U-Net")
    guard = replace(guard, threshold=2 * guard.threshold)
    before = copy.deepcopy(pipe.scheduler.__dict__)
    with pytest.raises(RuntimeError, match="mine"), guard.on(pipe):
        raise RuntimeError("mine")
    assert untouched(pipe)
    assert pipe.scheduler.__dict__.keys() == before.keys()
    with guard.on(pipe), guard.on(pipe):
        drawn(pipe, call)
    assert untouched(pipe)
