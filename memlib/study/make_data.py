"""Stage `data`: the pictures of the study, split at random and some of them planted several times.

Writes the image set `results/data` and, for the chapters, `tables/data`: `items.parquet` (id, name, caption, split, copies),
`pictures.png` (the pictures of the splits in `SHOWN`, in the order of the items) and `summary.json`. The sets in which the
pictures of `pairs` exchange their roles are those of `memlib.study.make_pairs`.
"""

from pathlib import Path

from memlib.datasets import images
from memlib.datasets.sources import load_pictures
from memlib.files import write_json, write_pictures, write_table
from memlib.study.make_pairs import make_pairs
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage

SHOWN = ("train", "heldout", "pairs")
TABLES = Path("tables/data")


def make_data(
    name: str,
    root: str,
    size: int,
    min_distance: float,
    splits: dict[str, int],
    copies: dict[str, dict[int, int]],
    seed: int,
) -> None:
    """Write the image set and its tables, from the parameters of the section `data`."""
    pictures, names, captions = load_pictures(name, size, root)
    kept = images.distinct(pictures, min_distance)
    chosen = [names[i] for i in kept], [captions[i] for i in kept]
    image_set = images.plant(pictures[kept], *chosen, splits, copies, seed)
    images.save(image_set, "results/data")
    items = image_set.items
    write_table(TABLES / "items.parquet", items)
    write_pictures(TABLES / "pictures.png", image_set.images[items["split"].isin(SHOWN).tolist()])
    summary = {"name": name, "pictures": len(pictures), "distinct": len(kept), "size": size}
    write_json(TABLES / "summary.json", summary)


if __name__ == "__main__":
    with reporting_errors("data"), timed_stage("data"):
        make_data(**read_section("data"))
        make_pairs(
            images.load("results/data").split("pairs"), read_section("run")["trainings"], **read_section("pairs")
        )
