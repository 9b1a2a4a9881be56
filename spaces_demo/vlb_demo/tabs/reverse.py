r"""The third tab: the reverse process, from noise to images, step by step."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
import torch

from .. import pictures
from ..layout import Tab
from ..models import Models
from ..running import Pace, gpu
from ..texts import Refusal, T, both

ENDPOINT = "sample"
MAX_STEPS, MAX_IMAGES = 250, 16
SPACINGS = ("leading", "linspace", "trailing")
VARIANCES = ("as trained", "fixed_small", "fixed_large")
FRAMES = 25  # pictures on the way, and more where they take long
SNAPSHOTS = 8
MAX_NUMBERS = 20_000  # of pixel levels, in the answer

CODE = """\
import torch
from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler

pipe = VLBDDPMPipeline.from_pretrained({source!r})
scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, {settings})
scheduler.set_timesteps({steps})
generator = torch.Generator().manual_seed({seed})
x = torch.randn({shape}, generator=generator)
with torch.no_grad():
    for t in scheduler.timesteps.tolist():
        output = pipe.unet(x, t).sample{first_half}
        step = scheduler.step(output, t, x, generator=generator)
        x, predicted = step.prev_sample, step.pred_original_sample  # x_s, and the image as it is seen from x_t

steps = scheduler.config.num_pixel_levels - 1
levels = ((x + 1) / 2 * steps).round().clamp(0, steps).int()
"""


@gpu
def compute(
    models: Models, model: str, num_images: int, steps: int, spacing: str, variance: str, seed: int
) -> Iterator[tuple[dict[str, Any], str, str]]:
    r"""Sample images, and show them and the predicted images on the way.

    Args:
        model: its name.
        num_images: at once.
        steps: K, network evaluations of each image.
        spacing: of the K timesteps: "leading", "linspace" or "trailing".
        variance: "as trained", or "fixed_small" or "fixed_large" in its place.
        seed: of all noise.
    """
    chosen, num_images, steps = models[model], int(num_images), int(steps)
    most = min(MAX_STEPS, chosen.num_train_timesteps)
    if not 1 <= steps <= most:
        raise Refusal("steps_range", last=most, got=steps)
    if not 1 <= num_images <= MAX_IMAGES:
        raise Refusal("images_range", last=MAX_IMAGES, got=num_images)
    if spacing not in SPACINGS or variance not in VARIANCES:
        raise Refusal("choice", got=f"{spacing}, {variance}"[:60])
    chosen.check_time(steps * num_images)
    settings = {"timestep_spacing": spacing} | (
        {} if variance == "as trained" else {"variance_type": variance, "calibration": None}
    )
    pipe = chosen.pipe(**settings)
    scheduler, device, channels = pipe.scheduler, models.device, chosen.shape[0]
    # A network of learned variances has twice the channels; the second half is theirs.
    drop = variance != "as trained" and chosen.network.out_channels != channels
    scheduler.set_timesteps(steps)
    grid = scheduler.timesteps.tolist()
    scheduler.reverse_process(grid)  # refuses, as scoring does, what only clipping would make images of
    generator = torch.Generator().manual_seed(int(seed))
    code = CODE.format(
        source=chosen.source,
        settings=", ".join(f"{name}={value!r}" for name, value in settings.items()),
        steps=steps,
        seed=int(seed),
        shape=", ".join(map(str, (num_images, *chosen.shape))),
        first_half=f"[:, :{channels}]" if drop else "",
    )
    x = torch.randn(num_images, *chosen.shape, generator=generator).to(device)
    pace, snapshots = Pace(steps, FRAMES), []
    kept = {round(index * (steps - 1) / max(1, SNAPSHOTS - 1)) for index in range(min(SNAPSHOTS, steps))}
    for index, t in enumerate(grid):
        with torch.no_grad():
            output = chosen.network(x, t)
        before = x
        x, predicted = scheduler.step(output[:, :channels] if drop else output, t, x, generator=generator, return_dict=False)
        if index in kept:
            snapshots.append((t, before[:1], predicted[:1]))
        if pace.due(index + 1):
            numbers = {"timestep": t, "step": index + 1, "steps": steps}
            yield (
                numbers,
                _show(chosen, x, predicted, f"x_{grid[index + 1]}", snapshots) + pictures.progress(index + 1, steps),
                code,
            )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("`unet` must give finite outputs, got others.")
    top = chosen.num_pixel_levels - 1
    levels = ((x + 1) / 2 * top).round().clamp(0, top).int().cpu()
    numbers = {
        "timestep": grid[-1],
        "step": steps,
        "steps": steps,
        "timesteps": grid,
        "variance_type": scheduler.config.variance_type,
        "levels": levels.tolist() if levels.numel() <= MAX_NUMBERS else None,
        "mean_level": levels.double().mean().item(),
    }
    yield numbers, _show(chosen, x, predicted, "x_0", snapshots), code


def _show(chosen, x: torch.Tensor, predicted: torch.Tensor, name: str, snapshots: list) -> str:
    columns = 4 if len(x) > 4 else len(x)
    sheets = [
        pictures.picture(pictures.tiles(pictures.to_bytes(images), columns), caption, 340, label)
        for images, caption, label in ((x, name, name), (predicted, both("predicted"), "predicted x_0"))
    ]
    film = [
        pictures.picture(pictures.tiles(pictures.to_bytes(torch.cat([before, seen])), 1), f"{t}", 64, f"t = {t}")
        for t, before, seen in snapshots
    ]
    return pictures.row(sheets) + pictures.film(film)


DEFAULTS = (8, 50, "leading", "as trained", 0)


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out."""
    num_images, steps, spacing, variance, seed = DEFAULTS
    with tab.controls():
        inputs = [
            model,
            gr.Slider(1, MAX_IMAGES, num_images, step=1, label=T("num_images")),
            gr.Slider(1, MAX_STEPS, steps, step=1, label=T("steps"), elem_id="reverse-steps"),
            gr.Radio(SPACINGS, value=spacing, label=T("spacing")),
            gr.Radio([(T("as_trained"), VARIANCES[0]), *VARIANCES[1:]], value=variance, label=T("variance")),
            tab.seed(seed),
        ]
    *_, last = compute(models, model.value, *DEFAULTS)
    tab.show(last)
    tab.long(partial(compute, models), inputs)
