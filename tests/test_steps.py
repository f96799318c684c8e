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
    values = steps.in_paper_unit(scores)
    assert values.columns.tolist() == [(0, 0), (0, 2), (0, 10), (1, 0), (1, 2), (1, 10)], "by number, not by name"
    assert values.loc["a"].tolist() == [3, 3, 2, 2, 2, 1]
    assert values.loc["b"].tolist() == [5, 1, 4, 1, 0, 6]
    assert steps.mean_of_first_steps(values, 2).loc["b"].tolist() == [5, 1], "two steps are those of number 0 and 1"
    assert steps.mean_of_first_steps(values, 3).loc["b"].tolist() == [3, 0.5]
    assert steps.mean_of_first_steps(values, 11).loc["a"].tolist() == pytest.approx([8 / 3, 5 / 3])


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
