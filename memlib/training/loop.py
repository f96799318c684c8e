"""The training loop of every network of the study, under `python` or `accelerate launch`.

What a step sees depends on the seed and the step alone, so a run that was killed, or one spread over several
processes, trains on the same pictures, noise levels and noise as an unbroken run on one.
"""

import ast
import hashlib
import inspect
import json
import pickle
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memlib.files import atomic_write, write_json, write_table
from memlib.processes import processes
from memlib.progress import progress
from memlib.training.settings import LoopConfig


class Optimised(NamedTuple):
    """What a training leaves beside the weights.

    losses: [steps]. how: device, precision and number of processes. main: whether this process is the one that writes.
    earlier_seconds: what interrupted runs had spent up to the checkpoint that was taken up.
    """

    losses: Tensor
    how: dict[str, Any]
    main: bool
    earlier_seconds: float

    def save(self, pipeline: DiffusionPipeline | ModelMixin, output: str | Path, checkpoint: str | Path) -> None:
        """Write what was trained, `loss.parquet` (step, loss) and `training.json` (how), whole; drop the checkpoint."""
        if self.main:
            with atomic_write(output) as temporary:
                pipeline.save_pretrained(temporary, safe_serialization=True)
                write_table(temporary / "loss.parquet", self.loss_table())
                write_json(temporary / "training.json", self.how)
            Path(checkpoint).unlink(missing_ok=True)
        processes().wait_for_everyone()

    def report(self, folder: str | Path, **numbers: Any) -> None:
        """Write to a folder of tables `loss.parquet` (step, loss) and `model.json`: the steps, how, and numbers by name."""
        if self.main:
            write_table(Path(folder) / "loss.parquet", self.loss_table())
            write_json(Path(folder) / "model.json", self.how | {"steps": len(self.losses)} | numbers)

    def loss_table(self) -> pd.DataFrame:
        """The loss of every step, in columns step and loss."""
        return pd.DataFrame({"step": range(1, len(self.losses) + 1), "loss": self.losses.numpy()})


def parameter_count(network: torch.nn.Module) -> int:
    """Number of weights of a network."""
    return sum(weights.numel() for weights in network.parameters())


def generator_of(*key: int) -> torch.Generator:
    """Generator that depends on all the numbers of the key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def batch_indices(copies: Tensor, step: int, batch: int, seed: int) -> Tensor:
    """Pictures [batch] that a step sees: each epoch is a random order in which every picture occurs `copies` times."""
    pool = torch.arange(len(copies)).repeat_interleave(copies)
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = positions // len(pool)
    orders = {int(e): torch.randperm(len(pool), generator=generator_of(seed, 0, int(e))) for e in epochs.unique()}
    return pool[torch.stack([orders[int(e)][p % len(pool)] for e, p in zip(epochs, positions, strict=True)])]


def optimise(
    network: torch.nn.Module,
    loss_at: Callable[[torch.nn.Module, int, slice, torch.device], Tensor],
    config: LoopConfig,
    checkpoint: str | Path,
    inputs: list[Tensor],
) -> Optimised:
    """Minimise a loss over the network's weights, which become their moving average.

    loss_at(model, step, shard, device) gives the loss of the share `shard` of a step's batch. The file `checkpoint` is
    written every `checkpoint_every` steps; one of the same code, settings, `inputs` and starting weights is taken up again,
    any other is overwritten.
    """
    accelerator = Accelerator(mixed_precision=resolve_precision(config.precision, processes().device))
    if config.batch % accelerator.num_processes:
        raise ValueError(
            f"{config.section}.batch is {config.batch}, which {accelerator.num_processes} processes cannot share evenly"
        )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps)
    ema = EMAModel(network.parameters(), decay=config.ema_decay, foreach=True)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    code = [_syntax(part) for part in (optimise, loss_at, type(network))]
    fingerprint = _fingerprint([*inputs, *network.state_dict().values()], code, config, accelerator.mixed_precision)
    state = _resume(checkpoint, fingerprint, parts)
    first, earlier_seconds, started = state["step"], state["seconds"], time.monotonic()
    losses = torch.zeros(config.steps)
    losses[:first] = state["losses"]
    losses = losses.to(accelerator.device)
    ema.to(accelerator.device)
    model, optimizer = accelerator.prepare(torch.compile(network) if config.compile else network, optimizer)
    model.train()
    shard = slice(accelerator.process_index, None, accelerator.num_processes)
    main = accelerator.is_main_process
    remaining = range(first, config.steps)
    for step in progress(remaining, "training", done=first) if main else remaining:
        with accelerator.autocast(), attention(accelerator):
            loss = loss_at(model, step, shard, accelerator.device)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        losses[step] = loss.detach()
        done = step + 1
        if done % config.checkpoint_every == 0 and done < config.steps:
            mean = _finite(accelerator.reduce(losses[:done], "mean").cpu(), config)
            if main:
                seconds = earlier_seconds + time.monotonic() - started
                reached = {"fingerprint": fingerprint, "step": done, "losses": mean, "seconds": seconds}
                with atomic_write(checkpoint) as temporary:
                    state = {name: part.state_dict() for name, part in parts.items()} | {"reached": reached}
                    torch.save(state, temporary)
    losses = _finite(accelerator.reduce(losses, "mean").cpu(), config)
    ema.copy_to(network.parameters())
    network.cpu()
    how = {
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
    }
    return Optimised(losses, how, main, earlier_seconds)


def attention(accelerator: Accelerator) -> AbstractContextManager:
    """The attention kernels of a training: on processors in bf16 the plain one, whose backward pass is many times as fast."""
    slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` becomes bf16 where the processor or GPU computes in it, else `no`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def _syntax(part: Any) -> str:
    """The syntax tree of the module that a class or function is defined in, which comments and format do not change."""
    return ast.dump(ast.parse(Path(inspect.getfile(part)).read_bytes()))


def _fingerprint(tensors: list[Tensor], code: list[str], config: LoopConfig, precision: str) -> str:
    """Digest of all that decides the result, so that a checkpoint is taken up by the same run only."""
    settings = {key: value for key, value in asdict(config).items() if key != "checkpoint_every"}
    digest = hashlib.sha256(json.dumps([settings, precision, torch.__version__], sort_keys=True).encode())
    for text in code:
        digest.update(text.encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _finite(losses: Tensor, config: LoopConfig) -> Tensor:
    """Return the losses; raise ValueError if one is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise ValueError(
            f"the training loss is not finite from step {int(bad[0]) + 1} on; lower {config.section}.learning_rate"
        )
    return losses


def _resume(path: str | Path, fingerprint: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint of this very run into its parts, if there is one; return how far it had come."""
    if Path(path).exists():
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"the checkpoint {path} cannot be read; remove it to train from the beginning") from error
        if state["reached"]["fingerprint"] == fingerprint:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            return state["reached"]
    return {"step": 0, "losses": torch.zeros(0), "seconds": 0.0}
