"""Stage `drawings`: captioned drawings with planted copies, and the prompts and pictures that detectors are judged by.

Writes to `results/drawings` the image sets `subjects`, `drawn` and `judged` and, for an audit, the prompt files
`suspected.txt` and `ordinary.jsonl`. For the chapters `tables/drawings`: `prompts.parquet` (what `judged_prompts` gives),
`shown.parquet` (row in `drawn`, subject, split, copies, trigger, caption) and `pictures.png` with the same drawings (all of a
few ordinary subjects, and the one that goes with each judged prompt), `followed.parquet` (those of the judged
prompts whose whole sampling is followed), `judged.parquet` (the items of `judged`), `groups.parquet` (split, copies, drawings,
subjects) and `summary.json` (its `new_words`: the share of the judged unseen prompts with a word that no training caption has).
"""

import json
from pathlib import Path

import pandas as pd

from memlib.datasets import drawings, images
from memlib.datasets.sources import load_pictures
from memlib.files import atomic_write, write_json, write_pictures, write_table
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage

SHOWN_SUBJECTS = 4  # ordinary subjects all of whose drawings a chapter shows
RESULTS, TABLES = Path("results/drawings"), Path("tables/drawings")


def make_drawings(
    name: str,
    root: str,
    size: int,
    min_distance: float,
    subjects: dict[str, int],
    copies: dict[int, int],
    triggers: dict[int, int],
    drawings_each: int,
    prompts: dict[str, int],
    pictures: dict[str, int],
    followed: dict[str, int],
    seed: int,
) -> None:
    """Write the drawings and their tables, from the parameters of the section `drawings`."""
    loaded, names, captions = load_pictures(name, size, root)
    kept = images.distinct(loaded, min_distance)
    chosen = [names[i] for i in kept], [captions[i] for i in kept]
    subject_set = images.plant(loaded[kept], *chosen, subjects, {"train": {}, "planted": copies}, seed)
    drawn = drawings.captioned(subject_set, drawings_each, triggers, seed)
    judged = drawings.judged_prompts(subject_set, drawn, **prompts)
    images.save(subject_set, RESULTS / "subjects")
    images.save(drawn, RESULTS / "drawn")
    judged_pictures = drawings.judged_pictures(drawn, **pictures)
    images.save(judged_pictures, RESULTS / "judged")
    _write_prompt_files(judged)
    items = drawn.items
    write_table(TABLES / "prompts.parquet", judged)
    write_table(TABLES / "judged.parquet", judged_pictures.items)
    limits = {"planted": len(judged), "trigger": len(judged)} | followed
    place = judged.groupby("group").cumcount()
    write_table(TABLES / "followed.parquet", judged[place < judged["group"].map(limits).fillna(0)])
    shown = _shown_rows(items, judged)
    columns = ["subject", "split", "copies", "trigger", "caption"]
    write_table(TABLES / "shown.parquet", items.loc[shown, columns].reset_index(names="row"))
    write_pictures(TABLES / "pictures.png", drawn.images[shown])
    groups = items.groupby(["split", "copies"]).agg(drawings=("subject", "size"), subjects=("subject", "nunique"))
    write_table(TABLES / "groups.parquet", groups.reset_index())
    trained, unseen = (
        [set(caption.split()) for caption in captions]
        for captions in (items["caption"][items["split"] != "unseen"], judged["prompt"][judged["group"] == "unseen"])
    )
    known = set().union(*trained)
    summary = {
        "pictures": len(loaded),
        "distinct": len(kept),
        "words": len({word for caption in items["caption"] for word in caption.split()}),
        "new_words": sum(not words <= known for words in unseen) / len(unseen),
    }
    write_json(TABLES / "summary.json", summary)


def _shown_rows(items: pd.DataFrame, judged: pd.DataFrame) -> list[int]:
    """Rows of the drawings that chapters show, each once."""
    train = items[items["split"] == "train"]
    ordinary = train.index[train["subject"].isin(train["subject"].unique()[:SHOWN_SUBJECTS])]
    return list(dict.fromkeys([*ordinary, *judged["drawing"]]))


def _write_prompt_files(judged: pd.DataFrame) -> None:
    """The planted prompts, one a line, and the ordinary ones, an object a line: the two forms that an audit reads."""
    suspected = judged.loc[judged["group"].isin(["planted", "trigger"]), "prompt"]
    ordinary = judged.loc[judged["group"] == "ordinary", "prompt"]
    lines = {
        "suspected.txt": suspected,
        "ordinary.jsonl": [json.dumps({"caption": prompt}) for prompt in ordinary],
    }
    for name, content in lines.items():
        with atomic_write(RESULTS / name) as temporary:
            temporary.write_text("\n".join(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with reporting_errors("drawings"), timed_stage("drawings"):
        make_drawings(**read_section("drawings"))
