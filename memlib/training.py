"""Training of the small image models: `python -m memlib.training DATA OUTPUT`, or the same under `accelerate launch`.

What a step sees depends on the seed and the step alone, so a run that was killed, or one spread over several
processes, trains on the same pictures, noise levels and noise as an unbroken run on one.
"""

import argparse
import hashlib
import json
import os
import pickle
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from memlib import data
from memlib.config import TrainConfig
from memlib.files import whole_file, write_json
from memlib.pipeline import read_parameters, reporting_errors, timed_stage
from memlib.progress import progress


def build_network(channels: int, size: int, config: TrainConfig) -> UNet2DModel:
    """Untrained U-Net for pictures [channels, size, size]; raises ValueError if the size does not halve often enough."""
    levels = len(config.channels)
    if size % 2 ** (levels - 1):
        raise ValueError(
            f"pictures of {size} pixels do not halve {levels - 1} times; change data.size or give train.channels fewer levels"
        )
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=config.layers,
        block_out_channels=tuple(config.channels),
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(config.attention)),
        norm_num_groups=16,
        attention_head_dim=32,
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` becomes bf16 where the processor or GPU computes in it, else `no`."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def batch_indices(copies: Tensor, step: int, batch: int, seed: int) -> Tensor:
    """Pictures [batch] that a step sees: each epoch is a random order in which every picture occurs `copies` times."""
    pool = torch.arange(len(copies)).repeat_interleave(copies)
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = positions // len(pool)
    orders = {int(e): torch.randperm(len(pool), generator=_generator(seed, 0, int(e))) for e in epochs.unique()}
    return pool[torch.stack([orders[int(e)][p % len(pool)] for e, p in zip(epochs, positions, strict=True)])]


def _generator(*key: int) -> torch.Generator:
    """Generator that depends on all the numbers of the key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def training_batch(
    images: Tensor, copies: Tensor, step: int, config: TrainConfig, timesteps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean pictures [batch, C, H, W] in [-1, 1], noise of that shape and timesteps [batch] of one step, over all processes."""
    generator = _generator(config.seed, 1, step)
    clean = data.to_float(images[batch_indices(copies, step, config.batch, config.seed)])
    if config.mirror:
        flip = torch.rand(config.batch, generator=generator) < 0.5
        clean = torch.where(flip[:, None, None, None], clean.flip(-1), clean)
    noise = torch.randn(clean.shape, generator=generator)
    return clean, noise, torch.randint(0, timesteps, (config.batch,), generator=generator)


def _target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network is to predict, by the scheduler's prediction type."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, t)
    return noise if kind == "epsilon" else clean


def train(
    images: Tensor,
    copies: Tensor,
    config: TrainConfig,
    output: str | Path,
    checkpoint: str | Path,
    start: str | Path | None = None,
) -> float:
    """Train on pictures uint8 [N, C, H, W], each repeated `copies` [N] times; write a diffusers pipeline to `output`.

    Training begins with the weights of the pipeline `start`, or else with new ones drawn from the seed. The loss is the
    denoising loss of Ho et al. (arXiv 2006.11239, eq. 14); the weights written are the moving average. Beside them lie
    `loss.parquet` (step, loss) and `training.json` (device, precision, processes). The file `checkpoint` is written every
    `checkpoint_every` steps and removed at the end; one of the same configuration, pictures and start is taken up again,
    any other is overwritten. Returns the seconds that earlier, interrupted runs had spent up to that checkpoint.
    """
    accelerator = Accelerator(mixed_precision=resolve_precision(config.precision, PartialState().device))
    if config.batch % accelerator.num_processes:
        raise ValueError(
            f"train.batch is {config.batch}, which {accelerator.num_processes} processes cannot share evenly"
        )
    set_seed(config.seed)
    network = build_network(images.shape[1], images.shape[-1], config)
    if start is not None:
        network.load_state_dict(_weights(start))
    scheduler = DDPMScheduler(1000, beta_schedule=config.beta_schedule, prediction_type=config.prediction_type)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps)
    ema = EMAModel(network.parameters(), decay=config.ema_decay, foreach=True)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    fingerprint = _fingerprint([images, copies, *network.state_dict().values()], config, accelerator.mixed_precision)
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
        batch = training_batch(images, copies, step, config, scheduler.config.num_train_timesteps)
        clean, noise, t = (part[shard].to(accelerator.device) for part in batch)
        with accelerator.autocast():
            prediction = model(scheduler.add_noise(clean, noise, t), t).sample
        loss = (prediction.float() - _target(scheduler, clean, noise, t)).square().mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        losses[step] = loss.detach()
        done = step + 1
        if done % config.checkpoint_every == 0 and done < config.steps:
            mean = _finite(accelerator.reduce(losses[:done], "mean").cpu())
            if main:
                seconds = earlier_seconds + time.monotonic() - started
                _checkpoint(
                    checkpoint, parts, {"fingerprint": fingerprint, "step": done, "losses": mean, "seconds": seconds}
                )
    losses = _finite(accelerator.reduce(losses, "mean").cpu())
    if main:
        ema.copy_to(network.parameters())
        with whole_file(output) as temporary:
            DDPMPipeline(network.cpu(), scheduler).save_pretrained(temporary, safe_serialization=True)
            table = pd.DataFrame({"step": range(1, config.steps + 1), "loss": losses.numpy()})
            table.to_parquet(temporary / "loss.parquet", index=False)
            run = {"device": accelerator.device.type, "precision": accelerator.mixed_precision}
            write_json(temporary / "training.json", run | {"processes": accelerator.num_processes})
        Path(checkpoint).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return earlier_seconds


def _weights(pipeline: str | Path) -> dict[str, Tensor]:
    """Weights of the network of a diffusers pipeline."""
    unet = UNet2DModel.from_pretrained(Path(pipeline) / "unet", use_safetensors=True, local_files_only=True)
    return unet.state_dict()


def _fingerprint(tensors: list[Tensor], config: TrainConfig, precision: str) -> str:
    """Digest of all that decides the result, this file among it, so that a checkpoint is taken up by the same run only.

    tensors: the pictures, their copies and the weights at the start.
    """
    settings = {key: value for key, value in asdict(config).items() if key != "checkpoint_every"}
    digest = hashlib.sha256(json.dumps([settings, precision, torch.__version__], sort_keys=True).encode())
    digest.update(Path(__file__).read_bytes())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _finite(losses: Tensor) -> Tensor:
    """Return the losses; raise ValueError if one is not finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"the training loss is not finite from step {int(bad[0]) + 1} on; lower train.learning_rate")
    return losses


def _checkpoint(path: str | Path, parts: dict[str, Any], reached: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        torch.save({name: part.state_dict() for name, part in parts.items()} | {"reached": reached}, temporary)


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


def main() -> None:
    """Command line: train on one split of an image set with the section `train` of params.yaml."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", help="folder of an image set")
    parser.add_argument("output", help="folder for the trained pipeline")
    parser.add_argument("--split", default="train", help="split of the image set to train on")
    parser.add_argument("--section", help="section of params.yaml whose settings replace those of `train`")
    parser.add_argument("--start", help="folder of a pipeline to go on from, instead of new weights")
    parser.add_argument("--seed", type=int, help="seed in place of the section's")
    arguments = parser.parse_args()
    stage = os.environ.get("DVC_STAGE", "train")
    with reporting_errors(stage), timed_stage(stage) as timed:
        settings = read_parameters("train") | (read_parameters(arguments.section) if arguments.section else {})
        config = TrainConfig(**settings)
        if arguments.seed is not None:
            config = replace(config, seed=arguments.seed)
        image_set = data.load(arguments.data).split(arguments.split)
        copies = torch.tensor(image_set.items["copies"].clip(lower=1).tolist())
        checkpoint = Path("results/checkpoints") / f"{stage}.pt"
        timed.earlier_seconds = train(image_set.images, copies, config, arguments.output, checkpoint, arguments.start)


if __name__ == "__main__":
    main()
