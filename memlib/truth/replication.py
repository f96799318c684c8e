"""Ground truth: which training images the model reproduces."""

from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from memlib.models import NetworkNoise
from memlib.ode import sample, sigma_grid

RATIO = 1 / 3


class Matches(NamedTuple):
    """For N generated images: the nearest training image [N], the distance to it and to the second nearest [N] (pixels, L2)."""

    nearest: Tensor
    distance: Tensor
    second_distance: Tensor

    @property
    def ratio(self) -> Tensor:
        """Distance to the nearest over distance to the second nearest training image [N]; small for a copy."""
        return self.distance / self.second_distance


def match(generated: Tensor, training: Tensor, mirrored: bool = False) -> Matches:
    """Nearest and second nearest training image of each generated one, both as [N, ...] on one scale.

    Every training image is to be listed once, however often it was seen; one that was also seen `mirrored` counts as one
    with its mirror image, at the smaller distance of the two. Raises ValueError with fewer than two.
    """
    if len(training) < 2:
        raise ValueError(
            f"the nearest and second nearest training image need at least two of them; there are {len(training)}"
        )
    views = [training.flatten(1), training.flip(-1).flatten(1)] if mirrored else [training.flatten(1)]
    found = [
        torch.stack([torch.cdist(block, view) for view in views]).amin(0).topk(2, largest=False)
        for block in generated.flatten(1).split(4096)
    ]
    distances, indices = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
    return Matches(indices[:, 0], distances[:, 0], distances[:, 1])


def sample_and_match(
    eps: NetworkNoise, training: Tensor, samples: int, steps: int, seed: int, mirrored: bool = False
) -> Matches:
    """Matches of that many samples drawn by so many steps of the Heun sampler; training [N, C, H, W] in [-1, 1].

    A seed starts every model from the same noise.
    """
    sigmas = sigma_grid(eps.sigma_min, eps.sigma_max, steps)
    generator = torch.Generator().manual_seed(seed)
    generated = sample(eps, (samples, *training.shape[1:]), sigmas, generator, device=eps.device)
    return match(generated.cpu().clamp(-1, 1), training, mirrored)


def is_copy(matches: Matches) -> Tensor:
    """Whether each generated image is a copy: at less than a third of the distance to the second nearest training image.

    The criterion of Yoon et al. (Diffusion probabilistic models generalize when they fail to memorize, 2023) and
    Gu et al. (arXiv 2310.02664).
    """
    return matches.ratio < RATIO


def own_ratio(generated: Tensor, own: Tensor, training: Tensor) -> Tensor:
    """Distance of each generated image to the training image of number `own` [N] over that to the nearest other one [N].

    Below a third it is a copy of its own; 1 minus the ratio, at least 0, is used as its similarity to it.
    """
    distances = torch.cdist(generated.flatten(1), training.flatten(1))
    nearest_other = distances.scatter(1, own[:, None], float("inf")).amin(1)
    return distances.gather(1, own[:, None])[:, 0] / nearest_other


def reproduced(matches: Matches, n_training: int) -> pd.DataFrame:
    """Per training image, in how many generated images it is copied (`generated_copies`) and whether in any (`reproduced`)."""
    counts = torch.bincount(matches.nearest[is_copy(matches)], minlength=n_training)
    return pd.DataFrame({"generated_copies": counts.numpy(), "reproduced": (counts > 0).numpy()})
