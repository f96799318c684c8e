"""Stage `judge`: what samples are judged by.

A classifier of subject, ground and size says whether a picture shows what its prompt asks for:
`results/judge.safetensors`, and in `tables/judge.parquet`, for further fresh drawings of each subject, sharp and as the
autoencoder gives them back (`drawings`), the share (`right`) of which it knows each `attribute`. Samples are compared with
drawings as the autoencoder gives them back, which is all that a model of its latents has seen, in `results/samples` by their
rows among all drawings: `training.safetensors`, in the order of `memlib.datasets.drawings.training_rows`, and
`unseen.safetensors`, the drawings of looks never seen.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from memlib.datasets import images
from memlib.datasets.attributes import ATTRIBUTES
from memlib.datasets.drawings import training_rows
from memlib.datasets.items import write_samples
from memlib.fields.latents import decode, reconstruct
from memlib.files import atomic_write, write_table
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tensors import to_uint8
from memlib.training.classifier import fresh_drawings, train_judge
from memlib.training.settings import JudgeConfig
from memlib.truth.classifier import Judge

CHECKED = 16  # fresh drawings of each subject


def main() -> None:
    """Train the judge on the subjects of `results/drawings` with the autoencoder of `results/autoencoder`."""
    stage = os.environ.get("DVC_STAGE", "judge")
    checkpoint = Path("results/checkpoints") / f"{stage}.pt"
    with reporting_errors(stage), timed_stage(stage) as timed:
        config = JudgeConfig(**read_section("judge"))
        subjects = images.load("results/drawings/subjects").images
        vae = AutoencoderKL.from_pretrained("results/autoencoder", use_safetensors=True, local_files_only=True)
        torch.manual_seed(config.seed)
        classes = {"subject": len(subjects)} | {name: len(values) for name, values in ATTRIBUTES.items()}
        judge = Judge(classes, subjects.shape[-1])
        run = train_judge(judge, subjects, lambda pictures: reconstruct(vae, pictures), config, checkpoint)
        timed.earlier_seconds = run.earlier_seconds
        if not run.main:
            return
        with atomic_write("results/judge.safetensors") as temporary:
            save_file(judge.state_dict(), temporary)
        checkpoint.unlink(missing_ok=True)
        fresh, shown = fresh_drawings(subjects, CHECKED, config.seed, 6)
        tables = [
            pd.DataFrame({"drawings": name, "attribute": attribute, "subject": range(len(subjects)), "right": right})
            for name, pictures in (("fresh", fresh), ("through the autoencoder", reconstruct(vae, fresh)))
            for attribute, right in _right(judge, pictures, shown).items()
        ]
        write_table("tables/judge.parquet", pd.concat(tables))
        drawn = images.load("results/drawings/drawn")
        latents = load_file("results/latents.safetensors")["latents"]
        unseen = np.flatnonzero(drawn.items["split"] == "unseen")
        for name, rows in (("training", training_rows(drawn)), ("unseen", unseen)):
            restored = to_uint8(decode(vae, latents[rows.tolist()]))[:, None]
            write_samples(f"results/samples/{name}.safetensors", restored, [str(row) for row in rows])


@torch.no_grad()
def _right(judge: Judge, pictures: torch.Tensor, shown: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """The share of each subject's pictures, which lie beside one another, of which the judge knows each attribute."""
    found = {name: logits.argmax(1) == shown[name] for name, logits in judge(pictures).items()}
    return {name: right.reshape(-1, CHECKED).double().mean(1).tolist() for name, right in found.items()}


if __name__ == "__main__":
    main()
