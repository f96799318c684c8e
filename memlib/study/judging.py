"""Samples of prompts judged by the study's own classifier and against all pictures that its text-to-image models have seen."""

from functools import cache

import pandas as pd
import torch
from torch import Tensor

from memlib.datasets import images
from memlib.datasets.items import read_samples
from memlib.tensors import to_float
from memlib.truth.classifier import load_judge, sample_table, subject_classes


@cache
def training_pictures() -> tuple[Tensor, list[int]]:
    """What the autoencoder gives back of the drawings trained on, uint8 [M, 3, H, W], and their rows among all drawings.

    The column `own` of the judged prompts counts in them.
    """
    samples, rows = read_samples("results/samples/training.safetensors")
    return samples[:, 0], [int(row) for row in rows]


def judge(samples: Tensor, prompts: pd.DataFrame) -> pd.DataFrame:
    """A row a sample [N, n, 3, H, W] in [-1, 1] of N judged prompts, as `memlib.truth.classifier.sample_table` gives them."""
    pictures, rows = training_pictures()
    subjects = images.load("results/drawings/subjects").items
    drawn = images.load("results/drawings/drawn").items
    return sample_table(
        load_judge("results/judge.safetensors", pictures.shape[-1]),
        samples,
        prompts,
        subject_classes(subjects["split"]),
        to_float(pictures),
        torch.tensor(drawn["subject"].to_numpy()[rows]),
    )
