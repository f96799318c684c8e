"""Sections of params.yaml as they stand there; what may stand there is checked before any stage runs (`parameters.py`)."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from memlib.files import suggest

PARAMS = Path("params.yaml")


def read_section(name: str) -> dict[str, Any]:
    """One section of params.yaml; raises ValueError for one that is not there."""
    sections = yaml.safe_load(PARAMS.read_text())
    if name not in sections:
        raise ValueError(f"{PARAMS} has no section {name!r}{suggest(name, sections)}")
    return sections[name]


def expanded(setting: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A setting for each value, or combination of values, of the lists under `each`; the setting itself without it."""
    each = setting.get("each", {})
    rest = {name: value for name, value in setting.items() if name != "each"}
    for values in itertools.product(*each.values()):
        yield rest | dict(zip(each, values, strict=True))
