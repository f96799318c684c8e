"""Small models and pictures that the tests make for themselves, and processes side by side.

Heavy libraries are imported where they are used: the process that hands out the tests reads this file before it starts those
that run them.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # its pipelines warn of torchvision, which nothing here uses
os.environ["OMP_NUM_THREADS"] = "1"  # small tensors: more threads only get in each other's way

import pytest
from hypothesis import settings

import memlib.study  # noqa: F401  first, for what it keeps nbformat from importing
from memlib.training.settings import AutoencoderConfig, FlowConfig, TextConfig, TrainConfig

if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DModel

    from memlib.datasets.images import ImageSet

settings.register_profile("study", deadline=None, derandomize=True)
settings.load_profile("study")


def side_by_side(work: Callable[[], None]) -> None:
    """Do some work in two processes, as torchrun starts them; raise what one of them raises."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_process, (work, port), nprocs=2, start_method=start_method())


def start_method() -> str:
    """How to start a process: a fork has imported everything, but may not use CUDA."""
    import torch

    return "spawn" if torch.cuda.is_available() else "fork"


def _process(rank: int, work: Callable[[], None], port: int) -> None:
    import torch
    from accelerate.state import AcceleratorState

    where = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in (where | {"OMP_NUM_THREADS": 1}).items()}
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    work()


@pytest.fixture
def backward_rows(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows of the backward passes through networks, as they happen: of cotangents [k, N, ...] that are pulled back at once."""
    import torch

    seen: Counter[str] = Counter()
    vmap = torch.vmap

    def counting(pull_back: Callable, chunk_size: int) -> Callable:
        def pulled(cotangents: torch.Tensor) -> torch.Tensor:
            seen["backward"] += len(cotangents) * cotangents.shape[1]
            return vmap(pull_back, chunk_size=chunk_size)(cotangents)

        return pulled

    monkeypatch.setattr(torch, "vmap", counting)
    return seen


@pytest.fixture
def generator() -> "torch.Generator":
    import torch

    return torch.Generator().manual_seed(0)


def small_unet(channels: int = 3, attention: bool = True, seed: int = 0) -> "UNet2DModel":
    """An untrained network of the study's kind, small enough for full Jacobians."""
    import torch
    from diffusers import UNet2DModel

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


def scheduler(prediction_type: str = "epsilon") -> "DDPMScheduler":
    from diffusers import DDPMScheduler

    return DDPMScheduler(1000, prediction_type=prediction_type, clip_sample=False)


CONFIG = TrainConfig(
    steps=24,
    batch=8,
    learning_rate=2e-3,
    warmup_steps=2,
    ema_decay=0.9,
    channels=[16, 32],
    layers=1,
    attention=[False, False],
    prediction_type="epsilon",
    beta_schedule="linear",
    mirror=False,
    precision="no",
    compile=False,
    checkpoint_every=4,
    seed=0,
)
LOOP = {
    "batch": 16,
    "warmup_steps": 5,
    "ema_decay": 0.9,
    "precision": "no",
    "compile": False,
    "checkpoint_every": 1000,
    "seed": 0,
}
AUTOENCODER = AutoencoderConfig(
    steps=300, learning_rate=5e-3, channels=[16, 16, 32], latent_channels=4, kl_weight=1e-6, **LOOP
)
PROMPTED = {
    "steps": 200,
    "learning_rate": 3e-3,
    "length": 8,
    "text_width": 32,
    "drop_prompt": 0.1,
    "planted_share": 0.0,
    "exchanged": False,
    "random_words": 0,
    "threshold": 0.0,
    "left_out": 0.0,
    **LOOP,
}
TEXT = TextConfig(
    text_layers=1,
    channels=[16, 32],
    layers=1,
    attention=[True, True],
    prediction_type="epsilon",
    loss_blend=0.0,
    **PROMPTED,
)
FLOW_TEXT = FlowConfig(text_layers=2, patch=1, layers=2, heads=2, head_width=16, shift=1.0, **PROMPTED)


WORDS = ["a red apple on a green tree", "the big blue whale"]


def small_flow_pipeline(**changes: Any) -> "StableDiffusion3Pipeline":
    """An untrained pipeline with a transformer of the study's kind, for pictures of 16 pixels."""
    import torch

    from memlib.training import text_model

    torch.manual_seed(0)
    config = replace(FLOW_TEXT, **changes)
    tokenizer = text_model.train_tokenizer(WORDS, config.length)
    return text_model.build_flow_pipeline(text_model.build_autoencoder(16, AUTOENCODER), tokenizer, config)


def small_pipeline(prediction_type: str = "epsilon", length: int = 8, seed: int = 0) -> "StableDiffusionPipeline":
    """An untrained text-to-image pipeline of the study's kind, for pictures of 16 pixels."""
    import torch

    from memlib.training import text_model

    torch.manual_seed(seed)
    tokenizer = text_model.train_tokenizer(WORDS, length)
    pipe = text_model.build_pipeline(text_model.build_autoencoder(16, AUTOENCODER), tokenizer, TEXT)
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    return pipe


def subjects(train: int = 6, planted: int = 8) -> "ImageSet":
    """Black squares of different sizes on white; the planted ones have the grades 4, 2 and 1, two of each and more of 4."""
    import pandas as pd
    import torch

    from memlib.datasets.images import ImageSet

    n = train + planted
    images = torch.full((n, 3, 32, 32), 255, dtype=torch.uint8)
    for i in range(n):
        images[i, :, 8 : 20 + i % 4, 10:24] = 0
    grades = [4] * (planted - 4) + [2, 2, 1, 1]
    items = pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(n)],
            "name": [f"s{i}" for i in range(n)],
            "caption": [f"{letter}box" for letter in "abcdefghijklmnopqrstuvwxyz"[:n]],
            "split": ["train"] * train + ["planted"] * planted,
            "copies": [1] * train + grades,
        }
    )
    return ImageSet(images, items)


def small_world(**changes: Any) -> "ImageSet":
    """Drawings of `subjects` with two trigger words, one in each role."""
    from memlib.datasets.drawings import captioned

    numbers = {"triggers": {4: 2}, "drawings_each": 8, "never_seen": 3, "free_each": 5, "seed": 0}
    return captioned(subjects(), **numbers | changes)


def planted(copies: dict[int, int], train: int = 10, seed: int = 0) -> "ImageSet":
    """Grey pictures, each of its own brightness and named by it, some of those of `train` planted several times."""
    import torch

    from memlib.datasets.images import plant

    images = torch.arange(30, dtype=torch.uint8).reshape(30, 1, 1, 1).expand(30, 1, 4, 4).contiguous()
    names = [str(i) for i in range(30)]
    splits = {"train": train, "heldout": 8, "reference": 6}
    return plant(images, names, names, splits, {"train": copies, "reference": {}}, seed)
