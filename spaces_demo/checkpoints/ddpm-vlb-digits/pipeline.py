# ddpm_vlb 0.1.0, its modules checks, parametrizations, noise_processes, pixel_grid, model.configuration, noise, words, model.conditions, model.digests, model.memory, model.network, model.kinds, error_model, gaussians, forward_process, reverse_process, model.stepping, progress, outputs, bound, calibration.sub_schedules, calibration.stored, losses, noise_schedules, scheduling_bound, scheduling_vlb_ddpm, checkpoints.parts, checkpoints.loading, checkpoints.prompts, data.frame, likelihoods.method, likelihoods.methods, reports.checks, reports.schema, reports.classes, hub.cards, files, hub.eval_results, hub.repository, hub.push, data.pictures, data.transforms, data.levels, model.preconditioned, model.scorer, sampled_bound.draws, sampled_bound.design, sampled_bound.elimination, likelihoods.classify, likelihoods.full_sweep, sampled_bound.control_variates, sampled_bound.tails, sampled_bound.rounds, sampled_bound.rules, sampled_bound.estimate, sampled_bound.draw_scorer, pipeline_vlb_ddpm, likelihoods.rate_distortion, data.complexity, codec.stack, codec.container, codec.arguments, codec.rounding, codec.summary, codec.chain, codec.network, codec.plain, codec.codec in one file; made by ddpm_vlb, not meant to be edited.
# Licence: Apache-2.0
r"""Exact variational bounds on the likelihood for DDPMs of diffusers, for use where `ddpm_vlb` is not installed."""

import bz2
import copy
import ctypes
import difflib
import diffusers
import errno
import hashlib
import html
import importlib
import inspect
import io
import json
import lzma
import math
import numbers
import numpy as np
import operator
import os
import platform
import re
import reprlib
import secrets
import shlex
import shutil
import sys
import tempfile
import time
import torch
import yaml
import zlib
from PIL import ExifTags, Image, ImageOps
from accelerate.hooks import remove_hook_from_module
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.embeddings import GaussianFourierProjection, Timesteps
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from functools import cached_property, lru_cache, partial, reduce
from glob import escape
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, EvalResult, EvalResultEntry, HfApi, ModelCard, ModelCardData, _CACHED_NO_EXIST, eval_result_entries_to_yaml, get_hf_file_metadata, hf_hub_download, hf_hub_url, parse_eval_result_entries, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from itertools import groupby, islice, zip_longest
from pathlib import Path, PurePath
from safetensors import SafetensorError
from scipy.stats import t as student
from threading import Lock
from tqdm.auto import tqdm
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, TYPE_CHECKING, cast, get_args
from urllib.parse import urlunsplit
from weakref import WeakKeyDictionary

__version__ = '0.1.0'

# ---- what the package reads from its own files ----

CARD_TEMPLATE = (
    '---\n'
    '{{ card_data }}\n'
    '---\n'
    '\n'
    '# {{ name }}\n'
    '\n'
    '{{ description }}\n'
    '{% if report %}\n'
    '**{{ "%.4f" | format(report.bits_per_dim) }} bits/dim**{{ error }} on {{ report.num_images }} images of {{ dataset }}: {{ what }}, computed with ddpm_vlb.\n'
    '\n'
    '{{ terms }}\n'
    '\n'
    '{% for caption, file in pictures -%}\n'
    '![{{ caption }}]({{ file }})\n'
    '{% endfor %}\n'
    '## What was scored\n'
    '\n'
    '{{ settings }}\n'
    '\n'
    '{% if command -%}\n'
    'The number comes from\n'
    '\n'
    '```bash\n'
    '{{ command }}\n'
    '```\n'
    '{%- else -%}\n'
    'The number was made in Python, with the settings above, which no command line can say.\n'
    '{%- endif %}\n'
    '{%- if classes %}\n'
    '\n'
    '## Which class\n'
    '\n'
    'As a classifier among {{ classes.num_classes }} classes, by {{ "the bound" if classes.score == "bound" else "squared errors of the noise" }} of each: **accuracy {{ "%.4f" | format(classes.accuracy) }}** ({{ "%.4f" | format(classes.accuracy_interval[0]) }} to {{ "%.4f" | format(classes.accuracy_interval[1]) }}, 95%) on {{ classes.num_images }} images of {{ classes.of }}, of which {{ classes.num_decided }} are decided at a confidence of {{ classes.confidence }}; {{ "%.1f" | format(classes.evaluations_per_image) }} network evaluations an image; expected calibration error {{ "%.4f" | format(classes.expected_calibration_error) }}.\n'
    '\n'
    '{% if classes.command -%}\n'
    '```bash\n'
    '{{ classes.command }}\n'
    '```\n'
    '{%- else -%}\n'
    'It was found in Python, or with a prior of its own, which no command line can say; report.json has it.\n'
    '{%- endif %}\n'
    '{%- endif %}\n'
    '{%- else %}\n'
    'It has not been scored: no number stands here because none was measured.\n'
    '{%- endif %}\n'
    '\n'
    '## Use\n'
    '\n'
    'With `ddpm_vlb` installed (from its sources):\n'
    '\n'
    '```python\n'
    'from ddpm_vlb import VLBDDPMPipeline\n'
    '\n'
    'pipe = VLBDDPMPipeline.from_pretrained("{{ repository }}")\n'
    'images = pipe(batch_size=16{% if conditional %}, class_labels=0{% endif %}).images  # samples\n'
    "out = pipe.evaluate_nll(images_of_yours{% if conditional %}, class_labels=labels{% endif %})  # images on the model's grid\n"
    '```\n'
    '\n'
    '{% if conditional -%}\n'
    "diffusers' own pipeline knows no classes and cannot sample from it.\n"
    '{%- elif not_for_stock -%}\n'
    "diffusers' own scheduler cannot sample from it ({{ not_for_stock }}).\n"
    '{%- elif pipeline is none -%}\n'
    'With diffusers alone, `DiffusionPipeline.from_pretrained("{{ repository }}")` loads it with its {{ scheduler }}, as it was before.\n'
    '{%- else -%}\n'
    'With diffusers alone, samples:\n'
    '\n'
    '```python\n'
    'from diffusers import {{ pipeline }}\n'
    '\n'
    'pipe = {{ pipeline }}.from_pretrained("{{ repository }}")\n'
    'images = pipe(batch_size=16, num_inference_steps={{ num_inference_steps }}).images\n'
    '```\n'
    '{%- endif %}\n'
    '\n'
    'With diffusers alone, and trust in the file `pipeline.py` of this repository (read it first), likelihoods too:\n'
    '\n'
    '```python\n'
    'from diffusers import DiffusionPipeline\n'
    '\n'
    'name = "{{ repository }}"\n'
    'pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)\n'
    'out = pipe.evaluate_nll(images_of_yours{% if conditional %}, class_labels=labels{% endif %})\n'
    '```\n'
    '\n'
    "A pinned `revision=` is the model's; that of the code is `custom_revision=`.\n"
    '\n'
    '## Limits\n'
    '\n'
    '- A bound is not the likelihood: it is larger{% if columns %} on average{% else %} by the divergence of the true posterior over latents from q{% endif %}.\n'
    '- Bits/dim are those of one pixel grid and one data set, and compare with no other.\n'
    '{%- if note %}\n'
    '- {{ note[0] | upper }}{{ note[1:] }}.\n'
    '{%- endif %}\n'
    '{%- if report %}\n'
    '- The standard error covers the choice of images and the noise, not the choice of the training run.\n'
    '{%- endif %}\n'
    '{%- if limits %}\n'
    '- {{ limits }}\n'
    '{%- endif %}\n'
)


def card_template() -> str:
    r"""The Jinja template of a model card."""
    return CARD_TEMPLATE


def standalone_source() -> str:
    r"""This file."""
    with open(__file__, encoding="utf-8") as file:
        return file.read()


# ---- ddpm_vlb/checks.py ----

r"""What is asked at every door: counts, seeds, shapes, and whether numbers are finite."""



MAX_TIMESTEPS = 1_000_000  # far above what is trained, far below what would keep a computer busy before it is refused
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def shown(value: Any) -> str:
    r"""`repr` of a value from a file, cut to what an error message can hold."""
    return _SHORT.repr(value)


def working_dtype(device: torch.device) -> torch.dtype:
    r"""The dtype in which terms of the bound are formed: float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_working(**tensors: torch.Tensor) -> list[torch.Tensor]:
    r"""Tensors of one shape in the working dtype.

    Raises:
        ValueError: a tensor that is not floating-point (integers would be pixel levels, not values), or of another shape.
    """
    (first, expected), *_ = tensors.items()
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be floating-point values in [-1, 1] or latents, got dtype {tensor.dtype}.")
        if tensor.ndim < 2:
            raise ValueError(f"`{name}` must have the shape (B, C, H, W), got {tuple(tensor.shape)}.")
        if tensor.shape != expected.shape:
            raise ValueError(f"`{name}` must have the shape {tuple(expected.shape)} of `{first}`, got {tuple(tensor.shape)}.")
    return [tensor.to(working_dtype(tensor.device)) for tensor in tensors.values()]


def on_cpu(timesteps: int | torch.Tensor) -> int | torch.Tensor:
    r"""Timesteps where they can be checked without waiting for an accelerator more than once."""
    return timesteps.cpu() if isinstance(timesteps, torch.Tensor) else timesteps


def integer(value: Any) -> int:
    r"""What counts as an integer, or `TypeError`; booleans do not."""
    if isinstance(value, bool):
        raise TypeError("a boolean is no integer")
    return operator.index(value)


def check_count(name: str, value: Any) -> int:
    r"""A positive integer, or `ValueError`."""
    try:
        count = integer(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    return count


def check_integer(name: str, value: Any) -> int:
    r"""An integer, or `ValueError`."""
    try:
        return integer(value)
    except TypeError:
        raise ValueError(f"`{name}` must be an integer, got {value!r}.") from None


def is_number(value: Any) -> bool:
    r"""Whether a value is a real number that torch can take; booleans are none."""
    if isinstance(value, int):  # which may be too large for a float
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, numbers.Real) and abs(float(value)) < 2**63


def is_integer(value: Any, least: int, most: int) -> bool:
    r"""Whether a value is an integer from `least` to `most`."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= int(value) <= most


def check_num_timesteps(name: str, value: Any) -> None:
    r"""Raise `ValueError` for a number of timesteps T that no table could hold."""
    if not is_integer(value, 1, MAX_TIMESTEPS):
        raise ValueError(f"`{name}` must be an integer from 1 to {MAX_TIMESTEPS}, got {shown(value)}.")


def check_seed(seed: Any, name: str = "seed") -> int:
    r"""A seed in [0, 2^63), or `ValueError`."""
    try:
        number = integer(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"`{name}` must lie in [0, 2^63), got {seed}.")
    return number


class NonFiniteOutput(ValueError):
    r"""A network whose output is not finite.

    Args:
        got: what came of it, "a term of nan bits/dim", say.
        image, timestep: where.
        share: of how many, in words.
        dtype: of the network: in half precision it may have overflowed.
    """

    def __init__(
        self,
        got: str,
        *,
        image: int | None = None,
        timestep: int | float | None = None,
        share: str | None = None,
        dtype: torch.dtype | None = None,
    ):
        where = ("" if image is None else f" for image {image}") + ("" if timestep is None else f" at timestep {timestep}")
        hint = " It may have overflowed: try bfloat16 or float32." if dtype == torch.float16 else ""
        super().__init__(f"`unet` must give finite outputs, got {got}{where}{'' if share is None else f' ({share})'}.{hint}")


def nan_unless_finite(model_output: torch.Tensor) -> torch.Tensor:
    r"""A network's output `(B, C, H, W)`, all NaN for an image where some of it is not finite: of an overflow clipping would
    make a number, of NaN nothing does. Nothing here waits for the device."""
    if not model_output.is_floating_point():
        return model_output
    # Of a sum without overflow nought times is 0, or NaN where something is not finite.
    sums = model_output.detach().flatten(1).sum(dim=1, dtype=working_dtype(model_output.device))
    one_or_nan = sums.mul_(0.0).add_(1.0).to(model_output.dtype).reshape(-1, *[1] * (model_output.ndim - 1))
    # A product with 1 is exact, and one with NaN gives NaN gradients.
    return model_output * one_or_nan


def check_finite(terms: torch.Tensor, grid: list[int], dtype: torch.dtype | None = None) -> None:
    r"""Raise `NonFiniteOutput` for terms `(N, K)` in bits/dim that are not finite; `grid` names the K timesteps."""
    bad = (~torch.isfinite(terms)).nonzero()
    if len(bad):
        image, row = bad[0].tolist()
        raise NonFiniteOutput(
            f"a term of {terms[image, row].item()} bits/dim",
            image=image,
            timestep=grid[row],
            share=f"{len(bad)} of {terms.numel()} terms are not finite",
            dtype=dtype,
        )


# Grey, grey with alpha, RGB, RGB with alpha.
MAX_PICTURE_CHANNELS = 4


def check_output_type(output_type: Any, channels: int) -> None:
    r"""Raise `ValueError` for an unknown kind of images to sample, or for PIL images of more channels than PIL has."""
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
    if output_type == "pil" and channels > MAX_PICTURE_CHANNELS:
        raise ValueError(
            f"`output_type` must be 'np' or 'pt' for images of {channels} channels, of which no picture can be made,"
            f" got {output_type!r}."
        )


# ---- ddpm_vlb/parametrizations.py ----

r"""What a network's output means, a row each: its prediction, and the variance of its reverse steps.

**Predictions.** Whatever the network says, with :math:`x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \epsilon` it
amounts to an image that is linear in what it saw and in what it said:

================  ============================  =============================================================================
prediction type   the network's target          the image it amounts to
================  ============================  =============================================================================
`epsilon`         :math:`\epsilon`              :math:`\hat x = (x_t - \sqrt{1 - \bar\alpha_t}\, o) / \sqrt{\bar\alpha_t}`
`sample`          :math:`x`                     :math:`\hat x = o`
`v_prediction`    :math:`\sqrt{\bar\alpha_t}\,  :math:`\hat x = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, o`
                  \epsilon - \sqrt{1 -
                  \bar\alpha_t}\, x`
================  ============================  =============================================================================

**Variances.** With :math:`\tilde\beta_t` the posterior variance and :math:`v` the network's second half of channels, the
logarithm of the variance is a straight line in v:

=====================  ======================================================================================================
`fixed_small(_log)`    :math:`\log\tilde\beta_t`
`fixed_large(_log)`    :math:`\log\beta_t`
`learned`              :math:`v`
`learned_range`        :math:`\tfrac{v + 1}{2} \log\beta_t + \tfrac{1 - v}{2} \log\tilde\beta_t` (eq. 15, Improved DDPM)
=====================  ======================================================================================================

At the lowest step :math:`\tilde\beta` is the next step's (`reverse_process.py`). The kinds `_log` name the same two Gaussians.

A row is read by scoring (`reverse_process.py`, float64), by sampling (`model/stepping.py`, Python floats and the stock
scheduler's order of operations, at whose rounding diffusers' own tests look), by the flow, the losses and the calibration. What
a place does with it, and with how many digits, is its own: the rows share what is meant, not the arithmetic.
"""


# No torch: cards and the command line read the rows before it is there. Tensors bring their own operations.


@dataclass(frozen=True)
class Prediction:
    r"""A prediction type.

    Args:
        name: as `prediction_type`.
        original: the image, from `ForwardProcess`, :math:`x_t`, the output `(B, C, H, W)` and timesteps.
        target: what the network is trained to say, from `ForwardProcess`, x, :math:`\epsilon` and timesteps.
        step: the image in `step`, from the sample, the output and `StepCoefficients`.
        flow: the image on the probability-flow ODE, from :math:`u = x_t / \sqrt{\bar\alpha}`, :math:`x_t`, the output,
            :math:`\sigma` and :math:`\sqrt{\bar\alpha}`.
        needs_signal: whether there is no image where :math:`\bar\alpha_t = 0`.
    """

    name: str
    original: Callable[..., Any]
    target: Callable[..., Any]
    step: Callable[..., Any]
    flow: Callable[..., Any]
    needs_signal: bool = False

    def check_signal(self, alphas_cumprod: float, timestep: int) -> None:
        r"""Raise `ValueError` where no image can be predicted from latents of this :math:`\bar\alpha_t`."""
        if self.needs_signal and alphas_cumprod == 0:
            raise ValueError(
                f"`prediction_type` must not be {self.name!r} where the terminal SNR is zero: at timestep {timestep}"
                " alphas_cumprod = 0 and the latent holds nothing of the image, so that the noise determines no image. Use"
                " prediction_type='v_prediction' (and a network trained for it)."
            )


def _sample_itself(forward, x_t, output, timesteps):
    forward.rows(timesteps, len(x_t))  # refuses timesteps that are none
    return output


PREDICTIONS = {
    row.name: row
    for row in (
        Prediction(
            "epsilon",
            original=lambda forward, x_t, output, t: forward.predict_original_from_epsilon(x_t, output, t),
            target=lambda forward, x, epsilon, t: epsilon,
            step=lambda x_t, output, c: x_t.sub(output, alpha=c.sqrt_beta_prod).mul_(c.inverse_sqrt_alpha_prod),
            flow=lambda u, x_t, output, sigma, root: u - sigma * output,
            needs_signal=True,
        ),
        Prediction(
            "sample",
            original=_sample_itself,
            target=lambda forward, x, epsilon, t: x,
            step=lambda x_t, output, c: output,
            flow=lambda u, x_t, output, sigma, root: output,
        ),
        Prediction(
            "v_prediction",
            original=lambda forward, x_t, output, t: forward.predict_original_from_velocity(x_t, output, t),
            target=lambda forward, x, epsilon, t: forward.velocity(x, epsilon, t),
            step=lambda x_t, output, c: x_t.mul(c.sqrt_alpha_prod).sub_(output, alpha=c.sqrt_beta_prod),
            flow=lambda u, x_t, output, sigma, root: root * x_t - sigma * root * output,
        ),
    )
}


@dataclass(frozen=True)
class Variance:
    r"""A variance type; `low` and `high` are :math:`\log\tilde\beta_t` and :math:`\log\beta_t`.

    Args:
        name: as `variance_type`.
        decoder: what the decoder's variance is, in words.
        log_variance: from `ends`, whose `low` and `high` are looked up when they are asked for, and v (`None` where variances
            are fixed).
        line: offset and slope of :math:`\log\sigma` in v, from low and high; `None` where variances are fixed.
        above: how far the log-variance lies above low, from v, low and high; `None` where variances are fixed.
        is_large: of the fixed ones, whether it is :math:`\beta_t` above the lowest step.
        for_stock: whether diffusers' own scheduler samples correctly with it.
    """

    name: str
    decoder: str
    log_variance: Callable[..., Any]
    line: Callable[[float, float], tuple[float, float]] | None = None
    above: Callable[..., Any] | None = None
    is_large: bool = False
    for_stock: bool = True

    @property
    def is_learned(self) -> bool:
        r"""Whether the network has a second half of channels for it."""
        return self.line is not None

    def error_numbers(self, one_minus_alphas_cumprod: float) -> tuple[float, float, float]:
        r"""The numbers a, b and g of the error model (`error_model.py`) that amount to it on the chain of all steps."""
        return one_minus_alphas_cumprod if self.is_large else 0.0, 0.0, float(self.is_learned)


NEXT_STEP = "the posterior variance of the next step"
VARIANCES = {
    row.name: row
    for row in (
        Variance("fixed_small", NEXT_STEP, lambda ends, v: ends.low),
        Variance("fixed_small_log", NEXT_STEP, lambda ends, v: ends.low),
        Variance("fixed_large", NEXT_STEP, lambda ends, v: ends.high, is_large=True),
        # The stock scheduler takes a log-variance for a variance here.
        Variance("fixed_large_log", NEXT_STEP, lambda ends, v: ends.high, is_large=True, for_stock=False),
        Variance(
            "learned",
            "the network's log-variance",
            log_variance=lambda ends, v: v,
            line=lambda low, high: (0.0, 0.5),
            above=lambda v, low, high: v - low,
            for_stock=False,  # takes the square root of a log-variance
        ),
        Variance(
            "learned_range",
            "between the posterior variance of the next step and the step's own beta, as the network says",
            log_variance=lambda ends, v: ends.low + 0.5 * (v + 1.0) * (ends.high - ends.low),
            line=lambda low, high: (0.25 * (high + low), 0.25 * (high - low)),
            above=lambda v, low, high: (v + 1).mul_(0.5 * (high - low)),
        ),
    )
}
# What the decoder's variance is, where no row tells.
CALIBRATED_DECODER = "as measured, with decoding from the lowest timestep that is scored"
SINGLE_STEP_DECODER = "the step's own beta (a single step has no next one)"

# Where the saved configuration of a scheduler of another noise process has the DDPM that was scored.
KEPT_UNDER = "vlb_ddpm"
# Diffusers' pipelines that a saved checkpoint names by its scheduler; `DDPMPipeline` for any other.
PIPELINES = {
    "DDIMScheduler": "DDIMPipeline",
    "PNDMScheduler": "PNDMPipeline",
    "ScoreSdeVeScheduler": "ScoreSdeVePipeline",
    "KarrasVeScheduler": "KarrasVePipeline",
}
# With which these sample pixels, of as many channels as they may have, at any number of steps that a card shows.
SAMPLED_BY_STOCK = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")

PREDICTION_TYPES = tuple(PREDICTIONS)
VARIANCE_TYPES = tuple(VARIANCES)
LEARNED_VARIANCE_TYPES = tuple(name for name, row in VARIANCES.items() if row.is_learned)


def row_named(rows: dict[str, Any], argument: str, name: Any) -> Any:
    r"""The row of a name, or `ValueError`, whatever stands in its place."""
    if not isinstance(name, str) or name not in rows:
        raise ValueError(f"`{argument}` must be one of {tuple(rows)}, got {name!r}.")
    return rows[name]


def decoder_rule(variance_type: str, num_steps: int, calibrated: bool) -> str:
    r"""What the decoder's variance is in a model of so many steps, in words."""
    if calibrated:
        return CALIBRATED_DECODER
    row = VARIANCES[variance_type]
    # A log-variance that is the network's own is it at any step.
    return SINGLE_STEP_DECODER if num_steps == 1 and variance_type != "learned" else row.decoder


# ---- ddpm_vlb/noise_processes.py ----

r"""Noise processes beside the DDPM's: what a network was trained on, read as a DDPM, a row each.

Whatever a Gaussian diffusion calls its latents, they are :math:`y = a x + s \epsilon`, and with :math:`\sigma = s / a`

.. math:: x_t = \frac{y / a}{\sqrt{1 + \sigma^2}}, \qquad \bar\alpha_t = \frac{1}{1 + \sigma^2}

is a DDPM's latent, with the same SNR :math:`1 / \sigma^2`. On any descending list of levels the two have the same posteriors,
the same KL terms, the same bound. What differs is how the network F is asked and what its output means, and both are linear in
the latent (the preconditioning of Karras et al. 2022, eq. 7, seen from :math:`x_t`):

.. math:: \hat x = c_\mathrm{skip}(\sigma)\, x_t + c_\mathrm{out}(\sigma)\, F(c_\mathrm{in}(\sigma)\, x_t + c_\mathrm{shift};\,
    c_\mathrm{noise}(\sigma)) .

=======================  ==================================================================================================
process                  :math:`\sigma` and the network
=======================  ==================================================================================================
`flow_matching`          :math:`y = (1 - s) x + s \epsilon`, :math:`\sigma = s / (1 - s)`; F is the velocity
                         :math:`\epsilon - x`, asked at T s: :math:`\hat x = y - s F`
`edm`                    :math:`y = x + \sigma\epsilon`; F as Karras et al., asked at :math:`\tfrac14 \ln\sigma`:
                         :math:`\hat x = \frac{\sigma_d^2 y}{\sigma^2 + \sigma_d^2} + \frac{\sigma\sigma_d F}{\sqrt{\sigma^2 +
                         \sigma_d^2}}` (minus with `v_prediction`)
`variance_exploding`     :math:`y' = x' + \sigma' \epsilon` for images :math:`x' = (x + 1) / 2` in [0, 1], so that
                         :math:`\sigma = 2 \sigma'`; F is the score :math:`-\epsilon / \sigma'` at :math:`\sigma'`:
                         :math:`\hat x = y + 2 \sigma'^2 F`
=======================  ==================================================================================================

**Levels.** A network trained in continuous time has no list of steps: the model that is scored is one of T levels on a straight
line in log-SNR between the ends that its scheduler names. The lowest step alone is longer: it halves the SNR, so that the
decoder's variance, the posterior variance of the next step, is half the lowest level's noise and not next to nothing. The
variances are the posterior's (`fixed_small`), as sampling with many steps amounts to; a calibration fits better ones. Where a
scheduler ends at pure noise (flow matching at s = 1), the line ends one of its steps before.
"""




NUM_LEVELS = 1000


class Preconditioning(NamedTuple):
    r"""How a network is asked at :math:`\sigma`, and what its output means; each of the shape of :math:`\sigma`."""

    scale: torch.Tensor  # c_in
    shift: float  # c_shift
    noise: torch.Tensor  # c_noise
    skip: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True)
class NoiseProcess:
    r"""A process that networks are trained for.

    Args:
        name: in words of the field, as reports have it.
        schedulers: diffusers' classes of it.
        needed: what their configuration must say, positive numbers.
        precondition: from :math:`\sigma`, float64, and the configuration.
        ends: lowest and highest :math:`\sigma` of the configuration.
        rule: raises `ValueError` for a configuration that cannot be scored.
    """

    name: str
    schedulers: tuple[str, ...]
    needed: tuple[str, ...]
    precondition: Callable[[torch.Tensor, Mapping[str, Any]], Preconditioning]
    ends: Callable[[Mapping[str, Any]], tuple[float, float]]
    rule: Callable[[Mapping[str, Any]], None] = lambda config: None

    def check(self, config: Mapping[str, Any]) -> None:
        r"""Raise `ValueError` for a configuration that no levels can be made of."""
        for name in self.needed:
            if not is_number(config.get(name)) or config[name] <= 0:
                raise ValueError(f"`{name}` must be a positive number, got {config.get(name)!r}.")
        self.rule(config)
        low, high = self.ends(config)
        if not 0 < low < high:
            raise ValueError(f"The noise levels of {config.get('_class_name')} must ascend from above 0, got {low} to {high}.")


def _flow(sigma, config):
    level, root = sigma / (1 + sigma), torch.sqrt(1 + sigma**2)
    scale = root / (1 + sigma)
    return Preconditioning(scale, 0.0, config["num_train_timesteps"] * level, scale, -level)


def _check_flow(config):
    if config.get("invert_sigmas"):
        # Its network is asked at 1 - s, about latents in which signal and noise have changed places.
        raise ValueError(f"`invert_sigmas` must be False for a network to be scored, got {config['invert_sigmas']!r}.")
    if not is_integer(config["num_train_timesteps"], 3, MAX_TIMESTEPS):
        steps = config["num_train_timesteps"]
        raise ValueError(f"`num_train_timesteps` must be an integer from 3 to {MAX_TIMESTEPS}, got {steps!r}.")


def _flow_ends(config):
    steps, shift = config["num_train_timesteps"], 1.0 if config.get("use_dynamic_shifting") else config["shift"]
    low, high = (shift * s / (1 + (shift - 1) * s) for s in (1 / steps, 1 - 1 / steps))
    return low / (1 - low), high / (1 - high)


def _edm(sigma, config):
    root, data = torch.sqrt(1 + sigma**2), config["sigma_data"]
    total = sigma**2 + data**2
    sign = -1.0 if config.get("prediction_type", "epsilon") == "v_prediction" else 1.0
    inverse = total.rsqrt()
    return Preconditioning(root * inverse, 0.0, 0.25 * sigma.log(), data**2 * root / total, sign * sigma * data * inverse)


def _check_edm(config):
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction', got {config['prediction_type']!r}.")


def _exploding(sigma, config):
    root = torch.sqrt(1 + sigma**2)
    return Preconditioning(0.5 * root, 0.5, 0.5 * sigma, root, 0.5 * sigma**2)


def _exploding_ends(config):
    # `ScoreSdeVeScheduler` has the levels of images in [0, 1], which are half as wide; `KarrasVeScheduler` those of [-1, 1].
    width = 2.0 if config.get("_class_name") == "ScoreSdeVeScheduler" else 1.0
    return width * config["sigma_min"], width * config["sigma_max"]


NOISE_PROCESSES = (
    NoiseProcess(
        "flow_matching",
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
        ("num_train_timesteps", "shift"),
        _flow,
        _flow_ends,
        _check_flow,
    ),
    NoiseProcess(
        "edm",
        ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"),
        ("sigma_min", "sigma_max", "sigma_data"),
        _edm,
        lambda config: (config["sigma_min"], config["sigma_max"]),
        _check_edm,
    ),
    NoiseProcess(
        "variance_exploding",
        ("ScoreSdeVeScheduler", "KarrasVeScheduler"),
        ("sigma_min", "sigma_max"),
        _exploding,
        _exploding_ends,
    ),
)


def process_named(scheduler: Any) -> NoiseProcess | None:
    r"""The process of a scheduler's class, by its name; `None` for a DDPM's and for what is unknown."""
    return next((process for process in NOISE_PROCESSES if scheduler in process.schedulers), None)


def check_levels(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` for a number of another process's scheduler that is none, before diffusers computes with it."""
    process = process_named(config.get("_class_name"))
    for name in () if process is None else process.needed:
        if name in config and not is_number(config[name]):
            raise ValueError(f"`{name}` must be a positive number, got {shown(config[name])}.")


def stock_classes(config: Mapping[str, Any]) -> tuple[str, str]:
    r"""Names of diffusers' pipeline and scheduler for what a `VLBDDPMScheduler` is saved as: its `noise_process` or `sampler`,
    if it has one. `DDPMPipeline` loads those too that no pipeline samples pixels with."""
    other = config.get("noise_process") or config.get("sampler")
    name = str(other.get("_class_name")) if isinstance(other, Mapping) else "DDPMScheduler"
    return PIPELINES.get(name, "DDPMPipeline"), name


def describe_process(config: Mapping[str, Any] | None) -> str | None:
    r"""In words, what a network was trained for; `None` of a DDPM's."""
    process = None if config is None else process_named(config.get("_class_name"))
    if process is None or config is None:
        return None
    names = [*process.needed, *(("prediction_type",) if "prediction_type" in config else ())]
    return f"{process.name} ({config['_class_name']}, {', '.join(f'{name} = {config[name]}' for name in names)})"


def level_betas(low: float, high: float, num_levels: int = NUM_LEVELS) -> np.ndarray:
    r"""The betas of so many levels from :math:`\sigma` = `low` to `high`: a straight line in log-SNR, above a lowest step that
    halves the SNR; float64 `(num_levels,)`."""
    top, bottom = -2 * math.log(high), -2 * math.log(low)
    log_snr = np.concatenate([[bottom], np.linspace(bottom - math.log(2), top, num_levels - 1)])
    log_alphas = -np.logaddexp(0.0, -log_snr)
    return -np.expm1(np.diff(log_alphas, prepend=0.0))


def as_ddpm(config: dict[str, Any], num_levels: int | None = None) -> dict[str, Any]:
    r"""What a `VLBDDPMScheduler` is made of for the network of a scheduler of another process.

    Args:
        config: the scheduler's configuration; one of a DDPM is given back as it is.
        num_levels: T of the DDPM; by default that of an earlier save, or `NUM_LEVELS`.

    Raises:
        ValueError: a configuration that no levels can be made of, or that does not say of which class it is.
    """
    if process_named(config.get("_class_name")) is None:
        _check_named(config)
        return config
    kept = kept_of(config)
    original = {key: value for key, value in config.items() if key not in (KEPT_UNDER, "_use_default_values")}
    own = kept if num_levels is None else {}
    num_levels = own.get("num_train_timesteps", NUM_LEVELS) if num_levels is None else num_levels
    return {
        "num_train_timesteps": num_levels,
        "trained_betas": line_betas(original, num_levels),
        "prediction_type": "sample",
        "variance_type": "fixed_small",
        "clip_sample": False,
        "timestep_spacing": "linspace",
        "num_pixel_levels": config.get("num_pixel_levels", 256),
        **own,
        "noise_process": original,
    }


def check_as_ddpm(noise_process: Any, prediction_type: str, variance_type: str) -> None:
    r"""Raise `ValueError` for settings of a `VLBDDPMScheduler` that the network of another process does not have: what it says
    is read as an image, and nothing as a variance."""
    if noise_process is None:
        return
    named = noise_process.get("_class_name") if isinstance(noise_process, Mapping) else noise_process
    if process_named(named) is None:
        raise ValueError(f"`noise_process` must be of a known scheduler, got {shown(named)}.")
    if prediction_type != "sample":
        raise ValueError(f"`prediction_type` must be 'sample' with a `noise_process`, got {prediction_type!r}.")
    if variance_type.startswith("learned"):
        raise ValueError(f"`variance_type` must be a fixed one with a `noise_process`, got {variance_type!r}.")


def _check_named(config: Mapping[str, Any]) -> None:
    # That of a scheduler which was made in memory has no name, and a `VLBDDPMScheduler` defaults for all that it does not say.
    strange = [name for name in ("shift", "sigma_data", "sigma_min") if config.get(name) is not None]
    if strange and "_class_name" not in config and not any(name.startswith(("beta_", "trained_")) for name in config):
        raise ValueError(
            f"`config` must say of which class it is, in `_class_name`, to be another's than a DDPM's, got {strange[0]} ="
            f" {shown(config[strange[0]])} alone. `ddpm_vlb.upgrade_scheduler` takes the scheduler itself."
        )


def process_as_saved(own: str) -> str:
    r"""What is saved of a `VLBDDPMScheduler` with a `noise_process`, from its own JSON: that of the other scheduler, and
    in it what is ours, without betas that can be made again."""
    kept = json.loads(own)
    if are_of_line(kept):
        del kept["trained_betas"]
    return json.dumps({**kept.pop("noise_process"), KEPT_UNDER: kept}, indent=2, sort_keys=True) + "\n"


def kept_of(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""What an earlier save of ours said in the configuration of another scheduler; empty where there was none.

    Raises:
        ValueError: what is no mapping.
    """
    kept = config.get(KEPT_UNDER, {})
    if not isinstance(kept, Mapping):
        raise ValueError(f"`{KEPT_UNDER}` must be a mapping of settings, got {shown(kept)}.")
    return {key: value for key, value in kept.items() if not key.startswith("_") and key not in ("noise_process", "sampler")}


def are_of_line(config: Mapping[str, Any]) -> bool:
    r"""Whether the betas of a `VLBDDPMScheduler` are those of the line that its `noise_process` has by default."""
    process, betas = config.get("noise_process"), config.get("trained_betas")
    return process is not None and betas is not None and list(betas) == line_betas(process, config["num_train_timesteps"])


def line_betas(config: Mapping[str, Any], num_levels: Any) -> list[float]:
    r"""`level_betas` of a scheduler's ends, as a list."""
    process = process_named(config.get("_class_name"))
    if process is None:
        raise ValueError(f"`noise_process` must be of a known scheduler, got {shown(config.get('_class_name'))}.")
    process.check(config)
    num_levels = check_count("num_levels", num_levels)
    low, high = process.ends(config)
    if not 3 <= num_levels <= MAX_TIMESTEPS or high**2 < 4 * low**2:
        raise ValueError(
            f"`num_levels` must be from 3 to {MAX_TIMESTEPS}, between noise levels at least twice as high, got {num_levels}"
            f" from {low:g} to {high:g}."
        )
    return level_betas(low, high, num_levels).tolist()


# ---- ddpm_vlb/pixel_grid.py ----

r"""The grid of levels that images live on: level k of n stands for the value 2 k / (n - 1) - 1."""




MAX_PIXEL_LEVELS = 65536


def check_num_pixel_levels(num_pixel_levels: int) -> None:
    r"""Raise `ValueError` unless `num_pixel_levels` is an integer from 2 to 65536."""
    if not is_integer(num_pixel_levels, 2, MAX_PIXEL_LEVELS):
        raise ValueError(f"`num_pixel_levels` must be an integer from 2 to {MAX_PIXEL_LEVELS}, got {shown(num_pixel_levels)}.")


def levels_to_samples(levels: torch.Tensor, num_pixel_levels: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    r"""Grid values :math:`x = 2k/(n-1) - 1` in [-1, 1] of integer `levels` k; any shape."""
    return levels.to(dtype, copy=True).mul_(2.0 / (num_pixel_levels - 1)).sub_(1.0)


def nearest_levels(samples: torch.Tensor, num_pixel_levels: int) -> torch.Tensor:
    r"""The nearest levels of values of any shape, as floats in the working dtype; beyond the grid where the values are."""
    # float64 so that all 65536 levels stay apart; the levels stay floats, since nothing here needs integers.
    scale = 0.5 * (num_pixel_levels - 1)
    return ((samples.to(working_dtype(samples.device)) + 1.0) * scale).round()


def to_grid(samples: torch.Tensor, num_pixel_levels: int) -> torch.Tensor:
    r"""Values of any shape, each at its nearest grid value; what lies outside [-1, 1] at the end."""
    steps = num_pixel_levels - 1
    levels = (0.5 * (samples + 1) * steps).round().clamp(0, steps)
    return 2 * levels / steps - 1


def samples_to_levels(samples: torch.Tensor, num_pixel_levels: int, name: str = "samples") -> torch.Tensor:
    r"""Integer levels k of float `samples` that lie on the grid (within 4 ulp of float32).

    Args:
        samples: float tensor of any shape with values in [-1, 1].
        num_pixel_levels: the grid's number of levels n.
        name: what the error message calls the tensor.

    Returns:
        int64 tensor of levels, same shape.

    Raises:
        ValueError: values that are not finite, or off the grid. Bringing such images onto the grid is a decision about
            the data (`ddpm_vlb.data.quantize`), never a silent rounding.
    """
    levels = nearest_levels(samples, num_pixel_levels)
    # A float32 image of the grid is wrong by at most one rounding (2^-24) of its value and one of each step that made
    # it (x / 127.5 - 1); 4 ulp cover that, and are far below half a bin for up to 65536 levels.
    ulp = torch.finfo(torch.float32).eps
    error = (levels_to_samples(levels, num_pixel_levels, levels.dtype) - samples).abs()
    good = (error <= 4 * ulp) & (levels >= 0) & (levels < num_pixel_levels)
    if not bool(good.all()):
        worst = samples[~good].flatten()[0].item()
        what = "be finite" if not math.isfinite(worst) else f"lie on the grid 2 k / {num_pixel_levels - 1} - 1"
        raise ValueError(
            f"`{name}` must {what} (num_pixel_levels={num_pixel_levels}), got {worst!r}"
            f" ({int((~good).sum())} of {samples.numel()} values). Values in [0, 1] become 2 x - 1."
        )
    return levels.long()


def quantize(images: torch.Tensor | np.ndarray, num_pixel_levels: int, *, source_levels: int | None = None) -> torch.Tensor:
    r"""Bring images onto the grid of `num_pixel_levels` levels, each value to its nearest level.

    This changes the data: the likelihood is that of the images returned, which should be shown wherever it is.

    Args:
        images: integer levels (of `source_levels`, by default all that the dtype holds), or floats in [-1, 1]; any shape.
        num_pixel_levels: number of levels of the grid.
        source_levels: number of levels of integer `images`.

    Returns:
        Levels of the same shape, uint8 up to 256 levels and uint16 above.

    Raises:
        ValueError: values that are not finite or outside their range.
    """
    check_num_pixel_levels(num_pixel_levels)
    images = torch.as_tensor(images)
    if images.is_complex() or images.dtype == torch.bool:
        raise ValueError(f"`images` must be integers or floats, got dtype {images.dtype}.")
    values = images.to(torch.float64)
    if not images.is_floating_point():
        source_levels = source_levels or torch.iinfo(images.dtype).max + 1
        values = 2.0 * values / (source_levels - 1) - 1.0
    if not bool(((values >= -1) & (values <= 1)).all()):
        raise ValueError(
            f"`images` must lie in [-1, 1], or be levels below {source_levels}, to be quantised; got values that stand for"
            f" {values.min().item()} to {values.max().item()}."
        )
    levels = (0.5 * (values + 1.0) * (num_pixel_levels - 1)).round()
    return levels.to(torch.int32).to(torch.uint8 if num_pixel_levels <= 256 else torch.uint16)


# ---- ddpm_vlb/model/configuration.py ----

r"""What the configurations of a network and of a scheduler may say: a rule for every value that is read.

A configuration is a file of others, and the constructors of diffusers take it literally: a T of 10^9 keeps them busy before
anything is refused, a word in the place of a number shows when the first image is scored. Here it shows at once. What a value
*means* is asked where it is used: unknown names of schedules and variances, betas that make no process.
"""




MAX_KEY_LENGTH = 256
MAX_SIDE = MAX_CHANNELS = 65_536
MAX_BLOCKS, MAX_LAYERS = 32, 100
# Under these names a configuration is that of a `UNet2DModel`; a file without one is, too.
UNET_NAMES = (None, "UNet2DModel", "UNetUnconditionalModel")


class ConfigurationRule(NamedTuple):
    r"""What a value must be, in words, and whether it is."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> "ConfigurationRule":
        r"""The same, or nothing."""
        return ConfigurationRule(f"null or {self.words}", lambda value: value is None or self.holds(value))

    def list_of(self, least: int, most: int) -> "ConfigurationRule":
        r"""A list of so many such values."""
        return ConfigurationRule(
            f"a list of {least if least == most else f'{least} to {most}'} values, each {self.words}",
            lambda value: isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(self.holds, value)),
        )


def _integer(least: int, most: int) -> ConfigurationRule:
    return ConfigurationRule(f"an integer from {least} to {most}", lambda value: is_integer(value, least, most))


def _are_betas(value: Any) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) and len(value) <= MAX_TIMESTEPS and all(map(is_number, value))


_WORD = ConfigurationRule("a string", lambda value: isinstance(value, str))
_SWITCH = ConfigurationRule("true or false", lambda value: isinstance(value, (bool, int, np.bool_)) and value in (0, 1))
_NUMBER = ConfigurationRule("a number", is_number)
_POSITIVE = ConfigurationRule("a positive number", lambda value: is_number(value) and value > 0)
_SHARE = ConfigurationRule("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
_SIDE = _integer(1, MAX_SIDE)
_CHANNELS = _integer(1, MAX_CHANNELS)

SCHEDULER_RULES = {
    "num_train_timesteps": _integer(1, MAX_TIMESTEPS),
    "beta_start": _NUMBER,
    "beta_end": _NUMBER,
    "beta_schedule": _WORD,
    "trained_betas": ConfigurationRule(f"a list of at most {MAX_TIMESTEPS} numbers", _are_betas).or_null(),
    "variance_type": _WORD.or_null(),
    "clip_sample": _SWITCH,
    "prediction_type": _WORD,
    "thresholding": _SWITCH,
    "dynamic_thresholding_ratio": _SHARE,
    "clip_sample_range": _POSITIVE,
    "sample_max_value": _POSITIVE,
    "timestep_spacing": _WORD,
    "steps_offset": _integer(0, MAX_TIMESTEPS),
    "rescale_betas_zero_snr": _SWITCH,
    "num_pixel_levels": _integer(2, MAX_PIXEL_LEVELS),
    "calibration": ConfigurationRule("a mapping", lambda value: isinstance(value, Mapping)).or_null(),
    "unlabelled_class": _integer(0, 10**9).or_null(),
    "noise_process": ConfigurationRule("a mapping", lambda value: isinstance(value, Mapping)).or_null(),
    "sampler": ConfigurationRule("a mapping", lambda value: isinstance(value, Mapping)).or_null(),
    "predict_epsilon": _SWITCH,
}
NETWORK_RULES = {
    "sample_size": ConfigurationRule(
        f"null, {_SIDE.words}, or two of them", lambda value: value is None or _SIDE.holds(value) or _SIDES.holds(value)
    ),
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_class_embeds": _integer(1, 10_000_000).or_null(),
}
UNET_RULES = NETWORK_RULES | {
    "layers_per_block": _integer(1, MAX_LAYERS),
    "block_out_channels": _CHANNELS.list_of(1, MAX_BLOCKS),
    "down_block_types": _WORD.list_of(1, MAX_BLOCKS),
    "up_block_types": _WORD.list_of(1, MAX_BLOCKS),
    "mid_block_type": _WORD.or_null(),
    "attention_head_dim": _CHANNELS.or_null(),
    "norm_num_groups": _CHANNELS,
    "attn_norm_num_groups": _CHANNELS.or_null(),
    "norm_eps": _POSITIVE,
    "dropout": _SHARE,
    "mid_block_scale_factor": _POSITIVE,
    "downsample_padding": _integer(0, MAX_SIDE),
    "downsample_type": _WORD,
    "upsample_type": _WORD,
    "act_fn": _WORD,
    "add_attention": _SWITCH,
    "center_input_sample": _SWITCH,
    "flip_sin_to_cos": _SWITCH,
    "freq_shift": _NUMBER,
    "time_embedding_type": _WORD,
    "time_embedding_dim": _CHANNELS.or_null(),
    "resnet_time_scale_shift": _WORD,
    "class_embed_type": _WORD.or_null(),
    "num_train_timesteps": _integer(1, MAX_TIMESTEPS).or_null(),
}
_SIDES = _SIDE.list_of(2, 2)


def check_configuration(config: Mapping[str, Any], rules: Mapping[str, ConfigurationRule]) -> None:
    r"""Raise `ValueError` for a value that is not as the rule of its name has it; names without a rule may have any."""
    for name, rule in rules.items():
        if name in config and not rule.holds(config[name]):
            raise ValueError(f"`{name}` must be {rule.words}, got {shown(config[name])}.")


def check_scheduler_config(config: Mapping[str, Any]) -> None:
    r"""`check_configuration` of a scheduler."""
    check_configuration(config, SCHEDULER_RULES)


def check_network_config(config: Mapping[str, Any]) -> None:
    r"""`check_configuration` of a network: of all that a `UNet2DModel` is made from, or of what any kind of network has."""
    if config.get("_class_name") not in UNET_NAMES:
        return
    check_configuration(config, UNET_RULES)
    head, widths = config.get("attention_head_dim"), config.get("block_out_channels")
    if head is None or widths is None:
        return
    # A width that holds no whole head makes attention with none, which divides by their number.
    attended = [width for width, kind in zip(widths, config.get("down_block_types", ())) if kind.startswith("Attn")]
    attended += [widths[-1]] if config.get("add_attention", True) else []
    if attended and min(attended) < head:
        raise ValueError(
            f"`attention_head_dim` must be at most the {min(attended)} channels that attention has in this network, got {head}."
        )


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""Of a configuration, NumPy's numbers as Python's, which reports and files can hold, and NumPy's values in mappings."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(entry) for name, entry in value.items()}
        return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value

    return {name: plain(value) for name, value in config.items() if isinstance(value, (np.generic, Mapping))}


class SchedulerConfig(FrozenDict):
    r"""A configuration with one value for an entry, whether it is read or assigned as an attribute or as an item.

    diffusers' own means to forbid assigning and does not; an entry that was assigned then has two values, of which its
    schedulers compute with the attribute, and save the item.
    """

    @classmethod
    def of(cls, config: Mapping[str, Any], scheduler: type) -> "SchedulerConfig":
        r"""The configuration of a scheduler of a class. diffusers takes what is passed by position, or registered later, for a
        default, and `from_config` would drop it: here defaults are what has the default's value."""
        own = cls(config)
        defaults = {name: one.default for name, one in inspect.signature(scheduler.__init__).parameters.items()}
        if used := own.get("_use_default_values"):
            own["_use_default_values"] = [n for n in used if n in defaults and is_default(own[n], defaults[n])]
        return own

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and self[name] is not value and name in (defaults := self.get("_use_default_values", ())):
            # `from_config` would drop it.
            self["_use_default_values"] = [other for other in defaults if other != name]
        object.__setattr__(self, name, value)
        if not name.startswith("_FrozenDict__"):
            OrderedDict.__setitem__(self, name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)


# What the tables of a scheduler are made of.
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# What diffusers' schedulers do not know of ours.
OURS = ("num_pixel_levels", "calibration", "unlabelled_class", "noise_process", "sampler")
# For the networks of DDPMs, beside diffusers' own list of these.
LIKE_DDPM = ("DDPMParallelScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler")
# A configuration of one of these, or of none, is that of a `VLBDDPMScheduler` as it is.
DDPM = ("DDPMScheduler", "VLBDDPMScheduler")
# Values of these with which a scheduler is for the network of a DDPM; `shift` and `sigma_data` are what flow matching and EDM
# leave in whatever scheduler is made of theirs.
OF_ANOTHER = ("use_flow_sigmas", "timestep_type", "shift", "sigma_data")
NOT_ANOTHER = (None, False, "discrete")
# What `beta_schedule` may be for all of them.
STOCK_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def is_of_ddpms(scheduler: Any) -> bool:
    r"""Whether a class of schedulers, by its name, is for the networks of DDPMs."""
    return scheduler in (*KarrasDiffusionSchedulers.__members__, *LIKE_DDPM, *DDPM) and process_named(scheduler) is None


def not_of_ddpms(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""The settings with which a scheduler is not for the network of a DDPM, though its class is."""
    return {name: config[name] for name in OF_ANOTHER if config.get(name) not in NOT_ANOTHER}


def parameters_of(name: Any) -> dict[str, Any] | None:
    r"""What one of diffusers' schedulers is made from, with its defaults; `None` for what diffusers does not have here."""
    cls = getattr(diffusers, str(name), None)
    # Of what needs a library that is not here there is a placeholder.
    if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        return None
    return {key: one.default for key, one in inspect.signature(cls.__init__).parameters.items() if one.default is not one.empty}


def with_sampler(config: Mapping[str, Any], own: str) -> dict[str, Any]:
    r"""What a scheduler of ours is made of for one of diffusers' for a DDPM's network: the DDPM of that network and, of another
    class than a DDPM's (DDIM, Euler ...), what only that class knows as its `sampler`. A configuration of another noise process
    is given back as it is.

    Where an earlier save of ours is in it (`KEPT_UNDER`), that says what the class does not.

    Args:
        config: of a scheduler; without a class that of a DDPM, or of one in memory.
        own: the class that is made of it.

    Raises:
        ValueError: a class of schedulers that cannot be read: with the defaults of a DDPM it would give a number that looks
            right.
    """
    name, config = config.get("_class_name"), dict(config)
    if process_named(name) is not None:
        return config
    is_ddpm, others = name in (None, own, *DDPM), not_of_ddpms(config)
    if name is None and not others.keys() <= {"use_flow_sigmas", "timestep_type"}:
        return config  # which `as_ddpm` refuses for want of a name
    parameters = parameters_of("DDPMScheduler" if is_ddpm else name)
    if others or parameters is None or not (is_ddpm or is_of_ddpms(name)):
        raise ValueError(
            "`config` must be of one of diffusers' schedulers for the networks of DDPMs, of flow matching, EDM or a"
            f" variance-exploding process, got _class_name = {shown(name)}{f' with {others}' if others else ''}."
        )
    # Checkpoints from before diffusers 0.9 say `predict_epsilon=False` for prediction_type="sample".
    if config.pop("predict_epsilon", True) is False:
        config["prediction_type"] = "sample"
    kept, used = kept_of(config), config.pop("_use_default_values", None) or ()
    config.pop(KEPT_UNDER, None)
    # As many of them have it, for whom nothing is drawn.
    without_variance = config.get("variance_type", parameters.get("variance_type", 0)) is None
    if without_variance:
        config.pop("variance_type", None)
    if is_ddpm:
        if name == "DDPMScheduler":
            config.pop("sampler", None)  # of the scheduler in whose place this one was put
        # A default of ours counts as not said; one of another class, which was in memory, does not.
        unsaid = {key for key in used if key in parameters and key in config and is_default(config[key], parameters[key])}
        rest = {key: value for key, value in kept.items() if key not in config}
        return rest | {key: value for key, value in config.items() if key not in unsaid}
    if without_variance:
        del parameters["variance_type"]
    # What a file leaves out is as the other class has it.
    full = kept | parameters | config
    known = {key: full[key] for key in SCHEDULER_RULES if key in full and key not in ("sampler", "noise_process")}
    only = {key: value for key, value in config.items() if key not in SCHEDULER_RULES}
    return known | {"sampler": only | ({"variance_type": None} if without_variance else {})}


def read_config(config: Any, own: str) -> Any:
    r"""What a scheduler of ours is made of, `own` by its class: of any scheduler's configuration the DDPM that its network
    amounts to. What is no mapping is given back.

    Raises:
        ValueError: a class that cannot be read, values that cannot be meant.
    """
    if not isinstance(config, Mapping):
        return config
    config = as_ddpm(with_sampler(config, own))
    check_scheduler_config(config)
    return config


def is_default(value: Any, default: Any) -> bool:
    r"""Whether a value of a configuration is what it was or would be."""
    if isinstance(value, torch.Tensor) and isinstance(default, torch.Tensor):
        return torch.equal(value, default)
    if isinstance(value, (np.ndarray, torch.Tensor)) or isinstance(default, (np.ndarray, torch.Tensor)):
        return type(value) is type(default) and np.array_equal(value, default)
    return value == default


def check_sampler_of(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` for a configuration whose `sampler` is none of this network's, or cannot be told of its betas."""
    sampler = config.get("sampler")
    if sampler is None:
        return
    name = sampler.get("_class_name") if isinstance(sampler, Mapping) else None
    parameters, beside = parameters_of(name), config.get("noise_process") is not None
    if name in DDPM or not is_of_ddpms(name) or parameters is None or beside:
        raise ValueError(
            "`sampler` must be the configuration of another of diffusers' schedulers for the networks of DDPMs, got"
            f" {shown(sampler)}{' beside a `noise_process`' * beside}."
        )
    unknown = [key for key in ("rescale_betas_zero_snr",) if config[key] and key not in parameters]
    if config["trained_betas"] is None and config["beta_schedule"] not in STOCK_BETAS:
        unknown.append("beta_schedule")
    if unknown:
        raise ValueError(
            f"`sampler` must be a scheduler that knows this model's {unknown[0]} = {config[unknown[0]]!r}, got a {name}."
            " Leave it out with `from_config(..., sampler=None)`."
        )


def as_saved(own: str) -> str:
    r"""What is saved of a `VLBDDPMScheduler`, from its own JSON. Of a `sampler` that scheduler's configuration, with what it
    shares with ours as we have it, and the rest of ours in it; of a `noise_process` as `process_as_saved`."""
    kept = json.loads(own)
    check_sampler_of(kept)
    sampler = kept.pop("sampler", None)
    if sampler is None:
        return own if kept.get("noise_process") is None else process_as_saved(own)
    del kept["_class_name"]
    parameters = parameters_of(sampler["_class_name"]) or {}
    shared = {key for key in kept if key in parameters and (key != "variance_type" or "variance_type" not in sampler)}
    rest = {key: value for key, value in kept.items() if key not in shared and key != "_diffusers_version"}
    version = {"_diffusers_version": kept["_diffusers_version"]}
    saved = version | sampler | {key: kept[key] for key in shared} | {KEPT_UNDER: rest}
    return json.dumps(saved, indent=2, sort_keys=True) + "\n"


# ---- ddpm_vlb/noise.py ----

r"""Noise that is looked up, not drawn in turn: a pure function of (seed, timestep), for images of one shape.

Each image has a seed of its own; its noise at timestep t depends on that seed and on t alone. Batch size, order, the choice
of other timesteps and the number of processes then change a result by no more than float rounding. Training looks its noise,
timesteps and order of examples up in the same way, by (seed, step, position in the global batch), so that a run has no state
of chance to save.

**The noise.** A counter-based generator (Salmon et al. 2011) in integer operations, which are the same on every device. For
the key k and the j-th pair of numbers of a row a word :math:`k + h_j \bmod 2^{64}`, where :math:`h_j` is a hash of j, goes
through a bijection of words: the upper half is put upon the lower (exclusive or), the word is multiplied by an odd constant,
thrice and twice in turn. Its halves, as signed integers, are uniform numbers :math:`u, v \in (-1, 1)`, and two normal ones are
(Box and Muller)

.. math:: \sqrt{-\log u^2}\, \cos \pi v, \qquad \sqrt{-\log u^2}\, \sin \pi v .

Of :math:`|u| \ge 2^{-32}` none is farther out than 6.66, where 3 in :math:`10^{11}` would be. Of n keys some two coincide with
a probability of about :math:`n^2 / 2^{65}`, 1 in 370,000 for :math:`10^7`.
"""



# Of the noise of a key: a journal or a training with other noise cannot be gone on with.
NOISE_VERSION = 2

_MASK = (1 << 64) - 1
_SPLITMIX64 = tuple(map(np.uint64, (1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 30, 27, 31)))
NUMBERS_AT_ONCE = 2**18  # numbers at a time
# Odd, of 64 bits, as signed integers: those of SplitMix64's finaliser.
FACTORS = tuple(factor - 2**64 for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def draw_seeds(count: int, generator: torch.Generator | list[torch.Generator] | None = None) -> list[int]:
    r"""`count` seeds, the i-th depending only on the generator's state and on i (or on the i-th generator of a list).

    Raises:
        ValueError: a list of generators of another length than `count`.
    """
    check_generator(generator, count)
    if isinstance(generator, (list, tuple)):
        return [seed for one in generator for seed in draw_seeds(1, one)]
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()


def check_generator(generator: Any, count: int) -> None:
    r"""Raise `ValueError` unless `generator` is a `torch.Generator`, a list of `count` of them, or `None`."""
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    for one in generators:
        if not isinstance(one, torch.Generator) and (one is not None or generators is generator):
            raise ValueError(f"`generator` must be a torch.Generator, a list of them or None, got {one!r}.")
    if generators is generator and len(generators) != count:
        raise ValueError(f"`generator` must be one generator or one per image ({count}), got {len(generator)}.")


def fresh_seed(generator: Any) -> int | None:
    r"""The seed of a generator that nothing has been drawn from yet, `None` for any other."""
    if not isinstance(generator, torch.Generator):
        return None
    seed = generator.initial_seed()
    untouched = torch.Generator(device=generator.device).manual_seed(seed)
    return seed if torch.equal(untouched.get_state(), generator.get_state()) else None


def mix(seed: int, number: int) -> int:
    r"""A 64-bit key of the two in which every bit of both tells on every bit (the finaliser of SplitMix64)."""
    z = (seed + 0x9E3779B97F4A7C15 * (number + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def mix_array(seeds: int | np.ndarray, numbers: int | np.ndarray) -> np.ndarray:
    r"""`mix` of each seed with each number, for uint64 arrays that broadcast with each other."""
    one, golden, first, second, *shifts = _SPLITMIX64
    with np.errstate(over="ignore"):
        z = np.asarray(seeds, dtype=np.uint64) + golden * (np.asarray(numbers, dtype=np.uint64) + one)
        for shift, factor in zip(shifts, (first, second)):
            z ^= z >> shift
            z *= factor
    return z ^ (z >> shifts[2])


def uniform_array(keys: np.ndarray) -> np.ndarray:
    r"""`keyed_uniform` of each key."""
    return (mix_array(keys, 0) >> np.uint64(11)) * 2.0**-53


def keyed_uniform(key: int) -> float:
    r"""A number in [0, 1) that is a function of the key alone."""
    return (mix(key, 0) >> 11) * 2.0**-53


def keyed_normal(keys: Sequence[int] | np.ndarray, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    r"""Standard normal noise of shape `(len(keys), *shape)`, float32, each row a function of its key alone.

    Args:
        keys: 64 bits each, integers or an array of uint64.
        shape: of a row.
        device: where it is made: the same numbers everywhere, but for the rounding of the device's functions. Nothing waits
            for it.
    """
    device, dimensions = torch.device(device), math.prod(shape)
    own = torch.from_numpy(np.asarray(keys, dtype=np.uint64).reshape(-1).view(np.int64))
    places = _places((dimensions + 1) // 2, device)
    # On a CPU as many rows at a time as its cache holds.
    rows = max(1, NUMBERS_AT_ONCE // dimensions) if device.type == "cpu" else max(1, len(own))
    parts = [_box_muller(_hash(part, places)) for part in to_device(own, device).split(rows)]
    noise = parts[0] if len(parts) == 1 else torch.cat(parts)
    return noise[:, :dimensions].reshape(-1, *shape)


def _hash(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    r"""A word of 64 bits for each key and place, as its lower and upper half: int32, `(keys, places, 2)`."""
    words = torch.empty(len(keys), len(places), dtype=torch.int64, device=places.device).copy_(places).add_(keys[:, None])
    # The halves lie beside each other, the lower one first, on every machine that torch runs on.
    halves = words.view(torch.int32).unflatten(1, (len(places), 2))
    lower, upper = halves.unbind(dim=2)
    lower.bitwise_xor_(upper)
    for factor in FACTORS:
        words.mul_(factor)
        lower.bitwise_xor_(upper)
    return halves


def _box_muller(halves: torch.Tensor) -> torch.Tensor:
    r"""Two normal numbers of each pair of integers `(keys, places, 2)`: `(keys, 2 * places)`, the cosines first."""
    angle, radius = (half.to(torch.float32).add_(0.5).mul_(2.0**-31) for half in halves.unbind(dim=2))
    radius.mul_(radius).log_().mul_(-1.0).sqrt_()
    angle.mul_(math.pi)
    noise = torch.empty(len(angle), 2, angle.shape[1], device=angle.device)
    cosines, sines = noise.unbind(dim=1)
    cosines.copy_(angle).cos_().mul_(radius)
    sines.copy_(angle.sin_()).mul_(radius)
    return noise.flatten(1)


@lru_cache(maxsize=16)
def _places(count: int, device: torch.device) -> torch.Tensor:
    r"""Words of 64 bits for the places of a row, int64."""
    return torch.from_numpy(mix_array(0, np.arange(count)).view(np.int64)).to(device)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    r"""Values of any shape on the device, without a wait for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def keyed_noise(
    seeds: Sequence[int], timesteps: Iterable[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Iterator[torch.Tensor]:
    r"""Standard normal noise, timestep after timestep, for the images with these seeds.

    Args:
        seeds: one per image, length B.
        timesteps: zero-based timesteps, in any order.
        shape: shape of one image, `(C, H, W)`.
        device: as `keyed_normal`.

    Yields:
        For each timestep a float32 tensor of shape `(B, C, H, W)`.
    """
    # Of small images the noise of several timesteps at once: calls cost more than numbers.
    own, steps = np.asarray(seeds, dtype=np.uint64), list(timesteps)
    block = max(1, NUMBERS_AT_ONCE // max(1, len(own) * math.prod(shape)))
    for first in range(0, len(steps), block):
        some = np.array(steps[first : first + block], dtype=np.uint64)
        noise = keyed_normal(mix_array(own, some[:, None]).reshape(-1), shape, device)
        yield from noise.reshape(len(some), len(own), *shape).unbind()


def order_of(ids: np.ndarray, frame: np.ndarray, key: int, count: int | None = None) -> np.ndarray:
    r"""The images of `frame` in an order that the key gives, or the first `count` of them."""
    keys = mix_array(key, ids[frame])  # no two of which are equal, but for equal ids
    if count is not None and count < len(keys):
        first = np.argpartition(keys, count)[:count]
        frame, keys = frame[first], keys[first]
    return frame[np.argsort(keys)]


# ---- ddpm_vlb/words.py ----

r"""Words for numbers."""

# From how many seconds on a unit is used, and its length.
UNITS = ((172_800.0, 86_400.0, "days"), (5_400.0, 3_600.0, "hours"), (90.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def duration(seconds: float) -> str:
    r"""`40 seconds`, `12 minutes`, `2.5 hours`, `3.1 days`."""
    length, unit = next((length, unit) for least, length, unit in UNITS if seconds >= least)
    return f"{seconds / length:.{1 if length > 60 else 0}f} {unit}"


def counted(count: int, noun: str) -> str:
    r"""`1 channel`, `3 channels`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# ---- ddpm_vlb/model/conditions.py ----

r"""What a network is given besides latents and timesteps: tensors by the names of its arguments."""





class Conditions(dict[str, torch.Tensor]):
    r"""Tensors of P rows each, by the names of a network's arguments.

    Args:
        tensors: `(P, ...)` each.
        prompt: what they were made of, P texts, where that is known.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], prompt: Sequence[str] | None = None):
        super().__init__(tensors)
        self.prompt = None if prompt is None else list(prompt)

    def check(self, network: str, needs: Mapping[str, str], takes: Sequence[str]) -> int:
        r"""P, 1 of nothing.

        Args:
            network: its class.
            needs: names without which it cannot be asked, and what each is, in words.
            takes: further ones that it makes use of.

        Raises:
            ValueError: one that it makes no use of, which would be in the report and in no number; one that it needs and is not
                given; what is no tensor of finite numbers with a row for each condition.
        """
        counts = set()
        for name, rows in self.items():
            if name not in (*needs, *takes):
                names = " or ".join((*needs, *takes)) or "nothing"
                raise ValueError(
                    f"`network_kwargs` must name what this {network} is given beside latents, timesteps and labels, {names},"
                    f" got {shown(name)}."
                )
            if not isinstance(rows, torch.Tensor) or rows.ndim < 1 or not len(rows):
                raise ValueError(f"`network_kwargs` must be tensors with a row for each condition, got {name} = {shown(rows)}.")
            # A mask that is added to what it masks has infinities.
            if not name.endswith("mask") and not rows.is_meta and not bool(torch.isfinite(rows).all()):
                raise ValueError(f"`network_kwargs` must be finite numbers, got others in {name}.")
            counts.add(len(rows))
        for name, words in needs.items():
            if name not in self:
                raise ValueError(f"`network_kwargs` must hold {name!r} for this network, {words}, got {sorted(self)}.")
        if len(counts) > 1:
            raise ValueError(f"`network_kwargs` must have as many rows each, got {sorted(counts)}.")
        return counts.pop() if counts else 1


# ---- ddpm_vlb/model/digests.py ----

r"""Which network a number is of: SHA-256 of a configuration and of weights."""




def architecture_digest(network: torch.nn.Module) -> str:
    r"""SHA-256 of a network's configuration."""
    return hashlib.sha256(_public_config(network).encode()).hexdigest()


def _public_config(network: torch.nn.Module) -> str:
    config = getattr(network, "config", None)
    public = {key: value for key, value in config.items() if key[0] != "_"} if isinstance(config, dict) else {}
    return json.dumps(public, sort_keys=True, default=str)


def network_digest(network: torch.nn.Module, dtype: torch.dtype | None = None) -> str | None:
    r"""SHA-256 of a network's configuration and weights (in `dtype`, by default as they are): which network a number is of,
    whatever file it was loaded from. `None` where the weights are not at hand."""
    return tensors_digest(_public_config(network), network.state_dict(), dtype)


def tensors_digest(config: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> str | None:
    r"""SHA-256 of a text and of tensors by their names, as `network_digest`."""
    digest = hashlib.sha256(config.encode())
    for name, weight in sorted(tensors.items()):
        if weight.is_meta:
            return None
        weight = weight.detach().cpu()
        weight = weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight
        digest.update(f"{name.removeprefix('_orig_mod.')} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---- ddpm_vlb/model/memory.py ----

r"""How many images go together where memory has the say, or a compiler.

With `batch_size="auto"` a call of the network that does not fit into the memory of its device is made again in halves, and all
calls after it are of no more images. What is drawn does not change, and no number beyond rounding.

A module that was compiled for batches of one size is compiled anew for every other, which takes minutes, and after eight of
them torch gives up. What is left at the end of a round is filled up, so that few sizes are met.
"""





AUTO = "auto"
FIRST = 256
FIRST_ON_CPU = 64  # where memory that is not there is asked of the disk, and no error says so


def check_batch_size(batch_size: Any, network: "Network") -> int:
    r"""A positive integer; for `"auto"` where a network that may halve its calls from here on begins; or `ValueError`."""
    if isinstance(batch_size, str) and batch_size == AUTO:
        network.halves = True
        return FIRST_ON_CPU if network.device.type == "cpu" else FIRST
    return check_count("batch_size", batch_size)


def compiled_size(size: int, largest: int) -> int:
    r"""How many rows a compiled module is asked about for `size` of them: as many as the largest of its calls had, or, for half
    of these and less, a power of two."""
    return largest if 2 * size > largest else min(largest, 1 << (size - 1).bit_length())


def filled(rows: torch.Tensor, size: int, full: int) -> torch.Tensor:
    r"""Rows `(size, ...)` with the first one repeated up to `full`; anything else, which is the same for all, as it is."""
    if rows.ndim == 0 or len(rows) != size or size == full:
        return rows
    return torch.cat([rows, rows[:1].expand(full - size, *rows.shape[1:])])


def out_of_memory(error: Exception) -> str | None:
    r"""What an error says, in a sentence, if it is that memory does not suffice."""
    said = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in said or "out of memory" in said:
        said = said[max(0, said.find("DefaultCPUAllocator")) :]
        return said.strip().split("\n")[0].split(". ")[0].rstrip(".") + "."
    return None


def smaller(size: int, network: "Network", reason: str) -> int:
    r"""How many images to try after `size` of them did not fit.

    Raises:
        ValueError: nobody asked for it, or a single image does not fit.
    """
    where = f"the memory of {network.device}"
    if not network.halves:
        raise ValueError(f"`batch_size` must be of images that fit into {where}, got {size}: {reason} Give less, or 'auto'.")
    if size == 1:
        raise ValueError(f"`batch_size` cannot be less than one image, and one does not fit into {where}: {reason}")
    if network.device.type == "cuda":
        torch.cuda.empty_cache()
    return size // 2


# ---- ddpm_vlb/model/network.py ----

r"""The network that is scored: all that is asked of one, whatever class it is of.

A `Network` stands for a module in scoring, sampling and training: how many channels and which size its images have, of how many
classes, in which dtype it computes, and what it says of noisy samples. Nothing outside this folder asks a module itself, but
for what every torch module can do. The kinds of networks are in `kinds.py`.
"""




logger = logging.get_logger(__name__)

HALF = (torch.float16, torch.bfloat16)
_LOCK = Lock()


class _Held:
    r"""What parts of networks were before the first of those who hold them changed them, for the last one to put back: networks
    have parts in common, and threads networks. To be asked under `_LOCK`."""

    def __init__(self):
        self._entries: WeakKeyDictionary[torch.nn.Module, tuple[int, Any]] = WeakKeyDictionary()

    def __contains__(self, part: torch.nn.Module) -> bool:
        return part in self._entries

    def enter(self, part: torch.nn.Module, before: Any) -> None:
        r"""One more holds a part."""
        count, before = self._entries.get(part, (0, before))
        self._entries[part] = count + 1, before

    def leave(self, part: torch.nn.Module) -> Any:
        r"""What to put back, `None` where others still hold it."""
        count, before = self._entries.pop(part)
        if count == 1:
            return before
        self._entries[part] = count - 1, before
        return None


_TRAINING, _FORWARD = _Held(), _Held()


class Network:
    r"""A module as scoring sees it; the base class of the kinds of networks.

    A kind says in `__init__`, from the module's configuration, what its images are, and in `output` how it is called.

    Args:
        module: the network.
        device: where it computes; by default where its weights are.

    Attributes:
        channels: of its images.
        size: their (height, width), `None` where it takes any.
        out_channels: of its output, `None` where nothing tells.
        num_classes: of a class-conditional network, else `None`.
        takes_fractions: whether it can be asked between timesteps, and `why_no_fractions` what it is, if not.
        conditions: what it is given besides, tensors of P rows by the names of its arguments (`with_conditions`).
        needs: names without which it cannot be asked, and what each is, in words.
        takes: further names that it makes use of; `None` for all arguments of the module that a call does not give itself.
        halves, most: whether calls that do not fit into memory are made in halves, and of how many images they are then.
        autocast: of `torch.autocast` around each call of the module, whose weights keep their own dtype; `None` for none.
    """

    channels: int
    size: tuple[int, int] | None = None
    out_channels: int | None = None
    num_classes: int | None = None
    takes_fractions: bool = True
    why_no_fractions: str = "one with a learned table of them"
    needs: Mapping[str, str] = {}
    takes: Sequence[str] | None = None
    halves: bool = False
    most: int | None = None
    autocast: torch.dtype | None = None
    _largest: int = 0  # of the calls of a compiled module

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        self.module = module
        self._device = device
        self.conditions = Conditions({})

    def output(self, samples: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        r"""What the module says of samples `(B, C, H, W)` in its dtype, at timesteps `()` or `(B,)`, all on its device."""
        raise NotImplementedError

    def __call__(
        self, noisy_samples: torch.Tensor, timesteps: int | float | torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""The network's output, all NaN for an image where some of it is not finite; arguments as `ask`."""
        return nan_unless_finite(self.ask(noisy_samples, timesteps, class_labels))

    def ask(
        self, noisy_samples: torch.Tensor, timesteps: int | float | torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""The network's output as it is; `ValueError` of half precision from a network in another.

        Args:
            noisy_samples: latents on the device, `(B, C, H, W)`; formed in the working dtype, and only here brought to the
                network's.
            timesteps: one for all, or one each, `(B,)`.
            class_labels: of a class-conditional network, `(B,)`.
        """
        device = self.device
        labels = None if class_labels is None else to_device(class_labels, device)
        on_device = to_device(torch.as_tensor(timesteps), device)
        while True:
            size = min(len(noisy_samples), self.most or len(noisy_samples))
            try:
                return self._in_parts(noisy_samples, on_device, labels, size)
            except (RuntimeError, TypeError) as error:
                reason = out_of_memory(error)
                if reason is None and self.conditions:
                    shapes = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in self.conditions.items())
                    said = str(error).strip().split("\n")[0]
                    raise ValueError(f"`network_kwargs` must fit the network, got {shapes}: {said}") from error
                if reason is None:
                    raise
            # Here, where the error and all that it holds in memory are gone.
            self.most = self._largest = smaller(size, self, reason)
            logger.warning(f"{size} images do not fit into the memory of {device}: going on with batches of {self.most}.")

    def _in_parts(self, noisy_samples, timesteps, class_labels, size: int) -> torch.Tensor:
        if size == len(noisy_samples):
            return self._of_one_size(noisy_samples, timesteps, class_labels)
        parts = []
        for first in range(0, len(noisy_samples), size):
            rows = slice(first, first + size)
            at = timesteps[rows] if timesteps.ndim and len(timesteps) > 1 else timesteps
            labels = None if class_labels is None else class_labels[rows]
            parts.append(self._of_one_size(noisy_samples[rows], at, labels))
        return torch.cat(parts)

    def _of_one_size(self, noisy_samples, timesteps, class_labels) -> torch.Tensor:
        if not self._is_compiled:
            return self.answer(noisy_samples, timesteps, class_labels)
        size = len(noisy_samples)
        self._largest = max(self._largest, size)
        full = compiled_size(size, self._largest)
        labels = None if class_labels is None else filled(class_labels, size, full)
        return self.answer(filled(noisy_samples, size, full), filled(timesteps, size, full), labels)[:size]

    def answer(self, noisy_samples: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        r"""As `ask`, of what is on the device, in one call."""
        with self.mixed_precision():
            return self.checked(self.output(noisy_samples.to(self.dtype), timesteps, class_labels))

    def with_autocast(self, dtype: torch.dtype | None) -> "Network":
        r"""Itself, computing within `torch.autocast` of a dtype; `ValueError` for what is none of half precision, weights that
        are of it themselves, or a device without."""
        if dtype is not None:
            if dtype not in HALF:
                raise ValueError(f"`autocast` must be torch.bfloat16, torch.float16 or None, got {dtype!r}.")
            if self.dtype in HALF:
                raise ValueError(f"`autocast` must be None for a network with weights in {self.dtype}, got {dtype}.")
            if not torch.amp.is_autocast_available(self.device.type):
                raise ValueError(f"`autocast` must be None on {self.device}, where torch has none, got {dtype}.")
        self.autocast = dtype
        return self

    def mixed_precision(self) -> AbstractContextManager:
        r"""What the module is called in: the network's own `torch.autocast`, if there is one."""
        # Within `evaluating` it keeps the weights that it has brought to its dtype from one call to the next.
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    def checked(self, output: torch.Tensor) -> torch.Tensor:
        r"""An output of the module; `ValueError` of half precision from a network in another."""
        if output.dtype in HALF and self.dtype not in HALF and not torch.is_autocast_enabled(output.device.type):
            # A `torch.autocast` within it, say: reports would name another precision. Sampling alone has one around it.
            raise ValueError(
                f"`unet` must compute in its own dtype, {self.dtype}, got an output in {output.dtype}. For half precision give"
                " it weights of that dtype, or set `pipe.autocast`; then reports say so, and what it changes."
            )
        # Of a network on several devices the output is where its last part is.
        return output if output.device == self.device else output.to(self.device)

    def with_module(self, module: torch.nn.Module) -> "Network":
        r"""The same of another module of its kind, without autocast: a copy in another dtype, say."""
        network = type(self)(module, self._device).with_conditions(self.conditions)
        network.halves, network.most = self.halves, self.most
        return network

    def with_conditions(self, conditions: Mapping[str, torch.Tensor] | None) -> "Network":
        r"""Itself, given the same tensors whenever it is asked: a prompt's embeddings, say.

        Args:
            conditions: by the names of the module's arguments, `(P, ...)` each. With P = 1 all images have the one condition;
                with more, an image's class is the number of its row. The likelihood is p(x | condition).

        Raises:
            ValueError: an argument that the module has not or that it needs and is not given, tensors that do not fit.
        """
        conditions = conditions if isinstance(conditions, Conditions) else Conditions(conditions or {})
        takes = self.takes
        if takes is None:
            takes = [name for name in list(inspect.signature(self.module.forward).parameters)[2:] if name != "return_dict"]
        # Classes of its own come with the images.
        takes = [name for name in takes if name != "class_labels" or self.num_classes is None]
        count = conditions.check(type(self.module).__name__, self.needs, takes)
        if count > 1 and self.num_classes is not None:
            raise ValueError(f"`network_kwargs` must have one row for a network with classes of its own, got {count}.")
        self.conditions = conditions
        self.num_classes = count if count > 1 else self.num_classes
        return self

    def given(self, samples: torch.Tensor, class_labels: torch.Tensor | None) -> dict[str, Any]:
        r"""What the module is given besides samples and timesteps, on its device."""
        if not self.conditions:
            return {} if class_labels is None else {"class_labels": class_labels}
        arguments: dict[str, torch.Tensor] = {}
        for name, rows in self.conditions.items():
            rows = rows.to(samples.device, self.dtype if rows.is_floating_point() else None)
            arguments[name] = rows.expand(len(samples), *rows.shape[1:]) if len(rows) == 1 else rows[class_labels]
        if class_labels is not None and all(len(rows) == 1 for rows in self.conditions.values()):
            arguments["class_labels"] = class_labels
        return arguments

    @property
    def prompt(self) -> list[str] | None:
        r"""The texts that what it is given was made of, where that is known."""
        return self.conditions.prompt

    @property
    def condition_sha256(self) -> str | None:
        r"""SHA-256 of what it is given, `None` of nothing."""
        return tensors_digest("", self.conditions) if self.conditions else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        r"""(C, H, W) of its images; `ValueError` where its configuration leaves their size open."""
        if self.size is None:
            raise ValueError("`unet` must have a `sample_size` in its configuration to be sampled from, got None.")
        return (self.channels, *self.size)

    @property
    def device(self) -> torch.device:
        r"""Where it computes."""
        if self._device is None:
            return next((weight.device for weight in self.module.parameters()), torch.device("cpu"))
        return self._device

    @cached_property
    def dtype(self) -> torch.dtype:
        r"""In which it computes; asked for once, since diffusers walks through all parts of a module for it."""
        weights = (weight.dtype for weight in self.module.parameters() if weight.is_floating_point())
        return getattr(self.module, "dtype", None) or next(weights, torch.float32)

    @property
    def _is_compiled(self) -> bool:
        return hasattr(self.module, "_orig_mod") or getattr(self.module, "_compiled_call_impl", None) is not None

    @property
    def arithmetic(self) -> torch.dtype:
        r"""In which most of it is computed: its own dtype, or autocast's."""
        return self.autocast or self.dtype

    @property
    def precision(self) -> str:
        r"""What reports call it: a dtype's name, `"autocast-bfloat16"`."""
        return ("" if self.autocast is None else "autocast-") + str(self.arithmetic).removeprefix("torch.")

    @property
    def is_half(self) -> bool:
        r"""Whether it computes in half precision."""
        return self.arithmetic in HALF

    @cached_property
    def is_cast_by_layer(self) -> bool:
        r"""Whether diffusers' `enable_layerwise_casting` keeps its weights in another dtype than it computes in."""
        hooks = (getattr(part, "_diffusers_hook", None) for part in self.module.modules())
        return any(hook is not None and hook.get_hook("layerwise_casting") is not None for hook in hooks)

    @property
    def is_rounded(self) -> bool:
        r"""Whether its arithmetic, or the weights that it keeps, are of half precision or less."""
        return self.is_half or self.is_cast_by_layer

    def in_float32(self) -> torch.nn.Module:
        r"""A copy of the module, with its weights as they are, that computes in float32.

        Raises:
            ValueError: weights that are not at hand.
        """
        module: Any = getattr(self.module, "_orig_mod", self.module)
        if any(weight.is_meta for weight in module.parameters()) and self.device.type != "meta":
            raise ValueError(
                "`unet` must have its weights at hand for a copy of it in float32, got offloaded ones: load it without, or give"
                " `float32_unet`."
            )
        hooks = [part for part in module.modules() if hasattr(part, "_diffusers_hook")]
        if not hooks:
            return remove_hook_from_module(copy.deepcopy(module), recurse=True).float().to(self.device)
        # Hooks of diffusers are the network's own, and some cannot be copied.
        plain = type(module).from_config(module.config).float()
        plain.load_state_dict(module.state_dict())
        return plain.eval().to(self.device)

    def exact(self, float32_module: torch.nn.Module | None = None) -> tuple["Network", bool]:
        r"""The same in float32, and whether what differs includes the rounding of the weights.

        Args:
            float32_module: what it was made from; `None` takes its own weights, as they are.

        Raises:
            ValueError: weights that are not at hand; a module in half precision.
        """
        own = self.module if self.autocast is not None and not self.is_cast_by_layer else None
        module = own if float32_module is None else float32_module
        network = self.with_module(self.in_float32() if module is None else module)
        if network.is_rounded:
            raise ValueError(f"`float32_unet` must not be in half precision, got {network.dtype}.")
        return network, float32_module is not None or own is not None

    def check_devices(self) -> None:
        r"""Raise `ValueError` for weights on several devices that nothing brings together."""
        devices = sorted({str(weight.device) for weight in self.module.parameters()})
        hooked = any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in self.module.modules())
        if len(devices) > 1 and not hooked:
            raise ValueError(
                f"`unet` must have its weights on one device, or hooks that bring its inputs to them (accelerate's"
                f" `dispatch_model`), got {', '.join(devices)}."
            )

    @property
    def architecture_sha256(self) -> str:
        r"""SHA-256 of its configuration."""
        return architecture_digest(self.module)

    def sha256(self, dtype: torch.dtype | None = None) -> str | None:
        r"""SHA-256 of its configuration and weights; see `network_digest`."""
        # Of those that are kept in fewer digits than they are used in, as they are used: where they were saved, and loaded into
        # that dtype, it is the same network.
        return network_digest(self.module, self.dtype if dtype is None and self.is_cast_by_layer else dtype)

    @contextmanager
    def evaluating(self, autocast: bool = False) -> Iterator[None]:
        r"""Dropout off, and every part of it back as it was when the last of the threads that share it is done.

        Args:
            autocast: whether the caller's `torch.autocast`, or accelerate's around the network, has its way. Without, the
                network computes in its own dtype, which is what reports say.
        """
        parts = list(self.module.modules())
        with _LOCK:
            mixed = [] if autocast else [part for part in parts if part in _FORWARD or _is_autocast_by_accelerate(part)]
            for part in parts:
                _TRAINING.enter(part, part.training)
            for part in mixed:
                _FORWARD.enter(part, part.forward)
                cast(Any, part).forward = part._original_forward
            self.module.eval()
        off = not autocast and torch.amp.is_autocast_available(self.device.type)
        try:
            with torch.autocast(self.device.type, enabled=False) if off else nullcontext():
                yield
        finally:
            with _LOCK:
                for part in parts:
                    # What somebody has put into training meanwhile stays there.
                    part.training |= bool(_TRAINING.leave(part))
                for part in mixed:
                    part.forward = _FORWARD.leave(part) or part.forward

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""Raise `ValueError` where it cannot be asked at one of these timesteps, or about images of this (height, width)."""

    def check_inputs(self) -> None:
        r"""Raise `ValueError` for a network of more channels in than out, which is conditional on another picture."""
        if self.out_channels is not None and self.out_channels < self.channels:
            raise ValueError(
                "`unet` must say as many channels as it is given, got"
                f" {counted(self.channels, 'input channel')} and {counted(self.out_channels, 'output channel')}: it is"
                " conditional on another picture, in its further inputs, and such networks cannot be scored."
            )

    def check_out_channels(self, learns_variance: bool, variance_type: str) -> None:
        r"""Raise `ValueError` for a number of output channels that does not fit the variance type."""
        expected = self.channels * (2 if learns_variance else 1)
        if self.out_channels not in (None, expected):
            as_many = learns_variance and self.out_channels == self.channels  # DeepFloyd IF's, of larger pictures
            hint = " It learns no variances, or is conditional on another picture." if as_many else ""
            raise ValueError(
                f"`unet` must have {counted(expected, 'output channel')} for {counted(self.channels, 'input channel')} and"
                f" variance_type={variance_type!r}, got {self.out_channels}.{hint}"
            )

    def check_class_labels(self, class_labels: Any, count: int) -> torch.Tensor | None:
        r"""Class labels as `(count,)` integers, `None` for an unconditional network; `ValueError` where they do not fit."""
        num_classes = self.num_classes
        if (class_labels is None) != (num_classes is None):
            rule = "be left out: the network is unconditional" if num_classes is None else f"be given: {num_classes} classes"
            raise ValueError(f"`class_labels` must {rule}, got {class_labels!r}.")
        if class_labels is None or num_classes is None:
            return None
        try:
            labels = torch.as_tensor(class_labels).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`class_labels` must be {count} integers, got {reprlib.repr(class_labels)}.") from error
        labels = labels.expand(count) if labels.ndim == 0 else labels
        if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"`class_labels` must be {count} integers, got {labels.dtype} of shape {tuple(labels.shape)}.")
        labels = labels.long()  # of NumPy's unsigned integers torch knows no least
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"`class_labels` must lie in [0, {num_classes}), got values from {int(labels.min())} to {int(labels.max())}."
            )
        return labels


def _is_autocast_by_accelerate(part: torch.nn.Module) -> bool:
    r"""Whether `accelerator.prepare` has put mixed precision around a module; `unwrap_model` leaves it there."""
    return type(getattr(part.forward, "__wrapped__", None)).__name__ == "ConvertOutputsToFp32"


def unwrapped(module: Any) -> Any:
    r"""The module in the wrappers of parallel training, which have no configuration and change no output."""
    while isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    return module


# ---- ddpm_vlb/model/kinds.py ----

r"""The kinds of networks: one class each, which says what its images are and how it is called, and a line of `_KINDS`.

==========================  ================================================================================================
`UNet2DModel`               classes in a table, or embedded from numbers or vectors of their own (`class_embed_type`)
`DiTTransformer2DModel`     classes in a table; timesteps one each
`UNet2DConditionModel`      what a prompt became, as `encoder_hidden_states`
==========================  ================================================================================================

What is none of them is taken for a module that is called like a `UNet2DModel`.
"""





class UNetNetwork(Network):
    r"""diffusers' `UNet2DModel`, and any module with such a configuration that is called like one.

    Attributes:
        size_multiple: what height and width must be a multiple of, to be halved between the blocks and doubled again.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        super().__init__(module, device)
        config: Any = module.config
        check_configuration({name: getattr(config, name) for name in NETWORK_RULES if hasattr(config, name)}, NETWORK_RULES)
        self.channels = config.in_channels
        self.out_channels = getattr(config, "out_channels", None)
        size = getattr(config, "sample_size", None)
        self.size = size if size is None else tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        self.num_classes = getattr(config, "num_class_embeds", None)
        self.size_multiple = 2 ** max(len(getattr(config, "down_block_types", None) or ()) - 1, 0)
        self._time_embedding = getattr(config, "time_embedding_type", "positional")
        self._takes_logarithm = self._time_embedding == "fourier"
        if isinstance(getattr(module, "_orig_mod", module), UNet2DModel):
            self.takes = ()
        embedding = getattr(config, "class_embed_type", None)
        if embedding is not None:  # in place of a table
            self.num_classes = None
            self.needs = {"class_labels": f"what class_embed_type={embedding!r} embeds, a row for each class"}
        self._num_timesteps = getattr(config, "num_train_timesteps", None) if self._time_embedding == "learned" else None
        # A table of embeddings has a row for each timestep, and none between.
        self.takes_fractions = self._time_embedding != "learned"

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""Raise `ValueError` where it cannot be asked at one of these timesteps, or about images of this (height, width)."""
        if self._takes_logarithm and min(timesteps, default=1) <= 0:
            raise ValueError(
                f"`unet` must have an embedding of timestep {min(timesteps):g}, got time_embedding_type='fourier', which takes"
                " the timestep's logarithm. `inference_timesteps` can name a grid without it."
            )
        if self._num_timesteps is not None and max(timesteps, default=0) >= self._num_timesteps:
            raise ValueError(
                f"`unet` must have an embedding of timestep {max(timesteps)}, got a learned one of"
                f" {self._num_timesteps} timesteps."
            )
        if size is not None and any(length % self.size_multiple for length in size):
            raise ValueError(
                f"`unet` must halve the images evenly, got {self.size_multiple.bit_length()} blocks for"
                f" {size[0]} x {size[1]} pixels."
            )

    def output(self, samples, timesteps, class_labels):
        r"""`(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned."""
        return self.module(samples, timesteps, **self.given(samples, class_labels)).sample


class DiTNetwork(Network):
    r"""diffusers' `DiTTransformer2DModel`.

    Attributes:
        size_multiple: the side of its patches.
    """

    takes = ()

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        super().__init__(module, device)
        config: Any = module.config
        self.channels, self.size = config.in_channels, (config.sample_size, config.sample_size)
        self.out_channels = config.out_channels or config.in_channels
        self.num_classes = config.num_embeds_ada_norm
        self.size_multiple = config.patch_size

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""As `Network.check`."""
        if size is not None and any(length % self.size_multiple for length in size):
            raise ValueError(
                f"`unet` must have images of whole patches, {self.size_multiple} pixels wide, got {size[0]} x {size[1]} pixels."
            )

    def output(self, samples, timesteps, class_labels):
        r"""`(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned."""
        return self.module(samples, timesteps.expand(len(samples)), **self.given(samples, class_labels)).sample


# What `UNet2DConditionModel` takes in `added_cond_kwargs`, by what asks for it.
ADDED = {
    "addition_embed_type": {
        "text_image": ("image_embeds",),
        "text_time": ("text_embeds", "time_ids"),
        "image": ("image_embeds",),
        "image_hint": ("image_embeds", "hint"),
    },
    "encoder_hid_dim_type": {"text_image_proj": ("image_embeds",), "image_proj": ("image_embeds",)},
}


class ConditionNetwork(UNetNetwork):
    r"""diffusers' `UNet2DConditionModel`, in pixel space: what it is given is `encoder_hidden_states`, and what else its
    configuration asks for (`Network.with_conditions`)."""

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        super().__init__(module, device)
        config: Any = module.config
        if config.time_cond_proj_dim is not None:
            raise ValueError(
                f"`unet` must not be distilled from a guided network, got time_cond_proj_dim={config.time_cond_proj_dim}, an"
                " input for the scale of guidance: what it says is no denoiser's prediction, and no bound is known of it."
            )
        # It brings any size up again to what it was, and has the timestep, not its logarithm, where that is not in a table.
        self.size_multiple = 1
        self._takes_logarithm = False
        self.takes = ("encoder_attention_mask", "attention_mask")
        self._width = config.encoder_hid_dim or config.cross_attention_dim
        words = f"a prompt's embeddings (P, length, {self._width})" if isinstance(self._width, int) else "a prompt's embeddings"
        words += ", or be made of a `prompt` where the checkpoint has a text encoder"
        self.needs = {**self.needs, "encoder_hidden_states": words}
        self._added: tuple[str, ...] = ()
        for key, kinds in ADDED.items():
            for name in kinds.get(getattr(config, key), ()):
                self._added += (name,)
                self.needs[name] = (
                    f"as {key}={getattr(config, key)!r} asks for in `added_cond_kwargs`, a row for each condition"
                )

    def given(self, samples: torch.Tensor, class_labels: torch.Tensor | None) -> dict[str, Any]:
        r"""As `Network.given`."""
        arguments: dict[str, Any] = super().given(samples, class_labels)
        if self._added:
            arguments["added_cond_kwargs"] = {name: arguments.pop(name) for name in dict.fromkeys(self._added)}
        return arguments

    def with_conditions(self, conditions: Mapping[str, torch.Tensor] | None) -> Network:
        r"""As `Network.with_conditions`."""
        network = super().with_conditions(conditions)
        states = self.conditions["encoder_hidden_states"]
        if (
            states.ndim != 3
            or not states.is_floating_point()
            or isinstance(self._width, int)
            and states.shape[2] != self._width
        ):
            raise ValueError(
                f"`network_kwargs` must hold {self.needs['encoder_hidden_states']}, got encoder_hidden_states of shape"
                f" {tuple(states.shape)} and {states.dtype}."
            )
        return network


# Kinds of networks by the class of their module; the last that fits is taken.
_KINDS: list[tuple[type, type[Network]]] = [
    (UNet2DModel, UNetNetwork),
    (DiTTransformer2DModel, DiTNetwork),
    (UNet2DConditionModel, ConditionNetwork),
]
# The same for those who read annotations, as diffusers does of its pipelines.
KnownModule = UNet2DModel | DiTTransformer2DModel | UNet2DConditionModel
# What `from_pretrained` loads where a folder does not say.
DEFAULT_MODULE = UNet2DModel


def add_network(module_class: type, network_class: type[Network]) -> None:
    r"""Have modules of a class scored as a kind of networks, and loaded from checkpoints whose index names the class."""
    _KINDS.append((module_class, network_class))


def check_module(module: Any) -> Any:
    r"""The module, or `ValueError` for one that does not say what its images are."""
    if not isinstance(module, Network) and not hasattr(getattr(unwrapped(module), "_orig_mod", unwrapped(module)), "config"):
        raise ValueError(
            f"`unet` must be a {' or a '.join(known_names())}, or say what its images are in a `config` like one, got a"
            f" {type(module).__name__}. `ddpm_vlb.FunctionModel` makes a network of any module or function."
        )
    return module


def network_of(
    module: Any, device: torch.device | None = None, conditions: Mapping[str, torch.Tensor] | None = None
) -> Network:
    r"""The `Network` of a module, given `conditions` (`Network.with_conditions`)."""
    if isinstance(module, Network):
        return module
    module = unwrapped(module)
    # A compiled module stands for the one that it was made from.
    inner = getattr(module, "_orig_mod", module)
    # What is none of them is taken for a module that is called like a UNet2DModel.
    kind = next((kind for cls, kind in reversed(_KINDS) if isinstance(inner, cls)), UNetNetwork)
    network = kind(module, device)
    network.check_inputs()
    return network.with_conditions(conditions)


def known_module_class(library: str, name: str) -> type | None:
    r"""The class of networks of this name in this library that can be scored, if there is one."""
    if not (isinstance(library, str) and library):
        return None
    return next((cls for cls, _ in _KINDS if cls.__name__ == name and f"{cls.__module__}.".startswith(f"{library}.")), None)


def known_names() -> list[str]:
    r"""The names of all classes of diffusers that can be scored."""
    return [cls.__name__ for cls, _ in _KINDS if cls.__module__.startswith("diffusers.")]


# ---- ddpm_vlb/error_model.py ----

r"""How far a predicted image is expected to be off, pixel by pixel, and the variances of the reverse steps that follow.

A step from t to s that takes :math:`\hat x` for x is off by :math:`c (x - \hat x)`, c the coefficient of the image in the
posterior mean. With :math:`r^2 = (x - \hat x)^2` and :math:`\Delta = c^2 / \tilde\beta = \mathrm{SNR}(s) - \mathrm{SNR}(t)`,
its expected KL is least for

.. math:: \sigma^2 = \tilde\beta + c^2 e, \qquad e = E[r^2 | x_t],                                                   (1)

in every pixel, where it is

.. math:: L(\Delta) = \tfrac12 \left[ \log(1 + \Delta e) + \Delta \frac{r^2 - e}{1 + \Delta e} \right].              (2)

(With one number for all pixels this is the optimal variance of Analytic-DPM, Bao et al. 2022.) The step's length comes in by
:math:`\Delta` alone: a network that was looked at once at t is known for the steps from t to any s.

**The model of e**, with three numbers for each timestep, none of them negative:

.. math:: e = a_t + b_t\, (1 - \hat x^2)_+ + g_t\, \hat e .                                                          (3)

- :math:`1 - \hat x^2` is the most that the variance of a number in [-1, 1] with mean :math:`\hat x` can be (Bhatia & Davis
  2000). A pixel that is predicted black or white is nearly sure; a grey one may still become either.
- :math:`\hat e` is what a network with learned variances says: (1) solved for e at the step that it was trained for, from t to
  t - 1. It is carried to steps of any length that way, where interpolating between the bounds of that step says little.

What went before is in it: `fixed_small` is a = b = g = 0; `fixed_large` is :math:`a = 1 - \bar\alpha_t`, for all steps alike
(:math:`\beta - \tilde\beta = c^2 (1 - \bar\alpha_t)`); learned variances on the chain of all steps are g = 1.

**The decoder** spreads its mass over the grid of levels with the variance (3) too, with numbers of its own, so that decoding
may start at any noise level.
"""




@dataclass(frozen=True, eq=False)
class ErrorModel:
    r"""The numbers of (3), float64 of shape `(T,)`, for the reverse steps and for the decoder.

    Args:
        offsets, gains, learned_gains: a, b and g.
        decoder_offsets, decoder_gains, decoder_learned_gains: those of the decoder's variance, where it starts at t.
    """

    offsets: torch.Tensor
    gains: torch.Tensor
    learned_gains: torch.Tensor
    decoder_offsets: torch.Tensor
    decoder_gains: torch.Tensor
    decoder_learned_gains: torch.Tensor

    def __post_init__(self):
        for name, values in vars(self).items():
            if not (bool(torch.isfinite(values).all()) and bool((values >= 0).all())):
                raise ValueError(f"`{name}` must be finite and not negative, got {values.tolist()}.")
            if values.shape != self.offsets.shape:
                raise ValueError(f"`{name}` must have the shape {tuple(self.offsets.shape)}, got {tuple(values.shape)}.")
        if not bool((self.decoder_offsets > 0).all()):
            raise ValueError("`decoder_offsets` must be positive: a decoder without spread calls some images impossible.")


def features_of(pred_original_sample: torch.Tensor, learned_errors: torch.Tensor | None) -> torch.Tensor:
    r"""What (3) is linear in: 1, :math:`(1 - \hat x^2)_+` and, where there is one, :math:`\hat e`; `(F, *)` for shape `*`."""
    x = pred_original_sample
    parts = [torch.ones_like(x), (1 - x.square()).clamp(min=0.0)]
    return torch.stack(parts if learned_errors is None else [*parts, learned_errors])


def step_costs(errors: torch.Tensor, squared_errors: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
    r"""(2), the mean over pixels.

    Args:
        errors, squared_errors: e and :math:`r^2`, `(N, D)`.
        deltas: :math:`\Delta`, `(R,)`.

    Returns:
        Nats per dimension, `(N, R)`.
    """
    costs = []
    for delta in deltas:
        scaled = delta * errors
        costs.append(0.5 * (torch.log1p(scaled) + delta * (squared_errors - errors) / (1 + scaled)).mean(dim=1))
    return torch.stack(costs, dim=1)


# ---- ddpm_vlb/gaussians.py ----

r"""Closed forms of Gaussians, the only distributions a DDPM is made of.

**Kullback-Leibler divergence.** With :math:`d = \log\sigma_1^2 - \log\sigma_2^2`,

.. math::
    D_{KL}(N(\mu_1, \sigma_1^2) \,\|\, N(\mu_2, \sigma_2^2))
        = \tfrac12 \left[ (e^d - 1 - d) + (\mu_1 - \mu_2)^2 e^{-\log\sigma_2^2} \right].

Written with ``expm1`` the first bracket keeps its digits where the two variances nearly agree; neither is negative.

**Discretised Gaussian** (Section 3.3, Ho et al. 2020). The data lie on the grid :math:`x_k = 2k/(n-1) - 1`,
:math:`k = 0, \dots, n-1`, whose bins have the half width :math:`h = 1/(n-1)`; the two end bins are open:

.. math::
    P(x_k) = \Phi\left(\frac{x_k + h - \mu}{\sigma}\right) - \Phi\left(\frac{x_k - h - \mu}{\sigma}\right).

A difference of two numbers close to 1 has no digits left, so the bin is first mirrored into the lower tail, where
:math:`\Phi` is small and :math:`\log\Phi` is exact. With :math:`a > b` its two edges there, in standard deviations,

.. math:: \log P = \log\Phi(a) + \log\left(1 - e^{-(\log\Phi(a) - \log\Phi(b))}\right).

There is no floor and no approximation of :math:`\Phi`: the value and its gradient are exact far beyond 40 standard
deviations, and the n bins sum to 1. (Towards the other end digits go with the width of a bin in standard deviations: 1e-9 of
the value remain at :math:`h/\sigma = 10^{-8}`.)
"""




LN_2 = math.log(2.0)


class Gaussian(NamedTuple):
    r"""A diagonal Gaussian; the three tensors share one shape, the variance may be an expanded view."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor


def normal_kl(mean1, log_variance1, mean2, log_variance2) -> torch.Tensor:
    r"""KL divergence :math:`D_{KL}(N(\mu_1, \sigma_1^2) \| N(\mu_2, \sigma_2^2))`, elementwise.

    Args:
        mean1, log_variance1, mean2, log_variance2: tensors or floats of broadcastable shapes. Half-precision tensors are
            brought to float32 first.

    Returns:
        KL in nats, of the broadcast shape; 0 where the two Gaussians agree, never negative.
    """
    first = [x for x in (mean1, log_variance1, mean2, log_variance2) if isinstance(x, torch.Tensor)]
    device = first[0].device if first else None
    dtype = torch.float32
    for x in first:
        dtype = torch.promote_types(dtype, x.dtype)
    if not first:
        dtype = torch.float64
    mean1, log_variance1, mean2, log_variance2 = (
        torch.as_tensor(x, dtype=dtype, device=device) for x in (mean1, log_variance1, mean2, log_variance2)
    )
    difference = log_variance1 - log_variance2
    return 0.5 * (variance_gap(difference) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def normal_log_density(x: torch.Tensor, mean, log_variance) -> torch.Tensor:
    r"""Log-density :math:`\log N(x; \mu, \sigma^2) = -\tfrac12 [\log 2\pi\sigma^2 + (x - \mu)^2/\sigma^2]`, elementwise.

    Args:
        x, mean, log_variance: tensors, or floats for the last two, of broadcastable shapes.

    Returns:
        Log-density in nats.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    for parameter in (mean, log_variance):
        if isinstance(parameter, torch.Tensor):
            dtype = torch.promote_types(dtype, parameter.dtype)
    x, mean, log_variance = (torch.as_tensor(value, dtype=dtype, device=x.device) for value in (x, mean, log_variance))
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean) ** 2 * torch.exp(-log_variance))


def variance_gap(log_ratio: torch.Tensor) -> torch.Tensor:
    r""":math:`e^d - 1 - d \ge 0`, twice the KL of two Gaussians of equal mean whose log-variances differ by `d`."""
    # The clamp only ever removes a last-place rounding error: the exact value is never negative.
    return (torch.expm1(log_ratio) - log_ratio).clamp_min(0)


def discretized_gaussian_log_likelihood(
    samples: torch.Tensor,
    *,
    mean: torch.Tensor | float,
    log_variance: torch.Tensor | float,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r"""Log-probability that a Gaussian, integrated over the bins of the pixel grid, gives to `samples`.

    Exact out to the farthest tails (see the derivation at the head of this module); the arithmetic is float64 whatever
    the dtype of the arguments.

    Args:
        samples: float tensor on the grid :math:`2k/(n-1) - 1`.
        mean, log_variance: parameters of the Gaussian, tensors or floats, broadcastable with `samples`.
        num_pixel_levels: number of levels n of the grid, from 2 to 65536.
        validate_args: check that `samples` lie on the grid; this reads them back from an accelerator. Without the check
            they are taken to their nearest level.

    Returns:
        Log-probabilities in nats, elementwise, in the widest dtype of the three tensors.

    Raises:
        ValueError: `samples` off the grid or not floating-point, `num_pixel_levels` out of range.
    """
    check_num_pixel_levels(num_pixel_levels)
    if not samples.is_floating_point():
        raise ValueError(f"`samples` must be floating-point values on the pixel grid, got dtype {samples.dtype}.")
    output_dtype = samples.dtype
    for parameter in (mean, log_variance):
        if isinstance(parameter, torch.Tensor):
            output_dtype = torch.promote_types(output_dtype, parameter.dtype)
    dtype = working_dtype(samples.device)
    levels = samples_to_levels(samples, num_pixel_levels) if validate_args else nearest_levels(samples, num_pixel_levels)
    levels = levels.to(dtype)
    mean, log_variance = (torch.as_tensor(x, dtype=dtype, device=samples.device) for x in (mean, log_variance))
    inverse_std = torch.exp(-0.5 * log_variance)

    # Edges from the integer level, so that neighbouring bins have one number in common and nothing falls between them.
    lower = ((2 * levels - num_pixel_levels) / (num_pixel_levels - 1) - mean) * inverse_std
    upper = ((2 * levels + 2 - num_pixel_levels) / (num_pixel_levels - 1) - mean) * inverse_std
    # The open end bins: everything below the lowest bin's upper edge, everything above the highest bin's lower edge.
    lowest, highest = _log_ndtr(upper), _log_ndtr(-lower)
    mirrored = lower + upper > 0
    log_cdf_near = torch.where(mirrored, highest, lowest)
    log_cdf_far = _log_ndtr(torch.where(mirrored, -upper, lower))
    inner = log_cdf_near + _log1mexp(log_cdf_near - log_cdf_far)
    log_probability = torch.where(levels <= 0, lowest, torch.where(levels >= num_pixel_levels - 1, highest, inner))
    return log_probability.to(output_dtype)


class _LogNdtr(torch.autograd.Function):
    r""":math:`\log\Phi` with a derivative that stays right in the tail, where torch's own has no digits left by 1e6 sigma."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.special.log_ndtr(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        # phi(x) / Phi(x) = sqrt(2 / pi) / erfcx(-x / sqrt(2))
        return grad_output * math.sqrt(2 / math.pi) / torch.special.erfcx(-x / math.sqrt(2))


_log_ndtr = _LogNdtr.apply


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    r""":math:`\log(1 - e^{-x})` for x > 0, exact at both ends (Maechler 2012), with gradients that stay finite."""
    small = x < LN_2
    # Each branch sees only arguments of its own, so that no infinite derivative is multiplied by the mask's zero.
    below = torch.log(-torch.expm1(-torch.where(small, x, LN_2)))
    above = torch.log1p(-torch.exp(-torch.where(small, LN_2, x)))
    return torch.where(small, below, above)


def nats_to_bits_per_dim(nats: torch.Tensor, num_dimensions: int) -> torch.Tensor:
    r"""Bits per dimension of `nats` per image: :math:`\mathrm{nats} / (D \ln 2)` with :math:`D = C H W`.

    The one place where units are converted. Any shape.
    """
    return nats / (num_dimensions * LN_2)


# ---- ddpm_vlb/forward_process.py ----

r"""The forward process q, which turns an image into noise in T fixed Gaussian steps (Section 2, Ho et al. 2020).

Timesteps are zero-based: the latent after step `t` is :math:`x_t`, and :math:`\bar\alpha_t` is the diffusers table
``alphas_cumprod[t]``. "Before step 0" is the data :math:`x`, with :math:`\bar\alpha = 1`. A sub-sequence
:math:`\tau_0 < \dots < \tau_{K-1}` of the T steps is itself a diffusion with K steps; let s be the step of the grid below
t (or the data). All that follows holds for the full grid, where s = t - 1, and for any other:

.. math::
    q(x_t | x)   &= N(\sqrt{\bar\alpha_t}\, x,\; (1 - \bar\alpha_t) I)                                  & \text{(eq. 4)} \\
    q(x_t | x_s) &= N(\sqrt{1 - \beta_t}\, x_s,\; \beta_t I), \quad \beta_t = 1 - \bar\alpha_t/\bar\alpha_s & \text{(eq. 2)} \\
    q(x_s | x_t, x) &= N(\tilde\mu_t(x_t, x),\; \tilde\beta_t I)                                        & \text{(eq. 6)} \\
    \tilde\mu_t &= \frac{\sqrt{\bar\alpha_s}\,\beta_t}{1 - \bar\alpha_t} x
                 + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_s)}{1 - \bar\alpha_t} x_t, \quad
    \tilde\beta_t = \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \beta_t                                   & \text{(eq. 7)}

At the lowest step of the grid the posterior is the data itself: mean :math:`x`, variance 0.

**Precision.** Everything is a function of :math:`a_t = \sum_{s < i \le t} \log(1 - \beta_i)` and of the running sum
:math:`\log\bar\alpha_t`, both made with ``log1p`` in float64; :math:`\beta_t = -\mathrm{expm1}(a_t)` and
:math:`1 - \bar\alpha_t = -\mathrm{expm1}(\log\bar\alpha_t)` then lose no digits, where float32 tables are wrong by up to 5e-3
(relative) at the low-noise end.
"""





class Rows:
    r"""Timesteps that were looked up and checked, once for all that is asked about a batch; they stand in their place.

    Args:
        forward: whose rows they are.
        rows: of its tables, int64 on the CPU, `(B,)`.
    """

    def __init__(self, forward: "ForwardProcess", rows: torch.Tensor):
        self.forward, self.rows = forward, rows

    @property
    def timesteps(self) -> torch.Tensor:
        r"""The timesteps themselves, `(B,)`."""
        return self.forward.timesteps[self.rows]

    def __getitem__(self, index: torch.Tensor) -> "Rows":
        return Rows(self.forward, self.rows[index])


@dataclass(frozen=True, eq=False)
class ForwardProcess:
    r"""Frozen float64 tables of a diffusion on a grid of timesteps, and the Gaussians they define.

    Every table has the shape `(K,)`, ascends in t, and lives on the CPU. Build one with `ForwardProcess.from_betas`.

    All methods take `timesteps` as one integer for the whole batch, or as an integer tensor of shape `(B,)`. A tensor on an
    accelerator is read back to be checked, so keep timesteps on the CPU where waiting for the device matters.

    Args:
        timesteps: the grid, ascending, int64, shape `(K,)`.
        log_alphas: :math:`\log(1 - \beta_t)` of the effective beta of each step of the grid; -inf at a step to zero SNR.
        num_train_timesteps: number of steps T of the full process.
    """

    timesteps: torch.Tensor
    log_alphas: torch.Tensor
    num_train_timesteps: int

    @classmethod
    def from_betas(cls, betas: torch.Tensor, inference_timesteps: Sequence[int] | None = None) -> "ForwardProcess":
        r"""Tables for all T steps, or for the sub-sequence `inference_timesteps`.

        Args:
            betas: forward variances, shape `(T,)`; in (0, 1), the last one may be 1 (zero terminal SNR).
            inference_timesteps: strictly descending integers in [0, T); `None` for all T steps.

        Raises:
            ValueError: betas out of range or not finite, a sub-sequence that is empty, not strictly descending, or out of
                range.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"`betas` must have the shape (T,) with T >= 1, got {tuple(betas.shape)}.")
        good = (betas > 0) & (betas < 1)
        good[-1] |= betas[-1] == 1
        if not bool(good.all()):
            where = int((~good).nonzero()[0])
            raise ValueError(
                "`betas` must lie in (0, 1), the last one in (0, 1], for the process to be scored,"
                f" got {betas[where].item()!r} at step {where}."
            )
        log_alphas = torch.log1p(-betas)
        if inference_timesteps is None:
            return cls(torch.arange(len(betas)), log_alphas, len(betas))
        grid = torch.tensor(check_inference_timesteps(inference_timesteps, len(betas))[::-1])
        # A sum over each gap; the difference of two running sums would lose the digits that they share.
        used = torch.arange(int(grid[-1]) + 1)
        log_alphas = torch.zeros(len(grid), dtype=torch.float64).index_add(0, torch.searchsorted(grid, used), log_alphas[used])
        return cls(grid, log_alphas, len(betas))

    @classmethod
    def from_log_snr(cls, log_snr: torch.Tensor) -> "ForwardProcess":
        r"""Tables for all T steps from :math:`\log(\bar\alpha_t / (1 - \bar\alpha_t))`, differentiable in it.

        Args:
            log_snr: strictly descending, shape `(T,)`; gradients flow through every table and every Gaussian. Not checked: a
                learnable schedule is monotone by construction.
        """
        log_alphas_cumprod = torch.nn.functional.logsigmoid(log_snr.to("cpu", torch.float64))
        log_alphas = torch.diff(log_alphas_cumprod, prepend=log_alphas_cumprod.new_zeros(1))
        return cls(torch.arange(len(log_alphas)), log_alphas, len(log_alphas))

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def is_learnable(self) -> bool:
        r"""Whether the tables carry gradients; :math:`L_T` then is part of what is minimised."""
        return self.log_alphas.requires_grad

    # Tables. The suffix `_prev` is diffusers' word for the next lower step of the grid.

    @cached_property
    def log_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\log\bar\alpha_t`."""
        return torch.cumsum(self.log_alphas, dim=0)

    @cached_property
    def _log_alphas_cumprod_prev(self) -> torch.Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.log_alphas_cumprod[:-1]])

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\bar\alpha_t`."""
        return torch.exp(self.log_alphas_cumprod)

    @cached_property
    def one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`1 - \bar\alpha_t`, the variance of :math:`q(x_t | x)`."""
        return -torch.expm1(self.log_alphas_cumprod)

    @cached_property
    def sqrt_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\sqrt{\bar\alpha_t}`, the signal's part of :math:`x_t`."""
        return torch.exp(0.5 * self.log_alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\sqrt{1 - \bar\alpha_t}`, the noise's part of :math:`x_t`."""
        return self.one_minus_alphas_cumprod.sqrt()

    @cached_property
    def log_one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\log(1 - \bar\alpha_t)`."""
        # log1p keeps the digits where alphas_cumprod is small, expm1 where it is close to 1.
        direct, via_one_minus = torch.log1p(-self.alphas_cumprod), self.one_minus_alphas_cumprod.log()
        return torch.where(self.alphas_cumprod < 0.5, direct, via_one_minus)

    @cached_property
    def recip_sqrt_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`1 / \sqrt{\bar\alpha_t}`; infinite at zero SNR."""
        return 1.0 / self.sqrt_alphas_cumprod

    @cached_property
    def recip_sqrt_one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`1 / \sqrt{1 - \bar\alpha_t}`."""
        return 1.0 / self.sqrt_one_minus_alphas_cumprod

    @cached_property
    def sqrt_alphas(self) -> torch.Tensor:
        r""":math:`\sqrt{1 - \beta_t}` of the effective beta, the decay from :math:`x_s` to :math:`x_t`."""
        return torch.exp(0.5 * self.log_alphas)

    @cached_property
    def betas(self) -> torch.Tensor:
        r"""Effective :math:`\beta_t = 1 - \bar\alpha_t / \bar\alpha_s`, the variance of :math:`q(x_t | x_s)`."""
        return -torch.expm1(self.log_alphas)

    @cached_property
    def log_betas(self) -> torch.Tensor:
        r""":math:`\log\beta_t`."""
        return self.betas.log()

    @cached_property
    def snr(self) -> torch.Tensor:
        r"""Signal-to-noise ratio :math:`\bar\alpha_t / (1 - \bar\alpha_t)`."""
        return 1.0 / torch.expm1(-self.log_alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> torch.Tensor:
        r""":math:`\tilde\beta_t` of eq. 7; 0 at the lowest step."""
        one_minus_prev = -torch.expm1(self._log_alphas_cumprod_prev)
        return one_minus_prev / self.one_minus_alphas_cumprod * self.betas

    @cached_property
    def posterior_log_variance(self) -> torch.Tensor:
        r""":math:`\log\tilde\beta_t`; -inf at the lowest step."""
        # The lowest entry is written down: the derivative of log at 0 would turn the gradient of every table into NaN.
        return torch.cat([self.betas.new_full((1,), -math.inf), torch.log(self.posterior_variance[1:])])

    @cached_property
    def posterior_mean_coef1(self) -> torch.Tensor:
        r"""Coefficient of the data in :math:`\tilde\mu_t`; 1 at the lowest step."""
        return torch.exp(0.5 * self._log_alphas_cumprod_prev) * self.betas / self.one_minus_alphas_cumprod

    @cached_property
    def posterior_mean_coef2(self) -> torch.Tensor:
        r"""Coefficient of :math:`x_t` in :math:`\tilde\mu_t`; 0 at the lowest step."""
        return self.sqrt_alphas * -torch.expm1(self._log_alphas_cumprod_prev) / self.one_minus_alphas_cumprod

    # From timesteps to table rows.

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {step: row for row, step in enumerate(self.timesteps.tolist())}

    @cached_property
    def _row_table(self) -> torch.Tensor:
        r"""The row of each of the T timesteps, -1 where there is none."""
        return torch.full((self.num_train_timesteps,), -1).index_copy_(0, self.timesteps, torch.arange(len(self)))

    def look_up(self, timesteps: int | torch.Tensor | Rows, batch_size: int) -> int | torch.Tensor | Rows:
        r"""`timesteps` as they may be given to every method, looked up where there is one for each image; errors as `rows`."""
        if isinstance(timesteps, Rows) or not isinstance(timesteps, torch.Tensor) or timesteps.ndim == 0:
            return timesteps
        rows = self.rows(timesteps, batch_size)
        return Rows(self, rows) if isinstance(rows, torch.Tensor) else timesteps

    def rows(self, timesteps: int | torch.Tensor | Rows, batch_size: int) -> int | torch.Tensor:
        r"""Rows of the tables for `timesteps`: an int for a scalar, an int64 CPU tensor of shape `(B,)` or `(1,)` otherwise.

        Raises:
            ValueError: timesteps that are not integers, not in [0, T), not on the grid, or neither one nor `batch_size`.
        """
        if isinstance(timesteps, Rows):
            if timesteps.forward is self:
                return timesteps.rows
            timesteps = timesteps.timesteps
        if isinstance(timesteps, (list, tuple, np.ndarray)):
            timesteps = torch.as_tensor(timesteps)
        if not isinstance(timesteps, torch.Tensor) or timesteps.ndim == 0:
            return self._row(timesteps)
        if timesteps.ndim > 1 or timesteps.is_floating_point() or timesteps.dtype == torch.bool:
            raise ValueError(
                "`timesteps` must be an integer or an integer tensor of shape (B,),"
                f" got dtype {timesteps.dtype} and shape {tuple(timesteps.shape)}."
            )
        if len(timesteps) not in (1, batch_size):
            raise ValueError(f"`timesteps` must have the shape ({batch_size},) of the batch, got ({len(timesteps)},).")
        steps = timesteps.cpu().long()
        inside = steps.clamp(0, self.num_train_timesteps - 1)
        rows = self._row_table[inside]
        if not bool(((rows >= 0) & (steps == inside)).all()):
            for step in steps.tolist():
                self._row(step)  # which one it is
        return rows

    def _row(self, timestep) -> int:
        try:
            step = integer(timestep)
        except TypeError:
            raise ValueError(f"`timesteps` must be integers, got {timestep!r}.") from None
        row = self._row_of.get(step)
        if row is None:
            inside = 0 <= step < self.num_train_timesteps
            rule = (
                f"belong to the sub-sequence of {len(self)} steps that is scored"
                if inside
                else f"lie in [0, {self.num_train_timesteps})"
            )
            raise ValueError(f"`timesteps` must {rule}, got {step}.")
        return row

    def gather(self, table: torch.Tensor, timesteps: int | torch.Tensor | Rows, like: torch.Tensor) -> float | torch.Tensor:
        r"""Entries of a `(K,)` table at `timesteps`: a float for one timestep (so that nothing travels to the device;
        of a learnable process a float64 tensor of shape `()`), otherwise a float64 tensor of shape `(B, 1, 1, ...)` on the
        device of `like`.

        Raises:
            ValueError: as `rows`, the batch being that of `like`.
        """
        rows = self.rows(timesteps, len(like))
        if isinstance(rows, int):
            # Of a learnable process a tensor all the same: a float would cut the gradient without a word.
            return table[rows].to(like.device) if table.requires_grad else table[rows].item()
        values = table.index_select(0, rows).reshape(-1, *[1] * (like.ndim - 1))
        # From the host without a wait for the device.
        return values.to(like.device, working_dtype(like.device), non_blocking=like.device.type == "cuda")

    # The Gaussians. All return the working dtype (float64) and the shape of the samples, `(B, C, H, W)`.

    def q_mean_variance(self, original_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows) -> Gaussian:
        r""":math:`q(x_t | x)` (eq. 4) for `original_samples` :math:`x`."""
        (x,) = to_working(original_samples=original_samples)
        mean = self.gather(self.sqrt_alphas_cumprod, timesteps, x) * x
        return self._gaussian(mean, self.one_minus_alphas_cumprod, self.log_one_minus_alphas_cumprod, timesteps)

    def q_step_mean_variance(self, samples: torch.Tensor, timesteps: int | torch.Tensor | Rows) -> Gaussian:
        r""":math:`q(x_t | x_s)` (eq. 2) for `samples` :math:`x_s`, the latents one step of the grid below t (the data at
        the lowest step)."""
        (x,) = to_working(samples=samples)
        mean = self.gather(self.sqrt_alphas, timesteps, x) * x
        return self._gaussian(mean, self.betas, self.log_betas, timesteps)

    def q_posterior_mean_variance(
        self, original_samples: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> Gaussian:
        r""":math:`q(x_s | x_t, x)` (eqs. 6 and 7). At the lowest step this is the data: variance 0, log-variance -inf."""
        mean = self.posterior_mean(original_samples, noisy_samples, timesteps)
        return self._gaussian(mean, self.posterior_variance, self.posterior_log_variance, timesteps)

    def posterior_mean(
        self, original_samples: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> torch.Tensor:
        r""":math:`\tilde\mu_t(x_t, x)` of eq. 7."""
        x, x_t = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
        coef1 = self.gather(self.posterior_mean_coef1, timesteps, x)
        coef2 = self.gather(self.posterior_mean_coef2, timesteps, x_t)
        return coef1 * x + coef2 * x_t

    def _gaussian(self, mean, variance_table, log_variance_table, timesteps) -> Gaussian:
        variance, log_variance = (
            entries if isinstance(entries, torch.Tensor) else mean.new_full((), entries)
            for entries in (self.gather(table, timesteps, mean) for table in (variance_table, log_variance_table))
        )
        return Gaussian(mean, variance.expand(mean.shape), log_variance.expand(mean.shape))

    # x_t from x and epsilon, and the conversions among x, epsilon and v given x_t.

    def q_sample(self, original_samples, noise, timesteps) -> torch.Tensor:
        r""":math:`x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \epsilon`."""
        x, epsilon = to_working(original_samples=original_samples, noise=noise)
        return self._signal(timesteps, x) * x + self._noise(timesteps, x) * epsilon

    def predict_original_from_epsilon(self, noisy_samples, epsilon, timesteps) -> torch.Tensor:
        r""":math:`x = (x_t - \sqrt{1 - \bar\alpha_t}\, \epsilon) / \sqrt{\bar\alpha_t}`; not finite where
        :math:`\bar\alpha_t = 0`."""
        x_t, epsilon = to_working(noisy_samples=noisy_samples, epsilon=epsilon)
        return (x_t - self._noise(timesteps, x_t) * epsilon) * self.gather(self.recip_sqrt_alphas_cumprod, timesteps, x_t)

    def predict_original_from_velocity(self, noisy_samples, velocity, timesteps) -> torch.Tensor:
        r""":math:`x = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v`."""
        x_t, v = to_working(noisy_samples=noisy_samples, velocity=velocity)
        return self._signal(timesteps, x_t) * x_t - self._noise(timesteps, x_t) * v

    def predict_epsilon_from_original(self, noisy_samples, original_samples, timesteps) -> torch.Tensor:
        r""":math:`\epsilon = (x_t - \sqrt{\bar\alpha_t}\, x) / \sqrt{1 - \bar\alpha_t}`."""
        x_t, x = to_working(noisy_samples=noisy_samples, original_samples=original_samples)
        scaled_noise = x_t - self._signal(timesteps, x_t) * x
        return scaled_noise * self.gather(self.recip_sqrt_one_minus_alphas_cumprod, timesteps, x_t)

    def predict_epsilon_from_velocity(self, noisy_samples, velocity, timesteps) -> torch.Tensor:
        r""":math:`\epsilon = \sqrt{1 - \bar\alpha_t}\, x_t + \sqrt{\bar\alpha_t}\, v`."""
        x_t, v = to_working(noisy_samples=noisy_samples, velocity=velocity)
        return self._noise(timesteps, x_t) * x_t + self._signal(timesteps, x_t) * v

    def velocity(self, original_samples, noise, timesteps) -> torch.Tensor:
        r""":math:`v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x` (Salimans & Ho 2022)."""
        x, epsilon = to_working(original_samples=original_samples, noise=noise)
        return self._signal(timesteps, x) * epsilon - self._noise(timesteps, x) * x

    def _signal(self, timesteps, like):
        return self.gather(self.sqrt_alphas_cumprod, timesteps, like)

    def _noise(self, timesteps, like):
        return self.gather(self.sqrt_one_minus_alphas_cumprod, timesteps, like)


def check_inference_timesteps(inference_timesteps: Sequence[int], num_train_timesteps: int) -> list[int]:
    r"""A sub-sequence as a list of ints, after checking it.

    Raises:
        ValueError: not a non-empty, strictly descending sequence of integers in [0, `num_train_timesteps`).
    """
    try:
        steps = [integer(step) for step in inference_timesteps]
    except TypeError:
        raise ValueError(f"`inference_timesteps` must be integers, got {inference_timesteps!r}.") from None
    if not steps:
        raise ValueError("`inference_timesteps` must name at least one timestep, got none.")
    for step in steps:
        if not 0 <= step < num_train_timesteps:
            raise ValueError(f"`inference_timesteps` must lie in [0, {num_train_timesteps}), got {step}.")
    for higher, lower in zip(steps, steps[1:]):
        if lower >= higher:
            raise ValueError(f"`inference_timesteps` must be strictly descending, got {higher} before {lower}.")
    return steps


# ---- ddpm_vlb/reverse_process.py ----

r"""The reverse process p, the learned Gaussians that turn noise back into an image (Section 3.2, Ho et al. 2020).

A network looks at :math:`x_t` and predicts the noise, the image or the velocity; whichever it is, it amounts to a
prediction :math:`\hat x` of the image. The reverse step puts it where the posterior of the forward process has the image:

.. math:: p(x_s | x_t) = N(\tilde\mu_t(x_t, \hat x),\; \sigma_t^2), \qquad s \text{ the step of the grid below } t.

What the output means, and whether the variance is fixed or predicted, always through its logarithm, is a row each of
`parametrizations.py`.

**The lowest step** has no posterior variance (it is 0): it is the decoder, which must spread its mass over the pixel grid.
There :math:`\tilde\beta` means the posterior variance of the *next* step of the grid, for `fixed_large` too, as in Ho et al.
and Improved DDPM; the upper end of `learned_range` remains the step's own :math:`\beta = 1 - \bar\alpha`. With a single step
there is no next one, and both ends are that :math:`\beta`.

**A calibrated model** has an `ErrorModel` besides: its variances come from what the predictions were measured to be off
(`error_model.py`), at the lowest step the decoder's own, whatever the variance type. Learned ones go into it.
"""





class ReverseGaussian(NamedTuple):
    r""":math:`p(x_s | x_t)` and the image it was built from; all of the shape `(B, C, H, W)`, float64."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor
    pred_original_sample: torch.Tensor


@dataclass(frozen=True, eq=False)
class ReverseProcess:
    r"""How a network's output becomes :math:`p(x_s | x_t)`: frozen settings beside the forward process they belong to.

    Args:
        forward: the forward process on the grid that is scored.
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.
        variance_type: a row of `parametrizations.VARIANCES`.
        clip_sample, clip_sample_range: clamp the predicted image to [-range, range].
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of the predicted image
            (Section 2.3, Saharia et al. 2022); it takes precedence over clipping, as in diffusers.
        error_model: of a calibrated model.
        trained: the forward process on all T steps, which its learned variances are about.

    Raises:
        ValueError: unknown `prediction_type` or `variance_type`; clipping or thresholding out of range; epsilon prediction at a
            step of zero SNR, from which no image can be predicted.
    """

    forward: ForwardProcess
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    error_model: ErrorModel | None = None
    trained: ForwardProcess | None = None

    def __post_init__(self):
        row_named(PREDICTIONS, "prediction_type", self.prediction_type)
        row_named(VARIANCES, "variance_type", self.variance_type)
        for name in ("clip_sample", "thresholding"):
            if getattr(self, name) not in (True, False):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        for name in ("sample_max_value", "clip_sample_range"):
            if not is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {shown(getattr(self, name))}.")
        ratio = self.dynamic_thresholding_ratio
        if not is_number(ratio) or not 0 <= ratio <= 1:
            raise ValueError(f"`dynamic_thresholding_ratio` must lie in [0, 1], got {shown(ratio)}.")
        self.prediction.check_signal(self.forward.alphas_cumprod[-1].item(), int(self.forward.timesteps[-1]))
        if self.error_model is not None:
            steps = self.forward.num_train_timesteps
            if self.trained is None or len(self.trained) != steps or len(self.error_model.offsets) != steps:
                raise ValueError(f"`error_model` and `trained` must be of all {steps} steps, got others.")

    @property
    def prediction(self) -> Prediction:
        r"""The row of `prediction_type`."""
        return PREDICTIONS[self.prediction_type]

    @property
    def variance(self) -> Variance:
        r"""The row of `variance_type`."""
        return VARIANCES[self.variance_type]

    @property
    def learns_variance(self) -> bool:
        r"""Whether the network has a second half of channels for the variance."""
        return self.variance.is_learned

    @cached_property
    def min_log_variance(self) -> torch.Tensor:
        r"""The posterior's log-variance `(K,)`, with the next step's value (or, with one step, beta's) at the lowest step."""
        table = self.forward.posterior_log_variance.clone()
        table[0] = table[1] if len(table) > 1 else self.forward.log_betas[0]
        return table

    @cached_property
    def max_log_variance(self) -> torch.Tensor:
        r"""The forward log-variance `(K,)`; where variances are fixed, with `min_log_variance` at the lowest step."""
        betas = self.forward.log_betas
        return betas if self.learns_variance else torch.cat([self.min_log_variance[:1], betas[1:]])

    def split(self, model_output: torch.Tensor, num_channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""The network's prediction `(B, C, H, W)` and, where variances are learned, its second half of the same shape; all NaN
        for an image where some of the output is not finite.

        Raises:
            ValueError: a number of channels that does not fit the variance type.
        """
        expected = num_channels * (2 if self.learns_variance else 1)
        if model_output.shape[1] != expected:
            raise ValueError(
                f"`model_output` must have {counted(expected, 'channel')} for {num_channels}-channel images with"
                f" variance_type={self.variance_type!r}, got {model_output.shape[1]}."
            )
        model_output = nan_unless_finite(model_output)
        if not self.learns_variance:
            return model_output, None
        prediction, variance = model_output.split(num_channels, dim=1)
        return prediction, variance

    def check_model_output(
        self, model_output: torch.Tensor, noisy_samples: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""`split`, and a `ValueError` unless the batch and the image size are those of `noisy_samples`."""
        prediction, predicted_variance = self.split(model_output, noisy_samples.shape[1])
        if prediction.shape != noisy_samples.shape:
            raise ValueError(
                "`model_output` must have the batch and image size of `noisy_samples`,"
                f" got {tuple(model_output.shape)} and {tuple(noisy_samples.shape)}."
            )
        return prediction, predicted_variance

    def predict(
        self, model_output: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""The two things the bound needs of :math:`p(x_s | x_t)`: the predicted image and the log-variance.

        Args:
            model_output: the network's output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            noisy_samples: latents :math:`x_t`, `(B, C, H, W)`.
            timesteps: an integer, or an integer tensor `(B,)`.

        Returns:
            Predicted image `(B, C, H, W)`, clipped as configured, and a log-variance that broadcasts with it; float64.

        Raises:
            ValueError: shapes that do not fit, timesteps off the grid.
        """
        (x_t,) = to_working(noisy_samples=noisy_samples)
        prediction, predicted_variance = self.check_model_output(model_output, noisy_samples)
        pred_original_sample = self.clip(self.prediction.original(self.forward, x_t, prediction.to(x_t.dtype), timesteps))
        if self.error_model is None:
            return pred_original_sample, self._log_variance(predicted_variance, x_t, timesteps)
        return pred_original_sample, self._calibrated_log_variance(pred_original_sample, predicted_variance, timesteps)

    def p_mean_variance(
        self, model_output: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> ReverseGaussian:
        r""":math:`p(x_s | x_t)`; at the lowest step, the Gaussian that the decoder integrates over the pixel grid.

        Arguments and errors as `predict`.
        """
        pred_original_sample, log_variance = self.predict(model_output, noisy_samples, timesteps)
        mean = self.forward.posterior_mean(pred_original_sample, noisy_samples, timesteps)
        log_variance = log_variance.expand(mean.shape)
        return ReverseGaussian(mean, log_variance.exp(), log_variance, pred_original_sample)

    def clip(self, x: torch.Tensor) -> torch.Tensor:
        r"""A predicted image `(B, C, H, W)`, clipped as configured."""
        if self.thresholding:
            scale = torch.quantile(x.abs().flatten(1), self.dynamic_thresholding_ratio, dim=1)
            scale = scale.clamp(min=1.0, max=self.sample_max_value).reshape(-1, *[1] * (x.ndim - 1))
            return torch.clamp(x, -scale, scale) / scale
        return x.clamp(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else x

    @cached_property
    def on_all_steps(self) -> "ReverseProcess":
        r"""The chain of all T steps, not calibrated; `ValueError` where `trained` was not given."""
        if self.trained is None:
            raise ValueError("`trained` must be given where the chain of all steps is asked for, got None.")
        return replace(self, forward=self.trained, error_model=None, trained=None)

    def learned_errors(
        self, predicted_variance: torch.Tensor | None, timesteps: int | torch.Tensor | Rows
    ) -> torch.Tensor | None:
        r"""The squared errors :math:`\hat e` that learned variances stand for on the chain of all steps (`error_model.py`).

        Args:
            predicted_variance: the network's second half, `(B, C, H, W)`, or `None`.
            timesteps: an integer, or an integer tensor `(B,)`.

        Returns:
            `(B, C, H, W)`, not negative; `None` without learned variances.
        """
        if predicted_variance is None:
            return None
        like = predicted_variance.to(working_dtype(predicted_variance.device))
        trained = self.on_all_steps.forward
        variance = self.on_all_steps._log_variance(like, like, timesteps)
        # At t = 0 the posterior variance is 0 and the coefficient 1: the decoder's variance itself.
        posterior, weight = (
            trained.gather(table, timesteps, variance)
            for table in (trained.posterior_variance, trained.posterior_mean_coef1.square())
        )
        return ((variance.exp() - posterior) / weight).clamp(min=0.0)

    @cached_property
    def error_tables(self) -> list[torch.Tensor]:
        r"""The numbers of the error model on the grid, the decoder's at its lowest step: three tables `(K,)`; `ValueError`
        where there is none."""
        model, steps = self.error_model, self.forward.timesteps
        if model is None:
            raise ValueError("`error_model` must be given where its numbers are asked for, got None.")
        pairs = (
            (model.offsets, model.decoder_offsets),
            (model.gains, model.decoder_gains),
            (model.learned_gains, model.decoder_learned_gains),
        )
        return [torch.cat([decoder[steps[:1]], table[steps[1:]]]) for table, decoder in pairs]

    def _calibrated_log_variance(self, pred_original_sample, predicted_variance, timesteps) -> torch.Tensor:
        forward = self.forward
        features = features_of(pred_original_sample, self.learned_errors(predicted_variance, timesteps))
        gathered = (forward.gather(table, timesteps, pred_original_sample) for table in self.error_tables)
        errors = reduce(torch.add, (value * feature for value, feature in zip(gathered, features)))
        # At the lowest step the posterior variance is 0 and the coefficient 1.
        weight = forward.gather(forward.posterior_mean_coef1.square(), timesteps, pred_original_sample)
        posterior = forward.gather(forward.posterior_variance, timesteps, pred_original_sample)
        return (weight * errors + posterior).log()

    def _log_variance(self, predicted, x_t, timesteps) -> torch.Tensor:
        predicted = None if predicted is None else predicted.to(x_t.dtype)
        return self.variance.log_variance(_Ends(self, x_t, timesteps), predicted)


class _Ends:
    r"""The two ends between which variances lie, at some timesteps; each is looked up once, and has one gradient."""

    def __init__(self, reverse: ReverseProcess, like: torch.Tensor, timesteps: int | torch.Tensor | Rows):
        self._reverse, self._like, self._timesteps = reverse, like, timesteps

    @cached_property
    def low(self) -> torch.Tensor:
        r""":math:`\log\tilde\beta_t`, broadcasting with `like`."""
        return self._look_up(self._reverse.min_log_variance)

    @cached_property
    def high(self) -> torch.Tensor:
        r""":math:`\log\beta_t`, broadcasting with `like`."""
        return self._look_up(self._reverse.max_log_variance)

    def _look_up(self, table: torch.Tensor) -> torch.Tensor:
        entries = self._reverse.forward.gather(table, self._timesteps, self._like)
        # `full`, not `as_tensor`: filled on the device, with nothing to copy there.
        return entries if isinstance(entries, torch.Tensor) else self._like.new_full((), entries)


# ---- ddpm_vlb/model/stepping.py ----

r"""A step of the reverse process from Python floats: what `VLBDDPMScheduler.step` computes with.

The same Gaussian as `reverse_process.py` tells, in the arithmetic of the samples: coefficients are looked up as floats once a
grid is set, so that a step costs the device a handful of operations and no wait. So does the log-probability of a step, from
coefficients in float64: a ratio of two policies is close to 1, and the rounding of float32 tables alone would move it by more
than it is off.
"""




HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class StepCoefficients(NamedTuple):
    r"""What `step` needs at one timestep, as Python floats (s is the next lower step of the grid)."""

    sqrt_alpha_prod: float
    inverse_sqrt_alpha_prod: float
    sqrt_beta_prod: float
    pred_original_sample_coeff: float
    current_sample_coeff: float
    min_log_variance: float
    max_log_variance: float
    fixed_std: float
    is_last: bool
    calibrated: "CalibratedStep | None" = None


class CalibratedStep(NamedTuple):
    r"""The numbers of a calibrated variance at one timestep (`error_model.py`), as Python floats."""

    posterior_variance: float
    weight: float
    offset: float
    gain: float
    learned_gain: float
    # What learned variances mean on the chain of all steps.
    trained_log_variance: float
    trained_log_beta: float
    trained_ratio: float


def variance_of(variance_type: str) -> Variance:
    r"""The row of a variance type; unknown ones act as `fixed_small`, as in the stock scheduler, and scoring refuses them."""
    known = isinstance(variance_type, str) and variance_type in VARIANCES
    return VARIANCES[variance_type if known else "fixed_small"]


def step_coefficients(
    alphas_cumprod: torch.Tensor, grid: list[int], variance_type: str, calibrated: list[CalibratedStep] | None
) -> dict[int, StepCoefficients]:
    r"""The coefficients at each timestep of a strictly descending grid.

    Args:
        alphas_cumprod: the scheduler's table, `(T,)`.
        grid: timesteps, K.
        variance_type: of the scheduler.
        calibrated: of a calibrated model, K.
    """
    # In float32 and in the stock scheduler's order of operations: diffusers' own tests compare sums of trajectories to
    # places at which the rounding of these tables tells. Near t = 0 that rounding is relative to 1 - alphas_cumprod; the
    # terms of the bound come from float64 tables.
    table = torch.cat([alphas_cumprod.cpu(), torch.ones(1)])  # the entry at -1 is the data's
    alpha_prod, alpha_prod_prev = table[torch.tensor(grid, dtype=torch.int64)], table[[*grid[1:], -1]]
    beta_prod, beta_prod_prev = 1 - alpha_prod, 1 - alpha_prod_prev
    alpha = alpha_prod / alpha_prod_prev
    beta = 1 - alpha
    variance = torch.clamp(beta_prod_prev / beta_prod * beta, min=1e-20)
    fixed_variance = beta if variance_of(variance_type).is_large else variance
    columns: dict[str, torch.Tensor] = dict(
        sqrt_alpha_prod=alpha_prod**0.5,
        inverse_sqrt_alpha_prod=1 / alpha_prod**0.5,
        sqrt_beta_prod=beta_prod**0.5,
        pred_original_sample_coeff=alpha_prod_prev**0.5 * beta / beta_prod,
        current_sample_coeff=alpha**0.5 * beta_prod_prev / beta_prod,
        min_log_variance=torch.log(variance),
        max_log_variance=torch.log(beta),
        fixed_std=fixed_variance**0.5,
        is_last=torch.arange(1, len(grid) + 1) == len(grid),
    )
    rows = zip(*(column.tolist() for column in columns.values()))
    steps = [StepCoefficients(**dict(zip(columns, row))) for row in rows]
    if calibrated is not None:
        steps = [step._replace(calibrated=numbers) for step, numbers in zip(steps, calibrated)]
    return dict(zip(grid, steps))


def exact_coefficients(reverse: ReverseProcess) -> dict[int, StepCoefficients]:
    r"""The coefficients at each timestep of a grid, the decoder's Gaussian at its lowest, from the tables of the bound: what
    `log_density_of_step` takes, of a model that is not calibrated."""
    forward = reverse.forward
    log_variance = reverse.max_log_variance if reverse.variance.is_large else reverse.min_log_variance
    columns: dict[str, torch.Tensor] = dict(
        sqrt_alpha_prod=forward.sqrt_alphas_cumprod,
        inverse_sqrt_alpha_prod=1 / forward.sqrt_alphas_cumprod,
        sqrt_beta_prod=forward.one_minus_alphas_cumprod.sqrt(),
        pred_original_sample_coeff=forward.posterior_mean_coef1,
        current_sample_coeff=forward.posterior_mean_coef2,
        min_log_variance=reverse.min_log_variance,
        max_log_variance=reverse.max_log_variance,
        fixed_std=(0.5 * log_variance).exp(),
        is_last=torch.arange(len(forward)) == 0,
    )
    rows = zip(*(column.tolist() for column in columns.values()))
    return dict(zip(forward.timesteps.tolist(), (StepCoefficients(**dict(zip(columns, row))) for row in rows)))


def log_density_of_step(
    reverse: ReverseProcess,
    prev_sample: torch.Tensor,
    model_output: torch.Tensor,
    sample: torch.Tensor,
    c: StepCoefficients,
) -> torch.Tensor:
    r""":math:`\log p(x_s | x_t)` at one timestep, as `bound.step_log_prob` has it, in fewer operations.

    Args:
        reverse: the model, not calibrated.
        prev_sample, sample: :math:`x_s` and :math:`x_t`, floating-point, `(B, C, H, W)`.
        model_output: `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
        c: the timestep's `exact_coefficients`.

    Returns:
        Nats, shape `(B,)`, in the working dtype; NaN for an image where the output is not finite.
    """
    dtype = working_dtype(sample.device)
    model_output, x_t = model_output.to(dtype), sample.to(dtype)
    prediction, learned = model_output, None
    if reverse.learns_variance:
        prediction, learned = model_output.split(sample.shape[1], dim=1)
    x_0 = reverse.clip(reverse.prediction.step(x_t, prediction, c))
    difference = prev_sample.to(dtype).sub(x_t, alpha=c.current_sample_coeff).sub_(x_0, alpha=c.pred_original_sample_coeff)
    size = sample[0].numel()
    if learned is None or reverse.variance.line is None:
        squares = difference.flatten(1).square().sum(dim=1)
        nats = squares.mul(-0.5 / c.fixed_std**2).sub(size * (math.log(c.fixed_std) + HALF_LOG_TWO_PI))
    else:
        offset, slope = reverse.variance.line(c.min_log_variance, c.max_log_variance)
        log_std = learned * slope + offset
        terms = (difference * torch.exp(-log_std)).square().mul(-0.5).sub(log_std)
        nats = terms.flatten(1).sum(dim=1).sub(size * HALF_LOG_TWO_PI)
    # As `nan_unless_finite`: a product with 1, or with NaN where clipping has made a number of an overflow.
    return nats * (model_output.flatten(1).sum(dim=1) * 0.0 + 1.0)


def calibrated_steps(reverse: ReverseProcess) -> list[CalibratedStep]:
    r"""The numbers of a calibrated model at each timestep of its grid, descending."""
    forward, trained, used = reverse.forward, reverse.on_all_steps.forward, reverse.forward.timesteps
    weight = trained.posterior_mean_coef1.square()
    columns = (
        forward.posterior_variance,
        forward.posterior_mean_coef1.square(),
        *reverse.error_tables,
        trained.posterior_log_variance[used],
        trained.log_betas[used],
        (trained.posterior_variance / weight)[used],
    )
    return [CalibratedStep(*row) for row in zip(*(column.flip(0).tolist() for column in columns))]


def split_output(model_output: torch.Tensor, num_channels: int, variance_type: str) -> tuple[torch.Tensor, ...]:
    r"""The network's prediction and its second half.

    Raises:
        ValueError: a number of channels that does not fit the variance type.
    """
    learned = variance_of(variance_type).is_learned
    if not learned or model_output.shape[1] != 2 * num_channels:
        raise ValueError(
            f"`model_output` must have {counted(2 * num_channels if learned else num_channels, 'channel')} for"
            f" {num_channels}-channel samples with variance_type={variance_type!r},"
            f" got {model_output.shape[1]}."
        )
    return model_output.split(num_channels, dim=1)


def predict_original(
    prediction_type: str, model_output: torch.Tensor, sample: torch.Tensor, c: StepCoefficients
) -> torch.Tensor:
    r"""The image that an output amounts to, before clipping.

    Raises:
        ValueError: an unknown `prediction_type`.
    """
    return row_named(PREDICTIONS, "prediction_type", prediction_type).step(sample, model_output, c)


def add_noise_of_step(
    mean: torch.Tensor,
    noise: torch.Tensor,
    variance_type: str,
    c: StepCoefficients,
    pred_original_sample: torch.Tensor,
    predicted_variance: torch.Tensor | None,
) -> None:
    r"""Add :math:`\sigma_t` times the noise to the mean, in place."""
    row = variance_of(variance_type)
    if c.calibrated is not None:
        mean.addcmul_(_calibrated_std(c.calibrated, row, pred_original_sample, predicted_variance), noise)
    elif predicted_variance is None or row.line is None:
        mean.add_(noise, alpha=c.fixed_std)
    else:
        offset, slope = row.line(c.min_log_variance, c.max_log_variance)
        predicted_variance = predicted_variance.to(mean.dtype)
        mean.addcmul_(torch.mul(predicted_variance, slope).exp_(), noise, value=math.exp(offset))


def _calibrated_std(c: CalibratedStep, row: Variance, pred_original_sample, predicted_variance) -> torch.Tensor:
    errors = torch.clamp(1 - pred_original_sample.square(), min=0.0).mul_(c.gain).add_(c.offset)
    if predicted_variance is not None and row.above is not None and c.learned_gain:
        above = row.above(predicted_variance.to(pred_original_sample.dtype), c.trained_log_variance, c.trained_log_beta)
        errors.add_(above.expm1_().clamp_(min=0.0), alpha=c.learned_gain * c.trained_ratio)
    return errors.mul_(c.weight).add_(c.posterior_variance).sqrt_()


# ---- ddpm_vlb/progress.py ----

r"""How far a computation is: a bar in a terminal or a notebook, and elsewhere, as in a pipe or a file, a line now and then."""



SECONDS = 10.0  # between two lines; later on a tenth of the time that has gone by


def can_be_redrawn() -> bool:
    r"""Whether what stands on stderr can be drawn over: in a terminal, and in a notebook's cell."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    notebook = shell is not None and "IPKernelApp" in shell.config
    return notebook or sys.stderr.isatty()


def progress_bar(total: int | None = None, *, disable: bool = False, **options: Any) -> Any:
    r"""A `tqdm` bar, or `Lines`.

    Args:
        total: of the work, where it is known.
        disable: nothing at all.
        options: of `tqdm`; `Lines` knows some of them.
    """
    if disable or can_be_redrawn():
        return tqdm(total=total, disable=disable, **options)
    return Lines(total, **options)


class Lines:
    r"""What of `tqdm` is used here, as lines on stderr. What takes no longer than a few seconds prints none.

    Args:
        total, initial, desc, unit, unit_scale: as `tqdm`.
        others: of `tqdm`, and of no meaning here.
    """

    def __init__(
        self, total: int | None = None, initial: int = 0, desc: str = "", unit: str = "it", unit_scale: bool = False, **others
    ):
        self.total, self.n, self._initial = total, initial, initial
        self._how = {"prefix": desc, "unit": unit, "unit_scale": unit_scale}
        self._start = self._last = time.monotonic()
        self._postfix = ""

    def update(self, n: int = 1) -> None:
        r"""So many more are done."""
        self.n += n
        now = time.monotonic()
        if now - self._last >= max(SECONDS, (self._last - self._start) / 10):
            self._last = now
            total: Any = None if self.total is None else max(self.total, self.n)  # a total can be an estimate
            line = tqdm.format_meter(
                self.n, total, now - self._start, ncols=0, initial=self._initial, postfix=self._postfix, **self._how
            )
            print(line.strip(), file=sys.stderr, flush=True)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        r"""What the next line ends with."""
        self._postfix = text

    def refresh(self) -> None:
        r"""Nothing: a line stays as it was printed."""

    def close(self) -> None:
        r"""Nothing is left to do."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


# ---- ddpm_vlb/outputs.py ----

r"""What scoring returns, and how it is shown: as a line, as a table, as a data frame.

A result holds a number for every image, or for every step. Printed, all of them are pages: what is shown is their mean, its
error, of how many images, and what it took.
"""




class Shown:
    r"""A result of scoring: a dataclass of `repr=False`, whose `_head`, `_details` and `_columns` say what is shown."""

    def _head(self) -> dict[str, Any]:
        r"""What a line says, by its name: texts, or numbers."""
        raise NotImplementedError

    def _details(self) -> dict[str, Any]:
        r"""What a table says besides."""
        return {}

    def _columns(self) -> dict[str, Any]:
        r"""Of the data frame: vectors of one length, whose first names the rows."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name} {_text(value)}' for name, value in self._head().items())})"

    def summary(self) -> str:
        r"""The result in a few lines, one for each number."""
        rows = self._head() | self._details()
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {_text(value)}" for name, value in rows.items())

    def _repr_html_(self) -> str:
        r"""The result as a table, for notebooks."""
        rows = (self._head() | self._details()).items()
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(_text(value))}</td></tr>" for name, value in rows)
        return f"<table>{''.join(cells)}</table>"

    def to_pandas(self):
        r"""The numbers of every image, or of every step, as a `pandas.DataFrame`, a row each.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`to_pandas` needs pandas, which is not installed: pip install pandas.") from error
        columns = {name: torch.as_tensor(values).numpy() for name, values in self._columns().items()}
        return pandas.DataFrame(columns).set_index(next(iter(columns)))


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def mean_of_images(bits_per_dim: torch.Tensor, num_network_evaluations: int) -> dict[str, Any]:
    r"""The mean of images' numbers `(N,)`, its standard error over them, N, and what it took: a head."""
    count = len(bits_per_dim)
    error = {"standard error": bits_per_dim.std().item() / count**0.5} if count > 1 else {}
    return {
        "bits/dim": bits_per_dim.mean().item(),
        **error,
        "images": count,
        "network evaluations": num_network_evaluations,
    }


@dataclass(repr=False)
class VLBOutput(Shown, BaseOutput):
    r"""The variational bound of N images.

    Args:
        bits_per_dim (`torch.Tensor` of shape `(N,)`): The bound on the negative log-likelihood, in bits per dimension:
            `prior + transitions_total + decoder`.
        prior (`torch.Tensor` of shape `(N,)`): :math:`L_T`, in bits/dim.
        transitions (`torch.Tensor` of shape `(N, K - 1)`): The KL terms :math:`L_t`, ascending in t, in bits/dim; `None` where
            they were sampled.
        transitions_total (`torch.Tensor` of shape `(N,)`): The sum of the KL terms, in bits/dim.
        decoder (`torch.Tensor` of shape `(N,)`): :math:`L_0`, in bits/dim.
        timesteps (`torch.Tensor` of shape `(K - 1,)`): The timesteps of the columns of `transitions`.
        num_network_evaluations (`int`): Network evaluations, each of one image at one timestep.
        config (`dict`): What was scored, and with what.
        monte_carlo_error, degrees_of_freedom (`torch.Tensor` of shape `(N,)`): Standard error of each image's `bits_per_dim`,
            given the image, and its degrees of freedom, for Student's distribution; `None` for a full sweep.
    """

    bits_per_dim: torch.Tensor
    prior: torch.Tensor
    transitions: torch.Tensor | None
    transitions_total: torch.Tensor
    decoder: torch.Tensor
    timesteps: torch.Tensor
    num_network_evaluations: int
    config: dict[str, Any]
    monte_carlo_error: torch.Tensor | None = None
    degrees_of_freedom: torch.Tensor | None = None

    def _head(self) -> dict[str, Any]:
        head = mean_of_images(self.bits_per_dim, self.num_network_evaluations)
        if self.monte_carlo_error is not None:
            # Of an image, not of the mean: the images' estimates have the fits of the pilot in common.
            head["Monte Carlo error of an image"] = self.monte_carlo_error.square().mean().sqrt().item()
        return head

    def _details(self) -> dict[str, Any]:
        names = ("num_steps", "num_train_timesteps", "num_pixel_levels", "variance_type", "clip_sample", "dtype", "seed")
        return {
            "L_T prior": self.prior.mean().item(),
            "L_t KL terms": self.transitions_total.mean().item(),
            "L_0 decoder": self.decoder.mean().item(),
            **{name: self.config[name] for name in names if name in self.config},
        }

    def _columns(self) -> dict[str, Any]:
        columns = {"image": range(len(self.bits_per_dim))}
        columns |= {name: self[name] for name in ("bits_per_dim", "prior", "transitions_total", "decoder")}
        errors = {name: self.get(name) for name in ("monte_carlo_error", "degrees_of_freedom") if self.get(name) is not None}
        return columns | errors


@dataclass
class VLBDDPMSchedulerOutput(DDPMSchedulerOutput):
    r"""
    What `step` returns with `return_log_prob=True`.

    Args:
        prev_sample, pred_original_sample (`torch.Tensor` of shape `(B, C, H, W)`): As in `DDPMSchedulerOutput`.
        log_prob (`torch.Tensor` of shape `(B,)`): :math:`\log p(x_s | x_t)` at `prev_sample`, in nats per image, float64.
    """

    log_prob: torch.Tensor | None = None


# ---- ddpm_vlb/bound.py ----

r"""The variational bound on the negative log-likelihood, term by term (eq. 5, Ho et al. 2020).

.. math::
    -\log p(x) \le L &= E_q\left[ -\log p(x_T) - \sum_{t} \log \frac{p(x_s | x_t)}{q(x_t | x_s)} \right] & \text{(eq. 3)} \\
    &= \underbrace{D_{KL}(q(x_T | x) \| p(x_T))}_{L_T}
     + \sum_{t > 0} E_q \underbrace{D_{KL}(q(x_s | x_t, x) \| p(x_s | x_t))}_{L_t}
       \underbrace{- \; E_q \log p(x | x_0)}_{L_0}                                              & \text{(eq. 5)}

with zero-based t: :math:`L_0` is the decoder's term, at the lowest step of the grid. The first line compares densities along
one sampled trajectory (`trajectory_bound`). The second puts a closed-form KL in place of each sampled log-ratio
:math:`\log q(x_s | x_t, x) - \log p(x_s | x_t)`: its expectation given :math:`(x_t, x)`. That is Rao-Blackwellisation: the same
mean and, term by term, never more variance. (Of the sums no such thing holds for every model. The errors of a trajectory's
log-ratios can cancel; under a perfect model they do to the last digit, and the first form is :math:`-\log p(x)` each time.)

Both Gaussians of :math:`L_t` have means :math:`\tilde\mu_t` at the true and the predicted image, so that with
:math:`c_t` the coefficient of the image in :math:`\tilde\mu_t`,

.. math::
    L_t = \sum_{\text{dims}} \tfrac12 \left[ e^{d} - 1 - d + c_t^2 e^{-\log\sigma_t^2} (x - \hat x)^2 \right],
    \qquad d = \log\tilde\beta_t - \log\sigma_t^2 .

The difference of the two means is never formed. With :math:`\sigma_t^2 = \tilde\beta_t` it is
:math:`\tfrac12 (\mathrm{SNR}(s) - \mathrm{SNR}(t)) \|x - \hat x\|^2` (Section 4, Kingma et al. 2021).

A draw in place of the expectation, at :math:`x_s = \tilde\mu_t + \tilde\beta_t^{1/2} \epsilon`, adds terms of mean zero to that
(`sampled_transition`). With :math:`\delta = c_t (x - \hat x) / \sigma_t`, the difference of the means in units of
:math:`\sigma_t`,

.. math::
    \log \frac{q(x_s | x_t, x)}{p(x_s | x_t)}
    = \sum_{\text{dims}} \tfrac12 \left[ (\delta + e^{d/2} \epsilon)^2 - \epsilon^2 - d \right]
    = L_t + \sum_{\text{dims}} \left[ \tfrac12 (e^d - 1) (\epsilon^2 - 1) + \delta e^{d/2} \epsilon \right] .

Every function returns nats per image, shape `(B,)`, in the working dtype (float64).
"""




# What `ReverseProcess.predict` says: the image, and the log-variance that broadcasts with it.
Predicted = tuple[torch.Tensor, torch.Tensor]


def prior_kl(forward: ForwardProcess, original_samples: torch.Tensor) -> torch.Tensor:
    r""":math:`L_T = D_{KL}(q(x_T | x) \| N(0, I))`, with T the highest timestep of the grid.

    Args:
        forward: the forward process that is scored.
        original_samples: images, `(B, C, H, W)`.

    Returns:
        Nats, shape `(B,)`.
    """
    (x,) = to_working(original_samples=original_samples)
    # Scalars on the CPU take part in arithmetic on any device, and carry the gradients of a learnable process.
    alpha_bar, log_variance = forward.alphas_cumprod[-1], forward.log_one_minus_alphas_cumprod[-1]
    # normal_kl(mean, log(1 - a), 0, 0) = (-log(1 - a) - a + mean^2) / 2, with the a's of 1 - a and of mean^2 = a x^2.
    return _sum_dims(0.5 * ((-log_variance - alpha_bar).clamp(min=0.0) + alpha_bar * x**2))


def transition_kl(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
) -> torch.Tensor:
    r""":math:`L_t = D_{KL}(q(x_s | x_t, x) \| p(x_s | x_t))` for timesteps above the lowest one.

    Args:
        reverse: the reverse process that is scored.
        model_output: the network's output at `noisy_samples`, `(B, C, H, W)` or `(B, 2C, H, W)`.
        original_samples, noisy_samples: images and latents, `(B, C, H, W)`.
        timesteps: an integer, or an integer tensor `(B,)`.

    Returns:
        Nats, shape `(B,)`; never negative.
    """
    x, _ = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    return _transition_kl(reverse.forward, reverse.predict(model_output, noisy_samples, timesteps), x, timesteps)


def _transition_kl(forward: ForwardProcess, predicted: Predicted, x: torch.Tensor, timesteps) -> torch.Tensor:
    _, gap, weight, error = _compare(forward, predicted, x, timesteps)
    if gap.numel() in (1, len(error)):
        # Of one variance for an image, the sum over its pixels first.
        return 0.5 * (gap.reshape(-1) * error[0].numel() + weight.reshape(-1) * _sum_dims(error.square()))
    return _sum_dims(0.5 * (gap + weight * error.square()))


def sampled_transition(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    noise: torch.Tensor,
) -> torch.Tensor:
    r""":math:`\log q(x_s | x_t, x) - \log p(x_s | x_t)` at an :math:`x_s` drawn from q: what `transition_kl` is the mean of.

    Arguments as `transition_kl`, and:
        noise: standard normal, of the shape of `original_samples`: the draw is the posterior's mean and so many of its
            standard deviations.

    Returns:
        Nats, shape `(B,)`; it may be negative.

    Raises:
        ValueError: `noise` of another shape.
    """
    x, _, noise = to_working(original_samples=original_samples, noisy_samples=noisy_samples, noise=noise)
    predicted = reverse.predict(model_output, noisy_samples, timesteps)
    log_ratio, gap, weight, error = _compare(reverse.forward, predicted, x, timesteps)
    closed_form = 0.5 * (gap + weight * error**2)
    added = 0.5 * torch.expm1(log_ratio) * (noise**2 - 1) + weight.sqrt() * error * torch.exp(0.5 * log_ratio) * noise
    return _sum_dims(closed_form + added)


def _compare(
    forward: ForwardProcess, predicted: Predicted, x: torch.Tensor, timesteps: int | torch.Tensor | Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""By what the Gaussians of :math:`L_t` differ: :math:`d, e^d - 1 - d, c_t^2 / \sigma_t^2` and :math:`x - \hat x`."""
    pred_original_sample, log_variance = predicted
    posterior_log_variance = forward.gather(forward.posterior_log_variance, timesteps, pred_original_sample)
    log_ratio = posterior_log_variance - log_variance
    gap = variance_gap(log_ratio)
    weight = forward.gather(forward.posterior_mean_coef1, timesteps, pred_original_sample) ** 2 * torch.exp(-log_variance)
    return log_ratio, gap, weight, x - pred_original_sample


def decoder_nll(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r""":math:`L_0 = -\log p(x | x_0)`, the discretised Gaussian decoder at the lowest timestep of the grid.

    Arguments as `transition_kl`, and:
        num_pixel_levels: number of levels of the grid on which `original_samples` lie.
        validate_args: check that they do; this reads them back from an accelerator.

    Returns:
        Nats, shape `(B,)`; not negative.

    Raises:
        ValueError: `original_samples` off the grid.
    """
    x, _ = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    predicted = reverse.predict(model_output, noisy_samples, timesteps)
    return _decoder_nll(predicted, x, num_pixel_levels, validate_args)


def _decoder_nll(predicted: Predicted, x: torch.Tensor, num_pixel_levels: int, validate_args: bool) -> torch.Tensor:
    mean, log_variance = predicted  # the posterior mean at the lowest step is the predicted image itself
    log_likelihood = discretized_gaussian_log_likelihood(
        x,
        mean=mean,
        log_variance=log_variance,
        num_pixel_levels=num_pixel_levels,
        validate_args=validate_args,
    )
    return -_sum_dims(log_likelihood)


def vlb_terms(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r"""`decoder_nll` for the images at the lowest timestep, `transition_kl` for the others.

    Arguments and errors as `decoder_nll`. Returns nats, shape `(B,)`.
    """
    forward = reverse.forward
    timesteps = forward.look_up(timesteps, len(noisy_samples))
    rows = torch.as_tensor(forward.rows(timesteps, len(noisy_samples))).reshape(-1)
    index = (rows == 0).nonzero().flatten()
    x, _ = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    predicted = reverse.predict(model_output, noisy_samples, timesteps)
    if not len(index):
        return _transition_kl(forward, predicted, x, timesteps)
    if len(index) == rows.numel():
        return _decoder_nll(predicted, x, num_pixel_levels, validate_args)
    # All as transitions, those of the lowest step to what they would be of the next; then the decoder's own in their place.
    terms = _transition_kl(forward, predicted, x, Rows(forward, rows.clamp(min=1)))
    on_device = to_device(index, noisy_samples.device)
    mean, log_variance, x = (part.index_select(0, on_device) for part in (*predicted, x))
    decoded = _decoder_nll((mean, log_variance), x, num_pixel_levels, validate_args)
    return terms.index_copy(0, on_device, decoded)


def step_log_prob(
    reverse: ReverseProcess,
    prev_samples: torch.Tensor,
    model_output: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor | Rows,
    num_pixel_levels: int | None = None,
) -> torch.Tensor:
    r""":math:`\log p(x_s | x_t)` of a step that was taken: what the first form of the bound sums, and a policy gradient weighs.

    Args:
        reverse, model_output, noisy_samples, timesteps: as `transition_kl`.
        prev_samples: the latents :math:`x_s` one step of the grid below `timesteps` (the image at the lowest one).
        num_pixel_levels: at the lowest timestep the log-probability of the discretised decoder, for images on the grid of so
            many levels; `None` for the density of its Gaussian, for any images.

    Returns:
        Nats, shape `(B,)`; finite for finite arguments. A density may be positive.

    Raises:
        ValueError: `prev_samples` of another shape, or off the grid where they are to be on it.
    """
    x_s, x_t = to_working(prev_samples=prev_samples, noisy_samples=noisy_samples)
    pred_original_sample, log_variance = reverse.predict(model_output, noisy_samples, timesteps)
    mean = reverse.forward.posterior_mean(pred_original_sample, x_t, timesteps)
    log_prob = normal_log_density(x_s, mean, log_variance)
    lowest = torch.as_tensor(reverse.forward.rows(timesteps, len(x_t))) == 0
    if num_pixel_levels is not None and lowest.any():
        index = lowest.expand(len(x_t)).nonzero().squeeze(1).to(x_t.device)
        decoded = discretized_gaussian_log_likelihood(
            x_s[index],
            mean=mean[index],
            log_variance=log_variance.expand_as(mean)[index],
            num_pixel_levels=num_pixel_levels,
        )
        log_prob = log_prob.index_copy(0, index, decoded)
    return _sum_dims(log_prob)


def trajectory_bound(
    reverse: ReverseProcess,
    predict: Callable[[torch.Tensor, int], torch.Tensor],
    original_samples: torch.Tensor,
    num_pixel_levels: int = 256,
    generator: torch.Generator | None = None,
    noises: Iterable[torch.Tensor] | None = None,
) -> torch.Tensor:
    r"""The bound in its first form (eq. 3): log-densities along one sampled trajectory :math:`x_0, \dots, x_T \sim q`.

    The same expectation as the sum of the three terms; see the head of this module for the variance.

    Args:
        reverse: the reverse process that is scored.
        predict: the network, called as `predict(noisy_samples, timestep)`.
        original_samples: images on the pixel grid, `(B, C, H, W)`.
        num_pixel_levels: number of levels of that grid.
        generator: source of the trajectory's noise.
        noises: the noise itself in place of it, standard normal, one `(B, C, H, W)` for each timestep of the grid, ascending.

    Returns:
        One unbiased sample of the bound per image, nats, shape `(B,)`; it may be negative.
    """
    forward = reverse.forward
    (x_s,) = to_working(original_samples=original_samples)
    total = torch.zeros(len(x_s), dtype=x_s.dtype, device=x_s.device)
    if noises is None:
        noises = (torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype, device=x_s.device) for _ in range(len(forward)))
    for row, (timestep, noise) in enumerate(zip(forward.timesteps.tolist(), noises)):
        q = forward.q_step_mean_variance(x_s, timestep)
        x_t = q.mean + q.variance.sqrt() * noise.to(x_s)
        model_output = predict(x_t, timestep)
        if row == 0:
            total += decoder_nll(reverse, model_output, original_samples, x_t, timestep, num_pixel_levels)
        else:
            total -= step_log_prob(reverse, x_s, model_output, x_t, timestep)
        total += _sum_dims(normal_log_density(x_t, q.mean, q.log_variance))
        x_s = x_t
    return total - _sum_dims(normal_log_density(x_s, 0.0, 0.0))


def _sum_dims(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).sum(dim=1)


# ---- ddpm_vlb/calibration/sub_schedules.py ----

r"""The best K-step model of a network, for every K, by dynamic programming (after Watson et al. 2021).

The bound of a chain on the timesteps :math:`t_1 < \dots < t_K` is

.. math:: \mathrm{decoder}(t_1) + \sum_{k > 1} \mathrm{step}(t_{k - 1}, t_k) + \mathrm{prior}(t_K),

and the best chain of K steps that ends at t is the best of K - 1 steps that ends at some s below it, and a step from t to s:

.. math:: V_1(t) = \mathrm{decoder}(t), \qquad V_K(t) = \min_{s < t} V_{K - 1}(s) + \mathrm{step}(s, t).

Watson et al. measure a table of T x T costs of steps. Here the cost of a step is known from its upper end t and its length
:math:`\Delta = \mathrm{SNR}(s) - \mathrm{SNR}(t)` (`error_model.py`), and one look at each t will do. Where decoding starts,
and at which noise the chain ends, come out with the rest.
"""




class SubSchedules(NamedTuple):
    r"""The best chains of K = 1, 2, ... steps: `costs[K - 1]` in nats per dimension, `ends[K - 1]` the
    highest timestep, and `before[K - 2, t]` the one below t where t is the K-th."""

    costs: np.ndarray
    ends: np.ndarray
    before: np.ndarray

    def timesteps(self, num_steps: int) -> list[int]:
        r"""The best chain of `num_steps` steps, strictly descending."""
        steps = [int(self.ends[num_steps - 1])]
        for row in range(num_steps - 2, -1, -1):
            steps.append(int(self.before[row, steps[-1]]))
        return steps


def best_sub_schedules(decoder: np.ndarray, steps: np.ndarray, prior: np.ndarray, max_steps: int) -> SubSchedules:
    r"""The best chain of every number of steps up to `max_steps`.

    Args:
        decoder: the cost of decoding from t, `(T,)`.
        steps: `steps[t, s]`, the cost of a step from t to s, `(T, T)`; infinite unless s < t.
        prior: the cost of ending at t, `(T,)`.
        max_steps: at most T.

    Raises:
        ValueError: shapes that do not fit.
    """
    count = len(decoder)
    if steps.shape != (count, count) or prior.shape != (count,):
        raise ValueError(f"`steps` and `prior` must be of {count} timesteps, got {steps.shape} and {prior.shape}.")
    if not 1 <= max_steps <= count:
        raise ValueError(f"`max_steps` must lie in [1, {count}], got {max_steps}.")
    rows = np.arange(count)
    values, buffer = decoder.astype(np.float64), np.empty_like(steps)
    before = np.zeros((max_steps - 1, count), dtype=np.int32)
    costs, ends = [], []
    for step in range(max_steps):
        if step:
            np.add(steps, values, out=buffer)
            before[step - 1] = buffer.argmin(axis=1)
            values = buffer[rows, before[step - 1]]
        ends.append(int(np.argmin(values + prior)))
        costs.append(values[ends[-1]] + prior[ends[-1]])
    return SubSchedules(np.array(costs), np.array(ends), before)


def table_of_steps(snr: np.ndarray, deltas: np.ndarray, costs: np.ndarray) -> np.ndarray:
    r"""The costs of all steps, `(T, T)`, from those at some lengths.

    Args:
        snr: signal-to-noise ratios, descending, `(T,)`.
        deltas: lengths :math:`\Delta`, ascending, `(R,)`.
        costs: of steps of these lengths from each t, `(T, R)`, positive; taken as straight lines between them in logarithms.
    """
    count = len(snr)
    table, logs = np.full((count, count), np.inf), np.log(costs)
    for t in range(1, count):
        table[t, :t] = np.exp(np.interp(np.log(snr[:t] - snr[t]), np.log(deltas), logs[t]))
    return table


# ---- ddpm_vlb/calibration/stored.py ----

r"""What a calibration leaves in a scheduler's configuration: plain numbers at some timesteps, and the model that they make.

Between these timesteps numbers are taken as straight lines over :math:`\log \mathrm{SNR}`. Whatever they are, the bound stays a
bound: a bad calibration makes a worse model, never a wrong number.
"""




FORMAT = 1
# Zero terminal SNR has a place too.
LOG_SNR_LIMIT = 30.0
NUMBERS = ("offsets", "gains", "learned_gains", "decoder_offsets", "decoder_gains", "decoder_learned_gains")
# What must be as it was when the calibration was made.
MADE_FOR = ("num_train_timesteps", "prediction_type", "variance_type", "num_pixel_levels")


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""A calibration of the model with a forward process.

    Args:
        config: as `calibration.calibrate` makes it.
        trained: the forward process on all T steps.

    Raises:
        ValueError: a configuration that is not one, or not of this forward process.
    """

    config: dict[str, Any]
    trained: ForwardProcess
    # The best chains found so far: the same for any number of steps up to theirs.
    _table: list[SubSchedules] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        config = self.config
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ValueError(f"`calibration` must be a dictionary of `ddpm-vlb calibrate` (format {FORMAT}), got another.")
        steps = config.get("timesteps")
        total = len(self.trained)
        if not isinstance(steps, (list, tuple)) or len(steps) < min(2, total):
            raise ValueError(f"`calibration.timesteps` must be a list of at least two timesteps, got {steps!r}.")
        steps = check_inference_timesteps(list(steps)[::-1], total)[::-1]
        if (steps[0], steps[-1]) != (0, total - 1):
            raise ValueError(f"`calibration.timesteps` must reach from 0 to {total - 1}, got {steps[0]} to {steps[-1]}.")
        lengths = config.get("deltas")
        if not isinstance(lengths, (list, tuple)) or not lengths:
            raise ValueError(f"`calibration.deltas` must be a list of at least one length, got {lengths!r}.")
        shapes = {name: (len(steps),) for name in (*NUMBERS, "log_snr", "decoder_costs")}
        shapes |= {"deltas": (len(lengths),), "step_costs": (len(steps), len(lengths))}
        for name, shape in shapes.items():
            try:
                values = np.asarray(config[name], dtype=np.float64)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"`calibration.{name}` must be numbers of shape {shape}, got {error!r}.") from error
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"`calibration.{name}` must be finite and of shape {shape}, got shape {values.shape}.")
        for name in ("deltas", "step_costs", "decoder_offsets"):
            if not (np.asarray(config[name]) > 0).all():
                raise ValueError(f"`calibration.{name}` must be positive.")
        if (np.diff(lengths) <= 0).any():
            raise ValueError("`calibration.deltas` must be ascending.")
        mean_square, best = config.get("mean_square"), config.get("num_inference_steps")
        if not (type(mean_square) is int or type(mean_square) is float) or not 0 <= mean_square < math.inf:
            raise ValueError(f"`calibration.mean_square` must be a number that is not negative, got {mean_square!r}.")
        if type(best) is not int or not 1 <= best <= total:
            raise ValueError(f"`calibration.num_inference_steps` must lie in [1, {total}], got {best!r}.")
        expected, got = self._positions[steps], np.asarray(config["log_snr"], dtype=np.float64)
        if np.abs(expected - got).max() > 1e-3:
            raise ValueError(
                "`calibration` must be of this forward process, got one of another schedule:"
                f" log SNR {got[0]:.4f} to {got[-1]:.4f} for {expected[0]:.4f} to {expected[-1]:.4f}. Calibrate anew."
            )

    @property
    def num_inference_steps(self) -> int:
        r"""The best number of steps."""
        return self.config["num_inference_steps"]

    @property
    def sha256(self) -> str:
        r"""SHA-256 of the calibration."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _positions(self) -> np.ndarray:
        return log_snr(self.trained)

    def _spread(self, values) -> np.ndarray:
        r"""Values at the calibration's timesteps, `(J,)` or `(J, R)`, at all timesteps."""
        values, knots = np.asarray(values, dtype=np.float64), self._positions[list(self.config["timesteps"])]
        order = np.argsort(knots)
        if values.ndim == 1:
            return np.interp(self._positions, knots[order], values[order])
        return np.stack([np.interp(self._positions, knots[order], column[order]) for column in values.T], axis=1)

    @cached_property
    def error_model(self) -> ErrorModel:
        r"""The numbers of the variances at all T timesteps."""
        return ErrorModel(*(torch.from_numpy(self._spread(self.config[name])) for name in NUMBERS))

    @cached_property
    def costs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""What `best_sub_schedules` takes, in nats per dimension: of decoding `(T,)`, of steps `(T, T)`, of ending `(T,)`."""
        forward, config = self.trained, self.config
        alphas = forward.alphas_cumprod.numpy()
        prior = 0.5 * (alphas * (config["mean_square"] - 1) - forward.log_one_minus_alphas_cumprod.numpy())
        per_step = np.exp(self._spread(np.log(config["step_costs"])))
        steps = table_of_steps(forward.snr.numpy(), np.asarray(config["deltas"], dtype=np.float64), per_step)
        return self._spread(config["decoder_costs"]), steps, prior

    def sub_schedules(self, max_steps: int) -> SubSchedules:
        r"""The best chains of up to so many steps."""
        known = self._table[0] if self._table else None
        if known is None or len(known.costs) < max_steps:
            known = best_sub_schedules(*self.costs, max_steps)
            self._table[:] = [known]
        return known  # not what lies there: another thread may have put a shorter one

    def timesteps(self, num_inference_steps: int) -> list[int]:
        r"""The best chain of so many steps, strictly descending."""
        return self.sub_schedules(num_inference_steps).timesteps(num_inference_steps)

    @property
    def description(self) -> str:
        r"""On what it was made, and which one it is."""
        split = f" ({self.config['split']})" if self.config.get("split") else ""
        return f"{self.config.get('dataset')}{split}, {self.config.get('num_images')} images, {self.sha256[:16]}"


def log_snr(forward: ForwardProcess) -> np.ndarray:
    r""":math:`\log \mathrm{SNR}_t` within limits, descending, `(K,)`."""
    values = forward.log_alphas_cumprod - forward.log_one_minus_alphas_cumprod
    return values.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).numpy()


# ---- ddpm_vlb/losses.py ----

r"""Training objectives (Section 3.4, Ho et al. 2020; Section 3.1, Nichol & Dhariwal 2021), one number per image.

`simple` is the mean squared error of the network's own target. `vlb` is the bound itself: with t uniform over the K steps
of the grid, :math:`K L_t` is an unbiased estimate of :math:`\sum_t L_t`, here in bits per dimension. `hybrid` adds a
little of it to `simple`, so that the network learns its variances from the bound and its mean from the squared error; the
prediction is detached in the second term.
"""



LOSS_TYPES = ("simple", "vlb", "hybrid")
HYBRID_WEIGHT = 1e-3


def simple_loss(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noise: torch.Tensor,
    timesteps: int | torch.Tensor,
) -> torch.Tensor:
    r"""Mean squared error per element between the network's prediction and its target (eq. 14, Ho et al. 2020).

    Args:
        reverse: tells what the network predicts.
        model_output: `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned (the second half is left out).
        original_samples, noise: what :math:`x_t` was made of, `(B, C, H, W)`.
        timesteps: an integer, or an integer tensor `(B,)`.

    Returns:
        Shape `(B,)`.
    """
    original_samples, noise = to_working(original_samples=original_samples, noise=noise)
    reverse.forward.rows(timesteps, len(original_samples))
    prediction, _ = reverse.split(model_output, original_samples.shape[1])
    target = reverse.prediction.target(reverse.forward, original_samples, noise, timesteps)
    if prediction.shape != target.shape:
        raise ValueError(
            f"`model_output` must be of the batch and image size of `noise`, {tuple(target.shape)},"
            f" got {tuple(model_output.shape)}."
        )
    # At least float32, whatever the network's dtype.
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return ((prediction.to(dtype) - target.to(dtype)) ** 2).flatten(1).mean(dim=1)


def vlb_loss(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r""":math:`K L_t` in bits/dim, K the number of steps of the grid (T for the full one).

    Arguments as `ddpm_vlb.bound.vlb_terms`, with all `original_samples` on the pixel grid, whatever t is. The average over
    uniform t is the bound less :math:`L_T`, which no network can change; where the forward process is learnable, :math:`L_T` is
    added, and the average is the bound. Without `validate_args` nobody asks whether images lie on the grid, which waits for the
    device that they are on.

    Returns:
        Bits/dim, shape `(B,)`.

    Raises:
        ValueError: `original_samples` off the grid, and so those in half precision.
    """
    to_working(original_samples=original_samples, noisy_samples=noisy_samples)
    reverse.forward.rows(timesteps, len(original_samples))
    # Asked at every t, and not at t = 0 alone: a training loop that has them wrong is told so by its first batch.
    if original_samples.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            "`original_samples` must be float32 or float64 for the bound, which is of images on the pixel grid, got"
            f" {str(original_samples.dtype)[6:]}. Cast the latents that the network gets, not the images."
        )
    if validate_args:
        samples_to_levels(original_samples, num_pixel_levels, "original_samples")
    terms = vlb_terms(reverse, model_output, original_samples, noisy_samples, timesteps, num_pixel_levels, validate_args=False)
    nats = len(reverse.forward) * terms
    if reverse.forward.is_learnable:
        nats = nats + prior_kl(reverse.forward, original_samples)
    return nats_to_bits_per_dim(nats, original_samples.shape[1:].numel())


def hybrid_loss(
    reverse: ReverseProcess,
    model_output: torch.Tensor,
    original_samples: torch.Tensor,
    noise: torch.Tensor,
    noisy_samples: torch.Tensor,
    timesteps: int | torch.Tensor,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r"""`simple_loss + 1e-3 * vlb_loss`, the prediction detached in the second term (eq. 16, Nichol & Dhariwal 2021).

    Arguments and errors as the two losses. Returns shape `(B,)`.
    """
    prediction, variance = reverse.split(model_output, original_samples.shape[1])
    detached = prediction.detach() if variance is None else torch.cat([prediction.detach(), variance], dim=1)
    simple = simple_loss(reverse, model_output, original_samples, noise, timesteps)
    vlb = vlb_loss(reverse, detached, original_samples, noisy_samples, timesteps, num_pixel_levels, validate_args)
    return simple + HYBRID_WEIGHT * vlb


# ---- ddpm_vlb/noise_schedules.py ----

r"""Forward variances: those with a name, and learnable ones, a monotone schedule trained on the bound with the network.

**By name.** A table with the formulas of diffusers, in float64 from the start.

**Learnt.** The forward process is all told by its log-signal-to-noise ratios
:math:`\lambda_t = \log(\bar\alpha_t / (1 - \bar\alpha_t))`, which descend from :math:`\lambda_0` (after the first step, nearly
the image) to :math:`\lambda_{T-1}` (nearly noise). In the limit of many steps the bound depends on the two end points alone
(Section 5, Kingma et al. 2021); at a finite T the spacing between them counts too, and both are learnt here. The schedule is
the configured one, :math:`\lambda^0_t`, seen through an increasing piecewise linear map with M segments of equal width w on
:math:`[\lambda^0_{T-1}, \lambda^0_0]`:

.. math::
    \lambda_t = \lambda^0_{T-1} + c + \sum_{m=1}^{M} e^{\theta_m}\, w_m(\lambda^0_t), \qquad
    w_m(\lambda) = \text{length of segment } m \text{ below } \lambda .

The map starts as the identity (:math:`c = \theta_m = 0`), so that training starts from the configured betas to the last digit
but float rounding. :math:`e^{\theta_m} > 0` keeps :math:`\lambda_t` strictly descending, hence every beta in (0, 1), for
all parameters that do not overflow. c moves the noisy end, the sum of the slopes the clean end, and their distribution the
interior.

The result is a list of betas like any other: `betas()` is what a scheduler takes as `trained_betas`.
"""





def make_betas(
    beta_schedule: str = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    trained_betas: Sequence[float] | None = None,
    rescale_betas_zero_snr: bool = False,
) -> torch.Tensor:
    r"""The forward variances of a diffusers configuration, in float64.

    The same formulas as `diffusers.DDPMScheduler`, evaluated in float64 from the start.

    Args:
        beta_schedule: one of `BETA_SCHEDULES`; ignored when `trained_betas` is given.
        num_train_timesteps: number of steps T.
        beta_start, beta_end: first and last variance of the schedules that take them.
        trained_betas: the variances themselves, shape `(T,)`.
        rescale_betas_zero_snr: rescale to zero terminal SNR (Algorithm 1, Lin et al. 2023).

    Returns:
        Betas, shape `(T,)`, float64, on the CPU.

    Raises:
        ValueError: unknown `beta_schedule`; more steps than any table could hold.
    """
    check_num_timesteps("num_train_timesteps", num_train_timesteps)
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=torch.float64).clone()
    elif isinstance(beta_schedule, str) and beta_schedule in NAMED_SCHEDULES:
        betas = NAMED_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
    else:
        raise ValueError(f"`beta_schedule` must be one of {tuple(NAMED_SCHEDULES)}, got {beta_schedule!r}.")
    return _rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas


def _linear(steps: int, start: float, end: float) -> torch.Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> torch.Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int, start: float, end: float) -> torch.Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start


def _cosine_alpha_bar(time: float) -> float:
    # Eq. 17, Nichol & Dhariwal 2021, with their offset s = 0.008.
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_alpha_bar(time: float) -> float:
    # Laplace-distributed log-SNR (Hang et al. 2024), square root and all as diffusers has it.
    log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _betas_from_alpha_bar(alpha_bar, steps: int, max_beta: float = 0.999) -> torch.Tensor:
    betas = [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def _rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    sqrt_alpha_bar = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = sqrt_alpha_bar[0].item(), sqrt_alpha_bar[-1].item()
    alpha_bar = ((sqrt_alpha_bar - last) * (first / (first - last) if first != last else math.nan)) ** 2
    return 1.0 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


# A row each: from T and the first and last beta, betas `(T,)`.
NAMED_SCHEDULES: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda steps, start, end: _betas_from_alpha_bar(_cosine_alpha_bar, steps),
    "sigmoid": _sigmoid,
    "laplace": lambda steps, start, end: _betas_from_alpha_bar(_laplace_alpha_bar, steps),
}
BETA_SCHEDULES = tuple(NAMED_SCHEDULES)
# Those that diffusers' schedulers know by name; any other travels as `trained_betas`.
STOCK_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


class LearnedNoiseSchedule(torch.nn.Module):
    r"""Forward variances with gradients, monotone by construction.

    Args:
        forward: the process to start from, on all its T steps.
        num_segments: number M of segments of the map.

    Raises:
        ValueError: a process with zero terminal SNR, whose last log-SNR is not finite; `num_segments` below 1.
    """

    def __init__(self, forward: ForwardProcess, num_segments: int = 32):
        super().__init__()
        if num_segments < 1:
            raise ValueError(f"`num_segments` must be at least 1, got {num_segments!r}.")
        log_snr = forward.log_alphas_cumprod - forward.log_one_minus_alphas_cumprod
        if not bool(torch.isfinite(log_snr).all()):
            raise ValueError("`forward` must have a terminal SNR above zero to be learnt from, got zero.")
        self._end: torch.Tensor
        self._lengths: torch.Tensor
        edges = torch.linspace(0.0, 1.0, num_segments + 1, dtype=torch.float64) * (log_snr[0] - log_snr[-1])
        above_the_end = log_snr - log_snr[-1]
        lengths = (above_the_end[:, None] - edges[:-1]).clamp(min=0.0).minimum(torch.diff(edges))
        self.register_buffer("_end", log_snr[-1], persistent=False)
        self.register_buffer("_lengths", lengths, persistent=False)
        self.offset = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_slopes = torch.nn.Parameter(torch.zeros(num_segments, dtype=torch.float64))

    def log_snr(self) -> torch.Tensor:
        r""":math:`\lambda_t`, strictly descending, shape `(T,)`, float64."""
        return self._end + self.offset + self._lengths @ torch.exp(self.log_slopes)

    def forward(self) -> ForwardProcess:
        r"""The forward process, its tables carrying gradients to the parameters."""
        return ForwardProcess.from_log_snr(self.log_snr())

    @torch.no_grad()
    def betas(self) -> list[float]:
        r"""The betas as plain numbers: `trained_betas` for any scheduler of diffusers, ours or stock."""
        return self().betas.tolist()


def linear_log_snr(num_timesteps: int, log_snr_max: float, log_snr_min: float) -> ForwardProcess:
    r"""The process whose :math:`\lambda_t` descends in equal steps from `log_snr_max` to `log_snr_min`.

    Every step then takes away the same factor of the signal-to-noise ratio, where the stock schedules lose much of the image
    in their first few steps (Kingma et al. 2021 start from it too).

    Raises:
        ValueError: end points that are not finite or not descending; no timesteps.
    """
    check_num_timesteps("num_timesteps", num_timesteps)
    if not float("-inf") < log_snr_min < log_snr_max < float("inf"):
        raise ValueError(f"`log_snr_min` must be below `log_snr_max`, both finite, got {log_snr_min} and {log_snr_max}.")
    return ForwardProcess.from_log_snr(torch.linspace(log_snr_max, log_snr_min, num_timesteps, dtype=torch.float64))


# ---- ddpm_vlb/scheduling_bound.py ----

r"""The scoring half of the scheduler: frozen processes on an explicit grid, and every term of the bound.

What is computed here depends on the configuration and on a grid of timesteps that is given: `set_timesteps` never changes a
bound. (`log_prob` alone is of a step that was taken, by default on the grid that `step` is on.) The maths is in
`forward_process.py`, `reverse_process.py`, `bound.py` and `losses.py`; these are their doors for those who hold a scheduler.
"""




# What a reverse process is made of besides.
REVERSE_KEYS = (
    "prediction_type",
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "calibration",
)
MAX_SUB_SEQUENCES = 16  # whose tables are kept
InferenceTimesteps = list[int] | tuple[int, ...] | None


class _StepsTaken(NamedTuple):
    r"""The reverse process on the grid that `step` is on, with coefficients unless it is calibrated, and what these were made
    from."""

    made_from: list[Any]
    reverse: ReverseProcess
    coefficients: dict[int, StepCoefficients]


class BoundMixin:
    r"""What `VLBDDPMScheduler` knows of the likelihood; made for a class with diffusers' `config` of a DDPM."""

    config: Any
    alphas_cumprod: torch.Tensor
    timesteps: torch.Tensor

    def _build_tables(self) -> None:
        r"""Build what scoring is made from; called once, when the configuration is there."""
        self._built_from = copy.deepcopy(self._schedule_config())
        self._forward_betas = make_betas(**{name: self.config[name] for name in SCHEDULE_KEYS})
        self._built_alphas_cumprod = self.alphas_cumprod.clone()
        self._log_alphas_cumprod = torch.cumsum(torch.log1p(-self._forward_betas), dim=0)
        self._forward_processes: dict[tuple[int, ...] | None, ForwardProcess] = {}
        self._calibration: Calibration | None = None
        self._steps_taken: _StepsTaken | None = None

    def forward_process(self, inference_timesteps: InferenceTimesteps = None) -> ForwardProcess:
        r"""The forward process on all T steps, or on the strictly descending sub-sequence `inference_timesteps`.

        Raises:
            ValueError: betas that cannot be scored (outside (0, 1), or not T of them), a bad sub-sequence.
        """
        self._check_configuration()
        built = self._built_alphas_cumprod
        if not torch.equal(self.alphas_cumprod.to(built), built):
            raise ValueError(
                "`alphas_cumprod` must be the scheduler's own for the model to be scored, got others. Make a new scheduler with"
                " `from_config(..., trained_betas=...)`."
            )
        num_steps = self.config.num_train_timesteps
        if len(self._forward_betas) != num_steps:
            raise ValueError(
                f"`trained_betas` must have num_train_timesteps = {num_steps} entries for the model to be scored,"
                f" got {len(self._forward_betas)}."
            )
        key = None
        if inference_timesteps is not None:
            key = tuple(check_inference_timesteps(inference_timesteps, num_steps))
        process = self._forward_processes.get(key)
        if process is None:
            process = ForwardProcess.from_betas(self._forward_betas, key)
            # Another thread may forget what this one has just found: what is returned is not looked up again.
            for old in [old for old in list(self._forward_processes) if old is not None][: -MAX_SUB_SEQUENCES + 1]:
                self._forward_processes.pop(old, None)
            self._forward_processes[key] = process
        return process

    def _check_configuration(self) -> None:
        r"""Raise `ValueError` where the configuration does not say any more what the tables were built from."""
        for name, built, now in zip(SCHEDULE_KEYS, self._built_from, self._schedule_config()):
            if not is_default(now, built):
                raise ValueError(
                    f"`{name}` must be what the scheduler was built from, {built!r}, got {now!r}."
                    f" Make a new scheduler with `from_config(..., {name}=...)`."
                )

    def _schedule_config(self) -> list[Any]:
        return [self.config[name] for name in SCHEDULE_KEYS]

    @property
    def calibration(self) -> Calibration | None:
        r"""The calibration of this model, if it has one.

        Raises:
            ValueError: a configuration that holds another model's.
        """
        config = self.config.get("calibration")
        if config is None:
            return None
        calibration = self._calibration
        if calibration is None or calibration.config is not config:
            calibration = Calibration(config, self.forward_process())
        for name in MADE_FOR:
            if config.get(name) != self.config[name]:
                raise ValueError(
                    f"`calibration` must be of this model, got one for {name} = {config.get(name)!r}, not"
                    f" {self.config[name]!r}. Calibrate anew, or leave it out with `from_config(..., calibration=None)`."
                )
        self._calibration = calibration
        return calibration

    def reverse_process(
        self,
        inference_timesteps: InferenceTimesteps = None,
        *,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        forward_process: ForwardProcess | None = None,
        calibrated: bool = True,
    ) -> ReverseProcess:
        r"""The reverse process on the same grid, as configured; `clip_sample` and `thresholding` override the configuration,
        `forward_process` (a learnable one, say) takes the place of the configured one, and is not calibrated.

        Raises:
            ValueError: as `forward_process`; unknown prediction or variance type; epsilon prediction at zero SNR; another
                model's calibration.
        """
        calibration = self.calibration if calibrated and forward_process is None else None
        if forward_process is not None and inference_timesteps is not None:
            raise ValueError("Only one of `forward_process` and `inference_timesteps` may be given, got both.")
        config = self.config
        return ReverseProcess(
            self.forward_process(inference_timesteps) if forward_process is None else forward_process,
            prediction_type=config.prediction_type,
            variance_type=config.variance_type,
            clip_sample=config.clip_sample if clip_sample is None else clip_sample,
            clip_sample_range=config.clip_sample_range,
            thresholding=config.thresholding if thresholding is None else thresholding,
            dynamic_thresholding_ratio=config.dynamic_thresholding_ratio,
            sample_max_value=config.sample_max_value,
            error_model=None if calibration is None else calibration.error_model,
            trained=None if calibration is None else calibration.trained,
        )

    def q_mean_variance(
        self, original_samples: torch.Tensor, timesteps, *, inference_timesteps: InferenceTimesteps = None
    ) -> Gaussian:
        r""":math:`q(x_t | x_0)`; see [`~ddpm_vlb.forward_process.ForwardProcess.q_mean_variance`].

        Args:
            original_samples (`torch.Tensor`): Images of shape `(B, C, H, W)`.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps.
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is scored.

        Returns:
            `Gaussian`: `mean`, `variance`, `log_variance`, each float64 of shape `(B, C, H, W)`.
        """
        return self.forward_process(inference_timesteps).q_mean_variance(original_samples, on_cpu(timesteps))

    def q_step_mean_variance(
        self, samples: torch.Tensor, timesteps, *, inference_timesteps: InferenceTimesteps = None
    ) -> Gaussian:
        r""":math:`q(x_t | x_{t-1})` for `samples` :math:`x_{t-1}`, the latents one step of the grid below `timesteps`.

        Arguments and returns as [`~VLBDDPMScheduler.q_mean_variance`].
        """
        return self.forward_process(inference_timesteps).q_step_mean_variance(samples, on_cpu(timesteps))

    def q_posterior_mean_variance(
        self,
        original_samples: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        *,
        inference_timesteps: InferenceTimesteps = None,
    ) -> Gaussian:
        r"""The exact posterior :math:`q(x_{t-1} | x_t, x_0)` (eqs. 6 and 7, Ho et al. 2020).

        Arguments and returns as [`~VLBDDPMScheduler.q_mean_variance`], with `noisy_samples` the latents :math:`x_t`. At the
        lowest step it is the image itself: variance 0, log-variance -inf.
        """
        forward = self.forward_process(inference_timesteps)
        return forward.q_posterior_mean_variance(original_samples, noisy_samples, on_cpu(timesteps))

    def p_mean_variance(
        self,
        model_output: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        *,
        inference_timesteps: InferenceTimesteps = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
    ) -> ReverseGaussian:
        r"""The model's step :math:`p(x_{t-1} | x_t)`.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            noisy_samples (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps.
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is scored.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*): Override the configuration.

        Returns:
            `ReverseGaussian`: `mean`, `variance`, `log_variance`, `pred_original_sample`, each float64 `(B, C, H, W)`.
        """
        reverse = self.reverse_process(inference_timesteps, clip_sample=clip_sample, thresholding=thresholding)
        return reverse.p_mean_variance(model_output, noisy_samples, on_cpu(timesteps))

    def prior_kl(self, original_samples: torch.Tensor, *, inference_timesteps: InferenceTimesteps = None) -> torch.Tensor:
        r""":math:`L_T` in nats, float64 of shape `(B,)`, for `original_samples` of shape `(B, C, H, W)`."""
        return prior_kl(self.forward_process(inference_timesteps), original_samples)

    def vlb_terms(
        self,
        model_output: torch.Tensor,
        original_samples: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        *,
        inference_timesteps: InferenceTimesteps = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
    ) -> torch.Tensor:
        r"""The terms of the bound: :math:`L_t` (closed-form KL) above the lowest timestep, :math:`L_0` (decoder) at it.

        Arguments as [`~VLBDDPMScheduler.p_mean_variance`], with `original_samples` the images, `(B, C, H, W)`; those at the
        lowest timestep must lie on the pixel grid.

        Returns:
            `torch.Tensor`: Nats, float64 of shape `(B,)`.
        """
        check_num_pixel_levels(self.config.num_pixel_levels)
        reverse = self.reverse_process(inference_timesteps, clip_sample=clip_sample, thresholding=thresholding)
        return vlb_terms(
            reverse, model_output, original_samples, noisy_samples, on_cpu(timesteps), self.config.num_pixel_levels
        )

    def log_prob(
        self,
        prev_sample: torch.Tensor,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        timestep,
        *,
        decoder: Literal["density", "discretized"] = "density",
        reduction: Literal["sum", "mean"] = "sum",
        inference_timesteps: InferenceTimesteps = None,
    ) -> torch.Tensor:
        r""":math:`\log p(x_s | x_t)` of a step that was taken, as policy gradients and importance weights ask for it.

        Differentiable in `model_output`, `sample` and `prev_sample`; a policy gradient takes the last as data
        (`prev_sample.detach()`). A clipped prediction has no gradient where it is clipped: `clip_sample=False` in the
        configuration of a policy. The last step is finite for every variance type: the decoder has a variance.

        Args:
            prev_sample (`torch.Tensor`): The latents :math:`x_s` that the step led to, `(B, C, H, W)`: `step`'s `prev_sample`.
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            sample (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            timestep (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps, on the CPU where a wait for the
                accelerator matters.
            decoder (`str`, defaults to `"density"`): What the lowest timestep has: the `"density"` of the decoder's Gaussian,
                which any image has, or the log-probability of the `"discretized"` decoder, as in the bound, for images on
                the pixel grid (those of `draw_from_decoder`).
            reduction (`str`, defaults to `"sum"`): `"sum"` over the dimensions of an image, or their `"mean"`.
            inference_timesteps (`list[int]`, *optional*): Strictly descending grid of the steps; by default the one that `step`
                is on, `timesteps`.

        Returns:
            `torch.Tensor`: Nats per image (per dimension with `"mean"`), float64 of shape `(B,)`.

        Raises:
            ValueError: shapes that do not fit, timesteps off the grid, images off the pixel grid with `"discretized"`, a model
                that cannot be scored.
        """
        for name, value, known in (
            ("decoder", decoder, ("density", "discretized")),
            ("reduction", reduction, ("sum", "mean")),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be {known[0]!r} or {known[1]!r}, got {value!r}.")
        steps = self._steps_taken_now() if inference_timesteps is None else None
        c = None if steps is None else _coefficients_for(steps, prev_sample, model_output, sample, timestep)
        if steps is not None and c is not None and not (c.is_last and decoder == "discretized"):
            nats = log_density_of_step(steps.reverse, prev_sample, model_output, sample, c)
        else:
            reverse = self.reverse_process(inference_timesteps) if steps is None else steps.reverse
            levels = self.config.num_pixel_levels if decoder == "discretized" else None
            nats = step_log_prob(reverse, prev_sample, model_output, sample, on_cpu(timestep), levels)
        return nats if reduction == "sum" else nats / sample[0].numel()

    def _steps_taken_now(self) -> _StepsTaken:
        r"""Of `timesteps`; made anew when these or the configuration are others."""
        self._check_configuration()
        made_from = [self.timesteps, self.alphas_cumprod, *(self.config.get(name) for name in REVERSE_KEYS)]
        steps = self._steps_taken
        if steps is None or not all(a is b for a, b in zip(made_from, steps.made_from)):
            reverse = self.reverse_process(self.timesteps.tolist())
            steps = _StepsTaken(made_from, reverse, exact_coefficients(reverse) if reverse.error_model is None else {})
            self._steps_taken = steps
        return steps

    def training_loss(
        self,
        model_output: torch.Tensor,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        loss_type: Literal["simple", "vlb", "hybrid"] = "simple",
        *,
        inference_timesteps: InferenceTimesteps = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        forward_process: ForwardProcess | None = None,
        validate_args: bool = True,
    ) -> torch.Tensor:
        r"""A training objective per image; see [`ddpm_vlb.losses`] for the three.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            original_samples, noise, noisy_samples (`torch.Tensor`): :math:`x_0`, :math:`\epsilon`, and the :math:`x_t` made of
                them, each `(B, C, H, W)`. For `"vlb"` and `"hybrid"` :math:`x_0` must lie on the pixel grid at every t, in
                float32 or float64.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps, on the CPU where a wait for the
                accelerator matters.
            loss_type (`str`, defaults to `"simple"`): `"simple"` (mean squared error per element), `"vlb"`
                (:math:`T L_t` in bits/dim) or `"hybrid"` (`simple + 1e-3 * vlb`).
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is trained.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*): Override the configuration in the bound; a
                clipped prediction has no gradient where it is clipped.
            forward_process (`ForwardProcess`, *optional*): In place of the configured one, and what `noisy_samples` were made
                with; a learnable one (see [`ddpm_vlb.noise_schedules`]) adds its :math:`L_T` to the bound.
            validate_args (`bool`, defaults to `True`): Whether to ask if :math:`x_0` lies on the grid, which waits for the
                accelerator. `False` is for images made of levels.

        Returns:
            `torch.Tensor`: Shape `(B,)`.
        """
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"`loss_type` must be one of {LOSS_TYPES}, got {loss_type!r}.")
        timesteps = on_cpu(timesteps)
        reverse = self.reverse_process(
            inference_timesteps, clip_sample=clip_sample, thresholding=thresholding, forward_process=forward_process
        )
        if loss_type == "simple":
            return simple_loss(reverse, model_output, original_samples, noise, timesteps)
        check_num_pixel_levels(self.config.num_pixel_levels)
        latents = (noisy_samples,) if loss_type == "vlb" else (noise, noisy_samples)
        loss: Any = vlb_loss if loss_type == "vlb" else hybrid_loss
        levels = self.config.num_pixel_levels
        return loss(reverse, model_output, original_samples, *latents, timesteps, levels, validate_args=validate_args)


def _coefficients_for(steps: _StepsTaken, prev_sample, model_output, sample, timestep) -> StepCoefficients | None:
    r"""Of one timestep, where all shapes fit; `None` else, and `step_log_prob` has the words for what does not."""
    if not isinstance(timestep, int) and not (isinstance(timestep, torch.Tensor) and timestep.ndim == 0):
        return None
    channels = sample.shape[1:2].numel() * (2 if steps.reverse.learns_variance else 1)
    expected = (*sample.shape[:1], channels, *sample.shape[2:])
    fits = sample.ndim > 1 and prev_sample.shape == sample.shape and model_output.shape == expected
    if not fits or not all(one.is_floating_point() for one in (prev_sample, model_output, sample)):
        return None
    try:
        return steps.coefficients.get(integer(timestep))
    except TypeError:
        return None


# ---- ddpm_vlb/scheduling_vlb_ddpm.py ----

r"""`VLBDDPMScheduler`: the maths of this package behind diffusers' scheduler API.

Two uses of one configuration. *Sampling* keeps the methods, signatures and random streams of `diffusers.DDPMScheduler`, and
reads its coefficients from Python floats. *Scoring* asks for frozen `ForwardProcess` and `ReverseProcess` objects, which
depend on the configuration and on an explicit grid of timesteps alone (`scheduling_bound.py`).
"""



# diffusers looks the base class of a saved scheduler up in the module that the pipeline index names.



logger = logging.get_logger(__name__)


class _Steps(NamedTuple):
    r"""The coefficients of a grid, and what they were made from."""

    timesteps: torch.Tensor
    grid: list[int]
    variance_type: str
    calibration: dict[str, Any] | None
    alphas_cumprod: torch.Tensor
    coefficients: dict[int, StepCoefficients]


class VLBDDPMScheduler(BoundMixin, DDPMScheduler):
    r"""
    A `DDPMScheduler` that knows the likelihood of its model: exact posteriors, and every term of the variational bound.

    Everything `DDPMScheduler` takes and does stays; where it is wrong (log-variance types, noise on the final image, noise in
    low precision, grids with a step -1) this class is right. Timesteps are zero-based.

    What is assigned to an entry of `config` holds for sampling, scoring, reports and files alike. The number of steps and the
    betas, of which the tables were built, are refused when they have changed: make a new scheduler with `from_config`.

    Parameters:
        num_train_timesteps (`int`, defaults to 1000):
            Number of diffusion steps T.
        beta_start (`float`, defaults to 0.0001), beta_end (`float`, defaults to 0.02):
            First and last forward variance.
        beta_schedule (`str`, defaults to `"linear"`):
            `"linear"`, `"scaled_linear"`, `"squaredcos_cap_v2"`, `"sigmoid"` or `"laplace"`.
        trained_betas (`np.ndarray` or `list[float]`, *optional*):
            The forward variances themselves.
        variance_type (`str`, defaults to `"fixed_small"`):
            `"fixed_small"`, `"fixed_small_log"`, `"fixed_large"`, `"fixed_large_log"`, `"learned"` (the network's second half
            is the log-variance) or `"learned_range"`.
        clip_sample (`bool`, defaults to `True`), clip_sample_range (`float`, defaults to 1.0):
            Clamp the predicted image.
        prediction_type (`str`, defaults to `"epsilon"`):
            `"epsilon"`, `"sample"` or `"v_prediction"`.
        thresholding (`bool`, defaults to `False`), dynamic_thresholding_ratio (`float`, defaults to 0.995), sample_max_value
            (`float`, defaults to 1.0): Dynamic thresholding of the predicted image.
        timestep_spacing (`str`, defaults to `"leading"`), steps_offset (`int`, defaults to 0):
            How `set_timesteps` places a sub-sequence.
        rescale_betas_zero_snr (`bool`, defaults to `False`):
            Rescale the betas to zero terminal SNR.
        num_pixel_levels (`int`, defaults to 256):
            Number of grey levels of the images that are scored; level k stands for 2 k / (num_pixel_levels - 1) - 1.
        calibration (`dict`, *optional*):
            What `ddpm-vlb calibrate` measured: better variances, a decoder and sub-schedules for the same network. Where it
            is there, `num_inference_steps=K` means its best K timesteps, in sampling and in scoring.
        noise_process (`dict`, *optional*), sampler (`dict`, *optional*):
            The configuration of the scheduler that the network came with, of another process (flow matching, EDM, variance
            exploding) or another of a DDPM's (DDIM, Euler ...), of which `from_config` makes ours; what is saved is it, with
            ours in it. With a `noise_process`, what `step` and the terms are given is the predicted image, as `pipe.network`
            makes it of what the network says (`noise_processes.py`).
        unlabelled_class (`int`, *optional*):
            The class that stands for "no label", of a network trained for guidance: none to choose by `classify`.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"] = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        variance_type: Literal[
            "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
        ] = "fixed_small",
        clip_sample: bool = True,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        num_pixel_levels: int = 256,
        calibration: dict[str, Any] | None = None,
        noise_process: dict[str, Any] | None = None,
        unlabelled_class: int | None = None,
        sampler: dict[str, Any] | None = None,
    ):
        check_num_timesteps("num_train_timesteps", num_train_timesteps)  # before there are tables of that length
        check_as_ddpm(noise_process, prediction_type, variance_type)
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,  # pyright: ignore[reportArgumentType]  # takes "laplace" too
            trained_betas=trained_betas,
            variance_type=variance_type,
            clip_sample=clip_sample,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.register_to_config(**plain_values(self.config))
        check_sampler_of(self.config)
        self._build_tables()
        self._steps: _Steps | None = None

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        r"""As [`~diffusers.ConfigMixin.from_config`], for any scheduler that `upgrade_scheduler` takes; errors as there."""
        return super().from_config(read_config(config, cls.__name__), return_unused_kwargs, **kwargs)

    def to_json_string(self) -> str:
        r"""The configuration, as JSON; that of its `noise_process` or `sampler` where there is one, with this one in it."""
        return as_saved(super().to_json_string())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {super().to_json_string()}"

    def register_to_config(self, **kwargs):
        r"""As [`~diffusers.ConfigMixin.register_to_config`]; the configuration becomes a `SchedulerConfig`."""
        super().register_to_config(**kwargs)
        self._internal_dict = SchedulerConfig.of(self._internal_dict, type(self))

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> "CommitInfo":
        r"""Push `scheduler_config.json` to the Hub, and a card where the repository has none; numbers that were measured with
        another one leave.

        Arguments, returns and errors as [`~VLBDDPMPipeline.push_to_hub`]; `safe_serialization` and `variant` are about weights,
        of which a scheduler has none.
        """
        # The way to the Hub is looked up when it is wanted: no term of the bound leans on it.

        return push_scheduler(
            self.to_json_string(),
            repo_id,
            config_name=self.config_name,
            subfolder=subfolder,
            commit_message=commit_message or "Upload scheduler",
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
        )

    # Sampling: diffusers' methods.

    def inference_grid(self, num_inference_steps: int) -> list[int]:
        r"""The strictly descending timesteps that `set_timesteps(num_inference_steps)` samples on; changes nothing. They are
        spaced as configured, or the calibration's best.

        Raises:
            ValueError: `num_inference_steps` not in [1, T], an unknown spacing, or a `steps_offset` that leaves [0, T).
        """
        num_steps, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        num_inference_steps = check_integer("num_inference_steps", num_inference_steps)
        if not 1 <= num_inference_steps <= num_steps:
            raise ValueError(f"`num_inference_steps` must lie in [1, {num_steps}], got {num_inference_steps}.")
        if self.calibration is not None:
            return self.calibration.timesteps(num_inference_steps)
        if spacing == "linspace":
            grid = np.linspace(0, num_steps - 1, num_inference_steps).round()[::-1]
        elif spacing == "leading":
            ratio = num_steps // num_inference_steps
            offset = self.config.steps_offset if num_inference_steps < num_steps else 0  # all steps are one grid
            grid = (np.arange(num_inference_steps) * ratio)[::-1] + offset
            if grid[0] >= num_steps:
                raise ValueError(
                    f"`steps_offset` must leave timesteps in [0, {num_steps}), got {offset} for {len(grid)} steps."
                )
        elif spacing == "trailing":
            # `arange` with a fractional step may run one entry too far; the stock scheduler then samples at t = -1.
            grid = np.arange(num_steps, 0, -num_steps / num_inference_steps)[:num_inference_steps].round() - 1
        else:
            raise ValueError(f"`timestep_spacing` must be 'linspace', 'leading' or 'trailing', got {spacing!r}.")
        return check_inference_timesteps(grid.astype(np.int64).tolist(), num_steps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ):
        r"""Set the timesteps that `step` moves along: `num_inference_steps` of them, or `timesteps` themselves.

        Raises:
            ValueError: both or neither given, a grid that is not strictly descending in [0, T), or values in the configuration
                that no step could be made with.
        """
        check_scheduler_config(self.config)
        if num_inference_steps is not None and timesteps is None:
            grid = self.inference_grid(num_inference_steps)
            self.num_inference_steps = len(grid)
        elif timesteps is not None and num_inference_steps is None:
            grid = check_inference_timesteps(timesteps, self.config.num_train_timesteps)
        else:
            raise ValueError(
                "Exactly one of `num_inference_steps` and `timesteps` must be given,"
                f" got {num_inference_steps!r} and {timesteps!r}."
            )
        self.custom_timesteps = timesteps is not None
        self.timesteps = own = torch.tensor(grid, device=device)
        self._use_grid(own, grid)

    def _use_grid(self, timesteps: torch.Tensor, grid: list[int]) -> _Steps:
        self._check_configuration()
        steps, alphas = self._steps, self.alphas_cumprod
        variance_type, calibration = self.config.variance_type, self.config.get("calibration")
        valid = [step for step in grid if 0 <= step < len(alphas)]
        if steps is not None and steps.grid == valid and self._are_of_configuration(steps) and steps.alphas_cumprod is alphas:
            steps = steps._replace(timesteps=timesteps)
        else:
            calibrated = None
            if calibration is not None and valid:
                calibrated = calibrated_steps(self.reverse_process(valid))
            coefficients = step_coefficients(alphas, valid, variance_type, calibrated)
            steps = _Steps(timesteps, valid, variance_type, calibration, alphas, coefficients)
        # At once: other threads find a grid with its own coefficients, or make them anew.
        self._steps = steps
        return steps

    def _are_of_configuration(self, steps: _Steps) -> bool:
        config = self.config
        return steps.variance_type is config.variance_type and steps.calibration is config.get("calibration")

    def _coefficients(self, timestep) -> StepCoefficients:
        steps = self._steps
        # Never set, assigned from outside, or another configuration.
        if steps is None or steps.timesteps is not self.timesteps or not self._are_of_configuration(steps):
            timesteps = self.timesteps
            steps = self._use_grid(timesteps, check_inference_timesteps(timesteps.tolist(), self.config.num_train_timesteps))
        try:
            step = timestep if type(timestep) is int else operator.index(timestep)
        except TypeError:
            raise ValueError(f"`timestep` must be one integer, got {timestep!r}.") from None
        coefficients = steps.coefficients.get(step)
        if coefficients is None:
            raise ValueError(
                f"`timestep` must be one of the scheduler's `timesteps` in [0, {len(self.alphas_cumprod)}), got {step}."
            )
        return coefficients

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        return_log_prob: bool = False,
    ) -> DDPMSchedulerOutput | tuple:
        r"""Draw :math:`x_s \sim p(x_s | x_t)`, s the next lower step of the grid; at the lowest step, return the decoder's
        mean.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            timestep (`int`): Current timestep t; an `int` or a CPU tensor costs no wait for the device.
            sample (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            generator (`torch.Generator`, *optional*): Source of the noise, drawn as `DDPMScheduler` draws it.
            return_dict (`bool`, defaults to `True`): Return a `DDPMSchedulerOutput` or a tuple.
            return_log_prob (`bool`, defaults to `False`): Return `log_prob` besides, what [`~VLBDDPMScheduler.log_prob`] says
                of `prev_sample` held fixed: nats per image, `(B,)`; the density of the decoder's Gaussian at the lowest step,
                at which nothing is drawn.

        Returns:
            `DDPMSchedulerOutput` or `tuple`: `prev_sample` and `pred_original_sample`, in the dtype of `sample` and
            `model_output` combined; half-precision arithmetic is done in float32. With `return_log_prob` a
            `VLBDDPMSchedulerOutput`, with `log_prob` as the third.

        Raises:
            ValueError: a `timestep` off the grid, channels that do not fit, an unknown `prediction_type`.
        """
        c = self._coefficients(timestep)
        arguments = (model_output, sample, timestep)
        predicted_variance = None
        if model_output.shape[1] != sample.shape[1] or variance_of(self.config.variance_type).is_learned:
            model_output, predicted_variance = split_output(model_output, sample.shape[1], self.config.variance_type)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the batch and image size of `sample`, got {tuple(model_output.shape)}"
                f" and {tuple(sample.shape)}."
            )
        dtype = noise_dtype = model_output.dtype
        mixed = dtype is not sample.dtype or dtype not in (torch.float32, torch.float64)
        if mixed:
            dtype = torch.promote_types(dtype, sample.dtype)
            working = torch.promote_types(dtype, torch.float32)
            model_output, sample = model_output.to(working), sample.to(working)

        pred_original_sample = self._clip(predict_original(self.config.prediction_type, model_output, sample, c))
        if c.is_last:
            # The image; a tensor of its own, so that writing to one output does not change the other.
            prev_sample = pred_original_sample.clone()
        else:
            prev_sample = torch.mul(sample, c.current_sample_coeff)
            prev_sample.add_(pred_original_sample, alpha=c.pred_original_sample_coeff)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=noise_dtype)
            if mixed:
                noise = noise.to(working)
            variance_type = self.config.variance_type
            add_noise_of_step(prev_sample, noise, variance_type, c, pred_original_sample, predicted_variance)
        if mixed:
            prev_sample, pred_original_sample = prev_sample.to(dtype), pred_original_sample.to(dtype)
        if return_log_prob:
            # Of the sample as it is handed on, rounded and all, from the float64 tables: `log_prob` will say the same of it.
            log_prob = self.log_prob(prev_sample.detach(), *arguments)
            output = VLBDDPMSchedulerOutput(prev_sample, pred_original_sample, log_prob)
            return output if return_dict else output.to_tuple()
        if not return_dict:
            return prev_sample, pred_original_sample
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def draw_from_decoder(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        r"""An image of the discretised Gaussian decoder, in place of `step` at the lowest timestep, which gives its mean: the
        Gaussian's number in the bin of a level is that level.

        Arguments as [`~VLBDDPMScheduler.step`]. Returns grid values in [-1, 1] of the shape and dtype of `sample`.
        """
        decoder = self.p_mean_variance(model_output, sample, timestep, inference_timesteps=self.timesteps.tolist())
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        drawn = decoder.mean + torch.exp(0.5 * decoder.log_variance) * noise
        return to_grid(drawn, self.config.num_pixel_levels).to(sample.dtype)

    def _clip(self, x: torch.Tensor) -> torch.Tensor:
        config = self.config
        if config.thresholding:
            return self._threshold_sample(x)
        return x.clamp(-config.clip_sample_range, config.clip_sample_range) if config.clip_sample else x

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        r""":math:`x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon`, formed in float32 or better.

        Args:
            original_samples, noise (`torch.Tensor`): Images and noise of shape `(B, C, H, W)`.
            timesteps (`torch.Tensor`): Integer timesteps of shape `(B,)` or `(1,)`, on the CPU where a wait for the
                accelerator matters.

        Returns:
            `torch.Tensor`: Latents in the dtype of `original_samples`.

        Raises:
            ValueError: timesteps out of range.
        """
        signal, spread = self._signal_and_noise(timesteps, original_samples, noise)
        return (signal * original_samples + spread * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        r""":math:`v = \sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} x_0`, formed in float32 or better.

        Arguments, returns and errors as [`~VLBDDPMScheduler.add_noise`].
        """
        signal, spread = self._signal_and_noise(timesteps, sample, noise)
        return (signal * noise - spread * sample).to(sample.dtype)

    def _signal_and_noise(self, timesteps, samples, noise) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_configuration()
        if not samples.is_floating_point() or noise.shape != samples.shape:
            raise ValueError(
                "Samples must be floating-point and `noise` of their shape,"
                f" got {samples.dtype} of shape {tuple(samples.shape)} and {tuple(noise.shape)}."
            )
        steps = torch.as_tensor(timesteps).cpu()
        steps = steps[None] if steps.ndim == 0 else steps
        if (
            steps.ndim > 1
            or steps.is_complex()
            or steps.is_floating_point()
            or steps.dtype == torch.bool
            or len(steps) not in (1, len(samples))
        ):
            raise ValueError(
                f"`timesteps` must be one integer or {len(samples)}, got dtype {steps.dtype} and shape {tuple(steps.shape)}."
            )
        steps = steps.long()
        outside = steps[(steps < 0) | (steps >= len(self._log_alphas_cumprod))]
        if outside.numel():
            raise ValueError(f"`timesteps` must lie in [0, {len(self._log_alphas_cumprod)}), got {outside[0].item()}.")
        log_alpha_prod = self._log_alphas_cumprod[steps].reshape(-1, *[1] * (samples.ndim - 1))
        # One rounding to float32 at the end, and float64 for float64 samples.
        dtype = torch.promote_types(samples.dtype, torch.float32)
        coefficients = torch.exp(0.5 * log_alpha_prod), torch.sqrt(-torch.expm1(log_alpha_prod))
        signal, noise = (c.to(dtype).to(samples.device) for c in coefficients)
        return signal, noise


# ---- ddpm_vlb/checkpoints/parts.py ----

r"""The parts of a checkpoint: which are scored, which lie beside them, and which make it another model.

===========================================  ===============================================================================
`unet` or `transformer`, `scheduler`         what is scored
`text_encoder`, `tokenizer`                  what a prompt is read with (`prompts.py`)
`safety_checker`, `feature_extractor`,       look at finished images alone
`watermarker`
`vae`, `vqvae`, `movq`                       the network sees latents, whose bits/dim are not those of an image: refused
===========================================  ===============================================================================

Whatever else there is may change what the network sees, and is refused, too.
"""




NETWORKS = ("unet", "transformer")
TEXT_PARTS = ("text_encoder", "tokenizer")
BESIDE = ("safety_checker", "feature_extractor", "watermarker")
DECODERS = ("vae", "vqvae", "movq")
# What an index may take its parts from; the package's own modules are what earlier pipelines were saved under.
SAFE_LIBRARIES = ("diffusers", "ddpm_vlb", "ddpm_vlb.scheduling_vlb_ddpm")
DEPRECATED = "deprecated"
# Of `from_pretrained`'s arguments, those that say which files of a repository are meant and how they come.
DOWNLOAD_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")


class CheckpointError(OSError, ValueError):
    r"""A checkpoint that is missing, damaged or incomplete.

    Also an `OSError`, the type that diffusers raises for most such files.
    """


def download_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    r"""Those of `from_pretrained`'s arguments that are in `DOWNLOAD_ARGUMENTS` and given."""
    return {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if kwargs.get(name) is not None}


def download_parts(repository: str, kwargs: dict[str, Any], with_text: bool = False) -> Path:
    r"""The folder of a repository, with its network, its scheduler and an index, where there is one; the weights of a text
    encoder, if wanted."""
    options, patterns = download_options(kwargs), ["*config.json", "diffusion_pytorch_model*"]
    allowed = [f"{prefix}{pattern}" for prefix in ("", "unet/", "transformer/", "scheduler/") for pattern in patterns]
    allowed += ["*/config.json", DDPMPipeline.config_name, *(f"{part}/*" for part in TEXT_PARTS if with_text)]
    unwanted = [] if kwargs.get("variant") else ["*.fp16.*", "*.bf16.*"]
    return Path(snapshot_download(repository, allow_patterns=allowed, ignore_patterns=unwanted, **options))


def parts_of(index: Mapping[str, Any]) -> dict[str, Any]:
    r"""The parts that an index names, each with its library and class."""
    found = {key.removeprefix("_"): value for key, value in index.items() if isinstance(value, (list, tuple)) and any(value)}
    found.pop("class_name", None)
    return found


def indexed_folder(name: str, kwargs: dict[str, Any], with_text: bool) -> Path | None:
    r"""The folder of a checkpoint whose index names parts that a `VLBDDPMPipeline` does not have, downloaded where need be;
    `None` where diffusers loads it.

    Raises:
        CheckpointError: as `check_index`.
    """
    index = check_index(name, kwargs)
    # diffusers saves deprecated schedulers under a library that it does not find again.
    by_diffusers = set(parts_of(index)) <= {"unet", "scheduler"} and parts_of(index).get("scheduler", [""])[0] != DEPRECATED
    if kwargs.get("custom_pipeline") is not None or by_diffusers:
        return None
    folder = Path(name)
    return folder if folder.is_dir() else download_parts(name, kwargs, with_text)


def check_index(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    r"""The index of a checkpoint; refused with more parts than are known, or where it names anything but classes of diffusers
    for what is scored: loading would import whatever module it names."""
    index = cast(dict[str, Any], DDPMPipeline.load_config(name, **download_options(kwargs)))
    if kwargs.get("custom_pipeline") is None:
        check_parts(index, name, (*TEXT_PARTS, *BESIDE))
    if kwargs.get("custom_pipeline") is not None or kwargs.get("trust_remote_code"):
        return index  # as the user asked for
    named = ("unet", "transformer", "scheduler")
    for part, value in [("_class_name", index.get("_class_name")), *((key, index[key]) for key in named if index.get(key))]:
        if part == "_class_name":
            safe = isinstance(value, str)
        else:
            safe = isinstance(value, (list, tuple)) and len(value) == 2
            known = known_module_class if part in NETWORKS else deprecated_process
            safe = safe and (value[0] in SAFE_LIBRARIES or known(*value) is not None)
        if not safe and part not in kwargs:
            raise CheckpointError(
                "`pretrained_model_name_or_path` must name classes of diffusers in its index,"
                f" got {part} = {shown(value)} in {name!r}."
            )
    return index


def deprecated_process(library: Any, name: Any) -> NoiseProcess | None:
    r"""The noise process of a deprecated scheduler of diffusers."""
    return process_named(name) if library == DEPRECATED else None


def check_parts(index: Mapping[str, Any], name: str, allowed: tuple[str, ...] = ()) -> None:
    r"""Raise `CheckpointError` for a pipeline with more parts than a network, a scheduler and those that are `allowed`.

    With a decoder what the network sees are latents: their bits/dim are not those of an image. And whatever a part is for, a
    `VLBDDPMPipeline` would leave it out when it is saved.
    """
    parts = parts_of(index)
    more = [part for part in parts if part not in ("scheduler", *NETWORKS, *allowed)]
    if more or set(NETWORKS) <= set(parts):
        latent = " Latent diffusion models cannot be scored." if set(more) & set(DECODERS) else ""
        raise CheckpointError(
            "`pretrained_model_name_or_path` must be a DDPM of pixels, with a unet and a scheduler and no other part,"
            f" got {', '.join(sorted(more or NETWORKS))} in {name!r}.{latent}"
        )


def load_parts(folder: Path, **kwargs) -> dict[str, Any]:
    r"""Network and scheduler of a folder, each as the class that its configuration names."""
    told = {path.parent.name: describe_part(path) for path in sorted(folder.glob("*/config.json"))}
    check_parts(told, str(folder), (*TEXT_PARTS, *BESIDE))
    parts = {name: kwargs.pop(name) for name in ("unet", "scheduler") if name in kwargs}
    for name, file in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        if name in parts:
            continue
        places = NETWORKS if name == "unet" else (name,)
        subfolder = next((place for place in places if (folder / place / file).exists()), None)
        if subfolder is None and not (folder / file).exists():
            hint = f" Did you mean {str(folder / 'pipeline')!r}?" if (folder / "pipeline" / "model_index.json").exists() else ""
            raise CheckpointError(
                "`pretrained_model_name_or_path` must be a folder with a model_index.json, or with config.json and"
                f" scheduler_config.json, got {str(folder)!r} without {file}.{hint}"
            )
        named = json.loads((folder / (subfolder or "") / file).read_text(encoding="utf-8")).get("_class_name")
        if name == "unet":
            cls = network_class(named, str(folder))
        else:
            cls = scheduler_class(named, str(folder))
        options = {key: value for key, value in kwargs.items() if key not in DOWNLOAD_ARGUMENTS} if name == "unet" else {}
        parts[name] = cast(Any, cls).from_pretrained(folder, subfolder=subfolder, **options)
    return parts


def network_class(name: Any, folder: str) -> type:
    r"""The class of networks that a configuration names, or `CheckpointError`; one that says nothing is a `UNet2DModel`'s."""
    cls = DEFAULT_MODULE if name in UNET_NAMES else known_module_class("diffusers", str(name))
    if cls is None:
        raise not_a_network(folder, str(name))
    return cls


def scheduler_class(name: Any, folder: str) -> type:
    r"""The class of schedulers that a configuration names, or `CheckpointError`: what it is decides whether it can be scored.
    One that says nothing, or is ours, is a DDPM's."""
    cls = DDPMScheduler if name in (None, "VLBDDPMScheduler") else getattr(diffusers, str(name), None)
    # Of what needs a library that is not here diffusers has a placeholder, which is no scheduler.
    if not isinstance(cls, type) or not issubclass(cls, SchedulerMixin):
        raise CheckpointError(
            "`pretrained_model_name_or_path` must have a scheduler that diffusers has here, got"
            f" _class_name = {shown(name)} in the scheduler_config.json of {folder!r}."
        )
    return cls


def check_one_scheduler(index: Mapping[str, Any], config: Mapping[str, Any], folder: str) -> None:
    r"""Raise `CheckpointError` where index and configuration name schedulers for networks of different kinds: one of them is
    wrong, and which, nothing tells. Those of DDPMs stand for each other."""
    entry = index.get("scheduler")
    named = [entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None, config.get("_class_name")]
    if named[0] == "VLBDDPMScheduler":
        return  # which reads whatever its file says
    if None not in named and len({"a DDPM's" if is_of_ddpms(name) else name for name in named}) > 1:
        raise CheckpointError(
            "`pretrained_model_name_or_path` must name one scheduler in its index and in its scheduler_config.json, got"
            f" {shown(named[0])} and {shown(named[1])} in {folder!r}."
        )
    loaded, said = (parameters_of(name) or {} for name in named)
    both = [key for key in SCHEDULER_RULES if key in loaded and key in said]
    unsaid = [key for key in both if key not in config and loaded[key] != said[key]]
    if unsaid:
        raise CheckpointError(
            f"`pretrained_model_name_or_path` must say the {unsaid[0]} of its scheduler, which {shown(named[0])} in the index"
            f" and {shown(named[1])} in scheduler_config.json have different by default, in {folder!r}."
        )


def not_a_network(folder: str, name: str) -> CheckpointError:
    r"""The error for a network of a class that is not known."""
    return CheckpointError(
        f"`pretrained_model_name_or_path` must hold a {' or a '.join(known_names())}, got {folder!r} with a {name}."
    )


def describe_part(config: Path) -> tuple[str | None, str | None]:
    r"""Library and class of a part by its configuration, as an index names them; nothing for a network that can be scored,
    under whatever name (an average of weights, say), and for what is no part."""
    told = json.loads(config.read_text(encoding="utf-8"))
    name = told.get("_class_name") or told.get("model_type") if isinstance(told, dict) else None
    return (None, None) if name is None or known_module_class("diffusers", name) else ("diffusers", str(name))


# ---- ddpm_vlb/checkpoints/loading.py ----

r"""Checkpoints as others left them: with an index or without, flat or in sub-folders, older than some of their keys.

What a repository says is not trusted further than its weights and numbers. Of which parts it may consist: `parts.py`.
"""




logger = logging.get_logger(__name__)

# The configurations of a checkpoint, and what is asked of each.
CONFIGURATIONS = {
    "unet/config.json": check_network_config,
    "transformer/config.json": check_network_config,
    "config.json": check_network_config,
    "scheduler/scheduler_config.json": check_scheduler_config,
    "scheduler_config.json": check_scheduler_config,
    "model_index.json": None,
}
MAX_CONFIGURATION_BYTES = 32 * 2**20  # a million betas have two thirds of it
MAX_REASON_LENGTH = 1000


def check_name(name: Any, kwargs: dict[str, Any]) -> str:
    r"""The folder or repository that `from_pretrained` is asked for; `kwargs` are its arguments, set as they must be.

    Raises:
        ValueError: no name, or a `subfolder`.
        CheckpointError: a folder that does not exist.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"`pretrained_model_name_or_path` must be a folder or a repository, got {name!r}.")
    if kwargs.get("subfolder"):
        raise ValueError(f"`subfolder` must be left out: a pipeline is a whole repository, got {kwargs['subfolder']!r}.")
    name, folder = os.fspath(name), Path(name)
    # Otherwise diffusers makes up the weights that a file lacks, with no more than a warning.
    kwargs["low_cpu_mem_usage"] = True
    if name and folder.is_dir():
        check_files(folder)
    elif not name or folder.exists() or not is_repository_name(name):
        raise CheckpointError(f"`pretrained_model_name_or_path` must be a folder that exists, got {name!r}.")
    return name


def is_repository_name(name: str) -> bool:
    r"""Whether a repository of the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_files(folder: Path) -> None:
    r"""Raise `CheckpointError` for a file of a checkpoint that is none: a pipe, whose reader waits for ever."""
    places = (folder, *(folder / name for name in ("unet", "transformer", "scheduler")))
    for path in [path for place in places for path in place.glob("*")]:
        if path.suffix in (".json", ".safetensors", ".bin") and path.exists() and not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"`pretrained_model_name_or_path` must hold plain files, got {str(path)!r}, which is none.")


_READING: ContextVar[bool] = ContextVar("reading", default=False)  # whether this thread reads a checkpoint of ours


@contextmanager
def reading(name: str) -> Iterator[None]:
    r"""Whatever a damaged file makes the libraries underneath stumble over is a `CheckpointError`."""
    # The index names the stock scheduler, which warns that it will ignore our key; it keeps it, and the upgrade reads it.
    configuration_logger = logging.get_logger("diffusers.configuration_utils")
    configuration_logger.addFilter(is_not_about_num_pixel_levels)
    weights_logger = logging.get_logger("diffusers.models.modeling_utils")
    # Left there: the logger is all threads', which load at once. It is told of all, and the filter knows what is to be printed.
    weights_logger.addFilter(refuse_unused_weights)
    weights_logger.setLevel(logging.DEBUG)
    token = _READING.set(True)
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error)
        raise CheckpointError(
            f"`pretrained_model_name_or_path` must be a complete and readable DDPM checkpoint, got {name!r}:"
            f" {reason[:MAX_REASON_LENGTH]}{' ...' if len(reason) > MAX_REASON_LENGTH else ''}"
        ) from error
    finally:
        configuration_logger.removeFilter(is_not_about_num_pixel_levels)
        _READING.reset(token)


@contextmanager
def without_loading_bar() -> Iterator[None]:
    r"""No bar of diffusers' where it could not be drawn over; loading takes seconds."""
    if can_be_redrawn() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def parts_folder(name: str, kwargs: dict[str, Any], with_text: bool = False) -> Path | None:
    r"""The folder of a network and a scheduler without an index, or with one that names more (`indexed_folder`), downloaded
    where need be, a text encoder only where it is wanted; `None` where there is an index of these two alone."""
    folder = Path(name)
    if not folder.is_dir() and not has_index(name, kwargs):
        folder = download_parts(name, kwargs, with_text)
    check_configurations(folder, kwargs)
    if folder.is_dir() and not (folder / DDPMPipeline.config_name).exists():
        return folder
    folder = indexed_folder(name, kwargs, with_text)
    return folder if folder is None else check_configurations(folder, kwargs)


def check_configurations(folder: Any, kwargs: dict[str, Any]) -> Any:
    r"""`folder`, once the configurations in it have been looked at, before anything is made of them.

    Args:
        folder: with an index or without; one that does not exist has none.
        kwargs: of `from_pretrained`: the part that is given there is not looked at here.

    Raises:
        ValueError: a file that is too large or no mapping, a key longer than any that is known, a value that cannot be meant.
    """
    read: dict[str, dict] = {}
    for file, check in CONFIGURATIONS.items():
        path = Path(folder, file)
        given = "unet" if check is check_network_config else "scheduler"
        if not path.is_file() or check is not None and given in kwargs:
            continue
        if path.stat().st_size > MAX_CONFIGURATION_BYTES:
            raise ValueError(
                f"`{file}` must have at most {MAX_CONFIGURATION_BYTES} bytes, as no configuration has more,"
                f" got {path.stat().st_size}."
            )
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"`{file}` must hold a mapping of names to values, got {shown(config)}.")
        long = next((key for key in config if len(key) > MAX_KEY_LENGTH), None)
        if long is not None:
            raise ValueError(f"`{file}` must have keys of at most {MAX_KEY_LENGTH} characters, got {shown(long)}.")
        if check is not None:
            check(config)
        if check is check_scheduler_config:
            check_levels(config)
            read["scheduler"] = config
        elif check is None:
            read["index"] = config
    if len(read) == 2:
        check_one_scheduler(read["index"], read["scheduler"], str(folder))
    return folder


def check_network(unet: Any, name: str) -> Any:
    r"""The network that was loaded, as it was trained.

    Raises:
        CheckpointError: weights that are missing, or a network of diffusers that cannot be scored.
    """
    missing = [key for key, weight in unet.state_dict().items() if weight.is_meta]
    if missing:
        raise CheckpointError(
            "`pretrained_model_name_or_path` must hold all weights of its network,"
            f" got {name!r} without {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''} ({len(missing)} missing)."
        )
    known = known_module_class(type(unet).__module__, type(unet).__name__)
    if type(unet).__module__.startswith("diffusers.") and known is None:
        raise not_a_network(name, type(unet).__name__)
    unet = restore_single_head(unet)
    if "_name_or_path" in getattr(unet, "config", {}):
        # A folder of this machine, which the network would take along wherever it is pushed by itself.
        unet.register_to_config(_name_or_path="")
    return unet


def has_index(repository: str, kwargs: dict[str, Any]) -> bool:
    r"""Whether a repository has an index of a pipeline, as the Hub says or, where it is not to be reached, the cache.

    Where the cache must do, `kwargs` say so afterwards.

    Raises:
        CheckpointError: no such repository, or none in the cache and a Hub that cannot be reached. It is asked once.
    """
    options, index = download_options(kwargs), DDPMPipeline.config_name
    cached = try_to_load_from_cache(repository, index, options.get("cache_dir"), options.get("revision"))
    if not options.get("local_files_only"):
        try:
            # The client would ask six times whether there is a Hub.
            get_hf_file_metadata(hf_hub_url(repository, index, revision=options.get("revision")), token=options.get("token"))
        except RepositoryNotFoundError as error:
            raise not_here(repository, error) from error
        except HfHubHTTPError:
            pass  # what it means, and whether it is worth another try, the client knows
        except Exception as error:  # of the network; offline on purpose
            if cached is None:
                raise not_here(repository, error) from error
            kwargs["local_files_only"] = options["local_files_only"] = True
    if options.get("local_files_only") and cached is _CACHED_NO_EXIST:
        return False
    try:
        hf_hub_download(repository, index, **options)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the Hub was not reached, which says nothing of the index
            raise
        return False
    return True


def not_here(name: str, error: Exception) -> CheckpointError:
    r"""The error for a name that is no folder's, and that the Hub does not know."""
    reason = str(error).strip().split("\n")[0]
    return CheckpointError(
        f"`pretrained_model_name_or_path` must be a folder that exists or a repository of the Hub, got {name!r}: {reason}"
    )


def restore_single_head(unet: Any) -> Any:
    r"""Attention as it was trained, for configurations older than `attention_head_dim`.

    diffusers 0.0.x knew one head only and did not write the key; today's default of 8 channels per head would load the same
    weights without a word and compute something else.
    """
    config = unet.config
    unset = "attention_head_dim" in config.get("_use_default_values", ())
    if not (unset and isinstance(unet, DEFAULT_MODULE) and str(config.get("_diffusers_version", "")).startswith("0.0.")):
        return unet
    logger.warning("The network's configuration is older than `attention_head_dim`: loading it with one attention head.")
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    restored = cast(DEFAULT_MODULE, DEFAULT_MODULE.from_config({**values, "attention_head_dim": None}))
    restored.load_state_dict(unet.state_dict())
    return restored.to(device=unet.device, dtype=unet.dtype).eval()  # pyright: ignore[reportCallIssue]  # `to` is wrapped


def refuse_unused_weights(record) -> bool:
    r"""A filter of log records: weights of which the configuration knows nothing, which diffusers only warns of, are those of
    another network, whose number would look right."""
    text = record.getMessage()
    if _READING.get() and "were not used when initializing" in text:
        raise CheckpointError(
            "`pretrained_model_name_or_path` must hold the weights of the network that its configuration describes, got others"
            f" besides: {text.rpartition(': ')[2].strip()[:MAX_REASON_LENGTH]}"
        )
    return record.levelno >= logging.get_verbosity()


def is_not_about_num_pixel_levels(record) -> bool:
    r"""A filter of log records: the stock scheduler says that it ignores our key, which it keeps, and which we read."""
    return not any(key in record.getMessage() for key in ("num_pixel_levels", "unlabelled_class", KEPT_UNDER))


# Whose networks are consistency models, or distilled from others.
DISTILLED = (
    *("CMStochasticIterativeScheduler", "SCMScheduler"),
    *("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"),
)
WHY_NOT_DISTILLED = (
    "What a consistency model or another distilled network says is an image where a sampler's path ends, and not the mean of"
    " all that a denoiser predicts: no bound is known of it."
)


def upgrade_scheduler(scheduler: Any, num_levels: int | None = None) -> VLBDDPMScheduler:
    r"""The `VLBDDPMScheduler` of a DDPM scheduler, or of another whose network is a DDPM's: the same forward process and
    prediction, with DDPM's defaults for what the other one does not know, as `DDPMScheduler.from_config` has it. Of flow
    matching, EDM and variance-exploding ones: the DDPM that their network amounts to (`noise_processes.py`), of `num_levels`
    noise levels, by default `NUM_LEVELS` or what an earlier save had.

    Raises:
        ValueError: a scheduler of another family (a consistency model's, say): what it samples has no bound that is known.
    """
    if isinstance(scheduler, VLBDDPMScheduler):
        return scheduler
    # Values, not the record of which were defaults: `from_config` would drop what was passed by position. Attributes: where one
    # was assigned, the scheduler computes with it, and its item is still the old one. And none that only the other scheduler
    # knows, such as DPM-Solver's infinite `lambda_min_clipped`: they would be saved, and mean nothing.
    stock = getattr(scheduler, "config", {})
    config = {key: getattr(stock, key, value) for key, value in stock.items()}
    if (process := process_named(type(scheduler).__name__)) is not None:
        if "shift" in config:
            # `set_shift` leaves the configuration as it was.
            config["shift"] = vars(scheduler).get("_shift", config["shift"])
        own = as_ddpm({**config, "_class_name": type(scheduler).__name__}, num_levels)
        read = cast(VLBDDPMScheduler, VLBDDPMScheduler.from_config(dict(own)))
        logger.warning(
            f"The {type(scheduler).__name__} becomes a VLBDDPMScheduler: what is scored, and sampled, is the DDPM of"
            f" {read.config.num_train_timesteps} noise levels that a network of {process.name} amounts to."
        )
        return read
    if not isinstance(scheduler, DDPMScheduler):
        compatible = is_of_ddpms(type(scheduler).__name__)
        others = not_of_ddpms(config) if compatible else {}
        if not compatible or "beta_schedule" not in config or others:
            distilled = type(scheduler).__name__ in DISTILLED
            raise ValueError(
                "`scheduler` must be a DDPMScheduler, or one of diffusers' schedulers for the networks of DDPMs, to be scored,"
                f" got {type(scheduler).__name__}{f' with {others}' if others else ''}.{f' {WHY_NOT_DISTILLED}' * distilled}"
            )
        own = own_keys(with_sampler({**config, "_class_name": type(scheduler).__name__}, "VLBDDPMScheduler"))
        upgraded = cast(VLBDDPMScheduler, VLBDDPMScheduler.from_config(own))
        logger.warning(
            f"The {type(scheduler).__name__} becomes a VLBDDPMScheduler: what is scored, and sampled, is the DDPM of the"
            f" network, with variance_type={upgraded.config.variance_type!r} and clip_sample={upgraded.config.clip_sample}."
        )
        return upgraded
    own = own_keys(with_sampler({**config, "_class_name": "DDPMScheduler"}, "VLBDDPMScheduler"))
    return cast(VLBDDPMScheduler, VLBDDPMScheduler.from_config(own))


def own_keys(config: dict[str, Any]) -> dict[str, Any]:
    r"""Of a scheduler's configuration, what a `VLBDDPMScheduler` knows."""
    own = inspect.signature(VLBDDPMScheduler.__init__).parameters
    return {key: value for key, value in config.items() if key in own}


def check_sampler(scheduler: Any, network: Network, **own: Any) -> None:
    r"""Raise `ValueError` unless the pipeline can sample with its scheduler: the network says the variances that it asks for;
    or, put in the place of its own, its steps are taken as a DDPM's are (DDIM, DPM-Solver), for a network without variances,
    and nothing asked for that only a `VLBDDPMScheduler` knows (`own`, the arguments by their names)."""
    if isinstance(scheduler, VLBDDPMScheduler):
        variance_type = scheduler.config.variance_type
        if variance_of(variance_type).is_learned and network.out_channels == network.channels:
            network.check_out_channels(True, variance_type)
        return
    name = type(scheduler).__name__
    for argument, given in own.items():
        if given not in (None, False):
            raise ValueError(
                f"`{argument}` must be left out unless `scheduler` is a VLBDDPMScheduler, got {given!r} with {name}."
            )
    scaled = float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0
    if scaled or "generator" not in inspect.signature(scheduler.step).parameters or network.out_channels != network.channels:
        raise ValueError(
            f"`scheduler` must be a VLBDDPMScheduler for this network to be sampled from here, got {name}."
            " `VLBDDPMScheduler.from_config(pipe.scheduler.config)` makes one of it."
        )


# ---- ddpm_vlb/checkpoints/prompts.py ----

r"""Prompts, through a checkpoint's own text encoder: what a network is given in place of words.

A network with `encoder_hidden_states` says :math:`p(x | c)`, c a prompt's embeddings; which they are is a matter of the text
encoder that it was trained with, in the same folder. The encoder is read when there is a prompt, and then let go.

=====================  ============================================================  =======================================
encoder                how words become tokens                                       its pipelines
=====================  ============================================================  =======================================
`T5EncoderModel`       in small letters, without blanks at the ends, 77 of them,     DeepFloyd IF
                       with a mask of those that stand for words
`CLIPTextModel`        as they are, as many as the encoder has positions; a mask     Stable Diffusion's kin
                       where its configuration says so
=====================  ============================================================  =======================================

A prompt with more tokens than that is refused, of which the pipelines would drop the end.
"""




T5_LENGTH = 77
ENCODERS = ("T5EncoderModel", "CLIPTextModel")
TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast")


class TextParts(NamedTuple):
    r"""A text encoder and its tokenizer.

    Args:
        folder: with `text_encoder/` and `tokenizer/`.
        classes: of the two, in transformers.
        index: what the index of a pipeline says of them, and of itself besides.
    """

    folder: Path
    classes: tuple[str, str]
    index: dict[str, Any]


def text_parts(folder: Path | None) -> TextParts | None:
    r"""The text encoder of a checkpoint's folder, `None` where there is none, or not its weights."""
    if folder is None or not all((folder / part).is_dir() for part in TEXT_PARTS):
        return None
    if not any(path.suffix in (".safetensors", ".bin") for path in (folder / "text_encoder").iterdir()):
        return None
    path = folder / DDPMPipeline.config_name
    index = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = parts_of(index)
    classes = (_class_of(named, folder, 0), _class_of(named, folder, 1))
    kept = {key: value for key, value in index.items() if isinstance(value, (str, bool)) and key != "_diffusers_version"}
    kept |= {part: ["transformers", cls] for part, cls in zip(TEXT_PARTS, classes)}
    # What looked at finished images is not kept, and a pipeline of diffusers can do without.
    kept |= {part: [None, None] for part in BESIDE if part in index}
    kept |= {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    return TextParts(folder, classes, kept)


def _class_of(named: dict[str, Any], folder: Path, place: int) -> str:
    r"""The class of a part by the index or, without one, by its own configuration."""
    part = TEXT_PARTS[place]
    if part in named:
        return str(named[part][1])
    file = folder / part / ("config.json", "tokenizer_config.json")[place]
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return str(told.get("tokenizer_class") if place else next(iter(told.get("architectures") or ()), None))


def check_prompt(prompt: Any, network_kwargs: Any = None) -> list[str] | None:
    r"""The prompts, as a list; `ValueError` for what is none, or beside `network_kwargs`."""
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f"`prompt` must be a text, or a list of one for each class, got {shown(prompt)}.")
    if network_kwargs is not None:
        raise ValueError(f"Only one of `prompt` and `network_kwargs` may be given, got {shown(prompt)} and tensors.")
    return list(prompts)


@torch.no_grad()
def encode_prompts(prompts: Sequence[str], text: TextParts | None, network: torch.nn.Module, name: str) -> Conditions:
    r"""What a network is given for prompts: `encoder_hidden_states`, `(P, length, width)`, float32.

    Args:
        prompts: P of them.
        text: of the network's checkpoint.
        network: that is to be given them.
        name: of the checkpoint, for refusals.

    Raises:
        ValueError: a network that takes no prompt, a checkpoint without a text encoder or with one of another kind, a prompt
            that is too long.
        CheckpointError: a text encoder that cannot be read, or not all of it.
    """
    if "encoder_hidden_states" not in inspect.signature(network.forward).parameters:
        raise ValueError(f"`prompt` must be left out for a {type(network).__name__}, which takes none, got {shown(prompts)}.")
    if text is None:
        raise ValueError(
            f"`prompt` must go with a checkpoint that has a text_encoder and a tokenizer, got {shown(prompts)} for {name!r},"
            " which has none. `network_kwargs` takes embeddings."
        )
    encoder, tokenizer = _load(text, name)
    is_t5 = text.classes[0] == "T5EncoderModel"
    words = [prompt.lower().strip() for prompt in prompts] if is_t5 else list(prompts)
    length = T5_LENGTH if is_t5 else min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    for prompt, tokens in zip(prompts, tokenizer(words).input_ids):
        if len(tokens) > length:
            raise ValueError(f"`prompt` must have at most {length} tokens, got {len(tokens)} for {shown(prompt)}.")
    tokens = tokenizer(words, padding="max_length", max_length=length, return_tensors="pt")
    masked = is_t5 or getattr(encoder.config, "use_attention_mask", False)
    said = encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)
    return Conditions({"encoder_hidden_states": said[0].float()}, prompts)


def _load(text: TextParts, name: str) -> tuple[Any, Any]:
    r"""Text encoder and tokenizer."""
    import transformers  # seconds, which only prompts are worth

    for part, cls, known in zip(TEXT_PARTS, text.classes, (ENCODERS, TOKENIZERS)):
        if cls not in known:
            raise ValueError(f"`prompt` must go with a {part} that is a {' or a '.join(known)}, got {name!r} with a {cls}.")
    encoder_class, tokenizer_class = (getattr(transformers, cls) for cls in text.classes)
    with reading(name), _without_bar(transformers.logging):
        encoder, told = encoder_class.from_pretrained(
            text.folder / TEXT_PARTS[0], local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = tokenizer_class.from_pretrained(text.folder / TEXT_PARTS[1], local_files_only=True)
    # Those that are missing transformers makes up, with no more than a warning.
    if missing := sorted(told["missing_keys"]):
        raise CheckpointError(
            "`pretrained_model_name_or_path` must hold all weights of its text encoder, got"
            f" {name!r} without {', '.join(missing[:3])} ({len(missing)} missing)."
        )
    return encoder.eval(), tokenizer


@contextmanager
def _without_bar(logging: Any) -> Iterator[None]:
    r"""No bar of transformers' while it loads."""
    shown_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown_before:
            logging.enable_progress_bar()


def keep_text(text: TextParts | None, folder: Path) -> None:
    r"""Copy a text encoder and its tokenizer, as they are, into a folder that a pipeline is saved to."""
    if text is None:
        return
    for part in TEXT_PARTS:
        place = folder / part
        place.mkdir()
        for path in sorted((text.folder / part).iterdir()):
            if path.is_file():
                shutil.copyfile(path, place / path.name)


# ---- ddpm_vlb/data/frame.py ----

r"""One pass over a data set: what is known of all its images without the network, and as many of them as memory allows.

Images are read in blocks, and each has a number, its place in the data set, by which all that is drawn for it is keyed. What
is known without the network, a few numbers each, is kept of all of them. Of the images themselves those with the smallest
hashes of (seed, number) are kept, as many as the buffer holds: a sample without replacement that depends on no order, so that
streams and data sets larger than memory need one pass.
"""




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


# ---- ddpm_vlb/likelihoods/method.py ----

r"""What a likelihood method is: how a data set gets its number, and what a report says of it.

A method is a row of `methods.METHODS`. Two are built into `evaluation`: the sampled estimate of the bound and the full sweep,
whose reports hold the terms of the bound. All others give each image a number of its own, in columns (`Columns`): a new one is
a file that begins it, and a row.

Neither this file nor the table imports torch, so that the command line can read them.
"""



@dataclass(frozen=True)
class Option:
    r"""An argument of one method: of `evaluate` under its name, and of the command line as a flag.

    Args:
        name: of the argument.
        kind: `int`, `float` or `str`.
        help: for the command line, which adds the default.
        choices: of a `str`.
        flag: of the command line; by default the name's own.
        metavar: as argparse.
        default: where nothing is given.
        positive: whether it must be a positive integer.
        free: whether reports that differ in it can be merged.
    """

    name: str
    kind: type
    help: str
    choices: tuple[str, ...] | None = None
    flag: str | None = None
    metavar: str | None = None
    default: Any = None
    positive: bool = False
    free: bool = False

    @property
    def argument(self) -> str:
        r"""The flag."""
        return self.flag or f"--{self.name.replace('_', '-')}"


class Columns(NamedTuple):
    r"""A method at work: each image gets a number of its own in each column.

    Args:
        name: for the report, `"iw, k = 16"`.
        images_per_batch: that go together.
        cost: network evaluations of an image, `None` where only the run tells.
        score: from levels `(B, C, H, W)`, B seeds and classes `(B,)` or `None`, the columns, of B numbers each, and
            `num_network_evaluations` in all. `"bits_per_dim"` is among the columns.
    """

    name: str
    images_per_batch: int
    cost: int | None
    score: Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Method:
    r"""A likelihood method.

    Args:
        name: of the method, and the first word of `method` in its reports.
        help: what it is, in a few words.
        metric: what its number is, for cards.
        options: its own arguments.
        columns: of the numbers that each image gets, their names and what they are in words, `"bits_per_dim"` among them;
            `None` of a method whose reports hold the terms of the bound.
        if_none_given: options by their names, where none of its own is given.
        merges: whether reports of shards can be put together.
        line: its numbers beside `"bits_per_dim"` in one line, their names in braces; by default each after its words.
        note: a line below its numbers.
        rules: what must hold of its reports, beyond what does of all: a rule in words, whether it holds, and what there is.
        cost: a line before the work of what it costs, where that is more than one expects; `{dimensions}` are the images'.
        takes_half: whether it can score a network in half precision.
        min_steps: of the model, for there to be anything to do.
        begin: from the scorer, the forward process on all T steps, the number of dimensions, the batch size and the options, a
            `Columns`; or where in this folder that function is, `"module:function"`. `None` where `evaluation` knows how.
    """

    name: str
    help: str
    metric: str = "bits/dim"
    options: tuple[Option, ...] = ()
    if_none_given: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] | None = None
    merges: bool = True
    line: str | None = None
    note: str | None = None
    rules: Callable[[Mapping[str, Any]], Iterator[tuple[str, bool, Any]]] | None = None
    cost: str | None = None
    takes_half: bool = True
    min_steps: int = 1
    begin: Callable[..., Columns] | str | None = None

    def check_shard(self, shard: tuple[int, int]) -> None:
        r"""Raise `ValueError` for a shard whose report could not be merged with the others'."""
        if shard[1] > 1 and not self.merges:
            raise ValueError(
                f"`shard` must be left out with method={self.name!r}, whose reports cannot be merged, got {shard}."
            )

    def start(self, scorer, trained, num_dimensions: int, batch_size: int, options: dict[str, Any]) -> Columns:
        r"""The method at work on what `scorer` scores."""
        begin = self.begin
        if isinstance(begin, str):
            module, _, name = begin.partition(":")
            begin = getattr(importlib.import_module(f".{module}", __package__), name)
        if begin is None:
            raise ValueError(f"`method` must be one that gives each image numbers of its own, got {self.name!r}.")
        return begin(scorer, trained, num_dimensions, batch_size, options)


# ---- ddpm_vlb/likelihoods/methods.py ----

r"""The table of likelihood methods, a row each; read by `evaluate`, by reports and cards, and by the command line."""



# Where nothing says when a sampled evaluation stops.
TARGET_SE = 0.005
MAX_EVALUATIONS = 100_000
MAX_SWEEPS = 100  # of few images at few steps: no more evaluations than so many full sweeps would take


def most_evaluations(num_images: int | None, num_steps: int) -> int:
    r"""Evaluations at which an evaluation stops that nobody told when to, of N images (`None`: nobody knows) at K steps."""
    return MAX_EVALUATIONS if num_images is None else min(MAX_EVALUATIONS, MAX_SWEEPS * num_images * num_steps)


def _of_weights(report: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
    r"""What must hold of a report of the importance-weighted bound."""
    config, method, size = report["config"], report["method"], report["effective_sample_size"]
    value, vlb, k = report["bits_per_dim"], report["vlb"], config.get("k")
    yield "the method 'iw, k = ' and its k", type(k) is int and method == f"iw, k = {k}", f"{method!r} for k = {k}"
    yield "from one to k trajectories that count", 1 - 1e-9 <= size <= k * (1 + 1e-9), size
    yield (
        "no larger bound than that of each trajectory by itself",
        value <= vlb + 1e-9 * max(1.0, abs(vlb)),
        f"{value} and {vlb}",
    )
    made, wanted = report["num_network_evaluations"], report["num_images"] * k * config["num_steps"]
    yield "evaluated each trajectory of each image at every step", made == wanted, f"{made} for {wanted} evaluations"


def _of_ode(report: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
    r"""What must hold of a report of the probability-flow ODE."""
    parts, value = [report[name] for name in ("density", "dequantisation", "reconstruction")], report["bits_per_dim"]
    yield "parts that sum to its total", abs(sum(parts) - value) <= 1e-9 * max(1.0, *map(abs, parts)), f"{parts} for {value}"
    yield "a reconstruction that is not negative", parts[2] >= -1e-9, parts[2]
    trace, method = report["config"].get("trace"), report["method"]
    yield (
        "the method 'ode' with the trace that was asked for",
        trace is None or f"{trace} trace" in method,
        f"{method!r} for {trace!r}",
    )
    made, images = report["num_network_evaluations"], report["num_images"]
    yield "evaluated each image along its path", made >= 2 * images, f"{made} network evaluations of {images} images"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="sampled",
            help="an unbiased estimate with its error",
            metric="bits/dim (variational bound)",
            options=(
                Option("target_se", float, f"Monte Carlo error at which to stop (default: {TARGET_SE} bits/dim)", free=True),
                Option(
                    "max_evaluations",
                    int,
                    f"network evaluations at which to stop (default: {MAX_EVALUATIONS:,}, or {MAX_SWEEPS} full sweeps)",
                    free=True,
                ),
                Option(
                    "evaluations_per_image",
                    int,
                    "K evaluations of every image, and a score for each",
                    flag="--per-image",
                    metavar="K",
                    free=True,
                ),
            ),
            if_none_given={"target_se": TARGET_SE, "max_evaluations": MAX_EVALUATIONS},
        ),
        Method(name="full", help="every image at every step", metric="bits/dim (variational bound)"),
        Method(
            name="iw",
            help="importance-weighted",
            metric="bits/dim (importance-weighted bound)",
            options=(Option("k", int, "trajectories of an image", default=16, positive=True),),
            columns={
                "bits_per_dim": "importance-weighted bound",
                "vlb": "the bound of the same trajectories, each by itself",
                "effective_sample_size": "trajectories that count",
            },
            line="the bound of the same trajectories, each by itself: {vlb:.4f}; {effective_sample_size:.1f} of them count",
            rules=_of_weights,
            begin="importance_weighted:importance_weighted",
        ),
        Method(
            name="ode",
            help="of the probability-flow ODE",
            metric="bits/dim (bound of the probability-flow ODE)",
            options=(
                Option("trace", str, "of the divergence (default: exact where D <= 256)", choices=("exact", "hutchinson")),
                Option("num_probes", int, "vectors of signs for the hutchinson trace (default: 1)", positive=True),
                Option("num_draws", int, "of the dequantising noise, for each image", default=1, positive=True),
                Option("rtol", float, "tolerance of the path, relative to the noise", default=1e-4),
                Option("atol", float, "tolerance of the log-density, in nats per dimension", default=1e-4),
            ),
            columns={
                "density": "density",
                "dequantisation": "dequantisation",
                "reconstruction": "reconstruction",
                "bits_per_dim": "bound of the ODE",
            },
            note="the ODE is another model than the chain: neither of their numbers bounds the other",
            rules=_of_ode,
            cost="the solver calls the network a hundred times and more for each image, with --trace exact (the default up to"
            " D = 256) for D = {dimensions} evaluations at a time, with --trace hutchinson for one; try --max-images 2 first",
            takes_half=False,
            min_steps=2,
            begin="probability_flow:ode",
        ),
    )
}


def add_method(method: Method) -> None:
    r"""Add a row, under the method's name: a method that gives each image numbers of its own.

    Raises:
        ValueError: a name that another method has, or that is no word; an option that another method has; a method without
            columns, without `"bits_per_dim"` among them, or that nothing begins.
    """
    if not re.fullmatch(r"\w+", method.name) or method.name in METHODS:
        raise ValueError(f"`method.name` must be a word that no other method has, got {method.name!r}.")
    taken = {option.name for other in METHODS.values() for option in other.options}
    for option in method.options:
        if option.name in taken:
            raise ValueError(f"`method.options` must have names that no other method's have, got {option.name!r}.")
    if method.columns is None or "bits_per_dim" not in method.columns:
        raise ValueError(f"`method.columns` must have 'bits_per_dim' among them, got {method.columns!r}.")
    if method.begin is None:
        raise ValueError("`method.begin` must be given for a method of columns, got None.")
    METHODS[method.name] = method


def method_named(name: str) -> Method:
    r"""The method of a name, or of what a report says its `method` is.

    Raises:
        ValueError: none has it.
    """
    word = re.split(r"\W", name, maxsplit=1)[0] if isinstance(name, str) else None
    if word not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[word]


def own_options(method: Method, given: dict[str, Any], arguments: Iterable[str] = ()) -> dict[str, Any]:
    r"""The options of a method, with its defaults where nothing, or `None`, is given.

    Args:
        method: the row.
        given: options by their names.
        arguments: what may be meant besides by a misspelt name.

    Raises:
        ValueError: an option of another method, or of none.
    """
    owners = {option.name: other.name for other in METHODS.values() for option in other.options}
    for name, value in given.items():
        if name not in owners:
            near = difflib.get_close_matches(name, [*owners, *arguments], n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`{name}` must be an argument or an option of a method, got {value!r} for no such thing.{hint}")
        if owners[name] != method.name and value is not None:
            raise ValueError(
                f"`{name}` must be left out unless method={owners[name]!r}, got {value!r} with method={method.name!r}."
            )
    own = {option.name: given.get(option.name) for option in method.options}
    if all(value is None for value in own.values()):
        own |= method.if_none_given
    return {o.name: o.default if own[o.name] is None else own[o.name] for o in method.options}


# ---- ddpm_vlb/reports/checks.py ----

r"""Whether the numbers of a report are plain and finite, and agree with each other. Which there are, says `schema.py`.

What follows from other entries is computed again: sums, means, errors, intervals, counts. A report is checked whenever one is
made, read or merged, so that each rule must hold of every true report, those of before among them.
"""



KIND_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a dictionary",
    type(None): "null",
}
# What a term that cannot be negative may come out below zero by, in float32.
BELOW_ZERO = 1e-6
LARGEST_PILOT = 1000  # evaluations, and one for each stratum twice


def is_of_kind(value: Any, kind: Any) -> bool:
    r"""Whether a value is of a type, or of one of a union, and no subclass of it; an integer is a float, too."""
    kinds = get_args(kind) or (kind,)
    return object in kinds or type(value) in kinds or (float in kinds and type(value) is int)


def kind_words(kind: Any) -> str:
    r"""A type, or a union of types, in words."""
    return " or ".join(KIND_WORDS[one] for one in get_args(kind) or (kind,))


def check_plain(value: Any, name: str) -> None:
    r"""Raise `ValueError` for anything that is not a plain, finite value: NaN, infinity, a NumPy number, bytes, a date."""
    if type(value) is dict:
        for key, entry in value.items():
            check_plain(entry, f"{name}.{key}")
    elif type(value) is list:
        for index, entry in enumerate(value):
            check_plain(entry, f"{name}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"`{name}` must be a plain value of Python, got {type(value).__name__}.")
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")


def to_plain(value: Any) -> Any:
    r"""What a caller's setting is in JSON: numbers of NumPy and of torch as Python's, tuples as lists, names as texts."""
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def check_numbers(report: Mapping[str, Any], method: Method) -> None:
    r"""Raise `ValueError` unless the numbers of a method's report, all of which are there, agree with each other."""
    config, count, per_image = report["config"], report["num_images"], report["per_image"]
    _check_entries("per_image", per_image or (), (float, int))
    if method.columns is None:
        _check_entries("transitions", report["transitions"], (float, int, type(None)))
        _check_entries("timesteps", report["timesteps"], (int,))
    _check_grid(config)
    _check_seeds(config["seed"])
    _check_counts(report, method)
    if per_image is not None and len(per_image) != count:
        raise ValueError(f"`report` must have one number per image, got {len(per_image)} for {count} images.")
    _check_images(report)
    error = report["standard_error"]
    _require("a standard error that is not negative", error is None or error >= 0, error)
    _require("no standard error of a single image", error is None or count > 1, error)
    if method.columns is None:
        _check_terms(report, method)
    if per_image is not None:
        _check_same("images whose mean is its total", math.fsum(per_image) / len(per_image), report["bits_per_dim"])
        if method.name != "sampled" and count > 1:
            if error is None:
                raise ValueError("`report` must have a standard error of several images, got None.")
            _check_same("a standard error that its images have", error_of_mean(per_image), error)
    if method.name == "full":
        _check_full(report)
    elif method.columns is None:
        _check_sampled(report)
    if "half_precision_bias" in report:
        _check_half_precision(report["half_precision_bias"], config["dtype"])
    for rule, holds, got in () if method.rules is None else method.rules(report):
        _require(rule, holds, got)


def error_of_mean(values: Sequence[float]) -> float:
    r"""The standard error of the mean of at least two numbers."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def student_quantile(degrees_of_freedom: float, confidence: float = 0.95) -> float:
    r"""Half the width of a two-sided interval of Student's distribution, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 0.5 + confidence / 2))


def freedom_of_sum(noise: float, images: float, freedom: float, report: Mapping[str, Any]) -> float:
    r"""The degrees of freedom of the Monte Carlo error and the images' own together (Satterthwaite).

    The images' own variance is what theirs differ by less what the noise adds, so that however little is left of it, no more
    is known of the sum than N images tell. Reports from before they said whether they are reliable did not know this.
    """
    others = report["num_images"] - 1
    both = math.hypot(noise, images) ** 4 / (noise**4 / freedom + images**4 / others)
    return min(both, others) if "reliable" in report else both


def num_seeds(seed: int | list | None) -> int:
    r"""How many evaluations of the same images a report is of."""
    return len(seed) if isinstance(seed, list) else 1


def num_parts(config: Mapping[str, Any]) -> int:
    r"""Of how many evaluations, each of one shard and one seed, a report is."""
    return len((config.get("shard") or {"indices": [0]})["indices"]) * num_seeds(config["seed"])


def _require(rule: str, holds: bool, got: Any) -> None:
    if not holds:
        raise ValueError(f"`report` must have {rule}, got {got}.")


def _check_same(what: str, got: float, expected: float) -> None:
    _require(what, abs(got - expected) <= 1e-9 * max(1.0, abs(expected)), f"{got} and {expected}")


def _check_entries(name: str, values: Any, kinds: tuple[type, ...], least: float = -math.inf) -> None:
    if type(values) not in (list, tuple):
        raise ValueError(f"`report.{name}` must be a list, got {values!r}.")
    for index, value in enumerate(values):
        if type(value) not in kinds or (value is not None and value < least):
            what = "a number" if least == -math.inf else f"a number from {least:g} on"
            raise ValueError(f"`report.{name}[{index}]` must be {what}, got {value!r}.")


def _check_counts(report: Mapping[str, Any], method: Method) -> None:
    config, count, evaluations = report["config"], report["num_images"], report["num_network_evaluations"]
    wanted, what = None, "some images"
    if method.name == "full":
        # The mean of several sweeps has more to its method than its name.
        sweeps = re.fullmatch(r"full(?:, mean of (\d+) sweeps)?", report["method"])
        if sweeps is None:
            rule = "a method that begins with 'full', of one sweep or the mean of several"
            raise ValueError(f"`report` must have {rule}, got {report['method']}.")
        wanted = count * config["num_steps"] * int(sweeps[1] or 1) * num_seeds(config["seed"])
        what = "each image at every step"
    elif method.columns is None:
        _require("the method 'sampled'", report["method"] == "sampled", report["method"])
    if count < 1 or evaluations < 1 or wanted not in (None, evaluations):
        raise ValueError(
            f"`report` must have evaluated {what}, got {evaluations} network evaluations of {count} images in"
            f" {config['num_steps']} steps."
        )


def _check_grid(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the timesteps that were scored are some of all T."""
    grid, steps, total = config["inference_timesteps"], config["num_steps"], config["num_train_timesteps"]
    if steps != (total if grid is None else len(grid)):
        raise ValueError(
            f"`report` must name the sub-sequence it is of, and only then, got {steps} steps of {total} on {grid}."
        )
    _check_entries("config.inference_timesteps", grid or [], (int,))
    inside = grid is None or total > grid[0] and grid[-1] >= 0 and all(a > b for a, b in zip(grid, grid[1:]))
    _require(f"timesteps that descend within [0, {total})", inside, grid)
    wanted = config["num_inference_steps"]
    _require("as many steps as were asked for", wanted in (None, steps), f"{steps} for {wanted}")
    betas = config.get("trained_betas")
    _require(f"a beta for each of its {total} steps", betas is None or len(betas) == total, betas and len(betas))


def _check_seeds(seed: int | list | None) -> None:
    if isinstance(seed, list):
        _check_entries("config.seed", seed, (int,), least=0)
        _require("several seeds, each once, where it is of several", len(set(seed)) == len(seed) > 1, seed)


def _check_images(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless what a report says of its images is of so many, and of the shards that it names."""
    config, count = report["config"], report["num_images"]
    most = config.get("max_images")
    _require("at most as many images as were to be taken", most is None or count <= most, f"{count} for {most}")
    held = config.get("num_images_in_memory", count)
    _require("at most all images in memory, and all where each has a number", held <= count, f"{held} of {count}")
    if report["per_image"] is not None:
        _require("at most all images in memory, and all where each has a number", held == count, f"{held} of {count}")
    shard, sha256 = config.get("shard") or {"of": 1, "indices": [0]}, config.get("data_sha256")
    if set(shard) != {"of", "indices"} or type(shard["of"]) is not int:
        raise ValueError(f"`report.config.shard` must say how many shards there are and which it is of, got {shard}.")
    of, indices = shard["of"], shard["indices"]
    _check_entries("config.shard.indices", indices, (int,), least=0)
    fits = indices == sorted(set(indices)) and 0 < len(indices) <= count and indices[-1] < of
    _require("shards of those that there are, each once", fits, shard)
    if sha256 is not None:
        texts = all(type(one) is str for one in sha256)
        distinct = texts and len(set(sha256)) == len(sha256) == len(indices)
        _require("a SHA-256 of its images for each of its shards, and other images in each", distinct, sha256)
    shape = config.get("image_shape", [1, 1, 1])
    _check_entries("config.image_shape", shape, (int,), least=1)
    _require("images of the shape (C, H, W)", len(shape) == 3, shape)
    about = {name: report[name] for name in ("image_numbers", "image_names", "image_labels") if name in report}
    for name, values in about.items():
        of_images = report["per_image"] is not None and len(values) == count
        _require(f"{name} of the images in 'per_image', and one for each", of_images, len(values))
    if (numbers := about.get("image_numbers")) is not None:
        _check_entries("image_numbers", numbers, (int,), least=0)
        # Of images taken at random a shard is every so many of those that were taken, whatever their numbers.
        own = config.get("image_seed") is not None or {number % of for number in numbers} == set(indices)
        ascend = own and all(a < b for a, b in zip(numbers, numbers[1:]))
        _require("images of its shards, in their order", ascend, f"{numbers[:8]} for {shard}")


def _check_terms(report: Mapping[str, Any], method: Method) -> None:
    config, transitions = report["config"], report["transitions"]
    steps, lengths = config["num_steps"], (len(transitions), len(report["timesteps"]))
    if lengths != (steps - 1, steps - 1):
        raise ValueError(
            f"`report` must have one transition and one timestep per step but the first, got {lengths} for {steps} steps."
        )
    grid = list(range(steps)) if config["inference_timesteps"] is None else config["inference_timesteps"][::-1]
    _require(
        "the timesteps that were scored, ascending, without the first", report["timesteps"] == grid[1:], report["timesteps"]
    )
    terms = [report["prior"], report["transitions_total"], report["decoder"]]
    # An estimate may lie below zero; a term cannot, and L_T is in closed form.
    exact = (
        terms[:1] if method.name == "sampled" else [*terms, *(value + BELOW_ZERO for value in transitions if value is not None)]
    )
    _require("terms that are not negative", min(exact) >= 0, terms if min(terms) < 0 else min(exact) - BELOW_ZERO)
    _check_same("terms that sum to its total", sum(terms), report["bits_per_dim"])


def _check_full(report: Mapping[str, Any]) -> None:
    transitions, noise, error = report["transitions"], report.get("monte_carlo_error"), report["standard_error"]
    if None in transitions:
        raise ValueError("`report` must have a number for every timestep of a full sweep, got null.")
    _check_same("transitions that sum to their total", math.fsum(transitions), report["transitions_total"])
    _require("images whose numbers are not negative", min(report["per_image"]) >= -BELOW_ZERO, min(report["per_image"]))
    if "monte_carlo_error" in report:
        _require("a Monte Carlo error where it has several images", (noise is None) == (error is None), noise)
    if noise is not None and error is not None:
        # Of shards the errors are put together, of seeds the images: the first is no longer the smaller of two then.
        whole = len((report["config"].get("shard") or {"indices": [0]})["indices"]) == 1
        most = math.inf if num_seeds(report["config"]["seed"]) > 1 else error if whole else error * 2**0.5
        holds = 0 <= noise <= most * (1 + 1e-9)
        _require(
            "a Monte Carlo error that is not negative, and no larger than its standard error", holds, f"{noise} of {error}"
        )
    _check_errors_of_images(report)


def _check_errors_of_images(report: Mapping[str, Any]) -> None:
    errors = report.get("per_image_monte_carlo_error")
    if errors is None:
        return
    _check_entries("per_image_monte_carlo_error", errors, (float, int), least=0)
    _require("an error for each of the images that have a number", len(errors) == len(report["per_image"] or ()), len(errors))
    both = math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
    _check_same("a Monte Carlo error of all its images'", both, report["monte_carlo_error"])
    freedom = report.get("per_image_degrees_of_freedom")  # reports of before have none
    if freedom is not None:
        _check_entries("per_image_degrees_of_freedom", freedom, (float, int), least=1)
        _require("degrees of freedom for each of these errors", len(freedom) == len(errors), len(freedom))


def _check_sampled(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the errors, intervals and strata of a sampled report agree with each other."""
    data, noise, freedom = report.get("data_error"), report["monte_carlo_error"], report["degrees_of_freedom"]
    for key, value, least in (
        ("data_error", data or 0, 0),
        ("monte_carlo_error", noise, 0),
        ("degrees_of_freedom", freedom, 1),
    ):
        if type(value) not in (int, float) or value < least * (1 - 1e-9):
            what = "that is not negative" if least == 0 else f"from {least} on"
            raise ValueError(f"`report` must have a number {what} for {key!r}, got {value!r}.")
    if "reliable" in report:
        doubt = report.get("doubt")
        _require("a 'doubt' where it is not reliable, and nowhere else", report["reliable"] == (doubt is None), doubt)
    count, error, level = report["num_images"], report["standard_error"], report["confidence_level"]
    _require("the images' own error where it has several", (data is None) == (count == 1), f"{data} of {count} images")
    _require("a confidence level between 0 and 1", 0 < level < 1, level)
    if error is not None:
        _check_same("a standard error of both its errors", math.hypot(noise, data or 0), error)
    _check_interval("monte_carlo_interval", report, noise, freedom)
    interval = report.get("confidence_interval")
    if error is None and interval is not None:
        raise ValueError(f"`report` must have no 'confidence_interval' where there is no error, got {interval!r}.")
    if error and data is not None:
        _check_interval("confidence_interval", report, error, freedom_of_sum(noise, data, freedom, report))
    if report["per_image"] is not None and report.get("per_image_monte_carlo_error") is None:
        raise ValueError("`report` must have an error for each of the images that have a number, got none.")
    _check_errors_of_images(report)
    _check_evaluations(report)
    _check_strata(report)


def _check_interval(key: str, report: Mapping[str, Any], error: float, freedom: float) -> None:
    interval = report.get(key)
    if not (isinstance(interval, list) and len(interval) == 2 and all(type(x) in (int, float) for x in interval)):
        raise ValueError(f"`report` must have two numbers for {key!r}, got {interval!r}.")
    half = student_quantile(freedom, report["confidence_level"]) * error
    _check_same(f"a {key} about its total", sum(interval) / 2, report["bits_per_dim"])
    _check_same(f"a {key} as wide as its error and its degrees of freedom say", interval[1] - interval[0], 2 * half)


def _check_evaluations(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the evaluations that are counted are all that were made."""
    config, counts, total = report["config"], report["evaluations_per_timestep"], report["num_network_evaluations"]
    steps = config["num_steps"]
    if len(counts) != steps or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"`report` must count the evaluations at each of its {steps} timesteps, got {counts}.")
    parts = num_parts(config)
    pilot, counted = config.get("num_pilot_evaluations"), sum(counts)
    if pilot is not None:
        holds = pilot >= 0 and counted + pilot == total
    else:  # of merged reports of before nobody knows, but that no pilot is that large
        holds = parts > 1 and 0 <= total - counted <= parts * (LARGEST_PILOT + 2 * len(report["strata"]))
    _require("as many network evaluations as it counts, and its pilot's", holds, f"{total} for {counted} and {pilot}")
    each, most = config.get("evaluations_per_image"), config.get("max_evaluations")
    if parts == 1 and each is not None:
        _require(f"{each} evaluations of each image", counted == each * report["num_images"], counted)
    if parts == 1 and most is not None:
        _require(f"at most {most} network evaluations", total <= most, total)


def _check_strata(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the strata are of all timesteps, one after the other, and sum to what is said of these."""
    strata, counts, transitions = report["strata"], report["evaluations_per_timestep"], report["transitions"]
    for index, stratum in enumerate(strata):
        whole = isinstance(stratum, dict) and all(
            type(stratum.get(key)) in kinds
            for key, kinds in (
                ("timesteps", (list,)),
                ("bits_per_dim", (int, float)),
                ("monte_carlo_error", (int, float)),
                ("num_network_evaluations", (int,)),
            )
        )
        if not whole or stratum["monte_carlo_error"] < 0 or stratum["num_network_evaluations"] < 0:
            raise ValueError(
                f"`report.strata[{index}]` must have timesteps, bits per dimension, an error and a count that are not negative,"
                f" got {stratum!r}."
            )
    values = [stratum["bits_per_dim"] for stratum in strata]
    _require("the bits per dimension of each of its strata", bool(values), values)
    _check_same("a decoder that is its first stratum", values[0], report["decoder"])
    _check_same("strata that sum to its transitions", math.fsum(values[1:]), report["transitions_total"])
    if any((value is None) != (n == 0) for value, n in zip(transitions, counts[1:])):
        raise ValueError("`report` must have a term where it made evaluations, and only there.")
    grid = [(report["config"]["inference_timesteps"] or [0])[-1], *report["timesteps"]]
    first = 0
    for index, stratum in enumerate(strata):
        ends = stratum["timesteps"]
        last = grid.index(ends[1]) if len(ends) == 2 and ends[1] in grid else -1
        tiles = last >= first and ends == [grid[first], grid[last]] and (index > 0 or last == 0)
        _require("strata of all its timesteps, one after the other, the decoder's alone first", tiles, ends)
        made, rows = stratum["num_network_evaluations"], range(first, last + 1)
        counted = sum(counts[row] for row in rows)
        _require("strata that count the evaluations at their timesteps", made == counted, f"{made} and {counted} at {ends}")
        if index > 0 and made:
            mean = sum(counts[row] * (transitions[row - 1] or 0.0) for row in rows) / made
            _check_stratum(report, stratum, mean * len(rows))
        first = last + 1
    _require("strata of all its timesteps, one after the other, the decoder's alone first", first == len(grid), len(strata))


def _check_stratum(report: Mapping[str, Any], stratum: Mapping[str, Any], expected: float) -> None:
    r"""A stratum's sum weighs each evaluation by its probability, the mean of its single terms by how often they were made:
    they differ by noise, and in a merged report by how evaluations and images are shared. No true report may be refused, and
    of few evaluations the error may have come out far too small: the bounds are wide."""
    value, count = stratum["bits_per_dim"], stratum["num_network_evaluations"]
    error = max(stratum["monte_carlo_error"], report["monte_carlo_error"])
    share = 0.9 if num_parts(report["config"]) > 1 else min(0.9, 3 / math.sqrt(count))
    most = 30 * error + share * (abs(value) + abs(expected)) + BELOW_ZERO
    rule = f"strata that are about the sum of their terms, at {stratum['timesteps']}"
    _require(rule, abs(value - expected) <= most, f"{value} and {expected}")


def _check_half_precision(bias: Mapping[str, Any], dtype: str) -> None:
    kinds = {
        "bits_per_dim": (int, float),
        "monte_carlo_error": (int, float),
        "num_network_evaluations": (int,),
        "includes_rounding_of_weights": (bool,),
    }
    whole = all(type(bias.get(key)) in of for key, of in kinds.items())
    if not whole or bias["monte_carlo_error"] < 0 or bias["num_network_evaluations"] < 1:
        raise ValueError(
            f"`report.half_precision_bias` must have {', '.join(kinds)}, none of the last three negative, got {bias}."
        )
    # In float32 too: of a network whose weights are kept in fewer digits, by layerwise casting.
    holds = dtype.removeprefix("autocast-") in ("float16", "bfloat16", "float32")
    _require("a bias of half precision only where there is one", holds, f"the dtype {dtype!r}")


# ---- ddpm_vlb/reports/schema.py ----

r"""What a report holds: a row for each of its fields, and for each setting in its `config`; and `Report`, which is checked.

Whatever reads reports goes by these rows: the check, `merge`, cards, what may be shown, the command that makes a number again,
the journal of an evaluation. A new field is a row here and a line where it is made. Of a method that gives each image numbers
of its own (`columns` in `likelihoods.methods.METHODS`) a report has the mean of each column under its name, and of a method's
options its settings: there is nothing to say here of either.
"""



IN_MEMORY = "images in memory"  # the data set that nobody named
# Of a network; within autocast its weights are float32.
DTYPES = ("float32", "bfloat16", "float16", "autocast-bfloat16", "autocast-float16")
BOUNDS = ("sampled", "full")  # the methods whose reports hold the terms of the bound


@dataclass(frozen=True)
class Field:
    r"""An entry of a report.

    Args:
        name: of the entry.
        kind: of its value, a type or a union of types.
        needed_by: the methods whose reports must have it; `None` for all, `()` for none.
        or_null: says of a report whether it may have `None` here.
        shown: in words, among the terms on a card.
        public: whether it may be shown.
    """

    name: str
    kind: Any
    needed_by: tuple[str, ...] | None = None
    or_null: Callable[[Mapping[str, Any]], bool] | None = None
    shown: str | None = None
    public: bool = True


@dataclass(frozen=True)
class Setting:
    r"""An entry of a report's `config`.

    Args:
        name: of the entry.
        kind: of its value, a type or a union of types.
        required: a number is one of this setting, or it is none.
        shown: in words, among the settings on a card.
        public: whether it may be shown. What has no row stays at home.
        identity: whether it says which model was scored.
        overridable: of the model, whether a caller may score with another one than the checkpoint's; the report says so.
        free: whether reports that differ in it can be merged; they must agree in all else, what has no row among it.
        of_one_run: whether a merged report has none.
        who: whether it says who does the work, which may change before an evaluation is gone on with from its journal.
        context: whether a caller may say it beside a report.
        flag: of `ddpm-vlb evaluate`, in front of the value; or for each value that the command line can say its own words.
    """

    name: str
    kind: Any = str
    required: bool = False
    shown: str | None = None
    public: bool = True
    identity: bool = False
    overridable: bool = False
    free: bool = False
    of_one_run: bool = False
    who: bool = False
    context: bool = False
    flag: str | Mapping[Any, str] | None = None


def _of_one_image(report: Mapping[str, Any]) -> bool:
    return report["num_images"] == 1


def _of_draws(report: Mapping[str, Any]) -> bool:
    return method_named(report["method"]).name == "sampled"


FIELDS = (
    Field("bits_per_dim", float),
    Field("prior", float, BOUNDS, shown="L_T (prior)"),
    Field("transitions_total", float, BOUNDS, shown="sum of L_t (KL terms)"),
    Field("decoder", float, BOUNDS, shown="L_0 (decoder)"),
    Field("standard_error", float, or_null=_of_one_image),
    Field("transitions", list, BOUNDS),  # in a sampled report null where no evaluation fell
    Field("timesteps", list, BOUNDS),
    Field("per_image", list, or_null=_of_draws),  # not all images may have been evaluated, or alike
    # Of those images: their places in the data set, and what it calls them and says that they are, where it does.
    Field("image_numbers", list, ()),
    Field("image_names", list, (), public=False),
    Field("image_labels", list, ()),
    Field("method", str),
    Field("num_images", int),
    Field("num_network_evaluations", int),
    Field("config", dict),
    Field("monte_carlo_error", float | None, ("sampled",)),
    Field("degrees_of_freedom", float, ("sampled",)),
    Field("confidence_level", float, ("sampled",)),
    Field("monte_carlo_interval", list, ("sampled",)),
    Field("strata", list, ("sampled",)),
    Field("evaluations_per_timestep", list, ("sampled",)),
    Field("data_error", float | None, ()),
    # Whether the Monte Carlo error can be trusted, and why not; old reports do not say.
    Field("reliable", bool, ()),
    Field("doubt", str | None, ()),
    Field("confidence_interval", list | None, ()),
    Field("per_image_monte_carlo_error", list | None, ()),
    Field("per_image_degrees_of_freedom", list | None, ()),  # of these errors; old reports have none
    Field("solver_error", float, ()),  # of the ODE; old reports have none
    Field("half_precision_bias", dict, ()),
    Field("classification", dict, ()),  # the model as a classifier, `reports/classes.py`
)
LATER = ("calibration", "noise_process", "condition_sha256")  # settings of the model that the first reports did not have
# Cards show the settings in this order. The options of the methods follow.
SETTINGS = (
    Setting("network_sha256", str | None, required=True, identity=True),  # null where the weights were not at hand
    Setting("num_train_timesteps", int, required=True, identity=True, shown="number of steps T"),
    Setting("num_steps", int, required=True, identity=True, shown="steps scored"),
    Setting("inference_timesteps", list | None, required=True, identity=True, shown="the sub-sequence scored"),
    Setting("num_inference_steps", int | None, required=True, flag="--num-inference-steps"),
    Setting("timestep_spacing"),
    Setting("beta_schedule", str | None, identity=True, shown="forward variances"),
    Setting("trained_betas", list | None, identity=True),
    Setting("beta_start", float | None, identity=True),
    Setting("beta_end", float | None, identity=True),
    Setting("rescale_betas_zero_snr", bool | None, identity=True),
    Setting("prediction_type", required=True, identity=True, shown="prediction type"),
    Setting("variance_type", required=True, identity=True, shown="reverse variances"),
    Setting("decoder_variance", required=True, identity=True, shown="decoder variance (t = 0)"),
    # What the network was trained for where it is no DDPM's, and what it was given besides; old reports have neither.
    Setting("noise_process", str | None, identity=True, shown="noise process"),
    # The class of diffusers' that the checkpoint is saved with, which the number does not depend on.
    Setting("scheduler", free=True),
    Setting("condition_sha256", str | None, identity=True, shown="given to the network, SHA-256"),
    Setting("prompt", list | None, shown="prompt", flag="--prompt"),
    # Its flag counts where the report says that the checkpoint's own was left aside. Such a report is of another model than
    # the checkpoint, so it is not overridable.
    Setting("calibration", str | None, identity=True, shown="calibrated on", flag={None: "--no-calibration"}),
    Setting(
        "num_pixel_levels",
        int,
        required=True,
        identity=True,
        overridable=True,
        shown="pixel levels",
        flag="--num-pixel-levels",
    ),
    Setting(
        "quantized",
        bool | None,
        context=True,
        shown="images brought onto these levels first",
        flag={True: "--quantize", False: ""},
    ),
    Setting(
        "clip_sample",
        bool,
        required=True,
        identity=True,
        overridable=True,
        shown="clip_sample",
        flag={True: "--clip-sample", False: "--no-clip-sample"},
    ),
    Setting("clip_sample_range", float | None, identity=True),
    Setting("thresholding", bool, identity=True, overridable=True, shown="thresholding"),
    Setting("dynamic_thresholding_ratio", float | None, identity=True),
    Setting("sample_max_value", float | None, identity=True),
    Setting("dtype", required=True, shown="dtype", flag={name: f"--dtype {name}" for name in DTYPES}),
    # Of reports that were merged a list. None of a generator that nobody named, which no command makes again.
    Setting("seed", int | list | None, required=True, free=True, shown="seed", flag="--seed"),
    Setting("dataset", str | None, required=True, context=True, flag="--dataset"),  # null in old reports of a tensor
    Setting("split", str | None, context=True, shown="split", flag="--split"),
    # Of the images as they were read: there where they were said.
    Setting("image_column", str | None, context=True, flag="--image-column"),
    Setting("label_column", str | None, context=True, flag="--label-column"),
    Setting("convert", str | None, context=True, shown="images converted to", flag="--convert"),
    Setting("resize", int | None, context=True, shown="images resized, shorter side", flag="--resize"),
    Setting("center_crop", int | None, context=True, shown="images cropped to the middle", flag="--center-crop"),
    Setting("image_seed", int | None, shown="seed of the choice of images", flag="--image-seed"),
    Setting("checkpoint", str | None, free=True, context=True),
    Setting("revision", str | None, context=True, flag="--revision"),
    Setting("network_kwargs", str | None, context=True, flag="--network-kwargs"),
    Setting("overridden", list),
    Setting("num_class_embeds", int | None),
    Setting("image_shape", list),
    Setting("batch_size", int, free=True, flag="--batch-size"),
    Setting("device", free=True, who=True),
    Setting("versions", dict, free=True),  # but for this package's own
    Setting("max_images", int | None, flag="--max-images"),
    Setting("shard", dict, free=True, flag="--shard"),
    Setting("data_sha256", list, free=True),
    Setting("buffer_bytes", int, free=True, who=True, flag="--buffer-mb"),
    Setting("num_images_in_memory", int, free=True, of_one_run=True),
    Setting("num_pilot_evaluations", int, free=True),  # of reports that were merged the sum
    Setting("num_rounds", int, free=True, of_one_run=True),
    Setting("num_processes", int, free=True, who=True),
    Setting("rows", object, context=True, flag={None: ""}),  # of the data set, where not all were taken
    Setting("description", str | None, context=True),
    Setting("limits", str | None, context=True),
    Setting("command", str | None, free=True, of_one_run=True, context=True),
    Setting("training_steps", int, context=True, public=False),
    Setting("recipe", context=True, public=False),
    Setting("checkpoints", list, context=True, public=False),  # of a comparison
)
# Which must be positive.
COUNTS = (
    *("num_train_timesteps", "num_steps", "num_pixel_levels"),
    *("batch_size", "num_images_in_memory", "num_rounds", "num_processes"),
)


def all_settings() -> list[Setting]:
    r"""The rows of all settings, the options of the methods among them."""
    options = [option for method in METHODS.values() for option in method.options]
    return [*SETTINGS, *(Setting(o.name, o.kind | None, free=o.free, flag=o.argument) for o in options)]


def settings_that_are(attribute: str) -> tuple[str, ...]:
    r"""The names of the settings whose rows say so: `settings_that_are("free")`."""
    return tuple(row.name for row in all_settings() if getattr(row, attribute))


def check_context(context: Mapping[str, Any]) -> dict[str, Any]:
    r"""Further settings that a caller says, as plain values, without where things lie on this machine.

    Raises:
        ValueError: a setting that a caller cannot say, with those that have a name like it, or of another kind.
    """
    rows = {row.name: row for row in SETTINGS if row.context}
    context = dict(to_plain(context))
    for name, value in context.items():
        if name not in rows:
            near = difflib.get_close_matches(str(name), rows, n=2)
            hint = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else f" There are {', '.join(rows)}."
            raise ValueError(f"`context` must have settings that a report knows, got {name!r}.{hint}")
        if not is_of_kind(value, rows[name].kind):
            raise ValueError(f"`context.{name}` must be {kind_words(rows[name].kind)}, got {value!r}.")
        check_plain(value, f"context.{name}")
    return without_places(context)


class Report(dict):
    r"""A report: complete, of finite plain numbers that agree with each other. Checked when it is made, and read-only then.

    It is a dictionary for all who read it. `report | {...}` is another report, and checked; `dict(report)` can be changed.

    Args:
        report: the entries.

    Raises:
        ValueError: anything that is no report, with the reason.
    """

    def __init__(self, report: Mapping[str, Any]):
        if not isinstance(report, Mapping):
            raise ValueError(f"`report` must be a dictionary, got {type(report).__name__}.")
        super().__init__(report)
        _check_fields(self)
        check_settings(self["config"])
        check_numbers(self, self.method)

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> "Report":
        r"""A report as it is, or any other dictionary as a report, checked."""
        return report if isinstance(report, cls) else cls(report)

    def __repr__(self) -> str:
        # Pages of numbers otherwise; `dict(report)` shows them all.
        error = "" if self["standard_error"] is None else f", standard error {self['standard_error']:.4f}"
        counts = f"images {self['num_images']}, network evaluations {self['num_network_evaluations']}"
        return f"Report(bits/dim {self['bits_per_dim']:.4f}{error}, {counts}, method {self['method']!r})"

    @property
    def method(self) -> Method:
        r"""The row of the likelihood method; `report["method"]` says with which options."""
        return method_named(self["method"])

    @property
    def config(self) -> dict[str, Any]:
        r"""What was scored, and with what."""
        return self["config"]

    @property
    def has_terms(self) -> bool:
        r"""Whether it has terms of the bound that can be drawn: all, or of groups of timesteps."""
        return self.method.columns is None and (None not in self["transitions"] or bool(self.get("strata")))

    @property
    def image_numbers(self) -> list[int]:
        r"""The places in the data set of the images in `per_image`, ascending."""
        return numbers_of_images(self)

    def with_settings(self, **settings: Any) -> "Report":
        r"""The report with further or other settings in its `config`; itself where it has them."""
        same = all(name in self.config and self.config[name] == value for name, value in settings.items())
        return self if same else self | {"config": self.config | settings}

    def check_model(self, settings: Mapping[str, Any]) -> None:
        r"""Raise `ValueError` unless the report is of the model with these settings, but for what it says was overridden."""
        said = self.config.get("overridden") or ()
        overridden = [name for name in settings_that_are("overridable") if name in said]
        for name in settings_that_are("identity"):
            # Reports from before there were such things have none.
            got, now = self.config.get(name, None if name in LATER else "nothing"), settings[name]
            if name not in overridden and got != now:
                got, now = (text if len(text := repr(x)) < 60 else f"{text[:60]}..." for x in (got, now))
                raise ValueError(f"`report` must be of this pipeline, got {name} = {got} for {now}.")

    # Less than a dictionary promises, on purpose.
    def __or__(self, other: Mapping[str, Any]) -> "Report":
        return type(self)({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    __ior__ = __or__  # pyright: ignore[reportAssignmentType]

    def __reduce__(self):
        return type(self), (dict(self),)

    def _read_only(self, *_, **__) -> NoReturn:
        raise TypeError("A report is read-only: make another, `report | {...}`, or change `dict(report)`.")

    __setitem__ = __delitem__ = clear = pop = popitem = _read_only
    setdefault = update = _read_only  # pyright: ignore[reportAssignmentType]


def numbers_of_images(report: Mapping[str, Any]) -> list[int]:
    r"""`Report.image_numbers`. Reports of before do not say them: image i is in shard i modulo the number of shards, and the
    images of several shards take turns."""
    if report.get("image_numbers") is not None:
        return report["image_numbers"]
    count, shard = len(report["per_image"] or ()), report["config"].get("shard") or {"of": 1, "indices": [0]}
    of = shard["of"]
    return [base + index for base in range(0, of * count, of) for index in shard["indices"]][:count]


def _check_fields(report: Report) -> None:
    r"""Raise `ValueError` unless a report has all fields of its method, each of its kind, and nothing but plain values."""
    try:
        method = report.method
    except KeyError:
        method = None  # refused below
    except ValueError as error:
        names = " or ".join(map(repr, METHODS))
        raise ValueError(f"`report` must have a method that begins with {names}, got {report['method']!r}.") from error
    rows = [*FIELDS, *(Field(name, float) for name in (method and method.columns) or () if name != "bits_per_dim")]
    for row in rows:
        needed = row.needed_by is None or method is not None and method.name in row.needed_by
        if needed and row.name not in report:
            raise ValueError(f"`report` must have the key {row.name!r}, got {', '.join(sorted(map(str, report)))}.")
    for row in rows:
        value = report.get(row.name)
        if row.name not in report or value is None and row.or_null is not None and row.or_null(report):
            continue
        if not is_of_kind(value, row.kind):
            kinds = " or ".join(kind.__name__ for kind in get_args(row.kind) or (row.kind,))
            raise ValueError(f"`report` must have a {kinds} for {row.name!r}, got {type(value).__name__}.")
    check_plain(dict(report), "report")


def check_settings(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the settings that a number is of are there, each of its kind."""
    missing = [row.name for row in SETTINGS if row.required and row.name not in config]
    if missing:
        raise ValueError(f"`report` must say in its config what was scored, got none of {', '.join(missing)}.")
    for name in COUNTS:
        value = config.get(name, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"`report.config.{name}` must be a positive integer, got {value!r}.")
    for row in all_settings():
        if row.name in config and not is_of_kind(config[row.name], row.kind):
            raise ValueError(f"`report.config.{row.name}` must be {kind_words(row.kind)}, got {config[row.name]!r}.")


def read_report(path: str | Path) -> Report:
    r"""A report from its file.

    Raises:
        ValueError: a file that is not there, or not such a report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`report` must be a JSON file of `ddpm-vlb evaluate`, got {str(path)!r}: {error}") from error
    return Report(report)


def public_report(report: Report, repository: str) -> dict[str, Any]:
    r"""A report as it may be shown: the checkpoint under the name of its repository, no path of this machine, and nothing that
    has no row here."""
    known = {row.name for row in all_settings() if row.public}
    config = {key: value for key, value in report.config.items() if key in known}
    if config.get("checkpoint") != repository:
        config.pop("revision", None)  # of another repository
    config |= {"checkpoint": repository, "dataset": public_name(str(config["dataset"]))}
    if config.get("network_kwargs"):
        config["network_kwargs"] = public_name(config["network_kwargs"])
    if config.get("command"):
        config["command"] = shlex.join(public_name(word) for word in shlex.split(config["command"]))
    fields = {row.name for row in FIELDS if row.public} | set(report.method.columns or ())
    return {key: value for key, value in report.items() if key in fields} | {"config": config}


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""Settings whose data set and checkpoints are named, but not where on this machine they lie."""
    config = dict(config)
    for key in ("dataset", "checkpoint", "checkpoints", "network_kwargs"):
        value = config.get(key)
        if isinstance(value, str):
            config[key] = placeless_name(value)
        elif isinstance(value, list):
            config[key] = [placeless_name(str(one)) for one in value]
    return config


def placeless_name(name: str) -> str:
    r"""The last part of what lies on this machine; else as `public_name`."""
    try:
        return Path(name).resolve().name if name and Path(name).exists() else public_name(name)
    except (OSError, ValueError):  # no name of a file
        return name


def public_name(name: str) -> str:
    r"""A name as it may be shown: of an absolute path, or one that leads out of a folder, the last part."""
    flag, equals, value = name.partition("=")
    if equals and flag.startswith("--"):
        return f"{flag}={public_name(value)}"
    local = name.startswith(("/", "~", "../", "./", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    return PurePath(name.replace("\\", "/")).name if local else name


# ---- ddpm_vlb/reports/classes.py ----

r"""What a report says of a model as a classifier: a summary of what `ddpm-vlb classify` wrote, of the same network."""



# Of a summary: what it holds, and of which kind.
CLASS_ENTRIES: dict[str, Any] = {
    "accuracy": float,
    "accuracy_interval": list,
    "num_images": int,
    "num_decided": int,
    "num_network_evaluations": int,
    "evaluations_per_image": float,
    "expected_calibration_error": float,
    "config": dict,
}
# Of its `config`: what `classify` alone knows, and those rows of `schema.SETTINGS` that its command line can say.
CLASS_SETTINGS: dict[str, Any] = {
    "classes": list,
    "class_prior": list,
    "confidence": float,
    "max_evaluations_per_image": int,
    "score": str,
}
SHARED_SETTINGS = (
    *("dataset", "split", "image_column", "label_column", "convert", "resize", "center_crop", "max_images", "image_seed"),
    *("num_pixel_levels", "quantized", "num_inference_steps", "checkpoint", "revision", "network_kwargs", "prompt"),
    *("dtype", "seed"),
)


def with_classes(report: Mapping[str, Any], result: Mapping[str, Any]) -> Report:
    r"""A report with a summary of a classification, as its entry `classification`.

    Args:
        report: of the model.
        result: what `classify_images` returned, with what the command line adds to its `config`.

    Raises:
        ValueError: a result that is of another network, or of images without labels.
    """
    report = Report.of(report)
    config = result.get("config") or {}
    if "accuracy" not in result:
        raise ValueError("`classes` must be of images with labels for a card, got no accuracy.")
    if config.get("network_sha256") != report.config["network_sha256"]:
        raise ValueError(
            f"`classes` must be of the report's network, got network_sha256 {config.get('network_sha256')!r} for"
            f" {report.config['network_sha256']!r}."
        )
    summary = {name: result[name] for name in CLASS_ENTRIES if name in result}
    summary["evaluations_per_image"] = result["evaluations_per_image"]["mean"]
    said = {name: config[name] for name in (*CLASS_SETTINGS, *SHARED_SETTINGS) if config.get(name) is not None}
    summary["config"] = without_places(said)
    return report | {"classification": check_classification(summary)}


def check_classification(summary: Mapping[str, Any]) -> dict[str, Any]:
    r"""The summary, or `ValueError` unless it has its entries and they agree with each other."""
    summary = dict(summary)
    if summary.keys() != CLASS_ENTRIES.keys():
        names = ", ".join(sorted(summary.keys() ^ CLASS_ENTRIES.keys()))
        raise ValueError(f"`classification` must have the entries {', '.join(CLASS_ENTRIES)}, got others or none of {names}.")
    config = summary["config"] if isinstance(summary["config"], dict) else {}
    for name, kind in {**CLASS_ENTRIES, **CLASS_SETTINGS, "dataset": str}.items():
        value = summary[name] if name in CLASS_ENTRIES else config.get(name)
        if not is_of_kind(value, kind):
            raise ValueError(f"`classification` must have {kind_words(kind)} for {name!r}, got {value!r}.")
    interval, right = summary["accuracy_interval"], summary["accuracy"] * summary["num_images"]
    low, high = interval if _are_numbers(interval, 2) else (1.0, 0.0)
    if not 0 <= low <= summary["accuracy"] <= high <= 1 or abs(right - round(right)) > 1e-6 * max(1.0, right):
        raise ValueError(
            f"`classification` must have an accuracy of {summary['num_images']} images inside its interval, got"
            f" {summary['accuracy']!r} and {interval!r}."
        )
    if not 0 <= summary["num_decided"] <= summary["num_images"]:
        raise ValueError(f"`classification` must have at most all images decided, got {summary['num_decided']}.")
    if not _are_numbers(config["class_prior"], len(config["classes"])):
        raise ValueError("`classification` must have a probability for each of its classes, got others.")
    return summary


def _are_numbers(values: list, count: int) -> bool:
    return len(values) == count and all(is_of_kind(value, float) for value in values)


# ---- ddpm_vlb/hub/cards.py ----

r"""Model cards: made from a report and from nothing else, and checked against it.

A card is refused where its report is not what `ddpm_vlb.evaluation` writes: numbers that are not finite or not numbers, keys
that are missing, terms that do not sum to the total, a total that is not the mean of its images. A card that is there already
is checked by making it again: nothing but the pictures that it shows is its own.
"""




LONGEST_LIST = 32
METADATA_KEYS = ("license", "library_name", "pipeline_tag", "tags", "model-index")
TASK, CLASS_TASK = "unconditional-image-generation", "image-classification"
METRIC = "bits_per_dim"
TAGS = ("diffusers", "ddpm", "likelihood", "bits-per-dim")
BOUND = "an upper bound on the\nnegative log-likelihood"
# The order of a command's words; further ones follow. Cards are checked by making them again, old ones too.
FLAG_ORDER = (
    "--dataset",
    "--revision",
    "--split",
    "--image-column",
    "--label-column",
    "--convert",
    "--resize",
    "--center-crop",
    "--max-images",
    "--image-seed",
    "--shard",
    "--method",
    "--target-se",
    "--max-evaluations",
    "--per-image",
    "--buffer-mb",
    "--num-inference-steps",
    "--num-pixel-levels",
    "--batch-size",
    "--dtype",
    "--seed",
    "--clip-sample",
    "--no-clip-sample",
    "--quantize",
)


def model_card(
    report: Mapping[str, Any] | None,
    *,
    repository: str,
    settings: Mapping[str, Any] | None = None,
    pictures: Sequence[tuple[str, str]] = (),
) -> ModelCard:
    r"""The card of a checkpoint.

    Args:
        report: of the checkpoint, as `ddpm_vlb.evaluation` makes it: every number of the card is from here. Its `config` may
            have a `description`, `limits` and the `command` that made it; `None` makes a card that says that nothing was
            scored.
        repository: what the checkpoint is loaded by.
        settings: of the scheduler, with its class in diffusers as `scheduler`, and the network's `num_class_embeds`, where
            there is no report to say them.
        pictures: pairs of a caption and a file name beside the card.

    Raises:
        ValueError: anything that is no `Report`.
    """
    scored = {} if report is None else _scored(Report.of(report), repository)
    config = settings or {} if report is None else scored["report"]["config"]
    name = repository.rpartition("/")[2]
    steps = config.get("num_train_timesteps") or 1000
    scheduler = scheduler_of(config)
    not_for_stock = settings_not_for_stock(config)
    return ModelCard.from_template(
        _card_data(name, **scored),
        template_str=card_template(),
        name=name,
        repository=repository,
        description=config.get("description") or f"A DDPM of {steps} steps for diffusers.",
        limits=config.get("limits"),
        pictures=list(pictures),
        num_inference_steps=min(1000, steps) if scheduler.startswith("DDPM") else min(50, steps // 2 or 1),
        not_for_stock=" and ".join(not_for_stock),
        scheduler=scheduler,
        pipeline=PIPELINES.get(scheduler, "DDPMPipeline") if scheduler in SAMPLED_BY_STOCK else None,
        conditional=config.get("num_class_embeds") is not None,
        **scored,
    )


def _scored(report: Report, repository: str) -> dict[str, Any]:
    r"""What a card says of a number, and of what was scored."""
    method, shown = report.method, public_report(report, repository)
    config = shown["config"]
    return {
        "report": shown,
        "metric": method.metric,
        "dataset": f"{config['dataset']} ({config['split']} split)" if config.get("split") else config["dataset"],
        "error": _error(shown),
        "what": BOUND if method.columns is None else f"the {method.columns['bits_per_dim']} ({shown['method']})",
        "columns": method.columns is not None,
        "note": method.note,
        "terms": "\n".join(_term_rows(shown, method)),
        "settings": "\n".join(_setting_rows(shown)),
        "command": reproducing_command(shown, repository),
        "classes": _classes(report, repository),
    }


def _classes(report: Report, repository: str) -> dict[str, Any] | None:
    r"""What a card says of the model as a classifier, `None` where nothing is known."""
    if "classification" not in report:
        return None
    found = check_classification(report["classification"])
    config = found["config"]
    split = f" ({config['split']} split)" if config.get("split") else ""
    of = {name: config[name] for name in ("dataset", "confidence", "score")}
    of |= {"split": config.get("split"), "of": config["dataset"] + split, "num_classes": len(config["classes"])}
    return found | of | {"command": _classifying_command(config, report.config["num_class_embeds"], repository)}


def _classifying_command(config: dict[str, Any], num_classes: int | None, repository: str) -> str | None:
    r"""The command line that classifies again as this config says; `None` where no command line can say it."""
    if config["dataset"] == IN_MEMORY or len(set(config["class_prior"])) > 1:
        return None
    rows, words = {row.name: row for row in all_settings()}, []
    for name in SHARED_SETTINGS:
        own = _words(rows[name], {"config": config}, repository)
        if own is None:
            return None
        words += own
    if config["classes"] != list(range(num_classes or 0)):
        words += ["--classes", ",".join(map(str, config["classes"]))]
    for name in ("confidence", "max_evaluations_per_image", "score"):
        words += [f"--{name.replace('_', '-')}", str(config[name])]
    return shlex.join(["ddpm-vlb", "classify", repository, *words])


def scheduler_of(config: Mapping[str, Any]) -> str:
    r"""The class of diffusers that a checkpoint is saved with; old reports say nothing of it."""
    return config.get("scheduler") or "DDPMScheduler"


def settings_not_for_stock(config: Mapping[str, Any]) -> list[str]:
    r"""Settings with which diffusers' own scheduler samples NaN, or something else."""
    variance, is_ddpm = VARIANCES.get(str(config.get("variance_type"))), scheduler_of(config).startswith("DDPM")
    # Others have no variance of a step, and know of no network that says one.
    wrong = {"variance_type": variance is not None and (not variance.for_stock if is_ddpm else variance.is_learned)}
    wrong["timestep_spacing"] = is_ddpm and config.get("timestep_spacing") == "trailing"
    return [f"{name}: {config[name]}" for name, is_wrong in wrong.items() if is_wrong]


def _card_data(
    name: str, report: dict[str, Any] | None = None, metric: str = "", classes: dict[str, Any] | None = None, **_: Any
) -> ModelCardData:
    data: dict[str, Any] = dict(license="apache-2.0", library_name="diffusers", pipeline_tag=TASK, tags=list(TAGS))
    if report is None:
        return ModelCardData(**data)
    config = report["config"]
    result = EvalResult(
        task_type=TASK,
        dataset_type=config["dataset"],
        dataset_name=config["dataset"],
        dataset_split=config.get("split"),
        metric_type=METRIC,
        metric_name=metric,
        metric_value=report["bits_per_dim"],
        metric_args=_metric_arguments(report),
    )
    results = [result]
    if classes is not None:
        of = {f"dataset_{key}": classes[name] for key, name in (("type", "dataset"), ("name", "dataset"), ("split", "split"))}
        arguments = {key: classes[key] for key in ("accuracy_interval", "num_images", "num_network_evaluations", "confidence")}
        value = {"metric_type": "accuracy", "metric_name": "accuracy", "metric_value": classes["accuracy"]}
        results.append(EvalResult(task_type=CLASS_TASK, **of, **value, metric_args=arguments))
    return ModelCardData(**data, datasets=[config["dataset"]], model_name=name, eval_results=results)


def _metric_arguments(report: dict[str, Any]) -> dict[str, Any]:
    arguments = {key: report[key] for key in ("standard_error", "num_images", "num_network_evaluations", "method")}
    if report.get("doubt"):
        arguments["standard_error"] = None
    return arguments | {row.name: _shortened(report["config"][row.name]) for row in _shown_settings(report)}


def _error(report: dict[str, Any]) -> str:
    if report["standard_error"] is None:
        return ""
    if report.get("doubt"):
        return f" (an estimate whose error is not known: {report['doubt']})"
    if "monte_carlo_interval" not in report:
        return f" ({report['standard_error']:.4f} standard error)"
    low, high = report["monte_carlo_interval"]
    level = f"{report['confidence_level']:.0%}"
    return f" ({report['standard_error']:.4f} standard error; of these very images {low:.4f} to {high:.4f}, {level})"


def _term_rows(report: dict[str, Any], method: Method) -> list[str]:
    r"""What the number is made of: the terms of the bound, or a method's columns."""
    if method.columns is None:
        head, total = "| term | bits/dim |", "bound"
        rows = {row.name: row.shown for row in FIELDS if row.shown is not None}
    else:
        head, rows = "| number | mean over images |", dict(method.columns)
        total = rows.pop("bits_per_dim")
    lines = [f"| {words} | {report[name]:.4f} |" for name, words in rows.items()]
    if "solver_error" in report:
        lines.append(f"| solver's error, at most | {report['solver_error']:.2g} |")
    return [head, "|---|---|", *lines, f"| **{total}** | **{report['bits_per_dim']:.4f}** |"]


def _shown_settings(report: dict[str, Any]) -> list[Setting]:
    return [row for row in SETTINGS if row.shown is not None and report["config"].get(row.name) is not None]


def _setting_rows(report: dict[str, Any]) -> list[str]:
    config = report["config"]
    rows = [f"| {row.shown} | {_cell(config[row.name])} |" for row in _shown_settings(report)]
    method = f"| method | {report['method']}: {report['num_network_evaluations']} network evaluations |"
    versions = " ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    return ["| setting | value |", "|---|---|", *rows, method, *([f"| versions | {versions} |"] if versions else [])]


def _shortened(value: Any) -> Any:
    # Hundreds of timesteps are no reading; the report has them all.
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{', '.join(map(str, value[:3]))}, ..., {', '.join(map(str, value[-3:]))} ({len(value)} in report.json)"
    return value


def _cell(value: Any) -> str:
    # One line, and no column more.
    value = _shortened(value)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def reproducing_command(report: Mapping[str, Any], repository: str) -> str | None:
    r"""The command line that makes the report of a checkpoint again: its own `command`, or `ddpm-vlb evaluate` with all that
    its config says; `None` where no command line can say it."""
    config = report["config"]
    if config.get("command"):
        return config["command"]
    method, said = method_named(report["method"]), {}
    rows = {row.name: row for row in all_settings() if row.flag is not None}
    overridden = config.get("overridden") or ()
    of_evaluate = "max_images" in config and config["dataset"] != IN_MEMORY
    # A number of several sweeps has more to its method than its name; a grid that was named has no flag.
    by_name = method.columns is not None or report["method"] == method.name
    on_named_grid = config["inference_timesteps"] is not None and config["num_inference_steps"] is None
    if not (of_evaluate and by_name) or on_named_grid or any(name not in rows for name in overridden):
        return None
    for row in rows.values():
        words = _words(row, report, repository)
        if words is None:
            return None
        said |= {words[0]: words} if words else {}
    said["--method"] = ["--method", method.name]
    order = [flag for flag in FLAG_ORDER if flag in said] + [flag for flag in said if flag not in FLAG_ORDER]
    return shlex.join(["ddpm-vlb", "evaluate", repository, *(word for flag in order for word in said[flag])])


def _words(row: Setting, report: Mapping[str, Any], repository: str) -> list[str] | None:
    r"""A setting as words of a command line: none where there is nothing to say, `None` where they cannot say it."""
    config = report["config"]
    value, flag = config.get(row.name), row.flag
    if row.name == "calibration" and "calibration" not in (config.get("overridden") or ()):
        return []
    if row.name == "revision" and config.get("checkpoint") != repository:
        return []
    if row.name == "seed" and type(config.get("seed")) is not int:
        return None
    if isinstance(flag, Mapping):
        # By equality: a value may be a list.
        said = next((words for known, words in flag.items() if known == value), None)
        return shlex.split(said) if said is not None else [] if value is None else None
    if row.name == "buffer_bytes" and value is not None:
        all_in_memory = config.get("num_images_in_memory", report["num_images"]) == report["num_images"]
        value = None if all_in_memory else value / 2**20
    elif row.name == "shard" and value is not None:
        if len(value["indices"]) > 1:
            return None
        value = None if value["of"] == 1 else f"{value['indices'][0]}/{value['of']}"
    if value is None or flag is None:
        return []
    return [word for one in (value if isinstance(value, list) else [value]) for word in (flag, str(one))]


def check_card(text: str, report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless a card has the metadata of ours, in plain and finite values, and says what its report says."""
    report = Report.of(report)
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) != 3 or parts[0].strip():
        raise ValueError("`card` must begin with its metadata between two lines `---`.")
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"`card` must have metadata of plain YAML values, got: {' '.join(str(error).split())}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"`card` must have metadata of keys and values, got {type(metadata).__name__}.")
    check_plain(metadata, "card")
    missing = [key for key in METADATA_KEYS if not metadata.get(key)]
    if missing:
        raise ValueError(f"`card` must have the metadata {', '.join(METADATA_KEYS)}, got none of {', '.join(missing)}.")
    repository = repository_of_card(parts[2])
    # The pictures that are shown are the only thing that the report does not tell.
    pictures = re.findall(r"^!\[([^\]\n]*)\]\(([\w-]+\.png)\)$", parts[2], flags=re.MULTILINE)
    expected = str(model_card(report, repository=repository, pictures=pictures))
    for got, line in zip_longest(text.strip().split("\n"), expected.strip().split("\n"), fillvalue="nothing"):
        if got != line:
            raise ValueError(f"`card` must agree with its report, got the line {got!r} for {line!r}.")


def repository_of_card(text: str) -> str:
    r"""What a card says that its checkpoint is loaded by, or `ValueError`."""
    match = re.search(r'VLBDDPMPipeline\.from_pretrained\("([^"\n]+)"\)', text)
    if match is None:
        raise ValueError("`card` must say how the checkpoint is loaded, got no VLBDDPMPipeline.from_pretrained(...).")
    return match[1]


# ---- ddpm_vlb/files.py ----

r"""Files and folders that are written whole or not at all: beside their place first, then renamed; by one process at a time.

What is being written, and what says that an output is taken, is held by a lock of the kernel (flock). It ends with its process,
`kill -9` included: what is not held any more lies about for nobody and is removed by the next who writes beside it. A file
that merely exists outlives its process, and the pid in it may be that of another one by then, or of another machine. Where
there are no such locks, on Windows and on some network file systems, nothing is refused, and nothing of others removed.
"""


# Names of files that are being written, and of locks, begin with it.
HIDDEN = ".ddpm-vlb-"
# How often, and how many seconds apart, a lock is tried: one who tidies up has it for an instant.
TRIES, SECONDS_BETWEEN_TRIES = 10, 0.05


def check_output_path(path: str | Path) -> Path:
    r"""A path that can be written to; meant to be asked before the work whose result goes there.

    Raises:
        ValueError: a folder, or a path whose folder does not exist or does not allow writing.
    """
    path = Path(path)
    try:
        allowed = not path.is_dir()
        if allowed and not _is_device(path):
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError:
        allowed = False
    if not allowed:
        raise ValueError(f"`output` must be a file in an existing folder that can be written to, got {str(path)!r}.")
    return path


@contextmanager
def locked(*outputs: str | Path | None, name: str = "output", inside: bool = False) -> Iterator[None]:
    r"""Hold outputs while the work goes on whose results go there: whoever else wants one of them is refused at once.

    Args:
        outputs: files, or folders that are yet to be made; `None` and devices are nobody's.
        name: of the argument, for the message.
        inside: the outputs are folders that stay where they are, and the lock lies in them; else it lies beside.

    Raises:
        ValueError: another process has one of them; the message names it by its pid, and its machine where that is another.
    """
    with ExitStack() as held:
        for output in {Path(output).resolve(): output for output in outputs if output is not None}.values():
            path = Path(output).resolve()  # a link stands for what it names
            if not _is_device(path):
                lock = path / f"{HIDDEN}lock" if inside else path.with_name(f"{HIDDEN}{path.name}.lock")
                held.enter_context(_lock(lock, f"`{name}` must be written by one process at a time, got {str(output)!r}"))
        yield


@contextmanager
def _lock(path: Path, refusal: str) -> Iterator[None]:
    with ExitStack() as stack:
        for left in reversed(range(TRIES)):
            try:
                handle, held = stack.enter_context(_held(path, os.O_RDWR | os.O_CREAT))
                break
            except BlockingIOError:
                if not left:
                    raise ValueError(f"{refusal}, which {_holder(path)} has: wait for it, or choose another.") from None
                time.sleep(SECONDS_BETWEEN_TRIES)
        if not held:
            stack.close()
            path.unlink(missing_ok=True)
            yield
            return
        try:
            with naming(path):
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()} {platform.node()}\n".encode())
            yield
        finally:
            # While it is held, so that it is not another's; in a fork it is not this one's to remove.
            if handle in _handles and _is_at(handle, path):
                path.unlink()


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        pid, machine = lock.read_text(encoding="utf-8").split(maxsplit=1)
        return f"process {pid}" + ("" if machine.strip() == platform.node() else f" on {machine.strip()}")
    return "another process"


def write_atomically(path: str | Path, content: bytes) -> None:
    r"""Write a file beside its place, then rename it there: a crash or a full disk leaves the old file as it was.

    Raises:
        OSError: it cannot be written; the message names `path`.
    """
    path = Path(path).resolve()  # a link keeps pointing to what it names
    with naming(path):
        if _is_device(path):  # written to, never replaced
            path.write_bytes(content)
            return
        remove_dead(path.parent)
        beside = path.with_name(f"{HIDDEN}{secrets.token_hex(8)}")
        try:
            with _held(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, wait=True) as (handle, held):
                with open(handle, "wb", closefd=False) as file:
                    file.write(content)
                    file.flush()
                    os.fsync(handle)
                if held:
                    os.replace(beside, path)
            if not held:
                os.replace(beside, path)  # Windows replaces no file by one that is open
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def remove_dead(folder: Path) -> None:
    r"""Remove what processes that were killed left in a folder: half-written files and locks."""
    for path in folder.glob(f"{HIDDEN}*"):
        with suppress(OSError), _held(path, os.O_RDWR) as (_, held):  # an error is: in use, or not ours
            if held:
                path.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    r"""Have the system's errors say which file they are about: a full disk's name none, others one that the user never saw."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def png_bytes(picture: Any) -> bytes:
    r"""A PIL image or a figure of Matplotlib as a PNG file; a figure at 120 dots an inch."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=120)
    else:
        picture.save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | Path, picture: Any) -> None:
    r"""Write a PIL image or a figure of Matplotlib as a PNG file, whole or not at all."""
    write_atomically(path, png_bytes(picture))


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    r"""A folder to fill beside `target`; it takes the place of `target`, whole, when the block ends without an error.

    Where the system can exchange two names in one step (Linux), there is no moment without a complete `target`.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    clean_up(target)
    with naming(target), _hidden_folder(target) as folder:
        try:
            yield folder
            sync(folder)
            replace_folder(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def fill_folder(target: str | Path) -> Iterator[Path]:
    r"""A folder to fill inside `target`, which may be there and hold other files; when the block ends without an error, each
    file takes its place in `target`, whole. After an error `target` is as it was."""
    target = Path(target)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target, prefix=".ddpm-vlb-"))
    try:
        yield folder
        sync(folder)
        for path in sorted(folder.rglob("*")):
            place = target / path.relative_to(folder)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(path, place)
    except BaseException:
        if is_new:
            shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    r"""Put the finished folder `new` in the place of `target`; an old one is removed only after that."""
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)  # one who tidies up may be at it too
    else:
        with _hidden_folder(target, "old-") as old:
            target.rename(old / target.name)
            new.rename(target)
            shutil.rmtree(old)


def remove_folder(folder: Path) -> None:
    r"""Remove a folder; one killed in the middle leaves a hidden rest, never half of what the name promises."""
    with _hidden_folder(folder, "gone-") as hidden:
        folder.rename(hidden / folder.name)
        shutil.rmtree(hidden)


def clean_up(target: Path) -> None:
    r"""Put right what processes killed inside `new_folder(target)` left: the old `target` back in its place where it is the
    only complete one, and no hidden folders. What a living process has stays."""
    remove_dead(target.parent)
    for folder in target.parent.glob(f".{escape(target.name)}-*"):
        with suppress(OSError), _held(folder, os.O_RDONLY) as (_, held):
            name = folder.name[1:].rpartition("-old-")[0]  # of `target`, or of one whose name begins with it
            if name and (folder / name).is_dir() and not folder.with_name(name).exists():
                (folder / name).rename(folder.with_name(name))
            if held:
                shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    r"""Have every file of a folder on the disk before it is renamed."""
    for path in (folder, *folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    r"""Hold a folder that is being filled: `clean_up` leaves it alone."""
    with _held(folder, os.O_RDONLY, wait=True):
        yield


@contextmanager
def _hidden_folder(target: Path, kind: str = "") -> Iterator[Path]:
    r"""A new folder beside `target`, held by this process."""
    with ExitStack() as stack:
        while True:
            folder = target.with_name(f".{target.name}-{kind}{secrets.token_hex(4)}")
            folder.mkdir()
            try:
                stack.enter_context(holding(folder))
                break
            except FileNotFoundError:  # removed before it was held, by one who tidies up
                continue
        yield folder


# Those that are locked; a fork, such as a data loader's worker, lets go of them, or they would stay so until it ends.
_handles: set[int] = set()


def _let_go() -> None:
    for handle in _handles:
        os.close(handle)
    _handles.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _held(path: Path, flags: int, wait: bool = False) -> Iterator[tuple[int, bool]]:
    r"""Open a file or a folder and lock it: its handle, and whether it is locked, which it is not where there are no locks.

    Raises:
        BlockingIOError: another process has it locked, unless it is waited for.
    """
    while True:
        handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        _handles.add(handle)
        try:
            held = _flock(handle, wait)
            if not held or _is_at(handle, path):  # else whoever had it before has removed it
                yield handle, held
                return
        finally:
            if handle in _handles:
                _handles.remove(handle)
                os.close(handle)


def _flock(handle: int, wait: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.lstat())
    return False


def _is_device(path: Path) -> bool:
    r"""Whether a path is that of a pipe or a device: those are written to as they are."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _exchange(one: Path, other: Path) -> bool:
    r"""Exchange two names in one step (renameat2 with RENAME_EXCHANGE); `False` where the system does not know how."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0


# ---- ddpm_vlb/hub/eval_results.py ----

r"""A report's number where the Hub looks for results: `.eval_results/*.yaml`, by huggingface_hub's own classes.

The card's `model-index` says the same and is what the Hub calls legacy. The entry names the data set and the task of its
benchmark (`eval.yaml` of the data set's repository), the number, and, in `notes`, its error and all that is needed to make it
again.
"""




EVAL_RESULTS = ".eval_results/ddpm-vlb.yaml"


def eval_result_entries(report: Mapping[str, Any], repository: str) -> list[EvalResultEntry]:
    r"""The entries of a report, none where its images are of no data set that could be on the Hub.

    Args:
        report: as `ddpm_vlb.evaluation` makes it.
        repository: of the checkpoint.

    Raises:
        ValueError: anything that is no `Report`.
    """
    report = Report.of(report)
    shown = public_report(report, repository)
    config = shown["config"]
    dataset = str(config["dataset"]).partition(":")[0]  # without the configuration
    try:
        validate_repo_id(dataset)
    except ValueError:
        return []
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            # The bound is the metric by that name; of another method's number its name says so.
            task_id=METRIC if report.method.columns is None else f"{METRIC}_{report.method.name}",
            value=shown["bits_per_dim"],
            source_url=urlunsplit(("https", "huggingface.co", f"{repository}/blob/main/report.json", "", "")),
            source_name="report.json",
            notes=_notes(shown, report.method.metric, repository),
        )
    ]
    found = report.get("classification")
    if found is not None and found["config"]["dataset"] == dataset:
        low, high = found["accuracy_interval"]
        notes = f"95% interval {low!r} to {high!r}; {found['num_images']} images; confidence {found['config']['confidence']!r}"
        where = {"source_url": entries[0].source_url, "source_name": entries[0].source_name, "notes": notes}
        entries.append(EvalResultEntry(dataset_id=dataset, task_id="accuracy", value=found["accuracy"], **where))
    return entries


def eval_results_file(report: Mapping[str, Any], repository: str) -> bytes | None:
    r"""The file `EVAL_RESULTS` of a report, or `None` where there is no entry."""
    entries = eval_result_entries(report, repository)
    if not entries:
        return None
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=10**6).encode()


def check_eval_results(content: bytes, report: Mapping[str, Any], repository: str) -> None:
    r"""Raise `ValueError` unless the file says what the report says, and nothing else."""
    try:
        found = parse_eval_result_entries(yaml.safe_load(content))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{EVAL_RESULTS}` must be a list of results, got {type(error).__name__}: {' '.join(str(error).split())}."
        ) from error
    expected = eval_result_entries(report, repository)
    if len(found) != len(expected):
        raise ValueError(f"`{EVAL_RESULTS}` must have the {len(expected)} results of its report, got {len(found)}.")
    for own, entry in zip(expected, found):
        for name, value in vars(own).items():
            got = getattr(entry, name)
            if got != value or type(got) is not type(value):
                raise ValueError(f"`{EVAL_RESULTS}` must agree with its report, got {name} {got!r} for {value!r}.")


def _notes(shown: dict[str, Any], metric: str, repository: str) -> str:
    config, error = shown["config"], shown["standard_error"]
    parts = [
        f"{metric}, lower is better",
        None if error is None else f"standard error {error!r}",
        f"{shown['num_images']} images" + (f" of split {config['split']}" if config.get("split") else ""),
        f"{config['num_pixel_levels']} pixel levels",
        f"{config['num_steps']} of {config['num_train_timesteps']} steps",
        f"method {shown['method']}, {shown['num_network_evaluations']} network evaluations",
        f"network sha256 {config['network_sha256']}" if config.get("network_sha256") else None,
        f"images sha256 {', '.join(config['data_sha256'])}" if config.get("data_sha256") else None,
        f"ddpm_vlb {config['versions']['ddpm_vlb']}" if "ddpm_vlb" in (config.get("versions") or {}) else None,
        reproducing_command(shown, repository),
    ]
    return "; ".join(part for part in parts if part is not None)


# ---- ddpm_vlb/hub/repository.py ----

r"""What a Hub repository of ours contains, and how it gets there.

One layout serves three users:

- `model_index.json`, `unet/`, `scheduler/` name the stock classes: diffusers alone loads and samples them, `VLBDDPMPipeline`
  upgrades what it loads;
- `text_encoder/` and `tokenizer/` are there where the network takes prompts;
- `pipeline.py` is the package in one file, for `custom_pipeline=` and those who trust it;
- `README.md` is a card made from `report.json`, with `terms.png` and `samples.png` beside it;
- `.eval_results/ddpm-vlb.yaml` has the report's number where the Hub looks for results.

Nothing else is sent: no optimizer, no logs, no path of the machine that made it. A push is one commit, so that a repository is
at every moment what it was before or what it is after; files of an earlier push that would contradict the new ones (other
weights, a report of other weights) leave in that commit.
"""




WEIGHTS = "diffusion_pytorch_model"
# Weights in one file or in shards, with or without a variant, and the index of shards.
WEIGHT_NAME = re.compile(
    rf"unet/{WEIGHTS}(?:\.(?P<variant>[\w-]+?))??(?:-\d+-of-\d+)?\.(?:safetensors|bin)(?:\.index(?:\.(?P<of_index>[\w-]+))?\.json)?"
)
PIPELINE_FILES = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")
# A text encoder and its tokenizer, which a network of prompts is nothing without.
TEXT_NAME = re.compile(r"(text_encoder|tokenizer)/[\w.-]+\.(json|safetensors|bin|txt|model)")
PICTURES = {"terms.png": "The terms of the bound over t", "samples.png": "Samples"}


def strip_paths(config: dict[str, Any]) -> dict[str, Any]:
    r"""A configuration without the place it was loaded from, which is a path of this machine."""
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def json_config(config: dict[str, Any]) -> dict[str, Any]:
    r"""A configuration as it is published: without paths, and as JSON can hold it.

    DPM-Solver's schedulers have `lambda_min_clipped = -inf`, for which JSON has no number. Where an infinite number is the
    default of its class, or of another class than the configuration's, it is left out: what is loaded is the same.

    Raises:
        ValueError: another value that JSON has nothing for.
    """
    import diffusers  # and torch, without which a name is refused

    cls = getattr(diffusers, stock_name(config), None) if "_class_name" in config else None
    defaults = {n: p.default for n, p in inspect.signature(cls.__init__).parameters.items()} if isinstance(cls, type) else None
    public = {}
    for key, value in strip_paths(config).items():
        infinite = isinstance(value, float) and math.isinf(value)
        if infinite and defaults is not None and defaults.get(key, value) == value:
            continue
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(f"`{key}` must be a value that JSON can hold, got {value!r}.") from None
        public[key] = value
    return public


def check_savable(**parts: Any) -> None:
    r"""Raise `ValueError` unless the parts of a pipeline can be saved and read again; meant to be asked before the work."""
    for name, part in parts.items():
        try:
            json_config(json.loads(part.to_json_string()))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"`{name}` must have a configuration that can be saved, got {type(part).__name__}: {error}"
            ) from error


def pipeline_files(folder: str | Path) -> dict[str, Path | bytes]:
    r"""The files of a saved pipeline that belong into a repository, by their names there: paths of weights, and the content of
    configurations.

    Raises:
        ValueError: a folder that is not a whole pipeline, or links that lead out of it.
    """
    folder = Path(folder)
    missing = [name for name in PIPELINE_FILES if not (folder / name).is_file()]
    if missing:
        hint = f" Did you mean {str(folder / 'pipeline')!r}?" if (folder / "pipeline" / PIPELINE_FILES[0]).is_file() else ""
        raise ValueError(f"`folder` must hold a saved pipeline, got {str(folder)!r} without {', '.join(missing)}.{hint}")
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_text = TEXT_NAME.fullmatch(name) is not None
        if name not in PIPELINE_FILES and not WEIGHT_NAME.fullmatch(name) and not is_text:
            continue
        check_no_link(path, folder)
        files[name] = path
        if path.suffix == ".json" and not name.endswith(".index.json") and (not is_text or path.name == "config.json"):
            files[name] = json_bytes(json_config(json.loads(path.read_text(encoding="utf-8"))))
    return files


def check_no_link(path: Path, folder: Path) -> None:
    r"""Raise `ValueError` for a link that leads out of a folder, since what it names was not meant to leave, and for a pipe,
    whose reader waits for ever."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`folder` must hold its files itself, got {path.name!r}, a link to {str(path.resolve())!r}.")
    if path.exists() and not path.is_file():
        raise ValueError(f"`folder` must hold plain files, got {path.name!r}, which is none.")


def repository_files(
    files: Mapping[str, Path | bytes],
    repository: str,
    report: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> dict[str, Path | bytes]:
    r"""Everything that a repository of ours contains: `pipeline_files`, the remote code, card, report and pictures.

    Args:
        files: what `pipeline_files` says of the pipeline.
        repository: its full name.
        report: what the card is made from, or `None`.
        pictures: PNG files by their names, of those in `PICTURES`.

    Raises:
        ValueError: anything that is no `Report`.
    """
    scheduler, unet = (json.loads(cast(bytes, files[name])) for name in PIPELINE_FILES[1:])
    # The scheduler is the one that is there, whatever it was when the report was made.
    report = None if report is None else Report.of(report).with_settings(scheduler=stock_name(scheduler))
    pictures = pictures or {}
    card = model_card(
        report,
        repository=repository,
        settings=card_settings(scheduler) | {"num_class_embeds": unet.get("num_class_embeds")},
        pictures=[(caption, name) for name, caption in PICTURES.items() if name in pictures],
    )
    files = {**files, "pipeline.py": standalone_source().encode(), "README.md": str(card).encode(), **pictures}
    if report is not None:
        files["report.json"] = json_bytes(public_report(report, repository))
        results = eval_results_file(report, repository)
        if results is not None:
            files[EVAL_RESULTS] = results
    return files


def card_settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    r"""What a card is told of the saved configuration of a scheduler."""
    return {**scheduler, **scheduler.get(KEPT_UNDER, {}), "scheduler": stock_name(scheduler)}


def stock_name(scheduler: Mapping[str, Any]) -> str:
    r"""The class of diffusers that loads a saved configuration of a scheduler."""
    return str(scheduler.get("_class_name", "DDPMScheduler")).removeprefix("VLB")


def json_bytes(content: Any) -> bytes:
    r"""A JSON file."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def is_stale(name: str, variant: str | None = None) -> bool:
    r"""Whether a file that a push does not replace contradicts what it brings: other weights of the same variant, or what was
    measured of the model that was there."""
    if name in ("report.json", EVAL_RESULTS, *PICTURES):
        return True
    match = WEIGHT_NAME.fullmatch(name)
    return match is not None and (match["variant"] or match["of_index"]) == variant


@contextmanager
def saving(folder: Path, variant: str | None, **parts: Any) -> Iterator[Path]:
    r"""A folder for diffusers to save the parts of a pipeline to. When the block ends without an error, its files take the
    places of those of `folder`, with what a folder needs besides: no path of this machine, the package in one file, and no
    weights of an earlier save under another name, which would be loaded in place of these. Until then `folder` is as it was.

    Raises:
        ValueError: parts that cannot be saved; before anything is written.
        OSError: the weights cannot be written.
    """
    check_savable(**parts)
    with naming(folder), fill_folder(folder) as fresh:
        try:
            yield fresh
        except SafetensorError as error:  # of a disk that is full
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, f"The weights could not be written: {error}") from error
        for name, content in pipeline_files(fresh).items():
            if isinstance(content, bytes):
                (fresh / name).write_bytes(content)
        (fresh / "pipeline.py").write_bytes(standalone_source().encode())
        # By its name: a file's time says nothing where two saves fall into one tick of the clock.
        written = {path.name for path in (fresh / "unet").iterdir()}
    for path in list((folder / "unet").iterdir()):
        if path.name not in written and is_stale(f"unet/{path.name}", variant):
            path.unlink()


# ---- ddpm_vlb/hub/push.py ----

r"""Pushes to the Hub, each in one commit."""




# Of a scheduler that is pushed by itself.
SCHEDULER_CARD = """---
library_name: diffusers
license: apache-2.0
tags:
- diffusers
- ddpm
---

# A DDPM scheduler

```python
from diffusers import {scheduler}

scheduler = {scheduler}.from_pretrained("{repository}")
```

With ddpm_vlb, `VLBDDPMScheduler.from_pretrained("{repository}")`.
"""


class HubError(OSError):
    r"""What the Hub, or the way to it, refused."""


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    report: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
    variant: str | None = None,
    commit_message: str | None = None,
    **options: Any,
) -> CommitInfo:
    r"""Push a saved pipeline with its card; see `push_files` for `options`, and for what is raised besides.

    Args:
        folder: of a saved pipeline.
        repository: `name` or `owner/name`.
        report: what the card is made from; `None` for one that says that nothing was scored.
        pictures: PNG files by their names, of those in `PICTURES`.
        variant: of the weights, where they are not the ones that are loaded by default.

    Raises:
        ValueError: a folder that is not a saved pipeline, or anything that is no `Report`: nothing is sent.
    """
    check_repository(repository)
    # What could be refused is, before the repository is made; the card waits for its full name.
    files, report = pipeline_files(folder), None if report is None else Report.of(report)
    return push_files(
        lambda name, there: repository_files(files, name, report, pictures),
        repository,
        commit_message=commit_message or "Upload VLBDDPMPipeline",
        remove=lambda name: is_stale(name, variant),
        **options,
    )


def push_files(
    files: Callable[[str, set[str]], dict[str, Path | bytes]],
    repository: str,
    *,
    commit_message: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    remove: Callable[[str], bool] = lambda name: False,
    space_sdk: str | None = None,
) -> CommitInfo:
    r"""Send files to a repository of the Hub in one commit; the repository and the branch are made where there are none.

    Args:
        files: the files by their names there, as paths or content, for the repository's full name and the files it has.
        repository: `name` or `owner/name`.
        private: whether the repository is private; `None` leaves it to the owner's default, and to what it is.
        revision: branch to commit to, or that the pull request is for; `main` by default.
        create_pr: open a pull request instead.
        token: in place of the one that is logged in.
        remove: which files that are there, and not among `files`, leave.
        space_sdk: "gradio", say, for a Space in place of a model.

    Raises:
        ValueError: a name that cannot be a repository, or `private` for one that exists and is public, or the other way round:
            nothing is sent.
        HubError: what the Hub or the network refused; among others a commit that somebody else made meanwhile.
    """
    repository = check_repository(repository)
    api = HfApi(token=token)
    kind: dict[str, Any] = {"repo_type": "model" if space_sdk is None else "space"}
    with _hub_errors(repository):
        repository = api.create_repo(repository, private=private, exist_ok=True, space_sdk=space_sdk, **kind).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repository, branch=revision, exist_ok=True, **kind)
        info = api.repo_info(repository, revision=revision, **kind)
    if private is not None and bool(info.private) != private:
        raise ValueError(f"`private` must be {bool(info.private)} for {repository!r}, which exists, got {private}.")
    with _hub_errors(repository):
        there = set(api.list_repo_files(repository, revision=info.sha, **kind))
    sent = files(repository, there)
    with _hub_errors(repository):
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else os.fspath(content))
            for name, content in sent.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(there - sent.keys()) if remove(name)]
        return api.create_commit(
            repository,
            operations,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
            **kind,
        )


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the client, of HTTP, of the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"`repository` must be one that can be pushed to, got {repository!r}: {reason}") from error


def push_scheduler(
    config: str, repository: str, *, config_name: str, subfolder: str | None = None, **options: Any
) -> CommitInfo:
    r"""Push a scheduler's configuration; see `push_files` for `options`.

    In a repository that holds more than that it is a change of the model: what was measured of it leaves, and a card that
    showed it is replaced by one without a number.
    """

    settings = json_config(json.loads(config))
    place = f"{subfolder.strip('/')}/{config_name}" if subfolder else config_name

    def files(name: str, there: set[str]) -> dict[str, Path | bytes]:
        sent: dict[str, Path | bytes] = {place: json_bytes(settings)}
        if there & {"report.json", *PICTURES}:
            sent["README.md"] = str(model_card(None, repository=name, settings=card_settings(settings))).encode()
        elif "README.md" not in there and not subfolder:
            sent["README.md"] = SCHEDULER_CARD.format(repository=name, scheduler=stock_name(settings)).encode()
        return sent

    return push_files(files, repository, remove=lambda name: name in ("report.json", *PICTURES), **options)


def check_repository(repository: Any) -> str:
    r"""A name that a repository can have.

    Raises:
        ValueError: any other.
    """
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ValueError(f"`repository` must be a name on the Hub, `owner/name`, got {repository!r}: {error}") from error
    return repository


# ---- ddpm_vlb/data/pictures.py ----

r"""A picture file, or the bytes of one, opened by the one rule of all readers.

A picture is what its file says: turned upright as its EXIF orientation asks, which cameras write in place of turning pixels,
and never brought to other levels unseen. What it is is looked at before any pixel is: the kind of file, the format, which is
one of a list (Pillow guesses formats by content, and starts Ghostscript for some), the number of frames and of pixels.
"""



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


# ---- ddpm_vlb/data/transforms.py ----

r"""Steps that change pictures before they are levels: to one colour, one size, one format. Taken only where they are asked for,
since they change the data, and with them its likelihood; a report says which.

The sizes are torchvision's: `Resize` and `CenterCrop` of a PIL image with the bilinear filter, as diffusers' training scripts
take them, to the last bit.
"""




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


# ---- ddpm_vlb/data/levels.py ----

r"""Images of any kind in, pixel levels out; everything that is not exactly on the grid is refused, never rounded.

A model's data live on `num_pixel_levels` grey levels; level k stands for the value 2 k / (num_pixel_levels - 1) - 1. What an
image says is taken literally: an integer is the level k itself, a float is a value on the grid. Bringing other images onto a
grid changes the data; `quantize` does it, as a step of its own.
"""




ARRAY_DTYPES = ("uint8", "uint16", "float32", "float64")
ITEMS_AT_HAND = 256  # of a Dataset of torch
PIL_MODES = {"L": np.uint8, "RGB": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I;16L": np.uint16}


def images_to_levels(
    images: Any,
    num_pixel_levels: int = 256,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    r"""The levels of images of any kind that `evaluate_nll` takes.

    Args:
        images: a tensor `(N, C, H, W)`; a numpy array `(N, H, W, C)` or, for grey images, `(N, H, W)`; a PIL image, the path of
            a picture, a tensor `(C, H, W)` or `(H, W)`, an array `(H, W, C)` or `(H, W)`, or a list of these; a
            `datasets.Dataset` with an image column; a set that `open_images` returns; a `torch.utils.data.Dataset` or a
            `DataLoader` that does not shuffle, of images, or of tuples or dictionaries with one image each. Integers (uint8,
            or uint16 where there are more than 256 levels) are levels, floats (float32 or float64) grid values.
        num_pixel_levels: number of levels of the grid.
        channels, size: the number of channels and the (height, width) that the images must have; `None` for any.

    Returns:
        Levels, shape `(N, C, H, W)`, uint8 up to 256 levels and int32 above.

    Raises:
        ValueError: anything that is not such images: off the grid, not finite, of another size, type or number of channels, or
            none at all.
    """
    check_num_pixel_levels(num_pixel_levels)
    if isinstance(images, (torch.utils.data.Dataset, torch.utils.data.DataLoader)) and not hasattr(images, "column_names"):
        some = [images_to_levels(batch, num_pixel_levels, channels=channels, size=size) for batch in _batches(images)]
        if not some:
            raise ValueError(f"`images` must not be empty, got no image from {type(images).__name__}.")
        return torch.cat(some)
    if hasattr(images, "num_pixel_levels") and hasattr(images, "__len__"):
        check_grid(images, num_pixel_levels)
        stored: Any = images
        images = [stored[index] for index in range(len(stored))]
    tensor = _as_tensor(images, channels, size)
    check_shape(tensor, channels, size)
    return _check_levels(tensor, num_pixel_levels)


def check_shape(tensor: torch.Tensor, channels: int | None, size: tuple[int, int] | None) -> None:
    r"""Raise `ValueError` unless a tensor is `(N, C, H, W)`, not empty, and of this many channels and (height, width)."""
    if tensor.ndim != 4:
        raise ValueError(f"`images` must have the shape (N, C, H, W), got {tuple(tensor.shape)}.")
    if tensor.numel() == 0:
        raise ValueError(f"`images` must not be empty, got the shape {tuple(tensor.shape)}.")
    if channels is not None and tensor.shape[1] != channels:
        hint = " Are the channels last? Then permute(0, 3, 1, 2)." if tensor.shape[3] == channels else ""
        raise ValueError(
            f"`images` must have {counted(channels, 'channel')}, got {tensor.shape[1]} (shape {tuple(tensor.shape)}).{hint}"
        )
    if size is not None and tuple(tensor.shape[2:]) != tuple(size):
        raise ValueError(f"`images` must be {size[0]} x {size[1]} pixels, got {tensor.shape[2]} x {tensor.shape[3]}.")


def check_grid(images: Any, num_pixel_levels: int) -> None:
    r"""Raise `ValueError` for a set of images with fewer levels than a model's grid: they would be taken for dark ones."""
    if images.num_pixel_levels < num_pixel_levels:
        raise ValueError(
            f"`images` must have the {num_pixel_levels} levels of the model's grid, got {images.num_pixel_levels} levels;"
            " `ddpm_vlb.data.quantize_images` brings them onto it."
        )


def _check_levels(tensor: torch.Tensor, num_pixel_levels: int) -> torch.Tensor:
    integer_dtype = torch.uint8 if num_pixel_levels <= 256 else torch.uint16
    level_dtype = torch.uint8 if num_pixel_levels <= 256 else torch.int32
    if tensor.dtype in (torch.float32, torch.float64):
        return samples_to_levels(tensor, num_pixel_levels, "images").to(level_dtype)
    if tensor.dtype != integer_dtype:
        raise ValueError(
            f"`images` must be {str(integer_dtype)[6:]} levels, float32 or float64 for a model of {num_pixel_levels} levels,"
            f" got dtype {str(tensor.dtype)[6:]}."
        )
    levels = tensor.to(torch.int32)
    highest = int(levels.max())
    if highest >= num_pixel_levels:
        raise ValueError(
            f"`images` must hold levels below num_pixel_levels = {num_pixel_levels}, got {highest}."
            " (`ddpm_vlb.data.quantize` brings images onto a coarser grid.)"
        )
    return levels.to(level_dtype)


def _as_tensor(images: Any, channels: int | None, size: tuple[int, int] | None) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        if images.layout != torch.strided or images.is_meta:
            raise ValueError(f"`images` must be a dense tensor with values, got layout {images.layout} on {images.device}.")
        return _with_batch(images.detach(), channels)
    if isinstance(images, np.ndarray):
        return array_to_tensor(images[None] if _is_one(images, channels, size) else images, channels)
    if isinstance(images, (Image.Image, str, Path)):
        images = [images]
    elif hasattr(images, "features") and hasattr(images, "column_names"):
        rows, read = stored_pictures(images)
        images = [read(row, f"image {index}") for index, row in enumerate(rows)]
    if not isinstance(images, Sequence) or isinstance(images, bytes):
        raise ValueError(
            "`images` must be a tensor, an array, PIL images, paths of pictures, what `open_images` returns, a DataLoader or"
            f" Dataset of torch, or a `datasets.Dataset` with an image column, got {type(images).__name__}."
        )
    tensors = [_one_as_tensor(image, index, channels) for index, image in enumerate(images)]
    if not tensors:
        raise ValueError("`images` must not be empty, got no image.")
    for index, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype):
            raise ValueError(
                f"`images` must all have one size, number of channels and dtype: image 0 has {_describe(tensors[0])},"
                f" image {index} has {_describe(tensor)}."
            )
    return torch.stack(tensors)


def _with_batch(tensor: torch.Tensor, channels: int | None) -> torch.Tensor:
    r"""A tensor of one image, `(C, H, W)` or grey `(H, W)`, or of grey ones, `(N, H, W)`, as `(N, C, H, W)`; what could be
    either is left as it is, and refused."""
    if tensor.ndim == 2 and channels in (None, 1):
        return tensor[None, None]
    if tensor.ndim == 3 and channels is not None and tensor.shape[0] == channels:
        return tensor[None]
    return tensor[:, None] if tensor.ndim == 3 and channels == 1 else tensor


def _is_one(array: np.ndarray, channels: int | None, size: tuple[int, int] | None) -> bool:
    r"""Whether an array is one image, `(H, W)`, `(H, W, C)` or `(C, H, W)`; of three axes it may be grey ones, `(N, H, W)`."""
    if array.ndim != 3 or channels is None:
        return array.ndim == 2
    if channels == 1:
        return size is not None and array.shape == (*size, 1) and array.shape[1:] != size
    return channels in (array.shape[0], array.shape[2])


def _batches(data: Any) -> Iterator[Any]:
    r"""The images of a Dataset or DataLoader of torch, some at a time."""
    if isinstance(data, torch.utils.data.DataLoader):
        if isinstance(data.sampler, torch.utils.data.RandomSampler):
            raise ValueError("`images` must have an order, got a DataLoader that shuffles; its `dataset` has one.")
        yield from map(_images_of, data)
        return
    # Not all of them stop by themselves where they end.
    items = iter(data) if not hasattr(data, "__len__") else (data[index] for index in range(len(data)))
    while some := [_images_of(item) for item in islice(items, ITEMS_AT_HAND)]:
        yield some


def _images_of(item: Any) -> Any:
    r"""The image, or the batch of images, of what a Dataset or DataLoader gives: itself, or the only one among its values."""
    if _is_image(item) or isinstance(item, list) and item and all(isinstance(one, Image.Image) for one in item):
        return item
    values = list(item.values()) if isinstance(item, Mapping) else list(item) if isinstance(item, (tuple, list)) else []
    images = [value for value in values if _is_image(value)]
    if len(images) != 1:
        what = f"{len(images)} of them in a {type(item).__name__}" if values else type(item).__name__
        raise ValueError(f"`images` must give images, or tuples or dictionaries with one image each, got {what}.")
    return images[0]


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 1


def _describe(tensor: torch.Tensor) -> str:
    return f"the shape {tuple(tensor.shape)} and dtype {str(tensor.dtype)[6:]}"


def _one_as_tensor(image: Any, index: int, channels: int | None) -> torch.Tensor:
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file() or path.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(
                f"`images` must be paths of pictures ({', '.join(PICTURE_SUFFIXES)}), got {str(image)!r}."
                " (`ddpm_vlb.load_images` reads other files, folders, and data sets of the Hub.)"
            )
        image = open_picture(path, str(image))
    if isinstance(image, Image.Image):
        return array_to_tensor(pil_to_array(image, f"image {index}")[None], None)[0]
    if isinstance(image, np.ndarray):
        return array_to_tensor(image[None], channels)[0]
    if isinstance(image, torch.Tensor):
        return image.detach()[None] if image.ndim == 2 else image.detach()
    raise ValueError(f"`images` must hold tensors, arrays, PIL images or paths, got {type(image).__name__} at index {index}.")


def array_to_tensor(array: np.ndarray, channels: int | None) -> torch.Tensor:
    r"""Arrays `(N, H, W, C)` or `(N, H, W)` as a tensor `(N, C, H, W)`."""
    if array.dtype.name not in ARRAY_DTYPES or isinstance(array, np.ma.MaskedArray):
        what = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"dtype {array.dtype}"
        raise ValueError(f"`images` must be plain arrays of dtype {', '.join(ARRAY_DTYPES)}, got {what}.")
    if array.ndim == 3 and channels not in (None, 1):
        raise ValueError(f"`images` must be an array of shape (N, H, W, {channels}), got {array.shape}.")
    if array.ndim == 3:
        array = array[..., None]
    # Arrays keep channels last, as everywhere in diffusers; channels first is taken only where nothing else can be meant.
    channels_last = array.ndim == 4 and (channels is None or array.shape[3] == channels or array.shape[1] != channels)
    if channels_last:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def pil_to_array(picture: Image.Image, name: str = "image", transform: Transform | None = None) -> np.ndarray:
    r"""The pixels of a PIL image as they are, `(H, W)` or `(H, W, 3)`, uint8 or uint16; upright, as its EXIF orientation says.

    Args:
        picture: the image.
        name: of it, for refusals.
        transform: what is done to it first.

    Raises:
        ValueError: a mode other than 8-bit grey, 8-bit RGB or 16-bit grey: transparency, palettes and the like have no levels.
    """
    check_as_stored(picture, name)
    picture = upright(picture)
    if transform is not None:
        picture = transform(picture, name)
    if picture.mode not in PIL_MODES:
        raise ValueError(
            f"`images` must be PIL images of mode L, RGB or I;16, got mode {picture.mode} ({name}); convert it yourself,"
            " since what becomes of transparency or of a palette is a choice."
        )
    return np.asarray(picture).astype(PIL_MODES[picture.mode])


def image_column(dataset: Any, column: str | None = None) -> str:
    r"""The image column of a `datasets.Dataset`: the one that was asked for, or the only one.

    Raises:
        ValueError: none, or more than one of which none was asked for.
    """
    features = dataset.features or {}
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if column is not None and column not in columns:
        raise ValueError(
            f"`image_column` must be a column of images, got {column!r} for {list(features)} with images in {columns}."
        )
    if column is None and len(columns) != 1:
        raise ValueError(f"`images` must have one image column, got the columns {list(features)} with images in {columns}.")
    return column or columns[0]


def stored_pictures(dataset: Any, column: str | None = None) -> tuple[Any, Callable[[Any, str], Image.Image]]:
    r"""The rows of a data set of the `datasets` library, its pictures as they are stored, and what opens a row's by our rule.

    Args:
        dataset: a `datasets.Dataset` or `datasets.IterableDataset`.
        column: of its images, where it has several.

    Returns:
        The rows, and a function of a row and its name.

    Raises:
        ValueError: as `image_column`.
    """
    column = image_column(dataset, column)
    feature = dataset.features[column]
    # Whatever format they would be handed out in, and nothing of the other columns.
    rows = dataset.with_format(None).select_columns([column]).cast_column(column, type(feature)(decode=False))
    return rows, partial(_open_row, column, feature.mode)


def _open_row(column: str, mode: str | None, row: Any, name: str) -> Image.Image:
    return open_stored(row[column], name, mode)


# ---- ddpm_vlb/model/preconditioned.py ----

r"""A network of another noise process, asked about a DDPM's latents: see `noise_processes.py`."""





class PreconditionedNetwork(Network):
    r"""What a network of another process amounts to: a network that predicts the image, from a DDPM's latents and timesteps.

    Args:
        network: as it was trained.
        process: for which.
        config: of the scheduler that it was trained with.
        log_sigmas: :math:`\ln\sigma` of the DDPM's T timesteps, float64 `(T,)`. Between them it is a straight line.
    """

    def __init__(self, network: Network, process: NoiseProcess, config: Mapping[str, Any], log_sigmas: torch.Tensor):
        super().__init__(network.module, network._device)
        self._network, self._process, self._config, self._log_sigmas = network, process, config, log_sigmas
        self.channels, self.size, self.out_channels = network.channels, network.size, network.out_channels
        self.num_classes, self.conditions = network.num_classes, network.conditions
        self.takes_fractions, self.why_no_fractions = network.takes_fractions, network.why_no_fractions

    def with_module(self, module: torch.nn.Module) -> Network:
        r"""As `Network.with_module`."""
        network = type(self)(self._network.with_module(module), self._process, self._config, self._log_sigmas)
        network.halves, network.most = self.halves, self.most
        return network

    def preconditioning(self, timesteps: torch.Tensor) -> Preconditioning:
        r"""How the network is asked at timesteps of any shape, fractions too."""
        table = self._log_sigmas.to(timesteps.device, working_dtype(timesteps.device))
        lower = timesteps.floor().long().clamp(0, max(len(table) - 2, 0))
        upper = (lower + 1).clamp(max=len(table) - 1)
        log_sigma = torch.lerp(table[lower], table[upper], timesteps.to(table.dtype) - lower)
        return self._process.precondition(log_sigma.exp(), self._config)

    def answer(self, noisy_samples: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        r"""The predicted image in the dtype of `noisy_samples`; arguments as `Network.answer`."""
        how = self.preconditioning(timesteps)
        shape = (-1, 1, 1, 1) if timesteps.ndim else ()
        scale, skip, out = (number.reshape(shape) for number in (how.scale, how.skip, how.out))
        asked = (scale * noisy_samples + how.shift).to(self.dtype)
        # Times between integers are no longer right in half precision.
        times = how.noise.to(torch.promote_types(self.dtype, torch.float32))
        with self.mixed_precision():
            output = self.checked(self._network.output(asked, times, class_labels))
        image = skip * noisy_samples + out * output.to(noisy_samples.dtype)
        return image.to(noisy_samples.dtype)

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""As `Network.check`."""
        if not self._network.takes_fractions:
            raise ValueError(
                f"`unet` must take fractions of a timestep for {self._process.name} networks, got"
                f" {self._network.why_no_fractions}."
            )
        asked = self.preconditioning(torch.tensor([float(step) for step in timesteps])).noise.tolist()
        self._network.check(asked, size)


def preconditioned(network: Network, scheduler: Any) -> Network:
    r"""The network as scoring with this scheduler sees it: itself for a DDPM's."""
    config = getattr(scheduler, "config", {}).get("noise_process")
    if config is None or isinstance(network, PreconditionedNetwork):
        return network
    process = process_named(config.get("_class_name"))
    if process is None:
        raise ValueError(f"`noise_process` must be of a known scheduler, got {config.get('_class_name')!r}.")
    forward = scheduler.forward_process()
    log_sigmas = 0.5 * (forward.log_one_minus_alphas_cumprod - forward.log_alphas_cumprod)
    return PreconditionedNetwork(network, process, config, log_sigmas)


# ---- ddpm_vlb/model/scorer.py ----

r"""A network and the process that is scored: terms of the bound for any images at any timesteps.

Both ways to score images are made of it: the full sweep, every image at every step, and the sampled evaluation
(`sampled_bound/`). A batch mixes images and timesteps freely.
"""




# What a report says of the forward process.
SCHEDULE_NAMES = ("beta_schedule", "trained_betas", "beta_start", "beta_end", "rescale_betas_zero_snr")


@dataclass(frozen=True)
class Scorer:
    r"""What is scored.

    Args:
        network: what is asked.
        reverse: the reverse process.
        num_pixel_levels: levels of the images' grid.
        num_inference_steps: as it was asked for, `None` where a grid was named, or nothing.
        on_subsequence: whether it was one of the two.
        overridden: the settings of the scheduler that were.
        schedule: what a report says of the forward process, and the calibration, by their names there.
    """

    network: Network
    reverse: ReverseProcess
    num_pixel_levels: int
    num_inference_steps: int | None = None
    on_subsequence: bool = False
    overridden: tuple[str, ...] = ()
    schedule: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        r"""Where the network computes."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        r"""In which the network computes."""
        return self.network.arithmetic

    @property
    def timesteps(self) -> list[int]:
        r"""The grid that is scored, ascending."""
        return self.reverse.forward.timesteps.tolist()

    def describe(self) -> dict[str, Any]:
        r"""What a report says of the model that is scored."""
        reverse, forward, schedule = self.reverse, self.reverse.forward, self.schedule
        steps = self.num_inference_steps
        return {
            "num_train_timesteps": forward.num_train_timesteps,
            "num_steps": len(forward),
            "num_inference_steps": None if steps is None else int(steps),
            "inference_timesteps": forward.timesteps.flip(0).tolist() if self.on_subsequence else None,
            **{name: schedule.get(name) for name in SCHEDULE_NAMES},
            "prediction_type": reverse.prediction_type,
            "variance_type": reverse.variance_type,
            "decoder_variance": decoder_rule(reverse.variance_type, len(forward), reverse.error_model is not None),
            "noise_process": schedule.get("noise_process"),
            "scheduler": schedule.get("scheduler"),
            "condition_sha256": self.network.condition_sha256,
            "prompt": self.network.prompt,
            "calibration": schedule.get("calibration"),
            "clip_sample": bool(reverse.clip_sample),
            "clip_sample_range": reverse.clip_sample_range,
            "thresholding": bool(reverse.thresholding),
            "dynamic_thresholding_ratio": reverse.dynamic_thresholding_ratio,
            "sample_max_value": reverse.sample_max_value,
            "num_pixel_levels": self.num_pixel_levels,
            "dtype": self.network.precision,
            "device": self.device.type,
            "timestep_spacing": schedule.get("timestep_spacing"),
            "num_class_embeds": self.network.num_classes,
            "versions": {
                "ddpm_vlb": __version__,
                "diffusers": diffusers.__version__,
                "torch": str(torch.__version__),  # a class of its own
                "python": platform.python_version(),
            },
        }

    def config(self, **more: Any) -> dict[str, Any]:
        r"""`describe`, with what was overridden, which network it is, and more."""
        return self.describe() | {"overridden": list(self.overridden), "network_sha256": self.network.sha256(), **more}

    def read(self, images: Any, class_labels: Any = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""Levels `(N, C, H, W)` and classes `(N,)` of images of any kind; `ValueError` where they do not fit the model."""
        levels = images_to_levels(images, self.num_pixel_levels, channels=self.network.channels, size=self.network.size)
        self.network.check((), levels.shape[2:])
        return levels, self.network.check_class_labels(class_labels, len(levels))

    def samples(self, levels: torch.Tensor) -> torch.Tensor:
        r"""Levels as images in [-1, 1] on the device, in the working dtype."""
        return levels_to_samples(to_device(levels, self.device), self.num_pixel_levels, working_dtype(self.device))

    def prior(self, samples: torch.Tensor) -> torch.Tensor:
        r""":math:`L_T` in nats, `(B,)`, on the device."""
        return prior_kl(self.reverse.forward, samples)

    def terms(
        self,
        samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: int | torch.Tensor | Rows,
        class_labels: torch.Tensor | None = None,
        on_device: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""Terms of the bound: the decoder's at the lowest timestep of the grid, KLs above.

        Args:
            samples: images on the grid, `(B, C, H, W)`, on the device.
            noise: standard normal, of the same shape, on the CPU or the device.
            timesteps: one for all, or one each, `(B,)`, on the CPU, looked up or not.
            class_labels: of a class-conditional network, `(B,)`.
            on_device: the same timesteps on the device, where they are there already.

        Returns:
            Nats, `(B,)`, on the device; NaN where the network's output is not finite.
        """
        timesteps = self.reverse.forward.look_up(timesteps, len(samples))
        noisy_samples, model_output = self._ask(samples, noise, timesteps, class_labels, on_device)
        # The levels were checked once, on the CPU.
        return vlb_terms(
            self.reverse, model_output, samples, noisy_samples, timesteps, self.num_pixel_levels, validate_args=False
        )

    def squared_errors(
        self,
        samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: int | torch.Tensor | Rows,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r""":math:`\|\epsilon - \hat\epsilon(x_t)\|^2` summed over the pixels, `(B,)`, by what the network says of the image,
        after clipping; arguments as `terms`."""
        timesteps = self.reverse.forward.look_up(timesteps, len(samples))
        noisy_samples, model_output = self._ask(samples, noise, timesteps, class_labels)
        predicted, _ = self.reverse.predict(model_output, noisy_samples, timesteps)
        # The noise that is in x_t for an image has its error, times sqrt(SNR).
        forward = self.reverse.forward
        snr = forward.snr[forward.rows(timesteps, len(samples))].to(samples.device)
        return (samples - predicted).square().flatten(1).sum(dim=1) * snr

    def _ask(self, samples, noise, timesteps, class_labels, on_device=None) -> tuple[torch.Tensor, torch.Tensor]:
        r""":math:`x_t` and what the network says of it."""
        noisy_samples = self.reverse.forward.q_sample(samples, to_device(noise, self.device), timesteps)
        if on_device is None:
            on_device = timesteps.timesteps if isinstance(timesteps, Rows) else timesteps
        # What is not finite is seen to where the output is read.
        return noisy_samples, self.network.ask(noisy_samples, on_device, class_labels)


def make_scorer(
    network: Network,
    scheduler: Any,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    clip_sample: bool | None = None,
    thresholding: bool | None = None,
    calibrated: bool = True,
) -> Scorer:
    r"""The scorer of a network under a scheduler's configuration.

    Args:
        network: what is asked.
        scheduler: a `VLBDDPMScheduler`.
        num_inference_steps, inference_timesteps, clip_sample, thresholding: as `VLBDDPMPipeline.evaluate_nll`.
        calibrated: `False` leaves a calibration aside.

    Raises:
        ValueError: a model that cannot be scored; another network's calibration.
    """
    if not hasattr(scheduler, "reverse_process"):
        raise ValueError(f"`scheduler` must be a VLBDDPMScheduler for a model to be scored, got {type(scheduler).__name__}.")
    if calibrated:
        check_calibration(scheduler, network)
    num_inference_steps = default_steps(scheduler, num_inference_steps, inference_timesteps, calibrated)
    on_subsequence = num_inference_steps is not None or inference_timesteps is not None
    if num_inference_steps is not None:
        inference_timesteps = scheduler.inference_grid(num_inference_steps)
    config = scheduler.config
    check_num_pixel_levels(config.num_pixel_levels)
    reverse = scheduler.reverse_process(
        inference_timesteps, clip_sample=clip_sample, thresholding=thresholding, calibrated=calibrated
    )
    network = preconditioned(network, scheduler)
    network.check_devices()
    network.check_out_channels(reverse.learns_variance, reverse.variance_type)
    network.check(reverse.forward.timesteps.tolist(), network.size)
    betas = config.trained_betas
    on_line = are_of_line(config)
    betas = None if on_line else betas
    named = "log_snr_line" if on_line else config.beta_schedule
    schedule = {
        "beta_schedule": "trained_betas" if betas is not None else named,
        "trained_betas": None if betas is None else [float(b) for b in betas],
        **{name: config[name] for name in ("beta_start", "beta_end", "timestep_spacing")},
        "rescale_betas_zero_snr": bool(config.rescale_betas_zero_snr),
        "calibration": None if reverse.error_model is None else scheduler.calibration.description,
        "noise_process": describe_process(config.get("noise_process")),
        "scheduler": stock_classes(config)[1],
    }
    overridden = tuple(n for n, x in (("clip_sample", clip_sample), ("thresholding", thresholding)) if x is not None)
    return Scorer(network, reverse, config.num_pixel_levels, num_inference_steps, on_subsequence, overridden, schedule)


def default_steps(
    scheduler: Any, num_inference_steps: int | None, inference_timesteps: Sequence[int] | None, calibrated: bool = True
) -> int | None:
    r"""The number of steps that was asked for, by default the calibration's best; `ValueError` beside a grid."""
    if num_inference_steps is not None and inference_timesteps is not None:
        raise ValueError("Only one of `num_inference_steps` and `inference_timesteps` may be given, got both.")
    calibration = calibration_of(scheduler) if calibrated else None
    if calibration is None or num_inference_steps is not None or inference_timesteps is not None:
        return num_inference_steps
    return calibration.num_inference_steps


def calibration_of(scheduler: Any) -> Any:
    r"""The calibration that a scheduler samples by; another than ours may hold one in its configuration, and knows it not."""
    return scheduler.calibration if hasattr(type(scheduler), "calibration") else None


def scheduler_of_run(scheduler: Any, num_inference_steps: int | None, inference_timesteps: Sequence[int] | None) -> Any:
    r"""A copy of a scheduler for one sampling run, set to its grid: what other threads do with the scheduler does not reach it.
    The scheduler itself shows the last grid, as diffusers' do.

    Args:
        scheduler: any of diffusers'.
        num_inference_steps, inference_timesteps: as `VLBDDPMPipeline.__call__`.

    Raises:
        ValueError: a grid outside the scheduler's, or from zero SNR with a prediction that needs some signal.
    """
    num_inference_steps = default_steps(scheduler, num_inference_steps, inference_timesteps)
    if inference_timesteps is not None:
        grid: dict[str, Any] = {"timesteps": inference_timesteps}
    else:
        default = min(1000, scheduler.config.num_train_timesteps)
        grid = {"num_inference_steps": default if num_inference_steps is None else num_inference_steps}
    own = copy.copy(scheduler)
    own.set_timesteps(**grid)
    prediction, highest = PREDICTIONS.get(own.config.prediction_type), int(own.timesteps.max())
    if prediction is not None:
        # Clipping would make images of an infinite prediction.
        prediction.check_signal(own.alphas_cumprod[highest].item(), highest)
    scheduler.set_timesteps(**grid)
    return own


def check_calibration(scheduler: Any, network: Network) -> None:
    r"""Raise `ValueError` for a calibration of another network."""
    calibration = calibration_of(scheduler)
    if calibration is not None and calibration.config.get("architecture_sha256") != network.architecture_sha256:
        raise ValueError(
            f"`calibration` must be of a network like this one, got one on {calibration.description}, of another"
            " architecture. Calibrate anew, or leave it out with `from_config(..., calibration=None)`."
        )


# ---- ddpm_vlb/sampled_bound/draws.py ----

r"""What the estimator asks for and what it answers."""



# Of what is drawn: a journal with the values of other draws is of no use.
DRAWS_VERSION = 2


class Draws(NamedTuple):
    r"""Evaluations to make, arrays of one shape: positions of images, rows of the grid, keys of the noise."""

    images: np.ndarray
    rows: np.ndarray
    keys: np.ndarray


class Number(NamedTuple):
    r"""An estimate in bits/dim and its error."""

    bits_per_dim: float
    monte_carlo_error: float
    degrees_of_freedom: float


# From the values and features of the first so many draws, the estimate so far: for a progress bar.
Preview = Callable[[torch.Tensor, torch.Tensor], Number | None]
# What evaluates draws, flattened: values in bits/dim `(n,)` and features of the noise `(n, Q)`, both float64.
Evaluate = Callable[[Draws, Preview], tuple[torch.Tensor, torch.Tensor]]


class Bin(NamedTuple):
    r"""The estimate for the rows from `first` to `last` of the grid, summed over them, in bits/dim."""

    first: int
    last: int
    bits_per_dim: float
    monte_carlo_error: float
    num_evaluations: int


@dataclass(frozen=True)
class BoundEstimate:
    r"""An unbiased estimate of the bound of N images, in bits/dim.

    Args:
        bits_per_dim: of the data set; `prior` plus the sum over `bins`, the first of which is the decoder.
        prior: the mean of :math:`L_T`, exact.
        bins: the estimates for groups of timesteps.
        monte_carlo_error: standard error given these images.
        data_error: standard error of the images themselves as a sample of more such images; `None` for a single image.
        degrees_of_freedom: of `monte_carlo_error`.
        terms, term_evaluations: of each row of the grid, `(K,)`, the estimate and the evaluations that it rests on beside the
            control variate, NaN where there is none.
        per_image, per_image_decoder, per_image_error: each image's estimate, the decoder's part of it, and its own standard
            error, `(N,)`, where every image was evaluated alike; else `None`.
        per_image_degrees_of_freedom: of `per_image_error`, `(N,)`, or `None`.
        num_evaluations: network evaluations.
        num_pilot_evaluations: those among them that the estimate does not rest on, having only taught where to evaluate.
        num_rounds: rounds of sampling after the pilot.
        doubt: why `monte_carlo_error` cannot be trusted (`tails.py`), `None` where nothing speaks against it.
    """

    bits_per_dim: float
    prior: float
    bins: list[Bin]
    monte_carlo_error: float
    data_error: float | None
    degrees_of_freedom: float
    terms: torch.Tensor
    term_evaluations: torch.Tensor
    per_image: torch.Tensor | None
    per_image_decoder: torch.Tensor | None
    per_image_error: torch.Tensor | None
    per_image_degrees_of_freedom: torch.Tensor | None
    num_evaluations: int
    num_pilot_evaluations: int
    num_rounds: int
    doubt: str | None


# ---- ddpm_vlb/sampled_bound/design.py ----

r"""Where to evaluate, and what is known before: bins, the control variate, the probabilities of the rows, the draws."""




FLOOR = 0.1  # of the probability goes to all bins alike
RIDGE = 3.0
KERNEL = 1.5  # bins
LONG = 4.0
MAX_LONG = 32
OUTLIER = 20.0  # times the median of a bin


def bin_edges(num_steps: int, row_sizes: np.ndarray | None = None) -> np.ndarray:
    r"""Rows of the grid in bins: the decoder alone, then ever wider up to a twelfth of all. Edges, from 0 to `num_steps`.

    A draw stands for all rows of its bin. One that may well carry most of a bin, and that few of the draws would meet, is a bin
    of its own: a row that is `LONG` times as large as its bin's other rows on average, by `row_sizes`, `(num_steps,)`; the
    `MAX_LONG` largest of these.
    """
    edges = [0]
    while edges[-1] < num_steps:
        width = min(max(1, round(0.3 * edges[-1])), max(1, math.ceil(num_steps / 12)))
        edges.append(min(num_steps, edges[-1] + width))
    return np.array(edges) if row_sizes is None else split_long(np.array(edges), row_sizes)


def split_long(edges: np.ndarray, row_sizes: np.ndarray, times: float = LONG) -> np.ndarray:
    r"""Edges between which no row is so many times as large as the others on average, but for the `MAX_LONG` largest."""
    long: list[int] = []
    for first, last in zip(edges.tolist(), edges[1:].tolist()):
        rows = sorted(range(first, last), key=lambda row: -row_sizes[row])
        left = float(row_sizes[first:last].sum())
        for place, row in enumerate(rows[:-1]):
            left -= row_sizes[row]
            if row_sizes[row] * (len(rows) - place - 1) <= times * left:
                break
            long.append(row)
    long = sorted(long, key=lambda row: -row_sizes[row])[:MAX_LONG]
    return np.unique([*edges, *long, *(row + 1 for row in long)])


def standardize(features: torch.Tensor) -> torch.Tensor:
    r"""Columns `(N, P)` of mean 0 and standard deviation 1, the first of ones; those that do not vary are zero."""
    rest = features[:, 1:].double()
    spread = rest.std(dim=0, unbiased=False)
    rest = torch.where(spread > 1e-12, (rest - rest.mean(dim=0)) / spread.clamp(min=1e-12), 0.0)
    return torch.cat([torch.ones(len(features), 1, dtype=torch.float64), rest], dim=1)


class Shape(NamedTuple):
    r"""How many images a round draws, in how many strata, and how often in each."""

    images: int
    strata: int
    draws: int  # 1 or 2

    @property
    def evaluations(self) -> int:
        r"""Draws in all."""
        return self.images * self.strata * self.draws


class Design:
    r"""The probability of each row and the control variate, which no draw that is weighted by them has taken part in choosing.

    Args:
        probabilities: of the rows, `(K,)`, positive, of sum 1.
        coefficients: for each row, of an image's features and then of the noise's, `(K, P + Q)`.
        num_image_features: P.
    """

    def __init__(self, probabilities: torch.Tensor, coefficients: torch.Tensor, num_image_features: int):
        self.probabilities, self.coefficients, self.num_image_features = probabilities, coefficients, num_image_features

    @property
    def known(self) -> torch.Tensor:
        r""":math:`b_t`, so that an image's :math:`\phi^\top b_t` is what is known of each of its terms, `(K, P)`."""
        return self.coefficients[:, : self.num_image_features]

    def draw(self, ids: np.ndarray, frame: np.ndarray, key: int, shape: Shape, paired: bool) -> Draws:
        r"""Draws for some images, `(images, strata, draws)`.

        The quantiles of the probabilities are cut into strata, in each of which every image is drawn alike. With `paired`, a
        stratum is cut further, into as many cells as there are draws of a pair of images: a pair has cells of its own, each of
        which both visit.
        """
        chosen = order_of(ids, frame, key, shape.images)
        images, strata, draws = shape
        keys = mix_array(mix_array(mix(key, 1), ids[chosen])[:, None], np.arange(strata * draws)[None])
        inside = uniform_array(mix_array(keys, 1)).reshape(shape)
        if paired:
            pairs = (images + 1) // 2
            order = mix_array(mix_array(mix(key, 2), np.arange(strata))[:, None], np.arange(pairs * draws)[None])
            cells = order.argsort(axis=1).reshape(strata, pairs, draws).transpose(1, 0, 2).repeat(2, axis=0)[:images]
            inside = (cells + inside) / (pairs * draws)
        quantiles = (np.arange(strata)[:, None] + inside) / strata
        upper = self.probabilities.cumsum(dim=0).numpy()
        rows = np.searchsorted(upper / upper[-1], quantiles, side="right").clip(max=len(upper) - 1)
        return Draws(np.repeat(chosen, strata * draws).reshape(shape), rows, mix_array(keys, 2).reshape(shape))

    def left_over(self, rows: np.ndarray, values: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        r""":math:`\ell_t - m_t` of draws at `rows`, for features of images and noise side by side."""
        return values - (features * self.coefficients[torch.as_tensor(rows)]).sum(dim=-1)

    def weigh(self, rows: np.ndarray, left_over: torch.Tensor) -> torch.Tensor:
        r""":math:`y = (\ell_t - m_t) / p_t`."""
        return left_over / self.probabilities[torch.as_tensor(rows)]


def first_probabilities(edges: np.ndarray) -> torch.Tensor:
    r"""Of the rows, before anything is evaluated: all bins alike, `(K,)`."""
    widths = np.diff(edges)
    return torch.as_tensor(np.repeat(1 / (len(widths) * widths), widths))


def fit(
    edges: np.ndarray, rows: torch.Tensor, values: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""What evaluations say: coefficients of the rows `(K, P + Q)`, and the standard deviation of what is left at them `(K,)`.

    Args:
        edges: of the bins, whose rows are taken for alike.
        rows: of the evaluations, `(n,)`.
        values: in bits/dim, `(n,)`.
        features: of image and noise, `(n, P + Q)`, the first a constant 1.
    """
    # In NumPy, whose calls are the cheaper ones: there are a few hundred numbers.
    widths = np.diff(edges)
    count = len(widths)
    bin_of_row = np.arange(count).repeat(widths)
    y, phi = values.numpy(), features.numpy()
    bins = bin_of_row[rows.numpy()]
    # By bins and, for their medians, by size.
    order = np.lexsort((np.abs(y), bins))
    bins, y, phi = bins[order], y[order], phi[order]
    counts = np.bincount(bins, minlength=count)
    met, first = counts > 0, counts.cumsum() - counts
    distance, kernel, smooth = _neighbours(count)

    def summed(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((count, *values.shape[1:]))
        sums[met] = np.add.reduceat(values, first[met])
        return sums

    # One image unlike all others, met in one bin, would draw all evaluations there.
    middle = first + (counts - 1).clip(min=0) // 2
    limits = OUTLIER * np.abs(y)[middle.clip(max=len(y) - 1)]
    limits = np.where(limits > 0, limits, math.inf)[bins]
    y = y.clip(-limits, limits)
    seen = counts.clip(min=1.0)
    # Terms differ by orders of magnitude from bin to bin, their relation to the features does not: each bin learns from its
    # neighbours, in units of its own size. One that was never met is as large as the nearest that was.
    nearest = np.where(met, distance, math.inf).argmin(axis=1)
    scale = np.sqrt(summed(y * y) / seen)[nearest].clip(min=1e-300)
    y = y / scale[bins]
    y_means, phi_means = summed(y) / seen, summed(phi) / seen[:, None]
    y, centred = y - y_means[bins], phi - phi_means[bins]
    grams = np.stack([part.T @ part for part in np.split(centred, first[1:])])
    gram = np.tensordot(kernel, grams, axes=1) + RIDGE * np.eye(phi.shape[1])
    moment = kernel @ summed(centred * y[:, None])
    coefficients = np.linalg.solve(gram, moment[:, :, None])[:, :, 0]
    residuals = y - (centred * coefficients[bins]).sum(axis=1)
    # The intercepts, for the constant feature, which its own mean has taken out of the fit.
    y_means, phi_means = y_means[nearest], phi_means[nearest]
    coefficients[:, 0] = y_means - (phi_means[:, 1:] * coefficients[:, 1:]).sum(axis=1)
    fitted = (phi.shape[1] - 1) * counts / (kernel @ counts).clip(min=1.0)
    freedom = smooth @ (counts - 1 - fitted).clip(min=0.0)
    variance = (smooth @ summed(residuals * residuals)) / freedom.clip(min=1.0)
    spread = np.sqrt(variance) * scale
    return torch.from_numpy((coefficients * scale[:, None])[bin_of_row]), torch.from_numpy(spread[bin_of_row])


@lru_cache
def _neighbours(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Of bins: how far they are apart, and what each learns from the others of the features and of their spread."""
    index = np.arange(float(count))
    distance = np.abs(index[:, None] - index)
    return distance, np.exp(-0.5 * (distance / KERNEL) ** 2), np.exp(-0.5 * distance**2)


def best_probabilities(edges: np.ndarray, spread: torch.Tensor) -> torch.Tensor:
    r"""Neyman's allocation for rows of the standard deviation `spread`, mixed with a floor for every bin."""
    floor = first_probabilities(edges)
    total = spread.sum()
    return FLOOR * floor + (1 - FLOOR) * (spread / total if total > 0 else floor)


# ---- ddpm_vlb/sampled_bound/elimination.py ----

r"""Which of C classes has the smallest bound: paired draws, and classes dropped one after the other.

For an image and a class c the bound is :math:`L(c) = \sum_t L_t(c)` but for a term that all classes share. A draw is a row t of
probability :math:`q_t` and a noise, the same for all classes of the image, and :math:`v_c = L_t(c) / q_t` has the mean L(c).
What decides are differences :math:`d = v_c - v_l - \log(\pi_c / \pi_l)` to the leader l, which share their noise.

**Where to draw.** The variance of d at a given number of draws is smallest at :math:`q_t \propto \sqrt{E\, d_t^2}`. A pilot of
some images sees one row of each bin for all classes; of each of its pairs (best class, another) what counts is the variance
beside the squared mean, so that pairs are summed by their squares in units of it. Rows of a bin are alike. The rows of an image
are a golden-ratio sequence with a random start: each draw has the distribution q, and any number of them are spread evenly.

**How draws vary.** How d changes from row to row averages out over evenly spread rows. What is left is how draws differ from
their neighbours on the time axis (von Neumann 1941; the usual variance of a systematic sample),

.. math:: s_n^2 = \frac{1}{2 (n - 1)} \sum_i (d_{(i + 1)} - d_{(i)})^2, \qquad \nu_n = \frac{2 (n - 1)^2}{3 n - 4} ,

in the order of the rows, with the degrees of freedom of normal draws. Of the variance between rows itself n draws keep at most
:math:`1 / (n \sin^2 \pi g)`, g the golden ratio, where it is a wave over the time axis, and about 3 / n where it is a straight
line; what jumps up and down from row to row, in step with g, nobody sees.

**When to drop.** After n draws class c leaves where the mean of d is above :math:`t_{1 - \alpha_k}(\nu)\, s / \sqrt n`. Two
draws say little of s; the pilot says more: over its pairs :math:`\log s_0^2`, rows included, is about a straight line in the
logarithm of the mean, with a residual like that of :math:`\nu_0` degrees of freedom (the pilot's own :math:`2 / \nu` is taken
off), and a share :math:`\rho` of it is left between neighbours. Both are put together as in a moderated t-test (Smyth 2004),

.. math:: s^2 = \frac{\nu_0\, \rho s_0^2 + \nu_n s_n^2}{\nu_0 + \nu_n} + (1 - \rho) s_0^2 \min(1, 3 / n), \qquad
    \nu = \nu_0 + \nu_n .

**The level.** The best class b is lost only where some class c, then the leader, beats it at some look k. With
:math:`\alpha_k = \alpha / ((C - 1)\, k (k + 1))` the sum over all k and all c is :math:`\alpha` at the most: an image is
decided, and for another class than the full sweep's, with at most this probability, as far as means of differences follow the t
distribution. Of N images that are :math:`\alpha N` at most. It says less of the decided ones alone: of images that hang between
two classes few are decided, and about half of those either way.
"""




GOLDEN = (math.sqrt(5) - 1) / 2
MIN_SHARE = 0.1  # of the draws, spread over all rows alike
FREEDOM = (1.0, 15.0)  # between which the line's degrees of freedom are; of fewer images no more than there are
TINY = 1e-12


class Line(NamedTuple):
    r""":math:`\log s_0^2` over the logarithm of a mean difference, its degrees of freedom, and :math:`\rho`."""

    offset: float
    slope: float
    freedom: float
    share: float = 1.0

    def variance(self, mean: np.ndarray) -> np.ndarray:
        r""":math:`s_0^2` at mean differences of any shape."""
        return np.exp(self.offset + self.slope * np.log(np.maximum(np.abs(mean), TINY)))


class Proposal(NamedTuple):
    r"""Probabilities of rows, `(T,)`, and what the pilot says of variances under them."""

    probabilities: np.ndarray
    line: Line

    def rows(self, keys: np.ndarray, first: int, last: int) -> np.ndarray:
        r"""Rows of the draws `first` to `last` of images with these keys, `(N, last - first)`, evenly spread."""
        places = (uniform_array(keys)[:, None] + GOLDEN * np.arange(first, last)) % 1.0
        edges = np.cumsum(self.probabilities)
        return np.searchsorted(edges / edges[-1], places, side="right").clip(max=len(edges) - 1)


def learn(values: np.ndarray, edges: np.ndarray) -> Proposal:
    r"""From a pilot's terms `(images, bins, C)`, one row of each bin, where to draw and how differences vary.

    Args:
        values: nats, of the same row and noise for all classes.
        edges: of the bins, from 0 to T.
    """
    widths = np.diff(edges).astype(np.float64)
    totals = (values * widths[:, None]).sum(axis=1)
    best = totals.argmin(axis=1)
    differences = values - np.take_along_axis(values, best[:, None, None], axis=2)
    others = np.arange(values.shape[2]) != best[:, None]
    pairs = differences.transpose(0, 2, 1)[others]  # (pairs, bins)
    means = np.maximum((pairs * widths).sum(axis=1), TINY)
    # Of a bin, per row; bins of one row have nothing to average over.
    # In units of its size, noise included: means that come out near zero would outweigh all others.
    sizes = (np.square(pairs) * widths).sum(axis=1, keepdims=True)
    squares = (np.square(pairs) / np.maximum(sizes, TINY)).mean(axis=0)
    density = np.sqrt(squares) + TINY
    shares = density * widths
    shares = (1 - MIN_SHARE) * shares / shares.sum() + MIN_SHARE * widths / widths.sum()
    probabilities = np.repeat(shares / widths, np.diff(edges))
    # Under these probabilities: E v^2 less the squared mean, and how much of it is left between neighbouring bins.
    draws = pairs * (widths / shares)
    second = (np.square(draws) * shares).sum(axis=1)
    variances = np.maximum(second - np.square(means), 0.1 * second) + TINY
    # A mean that came out near zero by chance is none to draw a line through.
    means = np.maximum(means, 0.3 * np.sqrt(second))
    weights = (shares[1:] + shares[:-1]) / 2
    between = (np.square(np.diff(draws, axis=1)) * weights).sum(axis=1) / 2
    kept = float(np.clip(np.mean(between / variances), 0.1, 1.0)) if len(shares) > 2 else 1.0
    # The variance of a variance's logarithm is about 2 / nu, of unequal weights twice the sum of their squares.
    line = _line(np.log(means), np.log(variances), noise=2 * np.square(shares).sum(), most=min(len(values), FREEDOM[1]))
    return Proposal(probabilities, line._replace(share=kept))


def _line(x: np.ndarray, y: np.ndarray, noise: float, most: float) -> Line:
    r"""The line through logarithms of means and variances, `(pairs,)`, of at `most` so many degrees of freedom; `noise` is the
    variance of a single y about its own."""
    spread = np.var(x)
    slope = float(np.clip(np.cov(x, y, bias=True)[0, 1] / spread, 0.0, 2.0)) if len(x) > 2 and spread > 1e-9 else 1.0
    residual = y - slope * x
    # The variance of the logarithm of chi^2 / nu is about 2 / nu.
    freedom = float(np.clip(2 / max(np.var(residual) - noise, TINY), FREEDOM[0], most))
    return Line(float(np.log(np.mean(np.exp(residual)))), slope, freedom)


def looks(most: int) -> list[int]:
    r"""Numbers of draws at which to look: 2, 3, 4, 6, 8 and so on, four thirds of the last, up to `most`."""
    counts = [2]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, round(counts[-1] * 4 / 3))))
    return counts


@dataclass(eq=False)
class Race:
    r"""N images whose classes are dropped one after the other.

    Args:
        log_prior: :math:`\log \pi_c`, `(C,)`.
        line: of the pilot.
        count: N.
        level: :math:`\alpha`.
    """

    log_prior: np.ndarray
    line: Line
    count: int
    level: float

    def __post_init__(self):
        self.active = np.ones((self.count, len(self.log_prior)), dtype=bool)
        # Of draws, those of dropped classes NaN from then on.
        self.values = np.empty((self.count, 0, len(self.log_prior)))
        self.rows = np.empty((self.count, 0), dtype=np.int64)
        self._look = 0

    @property
    def running(self) -> np.ndarray:
        r"""Images of which more than one class is left, `(N,)`."""
        return self.active.sum(axis=1) > 1

    def add(self, values: np.ndarray, rows: np.ndarray) -> None:
        r"""More draws, `(N, n, C)` nats, NaN where none was made, and their rows, `(N, n)`; then look."""
        self.values = np.concatenate([self.values, values], axis=1)
        self.rows = np.concatenate([self.rows, rows], axis=1)
        self._look += 1
        level = self.level / max(len(self.log_prior) - 1, 1) / (self._look * (self._look + 1))
        images = np.flatnonzero(self.running & ~np.isnan(self.values[:, -1]).all(axis=1))
        if not len(images):
            return
        own, active = self.values[images], self.active[images]
        means = np.where(active, own.mean(axis=1), np.inf) - self.log_prior
        leader = means.argmin(axis=1)
        n = own.shape[1]
        difference = own - np.take_along_axis(own, leader[:, None, None], axis=2)
        mean = difference.mean(axis=1) - (self.log_prior - self.log_prior[leader][:, None])
        variance, freedom = self._variance(difference, self.rows[images], mean)
        far = mean > student.ppf(1 - level, freedom) * np.sqrt(variance / n)
        far[np.arange(len(images)), leader] = False
        self.active[images] = active & ~(far & active)

    def _variance(self, difference: np.ndarray, rows: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r""":math:`s^2` of differences `(N, n, C)`, NaN where a class was dropped, and its degrees of freedom, `(N, C)` each."""
        made = ~np.isnan(difference)
        order = np.where(made, rows[:, :, None], np.iinfo(rows.dtype).max).argsort(axis=1, kind="stable")
        steps = np.diff(np.take_along_axis(difference, order, axis=1), axis=1)
        count = made.sum(axis=1)
        own = np.nansum(np.square(steps), axis=1) / (2 * (count - 1))
        own_freedom = 2 * np.square(count - 1) / (3 * count - 4)
        freedom = self.line.freedom + own_freedom
        all_rows = self.line.variance(mean)
        pooled = (self.line.freedom * self.line.share * all_rows + own_freedom * own) / freedom
        return pooled + (1 - self.line.share) * all_rows * np.minimum(1.0, 3.0 / count), freedom

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""The leaders `(N,)`, the estimates of :math:`L(c)` `(N, C)`, and the standard errors of their differences to the
        leader's `(N, C)`, all in nats; a class that was dropped is known as well as it was then."""
        counted = ~np.isnan(self.values)
        n = counted.sum(axis=1)
        means = np.nansum(self.values, axis=1) / n
        leader = np.where(self.active, means - self.log_prior, np.inf).argmin(axis=1)
        own = np.take_along_axis(self.values, leader[:, None, None], axis=2)
        difference = self.values - own
        mean = np.nansum(difference, axis=1) / n
        error = np.sqrt(self._variance(difference, self.rows, mean)[0] / n)
        rows = np.arange(self.count)
        error[rows, leader] = 0.0
        return leader, means[rows, leader][:, None] + mean, error


# ---- ddpm_vlb/likelihoods/classify.py ----

r"""Which class an image has: :math:`p(c | x) \propto \pi_c\, p(x | c)`, with the bound in the place of :math:`-\log p(x | c)`.

A class-conditional model is a classifier (Li et al. 2023; Clark & Jaini 2023). Its bounds of one image for all classes differ
by far less than each varies: they are estimated at the same timesteps with the same noise, and a class is dropped as soon as it
has lost (`sampled_bound/elimination.py`, where the level is derived). The first term of the bound, :math:`L_T`, is the same for
all classes.

With `score="simple"` the classes race by :math:`\frac{1}{K} \sum_t E \|\epsilon - \hat\epsilon(x_t, c)\|^2` instead, the sum
of squared errors of the noise averaged over the timesteps, as Li et al. have it. That is no likelihood: its probabilities are
those of a softmax, and it has no bits/dim.
"""





PILOT_IMAGES, PILOT_CLASSES = 8, 16  # at most
SWEEPS = 100  # evaluations of each class at the most, where nothing is said
FRAME_VALUES = 20_000_000  # draws of classes that are kept at once
PILOT, RACE = range(2)  # what the seed is mixed with
SCORES = ("bound", "simple")


@dataclass(repr=False)
class ClassifierOutput(Shown, BaseOutput):
    r"""
    What [`~VLBDDPMPipeline.classify`] says of N images and C classes.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): The most probable class.
        probabilities (`torch.Tensor` of shape `(N, C)`): p(class | image) from the estimates and the prior.
        bits_per_dim (`torch.Tensor` of shape `(N, C)`): The estimated bound for each class, in bits/dim; `None` with
            `score="simple"`.
        monte_carlo_error (`torch.Tensor` of shape `(N, C)`): Standard error of its difference to the label's, bits/dim; `None`
            with `score="simple"`.
        decided (`torch.Tensor` of shape `(N,)`): Whether all other classes were dropped, at the confidence asked for.
        evaluations (`torch.Tensor` of shape `(N,)`): Network evaluations of each image.
        num_network_evaluations (`int`): Of all images, the pilot's included.
        config (`dict`): What was scored, and how.
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    bits_per_dim: torch.Tensor | None
    monte_carlo_error: torch.Tensor | None
    decided: torch.Tensor
    evaluations: torch.Tensor
    num_network_evaluations: int
    config: dict[str, Any]

    def _head(self) -> dict[str, Any]:
        count = len(self.labels)
        return {"images": count, "decided": int(self.decided.sum()), "network evaluations": self.num_network_evaluations}

    def _details(self) -> dict[str, Any]:
        return {"evaluations of an image": self.evaluations.double().mean().item()}

    def _columns(self) -> dict[str, Any]:
        own = self.probabilities.max(dim=1).values
        names = ("labels", "decided", "evaluations")
        return {"image": range(len(self.labels)), **{name: self[name] for name in names}, "probability": own}


@torch.no_grad()
def classify(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    classes: Sequence[int] | None = None,
    class_prior: Sequence[float] | torch.Tensor | None = None,
    confidence: float = 0.95,
    max_evaluations_per_image: int | None = None,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    score: str = "bound",
    callback_on_look: "Callable[[Raced], Any] | None" = None,
) -> ClassifierOutput:
    r"""
    The class of each image, from the bounds that a class-conditional network gives it.

    Args:
        images:
            As [`~VLBDDPMPipeline.evaluate_nll`].
        classes (`list[int]`, *optional*):
            Those to choose from, in this order in what is returned; all of the network's by default, but for the one that
            stands for "no label" where the scheduler's `unlabelled_class` names it.
        class_prior (`list[float]`, *optional*):
            Probabilities of `classes`; equal ones by default.
        confidence (`float`, defaults to 0.95):
            Of all images, at most a share of 1 - confidence is expected to be `decided` for another class than the full
            sweep's.
        max_evaluations_per_image (`int`, *optional*):
            Where to stop undecided; 100 for each class by default.
        batch_size (`int`, defaults to 64):
            Evaluations per network call; they mix images, classes and timesteps. Nothing depends on it beyond rounding.
        generator (`torch.Generator`, *optional*):
            Makes the result reproducible.
        num_inference_steps (`int`, *optional*), inference_timesteps (`list[int]`, *optional*):
            Of the K-step model, as [`~VLBDDPMPipeline.evaluate_nll`].
        score (`str`, defaults to `"bound"`):
            `"simple"` compares squared errors of the noise instead, for comparison with others' numbers.
        callback_on_look (`Callable`, *optional*):
            Called with a [`Raced`] after each look at some of the images: what is known of them so far.

    Returns:
        [`ClassifierOutput`]: tensors on the CPU.

    Raises:
        ValueError: an unconditional network, fewer than two classes, classes that it has not or that are given twice, a prior
            that is none, images that do not fit, a network whose output is not finite.
    """
    options = {
        "classes": classes,
        "class_prior": class_prior,
        "confidence": confidence,
        "max_evaluations_per_image": max_evaluations_per_image,
        "batch_size": batch_size,
        "score": score,
    }
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    unlabelled = pipe.scheduler.config.get("unlabelled_class")
    classifier = Classifier.of(scorer, unlabelled_class=unlabelled, **options)
    levels, _ = scorer.read(images, classifier.classes[0])
    config = classifier.config(seed=fresh_seed(generator))
    (seed,) = draw_seeds(1, generator)
    with scorer.network.evaluating():
        numbers = np.arange(len(levels))
        chosen = classifier.pilot_images(numbers, seed)
        pilot = classifier.pilot(levels[torch.from_numpy(chosen)], chosen, seed)
        raced = classifier.race(levels, numbers, classifier.proposal(pilot), seed, callback_on_look)
    pipe.maybe_free_model_hooks()
    shared = torch.cat([scorer.prior(scorer.samples(part)).cpu().double() for part in levels.split(1024)])
    evaluations = torch.from_numpy(raced.evaluations)
    bits = {
        "bits_per_dim": shared[:, None] + torch.from_numpy(raced.nats),
        "monte_carlo_error": torch.from_numpy(raced.error),
    }
    return ClassifierOutput(
        labels=torch.from_numpy(raced.labels),
        probabilities=torch.from_numpy(raced.probabilities),
        **{name: nats_to_bits_per_dim(x, levels[0].numel()) if score == "bound" else None for name, x in bits.items()},
        decided=torch.from_numpy(raced.decided),
        evaluations=evaluations,
        num_network_evaluations=pilot.size + int(evaluations.sum()),
        config=config,
    )


def check_classes(num_classes: int | None, classes: Sequence[int] | None, unlabelled: int | None = None) -> list[int]:
    r"""The classes to choose from, all but the `unlabelled` one by default, or `ValueError`."""
    if num_classes is None:
        raise ValueError("`unet` must be class-conditional to classify by, got an unconditional network.")
    if classes is None:
        chosen = [one for one in range(num_classes) if one != unlabelled]
    else:
        chosen = [check_integer("classes", one) for one in classes]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not all(0 <= one < num_classes for one in chosen):
        raise ValueError(f"`classes` must be at least two different ones in [0, {num_classes}), got {chosen}.")
    return chosen


def check_prior(prior: Sequence[float] | torch.Tensor | None, count: int) -> np.ndarray:
    r"""The logarithms of the classes' probabilities `(C,)`, or `ValueError`."""
    if prior is None:
        return np.full(count, -np.log(count))
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (count,) or not (values > 0).all() or abs(values.sum() - 1) > 1e-6:
        raise ValueError(
            f"`class_prior` must be {count} positive probabilities that sum to 1, got shape {values.shape} and sum"
            f" {values.sum():.6g}."
        )
    return np.log(values)


class Raced(NamedTuple):
    r"""N images after the race of C classes.

    Args:
        labels: `(N,)`, the class itself.
        probabilities: `(N, C)`.
        nats: estimates of what is compared, `(N, C)`, and the standard `error` of their differences to the label's.
        decided, evaluations: `(N,)`.
        racing: whether a class has not been dropped, `(N, C)`.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    nats: np.ndarray
    error: np.ndarray
    decided: np.ndarray
    evaluations: np.ndarray
    racing: np.ndarray


@dataclass(frozen=True, eq=False)
class Classifier:
    r"""Asks the network about images, rows and classes. What is drawn for an image is keyed by (seed, its number) alone.

    Args:
        scorer: the model.
        classes: to choose from.
        log_prior: their :math:`\log \pi_c`, `(C,)`.
        confidence, max_evaluations_per_image, batch_size, score: as `classify`.
    """

    scorer: Scorer
    classes: list[int]
    log_prior: np.ndarray
    confidence: float
    max_evaluations_per_image: int
    batch_size: int
    score: str

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        *,
        unlabelled_class: int | None = None,
        classes: Sequence[int] | None = None,
        class_prior: Sequence[float] | torch.Tensor | None = None,
        confidence: float = 0.95,
        max_evaluations_per_image: int | None = None,
        batch_size: int = 64,
        score: str = "bound",
    ) -> "Classifier":
        r"""With the arguments of `classify`, or `ValueError`."""
        chosen = check_classes(scorer.network.num_classes, classes, unlabelled_class)
        log_prior = check_prior(class_prior, len(chosen))
        if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie in (0, 1), got {confidence!r}.")
        if score not in SCORES:
            raise ValueError(f"`score` must be 'bound' or 'simple', got {score!r}.")
        batch_size = check_batch_size(batch_size, scorer.network)
        most = SWEEPS * len(chosen) if max_evaluations_per_image is None else max_evaluations_per_image
        if check_count("max_evaluations_per_image", most) < 2 * len(chosen):
            raise ValueError(
                f"`max_evaluations_per_image` must be at least two for each of the {len(chosen)} classes, got {most}."
            )
        return cls(scorer, chosen, log_prior, confidence, most, batch_size, score)

    def config(self, **more: Any) -> dict[str, Any]:
        r"""What a report says of it."""
        own = {"classes": self.classes, "class_prior": np.exp(self.log_prior).tolist()}
        own |= {name: getattr(self, name) for name in ("confidence", "max_evaluations_per_image", "batch_size", "score")}
        return self.scorer.config(**own, **more)

    def pilot_images(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        r"""Which of the images with these numbers the pilot is of."""
        return numbers[np.argsort(mix_array(mix(seed, PILOT), numbers), kind="stable")[:PILOT_IMAGES]]

    def pilot(self, levels: torch.Tensor, numbers: np.ndarray, seed: int) -> np.ndarray:
        r"""Terms at one row of each bin for some images and classes, `(N, bins, classes)`: all classes, if they are few."""
        edges = bin_edges(len(self.scorer.timesteps))
        keys = mix_array(mix_array(mix(seed, PILOT), numbers)[:, None], np.arange(len(edges) - 1))
        rows = edges[:-1] + (uniform_array(keys) * np.diff(edges)).astype(np.int64)
        count = len(self.classes)
        some = np.sort(np.argsort(mix_array(mix(seed, PILOT), np.arange(count)), kind="stable")[:PILOT_CLASSES])
        active = np.isin(np.arange(count), some)[None].repeat(keys.size, axis=0)
        own = np.arange(len(numbers)).repeat(len(edges) - 1)
        values = self._terms(levels, numbers, own, rows.ravel(), keys.ravel(), active)
        return values[:, some].reshape(*keys.shape, -1)

    def proposal(self, pilot: np.ndarray) -> Proposal:
        r"""Where to draw, after a pilot."""
        return learn(pilot, bin_edges(len(self.scorer.timesteps)))

    def race(
        self,
        levels: torch.Tensor,
        numbers: np.ndarray,
        proposal: Proposal,
        seed: int,
        callback_on_look: Callable[[Raced], Any] | None = None,
    ) -> Raced:
        r"""The race of all classes for images with these numbers.

        Args:
            levels: of the images, `(N, C, H, W)`.
            numbers: `(N,)`.
            proposal: where to draw.
            seed: of all that is drawn.
            callback_on_look: as `classify`.
        """
        size = max(1, FRAME_VALUES // (len(self.classes) * (self.max_evaluations_per_image // 2)))
        parts = [
            self._race(levels[first : first + size], numbers[first : first + size], proposal, seed, callback_on_look)
            for first in range(0, len(levels), size)
        ]
        return Raced(*(np.concatenate(part) for part in zip(*parts)))

    def _race(self, levels, numbers, proposal: Proposal, seed: int, callback_on_look) -> Raced:
        count, most = len(numbers), self.max_evaluations_per_image
        race = Race(self.log_prior, proposal.line, count, 1 - self.confidence)
        own, spent, done = mix_array(mix(seed, RACE), numbers), np.zeros(count, dtype=np.int64), 0
        for draws in looks(most // 2):
            cost = race.active.sum(axis=1) * (draws - done)
            going = np.flatnonzero(race.running & (spent + cost <= most))
            if not len(going):
                break
            rows = np.zeros((count, draws - done), dtype=np.int64)
            rows[going] = proposal.rows(own[going], done, draws)
            keys = mix_array(own[going][:, None], np.arange(done, draws))
            active = race.active[going].repeat(draws - done, axis=0)
            at = rows[going].ravel()
            nats = self._terms(levels, numbers, going.repeat(draws - done), at, keys.ravel(), active)
            new = np.full((count, draws - done, len(self.classes)), np.nan)
            new[going] = (nats / proposal.probabilities[at][:, None]).reshape(len(going), draws - done, -1)
            spent[going] += cost[going]
            race.add(new, rows)
            done = draws
            if callback_on_look is not None:
                callback_on_look(self._raced(race, spent))
        return self._raced(race, spent)

    def _raced(self, race: Race, spent: np.ndarray) -> Raced:
        leader, nats, error = race.result()
        probabilities = torch.from_numpy(self.log_prior - nats).softmax(dim=1).numpy()
        labels = np.array(self.classes)[leader]
        return Raced(labels, probabilities, nats, error, ~race.running, spent.copy(), race.active.copy())

    def _terms(
        self,
        levels: torch.Tensor,
        numbers: np.ndarray,
        images: np.ndarray,
        rows: np.ndarray,
        keys: np.ndarray,
        active: np.ndarray,
    ) -> np.ndarray:
        r"""Terms of D draws, `(D, C)`, NaN where a class is not `active` `(D, C)`.

        Args:
            levels, numbers: of the images.
            images, rows, keys: of each draw, `(D,)`: which of them, which row of the grid, and the key of its noise.
        """
        scorer, timesteps = self.scorer, self.scorer.reverse.forward.timesteps
        draws, classes = (torch.from_numpy(part) for part in np.nonzero(active))
        chosen, parts = torch.tensor(self.classes), []
        ask = scorer.terms if self.score == "bound" else scorer.squared_errors
        for chunk in torch.arange(len(draws)).split(self.batch_size):
            own, place = draws[chunk].unique_consecutive(return_inverse=True)
            noise = keyed_normal(keys[own.numpy()], levels.shape[1:], scorer.device)
            samples = scorer.samples(levels[images[own.numpy()]])
            labels = to_device(chosen[classes[chunk]], scorer.device)
            at = timesteps[rows[draws[chunk].numpy()]]
            place = to_device(place, scorer.device)
            parts.append(ask(samples[place], noise[place], at, labels))
        # One wait for the device, for all batches.
        nats = torch.cat(parts).cpu().double()
        bad = (~torch.isfinite(nats)).nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            draw = int(draws[first])
            raise NonFiniteOutput(
                f"a term of {nats[first].item()} nats for class {self.classes[int(classes[first])]}",
                image=int(numbers[images[draw]]),
                timestep=int(timesteps[rows[draw]]),
                share=f"{len(bad)} of {len(nats)} terms are not finite",
                dtype=scorer.dtype,
            )
        values = np.full(active.shape, np.nan)
        values[active] = nats.numpy()
        # The squared errors' mean over the rows, as a sum of terms.
        return values if self.score == "bound" else values / len(timesteps)


# ---- ddpm_vlb/likelihoods/full_sweep.py ----

r"""The full sweep: every image at every step, and what a report needs of it, in memory that grows by four numbers an image.

At each step the mean over images and the sum of squares about it are kept, and put together batch by batch (Chan's formula).
"""





def sweep(
    scorer: Scorer,
    levels: torch.Tensor,
    seeds: Sequence[int],
    labels: torch.Tensor | None = None,
    step: Callable[[], Any] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Every step for a batch of images, in nats and on the device.

    Args:
        scorer: what is scored.
        levels: images, `(B, C, H, W)`.
        seeds: of their noise, `B` integers.
        labels: classes, `(B,)`.
        step: called once a step.

    Returns:
        The prior term `(B,)` and, ascending in t, decoder and transitions `(B, K)`, NaN where the network's output was
        not finite.
    """
    samples = scorer.samples(levels)
    labels = None if labels is None else labels.to(scorer.device)
    timesteps = scorer.reverse.forward.timesteps
    terms = []
    noises = keyed_noise(seeds, timesteps.tolist(), samples.shape[1:], samples.device)
    for timestep, on_device, noise in zip(timesteps.tolist(), timesteps.to(scorer.device).unbind(), noises):
        terms.append(scorer.terms(samples, noise, timestep, labels, on_device))
        step()
    return scorer.prior(samples), torch.stack(terms, dim=1)


def sweep_images(
    scorer: Scorer,
    levels: torch.Tensor,
    seeds: Sequence[int],
    labels: torch.Tensor | None,
    batch_size: int,
    step: Callable[[], Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""As `sweep`, batch after batch, in bits/dim and on the CPU.

    Raises:
        ValueError: a network whose output is not finite.
    """
    parts = []
    for start in range(0, len(levels), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(sweep(scorer, levels[rows], seeds[rows], None if labels is None else labels[rows], step))
    # The one copy from the device, after the last batch.
    prior, terms = (nats_to_bits_per_dim(torch.cat(x).cpu().double(), levels[0].numel()) for x in zip(*parts))
    check_finite(terms, scorer.timesteps, scorer.dtype)
    return prior, terms


class SeedSequence:
    r"""`seeds[number]`: the seeds that `evaluate_nll` gives to its images when its generator starts from this seed."""

    def __init__(self, seed: int):
        self._seed, self._drawn = seed, []

    def __getitem__(self, number: int) -> int:
        if number >= len(self._drawn):
            self._drawn = draw_seeds(max(1024, 2 * (number + 1)), torch.Generator().manual_seed(self._seed))
        return self._drawn[number]


def sums_of_batch(prior: torch.Tensor, terms: torch.Tensor, num_dimensions: int) -> dict[str, Any]:
    r"""What is kept of a batch, in bits/dim, as plain values.

    Args:
        prior, terms: of `sweep`, `(B,)` and `(B, K)`, in nats.
        num_dimensions: of an image.
    """
    prior, terms = (nats_to_bits_per_dim(x.cpu().double(), num_dimensions) for x in (prior, terms))
    bad = (~torch.isfinite(terms)).nonzero()
    means = terms.mean(dim=0)
    return {
        "bad": bad[0].tolist() if len(bad) else None,
        "prior": prior.tolist(),
        "decoder": terms[:, 0].tolist(),
        "transitions": terms[:, 1:].sum(dim=1).tolist(),
        "means": means.tolist(),
        "squares": (terms - means).square().sum(dim=0).tolist(),
    }


class Sweeps:
    r"""The sums over all batches so far, of a grid of `steps` steps."""

    def __init__(self, steps: int):
        self.prior, self.decoder, self.transitions = [], [], []
        self.count, self.means, self.squares = 0, *torch.zeros(2, steps, dtype=torch.float64)

    def add(self, sums: dict[str, Any], numbers: list[int], timesteps: list[int], dtype: torch.dtype) -> None:
        r"""Take in a batch of images with these numbers, scored by a network of this dtype.

        Raises:
            ValueError: a term that is not finite.
        """
        if sums["bad"] is not None:
            image, row = sums["bad"]
            raise NonFiniteOutput("a term that is not", image=numbers[image], timestep=timesteps[row], dtype=dtype)
        for name in ("prior", "decoder", "transitions"):
            getattr(self, name).extend(sums[name])
        count, means = len(sums["prior"]), torch.tensor(sums["means"], dtype=torch.float64)
        gap, both = means - self.means, self.count + count
        self.squares += torch.tensor(sums["squares"], dtype=torch.float64) + gap.square() * self.count * count / both
        self.means += gap * count / both
        self.count = both

    def mean_and_error(self, more: list[dict[str, Any]]) -> tuple[float, float] | tuple[()]:
        r"""The mean so far with the sums of some more batches, and its standard error; nothing for less than two images."""
        parts = [(self.prior, self.decoder, self.transitions), *((s["prior"], s["decoder"], s["transitions"]) for s in more)]
        values = torch.tensor([sum(terms) for part in parts for terms in zip(*part)], dtype=torch.float64)
        return (values.mean().item(), (values.var() / len(values)).sqrt().item()) if len(values) > 1 else ()

    @property
    def totals(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        r"""Prior, decoder and sum of the transitions of each image, `(N,)`."""
        prior, decoder, transitions = (
            torch.tensor(x, dtype=torch.float64) for x in (self.prior, self.decoder, self.transitions)
        )
        return prior, decoder, transitions


# ---- ddpm_vlb/sampled_bound/control_variates.py ----

r"""Cheap functions of an image and of its noise that go with the terms of the bound, and whose mean is known.

A term :math:`\ell_t(x, \epsilon)` costs a network evaluation. What it has in common with a function
:math:`m_t(x, \epsilon) = \phi(x)^\top b_t + h_t(x, \epsilon)^\top c_t` of known mean need not be estimated:

.. math:: E[\ell_t] = E[m_t] + E[\ell_t - m_t], \qquad E[m_t] = \bar\phi^\top b_t ,

and only the second part, of less variance, is left to chance. (Survey sampling calls it the difference estimator.) With b and
c fixed beforehand the estimate is unbiased whatever they are.

- :math:`\phi(x)`, of each image: how much of it lies between black and white, how rough it is, how bright. Their mean over
  the data set is a sum over its images. An image's bits go with its edges.
- :math:`h_t(x, \epsilon)`, of mean zero given x. While the noise is faint, the network's error is the noise that it could not
  tell from the image: the energy :math:`\sum_d w_d (\epsilon_d^2 - 1)`, over all pixels, over those between the extremes
  (at the extremes it knows the answer) and over the rough ones. When the noise is strong, it is the error of the best linear
  denoiser, the Wiener filter: diagonal in the basis of the discrete cosine transform, with gain
  :math:`G_k = \sqrt{\bar\alpha_t} S_k / (\bar\alpha_t S_k + 1 - \bar\alpha_t)` for a coefficient
  :math:`z_k` of mean :math:`\mu_k` and variance :math:`S_k` over the data,

  .. math:: \hat z_k - z_k = G_k \sqrt{1 - \bar\alpha_t}\, e_k - r_k, \qquad r_k = (1 - \sqrt{\bar\alpha_t} G_k)(z_k - \mu_k),

  whose square has the mean :math:`r_k^2 + G_k^2 (1 - \bar\alpha_t)` over the noise :math:`e`.

Each is divided by a constant of t that brings its standard deviation near 1.
"""




VALUES_AT_ONCE = 2**22  # numbers at a time


class ControlVariates:
    r"""The functions :math:`h_t` for images that resemble some given ones.

    Args:
        alphas_cumprod: signal levels :math:`\bar\alpha_t` of the steps that are scored, `(K,)`.
        samples: images from which the spectrum and the scales are taken, `(M, C, H, W)`, in [-1, 1], some at a time. Everything
            is computed where they are, and nothing waits for it.
    """

    def __init__(self, alphas_cumprod: torch.Tensor, samples: torch.Tensor | Iterable[torch.Tensor]):
        count, nothing = 0, torch.zeros(())
        means = squares = weights = nothing
        for part in in_parts(samples) if isinstance(samples, torch.Tensor) else samples:
            part = part.to(working_dtype(part.device))
            if not count:
                means = squares = weights = nothing.to(part)
                self._transforms = [_cosine_transform(size).to(part) for size in part.shape[1:]]
            spectrum = self._transform(part)
            # The mean, and the sum of squares about it (Chan's formula).
            variance, mean = torch.var_mean(spectrum, dim=0, correction=0)
            gap, both = mean - means, count + len(part)
            squares = squares + len(part) * variance + gap.square() * (count * len(part) / both)
            means, count = means + gap * (len(part) / both), both
            weights = weights + torch.stack([w.square().sum() for w in _weights(part)])
        self._mean, self._variance = means, squares / count
        # For the energies; the variance of the sum of w (e^2 - 1) is 2 times the sum of w^2.
        self._factors = _reciprocals((2 * weights / count).sqrt())
        self._tables = self._of_rows(alphas_cumprod.detach().to(self._mean))

    def _of_rows(self, alphas_cumprod: torch.Tensor) -> torch.Tensor:
        r"""What the Wiener feature needs of each row, `(K, 5)`: :math:`\bar\alpha, 1 - \bar\alpha,
        \sqrt{\bar\alpha (1 - \bar\alpha)}`, the mean of its first sum, and 1 over its standard deviation."""
        means, deviations = [], []
        for alpha_bar in alphas_cumprod.split(max(1, VALUES_AT_ONCE // self._mean.numel())):
            alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
            inverse = (alpha_bar * self._variance).add_(1 - alpha_bar).reciprocal_()
            spread = (alpha_bar * (1 - alpha_bar)).sqrt() * self._variance * inverse
            rest = inverse.mul_(1 - alpha_bar)
            variance = 2 * spread**4 + 4 * (rest * spread).square() * self._variance
            means.append(spread.square().flatten(1).sum(dim=1))
            deviations.append(variance.flatten(1).sum(dim=1).sqrt())
        noise = 1 - alphas_cumprod
        columns = (
            alphas_cumprod,
            noise,
            (alphas_cumprod * noise).sqrt(),
            torch.cat(means),
            _reciprocals(torch.cat(deviations)),
        )
        return torch.stack(columns, dim=1)

    def noise_features(self, samples: torch.Tensor, noise: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        r""":math:`h_t(x, \epsilon)`, of mean zero over the noise.

        Args:
            samples, noise: images and standard normal noise, `(B, C, H, W)`, where the images are that it was made from.
            rows: steps of each, indices into `alphas_cumprod`, `(B,)`.

        Returns:
            In the working dtype, float64, `(B, 4)`, on the device.
        """
        both = torch.empty(2, *samples.shape, dtype=self._mean.dtype, device=samples.device)
        both[0].copy_(samples)
        both[1].copy_(noise)
        x, e = both.unbind()
        columns = [column.mul_(factor) for column, factor in zip(_energies(x, e), self._factors.unbind())]
        z, z_noise = self._transform(both.flatten(0, 1)).chunk(2)
        columns.append(self._wiener(z, z_noise, rows))
        return torch.stack(columns, dim=1)

    def _wiener(self, z: torch.Tensor, e: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        r"""The last feature, `(B,)`, from the transforms of images and noise, which are overwritten.

        With :math:`q = \bar\alpha S + 1 - \bar\alpha` it is :math:`y = \sqrt{\bar\alpha (1 - \bar\alpha)}\, (S / q)\, e` that
        the noise adds, and :math:`r = (1 - \bar\alpha) (z - \mu) / q`; the sum of :math:`y^2 - 2 r y`, less its mean.
        """
        numbers = self._tables.index_select(0, to_device(rows, e.device)).reshape(-1, 5, 1, 1, 1)
        alpha_bar, noise, root, mean, factor = numbers.unbind(dim=1)
        inverse = (alpha_bar * self._variance).add_(noise).reciprocal_()
        y = e.mul_(inverse).mul_(self._variance).mul_(root)
        error = z.sub_(self._mean).mul_(inverse).mul_(-2.0 * noise).add_(y).mul_(y)
        return error.flatten(1).sum(dim=1).sub_(mean.flatten()).mul_(factor.flatten())

    def _transform(self, values: torch.Tensor) -> torch.Tensor:
        # Along columns, rows and channels; of colours, the first coefficient is the brightness.
        of_channels, of_rows, of_columns = self._transforms
        values = torch.matmul(of_rows, torch.matmul(values, of_columns.T))
        return torch.matmul(of_channels, values.flatten(2)).reshape(values.shape)


def image_features(samples: torch.Tensor) -> torch.Tensor:
    r""":math:`\phi(x)` of images `(B, C, H, W)` in [-1, 1]: in the working dtype, float64, `(B, 4)`, the first a constant 1."""
    samples = samples.to(working_dtype(samples.device))
    _, between, rough = _weights(samples)
    columns = [values.flatten(1).mean(dim=1) for values in (between, rough, samples)]
    return torch.stack([torch.ones_like(columns[0]), *columns], dim=1)


def in_parts(samples: torch.Tensor) -> Iterator[torch.Tensor]:
    r"""Images `(N, C, H, W)`, as many at a time as do not fill the memory."""
    return iter(samples.split(max(1, VALUES_AT_ONCE // samples[0].numel())))


def _energies(samples: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
    r""":math:`\sum_d w_d (\epsilon_d^2 - 1)` for each of `_weights`, `(B,)` each."""
    energy = (noise * noise).sub_(1.0)
    between = (samples.abs() < 1).to(energy.dtype).mul_(energy)
    rough = torch.zeros_like(energy[:, 0, 0, 0])
    for dim, steps in _steps(samples):
        # Of two neighbours both.
        size = energy.shape[dim]
        pairs = energy.narrow(dim, 1, size - 1) + energy.narrow(dim, 0, size - 1)
        rough = rough.add_(pairs.mul_(steps).flatten(1).sum(dim=1))
    return [energy.flatten(1).sum(dim=1), between.flatten(1).sum(dim=1), rough]


def _steps(samples: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    r"""How far neighbours along rows and along columns are from each other, and the dimension."""
    for dim in (2, 3):
        size = samples.shape[dim]
        yield dim, (samples.narrow(dim, 1, size - 1) - samples.narrow(dim, 0, size - 1)).abs_()


def _weights(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Weights of the pixels, `(B, C, H, W)` each: all, those between the extremes, and the rough ones by how rough."""
    rough = torch.zeros_like(samples)
    for dim, steps in _steps(samples):
        size = samples.shape[dim]
        rough.narrow(dim, 1, size - 1).add_(steps)
        rough.narrow(dim, 0, size - 1).add_(steps)
    return torch.ones_like(samples), (samples.abs() < 1).to(samples.dtype), rough


def _reciprocals(scales: torch.Tensor) -> torch.Tensor:
    r"""1 over each, and 0 of nothing."""
    return torch.where(scales > 0, scales.clamp(min=1e-150 if scales.dtype == torch.float64 else 1e-30).reciprocal(), 0.0)


def _cosine_transform(size: int) -> torch.Tensor:
    r"""The orthonormal discrete cosine transform (type II) of `size` numbers, `(size, size)`."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


# ---- ddpm_vlb/sampled_bound/tails.py ----

r"""Whether an error that was measured can be believed: the tails of what it was measured from.

Three ways in which a sample does not know its own error, each with a sentence of its own:

- It is small.
- Its largest contributions have no variance. What exceeds a threshold is like a generalised Pareto variable, whose shape k
  says which moments there are: with :math:`k > 1/2` there is no variance. (Pareto-smoothed importance sampling judges its
  weights so: Vehtari et al., arXiv 1507.02646.) The fit is that of Zhang & Stephens (Technometrics 51, 2009), with the prior
  of PSIS. This finds images unlike all others, once one of them was met.
- Its largest contributions are still to come. Losses that are lognormal, of log standard deviation :math:`\sigma`, have every
  moment, but a sample variance of n of them rests on :math:`2n / \kappa` degrees of freedom with the kurtosis
  :math:`\kappa = e^{4\sigma^2} + 2 e^{3\sigma^2} + 3 e^{2\sigma^2} - 4`, of which the sample itself sees next to nothing where
  :math:`\sigma` is large. What it does see is :math:`\sigma`, from the upper half of the losses of rows that are alike.
  (From the lower half differences of two models, which may be next to nothing, would pass for spread.)
"""



FEWEST_EVALUATIONS = 128
FEWEST_EXCEEDANCES = 5
HEAVIEST_SHAPE = 0.7  # as PSIS
FEWEST_FREEDOM = 10.0


def doubt(evaluations: int, contributions: np.ndarray, values: np.ndarray, bins: np.ndarray) -> str | None:
    r"""Why the error of a mean cannot be trusted, `None` where nothing speaks against it.

    Args:
        evaluations: how many the error rests on.
        contributions: what the mean is of, `(n,)`, of those that were drawn alike.
        values: their losses, `(n,)`.
        bins: which of them are alike, `(n,)`.
    """
    if np.ptp(contributions) <= 1e-9 * np.abs(values).mean():
        return None
    if evaluations < FEWEST_EVALUATIONS:
        return f"{evaluations} evaluations are too few to know their own error"
    shape, exceedances = pareto_shape(np.abs(contributions - np.median(contributions)))
    if shape > HEAVIEST_SHAPE + (1 + HEAVIEST_SHAPE) / exceedances**0.5:
        return f"a few contributions outweigh all others (their tail has the shape {shape:.2f}: no variance can be measured)"
    freedom = 2 * len(values) / lognormal_kurtosis(log_spread(values, bins))
    if freedom < FEWEST_FREEDOM:
        return f"losses spread over orders of magnitude: {evaluations} evaluations have seen too few of the largest"
    return None


def log_spread(values: np.ndarray, bins: np.ndarray) -> float:
    r"""The standard deviation of the logarithms of losses: by what share of the upper half of them is within one of it.

    Args:
        values: the losses, `(n,)`.
        bins: which of them are alike, `(n,)`: their logarithms are taken about the medians of these.
    """
    logs = np.log(np.abs(values).clip(min=1e-300))
    logs = logs[np.lexsort((logs, bins))]
    counts = np.bincount(bins)
    counts = counts[counts > 0]
    first = counts.cumsum() - counts
    medians = (logs[first + (counts - 1) // 2] + logs[first + counts // 2]) / 2
    above = logs - medians.repeat(counts)
    return float(np.quantile(above[above >= 0], math.erf(0.5**0.5)))


def lognormal_kurtosis(spread: float) -> float:
    r"""The variance of the squared deviation of a lognormal in units of the variance's square."""
    x = math.exp(min(spread**2, 100.0))
    return x**4 + 2 * x**3 + 3 * x**2 - 4


def pareto_shape(values: np.ndarray) -> tuple[float, int]:
    r"""The shape k of the tail of positive numbers `(n,)` and from how many it is; -inf where they are too few to tell."""
    values = np.sort(np.asarray(values, dtype=np.float64))
    count = int(min(0.2 * len(values), 3 * len(values) ** 0.5))
    x = values[-count:] - values[-count - 1] if count >= FEWEST_EXCEEDANCES else values[:0]
    x = x[x > 0]
    n = len(x)
    if n < FEWEST_EXCEEDANCES:
        return -math.inf, max(n, 1)
    grid = 30 + int(n**0.5)
    b = 1 / x[-1] + (1 - (grid / (np.arange(1, grid + 1) - 0.5)) ** 0.5) / (3 * x[int(n / 4 + 0.5) - 1])
    b = np.where(b == 0, 1e-300, b)
    k = np.log1p(-b[:, None] * x).mean(axis=1)
    likelihood = n * (np.log(-b / k) - k - 1)
    weights = np.exp(likelihood - likelihood.max())
    best = (b * weights).sum() / weights.sum()
    return float((n * np.log1p(-best * x).mean() + 10 * 0.5) / (n + 10)), n


# ---- ddpm_vlb/sampled_bound/rounds.py ----

r"""Rounds of draws, and the estimates that they give."""





@dataclass
class Round:
    r"""The values of draws and the design that they are weighed by.

    Args:
        design: what m is, and p.
        draws: images, rows and keys, `(images, strata, draws)`.
        left_over: :math:`\ell_t - m_t` in bits/dim, of the same shape.
        values: :math:`\ell_t` in bits/dim, of the same shape.
        paired: whether images lie in pairs that share their cells, as `Design.draw` has them.
        worth: how much an evaluation of the pilot counts beside one of a later round; `None` in a later round.
        between_before: where images are drawn once, what earlier rounds say of `between` under this design.
    """

    design: Design
    draws: Draws
    left_over: torch.Tensor
    values: torch.Tensor
    paired: bool
    worth: float | None = None
    between_before: float = 0.0

    def __post_init__(self):
        self.images = self.draws.images[:, 0, 0]
        self.rows = torch.as_tensor(self.draws.rows)
        self.y = self.design.weigh(self.draws.rows, self.left_over)
        self.d = self.y.mean(dim=(1, 2))

    @property
    def evaluations(self) -> int:
        r"""How many draws there are."""
        return self.y.numel()

    @property
    def is_double(self) -> bool:
        r"""Whether an image is drawn twice in a stratum."""
        return self.y.shape[2] == 2

    @property
    def between(self) -> float:
        r"""The variance over images of :math:`D_i`, from doubled draws; may come out negative."""
        # Over all images, for the cells of an image's two draws are drawn apart; of pairs there are half as many.
        return torch.cov(self.y.mean(dim=1).T)[0, 1].item() if len(self.images) > 1 else 0.0

    def between_pairs(self, d: torch.Tensor) -> torch.Tensor:
        r"""Summands, for each pair or image, whose mean is the variance over images of `d`, a number of each image."""
        if self.paired:
            even = len(d) // 2 * 2
            return (d[0:even:2] - d[1:even:2]).square() / 2
        return (d - d.mean(dim=0)).square() * len(d) / max(len(d) - 1, 1)

    @cached_property
    def noise(self) -> torch.Tensor:
        r"""Summands of the sum over images of the variances of their means, `(pairs or images, strata)`, from doubled draws.

        Two draws of one image differ by their noise and by their cells; those of the other image of the pair by the same cells.
        """
        y, strata = self.y, self.y.shape[1]
        difference = y[:, :, 0] - y[:, :, 1]
        if not self.paired:
            return difference.square() / (4 * strata**2)
        even = len(y) // 2 * 2
        pairs = (difference[0:even:2] - difference[1:even:2]).square() / (4 * strata**2)
        return torch.cat([pairs, difference[even:].square() / (4 * strata**2)])

    def variance(self, frame_size: int) -> tuple[float, float]:
        r"""The Monte Carlo variance of the mean, given the frame, and the variance of that number itself."""
        summands, freedom = self.summands(frame_size)
        variance, n = summands.sum().item(), len(summands)
        # Of few summands the spread says little, but there cannot be more degrees of freedom than these.
        return variance, max(summands.var().item() * n if n > 1 else 0.0, 2 * variance**2 / max(freedom, 1))

    def summands(self, frame_size: int) -> tuple[torch.Tensor, int]:
        r"""What the Monte Carlo variance is the sum of, and its degrees of freedom at the most."""
        m, share = len(self.images), len(self.images) / frame_size
        if share == 1 and self.is_double:
            summands = self.noise.flatten() / m**2
            return summands, len(summands)
        between = self.between_pairs(self.d)
        between = between / (len(between) * m)
        if not self.is_double:
            # The images' own part of it does not count for those that were met, and the rest is noise.
            own = min(1.0, max(self.between_before, 0.0) / max(between.sum().item() * m, 1e-300))
            return (1 - share * own) * between, len(between) - (not self.paired)
        noise = self.noise.sum(dim=1)
        if self.paired:
            noise = noise[: len(between)]  # an odd image has no partner
        noise = noise * (len(self.images) / (2 * len(between) if self.paired else len(between)))
        return (1 - share) * between + share * noise / m**2, len(between) - (not self.paired)

    def by_bin(self, bins: torch.Tensor, num_bins: int, frame_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        r"""What each bin contributes to the mean, and the Monte Carlo variance of that, `(num_bins,)` each."""
        m, strata, draws = self.y.shape
        share = m / frame_size if self.is_double else 0.0
        of_images = torch.zeros(m, num_bins, dtype=torch.float64)
        of_images.scatter_add_(1, bins.reshape(m, -1), self.y.reshape(m, -1) / (strata * draws))
        variance = torch.zeros(num_bins, dtype=torch.float64)
        if share < 1:
            variance += (1 - share) * self.between_pairs(of_images).mean(dim=0) / m
        if share > 0:
            variance += share * self._noise_by_bin(bins, num_bins) / m**2
        return of_images.mean(dim=0), variance

    def _noise_by_bin(self, bins: torch.Tensor, num_bins: int) -> torch.Tensor:
        r"""The sum of `noise` for what falls into each bin: of a square of sums the products within one bin."""
        even = len(bins) // 2 * 2 if self.paired else 0
        noise = torch.zeros(num_bins, dtype=torch.float64)
        for first, last, images, signs in ((0, even, 2, [1, -1, -1, 1]), (even, len(bins), 1, [1, -1])):
            if first == last:
                continue
            y, where = (
                x[first:last].reshape(-1, images, *x.shape[1:]).transpose(1, 2).reshape(-1, 2 * images) for x in (self.y, bins)
            )
            y = y * torch.tensor(signs)
            alike = where[:, :, None] == where[:, None]
            noise.index_add_(0, where.flatten(), (y * (alike * y[:, None]).sum(dim=2)).flatten())
        return noise / (4 * self.y.shape[1] ** 2)


class Sums:
    r"""The rounds so far, and the estimates that they give."""

    def __init__(self, edges: np.ndarray, prior: torch.Tensor, image_features: torch.Tensor, frame: np.ndarray):
        self.edges, self.prior, self.image_features, self.frame = edges, prior.double(), image_features, frame
        self.rounds: list[Round] = []
        self._judged: tuple[int, str | None] = (0, None)

    def with_round(self, one: Round) -> "Sums":
        r"""These and another."""
        sums = Sums(self.edges, self.prior, self.image_features, self.frame)
        sums.rounds = [*self.rounds, one]
        return sums

    @property
    def num_evaluations(self) -> int:
        r"""Evaluations of all rounds."""
        return sum(one.evaluations for one in self.rounds)

    @property
    def weights(self) -> list[float]:
        r"""Of the rounds, of sum 1: by their evaluations, never by their variances; later ones make up what the pilot lacks.

        What a half of the pilot is worth is nothing of its own, so that its weight goes with no value of it.
        """
        later = [one.evaluations for one in self.rounds if one.worth is None]
        pilot = [one.worth * one.evaluations / self.num_evaluations for one in self.rounds if one.worth is not None]
        return [*pilot, *((1 - sum(pilot)) * evaluations / sum(later) for evaluations in later)]

    @property
    def later(self) -> list[Round]:
        r"""The rounds after the pilot; the pilot where there are none."""
        return [one for one in self.rounds if one.worth is None] or self.rounds

    def _over_images(self, of_round) -> float:
        r"""The mean of what rounds with doubled draws say, by their images; of the pilot only where there are no others."""
        rounds = [one for one in self.later if one.is_double] or [one for one in self.rounds if one.is_double]
        weights = [len(one.images) for one in rounds]
        return sum(w * of_round(one) for w, one in zip(weights, rounds)) / sum(weights)

    @property
    def between(self) -> float:
        r"""The variance over images of what the control variate leaves of an image's bound; may come out negative."""
        return self._over_images(lambda one: one.between)

    @property
    def within(self) -> float:
        r"""The variance of a draw about its image's mean."""
        return self._over_images(lambda one: 2 * one.y.shape[1] * one.noise.sum().item() / len(one.images))

    @property
    def frame_variance(self) -> float:
        r"""The variance from having only the frame's images at hand, not all N."""
        share = len(self.frame) / len(self.prior)
        return 0.0 if share == 1 else (1 - share) * max(self.between, 0.0) / len(self.frame)

    def _known(self, one: Round) -> torch.Tensor:
        r"""What is known of each image's bound, `(N,)`."""
        return self.prior + self.image_features @ one.design.known.sum(dim=0)

    def _data_error(self) -> float | None:
        if len(self.prior) == 1:
            return None

        def variance_of(one: Round) -> float:
            known = self._known(one)
            covariance = torch.cov(torch.stack([known[one.images], one.d]))[0, 1].item() if len(one.images) > 1 else 0.0
            return known.var().item() + 2 * covariance + one.between

        return math.sqrt(max(self._over_images(variance_of), 0.0) / len(self.prior))

    def _of_images(self) -> dict[str, torch.Tensor | None]:
        r"""Each image's own estimate, where all were drawn alike."""
        names = ("per_image", "per_image_decoder", "per_image_error", "per_image_degrees_of_freedom")
        if any(one.paired or not one.is_double or len(one.images) < len(self.prior) for one in self.rounds):
            return dict.fromkeys(names)
        bounds, decoders, squares, fourths = torch.zeros(4, len(self.prior), dtype=torch.float64)
        for weight, one in zip(self.weights, self.rounds):
            noise = one.noise
            bounds += weight * self._known(one)
            decoders += weight * (self.image_features @ one.design.known[0])
            bounds[one.images] += weight * one.d
            decoders[one.images] += weight * (one.y * (one.rows == 0)).mean(dim=(1, 2))
            squares[one.images] += weight**2 * noise.sum(dim=1)
            fourths[one.images] += weight**4 * noise.square().sum(dim=1)
        # Satterthwaite's, of pairs with 1 each: the fewer, the less alike the strata are. Of single squares it comes out
        # low, at a third where they are normal and alike, which makes up for heavier tails.
        freedom = torch.where(fourths > 0, squares.square() / fourths, 1.0).clamp(min=1.0)
        return dict(zip(names, (bounds, decoders, squares.sqrt(), freedom)))

    @property
    def _bins_of_rows(self) -> torch.Tensor:
        widths = np.diff(self.edges)
        return torch.from_numpy(np.arange(len(widths)).repeat(widths))

    def doubt(self) -> str | None:
        r"""Why the error cannot be trusted, `None` where nothing speaks against it."""
        if self._judged[0] < len(self.rounds):
            bins_of_rows = self._bins_of_rows
            parts = [[one.y.flatten(), one.values.flatten(), bins_of_rows[one.rows].flatten()] for one in self.later]
            reason = doubt(self.num_evaluations, *(torch.cat(part).numpy() for part in zip(*parts)))
            self._judged = len(self.rounds), reason
        return self._judged[1]

    def number(self) -> Number:
        r"""The estimate from all rounds, and nothing beside it."""
        features = self.image_features.mean(dim=0)
        value, variance, noise = self.prior.mean().item(), self.frame_variance, 0.0
        for weight, one in zip(self.weights, self.rounds):
            one_variance, one_noise = one.variance(len(self.frame))
            value += weight * ((one.design.known.sum(dim=0) @ features).item() + one.d.mean().item())
            variance += weight**2 * one_variance
            noise += weight**4 * one_noise
        return Number(value, math.sqrt(variance), max(1.0, 2 * variance**2 / noise) if noise > 0 else 1.0)

    def estimate(self, num_evaluations: int, num_unused: int, num_rounds: int) -> BoundEstimate:
        r"""The estimate from all rounds, and what it is made of."""
        bins_of_rows = self._bins_of_rows
        num_bins, num_rows = len(self.edges) - 1, len(bins_of_rows)
        by_bin, bin_variance = torch.zeros(2, num_bins, dtype=torch.float64)
        features = self.image_features.mean(dim=0)
        terms, counts = torch.zeros(2, num_rows, dtype=torch.float64)
        for weight, one in zip(self.weights, self.rounds):
            known = one.design.known @ features
            bins = bins_of_rows[one.rows]
            value, spread = one.by_bin(bins, num_bins, len(self.frame))
            by_bin += weight * (value + torch.zeros_like(by_bin).index_add_(0, bins_of_rows, known))
            bin_variance += weight**2 * spread
            rows = one.rows.flatten()
            terms.index_add_(0, rows, one.left_over.flatten() + known[rows])
            counts += torch.bincount(rows, minlength=num_rows)
        counts_by_bin = torch.zeros_like(by_bin).index_add_(0, bins_of_rows, counts).long()
        of_bins = zip(
            self.edges.tolist(),
            (self.edges - 1).tolist()[1:],
            *(x.tolist() for x in (by_bin, bin_variance.sqrt(), counts_by_bin)),
        )
        number = self.number()
        return BoundEstimate(
            bits_per_dim=number.bits_per_dim,
            monte_carlo_error=number.monte_carlo_error,
            degrees_of_freedom=number.degrees_of_freedom,
            prior=self.prior.mean().item(),
            bins=[Bin(*of_bin) for of_bin in of_bins],
            data_error=self._data_error(),
            terms=terms / counts,
            term_evaluations=counts.long(),
            **self._of_images(),
            num_evaluations=num_evaluations,
            num_pilot_evaluations=num_unused,
            num_rounds=num_rounds,
            doubt=self.doubt(),
        )


# ---- ddpm_vlb/sampled_bound/rules.py ----

r"""When a sampled estimate is good enough: what may be asked for. Without torch, so that the command line can read it."""



def check_rules(target_se: float | None, max_evaluations: int | None, evaluations_per_image: int | None) -> None:
    r"""Raise `ValueError` unless the rules to stop by can be followed."""
    if target_se is None and max_evaluations is None and evaluations_per_image is None:
        raise ValueError("One of `target_se`, `max_evaluations` and `evaluations_per_image` must be given, got none.")
    if target_se is not None and not (0 < target_se < math.inf):
        raise ValueError(f"`target_se` must be a positive number of bits/dim, got {target_se!r}.")
    if max_evaluations is not None and max_evaluations < 1:
        raise ValueError(f"`max_evaluations` must be at least 1, got {max_evaluations!r}.")
    if evaluations_per_image is not None:
        if target_se is not None or max_evaluations is not None:
            raise ValueError("`evaluations_per_image` says when to stop: leave out `target_se` and `max_evaluations`.")
        if evaluations_per_image < 2 or evaluations_per_image % 2:
            raise ValueError(f"`evaluations_per_image` must be an even number from 2 on, got {evaluations_per_image!r}.")


# ---- ddpm_vlb/sampled_bound/estimate.py ----

r"""The bound of a data set from few evaluations, unbiased, with an error that is measured and not assumed.

The bound of image i is :math:`A_i = P_i + \sum_t E_\epsilon\, \ell_t(x_i, \epsilon)`, with the prior term :math:`P_i` in closed
form, and that of a data set of N images is :math:`\bar A`. An evaluation of the network gives one
:math:`\ell_t(x_i, \epsilon)`.

**Designs.** Two things are settled before a draw is made, and what they got wrong costs evaluations, not truth: a control
variate :math:`m_t(x, \epsilon)` (`control_variates.py`) and the probabilities :math:`p_t \propto \sigma_{b(t)}` of the
timesteps, Neyman's allocation for the standard deviation of what the control variate leaves over in each of B bins of
timesteps, mixed with a floor. (The decoder is a bin of its own, and so is a step of the grid that is much longer than its
neighbours, for its term is as much larger. Where nothing is known of the steps, a look at each of them tells.) Both are learned
anew before every round from all draws before it. What one image unlike all others would do to them is bounded. A pilot with all
bins alike comes first, in two halves: each counts with the control variate that the other has taught, and by what the other
says that an evaluation of it is worth beside later ones.

**Rounds.** m of the N images are drawn without replacement. Each is evaluated 2V times: its quantiles of p are cut into V
strata, with two draws in each. A draw gives :math:`y = (\ell_t - m_t) / p_t`, of mean
:math:`D_i = A_i - P_i - \sum_t \phi_i^\top b_t`. A stratum is cut further, into as many cells as there are pairs of draws: a
pair of images has two cells to itself, which both visit, so that all cells are visited alike and the mean of y over the
timesteps adds nothing to the variance (a Latin square of images and cells). With :math:`d_i` the mean of the draws of image i,
:math:`d_{i1}, d_{i2}` those of its first and its second ones, i and j a pair, and :math:`f = m / N`,

.. math::
    \hat A &= \bar P + \sum_t \bar\phi^\top b_t + \frac1m \sum_i d_i, \qquad
    s^2 = \overline{(d_i - d_j)^2 / 2}, \qquad
    v_i = \frac{1}{V^2} \sum_v \frac{(y_{iv1} - y_{iv2} - y_{jv1} + y_{jv2})^2}{8}, \\
    \widehat{\mathrm{Var}}[\hat A \mid \text{images}] &= (1 - f) \frac{s^2}{m} + f\, \frac{\bar v}{m}
        & \text{(Monte Carlo)} \\
    \widehat{\mathrm{Var}}[\bar A] &= \frac1N \widehat{\mathrm{Var}}_i[A_i], \qquad
        \widehat{\mathrm{Cov}}_i[d_{i1}, d_{i2}] \text{ being that of } D_i & \text{(the images')}

all without bias for a number of evaluations fixed beforehand: two-stage sampling (Cochran 1977, eq. 10.15), each image
measured twice. Pairs share their cells, so that the differences between them are of images and noise, and the differences
of differences of noise alone. Where every image is to have a number of its own, images are not paired, and
:math:`v_i = \sum_v (y_{iv1} - y_{iv2})^2 / 4 V^2`.

**Stopping.** A run to a target sees 3,000 images, or all: what none of so many shows, no thousandth of the data set has, with
95 % confidence. (Seen once each, noise and images cannot be told apart; how much is the images' own, the pilot tells.) Its
first round is somewhat smaller than the pilot says that the wanted error needs; others follow by the variance seen until then,
until the error is reached. Then as many evaluations again follow, while the error rests on less than 40 degrees of freedom or
something speaks against it (`tails.py`), up to 16 times. Rounds count by their evaluations, never by their variances.
Intervals are Student's, with as many degrees of freedom as the spread of the variance's own summands leaves (Satterthwaite),
so that heavy tails widen them. A round whose variance came out small is the last one, and where losses are skewed its mean
then tends to be small as well: with a target the estimate has a bias toward less, of which `tests/benchmarks/worlds.py` writes
a table. A number of evaluations fixed beforehand brings none.

An image by itself has the error :math:`\sqrt{v_i}`, of V squares, and Satterthwaite's degrees of freedom,
:math:`(\sum_v v_{iv})^2 / \sum_v v_{iv}^2` with :math:`v_{iv}` the summands of :math:`v_i`: V at the most, and few where some
strata have most of the variance.

Everything drawn is a function of (seed, round, image, place): of no batch, order or process.
"""




PILOT_EVALUATIONS = 640
LOOKS = 1000  # where nothing is known of the rows
LONG_LOOK = 8.0  # of a single value, which has its noise
FIRST_SHARE = 0.75  # of what the pilot thinks is needed
MIN_IMAGES = 3000  # of a run to a target: with 95 % confidence, what none of them shows no thousandth of all has
MIN_DRAWS = 256  # of a first round: fewer would say little of their own error
MAX_DRAWS = 2**20  # of a round, which lies in memory
MIN_FREEDOM = 40.0  # of an error that a run to a target may end with: fewer, and it is not known to a tenth
PATIENCE = 16  # times the evaluations with which the target was met, while its error is vague or in doubt
MIN_FRAME = 200  # images that stand for a data set: the control variate, fitted to a few of them, suits fewer too well


def estimate_bound(
    evaluate: Evaluate,
    num_steps: int,
    prior: torch.Tensor,
    image_features: torch.Tensor,
    *,
    seed: int,
    target_se: float | None = None,
    max_evaluations: int | None = None,
    evaluations_per_image: int | None = None,
    evaluations_per_draw: int = 1,
    row_sizes: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    frame: np.ndarray | None = None,
) -> BoundEstimate:
    r"""Estimate the bound of N images.

    Args:
        evaluate: gives the terms of draws, in bits/dim.
        num_steps: rows of the grid, K; row 0 is the decoder's.
        prior: :math:`L_T` of each image in bits/dim, `(N,)`.
        image_features: :math:`\phi` of each image, `(N, P)`, the first a constant 1.
        seed: of everything that is drawn.
        target_se: the Monte Carlo error at which to stop.
        max_evaluations: network evaluations at which to stop, the pilot's included.
        evaluations_per_image: evaluate every image this many times, an even number, instead.
        evaluations_per_draw: network evaluations that a draw takes at most, by which `max_evaluations` counts.
        row_sizes: what is known beforehand of how large the terms of the rows are beside each other, `(K,)`; by default
            nothing, so that each row is looked at.
        ids: what the draws of each image are keyed by, `(N,)`; by default its position.
        frame: positions of the images that may be evaluated, themselves drawn without replacement; by default all.

    Raises:
        ValueError: no rule to stop by, or one that cannot be kept.
    """
    check_rules(target_se, max_evaluations, evaluations_per_image)
    count = len(prior)
    ids = np.arange(count) if ids is None else np.asarray(ids)
    frame = np.arange(count) if frame is None else np.asarray(frame)
    if len(frame) < min(count, MIN_FRAME):
        raise ValueError(f"`frame` must hold at least {MIN_FRAME} images, or all, to stand for {count}, got {len(frame)}.")
    budget = math.inf if max_evaluations is None else max_evaluations // evaluations_per_draw
    planned = len(frame) * evaluations_per_image if evaluations_per_image else budget
    run = _Run(evaluate, bin_edges(num_steps, row_sizes), prior, standardize(image_features), ids, frame, seed)
    num_pilot = run.plan_pilot(min(planned / 3, count * num_steps / 4), look=row_sizes is None)
    if num_pilot + 4 > budget:
        raise ValueError(
            f"`max_evaluations` must leave room for a pilot of {num_pilot * evaluations_per_draw} and a round of"
            f" {4 * evaluations_per_draw}, got {max_evaluations}."
        )
    run.pilot(counts=not evaluations_per_image)
    if evaluations_per_image:
        run.round(Shape(len(frame), evaluations_per_image // 2, 2), paired=False)
        return run.estimate()
    wanted = math.inf if target_se is None else run.wanted(target_se)
    reached = 0
    while True:
        evaluations = min(wanted, budget - run.spent, MAX_DRAWS)
        number = run.round(_shape(evaluations, len(frame), run.missing_images(target_se)), paired=len(frame) > 1)
        left = budget - run.spent
        if left < 4 or target_se is None and left < 0.02 * budget:
            return run.estimate()
        wanted = left if target_se is None else run.still_wanted(number.monte_carlo_error, target_se)
        if wanted:
            continue
        # Twice as many, so that few looks are taken: each that lets it end is one more chance of a small variance.
        reached = reached or run.spent
        if run.spent >= PATIENCE * reached or not (_is_vague(number) or run.sums.doubt()):
            return run.estimate()
        wanted = run.spent


class _Run:
    r"""An evaluation under way: what was seen, what it taught, and what counts."""

    def __init__(self, evaluate: Evaluate, edges: np.ndarray, prior, image_features, ids, frame, seed: int):
        self._evaluate, self.ids, self.frame, self.seed = evaluate, ids, frame, seed
        self.edges, self.image_features = edges, image_features
        self.sums = Sums(edges, prior, image_features, frame)
        self.seen: list[tuple[Draws, torch.Tensor, torch.Tensor]] = []
        self.spent = self.num_unused = self.num_rounds = 0

    def plan_pilot(self, most: float, look: bool) -> int:
        r"""Settle how large the look and the pilot are, within `most` evaluations each; returns the evaluations of both."""
        looks = int(min(self.edges[-1], LOOKS))
        self._num_looks = 0 if not look or most < looks / 2 else int(min(looks, most))
        half = math.ceil(max(2 * len(self.edges) - 2, min(PILOT_EVALUATIONS, most)) / 2)
        strata = max(1, round(half / (2 * len(self.frame))))
        self._half = Shape(min(len(self.frame), max(2, math.ceil(half / (2 * strata)))), strata, 2)
        return self._num_looks + 2 * self._half.evaluations

    def pilot(self, counts: bool) -> None:
        r"""Evaluate what the first design is learned from; with `counts` each half of it with what the other taught."""
        if self._num_looks:
            self._look()
        first = first_probabilities(self.edges)
        nothing = Design(first, torch.zeros(len(first), 1, dtype=torch.float64), 1)
        for part in range(2):
            key = mix(mix(self.seed, 0), part)
            draws = nothing.draw(self.ids, self.frame, key, self._half, paired=len(self.frame) > 1)
            self._see(draws, lambda values, features: None)
        self.spent += 2 * self._half.evaluations
        if not counts:
            self.num_unused = self.spent
            return
        for one, other in (self.seen, self.seen[::-1]):
            coefficients, spread = self._fit([other])
            best = best_probabilities(self.edges, spread)
            worth = min(1.0, _variance_of_draw(spread, best) / _variance_of_draw(spread, first))
            design = Design(first, coefficients, self.image_features.shape[1])
            self.sums.rounds.append(self._as_round(design, *one, paired=len(self.frame) > 1, worth=worth))

    def _look(self) -> None:
        r"""One draw in each row, or, of many, in as many as there may be: a row that sticks out is a bin of its own."""
        rows, count = int(self.edges[-1]), self._num_looks
        images = np.resize(order_of(self.ids, self.frame, mix(self.seed, 2)), count)
        keys = mix_array(mix(self.seed, 3), np.arange(count))
        places = ((np.arange(count) + uniform_array(mix_array(keys, 1))) * rows / count).astype(np.int64)
        values, _ = self._evaluate(Draws(images, places, mix_array(keys, 2)), lambda values, features: None)
        self.edges = split_long(self.edges, np.interp(np.arange(rows), places, values.abs().double().numpy()), LONG_LOOK)
        self.spent = self.num_unused = count

    def missing_images(self, target_se: float | None) -> int:
        r"""How many images a run to a target has yet to see."""
        return 0 if target_se is None or self.num_rounds else min(len(self.frame), MIN_IMAGES)

    def wanted(self, target_se: float) -> float:
        r"""Evaluations of a first round to `target_se`: rather less than the pilot says, for the next one knows better."""
        size = len(self.frame)
        worth = sum(half.worth or 0.0 for half in self.sums.rounds) / 2
        within, between = worth * self.sums.within, max(self.sums.between, 0.0)
        draws = (within + between) / target_se**2
        if draws > size:
            images = (between + within / 2) / (target_se**2 + between / len(self.sums.prior))
            draws = 2 * images if images <= size else within / target_se**2
        draws = FIRST_SHARE * draws - worth * self.sums.num_evaluations
        return math.ceil(max(MIN_DRAWS, min(size, MIN_IMAGES), draws))

    def still_wanted(self, error: float, target_se: float) -> float:
        r"""Evaluations that bring `error` down to `target_se`, 0 where none is needed."""
        if error <= target_se:
            return 0
        # Of the variance, what more images in memory would have to bring down does not fall with more evaluations.
        fixed = self.sums.frame_variance
        if fixed >= target_se**2:
            raise ValueError(
                f"`target_se` must be above {fixed**0.5:.2g}, the error of having {len(self.frame)} of"
                f" {len(self.sums.prior)} images at hand, got {target_se}. Give a larger buffer."
            )
        missing = self.spent * ((error**2 - fixed) / (target_se**2 - fixed) - 1)
        return math.ceil(max(4.0, 1.05 * missing, 0.05 * self.spent))

    def round(self, shape: Shape, paired: bool) -> Number:
        r"""Another round, by what all before it taught; returns the number with it."""
        coefficients, spread = self._fit(self.seen)
        design = Design(best_probabilities(self.edges, spread), coefficients, self.image_features.shape[1])
        draws = design.draw(self.ids, self.frame, mix(self.seed, 4 + self.num_rounds), shape, paired)
        before = self._between_before(design) if shape.draws == 1 else 0.0
        as_round = partial(self._as_round, design, paired=paired, between_before=before)
        self._see(draws, partial(self._preview, draws, as_round))
        self.sums.rounds.append(as_round(*self.seen[-1]))
        self.spent, self.num_rounds = self.spent + shape.evaluations, self.num_rounds + 1
        return self.sums.number()

    def estimate(self) -> BoundEstimate:
        r"""What all rounds say."""
        return self.sums.estimate(self.spent, self.num_unused, self.num_rounds)

    def _between_before(self, design: Design) -> float:
        r"""What the pilot says of the variance over images under a design."""
        same = Design(self.sums.rounds[0].design.probabilities, design.coefficients, design.num_image_features)
        return sum(self._as_round(same, *half, paired=True).between for half in self.seen[:2]) / 2

    def _see(self, draws: Draws, preview: Preview) -> None:
        values, noise_features = self._evaluate(Draws(*(array.reshape(-1) for array in draws)), preview)
        self.seen.append((draws, *self._shaped(draws, values, noise_features)))

    def _shaped(self, draws: Draws, values, noise_features) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Values of draws, and the features of image and noise side by side."""
        shape = draws.rows.shape
        noise_features = noise_features.double().reshape(*shape, -1)
        features = torch.cat([self.image_features[torch.as_tensor(draws.images)], noise_features], dim=-1)
        return values.double().reshape(shape), features

    def _fit(self, seen) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.cat([torch.as_tensor(draws.rows).flatten() for draws, _, _ in seen])
        values = torch.cat([values.flatten() for _, values, _ in seen])
        return fit(self.edges, rows, values, torch.cat([features.flatten(0, -2) for _, _, features in seen]))

    @staticmethod
    def _as_round(design: Design, draws: Draws, values, features, **more) -> Round:
        return Round(design, draws, design.left_over(draws.rows, values, features), values, **more)

    def _preview(self, draws: Draws, as_round, values, noise_features) -> Number | None:
        r"""The estimate with the part of a round whose values are there, `None` for less than eight images."""
        images = len(values) // draws.rows[0].size
        images -= images % 2 if len(draws.rows) > 1 else 0
        if images < min(8, len(draws.rows)):
            return None
        part = Draws(*(array[:images] for array in draws))
        shaped = self._shaped(part, values[: part.rows.size], noise_features[: part.rows.size])
        return self.sums.with_round(as_round(part, *shaped)).number()


def _shape(evaluations: float, frame_size: int, missing_images: int) -> Shape:
    r"""Of a round: twice as many images as there may be, then all in more strata; only once each where it lacks images."""
    if 1 < evaluations <= frame_size and evaluations < 2 * missing_images:
        return Shape(max(2, int(evaluations)), 1, 1)
    strata = max(1, int(evaluations // (2 * frame_size)))
    return Shape(min(frame_size, max(1, int(evaluations // (2 * strata)))), strata, 2)


def _is_vague(number: Number) -> bool:
    r"""Whether its error is known too little to end with."""
    return number.monte_carlo_error > 0 and number.degrees_of_freedom < MIN_FREEDOM


def _variance_of_draw(spread: torch.Tensor, probabilities: torch.Tensor) -> float:
    return (spread.square() / probabilities).sum().item() or 1.0


# ---- ddpm_vlb/sampled_bound/draw_scorer.py ----

r"""Images and networks as the estimator sees them: terms for its draws, and what is known without a network.

`estimate_frame` is the one way from scorers and images to an estimate; evaluations, comparisons, the bias of half precision and
`evaluate_nll` all go it.
"""




SPECTRUM_IMAGES = 1024
ROUNDING = 1e-12  # relative


class Cells(NamedTuple):
    r"""What a draw's row stands for: for each scorer a row of its grid, -1 for none, and a factor, `(K,)` each."""

    rows: torch.Tensor  # (scorers, K)
    factors: torch.Tensor  # (scorers, K)


def rows_of(forward: ForwardProcess) -> Cells:
    r"""A single grid: its rows as they are."""
    rows = torch.arange(len(forward))[None]
    return Cells(rows, torch.ones(rows.shape, dtype=torch.float64))


def match_rows(first: ForwardProcess, second: ForwardProcess) -> Cells:
    r"""Two grids cut at each other's noise levels: sums over cells of (factor times term) are the sums over their rows.

    A transition takes the noise from one level to the next. Where the levels are the same, so are cells and rows; elsewhere a
    transition is cut where the other grid has a level, and its term goes to the pieces by their lengths, as angles
    :math:`\arctan(\sigma_t / \sqrt{\bar\alpha_t})`. Each piece has the steps of both grids that it lies in, whose terms are
    alike under the same noise. The decoders are one cell.
    """
    levels = [
        torch.atan2((1 - f.alphas_cumprod).clamp(min=0).sqrt(), f.alphas_cumprod.sqrt()).double() for f in (first, second)
    ]
    edges = torch.cat(levels).unique()
    # Levels that differ by rounding alone are one. What could be lost between them is nothing: a denoiser's error is at most
    # its input's, D / SNR, and a transition's KL at most D / 2 times the relative change of the SNR.
    edges = edges[torch.cat([torch.ones(1, dtype=torch.bool), edges.diff() > ROUNDING * edges[:-1]])]
    rows, factors = [], []
    for level in levels:
        ends = torch.bucketize(level * (1 + ROUNDING), edges, right=True) - 1  # the edge that each level is
        pieces = torch.arange(len(edges) - 1)
        row = torch.bucketize(pieces, ends, right=True)  # the transition from level row - 1 to level row
        inside = (row > 0) & (row < len(level))
        row = torch.where(inside, row, -1)
        upper = row.clamp(min=1, max=len(level) - 1)  # a grid of one step has no transition, and no row inside
        lengths = edges.diff() / (edges[ends[upper]] - edges[ends[(upper - 1).clamp(min=0)]]).clamp(min=1e-300)
        rows.append(torch.cat([torch.zeros(1, dtype=torch.int64), row]))
        factors.append(torch.cat([torch.ones(1, dtype=torch.float64), torch.where(inside, lengths, 0.0)]))
    rows, factors = torch.stack(rows), torch.stack(factors)
    used = (rows >= 0).any(dim=0)
    return Cells(rows[:, used], factors[:, used])


def size_of_terms(forward: ForwardProcess) -> torch.Tensor:
    r"""How large the KL terms are beside each other, up to what a network makes of them, `(K,)`; that of the decoder is 1.

    With the posterior's variance the KL of the step from t to s is :math:`(\mathrm{SNR}_s - \mathrm{SNR}_t) / 2` times the
    squared error of the predicted image (VDM, eq. 13); of a Gaussian pixel of variance 1 that is
    :math:`1 / (1 + \mathrm{SNR}_t)` at best.
    """
    snr = forward.snr.double()
    return torch.cat([torch.ones(1, dtype=torch.float64), (snr[:-1] - snr[1:]) / (1 + snr[1:])])


class DrawScorer:
    r"""Evaluates the draws of `sampled_bound.estimate_bound` for images that lie in memory.

    Args:
        scorers: one; or two whose difference, first minus second, is wanted. Both then meet an image with the same noise, at
            the same noise level or close by (`match_rows`).
        levels: the images, `(M, C, H, W)`.
        positions: where they lie in the data set, ascending, `(M,)`.
        ids: what their draws are keyed by, `(M,)`.
        seed: of the evaluation.
        class_labels: for each scorer, `(M,)` or `None`.

    `num_steps` is the number of rows that may be drawn, and `row_sizes` says how large their terms are beside each other.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        levels: torch.Tensor,
        positions: np.ndarray,
        ids: np.ndarray,
        seed: int,
        class_labels: Sequence[torch.Tensor | None] = (None, None),
    ):
        self.scorers, self.levels, self.positions, self.class_labels = tuple(scorers), levels, positions, tuple(class_labels)
        forwards = [scorer.reverse.forward for scorer in scorers]
        self._cells = rows_of(forwards[0]) if len(forwards) == 1 else match_rows(*forwards)
        self.num_steps = self._cells.rows.shape[1]
        sizes = [size_of_terms(f)[rows.clamp(min=0)] * (rows >= 0) for f, rows in zip(forwards, self._cells.rows)]
        self.row_sizes = (torch.stack(sizes) * self._cells.factors).amax(dim=0).numpy()
        chosen = order_of(ids, np.arange(len(ids)), mix(seed, 0), SPECTRUM_IMAGES)
        # Of two grids the mean of both levels, so that it does not matter which is the first.
        there = self._cells.rows >= 0
        signal = torch.stack([f.alphas_cumprod[row.clamp(min=0)].double() for f, row in zip(forwards, self._cells.rows)])
        self._controls = ControlVariates(
            (signal * there).sum(dim=0) / there.sum(dim=0),
            map(scorers[0].samples, in_parts(levels[torch.as_tensor(chosen)])),
        )

    def cost(self, draws: Draws) -> int:
        r"""Network evaluations that draws take."""
        return int((self._cells.rows[:, torch.as_tensor(draws.rows)] >= 0).sum())

    def batches(self, draws: Draws, batch_size: int) -> Iterator[Draws]:
        r"""The draws in batches."""
        for start in range(0, len(draws.rows), batch_size):
            yield Draws(*(array[start : start + batch_size] for array in draws))

    def check_finite(self, draws: Draws, values: torch.Tensor) -> None:
        r"""Raise `ValueError` for values that are not finite, naming the image and the timestep."""
        bad = (~torch.isfinite(values)).nonzero().flatten()
        if len(bad):
            rows = self._cells.rows[:, int(draws.rows[bad[0]])]
            scorer, row = next((scorer, row) for scorer, row in zip(self.scorers, rows) if row >= 0)
            of_two = ", of one of the two networks" if len(self.scorers) == 2 else ""
            raise NonFiniteOutput(
                f"a term of {values[bad[0]].item()} bits/dim",
                image=int(draws.images[bad[0]]),
                timestep=int(scorer.reverse.forward.timesteps[row]),
                share=f"{len(bad)} of {len(values)} terms are not finite{of_two}",
                dtype=next((s.dtype for s in self.scorers if s.network.is_half), scorer.dtype),
            )

    @torch.inference_mode()
    def __call__(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Values of a batch in bits/dim, `(B,)`, and the features of its noise, `(B, Q)`, still on the device."""
        places, cells = torch.as_tensor(np.searchsorted(self.positions, draws.images)), torch.as_tensor(draws.rows)
        samples = self.scorers[0].samples(self.levels.index_select(0, places))
        noise = keyed_normal(draws.keys, self.levels.shape[1:], samples.device)
        # The first, less the second if there is one.
        values, *second = (self._terms(index, places, samples, noise, cells) for index in range(len(self.scorers)))
        for other in second:
            values = values - other.to(values.device)
        return values, self._controls.noise_features(samples, noise, cells)

    def _terms(self, index: int, places, samples, noise, cells) -> torch.Tensor:
        r"""Terms of one scorer, zero where its grid has none."""
        scorer, labels = self.scorers[index], self.class_labels[index]
        rows = self._cells.rows[index, cells]
        there = rows >= 0
        if not there.any():
            return torch.zeros(len(rows), dtype=working_dtype(scorer.device), device=scorer.device)
        if not there.all():
            index_there = there.nonzero().flatten()
            on_device = to_device(index_there, samples.device)
            values = self._terms(index, places[there], samples[on_device], noise[on_device], cells[there])
            nothing = torch.zeros(len(rows), dtype=values.dtype, device=values.device)
            return nothing.index_copy(0, to_device(index_there, values.device), values)
        forward, samples = scorer.reverse.forward, to_device(samples, scorer.device)
        nats = scorer.terms(samples, noise, Rows(forward, rows), None if labels is None else labels[places])
        factors = nats_to_bits_per_dim(self._cells.factors[index, cells], samples[0].numel())
        return nats * to_device(factors.to(nats.dtype), nats.device)


def known_parts(scorers: Sequence[Scorer], levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""What is known of images without the network, on the CPU.

    Args:
        scorers: one, or two whose difference, first minus second, is wanted.
        levels: images, `(B, C, H, W)`.

    Returns:
        :math:`L_T` in bits/dim, `(B,)`, or the difference of both, and features `(B, P)`.
    """
    parts = []
    for part in in_parts(levels):
        samples = scorers[0].samples(part)
        priors = [s.prior(to_device(samples, s.device)).to(samples.device) for s in scorers]
        known = [nats_to_bits_per_dim(nats, levels[0].numel()) for nats in priors]
        parts.append((known[0] - known[1] if len(known) == 2 else known[0], image_features(samples)))
    prior, features = (torch.cat(column).cpu().double() for column in zip(*parts))
    return prior, features


def evaluating_at_once(draw_scorer: DrawScorer, batch_size: int, step: Callable[[int], Any]) -> Evaluate:
    r"""Draws evaluated in this process, batch after batch; `step` is told how many are done."""

    def evaluate(draws: Draws, _) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for batch in draw_scorer.batches(draws, batch_size):
            parts.append(draw_scorer(batch))
            step(len(batch.rows))
        values = torch.cat([values for values, _ in parts]).cpu()
        draw_scorer.check_finite(draws, values)
        return values, torch.cat([noise_features for _, noise_features in parts]).cpu().double()

    return evaluate


def estimate_frame(
    scorers: Sequence[Scorer],
    images: Images,
    evaluating: Callable[[DrawScorer], Evaluate],
    *,
    seed: int,
    class_labels: Sequence[torch.Tensor | None] | None = None,
    estimate_seed: int | None = None,
    **rules: Any,
) -> BoundEstimate:
    r"""The bound of images, or the difference of two models' bounds, from those of them that are in memory.

    Args:
        scorers: one, or two whose difference, first minus second, is wanted.
        images: with what `known_parts` knows of them all.
        evaluating: makes of a `DrawScorer` what the estimator calls.
        seed: of the noise.
        class_labels: of the images in memory, for each scorer; by default `images.labels`.
        estimate_seed: of what the estimator draws; `seed` by default.
        rules: when to stop, as `estimate_bound`.

    Raises:
        ValueError: as `estimate_bound`; a network whose output is not finite.
    """
    if images.prior is None or images.features is None:
        raise ValueError("`images` must have what `known_parts` knows of them, got neither a prior nor features.")
    numbers = images.numbers[images.frame]
    labels = [images.labels] * len(scorers) if class_labels is None else class_labels
    draw_scorer = DrawScorer(scorers, images.levels, images.frame, numbers, seed, labels)
    return estimate_bound(
        evaluating(draw_scorer),
        draw_scorer.num_steps,
        images.prior,
        images.features,
        seed=seed if estimate_seed is None else estimate_seed,
        evaluations_per_draw=len(scorers),
        row_sizes=draw_scorer.row_sizes,
        ids=images.numbers,
        frame=images.frame,
        **rules,
    )


# ---- ddpm_vlb/pipeline_vlb_ddpm.py ----

r"""`VLBDDPMPipeline`: sample as `DDPMPipeline` does, and score images with the exact variational bound."""




PUSH_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "revision", "report", "pictures")


class VLBDDPMPipeline(DDPMPipeline):
    r"""
    A `DDPMPipeline` that also tells the likelihood of images.

    Parameters:
        unet ([`UNet2DModel`]):
            The network, with as many output as input channels, or twice as many where variances are learned; out of its
            wrapper, where it is in a `DataParallel` or `DistributedDataParallel`.
        scheduler ([`DDPMScheduler`]):
            Any DDPM scheduler, or another of diffusers' for a DDPM's network (DDIM, PNDM, DPM-Solver, Euler ...); it becomes
            a [`VLBDDPMScheduler`] of the same configuration. Or one of flow matching, EDM or a variance-exploding process,
            whose network is scored as a DDPM (`noise_processes.py`).
        network_kwargs (`dict[str, torch.Tensor]`, *optional*):
            What the network is given besides, `(P, ...)` each: `encoder_hidden_states` of prompts, say. With P > 1 an image's
            class label is the number of its row.

    `autocast` may be set to `torch.bfloat16`, or float16: scoring and sampling then have `torch.autocast` around the network.
    """

    def __init__(self, unet: KnownModule, scheduler: DDPMScheduler, network_kwargs: dict[str, torch.Tensor] | None = None):
        super().__init__(unet=unwrapped(unet), scheduler=upgrade_scheduler(scheduler))
        self.network_kwargs = network_kwargs
        self.text_parts: TextParts | None = None
        self.autocast: torch.dtype | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, unwrapped(value))

    # Loading and saving.

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, prompt=None, **kwargs) -> "VLBDDPMPipeline":
        r"""Load any DDPM checkpoint: stock or ours, in sub-folders or flat, from a folder or from the Hub.

        Arguments as [`~diffusers.DiffusionPipeline.from_pretrained`]. A folder needs no `model_index.json`: a network's
        `config.json` and a `scheduler_config.json`, beside each other or in `unet/` and `scheduler/`, do. `low_cpu_mem_usage`
        is always on: only then does a weight that is missing from the files show. Nothing but classes of diffusers is loaded,
        and no code from a repository unless `custom_pipeline` and `trust_remote_code` ask for it.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                What the images show, of a network that takes prompts: the checkpoint's text encoder makes `network_kwargs` of
                it. The likelihood is p(x | prompt); of several, an image's class label is the number of its own.

        Raises:
            CheckpointError: files that are missing, damaged, lack some of the network's weights, or (`.bin`) hold anything but
                tensors; an index that names other classes than diffusers'. It is a `ValueError` and an `OSError`.
        """
        conditions = kwargs.pop("network_kwargs", None)
        prompts = check_prompt(prompt, conditions)
        name = check_name(pretrained_model_name_or_path, kwargs)
        with reading(name), without_loading_bar():
            folder = parts_folder(name, kwargs, prompts is not None)
            own = None if folder is None else load_parts(folder, **kwargs)
            pipe = super().from_pretrained(name, **kwargs) if own is None else cls(**own)
            pipe.text_parts = text_parts(folder)
        pipe.unet = check_network(pipe.unet, name)
        pipe.network_kwargs = encode_prompts(prompts, pipe.text_parts, pipe.unet, name) if prompts else conditions
        return pipe

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        r"""As [`~diffusers.DiffusionPipeline.download`], and `ValueError` for configurations that no model can be made of."""
        return check_configurations(super().download(pretrained_model_name, **kwargs), kwargs)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs) -> "VLBDDPMPipeline":
        r"""A pipeline of another's parts, as [`~diffusers.DiffusionPipeline.from_pipe`]; `ValueError` unless it is a DDPM."""
        check_parts(pipeline.config, type(pipeline).__name__)
        return cast(VLBDDPMPipeline, super().from_pipe(pipeline, **kwargs))

    def to_json_string(self) -> str:
        r"""The pipeline's index, which names the stock classes: every user of diffusers can load and sample it, and this class
        upgrades what it loads. Another scheduler that was put in the place of ours keeps its name."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = DDPMPipeline.__name__
        if type(self.scheduler) is VLBDDPMScheduler:
            index["_class_name"], scheduler = stock_classes(self.scheduler.config)
            index["scheduler"] = ["diffusers", scheduler]
        index |= {} if self.text_parts is None else self.text_parts.index
        return json.dumps(strip_paths(index), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {super().to_json_string()}"  # the classes that are here, not those of the index

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        r"""Save for all users of diffusers: under the names of the stock classes, without the path that the network was loaded
        from, and with the file `pipeline.py`, which holds this package for those who do not have it and trust it.

        Arguments as [`~diffusers.DiffusionPipeline.save_pretrained`]; with `push_to_hub`, further ones as
        [`~VLBDDPMPipeline.push_to_hub`], `repo_id` being the folder's name by default.
        """
        folder = Path(save_directory)
        options = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs} if push_to_hub else {}
        if options.get("report") is not None:
            options["report"] = self.check_report(options["report"])
        with saving(folder, variant, unet=self.unet, scheduler=self.scheduler) as fresh:
            super().save_pretrained(fresh, safe_serialization, variant, max_shard_size, **kwargs)
            keep_text(self.text_parts, fresh)
        if push_to_hub:
            push_folder(folder, options.pop("repo_id", folder.resolve().name), variant=variant, **options)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        report: dict[str, Any] | None = None,
        pictures: dict[str, bytes] | None = None,
    ) -> CommitInfo:
        r"""Push to the Hub, in one commit, what `save_pretrained` writes and a model card.

        Args:
            repo_id (`str`), commit_message (`str`, *optional*), private (`bool`, *optional*), token (`str`, *optional*),
                create_pr (`bool`), safe_serialization (`bool`), variant (`str`, *optional*), subfolder (`str`, *optional*):
                As [`~diffusers.utils.PushToHubMixin.push_to_hub`]; but `private` is refused for a repository that exists and
                is not, and so is `subfolder`, from which nobody can load a pipeline.
            revision (`str`, *optional*):
                Branch to commit to, made where it does not exist.
            report (`dict`, *optional*):
                Of this pipeline, as `ddpm_vlb.evaluation.make_report` makes it: what the card is made from. Without one, the
                card says that nothing was scored.
            pictures (`dict`, *optional*):
                PNG files for the card, `"terms.png"` and `"samples.png"`.

        Returns:
            `CommitInfo`: the commit, a string that is its address, with that of the pull request as `pr_url`.

        Raises:
            ValueError: a report that does not agree with itself or with this pipeline, or a name that cannot be a repository;
                nothing is sent.
            HubError: what the Hub or the network refused. It is an `OSError`.
        """
        check_repository(repo_id)
        if subfolder is not None:
            raise ValueError(f"`subfolder` must be left out: no pipeline can be loaded from one, got {subfolder!r}.")
        if report is not None:
            report = self.check_report(report)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            return push_folder(
                folder,
                repo_id,
                report=report,
                pictures=pictures,
                variant=variant,
                private=private,
                token=token,
                create_pr=create_pr,
                revision=revision,
                commit_message=commit_message,
            )

    def check_report(self, report: dict[str, Any]) -> Report:
        r"""The report, or `ValueError` unless it is complete, agrees with itself, and is of this very model: its network, its
        scheduler, and the sub-sequence that its number of steps stands for."""
        report = Report.of(report)
        steps = report.config["num_inference_steps"]
        scorer = self.scorer(steps, report.config["inference_timesteps"] if steps is None else None)
        sha256 = scorer.network.sha256(getattr(torch, report.config["dtype"], None))
        report.check_model(scorer.describe() | {"network_sha256": sha256})
        return report

    # Sampling.

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        inference_timesteps: Sequence[int] | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        draw_from_decoder: bool = False,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generate images.

        Args:
            batch_size (`int`, *optional*, defaults to 1):
                Number of images.
            generator (`torch.Generator`, *optional*):
                Source of all noise, or a list with one per image.
            num_inference_steps (`int`, *optional*):
                Number of steps K, on the scheduler's grid; by default 1000 as in `DDPMPipeline`, or all T if there are fewer;
                of a calibrated model its best number of steps.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (`(B, H, W, C)` in [0, 1]) or `"pt"` (`(B, C, H, W)` in [0, 1]).
            return_dict (`bool`, *optional*, defaults to `True`):
                Return an [`~pipelines.ImagePipelineOutput`] or a tuple.
            inference_timesteps (`list[int]`, *optional*):
                The grid itself, strictly descending, in place of `num_inference_steps`.
            class_labels (`int`, or integers of shape `(batch_size,)`, *optional*):
                Classes, for a class-conditional network.
            draw_from_decoder (`bool`, *optional*, defaults to `False`):
                Draw the image from the decoder, on the grid of levels: a sample of the very model that is scored. By default
                it is the decoder's mean (Ho et al. 2020), which looks cleaner where the decoder has much to decide.

        Returns:
            [`~pipelines.ImagePipelineOutput`] or `tuple`: the images.

        Raises:
            ValueError: no grid of the scheduler's, or two; epsilon from zero terminal SNR; class labels that do not fit.
        """
        batch_size = check_count("batch_size", batch_size)
        check_generator(generator, batch_size)
        network, device = self.network, self._execution_device
        check_output_type(output_type, network.channels)
        labels = network.check_class_labels(class_labels, batch_size)
        check_sampler(self.scheduler, network, inference_timesteps=inference_timesteps, draw_from_decoder=draw_from_decoder)
        check_calibration(self.scheduler, network)
        scheduler = scheduler_of_run(self.scheduler, num_inference_steps, inference_timesteps)
        network.check(scheduler.timesteps.tolist(), network.size)
        dtype, shape = network.dtype, (batch_size, *network.image_shape)
        image = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        # Latents stay in float32 or better between the steps, whatever the network's dtype.
        image = image.to(torch.promote_types(dtype, torch.float32))

        labels = None if labels is None else labels.to(device)
        timesteps = scheduler.timesteps.to(device)
        finite = torch.ones((), dtype=torch.bool, device=device)
        with network.evaluating(autocast=True):
            for timestep, on_device in zip(cast(Any, self).progress_bar(scheduler.timesteps.tolist()), timesteps.unbind()):
                model_output = network(image, on_device, labels)
                finite &= torch.isfinite(model_output).all()
                latents, image = image, scheduler.step(model_output, timestep, image, generator=generator).prev_sample
        if draw_from_decoder and finite:
            image = scheduler.draw_from_decoder(model_output, timestep, latents, generator)

        if not finite:
            raise NonFiniteOutput(f"NaN or infinity with dtype {str(dtype)[6:]}", dtype=dtype)
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                image = self.numpy_to_pil(image)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=cast(Any, image)) if return_dict else (image,)

    # Scoring.

    @torch.no_grad()
    def evaluate_nll(
        self,
        images: Any,
        batch_size: int | str = 64,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        inference_timesteps: Sequence[int] | None = None,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        method: str = "full",
        evaluations_per_image: int | None = None,
    ) -> VLBOutput:
        r"""
        The variational bound on the negative log-likelihood of `images`, term by term.

        By default every step of the chain is evaluated for every image, each with noise of its own: an unbiased estimate of
        the bound, whose prior term and KL terms are in closed form (eq. 5, Ho et al. 2020). The noise of an image depends on
        `generator`, the image's position and the timestep, not on `batch_size`. With `method="sampled"` each image is
        evaluated at a few timesteps instead, placed where they tell most: unbiased too, and with an error of its own.

        Args:
            images:
                A tensor `(N, C, H, W)` (uint8 levels, or float on the pixel grid in [-1, 1]), numpy arrays `(N, H, W, C)`, PIL
                images, paths, one image of these kinds, a `datasets.Dataset`, a Dataset or DataLoader of torch.
            batch_size (`int` or `"auto"`, defaults to 64):
                Images, or pairs of image and timestep, per network call; `"auto"`: 256 (64 on a CPU), halved till they fit.
            generator (`torch.Generator`, *optional*):
                Makes the result reproducible; or a list with one generator per image, for a full sweep.
            num_inference_steps (`int`, *optional*):
                Score the K-step model that `__call__(num_inference_steps=K)` samples from, instead of all T steps (of a
                calibrated model, its best number of steps).
            inference_timesteps (`list[int]`, *optional*):
                Score the model on this strictly descending sub-sequence of [0, T).
            class_labels (`int`, or integers of shape `(N,)`, *optional*):
                Classes, for a class-conditional network.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*):
                Override the scheduler's configuration. They change the model that is scored; the bound stays a bound.
            method (`str`, defaults to `"full"`):
                `"full"` or `"sampled"` (see `sampled_bound/`). The bound of a whole data set takes far fewer evaluations
                still, and is `ddpm_vlb.evaluation.evaluate`'s.
            evaluations_per_image (`int`, *optional*):
                Of each image where they are sampled, an even number; 64 by default. A pilot of up to a quarter as many, at
                most 1000, and of two at each of about 30 timesteps at least, comes on top, and is counted.

        Returns:
            [`VLBOutput`]: float64 tensors on the CPU, in bits per dimension.

        Raises:
            ValueError: images that are not exactly on the model's pixel grid, or of the wrong size; a model that cannot be
                scored; a network whose output is not finite.
        """
        if method not in ("full", "sampled"):
            raise ValueError(f"`method` must be 'full' or 'sampled', got {method!r}.")
        evaluations = 64 if evaluations_per_image is None else evaluations_per_image
        if sampled := method == "sampled":
            check_rules(None, None, evaluations)
            if isinstance(generator, (list, tuple)):
                raise ValueError(f"`generator` must be a single one with method='sampled', got {len(generator)}.")
        elif evaluations_per_image is not None:
            raise ValueError(f"`evaluations_per_image` must be left out with method='full', got {evaluations_per_image!r}.")
        scorer = self.scorer(num_inference_steps, inference_timesteps, clip_sample, thresholding)
        batch_size = check_batch_size(batch_size, scorer.network)
        levels, labels = scorer.read(images, class_labels)
        config = scorer.config(image_shape=list(levels.shape[1:]), batch_size=batch_size, seed=fresh_seed(generator))
        with scorer.network.evaluating():
            if sampled:
                output = self._score_some(scorer, levels, generator, labels, batch_size, evaluations)
            else:
                output = self._score_all(scorer, levels, generator, labels, batch_size)
        self.maybe_free_model_hooks()
        return VLBOutput(timesteps=scorer.reverse.forward.timesteps[1:].clone(), config=config, **output)

    classify = classify

    def _score_all(self, scorer: Scorer, levels, generator, labels, batch_size: int) -> dict[str, Any]:
        r"""The full sweep: the fields of a `VLBOutput`."""
        seeds = draw_seeds(len(levels), generator)
        with self._scoring_bar(-(-len(levels) // batch_size) * len(scorer.timesteps)) as bar:
            prior, terms = sweep_images(scorer, levels, seeds, labels, batch_size, bar.update)
        total = terms[:, 1:].sum(dim=1)
        return {
            "bits_per_dim": prior + terms[:, 0] + total,
            "prior": prior,
            "transitions": terms[:, 1:],
            "transitions_total": total,
            "decoder": terms[:, 0],
            "num_network_evaluations": terms.numel(),
        }

    def _score_some(self, scorer: Scorer, levels, generator, labels, batch_size: int, evaluations: int) -> dict[str, Any]:
        r"""A few evaluations of each image: the fields of a `VLBOutput`."""
        (seed,) = draw_seeds(1, generator)
        ids = np.arange(len(levels))
        prior, features = known_parts([scorer], levels)
        images = Images(ids, prior, features, frame=ids, levels=levels, labels=labels, sha256="")
        with self._scoring_bar(len(levels) * evaluations) as bar:
            evaluating = partial(evaluating_at_once, batch_size=batch_size, step=bar.update)
            estimate = estimate_frame([scorer], images, evaluating, seed=seed, evaluations_per_image=evaluations)
        total, decoder = cast(torch.Tensor, estimate.per_image), cast(torch.Tensor, estimate.per_image_decoder)
        return {
            "bits_per_dim": total,
            "prior": prior,
            "transitions": None,
            "transitions_total": total - prior - decoder,
            "decoder": decoder,
            "num_network_evaluations": estimate.num_evaluations,
            "monte_carlo_error": estimate.per_image_error,
            "degrees_of_freedom": estimate.per_image_degrees_of_freedom,
        }

    def _scoring_bar(self, total: int) -> Any:
        r"""As `set_progress_bar_config` says, and lines where there is nothing to draw a bar on."""
        config = getattr(self, "_progress_bar_config", {})
        others = torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0
        return progress_bar(total, **({"disable": others} | config))

    @property
    def network(self) -> Network:
        r"""The network as scoring sees it."""
        network = network_of(check_module(self.unet), self._execution_device, self.network_kwargs)
        return preconditioned(network, self.scheduler).with_autocast(self.autocast)

    def scorer(
        self,
        num_inference_steps: int | None = None,
        inference_timesteps: Sequence[int] | None = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        calibrated: bool = True,
    ) -> Scorer:
        r"""What `evaluate_nll` scores with the same arguments, for any pairs of images and timesteps; `calibrated=False` leaves
        a calibration aside.

        Raises:
            ValueError: a model that cannot be scored.
        """
        return make_scorer(
            self.network, self.scheduler, num_inference_steps, inference_timesteps, clip_sample, thresholding, calibrated
        )


# ---- ddpm_vlb/likelihoods/rate_distortion.py ----

r"""Rate and distortion, and progressive decoding (Section 4.3, Ho et al. 2020).

Read from above, the terms of the bound are messages. The first, of :math:`L_T`, gives the receiver :math:`x_T`; that of
:math:`L_t` takes it from :math:`x_t` to the latent below; the decoder's, :math:`L_0`, leaves the image itself. Whoever holds
:math:`x_t` has received

.. math:: \mathrm{rate}(t) = L_T + \sum_{i > t} L_i

and can already show :math:`\hat x(x_t)`, which is off by

.. math:: \mathrm{distortion}(t) = \sqrt{E \|x - \hat x(x_t)\|^2 / D},

here on the scale of 8-bit pixels, 0 to 255, as in the paper. At the end the rate is the whole bound and the distortion 0.
"""





BITS_8 = 127.5  # grey levels of 8 bits to a unit of [-1, 1]


@dataclass(frozen=True, repr=False)
class RateDistortion(Shown):
    r"""The curve, from the noisiest latent to the image itself: K + 1 points, float64 on the CPU.

    Args:
        timesteps: of the latent that the receiver holds, strictly descending, `(K,)`; the last point is the image itself.
        rate, rate_standard_error: bits per dimension received so far, the mean over images, `(K + 1,)`.
        distortion, distortion_standard_error: root mean squared error on the scale 0 to 255, `(K + 1,)`.
        num_network_evaluations: made.
    """

    timesteps: torch.Tensor
    rate: torch.Tensor
    rate_standard_error: torch.Tensor
    distortion: torch.Tensor
    distortion_standard_error: torch.Tensor
    num_network_evaluations: int

    def _head(self) -> dict[str, Any]:
        return {
            "bits/dim": self.rate[-1].item(),
            "standard error": self.rate_standard_error[-1].item(),
            "points": len(self.rate),
            "network evaluations": self.num_network_evaluations,
        }

    def _columns(self) -> dict[str, Any]:
        names = ("rate", "rate_standard_error", "distortion", "distortion_standard_error")
        # The last point is the image itself: what lies below every timestep.
        return {"timestep": [*self.timesteps.tolist(), -1]} | {name: getattr(self, name) for name in names}


@torch.no_grad()
def rate_distortion(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    batch_size: int = 64,
    seed: int = 0,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
) -> RateDistortion:
    r"""The rate-distortion curve of images under a pipeline's model.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images, num_inference_steps, inference_timesteps, class_labels: as `evaluate_nll`; at least two images.
        batch_size: images per network call.
        seed: of the noise.

    Raises:
        ValueError: as `evaluate_nll`; a single image, which has no standard error.
    """
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    batch_size = check_batch_size(batch_size, scorer.network)
    levels, labels = scorer.read(images, class_labels)
    if len(levels) < 2:
        raise ValueError(f"`images` must be at least two, got {len(levels)}.")
    seeds = [mix(seed, number) for number in range(len(levels))]
    parts = []
    with scorer.network.evaluating():
        for rows in torch.arange(len(levels)).split(batch_size):
            batch_labels = None if labels is None else labels[rows]
            parts.append(_terms_and_errors(scorer, levels[rows], [seeds[row] for row in rows.tolist()], batch_labels))
    pipe.maybe_free_model_hooks()
    prior, terms, errors = (torch.cat(part) for part in zip(*parts))
    if not bool(torch.isfinite(terms).all()):
        image, row = (~torch.isfinite(terms)).nonzero()[0].tolist()
        raise NonFiniteOutput("others", image=image, timestep=scorer.timesteps[row], dtype=scorer.dtype)
    num_dimensions, count = levels[0].numel(), len(levels)
    # From above: the prior, then term after term down to the decoder's.
    rates = nats_to_bits_per_dim(torch.cat([prior[:, None], terms.flip(1)], dim=1).cumsum(dim=1), num_dimensions)
    squares = torch.cat([errors.flip(1), torch.zeros(count, 1, dtype=torch.float64)], dim=1) * BITS_8**2
    distortion = squares.mean(dim=0).sqrt()
    # Of a root, to first order.
    spread = squares.std(dim=0) / count**0.5 / (2 * distortion)
    return RateDistortion(
        timesteps=scorer.reverse.forward.timesteps.flip(0),
        rate=rates.mean(dim=0),
        rate_standard_error=rates.std(dim=0) / count**0.5,
        distortion=distortion,
        distortion_standard_error=torch.where(distortion > 0, spread, 0.0),
        num_network_evaluations=terms.numel(),
    )


def _terms_and_errors(scorer: Scorer, levels, seeds, labels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""The prior `(B,)` and the terms `(B, K)` of a batch in nats, and the predictions' squared errors `(B, K)`; ascending."""
    samples, reverse = scorer.samples(levels), scorer.reverse
    terms, errors = [], []
    timesteps = reverse.forward.timesteps.tolist()
    for timestep, noise in zip(timesteps, keyed_noise(seeds, timesteps, samples.shape[1:], samples.device)):
        noisy = reverse.forward.q_sample(samples, noise.to(samples), timestep)
        output = scorer.network(noisy, timestep, labels)
        terms.append(vlb_terms(reverse, output, samples, noisy, timestep, scorer.num_pixel_levels, validate_args=False))
        errors.append((samples - reverse.predict(output, noisy, timestep)[0]).square().flatten(1).mean(dim=1))
    return scorer.prior(samples).cpu(), torch.stack(terms, dim=1).cpu(), torch.stack(errors, dim=1).cpu()


@torch.no_grad()
def progressive_decoding(
    pipe: "VLBDDPMPipeline",
    images: Any,
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
) -> torch.Tensor:
    r"""What the receiver can show when it holds :math:`x_t`, for some t along one trajectory of each image.

    The latents are those of one walk of the forward process, each made from the one below, so that what is seen at a lower
    timestep is the same message read on.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images, class_labels: as `evaluate_nll`.
        timesteps: strictly descending.
        seed: of the walk.

    Returns:
        Predicted images as pixel levels, `(len(timesteps), N, C, H, W)`, uint8 up to 256 levels and int32 above.

    Raises:
        ValueError: as `evaluate_nll`.
    """
    # The network's own prediction at t does not depend on the grid; this one has the walk's latents.
    scorer = pipe.scorer(inference_timesteps=timesteps)
    levels, labels = scorer.read(images, class_labels)
    forward, steps = scorer.reverse.forward, scorer.num_pixel_levels - 1
    latents = scorer.samples(levels)
    seeds = [mix(seed, number) for number in range(len(levels))]
    noises = keyed_noise(seeds, forward.timesteps.tolist(), latents.shape[1:], latents.device)
    shown = []
    with scorer.network.evaluating():
        for timestep, noise in zip(forward.timesteps.tolist(), noises):
            q = forward.q_step_mean_variance(latents, timestep)
            latents = q.mean + q.variance.sqrt() * noise.to(latents)
            prediction, _ = scorer.reverse.predict(scorer.network(latents, timestep, labels), latents, timestep)
            finite = torch.isfinite(prediction).flatten(1).all(dim=1)
            if not bool(finite.all()):
                image = int((~finite).nonzero()[0])
                raise NonFiniteOutput("others", image=image, timestep=timestep, dtype=scorer.dtype)
            shown.append(((prediction + 1) / 2 * steps).round().clamp(0, steps).to(levels.dtype).cpu())
    pipe.maybe_free_model_hooks()
    return torch.stack(shown[::-1])


# ---- ddpm_vlb/data/complexity.py ----

r"""How simple a picture is: what a lossless compressor makes of it."""




def complexity(levels: torch.Tensor, num_pixel_levels: int) -> float | None:
    r"""Bits per dimension that a lossless compressor needs for an image `(C, H, W)`, the best of four: PNG, WebP, an adaptive
    arithmetic code, and the levels as they are; `None` where PNG cannot hold it.

    Of files the size of a picture of one colour is taken off: a file of so small a picture is mostly header. A score less this
    number is that of Serrà et al. (2020), which simple pictures do not win by being simple.
    """
    channels, height, width = levels.shape
    if channels not in (1, 3) or num_pixel_levels > 256:
        return None
    array = levels.to(torch.uint8).permute(1, 2, 0).numpy()
    bits = [levels.numel() * math.log2(num_pixel_levels), _adaptive_code_length(array.ravel(), num_pixel_levels)]
    for options in ({"format": "PNG", "optimize": True}, {"format": "WEBP", "lossless": True, "quality": 100, "method": 4}):
        blank = _file_size(np.broadcast_to(array[:1, :1], array.shape), options)
        bits.append(8 * max(_file_size(array, options) - blank, 0))
    return min(bits) / levels.numel()


def _adaptive_code_length(values: np.ndarray, num_levels: int) -> float:
    r"""Bits of an arithmetic code whose probabilities are the counts so far, each and a half (Krichevsky & Trofimov 1981).

    The order of the values does not matter: the product of the probabilities has the gamma functions of the counts.
    """
    counts = torch.bincount(torch.from_numpy(values.astype(np.int64)), minlength=num_levels).double()
    whole = torch.lgamma(torch.tensor([num_levels / 2, num_levels / 2 + len(values)], dtype=torch.float64))
    parts = torch.lgamma(counts + 0.5) - torch.lgamma(torch.tensor(0.5, dtype=torch.float64))
    return ((whole[1] - whole[0] - parts.sum()) / math.log(2)).item()


def _file_size(array: np.ndarray, options: dict) -> int:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)).save(buffer, **options)
    return buffer.tell()


# ---- ddpm_vlb/codec/stack.py ----

r"""A stack of bits, from which symbols are popped and onto which they are pushed: asymmetric numeral systems (Duda 2015).

The coder is `constriction`'s. Its arithmetic is its own in every part, the error function too, so that the same numbers in give
the same bits on every machine. What it is given here is therefore made of integers: a mean in 64ths of a bin, a standard
deviation of `SCALE_BITS` bits, a window that follows from them.

To pop a symbol and to push it again under the same distribution leaves the stack as it was; that is all that bits-back needs.
"""



SCALE_BITS = 8  # of a standard deviation, beside its exponent
POP_WIDTH = 5.0  # standard deviations to either side; every bin has at least 2^-24, and farther ones would be outliers
PUSH_WIDTH = 6.0
MAX_WINDOW = 2**16  # bins to either side
MAX_EXCESS = 2**32  # bins beyond these
CHUNK = 2**16


class DamagedFile(ValueError):
    r"""A file that is not as it was written, or that this machine does not compute alike."""


def load_coder() -> Any:
    r"""The library of the coder, or `ValueError` where it is not installed."""
    try:
        import constriction
    except ImportError as error:
        raise ValueError("`codec` needs constriction: pip install constriction.") from error
    return getattr(constriction, "stream")  # noqa: B009 (no types tell of it)


class Stack:
    r"""Bits, the last of them on top.

    Args:
        words: uint32, what lies on it first; nothing, and no mark either, where it is `None`.
        is_sealed: `False` puts a mark on them, so that they can be told from what comes after; `True` where it is there.
    """

    def __init__(self, words: np.ndarray | None = None, is_sealed: bool = False):
        stream = load_coder()
        self._model = stream.model
        if words is None:
            self._coder = stream.stack.AnsCoder()
            return
        try:
            self._coder = stream.stack.AnsCoder(words.astype(np.uint32), seal=not is_sealed)
        except (ValueError, AssertionError) as error:  # the top word is 0
            raise DamagedFile(f"`data` must hold a stack of bits, got one that is none: {error}") from error

    @property
    def num_bits(self) -> int:
        r"""How many there are."""
        return self._coder.num_valid_bits()

    def words(self) -> np.ndarray:
        r"""All that is on the stack, uint32."""
        return self._coder.get_compressed()

    def unsealed(self) -> np.ndarray:
        r"""What lay on it first, once everything else is popped."""
        try:
            return self._coder.get_compressed(unseal=True)
        except (ValueError, AssertionError) as error:
            raise DamagedFile("`data` must leave what was coded first, got other bits.") from error

    # Integers around a mean, the distribution a Gaussian over the bins, whose ends are open.

    def push(self, values: np.ndarray, means: np.ndarray, scales: np.ndarray) -> None:
        r"""Push integers under Gaussians; what lies outside of the window costs some bits more.

        Args:
            values: int64, `(M,)`.
            means: in 64ths, int64, `(M,)`.
            scales: standard deviations in bins, each of `SCALE_BITS` bits, `(M,)`.
        """
        centres, rest, window = _centred(means, scales, PUSH_WIDTH)
        symbols = values - centres
        if (np.abs(symbols) > window + MAX_EXCESS).any():  # it could be written, and not read
            raise ValueError(f"`pipe` must predict latents within {MAX_EXCESS} bins, got one that is farther off.")
        clipped = symbols.clip(-window - 1, window + 1)
        # What is beyond the ends lies below the symbols: these are popped first and tell of it.
        for excess in (np.abs(symbols) - window - 1)[np.abs(clipped) > window][::-1]:
            self.push_integer(int(excess), MAX_EXCESS)
        self._push(clipped, -window - 1, window + 1, rest, scales)

    def pop(self, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
        r"""What `push` pushed."""
        centres, rest, window = _centred(means, scales, PUSH_WIDTH)
        symbols = self._pop(-window - 1, window + 1, rest, scales)
        for place in np.flatnonzero(np.abs(symbols) > window):
            symbols[place] += int(np.sign(symbols[place])) * self.pop_integer(MAX_EXCESS)
        return symbols + centres

    def draw(self, means: np.ndarray, scale: float) -> np.ndarray:
        r"""Pop integers within some standard deviations of their means, which the bits on the stack choose."""
        scales = np.full(means.shape, scale)
        centres, rest, window = _centred(means, scales, POP_WIDTH)
        return self._pop(-window, window, rest, scales) + centres

    def give_back(self, values: np.ndarray, means: np.ndarray, scale: float) -> None:
        r"""Push what `draw` popped, and with it the bits that chose it."""
        scales = np.full(means.shape, scale)
        centres, rest, window = _centred(means, scales, POP_WIDTH)
        symbols = values - centres
        if (np.abs(symbols) > window).any():
            raise DamagedFile("`data` must hold latents that the forward process gives, got others.")
        self._push(symbols, -window, window, rest, scales)

    def push_levels(self, levels: np.ndarray, num_levels: int, means: np.ndarray, scales: np.ndarray) -> None:
        r"""Push levels under the discretised decoder; `means` and `scales` are in levels, float64."""
        self._push(levels, 0, num_levels - 1, means, scales)

    def pop_levels(self, num_levels: int, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
        r"""What `push_levels` pushed."""
        return self._pop(0, num_levels - 1, means, scales)

    # Symbols with weights of their own.

    def push_weighed(self, symbol: int, weights: np.ndarray) -> None:
        r"""Push a symbol, its probability in proportion to its weight."""
        self._coder.encode_reverse(symbol, self._model.Categorical(weights, perfect=False))

    def pop_weighed(self, weights: np.ndarray) -> int:
        r"""What `push_weighed` pushed."""
        return int(self._coder.decode(self._model.Categorical(weights, perfect=False)))

    # Integers that are all alike, and counts that are nearly always 0.

    def push_integer(self, value: int, size: int) -> None:
        r"""Push an integer in [0, size)."""
        for chunk in _chunks(size):
            self._coder.encode_reverse(value % chunk, self._model.Uniform(chunk))
            value //= chunk

    def pop_integer(self, size: int) -> int:
        r"""What `push_integer` pushed."""
        value = 0
        for chunk in reversed(_chunks(size)):
            value = value * chunk + int(self._coder.decode(self._model.Uniform(chunk)))
        return value

    def push_count(self, count: int, rarity: int) -> None:
        r"""Push a count, which is above 0 with a probability of 2^-rarity."""
        if count:
            self.push_integer(count - 1, 2**32) if count > 15 else None
            self._coder.encode_reverse(min(count, 16) - 1, self._counts)
        self._coder.encode_reverse(int(count > 0), self._rare(rarity))

    def pop_count(self, rarity: int) -> int:
        r"""What `push_count` pushed."""
        if not int(self._coder.decode(self._rare(rarity))):
            return 0
        count = int(self._coder.decode(self._counts)) + 1
        return count if count < 16 else self.pop_integer(2**32) + 1

    @property
    def _counts(self):
        # Halved from one to the next, exactly.
        return self._model.Categorical(np.exp2(-np.arange(1.0, 17.0).clip(max=15.0)), perfect=False)

    def _rare(self, rarity: int):
        return self._model.Categorical(np.array([1 - 2.0**-rarity, 2.0**-rarity]), perfect=False)

    def _push(self, symbols, lowest: int, highest: int, means, scales) -> None:
        model = self._model.QuantizedGaussian(lowest, highest)
        self._coder.encode_reverse(symbols.astype(np.int32), model, means.astype(np.float64), scales.astype(np.float64))

    def _pop(self, lowest: int, highest: int, means, scales) -> np.ndarray:
        if self._coder.is_empty():
            raise DamagedFile("`data` must hold the bits of its images, got too few.")
        model = self._model.QuantizedGaussian(lowest, highest)
        return self._coder.decode(model, means.astype(np.float64), scales.astype(np.float64)).astype(np.int64)


def _centred(means: np.ndarray, scales: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray, int]:
    r"""The bins next to the means, what is left of these, and how many bins are looked at to either side."""
    centres = (means + 32) >> 6
    window = min(max(math.ceil(width * float(scales.max())), 1), MAX_WINDOW)
    return centres, (means - (centres << 6)) / 64.0, window


def _chunks(size: int) -> list[int]:
    r"""Sizes of the digits in which an integer in [0, size) is written, the lowest first."""
    chunks = []
    while size > CHUNK:
        chunks.append(CHUNK)
        size = -(-size // CHUNK)
    return [*chunks, max(size, 2)]


def words_to_bytes(words: np.ndarray) -> bytes:
    r"""Words as bytes, little-endian."""
    return words.astype("<u4").tobytes()


def words_of_bytes(body: bytes) -> np.ndarray:
    r"""Words of bytes; zeros at the end may be left out."""
    return np.frombuffer(body + bytes(-len(body) % 4), "<u4").astype(np.uint32)


# ---- ddpm_vlb/codec/container.py ----

r"""The bytes of a `.vlb` file, version 2. The page beside this file has them in a table.

Integers are LEB128: seven bits a byte, the lowest first, the highest bit set where more follow. Checksums of bytes are CRC-32,
little-endian, each begun with the one before it, so that a block is right in its place alone, and behind its header.
"""



VERSION = 2  # the first had a checksum of the header by itself
MAGIC = b"\x89VLB" + bytes([VERSION])
DIGEST_BYTES, CHECK_BYTES, CRC_BYTES = 6, 8, 4
CODED_BLOCK, END = b"B", b"E"
MAX_STEPS = 65_536
MAX_BLOCK_IMAGES = 65_536
MAX_BLOCK_BYTES = 2**31
MAX_DIMENSIONS = 2**26
MAX_BLOCK_VALUES = 2**28  # a small file can stand for many images that are all alike
MAX_LABEL = 2**62
MAX_NAME_BYTES = 4096
RUN_BASE = 32
HAS_TIMESTEPS, HAS_CLASSES = 1, 2


def write_integer(value: int) -> bytes:
    r"""LEB128."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class Reader:
    r"""Reads a file, or some bytes, from front to back; `DamagedFile` where they end too early.

    Args:
        source: a binary file, or bytes.
    """

    def __init__(self, source: BinaryIO | bytes):
        self._file = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
        self.seen = bytearray()

    def take(self, count: int) -> bytes:
        r"""The next bytes, whole."""
        found = bytearray()
        while len(found) < count:  # no memory for what a damaged length says, before it is there
            some = self._file.read(min(count - len(found), 2**20))
            if not some:
                raise DamagedFile(f"`data` must hold all of its bytes, got an end where {count - len(found)} more belong.")
            found += some
        self.seen += found
        return bytes(found)

    def integer(self, name: str, least: int, most: int) -> int:
        r"""The next integer, from `least` to `most`."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift > 63:
                break
        if byte > 127 or not least <= value <= most:
            raise DamagedFile(f"`data` must have a number of {name} from {least} to {most}, got {value}.")
        return value

    def rest(self) -> bytes:
        r"""All that follows."""
        return self._file.read()


@dataclass(frozen=True)
class Header:
    r"""What a file says of its images and its model.

    Args:
        shape: (C, H, W).
        num_pixel_levels: of their grid.
        digest: the first bytes of the model's.
        num_steps: K.
        band: -log2 of the guard band.
        inference_timesteps: where the grid was named, ascending.
        has_classes: whether the network was told the classes.
    """

    shape: tuple[int, int, int]
    num_pixel_levels: int
    digest: bytes
    num_steps: int
    band: int
    inference_timesteps: tuple[int, ...] | None = None
    has_classes: bool = False

    def to_bytes(self) -> bytes:
        r"""As it begins the file; the checksum of the first block, or of the end, is of it, too."""
        flags = (HAS_TIMESTEPS if self.inference_timesteps is not None else 0) | (HAS_CLASSES if self.has_classes else 0)
        numbers = [flags, *self.shape, self.num_pixel_levels - 2, self.num_steps, self.band]
        below = -1
        for timestep in self.inference_timesteps or ():
            numbers.append(timestep - below - 1)
            below = timestep
        return MAGIC + b"".join(map(write_integer, numbers)) + self.digest

    @classmethod
    def read(cls, reader: Reader) -> "Header":
        r"""Read one, or `DamagedFile`."""
        if reader.take(4) != MAGIC[:4]:
            raise DamagedFile("`data` must begin as a .vlb file does, got other bytes.")
        version = reader.take(1)[0]
        if version != VERSION:
            raise DamagedFile(f"`data` must be of version {VERSION} of the format, got {version}. Another ddpm_vlb wrote it.")
        flags = reader.integer("flags", 0, HAS_TIMESTEPS | HAS_CLASSES)
        shape = (
            reader.integer("channels", 1, 65_536),
            reader.integer("rows", 1, 65_536),
            reader.integer("columns", 1, 65_536),
        )
        levels = reader.integer("levels beyond two", 0, 65_534) + 2
        steps = reader.integer("steps", 1, MAX_STEPS)
        band = reader.integer("bits of the guard band", 1, 60)
        timesteps, below = [], -1
        for _ in range(steps if flags & HAS_TIMESTEPS else 0):
            below += reader.integer("timesteps between", 0, 1_000_000) + 1
            timesteps.append(below)
        digest = reader.take(DIGEST_BYTES)
        if shape[0] * shape[1] * shape[2] > MAX_DIMENSIONS:
            raise DamagedFile(f"`data` must hold images of at most {MAX_DIMENSIONS} values, got {shape}.")
        named = tuple(timesteps) if flags & HAS_TIMESTEPS else None
        return cls(shape, levels, digest, steps, band, named, bool(flags & HAS_CLASSES))


class CodedBlock(NamedTuple):
    r"""Images that are decoded together.

    Args:
        num_images: in all.
        num_plain: of them, those that begin the block and are coded without the network.
        is_counted: whether by `plain.py`'s small model, not by another tool.
        runs: (images to a batch, a power of two; batches) of the others, in the order in which they were pushed.
        labels: classes, or `None`.
        names: of the images, or `None`.
        check: of the images, by `image_check`.
        payload: the stack of bits.
    """

    num_images: int
    num_plain: int
    is_counted: bool
    runs: list[tuple[int, int]]
    labels: list[int] | None
    names: list[str] | None
    check: bytes
    payload: bytes

    def to_bytes(self) -> bytes:
        r"""Without its frame."""
        labels = b"" if self.labels is None else zlib.compress(b"".join(map(write_integer, self.labels)), 9)
        names = b"" if self.names is None else zlib.compress(names_to_bytes(self.names), 9)
        runs = [batches * RUN_BASE + size.bit_length() - 1 for size, batches in self.runs]
        numbers = [self.num_images, 2 * self.num_plain + self.is_counted, len(runs), *runs]
        sizes = [len(labels), len(names)]
        return b"".join(map(write_integer, [*numbers, *sizes])) + labels + names + self.check + self.payload

    @classmethod
    def parse(cls, body: bytes) -> "CodedBlock":
        r"""Read one, or `DamagedFile`."""
        reader = Reader(body)
        count = reader.integer("images", 1, MAX_BLOCK_IMAGES)
        plain, is_counted = divmod(reader.integer("plain images", 0, 2 * count + 1), 2)
        most = RUN_BASE * (count + 1)
        told = [divmod(reader.integer("batches", RUN_BASE, most), RUN_BASE) for _ in range(reader.integer("runs", 0, count))]
        runs = [(1 << exponent, batches) for batches, exponent in told]
        if plain + sum(size * batches for size, batches in runs) != count:
            raise DamagedFile(f"`data` must have the batches of its {count} images, got others.")
        sizes = [reader.integer("bytes", 0, MAX_BLOCK_BYTES) for _ in range(2)]
        labels, names = (reader.take(size) for size in sizes)
        described = _labels(labels, count), _names(names, count)
        return cls(count, plain, bool(is_counted), runs, *described, reader.take(CHECK_BYTES), reader.rest())


def names_to_bytes(names: list[str]) -> bytes:
    r"""A JSON list. Names of files may hold what is no character."""
    return json.dumps(names, ensure_ascii=False).encode(errors="surrogatepass")


def image_check(digest: bytes, index: int, levels: bytes) -> bytes:
    r"""Which images these are, at which block of which model: a few bytes of SHA-256."""
    return hashlib.sha256(digest + write_integer(index) + levels).digest()[:CHECK_BYTES]


def frame(body: bytes, crc: bytes) -> bytes:
    r"""A block as it stands in the file, after what ended with `crc`."""
    start = CODED_BLOCK + write_integer(len(body))
    return start + body + crc_of(start + body, crc)


def end(crc: bytes) -> bytes:
    r"""The end of a file, after what ended with `crc`."""
    return END + crc_of(END, crc)


def read_blocks(reader: Reader, crc: bytes) -> Iterator[tuple[int, int, CodedBlock, bytes]]:
    r"""Blocks of a file after its header, one at a time: index, first image, block and checksum.

    Raises:
        DamagedFile: a block that is not as it was written or not in its place, and an end that is missing, too early or not the
            end of the file; when the reader comes to it.
    """
    index = first = 0
    described = None
    while True:
        reader.seen.clear()
        kind = reader.take(1)
        if kind == END:
            _check_crc(reader, bytes(reader.seen), crc, "end")
            if not first:
                raise DamagedFile("`data` must hold an image, got none.")
            if reader.rest()[:1]:
                raise DamagedFile("`data` must end where its images do, got further bytes.")
            return
        if kind != CODED_BLOCK:
            raise DamagedFile(f"`data` must go on with a block or end, got the byte {kind[0]}.")
        body = reader.take(reader.integer("bytes", 1, MAX_BLOCK_BYTES))
        crc = _check_crc(reader, bytes(reader.seen), crc, f"block {index}")
        block = CodedBlock.parse(body)
        kinds = block.labels is not None, block.names is not None
        if described not in (None, kinds):
            raise DamagedFile("`data` must have labels, and names, in all of its blocks or in none, got a part.")
        described = kinds
        yield index, first, block, crc
        first += block.num_images
        index += 1


def crc_of(body: bytes, before: bytes = bytes(CRC_BYTES)) -> bytes:
    r"""CRC-32 of bytes, after what ended with another."""
    return zlib.crc32(body, int.from_bytes(before, "little")).to_bytes(CRC_BYTES, "little")


def _check_crc(reader: Reader, body: bytes, before: bytes, what: str) -> bytes:
    expected, found = crc_of(body, before), reader.take(CRC_BYTES)
    if expected != found:
        raise DamagedFile(f"`data` must be as it was written, got another checksum in the {what}, or before it.")
    return found


def _inflate(body: bytes, most: int, what: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(body, most + 1)
    except zlib.error as error:
        raise DamagedFile(f"`data` must hold {what}, got bytes that are none: {error}") from error
    if len(found) > most or not inflater.eof:
        raise DamagedFile(f"`data` must hold at most {most} bytes of {what}, got more, or a part.")
    return found


def _labels(body: bytes, count: int) -> list[int] | None:
    if not body:
        return None
    reader = Reader(_inflate(body, 10 * count, "labels"))
    labels = [reader.integer("class", 0, MAX_LABEL) for _ in range(count)]
    if reader.rest():
        raise DamagedFile(f"`data` must hold a label for each of {count} images, got more.")
    return labels


def _names(body: bytes, count: int) -> list[str] | None:
    if not body:
        return None
    try:
        names = json.loads(_inflate(body, MAX_NAME_BYTES * count, "names"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"`data` must hold names, got others: {error}") from error
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise DamagedFile(f"`data` must hold a name for each of {count} images, got others.")
    return names


# ---- ddpm_vlb/codec/arguments.py ----

r"""What `compress` and `decompress` ask of their arguments: nothing is written that could not be read."""




def check_sizes(shape: tuple[int, int, int], count: int, block_size: int) -> None:
    r"""Raise `ValueError` for images of (C, H, W), or blocks of them, that are larger than a file may say."""
    values = math.prod(shape)
    if values > MAX_DIMENSIONS:
        raise ValueError(f"`images` must have at most {MAX_DIMENSIONS} values each, got {shape}.")
    most = min(MAX_BLOCK_IMAGES, MAX_BLOCK_VALUES // values)
    if min(count, block_size) > most:
        raise ValueError(f"`block_size` must be at most {most} for images of {shape}, got {block_size}.")


def check_labels(labels: Sequence[int] | None, count: int) -> list[int] | None:
    r"""Labels as integers that a file can hold."""
    if labels is None:
        return None
    try:
        kept = [operator.index(label) for label in labels]
    except TypeError as error:
        raise ValueError(f"`labels` must be integers, got {reprlib.repr(labels)}.") from error
    if len(kept) != count:
        raise ValueError(f"`labels` must be one for each of {count} images, got {len(kept)}.")
    if not 0 <= min(kept) <= max(kept) <= MAX_LABEL:
        raise ValueError(f"`labels` must lie in [0, 2^62], got values from {min(kept)} to {max(kept)}.")
    return kept


def check_names(names: Sequence[str] | None, count: int) -> list[str] | None:
    r"""Names that a file can hold."""
    if names is None:
        return None
    kept = [str(name) for name in names]
    if len(kept) != count:
        raise ValueError(f"`names` must be one for each of {count} images, got {len(kept)}.")
    longest = max(kept, key=lambda name: len(names_to_bytes([name])))
    if len(names_to_bytes([longest])) > MAX_NAME_BYTES:
        raise ValueError(f"`names` must take at most {MAX_NAME_BYTES} bytes each, got {reprlib.repr(longest)}.")
    return kept


def check_image_numbers(images: Sequence[int] | slice | int, total: int) -> list[int]:
    r"""Numbers in [0, total), in the order in which they were asked for; one may be there twice."""
    refusal = f"`images` must be numbers of the {total} images of the file, got {images!r}."
    if isinstance(images, slice):
        wanted = list(range(total)[images])
    else:
        listed: list[Any] = list(images) if isinstance(images, Iterable) and getattr(images, "ndim", 1) else [images]
        # A mask would be read as numbers 0 and 1.
        if any(isinstance(n, bool) or "bool" in str(getattr(n, "dtype", "")) for n in listed):
            raise ValueError(refusal)
        try:
            wanted = [operator.index(number) for number in listed]
        except TypeError as error:
            raise ValueError(refusal) from error
    if not wanted or not all(-total <= number < total for number in wanted):
        raise ValueError(refusal)
    return [number % total for number in wanted]


# ---- ddpm_vlb/codec/rounding.py ----

r"""Rounding that two machines agree on.

A network's outputs differ in their last digits from machine to machine, and between batch sizes and numbers of threads on one.
What enters the coder must not. So every output y is rounded to a multiple of some unit, which is coarse beside the differences
and fine beside what the rate would notice. Two machines that differ by less than `band` can then disagree only about a y that
lies within `band` of the middle between two multiples: the encoder writes down which way it went for each of these, and the
decoder, wherever *its* y lies, goes there.

The encoder notes y where :math:`|y / u - \lfloor y / u \rfloor - 1/2| \le b / u`. If the decoder has :math:`|y' - y| < b`, it
rounds what was not noted to the same multiple, since no middle lies between y and y'; and what was noted has the same floor,
as long as :math:`2 b < u / 2`.
"""




@dataclass
class Notes:
    r"""Which way some of the values of one network evaluation went.

    Args:
        places: where they are among all values of the evaluation, in the order in which these are rounded.
        is_up: whether it was up.
        size: how many values there are.
    """

    places: list[int] = field(default_factory=list)
    is_up: list[bool] = field(default_factory=list)
    size: int = 0


def round_noting(values: np.ndarray, units: np.ndarray | float, bands: np.ndarray | float, notes: Notes) -> np.ndarray:
    r"""Multiples of `units` next to `values`, float64 integers of the same shape; the doubtful ones are added to `notes`."""
    floors, halves = _split(values, units)
    is_up = halves >= 0
    places = np.flatnonzero((np.abs(halves) <= bands / units).ravel())
    notes.places += (notes.size + places).tolist()
    notes.is_up += is_up.ravel()[places].tolist()
    notes.size += values.size
    return floors + is_up


def round_as_noted(values: np.ndarray, units: np.ndarray | float, notes: Notes) -> np.ndarray:
    r"""What `round_noting` returned, by what it noted; `notes.size` counts the values that were rounded so far."""
    floors, halves = _split(values, units)
    is_up = (halves >= 0).ravel()
    for place, up in zip(notes.places, notes.is_up):
        if notes.size <= place < notes.size + values.size:
            is_up[place - notes.size] = up
    notes.size += values.size
    return floors + is_up.reshape(values.shape)


def _split(values, units):
    scaled = values / units
    floors = np.floor(scaled)
    return floors, scaled - floors - 0.5


# ---- ddpm_vlb/codec/summary.py ----

r"""Where the bits of a file went: every one of them, and what the bound asked for."""



@dataclass
class Account:
    r"""Where bits went, summed over images.

    Args:
        images: that were coded.
        bound: bits that the model asks for: the log-ratios of the trajectories.
        net: bits by which stacks grew.
        notes: of these, bits that tell where values near the middle between two went.
        num_notes: how many there were.
    """

    images: int = 0
    bound: float = 0.0
    net: float = 0.0
    notes: float = 0.0
    num_notes: int = 0


@dataclass
class Summary:
    r"""What a file took, and for what.

    Args:
        num_images, num_dimensions: of the file, and of an image.
        num_blocks, num_plain: blocks, and images without the network.
        file_bytes: all of it.
        described_bytes: of it, labels and names.
        stack_bits, plain_bits: of it, the stacks, and what of these was there before the first image was pushed.
        account: of the images that were pushed.
    """

    num_images: int
    num_dimensions: int
    num_blocks: int
    num_plain: int
    file_bytes: int
    described_bytes: int
    stack_bits: int
    plain_bits: int
    account: Account

    def as_dict(self) -> dict[str, Any]:
        r"""Bits per dimension, all bits of the file over all values of its images, and what the bound leaves to explain.

        `bound` is that of the trajectories that were coded, `None` where no image was. The parts of `overhead` sum to
        `bits_per_dim - bound`.
        """
        values, account = self.num_images * self.num_dimensions, self.account
        coded = account.images * self.num_dimensions
        bound = account.bound / coded if coded else None
        container = 8 * (self.file_bytes - self.described_bytes) - self.stack_bits
        parts = {
            "container": container,
            "labels and names": 8 * self.described_bytes,
            "initial bits": self.plain_bits - (bound or 0.0) * self.num_plain * self.num_dimensions,
            "guard band": account.notes,
            "quantisation": account.net - account.notes - account.bound,
        }
        return {
            "num_images": self.num_images,
            "num_blocks": self.num_blocks,
            "num_plain": self.num_plain,
            "num_notes": account.num_notes,
            "file_bytes": self.file_bytes,
            "bits_per_dim": 8 * self.file_bytes / values,
            "net_bits_per_dim": account.net / coded if coded else None,
            "bound": bound,
            "overhead": {name: bits / values for name, bits in parts.items()},
        }


# ---- ddpm_vlb/codec/chain.py ----

r"""Images on a stack of bits, at the price of the variational bound: Bit-Swap (Kingma, Abbeel & Ho 2019) along a DDPM's chain.

An image x is pushed with all its latents :math:`x_0, \dots, x_{K-1}`, and what chooses the latents is popped: their bits come
back when the image is decoded. On a grid of K timesteps, the lowest first,

.. math::
    \text{pop } x_k \sim q(x_k | x_{k-1}), \quad \text{push } x_{k-1} \text{ under } p(x_{k-1} | x_k), \qquad k = 0, \dots, K-1,

with the image in the place of :math:`x_{-1}`; last, :math:`x_{K-1}` is pushed under
:math:`N(0, I)`. The stack has then grown by

.. math:: \log\frac{q(x_0, \dots, x_{K-1} | x)}{p(x, x_0, \dots, x_{K-1})},

whose mean is the bound. To decode is to do the same backwards. Never more than two latents are in the air, so that only the
first two pops need bits that must lie on the stack already.

**Bins.** A latent is an integer multiple of :math:`\delta_k`, the power of two at or below half of the least standard
deviation that it is popped or pushed with. Densities then cost what they should to the fourth order in
:math:`\delta / \sigma`, since a bin's mass is the density of a Gaussian that is wider by just what rounding adds.

**What two machines must agree on.** The forward process is integer arithmetic here: any q serves, as long as both sides have
the same. A reverse step is made of a network's output, which is rounded by `rounding.py`; what follows is some float64
arithmetic, and its results are rounded in the same way, with a far narrower band. Constants are rounded once, and part of
the digest by which a decoder knows its model.
"""




BAND = 2.0**-34  # of a network's outputs: 5.8e-11, 5,000 times what float64 was seen to differ by
ARITHMETIC_BAND = 2.0**-42  # of what is made of them: 2.3e-13
BINS_PER_SCALE = 2  # at least, to a standard deviation
MEAN_BITS, LEVEL_BITS, COEFFICIENT_BITS = 6, 12, 20
VARIANCE_UNIT = 2.0**-10
MAX_LATENT = 2**40
LEAST_BITS = 2  # that a value of the last latent takes: its bins are at most half a standard deviation wide
MAX_MEAN = 2.0**50  # in the units that means are rounded to
# How a scorer's description may differ between two who have the same model.
_NOT_THE_MODEL = ("dtype", "device", "versions", "timestep_spacing", "num_inference_steps", "inference_timesteps")


class Step(NamedTuple):
    r"""The constants of a latent: exact, and the same on every machine.

    Args:
        timestep: of the network.
        bin: width :math:`\delta_k`, a power of two.
        coefficient: from the latent below (or from 2 level - n + 1) to the mean of q in 2^-26 bins, an integer.
        scale: standard deviation of q, in bins.
        unit: that the network's output is rounded to, a power of two.
    """

    timestep: int
    bin: float
    coefficient: int
    scale: float
    unit: float

    @property
    def bits(self) -> float:
        r"""Bits of a draw from q, for each dimension."""
        return math.log2(math.sqrt(2 * math.pi * math.e) * self.scale)


def _power_of_two(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def _rounded_scale(value: float) -> float:
    unit = _power_of_two(value) * 2.0**-SCALE_BITS
    return round(value / unit) * unit


@dataclass
class Chain:
    r"""A model as a codec.

    Args:
        scorer: what is scored, its network in float64.
        network_sha256: of the network as it was.
        band: by how much less outputs may differ between the machine that encodes and the one that decodes.
        batch_size: images that the network is asked about at once, at most.
    """

    scorer: Scorer
    network_sha256: str | None
    band: float = BAND
    batch_size: int = 2**20
    account: Account = field(default_factory=Account)

    @cached_property
    def steps(self) -> list[Step]:
        r"""The constants of the latents, the lowest first."""
        reverse = self.scorer.reverse
        forward, levels = reverse.forward, self.scorer.num_pixel_levels
        spread, posterior = forward.betas.sqrt().tolist(), forward.posterior_variance.sqrt().tolist()
        count, steps = len(forward), []
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        for k, timestep in enumerate(forward.timesteps.tolist()):
            above = posterior[k + 1] if k + 1 < count else 1.0
            width = _power_of_two(min(spread[k], above) / BINS_PER_SCALE)
            # The bins of what lies below: of the image, of its levels.
            below = steps[k - 1].bin if k else 1.0 / (levels - 1)
            coefficient = round(forward.sqrt_alphas[k].item() * below / width * 2 ** (MEAN_BITS + COEFFICIENT_BITS))
            original = reverse.prediction.original
            slope = float(original(forward, zero, zero + 1, timestep) - original(forward, zero, zero, timestep))
            slope *= forward.posterior_mean_coef1[k].item()
            scale = posterior[k] if k else 1.0 / (levels - 1)
            unit = min(max(_power_of_two(scale / (128 * abs(slope))), 2.0**-30), 2.0**-4)
            if not 8 * self.band < unit:
                raise ValueError(f"`band` must be less than an eighth of the unit {unit} at t = {timestep}, got {self.band}.")
            steps.append(Step(timestep, width, coefficient, _rounded_scale(spread[k] / width), unit))
        return steps

    @cached_property
    def digest(self) -> bytes:
        r"""SHA-256 of the model: its network, its settings, its constants."""
        described = {key: value for key, value in self.scorer.describe().items() if key not in _NOT_THE_MODEL}
        said = [self.network_sha256, described, self.steps, self.band]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()

    @property
    def start_bits(self) -> float:
        r"""Bits for each dimension that must lie on the stack before an image is pushed, about."""
        return sum(step.bits for step in self.steps[:2])

    # Encoding and decoding of a batch.

    def push(self, stack: Stack, levels: torch.Tensor, class_labels: torch.Tensor | None = None) -> int:
        r"""Push images, levels `(B, C, H, W)`; returns by how many bits the stack was lower in between."""
        lowest = start = stack.num_bits
        shape = tuple(levels.shape)
        below = levels.numpy().astype(np.int64).ravel()
        log_ratio = 0.0
        for k, step in enumerate(self.steps):
            means = self._means(k, below)
            latents = stack.draw(means, step.scale)
            lowest = min(lowest, stack.num_bits)
            notes = Notes()
            reverse = self._reverse(k, latents, shape, class_labels, notes, round_noting)
            log_ratio += self._log_ratio(k, below, latents, reverse)
            self._push_reverse(stack, k, below, reverse)
            before = stack.num_bits
            self._push_notes(stack, k, notes)
            self.account.notes += stack.num_bits - before
            self.account.num_notes += len(notes.places)
            below = latents
        last = self.steps[-1]
        zeros = np.zeros_like(below)
        stack.push(below, zeros, np.full(below.shape, 1 / last.bin))
        log_ratio -= normal_log_density(torch.from_numpy(below * last.bin), 0.0, 0.0).sum().item()
        self.account.images += shape[0]
        self.account.bound += log_ratio / LN_2
        self.account.net += stack.num_bits - start
        return start - lowest

    def pop(self, stack: Stack, shape: tuple[int, ...], class_labels: torch.Tensor | None = None) -> torch.Tensor:
        r"""Pop the images that were pushed last, levels of shape `(B, C, H, W)`."""
        # Before there is memory for it: a few bytes can claim any number of images.
        if stack.num_bits < LEAST_BITS * math.prod(shape):
            raise DamagedFile(f"`data` must hold the bits of its images, got {stack.num_bits} for {math.prod(shape)} values.")
        zeros, last = np.zeros(math.prod(shape), np.int64), self.steps[-1]
        latents = stack.pop(zeros, np.full(zeros.shape, 1 / last.bin))
        for k in range(len(self.steps) - 1, -1, -1):
            if np.abs(latents).max() > MAX_LATENT:
                raise DamagedFile("`data` must hold latents of the model, got larger ones.")
            notes = self._pop_notes(stack, k, math.prod(shape))
            reverse = self._reverse(k, latents, shape, class_labels, notes, round_as_noted)
            below = self._pop_reverse(stack, k, reverse)
            stack.give_back(latents, self._means(k, below), self.steps[k].scale)
            latents = below
        dtype = torch.uint8 if self.scorer.num_pixel_levels <= 256 else torch.int32
        return torch.from_numpy(latents).reshape(shape).to(dtype)

    # The two processes.

    def _means(self, k: int, below: np.ndarray) -> np.ndarray:
        r"""Means of q in 64ths of a bin, in integer arithmetic."""
        values = below if k else 2 * below - (self.scorer.num_pixel_levels - 1)
        return (values * self.steps[k].coefficient + (1 << (COEFFICIENT_BITS - 1))) >> COEFFICIENT_BITS

    @torch.no_grad()
    def _reverse(self, k: int, latents: np.ndarray, shape, class_labels, notes: Notes, rounded) -> "_Reverse":
        r"""p(x_{k-1} | x_k), as the network has it and as it is coded with."""
        scorer, step = self.scorer, self.steps[k]
        noisy = torch.from_numpy(latents * step.bin).reshape(shape)
        # As many at once as fit here; who encoded may have had more memory, or less.
        inputs = noisy.split(self.batch_size)
        labels = [None] * len(inputs) if class_labels is None else class_labels.split(self.batch_size)
        parts = [scorer.network(part.to(scorer.device), step.timestep, own) for part, own in zip(inputs, labels)]
        output = torch.cat(parts)
        if not bool(torch.isfinite(output).all()):
            raise NonFiniteOutput("NaN or infinity", timestep=step.timestep)
        output, channels = output.cpu(), shape[1]
        units = torch.full((1, output.shape[1], 1, 1), VARIANCE_UNIT, dtype=torch.float64)
        units[:, :channels] = step.unit
        how = (units.numpy(), self.band, notes)
        multiples = rounded(output.numpy(), *how) if rounded is round_noting else rounded(output.numpy(), how[0], notes)
        coded = scorer.reverse.p_mean_variance(torch.from_numpy(multiples) * units, noisy, step.timestep)
        # In bins of what lies below, or in levels.
        levels = scorer.num_pixel_levels
        bin_width = self.steps[k - 1].bin if k else 2 / (levels - 1)
        means = (coded.mean.numpy() / bin_width).ravel() + (0 if k else (levels - 1) / 2)
        scales = (0.5 * coded.log_variance).exp().numpy().ravel() / bin_width
        mean_unit = 2.0 ** -(MEAN_BITS if k else LEVEL_BITS)
        if not ((np.abs(means) < MAX_MEAN * mean_unit).all() and (scales > 0).all() and np.isfinite(scales).all()):
            raise NonFiniteOutput("means or standard deviations that no coder holds", timestep=step.timestep)
        scale_units = np.ldexp(1.0, np.frexp(scales)[1] - 1 - SCALE_BITS)  # exact, unlike logarithms
        band = ARITHMETIC_BAND / bin_width
        if rounded is round_noting:
            means, multiples = (
                rounded(means, mean_unit, band, notes),
                rounded(scales, scale_units, ARITHMETIC_BAND * scales, notes),
            )
        else:
            means, multiples = rounded(means, mean_unit, notes), rounded(scales, scale_units, notes)
        return _Reverse(output, noisy, means, multiples * scale_units)

    def _push_reverse(self, stack: Stack, k: int, below: np.ndarray, reverse: "_Reverse") -> None:
        if k:
            stack.push(below, reverse.means.astype(np.int64), reverse.scales)
        else:
            stack.push_levels(below, self.scorer.num_pixel_levels, reverse.means * 2.0**-LEVEL_BITS, reverse.scales)

    def _pop_reverse(self, stack: Stack, k: int, reverse: "_Reverse") -> np.ndarray:
        if k:
            return stack.pop(reverse.means.astype(np.int64), reverse.scales)
        return stack.pop_levels(self.scorer.num_pixel_levels, reverse.means * 2.0**-LEVEL_BITS, reverse.scales)

    # Notes on the stack.

    def _rarity(self, k: int, dimensions: int) -> int:
        r"""-log2 of how often there is something to note, about."""
        expected = 2 * dimensions * self.band / self.steps[k].unit
        return min(max(-math.ceil(math.log2(expected)), 1), 20)

    def _push_notes(self, stack: Stack, k: int, notes: Notes) -> None:
        size = self._size(notes.size)
        for place, is_up in reversed(list(zip(notes.places, notes.is_up))):
            stack.push_integer(2 * place + is_up, size)
        stack.push_count(len(notes.places), self._rarity(k, notes.size))

    def _pop_notes(self, stack: Stack, k: int, dimensions: int) -> Notes:
        # The outputs, the means and the standard deviations of an evaluation.
        total = dimensions * (4 if self.scorer.reverse.learns_variance else 3)
        count = stack.pop_count(self._rarity(k, total))
        if count > total:
            raise DamagedFile("`data` must note a value once, got more notes than values.")
        found = [stack.pop_integer(self._size(total)) for _ in range(count)]
        return Notes([value >> 1 for value in found], [bool(value & 1) for value in found])

    @staticmethod
    def _size(count: int) -> int:
        return 2 * count

    # What the bound says.

    def _log_ratio(self, k: int, below: np.ndarray, latents: np.ndarray, reverse: "_Reverse") -> float:
        r"""log q(x_k | x_{k-1}) - log p(x_{k-1} | x_k) of the model, nats, summed; densities, and the decoder at k = 0."""
        scorer, forward, step = self.scorer, self.scorer.reverse.forward, self.steps[k]
        exact = scorer.reverse.p_mean_variance(reverse.output, reverse.noisy, step.timestep)
        levels = scorer.num_pixel_levels
        under = torch.from_numpy(below.reshape(reverse.noisy.shape))
        under = under * self.steps[k - 1].bin if k else under * (2.0 / (levels - 1)) - 1
        q = normal_log_density(reverse.noisy, forward.sqrt_alphas[k].item() * under, forward.log_betas[k].item())
        if k:
            p = normal_log_density(under, exact.mean, exact.log_variance)
        else:
            how = {"mean": exact.mean, "log_variance": exact.log_variance, "num_pixel_levels": levels}
            p = discretized_gaussian_log_likelihood(under, **how, validate_args=False)
        return (q - p).sum().item()


class _Reverse(NamedTuple):
    r"""The network's output and its latents; means in 64ths of a bin (in 2^-12 levels), scales in bins (in levels)."""

    output: torch.Tensor
    noisy: torch.Tensor
    means: np.ndarray
    scales: np.ndarray


# ---- ddpm_vlb/codec/network.py ----

r"""A network in float64, in every part.

`module.double()` leaves one part behind: diffusers makes the embedding of timesteps in float32, whose sines and exponentials
differ by 1e-7 from one library to another. Here it is float64, too.
"""





class Float64Timesteps(torch.nn.Module):
    r"""diffusers' `Timesteps`, the sinusoidal embedding of Ho et al., computed in float64.

    Args:
        like: the one that it stands for.
    """

    def __init__(self, like: Timesteps):
        super().__init__()
        self.like = like

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        r"""Embedding of timesteps `(B,)`, `(B, num_channels)`."""
        like, half = self.like, self.like.num_channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - like.downscale_freq_shift)
        frequencies = torch.exp(-math.log(10_000) * exponents).to(timesteps.device)
        angles = like.scale * timesteps.double()[:, None] * frequencies
        parts = (angles.cos(), angles.sin()) if like.flip_sin_to_cos else (angles.sin(), angles.cos())
        return torch.nn.functional.pad(torch.cat(parts, dim=1), (0, like.num_channels % 2))


def in_float64(network: Network) -> Network:
    r"""A copy of a network that computes in float64.

    Raises:
        ValueError: a device without float64; an embedding of timesteps that diffusers makes in float32 alone.
    """
    if network.device.type == "mps":
        raise ValueError(f"`pipe` must be on a device that has float64, got {network.device.type}.")
    module = network.in_float32().double().eval()
    for name, part in list(module.named_modules()):
        if isinstance(part, GaussianFourierProjection):
            raise ValueError("`unet` must have time_embedding_type='positional' or 'learned' to be coded with, got 'fourier'.")
        if isinstance(part, Timesteps):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, Float64Timesteps(part))
    return network.with_module(module)


# ---- ddpm_vlb/codec/plain.py ----

r"""Images without a network: the bytes that bits-back needs to begin with.

They are the first images of a block, by whichever is shortest of some general tools and of a small model: how often each level
was seen so far, beside dark, middling and bright neighbours. A stream of theirs is no sequence of fair coins: it is mixed with
one that both sides know, so that latents popped from it are as the model has them.
"""




FILTERS: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0, "dict_size": 2**24}]
MAX_COUNTED = 2**16  # values; the small model looks at them one by one
MAX_ALIKE = 64  # levels; where there are no more, a level that is seen makes its neighbours likelier


def begin(levels: torch.Tensor, num_levels: int, key: bytes) -> tuple[Stack, bool]:
    r"""A stack that holds images `(M, C, H, W)`, and whether the small model put them there; `key` mixes others."""
    body = levels.numpy().astype("<u2" if _width(num_levels) == 2 else np.uint8).tobytes()
    ways = [zlib.compress(body, 9, -15), lzma.compress(body, lzma.FORMAT_RAW, filters=FILTERS), bz2.compress(body, 9)]
    best = min(range(len(ways)), key=lambda way: len(ways[way]))
    message = write_integer(len(ways) * len(ways[best]) + best) + ways[best]
    stack = Stack(words_of_bytes(_mixed(message + bytes(-len(message) % 4), key)))
    if levels.numel() > MAX_COUNTED:
        return stack, False
    counted = _count(levels.numpy().astype(np.int64), num_levels)
    return (counted, True) if counted.num_bits <= stack.num_bits else (stack, False)


def finish(stack: Stack, is_counted: bool, shape: tuple[int, ...], num_levels: int, key: bytes) -> torch.Tensor:
    r"""The images of `shape` on a stack as `begin` left it, or `DamagedFile`."""
    dtype = np.uint8 if num_levels <= 256 else np.int32
    if is_counted:
        if math.prod(shape) > MAX_COUNTED:
            raise DamagedFile(f"`data` must hold at most {MAX_COUNTED} values that were counted, got {math.prod(shape)}.")
        return torch.from_numpy(_uncount(stack, shape, num_levels).astype(dtype))
    reader = Reader(_mixed(words_to_bytes(stack.unsealed()), key))
    length, way = divmod(reader.integer("bytes", 0, 2**40), 3)
    body, size = reader.take(length), math.prod(shape) * _width(num_levels)
    tools = (zlib.decompressobj(-15), lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS), bz2.BZ2Decompressor())
    try:
        found = tools[way].decompress(body, size + 1)  # no more than the images are: a small stream can stand for much
    except (ValueError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DamagedFile(f"`data` must hold its plain images, got bytes that are none: {error}") from error
    if len(found) != size:
        raise DamagedFile(f"`data` must hold {shape[0]} plain images, got {len(found)} of {size} bytes.")
    values = np.frombuffer(found, "<u2" if _width(num_levels) == 2 else np.uint8).reshape(shape)
    return torch.from_numpy(values.astype(dtype))


class _Counts:
    r"""How often levels were seen, beside neighbours to the left and above; counts are multiples of a quarter, and exact."""

    def __init__(self, num_levels: int):
        self.beside = np.full((9, num_levels), 2.0**-7)
        self.overall = np.full(num_levels, 2.0**-7)
        self._levels = num_levels

    def place(self, images: np.ndarray, n: int, c: int, i: int, j: int) -> int:
        r"""Which neighbours a value has."""
        left = int(images[n, c, i, j - 1]) if j else 0
        above = int(images[n, c, i - 1, j]) if i else 0
        most = self._levels - 1
        return (2 * left + most - 1) // most * 3 + (2 * above + most - 1) // most

    def weights(self, place: int) -> np.ndarray:
        r"""What the next value's probabilities are in proportion to."""
        return self.beside[place] + self.overall * (2 / self.overall.sum())

    def see(self, place: int, value: int) -> None:
        r"""Count a value."""
        for away in (-2, -1, 0, 1, 2) if self._levels <= MAX_ALIKE else (0,):
            if 0 <= value + away < self._levels:
                self.beside[place, value + away] += 2.0 ** -abs(away)
                self.overall[value + away] += 2.0 ** -abs(away)


def _count(images: np.ndarray, num_levels: int) -> Stack:
    counts, weights = _Counts(num_levels), []
    for place in np.ndindex(*images.shape):
        beside, value = counts.place(images, *place), int(images[place])
        weights.append(counts.weights(beside))
        counts.see(beside, value)
    stack = Stack()
    for value, given in zip(images.ravel()[::-1], reversed(weights)):  # the first is popped first
        stack.push_weighed(int(value), given)
    return stack


def _uncount(stack: Stack, shape: tuple[int, ...], num_levels: int) -> np.ndarray:
    counts, images = _Counts(num_levels), np.zeros(shape, np.int64)
    for place in np.ndindex(*shape):
        beside = counts.place(images, *place)
        images[place] = stack.pop_weighed(counts.weights(beside))
        counts.see(beside, int(images[place]))
    if stack.num_bits:
        raise DamagedFile(f"`data` must leave nothing once its images are there, got {stack.num_bits} bits.")
    return images


def _width(num_levels: int) -> int:
    return 1 if num_levels <= 256 else 2


def _mixed(body: bytes, key: bytes) -> bytes:
    stream = hashlib.shake_256(key).digest(len(body))
    return np.bitwise_xor(np.frombuffer(body, np.uint8), np.frombuffer(stream, np.uint8)).tobytes()


# ---- ddpm_vlb/codec/codec.py ----

r"""`compress` and `decompress`: images to a file and back, block by block.

A block is a stack of bits of its own (`chain.py`). It begins with a few images without the network, as many as the first pops
need; then one image at a time is pushed, and, as the stack grows, batches of them, as far as there are bits for: the network
is asked about a batch at once, and all images of a batch need their bits at once.
"""





BATCH_SIZE, BLOCK_SIZE = 16, 1024
SPARE_BITS = 32  # that the stack keeps below what a batch needs


def compress(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    block_size: int = BLOCK_SIZE,
    file: BinaryIO | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    r"""Images as a file that `decompress` gives back to the last bit, nearly as short as the variational bound.

    Args:
        pipe: a `VLBDDPMPipeline`; left as it is. Its network is evaluated in float64, whatever its dtype.
        images: as `VLBDDPMPipeline.evaluate_nll`; of a set that `open_images` returns no more than a block is in memory.
        num_inference_steps, inference_timesteps: the chain, as `evaluate_nll`: fewer steps are faster and longer.
        class_labels: of a class-conditional network, as `evaluate_nll`; kept in the file.
        labels, names: of the images, integers and words to be kept in the file beside them.
        batch_size: images per network call, at most.
        block_size: images per block: what has to be decoded for one of them, and what shares the cost of beginning.
        file: a binary file to write to, in place of memory. One that can be read, too, and holds the beginning of the same file
            goes on where it stopped.
        progress: called with the number of images, each time some are done.

    Returns:
        `bytes`; with `file`, a `Summary` of what was written (in this call).

    Raises:
        ValueError: images that do not fit the model or are none; a model that cannot be scored; labels or names that are not
            one for each image; another beginning in `file`; constriction is not installed.
    """
    batch_size, block_size = check_count("batch_size", batch_size), check_count("block_size", block_size)
    load_coder()
    if inference_timesteps is None:
        steps = pipe.scorer(num_inference_steps).timesteps
        chain, named = chain_of(pipe, len(steps)), None
        if [step.timestep for step in chain.steps] != steps:
            chain, named = chain_of(pipe, timesteps=steps), tuple(steps)
    else:
        chain = chain_of(pipe, timesteps=sorted(inference_timesteps))
        named = tuple(pipe.scorer(inference_timesteps=inference_timesteps).timesteps)
    read, count, shape = _source(chain, images)
    classes = chain.scorer.network.check_class_labels(class_labels, count)
    if classes is not None and labels is not None:
        raise ValueError("`labels` must be left out where there are `class_labels`, which are kept, got both.")
    kept = check_labels(labels if classes is None else classes.tolist(), count)
    named_images = check_names(names, count)
    check_sizes(shape, count, block_size)

    def described(first: int, last: int) -> dict[str, Any]:
        return {
            "labels": None if kept is None else kept[first:last],
            "names": None if named_images is None else named_images[first:last],
        }

    band = round(-torch.tensor(chain.band, dtype=torch.float64).log2().item())
    levels = chain.scorer.num_pixel_levels
    header = Header(shape, levels, chain.digest[:DIGEST_BYTES], len(chain.steps), band, named, classes is not None)
    target = io.BytesIO() if file is None else file
    start, crc, index = _resume(target, header, chain, read, described, count, block_size)
    summary = Summary(0, math.prod(shape), 0, 0, 0, 0, 0, 0, chain.account)
    summary.file_bytes = len(header.to_bytes())
    if progress is not None and start:
        progress(start)
    for first in range(start, count, block_size):
        last = min(first + block_size, count)
        block_classes = None if classes is None else classes[first:last]
        block = encode_block(chain, read(first, last), index, block_classes, batch_size, summary, progress)
        block = block._replace(**described(first, last))
        body = block.to_bytes()
        framed = frame(body, crc)
        crc, index = framed[-CRC_BYTES:], index + 1
        summary.described_bytes += len(body) - len(block._replace(labels=None, names=None).to_bytes())
        summary.file_bytes += len(framed)
        target.write(framed)
        target.flush()
    closing = end(crc)
    summary.file_bytes += len(closing)
    target.write(closing)
    return target.getvalue() if isinstance(target, io.BytesIO) and file is None else summary


def encode_block(
    chain: Chain,
    levels: torch.Tensor,
    index: int,
    class_labels: torch.Tensor | None,
    batch_size: int,
    summary: Summary,
    progress: Callable[[int], Any] | None = None,
) -> CodedBlock:
    r"""A block of images, levels `(N, C, H, W)`; what it took is added to `summary`."""
    count, dimensions = len(levels), levels[0].numel()
    num_levels, key = chain.scorer.num_pixel_levels, chain.digest
    need = chain.start_bits * dimensions
    plain, before = 0, copy.copy(chain.account)
    with chain.scorer.network.evaluating():
        while True:
            plain, (stack, is_counted) = _enough_plain(levels, plain + 1, need, num_levels, key)
            place, batches = plain, []
            plain_bits = stack.num_bits
            while place < count:
                # Powers of two, so that they are soon told.
                size = 1 << (
                    int(min(batch_size, count - place, max((stack.num_bits - SPARE_BITS) // need, 1))).bit_length() - 1
                )
                chosen, there = slice(place, place + size), stack.num_bits
                low = chain.push(stack, levels[chosen], None if class_labels is None else class_labels[chosen])
                if low + 32 > there:
                    break  # popped from an empty stack: right, but long
                need = low / size if not batches else max(need, low / size)
                place += size
                batches.append(size)
                if progress is not None:
                    progress(size)
            if place >= count:
                break
            need *= 1.1
            vars(chain.account).update(vars(before))
            if progress is not None:
                progress(-sum(batches))
    whole, whole_counted = begin(levels, num_levels, key)
    if whole.num_bits <= stack.num_bits:
        stack, is_counted, plain, batches, plain_bits = whole, whole_counted, count, [], whole.num_bits
        vars(chain.account).update(vars(before))
    payload = words_to_bytes(stack.words()).rstrip(b"\0")
    summary.num_images += count
    summary.num_plain += plain
    summary.num_blocks += 1
    summary.plain_bits += plain_bits + (8 * len(payload) - stack.num_bits)
    summary.stack_bits += 8 * len(payload)
    runs = [(size, len(list(group))) for size, group in groupby(batches)]
    check = image_check(chain.digest, index, levels.numpy().tobytes())
    if progress is not None:
        progress(count - sum(batches))
    return CodedBlock(count, plain, is_counted, runs, None, None, check, payload)


def decompress(
    pipe: "VLBDDPMPipeline",
    data: bytes | BinaryIO,
    images: Sequence[int] | slice | int | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    r"""The images of a file that `compress` made.

    Args:
        pipe: the model that it was made with: the same network, scheduler and calibration, on any machine.
        data: the file's bytes, or a binary file.
        images: which ones, by their numbers or as a slice; only their blocks are decoded. By default all.
        batch_size: images per network call, at most; need not be that of `compress`.

    Returns:
        Levels `(N, C, H, W)`, as `images_to_levels` gives them.

    Raises:
        DamagedFile: a file that is not as it was written, or a machine whose network differs by more than the guard band; never
            wrong images. It is a `ValueError`.
        ValueError: another model; numbers that are not those of images; constriction is not installed.
    """
    if images is None:
        return torch.cat([levels for _, levels, _ in decompress_blocks(pipe, data, batch_size=batch_size)])
    with _seekable(data) as file:  # looked at twice
        start = file.tell()
        wanted = check_image_numbers(images, sum(block.num_images for _, block in read_info(file)[1]))
        file.seek(start)
        blocks = {first: levels for first, levels, _ in decompress_blocks(pipe, file, set(wanted), batch_size=batch_size)}
    picked = []
    for number in wanted:
        first = max(start for start in blocks if start <= number)
        picked.append(blocks[first][number - first])
    return torch.stack(picked)


@contextmanager
def _seekable(data: bytes | BinaryIO) -> Iterator[BinaryIO]:
    r"""The file, or one on the disk with what a stream holds that cannot be read twice: never more than a block in memory."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        yield io.BytesIO(data)
    elif data.seekable():
        yield data
    else:
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(data, file)
            file.seek(0)
            yield file


def decompress_blocks(
    pipe: "VLBDDPMPipeline",
    data: bytes | BinaryIO,
    wanted: set[int] | None = None,
    progress: Callable[[int], Any] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[int, torch.Tensor, CodedBlock]]:
    r"""The blocks of a file one at a time, in bounded memory: the number of their first image, their levels, and the rest.

    Args:
        pipe, data: as `decompress`.
        wanted: numbers of images; blocks without any are passed over.
        progress: called with the number of images, each time some are decoded.
        batch_size: as `decompress`.

    Raises:
        ValueError: as `decompress`.
    """
    batch_size = check_count("batch_size", batch_size)
    load_coder()
    header, reader, crc = read_header(data)
    chain = None
    for index, first, block, _ in read_blocks(reader, crc):
        if wanted is not None and not any(first <= number < first + block.num_images for number in wanted):
            continue
        if chain is None:
            chain = replace(_chain_of_header(pipe, header), batch_size=batch_size)
        yield first, decode_block(chain, header, block, index, progress), block


def decode_block(
    chain: Chain, header: Header, block: CodedBlock, index: int, progress: Callable[[int], Any] | None = None
) -> torch.Tensor:
    r"""The images of a block, levels `(N, C, H, W)`; `DamagedFile` where they are not those that were coded."""
    if block.num_images * math.prod(header.shape) > MAX_BLOCK_VALUES:
        raise DamagedFile(f"`data` must hold at most {MAX_BLOCK_VALUES} values in a block, got {block.num_images} images.")
    labels = None
    if header.has_classes:
        if block.labels is None:
            raise DamagedFile("`data` must hold the classes of its images, got none.")
        labels = chain.scorer.network.check_class_labels(block.labels, block.num_images)
    found, place = [], block.num_images
    with _as_damage(), chain.scorer.network.evaluating():
        stack = Stack(words_of_bytes(block.payload), True)
        for size, count in reversed(block.runs):
            for _ in range(count):
                classes = None if labels is None else labels[place - size : place]
                found.append(chain.pop(stack, (size, *header.shape), classes))
                place -= size
                if progress is not None:
                    progress(size)
        shape = (block.num_plain, *header.shape)
        if block.num_plain:
            found.append(finish(stack, block.is_counted, shape, header.num_pixel_levels, chain.digest))
    levels = torch.cat(found[::-1])
    if image_check(chain.digest, index, levels.numpy().tobytes()) != block.check:
        raise DamagedFile(
            f"`data` must give the images that were coded, got others in block {index}: this machine computes the network too"
            " differently."
        )
    if progress is not None:
        progress(block.num_plain)
    return levels


def read_header(data: bytes | BinaryIO) -> tuple[Header, Reader, bytes]:
    r"""The header, the reader behind it, and its checksum, which is not in the file."""
    reader = Reader(data)
    header = Header.read(reader)
    return header, reader, crc_of(bytes(reader.seen))


def read_info(data: bytes | BinaryIO) -> tuple[Header, list[tuple[int, CodedBlock]]]:
    r"""What is in a file, without its model: the header, and (first image, block) of every block, their payloads left out.

    Raises:
        DamagedFile: a file that is not as it was written.
    """
    header, reader, crc = read_header(data)
    return header, [(first, block._replace(payload=b"")) for _, first, block, _ in read_blocks(reader, crc)]


def chain_of(pipe: "VLBDDPMPipeline", num_steps: int | None = None, timesteps: Sequence[int] | None = None, band: float = BAND):
    r"""The codec of a pipeline's model on the chain of so many steps, or on a named one, ascending."""
    if timesteps is None and num_steps == pipe.scheduler.config.num_train_timesteps:
        timesteps = range(pipe.scheduler.config.num_train_timesteps)
    scorer = pipe.scorer(num_steps) if timesteps is None else pipe.scorer(inference_timesteps=list(timesteps)[::-1])
    network = scorer.network
    return Chain(replace(scorer, network=in_float64(network)), network.sha256(torch.float32), band)


def _chain_of_header(pipe: "VLBDDPMPipeline", header: Header) -> Chain:
    refusal = "`pipe` must be the model that the file was made with, got"
    try:
        chain = chain_of(pipe, header.num_steps, header.inference_timesteps, 2.0**-header.band)
        digest = chain.digest
        chain.scorer.network.check((), header.shape[1:])
    except ValueError as error:
        raise ValueError(f"{refusal} one that cannot decode it: {error}") from error
    network, levels = chain.scorer.network, chain.scorer.num_pixel_levels
    if (network.channels, levels) != (header.shape[0], header.num_pixel_levels):
        raise ValueError(f"{refusal} one of {network.channels} channels and {levels} levels.")
    if (network.num_classes is not None) != header.has_classes:
        raise ValueError(f"{refusal} one with{'out' * header.has_classes} classes.")
    if digest[:DIGEST_BYTES] != header.digest:
        raise ValueError(f"{refusal} another network, scheduler or calibration: {digest[:DIGEST_BYTES].hex()}.")
    return chain


def _source(chain: Chain, images: Any) -> tuple[Callable[[int, int], torch.Tensor], int, tuple[int, int, int]]:
    r"""What reads images from one number to another, how many there are, and their (C, H, W)."""
    scorer = chain.scorer
    if hasattr(images, "num_pixel_levels") and hasattr(images, "__len__"):
        check_grid(images, scorer.num_pixel_levels)
        how = {"channels": scorer.network.channels, "size": scorer.network.size}

        def read(first: int, last: int) -> torch.Tensor:
            return images_to_levels([images[i] for i in range(first, last)], scorer.num_pixel_levels, **how)

        count, one = len(images), read(0, min(1, len(images)))
    else:
        levels = images_to_levels(images, scorer.num_pixel_levels, channels=scorer.network.channels, size=scorer.network.size)
        count, one = len(levels), levels

        def read(first: int, last: int) -> torch.Tensor:
            return levels[first:last]

    scorer.network.check((), one.shape[2:])
    channels, height, width = one.shape[1:]
    return read, count, (channels, height, width)


def _resume(
    file: BinaryIO, header: Header, chain: Chain, read, described, count: int, block_size: int
) -> tuple[int, bytes, int]:
    r"""Write the header, or pass over what is there already; the next image, the last checksum, the next block."""
    start = header.to_bytes()
    crc, first, index = crc_of(start), 0, 0
    if not (file.seekable() and file.readable()) or not file.seek(0, io.SEEK_END):
        file.write(start)
        return first, crc, index
    file.seek(0)
    refusal = "`file` must be empty or hold the beginning of the same file, got"
    found = file.read(len(start))
    if not start.startswith(found):
        raise ValueError(f"{refusal} another.")
    if found != start:  # not even the header was written
        file.seek(0)
        file.write(start)
        return first, crc, index
    position = len(start)
    try:
        for _, at, block, block_crc in read_blocks(Reader(file), crc):
            last = min(at + block_size, count)
            if block.num_images != last - at:
                raise ValueError(f"{refusal} one of blocks of {block.num_images} images.")
            if block.check != image_check(chain.digest, index, read(at, last).numpy().tobytes()):
                raise ValueError(f"{refusal} one of other images.")
            if {"labels": block.labels, "names": block.names} != described(at, last):
                raise ValueError(f"{refusal} one of other labels or names.")
            crc, first, index, position = block_crc, last, index + 1, file.tell()
    except DamagedFile:
        pass  # the block that was being written
    file.seek(position)
    file.truncate()
    return first, crc, index


def _enough_plain(levels, least: int, need: float, num_levels: int, key: bytes) -> tuple[int, tuple[Stack, bool]]:
    r"""How many images without the network give the bits for one with it, at least so many; and the block's beginning."""
    plain = min(least, len(levels))
    while True:
        begun = begin(levels[:plain], num_levels, key)
        if plain == len(levels) or begun[0].num_bits >= need + SPARE_BITS:
            return plain, begun
        plain += 1


@contextmanager
def _as_damage() -> Iterator[None]:
    r"""What a coder says to bits that are none of its own, as `DamagedFile`."""
    refusal = "`data` must hold bits that this model and this machine can decode, got others"
    try:
        yield
    except DamagedFile:
        raise
    except (ValueError, AssertionError, OverflowError, IndexError, FloatingPointError) as error:
        raise DamagedFile(f"{refusal}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the coder
            raise
        raise DamagedFile(f"{refusal}.") from error
