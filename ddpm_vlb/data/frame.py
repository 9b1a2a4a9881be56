r"""One pass over a data set: what is known of all its images without the network, and as many of them as memory allows.

Images are read in blocks, and each has a number, its place in the data set, by which all that is drawn for it is keyed. What
is known without the network, a few numbers each, is kept of all of them. Of the images themselves those with the smallest
hashes of (seed, number) are kept, as many as the buffer holds: a sample without replacement that depends on no order, so that
streams and data sets larger than memory need one pass.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from ..noise import mix, mix_array

BLOCK = 256
BUFFER_BYTES = 2**30

Known = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Block(NamedTuple):
    r"""Some images: their numbers `(B,)`, levels `(B, C, H, W)` and classes `(B,)`."""

    numbers: np.ndarray
    levels: torch.Tensor
    labels: torch.Tensor | None


class Images(NamedTuple):
    r"""What one pass over a data set leaves: numbers, classes and what is known of all N images, and some of them whole."""

    numbers: np.ndarray
    prior: torch.Tensor | None
    features: torch.Tensor | None
    frame: np.ndarray
    levels: torch.Tensor
    labels: torch.Tensor | None
    sha256: str


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
        r"""Keep the images with the smallest hashes, in their order."""
        numbers = np.concatenate([numbers for numbers, _, _ in self._kept])
        levels = torch.cat([levels for _, levels, _ in self._kept])
        labels = None if self._kept[0][2] is None else torch.cat([labels for _, _, labels in self._kept if labels is not None])
        if len(numbers) > self._capacity:
            hashes = mix_array(mix(self._seed, 2**32), numbers)
            chosen = np.sort(np.argsort(hashes, kind="stable")[: self._capacity])
            places = torch.as_tensor(chosen)
            numbers, levels, labels = numbers[chosen], levels[places], None if labels is None else labels[places]
        self._kept = [(numbers, levels, labels)]

    @property
    def sha256(self) -> str:
        r"""SHA-256 of all images and classes so far."""
        return self._digest.hexdigest()

    @property
    def numbers(self) -> np.ndarray:
        r"""The numbers of all images so far."""
        return np.concatenate(self._numbers)

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
        all_numbers = self.numbers
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


def read_images(blocks: Iterable[Block], known: Known | None, seed: int, buffer_bytes: int, at_least: int = BLOCK) -> Images:
    r"""One pass over the images."""
    frame = Frame(known, seed, buffer_bytes, at_least)
    for block in blocks:
        frame.add(*block)
    return frame.images()


def _update_digest(digest, levels: torch.Tensor, labels: torch.Tensor | None) -> None:
    r"""Add images and their classes to a hash of the data."""
    digest.update(levels.to(torch.int32).numpy().tobytes())
    if labels is not None:
        digest.update(labels.long().numpy().tobytes())
