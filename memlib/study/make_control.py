"""Stage `picture_control`: what samples are judged by.

Writes results/picture_control/samples.safetensors, samples of the reference model, which saw none of the pictures that copies
are looked for among, and results/picture_control/embedding.safetensors, an embedding that forgives blur, shift and mirror,
trained on the pictures of `reference`; for the chapters tables/picture_control/rules.parquet, what the embedding and the pixels
say of held-out pictures that were altered in a known way: alteration, rule, `found` (share whose nearest picture is their
original) and `copies` (share that counts as a copy).
"""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from memlib.datasets import images
from memlib.datasets.items import write_samples
from memlib.fields.load import load_field
from memlib.files import atomic_write, write_table
from memlib.sampling.pictures import sampled
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tensors import generators, to_float
from memlib.training.embedding import train_embedding
from memlib.training.settings import EmbeddingConfig
from memlib.truth.calibration import common_limits, pixel_distance
from memlib.truth.embedding import altered, blurred, build_embedding, embedding_distance
from memlib.truth.outcomes import LEVEL

MODEL = "results/models/reference"
CONTROL = Path("results/picture_control")


def make_control(samples: int, steps: int, sampler: str, seed: int) -> None:
    """Draw the samples and train the embedding, from the parameters of the sections `picture_control` and `embedding`."""
    image_set = images.load("results/data")
    config = EmbeddingConfig(**read_section("embedding"))
    training, heldout = image_set.split("reference"), image_set.split("heldout").floats
    drawn = sampled(load_field(MODEL), samples, steps, sampler, seed)
    checkpoint = Path("results/checkpoints/embedding.pt")
    torch.manual_seed(config.seed)
    network = build_embedding(*training.images.shape[1:3])
    train_embedding(network, training.images, config, checkpoint)
    write_samples(CONTROL / "samples.safetensors", drawn[:, None], [f"{number:04d}" for number in range(samples)])
    with atomic_write(CONTROL / "embedding.safetensors") as temporary:
        save_file(network.state_dict(), temporary)
    checkpoint.unlink(missing_ok=True)
    write_table(Path("tables/picture_control/rules.parquet"), validated(network, heldout, to_float(drawn), seed))


@torch.no_grad()
def validated(network: nn.Module, pictures: Tensor, control: Tensor, seed: int) -> pd.DataFrame:
    """What the calibrated rules say of pictures [N, C, H, W] in [-1, 1] after known alterations, a row an alteration and rule."""
    [generator] = generators([seed])
    reach = max(1, pictures.shape[-1] // 8)
    other = pictures[(pixel_distance(pictures, pictures) + torch.eye(len(pictures)) * 9).argmin(1)]
    alterations = {
        "blurred by one pixel": blurred(pictures, torch.full((len(pictures),), 1.0)),
        "shifted": torch.roll(pictures, reach, -1),
        "mirrored": pictures.flip(-1),
        "all of these at random": altered(pictures, generator),
        "the most similar other picture": other,
    }
    rows = []
    for rule, distance in (
        ("pixels", pixel_distance),
        ("embedding", lambda first, second: embedding_distance(network, first, second)),
    ):
        limits = common_limits(distance(control, pictures), LEVEL)
        for name, changed in alterations.items():
            distances = distance(changed, pictures)
            found = distances.argmin(1) == torch.arange(len(pictures))
            copies = distances.diagonal() < limits
            rows.append((name, rule, float(found.float().mean()), float(copies.float().mean())))
    return pd.DataFrame(rows, columns=["alteration", "rule", "found", "copies"])


if __name__ == "__main__":
    with reporting_errors("picture_control"), timed_stage("picture_control"):
        make_control(**read_section("picture_control"))
