"""An audit of a model: which of some pictures or prompts it has memorised, with a stated rate of false discoveries.

Scores are computed once, into tables (see `memlib.score`); the report (see `memlib.audit_report`) is made of tables.
"""

import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from memlib.audit_report import Finding, Match, Section, Suspect, as_page, verdict
from memlib.cluster import Source, connect, located, score_batches
from memlib.datasets.collection import Collection, content_digests, picture_collection, prompt_collection
from memlib.datasets.items import training_pictures
from memlib.detectors import find
from memlib.detectors.api import Detector, Items
from memlib.detectors.maps import copied_map
from memlib.detectors.text import lost_without_words, token_significance
from memlib.evaluation.discovery import conformal_p_values, discoveries, fewest_nulls, most_false
from memlib.evaluation.whole_set import LEAST, SetTest, set_test
from memlib.fields.digest import weights_digest
from memlib.fields.load import check_single_encoder, load_field
from memlib.fields.network import NetworkField
from memlib.fields.transformer import usual
from memlib.files import atomic_write, read_json, write_json, write_table
from memlib.processes import processes
from memlib.progress import progress
from memlib.sampling.pipeline import cut_parts, generate, shared_noise
from memlib.score import Table, write_tables
from memlib.tables import parse_setting, setting_name
from memlib.tensors import to_uint8

BOUND = 0.05  # chance that a post-hoc bound on the false discoveries does not hold
DRAWN = 10  # suspects of which a map is made and, where there are training pictures to compare it with, a picture drawn
DRAWING_STEPS = 25
MAP_LEVEL, MAP_DIRECTIONS = 1.0, 8  # of the map of what is copied
CALLS = {
    "pictures": 2,
    "prompts": 4,
}  # of the network, whose items are read at a time; prompts share the pass without one
REPORT, STATE, SCORES, TABLES = "report.html", "audit.json", "scores.parquet", "tables"


@dataclass(frozen=True)
class Options:
    """What is asked for: see `memlib audit --help`."""

    model: str
    images: Path | None = None
    splits: Sequence[str] = ()
    prompts: Path | None = None
    null_images: Path | None = None
    null_splits: Sequence[str] = ()
    null_prompts: Path | None = None
    reference: str | None = None
    training: Path | None = None
    training_splits: Sequence[str] = ()
    fdr: float = 0.1
    detectors: Sequence[str] = ()
    setting: Mapping[str, Any] | None = None
    budget: int | None = None
    output: Path = Path("audit")
    show: int = 50
    seed: int = 0
    rows: int = 64
    dtype: str = "float32"
    device: str | None = None
    ray: str | None = None
    replace: bool = False
    command: str = ""


class Choice(NamedTuple):
    """A detector with the settings that it is used at (the usual ones, if none are named)."""

    detector: Detector
    settings: list[dict[str, Any]]


class Training(NamedTuple):
    """What the model was trained on: ids, pictures [M, C, H, W] in [-1, 1], captions (None without any)."""

    ids: list[str]
    pictures: Tensor
    captions: list[str] | None


# (evaluations an item, detector, setting), the better ones below. By the bench of the study (metrics/bench.json): at up to 16
# evaluations no detector is ahead of the plain ones on any of its questions, with 95 % intervals of paired differences.
RECOMMENDED = {
    "pictures": (
        (1, "loss", {"draws": [1]}),
        (4, "loss", {"draws": [4]}),
        (16, "loss", {"draws": [16]}),
        (2, "calibrated_loss", {"draws": [1]}),
        (8, "calibrated_loss", {"draws": [4]}),
        (32, "calibrated_loss", {"draws": [16]}),
    ),
    "prompts": (
        (1, "magnitude", {"noises": 1}),
        (4, "magnitude", {"noises": 4}),
        (16, "magnitude", {"noises": 16}),
    ),
}
PIXEL_LEVEL, LATENT_LEVEL = 0.2, 2.5  # of the loss, in units of pictures in [-1, 1] and of latents of variance 1
USUAL_BUDGET = 8
NEAR = 1024  # training pictures that are compared with a suspect at a time
# Of detectors that read several quantities off the same evaluations, the one that is meant by the detector's name
MEANT = {
    "flipd": {"quantity": "flipd"},
    "growth": {"rate_at": None},
    "calibrated_growth": {"rate_at": None},
    "gsa": {"layer": "all"},
    "sima": {"power": 4},
}


def recommended(
    kind: str, reference: bool, budget: int | None = None, latent: bool = False, captioned: bool = False
) -> Choice:
    """The detector to use for pictures or prompts at a budget of network evaluations an item.

    The one place where this is decided: the last line of `RECOMMENDED` that the budget pays for, and whose needs are met. The
    loss of pictures is taken at the level that suits pixels or latents, and under their captions where they have some. Raises
    ValueError for a budget that pays for none.
    """
    most = USUAL_BUDGET if budget is None else budget
    more = {"sigma": LATENT_LEVEL if latent else PIXEL_LEVEL} if kind == "pictures" else {}
    more |= {"prompt": True} if captioned else {}
    affordable = [
        Choice(find(name), [more | setting])
        for cost, name, setting in RECOMMENDED[kind]
        if cost <= most and (reference or "reference" not in find(name).needs)
    ]
    if not affordable:
        raise ValueError(
            f"a budget of {most} evaluations an item pays for no detector of {kind}; it must be at least 1"
        )
    return affordable[-1]


def audit(options: Options) -> Path:
    """Score, judge and report; returns the path of the report. A run that was killed goes on from its tables.

    Raises ValueError, before the network is asked anything, for what cannot be: see the checks.
    """
    check_options(options)
    choose_device(options.device)
    started = time.monotonic()
    if options.ray is not None:
        connect(
            options.ray,
            [path for path in (options.model, options.reference, options.images, options.null_images) if path],
        )
    dtype = getattr(torch, options.dtype)
    field = load_field(options.model, dtype, options.rows)
    reference = load_field(options.reference, dtype, options.rows) if options.reference else None
    if reference is not None and (reference.shape, reference.takes_prompts) != (field.shape, field.takes_prompts):
        raise ValueError(f"the reference {options.reference} is of another kind or size than {options.model}")
    training = None
    if options.training is not None:
        training = Training(*training_pictures(options.training, options.training_splits, tuple(field.picture_shape)))
    pairs = collections(options, field, training)
    beside = {"reference": reference}
    if training is not None:
        beside |= {"training": training.pictures, "captions": training.captions}
    choices = chosen(options, field, pairs, beside)
    digest = weights_digest(field)
    doubts = [text for suspects, nulls in pairs for text in check_nulls(suspects, nulls, options.fdr, choices)]
    about = {
        "model": digest,
        "seed": options.seed,
        "rows": options.rows,
        "processes": processes().num_processes,
        "collections": {suspects.kind: suspects.digest for suspects, _ in pairs},
    }
    asked = {
        "nulls": {nulls.kind: nulls.digest for _, nulls in pairs if nulls is not None},
        "fdr": options.fdr,
        "detectors": {kind: [choice.detector.name for choice in own] for kind, own in choices.items()},
    }
    check_output(options.output, about, options.replace)
    state = processes()
    with one_sentence(options.output), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "of the prompt")  # cut prompts: the report lists them
        if state.is_main_process:
            for text in [*doubts, *check_report(options.output, asked)]:
                print(text, file=sys.stderr)
            if options.replace:
                _remove(options.output)
            write_json(options.output / STATE, {"about": about, "asked": asked})
        state.wait_for_everyone()
        score_all(options, field, digest, pairs, choices, beside)
        report = options.output / REPORT
        if state.is_main_process:
            sections = [section(options, field, *pair, choices[pair[0].kind], training) for pair in pairs]
            facts = _facts(options, field, digest, time.monotonic() - started)
            write_table(options.output / SCORES, pd.concat(map(_all_scores, sections)))
            results = [*map(_summary, sections)]
            write_json(options.output / STATE, {"about": about, "asked": asked, "results": results})
            with atomic_write(report) as temporary:
                temporary.write_text(as_page(sections, facts, doubts), encoding="utf-8")
            for found in sections:
                unread = f" {len(found.notes)} were not scored: the report says why." if found.notes else ""
                print(f"{verdict(found)}{unread}", file=sys.stderr)
        state.wait_for_everyone()
    return report


# --- what is refused before any work


def check_options(options: Options) -> None:
    """Raise ValueError for options that contradict each other, and for numbers that cannot be."""
    if options.images is None and options.prompts is None:
        raise ValueError("give --images, --prompts or both: what is to be audited")
    folders = [path for path in (options.images, options.null_images, options.training) if path is not None]
    for path in folders:
        if not path.exists():
            raise ValueError(f"{path} is not a folder; name one with images")
    for path in (options.prompts, options.null_prompts):
        if path is not None and not path.exists():
            raise ValueError(f"there is no prompt file {path}")
    if options.output in folders or (options.output / "model_index.json").exists():
        raise ValueError(f"{options.output} is the folder of the model or of pictures; name another --output")
    for nulls, items, name in (
        (options.null_images, options.images, "images"),
        (options.null_prompts, options.prompts, "prompts"),
    ):
        if nulls is not None and items is None:
            raise ValueError(f"--null-{name} are compared with --{name}, and none are given")
    for named, of_what, name in (
        (options.splits, options.images, "images"),
        (options.null_splits, options.null_images, "null-images"),
        (options.training_splits, options.training, "training"),
    ):
        if named and of_what is None:
            raise ValueError(f"the splits {', '.join(named)} are asked for, but no --{name} are given")
    if not 0 < options.fdr < 1:
        raise ValueError(f"--fdr is {options.fdr:g}; a rate of false discoveries lies between 0 and 1, such as 0.1")
    for name in ("budget", "rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    for name in ("show", "seed"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} is {getattr(options, name)}; it must be at least 0")
    if options.detectors and options.budget is not None:
        raise ValueError("give --detectors or --budget: with a budget the detector is chosen for you")
    if options.ray is not None and options.device is not None:
        raise ValueError("give --device or --ray: the workers of a cluster use the GPUs that they have")
    if options.setting and not options.detectors:
        raise ValueError("--setting is of named detectors; give --detectors, too")
    for name in options.detectors:
        find(name)


def choose_device(name: str | None) -> None:
    """Compute on this device from now on, such as cpu, cuda, cuda:1 or mps; on the one that accelerate finds if none is named.

    Raises ValueError for a device that is not there.
    """
    if name is None:
        return
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an AssertionError of a build without CUDA
        raise ValueError(f"there is no device {name!r} here; leave --device out to have one chosen") from error
    processes().device = device


def collections(
    options: Options, field: NetworkField, training: Training | None
) -> list[tuple[Collection, Collection | None]]:
    """What is audited, pictures and prompts, each with its nulls if there are any.

    Raises ValueError for nulls that are also suspects, or known to be in the training, and for prompts without a text encoder.
    """
    size, found = tuple(field.picture_shape), []
    if options.images is not None:
        suspects = picture_collection(options.images, options.splits, size, options.seed)
        nulls = None
        if options.null_images is not None:
            nulls = picture_collection(options.null_images, options.null_splits, size, options.seed)
        known = [] if training is None else content_digests(to_uint8(training.pictures))
        found.append((suspects, nulls, known))
    if options.prompts is not None:
        if not field.takes_prompts:
            raise ValueError(f"{options.model} takes no prompts; give --images")
        suspects = prompt_collection(options.prompts, options.seed)
        nulls = None if options.null_prompts is None else prompt_collection(options.null_prompts, options.seed)
        captions = None if training is None else training.captions
        found.append((suspects, nulls, content_digests(captions or [])))
    for suspects, nulls, known in found:
        if nulls is not None:
            for others, what in ((set(suspects.digests), "suspects, too"), (set(known), "in the training set")):
                both = [name for name, digest in zip(nulls.ids, nulls.digests, strict=True) if digest in others]
                if both:
                    raise ValueError(
                        f"{len(both)} of the nulls in {nulls.source} are {what}, such as {both[0]!r}; nulls must be known "
                        "to be outside of the training"
                    )
    return [(suspects, nulls) for suspects, nulls, _ in found]


def chosen(
    options: Options,
    field: NetworkField,
    pairs: Sequence[tuple[Collection, Collection | None]],
    beside: Mapping[str, Any],
) -> dict[str, list[Choice]]:
    """The detectors for each kind of item: those that are named and fit, or the recommended one.

    Raises ValueError for a detector that fits no kind, a kind that none fits, and settings that cannot be.
    """
    settings = [dict(options.setting)] if options.setting else []
    named = [Choice(find(name), settings) for name in dict.fromkeys(options.detectors)]
    found: dict[str, list[Choice]] = {}
    refused: dict[str, ValueError] = {}

    def check(choice: Choice, collection: Collection) -> None:
        items = replace(collection.read(collection.ids[:1]), **beside)
        for setting in choice.settings or choice.detector.settings:
            choice.detector.check(field, items, setting)

    for suspects, nulls in pairs:
        captioned = field.takes_prompts and all(each.captioned for each in (suspects, nulls) if each is not None)
        own = named or [
            recommended(suspects.kind, beside["reference"] is not None, options.budget, field.takes_prompts, captioned)
        ]
        found[suspects.kind] = []
        for choice in own:
            try:
                check(choice, suspects)
                found[suspects.kind].append(choice)
            except ValueError as error:
                refused[choice.detector.name] = error
        if not found[suspects.kind]:
            raise refused[own[0].detector.name]
        for choice in found[suspects.kind] if nulls is not None else ():
            try:
                check(choice, nulls)
            except ValueError as error:
                raise ValueError(f"the nulls in {nulls.source} cannot be scored: {error}") from error
    used = {choice.detector.name for choices in found.values() for choice in choices}
    for name in options.detectors:
        if name not in used:
            raise refused[name]
    return found


def check_nulls(
    suspects: Collection, nulls: Collection | None, fdr: float, choices: Mapping[str, Sequence[Choice]]
) -> list[str]:
    """What is to be said of the number of nulls; raises ValueError where none of the items could be a discovery."""
    if nulls is None:
        return []
    items, count, rate = len(suspects.ids), len(nulls.ids), fdr / len(choices[suspects.kind])
    if count < 2 or items < 2:
        raise ValueError(f"there are {items} {suspects.kind} and {count} nulls; both must be at least two")
    share = "" if rate == fdr else f" ({fdr:g} shared by {len(choices[suspects.kind])} detectors)"
    least, single = fewest_nulls(items, items, rate), fewest_nulls(items, 1, rate)
    if count < least:
        raise ValueError(
            f"{count} nulls are too few: at a rate of false discoveries of {rate:.3g}{share} none of the {items} "
            f"{suspects.kind} could be a discovery; at least {least} nulls are needed, and {single} for a single one to be found"
        )
    together = int(np.ceil(items / (rate * (count + 1)) - 1e-9))
    if together > 1:
        return [
            f"With {count} nulls at least {together} of the {items} {suspects.kind} must stand out together to be discoveries at "
            f"a rate of {rate:.3g}{share}; for a single one to be found, {single} nulls are needed."
        ]
    return []


def check_output(output: Path, about: Mapping[str, Any], replace: bool) -> None:
    """Raise ValueError where the output is a file, or holds another audit (unless it is to be replaced)."""
    folder = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; the audit needs a folder, so name another --output")
    if not (output / STATE).exists():
        strange = next((name for name in (TABLES, SCORES, REPORT) if (output / name).exists()), None)
        if strange is not None:
            raise ValueError(f"{output} holds {strange}, but no audit; name another --output")
        return
    if replace:
        return
    try:
        there = read_json(output / STATE)["about"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{output / STATE} is of no audit; name another --output, or replace it with --replace"
        ) from error
    words = {
        "model": "of another model",
        "seed": "with another seed",
        "rows": "with other --rows",
        "processes": "by another number of processes, of which its parts depend; start as many",
        "collections": "of other items",
    }
    different = [words[name] for name in about if there.get(name) != about[name]]
    if different:
        raise ValueError(f"{output} holds an audit {different[0]}; name another --output, or replace it with --replace")


def check_report(output: Path, asked: Mapping[str, Any]) -> list[str]:
    """What is to be said of a report that is there and was made of the same scores in another way."""
    if not ((output / REPORT).exists() and (output / STATE).exists()):
        return []
    there = read_json(output / STATE).get("asked", asked)
    other = [{"fdr": "rate"}.get(name, name) for name in asked if there.get(name) != asked[name]]
    return [f"{output / REPORT} was made with other {' and '.join(other)}; a new one takes its place"] if other else []


def _remove(output: Path) -> None:
    """Remove what another audit has left."""
    shutil.rmtree(output / TABLES, ignore_errors=True)
    for name in (STATE, SCORES, REPORT):
        (output / name).unlink(missing_ok=True)


@contextmanager
def one_sentence(output: Path) -> Iterator[None]:
    """Say in one sentence that the system refused to read or write, or that somebody stopped the work."""
    goes_on = f"what is scored stays in {output}, and the same command goes on from there"
    try:
        yield
    except OSError as error:
        kept = f"; {goes_on}" if (output / STATE).exists() else "; nothing was scored"
        raise ValueError(f"{error.strerror or error} ({error.filename or output}){kept}") from error
    except KeyboardInterrupt as error:
        raise ValueError(f"stopped; {goes_on}") from error


# --- scores


def score_all(
    options: Options,
    field: NetworkField,
    digest: str,
    pairs: Sequence[tuple[Collection, Collection | None]],
    choices: Mapping[str, Sequence[Choice]],
    beside: Mapping[str, Any],
) -> None:
    """Score all collections, nulls first, a part at a time: a table a part and detector; those that are there stay.

    The workers of a cluster are given all parts at once.
    """
    sizes = {kind: calls * options.rows * processes().num_processes for kind, calls in CALLS.items()}
    parts = [
        (collection, start)
        for suspects, nulls in pairs
        for collection in (nulls, suspects)
        if collection is not None
        for start in range(0, len(collection.ids), sizes[collection.kind])
    ]
    counted = " and ".join(
        f"{len(suspects.ids)} {suspects.kind}" + (f" and {len(nulls.ids)} nulls" if nulls is not None else "")
        for suspects, nulls in pairs
    )

    def tables(collection: Collection, start: int) -> list[Table]:
        take = collection.read if options.ray is None else collection.refer
        items = replace(take(collection.ids[start : start + sizes[collection.kind]]), **beside)
        folder = partial(table_folder, options.output, collection)
        return [
            Table(items, choice.detector, choice.settings, folder(choice) / f"{start:08d}.parquet")
            for choice in choices[collection.kind]
        ]

    if options.ray is not None:
        reference = None if options.reference is None else located(options.reference)
        source = Source(located(options.model), options.dtype, options.rows, digest, reference)
        every = [table for part in parts for table in tables(*part)]
        write_tables(field, every, digest, workers=partial(score_batches, source))
        return
    for part in progress(parts, f"parts of {counted}") if processes().is_main_process else parts:
        write_tables(field, tables(*part), digest, tell=False)


def table_folder(output: Path, collection: Collection, choice: Choice) -> Path:
    """Where the tables of a collection by a detector lie."""
    return output / TABLES / f"{collection.kind}-{collection.digest[:12]}" / choice.detector.name


def read_parts(folder: Path, ids: Sequence[str]) -> pd.DataFrame:
    """All tables of a folder as one in wide form: a row an item, a column a setting; `attrs` has the evaluations of each."""
    table = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)
    wide = table.pivot(index="item", columns="setting", values="score").loc[list(ids)]
    wide.attrs["evaluations"] = {
        name: int(value) for name, value in table.groupby("setting")["evaluations"].max().items()
    }
    return wide


class Single(NamedTuple):
    """One score an item, and how it was made: scores of items and nulls, setting in words, evaluations an item."""

    items: pd.Series
    nulls: pd.Series | None
    setting: str
    evaluations: int


def single_scores(detector: str, items: pd.DataFrame, nulls: pd.DataFrame | None) -> Single:
    """A detector's readings as one score an item, by a rule that sees no truth and treats items and nulls alike.

    The mean over noises and steps; of what is left the readings of the most evaluations, and the one that is meant (`MEANT`).
    Several readings that are left are put together by the mean of their ranks among items and nulls, which keeps them
    exchangeable.
    """
    cost = items.attrs["evaluations"]
    groups: dict[str, list[str]] = {}
    for name in items.columns:
        setting = parse_setting(name)
        dropped = {"noise", "step", *(["sigma"] if "step" in setting else [])}
        groups.setdefault(setting_name({k: v for k, v in setting.items() if k not in dropped}), []).append(name)

    def price(names: Sequence[str]) -> int:
        """Of noises that are each sampled by themselves, the sum; of steps, the last."""
        by_noise: dict[Any, int] = {}
        for name in names:
            noise = parse_setting(name).get("noise")
            by_noise[noise] = max(by_noise.get(noise, 0), cost[name])
        return sum(by_noise.values())

    meant = MEANT.get(detector, {})
    left = {
        words: names
        for words, names in groups.items()
        if all(parse_setting(words).get(key) == value for key, value in meant.items())
    } or groups
    prices = {words: price(names) for words, names in left.items()}
    left = {words: names for words, names in left.items() if prices[words] == max(prices.values())}
    both = items if nulls is None else pd.concat([items, nulls])
    readings = pd.DataFrame({words: both[names].mean(axis=1) for words, names in left.items()})
    one = readings.iloc[:, 0] if len(left) == 1 else readings.rank(pct=True).mean(axis=1)
    return Single(
        one.iloc[: len(items)],
        None if nulls is None else one.iloc[len(items) :],
        "; ".join(left) if len(left) <= 3 else f"{len(left)} readings by their mean rank",
        max(map(price, groups.values())),
    )


# --- what they say


def judged(scores: Single, rate: float, level: float) -> pd.DataFrame:
    """Items by score, the highest first: columns score, p_value, discovery and most_false (see `memlib.evaluation.discovery`).

    most_false: at most so many of the items down to this one are false discoveries, with a chance of 1 - level for all of them
    together. Without nulls only the score.
    """
    found = scores.items.sort_values(ascending=False, kind="stable").to_frame("score")
    if scores.nulls is None:
        return found
    p_values = conformal_p_values(found["score"], scores.nulls)
    return found.assign(p_value=p_values, discovery=discoveries(p_values, rate), most_false=most_false(p_values, level))


def section(
    options: Options,
    field: NetworkField,
    suspects: Collection,
    nulls: Collection | None,
    choices: Sequence[Choice],
    training: Training | None,
) -> Section:
    """What the tables say of a collection, with the evidence for the first suspects.

    Each of K detectors has the rate fdr / K, so that the list of all that any of them finds has the rate fdr: its false share
    is at most the sum of theirs. The same holds for the bounds.
    """
    findings, readings = [], []
    for choice in choices:
        items = read_parts(table_folder(options.output, suspects, choice), suspects.ids)
        outside = None if nulls is None else read_parts(table_folder(options.output, nulls, choice), nulls.ids)
        readings.append([each.add_prefix(f"{choice.detector.name} ") for each in (items, outside) if each is not None])
        scores = single_scores(choice.detector.name, items, outside)
        table = judged(scores, options.fdr / len(choices), BOUND / len(choices))
        outside_scores = None if scores.nulls is None else scores.nulls.to_numpy()
        findings.append(
            Finding(
                choice.detector.name,
                scores.setting,
                scores.evaluations,
                table,
                outside_scores,
                options.fdr / len(choices),
            )
        )
    first = _order(findings)[: options.show]
    remarks = list(suspects.remarks) + [f"of the nulls, {text}" for text in (nulls.remarks if nulls else ())]
    notes = dict(suspects.notes) | {f"null {name}": note for name, note in (nulls.notes if nulls else {}).items()}
    if suspects.kind == "prompts":
        cut = _cuts(field, suspects) | {
            f"null {name}": part for name, part in (_cuts(field, nulls) if nulls else {}).items()
        }
    else:
        cut = {}
    return Section(
        kind=suspects.kind,
        source=suspects.source,
        null_source=nulls.source if nulls else None,
        findings=findings,
        suspects=_evidence(options, field, suspects, first, findings, training) if first else [],
        notes=notes,
        cut=cut,
        remarks=remarks,
        rate=options.fdr,
        bound=BOUND,
        whole=_whole_set(readings, options.seed) if suspects.kind == "pictures" else None,
    )


def _whole_set(readings: Sequence[Sequence[pd.DataFrame]], seed: int) -> SetTest | None:
    """The test of the collection as a whole by all readings of all detectors; None without nulls, or for too few items."""
    groups = [pd.concat(group, axis=1) for group in zip(*readings, strict=True)]
    if len(groups) < 2 or min(map(len, groups)) < LEAST:
        return None
    return set_test(*groups, seed)


def _order(findings: Sequence[Finding]) -> list[str]:
    """Items, discoveries first, then by their mean rank over the detectors."""
    ranks = pd.concat([finding.table["score"].rank(ascending=False) for finding in findings], axis=1).mean(axis=1)
    found = set().union(*(finding.discovered for finding in findings))
    return sorted(ranks.index, key=lambda name: (name not in found, ranks[name], name))


def _cuts(field: NetworkField, collection: Collection) -> dict[str, str]:
    """What of each prompt is cut, where it is longer than the model takes it."""
    items = collection.read(collection.ids)
    parts = cut_parts(field.pipe, list(items.prompts))
    return {name: parts[prompt] for name, prompt in zip(items.ids, items.prompts, strict=True) if prompt in parts}


def _evidence(
    options: Options,
    field: NetworkField,
    suspects: Collection,
    names: Sequence[str],
    findings: Sequence[Finding],
    training: Training | None,
) -> list[Suspect]:
    """Pictures, coloured words and nearest training pictures of the first suspects."""
    items = suspects.read(names)
    tokens: list[list[tuple[str, float]] | None] = [None] * len(names)
    if any(finding.detector == "magnitude" for finding in findings):
        tokens = blamed(field, items.prompts, options.seed)
    pictures = [None] * len(names) if items.pictures is None else list(to_uint8(items.pictures))
    drawn = training is not None and items.pictures is None
    compared = _drawn(field, items, options.seed) if drawn else items.pictures
    if drawn and compared is not None:
        pictures = [*to_uint8(compared), *pictures[len(compared) :]]
    matches: list[Match | None] = [None] * len(names)
    if training is not None and compared is not None:
        matches[: len(compared)] = [nearest(picture, training) for picture in compared]
    maps: list[NDArray[np.float64] | None] = [None] * len(names)
    if compared is not None and items.prompts is not None and field.takes_prompts:
        maps[:DRAWN] = _copied(field, compared[:DRAWN], items.prompts[:DRAWN], items.seeds[:DRAWN])
    rows = []
    for number, name in enumerate(names):
        readings = [
            (finding.detector, finding.table.index.get_loc(name) + 1, finding.table.loc[name]) for finding in findings
        ]
        picture = pictures[number]
        rows.append(
            Suspect(
                name,
                None if items.prompts is None else items.prompts[number],
                None if picture is None else picture.permute(1, 2, 0).numpy(),
                drawn,
                tokens[number],
                readings,
                matches[number],
                maps[number],
            )
        )
    return rows


def blamed(field: NetworkField, prompts: Sequence[str], seed: int) -> list[list[tuple[str, float]]]:
    """Tokens of each prompt with how much each has to do with the magnitude, from 0 to 1 within a prompt.

    By the gradient at the first step where the model is a U-Net with a single encoder; elsewhere by the magnitude that is lost
    without a word.
    """
    noise = shared_noise(field.shape, 1, seed)
    field = field.with_rows(max(1, field.rows // 8))  # a backward pass keeps what a forward pass does not
    try:
        check_single_encoder(field.pipe)
        table = token_significance(field, prompts, noise)
    except ValueError:
        table = lost_without_words(field, prompts, noise)
    found = []
    for number in range(len(prompts)):
        own = table[table["prompt"] == number]
        weights = own["significance"].clip(lower=0)
        weights = weights / weights.max() if weights.max() > 0 else weights
        found.append(list(zip(own["token"], weights.tolist(), strict=True)))
    return found


def _drawn(field: NetworkField, items: Items, seed: int) -> Tensor | None:
    """A picture of each of the first prompts by the pipeline's own loop, in [-1, 1]; None where that loop is not run."""
    try:
        noise = shared_noise(field.shape, 1, seed)
        guidance = usual(field.pipe, "guidance_scale")
        return generate(field.pipe, items.prompts[:DRAWN], noise, DRAWING_STEPS, guidance, 2 * field.rows)[:, 0]
    except ValueError:
        return None


def _copied(
    field: NetworkField, pictures: Tensor, prompts: Sequence[str], seeds: Sequence[int]
) -> list[NDArray[np.float64] | None]:
    """Maps of what each prompt holds fixed in its picture; None for an empty prompt, and where none can be made.

    A picture at a time: a backward pass keeps what a forward pass does not.
    """
    alone, found = field.with_rows(1), []
    for row, prompt in enumerate(prompts):
        made = None
        if prompt.strip():
            with suppress(torch.OutOfMemoryError):
                part = slice(row, row + 1)
                made = copied_map(alone, pictures[part], [prompt], MAP_LEVEL, MAP_DIRECTIONS, seeds[part])[0]
        finite = made is not None and bool(made.isfinite().all())
        found.append(made.double().cpu().numpy() if finite else None)
    return found


def nearest(picture: Tensor, training: Training) -> Match:
    """The training picture nearest to a picture [C, H, W], and its root mean squared distance on the scale [-1, 1]."""
    parts = training.pictures.split(NEAR)
    distances = torch.cat([(part - picture).flatten(1).square().mean(1).sqrt() for part in parts])
    row = int(distances.argmin())
    shown = to_uint8(training.pictures[row]).permute(1, 2, 0).numpy()
    return Match(training.ids[row], shown, float(distances[row]))


def _all_scores(found: Section) -> pd.DataFrame:
    parts = []
    for finding in found.findings:
        table = finding.table.reset_index(names="item")
        parts.append(table.assign(collection=found.kind, detector=finding.detector, setting=finding.setting, note=""))
    unread = pd.DataFrame({"item": list(found.notes), "note": list(found.notes.values())}).assign(collection=found.kind)
    columns = ["collection", "detector", "setting", "item", "score", "p_value", "discovery", "most_false", "note"]
    whole = pd.concat([*parts, *([unread] if len(unread) else [])], ignore_index=True).reindex(columns=columns)
    return whole.astype({"discovery": "boolean", "most_false": "Int64", "score": float, "p_value": float})


def _summary(found: Section) -> dict[str, Any]:
    return {
        "collection": found.kind,
        "items": found.items,
        "nulls": found.null_count,
        "not scored": len(found.notes),
        "discoveries": found.discovered,
        "expected false": found.expected_false,
        "at most false": found.most_false,
        "rate": found.rate if found.null_count else None,
        "detectors": [finding.detector for finding in found.findings],
        "as a whole": found.whole,
    }


def _facts(options: Options, field: NetworkField, digest: str, seconds: float) -> dict[str, str]:
    """What the report says of how it was made."""
    packages = ("memlib", "torch", "diffusers", "transformers", "numpy", "scipy", "pandas")
    versions = [f"Python {sys.version.split()[0]}"]
    for name in packages:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:  # run from its sources
            versions.append(f"{name} from its sources")
    return {
        "Model": f"{options.model} (weights {digest})",
        "Command": options.command or shlex.join(["memlib", "audit", options.model]),
        "Seed and precision": f"{options.seed}, {options.dtype}",
        "Device": str(field.device)
        if options.ray is None
        else f"workers of a Ray cluster, and {field.device} for the evidence",
        "This run took": f"{seconds:.1f} s",
        "Versions": ", ".join(versions),
        "Made": time.strftime("%Y-%m-%d %H:%M %Z"),
    }
