"""Stage `picture_control`: what samples are judged by.

Writes to results/picture_control: `samples.safetensors`, samples of the reference model, which saw none of the pictures that
copies are looked for among; `pictures`, the image set that it was trained on instead; `embedding.safetensors`, an embedding
that forgives blur, shift and mirror, trained on these pictures. For the chapters tables/picture_control/rules.parquet, what
each rule says of held-out pictures that were altered in a known way, and of other pictures, which are no copies (`validated`).
"""

from pathlib import Path

import numpy as np
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
from memlib.truth.calibration import pixel_distance
from memlib.truth.embedding import NOISE, SHIFT, altered, blurred, build_embedding
from memlib.truth.outcomes import RULES, is_copy, original
from memlib.truth.verdicts import judge_samples

MODEL = "results/models/reference"
CONTROL = Path("results/picture_control")


def make_control(samples: int, steps: int, sampler: str, seed: int) -> None:
    """Draw the samples and train the embedding, from the parameters of the sections `picture_control` and `embedding`."""
    image_set = images.load("results/data")
    config = EmbeddingConfig(**read_section("embedding"))
    training = image_set.split("reference")
    drawn = sampled(load_field(MODEL), samples, steps, sampler, seed)
    checkpoint = Path("results/checkpoints/embedding.pt")
    torch.manual_seed(config.seed)
    network = build_embedding(*training.images.shape[1:3])
    train_embedding(network, training.images, config, checkpoint)
    write_samples(CONTROL / "samples.safetensors", drawn[:, None], [f"{number:04d}" for number in range(samples)])
    images.save(training, CONTROL / "pictures")
    with atomic_write(CONTROL / "embedding.safetensors") as temporary:
        save_file(network.state_dict(), temporary)
    checkpoint.unlink(missing_ok=True)
    others = image_set.items["split"].isin(["train", "pairs"]).to_numpy().nonzero()[0]
    kinds = image_set.split("heldout").floats, to_float(drawn), training.floats, image_set.rows(others).floats
    write_table(Path("tables/picture_control/rules.parquet"), validated(network, *kinds, seed))


@torch.no_grad()
def validated(
    network: nn.Module, pictures: Tensor, control: Tensor, strangers: Tensor, others: Tensor, seed: int
) -> pd.DataFrame:
    """What the rules say of altered pictures and of others that are no copies, all [..., C, H, W] in [-1, 1].

    control and strangers calibrate the rules, as in `judge_samples`; the others do not. A row an alteration and rule:
    `copies`, the share that counts as a copy of the original, or of any picture where there is none. Beside `RULES`, *samples
    alone* is the calibrated rule without the strangers, and *samples alone, embedding agrees* what both take for a copy of one
    picture.
    """
    [generator] = generators([seed])
    changed = {
        "a little noise": pictures + NOISE * torch.randn(pictures.shape, generator=generator),
        "blurred by half a pixel": blurred(pictures, torch.full((len(pictures),), 0.5)),
        "blurred by a pixel": blurred(pictures, torch.full((len(pictures),), 1.0)),
        "shifted": torch.roll(pictures, max(1, pictures.shape[-1] // SHIFT), -1),
        "mirrored": pictures.flip(-1),
        "all of these at random": altered(pictures, generator),
        "any other picture": others,
        "the most similar other picture": others[pixel_distance(pictures, others).argmin(1)],
    }
    ids, seen = [str(row) for row in range(len(pictures))], torch.ones(len(pictures), dtype=torch.bool)
    found, alone = (
        judge_samples(torch.cat([*changed.values()]), control, more, pictures, ids, seen, network)[0]
        for more in (strangers, control)
    )
    named = pd.DataFrame({rule: original(found, rule).where(is_copy(found, rule)) for rule in RULES})
    named["samples alone"] = original(alone).where(is_copy(alone))
    agreed = named["samples alone"] == named["embedding"]
    named["samples alone, embedding agrees"] = named["samples alone"].where(agreed)
    whose = np.repeat([*changed], [len(part) for part in changed.values()])
    shares = {
        name: part.notna().mean() if name.endswith("other picture") else part.eq(ids, axis=0).mean()
        for name, part in named.groupby(whose, sort=False)
    }
    table = pd.DataFrame(shares).rename_axis("rule").reset_index()
    return table.melt("rule", var_name="alteration", value_name="copies")[["alteration", "rule", "copies"]]


if __name__ == "__main__":
    with reporting_errors("picture_control"), timed_stage("picture_control"):
        make_control(**read_section("picture_control"))
