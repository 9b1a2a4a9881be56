r"""Images of any kind in, pixel levels out; everything that is not exactly on the grid is refused, never rounded.

A model's data live on `num_pixel_levels` grey levels; level k stands for the value 2 k / (num_pixel_levels - 1) - 1. What an
image says is taken literally: an integer is the level k itself, a float is a value on the grid. Bringing other images onto a
grid changes the data; `quantize` does it, as a step of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..pixel_grid import check_num_pixel_levels, samples_to_levels
from ..words import counted

ARRAY_DTYPES = ("uint8", "uint16", "float32", "float64")
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
        images: a tensor `(N, C, H, W)`; a numpy array `(N, H, W, C)` or, for grey images, `(N, H, W)`; a PIL image or a list of
            them; a list of tensors `(C, H, W)` or arrays `(H, W, C)`; a `datasets.Dataset` with an image column. Integers
            (uint8, or uint16 where there are more than 256 levels) are levels, floats (float32 or float64) grid values.
        num_pixel_levels: number of levels of the grid.
        channels, size: the number of channels and the (height, width) that the images must have; `None` for any.

    Returns:
        Levels, shape `(N, C, H, W)`, uint8 up to 256 levels and int32 above.

    Raises:
        ValueError: anything that is not such images: off the grid, not finite, of another size, type or number of channels, or
            none at all.
    """
    check_num_pixel_levels(num_pixel_levels)
    tensor = _as_tensor(images, channels)
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


def _as_tensor(images: Any, channels: int | None) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        if images.layout != torch.strided or images.is_meta:
            raise ValueError(f"`images` must be a dense tensor with values, got layout {images.layout} on {images.device}.")
        return images.detach()
    if isinstance(images, np.ndarray):
        return array_to_tensor(images, channels)
    if isinstance(images, Image.Image):
        images = [images]
    elif hasattr(images, "features") and hasattr(images, "column_names"):
        column = image_column(images)
        images = images.with_format(None)  # pictures as they are stored, whatever format they would be handed out in
        images = [row[column] for row in images]
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        raise ValueError(
            "`images` must be a tensor, an array, PIL images, or a `datasets.Dataset` with an image column,"
            f" got {type(images).__name__}."
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


def _describe(tensor: torch.Tensor) -> str:
    return f"the shape {tuple(tensor.shape)} and dtype {str(tensor.dtype)[6:]}"


def _one_as_tensor(image: Any, index: int, channels: int | None) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return array_to_tensor(pil_to_array(image, f"image {index}")[None], None)[0]
    if isinstance(image, np.ndarray):
        return array_to_tensor(image[None], channels)[0]
    if isinstance(image, torch.Tensor):
        return image.detach()
    raise ValueError(f"`images` must hold tensors, arrays or PIL images, got {type(image).__name__} at index {index}.")


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


def pil_to_array(image: Image.Image, name: str = "image") -> np.ndarray:
    r"""The pixels of a PIL image as they are, `(H, W)` or `(H, W, 3)`, uint8 or uint16.

    Raises:
        ValueError: a mode other than 8-bit grey, 8-bit RGB or 16-bit grey: transparency, palettes and the like have no levels.
    """
    if "transparency" in image.info or _is_rescaled(image):
        what = "transparency" if "transparency" in image.info else "levels that PIL would rescale to 8 bits"
        raise ValueError(f"`images` must be 8-bit grey, 8-bit RGB or 16-bit grey without transparency, got {what} ({name}).")
    if image.mode not in PIL_MODES:
        raise ValueError(
            f"`images` must be PIL images of mode L, RGB or I;16, got mode {image.mode} ({name}); convert it yourself,"
            " since what becomes of transparency or of a palette is a choice."
        )
    return np.asarray(image).astype(PIL_MODES[image.mode])


def _is_rescaled(image: Image.Image) -> bool:
    # PIL brings 16-bit colour, 1 to 4-bit grey and odd PNM ranges to 8 bits while it loads. Before that, the file's own format
    # stands in `tile`; of an image that is loaded already, nothing tells any more.
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if tile[0].startswith("ppm") and arguments[-1] != 255:
            return True
        if image.mode in ("L", "RGB") and any(str(a).partition(";")[2][:1] in tuple("1248") for a in arguments):
            return True
    return False


def image_column(dataset: Any) -> str:
    r"""The one image column of a `datasets.Dataset`.

    Raises:
        ValueError: none, or more than one.
    """
    features = dataset.features or {}
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if len(columns) != 1:
        raise ValueError(f"`images` must have one image column, got the columns {list(features)} with images in {columns}.")
    return columns[0]
