"""Stage `judge`: what samples are judged by.

A classifier of subjects says whether a picture shows what its prompt asks for: `results/judge.safetensors`, and in
`tables/judge.json` the share of further fresh drawings of each subject that it knows, sharp and as the autoencoder gives them
back. Copies are looked for among the training pictures as the autoencoder gives them back, which is all that a model of its
latents has seen: `results/samples/training.safetensors`, in the order of `memlib.datasets.drawings.training_rows`.
"""

import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from memlib.datasets import images
from memlib.datasets.drawings import render, training_rows
from memlib.datasets.items import write_samples
from memlib.fields.latents import decode, reconstruct
from memlib.files import atomic_write, write_json
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tensors import to_float, to_uint8
from memlib.training.classifier import train_judge
from memlib.training.settings import JudgeConfig
from memlib.truth.classifier import build_judge, subject_classes

CHECKED = 4  # fresh drawings of each subject


def main() -> None:
    """Train the judge on the subjects of `results/drawings` with the autoencoder of `results/autoencoder`."""
    stage = os.environ.get("DVC_STAGE", "judge")
    checkpoint = Path("results/checkpoints") / f"{stage}.pt"
    with reporting_errors(stage), timed_stage(stage) as timed:
        config = JudgeConfig(**read_section("judge"))
        subjects = images.load("results/drawings/subjects")
        vae = AutoencoderKL.from_pretrained("results/autoencoder", use_safetensors=True, local_files_only=True)
        shown = subjects.images[subject_classes(subjects.items["split"]) >= 0]
        torch.manual_seed(config.seed)
        judge = build_judge(len(shown), shown.shape[-1])
        run = train_judge(judge, shown, lambda pictures: reconstruct(vae, pictures), config, checkpoint)
        timed.earlier_seconds = run.earlier_seconds
        if not run.main:
            return
        with atomic_write("results/judge.safetensors") as temporary:
            save_file(judge.state_dict(), temporary)
        checkpoint.unlink(missing_ok=True)
        which = torch.arange(len(shown)).repeat(CHECKED)
        fresh = to_float(render(shown[which], torch.Generator().manual_seed(config.seed + 1)))
        with torch.no_grad():
            right = {
                name: (judge(pictures).argmax(1) == which).reshape(CHECKED, -1).double().mean(0).tolist()
                for name, pictures in (
                    ("fresh drawings", fresh),
                    ("through the autoencoder", reconstruct(vae, fresh)),
                )
            }
        write_json("tables/judge.json", right)
        rows = training_rows(images.load("results/drawings/drawn"))
        restored = decode(vae, load_file("results/latents.safetensors")["latents"][rows.tolist()])
        write_samples("results/samples/training.safetensors", to_uint8(restored)[:, None], [str(row) for row in rows])


if __name__ == "__main__":
    main()
