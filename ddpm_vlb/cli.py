r"""The command `ddpm-vlb`: score a checkpoint on a data set, or sample from it."""

import argparse
import math
import os
import sys
from collections.abc import Sequence

from . import __version__

# Imports of torch and diffusers wait until a command runs, so that `--help` is quick.

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def build_parser() -> argparse.ArgumentParser:
    r"""The command line and its options."""
    parser = argparse.ArgumentParser(prog="ddpm-vlb", description="Likelihoods of DDPM checkpoints, in bits/dim.")
    parser.add_argument("--version", action="version", version=f"ddpm-vlb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    evaluate = commands.add_parser("evaluate", help="the variational bound of a data set under a checkpoint")
    _add_model_arguments(evaluate)
    evaluate.add_argument(
        "--dataset", required=True, help="digits, a folder of images, an idx or npz file, or a data set of the Hub"
    )
    evaluate.add_argument("--split", help="part of the data set (default: test, where there are parts)")
    evaluate.add_argument("--max-images", type=int, help="score the first MAX_IMAGES only")
    evaluate.add_argument("--batch-size", type=int, default=64)
    evaluate.add_argument("--output", default="report.json", help="where the report goes (default: report.json)")
    evaluate.add_argument("--num-pixel-levels", type=int, help="levels of the model's grid (default: as its scheduler says)")
    evaluate.add_argument(
        "--quantize", action="store_true", help="bring the images onto the model's grid first; changes what is scored"
    )
    evaluate.add_argument("--clip-sample", action=argparse.BooleanOptionalAction, help="override the scheduler's clip_sample")
    evaluate.set_defaults(run=run_evaluate)

    sample = commands.add_parser("sample", help="images from a checkpoint, as one grid")
    _add_model_arguments(sample)
    sample.add_argument("--num-images", type=int, default=16)
    sample.add_argument("--class-label", type=int, help="class, for a class-conditional network")
    sample.add_argument("--output", default="samples.png", help="where the grid goes (default: samples.png)")
    sample.set_defaults(run=run_sample)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="FOLDER_OR_REPO", help="a pipeline's folder, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")
    parser.add_argument("--num-inference-steps", type=int, metavar="K", help="the K-step model (default: all steps)")
    parser.add_argument("--seed", type=int, default=0, help="a non-negative integer below 2^63")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the network")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")


def _load(arguments: argparse.Namespace):
    import torch

    from .pipeline_vlb_ddpm import VLBDDPMPipeline

    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {arguments.seed}.")
    if arguments.revision is not None and os.path.isdir(arguments.checkpoint):
        raise ValueError(f"`revision` must be left out for a folder, which has only one, got {arguments.revision!r}.")
    revision = {} if arguments.revision is None else {"revision": arguments.revision}
    dtype = getattr(torch, DTYPES[arguments.dtype])
    try:
        device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"`device` must be one that torch has here, got {arguments.device!r}: {reason}") from error
    pipe = VLBDDPMPipeline.from_pretrained(arguments.checkpoint, dtype=dtype, **revision)
    return pipe.to(device)


def run_evaluate(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb evaluate`."""
    import torch

    from .data import check_shape, load_images, quantize
    from .evaluation import format_report, make_report, write_report
    from .files import check_output_path
    from .scheduling_vlb_ddpm import VLBDDPMScheduler

    output = check_output_path(arguments.output)
    data = load_images(arguments.dataset, arguments.split, arguments.max_images)
    pipe = _load(arguments)
    if arguments.num_pixel_levels is not None:
        pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, num_pixel_levels=arguments.num_pixel_levels)
    levels = pipe.scheduler.config.num_pixel_levels
    check_shape(data.images, pipe.unet.config.in_channels, pipe.image_size)
    images = data.images
    if arguments.quantize:
        images = quantize(images, levels, source_levels=data.num_pixel_levels)
    elif data.num_pixel_levels < levels:
        raise ValueError(
            f"`dataset` must have the {levels} levels of the model's grid, got {data.num_pixel_levels} levels in"
            f" {data.name!r}. Give --num-pixel-levels {data.num_pixel_levels} if the model was trained on that grid, or"
            " --quantize to bring the images onto the model's."
        )
    conditional = getattr(pipe.unet.config, "num_class_embeds", None) is not None
    if conditional and data.labels is None:
        raise ValueError(f"`dataset` must have class labels for a class-conditional network, got none in {data.name!r}.")
    result = pipe.evaluate_nll(
        images,
        batch_size=arguments.batch_size,
        generator=torch.Generator().manual_seed(arguments.seed),
        num_inference_steps=arguments.num_inference_steps,
        class_labels=data.labels if conditional else None,
        clip_sample=arguments.clip_sample,
    )
    report = make_report(
        result,
        checkpoint=arguments.checkpoint,
        revision=arguments.revision,
        dataset=data.name,
        split=data.split,
        quantized=arguments.quantize,
    )
    write_report(report, output)
    print(format_report(report, {"uniform over the levels": math.log2(levels)}))
    print(f"report: {output}")


def run_sample(arguments: argparse.Namespace) -> None:
    r"""`ddpm-vlb sample`."""
    import io

    import torch

    from .evaluation import image_grid
    from .files import check_output_path, write_atomically

    if arguments.num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {arguments.num_images}.")
    output = check_output_path(arguments.output)
    pipe = _load(arguments)
    images = pipe(
        batch_size=arguments.num_images,
        generator=torch.Generator().manual_seed(arguments.seed),
        num_inference_steps=arguments.num_inference_steps,
        class_labels=arguments.class_label,
    ).images
    buffer = io.BytesIO()
    image_grid(images).save(buffer, format="png")
    write_atomically(output, buffer.getvalue())
    print(f"{len(images)} samples: {output}")


def main(argv: Sequence[str] | None = None) -> int:
    r"""Run a command line; returns the exit status: 2, with one line on stderr, for anything that the user can mend."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"ddpm-vlb {arguments.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
