"""What is read from tables of prompts: which token ranks first, what a word carries, and what a mitigation saves."""

import numpy as np
import pandas as pd
import pytest

from memlib.evaluation import intervals, measures
from memlib.evaluation.measured import Difference
from memlib.evaluation.mitigation import (
    at_equal_similarity,
    curves_from_unchanged,
    shares_saved,
    summarise,
    targets_reached,
)
from memlib.evaluation.prompts import (
    around_triggers,
    by_generations,
    chance_first,
    kinds_ranked_first,
    mean_significance,
    trigger_first,
)

TRIGGERS = {"a": "zorb", "b": "zorb", "c": "lim", "d": ""}


def tokens() -> pd.DataFrame:
    """Four prompts, the last without a trigger, asked in two ways; the trigger of the third is not among its tokens."""
    words = {
        "a": {"red": 1.0, "zorb": 4.0, "apple": 2.0},
        "b": {"zorb": 1.0, "whale": 3.0, "swims": 3.0},
        "c": {"li": -1.0, "m": -2.0},
        "d": {"tree": 9.0},
    }
    rows = [
        (way, name, place, token, value * factor)
        for way, factor in (("output", 1.0), ("input", -1.0))
        for name, prompt in words.items()
        for place, (token, value) in enumerate(prompt.items())
    ]
    return pd.DataFrame(rows, columns=["way", "id", "place", "token", "significance"])


def test_tokens_are_counted_from_the_trigger() -> None:
    shuffled = tokens().sample(frac=1, random_state=0)
    found = around_triggers(shuffled, TRIGGERS).sort_values(["way", "id", "place"])
    assert set(found["id"]) == {"a", "b", "c"}, "a prompt without a trigger says nothing of triggers"
    found = found[found["way"] == "output"]
    np.testing.assert_array_equal(found["offset"], [-1, 0, 1, 0, 1, 2, np.nan, np.nan])
    assert found["kind"].tolist() == [
        *("other word", "trigger", "next word"),
        *("trigger", "next word", "other word"),
        *("other word", "other word"),
    ]
    np.testing.assert_allclose(found["share"], [0.25, 1, 0.5, 1 / 3, 1, 1, np.nan, np.nan])
    assert found["token"][found["first"]].iloc[[0, 2]].tolist() == ["zorb", "li"]
    assert found["first"].sum() == 3, "one token a prompt is first, also of two that are equal"


def test_what_ranks_first_by_way_of_asking() -> None:
    counts = kinds_ranked_first(around_triggers(tokens(), TRIGGERS))
    assert list(counts.index) == ["output", "input"]
    assert counts.loc["output"].to_dict() == {"trigger": 1, "next word": 1, "other word": 1}
    assert counts.loc["input"].to_dict() == {"trigger": 1, "next word": 0, "other word": 2}
    assert kinds_ranked_first(around_triggers(tokens()[:3], TRIGGERS)).to_numpy().tolist() == [[1, 0, 0]]


def test_how_often_the_trigger_ranks_first_and_how_often_a_token_at_random_would() -> None:
    found = around_triggers(tokens(), TRIGGERS)
    assert trigger_first(found) == {"output": intervals.proportion(1, 3), "input": intervals.proportion(1, 3)}
    assert trigger_first(found[found["id"] != "b"])["output"] == intervals.proportion(1, 2)
    assert trigger_first(found[:0]) == {}, "nothing is said of no prompts"
    assert chance_first(found) == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_the_significance_of_the_trigger_and_of_the_mean_other_word() -> None:
    found = around_triggers(tokens()[:6], TRIGGERS)
    means = mean_significance(found)
    assert means["the trigger"] == intervals.mean([4.0, 1.0])
    assert means["another word"] == intervals.mean([1.5, 3.0])


def test_generations_are_averaged_in_order() -> None:
    values = pd.DataFrame(np.random.default_rng(0).random((3, 6)), index=["x", "y", "z"])
    found = by_generations(values)
    assert list(found) == [1, 4, 6]
    np.testing.assert_allclose(found[1], values[0])
    np.testing.assert_allclose(found[4], values.to_numpy()[:, :4].sum(1) / 4)
    assert list(by_generations(values.iloc[:, :1])) == [1]


def judged(method: str, strength: float, similarity: list[float], agreement: list[float]) -> pd.DataFrame:
    """Two samples of every prompt around its similarity, the second 0.2 higher."""
    n = len(similarity)
    return pd.DataFrame(
        {
            "method": method,
            "strength": strength,
            "id": [f"p{i}" for i in range(n)] * 2,
            "similarity": [*similarity, *(value + 0.2 for value in similarity)],
            "agreement": agreement * 2,
            "copies_own": [value > 0.6 for value in (*similarity, *(value + 0.2 for value in similarity))],
        }
    )


def test_samples_are_summed_up_over_prompts() -> None:
    rng = np.random.default_rng(0)
    names = [("strong", 2.0), ("mild", 1.0)]
    values = rng.random((2, 8, 3, 2)).round(2)  # method, prompt, sample; similarity and agreement
    copies = rng.random((2, 8, 3)) < 0.3
    columns = {"similarity": values[..., 0].ravel(), "agreement": values[..., 1].ravel(), "copies_own": copies.ravel()}
    where = pd.DataFrame(
        [(*name, f"p{prompt}") for name in names for prompt in range(8) for _ in range(3)],
        columns=["method", "strength", "id"],
    )
    table = summarise(where.assign(**columns), ["method", "strength"], seed=3)
    assert table[["method", "strength"]].apply(tuple, axis=1).tolist() == names, "as they come"
    shares = copies.mean(2)
    assert 0 < copies.any(2)[0].sum() < 8
    for row, value, share in zip(table.to_dict("records"), values.mean(2), shares, strict=True):
        assert row["similarity"] == pytest.approx(intervals.mean(value[:, 0]))
        assert row["agreement"] == pytest.approx(intervals.mean(value[:, 1]))
        assert row["copies"] == pytest.approx(intervals.mean_share(share, 3))
        assert row["drawn at all"] == intervals.proportion(int((share > 0).sum()), 8)


def test_methods_are_compared_over_the_similarity_that_both_reach_with_the_unchanged_prompts() -> None:
    rng = np.random.default_rng(0)
    item = rng.normal(0, 0.02, 12)
    start = judged("unchanged", 0.0, *((0.8 + item).tolist(), (0.6 + item).tolist()))
    flat = [judged("flat", k, (0.8 - 0.2 * k + item).tolist(), (0.6 + item).tolist()) for k in (1.0, 2.0, 3.0)]
    steep = [judged("steep", k, (0.8 - 0.2 * k + item).tolist(), (0.6 - 0.2 * k + item).tolist()) for k in (1.0, 2.0)]
    apart = judged("apart", 1.0, (0.8 + item).tolist(), (0.1 + item).tolist())
    samples = pd.concat([start, *steep, *flat, apart]).sample(frac=1, random_state=1)
    table = at_equal_similarity(samples, [("flat", "steep"), ("steep", "flat"), ("flat", "apart")])
    assert table[["method", "minus"]].to_numpy().tolist() == [["flat", "steep"], ["steep", "flat"]]
    first, second = table["difference"]
    assert first.value == pytest.approx(0.2), "a line that falls by 0.4 over the common range, half of it on average"
    assert first.low <= 0.2 <= first.high
    assert second.value == pytest.approx(-0.2)
    assert table["low"][0] == pytest.approx(0.5 + item.mean())
    assert table["high"][0] == pytest.approx(0.9 + item.mean())


def test_every_curve_begins_at_the_unchanged_prompts() -> None:
    methods = ["unchanged", "late", "late", "early", "weak"]
    curves = curves_from_unchanged(pd.DataFrame({"method": methods, "similarity": [9, 5, 3, 4, 2]}))
    found = {name: rows["similarity"].tolist() for name, rows in curves.items()}
    assert found == {"late": [9, 5, 3], "early": [9, 4], "weak": [9, 2]}
    assert list(curves) == ["late", "early", "weak"], "as they come"


def test_how_near_embeddings_came_to_their_target() -> None:
    moves = pd.DataFrame(
        {
            "target": [0.8, 0.8, 0.8, 0.2, 0.2],
            "target_magnitude": [4.0, 4.0, 4.0, 1.0, 1.0],
            "magnitude": [4.0, 3.0, 8.0, 2.0, 3.0],
            "iterations": [1, 3, 11, 10, 10],
        }
    )
    assert targets_reached(moves).to_dict("list") == {
        "target": [0.8, 0.2],
        "target magnitude": [4.0, 1.0],
        "mean magnitude reached": [5.0, 2.5],
        "share at the target": [pytest.approx(2 / 3), 0.0],
        "mean iterations": [5.0, 10.0],
    }


def test_the_share_that_an_arm_saves_is_paired_over_prompts() -> None:
    samples = pd.concat(
        [
            judged("", 1.0, [0.7, 0.5, 0.1, 0.1], [0.5] * 4).assign(arm="planted"),
            judged("", 1.0, [0.7, 0.1, 0.1, 0.1], [0.5] * 4).assign(arm="filter"),
            judged("", 1.0, [0.1, 0.1, 0.1, 0.9], [0.5] * 4).assign(arm="removed"),
        ]
    )
    saved = shares_saved(samples, "planted")
    assert saved == {
        arm: Difference(measures.share([1, 1, 0, 0]), measures.share(drawn), same_trainings=False).interval()
        for arm, drawn in {"filter": [1, 0, 0, 0], "removed": [0, 0, 0, 1]}.items()
    }
    assert saved["filter"].value == saved["removed"].value == 0.25
    assert saved["filter"].high - saved["filter"].low < saved["removed"].high - saved["removed"].low, "paired"
    with pytest.raises(ValueError, match="the arm 'filter' lacks prompts that others have"):
        shares_saved(samples[(samples["arm"] != "filter") | (samples["id"] != "p3")], "planted")
