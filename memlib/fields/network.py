"""A network of diffusers as a field: what all of them share, however they are called."""

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from memlib.fields import Conditioning
from memlib.fields.latents import decode, encode
from memlib.fields.memory import Memory, count_rows, counted_call, row_digests, way_of_computing
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
        self.memory: Memory | None = None

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

    def remembering(self) -> Self:
        """The same network, which computes nothing equal a second time; what it gives is the same to the last bit."""
        other = copy.copy(self)
        other.memory = Memory(self.network)
        return other

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timestep of each noise level [N], float32."""
        return self.schedule.timestep(sigma)

    def timesteps(self, sampling_steps: int) -> list[float]:
        """The timesteps that sampling in so many steps visits, the noisiest first."""
        return timesteps(self.scheduler, sampling_steps)

    def __call__(self, y: Tensor, sigma: Tensor | float, cond: Conditioning | None = None) -> Tensor:
        """E[n | y, cond] in the shape of y [N, ...]; the condition is that of `with_conditioning` if none is given."""
        return self._answer(self._noise_at, y, as_levels(sigma), cond)

    def data_at(self, x_t: Tensor, t: float, cond: Conditioning | None = None) -> Tensor:
        """E[x0 | x_t, cond] in the network's own coordinates, at a timestep of the schedule; also where it is pure noise."""
        return self._answer(self._data_at, x_t, as_levels(t), cond)

    def _noise_at(self, y: Tensor, levels: Tensor, cond: Conditioning) -> Tensor:
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        level = per_item(levels, wide)
        signal = self.schedule.signal(level)
        x_t = signal * wide
        output = self.output(x_t, self.timestep(levels), cond)
        return expected_noise(self.prediction_type, output, x_t, signal, level * signal).to(y.dtype)

    def _data_at(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        signal, noise = self.schedule.at(t[0].double())
        output = self.output(x_t, t.float(), cond)
        return expected_data(self.prediction_type, output, x_t, float(signal), float(noise))

    def _answer(
        self,
        function: Callable[[Tensor, Tensor, Conditioning], Tensor],
        x: Tensor,
        levels: Tensor,
        cond: Conditioning | None,
    ) -> Tensor:
        """function(x [N, ...], levels [N or 1], cond), or what is remembered of it."""
        cond = self.cond if cond is None else cond
        if self.memory is None or not len(x) or not self.memory.serves(x, *cond.values()):
            return function(x, levels, cond)
        keys = self.keys(function.__name__, x, levels, cond)
        if not self.pad:  # rows of calls of any size can depend on one another
            return self.memory.recall([tuple(keys)], lambda _: function(x, levels, cond)[None])[0]

        def rows(numbers: list[int]) -> Tensor:
            chosen = torch.tensor(numbers)
            at = levels if len(levels) == 1 else levels[chosen.to(levels.device)]
            own = {name: value[(chosen % len(value)).to(value.device)] for name, value in cond.items()}
            return function(x[chosen.to(x.device)], at, own)

        return self.memory.recall(keys, rows)

    def keys(self, what: str, x: Tensor, levels: Tensor, cond: Conditioning) -> list[tuple[Hashable, ...]]:
        """What each row of a question is remembered by: all that decides its answer."""
        way = what, self.rows if self.pad else 0, *cond, *way_of_computing(x)
        parts = [row_digests(part) for part in (x, levels, *cond.values())]
        return [(*way, *(part[row % len(part)] for part in parts)) for row in range(len(x))]

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning | None = None) -> Tensor:
        """What the network gives for x_t [N, ...] at timesteps [N or 1], in the precision of x_t."""
        cond = self.cond if cond is None else cond
        n, dtype = len(x_t), self.network.dtype

        def call(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            given = {name: value[rows % len(value)] for name, value in cond.items()}
            cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
            return self.predict(x_t.to(dtype), t, cast).to(x_t.dtype)

        with contiguous_inputs(self.norms), counted_call(n):
            rows = torch.arange(n, device=self.device)
            found = in_calls(call, self.rows, self.pad, x_t, t.to(self.device).expand(n), rows)
        if found.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(found):
            found.register_hook(lambda _: count_rows(n))
        return found

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

        def encoded(numbers: list[int] | slice) -> Tensor:
            return in_calls(lambda part: encode(vae, part), self.rows, self.pad, pictures[numbers]).to(self.device)

        with torch.no_grad():
            if self.memory is None or not self.pad or not self.memory.serves(pictures):
                return encoded(slice(None))
        return self.memory.recall([("latents", digest) for digest in row_digests(pictures)], encoded)

    def to_pictures(self, latents: Tensor) -> Tensor:
        """Pictures in [-1, 1] of points [N, ...] of the network's data space."""
        vae = getattr(self.pipe, "vae", None)
        if vae is None:
            return latents.clamp(-1, 1)
        return in_calls(lambda part: decode(vae, part), self.rows, self.pad, latents.to(self.device))


def as_levels(level: Tensor | float) -> Tensor:
    """Noise levels or timesteps [N or 1]."""
    return level.reshape(-1) if isinstance(level, Tensor) else torch.tensor([level], dtype=torch.float64)


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
