"""The bench in sentences for the book's first page, made of its metrics: true whichever way these fall.

`findings` reads what the chapter writes to metrics/bench.json. Every number is printed as `Estimate` prints it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memlib.evaluation.bench import BASELINES
from memlib.evaluation.intervals import Estimate
from memlib.study.differences import ENDINGS, verdict
from memlib.study.naming import detector_in_words, question

SMALL = 4  # network evaluations an item: the budget of the sentences of single families
PLAIN = {"pictures": "the plain loss", "prompts": "the text magnitude"}  # `memlib.evaluation.bench.BASELINES` in words
TOGETHER = {
    "all, by ranks": "the mean of all detectors' ranks",
    "all, AdaDetect": "AdaDetect",
    "all, learned": "a logistic regression on labels of the first half",
}


def page(found: Mapping[str, Any]) -> str:
    """The sentences of `findings` as a list of Markdown."""
    return "".join(f"- {sentence}\n" for sentence in findings(found))


def findings(found: Mapping[str, Any]) -> list[str]:
    """Sentences on each family, the plain baselines, what the training set adds, combinations, blind baselines and the control.

    found: `for_a_budget`, rows of `memlib.evaluation.bench.for_budgets`; `combined`, those of `combined`; `upper` and `blind`,
    rows with family, items, detector and AUROC; `control`, its number of `intervals` and of those that `hold one half`.
    """
    rows = found["for_a_budget"]
    return [
        *(_of_question(own) for own in _by_question(rows)),
        _over_all(rows),
        *_upper(found["upper"]),
        *combined(found["combined"]),
        *_blind(found["blind"]),
        _control(found["control"]),
    ]


def answers(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What budgets buy, for a reader who knows no detector: a sentence for each of some rows of `for_budgets`."""
    return [_answer(row, "" if number else " (0.5 is a coin toss)") for number, row in enumerate(rows)]


def _answer(row: Mapping[str, Any], scale: str) -> str:
    items, plain = row["items"], PLAIN[row["items"]]
    asked = question(items, row["contrast"]).rstrip("?")
    begun = f"**{items.capitalize()}, at most {row['budget']:g} network evaluations. {asked}?**"
    counts = f"{row['positives']} against {row['negatives']}"
    reached = f"AUROC **{_estimate(row, 'AUROC')}** on the other{scale}, n: {counts}"
    if row["detector"] == BASELINES[items]:
        return (
            f"{begun} On one half of the items nothing is better than {plain} itself (`{row['detector']}`): {reached}."
        )
    named = f"{begun} On one half of the items the {detector_in_words(row['detector'])} (`{row['detector']}`) is best"
    if row["minus baseline"] is None:
        return f"{named}: {reached}; {plain} costs more."
    difference = _estimate(row, "minus baseline")
    return (
        f"{named}: {reached}; {plain} reaches {_estimate(row, 'baseline')}; paired difference {difference}: "
        f"{ENDINGS[verdict(difference)]}."
    )


def counts(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """In how many rows the chosen detector is ahead of the plain one of the same budget, behind, neither, or `same`."""
    compared = [row for row in rows if row["minus baseline"] is not None]
    same = [row for row in compared if row["detector"] in BASELINES.values()]
    others = [row for row in compared if row["detector"] not in BASELINES.values()]
    return Counter(verdict(_estimate(row, "minus baseline")) for row in others) + Counter(same=len(same))


def _of_question(rows: Sequence[Mapping[str, Any]]) -> str:
    """On one question: what the dearest of the small budgets buys, or, where there is none, the cheapest."""
    small = [row for row in rows if row["budget"] <= SMALL]
    row = small[-1] if small else rows[0]
    plain = PLAIN[row["items"]]
    begun = (
        f"**{row['family'][0].upper()}{row['family'][1:]}, {row['items']}** ({row['contrast']}; {row['positives']} against "
        f"{row['negatives']}): for at most {row['budget']:g} network evaluations"
    )
    reached = f"an AUROC of {_estimate(row, 'AUROC')}"
    if row["minus baseline"] is None:
        return f"{begun} `{row['detector']}` reaches {reached}; {plain} costs more."
    if row["detector"] in BASELINES.values():
        return (
            f"{begun} nothing is better on the first half than {plain} itself, which reaches {reached} on the second."
        )
    difference = _estimate(row, "minus baseline")
    return (
        f"{begun} `{row['detector']}` reaches {reached}, {plain} {_estimate(row, 'baseline')}; difference {difference}: "
        f"{ENDINGS[verdict(difference)]}."
    )


def _over_all(rows: Sequence[Mapping[str, Any]]) -> str:
    found = counts(rows)
    budgets = _listed(f"{budget:g}" for budget in sorted({row["budget"] for row in rows}))
    return (
        f"Over all these questions and the budgets of {budgets} evaluations, the detector that the first half chooses is ahead "
        f"of the plain loss or magnitude of the same budget in {found['ahead']} cases, behind in {found['behind']}, and "
        f"neither in {found['neither']}; in {found['same']} the plain one itself is chosen."
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
        named = _listed(f"`{row['detector']}` ({row['family']}, {row['items']})" for row in away)
        ending = f"; not those of {named}, where what the items are by themselves tells a part."
    return [
        f"Blind baselines, which never look at the model, reach AUROCs of {min(values):.3f} to {max(values):.3f} on the same "
        f"questions; {len(rows) - len(away)} of {len(rows)} intervals hold 0.5{ending}"
    ]


def _control(control: Mapping[str, int]) -> str:
    return (
        f"Asked about copies that the model never saw, the detectors' intervals hold 0.5 in {control['hold one half']} of "
        f"{control['intervals']} cases; 95 % should."
    )


def _by_question(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    questions: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        questions.setdefault((row["family"], row["items"], row["contrast"]), []).append(row)
    return list(questions.values())


def _estimate(row: Mapping[str, Any], name: str) -> Estimate:
    return row[name] if isinstance(row[name], Estimate) else Estimate(**row[name])  # as a metrics file holds it


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
