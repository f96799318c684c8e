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

    def known_prediction(self, known: tuple[str, ...]) -> None:
        """Raise ValueError unless the prediction type is one of the known ones."""
        if self.prediction_type not in known:
            raise ValueError(f"{self.section}.prediction_type is {self.prediction_type!r}; known: {', '.join(known)}")

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
        self.known_prediction(PREDICTION_TYPES)
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"train.beta_schedule is {self.beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}")
        self.levels()
