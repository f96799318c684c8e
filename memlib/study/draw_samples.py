"""Stage `truth`: what a model reproduces, by samples matched with pictures: `python -m memlib.study.draw_samples KEY`."""

import sys
from pathlib import Path

import pandas as pd
import torch

from memlib.datasets import images as image_sets
from memlib.datasets.items import write_samples
from memlib.detectors.denoising import denoising_loss
from memlib.fields.load import load_field
from memlib.fields.unet import UNetField
from memlib.files import write_pictures, write_table
from memlib.progress import progress
from memlib.sampling.ancestral import sample_ancestral
from memlib.sampling.grids import sigma_grid
from memlib.sampling.ode import sample
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tensors import item_seeds, to_uint8
from memlib.truth.outcomes import borderline, clearest
from memlib.truth.replication import match

SHOWN = 64  # samples that a chapter can show
EXAMPLES = 8  # of copies and of the hardest cases of the criterion
BATCH = 256
LOSS_SIGMA, LOSS_DRAWS = 0.2, 4  # of the held-out loss, which says how good a model is


def draw_samples(
    key: str,
    model: str,
    images: str,
    split: str,
    samples: int,
    steps: int,
    sampler: str,
    mirrored: bool,
    seed: int,
) -> None:
    """Write results/samples/KEY.safetensors and tables/truth/KEY/, from an entry of the section `truth`.

    matches.parquet: of each sample the nearest picture of the split (its id), the distance to it and to the second nearest.
    pictures.png: the first samples. examples.png: the clearest copies and then the borderline cases, as
    `memlib.truth.outcomes` names them. quality.parquet: the denoising loss of every held-out picture. A seed starts every
    model from the same noise.
    """
    field = load_field(model)
    image_set = image_sets.load(images)
    training, heldout = image_set.split(split), image_set.split("heldout")
    seeds = item_seeds(range(samples), seed)
    sigmas = noise_levels(field, sampler, steps)
    draw = {"heun": sample, "ancestral": sample_ancestral}[sampler]
    parts = [seeds[start : start + BATCH] for start in range(0, samples, BATCH)]
    made = torch.cat([draw(field, part, sigmas).cpu() for part in progress(parts, "sampling")]).clamp(-1, 1)
    found = match(made, training.floats, mirrored)
    matches = pd.DataFrame(
        {
            "sample": range(samples),
            "nearest": training.items["id"].to_numpy()[found.nearest.numpy()],
            "distance": found.distance.numpy(),
            "second_distance": found.second_distance.numpy(),
        }
    )
    losses = denoising_loss(
        field, heldout.floats.to(field.device), LOSS_SIGMA, LOSS_DRAWS, item_seeds(heldout.items["id"], seed)
    )
    output = Path("tables/truth") / key
    write_samples(
        f"results/samples/{key}.safetensors", to_uint8(made)[:, None], [f"{number:04d}" for number in range(samples)]
    )
    write_table(output / "matches.parquet", matches)
    write_table(output / "quality.parquet", pd.DataFrame({"item": heldout.items["id"], "loss": losses.mean(0).cpu()}))
    write_pictures(output / "pictures.png", to_uint8(made[:SHOWN]))
    examples = [*clearest(matches, EXAMPLES), *borderline(matches, EXAMPLES)]
    write_pictures(output / "examples.png", to_uint8(made[examples]))


def noise_levels(field: UNetField, sampler: str, steps: int) -> torch.Tensor:
    """The levels of a sampler: those of Karras et al. for the ODE, evenly strided timesteps of training for fresh noise."""
    if sampler == "heun":
        return sigma_grid(field.sigma_min, field.sigma_max, steps)
    return field.sigmas[torch.linspace(0, len(field.sigmas) - 1, steps).round().long()]


if __name__ == "__main__":
    with reporting_errors("truth"), timed_stage("truth"):
        draw_samples(sys.argv[1], **read_section("truth")[sys.argv[1]])
