"""Every detector of prompts on a flow-matching transformer, by its formula in velocities, and each pipeline's own loop."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FluxPipeline, Lumina2Pipeline
from test_detectors import PROMPTED, check_costs
from test_transformers import GUIDANCE, PIPELINES, PROMPTS, TransformerField, items_for, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors import find
from memlib.detectors.api import Items, as_list
from memlib.detectors.first_step import common_edges, level
from memlib.detectors.text import first_step
from memlib.sampling.pipeline import generate, outputs, shared_noise, trajectory

STEPS = 10
SETTINGS = {
    "magnitude": {"noises": 2},
    "one_step": {"noises": [2, 3]},
    "anisotropy": {"noises": 2},
    "sail": {"noises": 2},
    "gradient_difference": {"noises": 2},
    "guided_change": {"noises": 2, "guidance": 4.0},
    "attention_entropy": {"noises": 2, "layer": 0},
    "sampled_magnitude": {"noises": 2, "guidance": GUIDANCE},
}
Velocity = Callable[[torch.Tensor, float], torch.Tensor]


class Case(NamedTuple):
    """One prompt and noise: velocities of x_t at t in [0, 1], with the prompt and without."""

    prompt: int
    noise: int
    x: torch.Tensor
    conditional: Velocity
    without: Velocity

    def change(self, x: torch.Tensor, t: float = 1.0) -> torch.Tensor:
        return self.conditional(x, t) - self.without(x, t)


def cases(pipe: DiffusionPipeline, field: TransformerField, noises: int = 2) -> list[Case]:
    def velocity(prompt: str) -> Velocity:
        with torch.no_grad():
            e, _, p, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
        given = {"encoder_hidden_states": e, "pooled_projections": p}
        return lambda x, t: pipe.transformer(x, timestep=torch.tensor([1000.0 * t]), return_dict=False, **given)[0]

    starts = shared_noise(field.shape, noises, 3)
    return [
        Case(p, n, start[None], velocity(prompt), velocity(""))
        for p, prompt in enumerate(PROMPTS)
        for n, start in enumerate(starts)
    ]


def scored(name: str, field: TransformerField, **setting: object) -> dict[tuple, torch.Tensor]:
    """Scores [N] by the values of their readings."""
    items = Items(PROMPTS, 3, prompts=PROMPTS)
    found = find(name).score(field, items, sampling_steps=STEPS, **SETTINGS[name] | setting)
    return {tuple(scores.reading.values()): scores.value for scores in found}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float(expected) > 1e-3
    torch.testing.assert_close(found, expected.detach(), rtol=2e-3, atol=1e-5)


def test_noise_predictions_at_the_start_of_a_flow_say_nothing_of_the_prompt() -> None:
    _, field = tiny("SD3")
    start = level(field, STEPS, 0)
    assert (start.signal, start.noise) == (0.0, 1.0)
    x = shared_noise(field.shape, 2, 3)
    guesses = [field.data_at(x, start.t, cond) for cond in (field.encode_prompts(PROMPTS), field.unconditional())]
    assert all(torch.equal(start.eps(x, guess), x) for guess in guesses)
    assert not torch.equal(*guesses)


def test_derivatives_at_the_start_of_a_flow_are_those_of_the_velocity() -> None:
    """D = x - v there, and eps = x whatever the prompt."""
    pipe, field = tiny("SD3", rows=3)
    sail, gradient = scored("sail", field), scored("gradient_difference", field)
    for case in cases(pipe, field):
        with sdpa_kernel(SDPBackend.MATH):
            turned = torch.autograd.functional.jvp(case.change, case.x, case.change(case.x).detach())[1]
            x = case.x.clone().requires_grad_()
            pulled = torch.autograd.grad(case.change(x), x, case.x)[0]
        close(sail[case.noise,][case.prompt], turned.norm())
        close(gradient[case.noise,][case.prompt], (case.change(case.x) + pulled).square().sum())


@torch.no_grad()
def test_predictions_are_compared_as_clean_latents_along_a_flow() -> None:
    pipe, field = tiny("SD3", rows=3)
    anisotropy, changed = scored("anisotropy", field), scored("guided_change", field)
    magnitude = scored("magnitude", field)
    times = [t / 1000 for t in field.timesteps(STEPS)]
    for case in cases(pipe, field):
        close(magnitude[case.noise,][case.prompt], case.change(case.x).norm())
        close(anisotropy[case.noise, "magnitude"][case.prompt], case.change(case.x).norm())
        bare = case.x + (1 - times[-1]) * case.without(case.x, times[-1])
        cosine = F.cosine_similarity(bare, case.change(case.x, times[-1]), dim=1).mean()
        torch.testing.assert_close(anisotropy[case.noise, "alignment"][case.prompt], cosine, rtol=1e-3, atol=1e-4)
        guided = case.without(case.x, 1.0) + 4.0 * case.change(case.x)
        reached = case.x + (times[1] - 1) * guided
        after = reached + (1 - times[1]) * case.conditional(reached, times[1])
        close(changed[case.noise,][case.prompt], (after - case.x).square().sum())


@torch.no_grad()
def test_one_step_of_a_flow_is_compared_between_noises() -> None:
    pipe, field = tiny("SD3", rows=3)
    found = scored("one_step", field)
    clean = torch.zeros(3, 2, *field.shape)
    for case in cases(pipe, field, 3):
        clean[case.noise, case.prompt] = (case.x - case.conditional(case.x, 1.0))[0]
    for n in (2, 3):
        spread = clean[:n].var(0, correction=0).flatten(1).sum(1).sqrt()
        torch.testing.assert_close(-found[n, "dispersion"], spread, rtol=1e-4, atol=1e-5)
    pictures = pipe.vae.decode(clean.flatten(0, 1) / 1.4 + 0.3).sample.clamp(-1, 1).unflatten(0, (3, 2))
    assert torch.equal(common_edges(pictures), found[3, "edges"])


@torch.no_grad()
def test_clid_of_a_flow_is_a_difference_of_losses_of_velocities() -> None:
    pipe, field = tiny("SD3")
    items, sigma = items_for(field), 0.5
    (found,) = find("clid").score(field, items, sigma=sigma, draws=[2])
    t, clean = sigma / (1 + sigma), field.to_latents(items.pictures)
    noise = torch.stack(
        [torch.randn(2, *field.shape, generator=torch.Generator().manual_seed(seed)) for seed in items.seeds], 1
    )
    expected = torch.zeros(2)
    for case in cases(pipe, field, 1):
        for n in noise[:, case.prompt]:
            x, target = (1 - t) * clean[case.prompt] + t * n, n - clean[case.prompt]
            losses = [(v(x[None], t)[0] - target).square().mean() for v in (case.without, case.conditional)]
            expected[case.prompt] += (1 - t) ** 2 * (losses[0] - losses[1]) / 2
    torch.testing.assert_close(found.value, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PROMPTED if name not in ("prompt_length", "rarest_word")])
def test_detectors_of_prompts_cost_what_they_say_on_a_transformer(name: str, backward_rows: Counter[str]) -> None:
    _, field = tiny("SD3, two encoders", rows=8)
    if name == "sampled_entropy":
        pytest.skip("it is refused: see test_attention")
    setting = {"sigma": 0.5, "draws": [2]} if name == "clid" else SETTINGS[name] | {"sampling_steps": 3}
    setting |= {"noises": 4} if "noises" in setting and name != "one_step" else {}
    check_costs(name, [setting], field, items_for(field), backward_rows)


SAME = ("anisotropy", "guided_change", "one_step")  # passes as the magnitude's; Sana has them all
ADAPTERS = [
    pytest.param(name, family, marks=pytest.mark.ci if family != "Sana" and name in SAME else ())
    for name in SETTINGS
    for family in ("Flux dev", "PixArt", "Sana", "Lumina 2")
    if name != "sampled_magnitude"
    and (name, family) != ("attention_entropy", "Lumina 2")  # refused: see test_attention
]


@pytest.mark.parametrize(("name", "family"), ADAPTERS)
def test_detectors_of_prompts_take_every_adapter(name: str, family: str) -> None:
    """An item's score is the same with others and alone, and depends on its prompt."""
    _, field = tiny(family, rows=4)
    detector, setting = find(name), SETTINGS[name] | {"sampling_steps": 4}
    items = items_for(field)
    for whole, alone in zip(
        as_list(detector.score(field, items, **setting)),
        as_list(detector.score(field, items.rows([1]), **setting)),
        strict=True,
    ):
        assert whole.value.isfinite().all()
        torch.testing.assert_close(alone.value, whole.value[1:], rtol=2e-3, atol=1e-3)
        if whole.reading.get("quantity") != "edges":
            assert whole.value[0] != whole.value[1]


@torch.no_grad()
@pytest.mark.parametrize("name", PIPELINES)
def test_what_prompts_change_is_read_in_every_pipelines_own_loop(name: str) -> None:
    pipe, field = tiny(name)
    noise, steps = shared_noise(field.shape, 2, 0), 3
    run = trajectory(pipe, PROMPTS, noise, sampling_steps=steps, guidance=GUIDANCE, rows=8)
    torch.testing.assert_close(run.value[..., 0], first_step(field, PROMPTS, noise, steps), rtol=1e-3, atol=1e-4)
    times = field.timesteps(steps)
    signal, spread = field.schedule.at(torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(run.sigmas, (spread / signal).float())
    cond, without = ({part: v.repeat_interleave(2, 0) for part, v in each.items()} for each in both(field))
    x = noise.repeat(2, 1, 1, 1)
    if name.startswith("PixArt"):
        pipe.scheduler.set_timesteps(steps)
    for step, (here, there) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        guesses = [field.data_at(x, here, each) for each in (without, cond)]
        change = (guesses[1] - guesses[0]).flatten(1).norm(dim=1).unflatten(0, (2, 2))
        torch.testing.assert_close(run.value[..., step], change, rtol=2e-3, atol=1e-3)
        at = level(field, steps, step)
        bare = at.eps(x, guesses[0]).flatten(1).norm(dim=1).unflatten(0, (2, 2))
        torch.testing.assert_close(run.unconditional[..., step], bare, rtol=2e-3, atol=1e-3)
        guided = guesses[0] + GUIDANCE * (guesses[1] - guesses[0])
        if name.startswith("PixArt"):
            x = pipe.scheduler.step(at.eps(x, guided), int(here), x).prev_sample
            continue
        velocity = (x - guided) / at.noise
        if isinstance(
            pipe, Lumina2Pipeline
        ):  # its own loop brings guided velocities to the length of those with the prompt
            own = (x - guesses[1]) / at.noise
            velocity = velocity * own.norm(dim=-1, keepdim=True) / velocity.norm(dim=-1, keepdim=True)
        x = x + (there - here) / 1000 * velocity
    torch.testing.assert_close(run.latents, x.unflatten(0, (2, 2)), rtol=2e-3, atol=2e-3)


def both(field: TransformerField) -> tuple[dict, dict]:
    without = field.unconditional()
    return field.encode_prompts(PROMPTS), {part: value.expand(2, *value.shape[1:]) for part, value in without.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_are_those_that_each_pipeline_draws(name: str) -> None:
    pipe, field = tiny(name)
    how = {key: value for key, value in PIPELINES[name][1].items() if key != "cfg_normalization"}
    noise = shared_noise(field.shape, 2, 0)
    drawn = generate(pipe, PROMPTS, noise, 2, GUIDANCE)
    latents = noise[1:].repeat(2, 1, 1, 1)
    if isinstance(pipe, FluxPipeline):
        latents = pipe._pack_latents(latents, 2, *noise.shape[1:])
    sides = {"height": field.picture_shape[1], "width": field.picture_shape[2]}
    own = pipe(PROMPTS, latents=latents, num_inference_steps=2, output_type="pt", **sides, **how).images
    assert drawn.shape == (2, 2, *field.picture_shape)
    torch.testing.assert_close(drawn[:, 1], 2 * own - 1, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["SD3, shifted by tokens", "Flux dev"])
def test_a_loop_may_run_at_another_size(name: str) -> None:
    """Of which the levels of some schedules depend."""
    pipe, field = tiny(name)
    usual, field.shape = field.timesteps(3), torch.Size([4, 6, 6])
    noise = shared_noise(field.shape, 1, 0)
    run = trajectory(pipe, PROMPTS, noise, sampling_steps=3, guidance=GUIDANCE, rows=4)
    t = torch.tensor(field.timesteps(3), dtype=torch.float64) / 1000
    assert field.timesteps(3) != usual
    torch.testing.assert_close(run.sigmas, (t / (1 - t)).float())
    torch.testing.assert_close(run.value[..., 0], first_step(field, PROMPTS, noise, 3), rtol=1e-3, atol=1e-4)
    assert run.latents.shape == (2, 1, 4, 6, 6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["SD3", "Flux dev", "PixArt", "Sana", "Lumina 2"])
def test_after_the_first_steps_pipelines_stop_that_can(name: str) -> None:
    pipe, field = tiny(name)
    noise, how = shared_noise(field.shape, 1, 0), {"sampling_steps": 3, "guidance": GUIDANCE}
    how = how | {"rows": 4}
    whole = trajectory(pipe, PROMPTS, noise, **how)
    torch.testing.assert_close(trajectory(pipe, PROMPTS, noise, 3, **how).value, whole.value)
    if name in ("PixArt", "Lumina 2"):
        with pytest.raises(
            ValueError, match="Pipeline cannot be stopped after the first steps; leave their number out"
        ):
            trajectory(pipe, PROMPTS, noise, 1, **how)
        return
    rows: list[int] = []
    handle = pipe.transformer.register_forward_hook(lambda _, __, output: rows.append(len(output[0])))
    first = trajectory(pipe, PROMPTS, noise, 2, **how)
    handle.remove()
    torch.testing.assert_close(first.value, whole.value[..., :2])
    assert sum(rows) == 2 * 2 * len(PROMPTS)
    with outputs(pipe) as calls:
        generate(pipe, PROMPTS[:1], noise, 2, GUIDANCE)
    assert len(calls) == 2
    assert not pipe.transformer._forward_hooks
