"""Small helpers on tensors that every part of the module shares; it imports nothing of memlib."""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def per_item(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Noise level as a tensor that broadcasts against `x` [N, ...]: one value, or one an item."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def to_float(images: Tensor) -> Tensor:
    """uint8 pictures in 0..255 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float pictures in [-1, 1] (values outside are cut) as uint8 in 0..255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def check_images(images: Tensor) -> Tensor:
    """Return float pictures [N, C, H, W] unchanged; raise ValueError if the shape is another or a value is not finite."""
    if images.ndim != 4:
        raise ValueError(f"pictures must have the shape [N, C, H, W]; these have {list(images.shape)}")
    bad = ~images.flatten(1).isfinite().all(dim=1)
    if bad.any():
        raise ValueError(
            f"picture {int(bad.nonzero()[0])} of {len(images)} has NaN or infinite values; remove or mend it"
        )
    return images


def item_seeds(ids: Iterable[object], seed: int) -> list[int]:
    """A seed an item, from its id and the common seed alone, so that no item depends on its neighbours or its place."""
    digests = (hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in ids)
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator an item; on the processor, so that a seed gives the same numbers whatever the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def check_seeds(seeds: Sequence[int] | None, x: Tensor) -> Sequence[int]:
    """Return the seeds; raise ValueError unless there is one for each of the items x [N, ...]."""
    if seeds is None or len(seeds) != len(x):
        raise ValueError(f"{len(x)} items need a seed each; there are {0 if seeds is None else len(seeds)}")
    return seeds


def normal(items: Sequence[torch.Generator], count: int, x: Tensor) -> Tensor:
    """Standard normal numbers [count, N, ...] for items x [N, ...], each item's from its own generator."""
    shape = (count, *x.shape[1:])
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return torch.stack([torch.randn(shape, generator=item, dtype=dtype) for item in items], 1).to(x)


def signs(items: Sequence[torch.Generator], count: int, x: Tensor) -> Tensor:
    """Random signs [count, N, ...] for items x [N, ...], each item's from its own generator."""
    shape = (count, *x.shape[1:])
    return torch.stack([2 * torch.randint(0, 2, shape, generator=item) - 1 for item in items], 1).to(x)


def total(x: Tensor, dim: int = -1) -> Tensor:
    """Sum along one axis, by halves: in an order that the length of this axis decides alone.

    A kernel's own sum groups the terms by the shape of the whole tensor, so an item's last digits would depend on its neighbours.
    """
    x = x.movedim(dim, 0)
    while len(x) > 1:
        half = len(x) // 2
        paired = x[:half] + x[half : 2 * half]
        x = torch.cat([paired, x[-1:]]) if len(x) % 2 else paired
    return x[0]


def average(x: Tensor, dim: int = -1) -> Tensor:
    """Mean along one axis, added up as in `total`."""
    return total(x, dim) / x.shape[dim]


def norm(x: Tensor) -> Tensor:
    """Euclidean length along the last axis, added up as in `total`."""
    return total(x.square()).sqrt()


def standard_error(samples: Tensor, exhaustive: bool) -> Tensor:
    """Standard error of the mean over samples [k, ...]: nan for a single one, 0 where they are all that there are."""
    if exhaustive:
        return torch.zeros_like(samples[0])
    if len(samples) == 1:
        return torch.full_like(samples[0], float("nan"))
    return samples.std(0) / len(samples) ** 0.5


def trapezoid_weights(nodes: Tensor) -> Tensor:
    """Weights [S + 1] of the trapezoid rule on increasing nodes."""
    step = nodes.diff()
    edge = torch.zeros(1, dtype=nodes.dtype)
    return (torch.cat([step, edge]) + torch.cat([edge, step])) / 2


def in_calls(function: Callable[..., Tensor], rows: int, pad: bool, *parts: Tensor) -> Tensor:
    """What a function gives for parts [N, ...], `rows` at a time, as one tensor.

    With `pad`, the last call is filled up with rows that are thrown away: kernels may round differently for another number
    of rows, so calls of one size make an item's result the same bytes whatever it comes with.
    """
    n = len(parts[0])
    if n <= rows and not (pad and n < rows):
        return function(*parts)
    found = []
    for start in range(0, n, rows):
        chunk = [part[start : start + rows] for part in parts]
        count = len(chunk[0])
        if pad and count < rows:
            fill = torch.arange(rows - count, device=parts[0].device) % count
            chunk = [torch.cat([part, part[fill.to(part.device)]]) for part in chunk]
        found.append(function(*chunk)[:count])
    return torch.cat(found)
