"""Every detector by its name, one line each: `find(name)` gives it, and `memlib score` and the study know it by this line."""

from importlib import import_module
from typing import TYPE_CHECKING

from memlib.files import suggest

if TYPE_CHECKING:
    from memlib.detectors.api import Detector

ALL = {
    "growth": "memlib.detectors.volume:GROWTH",
    "axes": "memlib.detectors.volume:AXES",
    "edges": "memlib.detectors.volume:EDGES",
    "rate": "memlib.detectors.volume:RATE",
    "calibrated_growth": "memlib.detectors.volume:CALIBRATED_GROWTH",
    "flipd": "memlib.detectors.geometry:FLIPD",
    "flux": "memlib.detectors.p_laplacian:FLUX",
    "derivatives": "memlib.detectors.p_laplacian:DERIVATIVES",
    "ball": "memlib.detectors.p_laplacian:BALL",
    "loss": "memlib.detectors.denoising:LOSS",
    "loss_curve": "memlib.detectors.denoising:LOSS_CURVE",
    "length": "memlib.detectors.denoising:LENGTH",
    "sima": "memlib.detectors.denoising:SIMA",
    "secmi": "memlib.detectors.denoising:SECMI",
    "pia": "memlib.detectors.denoising:PIA",
    "pian": "memlib.detectors.denoising:PIAN",
    "clid": "memlib.detectors.denoising:CLID",
    "rediffuse": "memlib.detectors.variations:REDIFFUSE",
    "pfami": "memlib.detectors.variations:PFAMI",
    "gsa": "memlib.detectors.gradients:GSA",
    "calibrated_loss": "memlib.detectors.denoising:CALIBRATED_LOSS",
    "magnitude": "memlib.detectors.text:MAGNITUDE",
    "sampled_magnitude": "memlib.detectors.text:SAMPLED_MAGNITUDE",
    "one_step": "memlib.detectors.first_step:ONE_STEP",
    "anisotropy": "memlib.detectors.first_step:ANISOTROPY",
    "sail": "memlib.detectors.first_step:SAIL",
    "gradient_difference": "memlib.detectors.first_step:GRADIENT_DIFFERENCE",
    "guided_change": "memlib.detectors.first_step:GUIDED_CHANGE",
    "attention_entropy": "memlib.detectors.attention:ATTENTION_ENTROPY",
    "sampled_entropy": "memlib.detectors.attention:SAMPLED_ENTROPY",
    "between_generations": "memlib.detectors.samples:BETWEEN",
    "nearest_training": "memlib.detectors.samples:NEAREST",
    "png_size": "memlib.detectors.blind:PNG_SIZE",
    "variation": "memlib.detectors.blind:VARIATION",
    "flat_share": "memlib.detectors.blind:FLAT_SHARE",
    "looks": "memlib.detectors.blind:LOOKS",
    "nearest_picture": "memlib.detectors.blind:NEAREST_PICTURE",
    "prompt_length": "memlib.detectors.blind:PROMPT_LENGTH",
    "rarest_word": "memlib.detectors.blind:RAREST_WORD",
}
LEARNED = (
    "loss_curve",
    "gsa",
    "looks",
)  # many scores to be made one with labels, by `memlib.evaluation.combination.learned`


def find(name: str) -> "Detector":
    """The detector of that name; raises ValueError, with the nearest name, for another."""
    if name not in ALL:
        raise ValueError(f"there is no detector {name!r}{suggest(name, ALL)}")
    module, attribute = ALL[name].split(":")
    return getattr(import_module(module), attribute)
