r"""A picture file, or the bytes of one, opened by the one rule of all readers.

A picture is what its file says: turned upright as its EXIF orientation asks, which cameras write in place of turning pixels,
and never brought to other levels unseen. What it is is looked at before any pixel is: the kind of file, the format, which is
one of a list (Pillow guesses formats by content, and starts Ghostscript for some), the number of frames and of pixels.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from PIL import ExifTags, Image, ImageOps

PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
MAX_PICTURE_PIXELS = 2**26  # 8192 x 8192; of far larger ones Pillow itself warns


def open_picture(file: Path | bytes, name: str) -> Image.Image:
    r"""A still picture, loaded and upright.

    Args:
        file: its path, or its content.
        name: of the picture, for refusals.

    Raises:
        ValueError: what is no file, of no format of `PICTURE_FORMATS`, damaged, animated, or of more than
            `MAX_PICTURE_PIXELS`; levels that could not be told.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ValueError(f"`dataset` must hold regular files, got {name!r}, which is none.")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=PICTURE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise ValueError(
                    f"`dataset` must hold pictures of at most {MAX_PICTURE_PIXELS} pixels, got {picture.width} x"
                    f" {picture.height} in {name!r}."
                )
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                raise ValueError(f"`dataset` must hold still images, got {frames} frames in {name!r}.")
            check_as_stored(picture, name)
            picture.load()
            return upright(picture)
    except Exception as error:  # a damaged file can make a decoder stumble over anything
        if str(error).startswith("`"):
            raise
        raise ValueError(f"`dataset` must hold readable images, got {name!r}: {error}.") from error


def open_stored(value: Any, name: str, mode: str | None = None) -> Image.Image:
    r"""`open_picture` of what a data set of the `datasets` library has in an image column that is not decoded.

    Args:
        value: a dictionary with `bytes`, or, where they are `None`, the `path`.
        name: of the picture, for refusals.
        mode: that the column's pictures are converted to, where the column says one.

    Raises:
        ValueError: as `open_picture`; a missing picture.
    """
    if not isinstance(value, Mapping) or value.get("bytes") is None and not value.get("path"):
        raise ValueError(f"`dataset` must hold a picture in each row, got {value!r} ({name}).")
    content = value["bytes"]
    if content is None:
        content = _content(value["path"], name)
    picture = open_picture(content, name)
    return picture if mode in (None, picture.mode) else picture.convert(mode)


def _content(path: str, name: str) -> Path | bytes:
    r"""A file by its path here, or the content of one elsewhere: on the Hub, or in an archive."""
    if "://" not in path:
        return Path(path)
    import fsspec  # which huggingface_hub reads with

    try:
        with cast(Any, fsspec.open(path, "rb")) as file:
            return file.read()
    except Exception as error:  # of the network, of archives
        raise ValueError(f"`dataset` must hold readable images, got {name!r}: {error}.") from error


def upright(picture: Image.Image) -> Image.Image:
    r"""A picture turned as its EXIF orientation says; it says nothing then."""
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture


def check_as_stored(picture: Image.Image, name: str) -> None:
    r"""Raise `ValueError` for transparency, or levels that PIL would rescale to 8 bits, as far as it can still be told."""
    if "transparency" in picture.info or _is_rescaled(picture):
        what = "transparency" if "transparency" in picture.info else "levels that PIL would rescale to 8 bits"
        raise ValueError(f"`images` must be 8-bit grey, 8-bit RGB or 16-bit grey without transparency, got {what} ({name}).")


def _is_rescaled(picture: Image.Image) -> bool:
    # PIL brings 16-bit colour, 1 to 4-bit grey and odd PNM ranges to 8 bits while it loads. Before that, the file's own format
    # stands in `tile`; of an image that is loaded already, nothing tells any more.
    for tile in getattr(picture, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if tile[0].startswith("ppm") and arguments[-1] != 255:
            return True
        if picture.mode in ("L", "RGB") and any(str(a).partition(";")[2][:1] in tuple("1248") for a in arguments):
            return True
    return False
