r"""Sets of images: in memory, on the disk, as a stream, or brought onto another grid."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..pixel_grid import check_num_pixel_levels, quantize
from .levels import array_to_tensor, image_column, pil_to_array


class QuantizedImages:
    r"""A data set whose images are brought onto another grid as they are read; what `quantize_images` returns."""

    def __init__(self, source: Any, num_pixel_levels: int):
        self._source, self.num_pixel_levels = source, num_pixel_levels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> torch.Tensor:
        return quantize(self._source[index], self.num_pixel_levels, source_levels=self._source.num_pixel_levels)


def quantize_images(source: "ImageSet | StoredImages | StreamedImages", num_pixel_levels: int) -> Any:
    r"""A data set with each image brought onto the grid of `num_pixel_levels` levels by `quantize` when it is read."""
    check_num_pixel_levels(num_pixel_levels)
    if isinstance(source, StreamedImages):
        return source.quantized(num_pixel_levels)
    return QuantizedImages(source, num_pixel_levels)


@dataclass(frozen=True)
class ImageSet:
    r"""Images of a data set, as levels.

    Args:
        images: integer tensor `(N, C, H, W)`, uint8 or uint16.
        num_pixel_levels: number of levels that the source has (256 for 8-bit images, 17 for the digits).
        name: what was loaded.
        split: which part of it, where it has parts.
        labels: class labels, where the source has them.
    """

    images: torch.Tensor
    num_pixel_levels: int
    name: str
    split: str | None = None
    labels: torch.Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]

    def pixels(self, index: int) -> np.ndarray:
        r"""The pixels of image `index`, `(H, W, C)`."""
        return self.images[index].permute(1, 2, 0).numpy()


class StoredImages:
    r"""Images that stay where they are until one is asked for: what `open_images` returns for data that may not fit in memory.

    `source[i]` is image i as integer levels `(C, H, W)`, checked to be of the size and type of image 0. Attributes as
    `ImageSet`.

    Args:
        rows: file names, or a `datasets.Dataset`.
        read: the pixels of a row, `(H, W)` or `(H, W, C)`, and the row's name.
        name, split, labels: as `ImageSet`.
    """

    def __init__(self, rows: Sequence, read, name: str, split: str | None = None, labels: Sequence[int] | None = None):
        self._rows, self._read, self.name, self.split, self.labels = rows, read, name, split, labels
        if len(rows) == 0:
            raise ValueError(f"`dataset` must hold at least one image, got none in {name!r} (split {split!r}).")
        self._first, self._first_name = read(rows, 0)
        self.num_pixel_levels = image_set(self._first[None], name).num_pixel_levels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return array_to_tensor(self.array(index)[None], None)[0]

    def array(self, index: int) -> np.ndarray:
        r"""The pixels of image `index`, `(H, W)` or `(H, W, C)`."""
        array, name = self._read(self._rows, index)
        _check_alike(self._first, self._first_name, array, name)
        return array

    def pixels(self, index: int) -> np.ndarray:
        r"""As `array`, of any size and type: for those who bring images to one."""
        return self._read(self._rows, index)[0]

    def load(self, max_images: int | None = None) -> ImageSet:
        r"""The first `max_images` images, or all, in memory."""
        count = min(len(self), max_images or len(self))
        labels = None if self.labels is None else torch.tensor(self.labels[:count])
        return image_set(np.stack([self.array(index) for index in range(count)]), self.name, self.split, labels)


class StreamedImages:
    r"""Images of a data set that can only be read in its order, shuffled through a buffer.

    Args:
        dataset: a `datasets.IterableDataset` with an image column.
        name, split: as `ImageSet`.
        buffer_size: images in memory among which the next is drawn.
    """

    def __init__(self, dataset: Any, name: str, split: str | None = None, buffer_size: int = 1000):
        self.name, self.split, self._buffer_size = name, split, buffer_size
        self._dataset, self._column = dataset, image_column(dataset)
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"`dataset` must hold at least one image, got none in {name!r} (split {split!r}).")
        self._first = pil_to_array(first[self._column], "row 0")
        self.num_pixel_levels = self._source_levels = image_set(self._first[None], name).num_pixel_levels

    def quantized(self, num_pixel_levels: int) -> "StreamedImages":
        r"""The same stream, its images brought onto another grid by `quantize`."""
        other = copy.copy(self)
        other.num_pixel_levels = num_pixel_levels
        return other

    def __getitem__(self, index: int) -> torch.Tensor:
        if index != 0:
            raise ValueError(f"`index` must be 0 for a stream, of which only the first image is at hand, got {index}.")
        return self._levels(self._first)

    def split_off(self, count: int) -> tuple["StreamedImages", torch.Tensor]:
        r"""The stream without its first `count` images, and those `(count, C, H, W)`.

        Raises:
            ValueError: a stream of no more images than that.
        """
        first = [self._decode(row[self._column]) for row in self._dataset.take(count)]
        return StreamedImages(self._dataset.skip(count), self.name, self.split, self._buffer_size), torch.stack(first)

    def in_order(self) -> Iterator[Callable[[], torch.Tensor]]:
        r"""One pass in the stream's own order: for each image a function that decodes it to levels `(C, H, W)`."""
        import datasets

        decoder = datasets.Image()
        for row in self._dataset.cast_column(self._column, datasets.Image(decode=False)):
            yield lambda picture=row[self._column]: self._decode(decoder.decode_example(picture))

    def epoch(self, seed: int) -> Iterator[Callable[[], torch.Tensor]]:
        r"""One pass in the order that `seed` gives: for each image a function that decodes it to levels `(C, H, W)`, so that a
        process pays only for those it uses."""
        import datasets

        stored = self._dataset.cast_column(self._column, datasets.Image(decode=False))
        decoder = datasets.Image()
        for row in stored.shuffle(seed=seed % 2**31, buffer_size=self._buffer_size):
            yield lambda picture=row[self._column]: self._decode(decoder.decode_example(picture))

    def _decode(self, image: Image.Image) -> torch.Tensor:
        array = pil_to_array(image, "a row of the stream")
        _check_alike(self._first, "row 0", array, "a row of the stream")
        return self._levels(array)

    def _levels(self, array: np.ndarray) -> torch.Tensor:
        levels = array_to_tensor(array[None], None)[0]
        if self.num_pixel_levels == self._source_levels:
            return levels
        return quantize(levels, self.num_pixel_levels, source_levels=self._source_levels)


def image_set(array: np.ndarray, name: str, split: str | None = None, labels=None) -> ImageSet:
    r"""Arrays `(N, H, W)` or `(N, H, W, C)`, uint8 or uint16, and classes `(N,)` as a set of all the levels of their dtype.

    Raises:
        ValueError: anything else.
    """
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"`dataset` must hold uint8 or uint16 images, got dtype {array.dtype} in {name!r}.")
    if array.size == 0:
        raise ValueError(f"`dataset` must hold at least one image, got shape {array.shape} in {name!r}.")
    if array.ndim not in (3, 4):
        raise ValueError(f"`dataset` must hold images of shape (N, H, W) or (N, H, W, C), got {array.shape} in {name!r}.")
    return ImageSet(array_to_tensor(array, None), int(np.iinfo(array.dtype).max) + 1, name, split, labels)


def _check_alike(first: np.ndarray, first_name: str, array: np.ndarray, name: str) -> None:
    if (array.shape, array.dtype) != (first.shape, first.dtype):
        raise ValueError(
            f"`dataset` must hold images of one size and type: {first_name!r} is {first.shape} {first.dtype},"
            f" {name!r} is {array.shape} {array.dtype}."
        )
