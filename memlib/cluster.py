"""Scores by the workers of a Ray cluster: all GPUs of a machine, or of several.

A worker is given whole batches of a single process, so that its calls of the network are those of the single process: a kernel
may round by the size of a call, and by the place of an item in it. Items have seeds of their own. So the scores are the same
bytes on machines of one kind. Pictures in files are read by the workers; what they have scored is written by this process.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from memlib.datasets.items import PictureFiles
from memlib.detectors.api import Items
from memlib.fields.digest import weights_digest
from memlib.fields.load import load_field
from memlib.processes import processes
from memlib.score import Job, Made, package_digest, score_jobs

WINDOW = 4096  # batches that are handed out at a time, so that memory does not grow with the items
CONNECT_SECONDS, LOOK_SECONDS = 5, 300
RESTARTS = 5  # of a worker, and of a batch, so that what kills every worker comes to an end
VERSIONS = ("torch", "diffusers", "transformers")  # that decide the last digits of a score
MISSING = 'Ray is not installed; install it with: pip install "memlib[ray]"'
GOES_ON = "what is scored is kept, and the same command goes on from there"
LESS = "give fewer --rows, or a machine with more memory"


def located(name: str) -> str:
    """The whole path of a model's folder, which means the same in a worker; a name of the hub as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


@dataclass(frozen=True)
class Source:
    """What a worker loads: a model, and a reference if there is one, by folder or hub name; digest: of the model's weights."""

    model: str
    dtype: str
    rows: int
    digest: str
    reference: str | None = None


def connect(address: str, needed: Sequence[str | Path] = ()) -> None:
    """Join the cluster at HOST:PORT; with `auto` the one of this machine, which is started if there is none.

    From then on this process computes on the processor: the GPUs are the workers'. needed: files and folders that every machine
    must see (names of the hub are passed over). Raises ValueError where Ray is not installed, no cluster is reached, or a machine
    of it lacks a file or computes by other versions.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(MISSING) from error
    if processes().num_processes > 1:
        raise ValueError("--ray finds its workers by itself; start a single process, without accelerate or torchrun")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to others
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    try:
        if address == "auto":
            ray.init(**quiet)
        else:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError("it must be auto or HOST:PORT")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"no Ray cluster is reached at {address} ({reason}); start one with `ray start`") from error
    _check_machines([str(Path(path).resolve()) for path in needed if Path(path).exists()])
    processes().device = torch.device("cpu")


def _look(paths: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What of some paths is not on this machine, and what decides how it computes."""
    versions = {name: metadata.version(name).partition("+")[0] for name in VERSIONS} | {"memlib": package_digest()}
    return [path for path in paths if not Path(path).exists()], versions


def _check_machines(paths: Sequence[str]) -> None:
    """Raise ValueError where a machine that is to work lacks a path, or computes by other versions than this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kind, count = _processors()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    if not count:
        raise ValueError("the Ray cluster has neither GPUs nor processors that it lends")
    look = ray.remote(num_cpus=0)(_look)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(paths)
        for node in nodes
    ]
    _, own = _look([])
    for node, answer in zip(nodes, asked, strict=True):
        name = f"the machine {node['NodeManagerHostname']} of the Ray cluster"
        try:
            missing, versions = ray.get(answer, timeout=LOOK_SECONDS)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise ValueError(f"{name} does not run memlib ({reason}); install it there, too") from error
        if missing:
            raise ValueError(f"{name} does not see {missing[0]}; put it on storage that all machines share")
        other = next((each for each in own if versions[each] != own[each]), None)
        if other is not None:
            raise ValueError(
                f"{name} has another {other} than this one ({versions[other]}, not {own[other]}); scores would differ in their "
                "last digits, so install the same"
            )


def _processors() -> tuple[str, int]:
    """GPU or CPU, and how many of them the cluster has; processors only where there is no GPU."""
    import ray

    found = ray.cluster_resources()
    kind = "GPU" if found.get("GPU", 0) >= 1 else "CPU"
    return kind, int(found.get(kind, 0))


def _reason(error: Exception) -> str:
    """Why a worker could not go on, and what helps, in a sentence."""
    if isinstance(error, ValueError | OSError):  # sentences of this package, and of files
        return str(error)
    name, said = socket.gethostname(), str(error).strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return f"a worker on the machine {name} ran out of memory; {LESS}; {GOES_ON}"
    return f"a worker on the machine {name} failed ({type(error).__name__}: {said}); {GOES_ON}"


class Worker:
    """Loads the models once, and then scores the batches that it is given."""

    def __init__(self, source: Source, training: Any, captions: Any) -> None:
        """training, captions: references to what Ray keeps (see `memlib.detectors.api.Items`)."""
        import ray

        self.refusal = ""
        try:
            dtype = getattr(torch, source.dtype)
            self.field = load_field(source.model, dtype, source.rows)
            reference = None if source.reference is None else load_field(source.reference, dtype, source.rows)
            self.beside = {"training": ray.get(training), "captions": ray.get(captions), "reference": reference}
            if weights_digest(self.field) != source.digest:
                raise ValueError(f"{source.model} on the machine {socket.gethostname()} is another model than here")
        except Exception as error:
            self.refusal = _reason(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The files of the scores of a batch, or why there are none: columns scores (a list) and refusal."""
        from ray import cloudpickle

        made: list[bytes] = []
        refusal = self.refusal
        if not refusal:
            try:
                jobs, share = cloudpickle.loads(batch["jobs"][0].as_py())
                given = {id(job.items): replace(job.items, **self.beside) for job in jobs}
                found = score_jobs(self.field, [job._replace(items=given[id(job.items)]) for job in jobs], share)
                made = [content for _, content in found]
            except Exception as error:
                refusal = _reason(error)
        scores = pa.array([made], pa.list_(pa.large_binary()))
        return pa.table({"number": batch["number"], "scores": scores, "refusal": pa.array([refusal])})


def score_batches(source: Source, batches: Sequence[Sequence[Job]], share: bool) -> Iterator[list[Made]]:
    """Have the cluster that was connected to do the jobs of batches; give the files of each as they come, in any order.

    A worker that is killed is started again, and its batch done again, some times. Raises ValueError for what a detector refuses,
    for what a worker cannot do, such as for want of memory, where Ray gives workers up, and for batches whose items have not all
    the same training set and reference, of which a worker has one.
    """
    import ray
    from ray import cloudpickle

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, too
    every = [job.items for jobs in batches for job in jobs]
    if len({tuple(map(id, (items.training, items.captions, items.reference))) for items in every}) > 1:
        raise ValueError(
            "workers of a Ray cluster have one training set and one reference; score the items beside others by another call"
        )
    kind, count = _processors()
    for start in range(0, len(batches), WINDOW):
        window = batches[start : start + WINDOW]
        first = window[0][0].items
        try:
            beside = [ray.put(each) for each in (first.training, first.captions)]
            rows = [
                {"number": number, "jobs": cloudpickle.dumps((_sent(jobs), share))}
                for number, jobs in enumerate(window)
            ]
            found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                Worker,
                fn_constructor_args=(source, *beside),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
                max_restarts=RESTARTS,
                max_task_retries=RESTARTS,
                **{f"num_{kind.lower()}s": 1},
            )
            for block in found.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in block.to_pylist():
                    if row["refusal"]:
                        raise ValueError(row["refusal"])
                    paths = [job.path for job in window[row["number"]]]
                    yield list(zip(paths, row["scores"], strict=True))
        except ray.exceptions.RayError as error:
            lines = str(error).strip().split("\n")
            reason = (
                lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
            )  # a traceback ends with it
            raise ValueError(
                f"workers of the Ray cluster were lost ({reason}); if they are killed for want of memory, {LESS}; {GOES_ON}"
            ) from error


def _sent(jobs: Sequence[Job]) -> list[Job]:
    """Jobs as they are sent: pictures in files by their paths, and nothing that a worker has of its own."""
    sent = {key: _bare(items) for key, items in {id(job.items): job.items for job in jobs}.items()}
    return [job._replace(items=sent[id(job.items)]) for job in jobs]


def _bare(items: Items) -> Items:
    parts: dict[str, Any] = {"training": None, "captions": None, "reference": None}
    for name in ("pictures", "samples"):
        value = getattr(items, name)
        if isinstance(value, Tensor):
            parts[name] = value.clone()  # the rows alone, not all that they are a view of
        elif isinstance(value, PictureFiles):
            parts[name] = replace(value, folder=value.folder.resolve())
    return replace(items, **parts)
