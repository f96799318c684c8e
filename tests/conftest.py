"""Small models and pictures that the tests make for themselves."""

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DModel
from hypothesis import settings

from memlib import text_model

torch.set_num_threads(1)  # small tensors: more threads only get in each other's way


settings.register_profile("study", deadline=None, derandomize=True)
settings.load_profile("study")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def small_unet(channels: int = 3, attention: bool = True, seed: int = 0) -> UNet2DModel:
    """An untrained network of the study's kind, small enough for full Jacobians."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D"),
        up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )


def scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(1000, prediction_type=prediction_type, clip_sample=False)


def small_pipeline(prediction_type: str = "epsilon", length: int = 8, seed: int = 0) -> StableDiffusionPipeline:
    """An untrained text-to-image pipeline of the study's kind, for pictures of 16 pixels."""
    torch.manual_seed(seed)
    tokenizer = text_model.train_tokenizer(["a red apple on a green tree", "the big blue whale"], length)
    pipe = text_model.assemble(
        text_model.build_autoencoder(16, [16, 16, 32], 4),
        tokenizer,
        text_model.build_text_encoder(tokenizer, 32, 1),
        text_model.build_unet(4, 4, [16, 32], 1, 32),
    )
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    return pipe
