"""A small latent text-to-image model in diffusers' format: a StableDiffusionPipeline and its untrained parts."""

import json
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """CLIP tokenizer in whose vocabulary every word of the captions is one token; prompts are cut and padded to `length`."""
    tokenizer = CLIPTokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=10**6,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [START, END, *alphabet, *(letter + "</w>" for letter in alphabet), *sorted(model["vocab"])]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def build_autoencoder(size: int, channels: list[int], latent_channels: int) -> AutoencoderKL:
    """Untrained autoencoder of colour pictures [3, size, size], which halves them between its levels."""
    levels = len(channels)
    return AutoencoderKL(
        sample_size=size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=16,
        mid_block_add_attention=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """Untrained CLIP text encoder for the vocabulary and prompt length of a tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet(
    size: int, latent_channels: int, channels: list[int], layers: int, text_width: int
) -> UNet2DConditionModel:
    """Untrained U-Net with cross-attention to the text at every level, for latents [latent_channels, size, size]."""
    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=layers,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        norm_num_groups=16,
        attention_head_dim=4,  # heads, as diffusers reads it
        cross_attention_dim=text_width,
    )


def assemble(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The pipeline of these parts, with the noise schedule of Stable Diffusion and DDIM to sample."""
    scheduler = DDIMScheduler(
        1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class Denoiser(torch.nn.Module):
    """The trained half of a text-to-image model: text encoder and U-Net, as one network."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """What the U-Net predicts for noisy latents [N, ...] at timesteps [N] under prompts of token numbers [N, L]."""
        return self.unet(noisy, t, encoder_hidden_states=self.text_encoder(tokens)[0]).sample
