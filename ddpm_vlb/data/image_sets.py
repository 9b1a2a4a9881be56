r"""Sets of images: in memory, on the disk, as a stream, or brought onto another grid."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..pixel_grid import check_num_pixel_levels, quantize
from .levels import array_to_tensor, pil_to_array
from .transforms import Transform


class QuantizedImages:
    r"""A data set whose images are brought onto another grid as they are read; what `quantize_images` returns."""

    def __init__(self, source: Any, num_pixel_levels: int):
        self._source, self.num_pixel_levels = source, num_pixel_levels
        self.name, self.labels, self.names = source.name, source.labels, getattr(source, "names", None)
        self.settings = source.settings

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
        settings: how it was read, as far as a report must say so: the steps of a `Transform`, the names of columns.
    """

    images: torch.Tensor
    num_pixel_levels: int
    name: str
    split: str | None = None
    labels: torch.Tensor | None = field(default=None, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]

    def transformed(self, transform: Transform) -> "ImageSet":
        r"""The images after the steps of a `Transform`.

        Raises:
            ValueError: images that are not 8-bit grey or RGB; as the `Transform`.
        """
        if not transform.settings:
            return self
        channels = self.images.shape[1]
        if self.num_pixel_levels != 256 or channels not in (1, 3):
            raise ValueError(
                f"`{next(iter(transform.settings))}` must be left out for images that are not 8-bit grey or RGB, got"
                f" {self.num_pixel_levels} levels and {channels} channels in {self.name!r}."
            )
        arrays = (self.images[:, 0] if channels == 1 else self.images.permute(0, 2, 3, 1)).numpy()
        pictures = (Image.fromarray(np.ascontiguousarray(array)) for array in arrays)
        changed = [pil_to_array(picture, f"image {index}", transform) for index, picture in enumerate(pictures)]
        for index, array in enumerate(changed):
            _check_alike(changed[0], "image 0", array, f"image {index}")
        return replace(self, images=array_to_tensor(np.stack(changed), None), settings={**self.settings, **transform.settings})

    def pixels(self, index: int) -> np.ndarray:
        r"""The pixels of image `index`, `(H, W, C)`."""
        return self.images[index].permute(1, 2, 0).numpy()


class StoredImages:
    r"""Images that stay where they are until one is asked for: what `open_images` returns for data that may not fit in memory.

    `source[i]` is image i as integer levels `(C, H, W)`, checked to be of the size and type of image 0. Attributes as
    `ImageSet`.

    Args:
        rows: file names, or a `datasets.Dataset`.
        read: from rows and a place among them an image, a PIL one or its pixels `(H, W)` or `(H, W, C)`, and its name.
        name, split, labels, settings: as `ImageSet`.
        names: of the images, where they have any.
        transform: what is done to each image first.
    """

    def __init__(
        self,
        rows: Sequence,
        read: Callable[[Any, int], tuple[Image.Image | np.ndarray, str]],
        name: str,
        split: str | None = None,
        labels: Sequence[int] | None = None,
        names: Sequence[str | None] | None = None,
        settings: Mapping[str, Any] | None = None,
        transform: Transform | None = None,
    ):
        self._rows, self._read, self.name, self.split, self.labels, self.names = rows, read, name, split, labels, names
        self._columns, self._transform = settings or {}, Transform() if transform is None else transform
        if len(rows) == 0:
            raise ValueError(f"`dataset` must hold at least one image, got none in {name!r} (split {split!r}).")

    def transformed(self, transform: Transform) -> "StoredImages":
        r"""The same images, each after the steps of a `Transform` when it is read."""
        whose = self.name, self.split, self.labels, self.names, self._columns
        return StoredImages(self._rows, self._read, *whose, transform)

    @property
    def settings(self) -> dict[str, Any]:
        r"""As `ImageSet`."""
        return {**self._columns, **self._transform.settings}

    @cached_property
    def _first(self) -> tuple[np.ndarray, str]:
        return self._array(0)

    @cached_property
    def num_pixel_levels(self) -> int:
        r"""As `ImageSet`; of image 0, which is read for it."""
        return image_set(self._first[0][None], self.name).num_pixel_levels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return array_to_tensor(self.array(index)[None], None)[0]

    def array(self, index: int) -> np.ndarray:
        r"""The pixels of image `index`, `(H, W)` or `(H, W, C)`."""
        array, name = self._array(index)
        _check_alike(*self._first, array, name)
        return array

    def _array(self, index: int) -> tuple[np.ndarray, str]:
        picture, name = self._read(self._rows, index)
        if isinstance(picture, np.ndarray):
            if not self._transform.settings:
                return picture, name
            picture = Image.fromarray(picture)
        return pil_to_array(picture, name, self._transform), name

    def pixels(self, index: int) -> np.ndarray:
        r"""As `array`, of any size and type: for those who bring images to one."""
        return self._array(index)[0]

    def load(self, max_images: int | None = None) -> ImageSet:
        r"""The first `max_images` images, or all, in memory."""
        count = min(len(self), max_images or len(self))
        labels = None if self.labels is None else torch.tensor(self.labels[:count])
        images = image_set(np.stack([self.array(index) for index in range(count)]), self.name, self.split, labels)
        return replace(images, settings=self.settings)


class StreamedImages:
    r"""Images of a data set that can only be read in its order, shuffled through a buffer.

    Args:
        rows: a `datasets.IterableDataset`.
        read: from a row and its name its picture.
        name, split, settings: as `ImageSet`.
        buffer_size: images in memory among which the next is drawn.
        transform: what is done to each image first.
    """

    def __init__(
        self,
        rows: Any,
        read: Callable[[Any, str], Image.Image],
        name: str,
        split: str | None = None,
        buffer_size: int = 1000,
        settings: Mapping[str, Any] | None = None,
        transform: Transform | None = None,
    ):
        self.name, self.split, self._buffer_size = name, split, buffer_size
        self._rows, self._read, self._transform = rows, read, Transform() if transform is None else transform
        self.settings = {**(settings or {}), **self._transform.settings}
        self._first = self._array(self._first_row(), "row 0")
        self.num_pixel_levels = self._source_levels = image_set(self._first[None], name).num_pixel_levels

    def _first_row(self) -> Any:
        first = next(iter(self._rows), None)
        if first is None:
            raise ValueError(f"`dataset` must hold at least one image, got none in {self.name!r} (split {self.split!r}).")
        return first

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
        first = [self._decode(row) for row in self._rows.take(count)]
        rest = copy.copy(self)
        rest._rows = self._rows.skip(count)
        rest._first = rest._array(rest._first_row(), "row 0")
        return rest, torch.stack(first)

    def in_order(self) -> Iterator[Callable[[], torch.Tensor]]:
        r"""One pass in the stream's own order: for each image a function that decodes it to levels `(C, H, W)`."""
        for row in self._rows:
            yield partial(self._decode, row)

    def epoch(self, seed: int) -> Iterator[Callable[[], torch.Tensor]]:
        r"""One pass in the order that `seed` gives: for each image a function that decodes it to levels `(C, H, W)`, so that a
        process pays only for those it uses."""
        for row in self._rows.shuffle(seed=seed % 2**31, buffer_size=self._buffer_size):
            yield partial(self._decode, row)

    def _array(self, row: Any, name: str) -> np.ndarray:
        return pil_to_array(self._read(row, name), name, self._transform)

    def _decode(self, row: Any) -> torch.Tensor:
        array = self._array(row, "a row of the stream")
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
