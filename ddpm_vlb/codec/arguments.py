r"""What `compress` and `decompress` ask of their arguments: nothing is written that could not be read."""

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

from .container import MAX_BLOCK_IMAGES, MAX_BLOCK_VALUES, MAX_DIMENSIONS, MAX_LABEL, MAX_NAME_BYTES, names_to_bytes


def check_sizes(shape: tuple[int, int, int], count: int, block_size: int) -> None:
    r"""Raise `ValueError` for images of (C, H, W), or blocks of them, that are larger than a file may say."""
    values = math.prod(shape)
    if values > MAX_DIMENSIONS:
        raise ValueError(f"`images` must have at most {MAX_DIMENSIONS} values each, got {shape}.")
    most = min(MAX_BLOCK_IMAGES, MAX_BLOCK_VALUES // values)
    if min(count, block_size) > most:
        raise ValueError(f"`block_size` must be at most {most} for images of {shape}, got {block_size}.")


def check_labels(labels: Sequence[int] | None, count: int) -> list[int] | None:
    r"""Labels as integers that a file can hold."""
    if labels is None:
        return None
    try:
        kept = [operator.index(label) for label in labels]
    except TypeError as error:
        raise ValueError(f"`labels` must be integers, got {reprlib.repr(labels)}.") from error
    if len(kept) != count:
        raise ValueError(f"`labels` must be one for each of {count} images, got {len(kept)}.")
    if not 0 <= min(kept) <= max(kept) <= MAX_LABEL:
        raise ValueError(f"`labels` must lie in [0, 2^62], got values from {min(kept)} to {max(kept)}.")
    return kept


def check_names(names: Sequence[str] | None, count: int) -> list[str] | None:
    r"""Names that a file can hold."""
    if names is None:
        return None
    kept = [str(name) for name in names]
    if len(kept) != count:
        raise ValueError(f"`names` must be one for each of {count} images, got {len(kept)}.")
    longest = max(kept, key=lambda name: len(names_to_bytes([name])))
    if len(names_to_bytes([longest])) > MAX_NAME_BYTES:
        raise ValueError(f"`names` must take at most {MAX_NAME_BYTES} bytes each, got {reprlib.repr(longest)}.")
    return kept


def check_image_numbers(images: Sequence[int] | slice | int, total: int) -> list[int]:
    r"""Numbers in [0, total), in the order in which they were asked for; one may be there twice."""
    refusal = f"`images` must be numbers of the {total} images of the file, got {images!r}."
    if isinstance(images, slice):
        wanted = list(range(total)[images])
    else:
        listed: list[Any] = list(images) if isinstance(images, Iterable) and getattr(images, "ndim", 1) else [images]
        # A mask would be read as numbers 0 and 1.
        if any(isinstance(n, bool) or "bool" in str(getattr(n, "dtype", "")) for n in listed):
            raise ValueError(refusal)
        try:
            wanted = [operator.index(number) for number in listed]
        except TypeError as error:
            raise ValueError(refusal) from error
    if not wanted or not all(-total <= number < total for number in wanted):
        raise ValueError(refusal)
    return [number % total for number in wanted]
