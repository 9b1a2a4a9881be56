r"""The grid of levels that images live on: level k of n stands for the value 2 k / (n - 1) - 1."""

import math

import numpy as np
import torch

from .checks import is_integer, shown, working_dtype

MAX_PIXEL_LEVELS = 65536


def check_num_pixel_levels(num_pixel_levels: int) -> None:
    r"""Raise `ValueError` unless `num_pixel_levels` is an integer from 2 to 65536."""
    if not is_integer(num_pixel_levels, 2, MAX_PIXEL_LEVELS):
        raise ValueError(f"`num_pixel_levels` must be an integer from 2 to {MAX_PIXEL_LEVELS}, got {shown(num_pixel_levels)}.")


def levels_to_samples(levels: torch.Tensor, num_pixel_levels: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    r"""Grid values :math:`x = 2k/(n-1) - 1` in [-1, 1] of integer `levels` k; any shape."""
    return levels.to(dtype, copy=True).mul_(2.0 / (num_pixel_levels - 1)).sub_(1.0)


def nearest_levels(samples: torch.Tensor, num_pixel_levels: int) -> torch.Tensor:
    r"""The nearest levels of values of any shape, as floats in the working dtype; beyond the grid where the values are."""
    # float64 so that all 65536 levels stay apart; the levels stay floats, since nothing here needs integers.
    scale = 0.5 * (num_pixel_levels - 1)
    return ((samples.to(working_dtype(samples.device)) + 1.0) * scale).round()


def to_grid(samples: torch.Tensor, num_pixel_levels: int) -> torch.Tensor:
    r"""Values of any shape, each at its nearest grid value; what lies outside [-1, 1] at the end."""
    steps = num_pixel_levels - 1
    levels = (0.5 * (samples + 1) * steps).round().clamp(0, steps)
    return 2 * levels / steps - 1


def samples_to_levels(samples: torch.Tensor, num_pixel_levels: int, name: str = "samples") -> torch.Tensor:
    r"""Integer levels k of float `samples` that lie on the grid (within 4 ulp of float32).

    Args:
        samples: float tensor of any shape with values in [-1, 1].
        num_pixel_levels: the grid's number of levels n.
        name: what the error message calls the tensor.

    Returns:
        int64 tensor of levels, same shape.

    Raises:
        ValueError: values that are not finite, or off the grid. Bringing such images onto the grid is a decision about
            the data (`ddpm_vlb.data.quantize`), never a silent rounding.
    """
    levels = nearest_levels(samples, num_pixel_levels)
    # A float32 image of the grid is wrong by at most one rounding (2^-24) of its value and one of each step that made
    # it (x / 127.5 - 1); 4 ulp cover that, and are far below half a bin for up to 65536 levels.
    ulp = torch.finfo(torch.float32).eps
    error = (levels_to_samples(levels, num_pixel_levels, levels.dtype) - samples).abs()
    good = (error <= 4 * ulp) & (levels >= 0) & (levels < num_pixel_levels)
    if not bool(good.all()):
        worst = samples[~good].flatten()[0].item()
        what = "be finite" if not math.isfinite(worst) else f"lie on the grid 2 k / {num_pixel_levels - 1} - 1"
        raise ValueError(
            f"`{name}` must {what} (num_pixel_levels={num_pixel_levels}), got {worst!r}"
            f" ({int((~good).sum())} of {samples.numel()} values). Values in [0, 1] become 2 x - 1."
        )
    return levels.long()


def quantize(images: torch.Tensor | np.ndarray, num_pixel_levels: int, *, source_levels: int | None = None) -> torch.Tensor:
    r"""Bring images onto the grid of `num_pixel_levels` levels, each value to its nearest level.

    This changes the data: the likelihood is that of the images returned, which should be shown wherever it is.

    Args:
        images: integer levels (of `source_levels`, by default all that the dtype holds), or floats in [-1, 1]; any shape.
        num_pixel_levels: number of levels of the grid.
        source_levels: number of levels of integer `images`.

    Returns:
        Levels of the same shape, uint8 up to 256 levels and uint16 above.

    Raises:
        ValueError: values that are not finite or outside their range.
    """
    check_num_pixel_levels(num_pixel_levels)
    images = torch.as_tensor(images)
    if images.is_complex() or images.dtype == torch.bool:
        raise ValueError(f"`images` must be integers or floats, got dtype {images.dtype}.")
    values = images.to(torch.float64)
    if not images.is_floating_point():
        source_levels = source_levels or torch.iinfo(images.dtype).max + 1
        values = 2.0 * values / (source_levels - 1) - 1.0
    if not bool(((values >= -1) & (values <= 1)).all()):
        raise ValueError(
            f"`images` must lie in [-1, 1], or be levels below {source_levels}, to be quantised; got values that stand for"
            f" {values.min().item()} to {values.max().item()}."
        )
    levels = (0.5 * (values + 1.0) * (num_pixel_levels - 1)).round()
    return levels.to(torch.int32).to(torch.uint8 if num_pixel_levels <= 256 else torch.uint16)
