"""Stage `truth`: what a model reproduces, by its samples: `python -m memlib.study.draw_samples KEY [MODEL IMAGES]`."""

import argparse
from pathlib import Path

import pandas as pd
import torch

from memlib.datasets import images as image_sets
from memlib.datasets.items import read_samples, write_samples
from memlib.detectors.denoising import denoising_loss
from memlib.fields.load import load_field
from memlib.files import write_pictures, write_table
from memlib.sampling.pictures import sampled
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tensors import item_seeds, to_float
from memlib.truth.embedding import load_embedding
from memlib.truth.outcomes import borderline, clearest, reproduced
from memlib.truth.verdicts import judge_samples

CONTROL = Path("results/picture_control")  # what samples are judged by, of the stage of this name
SHOWN = 64  # samples that a chapter can show
EXAMPLES = 8  # of copies and of the hardest cases of the criterion
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

    The samples are compared with the pictures of the split and with those held out. matches.parquet: a row a sample of
    `memlib.truth.verdicts.judge_samples`. pictures.parquet: id and copies of each picture, how many samples copy it and whether
    it is `reproduced`, and how near samples come to it. pictures.png: the first samples. examples.png: the clearest copies and
    then the borderline cases, as `memlib.truth.outcomes` names them. quality.parquet: the denoising loss of every held-out
    picture. A seed starts every model from the same noise.
    """
    field = load_field(model)
    image_set = image_sets.load(images)
    heldout = image_set.split("heldout")
    judged = image_set.rows(image_set.items["split"].isin([split, "heldout"]).to_numpy().nonzero()[0])
    seen = torch.tensor((judged.items["split"] == split).tolist())
    made = sampled(field, samples, steps, sampler, seed)
    control = to_float(read_samples(CONTROL / "samples.safetensors")[0][:, 0])
    strangers = image_sets.load(CONTROL / "pictures").floats
    network = load_embedding(CONTROL / "embedding.safetensors", *image_set.images.shape[1:3])
    matches, similarity = judge_samples(
        to_float(made), control, strangers, judged.floats, judged.items["id"], seen, network, mirrored
    )
    losses = denoising_loss(
        field, heldout.floats.to(field.device), LOSS_SIGMA, LOSS_DRAWS, item_seeds(heldout.items["id"], seed)
    )
    output = Path("tables/truth") / key
    write_samples(f"results/samples/{key}.safetensors", made[:, None], [f"{number:04d}" for number in range(samples)])
    write_table(output / "matches.parquet", matches)
    pictures = judged.items.set_index("id")[["copies"]].join([reproduced(matches, similarity.index), similarity])
    write_table(output / "pictures.parquet", pictures.reset_index())
    write_table(output / "quality.parquet", pd.DataFrame({"item": heldout.items["id"], "loss": losses.mean(0).cpu()}))
    write_pictures(output / "pictures.png", made[:SHOWN])
    write_pictures(output / "examples.png", made[[*clearest(matches, EXAMPLES), *borderline(matches, EXAMPLES)]])


def main() -> None:
    """Draw and judge samples by an entry of the section `truth`, or of a model with the settings of `pair_truth`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "key", help="name of the tables: an entry of `truth`, or of a training on pictures in exchanged roles"
    )
    parser.add_argument("model", nargs="?", help="folder of the pipeline, where the key is no entry of `truth`")
    parser.add_argument("images", nargs="?", help="folder of the image set whose pictures are looked for")
    arguments = parser.parse_args()
    with reporting_errors("truth"), timed_stage("truth"):
        if arguments.model is None:
            draw_samples(arguments.key, **read_section("truth")[arguments.key])
        else:
            places = {"model": arguments.model, "images": arguments.images, "split": "train"}
            draw_samples(arguments.key, **places, **read_section("pair_truth"))


if __name__ == "__main__":
    main()
