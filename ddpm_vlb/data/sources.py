r"""Data sets in, pixel levels out: the bundled digits, folders of images, idx and npz files, data sets of the Hub.

Levels are taken literally (see `levels.py`). Bringing other images onto a model's grid changes the data and hence the
likelihood; `quantize` does it, as a step of its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import check_integer, check_seed
from ..noise import mix, mix_array
from .frame import Block
from .image_sets import ImageSet, StoredImages, StreamedImages
from .levels import check_grid, check_shape, images_to_levels, stored_pictures
from .readers import FORMATS, image_files, load_dataset, open_hub, stream_files
from .transforms import Transform

IMAGE_CHOICE = 2**33  # what a seed is mixed with for the choice of images


def load_images(
    source: str | Path,
    split: str | None = None,
    max_images: int | None = None,
    *,
    transform: Transform | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSet:
    r"""Load a data set into memory.

    Args:
        source: `"digits"` (scikit-learn's 8 x 8 digits, 17 levels), a folder of images or a single one, an idx file (also
            gzipped, as MNIST's), an npz file with an array `images` `(N, H, W[, C])`, or the name of a data set of the Hub.
        split: the part to load, by default `"test"` where there are parts: of the digits, of a data set of the Hub, of a
            folder with a sub-folder of that name. idx and npz files have no parts.
        max_images: at most this many, from the first.
        transform: steps that bring pictures to one size and colour before they are levels; reports say which were taken.
        image_column: of a data set of the Hub with several columns of images.
        label_column: of a data set of the Hub whose classes are not in `label`.

    Raises:
        ValueError: a source that is missing, damaged, empty, or has no such split; images that differ in size or are not 8-bit
            or 16-bit grey or 8-bit RGB.
    """
    if max_images is not None and check_integer("max_images", max_images) < 1:
        raise ValueError(f"`max_images` must be at least 1, got {max_images}.")
    loaded = open_images(source, split, transform=transform, image_column=image_column, label_column=label_column)
    if isinstance(loaded, StoredImages):
        return loaded.load(max_images)
    labels = None if loaded.labels is None else loaded.labels[:max_images]
    return replace(loaded, images=loaded.images[:max_images], labels=labels)


def open_images(
    source: str | Path,
    split: str | None = None,
    default_split: str = "test",
    *,
    transform: Transform | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSet | StoredImages:
    r"""Open a data set: `source[i]` is image i, as integer levels `(C, H, W)`.

    Folders of images and data sets of the Hub stay on the disk until an image is asked for, and may be larger than memory.

    Arguments and errors as `load_images`; of a folder's images, all but the first are checked when they are read.
        default_split: the part to open where there are parts and `split` names none.
    """
    source = str(source)
    path = Path(source)
    columns = {"image_column": image_column, "label_column": label_column}
    columns = {name: column for name, column in columns.items() if column is not None}
    for kind in FORMATS:
        if kind.matches(source, path):
            if columns and not kind.has_columns:
                raise ValueError(f"`{next(iter(columns))}` must be left out for {kind.words}, which has no columns.")
            return _ready(kind.open(source, split, default_split, **columns), transform)
    suffixes = tuple(suffix for kind in FORMATS for suffix in kind.suffixes)
    # What exists and is of no format is a device, a pipe or the like.
    if source.startswith(("/", ".", "~")) or path.suffix in (*suffixes, ".gz") or not source or path.exists():
        raise ValueError(f"`dataset` must be a file or folder that exists, 'digits' or a Hub data set, got {source!r}.")
    return _ready(open_hub(source, split or default_split, **columns), transform)


def _ready(images: ImageSet | StoredImages, transform: Transform | None) -> ImageSet | StoredImages:
    r"""Images after the steps of a `Transform`, the first of them looked at."""
    if transform is not None:
        images = images.transformed(transform)
    images[0]
    return images


def stream_images(
    source: str | Path,
    split: str | None = None,
    buffer_size: int = 1000,
    *,
    transform: Transform | None = None,
    image_column: str | None = None,
) -> StreamedImages:
    r"""Open a data set of the Hub, or a folder of images or parquet files, as a stream, with nothing kept on the disk.

    Args:
        source, transform, image_column: as `load_images`; a folder's images are those that `open_images` finds.
        split: by default `"train"`.
        buffer_size: images in memory among which the next is drawn, where they are shuffled.

    Raises:
        ValueError: as `load_images`; a source that is neither.
    """
    source = str(source)
    if source == "digits" or Path(source).is_file():
        raise ValueError(f"`dataset` must be a folder or a data set of the Hub to be streamed, got {source!r}.")
    part = split or "train"
    if Path(source).is_dir():
        _, files = image_files(Path(source), split, "train")
        if files and image_column is not None:
            raise ValueError("`image_column` must be left out for a folder of images, which has no columns.")
        if files:
            return StreamedImages(*stream_files(files), source, part, buffer_size, transform=transform)
    rows, read = stored_pictures(load_dataset(source, part, streaming=True), image_column)
    settings = {} if image_column is None else {"image_column": image_column}
    return StreamedImages(rows, read, source, part, buffer_size, settings, transform)


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
        shard: (index, count): only the images whose place among those that are taken is `index` modulo `count`.
        max_images: the first so many only.
        image_seed: takes `max_images` at random in place of the first: those with the smallest hashes of (seed, number).
        name: of the data set.
        image_labels, image_names: what the data set says of each image, where it does; nobody is scored by it.
        settings: how the images were read and taken, as far as a report must say so.
    """

    images: Any
    num_pixel_levels: int
    channels: int
    size: tuple[int, int] | None
    labels: torch.Tensor | None = None
    shard: tuple[int, int] = (0, 1)
    max_images: int | None = None
    image_seed: int | None = None
    name: str = "images in memory"
    image_labels: Sequence[Any] | torch.Tensor | None = None
    image_names: Sequence[str | None] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        r"""Whether there is no way to it but its own order, and nobody knows how many there are."""
        return isinstance(self.images, StreamedImages)

    @property
    def count(self) -> int | None:
        r"""How many images it takes, `None` of a stream."""
        if self.is_stream:
            return None
        index, of = self.shard
        return len(range(index, min(len(self.images), self.max_images or len(self.images)), of))

    @property
    def num_dimensions(self) -> int:
        r"""D = C H W, of the first image."""
        return math.prod(torch.as_tensor(self.images[0]).shape)

    def about(self, numbers: np.ndarray) -> dict[str, Any]:
        r"""What a report says of the images with these numbers: which they are, their names and their labels."""
        about: dict[str, Any] = {"image_numbers": numbers.tolist()}
        labels = self.image_labels if self.labels is None else self.labels
        for key, values in (("image_names", self.image_names), ("image_labels", labels)):
            if values is not None:
                values = values.tolist() if isinstance(values, torch.Tensor) else list(values)
                about[key] = [values[number] for number in about["image_numbers"]]
        return about

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

    def _numbers(self, total: int) -> Sequence[int]:
        index, count = self.shard
        if self.image_seed is None:
            return range(index, total if self.max_images is None else min(total, self.max_images), count)
        hashes = mix_array(mix(self.image_seed, IMAGE_CHOICE), np.arange(total))
        return np.sort(np.argsort(hashes, kind="stable")[: self.max_images])[index::count].tolist()

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
    image_seed: int | None = None,
) -> Source:
    r"""The source of images of any kind.

    Args:
        images: what `images_to_levels` takes, what `open_images` or `stream_images` returns, or the path of a data set.
        network: a `model.network.Network`, which knows what its images are.
        num_pixel_levels: of the model.
        class_labels: of a class-conditional network, one for all or one each.
        shard, max_images, image_seed: as `Source`.

    Raises:
        ValueError: images or classes that do not fit the network; an `image_seed` of a stream, or without `max_images`.
    """
    channels, size = network.channels, network.size
    if isinstance(images, (str, Path)):
        if str(images) != "digits" and not Path(images).exists():
            raise ValueError(
                f"`images` must be a path that exists, got {str(images)!r}. (`open_images` opens data sets of the Hub.)"
            )
        images = open_images(images)
    if hasattr(images, "num_pixel_levels"):
        check_grid(images, num_pixel_levels)
    name = getattr(images, "name", None)  # tensors have one of another kind
    settings = {**getattr(images, "settings", {})}
    if image_seed is not None:
        settings["image_seed"] = image_seed = _check_image_seed(image_seed, images, max_images)
    options = {"shard": shard, "max_images": max_images, "image_seed": image_seed, "settings": settings}
    options["name"] = name if isinstance(name, str) else Source.name
    if isinstance(images, StreamedImages):
        check_shape(images[0][None], channels, size)
        network.check((), images[0].shape[1:])
        network.check_class_labels(class_labels, 1)
        return Source(images, num_pixel_levels, channels, size, None, **options)
    if hasattr(images, "num_pixel_levels"):
        options |= {"image_labels": getattr(images, "labels", None), "image_names": getattr(images, "names", None)}
    else:
        images = images_to_levels(images, num_pixel_levels, channels=channels, size=size)
    network.check((), torch.as_tensor(images[0]).shape[1:])
    labels = network.check_class_labels(class_labels, len(images))
    return Source(images, num_pixel_levels, channels, size, labels, **options)


def _check_image_seed(image_seed: Any, images: Any, max_images: int | None) -> int:
    if max_images is None:
        raise ValueError(f"`image_seed` must go with `max_images`, of how many images it makes the choice, got {image_seed!r}.")
    if isinstance(images, StreamedImages):
        raise ValueError(f"`image_seed` must be left out for a stream, whose length nobody knows, got {image_seed!r}.")
    return check_seed(image_seed, "image_seed")
