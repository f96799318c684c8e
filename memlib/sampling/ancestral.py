"""The stochastic sampler of Ho et al. (arXiv 2006.11239)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from memlib.fields import Field
from memlib.tensors import generators, normal


@torch.no_grad()
def sample_ancestral(field: Field, seeds: Sequence[int], sigmas: Tensor) -> Tensor:
    """Draw items [N, ...], one a seed, with fresh noise at every step (eq. 6 and 7).

    In variance-exploding coordinates the posterior of the next level b < a has the mean x0 + (b/a)^2 (x - x0) and the
    variance b^2 (1 - (b/a)^2), with x0 = x - a eps. One network evaluation a level; the last step gives x0.
    """
    levels = sigmas.sort(descending=True).values.tolist()
    items = generators(seeds)
    like = torch.zeros(len(seeds), *field.shape, device=field.device)
    x = levels[0] * normal(items, 1, like)[0]
    for here, there in pairwise([*levels, 0.0]):
        clean = x - here * field(x, here)
        keep = (there / here) ** 2
        x = clean + keep * (x - clean) + there * (1 - keep) ** 0.5 * normal(items, 1, like)[0]
    return x
