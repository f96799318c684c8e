"""The judge of agreement: it knows new drawings of its subjects, and tells them from those of others."""

from dataclasses import replace

import torch
from conftest import AUTOENCODER

from memlib import drawings, judge
from memlib.data import to_float


def test_the_judge_knows_new_drawings_of_its_subjects(tmp_path) -> None:
    subjects = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    subjects[0, :, 3:13, 6:10] = 0  # an upright bar
    subjects[1, :, 6:10, 3:13] = 0  # one lying down
    subjects[2, 0, 4:12, 4:12] = 0  # a square that is not red
    subjects[3, 2, 4:12, 4:12] = 0  # one that is not blue
    torch.manual_seed(0)
    network = judge.build_judge(4, 16, 8)
    run = judge.train_judge(
        network, subjects, replace(AUTOENCODER, steps=200, batch=32, learning_rate=1e-2), tmp_path / "c.pt"
    )
    assert run.losses[-10:].mean() < 0.3
    which = torch.arange(4).repeat(25)
    new = to_float(drawings.draw(subjects[which], torch.Generator().manual_seed(9)))
    right = judge.agreement(network, new, which)
    assert right.mean() > 0.8
    assert judge.agreement(network, new, (which + 1) % 4).mean() < 0.1
