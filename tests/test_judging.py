"""Samples judged from the results of the study: each prompt against its own subject and its own training picture."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import subjects
from safetensors.torch import save_file

from memlib.datasets import images
from memlib.datasets.drawings import captioned, judged_prompts, training_rows
from memlib.datasets.images import ImageSet
from memlib.datasets.items import write_samples
from memlib.study import judging
from memlib.tensors import to_float
from memlib.truth.classifier import build_judge


class Study(NamedTuple):
    """Subjects of which the judge does not know the first two, their drawings, the judge, and the prompts."""

    subjects: ImageSet
    drawn: ImageSet
    judge: torch.nn.Module
    prompts: pd.DataFrame

    def training(self, rows: np.ndarray) -> torch.Tensor:
        """Put these drawings where the study keeps what its models were trained on; the same in [-1, 1]."""
        pictures = self.drawn.images[rows.tolist()]
        write_samples("results/samples/training.safetensors", pictures[:, None], [str(row) for row in rows])
        return to_float(pictures)


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "training_pictures", judging.training_pictures.__wrapped__)  # without its memory
    found = subjects().rows([8, 9, *range(8)])
    drawn = captioned(found, 4, {50: 1}, seed=0)
    images.save(found, "results/drawings/subjects")
    images.save(drawn, "results/drawings/drawn")
    torch.manual_seed(0)
    judge = build_judge(8, 32)
    save_file(judge.state_dict(), "results/judge.safetensors")
    return Study(found, drawn, judge, judged_prompts(found, drawn, 3, 1))


def test_every_training_picture_is_a_copy_for_the_prompts_that_it_belongs_to(study: Study) -> None:
    rows = training_rows(study.drawn)
    pictures = study.training(rows)
    table = judging.judge(pictures.expand(len(study.prompts), -1, -1, -1, -1), study.prompts)
    assert table["id"].tolist() == study.prompts["id"].repeat(len(rows)).tolist()
    assert table["copies_any"].all()
    shown = study.drawn.items["subject"].to_numpy()[rows]
    for prompt, (_, found) in zip(study.prompts.itertuples(), table.groupby("id", sort=False), strict=True):
        own = rows == prompt.row if prompt.row >= 0 else shown == prompt.subject
        assert found["copies_own"].tolist() == own.tolist()
        if prompt.row >= 0:
            assert found["similarity"].tolist() == pytest.approx(own.astype(float), abs=0.01)
        else:
            assert found["similarity"].isna().all()


def test_the_subject_of_a_training_picture_is_that_of_its_row(study: Study) -> None:
    rows = np.random.default_rng(0).permutation(training_rows(study.drawn))
    pictures = study.training(rows)
    prompts = study.prompts[study.prompts["group"] == "ordinary"]
    table = judging.judge(pictures.expand(len(prompts), -1, -1, -1, -1), prompts)
    shown = study.drawn.items["subject"].to_numpy()[rows]
    expected = shown[None] == prompts["subject"].to_numpy()[:, None]
    assert expected.any(1).all()
    assert table["copies_own"].tolist() == expected.flatten().tolist()


def test_a_sample_agrees_as_far_as_the_judge_sees_its_subject(study: Study) -> None:
    study.training(training_rows(study.drawn))
    samples = study.drawn.floats[study.prompts["drawing"].tolist()][:, None].repeat(1, 2, 1, 1, 1)
    samples[:, 1] = -samples[:, 1]
    table = judging.judge(samples, study.prompts)
    assert not table["copies_any"][1::2].any()
    with torch.no_grad():
        chances = study.judge(samples.flatten(0, 1)).softmax(1).unflatten(0, (-1, 2))
    by_prompt = table.groupby("id", sort=False)["agreement"]
    for subject, chance, (_, found) in zip(study.prompts["subject"], chances, by_prompt, strict=True):
        if study.subjects.items["split"][subject] == "unseen":
            assert found.isna().all()
        else:
            # The two subjects that the judge does not know come first.
            assert found.tolist() == pytest.approx(chance[:, subject - 2].tolist(), rel=1e-4)
