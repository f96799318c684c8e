"""The stage that always runs: check params.yaml, then write the digest of each entry point's code to results/code."""

from pathlib import Path

from memlib.files import atomic_write
from memlib.study.digests import digest_files
from memlib.study.stages import reporting_errors

CODE = Path("results/code")


def write_digests() -> None:
    """Write the digest files that have changed and remove those whose entry point is gone; the others stay untouched."""
    files = digest_files()
    for path in CODE.glob("*"):
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        path = CODE / name
        if not path.exists() or path.read_text() != content:
            with atomic_write(path) as temporary:
                temporary.write_text(content)


def main() -> None:
    """Check the parameters, so that what a later stage would refuse is refused now, and write the digests."""
    with reporting_errors("code"):
        from memlib.study.parameters import check

        check()
        write_digests()


if __name__ == "__main__":
    main()
