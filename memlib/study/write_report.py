"""Stage `report`: an audit of the main model as a user would make it, and its report as a page of the book."""

import shlex
import shutil
from pathlib import Path

from memlib.audit import Options, audit
from memlib.files import atomic_write
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage

MODEL, PICTURES = "results/models/main", Path("results/data")
REPORT = Path("book/_static/audit_report.html")


def main() -> None:
    """Audit the pictures that the model was trained on, some of them planted, against those that it never saw."""
    with reporting_errors("report"), timed_stage("report"):
        asked = {"images": PICTURES, "splits": ["train"], "null_images": PICTURES, "null_splits": ["heldout"]}
        shown = read_section("report")["shown"]
        words = [
            word
            for name, value in (asked | {"show": shown}).items()
            for word in (f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)]))
        ]
        command = shlex.join(["memlib", "audit", MODEL, *words])
        options = Options(MODEL, **asked, show=shown, output=Path("results/audit"), replace=True, command=command)
        report = audit(options)
        with atomic_write(REPORT) as temporary:
            shutil.copy(report, temporary)


if __name__ == "__main__":
    main()
