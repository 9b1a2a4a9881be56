r"""Data sets in, pixel levels out: the bundled digits, folders of images, idx and npz files, data sets of the Hub.

Levels are taken literally (see `images.py`). Bringing other images onto a model's grid changes the data and hence the
likelihood; `quantize` does it, as a step of its own.
"""

import copy
import gzip
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .gaussians import check_num_pixel_levels
from .images import array_to_tensor, check_shape, image_column, images_to_levels, pil_to_array, quantize

__all__ = [
    "ImageSet",
    "StoredImages",
    "StreamedImages",
    "check_shape",
    "images_to_levels",
    "load_images",
    "open_images",
    "quantize",
    "quantize_images",
    "stream_images",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


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


# Data sets by name or path.


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
        self.num_pixel_levels = _image_set(self._first[None], name).num_pixel_levels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return array_to_tensor(self.array(index)[None], None)[0]

    def array(self, index: int) -> np.ndarray:
        r"""The pixels of image `index`, `(H, W)` or `(H, W, C)`."""
        array, name = self._read(self._rows, index)
        _check_alike(self._first, self._first_name, array, name)
        return array

    def load(self, max_images: int | None = None) -> ImageSet:
        r"""The first `max_images` images, or all, in memory."""
        count = min(len(self), max_images or len(self))
        labels = None if self.labels is None else torch.tensor(self.labels[:count])
        return _image_set(np.stack([self.array(index) for index in range(count)]), self.name, self.split, labels)


class StreamedImages:
    r"""Images of a data set that can only be read in its order, shuffled through a buffer.

    Args:
        dataset: a `datasets.IterableDataset` with an image column.
        name, split: as `ImageSet` (the attribute is `split_name`).
        buffer_size: images in memory among which the next is drawn.
    """

    def __init__(self, dataset: Any, name: str, split: str | None = None, buffer_size: int = 1000):
        self.name, self.split_name, self._buffer_size = name, split, buffer_size
        self._dataset, self._column = dataset, image_column(dataset)
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(f"`dataset` must hold at least one image, got none in {name!r} (split {split!r}).")
        self._first = pil_to_array(first[self._column], "row 0")
        self.num_pixel_levels = self._source_levels = _image_set(self._first[None], name).num_pixel_levels

    def quantized(self, num_pixel_levels: int) -> "StreamedImages":
        r"""The same stream, its images brought onto another grid by `quantize`."""
        other = copy.copy(self)
        other.num_pixel_levels = num_pixel_levels
        return other

    def __getitem__(self, index: int) -> torch.Tensor:
        if index != 0:
            raise ValueError(f"`index` must be 0 for a stream, of which only the first image is at hand, got {index}.")
        return self._levels(self._first)

    def split(self, count: int) -> tuple["StreamedImages", torch.Tensor]:
        r"""The stream without its first `count` images, and those `(count, C, H, W)`.

        Raises:
            ValueError: a stream of no more images than that.
        """
        first = [self._decode(row[self._column]) for row in self._dataset.take(count)]
        return StreamedImages(self._dataset.skip(count), self.name, self.split_name, self._buffer_size), torch.stack(first)

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
    if max_images is not None and max_images < 1:
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
    if source == "digits":
        return _load_digits(split or default_split)
    if path.is_dir():
        return _open_folder(path, split, default_split)
    if path.is_file():
        if split is not None:
            raise ValueError(f"`split` must be left out for a single file, which has no parts, got {split!r}.")
        return _load_npz(path) if path.suffix == ".npz" else _load_idx(path)
    if source.startswith(("/", ".", "~")) or path.suffix in (".npz", ".gz") or not source:
        raise ValueError(f"`dataset` must be a file or folder that exists, 'digits' or a Hub data set, got {source!r}.")
    return _open_hub(source, split or default_split)


def stream_images(source: str | Path, split: str | None = None, buffer_size: int = 1000) -> StreamedImages:
    r"""Open a data set of the Hub, or a folder of images or parquet files, as a stream, with nothing kept on the disk.

    Raises:
        ValueError: as `load_images`; a source that is neither.
    """
    source = str(source)
    if source == "digits" or Path(source).is_file():
        raise ValueError(f"`dataset` must be a folder or a data set of the Hub to be streamed, got {source!r}.")
    return StreamedImages(_load_dataset(source, split or "train", streaming=True), source, split, buffer_size)


DIGITS_NUM_TRAIN = 1437


def _load_digits(split: str) -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("`dataset` 'digits' needs scikit-learn: pip install scikit-learn.") from error
    parts = {"train": slice(None, DIGITS_NUM_TRAIN), "test": slice(DIGITS_NUM_TRAIN, None)}
    if split not in parts:
        raise ValueError(f"`split` must be 'train' or 'test' for the digits, got {split!r}.")
    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return ImageSet(images[parts[split]], 17, "digits", split, labels[parts[split]])


def _image_set(array: np.ndarray, name: str, split: str | None = None, labels=None) -> ImageSet:
    if array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"`dataset` must hold uint8 or uint16 images, got dtype {array.dtype} in {name!r}.")
    if array.size == 0:
        raise ValueError(f"`dataset` must hold at least one image, got shape {array.shape} in {name!r}.")
    if array.ndim not in (3, 4):
        raise ValueError(f"`dataset` must hold images of shape (N, H, W) or (N, H, W, C), got {array.shape} in {name!r}.")
    return ImageSet(array_to_tensor(array, None), int(np.iinfo(array.dtype).max) + 1, name, split, labels)


def _open_folder(path: Path, split: str | None, default_split: str) -> StoredImages:
    if split is None and (path / default_split).is_dir():
        split = default_split
    if split is not None and (path / split).is_dir():
        path = path / split
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files and any(path.rglob("*.parquet")):
        return _open_hub(str(path), split or default_split)
    if split is not None and path.name != split:
        raise ValueError(f"`split` must name a sub-folder of the data set, got {split!r} for {str(path)!r}.")
    if not files:
        raise ValueError(
            f"`dataset` must be a folder with images ({', '.join(IMAGE_SUFFIXES)}) or parquet files, got none in {str(path)!r}."
            " (Name an idx or npz file itself.)"
        )
    return StoredImages(files, _read_file, str(path), split)


def _read_file(files: Sequence[Path], index: int) -> tuple[np.ndarray, str]:
    file = files[index]
    try:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"`dataset` must hold still images, got {image.n_frames} frames in {str(file)!r}.")
            return pil_to_array(image, str(file)), str(file)
    except Exception as error:  # a damaged file can make a decoder stumble over anything
        if str(error).startswith("`"):
            raise
        raise ValueError(f"`dataset` must hold readable images, got {str(file)!r}: {error}.") from error


def _check_alike(first: np.ndarray, first_name: str, array: np.ndarray, name: str) -> None:
    if (array.shape, array.dtype) != (first.shape, first.dtype):
        raise ValueError(
            f"`dataset` must hold images of one size and type: {first_name!r} is {first.shape} {first.dtype},"
            f" {name!r} is {array.shape} {array.dtype}."
        )


def _load_npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = "images" if "images" in archive.files else archive.files[0] if len(archive.files) == 1 else None
            if key is None:
                raise ValueError(
                    f"`dataset` must have an array `images` in its npz file, got {archive.files} in {str(path)!r}."
                )
            array = archive[key]
            labels = archive["labels"] if "labels" in archive.files else None
    except ValueError as error:
        if str(error).startswith("`dataset`"):
            raise
        raise ValueError(f"`dataset` must be a readable npz file, got {str(path)!r}: {error}.") from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise ValueError(f"`dataset` must be a readable npz file, got {str(path)!r}: {error}.") from error
    if labels is not None:
        if labels.dtype.kind not in "iu" or labels.shape != array.shape[:1]:
            raise ValueError(
                f"`dataset` must have one integer label per image, got `labels` of dtype {labels.dtype} and shape"
                f" {labels.shape} for images of shape {array.shape} in {str(path)!r}."
            )
        labels = torch.from_numpy(labels.astype(np.int64))
    return _image_set(array, str(path), labels=labels)


def _load_idx(path: Path) -> ImageSet:
    r"""The idx format of MNIST: two zero bytes, the type (8 = uint8), the number of dimensions, their sizes, the data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"`dataset` must be a readable idx file, got {str(path)!r}: {error}.") from error
    except Exception as error:  # zlib.error
        raise ValueError(f"`dataset` must be an undamaged gzip file, got {str(path)!r}: {error}.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or raw[3] not in (3, 4):
        raise ValueError(
            "`dataset` must be 'digits', a folder, an npz file, an idx file of uint8 images, or a Hub data set,"
            f" got the file {str(path)!r} that starts with {raw[:4]!r}."
        )
    header = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:header]) if len(raw) >= header else ()
    if len(shape) == 0 or len(raw) - header != math.prod(shape):
        raise ValueError(f"`dataset` must be a whole idx file, got {len(raw)} bytes for shape {shape} in {str(path)!r}.")
    return _image_set(np.frombuffer(raw, np.uint8, offset=header).reshape(shape), str(path))


def _open_hub(name: str, split: str) -> StoredImages:
    loaded = _load_dataset(name, split)
    image_column(loaded)
    return StoredImages(loaded, _read_row, name, split, loaded["label"] if "label" in loaded.column_names else None)


def _read_row(rows: Any, index: int) -> tuple[np.ndarray, str]:
    return pil_to_array(rows[index][image_column(rows)], f"row {index}"), f"row {index}"


def _load_dataset(name: str, split: str, streaming: bool = False) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"`dataset` {name!r} needs the datasets library: pip install datasets.") from error
    try:
        return datasets.load_dataset(name, split=split, streaming=streaming)
    except Exception as error:  # the library has many
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"`dataset` must be 'digits', a file or folder that exists, or a Hub data set with the split {split!r},"
            f" got {name!r}: {reason}"
        ) from error
