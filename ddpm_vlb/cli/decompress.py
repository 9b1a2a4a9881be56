r"""`ddpm-vlb decompress`."""

import argparse
import io
from pathlib import Path
from typing import Any

from ..files import check_output_path, fill_folder, write_atomically, write_png
from .common import check_library, check_new_folder, hold, load_pipeline
from .options import DEFAULT, add_checkpoint_options, add_network_kwargs_option, new_command


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "decompress",
        help="the images of a file that `compress` made",
        description="Give the images back, to the last bit or not at all: a damaged file, another model or a machine that"
        " computes the network too differently is an error. Pictures go to a folder under the names that they had; what is no"
        " picture (other than 8 bits, grey or RGB) goes to an npz file.",
        examples=("runs/quickstart/pipeline digits.vlb --output digits.npz", "calibrated photos.vlb --output photos"),
    )
    add_checkpoint_options(parser)
    parser.add_argument("file", metavar="FILE.vlb", help="what `compress` wrote")
    parser.add_argument("--output", required=True, metavar="FOLDER_OR_FILE.npz", help="where the images go")
    parser.add_argument("--batch-size", type=int, default=16, help=f"images per network call {DEFAULT}")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    add_network_kwargs_option(parser)
    parser.set_defaults(dtype="float32", channels_last=False, compile=False)
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `read`."""
    if arguments.batch_size < 1:
        raise ValueError(f"`batch_size` must be a positive integer, got {arguments.batch_size}.")
    check_library("decompress", "constriction")
    if not Path(arguments.file).is_file():
        raise ValueError(f"`file` must be a .vlb file that exists, got {arguments.file!r}.")
    to_file = arguments.output.endswith(".npz")
    output = check_output_path(arguments.output) if to_file else check_new_folder(arguments.output)
    with hold(output):
        read(arguments, output, to_file)


def read(arguments: argparse.Namespace, output: Path, to_file: bool) -> None:
    r"""Decompress, write, print, once nobody else writes there."""
    from ..codec import decompress_blocks, read_info
    from ..progress import progress_bar

    path = Path(arguments.file)
    with path.open("rb") as file:
        header, told = read_info(file)  # all checksums, before anything is computed
    count = sum(block.num_images for _, block in told)
    if not to_file and (header.num_pixel_levels != 256 or header.shape[0] not in (1, 3)):
        raise ValueError(
            f"`output` must be an npz file for images of {header.shape[0]} channels and {header.num_pixel_levels} levels, got"
            f" {arguments.output!r}."
        )
    pipe, _ = load_pipeline(arguments, arguments.checkpoint, arguments.revision)
    with path.open("rb") as file, progress_bar(count, desc="decompress", unit="image") as bar:
        blocks = decompress_blocks(pipe, file, progress=bar.update, batch_size=arguments.batch_size)
        (_write_npz if to_file else _write_folder)(blocks, output)
    print(f"{count} images: {output}")


def _write_npz(blocks, output: Path) -> None:
    import numpy as np

    images, labels, names = [], [], []
    for _, levels, block in blocks:
        dtype = np.uint8 if levels.dtype.itemsize == 1 else np.uint16
        images.append(levels.permute(0, 2, 3, 1).numpy().astype(dtype))
        labels += block.labels or []
        names += block.names or []
    arrays: dict[str, Any] = {"images": np.concatenate(images)}
    arrays |= {name: np.array(values) for name, values in (("labels", labels), ("names", names)) if values}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(output, buffer.getvalue())


def _write_folder(blocks, output: Path) -> None:
    from PIL import Image

    with fill_folder(output) as folder:
        for first, levels, block in blocks:
            names = block.names or [f"{first + index:08d}" for index in range(len(levels))]
            for index, (name, image) in enumerate(zip(names, levels.permute(0, 2, 3, 1).numpy())):
                place = folder / safe_name(name, first + index)
                while place.exists():  # two names that lead to one place: neither picture is lost
                    place = place.with_name(f"{place.stem}-{first + index:08d}.png")
                place.parent.mkdir(parents=True, exist_ok=True)
                write_png(place, Image.fromarray(image[..., 0] if image.shape[2] == 1 else image))


def safe_name(name: str, index: int) -> Path:
    r"""A PNG file's name inside a folder, whatever a file says; names that lead out of it are replaced by the number."""
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or not path.name or any(part in ("..", "") or ":" in part or "\0" in part for part in path.parts):
        return Path(f"{index:08d}.png")
    return path if path.suffix.lower() == ".png" else path.with_name(f"{path.name}.png")
