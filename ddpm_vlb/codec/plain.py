r"""Images without a network: the bytes that bits-back needs to begin with.

They are the first images of a block, by whichever is shortest of some general tools and of a small model: how often each level
was seen so far, beside dark, middling and bright neighbours. A stream of theirs is no sequence of fair coins: it is mixed with
one that both sides know, so that latents popped from it are as the model has them.
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
from .stack import DamagedFile, Stack, words_of_bytes, words_to_bytes

FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0, "dict_size": 2**24}]
MAX_COUNTED = 2**16  # values; the small model looks at them one by one
MAX_ALIKE = 64  # levels; where there are no more, a level that is seen makes its neighbours likelier


def begin(levels: torch.Tensor, num_levels: int, key: bytes) -> tuple[Stack, bool]:
    r"""A stack that holds images `(M, C, H, W)`, and whether the small model put them there; `key` mixes others."""
    body = levels.numpy().astype("<u2" if _width(num_levels) == 2 else np.uint8).tobytes()
    ways = [zlib.compress(body, 9, -15), lzma.compress(body, lzma.FORMAT_RAW, filters=FILTERS), bz2.compress(body, 9)]
    best = min(range(len(ways)), key=lambda way: len(ways[way]))
    message = write_integer(len(ways) * len(ways[best]) + best) + ways[best]
    stack = Stack(words_of_bytes(_mixed(message + bytes(-len(message) % 4), key)))
    if levels.numel() > MAX_COUNTED:
        return stack, False
    counted = _count(levels.numpy().astype(np.int64), num_levels)
    return (counted, True) if counted.num_bits <= stack.num_bits else (stack, False)


def finish(stack: Stack, is_counted: bool, shape: tuple[int, ...], num_levels: int, key: bytes) -> torch.Tensor:
    r"""The images of `shape` on a stack as `begin` left it, or `DamagedFile`."""
    dtype = np.uint8 if num_levels <= 256 else np.int32
    if is_counted:
        if math.prod(shape) > MAX_COUNTED:
            raise DamagedFile(f"`data` must hold at most {MAX_COUNTED} values that were counted, got {math.prod(shape)}.")
        return torch.from_numpy(_uncount(stack, shape, num_levels).astype(dtype))
    reader = Reader(_mixed(words_to_bytes(stack.unsealed()), key))
    length, way = divmod(reader.integer("bytes", 0, 2**40), 3)
    body, size = reader.take(length), math.prod(shape) * _width(num_levels)
    tools = (zlib.decompressobj(-15), lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS), bz2.BZ2Decompressor())
    try:
        found = tools[way].decompress(body, size + 1)  # no more than the images are: a small stream can stand for much
    except (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DamagedFile(f"`data` must hold its plain images, got bytes that are none: {error}") from error
    if len(found) != size:
        raise DamagedFile(f"`data` must hold {shape[0]} plain images, got {len(found)} of {size} bytes.")
    values = np.frombuffer(found, "<u2" if _width(num_levels) == 2 else np.uint8).reshape(shape)
    return torch.from_numpy(values.astype(dtype))


class _Counts:
    r"""How often levels were seen, beside neighbours to the left and above; counts are multiples of a quarter, and exact."""

    def __init__(self, num_levels: int):
        self.beside = np.full((9, num_levels), 2.0**-7)
        self.overall = np.full(num_levels, 2.0**-7)
        self._levels = num_levels

    def place(self, images: np.ndarray, n: int, c: int, i: int, j: int) -> int:
        r"""Which neighbours a value has."""
        left = int(images[n, c, i, j - 1]) if j else 0
        above = int(images[n, c, i - 1, j]) if i else 0
        most = self._levels - 1
        return (2 * left + most - 1) // most * 3 + (2 * above + most - 1) // most

    def weights(self, place: int) -> np.ndarray:
        r"""What the next value's probabilities are in proportion to."""
        return self.beside[place] + self.overall * (2 / self.overall.sum())

    def see(self, place: int, value: int) -> None:
        r"""Count a value."""
        for away in (-2, -1, 0, 1, 2) if self._levels <= MAX_ALIKE else (0,):
            if 0 <= value + away < self._levels:
                self.beside[place, value + away] += 2.0 ** -abs(away)
                self.overall[value + away] += 2.0 ** -abs(away)


def _count(images: np.ndarray, num_levels: int) -> Stack:
    counts, weights = _Counts(num_levels), []
    for place in np.ndindex(*images.shape):
        beside, value = counts.place(images, *place), int(images[place])
        weights.append(counts.weights(beside))
        counts.see(beside, value)
    stack = Stack()
    for value, given in zip(images.ravel()[::-1], reversed(weights)):  # the first is popped first
        stack.push_weighed(int(value), given)
    return stack


def _uncount(stack: Stack, shape: tuple[int, ...], num_levels: int) -> np.ndarray:
    counts, images = _Counts(num_levels), np.zeros(shape, np.int64)
    for place in np.ndindex(*shape):
        beside = counts.place(images, *place)
        images[place] = stack.pop_weighed(counts.weights(beside))
        counts.see(beside, int(images[place]))
    if stack.num_bits:
        raise DamagedFile(f"`data` must leave nothing once its images are there, got {stack.num_bits} bits.")
    return images


def _width(num_levels: int) -> int:
    return 1 if num_levels <= 256 else 2


def _mixed(body: bytes, key: bytes) -> bytes:
    stream = hashlib.shake_256(key).digest(len(body))
    return np.bitwise_xor(np.frombuffer(body, np.uint8), np.frombuffer(stream, np.uint8)).tobytes()
