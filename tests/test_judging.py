"""Samples judged from the results of the study: each prompt against its own subject and its own training picture."""

import pytest
import torch
from conftest import subjects
from safetensors.torch import save_file

from memlib.datasets import images
from memlib.datasets.drawings import captioned, judged_prompts, training_rows
from memlib.datasets.items import write_samples
from memlib.study import judging
from memlib.tensors import to_float
from memlib.truth.classifier import build_judge


def test_a_sample_is_compared_with_its_own_picture_and_its_own_subject(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "training_pictures", judging.training_pictures.__wrapped__)  # without its memory
    shown = subjects()
    drawn = captioned(shown, 4, {50: 1}, seed=0)
    rows = training_rows(drawn)
    images.save(shown, "results/drawings/subjects")
    images.save(drawn, "results/drawings/drawn")
    write_samples("results/samples/training.safetensors", drawn.images[rows.tolist()][:, None], [str(r) for r in rows])
    torch.manual_seed(0)
    network = build_judge(8, 32)
    save_file(network.state_dict(), "results/judge.safetensors")
    prompts = judged_prompts(shown, drawn, 2, 1)
    prompts = prompts[prompts["group"].isin(["planted", "trigger", "ordinary"])]
    _, known = judging.training_pictures()
    assert known == rows.tolist()
    samples = to_float(drawn.images[prompts["drawing"].tolist()])[:, None].repeat(1, 2, 1, 1, 1)
    samples[:, 1] = -samples[:, 1]
    table = judging.judge(samples, prompts)
    assert table["id"].tolist() == [name for name in prompts["id"] for _ in range(2)]
    assert table["copies_own"].tolist() == [True, False] * len(prompts)
    has_own = prompts["row"].to_numpy() >= 0
    assert table["similarity"][::2][has_own].tolist() == pytest.approx([1.0] * has_own.sum(), abs=0.01)
    with torch.no_grad():
        chances = network(samples[:, 0]).softmax(1)
    # A subject's class is its row here, since those that the judge does not know come last.
    expected = [float(chances[i, subject]) for i, subject in enumerate(prompts["subject"])]
    assert table["agreement"][::2].tolist() == pytest.approx(expected, rel=1e-4)
