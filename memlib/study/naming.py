"""Detectors, their settings and the questions of the bench in words, for what a reader is shown."""

from collections.abc import Callable
from typing import Any

from memlib.evaluation.bench import ADAPTIVE, BLIND, FITTED_NAME
from memlib.tables import parse_setting

DETECTORS = {  # by the names of `memlib.detectors.ALL`
    "growth": "volume growth",
    "axes": "growth along carried axes",
    "edges": "growth of carried edges",
    "rate": "growth rate",
    "calibrated_growth": "calibrated growth",
    "flipd": "FLIPD",
    "flux": "p-Laplacian by flux",
    "derivatives": "p-Laplacian by derivatives",
    "ball": "p-Laplacian over a ball",
    "loss": "plain loss",
    "loss_curve": "losses at all levels",
    "length": "length of the prediction",
    "sima": "SimA",
    "secmi": "SecMI",
    "pia": "PIA",
    "pian": "PIAN",
    "clid": "CLiD",
    "rediffuse": "ReDiffuse",
    "pfami": "PFAMI",
    "gsa": "gradient of the loss",
    "calibrated_loss": "calibrated loss",
    "magnitude": "text magnitude",
    "sampled_magnitude": "magnitude while sampling",
    "one_step": "likeness after one step",
    "anisotropy": "alignment of predictions",
    "sail": "SAIL",
    "gradient_difference": "difference of gradients",
    "guided_change": "change over a guided step",
    "attention_entropy": "entropy of attention",
    "sampled_entropy": "entropy while sampling",
    "between_generations": "likeness of samples",
    "nearest_training": "nearest training picture",
    "png_size": "size as PNG",
    "variation": "total variation",
    "flat_share": "share of one colour",
    "looks": "classifier of looks",
    "nearest_picture": "nearest other picture",
    "prompt_length": "length of the prompt",
    "rarest_word": "rarest word",
}
KNOW_MORE = {  # what a detector is given beside the model and the item
    "calibrated_growth": "asks a second model",
    "calibrated_loss": "asks a second model",
    "nearest_training": "sees the training set",
    ADAPTIVE: "is given known non-members",
}
QUESTIONS = {  # by the kind of items and the contrast
    ("pictures", "seen once against kept out"): "Which pictures did training see?",
    ("pictures", "reproduced or not, x16"): "Which pictures does the model reproduce?",
    ("pictures", "planted against drawn freely"): "Which drawings were planted?",
    ("prompts", "planted against drawn freely"): "Which prompts belong to planted pictures?",
}
KINDS = {  # of questions, by the kind of a case that is no control
    "membership": "Was it in training?",
    "copies": "Was it planted?",
    "memorisation": "Is it reproduced?",
}


def detector_in_words(name: str) -> str:
    """A detector of the bench in words; the name itself where it has none, such as that of a reader's own."""
    detector, comma, how = name.partition(", ")
    return f"{DETECTORS.get(detector, detector)}{comma}{how.replace('learned', 'with labels')}"


def with_code(name: str) -> str:
    """A detector in words, with the name that one types behind it where it is another."""
    words = detector_in_words(name)
    return words if name == words.lower() or ", " in name else f"{words} ({name})"


def remark(name: str, baseline: str = "") -> str:
    """What a reader has to know of a detector before comparing it with others; "" for one of the model and the item alone."""
    if name == baseline:
        return "plain baseline"
    if name in BLIND:
        return "never looks at the model"
    return "fitted to labels" if name.endswith(FITTED_NAME) else KNOW_MORE.get(name, "")


def question(items: str, contrast: str) -> str:
    """What a contrast of such items asks; the contrast itself where it has no words of its own."""
    return QUESTIONS.get((items, contrast), contrast)


def setting_in_words(name: str) -> str:
    """A setting of a score table in words, numbers first, then where; what all settings of a detector share is left out."""
    setting = parse_setting(name)
    keys = [key for key in setting if key not in SHARED and not (key in ("sigma", "steps") and "step" in setting)]
    told = [SETTINGS.get(key, lambda value, key=key: f"{key.replace('_', ' ')} {value}")(setting[key]) for key in keys]
    return ", ".join(sorted(filter(None, told), key=lambda part: not part[0].isdigit()))


def _count(singular: str, plural: str) -> Callable[[int], str]:
    return lambda count: f"{count} {singular if count == 1 else plural}"


def _layer(layer: Any) -> str:
    """Which layer, of a parameter of a network the block that it is in."""
    block, *rest = str(layer).split(".")
    if not rest:
        return "all layers" if layer == "all" else f"layer {layer}"
    number = f" {rest[0]}" if rest[0].isdigit() else ""
    return f"a layer of {block.removesuffix('s').replace('_', ' ')}{number}"


SHARED = ("sampling_steps", "guidance", "ratio", "part")
SETTINGS: dict[str, Callable[[Any], str]] = {
    "draws": _count("noise", "noises"),
    "noises": _count("noise", "noises"),
    "directions": _count("direction", "directions"),
    "axes": _count("axis", "axes"),
    "steps": _count("step", "steps"),
    "generations": _count("sample", "samples"),
    "crops": lambda shares: f"{len(shares)} crops",
    "timesteps": lambda times: f"{len(times)} timesteps",
    "sigmas": lambda levels: f"{len(levels)} levels from sigma {min(levels):g} to {max(levels):g}",
    "sigma": lambda level: "at pure noise" if level == float("inf") else f"at sigma {level:.3g}",
    "sigma_min": lambda level: f"from sigma {level:g}",
    "rate_at": lambda level: f"the rate at sigma {level:.2g}",
    "step": lambda step: f"at step {step + 1}",
    "layer": _layer,
    "p": lambda p: f"p = {p:g}",
    "quantity": lambda name: {"flipd": "", "dispersion": "by their spread"}.get(name, f"by their {name}"),
    "prompt": lambda given: "with the caption" if given else "",
    "fitted": lambda _: "all settings",
}
