"""Settings of a training, checked before any work starts (kept apart so that checking them needs no torch)."""

from dataclasses import dataclass

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PRECISIONS = ("auto", "no", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what is trained (section `train` of params.yaml)."""

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    channels: list[int]
    layers: int
    attention: list[bool]
    prediction_type: str
    beta_schedule: str
    mirror: bool
    precision: str
    compile: bool
    checkpoint_every: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "layers", "checkpoint_every", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be larger than 0")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"train.prediction_type is {self.prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(f"train.beta_schedule is {self.beta_schedule!r}; known: {', '.join(BETA_SCHEDULES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"train.precision is {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"train.attention has {len(self.attention)} entries but train.channels has {len(self.channels)}; give one a level"
            )
        if any(count % 16 for count in self.channels):
            raise ValueError(
                f"train.channels must be multiples of 16 (for group normalisation); they are {self.channels}"
            )
