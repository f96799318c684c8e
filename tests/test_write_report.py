"""The stage `report`: what it audits, and that the command it shows is the one that makes the same report."""

from pathlib import Path

import pytest
import yaml

from memlib import cli
from memlib.audit import Options
from memlib.study import write_report


def test_the_command_that_is_shown_asks_for_the_audit_that_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of the training against those that it never saw; the report's page is the audit's."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.dump({"report": {"shown": 3}}))
    asked: list[Options] = []

    def audited(options: Options) -> Path:
        asked.append(options)
        Path("made.html").write_text("a report")
        return Path("made.html")

    monkeypatch.setattr(write_report, "audit", audited)
    monkeypatch.setattr("memlib.audit.audit", audited)
    write_report.main()
    assert write_report.REPORT.read_text() == "a report"
    program, *words = asked[0].command.split()
    assert program == "memlib"
    cli.main(words)
    for name in Options.__dataclass_fields__.keys() - {"output", "replace"}:
        made, typed = (getattr(each, name) for each in asked)
        assert (made or None) == (typed or None), name
    assert (asked[0].splits, asked[0].null_splits, asked[0].show) == (["train"], ["heldout"], 3)
