"""What book/claims.yml may hold: each claim of the papers or of this study, and the criterion by which the tables settle it.

A criterion is all that the verdict depends on beside the tables: the statistic and its threshold, the items and how many are
needed, the trainings, the scores that are compared, the split on which settings are chosen, and the seed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memlib.datasets.roles import role_of
from memlib.study import history, naming
from memlib.study.sections import PARAMS, expanded, read_section

REGISTRY = Path("book/claims.yml")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # where libyaml is built in, ten times as fast
Text = Annotated[str, MinLen(1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Join(_Strict):
    """A table joined to the items: the means by item of its rows that satisfy `where`, or what `read` makes of it.

    triggers: of a table of tokens, whether the trigger word of a prompt ranks first by each way of asking. named: of scores in
    the course of a training, the first step at which each trained item is named (`memlib.evaluation.looks.named_at`).
    """

    table: Text
    where: str | None = None
    read: Literal["means", "triggers", "named"] = "means"


class Side(_Strict):
    """What is measured: for an AUROC a score, for a share an outcome, for curves a method.

    setting: the values by which columns of the score table are found; a list stands for any of its values, null for a key that
    a setting does not have. Of several columns, the best on one half of the items is taken where the criterion has a `split`;
    `average: scores` takes their mean, `average: aurocs` the mean of their AUROCs. per_sigma: scores are divided by the
    noise level of their setting: |eps_c - eps_u| from |D_c - D_u|. outcome: an expression in the columns of the items.
    trainings: those of this side of a share; of a control, whose scores take the place of each training's of the criterion.
    """

    table: Text | None = None
    setting: dict[str, Any] = {}
    average: Literal["scores", "aurocs"] | None = None
    per_sigma: bool = False
    outcome: Text | None = None
    method: Text | None = None
    trainings: Annotated[list[Text], MinLen(1)] | None = None


class Comparison(_Strict):
    """A first side, and what is subtracted from it, if anything."""

    first: Side
    minus: Side | None = None


class Split(_Strict):
    """The halves that settings are chosen and reported on: a seed, and the columns within whose values items are split evenly."""

    seed: Annotated[int, Ge(0)]
    by: Annotated[list[Text], MinLen(1)]


class Criterion(Comparison):
    """A claim is reproduced where the whole 95 % interval of its statistic is above a threshold, not where it is below.

    Paths, queries and outcomes are `filled` where they differ between trainings. baseline: something simpler, measured as the
    first side and beside it. control: scores of models that saw nothing of what makes the positives, whose AUROC must hold 0.5.
    at_least: how many items of each kind (positive, negative, items) its power asks for on the half that is reported.
    """

    says: Text
    statistic: Literal["AUROC", "share", "agreement"]
    above: float
    items: Text
    join: list[Join] = []
    trainings: Annotated[list[Text], MinLen(1)]
    among: str | None = None
    positive: str | None = None
    negative: str | None = None
    cluster: str | None = None
    split: Split | None = None
    baseline: Comparison
    control: Side | None = None
    at_least: Annotated[dict[Literal["positive", "negative", "items"], Annotated[int, Ge(2)]], Field(min_length=1)]
    seed: Annotated[int, Ge(0)]

    @model_validator(mode="after")
    def _complete(self) -> "Criterion":
        needed = {"AUROC": "table", "share": "outcome", "agreement": "method"}[self.statistic]
        if self.statistic == "AUROC" and (self.positive is None or self.negative is None):
            raise ValueError("an AUROC needs queries for `positive` and `negative` items")
        kinds = {"positive", "negative"} if self.statistic == "AUROC" else {"items"}
        if set(self.at_least) != kinds:
            raise ValueError(f"`at_least` must say how many of: {', '.join(sorted(kinds))}")
        if self.control and self.statistic != "AUROC":
            raise ValueError("only an AUROC has a control, which must hold 0.5")
        if self.control and len(self.control.trainings or self.trainings) != len(self.trainings):
            raise ValueError("a control needs as many trainings as the criterion has")
        for side in self.sides():
            if getattr(side, needed) is None:
                raise ValueError(f"each side of a criterion by {self.statistic} needs its `{needed}`")
            if side.trainings and self.statistic != "share" and side is not self.control:
                raise ValueError("only the sides of a share have trainings of their own")
        for compared in (self, self.baseline):
            if self.statistic == "agreement" and compared.minus is None:
                raise ValueError("a criterion by agreement compares two methods; `minus` is missing")
            counts = {len(side.trainings or self.trainings) for side in (compared.first, compared.minus) if side}
            if len(counts) > 1 and 1 in counts:
                raise ValueError("a difference over trainings needs two of either side or more")
        return self

    def sides(self) -> list[Side]:
        """All sides, those of the baseline and the control last."""
        every = (self.first, self.minus, self.baseline.first, self.baseline.minus, self.control)
        return [side for side in every if side]

    def tables(self, side: Side) -> dict[str, str]:
        """Paths of the scores of one side of an AUROC, by the training of the criterion that they are for."""
        own = side.trainings or self.trainings
        return {name: filled(side.table, one) for name, one in zip(self.trainings, own, strict=True)}

    @property
    def measure(self) -> str:
        """The statistic in words."""
        said = naming.statistic_in_words(self.statistic, self.items)
        return f"difference in {said}" if self.minus else said


class Claim(_Strict):
    """A claim of a paper (None: one of this study's own), the page that discusses it, and its criterion.

    variant: whether the paper states it otherwise, and this study asks further. plain: the criterion's baseline in words.
    """

    paper: Text | None = None
    claim: Text
    variant: bool = False
    plain: Text
    page: Text
    criterion: Criterion


def filled(text: str, training: str) -> str:
    """A path, query or outcome for one training: its name for `{training}`, its role for `{role}`."""
    return text.format(training=training, role=role_of(training))


def read_claims() -> dict[str, Claim]:
    """All claims of the registry by their id, `section.name`.

    Raises ValueError, in one sentence, for a claim without criterion and for what a claim may not hold.
    """
    claims = {}
    for name, entry in read_entries(REGISTRY.read_text()).items():
        if not isinstance(entry, dict) or not entry.get("criterion"):
            raise ValueError(
                f"{REGISTRY}: the claim {name!r} has no criterion; state one before the run that settles it"
            )
        try:
            claims[name] = Claim.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{REGISTRY}: {name}{'.' if place else ''}{place}: {first['msg']}") from error
    return claims


def read_entries(text: str) -> dict[str, Any]:
    """The entries of a registry's text as they stand there, by their id."""
    sections = yaml.load(text, LOADER) or {}
    return {f"{section}.{name}": entry for section, entries in sections.items() for name, entry in entries.items()}


def committed_criteria() -> dict[str, str]:
    """The commit at which the criterion of each claim was last changed; `unknown` without git's history.

    Raises ValueError for a criterion that is not committed, and so would be newer than its result.
    """
    if not history.has_history():
        return dict.fromkeys(read_claims(), "unknown")
    commits = history.last_changes(REGISTRY, digests)
    for name, commit in commits.items():
        if commit == history.UNCOMMITTED:
            raise ValueError(
                f"the criterion of {name!r} would be newer than its result: commit {REGISTRY} before the run that settles it"
            )
    return commits


def is_the_study() -> bool:
    """Whether this is the committed study: with git's history, and the parameters as they are committed."""
    return history.has_history() and history.is_committed(PARAMS)


def check_before_run() -> None:
    """Refuse claims that a run could not settle, before anything runs.

    That is what `read_claims` and `committed_criteria` refuse and, in the committed study, scores that no stage will write.
    """
    claims = read_claims()
    committed_criteria()
    if not is_the_study():
        return
    scores = read_section("scores")
    for name, claim in claims.items():
        if claim.criterion.statistic == "AUROC":
            for side in claim.criterion.sides():
                for path in claim.criterion.tables(side).values():
                    _check_scores(name, path, side.setting, scores)


def _check_scores(name: str, path: str, asked: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    """Raise ValueError where no entry of `scores` writes the table of this path with a setting as it is asked for."""
    tables = scores.get(Path(path).parent.name, {}).get("tables", {})
    if Path(path).stem not in tables:
        raise ValueError(f"the claim {name!r} compares scores of {path}, which no entry of `scores` in {PARAMS} writes")
    wanted = {key: set(_listed(value)) for key, value in asked.items()}
    settings = [setting for each in tables[Path(path).stem]["settings"] for setting in expanded(each)]
    if not any(all(wanted[key] & set(_listed(own[key])) for key in wanted.keys() & own.keys()) for own in settings):
        raise ValueError(f"the claim {name!r} asks for {dict(asked)}, which no setting of {path} in {PARAMS} has")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def digests(text: str) -> dict[str, str]:
    """Digest of the criterion of each claim in a registry's text, of older forms too; order and format do not matter."""
    return {
        name: hashlib.sha256(json.dumps(entry.get("criterion"), sort_keys=True).encode()).hexdigest()[:16]
        for name, entry in read_entries(text).items()
    }
