r"""The sixth tab: the bound read as a message: how many bits, and how good a picture so far (Ho et al. 2020, Section 4.3)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
import numpy as np
import torch

from ddpm_vlb.likelihoods.rate_distortion import RateDistortion, progressive_decoding, rate_distortion

from .. import pictures
from ..layout import Tab
from ..models import Models
from ..running import Watch, gpu, watched
from ..texts import Refusal, T, lettering

ENDPOINT = "rate_distortion"
MAX_STEPS, MAX_IMAGES = 250, 32
SHOWN, MOMENTS = 4, 7  # images, and moments of the progressive decoding

CODE = """\
import torch
from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.likelihoods.rate_distortion import progressive_decoding, rate_distortion

pipe = VLBDDPMPipeline.from_pretrained({source!r})
{image}
curve = rate_distortion(pipe, image, num_inference_steps={steps}, seed={seed})
print(curve.rate[-1].item(), curve.rate_standard_error[-1].item())  # all of it: the bound
print(curve.rate, curve.distortion)  # bits/dim received, and root mean squared error on the scale 0 to 255

decoded = progressive_decoding(pipe, image[:{shown}], {moments}, seed={seed})  # levels, (moments, images, C, H, W)
"""


@gpu
def compute(
    models: Models, model: str, number: int, num_images: int, steps: int, seed: int
) -> Iterator[tuple[dict[str, Any], str, str]]:
    r"""Progressive decoding of some images, and their rate-distortion curve.

    Args:
        model: its name.
        number: of the first image.
        num_images: from there on.
        steps: K of the model that is scored.
        seed: of the noise.
    """
    chosen, number, num_images, steps, seed = models[model], int(number), int(num_images), int(steps), int(seed)
    most = min(MAX_STEPS, chosen.num_train_timesteps)
    if not MOMENTS <= steps <= most:
        raise Refusal("steps_range", last=most, got=steps)
    if not 2 <= num_images <= MAX_IMAGES:
        raise Refusal("images_range", last=MAX_IMAGES, got=num_images)
    chosen.check_time(steps * num_images)
    chosen.image(number)
    last = min(number + num_images, len(chosen.examples))
    if last - number < 2:
        raise Refusal("number_range", last=len(chosen.examples) - 2, got=number)
    images = chosen.examples[number:last]
    watch = Watch()
    pipe = chosen.pipe(unet=watch.network(chosen.unet))
    grid = pipe.scheduler.inference_grid(steps)
    moments = [grid[round(index * (steps - 1) / (MOMENTS - 1))] for index in range(MOMENTS)]
    image, shown = chosen.image_code(number, last), min(SHOWN, len(images))
    code = CODE.format(source=chosen.source, image=image, steps=steps, seed=seed, shown=shown, moments=moments)
    decoded = progressive_decoding(pipe, images[:SHOWN], moments, seed=seed)
    film = _film(chosen, moments, decoded, images[:SHOWN])
    # Counted are those of the curve.
    watch.evaluations = 0
    total = len(images) * steps

    def show(done: int) -> tuple[dict[str, Any], str, str]:
        return {"model": chosen.name, "evaluations_done": done}, film + pictures.progress(done, total), code

    yield show(0)
    curve = yield from watched(lambda: rate_distortion(pipe, images, num_inference_steps=steps, seed=seed), watch, show)
    numbers = {
        "model": chosen.name,
        "num_images": len(images),
        "timesteps": curve.timesteps.tolist(),
        "rate": curve.rate.tolist(),
        "rate_standard_error": curve.rate_standard_error.tolist(),
        "distortion": curve.distortion.tolist(),
        "distortion_standard_error": curve.distortion_standard_error.tolist(),
        "bits_per_dim": curve.rate[-1].item(),
        "standard_error": curve.rate_standard_error[-1].item(),
        "num_network_evaluations": curve.num_network_evaluations,
    }
    head = pictures.table(
        [("bits/dim", f"{numbers['bits_per_dim']:.4f} ± {numbers['standard_error']:.4f}")],
        strong=(0,),
    )
    yield numbers, film + head + _curve(curve, moments), code


def _film(model, moments: list[int], decoded: torch.Tensor, images: torch.Tensor) -> str:
    r"""A column a moment: what can be shown by then; the images themselves last."""
    columns = [(f"{t}", seen) for t, seen in zip(moments, decoded)] + [("x_0", images)]
    return pictures.film(
        [
            pictures.picture(pictures.tiles(pictures.to_bytes(seen, model.num_pixel_levels), 1), caption, 64)
            for caption, seen in columns
        ]
    )


def _curve(curve: RateDistortion, moments: list[int]) -> str:
    rate, distortion = curve.rate.numpy(), curve.distortion.numpy()
    grid = curve.timesteps.numpy()

    def draw(plane, times) -> None:
        errors = 2 * curve.distortion_standard_error.numpy()
        plane.fill_between(
            rate, np.maximum(distortion - errors, 0), distortion + errors, color=pictures.BLUE, alpha=0.25, linewidth=0
        )
        plane.plot(rate, distortion, ".-", color=pictures.BLUE, markersize=3)
        places = [int(np.flatnonzero(grid == moment)[0]) for moment in moments]
        plane.plot(rate[places], distortion[places], "o", color=pictures.ORANGE, label=lettering("pictures_above"))
        plane.set(
            xlabel=lettering("rate_axis"),
            ylabel=lettering("distortion_axis"),
            title=lettering("rate_and_distortion"),
            ylim=(0, None),
        )
        plane.legend()
        times.plot(grid, rate[:-1], color=pictures.GREEN, label=lettering("rate"))
        times.set(xlabel=lettering("timestep"), ylabel="bits/dim", title=lettering("both_over_t"))
        other = times.twinx()
        other.grid(False)
        other.spines["right"].set_visible(True)
        other.plot(grid, distortion[:-1], "--", color=pictures.RED, label=lettering("distortion_right"))
        other.set_ylim(0, None)
        times.invert_xaxis()
        times.legend(handles=[*times.get_lines(), *other.get_lines()], loc="center left")

    return pictures.plot(draw, 2, "Distortion over rate, and both over t", height=3.0)


DEFAULTS = (0, 16, 100, 0)


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out."""
    number_, num_images, steps, seed = DEFAULTS
    with tab.controls():
        number = tab.number(models[model.value], number_)
        inputs = [
            model,
            number,
            gr.Slider(2, MAX_IMAGES, num_images, step=1, label=T("num_images")),
            gr.Slider(MOMENTS, MAX_STEPS, steps, step=1, label=T("steps")),
            tab.seed(seed),
        ]
    *_, last = compute(models, model.value, *DEFAULTS)
    tab.show(last)
    tab.long(partial(compute, models), inputs)
