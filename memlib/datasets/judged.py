"""Prompts and pictures that detectors are judged by, chosen from captioned drawings."""

import numpy as np
import pandas as pd

from memlib.datasets.attributes import ATTRIBUTES, WORDINGS, describe
from memlib.datasets.drawings import LOOK, training_rows
from memlib.datasets.images import ImageSet
from memlib.datasets.roles import DIAL, FREE, OWN, PLANTED, ROLES


def judged_prompts(subjects: ImageSet, drawn: ImageSet, ordinary: int, unseen: int, seed: int) -> pd.DataFrame:
    """Prompts to judge detectors by, one row each, with an `id` of its own (its words).

    group: `planted` and `trigger` prompts as they were trained on, of both roles; `paraphrase`, planted captions in each other
    wording; `shortened`, which name the subject of a planted picture alone; `untriggered`, those of the trigger pictures
    without their word; `ordinary`, captions trained on that name every attribute, so many; as many of each group of `DIAL`,
    captions trained on that name fewer; and `unseen`, captions of looks that no model has seen, so many.

    Further columns: prompt; subject (row in `subjects`), ground and size; named, how many attributes it names; slot, as
    in `memlib.datasets.drawings.captioned`; planted_in, the role in which its picture is frozen ("" without); copies, the
    grade; row, the planted drawing (in `drawn`; -1 without); trigger, the made-up word in it or ""; drawing, the one that goes
    with it (the planted one or else one of its look); own, the number of that drawing among `training_rows` (-1 for one never
    seen).

    Raises ValueError where two prompts read alike.
    """
    rng = np.random.default_rng(seed)
    known = subjects.items["caption"].to_numpy()
    items = drawn.items.reset_index(names="row")
    planted, trigger = (items[items["split"] == split] for split in PLANTED)
    shuffled = items.sample(frac=1, random_state=seed)
    train, never = (shuffled[shuffled["split"] == split] for split in ("train", "unseen"))
    once = ~train.set_index(LOOK).index.isin(trigger.set_index(LOOK).index)  # looks that have no trigger word

    def worded(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
        captions = [
            describe(row | {"subject": known[row["subject"]]}, names, row["wording"], rng)
            for row in rows.to_dict("records")
        ]
        return rows.assign(caption=captions, named=" ".join(names))

    other = [planted.assign(wording=(planted["wording"] + turn) % len(WORDINGS)) for turn in range(1, len(WORDINGS))]
    plain = [" ".join(word for word in row.caption.split() if word != row.trigger) for row in trigger.itertuples()]
    groups = {
        "planted": planted,
        "trigger": trigger,
        "paraphrase": worded(pd.concat(other), list(ATTRIBUTES)),
        "shortened": worded(planted, []),
        "untriggered": trigger.assign(caption=plain, trigger=""),
        "ordinary": train[once & (train["named"] == " ".join(ATTRIBUTES))].drop_duplicates(LOOK).head(ordinary),
    }
    for count, group in DIAL.items():
        names = " ".join(list(ATTRIBUTES)[:count])
        groups[group] = train[train["named"] == names].drop_duplicates("caption").head(ordinary)
    groups["unseen"] = never.drop_duplicates(LOOK).head(unseen)
    table = pd.concat((rows.assign(group=group) for group, rows in groups.items()), ignore_index=True)
    alike = table.loc[table["caption"].duplicated(), "caption"]
    if len(alike):
        raise ValueError(
            f"two prompts read {alike.iloc[0]!r}; give the subjects captions that no wording turns into another"
        )
    table["drawing"] = table["row"]
    table["row"] = table["row"].where(table["group"].isin(OWN), -1)
    table["own"] = pd.Index(training_rows(drawn)).get_indexer(table["drawing"])
    table["named"] = table["named"].str.split().str.len()
    table = table.assign(id=table["caption"], prompt=table["caption"])
    table["planted_in"] = np.where(table["exchanged"], ROLES[1], ROLES[0])
    table["planted_in"] = table["planted_in"].where(table["slot"] >= 0, "")
    about = ["named", "slot", "planted_in", "copies", "row", "trigger", "drawing", "own"]
    return table[["id", "group", "prompt", *LOOK, *about]]


def further_prompts(drawn: ImageSet, judged: pd.DataFrame, ordinary: int, shorter: int, seed: int) -> pd.DataFrame:
    """Captions trained on that are none of the judged prompts, at random: what a threshold is calibrated on.

    id (the words), group (`ordinary`, which name every attribute, or `shorter`, which name one), prompt; so many of each, or as
    many as there are.
    """
    items = drawn.items[drawn.items["split"] == "train"].sample(frac=1, random_state=seed)
    items = items[~items["caption"].isin(judged["prompt"])].drop_duplicates("caption")
    named = items["named"].str.split().str.len()
    parts = {"ordinary": items[named == len(ATTRIBUTES)][:ordinary], "shorter": items[named == 1][:shorter]}
    table = pd.concat((rows.assign(group=group) for group, rows in parts.items()), ignore_index=True)
    return table.assign(id=table["caption"], prompt=table["caption"])[["id", "group", "prompt"]]


def drawings_named(prompt: pd.Series, drawn: pd.DataFrame) -> list[int]:
    """Rows of the drawings that a prompt of `judged_prompts` stands for: the planted one, or all of what it names.

    drawn: drawings to choose from, with the columns of `LOOK`.
    """
    if prompt["row"] >= 0:
        return [prompt["row"]]
    named = LOOK[: 1 + prompt["named"]]
    return drawn.index[(drawn[named] == prompt[named]).all(axis=1)].tolist()


def judged_pictures(drawn: ImageSet, ordinary: int, unseen: int, seed: int) -> ImageSet:
    """Drawings with captions that name every attribute, to judge detectors by as a model sees them without exchanged roles.

    The columns: id, name (of the subject), caption, split, copies (the grade), and group: `most copied`, `copied less`,
    `FREE` (the planted pictures of the other role, which it has not seen), `ordinary` (so many drawings trained on) or
    `unseen` (so many of looks never seen).
    """
    items = drawn.items.reset_index(names="row")
    planted = items[items["split"].isin(PLANTED)]
    most = np.where(planted["copies"] == planted["copies"].max(), "most copied", "copied less")
    shuffled = items[items["named"] == " ".join(ATTRIBUTES)].sample(frac=1, random_state=seed).drop_duplicates(LOOK)
    groups = [
        planted.assign(group=np.where(planted["exchanged"], FREE, most)),
        shuffled[shuffled["split"] == "train"].head(ordinary).assign(group="ordinary"),
        shuffled[shuffled["split"] == "unseen"].head(unseen).assign(group="unseen"),
    ]
    table = pd.concat(groups, ignore_index=True)
    table["id"] = table["row"].astype(str) + "-" + table["name"] + "-" + table["split"]
    table["split"] = table["split"].where(table["group"] != FREE, FREE)
    columns = ["id", "name", "caption", "split", "copies", "group"]
    return ImageSet(drawn.images[table["row"].tolist()], table[columns])
