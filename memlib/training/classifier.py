"""Training of the classifier that judges whether a picture shows the subject that its prompt asks for."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from memlib.datasets.drawings import render
from memlib.tensors import to_float
from memlib.training.loop import Optimised, generator_of, optimise
from memlib.training.settings import JudgeConfig

RESTORED = 16  # drawings of each subject that the judge is trained on as the autoencoder gives them back


def train_judge(
    judge: nn.Module,
    subjects: Tensor,
    restore: Callable[[Tensor], Tensor],
    config: JudgeConfig,
    checkpoint: str | Path,
) -> Optimised:
    """Train on fresh drawings of the subjects uint8 [N, 3, H, W], half of them as an autoencoder gives them back.

    restore: what it makes of pictures, both in [-1, 1]; of `RESTORED` drawings a subject, made once.
    """
    every = torch.arange(len(subjects)).repeat(RESTORED)
    restored = restore(to_float(render(subjects[every], generator_of(config.seed, 4))))

    def loss_at(model: nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 2, step)
        rows = torch.randint(len(subjects), (config.batch,), generator=generator)
        through = torch.rand(config.batch, 1, 1, 1, generator=generator) < 0.5
        number = torch.randint(RESTORED, (config.batch,), generator=generator)
        fresh = to_float(render(subjects[rows], generator))
        shown = torch.where(through, restored[number * len(subjects) + rows], fresh)[shard].to(device)
        return nn.functional.cross_entropy(model(shown).float(), rows[shard].to(device))

    run = optimise(judge, loss_at, config, checkpoint, [subjects, restored])
    judge.eval()
    return run
