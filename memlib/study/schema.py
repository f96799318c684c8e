"""The schema of params.yaml: a model of each section, with the type and the range of every parameter.

The settings of the trainings are those of `memlib.training.settings`. A section that has no model here takes its names and
types from its notebook (see `memlib.study.parameters`).
"""

import dataclasses
import math
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, create_model

from memlib.files import suggest
from memlib.mitigation import Modification
from memlib.study.sections import expanded
from memlib.training.settings import (
    AutoencoderConfig,
    EmbeddingConfig,
    FlowConfig,
    JudgeConfig,
    Seed,
    TextConfig,
    TrainConfig,
)
from memlib.truth.outcomes import LEVEL

CHOICES = ("growth", "loss", "oracle")  # by what an arm of the retraining chooses pictures, or a draw at random

# Kinds of values


def _name(value: str) -> str:
    if not value or not value[0].isalnum() or not all(char.isalnum() or char in "-_." for char in value):
        raise ValueError("must begin with a letter or digit and hold nothing but these, hyphens, underscores and dots")
    return value


def _filled(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _rising(values: list) -> list:
    if values != sorted(set(values)):
        raise ValueError("must be in rising order, without repetitions")
    return values


def _distinct(values: list) -> list:
    repeated = [value for number, value in enumerate(values) if value in values[:number]]
    if repeated:
        raise ValueError(f"must not hold {repeated[0]!r} twice")
    return values


def _holding(*needed: float | str) -> AfterValidator:
    def check(values: list) -> list:
        for value in needed:
            if value not in values:
                raise ValueError(f"must hold {value!r}, with which the chapters compare the others")
        return values

    return AfterValidator(check)


def _in_schedule(training: str) -> AfterValidator:
    def check(sigma: float, info: ValidationInfo) -> float:
        low, high = info.context[training]
        if not low <= sigma < high:
            raise ValueError(
                f"must be a noise level of the schedule of `{training}`, from {low:.4g} to below {high:.4g}"
            )
        return sigma

    return AfterValidator(check)


def _choice(value: str) -> str:
    if value not in CHOICES and not (value.startswith("random") and value[6:].isdigit()):
        raise ValueError(
            f"must say by what the pictures are chosen{suggest(value, CHOICES)}, random1, random2 and so on, a draw each"
        )
    return value


def _roles(value: Any) -> Any:
    if value != "small" and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**6):
        raise ValueError("must be the number of a round of exchanged roles, from 0 to 999999, or small")
    return value


def _plain(value: Any) -> Any:
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, (bool, int, float, str)) or (isinstance(part, float) and not math.isfinite(part)):
            raise ValueError("must be a finite number, a text, true or false, or a list of these")
    return value


def _times(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= 10**6:
        raise ValueError("must be a number of copies, a whole number from 2 to 1000000")
    return value


def _counts(value: Any) -> Any:
    for part in value if isinstance(value, list) and value else [value]:
        if not isinstance(part, int) or isinstance(part, bool) or not 1 <= part <= 10**6:
            raise ValueError("must be a whole number from 1 to 1000000, or a list of these")
    return value


def _timesteps(value: Any) -> Any:
    for part in value if isinstance(value, list) and value else [value]:
        if not isinstance(part, int) or isinstance(part, bool) or not 0 <= part < 1000:
            raise ValueError(
                "must be a whole number from 0 to 999, a step of the training schedule, or a list of these"
            )
    return value


Name = Annotated[str, AfterValidator(_name)]  # of a file
Text = Annotated[str, AfterValidator(_filled)]
Count = Annotated[int, Ge(1), Le(10**6)]
Several = Annotated[int, Ge(2), Le(10**6)]
Resolving = Annotated[int, Ge(round(1 / LEVEL)), Le(10**6)]  # fewer cannot resolve the level of a copy
Share = Annotated[float, Ge(0), Le(1)]
OpenShare = Annotated[float, Gt(0), Lt(1)]
Above = Annotated[float, Gt(0), Le(10**6)]
Pixels = Annotated[int, Ge(4), Le(4096)]  # a side
Distance = Annotated[float, Ge(0), Lt(2)]  # root mean square over pixels on [-1, 1]
Copies = dict[Annotated[Any, AfterValidator(_times)], Annotated[int, Ge(0), Le(10**6)]]  # number of copies: pictures
Level = Annotated[float, Gt(0), _in_schedule("train")]
LatentLevel = Annotated[float, Gt(0), _in_schedule("text")]
Levels = Annotated[list[Level], Len(1, 100), AfterValidator(_rising)]
LatentLevels = Annotated[list[LatentLevel], Len(1, 100), AfterValidator(_rising)]
Counts = Annotated[Any, AfterValidator(_counts)]
Powers = Annotated[list[Annotated[float, Ge(1), Le(100)]], Len(1, 100), AfterValidator(_rising)]  # p of the p-Laplacian
AllPowers = Annotated[Powers, _holding(1.0)]
RisingCounts = Annotated[list[Count], Len(1, 100), AfterValidator(_rising)]
Shares = Annotated[list[OpenShare], Len(1, 100), AfterValidator(_rising)]
AnyGuidance = Annotated[float, Ge(1), Le(100)]  # of classifier-free guidance; at 1 there is none
Guidances = Annotated[list[AnyGuidance], Len(1, 100), AfterValidator(_rising)]
Guidance = Annotated[float, Gt(1), Le(100)]  # without guidance there is no second prediction to compare
SamplingSteps = Annotated[int, Ge(1), Le(1000)]
Pictures = Literal["openmoji", "fashion_mnist", "cifar10", "folder"]


# Sections


class Section(BaseModel):
    """A section, or a mapping in one: nothing but its own names, and every value of the very type that is wanted."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def section(**kinds: Any) -> type[Section]:
    """The model of a section with these parameters."""
    return create_model("Section", __base__=Section, **{name: (kind, ...) for name, kind in kinds.items()})


def settings(config: type, laid_over: bool = False) -> type[Section]:
    """The model of a section that holds the settings of a training or, `laid_over` another section, some of them."""
    hints = get_type_hints(config, include_extras=True)
    fields = {field.name: (hints[field.name], None if laid_over else ...) for field in dataclasses.fields(config)}
    return create_model(config.__name__, __base__=Section, **fields)


class Arm(Section):
    choice: Annotated[str, AfterValidator(_choice)]
    how: Modification
    roles: Seed


class Training(Section):
    roles: Annotated[Any, AfterValidator(_roles)]
    section: Literal["retrain", "mirrored", "scratch"]
    start: str
    seed: Seed


class Run(Section):
    launcher: Text
    trainings: dict[Name, Training]
    arms: dict[Name, Arm]
    text_arms: dict[Name, settings(TextConfig, laid_over=True)]
    flow_arms: dict[Name, settings(FlowConfig, laid_over=True)]
    template_arms: dict[Name, settings(TextConfig, laid_over=True)]


class Splits(Section):
    train: Count
    heldout: Count
    reference: Resolving
    pairs: Several


class SplitCopies(Section):
    train: Copies
    reference: Copies


class Data(Section):
    name: Pictures
    root: str
    size: Pixels
    min_distance: Distance
    splits: Splits
    copies: SplitCopies
    seed: Seed


class Pairs(Section):
    copies: Copies
    seed: Seed


class PictureControl(Section):
    samples: Resolving
    steps: Count
    sampler: Literal["heun", "ancestral"]
    seed: Seed


class PairTruth(PictureControl):
    samples: Count
    mirrored: bool


class Truth(PairTruth):
    model: Text
    images: Text
    split: Text


class Items(Section):
    source: Text  # of pictures or prompts; DVC watches it
    splits: Annotated[list[Text], Len(1, 100), AfterValidator(_distinct)] | None = None
    samples: Text | None = None
    training: Text | None = None
    training_splits: Annotated[list[Text], Len(1, 100), AfterValidator(_distinct)] | None = None
    reference: Text | None = None  # a model that was trained without the items


def every_setting(settings: Any) -> Any:
    """Settings with those in their place that `each` stands for; what is no list of mappings is left to be refused."""
    if not isinstance(settings, list) or not all(isinstance(setting, dict) for setting in settings):
        return settings
    for setting in settings:
        each = setting.get("each", {})
        if not isinstance(each, dict) or not all(isinstance(values, list) and values for values in each.values()):
            raise ValueError("each must map names of the setting to lists of their values")
    return [single for setting in settings for single in expanded(setting)]


class Setting(Section, extra="allow"):
    """A setting of a detector; these names mean the same in all of them, and others may be of any plain kind."""

    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_plain)]]

    sigma: Above = None
    sigma_min: Above = None
    sigma_max: Above = None
    ratio: Annotated[float, Gt(1), Le(1000)] = None
    timesteps: Annotated[Any, AfterValidator(_timesteps)] = None
    steps: Counts = None
    below: Annotated[int, Ge(0), Le(1000)] = None
    directions: Counts = None
    axes: Counts = None
    draws: Counts = None
    noises: Counts = None
    generations: Counts = None
    sampling_steps: SamplingSteps = None
    guidance: Guidance = None
    p: Powers = None
    prompt: bool = None


class Table(Section):
    detector: Text
    settings: Annotated[list[Setting], Len(1, 1000), BeforeValidator(every_setting)]
    seed: Seed


class Scores(Section):
    model: Text
    items: Items
    tables: Annotated[dict[Name, Table], Len(1, 100)]


class Sets(Section):
    modified: Count
    seed: Seed


class Subjects(Section):
    train: Count
    planted: Count


class Judged(Section):
    ordinary: Count
    unseen: Count


class Further(Section):
    ordinary: Several
    shorter: Several


class Control(Section):
    generations: Count
    sampling_steps: SamplingSteps
    guidance: Guidance
    seed: Seed


class Drawings(Section):
    name: Pictures
    root: str
    size: Pixels
    min_distance: Distance
    subjects: Subjects
    copies: Copies
    triggers: Copies
    drawings_each: Count
    never_seen: Count
    free_each: Count
    prompts: Judged
    pictures: Judged
    followed: Judged
    further: Further
    seed: Seed


class Templates(Section):
    views: Count
    fresh: Count
    seed: Seed


# Of experiments and chapters; each is needed where there is the notebook of its name.
NOTEBOOKS: dict[str, type[Section]] = {
    # Experiments
    "solver": section(
        sigma_min=Level,
        pictures=Count,
        steps=Annotated[RisingCounts, Len(2, 100)],
        oracle_steps=Several,
        growth_pictures=Count,
        growth_steps=RisingCounts,
        finest_steps=Count,
        directions=Count,
        seed=Seed,
    ),
    "carried_axes": section(
        dimensions=Annotated[int, Ge(16), Le(10**4)],
        repeats=Several,
        sigma_min=Level,
        pictures=Several,
        axes=Count,
        steps=Count,
        frames=Several,
        reference_axes=Count,
        reference_steps=Count,
        exact_sigmas=Annotated[Levels, Len(2, 2)],
        seed=Seed,
    ),
    "plane": section(
        powers=AllPowers,
        sigma=Above,
        repeats=Several,
        directions=Several,
        radius=Above,
        points=Count,
        training_steps=Count,
        few_points=RisingCounts,
        fresh_points=Count,
        dominant_share=OpenShare,
        weights=Shares,
        widths=Annotated[list[Above], Len(1, 100), AfterValidator(_rising)],
        grid=Annotated[int, Ge(2), Le(1000)],
        seed=Seed,
    ),
    "flux_errors": section(
        dimensions=RisingCounts,
        powers=AllPowers,
        samples=RisingCounts,
        radii=Annotated[list[Above], Len(1, 100), AfterValidator(_rising)],
        repeats=Several,
        sigma=Above,
        levels=Levels,
        pictures=Several,
        seed=Seed,
    ),
    "bridge": section(pictures=Several, sigma_min=Level, steps=Count, directions=Several, seed=Seed),
    "arm": section(
        arm=Name,
        generations=Count,
        sampling_steps=SamplingSteps,
        guidance=Guidance,
        guidances=Guidances,
        ordinary=Count,
        shown=Count,
        training_drawings=Count,
        draws=Count,
        seed=Seed,
    ),
    "late_steps": section(
        prompts_each=Several,
        noises=Count,
        guidances=Annotated[list[Guidance], Len(1, 100), AfterValidator(_rising)],
        sampling_steps=SamplingSteps,
        levels=Count,
        growth_min=LatentLevel,
        growth_steps=Count,
        growth_directions=Several,
        seed=Seed,
    ),
    "blame": section(
        arm=Name, noises=Count, samples_each=Count, sampling_steps=SamplingSteps, guidance=Guidance, seed=Seed
    ),
    "moved_prompts": section(
        noises=Count,
        sampling_steps=SamplingSteps,
        guidance=Guidance,
        targets=Annotated[list[OpenShare], Len(1, 100), AfterValidator(_distinct)],
        additions=RisingCounts,
        guidances=Annotated[list[AnyGuidance], Len(1, 100), AfterValidator(_distinct)],
        iterations=Count,
        learning_rate=Above,
        shown=Count,
        seed=Seed,
    ),
    "guarded": section(
        arm=Name,
        generations=Count,
        sampling_steps=SamplingSteps,
        guidance=Guidance,
        calibration=Several,
        ordinary=Several,
        noises=Count,
        false_alarms=OpenShare,
        seed=Seed,
    ),
    "localise": section(
        arm=Name,
        sigmas=Annotated[LatentLevels, _holding(0.04, 1.0)],
        directions=Several,
        nulls=Count,
        alarm=OpenShare,
        generations=Count,
        sampling_steps=SamplingSteps,
        guidance=Guidance,
        shown=Several,
        seed=Seed,
    ),
    "fine_tuning": section(
        steps=Count,
        every=Count,
        samples_every=Count,
        samples=Count,
        learning_rate=Above,
        sampling_steps=SamplingSteps,
        sigma=Level,
        draws=Count,
        seed=Seed,
    ),
    # Chapters
    "mixtures": section(repeats=Several, directions=Several, seed=Seed),
    "growth": section(sensitivity=OpenShare, shown=Count, seed=Seed),
    "frontier": section(budget=Several, copies=Several, seed=Seed),
    "peaks": section(copies=Several, seed=Seed),
    "modification": section(seed=Seed),
    "estimators": section(seed=Seed),
    "flow": section(seed=Seed),
    "landscape": section(seed=Seed),
    "tokens": section(guidance=Guidance, shown=Count, seed=Seed),
    "captions": section(guidance=Guidance, seed=Seed),
    "detection": section(
        runs=Annotated[dict[SamplingSteps, Count], Len(2, 100)],  # steps: generations
        guidance=Guidance,
        loss_sigma=LatentLevel,
        shares=Annotated[list[Name], Len(1, 100), AfterValidator(_distinct), _holding("planted")],
        generations=Count,
        seed=Seed,
    ),
    "mitigation": section(
        arms=Annotated[
            list[Name],
            Len(1, 100),
            AfterValidator(_distinct),
            _holding("planted", "threshold", "left-out-at-random", "random-words"),
        ],
        guidance=Guidance,
        noises=Count,
        seed=Seed,
    ),
    "localisation": section(shown=LatentLevel, seed=Seed),
    "bench": section(budgets=RisingCounts, seed=Seed),
    "one_laplacian": section(seed=Seed),
    "audit": section(seed=Seed),
    "guard": section(shown=Count, seed=Seed),
    "monitor": section(alpha=OpenShare, shuffles=Count, seed=Seed),
}


class Audits(Section):
    rate: OpenShare
    repeats: Several
    curve_repeats: Several
    nulls: Annotated[RisingCounts, Len(2, 100)]
    copies: Annotated[RisingCounts, Len(2, 100)]
    ordinary: Count
    prompt_nulls: Several
    sizes: RisingCounts
    shares: Annotated[list[Share], Len(1, 100), AfterValidator(_rising)]
    text_arms: Annotated[list[Name], Len(1, 100), AfterValidator(_distinct)]
    guards: Annotated[list[Name], Len(2, 100), AfterValidator(_distinct)]
    seed: Seed


class Report(Section):
    shown: Count


SECTIONS: dict[str, Any] = {
    "audits": Audits,
    "report": Report,
    "run": Run,
    "data": Data,
    "train": settings(TrainConfig),
    "retrain": settings(TrainConfig, laid_over=True),
    "mirrored": settings(TrainConfig, laid_over=True),
    "scratch": settings(TrainConfig, laid_over=True),
    "embedding": settings(EmbeddingConfig),
    "pairs": Pairs,
    "picture_control": PictureControl,
    "pair_truth": PairTruth,
    "truth": dict[Name, Truth],
    "scores": dict[Name, Scores],
    "sets": Sets,
    "drawings": Drawings,
    "templates": Templates,
    "autoencoder": settings(AutoencoderConfig),
    "text": settings(TextConfig),
    "text_arm": settings(TextConfig, laid_over=True),
    "flow_text": settings(FlowConfig),
    "flow_arm": settings(FlowConfig, laid_over=True),
    "judge": settings(JudgeConfig),
    "control": Control,
}
