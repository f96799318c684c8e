"""Stage `control`: what a training draws for the prompts whose picture is planted in the other one.

`python -m memlib.study.draw_control TRAINING` writes `tables/control/TRAINING.parquet`, a row a sample as
`memlib.truth.classifier.sample_table` gives them. The model knows the words of these prompts and has never seen the pictures, so
the samples say how near one comes by chance: by them `memlib.study.judging` calls other samples copies.
"""

import sys

import pandas as pd

from memlib.datasets.roles import FREE, in_role, role_of
from memlib.fields.load import load_field
from memlib.files import write_table
from memlib.sampling.pipeline import generate, shared_noise
from memlib.study.judging import measure
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage


def draw_control(training: str, generations: int, sampling_steps: int, guidance: float, seed: int) -> None:
    """Write the table of a training, from the parameters of the section `control`."""
    prompts = in_role(pd.read_parquet("tables/drawings/prompts.parquet"), role_of(training))
    free = prompts[prompts["group"] == FREE]
    field = load_field(f"results/text/{training}")
    noise = shared_noise(field.shape, generations, seed)
    samples = generate(field.pipe, free["prompt"].tolist(), noise, sampling_steps, guidance)
    write_table(f"tables/control/{training}.parquet", measure(samples, free))


if __name__ == "__main__":
    with reporting_errors("control"), timed_stage("control"):
        draw_control(sys.argv[1], **read_section("control"))
