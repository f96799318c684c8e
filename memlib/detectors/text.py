"""Magnitude of the text-conditional prediction (Wen et al., arXiv 2407.21720).

Predictions with the prompt and without are compared as expected clean data, D = (x_t - noise eps) / signal: |D_c - D_u| is
sigma |eps_c - eps_u|, a constant factor at the first step, and stays right where nothing of the data is left (signal 0) and
the noise predictions agree whatever the prompt. Divide by sigma for the paper's unit.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlib.detectors.api import Detector, Items, Scores
from memlib.fields import NoisePredictor, denoised
from memlib.fields.load import check_single_encoder
from memlib.fields.network import NetworkField
from memlib.fields.unet import UNetField
from memlib.sampling.pipeline import check_prompts, chunks, shared_noise, trajectory, warn_of_cuts
from memlib.tensors import norm

BROKEN = "\ufffd"  # what stands for bytes that are no whole character
MOST_BYTES = 4  # of a character in UTF-8


@torch.no_grad()
def first_step(field: NetworkField, prompts: Sequence[str], noise: Tensor, sampling_steps: int = 50) -> Tensor:
    """|D_c - D_u| at the first step of sampling [N, n] of N prompts from n noises [n, C, H, W].

    One network evaluation a prompt and noise; the unconditional prediction, one more a noise, is the same for all prompts.
    Raises ValueError for no prompts.
    """
    check_prompts(prompts)
    warn_of_cuts(field.pipe, prompts)
    t = field.timesteps(sampling_steps)[0]
    noise = noise.to(field.device)
    without = field.with_rows(field.rows).data_at(noise, t, field.unconditional())  # the same call for any prompts
    cond = field.encode_prompts(prompts)
    found = field.data_at(noise.repeat_interleave(len(prompts), 0), t, cond).unflatten(0, (len(noise), -1))
    return norm((found - without[:, None]).flatten(2)).T.cpu()


def guess_distance(conditional: NoisePredictor, without: NoisePredictor, y: Tensor, sigma: float) -> Tensor:
    """|D_c - D_u| [N] of noisy latents y [N, ...] under two noise predictions, at any noise level."""
    return (denoised(conditional, y, sigma) - denoised(without, y, sigma)).flatten(1).norm(dim=1)


class FirstStep:
    """The first step of sampling prompts, each from every noise, to be looked at under other embeddings, with gradients.

    embeddings: what the text encoder gives the prompts [N, L, D]. Raises ValueError for a pipeline with two text encoders.
    """

    def __init__(self, field: UNetField, prompts: Sequence[str], noise: Tensor, sampling_steps: int = 50) -> None:
        check_prompts(prompts)
        check_single_encoder(field.pipe)
        self.field, self.prompts, self.count = field, list(prompts), len(noise)
        self.t = field.timesteps(sampling_steps)[0]
        noise = noise.to(field.device)
        with torch.no_grad():
            self.without = field.data_at(noise, self.t, field.unconditional()).repeat(len(self.prompts), 1, 1, 1)
        self.noise = noise.repeat(len(self.prompts), 1, 1, 1)
        self.embeddings = field.encode_prompts(self.prompts)["encoder_hidden_states"]

    def magnitude(self, embeddings: Tensor) -> Tensor:
        """|D_c - D_u| [N n] under embeddings [N n, L, D]; gradients flow to them."""
        found = self.field.data_at(self.noise, self.t, {"encoder_hidden_states": embeddings})
        return (found - self.without).flatten(1).norm(dim=1)


def token_significance(
    field: UNetField, prompts: Sequence[str], noise: Tensor, inputs: bool = False, sampling_steps: int = 50
) -> pd.DataFrame:
    """How much each token has to do with the magnitude at the first step: columns prompt (its number), token, significance.

    The length of the gradient of the magnitude, averaged over noises [n, C, H, W], by the token's embedding (section 4.1):
    the one that the text encoder gives or, with `inputs`, the one that it is given. Raises ValueError for no prompts and a
    pipeline with two text encoders.
    """
    warn_of_cuts(field.pipe, prompts)
    size = max(1, field.rows // len(noise))
    lengths = torch.cat(
        [
            _gradient_lengths(FirstStep(field, chunk, noise, sampling_steps), inputs)
            for chunk in chunks(list(prompts), size)
        ]
    )
    tokenizer = field.pipe.tokenizer
    longest = tokenizer.model_max_length - 2
    rows = [
        (number, token, float(lengths[number, 1 + part.start : 1 + part.stop].max()))
        for number, prompt in enumerate(prompts)
        for token, part in _legible(tokenizer, tokenizer.tokenize(prompt)[:longest])
    ]
    return pd.DataFrame(rows, columns=["prompt", "token", "significance"])


def lost_without_words(
    field: NetworkField, prompts: Sequence[str], noise: Tensor, sampling_steps: int = 50
) -> pd.DataFrame:
    """How much of the magnitude at the first step is lost without each word, the mean over noises [n, C, H, W].

    Columns prompt (its number), token (the word) and significance, as `token_significance` gives them, without gradients: the
    magnitudes of the prompt and, for each word, of what is left. Raises ValueError for no prompts.
    """
    check_prompts(prompts)
    words = [prompt.split() for prompt in prompts]
    rows = [(number, place) for number, own in enumerate(words) for place in range(len(own))]
    rest = [" ".join(words[number][:place] + words[number][place + 1 :]) for number, place in rows]
    parts = chunks([*prompts, *rest], field.rows)  # a large text encoder's embeddings of all would not fit
    found = torch.cat([first_step(field, part, noise, sampling_steps) for part in parts]).mean(1).tolist()
    whole, without = found[: len(prompts)], found[len(prompts) :]
    return pd.DataFrame(
        [(n, words[n][place], whole[n] - left) for (n, place), left in zip(rows, without, strict=True)],
        columns=["prompt", "token", "significance"],
    )


def _legible(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> Iterator[tuple[str, slice]]:
    """Tokens as a reader writes them, each with its place; those that are bytes of one character are taken together."""
    start = 0
    for stop in range(1, len(tokens) + 1):
        text = tokenizer.convert_tokens_to_string(list(tokens[start:stop]))
        if BROKEN not in text or stop - start == MOST_BYTES or stop == len(tokens):
            yield text.removesuffix("</w>").strip(), slice(start, stop)
            start = stop


def _gradient_lengths(first: FirstStep, inputs: bool) -> Tensor:
    """Length of the gradient by each position's embedding [N, L]."""
    leaves: list[Tensor] = []

    def as_leaf(_: object, arguments: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    pipe = first.field.pipe
    with torch.enable_grad():
        if inputs:
            handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(as_leaf)
            try:
                embeddings = pipe.encode_prompt(first.prompts, pipe.device, 1, False)[0]
            finally:
                handle.remove()
        else:
            embeddings = as_leaf(None, None, first.embeddings)
        metric = first.magnitude(embeddings.repeat_interleave(first.count, 0)).sum() / first.count
        (gradient,) = torch.autograd.grad(metric, leaves[0])
    return gradient.float().norm(dim=2)


def score_magnitude(field: NetworkField, items: Items, *, noises: int, sampling_steps: int = 50) -> list[Scores]:
    """Magnitude at the first step, a reading for each noise: one evaluation, and what all items share (see `first_step`)."""
    noise = shared_noise(field.shape, noises, items.seed)
    found = first_step(field, items.prompts, noise, sampling_steps)
    return [Scores(found[:, number], 1, {"noise": number}) for number in range(noises)]


def score_sampled_magnitude(
    field: NetworkField,
    items: Items,
    *,
    noises: int,
    guidance: float,
    sampling_steps: int = 50,
    steps: int | None = None,
) -> list[Scores]:
    """Magnitude at every step of the pipeline's own loop, which predicts with the prompt and without: two evaluations a step."""
    noise = shared_noise(field.shape, noises, items.seed)
    run = trajectory(field.pipe, items.prompts, noise, steps, sampling_steps, guidance, 2 * field.rows)
    return [
        Scores(
            run.value[:, number, step],
            2 * (step + 1),
            {"noise": number, "step": step, "sigma": float(f"{float(run.sigmas[step]):.6g}")},
        )
        for number in range(noises)
        for step in range(run.value.shape[2])
    ]


MAGNITUDE = Detector("magnitude", {"model", "prompt"}, ({"noises": 4},), score_magnitude)
SAMPLED_MAGNITUDE = Detector(
    "sampled_magnitude",
    {"model", "prompt"},
    ({"noises": 4, "guidance": 7.5, "sampling_steps": 50},),
    score_sampled_magnitude,
)
