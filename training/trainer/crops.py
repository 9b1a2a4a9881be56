r"""Images of many sizes as squares of one side, as diffusers' `train_unconditional.py` makes them: the shorter side is brought
to it (bilinear), and a square cut out, from the middle or from a place at random.

This changes the data, and with them their likelihood: what is scored must be brought to the same size.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm_vlb.noise import keyed_uniform, mix


class Squares:
    r"""A set of images, each as a square when it is read: `squares[i]` from the middle of image i, `squares[i, key]` from the
    place that a key draws; integer levels `(C, side, side)`.

    Args:
        images: an `ImageSet` or `StoredImages` of 8-bit grey or RGB images.
        side: in pixels.

    Raises:
        ValueError: levels that are not those of 8-bit images.
    """

    def __init__(self, images: Any, side: int):
        self._images, self.side = images, side
        self.name, self.split, self.num_pixel_levels = images.name, images.split, images.num_pixel_levels
        self.labels = images.labels
        if self.num_pixel_levels != 256:
            raise ValueError(
                f"`resolution` must be left out for images that are not 8-bit, got {self.num_pixel_levels} levels."
            )
        self._channels = self._picture(0).ndim

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int | tuple[int, int]) -> torch.Tensor:
        index, key = index if isinstance(index, tuple) else (index, None)
        pixels = self._picture(index)
        if pixels.ndim < self._channels:
            pixels = np.stack([pixels] * 3, axis=-1)  # grey among colour; nothing is lost
        if pixels.ndim > self._channels:
            raise ValueError(f"`dataset` must hold images of one colour, got image 0 in grey and image {index} in colour.")
        across, down = (0.5, 0.5) if key is None else (keyed_uniform(mix(key, axis)) for axis in (0, 1))
        square = np.atleast_3d(cut(Image.fromarray(pixels), self.side, across, down))
        return torch.from_numpy(square.transpose(2, 0, 1).copy())

    def _picture(self, index: int) -> np.ndarray:
        pixels = self._images.pixels(index)
        return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels


def cut(picture: Image.Image, side: int, across: float, down: float) -> Image.Image:
    r"""The square that lies at shares `across` and `down` in [0, 1] of the room that it has in a picture."""
    width, height = picture.size
    shorter = min(width, height)
    size = max(side, side * width // shorter), max(side, side * height // shorter)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (min(int(share * (room + 1)), room) for share, room in zip((across, down), (size[0] - side, size[1] - side)))
    return picture.crop((left, top, left + side, top + side))
