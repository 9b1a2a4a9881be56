r"""`ddpm-vlb compress`."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..files import check_output_path, naming, write_atomically
from .common import check_library, hold, journal_beside, labels_for, load_pipeline, on_grid, open_data, set_levels
from .options import (
    add_checkpoint_options,
    add_data_options,
    add_network_options,
    add_restart_option,
    add_steps_option,
    check_data_options,
    check_model_options,
    check_positive,
    new_command,
)

BLOCK_SIZE = 1024


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "compress",
        help="images as a file that is as long as the bound says, and gives them back to the last bit",
        description="Code the images of a data set without loss, by bits-back coding along the model's chain. The rate that is"
        " printed counts every bit of the file. What was stopped goes on where the same command is given again. Few steps on"
        " a calibrated checkpoint (`calibrate`) are fast and nearly as short as many.",
        examples=(
            "runs/quickstart/pipeline --dataset digits --num-inference-steps 10 --output digits.vlb",
            "calibrated --dataset photos --num-inference-steps 25 --block-size 256 --output photos.vlb",
        ),
    )
    add_checkpoint_options(parser)
    add_steps_option(parser)
    add_network_options(parser)
    add_data_options(parser)
    parser.set_defaults(batch_size=16)
    parser.add_argument(
        "--block-size", type=int, default=BLOCK_SIZE, help="images that are decoded together (default: %(default)s)"
    )
    parser.add_argument("--images-only", action="store_true", help="keep neither labels nor names of files")
    add_restart_option(parser)
    parser.add_argument("--output", required=True, metavar="FILE.vlb", help="where the file goes, and FILE.vlb.json beside it")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `write`."""
    check_data_options(arguments)
    check_model_options(arguments, (arguments.checkpoint, arguments.revision))
    check_positive("block_size", arguments.block_size)
    for name in ("streaming", "image_seed", "compile", "channels_last"):
        if getattr(arguments, name) not in (None, False):
            raise ValueError(f"`{name}` must be left out to compress, got {getattr(arguments, name)}.")
    check_library("compress", "constriction")
    output = check_output_path(arguments.output)
    account = check_output_path(f"{arguments.output}.json")
    with hold(output, account):
        write(arguments, output, account)


def write(arguments: argparse.Namespace, output: Path, account: Path) -> None:
    r"""Compress, write, print, once nobody else writes there."""
    from ..codec import compress
    from ..progress import progress_bar

    _, data = open_data(arguments)
    pipe, _ = load_pipeline(arguments, arguments.checkpoint, arguments.revision)
    set_levels(pipe, arguments.num_pixel_levels)
    images: Any = on_grid(data, pipe, arguments.quantize)
    count = min(len(images), arguments.max_images or len(images))
    labels, names = getattr(images, "labels", None), getattr(images, "names", None)
    classes: Any = labels_for(pipe, images)
    kept = None if arguments.images_only or classes is not None or labels is None else [int(label) for label in labels[:count]]
    # What is done so far lies beside the output, block after block.
    journal = journal_beside(output, arguments.restart)
    if journal is None:
        raise ValueError(f"`output` must be a file, got {arguments.output!r}.")
    journal.touch()
    with _begun(journal) as file, progress_bar(count, desc="compress", unit="image") as bar:
        summary = compress(
            pipe,
            _First(images, count),
            num_inference_steps=arguments.num_inference_steps,
            class_labels=None if classes is None else classes[:count],
            labels=kept,
            names=None if arguments.images_only or names is None else list(names)[:count],
            batch_size=arguments.batch_size,
            block_size=arguments.block_size,
            file=file,
            progress=bar.update,
        )
    journal.replace(output)
    size = output.stat().st_size
    said = {"num_images": count, "file_bytes": size, "bits_per_dim": 8 * size / (count * images[0].numel())}
    if summary.num_images == count:  # of a run that went on, the account is of a part
        said = summary.as_dict()
    write_atomically(account, (json.dumps(said, indent=2) + "\n").encode())
    print(format_account(said))
    print(f"file: {output}, account: {account}")


@contextmanager
def _begun(journal: Path) -> Iterator[BinaryIO]:
    r"""The journal, to be gone on with; nothing is left of one in which nothing stands."""
    try:
        with naming(journal), journal.open("r+b") as file:
            yield file
    except BaseException:
        if journal.exists() and not journal.stat().st_size:
            journal.unlink()
        raise


def format_account(said: dict) -> str:
    r"""Lines of what a file took."""
    lines = [f"{said['bits_per_dim']:.4f} bits/dim: {said['file_bytes']} bytes for {said['num_images']} images, all counted"]
    if said.get("bound") is not None:
        lines.append(f"bound {said['bound']:.4f}, net {said['net_bits_per_dim']:.4f} bits/dim; beyond the bound:")
        lines += [f"  {bits:+.5f} {cause}" for cause, bits in said["overhead"].items()]
    elif "num_plain" in said:
        lines.append("too few images, or too poor a model, for bits-back to pay: they are coded without the network")
    return "\n".join(lines)


class _First:
    r"""The first images of a data set."""

    def __init__(self, images, count: int):
        self._images, self._count = images, count
        self.num_pixel_levels = images.num_pixel_levels

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        return self._images[index]
