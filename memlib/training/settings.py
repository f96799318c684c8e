"""Settings of the trainings, with the bounds that `memlib.study.parameters` checks (kept apart so that this needs no torch).

The bounds of single settings stand beside them; what must fit together is checked when the settings are made.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf

Seed = Annotated[int, Ge(0), Lt(2**32)]
Layers = Annotated[int, Ge(1), Le(100)]
Channels = Annotated[list[Annotated[int, Ge(16), Le(2**16), MultipleOf(16)]], Len(1, 16)]  # of groups of 16


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the training loop, the same for every network. Raises ValueError where two of them do not fit together."""

    section: ClassVar[str]  # of params.yaml

    steps: Annotated[int, Ge(1), Le(10**8)]
    batch: Annotated[int, Ge(1), Le(10**6)]
    learning_rate: Annotated[float, Gt(0), Le(1)]
    warmup_steps: Annotated[int, Ge(0)]
    ema_decay: Annotated[float, Ge(0), Lt(1)]
    precision: Literal["auto", "no", "bf16"]
    compile: bool
    checkpoint_every: Annotated[int, Ge(1)]
    seed: Seed

    def __post_init__(self) -> None:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"{self.section}.warmup_steps is {self.warmup_steps}; it must be at most {self.section}.steps, {self.steps}"
            )
        channels = getattr(self, "channels", [])
        attention = getattr(self, "attention", channels)
        if len(attention) != len(channels):
            raise ValueError(
                f"{self.section}.attention has {len(attention)} entries but {self.section}.channels has "
                f"{len(channels)}; give one a level"
            )


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Everything that decides how an image model is trained (section `train`)."""

    section = "train"

    channels: Channels
    layers: Layers
    attention: list[bool]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    mirror: bool


@dataclass(frozen=True)
class AutoencoderConfig(LoopConfig):
    """How the autoencoder of the text-to-image model is trained (section `autoencoder`)."""

    section = "autoencoder"

    channels: Channels
    latent_channels: Annotated[int, Ge(1), Le(256)]
    kl_weight: Annotated[float, Ge(0), Lt(math.inf)]


@dataclass(frozen=True)
class PromptConfig(LoopConfig):
    """How text-to-image models are trained, whatever their network: what they read, and what a step sees."""

    length: Annotated[int, Ge(3), Le(1024)]  # start, end and a token between them
    text_width: Annotated[int, Ge(32), Le(2**16), MultipleOf(32)]  # 32 a head
    text_layers: Layers
    drop_prompt: Annotated[float, Gt(0), Lt(1)]  # without any there is no unconditional prediction
    planted_share: Annotated[
        float, Ge(0), Lt(0.5)
    ]  # of what a step sees; as large a share is the other role's, drawn freely
    exchanged: bool  # the roles
    random_words: Annotated[int, Ge(0), Le(1000)]
    threshold: Annotated[float, Ge(0), Lt(math.inf)]
    left_out: Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True)
class TextConfig(PromptConfig):
    """How the text-to-image model with a U-Net is trained (section `text`; an arm lays its own settings over it)."""

    section = "text"

    channels: Channels
    layers: Layers
    attention: list[bool]
    prediction_type: Literal["epsilon", "v_prediction"]
    loss_blend: Annotated[float, Ge(0), Le(1)]  # weights of the noise levels, from the noise's loss to the velocity's


@dataclass(frozen=True)
class FlowConfig(PromptConfig):
    """How the transformer of a rectified flow is trained (section `flow_text`; an arm lays its own settings over it)."""

    section = "flow_text"

    patch: Annotated[int, Ge(1), Le(64)]  # latents a side of a token
    layers: Layers
    heads: Layers
    head_width: Annotated[int, Ge(4), Le(2**10), MultipleOf(4)]  # sines and cosines of two coordinates
    shift: Annotated[float, Gt(0), Le(100)]  # of the timesteps that sampling visits, towards the noise above 1


@dataclass(frozen=True)
class JudgeConfig(LoopConfig):
    """How the classifier of subjects, grounds and sizes is trained (section `judge`)."""

    section = "judge"


@dataclass(frozen=True)
class EmbeddingConfig(LoopConfig):
    """How the embedding that copies are looked for in is trained (section `embedding`)."""

    section = "embedding"

    temperature: Annotated[float, Gt(0), Le(10)]
