"""The identities of one field and where its readings disagree, against closed forms; levels of score tables, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_bench import made

from memlib.detectors.denoising import denoising_loss
from memlib.detectors.geometry import score_flipd
from memlib.evaluation import levels
from memlib.evaluation.disagreements import (
    CAPTIONS,
    HIGH,
    LOW,
    NOISY,
    PAIRS,
    Pair,
    Point,
    captioned,
    closed_form,
    measured,
    mixture_of,
    rates,
    ring,
    verdicts,
)
from memlib.evaluation.identities import (
    expected_loss,
    identities,
    log_caption,
    over_noise,
    relative_error,
    under_caption,
)
from memlib.evaluation.measures import auroc
from memlib.fields.mixtures import GaussianMixture
from memlib.sampling.grids import sigma_grid
from memlib.tables import setting_name

FLOAT = torch.float64


def plane(seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    root = 0.5 * torch.randn(4, 2, 2, generator=generator, dtype=FLOAT)
    means = 1.5 * torch.randn(4, 2, generator=generator, dtype=FLOAT)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=FLOAT)
    return GaussianMixture(weights, means, root @ root.mT + 0.2 * torch.eye(2, dtype=FLOAT))


CHANCES = torch.tensor([0.9, 0.1, 0.5, 0.0], dtype=FLOAT)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = plane().sample(8, generator) + 0.5 * torch.randn(8, 2, generator=generator, dtype=FLOAT)
    return identities(plane(), CHANCES, x, 0.5, sigma_grid(0.1, 10.0, 60, float("inf")), [1.0, 1.5, 3.0])


def test_the_identities_hold_to_the_precision_of_what_computes_them(pairs: dict) -> None:
    errors = {name: relative_error(*pair) for name, pair in pairs.items()}
    steps, quadrature = errors.pop("growth, as a likelihood"), errors.pop("loss")
    assert max(errors.values()) < 1e-10, errors
    assert steps < 1e-2
    assert quadrature < 1e-8
    assert all(pair[0].std() > 0.01 for pair in pairs.values()), "nothing to agree about"


def test_an_error_is_relative_to_the_largest_value() -> None:
    assert relative_error(torch.tensor([1.0, 3.0, -4.0]), torch.tensor([1.0, 2.0, -4.0])) == 0.25


def test_the_likelihood_of_a_growth_is_as_good_as_its_steps() -> None:
    x = plane().sample(4, torch.Generator().manual_seed(2))
    errors = [
        relative_error(
            *identities(plane(), CHANCES, x, 0.5, sigma_grid(0.1, 10.0, steps, float("inf")), [2.0])[
                "growth, as a likelihood"
            ]
        )
        for steps in (30, 60)
    ]
    assert 3 < errors[0] / errors[1] < 5.5, "a solver of second order"


def test_a_caption_selects_by_bayes_rule() -> None:
    mixture, x = plane(), torch.tensor([[0.3, -0.2], [1.0, 2.0]], dtype=FLOAT)
    densities = torch.stack(
        [
            torch.from_numpy(
                stats.multivariate_normal(mean.numpy(), (cov + 0.25 * torch.eye(2)).numpy()).pdf(x.numpy())
            )
            for mean, cov in zip(mixture.means, mixture.covariances, strict=True)
        ]
    )
    joint = mixture.weights[:, None] * densities
    expected = (CHANCES @ joint) / joint.sum(0)
    torch.testing.assert_close(log_caption(mixture, CHANCES, x, 0.5).exp(), expected)
    under = under_caption(mixture, CHANCES)
    assert under.means.shape == (3, 2)
    torch.testing.assert_close(under.log_density(x, 0.5).exp(), (CHANCES @ joint) / (CHANCES @ mixture.weights))


def test_the_expected_loss_is_the_mean_of_the_detectors_draws() -> None:
    mixture, x = plane(), torch.tensor([[0.3, -0.2], [1.0, 2.0]], dtype=FLOAT)
    losses = denoising_loss(mixture, x, 0.5, 20_000, [3, 4])
    error = losses.std(0) / len(losses) ** 0.5
    assert ((losses.mean(0) - expected_loss(mixture, x, 0.5)).abs() < 4 * error).all()


def test_the_quadrature_has_the_moments_of_noise() -> None:
    noise, weights = over_noise(3, 6)
    assert noise.shape == (216, 3)
    torch.testing.assert_close(weights @ noise, torch.zeros(3, dtype=FLOAT))
    torch.testing.assert_close(noise.T @ (weights[:, None] * noise), torch.eye(3, dtype=FLOAT))
    torch.testing.assert_close(weights @ noise.pow(4), torch.full((3,), 3.0, dtype=FLOAT))


@pytest.mark.parametrize("name", PAIRS)
def test_what_detectors_read_at_two_points_is_the_closed_form(name: str) -> None:
    pair = PAIRS[name]
    found = measured(pair)
    expected = pd.DataFrame({side: closed_form(getattr(pair, side), pair.sigma) for side in ("first", "second")})
    growths = found.loc["growth"], expected.loc["growth"]
    np.testing.assert_allclose(*growths, rtol=2e-3)  # of its steps
    np.testing.assert_allclose(found.drop("growth"), expected.drop("growth").loc[found.index.drop("growth")], rtol=1e-8)


def test_the_flipd_of_a_pair_is_the_detectors() -> None:
    """Their Jacobians are diagonal, where one random sign gives the trace."""

    class Plane:
        takes_prompts = False

        def __call__(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
            return mixture(y, sigma)

        def to_latents(self, x: torch.Tensor) -> torch.Tensor:
            return x

    from memlib.detectors.api import Items

    for pair in PAIRS.values():
        mixture, x = mixture_of(pair.first, pair.second)
        items = Items(["a", "b"], pictures=x)
        *_, flipd = score_flipd(Plane(), items, sigma=pair.sigma, directions=[1])
        np.testing.assert_allclose(-flipd.value, measured(pair).loc["FLIPD"], rtol=1e-9)


def said(name: str) -> dict[str, str]:
    return verdicts(measured(PAIRS[name])).to_dict()


def test_with_one_laplacian_only_the_score_tells() -> None:
    found = said("same Laplacian, other score")
    assert {name for name, who in found.items() if who == "neither"} == {"growth rate", "growth"}
    assert found.pop("3-Laplacian") == "second", "p above 2 turns the order round"
    assert {who for who in found.values() if who != "neither"} == {"first"}


def test_flipd_and_the_loss_weigh_the_same_two_parts_otherwise() -> None:
    found = said("same ingredients, other recipe")
    assert (found["growth rate"], found["FLIPD"]) == ("first", "first")
    assert (found["length"], found["loss"]) == ("second", "second")


def test_width_is_seen_and_weight_is_not() -> None:
    found = said("narrow, not heavy")
    assert found.pop("log-density") == "second"
    assert set(found.values()) == {"first"}
    pair = PAIRS["narrow, not heavy"]
    equal = pair._replace(first=pair.first._replace(weight=0.5), second=pair.second._replace(weight=0.5))
    before, after = measured(pair), measured(equal)
    pd.testing.assert_frame_equal(before.drop("log-density"), after.drop("log-density"))
    assert verdicts(after)["log-density"] == "first"


def test_one_level_and_all_levels_order_two_points_otherwise() -> None:
    found, pair = said("narrow at one scale"), PAIRS["narrow at one scale"]
    assert (found["growth rate"], found["growth"]) == ("first", "second")
    over = rates(pair, [pair.sigma, 1.0])
    assert (over["first"] > over["second"]).tolist() == [True, False]
    for side in over:
        expected = [closed_form(getattr(pair, side), sigma)["growth rate"] for sigma in over.index]
        np.testing.assert_allclose(over[side], expected, rtol=1e-9)


def test_a_reading_with_no_difference_calls_neither() -> None:
    point = Point((0.5, 0.5), (0.3, 0.0))
    assert set(verdicts(measured(Pair("", point, point, 0.5)))) == {"neither"}
    turned = pd.DataFrame({"first": [1.0, 1.0], "second": [2.0, 2.0]}, ["growth", "loss"])
    assert verdicts(turned).to_dict() == {"growth": "second", "loss": "first"}


def test_the_magnitude_sees_the_caption_and_the_rate_the_picture() -> None:
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    found = captioned(noise)
    assert list(found.index) == [*CAPTIONS]
    alone, half, everything = (found.loc[name] for name in CAPTIONS)
    assert alone["magnitude"] > half["magnitude"] > everything["magnitude"] == 0
    assert alone["growth rate"] == pytest.approx(half["growth rate"])
    assert everything["growth rate"] == pytest.approx(2 * 0.04 / (0.05**2 + 0.04), rel=1e-4)
    assert alone["growth rate"] == pytest.approx(2 * 0.04 / (0.5**2 + 0.04), rel=1e-4)
    mixture = ring()
    own = GaussianMixture(torch.ones(1, dtype=FLOAT), mixture.means[2:3], mixture.covariances[2:3])
    expected = NOISY * (own.score(NOISY * noise, NOISY) - mixture.score(NOISY * noise, NOISY)).norm(dim=1).mean()
    assert alone["magnitude"] == pytest.approx(float(expected))
    assert LOW < HIGH


def test_the_dearest_column_of_a_reading_is_taken() -> None:
    names = {
        ("loss", setting_name({"sigma": 0.2, "draws": 1})): 1,
        ("loss", setting_name({"sigma": 0.2, "draws": 4})): 4,
        ("loss", setting_name({"sigma": 0.8, "draws": 4})): 4,
        ("flipd", setting_name({"sigma": 0.2, "directions": 2, "quantity": "rate"})): 3,
        ("flipd", setting_name({"sigma": 0.2, "directions": 1, "quantity": "flipd"})): 2,
        ("magnitude", "noise=0"): 1,
        ("magnitude", "noises=4"): 4,
        ("growth", "rate_at=0.2 sigma_min=0.02 steps=4"): 3,
        ("growth", "sigma_min=0.02 steps=4"): 9,
        ("growth", "rate_at=3 sigma_min=0.02 steps=4"): 10,
    }
    about = pd.DataFrame({"evaluations": [*names.values()]}, pd.MultiIndex.from_tuples(names))
    assert levels.dearest(about, "loss", sigma=0.2) == ("loss", "draws=4 sigma=0.2")
    assert levels.dearest(about, "loss", sigma=0.4) is None
    assert levels.dearest(about, "magnitude") == ("magnitude", "noises=4")
    assert levels.dearest(about, "growth", rate_at=None) == ("growth", "sigma_min=0.02 steps=4")
    assert levels.levels_of(about, "loss") == [0.2, 0.8]
    assert levels.levels_of(about, "magnitude") == []
    scores = pd.DataFrame(np.arange(20.0).reshape(2, 10), ["a", "b"], about.index)
    found = levels.at_level(scores, about, 0.2)
    assert found.to_dict("list") == {"loss": [1.0, 11.0], "FLIPD": [4.0, 14.0]}
    own = pd.Series([5.0, 7.0], ["b", "z"])
    found = levels.one_field(scores, about, 0.2, own)
    assert [*found] == ["loss", "FLIPD", "growth", "magnitude"]
    assert found["growth"].tolist() == [8.0, 18.0]
    assert found["magnitude"].fillna(0).tolist() == [0.0, 5.0]
    assert [*levels.one_field(scores, about, 0.2)] == ["loss", "FLIPD", "growth"]
    assert levels.common_level(about) == 0.2, "two detectors, against one at 0.8, which lies nearer to the middle"
    assert levels.common_level(about, {"loss": ("loss", {})}) == 0.8


def test_correlations_are_means_over_models_and_over_what_both_have() -> None:
    rng = np.random.default_rng(0)
    tables = [pd.DataFrame(rng.normal(size=(30, 3)), columns=list("abc")) for _ in range(2)]
    tables[0].loc[:9, "c"] = np.nan
    found = levels.mean_correlations(tables)
    expected = np.mean(
        [
            stats.spearmanr(tables[0]["a"][10:], tables[0]["c"][10:])[0],
            stats.spearmanr(tables[1]["a"], tables[1]["c"])[0],
        ]
    )
    assert found.loc["a", "c"] == found.loc["c", "a"] == pytest.approx(expected)
    assert np.diag(found) == pytest.approx(1)


def test_along_the_path_every_level_is_measured_on_all_items() -> None:
    case = made(3, 40, signal=1.0)
    found = levels.along_path(case, ["loss", "absent"], 5)
    assert [*found] == [0.1, 0.2, 0.4]
    column = ("loss", setting_name({"sigma": 0.2, "draws": 4}))
    rows = case.rows
    expected = auroc(case.scores[column], rows["positive"], rows["item"], rows["training"], 5)
    assert found[0.2].interval() == expected.interval()
    np.testing.assert_array_equal(found[0.2].resampled, expected.resampled)
    assert [*levels.along_path(case, ["length", "loss"])] == [0.1, 0.2, 0.4], "length has the middle one alone"
    shares = levels.share_best(found)
    assert shares.sum() == pytest.approx(1)
    resampled = np.stack([each.resampled for each in found.values()])
    assert shares[0.2] == pytest.approx((resampled.argmax(0) == 1).mean(), abs=0.02)


def test_a_level_that_is_best_in_every_resample_has_all_of_the_share_and_equals_share_it() -> None:
    case = made(3, 40, signal=1.0)
    found = levels.along_path(case, ["loss"])
    one = found[0.1]
    assert levels.share_best({0.1: one, 0.2: one}).to_dict() == {0.1: 0.5, 0.2: 0.5}
    better = replace(one, resampled=one.resampled + 0.1)
    assert levels.share_best({0.1: one, 0.2: better}).to_dict() == {0.1: 0.0, 0.2: 1.0}
    better.resampled[0] = np.nan  # a resample without positives
    assert levels.share_best({0.1: one, 0.2: better}).to_dict() == {0.1: 0.0, 0.2: 1.0}


@pytest.mark.parametrize(("sigma", "t"), [(0.0, 0.0), (1.0, 0.5), (3.0, 0.75)])
def test_the_place_on_a_rectified_flow(sigma: float, t: float) -> None:
    """x_t = (1 - t) x0 + t n is (1 - t) times x0 + sigma n."""
    assert levels.place_on_path(sigma) == t
