r"""What is asked at every door: counts, seeds, shapes, and whether numbers are finite."""

import numbers
import operator
import reprlib
from typing import Any

import torch

MAX_TIMESTEPS = 1_000_000  # far above what is trained, far below what would keep a computer busy before it is refused
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def shown(value: Any) -> str:
    r"""`repr` of a value from a file, cut to what an error message can hold."""
    return _SHORT.repr(value)


def working_dtype(device: torch.device) -> torch.dtype:
    r"""The dtype in which terms of the bound are formed: float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_working(**tensors: torch.Tensor) -> list[torch.Tensor]:
    r"""Tensors of one shape in the working dtype.

    Raises:
        ValueError: a tensor that is not floating-point (integers would be pixel levels, not values), or of another shape.
    """
    (first, expected), *_ = tensors.items()
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be floating-point values in [-1, 1] or latents, got dtype {tensor.dtype}.")
        if tensor.ndim < 2:
            raise ValueError(f"`{name}` must have the shape (B, C, H, W), got {tuple(tensor.shape)}.")
        if tensor.shape != expected.shape:
            raise ValueError(f"`{name}` must have the shape {tuple(expected.shape)} of `{first}`, got {tuple(tensor.shape)}.")
    return [tensor.to(working_dtype(tensor.device)) for tensor in tensors.values()]


def on_cpu(timesteps: int | torch.Tensor) -> int | torch.Tensor:
    r"""Timesteps where they can be checked without waiting for an accelerator more than once."""
    return timesteps.cpu() if isinstance(timesteps, torch.Tensor) else timesteps


def integer(value: Any) -> int:
    r"""What counts as an integer, or `TypeError`; booleans do not."""
    if isinstance(value, bool):
        raise TypeError("a boolean is no integer")
    return operator.index(value)


def check_count(name: str, value: Any) -> int:
    r"""A positive integer, or `ValueError`."""
    try:
        count = integer(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    return count


def check_integer(name: str, value: Any) -> int:
    r"""An integer, or `ValueError`."""
    try:
        return integer(value)
    except TypeError:
        raise ValueError(f"`{name}` must be an integer, got {value!r}.") from None


def is_number(value: Any) -> bool:
    r"""Whether a value is a real number that torch can take; booleans are none."""
    if isinstance(value, int):  # which may be too large for a float
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, numbers.Real) and abs(float(value)) < 2**63


def is_integer(value: Any, least: int, most: int) -> bool:
    r"""Whether a value is an integer from `least` to `most`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most


def check_num_timesteps(name: str, value: Any) -> None:
    r"""Raise `ValueError` for a number of timesteps T that no table could hold."""
    if not is_integer(value, 1, MAX_TIMESTEPS):
        raise ValueError(f"`{name}` must be an integer from 1 to {MAX_TIMESTEPS}, got {shown(value)}.")


def check_seed(seed: Any, name: str = "seed") -> int:
    r"""A seed in [0, 2^63), or `ValueError`."""
    try:
        number = integer(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"`{name}` must lie in [0, 2^63), got {seed}.")
    return number


class NonFiniteOutput(ValueError):
    r"""A network whose output is not finite.

    Args:
        got: what came of it, "a term of nan bits/dim", say.
        image, timestep: where.
        share: of how many, in words.
        dtype: of the network: in half precision it may have overflowed.
    """

    def __init__(
        self,
        got: str,
        *,
        image: int | None = None,
        timestep: int | float | None = None,
        share: str | None = None,
        dtype: torch.dtype | None = None,
    ):
        where = ("" if image is None else f" for image {image}") + ("" if timestep is None else f" at timestep {timestep}")
        hint = " It may have overflowed: try bfloat16 or float32." if dtype == torch.float16 else ""
        super().__init__(f"`unet` must give finite outputs, got {got}{where}{'' if share is None else f' ({share})'}.{hint}")


def nan_unless_finite(model_output: torch.Tensor) -> torch.Tensor:
    r"""A network's output `(B, C, H, W)`, all NaN for an image where some of it is not finite: of an overflow clipping would
    make a number, of NaN nothing does. Nothing here waits for the device."""
    if not model_output.is_floating_point():
        return model_output
    # Of a sum without overflow nought times is 0, or NaN where something is not finite.
    sums = model_output.detach().flatten(1).sum(dim=1, dtype=working_dtype(model_output.device))
    one_or_nan = sums.mul_(0.0).add_(1.0).to(model_output.dtype).reshape(-1, *[1] * (model_output.ndim - 1))
    # A product with 1 is exact, and one with NaN gives NaN gradients.
    return model_output * one_or_nan


def check_finite(terms: torch.Tensor, grid: list[int], dtype: torch.dtype | None = None) -> None:
    r"""Raise `NonFiniteOutput` for terms `(N, K)` in bits/dim that are not finite; `grid` names the K timesteps."""
    bad = (~torch.isfinite(terms)).nonzero()
    if len(bad):
        image, row = bad[0].tolist()
        raise NonFiniteOutput(
            f"a term of {terms[image, row].item()} bits/dim",
            image=image,
            timestep=grid[row],
            share=f"{len(bad)} of {terms.numel()} terms are not finite",
            dtype=dtype,
        )


# Grey, grey with alpha, RGB, RGB with alpha.
MAX_PICTURE_CHANNELS = 4


def check_output_type(output_type: Any, channels: int) -> None:
    r"""Raise `ValueError` for an unknown kind of images to sample, or for PIL images of more channels than PIL has."""
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
    if output_type == "pil" and channels > MAX_PICTURE_CHANNELS:
        raise ValueError(
            f"`output_type` must be 'np' or 'pt' for images of {channels} channels, of which no picture can be made,"
            f" got {output_type!r}."
        )
