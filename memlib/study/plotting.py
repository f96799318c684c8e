"""The figures' common look."""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from memlib.evaluation.intervals import Estimate, flat
from memlib.files import atomic_write

PALETTE = sns.color_palette("colorblind")
METHOD, PLAIN, INFORMED, BLIND = (
    *PALETTE[:3],
    PALETTE[7],
)  # a paper's detector, the plain baseline, what sees more, less
DIFFERENCE = re.compile(r"\bminus\b|\bdifference\b(?! of)")  # in the name of a column or row of differences
LETTERS = "Smallest letters"  # in points: what a PNG of a figure says of itself
PIXELS = 105  # of the page, an inch of a figure


def set_style() -> None:
    """White background, colours safe for colour-blind readers, letters that stay legible on a phone: 9 points in 5.5 inches."""
    sns.set_theme(style="whitegrid", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.figsize": (5.5, 3.4),
            "figure.dpi": 160,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
        }
    )


def group_name(copies: int) -> str:
    """Label of a group of pictures by how often they are repeated in training; 0 means never seen."""
    return f"x{copies}" if copies else "never seen"


def group_colours(groups: Iterable[int]) -> dict[int, tuple[float, ...]]:
    """The colour of each number of copies, from never seen to the most copied, the same in every figure."""
    ramp = plt.get_cmap("viridis")
    return {k: ramp(0.25 + 0.13 * np.log2(k) if k else 0.0)[:3] for k in sorted(set(groups))}


def answer(*sentences: str) -> Markdown:
    """What a chapter found, in sentences of Markdown: the book puts them into the box after the chapter's question."""
    return Markdown("\n".join(f"- {sentence}" for sentence in sentences))


def figure(fig: Figure, caption: str, alt: str, data: pd.DataFrame | None, path: str | Path | None = None) -> HTML:
    """The figure with its caption and alternative text, for a notebook and the book; also written as PNG to `path`.

    data: what is drawn, a row a mark, which the book offers as CSV; None where pictures are shown.
    """
    fig.draw_without_rendering()  # before, ticks have no labels
    buffer = io.BytesIO()
    sizes = [text.get_fontsize() for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    letters = {LETTERS: f"{min(sizes):g}"} if sizes else {}
    fig.savefig(buffer, format="png", metadata={"Software": None} | letters)
    plt.close(fig)
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    source = base64.b64encode(buffer.getvalue()).decode()
    inches = int.from_bytes(buffer.getvalue()[16:20], "big") / fig.dpi  # as PNG says, after the margins are cut
    smallest = min(sizes, default=inches * 72) / 72 / inches
    link = "" if data is None else f'<a class="data" href="{_as_link(data)}">Data of the figure</a>'
    return HTML(
        f'<figure class="result"><img src="data:image/png;base64,{source}" alt="{html.escape(alt)}" '
        f'style="width: {inches * PIXELS:.0f}px" data-letters="{smallest:.4f}">'
        f"<figcaption>{html.escape(caption)}</figcaption>{link}</figure>"
    )


def _as_link(data: pd.DataFrame) -> str:
    """A table as a link that holds it as CSV, estimates in three columns."""
    text = flat(data).to_csv(index=False, float_format="%.6g")
    return f"data:text/csv;base64,{base64.b64encode(text.encode()).decode()}"


def table(frame: pd.DataFrame, digits: int = 3) -> HTML:
    """A table for a notebook and the book, scrolling by itself where the page is narrower; estimates with their intervals.

    Differences have a sign: those of a column, or of a row by its first cell, that is called a difference or minus something,
    and all where the first column is.
    """
    columns = [bool(DIFFERENCE.search(str(name))) for name in frame]
    rows = [columns[0] or bool(DIFFERENCE.search(str(name))) for name in frame.iloc[:, 0]]
    texts = frame.copy()
    for row, column in product(range(len(rows)), range(len(columns))):
        value = frame.iat[row, column]
        if isinstance(value, Estimate):
            texts.iat[row, column] = f"{value:{'+' if rows[row] or columns[column] else ''}}"
    body = texts.to_html(index=False, border=0, classes="table", float_format=f"{{:.{digits}f}}".format)
    return HTML(f'<div class="scrolling">{body}</div>')


def error_bars(
    ax: Axes, positions: Iterable[float], estimates: Sequence[Estimate], horizontal: bool = False, **style: Any
) -> None:
    """Estimates at positions along one axis, with their intervals along the other; style: that of `Axes.errorbar`."""
    values = [e.value for e in estimates]
    lengths = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
    style = {"fmt": "o", "capsize": 3} | style
    if horizontal:
        ax.errorbar(values, list(positions), xerr=lengths, **style)
    else:
        ax.errorbar(list(positions), values, yerr=lengths, **style)


def curve(ax: Axes, x: Iterable[float], estimates: Sequence[Estimate], **style: Any) -> None:
    """Estimates along x as a line through points, with their intervals as a band; style: that of `Axes.plot`."""
    x = list(x)
    (line,) = ax.plot(x, [e.value for e in estimates], **{"marker": "o", "markersize": 3} | style)
    low, high = ([e.low for e in estimates], [e.high for e in estimates])
    ax.fill_between(x, low, high, alpha=0.15, color=line.get_color(), linewidth=0)


def path(ax: Axes, x: Sequence[Estimate], y: Sequence[Estimate], **style: Any) -> None:
    """Points joined in their order, with the intervals of both coordinates; style: that of `Axes.plot`."""
    across, up = [e.value for e in x], [e.value for e in y]
    (line,) = ax.plot(across, up, **{"marker": "o"} | style)
    thin = {"fmt": "none", "capsize": 0, "linewidth": 0.6, "color": line.get_color()}
    error_bars(ax, across, y, **thin)
    error_bars(ax, up, x, horizontal=True, **thin)


def label_ends(ax: Axes) -> None:
    """Each labelled line's label beside its right end and in its colour, in place of a legend; crowded ones move apart."""
    lines = [line for line in ax.lines if not line.get_label().startswith("_") and len(line.get_xdata())]
    height = plt.rcParams["legend.fontsize"] * 1.15
    ax.margins(x=0.02)
    ax.figure.canvas.draw()
    ends = [ax.transData.transform(line.get_xydata()[-1])[1] * 72 / ax.figure.dpi for line in lines]
    placed = -np.inf
    for end, line in sorted(zip(ends, lines, strict=True), key=lambda pair: pair[0]):
        placed = max(end, placed + height)
        ax.annotate(
            line.get_label(),
            line.get_xydata()[-1],
            (6, placed - end),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize=plt.rcParams["legend.fontsize"],
            annotation_clip=False,
        )


def signed_map(ax: Axes, grid: pd.DataFrame, column: str, largest: float | None = None) -> QuadMesh:
    """A column of values over a plane as colours: brown below zero, purple above, on a logarithmic scale on both sides.

    grid: a row a point, its place in the columns `x` and `y`. largest: end of the scale, by default the 99 % quantile of the
    sizes; what is a hundred times smaller is nearly white.
    """
    values = grid.pivot(index="y", columns="x", values=column)
    largest = float(np.quantile(values.abs(), 0.99)) if largest is None else largest
    norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)
    ax.set_aspect("equal")
    return ax.pcolormesh(values.columns, values.index, values, norm=norm, cmap="PuOr", rasterized=True)


def sheets(pictures: Mapping[str, Sequence[NDArray[np.uint8]]], columns: int) -> Figure:
    """Sheets of uint8 pictures [H, W, C] below one another, each under its title, all pictures of one size."""
    rows = [-(-len(group) // columns) for group in pictures.values()]
    height = sum(rows) * 5.5 / columns + 0.35 * len(rows)
    fig, axes = plt.subplots(len(rows), 1, figsize=(5.5, height), height_ratios=rows, squeeze=False)
    for ax, (title, group) in zip(axes[:, 0], pictures.items(), strict=True):
        show_pictures(ax, np.stack(group), columns, title)
    return fig


def show_pictures(ax: Axes, pictures: NDArray[np.uint8], columns: int, title: str = "") -> None:
    """A sheet of uint8 pictures [N, H, W, C], row by row; raises ValueError for pictures of another kind."""
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] not in (1, 3):
        raise ValueError(
            "pictures are shown as uint8 [N, H, W, C], C 1 or 3, as `files.read_pictures` gives them; "
            f"these are {pictures.dtype} {list(pictures.shape)}"
        )
    n, height, width, channels = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    ax.imshow(sheet.squeeze(2) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize="medium")


def trade_off(curves: Mapping[str, pd.DataFrame], colours: Sequence[Any]) -> tuple[Figure, Axes]:
    """Agreement against similarity, a path with intervals for each method as it gets stronger, in the colours in order."""
    fig, ax = plt.subplots(figsize=(5.5, 4.4))
    for (name, curve), colour, marker in zip(curves.items(), colours, "osD^vPX<>*", strict=False):
        path(ax, curve["similarity"], curve["agreement"], color=colour, marker=marker, label=name)
    ax.set_xlabel("similarity to the planted picture (less is better)")
    ax.set_ylabel("agreement with the prompt (more is better)")
    fig.legend(loc="outside lower center", ncols=2)
    return fig, ax


def label_sheet(ax: Axes, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> None:
    """Names at the left of the rows and above the columns of the sheet that `show_pictures` has drawn."""
    height, width = ax.images[0].get_array().shape[:2]
    ax.set_axis_on()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.set_yticks([(row + 0.5) * height / len(rows) for row in range(len(rows))], rows)
    ax.set_xticks([(column + 0.5) * width / len(columns) for column in range(len(columns))], columns)


def folded(title: str, content: HTML) -> HTML:
    """A table that is long, as a line that opens it."""
    return HTML(f'<details class="folded"><summary>{html.escape(title)}</summary>{content.data}</details>')


def percent(share: float, digits: int = 0) -> str:
    """A share as the book writes it: 0.95 is "95 %"."""
    return f"{100 * share:.{digits}f} %"
