"""A diffusers U-Net, with prompts or without, as a field."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memlib.fields import Conditioning
from memlib.fields.latents import decode, encode
from memlib.fields.parameterisation import check_prediction, expected_data, expected_noise
from memlib.tensors import in_calls, per_item

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

ROWS = 64  # items in one call of a network
SCHEDULERS = "those with alphas_cumprod, such as DDPMScheduler, DDIMScheduler, PNDMScheduler and EulerDiscreteScheduler"
ADDED = ("text_embeds", "time_ids")  # conditions that Stable Diffusion XL takes in a dictionary of their own


class UNetField:
    """Noise prediction of a diffusers U-Net trained under a discrete schedule (see `memlib.fields.Field`).

    The schedule's abar_t gives sigma_t = sqrt((1 - abar_t) / abar_t) and x_t = sqrt(abar_t) y; between two timesteps, t is
    interpolated in log sigma. Noise levels and timesteps stay float32 whatever the network computes in. Nothing is left on
    the network but that it is in evaluation mode.

    pipe: the text-to-image pipeline that the network belongs to, for prompts and latents. Raises ValueError for a schedule that
    is not discrete, an unknown prediction type and, when called with a noise level outside of the schedule (one on the processor:
    nothing waits for a GPU).
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        scheduler: "SchedulerMixin",
        pipe: "DiffusionPipeline | None" = None,
        rows: int = ROWS,
        pad: bool = False,
    ) -> None:
        check_scheduler(scheduler)
        self.prediction_type = check_prediction(scheduler.config.get("prediction_type", "epsilon"))
        self.unet, self.scheduler, self.pipe, self.rows, self.pad = unet.eval(), scheduler, pipe, rows, pad
        self.norms = [module for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)]
        levels = schedule_sigmas(scheduler)
        self.sigmas = levels[levels.isfinite()]
        self.sigma_min, self.sigma_max = float(self.sigmas[0]), float(self.sigmas[-1])
        side = unet.config.sample_size
        self.shape = torch.Size([unet.config.in_channels, *((side, side) if isinstance(side, int) else side)])
        self.cond: Conditioning = {}

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.unet.device

    @property
    def takes_prompts(self) -> bool:
        """Whether there is a text encoder, and so an unconditional prediction beside that of a prompt."""
        return self.pipe is not None

    def with_conditioning(self, cond: Conditioning) -> "UNetField":
        """The same network under a condition."""
        other = copy.copy(self)
        other.cond = cond
        return other

    def with_rows(self, rows: int, pad: bool = False) -> "UNetField":
        """The same network, called with so many items at a time."""
        other = copy.copy(self)
        other.rows, other.pad = rows, pad
        return other

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timestep of each noise level [N], float32, interpolated in log sigma."""
        log_sigmas = self.sigmas.log()
        if sigma.device.type != "cpu":
            log_sigmas = log_sigmas.to(sigma.device, torch.float32)
        log_sigma = sigma.to(log_sigmas.dtype).log()
        if sigma.device.type == "cpu":
            tolerance = 1e-4
            if not ((log_sigma >= log_sigmas[0] - tolerance) & (log_sigma <= log_sigmas[-1] + tolerance)).all():
                raise ValueError(
                    f"sigma from {float(sigma.min()):.4g} to {float(sigma.max()):.4g} lies outside of the schedule, "
                    f"which goes from {self.sigma_min:.4g} to {self.sigma_max:.4g}"
                )
        upper = torch.searchsorted(log_sigmas, log_sigma).clamp(1, len(log_sigmas) - 1)
        below, above = log_sigmas[upper - 1], log_sigmas[upper]
        return ((upper - 1) + ((log_sigma - below) / (above - below)).clamp(0, 1)).float()

    def __call__(self, y: Tensor, sigma: Tensor | float, cond: Conditioning | None = None) -> Tensor:
        """E[n | y, cond] in the shape of y [N, ...]; the condition is that of `with_conditioning` if none is given."""
        levels = sigma if isinstance(sigma, Tensor) else torch.tensor([sigma], dtype=torch.float64)
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        level = per_item(levels, wide)
        signal = (1 + level**2).rsqrt()
        x_t = signal * wide
        output = self.output(x_t, self.timestep(levels.reshape(-1)), cond)
        return expected_noise(self.prediction_type, output, x_t, signal, level * signal).to(y.dtype)

    def data_at(self, x_t: Tensor, t: float, cond: Conditioning | None = None) -> Tensor:
        """E[x0 | x_t, cond] in the network's own coordinates, at a timestep of the schedule; also where it is pure noise."""
        abar = abar_at(self.scheduler, torch.tensor(t, dtype=torch.float64))
        output = self.output(x_t, torch.tensor([t], dtype=torch.float32), cond)
        return expected_data(self.prediction_type, output, x_t, float(abar.sqrt()), float((1 - abar).sqrt()))

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        """What the network itself gives for x_t [N, ...] at timesteps [N or 1], in the precision of x_t."""
        cond = self.cond if cond is None else cond
        n, names = len(x_t), list(cond)
        rows = torch.arange(n, device=self.device)
        given = [value[rows % len(value)] for value in cond.values()]

        def call(x_t: Tensor, t: Tensor, *values: Tensor) -> Tensor:
            inputs = {name: value.to(self.unet.dtype) for name, value in zip(names, values, strict=True)}
            added = {name: inputs.pop(name) for name in ADDED if name in inputs}
            if added:
                inputs["added_cond_kwargs"] = added
            return self.unet(x_t.to(self.unet.dtype), t, return_dict=False, **inputs)[0].to(x_t.dtype)

        with contiguous_inputs(self.norms):
            return in_calls(call, self.rows, self.pad, x_t, t.to(self.device).expand(n), *given)

    @property
    def picture_shape(self) -> torch.Size:
        """Channels, height and width of the pictures that the model makes."""
        if getattr(self.pipe, "vae", None) is None:
            return self.shape
        side = (self.pipe.vae_scale_factor * size for size in self.shape[1:])
        return torch.Size([self.pipe.vae.config.in_channels, *side])

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditions [N, ...] of N prompts; longer ones are cut by the tokenizer (see `memlib.sampling.pipeline.cut_parts`)."""
        prompts = list(prompts)
        filled = prompts + [""] * (-len(prompts) % self.rows if self.pad else 0)
        parts = [self._encoded(filled[start : start + self.rows]) for start in range(0, len(filled), self.rows)]
        return {name: torch.cat([part[name] for part in parts])[: len(prompts)] for name in parts[0]}

    def _encoded(self, prompts: list[str]) -> Conditioning:
        found = self.pipe.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        cond = {"encoder_hidden_states": found[0]}
        if getattr(self.pipe, "text_encoder_2", None) is not None:
            side = (self.shape[1] * self.pipe.vae_scale_factor, self.shape[2] * self.pipe.vae_scale_factor)
            width = self.pipe.text_encoder_2.config.projection_dim
            ids = self.pipe._get_add_time_ids(side, (0, 0), side, found[0].dtype, text_encoder_projection_dim=width)
            cond |= {"text_embeds": found[2], "time_ids": ids.to(self.device).repeat(len(prompts), 1)}
        return cond

    def unconditional(self) -> Conditioning:
        """The condition [1, ...] of no prompt: that of the empty one, or zeros where the pipeline takes those."""
        cond = self.with_rows(1).encode_prompts([""])
        if self.pipe.config.get("force_zeros_for_empty_prompt", False):
            cond |= {name: torch.zeros_like(value) for name, value in cond.items() if name != "time_ids"}
        return cond

    def to_latents(self, pictures: Tensor) -> Tensor:
        """Pictures [N, C, H, W] in [-1, 1] in the network's data space: latents where there is an autoencoder."""
        pictures = pictures.to(self.device)
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            return pictures
        return in_calls(lambda part: encode(vae, part), self.rows, self.pad, pictures).to(self.device)

    def to_pictures(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1] of points [N, ...] of the network's data space."""
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            return latents.clamp(-1, 1)
        return in_calls(lambda part: decode(vae, part), self.rows, self.pad, latents.to(self.device))


@contextmanager
def contiguous_inputs(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Give modules contiguous inputs for a while.

    The forward-mode derivative of group normalisation fails on the transposed outputs of diffusers' attention.
    """
    handles = [module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_scheduler(scheduler: "SchedulerMixin") -> "SchedulerMixin":
    """Return a scheduler; raise ValueError unless the network under it was trained at the steps of a discrete schedule."""
    kind = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{kind} has no discrete schedule of noise levels; supported are {SCHEDULERS}")
    if scheduler.config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"the network under this {kind} is told no timestep but a noise level; supported are {SCHEDULERS}"
        )
    return scheduler


def abar_at(scheduler: "SchedulerMixin", t: Tensor) -> Tensor:
    """abar at timesteps, in float64; between two of them, where some samplers go, by interpolation."""
    abar = scheduler.alphas_cumprod.to("cpu", torch.float64)
    low = t.floor().long()
    return torch.lerp(abar[low], abar[(low + 1).clamp_max(len(abar) - 1)], t - low)


def schedule_sigmas(scheduler: "SchedulerMixin") -> Tensor:
    """Noise levels sigma_t [T] of a discrete schedule, in float64, increasing; infinite where nothing of the data is left."""
    abar = scheduler.alphas_cumprod.to("cpu", torch.float64)
    return ((1 - abar) / abar).sqrt()
