"""What is done to the pages that Jupyter Book has built, so that a reader meets results before code, on a phone as on a desk.

Code stands folded under what it shows, and what runs before the first result at the end of its page. Printed lines become
sentences. Figures are files that open large, tables scroll in a box of their own or become cards, and each result says what
made it.
"""

import base64
import csv
import html
import re
from collections.abc import Mapping
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from PIL import Image

from memlib.study.plotting import LETTERS

CHAPTERS, IMAGES, DATA = "chapters", "_images", "_downloads"
CARDS = "Verdict"  # a table with such a column is a table of claims
SCROLLING = ("scrolling", "pst-scrollable-table-container")
UNBROKEN = re.compile(r"\[[-+\d.]+, [-+\d.]+\]|\b[pn] [=<] [\d.]+|\d %")
PNG, CSV = "data:image/png;base64,", "data:text/csv;base64,"
SUMMARY = (
    "SHOW_SEARCH_SUMMARY: true"  # the search fetches pages for their summaries, which no browser allows from files
)
SHOW, SHOW_FIRST = "Show code", "Show imports, parameters and what is read"


def finish(
    folder: Path,
    origins: Mapping[str, str],
    banners: Mapping[str, str],
    images: Mapping[str, str],
    changed: Mapping[str, tuple[str, str]],
) -> None:
    """Finish all pages of a built book.

    origins: HTML of what made the results of a stage, for each stage. banners: HTML for the top of the page of a stage, where
    there is something to warn of. images: the stage that made an image, by the name of its file. changed: day and commit of the
    last change of a page's source, by the page's address without its ending.
    """
    for path in [*folder.glob("*.html"), *folder.glob(f"{CHAPTERS}/*.html")]:
        before, start, rest = path.read_text().partition("<article")
        article, end, after = rest.partition("</article>")
        if not end:  # the pages for searching and for the index
            continue
        page = BeautifulSoup(start + article + end, "html.parser")
        stage = path.stem if path.parent.name == CHAPTERS else ""
        fold_code(page)
        say_lines(page)
        write_figures(page, folder, path)
        measure_letters(page, path)
        fit_tables(page, folder, path)
        keep_together(page)
        put_origins(page, origins.get(stage, ""), {name: origins.get(maker, "") for name, maker in images.items()})
        if page.h1 and banners.get(stage):
            page.h1.insert_after(_parsed(banners[stage]))
        last = changed.get(path.relative_to(folder).with_suffix("").as_posix())
        if last:
            line = f'<p class="changed">This page was last changed on {last[0]} (<code>{last[1][:7]}</code>).</p>'
            (page.section or page.article).append(_parsed(line))
        path.write_text(f"{before}{page}{after}")
    options = folder / "_static/documentation_options.js"
    options.write_text(options.read_text().replace(SUMMARY, f'{SUMMARY.split()[0]} location.protocol != "file:"'))


def fold_code(page: BeautifulSoup) -> None:
    """Fold the code of each cell under what the cell shows, after that of the cells before it that show nothing.

    The code before the first result goes to the end of the page.
    """
    waiting: list[Tag] = []
    first: list[Tag] | None = None
    for cell in page.select("div.cell"):
        code = cell.select_one("div.cell_input")
        if code:
            waiting.append(code.extract())
        for fold in cell.select("details.hide"):
            fold.decompose()
        if cell.select_one("div.cell_output") is None:
            cell.decompose()
            continue
        if first is None:
            first, waiting = waiting[:-1] if code else waiting, waiting[-1:] if code else []
        cell.append(_foot([_folded(SHOW, "code", waiting)] if waiting else []))
        waiting = []
    rest = (first or []) + waiting
    if rest:
        (page.section or page.article).append(_foot([_folded(SHOW_FIRST, "code", rest)]))


def say_lines(page: BeautifulSoup) -> None:
    """Turn each line that a cell has printed into a sentence."""
    for stream in page.select("div.output.stream"):
        for line in filter(None, map(str.strip, stream.get_text().splitlines())):
            ending = "" if line.endswith((".", ":", "?", "!")) else "."
            stream.insert_before(_parsed(f'<p class="said">{html.escape(line[0].upper() + line[1:] + ending)}</p>'))
        stream.decompose()


def write_figures(page: BeautifulSoup, folder: Path, path: Path) -> None:
    """Write the figures of the cells as files, and let each lead to its own, where it is as large as it was made.

    What a figure is drawn from becomes a file, too, with a link to it under the figure.
    """
    for number, picture in enumerate(page.select(f'figure.result img[src^="{PNG}"]'), 1):
        name = f"{path.stem}-{number}.png"
        (folder / IMAGES).mkdir(exist_ok=True)
        (folder / IMAGES / name).write_bytes(base64.b64decode(str(picture["src"]).removeprefix(PNG)))
        picture["src"] = _address(folder, path, IMAGES, name)
        picture.wrap(
            page.new_tag("a", href=picture["src"], attrs={"class": "enlarge", "title": "Open the figure alone"})
        )
    for number, link in enumerate(page.select(f'a.data[href^="{CSV}"]'), 1):
        name = f"{path.stem}-figure-{number}.csv"
        (folder / DATA).mkdir(exist_ok=True)
        (folder / DATA / name).write_bytes(base64.b64decode(str(link["href"]).removeprefix(CSV)))
        link.attrs |= {"href": _address(folder, path, DATA, name), "download": ""}
        link.string = "Figure as CSV"
        foot = link.find_parent(class_="cell").select_one(".foot")
        foot.append(link.extract())


def measure_letters(page: BeautifulSoup, path: Path) -> None:
    """Say of a figure that a page takes from a file how high its smallest letters are, as a share of its width."""
    for picture in page.select('figure:not(.result) img[src$=".png"]'):
        with Image.open(path.parent / str(picture["src"])) as image:
            if LETTERS in image.info:
                picture["data-letters"] = f"{float(image.info[LETTERS]) / 72 * image.info['dpi'][0] / image.width:.4f}"


def fit_tables(page: BeautifulSoup, folder: Path, path: Path) -> None:
    """Put tables into boxes that scroll, label the cells of those of claims as cards need it, and write results as CSV."""
    number = 0
    for table in page.find_all("table"):
        box = table.find_parent(class_=SCROLLING) or table.wrap(page.new_tag("div"))
        box["class"] = [*(name for name in box.get("class", []) if name != SCROLLING[0]), SCROLLING[0]]
        box.attrs |= {"tabindex": "0", "role": "region", "aria-label": "Table"}
        rows = [_texts(row) for row in table.find_all("tr")]
        claims = CARDS in rows[0]
        if claims:
            table["class"] = [*table.get("class", []), "cards"]
            for row in table.select("tbody tr"):
                for label, cell in zip(rows[0], row.find_all("td"), strict=True):
                    cell["data-label"] = label
        cell = table.find_parent(class_="cell")
        if claims or cell:
            number += 1
            name = f"{path.stem}-{number}.csv"
            (folder / DATA).mkdir(exist_ok=True)
            with (folder / DATA / name).open("w", newline="") as file:
                csv.writer(file).writerows(rows)
            foot = cell.select_one(".foot") if cell else _foot([])
            several = cell and len(cell.find_all("table")) > 1
            which = f" {len(foot.select(':scope > a:not(.data)')) + 1}" if several else ""
            foot.append(_parsed(f'<a href="{_address(folder, path, DATA, name)}" download>Table{which} as CSV</a>'))
            if not cell:
                box.insert_after(foot)


def keep_together(page: BeautifulSoup) -> None:
    """Keep intervals, p-values, counts and percentages of prose and tables in one line."""
    for text in page.find_all(string=UNBROKEN):
        if not text.find_parent(["pre", "script"]):
            text.replace_with(UNBROKEN.sub(lambda found: found[0].replace(" ", "\u00a0"), text))


def put_origins(page: BeautifulSoup, origin: str, of_images: Mapping[str, str]) -> None:
    """Put what made the results of a page under each, and what made an image of another stage under that image."""
    for foot in page.select("div.cell > div.foot") if origin else []:
        foot.append(_parsed(origin))
    for picture in page.select("figure img"):
        made_by = of_images.get(Path(str(picture["src"])).name)
        if made_by:
            picture.find_parent("figure").insert_after(_foot([_parsed(made_by)]))


def _address(folder: Path, path: Path, kind: str, name: str) -> str:
    """Address of a file of the book, relative to a page."""
    return "../" * len(path.parent.relative_to(folder).parts) + f"{kind}/{name}"


def _foot(parts: list[Tag]) -> Tag:
    foot = _parsed('<div class="foot"></div>')
    foot.extend(parts)
    return foot


def _folded(summary: str, kind: str, parts: list[Tag]) -> Tag:
    fold = _parsed(f'<details class="{kind}"><summary>{summary}</summary></details>')
    fold.extend(parts)
    return fold


def _parsed(markup: str) -> Tag:
    """The only element of a piece of HTML."""
    return BeautifulSoup(markup, "html.parser").find().extract()


def _texts(row: Tag) -> list[str]:
    """Texts of the cells of a row, that of a wide cell once for each of its columns."""
    cells = row.find_all(["th", "td"])
    return [" ".join(cell.get_text().split()) for cell in cells for _ in range(int(cell.get("colspan", 1)))]
