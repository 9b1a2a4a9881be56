r"""A pad to draw on, white on black, cell by cell as the model sees it."""

import gradio as gr
import numpy as np
from PIL import Image

from .texts import Refusal

MAX_SIDE = 32  # cells; larger models get what is drawn enlarged

TEMPLATE = """
<div class="vlb-pad" role="img" aria-label="drawing pad"
  style="grid-template-columns: repeat(${value.width}, 1fr); aspect-ratio: ${value.width} / ${value.height}">
${value.cells.map(cell => `<i style="background: rgb(${cell}, ${cell}, ${cell})"></i>`).join("")}
</div>
<button class="vlb-clear" type="button" aria-label="clear">✕</button>
"""
# The page's cells change while the pen is down; the value, and with it the page as a whole, when it is lifted.
SCRIPT = """
let cells = null;
const paint = event => {
    const pad = element.querySelector(".vlb-pad"), box = pad.getBoundingClientRect(), {width, height} = props.value;
    const x = (event.clientX - box.left) / box.width * width, y = (event.clientY - box.top) / box.height * height;
    const radius = Math.max(0.6, width / 16);
    for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) {
        const distance = Math.hypot(column + 0.5 - x, row + 0.5 - y), index = row * width + column;
        const ink = Math.round(255 * Math.min(1, Math.max(0, radius + 0.6 - distance)));
        if (ink > cells[index]) {
            cells[index] = ink;
            pad.children[index].style.background = `rgb(${ink}, ${ink}, ${ink})`;
        }
    }
};
element.addEventListener("pointerdown", event => {
    if (!event.target.closest(".vlb-pad")) return;
    event.preventDefault();
    cells = [...props.value.cells];
    paint(event);
});
element.addEventListener("pointermove", event => { if (cells) paint(event); });
window.addEventListener("pointerup", () => {
    if (!cells) return;
    props.value = {...props.value, cells};
    cells = null;
});
element.addEventListener("click", event => {
    if (event.target.closest(".vlb-clear")) props.value = {...props.value, cells: props.value.cells.map(() => 0)};
});
"""
CSS = """
.vlb-pad { display: grid; width: 224px; max-width: 100%; background: #000; touch-action: none; cursor: crosshair; }
.vlb-pad { border: 2px solid var(--border-color-primary); border-radius: 4px; overflow: hidden; user-select: none; }
.vlb-clear { margin-top: 6px; padding: 2px 12px; border: 1px solid var(--border-color-primary); border-radius: 4px; }
"""


def blank(shape: tuple[int, int, int]) -> dict:
    r"""An empty pad for a model's images `(C, H, W)`."""
    height, width = (min(side, MAX_SIDE) for side in shape[1:])
    return {"width": width, "height": height, "cells": [0] * (width * height)}


def pad(shape: tuple[int, int, int]) -> gr.HTML:
    r"""The component; its value is as `blank` makes it, with grey values from 0 to 255."""
    return gr.HTML(
        blank(shape), label="Drawing", html_template=TEMPLATE, js_on_load=SCRIPT, elem_id="score-drawing", padding=False
    )


def to_picture(drawing: dict | None) -> Image.Image:
    r"""What was drawn.

    Raises:
        Refusal: an empty pad, or anything that is not one.
    """
    if drawing is None:
        raise Refusal("nothing_drawn")
    try:
        width, height, cells = (drawing[key] for key in ("width", "height", "cells"))
    except (TypeError, KeyError):
        raise Refusal("no_drawing") from None
    whole = all(type(number) is int for number in (width, height, *cells)) if isinstance(cells, list) else False
    if not (whole and 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and len(cells) == width * height):
        raise Refusal("no_drawing")
    if not all(0 <= cell <= 255 for cell in cells):
        raise Refusal("no_drawing")
    if max(cells) == 0:
        raise Refusal("nothing_drawn")
    return Image.fromarray(np.array(cells, dtype=np.uint8).reshape(height, width))
