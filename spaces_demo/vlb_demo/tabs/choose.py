r"""The last tab: which model the others look at."""

from functools import partial
from typing import Any

import gradio as gr

from .. import pictures
from ..layout import Tab
from ..models import Models
from ..texts import both

ENDPOINT = "model"

CODE = """\
from ddpm_vlb import VLBDDPMPipeline

pipe = VLBDDPMPipeline.from_pretrained({source!r})
print(pipe.unet.num_parameters(), pipe.scheduler.config)
"""


def compute(models: Models, model: str) -> tuple[dict[str, Any], str, str]:
    r"""What is known of a model of the list.

    Args:
        model: its name.
    """
    chosen = models[model]
    config, report = chosen.scheduler_config, chosen.report or {}
    channels, height, width = chosen.shape
    numbers = {
        "model": chosen.name,
        "models": models.names,
        "image_shape": list(chosen.shape),
        "num_parameters": chosen.num_parameters,
        "num_pixel_levels": chosen.num_pixel_levels,
        "num_train_timesteps": chosen.num_train_timesteps,
        "prediction_type": config["prediction_type"],
        "variance_type": config["variance_type"],
        "calibrated": config.get("calibration") is not None,
        "num_examples": len(chosen.examples),
        "bits_per_dim": report.get("bits_per_dim"),
        "standard_error": report.get("standard_error"),
        "num_images": report.get("num_images"),
    }
    score = both("not_scored")
    if report:
        score = f"{report['bits_per_dim']:.4f} ± {report['standard_error']:.4f} ({report['num_images']})"
    rows = [
        (both("model"), chosen.name),
        (both("images"), both("size", size=f"{width} × {height} × {channels}", levels=chosen.num_pixel_levels)),
        (both("parameters"), f"{chosen.num_parameters:,}"),
        ("T", f"{chosen.num_train_timesteps}"),
        ("prediction_type", config["prediction_type"]),
        ("variance_type", config["variance_type"]),
        (both("held_out_score"), score),
    ]
    count = min(16, len(chosen.examples))
    sheet = pictures.tiles(pictures.to_bytes(chosen.examples[:count], chosen.num_pixel_levels), 8)
    picture = pictures.table(rows, strong=(6,)) + pictures.picture(
        sheet, both("images_shown", last=count - 1), 560, f"image 0 – {count - 1}"
    )
    return numbers, picture, CODE.format(source=chosen.source)


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out."""
    with tab.controls():
        model.render()
    tab.show(compute(models, model.value))
    tab.live(partial(compute, models), [model])
