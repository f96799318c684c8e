"""Every page of the built book in headless Chromium, on a phone and on a desk."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
HTML = ROOT / "book/_build/html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOC = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
CHAPTERS = [chapter for part in TOC["parts"] for chapter in part["chapters"]]
PAGES = [TOC["root"], *(page["file"] for chapter in CHAPTERS for page in (chapter, *chapter.get("sections", [])))]

CUT = """[
    ...[...document.querySelectorAll("article table")].map(table => table.closest(".scrolling")),
    ...document.querySelectorAll("article mjx-container[display=true]"),
].filter(box =>
    !box || box.scrollWidth > box.clientWidth && !getComputedStyle(box).backgroundAttachment.includes("local")
).length"""
NO_NUMBERS = """[...document.querySelectorAll("article td")].map(cell => cell.innerText.trim()).filter(
    text => /^(NaN|nan|None|NaT|<NA>|[{].*[}])$/.test(text))"""

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine (Debian's package `chromium`)"),
    pytest.mark.skipif(not (HTML / "index.html").exists(), reason="the book is not built; `make book` builds it"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,  # /dev/shm is 64 MB in a container, and Ray's tests run beside
            args=["--no-sandbox", "--disable-background-networking", "--disable-quic", "--disable-dev-shm-usage"],
        )
        yield chromium
        chromium.close()


def opened(page, url: str) -> None:
    """The page once it has come to rest, with all that it asked for: a page without its stylesheet would be judged wrongly."""
    failed = []
    page.on("requestfailed", lambda request: failed.append(f"{request.url}: {request.failure}"))
    page.goto(url, wait_until="networkidle")
    assert not failed


@pytest.mark.parametrize("served", [True, False])
def test_search(browser, address: str, served: bool) -> None:
    page = browser.new_page()
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened(page, f"{address if served else HTML.as_uri()}/search.html?q=memorisation")
    page.wait_for_selector("#search-results li a")
    if served:
        page.wait_for_selector("#search-results .context")
    page.wait_for_load_state("networkidle")
    assert not errors
    page.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_explorers_of_the_bench_by_keyboard(browser, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    opened(page, f"{address}/chapters/bench.html")
    for part, controls in (("#bench-explorer", "select, input:checked"), ("#picture-explorer", "input:checked")):
        for i in range(page.locator(part).locator(controls).count()):
            control = page.locator(part).locator(controls).nth(i)
            before = page.locator(part).inner_text()
            control.focus()
            page.keyboard.press("ArrowDown")
            assert page.locator(part).inner_text() != before, "a control that changes nothing"
            assert page.locator(part).locator(".dots li:visible").count() > 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


CONTRASTS = """[...document.querySelectorAll("article figcaption, article td, article summary, article p")].map(part => {
    let box = part;
    const opaque = colour => !colour.endsWith(", 0)") && colour != "transparent";
    while (box != document.documentElement && !opaque(getComputedStyle(box).backgroundColor)) box = box.parentElement;
    const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).map(value => value / 255).map(
        value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
    ).reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
    const [low, high] = [getComputedStyle(part).color, getComputedStyle(box).backgroundColor].map(light).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
})"""


LETTERS = """() => [...document.querySelectorAll("img[data-letters]")].filter(img => img.offsetWidth).map(
    img => img.dataset.letters * img.getBoundingClientRect().width)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_stands_out(browser, address: str, name: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    opened(page, f"{address}/{name}.html")
    assert min(page.evaluate(CONTRASTS)) >= 4.5, "WCAG 2.2, 1.4.3"
    page.close()


@pytest.mark.parametrize("name", [page for page in PAGES if page.startswith("chapters/") and "reproducib" not in page])
def test_a_chapter_answers_within_one_screen(browser, address: str, name: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    opened(page, f"{address}/{name}.html")
    first = page.locator(".admonition.answer li").first.bounding_box()
    assert first["y"] + first["height"] <= 900
    page.close()


@pytest.mark.parametrize("name", ["audit", "bench", "detection", "guard"])
def test_a_box_is_short_on_a_phone(browser, address: str, name: str) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    opened(page, f"{address}/chapters/{name}.html")
    items = page.locator(".admonition.answer li").all_inner_texts()
    assert len(items) <= 4
    assert max(map(len, items)) <= 240, "characters"
    page.close()


@pytest.mark.parametrize("width", [400, 768, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_page(browser, address: str, name: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on(
        "console",
        lambda message: errors.append(f"{message.text} {message.location}") if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "response",
        lambda response: errors.append(f"{response.status} {response.url}") if response.status >= 400 else None,
    )
    opened(page, f"{address}/{name}.html")
    assert page.title().strip()
    assert page.locator("article h1").count() == 1
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))], "a request to another host"
    assert not errors
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert page.locator(".cell_input:visible, .output.stream:visible").count() == 0, "code that stands open, or a print"
    assert not page.evaluate(NO_NUMBERS), "NaN, None or a dictionary in a table"
    for i in range(page.locator("article details.code").count()):
        fold = page.locator("article details.code").nth(i)
        fold.locator("summary").focus()
        page.keyboard.press("Enter")
        assert fold.locator("pre").first.is_visible(), "code that does not unfold by keyboard"
        page.keyboard.press("Enter")
    formulas = page.locator(".math.notranslate")
    if formulas.count():
        page.wait_for_selector("mjx-container", state="attached")
        assert page.locator("mjx-container").count() >= formulas.count(), "formulas that are not rendered"
        assert page.locator("mjx-merror").count() == 0
    assert not page.evaluate(CUT), "a table or formula that is cut, without a shadow that says so"
    pictures = page.locator("article img")
    for i in range(pictures.count()):
        picture = pictures.nth(i)
        if picture.is_visible():  # those of prompts that the reader has not chosen are not
            picture.scroll_into_view_if_needed()
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0"), "a figure that is not loaded"
        assert (picture.get_attribute("alt") or "").strip(), "a figure without alternative text"
    letters = page.evaluate(LETTERS)
    assert min(letters, default=9) >= 8, "letters in a figure, in pixels"
    assert letters or name != TOC["root"], "the figure of the first page is measured, too"
    large = page.locator("article figure.result a > img, article figure a.image-reference > img")
    assert large.count() == page.locator("article figure.result img, article figure a.image-reference img").count()
    for i in range(large.count()):
        link = large.nth(i).locator("..").evaluate("link => link.href")
        assert page.request.get(link).headers["content-type"].startswith("image/"), "a figure that does not open"
    page.close()
