"""Stage `audits`: what audits of the study's models name, what tests of whole collections reject and what a guard stops.

All of it is rehearsed on tables of scores, whose items' truth is known. Writes to `tables/audits`:

- `pictures/TRAINING.parquet`, `prompts/TRAINING.parquet`: a row a planted picture or its prompt, with the share of rehearsals in
  which it is `found`, by a score that asks no model `found_blind`, and by a model that did not see it planted `found_control`;
- `curves.parquet`: means over rehearsals by the number of nulls and of copies, and with nulls of another kind;
- `collections/TRAINING.parquet`: a row a random half, whether the test rejects;
- `sizes.parquet`: how often it does, by size and by the share that was trained on;
- `guard/TRAINING.parquet`: a row a prompt that draws copies, with the share of them that is stopped by each window of steps, the
  `chosen` one, all steps `together`, the number of words, and by looking the finished sample up in the training data;
- `alarms.parquet`: how many further ordinary prompts are stopped;
- `styles/TRAINING.parquet`: the share of the same copies that the first step stops, and the number of words, where the ordinary
  prompts that the threshold is of name less than a drawing shows; `style_alarms.parquet`: whom that threshold stops besides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.datasets.roles import FLOW, PLANTED, counterpart, role_of
from memlib.evaluation import alarms
from memlib.evaluation.rehearsal import found_shares, rehearse
from memlib.evaluation.whole_set import rejections, set_test
from memlib.files import write_table
from memlib.progress import progress
from memlib.study.sections import read_section
from memlib.study.stages import reporting_errors, timed_stage
from memlib.tables import read_scores

TABLES = Path("tables/audits")
LEVEL, RESAMPLES = 0.05, 199  # of the test of a collection
PICTURE_SCORE = "draws=4 sigma=0.2"  # what `memlib audit` recommends
MAGNITUDES = 4  # noises of the magnitude, as it recommends
ALL_NAMED = "the whole look"  # what the ordinary prompts of this study name
Followed = dict[str, pd.DataFrame]  # as `read_followed` gives it


def main() -> None:
    """Write the tables of the audits, from the parameters of the section `audits`."""
    with reporting_errors("audits"), timed_stage("audits"):
        section, pairs = read_section("audits"), read_section("run")["trainings"]
        trainings = [name for name in pairs if name.startswith("pair-")]
        nulls = {name: section[name] for name in ("rate", "repeats", "curve_repeats", "nulls", "copies", "seed")}
        curves = [
            *judge_pictures(trainings, **nulls),
            *judge_prompts(section["text_arms"], section["ordinary"], section["prompt_nulls"], **nulls),
        ]
        write_table(TABLES / "curves.parquet", pd.DataFrame(curves))
        judge_collections(trainings, section["curve_repeats"], section["seed"])
        judge_sizes(section["sizes"], section["shares"], section["curve_repeats"], section["seed"])
        followed = {name: read_followed(name) for name in section["guards"]}
        false_alarms = read_section("guarded")["false_alarms"]
        judge_guards(followed, false_alarms)
        judge_styles(followed, false_alarms)


def judge_pictures(
    trainings: Sequence[str],
    rate: float,
    repeats: int,
    curve_repeats: int,
    nulls: Sequence[int],
    copies: Sequence[int],
    seed: int,
) -> list[dict[str, Any]]:
    """Audits of the planted pictures of each training among pictures kept out, half of which are the nulls; their curves."""
    outside = pictures_of_split("heldout")
    size = pd.concat([read_scores(f"tables/scores/{key}/png_size.parquet") for key in ("main-blind", "pairs-blind")])
    size, curves = size.iloc[:, 0], []
    control = read_scores("tables/scores/audit-unseen/loss.parquet")[PICTURE_SCORE]
    detailed = (size[outside] > size[outside].median()).to_numpy()
    for training in progress(trainings, "audits of pictures"):
        scores = read_scores(f"tables/scores/audit-{training}/loss.parquet")[PICTURE_SCORE]
        planted = in_training(training, "planted")
        given, others = scores[planted].to_numpy(), scores[outside].to_numpy()
        half = len(outside) // 2
        ways = {"found": scores, "found_blind": size, "found_control": control}
        shares = {
            name: found_shares(values[planted], values[outside], half, rate, repeats, seed)
            for name, values in ways.items()
        }
        write_table(TABLES / f"pictures/{training}.parquet", pd.DataFrame({"id": planted} | shares))
        asked = [
            *({"nulls": count, "suspects": half} for count in up_to(len(outside) - half, nulls)),
            *({"nulls": half, "copies": count} for count in up_to(len(given), copies)),
            {"nulls": int(detailed.sum()), "apart": detailed},
        ]
        curves += [_curve("pictures", training, given, others, each, rate, curve_repeats, seed) for each in asked]
    return curves


def judge_prompts(
    trainings: Sequence[str],
    ordinary: int,
    prompt_nulls: int,
    rate: float,
    repeats: int,
    curve_repeats: int,
    nulls: Sequence[int],
    copies: Sequence[int],
    seed: int,
) -> list[dict[str, Any]]:
    """Audits of the prompts of planted pictures among some ordinary ones, others of which are the nulls; their curves."""
    asked_prompts = pd.read_parquet("tables/drawings/prompts.parquet").set_index("id")
    further = pd.read_parquet("tables/drawings/further.parquet").set_index("id")["group"]
    words = {
        key: read_scores(f"tables/scores/{key}/prompt_length.parquet").iloc[:, 0]
        for key in ("prompts-blind", "further-blind")
    }
    usual, curves = further.index[further == "ordinary"], []
    for training in progress(trainings, "audits of prompts"):
        here = asked_prompts[asked_prompts["planted_in"] == role_of(training)]
        planted = here.index[here["group"].isin(PLANTED)]
        first, other = prompt_scores(training)
        given, others = first[planted].to_numpy(), other[usual].to_numpy()
        control = prompt_scores(counterpart(training))
        ways = {
            "found": (given, others),
            "found_blind": (words["prompts-blind"][planted], words["further-blind"][usual]),
            "found_control": (control[0][planted], control[1][usual]),
        }
        shares = {
            name: found_shares(*values, prompt_nulls, rate, repeats, seed, suspects=ordinary)
            for name, values in ways.items()
        }
        write_table(TABLES / f"prompts/{training}.parquet", pd.DataFrame({"id": planted} | shares))
        both = other[[*usual, *further.index[further == "shorter"]]].to_numpy()
        apart = np.arange(len(both)) >= len(usual)
        ways = [
            *({"nulls": count} for count in up_to(prompt_nulls, nulls)),
            *({"nulls": prompt_nulls, "copies": count} for count in up_to(len(given), copies)),
        ]
        curves += [
            _curve("prompts", training, given, others, each | {"suspects": ordinary}, rate, curve_repeats, seed)
            for each in ways
        ]
        shifted = {"nulls": min(prompt_nulls, int(apart.sum())), "suspects": ordinary, "apart": apart}
        curves.append(_curve("prompts", training, given, both, shifted, rate, curve_repeats, seed))
    return curves


def prompt_scores(training: str) -> tuple[pd.Series, pd.Series]:
    """The magnitude of the judged prompts and of the further ordinary ones, the mean over noises, as a training scores them."""
    first, other = (
        read_scores(f"tables/scores/{key}/magnitude.parquet").iloc[:, :MAGNITUDES].mean(axis=1)
        for key in (f"{training}-text", f"audit-{training}")
    )
    return first, other


def _curve(
    kind: str, training: str, given: Any, others: Any, asked: Mapping[str, Any], rate: float, repeats: int, seed: int
) -> dict[str, Any]:
    """Means over rehearsals that are asked for in one way."""
    found = rehearse(given, others, rate=rate, repeats=repeats, seed=seed, **asked)
    means = found[["named", "true_share", "found"]].mean().to_dict() | {"silent": float((found["named"] == 0).mean())}
    return {
        "kind": kind,
        "training": training,
        "nulls": asked["nulls"],
        "copies": asked.get("copies", len(given)),
        "shifted": "apart" in asked,
        "by": "copies" if "copies" in asked else "nulls",
    } | means


def judge_collections(trainings: Sequence[str], repeats: int, seed: int) -> None:
    """Tests of the pictures seen once in each training, against those kept out, with the model's scores and the control's."""
    control = read_scores("tables/scores/audit-unseen/loss.parquet")
    outside = pictures_of_split("heldout")
    for training in progress(trainings, "collections"):
        members = in_training(training, "once")
        others = [*in_training(training, "kept out"), *outside]
        found = {}
        for name, scores in (
            ("rejected", read_scores(f"tables/scores/audit-{training}/loss.parquet")),
            ("rejected_control", control),
        ):
            tests = (set_test(scores.loc[members], scores.loc[others], seed + k, RESAMPLES) for k in range(repeats))
            found[name] = [test.p_value <= LEVEL for test in tests]
        _write(f"collections/{training}", pd.DataFrame(found))


def judge_sizes(sizes: Sequence[int], shares: Sequence[float], repeats: int, seed: int) -> None:
    """How often collections of the main model's pictures seen once are told, by size and share; with the control's, too."""
    items, rows = pd.read_parquet("tables/data/items.parquet"), []
    once = items.loc[(items["split"] == "train") & (items["copies"] == 1), "id"]
    outside = pictures_of_split("heldout")
    parts = {
        "main": [f"tables/scores/main-{table}.parquet" for table in ("volume/growth", "denoising/loss")],
        "control": [f"tables/scores/reference/{table}.parquet" for table in ("growth", "loss")],
    }
    tables = {name: pd.concat(map(read_scores, paths), axis=1) for name, paths in parts.items()}
    common = tables["main"].columns.intersection(tables["control"].columns)
    asked = [*((size, 1.0) for size in sizes), *((sizes[-1], share) for share in shares if share < 1)]
    for name, scores in tables.items():
        for size, share in progress(asked, f"sizes of collections, {name}"):
            groups = (scores.loc[ids, common] for ids in (once, outside))
            found = rejections(*groups, size, share, LEVEL, repeats, seed, RESAMPLES)
            rows.append({"model": name, "size": size, "share": share, "rejected": int(found.sum()), "of": repeats})
    write_table(TABLES / "sizes.parquet", pd.DataFrame(rows))


def judge_guards(followed: Mapping[str, Followed], false_alarms: float) -> None:
    """What guards of each training stop, by all windows of steps and by what the trainings of the other role choose and weigh."""
    shares = {name: stopped_copies(each, false_alarms) for name, each in followed.items()}
    enough = {name: enough_copies(drawn_copies(name)) for name in followed}
    rows = []
    for training, own in followed.items():
        family, role = training.startswith(FLOW), role_of(training)
        others = [name for name in followed if name.startswith(FLOW) == family and role_of(name) != role]
        window = alarms.best_window(shares, others)
        fitting = own["calibration"].index[::2]  # the threshold is of the others
        known = [pd.concat([relative(followed[name], part) for name in others]) for part in ("copies", "calibration")]
        weigh = alarms.discriminant(known[0].to_numpy(), known[1].loc[fitting].to_numpy())
        usual, copies, further = (
            weigh(table.to_numpy())
            for table in (
                relative(own, "calibration").drop(fitting),
                relative(own, "copies"),
                relative(own, "ordinary"),
            )
        )
        looked = -pd.read_parquet(f"tables/guarded/{training}/looked_up.parquet").set_index(["part", "id", "noise"])[
            "ratio"
        ]
        known_copies = looked.loc["planted"].loc[own["copies"].index]
        others_of = {
            "together": (copies, usual),
            "blind": (_words(own["copies"]), _words(own["calibration"])),
            "looked_up": (known_copies, looked.loc["calibration"]),
        }
        found = shares[training].assign(chosen=shares[training][window], window=window)
        for name, values in others_of.items():
            stopped = pd.Series(alarms.stopped(*values, false_alarms), own["copies"].index)
            found[name] = stopped.groupby("id").mean()
        real = all(enough[name] for name in (training, *others))
        found = found.assign(copies=own["copies"].groupby("id").size() if real else 0)
        found = found.rename(columns={alarms.ONE: "first_step"})
        write_table(TABLES / f"guard/{training}.parquet", found.rename_axis("id").reset_index())
        readings = [
            alarms.readings(own[part].to_numpy(), own["calibration"].to_numpy()) for part in ("ordinary", "calibration")
        ]
        counts = {
            name: alarms.stopped(readings[0][name], readings[1][name], false_alarms).sum() for name in readings[0]
        }
        counts["together"] = alarms.stopped(further, usual, false_alarms).sum()
        counts["looked up"] = alarms.stopped(looked.loc["ordinary"], looked.loc["calibration"], false_alarms).sum()
        rows += [
            {"training": training, "window": name, "stopped": int(count), "of": len(further)}
            for name, count in counts.items()
        ]
    write_table(TABLES / "alarms.parquet", pd.DataFrame(rows))


def judge_styles(followed: Mapping[str, Followed], false_alarms: float) -> None:
    """What the first step stops by the threshold of ordinary prompts of a style, those of every second subject.

    The others of that style, `alike`, and the prompts that name the whole look, if these are others, tell the false alarms, as a
    share of each subject's samples or of each prompt's.
    """
    rows = []
    for training, steps in followed.items():
        calibration, ordinary, copies = (steps[part][0] for part in ("calibration", "ordinary", "copies"))
        first = pd.read_parquet(f"tables/guarded/{training}/first_steps.parquet").set_index(["id", "noise"])
        subjects = first["subject"].groupby("id").first()
        styles = {ALL_NAMED: (calibration, ordinary)}
        for style, own in first.groupby("group", sort=False):
            second = own["subject"] % 2 == 1
            styles[style] = own.loc[~second, "magnitude"], own.loc[second, "magnitude"]
        found = []
        for style, (usual, further) in styles.items():
            asked = {"alike": further} | ({} if style == ALL_NAMED else {ALL_NAMED: ordinary})
            words = alarms.stopped(_words(copies), _words(usual), false_alarms)
            stopped = {"magnitude": alarms.stopped(copies, usual, false_alarms), "words": words}
            found.append(pd.DataFrame(stopped, copies.index).groupby("id").mean().assign(style=style))
            for among, values in asked.items():
                clusters = [str(subjects.get(prompt, prompt)) for prompt in values.index.get_level_values("id")]
                alarmed = pd.Series(alarms.stopped(values, usual, false_alarms)).groupby(clusters).mean()
                told = alarmed.rename_axis("cluster").reset_index(name="stopped")
                rows.append(told.assign(training=training, style=style, among=among))
        write_table(TABLES / f"styles/{training}.parquet", pd.concat(found).rename_axis("id").reset_index())
    write_table(TABLES / "style_alarms.parquet", pd.concat(rows, ignore_index=True))


def _words(samples: pd.Series | pd.DataFrame) -> list[int]:
    """Number of words of the prompt of each sample."""
    return [len(prompt.split()) for prompt in samples.index.get_level_values("id")]


def read_followed(training: str) -> Followed:
    """Magnitudes at all steps [N, K] of ordinary prompts (`calibration`, and `ordinary` ones further) and of `copies`.

    Rows have the index (id, noise). All samples of planted prompts stand in where fewer than two prompts draw a copy, as in a
    trial of a few steps; `copies` in the tables is then 0, and no claim is judged on them.
    """
    values = pd.read_parquet(f"tables/guarded/{training}/magnitudes.parquet")
    values = values.pivot(index=["part", "id", "noise"], columns="step", values="magnitude").sort_index()
    drawn = drawn_copies(training)
    copying = drawn[drawn] if enough_copies(drawn) else drawn
    parts = {part: values.loc[part] for part in ("calibration", "ordinary")}
    return parts | {"copies": values.loc["planted"].loc[copying.index]}


def drawn_copies(training: str) -> pd.Series:
    """Which samples of planted prompts, by (id, noise), copy their planted picture where nothing is done about it."""
    samples = pd.read_parquet(f"tables/guarded/{training}/samples.parquet")
    return samples[samples["action"] == "none"].set_index(["id", "noise"])["copies_own"]


def enough_copies(drawn: pd.Series) -> bool:
    """Whether two prompts or more draw a copy."""
    return drawn[drawn].index.get_level_values("id").nunique() >= 2


def relative(followed: Followed, part: str) -> pd.DataFrame:
    """Magnitudes in units of their median over the ordinary prompts, so that those of several trainings go together."""
    return followed[part] / followed["calibration"].median()


def stopped_copies(followed: Followed, false_alarms: float) -> pd.DataFrame:
    """The share of each prompt's copies that is stopped, a column a window."""
    usual = followed["calibration"].to_numpy()
    known, asked = alarms.readings(usual, usual), alarms.readings(followed["copies"].to_numpy(), usual)
    found = asked.apply(lambda column: alarms.stopped(column, known[column.name], false_alarms))
    return found.set_index(followed["copies"].index).groupby("id").mean()


def pictures_of_split(name: str) -> list[str]:
    """Ids of the pictures of a split."""
    items = pd.read_parquet("tables/data/items.parquet")
    return items.loc[items["split"] == name, "id"].tolist()


def in_training(training: str, role: str) -> list[str]:
    """Ids of the pictures that have a role in a training."""
    roles = pd.read_parquet("tables/pairs/roles.parquet")
    return roles.loc[(roles["training"] == training) & (roles["role"] == role), "item"].tolist()


def up_to(most: int, counts: Sequence[int]) -> list[int]:
    """The numbers, none of them above what there is, each once."""
    return sorted({min(count, most) for count in counts})


def _write(name: str, rows: pd.DataFrame) -> None:
    """A table of repeats, each with its number as its id."""
    write_table(TABLES / f"{name}.parquet", rows.reset_index(names="id").astype({"id": str}))


if __name__ == "__main__":
    main()
