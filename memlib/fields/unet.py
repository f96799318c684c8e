"""The one abstraction of the study: noise prediction eps(x, sigma) in variance-exploding coordinates.

A *noise predictor* is any callable that takes noisy data `x` [N, ...] = x0 + sigma * n and the noise level `sigma`
(a number, or a tensor [N]) and returns E[n | x] in the shape of `x`. Score, probability-flow ODE and every detector
follow from it. Networks, Gaussian mixtures and training sets (`memlib.mixtures`) all come in this form.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from memlib.config import PREDICTION_TYPES

MAX_BATCH = 256  # items in one call of a network; more are taken in turn (on processors larger calls are slower)
NoisePredictor = Callable[[Tensor, Tensor | float], Tensor]


def per_item(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Noise level as a tensor that broadcasts against `x` [N, ...]: one value, or one an item."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


class NetworkNoise:
    """Noise prediction of a diffusers U-Net trained under a discrete schedule.

    The schedule's abar_t gives sigma_t = sqrt((1 - abar_t) / abar_t) and x_t = sqrt(abar_t) x_sigma; between two
    timesteps, t is interpolated in log sigma. The three prediction types are converted as in Salimans & Ho
    (arXiv 2202.00512, appendix D). Raises ValueError for another prediction type and, when called, for a noise level
    outside of the schedule. The network is taken over: its parameters are frozen and its normalisations get a hook.

    given: further inputs of the network by name, [1, ...], the same for all items, such as the embedding of a prompt.
    """

    def __init__(self, unet: torch.nn.Module, scheduler: DDPMScheduler, **given: Tensor) -> None:
        self.prediction_type = scheduler.config.prediction_type
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction type {self.prediction_type!r} is not supported; known: {', '.join(PREDICTION_TYPES)}"
            )
        self.unet = unet.eval().requires_grad_(False)
        # The forward-mode derivative of group normalisation fails on the transposed outputs of diffusers' attention.
        for module in self.unet.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self.log_sigmas = schedule_sigmas(scheduler).log().to(unet.device)
        self.device = unet.device
        self.sigma_min, self.sigma_max = (float(self.log_sigmas[i].exp()) for i in (0, -1))
        self.given = given

    def under(self, **given: Tensor) -> "NetworkNoise":
        """The same network with other further inputs."""
        other = copy.copy(self)
        other.given = given
        return other

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timestep of each noise level [N], interpolated in log sigma."""
        log_sigma = sigma.to(self.log_sigmas.dtype).log()
        tolerance = 1e-4
        if not ((log_sigma >= self.log_sigmas[0] - tolerance) & (log_sigma <= self.log_sigmas[-1] + tolerance)).all():
            raise ValueError(
                f"sigma from {float(sigma.min()):.4g} to {float(sigma.max()):.4g} lies outside of the schedule, "
                f"which goes from {self.sigma_min:.4g} to {self.sigma_max:.4g}"
            )
        upper = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, len(self.log_sigmas) - 1)
        below, above = self.log_sigmas[upper - 1], self.log_sigmas[upper]
        return (upper - 1) + ((log_sigma - below) / (above - below)).clamp(0, 1)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        level = per_item(sigma, x)
        if len(x) > MAX_BATCH:
            levels = level.expand(len(x), *level.shape[1:]).split(MAX_BATCH)
            return torch.cat([self(*part) for part in zip(x.split(MAX_BATCH), levels, strict=True)])
        t = self.timestep(level.flatten()).to(x.dtype).expand(len(x))
        signal = (1 + level**2).rsqrt()  # sqrt(abar)
        noise = level * signal  # sqrt(1 - abar)
        x_t = signal * x
        given = {name: value.expand(len(x), *value.shape[1:]) for name, value in self.given.items()}
        output = self.unet(x_t, t, **given).sample
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return signal * output + noise * x_t
        return (x - output) / level


def schedule_sigmas(scheduler: DDPMScheduler) -> Tensor:
    """Noise levels sigma_t [T] of a discrete schedule, in float64, increasing."""
    abar = scheduler.alphas_cumprod.double()
    return ((1 - abar) / abar).sqrt()


def load_network(directory: str | Path, channels: int | None = None) -> NetworkNoise:
    """Noise prediction of a model saved as a diffusers pipeline (folders `unet` and `scheduler`, safetensors weights).

    The network lies on the device that accelerate finds, a GPU if there is one; pictures are to be brought to its `device`.

    Raises ValueError, before anything is loaded, when the folder is not such a model, when its weights are pickled, or
    when its network does not take pictures with `channels` channels.
    """
    directory = Path(directory)
    unet_dir = directory / "unet"
    if not (unet_dir / "config.json").exists() or not (directory / "scheduler" / "scheduler_config.json").exists():
        raise ValueError(
            f"{directory} is not a diffusers model; it must hold unet/config.json and scheduler/scheduler_config.json"
        )
    if not list(unet_dir.glob("*.safetensors")):
        pickled = sorted(
            path.name for path in unet_dir.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        )
        found = f", only {pickled[0]}, which is pickled and is not opened" if pickled else ""
        raise ValueError(f"{unet_dir} has no safetensors weights{found}; save the model with safe_serialization=True")
    settings = UNet2DModel.load_config(unet_dir)
    if channels is not None and channels != settings["in_channels"]:
        raise ValueError(
            f"the network in {directory} takes {settings['in_channels']} channels but the pictures have {channels}"
        )
    if settings["out_channels"] != settings["in_channels"]:
        raise ValueError(
            f"the network in {directory} also predicts a variance; only networks that predict the mean are supported"
        )
    if settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise ValueError(
            f"the network in {directory} is conditioned on classes; only unconditional networks are supported"
        )
    unet = UNet2DModel.from_pretrained(unet_dir, use_safetensors=True, local_files_only=True)
    scheduler = DDPMScheduler.from_pretrained(directory / "scheduler", local_files_only=True)
    return NetworkNoise(unet.to(PartialState().device), scheduler)
