"""Sampling a memorised prompt without its picture: prompts changed at inference (Wen et al., arXiv 2407.21720, section 4)."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.drawings import put_in
from memlib.models import MAX_BATCH
from memlib.text import FirstCall, check_pipeline, check_prompts, chunks, first_call

Perturbation = Literal["random tokens", "random numbers", "repeated words"]


def optimise_prompts(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    noise: Tensor,
    target: float,
    iterations: int = 10,
    learning_rate: float = 0.05,
    sampling_steps: int = 50,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """Embeddings [N, n, L, D] of N prompts for n noises, moved until the magnitude at the first step is at most `target`.

    AdamW on every position but the first (section 4.2), at most so many iterations. The published code stops by one norm
    over all generations of a prompt; here every sample has its own embeddings and its own end, so that nothing depends on
    how many are made at once. One evaluation with gradients an iteration and sample.

    Raises ValueError for no prompts, an unsupported pipeline, and a target that is not positive.
    """
    check_pipeline(pipe)
    check_prompts(prompts)
    if target <= 0:
        raise ValueError(f"the target of a magnitude must be positive; got {target}")
    moved = [
        _optimise(first_call(pipe, chunk, noise, sampling_steps), target, iterations, learning_rate)
        for chunk in chunks(prompts, max_batch // len(noise))
    ]
    return torch.cat(moved).unflatten(0, (len(prompts), len(noise)))


def _optimise(call: FirstCall, target: float, iterations: int, learning_rate: float) -> Tensor:
    dtype = call.keywords["encoder_hidden_states"].dtype
    start = call.keywords["encoder_hidden_states"].detach().float()
    first, moved = start[:, :1], start[:, 1:].clone().requires_grad_()
    kept = torch.cat([first, moved.detach()], 1)
    running = torch.ones(len(start), dtype=torch.bool, device=start.device)
    optimizer = torch.optim.AdamW([moved], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(iterations):
            magnitude = call.magnitude(torch.cat([first, moved], 1).to(dtype))
            running &= magnitude > target
            if not running.any():
                break
            (moved.grad,) = torch.autograd.grad(magnitude.sum(), moved)
            optimizer.step()
            with torch.no_grad():
                kept = torch.where(running[:, None, None], torch.cat([first, moved], 1), kept)
    return kept.to(dtype)


def perturb(prompt: str, how: Perturbation, count: int, words: Sequence[str], rng: np.random.Generator) -> str:
    """A prompt with `count` additions at random places: words of a list, numbers below a million, or words of its own."""
    if how not in get_args(Perturbation):
        raise ValueError(f"unknown perturbation {how!r}; known: {', '.join(get_args(Perturbation))}")
    own = prompt.split()
    for _ in range(count):
        number = how == "random numbers"
        added = str(rng.integers(10**6)) if number else str(rng.choice(words if how == "random tokens" else own))
        prompt = put_in(prompt, added, rng)
    return prompt
