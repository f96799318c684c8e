"""Models from a folder or by their name from the hub: safetensors weights only, no remote code."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from memlib.fields.network import ROWS, NetworkField
from memlib.fields.schedules import FLOWS, SCHEDULERS, FlowSchedule, check_scheduler
from memlib.fields.transformer import ADAPTERS, TransformerField, find
from memlib.fields.unet import UNetField
from memlib.processes import processes

SUPPORTED = (
    "unconditional models with a U-Net, and text-to-image pipelines with one, such as Stable Diffusion 1.x, 2.x and XL, or with "
    f"one of the transformers {', '.join(ADAPTERS)}"
)
LIBRARIES = ("diffusers", "transformers")  # of a pipeline's parts, beside the modules of diffusers' pipelines
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INDEX = "model_index.json"
NETWORKS = ("unet", "transformer")  # the part of a pipeline that predicts
NO_CODE = "no remote code is run, only what the installed diffusers and transformers have"


def load_field(name: str | Path, dtype: torch.dtype = torch.float32, rows: int = ROWS) -> NetworkField:
    """Noise prediction of a diffusers model, unconditional or text-to-image, on the device that accelerate finds.

    Its parameters are frozen. Raises ValueError, before any weights are loaded where a folder is named, for what is not a
    diffusers model, for broken files, for pickled weights, for remote code, and for a model that is not supported.
    """
    folder = Path(name)
    part = next((part for part in NETWORKS if (folder / part / "config.json").exists()), None)
    network = check_folder(folder, part) if part else {}
    if network.get("_class_name") == "UNet2DModel":
        if (folder / INDEX).exists():
            check_index(folder)
        kind = read_config(folder / "scheduler" / "scheduler_config.json").get("_class_name")
        scheduler = check_scheduler(scheduler_class(kind).from_pretrained(folder / "scheduler", local_files_only=True))
        unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True, dtype=dtype)
        return UNetField(unet.requires_grad_(False).to(processes().device), scheduler, rows=rows)
    field = field_of(load_pipeline(name, dtype), rows)
    field.network.requires_grad_(False)
    return field


def field_of(pipe: DiffusionPipeline, rows: int = ROWS) -> NetworkField:
    """Noise prediction of a pipeline's U-Net or transformer; raises ValueError for one that is not supported."""
    if hasattr(pipe, "transformer"):
        return TransformerField(pipe, rows)
    text = pipe if getattr(pipe, "text_encoder", None) is not None else None
    return UNetField(pipe.unet, pipe.scheduler, text, rows)


def check_folder(folder: Path, part: str) -> dict[str, Any]:
    """Configuration of the network in a folder, which lies in its `part`.

    Raises ValueError unless there are a network and a scheduler that are supported, with safetensors weights.
    """
    if not (folder / "scheduler" / "scheduler_config.json").exists():
        raise ValueError(
            f"{folder} is not a diffusers model; it must hold {part}/config.json and scheduler/scheduler_config.json"
        )
    check_files(folder)
    network = folder / part
    if not list(network.glob("*.safetensors")):
        pickled = sorted(path.name for path in network.glob("*") if path.suffix in PICKLED)
        found = f", only {pickled[0]}, which is pickled and is not opened" if pickled else ""
        raise ValueError(f"{network} has no safetensors weights{found}; save the model with safe_serialization=True")
    settings = read_config(network / "config.json")
    if part == "transformer":
        find(str(settings.get("_class_name")))
    check_network(folder, part, settings)
    return settings


def check_network(name: str | Path, part: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a network, by its configuration, that is not given a noisy picture alone to predict its mean.

    A U-Net that also predicts a variance, or is conditioned on classes; a transformer that is given more than a picture.
    """
    given, predicted = settings.get("in_channels"), settings.get("out_channels")
    if part == "transformer":
        if predicted not in (None, given, 2 * (given or 0)):
            raise ValueError(
                f"the network in {name} is given {given} channels to predict {predicted}: not a picture alone"
            )
        return
    if predicted != given:
        raise ValueError(
            f"the network in {name} also predicts a variance; only networks that predict the mean are supported"
        )
    if settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise ValueError(f"the network in {name} is conditioned on classes; supported are {SUPPORTED}")


def check_files(folder: Path) -> None:
    """Raise ValueError, with its name, for a configuration or file of weights in a model's folder that is broken."""
    for path in sorted(folder.glob("*/*config.json")):
        read_config(path)
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is broken or cut off ({error}); save or download the model again") from error


def read_config(path: Path) -> dict[str, Any]:
    """Content of a JSON file; raises ValueError unless it holds an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); save or download the model again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; save or download the model again")
    return content


def check_index(name: str | Path) -> dict[str, None]:
    """Parts that a pipeline with a transformer goes without, as `from_pretrained` must be told, such as the T5 of SD3.

    Raises ValueError, by `model_index.json` alone, for a pipeline with code of its own and one that is not supported.
    """
    folder = Path(name)
    index = read_config(folder / INDEX) if folder.exists() else DiffusionPipeline.load_config(name)
    kind = index.get("_class_name")
    known = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(known, type) and issubclass(known, DiffusionPipeline)):
        raise ValueError(f"{name} is a pipeline of the class {kind!r}, which diffusers does not have; {NO_CODE}")
    parts = {part: value for part, value in index.items() if isinstance(value, list) and value != [None, None]}
    for part, value in parts.items():
        library = value[0] if len(value) == 2 and isinstance(value[0], str) else ""
        known = library in LIBRARIES or hasattr(diffusers.pipelines, library)
        if not known or (folder / part / f"{library}.py").exists():
            raise ValueError(f"{name} has a {part} of the class {value!r} with code of its own; {NO_CODE}")
    transformer = str(parts["transformer"][1]) if "transformer" in parts else None
    check_parts(kind, parts, transformer)
    if transformer is None or find(transformer).schedule is not FlowSchedule:
        scheduler_class(parts["scheduler"][1])
    else:
        flow = known_scheduler(parts["scheduler"][1], FLOWS)
        if folder.exists():
            FlowSchedule(flow.from_pretrained(folder / "scheduler", local_files_only=True))
    return {} if transformer is None else {part: None for part, value in index.items() if value == [None, None]}


def known_scheduler(kind: Any, supported: str) -> type[SchedulerMixin]:
    """A scheduler's class by its name; raises ValueError, with those that are supported, where diffusers has none."""
    found = getattr(diffusers, str(kind), None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(f"the installed diffusers has no scheduler {kind!r}; supported are {supported}")
    return found


def scheduler_class(kind: Any) -> type[SchedulerMixin]:
    """A scheduler's class by its name; raises ValueError where diffusers has none, and for one without a discrete schedule."""
    found = known_scheduler(kind, SCHEDULERS)
    try:
        check_scheduler(found())
    except TypeError as error:  # all those of a discrete schedule have defaults
        raise ValueError(f"{kind} is not supported; supported are {SCHEDULERS}") from error
    return found


def load_pipeline(name: str | Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """A pipeline from a folder, or by its name from the hub, on the device that accelerate finds.

    It has no safety checker, which would blacken pictures that are to be measured and looked at. Raises ValueError for a
    folder that is not a diffusers pipeline, for broken files, for a name that is not found, and, before any weights are
    loaded, for remote code and a pipeline that is not supported.
    """
    folder = Path(name)
    if folder.exists() and not (folder / "model_index.json").exists():
        raise ValueError(f"{name} is not a diffusers model; it must hold model_index.json, or unet/ and scheduler/")
    if folder.exists():
        check_files(folder)
    try:
        without = check_index(name)
        pipe = DiffusionPipeline.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, **without
        )
    except (OSError, SafetensorError) as error:
        hub = f"gives none of that name: {next(iter(str(error).splitlines()), type(error).__name__)}"
        if isinstance(error.__context__, LocalEntryNotFoundError):
            hub = "cannot be reached; its cache on this machine does not hold that model, either"
        here = (
            f"{name} holds no safetensors weights of a model" if folder.exists() else f"there is no folder {name} here"
        )
        raise ValueError(f"{here}, and the hub {hub}") from error
    check_pipeline(pipe)
    part = "transformer" if hasattr(pipe, "transformer") else "unet"
    check_network(name, part, getattr(pipe, part).config)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
        pipe.register_to_config(requires_safety_checker=False)
    return pipe.to(processes().device)


def check_pipeline(pipe: DiffusionPipeline) -> None:
    """Raise ValueError unless the pipeline's network and schedule are supported, with a text encoder or unconditional."""
    transformer = type(pipe.transformer).__name__ if getattr(pipe, "transformer", None) is not None else None
    parts = [name for name, part in pipe.components.items() if part is not None]
    check_parts(type(pipe).__name__, parts, transformer)
    if transformer is not None:
        find(transformer).schedule(pipe.scheduler)
        return
    check_scheduler(pipe.scheduler)
    if getattr(pipe.unet.config, "time_cond_proj_dim", None):
        raise ValueError("the U-Net is told the guidance scale, so the pipeline makes no unconditional prediction")


def check_parts(kind: str, parts: Collection[str], transformer: str | None) -> None:
    """Raise ValueError unless the parts of a class of pipelines are those of a model that is supported.

    transformer: its class, where there is one.
    """
    if transformer is not None:
        encoders = find(transformer).encoders
        needed = [*encoders, *(part.replace("text_encoder", "tokenizer") for part in encoders), "vae", "scheduler"]
        missing = next((part for part in needed if part not in parts), None)
        if missing is not None or "unet" in parts:
            wrong = "a U-Net beside its transformer" if missing is None else f"no {missing}"
            raise ValueError(f"{kind} has {wrong}; supported are {SUPPORTED}")
        return
    for part in ("unet", "scheduler"):
        if part not in parts:
            raise ValueError(f"{kind} has no {part}; supported are {SUPPORTED}")
    if "text_encoder" in parts and "tokenizer" not in parts:
        raise ValueError(f"{kind} has no tokenizer; supported are {SUPPORTED}")
    further = sorted({*parts} - {"unet", "scheduler"})
    if "text_encoder" not in parts and further:
        raise ValueError(f"{kind} has {' and '.join(further)} but no text_encoder; supported are {SUPPORTED}")


def check_text(pipe: DiffusionPipeline) -> None:
    """Raise ValueError unless the pipeline makes pictures from text by a network that is supported."""
    check_pipeline(pipe)
    if getattr(pipe, "text_encoder", None) is None:
        raise ValueError(f"{type(pipe).__name__} has no text_encoder; a prompt needs a text-to-image pipeline")


def check_single_encoder(pipe: DiffusionPipeline) -> None:
    """Raise ValueError for a pipeline whose prompts are more than one sequence of embeddings, such as Stable Diffusion XL."""
    if hasattr(pipe, "transformer"):
        raise ValueError(
            f"{type(pipe).__name__} has a transformer; embeddings of prompts are moved where they are all that a U-Net is told"
        )
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError(
            f"{type(pipe).__name__} has two text encoders; embeddings of prompts are moved where there is one, as in "
            "Stable Diffusion 1.x and 2.x"
        )
