"""Page parts in which the reader chooses: a prompt and its tokens, a question to the bench, a training picture.

Static HTML and a few lines of script of its own: no request leaves the page, and native lists and buttons are used by keyboard.
How they look stands in book/_static/book.css.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from IPython.display import HTML
from numpy.typing import NDArray
from PIL import Image

from memlib.evaluation.bench import BASELINES, QUESTION
from memlib.evaluation.intervals import Estimate
from memlib.study import naming
from memlib.study.differences import ENDINGS, verdict
from memlib.study.findings import PLAIN, counted
from memlib.truth.outcomes import borderline, clearest, is_copy, least_copies, original

CHOOSE_PROMPT = """
const list = part.querySelector("select");
const show = () => part.querySelectorAll("[data-entry]").forEach((entry, i) => { entry.hidden = i != list.value; });
list.addEventListener("change", show);
part.querySelector(".choices").hidden = false;
show();"""
CHOOSE_QUESTION = """
const [family, question] = part.querySelectorAll("select"), groups = [...question.children];
const holds = (budgets, one) => budgets.split(" ").includes(one);
const show = () => {
  const budget = part.querySelector("input:checked").value;
  part.querySelectorAll("[data-case]").forEach(each => {
    each.hidden = each.dataset.case != question.value || !holds(each.dataset.budgets ?? budget, budget);
  });
  part.querySelectorAll("li").forEach(row => {
    row.hidden = !holds(row.dataset.budgets, budget);
    row.ariaCurrent = holds(row.dataset.taken, budget);
  });
};
const ask = () => {
  question.replaceChildren(...groups.filter(group => group.dataset.family == family.value));
  question.selectedIndex = 0;
  show();
};
family.addEventListener("change", ask);
part.addEventListener("change", show);
part.querySelector(".choices").hidden = false;
ask();"""
CHOOSE_PICTURE = """
const entries = JSON.parse(part.querySelector("script").textContent), groups = part.querySelectorAll("fieldset");
const show = entry => {
  part.querySelectorAll("figure").forEach((figure, i) => {
    const [place, label, caption] = entry.pictures[i];
    figure.firstElementChild.style.backgroundPosition = place;
    figure.firstElementChild.ariaLabel = label;
    figure.lastElementChild.textContent = caption;
  });
  part.querySelectorAll(".facts li").forEach((fact, i) => { fact.textContent = entry.facts[i]; });
  part.querySelectorAll(".dots li").forEach((row, i) => {
    row.querySelector("i").style.setProperty("--at", entry.above[i] / 100);
    row.querySelector("b").textContent = entry.above[i];
  });
};
entries.forEach((entry, i) => {
  const button = document.createElement("input"), [place, , caption] = entry.pictures[0];
  const about = {type: "radio", name: part.id, value: i, autocomplete: "off", class: "pixels", title: caption};
  Object.entries({...about, "aria-label": caption}).forEach(([name, value]) => button.setAttribute(name, value));
  button.style.backgroundPosition = place;
  button.checked = i == 0;
  groups[entry.group].append(button);
});
part.addEventListener("change", event => show(entries[event.target.value]));
part.querySelector(".choices").hidden = false;"""
NOTHING = "No detector that asks the model is as cheap."
NEAREST = 4  # stored samples that are shown beside a picture
COLUMNS = 16  # of the sheet that holds the small pictures
SCALE = 4  # pixels of the screen that a pixel of a prompt's pictures takes a side
COLOUR = "222, 143, 5"  # orange of the colour-blind palette; dark letters stay legible on it


class Explained(NamedTuple):
    """A prompt with its tokens and their significances, and uint8 pictures [H, W, C] by their titles."""

    prompt: str
    tokens: Sequence[str]
    significance: Sequence[float]
    pictures: dict[str, NDArray[np.uint8]]


def explorer(entries: Sequence[Explained], name: str) -> HTML:
    """A list to choose from and, for the chosen prompt, tokens shaded by their share of the largest significance, and pictures.

    name: of the part, unique on the page. Without a script all prompts are shown one after the other.
    """
    options = "".join(f'<option value="{i}">{html.escape(entry.prompt)}</option>' for i, entry in enumerate(entries))
    parts = "".join(f"<div data-entry>{_tokens(entry)}{_pictures(entry)}</div>" for entry in entries)
    choices = f'<label>Prompt <select autocomplete="off">{options}</select></label>'
    return _part(name, choices, f'<div aria-live="polite">{parts}</div>', CHOOSE_PROMPT)


def _tokens(entry: Explained) -> str:
    largest = max(entry.significance, default=0.0)
    shaded = []
    for token, value in zip(entry.tokens, entry.significance, strict=True):
        share = value / largest if largest > 0 else 0.0
        style = f"background: rgba({COLOUR}, {share:.2f}); color: #000; padding: .2em .4em; margin: .1em; display: inline-block"
        shaded.append(
            f'<span style="{style}">{html.escape(token)}<small style="display: block">{share:.2f}</small></span>'
        )
    return f"<p>{''.join(shaded)}</p>"


def _pictures(entry: Explained) -> str:
    figures = []
    for title, picture in entry.pictures.items():
        image = Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture)
        source = _address(image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST))
        alt = html.escape(f"{title}, for the prompt {entry.prompt}")
        figures.append(
            f'<figure style="display: inline-block; margin: .5em"><img src="{source}" alt="{alt}">'
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
        )
    return "".join(figures)


def bench_explorer(rows: pd.DataFrame, best: pd.DataFrame, name: str, budget: float) -> HTML:
    """For a family, a question and a budget of network evaluations: the detector to take, and all that the budget is enough for.

    rows: of `memlib.evaluation.bench.affordable`, best: of `for_budgets`, of as many questions. name: of the part, unique on the
    page. budget: that is shown first, with the first question; without a script it is all that is shown.
    """
    budgets = sorted(rows["budget"].unique())
    first = str(budgets.index(budget))
    families: dict[str, dict[str, list[str]]] = {}
    answers, lists = [], []
    for number, (key, own) in enumerate(rows.groupby(QUESTION, sort=False)):
        family, items, training, contrast, kind = key
        option = (
            f'<option value="{number}">{html.escape(f"{contrast} ({naming.training_in_short(training)})")}</option>'
        )
        families.setdefault(f"{family}, {items}", {}).setdefault(kind, []).append(option)
        taken = best[best[QUESTION].eq([*key]).all(axis=1)].set_index("budget")
        for text, where in _alike((_taken(taken.loc[each]) if each in taken.index else NOTHING) for each in budgets):
            hidden = "" if number == 0 and first in where else " hidden"
            answers.append(f'<p data-case="{number}" data-budgets="{" ".join(where)}"{hidden}>{text}</p>')
        lines = "".join(_lines(own, taken, items, budgets, first))
        lists.append(f'<ol class="dots" data-case="{number}"{" hidden" * (number > 0)}>{lines}</ol>')
    names_of = "".join(f'<option value="{i}">{html.escape(family)}</option>' for i, family in enumerate(families))
    groups = "".join(
        f'<optgroup data-family="{i}" label="{html.escape(naming.KINDS.get(kind, kind))}">{"".join(options)}</optgroup>'
        for i, kinds in enumerate(families.values())
        for kind, options in kinds.items()
    )
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{i}" autocomplete="off"{" checked" * (str(i) == first)}> '
        f"at most {each:g}</label> "
        for i, each in enumerate(budgets)
    )
    choices = (
        f'<label>Model and items <select autocomplete="off">{names_of}</select></label>'
        f'<label>Question <select autocomplete="off">{groups}</select></label>'
        f"<fieldset><legend>Network evaluations an item</legend>{buttons}</fieldset>"
    )
    scale = '<p class="scale" aria-hidden="true"><i><b>0</b><b>0.5</b><b>1</b></i></p>'
    shown = f'<div class="taken" aria-live="polite">{"".join(answers)}</div>{scale}{"".join(lists)}'
    return _part(name, choices, shown, CHOOSE_QUESTION)


def _alike(texts: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """Each different text with the places at which it stands."""
    places: dict[str, list[str]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(str(place))
    return places.items()


def _taken(row: pd.Series) -> str:
    """A row of `memlib.evaluation.bench.for_budgets` in words."""
    about = "; ".join(filter(None, [naming.setting_in_words(row["setting"]), _price(row["evaluations"])]))
    plain = PLAIN[row["items"]]
    named = f"{html.escape(naming.detector_in_words(row['detector']))}</strong> ({html.escape(about)} an item)"
    judged = f"on {counted(row)} that it was not chosen by, training: {html.escape(row['training'])}. "
    if row["AUROC"].low > 0.5:
        text = f"<strong>Take: {named}. Its AUROC is {row['AUROC']} {judged}"
    else:
        text = (
            "<strong>Nothing is shown to tell these apart at this budget.</strong> Best on the other half was "
            f"<strong>{named}: its AUROC is {row['AUROC']} {judged}"
        )
    if row["detector"] == BASELINES[row["items"]]:
        return f"{text}It is {plain} itself: nothing else was better on the items that it was chosen by."
    if not isinstance(row["baseline"], Estimate):
        return f"{text}{plain[0].upper()}{plain[1:]} costs more."
    difference = row["minus baseline"]
    return (
        f"{text}{plain[0].upper()}{plain[1:]} at its own best setting for the same budget: {row['baseline']}. Difference "
        f"{difference:+}: {ENDINGS[verdict(difference)]}."
    )


def _lines(own: pd.DataFrame, taken: pd.DataFrame, items: str, budgets: Sequence[float], first: str) -> Iterable[str]:
    """A line for each detector and setting of a question, the largest AUROC first, with the budgets that it is shown for."""
    settings = own.groupby(["detector", "setting"], sort=False)
    lines = sorted(settings, key=lambda line: -line[1]["AUROC"].iloc[0].value)
    for (detector, setting), line in lines:
        where = [str(budgets.index(each)) for each in line["budget"]]
        chosen = taken[taken["detector"].eq(detector) & taken["setting"].eq(setting)].index
        best = [str(budgets.index(each)) for each in chosen]
        value, low, high = line["AUROC"].iloc[0]
        place = f"--low: {low:.3f}; --at: {value:.3f}; --high: {high:.3f}"
        state = (' aria-current="true"' if first in best else "") + ("" if first in where else " hidden")
        yield (
            f'<li data-budgets="{" ".join(where)}" data-taken="{" ".join(best)}"{state}>'
            f'{_named(detector, items, _price(line["evaluations"].iloc[0]))}<i style="{place}"></i>'
            f"<span>{line['AUROC'].iloc[0]}</span></li>"
        )


def _named(detector: str, items: str, price: str = "") -> str:
    """A detector in words, what it costs, and what sets it apart from those of the model and the item alone."""
    remark = naming.remark(detector, BASELINES[items])
    kind = {"plain baseline": "plain", "never looks at the model": "blind", "": ""}.get(remark, "more")
    small = "; ".join(filter(None, [remark, price]))
    return f'<span class="{kind}">{html.escape(naming.detector_in_words(detector))} <small>{small}</small></span>'


def _price(evaluations: int) -> str:
    return "1 evaluation" if evaluations == 1 else f"{evaluations or 'no'} evaluations"


def picture_explorer(
    pictures: pd.DataFrame,
    images: Mapping[str, NDArray[np.uint8]],
    matches: pd.DataFrame,
    drawn: Mapping[int, NDArray[np.uint8]],
    scores: pd.DataFrame,
    name: str,
) -> HTML:
    """For a training picture: how often it was seen, whether it is reproduced, the nearest samples, and how high it is scored.

    pictures: by their ids, all that the samples were compared with, with `caption`, `copies`, `generated_copies`, `reproduced`
    and `relative`; those with copies can be chosen. images: of these. matches: of the samples with the pictures, a row a sample.
    drawn: the samples that are stored, by their number. scores: of all items, a column a detector. name: of the part, unique on
    the page. The script cuts the buttons from the sheet of all pictures; without a script the first picture is shown.
    """
    order = ["copies", "generated_copies", "caption"]
    trained = pictures[pictures["copies"] > 0].sort_values(order, ascending=[False, False, True], kind="stable")
    above = above_percent(scores).loc[trained.index]
    copied = original(matches).where(is_copy(matches))
    shown = [images[key] for key in trained.index] + list(drawn.values())
    source, places = _sheet(shown)
    stored = dict(zip(drawn, places[len(trained) :], strict=True))
    enough = least_copies(len(matches), len(pictures))
    grades = trained["copies"].unique().tolist()
    entries: list[dict[str, Any]] = []
    for number, (key, row) in enumerate(trained.iterrows()):
        own = [(places[number], f"training picture: {row['caption']}", row["caption"])]
        for sample, distance in _nearest(images[key], drawn):
            what = "a copy" if copied[sample] == key else "no copy" if pd.isna(copied[sample]) else "copies another"
            own.append((stored[sample], f"sample {sample}, {what}", f"{distance:.2f}: {what}"))
        facts = _facts(row, len(matches), enough)
        group = grades.index(row["copies"])
        entries.append({"pictures": own, "facts": facts, "above": above.loc[key].tolist(), "group": group})
    legends = "".join(f"<fieldset><legend>seen {_times(copies)} an epoch</legend></fieldset>" for copies in grades)
    choices = f'<div class="thumbnails" role="group" aria-label="Training pictures">{legends}</div>'
    large, *near = (_figure(*each) for each in entries[0]["pictures"])
    facts = "".join(f"<li>{fact}</li>" for fact in entries[0]["facts"])
    lines = "".join(
        f'<li>{_named(detector, "pictures")}<i style="--at: {share / 100:.2f}"></i><span>above <b>{share}</b> %</span></li>'
        for detector, share in above.iloc[0].items()
    )
    content = (
        f'<div aria-live="polite" class="chosen">{large}<ul class="facts">{facts}</ul></div>'
        f"<p>The nearest of the {len(drawn)} samples that are stored as pictures, and how far they are from it (root mean square "
        f'over pixels, which run from -1 to 1):</p><div class="near">{"".join(near)}</div>'
        f"<p>How many of all {len(scores)} pictures, trained on or kept out, each detector scores lower:</p>"
        f'<p class="scale" aria-hidden="true"><i><b>0</b><b>50 %</b><b>100 %</b></i></p><ol class="dots">{lines}</ol>'
        f'<script type="application/json">{json.dumps(entries).replace("<", chr(92) + "u003c")}</script>'
    )
    return _part(name, choices, content, CHOOSE_PICTURE, f"--sheet: url({source}); --rows: {-(-len(shown) // COLUMNS)}")


def _facts(picture: pd.Series, samples: int, enough: int) -> list[str]:
    """How often training holds a picture, whether the model reproduces it, and how near samples come to it, in sentences."""
    return [
        f"Training holds it {_times(picture['copies'])} an epoch.",
        f"{'The model reproduces it' if picture['reproduced'] else 'The model does not reproduce it'}: "
        f"{_copies(picture['generated_copies'], samples)}, and {enough} would be enough.",
        f"The nearest of all samples comes to {picture['relative']:.2f} of the distance below which a sample is a copy.",
    ]


def stored_samples(
    matches: pd.DataFrame, first: Iterable[NDArray[np.uint8]], examples: Sequence[NDArray[np.uint8]]
) -> dict[int, NDArray[np.uint8]]:
    """The samples of which a stage `truth` stores pictures, by their number.

    first: of pictures.png, the samples in their order. examples: of examples.png, as many borderline cases as clearest copies, or
    more where there are few different copies.
    """
    clear = clearest(matches, len(examples) // 2)
    border = borderline(matches, len(examples) - len(clear))
    return dict(enumerate(first)) | dict(zip([*clear, *border], examples, strict=True))


def above_percent(scores: pd.DataFrame) -> pd.DataFrame:
    """How many of a hundred items score lower than each, by each column, rounded down."""
    return (100 * (scores.rank(method="min") - 1) // len(scores)).astype(int)


def _nearest(picture: NDArray[np.uint8], drawn: Mapping[int, NDArray[np.uint8]]) -> list[tuple[int, float]]:
    """The nearest samples and their distances: root mean square over pixels in [-1, 1]."""
    others = np.stack(list(drawn.values())) / 127.5
    distances = np.sqrt(((others - picture / 127.5) ** 2).mean(axis=(1, 2, 3)))
    numbers = list(drawn)
    return [(numbers[i], float(distances[i])) for i in np.argsort(distances, kind="stable")[:NEAREST]]


def _sheet(images: Sequence[NDArray[np.uint8]]) -> tuple[str, list[str]]:
    """All pictures as one, as an address, and where each lies, as CSS says it of a background."""
    side, rows = images[0].shape[0], -(-len(images) // COLUMNS)
    sheet = np.zeros((rows * side, COLUMNS * side, images[0].shape[2]), dtype=np.uint8)
    places = []
    for i, image in enumerate(images):
        row, column = divmod(i, COLUMNS)
        sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = image
        places.append(f"{100 * column / (COLUMNS - 1):.4f}% {100 * row / max(rows - 1, 1):.4f}%")
    return _address(Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet)), places


def _figure(place: str, label: str, caption: str) -> str:
    return (
        f'<figure><span class="pixels" role="img" aria-label="{html.escape(label)}" style="background-position: {place}"></span>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _times(copies: int) -> str:
    return "once" if copies == 1 else f"{copies} times"


def _copies(count: int, samples: int) -> str:
    verb = "are copies" if count > 1 else "is a copy"
    return f"{count or 'none'} of {samples:,} samples {verb} of it"


def _part(name: str, choices: str, content: str, script: str, style: str = "") -> HTML:
    """A part of a page: what is chosen by, which only a script can show, what is shown first, and the script."""
    return HTML(
        f'<div id="{name}" class="explorer" style="{style}"><div class="choices" hidden>{choices}</div>{content}</div>'
        f"<script>(part => {{{script}}})(document.getElementById({json.dumps(name)}))</script>"
    )


def _address(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
