"""The book's first page in what a run can change: the answer, the scale, and the findings, made of metrics and tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from memlib.files import read_json, read_pictures
from memlib.study.claims import said
from memlib.study.criteria import read_claims
from memlib.study.findings import answers, counts
from memlib.study.provenance import kind
from memlib.study.stages import STUDY

TRAININGS = (
    "train",
    "pair",
    "retrain",
    "autoencoder",
    "text_base",
    "text_arm",
    "flow_base",
    "flow_arm",
    "template_arm",
    "fine_tuning",
)
PICKED = (  # a claim of each paper, and the three uses
    "volume.trained_above_unseen",
    "p_laplace.memorised_images",
    "text.first_step_detects",
    "audit.tells_a_collection",
    "guard.first_step_stops_copies",
    "monitor.named_before_copied",
)


def answer(rows: Sequence[Mapping[str, Any]], bench: Mapping[str, Any]) -> str:
    """The answer to the book's question, counted from the claims of the papers and the bench.

    rows: of metrics/claims.json; bench: metrics/bench.json.
    """
    claims = read_claims()
    kept = Counter(row["holm_verdict"] for row in rows if claims[row["id"]].paper and row["verdict"] != "open")
    undecided = kept["inconclusive"] + kept["underpowered"]
    ahead = counts(bench["for_a_budget"])
    return (
        f"**Of {kept.total()} claims of the papers, {_none(kept['reproduced'])} hold here after correction for their number, "
        f"{_none(kept['not reproduced'])} fail, and {_none(undecided)} stay undecided on models this small. For the same number "
        f"of network evaluations, a detector chosen on other items beats the plain loss or text magnitude in "
        f"{_none(ahead['ahead'])} of {ahead.total()} comparisons.**"
    )


def _none(count: int) -> str:
    return str(count or "none")


def findings(rows: Sequence[Mapping[str, Any]], bench: Mapping[str, Any]) -> list[str]:
    """Sentences of MyST, each with its numbers, the plain baseline's and the page that shows it; arguments as for `answer`."""
    claims, judged = read_claims(), {row["id"]: row for row in rows if row["verdict"] != "open"}
    return [
        *(f"{sentence} ({{doc}}`chapters/bench`)" for sentence in answers(bench["answers"])),
        *(
            f"{said(claims[name], judged[name])} ({{doc}}`{claims[name].page.removesuffix('.ipynb')}`)"
            for name in PICKED
            if name in judged
        ),
    ]


def scale() -> str:
    """The size of everything in one line, from the tables of the trainings and of their pictures, and what it took."""
    image, text = (read_json(f"tables/{name}/model.json") for name in ("training/main", "text_base"))
    pictures = pd.read_parquet("tables/data/items.parquet")
    drawings = pd.read_parquet("tables/drawings/groups.parquet").query("split == 'train'")
    pixels = {name: read_pictures(f"tables/{name}/pictures.png").shape[1] for name in ("data", "drawings")}
    return (
        f"**Scale**: image models of {image['parameters'] / 1e6:.1f} million parameters, trained on "
        f"{(pictures['split'] == 'train').sum():,} pictures of {pixels['data']} x {pixels['data']} pixels; text-to-image "
        f"models of {sum(text['parameters'].values()) / 1e6:.1f} million, trained on {drawings['drawings'].sum():,} captioned "
        f"drawings of {pixels['drawings']} x {pixels['drawings']}{_took()}."
    )


def _took() -> str:
    """How many trainings the whole study holds and how long it takes, where a run has said so."""
    if not STUDY.exists():
        return ""
    measured = read_json(STUDY)
    trainings = sum(kind(name) in TRAININGS for name in measured["seconds"])
    minutes, machine = (measured["wall_seconds"] or measured["total_seconds"]) / 60, measured["machine"]
    device = " and ".join(machine["gpus"]) or f"{machine['cores']} cores"
    return f"; {trainings} trainings, {minutes:.0f} minutes on {device}"
