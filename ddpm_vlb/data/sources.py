r"""Data sets in, pixel levels out: the bundled digits, folders of images, idx and npz files, data sets of the Hub.

Levels are taken literally (see `images.py`). Bringing other images onto a model's grid changes the data and hence the
likelihood; `quantize` does it, as a step of its own.
"""

from pathlib import Path

from .image_sets import ImageSet, StoredImages, StreamedImages
from .readers import load_dataset, open_folder, open_hub, read_digits, read_idx, read_npz


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
        return read_digits(split or default_split)
    if path.is_dir():
        return open_folder(path, split, default_split)
    if path.is_file():
        if split is not None:
            raise ValueError(f"`split` must be left out for a single file, which has no parts, got {split!r}.")
        return read_npz(path) if path.suffix == ".npz" else read_idx(path)
    if source.startswith(("/", ".", "~")) or path.suffix in (".npz", ".gz") or not source:
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
