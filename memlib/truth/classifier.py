"""Agreement of a picture with its prompt: a classifier of subjects, trained on drawings that no other model has seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memlib.truth.replication import RATIO, own_ratio

MAX_BATCH = 256  # pictures in one call


def subject_classes(splits: Sequence[str]) -> Tensor:
    """Class [N] in the judge of the subjects of these splits, of which it knows all but those of `unseen`; -1 for these."""
    known = torch.tensor([split != "unseen" for split in splits])
    return torch.where(known, known.cumsum(0) - 1, -1)


def build_judge(subjects: int, size: int, width: int = 32) -> nn.Module:
    """Untrained classifier of pictures [N, 3, size, size] into so many subjects, halving them three times."""
    layers: list[nn.Module] = []
    channels = 3
    for level in range(3):
        wider = width * 2**level
        layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.GroupNorm(8, wider), nn.SiLU()]
        channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (size // 8) ** 2, subjects))


def load_judge(path: str | Path, size: int) -> nn.Module:
    """A trained classifier of pictures [N, 3, size, size], from safetensors weights."""
    weights = load_file(path)
    last = max(weights, key=lambda name: int(name.split(".")[0]))
    judge = build_judge(len(weights[last]), size)
    judge.load_state_dict(weights)
    return judge


@torch.no_grad()
def agreement(judge: nn.Module, pictures: Tensor, subject: Tensor) -> Tensor:
    """Probability [N] that the judge gives to the subject [N] that each picture [N, 3, H, W] in [-1, 1] is meant to show."""
    logits = torch.cat([judge(part) for part in pictures.split(MAX_BATCH)])
    return logits.softmax(1).gather(1, subject[:, None])[:, 0]


class Judged(NamedTuple):
    """Of n samples of N prompts, all [N, n]: similarity to the prompt's training picture, agreement, and whether it is a copy."""

    similarity: Tensor
    agreement: Tensor
    copied: Tensor


def judge_samples(judge: nn.Module, samples: Tensor, subject: Tensor, own: Tensor, training: Tensor) -> Judged:
    """Judge samples [N, n, 3, H, W] of prompts by the subject [N] that they ask for and their own training picture [N].

    `own` counts in `training`; similarity is 1 minus `memlib.truth.replication.own_ratio`, at least 0.
    """
    n = samples.shape[1]
    flat = samples.flatten(0, 1)
    ratio = own_ratio(flat, own.repeat_interleave(n), training)
    agreed = agreement(judge, flat, subject.repeat_interleave(n))
    values = ((1 - ratio).clamp_min(0), agreed, ratio < RATIO)
    return Judged(*(value.unflatten(0, samples.shape[:2]) for value in values))
