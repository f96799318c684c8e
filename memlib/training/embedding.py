"""Training of the embedding that copies are looked for in, by a contrastive loss on altered pictures."""

from pathlib import Path

import torch
from torch import Tensor, nn

from memlib.tensors import to_float
from memlib.training.loop import Optimised, generator_of, optimise
from memlib.training.settings import EmbeddingConfig
from memlib.truth.embedding import altered


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The loss NT-Xent of Chen et al. (arXiv 2002.05709, eq. 1) of vectors [N, D], each to be found again by its partner's."""
    vectors = nn.functional.normalize(torch.cat([first, second]).float())
    likeness = (vectors @ vectors.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(vectors), device=vectors.device).roll(len(first))
    return nn.functional.cross_entropy(likeness, partner)


def train_embedding(network: nn.Module, images: Tensor, config: EmbeddingConfig, checkpoint: str | Path) -> Optimised:
    """Train on pictures uint8 [N, C, H, W], each of a batch altered twice; a batch is no larger than the set."""
    pictures = to_float(images)
    batch = min(config.batch, len(images))

    def loss_at(model: nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 5, step)
        shown = pictures[torch.randperm(len(pictures), generator=generator)[:batch]]
        views = [altered(shown, generator)[shard].to(device) for _ in range(2)]
        return contrastive_loss(*model(torch.cat(views)).chunk(2), config.temperature)

    run = optimise(network, loss_at, config, checkpoint, [images])
    network.eval()
    return run
