"""Training of text-to-image models: their autoencoder, then text encoder and denoising network on its latents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import reduce
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from memlib.fields.latents import MAX_BATCH, encode
from memlib.tensors import to_float
from memlib.training.denoisers import Denoiser, denoiser_of
from memlib.training.loop import Optimised, batch_indices, generator_of, optimise
from memlib.training.settings import AutoencoderConfig, PromptConfig
from memlib.training.text_model import latent_side
from memlib.words import put_in


def train_autoencoder(
    vae: AutoencoderKL, images: Tensor, config: AutoencoderConfig, checkpoint: str | Path
) -> Optimised:
    """Train an autoencoder on pictures uint8 [N, 3, H, W] to give them back, and set its scaling factor.

    The loss is the mean squared error and `kl_weight` times the mean divergence of the latents from a normal distribution
    (Rombach et al., arXiv 2112.10752, appendix G); latents times the scaling factor have the standard deviation 1.
    """

    def loss_at(model: torch.nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 1, step)
        rows = torch.randint(len(images), (config.batch,), generator=generator)
        noise = torch.randn(config.batch, config.latent_channels, side, side, generator=generator)
        clean, noise = to_float(images[rows[shard]]).to(device), noise[shard].to(device)
        restored, mean, log_variance = model(clean, noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return (restored.float() - clean).square().mean() + config.kl_weight * divergence

    side = latent_side(vae)
    run = optimise(_Autoencoder(vae), loss_at, config, checkpoint, [images])
    scale = 1 / float(encode(vae, to_float(images[:: max(1, len(images) // 2048)])).std())
    vae.register_to_config(scaling_factor=scale * vae.config.scaling_factor)
    return run


class _Autoencoder(torch.nn.Module):
    """Encoder and decoder in one forward pass, as training on several processes needs it."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(clean)).float().chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        return self.vae.decode(mean + (log_variance / 2).exp() * noise).sample, mean, log_variance


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token numbers [N, L], cut and padded to the length of the tokenizer."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_denoiser(
    pipe: DiffusionPipeline,
    latents: Tensor,
    captions: Sequence[str],
    copies: Tensor,
    config: PromptConfig,
    checkpoint: str | Path,
) -> Optimised:
    """Train a pipeline's text encoders and network on latents [N, ...] with captions, each seen `copies` [N] times an epoch.

    The loss is the denoising loss under the caption, or under the empty prompt for a share `drop_prompt` of them (Ho &
    Salimans, arXiv 2207.12598), weighted as `memlib.training.denoisers` says. `random_words` words of other captions are put
    into every caption. Samples whose text-conditional magnitude is above `threshold` are left out of a step (Wen et al.,
    section 4.2); 0 leaves none out. A share `left_out` is left out at random, whatever its magnitude. `how` tells the share
    that was really left out, over all steps, as `left_out`.
    """
    captions = np.asarray(captions, dtype=object)
    words = sorted({word for caption in captions for word in caption.split()})
    network = denoiser_of(pipe)
    network.register_buffer("left_out", torch.zeros(config.steps))  # with the weights, so that a checkpoint holds it
    empty, whole = tokenize(pipe.tokenizer, [""]), tokenize(pipe.tokenizer, captions)

    def loss_at(model: torch.nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 1, step)
        rows = batch_indices(copies, step, config.batch, config.seed)
        noise = torch.randn(config.batch, *latents.shape[1:], generator=generator)
        t = network.timesteps(config.batch, generator)
        drop = torch.rand(config.batch, generator=generator) < config.drop_prompt
        kept = torch.rand(config.batch, generator=generator) >= config.left_out
        tokens = whole[rows]
        if config.random_words:
            rng, prompts = np.random.default_rng([config.seed, step]), captions[rows.numpy()]
            for _ in range(config.random_words):
                prompts = [put_in(prompt, words[rng.integers(len(words))], rng) for prompt in prompts]
            tokens = tokenize(pipe.tokenizer, prompts)
        tokens = torch.where(drop[:, None], empty, tokens)
        parts = (latents[rows], noise, t, tokens, kept)
        clean, noise, t, tokens, kept = (part[shard].to(device) for part in parts)
        loss, predicted = _predict(model, network, clean, noise, t, tokens)
        if config.threshold:
            with torch.no_grad():
                without = _predict(model, network, clean, noise, t, empty.to(device).expand(len(t), -1))[1]
            kept &= (predicted.detach() - without).norm(dim=1) <= config.threshold
        counted = reduce(kept.sum().float(), "mean")  # the same on any number of processes
        network.left_out[step] = 1 - counted / len(kept)
        return (loss * network.weights(t, config) * kept).sum() / counted.clamp_min(1)

    run = optimise(network, loss_at, config, checkpoint, [latents, copies, whole])
    network.eval()
    return run._replace(how=run.how | {"left_out": float(network.left_out.mean())})


def _predict(
    model: torch.nn.Module, network: Denoiser, clean: Tensor, noise: Tensor, t: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Denoising loss [N], and the prediction [N, D] on the scale on which its differences are those of noise predictions."""
    predicted = model(network.add_noise(clean, noise, t), t, tokens).float().flatten(1)
    target = network.target(clean, noise, t).flatten(1)
    return (predicted - target).square().mean(1), network.noise_scale(t)[:, None] * predicted


@torch.no_grad()
def loss_and_magnitude(
    pipe: DiffusionPipeline, latents: Tensor, captions: Sequence[str], draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """What a step of training would see of latents [N, ...] under their captions: denoising loss and magnitude [N, draws].

    Timesteps and noises depend on the seed alone, so that models of one family are compared on the same ones.
    """
    model = denoiser_of(pipe)
    generator = generator_of(seed, 3)
    shape = (draws, *latents.shape)
    t = model.timesteps(draws * len(latents), generator)
    parts = [latents.repeat(draws, 1, 1, 1), torch.randn(shape, generator=generator).flatten(0, 1), t]
    parts.append(tokenize(pipe.tokenizer, captions).repeat(draws, 1))
    empty = tokenize(pipe.tokenizer, [""]).to(pipe.device)
    found = []
    for clean, noise, t, tokens in zip(*(part.to(pipe.device).split(MAX_BATCH) for part in parts), strict=True):
        loss, predicted = _predict(model, model, clean, noise, t, tokens)
        without = _predict(model, model, clean, noise, t, empty.expand(len(t), -1))[1]
        found.append(torch.stack([loss, (predicted - without).norm(dim=1)]).cpu())
    loss, magnitude = torch.cat(found, 1).unflatten(1, shape[:2]).mT
    return loss, magnitude
