"""The book's first page in what a run can change: the answer, the scale, and the findings, made of metrics and tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from memlib.evaluation.claims import estimate_in
from memlib.files import read_json, read_pictures
from memlib.study.claims import FOUND, said
from memlib.study.criteria import read_claims
from memlib.study.findings import answers, counts, wins
from memlib.study.provenance import kind
from memlib.study.stages import STUDY

BENCH = Path("metrics/bench.json")
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
PICKED = (  # a claim of each of the three papers, and one of this study's own
    "volume.trained_above_unseen",
    "p_laplace.memorised_images",
    "text.first_step_detects",
    "monitor.named_before_copied",
)

USES = """\
- **Which pictures or prompts has it memorised?** `memlib audit MODEL --images FOLDER --null-images OTHERS` ranks them and, from \
items that are known to be outside its training, states the expected share of false discoveries \
({{doc}}`chapters/audit`). `MODEL` is the folder or hub name of a diffusers pipeline: unconditional, or \
text-to-image with a U-Net or a transformer. Here, at a nominal \
rate of 10 % false discoveries, {pictures}, and {prompts}, both less what it finds in the control.
- **Stop copies while it samples**: `guard = memlib.mitigation.guard.calibrate(pipe, ordinary_prompts)`, then `with \
guard.on(pipe):` ({{doc}}`chapters/guard`). Here, at 1 % of false alarms, {guard}.
- **Watch a fine-tuning**: a monitor in the training loop says when the model begins to tell its pictures apart \
({{doc}}`chapters/monitor`). Here it named {monitor} no later than the first copy; to be named is not \
to be copied.
- **A million pictures**: {{doc}}`scale` has the cost an item, on one machine or many.
"""


def parts() -> dict[str, str]:
    """What the first page includes, by name, as MyST, from the results that are there."""
    rows, bench = read_json(FOUND), read_json(BENCH)
    return {
        "answer": f"{answer(rows, bench)}\n\n{scale()}\n",
        "figure": f"{figure(bench)}\n",
        "findings": "".join(f"- {sentence}\n" for sentence in findings(rows, bench)),
        "uses": uses(rows),
    }


def answer(rows: Sequence[Mapping[str, Any]], bench: Mapping[str, Any]) -> str:
    """The answer to the book's question, counted from the claims of the papers and the bench.

    rows: of metrics/claims.json; bench: metrics/bench.json.
    """
    claims = read_claims()
    papers = [row for row in rows if claims[row["id"]].paper and row["verdict"] != "open"]
    stated, variants = (
        Counter(row["holm_verdict"] for row in papers if claims[row["id"]].variant == variant)
        for variant in (False, True)
    )
    undecided = stated["inconclusive"] + stated["underpowered"]
    ahead = counts(bench["for_a_budget"])
    return (
        f"**Of {stated.total()} claims as the papers state them, {_none(stated['reproduced'])} hold here after correction for "
        f"their number, {_none(stated['not reproduced'])} fail, and {_none(undecided)} stay undecided on models this small; of "
        f"{variants.total()} variants asked here, {_none(variants['reproduced'])} hold. For the same number of network "
        f"evaluations, a detector chosen on other items beats the plain loss or text magnitude in {_none(ahead['ahead'])} of "
        f"{ahead.total()} comparisons, without correction for their number.**"
    )


def figure(bench: Mapping[str, Any]) -> str:
    """The figure of the bench as MyST, its caption with what it shows."""
    rows = bench["for_a_budget"]
    found, won = counts(rows), wins(rows)
    return "\n".join(
        [
            "```{figure} _static/bench.png",
            ":alt: Dots with intervals, AUROC of the detector chosen for each budget of network evaluations beside that of the "
            "plain baseline, by question.",
            ":width: 100%",
            "",
            f"What is chosen for a budget of network evaluations beats the plain loss or magnitude in {found['ahead']} of "
            f"{found.total()} comparisons{': ' if won else ''}{'; '.join(won)}. It is worse in {found['behind']}, and "
            f"is the plain one itself in {found['same']}; here the three main questions. Chosen on one half of the "
            "items, judged on the other ({doc}`chapters/bench`).",
            "```",
        ]
    )


def uses(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to do with a model of one's own, as MyST, each with what it reached where the truth is known."""
    found = {row["id"]: row for row in rows if row["verdict"] != "open"}

    def reached(said: str, name: str) -> str:
        row = found.get(name)
        if row is None:
            return "not judged in this study"
        estimate = estimate_in(row)
        return said.format(estimate) + (" (too few to rely on)" if estimate.high < 0.5 else "")

    measured = {
        "pictures": reached(
            "it found {:+} of the pictures that were seen ten times an epoch or more", "audit.finds_planted_pictures"
        ),
        "prompts": reached("{:+} of the planted prompts", "audit.finds_memorised_prompts"),
        "guard": reached("it stopped {} of the copies", "guard.first_step_stops_copies"),
        "monitor": reached("{} of the pictures that came to be copied", "monitor.named_before_copied"),
    }
    return USES.format(**measured)


def _none(count: int) -> str:
    return str(count or "none")


def findings(rows: Sequence[Mapping[str, Any]], bench: Mapping[str, Any]) -> list[str]:
    """Sentences of MyST, each with its numbers, the plain baseline's and the page that shows it; arguments as for `answer`."""
    claims, judged = read_claims(), {row["id"]: row for row in rows if row["verdict"] != "open"}
    return [
        *(f"{sentence} ({{doc}}`chapters/bench`)" for sentence in answers(bench["answers"], bench["second_model"])),
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
