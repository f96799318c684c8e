"""The test of a whole collection: its size where nothing was trained on, its power, and that what was chosen is not tested."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from memlib.evaluation.discovery import set_p_value
from memlib.evaluation.whole_set import SetTest, rejections, set_test


def scores(count: int, shift: float, seed: int, readings: int = 3) -> pd.DataFrame:
    """Readings of which only the last differs."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, readings))
    values[:, -1] += shift
    return pd.DataFrame(values, columns=[f"r{n}" for n in range(readings)], index=[f"i{n}" for n in range(count)])


def test_the_reading_is_chosen_on_one_half_and_tested_on_the_other() -> None:
    found = set_test(scores(80, 1.0, 0), scores(60, 0.0, 1))
    assert (found.reading, found.suspects, found.outside) == ("r2", 40, 30)
    assert found.p_value < 0.01
    assert found.larger == pytest.approx(stats.norm.cdf(2**-0.5), abs=0.12)
    assert set_test(scores(80, 0.0, 0), scores(60, 1.0, 1)).p_value > 0.05, "one-sided"


def test_neither_units_nor_what_scores_lower_decide_what_is_compared() -> None:
    suspects, outside = (each.assign(r0=-each["r1"]) for each in (scores(80, 1.0, 0), scores(60, 0.0, 1)))
    found = set_test(suspects, outside)
    units = pd.Series({"r0": 1e4, "r1": 1e4, "r2": 1e-2})
    assert set_test(suspects * units + 7, outside * units + 7)[:-1] == found[:-1]
    lower = set_test(suspects - [9.0, 0.0, 0.0], outside)
    assert (lower.reading, lower.p_value) == ("r2", found.p_value)


def test_ties_count_half() -> None:
    """Of nulls 0, 1 and 2 in equal parts a third lies below 1 and a third ties; of 0 and 1 a half and a half."""
    suspects = pd.DataFrame({"r": np.ones(60)})
    outside = pd.DataFrame({"r": np.r_[np.zeros(200), np.ones(200), np.full(200, 2.0)]})
    assert set_test(suspects, outside).larger == pytest.approx(0.5, abs=0.06)
    assert set_test(suspects, outside[:400]).larger == pytest.approx(0.75, abs=0.06)


def test_its_size_is_the_level_however_many_readings_there_are() -> None:
    """Choosing on the tested half would reject about 1 - 0.95^20 of the time."""
    rejected = [
        set_test(scores(24, 0.0, 2 * n, 20), scores(24, 0.0, 2 * n + 1, 20), n, 99).p_value <= 0.05 for n in range(300)
    ]
    assert np.mean(rejected) <= stats.binom.ppf(0.999, 300, 0.05) / 300


def test_power_grows_with_the_collection_and_is_the_level_without_a_difference() -> None:
    members, outside = scores(200, 0.7, 0), scores(400, 0.0, 1)

    def power(size: int, share: float = 1.0) -> float:
        return rejections(members, outside, size, share, repeats=60, resamples=99).mean()

    sizes = [power(size) for size in (8, 30, 120)]
    assert (np.diff(sizes) > 0).all()
    assert sizes[-1] > 0.9
    shares = [power(120, share) for share in (0.0, 0.4, 1.0)]
    assert (np.diff(shares) > 0).all()
    assert shares[0] < 0.2, "a collection of which nothing was in the training"


def test_a_collection_holds_as_many_members_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def looked_at(suspects: pd.DataFrame, outside: pd.DataFrame, seed: int, _: int) -> SetTest:
        seen.append((suspects, outside, seed))
        return SetTest("r0", 0.05, 0, 0, 0.5)

    monkeypatch.setattr("memlib.evaluation.whole_set.set_test", looked_at)
    members, outside = scores(20, 0.0, 0), scores(30, 0.0, 1).rename(index="o{}".format)
    assert rejections(members, outside, 10, 0.3, repeats=3).all(), "a p-value of the level itself rejects"
    for suspects, left, _ in seen:
        assert suspects.index.isin(members.index).sum() == 3
        assert len(suspects) == 10
        assert len(left) == 23
        assert not left.index.isin(suspects.index).any()
    assert not seen[0][0].equals(seen[1][0])
    assert len({seed for *_, seed in seen}) == 3, "other halves each time"


def test_many_items_are_permuted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = scores(200, 0.2, 0)["r2"], scores(300, 0.0, 1)["r2"]
    whole = set_p_value(*groups, 1999)
    monkeypatch.setattr("memlib.evaluation.discovery.NUMBERS", 1000)
    assert set_p_value(*groups, 1999) == pytest.approx(whole, abs=0.02)
    assert whole == pytest.approx(stats.ttest_ind(*groups, alternative="greater").pvalue, abs=0.02)


def test_groups_that_are_too_small_are_refused() -> None:
    least = set_test(scores(4, 9.0, 0), scores(4, 0.0, 1))
    assert (least.suspects, least.outside, least.p_value) == (2, 2, pytest.approx(1 / 6)), "of 6 ways to part four"
    with pytest.raises(ValueError, match="there are 3 items in a group; a test of a whole set needs at least 4"):
        set_test(scores(3, 0.0, 0), scores(9, 0.0, 1))
    for size, share, words in ((3, 1.0, "a collection of 3, 3 of"), (21, 1.0, "21, 21 of"), (12, 0.5, "12, 6 of")):
        with pytest.raises(ValueError, match=words):
            rejections(scores(20, 0.0, 0), scores(9, 0.0, 1), size, share)
