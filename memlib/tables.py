"""Score tables, as they are written and read: without torch, since what judges and draws needs only them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

KEY = b"memlib"  # of the table's metadata
SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("setting", pa.string()),
        ("score", pa.float32()),
        ("evaluations", pa.int32()),
        ("note", pa.string()),
    ]
)


def setting_name(setting: Mapping[str, Any]) -> str:
    """A setting in words: `key=value` pairs, sorted by key."""
    return " ".join(f"{key}={_plain(value)}" for key, value in sorted(setting.items()))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def parse_setting(name: str) -> dict[str, Any]:
    """The setting that `setting_name` has put in words, numbers as numbers."""

    def value(text: str) -> Any:
        try:
            return json.loads(text.lower() if text in ("True", "False") else text)
        except json.JSONDecodeError:
            return float(text) if text == "inf" else text  # the first noise level of a flow

    return {key: value(text) for key, _, text in (pair.partition("=") for pair in name.split())}


def read_scores(path: str | Path) -> pd.DataFrame:
    """A score table in wide form: a row an item, a column a setting."""
    return pd.read_parquet(path).pivot(index="item", columns="setting", values="score")


def read_score(path: str | Path, **setting: Any) -> pd.Series:
    """The one column of a score table whose setting has these values, by item; None stands for a name that it does not have.

    Raises ValueError, with the settings that there are, unless there is exactly one.
    """
    scores = read_scores(path)
    found = [name for name in scores if setting.items() <= (dict.fromkeys(setting) | parse_setting(name)).items()]
    if len(found) != 1:
        raise ValueError(
            f"{path} has {len(found)} settings with {setting}; one is needed; known: {', '.join(scores.columns)}"
        )
    return scores[found[0]]


def read_detectors(paths: Mapping[str, str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score tables side by side, and what each of their columns is; paths: the tables by the names of their detectors.

    The first has a row an item and a column (detector, setting); the second a row for each of these columns, with its
    `evaluations` and every key of the settings (nan where a setting does not have it).
    """
    scores = pd.concat({name: read_scores(path) for name, path in paths.items()}, axis=1, names=["detector", "setting"])
    costs = {name: read_evaluations(path) for name, path in paths.items()}
    about = [{"evaluations": costs[name][setting]} | parse_setting(setting) for name, setting in scores.columns]
    return scores, pd.DataFrame(about, scores.columns)


def read_kinds(paths: Mapping[str, str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score tables side by side by kind, a detector with its p, and noise level, the first one of a growth.

    The first has a row an item and a column (kind, sigma); the second a row for each of these columns, with `detector`,
    `kind`, `p` (nan where there is none), `sigma` and `evaluations`. Only the most draws of a loss are kept, and no rates
    at single levels of a growth.
    """
    scores, about = read_detectors(paths)
    about = about.reindex(columns=["sigma", "sigma_min", "p", "draws", "rate_at", "evaluations"])
    most = about.groupby("detector")["draws"].transform("max")
    about = about[about["rate_at"].isna() & ~(about["draws"] < most)]
    detector = about.index.get_level_values("detector")
    kind = detector + about["p"].map(", p = {:g}".format).where(about["p"].notna(), "")
    sigma = about["sigma"].fillna(about["sigma_min"])
    columns = pd.MultiIndex.from_arrays([kind, sigma], names=[None, None])
    found = about.assign(detector=detector, kind=kind, sigma=sigma)[["detector", "kind", "p", "sigma", "evaluations"]]
    return scores[about.index].set_axis(columns, axis=1), found.set_axis(columns)


def read_evaluations(path: str | Path) -> dict[str, int]:
    """Network evaluations an item, by setting."""
    table = pd.read_parquet(path, columns=["setting", "evaluations"])
    return {name: int(value) for name, value in table.groupby("setting")["evaluations"].max().items()}
