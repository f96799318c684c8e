"""What a criterion compares, read from the tables: items with their outcomes, and scores, over the trainings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from memlib.evaluation import looks, measures, mitigation, prompts
from memlib.evaluation.measured import Difference, Measured
from memlib.evaluation.split import best_setting, stratified_split
from memlib.study.criteria import Comparison, Criterion, Join, Side, filled
from memlib.tables import parse_setting, read_scores

RESAMPLES = 10_000  # so many that no verdict hangs on the seed


@dataclass(frozen=True)
class Cases:
    """The items of a criterion over all of its trainings: a row an item and training, with the index (training, item).

    positive [N]: which are positives (none for a share). choosing [N]: which are in the half that settings are chosen on.
    """

    name: str
    criterion: Criterion
    items: pd.DataFrame
    positive: NDArray[np.bool_]
    choosing: NDArray[np.bool_]

    @property
    def counts(self) -> dict[str, int]:
        """How many items of each kind are reported on, each counted once over all trainings."""
        ids = self.items.index.get_level_values("item").to_numpy()

        def count(rows: NDArray[np.bool_]) -> int:
            return len(set(ids[rows & ~self.choosing]))

        if self.criterion.statistic == "AUROC":
            return {"positive": count(self.positive), "negative": count(~self.positive)}
        return {"items": count(np.ones(len(ids), dtype=bool))}


def read_cases(name: str, criterion: Criterion) -> Cases:
    """The items that the claim `name` is judged on.

    Raises ValueError, in one sentence, for tables, columns, settings and items that are not there, and for fewer items than
    the power of the criterion asks for.
    """
    frames, whole = [], items_of(name, criterion, criterion.trainings[0])
    for training in criterion.trainings:
        frame = items_of(name, criterion, training)
        if criterion.statistic == "AUROC":
            sides = [_query(name, frame, query, training) for query in (criterion.positive, criterion.negative)]
            both = frame.index[sides[0] & sides[1]]
            if len(both):
                raise ValueError(
                    f"the claim {name!r} has items that are both positive and negative, such as {both[0]!r}"
                )
            frame = frame.assign(_positive=sides[0])[sides[0] | sides[1]]
        frames.append(frame)
    items = pd.concat(dict(zip(criterion.trainings, frames, strict=True)), names=["training", "item"])
    positive = items.pop("_positive").to_numpy(bool) if "_positive" in items else np.zeros(len(items), dtype=bool)
    cases = Cases(name, criterion, items, positive, _choosing(name, criterion, whole, items))
    for kind, least in criterion.at_least.items():
        if cases.counts[kind] < least:
            raise ValueError(
                f"the claim {name!r} asks for at least {least} items ({kind}), and the tables hold {cases.counts[kind]}"
                + (" on the half that is reported" if criterion.split else "")
            )
    first, *others = (_read_side(cases, side).index for side in criterion.sides())
    if criterion.statistic == "share" and not all(first.equals(other) for other in others):
        raise ValueError(f"the claim {name!r} compares trainings that are not of the same items")
    return cases


def measure(cases: Cases, comparison: Comparison | None = None) -> tuple[Measured | Difference, dict[str, str]]:
    """What a comparison, by default the criterion's, gives on the cases, and the settings that were chosen for its sides."""
    criterion = cases.criterion
    comparison = comparison or criterion
    sides = {"first": comparison.first} | ({"minus": comparison.minus} if comparison.minus else {})
    if criterion.statistic == "agreement":
        samples = cases.items.reset_index("item").rename(columns={"item": "id"})
        curves = (mitigation.curve(samples, side.method) for side in sides.values())
        return measures.gap(*curves, criterion.seed, RESAMPLES), {}
    found = {name: _measure_side(cases, side) for name, side in sides.items()}
    chosen = {name: setting for name, (_, setting) in found.items() if setting}
    values = [value for value, _ in found.values()]
    if len(values) == 1:
        return values[0], chosen
    trainings = [side.trainings or criterion.trainings for side in sides.values()]
    tried = "second" if comparison.minus.trainings else "first"  # a mitigating training is taken from its control
    return Difference(*values, same_trainings=trainings[0] == trainings[1], tried=tried), chosen


def beyond_baseline(criterion: Criterion) -> Comparison | None:
    """The method against the plain baseline, where they differ in one side of the comparison; None where in both."""
    plain = criterion.baseline
    if criterion.minus == plain.minus:
        return Comparison(first=criterion.first, minus=plain.first)
    if criterion.first == plain.first and criterion.minus and plain.minus:
        return Comparison(first=plain.minus, minus=criterion.minus)  # what is left under each: less is better
    return None


def items_of(name: str, criterion: Criterion, training: str) -> pd.DataFrame:
    """The items of one training, by id, with the columns of all joined tables; the samples themselves for an agreement."""
    frame = pd.read_parquet(_existing(name, filled(criterion.items, training)))
    frame = frame.set_index("id") if "id" in frame else frame
    for join in criterion.join:
        found = _joined(name, frame, join, training)
        frame = frame.join(found[found.columns.difference(frame.columns)], how="inner")
    if criterion.among is not None:
        frame = frame[_query(name, frame, criterion.among, training)]
    return frame.rename_axis("item")


def _joined(name: str, frame: pd.DataFrame, join: Join, training: str) -> pd.DataFrame:
    table = pd.read_parquet(_existing(name, filled(join.table, training)))
    if join.where is not None:
        table = table[_query(name, table, join.where, training)]
    if join.read == "triggers":
        around = prompts.around_triggers(table, frame["trigger"])
        first = around[around["first"] & (around["kind"] == prompts.KINDS[0])]
        ranked = pd.crosstab(first["id"], first["way"]).reindex(around["id"].unique(), fill_value=0)
        return ranked.reindex(columns=around["way"].unique(), fill_value=0)
    if join.read == "named":
        return looks.named_at(table)
    key = "id" if "id" in table else "item"
    return table.groupby(key).mean(numeric_only=True)


def _read_side(cases: Cases, side: Side) -> pd.DataFrame:
    """What a side measures: the outcomes of items by training, the scores of cases by setting, or the samples of a method."""
    criterion = cases.criterion
    if criterion.statistic == "AUROC":
        parts = {training: _scores(cases, side, training, path) for training, path in criterion.tables(side).items()}
        scores = pd.concat(parts, join="inner")
        if side.average is None and scores.shape[1] > 1 and criterion.split is None:
            raise ValueError(
                f"the claim {cases.name!r} finds {scores.shape[1]} settings in {side.table} and no split to choose one on"
            )
        return scores
    if criterion.statistic == "agreement":
        samples = cases.items[cases.items["method"] == side.method]
        if samples.empty:
            raise ValueError(
                f"the claim {cases.name!r} compares the method {side.method!r}, which the tables do not hold"
            )
        return samples
    columns = {}
    for training in side.trainings or criterion.trainings:
        frame = items_of(cases.name, criterion, training)
        columns[training] = _evaluate(cases.name, frame, filled(side.outcome, training)).astype(float)
        if columns[training].isna().any():
            raise ValueError(f"the claim {cases.name!r} has items without an outcome (training {training})")
    return pd.DataFrame(columns)  # nan where an item is none of a training's


def _measure_side(cases: Cases, side: Side) -> tuple[Measured, str]:
    criterion, read = cases.criterion, _read_side(cases, side)
    if criterion.statistic == "share":
        return measures.share(read.to_numpy(np.float64), criterion.seed, RESAMPLES), ""
    training, item = (cases.items.index.get_level_values(level).to_numpy() for level in ("training", "item"))
    cluster = cases.items[criterion.cluster].to_numpy() if criterion.cluster else item
    chosen = ""
    if side.average == "scores":
        read = read.mean(axis=1).to_frame()
    elif side.average is None and read.shape[1] > 1:
        best, _ = best_setting(read, (cases.positive, ~cases.positive), cases.choosing, training)
        chosen = read.columns[best]
        read = read[[chosen]]
    kept = ~cases.choosing
    rows = cases.positive[kept], cluster[kept], training[kept]
    return measures.auroc(read[kept], *rows, criterion.seed, RESAMPLES), chosen


def _scores(cases: Cases, side: Side, training: str, path: str) -> pd.DataFrame:
    """The scores of one side for one training, a row for each of its cases, a column for each setting that fits."""
    scores = read_scores(_existing(cases.name, path))
    asked = {key: value if isinstance(value, list) else [value] for key, value in side.setting.items()}
    settings = {column: parse_setting(column) for column in scores}
    fitting = [name for name, own in settings.items() if all(own.get(key) in asked[key] for key in asked)]
    if not fitting:
        raise ValueError(f"the claim {cases.name!r} asks for {dict(side.setting)}, which no setting of {path} has")
    ids = cases.items.loc[training].index
    absent = ids.difference(scores.index)
    if len(absent):
        raise ValueError(
            f"the claim {cases.name!r} compares {len(absent)} items that {path} lacks, such as {absent[0]!r}"
        )
    found = scores.loc[ids, fitting]
    return found / [settings[column]["sigma"] for column in fitting] if side.per_sigma else found


def _choosing(name: str, criterion: Criterion, whole: pd.DataFrame, items: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are in the half that settings are chosen on: a half of all items of the first training, the same in all."""
    if criterion.split is None:
        return np.zeros(len(items), dtype=bool)
    groups = pd.MultiIndex.from_arrays([_evaluate(name, whole, key) for key in criterion.split.by])
    half = whole.index[stratified_split(groups.factorize(sort=True)[0], np.zeros(len(whole)), criterion.split.seed)]
    return items.index.get_level_values("item").isin(half)


def _query(name: str, frame: pd.DataFrame, query: str, training: str) -> NDArray[np.bool_]:
    """The rows that satisfy a query; raises ValueError where there are none, or where the table does not have its columns."""
    found = _evaluate(name, frame, filled(query, training)).to_numpy(bool)
    if not found.any():
        raise ValueError(
            f"the claim {name!r} compares items with {query!r}, and the tables hold none (training {training})"
        )
    return found


def _evaluate(name: str, frame: pd.DataFrame, expression: str) -> pd.Series:
    try:
        found = frame.eval(expression)
    except (NameError, SyntaxError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"the claim {name!r} has the expression {expression!r}, which the tables cannot answer ({error}); "
            f"their columns are {', '.join(map(str, frame.columns))}"
        ) from error
    return found


def _existing(name: str, path: str) -> str:
    if not Path(path).exists():
        raise ValueError(f"the claim {name!r} is judged on {path}, which is not there")
    return path
