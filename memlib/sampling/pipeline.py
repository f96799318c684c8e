"""A text-to-image pipeline's own sampling loop: what it draws, and what a prompt changes at every step of it.

While a pipeline samples with classifier-free guidance, its network predicts with the prompt and without. A hook reads both,
so the pipeline's own loop, scheduler and guidance are what is measured.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.fields.load import check_single_encoder, check_text, field_of
from memlib.fields.parameterisation import expected_data, expected_noise
from memlib.fields.t5 import T5_LENGTH, t5_length
from memlib.fields.transformer import find as adapter_of
from memlib.fields.transformer import packed, text_limit, unpacked
from memlib.tensors import generators, item_seeds, norm

ROWS = 256  # items in one call of the network


def check_prompts(prompts: Sequence[str], where: str = "the list of prompts") -> None:
    """Raise ValueError for no prompts, or one that is not a text."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{where} must be a list of texts")
    if not prompts:
        raise ValueError(f"{where} is empty; give at least one prompt")


def cut_parts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, str]:
    """The prompts that are longer than the pipeline takes them, each with the part of it that is cut."""
    tokenizer, before, length = text_limit(pipe)
    tokens = {prompt: tokenizer(before + prompt, verbose=False).input_ids for prompt in prompts}
    end = {prompt: int(found[-1] == tokenizer.eos_token_id) for prompt, found in tokens.items()}
    return {
        prompt: tokenizer.decode(found[length - end[prompt] : len(found) - end[prompt]])
        for prompt, found in tokens.items()
        if len(found) > length
    }


def warn_of_cuts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> None:
    """Warn of every prompt that is longer than the pipeline takes them, and say what is cut."""
    _, before, length = text_limit(pipe)
    own = ", the pipeline's own text before it among them," if before else ""
    for prompt, cut in cut_parts(pipe, prompts).items():
        warnings.warn(f"of the prompt {prompt!r} only {length} tokens{own} are used; cut: {cut!r}", stacklevel=3)


def shared_noise(shape: Sequence[int], count: int, seed: int) -> Tensor:
    """Standard normal latents [count, *shape] that every prompt starts from; each depends on its number and the seed alone."""
    if count < 1:
        raise ValueError(f"at least one noise is needed; got {count}")
    seeds = item_seeds(range(count), seed)
    return torch.stack([torch.randn(*shape, generator=item) for item in generators(seeds)])


class Trajectory(NamedTuple):
    """What N prompts, n noises and k steps of sampling give.

    value: |D(x_t, prompt) - D(x_t, empty)| [N, n, k], the distance between the expected clean latents with the prompt and
    without, in their unit; over sigma it is the difference of noise predictions. unconditional: length of the noise prediction
    without the prompt [N, n, k]. sigmas: noise levels [k], the first of a flow infinite. latents: those that were reached
    [N, n, C, H, W].
    """

    value: Tensor
    unconditional: Tensor
    sigmas: Tensor
    latents: Tensor


def trajectory(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    noise: Tensor,
    steps: int | None = None,
    sampling_steps: int = 50,
    guidance: float = 7.5,
    rows: int = ROWS,
) -> Trajectory:
    """What each prompt changes along sampling from n noises [n, C, H, W] (Wen et al., arXiv 2407.21720, eq. 2).

    After the first `steps` (all, if not given) of `sampling_steps` the pipeline is stopped. Every call of the network has
    the same number of rows, at most `rows` where a prompt's noises fit: 2 n steps network evaluations a prompt.

    Raises ValueError for no prompts, a pipeline that is not supported, guidance of 1 or less (there the pipeline makes no
    unconditional prediction), more steps than there are, and fewer of a pipeline that cannot be stopped.
    """
    check_text(pipe)
    check_prompts(prompts)
    if getattr(pipe.scheduler, "order", 1) != 1:
        raise ValueError(
            f"{type(pipe.scheduler).__name__} takes {pipe.scheduler.order} evaluations a step; set one of first order, as DDIM"
        )
    if steps is not None and not 1 <= steps <= sampling_steps:
        raise ValueError(f"the first {steps} of {sampling_steps} steps are asked for")
    if steps not in (None, sampling_steps) and not hasattr(type(pipe), "interrupt"):
        raise ValueError(f"{type(pipe).__name__} cannot be stopped after the first steps; leave their number out")
    if not guidance > 1:
        raise ValueError(
            f"guidance is {guidance}; the magnitude compares with the unconditional prediction, which a pipeline makes "
            "only with a guidance above 1"
        )
    warn_of_cuts(pipe, prompts)
    n, size = len(noise), max(1, rows // (2 * len(noise)))
    field = field_of(pipe)
    field.shape = noise.shape[1:]  # some schedules depend on it
    kind = field.prediction_type
    visited = torch.tensor(field.timesteps(sampling_steps)[:steps], dtype=torch.float64)
    signal, spread = field.schedule.at(visited)
    found = []
    for chunk in chunks(list(prompts), size):
        filled = chunk + chunk[-1:] * (size - len(chunk))
        with outputs(pipe, steps) as calls:
            reached = unpacked(_run(pipe, filled, noise, sampling_steps, guidance, "latent"), field.shape)
        lengths = []
        for (x_t, without, conditional), s, b in zip(calls, signal.tolist(), spread.tolist(), strict=True):
            without, conditional = (field.read(output, field.shape) for output in (without, conditional))
            change = expected_data(kind, conditional - without, torch.zeros_like(without), s, b)
            bare = expected_noise(kind, without, unpacked(x_t, field.shape), s, b)
            lengths.append(torch.stack([norm(change.flatten(1)), norm(bare.flatten(1))]).cpu())
        value, bare = torch.stack(lengths, 2).unflatten(1, (len(filled), n))
        found.append([part[: len(chunk)] for part in (value, bare, reached.float().cpu().unflatten(0, (-1, n)))])
    value, bare, latents = map(torch.cat, zip(*found, strict=True))
    return Trajectory(value, bare, (spread / signal).float(), latents)


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Tensor,
    noise: Tensor,
    sampling_steps: int = 50,
    guidance: float = 7.5,
    rows: int = ROWS,
) -> Tensor:
    """Pictures [N, n, C, H, W] in [-1, 1] of N prompts from n noises [n, C, H, W].

    In place of prompts, embeddings [N, n, L, D] of each prompt and noise can be given (see `memlib.mitigation.prompts`). Raises
    ValueError for no prompts, and for embeddings where a prompt is more than one sequence of them.
    """
    embedded = isinstance(prompts, Tensor)
    if embedded:
        check_single_encoder(pipe)
    else:
        check_prompts(prompts)
        warn_of_cuts(pipe, prompts)
    pictures = []
    for chunk in chunks(prompts, rows // (2 * len(noise))):
        made = _run(pipe, chunk if embedded else list(chunk), noise, sampling_steps, guidance, "pt")
        pictures.append(2 * made.float().cpu().unflatten(0, (len(chunk), len(noise))) - 1)
    return torch.cat(pictures)


def _run(
    pipe: DiffusionPipeline,
    prompts: list[str] | Tensor,
    noise: Tensor,
    sampling_steps: int,
    guidance: float,
    output_type: str,
) -> Tensor:
    latents = noise.repeat(len(prompts), 1, 1, 1).to(pipe.device, _network(pipe).dtype)
    if isinstance(prompts, Tensor):
        given: dict[str, Any] = {"prompt_embeds": prompts.flatten(0, 1), "guidance_scale": guidance}
    elif not hasattr(pipe, "transformer"):
        given = {"prompt": prompts, "num_images_per_prompt": len(noise), "guidance_scale": guidance}
    else:
        adapter = adapter_of(type(pipe.transformer).__name__)
        height, width = (pipe.vae_scale_factor * side for side in noise.shape[2:])
        given = adapter.guided(guidance, len(latents)) | {"height": height, "width": width}
        # each picture has its own prompt: of several pictures of one, Lumina 2 and Sana order masks and prompts differently
        given["prompt"] = [prompt for prompt in prompts for _ in noise]
        latents = latents if adapter.packed == 1 else packed(latents)
        if hasattr(pipe, "tokenizer_3"):
            given[T5_LENGTH] = t5_length(pipe)
    with quiet(pipe):
        return pipe(
            **given,
            latents=latents,
            num_inference_steps=sampling_steps,
            output_type=output_type,
        ).images


def _network(pipe: DiffusionPipeline) -> torch.nn.Module:
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def chunks(items: Any, size: int) -> Iterator[Any]:
    """A sequence or tensor in parts of `size`, at least one item each."""
    size = max(1, size)
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def outputs(pipe: DiffusionPipeline, steps: int | None = None) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """What the network is given and gives in a guided run of a pipeline, in float32: x_t, without the prompt and with it, a step.

    After so many `steps` the pipeline is told to stop.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    first: list[Tensor] = []  # of the two calls of a step
    apart = hasattr(pipe, "transformer") and adapter_of(type(pipe.transformer).__name__).apart

    def read(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        x_t = arguments[0] if arguments else keywords.get("sample", keywords.get("hidden_states"))
        x_t, output = x_t.detach().float(), output[0].detach().float()
        if not apart:
            found.append((x_t.chunk(2)[0], *output.chunk(2)))
        elif first:
            found.append((x_t, output, first.pop()))
        else:
            first.append(output)
        if len(found) == steps:
            pipe._interrupt = True

    handle = _network(pipe).register_forward_hook(read, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar."""
    bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**bar)
