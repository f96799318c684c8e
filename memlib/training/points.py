"""A small network that learns the noise prediction of points in a few dimensions, for pictures of what learning changes."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from memlib.tensors import per_item


class PointDenoiser(nn.Module):
    """Noise prediction of points [N, d] at any noise level, by a multilayer perceptron of x / sqrt(1 + sigma^2) and log sigma."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        sizes = [d + 1, width, width, width]
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, d))

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = per_item(sigma, x).expand(len(x), 1)
        return self.layers(torch.cat([x * (1 + level**2).rsqrt(), level.log()], 1))


def fit(
    points: Tensor,
    sigma_min: float,
    sigma_max: float,
    steps: int,
    seed: int,
    width: int = 128,
    batch: int = 1024,
) -> PointDenoiser:
    """Train on points [N, d] by the denoising loss (Ho et al., arXiv 2006.11239, eq. 14), at noise levels even in log sigma.

    The learning rate falls from 0.003 to 0 along a cosine. What is learnt depends on the points and the seed alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PointDenoiser(points.shape[1], width).to(points.dtype)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    span = torch.tensor([sigma_min, sigma_max]).log()
    for _ in range(steps):
        clean = points[torch.randint(len(points), (batch,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator, dtype=points.dtype)
        sigma = (span[0] + (span[1] - span[0]) * torch.rand(batch, generator=generator)).exp().to(points)
        loss = (network(clean + sigma[:, None] * noise, sigma) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)
