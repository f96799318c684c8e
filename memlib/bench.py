"""The study's models as a bench: every detector's scores, read from tables, and what they are judged by.

A score entry of params.yaml named `bench-...` is a model of the bench. Its items say what is asked: the pictures that exchange
their roles between trainings, those of the main training, drawings of a text-to-image model, or prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from memlib.datasets.roles import FLOW, FREE, PLANTED, ROLES, in_role, role_of
from memlib.evaluation import bench
from memlib.evaluation.bench import Case
from memlib.evaluation.intervals import Estimate
from memlib.evaluation.pairs import by_name
from memlib.files import read_json, suggest
from memlib.tables import parse_setting, read_detectors, setting_name

PREFIX = "bench-"
FAMILIES = {  # by the first of these that a model's path begins with
    "results/models/": "pixel U-Net",
    f"results/text/{FLOW}": "flow transformer",
    "results/text/": "latent U-Net",
}
SAMPLES = "tables/scores/{}-samples"  # of a text-to-image model: tables of what its prompts draw
NEVER_SAW = "results/models/reference"  # none of the pictures that exchange their roles
TRAININGS = {
    "pair": "300 steps from the reference",
    "scratch": "900 steps from new weights",
    "small": "small set, mirrored",
    "main": "main, 1,100 steps",
}
CONTROL = "never saw them"
KINDS = {
    "seen": "membership",
    "repr": "memorisation",
}  # of a contrast of pictures, by how its name begins; else by copies
HEADLINES = (  # what is shown if nothing else is asked for
    "seen once against kept out",
    "reproduced or not, x16",
    f"planted against {FREE}",
)
CEILING = 0.95  # AUROC of the plain baseline on the half that is chosen by, from which a contrast ranks little
SHOWN = ("detector", "setting", "evaluations", "seconds", "AUROC", "FPR", "TPR", "FPR reached")
READINGS = (
    "p",
    "power",
    "draws",
    "directions",
    "axes",
    "steps",
    "quantity",
    "layer",
    "part",
    "rate_at",
    "step",
    "noises",
)
COPIED = 0.5  # least share of a prompt's samples that copy its picture where it counts as reproduced


def entries(root: Path = Path()) -> dict[str, dict[str, Any]]:
    """The bench's entries of params.yaml by the name of the model, with further keys.

    These are `folder` of the tables, `drawn`, that of the tables of the samples of its prompts, `training`, and of the samples
    the `guidance` and, in network evaluations, the `price`.

    Raises ValueError where there are none, or no tables of one.
    """
    path = root / "params.yaml"
    if not path.exists():
        raise ValueError(f"there is no {path}; run this in the folder of the study")
    parameters = yaml.safe_load(path.read_text())
    found = {key: entry for key, entry in parameters["scores"].items() if key.startswith(PREFIX)}
    if not found:
        raise ValueError(f"{path} has no entry {PREFIX}... in its section `scores`, so that no model is on the bench")
    for key in found:
        if not list((root / "tables/scores" / key).glob("*.parquet")):
            raise ValueError(f"there are no tables in tables/scores/{key}; `dvc repro scores@{key}` makes them")
    arm = parameters["arm"]
    return {
        key.removeprefix(PREFIX): entry
        | {
            "folder": root / "tables/scores" / key,
            "drawn": root / SAMPLES.format(Path(entry["model"]).name),
            "training": _training(key, entry, parameters),
            "guidance": arm["guidance"],
            "price": 2 * arm["sampling_steps"],
        }
        for key, entry in found.items()
    }


def _training(key: str, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """How a model was trained, the same for those that differ by their roles and seeds alone."""
    if entry["model"] == NEVER_SAW:
        return CONTROL
    name = key.removeprefix(PREFIX)
    for arms, section in (("text_arms", "text_arm"), ("flow_arms", "flow_arm")):
        arm = parameters["run"][arms].get(Path(entry["model"]).name)
        if arm is not None:
            return f"planted share {(parameters[section] | arm)['planted_share']:.0%}"
    kind = name.rstrip("0123456789").rstrip("-")
    return TRAININGS.get(kind, "-".join(part for part in kind.split("-") if part not in ROLES) or kind)


def family_of(entry: Mapping[str, Any]) -> str:
    """The family of an entry's model, by where it lies; raises ValueError for another place."""
    for folder, family in FAMILIES.items():
        if entry["model"].startswith(folder):
            return family
    raise ValueError(f"the model {entry['model']} is of no family of the bench, which are in {', '.join(FAMILIES)}")


def scores_of(entry: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All scores of an entry, with the means over their noises: a column (detector, setting), and its evaluations.

    Those of the samples of a prompt, where the entry is one of prompts, are nan for prompts that were not drawn, and cost what
    the samples do.
    """
    folders = [entry["folder"]] + [entry["drawn"]] * (_items(entry) == "prompts")
    paths = [path for folder in folders for path in sorted(folder.glob("*.parquet"))]
    scores, about = read_detectors({path.stem: path for path in paths})
    costs = about[["evaluations"]].copy()
    if "generations" in about:
        drawn = about["generations"].notna()
        costs.loc[drawn, "evaluations"] = about.loc[drawn, "generations"].astype(int) * entry["price"]
    return bench.with_means(*bench.without_repeated(scores, costs))


def cases(
    seed: int, root: Path = Path(), found: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]] | None = None
) -> list[Case]:
    """Every contrast of every family and way of training; see `memlib.evaluation.bench`.

    seed: of the halves. found: scores by the name of the model, by default those of its tables.
    """
    known = entries(root)
    scores = {name: scores_of(entry) for name, entry in known.items()} if found is None else found
    named: dict[tuple[str, str, str], list[str]] = {}
    for name in scores:
        named.setdefault((_items(known[name]), family_of(known[name]), known[name]["training"]), []).append(name)
    made = []
    for (items, family, training), names in named.items():
        rows = pd.concat([_rows(name, known[name], items, root) for name in names], ignore_index=True)
        labels = rows[["model", "training"]].drop_duplicates()
        own = pd.concat({row.training: scores[row.model][0] for row in labels.itertuples()})
        if found is not None:  # of some items alone
            rows = rows[pd.MultiIndex.from_frame(rows[["training", "item"]]).isin(own.index)]
        about = pd.concat([scores[name][1] for name in names])
        about = about[~about.index.duplicated()].loc[own.columns]
        rows["choosing"] = bench.halves(rows, "group", seed)
        kind = "prompts" if items == "prompts" else "pictures"
        for contrast, part in _contrasts(rows, items).items():
            what = "control" if training == CONTROL else _kind(contrast)
            given = {"family": family, "training": training, "kind": what, "contrast": contrast, "items": kind}
            made.append(bench.case(given, part, own, about))
    return [case for case in made if case is not None]


def _items(entry: Mapping[str, Any]) -> str:
    source = entry["items"]["source"]
    if source.endswith(".parquet"):
        return "prompts"
    if source.endswith("judged"):
        return "drawings"
    return "pairs" if entry["items"].get("splits") == ["pairs"] else "main"


def _rows(name: str, entry: Mapping[str, Any], items: str, root: Path) -> pd.DataFrame:
    """A row an item and training: item, model, training, role, group, copies and reproduced."""
    tables = root / "tables"
    if items == "pairs":
        roles = pd.read_parquet(tables / "pairs/roles.parquet")
        if entry["model"] == NEVER_SAW:
            roles = roles[roles["training"].isin([f"pair-{number}" for number in range(3)])]
            roles = roles.assign(reproduced=False, training=roles["training"] + " " + CONTROL)
        else:
            roles = _with_truth(roles[roles["training"] == name], tables / "truth" / name)
        return roles.assign(model=name, group=roles["role"] + roles["copies"].astype(str))
    if items == "main":
        truth = pd.read_parquet(tables / "truth/main/pictures.parquet").rename(columns={"id": "item"})
        role = truth["copies"].map({0: "kept out", 1: "once"}).fillna("planted")
        return truth.assign(model=name, training=name, role=role, group=truth["copies"].astype(str))
    if items == "drawings":
        drawings = pd.read_parquet(tables / "drawings/judged.parquet").rename(columns={"id": "item"})
        role = drawings["split"].replace({"trigger": "planted", "train": "ordinary"})
        if role_of(Path(entry["model"]).name) != ROLES[0]:
            role = role.replace({"planted": FREE, FREE: "planted"})
        copied = drawings["caption"].map(_copied(entry, root)) >= COPIED
        return drawings.assign(
            model=name,
            training=name,
            role=role,
            group=role + drawings["copies"].astype(str),
            reproduced=copied & (role == "planted"),
        )
    role = role_of(Path(entry["model"]).name)
    prompts = in_role(pd.read_parquet(tables / "drawings/prompts.parquet"), role).rename(columns={"id": "item"})
    copied = prompts["item"].map(_copied(entry, root)) >= COPIED
    planted = prompts["group"].isin(PLANTED)
    return prompts.assign(
        model=name,
        training=name,
        role=prompts["group"].where(~planted, "planted"),
        group=prompts["group"] + prompts["copies"].astype(str),
        reproduced=copied & planted,
    )


def _copied(entry: Mapping[str, Any], root: Path) -> pd.Series:
    """Share of the samples of each prompt that copy its picture."""
    samples = pd.read_parquet(root / "tables/arm" / Path(entry["model"]).name / "samples.parquet")
    return samples[samples["guidance"] == entry["guidance"]].groupby("id")["copies_own"].mean()


def _with_truth(roles: pd.DataFrame, folder: Path) -> pd.DataFrame:
    truth = pd.read_parquet(folder / "pictures.parquet").set_index("id")["reproduced"]
    return roles.assign(reproduced=roles["item"].map(truth).astype(bool))


def _contrasts(rows: pd.DataFrame, items: str) -> dict[str, pd.DataFrame]:
    if items in ("pairs", "main"):
        return by_name(rows)
    planted = rows["role"] == "planted"
    found = {
        "ordinary against unseen": ("ordinary", "unseen"),
        f"planted against {FREE}": ("planted", FREE),
        "planted against ordinary": ("planted", "ordinary"),
        "planted against unseen": ("planted", "unseen"),
        f"{FREE} against ordinary": (FREE, "ordinary"),
    }
    parts = {}
    for name, (first, _) in found.items():
        part = rows[rows["role"].isin(found[name])]
        parts[name] = part.assign(positive=part["role"] == first)
    for grade in sorted(rows.loc[planted, "copies"].unique(), reverse=True):
        alike = rows[(planted | (rows["role"] == FREE)) & (rows["copies"] == grade)]
        parts[f"x{grade} against {FREE}"] = alike.assign(positive=alike["role"] == "planted")
        own = alike[alike["role"] == "planted"]
        parts[f"reproduced or not, x{grade}"] = own.assign(positive=own["reproduced"])
    return parts


def _kind(contrast: str) -> str:
    if contrast.startswith(FREE):
        return "control"
    if contrast == "ordinary against unseen":
        return "membership"
    return KINDS.get(contrast[:4], "copies")


def selected(every: Sequence[Case], family: str | None, contrast: str | None) -> list[Case]:
    """The cases of a family and of a kind of contrast, or a contrast by its name; of neither, the headlines of each family.

    A headline is one of `HEADLINES` of the first way of training whose plain baseline stays below the `CEILING`, or else of
    the first; where a family has none, its first contrast. Raises ValueError for names that are not there.
    """
    families = list(dict.fromkeys(case.family for case in every))
    if family is not None and family not in families:
        raise ValueError(f"there is no family {family!r}{suggest(family, families)}")
    of_family = [case for case in every if family in (None, case.family)]
    if contrast is None:
        questions: dict[tuple[str, str, str], list[Case]] = {}
        for case in of_family:
            if case.contrast in HEADLINES and case.kind != "control":
                questions.setdefault((case.family, case.items, case.contrast), []).append(case)
        shown = [next((case for case in same if not _at_ceiling(case)), same[0]) for same in questions.values()]
        for case in of_family:
            if not any((case.family, case.items) == (each.family, each.items) for each in shown):
                shown.append(case)
        return [case for case in of_family if case in shown]
    names = list(dict.fromkeys([*bench.KINDS, *(case.contrast for case in every)]))
    if contrast not in names:
        raise ValueError(f"there is no contrast {contrast!r}{suggest(contrast, names)}")
    return [case for case in of_family if contrast in (case.kind, case.contrast)]


def _at_ceiling(case: Case) -> bool:
    plain = [setting for setting in case.settings if setting.detector == bench.BASELINES[case.items]]
    return bool(plain) and bench.chosen(case, plain)[1] >= CEILING


def seconds_of(known: Mapping[str, Mapping[str, Any]], root: Path = Path()) -> dict[str, float]:
    """Seconds of a network evaluation of each family, the mean over its models as they were scored on this machine."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, entry in known.items():
        path = root / "results/costs" / f"{PREFIX}{name}.json"
        for cost in read_json(path).values() if path.exists() else ():
            found.setdefault(family_of(entry), []).append((cost["evaluations"], cost["seconds"]))
    return {
        family: sum(seconds for _, seconds in costs) / max(1, sum(count for count, _ in costs))
        for family, costs in found.items()
    }


def table(chosen: Sequence[Case], budget: float, seconds: Mapping[str, float]) -> pd.DataFrame:
    """The rows of several cases, with the seconds that the evaluations of an item take by themselves."""
    rows = pd.concat([bench.judge(case, budget) for case in chosen], ignore_index=True)
    each = rows["family"].map(dict(seconds)).astype(float) * rows["evaluations"]
    rows.insert(rows.columns.get_loc("evaluations") + 1, "seconds", each)
    return rows


def printed(rows: pd.DataFrame) -> Iterator[str]:
    """The rows as text, a block for each case."""
    for names, part in rows.groupby(["family", "items", "training", "contrast"], sort=False):
        yield f"\n{', '.join(names)}: {part['positives'].iloc[0]} / {part['negatives'].iloc[0]} on the half that is reported"
        columns = [name for name in (*SHOWN, *part.filter(like="minus ")) if name in part and part[name].notna().any()]
        texts = part[columns].map(lambda value: str(value) if isinstance(value, Estimate) else value)
        numbers = {"evaluations": "{:.0f}".format, "seconds": "{:.4f}".format, "FPR": "{:.0%}".format}
        yield texts.to_string(index=False, formatters=numbers, na_rep="", max_colwidth=44)


def beside(
    candidates: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Scores of new detectors with those of the tables on the same items, by the model's name."""
    joined = {}
    for name, (scores, about) in candidates.items():
        others, costs = scores_of(known[name])
        joined[name] = pd.concat([scores, others.loc[scores.index]], axis=1), pd.concat([about, costs])
    return joined


def evaluations_made(known: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Network evaluations of each model, over all items: those of each row, of each run of a detector, and those really made.

    A row is a setting that is judged, as if it were alone; of the layers of GSA only all together. A run gives several rows, such
    as the first draws of a loss, and counts the dearest.
    """
    rows = []
    for name, entry in known.items():
        alone, runs = 0, 0
        for path in sorted(entry["folder"].glob("*.parquet")):
            table = pd.read_parquet(path)
            said = {name: parse_setting(name) for name in table["setting"].unique()}
            costs = table.groupby("setting")["evaluations"].sum()
            single = [name for name, own in said.items() if own.get("layer", "all") == "all" or "noise" in own]
            alone += int(costs[single].sum())
            run = {
                name: setting_name({k: v for k, v in own.items() if k not in READINGS}) for name, own in said.items()
            }
            runs += int(costs.groupby(run).max().sum())
        made = sum(read_json(entry["folder"] / "evaluations.json").values())
        items = table["item"].nunique()
        about = {"model": name, "family": family_of(entry), "items": items}
        rows.append(about | {"by rows": alone, "by runs": runs, "made": made})
    return pd.DataFrame(rows)
