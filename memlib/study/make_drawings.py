"""Stage `drawings`: captioned drawings with planted copies, and the prompts and pictures that detectors are judged by.

The subjects are pictures whose caption is one short word. Writes to `results/drawings` the image sets `subjects`, `drawn` and
`judged`. For the chapters `tables/drawings`: `prompts.parquet` (what `judged_prompts` gives), `further.parquet` (what
`further_prompts` gives), `shown.parquet` (row in `drawn`, subject, split, slot, copies, trigger, caption)
and `pictures.png` with the same drawings (some of a few ordinary subjects, and the one that goes with each judged prompt),
`followed.parquet` (those of the judged prompts whose whole sampling is followed), `judged.parquet` (the items of `judged`),
`groups.parquet` (split, copies, drawings, subjects) and `summary.json` (pictures loaded, subjects to choose from, words).
"""

from pathlib import Path

import pandas as pd

from memlib.datasets import drawings, images
from memlib.datasets.attributes import named_in_a_word
from memlib.datasets.judged import further_prompts, judged_pictures, judged_prompts
from memlib.datasets.roles import PLANTED
from memlib.datasets.sources import load_pictures
from memlib.files import write_json, write_pictures, write_table
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage

SHOWN_SUBJECTS, SHOWN_DRAWINGS = 4, 16  # ordinary subjects of which a chapter shows some drawings
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
    never_seen: int,
    free_each: int,
    prompts: dict[str, int],
    pictures: dict[str, int],
    followed: dict[str, int],
    further: dict[str, int],
    seed: int,
) -> None:
    """Write the drawings and their tables, from the parameters of the section `drawings`."""
    loaded, names, captions = load_pictures(name, size, root)
    short = named_in_a_word(captions)
    kept = [short[i] for i in images.distinct(loaded[short], min_distance)]
    chosen = [names[i] for i in kept], [captions[i] for i in kept]
    subject_set = images.plant(loaded[kept], *chosen, subjects, {"train": {}, "planted": copies}, seed)
    drawn = drawings.captioned(subject_set, triggers, drawings_each, never_seen, free_each, seed)
    judged = judged_prompts(subject_set, drawn, **prompts, seed=seed)
    images.save(subject_set, RESULTS / "subjects")
    images.save(drawn, RESULTS / "drawn")
    few = judged_pictures(drawn, **pictures, seed=seed)
    images.save(few, RESULTS / "judged")
    items = drawn.items
    write_table(TABLES / "prompts.parquet", judged)
    write_table(TABLES / "judged.parquet", few.items)
    write_table(TABLES / "further.parquet", further_prompts(drawn, judged, **further, seed=seed))
    limits = dict.fromkeys(PLANTED, len(judged)) | followed
    place = judged.groupby("group").cumcount()
    write_table(TABLES / "followed.parquet", judged[place < judged["group"].map(limits).fillna(0)])
    shown = _shown_rows(items, judged)
    columns = ["subject", "split", "slot", "copies", "trigger", "caption"]
    write_table(TABLES / "shown.parquet", items.loc[shown, columns].reset_index(names="row"))
    write_pictures(TABLES / "pictures.png", drawn.images[shown])
    groups = items.groupby(["split", "copies"]).agg(drawings=("subject", "size"), subjects=("subject", "nunique"))
    write_table(TABLES / "groups.parquet", groups.reset_index())
    words = {word for caption in items["caption"] for word in caption.split()}
    write_json(TABLES / "summary.json", {"pictures": len(loaded), "to_choose_from": len(kept), "words": len(words)})


def _shown_rows(items: pd.DataFrame, judged: pd.DataFrame) -> list[int]:
    """Rows of the drawings that chapters show, each once."""
    train = items[items["split"] == "train"]
    few = train[train["subject"].isin(train["subject"].unique()[:SHOWN_SUBJECTS])].sample(frac=1, random_state=0)
    ordinary = few.groupby("subject").head(SHOWN_DRAWINGS).sort_values("subject", kind="stable").index
    return list(dict.fromkeys([*ordinary, *judged["drawing"]]))


if __name__ == "__main__":
    with reporting_errors("drawings"), timed_stage("drawings"):
        make_drawings(**read_section("drawings"))
