"""The judge of agreement: it knows new drawings of its subjects, and tells them from those of others."""

import numpy as np
import pandas as pd
import torch
from conftest import LOOP
from safetensors.torch import save_file

from memlib.datasets.drawings import render
from memlib.tensors import to_float
from memlib.training.classifier import train_judge
from memlib.training.settings import JudgeConfig
from memlib.truth import classifier


def test_the_judge_knows_new_drawings_of_its_subjects(tmp_path) -> None:
    subjects = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    subjects[0, :, 3:13, 6:10] = 0  # an upright bar
    subjects[1, :, 6:10, 3:13] = 0  # one lying down
    subjects[2, 0, 4:12, 4:12] = 0  # a square that is not red
    subjects[3, 2, 4:12, 4:12] = 0  # one that is not blue
    torch.manual_seed(0)
    network = classifier.build_judge(4, 16)
    config = JudgeConfig(**LOOP | {"steps": 200, "batch": 32, "learning_rate": 1e-2})
    run = train_judge(network, subjects, torch.neg, config, tmp_path / "c.pt")
    assert run.losses[-10:].mean() < 0.3
    which = torch.arange(4).repeat(25)
    new = to_float(render(subjects[which], torch.Generator().manual_seed(9)))
    right = classifier.agreement(network, new, which)
    assert right.mean() > 0.8
    assert classifier.agreement(network, new, (which + 1) % 4).mean() < 0.1
    assert classifier.agreement(network, -new, which).mean() > 0.8, "also as they are given back"
    save_file(network.state_dict(), tmp_path / "judge.safetensors")
    again = classifier.load_judge(tmp_path / "judge.safetensors", 16)
    torch.testing.assert_close(classifier.agreement(again, new, which), right)


def test_only_subjects_that_were_shown_have_a_class() -> None:
    assert classifier.subject_classes(["train", "unseen", "planted", "train", "unseen"]).tolist() == [0, -1, 1, 2, -1]


def test_a_sample_is_a_copy_of_its_own_picture_or_of_another() -> None:
    training = torch.eye(5).reshape(5, 1, 1, 5).expand(5, 3, 1, 5)
    shown = torch.tensor([0, 1, 1, 2, 2])  # subject 0 is planted, 1 is ordinary, 2 is planted and has a drawing beside
    prompts = pd.DataFrame({"id": list("abcd"), "subject": [0, 1, 2, 3], "row": [70, -1, 90, -1], "own": [0, 1, 3, -1]})
    blurred = training[0] + 0.2 * (training[1] - training[0])  # at 1/4 of the distance to the second nearest
    middle = (training[0] + training[1]) / 2
    samples = torch.stack(
        [
            torch.stack([training[0], blurred, middle]),
            torch.stack([training[1], training[2], training[0]]),
            torch.stack([training[3], training[4], training[1]]),
            torch.stack([training[4], middle, middle]),
        ]
    )

    class Judge(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.log(torch.tensor([0.2, 0.5, 0.3])).expand(len(pictures), 3)

    table = classifier.sample_table(Judge(), samples, prompts, torch.tensor([0, 1, 2, -1]), training, shown)
    assert table["id"].tolist() == [name for name in "abcd" for _ in range(3)]
    assert table["noise"].tolist() == [0, 1, 2] * 4
    assert table["copies_any"].tolist() == [True, True, False, True, True, True, True, True, True, True, False, False]
    own = [True, True, False, True, True, False, True, False, False, False, False, False]
    assert table["copies_own"].tolist() == own, "a drawing beside the planted one does not count for its prompt"
    np.testing.assert_allclose(table["similarity"][:3], [1, 0.75, 0], atol=1e-5)
    assert table["similarity"].isna().tolist() == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    np.testing.assert_allclose(table["agreement"][:9], np.repeat([0.2, 0.5, 0.3], 3), rtol=1e-6)
    assert table["agreement"][9:].isna().all()
