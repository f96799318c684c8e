"""Magnitude of the text-conditional noise prediction (Wen et al., arXiv 2407.21720), on diffusers' own pipelines.

While a pipeline samples with classifier-free guidance, its U-Net predicts the noise with the prompt and without. The
length of the difference is large for a prompt whose picture has been memorised. A hook on the U-Net reads both, so the
pipeline's own loop, scheduler and guidance are what is measured.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from torch import Tensor

from memlib.models import MAX_BATCH

SUPPORTED = "text-to-image pipelines with a U-Net, such as Stable Diffusion 1.x, 2.x and XL"


def load_pipeline(name: str | Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """A text-to-image pipeline from a folder, or by its name from the hub; safetensors weights only, no remote code.

    It lies on the device that accelerate finds, a GPU if there is one, and has no safety checker, which would blacken
    pictures that are to be measured and looked at.

    Raises ValueError for a folder that is not a diffusers pipeline, for a name that is not found, and for a pipeline that
    is not supported.
    """
    folder = Path(name)
    if folder.exists() and not (folder / "model_index.json").exists():
        raise ValueError(f"{name} is not a diffusers pipeline; it must hold model_index.json")
    try:
        pipe = DiffusionPipeline.from_pretrained(name, dtype=dtype, use_safetensors=True)
    except OSError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{name} is no folder of a pipeline with safetensors weights, and the hub gives none of that name: {reason}"
        ) from error
    check_pipeline(pipe)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
        pipe.register_to_config(requires_safety_checker=False)
    return pipe.to(PartialState().device)


def check_pipeline(pipe: DiffusionPipeline) -> None:
    """Raise ValueError unless the pipeline makes pictures from text by a U-Net."""
    if getattr(pipe, "transformer", None) is not None:
        raise ValueError(f"{type(pipe).__name__} has a transformer instead of a U-Net; supported are {SUPPORTED}")
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipe, part, None) is None:
            raise ValueError(f"{type(pipe).__name__} has no {part}; supported are {SUPPORTED}")
    if getattr(pipe.unet.config, "time_cond_proj_dim", None):
        raise ValueError("the U-Net is told the guidance scale, so the pipeline makes no unconditional prediction")
    if getattr(pipe.scheduler, "order", 1) != 1:
        raise ValueError(
            f"{type(pipe.scheduler).__name__} takes {pipe.scheduler.order} evaluations a step; set one of first order, as DDIM"
        )


def check_single_encoder(pipe: DiffusionPipeline) -> None:
    """Raise ValueError for a pipeline whose prompts are more than one sequence of embeddings, such as Stable Diffusion XL."""
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError(
            f"{type(pipe).__name__} has two text encoders; embeddings of prompts are moved where there is one, as in "
            "Stable Diffusion 1.x and 2.x"
        )


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a file: one a line, or the values of `caption` of a .jsonl file; empty lines are passed over.

    Raises ValueError for a file that is missing, holds no prompt, or has a line that is not an object with a `caption`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no prompt file {path}")
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                line = json.loads(line)["caption"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{path} line {number} is not an object with a caption") from error
            if not isinstance(line, str):
                raise ValueError(f"{path} line {number}: the caption is not a text")
        prompts.append(line.strip())
    check_prompts(prompts, str(path))
    return prompts


def check_prompts(prompts: Sequence[str], where: str = "the list of prompts") -> None:
    """Raise ValueError for no prompts, or one that is not a text."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{where} must be a list of texts")
    if not prompts:
        raise ValueError(f"{where} is empty; give at least one prompt")


def cut_parts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, str]:
    """The prompts that are longer than the tokenizer's length, each with the part of it that is cut."""
    length = pipe.tokenizer.model_max_length
    tokens = {prompt: pipe.tokenizer(prompt, verbose=False).input_ids for prompt in prompts}
    return {
        prompt: pipe.tokenizer.decode(found[length - 1 : -1]) for prompt, found in tokens.items() if len(found) > length
    }


def warn_of_cuts(pipe: DiffusionPipeline, prompts: Sequence[str]) -> None:
    """Warn of every prompt that is longer than the tokenizer's length, and say what is cut."""
    length = pipe.tokenizer.model_max_length
    for prompt, cut in cut_parts(pipe, prompts).items():
        warnings.warn(f"of the prompt {prompt!r} only {length} tokens are used; cut: {cut!r}", stacklevel=3)


def shared_noise(pipe: DiffusionPipeline, generations: int, generator: torch.Generator) -> Tensor:
    """Standard normal latents [n, C, H, W] that every prompt starts from."""
    if generations < 1:
        raise ValueError(f"at least one generation is needed; got {generations}")
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(generations, pipe.unet.config.in_channels, height, width, generator=generator)


class Magnitudes(NamedTuple):
    """What N prompts, n noises and k steps of sampling give.

    value: |eps(x_t, prompt) - eps(x_t, empty)| [N, n, k]. unconditional: |eps(x_t, empty)| [N, n, k]. latents: those that
    were reached [N, n, C, H, W], the samples' own after all steps.
    """

    value: Tensor
    unconditional: Tensor
    latents: Tensor


def magnitudes(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    noise: Tensor,
    steps: int | None = None,
    sampling_steps: int = 50,
    guidance: float = 7.5,
    max_batch: int = MAX_BATCH,
) -> Magnitudes:
    """Magnitudes along sampling of N prompts, each from n noises [n, C, H, W] (eq. 2).

    The paper's metric is the mean over generations and steps. After the first `steps` (all, if not given) of
    `sampling_steps` the pipeline is stopped. Conditional and unconditional predictions come from one batch of the
    pipeline's, of at most `max_batch` items (at least one prompt): 2 n steps network evaluations a prompt.

    Raises ValueError for no prompts, a pipeline that is not supported, guidance of 1 or less (there the pipeline makes no
    unconditional prediction) and more steps than there are.
    """
    _check(pipe, prompts, steps, sampling_steps)
    if not guidance > 1:
        raise ValueError(
            f"guidance is {guidance}; the magnitude compares with the unconditional prediction, which a pipeline makes "
            "only with a guidance above 1"
        )
    found = []
    for chunk in chunks(prompts, max_batch // (2 * len(noise))):
        calls, latents = _sample(pipe, chunk, noise, guidance, sampling_steps, steps)
        without, conditional = torch.stack(calls).flatten(2).chunk(2, 1)  # [k, N n, ...]
        lengths = (conditional - without).norm(dim=2).T.cpu(), without.norm(dim=2).T.cpu()
        found.append([part.unflatten(0, (len(chunk), len(noise))) for part in (*lengths, latents)])
    return Magnitudes(*map(torch.cat, zip(*found, strict=True)))


def by_generations(values: Tensor) -> dict[int, Tensor]:
    """The paper's metric [N] of magnitudes [N, n, k] by the number of generations: the mean over k steps and 1, 4, 16 or n."""
    n = values.shape[1]
    return {m: values[:, :m].mean((1, 2)) for m in sorted({1, 4, 16, n}) if m <= n}


def first_step(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    noise: Tensor,
    sampling_steps: int = 50,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """The magnitudes [N, n] at the first step alone, in N n + n network evaluations.

    From the same noise the unconditional prediction is the same for all prompts, so it is made once.
    """
    _check(pipe, prompts, 1, sampling_steps)
    ((both,), _) = _sample(pipe, prompts[:1], noise, 7.5, sampling_steps, 1)
    without, first = both.chunk(2)
    predictions = [first]
    for chunk in chunks(prompts[1:], max_batch // len(noise)):
        predictions += _sample(pipe, chunk, noise, 1.0, sampling_steps, 1)[0]
    conditional = torch.cat(predictions).unflatten(0, (len(prompts), len(noise)))
    return (conditional - without).flatten(2).norm(dim=2).cpu()


@torch.no_grad()
def embed(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """The embeddings [N, L, D] that the text encoder gives prompts."""
    warn_of_cuts(pipe, prompts)
    return pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0]


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Tensor,
    noise: Tensor,
    sampling_steps: int = 50,
    guidance: float = 7.5,
    max_batch: int = MAX_BATCH,
) -> Tensor:
    """Pictures [N, n, C, H, W] in [-1, 1] of N prompts from n noises [n, C, H, W].

    In place of prompts, embeddings [N, n, L, D] of each prompt and noise can be given (see `memlib.mitigation`).
    """
    by_embedding = isinstance(prompts, Tensor)
    if not by_embedding:
        check_prompts(prompts)
        warn_of_cuts(pipe, prompts)
    pictures = []
    for chunk in chunks(prompts, max_batch // (2 * len(noise))):
        given = {"prompt_embeds": chunk.flatten(0, 1)} if by_embedding else {"prompt": list(chunk)}
        with quiet(pipe):
            run = pipe(
                **given,
                num_images_per_prompt=1 if by_embedding else len(noise),
                latents=noise.repeat(len(chunk), 1, 1, 1).to(pipe.device, pipe.unet.dtype),
                num_inference_steps=sampling_steps,
                guidance_scale=guidance,
                output_type="pt",
            )
        pictures.append(2 * run.images.float().cpu().unflatten(0, (len(chunk), len(noise))) - 1)
    return torch.cat(pictures)


def first_call(pipe: DiffusionPipeline, prompts: Sequence[str], noise: Tensor, sampling_steps: int = 50) -> "FirstCall":
    """What a pipeline gives its U-Net at the first step of sampling the prompts, each from every noise."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, *inputs: seen.append(inputs), with_kwargs=True)
    try:
        ((prediction,), _) = _sample(pipe, prompts, noise, 7.5, sampling_steps, 1)
    finally:
        handle.remove()
    (arguments, keywords) = seen[0]
    half = lambda part: part.chunk(2)[1] if isinstance(part, Tensor) and part.ndim else part  # noqa: E731
    added = keywords.get("added_cond_kwargs")
    keywords = {name: half(part) for name, part in keywords.items() if name != "added_cond_kwargs"}
    if added:
        keywords["added_cond_kwargs"] = {name: half(part) for name, part in added.items()}
    return FirstCall(pipe, half(arguments[0]), arguments[1], keywords, prediction.chunk(2)[0])


class FirstCall(NamedTuple):
    """The conditional half of a U-Net's first call, to be made again under other embeddings, with gradients."""

    pipe: DiffusionPipeline
    latents: Tensor
    t: Tensor
    keywords: dict[str, Any]
    without: Tensor

    def magnitude(self, embeddings: Tensor) -> Tensor:
        """The magnitude [N n] under embeddings [N n, L, D]; gradients flow to them."""
        keywords = self.keywords | {"encoder_hidden_states": embeddings, "return_dict": False}
        output = self.pipe.unet(self.latents, self.t, **keywords)[0]
        scale = _scale(self.pipe, self.t)
        return (scale * output.float() - self.without).flatten(1).norm(dim=1)


def token_significance(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    noise: Tensor,
    inputs: bool = False,
    sampling_steps: int = 50,
    max_batch: int = MAX_BATCH,
) -> pd.DataFrame:
    """How much each token has to do with the magnitude at the first step: columns prompt (its number), token, significance.

    The length of the gradient of the magnitude, averaged over noises [n, C, H, W], by the token's embedding (section 4.1):
    the one that the text encoder gives or, with `inputs` (not for Stable Diffusion XL), the one that it is given.
    """
    _check(pipe, prompts, 1, sampling_steps)
    if inputs:
        check_single_encoder(pipe)
    lengths = torch.cat(
        [
            _gradient_lengths(pipe, chunk, noise, inputs, sampling_steps)
            for chunk in chunks(prompts, max_batch // (2 * len(noise)))
        ]
    )
    longest = pipe.tokenizer.model_max_length - 2
    rows = [
        (number, _legible(pipe, token), float(lengths[number, place]))
        for number, prompt in enumerate(prompts)
        for place, token in enumerate(pipe.tokenizer.tokenize(prompt)[:longest], start=1)
    ]
    return pd.DataFrame(rows, columns=["prompt", "token", "significance"])


def _legible(pipe: DiffusionPipeline, token: str) -> str:
    """A token as a reader writes it, without the mark of its end and its bytes as letters."""
    return pipe.tokenizer.convert_tokens_to_string([token]).removesuffix("</w>").strip()


def _gradient_lengths(
    pipe: DiffusionPipeline, prompts: Sequence[str], noise: Tensor, inputs: bool, sampling_steps: int
) -> Tensor:
    """Length of the gradient by each position's embedding [N, L]."""
    call = first_call(pipe, prompts, noise, sampling_steps)
    leaves: list[Tensor] = []

    def as_leaf(_: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        if inputs:
            handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(as_leaf)
            try:
                embeddings = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0]
            finally:
                handle.remove()
        else:
            embeddings = as_leaf(None, (), call.keywords["encoder_hidden_states"][:: len(noise)])
        metric = call.magnitude(embeddings.repeat_interleave(len(noise), 0)).sum() / len(noise)
        (gradient,) = torch.autograd.grad(metric, leaves[0])
    return gradient.float().norm(dim=2)


def _check(pipe: DiffusionPipeline, prompts: Sequence[str], steps: int | None, sampling_steps: int) -> None:
    check_pipeline(pipe)
    check_prompts(prompts)
    if steps is not None and not 1 <= steps <= sampling_steps:
        raise ValueError(f"the first {steps} of {sampling_steps} steps are asked for")
    warn_of_cuts(pipe, prompts)


def chunks(items: Any, size: int) -> Iterator[Any]:
    """A sequence or tensor in parts of `size`, at least one item each."""
    size = max(1, size)
    return (items[start : start + size] for start in range(0, len(items), size))


def _sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    noise: Tensor,
    guidance: float,
    sampling_steps: int,
    steps: int | None,
) -> tuple[list[Tensor], Tensor]:
    """Noise predictions of the first steps of a pipeline's run, every prompt from every noise, and the latents reached."""
    with noise_predictions(pipe, steps) as found:
        reached = pipe(
            list(prompts),
            latents=noise.repeat(len(prompts), 1, 1, 1).to(pipe.device, pipe.unet.dtype),
            num_images_per_prompt=len(noise),
            num_inference_steps=sampling_steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images
    return found, reached.float().cpu()


@contextmanager
def noise_predictions(pipe: DiffusionPipeline, calls: int | None = None) -> Iterator[list[Tensor]]:
    """The U-Net's noise predictions during a run of a pipeline, in float32, one tensor a call.

    Of networks that predict v or the clean latents it is what differs between noise predictions at one point: v times
    sqrt(abar), or minus the latents times sqrt(abar / (1 - abar)). After so many `calls` the pipeline is told to stop.
    """
    found: list[Tensor] = []

    def read(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        t = arguments[1] if len(arguments) > 1 else keywords["timestep"]
        found.append(_scale(pipe, t) * output[0].detach().float())
        if len(found) == calls:
            pipe._interrupt = True

    handle = pipe.unet.register_forward_hook(read, with_kwargs=True)
    try:
        with quiet(pipe):
            yield found
    finally:
        handle.remove()


def _scale(pipe: DiffusionPipeline, t: Tensor) -> float:
    """What a difference of the U-Net's outputs at a timestep is to be multiplied by to be one of noise predictions."""
    abar = float(pipe.scheduler.alphas_cumprod[int(t)])
    scales = {"epsilon": 1.0, "v_prediction": abar**0.5, "sample": -((abar / (1 - abar)) ** 0.5)}
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in scales:
        raise ValueError(f"the prediction type {kind!r} is not supported; known: {', '.join(scales)}")
    return scales[kind]


@contextmanager
def quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar."""
    bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**bar)
