r"""Images of any kind in, pixel levels out; everything that is not exactly on the grid is refused, never rounded.

A model's data live on `num_pixel_levels` grey levels; level k stands for the value 2 k / (num_pixel_levels - 1) - 1. What an
image says is taken literally: an integer is the level k itself, a float is a value on the grid. Bringing other images onto a
grid changes the data; `quantize` does it, as a step of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..pixel_grid import check_num_pixel_levels, samples_to_levels
from ..words import counted
from .pictures import PICTURE_SUFFIXES, check_as_stored, open_picture, open_stored, upright
from .transforms import Transform

ARRAY_DTYPES = ("uint8", "uint16", "float32", "float64")
ITEMS_AT_HAND = 256  # of a Dataset of torch
PIL_MODES = {"L": np.uint8, "RGB": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I;16L": np.uint16}


def images_to_levels(
    images: Any,
    num_pixel_levels: int = 256,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    r"""The levels of images of any kind that `evaluate_nll` takes.

    Args:
        images: a tensor `(N, C, H, W)`; a numpy array `(N, H, W, C)` or, for grey images, `(N, H, W)`; a PIL image, the path of
            a picture, a tensor `(C, H, W)` or `(H, W)`, an array `(H, W, C)` or `(H, W)`, or a list of these; a
            `datasets.Dataset` with an image column; a set that `open_images` returns; a `torch.utils.data.Dataset` or a
            `DataLoader` that does not shuffle, of images, or of tuples or dictionaries with one image each. Integers (uint8,
            or uint16 where there are more than 256 levels) are levels, floats (float32 or float64) grid values.
        num_pixel_levels: number of levels of the grid.
        channels, size: the number of channels and the (height, width) that the images must have; `None` for any.

    Returns:
        Levels, shape `(N, C, H, W)`, uint8 up to 256 levels and int32 above.

    Raises:
        ValueError: anything that is not such images: off the grid, not finite, of another size, type or number of channels, or
            none at all.
    """
    check_num_pixel_levels(num_pixel_levels)
    if isinstance(images, (torch.utils.data.Dataset, torch.utils.data.DataLoader)) and not hasattr(images, "column_names"):
        some = [images_to_levels(batch, num_pixel_levels, channels=channels, size=size) for batch in _batches(images)]
        if not some:
            raise ValueError(f"`images` must not be empty, got no image from {type(images).__name__}.")
        return torch.cat(some)
    if hasattr(images, "num_pixel_levels") and hasattr(images, "__len__"):
        check_grid(images, num_pixel_levels)
        stored: Any = images
        images = [stored[index] for index in range(len(stored))]
    tensor = _as_tensor(images, channels, size)
    check_shape(tensor, channels, size)
    return _check_levels(tensor, num_pixel_levels)


def check_shape(tensor: torch.Tensor, channels: int | None, size: tuple[int, int] | None) -> None:
    r"""Raise `ValueError` unless a tensor is `(N, C, H, W)`, not empty, and of this many channels and (height, width)."""
    if tensor.ndim != 4:
        raise ValueError(f"`images` must have the shape (N, C, H, W), got {tuple(tensor.shape)}.")
    if tensor.numel() == 0:
        raise ValueError(f"`images` must not be empty, got the shape {tuple(tensor.shape)}.")
    if channels is not None and tensor.shape[1] != channels:
        hint = " Are the channels last? Then permute(0, 3, 1, 2)." if tensor.shape[3] == channels else ""
        raise ValueError(
            f"`images` must have {counted(channels, 'channel')}, got {tensor.shape[1]} (shape {tuple(tensor.shape)}).{hint}"
        )
    if size is not None and tuple(tensor.shape[2:]) != tuple(size):
        raise ValueError(f"`images` must be {size[0]} x {size[1]} pixels, got {tensor.shape[2]} x {tensor.shape[3]}.")


def check_grid(images: Any, num_pixel_levels: int) -> None:
    r"""Raise `ValueError` for a set of images with fewer levels than a model's grid: they would be taken for dark ones."""
    if images.num_pixel_levels < num_pixel_levels:
        raise ValueError(
            f"`images` must have the {num_pixel_levels} levels of the model's grid, got {images.num_pixel_levels} levels;"
            " `ddpm_vlb.data.quantize_images` brings them onto it."
        )


def _check_levels(tensor: torch.Tensor, num_pixel_levels: int) -> torch.Tensor:
    integer_dtype = torch.uint8 if num_pixel_levels <= 256 else torch.uint16
    level_dtype = torch.uint8 if num_pixel_levels <= 256 else torch.int32
    if tensor.dtype in (torch.float32, torch.float64):
        return samples_to_levels(tensor, num_pixel_levels, "images").to(level_dtype)
    if tensor.dtype != integer_dtype:
        raise ValueError(
            f"`images` must be {str(integer_dtype)[6:]} levels, float32 or float64 for a model of {num_pixel_levels} levels,"
            f" got dtype {str(tensor.dtype)[6:]}."
        )
    levels = tensor.to(torch.int32)
    highest = int(levels.max())
    if highest >= num_pixel_levels:
        raise ValueError(
            f"`images` must hold levels below num_pixel_levels = {num_pixel_levels}, got {highest}."
            " (`ddpm_vlb.data.quantize` brings images onto a coarser grid.)"
        )
    return levels.to(level_dtype)


def _as_tensor(images: Any, channels: int | None, size: tuple[int, int] | None) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        if images.layout != torch.strided or images.is_meta:
            raise ValueError(f"`images` must be a dense tensor with values, got layout {images.layout} on {images.device}.")
        return _with_batch(images.detach(), channels)
    if isinstance(images, np.ndarray):
        return array_to_tensor(images[None] if _is_one(images, channels, size) else images, channels)
    if isinstance(images, (Image.Image, str, Path)):
        images = [images]
    elif hasattr(images, "features") and hasattr(images, "column_names"):
        rows, read = stored_pictures(images)
        images = [read(row, f"image {index}") for index, row in enumerate(rows)]
    if not isinstance(images, Sequence) or isinstance(images, bytes):
        raise ValueError(
            "`images` must be a tensor, an array, PIL images, paths of pictures, what `open_images` returns, a DataLoader or"
            f" Dataset of torch, or a `datasets.Dataset` with an image column, got {type(images).__name__}."
        )
    tensors = [_one_as_tensor(image, index, channels) for index, image in enumerate(images)]
    if not tensors:
        raise ValueError("`images` must not be empty, got no image.")
    for index, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype):
            raise ValueError(
                f"`images` must all have one size, number of channels and dtype: image 0 has {_describe(tensors[0])},"
                f" image {index} has {_describe(tensor)}."
            )
    return torch.stack(tensors)


def _with_batch(tensor: torch.Tensor, channels: int | None) -> torch.Tensor:
    r"""A tensor of one image, `(C, H, W)` or grey `(H, W)`, or of grey ones, `(N, H, W)`, as `(N, C, H, W)`; what could be
    either is left as it is, and refused."""
    if tensor.ndim == 2 and channels in (None, 1):
        return tensor[None, None]
    if tensor.ndim == 3 and channels is not None and tensor.shape[0] == channels:
        return tensor[None]
    return tensor[:, None] if tensor.ndim == 3 and channels == 1 else tensor


def _is_one(array: np.ndarray, channels: int | None, size: tuple[int, int] | None) -> bool:
    r"""Whether an array is one image, `(H, W)`, `(H, W, C)` or `(C, H, W)`; of three axes it may be grey ones, `(N, H, W)`."""
    if array.ndim != 3 or channels is None:
        return array.ndim == 2
    if channels == 1:
        return size is not None and array.shape == (*size, 1) and array.shape[1:] != size
    return channels in (array.shape[0], array.shape[2])


def _batches(data: Any) -> Iterator[Any]:
    r"""The images of a Dataset or DataLoader of torch, some at a time."""
    if isinstance(data, torch.utils.data.DataLoader):
        if isinstance(data.sampler, torch.utils.data.RandomSampler):
            raise ValueError("`images` must have an order, got a DataLoader that shuffles; its `dataset` has one.")
        yield from map(_images_of, data)
        return
    # Not all of them stop by themselves where they end.
    items = iter(data) if not hasattr(data, "__len__") else (data[index] for index in range(len(data)))
    while some := [_images_of(item) for item in islice(items, ITEMS_AT_HAND)]:
        yield some


def _images_of(item: Any) -> Any:
    r"""The image, or the batch of images, of what a Dataset or DataLoader gives: itself, or the only one among its values."""
    if _is_image(item) or isinstance(item, list) and item and all(isinstance(one, Image.Image) for one in item):
        return item
    values = list(item.values()) if isinstance(item, Mapping) else list(item) if isinstance(item, (tuple, list)) else []
    images = [value for value in values if _is_image(value)]
    if len(images) != 1:
        what = f"{len(images)} of them in a {type(item).__name__}" if values else type(item).__name__
        raise ValueError(f"`images` must give images, or tuples or dictionaries with one image each, got {what}.")
    return images[0]


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 1


def _describe(tensor: torch.Tensor) -> str:
    return f"the shape {tuple(tensor.shape)} and dtype {str(tensor.dtype)[6:]}"


def _one_as_tensor(image: Any, index: int, channels: int | None) -> torch.Tensor:
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file() or path.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(
                f"`images` must be paths of pictures ({', '.join(PICTURE_SUFFIXES)}), got {str(image)!r}."
                " (`ddpm_vlb.load_images` reads other files, folders, and data sets of the Hub.)"
            )
        image = open_picture(path, str(image))
    if isinstance(image, Image.Image):
        return array_to_tensor(pil_to_array(image, f"image {index}")[None], None)[0]
    if isinstance(image, np.ndarray):
        return array_to_tensor(image[None], channels)[0]
    if isinstance(image, torch.Tensor):
        return image.detach()[None] if image.ndim == 2 else image.detach()
    raise ValueError(f"`images` must hold tensors, arrays, PIL images or paths, got {type(image).__name__} at index {index}.")


def array_to_tensor(array: np.ndarray, channels: int | None) -> torch.Tensor:
    r"""Arrays `(N, H, W, C)` or `(N, H, W)` as a tensor `(N, C, H, W)`."""
    if array.dtype.name not in ARRAY_DTYPES or isinstance(array, np.ma.MaskedArray):
        what = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"dtype {array.dtype}"
        raise ValueError(f"`images` must be plain arrays of dtype {', '.join(ARRAY_DTYPES)}, got {what}.")
    if array.ndim == 3 and channels not in (None, 1):
        raise ValueError(f"`images` must be an array of shape (N, H, W, {channels}), got {array.shape}.")
    if array.ndim == 3:
        array = array[..., None]
    # Arrays keep channels last, as everywhere in diffusers; channels first is taken only where nothing else can be meant.
    channels_last = array.ndim == 4 and (channels is None or array.shape[3] == channels or array.shape[1] != channels)
    if channels_last:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def pil_to_array(picture: Image.Image, name: str = "image", transform: Transform | None = None) -> np.ndarray:
    r"""The pixels of a PIL image as they are, `(H, W)` or `(H, W, 3)`, uint8 or uint16; upright, as its EXIF orientation says.

    Args:
        picture: the image.
        name: of it, for refusals.
        transform: what is done to it first.

    Raises:
        ValueError: a mode other than 8-bit grey, 8-bit RGB or 16-bit grey: transparency, palettes and the like have no levels.
    """
    check_as_stored(picture, name)
    picture = upright(picture)
    if transform is not None:
        picture = transform(picture, name)
    if picture.mode not in PIL_MODES:
        raise ValueError(
            f"`images` must be PIL images of mode L, RGB or I;16, got mode {picture.mode} ({name}); convert it yourself,"
            " since what becomes of transparency or of a palette is a choice."
        )
    return np.asarray(picture).astype(PIL_MODES[picture.mode])


def image_column(dataset: Any, column: str | None = None) -> str:
    r"""The image column of a `datasets.Dataset`: the one that was asked for, or the only one.

    Raises:
        ValueError: none, or more than one of which none was asked for.
    """
    features = dataset.features or {}
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if column is not None and column not in columns:
        raise ValueError(
            f"`image_column` must be a column of images, got {column!r} for {list(features)} with images in {columns}."
        )
    if column is None and len(columns) != 1:
        raise ValueError(f"`images` must have one image column, got the columns {list(features)} with images in {columns}.")
    return column or columns[0]


def stored_pictures(dataset: Any, column: str | None = None) -> tuple[Any, Callable[[Any, str], Image.Image]]:
    r"""The rows of a data set of the `datasets` library, its pictures as they are stored, and what opens a row's by our rule.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset`.
        column: of its images, where it has several.

    Returns:
        The rows, and a function of a row and its name.

    Raises:
        ValueError: as `image_column`.
    """
    column = image_column(dataset, column)
    feature = dataset.features[column]
    # Whatever format they would be handed out in, and nothing of the other columns.
    rows = dataset.with_format(None).select_columns([column]).cast_column(column, type(feature)(decode=False))
    return rows, partial(_open_row, column, feature.mode)


def _open_row(column: str, mode: str | None, row: Any, name: str) -> Image.Image:
    return open_stored(row[column], name, mode)
