r"""`ddpm-vlb evaluate`."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..likelihoods.method import Method
from ..likelihoods.methods import METHODS, own_options
from ..reports.show import format_report
from ..sampled_bound.rules import check_rules
from .common import (
    check_outputs,
    data_settings,
    hold,
    journal_beside,
    labels_for,
    load_pipeline,
    on_grid,
    open_data,
    set_levels,
    write_outputs,
)
from .options import (
    DEFAULT,
    DTYPES,
    add_checkpoint_options,
    add_data_options,
    add_network_options,
    add_options,
    add_report_options,
    add_restart_option,
    add_steps_option,
    check_data_options,
    check_model_options,
    check_positive,
    new_command,
)

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser; a likelihood method's own options are those of its row."""
    parser = new_command(
        commands,
        "evaluate",
        help="the variational bound of a data set under a checkpoint",
        description="Score a data set under a checkpoint, in bits/dim, and write a report of the number, its errors and all"
        " settings. What was stopped goes on where the same command is given again, or begins anew with --restart.",
        examples=(
            "runs/quickstart/pipeline --dataset digits --plot terms.png",
            'runs/floyd --dataset photos --resize 64 --center-crop 64 --prompt "a photo of a cat" --target-se 0.002',
            "runs/quickstart/pipeline --dataset digits --method iw --k 64 --max-images 16 --image-seed 0 --scores scores.csv",
        ),
    )
    add_checkpoint_options(parser)
    add_steps_option(parser)
    add_network_options(parser)
    add_data_options(parser)
    words = "; ".join(f"{method.name}: {method.help}" for method in METHODS.values()).replace("%", "%%")
    parser.add_argument("--method", choices=tuple(METHODS), default="sampled", help=f"{words} {DEFAULT}")
    for method in METHODS.values():
        if method.options:
            add_options(parser.add_argument_group(f"with --method {method.name}"), method.options)
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th image from image I on (see `merge`)")
    parser.add_argument("--no-calibration", action="store_true", help="leave the checkpoint's calibration aside")
    parser.add_argument("--clip-sample", action=argparse.BooleanOptionalAction, help="override the scheduler's clip_sample")
    add_restart_option(parser)
    add_report_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `score`."""
    method, shard = METHODS[arguments.method], parse_shard(arguments.shard)
    given = {option.name: getattr(arguments, option.name) for row in METHODS.values() for option in row.options}
    options = own_options(method, given)
    check_data_options(arguments)
    check_model_options(arguments, (arguments.checkpoint, arguments.revision))
    check_options(method, options)
    check_wanted(arguments, method, shard)
    output = check_outputs(arguments.output, arguments.plot, arguments.scores)
    with hold(output, arguments.plot, arguments.scores):
        score(arguments, output, method, shard, options)


def score(arguments: argparse.Namespace, output: Path, method: Method, shard: tuple[int, int], options: dict[str, Any]) -> None:
    r"""Score, write, print, once nobody else writes there."""
    from ..evaluation.evaluate import evaluate

    workers, data = open_data(arguments)
    pipe, float32_unet = load_pipeline(arguments, arguments.checkpoint, arguments.revision, workers.device)
    overridden = override(pipe, arguments)
    images = on_grid(data, pipe, arguments.quantize)
    if pipe.network.num_classes is not None and getattr(data, "labels", None) is None:
        raise ValueError(
            f"`dataset` must have class labels for a class-conditional network, got none in {data.name!r}"
            " (of a Hub data set: a column `label` of integers, or what --label-column names)."
        )
    if method.cost is not None and not workers.rank:
        print(f"{method.name}: {method.cost}".format(dimensions=images[0].numel()), file=sys.stderr)
    journal = journal_beside(output, arguments.restart and not workers.rank)
    context = {"checkpoint": arguments.checkpoint, "revision": arguments.revision, "quantized": arguments.quantize}
    context |= {} if arguments.network_kwargs is None else {"network_kwargs": arguments.network_kwargs}
    report = evaluate(
        pipe,
        images,
        context=context | data_settings(data),
        overridden=overridden,
        method=method.name,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_inference_steps=arguments.num_inference_steps,
        class_labels=labels_for(pipe, data),
        clip_sample=arguments.clip_sample,
        max_images=arguments.max_images,
        image_seed=arguments.image_seed,
        shard=shard,
        buffer_bytes=int(arguments.buffer_mb * 2**20),
        float32_unet=float32_unet,
        journal=journal,
        workers=workers,
        **options,
    )
    if workers.rank:
        return
    write_outputs(report, output, arguments.plot, arguments.scores)
    if journal is not None:
        journal.unlink(missing_ok=True)
    uniform = {"uniform over the levels": math.log2(pipe.scheduler.config.num_pixel_levels)}
    print(format_report(report, uniform))
    if workers.count > 1:
        print(f"{workers.count} processes")
    print(f"report: {output}")


def check_options(method: Method, options: dict[str, Any]) -> None:
    r"""Raise `ValueError` for options of a method that nothing could be done with."""
    if method.name == "sampled":
        check_rules(**options)
    for option in method.options:
        if option.positive:
            check_positive(option.name, options[option.name])


def check_wanted(arguments: argparse.Namespace, method: Method, shard: tuple[int, int]) -> None:
    r"""Raise `ValueError` for a plot, scores, a shard, steps or half precision that a method is not for."""
    method.check_shard(shard)
    if arguments.max_images is not None and arguments.max_images <= shard[0]:
        raise ValueError(f"`shard` must have one of the {arguments.max_images} images, got {arguments.shard!r}.")
    if not method.takes_half and DTYPES[arguments.dtype] != "float32":
        raise ValueError(f"`dtype` must be float32 with --method {method.name}, got {arguments.dtype!r}.")
    if arguments.num_inference_steps is not None and arguments.num_inference_steps < method.min_steps:
        steps = arguments.num_inference_steps
        raise ValueError(f"`num_inference_steps` must be at least {method.min_steps} with --method {method.name}, got {steps}.")
    if arguments.plot is not None and method.columns is not None:
        raise ValueError(f"`plot` draws the terms of the bound, and there are none with --method {method.name}.")
    # A method that can evaluate every image has a score for each only where it does.
    on_demand = any(option.name == "evaluations_per_image" for option in method.options)
    if arguments.scores is not None and on_demand and arguments.evaluations_per_image is None:
        raise ValueError("`scores` needs a score for each image: give --per-image K, or another method.")


def parse_shard(text: str) -> tuple[int, int]:
    r"""(index, count) of `"I/N"`, or `ValueError`."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not int(parts[0]) < int(parts[1]):
        raise ValueError(f"`shard` must be I/N with 0 <= I < N, got {text!r}.")
    return int(parts[0]), int(parts[1])


def override(pipe: "VLBDDPMPipeline", arguments: argparse.Namespace) -> list[str]:
    r"""Give a pipeline's scheduler what the command says; returns what of the checkpoint was overridden."""
    overridden = set_levels(pipe, arguments.num_pixel_levels)
    if arguments.no_calibration and pipe.scheduler.config.calibration is not None:
        from ..scheduling_vlb_ddpm import VLBDDPMScheduler

        pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, calibration=None)
        overridden.append("calibration")
    return overridden
