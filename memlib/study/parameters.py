"""What may stand in params.yaml: every section as `memlib.study.schema` has it, and all of them fitting together.

`check` raises ValueError with one sentence that says where, what stands there and what would be right. A section without a
model takes its names and types from the cell tagged `parameters` of the notebook of its name.
"""

import ast
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError, create_model

from memlib.datasets.roles import FLOW, ROLES, controls_of, counterpart, role_of
from memlib.detectors import ALL as DETECTORS
from memlib.files import suggest
from memlib.study.digests import notebooks
from memlib.study.schema import NOTEBOOKS, SECTIONS, Section, every_setting, section
from memlib.training.settings import (
    AutoencoderConfig,
    EmbeddingConfig,
    FlowConfig,
    JudgeConfig,
    Seed,
    TextConfig,
    TrainConfig,
)

TRAININGS = ("pair-0", "pair-1", "pair-2", "scratch-0", "scratch-1", "small")  # that the chapters read
ENTRIES = ("truth", "scores")  # sections of which every entry is a stage
LEAST_WATCHED = 5  # pictures of either half that a monitor of two detectors can alarm by: 1 / (10 over 5) < 0.025 / 2
BENCH = "bench-"  # begins the names of the entries of `scores` that are models of the bench
PROMPTS = tuple(f"tables/drawings/{name}.parquet" for name in ("prompts", "followed", "further"))


# The check


def check(path: str | Path = "params.yaml") -> dict[str, Any]:
    """Content of params.yaml, after every parameter has been checked; raises ValueError for the first that cannot be."""
    parameters = read(path)
    try:
        check_content(parameters)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return parameters


def check_content(parameters: dict[str, Any]) -> None:
    """Raise ValueError for the first parameter that cannot be, or does not fit the others."""
    files = {file.stem: file for file in notebooks()}
    models = SECTIONS | {name: model for name, model in NOTEBOOKS.items() if name in files.keys() | parameters.keys()}
    others = (files.keys() & parameters.keys()) - models.keys()
    models |= {name: _notebook_section(files[name]) for name in sorted(others)}
    study = create_model("Study", __base__=Section, **{name: (model, ...) for name, model in models.items()})
    try:
        study.model_validate(parameters, context=schedules(parameters))
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda found: found["type"] not in UNKNOWN)
        raise ValueError(_sentence(first, study.model_json_schema())) from None
    for rule in RULES:
        rule(parameters)


def read(path: str | Path) -> dict[str, Any]:
    """Content of a file of parameters; raises ValueError if there is none, or it is no YAML that maps each name once."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; run this in the folder of the study") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8 ({error})") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        repeated = _repeated_name(node)
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date or a number that cannot be
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}," if mark else f"{path}"
        raise ValueError(f"{where} is not YAML: {getattr(error, 'problem', None) or error}") from None
    if repeated:
        line = repeated.start_mark.line + 1
        raise ValueError(f"{path}, line {line}, names {repeated.value} a second time in one mapping; remove either")
    if not isinstance(content, dict):
        what = "empty" if content is None else f"no mapping of sections but {reprlib.repr(content)}"
        raise ValueError(f"{path} is {what}; `git checkout {path}` gives the study's own")
    return content


def lay_over(parameters: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with those of a profile in their place: name by name in a section, in `truth` and `scores` in each entry.

    An entry that is null is taken out, such as that of an arm which the profile does not train.
    """
    laid = dict(parameters)
    for name, content in profile.items():
        known = parameters.get(name, {})
        if name in ENTRIES:
            content = {key: entry and known.get(key, {}) | entry for key, entry in content.items()}
        laid[name] = {key: value for key, value in (known | content).items() if value is not None}
    return laid


def _repeated_name(node: yaml.Node | None) -> yaml.Node | None:
    """The first name that stands twice in one mapping; it must be looked for before aliases are filled in."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if node is None or node.id == "scalar" or id(node) in seen:
            continue
        seen.add(id(node))
        if node.id == "mapping":
            names = [key for key, _ in node.value if key.id == "scalar"]
            values = [key.value for key in names]
            repeated = [key for number, key in enumerate(names) if key.value in values[:number]]
            if repeated:
                return repeated[0]
        todo += [value for _, value in node.value] if node.id == "mapping" else node.value
    return None


def schedules(parameters: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The lowest and the highest noise level that the models of the sections `train`, `text` and `flow_text` are trained for.

    Those of diffusers' schedulers of 1,000 steps, in variance-exploding coordinates: sqrt(1 / abar - 1), of a flow t / (1 - t).
    """
    t = np.arange(1001) / 1000
    bars = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = {
        "linear": np.linspace(1e-4, 0.02, 1000),
        "scaled_linear": np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2,
        "squaredcos_cap_v2": np.minimum(1 - bars[1:] / bars[:-1], 0.999),
    }
    train = parameters.get("train")
    chosen = str(train.get("beta_schedule")) if isinstance(train, dict) else ""
    levels = {
        "train": betas.get(chosen, betas["linear"]),
        "text": np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2,  # of Stable Diffusion
    }
    found = {name: tuple(np.sqrt(1 / (1 - b).cumprod() - 1)[[0, -1]].tolist()) for name, b in levels.items()}
    return found | {"flow_text": (1 / 999, 999.0)}


def _notebook_section(file: Path) -> type[Section]:
    """The model of a section from the cell of its notebook that is tagged `parameters`."""
    import papermill

    found = papermill.inspect_notebook(str(file))
    defaults = {name: ast.literal_eval(parameter["default"]) for name, parameter in found.items()}
    return section(**{name: Seed if name == "seed" else _kind(default) for name, default in defaults.items()})


def _kind(default: Any) -> Any:
    """The type of a default value, down to the entries of a list or a mapping."""
    if isinstance(default, list) and default:
        return list[float if any(isinstance(entry, float) for entry in default) else _kind(default[0])]
    if isinstance(default, dict) and default:
        key, value = next(iter(default.items()))
        return dict[_kind(key), _kind(value)]
    return type(default)


# Messages

UNKNOWN = (
    "extra_forbidden",
    "invalid_key",
)  # pydantic's errors for a name that is not known, and for one that is no text


def _sentence(error: Mapping[str, Any], schema: dict[str, Any]) -> str:
    """What is wrong and what would be right, of one of pydantic's errors."""
    *parents, last = error["loc"]
    where = _place(error["loc"])
    match error["type"]:
        case kind if kind in UNKNOWN:
            what = f"parameter {where!r}" if parents else f"section {str(last)!r}"
            return f"unknown {what}{suggest(last, _part(schema, parents).get('properties', {}))}"
        case "missing":
            return f"{where} is missing; it must be {_wanted(_part(schema, error['loc']))}"
        case "value_error":
            reason = str(error["ctx"]["error"])
        case _:
            wanted = _wanted(_part(schema, error["loc"]))
            reason = (
                f"must be {wanted}" if wanted and last != "[key]" else error["msg"].replace("Input should", "must", 1)
            )
    if last == "[key]":
        return f"{_place(parents[:-1])} has the name {error['input']!r}; it {reason}"
    value = error["input"]
    hint = ""
    if isinstance(value, str) and "number" in reason and _is_number(value):
        hint = f" (in quotes, or without a point as in 1e-3, it is text to YAML; write {float(value)})"
    if isinstance(value, bool) and "one of" in reason:
        hint = " (in quotes: YAML reads no and off as false, yes and on as true)"
    return f"{where} is {reprlib.repr(value)}; it {reason}{hint}"


def _place(loc: list[Any] | tuple[Any, ...]) -> str:
    """Where a value stands, such as `frontier.levels[2]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc]
    return "".join(parts).removeprefix(".")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _part(schema: dict[str, Any], loc: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    """The part of a JSON schema that describes the value at a place; an empty one where there is none."""
    part = schema
    for name in (*loc, None):
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        if name is not None:
            part = part.get("properties", {}).get(name) or part.get("additionalProperties") or part.get("items") or {}
    return part


def _wanted(part: dict[str, Any]) -> str:
    """What a part of a JSON schema asks for, in words."""
    if "enum" in part:
        return f"one of {', '.join(map(str, part['enum']))}"
    match part.get("type"):
        case "integer":
            return "a whole number" + _range(part)
        case "number":
            return "a finite number" + _range(part)
        case "boolean":
            return "true or false"
        case "string":
            return "a text"
        case "array":
            least, most = part.get("minItems", 0), part.get("maxItems")
            count = f" with {least} to {most} entries" if most else f" with at least {least} entries" if least else ""
            entries = _wanted(part.get("items", {}))
            return f"a list{count}" + (f", each {entries}" if entries else "")
        case "object":
            names = part.get("properties")
            return f"a mapping with the names {', '.join(names)}" if names else "a mapping of names to values"
    return ""


def _range(part: dict[str, Any]) -> str:
    low, high = part.get("minimum"), part.get("maximum")
    above, below = part.get("exclusiveMinimum"), part.get("exclusiveMaximum")
    words = [
        f"from {low}" if low is not None else "",
        f"above {above}" if above is not None else "",
        f"to {high}" if high is not None and low is not None else f"up to {high}" if high is not None else "",
        f"below {below}" if below not in (None, math.inf) else "",
        f"and a multiple of {part['multipleOf']}" if "multipleOf" in part else "",
    ]
    return "".join(f" {word}" for word in words if word)


# What must fit together


def _trainings(parameters: Mapping[str, Any]) -> None:
    """Settings of every training, some of them laid over others."""
    train = parameters["train"]
    families = (
        ("text", "text_arms", TextConfig),
        ("flow", "flow_arms", FlowConfig),
        ("text", "template_arms", TextConfig),
    )
    trainings = {
        "train": (TrainConfig, train),
        "retrain (laid over train)": (TrainConfig, train | parameters["retrain"]),
        "mirrored (laid over train)": (TrainConfig, train | parameters["mirrored"]),
        "scratch (laid over train)": (TrainConfig, train | parameters["scratch"]),
        "embedding": (EmbeddingConfig, parameters["embedding"]),
        "autoencoder": (AutoencoderConfig, parameters["autoencoder"]),
        "judge": (JudgeConfig, parameters["judge"]),
    }
    if "fine_tuning" in parameters:
        own = {name: parameters["fine_tuning"][name] for name in ("steps", "learning_rate")}
        trainings["fine_tuning (laid over train and retrain)"] = TrainConfig, train | parameters["retrain"] | own
    for family, arms, config in families:
        base, laid_over = parameters[config.section], parameters[f"{family}_arm"]
        trainings[config.section] = config, base
        trainings |= {
            f"run.{arms}.{arm} (laid over {config.section} and {family}_arm)": (
                config,
                base | laid_over | changes,
            )
            for arm, changes in parameters["run"][arms].items()
        }
    for where, (config, content) in trainings.items():
        try:
            config(**content)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _pictures(parameters: Mapping[str, Any]) -> None:
    data, drawings, channels = parameters["data"], parameters["drawings"], parameters["train"]["channels"]
    _root("data", data)
    _root("drawings", drawings)
    for split, copies in data["copies"].items():
        _fits(f"data.copies.{split}", copies, f"data.splits.{split}", data["splits"][split])
    _fits("drawings.copies", drawings["copies"], "drawings.subjects.planted", drawings["subjects"]["planted"])
    _fits("drawings.triggers", drawings["triggers"], "drawings.subjects.train", drawings["subjects"]["train"])
    rest = drawings["subjects"]["planted"] - sum(drawings["copies"].values())
    for name, counts in (("copies", drawings["copies"] | {1: rest}), ("triggers", drawings["triggers"])):
        for grade, count in counts.items():
            if count % 2 or count == 2:
                raise ValueError(
                    f"drawings.{name} leaves {count} pictures of the grade {grade}; it must be an even number from 4 on, since "
                    "roles are exchanged between halves and a role needs two"
                )
    most = max((*drawings["copies"], *drawings["triggers"]), default=0)
    if min(drawings[name].get(most, 0) for name in ("copies", "triggers")) < 2:
        raise ValueError(
            f"drawings.copies is {drawings['copies']} and drawings.triggers {drawings['triggers']}; the largest number of "
            "copies must be the same in both, with at least two pictures each, which the claims are judged by"
        )
    planted, pairs = parameters["pairs"]["copies"], data["splits"]["pairs"]
    if 3 * sum(planted.values()) != pairs:
        raise ValueError(
            f"pairs.copies is {planted}, {sum(planted.values())} pictures; they must be a third of "
            f"data.splits.pairs, which is {pairs}"
        )
    modified, seen = parameters["sets"]["modified"], pairs * 2 // 3
    if modified > seen:
        raise ValueError(f"sets.modified is {modified}; it must be at most two thirds of data.splits.pairs, {seen}")
    levels = len(parameters["autoencoder"]["channels"])
    latent = drawings["size"] // 2 ** (levels - 1)
    for what, side, name, count in (
        ("data.size", data["size"], "train.channels", len(channels)),
        ("drawings.size", drawings["size"], "autoencoder.channels", levels),
        (
            f"drawings.size {drawings['size']} gives latents a side of which",
            latent,
            "text.channels",
            len(parameters["text"]["channels"]),
        ),
    ):
        if side % 2 ** (count - 1):
            raise ValueError(
                f"{what} is {side}; it must halve {count - 1} times, once between the {count} levels of {name}: choose a "
                f"multiple of {2 ** (count - 1)} or fewer levels"
            )
    if latent % parameters["flow_text"]["patch"]:
        raise ValueError(
            f"flow_text.patch is {parameters['flow_text']['patch']}; it must divide {latent}, a side of the latents"
        )


def _root(section: str, pictures: Mapping[str, Any]) -> None:
    name, root = pictures["name"], pictures["root"]
    if (root or name == "folder") and not (root and Path(root).is_dir()):
        raise ValueError(f"{section}.root is {root!r}; it must be the folder that holds the files of {name!r}")


def _fits(name: str, copies: dict[int, int], split: str, size: int) -> None:
    if sum(copies.values()) > size:
        raise ValueError(
            f"{name} is {copies}, {sum(copies.values())} pictures in all; there can be at most {size}, which is {split}"
        )


def _arms(parameters: Mapping[str, Any]) -> None:
    run = parameters["run"]
    _entries("run.trainings", run["trainings"], TRAININGS)
    for name, training in run["trainings"].items():
        if name.startswith("pair-") and name != f"pair-{training['roles']}":
            raise ValueError(f"run.trainings.{name}.roles is {training['roles']}; it must be the number in the name")
        _known(f"run.trainings.{name}.start", training["start"], ("results/models/reference",))
    for name, arm in run["arms"].items():
        _one_of(f"run.arms.{name}.roles", f"pair-{arm['roles']}", "run.trainings", run["trainings"])
    if "base" in run["text_arms"]:
        raise ValueError("run.text_arms has an arm 'base', which is what the arms start from; give it another name")
    for name in (*run["text_arms"], *run["flow_arms"]):
        kind = "flow_arms" if name in run["flow_arms"] else "text_arms"
        if name.startswith(FLOW) != (kind == "flow_arms") or name == f"{FLOW}base":
            raise ValueError(
                f"run.{kind} has an arm {name!r}; the names of run.flow_arms begin with {FLOW!r}, no others do, and "
                f"'{FLOW}base' is what they start from"
            )


def _roles(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless two trainings exchange roles and have samples enough to tell copies from chance."""
    drawings = parameters["drawings"]
    for kind, names in (("text_arms", ROLES), ("flow_arms", controls_of(FLOW))):
        arms = parameters["run"][kind]
        for name, exchanged in zip(names, (False, True), strict=True):
            if name not in arms or arms[name].get("exchanged", False) != exchanged:
                wanted = "{exchanged: true}" if exchanged else "there without exchanged roles"
                raise ValueError(
                    f"run.{kind}.{name} is {arms.get(name)}; it must be {wanted}, to be the other's control"
                )
    pictures = (drawings["subjects"]["planted"] + sum(drawings["triggers"].values())) // 2
    generations = {"control": pictures} | ({"arm": drawings["followed"]["unseen"]} if "arm" in parameters else {})
    for name, prompts in generations.items():
        count = parameters[name]["generations"]
        if prompts * count < 99:
            raise ValueError(
                f"{name}.generations is {count}, of {prompts} prompts; there must be 99 samples or more, to resolve 1 % of "
                "false copies"
            )


def _models(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The models that stages train, and the section that names the noise schedule of each."""
    run = parameters["run"]
    images = ["main", "reference", *run["trainings"], *run["arms"]]
    families = {"text": ("base", *run["text_arms"]), "flow_text": (f"{FLOW}base", *run["flow_arms"])}
    texts = {f"results/text/{name}": section for section, names in families.items() for name in names}
    return {f"results/models/{name}": "train" for name in images} | texts


def _known(where: str, value: str, known: Iterable[str]) -> None:
    """Raise ValueError for a path of results that no stage writes; other paths are the user's own."""
    if value.startswith(("results/", "tables/")) and value not in known:
        raise ValueError(f"{where} is {value!r}, which no stage writes{suggest(value, known)}")


def _truth(parameters: Mapping[str, Any]) -> None:
    truth, splits = parameters["truth"], parameters["data"]["splits"]
    for name, entry in truth.items():
        _known(f"truth.{name}.model", entry["model"], _models(parameters))
        if entry["split"] not in splits:
            raise ValueError(f"truth.{name}.split is {entry['split']!r}{suggest(entry['split'], splits)}")
        if entry["sampler"] == "ancestral" and not 2 <= entry["steps"] <= 1000:
            raise ValueError(f"truth.{name}.steps is {entry['steps']}; the ancestral sampler takes 2 to 1000 steps")
    for name in ("picture_control", "pair_truth"):
        if parameters[name]["sampler"] == "ancestral" and not 2 <= parameters[name]["steps"] <= 1000:
            raise ValueError(
                f"{name}.steps is {parameters[name]['steps']}; the ancestral sampler takes 2 to 1000 steps"
            )
    _entries("truth", truth, ("main", "deterministic"))


def _entries(section: str, entries: Mapping[str, Any], needed: Iterable[str]) -> None:
    for name in needed:
        if name not in entries:
            raise ValueError(f"{section} has no entry {name!r}, which the chapters read; add one like those beside it")


def _scores(parameters: Mapping[str, Any]) -> None:
    run, models, levels = parameters["run"], _models(parameters), schedules(parameters)
    drawn = [*parameters["truth"], *(f"text/{arm}" for arm in (*run["text_arms"], *run["flow_arms"]))]
    samples = [f"results/samples/{name}.safetensors" for name in (*drawn, "training")]
    for key, entry in parameters["scores"].items():
        where, items = f"scores.{key}", entry["items"]
        _known(f"{where}.model", entry["model"], models)
        sources = (*samples, "results/data", "results/drawings/judged", *PROMPTS)
        _known(f"{where}.items.source", items["source"], sources)
        for name, known in (
            ("samples", samples),
            ("training", (*sources, "results/drawings/drawn")),
            ("reference", models),
        ):
            _known(f"{where}.items.{name}", items.get(name, ""), known)
        for split in items.get("splits", []) if items["source"] == "results/data" else []:
            if split not in parameters["data"]["splits"]:
                raise ValueError(f"{where}.items.splits holds {split!r}{suggest(split, parameters['data']['splits'])}")
        schedule = models.get(entry["model"])
        for name, table in entry["tables"].items():
            place, detector = f"{where}.tables.{name}", table["detector"]
            if detector not in DETECTORS:
                raise ValueError(f"{place}.detector is {detector!r}{suggest(detector, DETECTORS)}")
            for number, setting in enumerate(every_setting(table["settings"])):
                if schedule is not None:
                    _levels_of(f"{place}.settings[{number}]", setting, schedule, *levels[schedule])
                if (setting.get("prompt") or items["source"] in PROMPTS) and schedule == "train":
                    raise ValueError(f"{place}.settings[{number}] needs prompts, which {entry['model']} does not take")
    _entries(
        "scores", parameters["scores"], ("main-volume", *run["trainings"], *(f"{arm}-text" for arm in run["text_arms"]))
    )


def _levels_of(where: str, setting: Mapping[str, Any], schedule: str, low: float, high: float) -> None:
    """Raise ValueError for a setting of a detector with a noise level outside of the schedule."""
    levels = {name: setting[name] for name in ("sigma", "sigma_min", "sigma_max") if name in setting}
    start = setting.get("sigma_min", setting.get("sigma"))
    if "ratio" in setting and start is not None:
        steps = setting.get("steps", 1)
        rise = (max(steps) if isinstance(steps, list) else steps) * math.log(setting["ratio"])
        levels["the last level"] = start * math.exp(min(rise, 100))
    for name, sigma in levels.items():
        if not low <= sigma < high:
            raise ValueError(
                f"{where}: {name} is {sigma:g}; it must be a noise level of the schedule of `{schedule}`, from {low:.4g} to "
                f"below {high:.4g}"
            )


def _carried_axes(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _at_most("carried_axes.axes", section["axes"], "carried_axes.dimensions", section["dimensions"])


def _solver(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    if section["finest_steps"] <= max(section["growth_steps"]):
        raise ValueError(
            f"solver.finest_steps is {section['finest_steps']}; it must be above solver.growth_steps, {section['growth_steps']}"
        )


def _arm(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    run = parameters["run"]
    _one_of("arm.arm", section["arm"], "run.text_arms and run.flow_arms", [*run["text_arms"], *run["flow_arms"]])


def _localise(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    run = parameters["run"]
    _one_of("localise.arm", section["arm"], "run.template_arms", run["template_arms"])
    for name in run["template_arms"].keys() & {"base", *run["text_arms"], *run["flow_arms"]}:
        raise ValueError(f"run.template_arms has an arm {name!r}, which another model is called; give it another name")


def _localisation(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _one_of("localisation.shown", section["shown"], "localise.sigmas", parameters["localise"]["sigmas"])


def _late_steps(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _at_most("late_steps.levels", section["levels"], "late_steps.sampling_steps", section["sampling_steps"])


def _growth(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    models = ("reference", "unseen", *parameters["run"]["trainings"])
    for volume, denoising in (("main-volume", "main-denoising"), *((k, k) for k in models)):
        _reads("growth", parameters, volume, "growth")
        _reads("growth", parameters, denoising, "loss", sigma=0.2, draws=4)


def _frontier(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _one_of("frontier.copies", section["copies"], "data.copies.train", parameters["data"]["copies"]["train"])
    _reads("frontier", parameters, "main-volume", "edges", axes=1, steps=1)
    _reads("frontier", parameters, "main-denoising", "loss", draws=2)


def _peaks(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _one_of("peaks.copies", section["copies"], "data.copies.train", parameters["data"]["copies"]["train"])
    for key, table in (
        ("main-p_laplacian", "flux"),
        ("main-p_laplacian", "derivatives"),
        ("samples-p_laplacian", "flux"),
    ):
        _reads("peaks", parameters, key, table, p=1)


def _detection(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    runs = section["runs"]
    _sampled("detection", section, parameters)
    for arm in section["shares"]:
        _one_of("detection.shares", arm, "run.text_arms", parameters["run"]["text_arms"])
        first = _reads("detection", parameters, f"{arm}-text", "magnitude")
        _at_most(
            "detection.generations", section["generations"], f"the noises of scores.{arm}-text", first.get("noises", 0)
        )
    followed = _reads("detection", parameters, "planted-followed", "sampled_magnitude")
    last = followed.get("sampling_steps", max(runs))
    if not (len(runs) > 1 and 1 in runs and max(runs) == last and runs[last] >= 2):
        raise ValueError(
            f"detection.runs is {runs}; it must hold 1 step, and all {last} of scores.planted-followed with at least 2 "
            "generations"
        )
    first = _reads("detection", parameters, "planted-text", "magnitude")
    for steps, generations in runs.items():
        key, noises = ("planted-text", first) if steps == 1 else ("planted-followed", followed)
        _at_most(f"detection.runs[{steps}]", generations, f"the noises of scores.{key}", noises.get("noises", 0))
    _reads("detection", parameters, "latent-denoising", "loss", sigma=section["loss_sigma"], prompt=True)
    if "late_steps" in parameters:
        guidances = parameters["late_steps"]["guidances"]
        _one_of("detection.guidance", section["guidance"], "late_steps.guidances", guidances)


def _mitigation(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _sampled("mitigation", section, parameters)
    for arm in section["arms"]:
        _one_of("mitigation.arms", arm, "run.text_arms", parameters["run"]["text_arms"])
        first = _reads("mitigation", parameters, f"{arm}-text", "magnitude")
        _at_most("mitigation.noises", section["noises"], f"the noises of scores.{arm}-text", first.get("noises", 0))


def _bench(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless all models of the bench have the scores that the others are compared with."""
    keys = [key for key in parameters["scores"] if key.startswith(BENCH)]
    _entries("scores", parameters["scores"], [f"{BENCH}{name}" for name in ("pair-0", "unseen", "main", *ROLES)])
    for key in keys:
        prompts = parameters["scores"][key]["items"]["source"] in PROMPTS
        _reads("bench", parameters, key, "magnitude" if prompts else "loss")


def _one_laplacian(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless all models of the bench that are asked about pictures have the readings of one field."""
    for key, entry in parameters["scores"].items():
        if key.startswith(BENCH) and entry["items"]["source"] not in PROMPTS:
            for table in ("loss", "rate", "growth"):
                _reads("one_laplacian", parameters, key, table)


def _guarded(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    run = parameters["run"]
    _one_of("guarded.arm", section["arm"], "run.text_arms and run.flow_arms", [*run["text_arms"], *run["flow_arms"]])
    asked = section["calibration"] + section["ordinary"]
    _at_most(
        "guarded.calibration + guarded.ordinary",
        asked,
        "drawings.further.ordinary",
        parameters["drawings"]["further"]["ordinary"],
    )
    least = math.ceil(round(1 / section["false_alarms"], 6)) - 1
    if section["calibration"] < least:
        raise ValueError(
            f"guarded.calibration is {section['calibration']}; a rate of {section['false_alarms']:g} needs at least {least} "
            "prompts"
        )


def _audits(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError unless all that audits are rehearsed on is scored, and every guard has one of the other role."""
    audits, scores, run = parameters["audits"], parameters["scores"], parameters["run"]
    pairs = [name for name in run["trainings"] if name.startswith("pair-")]
    _entries("scores", scores, [f"audit-{name}" for name in (*pairs, "unseen", *audits["text_arms"])])
    for name in (*pairs, "unseen"):
        _reads("audit", parameters, f"audit-{name}", "loss", sigma=0.2, draws=4)
    for training in audits["text_arms"]:
        _reads("audit", parameters, f"audit-{training}", "magnitude")
    for place in ("text_arms", "guards"):
        for training in audits[place]:
            known = [*run["text_arms"], *run["flow_arms"]]
            _one_of(f"audits.{place}", training, "run.text_arms and run.flow_arms", known)
    for training in audits["text_arms"]:
        _one_of(
            "audits.text_arms",
            counterpart(training),
            f"audits.text_arms, as the control of {training}",
            audits["text_arms"],
        )
    further = parameters["drawings"]["further"]["ordinary"]
    asked = audits["ordinary"] + audits["prompt_nulls"]
    _at_most("audits.ordinary + audits.prompt_nulls", asked, "drawings.further.ordinary", further)
    copied = sum(parameters["data"]["copies"]["train"].values())
    once = parameters["data"]["splits"]["train"] - copied
    _at_most("audits.sizes", audits["sizes"][-1], "the pictures that the main model sees once", once)
    for training in audits["guards"]:
        family = [name for name in audits["guards"] if name.startswith(FLOW) == training.startswith(FLOW)]
        if len({role_of(name) for name in family}) < 2:
            raise ValueError(
                f"audits.guards has {training!r} and none of the other role, on which the steps that its guard reads are chosen"
            )


def _fine_tuning(section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    _at_most("fine_tuning.samples_every", section["samples_every"], "fine_tuning.steps", section["steps"])
    if section["samples_every"] % section["every"]:
        raise ValueError(
            f"fine_tuning.samples_every is {section['samples_every']}; it must be a multiple of fine_tuning.every, "
            f"{section['every']}"
        )
    pictures = parameters["data"]["splits"]["pairs"]
    if pictures < 2 * LEAST_WATCHED:
        raise ValueError(
            f"data.splits.pairs is {pictures}; it must be at least {2 * LEAST_WATCHED}, since fewer in either half cannot alarm"
        )


def _sampled(name: str, section: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError where arms are not sampled at the guidance of a chapter."""
    if "arm" in parameters:
        _one_of(f"{name}.guidance", section["guidance"], "arm.guidances", parameters["arm"]["guidances"])


def _at_most(place: str, value: int, limit_place: str, limit: int | list[int]) -> None:
    if value > (max(limit) if isinstance(limit, list) else limit):
        raise ValueError(f"{place} is {value}; it must be at most {limit_place}, {limit}")


def _one_of(place: str, value: Any, known_place: str, known: Iterable[Any]) -> None:
    if value not in known:
        raise ValueError(f"{place} is {value!r}; it must be one of {known_place}{suggest(value, map(str, known))}")


def _reads(chapter: str, parameters: Mapping[str, Any], key: str, table: str, **wanted: Any) -> dict[str, Any]:
    """The setting that a chapter reads in a table of scores: that has these values, or lists that hold them."""
    _entries("scores", parameters["scores"], [key])
    tables = parameters["scores"][key]["tables"]
    _entries(f"scores.{key}.tables", tables, [table])
    for setting in every_setting(tables[table]["settings"]):
        found = {name: setting.get(name) for name in wanted}
        if all(
            value in (found[name] if isinstance(found[name], list) else [found[name]]) for name, value in wanted.items()
        ):
            return setting
    values = " and ".join(f"{name} {value}" for name, value in wanted.items())
    raise ValueError(f"scores.{key}.tables.{table} has no setting with {values}, which the chapter {chapter} reads")


CHAPTERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], None]] = {
    "carried_axes": _carried_axes,
    "solver": _solver,
    "arm": _arm,
    "late_steps": _late_steps,
    "localise": _localise,
    "localisation": _localisation,
    "growth": _growth,
    "frontier": _frontier,
    "peaks": _peaks,
    "detection": _detection,
    "captions": partial(_sampled, "captions"),
    "tokens": partial(_sampled, "tokens"),
    "mitigation": _mitigation,
    "guarded": _guarded,
    "fine_tuning": _fine_tuning,
    "bench": _bench,
    "one_laplacian": _one_laplacian,
}


def _chapters(parameters: Mapping[str, Any]) -> None:
    """What experiments and chapters need of other sections; one whose notebook has been taken away needs nothing."""
    for name, rule in CHAPTERS.items():
        if name in parameters:
            rule(parameters[name], parameters)


RULES: tuple[Callable[[Mapping[str, Any]], None], ...] = (
    _trainings,
    _pictures,
    _arms,
    _roles,
    _truth,
    _scores,
    _audits,
    _chapters,
)
