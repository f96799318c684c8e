"""Score tables as chapters read them: the right column by its setting, and tables side by side."""

from pathlib import Path

import pandas as pd
import pytest

from memlib.files import write_table
from memlib.tables import read_detectors, read_kinds, read_score


def write_scores(path: Path, settings: dict[str, tuple[float, float]], evaluations: int) -> Path:
    """A table of two items, written in another order than they are read."""
    rows = [
        {"item": item, "setting": setting, "score": score, "evaluations": evaluations + number, "note": ""}
        for number, (setting, scores) in enumerate(settings.items())
        for item, score in zip("ba", scores, strict=True)
    ]
    write_table(path, pd.DataFrame(rows))
    return path


def test_a_score_is_found_by_the_values_of_its_setting(tmp_path: Path) -> None:
    settings = {
        "sigma_min=0.02 steps=2": (1.0, 2.0),
        "rate_at=0.02 sigma_min=0.02 steps=2": (3.0, 4.0),
        "rate_at=10 sigma_min=0.02 steps=2": (5.0, 6.0),
    }
    path = write_scores(tmp_path / "growth.parquet", settings, 1)
    assert read_score(path, rate_at=None).to_dict() == {"a": 2.0, "b": 1.0}
    assert read_score(path, rate_at=10, steps=2).to_dict() == {"a": 6.0, "b": 5.0}
    with pytest.raises(
        ValueError, match=r"growth.parquet has 3 settings with \{'steps': 2\}; one is needed; known: rate"
    ):
        read_score(path, steps=2)
    with pytest.raises(ValueError, match="has 0 settings with {'sigma': None, 'rate_at': 3}"):
        read_score(path, sigma=None, rate_at=3)


def test_tables_stand_side_by_side_with_what_each_column_is(tmp_path: Path) -> None:
    loss = write_scores(
        tmp_path / "loss.parquet", {"draws=2 sigma=0.2": (1.0, 2.0), "draws=1 sigma=0.2": (3.0, 4.0)}, 5
    )
    edges = write_scores(tmp_path / "edges.parquet", {"axes=1 sigma=0.2": (7.0, 8.0)}, 9)
    scores, settings = read_detectors({"denoising loss": loss, "edges": edges})
    assert list(scores.index) == ["a", "b"]
    assert scores["denoising loss", "draws=1 sigma=0.2"].tolist() == [4.0, 3.0]
    assert settings.index.equals(scores.columns)
    assert settings.loc[("edges", "axes=1 sigma=0.2"), ["evaluations", "axes", "sigma"]].tolist() == [9, 1, 0.2]
    assert settings["evaluations"].to_dict() == {
        ("denoising loss", "draws=1 sigma=0.2"): 6,
        ("denoising loss", "draws=2 sigma=0.2"): 5,
        ("edges", "axes=1 sigma=0.2"): 9,
    }
    assert settings["draws"].isna().tolist() == [False, False, True]


def test_kinds_are_detectors_with_their_p_at_their_noise_levels(tmp_path: Path) -> None:
    settings = {
        "flux": ["directions=8 p=1 sigma=0.2", "directions=8 p=1 sigma=0.4", "directions=8 p=1.5 sigma=0.2"],
        "loss": ["draws=1 sigma=0.2", "draws=16 sigma=0.2"],
        "growth": ["sigma_min=0.4 steps=2", "rate_at=0.4 sigma_min=0.4 steps=2"],
    }
    paths = {
        name: write_scores(tmp_path / f"{name}.parquet", {name: (i, -i) for i, name in enumerate(names)}, 1)
        for name, names in settings.items()
    }
    scores, about = read_kinds(paths)
    assert {column: values.tolist() for column, values in scores.items()} == {
        ("flux, p = 1", 0.2): [0, 0],
        ("flux, p = 1", 0.4): [-1, 1],
        ("flux, p = 1.5", 0.2): [-2, 2],
        ("loss", 0.2): [-1, 1],
        ("growth", 0.4): [0, 0],
    }
    assert about.index.equals(scores.columns)
    assert about["detector"].tolist() == ["flux", "flux", "flux", "loss", "growth"]
    assert about.loc[("loss", 0.2), ["kind", "sigma", "evaluations"]].tolist() == ["loss", 0.2, 2]
    assert about["p"].fillna(0).tolist() == [1, 1, 1.5, 0, 0]
