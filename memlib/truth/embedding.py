"""An embedding in which a picture lies near its blurred, shifted and mirrored copies, and far from other pictures."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

DIMENSIONS = 64
MAX_BATCH = 1024  # pictures in one call
SHIFT = 8  # copies are shifted by up to this part of the side
BLUR = 1.0  # pixels, standard deviation of the strongest blur
NOISE = 0.1  # standard deviation of the strongest noise, on [-1, 1]


def build_embedding(channels: int, size: int, width: int = 32) -> nn.Module:
    """Untrained network from pictures [N, channels, size, size] to vectors [N, DIMENSIONS], halving them twice."""
    side = -(-size // 4)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 1, 1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, 2, 1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        nn.GroupNorm(8, 2 * width),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, DIMENSIONS),
    )


def load_embedding(path: str | Path, channels: int, size: int) -> nn.Module:
    """A trained embedding of pictures [N, channels, size, size], from safetensors weights."""
    network = build_embedding(channels, size)
    network.load_state_dict(load_file(path))
    return network.eval()


@torch.no_grad()
def embed(network: nn.Module, pictures: Tensor) -> Tensor:
    """Vectors of length 1 [N, DIMENSIONS] of pictures [N, C, H, W] in [-1, 1]."""
    return torch.cat([nn.functional.normalize(network(part)) for part in pictures.split(MAX_BATCH)])


def embedding_distance(network: nn.Module, samples: Tensor, pictures: Tensor) -> Tensor:
    """Euclidean distance [N, M], from 0 to 2, between the vectors of samples and pictures, both [..., C, H, W] in [-1, 1]."""
    return torch.cdist(embed(network, samples), embed(network, pictures))


def altered(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture [N, C, H, W] in [-1, 1] blurred, shifted (the edge repeated), mirrored or not, and with a little noise."""
    n, _, height, width = pictures.shape
    mirror = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    pictures = torch.where(mirror, pictures.flip(-1), pictures)
    reach = max(1, height // SHIFT)
    down, right = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator)
    y, x = ((torch.arange(side) - by).clamp(0, side - 1) for side, by in ((height, down), (width, right)))
    pictures = pictures[torch.arange(n)[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
    blur = BLUR * torch.rand(n, generator=generator)
    noise = NOISE * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
    return (blurred(pictures, blur) + noise).clamp(-1, 1)


def blurred(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Each picture [N, C, H, W] under a Gaussian of standard deviation sigma [N], in pixels; the edge is repeated."""
    n, channels = pictures.shape[:2]
    offset = torch.arange(-3, 4)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = nn.functional.pad(pictures, (3, 3, 3, 3), mode="replicate").reshape(1, n * channels, *_padded(pictures))
    for shape in ((-1, 1, 7, 1), (-1, 1, 1, 7)):
        flat = nn.functional.conv2d(flat, kernel.reshape(shape), groups=n * channels)
    return flat.reshape(pictures.shape)


def _padded(pictures: Tensor) -> tuple[int, int]:
    return pictures.shape[2] + 6, pictures.shape[3] + 6
