r"""`ddpm-vlb sample`."""

import argparse

from ..files import check_output_path
from .common import SAMPLES, draw_samples, hold, load_pipeline, save_grid
from .options import (
    BATCH_SIZE,
    DEFAULT,
    NUM_SAMPLES,
    add_checkpoint_options,
    add_network_options,
    add_steps_option,
    check_model_options,
    new_command,
)


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "sample",
        help="images from a checkpoint, as one grid",
        description="Draw images. Each has noise of its own, which follows from the seed and its place: more images, or"
        " batches of another size, change none of the others.",
        examples=(
            "runs/quickstart/pipeline --num-images 64 --output samples.png",
            "google/ddpm-cifar10-32 --num-inference-steps 100 --device cuda --dtype bf16",
        ),
    )
    add_checkpoint_options(parser)
    add_steps_option(parser)
    add_network_options(parser)
    parser.add_argument("--num-images", type=int, default=NUM_SAMPLES, help=DEFAULT[1:-1])
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"images that go together {DEFAULT}")
    parser.add_argument("--class-label", type=int, help="class, for a class-conditional network")
    parser.add_argument("--draw-from-decoder", action="store_true", help="draw the last image too (default: its mean)")
    parser.add_argument("--output", default=SAMPLES, help=f"where the grid goes {DEFAULT}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Draw, write, print."""
    for name in ("num_images", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(arguments, name)}.")
    check_model_options(arguments, (arguments.checkpoint, arguments.revision))
    output = check_output_path(arguments.output)
    with hold(output):
        pipe, _ = load_pipeline(arguments, arguments.checkpoint, arguments.revision)
        images = draw_samples(
            pipe,
            arguments.num_images,
            arguments.seed,
            arguments.batch_size,
            class_labels=arguments.class_label,
            num_inference_steps=arguments.num_inference_steps,
            draw_from_decoder=arguments.draw_from_decoder,
        )
        save_grid(images, output)
    print(f"{arguments.num_images} samples: {output}")
