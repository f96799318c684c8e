"""Maps are judged picture by picture, at levels that are chosen on other pictures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from memlib.audit_report import Finding, Section, Suspect, as_page, lit
from memlib.evaluation.localisation import best_levels, by_picture, reported


@pytest.fixture
def judged() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for kind in ("subject", "half"):
        for slot in range(10):
            for view in range(2):
                for method, sigma, low in (
                    ("a", 0.1, 0.4),
                    ("a", 1.0, 0.7),
                    ("b", 0.1, 0.6),
                    ("b", 1.0, 0.5),
                    ("edges", np.nan, 0.5),
                ):
                    value = low + 0.1 * rng.random()
                    rows.append(
                        {
                            "id": f"{slot}-{kind}-{view}",
                            "slot": slot,
                            "kind": kind,
                            "method": method,
                            "sigma": sigma,
                            "auroc": value,
                            "precision": value / 2,
                        }
                    )
    return pd.DataFrame(rows)


def test_a_picture_counts_once_whatever_its_views(judged: pd.DataFrame) -> None:
    more = pd.concat([judged, judged.query("slot == 3"), judged.query("slot == 3")])
    for measure in ("auroc", "precision"):
        pd.testing.assert_frame_equal(by_picture(more, measure), by_picture(judged, measure))
    one = judged.query("slot == 4 and kind == 'half' and method == 'b' and sigma == 1")["auroc"]
    assert by_picture(judged, "auroc").loc[("half", 4), ("b", 1.0)] == pytest.approx(one.mean())


def test_a_level_is_chosen_by_the_pictures_to_choose_by_alone(judged: pd.DataFrame) -> None:
    pictures = by_picture(judged, "auroc")
    choosing = pictures.index.get_level_values("slot") < 5
    assert best_levels(pictures, choosing) == {"a": 1.0, "b": 0.1, "edges": 0.0}
    pictures.loc[~choosing, ("a", 0.1)] = 1.0
    assert best_levels(pictures, choosing)["a"] == 1.0
    pictures.loc[choosing & (pictures.index.get_level_values("kind") == "half"), ("a", 0.1)] = 1.1
    assert best_levels(pictures, choosing)["a"] == 0.1


def test_what_is_reported_are_means_over_pictures_and_paired_differences(judged: pd.DataFrame) -> None:
    pictures = by_picture(judged, "auroc")
    others = pictures.index[pictures.index.get_level_values("slot") >= 5]
    levels = {"a": 1.0, "edges": 0.0}
    table = reported(judged, levels, others).set_index(["method", "kind"])
    values = pictures.loc[others].loc["half"]["a", 1.0]
    found = table.loc[("a", "half"), "auroc"]
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 4, values.mean(), stats.sem(values)))
    assert table.loc[("a", "half"), "precision"].value == pytest.approx(found.value / 2)
    paired = reported(judged, levels, others, minus="edges").set_index(["method", "kind"])
    off = values - pictures.loc[others].loc["half"]["edges", 0.0]
    assert paired.loc[("a", "half"), "auroc"].low == pytest.approx(
        stats.t.interval(0.95, 4, off.mean(), stats.sem(off))[0]
    )
    assert paired.loc[("edges", "subject"), "auroc"].high == 0


def test_a_picture_is_lit_where_its_map_is_large() -> None:
    picture = np.full((2, 2, 3), 200, np.uint8)
    values = np.array([[0.0, 1.0], [2.0, 4.0]])
    assert lit(picture, values)[..., 0].tolist() == [[30, 72], [115, 200]]  # 0.15 + 0.85 times the share of the largest
    assert (lit(picture, 0 * values) == 30).all(), "nothing is held fixed"


def test_a_report_shows_the_map_of_a_suspect_that_has_one() -> None:
    picture, values = np.full((4, 4, 3), 200, np.uint8), np.eye(4)
    plain = Suspect("a", "a red apple", picture, False, None, [], None)
    findings = [Finding("loss", "", 1, pd.DataFrame({"score": [1.0, 2.0]}, ["a", "b"]), None, 0.1)]
    pages = [
        as_page([Section("pictures", "x", None, findings, [own], {}, {}, [], 0.1, 0.1, None)], {}, [])
        for own in (plain, plain._replace(copied=values), plain._replace(picture=None, copied=values))
    ]
    assert ["the more its prompt holds it fixed" in page for page in pages] == [False, True, False]
    assert [page.count("<img") for page in pages] == [1, 2, 0]
