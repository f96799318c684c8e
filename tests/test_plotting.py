"""Figures and tables of the chapters: what a reader gets to see."""

import base64
import io
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from bs4 import BeautifulSoup

from memlib.evaluation.intervals import Estimate
from memlib.study import plotting


def test_what_chapters_import_leaves_the_heavy_libraries_alone() -> None:
    code = """
import sys
import memlib.evaluation.claims, memlib.evaluation.contrasts, memlib.evaluation.split, memlib.truth.outcomes
assert "matplotlib" not in sys.modules
import memlib.study.explorer, memlib.study.plotting
print(*sorted({"torch", "diffusers", "transformers", "sklearn", "networkx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_pictures_stand_row_by_row_with_a_line_between() -> None:
    pictures = np.arange(3, dtype=np.uint8)[:, None, None, None] + np.zeros((3, 2, 4, 3), dtype=np.uint8)
    fig, ax = plt.subplots()
    plotting.show_pictures(ax, pictures, 2, title="three")
    sheet = np.asarray(ax.images[0].get_array())
    plt.close(fig)
    assert sheet.shape == (5, 9, 3)
    assert (sheet[:2, :4], sheet[:2, 5:], sheet[3:, :4]) == tuple(pytest.approx(picture) for picture in pictures)
    assert (sheet[2] == 255).all()
    assert (sheet[:, 4] == 255).all()
    assert (sheet[3:, 5:] == 255).all()
    plotting.show_pictures(ax, pictures[..., :1], 3)
    assert np.asarray(ax.images[1].get_array()).shape == (2, 14)


def test_the_names_of_a_sheet_stand_at_the_middle_of_its_rows_and_columns() -> None:
    fig, ax = plt.subplots()
    plotting.show_pictures(ax, np.zeros((6, 9, 4, 3), np.uint8), 3)
    plotting.label_sheet(ax, ["above", "below"], ["a", "b", "c"])
    rows = {label.get_text(): place for label, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    columns = {label.get_text(): place for label, place in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)}
    plt.close(fig)
    assert rows == pytest.approx({"above": 4, "below": 14}, abs=1)
    assert columns == pytest.approx({"a": 1.5, "b": 6.5, "c": 11.5}, abs=1)


def test_sheets_have_their_titles_and_one_size_of_pictures() -> None:
    groups = {title: [np.full((4, 4, 3), count, np.uint8)] * count for title, count in (("few", 2), ("many", 7))}
    fig = plotting.sheets(groups, 3)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["few", "many"]
    assert [np.asarray(ax.images[0].get_array()).shape[:2] for ax in fig.axes] == [(4, 14), (14, 14)]
    fig.canvas.draw()
    pixels = [ax.get_window_extent().height / shape for ax, shape in zip(fig.axes, (4, 14), strict=True)]
    plt.close(fig)
    assert pixels[0] == pytest.approx(pixels[1], rel=0.15)


@pytest.mark.parametrize(
    "pictures", [np.zeros((2, 4, 4, 3)), np.zeros((2, 3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)]
)
def test_pictures_of_another_kind_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"shown as uint8 \[N, H, W, C\].*these are (float64|uint8) \["):
        plotting.show_pictures(None, pictures, 2)


def test_a_table_shows_estimates_with_their_intervals() -> None:
    frame = pd.DataFrame({"contrast": ["a < b"], "AUROC": [Estimate(0.8, 0.7, 0.9)], "mean": [0.12345], "n": [3]})
    shown = plotting.table(frame, 2).data
    assert re.findall(r"<td>(.*?)</td>", shown) == ["a &lt; b", "0.800 [0.700, 0.900]", "0.12", "3"]
    assert shown.startswith('<div class="scrolling">')


def test_a_difference_in_a_table_has_a_sign() -> None:
    low, high = Estimate(-0.1, -0.2, 0.1), Estimate(0.1, 0.0, 0.2)

    def shown(**columns: list) -> list[str]:
        page = plotting.table(pd.DataFrame({name.replace("_", " "): cells for name, cells in columns.items()})).data
        return re.findall(r"<td>([-+\d].*?)</td>", page)

    signed = ["-0.100 [-0.200, +0.100]", "+0.100 [+0.000, +0.200]"]
    plain = ["-0.100 [-0.200, 0.100]", "0.100 [0.000, 0.200]"]
    assert shown(detector=["a", "b"], growth_minus_loss=[low, high]) == signed
    assert shown(detector=["a", "b"], difference_in_AUROC=[low, high]) == signed
    assert shown(growth_minus=["a", "b"], AUROC=[low, high]) == signed
    assert shown(detector=["a minus b", "difference of gradients"], AUROC=[low, high]) == [signed[0], plain[1]]
    assert shown(detector=["a", "b"], AUROC=[low, high]) == plain


@pytest.mark.parametrize("horizontal", [False, True])
def test_error_bars_reach_from_one_end_of_the_interval_to_the_other(horizontal: bool) -> None:
    fig, ax = plt.subplots()
    plotting.error_bars(ax, range(2), [Estimate(0.5, 0.2, 0.6), Estimate(0.9, 0.8, 1.0)], horizontal, color="red")
    bars = ax.collections[0].get_segments()
    points = ax.lines[0].get_xydata()
    plt.close(fig)
    expected = [[[0, 0.2], [0, 0.6]], [[1, 0.8], [1, 1.0]]]
    axes = [1, 0] if horizontal else [0, 1]
    np.testing.assert_allclose(bars, np.array(expected)[..., axes])
    np.testing.assert_allclose(points, np.array([[0, 0.5], [1, 0.9]])[:, axes])


def test_a_path_has_the_intervals_of_both_coordinates() -> None:
    fig, ax = plt.subplots()
    plotting.path(
        ax, [Estimate(1, 0, 3), Estimate(5, 4, 5)], [Estimate(0.5, 0.2, 0.6), Estimate(0.9, 0.8, 1.0)], label="a"
    )
    up, across = (bars.get_segments() for bars in ax.collections)
    points = ax.lines[0].get_xydata()
    plt.close(fig)
    np.testing.assert_allclose(points, [[1, 0.5], [5, 0.9]])
    np.testing.assert_allclose(up, [[[1, 0.2], [1, 0.6]], [[5, 0.8], [5, 1.0]]])
    np.testing.assert_allclose(across, [[[0, 0.5], [3, 0.5]], [[4, 0.9], [5, 0.9]]])


def test_a_figure_carries_its_texts_and_is_the_same_bytes_twice(tmp_path) -> None:
    def page(path=None) -> str:
        fig, ax = plt.subplots()
        ax.plot([0, 1])
        return plotting.figure(fig, 'AUROC "0.8" < 1', "A line.", None, path).data

    first = page(tmp_path / "line.png")
    assert first == page()
    assert 'alt="A line."' in first
    assert "AUROC &quot;0.8&quot; &lt; 1</figcaption></figure>" in first
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_carries_what_it_is_drawn_from_and_its_smallest_letters() -> None:
    plotting.set_style()
    drawn = pd.DataFrame({"sigma": [0.1, 1 / 3, 1], "AUROC": [Estimate(0.5, 0.4, 0.6), Estimate(1, 0.9, 1), None]})
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.text(0.5, 0.5, "small", fontsize=6)
    ax.text(0.5, 0.5, "unseen", fontsize=2, visible=False)
    page = BeautifulSoup(plotting.figure(fig, "Dots.", "Dots.", drawn).data, "html.parser")
    rows = base64.b64decode(page.a["href"].partition(",")[2]).decode().splitlines()
    assert rows == ["sigma,AUROC,AUROC low,AUROC high", "0.1,0.5,0.4,0.6", "0.333333,1,0.9,1", "1,,,"]
    width = PIL.Image.open(io.BytesIO(base64.b64decode(page.img["src"].partition(",")[2]))).width
    letters = 6 * 160 / 72 / width  # 6 points at 160 pixels an inch
    assert float(page.img["data-letters"]) == pytest.approx(letters, abs=1e-4)
    assert PIL.Image.open(io.BytesIO(base64.b64decode(page.img["src"].partition(",")[2]))).info[plotting.LETTERS] == "6"
    assert page.img["style"] == f"width: {width / 160 * 105:.0f}px"


def test_the_labels_of_ticks_are_letters() -> None:
    plotting.set_style()
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.tick_params(labelsize=4)
    ax.set_xlabel("sigma")
    page = BeautifulSoup(plotting.figure(fig, "Axes.", "Axes.", None).data, "html.parser")
    assert PIL.Image.open(io.BytesIO(base64.b64decode(page.img["src"].partition(",")[2]))).info[plotting.LETTERS] == "4"


def test_groups_have_a_name_and_a_colour_each_that_is_the_same_everywhere() -> None:
    assert [plotting.group_name(k) for k in (0, 1, 16)] == ["never seen", "x1", "x16"]
    colours = plotting.group_colours([4, 0, 4, 1])
    assert list(colours) == [0, 1, 4]
    assert len(set(colours.values())) == 3
    assert plotting.group_colours([32, 4])[4] == colours[4]


def test_crowded_ends_are_labelled_apart_from_the_bottom_up() -> None:
    plotting.set_style()
    fig, ax = plt.subplots()
    for end, name in ((1.0, "top"), (0.501, "second"), (0.5, "first"), (0.2, "_hidden")):
        ax.plot([0, 1], [0, end], label=name)
    plotting.label_ends(ax)
    heights = {text.get_text(): ax.transData.transform(text.xy)[1] * 72 / fig.dpi + text.xyann[1] for text in ax.texts}
    offsets = {text.get_text(): text.xyann[1] for text in ax.texts}
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    plt.close(fig)
    assert sorted(heights, key=heights.get) == ["first", "second", "top"]
    assert heights["second"] - heights["first"] >= plt.rcParams["legend.fontsize"]
    assert offsets["first"] == offsets["top"] == 0
    assert colours == {line.get_label(): line.get_color() for line in ax.lines[:3]}


def test_a_curve_has_the_intervals_as_its_band() -> None:
    fig, ax = plt.subplots()
    plotting.curve(ax, [1, 2], [Estimate(0.5, 0.4, 0.8), Estimate(0.6, 0.1, 0.7)], color="red", label="rate")
    (line,), (band,) = ax.lines, ax.collections
    plt.close(fig)
    assert line.get_xydata().tolist() == [[1, 0.5], [2, 0.6]]
    assert line.get_label() == "rate"
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1, 0.4), (1, 0.8), (2, 0.1), (2, 0.7)} <= corners
    assert tuple(band.get_facecolor()[0]) == (1, 0, 0, 0.15)


def test_a_map_of_signed_values_has_its_grid_upright_and_a_scale_alike_on_both_sides() -> None:
    places = [(x, y) for x in (0.0, 1.0, 2.0) for y in (0.0, 5.0)]
    grid = pd.DataFrame(places, columns=["x", "y"]).assign(value=[-100.0, 1.0, 2.0, 3.0, 4.0, 50.0])
    fig, ax = plt.subplots()
    drawn = plotting.signed_map(ax, grid, "value", 100.0)
    own_scale = plotting.signed_map(ax, grid.sample(frac=1, random_state=0), "value")
    plt.close(fig)
    assert np.asarray(drawn.get_array()).tolist() == [[-100.0, 2.0, 4.0], [1.0, 3.0, 50.0]]
    assert np.asarray(own_scale.get_array()).tolist() == np.asarray(drawn.get_array()).tolist()
    assert drawn.norm(-100.0) == 0
    assert drawn.norm(0.0) == pytest.approx(0.5)
    assert drawn.norm(50.0) + drawn.norm(-50.0) == pytest.approx(1)
    assert own_scale.norm.vmax == pytest.approx(97.5)


def test_a_long_table_stands_behind_a_line_that_opens_it() -> None:
    table = plotting.table(pd.DataFrame({"detector": ["loss"]}))
    page = BeautifulSoup(plotting.folded("All < 30", table).data, "html.parser")
    fold = page.find("details", class_="folded", recursive=False)
    assert "open" not in fold.attrs
    assert fold.find("summary", recursive=False).text == "All < 30"
    assert fold.select_one("div.scrolling td").text == "loss"


def test_a_share_is_written_in_percent_with_a_space() -> None:
    assert plotting.percent(0.95) == "95 %"
    assert plotting.percent(0.0825, 1) == "8.2 %"
    assert plotting.percent(1) == "100 %"
