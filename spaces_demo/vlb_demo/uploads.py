r"""Pictures from outside, brought onto a model's grid: refused, or changed in plain sight.

What is scored is always the picture that is shown: cropped and resized to the model's size, then each value moved to the
nearest of its levels.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_vlb.data.complexity import complexity  # noqa: F401
from ddpm_vlb.pixel_grid import quantize

from .texts import Refusal

MAX_BYTES = 5 * 2**20
MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# Wherever in the app a picture is opened: twice as many are refused by the decoder, and more than MAX_PIXELS here.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def open_picture(path: str | Path) -> Image.Image:
    r"""A still, opaque picture of 8 bits, grey or RGB.

    Raises:
        Refusal: anything else, damaged files among it.
    """
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise Refusal("too_many_bytes", limit=MAX_BYTES // 2**20, got=f"{size / 2**20:.1f}")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Refusal("too_many_pixels", limit=MAX_PIXELS, got=f"{picture.width} x {picture.height}")
            if getattr(picture, "n_frames", 1) > 1:
                raise Refusal("animated", got=picture.n_frames)
            if picture.mode.startswith(("I", "F")):
                raise Refusal("not_8_bit", got=picture.mode)
            if picture.has_transparency_data:
                raise Refusal("transparent", got=picture.mode)
            if picture.mode not in ("1", "L", "P", "RGB"):
                raise Refusal("not_grey_or_rgb", got=picture.mode)
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            return picture.convert("RGB") if picture.mode == "P" else picture.copy()
    except Refusal:
        raise
    except Image.DecompressionBombError as error:
        raise Refusal("too_many_pixels", limit=MAX_PIXELS, got=">") from error
    except UnidentifiedImageError as error:
        raise Refusal("no_picture", formats=", ".join(FORMATS)) from error
    except Exception as error:  # a damaged file can make a decoder stumble over anything
        raise Refusal("damaged", reason=" ".join(str(error).split())[:200]) from error


def fit(picture: Image.Image, shape: tuple[int, int, int], num_pixel_levels: int) -> torch.Tensor:
    r"""A picture cropped to the middle, resized by averaging, and quantised to a model's grid: levels `(1, C, H, W)`."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise Refusal("channels", got=channels)
    picture = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BOX)
    array = np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)
    return quantize(array.copy(), num_pixel_levels)[None]
