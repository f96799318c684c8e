"""Whether pictures show what their prompts ask for: a classifier trained on drawings that no other model has seen."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from memlib.truth.outcomes import RATIO

MAX_BATCH = 256  # pictures in one call


class Judge(nn.Module):
    """A classifier of several attributes at once, each by a linear head on common features."""

    def __init__(self, classes: Mapping[str, int], size: int, width: int = 32) -> None:
        """classes: how many each attribute has; size: pixels a side, which are halved three times."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for level in range(3):
            wider = width * 2**level
            layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.GroupNorm(8, wider), nn.SiLU()]
            layers += [nn.Conv2d(wider, wider, 3, 1, 1), nn.GroupNorm(8, wider), nn.SiLU()] if level else []
            channels = wider
        self.features = nn.Sequential(*layers, nn.Flatten())
        features = channels * (size // 8) ** 2
        self.heads = nn.ModuleDict({name: nn.Linear(features, count) for name, count in classes.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits [N, classes] of each attribute, of pictures [N, 3, size, size] in [-1, 1]."""
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def load_judge(path: str | Path, size: int) -> Judge:
    """A trained classifier of pictures [N, 3, size, size], from safetensors weights."""
    weights = load_file(path)
    heads = [name.split(".") for name in weights if name.startswith("heads.") and name.endswith(".bias")]
    judge = Judge({name: len(weights[f"heads.{name}.bias"]) for _, name, _ in heads}, size)
    judge.load_state_dict(weights)
    return judge


@torch.no_grad()
def agreement(judge: nn.Module, pictures: Tensor, classes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Probability [N] that the judge gives to the class [N] of each attribute that pictures [N, 3, H, W] are meant to show."""
    parts = [judge(part) for part in pictures.split(MAX_BATCH)]
    logits = {name: torch.cat([part[name] for part in parts]) for name in classes}
    return {name: logits[name].softmax(1).gather(1, own[:, None])[:, 0] for name, own in classes.items()}


def sample_table(
    judge: nn.Module,
    samples: Tensor,
    prompts: pd.DataFrame,
    classes: Mapping[str, Tensor],
    own: Tensor,
    pictures: Tensor,
    trained: Tensor,
) -> pd.DataFrame:
    """Judge samples [N, n, 3, H, W] in [-1, 1] of N prompts, a row a sample.

    prompts: as `memlib.datasets.judged.judged_prompts` gives them. classes: of each attribute the class [N] that the prompt
    asks for. pictures: [M, 3, H, W], of which the mask `own` [N, M] says which belong to a prompt (its planted picture or, for
    a prompt without one, the drawings of its look) and `trained` [M] which a model may have seen.

    Columns: id (of the prompt), noise (number of the sample); distance to the nearest of its own pictures (root mean square
    over pixels); ratio of that to the distance of the nearest other picture that may have been seen, by which Yoon et al.
    (2023) call a sample a copy where it is below `memlib.truth.outcomes.RATIO` (`copies_ratio`); similarity to the planted
    picture (nan without), 1 minus the ratio, at least 0; agreement with the prompt, the judge's probability of its subject,
    and that of the other attributes by their names.
    """
    n, flat = samples.shape[1], samples.flatten(0, 1)
    own = own.repeat_interleave(n, 0)
    apart = torch.cdist(flat.flatten(1), pictures.flatten(1)) / flat[0].numel() ** 0.5
    infinite = float("inf")
    nearest = apart.masked_fill(~own, infinite).amin(1)
    ratio = nearest / apart.masked_fill(own | ~trained, infinite).amin(1)
    shown = agreement(judge, flat, {name: own.repeat_interleave(n) for name, own in classes.items()})
    planted = torch.tensor((prompts["row"] >= 0).tolist()).repeat_interleave(n)
    return pd.DataFrame(
        {
            "id": prompts["id"].repeat(n).to_numpy(),
            "noise": list(range(n)) * len(prompts),
            "distance": nearest.numpy(),
            "copies_ratio": (ratio < RATIO).numpy(),
            "similarity": (1 - ratio).clamp_min(0).where(planted, float("nan")).numpy(),
            "agreement": shown.pop("subject").numpy(),
            **{name: chance.numpy() for name, chance in shown.items()},
        }
    )
