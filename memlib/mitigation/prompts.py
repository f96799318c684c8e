"""Sampling a memorised prompt without its picture: prompts changed at inference (Wen et al., arXiv 2407.21720, section 4)."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from memlib.detectors.text import FirstStep
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import check_prompts, chunks, warn_of_cuts
from memlib.words import put_in

Perturbation = Literal["random tokens", "random numbers", "repeated words"]


class MovedPrompts(NamedTuple):
    """Moved embeddings [N, n, L, D] of N prompts for n noises, the magnitudes [N, n] reached, and the steps [N, n] taken."""

    embeddings: Tensor
    magnitude: Tensor
    iterations: Tensor


def optimise_prompts(
    field: UNetField,
    prompts: Sequence[str],
    noise: Tensor,
    target: float,
    iterations: int = 10,
    learning_rate: float = 0.05,
    sampling_steps: int = 50,
) -> MovedPrompts:
    """Embeddings of prompts moved until the magnitude at the first step from noises [n, C, H, W] is at most `target`.

    The magnitude is |D_c - D_u| (see `memlib.detectors.text`), sigma times the paper's. AdamW on every position but the first
    (section 4.2), at most so many iterations. The published code stops by one norm over all generations of a prompt; here every
    sample has its own embeddings and its own end, so that nothing depends on how many are made at once. One network
    evaluation a sample and, an iteration, a backward pass and one more; the unconditional prediction, one a noise, is shared.

    Raises ValueError for no prompts, a pipeline with two text encoders, and a target that is not positive.
    """
    check_prompts(prompts)
    warn_of_cuts(field.pipe, prompts)
    if not target > 0:
        raise ValueError(f"the target of a magnitude must be positive; got {target}")
    parts = []
    for chunk in chunks(list(prompts), field.rows // len(noise)):
        call = FirstStep(field, chunk, noise, sampling_steps)
        given = call.embeddings.repeat_interleave(call.count, 0)
        parts.append(move_embeddings(given, call.magnitude, target, iterations, learning_rate))
    return MovedPrompts(
        *(torch.cat(part).unflatten(0, (len(prompts), len(noise))) for part in zip(*parts, strict=True))
    )


def move_embeddings(
    given: Tensor,
    magnitude_of: Callable[[Tensor], Tensor],
    target: float,
    iterations: int,
    learning_rate: float,
) -> MovedPrompts:
    """Embeddings [N, L, D] moved by AdamW, all positions but the first, until `magnitude_of` them [N] is at most the target.

    Each row ends by itself. The parts of what is returned have no axis of noises.
    """
    first, moved = given[:, :1].float(), given[:, 1:].float().requires_grad_()
    kept, reached = given, torch.zeros(len(given), device=given.device)
    running = torch.ones(len(given), dtype=torch.bool, device=given.device)
    taken = torch.zeros(len(given), dtype=torch.long, device=given.device)
    optimizer = torch.optim.AdamW([moved], lr=learning_rate)
    for step in range(iterations + 1):
        with torch.enable_grad():
            embeddings = torch.cat([first, moved], 1).to(given.dtype)
            magnitude = magnitude_of(embeddings)
        kept = torch.where(running[:, None, None], embeddings.detach(), kept)
        reached = torch.where(running, magnitude.detach(), reached)
        running = running & (reached > target)
        if step == iterations or not running.any():
            break
        (moved.grad,) = torch.autograd.grad(magnitude, moved, torch.ones_like(magnitude))
        optimizer.step()
        taken += running
    return MovedPrompts(kept, reached, taken)


def perturb(prompt: str, how: Perturbation, count: int, words: Sequence[str], rng: np.random.Generator) -> str:
    """A prompt with `count` additions at random places: words of a list, numbers below 1,000, or words of its own.

    Small numbers (the paper takes them up to a million), because CLIP's tokenizer spends a token a digit.
    """
    if how not in get_args(Perturbation):
        raise ValueError(f"unknown perturbation {how!r}; known: {', '.join(get_args(Perturbation))}")
    own = prompt.split()
    for _ in range(count):
        number = how == "random numbers"
        added = str(rng.integers(1000)) if number else str(rng.choice(words if how == "random tokens" else own))
        prompt = put_in(prompt, added, rng)
    return prompt
