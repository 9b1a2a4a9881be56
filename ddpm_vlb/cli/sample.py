r"""`ddpm-vlb sample`."""

import argparse

from .common import load_pipeline, save_samples


def run_sample(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb sample`."""
    from ..files import check_output_path

    if arguments.num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {arguments.num_images}.")
    output = check_output_path(arguments.output)
    options = {
        "num_inference_steps": arguments.num_inference_steps,
        "class_labels": arguments.class_label,
        "draw_from_decoder": arguments.draw_from_decoder,
    }
    save_samples(
        load_pipeline(arguments, revision=arguments.revision)[0], arguments.num_images, arguments.seed, output, **options
    )
    print(f"{arguments.num_images} samples: {output}")
