"""Training of the classifier that judges whether a picture shows what its prompt asks for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from memlib.datasets.attributes import ATTRIBUTES
from memlib.datasets.drawings import random_looks, render
from memlib.tensors import to_float
from memlib.training.loop import Optimised, generator_of, optimise
from memlib.training.settings import JudgeConfig

RESTORED = 48  # drawings of each subject that the judge is trained on as the autoencoder gives them back


def classes_of(looks: pd.DataFrame) -> dict[str, Tensor]:
    """The class [N] of each attribute of looks, and of their subject, as the judge numbers them."""
    named = {name: [values.index(value) for value in looks[name]] for name, values in ATTRIBUTES.items()}
    return {name: torch.tensor(numbers) for name, numbers in ({"subject": looks["subject"].tolist()} | named).items()}


def fresh_drawings(subjects: Tensor, each: int, *key: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Drawings [N * each, 3, H, W] in [-1, 1] of N subjects at random looks that depend on the key alone, and their classes."""
    rng = np.random.default_rng(key)
    looks = random_looks(len(subjects) * each, rng).assign(subject=np.arange(len(subjects)).repeat(each))
    drawn = render(subjects.repeat_interleave(each, 0), looks, generator_of(*key))
    return to_float(drawn), classes_of(looks)


def train_judge(
    judge: nn.Module,
    subjects: Tensor,
    restore: Callable[[Tensor], Tensor],
    config: JudgeConfig,
    checkpoint: str | Path,
) -> Optimised:
    """Train on fresh drawings of the subjects uint8 [N, 3, H, W], half of them as an autoencoder gives them back.

    restore: what it makes of pictures, both in [-1, 1]; of `RESTORED` drawings a subject, made once. The loss is the sum of
    the cross-entropies of all attributes.
    """
    drawn, pool = fresh_drawings(subjects, RESTORED, config.seed, 4)
    restored = restore(drawn)

    def loss_at(model: nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 2, step)
        through = torch.randint(len(restored), (config.batch // 2,), generator=generator)
        rows = torch.randint(len(subjects), (config.batch - len(through),), generator=generator)
        fresh, classes = fresh_drawings(subjects[rows], 1, config.seed, 5, step)
        shown = torch.cat([restored[through], fresh])[shard].to(device)
        wanted = {name: torch.cat([pool[name][through], own]) for name, own in (classes | {"subject": rows}).items()}
        logits = model(shown)
        losses = [
            nn.functional.cross_entropy(logits[name].float(), own[shard].to(device)) for name, own in wanted.items()
        ]
        return torch.stack(losses).sum()

    run = optimise(judge, loss_at, config, checkpoint, [subjects, restored])
    judge.eval()
    return run
