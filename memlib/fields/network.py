"""A network of diffusers as a field: what all of them share, however they are called."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from memlib.fields import Conditioning
from memlib.fields.latents import decode, encode
from memlib.fields.parameterisation import expected_data, expected_noise
from memlib.fields.schedules import Schedule, timesteps
from memlib.tensors import in_calls, per_item

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

ROWS = 64  # items in one call of a network


class NetworkField:
    """Noise prediction of a network of diffusers (see `memlib.fields.Field`).

    Noise levels and timesteps stay float32 whatever the network computes in. Nothing is left on the network but that it is in
    evaluation mode. A kind of networks says by `predict` how it is called, by `_encoded` and `unconditional` what it is given of
    prompts, and by `timesteps` where its pipeline goes.

    pipe: the text-to-image pipeline that the network belongs to, for prompts and latents. shape: of an item in the network's
    data space. Raises ValueError, when called, for a noise level outside of the schedule (one on the processor: nothing waits
    for a GPU).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        scheduler: "SchedulerMixin",
        schedule: Schedule,
        pipe: "DiffusionPipeline | None",
        shape: Sequence[int],
        rows: int,
        pad: bool,
    ) -> None:
        self.network, self.scheduler, self.schedule, self.pipe = network.eval(), scheduler, schedule, pipe
        self.rows, self.pad = rows, pad
        self.prediction_type, self.sigmas = schedule.prediction_type, schedule.sigmas
        self.sigma_min, self.sigma_max = float(self.sigmas[0]), float(self.sigmas[-1])
        self.norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
        self.shape = torch.Size(shape)
        self.cond: Conditioning = {}

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """What the network gives for x_t [N, ...] at timesteps [N], in the shape of x_t and all in its own precision."""
        raise NotImplementedError

    def read(self, output: Tensor, shape: Sequence[int]) -> Tensor:
        """What the network predicts, in the shape of x_t [N, *shape], from its output."""
        return output

    def _encoded(self, prompts: list[str]) -> Conditioning:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @property
    def takes_prompts(self) -> bool:
        """Whether there is a text encoder, and so an unconditional prediction beside that of a prompt."""
        return self.pipe is not None

    def with_conditioning(self, cond: Conditioning) -> Self:
        """The same network under a condition."""
        other = copy.copy(self)
        other.cond = cond
        return other

    def with_rows(self, rows: int, pad: bool = False) -> Self:
        """The same network, called with so many items at a time."""
        other = copy.copy(self)
        other.rows, other.pad = rows, pad
        return other

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timestep of each noise level [N], float32."""
        return self.schedule.timestep(sigma)

    def timesteps(self, sampling_steps: int) -> list[float]:
        """The timesteps that sampling in so many steps visits, the noisiest first."""
        return timesteps(self.scheduler, sampling_steps)

    def __call__(self, y: Tensor, sigma: Tensor | float, cond: Conditioning | None = None) -> Tensor:
        """E[n | y, cond] in the shape of y [N, ...]; the condition is that of `with_conditioning` if none is given."""
        levels = sigma if isinstance(sigma, Tensor) else torch.tensor([sigma], dtype=torch.float64)
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        level = per_item(levels, wide)
        signal = self.schedule.signal(level)
        x_t = signal * wide
        output = self.output(x_t, self.timestep(levels.reshape(-1)), cond)
        return expected_noise(self.prediction_type, output, x_t, signal, level * signal).to(y.dtype)

    def data_at(self, x_t: Tensor, t: float, cond: Conditioning | None = None) -> Tensor:
        """E[x0 | x_t, cond] in the network's own coordinates, at a timestep of the schedule; also where it is pure noise."""
        signal, noise = self.schedule.at(torch.tensor(t, dtype=torch.float64))
        output = self.output(x_t, torch.tensor([t], dtype=torch.float32), cond)
        return expected_data(self.prediction_type, output, x_t, float(signal), float(noise))

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        """What the network gives for x_t [N, ...] at timesteps [N or 1], in the precision of x_t."""
        cond = self.cond if cond is None else cond
        n, dtype = len(x_t), self.network.dtype

        def call(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            given = {name: value[rows % len(value)] for name, value in cond.items()}
            cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
            return self.predict(x_t.to(dtype), t, cast).to(x_t.dtype)

        with contiguous_inputs(self.norms):
            rows = torch.arange(n, device=self.device)
            return in_calls(call, self.rows, self.pad, x_t, t.to(self.device).expand(n), rows)

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
