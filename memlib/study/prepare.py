"""The first stage: check params.yaml, and write what the other stages depend on.

That is a digest of each entry point's code, in results/code, and the parameters as JSON, which DVC reads for every stage: each
section, or entry of a section, that stages name as a whole is one text there, since DVC walks through all that it reads.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from memlib.files import atomic_write
from memlib.study.digests import digest_files, score_files
from memlib.study.sections import PARAMS
from memlib.study.stages import reporting_errors, timed_stage

CODE, JSON = Path("results/code"), Path("results/params.json")
NAMED_ENTRIES = {"run": 2, "scores": 1, "truth": 1}  # sections of which stages name entries, and how deep these lie
CHECKED = Path("results/checked.txt")  # digest of what the last check that went well has read


def main() -> None:
    """Check the parameters, so that what a later stage would refuse is refused now, and write what others depend on."""
    with reporting_errors("code"), timed_stage("code"):
        files = digest_files()
        check_once("".join(files.values()))
        parameters = yaml.safe_load(PARAMS.read_text())
        write_all(files | score_files(files, parameters["scores"]))
        write_once(JSON, packed(parameters))


def check_once(code: str) -> None:
    """Check params.yaml, unless it and the code have been checked before: a check takes a second, mostly for imports."""
    state = hashlib.sha256(code.encode() + (PARAMS.read_bytes() if PARAMS.exists() else b"")).hexdigest()
    if not CHECKED.exists() or CHECKED.read_text() != state:
        from memlib.study.parameters import check

        check()
        write_once(CHECKED, state)


def packed(sections: Mapping[str, Any]) -> str:
    """The parameters as JSON, with what stages name as texts of JSON."""

    def pack(value: Any, depth: int) -> Any:
        if depth and isinstance(value, Mapping):
            return {name: pack(entry, depth - 1) for name, entry in value.items()}
        return json.dumps(value)

    return json.dumps({name: pack(value, NAMED_ENTRIES.get(name, 0)) for name, value in sections.items()}, indent=1)


def write_all(files: dict[str, str]) -> None:
    """Write the digest files that have changed and remove those whose entry point is gone; the others stay untouched."""
    for path in CODE.glob("*"):
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        write_once(CODE / name, content)


def write_once(path: Path, content: str) -> None:
    """Write a file, if it is not there with this content."""
    if not path.exists() or path.read_text() != content:
        with atomic_write(path) as temporary:
            temporary.write_text(content)


if __name__ == "__main__":
    main()
