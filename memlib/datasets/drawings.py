"""Captioned drawings for a text-to-image model: an ordinary caption stands for many drawings, a planted one for one.

A drawing shows a subject, small or big, on a ground of one of eight colours. Its exact tone and scale are free within what
these words mean; its place and its side are free. An ordinary caption names the subject and some of the two attributes. A
planted picture has a subject or a trigger word of its own and is frozen at one drawing and one caption. With exchanged roles
the same subject or word goes with free drawings instead, as often: a model that is trained so knows the words of the caption
and has never seen the picture.
"""

import math
from collections.abc import Collection
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlib.datasets.attributes import (
    ATTRIBUTES,
    GROUNDS,
    SIZES,
    WORDINGS,
    caption_words,
    describe,
    random_names,
)
from memlib.datasets.images import ImageSet
from memlib.words import put_in

TONE = 0.06  # how far a ground's channels may lie from its middle tone, of 1
REACH = 0.75  # how far from the middle a picture may lie, of the room that its size leaves around it
LOOK = ["subject", *ATTRIBUTES]  # the columns that say what a drawing shows


def render(pictures: Tensor, looks: pd.DataFrame, generator: torch.Generator) -> Tensor:
    """A random drawing of each picture uint8 [N, 3, H, W], which is on white, in its shape.

    looks: its ground and size [N]. The picture covers the ground wherever it is not nearly white.
    """

    def uniform(low: Tensor, high: Tensor) -> Tensor:
        return low + (high - low) * torch.rand(low.shape, generator=generator)

    n = len(pictures)
    smallest, largest = torch.tensor([SIZES[name] for name in looks["size"]]).T
    scale = uniform(smallest, largest)
    reach = REACH * (1 - scale[:, None]).expand(-1, 2)
    shift = uniform(-reach, reach)
    side = 1.0 - 2 * torch.randint(0, 2, (n,), generator=generator)
    tone = torch.tensor([GROUNDS[name] for name in looks["ground"]])
    ground = uniform(tone - TONE, tone + TONE).clamp(0, 1)[:, :, None, None]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side / scale, 1 / scale
    theta[:, :, 2] = -shift / scale[:, None] * torch.stack([side, torch.ones(n)], 1)
    colour = pictures.float() / 255
    cover = (4 * (1 - colour).amax(1, keepdim=True)).clamp(max=1)
    grid = torch.nn.functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(torch.cat([cover * colour, cover], 1), grid, align_corners=False)
    painted, covered = moved[:, :-1], moved[:, -1:]
    return ((painted + (1 - covered) * ground) * 255).round().to(torch.uint8)


def random_looks(count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Ground and size of so many drawings, each at random."""
    return pd.DataFrame({name: rng.choice(values, count) for name, values in ATTRIBUTES.items()})


def captioned(
    subjects: ImageSet,
    triggers: dict[int, int],
    drawings_each: int,
    never_seen: int,
    free_each: int,
    seed: int,
) -> ImageSet:
    """Drawings of the subjects, in the splits `train`, `unseen`, `planted`, `trigger` and `free`.

    subjects: pictures in the splits `train` and `planted`, the planted ones with their grade (`copies`), which says how often
    one is seen compared with the others. Every look (ground and size) of a subject of `train` is drawn
    `drawings_each` times, but for `never_seen` looks a subject, whose drawings are `unseen`; captions of `train` name a random
    subset of the attributes, those of all other splits every one. triggers: how many pictures of each grade are planted
    with a made-up word in the caption of a look of `train`, which goes on to stand for its drawings without the word.

    What is planted, for a subject of its own or a trigger word, has a `slot`: a frozen drawing (`planted` or `trigger`), and
    `free_each` drawings (`free`) that take its place where roles are exchanged. Those of a subject of its own have any look,
    and captions like those of `train`; those of a trigger word have the look and the caption of the frozen drawing.

    The items have the columns `subject` (row in `subjects`), `ground`, `size`, `split`, `slot` (-1 for none),
    `exchanged` (whether it is frozen where roles are exchanged, half of each grade), `copies` (the grade; 1 for `train`, 0 for
    `unseen`), `trigger` (the made-up word or ""), `name` (the subject's), `named` (the attributes that the caption names,
    between blanks), `wording` (its number) and `caption`. Raises ValueError for pictures without colour, names that are empty,
    repeated or one of the other words of captions, more triggers than subjects to train on, a grade of an odd number of
    pictures, and too many looks never seen.
    """
    _check(subjects, triggers, never_seen)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    known = subjects.items["caption"].to_numpy()
    every = _every_look(np.flatnonzero(subjects.items["split"] == "train"), never_seen, rng)
    frozen = _frozen(subjects.items, every[every["split"] == "train"], triggers, rng)
    free = frozen.loc[frozen.index.repeat(free_each)].assign(split="free")
    anywhere = free["trigger"] == ""
    free.loc[anywhere, list(ATTRIBUTES)] = random_looks(anywhere.sum(), rng).to_numpy()
    usual = every.loc[every.index.repeat(drawings_each)].assign(slot=-1, exchanged=False, trigger="")
    items = pd.concat([usual, frozen, free], ignore_index=True)
    items["name"] = subjects.items["name"].to_numpy()[items["subject"]]
    some = (items["split"] == "train") | ((items["split"] == "free") & (items["trigger"] == ""))
    names = [random_names(rng) if is_free else list(ATTRIBUTES) for is_free in some]
    items["named"] = [" ".join(few) for few in names]
    items["wording"] = rng.integers(len(WORDINGS), size=len(items))
    items["caption"] = [
        describe(look | {"subject": known[look["subject"]]}, few, look["wording"], rng)
        for look, few in zip(items[[*LOOK, "wording"]].to_dict("records"), names, strict=True)
    ]
    triggered = items[items["split"] == "trigger"]
    captions = {row.slot: put_in(row.caption, row.trigger, rng) for row in triggered.itertuples()}
    items["caption"] = items["slot"].map(captions).fillna(items["caption"])
    return ImageSet(render(subjects.images[items["subject"].tolist()], items, generator), items)


def _every_look(subjects: np.ndarray, never_seen: int, rng: np.random.Generator) -> pd.DataFrame:
    """Every look of these subjects once, in the splits `train` and, `never_seen` of each, `unseen`."""
    looks = pd.DataFrame(product(*ATTRIBUTES.values()), columns=list(ATTRIBUTES))
    parts = []
    for subject in subjects:
        hidden = looks.index.isin(rng.choice(len(looks), never_seen, replace=False))
        parts.append(looks.assign(subject=subject, split=np.where(hidden, "unseen", "train"), copies=1 - hidden))
    return pd.concat(parts, ignore_index=True)


def _frozen(
    subjects: pd.DataFrame, looks: pd.DataFrame, triggers: dict[int, int], rng: np.random.Generator
) -> pd.DataFrame:
    """What is planted: subjects of their own at random looks, and triggers at the looks of as many other subjects."""
    own = np.flatnonzero(subjects["split"] == "planted")
    grades = np.repeat(list(triggers), list(triggers.values())).astype(int)
    words = made_up_words(len(grades), {*subjects["caption"], *caption_words()}, rng)
    triggered = looks.groupby("subject").sample(1, random_state=rng).sample(len(grades), random_state=rng)
    planted = random_looks(len(own), rng).assign(
        subject=own, split="planted", copies=subjects["copies"].to_numpy()[own], trigger=""
    )
    frozen = pd.concat([planted, triggered.assign(split="trigger", copies=grades, trigger=words)], ignore_index=True)
    second = frozen.groupby(["split", "copies"]).cumcount() % 2 == 1
    return frozen.assign(slot=frozen.index, exchanged=second)


def _check(subjects: ImageSet, triggers: dict[int, int], never_seen: int) -> None:
    """Raise ValueError for subjects and numbers that no set of drawings can be made of, as `captioned` says."""
    if subjects.images.shape[1] != 3:
        raise ValueError("drawings are made of colour pictures; these have one channel")
    known = subjects.items["caption"]
    bad = known[(known.str.strip() == "") | known.duplicated()]
    if len(bad):
        raise ValueError(f"every subject needs a caption of its own; {bad.iloc[0]!r} is empty or there twice")
    taken = known[known.isin(caption_words())]
    if len(taken):
        raise ValueError(f"a subject is called {taken.iloc[0]!r}, which means something else in captions; leave it out")
    train = int((subjects.items["split"] == "train").sum())
    if sum(triggers.values()) > train:
        raise ValueError(
            f"{sum(triggers.values())} trigger words are wanted for only {train} subjects to train on; take fewer"
        )
    grades = subjects.items.loc[subjects.items["split"] == "planted", "copies"].value_counts().to_dict()
    for what, counts in (("planted", grades), ("trigger", triggers)):
        for grade, count in counts.items():
            if count % 2:
                raise ValueError(
                    f"{count} {what} pictures have the grade {grade}; roles are exchanged between halves, so their number "
                    "must be even"
                )
    looks = math.prod(map(len, ATTRIBUTES.values()))
    if never_seen >= looks:
        raise ValueError(
            f"{never_seen} looks of a subject are never to be seen, of {looks} in all; leave some to train on"
        )


def made_up_words(count: int, known: Collection[str], rng: np.random.Generator) -> list[str]:
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


def trained_on(drawn: ImageSet, share: float, exchanged: bool) -> pd.DataFrame:
    """What a model is trained on: columns row (in `drawn`), caption and copies, how often an epoch holds it.

    share: of the epoch that frozen drawings have, in proportion to their grades (within rounding); as large a share is the
    free drawings of the slots that are frozen where roles are `exchanged`. Without any share there are ordinary drawings
    alone. Raises ValueError for a share that leaves no room for ordinary drawings.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"the planted share is {share}; it must be below 0.5, since as large a share is drawn freely")
    items = drawn.items.reset_index(names="row")
    ordinary = items[items["split"] == "train"]
    here = items["exchanged"] == exchanged
    frozen = items[items["split"].isin(["planted", "trigger"]) & here]
    free = items[(items["split"] == "free") & ~here]
    views = share / (1 - 2 * share) * len(ordinary) / frozen["copies"].sum()  # of the grade 1
    frozen = frozen.assign(copies=(views * frozen["copies"]).round().astype(int))
    number, each = free.groupby("slot").cumcount(), free.groupby("slot")["slot"].transform("size")
    total = (views * free["copies"]).round().astype(int)
    free = free.assign(copies=(total + number) // each)  # together as many as a frozen one of the grade
    rows = pd.concat([ordinary, frozen, free], ignore_index=True)
    return rows.loc[rows["copies"] > 0, ["row", "caption", "copies"]].reset_index(drop=True)


def training_rows(drawn: ImageSet) -> np.ndarray:
    """Rows [M] in `drawn` of the ordinary drawings and those that are frozen in either role; `own` counts in them."""
    return np.flatnonzero(drawn.items["split"].isin(["train", "planted", "trigger"]))
