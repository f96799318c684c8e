"""Samples judged from the results of the study: each prompt against its own pictures and what it asks for."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_world, subjects
from safetensors.torch import save_file

from memlib.datasets import images
from memlib.datasets.attributes import ATTRIBUTES
from memlib.datasets.drawings import LOOK, training_rows
from memlib.datasets.images import ImageSet
from memlib.datasets.items import write_samples
from memlib.datasets.judged import judged_prompts
from memlib.datasets.roles import DIAL, PLANTED, ROLES
from memlib.files import write_table
from memlib.study import judging
from memlib.training.classifier import classes_of
from memlib.truth.classifier import Judge


class Study(NamedTuple):
    """Drawings, the judge, and the prompts."""

    drawn: ImageSet
    judge: Judge
    prompts: pd.DataFrame


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "pictures_of", judging.pictures_of.__wrapped__)  # without its memory
    drawn = small_world()
    images.save(drawn, "results/drawings/drawn")
    torch.manual_seed(0)
    judge = Judge({"subject": 14} | {name: len(values) for name, values in ATTRIBUTES.items()}, 32)
    save_file(judge.state_dict(), "results/judge.safetensors")
    unseen = np.flatnonzero(drawn.items["split"] == "unseen")
    for kind, rows in (("training", np.random.default_rng(0).permutation(training_rows(drawn))), ("unseen", unseen)):
        pictures = drawn.images[rows.tolist()][:, None]
        write_samples(f"results/samples/{kind}.safetensors", pictures, [str(row) for row in rows])
    prompts = judged_prompts(subjects(), drawn, 4, 3, 0)
    return Study(drawn, judge, prompts[~prompts["group"].isin([*DIAL.values()])])


def test_a_prompt_has_its_planted_picture_or_the_drawings_of_its_look(study: Study) -> None:
    items = study.drawn.items
    rows = np.flatnonzero(items["split"] != "free")
    rows = rows[np.random.default_rng(1).permutation(len(rows))[:60]]
    rows = np.concatenate([rows, study.prompts["drawing"]])
    samples = study.drawn.floats[rows.tolist()].expand(len(study.prompts), -1, -1, -1, -1)
    table = judging.measure(samples, study.prompts)
    assert table["id"].tolist() == study.prompts["id"].repeat(len(rows)).tolist()
    look = items[LOOK].iloc[rows].to_numpy().tolist()
    usual = items["split"].iloc[rows].isin(["train", "unseen"]).to_numpy()
    for prompt, (_, found) in zip(study.prompts.itertuples(), table.groupby("id", sort=False), strict=True):
        asked = [prompt.subject, prompt.ground, prompt.size]
        own = rows == prompt.row if prompt.row >= 0 else np.array([row == asked for row in look]) & usual
        assert own.any()
        np.testing.assert_allclose(found["distance"][own], 0, atol=3e-3)
        assert (found["distance"][~own] > 0.01).all()
        assert found["copies_ratio"][own].all()
        assert found["similarity"].isna().all() == (prompt.row < 0)


def test_a_sample_agrees_as_far_as_the_judge_sees_what_is_asked_for(study: Study) -> None:
    samples = study.drawn.floats[study.prompts["drawing"].tolist()][:, None].repeat(1, 2, 1, 1, 1)
    samples[:, 1] = -samples[:, 1]
    table = judging.measure(samples, study.prompts)
    with torch.no_grad():
        logits = study.judge(samples.flatten(0, 1))
    for name, classes in classes_of(study.prompts).items():
        chance = logits[name].softmax(1)[range(len(table)), classes.repeat_interleave(2)]
        np.testing.assert_allclose(table["agreement" if name == "subject" else name], chance, rtol=1e-4)


def test_a_copy_is_nearer_than_the_control_of_the_other_role_comes(study: Study, monkeypatch) -> None:
    monkeypatch.setattr(judging, "thresholds", judging.thresholds.__wrapped__)
    write_table("tables/drawings/prompts.parquet", study.prompts)
    own = study.prompts[study.prompts["group"].isin(PLANTED)]
    for role, other in (ROLES, ROLES[::-1]):
        free = own[own["planted_in"] == other]
        distances = np.arange(1, len(free) * 40 + 1).reshape(len(free), 40) / 1000
        rows = free["id"].repeat(40).to_numpy()
        found = pd.DataFrame({"id": rows, "noise": [*range(40)] * len(free), "distance": distances.ravel()})
        write_table(f"tables/control/{role}.parquet", found)
    rows = own["row"].tolist()
    samples = study.drawn.floats[rows][:, None].repeat(1, 2, 1, 1, 1)
    samples[:, 1] *= -1
    table = judging.judge(samples, own)
    assert table["copies_own"].tolist() == [True, False] * len(own)
    limits = judging.thresholds()
    assert sorted(limits.index) == sorted(rows)
    assert (limits > 0).all()


def test_samples_are_judged_by_the_controls_of_their_own_family(study: Study, monkeypatch) -> None:
    monkeypatch.setattr(judging, "thresholds", judging.thresholds.__wrapped__)
    write_table("tables/drawings/prompts.parquet", study.prompts)
    own = study.prompts[study.prompts["group"].isin(PLANTED)]
    flow = ("flow-planted", "flow-exchanged")
    for controls, distance in ((flow, 1.0), (ROLES, 1e-6)):
        for control, other in zip(controls, ROLES[::-1], strict=True):
            free = own.loc[own["planted_in"] == other, "id"]
            found = {"id": free.repeat(100), "noise": [*range(100)] * len(free), "distance": distance}
            write_table(f"tables/control/{control}.parquet", pd.DataFrame(found))
    samples = study.drawn.floats[own["row"].tolist()][:, None] + 0.1
    assert judging.judge(samples, own, flow)["copies_own"].all()
    assert not judging.judge(samples, own)["copies_own"].any()
