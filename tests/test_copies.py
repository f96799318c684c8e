"""The calibrated rule for copies of prompts: its rate on the control, its units, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlib.truth.copies import calibrated_threshold, picture_thresholds, with_copies


def test_the_rate_of_false_copies_is_kept_on_further_samples_of_the_control() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 3, (20, 1))
    rates = []
    for _ in range(300):
        known, further = (scale * rng.gamma(8, size=(20, 16)) for _ in range(2))
        rates.append((further < calibrated_threshold(known, 0.02)[:, None]).mean())
    assert np.mean(rates) == pytest.approx(0.02, abs=0.003), "pictures of any scale together"
    alone = [(rng.gamma(8, size=500) < calibrated_threshold(rng.gamma(8, size=199), 0.02)).mean() for _ in range(300)]
    assert np.mean(alone) == pytest.approx(0.02, abs=0.003)


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_a_threshold_is_in_the_unit_of_its_picture(seed: int, unit: float) -> None:
    distances = np.random.default_rng(seed).uniform(1, 2, (5, 30))
    factors = np.array([unit, 1, 1, 1, 1])
    found = calibrated_threshold(distances * factors[:, None], 0.05)
    np.testing.assert_allclose(found, calibrated_threshold(distances, 0.05) * factors)


def test_of_one_picture_it_is_the_order_statistic() -> None:
    distances = np.random.default_rng(0).permutation(np.arange(1, 200) / 100)
    assert calibrated_threshold(distances) == pytest.approx([0.02]), "2 of 200 equally likely places are below it"


def test_a_control_that_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="98 samples of the control cannot resolve a rate of 0.01; draw at least 99"):
        calibrated_threshold(np.ones((2, 49)))
    assert calibrated_threshold(np.arange(1, 100)) == [1]
    with pytest.raises(ValueError, match="the rate of false copies is 1; it must be above 0 and below 1"):
        calibrated_threshold(np.ones(200), 1)
    with pytest.raises(ValueError, match="half of a control's samples are equal to a picture"):
        calibrated_threshold(np.zeros(200))


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    prompts = pd.DataFrame(
        {
            "id": ["p", "q", "short", "usual", *(f"never {i}" for i in range(50))],
            "group": ["planted", "planted", "shortened", "ordinary", *["unseen"] * 50],
            "row": [7, 9, 7, *[-1] * 51],
        }
    ).set_index("id")
    control = pd.DataFrame(
        {
            "id": ["q"] * 60 + ["p"] * 60,
            "noise": [*range(60)] * 2,
            "distance": [*np.linspace(1, 3, 60), *np.linspace(0.1, 0.3, 60)],
        }
    )
    never = [(f"never {i}", noise, 0.5 + 0.01 * i + noise) for i in range(50) for noise in range(2)]
    own = [("p", 0, 0.09), ("p", 1, 0.12), ("q", 0, 0.9), ("short", 0, 0.09), ("usual", 0, 0.4), ("usual", 1, 0.6)]
    samples = pd.DataFrame([*own, *never], columns=["id", "noise", "distance"])
    return prompts, control, samples


def test_samples_are_copies_by_the_threshold_of_their_picture_or_of_looks_never_seen() -> None:
    prompts, control, samples = tables()
    found = with_copies(samples, prompts, picture_thresholds(control, prompts))
    assert found["copies_own"][:6].tolist() == [True, False, True, True, True, False]
    assert found["copies_own"][6:].sum() == 0, "the nearest of 100 is the threshold"
    alone = with_copies(samples[:6], prompts, picture_thresholds(control, prompts))
    assert alone["copies_own"].tolist() == [True, False, True, True, False, False], "nothing says what chance does"


def test_a_picture_without_a_threshold_is_refused() -> None:
    prompts, control, samples = tables()
    limits = picture_thresholds(control, prompts).drop(9)
    with pytest.raises(ValueError, match="the picture of the prompt 'q' has no threshold; sample it in the control"):
        with_copies(samples, prompts, limits)
