r"""Which images a process of `train_vlb_ddpm.py` sees in which step: a function of the seed and of the step alone."""

import argparse
import hashlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ddpm_vlb.data import ImageSet, images_to_levels, open_images, stream_images
from ddpm_vlb.noise import mix

from .crops import Squares

# What a seed is mixed with, for streams of numbers that have nothing to do with each other.
ORDER, TIMESTEPS, NOISE, DROPOUT, FLIP, SLICE, SCORING, SAMPLING, SHIFT, SYMMETRY, CROP, LABEL = range(12)
# Kept out of training to choose the best weights, where nothing is said: enough to tell them apart, or what can be spared.
NUM_VALIDATION_IMAGES, VALIDATION_SHARE = 128, 0.1


def example_keys(seed: int, stream: int, step: int, places: range) -> list[int]:
    r"""A key for each of some examples of a step's global batch, in one of the streams above."""
    key = mix(mix(seed, stream), step)
    return [mix(key, place) for place in places]


class Plan(NamedTuple):
    r"""How a global batch is cut: part by part, and each part process by process."""

    process_index: int
    num_processes: int
    batch_size: int
    num_parts: int

    @property
    def global_batch_size(self) -> int:
        return self.num_processes * self.batch_size * self.num_parts

    def steps_of(self, num_epochs: int, num_images: int) -> int:
        r"""Updates in so many passes over so many images; the last one may begin another pass."""
        return -(-num_epochs * num_images // self.global_batch_size)

    def parts(self) -> list[range]:
        r"""This process's places in the global batch, part by part."""
        starts = (part * self.num_processes + self.process_index for part in range(self.num_parts))
        return [range(start * self.batch_size, (start + 1) * self.batch_size) for start in starts]

    def in_order(self, gathered: torch.Tensor) -> torch.Tensor:
        r"""Numbers of all examples, gathered process by process, in the order of their places."""
        return gathered.reshape(self.num_processes, self.num_parts, self.batch_size).transpose(0, 1).flatten()


class Data:
    r"""Training images in their keyed order, the slice kept out of them, and the held-out images.

    Example n of a run (n = 0, 1, ... over all batches) is the n-th of one random order of all images after another, so that
    where a run stands is told by n alone. A stream has no such order; there, `position` is (pass, images read in it).
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = a = arguments
        self.validation = self.held_out = None
        # Classes of all images by their numbers, of the slice, and of the held-out ones; how many there are.
        self.labels = self.validation_labels = self.held_out_labels = self.num_classes = None
        self.num_validation_images = wanted = 0
        if a.cache_dir is not None:
            _keep_datasets_in(a.cache_dir)
        dataset = f"{a.dataset}:{a.dataset_config_name}" if a.dataset_config_name else a.dataset
        if a.streaming:
            if a.class_conditional:
                raise ValueError("`class_conditional` must be left out with `streaming`: a stream has no labels.")
            self.images = stream_images(dataset, a.split, a.shuffle_buffer_size)
            self.count = None
            if a.eval_nll_every:
                wanted = NUM_VALIDATION_IMAGES if a.num_validation_images is None else a.num_validation_images
            if wanted:
                self.images, self.validation = self.images.split_off(wanted)
        else:
            self.images = self._open(dataset, a.split, default_split="train")
            if a.eval_nll_every and a.num_validation_images is not None:
                wanted = a.num_validation_images
            elif a.eval_nll_every:
                wanted = max(1, min(NUM_VALIDATION_IMAGES, int(VALIDATION_SHARE * len(self.images))))
            self.count = len(self.images) - wanted
            if self.count < 1:
                raise ValueError(
                    f"`num_validation_images` must leave images to train on, got {wanted} of {len(self.images)} images."
                )
            self._order = _permutation(mix(a.seed, SLICE), len(self.images))
            if a.class_conditional:
                self.labels = class_labels(self.images)
                self.num_classes = int(self.labels.max()) + 1
            if wanted:
                kept = self._order[self.count :]
                self.validation = torch.stack([self.images[index] for index in kept])
                self.validation_labels = None if self.labels is None else self.labels[kept]
        self.num_validation_images = wanted
        self.shape = tuple(self.images[0].shape)
        if arguments.random_symmetry and self.shape[1] != self.shape[2]:
            raise ValueError(
                f"`random_symmetry` must be 0 for images that are not square, got {self.shape[1]} x {self.shape[2]}."
            )
        self.num_pixel_levels = a.num_pixel_levels or self.images.num_pixel_levels
        if a.eval_split or a.eval_dataset:
            held_out = self._open(a.eval_dataset or dataset, a.eval_split)
            if (held_out.name, held_out.split) == (self.images.name, self.images.split):
                raise ValueError(
                    "`eval_split` and `eval_dataset` must name images that are not trained on,"
                    f" got {held_out.name!r} (split {held_out.split!r}) for both."
                )
            rows = _permutation(mix(a.seed, SLICE), len(held_out))[: a.num_eval_images]
            self.held_out = torch.stack([held_out[index] for index in rows])
            if a.class_conditional:
                self.held_out_labels = class_labels(held_out, self.num_classes)[rows]
        # Tells the same images at another place from others.
        some = self.images[0] if self.count is None else torch.stack([self.images[index] for index in self._order[:8]])
        self.fingerprint = hashlib.sha256(some.numpy().tobytes()).hexdigest()[:16]
        # All that is in memory is checked now, the rest when it is read.
        at_hand = self.images.images if isinstance(self.images, ImageSet) else self.images[0][None]
        for images in (at_hand, self.validation, self.held_out):
            if images is not None:
                images_to_levels(images, self.num_pixel_levels, channels=self.shape[0], size=self.shape[1:])

    @property
    def unlabelled_class(self) -> int | None:
        r"""The class that stands for no label, where there is one: the one after the data set's own."""
        return self.num_classes if self.arguments.class_dropout else None

    @property
    def num_embeddings(self) -> int | None:
        r"""Classes that the network has."""
        return None if self.num_classes is None else self.num_classes + (self.unlabelled_class is not None)

    def _open(self, source: str, split: str | None, **options: Any) -> Any:
        images = open_images(source, split, **options)
        return images if self.arguments.resolution is None else Squares(images, self.arguments.resolution)

    @property
    def squares(self) -> list[Any] | None:
        r"""How images were brought to one size, `None` where they were not; what a run that is resumed must do, too."""
        a = self.arguments
        return None if a.resolution is None else [a.resolution, "center" if a.center_crop else "random"]

    def validation_file(self) -> bytes:
        r"""The validation slice as an npz file, `images` `(N, H, W, C)` and, where there are classes, `labels` `(N,)`."""
        buffer = io.BytesIO()
        labels = {} if self.validation_labels is None else {"labels": self.validation_labels.numpy()}
        np.savez_compressed(buffer, images=self.validation.permute(0, 2, 3, 1).numpy(), **labels)
        return buffer.getvalue()

    def batches(self, plan: Plan, start: int, position: tuple[int, int]) -> Iterator:
        r"""This process's parts of the global batches from number `start` on: (position, levels `(B, C, H, W)`,
        classes `(B,)` or `None`)."""
        if self.count is None:
            yield from self._stream(plan, *position)
            return
        workers = self.arguments.dataloader_num_workers
        loader = torch.utils.data.DataLoader(
            _Readable(self.images, self.labels), batch_sampler=self._rows(plan, start), collate_fn=_stack, num_workers=workers
        )
        for read in loader:
            if isinstance(read, ValueError):
                raise read
            levels, labels = read
            yield (0, 0), levels, labels

    def _rows(self, plan: Plan, start: int) -> Iterator[list[Any]]:
        epoch = order = None
        at_random = isinstance(self.images, Squares) and not self.arguments.center_crop
        key = mix(self.arguments.seed, CROP)
        for step in itertools.count(start):
            for places in plan.parts():
                rows = []
                for number in (step * plan.global_batch_size + place for place in places):
                    if number // self.count != epoch:
                        epoch = number // self.count
                        order = _permutation(mix(mix(self.arguments.seed, ORDER), epoch), self.count)
                    row = self._order[order[number % self.count]]
                    rows.append((row, mix(key, number)) if at_random else row)
                yield rows

    def _stream(self, plan: Plan, epoch: int, done: int) -> Iterator:
        # Every process reads the whole stream, and decodes what is its own.
        examples = self._endless(epoch, done)
        while True:
            for part, places in enumerate(plan.parts()):
                first = part * plan.num_processes * plan.batch_size
                levels = []
                for place in range(first, first + plan.num_processes * plan.batch_size):
                    position, decode = next(examples)
                    if place in places:
                        levels.append(decode())
                yield position, torch.stack(levels), None

    def _endless(self, epoch: int, done: int) -> Iterator:
        while True:
            read = 0
            for read, decode in enumerate(self.images.epoch(mix(mix(self.arguments.seed, ORDER), epoch)), start=1):
                if read > done:
                    yield (epoch, read), decode
            if read == 0:
                raise ValueError(f"`dataset` must hold images beyond those for validation, got none in {self.images.name!r}.")
            epoch, done = epoch + 1, 0


class _Readable:
    r"""Images by index; a damaged one is handed over as the error it is, for a worker's own would arrive as a traceback."""

    def __init__(self, images, labels: torch.Tensor | None):
        self.images, self.labels = images, labels

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor | None] | ValueError:
        try:
            number = index[0] if isinstance(index, tuple) else index
            return self.images[index], None if self.labels is None else self.labels[number]
        except ValueError as error:
            return error


def _stack(read: list) -> tuple[torch.Tensor, torch.Tensor | None] | ValueError:
    damaged = next((one for one in read if isinstance(one, ValueError)), None)
    if damaged is not None:
        return damaged
    levels, labels = zip(*read)
    return torch.stack(levels), None if labels[0] is None else torch.stack(labels)


def class_labels(images: Any, num_classes: int | None = None) -> torch.Tensor:
    r"""The classes of a data set `(N,)`, or `ValueError`: one that has none, or others than `num_classes` ones from 0 on."""
    if images.labels is None:
        raise ValueError(f"`class_conditional` must be left out for images without labels, got {images.name!r}.")
    labels = torch.as_tensor(images.labels, dtype=torch.int64)
    if int(labels.min()) < 0 or num_classes is not None and int(labels.max()) >= num_classes:
        rule = "not be negative" if num_classes is None else f"lie in [0, {num_classes}), as those that are trained on"
        raise ValueError(
            f"`class_conditional` must have labels that {rule}, got {int(labels.min())} to {int(labels.max())} in"
            f" {images.name!r}."
        )
    return labels


def _keep_datasets_in(folder: Path) -> None:
    try:
        import datasets.config
    except ImportError:
        return  # whoever asks for a data set of the Hub is told
    datasets.config.HF_DATASETS_CACHE = str(folder)


def _permutation(key: int, count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(key)).tolist()
