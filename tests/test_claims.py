"""The claims: how they are judged, collected and shown."""

import re
from pathlib import Path

import pytest
import yaml

from memlib.evaluation import claims as verdicts
from memlib.evaluation.intervals import Estimate, WelchTest
from memlib.files import read_json, write_json
from memlib.study import claims

ROOT = Path(__file__).parent.parent
REGISTRY = {
    "volume": {
        "trained": {
            "paper": "hasegawa2025",
            "claim": "Training images grow more | much more.",
            "measure": "AUROC",
            "criterion": "AUROC above 0.5.",
            "page": "chapters/growth.ipynb",
        },
        "one_axis": {
            "paper": "hasegawa2025",
            "claim": "One axis suffices.",
            "measure": "difference in AUROC",
            "criterion": "Difference above -0.02.",
            "page": None,
        },
    }
}
ENTRY = verdicts.settled("volume.trained", Estimate(0.8, 0.7, 0.90004), "reproduced", Estimate(0.9, 0.85, 0.95))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two claims, of which a chapter has settled the first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book").mkdir()
    (tmp_path / "book/claims.yml").write_text(yaml.safe_dump(REGISTRY, sort_keys=False))
    write_json("metrics/growth.json", {"claims": [ENTRY], "evaluations": 66})
    write_json("metrics/study.json", {"total_seconds": 1})
    return tmp_path


def test_claims_are_judged_by_their_intervals() -> None:
    assert verdicts.judge(Estimate(0.8, 0.7, 0.9), 0.5) == "reproduced"
    assert verdicts.judge(Estimate(0.8, 0.7, 0.9), 0.5, extra_condition=False) == "inconclusive"
    assert verdicts.judge(Estimate(0.55, 0.45, 0.6), 0.5) == "inconclusive"
    assert verdicts.judge(Estimate(0.55, 0.5, 0.6), 0.5) == "inconclusive"
    assert verdicts.judge(Estimate(0.3, 0.2, 0.4), 0.5) == "not reproduced"
    assert verdicts.judge(Estimate(0.3, 0.2, 0.4), 0.5, extra_condition=False) == "not reproduced"


def test_a_separation_needs_welchs_test_at_one_percent_too() -> None:
    above = Estimate(0.8, 0.7, 0.9)
    assert verdicts.judge_separation(above, WelchTest(3.0, 40, 0.009)) == "reproduced"
    assert verdicts.judge_separation(above, WelchTest(2.0, 40, 0.02)) == "inconclusive"
    assert verdicts.judge_separation(above, WelchTest(-3.0, 40, 0.009)) == "inconclusive"
    assert verdicts.judge_separation(Estimate(0.3, 0.2, 0.4), WelchTest(-3.0, 40, 0.009)) == "not reproduced"


def test_an_entry_of_a_chapter_is_rounded() -> None:
    assert ENTRY == {
        "id": "volume.trained",
        "verdict": "reproduced",
        "value": 0.8,
        "ci95": [0.7, 0.9],
        "baseline_value": 0.9,
        "baseline_ci95": [0.85, 0.95],
    }


def test_claims_are_collected_and_shown_on_the_first_page(project: Path) -> None:
    claims.main()
    trained, one_axis = read_json("metrics/claims.json")
    assert trained == {"id": "volume.trained"} | REGISTRY["volume"]["trained"] | ENTRY
    assert (one_axis["verdict"], one_axis["value"]) == ("open", None)
    page = (project / "book/generated/claims.md").read_text()
    assert (
        "{cite}`hasegawa2025` | [**reproduced**](chapters/growth.ipynb) | AUROC 0.800 [0.700, 0.900] | 0.900 [" in page
    )
    assert "| One axis suffices. {cite}`hasegawa2025` | open |  |  |" in page
    assert all(criterion in page for criterion in ("AUROC above 0.5.", "Difference above -0.02."))
    claims.main()
    assert read_json("metrics/claims.json") == [trained, one_axis]


@pytest.mark.parametrize(
    ("name", "chapter", "message"),
    [
        ("volume.traind", "growth", "growth.json settles 'volume.traind', which .*; did you mean 'volume.trained'"),
        ("volume.trained", "flux", "flux.json settles 'volume.trained', whose page .* should be chapters/flux.ipynb"),
        ("volume.one_axis", "growth", "whose page in book/claims.yml is None; it should be chapters/growth.ipynb"),
    ],
)
def test_a_chapter_can_only_settle_its_claims(project: Path, name: str, chapter: str, message: str) -> None:
    write_json(f"metrics/{chapter}.json", {"claims": [ENTRY | {"id": name}]})
    with pytest.raises(ValueError, match=message):
        claims.collect()


def test_markers_become_criteria_and_verdicts(project: Path) -> None:
    claims.main()
    text = "# Growth\n\n<!-- criteria: volume.one_axis,volume.trained -->\n\n## End\n\n<!-- verdicts: volume.trained -->\nLast."
    criteria, table = re.split(r"\n\n## End\n\n", claims.fill_markers(text))
    assert criteria == (
        "# Growth\n\n- *volume.one_axis*: Difference above -0.02.\n- *volume.trained*: AUROC above 0.5."
    )
    assert table == (
        "| Claim | Verdict | Found here | Plain baseline |\n| --- | --- | --- | --- |\n"
        "| Training images grow more \\| much more. | reproduced | AUROC 0.800 [0.700, 0.900] | 0.900 [0.850, 0.950] |\nLast."
    )
    assert "| open |  |  |" in claims.fill_markers("<!-- verdicts: volume.one_axis -->")
    assert claims.fill_markers("x <!-- a comment --> y") == "x <!-- a comment --> y"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("criterion: volume.trained", "a marker says 'criterion'; did you mean 'criteria'"),
        ("criteria: volume.train", "names the claim 'volume.train', which book/claims.yml does not have; did you mean"),
        ("verdicts: volume.train", "names the claim 'volume.train', which metrics/claims.json does not have"),
        ("criteria:", "names the claim '', which"),
    ],
)
def test_a_marker_that_stands_for_nothing_is_refused(project: Path, marker: str, message: str) -> None:
    claims.main()
    with pytest.raises(ValueError, match=message):
        claims.fill_markers(f"<!-- {marker} -->")


def test_a_new_wording_is_shown_without_a_new_run_of_the_chapter(project: Path) -> None:
    claims.main()
    registry = project / "book/claims.yml"
    registry.write_text(registry.read_text().replace("AUROC above 0.5.", "The AUROC is above 0.5."))
    claims.main()
    assert claims.fill_markers("<!-- criteria: volume.trained -->") == "- *volume.trained*: The AUROC is above 0.5."
    assert read_json("metrics/claims.json")[0]["verdict"] == "reproduced"


def test_every_claim_of_the_study_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    registry = claims.read_registry()
    assert len(registry) == 14
    assert all(set(claim) == {"paper", "claim", "measure", "criterion", "page"} for claim in registry.values())
    keys = {line.split("{")[1].rstrip(",\n") for line in (ROOT / "book/references.bib").open() if line.startswith("@")}
    assert {claim["paper"] for claim in registry.values()} <= keys
