"""Detectors and their settings in a reader's words."""

from typing import Any

from memlib.evaluation.bench import ADAPTIVE, BLIND, FIT, FITTED_NAME, LEARNED, RANKS
from memlib.tables import parse_setting

DETECTORS = {
    "growth": "Volume growth",
    "axes": "Volume growth, carried axes",
    "edges": "Volume growth, finite differences",
    "rate": "Volume growth rate",
    "calibrated_growth": "Volume growth, calibrated",
    "flipd": "Local intrinsic dimension (FLIPD)",
    "flux": "p-Laplacian by flux",
    "derivatives": "p-Laplacian by derivatives",
    "ball": "p-Laplacian in a ball",
    "loss": "Denoising loss",
    "loss_curve": "Loss curve",
    "length": "Length of the noise prediction",
    "sima": "Fourth powers of the noise prediction (SimA)",
    "secmi": "Error of a step and back (SecMI)",
    "pia": "Proximal initialisation (PIA)",
    "pian": "Proximal initialisation, normalised (PIAN)",
    "clid": "Loss without the prompt minus with it (CLiD)",
    "rediffuse": "Distance to variations (ReDiffuse)",
    "pfami": "Loss of crops minus own loss (PFAMI)",
    "gsa": "Length of the gradient (GSA)",
    "calibrated_loss": "Denoising loss, calibrated",
    "magnitude": "Text magnitude, first step",
    "sampled_magnitude": "Text magnitude while sampling",
    "one_step": "Pictures after one step",
    "anisotropy": "Alignment at pure noise",
    "sail": "Sharpness at the first step (SAIL)",
    "gradient_difference": "Difference of gradients",
    "guided_change": "Change over a guided step",
    "attention_entropy": "Attention entropy, first step",
    "sampled_entropy": "Attention entropy while sampling",
    "between_generations": "Likeness of a prompt's samples",
    "nearest_training": "Nearest training picture to the samples",
    "png_size": "Size as PNG",
    "variation": "Total variation",
    "flat_share": "Share of flat background",
    "looks": "Colours and their spread",
    "nearest_picture": "Nearest other training picture",
    "prompt_length": "Length of the prompt",
    "rarest_word": "Rarest word of the prompt",
    RANKS: "All detectors, mean of ranks",
    ADAPTIVE: "All detectors, AdaDetect",
    LEARNED: "All detectors, logistic regression",
}
KNOW_MORE = {  # what a detector is given beside the model and the item
    "calibrated_growth": "asks a second model",
    "calibrated_loss": "asks a second model",
    "nearest_training": "sees the training set",
    ADAPTIVE: "is given known non-members",
    LEARNED: "fitted to labels",
}
VALUES = {  # of a setting, in this order
    "sigma": "noise level {}",
    "sigmas": "noise levels {}",
    "sigma_min": "from noise level {}",
    "rate_at": "rate at noise level {}",
    "ratio": "each level {} times the last",
    "p": "p = {}",
    "power": "power {}",
    "quantity": "reading: {}",
    "part": "reading: {}",
    "crops": "crops of {} of a side",
    "guidance": "guidance {}",
    "step": "step {} of sampling",
}
COUNTS = {
    "draws": "draw of noise|draws of noise",
    "noises": "noise|noises",
    "directions": "random direction|random directions",
    "axes": "axis|axes",
    "steps": "step|steps",
    "sampling_steps": "step of sampling|steps of sampling",
    "generations": "sample|samples",
}


def detector(name: str) -> str:
    """A detector, or a row of `memlib.evaluation.bench.judge`, in words; its own name where there are none."""
    return DETECTORS.get(name.removesuffix(FITTED_NAME), name)


def remark(name: str, baseline: str = "") -> str:
    """What a reader has to know of a detector before comparing it with others; "" for one of the model and the item alone."""
    if name == baseline:
        return "plain baseline"
    if name in BLIND:
        return "never looks at the model"
    return "fitted to labels" if name.endswith(FITTED_NAME) else KNOW_MORE.get(name, "")


def setting(name: str) -> str:
    """A setting, as `memlib.tables.setting_name` writes it, in words; "" where there is nothing to say."""
    if name == FIT:
        return "all settings together"
    said = parse_setting(name)
    if "step" in said:
        said = {"step": said["step"] + 1} | {
            key: said[key] for key in said if key not in ("step", "steps", "sampling_steps")
        }
    words = [form.format(_plain(said[key])) for key, form in VALUES.items() if said.get(key, "flipd") != "flipd"]
    for key, forms in COUNTS.items():
        if key in said:
            one, several = forms.split("|")
            words.append(f"{said[key]} {one if said[key] == 1 else several}")
    if "timesteps" in said:
        words.append(f"{len(said['timesteps'])} timesteps")
    if "layer" in said:
        words.append({"all": "all layers"}.get(said["layer"], "one layer of the network"))
    if said.get("prompt"):
        words.append("under the prompt")
    return ", ".join(words)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if value == float("inf"):
        return "∞"
    return value if isinstance(value, str) else f"{value:.3g}"
