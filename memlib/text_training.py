"""Training of the text-to-image model: its autoencoder, the base model, and the arms that go on from it.

`python -m memlib.text_training autoencoder|base|arm …`, or the same under `accelerate launch`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from memlib.config import AutoencoderConfig, TextConfig
from memlib.data import to_float
from memlib.drawings import put_in
from memlib.models import MAX_BATCH
from memlib.optimisation import Optimised, batch_indices, generator_of, optimise
from memlib.text_model import Denoiser


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
        clean = to_float(images[rows[shard]]).to(device)
        moments = model(clean, encode=True)
        mean, log_variance = moments.float().chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(config.batch, *mean.shape[1:], generator=generator)[shard].to(device)
        restored = model(mean + (log_variance / 2).exp() * noise, encode=False)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return (restored.float() - clean).square().mean() + config.kl_weight * divergence

    run = optimise(_Halves(vae), loss_at, config, checkpoint, [images])
    scale = 1 / float(encode(vae, images[:: max(1, len(images) // 2048)]).std())
    vae.register_to_config(scaling_factor=scale * vae.config.scaling_factor)
    return run


class _Halves(torch.nn.Module):
    """Encoder and decoder of an autoencoder behind one forward pass, as training on several processes needs it."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, encode: bool) -> Tensor:
        return self.vae.quant_conv(self.vae.encoder(x)) if encode else self.vae.decode(x).sample


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents [N, ...] of pictures uint8 [N, 3, H, W], times the scaling factor: the means of their distributions."""
    parts = [vae.encode(to_float(part).to(vae.device)).latent_dist.mode().cpu() for part in images.split(MAX_BATCH)]
    return torch.cat(parts) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures in [-1, 1] of scaled latents."""
    parts = [
        vae.decode(part.to(vae.device) / vae.config.scaling_factor).sample.cpu() for part in latents.split(MAX_BATCH)
    ]
    return torch.cat(parts).clamp(-1, 1)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token numbers [N, L], cut and padded to the length of the tokenizer."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_denoiser(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    captions: Sequence[str],
    copies: Tensor,
    config: TextConfig,
    checkpoint: str | Path,
) -> Optimised:
    """Train text encoder and U-Net of a pipeline on latents [N, ...] with captions, each seen `copies` [N] times an epoch.

    The loss is the denoising loss under the caption, or under the empty prompt for a share `drop_prompt` of them (Ho &
    Salimans, arXiv 2207.12598). `random_words` words of other captions are put into every caption. Samples whose
    text-conditional magnitude is above `threshold` are left out of a step (Wen et al., section 4.2); 0 leaves none out.
    """
    captions = np.asarray(captions, dtype=object)
    words = sorted({word for caption in captions for word in caption.split()})
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    empty, whole = tokenize(pipe.tokenizer, [""]), tokenize(pipe.tokenizer, captions)

    def loss_at(model: torch.nn.Module, step: int, shard: slice, device: torch.device) -> Tensor:
        generator = generator_of(config.seed, 1, step)
        rows = batch_indices(copies, step, config.batch, config.seed)
        noise = torch.randn(config.batch, *latents.shape[1:], generator=generator)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (config.batch,), generator=generator)
        drop = torch.rand(config.batch, generator=generator) < config.drop_prompt
        prompts = captions[rows.numpy()]
        if config.random_words:
            rng = np.random.default_rng([config.seed, step])
            for _ in range(config.random_words):
                prompts = [put_in(prompt, str(rng.choice(words)), rng) for prompt in prompts]
        tokens = torch.where(drop[:, None], empty, tokenize(pipe.tokenizer, prompts))
        clean, noise, t, tokens = (part[shard].to(device) for part in (latents[rows], noise, t, tokens))
        noisy = scheduler.add_noise(clean, noise, t)
        predicted = model(noisy, t, tokens).float()
        loss = (predicted - noise).square().flatten(1).mean(1)
        if config.threshold:
            with torch.no_grad():
                without = model(noisy, t, empty.to(device).expand(len(t), -1)).float()
            kept = (predicted.detach() - without).flatten(1).norm(dim=1) <= config.threshold
            return (loss * kept).sum() / kept.sum().clamp_min(1)
        return loss.mean()

    run = optimise(Denoiser(pipe.text_encoder, pipe.unet), loss_at, config, checkpoint, [latents, copies, whole])
    pipe.text_encoder.eval()
    pipe.unet.eval()
    return run
