r"""What commands share when they run. What imports torch is imported late: a command that is refused never waits for it."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_output_path, locked, png_bytes, write_png
from ..reports.schema import Report
from ..reports.show import check_scores_path, draw_terms, image_grid, plot_terms, write_report, write_scores
from .options import BATCH_SIZE, DTYPES

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

SAMPLES = "samples.png"


def load_pipeline(arguments: argparse.Namespace, checkpoint: str, revision: str | None = None, device=None, suffix: str = ""):
    r"""The pipeline of a checkpoint, and, where its network is to be in half precision, the one in float32."""
    import copy

    import torch

    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

    of_revision = {} if revision is None else {"revision": revision}
    autocast, _, name = DTYPES[arguments.dtype].rpartition("-")
    dtype = getattr(torch, name)
    try:
        device = torch.device(arguments.device or device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # read back, which "meta" refuses
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"`device` must be one that torch has here, got {arguments.device!r}: {reason}") from error
    how = {"dtype": torch.float32, **given_to_network(arguments, suffix), **of_revision}
    pipe, float32_unet = VLBDDPMPipeline.from_pretrained(checkpoint, **how).to(device), None
    if autocast:
        pipe.autocast = dtype
    elif dtype != torch.float32:
        # Not diffusers' own `to`, which warns of modules that are to stay in float32 though there are none.
        float32_unet, pipe.unet = pipe.unet, copy.deepcopy(pipe.unet)
        torch.nn.Module.to(pipe.unet, dtype=dtype)  # in place
    if arguments.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    if arguments.compile:
        pipe.unet.compile(dynamic=False)
    return pipe, float32_unet


def given_to_network(arguments: argparse.Namespace, suffix: str = "") -> dict:
    r"""Of `from_pretrained`'s arguments, what the network is given besides, or of two the one whose flags end in `suffix`;
    `ValueError` for what is no file of tensors."""
    names = ("prompt", "network_kwargs")
    own = [getattr(arguments, f"{name}{suffix}", None) for name in names]
    prompt, file = [getattr(arguments, name) for name in names] if own == [None, None] else own
    if prompt is not None and file is not None:
        raise ValueError(f"Only one of `prompt` and `network_kwargs` may be given, got {prompt} and {file!r}.")
    if file is None:
        return {} if prompt is None else {"prompt": prompt}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {"network_kwargs": load_file(file)}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"`network_kwargs` must be a file of safetensors, got {file!r}: {error}") from error


def load_folder(folder: Path, arguments: argparse.Namespace):
    r"""The pipeline of a folder, given what a command says, or `ValueError`."""
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a pipeline's folder, got {str(folder)!r}.")
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

    return VLBDDPMPipeline.from_pretrained(folder, **given_to_network(arguments))


def open_data(arguments: argparse.Namespace):
    r"""The processes of this run, and the data set."""
    from ..data.sources import open_images, stream_images
    from ..data.transforms import Transform
    from ..evaluation.run import Workers

    workers = Workers()
    if arguments.expected_processes not in (None, workers.count):
        raise ValueError(
            f"`expected_processes` must be the {workers.count} that take part, got {arguments.expected_processes}."
        )
    transform = Transform(arguments.convert, arguments.resize, arguments.center_crop)
    how = {"transform": transform, "image_column": arguments.image_column}
    if arguments.streaming:
        folder = Path(arguments.dataset)
        # A folder without a part of that name is one part, which datasets calls "train".
        default = arguments.default_split if not folder.is_dir() or (folder / arguments.default_split).is_dir() else "train"
        return workers, stream_images(arguments.dataset, arguments.split or default, **how)
    how["label_column"] = arguments.label_column
    return workers, open_images(arguments.dataset, arguments.split, arguments.default_split, **how)


def set_levels(pipe: "VLBDDPMPipeline", num_pixel_levels: int | None) -> list[str]:
    r"""Score on another grid than the scheduler's; what was overridden."""
    from ..scheduling_vlb_ddpm import VLBDDPMScheduler

    if num_pixel_levels in (None, pipe.scheduler.config.num_pixel_levels):
        return []
    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, num_pixel_levels=num_pixel_levels)
    return ["num_pixel_levels"]


def on_grid(data, pipe: "VLBDDPMPipeline", quantized: bool):
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
    r"""What a report says of a data set."""
    return {"dataset": data.name, "split": data.split}


def labels_for(pipe: "VLBDDPMPipeline", data, label: int | None = None):
    r"""The class that was asked for, or else the images' own for a class-conditional network."""
    if label is not None or pipe.network.num_classes is None:
        return label
    return getattr(data, "labels", None)


def check_outputs(output: str, plot: str | None, scores: str | None) -> Path:
    r"""The path of `output`; `ValueError` where one of the three cannot be written, or two are the same."""
    paths = [check_output_path(path) for path in (output, plot, scores) if path is not None]
    for name, path, library in (("plot", plot, "matplotlib"), ("scores", scores, "pyarrow")):
        if path is not None:
            check_library(name, library)
    if scores is not None:
        check_scores_path(scores)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"`output`, `plot` and `scores` must be different files, got {', '.join(map(str, paths))}.")
    return paths[0]


def check_library(name: str, library: str) -> None:
    r"""Raise `ValueError` where what an argument asks for needs a library that is not installed."""
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"`{name}` needs {library}: pip install {library}.")


def check_new_folder(path: str) -> Path:
    r"""A folder to make, or `ValueError` where there is something in its place."""
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"`output` must be a folder that does not exist yet, or an empty one, got {path!r}.")
    return folder


def hold(*outputs: str | Path | None):
    r"""`files.locked`, by the first of the processes for all of them."""
    first = int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0
    return locked(*outputs if first else ())


def journal_beside(output: Path, restart: bool) -> Path | None:
    r"""Where an evaluation keeps what is done so far, with nothing in it to `restart`; `None` beside a pipe or a device, where
    nobody would look for it."""
    if output.exists() and not output.is_file():
        return None
    journal = output.with_name(f"{output.name}.journal")
    if restart:
        journal.unlink(missing_ok=True)
    return journal


def write_outputs(report: Report, output: Path, plot: str | None, scores: str | None) -> None:
    r"""Write a report, and what is made of it."""
    write_report(report, output)
    for path, write in ((plot, plot_terms), (scores, write_scores)):
        if path is not None:
            write(report, path)


def draw_samples(
    pipe: "VLBDDPMPipeline",
    num_images: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
    class_labels: int | Sequence[int] | None = None,
    **options,
) -> list:
    r"""PIL images, each from a generator of its own: no picture depends on the batch size, beyond rounding, nor on the others.

    Args:
        pipe: a `VLBDDPMPipeline`.
        num_images: how many.
        seed: of all; image i has the generator of `mix(seed, i)`.
        batch_size: images per network call.
        class_labels: one for all, or one for each.
        options: of the pipeline's call.
    """
    import torch

    from ..noise import mix
    from ..progress import can_be_redrawn, progress_bar

    images = []
    if not can_be_redrawn():
        pipe.set_progress_bar_config(disable=True)
    lines = progress_bar(num_images, disable=can_be_redrawn(), desc="sampling", unit="image")
    for start in range(0, num_images, batch_size):
        numbers = range(start, min(start + batch_size, num_images))
        labels = [class_labels[number] for number in numbers] if isinstance(class_labels, Sequence) else class_labels
        generators = [torch.Generator().manual_seed(mix(seed, number)) for number in numbers]
        how = {"generator": generators, "class_labels": labels, "return_dict": False, **options}
        images += pipe(batch_size=len(numbers), **how)[0]
        lines.update(len(numbers))
    return images


def save_grid(images: list, path: Path) -> None:
    r"""Write images as one PNG file."""
    write_png(path, image_grid(images))


def card_pictures(folder: Path, report: Report | None, with_samples: bool) -> dict[str, bytes]:
    r"""The pictures of a card: the terms as the report says, and the samples that are there."""
    pictures = {}
    if report is not None and report.has_terms:
        try:
            pictures["terms.png"] = png_bytes(draw_terms(report))
        except ImportError as error:
            print(f"The card has no plot of the terms: {error}", file=sys.stderr)
    if with_samples and (folder / SAMPLES).is_file():
        pictures[SAMPLES] = (folder / SAMPLES).read_bytes()
    return pictures
