"""Prompts changed at inference: the target is reached, sample by sample; additions are what they are called."""

import numpy as np
import pytest
import torch
from conftest import small_pipeline

from memlib.detectors.text import first_step
from memlib.fields.unet import UNetField
from memlib.mitigation.prompts import optimise_prompts, perturb
from memlib.sampling.pipeline import shared_noise

PROMPTS = ["a red apple", "the whale", "a blue tree on a whale"]


def small_field(kind: str = "epsilon", rows: int = 64) -> UNetField:
    pipe = small_pipeline(kind)
    return UNetField(pipe.unet, pipe.scheduler, pipe, rows)


@torch.no_grad()
def encoded(field: UNetField) -> torch.Tensor:
    """Embeddings of the prompts, without the field's own encoding."""
    return field.pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0][:, None]


@torch.no_grad()
def magnitude_of(field: UNetField, embeddings: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The magnitude [N, n] at the first of 50 steps under embeddings, each for its own noise, by the network itself.

    |D_c - D_u| is sigma times the distance of the noise predictions, and signal sigma that of the velocities.
    """
    pipe, t = field.pipe, 981
    abar = pipe.scheduler.alphas_cumprod[t]
    signal, spread = abar.sqrt(), (1 - abar).sqrt()
    factor = spread / signal if pipe.scheduler.config.prediction_type == "epsilon" else spread
    empty = pipe.encode_prompt("", "cpu", 1, False)[0].expand(len(embeddings) * len(start), -1, -1)
    x = start.repeat(len(embeddings), 1, 1, 1)
    pair = [pipe.unet(x, t, encoder_hidden_states=e).sample for e in (embeddings.flatten(0, 1), empty)]
    return factor * (pair[0] - pair[1]).flatten(1).norm(dim=1).unflatten(0, embeddings.shape[:2])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_magnitude_falls_to_the_target_for_each_sample_by_itself(kind: str) -> None:
    field = small_field(kind)
    start = shared_noise(field.shape, 2, 0)
    before = first_step(field, PROMPTS, start)
    target = float(before.median())
    run = optimise_prompts(field, PROMPTS, start, target, iterations=60, learning_rate=0.02)
    moved, original = run.embeddings, encoded(field).expand_as(run.embeddings)
    assert (run.magnitude <= target).all()
    torch.testing.assert_close(run.magnitude, magnitude_of(field, moved, start), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved[:, :, 0], original[:, :, 0])
    unchanged = (moved == original).flatten(2).all(2)
    assert unchanged.any()
    assert not unchanged.all()
    assert (unchanged == (before <= target)).all()
    assert (unchanged == (run.iterations == 0)).all()
    alone = optimise_prompts(field, PROMPTS[1:2], start[1:], target, iterations=60, learning_rate=0.02)
    torch.testing.assert_close(alone.embeddings[0, 0], moved[1, 1], rtol=1e-4, atol=1e-5)


def test_no_more_iterations_than_allowed() -> None:
    field = small_field()
    start = shared_noise(field.shape, 2, 0)
    one, two = (optimise_prompts(field, PROMPTS, start, 1e-9, iterations=i) for i in (1, 2))
    largest = (one.embeddings - encoded(field)).abs()[:, :, 1:].amax()
    assert float(largest) == pytest.approx(0.05, rel=0.1), "a first step of AdamW moves by the learning rate"
    assert (two.embeddings != one.embeddings).any()
    assert (one.iterations == 1).all()
    assert (two.iterations == 2).all()


def test_a_network_sees_no_more_rows_in_a_call_than_allowed_and_no_more_calls_than_needed() -> None:
    field = small_field(rows=2)
    seen = []
    field.unet.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    optimise_prompts(field, PROMPTS, shared_noise(field.shape, 2, 0), 1e-9, iterations=3)
    assert seen == [2] * 3 * (1 + 1 + 3), "a prompt: without it, before a step, and after each of three"


def test_additions_are_words_numbers_or_repetitions() -> None:
    rng, prompt = np.random.default_rng(0), "a red apple"
    for how, known in (("random tokens", {"x", "y"}), ("repeated words", set(prompt.split()))):
        words = perturb(prompt, how, 5, ["x", "y"], rng).split()
        left = list(words)
        for own in prompt.split():
            left.remove(own)
        assert len(left) == 5
        assert set(left) <= known
    numbers = perturb("whale", "random numbers", 60, [], rng).split()
    assert len({*numbers} - {"whale"}) > 50, "they are random"
    words = perturb(prompt, "random numbers", 3, [], rng).split()
    assert sum(word.isdigit() for word in words) == 3
    assert [word for word in words if not word.isdigit()] == prompt.split()
    assert perturb(prompt, "random tokens", 0, ["x"], rng) == prompt


def test_bad_requests_are_refused() -> None:
    field = small_field()
    noise = shared_noise(field.shape, 2, 0)
    for target in (0, float("nan")):
        with pytest.raises(ValueError, match="target of a magnitude must be positive"):
            optimise_prompts(field, PROMPTS, noise, target)
    with pytest.raises(ValueError, match="the list of prompts is empty"):
        optimise_prompts(field, [], noise, 1.0)
    with pytest.raises(ValueError, match="unknown perturbation 'letters'; known: random tokens"):
        perturb("a", "letters", 1, [], np.random.default_rng(0))
    field.pipe.register_modules(text_encoder_2=field.pipe.text_encoder)
    with pytest.raises(ValueError, match="has two text encoders; embeddings of prompts are moved where"):
        optimise_prompts(field, PROMPTS, noise, 1.0)
