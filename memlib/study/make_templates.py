"""Stage `templates`: planted drawings of which only a part is repeated, with the masks of that part.

Writes to `results/templates` the image set of all views and `masks.safetensors` (bool [N, H, W], `masks`); for the chapter
`tables/templates`: `items.parquet` (the views that are judged), `pictures.png` and `masks.png` (the same, a mask in white).
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from memlib.datasets import images, templates
from memlib.files import atomic_write, write_pictures, write_table
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage

DRAWINGS, RESULTS, TABLES = Path("results/drawings"), Path("results/templates"), Path("tables/templates")


def make(views: int, fresh: int, seed: int) -> None:
    """Write the templates and their tables, from the parameters of the section `templates`."""
    subjects, drawn = (images.load(DRAWINGS / name) for name in ("subjects", "drawn"))
    found, masks = templates.make_templates(subjects, drawn, views, fresh, seed)
    images.save(found, RESULTS / "views")
    with atomic_write(RESULTS / "masks.safetensors") as temporary:
        save_file({"masks": masks}, temporary)
    judged = np.flatnonzero(found.items["split"] == "fresh").tolist()
    write_table(TABLES / "items.parquet", found.items.iloc[judged].reset_index(drop=True))
    write_pictures(TABLES / "pictures.png", found.images[judged])
    write_pictures(TABLES / "masks.png", 255 * masks[judged][:, None].to(torch.uint8))


if __name__ == "__main__":
    with reporting_errors("templates"), timed_stage("templates"):
        make(**read_section("templates"))
