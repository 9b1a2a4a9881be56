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

from .data import StreamedImages
from .images import check_shape, images_to_levels
from .noise import mix, mix_array
from .scoring import Scorer, known_parts

BLOCK = 256
BUFFER_BYTES = 2**30


class Images(NamedTuple):
    r"""What one pass over a data set leaves: numbers, classes and what is known of all N images, and some of them whole."""

    numbers: np.ndarray
    prior: torch.Tensor
    features: torch.Tensor
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


def read_images(image_blocks, scorers: Sequence[Scorer], seed: int, buffer_bytes: int) -> Images:
    r"""One pass over the images; of two scorers what is known is the difference."""
    numbers, priors, features, kept_numbers, kept, kept_labels = [], [], [], [], [], []
    digest = hashlib.sha256()
    seen = 0
    for block_numbers, levels, labels in image_blocks:
        update_digest(digest, levels, labels)
        known = [known_parts(scorer, levels) for scorer in scorers]
        priors.append(known[0][0] - known[1][0] if len(known) == 2 else known[0][0])
        features.append(known[0][1])
        numbers.append(block_numbers)
        kept_numbers.append(block_numbers)
        kept.append(levels)
        kept_labels.append(labels)
        seen += len(levels)
        capacity = max(BLOCK, buffer_bytes // (levels[0].numel() * levels.element_size()))
        if seen > 2 * capacity:
            kept_numbers, kept, kept_labels = _keep(kept_numbers, kept, kept_labels, seed, capacity)
            seen = capacity
    if not numbers:
        raise ValueError("`images` must hold at least one image, got none.")
    if seen > capacity:
        kept_numbers, kept, kept_labels = _keep(kept_numbers, kept, kept_labels, seed, capacity)
    all_numbers, frame_numbers = np.concatenate(numbers), np.concatenate(kept_numbers)
    return Images(
        numbers=all_numbers,
        prior=torch.cat(priors),
        features=torch.cat(features),
        frame=np.searchsorted(all_numbers, frame_numbers),
        levels=torch.cat(kept),
        labels=None if kept_labels[0] is None else torch.cat(kept_labels),
        sha256=digest.hexdigest(),
    )


def update_digest(digest, levels: torch.Tensor, labels: torch.Tensor | None) -> None:
    r"""Add images and their classes to a hash of the data."""
    digest.update(levels.to(torch.int32).numpy().tobytes())
    if labels is not None:
        digest.update(labels.long().numpy().tobytes())


def _keep(numbers, levels, labels, seed: int, capacity: int) -> tuple[list, list, list]:
    r"""Of the images at hand those with the smallest hashes, in their order."""
    numbers = np.concatenate(numbers)
    chosen = np.sort(np.argsort(mix_array(mix(seed, 2**32), numbers), kind="stable")[:capacity])
    places = torch.as_tensor(chosen)
    return [numbers[chosen]], [torch.cat(levels)[places]], [None if labels[0] is None else torch.cat(labels)[places]]


def source_of(pipe, images: Any, class_labels: Any) -> tuple[Any, Any, int, tuple[int, int] | None]:
    r"""What `number_images` and `blocks` take."""
    channels, size = pipe.unet.config.in_channels, pipe.image_size
    if isinstance(images, StreamedImages):
        check_shape(images[0][None], channels, size)
        pipe.check_class_labels(class_labels, 1)
        return images, None, channels, size
    if not hasattr(images, "num_pixel_levels"):
        images = images_to_levels(images, pipe.scheduler.config.num_pixel_levels, channels=channels, size=size)
    return images, pipe.check_class_labels(class_labels, len(images)), channels, size
