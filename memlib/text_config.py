"""Settings of the trainings of the text-to-image model: sections `autoencoder`, `text` and `arm` of params.yaml."""

from dataclasses import dataclass

from memlib.config import PREDICTION_TYPES, LoopConfig


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
    prediction_type: str
    drop_prompt: float
    random_words: int
    threshold: float
    left_out: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.above("layers", "text_layers")
        self.above("length", least=2)
        self.levels()
        self.known_prediction(PREDICTION_TYPES[:2])
        if self.text_width % 32:
            raise ValueError(f"text.text_width must be a multiple of 32 (the width of a head); it is {self.text_width}")
        if not 0 <= self.left_out < 1:
            raise ValueError(f"text.left_out is {self.left_out}; it must be a share of the samples, below 1")
        if not 0 < self.drop_prompt < 1:
            raise ValueError(
                f"text.drop_prompt is {self.drop_prompt}; a share between 0 and 1 of the prompts must be dropped, "
                "or there is no unconditional prediction"
            )
