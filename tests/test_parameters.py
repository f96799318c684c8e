"""The schema of params.yaml: what cannot be is refused in one sentence, and what the study uses passes."""

import contextlib
import functools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pydantic
import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from memlib.datasets import sources
from memlib.fields.schedules import FlowSchedule
from memlib.study import parameters, schema
from memlib.training.settings import TextConfig, TrainConfig
from memlib.training.text_model import build_scheduler

ROOT = Path(__file__).parent.parent
ALL = parameters.read(ROOT / "params.yaml")
STUDY = {name: ALL[name] for name in schema.SECTIONS | schema.NOTEBOOKS}
GONE = ...  # in place of a value: the name is not there
NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without notebooks, so that no more sections are needed than there are."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _built_once() -> Iterator[None]:
    """The model of the same sections, and its schema, are made once: they take longer than a check."""

    @functools.cache
    def kept(name: str, **sections: Any) -> type[schema.Section]:
        model = pydantic.create_model(name, **sections)
        model.model_json_schema = functools.cache(model.model_json_schema)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "create_model", kept)
        yield


def copied(part: Any) -> Any:
    """A copy of nested mappings and lists; what aliases share in the file is apart in it."""
    if isinstance(part, dict):
        return {name: copied(value) for name, value in part.items()}
    return [copied(value) for value in part] if isinstance(part, list) else part


def edited(changes: dict[str, Any]) -> dict[str, Any]:
    """The study's parameters with other values at some places, such as `truth.main.steps`; `GONE` takes one out."""
    study = copied(STUDY)
    for place, value in changes.items():
        *parents, last = place.split(".")
        part = study
        for name in parents:
            part = part[int(name) if isinstance(part, list) else name]
        if value is GONE:
            del part[last]
        else:
            part[last] = value
    return study


IMPOSSIBLE = [
    # of another type
    ("train.steps", 1300.0, "train.steps is 1300.0; it must be a whole number from 1 to 100000000"),
    ("train.steps", True, "train.steps is True; it must be a whole number"),
    ("train.steps", "1300", "train.steps is '1300'; it must be a whole number .* write 1300"),
    ("train.steps", None, "train.steps is None; it must be a whole number"),
    ("train.steps", [1300], r"train.steps is \[1300\]; it must be a whole number"),
    ("train.learning_rate", "1e-3", "train.learning_rate is '1e-3'; it must be a finite number .* write 0.001"),
    ("train.learning_rate", False, "train.learning_rate is False; it must be a finite number above 0 up to 1"),
    ("train.compile", 1, "train.compile is 1; it must be true or false"),
    ("train.compile", "no", "train.compile is 'no'; it must be true or false"),
    ("train.channels", 32, "train.channels is 32; it must be a list with 1 to 16 entries, each a whole number"),
    ("train.channels", [32, "48", 64], r"train.channels\[1\] is '48'; it must be a whole number"),
    ("train.precision", False, "train.precision is False; it must be one of auto, no, bf16 .in quotes"),
    ("data.name", 3, "data.name is 3; it must be one of openmoji"),
    ("data.root", None, "data.root is None; it must be a text"),
    ("data", [1], r"data is \[1\]; it must be a mapping with the names name, root, size"),
    ("data", None, "data is None; it must be a mapping"),
    ("train", "fast", "train is 'fast'; it must be a mapping with the names steps"),
    ("truth", {"main": 3}, "truth.main is 3; it must be a mapping with the names samples"),
    ("mitigation.arms", 0, "mitigation.arms is 0; it must be a list"),
    ("run.text_arms", ["planted"], "run.text_arms is .*; it must be a mapping of names to values"),
    # out of range
    ("train.steps", 0, "train.steps is 0; it must be a whole number from 1 to 100000000"),
    ("train.steps", -5, "train.steps is -5"),
    ("train.batch", 0, "train.batch is 0; it must be a whole number from 1"),
    ("train.batch", 10**9, "train.batch is 1000000000; it must be a whole number from 1 to 1000000"),
    ("train.learning_rate", 0, "train.learning_rate is 0; it must be a finite number above 0"),
    ("train.learning_rate", NAN, "train.learning_rate is nan; it must be a finite number above 0"),
    ("train.learning_rate", INF, "train.learning_rate is inf; it must be a finite number above 0"),
    ("train.learning_rate", 1000, "train.learning_rate is 1000"),
    ("train.warmup_steps", -1, "train.warmup_steps is -1; it must be a whole number from 0"),
    ("train.ema_decay", 1.5, "train.ema_decay is 1.5; it must be a finite number from 0 below 1"),
    ("train.ema_decay", 1.0, "train.ema_decay is 1.0"),
    ("train.ema_decay", -0.1, "train.ema_decay is -0.1"),
    ("train.ema_decay", NAN, "train.ema_decay is nan"),
    ("train.seed", -1, "train.seed is -1; it must be a whole number from 0 below 4294967296"),
    ("train.seed", 2**32, "train.seed is 4294967296; it must be a whole number from 0 below 4294967296"),
    ("train.seed", 10**30, "train.seed is 1000000000000"),
    ("train.channels", [], r"train.channels is \[\]; it must be a list with 1 to 16 entries"),
    ("train.channels", [20, 48, 64], r"train.channels\[0\] is 20; it must be a whole number .* multiple of 16"),
    ("train.layers", 0, "train.layers is 0"),
    ("train.checkpoint_every", 0, "train.checkpoint_every is 0"),
    ("train.prediction_type", "eps", "train.prediction_type is 'eps'; it must be one of epsilon, v_prediction, sample"),
    ("train.precision", "fp8", "train.precision is 'fp8'; it must be one of auto, no, bf16"),
    ("train.beta_schedule", "cosine", "train.beta_schedule is 'cosine'; it must be one of linear, scaled_linear"),
    ("retrain.steps", 0, "retrain.steps is 0; it must be a whole number from 1"),
    ("mirrored.ema_decay", 2, "mirrored.ema_decay is 2; it must be"),
    ("text_arm.steps", 0, "text_arm.steps is 0"),
    ("flow_arm.steps", 0, "flow_arm.steps is 0"),
    ("flow_text.heads", 0, "flow_text.heads is 0; it must be a whole number from 1"),
    ("flow_text.head_width", 10, "flow_text.head_width is 10; it must be .* and a multiple of 4"),
    ("flow_text.shift", 0.0, "flow_text.shift is 0.0; it must be a finite number above 0"),
    ("flow_text.channels", [32], "unknown parameter 'flow_text.channels'"),
    ("autoencoder.kl_weight", -1.0, "autoencoder.kl_weight is -1.0; it must be a finite number from 0"),
    ("autoencoder.kl_weight", INF, "autoencoder.kl_weight is inf"),
    ("autoencoder.latent_channels", 0, "autoencoder.latent_channels is 0"),
    ("text.drop_prompt", 0.0, "text.drop_prompt is 0.0; it must be a finite number above 0 below 1"),
    ("text.drop_prompt", 1.0, "text.drop_prompt is 1.0"),
    ("text.left_out", 1.0, "text.left_out is 1.0"),
    ("text.threshold", NAN, "text.threshold is nan"),
    ("text.length", 2, "text.length is 2; it must be a whole number from 3"),
    ("text.text_width", 48, "text.text_width is 48; it must be a whole number .* multiple of 32"),
    ("text.prediction_type", "sample", "text.prediction_type is 'sample'; it must be one of epsilon, v_prediction"),
    ("judge.batch", 0, "judge.batch is 0"),
    ("run.text_arms.planted", {"steps": 0}, "run.text_arms.planted.steps is 0"),
    ("data.size", 0, "data.size is 0; it must be a whole number from 4 to 4096"),
    ("data.size", 100_000, "data.size is 100000; it must be a whole number from 4 to 4096"),
    ("data.min_distance", NAN, "data.min_distance is nan; it must be a finite number from 0 below 2"),
    ("data.min_distance", -0.1, "data.min_distance is -0.1"),
    ("data.min_distance", 2.0, "data.min_distance is 2.0"),
    ("data.splits.train", 0, "data.splits.train is 0; it must be a whole number from 1"),
    ("data.splits.heldout", 10**9, "data.splits.heldout is 1000000000"),
    ("data.seed", -1, "data.seed is -1"),
    (
        "data.copies.train",
        {1: 5},
        "data.copies.train has the name 1; it must be a number of copies, a whole number from 2",
    ),
    ("data.copies.train", {16: -1}, r"data.copies.train\[16\] is -1; it must be a whole number from 0"),
    ("data.copies.train", {"16": 24}, "data.copies.train has the name '16'; it must be a number of copies"),
    ("truth.main.samples", 0, "truth.main.samples is 0"),
    ("truth.main.sampler", "euler", "truth.main.sampler is 'euler'; it must be one of heun, ancestral"),
    ("truth.main.steps", 0, "truth.main.steps is 0"),
    ("truth.main.sampler", "ddim", "truth.main.sampler is 'ddim'; it must be one of heun, ancestral"),
    ("truth.main.steps", 1, "truth.main.steps is 1; the ancestral sampler takes 2 to 1000 steps"),
    ("truth.main.steps", 2000, "truth.main.steps is 2000; the ancestral sampler takes 2 to 1000 steps"),
    (
        "scores.main-volume.tables.growth.settings.0.steps",
        0,
        r"scores.main-volume.tables.growth.settings\[0\].steps is 0; it must be a whole number",
    ),
    (
        "scores.main-volume.tables.growth.settings.0.steps",
        2.0,
        r"scores.main-volume.tables.growth.settings\[0\].steps is 2.0",
    ),
    ("scores.main-volume.tables.growth.settings.0.directions", -2, r"settings\[0\].directions is -2"),
    (
        "scores.main-volume.tables.edges.settings.0.ratio",
        0.9,
        r"settings\[0\].ratio is 0.9; it must be a finite number above 1",
    ),
    (
        "scores.main-volume.tables.edges.settings.0.axes",
        [1, 0],
        r"settings\[0\].axes is \[1, 0\]; it must be a whole number from 1",
    ),
    ("scores.main-volume.tables.edges.settings.0.axes", [], r"settings\[0\].axes is \[\]"),
    (
        "scores.main-p_laplacian.tables.flux.settings.0.p",
        [0.5, 1.0],
        r"settings\[0\].p\[0\] is 0.5; it must be a finite number from 1",
    ),
    (
        "scores.main-p_laplacian.tables.flux.settings.0.p",
        [2.0, 1.0],
        r"settings\[0\].p is \[2.0, 1.0\]; it must be in rising order",
    ),
    (
        "scores.main-p_laplacian.tables.flux.settings.0.each.sigma",
        [NAN],
        r"settings\[0\].sigma is nan; it must be a finite number above 0",
    ),
    (
        "scores.main-p_laplacian.tables.flux.settings.0.each.sigma",
        [0.001],
        "sigma is 0.001; .* schedule of `train`, from 0.01 to below 157.4",
    ),
    (
        "scores.main-p_laplacian.tables.flux.settings.0.each.sigma",
        [0.1, 200.0],
        "sigma is 200; it must be a noise level of the schedule of `train`",
    ),
    (
        "scores.main-volume.tables.edges.settings.0.each.sigma_min",
        [90.0],
        r"settings\[0\]: the last level is 275.625; it must be a noise level",
    ),
    (
        "scores.main-volume.tables.edges.settings.0.steps",
        [10**6],
        "the last level is .*; it must be a noise level of the schedule",
    ),
    (
        "scores.main-volume.tables.first_step.settings.0.timesteps",
        1000,
        "timesteps is 1000; it must be a whole number from 0 to 999",
    ),
    ("scores.main-denoising.tables.secmi.settings.1.timesteps", [0, 1000], "it must be a whole number from 0 to 999"),
    ("scores.main-denoising.tables.secmi.settings.0.each.below", [0, -1], r"settings\[1\].below is -1"),
    (
        "scores.main-denoising.tables.loss.settings",
        [],
        r"scores.main-denoising.tables.loss.settings is \[\]; it must be a list with 1 to 1000 entries",
    ),
    (
        "scores.main-denoising.tables.loss.settings",
        {"sigma": 0.2},
        "scores.main-denoising.tables.loss.settings is .* it must be a list",
    ),
    (
        "scores.main-denoising.tables.loss.settings.0.each",
        {"sigma": 0.2},
        "each must map names .* to lists of their values",
    ),
    ("scores.main-denoising.tables.loss.settings.0.each", [0.2], "each must map names of the setting to lists"),
    ("scores.main-volume.tables", {}, "scores.main-volume.tables is {}; it must be"),
    (
        "scores.main-denoising.tables.loss.settings.0.weight",
        NAN,
        r"settings\[0\].weight is nan; it must be a finite number, a text",
    ),
    (
        "scores.main-denoising.tables.loss.settings.0.weight",
        {"a": 1},
        r"settings\[0\].weight is {'a': 1}; it must be a finite number",
    ),
    (
        "scores.main-denoising.tables.loss.settings.0.prompt",
        True,
        r"settings\[0\] needs prompts, which results/models/main does not take",
    ),
    ("scores.main-denoising.tables.loss.seed", 0.5, "scores.main-denoising.tables.loss.seed is 0.5"),
    (
        "scores.latent-p_laplacian.tables.flux.settings.0.each.sigma",
        [99.0],
        "sigma is 99; .* schedule of `text`, from 0.02917 to below 14.61",
    ),
    (
        "scores.planted-followed.tables.sampled_magnitude.settings.0.guidance",
        1.0,
        "guidance is 1.0; it must be a finite number above 1",
    ),
    ("sets.modified", 0, "sets.modified is 0"),
    ("drawings.subjects.planted", -1, "drawings.subjects.planted is -1"),
    ("drawings.drawings_each", 0, "drawings.drawings_each is 0"),
    ("drawings.prompts.ordinary", 0, "drawings.prompts.ordinary is 0"),
    ("run.launcher", "", "run.launcher is ''; it must not be empty"),
    ("mitigation.arms", [], r"mitigation.arms is \[\]; it must be a list with 1 to 100 entries"),
    ("mitigation.arms", ["planted"] * 2, r"mitigation.arms is .*; it must not hold 'planted' twice"),
    ("train.channels", [32, -1], r"train.channels\[1\] is -1"),
    ("solver.steps", [72], "solver.steps is .72.; it must be a list with 2 to 100 entries"),
    ("solver.steps", [72, 8], "solver.steps is .72, 8.; it must be in rising order"),
    (
        "solver.sigma_min",
        0.001,
        "solver.sigma_min is 0.001; it must be a noise level of the schedule of `train`, from 0.01",
    ),
    ("carried_axes.exact_sigmas", [0.2, 500.0], r"carried_axes.exact_sigmas\[1\] is 500.0; it must be a noise level"),
    ("carried_axes.dimensions", 8, "carried_axes.dimensions is 8; it must be a whole number from 16"),
    ("flux_errors.powers", [2.0, 3.0], "flux_errors.powers is .*; it must hold 1.0, with which the chapters compare"),
    ("flux_errors.powers", [0.5, 1.0], r"flux_errors.powers\[0\] is 0.5; it must be a finite number from 1"),
    ("flux_errors.radii", [0.1, -0.2], r"flux_errors.radii\[1\] is -0.2; it must be a finite number above 0"),
    ("flux_errors.levels", [1.0e-5], r"flux_errors.levels\[0\] is 1e-05; it must be a noise level"),
    ("plane.dominant_share", 1.0, "plane.dominant_share is 1.0; it must be a finite number above 0 below 1"),
    ("plane.powers", [2.0], "plane.powers is .2.0.; it must hold 1.0"),
    ("plane.grid", 1, "plane.grid is 1"),
    ("bridge.directions", 1, "bridge.directions is 1; it must be a whole number from 2"),
    ("growth.sensitivity", 1.5, "growth.sensitivity is 1.5; it must be a finite number above 0 below 1"),
    ("frontier.budget", 1, "frontier.budget is 1; it must be a whole number from 2"),
    ("mixtures.repeats", 0, "mixtures.repeats is 0"),
    ("peaks.seed", -3, "peaks.seed is -3"),
    ("late_steps.guidances", [1.0, 3.0], r"late_steps.guidances\[0\] is 1.0; it must be a finite number above 1"),
    (
        "late_steps.growth_min",
        0.001,
        "late_steps.growth_min is 0.001; it must be a noise level of the schedule of `text`",
    ),
    ("arm.sampling_steps", 0, "arm.sampling_steps is 0; it must be a whole number from 1 to 1000"),
    ("detection.loss_sigma", 99.0, "detection.loss_sigma is 99.0; it must be .* `text`, from 0.02917 to below 14.61"),
    ("detection.runs", {}, "detection.runs is {}; it must be a mapping"),
    ("detection.runs", {0: 4, 1: 4}, "detection.runs has the name 0; it must be"),
    ("detection.runs", {1: 4.5}, r"detection.runs\[1\] is 4.5"),
    ("moved_prompts.targets", [0.8, 0.0], r"moved_prompts.targets\[1\] is 0.0; it must be a finite number above 0"),
    ("moved_prompts.learning_rate", INF, "moved_prompts.learning_rate is inf"),
    ("mitigation.arms", ["planted"], "mitigation.arms is .*; it must hold 'threshold'"),
    ("guarded.false_alarms", 1.0, "guarded.false_alarms is 1.0; it must be a finite number above 0 below 1"),
    ("guarded.guidance", 1.0, "guarded.guidance is 1.0; it must be a finite number above 1"),
    ("audits.rate", 10, "audits.rate is 10; it must be a finite number above 0 below 1"),
    ("audits.nulls", [96, 48], "audits.nulls is .*; it must be in rising order"),
    ("audits.guards", ["planted"], "audits.guards is .*; it must be a list with 2 to 100 entries"),
    ("monitor.alpha", 5, "monitor.alpha is 5; it must be a finite number above 0 below 1"),
    # unknown, missing, of no use
    ("trian", {}, "unknown section 'trian'; did you mean 'train'"),
    ("train.step", 9, "unknown parameter 'train.step'; did you mean 'steps'"),
    ("retrain.step", 9, "unknown parameter 'retrain.step'; did you mean 'steps'"),
    ("data.splits.trian", 9, "unknown parameter 'data.splits.trian'; did you mean 'train'"),
    ("data.copies.heldout", {16: 1}, "unknown parameter 'data.copies.heldout'; known: train, reference"),
    ("run.text_arms.planted", {"treshold": 1.0}, "'run.text_arms.planted.treshold'; did you mean 'threshold'"),
    ("truth.main.batch", 9, "unknown parameter 'truth.main.batch'"),
    ("data.size", GONE, "data.size is missing; it must be a whole number from 4 to 4096"),
    ("data.copies.reference", GONE, "data.copies.reference is missing; it must be a mapping"),
    ("truth", GONE, "truth is missing; it must be a mapping of names to values"),
    ("truth.main.seed", GONE, "truth.main.seed is missing; it must be a whole number from 0 below 4294967296"),
    ("run.text_arms.a b", {}, "run.text_arms has the name 'a b'; it must begin with a letter or digit"),
    ("run.arms.growth-drop-0.choice", "grwoth", "is 'grwoth'; it must say by what .*; did you mean 'growth'"),
    ("run.arms.growth-drop-0.choice", "random", "is 'random'; it must say by what .* random1, random2 and so on"),
    (
        "run.arms.growth-drop-0.how",
        "dorp",
        "run.arms.growth-drop-0.how is 'dorp'; it must be one of drop, augment, mask",
    ),
    (
        "run.trainings.pair-0.roles",
        "smal",
        "is 'smal'; it must be the number of a round of exchanged roles, .* or small",
    ),
    ("run.trainings.pair-0.section", "train", "section is 'train'; it must be one of retrain, mirrored, scratch"),
    ("picture_control.samples", 99, "picture_control.samples is 99; it must be a whole number from 100 to 1000000"),
    ("data.splits.reference", 99, "data.splits.reference is 99; it must be a whole number from 100 to 1000000"),
]


@pytest.mark.parametrize(("place", "value", "message"), IMPOSSIBLE, ids=[f"{c[0]}={c[1]!r}"[:60] for c in IMPOSSIBLE])
def test_a_value_that_cannot_be_is_refused_with_its_place_and_what_would_be_right(
    place: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parameters.check_content(edited({place: value}))


UNFITTING = [
    ({"train.warmup_steps": 10**7}, "train: train.warmup_steps is 10000000; it must be at most train.steps, "),
    ({"train.attention": [True]}, "train.attention has 1 entries but train.channels has 3; give one a level"),
    ({"retrain.warmup_steps": 10**7}, "retrain .laid over train.: train.warmup_steps is 10000000; it must be at most"),
    (
        {"run.text_arms.planted": {"steps": 3}},
        "run.text_arms.planted .laid over text and text_arm.: text.warmup_steps is ",
    ),
    ({"data.size": 18}, "data.size is 18; it must halve 2 times, once between the 3 levels of train.channels"),
    ({"drawings.size": 30}, "drawings.size is 30; it must halve 2 times, .* autoencoder.channels"),
    (
        {"text.channels": [32] * 5, "text.attention": [True] * 5},
        "latents .* is 8; it must halve 4 times, .* text.channels",
    ),
    ({"data.copies.train": {16: 999}}, "data.copies.train is {16: 999}, 999 pictures in all; there can be at most "),
    ({"drawings.copies": {4: 99}}, "drawings.copies is {4: 99}, .* at most .*, which is drawings.subjects.planted"),
    ({"drawings.triggers": {4: 999}}, "drawings.triggers is .* at most .*, which is drawings.subjects.train"),
    ({"drawings.triggers": {}}, "the largest number of copies must be the same in both"),
    ({"drawings.triggers": {3: 6}}, "the largest number of copies must be the same in both"),
    (
        {"drawings.triggers": {4: 7}},
        "drawings.triggers leaves 7 pictures of the grade 4; it must be an even number from 4",
    ),
    (
        {"drawings.copies": {4: 14, 2: 14}},
        "drawings.copies leaves 2 pictures of the grade 1; it must be an even number",
    ),
    ({"data.name": "folder"}, "data.root is ''; it must be the folder that holds the files of 'folder'"),
    ({"data.root": "/no/such/folder"}, "data.root is '/no/such/folder'; it must be the folder"),
    ({"frontier.copies": 5}, "frontier.copies is 5; it must be one of data.copies.train"),
    ({"peaks.copies": 5}, "peaks.copies is 5; it must be one of data.copies.train"),
    ({"sets.modified": 99999}, "sets.modified is 99999; it must be at most two thirds of data.splits.pairs, 64"),
    (
        {"pairs.copies": {16: 9}},
        "pairs.copies is {16: 9}, 9 pictures; they must be a third of data.splits.pairs, which is 96",
    ),
    ({"run.arms.growth-drop-0.roles": 9}, "run.arms.growth-drop-0.roles is 'pair-9'; it must be one of run.trainings"),
    ({"run.trainings.pair-2": GONE}, "run.trainings has no entry 'pair-2'"),
    ({"run.trainings.pair-2.roles": 1}, "run.trainings.pair-2.roles is 1; it must be the number in the name"),
    (
        {"run.trainings.pair-2.start": "results/models/refrence"},
        "pair-2.start is .*, which no stage writes; did you mean",
    ),
    ({"run.trainings.pair-6": {"roles": 6, "section": "retrain", "start": "", "seed": 6}}, "no entry 'pair-6'"),
    (
        {"embedding.warmup_steps": 10**6},
        "embedding: embedding.warmup_steps is 1000000; it must be at most embedding.steps",
    ),
    (
        {"pair_truth.sampler": "ancestral", "pair_truth.steps": 1},
        "pair_truth.steps is 1; the ancestral sampler takes 2 to 1000",
    ),
    ({"run.text_arms.base": {}}, "run.text_arms has an arm 'base'"),
    ({"run.text_arms.more": {}}, "scores has no entry 'more-text'"),
    ({"run.text_arms.share-5": GONE}, "scores.share-5-text.model is 'results/text/share-5', which no stage writes"),
    ({"run.text_arms.exchanged": {}}, "run.text_arms.exchanged is {}; it must be {exchanged: true}, to be the other's"),
    ({"run.text_arms.planted": {"exchanged": True}}, "run.text_arms.planted is .* it must be there without exchanged"),
    (
        {"run.flow_arms.flow-exchanged": {}},
        "run.flow_arms.flow-exchanged is {}; it must be {exchanged: true}, to be the",
    ),
    ({"run.flow_arms.flow-planted": GONE}, "run.flow_arms.flow-planted is None; it must be there without exchanged"),
    ({"run.flow_arms.more": {}}, "run.flow_arms has an arm 'more'; the names of run.flow_arms begin with 'flow-'"),
    ({"run.text_arms.flow-more": {}}, "run.text_arms has an arm 'flow-more'; the names of run.flow_arms begin with"),
    ({"run.flow_arms.flow-base": {}}, "run.flow_arms has an arm 'flow-base'; .* 'flow-base' is what they start from"),
    (
        {"run.flow_arms.flow-planted": {"steps": 3}},
        "run.flow_arms.flow-planted .laid over flow_text and flow_arm.: flow_text.warmup_steps is ",
    ),
    ({"run.template_arms.exchanged": {}}, "run.template_arms has an arm 'exchanged', which another model is called"),
    (
        {"run.template_arms.templates": {"steps": 3}},
        "run.template_arms.templates .laid over text and text_arm.: text.warmup_steps is ",
    ),
    ({"localise.arm": "planted"}, "localise.arm is 'planted'"),
    ({"localise.sigmas": [0.2, 1.0]}, "localise.sigmas is .* must hold 0.04"),
    ({"localisation.shown": 0.5}, "localisation.shown is 0.5"),
    ({"flow_text.patch": 3}, "flow_text.patch is 3; it must divide 8, a side of the latents"),
    (
        {"scores.flow-planted-text.model": "results/text/flow-plantd"},
        "which no stage writes; did you mean 'results/text/flow-planted'",
    ),
    ({"truth.main.model": "results/models/mian"}, "truth.main.model is 'results/models/mian', .* did you mean"),
    ({"truth.main.split": "trian"}, "truth.main.split is 'trian'; did you mean 'train'"),
    ({"truth.deterministic": GONE}, "truth has no entry 'deterministic', which the chapters read"),
    ({"truth.main": GONE}, "scores.samples-p_laplacian.items.source|truth has no entry 'main'"),
    (
        {"scores.main-volume.tables.growth.detector": "grwoth"},
        "scores.main-volume.tables.growth.detector is 'grwoth'; did you mean 'growth'",
    ),
    ({"scores.main-volume.items": {}}, "scores.main-volume.items.source is missing"),
    (
        {"scores.planted-text.items": {"source": "tables/drawings/prompt.parquet"}},
        "which no stage writes; did you mean",
    ),
    ({"scores.planted-text.model": "results/models/main"}, "needs prompts, which results/models/main does not take"),
    (
        {"scores.main-volume.items.splits": ["tran"]},
        "scores.main-volume.items.splits holds 'tran'; did you mean 'train'",
    ),
    (
        {"scores.samples-denoising.items.source": "results/samples/man.safetensors"},
        "source is .*, which no stage writes",
    ),
    ({"scores.pair-0": GONE}, "scores has no entry 'pair-0'"),
    ({"scores.bench-unseen": GONE}, "scores has no entry 'bench-unseen', which the chapters read"),
    ({"scores.bench-main.tables.loss": GONE}, "scores.bench-main.tables has no entry 'loss'"),
    ({"scores.bench-drawings.tables.growth": GONE}, "scores.bench-drawings.tables has no entry 'growth'"),
    ({"scores.bench-planted.tables.magnitude": GONE}, "scores.bench-planted.tables has no entry 'magnitude'"),
    (
        {"scores.bench-pair-0.items.reference": "results/models/refrence"},
        "scores.bench-pair-0.items.reference is .*, which no stage writes; did you mean 'results/models/reference'",
    ),
    (
        {"scores.bench-planted.items.training": "results/drawings/drwan"},
        "scores.bench-planted.items.training is .*, which no stage writes",
    ),
    ({"solver.finest_steps": 2}, "solver.finest_steps is 2; it must be above solver.growth_steps"),
    ({"carried_axes.axes": 10**4}, "carried_axes.axes is 10000; it must be at most carried_axes.dimensions"),
    ({"late_steps.levels": 999}, "late_steps.levels is 999; it must be at most late_steps.sampling_steps"),
    ({"arm.arm": "plantd"}, "arm.arm is 'plantd'; it must be one of run.text_arms and run.flow_arms; did you mean"),
    ({"control.generations": 4}, "control.generations is 4, of 21 prompts; there must be 99 samples or more"),
    ({"drawings.followed.unseen": 20}, "arm.generations is 4, of 20 prompts; there must be 99 samples or more"),
    ({"detection.shares": ["planted", "shaer-5"]}, "detection.shares is 'shaer-5'; .* did you mean 'share-5'"),
    ({"detection.runs": {1: 4, 10: 4}}, "detection.runs is .*; it must hold 1 step, and all .* at least 2 generations"),
    (
        {"detection.runs": {1: 999, 25: 4}},
        r"detection.runs\[1\] is 999; it must be at most the noises of scores.planted-text",
    ),
    (
        {"detection.generations": 999},
        "detection.generations is 999; it must be at most the noises of scores.planted-text",
    ),
    (
        {"detection.loss_sigma": 0.5},
        "scores.latent-denoising.tables.loss has no setting with sigma 0.5 and prompt True",
    ),
    ({"detection.guidance": 9.0}, "detection.guidance is 9.0; it must be one of arm.guidances"),
    ({"late_steps.guidances": [7.5]}, "detection.guidance is 3.0; it must be one of late_steps.guidances; known: 7.5"),
    (
        {"scores.threshold-text.tables.magnitude.settings": [{"sampling_steps": 50}]},
        "mitigation.noises is .* it must be at most the noises of scores.threshold-text, 0",
    ),
    ({"mitigation.guidance": 2.5}, "mitigation.guidance is 2.5; it must be one of arm.guidances"),
    ({"mitigation.noises": 999}, "mitigation.noises is 999; it must be at most the noises of scores."),
    ({"tokens.guidance": 2.5}, "tokens.guidance is 2.5; it must be one of arm.guidances"),
    ({"captions.guidance": 2.5}, "captions.guidance is 2.5; it must be one of arm.guidances"),
    (
        {"guarded.ordinary": 600},
        "guarded.calibration . guarded.ordinary is 1000; it must be at most drawings.further.ordinary",
    ),
    ({"guarded.calibration": 98}, "guarded.calibration is 98; a rate of 0.01 needs at least 99 prompts"),
    (
        {"guarded.arm": "plantd"},
        "guarded.arm is 'plantd'; it must be one of run.text_arms and run.flow_arms; did you mean",
    ),
    ({"audits.guards": ["planted", "planted-2"]}, "audits.guards has 'planted' and none of the other role"),
    ({"audits.text_arms": ["planted", "threshold"]}, "scores has no entry 'audit-threshold'"),
    (
        {"audits.text_arms": ["planted"]},
        "audits.text_arms is .exchanged.; it must be one of audits.text_arms, as the control of planted",
    ),
    (
        {"audits.ordinary": 500},
        r"audits.ordinary \+ audits.prompt_nulls is 900; it must be at most drawings.further.ordinary, 880",
    ),
    (
        {"audits.sizes": [8, 121]},
        "audits.sizes is 121; it must be at most the pictures that the main model sees once, 120",
    ),
    (
        {"scores.audit-pair-3.tables.loss.settings.0.draws": [2]},
        "scores.audit-pair-[0-5].tables.loss has no setting with sigma 0.2 and draws 4, which the chapter audit reads",
    ),
    ({"fine_tuning.samples_every": 650}, "fine_tuning.samples_every is 650; it must be at most fine_tuning.steps, 600"),
    ({"fine_tuning.every": 40}, "fine_tuning.samples_every is 100; it must be a multiple of fine_tuning.every, 40"),
    (
        {"fine_tuning.steps": 10, "fine_tuning.samples_every": 10, "fine_tuning.every": 5},
        "fine_tuning .laid over train and retrain.: train.warmup_steps",
    ),
    (
        {"data.splits.pairs": 9, "pairs.copies": {4: 3}, "sets.modified": 3},
        "data.splits.pairs is 9; it must be at least 10, since fewer",
    ),
    ({"fine_tuning.sigma": 200.0}, "fine_tuning.sigma is 200.0; it must be a noise level"),
    (
        {"mitigation.arms": ["planted", "threshold", "left-out-at-random", "random-words", "shar-5"]},
        "mitigation.arms is 'shar-5'; .* 'share-5'",
    ),
    (
        {"scores.reference.tables.loss.settings": [{"sigma": 0.4, "draws": [4]}]},
        "scores.reference.tables.loss has no setting with sigma 0.2 and draws 4, which the chapter growth reads",
    ),
    (
        {"scores.main-volume.tables.edges.settings.0.axes": [2, 4]},
        "scores.main-volume.tables.edges has no setting with axes 1 and steps 1, which the chapter frontier reads",
    ),
    (
        {"scores.samples-p_laplacian.tables.flux.settings.0.p": [2.0]},
        "scores.samples-p_laplacian.tables.flux has no setting with p 1, which the chapter peaks reads",
    ),
    ({"scores.main-denoising.tables.loss": GONE}, "scores.main-denoising.tables has no entry 'loss'"),
]


@pytest.mark.parametrize(("changes", "message"), UNFITTING, ids=[str(c[0])[:60] for c in UNFITTING])
def test_values_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters.check_content(edited(changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "params.yaml is empty"),
        ("# nothing\n", "params.yaml is empty"),
        ("- 1\n- 2\n", r"params.yaml is no mapping of sections but \[1, 2\]"),
        ("3", "params.yaml is no mapping of sections but 3"),
        ("train: [1, 2", "params.yaml, line 2, is not YAML: "),
        ("train: {steps: 1}\n  data: 3", "params.yaml, line 2, is not YAML: "),
        ("a: 1\n---\na: 2", "params.yaml, line 2, is not YAML: but found another document"),
        ("a: !!python/object:os.system {}", "params.yaml, line 1, is not YAML: could not determine a constructor"),
        (
            "train:\n  steps: 1\n  batch: 2\n  steps: 3\n",
            "params.yaml, line 4, names steps a second time in one mapping",
        ),
        ("train: {}\ndata: {}\ntrain: {}", "params.yaml, line 3, names train a second time in one mapping"),
        ("? [1, 2]\n: 3", "params.yaml, line 1, is not YAML: found unhashable key"),
        ("a: &a [*a]", "unknown section 'a'"),
        ("3: {}", "unknown section '3'"),
        ("data: {seed: " + "9" * 5000 + "}", "is not YAML: Exceeds the limit"),
        ("data: {seed: 2020-13-45}", "is not YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_a_sentence(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        parameters.check(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no .*; run this in the folder of the study"):
        parameters.check(tmp_path / "params.yaml")
    with pytest.raises(ValueError, match="cannot be read as text in UTF-8"):
        parameters.check(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as text in UTF-8"):
        parameters.check(tmp_path / "params.yaml")


def test_an_alias_may_change_what_it_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {n: 1}\nb: &b {<<: *a, n: 2}\nc: {<<: *b, n: 3}\n")
    assert parameters.read(path) == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=4,
    ),
    st.data(),
)
@settings(max_examples=40)
def test_whatever_stands_at_any_place_is_taken_or_refused(value: Any, data: st.DataObject) -> None:
    """No value, of whatever kind, at whatever place ends in a traceback."""
    study = copied(STUDY)
    part: Any = study
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(part[key], (dict, list)) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = value
    with contextlib.suppress(ValueError):
        parameters.check_content(study)


def test_the_schedules_are_those_of_the_schedulers() -> None:
    for name in get_args(TrainConfig.__annotations__["beta_schedule"]):
        abar = DDPMScheduler(1000, beta_schedule=name).alphas_cumprod.double()
        levels = ((1 - abar) / abar).sqrt()
        found = parameters.schedules({"train": {"beta_schedule": name}})["train"]
        assert found == pytest.approx((float(levels[0]), float(levels[-1])), rel=1e-2 if "cos" in name else 1e-4)
    abar = build_scheduler(TextConfig(**STUDY["text"])).alphas_cumprod.double()
    levels = ((1 - abar) / abar).sqrt()
    assert parameters.schedules({})["text"] == pytest.approx((float(levels[0]), float(levels[-1])), rel=1e-4)
    flow = FlowSchedule(FlowMatchEulerDiscreteScheduler(1000)).sigmas
    assert parameters.schedules({})["flow_text"] == pytest.approx((float(flow[0]), float(flow[-1])))


def test_names_that_the_schema_knows_are_those_of_the_modules() -> None:
    assert get_args(schema.Pictures) == sources.NAMES


def test_the_check_loads_nothing_that_takes_seconds_to_import() -> None:
    """It runs before every `dvc repro`."""
    slow = {"torch", "diffusers", "papermill", "sklearn", "matplotlib"}
    program = (
        f"import sys; from memlib.study import parameters; parameters.check(); print(*({slow} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not out.strip()


def test_a_section_without_a_model_has_the_names_and_types_of_its_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat

    v4 = nbformat.v4
    source = "n = 3\nshare = 0.5\nlevels = [1.0, 2]\nruns = {1: 4}\nname = 'x'\nseed = 0"
    cells = [v4.new_markdown_cell("# Mine"), v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks/mine.ipynb")
    monkeypatch.chdir(tmp_path)
    good = {"n": 7, "share": 1, "levels": [3, 4.5], "runs": {10: 2}, "name": "y", "seed": 5}
    parameters.check_content(STUDY | {"mine": good})
    for change, message in (
        ({"n": 1.5}, "mine.n is 1.5; it must be a whole number"),
        ({"n": True}, "mine.n is True; it must be a whole number"),
        ({"share": NAN}, "mine.share is nan; it must be a finite number"),
        ({"levels": ["a"]}, r"mine.levels\[0\] is 'a'; it must be a finite number"),
        ({"runs": {1: 2.5}}, r"mine.runs\[1\] is 2.5; it must be a whole number"),
        ({"seed": -1}, "mine.seed is -1; it must be a whole number from 0"),
        ({"nmae": "z"}, "unknown parameter 'mine.nmae'; did you mean 'name'"),
    ):
        with pytest.raises(ValueError, match=message):
            parameters.check_content(STUDY | {"mine": good | change})
    with pytest.raises(ValueError, match="unknown section 'yours'"):
        parameters.check_content(STUDY | {"yours": good})


def test_a_profile_changes_names_in_a_section_and_in_each_entry_and_takes_out_what_is_null() -> None:
    study = {"train": {"steps": 9, "channels": [1]}, "truth": {"a": {"n": 1, "m": 1}, "b": {"n": 1}}, "sets": {"n": 1}}
    laid = parameters.lay_over(study, {"train": {"steps": 2}, "truth": {"a": {"n": 5}, "b": None, "c": {"n": 3}}})
    assert laid == {
        "train": {"steps": 2, "channels": [1]},
        "truth": {"a": {"n": 5, "m": 1}, "c": {"n": 3}},
        "sets": {"n": 1},
    }


def test_the_parameters_of_the_study_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert parameters.check()["data"]["name"] == "openmoji"


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_is_good_over_the_parameters_of_the_study(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    laid = parameters.lay_over(ALL, parameters.read(path))
    parameters.check_content(laid)


def test_the_parameters_of_a_notebook_are_those_that_the_schema_knows() -> None:
    import papermill

    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks/experiments").glob("*.ipynb")]:
        model = schema.NOTEBOOKS.get(path.stem)
        names = papermill.inspect_notebook(str(path)).keys()
        assert names == (model.model_fields.keys() if model else set()), path.stem
