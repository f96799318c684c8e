"""Modified training pictures: what changes, what stays."""

import pandas as pd
import pytest
import torch

from memlib.mitigation.data import Modification, modify

COPIES = [4, 4, 4, *[1] * 7]


def pictures() -> tuple[torch.Tensor, pd.DataFrame]:
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, pd.DataFrame({"id": [f"picture {i}" for i in range(10)], "copies": COPIES})


def test_dropping_keeps_one_copy_of_each() -> None:
    original, items = pictures()
    images, changed = modify(original, items, [0, 1, 9], "drop", torch.Generator())
    assert changed["copies"].tolist() == [1, 1, 4, *[1] * 7]
    assert items["copies"].tolist() == COPIES
    assert torch.equal(images, original)


@pytest.mark.parametrize("how", ["augment", "mask"])
def test_every_copy_is_changed_in_its_own_way_and_the_others_stay(how: Modification) -> None:
    original, items = pictures()
    images, changed = modify(original, items, [0, 9], how, torch.Generator().manual_seed(1))
    assert changed["copies"].tolist() == [4, 4, *[1] * 11]
    assert torch.equal(images[:8], original[1:9])
    assert changed["id"].tolist()[8:] == ["picture 0"] * 4 + ["picture 9"]
    assert len(images[8:12].flatten(1).unique(dim=0)) > 1


def test_augmented_copies_are_the_picture_shifted_or_mirrored() -> None:
    original, items = pictures()
    changed = modify(original, items, [0] * 20, "augment", torch.Generator().manual_seed(1))[0][9:]
    known = []
    for picture in (original[:1], original[:1].flip(-1)):
        padded = torch.nn.functional.pad(picture.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
        known += [padded[0, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    matched = (changed[:, None] == torch.stack(known)).flatten(2).all(2)
    assert matched.any(1).all()
    assert matched.any(0).sum() >= 12


def test_a_masked_copy_hides_a_square_of_a_quarter() -> None:
    original, items = pictures()
    changed = modify(original, items, [2], "mask", torch.Generator().manual_seed(1))[0][9:]
    different = (changed != original[2]).any(1)
    assert different.flatten(1).sum(1).tolist() == [16] * 4
    for mask in different:
        assert (mask.any(0).sum(), mask.any(1).sum()) == (4, 4)


def test_an_unknown_modification_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown modification 'mirror'; known: drop, augment, mask"):
        modify(*pictures(), [0], "mirror", torch.Generator())


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_is_not_there_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match=f"there is no picture {row} to modify; the rows go from 0 to 9"):
        modify(*pictures(), [0, row], "drop", torch.Generator())
