"""The stage that always runs: check params.yaml, and write the digest of each entry point's code to results/code."""

import hashlib
from pathlib import Path

from memlib.files import atomic_write
from memlib.study.digests import digest_files
from memlib.study.sections import PARAMS
from memlib.study.stages import reporting_errors, timed_stage

CODE = Path("results/code")
CHECKED = Path("results/checked.txt")  # digest of what the last check that went well has read


def main() -> None:
    """Check the parameters, so that what a later stage would refuse is refused now, and write the digests."""
    with reporting_errors("code"), timed_stage("code"):
        files = digest_files()
        check_once("".join(files.values()))
        write_all(files)


def check_once(code: str) -> None:
    """Check params.yaml, unless it and the code have been checked before: a check takes a second, mostly for imports."""
    state = hashlib.sha256(code.encode() + (PARAMS.read_bytes() if PARAMS.exists() else b"")).hexdigest()
    if not CHECKED.exists() or CHECKED.read_text() != state:
        from memlib.study.parameters import check

        check()
        with atomic_write(CHECKED) as temporary:
            temporary.write_text(state)


def write_all(files: dict[str, str]) -> None:
    """Write the digest files that have changed and remove those whose entry point is gone; the others stay untouched."""
    for path in CODE.glob("*"):
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = CODE / name
        if not path.exists() or path.read_text() != content:
            with atomic_write(path) as temporary:
                temporary.write_text(content)


if __name__ == "__main__":
    main()
