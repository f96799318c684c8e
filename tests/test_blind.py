"""Measures of how simple a picture is, against known values."""

import pytest
import torch

from memlib.detectors import blind
from memlib.detectors.api import Items
from memlib.tensors import to_float


def test_measures_of_simplicity(generator: torch.Generator) -> None:
    flat = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    half = flat.clone()
    half[..., 8:] = 0
    noisy = torch.randint(0, 256, (1, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images = torch.cat([flat, half, noisy])
    sizes = blind.compressed_size(images)
    assert sizes[0] <= sizes[1] < sizes[2]
    assert sizes[2] > 16 * 16 * 3
    assert blind.flat_share(images).tolist() == [1.0, 0.5, 1 / 256]
    step = torch.zeros(1, 1, 2, 3)
    step[..., 1:] = 1.0
    assert float(blind.total_variation(step)) == pytest.approx((0 + 0.5) / 2)
    assert blind.total_variation(to_float(images)).argsort().tolist() == [0, 1, 2]
    assert blind.compressed_size(images[:, :1]).shape == (3,)


def test_looks_are_means_and_deviations_of_cells(generator: torch.Generator) -> None:
    pictures = torch.rand(2, 3, 6, 4, generator=generator)
    found = {scores.reading["part"]: scores for scores in blind.score_looks(None, Items("ab", 0, pictures), cells=2)}
    assert len(found) == 2 * 3 * 4
    assert {scores.evaluations for scores in found.values()} == {0}
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                cell = pictures[:, channel, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2].flatten(1)
                number = 4 * channel + 2 * row + column
                torch.testing.assert_close(found[f"mean{number}"].value, cell.mean(1))
                torch.testing.assert_close(
                    found[f"spread{number}"].value, cell.std(1, correction=0), rtol=1e-3, atol=1e-4
                )


def test_a_picture_is_not_its_own_neighbour(generator: torch.Generator) -> None:
    training = torch.randn(5, 3, 4, 4, generator=generator)
    distances = torch.cdist(training.flatten(1), training.flatten(1)).fill_diagonal_(float("inf")).min(1).values
    torch.testing.assert_close(blind.nearest_distance(training, training), distances)
    torch.testing.assert_close(blind.nearest_distance(training[:1] + 1.0, training[:1]), torch.tensor([48.0]).sqrt())


def test_the_rarest_word_is_that_of_the_fewest_captions() -> None:
    captions = ["a red red apple", "a blue apple", "the whale", "a green apple"]
    items = Items("abcde", prompts=["red apple", "a apple", "a whale of gold", "apple apple", ""], captions=captions)
    scores = blind.score_rarest_word(None, items)
    assert (scores.value.tolist(), scores.evaluations) == ([-1, -3, 0, -3, 0], 0)
