"""Prompt files."""

import json
from pathlib import Path

from memlib.datasets.folders import lines


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file: one a line, or the values of `caption` of a .jsonl file; empty lines are passed over.

    Raises ValueError for a file that is missing, is not UTF-8, holds no prompt, or has a line that is not an object with a
    `caption`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no prompt file {path}")
    prompts = []
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                line = json.loads(line)["caption"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path} line {number} is not an object with a caption") from error
            if not isinstance(line, str):
                raise ValueError(f"{path} line {number}: the caption is not a text")
        prompts.append(line.strip())
    if not prompts:
        raise ValueError(f"{path} is empty; give at least one prompt")
    return prompts
