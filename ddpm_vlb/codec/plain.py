r"""Images without a network: the bytes that bits-back needs to begin with.

They are the first images of a block, by whichever of some general tools is shortest. A stream of theirs is no sequence of fair
coins: it is mixed with one that both sides know, so that latents popped from it are as the model has them.
"""

import bz2
import hashlib
import lzma
import math
import zlib
from typing import Any

import numpy as np
import torch

from .container import Reader, write_integer
from .stack import DamagedFile

FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0, "dict_size": 2**24}]


def pack(levels: torch.Tensor, num_levels: int, key: bytes) -> np.ndarray:
    r"""Images `(M, C, H, W)` as uint32 words; `key` mixes them."""
    body = _bytes(levels, num_levels)
    bits = (num_levels - 1).bit_length()
    raw = np.unpackbits(np.frombuffer(body, np.uint8).reshape(-1, _width(num_levels)), axis=1, bitorder="little")[:, :bits]
    ways = [
        np.packbits(raw, bitorder="little").tobytes(),
        zlib.compress(body, 9, -15),
        lzma.compress(body, lzma.FORMAT_RAW, filters=FILTERS),
        bz2.compress(body, 9),
    ]
    best = min(range(len(ways)), key=lambda way: len(ways[way]))
    message = write_integer(len(ways[best]) * len(ways) + best) + ways[best]
    padded = message + bytes(-len(message) % 4)
    return np.frombuffer(_mixed(padded, key), "<u4").astype(np.uint32)


def unpack(words: np.ndarray, shape: tuple[int, ...], num_levels: int, key: bytes) -> torch.Tensor:
    r"""The images of `shape` that were packed, or `DamagedFile`."""
    reader = Reader(_mixed(words.astype("<u4").tobytes(), key))
    length, way = divmod(reader.integer("bytes", 0, 2**40), 4)
    body, size = reader.bytes(length), math.prod(shape) * _width(num_levels)
    try:
        if way == 0:
            bits = (num_levels - 1).bit_length()
            raw = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")[: math.prod(shape) * bits].reshape(-1, bits)
            found = np.packbits(raw, axis=1, bitorder="little").tobytes()
        else:
            # No more than the images are: a small stream can stand for much.
            tool = (
                zlib.decompressobj(-15),
                lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS),
                bz2.BZ2Decompressor(),
            )[way - 1]
            found = tool.decompress(body, size + 1)
    except (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DamagedFile(f"`data` must hold its plain images, got bytes that are none: {error}") from error
    if len(found) != size:
        raise DamagedFile(f"`data` must hold {shape[0]} plain images, got {len(found)} of {size} bytes.")
    levels = np.frombuffer(found, "<u2" if _width(num_levels) == 2 else np.uint8).reshape(shape)
    return torch.from_numpy(levels.astype(np.uint8 if num_levels <= 256 else np.int32))


def _width(num_levels: int) -> int:
    return 1 if num_levels <= 256 else 2


def _bytes(levels: torch.Tensor, num_levels: int) -> bytes:
    return levels.numpy().astype("<u2" if _width(num_levels) == 2 else np.uint8).tobytes()


def _mixed(body: bytes, key: bytes) -> bytes:
    stream = hashlib.shake_256(key).digest(len(body))
    return np.bitwise_xor(np.frombuffer(body, np.uint8), np.frombuffer(stream, np.uint8)).tobytes()
