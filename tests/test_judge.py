"""The judge of agreement: it knows new drawings of its subjects, and tells them from those of others."""

from dataclasses import replace

import pandas as pd
import torch
from conftest import AUTOENCODER
from safetensors.torch import save_file

from memlib import drawings, judge
from memlib.data import ImageSet, to_float


def test_the_judge_knows_new_drawings_of_its_subjects(tmp_path) -> None:
    subjects = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    subjects[0, :, 3:13, 6:10] = 0  # an upright bar
    subjects[1, :, 6:10, 3:13] = 0  # one lying down
    subjects[2, 0, 4:12, 4:12] = 0  # a square that is not red
    subjects[3, 2, 4:12, 4:12] = 0  # one that is not blue
    torch.manual_seed(0)
    network = judge.build_judge(4, 16)
    negative = lambda pictures: -to_float(pictures)  # noqa: E731
    run = judge.train_judge(
        network, subjects, negative, replace(AUTOENCODER, steps=200, batch=32, learning_rate=1e-2), tmp_path / "c.pt"
    )
    assert run.losses[-10:].mean() < 0.3
    which = torch.arange(4).repeat(25)
    new = to_float(drawings.draw(subjects[which], torch.Generator().manual_seed(9)))
    right = judge.agreement(network, new, which)
    assert right.mean() > 0.8
    assert judge.agreement(network, new, (which + 1) % 4).mean() < 0.1
    assert judge.agreement(network, -new, which).mean() > 0.8, "also as they are given back"
    save_file(network.state_dict(), tmp_path / "judge.safetensors")
    again = judge.load_judge(tmp_path / "judge.safetensors", 16)
    torch.testing.assert_close(judge.agreement(again, new, which), right)
    training = new[[0, 25, 50, 75]]
    samples = torch.stack([training, new[which.unique() * 25 + 8]], 1)
    judged = judge.judge_samples(network, samples, torch.arange(4), torch.arange(4), training)
    assert judged.copied[:, 0].all()
    assert judged.similarity[:, 0].min() == 1
    assert (judged.similarity[:, 1] < 0.9).all()
    assert not judged.copied[:, 1].all()
    assert judged.agreement.mean() > 0.8
    wrong = judge.judge_samples(network, samples, torch.tensor([1, 1, 2, 3]), torch.arange(4), training)
    assert wrong.agreement[0].mean() < 0.2 < wrong.agreement[1:].mean(1).min(), "each prompt asks for its own subject"
    others = judge.judge_samples(network, samples, torch.arange(4), torch.arange(4).roll(1), training)
    assert not others.copied.any()
    assert others.similarity[:, 0].max() == 0


def test_only_subjects_that_were_shown_have_a_class() -> None:
    splits = ["train", "unseen", "planted", "train", "unseen"]
    subjects = ImageSet(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), pd.DataFrame({"split": splits}))
    assert judge.subject_classes(subjects).tolist() == [0, -1, 1, 2, -1]
