"""The bench in sentences for the book's first page, made of its metrics: true whichever way these fall.

`findings` reads what the chapter writes to metrics/bench.json. Every number is printed as `Estimate` prints it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from memlib.evaluation.bench import BASELINES
from memlib.evaluation.intervals import Estimate
from memlib.study.differences import ENDINGS, verdict
from memlib.study.naming import MEASURES, detector_in_words, question

SMALL = 4  # network evaluations an item: the budget of the sentences of single families
PLAIN = {"pictures": "the plain loss", "prompts": "the text magnitude"}  # `memlib.evaluation.bench.BASELINES` in words
TOGETHER = {
    "all, by ranks": "the mean of all detectors' ranks",
    "all, AdaDetect": "AdaDetect",
    "all, learned": "a logistic regression on labels of the first half",
}
# What a row found, by its case (see `_told`)
SHORT = {
    "itself": "nothing better than {plain} itself, {reached}.",
    "dear": "{named}, {reached}; {plain} costs more.",
    "compared": "{named}, {reached}; {plain} {baseline}, difference {difference:+}.",
    "chance": ", perhaps chance",
}
ANSWER = {
    "itself": "nothing is better than {plain} itself: {reached}.",
    "dear": "{named} ({measures}) is best: {reached}; {plain} costs more.",
    "compared": "{named} ({measures}) is best: {reached}; {plain} reaches {baseline}; paired difference {difference:+}: "
    "{ending}.",
    "chance": ", which is not shown to be above chance",
}
FINDING = {
    "itself": "nothing is better on the first half than {plain} itself, which reaches {reached} on the second.",
    "dear": "{named} reaches {reached}; {plain} costs more.",
    "compared": "{named} reaches {reached}, {plain} {baseline}; difference {difference:+}: {ending}.",
    "chance": "",
}


def page(found: Mapping[str, Any]) -> str:
    """The sentences of `findings` as a list of Markdown."""
    return "".join(f"- {sentence}\n" for sentence in findings(found))


def findings(found: Mapping[str, Any]) -> list[str]:
    """Sentences on each family, the plain baselines, what the training set adds, combinations, blind baselines and the control.

    found: `for_a_budget`, rows of `memlib.evaluation.bench.for_budgets`; `combined`, those of `combined`; `upper` and `blind`,
    rows with family, items, detector and AUROC; `control_groups`, for each family and kind of items the number of `intervals` of
    the control and of those that `hold one half`.
    """
    rows = found["for_a_budget"]
    return [
        *(_of_question(own) for own in _by(rows, "family", "items", "contrast")),
        _over_all(rows),
        *_upper(found["upper"]),
        *combined(found["combined"]),
        *_blind(found["blind"]),
        _control(found["control_groups"]),
    ]


def answers(rows: Iterable[Mapping[str, Any]], second_model: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What budgets buy, for a reader who knows no detector: a sentence for each of some rows of `for_budgets`.

    second_model: rows of the detector that asks a second model, with the `training`; they add a sentence.
    """
    said = [_answer(row, "" if number else " (0.5 is a coin toss)") for number, row in enumerate(rows)]
    return [*said, _second_model(second_model)] if second_model else said


def in_short(rows: Iterable[Mapping[str, Any]], second_model: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The numbers of `answers`, for a box that is read on a phone."""
    said = [_short(row) for row in rows]
    parts = [
        f"{_estimate(row, 'minus baseline'):+} ({detector_in_words(row['detector'])}, {row['evaluations']:g} evaluations: "
        f"*{question(row['items'], row['contrast'])}*)"
        for row in second_model
    ]
    return [*said, f"A second model adds {'; '.join(parts)} in AUROC."] if parts else said


def _short(row: Mapping[str, Any]) -> str:
    begun = f"**{question(row['items'], row['contrast'])}** At {row['budget']:g} evaluations:"
    reached = f"AUROC **{_estimate(row, 'AUROC')}** (n = {row['positives']} + {row['negatives']})"
    return f"{begun} {_told(row, SHORT, reached)}"


def _answer(row: Mapping[str, Any], scale: str) -> str:
    asked = question(row["items"], row["contrast"]).rstrip("?")
    begun = f"**{row['items'].capitalize()}, at most {row['budget']:g} network evaluations. {asked}?**"
    reached = f"AUROC **{_estimate(row, 'AUROC')}** on the other{scale}, n: {counted(row)}"
    return f"{begun} On one half of the items {_told(row, ANSWER, reached)}"


def _told(row: Mapping[str, Any], words: Mapping[str, str], reached: str) -> str:
    """What a row found, in the words of its case: the plain detector itself is chosen, costs more, or is compared with."""
    detector = row["detector"]
    parts = {
        "named": _named(detector),
        "measures": f"`{detector}`: {MEASURES[detector][0]}" if detector in MEASURES else "a new one",
        "reached": reached if _estimate(row, "AUROC").low > 0.5 else reached + words["chance"],
        "plain": PLAIN[row["items"]],
    }
    if _is_baseline(row):
        return words["itself"].format(**parts)
    if row["minus baseline"] is None:
        return words["dear"].format(**parts)
    difference = _estimate(row, "minus baseline")
    parts |= {"baseline": _estimate(row, "baseline"), "difference": difference, "ending": ENDINGS[verdict(difference)]}
    return words["compared"].format(**parts)


def _second_model(rows: Sequence[Mapping[str, Any]]) -> str:
    """What asking a second model as well adds to the plain baseline, on each question that it was asked."""
    parts = []
    for row in rows:
        difference = _estimate(row, "minus baseline")
        parts.append(
            f"*{question(row['items'], row['contrast'])}* {_named(row['detector'], capital=True)} ({row['evaluations']:g} "
            f"evaluations) reaches AUROC **{_estimate(row, 'AUROC')}**, {PLAIN[row['items']]} {_estimate(row, 'baseline')}, n: "
            f"{counted(row)}; paired difference {difference:+}: "
            f"{ENDINGS[verdict(difference)]}."
        )
    said = f"**With a second model, trained without these {rows[0]['items']}.** {' '.join(parts)}"
    if all(row["training"].endswith("from the reference") for row in rows):
        said += " It is the model that these trainings began from, which favours it."
    return said


def wins(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rows in which the detector chosen for a budget is ahead of the plain one: detector, budget, question and family."""
    return [
        f"{detector_in_words(row['detector'])} at a budget of {row['budget']:g} "
        f"({question(row['items'], row['contrast'])} {row['family']}, difference {_estimate(row, 'minus baseline'):+})"
        for row in _compared(rows)
        if verdict(_estimate(row, "minus baseline")) == "ahead"
    ]


def other_trainings(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the comparisons of `counts` fall in further ways of training the same models, by the `training`; "" without any.

    Of each way of training in which one is not `neither`, it tells the comparison at the budget next to `SMALL`.
    """
    if not rows:
        return ""
    found, parts = counts(rows), []
    for own, end in product(_by(rows, "items", "contrast", "family", "training"), ("ahead", "behind")):
        such = [row for row in _compared(own) if verdict(_estimate(row, "minus baseline")) == end]
        if such:
            row = min(such, key=lambda each: abs(each["budget"] - SMALL))
            parts.append(
                f" {end.capitalize()} at {_budgets(such)}: {row['family']}, {row['training']}, "
                f"*{question(row['items'], row['contrast'])}* (at {row['budget']:g}: {detector_in_words(row['detector'])}, "
                f"{_estimate(row, 'AUROC')}; difference {_estimate(row, 'minus baseline'):+}; n: {counted(row)})."
            )
    return (
        f"**The same questions in other ways of training**, at the budgets of {_budgets(rows)}: ahead in {found['ahead']} of "
        f"{found.total()} comparisons, behind in {found['behind']}.{''.join(parts)}"
    )


def counted(row: Mapping[str, Any]) -> str:
    """How many items stand against how many, and, where a row says so, of how many different ones in how many trainings."""
    said = f"{row['positives']} against {row['negatives']}"
    if "trainings" not in row:
        return said
    times = "1 training" if row["trainings"] == 1 else f"{row['trainings']} trainings"
    return f"{said} ({row['distinct']} {row['items']} in {times})"


def counts(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """In how many rows the chosen detector is ahead of the plain one of the same budget, behind, neither, or `same`."""
    same = sum(row["minus baseline"] is not None and _is_baseline(row) for row in rows)
    return Counter(verdict(_estimate(row, "minus baseline")) for row in _compared(rows)) + Counter(same=same)


def _compared(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of another detector than the plain one where that is cheap enough to be compared with."""
    return [row for row in rows if row["minus baseline"] is not None and not _is_baseline(row)]


def _is_baseline(row: Mapping[str, Any]) -> bool:
    return row["detector"] == BASELINES[row["items"]]


def _of_question(rows: Sequence[Mapping[str, Any]]) -> str:
    """On one question: what the dearest of the small budgets buys, or, where there is none, the cheapest."""
    small = [row for row in rows if row["budget"] <= SMALL]
    row = small[-1] if small else rows[0]
    begun = (
        f"**{row['family'][0].upper()}{row['family'][1:]}. {question(row['items'], row['contrast'])}** n: {counted(row)}. For "
        f"at most {row['budget']:g} network evaluations"
    )
    reached = f"an AUROC of {_estimate(row, 'AUROC')}"
    return f"{begun} {_told(row, FINDING, reached)}"


def _over_all(rows: Sequence[Mapping[str, Any]]) -> str:
    found = counts(rows)
    return (
        f"Over all these questions and the budgets of {_budgets(rows)} evaluations, the detector that the first half chooses is "
        f"ahead of the plain loss or magnitude of the same budget in {found['ahead']} cases, behind in {found['behind']}, and "
        f"neither in {found['neither']}; in {found['same']} the plain one itself is chosen. Each comparison is at 95 % by "
        "itself, not corrected for their number."
    )


def _upper(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    reached = _listed(f"{_estimate(row, 'AUROC')} ({row['family']})" for row in rows)
    return [f"Whoever may also compare a prompt's samples with the training set reaches {reached} on prompts."]


def combined(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What detectors together add to the best single one, a sentence, of rows of `memlib.evaluation.bench.combined`."""
    parts = []
    for name, said in TOGETHER.items():
        own = [row for row in rows if row["detector"] == name]
        counts = Counter(verdict(_estimate(row, "minus best part")) for row in own)
        if own:
            parts.append(
                f"{said} is ahead in {counts['ahead']} of {len(own)} questions and behind in {counts['behind']}"
            )
    return [f"All detectors together against the best single one: {_listed(parts)}."] if parts else []


def _blind(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    values = [_estimate(row, "AUROC").value for row in rows]
    away = [row for row in rows if not _estimate(row, "AUROC").contains(0.5)]
    ending = ", as they should."
    if away:
        named = _listed(f"{detector_in_words(row['detector'])} ({row['family']}, {row['items']})" for row in away)
        ending = f"; not those of {named}, where what the items are by themselves tells a part."
    return [
        f"Blind baselines, which never look at the model, reach AUROCs of {min(values):.3f} to {max(values):.3f} on the same "
        f"questions; {len(rows) - len(away)} of {len(rows)} intervals hold 0.5{ending}"
    ]


def _control(groups: Sequence[Mapping[str, Any]]) -> str:
    """Counts by family and kind of items; only where the same items take both sides must intervals hold 0.5."""
    told = _listed(f"{row['hold one half']} of {row['intervals']} ({row['family']}, {row['items']})" for row in groups)
    return (
        f"In the control, where the model memorised nothing, the detectors' intervals hold 0.5 in {told} cases. Where the two "
        "sides are the same pictures in exchanged roles, 95 % should; prompts and captioned drawings of the two sides differ by "
        "themselves, which a detector may read."
    )


def _named(detector: str, capital: bool = False) -> str:
    """A detector in words as the subject of a sentence, with its article where it is no proper name."""
    words = detector_in_words(detector)
    if words.islower() or words.startswith("p-"):
        return f"{'The' if capital else 'the'} {words}"
    return words


def _budgets(rows: Iterable[Mapping[str, Any]]) -> str:
    return _listed(f"{budget:g}" for budget in sorted({row["budget"] for row in rows}))


def _by(rows: Iterable[Mapping[str, Any]], *names: str) -> list[list[Mapping[str, Any]]]:
    """The rows that are alike in these, in their order."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def _estimate(row: Mapping[str, Any], name: str) -> Estimate:
    return row[name] if isinstance(row[name], Estimate) else Estimate(**row[name])  # as a metrics file holds it


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
