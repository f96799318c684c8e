"""Training: what it sees, that it learns, and that a kill changes nothing."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from diffusers import DDPMPipeline
from safetensors.torch import load_file
from test_data import planted

from memlib import data, optimisation, training
from memlib.config import TrainConfig
from memlib.models import load_network

CONFIG = TrainConfig(
    steps=24,
    batch=8,
    learning_rate=2e-3,
    warmup_steps=2,
    ema_decay=0.9,
    channels=[16, 32],
    layers=1,
    attention=[False, False],
    prediction_type="epsilon",
    beta_schedule="linear",
    mirror=False,
    precision="no",
    compile=False,
    checkpoint_every=4,
    seed=0,
)
PICTURES = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
COPIES = torch.tensor([5, 2, 1, 1, 1, 1])


def test_an_epoch_shows_every_picture_as_often_as_planted() -> None:
    batches = [
        optimisation.batch_indices(COPIES, step, 4, seed=3) for step in range(11)
    ]  # 44 positions, 4 epochs of 11
    for epoch in torch.cat(batches).split(11):
        assert Counter(epoch.tolist()) == dict(enumerate(COPIES.tolist()))
    assert not torch.equal(torch.cat(batches)[:11], torch.cat(batches)[11:22])


def test_a_step_depends_on_seed_and_number_alone() -> None:
    first, again = (training.training_batch(PICTURES, COPIES, 5, CONFIG, 1000) for _ in range(2))
    other = training.training_batch(PICTURES, COPIES, 6, CONFIG, 1000)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    clean, _, _ = training.training_batch(PICTURES, COPIES, 5, replace(CONFIG, mirror=True, batch=64), 1000)
    known = data.to_float(PICTURES)
    mirrored = torch.cat([known, known.flip(-1)])
    found = torch.cdist(clean.flatten(1), mirrored.flatten(1)).argmin(1)
    assert 16 <= int((found >= len(known)).sum()) <= 48


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_single_picture_is_learnt_by_heart(prediction_type: str, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        steps=250,
        prediction_type=prediction_type,
        batch=32,
        learning_rate=5e-3,
        ema_decay=0.95,
        checkpoint_every=1000,
    )
    smooth = torch.linspace(0, 255, 64).reshape(1, 1, 8, 8).to(torch.uint8)
    training.train(smooth, torch.ones(1, dtype=torch.long), config, tmp_path / "model", tmp_path / "checkpoint.pt")
    eps = load_network(tmp_path / "model", channels=1)
    noise = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = data.to_float(smooth) + noise
    with torch.no_grad():
        error = (noisy - eps(noisy, 1.0) - data.to_float(smooth)).square().mean().sqrt()
    assert error < 0.2, f"noise of size 1 is taken off with an error of {error:.2f}"


def test_the_result_is_a_pipeline_of_diffusers(tmp_path: Path) -> None:
    training.train(PICTURES, COPIES, CONFIG, tmp_path / "model", tmp_path / "checkpoint.pt")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 3)
    assert len(pd.read_parquet(tmp_path / "model" / "loss.parquet")) == CONFIG.steps
    assert not (tmp_path / "checkpoint.pt").exists()
    assert not list(tmp_path.rglob("*.bin"))


def scratch_study(folder: Path, config: TrainConfig) -> None:
    """Parameters, notebooks and an image set such that the training program runs in `folder`."""
    root = Path(__file__).parent.parent
    (folder / "notebooks").symlink_to(root / "notebooks")
    parameters = yaml.safe_load((root / "params.yaml").read_text()) | {"train": asdict(config)}
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    data.save(planted({4: 2}), folder / "results/data")


def run_training(folder: Path, *launcher: str, options: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [*(launcher or (sys.executable,)), "-m", "memlib.training", "results/data", "results/model", *options]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def test_killed_runs_go_on_and_end_as_an_unbroken_one(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=400, checkpoint_every=20, precision="auto")
    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
        scratch_study(tmp_path / name, config)
    unbroken = run_training(tmp_path / "unbroken")
    assert unbroken.wait() == 0
    folder, checkpoint = tmp_path / "killed", tmp_path / "killed/results/checkpoints/train.pt"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = run_training(folder)
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before):
            time.sleep(0.001)
        assert process.poll() is None, f"the run ended before it could be killed: {process.stderr.read()}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = torch.load(checkpoint, weights_only=True)["reached"]
        assert 0 < reached["step"] < config.steps
        assert not (folder / "results/model").exists()
    assert run_training(folder).wait() == 0
    assert not checkpoint.exists()
    for name in ("unet/diffusion_pytorch_model.safetensors", "loss.parquet"):
        assert (folder / "results/model" / name).read_bytes() == (
            tmp_path / "unbroken/results/model" / name
        ).read_bytes()


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        scratch_study(tmp_path / name, replace(CONFIG, learning_rate=1e-4))
    assert run_training(tmp_path / "one").wait() == 0
    accelerate = Path(sys.executable).with_name("accelerate")
    two = run_training(
        tmp_path / "two",
        str(accelerate),
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    )
    assert two.wait() == 0, two.stderr.read()
    one, two = (
        load_file(tmp_path / name / "results/model/unet/diffusion_pytorch_model.safetensors") for name in ("one", "two")
    )
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_a_given_start(tmp_path: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    training.train(PICTURES, COPIES, CONFIG, tmp_path / "start", tmp_path / "c.pt")
    still = replace(CONFIG, steps=1, learning_rate=1e-12)
    training.train(PICTURES, COPIES, still, tmp_path / "same", tmp_path / "c.pt", tmp_path / "start")
    start, same = (load_file(tmp_path / folder / name) for folder in ("start", "same"))
    for key, weights in start.items():
        torch.testing.assert_close(same[key], weights, rtol=0, atol=1e-6)
    training.train(PICTURES, COPIES, still, tmp_path / "new", tmp_path / "c.pt")
    assert any((load_file(tmp_path / "new" / name)[key] - weights).abs().max() > 0.01 for key, weights in start.items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        training.train(PICTURES[:, :1], COPIES, still, tmp_path / "grey", tmp_path / "c.pt", tmp_path / "start")


def test_the_command_takes_split_section_seed_and_start(tmp_path: Path) -> None:
    scratch_study(tmp_path, CONFIG)
    options = ("--split", "heldout", "--section", "retrain", "--seed", "5")
    parameters = yaml.safe_load((tmp_path / "params.yaml").read_text())
    parameters["retrain"] = {"steps": 3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(parameters))
    process = run_training(tmp_path, options=options)
    assert process.wait() == 0, process.stderr.read()
    name = "unet/diffusion_pytorch_model.safetensors"
    part = data.load(tmp_path / "results/data").split("heldout")
    expected = replace(CONFIG, steps=3, seed=5)
    torch.set_num_threads(1)
    copies = torch.ones(len(part.images), dtype=torch.long)
    training.train(part.images, copies, expected, tmp_path / "expected", tmp_path / "c.pt")
    assert (tmp_path / "results/model" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_a_checkpoint_of_another_run_is_not_taken_up(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(*_: object) -> None:
        raise Killed

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optimisation.EMAModel, "copy_to", stop)
        training.train(PICTURES, COPIES, CONFIG, tmp_path / "model", checkpoint)
    assert checkpoint.exists()
    other = replace(CONFIG, seed=1)
    training.train(PICTURES, COPIES, other, tmp_path / "resumed", checkpoint)
    training.train(PICTURES, COPIES, other, tmp_path / "fresh", tmp_path / "no-checkpoint.pt")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing that torch wrote")
    with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read; remove it"):
        training.train(PICTURES, COPIES, CONFIG, tmp_path / "model", tmp_path / "checkpoint.pt")


def test_a_training_that_diverges_leaves_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the training loss is not finite from step"):
        training.train(PICTURES, COPIES, replace(CONFIG, learning_rate=1e30), tmp_path / "model", tmp_path / "c.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "flow"}, "train.prediction_type is 'flow'; known: epsilon"),
        ({"precision": "fp8"}, "train.precision is 'fp8'; known: auto, no, bf16"),
        ({"attention": [True]}, "train.attention has 1 entries but train.channels has 2"),
        ({"channels": [20, 40]}, "must be multiples of 16"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_pictures_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures of 9 pixels do not halve 1 times"):
        training.build_network(3, 9, CONFIG)
