r"""How simple a picture is: what a lossless compressor makes of it."""

import io
import math

import numpy as np
import torch
from PIL import Image


def complexity(levels: torch.Tensor, num_pixel_levels: int) -> float | None:
    r"""Bits per dimension that a lossless compressor needs for an image `(C, H, W)`, the best of four: PNG, WebP, an adaptive
    arithmetic code, and the levels as they are; `None` where PNG cannot hold it.

    Of files the size of a picture of one colour is taken off: a file of so small a picture is mostly header. A score less this
    number is that of Serrà et al. (2020), which simple pictures do not win by being simple.
    """
    channels, height, width = levels.shape
    if channels not in (1, 3) or num_pixel_levels > 256:
        return None
    array = levels.to(torch.uint8).permute(1, 2, 0).numpy()
    bits = [levels.numel() * math.log2(num_pixel_levels), _adaptive_code_length(array.ravel(), num_pixel_levels)]
    for options in ({"format": "PNG", "optimize": True}, {"format": "WEBP", "lossless": True, "quality": 100, "method": 4}):
        blank = _file_size(np.broadcast_to(array[:1, :1], array.shape), options)
        bits.append(8 * max(_file_size(array, options) - blank, 0))
    return min(bits) / levels.numel()


def _adaptive_code_length(values: np.ndarray, num_levels: int) -> float:
    r"""Bits of an arithmetic code whose probabilities are the counts so far, each and a half (Krichevsky & Trofimov 1981).

    The order of the values does not matter: the product of the probabilities has the gamma functions of the counts.
    """
    counts = torch.bincount(torch.from_numpy(values.astype(np.int64)), minlength=num_levels).double()
    whole = torch.lgamma(torch.tensor([num_levels / 2, num_levels / 2 + len(values)], dtype=torch.float64))
    parts = torch.lgamma(counts + 0.5) - torch.lgamma(torch.tensor(0.5, dtype=torch.float64))
    return ((whole[1] - whole[0] - parts.sum()) / math.log(2)).item()


def _file_size(array: np.ndarray, options: dict) -> int:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)).save(buffer, **options)
    return buffer.tell()
