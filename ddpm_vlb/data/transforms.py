r"""Steps that change pictures before they are levels: to one colour, one size, one format. Taken only where they are asked for,
since they change the data, and with them its likelihood; a report says which.

The sizes are torchvision's: `Resize` and `CenterCrop` of a PIL image with the bilinear filter, as diffusers' training scripts
take them, to the last bit.
"""

from dataclasses import asdict, dataclass
from typing import Any, cast

from PIL import Image

from ..checks import check_count

COLOURS = ("L", "RGB")


@dataclass(frozen=True)
class Transform:
    r"""What is done to each picture, in this order; the rest is left as it is.

    Args:
        convert: `"L"` (grey) or `"RGB"`.
        resize: the length of the shorter side in pixels, to which both are brought.
        center_crop: the side in pixels of the square that is cut out of the middle.

    Raises:
        ValueError: sides that are no positive integers, another colour.
    """

    convert: str | None = None
    resize: int | None = None
    center_crop: int | None = None

    def __post_init__(self):
        if self.convert is not None and self.convert not in COLOURS:
            raise ValueError(f"`convert` must be {' or '.join(map(repr, COLOURS))}, got {self.convert!r}.")
        for name in ("resize", "center_crop"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_count(name, getattr(self, name)))

    @property
    def settings(self) -> dict[str, Any]:
        r"""The steps that are taken, by name, as a report's `config` has them."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __call__(self, picture: Image.Image, name: str = "image") -> Image.Image:
        r"""The picture that is looked at in place of another.

        Args:
            picture: upright; `pictures.open_picture` makes it so.
            name: of the picture, for refusals.

        Raises:
            ValueError: a picture with transparency or of 16 bits where that would be lost, a mode that has several ways to the
                colour asked for, a picture smaller than what is cut out of it.
        """
        if self.convert is not None:
            picture = _converted(picture, self.convert, name)
        if self.resize is not None:
            picture = _resized(picture, self.resize, name)
        if self.center_crop is not None:
            picture = _cropped(picture, self.center_crop, name)
        return picture


def _converted(picture: Image.Image, colour: str, name: str) -> Image.Image:
    alpha = cast(int, picture.getchannel("A").getextrema()[0]) if picture.mode in ("LA", "RGBA") else 255
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA") or alpha < 255 or "transparency" in picture.info:
        what = f"mode {picture.mode}" + (" with transparency" if alpha < 255 or "transparency" in picture.info else "")
        raise ValueError(f"`convert` must be of 8-bit pictures without transparency, got {what} ({name}); convert it yourself.")
    return picture.convert(colour)


def _resized(picture: Image.Image, shorter: int, name: str) -> Image.Image:
    if picture.mode not in COLOURS:
        raise ValueError(f"`resize` must be of 8-bit grey or RGB pictures, got mode {picture.mode} ({name}).")
    width, height = picture.size
    if width <= height:
        size = shorter, max(1, int(shorter * height / width))
    else:
        size = max(1, int(shorter * width / height)), shorter
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)


def _cropped(picture: Image.Image, side: int, name: str) -> Image.Image:
    width, height = picture.size
    if min(width, height) < side:
        raise ValueError(f"`center_crop` must be at most the shorter side, got {side} for {width} x {height} pixels ({name}).")
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.crop((left, top, left + side, top + side))
