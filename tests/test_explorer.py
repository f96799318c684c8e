"""The page parts in which a reader chooses: what is shown, by keyboard and without a request."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag
from PIL import Image

from memlib.evaluation.intervals import Estimate
from memlib.study import naming
from memlib.study.draw_samples import EXAMPLES
from memlib.study.explorer import (
    NOTHING,
    SCALE,
    Explained,
    above_percent,
    bench_explorer,
    explorer,
    picture_explorer,
    stored_samples,
)
from memlib.truth.outcomes import borderline, clearest, least_copies, reproduced

CHROMIUM = shutil.which("chromium")
STYLE = Path(__file__).parent.parent / "book/_static/book.css"


def entries() -> list[Explained]:
    picture = np.linspace(0, 255, 48).astype(np.uint8).reshape(4, 4, 3)
    pictures = {"generated": picture, "training picture": picture[..., :1]}
    return [
        Explained("a <red> apple", ["a", "<red>", "apple"], [0.5, 2.0, 1.0], pictures),
        Explained("zorbik whale", ["zorbik", "whale"], [0.0, 0.0], pictures),
    ]


def test_tokens_are_shaded_by_their_share_and_texts_escaped() -> None:
    page = explorer(entries(), "tokens").data
    assert re.findall(r"rgba\([\d, ]+, ([\d.]+)\)", page) == ["0.25", "1.00", "0.50", "0.00", "0.00"]
    assert "<red>" not in page
    assert "&lt;red&gt;" in page
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_a_picture_is_shown_larger_and_otherwise_as_it_is() -> None:
    (entry, *_) = entries()
    page = explorer([entry], "tokens").data
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in re.findall(r"base64,([^\"]+)", page)
    ]
    colour, grey = entry.pictures.values()
    np.testing.assert_array_equal(shown[0], colour.repeat(SCALE, 0).repeat(SCALE, 1))
    np.testing.assert_array_equal(shown[1], grey[..., 0].repeat(SCALE, 0).repeat(SCALE, 1))


@pytest.fixture
def page(tmp_path) -> Iterator:
    """A page on a phone, in the book's style, which `page.show` fills with a part; it asks no host for anything."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    def show(part: str) -> None:
        file = tmp_path / "page.html"
        style = f"<style>{STYLE.read_text()}</style>"
        file.write_text(f"<!doctype html><html lang=en><meta charset=utf-8>{style}<body>{part}</body></html>")
        page.goto(file.as_uri())

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.show = show
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        browser.close()
    assert not errors
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_a_reader_chooses_a_prompt_by_keyboard(page) -> None:
    page.show(explorer(entries(), "tokens").data)
    shown = page.locator("[data-entry]:visible")
    assert shown.count() == 1
    assert "apple" in shown.inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert shown.count() == 1
    assert "whale" in shown.inner_text()


BUDGETS = [1, 4]
QUESTIONS = [  # family, items, training, contrast, kind
    ("pixel U-Net", "pictures", "long <one>", "seen once against kept out", "membership"),
    ("pixel U-Net", "pictures", "long <one>", "x16 against kept out", "copies"),
    ("latent U-Net", "prompts", "share 5%", "planted against drawn freely", "copies"),
]
PRICES = {"pictures": {"loss": (1, 4), "growth": (3,), "png_size": (0,)}, "prompts": {"magnitude": (4,)}}


def asked() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of every detector for each budget, and the best ones, with AUROCs that are all different."""
    columns = ["family", "items", "training", "contrast", "kind"]
    rows, best = [], []
    for number, question in enumerate(QUESTIONS):
        about = dict(zip(columns, question, strict=True))
        for budget in BUDGETS:
            own = []
            for place, (detector, prices) in enumerate(PRICES[about["items"]].items()):
                fit = [price for price in prices if price <= budget]
                if fit:
                    value = 0.5 + 0.1 * number + 0.03 * place + 0.007 * max(fit)
                    row = {"detector": detector, "setting": f"draws={max(fit)}", "evaluations": max(fit)}
                    own.append(about | row | {"budget": budget, "AUROC": Estimate(value, value - 0.1, value + 0.1)})
            rows += own
            asking = [row for row in own if row["detector"] != "png_size"]
            if asking:
                taken, plain = asking[-1], asking[0]["AUROC"]
                difference = Estimate(*(a - plain.value for a in taken["AUROC"]))
                counts = {"positives": 40 + number, "negatives": 50}
                best.append(taken | counts | {"baseline": plain, "minus baseline": difference})
    return pd.DataFrame(rows), pd.DataFrame(best)


def visible(part: Tag, what: str) -> list[Tag]:
    return [each for each in part.select(what) if not each.find_parent(hidden=True) and not each.has_attr("hidden")]


def lines_of(rows: pd.DataFrame) -> list[tuple[str, str]]:
    ordered = sorted(rows.itertuples(), key=lambda row: -row.AUROC.value)
    return [(naming.detector_in_words(row.detector), str(row.AUROC)) for row in ordered]


def test_the_first_question_is_shown_without_a_script() -> None:
    rows, best = asked()
    part = BeautifulSoup(bench_explorer(rows, best, "bench", 4).data, "html.parser")
    first = rows[rows["contrast"].eq(QUESTIONS[0][3]) & rows["budget"].eq(4)]
    found = [(line.span.contents[0].strip(), line.find_all("span")[-1].text) for line in visible(part, ".dots li")]
    assert found == lines_of(first)
    (answer,) = visible(part, ".taken p")
    taken = best[best["contrast"].eq(QUESTIONS[0][3]) & best["budget"].eq(4)].iloc[0]
    assert [part.span.text for part in visible(part, ".dots li")] == [
        "size as PNG never looks at the model; no evaluations",
        "volume growth 3 evaluations",
        "plain loss plain baseline; 4 evaluations",
    ]
    assert [line.span.get("class") for line in visible(part, ".dots li")] == [["blind"], [], ["plain"]]
    for said in (
        naming.detector_in_words(taken["detector"]),
        taken["AUROC"],
        taken["baseline"],
        f"Difference {taken['minus baseline']:+}: ",
        "40 against 50",
    ):
        assert str(said) in answer.text
    (chosen,) = (line for line in visible(part, ".dots li") if line.get("aria-current"))
    assert chosen.span.contents[0].strip() == naming.detector_in_words(taken["detector"])
    assert not visible(part, ".choices")


def test_every_line_stands_with_its_budgets_and_its_interval() -> None:
    rows, best = asked()
    part = BeautifulSoup(bench_explorer(rows, best, "bench", 1).data, "html.parser")
    for number, question in enumerate(QUESTIONS):
        for place, budget in enumerate(BUDGETS):
            own = rows[rows["contrast"].eq(question[3]) & rows["budget"].eq(budget)]
            lines = [
                line
                for line in part.select(f'ol[data-case="{number}"] li')
                if str(place) in line["data-budgets"].split()
            ]
            assert [(line.span.contents[0].strip(), line.find_all("span")[-1].text) for line in lines] == lines_of(own)
            for line, (_, estimate) in zip(lines, lines_of(own), strict=True):
                drawn = re.findall(r"--(?:low|at|high): ([-\d.]+)", line.i["style"])
                assert sorted(drawn) == sorted(re.findall(r"[\d.]+", estimate))
    assert NOTHING in [text.text for text in part.select('p[data-case="2"]')], "the magnitude costs more than 1"


def test_an_answer_says_where_the_plain_baseline_itself_is_taken_and_where_it_costs_more() -> None:
    rows, best = asked()
    part = BeautifulSoup(bench_explorer(rows, best, "bench", 4).data, "html.parser")
    (same,) = (text.text for text in part.select('p[data-case="2"]') if text.text != NOTHING)
    assert same.startswith("Take: text magnitude (4 noises; 4 evaluations an item).")
    assert same.endswith("It is the text magnitude itself: nothing else was better on the items that it was chosen by.")
    labels = [group["label"] for group in part.select("optgroup")]
    assert labels == ["Was it in training?", "Was it planted?", "Was it planted?"]
    dear = best.assign(**{"baseline": None, "minus baseline": None})
    part = BeautifulSoup(bench_explorer(rows, dear, "bench", 4).data, "html.parser")
    (answer,) = visible(part, ".taken p")
    assert answer.text.endswith("The plain loss costs more.")
    assert "1 evaluation an item" in part.select_one('p[data-case="0"][data-budgets="0"]').text


def test_nothing_is_advised_where_the_interval_does_not_lie_above_one_half() -> None:
    rows, best = asked()
    for auroc, advised in (
        (Estimate(0.7, 0.51, 0.8), True),
        (Estimate(0.6, 0.5, 0.8), False),
        (Estimate(0.3, 0.1, 0.4), False),
    ):
        shown = best.assign(AUROC=[auroc] * len(best))
        part = BeautifulSoup(bench_explorer(rows, shown, "bench", 4).data, "html.parser")
        (answer,) = visible(part, ".taken p")
        assert answer.text.startswith("Take: ") is advised
        assert ("Nothing is shown to tell these apart at this budget." in answer.text) is not advised
        assert str(auroc) in answer.text


def test_the_plain_baseline_is_not_compared_with_itself() -> None:
    rows, best = asked()
    part = BeautifulSoup(bench_explorer(rows, best.assign(detector="loss"), "bench", 4).data, "html.parser")
    (answer,) = visible(part, ".taken p")
    assert "It is the plain loss itself" in answer.text
    assert "Difference" not in answer.text


def test_names_of_trainings_and_detectors_are_escaped() -> None:
    rows, best = asked()
    found = bench_explorer(rows.replace("growth", "<mine>"), best.replace("growth", "<mine>"), "bench", 4).data
    assert "<one>" not in found
    assert "<mine>" not in found
    assert "long &lt;one&gt;" in found
    assert "&lt;mine&gt;" in found


@pytest.mark.ci
def test_a_reader_asks_the_bench_by_keyboard(page) -> None:
    rows, best = asked()
    page.show(bench_explorer(rows, best, "bench", 4).data)

    def shown() -> tuple[list[str], str]:
        lines = page.locator(".dots li:visible > span:last-child").all_inner_texts()
        return lines, page.locator(".taken p:visible").inner_text()

    def expected(number: int, budget: int) -> list[str]:
        own = rows[rows["contrast"].eq(QUESTIONS[number][3]) & rows["budget"].eq(budget)]
        return [estimate for _, estimate in lines_of(own)]

    assert shown()[0] == expected(0, 4)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert shown()[0] == expected(1, 4)
    assert "41 against 50" in shown()[1]
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    assert shown()[0] == expected(1, 1)
    assert page.locator('[aria-current="true"]:visible').count() == 1
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowDown")
    assert page.locator("option").all_inner_texts()[2:] == ["planted against drawn freely (share 5%)"]
    assert shown() == ([], NOTHING)


def judged() -> tuple[pd.DataFrame, dict, pd.DataFrame, dict, pd.DataFrame]:
    """Four pictures, one of them kept out; samples of which five are stored; two detectors."""
    rng = np.random.default_rng(3)
    ids = ["a", "b", "c", "out"]
    images = {key: rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for key in ids}
    matches = pd.DataFrame(
        {"picture": ["a", "b", "a", "a"] * 5, "relative": [0.2, 1.5, 0.9, 3.0] * 4 + [0.2, 0.8, 0.9, 3.0]}
    )
    matches = matches.assign(embedded_relative=2.0, distance=1.0, second_distance=2.0)
    uneven = np.array([16, 0, 0], dtype=np.uint8)  # in one of three colours
    drawn = {0: images["a"] ^ 4, 1: images["b"] ^ 1, 2: images["a"] ^ uneven}
    drawn |= {number: rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for number in (3, 4)}
    about = {
        "caption": ["<b>bold</b>", "bee", "</script>", "never"],
        "copies": [16, 1, 1, 0],
        "relative": [0.2, 0.8, 2, 3],
    }
    pictures = pd.DataFrame(about, index=ids).join(reproduced(matches, ids))
    scores = pd.DataFrame({"growth": [4.0, 2.0, 1.0, 2.0], "png_size": [1.0, 2.0, 3.0, 4.0]}, index=ids)
    return pictures, images, matches, drawn, scores


def test_percentages_count_the_items_that_score_lower() -> None:
    scores = judged()[-1]
    assert above_percent(scores)["growth"].tolist() == [75, 25, 0, 25]
    assert above_percent(scores)["png_size"].tolist() == [0, 25, 50, 75]


def test_a_picture_is_shown_with_its_truth_its_samples_and_its_scores() -> None:
    pictures, images, matches, drawn, scores = judged()
    part = BeautifulSoup(picture_explorer(pictures, images, matches, drawn, scores, "pictures").data, "html.parser")
    assert [group.text for group in part.select("legend")] == ["seen 16 times an epoch", "seen once an epoch"]
    first, *others = json.loads(part.select_one("script").text)
    shown = [(entry["group"], entry["pictures"][0][2]) for entry in (first, *others)]
    assert shown == [(0, "<b>bold</b>"), (1, "bee"), (1, "</script>")], "the most copied first"
    enough = least_copies(len(matches), len(pictures))
    assert [fact.text for fact in part.select(".facts li")] == first["facts"]
    assert first["facts"][0] == "Training holds it 16 times an epoch."
    assert first["facts"][1].startswith("The model reproduces it: 10 of 20 samples are copies of it")
    assert f"{enough} would be enough" in first["facts"][1]
    assert "0.20" in first["facts"][2]
    assert others[0]["facts"][1] == (
        f"The model does not reproduce it: 1 of 20 samples is a copy of it, and {enough} would be enough."
    )
    assert others[1]["facts"][1].startswith("The model does not reproduce it: none of 20 samples is a copy")
    assert others[0]["pictures"][1][2] == f"{1 / 127.5:.2f}: no copy", "near as it is"
    assert [caption for _, _, caption in first["pictures"]] == [
        "<b>bold</b>",
        f"{4 / 127.5:.2f}: a copy",
        f"{16 / 127.5 / 3**0.5:.2f}: a copy",
        *(caption for _, _, caption in first["pictures"][3:]),
    ]
    labels = {label for _, label, _ in others[0]["pictures"]}
    assert labels & {"sample 0, copies another", "sample 2, copies another", "sample 4, copies another"}
    assert len(first["pictures"]) == 5, "the picture and its four nearest samples"
    assert first["pictures"][3][2].endswith(": no copy")
    assert [entry["above"] for entry in (first, *others)] == [[75, 0], [25, 25], [0, 50]]
    assert [line.b.text for line in part.select(".dots li")] == ["75", "0"]


@pytest.mark.parametrize("different", [2, 12])
def test_stored_samples_have_the_numbers_that_their_stage_gave_them(different: int) -> None:
    rng = np.random.default_rng(5)
    matches = pd.DataFrame({"picture": rng.choice([*"abcdefghijkl"[:different]], 90), "relative": rng.random(90) * 2})
    pictures = np.arange(90, dtype=np.uint8)[:, None, None, None] + np.zeros((90, 2, 2, 1), dtype=np.uint8)
    examples = pictures[[*clearest(matches, EXAMPLES), *borderline(matches, EXAMPLES)]]
    found = stored_samples(matches, pictures[:10], examples)
    assert {*range(10), *clearest(matches, EXAMPLES), *borderline(matches, EXAMPLES)} == found.keys()
    assert all((picture == number).all() for number, picture in found.items())


def test_each_place_of_the_sheet_holds_its_picture() -> None:
    pictures, images, matches, drawn, scores = judged()
    page = picture_explorer(pictures, images, matches, drawn, scores, "pictures").data
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^)]+)", page)[1]))))
    side, entries = 4, json.loads(BeautifulSoup(page, "html.parser").select_one("script").text)
    for (place, _, _), picture in zip(entries[0]["pictures"], [images["a"], drawn[0], drawn[2]], strict=False):
        offsets = [float(share.rstrip("%")) / 100 for share in place.split()] * (np.array(sheet.shape[1::-1]) - side)
        left, top = offsets.round().astype(int)
        np.testing.assert_allclose(offsets, (left, top), atol=0.01)
        np.testing.assert_array_equal(sheet[top : top + side, left : left + side], picture)


@pytest.mark.ci
def test_a_reader_goes_through_pictures_by_keyboard(page) -> None:
    given = judged()
    html = picture_explorer(*given, "pictures").data
    page.show(html)
    entries = json.loads(BeautifulSoup(html, "html.parser").select_one("script").text)

    def assert_shown(number: int) -> None:
        entry = entries[number]
        assert page.locator(".facts li").all_inner_texts() == entry["facts"]
        assert page.locator("figcaption").all_inner_texts() == [caption for _, _, caption in entry["pictures"]]
        labels = [box.get_attribute("aria-label") for box in page.locator("[role=img]").all()]
        assert labels == [label for _, label, _ in entry["pictures"]]
        assert page.locator(".dots b").all_inner_texts() == [str(share) for share in entry["above"]]

    buttons = page.get_by_role("radio")
    assert [button.get_attribute("aria-label") for button in buttons.all()] == [
        entry["pictures"][0][2] for entry in entries
    ]
    places = [button.evaluate("button => button.style.backgroundPosition") for button in buttons.all()]
    assert len({*places}) == len(entries)
    sheets = page.locator(".pixels").evaluate_all("boxes => boxes.map(box => getComputedStyle(box).backgroundImage)")
    assert len({*sheets}) == 1, "one sheet for the thumbnails and what is shown large"
    assert_shown(0)
    page.keyboard.press("Tab")
    if page.locator(":focus").get_attribute("type") != "radio":  # a box that scrolls takes the focus first
        page.keyboard.press("Tab")
    for pressed, number in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowRight", 0), ("ArrowLeft", 2)):
        page.keyboard.press(pressed)
        assert_shown(number)
        assert [button.is_checked() for button in buttons.all()] == [i == number for i in range(len(entries))]
    buttons.nth(1).click()
    assert_shown(1)
    assert buttons.nth(1).bounding_box()["width"] >= 44, "large enough for a finger"
