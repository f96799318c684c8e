"""A page part in which the reader chooses a prompt: its tokens coloured, and what it draws beside what was copied.

Static HTML and a few lines of script of its own: no request leaves the page, and a native list is used by keyboard.
"""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from IPython.display import HTML
from numpy.typing import NDArray
from PIL import Image

COLOUR = "222, 143, 5"  # orange of the colour-blind palette; dark letters stay legible on it


class Explained(NamedTuple):
    """A prompt with its tokens and their significances, and uint8 pictures [H, W, C] by their titles."""

    prompt: str
    tokens: Sequence[str]
    significance: Sequence[float]
    pictures: dict[str, NDArray[np.uint8]]


def explorer(entries: Sequence[Explained], name: str, scale: int = 4) -> HTML:
    """A list to choose from and, for the chosen prompt, tokens shaded by their share of the largest significance, and pictures.

    name: of the part, unique on the page. scale: how many pixels of the screen a pixel of the pictures takes a side.
    Without a script all prompts are shown one after the other.
    """
    options = "".join(f'<option value="{i}">{html.escape(entry.prompt)}</option>' for i, entry in enumerate(entries))
    parts = "".join(f"<div data-entry>{_tokens(entry)}{_pictures(entry, scale)}</div>" for entry in entries)
    script = f"""
const part = document.getElementById("{name}"), list = part.querySelector("select");
const show = () => part.querySelectorAll("[data-entry]").forEach((entry, i) => {{ entry.hidden = i != list.value; }});
list.addEventListener("change", show);
list.closest("p").hidden = false;
show();"""
    return HTML(
        f'<div id="{name}" class="explorer"><p hidden><label>Prompt <select>{options}</select></label></p>'
        f'<div aria-live="polite">{parts}</div></div><script>(() => {{{script}}})()</script>'
    )


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


def _pictures(entry: Explained, scale: int) -> str:
    figures = []
    for title, picture in entry.pictures.items():
        image = Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture)
        buffer = io.BytesIO()
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, format="png")
        source = base64.b64encode(buffer.getvalue()).decode()
        alt = html.escape(f"{title}, for the prompt {entry.prompt}")
        figures.append(
            f'<figure style="display: inline-block; margin: .5em"><img src="data:image/png;base64,{source}" alt="{alt}">'
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
        )
    return "".join(figures)
