r"""What the estimator asks for and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

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
