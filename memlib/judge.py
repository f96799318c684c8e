"""Agreement of a picture with its prompt: a classifier of subjects, trained on drawings that no other model has seen."""

from pathlib import Path

import torch
from torch import Tensor, nn

from memlib.config import LoopConfig
from memlib.data import to_float
from memlib.drawings import draw
from memlib.models import MAX_BATCH
from memlib.optimisation import Optimised, generator_of, optimise


def build_judge(subjects: int, size: int, width: int = 32) -> nn.Module:
    """Untrained classifier of pictures [N, 3, size, size] into so many subjects, halving them three times."""
    layers: list[nn.Module] = []
    channels = 3
    for level in range(3):
        wider = width * 2**level
        layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.GroupNorm(8, wider), nn.SiLU()]
        channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (size // 8) ** 2, subjects))


def train_judge(judge: nn.Module, subjects: Tensor, config: LoopConfig, checkpoint: str | Path) -> Optimised:
    """Train on fresh drawings of the subjects uint8 [N, 3, H, W]; half of them blurred, as an autoencoder blurs."""

    def loss_at(model: nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 2, step)
        rows = torch.randint(len(subjects), (config.batch,), generator=generator)
        blurred = torch.rand(config.batch, generator=generator) < 0.5
        drawn = to_float(draw(subjects[rows], generator))
        soft = nn.functional.interpolate(
            nn.functional.avg_pool2d(drawn, 2), scale_factor=2, mode="bilinear", align_corners=False
        )
        shown = torch.where(blurred[:, None, None, None], soft, drawn)[shard].to(device)
        return nn.functional.cross_entropy(model(shown).float(), rows[shard].to(device))

    run = optimise(judge, loss_at, config, checkpoint, [subjects])
    judge.eval()
    return run


@torch.no_grad()
def agreement(judge: nn.Module, pictures: Tensor, subject: Tensor) -> Tensor:
    """Probability [N] that the judge gives to the subject [N] that each picture [N, 3, H, W] in [-1, 1] is meant to show."""
    logits = torch.cat([judge(part) for part in pictures.split(MAX_BATCH)])
    return logits.softmax(1).gather(1, subject[:, None])[:, 0]
