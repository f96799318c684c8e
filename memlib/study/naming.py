"""Detectors, their settings and the questions of the bench in words, for what a reader is shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from memlib.evaluation.bench import ADAPTIVE, BLIND, FITTED_NAME
from memlib.tables import parse_setting

UNSEEING = "never looks at the model"
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
MEASURES = {  # what a detector scores, all turned so that more means memorised, and where it comes from
    "growth": (
        "how much the volume around a picture grows along the probability-flow ODE, by the trace of the Jacobian",
        "Hasegawa & Yasuda, arXiv 2503.19429",
    ),
    "axes": (
        "the same growth, along random axes that are carried by exact derivatives",
        "Hasegawa & Yasuda, arXiv 2503.19429",
    ),
    "edges": (
        "the same growth, by differences to nearby points that are carried along, the paper's own procedure",
        "Hasegawa & Yasuda, arXiv 2503.19429",
    ),
    "rate": (
        "growth at the picture itself, at one noise level and without a path",
        "Hasegawa & Yasuda, arXiv 2503.19429",
    ),
    "calibrated_growth": (
        "volume growth minus that under a second model, trained without the pictures",
        "calibration: Watson et al., arXiv 2111.08440",
    ),
    "flipd": (
        "how few directions the data have around the picture: local intrinsic dimension",
        "Kamkari et al., arXiv 2406.03537; Ross et al., arXiv 2411.00113",
    ),
    "flux": (
        "p-Laplacian of the log-density at the picture, as the flux of a power of the score out of a sphere",
        "Brokman et al., arXiv 2505.08246",
    ),
    "derivatives": (
        "p-Laplacian of the log-density at the picture, by derivatives of the network",
        "Brokman et al., arXiv 2505.08246",
    ),
    "ball": (
        "p-Laplacian of the log-density, its mean over a ball around the picture",
        "Brokman et al., arXiv 2505.08246",
    ),
    "loss": (
        "how well the noise added to the picture is predicted: the training loss at one noise level",
        "Matsumoto et al., arXiv 2302.03262",
    ),
    "loss_curve": (
        "the training loss at several noise levels, from which labels make one score",
        "Matsumoto et al., arXiv 2302.03262",
    ),
    "length": (
        "how short the predicted noise is for the picture itself, without noise added",
        "that of SimA with squares for fourth powers",
    ),
    "sima": (
        "how small the noise predicted for the picture itself is, without noise added, by its fourth powers",
        "SimA, arXiv 2509.25003",
    ),
    "secmi": (
        "how far one deterministic step up in noise and one back miss the starting point",
        "Duan et al., arXiv 2302.01316",
    ),
    "pia": (
        "how well the noise predicted for the picture itself is found again when it is added",
        "Kong et al., arXiv 2305.18355",
    ),
    "pian": ("PIA, with that noise brought to the length of true noise", "Kong et al., arXiv 2305.18355"),
    "clid": (
        "by how much the caption lowers the loss of the picture",
        "Zhai et al., arXiv 2405.14800",
    ),
    "rediffuse": (
        "how near the picture is to the mean of what the model makes of it after noise is added",
        "ReDiffuse, arXiv 2405.20771",
    ),
    "pfami": (
        "by how much the loss is lower for the picture than for crops of it",
        "Fu et al., arXiv 2308.12143",
    ),
    "gsa": (
        "how short the gradient of the loss by the network's weights is, in one layer or in all",
        "Pang et al., arXiv 2308.06405",
    ),
    "calibrated_loss": (
        "plain loss minus that of a second model, trained without the pictures",
        "calibration: Watson et al., arXiv 2111.08440",
    ),
    "magnitude": (
        "how much the prompt changes what is predicted of pure noise, the first step of sampling",
        "Wen et al., arXiv 2407.21720",
    ),
    "sampled_magnitude": (
        "the same at later steps, while the prompt is sampled, at one of them or as a mean",
        "Wen et al., arXiv 2407.21720",
    ),
    "one_step": (
        "how alike, or how sharp, the pictures are that one step makes of different noises",
        "Webster, arXiv 2305.08694",
    ),
    "anisotropy": (
        "cosine between the noise predicted without the prompt and what the prompt changes of it, at little noise",
        "arXiv 2601.20642",
    ),
    "sail": (
        "sharpness at the first step: what the prompt changes, through its own derivative",
        "Jeon et al., ICML 2025",
    ),
    "gradient_difference": (
        "how much the prompt changes the gradient of the predicted noise's length at the first step",
        "documented in the code",
    ),
    "guided_change": (
        "how much the noise predicted under the prompt changes over the first step of guided sampling",
        "documented in the code",
    ),
    "attention_entropy": (
        "how evenly one layer attends to the prompt's tokens at the first step",
        "Ren et al., ECCV 2024",
    ),
    "sampled_entropy": (
        "how evenly all layers attend to the tokens at the last steps of sampling",
        "Ren et al., ECCV 2024",
    ),
    "between_generations": (
        "how small the distance is between samples of one prompt, by their least similar tiles",
        "Carlini et al., arXiv 2301.13188",
    ),
    "nearest_training": (
        "how near a prompt's samples come to the training set, which the detector is given",
        "an upper bound of this study",
    ),
    "png_size": ("how few bytes the picture takes as PNG", UNSEEING),
    "variation": ("how little neighbouring pixels differ", UNSEEING),
    "flat_share": ("share of the pixels that have the commonest colour", UNSEEING),
    "looks": ("a classifier of labelled pictures by their colours", UNSEEING),
    "nearest_picture": ("how near the picture is to another of the training set", UNSEEING),
    "prompt_length": ("how many words the prompt has", UNSEEING),
    "rarest_word": ("how few training captions hold the prompt's rarest word", UNSEEING),
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
SHARES = {"slots.parquet": "pixel AUROC"}  # what criteria call a share that is none, by the table of its items
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
        return UNSEEING
    return "fitted to labels" if name.endswith(FITTED_NAME) else KNOW_MORE.get(name, "")


def training_in_short(training: str) -> str:
    """A way of training in few letters, for a list on a phone: the share planted, the steps, or the first words."""
    first = training.partition(" from ")[0].partition(", ")[0]
    share = first.removeprefix("planted share ")
    return f"{share} planted" if share != first else first


def statistic_in_words(statistic: str, items: str) -> str:
    """The statistic of a criterion by the name of what it measures; items: the path of their table."""
    return SHARES.get(Path(items).name, statistic) if statistic == "share" else statistic


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
