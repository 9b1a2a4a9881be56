r"""`ddpm-vlb calibrate`."""

import argparse
import json
import math
from pathlib import Path

from ..files import check_output_path, new_folder, write_atomically
from .common import (
    check_library,
    check_new_folder,
    data_settings,
    hold,
    labels_for,
    load_pipeline,
    on_grid,
    open_data,
    set_levels,
)
from .options import (
    DEFAULT,
    add_checkpoint_options,
    add_data_options,
    add_network_options,
    check_data_options,
    check_model_options,
    new_command,
)

# As `calibration.measure` has them, which imports torch.
EVALUATIONS = 8192
NUM_TIMESTEPS = 32
MIN_IMAGES = 16


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "calibrate",
        help="better variances, decoder and sub-schedules for the same weights",
        description="Look at the network once, on images that are not reported on, and make a folder with the same weights and"
        " a scheduler that knows how far its predictions are off.",
        examples=(
            "runs/quickstart/pipeline --dataset digits --split train --output runs/quickstart/calibrated",
            "runs/mnist/pipeline --dataset runs/mnist/validation.npz --max-images 256 --plot steps.png --output calibrated",
        ),
    )
    add_checkpoint_options(parser)
    add_data_options(parser, "train")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help=f"of the network {DEFAULT}")
    parser.add_argument("--num-timesteps", type=int, default=NUM_TIMESTEPS, help=f"timesteps to look at {DEFAULT}")
    parser.add_argument("--target-se", type=float, help="refuse a larger standard error of the best bound, in bits/dim")
    add_network_options(parser)
    parser.add_argument("--output", required=True, help="folder to make: the pipeline with its calibration")
    parser.add_argument("--plot", help="where a plot of bits/dim over the number of steps goes, a PNG file")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `calibrate_checkpoint`."""
    check_data_options(arguments)
    check_model_options(arguments, (arguments.checkpoint, arguments.revision))
    for name, least in (("num_timesteps", 2), ("evaluations", 2 * MIN_IMAGES), ("max_images", MIN_IMAGES)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if arguments.target_se is not None and not 0 < arguments.target_se < math.inf:
        raise ValueError(f"`target_se` must be a positive number of bits/dim, got {arguments.target_se!r}.")
    output = check_new_folder(arguments.output)
    if arguments.plot is not None:
        check_output_path(arguments.plot)
        check_library("plot", "matplotlib")
    output.parent.mkdir(parents=True, exist_ok=True)
    with hold(output, arguments.plot):
        calibrate_checkpoint(arguments, output)


def calibrate_checkpoint(arguments: argparse.Namespace, output: Path) -> None:
    r"""Calibrate, save, print, once nobody else writes there."""
    from ..calibration.measure import calibrate
    from ..calibration.show import describe, format_calibration, plot_calibration
    from ..hub.repository import check_savable

    workers, data = open_data(arguments)
    if workers.count > 1:
        raise ValueError(f"`calibrate` must run in one process, got {workers.count}.")
    pipe, _ = load_pipeline(arguments, arguments.checkpoint, arguments.revision)
    set_levels(pipe, arguments.num_pixel_levels)
    check_savable(unet=pipe.unet, scheduler=pipe.scheduler)
    result = calibrate(
        pipe,
        on_grid(data, pipe, arguments.quantize),
        num_timesteps=arguments.num_timesteps,
        evaluations=arguments.evaluations,
        target_se=arguments.target_se,
        max_images=arguments.max_images,
        image_seed=arguments.image_seed,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        class_labels=labels_for(pipe, data),
        **data_settings(data),
    )
    pipe.unet.float()  # what was loaded; half precision is for the evaluations alone
    pipe.scheduler = result.scheduler
    with new_folder(output) as folder:
        pipe.save_pretrained(folder)
        write_atomically(folder / "calibration.json", (json.dumps(describe(result), indent=2) + "\n").encode())
    print(format_calibration(result))
    if arguments.plot is not None:
        plot_calibration(result, arguments.plot)
    print(f"calibrated: {output}")
