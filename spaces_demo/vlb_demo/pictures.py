r"""Pictures as HTML: small images enlarged pixel by pixel, and plots as SVG that take the page's colours, light or dark.

Nothing is stored: both travel inside the page. Letterings of plots are text that the browser draws, in both languages
(`texts.lettering`), and without formulas, which take matplotlib long.
"""

import base64
import io
import math
import re
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, SymmetricalLogLocator
from PIL import Image

from .texts import both, letterings_in_both

BLUE, ORANGE, GREEN, RED, PURPLE = "#3b82f6", "#f08c2e", "#2a9d62", "#e5484d", "#9b6cf0"
# Stands for the colour of the page's text until the SVG is written.
INK = "#123457"
# And for the colour that the page has behind it.
PAPER = "#123458"
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": True,
    "legend.facecolor": PAPER,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# matplotlib's settings are of the process, not of a thread.
_DRAWING = threading.Lock()


class Plot:
    r"""Plots side by side, drawn once.

    Args:
        draw: called with `columns` axes.
        columns: plots; on a narrow page one stands below the other.
        label: what they show, for those who cannot see them.
        width, height: of one, in inches.
    """

    def __init__(self, draw: Callable[..., None], columns: int = 1, label: str = "", width: float = 4.6, height: float = 3.0):
        self._height = height
        with _DRAWING, rc_context(STYLE):
            figures = [Figure(figsize=(width, height)) for _ in range(columns)]
            for figure in figures:
                # Margins that fit every label here; to let them be found takes longer than all the rest.
                figure.subplots_adjust(0.62 / width, 0.5 / height, 1 - 0.5 / width, 1 - 0.32 / height)
            self._axes = [figure.add_subplot() for figure in figures]
            draw(*self._axes)
            self._svgs = []
            for figure in figures:
                buffer = io.StringIO()
                figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
                self._svgs.append(_inline(buffer.getvalue(), label, width))

    def html(self, *marks: tuple[float, float]) -> str:
        r"""The plots as one HTML figure, with a dot at a point of each, where points are given."""
        svgs = self._svgs
        if marks:
            svgs = [svg.replace("</svg>", f"{self._dot(*of)}</svg>") for svg, of in zip(svgs, zip(self._axes, marks))]
        return f'<div class="vlb-row">{"".join(svgs)}</div>'

    def _dot(self, axes: Axes, point: tuple[float, float]) -> str:
        # From pixels, counted upwards, to the points of the SVG, counted downwards.
        x, y = axes.transData.transform(point) * 72 / axes.figure.dpi
        return f'<circle cx="{x:.2f}" cy="{72 * self._height - y:.2f}" r="4.5" fill="{BLUE}"/>'


def plot(draw: Callable[..., None], columns: int = 1, label: str = "", **size: float) -> str:
    r"""The HTML of a `Plot`."""
    return Plot(draw, columns, label, **size).html()


def _inline(svg: str, label: str, width: float) -> str:
    r"""An SVG file as part of a page: as wide as there is room, up to `width` inches."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--background-fill-primary)")
    svg = letterings_in_both(svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return f'<div class="vlb-plot" style="max-width:{width * 105:.0f}px">{svg}</div>'


def log_axis(axes: Axes, lowest: float = 0.0) -> None:
    r"""A logarithmic y axis, without formulas in its numbers; with `lowest`, linear between plus and minus that."""
    if lowest:
        axes.set_yscale("symlog", linthresh=lowest)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=lowest))
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))


def _power_of_ten(value: float, place: int) -> str:
    if value == 0:
        return "0"
    sign = "−" if value < 0 else ""
    return sign + "10" + f"{math.log10(abs(value)):.0f}".translate(SUPERSCRIPTS)


def no_axes(axes: Axes) -> None:
    r"""Nothing but what is drawn."""
    axes.set_axis_off()


def to_bytes(images: torch.Tensor, num_pixel_levels: int | None = None) -> np.ndarray:
    r"""Images to look at, `(N, H, W, C)` uint8: from levels where `num_pixel_levels` is given, else from values around [-1, 1],
    which are cut off there."""
    values = images.double().cpu()
    values = values / (num_pixel_levels - 1) if num_pixel_levels else (values + 1) / 2
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def tiles(images: np.ndarray, columns: int) -> np.ndarray:
    r"""Images `(N, H, W, C)` as one, `columns` a row, a thin grey line between them."""
    # Enlarged, so that the line is thinner than a pixel of theirs.
    scale = max(1, 64 // images.shape[2])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = images.shape
    gap = 2
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 128, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def picture(image: np.ndarray, caption: str | Markup = "", width: int = 160, label: str | None = None) -> str:
    r"""One image `(H, W, C)` uint8, enlarged without smoothing.

    Args:
        image: of 1 or 3 channels; of others the first is shown.
        caption: below it.
        width: on the page, in pixels; less where the page is narrower.
        label: what it shows, for those who cannot see it; the caption by default.
    """
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = caption if label is None else label
    return (
        f'<figure class="vlb-picture"><img alt="{escape(alt)}" style="width:{width}px" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def row(parts: Sequence[str]) -> str:
    r"""Parts side by side, where there is room."""
    return f'<div class="vlb-row">{"".join(parts)}</div>'


def film(parts: Sequence[str]) -> str:
    r"""Pictures in one line, which shrink where there is little room."""
    return f'<div class="vlb-film">{"".join(parts)}</div>'


def table(rows: Sequence[tuple[str | Markup, str | Markup]], strong: Sequence[int] = ()) -> str:
    r"""Names and values; `strong` numbers the rows that matter most."""
    lines = (
        f'<tr{" class=strong" if index in strong else ""}><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for index, (name, value) in enumerate(rows)
    )
    return f'<table class="vlb-table">{"".join(lines)}</table>'


def note(text: str | Markup, kind: str = "note") -> str:
    r"""A sentence beside a result; `kind` is "note" or "warning"."""
    return f'<p class="vlb-{kind}">{escape(text)}</p>'


def headline(text: str | Markup) -> str:
    r"""What matters most, in large."""
    return f'<p class="vlb-headline">{escape(text)}</p>'


def three_parts(prior: float, transitions: float, decoder: float) -> str:
    r"""The bound as a bar of its three parts, bits/dim each, and what each of them means."""
    parts = [
        ("L_T", max(prior, 0.0), PURPLE, "about_prior"),
        ("Σ L_t", max(transitions, 0.0), BLUE, "about_transitions"),
        ("L_0", max(decoder, 0.0), ORANGE, "about_decoder"),
    ]
    bar = "".join(f'<i style="flex:{value:.4f} 0 3px;background:{colour}"></i>' for _, value, colour, _ in parts)
    keys = "".join(
        f'<li><i style="background:{colour}"></i><span><b>{name} {value:.3f}</b> {both(about)}</span></li>'
        for name, value, colour, about in parts
    )
    keys += f"<li><b>= {prior + transitions + decoder:.3f} bits/dim</b></li>"
    label = f"L_T {prior:.3f}, sum of L_t {transitions:.3f}, L_0 {decoder:.3f} bits/dim"
    return f'<div class="vlb-parts"><div class="vlb-bar" role="img" aria-label="{label}">{bar}</div><ul>{keys}</ul></div>'


def progress(done: int, total: int) -> str:
    r"""How far a computation is."""
    return (
        f'<div class="vlb-progress"><progress value="{min(done, total)}" max="{total}"></progress>'
        f"<span>{done} / {total}</span></div>"
    )


CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto; }
.vlb-picture { margin: 0; display: inline-block; max-width: 100%; }
.vlb-picture img { image-rendering: pixelated; max-width: 100%; height: auto; border-radius: 4px; display: block; }
.vlb-picture figcaption { font-size: 0.85em; opacity: 0.8; margin-top: 4px; }
.vlb-row { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; margin: 4px 0 12px; }
.vlb-text { min-width: 0; }
.vlb-text .katex-display { overflow-x: auto; overflow-y: hidden; margin: 0.4em 0; }
html:lang(ja) .vlb-en, html:not(:lang(ja)) .vlb-ja { display: none; }
.vlb-film { display: flex; gap: 8px; margin: 4px 0 12px; }
.vlb-film .vlb-picture { flex: 0 1 auto; min-width: 0; }
.vlb-film figcaption { white-space: nowrap; font-size: 0.75em; text-align: center; }
.vlb-plot { flex: 1 1 280px; min-width: 0; color: var(--body-text-color); }
.vlb-plot svg { width: 100%; height: auto; display: block; }
.vlb-table { border-collapse: collapse; border: 0 !important; margin: 4px 0 12px; font-variant-numeric: tabular-nums; }
.vlb-table tr, .vlb-table th, .vlb-table td { border: 0 !important; background: none !important; }
.vlb-table th { text-align: left; font-weight: normal; padding: 3px 24px 3px 0 !important; opacity: 0.8; }
.vlb-table td { text-align: right; padding: 3px 0 !important; }
.vlb-table tr.strong > * { font-weight: 650; opacity: 1; border-top: 1px solid currentColor !important; }
.vlb-note, .vlb-warning { margin: 6px 0; padding: 6px 12px; border-left: 3px solid #3b82f6; }
.vlb-note { background: rgba(59, 130, 246, 0.08); }
.vlb-warning { border-left-color: #f08c2e; background: rgba(240, 140, 46, 0.1); }
.vlb-small { margin: 0 0 10px; opacity: 0.8; font-size: 0.9em; }
.vlb-headline { margin: 2px 0 4px; font-size: clamp(1.4em, 4vw, 2em); font-weight: 700; line-height: 1.25; }
.vlb-parts { margin: 4px 0 10px; max-width: 760px; }
.vlb-bar { display: flex; gap: 2px; height: 26px; border-radius: 5px; overflow: hidden; }
.vlb-parts ul { list-style: none; margin: 8px 0 0; padding: 0; }
.vlb-parts li { display: flex; gap: 8px; align-items: baseline; margin: 2px 0; }
.vlb-parts li > i { flex: 0 0 11px; height: 11px; border-radius: 3px; }
.vlb-classes { border-collapse: collapse; border: 0 !important; width: 100%; max-width: 560px; margin: 4px 0 10px; }
.vlb-classes tr, .vlb-classes th, .vlb-classes td { border: 0 !important; background: none !important; }
.vlb-classes th, .vlb-classes td { padding: 2px 6px !important; font-variant-numeric: tabular-nums; }
.vlb-classes td { white-space: nowrap; width: 1%; }
.vlb-classes td.vlb-classbar { width: 60%; }
.vlb-classes div { display: grid; background: rgba(128, 128, 128, 0.12); border-radius: 3px; overflow: hidden; }
.vlb-classes b, .vlb-classes i { grid-area: 1 / 1; height: 14px; min-width: 3px; background: #3b82f6; }
.vlb-classes b { opacity: 0.45; }
.vlb-classes .vlb-best { font-weight: 650; }
.vlb-classes .vlb-best b, .vlb-classes .vlb-best i { background: #2a9d62; }
.vlb-classes .vlb-out { opacity: 0.45; }
.vlb-progress { display: flex; gap: 10px; align-items: center; font-variant-numeric: tabular-nums; }
.vlb-progress progress { flex: 1; max-width: 320px; }
@media (max-width: 600px) {
    .vlb-row { gap: 10px; }
    /* The page opens on what it is for. */
    #tab-score .vlb-result { order: -1; }
    .vlb-title h1 { font-size: 1.5em; }
    #sign ul { display: none; }  /* the score says it again */
    /* Long equations go on in the next line. */
    .vlb-text .katex-display > .katex { white-space: normal; font-size: 0.85em; padding: 0 4px; }
    .vlb-text .katex-display .base { margin: 3px 0; }
    /* Gradio puts tabs behind a menu by the widths of these unseen copies of their buttons: here all are shown, in rows. */
    .tab-wrapper { height: auto !important; }
    .tab-container.visually-hidden button { position: absolute; left: 0; width: 1px; padding: 0; overflow: hidden; }
    .tab-container[role=tablist] { flex-wrap: wrap; height: auto !important; overflow: visible; }
    .tab-container[role=tablist] button { padding: 6px 10px; height: auto; }
}
"""
# The language of the page, which the style sheet shows the words of.
HEAD = "<script>document.documentElement.lang = navigator.language.startsWith('ja') ? 'ja' : 'en';</script>"
