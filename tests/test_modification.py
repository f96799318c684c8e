"""Modified training pictures: what changes, what stays."""

import pytest
import torch
from test_data import planted

from memlib import modification
from memlib.data import ImageSet


def pictures() -> ImageSet:
    train = planted({4: 3}).split("train")
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(images, train.items)


def test_dropping_keeps_one_copy_of_each() -> None:
    original = pictures()
    changed = modification.modify(original, [0, 1, 9], "drop", torch.Generator())
    assert changed.items["copies"].tolist() == [1, 1, 4, *[1] * 7]
    assert original.items["copies"].tolist() == [4, 4, 4, *[1] * 7]
    assert torch.equal(changed.images, original.images)


@pytest.mark.parametrize("how", ["augment", "mask"])
def test_every_copy_is_changed_in_its_own_way_and_the_others_stay(how: modification.Modification) -> None:
    original = pictures()
    changed = modification.modify(original, [0, 9], how, torch.Generator().manual_seed(1))
    assert changed.items["copies"].sum() == original.items["copies"].sum()
    assert torch.equal(changed.images[:8], original.images[1:9])
    assert changed.items["name"].tolist()[8:] == [original.items["name"][0]] * 4 + [original.items["name"][9]]
    assert len(changed.images[8:12].flatten(1).unique(dim=0)) > 1


def test_augmented_copies_are_the_picture_shifted_or_mirrored() -> None:
    original = pictures()
    changed = modification.modify(original, [0] * 20, "augment", torch.Generator().manual_seed(1)).images[9:]
    known = []
    for picture in (original.images[:1], original.images[:1].flip(-1)):
        padded = torch.nn.functional.pad(picture.float(), (1, 1, 1, 1), mode="replicate").to(torch.uint8)
        known += [padded[0, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    matched = (changed[:, None] == torch.stack(known)).flatten(2).all(2)
    assert matched.any(1).all()
    assert matched.any(0).sum() >= 12


def test_a_masked_copy_hides_a_square_of_a_quarter() -> None:
    original = pictures()
    changed = modification.modify(original, [2], "mask", torch.Generator().manual_seed(1)).images[9:]
    different = (changed != original.images[2]).any(1)
    assert different.flatten(1).sum(1).tolist() == [16] * 4
    for mask in different:
        assert (mask.any(0).sum(), mask.any(1).sum()) == (4, 4)


def test_an_unknown_modification_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown modification 'mirror'; known: drop, augment, mask"):
        modification.modify(pictures(), [0], "mirror", torch.Generator())
