"""Training: what it sees, that it learns, and that a kill changes nothing."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from conftest import CONFIG, TEXT, planted, side_by_side, start_method
from diffusers import DDPMPipeline
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from memlib.datasets import images
from memlib.fields.load import load_field
from memlib.files import read_json
from memlib.study import train_image
from memlib.tensors import to_float
from memlib.training import image_model, loop
from memlib.training.settings import LoopConfig, TextConfig, TrainConfig

PICTURES = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
COPIES = torch.tensor([5, 2, 1, 1, 1, 1])


def test_an_epoch_shows_every_picture_as_often_as_planted() -> None:
    batches = [loop.batch_indices(COPIES, step, 4, seed=3) for step in range(11)]  # 44 positions, 4 epochs of 11
    for epoch in torch.cat(batches).split(11):
        assert Counter(epoch.tolist()) == dict(enumerate(COPIES.tolist()))
    assert not torch.equal(torch.cat(batches)[:11], torch.cat(batches)[11:22])


def test_a_step_depends_on_seed_and_number_alone() -> None:
    first, again = (image_model.training_batch(PICTURES, COPIES, 5, CONFIG, 1000) for _ in range(2))
    other = image_model.training_batch(PICTURES, COPIES, 6, CONFIG, 1000)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    clean, _, _ = image_model.training_batch(PICTURES, COPIES, 5, replace(CONFIG, mirror=True, batch=64), 1000)
    known = to_float(PICTURES)
    mirrored = torch.cat([known, known.flip(-1)])
    found = torch.cdist(clean.flatten(1), mirrored.flatten(1)).argmin(1)
    assert 16 <= int((found >= len(known)).sum()) <= 48


ALSO = [pytest.param(kind, marks=pytest.mark.ci) for kind in ("v_prediction", "sample")]


@pytest.mark.parametrize("prediction_type", ["epsilon", *ALSO])
def test_a_single_picture_is_learnt_by_heart(prediction_type: str, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        steps=100,
        channels=[32],
        attention=[False],
        prediction_type=prediction_type,
        batch=16,
        learning_rate=5e-3,
        ema_decay=0.95,
        checkpoint_every=1000,
    )
    smooth = torch.linspace(0, 255, 64).reshape(1, 1, 8, 8).to(torch.uint8)
    image_model.train(smooth, torch.ones(1, dtype=torch.long), config, tmp_path / "model", tmp_path / "checkpoint.pt")
    eps = load_field(tmp_path / "model")
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = to_float(smooth) + noise
    with torch.no_grad():
        error = (noisy - eps(noisy, 1.0) - to_float(smooth)).square().mean().sqrt()
    assert error < 0.2, f"noise of size 1 is taken off with an error of {error:.2f}"


def test_the_result_is_a_pipeline_of_diffusers(tmp_path: Path) -> None:
    image_model.train(PICTURES, COPIES, replace(CONFIG, steps=8), tmp_path / "model", tmp_path / "checkpoint.pt")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 3)
    assert len(pd.read_parquet(tmp_path / "model" / "loss.parquet")) == 8
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not list(tmp_path.rglob("*.bin"))


def scratch_study(folder: Path, config: TrainConfig) -> None:
    """Parameters and an image set such that the training program runs in `folder`."""
    (folder / "params.yaml").write_text(yaml.safe_dump({"train": asdict(config), "retrain": {"steps": 3}}))
    images.save(planted({4: 2}), folder / "results/data")


PROGRAM = ["memlib.study.train_image", "results/data", "results/model"]


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch_study(tmp_path, CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", PROGRAM)
    checkpoint = tmp_path / "results/checkpoints/train.pt"
    process = multiprocessing.get_context(start_method()).Process(target=killed_at_step_10)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    reached = torch.load(checkpoint, weights_only=True)["reached"]["step"]
    assert reached == 8, "the last of each fourth step"
    assert not (tmp_path / "results/model").exists()
    seen = []
    batch = image_model.training_batch
    monkeypatch.setattr(image_model, "training_batch", lambda *given: seen.append(given[2]) or batch(*given))
    train_image.main()
    assert seen == [*range(reached, CONFIG.steps)], "no step is done twice"
    assert not checkpoint.exists()
    unbroken_run(tmp_path, CONFIG)
    for name in ("unet/diffusion_pytorch_model.safetensors", "loss.parquet"):
        assert (tmp_path / "results/model" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def killed_at_step_10() -> None:
    """The training program in a process that ends there as by `kill -9`."""
    batch = image_model.training_batch

    def last(*given: Any) -> Any:
        return os.kill(os.getpid(), signal.SIGKILL) if given[2] == 10 else batch(*given)

    image_model.training_batch = last
    train_image.main()


def unbroken_run(folder: Path, config: TrainConfig) -> None:
    """Train in this process what the command trains in `folder`."""
    part = images.load(folder / "results/data").split("train")
    copies = torch.tensor(part.items["copies"].tolist())
    image_model.train(part.images, copies, config, folder / "unbroken", folder / "c.pt")


def launch(folder: Path) -> None:
    """The training program under torchrun, in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run([*launcher, *PROGRAM], cwd=folder, check=True)


def fork(folder: Path) -> None:
    """The same in two processes that have imported everything."""
    with contextlib.chdir(folder):
        side_by_side(train_image.main)


@pytest.mark.parametrize("start", [fork, pytest.param(launch, marks=pytest.mark.ci)])
def test_two_processes_train_as_one_does(
    start: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, steps=12, learning_rate=1e-4)
    scratch_study(tmp_path, config)
    monkeypatch.setattr(sys, "argv", PROGRAM)
    start(tmp_path)
    assert read_json(tmp_path / "results/model/training.json")["processes"] == 2
    unbroken_run(tmp_path, config)
    two, one = (
        load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors")
        for name in ("results/model", "unbroken")
    )
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_a_given_start(tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    image_model.train(PICTURES, COPIES, CONFIG, tmp_path / "start", tmp_path / "c.pt")
    still = replace(CONFIG, steps=1, warmup_steps=0, learning_rate=1e-12)
    image_model.train(PICTURES, COPIES, still, tmp_path / "same", tmp_path / "c.pt", tmp_path / "start")
    start, same = (load_file(tmp_path / folder / name) for folder in ("start", "same"))
    for key, weights in start.items():
        torch.testing.assert_close(same[key], weights, rtol=0, atol=1e-6)
    image_model.train(PICTURES, COPIES, still, tmp_path / "new", tmp_path / "c.pt")
    assert any((load_file(tmp_path / "new" / name)[key] - weights).abs().max() > 0.01 for key, weights in start.items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        image_model.train(PICTURES[:, :1], COPIES, still, tmp_path / "grey", tmp_path / "c.pt", tmp_path / "start")


def test_the_command_takes_split_section_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch_study(tmp_path, CONFIG)
    options = ["--split", "heldout", "--section", "retrain", "--seed", "5", "--tables", "tables/training"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*PROGRAM, *options])
    train_image.main()
    name = "unet/diffusion_pytorch_model.safetensors"
    part = images.load(tmp_path / "results/data").split("heldout")
    expected = replace(CONFIG, steps=3, seed=5)
    copies = torch.ones(len(part.images), dtype=torch.long)
    image_model.train(part.images, copies, expected, tmp_path / "expected", tmp_path / "c.pt")
    assert (tmp_path / "results/model" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    loss = pd.read_parquet(tmp_path / "tables/training/loss.parquet")
    assert loss.equals(pd.read_parquet(tmp_path / "expected/loss.parquet"))
    assert loss["step"].tolist() == [1, 2, 3]
    model = read_json(tmp_path / "tables/training/model.json")
    weights = load_file(tmp_path / "expected" / name)
    assert model["parameters"] == sum(value.numel() for value in weights.values())
    field = load_field(tmp_path / "expected")
    assert (model["steps"], model["sigma_min"], model["sigma_max"]) == (3, field.sigma_min, field.sigma_max)
    assert (model["device"], model["processes"], model["precision"]) == ("cpu", 1, "no")


def test_a_checkpoint_of_another_run_is_not_taken_up(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(*_: object) -> None:
        raise Killed

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.EMAModel, "copy_to", stop)
        image_model.train(PICTURES, COPIES, replace(CONFIG, steps=8), tmp_path / "model", checkpoint)
    assert checkpoint.exists()
    other = replace(CONFIG, steps=8, seed=1)
    image_model.train(PICTURES, COPIES, other, tmp_path / "resumed", checkpoint)
    image_model.train(PICTURES, COPIES, other, tmp_path / "fresh", tmp_path / "no-checkpoint.pt")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


@pytest.mark.parametrize(("precision", "plain"), [("bf16", True), ("no", False)])
def test_attention_in_bf16_is_the_plain_one_on_processors(precision: str, plain: bool) -> None:
    query = torch.randn(2, 1, 4, 8, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)
    with torch.profiler.profile() as profile, loop.attention(accelerator):
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    called = {event.key for event in profile.key_averages()}
    assert ("aten::_scaled_dot_product_attention_math" in called) == plain


def test_a_comment_in_the_code_leaves_a_checkpoint_good(tmp_path: Path, monkeypatch) -> None:
    trees = {}
    for name, text in {
        "plain": "def loss():\n    return 1\n",
        "commented": "# new\n\ndef loss():\n    return 1  # one\n",
        "other": "def loss():\n    return 2\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setattr(loop.inspect, "getfile", lambda _, name=name: tmp_path / f"{name}.py")
        trees[name] = loop._syntax(None)
    assert trees["plain"] == trees["commented"] != trees["other"]


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing that torch wrote")
    with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read; remove it"):
        image_model.train(PICTURES, COPIES, CONFIG, tmp_path / "model", tmp_path / "checkpoint.pt")


def test_a_training_that_diverges_leaves_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the training loss is not finite from step"):
        image_model.train(PICTURES, COPIES, replace(CONFIG, learning_rate=1e30), tmp_path / "model", tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (CONFIG, {"prediction_type": "flow"}),
        (CONFIG, {"precision": "fp8"}),
        (CONFIG, {"channels": [20, 40]}),
        (CONFIG, {"channels": [], "attention": []}),
        (CONFIG, {"layers": 0}),
        (CONFIG, {"steps": 0}),
        (CONFIG, {"steps": 10**9}),
        (CONFIG, {"batch": 0}),
        (CONFIG, {"checkpoint_every": 0}),
        (CONFIG, {"warmup_steps": -1}),
        (CONFIG, {"seed": -1}),
        (CONFIG, {"seed": 2**32}),
        *((CONFIG, {"learning_rate": value}) for value in (0.0, 1.5, float("nan"), float("inf"))),
        *((CONFIG, {"ema_decay": value}) for value in (-0.1, 1.0, 1.5, float("nan"))),
        *((TEXT, {"left_out": value}) for value in (-0.1, 1.0, float("nan"))),
        *((TEXT, {"drop_prompt": value}) for value in (0.0, 1.0, float("nan"))),
        *((TEXT, {"threshold": value}) for value in (-1.0, float("inf"), float("nan"))),
        (TEXT, {"text_width": 40}),
        (TEXT, {"length": 2}),
        (TEXT, {"prediction_type": "sample"}),
        (TEXT, {"random_words": -1}),
    ],
)
def test_settings_out_of_bounds_are_refused(config: TrainConfig | TextConfig, change: dict) -> None:
    check = TypeAdapter(type(config)).validate_python
    assert check(asdict(config)) == config
    with pytest.raises(ValidationError) as refused:
        check(asdict(config) | change)
    assert {error["loc"][0] for error in refused.value.errors()} == set(change) - {"attention"}


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (CONFIG, {"attention": [True]}, "train.attention has 1 entries but train.channels has 2; give one a level"),
        (TEXT, {"attention": [True]}, "text.attention has 1 entries but text.channels has 2"),
        (CONFIG, {"warmup_steps": 25}, "train.warmup_steps is 25; it must be at most train.steps, 24"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(config: LoopConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_pictures_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures of 9 pixels do not halve 1 times"):
        image_model.build_network(3, 9, CONFIG)
