r"""Pictures as files as long as the bound says, and back, where `ddpm_vlb.codec` and its coder are installed."""

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import pictures
from .models import Model
from .texts import Refusal

try:
    from ddpm_vlb.codec import compress, decompress, read_info

    # The single file that stands for the package where that is missing has no codec, and answers any name with itself.
    AVAILABLE = callable(compress) and importlib.util.find_spec("constriction") is not None
except ImportError:
    AVAILABLE = False

STEPS = 10  # of the chain: of more, files become shorter by a few per cent, and slower by as much as there are more
MAX_STEPS, MAX_IMAGES, MAX_FILE_BYTES = 100, 64, 2**20
FLOAT64 = 5  # times the time of float32, about


def encode(model: Model, levels: torch.Tensor, steps: int = STEPS) -> bytes:
    r"""Levels `(N, C, H, W)` as a file; `Refusal` where it would take too long, or where there is no codec."""
    _check(model, len(levels), steps)
    return compress(model.pipe(), levels, num_inference_steps=steps)


def decode(model: Model, data: bytes) -> torch.Tensor:
    r"""The levels `(N, C, H, W)` of a file, to the last bit.

    Raises:
        Refusal: a file that is too large, or would take too long.
        ValueError: a damaged file, or one of another model.
    """
    if not AVAILABLE:
        raise Refusal("no_codec")
    if len(data) > MAX_FILE_BYTES:
        raise Refusal("too_many_bytes", limit=MAX_FILE_BYTES // 2**20, got=f"{len(data) / 2**20:.1f}")
    header, blocks = read_info(data)
    # What a file says of itself is believed only as far as a visitor may go.
    _check(model, sum(block.num_images for _, block in blocks), header.num_steps)
    return decompress(model.pipe(), data)


def _check(model: Model, count: int, steps: int) -> None:
    if not AVAILABLE:
        raise Refusal("no_codec")
    if not 1 <= count <= MAX_IMAGES:
        raise Refusal("images_range", last=MAX_IMAGES, got=count)
    most = min(MAX_STEPS, model.num_train_timesteps)
    if not 1 <= steps <= most:
        raise Refusal("steps_range", last=most, got=steps)
    model.check_time(FLOAT64 * count * steps)


def sizes(model: Model, levels: torch.Tensor, data: bytes) -> dict[str, Any]:
    r"""What images take as `data` and as lossless PNG and WebP files: bytes, everything counted; of several, one sheet."""
    sheet = pictures.to_bytes(levels, model.num_pixel_levels)
    sheet = sheet.reshape(-1, *sheet.shape[2:])  # one below the other
    return {
        "num_images": len(levels),
        "file_bytes": len(data),
        "png_bytes": len(as_file(sheet, "PNG", optimize=True)),
        "webp_bytes": len(as_file(sheet, "WEBP", lossless=True, quality=100, method=6)),
        "bits_per_dim": 8 * len(data) / levels.numel(),
    }


def as_file(image: np.ndarray, form: str, **options: Any) -> bytes:
    r"""One image `(H, W, C)` uint8 as a file of Pillow's format `form`."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(buffer, format=form, **options)
    return buffer.getvalue()


def company(model: Model, number: int | None, count: int) -> torch.Tensor:
    r"""So many of a model's images, without number `number`."""
    others: Sequence[int] = [index for index in range(len(model.examples)) if index != number]
    return model.examples[list(others[:count])]
