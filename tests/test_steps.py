"""The magnitude along sampling, against means and pairs counted by hand."""

import itertools

import numpy as np
import pandas as pd
import pytest

from memlib.evaluation import steps


def test_magnitudes_are_divided_by_their_noise_level() -> None:
    scores = pd.DataFrame(
        {
            "guidance=3 noise=1 sigma=4 step=0": [8.0, 4.0],
            "guidance=3 noise=0 sigma=0.5 step=10": [1.0, 2.0],
            "guidance=3 noise=0 sigma=4 step=0": [12.0, 20.0],
            "guidance=3 noise=1 sigma=0.5 step=10": [0.5, 3.0],
            "guidance=3 noise=0 sigma=2 step=2": [6.0, 2.0],
            "guidance=3 noise=1 sigma=2 step=2": [4.0, 0.0],
        },
        index=["a", "b"],
    )
    values = steps.in_paper_unit(steps.by_step(scores))
    places = [(0, 0, 4), (0, 2, 2), (0, 10, 0.5), (1, 0, 4), (1, 2, 2), (1, 10, 0.5)]
    assert values.columns.tolist() == places, "by number, not by name"
    assert values.loc["a"].tolist() == [3, 3, 2, 2, 2, 1]
    assert values.loc["b"].tolist() == [5, 1, 4, 1, 0, 6]
    assert steps.mean_of_first_steps(values, 2).loc["b"].tolist() == [5, 1], "two steps are those of number 0 and 1"
    assert steps.mean_of_first_steps(values, 3).loc["b"].tolist() == [3, 0.5]
    first = pd.DataFrame([[7.0, 9.0, 2.0], [1.0, 3.0, 4.0], [8.0, 8.0, 8.0]], index=["b", "a", "c"])
    found = steps.averages(first, values, {1: 3, 3: 2})
    assert {key: mean.tolist() for key, mean in found.items()} == {
        (1, 1): [1, 7],
        (1, 3): [8 / 3, 6],
        (3, 1): [3, 3],
        (3, 2): [2.5, 1.75],
    }
    assert found[1, 1].index.tolist() == ["a", "b"]
    assert steps.mean_of_first_steps(values, 11).loc["a"].tolist() == pytest.approx([8 / 3, 5 / 3])


def test_noises_are_ordered_by_number() -> None:
    scores = pd.DataFrame([[1.0, 2.0, 3.0]], columns=["noise=10 noises=16", "noise=2 noises=16", "noise=0 noises=16"])
    ordered = steps.by_noise(scores)
    assert ordered.columns.tolist() == [0, 2, 10]
    assert ordered.loc[0].tolist() == [3, 2, 1]


def test_single_steps_and_means_over_steps_rank_as_their_pairs_do() -> None:
    rng = np.random.default_rng(0)
    ids, noises, places = list("abcdefg"), 2, [0, 3, 7]
    rows = list(itertools.product(["sampled", "noised"], ids, range(noises), places))
    table = pd.DataFrame(rows, columns=["series", "id", "noise", "step"])
    table["sigma"] = 8.0 - table["step"]
    table["magnitude"] = rng.random(len(table))
    found = steps.auroc_by_step(table.sample(frac=1, random_state=0).sort_values("series"), {"b", "c", "g"})
    assert found["series"].tolist() == ["noised"] * 3 + ["sampled"] * 3
    assert found["step"].tolist() == places * 2
    assert found["sigma"].tolist() == [8, 5, 1] * 2
    for row in found.itertuples():
        of_series = table[table["series"] == row.series]
        for value, part in (
            (row.alone, of_series[of_series["step"] == row.step]),
            (row.so_far, of_series[of_series["step"] <= row.step]),
        ):
            mean = part.groupby("id")["magnitude"].mean()
            pairs = [mean[p] > mean[n] for p in "bcg" for n in "adef"]
            assert value == pytest.approx(np.mean(pairs))


def test_named_prompts_are_the_positives_whatever_their_order() -> None:
    values = pd.Series([0.1, 0.9, 0.4, 0.6, 0.2], list("abcde"))
    found = steps.auroc_of_prompts(values, ["d", "a"])
    assert found.value == pytest.approx(2 / 6)
    assert found.low <= found.value <= found.high


def test_a_series_is_rescaled_beside_the_others() -> None:
    path = pd.DataFrame(
        {
            "series": ["sampled", "sampled", "noised"],
            "sigma": [4.0, 0.5, 2.0],
            "magnitude": [8.0, 3.0, 6.0],
            "length": [0.5, 2.0, np.nan],
        }
    )
    found = steps.rescaled(path, "sampled").groupby("series", sort=False)["magnitude"].agg(list).to_dict()
    assert found == {
        "sampled": [2, 6],
        "noised": [3],
        "sampled, over the field's length": [4, 3],
        "sampled, times sigma": [8, 3],
    }


def test_a_series_in_short() -> None:
    by_step = pd.DataFrame(
        {
            "series": ["b", "b", "b", "b", "a", "a", "a"],
            "step": [9, 2, 1, 0, 0, 5, 9],
            "alone": [0.9, 0.3, 0.2, 0.1, 0.4, 0.5, 0.6],
            "so_far": [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
        }
    )
    found = steps.in_short(by_step)
    assert found.index.tolist() == ["b", "a"]
    assert found.loc["b"].to_dict() == {"first": 0.1, "middle": 0.3, "last": 0.9, "mean": 0.8}
    assert found.loc["a"].to_dict() == {"first": 0.4, "middle": 0.5, "last": 0.6, "mean": 0.2}
