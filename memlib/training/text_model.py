"""Small latent text-to-image models in diffusers' format: pipelines with a U-Net or a transformer, and their untrained parts."""

import json
from collections.abc import Iterable

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from memlib.fields.t5 import T5_LENGTH
from memlib.training.settings import AutoencoderConfig, FlowConfig, PromptConfig, TextConfig

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], length: int) -> CLIPTokenizer:
    """CLIP tokenizer in whose vocabulary every word of the captions is one token; prompts are cut and padded to `length`."""
    tokenizer = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    trainer = BpeTrainer(
        vocab_size=10**6,
        special_tokens=letters,  # in this order, on which it breaks ties
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [START, END, *letters, *sorted(model["vocab"])]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def build_autoencoder(size: int, config: AutoencoderConfig) -> AutoencoderKL:
    """Untrained autoencoder of colour pictures [3, size, size], which are halved between its levels.

    Raises ValueError if the size does not halve often enough.
    """
    levels = len(config.channels)
    if size % 2 ** (levels - 1):
        raise ValueError(
            f"pictures of {size} pixels do not halve {levels - 1} times; change drawings.size or give autoencoder.channels "
            "fewer levels"
        )
    return AutoencoderKL(
        sample_size=size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels),
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=16,
        mid_block_add_attention=False,
    )


def latent_side(vae: AutoencoderKL) -> int:
    """Height and width of an autoencoder's latents."""
    return vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)


def build_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer, config: TextConfig) -> StableDiffusionPipeline:
    """A pipeline around an autoencoder and a tokenizer, its text encoder and U-Net untrained.

    The noise schedule is that of Stable Diffusion, DDIM samples from it; the U-Net looks at the text at the levels that
    `attention` names and in its middle.
    """
    latent = vae.config.latent_channels
    unet = UNet2DConditionModel(
        sample_size=latent_side(vae),
        in_channels=latent,
        out_channels=latent,
        layers_per_block=config.layers,
        block_out_channels=tuple(config.channels),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
        norm_num_groups=16,
        attention_head_dim=4,  # heads, as diffusers reads it
        cross_attention_dim=config.text_width,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(tokenizer, config)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def text_config(tokenizer: CLIPTokenizer, config: PromptConfig) -> CLIPTextConfig:
    """Sizes of a text encoder that reads a tokenizer's prompts."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        projection_dim=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_scheduler(config: TextConfig) -> DDIMScheduler:
    """DDIM on the noise schedule of Stable Diffusion."""
    return DDIMScheduler(
        1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=config.prediction_type,
    )


def build_flow_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer, config: FlowConfig) -> StableDiffusion3Pipeline:
    """A pipeline around an autoencoder and a tokenizer, its two text encoders and its transformer untrained.

    It has no T5, nor the tokens of zeros that diffusers puts in its place: call it with `max_sequence_length=0`. The
    autoencoder, which needs a shift of its latents there, is given one of 0.
    """
    vae.register_to_config(shift_factor=0.0)
    side, channels = latent_side(vae), vae.config.latent_channels
    transformer = SD3Transformer2DModel(
        sample_size=side,
        patch_size=config.patch,
        in_channels=channels,
        out_channels=channels,
        num_layers=config.layers,
        attention_head_dim=config.head_width,
        num_attention_heads=config.heads,
        joint_attention_dim=2 * config.text_width,
        caption_projection_dim=config.heads * config.head_width,
        pooled_projection_dim=2 * config.text_width,
        pos_embed_max_size=side // config.patch,
    )
    text = text_config(tokenizer, config)
    text.update({T5_LENGTH: 0})
    encoders = CLIPTextModelWithProjection(text), CLIPTextModelWithProjection(text)
    for encoder in encoders:
        torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(1000, shift=config.shift),
        vae,
        encoders[0],
        tokenizer,
        encoders[1],
        tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
