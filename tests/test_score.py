"""Score tables: the same bytes however they are made, what is refused, and the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import scheduler, side_by_side, small_pipeline, small_unet
from diffusers import DDPMPipeline
from PIL import Image
from test_detectors import Counted, items_for, pixel_field, text_field

from memlib import cli
from memlib.datasets.items import write_samples
from memlib.detectors import ALL, find
from memlib.detectors.api import Detector, Items, Scores
from memlib.fields.unet import UNetField
from memlib.progress import progress
from memlib.score import Table, score, write_tables
from memlib.study.score import remove_others
from memlib.tables import KEY, parse_setting, read_evaluations, read_scores, setting_name

N = 5
P = [1.0, 1.5, 2.7]  # a power that no kernel has a special way for
PIXEL = {
    "growth": {"sigma_min": 0.1, "sigma_max": 1.0, "steps": 1, "directions": 2},
    "edges": {"sigma_min": 0.1, "sigma_max": 1.0, "steps": [1, 2], "axes": [1, 3]},
    "axes": {"sigma_min": 0.1, "sigma_max": 1.0, "steps": [1], "axes": [1]},
    "rate": {"sigma": 0.2, "directions": [1, 9]},
    "flux": {"sigma": 0.2, "p": P, "directions": 18, "scheme": "orthogonal"},
    "ball": {"sigma": 0.2, "p": P, "directions": 9},
    "derivatives": {"sigma": 0.2, "p": P, "directions": 3},
    "loss": {"sigma": 0.2, "draws": [1, 9, 17]},
    "length": {"sigma": 0.2},
    "secmi": {"timesteps": [0, 10, 20]},
    "pia": {"sigma": 0.2},
    "pian": {"sigma": 0.2},
    "sima": {"sigma": 0.2, "power": [2, 4, 5]},
    "flipd": {"sigma": 0.2, "directions": [1, 9]},
    "rediffuse": {"sigma": 0.5, "steps": 2, "draws": [1, 9]},
    "pfami": {"sigmas": [0.2, 0.5], "crops": [0.9, 0.7], "draws": 3},
    "gsa": {"sigmas": [0.2, 0.5, 1.0]},
    "calibrated_loss": {"sigma": 0.2, "draws": [9]},
    "between_generations": {"generations": [2, 4]},
    "nearest_training": {"generations": [1, 3]},
    **{name: {} for name in ("png_size", "variation", "flat_share", "nearest_picture", "looks")},
}
TEXT = {
    "magnitude": {"noises": 3, "sampling_steps": 10},
    "sampled_magnitude": {"noises": 3, "guidance": 3.0, "sampling_steps": 2},
    "loss": {"sigma": 0.2, "draws": [9], "prompt": True},
    "flux": {"sigma": 0.2, "p": [1.0], "directions": 18, "prompt": True},
    "clid": {"sigma": 0.5, "draws": [1, 9]},
    "rediffuse": {"sigma": 0.5, "steps": 1, "draws": [3], "prompt": True},
    "gsa": {"sigmas": [0.5], "prompt": True},
    "one_step": {"noises": [2, 5], "sampling_steps": 10},
    **{name: {"noises": 3, "sampling_steps": 10} for name in ("anisotropy", "sail", "gradient_difference")},
    "guided_change": {"noises": 3, "sampling_steps": 10, "guidance": 3.0},
    "attention_entropy": {"noises": 3, "layer": 2},
    "sampled_entropy": {"noises": 3, "last": 1, "sampling_steps": 2},
    "prompt_length": {},
    "rarest_word": {},
}


@pytest.fixture(scope="module")
def pixel() -> tuple[UNetField, Items]:
    field = pixel_field()
    return field, items_for(field, N)


@pytest.fixture(scope="module")
def text() -> tuple[UNetField, Items]:
    field = text_field()
    return field, items_for(field, N)


def table_bytes(path: Path, given: tuple[UNetField, Items], name: str, setting: dict, **how) -> bytes:
    field, items = given
    score(field, items, find(name), [setting], path, "model", replace=True, **how)
    return path.read_bytes()


DEAR = {  # seconds each, beside others that are computed in the same way
    "pixel": ("axes", "rate", "flipd", "calibrated_loss", "rediffuse", "gsa", "pfami", "ball", "derivatives"),
    "text": (
        *("sail", "gsa", "clid", "flux", "rediffuse", "anisotropy", "gradient_difference", "sampled_entropy"),
        *("guided_change", "one_step"),
    ),
}
EVERY = [("pixel", name) for name in PIXEL] + [("text", name) for name in TEXT]


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*each, marks=pytest.mark.ci if each[1] in DEAR[each[0]] else ()) for each in EVERY],
)
def test_equal_runs_give_equal_bytes(kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whatever the number of items in a batch, their order, their neighbours and the number of threads."""
    (field, items), setting = request.getfixturevalue(kind), (PIXEL if kind == "pixel" else TEXT)[name]
    path = tmp_path / "scores.parquet"
    whole = table_bytes(path, (field, items), name, setting)
    table = read_scores(path)
    for batch in (1, 3):
        assert table_bytes(path, (field, items), name, setting, batch=batch) == whole
    order = [3, 0, 4, 2, 1]
    assert table_bytes(path, (field, items.rows(order)), name, setting, batch=4) == whole
    table_bytes(path, (field, items.rows([4, 2])), name, setting)
    pd.testing.assert_frame_equal(read_scores(path), table.loc[["item 2", "item 4"]], check_exact=True)
    assert [*table.index] == sorted(items.ids)
    assert table.notna().all(axis=None)


def test_the_number_of_threads_changes_nothing(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    given = field.with_rows(5), items  # rows that three threads cannot share evenly
    one = table_bytes(tmp_path / "scores.parquet", given, "loss", PIXEL["loss"])
    torch.set_num_threads(3)
    try:
        assert table_bytes(tmp_path / "scores.parquet", given, "loss", PIXEL["loss"]) == one
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_a_table_says_of_what_it_is(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    path = tmp_path / "new" / "loss.parquet"
    settings = [{"sigma": sigma, "draws": [1, 2]} for sigma in (0.5, 0.1)]
    found = score(field, items, find("loss"), settings, path, "abc", 3)
    about = json.loads(pq.read_schema(path).metadata[KEY])
    assert about.keys() == {"model", "detector", "settings", "seed", "items"}
    assert (about["model"], about["detector"], about["settings"], about["seed"]) == ("abc", "loss", settings, 3)
    pd.testing.assert_frame_equal(found, pd.read_parquet(path))
    assert found.columns.tolist() == ["item", "setting", "score", "evaluations", "note"]
    assert found["score"].dtype == np.float32
    assert found[["setting", "item"]].apply(tuple, axis=1).is_monotonic_increasing
    assert read_evaluations(path) == {f"draws={k} sigma={sigma}": k for k in (1, 2) for sigma in (0.1, 0.5)}
    assert read_scores(path).shape == (N, 4)
    expected = find("loss").score(field, items, sigma=0.1, draws=[2])[0].value
    assert read_scores(path)["draws=2 sigma=0.1"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert list(path.parent.iterdir()) == [path]


def test_without_settings_the_usual_ones_are_taken(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    found = score(*pixel, find("length"), [], tmp_path / "length.parquet")
    assert set(found["setting"]) == {"sigma=0.2"}


def test_settings_in_words_are_read_again() -> None:
    setting = {"sigma": 0.2, "draws": [1, 4], "prompt": True, "method": "heun", "steps": 3, "radius": None}
    words = setting_name(setting)
    assert words == "draws=[1,4] method=heun prompt=True radius=None sigma=0.2 steps=3"
    assert parse_setting(words) == setting | {"radius": "None"}


class Interrupted(Exception):
    """What stands for a kill."""


def interrupted_at(field: UNetField, call: int) -> Iterator[None]:
    """Interrupt the network at so many calls from now."""
    calls = []

    def count(*_: object) -> None:
        calls.append(1)
        if len(calls) == call:
            raise Interrupted

    return field.unet.register_forward_pre_hook(count)


def test_a_killed_run_goes_on_at_the_last_whole_batch(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    path, setting = tmp_path / "loss.parquet", {"sigma": 0.2, "draws": [8]}  # two calls of 8 rows a batch of 2
    whole = table_bytes(tmp_path / "whole.parquet", (field, items), "loss", setting, batch=2)
    handle = interrupted_at(field, 5)  # in the third of three batches
    with pytest.raises(Interrupted):
        table_bytes(path, (field, items), "loss", setting, batch=2)
    handle.remove()
    assert not path.exists()
    (parts,) = tmp_path.glob("loss.*.parts")
    assert sorted(part.name for part in parts.iterdir()) == ["0.parquet", "2.parquet"]
    seen = Counted(field)
    assert table_bytes(path, (field, items.rows([4, 3, 1, 2, 0])), "loss", setting, batch=2) == whole
    assert seen.evaluations == 8, "the item that was left"
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("changed", ["setting", "seed", "pictures", "rows", "batch", "model"])
def test_what_a_killed_run_left_is_not_taken_for_another(
    changed: str, pixel: tuple[UNetField, Items], tmp_path: Path
) -> None:
    field, items = pixel
    path, setting = tmp_path / "loss.parquet", {"sigma": 0.2, "draws": [8]}
    handle = interrupted_at(field, 5)
    with pytest.raises(Interrupted):
        score(field, items, find("loss"), [setting], path, "model", 2)
    handle.remove()
    given = {
        "setting": (field, items, "model", 2, {"sigma": 0.3, "draws": [8]}),
        "seed": (field, replace(items, seed=9), "model", 2, setting),
        "pictures": (field, replace(items, pictures=items.pictures.flip(3)), "model", 2, setting),
        "rows": (field.with_rows(7), items, "model", 2, setting),
        "batch": (field, items, "model", 3, setting),
        "model": (field, items, "other", 2, setting),
    }
    other, them, model, batch, how = given[changed]
    seen = Counted(other)
    score(other, them, find("loss"), [how], path, model, batch)
    assert seen.evaluations >= N * 8
    (left,) = tmp_path.glob("*.parts")  # the killed run may be gone on with
    os.utime(left, (0, 0))
    score(other, them, find("loss"), [how], path, model, batch, replace=True)
    assert not list(tmp_path.glob("*.parts")), "once it is forgotten"


def test_a_killed_run_of_several_detectors_scores_nothing_twice(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    tables = [Table(items, find(name), [], tmp_path / f"{name}.parquet") for name in ("length", "pia")]
    whole = [Table(items, find(name), [], tmp_path / "whole" / f"{name}.parquet") for name in ("length", "pia")]
    write_tables(field, whole, batch=2)
    handle = interrupted_at(field, 8)  # a batch takes three calls: in the third, after the first detector
    with pytest.raises(Interrupted):
        write_tables(field, tables, batch=2, replace=True)
    handle.remove()
    seen = Counted(field)
    write_tables(field, tables, batch=2, replace=True)
    assert seen.evaluations == 2 * 8, "the last batch of the second"
    assert [table.output.read_bytes() for table in tables] == [table.output.read_bytes() for table in whole]
    assert sorted(tmp_path.iterdir()) == [*(table.output for table in tables), tmp_path / "whole"]
    write_tables(field, tables, batch=2)
    assert seen.evaluations == 2 * 8, "the tables are there"
    write_tables(field, tables, batch=2, replace=True)
    assert seen.evaluations == 2 * 8 + 3 * 3 * 8


def test_prompts_of_several_calls_share_the_unconditional_pass(
    text: tuple[UNetField, Items], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, items = text
    passes, passed = [], UNetField.unconditional
    monkeypatch.setattr(UNetField, "unconditional", lambda field: passes.append(None) or passed(field))
    score(field.with_rows(2), items, find("magnitude"), [TEXT["magnitude"]], tmp_path / "magnitude.parquet")
    assert len(passes) == 1, "of 5 prompts, 2 a call"


def test_a_batch_of_pictures_is_one_call(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    handle = interrupted_at(field.with_rows(2), 3)
    with pytest.raises(Interrupted):
        score(field.with_rows(2), items, find("length"), [PIXEL["length"]], tmp_path / "length.parquet")
    handle.remove()
    assert len(list(tmp_path.glob("*.parts/*.parquet"))) == 2, "so that a backward pass keeps no more than a call"


def test_tables_of_the_same_items_share_one_sorted_copy(
    pixel: tuple[UNetField, Items], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, items = pixel
    items = items.rows([1, 0, *range(2, N)])
    copies, rows = [], Items.rows
    monkeypatch.setattr(Items, "rows", lambda items, chosen: copies.append(len(chosen)) or rows(items, chosen))
    tables = [Table(items, find(name), [], tmp_path / f"{name}.parquet") for name in ("length", "pia", "png_size")]
    write_tables(field, tables, batch=2)
    assert copies.count(N) == 1, "memory would grow with the number of detectors"


@pytest.mark.parametrize("edited", ["package", "detector"])
def test_batches_of_other_code_are_not_gone_on_with(
    edited: str, pixel: tuple[UNetField, Items], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed(power: int) -> Detector:
        """A detector as typed at a prompt, whose source no file holds."""
        names: dict = {"Scores": Scores, "__name__": "__main__"}
        exec(
            f"def score(model, items):\n return Scores(model(items.pictures, 0.2).flatten(1).sum(1) ** {power}, 1)",
            names,
        )
        return Detector("typed", {"model", "picture"}, ({},), names["score"])

    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    field, items = pixel
    path = tmp_path / "typed.parquet"
    handle = interrupted_at(field, 3)
    with pytest.raises(Interrupted):
        score(field, items, typed(2), [], path, batch=2)
    handle.remove()
    if edited == "package":
        monkeypatch.setattr("memlib.score.package_digest", lambda: "other")
    seen = Counted(field)
    found = score(field, items, typed(2 if edited == "package" else 3), [], path, batch=2)
    assert seen.evaluations == 3 * 8
    whole = score(field, items, typed(2 if edited == "package" else 3), [], tmp_path / "whole.parquet")
    pd.testing.assert_frame_equal(found, whole)


def test_where_no_table_can_be_written_is_said_before_work(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    seen = Counted(field)
    (tmp_path / "file").write_text("")
    (tmp_path / "pia.parquet").write_text("no table")
    for first, second, message in (
        ("length.parquet", "file/pia.parquet", "file is a file; the tables need a folder"),
        ("length.parquet", "pia.parquet", "pia.parquet is no table of scores; name another output, or replace it"),
        ("length.parquet", "length.parquet", "length.parquet is named for two tables; each needs a file of its own"),
    ):
        tables = [Table(items, find("length"), [], tmp_path / first), Table(items, find("pia"), [], tmp_path / second)]
        with pytest.raises(ValueError, match=message):
            write_tables(field, tables)
    assert seen.evaluations == 0


def test_a_table_that_is_named_no_more_goes(tmp_path: Path) -> None:
    for name in ("kept.parquet", "gone.parquet"):
        (tmp_path / name).write_text("")
    (tmp_path / "kept.0123456789ab.parts").mkdir()
    remove_others(tmp_path, [tmp_path / "kept.parquet"])
    assert [path.name for path in tmp_path.iterdir()] == ["kept.parquet"]


def test_processes_share_the_batches(
    pixel: tuple[UNetField, Items], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = SimpleNamespace(process_index=1, num_processes=2, is_main_process=False, wait_for_everyone=lambda: None)
    monkeypatch.setattr("memlib.score.processes", lambda: second)
    seen = Counted(pixel[0])
    with pytest.raises(FileNotFoundError):  # the first process would have written the table
        score(*pixel, find("length"), [], tmp_path / "length.parquet", batch=2)
    (parts,) = tmp_path.glob("length.*.parts")
    assert [part.name for part in parts.iterdir()] == ["2.parquet"]
    assert seen.evaluations == 8, "a batch, filled up"


def test_what_another_output_has_left_stays(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    other = tmp_path / "length.v2.0123456789ab.parts"
    other.mkdir()
    score(*pixel, find("length"), [], tmp_path / "length.parquet")
    assert other.exists()


def test_progress_tells_the_time_left(
    pixel: tuple[UNetField, Items], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr("memlib.progress.time.monotonic", lambda: next(now))
    score(*pixel, find("png_size"), [], tmp_path / "png_size.parquet", batch=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "png_size of 5 items: 1 of 3, 20 s, about 40 s left"
    assert lines[-1] == "png_size of 5 items: 3 of 3, 60 s, about 0 s left"


def test_progress_counts_what_was_done_before(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("memlib.progress.time.monotonic", lambda: next(now))
    assert list(progress(["a", "b"], "x", done=3, every_seconds=5)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == [
        "x: 4 of 5, 10 s, about 10 s left",
        "x: 5 of 5, 20 s, about 0 s left",
    ]
    now = iter(range(0, 1000, 10))
    assert list(progress(iter("ab"), "y", every_seconds=15)) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["y: 2 of None, 20 s"]


def test_another_table_at_the_output_is_refused(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    path, setting = tmp_path / "loss.parquet", {"sigma": 0.2, "draws": [1]}
    score(field, items, find("loss"), [setting], path, "model")
    before, seen = path.read_bytes(), Counted(field)
    turned = replace(items, pictures=items.pictures.flip(3))
    for them, name, how, model, difference in (
        (items, "loss", setting, "other", "of another model"),
        (items, "length", {"sigma": 0.2}, "model", "by another detector"),
        (items, "loss", {"sigma": 0.3, "draws": [1]}, "model", "at other settings"),
        (replace(items, seed=9), "loss", setting, "model", "with another seed"),
        (items.rows([0, 1]), "loss", setting, "model", "of other items"),
        (turned, "loss", setting, "model", "of other items"),
    ):
        with pytest.raises(
            ValueError, match=f"loss.parquet holds scores {difference}; name another output, or replace"
        ):
            score(field, them, find(name), [how], path, model)
    assert seen.evaluations == 0
    assert path.read_bytes() == before
    score(field, items.rows([1, 0, *range(2, N)]), find("loss"), [setting], path, "model")
    score(field, replace(items, training=items.training + 1), find("loss"), [setting], path, "model")
    assert path.read_bytes() == before
    score(field, turned, find("loss"), [setting], path, "model", replace=True)
    assert path.read_bytes() != before


def test_another_reference_or_training_set_or_prompt_is_another_table(
    pixel: tuple[UNetField, Items], text: tuple[UNetField, Items], tmp_path: Path
) -> None:
    field, items = pixel
    score(field, items, find("nearest_picture"), [], tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="of other items"):
        score(field, replace(items, training=items.training + 1), find("nearest_picture"), [], tmp_path / "a.parquet")
    usual = [{"sigma": 0.2, "draws": [1]}]
    score(field, items, find("calibrated_loss"), usual, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="of other items"):
        score(field, replace(items, reference=pixel_field(5)), find("calibrated_loss"), usual, tmp_path / "b.parquet")
    field, items = text
    other = replace(items, prompts=["a whale"] * N)
    for prompt in (False, True):
        path = tmp_path / f"{prompt}.parquet"
        setting = [{"sigma": 0.2, "draws": [1], "prompt": prompt}]
        score(field, items, find("loss"), setting, path)
        if prompt:
            with pytest.raises(ValueError, match="of other items"):
                score(field, other, find("loss"), setting, path)
        else:
            score(field, other, find("loss"), setting, path)


def broken(value: object) -> Detector:
    return Detector("broken", {"picture"}, ({},), lambda field, items: Scores(value(items), 0))


def test_refusals_before_and_at_work(pixel: tuple[UNetField, Items], tmp_path: Path) -> None:
    field, items = pixel
    path, seen = tmp_path / "x.parquet", Counted(field)
    usual = {"sigma": 0.2, "draws": [1]}
    for them, detector, settings, message in (
        (replace(items, ids=["a", *items.ids[2:], "a"]), find("loss"), [], "the item 'a' is there twice"),
        (items.rows([]), find("loss"), [], "there are no items to be scored"),
        (items, find("loss"), [usual, {"sigma": 0.3}], "lacks 'draws'"),
        (items, find("magnitude"), [], "the detector magnitude needs prompts"),
        (items, broken(lambda items: torch.zeros(3, 1)), [], r"broken gave scores of the shape \[3, 1\] for 5 items"),
        (
            items,
            broken(lambda items: torch.tensor([float(name == "item 4") for name in items.ids]).log()),
            [],
            "the detector broken gave -inf for the item 'item 0' at ; a score must be finite",
        ),
        (
            items,
            broken(lambda items: torch.tensor([float("nan") if name == "item 4" else 0.0 for name in items.ids])),
            [],
            "the detector broken gave nan for the item 'item 4'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            score(field, them, detector, settings, path)
        assert seen.evaluations == 0
        assert not path.exists()
    with pytest.raises(ValueError, match="two settings of the detector loss give the same scores, 'draws=1 sigma=0.2'"):
        score(field, items, find("loss"), [usual, {"sigma": 0.2, "draws": [2, 1]}], path)


# --- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel model, a text model, pictures of which one is broken, prompts and samples."""
    folder = tmp_path_factory.mktemp("study")
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(folder / "model")
    DDPMPipeline(small_unet(seed=1), scheduler()).save_pretrained(folder / "reference")
    small_pipeline().save_pretrained(folder / "text")
    for name in ("pictures", "training"):
        (folder / name).mkdir()
        rng = np.random.default_rng(len(name))
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    (folder / "pictures" / "2.png").write_bytes(b"\x89PNG broken")
    Image.new("RGB", (9, 8)).save(folder / "pictures" / "3.png")
    (folder / "prompts.txt").write_text("a red apple\nthe whale\n")
    ids = [f"{i}.png" for i in range(5)]
    write_samples(folder / "samples.safetensors", torch.randint(0, 256, (5, 4, 3, 8, 8), dtype=torch.uint8), ids)
    return folder


def test_pictures_are_scored_by_the_command_and_by_two_processes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    names = ["flux", "loss", "calibrated_loss", "nearest_training", "nearest_picture", "png_size"]
    common = ["score", "model", "--images", "pictures", "--training", "training", "--samples", "samples.safetensors"]
    common += ["--reference", "reference", "--seed", "4", "--rows", "4", "--detectors"]
    cli.main([*common, *names, "--batch", "2", "--output", str(tmp_path / "one")])
    printed = capfd.readouterr()
    assert printed.out.splitlines() == [str(tmp_path / "one" / f"{name}.parquet") for name in names]
    assert "not scored: 2.png: pictures/2.png cannot be read as an image" in printed.err
    assert (
        "not scored: 3.png: pictures/3.png is 3 channels of 8x9 pixels; the model takes 3 channels of 8x8"
        in printed.err
    )
    table = pd.read_parquet(tmp_path / "one" / "loss.parquet").set_index("item")
    assert table.index.tolist() == [f"{i}.png" for i in range(5)]
    assert table["score"].isna().tolist() == [False, False, True, True, False]
    assert table["note"].str.contains("cannot be read").tolist() == [False, False, True, False, False]
    assert table["evaluations"].tolist() == [4, 4, 0, 0, 4]
    side_by_side(partial(cli.main, [*common, *names, "--batch", "1", "--output", str(tmp_path / "two")]))
    assert capfd.readouterr().out.count("flux.parquet") == 1, "one of the processes tells"
    for name in names:
        assert (tmp_path / "two" / f"{name}.parquet").read_bytes() == (
            tmp_path / "one" / f"{name}.parquet"
        ).read_bytes()
    assert len(list((tmp_path / "two").iterdir())) == len(names), "no parts are left"


def test_prompts_are_scored_by_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["score", "text", "--prompts", "prompts.txt", "--rows", "2", "--detectors", "magnitude", "magnitude"]
    arguments += ["--output", str(tmp_path)]
    cli.main([*arguments, "--setting", "noises=2", "sampling_steps=5"])
    table = read_scores(tmp_path / "magnitude.parquet")
    assert table.index.tolist() == ["a red apple", "the whale"]
    assert table.columns.tolist() == [f"noise={i} noises=2 sampling_steps=5" for i in (0, 1)]
    with pytest.raises(SystemExit, match=r"memlib score: .*magnitude.parquet holds scores at other settings; name"):
        cli.main([*arguments, "--setting", "noises=1"])
    with pytest.raises(SystemExit, match="holds scores with another seed"):
        cli.main([*arguments, "--setting", "noises=2", "sampling_steps=5", "--seed", "1"])
    with pytest.raises(SystemExit, match="holds scores of another model"):
        cli.main([*arguments, "--setting", "noises=2", "sampling_steps=5", "--dtype", "bfloat16"])
    cli.main([*arguments, "--setting", "noises=1", "--replace"])
    assert read_scores(tmp_path / "magnitude.parquet").columns.tolist() == ["noise=0 noises=1"]


def test_memory_that_runs_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_detectors", run_out)
    error = torch.OutOfMemoryError("tried to allocate 9 GiB")
    with pytest.raises(SystemExit, match=r"^memlib detectors: memory ran out; give fewer --rows.*is kept.*goes on"):
        cli.main(["detectors"])
    error = RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"):
        cli.main(["detectors"])
    error = OSError(28, "No space left on device", "scores/loss.parquet")
    with pytest.raises(SystemExit, match=r"^memlib detectors: No space left on device \(scores/loss.parquet\)$"):
        cli.main(["detectors"])


def test_an_option_that_is_none_is_told_by_its_own_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["audit", "model", "--imagess", "pictures"])
    said = capsys.readouterr().err
    assert "usage: memlib audit" in said
    assert "unrecognized arguments: --imagess pictures" in said


def test_what_the_command_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the name of no folder is looked for there
    pictures, detector = ["--images", "pictures"], ["--detectors", "loss"]
    for arguments, message in (
        (["model", *pictures, "--detectors", "losss"], "there is no detector 'losss'; did you mean 'loss'?"),
        (
            ["model", *pictures, *detector, "--setting", "sigma"],
            "--setting 'sigma' is not KEY=VALUE, such as sigma=0.2",
        ),
        (["model", *pictures, *detector, "--setting", "sigma=0.2"], "a setting of the detector loss lacks 'draws'"),
        (["model", *pictures, *detector, "--rows", "0"], "--rows is 0; it must be at least 1"),
        (["model", *pictures, *detector, "--batch", "-1"], "--batch is -1; it must be at least 1"),
        (["model", *detector], "give either pictures or a prompt file to be scored"),
        (["nowhere", *pictures, *detector], "there is no folder nowhere here, and the hub"),
        (["model", "--images", "nowhere", *detector], "there is no folder nowhere with pictures"),
        (["model", *pictures, "--detectors", "magnitude"], "magnitude needs prompts: a prompt file, or pictures with"),
        (["model", *pictures, "--detectors", "png_size", "calibrated_loss"], "calibrated_loss needs a reference model"),
        (["model", *pictures, "--detectors", "nearest_picture"], "nearest_picture needs the training pictures"),
    ):
        with pytest.raises(SystemExit) as refused:
            cli.main(["score", *arguments, "--output", "never"])
        assert str(refused.value).startswith("memlib score: ")
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not (folder / "never").exists()


def test_the_detectors_are_listed(capsys: pytest.CaptureFixture) -> None:
    cli.main(["detectors"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(ALL)
    assert "loss: needs model, picture; draws=[4] sigma=0.2" in lines
    assert "png_size: needs picture; no settings" in lines


@pytest.mark.ci
def test_a_reader_that_has_seen_enough_ends_the_list_quietly() -> None:
    command = f"set -o pipefail; {sys.executable} -m memlib.cli detectors | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
