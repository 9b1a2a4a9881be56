r"""Data sets in, pixel levels out: the bundled digits, folders of images, idx and npz files, data sets of the Hub.

Levels are taken literally (see `levels.py`). Bringing other images onto a model's grid changes the data and hence the
likelihood; `quantize` does it, as a step of its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import check_integer
from .frame import Block
from .image_sets import ImageSet, StoredImages, StreamedImages
from .levels import check_shape, images_to_levels
from .readers import FORMATS, load_dataset, open_hub


def load_images(source: str | Path, split: str | None = None, max_images: int | None = None) -> ImageSet:
    r"""Load a data set into memory.

    Args:
        source: `"digits"` (scikit-learn's 8 x 8 digits, 17 levels), a folder of images, an idx file (also gzipped, as
            MNIST's), an npz file with an array `images` `(N, H, W[, C])`, or the name of a data set of the Hub.
        split: the part to load, by default `"test"` where there are parts: of the digits, of a data set of the Hub, of a
            folder with a sub-folder of that name. idx and npz files have no parts.
        max_images: at most this many, from the first.

    Raises:
        ValueError: a source that is missing, damaged, empty, or has no such split; images that differ in size or are not 8-bit
            or 16-bit grey or 8-bit RGB.
    """
    if max_images is not None and check_integer("max_images", max_images) < 1:
        raise ValueError(f"`max_images` must be at least 1, got {max_images}.")
    loaded = open_images(source, split)
    if isinstance(loaded, StoredImages):
        return loaded.load(max_images)
    labels = None if loaded.labels is None else loaded.labels[:max_images]
    return ImageSet(loaded.images[:max_images], loaded.num_pixel_levels, loaded.name, loaded.split, labels)


def open_images(source: str | Path, split: str | None = None, default_split: str = "test") -> ImageSet | StoredImages:
    r"""Open a data set: `source[i]` is image i, as integer levels `(C, H, W)`.

    Folders of images and data sets of the Hub stay on the disk until an image is asked for, and may be larger than memory.

    Arguments and errors as `load_images`; of a folder's images, all but the first are checked when they are read.
        default_split: the part to open where there are parts and `split` names none.
    """
    source = str(source)
    path = Path(source)
    for kind in FORMATS:
        if kind.matches(source, path):
            return kind.open(source, split, default_split)
    suffixes = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)
    if source.startswith(("/", ".", "~")) or path.suffix in (*suffixes, ".gz") or not source:
        raise ValueError(f"`dataset` must be a file or folder that exists, 'digits' or a Hub data set, got {source!r}.")
    return open_hub(source, split or default_split)


def stream_images(source: str | Path, split: str | None = None, buffer_size: int = 1000) -> StreamedImages:
    r"""Open a data set of the Hub, or a folder of images or parquet files, as a stream, with nothing kept on the disk.

    Raises:
        ValueError: as `load_images`; a source that is neither.
    """
    source = str(source)
    if source == "digits" or Path(source).is_file():
        raise ValueError(f"`dataset` must be a folder or a data set of the Hub to be streamed, got {source!r}.")
    return StreamedImages(load_dataset(source, split or "train", streaming=True), source, split, buffer_size)


def _batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    values = iter(values)
    while some := list(islice(values, size)):
        yield some


@dataclass(frozen=True)
class Source:
    r"""Images to go over, as levels of a model's grid; each has a number, its place in the data set.

    Args:
        images: levels `(N, C, H, W)`, a set of images (`source[i]` is image i), or a stream.
        num_pixel_levels: of the model.
        channels, size: of its images; `size` may be `None`.
        labels: classes, `(N,)` or `None`.
        shard: (index, count): only images whose number is `index` modulo `count`.
        max_images: the first so many only.
        name: of the data set.
    """

    images: Any
    num_pixel_levels: int
    channels: int
    size: tuple[int, int] | None
    labels: torch.Tensor | None = None
    shard: tuple[int, int] = (0, 1)
    max_images: int | None = None
    name: str = "images in memory"

    @property
    def is_stream(self) -> bool:
        r"""Whether there is no way to it but its own order, and nobody knows how many there are."""
        return isinstance(self.images, StreamedImages)

    @property
    def num_dimensions(self) -> int:
        r"""D = C H W, of the first image."""
        return math.prod(torch.as_tensor(self.images[0]).shape)

    def blocks(self, size: int) -> Iterator[Block]:
        r"""One pass over the images, `size` at a time, in their order.

        Raises:
            ValueError: images off the grid, or of another size.
        """
        if isinstance(self.images, torch.Tensor):
            for numbers in _batched(self._numbers(len(self.images)), size):
                yield self._block(numbers, self.images[list(numbers)])
            return
        for some in _batched(self._readers(), size):
            stacked = torch.stack([torch.as_tensor(read()) for _, read in some])
            levels = images_to_levels(stacked, self.num_pixel_levels, channels=self.channels, size=self.size)
            yield self._block([number for number, _ in some], levels)

    def _block(self, numbers: Sequence[int], levels: torch.Tensor) -> Block:
        chosen = np.array(numbers)
        return Block(chosen, levels, None if self.labels is None else self.labels[torch.as_tensor(chosen)])

    def _numbers(self, total: int) -> range:
        index, count = self.shard
        return range(index, total if self.max_images is None else min(total, self.max_images), count)

    def _readers(self) -> Iterator[tuple[int, Callable[[], torch.Tensor]]]:
        if not self.is_stream:
            for number in self._numbers(len(self.images)):
                yield number, partial(self.images.__getitem__, number)
            return
        index, count = self.shard
        for number, read in enumerate(islice(self.images.in_order(), self.max_images)):
            if number % count == index:
                yield number, read


def source_of(
    images: Any,
    network: Any,
    num_pixel_levels: int,
    class_labels: Any = None,
    *,
    shard: tuple[int, int] = (0, 1),
    max_images: int | None = None,
) -> Source:
    r"""The source of images of any kind.

    Args:
        images: what `images_to_levels` takes, or what `open_images` or `stream_images` returns.
        network: a `model.network.Network`, which knows what its images are.
        num_pixel_levels: of the model.
        class_labels: of a class-conditional network, one for all or one each.
        shard, max_images: as `Source`.

    Raises:
        ValueError: images or classes that do not fit the network.
    """
    channels, size = network.channels, network.size
    name = getattr(images, "name", None)  # tensors have one of another kind
    options = {"shard": shard, "max_images": max_images, "name": name if isinstance(name, str) else Source.name}
    if isinstance(images, StreamedImages):
        check_shape(images[0][None], channels, size)
        network.check((), images[0].shape[1:])
        network.check_class_labels(class_labels, 1)
        return Source(images, num_pixel_levels, channels, size, None, **options)
    if not hasattr(images, "num_pixel_levels"):
        images = images_to_levels(images, num_pixel_levels, channels=channels, size=size)
    network.check((), torch.as_tensor(images[0]).shape[1:])
    labels = network.check_class_labels(class_labels, len(images))
    return Source(images, num_pixel_levels, channels, size, labels, **options)
