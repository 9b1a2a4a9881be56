r"""`ddpm-vlb compare`."""

import argparse
import json
from pathlib import Path

from ..files import check_output_path, write_atomically
from ..sampled_bound.rules import check_rules
from .common import data_settings, hold, journal_beside, labels_for, load_pipeline, on_grid, open_data, set_levels
from .options import (
    DEFAULT,
    add_data_options,
    add_network_kwargs_option,
    add_network_options,
    add_restart_option,
    add_stopping_options,
    check_data_options,
    check_model_options,
    new_command,
)


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "compare",
        help="the difference of two checkpoints' bounds, from the same images and noise",
        description="A's bound minus B's, in bits/dim. Both meet the same images, timesteps and noise, so that the difference"
        " is known far better than either bound. What was stopped goes on where the same command is given again, or begins anew"
        " with --restart.",
        examples=(
            "runs/quickstart/pipeline spaces_demo/checkpoints/ddpm-vlb-digits --dataset digits",
            "runs/flow/calibrated runs/quickstart/pipeline --dataset digits --num-inference-steps-b 50",
            "runs/photos/pipeline google/ddpm-ema-church-256 --dataset photos --resize 256 --center-crop 256",
        ),
    )
    parser.add_argument("checkpoint", metavar="A", help="a pipeline's folder, or its name on the Hub")
    parser.add_argument("other", metavar="B", help="the one to subtract; may be A, with other settings")
    add_data_options(parser)
    add_stopping_options(parser)
    for name in ("a", "b"):
        of = name.upper()
        parser.add_argument(f"--num-inference-steps-{name}", type=int, metavar="K", help=f"of {of} (default: all steps)")
        parser.add_argument(f"--class-label-{name}", type=int, metavar="CLASS", help=f"of all images, for {of}")
        add_network_kwargs_option(parser, f"-{name}", f"of {of} alone: ")
        parser.add_argument(f"--revision-{name}", help=f"branch, tag or commit of {of} on the Hub")
    add_network_options(parser)
    add_restart_option(parser)
    parser.add_argument("--output", default="comparison.json", help=f"where the result goes {DEFAULT}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `compare_checkpoints`."""
    checkpoints = [(arguments.checkpoint, arguments.revision_a), (arguments.other, arguments.revision_b)]
    check_data_options(arguments)
    check_model_options(arguments, *checkpoints)
    if (arguments.target_se, arguments.max_evaluations) != (None, None):
        check_rules(arguments.target_se, arguments.max_evaluations, None)
    output = check_output_path(arguments.output)
    with hold(output):
        compare_checkpoints(arguments, output, checkpoints)


def compare_checkpoints(arguments: argparse.Namespace, output: Path, checkpoints: list[tuple[str, str | None]]) -> None:
    r"""Compare, write, print, once nobody else writes there."""
    from ..evaluation.compare import compare, format_comparison

    names = [name for name, _ in checkpoints]
    workers, data = open_data(arguments)
    loaded = (load_pipeline(arguments, *one, workers.device, of) for one, of in zip(checkpoints, ("_a", "_b")))
    pipes, float32_unets = zip(*loaded)
    for pipe in pipes:
        set_levels(pipe, arguments.num_pixel_levels)
        images = on_grid(data, pipe, arguments.quantize)
    labels = arguments.class_label_a, arguments.class_label_b
    journal = journal_beside(output, arguments.restart and not workers.rank)
    context = {"checkpoints": list(names), "quantized": arguments.quantize}
    context |= {} if arguments.network_kwargs is None else {"network_kwargs": arguments.network_kwargs}
    comparison = compare(
        pipes,
        images,
        context=context | data_settings(data),
        target_se=arguments.target_se,
        max_evaluations=arguments.max_evaluations,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_inference_steps=(arguments.num_inference_steps_a, arguments.num_inference_steps_b),
        class_labels=[labels_for(pipe, data, label) for pipe, label in zip(pipes, labels)],
        max_images=arguments.max_images,
        image_seed=arguments.image_seed,
        buffer_bytes=int(arguments.buffer_mb * 2**20),
        float32_unets=float32_unets,
        journal=journal,
        workers=workers,
    )
    if workers.rank:
        return
    write_atomically(output, (json.dumps(comparison, indent=2, allow_nan=False) + "\n").encode())
    if journal is not None:
        journal.unlink(missing_ok=True)
    print(format_comparison(comparison, names if names[0] != names[1] else ("A", "B")))
    print(f"comparison: {output}")
