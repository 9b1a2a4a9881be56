r"""What commands share."""

import argparse
import math
import os
import sys
from pathlib import Path

SAMPLES = "samples.png"


def load_pipeline(arguments: argparse.Namespace, checkpoint: str | None = None, revision: str | None = None, device=None):
    r"""The pipeline of a checkpoint, and, where its network is to be in half precision, the one in float32."""
    import copy

    import torch

    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

    checkpoint = arguments.checkpoint if checkpoint is None else checkpoint
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {arguments.seed}.")
    if revision is not None and os.path.isdir(checkpoint):
        raise ValueError(f"`revision` must be left out for a folder, which has only one, got {revision!r}.")
    revision = {} if revision is None else {"revision": revision}
    dtype = getattr(torch, DTYPES[arguments.dtype])
    try:
        device = torch.device(arguments.device or device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"`device` must be one that torch has here, got {arguments.device!r}: {reason}") from error
    pipe, float32_unet = VLBDDPMPipeline.from_pretrained(checkpoint, dtype=torch.float32, **revision).to(device), None
    if dtype != torch.float32:
        # Not diffusers' own `to`, which warns of modules that are to stay in float32 though there are none.
        float32_unet, pipe.unet = pipe.unet, torch.nn.Module.to(copy.deepcopy(pipe.unet), dtype)
    if arguments.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    if arguments.compile:
        pipe.unet.compile(dynamic=False)
    return pipe, float32_unet


def check_outputs(output: str, plot: str | None, scores: str | None) -> Path:
    from ..files import check_output_path
    from ..reports.show import check_scores_path

    paths = [check_output_path(path) for path in (output, plot, scores) if path is not None]
    if scores is not None:
        check_scores_path(scores)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"`output`, `plot` and `scores` must be different files, got {', '.join(map(str, paths))}.")
    return paths[0]


def write_outputs(report: dict, output: Path, plot: str | None, scores: str | None) -> None:
    from ..reports.show import plot_terms, write_report, write_scores

    write_report(report, output)
    for path, write in ((plot, plot_terms), (scores, write_scores)):
        if path is not None:
            write(report, path)


def set_levels(pipe, num_pixel_levels: int | None) -> list[str]:
    r"""Score on another grid than the scheduler's; what was overridden."""
    from ..scheduling_vlb_ddpm import VLBDDPMScheduler

    if num_pixel_levels in (None, pipe.scheduler.config.num_pixel_levels):
        return []
    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, num_pixel_levels=num_pixel_levels)
    return ["num_pixel_levels"]


def parse_shard(text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not int(parts[0]) < int(parts[1]):
        raise ValueError(f"`shard` must be I/N with 0 <= I < N, got {text!r}.")
    return int(parts[0]), int(parts[1])


def open_data(arguments: argparse.Namespace):
    r"""The processes of this run, and the data set."""
    from ..data.sources import open_images, stream_images
    from ..evaluation.run import Workers

    if arguments.max_images is not None and arguments.max_images < 1:
        raise ValueError(f"`max_images` must be at least 1, got {arguments.max_images}.")
    if not 0 < arguments.buffer_mb < math.inf:
        raise ValueError(f"`buffer_mb` must be a positive number, got {arguments.buffer_mb}.")
    workers = Workers()
    if arguments.expected_processes not in (None, workers.count):
        raise ValueError(
            f"`expected_processes` must be the {workers.count} that take part, got {arguments.expected_processes}."
        )
    if arguments.streaming:
        folder = Path(arguments.dataset)
        # A folder without a part of that name is one part, which datasets calls "train".
        default = arguments.default_split if not folder.is_dir() or (folder / arguments.default_split).is_dir() else "train"
        return workers, stream_images(arguments.dataset, arguments.split or default)
    return workers, open_images(arguments.dataset, arguments.split, arguments.default_split)


def on_grid(data, pipe, quantized: bool):
    r"""The images of a data set on the grid of a model, or `ValueError`."""
    from ..data.image_sets import quantize_images
    from ..data.levels import check_shape

    check_shape(data[0][None], pipe.network.channels, pipe.network.size)
    levels = pipe.scheduler.config.num_pixel_levels
    if quantized:
        return quantize_images(data, levels)
    if data.num_pixel_levels < levels:
        raise ValueError(
            f"`dataset` must have the {levels} levels of the model's grid, got {data.num_pixel_levels} levels in"
            f" {data.name!r}. Give --num-pixel-levels {data.num_pixel_levels} if the model was trained on that grid, or"
            " --quantize to bring the images onto the model's."
        )
    return data


def data_settings(data) -> dict:
    from ..reports.schema import public_name

    name = public_name(str(Path(data.name).resolve())) if Path(data.name).exists() else data.name
    return {"dataset": name, "split": data.split_name if hasattr(data, "split_name") else data.split}


def labels_for(pipe, data, label: int | None):
    r"""The class that was asked for, or else the images' own for a class-conditional network."""
    if label is not None or pipe.network.num_classes is None:
        return label
    return getattr(data, "labels", None)


def save_samples(pipe, num_images: int, seed: int, output: Path, **options) -> None:
    import io

    import torch

    from ..files import write_atomically
    from ..reports.show import image_grid

    images = pipe(batch_size=num_images, generator=torch.Generator().manual_seed(seed), **options).images
    buffer = io.BytesIO()
    image_grid(images).save(buffer, format="png")
    write_atomically(output, buffer.getvalue())


def check_new_folder(path: str) -> Path:
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"`output` must be a folder that does not exist yet, or an empty one, got {path!r}.")
    return folder


def load_folder(folder: Path):
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

    if not folder.is_dir():
        raise ValueError(f"`folder` must be a pipeline's folder, got {str(folder)!r}.")
    return VLBDDPMPipeline.from_pretrained(folder)


def card_pictures(folder: Path, report: dict | None, with_samples: bool) -> dict[str, bytes]:
    r"""The pictures of a card: the terms as the report says, and the samples that are there."""
    import tempfile

    from ..reports.show import plot_terms

    pictures = {}
    if report is not None and (None not in report["transitions"] or report.get("strata")):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                plot_terms(report, Path(temporary) / "terms.png")
                pictures["terms.png"] = (Path(temporary) / "terms.png").read_bytes()
            except ImportError as error:
                print(f"The card has no plot of the terms: {error}", file=sys.stderr)
    if with_samples and (folder / SAMPLES).is_file():
        pictures[SAMPLES] = (folder / SAMPLES).read_bytes()
    return pictures


DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
DTYPES |= {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def add_data_arguments(parser: argparse.ArgumentParser, default_split: str = "test") -> None:
    parser.add_argument(
        "--dataset", required=True, help="digits, a folder of images, an idx or npz file, or a data set of the Hub"
    )
    parser.add_argument("--split", help=f"part of the data set (default: {default_split}, where there are parts)")
    parser.set_defaults(default_split=default_split)
    parser.add_argument("--max-images", type=int, help="the first MAX_IMAGES only")
    parser.add_argument("--streaming", action="store_true", help="read the data set as a stream; no class labels")
    parser.add_argument("--num-pixel-levels", type=int, help="levels of the model's grid (default: as its scheduler says)")
    parser.add_argument(
        "--quantize", action="store_true", help="bring the images onto the model's grid first; changes what is scored"
    )
    parser.add_argument(
        "--buffer-mb", type=float, default=1024, help="memory for images, of a sampled evaluation (default: 1024)"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--expected-processes", type=int, help="fail unless so many processes take part")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="FOLDER_OR_REPO", help="a pipeline's folder, or its name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")
    parser.add_argument("--num-inference-steps", type=int, metavar="K", help="the K-step model (default: all steps)")
    add_network_arguments(parser)


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="a non-negative integer below 2^63")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the network")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--channels-last", action="store_true", help="another layout of the network's memory; can be faster")
    parser.add_argument("--compile", action="store_true", help="compile the network first (torch.compile); can be faster")


def add_push_arguments(parser: argparse.ArgumentParser, message: str) -> None:
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="refused where REPO exists and is not so")
    parser.add_argument("--revision", help="branch, made where it does not exist (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request")
    parser.add_argument("--message", default=message, help="of the commit")
    parser.add_argument("--token", help="default: the one that is logged in, or HF_TOKEN")
