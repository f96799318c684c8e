"""Models from a folder or by their name from the hub: safetensors weights only, no remote code."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler, UNet2DModel

from memlib.fields.unet import ROWS, UNetField
from memlib.processes import processes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SUPPORTED = (
    "unconditional models with a U-Net, and text-to-image pipelines with one, such as Stable Diffusion 1.x, 2.x and XL"
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_field(name: str | Path, dtype: torch.dtype = torch.float32, rows: int = ROWS) -> UNetField:
    """Noise prediction of a diffusers model, unconditional or text-to-image, on the device that accelerate finds.

    Its parameters are frozen. Raises ValueError, before any weights are loaded where a folder is named, for what is not a
    diffusers model, for pickled weights, and for a model that is not supported.
    """
    folder = Path(name)
    if (folder / "unet" / "config.json").exists():
        check_folder(folder)
    settings = UNet2DModel.load_config(folder / "unet") if (folder / "unet" / "config.json").exists() else {}
    if settings.get("_class_name") == "UNet2DModel":
        unet = UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, torch_dtype=dtype
        )
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        return UNetField(unet.requires_grad_(False).to(processes().device), scheduler, rows=rows)
    pipe = load_pipeline(name, dtype)
    pipe.unet.requires_grad_(False)
    text = pipe if getattr(pipe, "text_encoder", None) is not None else None
    return UNetField(pipe.unet, pipe.scheduler, text, rows)


def check_folder(folder: Path) -> None:
    """Raise ValueError unless a folder holds a U-Net and a scheduler that are supported, with safetensors weights."""
    if not (folder / "scheduler" / "scheduler_config.json").exists():
        raise ValueError(
            f"{folder} is not a diffusers model; it must hold unet/config.json and scheduler/scheduler_config.json"
        )
    unet = folder / "unet"
    if not list(unet.glob("*.safetensors")):
        pickled = sorted(path.name for path in unet.glob("*") if path.suffix in PICKLED)
        found = f", only {pickled[0]}, which is pickled and is not opened" if pickled else ""
        raise ValueError(f"{unet} has no safetensors weights{found}; save the model with safe_serialization=True")
    settings = UNet2DModel.load_config(unet)
    if settings["out_channels"] != settings["in_channels"]:
        raise ValueError(
            f"the network in {folder} also predicts a variance; only networks that predict the mean are supported"
        )
    if settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise ValueError(f"the network in {folder} is conditioned on classes; supported are {SUPPORTED}")


def load_pipeline(name: str | Path, dtype: torch.dtype = torch.float32) -> "DiffusionPipeline":
    """A pipeline from a folder, or by its name from the hub, on the device that accelerate finds.

    It has no safety checker, which would blacken pictures that are to be measured and looked at. Raises ValueError for a
    folder that is not a diffusers pipeline, for a name that is not found, and for a pipeline that is not supported.
    """
    from diffusers import DiffusionPipeline

    folder = Path(name)
    if folder.exists() and not (folder / "model_index.json").exists():
        raise ValueError(f"{name} is not a diffusers model; it must hold model_index.json, or unet/ and scheduler/")
    try:
        pipe = DiffusionPipeline.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except OSError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{name} is no folder of a model with safetensors weights, and the hub gives none of that name: {reason}"
        ) from error
    check_pipeline(pipe)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
        pipe.register_to_config(requires_safety_checker=False)
    return pipe.to(processes().device)


def check_pipeline(pipe: "DiffusionPipeline") -> None:
    """Raise ValueError unless the pipeline's network is a U-Net, with a text encoder or unconditional."""
    if getattr(pipe, "transformer", None) is not None:
        raise ValueError(f"{type(pipe).__name__} has a transformer instead of a U-Net; supported are {SUPPORTED}")
    for part in ("unet", "scheduler"):
        if getattr(pipe, part, None) is None:
            raise ValueError(f"{type(pipe).__name__} has no {part}; supported are {SUPPORTED}")
    if getattr(pipe, "text_encoder", None) is not None and getattr(pipe, "tokenizer", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no tokenizer; supported are {SUPPORTED}")
    if getattr(pipe.unet.config, "time_cond_proj_dim", None):
        raise ValueError("the U-Net is told the guidance scale, so the pipeline makes no unconditional prediction")


def check_text(pipe: "DiffusionPipeline") -> None:
    """Raise ValueError unless the pipeline makes pictures from text by a U-Net."""
    check_pipeline(pipe)
    if getattr(pipe, "text_encoder", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no text_encoder; a prompt needs a text-to-image pipeline")


def check_single_encoder(pipe: "DiffusionPipeline") -> None:
    """Raise ValueError for a pipeline whose prompts are more than one sequence of embeddings, such as Stable Diffusion XL."""
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError(
            f"{type(pipe).__name__} has two text encoders; embeddings of prompts are moved where there is one, as in "
            "Stable Diffusion 1.x and 2.x"
        )
