r"""Readers of data sets, a row a format: `FORMATS`.

A row says which sources it is for, and opens them. The first that fits is taken; what no row is for is looked for on the Hub.
A new format is a row, `add_format(file_format("a toy file", (".toy",), read))`, and nothing else.
"""

import gzip
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from .image_sets import ImageSet, StoredImages, image_set
from .levels import image_column, pil_to_array

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
DIGITS_NUM_TRAIN = 1437


def read_digits(split: str) -> ImageSet:
    r"""scikit-learn's 8 x 8 digits, 17 levels; its first 1437 are the training part."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("`dataset` 'digits' needs scikit-learn: pip install scikit-learn.") from error
    parts = {"train": slice(None, DIGITS_NUM_TRAIN), "test": slice(DIGITS_NUM_TRAIN, None)}
    if split not in parts:
        raise ValueError(f"`split` must be 'train' or 'test' for the digits, got {split!r}.")
    bunch: Any = cast(Any, load_digits())
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return ImageSet(images[parts[split]], 17, "digits", split, labels[parts[split]])


def open_folder(path: Path, split: str | None, default_split: str) -> StoredImages:
    r"""A folder of images, or of parquet files."""
    if split is None and (path / default_split).is_dir():
        split = default_split
    if split is not None and (path / split).is_dir():
        path = path / split
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files and any(path.rglob("*.parquet")):
        return open_hub(str(path), split or default_split)
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
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise ValueError(f"`dataset` must hold still images, got {frames} frames in {str(file)!r}.")
            return pil_to_array(image, str(file)), str(file)
    except Exception as error:  # a damaged file can make a decoder stumble over anything
        if str(error).startswith("`"):
            raise
        raise ValueError(f"`dataset` must hold readable images, got {str(file)!r}: {error}.") from error


def read_npz(path: Path) -> ImageSet:
    r"""An array `images`, `(N, H, W[, C])`, and `labels`, if there are any."""
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
    return image_set(array, str(path), labels=labels)


def read_idx(path: Path) -> ImageSet:
    r"""The idx format of MNIST: two zero bytes, the type (8 = uint8), the number of dimensions, their sizes, the data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"`dataset` must be a readable idx file, got {str(path)!r}: {error}.") from error
    except Exception as error:  # zlib.error
        raise ValueError(f"`dataset` must be an undamaged gzip file, got {str(path)!r}: {error}.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or raw[3] not in (3, 4):
        raise ValueError(
            f"`dataset` must be {', '.join(kind.words for kind in FORMATS)}, or a Hub data set,"
            f" got the file {str(path)!r} that starts with {raw[:4]!r}."
        )
    header = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:header]) if len(raw) >= header else ()
    if len(shape) == 0 or len(raw) - header != math.prod(shape):
        raise ValueError(f"`dataset` must be a whole idx file, got {len(raw)} bytes for shape {shape} in {str(path)!r}.")
    return image_set(np.frombuffer(raw, np.uint8, offset=header).reshape(shape), str(path))


def open_hub(name: str, split: str) -> StoredImages:
    r"""A data set of the Hub."""
    loaded = load_dataset(name, split)
    image_column(loaded)
    return StoredImages(loaded, _read_row, name, split, _class_numbers(loaded))


def _class_numbers(rows: Any) -> list[int] | None:
    r"""The column `label` of a data set, where it gives each image the number of a class; text, say, is no class."""
    labels = list(rows["label"]) if "label" in rows.column_names else [None]
    return labels if all(type(label) is int for label in labels) else None


def _read_row(rows: Any, index: int) -> tuple[np.ndarray, str]:
    return pil_to_array(rows[index][image_column(rows)], f"row {index}"), f"row {index}"


def load_dataset(name: str, split: str, streaming: bool = False) -> Any:
    r"""As `datasets.load_dataset`, with errors that say what a data set may be."""
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


@dataclass(frozen=True)
class Format:
    r"""A kind of data sets.

    Args:
        words: what it is, for refusals.
        matches: whether a source, as text and as a path, is one.
        open: the images, from the source, the split that was asked for or `None`, and the default one.
        suffixes: of its files.
    """

    words: str
    matches: Callable[[str, Path], bool]
    open: Callable[[str, str | None, str], ImageSet | StoredImages]
    suffixes: tuple[str, ...] = ()


def file_format(words: str, suffixes: tuple[str, ...], read: Callable[[Path], ImageSet | StoredImages]) -> Format:
    r"""The row of a format of single files; without suffixes, of all files that no other row is for."""

    def matches(source: str, path: Path) -> bool:
        return path.is_file() and (not suffixes or path.suffix in suffixes)

    def open_file(source: str, split: str | None, default_split: str) -> ImageSet | StoredImages:
        if split is not None:
            raise ValueError(f"`split` must be left out for a single file, which has no parts, got {split!r}.")
        return read(Path(source))

    return Format(words, matches, open_file, suffixes)


FORMATS = [
    Format("'digits'", lambda source, path: source == "digits", lambda source, split, default: read_digits(split or default)),
    Format("a folder", lambda source, path: path.is_dir(), lambda source, *splits: open_folder(Path(source), *splits)),
    file_format("an npz file", (".npz",), read_npz),
    file_format("an idx file of uint8 images", (), read_idx),
]


def add_format(kind: Format) -> None:
    r"""Add a row; it comes before those that are there."""
    FORMATS.insert(0, kind)
