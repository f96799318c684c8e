"""Stages that train an image model: `python -m memlib.study.train_image DATA OUTPUT`, or the same under `accelerate launch`."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DModel

from memlib.datasets import images
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.training.image_model import build_scheduler, train
from memlib.training.loop import parameter_count
from memlib.training.settings import TrainConfig


def main() -> None:
    """Train on one split of an image set with the section `train` of params.yaml."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", help="folder of an image set")
    parser.add_argument("output", help="folder for the trained pipeline")
    parser.add_argument("--split", default="train", help="split of the image set to train on")
    parser.add_argument("--section", help="section of params.yaml whose settings replace those of `train`")
    parser.add_argument("--start", help="folder of a pipeline to go on from; empty for new weights")
    parser.add_argument("--seed", type=int, help="seed in place of the section's")
    parser.add_argument("--tables", help="folder for loss.parquet and model.json, which a chapter shows")
    arguments = parser.parse_args()
    stage = os.environ.get("DVC_STAGE", "train")
    with reporting_errors(stage), timed_stage(stage) as timed:
        settings = read_section("train") | (read_section(arguments.section) if arguments.section else {})
        config = TrainConfig(**settings)
        if arguments.seed is not None:
            config = replace(config, seed=arguments.seed)
        image_set = images.load(arguments.data).split(arguments.split)
        copies = torch.tensor(image_set.items["copies"].clip(lower=1).tolist())
        checkpoint = Path("results/checkpoints") / f"{stage}.pt"
        run = train(image_set.images, copies, config, arguments.output, checkpoint, arguments.start or None)
        timed.earlier_seconds = run.earlier_seconds
        if arguments.tables:
            network = UNet2DModel.from_pretrained(Path(arguments.output) / "unet", local_files_only=True)
            abar = build_scheduler(config).alphas_cumprod.double()
            levels = ((1 - abar) / abar).sqrt()
            run.report(
                arguments.tables,
                parameters=parameter_count(network),
                sigma_min=float(levels[0]),
                sigma_max=float(levels[-1]),
            )


if __name__ == "__main__":
    main()
