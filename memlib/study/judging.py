"""Samples of prompts judged by the study's own classifier and against the drawings of its text-to-image models."""

from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlib.datasets import images
from memlib.datasets.drawings import LOOK
from memlib.datasets.items import read_samples
from memlib.datasets.roles import ROLES
from memlib.tensors import to_float
from memlib.training.classifier import classes_of
from memlib.truth.classifier import load_judge, sample_table
from memlib.truth.copies import picture_thresholds, with_copies


@cache
def pictures_of(kind: str) -> tuple[Tensor, list[int]]:
    """What the autoencoder gives back of drawings, uint8 [M, 3, H, W], and their rows among all drawings.

    kind: `training`, those that a model may have been trained on, in which the column `own` of the judged prompts counts; or
    `unseen`, those of looks that no model has seen.
    """
    samples, rows = read_samples(f"results/samples/{kind}.safetensors")
    return samples[:, 0], [int(row) for row in rows]


@cache
def thresholds(controls: tuple[str, str] = ROLES) -> pd.Series:
    """The distance below which a sample copies a planted picture, by the picture's `row`, from the samples of both controls."""
    prompts = pd.read_parquet("tables/drawings/prompts.parquet").set_index("id")
    drawn = [pd.read_parquet(f"tables/control/{control}.parquet") for control in controls]
    return pd.concat(picture_thresholds(control, prompts) for control in drawn)


def judge(samples: Tensor, prompts: pd.DataFrame, controls: tuple[str, str] = ROLES) -> pd.DataFrame:
    """What `measure` gives, and which samples copy the picture of their prompt, by `memlib.truth.copies.with_copies`.

    controls: the two trainings in exchanged roles of the family of models that has drawn the samples.
    """
    return with_copies(measure(samples, prompts), prompts.set_index("id"), thresholds(controls))


def measure(samples: Tensor, prompts: pd.DataFrame) -> pd.DataFrame:
    """A row a sample [N, n, 3, H, W] in [-1, 1] of N judged prompts, as `memlib.truth.classifier.sample_table` gives them."""
    (trained, rows), (unseen, others) = pictures_of("training"), pictures_of("unseen")
    items = images.load("results/drawings/drawn").items.iloc[[*rows, *others]]
    asked, shown = (table[LOOK].astype(str).agg(" ".join, axis=1).to_numpy() for table in (prompts, items))
    same = (asked[:, None] == shown) & (items["slot"].to_numpy() < 0)
    frozen = prompts["row"].to_numpy()[:, None] == items.index.to_numpy()
    own = np.where(prompts["row"].to_numpy()[:, None] >= 0, frozen, same)
    return sample_table(
        load_judge("results/judge.safetensors", trained.shape[-1]),
        samples,
        prompts,
        classes_of(prompts),
        torch.from_numpy(own),
        to_float(torch.cat([trained, unseen])),
        torch.arange(len(items)) < len(rows),
    )
