"""What names a model in a table: a digest of all that decides its predictions."""

import hashlib
import json
from typing import Any

import torch

from memlib.fields.network import NetworkField

# What a configuration says of a file or of the library that wrote it, beside the names with an underscore in front
ABOUT_FILES = {
    *("architectures", "dtype", "torch_dtype", "transformers_version"),
    *("name_or_path", "is_local", "local_files_only", "vocab_file", "merges_file", "tokenizer_file"),
}


def weights_digest(field: NetworkField) -> str:
    """Digest of a model's weights, noise levels, classes, configurations and tokenizers, wherever it was loaded from.

    The scheduler's settings are part of it, since they decide what its own sampling loop gives. A precision is other weights.
    """
    parts = {"unet": field.network, "scheduler": field.scheduler} if field.pipe is None else field.pipe.components
    zeros = field.pipe is not None and field.pipe.config.get("force_zeros_for_empty_prompt", False)
    about = [type(field.pipe).__name__, bool(zeros), {name: _about(part) for name, part in parts.items()}]
    if "transformer" in parts:
        about.append(list(field.shape))  # of some, no configuration names it
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=_plain).encode())
    digest.update(field.sigmas.numpy().tobytes())
    for part, module in sorted(parts.items()):
        for name, value in sorted(module.state_dict().items()) if isinstance(module, torch.nn.Module) else ():
            digest.update(f"{part}.{name} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _about(part: Any) -> list[Any]:
    """Class and settings of a part of a model; nothing of what prepares pictures for a safety checker."""
    if hasattr(part, "get_vocab"):
        return [type(part).__name__, _tokenizer(part)]
    if not hasattr(part, "config"):
        return []
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else part.config
    kept = {name: value for name, value in config.items() if name[0] != "_" and name not in ABOUT_FILES}
    return [type(part).__name__, kept]


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What makes tokens of a text; truncation and padding are set anew by every call."""
    settings = {
        "length": tokenizer.model_max_length,
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "special": tokenizer.special_tokens_map,
    }
    if not tokenizer.is_fast:
        given = {name: value for name, value in tokenizer.init_kwargs.items() if name not in ABOUT_FILES}
        return settings | {"vocabulary": tokenizer.get_vocab(), "arguments": given}
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return settings | {"rules": {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}}


def _plain(value: Any) -> Any:
    """An array, such as a schedule's betas, as a list; of anything else its words."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
