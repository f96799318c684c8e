"""The figures' common look."""

import base64
import html
import io
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import matplotlib.pyplot as plt
import networkx as nx
import pandas as pd
import seaborn as sns
import torch
import yaml
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from memlib.data import to_uint8
from memlib.files import whole_file

PALETTE = sns.color_palette("colorblind")


def set_style() -> None:
    """White background, colours safe for colour-blind readers, letters that stay legible on a phone."""
    sns.set_theme(style="whitegrid", palette=PALETTE, font_scale=1.1)
    plt.rcParams.update(
        {"figure.figsize": (7, 4), "figure.dpi": 110, "savefig.bbox": "tight", "figure.constrained_layout.use": True}
    )


def group_name(copies: int) -> str:
    """Label of a group of pictures by how often they are repeated in training; 0 means never seen."""
    return f"x{copies}" if copies else "never seen"


def group_colours(groups: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """One colour a number of copies, from never seen to the most copied."""
    ramp = sns.color_palette("viridis", len(set(groups)))
    return dict(zip(sorted(set(groups)), ramp, strict=True))


def figure(fig: Figure, caption: str, alt: str, path: str | Path | None = None) -> HTML:
    """The figure with its caption and alternative text, for a notebook and the book; also written as PNG to `path`."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(fig)
    if path is not None:
        with whole_file(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    source = base64.b64encode(buffer.getvalue()).decode()
    return HTML(
        f'<figure class="result"><img src="data:image/png;base64,{source}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(frame: pd.DataFrame, digits: int = 3) -> HTML:
    """A table for a notebook and the book, scrolling by itself where the page is narrower."""
    body = frame.to_html(index=False, border=0, classes="table", float_format=f"{{:.{digits}f}}".format)
    return HTML(f'<div class="scrolling">{body}</div>')


def show_pictures(ax: Axes, images: Tensor, columns: int, gap: int = 1, title: str = "") -> None:
    """A sheet of pictures [N, C, H, W] in [-1, 1], row by row."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=torch.uint8)
    for i, picture in enumerate(to_uint8(images)):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture.permute(1, 2, 0)
    ax.imshow(sheet.numpy().squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize="medium")


def stage_graph(dvc_file: str | Path = "dvc.yaml") -> Figure:
    """The stages of dvc.yaml, each below those whose outputs it reads."""
    stages = yaml.safe_load(Path(dvc_file).read_text())["stages"]
    stages = {name: stage.get("do", stage) for name, stage in stages.items()}
    makers = {
        _path(out): name
        for name, stage in stages.items()
        for kind in ("outs", "metrics")
        for out in stage.get(kind, [])
    }
    graph = nx.DiGraph()
    graph.add_nodes_from(stages)
    for name, stage in stages.items():
        graph.add_edges_from(
            (maker, name)
            for dep in map(_path, stage.get("deps", []))
            for out, maker in makers.items()
            if maker != name and (fnmatch(dep, out) or fnmatch(out, f"{dep}/*") or fnmatch(dep, f"{out}/*"))
        )
    graph = nx.transitive_reduction(graph)
    for layer, names in enumerate(nx.topological_generations(graph)):
        for name in names:
            graph.nodes[name]["layer"] = -layer
    depth = len(set(nx.get_node_attributes(graph, "layer").values()))
    fig, ax = plt.subplots(figsize=(6, 0.9 * depth))
    positions = nx.multipartite_layout(graph, subset_key="layer", align="horizontal")
    nx.draw_networkx_edges(
        graph,
        positions,
        ax=ax,
        edge_color="grey",
        connectionstyle="arc3,rad=0.1",
        min_source_margin=15,
        min_target_margin=32,
    )
    for name, (x, y) in positions.items():
        ax.text(
            x, y, name, ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "grey"}
        )
    ax.margins(0.15, 0.08)
    ax.set_axis_off()
    return fig


def _path(out: str | dict) -> str:
    """Path of a dependency or output; what differs between the stages of a matrix or a foreach becomes a wildcard."""
    return re.sub(r"\$\{(item\.\w+|key)\}", "*", out if isinstance(out, str) else next(iter(out)))
