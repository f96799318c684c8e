"""Stages that train text-to-image models: `python -m memlib.study.train_text DATA OUTPUT`, or under `accelerate launch`.

First their autoencoder, which also writes the latents [N, ...] of all drawings, so that nothing encodes them again; then of each
family, U-Nets and transformers, a base model of ordinary drawings, then the arms, short trainings that go on from the base: with
planted copies (`memlib.datasets.drawings.trained_on`) in either role and at several shares, and those that mitigate.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file, save_file

from memlib.datasets import images
from memlib.datasets.drawings import trained_on
from memlib.datasets.images import ImageSet
from memlib.fields.latents import encode, reconstruct
from memlib.files import atomic_write, suggest, write_pictures
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tensors import to_uint8
from memlib.training.loop import Optimised, parameter_count
from memlib.training.settings import AutoencoderConfig, FlowConfig, PromptConfig, TextConfig
from memlib.training.text_model import build_autoencoder, build_flow_pipeline, build_pipeline, train_tokenizer
from memlib.training.text_to_image import train_autoencoder, train_denoiser

LATENTS = "results/latents.safetensors"
SHOWN = 16  # pictures that a chapter shows as they are and as the autoencoder gives them back


class Family(NamedTuple):
    """A family of text-to-image models.

    config: settings of the section of that name. arm: the section that is laid over it for arms. arms: what `run` names them
    under, with what each lays over both. build: the untrained pipeline around an autoencoder and a tokenizer. without: parts of
    the pipeline that are left out, as diffusers must be told.
    """

    config: type[PromptConfig]
    arm: str
    arms: str
    build: Callable[..., DiffusionPipeline]
    without: tuple[str, ...] = ()


FAMILIES = {
    "text": Family(TextConfig, "text_arm", "text_arms", build_pipeline),
    "flow": Family(FlowConfig, "flow_arm", "flow_arms", build_flow_pipeline, ("text_encoder_3", "tokenizer_3")),
}


def main() -> None:
    """Train the autoencoder on drawings, or a model, from new weights or from those of another."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", help="folder of captioned drawings")
    parser.add_argument("output", help="folder for what is trained")
    parser.add_argument("--autoencoder", help="folder of an autoencoder, to train a model; without, one is trained")
    parser.add_argument("--family", default="text", choices=FAMILIES, help="U-Nets, or transformers of a flow")
    parser.add_argument("--arm", default="base", help="an entry of run.text_arms or run.flow_arms")
    parser.add_argument("--start", help="folder of a pipeline to go on from, instead of new weights")
    parser.add_argument("--tables", help="folder for loss.parquet and model.json, which a chapter shows")
    arguments = parser.parse_args()
    stage = os.environ.get("DVC_STAGE", "text")
    checkpoint = Path("results/checkpoints") / f"{stage}.pt"
    with reporting_errors(stage), timed_stage(stage) as timed:
        drawn = images.load(arguments.data)
        if arguments.autoencoder is None:
            trained, run, numbers = _train_autoencoder(drawn, checkpoint, arguments.tables)
            if run.main:
                with atomic_write(LATENTS) as temporary:
                    save_file({"latents": encode(trained, drawn.floats)}, temporary)
        else:
            start, family = (arguments.autoencoder, arguments.start), FAMILIES[arguments.family]
            trained, run, numbers = _train_model(drawn, *start, family, arguments.arm, checkpoint)
        run.save(trained, arguments.output, checkpoint)
        timed.earlier_seconds = run.earlier_seconds
        if arguments.tables:
            run.report(arguments.tables, **numbers)


def _train_autoencoder(
    drawn: ImageSet, checkpoint: Path, tables: str | None
) -> tuple[AutoencoderKL, Optimised, dict[str, Any]]:
    """An autoencoder trained on all but the unseen drawings, and its number of weights and PSNR (dB) on the unseen ones.

    `tables` gets `pictures.png`: some unseen drawings, and below them the same as the autoencoder gives them back.
    """
    config = AutoencoderConfig(**read_section("autoencoder"))
    set_seed(config.seed)
    vae = build_autoencoder(drawn.images.shape[-1], config)
    unseen = (drawn.items["split"] == "unseen").to_numpy()
    run = train_autoencoder(vae, drawn.images[~unseen], config, checkpoint)
    fresh = drawn.split("unseen")
    restored = reconstruct(vae, fresh.floats)
    psnr = float(10 * torch.log10(4 / (restored - fresh.floats).square().mean()))
    if tables and run.main:
        sheet = torch.cat([fresh.images[:SHOWN], to_uint8(restored[:SHOWN])])
        write_pictures(Path(tables) / "pictures.png", sheet)
    return vae, run, {"parameters": parameter_count(vae), "psnr": psnr}


def _train_model(
    drawn: ImageSet, autoencoder: str, start: str | None, family: Family, arm: str, checkpoint: Path
) -> tuple[DiffusionPipeline, Optimised, dict[str, Any]]:
    """A pipeline trained as an arm is, from new weights or from those of the pipeline `start`, and its numbers of weights."""
    settings = read_section(family.config.section) | (read_section(family.arm) if start else {})
    arms = {"base": {}} | read_section("run")[family.arms]
    if arm not in arms:
        raise ValueError(f"there is no arm {arm!r}{suggest(arm, arms)}")
    config = family.config(**settings | arms[arm])
    set_seed(config.seed)
    vae = AutoencoderKL.from_pretrained(autoencoder, use_safetensors=True, local_files_only=True)
    if start is None:
        pipe = family.build(vae, train_tokenizer(drawn.items["caption"], config.length), config)
    else:
        how = {"use_safetensors": True, "local_files_only": True} | dict.fromkeys(family.without)
        pipe = DiffusionPipeline.from_pretrained(start, **how)
    shown = trained_on(drawn, config.planted_share, config.exchanged)
    latents = load_file(LATENTS)["latents"][shown["row"].tolist()]
    copies = torch.tensor(shown["copies"].tolist())
    run = train_denoiser(pipe, latents, shown["caption"].tolist(), copies, config, checkpoint)
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return pipe, run, {"parameters": {name: parameter_count(part) for name, part in networks.items()}}


if __name__ == "__main__":
    main()
