r"""The fifth tab: bits/dim of any picture, with its error, beside those of images the model was not trained on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from .. import pictures
from ..drawing import blank, pad, to_picture
from ..layout import Tab
from ..models import Model, Models
from ..running import Watch, gpu, watched
from ..texts import Refusal, T, both, lettering
from ..uploads import complexity, fit, open_picture

ENDPOINT = "score"
SOURCES = ("pick", "upload", "draw")
CHANGES = ("as it is", "inverted", "noise", "constant")
MIN_EVALUATIONS, MAX_EVALUATIONS = 64, 2048
BATCH = 64

CODE = """\
import torch
from ddpm_vlb import VLBDDPMPipeline
{imports}
pipe = VLBDDPMPipeline.from_pretrained({source!r})
levels = pipe.scheduler.config.num_pixel_levels
{image}
generator = torch.Generator().manual_seed({seed})
out = pipe.evaluate_nll(image, generator=generator, method="sampled", evaluations_per_image={evaluations})

bits_per_dim, monte_carlo_error = out.bits_per_dim.item(), out.monte_carlo_error.item()
print(bits_per_dim, monte_carlo_error)
print(out.prior.item(), out.transitions_total.item(), out.decoder.item())  # L_T, the sum of the KL terms, L_0
"""
UPLOADED = """\
picture = ImageOps.exif_transpose(Image.open({name!r})).convert({mode!r})
picture = ImageOps.fit(picture, {size}, Image.Resampling.BOX)
image = quantize(np.array(picture).reshape({height}, {width}, {channels}), levels).permute(2, 0, 1)[None]"""
CHANGED = {
    "as it is": "",
    "inverted": "\nimage = (levels - 1) - image",
    "noise": "\nimage = torch.randint(levels, image.shape, generator=torch.Generator().manual_seed({seed})).to(image.dtype)",
    "constant": "\nimage = torch.zeros_like(image)",
}


def prepare(
    model: Model, source: str, number: int, upload: str | None, drawing: dict | None, change: str, seed: int
) -> tuple[torch.Tensor, Image.Image | None, str, str]:
    r"""The levels `(1, C, H, W)` to score, the picture they were made from (`None` for an example), and the lines of Python
    that make them: imports, and the rest."""
    if source not in SOURCES or change not in CHANGES:
        raise Refusal("choice", got=f"{source}, {change}"[:60])
    levels_count, (channels, height, width) = model.num_pixel_levels, model.shape
    before = None
    if source == "pick":
        levels, imports, code = model.image(number), "from ddpm_vlb.data import load_images", model.image_code(number)
    else:
        if source == "upload" and upload is None:
            raise Refusal("no_upload")
        before = open_picture(upload) if source == "upload" else to_picture(drawing)
        levels = fit(before, model.shape, levels_count)
        if source == "upload":
            imports = "import numpy as np\nfrom PIL import Image, ImageOps\nfrom ddpm_vlb.data import quantize"
            code = UPLOADED.format(
                name=Path(upload).name,
                mode="L" if channels == 1 else "RGB",
                size=(width, height),
                height=height,
                width=width,
                channels=channels,
            )
        else:
            imports = ""
            values = levels.flatten().tolist() if levels.numel() <= 4096 else "..., the picture that is shown"
            code = f"image = torch.tensor({values}, dtype=torch.uint8).view(1, {channels}, {height}, {width})"
    if change == "inverted":
        levels = (levels_count - 1) - levels
    elif change == "noise":
        random = torch.randint(levels_count, levels.shape, generator=torch.Generator().manual_seed(seed))
        levels = random.to(levels.dtype)
    elif change == "constant":
        levels = torch.zeros_like(levels)
    return levels, before, imports, code + CHANGED[change].format(seed=seed)


@gpu
def compute(
    models: Models,
    model: str,
    source: str,
    number: int,
    change: str,
    evaluations: int,
    seed: int,
    upload: str | None = None,
    drawing: dict | None = None,
) -> Iterator[tuple[dict[str, Any], str, str]]:
    r"""Score a picture: the bound on its negative log-likelihood in bits/dim, with its Monte Carlo error.

    Args:
        model: its name.
        source: "pick" one of the model's images, or "upload" or "draw" one.
        number: of the image that is picked.
        change: "as it is", "inverted", or "noise" or "constant" in its place.
        evaluations: of the network, an even number; the pilot's come on top.
        seed: of the noise.
        upload: a file: PNG, JPEG, WebP, BMP or GIF; still, opaque, 8 bits.
        drawing: `{"width", "height", "cells"}`, the grey values row by row, 0 (black) to 255.
    """
    chosen, number, evaluations, seed = models[model], int(number), int(evaluations), int(seed)
    if not MIN_EVALUATIONS <= evaluations <= MAX_EVALUATIONS or evaluations % 2:
        raise Refusal("evaluations_range", first=MIN_EVALUATIONS, last=MAX_EVALUATIONS, got=evaluations)
    chosen.check_time(evaluations)
    levels, before, imports, image = prepare(chosen, source, number, upload, drawing, change, seed)
    code = CODE.format(imports=imports, source=chosen.source, image=image, seed=seed, evaluations=evaluations)
    shown = _prepared(chosen, levels, before)

    def show(done: int) -> tuple[dict[str, Any], str, str]:
        return {"model": chosen.name, "evaluations_done": done}, shown + pictures.progress(done, evaluations), code

    yield show(0)
    watch = Watch()
    pipe = chosen.pipe(unet=watch.network(chosen.unet))
    options = {"method": "sampled", "evaluations_per_image": evaluations, "generator": torch.Generator().manual_seed(seed)}
    out = yield from watched(lambda: pipe.evaluate_nll(levels, batch_size=BATCH, **options), watch, show)
    own = source == "pick" and change == "as it is"
    numbers, result = _result(chosen, levels, out, own)
    yield numbers, shown + result, code


def _prepared(model: Model, levels: torch.Tensor, before: Image.Image | None) -> str:
    r"""The picture that is scored, beside the one it was made from."""
    parts = []
    if before is not None:
        thumbnail = before.convert("L" if model.shape[0] == 1 else "RGB")
        thumbnail.thumbnail((320, 320))
        array = np.asarray(thumbnail).reshape(thumbnail.height, thumbnail.width, -1)
        caption = both("as_given", size=f"{before.width} × {before.height}")
        parts.append(pictures.picture(array, caption, 300, label="the picture as it was given"))
    channels, height, width = model.shape
    caption = both("as_scored", size=f"{width} × {height}", levels=model.num_pixel_levels)
    array = pictures.to_bytes(levels, model.num_pixel_levels)[0]
    parts.append(pictures.picture(array, caption, 300, label="the picture as it is scored"))
    return pictures.row(parts)


def _result(model: Model, levels: torch.Tensor, out, own: bool) -> tuple[dict[str, Any], str]:
    score, error = out.bits_per_dim.item(), out.monte_carlo_error.item()
    size = complexity(levels[0], model.num_pixel_levels)
    numbers = {
        "model": model.name,
        "bits_per_dim": score,
        "monte_carlo_error": error,
        "prior": out.prior.item(),
        "transitions_total": out.transitions_total.item(),
        "decoder": out.decoder.item(),
        "num_network_evaluations": out.num_network_evaluations,
        "levels": levels[0].tolist() if levels.numel() <= 4096 else None,
        "complexity": size,
        "complexity_corrected": None if size is None else score - size,
        "better_than_share_of_held_out": None if model.scores is None else float((model.scores > score).mean()),
        "uniform": float(np.log2(model.num_pixel_levels)),
    }
    rows = [
        (both("prior"), f"{numbers['prior']:.4f}"),
        (both("kl_sum"), f"{numbers['transitions_total']:.4f}"),
        (both("decoder"), f"{numbers['decoder']:.4f}"),
        ("bits/dim", f"{score:.3f} ± {error:.3f}"),
    ]
    if size is not None:
        rows += [(both("compressed"), f"{size:.3f}"), (both("corrected"), f"{score - size:+.3f}")]
    result = pictures.table(rows, strong=(3,))
    if model.scores is not None:
        result += _histograms(model, score, error, size)
        share = numbers["better_than_share_of_held_out"]
        result += pictures.note(both("place", share=f"{100 * share:.0f}", count=len(model.scores)))
        if not own:
            result += pictures.note(both("simple_scores_better"), "warning")
    return numbers, result


def _histograms(model: Model, score: float, error: float, size: float | None) -> str:
    corrected = model.corrected_scores if size is not None else None

    def draw(plain, other=None) -> None:
        panels = [(plain, model.scores, score, "bits/dim")]
        if other is not None:
            panels.append((other, corrected, score - size, lettering("corrected")))
        for axes, values, place, name in panels:
            axes.hist(values, bins=30, color=pictures.BLUE, alpha=0.65, label=lettering("held_out", count=len(values)))
            axes.axvspan(place - 2 * error, place + 2 * error, color=pictures.ORANGE, alpha=0.3, linewidth=0)
            axes.axvline(place, color=pictures.ORANGE, linewidth=2.2, label=lettering("this_picture"))
            axes.set(xlabel=name, yticks=[])
            axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the legend above the bars
            axes.grid(False)
            axes.legend(loc="upper left" if place > np.median(values) else "upper right")

    return pictures.plot(
        draw, 1 if corrected is None else 2, "This picture's score on the histogram of held-out scores", height=2.5
    )


DEFAULTS = ("pick", 0, "as it is", 256, 0)


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out."""
    source, number_, change, evaluations, seed = DEFAULTS
    with tab.controls():
        with gr.Tabs():
            with gr.Tab(T("pick"), id="pick") as pick:
                number = tab.number(models[model.value], number_)
            with gr.Tab(T("upload"), id="upload") as uploading:
                upload = gr.Image(
                    type="filepath",
                    image_mode=None,
                    format="png",
                    sources=["upload", "clipboard"],
                    show_label=False,
                    height=230,
                    elem_id="score-upload",
                    placeholder=T("upload_hint"),
                )
            with gr.Tab(T("draw"), id="draw") as drawing_tab:
                canvas = pad(models[model.value].shape)
                tab.follows(canvas, lambda chosen: blank(chosen.shape))
        chosen = gr.Radio([(T(name), name) for name in SOURCES], value=source, label=T("source"), elem_id="score-source")
        inputs = [
            model,
            chosen,
            number,
            gr.Radio(
                [(T(name.replace(" ", "_")), name) for name in CHANGES], value=change, label=T("change"), elem_id="score-change"
            ),
            gr.Slider(MIN_EVALUATIONS, MAX_EVALUATIONS, evaluations, step=2, label=T("evaluations")),
            tab.seed(seed),
            upload,
            canvas,
        ]
        # Whoever opens a way to choose a picture means to use it.
        for one, name in ((pick, "pick"), (uploading, "upload"), (drawing_tab, "draw")):
            one.select(None, js=f"() => {name!r}", outputs=chosen, api_visibility="private")
    # Whether it is a picture is for `open_picture` to say.
    upload.preprocess = lambda payload: None if payload is None else payload.path
    *_, last = compute(models, model.value, *DEFAULTS)
    tab.show(last)
    tab.long(partial(compute, models), inputs)
