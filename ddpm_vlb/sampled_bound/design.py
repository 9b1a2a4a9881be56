r"""Where to evaluate, and what is known before: bins, the control variate, the probabilities of the rows, the draws."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..noise import mix, mix_array, order_of, uniform_array
from .draws import Draws

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
