"""Audits rehearsed on items whose truth is drawn, and what a guard stops: shares by hand, rates that are promised."""

import numpy as np
import pandas as pd
import pytest

from memlib.evaluation import alarms
from memlib.evaluation.audits import false_where_named
from memlib.evaluation.intervals import proportion
from memlib.evaluation.rehearsal import found_shares, rehearse
from memlib.mitigation.guard import threshold_rank

RNG = np.random.default_rng(5)


def test_shares_are_those_of_what_is_named() -> None:
    """Positives score highest of all but one outside; every null is below."""
    found = rehearse([9.0, 8.0, 7.0, -9.0], np.r_[10.0, np.zeros(119)], 80, 0.3, 50)
    loud = found["named"] > 3  # the one outside that scores highest is a suspect
    assert 0 < loud.sum() < 50
    assert set(found.loc[loud, "true_share"]) == {3 / 4}
    assert set(found.loc[loud, "found"]) == {3 / 4}
    assert (found.loc[~loud, "named"] == 0).all(), "with 10 as a null, nothing stands out of so few"
    assert (found.loc[~loud, "true_share"] == 1).all()
    assert set(found.loc[~loud, "true_share_each"]) == {1.0}


def test_the_rate_is_kept_on_any_items_and_only_by_exchangeable_nulls() -> None:
    """The same items in every rehearsal, of a lopsided distribution, half of which score half as high again."""
    outside = RNG.exponential(size=300) * np.repeat([1.0, 1.5], 150)
    positives = 4 + RNG.exponential(size=30)
    found = rehearse(positives, outside, 200, 0.1, 400)
    false = 1 - found["true_share"]
    assert false.mean() <= 0.1 * 100 / 130 + 3 * false.sem()
    assert false.mean() > 0.1 * 100 / 130 - 5 * false.sem() - 0.02, "and it is used up"
    assert (1 - found["true_share_each"]).mean() > 0.2, "each at 10 % by itself"
    shifted = rehearse(positives, outside, 150, 0.1, 200, apart=np.repeat([True, False], 150))
    assert (1 - shifted["true_share"]).mean() > 0.12


def test_parts_are_of_the_asked_size_and_alike_for_all_scores() -> None:
    first, second = (rehearse(scale * np.ones(6), np.arange(40.0), 20, 0.3, 30, suspects=7) for scale in (50, 60))
    assert first.equals(second)
    assert not rehearse(50 * np.ones(6), np.arange(40.0), 20, 0.3, 30, seed=1, suspects=7).equals(first)
    few = rehearse(np.arange(50.0, 56.0), np.zeros(40), 30, 0.5, 30, copies=2)
    assert set(few["named"]) == {2}
    one = rehearse([50.0, -9.0], np.zeros(40), 30, 0.5, 40, copies=1)
    assert 10 < one["found"].sum() < 30, "either of the two at random"
    everything = rehearse([1.0, 1.0], np.zeros(40), 20, 0.99, 3, suspects=7)
    assert set(everything["true_share_each"]) == {1.0}
    apart = rehearse([50.0, 51.0], np.r_[np.zeros(10), np.full(30, 9.0)], 10, 0.5, 5, apart=np.arange(40) < 10)
    assert set(apart["true_share"]) == {2 / 32}, "all suspects from outside exceed all nulls"
    held = np.arange(40) < 20
    few = rehearse([50.0, 51.0], np.where(held, 0.0, 9.0), 10, 0.5, 5, apart=held)
    assert set(few["named"]) == {22}, "of the kind of the nulls nothing is suspected, though ten are left"


def test_what_is_false_where_something_is_named_leaves_empty_audits_out() -> None:
    """The mean over the single audits that name something, of two trainings that do so unlike often."""
    outside = RNG.exponential(size=120)
    tables = [rehearse(positives, outside, 60, 0.2, 60, 3) for positives in (np.full(9, 4.5), np.full(14, 3.0))]
    silent = [(table["named"] == 0).mean() for table in tables]
    assert 0 < silent[0] < 1
    assert silent[0] != silent[1]
    false = 1 - pd.concat([table.loc[table["named"] > 0, "true_share"] for table in tables])
    found = false_where_named([1 - table["true_share"].mean() for table in tables], silent, 60)
    assert found.value == pytest.approx(false.mean())
    assert found.low < found.value < found.high
    assert false_where_named([0.0, 0.0], [1.0, 1.0], 60) is None
    single = false_where_named([0.03, 0.07], [0.9, 0.9], 100)
    assert single == pytest.approx(proportion(5, 10)), "ten audits of each training name something"


def test_a_p_value_of_the_rate_itself_is_named() -> None:
    """Above all of 9 nulls the p-value is 1 / 10; by Benjamini and Hochberg's procedure 2 of 12 would need 1 / 60."""
    found = rehearse([50.0, 51.0], np.zeros(19), 9, 0.1, 5)
    assert set(found["found"]) == {0.0}
    assert set(found["true_share_each"]) == {1.0}
    one = rehearse([50.0], np.r_[np.zeros(18), 60.0], 9, 0.1, 40)
    assert set(one["true_share_each"]) == {0.5, 1.0}, (
        "the one that scores higher is a suspect, or a null that hides all"
    )


def test_each_picture_has_its_own_share_of_the_rehearsals_that_name_it() -> None:
    """Their mean is that of `rehearse` on the same scores; a picture below all others is never named."""
    positives, outside = np.r_[-9.0, 2 + RNG.normal(size=12)], RNG.normal(size=80)
    shares = found_shares(positives, outside, 40, 0.2, 50, 3, suspects=20)
    assert shares.mean() == pytest.approx(rehearse(positives, outside, 40, 0.2, 50, 3, suspects=20)["found"].mean())
    assert shares[0] == 0
    assert (np.diff(shares[np.argsort(positives)]) >= 0).all(), "a larger score is named no less often"
    assert shares.max() > 0.5
    assert set(found_shares([50.0, -1.0], np.zeros(40), 30, 0.5, 4)) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nulls": 41}, "asks for 41 nulls; there are 40"),
        ({"nulls": 20, "suspects": 21}, "asks for 21 suspects from outside; there are 20"),
        ({"nulls": 20, "copies": 3}, "asks for 3 positives; there are 2"),
        ({"nulls": 20, "apart": np.arange(40) < 10}, "asks for 20 nulls; there are 10"),
    ],
)
def test_more_than_there_is_is_refused(asked: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rehearse([1.0, 2.0], np.arange(40.0), rate=0.1, repeats=2, **asked)


def test_windows_are_the_first_all_and_the_last_steps() -> None:
    steps = np.arange(25)
    assert {name: steps[part].tolist() for name, part in alarms.windows(25).items()} == {
        "first step": [0],
        "first 2 steps": [0, 1],
        "first 5 steps": [0, 1, 2, 3, 4],
        "first 10 steps": list(range(10)),
        "all steps": list(range(25)),
        "last step": [24],
        "last 5 steps": [20, 21, 22, 23, 24],
    }
    assert [*alarms.windows(4)] == ["first step", "first 2 steps", "all steps", "last step"]


def test_every_step_counts_in_units_of_ordinary_ones() -> None:
    ordinary = np.array([[1.0, 10.0], [2.0, 20.0], [9.0, 30.0]])
    found = alarms.readings(np.array([[4.0, 10.0]]), ordinary)
    assert found.loc[0].to_dict() == {"first step": 2.0, "all steps": 1.25, "last step": 0.5}


@pytest.mark.parametrize("count", [99, 150, 400])
def test_a_sample_is_stopped_where_the_guards_threshold_is_exceeded(count: int) -> None:
    ordinary, values = RNG.normal(size=count), RNG.normal(1.5, size=500)
    threshold = np.sort(ordinary)[threshold_rank(count, 0.01) - 1]
    assert alarms.stopped(values, ordinary, 0.01).tolist() == (values > threshold).tolist()
    assert not alarms.stopped([threshold, threshold - 1], ordinary, 0.01).any()


def test_the_best_window_is_chosen_on_the_named_trainings_alone() -> None:
    shares = {
        "here": pd.DataFrame({"first step": [0.0, 0.0], "last step": [1.0, 1.0]}),
        "there": pd.DataFrame({"first step": [0.6], "last step": [0.2]}),
        "also": pd.DataFrame({"first step": [0.2], "last step": [0.5]}),
    }
    assert alarms.best_window(shares, ["there"]) == "first step"
    assert alarms.best_window(shares, ["here"]) == "last step"
    assert alarms.best_window(shares, ["there", "also"]) == "first step"
    uneven = {"one": pd.DataFrame({"first step": [1.0, 0.0, 0.0], "last step": [0.6, 0.6, 0.6]})}
    assert alarms.best_window(uneven, ["one"]) == "last step", "on average over the prompts"


def test_all_steps_are_weighed_by_fishers_discriminant() -> None:
    """Two groups of one covariance: the direction is its inverse times the difference of means, whatever their levels."""
    covariance = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 1.0]])
    shift = np.array([1.0, 0.0, -0.5])
    noise = RNG.multivariate_normal(np.zeros(3), covariance, 40_000)
    copies, ordinary = np.exp(noise[:20_000] + shift), np.exp(noise[20_000:])
    read = alarms.discriminant(copies, ordinary)
    base = read(np.ones((1, 3)))[0]
    weights = np.array([read(np.exp(np.eye(3)[[k]]))[0] - base for k in range(3)])
    np.testing.assert_allclose(weights, np.linalg.solve(covariance, shift), atol=0.05)
    assert read(copies).mean() > read(ordinary).mean()


def test_few_copies_weigh_as_much_as_many_ordinary_samples() -> None:
    """Of two covariances the direction is that of their mean, however many samples there are of each."""
    noise = RNG.normal(size=(44_000, 2))
    copies, ordinary = noise[:4000] * [3.0, 1.0] + 1.0, noise[4000:] * [1.0, 3.0]
    read = alarms.discriminant(np.exp(copies), np.exp(ordinary))
    weights = read(np.exp(np.eye(2))) - read(np.ones((1, 2)))
    np.testing.assert_allclose(weights, [1 / 5, 1 / 5], atol=0.03)


def test_fewer_copies_than_steps_still_tell() -> None:
    """A shift by 0.5 in each of 25 independent steps: of further samples the best reading tells all but 4 %."""
    steps, shift = 25, 0.5

    def told() -> float:
        copies, ordinary = np.exp(RNG.normal(shift, size=(12, steps))), np.exp(RNG.normal(size=(13, steps)))
        read = alarms.discriminant(copies, ordinary)
        further = np.exp(RNG.normal(size=(4000, steps)))
        return float((read(further * np.exp(shift)) > read(further[::-1])).mean())

    assert np.mean([told() for _ in range(20)]) > 0.85


def test_what_is_redirected_is_compared_sample_by_sample() -> None:
    """Three samples are warned of; drawn again, one is refused, one still a copy, and agreement falls by 0.1 and 0.3."""
    plain = pd.DataFrame(
        {
            "id": ["a", "a", "b", "c"],
            "noise": [0, 1, 0, 0],
            "flagged": [True, True, True, False],
            "agreement": [0.9, 0.8, 0.7, 0.1],
        }
    ).assign(action="none", refused=False, copies_own=[True, True, False, True])
    again = plain.iloc[::-1].assign(action="another seed", refused=[False, True, False, False])
    again = again.assign(agreement=[9.0, 0.0, 0.5, 0.8], copies_own=[True, True, False, True])
    first, second = alarms.redirections(pd.concat([plain, again])).to_dict("records")
    assert (first["action"], first["warned of"], first["refused"], first["copies"].value) == ("none", 3, 0, 2 / 3)
    assert (first["change"].value, first["change"].high) == (0, 0)
    assert (second["action"], second["warned of"], second["refused"], second["copies"].value) == (
        "another seed",
        3,
        1,
        1 / 3,
    )
    assert second["change"].value == pytest.approx(-0.2)
    one = alarms.redirections(pd.concat([plain, again.assign(refused=again["id"] != "b")]))
    assert one["change"].tolist()[1] is None
    assert alarms.redirections(plain[plain["id"] == "c"]).empty
