r"""`ddpm-vlb info`."""

import argparse
from pathlib import Path

from .options import new_command


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "info",
        help="what is in a file that `compress` made",
        description="Check every checksum of a file, and say what it holds, without its model.",
        examples=("digits.vlb",),
    )
    parser.add_argument("file", metavar="FILE.vlb", help="what `compress` wrote")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Read and print."""
    path = Path(arguments.file)
    if not path.is_file():
        raise ValueError(f"`file` must be a .vlb file that exists, got {arguments.file!r}.")

    from ..codec import read_info

    with path.open("rb") as file:
        header, blocks = read_info(file)
    count = sum(block.num_images for _, block in blocks)
    channels, height, width = header.shape
    rate = 8 * path.stat().st_size / (count * channels * height * width)
    grid = "" if header.inference_timesteps is None else f", timesteps {' '.join(map(str, header.inference_timesteps))}"
    print(f"images      {count} of {channels} x {height} x {width}, {header.num_pixel_levels} levels")
    print(f"rate        {rate:.4f} bits/dim, {path.stat().st_size} bytes")
    print(f"model       {header.digest.hex()}")
    print(f"steps       {header.num_steps}{grid}")
    print(f"guard band  2^-{header.band}")
    print(f"blocks      {len(blocks)}: {' '.join(str(block.num_images) for _, block in blocks[:16])}")
    print(f"labels      {'yes' if blocks[0][1].labels is not None else 'no'}{', told to the network' * header.has_classes}")
    print(f"names       {'yes' if blocks[0][1].names is not None else 'no'}")
