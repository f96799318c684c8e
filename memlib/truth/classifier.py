"""Agreement of a picture with its prompt: a classifier of subjects, trained on drawings that no other model has seen."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memlib.truth.replication import is_copy, match, own_ratio

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


def sample_table(
    judge: nn.Module, samples: Tensor, prompts: pd.DataFrame, classes: Tensor, training: Tensor, shown: Tensor
) -> pd.DataFrame:
    """Judge samples [N, n, 3, H, W] in [-1, 1] of N prompts, a row a sample.

    prompts: as `memlib.datasets.drawings.judged_prompts` gives them. classes: class in the judge of every subject (-1 for one
    that it does not know). training: training pictures [M, 3, H, W]; shown: the subject of each [M].

    Columns: id (of the prompt), noise (number of the sample); copies_any, whether it copies a training picture; copies_own,
    whether that is the prompt's planted picture or, for a prompt without one, any of its subject; similarity to the planted
    picture (nan without), 1 minus `memlib.truth.replication.own_ratio`, at least 0; agreement with the prompt, the judge's
    probability of its subject (nan for one that it does not know).
    """
    n, flat = samples.shape[1], samples.flatten(0, 1)
    row, own, subject = (
        torch.tensor(prompts[name].tolist()).repeat_interleave(n) for name in ("row", "own", "subject")
    )
    matches = match(flat, training)
    copies, has_own, known = is_copy(matches), row >= 0, classes[subject] >= 0
    is_own = torch.where(has_own, matches.nearest == own, shown[matches.nearest] == subject)
    similarity = (1 - own_ratio(flat, own.clamp_min(0), training)).clamp_min(0)
    agreed = agreement(judge, flat, classes[subject].clamp_min(0))
    return pd.DataFrame(
        {
            "id": prompts["id"].repeat(n).to_numpy(),
            "noise": list(range(n)) * len(prompts),
            "copies_any": copies.numpy(),
            "copies_own": (copies & is_own).numpy(),
            "similarity": similarity.where(has_own, float("nan")).numpy(),
            "agreement": agreed.where(known, float("nan")).numpy(),
        }
    )
