"""What a network has been asked once is not computed again: its predictions and their derivatives, remembered row by row.

An answer is remembered by the bytes of what was asked: the noisy item, its noise level, its condition, the size of the network's
call and the way of computing. So what is remembered is what would be computed, to the last bit.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LIMIT = 2**28  # bytes of answers that are kept


@dataclass
class Count:
    """Network evaluations made while it runs (see `counting`): rows of forward and backward passes, forward mode counting two.

    Rows that only fill up a call are not counted.
    """

    made: int = 0


_running: list[Count] = []
_known = False  # whether the call that is under way has been counted


class Memory:
    """Answers of one network, row by row, of which the oldest go when they take more than `limit` bytes."""

    def __init__(self, network: torch.nn.Module, limit: int = LIMIT) -> None:
        self.network, self.limit = network, limit
        self.size = 0
        self._rows: dict[Hashable, Tensor] = {}
        self._state = _state(network)

    def serves(self, *given: Tensor) -> bool:
        """Whether an answer may be one that is remembered.

        Not while a derivative is taken, which needs the computation itself, and not while the network has other hooks, weights
        or attention processors than it had at first.
        """
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            return False
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*given, *self.network.parameters())):
            return False
        return _state(self.network) == self._state

    def recall(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """The rows [N, ...] of N keys; `compute` gives those that are not known, by their numbers."""
        known = {key: self._rows[key] for key in keys if key in self._rows}
        missing: dict[Hashable, int] = {}
        for number, key in enumerate(keys):
            if key not in known:
                missing.setdefault(key, number)
        if missing:
            for key, row in zip(missing, compute([*missing.values()]), strict=True):
                known[key] = row
                self._keep(key, row.clone())
        return torch.stack([known[key] for key in keys])

    def _keep(self, key: Hashable, row: Tensor) -> None:
        self._rows[key] = row
        self.size += row.nbytes
        while self.size > self.limit:
            self.size -= self._rows.pop(next(iter(self._rows))).nbytes


def row_digests(x: Tensor) -> list[bytes]:
    """A digest of the bytes of each row [N, ...]."""
    rows = x.detach().cpu().reshape(len(x), -1).contiguous().view(torch.uint8).numpy()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def way_of_computing(x: Tensor) -> tuple[Any, ...]:
    """What decides how a network computes beside what it is asked: attention's kernels, and precision."""
    cuda = torch.backends.cuda
    kernels = (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )
    return *kernels, torch.is_autocast_enabled(x.device.type), x.dtype, x.device


@contextmanager
def counting(*networks: torch.nn.Module) -> Iterator[Count]:
    """Count the evaluations that are made of networks, by fields (see `counted_call`) and by others.

    A call from elsewhere, such as a pipeline's own loop, counts all of its rows.
    """
    count = Count()

    def see(_: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not _known:
            count.made += len(arguments[0] if arguments else next(iter(named.values())))

    handles = [network.register_forward_pre_hook(see, with_kwargs=True) for network in networks]
    _running.append(count)
    try:
        yield count
    finally:
        _running.remove(count)
        for handle in handles:
            handle.remove()


def count_rows(rows: int) -> None:
    """Count evaluations that no call of a network shows, as those of a backward pass."""
    for count in _running:
        count.made += rows


@contextmanager
def counted_call(rows: int) -> Iterator[None]:
    """A call of a network of which so many rows are wanted."""
    global _known
    count_rows(rows * (2 if torch.autograd.forward_ad._current_level >= 0 else 1))
    _known = True
    try:
        yield
    finally:
        _known = False


def _state(network: torch.nn.Module) -> tuple[Any, ...]:
    modules = list(network.modules())
    return (
        [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules],
        [id(module.processor) for module in modules if hasattr(module, "processor")],
        [(weight.data_ptr(), weight._version) for weight in network.parameters()],
    )
