"""Detectors of the first step of sampling against their formulas, written out on the network itself, and closed forms."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import scheduler, small_pipeline
from diffusers import DDIMScheduler, StableDiffusionPipeline
from scipy import ndimage
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.detectors.first_step import common_edges
from memlib.fields.schedules import DiscreteSchedule, timesteps
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import shared_noise

PROMPTS = ["a red apple", "the whale", "a blue tree on a whale"]
ITEMS = Items(PROMPTS, 3, prompts=PROMPTS)
STEPS = 10
Network = Callable[[torch.Tensor], torch.Tensor]


def scored(name: str, pipe: StableDiffusionPipeline, **setting: object) -> dict[tuple, torch.Tensor]:
    """Scores [N] by the values of their readings."""
    field = UNetField(pipe.unet, pipe.scheduler, pipe, rows=4)
    found = find(name).score(field, ITEMS, sampling_steps=STEPS, **setting)
    return {tuple(scores.reading.values()): scores.value for scores in found}


class Case(NamedTuple):
    """One prompt and noise: the network with the prompt and without, as functions of x_t, at the first step."""

    prompt: int
    noise: int
    x: torch.Tensor
    conditional: Network
    without: Network


def cases(pipe: StableDiffusionPipeline, number: int = 0, noises: int = 2) -> list[Case]:
    def network(words: str) -> Network:
        tokens = pipe.tokenizer([words], padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = pipe.text_encoder(tokens)[0].detach()
        return lambda x: pipe.unet(x, times(pipe)[number], states).sample

    starts = shared_noise((4, 4, 4), noises, ITEMS.seed)
    return [
        Case(p, n, start[None], network(prompt), network(""))
        for p, prompt in enumerate(PROMPTS)
        for n, start in enumerate(starts)
    ]


def times(pipe: StableDiffusionPipeline) -> list[int]:
    ddim = DDIMScheduler.from_config(pipe.scheduler.config)
    ddim.set_timesteps(STEPS)
    return ddim.timesteps.tolist()


def derivative(function: Network, x: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
    """By two backward passes, not by forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.jvp(function, x, along)[1]


def pulled(function: Network, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x, by)[0]


def test_sail_is_the_hessian_times_the_score_of_the_prompt() -> None:
    pipe = small_pipeline()
    found, abar = scored("sail", pipe, noises=2), pipe.scheduler.alphas_cumprod[times(pipe)[0]]
    for case in cases(pipe):

        def change(x: torch.Tensor, case: Case = case) -> torch.Tensor:
            return case.conditional(x) - case.without(x)

        expected = derivative(change, case.x, change(case.x)).norm() / (1 - abar)
        value = found[case.noise,][case.prompt] * abar / (1 - abar) ** 2
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=0)


def test_the_gradient_difference_is_that_of_half_the_squared_lengths() -> None:
    pipe = small_pipeline()
    found, abar = scored("gradient_difference", pipe, noises=2), pipe.scheduler.alphas_cumprod[times(pipe)[0]]
    for case in cases(pipe):
        conditional, without = (
            pulled(network, case.x, network(case.x).detach()) for network in (case.conditional, case.without)
        )
        value = found[case.noise,][case.prompt] * abar / (1 - abar)
        torch.testing.assert_close(value, (conditional - without).square().sum(), rtol=2e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_guided_change_is_over_a_step_of_diffusers(guidance: float) -> None:
    pipe = small_pipeline()
    found = scored("guided_change", pipe, noises=2, guidance=guidance)
    pipe.scheduler.set_timesteps(STEPS)
    for case, second in zip(cases(pipe), cases(pipe, 1), strict=True):
        first, without = case.conditional(case.x), case.without(case.x)
        reached = pipe.scheduler.step(without + guidance * (first - without), times(pipe)[0], case.x).prev_sample
        expected = (second.conditional(reached) - first).square().sum()
        torch.testing.assert_close(found[case.noise,][case.prompt], expected, rtol=2e-3, atol=0)


@torch.no_grad()
def test_anisotropy_is_a_length_and_a_cosine_at_the_ends_of_sampling() -> None:
    pipe = small_pipeline()
    found, abar = scored("anisotropy", pipe, noises=2), pipe.scheduler.alphas_cumprod[times(pipe)[0]]
    assert times(pipe)[-1] == 1
    for first, last in zip(cases(pipe), cases(pipe, -1), strict=True):
        change, bare = last.conditional(last.x) - last.without(last.x), last.without(last.x)
        cosine = F.cosine_similarity(bare, change, dim=1).mean()
        torch.testing.assert_close(found[first.noise, "alignment"][first.prompt], cosine, rtol=1e-3, atol=1e-3)
        length = (first.conditional(first.x) - first.without(first.x)).norm() * ((1 - abar) / abar).sqrt()
        torch.testing.assert_close(found[first.noise, "magnitude"][first.prompt], length, rtol=1e-3, atol=0)


@torch.no_grad()
def test_one_step_pictures_are_those_of_diffusers() -> None:
    pipe = small_pipeline()
    found = scored("one_step", pipe, noises=[2, 3])
    pipe.scheduler.set_timesteps(STEPS)
    clean = np.zeros((len(PROMPTS), 3, 4, 4, 4), dtype=np.float32)
    for case in cases(pipe, noises=3):
        step = pipe.scheduler.step(case.conditional(case.x), times(pipe)[0], case.x)
        clean[case.prompt, case.noise] = step.pred_original_sample[0]
    for n in (2, 3):
        spread = np.sqrt(clean[:, :n].var(1).sum((1, 2, 3)))
        np.testing.assert_allclose(-found[n, "dispersion"], spread, rtol=1e-4)
    pictures = pipe.vae.decode(torch.from_numpy(clean).flatten(0, 1) / pipe.vae.config.scaling_factor).sample
    pictures = pictures.clamp(-1, 1).unflatten(0, (len(PROMPTS), 3)).transpose(0, 1)
    assert torch.equal(common_edges(pictures), found[3, "edges"])


def sobel_share(pictures: np.ndarray) -> float:
    """Of one prompt's pictures [n, C, H, W] in [0, 1], by scipy."""
    lengths = [np.hypot(ndimage.sobel(p, axis=1), ndimage.sobel(p, axis=2)) for p in pictures]
    return float((np.mean([each.sum(0) > 1.5 for each in lengths], axis=0) > 0.5).mean())


def test_edges_are_where_most_pictures_have_them(generator: torch.Generator) -> None:
    pictures = torch.rand(4, 3, 3, 12, 10, generator=generator) * 0.2 - 0.1
    pictures[:, 0, :, 4:] += 0.7
    pictures[:, 0, :, :, 7:] -= 0.5
    expected = [sobel_share(((pictures[:, n] + 1) / 2).numpy()) for n in range(3)]
    assert 0 < expected[1] < expected[0] < 1
    assert common_edges(pictures).tolist() == pytest.approx(expected, abs=1e-6)
    half = torch.zeros(2, 1, 3, 8, 8)
    half[0, ..., 4:] = 1.0
    assert float(common_edges(half)) == 0, "half of them are not most"
    assert float(common_edges(half[[0, 0]])) == pytest.approx(2 / 8)


@pytest.mark.ci
def test_pure_noise_at_the_first_step_leaves_all_right() -> None:
    """Where nothing of the data is left eps is x_t whatever the prompt: with signal 0, D = -v and J_D = -J_v."""
    pipe = small_pipeline("v_prediction")
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True
    )
    abar = pipe.scheduler.alphas_cumprod
    assert float(abar[times(pipe)[0]]) == 0
    sail, gradient = (scored(name, pipe, noises=2) for name in ("sail", "gradient_difference"))
    change, one_step = scored("guided_change", pipe, noises=2, guidance=7.5), scored("one_step", pipe, noises=[2])
    for case, second in zip(cases(pipe), cases(pipe, 1), strict=True):

        def velocity(x: torch.Tensor, case: Case = case) -> torch.Tensor:
            return case.conditional(x) - case.without(x)

        expected = derivative(velocity, case.x, velocity(case.x)).norm()
        torch.testing.assert_close(sail[case.noise,][case.prompt], expected, rtol=1e-3, atol=0)
        expected = (velocity(case.x) + pulled(velocity, case.x, case.x)).square().sum().detach()
        torch.testing.assert_close(gradient[case.noise,][case.prompt], expected, rtol=1e-3, atol=0)
        with torch.no_grad():
            guided = -case.without(case.x) - 7.5 * velocity(case.x)
            signal, spread = abar[times(pipe)[1]].sqrt(), (1 - abar[times(pipe)[1]]).sqrt()
            reached = signal * guided + spread * case.x
            expected = (signal * second.conditional(reached) + spread * reached - case.x).square().sum()
        torch.testing.assert_close(change[case.noise,][case.prompt], expected, rtol=1e-3, atol=0)
    assert (one_step[2, "dispersion"] < 0).all()


class NormalPrompts:
    """Latents of a prompt are normal, of its own variance and around a picture of its own: faint where the variance is near 1.

    Those of no prompt are standard normal.
    """

    rows, pad, device, shape = 5, False, torch.device("cpu"), torch.Size([4, 4, 4])

    def __init__(self, variances: list[float]) -> None:
        self.pipe, self.scheduler, self.variances = small_pipeline(), scheduler(), variances
        self.schedule = DiscreteSchedule(self.scheduler)

    def timesteps(self, sampling_steps: int) -> list[float]:
        return timesteps(self.scheduler, sampling_steps)

    def encode_prompts(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        variance = torch.tensor(self.variances)[:, None, None, None]
        means = 2 * torch.randn(len(prompts), 4, 4, 4, generator=generator).sign()
        return {"mean": (1 - variance) * means, "variance": variance}

    def unconditional(self) -> dict[str, torch.Tensor]:
        return {"mean": torch.zeros(1, 4, 4, 4), "variance": torch.ones(1, 1, 1, 1)}

    def with_rows(self, rows: int) -> "NormalPrompts":
        return self

    def data_at(self, x: torch.Tensor, t: float, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        abar = self.scheduler.alphas_cumprod[int(t)]
        gain = abar.sqrt() * cond["variance"] / (abar * cond["variance"] + 1 - abar)
        return cond["mean"] + gain * (x - abar.sqrt() * cond["mean"])

    def to_pictures(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3] / 3


def test_sharp_prompts_score_higher_and_in_closed_form() -> None:
    variances, noises, steps = [0.01, 0.5, 1.0], 3, 4
    field = NormalPrompts(variances)
    abar = field.scheduler.alphas_cumprod[750]
    gain = torch.tensor([abar.sqrt() * v / (abar * v + 1 - abar) for v in variances])
    bare = abar.sqrt()
    noise, means = shared_noise(field.shape, noises, 3), field.encode_prompts(PROMPTS)["mean"]
    change = (1 - gain * abar.sqrt())[:, None] * means.flatten(1)
    change = change + (gain - bare)[:, None] * noise.flatten(1)[:, None]  # [noises, prompts, d]
    sail = find("sail").score(field, ITEMS, noises=noises, sampling_steps=steps)
    for scores, lengths in zip(sail, change.norm(dim=2), strict=True):
        torch.testing.assert_close(scores.value, (gain - bare).abs() * lengths, rtol=1e-4, atol=1e-4)
        assert scores.value.argsort(descending=True).tolist() == [0, 1, 2]
    spread, edges = find("one_step").score(field, ITEMS, noises=[noises], sampling_steps=steps)
    expected = gain * noise.flatten(1).var(0, correction=0).sum().sqrt()
    torch.testing.assert_close(-spread.value, expected, rtol=1e-4, atol=1e-4)
    assert spread.value.argsort(descending=True).tolist() == [0, 1, 2]
    assert edges.value[0] > edges.value[2]
    for name in ("gradient_difference", "guided_change"):
        for scores in find(name).score(field, ITEMS, noises=noises, sampling_steps=steps):
            assert scores.value[0] > scores.value[2], name


def test_edges_are_those_of_the_first_noises_alone() -> None:
    field, steps = (
        NormalPrompts([1.0, 0.97, 0.94]),
        2,
    )  # at less noise and faint, so that what is expected depends on it
    cond, at = field.encode_prompts(PROMPTS), field.timesteps(steps)[0]
    starts = shared_noise(field.shape, 3, ITEMS.seed)
    pictures = torch.stack([field.to_pictures(field.data_at(x.expand(3, -1, -1, -1), at, cond)) for x in starts])
    found = find("one_step").score(field, ITEMS, noises=[2, 3], sampling_steps=steps)[1::2]
    expected = [common_edges(pictures[:n]) for n in (2, 3)]
    assert not torch.equal(*expected)
    assert all(torch.equal(scores.value, value) for scores, value in zip(found, expected, strict=True))
