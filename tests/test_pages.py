"""Finished pages: what a reader sees of code, printed lines, figures and tables, on pages as Jupyter Book writes them."""

import base64
import csv
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from memlib.study.pages import finish
from memlib.study.plotting import LETTERS

PIXELS = b"\x89PNG of one figure"
ORIGIN = '<details class="origin"><summary>Stage growth, 11 s</summary></details>'
FIGURE = (
    f'<figure class="result"><img src="data:image/png;base64,{base64.b64encode(PIXELS).decode()}" alt="Dots.">'
    '<figcaption>Growth tells, p &lt; 0.05.</figcaption><a class="data" href="data:text/csv;base64,'
    f'{base64.b64encode(b"copies,growth").decode()}">Data</a></figure>'
)
TABLE = (
    '<div class="scrolling"><table class="dataframe table"><thead><tr><th>group</th><th colspan="2">AUROC</th></tr></thead>'
    "<tbody><tr><td>x16</td><td>0.9 [0.8, 1.0]</td><td>&lt; 1</td></tr></tbody></table></div>"
)
CLAIMS = (
    '<div class="pst-scrollable-table-container"><table class="table"><thead><tr><th><p>Claim</p></th><th><p>Verdict</p></th>'
    "</tr></thead><tbody><tr><td><p>It grows.</p></td><td><p><strong>reproduced</strong></p></td></tr></tbody></table></div>"
)


def cell(code: str, output: str = "", folded: bool = False) -> str:
    """A cell as MyST-NB writes it."""
    source = f'<div class="cell_input docutils container"><div class="highlight"><pre>{code}</pre></div></div>'
    if folded:
        source = (
            f'<details class="admonition hide above-input"><summary>Show code cell source</summary>{source}</details>'
        )
    shown = f'<div class="cell_output docutils container">{output}</div>' if output else ""
    return f'<div class="cell docutils container">{source}{shown}</div>'


def write_page(path: Path, *body: str) -> None:
    """A page as Jupyter Book writes it, and beside the pages the options of their search."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'<html>1 < 2<article class="bd-article"><section>{"".join(body)}</section></article><br></html>')
    folder = path.parent if path.parent.name != "chapters" else path.parent.parent
    options = folder / "_static/documentation_options.js"
    options.parent.mkdir(exist_ok=True)
    options.write_text("const DOCUMENTATION_OPTIONS = {\n    SHOW_SEARCH_SUMMARY: true,\n};")


@pytest.fixture
def finished(tmp_path: Path) -> BeautifulSoup:
    printed = (
        '<div class="output stream"><div class="highlight"><pre>lost without a: 0.5\n\nThe rest.\n</pre></div></div>'
    )
    body = [
        "<h1>Growth</h1>",
        cell("import torch"),
        cell("seed = 4"),
        "<p>Words of 95 % and n = 12.</p>",
        cell("draw(1)", FIGURE, folded=True),
        cell("x = [1, 2]"),
        cell("print(3)", f"{printed}{TABLE}"),
        cell("write(4)"),
        f'{CLAIMS}<table id="plain"><tr><td>1</td></tr></table>',
        '<figure><img src="../_images/bench.png" alt="Bars."></figure>',
        '<svg viewBox="0 0 1 1"></svg>',
    ]
    page = tmp_path / "chapters/growth.html"
    write_page(page, *body)
    (tmp_path / "_images").mkdir()
    about = PngInfo()
    about.add_text(LETTERS, "9.5")
    Image.new("L", (800, 20)).save(tmp_path / "_images/bench.png", dpi=(160, 160), pnginfo=about)
    (tmp_path / "search.html").write_text("<html></html>")
    options = tmp_path / "_static/documentation_options.js"
    bench = ORIGIN.replace("growth", "bench")
    banners = {"growth": '<p class="elsewhere">Made elsewhere.</p>', "flow": ""}
    changed = {"chapters/growth": ("2026-11-20", "0123456789abcdef"), "index": ("2026-11-21", "fedcba")}
    finish(tmp_path, {"growth": ORIGIN, "bench": bench}, banners, {"bench.png": "bench"}, changed)
    text = page.read_text()
    assert text.startswith("<html>1 < 2<article")
    assert text.endswith("</article><br></html>"), "what is around the article stays as it was"
    assert (tmp_path / "search.html").read_text() == "<html></html>"
    assert '    SHOW_SEARCH_SUMMARY: location.protocol != "file:",\n' in options.read_text()
    return BeautifulSoup(text, "html.parser")


def test_code_is_folded_under_what_it_shows_and_what_comes_first_stands_last(finished: BeautifulSoup) -> None:
    folds = finished.select("details.code")
    assert [[code.get_text() for code in fold.select("pre")] for fold in folds] == [
        ["draw(1)"],
        ["x = [1, 2]", "print(3)"],
        ["import torch", "seed = 4", "write(4)"],
    ]
    assert len(finished.select("pre")) == 6, "no code outside the folds"
    assert not finished.select("details[open]")
    cells = finished.select("div.cell")
    assert len(cells) == 2, "a cell that shows nothing leaves nothing"
    for shown in cells:
        assert "cell_output" in shown.find("div")["class"], "the result comes before its code"
    *_, code, changed = finished.section.find_all(recursive=False)
    assert code.get_text().startswith("Show imports")
    assert changed.get_text() == "This page was last changed on 2026-11-20 (0123456)."


def test_printed_lines_are_sentences(finished: BeautifulSoup) -> None:
    assert [line.get_text() for line in finished.select("p.said")] == ["Lost without a: 0.5.", "The rest."]
    assert not finished.select(".stream")


def test_a_figure_is_a_file_that_it_leads_to(finished: BeautifulSoup, tmp_path: Path) -> None:
    picture = finished.select_one("figure.result a > img")
    assert picture["src"] == picture.parent["href"] == "../_images/growth-1.png"
    assert picture["alt"] == "Dots."
    assert (tmp_path / "_images/growth-1.png").read_bytes() == PIXELS


def test_tables_scroll_by_keyboard_and_those_of_claims_have_labelled_cells(finished: BeautifulSoup) -> None:
    boxes = [table.parent for table in finished.find_all("table")]
    assert len(boxes) == 3
    assert all("scrolling" in box["class"] and box["tabindex"] == "0" for box in boxes)
    claims = finished.select_one("table.cards")
    assert [cell["data-label"] for cell in claims.find_all("td")] == ["Claim", "Verdict"]
    assert len(finished.select("table.cards")) == 1


def test_numbers_that_belong_together_stay_in_one_line(finished: BeautifulSoup) -> None:
    assert finished.find("td", string="0.9 [0.8,\u00a01.0]")
    assert finished.find("figcaption", string="Growth tells, p\u00a0<\u00a00.05.")
    assert finished.find("p", string="Words of 95\u00a0% and n\u00a0=\u00a012.")
    assert "x = [1, 2]" in finished.get_text(), "but code stays as it is"


def test_results_are_written_as_csv(finished: BeautifulSoup, tmp_path: Path) -> None:
    links = [link["href"] for link in finished.select(".foot > a:not(.data)")]
    assert [link.get_text() for link in finished.select(".foot > a:not(.data)")] == ["Table as CSV"] * 2
    assert links == ["../_downloads/growth-1.csv", "../_downloads/growth-2.csv"], "but no table of prose"
    rows = list(csv.reader((tmp_path / "_downloads/growth-1.csv").open()))
    assert rows == [["group", "AUROC", "AUROC"], ["x16", "0.9 [0.8, 1.0]", "< 1"]]
    (data,) = finished.select("a.data")
    assert data["href"] == "../_downloads/growth-figure-1.csv"
    assert data["download"] == ""
    assert data.get_text() == "Figure as CSV"
    assert data.parent["class"] == ["foot"]
    assert (tmp_path / "_downloads/growth-figure-1.csv").read_text() == "copies,growth"


def test_what_made_a_result_stands_under_it_and_a_warning_on_top(finished: BeautifulSoup) -> None:
    summaries = [cell.select_one("details.origin summary").get_text() for cell in finished.select("div.cell")]
    assert summaries == ["Stage growth, 11 s"] * 2
    other = finished.select_one('img[src$="bench.png"]').find_parent("figure").find_next_sibling()
    assert other.get_text() == "Stage bench, 11 s"
    assert finished.h1.find_next_sibling()["class"] == ["elsewhere"]


def test_a_figure_from_a_file_says_how_high_its_letters_are(finished: BeautifulSoup) -> None:
    letters = float(finished.select_one('img[src$="bench.png"]')["data-letters"])
    assert letters == pytest.approx(9.5 / 72 / (800 / 160), abs=1e-4), "as a share of its width: 5 inches"


def test_several_results_of_a_page_have_files_of_their_own(tmp_path: Path) -> None:
    other = base64.b64encode(b"steps,error").decode()
    second = FIGURE.replace(base64.b64encode(b"copies,growth").decode(), other)
    write_page(
        tmp_path / "chapters/flow.html", "<h1>Flow</h1>", cell("1", FIGURE), cell("2", second), cell("3", TABLE * 2)
    )
    finish(tmp_path, {}, {}, {}, {})
    page = BeautifulSoup((tmp_path / "chapters/flow.html").read_text(), "html.parser")
    links = page.select("a.data")
    assert [link["href"] for link in links] == ["../_downloads/flow-figure-1.csv", "../_downloads/flow-figure-2.csv"]
    files = [(tmp_path / "_downloads" / Path(link["href"]).name).read_text() for link in links]
    assert files == ["copies,growth", "steps,error"]
    texts = [link.get_text() for link in page.select(".foot > a:not(.data)")]
    assert texts == ["Table 1 as CSV", "Table 2 as CSV"]


def test_what_belongs_to_a_stage_stands_on_its_page_alone(tmp_path: Path) -> None:
    pages = {name: tmp_path / name for name in ("growth.html", "chapters/growth.html", "chapters/flow.html")}
    for path in pages.values():
        write_page(path, "<h1>Growth</h1>", cell("draw(1)", FIGURE))
    banner, changed = '<p class="elsewhere">Made elsewhere.</p>', {"growth": ("2026-11-20", "0123456789abcdef")}
    finish(tmp_path, {"growth": ORIGIN}, {"growth": banner}, {}, changed)
    texts = {name: path.read_text() for name, path in pages.items()}
    assert [name for name, text in texts.items() if "Made elsewhere" in text] == ["chapters/growth.html"]
    assert [name for name, text in texts.items() if "Stage growth" in text] == ["chapters/growth.html"]
    assert [name for name, text in texts.items() if "last changed" in text] == ["growth.html"]
