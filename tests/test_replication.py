"""Ground truth on models that are known to copy everything, or nothing."""

import pandas as pd
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from memlib.fields.mixtures import GaussianMixture, PointMasses
from memlib.sampling.grids import sigma_grid
from memlib.sampling.ode import decode
from memlib.truth import outcomes, replication
from memlib.truth.outcomes import RATIO


def sampled(model: GaussianMixture | PointMasses, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Samples of a closed-form model by the probability flow from pure noise."""
    return decode(model, 80.0 * torch.randn(shape, generator=generator), sigma_grid(0.01, 80.0, 30))


def names(n: int) -> list[str]:
    return [f"picture {i}" for i in range(n)]


def table(matches: replication.Matches) -> pd.DataFrame:
    """Of the ratio rule's columns those that a stage writes, the training pictures by name."""
    columns = {name: values.numpy() for name, values in matches._asdict().items()}
    return pd.DataFrame(columns | {"nearest": [f"picture {row}" for row in matches.nearest.tolist()]}).assign(
        picture="picture 0", relative=2.0, embedded_picture="picture 0", embedded_relative=2.0
    )


def test_a_perfect_memoriser_only_copies(generator: torch.Generator) -> None:
    training = torch.randn(12, 3, 4, 4, generator=generator)
    matches = replication.match(sampled(PointMasses(training), (300, 3, 4, 4), generator), training)
    assert (matches.ratio < RATIO).float().mean() > 0.97
    assert outcomes.reproduced(table(matches), names(12), "ratio")["reproduced"].all()


def test_copies_in_training_are_copied_more_often(generator: torch.Generator) -> None:
    training = torch.randn(8, 1, 4, 4, generator=generator)
    weights = torch.tensor([16.0, 16, 1, 1, 1, 1, 1, 1])
    samples = sampled(PointMasses(training, weights), (2000, 1, 4, 4), generator)
    counts = outcomes.reproduced(table(replication.match(samples, training)), names(8), "ratio")["generated_copies"]
    assert counts[names(2)].sum() / counts.sum() == pytest.approx(32 / 38, abs=0.03)


def test_a_model_that_generalises_copies_nothing(generator: torch.Generator) -> None:
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 32), torch.eye(32)[None])
    training = gaussian.sample(50, generator)
    matches = replication.match(sampled(gaussian, (500, 32), generator), training)
    assert not (matches.ratio < RATIO).any()


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_copy_is_nearer_to_one_picture_than_to_the_crowd(scale: float) -> None:
    training = scale * torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 30.0]])
    generated = scale * torch.tensor([[0.7, 0.0], [0.8, 0.0], [1.5, 0.1], [0.0, 22.4]])
    matches = replication.match(generated, training)
    assert (matches.ratio < RATIO).tolist() == [True, False, False, False]
    assert outcomes.is_copy(table(matches), "ratio").tolist() == [True, False, False, False]
    assert (replication.match(scale * torch.tensor([[0.0, 23.0]]), training).ratio < RATIO).all()


def test_nearest_pictures_are_those_of_sklearn(generator: torch.Generator) -> None:
    generated, training = (torch.randn(n, 1, 3, 3, generator=generator) for n in (5000, 40))
    distances, indices = (
        NearestNeighbors(n_neighbors=2).fit(training.flatten(1).numpy()).kneighbors(generated.flatten(1).numpy())
    )
    matches = replication.match(generated, training)
    assert (matches.nearest.numpy() == indices[:, 0]).all()
    torch.testing.assert_close(
        torch.stack([matches.distance, matches.second_distance], 1),
        torch.from_numpy(distances).float(),
        rtol=1e-3,
        atol=1e-3,
    )


def test_one_training_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two of them; there are 1"):
        replication.match(torch.zeros(3, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_a_picture_and_its_mirror_image_are_one(generator: torch.Generator) -> None:
    training = torch.rand(6, 3, 4, 4, generator=generator)
    training[0] = (training[0] + training[0].flip(-1)) / 2  # looks the same in the mirror
    generated = training.flip(-1) + 0.01 * torch.randn(training.shape, generator=generator)
    matches = replication.match(generated, training, mirrored=True)
    assert (matches.ratio < RATIO).all()
    assert matches.nearest.tolist() == list(range(6))
    assert not (replication.match(generated, training).ratio < RATIO)[1:].any()
    listed_twice = torch.cat([training, training.flip(-1)])
    assert not (replication.match(generated[:1], listed_twice).ratio < RATIO).any()


def test_a_table_of_matches_says_the_same_as_the_tensors(generator: torch.Generator) -> None:
    training = torch.randn(6, 1, 4, 4, generator=generator)
    rows = torch.tensor([4, 4, 1, 0])
    strength = torch.tensor([0.1, 0.2, 0.1, 3.0])[:, None, None, None]
    samples = training[rows] + strength * torch.randn(4, 1, 4, 4, generator=generator)
    matches = replication.match(samples, training)
    written = table(matches)
    assert outcomes.is_copy(written, "ratio").tolist() == (matches.ratio < RATIO).tolist() == [True, True, True, False]
    torch.testing.assert_close(torch.tensor(outcomes.ratio(written).to_numpy()), matches.ratio)
    order = names(6)[::-1]
    found = outcomes.reproduced(written, order, "ratio")
    assert found.index.tolist() == order
    assert found["generated_copies"].to_dict() == dict.fromkeys(order, 0) | {"picture 4": 2, "picture 1": 1}
    assert (found["reproduced"] == (found["generated_copies"] > 0)).all()
    assert found["reproduced"].dtype == bool
    with pytest.raises(ValueError, match="matched with other pictures: 'picture 4' is none of the 3 ids"):
        outcomes.reproduced(written.iloc[:3], names(3), "ratio")


def found(pictures: str, relative: list[float]) -> pd.DataFrame:
    """Matches by the calibrated rule; by the others no sample is a copy."""
    nothing = {"nearest": pictures[0], "distance": 1.0, "second_distance": 1.0}
    return pd.DataFrame({"picture": [*pictures], "relative": relative}).assign(
        **nothing, embedded_picture=pictures[0], embedded_relative=2.0
    )


def test_what_is_held_out_stands_beside_a_split_and_one_copy_by_chance_is_no_reproduction() -> None:
    items = pd.DataFrame(
        {
            "id": [*"hsrtu"],
            "split": ["heldout", "train", "reference", "train", "train"],
            "copies": [0, 16, 1, 1, 4],
        }
    )
    matches = found("ushut" * 20, [0.9, 2.0, 0.5, 0.3, 3.0] * 20)
    pictures = outcomes.judged(items, matches, "train")
    assert pictures["generated_copies"].to_dict() == {"h": 20, "s": 0, "t": 0, "u": 40}
    assert pictures["reproduced"].to_dict() == {"h": True, "s": False, "t": False, "u": True}
    assert pictures["copies"].to_dict() == {"h": 0, "s": 16, "t": 1, "u": 4}
    few = found("u" + "h" * 99, [0.5] + [2.0] * 99)
    assert outcomes.least_copies(100, 4) == 3
    assert not outcomes.judged(items, few, "train")["reproduced"].any()
    assert outcomes.judged(items, few.assign(relative=[0.5] * 3 + [2.0] * 97, picture="u"), "train").loc[
        "u", "reproduced"
    ]


@pytest.mark.parametrize(("samples", "pictures"), [(1024, 384), (384, 144), (100, 4), (50, 1000)])
def test_as_many_copies_as_few_unseen_pictures_reach_by_chance_make_a_reproduction(samples: int, pictures: int) -> None:
    from scipy.stats import binom

    least = outcomes.least_copies(samples, pictures)
    chance = binom(samples, outcomes.LEVEL / pictures)
    assert chance.sf(least - 1) <= 0.01
    assert least == 1 or chance.sf(least - 2) > 0.01


def test_examples_are_the_clearest_copies_and_the_hardest_cases() -> None:
    matches = found("aabcb", [0.3, 0.6, 1.5, 2.7, 1.02])
    assert outcomes.clearest(matches, 2) == [0, 4]
    assert outcomes.clearest(matches, 9) == [0, 4, 3], "one sample a picture"
    assert outcomes.borderline(matches, 3) == [4, 1, 2]


def test_the_agreement_of_the_rules_counts_every_sample_once() -> None:
    matches = found("aab", [0.5, 0.5, 2.0]).assign(
        nearest=["a", "b", "c"], distance=[1.0, 1, 9], second_distance=10.0, embedded_relative=[0.9, 1.1, 2.0]
    )
    table = outcomes.agreement(matches).set_index([*outcomes.RULES])
    assert table["samples"].to_dict() == {(True, True, True): 1, (True, True, False): 1, (False, False, False): 1}
    assert table["one picture"].to_dict() == {(True, True, True): 1, (True, True, False): 0, (False, False, False): 0}
