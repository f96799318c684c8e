"""Diffusers' text-to-image transformers as fields: a table of how each class of networks is called.

All but PixArt are rectified flows (Liu et al., arXiv 2209.03003; Esser et al., arXiv 2403.03206): x_t = (1 - t) x0 + t n, and the
network gives the velocity v = E[n - x0 | x_t], here with this sign for all of them. So eps = x_t + (1 - t) v, D = x_t - t v,
sigma = t / (1 - t) and y = x_t / (1 - t). What a class takes is read from its own pipeline of diffusers.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from memlib.fields import Conditioning
from memlib.fields.network import ROWS, NetworkField
from memlib.fields.schedules import DiscreteSchedule, FlowSchedule, Schedule, timesteps
from memlib.fields.t5 import T5_LENGTH, t5_length, usual

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin


class TransformerField(NetworkField):
    """Noise prediction of a pipeline's transformer, of a class that is in `ADAPTERS` (see `NetworkField`).

    Of a flow the largest noise level is that of the timestep before the first of sampling (see `FlowSchedule`): at t = 1 there
    is no y, only `data_at`. Raises ValueError for a class that is not known, and a scheduler that does not fit it.
    """

    def __init__(self, pipe: "DiffusionPipeline", rows: int = ROWS, pad: bool = False) -> None:
        self.adapter = find(type(pipe.transformer).__name__)
        config = pipe.transformer.config
        side = config.get("sample_size") or pipe.default_sample_size
        shape = [config.in_channels // self.adapter.packed, side, side]
        schedule = self.adapter.schedule(pipe.scheduler)
        super().__init__(pipe.transformer, pipe.scheduler, schedule, pipe, shape, rows, pad)

    def predict(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Velocity or noise that the network gives for x_t [N, C, H, W] at timesteps [N], in its own precision."""
        return self.read(self.adapter.predict(self, x_t, t, cond), x_t.shape[1:])

    def read(self, output: Tensor, shape: Sequence[int]) -> Tensor:
        """Velocity or noise in the shape of latents [N, *shape] from the network's output: unpacked, without a variance."""
        return self.adapter.sign * unpacked(output, shape)[:, : shape[0]]

    def _encoded(self, prompts: list[str]) -> Conditioning:
        return self.adapter.encode(self, prompts, False)

    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """The condition [1, ...] of the empty prompt, as the pipeline has it in guidance.

        Flux-dev has learnt guidance as an input and may never have seen the empty prompt.
        """
        return self.adapter.encode(self, [""], True)

    def timesteps(self, sampling_steps: int) -> list[float]:
        """The timesteps that the pipeline's own loop visits in so many steps, the noisiest first."""
        return timesteps(self.scheduler, sampling_steps, **self.adapter.grid(self, sampling_steps))


def text_limit(pipe: "DiffusionPipeline") -> tuple[Any, str, int]:
    """The tokenizer that cuts a long prompt, the text that the pipeline puts before it, and how many tokens both may have.

    Of a pipeline with a U-Net, too. Where several encoders read the prompt, that of the most tokens.
    """
    kind = type(getattr(pipe, "transformer", None)).__name__
    if kind not in ADAPTERS or (kind == "SD3Transformer2DModel" and pipe.text_encoder_3 is None):
        return pipe.tokenizer, "", pipe.tokenizer.model_max_length
    longest = usual(pipe, "max_sequence_length")
    match kind:
        case "SD3Transformer2DModel":
            return pipe.tokenizer_3, "", longest
        case "FluxTransformer2DModel":
            return pipe.tokenizer_2, "", longest
        case "SanaTransformer2DModel":
            instruction = "\n".join(usual(pipe, "complex_human_instruction"))
            return pipe.tokenizer, instruction, len(pipe.tokenizer.encode(instruction)) + longest - 2
        case "Lumina2Transformer2DModel":
            return pipe.tokenizer, f"{pipe.system_prompt} <Prompt Start> ", longest
        case _:
            return pipe.tokenizer, "", longest


def packed(x: Tensor) -> Tensor:
    """Latents [N, C, H, W] as Flux takes them: tokens [N, H W / 4, 4 C], two by two of them each."""
    return functional.pixel_unshuffle(x, 2).flatten(2).mT


def unpacked(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Latents [N, *shape] of `packed` ones; those that are not packed stay as they are."""
    if tokens.ndim == 4:
        return tokens
    return functional.pixel_shuffle(tokens.mT.unflatten(2, (shape[1] // 2, shape[2] // 2)), 2)


def _masked(embeddings: Tensor, mask: Tensor) -> Conditioning:
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


def _encode_sd3(field: TransformerField, prompts: list[str], without: bool) -> Conditioning:
    how = {"do_classifier_free_guidance": False, T5_LENGTH: t5_length(field.pipe)}
    embeddings, _, pooled, _ = field.pipe.encode_prompt(prompts, None, None, device=field.device, **how)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


def _predict_sd3(field: TransformerField, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    return field.network(x_t, timestep=t, return_dict=False, **cond)[0]


def _encode_flux(field: TransformerField, prompts: list[str], without: bool) -> Conditioning:
    """With the pipeline's usual scale where guidance is an input of the network, as in Flux-dev."""
    embeddings, pooled, _ = field.pipe.encode_prompt(prompts, device=field.device)
    cond = {"encoder_hidden_states": embeddings, "pooled_projections": pooled}
    if field.network.config.guidance_embeds:
        scale = usual(field.pipe, "guidance_scale")
        cond["guidance"] = torch.full([len(prompts)], scale, dtype=torch.float32, device=field.device)
    return cond


def _predict_flux(field: TransformerField, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """The network itself rounds t to its precision."""
    height, width = x_t.shape[2] // 2, x_t.shape[3] // 2
    places = torch.cartesian_prod(*(torch.arange(side, device=x_t.device) for side in (height, width)))
    return field.network(
        packed(x_t),
        timestep=t / field.schedule.steps,
        txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3, device=x_t.device),
        img_ids=functional.pad(places, (1, 0)).float(),
        return_dict=False,
        **cond,
    )[0]


def _encode_pixart(field: TransformerField, prompts: list[str], without: bool) -> Conditioning:
    clean = usual(field.pipe, "clean_caption")
    found = field.pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, device=field.device, clean_caption=clean
    )
    cond = _masked(*found[:2])
    if field.network.use_additional_conditions:
        sides = torch.tensor(field.picture_shape[1:], dtype=torch.float32, device=field.device)
        cond["resolution"] = sides.repeat(len(prompts), 1)
        cond["aspect_ratio"] = (sides[:1] / sides[1:]).repeat(len(prompts), 1)
    return cond


def _predict_pixart(field: TransformerField, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    added = {name: cond.get(name) for name in ("resolution", "aspect_ratio")}
    texts = _masked(cond["encoder_hidden_states"], cond["encoder_attention_mask"])
    return field.network(x_t, timestep=t, added_cond_kwargs=added, return_dict=False, **texts)[0]


def _encode_sana(field: TransformerField, prompts: list[str], without: bool) -> Conditioning:
    """Behind the instruction of the pipeline; the empty prompt of guidance has none."""
    instruction = None if without else usual(field.pipe, "complex_human_instruction")
    found = field.pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, device=field.device, complex_human_instruction=instruction
    )
    return _masked(*found[:2])


def _predict_sana(field: TransformerField, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    scale = field.network.config.timestep_scale
    return field.network(x_t, timestep=t * scale, return_dict=False, **cond)[0]


def _encode_lumina(field: TransformerField, prompts: list[str], without: bool) -> Conditioning:
    """Behind the pipeline's system prompt; the empty prompt of guidance has none."""
    found = field.pipe.encode_prompt(
        prompts, do_classifier_free_guidance=without, negative_prompt=prompts, device=field.device
    )
    return _masked(*(found[2:] if without else found[:2]))


def _predict_lumina(field: TransformerField, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Its time is 1 for the data, and its velocity leads there.

    It makes all rows of a call as long as the longest prompt, so an item's last digits may depend on its neighbours.
    """
    return field.network(x_t.contiguous(), timestep=1 - t / field.schedule.steps, return_dict=False, **cond)[0]


def _plain_grid(field: TransformerField, sampling_steps: int) -> dict[str, Any]:
    return {}


def _sd3_grid(field: TransformerField, sampling_steps: int) -> dict[str, Any]:
    if not field.scheduler.config.get("use_dynamic_shifting"):
        return {}
    patch = field.network.config.patch_size
    return {"mu": shift(field.scheduler, (field.shape[1] // patch) * (field.shape[2] // patch))}


def _flux_grid(field: TransformerField, sampling_steps: int) -> dict[str, Any]:
    tokens = (field.shape[1] // 2) * (field.shape[2] // 2)
    return {"sigmas": _even(field, sampling_steps), "mu": shift(field.scheduler, tokens)}


def _lumina_grid(field: TransformerField, sampling_steps: int) -> dict[str, Any]:
    """Its pipeline takes the number of channels for that of tokens."""
    return {"sigmas": _even(field, sampling_steps), "mu": shift(field.scheduler, field.shape[0])}


def _even(field: TransformerField, sampling_steps: int) -> np.ndarray | None:
    if field.scheduler.config.get("use_flow_sigmas"):
        return None
    return np.linspace(1.0, 1 / sampling_steps, sampling_steps)


def shift(scheduler: "SchedulerMixin", tokens: int) -> float:
    """The mu of a schedule that is shifted by the number of tokens (Esser et al., section 5.3.2), linear in it."""
    few, many = scheduler.config.get("base_image_seq_len", 256), scheduler.config.get("max_image_seq_len", 4096)
    low, high = scheduler.config.get("base_shift", 0.5), scheduler.config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - few) / (many - few)


class Adapter(NamedTuple):
    """How a class of transformers is called.

    schedule: of a flow, or of a variance-preserving diffusion. encoders: text encoders that the pipeline cannot do without.
    encode: conditions [N, ...] of N prompts, by the names of the network's arguments; or that of the empty one in guidance.
    predict: what the network gives for x_t at timesteps. grid: what the pipeline gives `set_timesteps` beside their number.
    guided: what the pipeline is told to guide so many rows by so much, away from the empty prompt. packed: channels of a token
    for each of the latents. sign: of the velocity that the network gives. apart: whether a guided step is two calls of the
    network, with the prompt and then without, and not one of the two halves without and with it.
    """

    schedule: Callable[["SchedulerMixin"], Schedule]
    encoders: Sequence[str]
    encode: Callable[[TransformerField, list[str], bool], Conditioning]
    predict: Callable[[TransformerField, Tensor, Tensor, Conditioning], Tensor]
    grid: Callable[[TransformerField, int], dict[str, Any]]
    guided: Callable[[float, int], dict[str, Any]]
    packed: int = 1
    sign: int = 1
    apart: bool = False


def _guided(guidance: float, rows: int) -> dict[str, Any]:
    return {"guidance_scale": guidance}


def _guided_flux(guidance: float, rows: int) -> dict[str, Any]:
    """Its `guidance_scale` is an input of the network."""
    return {"true_cfg_scale": guidance, "negative_prompt": [""] * rows}


def _guided_unbinned(guidance: float, rows: int) -> dict[str, Any]:
    """Without a choice among sizes of its own."""
    return {"guidance_scale": guidance, "use_resolution_binning": False}


ONE, TWO = ("text_encoder",), ("text_encoder", "text_encoder_2")
ADAPTERS = {
    "SD3Transformer2DModel": Adapter(FlowSchedule, TWO, _encode_sd3, _predict_sd3, _sd3_grid, _guided),
    "FluxTransformer2DModel": Adapter(
        FlowSchedule, TWO, _encode_flux, _predict_flux, _flux_grid, _guided_flux, packed=4, apart=True
    ),
    "PixArtTransformer2DModel": Adapter(
        DiscreteSchedule, ONE, _encode_pixart, _predict_pixart, _plain_grid, _guided_unbinned
    ),
    "SanaTransformer2DModel": Adapter(FlowSchedule, ONE, _encode_sana, _predict_sana, _plain_grid, _guided_unbinned),
    "Lumina2Transformer2DModel": Adapter(
        FlowSchedule, ONE, _encode_lumina, _predict_lumina, _lumina_grid, _guided, sign=-1, apart=True
    ),
}
FORMER = {"Transformer2DModel": "PixArtTransformer2DModel"}  # the name in older folders


def find(kind: str) -> Adapter:
    """How a class of transformers is called; raises ValueError, with those that are known, for another."""
    kind = FORMER.get(kind, kind)
    if kind not in ADAPTERS:
        raise ValueError(f"the transformer {kind} is not known; known are {', '.join(ADAPTERS)}")
    return ADAPTERS[kind]
