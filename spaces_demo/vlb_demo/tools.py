r"""What agents call: the Model Context Protocol's tools, and endpoints of the API besides.

An agent reads the docstrings below: the first lines, each argument's one line, and what is returned. Every tool answers with
JSON as text, and with one sentence where it refuses.
"""

import base64
import binascii
import inspect
import json
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from . import classes, codec, pictures
from .layout import MAX_SEED, MODEL, guarded
from .models import DEFAULT, Model, Models
from .tabs import bound, reverse, score
from .texts import Refusal
from .uploads import MAX_BYTES, fit, open_picture

KINDS = {int: "an integer", str: "a text", list[str]: "a list of texts"}
REPORTED = ("bits_per_dim", "standard_error", "prior", "transitions_total", "decoder", "num_images", "method")


class Tools:
    r"""The tools, over the models of the page."""

    def __init__(self, models: Models):
        self._models = models

    def list_models(self) -> str:
        r"""The models that the other tools know: unconditional DDPMs, each with held-out images of its own as examples.

        Returns:
            JSON: a list of name, shape of an image (channels, height, width), num_pixel_levels, num_examples,
            num_train_timesteps, num_classes (that `classify_image` tells apart; null where it cannot).
        """
        return _json([self._about(name) for name in self._models.names])

    def _about(self, name: str) -> dict[str, Any]:
        model, has_classes = self._models[name], self._models.has_classes(name)
        return {
            "name": name,
            "shape": model.shape,
            "num_pixel_levels": model.num_pixel_levels,
            "num_examples": len(model.examples),
            "num_train_timesteps": model.num_train_timesteps,
            "num_classes": self._models.classifier(name).network.num_classes if has_classes else None,
        }

    def score_image(
        self, image: str = "", example: int = 0, model: str = DEFAULT, evaluations: int = 256, seed: int = 0
    ) -> str:
        r"""How likely a picture is to a diffusion model: the variational bound on its negative log-likelihood, in bits per
        dimension (fewer bits are likelier), with its Monte Carlo standard error, and where it stands among held-out images.
        The picture is cropped to the middle, resized to the model's size and moved to its grid of pixel levels; `levels` is
        what was scored. Low bits/dim alone does not make a picture one of the model's kind: simple pictures score well.
        p_value is of bits_per_dim alone, and conformal: for a picture of the same kind as the held-out ones it is at most alpha
        with probability at most alpha; a small one says that the picture is less likely than they are, a large one does not say
        that it is of their kind. p_value_range is where it lies within two errors of the score.

        Args:
            image: base64 of a PNG, JPEG, WebP, BMP or GIF file, still, opaque, 8 bits, at most 5 MiB; empty for an example.
            example: number of one of the model's held-out images, from 0, where `image` is empty.
            model: a name that `list_models` gives.
            evaluations: of the network, an even number from 64 to 2048; the error falls with the square root of it.
            seed: of the noise, from 0; the same seed gives the same numbers.

        Returns:
            JSON: bits_per_dim = prior (L_T) + transitions_total (sum of L_t) + decoder (L_0), monte_carlo_error, in bits/dim;
            better_than_share_of_held_out (0 to 1), p_value, p_value_range, num_held_out; uniform (bits/dim of no model at all);
            levels.
        """
        _check_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            upload = str(_write(Path(folder) / "picture", image)) if image else None
            source = "upload" if image else "pick"
            return _json(_last(score.compute(self._models, model, source, example, "as it is", evaluations, seed, upload)))

    def classify_image(
        self, image: str = "", example: int = 0, model: str = DEFAULT, evaluations: int = classes.EVALUATIONS, seed: int = 0
    ) -> str:
        r"""Which class a picture is of, by the bounds that a class-conditional diffusion model gives it for each: classes are
        dropped one after the other by a sequential test, until one is left or the evaluations are used up. The picture is
        brought onto the model's grid as in `score_image`; it is taken for one of the classes whatever it shows.

        Args:
            image: base64 of a PNG, JPEG, WebP, BMP or GIF file, still, opaque, 8 bits, at most 5 MiB; empty for an example.
            example: number of one of the model's held-out images, from 0, where `image` is empty.
            model: a name that `list_models` gives, of those with num_classes.
            evaluations: of the network at the most, 20 to 2000; a pilot of some hundred comes on top.
            seed: of the noise, from 0; the same seed gives the same numbers.

        Returns:
            JSON: label; decided, whether all other classes were dropped (of all pictures at most 5 % are decided otherwise than
            a full sweep would); of each class probabilities, where that lies within two errors (probability_ranges),
            bits_per_dim and monte_carlo_error (of the difference to the label's); num_network_evaluations.
        """
        _check_seed(seed)
        classifier, chosen = self._models.classifier(model), self._models[model]
        with tempfile.TemporaryDirectory() as folder:
            upload = str(_write(Path(folder) / "picture", image)) if image else None
            source = "upload" if image else "pick"
            levels = score.prepare(chosen, source, example, upload, None, "as it is", seed)[0]
        *_, (numbers, _) = classes.race(classifier, levels, evaluations, seed)
        return _json(numbers)

    def bound_of_image(self, example: int = 0, model: str = DEFAULT, steps: int = 50, draws: int = 8, seed: int = 0) -> str:
        r"""The variational bound of one of a model's held-out images, term by term, in bits per dimension.

        Args:
            example: number of the image, from 0.
            model: a name that `list_models` gives.
            steps: K of the model that is scored, 2 to the number of training timesteps; fewer steps make another, worse model.
            draws: of the noise, 2 to 64, and at most 20000 / steps; the errors are those of their mean.
            seed: of the noise, from 0.

        Returns:
            JSON: bits_per_dim = prior (L_T) + transitions_total (sum of L_t) + decoder (L_0), monte_carlo_error; terms, one for
            each of timesteps, from the highest t down to L_0.
        """
        _check_seed(seed)
        return _json(_last(bound.compute(self._models, model, example, steps, draws, bound.ESTIMATORS[0], seed, looks=0)))

    def bound_of_model(self, model: str = DEFAULT) -> str:
        r"""What was measured of a model on images that it was not trained on: the mean variational bound in bits per dimension.

        Args:
            model: a name that `list_models` gives.

        Returns:
            JSON: bits_per_dim = prior (L_T) + transitions_total (sum of L_t) + decoder (L_0), standard_error (over images),
            num_images, method; uniform (bits/dim of no model at all).
        """
        chosen = self._models[model]
        if chosen.report is None:
            raise Refusal("no_report", name=chosen.name)
        reported = {key: chosen.report.get(key) for key in REPORTED}
        return _json({"model": chosen.name, **reported, "uniform": float(torch.tensor(chosen.num_pixel_levels).log2())})

    def sample_images(self, num_images: int = 4, steps: int = 50, model: str = DEFAULT, seed: int = 0) -> str:
        r"""New images, sampled from a model step by step.

        Args:
            num_images: 1 to 16.
            steps: K, network evaluations of each image, 1 to 250; more steps make better images.
            model: a name that `list_models` gives.
            seed: of all noise, from 0.

        Returns:
            JSON: images, base64 of a PNG file each, which `score_image` and `compress_images` take; levels, num_pixel_levels.
        """
        _check_seed(seed)
        chosen = self._models[model]
        most = min(reverse.MAX_STEPS, chosen.num_train_timesteps)
        if not 1 <= num_images <= reverse.MAX_IMAGES:
            raise Refusal("images_range", last=reverse.MAX_IMAGES, got=num_images)
        if not 1 <= steps <= most:
            raise Refusal("steps_range", last=most, got=steps)
        chosen.check_time(num_images * steps)
        generator = torch.Generator().manual_seed(seed)
        images = chosen.pipe()(num_images, generator, steps, output_type="pt").images
        levels = (images.cpu().double() * (chosen.num_pixel_levels - 1)).round().int()
        return _json({"model": chosen.name, "steps": steps, **_images(chosen, levels)})

    def compress_images(self, images: list[str], model: str = DEFAULT, steps: int = codec.STEPS) -> str:
        r"""Pictures as one lossless file, nearly as short as the variational bound (bits-back coding); `decompress_file` gives
        them back to the last bit. What is coded is each picture on the model's grid, as in `score_image`. The first few
        pictures of a file are coded without the network: a file of 16 and more shows what the model saves.

        Args:
            images: 1 to 64 of base64 of a PNG, JPEG, WebP, BMP or GIF file, still, opaque, 8 bits, at most 5 MiB each.
            model: a name that `list_models` gives.
            steps: of the chain, 1 to 100; more steps make shorter files, and take longer.

        Returns:
            JSON: file (base64), its size file_bytes and those of the same images as PNG and WebP (png_bytes, webp_bytes);
            bits_per_dim of the file, everything counted; num_images.
        """
        chosen = self._models[model]
        if not 1 <= len(images) <= codec.MAX_IMAGES:
            raise Refusal("images_range", last=codec.MAX_IMAGES, got=len(images))
        with tempfile.TemporaryDirectory() as folder:
            paths = [_write(Path(folder) / str(index), image) for index, image in enumerate(images)]
            levels = torch.cat([fit(open_picture(path), chosen.shape, chosen.num_pixel_levels) for path in paths])
        data = codec.encode(chosen, levels, steps)
        sizes = codec.sizes(chosen, levels, data)
        return _json({"model": chosen.name, **sizes, "file": base64.b64encode(data).decode()})

    def decompress_file(self, file: str, model: str = DEFAULT) -> str:
        r"""The pictures of a file that `compress_images` made, to the last bit; never wrong ones: damaged files and those of
        another model are refused.

        Args:
            file: base64 of a .vlb file, at most 1 MiB.
            model: the one that the file was made with.

        Returns:
            JSON: images, base64 of a PNG file each; levels, num_pixel_levels.
        """
        chosen = self._models[model]
        return _json({"model": chosen.name, **_images(chosen, codec.decode(chosen, _bytes(file, "file")))})

    def add(self) -> None:
        r"""Make each an endpoint of the page that is being built."""
        for name, function in inspect.getmembers(self, inspect.ismethod):
            if not name.startswith("_") and name != "add":
                gr.api(guarded(_checked(function)), api_name=name, **MODEL)


def _checked(function: Callable) -> Callable:
    r"""A tool that refuses values of another kind than it says: nothing stands between it and the network."""
    parameters = inspect.signature(function).parameters.values()

    @wraps(function)
    def call(*values: Any) -> str:
        for parameter, value in zip(parameters, values):
            kind = parameter.annotation
            right = (
                isinstance(value, list) and all(type(one) is str for one in value) if kind == list[str] else type(value) is kind
            )
            if not right:
                raise Refusal("kind", name=parameter.name, kind=KINDS[kind], got=repr(value)[:60])
        return function(*values)

    return call


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise Refusal("seed_range", last=MAX_SEED, got=seed)


def _bytes(text: str, name: str) -> bytes:
    if len(text) > 4 * MAX_BYTES // 3 + 100:
        raise Refusal("too_many_bytes", limit=MAX_BYTES // 2**20, got=f"{3 * len(text) / 4 / 2**20:.1f}")
    try:
        # Data addresses, which browsers give, hold the same behind a comma.
        return base64.b64decode(text.rpartition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("not_base64", name=name) from None


def _write(path: Path, image: str) -> Path:
    path.write_bytes(_bytes(image, "image"))
    return path


def _images(model: Model, levels: torch.Tensor) -> dict[str, Any]:
    files = [codec.as_file(image, "PNG") for image in pictures.to_bytes(levels, model.num_pixel_levels)]
    return {
        "num_images": len(levels),
        "num_pixel_levels": model.num_pixel_levels,
        "images": [base64.b64encode(file).decode() for file in files],
        "levels": levels.tolist() if levels.numel() <= 4096 else None,
    }


def _last(results) -> dict[str, Any]:
    *_, (numbers, _, _) = results
    return numbers


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
