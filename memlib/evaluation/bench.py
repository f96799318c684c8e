"""The bench: every detector on the same items, its setting chosen on one half of them and reported on the other.

A *case* is one question (who was a member, what is reproduced) on one or several trainings, with the scores of all detectors.
What is judged is never chosen by: the halves part items, not rows, so that an item is in the same half in every training.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.evaluation.combination import adaptive, learned, normal_scores, ranked
from memlib.evaluation.intervals import proportion
from memlib.evaluation.measured import Difference, Measured
from memlib.evaluation.measures import auroc
from memlib.evaluation.roc import tpr_at_fpr
from memlib.evaluation.split import development, stratified_split
from memlib.tables import parse_setting, setting_name

KINDS = ("membership", "memorisation", "copies", "control")
RATES = (0.01, 0.03, 0.1)  # of false alarms; the strictest that the negatives of both halves resolve is reported
BASELINES = {"pictures": "loss", "prompts": "magnitude"}  # which every other detector has to beat
BLIND = ("png_size", "variation", "flat_share", "nearest_picture", "prompt_length", "rarest_word")
GIVEN = (  # they ask for more than the model and the item
    "nearest_picture",
    "nearest_training",
    "calibrated_loss",
    "calibrated_growth",
)
SAMPLED = ("between_generations",)  # they draw whole samples, which costs more than all others together
FITTED = ("loss_curve", "gsa")  # detectors whose settings are the features of a classifier
CURVE = "loss_curve"  # of which each setting by itself is a loss
REPEATED = (  # detectors and readings that are other detectors' scores
    ("flipd", "quantity", "length"),
    ("flipd", "quantity", "rate"),
    ("sima", "power", 2),
    ("anisotropy", "part", "magnitude"),
)
RANKS, ADAPTIVE, LEARNED = "all, by ranks", "all, AdaDetect", "all, learned"
FIT = "fitted=True"  # the setting of a classifier of all settings
FITTED_NAME = ", learned"  # what the name of such a detector ends in
NULLS = 4  # items known to be outside, at least, that AdaDetect learns from and compares with
QUESTION = ["family", "items", "training", "contrast", "kind"]  # columns that tell the questions of cases apart
SIDES, TOTAL = 2, 8  # items that a half needs on either side, of each training and of all of them together


@dataclass(frozen=True, eq=False)
class Case:
    """One contrast of a family of models, with every score.

    rows: a row an item and training, with `item`, `training`, `positive` and `choosing`, whether it is in the half that is chosen
    by. scores: as many rows, a column (detector, setting), finite but for those of `ADAPTIVE` on the half that is chosen by.
    about: a row for each of these columns, its `evaluations`.
    """

    family: str
    training: str
    kind: str
    contrast: str
    items: str
    rows: pd.DataFrame
    scores: pd.DataFrame
    about: pd.DataFrame
    found: dict[Hashable, Measured] = field(default_factory=dict)  # what `measured` has given, by setting and seed

    @cached_property
    def settings(self) -> "list[Setting]":
        """Everything that can be chosen: each setting, with its noises together."""
        return settings(self.about)

    @cached_property
    def sides(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks [N] of the positives and the negatives."""
        positive = self.rows["positive"].to_numpy(dtype=bool)
        return positive, ~positive

    @cached_property
    def choosing(self) -> NDArray[np.bool_]:
        """Mask [N] of the half that is chosen by."""
        return self.rows["choosing"].to_numpy(dtype=bool)

    @cached_property
    def reported(self) -> pd.DataFrame:
        """The rows of the other half."""
        return self.rows[~self.choosing]

    @cached_property
    def columns(self) -> dict[Hashable, NDArray[np.float64]]:
        """The scores [N] of each column."""
        return dict(zip(self.scores, self.scores.to_numpy(np.float64).T, strict=True))

    @cached_property
    def reached(self) -> dict[Hashable, float]:
        """AUROC of each column on the half that is chosen by; nan where a column has none there."""
        judged = self.scores.dropna(axis=1)
        found = development(judged, self.sides, self.choosing, self.rows["training"])
        return found.reindex(self.scores.columns).to_dict()

    @cached_property
    def whole(self) -> "Case":
        """The case with the columns of `with_combinations`."""
        return with_combinations(self)

    def mean(self, setting: "Setting") -> NDArray[np.float64]:
        """Mean of a setting's columns [N]."""
        return np.mean([self.columns[name] for name in setting.columns], axis=0)


@dataclass(frozen=True)
class Setting:
    """What of a detector is judged: the columns whose AUROCs are averaged (a score's noises, or a single one), and its price."""

    detector: str
    name: str
    columns: tuple[Hashable, ...]
    evaluations: int


def halves(rows: pd.DataFrame, group: str, seed: int) -> pd.Series:
    """Which items are in the half that is chosen by, a value a row, for rows of an item and training each.

    Items are split evenly by their `group` in all trainings and by how often they are `reproduced`.
    """
    ordered = rows.sort_values(["item", "training"], kind="stable")
    groups = ordered[group].astype(str).groupby(ordered["item"]).agg(" ".join)
    outcomes = ordered["reproduced"].groupby(ordered["item"]).sum()
    first = pd.Series(stratified_split(groups.to_numpy(), outcomes.to_numpy(), seed), groups.index)
    return rows["item"].map(first)


def case(
    about: Mapping[str, str],
    rows: pd.DataFrame,
    scores: pd.DataFrame,
    costs: pd.DataFrame,
) -> Case | None:
    """A case of the rows of those trainings that hold enough on both sides of both halves; None where there are none.

    about: family, training, kind, contrast and items. scores: by training and item; a column that not all of the rows have is
    left out.
    """
    counts = rows.groupby(["training", "choosing", "positive"]).size().unstack(["choosing", "positive"], fill_value=0)
    enough = counts.index[(counts.shape[1] == 4) & (counts >= SIDES).all(axis=1)]
    kept = rows[rows["training"].isin(enough)].reset_index(drop=True)
    if counts.loc[enough].sum().min() < TOTAL or not len(enough):
        return None
    found = scores.loc[pd.MultiIndex.from_frame(kept[["training", "item"]])].reset_index(drop=True).dropna(axis=1)
    return Case(**about, rows=kept, scores=found, about=costs.loc[found.columns])


def with_means(scores: pd.DataFrame, about: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and what they are, with the mean over its noises as a further setting, `noises=n`, of every one that has several."""
    groups = _repeats(about)
    means, costs = {}, {}
    for (detector, rest), columns in groups.items():
        if len(columns) > 1:
            name = detector, setting_name(parse_setting(rest) | {"noises": len(columns)})
            means[name] = scores[columns].mean(axis=1)
            costs[name] = {"evaluations": int(about.loc[columns, "evaluations"].sum())}
    if not means:
        return scores, about
    added = pd.DataFrame(means, scores.index).rename_axis(columns=scores.columns.names)
    more = pd.DataFrame.from_dict(costs, orient="index")
    more.index = pd.MultiIndex.from_tuples(costs, names=about.index.names)
    return pd.concat([scores, added], axis=1), pd.concat([about[["evaluations"]], more])


def settings(about: pd.DataFrame) -> list[Setting]:
    """Everything that can be chosen: each setting, with its noises together."""
    costs = about["evaluations"].to_dict()
    return [
        Setting(detector, rest, tuple(columns), max(int(costs[name]) for name in columns))
        for (detector, rest), columns in _repeats(about).items()
    ]


def without_repeated(scores: pd.DataFrame, about: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and what they are without the columns that are another detector's, as `REPEATED` says."""
    kept = [
        not any(detector == name and parse_setting(setting).get(key) == value for name, key, value in REPEATED)
        for detector, setting in scores
    ]
    return scores.loc[:, kept], about[kept]


def _repeats(about: pd.DataFrame) -> dict[tuple[str, str], list[Hashable]]:
    found: dict[tuple[str, str], list[Hashable]] = {}
    for detector, name in about.index:
        rest = parse_setting(name)
        if "noise" in rest:  # of so many noises
            rest = {key: value for key, value in rest.items() if key not in ("noise", "noises")}
        found.setdefault((detector, setting_name(rest)), []).append((detector, name))
    return found


def chosen(case: Case, among: Iterable[Setting]) -> tuple[Setting, float]:
    """The setting of the best AUROC on the half that is chosen by, the first of several, and that AUROC."""
    among = list(among)
    values = [float(np.mean([case.reached[name] for name in setting.columns])) for setting in among]
    best = int(np.argmax(values))
    return among[best], values[best]


def measured(case: Case, setting: Setting, seed: int = 0) -> Measured:
    """AUROC of a setting on the half that is reported, over trainings; an item is a cluster in all of them."""
    if (setting, seed) not in case.found:
        rows = case.reported
        scores = np.column_stack([case.columns[name][~case.choosing] for name in setting.columns])
        case.found[setting, seed] = auroc(scores, rows["positive"], rows["item"], rows["training"], seed)
    return case.found[setting, seed]


def alarms(case: Case, setting: Setting, seed: int = 0) -> dict[str, Any]:
    """TPR at the strictest of `RATES` that is resolved, and the FPR that a threshold set on one half reaches on the other.

    Of the first noise, where a setting has several. Nothing where the negatives are too few.
    """
    values, (positive, negative) = case.columns[setting.columns[0]], case.sides
    first, second = (values[negative & half] for half in (case.choosing, ~case.choosing))
    first = first[np.isfinite(first)]
    resolved = [rate for rate in RATES if rate * min(len(first), len(second)) >= 1]
    if not resolved:
        return {"FPR": float("nan"), "TPR": None, "FPR reached": None}
    threshold = np.sort(first)[-int(np.floor(resolved[0] * len(first) + 1e-9)) - 1]
    reached = proportion(int((second > threshold).sum()), len(second))
    found = tpr_at_fpr(values[positive & ~case.choosing], second, resolved[0], seed)
    return {"FPR": resolved[0], "TPR": found, "FPR reached": reached}


def with_combinations(case: Case) -> Case:
    """The case with further columns: what is fitted or combined on the half that is chosen by, and by ranks without labels.

    Of `FITTED` detectors a classifier of all their settings. Of all others that ask the model and the item alone: the mean of
    their ranks, each detector the mean over its settings (samples are not drawn for it); what AdaDetect learns from the
    same ranks, with the negatives of
    the half that is chosen by as nulls, and from the half that is reported without its labels; and a classifier of each
    detector's chosen setting.
    """
    positive, negative = case.sides
    contrast = positive, negative
    by_detector: dict[str, list[Setting]] = {}
    for setting in case.settings:
        by_detector.setdefault(setting.detector, []).append(setting)
    columns: dict[tuple[str, str], pd.Series] = {}
    costs: dict[tuple[str, str], int] = {}
    for name in FITTED:
        own = [column for setting in by_detector.get(name, []) for column in setting.columns]
        if len(own) > 1:
            features = pd.DataFrame({number: case.columns[column] for number, column in enumerate(own)})
            columns[name, FIT] = learned(features, contrast, case.choosing)["learned"]
            costs[name, FIT] = _price(by_detector[name])
    asked = [name for name in by_detector if name not in (*BLIND, *GIVEN, *SAMPLED, *FITTED)]
    if len(asked) > 1:
        best = {name: chosen(case, by_detector[name])[0] for name in asked}
        features = pd.DataFrame({name: case.mean(own) for name, own in best.items()})
        columns[LEARNED, ""] = learned(features, contrast, case.choosing)["learned"]
        costs[LEARNED, ""] = sum(setting.evaluations for setting in best.values())
        every = [column for name in asked for own in by_detector[name] for column in own.columns]
        given = case.scores[every], [name for name, _ in every], case.rows["training"]
        columns[RANKS, ""] = ranked(*given)["ranked"]
        costs[RANKS, ""] = sum(_price(by_detector[name]) for name in asked)
        nulls = case.choosing & negative
        if nulls.sum() >= NULLS:
            ranks = normal_scores(*given)
            found = pd.concat(adaptive(ranks[~case.choosing], ranks[nulls]))
            columns[ADAPTIVE, ""] = found.reindex(case.rows.index)
            costs[ADAPTIVE, ""] = costs[RANKS, ""]
    if not columns:
        return case
    index = pd.MultiIndex.from_tuples(columns, names=case.about.index.names)
    added = pd.DataFrame(columns).set_axis(index.set_names(case.scores.columns.names), axis=1)
    about = pd.DataFrame({"evaluations": list(costs.values())}, index)
    return Case(
        **{name: getattr(case, name) for name in ("family", "training", "kind", "contrast", "items", "rows")},
        scores=pd.concat([case.scores, added], axis=1),
        about=pd.concat([case.about[["evaluations"]], about]),
        found=case.found,
    )


def _price(own: Iterable[Setting]) -> int:
    """Evaluations of all settings, of readings of one run only those of the dearest."""
    runs: dict[str, int] = {}
    for setting in own:
        said = parse_setting(setting.name)
        run = setting_name(
            {key: value for key, value in said.items() if key in ("sigma", "sigma_min", "steps", "prompt")}
        )
        runs[run] = max(runs.get(run, 0), setting.evaluations)
    return sum(runs.values())


def judge(case: Case, budget: float = float("inf"), seed: int = 0) -> pd.DataFrame:
    """A row for each detector, at the best setting for so many evaluations, in the order of its AUROC; see `row_of`."""
    whole = case.whole
    own = _by_detector(whole, budget)
    if not own:
        return pd.DataFrame()
    name = BASELINES[case.items]
    baseline = measured(whole, chosen(whole, own[name])[0], seed) if name in own else None
    rows = [row_of(whole, detector, among, baseline, seed) for detector, among in own.items()]
    return pd.DataFrame(rows).sort_values("AUROC", key=lambda column: column.map(lambda e: -e.value), kind="stable")


def _by_detector(whole: Case, budget: float) -> dict[str, list[Setting]]:
    """The settings of each detector for so many evaluations; what is fitted to labels is a detector by itself."""
    own: dict[str, list[Setting]] = {}
    for setting in whole.settings:
        if setting.evaluations <= budget and (setting.detector != CURVE or setting.name == FIT):
            fitted = setting.name == FIT  # the labels that it has learned from would choose it
            own.setdefault(f"{setting.detector}{FITTED_NAME}" if fitted else setting.detector, []).append(setting)
    return own


def affordable(case: Case, budgets: Iterable[float], seed: int = 0) -> pd.DataFrame:
    """The rows of `judge` for each of several budgets, with the `budget` and the AUROC alone."""
    rows = []
    for budget in budgets:
        for name, among in _by_detector(case.whole, budget).items():
            setting, _ = chosen(case.whole, among)
            about = {key: getattr(case, key) for key in QUESTION}
            said = {"detector": name, "setting": setting.name, "evaluations": setting.evaluations}
            found = measured(case.whole, setting, seed).interval()
            rows.append({"budget": budget} | about | said | {"AUROC": found})
    return pd.DataFrame(rows)


def best_single(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows of `judge` the best of each question on the half that is chosen by, at any price, but of no control.

    Of single detectors that ask the model about the item alone and without labels. `baseline` and `minus baseline`: AUROC of the
    plain one, and the paired difference to it.
    """
    single = rows[(rows["kind"] != "control") & ~rows["detector"].isin([*BLIND, *GIVEN])]
    single = single[~single["detector"].str.contains(", ")]
    plain = single[single["detector"] == single["items"].map(BASELINES)].set_index(QUESTION)["AUROC"]
    best = single.loc[single.groupby(QUESTION, sort=False)["chosen by"].idxmax()]
    minus = [row[f"minus {BASELINES[row['items']]}"] for row in best.to_dict("records")]
    return best.assign(
        baseline=plain.loc[pd.MultiIndex.from_frame(best[QUESTION])].tolist(), **{"minus baseline": minus}
    )


def frontier(case: Case, seed: int = 0) -> pd.DataFrame:
    """A row for each detector and price: the setting of this price that is best on one half, reported on the other."""
    points: dict[tuple[str, int], list[Setting]] = {}
    for setting in case.settings:
        if setting.detector == CURVE:
            continue
        points.setdefault((setting.detector, setting.evaluations), []).append(setting)
    return pd.DataFrame([row_of(case, detector, among, None, seed) for (detector, _), among in points.items()])


def row_of(
    case: Case, detector: str, among: Sequence[Setting], baseline: Measured | None, seed: int = 0
) -> dict[str, Any]:
    """What one of the settings, chosen on one half of the items, reaches on the other, with its price."""
    setting, reached = chosen(case, among)
    found = measured(case, setting, seed)
    minus = None if baseline is None else Difference(found, baseline).interval()
    return {
        "family": case.family,
        "items": case.items,
        "training": case.training,
        "kind": case.kind,
        "contrast": case.contrast,
        "detector": detector,
        "setting": setting.name,
        "evaluations": setting.evaluations,
        "positives": int(case.reported["positive"].sum()),
        "negatives": int((~case.reported["positive"]).sum()),
        "chosen by": reached,
        "AUROC": found.interval(),
        f"minus {BASELINES[case.items]}": minus,
    } | alarms(case, setting, seed)


def correlations(case: Case) -> pd.DataFrame:
    """Spearman's rank correlation of each two detectors, at their chosen settings, on the half that is reported.

    The mean over trainings.
    """
    by_detector: dict[str, list[Setting]] = {}
    for setting in case.settings:
        if setting.detector == CURVE:
            continue
        by_detector.setdefault(setting.detector, []).append(setting)
    scores = pd.DataFrame({name: case.mean(chosen(case, own)[0]) for name, own in by_detector.items()})
    reported = scores[~case.choosing].groupby(case.reported["training"])
    parts = [part.rank().corr().fillna(0.0) for _, part in reported]  # of ranks; 0 where all are equal
    return pd.DataFrame(np.mean(parts, axis=0), scores.columns, scores.columns)


def asking(case: Case, budget: float = float("inf")) -> list[Setting]:
    """The settings that ask the model, about the item alone and without labels, for so many evaluations.

    Not those of a loss curve, each of which is a loss.
    """
    left_out = (*BLIND, *GIVEN, CURVE)
    return [each for each in case.settings if each.detector not in left_out and 0 < each.evaluations <= budget]


def for_budgets(case: Case, budgets: Iterable[float], seed: int = 0) -> pd.DataFrame:
    """For each budget what `asking` finds best on the half that is chosen by, and what it reaches on the other.

    A row as `row_of` gives it, with the `budget`; `baseline` and `minus baseline`: AUROC of the detector of `BASELINES`, at its
    own best setting for the budget, and the paired difference to it, None where none is as cheap. No row for a budget that
    nothing is cheap enough for.
    """
    found = []
    for budget in budgets:
        among = asking(case, budget)
        plain = [each for each in among if each.detector == BASELINES[case.items]]
        if not among:
            continue
        setting, _ = chosen(case, among)
        baseline = measured(case, chosen(case, plain)[0], seed) if plain else None
        found.append(
            {"budget": budget}
            | row_of(case, setting.detector, [setting], None, seed)
            | {
                "baseline": baseline.interval() if plain else None,
                "minus baseline": Difference(measured(case, setting, seed), baseline).interval() if plain else None,
            }
        )
    return pd.DataFrame(found)


def combined(case: Case, seed: int = 0) -> pd.DataFrame:
    """The combinations of a case beside their best part: a row each, with `best part` (a detector) and `minus best part`.

    The best part is that on the half that is chosen by, of what `asking` finds without drawing samples.
    """
    whole = case.whole
    best = chosen(case, [each for each in asking(case) if each.detector not in SAMPLED])[0]
    part = measured(case, best, seed)
    rows = []
    for setting in whole.settings:
        if setting.detector in (RANKS, ADAPTIVE, LEARNED):
            found = measured(whole, setting, seed)
            row = row_of(whole, setting.detector, [setting], None, seed)
            rows.append(row | {"best part": best.detector, "minus best part": Difference(found, part).interval()})
    return pd.DataFrame(rows)
