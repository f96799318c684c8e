"""Agreement of a picture with its prompt: a classifier of subjects, trained on drawings that no other model has seen."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memlib.config import LoopConfig
from memlib.data import ImageSet, to_float
from memlib.drawings import draw
from memlib.models import MAX_BATCH
from memlib.optimisation import Optimised, generator_of, optimise
from memlib.replication import RATIO, own_ratio

RESTORED = 16  # drawings of each subject that the judge is trained on as the autoencoder gives them back


def subject_classes(subjects: ImageSet) -> Tensor:
    """Class [N] of each subject in the judge, which knows all but the unseen ones; -1 for these."""
    known = torch.tensor((subjects.items["split"] != "unseen").tolist())
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


def train_judge(
    judge: nn.Module,
    subjects: Tensor,
    restore: Callable[[Tensor], Tensor],
    config: LoopConfig,
    checkpoint: str | Path,
) -> Optimised:
    """Train on fresh drawings of the subjects uint8 [N, 3, H, W], half of them as an autoencoder gives them back.

    restore: what it makes of pictures uint8, in [-1, 1]; of `RESTORED` drawings a subject, made once.
    """
    every = torch.arange(len(subjects)).repeat(RESTORED)
    restored = restore(draw(subjects[every], generator_of(config.seed, 4)))

    def loss_at(model: nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 2, step)
        rows = torch.randint(len(subjects), (config.batch,), generator=generator)
        through = torch.rand(config.batch, 1, 1, 1, generator=generator) < 0.5
        number = torch.randint(RESTORED, (config.batch,), generator=generator)
        fresh = to_float(draw(subjects[rows], generator))
        shown = torch.where(through, restored[number * len(subjects) + rows], fresh)[shard].to(device)
        return nn.functional.cross_entropy(model(shown).float(), rows[shard].to(device))

    run = optimise(judge, loss_at, config, checkpoint, [subjects, restored])
    judge.eval()
    return run


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

    `own` counts in `training`; similarity is 1 minus `memlib.replication.own_ratio`, at least 0.
    """
    n = samples.shape[1]
    flat = samples.flatten(0, 1)
    ratio = own_ratio(flat, own.repeat_interleave(n), training)
    agreed = agreement(judge, flat, subject.repeat_interleave(n))
    values = ((1 - ratio).clamp_min(0), agreed, ratio < RATIO)
    return Judged(*(value.unflatten(0, samples.shape[:2]) for value in values))
