"""What runs in a lane: the command of a stage, in a fork of a server that has imported before what programs import.

Importing takes a program of the study up to eight seconds, a fork of one that has imported takes milliseconds. Modules of the
package are not among what the server imports: a program runs as it is on disk.
"""

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import psutil

IMPORTED = [
    "accelerate",
    "diffusers.models.unets.unet_2d",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "dvc.repo",
    "ipykernel.kernelapp",
    "joblib",
    "papermill",
    "pyarrow.parquet",
    "rich.live",
    "seaborn",
    "sklearn.metrics",
    "sklearn.model_selection",
]
KEPT_MEMORY = {  # glibc keeps what is freed: without page faults a training step takes 7 % less, a forward pass 13 %
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
QUIET = {"TRANSFORMERS_VERBOSITY": "error"}  # it warns of picture processors that nothing here uses
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def prepare(imports: bool) -> None:
    """Set up the server that lanes are forked of, with imports made before or not."""
    os.environ.update(KEPT_MEMORY | QUIET)
    if imports and sys.platform == "linux":
        CONTEXT.set_forkserver_preload(IMPORTED)


def start(stage: str, commands: Sequence[str], log: Path) -> BaseProcess:
    """Start the commands of a stage, one after the other, with their output in a log; they end when this process ends."""
    process = CONTEXT.Process(target=_run_commands, args=(stage, commands, log))
    process.start()
    return process


def _run_commands(stage: str, commands: Sequence[str], log: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["DVC_STAGE"] = stage  # as DVC does
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    for command in commands:
        words = shlex.split(command)
        if words[:2] == ["python", "-m"] and words[2].startswith("memlib."):
            sys.argv = words[2:]
            try:
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            except SystemExit as end:
                if end.code:
                    raise
        else:
            status = subprocess.run(command, shell=True, executable=os.environ.get("SHELL")).returncode
            if status:
                sys.exit(status)


def _end_with_parent() -> NoReturn:
    """Once the process that has started this one is gone, kill what this one has started, and itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)
