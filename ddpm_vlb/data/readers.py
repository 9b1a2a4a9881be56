r"""Readers of data sets, a row a format: `FORMATS`.

A row says which sources it is for, and opens them. The first that fits is taken; what no row is for is looked for on the Hub.
A new format is a row, `add_format(file_format("a toy file", (".toy",), read))`, and nothing else.
"""

import gzip
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from PIL import Image

from .image_sets import ImageSet, StoredImages, image_set
from .levels import stored_pictures
from .pictures import PICTURE_SUFFIXES, open_picture

DIGITS_NUM_TRAIN = 1437
# What is unpacked is held in memory. Larger files can be unpacked on the disk first.
MAX_UNPACKED_BYTES = 2**32
MAX_RATIO = 1032  # of zlib's format


_IDX_IMAGES = re.compile(r"images([-.])idx[34]")


def read_digits(split: str) -> ImageSet:
    r"""scikit-learn's 8 x 8 digits, 17 levels; its first 1437 are the training part."""
    parts = {"train": slice(None, DIGITS_NUM_TRAIN), "test": slice(DIGITS_NUM_TRAIN, None)}
    if split not in parts:
        raise ValueError(f"`split` must be 'train' or 'test' for the digits, got {split!r}.")
    images, labels = (torch.tensor(array[parts[split]]) for array in _digits())
    return ImageSet(images[:, None], 17, "digits", split, labels)


@cache  # text of which numpy takes a quarter of a second
def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("`dataset` 'digits' needs scikit-learn: pip install scikit-learn.") from error
    images, labels = cast(Any, load_digits(return_X_y=True))
    return images.astype(np.uint8).reshape(-1, 8, 8), labels.astype(np.int64)


def open_folder(path: Path, split: str | None, default_split: str, **columns: str) -> StoredImages:
    r"""A folder of images, whose sub-folders may be their classes, or of parquet files; `columns` as `open_hub`, for those."""
    split, files = image_files(path, split, default_split)
    if not files:
        return open_hub(str(path), split or default_split, **columns)
    if columns:
        raise ValueError(f"`{next(iter(columns))}` must be left out for a folder of images, which has no columns.")
    folder = files_folder(path, split)
    names = [file.relative_to(folder).as_posix() for file in files]
    return StoredImages(files, _read_file, str(folder), split, folder_labels(names), names)


def folder_labels(names: Sequence[str]) -> list[int] | None:
    r"""Classes of the images of these paths below a folder, `None` unless each lies in a sub-folder whose name is a number.

    Words are no classes: their places in order, which other libraries take, are those of one folder alone, and one that lacks a
    class of the network's would have every image scored by another one."""
    parts = [PurePosixPath(name).parts for name in names]
    folders = {part[0] for part in parts}
    if any(len(part) != 2 for part in parts) or not all(name.isascii() and name.isdigit() for name in folders):
        return None
    numbers = {name: int(name) for name in folders}
    return None if len(set(numbers.values())) < len(folders) else [numbers[part[0]] for part in parts]


def image_files(path: Path, split: str | None, default_split: str) -> tuple[str | None, list[Path]]:
    r"""The images of a part of a folder, in the order of their paths; none where the folder is one of parquet files.

    A part is a sub-folder. A folder without parts is one, which may be called `"train"`, as the `datasets` library does.
    What is hidden is left out, as there: files and folders whose names begin with a dot, folders whose names begin with two
    underscores (`__MACOSX`).

    Returns:
        The part that was found, and the files.

    Raises:
        ValueError: no such part, no images.
    """
    if split is None and (path / default_split).is_dir():
        split = default_split
    folder = files_folder(path, split)
    files = _files_below(folder, PICTURE_SUFFIXES)
    if not files and _files_below(folder, (".parquet",)):
        return split, []
    of_no_parts = split == "train" and not any((path / part).is_dir() for part in ("test", "validation"))
    if split is not None and folder.name != split and not of_no_parts:
        raise ValueError(f"`split` must name a sub-folder of the data set, got {split!r} for {str(path)!r}.")
    if not files:
        raise ValueError(
            f"`dataset` must be a folder with images ({', '.join(PICTURE_SUFFIXES)}) or parquet files, got none in"
            f" {str(folder)!r}. (Name an idx or npz file itself.)"
        )
    return split, files


def files_folder(path: Path, split: str | None) -> Path:
    r"""Where the files of a part of a folder are."""
    return path / split if split is not None and (path / split).is_dir() else path


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise ValueError(f"`dataset` must be a folder that can be read, got {error}.") from error

    found = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        paths = (Path(here, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in suffixes]
    return sorted(found, key=Path.as_posix)


def _read_file(files: Sequence[Path], index: int) -> tuple[Image.Image, str]:
    return open_picture(files[index], str(files[index])), str(files[index])


def stream_files(files: Sequence[Path]) -> tuple[Any, Callable[[Any, str], Image.Image]]:
    r"""Pictures of the disk as the rows of a stream, and what opens a row's."""
    datasets = _datasets(str(files[0].parent))
    rows = datasets.Dataset.from_dict({"file": range(len(files))}).to_iterable_dataset()
    return rows, partial(_read_streamed, files)


def _read_streamed(files: Sequence[Path], row: Any, name: str) -> Image.Image:
    return _read_file(files, row["file"])[0]


def read_picture(path: Path) -> StoredImages:
    r"""A single picture."""
    return StoredImages([path], _read_file, str(path), names=[path.name])


def read_npz(path: Path) -> ImageSet:
    r"""An array `images`, `(N, H, W[, C])`, and `labels`, if there are any."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = "images" if "images" in archive.files else archive.files[0] if len(archive.files) == 1 else None
            if key is None:
                raise ValueError(
                    f"`dataset` must have an array `images` in its npz file, got {archive.files} in {str(path)!r}."
                )
            _check_unpacked(path, key)
            array = archive[key]
            labels = None
            if "labels" in archive.files:
                _check_unpacked(path, "labels")
                labels = archive["labels"]
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


def _check_unpacked(path: Path, key: str) -> None:
    r"""Raise `ValueError` for an array of an npz file that is packed, and too large to be unpacked in memory."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{key}.npy")
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > MAX_UNPACKED_BYTES:
        raise _too_large(path, info.file_size)


def _too_large(path: Path, size: int) -> ValueError:
    return ValueError(
        f"`dataset` must be a file that unpacks to at most {MAX_UNPACKED_BYTES} bytes, got {size} for {str(path)!r}."
        " Unpack it first."
    )


def read_idx(path: Path) -> ImageSet:
    r"""The idx format of MNIST: two zero bytes, the type (8 = uint8), the number of dimensions, their sizes, the data. Of
    `x-images-idx3-ubyte` the labels are `x-labels-idx1-ubyte`, where that lies beside it."""
    array = _idx_file(path, (3, 4))
    beside = _IDX_IMAGES.sub(r"labels\1idx1", path.name)
    names = [beside, beside.removesuffix(".gz") if path.suffix == ".gz" else f"{beside}.gz"]
    found = [path.with_name(name) for name in names if beside != path.name and path.with_name(name).is_file()]
    if not found:
        return image_set(array, str(path))
    labels = _idx_file(found[0], (1,))
    if len(labels) != len(array):
        raise ValueError(
            f"`dataset` must have one label per image, got {len(labels)} in {str(found[0])!r} for the {len(array)} images of"
            f" {str(path)!r}."
        )
    return image_set(array, str(path), labels=torch.from_numpy(labels.astype(np.int64)))


def _idx_file(path: Path, dimensions: tuple[int, ...]) -> np.ndarray:
    size, zipped = path.stat().st_size, path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _idx_array(cast(BinaryIO, file), path, size, zipped, dimensions)
    except (OSError, EOFError) as error:
        raise ValueError(f"`dataset` must be a readable idx file, got {str(path)!r}: {error}.") from error
    except zlib.error as error:
        raise ValueError(f"`dataset` must be an undamaged gzip file, got {str(path)!r}: {error}.") from error


def _idx_array(file: BinaryIO, path: Path, size: int, zipped: bool, dimensions: tuple[int, ...]) -> np.ndarray:
    r"""The array of an idx file of so many bytes: as much is read as its header says, and a byte more to see that it ends."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or magic[3] not in dimensions:
        raise ValueError(
            f"`dataset` must be {', '.join(kind.words for kind in FORMATS)}, or a Hub data set,"
            f" got the file {str(path)!r} that starts with {magic!r}."
        )
    sizes = file.read(4 * magic[3])
    shape = struct.unpack(f">{magic[3]}I", sizes) if len(sizes) == 4 * magic[3] else ()
    expected, header = math.prod(shape), 4 + len(sizes)
    if zipped and expected > MAX_UNPACKED_BYTES:
        raise _too_large(path, expected)
    possible = MAX_RATIO * size if zipped else size - header
    data = file.read(expected + 1) if shape and expected <= possible else b""
    if not shape or len(data) != expected:
        words = "another number of bytes" if zipped else f"{size} bytes"
        raise ValueError(f"`dataset` must be a whole idx file, got {words} for shape {shape} in {str(path)!r}.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def open_hub(name: str, split: str, image_column: str | None = None, label_column: str | None = None) -> StoredImages:
    r"""A data set of the Hub.

    Args:
        name, split: of the data set.
        image_column: by default its only column of images.
        label_column: by default `label`, where that holds integers.
    """
    loaded = load_dataset(name, split)
    rows, read = stored_pictures(loaded, image_column)
    labels = integer_labels(loaded, label_column)
    # The files that the rows were made of, without reading any.
    paths = rows.flatten()[f"{rows.column_names[0]}.path"]
    names = [path and PurePosixPath(path).name for path in paths]
    settings = {"image_column": image_column, "label_column": label_column}
    settings = {name: column for name, column in settings.items() if column is not None}
    return StoredImages(rows, partial(_read_row, read), name, split, labels, names if any(names) else None, settings)


def _read_row(read: Callable[[Any, str], Image.Image], rows: Any, index: int) -> tuple[Image.Image, str]:
    name = f"row {index}"
    return read(rows[index], name), name


def integer_labels(dataset: Any, column: str | None) -> list[int] | None:
    r"""The classes of a `datasets.Dataset`: of a column that was asked for, or of `label`, where that holds integers.

    Raises:
        ValueError: a column that was asked for and is none of integers.
    """
    name = column or "label"
    kind = getattr((dataset.features or {}).get(name), "dtype", None)
    labels = [*dataset[name]] if str(kind).startswith(("int", "uint")) else None
    if labels is not None and None not in labels:
        return labels
    if column is not None:
        raise ValueError(
            f"`label_column` must be a column of integers, got {column!r}"
            + (f" of {kind}{'' if labels is None else ', some missing'}." if kind else f" for {dataset.column_names}.")
        )
    return None


def load_dataset(name: str, split: str, streaming: bool = False) -> Any:
    r"""As `datasets.load_dataset`, with errors that say what a data set may be; `OWNER/NAME:CONFIGURATION` names a
    configuration of one that has several."""
    datasets = _datasets(name)
    try:
        repository, _, configuration = (name, "", "") if Path(name).exists() else name.partition(":")
        return datasets.load_dataset(repository, configuration or None, split=split, streaming=streaming)
    except Exception as error:  # the library has many
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"`dataset` must be 'digits', a file or folder that exists, or a Hub data set with the split {split!r},"
            f" got {name!r}: {reason}"
        ) from error


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"`dataset` {name!r} needs the datasets library: pip install datasets.") from error
    return datasets


@dataclass(frozen=True)
class Format:
    r"""A kind of data sets.

    Args:
        words: what it is, for refusals.
        matches: whether a source, as text and as a path, is one.
        open: the images, from the source, the split that was asked for or `None`, and the default one.
        suffixes: of its files.
        has_columns: whether `open` takes `image_column` and `label_column` too, where they are given.
    """

    words: str
    matches: Callable[[str, Path], bool]
    open: Callable[..., ImageSet | StoredImages]
    suffixes: tuple[str, ...] = ()
    has_columns: bool = False


def file_format(words: str, suffixes: tuple[str, ...], read: Callable[[Path], ImageSet | StoredImages]) -> Format:
    r"""The row of a format of single files; without suffixes, of all files that no other row is for."""

    def matches(source: str, path: Path) -> bool:
        return path.is_file() and (not suffixes or path.suffix.lower() in suffixes)

    def open_file(source: str, split: str | None, default_split: str) -> ImageSet | StoredImages:
        if split is not None:
            raise ValueError(f"`split` must be left out for a single file, which has no parts, got {split!r}.")
        return read(Path(source))

    return Format(words, matches, open_file, suffixes)


def _open_folder(source: str, split: str | None, default_split: str, **columns: str) -> StoredImages:
    return open_folder(Path(source), split, default_split, **columns)


FORMATS = [
    Format("'digits'", lambda source, path: source == "digits", lambda source, split, default: read_digits(split or default)),
    Format("a folder", lambda source, path: path.is_dir(), _open_folder, has_columns=True),
    file_format("an image", PICTURE_SUFFIXES, read_picture),
    file_format("an npz file", (".npz",), read_npz),
    file_format("an idx file of uint8 images", (), read_idx),
]


def add_format(kind: Format) -> None:
    r"""Add a row; it comes before those that are there."""
    FORMATS.insert(0, kind)
