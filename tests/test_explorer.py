"""The page part for choosing a prompt: what is shown, by keyboard and without a request."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from memlib.study.explorer import Explained, explorer


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
    page = explorer([entry], "tokens", scale=3).data
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in re.findall(r"base64,([^\"]+)", page)
    ]
    colour, grey = entry.pictures.values()
    np.testing.assert_array_equal(shown[0], colour.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(shown[1], grey[..., 0].repeat(3, 0).repeat(3, 1))


def test_a_reader_chooses_by_keyboard(tmp_path) -> None:
    browser_path = shutil.which("chromium")
    if browser_path is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    page_file = tmp_path / "page.html"
    page_file.write_text(f"<html lang=en><meta charset=utf-8><body>{explorer(entries(), 'tokens').data}</body></html>")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 640})
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        shown = page.locator("[data-entry]:visible")
        assert shown.count() == 1
        assert "apple" in shown.inner_text()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        assert shown.count() == 1
        assert "whale" in shown.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
