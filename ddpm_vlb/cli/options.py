r"""Options that several commands have, and what can be said of their values before anything heavy is imported."""

import argparse
import math
import os
import textwrap
from collections.abc import Iterable

from ..likelihoods.method import Option
from ..likelihoods.methods import METHODS

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPES |= {f"autocast-{name}": f"autocast-{DTYPES[name]}" for name in ("bfloat16", "float16", "bf16", "fp16")}
BATCH_SIZE = 64
BUFFER_MB = 1024
NUM_SAMPLES = 16
DEFAULT = "(default: %(default)s)"


def new_command(commands, name: str, *, help: str, description: str, examples: Iterable[str]) -> argparse.ArgumentParser:
    r"""A command's parser.

    Args:
        commands: what `add_subparsers` returned.
        name: of the command.
        help: its line in `ddpm-vlb --help`.
        description: what it does, below its usage.
        examples: command lines, without `ddpm-vlb` and the name.
    """
    return commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, 100),
        epilog="\n  ".join(["examples:", *(f"ddpm-vlb {name} {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_options(parser, options: Iterable[Option]) -> None:
    r"""Flags for options of likelihood methods. What is not given stays `None`: the method has the default."""
    for option in options:
        default = "" if option.default is None else f" (default: {option.default})"
        parser.add_argument(
            option.argument,
            dest=option.name,
            type=option.kind,
            choices=option.choices,
            metavar=option.metavar,
            help=(option.help + default).replace("%", "%%"),
        )


def add_stopping_options(parser) -> None:
    r"""When a sampled estimate is good enough."""
    add_options(parser, [option for option in METHODS["sampled"].options if option.name in ("target_se", "max_evaluations")])


def add_data_options(parser, default_split: str = "test") -> None:
    r"""Which images are looked at, on which grid, and how they are read."""
    parser.add_argument(
        "--dataset", required=True, help="digits, a folder of images, an idx or npz file, or a data set of the Hub"
    )
    parser.add_argument("--split", help=f"part of the data set (default: {default_split}, where there are parts)")
    parser.set_defaults(default_split=default_split)
    parser.add_argument("--max-images", type=int, help="the first MAX_IMAGES only")
    parser.add_argument("--image-seed", type=int, metavar="SEED", help="MAX_IMAGES at random by this seed, not the first")
    parser.add_argument("--convert", choices=("L", "RGB"), help="bring images to this colour first")
    parser.add_argument("--resize", type=int, metavar="N", help="then their shorter side to N pixels (bilinear)")
    parser.add_argument("--center-crop", type=int, metavar="N", help="then cut N x N pixels out of the middle")
    parser.add_argument("--image-column", help="of a Hub data set (default: its only column of images)")
    parser.add_argument("--label-column", help="of a Hub data set, integers (default: label, where it holds integers)")
    parser.add_argument("--streaming", action="store_true", help="read the data set as a stream; no class labels")
    parser.add_argument("--num-pixel-levels", type=int, help="levels of the model's grid (default: as its scheduler says)")
    parser.add_argument(
        "--quantize", action="store_true", help="bring the images onto the model's grid first; changes what is scored"
    )
    parser.add_argument(
        "--buffer-mb", type=float, default=BUFFER_MB, help=f"memory for images, of a sampled evaluation {DEFAULT}"
    )
    parser.add_argument(
        "--batch-size",
        type=integer_or_auto,
        default=BATCH_SIZE,
        metavar="N",
        help=f"evaluations that go together; auto: as many as fit into memory {DEFAULT}",
    )
    parser.add_argument("--expected-processes", type=int, help="fail unless so many processes take part")


def integer_or_auto(text: str) -> int | str:
    r"""Of `--batch-size`."""
    return text if text == "auto" else int(text)


def add_checkpoint_options(parser) -> None:
    r"""The one checkpoint that a command is about."""
    parser.add_argument("checkpoint", metavar="FOLDER_OR_REPO", help="a pipeline's folder, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")


def add_steps_option(parser) -> None:
    r"""The model of K steps in place of all."""
    parser.add_argument("--num-inference-steps", type=int, metavar="K", help="the K-step model (default: all steps)")


def add_network_options(parser) -> None:
    r"""How the network is run."""
    parser.add_argument("--seed", type=int, default=0, help=f"a non-negative integer below 2^63 {DEFAULT}")
    words = f"of the network; autocast-bf16 leaves its weights in float32 {DEFAULT}"
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help=words)
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--channels-last", action="store_true", help="another layout of the network's memory; can be faster")
    parser.add_argument("--compile", action="store_true", help="compile the network first (torch.compile); can be faster")
    add_network_kwargs_option(parser)


def add_network_kwargs_option(parser, suffix: str = "", of: str = "") -> None:
    r"""What the network is given besides: `given_to_network` reads it."""
    parser.add_argument(
        f"--network-kwargs{suffix}",
        metavar="FILE",
        help=f"{of}safetensors with what the network is given besides, such as encoder_hidden_states; a row for each class",
    )
    parser.add_argument(
        f"--prompt{suffix}",
        action="append",
        metavar="TEXT",
        help=f"{of}what the images show, through the checkpoint's text encoder; once for each class, where there are several",
    )


def add_restart_option(parser) -> None:
    r"""What becomes of the journal of an evaluation that was stopped."""
    parser.add_argument("--restart", action="store_true", help="begin anew: remove the journal of a run that was stopped")


def add_report_options(parser) -> None:
    r"""Where a report goes, and what is made of it."""
    parser.add_argument("--output", default="report.json", help=f"where the report goes {DEFAULT}")
    parser.add_argument("--plot", help="where a plot of the terms goes, a PNG file")
    parser.add_argument("--scores", help="where the images' scores go, with their names and labels: .csv or .parquet")


def add_push_options(parser, message: str) -> None:
    r"""How something goes to the Hub."""
    parser.add_argument("repository", metavar="REPO", help="owner/name; made where it does not exist")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="refused where REPO exists and is not so")
    parser.add_argument("--revision", help="branch, made where it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--message", default=message, help=f"of the commit {DEFAULT}")
    parser.add_argument("--token", help="default: the one that is logged in, or HF_TOKEN")


def check_data_options(arguments: argparse.Namespace) -> None:
    r"""Raise `ValueError` for values of `add_data_options` that nothing could be done with."""
    for name in ("max_images", "expected_processes"):
        check_positive(name, getattr(arguments, name))
    if arguments.image_seed is not None:
        if arguments.max_images is None or arguments.streaming:
            rule = "left out with --streaming" if arguments.streaming else "given with --max-images"
            raise ValueError(f"`image_seed` must be {rule}, got {arguments.image_seed}.")
        if not 0 <= arguments.image_seed < 2**63:
            raise ValueError(f"`image_seed` must lie in [0, 2^63), got {arguments.image_seed}.")
    for name in ("resize", "center_crop"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {getattr(arguments, name)}.")
    if arguments.label_column is not None and arguments.streaming:
        raise ValueError(f"`label_column` must be left out with --streaming, got {arguments.label_column!r}.")
    if arguments.batch_size != "auto" and arguments.batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer, got {arguments.batch_size}.")
    if not 0 < arguments.buffer_mb < math.inf:
        raise ValueError(f"`buffer_mb` must be a positive number, got {arguments.buffer_mb}.")
    if arguments.num_pixel_levels is not None and not 2 <= arguments.num_pixel_levels <= 65536:
        raise ValueError(f"`num_pixel_levels` must be an integer from 2 to 65536, got {arguments.num_pixel_levels}.")
    if arguments.streaming and (arguments.dataset == "digits" or os.path.isfile(arguments.dataset)):
        raise ValueError(f"`dataset` must be a folder or a data set of the Hub to be streamed, got {arguments.dataset!r}.")


def check_model_options(arguments: argparse.Namespace, *checkpoints: tuple[str, str | None]) -> None:
    r"""Raise `ValueError` for a seed, steps, a class, or pairs of a checkpoint and its revision that are of no use."""
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {arguments.seed}.")
    for suffix in ("", "_a", "_b"):
        check_positive(f"num_inference_steps{suffix}", getattr(arguments, f"num_inference_steps{suffix}", None))
        label = getattr(arguments, f"class_label{suffix}", None)
        if label is not None and label < 0:
            raise ValueError(f"`class_label{suffix}` must not be negative, got {label}.")
    for checkpoint, revision in checkpoints:
        if revision is not None and os.path.isdir(checkpoint):
            raise ValueError(f"`revision` must be left out for a folder, which has only one, got {revision!r}.")


def check_positive(name: str, value: int | None) -> None:
    r"""Raise `ValueError` for a count below 1; `None` is what was not given."""
    if value is not None and value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")
