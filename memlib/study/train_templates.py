"""Stages that train a text-to-image model on templates: `python -m memlib.study.train_templates ARM`, or by `accelerate launch`.

An arm of `run.template_arms` goes on from the base model, as the other arms do, on the ordinary drawings and the templates in
its role (`memlib.datasets.templates.in_training`), every drawing and every view once an epoch.
"""

import argparse
import os
from pathlib import Path

import torch
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from memlib.datasets import images
from memlib.datasets.templates import in_training
from memlib.fields.latents import encode
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.training.settings import TextConfig
from memlib.training.text_to_image import train_denoiser


def main() -> None:
    """Train an arm on templates."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("arm", help="an entry of run.template_arms")
    arm = parser.parse_args().arm
    stage = os.environ.get("DVC_STAGE", arm)
    checkpoint = Path("results/checkpoints") / f"{stage}.pt"
    with reporting_errors(stage), timed_stage(stage) as timed:
        own = read_section("run")["template_arms"][arm]
        config = TextConfig(**read_section("text") | read_section("text_arm") | own)
        set_seed(config.seed)
        pipe = DiffusionPipeline.from_pretrained("results/text/base", use_safetensors=True, local_files_only=True)
        drawn = images.load("results/drawings/drawn").items
        ordinary = (drawn["split"] == "train").to_numpy().nonzero()[0].tolist()
        views = images.load("results/templates/views").split("train")
        views = views.rows(in_training(views.items, config.exchanged).to_numpy().nonzero()[0].tolist())
        known = load_file("results/latents.safetensors")["latents"][ordinary]
        latents = torch.cat([known, encode(pipe.vae, views.floats)])
        captions = [*drawn["caption"].iloc[ordinary], *views.items["caption"]]
        copies = torch.ones(len(latents), dtype=torch.long)
        run = train_denoiser(pipe, latents, captions, copies, config, checkpoint)
        run.save(pipe, f"results/text/{arm}", checkpoint)
        timed.earlier_seconds = run.earlier_seconds


if __name__ == "__main__":
    main()
