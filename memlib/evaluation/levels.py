"""Detectors over the noise levels of score tables: beside one another at one level, and AUROC from data to noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from memlib.evaluation.bench import Case
from memlib.evaluation.intervals import spearman_value
from memlib.evaluation.measured import Measured
from memlib.evaluation.measures import auroc
from memlib.tables import parse_setting

Reading = tuple[str, dict[str, Any]]  # a detector, and what its setting must say
ONE_FIELD: dict[str, Reading] = {  # the readings of pictures that one formula ties together, at one noise level
    "loss": ("loss", {}),
    "length": ("length", {}),
    "FLIPD": ("flipd", {"quantity": "flipd"}),
    "growth rate": ("rate", {}),
    "p = 2 by flux": ("flux", {"p": 2}),
    "p = 1 by flux": ("flux", {"p": 1}),
    "p = 1 at the picture": ("derivatives", {"p": 1}),
}


def place_on_path(sigma: float) -> float:
    """t = sigma / (1 + sigma): 0 at the data, 1 at pure noise, the time of a rectified flow x_t = (1 - t) x0 + t n."""
    return sigma / (1 + sigma)


def dearest(about: pd.DataFrame, detector: str, **wanted: Any) -> tuple[str, str] | None:
    """Of a detector's columns whose settings have these values, the one of the most evaluations; None where there is none.

    about: a row for each column (detector, setting), with its `evaluations`. None stands for a name that a setting
    does not have.
    """
    found = [
        name
        for name in about.index
        if name[0] == detector and wanted.items() <= (dict.fromkeys(wanted) | parse_setting(name[1])).items()
    ]
    return max(found, key=lambda name: about.loc[name, "evaluations"], default=None)


def levels_of(about: pd.DataFrame, detector: str) -> list[float]:
    """The noise levels that a detector was asked at, rising."""
    found = {parse_setting(name).get("sigma") for asked, name in about.index if asked == detector}
    return sorted(found - {None})


def at_level(
    scores: pd.DataFrame, about: pd.DataFrame, sigma: float, readings: Mapping[str, Reading] = ONE_FIELD
) -> pd.DataFrame:
    """The readings that there are at a noise level, by their names: a row an item."""
    columns = {name: dearest(about, detector, sigma=sigma, **said) for name, (detector, said) in readings.items()}
    return pd.DataFrame({name: scores[column] for name, column in columns.items() if column is not None})


def one_field(
    scores: pd.DataFrame, about: pd.DataFrame, sigma: float, magnitude: pd.Series | None = None
) -> pd.DataFrame:
    """`at_level`, the growth over all levels, and the magnitude of an item's own prompt, by item, nan where none was asked."""
    found = at_level(scores, about, sigma)
    found["growth"] = scores[dearest(about, "growth", rate_at=None)]
    if magnitude is not None:
        found["magnitude"] = magnitude.reindex(scores.index)
    return found


def common_level(about: pd.DataFrame, readings: Mapping[str, Reading] = ONE_FIELD) -> float:
    """The noise level at which the most of the readings were taken, of several the one nearest to the middle of the path."""
    detectors = {detector for detector, _ in readings.values()}
    asked = [level for detector in detectors for level in levels_of(about, detector)]
    return min(set(asked), key=lambda level: (-asked.count(level), abs(place_on_path(level) - 0.5)))


def mean_correlations(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Spearman's rank correlation of each two columns, over the rows that have both; the mean over tables."""
    names = tables[0].columns
    parts = [[[_of_both(table, a, b) for b in names] for a in names] for table in tables]
    return pd.DataFrame(np.mean(parts, axis=0), names, names)


def along_path(case: Case, detectors: Sequence[str], seed: int = 0) -> dict[float, Measured]:
    """AUROC of one score at each of its noise levels, over all items of a case, since none is chosen.

    detectors: names of the same score, whose levels are put together. All levels have the same resamples.
    """
    columns = {
        level: dearest(case.about, detector, sigma=level)
        for detector in detectors
        for level in levels_of(case.about, detector)
    }
    rows = case.rows
    return {
        level: auroc(case.columns[columns[level]], rows["positive"], rows["item"], rows["training"], seed)
        for level in sorted(columns)
    }


def share_best(found: Mapping[float, Measured]) -> pd.Series:
    """How often each level has the highest AUROC when items are drawn again: shares that sum to 1, by level."""
    resampled = np.stack([measured.resampled for measured in found.values()])
    resampled = resampled[:, np.isfinite(resampled).all(0)]
    best = resampled == resampled.max(0)
    return pd.Series((best / best.sum(0)).mean(1), list(found))


def _of_both(table: pd.DataFrame, a: str, b: str) -> float:
    both = table[a].notna() & table[b].notna()
    return spearman_value(table.loc[both, a], table.loc[both, b])
