r"""One pass over a data set: what is known of all its images without the network, and as many of them as memory allows.

Images are read in blocks, and each has a number, its place in the data set, by which all that is drawn for it is keyed. What
is known without the network, a few numbers each, is kept of all of them. Of the images themselves those with the smallest
hashes of (seed, number) are kept, as many as the buffer holds: a sample without replacement that depends on no order, so that
streams and data sets larger than memory need one pass.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..noise import mix, mix_array
from .image_sets import StreamedImages
from .levels import check_shape, images_to_levels

BLOCK = 256
BUFFER_BYTES = 2**30

Known = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Images(NamedTuple):
    r"""What one pass over a data set leaves: numbers, classes and what is known of all N images, and some of them whole."""

    numbers: np.ndarray
    prior: torch.Tensor | None
    features: torch.Tensor | None
    frame: np.ndarray
    levels: torch.Tensor
    labels: torch.Tensor | None
    sha256: str


def number_images(
    source: Any, labels: Sequence[int] | torch.Tensor | None, shard: tuple[int, int], max_images: int | None
) -> Iterator[tuple[int, Callable[[], torch.Tensor], int | None]]:
    r"""The number of each image of the shard, a function that reads its levels, and its class."""
    index, count = shard
    if isinstance(source, StreamedImages):
        for number, read in enumerate(source.in_order()):
            if max_images is not None and number >= max_images:
                return
            if number % count == index:
                yield number, read, None
        return
    total = len(source) if max_images is None else min(len(source), max_images)
    for number in range(index, total, count):
        label = None if labels is None else int(labels if isinstance(labels, int) else labels[number])
        yield number, lambda number=number: source[number], label


def blocks(numbered, num_pixel_levels: int, channels: int, size: tuple[int, int] | None, block: int) -> Iterator[tuple]:
    r"""Numbers, levels and classes of the next images."""

    def take(some):
        stacked = torch.stack([torch.as_tensor(read()) for _, read, _ in some])
        levels = images_to_levels(stacked, num_pixel_levels, channels=channels, size=size)
        labels = None if some[0][2] is None else torch.tensor([label for _, _, label in some])
        return np.array([number for number, _, _ in some]), levels, labels

    some = []
    for one in numbered:
        some.append(one)
        if len(some) == block:
            yield take(some)
            some = []
    if some:
        yield take(some)


class Frame:
    r"""Takes in blocks of images, and keeps a sample of them.

    Args:
        known: of levels `(B, C, H, W)`, what is known of them without a network: two tensors of B rows, called `prior` and
            `features` in `Images`; `None` where nobody asks.
        seed: of the evaluation.
        buffer_bytes: memory for images.
        at_least: so many are kept whatever memory they take.
    """

    def __init__(self, known: Known | None, seed: int, buffer_bytes: int, at_least: int = BLOCK):
        self._known, self._seed, self._buffer_bytes, self._at_least = known, seed, buffer_bytes, at_least
        self._numbers, self._priors, self._features = [], [], []
        self._kept: list[tuple[np.ndarray, torch.Tensor, torch.Tensor | None]] = []
        self._capacity = 0
        self._digest = hashlib.sha256()

    def add(self, numbers: np.ndarray, levels: torch.Tensor, labels: torch.Tensor | None) -> None:
        r"""Take in a block."""
        _update_digest(self._digest, levels, labels)
        if self._known is not None:
            prior, features = self._known(levels)
            self._priors.append(prior)
            self._features.append(features)
        self._numbers.append(numbers)
        self._kept.append((numbers, levels, labels))
        self._capacity = max(self._at_least, self._buffer_bytes // (levels[0].numel() * levels.element_size()))
        if sum(len(numbers) for numbers, _, _ in self._kept) > 2 * self._capacity:
            self._drop()

    def _drop(self) -> None:
        r"""Of the images at hand keep those with the smallest hashes, in their order."""
        numbers = np.concatenate([numbers for numbers, _, _ in self._kept])
        levels = torch.cat([levels for _, levels, _ in self._kept])
        labels = None if self._kept[0][2] is None else torch.cat([labels for _, _, labels in self._kept])
        if len(numbers) > self._capacity:
            hashes = mix_array(mix(self._seed, 2**32), numbers)
            chosen = np.sort(np.argsort(hashes, kind="stable")[: self._capacity])
            places = torch.as_tensor(chosen)
            numbers, levels, labels = numbers[chosen], levels[places], None if labels is None else labels[places]
        self._kept = [(numbers, levels, labels)]

    @property
    def sha256(self) -> str:
        r"""Of all images and classes so far."""
        return self._digest.hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        r"""What a report says of the images."""
        return {"image_shape": list(self.images().levels.shape[1:]), "data_sha256": [self.sha256]}

    def images(self) -> Images:
        r"""What is left of all blocks.

        Raises:
            ValueError: there were none.
        """
        if not self._kept:
            raise ValueError("`images` must hold at least one image, got none.")
        self._drop()
        all_numbers = np.concatenate(self._numbers)
        numbers, levels, labels = self._kept[0]
        return Images(
            numbers=all_numbers,
            prior=torch.cat(self._priors) if self._priors else None,
            features=torch.cat(self._features) if self._features else None,
            frame=np.searchsorted(all_numbers, numbers),
            levels=levels,
            labels=labels,
            sha256=self.sha256,
        )


def read_images(image_blocks, known: Known | None, seed: int, buffer_bytes: int, at_least: int = BLOCK) -> Images:
    r"""One pass over the images."""
    frame = Frame(known, seed, buffer_bytes, at_least)
    for block in image_blocks:
        frame.add(*block)
    return frame.images()


def _update_digest(digest, levels: torch.Tensor, labels: torch.Tensor | None) -> None:
    r"""Add images and their classes to a hash of the data."""
    digest.update(levels.to(torch.int32).numpy().tobytes())
    if labels is not None:
        digest.update(labels.long().numpy().tobytes())


def source_of(pipe, images: Any, class_labels: Any) -> tuple[Any, Any, int, tuple[int, int] | None]:
    r"""What `number_images` and `blocks` take."""
    channels, size = pipe.unet.config.in_channels, pipe.image_size
    if isinstance(images, StreamedImages):
        check_shape(images[0][None], channels, size)
        pipe.check_class_labels(class_labels, 1)
        return images, None, channels, size
    if not hasattr(images, "num_pixel_levels"):
        images = images_to_levels(images, pipe.scheduler.config.num_pixel_levels, channels=channels, size=size)
        images = images.to(torch.uint16) if images.dtype == torch.int32 else images  # as data sets hand them out
    return images, pipe.check_class_labels(class_labels, len(images)), channels, size
