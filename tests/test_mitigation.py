"""Prompts changed at inference: the target is reached, sample by sample; additions are what they are called."""

import numpy as np
import pytest
import torch
from conftest import small_pipeline
from test_text import PROMPTS, noise, small_xl

from memlib import mitigation, text


def magnitude_of(pipe, embeddings: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """The magnitude [N, n] at the first step under embeddings, each for its own noise."""
    empty = pipe.encode_prompt("", "cpu", 1, False)[0].expand(len(embeddings) * len(start), -1, -1)
    t, x = pipe.scheduler.timesteps[0], start.repeat(len(embeddings), 1, 1, 1)
    with torch.no_grad():
        pair = [pipe.unet(x, t, encoder_hidden_states=e).sample for e in (embeddings.flatten(0, 1), empty)]
    return (pair[0] - pair[1]).flatten(1).norm(dim=1).unflatten(0, embeddings.shape[:2])


@torch.no_grad()
def test_the_magnitude_falls_to_the_target_for_each_sample_by_itself() -> None:
    pipe = small_pipeline()
    start = noise(pipe)
    before = text.first_step(pipe, PROMPTS, start)
    target = float(before.median())
    run = mitigation.optimise_prompts(pipe, PROMPTS, start, target, iterations=60, learning_rate=0.02)
    moved = run.embeddings
    assert (run.magnitude <= target).all()
    torch.testing.assert_close(run.magnitude, magnitude_of(pipe, moved, start), rtol=1e-4, atol=1e-6)
    original = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0][:, None].expand_as(moved)
    torch.testing.assert_close(moved[:, :, 0], original[:, :, 0])
    unchanged = (moved == original).flatten(2).all(2)
    assert (unchanged == (before <= target)).all()
    assert (unchanged == (run.iterations == 0)).all()
    alone = mitigation.optimise_prompts(pipe, PROMPTS[1:2], start[1:], target, iterations=60, learning_rate=0.02)
    torch.testing.assert_close(alone.embeddings[0, 0], moved[1, 1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_more_iterations_than_allowed() -> None:
    pipe = small_pipeline()
    start = noise(pipe)
    one, two = (mitigation.optimise_prompts(pipe, PROMPTS, start, 1e-9, iterations=i).embeddings for i in (1, 2))
    original = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0][:, None]
    largest = (one - original).abs()[:, :, 1:].amax()
    assert float(largest) == pytest.approx(0.05, rel=0.1), "a first step of AdamW moves by the learning rate"
    assert (two != one).any()
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    mitigation.optimise_prompts(pipe, PROMPTS, start, 1e-9, iterations=3, max_batch=2)
    assert len(calls) == 3 * (1 + 1 + 3), (
        "one prompt at a time: its first call, an evaluation before and one after each step"
    )


def test_additions_are_words_numbers_or_repetitions() -> None:
    rng, prompt = np.random.default_rng(0), "a red apple"
    for how, known in (("random tokens", {"x", "y"}), ("repeated words", set(prompt.split()))):
        words = mitigation.perturb(prompt, how, 5, ["x", "y"], rng).split()
        left = list(words)
        for own in prompt.split():
            left.remove(own)
        assert len(left) == 5
        assert set(left) <= known
    numbers = mitigation.perturb("whale", "random numbers", 60, [], rng).split()
    assert len({*numbers} - {"whale"}) > 50, "they are random"
    words = mitigation.perturb(prompt, "random numbers", 3, [], rng).split()
    assert sum(word.isdigit() for word in words) == 3
    assert [word for word in words if not word.isdigit()] == prompt.split()
    assert mitigation.perturb(prompt, "random tokens", 0, ["x"], rng) == prompt


def test_bad_requests_are_refused() -> None:
    pipe = small_pipeline()
    for target in (0, float("nan")):
        with pytest.raises(ValueError, match="target of a magnitude must be positive"):
            mitigation.optimise_prompts(pipe, PROMPTS, noise(pipe), target)
    xl = small_xl()
    with pytest.raises(ValueError, match="has two text encoders; embeddings of prompts are moved where"):
        mitigation.optimise_prompts(xl, PROMPTS, noise(xl), 1.0)
    with pytest.raises(ValueError, match="unknown perturbation 'letters'; known: random tokens"):
        mitigation.perturb("a", "letters", 1, [], np.random.default_rng(0))
