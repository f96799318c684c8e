"""Scores of several detectors by their kind and noise level."""

from collections.abc import Mapping

import pandas as pd

from memlib.tables import read_detectors


def by_kind(paths: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores, a column for each (detector with its p, noise level), and what is known of each column.

    paths: the table of each detector, under tables/scores and without its suffix. Of readings, whole growths and all draws
    are kept.
    """
    scores, about = read_detectors({name: f"tables/scores/{path}.parquet" for name, path in paths.items()})
    for name in ("p", "rate_at", "sigma_min", "draws"):
        about[name] = about.get(name)
    kept = about["rate_at"].isna() & ~(about["draws"] < about["draws"].max())
    about = about[kept].assign(sigma=about["sigma"].fillna(about["sigma_min"]))
    detector = about.index.get_level_values("detector")
    power = about["p"].map(", p = {:g}".format).where(about["p"].notna(), "")
    columns = pd.MultiIndex.from_arrays([detector + power, about["sigma"]])
    about = about.assign(detector=detector, kind=detector + power)
    return scores[kept[kept].index].set_axis(columns, axis=1), about.set_axis(columns)
