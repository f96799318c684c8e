"""Sections of params.yaml as they stand there; what may stand there is checked before any stage runs (`parameters.py`)."""

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
