r"""The first tab: bits/dim of any picture, with its error, beside those of held-out images, and the picture as a file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio import processing_utils
from PIL import Image

from .. import classes, codec, pictures
from ..drawing import blank, pad, to_picture
from ..layout import MODEL, Tab, guarded
from ..models import Model, Models
from ..running import Watch, gpu, watched
from ..texts import Refusal, T, both, lettering
from ..uploads import complexity, fit, open_picture

ENDPOINT = "score"
SOURCES = ("pick", "upload", "draw")
CHANGES = ("as it is", "inverted", "noise", "constant")
MIN_EVALUATIONS, MAX_EVALUATIONS = 64, 2048
BATCH = 64
COMPANY = 15  # held-out images that a picture shares its file with: one alone cannot pay for the beginning
FORMATS = ((".vlb", "file_bytes"), ("PNG", "png_bytes"), ("WebP", "webp_bytes"))

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
    own = number if source == "pick" and change == "as it is" else None
    numbers, standing, result = _result(chosen, levels, out, own)
    yield numbers, standing + shown + result, code


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


def p_value(held_out: np.ndarray, score: float) -> float:
    r"""Of an image's score beside those of held-out ones: at most alpha with probability at most alpha, for every alpha, if it
    is of their kind and scored alike (`ddpm_vlb.evaluation.conformal`)."""
    return (1 + int((held_out >= score).sum())) / (len(held_out) + 1)


def _result(model: Model, levels: torch.Tensor, out, own: int | None) -> tuple[dict[str, Any], str, str]:
    r"""The numbers, where the picture stands, and the rest of the page; `own` is the number of an example as it is."""
    score, error = out.bits_per_dim.item(), out.monte_carlo_error.item()
    size = complexity(levels[0], model.num_pixel_levels)
    held_out = model.held_out(own)
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
        "better_than_share_of_held_out": None if held_out is None else float((held_out > score).mean()),
        "p_value": None if held_out is None else p_value(held_out, score),
        # Of scores two errors to either side: the held-out ones were not scored with as many evaluations.
        "p_value_range": None if held_out is None else [p_value(held_out, score + side * 2 * error) for side in (1, -1)],
        "num_held_out": None if held_out is None else len(held_out),
        "uniform": float(np.log2(model.num_pixel_levels)),
    }
    standing = ""
    if held_out is not None:
        share, (low, high) = 100 * numbers["better_than_share_of_held_out"], numbers["p_value_range"]
        told = {"p": f"{numbers['p_value']:.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}", "count": len(held_out)}
        standing = pictures.headline(both("standing", share=f"{share:.0f}"))
        standing += pictures.note(both("p_value", **told), "small")
    bar = pictures.three_parts(numbers["prior"], numbers["transitions_total"], numbers["decoder"])
    dimensions = levels.numel()
    meaning = both(
        "bits_per_dim",
        score=f"{score:.2f}",
        count=dimensions,
        bytes=f"{score * dimensions / 8:.0f}",
        uniform=f"{numbers['uniform']:.2f}",
    )
    rows = [
        (both("prior"), f"{numbers['prior']:.4f}"),
        (both("kl_sum"), f"{numbers['transitions_total']:.4f}"),
        (both("decoder"), f"{numbers['decoder']:.4f}"),
        ("bits/dim", f"{score:.3f} ± {error:.3f}"),
    ]
    if size is not None:
        rows += [(both("compressed"), f"{size:.3f}"), (both("corrected"), f"{score - size:+.3f}")]
    result = bar + pictures.note(meaning) + pictures.table(rows, strong=(3,))
    if model.scores is not None:
        result += _histograms(model, score, error, size)
        if own is None:
            result += pictures.note(both("simple_scores_better"), "warning")
    return numbers, standing, result


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


def pack(
    models: Models,
    model: str,
    source: str,
    number: int,
    change: str,
    seed: int,
    upload: str | None = None,
    drawing: dict | None = None,
) -> tuple[bytes, str]:
    r"""The picture and some held-out ones as a file, and what that takes beside other formats."""
    chosen, number = models[model], int(number)
    levels = prepare(chosen, source, number, upload, drawing, change, int(seed))[0]
    together = torch.cat([levels, codec.company(chosen, number, COMPANY)])
    data = codec.encode(chosen, together)
    sizes = codec.sizes(chosen, together, data)
    alone = codec.sizes(chosen, levels, codec.encode(chosen, levels))
    rows = [(both("bytes_of", count=len(together)), _bytes(sizes)), (both("bytes_alone"), _bytes(alone))]
    page = pictures.table(rows) + pictures.note(both("about_files", rate=f"{sizes['bits_per_dim']:.2f}"))
    return data, page


def _bytes(sizes: dict[str, Any]) -> str:
    return " · ".join(f"{name} {sizes[key]}" for name, key in FORMATS)


def unpack(models: Models, model: str, data: bytes | None) -> str:
    r"""The pictures of a file."""
    if data is None:
        raise Refusal("no_file")
    chosen = models[model]
    levels = codec.decode(chosen, bytes(data))
    sheet = pictures.tiles(pictures.to_bytes(levels, chosen.num_pixel_levels), min(len(levels), 8))
    return pictures.picture(sheet, both("unpacked", count=len(levels)), 480, "the pictures of the file")


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
    with tab.below():
        _build_classes(tab, models, model.value, [*inputs[:4], *inputs[5:]])
        _build_files(models, [*inputs[:4], *inputs[5:]])


def which_class(
    models: Models,
    model: str,
    source: str,
    number: int,
    change: str,
    seed: int,
    upload: str | None = None,
    drawing: dict | None = None,
) -> Iterator[str]:
    r"""Bars of the classes that a picture may be of, narrowing while a class-conditional model is asked."""
    classifier, chosen = models.classifier(model), models[model]
    levels = prepare(chosen, source, int(number), upload, drawing, change, int(seed))[0]
    for _, page in classes.race(classifier, levels, classes.EVALUATIONS, int(seed)):
        yield page


def _build_classes(tab: Tab, models: Models, model: str, inputs: list) -> None:
    r"""Which class the picture that is chosen is of (`inputs` are those of `which_class`)."""
    gr.Markdown(T("which_class"))

    def at_first(name: str) -> str:
        return pictures.note(both("classes_hint") if models.has_classes(name) else both("no_classes", name=name))

    button = gr.Button(T("classify"), elem_id="score-classify")
    page = gr.HTML(at_first(model), elem_id="score-classes", padding=False)
    tab.follows(page, lambda chosen: at_first(chosen.name))
    if models.has_classes(model):
        source, number, change, _, seed = DEFAULTS
        *_, page.value = which_class(models, model, source, number, change, seed)
    button.click(guarded(partial(which_class, models)), inputs, page, api_visibility="private", show_progress="hidden", **MODEL)


def _build_files(models: Models, inputs: list) -> None:
    r"""A file of the picture that is chosen (`inputs` are those of `pack`), and back."""
    gr.Markdown(T("files"))
    if not codec.AVAILABLE:
        gr.HTML(pictures.note(both("no_codec")), elem_id="score-no-codec")
        return
    with gr.Row():
        with gr.Column(min_width=270):
            button = gr.Button(T("compress"), elem_id="score-compress")
            download = gr.File(label=T("download"), interactive=False, height=90, elem_id="score-file", visible=False)
            packed = gr.HTML(elem_id="score-packed")
        with gr.Column(min_width=270):
            upload = gr.File(label=T("decompress"), type="binary", height=120, elem_id="score-unpack")
            unpacked = gr.HTML(elem_id="score-unpacked")

    def save(*values) -> tuple:
        data, page = pack(models, *values)
        # Where Gradio keeps uploads, and deletes them.
        path = processing_utils.save_bytes_to_cache(data, "pictures.vlb", download.GRADIO_CACHE)
        return gr.update(value=path, visible=True), page

    # The tools for agents and the API are `compress_images` and `decompress_file`.
    options = {"api_visibility": "private", **MODEL}
    button.click(guarded(save), inputs, [download, packed], **options)
    upload.upload(guarded(partial(unpack, models)), [inputs[0], upload], unpacked, **options)
