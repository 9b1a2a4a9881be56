r"""What the pilot settles: bins, control variate, probabilities."""

import math

import numpy as np
import torch

from ..noise import mix, mix_array, order_of, uniform_array
from .draws import Draws

FLOOR = 0.1  # of the probability goes to all bins alike
RIDGE = 3.0
KERNEL = 1.5  # bins
LONG = 4.0
MAX_LONG = 32
MIN_DRAWS = 256.0  # of a first round: fewer would say little of their own error


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
    if row_sizes is None:
        return np.array(edges)
    long: list[int] = []
    for first, last in zip(edges, edges[1:]):
        rows = sorted(range(first, last), key=lambda row: -row_sizes[row])
        left = float(row_sizes[first:last].sum())
        for place, row in enumerate(rows[:-1]):
            left -= row_sizes[row]
            if row_sizes[row] * (len(rows) - place - 1) <= LONG * left:
                break
            long.append(row)
    long = sorted(long, key=lambda row: -row_sizes[row])[:MAX_LONG]
    return np.unique([*edges, *long, *(row + 1 for row in long)])


def standardize(features: torch.Tensor) -> torch.Tensor:
    r"""Columns of mean 0 and standard deviation 1 over the data set, the first of ones; those that do not vary are zero."""
    rest = features[:, 1:].double()
    spread = rest.std(dim=0, unbiased=False)
    rest = torch.where(spread > 1e-12, (rest - rest.mean(dim=0)) / spread.clamp(min=1e-12), 0.0)
    return torch.cat([torch.ones(len(features), 1, dtype=torch.float64), rest], dim=1)


def _keys(ids: np.ndarray, key: int, places: int) -> np.ndarray:
    r"""A key for each image and place, `(len(ids), places)`."""
    return mix_array(mix_array(mix(key, 1), ids)[:, None], np.arange(places)[None])


def pilot_draws(edges: np.ndarray, ids: np.ndarray, frame: np.ndarray, seed: int, evaluations: float) -> Draws:
    r"""One draw in each bin for some images, `(images, bins)`; images repeat where there are too few."""
    bins = len(edges) - 1
    count = max(2, math.ceil(evaluations / bins))
    images = np.resize(order_of(ids, frame, mix(seed, 0)), count)
    # A repeated image has its own draws each time.
    repeats = np.arange(count) // len(frame)
    keys = mix_array(_keys(ids[images], mix(seed, 0), bins), repeats[:, None])
    rows = edges[:-1] + (uniform_array(mix_array(keys, 1)) * np.diff(edges)).astype(np.int64)
    return Draws(np.repeat(images[:, None], rows.shape[1], axis=1), rows, mix_array(keys, 2))


class Design:
    r"""What the pilot settles: the control variate and the probability of each bin."""

    def __init__(self, edges, draws: Draws, values, noise_features, image_features):
        self.edges, self.widths = edges, torch.as_tensor(np.diff(edges)).double()
        self.bins = len(self.widths)
        features = torch.cat([image_features[draws.images], noise_features], dim=2)
        self.num_image_features = image_features.shape[1]
        # Terms differ by orders of magnitude from bin to bin, their relation to the features does not: each bin learns from
        # its neighbours, in units of its own size.
        scale = values.square().mean(dim=0).sqrt().clamp(min=1e-300)
        values = values / scale
        value_means, feature_means = values.mean(dim=0), features.mean(dim=0)
        values, features = values - value_means, features - feature_means
        index = torch.arange(self.bins, dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((index[:, None] - index) / KERNEL) ** 2)
        gram = torch.einsum("ab,ibp,ibq->apq", kernel, features, features)
        moment = torch.einsum("ab,ibp,ib->ap", kernel, features, values)
        gram = gram + RIDGE * torch.eye(features.shape[2], dtype=torch.float64)
        coefficients = torch.linalg.solve(gram, moment)
        residuals = values - torch.einsum("ibp,bp->ib", features, coefficients)
        # The intercepts, for the constant feature, which its own mean has taken out of the fit.
        coefficients[:, 0] = value_means - (feature_means[:, 1:] * coefficients[:, 1:]).sum(dim=1)
        self.coefficients = coefficients * scale[:, None]
        fitted = (features.shape[2] - 1) / kernel.sum(dim=1)
        freedom = (len(values) - 1 - fitted).clamp(min=1.0)
        variance = residuals.square().sum(dim=0) / freedom
        smooth = torch.exp(-0.5 * (index[:, None] - index) ** 2)
        spread = ((smooth @ variance) / smooth.sum(dim=1)).sqrt() * scale
        ideal = self.widths * spread
        share = ideal / ideal.sum() if ideal.sum() > 0 else torch.full_like(ideal, 1 / self.bins)
        self.probabilities = FLOOR / self.bins + (1 - FLOOR) * share
        # For the size of the first round: the variance of a draw, and the part of it that lies between images.
        self.variance = ((self.widths * spread) ** 2 / self.probabilities).sum().item()
        totals = (residuals * scale * self.widths).sum(dim=1)
        inside = ((self.widths * scale) ** 2 * residuals.square().sum(dim=0) / freedom).sum()
        repeated = len(np.unique(draws.images)) < len(draws.images)
        between = 0.0 if repeated else (totals.var() - inside).item()
        self.between = min(max(between, 0.0), self.variance)

    def evaluations_needed(self, target_se: float | None, count: int) -> float:
        r"""How many draws bring the Monte Carlo error of N images down to `target_se`, as far as the pilot can tell."""
        if target_se is None:
            return math.inf
        within = self.variance - self.between
        images = (self.between + within / 2) / (target_se**2 + self.between / count)
        return math.ceil(max(MIN_DRAWS, 1.1 * (2 * images if images <= count else within / target_se**2)))

    def draw(self, ids: np.ndarray, frame: np.ndarray, key: int, images: int, strata: int) -> Draws:
        r"""Two draws in each stratum for some images, `(images, strata, 2)`."""
        chosen = order_of(ids, frame, key)[:images]
        keys = _keys(ids[chosen], key, 2 * strata).reshape(images, strata, 2)
        quantiles = (np.arange(strata)[:, None] + uniform_array(mix_array(keys, 1))) / strata
        upper = self.probabilities.cumsum(dim=0).numpy()
        upper = upper / upper[-1]
        bins = np.searchsorted(upper, quantiles, side="right").clip(max=self.bins - 1)
        lower = np.concatenate([[0.0], upper[:-1]])
        inside = ((quantiles - lower[bins]) / (upper[bins] - lower[bins])).clip(0, 1)
        widths = np.diff(self.edges)[bins]
        rows = self.edges[bins] + (inside * widths).astype(np.int64).clip(max=widths - 1)
        return Draws(np.repeat(chosen, 2 * strata).reshape(rows.shape), rows, mix_array(keys, 2))

    def bin_of(self, rows: np.ndarray) -> torch.Tensor:
        r"""The bin of each row."""
        return torch.as_tensor(np.searchsorted(self.edges, rows, side="right") - 1)

    def residuals(self, draws: Draws, values, noise_features, image_features) -> torch.Tensor:
        r""":math:`y = (\ell_t - m_t) / p_t` of draws."""
        bins = self.bin_of(draws.rows)
        features = torch.cat([image_features[draws.images], noise_features], dim=-1)
        predicted = (features * self.coefficients[bins]).sum(dim=-1)
        return (values - predicted) * self.widths[bins] / self.probabilities[bins]
