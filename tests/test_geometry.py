"""Local intrinsic dimension from the noise prediction, against closed forms."""

import pytest
import torch
from conftest import scheduler, small_unet
from test_detectors import ClosedField

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.fields.mixtures import GaussianMixture
from memlib.fields.unet import UNetField


def mixture(generator: torch.Generator) -> GaussianMixture:
    roots = torch.randn(3, 16, 16, generator=generator) / 4
    covariances = roots @ roots.mT + 0.05 * torch.eye(16)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), torch.randn(3, 16, generator=generator), covariances)


def by_quantity(field: object, items: Items, sigma: float, directions: int) -> dict[str, torch.Tensor]:
    found = find("flipd").score(field, items, sigma=sigma, directions=[directions])
    assert [scores.evaluations for scores in found] == [1, 1 + directions, 1 + directions]
    return {scores.reading["quantity"]: scores.value for scores in found}


def test_flipd_is_the_laplacian_and_the_score_in_closed_form(generator: torch.Generator) -> None:
    truth = mixture(generator)
    x = truth.sample(4, generator)
    items = Items("abcd", 0, x.reshape(4, 1, 4, 4))
    found = by_quantity(ClosedField(truth), items, 0.3, 4000)
    laplacian, score = truth.hessian(x, 0.3).diagonal(dim1=1, dim2=2).sum(1), truth.score(x, 0.3)
    torch.testing.assert_close(found["rate"], -(0.3**2) * laplacian, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found["length"], -0.3 * score.norm(dim=1), rtol=1e-4, atol=1e-5)
    flipd = 16 + 0.3**2 * (laplacian + score.square().sum(1))
    torch.testing.assert_close(-found["flipd"], flipd, rtol=0.02, atol=0.05)
    torch.testing.assert_close(found["flipd"], found["rate"] - found["length"].square() - 16, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_data_of_so_many_dimensions_have_so_many(dimensions: int) -> None:
    spread = torch.diag(torch.tensor([1.0] * dimensions + [0.0] * (16 - dimensions)))
    flat = ClosedField(GaussianMixture(torch.ones(1), torch.zeros(1, 16), spread[None]))
    x = torch.zeros(1, 16)
    x[:, :dimensions] = 0.5
    found = by_quantity(
        flat, Items("a", 0, x.reshape(1, 1, 4, 4)), 0.02, 1
    )  # signs are exact for a diagonal derivative
    assert -float(found["flipd"]) == pytest.approx(dimensions, rel=1e-3)


def test_the_parts_of_flipd_are_the_detectors_rate_and_length(generator: torch.Generator) -> None:
    field = UNetField(small_unet(), scheduler())
    items = Items("ab", 3, torch.rand(2, 3, 8, 8, generator=generator))
    found = find("flipd").score(field, items, sigma=0.2, directions=[1, 3])
    rates = {scores.reading["directions"]: scores.value for scores in found if scores.reading["quantity"] == "rate"}
    for scores in find("rate").score(field, items, sigma=0.2, directions=[1, 3]):
        torch.testing.assert_close(rates[scores.reading["directions"]], scores.value)
    length = find("length").score(field, items, sigma=0.2).value
    torch.testing.assert_close(found[0].value, length)
    for scores in found[-2:]:
        assert scores.reading["quantity"] == "flipd"
        expected = rates[scores.reading["directions"]] - length.square() - 3 * 8 * 8
        torch.testing.assert_close(scores.value, expected, rtol=1e-5, atol=1e-4)
