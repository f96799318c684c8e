"""The monitor: it leaves the training as it is, to the bit; its scores are the detectors'; its log resumes; and it alarms."""

import copy
import json
import logging
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import WORDS, scheduler, side_by_side, small_flow_pipeline, small_pipeline, small_unet
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.training_utils import EMAModel

from memlib.detectors import find
from memlib.detectors.api import Items
from memlib.evaluation.looks import judge
from memlib.fields.load import field_of
from memlib.monitor import LOOKS, SCORES, Monitor

ROOT = Path(__file__).parent.parent
EACH = 12


def pictures(count: int = 2 * EACH, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Pictures of blocks of colour [count, 3, size, size]."""
    coarse = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return (2 * coarse - 1).repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)


def with_dropout() -> UNet2DModel:
    network = small_unet(attention=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    network.conv_in.register_forward_hook(lambda *_: torch.rand(1) and None)  # which draws in evaluation, too
    return network


def made(log: Path, network: UNet2DModel | None = None, **changes: Any) -> Monitor:
    network = small_unet() if network is None else network
    given = {"training": pictures()[:EACH], "heldout": pictures()[EACH:], "every": 2, "log": log} | changes
    return Monitor(DDPMPipeline(network, scheduler()), **given)


def states() -> list[Any]:
    """All random states of the process, as they are compared."""
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), legacy, random.getstate()]


def trained(
    steps: int, watch: Callable[[UNet2DModel, EMAModel], Callable[[int], Any]], learning_rate: float = 1e-3
) -> list[Any]:
    """Weights, averages and random states after a training with dropout, gradients that are accumulated, and global noise."""
    network = with_dropout()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    ema = EMAModel(network.parameters(), decay=0.9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    network.train()
    network.mid_block.eval()  # a part that is frozen
    look = watch(network, ema)
    look(0)
    clean = pictures()[:EACH]
    for step in range(steps):
        for _ in range(2):
            noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
            loss = (network(scheduler().add_noise(clean, noise, t), t).sample - noise).square().mean()
            loss.backward()
            look(step)
        optimizer.step()
        ema.step(network.parameters())
        look(step + 1)
        optimizer.zero_grad()
    assert network.training
    assert not network.mid_block.training
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    assert sum(hooks) == len(network.conv_in._forward_hooks) == 1
    assert all(weights.requires_grad for weights in network.parameters())
    assert ema.temp_stored_params is None
    return [[weights.detach().tolist() for weights in (*network.parameters(), *ema.shadow_params)], states()]


@pytest.mark.parametrize(
    "detector",
    [
        {"loss": {"sigma": 0.2, "draws": [2]}},
        pytest.param({"rate": {"sigma": 0.2, "directions": [1]}}, marks=pytest.mark.ci),
    ],
)
def test_the_training_is_the_same_with_and_without_to_the_bit(tmp_path: Path, detector: dict) -> None:
    alone = trained(4, lambda network, ema: lambda step: None)
    watched = trained(4, lambda network, ema: made(tmp_path, network, ema=ema, every=1, detectors=detector).step)
    assert watched == alone
    assert sorted(pd.read_csv(tmp_path / LOOKS)["step"]) == [1, 2, 3, 4]


@pytest.mark.parametrize("averaged", [True, False])
def test_scores_are_the_detectors_on_the_averaged_weights(tmp_path: Path, averaged: bool) -> None:
    network = small_unet()
    ema = EMAModel(network.parameters(), decay=0.9) if averaged else None
    with torch.no_grad():
        for weights in network.parameters():
            weights.mul_(1.1)
    monitor = made(tmp_path, network, ema=ema, rows=5)
    monitor.step(0)
    field = field_of(DDPMPipeline(small_unet() if averaged else network, scheduler()))
    items = Items(monitor.watched.items.ids, 0, pictures())
    (expected,) = find("loss").score(field, items, sigma=0.2, draws=[4])
    scores = monitor.scores.set_index("picture")["score"][monitor.watched.items.ids]
    assert scores.tolist() == pytest.approx(expected.value.tolist(), rel=1e-4)


def test_whole_numbers_are_pictures_from_0_to_255(tmp_path: Path) -> None:
    whole = ((pictures() + 1) * 127.5).round().to(torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = made(tmp_path, training=whole[:EACH], heldout=whole[EACH:])
    assert (monitor.watched.items.pictures - pictures()).abs().max() < 0.005


@pytest.mark.parametrize(("low", "warned"), [(-1.0, False), (0.0, True)])
def test_pictures_from_0_to_1_are_warned_of(tmp_path: Path, low: float, warned: bool) -> None:
    given = (pictures() + 1) / 2 * (1 - low) + low
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        made(tmp_path, training=given[:EACH], heldout=given[EACH:])
    assert any("not in [0, 1]" in str(each.message) for each in found) == warned


def test_without_a_step_of_training_nothing_changes(tmp_path: Path) -> None:
    monitor = made(tmp_path)
    assert len(monitor.step(0)) == 0
    look = monitor.step(2)
    assert look["p_value"].item() > 0.4
    assert look["auroc"].item() == 0.5
    assert monitor.onset is None


def test_a_look_judges_the_changes_since_the_first_look(tmp_path: Path) -> None:
    """By two detectors, which share the rate of false alarms."""
    network = small_unet()
    detectors = {"loss": {"sigma": 0.2, "draws": [2]}, "length": {"sigma": 0.2}}
    reported: dict[int, dict[str, float]] = {}
    monitor = made(
        tmp_path, network, detectors=detectors, report=lambda figures, step: reported.update({step: figures})
    )
    for step in (0, 2, 4):
        with torch.no_grad():
            for weights in network.parameters():
                weights.mul_(1.02)
        monitor.step(step)
    for number, step in enumerate((2, 4), 1):
        for name, row in monitor.looks[monitor.looks["step"] == step].set_index("detector").iterrows():
            scores = monitor.scores[monitor.scores["detector"] == name].set_index(["step", "picture"])["score"]
            changes = (scores[step] - scores[0])[monitor.watched.items.ids].to_numpy()
            look = judge(changes[:EACH], changes[EACH:], number, 0.025, 0.1)
            assert row[["auroc", "low", "high"]].tolist() == pytest.approx(list(look.auroc))
            assert (row["p_value"], row["level"], row["named"]) == (look.p_value, look.level, look.named.sum())
            assert row["told_apart"] == look.told_apart
            assert row["evaluations"] == 2 * EACH * (2 if name == "loss" else 1)
            for figure in ("auroc", "p_value", "told_apart", "named"):
                assert reported[step].pop(f"monitor/{name}/{figure}") == row[figure]
    assert reported == {2: {}, 4: {}}


def test_it_looks_at_its_times_alone(tmp_path: Path) -> None:
    monitor = made(tmp_path, every=3)
    looked = [step for step in (1, 1, 2, 3, 3, 4, 5, 6) if monitor.step(step) is not None]
    assert looked == [1, 3, 6]
    assert monitor.looks["step"].tolist() == [3, 6]


def test_a_log_is_gone_on_with_and_later_looks_are_dropped(tmp_path: Path) -> None:
    network = small_unet()

    def moved(amount: float) -> None:
        generator = torch.Generator().manual_seed(int(1000 * amount))
        with torch.no_grad():
            for weights, start in zip(network.parameters(), small_unet().parameters(), strict=True):
                weights.copy_(start + amount * torch.randn(start.shape, generator=generator))

    def run(log: Path, steps: list[int], **changes: Any) -> Monitor:
        monitor = made(log, network, **changes)
        for step in steps:
            moved(0.01 * step)
            monitor.step(step)
        return monitor

    whole = run(tmp_path / "whole", [0, 2, 4, 6])
    run(tmp_path / "broken", [0, 2, 4])
    moved(0.5)
    made(tmp_path / "broken", network).step(6)  # what is lost, as its checkpoint was not reached
    assert run(tmp_path / "broken", [3, 4]).looks["step"].tolist() == [2, 4]
    again = run(tmp_path / "broken", [6])
    assert again.latest == 6
    drop = ["seconds"]
    pd.testing.assert_frame_equal(again.looks.drop(columns=drop), whole.looks.drop(columns=drop))
    pd.testing.assert_frame_equal(again.scores, whole.scores)
    for folder in ("whole", "broken"):
        there = pd.read_csv(tmp_path / folder / LOOKS).drop(columns=drop)
        pd.testing.assert_frame_equal(there, whole.looks.drop(columns=drop))
    for changes, message in (
        ({"heldout": pictures(seed=1)[:EACH]}, "other pictures"),
        ({"seed": 1}, "other seed"),
        ({"alpha": 0.01}, "other alpha"),
        ({"rate": 0.2}, "other rate"),
        ({"detectors": {"length": {"sigma": 0.2}}}, "other detectors"),
    ):
        with pytest.raises(ValueError, match=message):
            made(tmp_path / "whole", network, **changes)


@pytest.mark.parametrize("start", [0, 1])
def test_a_script_that_is_started_again_leaves_the_first_look_as_it_was(tmp_path: Path, start: int) -> None:
    """It looks before the loop at 0 or only in it, and then goes on from a checkpoint, with other weights by then.

    Before its weights are loaded they are those of the first look.
    """
    network = small_unet()
    monitor = made(tmp_path, network)
    for step in (start, 2, 4):
        with torch.no_grad():
            network.conv_out.weight.mul_(1.1)
        monitor.step(step)
        if step == start:
            begun = copy.deepcopy(network.state_dict())
    trained = copy.deepcopy(network.state_dict())
    again = made(tmp_path, network)
    network.load_state_dict(begun)
    assert again.step(start) is None
    network.load_state_dict(trained)
    assert again.step(4) is not None
    assert again.step(5) is None
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / SCORES), monitor.scores)
    assert again.step(6)["level"].item() == pytest.approx(0.05 / 12)
    assert again.looks["step"].tolist() == [2, 4, 6]


@pytest.mark.parametrize("averaged", [True, False])
def test_another_training_does_not_go_on_with_the_log(tmp_path: Path, averaged: bool) -> None:
    """By the weights that are scored; a training that begins anew with the same ones may."""
    network = small_unet()
    ema = EMAModel(network.parameters()) if averaged else None
    made(tmp_path, network, ema=ema).step(0)
    about = (tmp_path / "about.json").read_bytes()
    if averaged:
        with torch.no_grad():
            network.conv_out.weight.mul_(1.1)
    assert made(tmp_path, network, ema=ema).step(0) is None
    with torch.no_grad():
        (ema.shadow_params[0] if averaged else network.conv_out.weight).mul_(1.1)
    before = states()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=f"{tmp_path} holds the log of a training that had other weights at step 0"
        ):
            made(tmp_path, network, ema=ema).step(0)
    assert states() == before
    assert (tmp_path / "about.json").read_bytes() == about
    assert len(made(tmp_path, network, ema=ema).step(2)) == 1


def test_an_alarm_of_a_run_that_is_gone_does_not_silence_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("memlib.monitor.judge", lambda *asked: judge(*asked)._replace(p_value=0.0))
    monitor = made(tmp_path, every=1)
    for step, onset in ((0, None), (2, 2), (1, 1)):
        caplog.clear()
        monitor.step(step)
        assert monitor.onset == onset
        assert [record.levelname for record in caplog.records] == ["WARNING"] * (onset is not None)


def test_a_kill_between_the_two_tables_loses_one_look(tmp_path: Path) -> None:
    monitor = made(tmp_path)
    monitor.step(0)
    kept = (tmp_path / SCORES).read_bytes()
    monitor.step(2)
    (tmp_path / SCORES).write_bytes(kept)  # the rows of the look are there, its scores are not
    again = made(tmp_path)
    assert len(again.looks) == 0
    assert again.first == 0
    again.step(2)
    assert again.looks["step"].tolist() == [2]


def test_two_processes_share_the_pictures_and_one_writes(tmp_path: Path) -> None:
    def work() -> None:
        state = Accelerator(cpu=True)
        monitor = made(tmp_path / "two", rows=4)
        writes = []
        monitor.report = lambda values, step: writes.append(step)
        for step in (0, 2):
            monitor.step(step)
        assert monitor.looks["step"].tolist() == [2]
        assert writes == ([2] if state.is_main_process else [])
        (tmp_path / f"{state.process_index}.json").write_text(monitor.looks.drop(columns="seconds").to_json())

    side_by_side(work)
    alone = made(tmp_path / "one", rows=4)
    for step in (0, 2):
        alone.step(step)
    found = [
        pd.read_parquet(tmp_path / name / SCORES).sort_values(["step", "picture"])["score"] for name in ("one", "two")
    ]
    assert found[0].tolist() == pytest.approx(found[1].tolist(), rel=1e-5)
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()


@pytest.mark.parametrize("make", [small_pipeline, small_flow_pipeline])
def test_text_to_image_pipelines_are_scored_under_their_prompts(tmp_path: Path, make: Callable) -> None:
    pipe = make()
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for module in pipe.text_encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    for part in parts:
        part.train(part is not pipe.vae)
    prompts = [f"{WORDS[row % 2]} {row}" for row in range(2 * EACH)]
    given = {"training_prompts": prompts[:EACH], "heldout_prompts": prompts[EACH:]}
    shown = pictures(size=16)
    monitor = Monitor(pipe, shown[:EACH], shown[EACH:], 2, tmp_path, **given)
    monitor.step(0)
    assert [part.training for part in parts] == [part is not pipe.vae for part in parts]
    for part in parts:
        part.eval()
    field = field_of(pipe)
    items = Items(monitor.watched.items.ids, 0, shown, prompts)
    (expected,) = find("loss").score(field, items, sigma=1.0, draws=[4], prompt=True)
    scores = monitor.scores.set_index("picture")["score"][monitor.watched.items.ids]
    assert scores.tolist() == pytest.approx(expected.value.tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="other pictures or prompts"):
        Monitor(
            pipe, shown[:EACH], shown[EACH:], 2, tmp_path, training_prompts=["a"] * EACH, heldout_prompts=["b"] * EACH
        )
    with pytest.raises(ValueError, match="needs prompts"):
        Monitor(pipe, shown[:EACH], shown[EACH:], 2, tmp_path / "none")
    with pytest.raises(ValueError, match="24 pictures need a prompt each; there are 12"):
        Monitor(pipe, shown[:EACH], shown[EACH:], 2, tmp_path / "half", None, prompts[:EACH], [])
    for one, message in (
        ({"training_prompts": prompts[:EACH]}, "the trained pictures have prompts and the held-out ones have none"),
        ({"heldout_prompts": prompts[EACH:]}, "the held-out pictures have prompts and the trained ones have none"),
    ):
        with pytest.raises(ValueError, match=message):
            Monitor(pipe, shown[:EACH], shown[EACH:], 2, tmp_path / "half", **one)


def test_prompts_that_are_too_long_are_cut_without_a_word_at_every_look(tmp_path: Path) -> None:
    """The pipeline itself warns of them as before."""
    pipe = small_pipeline()
    given = {"training_prompts": ["the " * 20] * EACH, "heldout_prompts": ["a " * 20] * EACH}
    monitor = Monitor(pipe, pictures(size=16)[:EACH], pictures(size=16)[EACH:], 2, tmp_path, **given)
    log, heard = logging.getLogger(type(pipe).__module__), []
    hearer = logging.Handler()
    hearer.emit = heard.append
    log.addHandler(hearer)
    try:
        monitor.step(0)
        assert not heard
        pipe.encode_prompt("the " * 20, pipe.device, 1, False)
        assert len(heard) == 1
    finally:
        log.removeHandler(hearer)


REFUSED = [
    ({"training": pictures()[:, :1]}, r"pictures of \[3, 8, 8\]; the monitor is given \[1, 8, 8\]"),
    ({"training": [*pictures()[:EACH]]}, r"one tensor \[N, 3, 8, 8\], uint8 or in \[-1, 1\]; got a list"),
    ({"heldout": Path("pictures")}, "got a PosixPath"),
    ({"training": 3 * pictures()[:EACH]}, r"lie in \[-1, 1\]; one reaches"),
    ({"heldout": pictures()[EACH - 1 :]}, "held-out picture 0 is also in training"),
    ({"training": pictures()[:3], "heldout": pictures()[3:6]}, "3 trained and 3 held-out pictures cannot alarm"),
    ({"every": 0}, "at least 1; got 0"),
    ({"alpha": 0.0}, "between 0 and 1, such as 0.05; got 0.0"),
    ({"detectors": {"lose": {}}}, "did you mean 'loss'"),
    ({"detectors": {"loss": {"sigma": 1e6, "draws": [1]}}}, "outside of the schedule"),
    ({"detectors": {"magnitude": {}}}, "needs prompts"),
    ({"ema": EMAModel(torch.nn.Linear(2, 2).parameters())}, "of other weights"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path, changes: dict, message: str) -> None:
    network = small_unet().train()
    with pytest.raises(ValueError, match=message):
        made(tmp_path, network, **changes)
    assert network.training
    assert not list(tmp_path.iterdir())


def test_a_network_that_also_predicts_a_variance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="also predicts a variance"):
        made(tmp_path, UNet2DModel.from_config({**small_unet().config, "out_channels": 6}))


def test_a_network_alone_several_scores_and_autocast_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="such as DDPMPipeline"):
        Monitor(small_unet(), pictures()[:EACH], pictures()[EACH:], 2, tmp_path)
    network = small_unet().train()
    several = made(tmp_path / "several", network, detectors={"loss": {"sigma": 0.2, "draws": [1, 2]}})
    with pytest.raises(ValueError, match="gives 2 scores"):
        several.step(0)
    assert network.training
    with pytest.raises(ValueError, match="outside of it"), torch.autocast("cpu", torch.bfloat16):
        made(tmp_path / "autocast").step(0)


def test_scores_that_are_not_finite_are_refused_at_first_and_told_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = small_unet()
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="the score of trained 0 is not finite at the first look"):
        made(tmp_path / "broken", broken).step(0)
    network = small_unet()
    monitor = made(tmp_path / "later", network)
    monitor.step(0)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    monitor.step(2)
    assert f"step 2: {2 * EACH} of {2 * EACH} scores are not finite" in caplog.text
    assert not monitor.looks["told_apart"].any()


def test_a_network_prepared_in_half_precision_is_scored_as_it_is(tmp_path: Path) -> None:
    plain = small_unet()
    expected = made(tmp_path / "plain", copy.deepcopy(plain))
    expected.step(0)
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare(plain)
    inner = accelerator.unwrap_model(prepared)
    x, t = pictures()[:1], torch.tensor([500])
    before = prepared(x, t).sample
    monitor = made(tmp_path / "prepared", inner)
    monitor.step(0)
    assert torch.equal(prepared(x, t).sample, before), "the training's own precision is back"
    AcceleratorState._reset_state(True)
    assert monitor.scores["score"].tolist() == expected.scores["score"].tolist()


def snippet() -> str:
    """The loop that the chapter shows."""
    cells = json.loads((ROOT / "notebooks/monitor.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    (found,) = [text.split("```python\n")[1].split("```")[0] for text in texts if "```python\n" in text]
    return found


@pytest.mark.ci
def test_the_loop_of_the_chapter_alarms_on_a_memoriser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """It is run as it stands there, on a small model that sees a dozen pictures until it knows them."""
    monkeypatch.chdir(tmp_path)
    accelerator = Accelerator(cpu=True)
    model = small_unet(attention=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema_model = EMAModel(model.parameters(), decay=0.95)
    noise_scheduler = scheduler()
    global_step, training_pictures, heldout_pictures = 0, pictures()[:EACH], pictures()[EACH:]
    train_dataloader = [{"input": training_pictures.repeat(2, 1, 1, 1)}] * 200
    torch.manual_seed(0)

    def training_step(batch: dict[str, torch.Tensor]) -> None:
        clean = batch["input"]
        noise, t = torch.randn_like(clean), torch.randint(0, 400, (len(clean),))
        loss = (model(noise_scheduler.add_noise(clean, noise, t), t).sample - noise).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    names = locals() | {"DDPMPipeline": DDPMPipeline}
    with caplog.at_level(logging.WARNING, "memlib.monitor"):
        exec(snippet(), names)
    monitor = names["monitor"]
    assert monitor.onset is not None
    assert monitor.looks["told_apart"].iloc[-1]
    assert monitor.looks["auroc"].iloc[-1] > 0.9
    assert [record.name for record in caplog.records].count("memlib.monitor") == 1
    assert f"step {monitor.onset}: 12 trained pictures are told apart from 12 held-out ones" in caplog.text
