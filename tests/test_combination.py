"""Scores combined with labels: scikit-learn's regression, and nothing of the judged half."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from memlib.evaluation.combination import learned
from memlib.evaluation.split import choose, stratified_split


def table(n: int = 120, columns: int = 4, signal: float = 0.0, seed: int = 0) -> tuple[pd.DataFrame, tuple, np.ndarray]:
    """Scores of which each says as little, of items of which a third are positive, a third negative, and a third neither."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % 3
    values = rng.normal(size=(n, columns)) * 10.0 ** np.arange(columns) + 5
    values += signal * (group == 0)[:, None] * 10.0 ** np.arange(columns)
    scores = pd.DataFrame(values, [f"item {i}" for i in range(n)], [f"score {i}" for i in range(columns)])
    return scores, (group == 0, group == 1), stratified_split(group, np.zeros(n), seed)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_weights_are_those_of_scikit_learn(penalty: float) -> None:
    scores, (positive, negative), choosing = table(signal=0.7)
    known = (positive | negative) & choosing
    scaler = StandardScaler().fit(scores[known])
    model = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(scores[known]), positive[known])
    expected = model.decision_function(scaler.transform(scores))
    found = learned(scores, (positive, negative), choosing, penalty)
    assert found.index.equals(scores.index)
    np.testing.assert_allclose(found["learned"], expected, rtol=1e-3, atol=1e-4)


def test_nothing_of_the_other_half_reaches_the_weights() -> None:
    scores, contrast, choosing = table(signal=0.7)
    other = scores.copy()
    other[~choosing] *= -3
    turned = tuple(np.where(choosing, group, ~group) for group in contrast)
    found, again = learned(scores, contrast, choosing), learned(other, turned, choosing)
    pd.testing.assert_frame_equal(found[choosing], again[choosing])


def test_weak_scores_are_stronger_together_and_none_is_made_of_chance() -> None:
    together, alone, chance = [], [], []
    for seed in range(30):
        scores, contrast, choosing = table(240, signal=0.7, seed=seed)
        together.append(choose(learned(scores, contrast, choosing), contrast, choosing).reported.value)
        alone.append(choose(scores[["score 0"]], contrast, choosing).reported.value)
        scores, contrast, choosing = table(240, columns=30, seed=seed)
        chance.append(choose(learned(scores, contrast, choosing), contrast, choosing).reported.value)
    assert np.mean(together) > np.mean(alone) + 0.1
    assert abs(np.mean(chance) - 0.5) < 0.04


def test_what_cannot_be_learned_is_refused() -> None:
    scores, (positive, negative), choosing = table()
    with pytest.raises(ValueError, match="0 positives and 20 negatives are there to learn from"):
        learned(scores, (positive & ~choosing, negative), choosing)
    scores["constant"] = 3.0
    assert np.isfinite(learned(scores, (positive, negative), choosing)["learned"]).all()
    scores.loc["item 7", "score 2"] = np.nan
    with pytest.raises(ValueError, match="the score 'score 2' is not finite for every item"):
        learned(scores, (positive, negative), choosing)
