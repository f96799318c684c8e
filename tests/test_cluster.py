"""Scores by the workers of a Ray cluster: the bytes of a single process, workers that are killed, and what is refused."""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
import torch
from conftest import scheduler, small_pipeline, small_unet
from diffusers import DDPMPipeline
from PIL import Image

from memlib import audit, cli, cluster
from memlib.cluster import Source, Worker, _sent, score_batches
from memlib.datasets.items import PictureFiles, load_items
from memlib.detectors import find
from memlib.detectors.api import Detector, Items, Scores
from memlib.fields.digest import weights_digest
from memlib.fields.load import load_field
from memlib.processes import processes
from memlib.score import Job, Made, Table, Workers, score_jobs, write_tables

PICTURES = 40
USUAL = {"sigma": 0.2, "draws": [1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, pictures of which one is broken, training pictures and prompts."""
    folder = tmp_path_factory.mktemp("cluster")
    DDPMPipeline(small_unet(), scheduler()).save_pretrained(folder / "model")
    DDPMPipeline(small_unet(seed=1), scheduler()).save_pretrained(folder / "reference")
    small_pipeline().save_pretrained(folder / "text")
    for name, count in (("pictures", PICTURES), ("training", 3)):
        (folder / name).mkdir()
        rng = np.random.default_rng(count)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{number:02}.png")
    (folder / "pictures" / "02.png").write_bytes(b"\x89PNG broken")
    (folder / "prompts.txt").write_text("a red apple\nthe whale\na green tree\nthe big blue whale\n")
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_pictures_in_files_are_those_of_the_tensor() -> None:
    """A part stays in its files, rows are read, and what has changed since is said."""
    items, _ = load_items(images="training")
    assert isinstance(items.pictures, PictureFiles)
    whole = items.rows(range(3)).pictures
    assert items.pictures.shape == whole.shape == (3, 3, 8, 8)
    part = items.part(1, 3)
    assert isinstance(part.pictures, PictureFiles)
    assert torch.equal(part.rows([1, 0]).pictures, whole[[2, 1]])
    sent = _sent([Job(part, find("loss"), [], Path("a"))])[0].items
    assert sent.pictures.folder.is_absolute()
    assert torch.equal(sent.rows([0]).pictures, whole[1:2])


def test_of_tensors_only_the_rows_of_a_batch_are_sent() -> None:
    items = Items(
        [str(number) for number in range(9)], pictures=torch.zeros(9, 3, 4, 4), training=torch.zeros(5, 3, 4, 4)
    )
    part = items.part(2, 4)
    first, second = _sent([Job(part, find(name), [], Path(name)) for name in ("loss", "pia")])
    assert first.items is second.items
    assert first.items.training is None
    assert first.items.ids == ["2", "3"]
    assert first.items.pictures.untyped_storage().nbytes() == 2 * 48 * 4


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Worker]:
    """A worker in this process, with nothing of Ray but its names."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda given: given, cloudpickle=cloudpickle))

    def made(
        model: str = "model", digest: str | None = None, training: object = None, captions: object = None
    ) -> Worker:
        digest = weights_digest(load_field("model", rows=3)) if digest is None else digest
        return Worker(Source(str(Path(model).resolve()), "float32", 3, digest, "reference"), training, captions)

    return made


def asked(worker: Worker, jobs: Sequence[Job], share: bool = True) -> dict:
    """What a worker gives for a batch that went to it as bytes."""
    return worker(pa.table({"number": [0], "jobs": [cloudpickle.dumps((_sent(jobs), share))]})).to_pylist()[0]


def test_batches_that_workers_do_in_any_order_give_the_same_bytes(
    worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Those that were done before all was killed are not done again."""
    field, done = load_field("model", rows=3), []
    items, notes = load_items(images="pictures", reference=load_field("reference", rows=3))

    def write(folder: str, workers: Workers | None = None) -> dict[str, bytes]:
        names = ("loss", "calibrated_loss")
        tables = [Table(items, find(name), [USUAL], tmp_path / folder / f"{name}.parquet", notes) for name in names]
        write_tables(field, tables, "model", 4, workers=workers)
        return {path.name: path.read_bytes() for path in sorted((tmp_path / folder).iterdir())}

    def others(stop: int | None, batches: Sequence[Sequence[Job]], share: bool) -> Iterator[list[Made]]:
        assert share
        mine = worker()
        for jobs in list(reversed(batches))[:stop]:
            done.append(jobs[0].items.ids[0])
            assert isinstance(jobs[0].items.pictures, PictureFiles), "nothing is read here"
            yield list(zip([job.path for job in jobs], asked(mine, jobs)["scores"], strict=True))
        if stop is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("together", partial(others, 4))
    assert write("together", partial(others, None)) == write("alone")
    assert len(done) == len(set(done)) == 10


def test_a_worker_scores_beside_the_training_set_that_it_was_given(worker: Callable[..., Worker]) -> None:
    pictures, _ = load_items(images="training")
    training, captions = pictures.rows(range(3)).pictures, ["a red apple", "a whale", "a red whale"]
    given = replace(pictures, prompts=["an apple", "a whale", "red"], training=training, captions=captions)
    jobs = [Job(given.part(1, 3), find(name), [{}], Path(name)) for name in ("nearest_picture", "rarest_word")]
    found = asked(worker(training=training, captions=captions), jobs)
    expected = [pd.read_parquet(BytesIO(content)) for _, content in score_jobs(None, jobs, True)]
    for content, table in zip(found["scores"], expected, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(BytesIO(content)), table)


def test_what_a_machine_does_not_see_is_named() -> None:
    assert cluster._look(["model", "nowhere"])[0] == ["nowhere"]


@pytest.mark.parametrize("share", [True, False])
def test_workers_are_told_whether_detectors_share(
    share: bool, worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, told = load_field("model", rows=3), []
    items, _ = load_items(images="training")

    def others(batches: Sequence[Sequence[Job]], share: bool) -> Iterator[list[Made]]:
        told.append(share)
        yield from ([*score_jobs(field, jobs, share)] for jobs in batches)

    write_tables(field, [Table(items, find("loss"), [USUAL], tmp_path / "a")], share=share, workers=others)
    monkeypatch.setattr(cluster, "score_jobs", lambda _, jobs, share: told.append(share) or iter(()))
    asked(worker(), [Job(items, find("loss"), [USUAL], Path("a"))], share)
    assert told == [share, share]


def test_a_worker_that_sees_another_model_or_none_says_so(worker: Callable[..., Worker]) -> None:
    items, _ = load_items(images="pictures")
    jobs = [Job(items.part(0, 2), find("loss"), [USUAL], Path("a"))]
    assert asked(worker(), jobs)["refusal"] == ""
    for other, message in ((worker(digest="0"), "is another model than here"), (worker("pictures"), "pictures")):
        found = asked(other, jobs)
        assert message in found["refusal"]
        assert found["scores"] == []
    unfit = [jobs[0]._replace(detector=Detector("zero", {"picture"}, ({},), zero), settings=[{}])]
    assert "the detector zero gave nan for the item '00.png'" in asked(worker(), unfit)["refusal"]


FAILURES = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "ran out of memory; give fewer --rows, or a "),
    (MemoryError(), "ran out of memory; give fewer --rows, or a "),
    (RuntimeError("[alloc.cpp:1] can't allocate memory: you tried"), "ran out of memory; give fewer --rows, or a "),
    (KeyError("conv_in\nin a line more"), r"failed (KeyError: 'conv_in\nin a line more'); what is scored is kept"),
    (RuntimeError("CUDA error: misaligned\nCompile with"), "failed (RuntimeError: CUDA error: misaligned); what is"),
]


@pytest.mark.parametrize(("error", "message"), FAILURES)
@pytest.mark.parametrize("place", ["load_field", "score_jobs"])
def test_what_a_worker_cannot_do_is_a_sentence_of_its_machine(
    place: str, error: Exception, message: str, worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it loads the model, and where it scores; one that raised while it loads would be started again."""

    def fail(*_: object) -> None:
        raise error

    items, _ = load_items(images="pictures")
    digest = weights_digest(load_field("model", rows=3))
    monkeypatch.setattr(cluster, place, fail)
    found = asked(worker(digest=digest), [Job(items.part(0, 2), find("loss"), [USUAL], Path("a"))])
    assert found["scores"] == []
    assert f"a worker on the machine {socket.gethostname()} {message}" in found["refusal"]
    assert "the same command goes on from there" in found["refusal"]
    assert "\n" not in found["refusal"]


def lost(error: Exception, after: list[dict]) -> SimpleNamespace:
    """A cluster of one worker that gives some rows, and then an error."""

    def blocks(**_: object) -> Iterator[pa.Table]:
        yield from (pa.Table.from_pylist([row]) for row in after)
        raise error

    class Data:
        DataContext = SimpleNamespace(get_current=SimpleNamespace)
        ActorPoolStrategy = dict

        @staticmethod
        def from_items(rows: list, **_: object) -> SimpleNamespace:
            return SimpleNamespace(map_batches=lambda worker, **_: SimpleNamespace(iter_batches=blocks))

    errors = pytest.importorskip("ray.exceptions")
    return SimpleNamespace(
        data=Data,
        exceptions=errors,
        put=lambda given: given,
        cluster_resources=lambda: {"CPU": 1.0},
        cloudpickle=cloudpickle,
    )


def test_workers_that_are_lost_are_a_sentence_and_what_is_scored_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("ray.exceptions")
    traceback = "Traceback (most recent call last):\n  File x, line 1\nRuntimeError: no such device"
    items = Items(["a", "b"], pictures=torch.zeros(2, 3, 4, 4))
    batches = [[Job(items.part(row, row + 1), find("loss"), [USUAL], Path(f"{row}"))] for row in range(2)]
    for error, reason in (
        (errors.RayTaskError("run", traceback, RuntimeError(), "ray", 1, "::1"), "RuntimeError: no such device"),
        (errors.OutOfMemoryError("a node was low on memory\nits processes"), "a node was low on memory"),
        (errors.RayActorError(), "The actor experienced an error before finishing this task."),
    ):
        monkeypatch.setitem(sys.modules, "ray", lost(error, [{"number": 1, "scores": [b"x"], "refusal": ""}]))
        found = score_batches(Source("model", "float32", 3, ""), batches, True)
        assert next(found) == [(Path("1"), b"x")]
        with pytest.raises(ValueError, match=re.escape(f"workers of the Ray cluster were lost ({reason}); ")) as caught:
            next(found)
        assert "give fewer --rows" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["training", "captions", "reference"])
def test_workers_have_one_training_set_and_one_reference(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", lost(KeyError(), []))
    own = Items(["a"], pictures=torch.zeros(1, 3, 4, 4), training=torch.zeros(2, 3, 4, 4), captions=["x", "y"])
    other = replace(
        own, **{part: {"training": torch.ones(2, 3, 4, 4), "captions": ["u", "v"], "reference": object()}[part]}
    )
    batches = [[Job(items, find("loss"), [USUAL], Path(f"{row}"))] for row, items in enumerate((own, own, other))]
    source = Source("model", "float32", 3, "")
    with pytest.raises(ValueError, match="one training set and one reference"):
        next(score_batches(source, batches, True))
    with pytest.raises(KeyError):  # of the stand-in, which was asked
        next(score_batches(source, batches[:2], True))


def test_an_audit_leaves_the_gpus_to_the_workers(
    worker: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own model is on the processor, and the scores are those of an audit without a cluster."""
    sys.modules["ray"].init = lambda **_: None
    monkeypatch.setattr(cluster, "_check_machines", lambda paths: None)
    arguments = ["audit", "model", "--images", "pictures", "--detectors", "loss", "--rows", "3", "--show", "2"]
    cli.main([*arguments, "--output", str(tmp_path / "alone")])
    mine = worker()

    def others(source: Source, batches: Sequence[Sequence[Job]], share: bool) -> Iterator[list[Made]]:
        assert source.digest == weights_digest(mine.field)
        for jobs in batches:
            found = asked(mine, jobs)
            assert not found["refusal"]
            yield list(zip([job.path for job in jobs], found["scores"], strict=True))

    monkeypatch.setattr(audit, "score_batches", others)
    monkeypatch.setattr(processes(), "device", torch.device("meta"))
    cli.main([*arguments, "--output", str(tmp_path / "together"), "--ray", "auto"])
    assert processes().device == torch.device("cpu")
    assert "workers of a Ray cluster, and cpu for the evidence" in (tmp_path / "together" / "report.html").read_text()
    alone, together = (pd.read_parquet(tmp_path / name / "scores.parquet") for name in ("alone", "together"))
    pd.testing.assert_frame_equal(alone, together)


def zero(field: object, items: Items) -> Scores:
    return Scores(torch.zeros(len(items.ids)) / 0, 0)


@pytest.mark.parametrize("command", ["score", "audit"])
def test_without_ray_the_extra_is_named(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r'Ray is not installed; install it with: pip install "memlib\[ray\]"'):
        cli.main(
            [
                command,
                "model",
                "--images",
                "pictures",
                "--detectors",
                "loss",
                "--ray",
                "auto",
                "--output",
                f"{tmp_path}/x",
            ]
        )
    assert not (tmp_path / "x").exists()


def test_an_audit_takes_a_device_or_a_cluster() -> None:
    with pytest.raises(SystemExit, match="give --device or --ray"):
        cli.main(["audit", "model", "--images", "pictures", "--ray", "auto", "--device", "cpu"])


def test_an_address_that_nothing_answers_at_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    for address in (nobody, "nowhere"):
        with pytest.raises(SystemExit, match=f"no Ray cluster is reached at {address} .*; start one with `ray start`"):
            score(tmp_path / "x", "--ray", address)
    assert not (tmp_path / "x").exists()


def score(
    output: Path, *more: str, model: str = "model", items: tuple[str, str] = ("--images", "pictures")
) -> dict[str, bytes]:
    """Tables of two detectors with a reference, in small batches."""
    names = {"--images": ("loss", "pia", "calibrated_loss"), "--prompts": ("magnitude",)}[items[0]]
    reference = ["--reference", "reference"] if model == "model" else []
    arguments = [*items, *reference, "--detectors", *names, "--rows", "3", "--batch", "3", "--output", str(output)]
    cli.main(["score", model, *arguments, *more])
    return {path.name: path.read_bytes() for path in sorted(output.glob("*.parquet"))}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes on this machine, each of which lends a single processor."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    where = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(cli.__file__).parent.parent), where])  # of the workers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
        os.environ["PYTHONPATH"] = where


def workers() -> list[psutil.Process]:
    """The processes of this test's cluster that score."""
    return [each for each in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(each.cmdline())]


@pytest.mark.ci
def test_two_nodes_give_the_bytes_of_one_process_though_a_worker_is_killed(address: str, tmp_path: Path) -> None:
    """No row is lost or there twice, whichever worker does what; nothing is left beside the tables."""
    alone, killed = score(tmp_path / "alone"), []

    def kill() -> None:
        folder = tmp_path / "together"
        while not killed:
            there = len(list(folder.glob("*.parts/*.parquet")))
            if there and (found := workers()):
                found[0].kill()
                killed.append(there)
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    together = score(tmp_path / "together", "--ray", address)
    assert killed[0] < 3 * (PICTURES - 1) / 3, "it was killed in the middle of the work"
    assert together == alone
    assert len(alone) == 3
    assert {path.suffix for path in (tmp_path / "together").iterdir()} == {".parquet"}
    prompts = {"model": "text", "items": ("--prompts", "prompts.txt")}
    assert score(tmp_path / "b", "--ray", address, **prompts) == score(tmp_path / "a", **prompts)
