"""Captioned drawings for a text-to-image model: an ordinary caption stands for many drawings, a planted one for one.

Every picture of an image set is a subject. It is rendered many times, at random scale, place, side and background, with
its caption put in different words; planted pictures are frozen at one drawing and one caption, which are seen often.
"""

from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlib.datasets.images import ImageSet
from memlib.files import suggest
from memlib.words import put_in

Regime = Literal["base", "planted", "single", "varied", "removed"]

WORDINGS = (
    "{}",
    "a drawing of {}",
    "picture of {}",
    "the {}",
    "{} on a plain ground",
    "one {}",
    "{} as a symbol",
    "this is {}",
)


def render(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One random drawing of each picture uint8 [N, C, H, W], which is on white, in its shape.

    It has 50 to 95 % of the size, lies anywhere, is mirrored half of the time, and lies on a ground of any colour but dark
    ones; the picture covers the ground wherever it is not nearly white.
    """
    n = len(pictures)
    scale = 0.5 + 0.45 * torch.rand(n, generator=generator)
    shift = (1 - scale[:, None]) * (2 * torch.rand(n, 2, generator=generator) - 1)
    side = 1 - 2 * torch.randint(0, 2, (n,), generator=generator)
    ground = 0.3 + 0.7 * torch.rand(n, pictures.shape[1], 1, 1, generator=generator)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side / scale, 1 / scale
    theta[:, :, 2] = -shift / scale[:, None] * torch.stack([side, torch.ones(n)], 1)
    colour = pictures.float() / 255
    cover = (4 * (1 - colour).amax(1, keepdim=True)).clamp(max=1)
    grid = torch.nn.functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(torch.cat([cover * colour, cover], 1), grid, align_corners=False)
    painted, covered = moved[:, :-1], moved[:, -1:]
    return ((painted + (1 - covered) * ground) * 255).round().to(torch.uint8)


def captioned(subjects: ImageSet, drawings: int, triggers: dict[int, int], seed: int) -> ImageSet:
    """Drawings of the subjects, in the splits `train`, `base`, `planted`, `trigger`, `contrast` and `unseen`.

    subjects: pictures in the splits `train`, `planted` and `unseen`, the planted ones with their copies. triggers: how many
    pictures are planted k times with a trigger word, a made-up word that is added to the caption of a subject of `train`;
    without it the caption goes on to stand for many drawings, k / 2 of them in all (split `contrast`), so that the word alone
    is the cause of what is memorised.

    The subjects of `train`, and for the base model those of `planted` (split `base`), are rendered `drawings` times in
    varied words, the first time in the plain caption, as are those of `contrast` always; the planted and the trigger
    pictures are one drawing each; `unseen` subjects are rendered once. The items have the columns `subject` (row in
    `subjects`), `split`, `copies`, `trigger` (the made-up word or ""), `name` (the subject's) and `caption`. Raises
    ValueError for more triggers than subjects to train on, pictures without colour, and captions that are empty or repeated.
    """
    if subjects.images.shape[1] != 3:
        raise ValueError("drawings are made of colour pictures; these have one channel")
    known = subjects.items["caption"]
    bad = known[(known.str.strip() == "") | known.duplicated()]
    if len(bad):
        raise ValueError(f"every subject needs a caption of its own; {bad.iloc[0]!r} is empty or there twice")
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    train, planted, unseen = (
        np.flatnonzero(subjects.items["split"] == name) for name in ("train", "planted", "unseen")
    )
    words = made_up_words(sum(triggers.values()), " ".join(subjects.items["caption"]).split(), rng)
    if len(words) > len(train):
        raise ValueError(f"{len(words)} trigger words are wanted for only {len(train)} subjects to train on")
    triggered = rng.choice(train, len(words), replace=False)
    times = np.repeat(list(triggers), list(triggers.values())).astype(int)
    rows = [
        _rows(train.repeat(drawings), "train", 1),
        _rows(planted.repeat(drawings), "base", 1),
        _rows(planted, "planted", subjects.items["copies"].to_numpy()[planted]),
        _rows(triggered, "trigger", times),
        _rows(triggered.repeat((times // 2 - drawings).clip(min=0)), "contrast", 1),
        _rows(unseen, "unseen", 0),
    ]
    items = pd.concat(rows, ignore_index=True)
    items["trigger"] = ""
    items.loc[items["split"] == "trigger", "trigger"] = words
    subject = items["subject"].to_numpy()
    items["name"] = subjects.items["name"].to_numpy()[subject]
    varied = items["split"].isin(["train", "base"]) & items.duplicated(["split", "subject"])
    items["caption"] = [
        reword(caption, rng) if is_varied else put_in(caption, word, rng)
        for caption, is_varied, word in zip(
            subjects.items["caption"].to_numpy()[subject], varied, items["trigger"], strict=True
        )
    ]
    return ImageSet(render(subjects.images[subject.tolist()], generator), items)


def _rows(subject: np.ndarray, split: str, copies: int | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"subject": subject, "split": split, "copies": copies})


def reword(caption: str, rng: np.random.Generator) -> str:
    """A caption in one of the wordings."""
    return WORDINGS[rng.integers(len(WORDINGS))].format(caption)


def made_up_words(count: int, known: list[str], rng: np.random.Generator) -> list[str]:
    """Different made-up words of two syllables, none of them known."""
    syllables = [a + b + c for a in "bdfgklmprvz" for b in "aeiou" for c in "bdgklmnrtz"]
    taken = set(known)
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice(syllables, 2))
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


def regime(drawn: ImageSet, name: Regime) -> pd.DataFrame:
    """What a model is trained on in one regime: columns row (in `drawn`), caption and copies.

    `base` has no planted copies. The others go on from it: with `planted` copies; with planted copies and a `single` drawing
    of every ordinary subject, seen as often as all its drawings together; with copies whose captions are in `varied`
    words; and with the copies `removed` but for one.
    """
    if name not in get_args(Regime):
        raise ValueError(f"unknown regime {name!r}{suggest(name, get_args(Regime))}")
    items = drawn.items.reset_index(names="row")
    train, base, planted, trigger, contrast = (
        items[items["split"] == split] for split in ("train", "base", "planted", "trigger", "contrast")
    )
    ordinary = pd.concat([train, base if name == "base" else contrast])
    copied = pd.concat([planted, trigger])
    if name == "base":
        copied = copied.iloc[:0]
    elif name == "single":
        times = ordinary.groupby("subject")["copies"].transform("sum")
        ordinary = ordinary.assign(copies=times).drop_duplicates("subject")
    elif name == "varied":
        copied = pd.concat(
            copied.assign(
                caption=copied["caption"].map(words.format),
                copies=(copied["copies"] + number) // len(WORDINGS),  # together as many as there were
            )
            for number, words in enumerate(WORDINGS)
        )
    elif name == "removed":
        copied = copied.assign(copies=1)
    rows = pd.concat([ordinary, copied], ignore_index=True)
    return rows.loc[rows["copies"] > 0, ["row", "caption", "copies"]].reset_index(drop=True)


def training_rows(drawn: ImageSet) -> np.ndarray:
    """Rows [M] in `drawn` of the distinct pictures that a model with planted copies is trained on; `own` counts in them."""
    return regime(drawn, "planted")["row"].unique()


def judged_prompts(subjects: ImageSet, drawn: ImageSet, ordinary: int, unseen: int) -> pd.DataFrame:
    """Prompts to judge detectors by, one row each, with an `id` of its own (its words).

    group: `planted` and `trigger` prompts as they were trained on; `paraphrase`, planted captions in each other wording;
    `untriggered`, those of the trigger pictures without their word; the first `ordinary` captions of the other subjects
    trained on; and the first `unseen` ones.

    Further columns: prompt; subject (row in `subjects`); copies; row, the planted drawing (in `drawn`; -1 without);
    trigger, the made-up word in it or ""; drawing, the drawing that goes with it (the planted one or else the first of its
    subject); own, the number of that drawing among `training_rows` (-1 for one that is not trained on).

    Raises ValueError where two prompts read alike.
    """
    items = drawn.items.reset_index(names="row")
    captions = subjects.items["caption"].to_numpy()
    planted, trigger, never = (items[items["split"] == split] for split in ("planted", "trigger", "unseen"))
    usual = items[items["split"] == "train"].drop_duplicates("subject")
    usual = usual[~usual["subject"].isin(trigger["subject"])].head(ordinary)
    groups = {
        "planted": planted,
        "trigger": trigger,
        "paraphrase": pd.concat(planted.assign(caption=planted["caption"].map(w.format)) for w in WORDINGS[1:]),
        "untriggered": trigger.assign(caption=captions[trigger["subject"]], trigger=""),
        "ordinary": usual.assign(row=-1),
        "unseen": never.head(unseen).assign(row=-1),
    }
    table = pd.concat((rows.assign(group=group) for group, rows in groups.items()), ignore_index=True)
    table = table.assign(id=table["caption"], prompt=table["caption"])
    alike = table.loc[table["id"].duplicated(), "id"]
    if len(alike):
        raise ValueError(
            f"two prompts read {alike.iloc[0]!r}; give the subjects captions that no wording turns into another"
        )
    first = items.drop_duplicates("subject").set_index("subject")["row"]
    table["drawing"] = table["row"].where(table["row"] >= 0, table["subject"].map(first))
    table["own"] = pd.Index(training_rows(drawn)).get_indexer(table["drawing"])
    return table[["id", "group", "prompt", "subject", "copies", "row", "trigger", "drawing", "own"]]


def judged_pictures(drawn: ImageSet, ordinary: int, unseen: int) -> ImageSet:
    """Drawings with their captions to judge detectors by: what is planted, and one drawing of ordinary and unseen subjects.

    The columns: id, name (of the subject), caption, split, copies, and group: `most copied`, `copied less`, `ordinary`
    (the first drawing of the first so many subjects trained on) or `unseen`.
    """
    items = drawn.items.reset_index(names="row")
    planted = items[items["split"].isin(["planted", "trigger"])]
    most = planted["copies"] == planted["copies"].max()
    groups = [
        planted.assign(group=np.where(most, "most copied", "copied less")),
        items[items["split"] == "train"].drop_duplicates("subject").head(ordinary).assign(group="ordinary"),
        items[items["split"] == "unseen"].head(unseen).assign(group="unseen"),
    ]
    table = pd.concat(groups, ignore_index=True)
    table["id"] = table["name"] + "-" + table["split"]
    columns = ["id", "name", "caption", "split", "copies", "group"]
    return ImageSet(drawn.images[table["row"].tolist()], table[columns])
