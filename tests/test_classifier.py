"""The judge of agreement: it knows new drawings of its subjects and how they are drawn; samples against their own pictures."""

import numpy as np
import pandas as pd
import torch
from conftest import LOOP
from safetensors.torch import save_file

from memlib.datasets.attributes import ATTRIBUTES
from memlib.training.classifier import classes_of, fresh_drawings, train_judge
from memlib.training.settings import JudgeConfig
from memlib.truth import classifier


def test_the_judge_knows_new_drawings_of_its_subjects_and_their_looks(tmp_path) -> None:
    subjects = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    subjects[0, :, 2:14, 6:10] = 0  # an upright bar
    subjects[1, :, 6:10, 2:14] = 0  # one lying down
    subjects[2, 0, 2:14, 2:14] = 0  # a square that is not red
    subjects[3, 2, 2:14, 2:14] = 0  # one that is not blue
    torch.manual_seed(0)
    judge = classifier.Judge({"subject": 4, "ground": 8, "size": 2}, 16)
    config = JudgeConfig(**LOOP | {"steps": 120, "batch": 48, "learning_rate": 1e-2})
    run = train_judge(judge, subjects, torch.neg, config, tmp_path / "c.pt")
    assert run.losses[-10:].mean() < run.losses[:10].mean() / 4
    new, shown = fresh_drawings(subjects, 25, 9)
    for pictures in (new, -new):
        right = classifier.agreement(judge, pictures, shown)
        assert {name for name, chance in right.items() if chance.mean() > 0.75} == {"subject", *ATTRIBUTES}
    wrong = classifier.agreement(judge, new, {"subject": (shown["subject"] + 1) % 4})
    assert wrong["subject"].mean() < 0.1
    save_file(judge.state_dict(), tmp_path / "judge.safetensors")
    again = classifier.load_judge(tmp_path / "judge.safetensors", 16)
    for name, chance in classifier.agreement(again, -new, shown).items():
        torch.testing.assert_close(chance, right[name])


def test_fresh_drawings_are_those_of_their_classes() -> None:
    subjects = torch.full((3, 3, 16, 16), 255, dtype=torch.uint8)
    subjects[:, :, 4:12, 4:12] = torch.tensor([0, 60, 120], dtype=torch.uint8).reshape(3, 1, 1, 1)
    drawn, shown = fresh_drawings(subjects, 5, 0)
    assert shown["subject"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    darkest = drawn.flatten(1).amin(1)
    assert darkest[:5].max() < darkest[5:10].min()
    assert darkest[5:10].max() < darkest[10:].min()
    assert torch.equal(fresh_drawings(subjects, 5, 0)[0], drawn)
    assert not torch.equal(fresh_drawings(subjects, 5, 1)[0], drawn)
    looks = pd.DataFrame({"subject": [2], "ground": ["orange"], "size": ["big"]})
    assert {name: int(found) for name, found in classes_of(looks).items()} == {
        "subject": 2,
        "ground": 1,
        "size": 1,
    }


def test_a_sample_is_as_far_from_its_own_pictures_as_the_nearest_of_them() -> None:
    pictures = torch.eye(5).reshape(5, 1, 1, 5).expand(5, 3, 1, 5)
    trained = torch.tensor([True, True, True, True, False])
    own = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    prompts = pd.DataFrame({"id": list("abc"), "row": [70, -1, -1]})
    blurred = pictures[0] + 0.2 * (pictures[1] - pictures[0])  # at 1/4 of the distance to the second nearest
    middle = (pictures[0] + pictures[1]) / 2
    samples = torch.stack(
        [
            torch.stack([pictures[0], blurred, middle]),
            torch.stack([pictures[1], pictures[2], middle]),
            torch.stack([pictures[4], pictures[0], pictures[1]]),
        ]
    )
    chances = {"subject": [0.2, 0.5, 0.3], "ground": [0.9, 0.1]}

    class Judge(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: torch.tensor(row).log().expand(len(pictures), -1) for name, row in chances.items()}

    classes = {"subject": torch.tensor([0, 1, 2]), "ground": torch.tensor([0, 1, 1])}
    table = classifier.sample_table(Judge(), samples, prompts, classes, own, pictures, trained)
    assert table["id"].tolist() == [name for name in "abc" for _ in range(3)]
    assert table["noise"].tolist() == [0, 1, 2] * 3
    apart = (2 / 5) ** 0.5  # of two of the pictures, root mean square over their values
    expected = [0, 0.2 * apart, 0.5 * apart, 0, 0, 0.5 * apart, 0, apart, apart]
    np.testing.assert_allclose(table["distance"], expected, atol=1e-6)
    assert table["copies_ratio"].tolist() == [True, True, False, True, True, False, True, False, False]
    np.testing.assert_allclose(table["similarity"][:3], [1, 0.75, 0], atol=1e-5)
    assert table["similarity"][3:].isna().all(), "there is no planted picture to be like"
    np.testing.assert_allclose(table["agreement"], np.repeat([0.2, 0.5, 0.3], 3), rtol=1e-6)
    np.testing.assert_allclose(table["ground"], np.repeat([0.9, 0.1, 0.1], 3), rtol=1e-6)
