"""Settings of the trainings, checked before any work starts (kept apart so that checking them needs no torch)."""

from dataclasses import dataclass
from typing import ClassVar

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PRECISIONS = ("auto", "no", "bf16")


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the training loop, the same for every network."""

    section: ClassVar[str]  # of params.yaml

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    precision: str
    compile: bool
    checkpoint_every: int
    seed: int

    def __post_init__(self) -> None:
        self.above("steps", "batch", "checkpoint_every", "learning_rate")
        if self.precision not in PRECISIONS:
            raise ValueError(f"{self.section}.precision is {self.precision!r}; known: {', '.join(PRECISIONS)}")

    def above(self, *names: str, least: float = 0) -> None:
        """Raise ValueError for a setting that is not larger than `least`."""
        for name in names:
            if getattr(self, name) <= least:
                raise ValueError(f"{self.section}.{name} is {getattr(self, name)}; it must be larger than {least}")

    def levels(self) -> None:
        """Raise ValueError unless the channels can be normalised in groups and have an entry of `attention`, if any, a level."""
        if any(count % 16 for count in self.channels):
            raise ValueError(
                f"{self.section}.channels must be multiples of 16 (for group normalisation); they are {self.channels}"
            )
        attention = getattr(self, "attention", self.channels)
        if len(attention) != len(self.channels):
            raise ValueError(
                f"{self.section}.attention has {len(attention)} entries but {self.section}.channels has "
                f"{len(self.channels)}; give one a level"
            )


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Everything that decides how an image model is trained (section `train` of params.yaml)."""

    section = "train"

    channels: list[int]
    layers: int
    attention: list[bool]
    prediction_type: str
    beta_schedule: str
    mirror: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self.above("layers")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"train.prediction_type is {self.prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"train.beta_schedule is {self.beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}")
        self.levels()


@dataclass(frozen=True)
class AutoencoderConfig(LoopConfig):
    """How the autoencoder of the text-to-image model is trained (section `autoencoder`)."""

    section = "autoencoder"

    channels: list[int]
    latent_channels: int
    kl_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.above("latent_channels")
        self.levels()


@dataclass(frozen=True)
class TextConfig(LoopConfig):
    """How the text-to-image model is trained (section `text`; an arm lays its own settings over it)."""

    section = "text"

    length: int
    text_width: int
    text_layers: int
    channels: list[int]
    layers: int
    attention: list[bool]
    drop_prompt: float
    random_words: int
    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.above("layers", "text_layers")
        self.above("length", least=2)
        self.levels()
        if self.text_width % 32:
            raise ValueError(f"text.text_width must be a multiple of 32 (the width of a head); it is {self.text_width}")
        if not 0 < self.drop_prompt < 1:
            raise ValueError(
                f"text.drop_prompt is {self.drop_prompt}; a share between 0 and 1 of the prompts must be dropped, "
                "or there is no unconditional prediction"
            )
