"""The processes that work together."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes that accelerate or torchrun has started together, and the device of this one.

    Without a GPU they must be told so: each would work by itself, and all of them write.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
