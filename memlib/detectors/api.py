"""What a detector is: a plain function of a field and items, with what it must be given and its usual settings."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt
from torch import Tensor

from memlib.fields import Field
from memlib.files import suggest
from memlib.tensors import item_seeds

NEEDS = {  # what a detector can ask for, and what gives it
    "model": "a model",
    "picture": "pictures: an image set or a folder of images",
    "prompt": "prompts: a prompt file, or pictures with captions, and a text-to-image model",
    "samples": "samples of each prompt",
    "training": "the training pictures",
    "captions": "training pictures with captions",
    "reference": "a reference model that was trained without the items",
}
BOUNDS = {int: Ge(1), float: Gt(0)}  # of the numbers of a setting that names none of its own
FromZero = Annotated[int, Ge(0)]
Ratio = Annotated[float, Gt(1)]
TOLERANCE = 1e-4  # of a noise level at an end of a schedule, relative


class Scores(NamedTuple):
    """A detector's value for N items [N], larger for what is more likely memorised, and network evaluations an item.

    reading: what tells several values of the same evaluations apart, such as {"p": 1.0}; it takes the place of what the setting
    says of these names.
    """

    value: Tensor
    evaluations: int
    reading: dict[str, Any] = {}  # noqa: RUF012


class Rows(Protocol):
    """A tensor [N, ...] whose rows are read when they are asked for: by their numbers; a slice is again of this kind."""

    shape: Sequence[int]

    def __getitem__(self, rows: Any) -> Any: ...


@dataclass(frozen=True)
class Items:
    """What is scored: N items by their ids, with what is known of each.

    pictures: [N, C, H, W] in [-1, 1]; a detector is given the tensor itself. prompts: N texts. samples: [N, n, C, H, W],
    generations of each prompt, in [-1, 1].
    training: [M, C, H, W], the pictures that the model was trained on; captions: M texts, theirs. reference: a field trained
    without the items. seed: decides, with an item's id, the item's randomness.
    """

    ids: Sequence[str]
    seed: int = 0
    pictures: Tensor | Rows | None = None
    prompts: Sequence[str] | None = None
    samples: Tensor | None = None
    training: Tensor | None = None
    reference: Field | None = None
    captions: Sequence[str] | None = None

    @cached_property
    def seeds(self) -> list[int]:
        """A seed an item, from its id and the common seed."""
        return item_seeds(self.ids, self.seed)

    def part(self, start: int, stop: int) -> "Items":
        """The items of some rows that follow one another; nothing is read or copied."""
        parts = {name: getattr(self, name) for name in ("ids", "prompts", "pictures", "samples")}
        return replace(self, **{name: None if part is None else part[start:stop] for name, part in parts.items()})

    def rows(self, rows: Sequence[int]) -> "Items":
        """The items of these rows, in this order; pictures that are in files are read."""
        texts = {"ids": self.ids, "prompts": self.prompts}
        tensors = {"pictures": self.pictures, "samples": self.samples}
        return replace(
            self,
            **{name: None if part is None else [part[row] for row in rows] for name, part in texts.items()},
            **{name: None if part is None else part[list(rows)] for name, part in tensors.items()},
        )


Score = Callable[..., Scores | list[Scores]]


@dataclass(frozen=True)
class Detector:
    """A detector: `score(field, items, **setting)` gives `Scores`, or a list of them from the same evaluations.

    needs: what items must have (see `NEEDS`). settings: those that are used where none are named.
    """

    name: str
    needs: Iterable[str]
    settings: Sequence[Mapping[str, Any]]
    score: Score = field(repr=False)

    def check(self, model: Field | None, items: Items, setting: Mapping[str, Any]) -> None:
        """Raise ValueError where items or model lack what is needed, or a setting cannot be.

        It has an unknown name or kind, lacks one, or names a noise level outside of the model's schedule.
        """
        given = {
            "model": model is not None,
            "picture": items.pictures is not None,
            "prompt": items.prompts is not None and (model is None or model.takes_prompts),
            "samples": items.samples is not None,
            "training": items.training is not None,
            "captions": items.captions is not None,
            "reference": items.reference is not None,
        }
        for need in self.needs:
            if not given[need]:
                deaf = need == "prompt" and items.prompts is not None
                missing = "this model takes no prompts" if deaf else "nothing of the kind is given"
                raise ValueError(f"the detector {self.name} needs {NEEDS[need]}; {missing}")
        known = {
            name: parameter
            for name, parameter in inspect.signature(self.score, eval_str=True).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        for name in setting:
            if name not in known:
                raise ValueError(f"the detector {self.name} has no setting {name!r}{suggest(name, known)}")
            kind = known[name].annotation
            if not _fits(setting[name], kind):
                bare = get_type_hints(getattr(self.score, "func", self.score))[name]
                raise ValueError(
                    f"the detector {self.name}: {name} is {setting[name]!r}; it must be of the kind "
                    f"{inspect.formatannotation(bare)}{_least(kind)}"
                )
        for name, parameter in known.items():
            if parameter.default is inspect.Parameter.empty and name not in setting:
                raise ValueError(f"a setting of the detector {self.name} lacks {name!r}; it takes {', '.join(known)}")
        named = [(name, setting.get(name)) for name in ("sigma", "sigma_min", "sigma_max")]
        for name, level in [*named, *(("sigmas", level) for level in setting.get("sigmas", ()))]:
            if model is None or level is None:
                continue
            if not model.sigma_min * (1 - TOLERANCE) <= level <= model.sigma_max * (1 + TOLERANCE):
                raise ValueError(
                    f"the detector {self.name}: {name} is {level:g}, outside of the schedule of the model, which goes from "
                    f"{model.sigma_min:.4g} to {model.sigma_max:.4g}"
                )
        if setting.get("prompt") and not (items.prompts is not None and model is not None and model.takes_prompts):
            raise ValueError(f"the detector {self.name} with prompt: true needs {NEEDS['prompt']}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: int, float (finite), bool, None, or a Literal, list or union of these, within its bound."""
    if kind is inspect.Parameter.empty:
        return True
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and bool(value) and all(_fits(each, *get_args(kind)) for each in value)
    number, bound = get_args(kind)[0] if get_origin(kind) is Annotated else kind, _bound(kind)
    if bound is None:
        return type(value) is kind
    if type(value) not in ((int, float) if number is float else (int,)) or not math.isfinite(value):
        return False
    return value >= bound.ge if isinstance(bound, Ge) else value > bound.gt


def _bound(kind: Any) -> Ge | Gt | None:
    """What numbers of a kind are bound to, if it has any."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[1]
    return BOUNDS.get(kind) or next(filter(None, map(_bound, get_args(kind))), None)


def _least(kind: Any) -> str:
    """The bound of the numbers of a kind in words."""
    match _bound(kind):
        case Ge(ge=value):
            return f", at least {value}"
        case Gt(gt=value):
            return f", above {value}"
        case _:
            return ""


def conditioned(model: Field, items: Items, prompt: bool) -> Field:
    """The field under the items' prompts or, of a text-to-image model without them, under no prompt."""
    if not model.takes_prompts:
        return model
    return model.with_conditioning(model.encode_prompts(items.prompts) if prompt else model.unconditional())


def calibrated(name: str, detector: Detector) -> Detector:
    """A detector's scores minus those of the reference model on the same items, with the same randomness and settings."""

    @wraps(detector.score)
    def score(model: Field, items: Items, **setting: Any) -> list[Scores]:
        return difference(*(detector.score(each, items, **setting) for each in (model, items.reference)))

    return Detector(name, {*detector.needs, "reference"}, detector.settings, score)


def difference(found: Scores | list[Scores], expected: Scores | list[Scores]) -> list[Scores]:
    """The first scores minus the second, reading by reading."""
    return [
        Scores(a.value - b.value.to(a.value.device), a.evaluations + b.evaluations, a.reading)
        for a, b in zip(as_list(found), as_list(expected), strict=True)
    ]


def as_list(scores: Scores | list[Scores]) -> list[Scores]:
    """What a detector gives, as a list."""
    return [scores] if isinstance(scores, Scores) else scores
