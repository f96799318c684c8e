"""Maps are judged picture by picture, at levels that are chosen on other pictures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from memlib.audit_report import Finding, Section, Suspect, as_page, lit
from memlib.evaluation.localisation import (
    best_levels,
    by_picture,
    by_rank,
    choosing_half,
    distances,
    marked_shares,
    paired,
    reported,
)


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
    pictures.loc[~choosing, ("a", 0.1)] = 10.0
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


def test_both_kinds_weigh_the_same_however_many_pictures_they_have(judged: pd.DataFrame) -> None:
    pictures = by_picture(judged, "auroc")
    half = pictures.index.get_level_values("kind") == "half"
    pictures.loc[half, ("a", 0.1)] = 1.3
    few = ~half | (pictures.index.get_level_values("slot") == 0)
    assert best_levels(pictures, few)["a"] == 0.1


def test_a_subject_is_chosen_by_in_all_its_kinds_or_not_at_all(judged: pd.DataFrame) -> None:
    pictures = by_picture(judged, "auroc")
    halves = []
    for seed in range(20):
        choosing = pd.Series(choosing_half(pictures, seed), pictures.index)
        assert choosing.sum() == len(pictures) / 2
        assert (choosing.groupby(level="slot").nunique() == 1).all()
        assert (choosing_half(pictures.sample(frac=1, random_state=seed), seed).sum()) == len(pictures) / 2
        halves.append(tuple(choosing))
    assert len(set(halves)) > 10


def test_the_best_method_over_both_kinds_comes_first(judged: pd.DataFrame) -> None:
    others = by_picture(judged, "auroc").index
    table = by_rank(reported(judged, {"edges": 0.0, "b": 0.1, "a": 1.0}, others))
    assert table["method"].tolist() == ["a", "a", "b", "b", "edges", "edges"]
    assert set(table["kind"]) == {"subject", "half"}


def test_pairs_are_taken_at_the_level_of_each(judged: pd.DataFrame) -> None:
    others = by_picture(judged, "auroc").index
    levels = {"a": 1.0, "b": 0.1, "edges": 0.0}
    table = paired(judged, levels, others, [("a", "b"), ("b", "edges")])
    assert table[["method", "minus"]].drop_duplicates().to_numpy().tolist() == [["a", "b"], ["b", "edges"]]
    for row in table.itertuples():
        both = [by_picture(judged, "auroc").loc[row.kind][name, levels[name]] for name in (row.method, row.minus)]
        off = both[0] - both[1]
        assert row.auroc == pytest.approx((off.mean(), *stats.t.interval(0.95, 9, off.mean(), stats.sem(off))))
        assert row.precision.value == pytest.approx(row.auroc.value / 2)


def test_marked_shares_are_means_over_the_pictures_that_are_reported(judged: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    has_limit = judged["method"] == "a"
    judged["inside"] = np.where(has_limit, rng.random(len(judged)), np.nan)
    judged["outside"] = judged["inside"] / 3
    pictures = by_picture(judged, "auroc")
    others = pictures.index[pictures.index.get_level_values("slot") >= 5]
    table = marked_shares(judged, {"a": 0.1, "b": 1.0, "edges": 0.0}, others).set_index(["method", "kind"])
    assert table.index.tolist() == [("a", "subject"), ("a", "half")], "edges and b have no threshold"
    own = judged.query("method == 'a' and sigma == 0.1 and slot >= 5 and kind == 'half'")
    values = own.groupby("slot")["inside"].mean()
    found = table.loc[("a", "half"), "inside"]
    assert found == pytest.approx((values.mean(), *stats.t.interval(0.95, 4, values.mean(), stats.sem(values))))
    assert table.loc[("a", "half"), "outside"].low == pytest.approx(found.low / 3)


def test_distances_are_means_over_pictures_and_not_over_samples() -> None:
    rows = [
        {"kind": kind, "model": model, "slot": slot, "repeated": slot + 0.5 * number, "other": 2.0 * slot}
        for kind, model in (("half", "model"), ("half", "control"), ("subject", "model"))
        for slot in range(4)
        for number in range(3 if slot else 1)
    ]
    table = distances(pd.DataFrame(rows)).set_index(["kind", "model"])
    assert table.index.tolist() == [("half", "model"), ("half", "control"), ("subject", "model")]
    values = np.array([0, 1.5, 2.5, 3.5])
    expected = (values.mean(), *stats.t.interval(0.95, 3, values.mean(), stats.sem(values)))
    assert table.loc[("half", "control"), "repeated"] == pytest.approx(expected)
    assert table.loc[("subject", "model"), "other"].value == pytest.approx(3)


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
    assert ["brightest where its prompt fixes it most" in page for page in pages] == [False, True, False]
    assert [page.count("<img") for page in pages] == [1, 2, 0]


def test_a_suspect_is_shown_by_its_caption_and_keeps_its_name() -> None:
    findings = [Finding("loss", "", 1, pd.DataFrame({"score": [1.0]}, ["2757.png"]), None, 0.1)]
    for caption, title in (("red mark", "red mark"), (None, "2757.png"), (" ", "2757.png")):
        own = Suspect("2757.png", caption, None, False, None, [], None)
        page = as_page([Section("pictures", "x", None, findings, [own], {}, {}, [], 0.1, 0.1, None)], {}, [])
        assert f"<h4>{title}</h4>" in page
        assert page.count("2757.png") == 1, "the name is said once"
