"""Training of the small image models."""

from pathlib import Path

import torch
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from memlib.tensors import to_float
from memlib.training.loop import Optimised, batch_indices, generator_of, optimise
from memlib.training.settings import TrainConfig


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


def build_scheduler(config: TrainConfig) -> DDPMScheduler:
    """The noise schedule of Ho et al. (arXiv 2006.11239), 1,000 steps."""
    return DDPMScheduler(1000, beta_schedule=config.beta_schedule, prediction_type=config.prediction_type)


def training_batch(
    images: Tensor, copies: Tensor, step: int, config: TrainConfig, timesteps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean pictures [batch, C, H, W] in [-1, 1], noise of that shape and timesteps [batch] of one step, over all processes."""
    generator = generator_of(config.seed, 1, step)
    clean = to_float(images[batch_indices(copies, step, config.batch, config.seed)])
    if config.mirror:
        flip = torch.rand(config.batch, generator=generator) < 0.5
        clean = torch.where(flip[:, None, None, None], clean.flip(-1), clean)
    noise = torch.randn(clean.shape, generator=generator)
    return clean, noise, torch.randint(0, timesteps, (config.batch,), generator=generator)


def training_target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
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
) -> Optimised:
    """Train on pictures uint8 [N, C, H, W], each repeated `copies` [N] times; write a diffusers pipeline to `output`.

    Training begins with the weights of the pipeline `start`, or else with new ones drawn from the seed. The loss is the
    denoising loss of Ho et al. (arXiv 2006.11239, eq. 14); the weights written are the moving average. Beside them lie
    `loss.parquet` (step, loss) and `training.json` (device, precision, processes). The file `checkpoint` is written every
    `checkpoint_every` steps and removed at the end; one of the same configuration, pictures and start is taken up again,
    any other is overwritten.
    """
    scheduler = build_scheduler(config)
    set_seed(config.seed)
    network = build_network(images.shape[1], images.shape[-1], config)
    if start is not None:
        network.load_state_dict(_weights(start))

    def loss_at(model: torch.nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        batch = training_batch(images, copies, step, config, scheduler.config.num_train_timesteps)
        clean, noise, t = (part[shard].to(device) for part in batch)
        prediction = model(scheduler.add_noise(clean, noise, t), t).sample
        return (prediction.float() - training_target(scheduler, clean, noise, t)).square().mean()

    run = optimise(network, loss_at, config, checkpoint, [images, copies])
    run.save(DDPMPipeline(network, scheduler), output, checkpoint)
    return run


def _weights(pipeline: str | Path) -> dict[str, Tensor]:
    """Weights of the network of a diffusers pipeline."""
    unet = UNet2DModel.from_pretrained(Path(pipeline) / "unet", use_safetensors=True, local_files_only=True)
    return unet.state_dict()
