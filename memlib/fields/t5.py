"""The tokens of T5 in the prompts of Stable Diffusion 3; trainings import this, so it knows nothing of fields."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

T5_LENGTH = "max_sequence_length"  # argument of the pipeline, and entry of a text encoder's configuration


def usual(pipe: "DiffusionPipeline", name: str) -> Any:
    """The value of an argument that a pipeline samples with where none is given."""
    return inspect.signature(type(pipe).__call__).parameters[name].default


def t5_length(pipe: "DiffusionPipeline") -> int:
    """How many tokens of T5, or of zeros where there is none, the prompts of an SD3 pipeline have.

    The usual ones of diffusers, unless the configuration of its first text encoder names another number.
    """
    return getattr(pipe.text_encoder.config, T5_LENGTH, usual(pipe, T5_LENGTH))
