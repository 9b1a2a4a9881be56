r"""The bound of a data set from few evaluations, unbiased, with an error that is measured and not assumed.

The bound of image i is :math:`A_i = P_i + \sum_t E_\epsilon\, \ell_t(x_i, \epsilon)`, with the prior term :math:`P_i` in closed
form, and that of a data set of N images is :math:`\bar A`. An evaluation of the network gives one
:math:`\ell_t(x_i, \epsilon)`.

**Pilot.** Some images are evaluated once in each of B bins of timesteps (the decoder's alone is the first). From these come a
control variate :math:`m_t(x, \epsilon)` (`control_variates.py`) and, for each bin, the standard deviation :math:`\sigma_b` of
what it leaves over; then they are put aside. From here on m and the probabilities :math:`p_t \propto \sigma_{b(t)}`, Neyman's
allocation, mixed with a floor, are fixed: whatever the pilot got wrong costs evaluations, not truth.

**Rounds.** m of the N images are drawn without replacement. Each is evaluated 2V times: its quantiles of p are cut into V
strata, with two independent draws in each. A draw gives :math:`y = (\ell_t - m_t) / p_t`, of mean
:math:`D_i = A_i - P_i - \sum_t \phi_i^\top b_t`. With :math:`d_{i1}, d_{i2}` the means over the strata of the first draws and
of the second, :math:`d_i = (d_{i1} + d_{i2}) / 2`, :math:`s^2` the variance of :math:`d_i` over the images,
:math:`f = m / N`, and :math:`y_{iv1}, y_{iv2}` the draws of stratum v,

.. math::
    \hat A &= \bar P + \sum_t \bar\phi^\top b_t + \frac1m \sum_i d_i, \qquad
    v_i = \frac{1}{V^2} \sum_v \frac{(y_{iv1} - y_{iv2})^2}{4}, \\
    \widehat{\mathrm{Var}}[\hat A \mid \text{images}] &= (1 - f) \frac{s^2}{m} + f\, \frac{\bar v}{m}
        & \text{(Monte Carlo)} \\
    \widehat{\mathrm{Var}}[\bar A] &= \frac1N \widehat{\mathrm{Var}}_i[A_i], \qquad
        \widehat{\mathrm{Cov}}_i[d_{i1}, d_{i2}] \text{ being that of } D_i & \text{(the images')}

all without bias for a number of evaluations fixed beforehand: two-stage sampling (Cochran 1977, eq. 10.15), each image
measured twice. The pairs are what tells noise from
differences between images. :math:`P_i` and :math:`\phi_i` are known for all N. Where the control variate is good an image is
left with little of its own, and one round with V = 1 takes a new image for every second evaluation.

**Stopping.** The first round is as large as the pilot says that the wanted error needs. Should it not do, another round
follows, drawn anew, its size from the variance seen by then. Rounds count by their evaluations, never by their variances.
Intervals are Student's, with as many degrees of freedom as the spread of the variance's own summands leaves (Satterthwaite),
so that heavy tails widen them. A round whose variance came out small is the last one, and where losses are skewed its mean
then tends to be small as well: with a target the estimate has a bias of higher order, toward less, a fraction of the error.

Everything drawn is a function of (seed, round, image, place): of no batch, order or process.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from .noise import mix, mix_array, uniform_array

PILOT_EVALUATIONS = 1000
FLOOR = 0.1  # of the probability goes to all bins alike
RIDGE = 3.0
KERNEL = 1.5  # bins
MIN_DRAWS = 256.0  # of a first round: fewer would say little of their own error
MAX_DRAWS = 2**20  # of a round, which lies in memory
MIN_FRAME = 200  # images that stand for a data set: the control variate, fitted to a few of them, suits fewer too well


class Draws(NamedTuple):
    r"""Evaluations to make, arrays of one shape: positions of images, rows of the grid, keys of the noise."""

    images: np.ndarray
    rows: np.ndarray
    keys: np.ndarray


# From the values and features of the first so many draws, the estimate so far: for a progress bar.
Preview = Callable[[torch.Tensor, torch.Tensor], "BoundEstimate | None"]
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
        num_evaluations: network evaluations, the pilot's `num_pilot_evaluations` among them.
        num_rounds: rounds of sampling.
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
    num_evaluations: int
    num_pilot_evaluations: int
    num_rounds: int


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
    edges = bin_edges(num_steps)
    budget = math.inf if max_evaluations is None else max_evaluations // evaluations_per_draw
    planned = len(frame) * evaluations_per_image if evaluations_per_image else budget
    draws = _pilot_draws(edges, ids, frame, seed, min(PILOT_EVALUATIONS, planned // 4, count * num_steps // 4))
    num_pilot = draws.rows.size
    if num_pilot + 4 > budget:
        raise ValueError(
            f"`max_evaluations` must leave room for a pilot of {num_pilot * evaluations_per_draw} and a round of"
            f" {4 * evaluations_per_draw}, got {max_evaluations}."
        )
    image_features = _standardize(image_features)
    design = _Design(edges, draws, *_evaluate(evaluate, draws, lambda values, features: None), image_features)
    sums = _Sums(design, prior, image_features, frame)
    extra = frame.size * evaluations_per_image if evaluations_per_image else design.evaluations_needed(target_se, count)
    while True:
        extra = min(extra, budget - num_pilot - sums.num_evaluations, MAX_DRAWS if not evaluations_per_image else math.inf)
        # V evaluations in V pairs of strata once there is a pair for every image.
        strata = max(1, int(extra // (2 * len(frame))))
        images = min(len(frame), int(extra // (2 * strata)))
        draws = design.draw(ids, frame, mix(seed, 1 + len(sums.rounds)), images, strata)
        sums.add(draws, *_evaluate(evaluate, draws, partial(sums.preview, draws, num_pilot)))
        estimate = sums.estimate(num_pilot)
        left = budget - estimate.num_evaluations
        error = estimate.monte_carlo_error
        if evaluations_per_image or left < 4 or target_se is None and left < 0.02 * budget:
            extra = 0
        elif target_se is None:
            extra = left
        elif error > target_se:
            # Of the variance, what more images in memory would have to bring down does not fall with more evaluations.
            fixed = sums.frame_variance
            if fixed >= target_se**2:
                raise ValueError(
                    f"`target_se` must be above {fixed**0.5:.2g}, the error of having {len(frame)} of {count} images at hand,"
                    f" got {target_se}. Give a larger buffer."
                )
            missing = sums.num_evaluations * ((error**2 - fixed) / (target_se**2 - fixed) - 1)
            extra = math.ceil(max(4.0, 1.05 * missing, 0.05 * sums.num_evaluations))
        else:
            extra = 0
        if not extra:
            return estimate


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


def bin_edges(num_steps: int) -> np.ndarray:
    r"""Rows of the grid in bins: the decoder alone, then ever wider up to a twelfth of all. Edges, from 0 to `num_steps`."""
    edges = [0]
    while edges[-1] < num_steps:
        width = min(max(1, round(0.3 * edges[-1])), max(1, math.ceil(num_steps / 12)))
        edges.append(min(num_steps, edges[-1] + width))
    return np.array(edges)


def _evaluate(evaluate: Evaluate, draws: Draws, preview: Preview) -> tuple[torch.Tensor, torch.Tensor]:
    values, features = evaluate(Draws(*(array.reshape(-1) for array in draws)), preview)
    shape = draws.rows.shape
    return values.double().reshape(shape), features.double().reshape(*shape, -1)


def _standardize(features: torch.Tensor) -> torch.Tensor:
    r"""Columns of mean 0 and standard deviation 1 over the data set, the first of ones; those that do not vary are zero."""
    rest = features[:, 1:].double()
    spread = rest.std(dim=0, unbiased=False)
    rest = torch.where(spread > 1e-12, (rest - rest.mean(dim=0)) / spread.clamp(min=1e-12), 0.0)
    return torch.cat([torch.ones(len(features), 1, dtype=torch.float64), rest], dim=1)


def order_of(ids: np.ndarray, frame: np.ndarray, key: int) -> np.ndarray:
    r"""The images of `frame` in an order that the key gives."""
    return frame[np.argsort(mix_array(key, ids[frame]), kind="stable")]


def _keys(ids: np.ndarray, key: int, places: int) -> np.ndarray:
    r"""A key for each image and place, `(len(ids), places)`."""
    return mix_array(mix_array(mix(key, 1), ids)[:, None], np.arange(places)[None])


def _pilot_draws(edges: np.ndarray, ids: np.ndarray, frame: np.ndarray, seed: int, evaluations: float) -> Draws:
    r"""One draw in each bin for some images, `(images, bins)`; images repeat where there are too few."""
    bins = len(edges) - 1
    count = max(2, math.ceil(evaluations / bins))
    images = np.resize(order_of(ids, frame, mix(seed, 0)), count)
    # A repeated image has its own draws each time.
    repeats = np.arange(count) // len(frame)
    keys = mix_array(_keys(ids[images], mix(seed, 0), bins), repeats[:, None])
    rows = edges[:-1] + (uniform_array(mix_array(keys, 1)) * np.diff(edges)).astype(np.int64)
    return Draws(np.repeat(images[:, None], rows.shape[1], axis=1), rows, mix_array(keys, 2))


class _Design:
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


class _Round(NamedTuple):
    images: np.ndarray
    evaluations: int
    first: torch.Tensor  # d_i1
    second: torch.Tensor  # d_i2
    variances: torch.Tensor  # v_i by stratum, (m, V)
    by_bin: torch.Tensor  # summands of d_i by bin, (m, B)
    variances_by_bin: torch.Tensor  # v_i of these summands, (m, B)
    counts: torch.Tensor  # evaluations by bin
    rows: torch.Tensor  # what was left over at each draw's row: rows and values
    left_over: torch.Tensor


class _Sums:
    r"""The rounds so far, and the estimates that they give."""

    def __init__(self, design: _Design, prior, image_features, frame):
        self.design, self.prior, self.image_features, self.frame = design, prior.double(), image_features, frame
        # phi_i^T b, summed over the rows of each bin.
        weights = design.coefficients[:, : design.num_image_features] * design.widths[:, None]
        self.known_by_bin = (image_features.mean(dim=0) * weights).sum(dim=1)
        self.known = self.prior + image_features @ weights.sum(dim=0)
        self.known_decoder = image_features @ weights[0]
        self.rounds: list[_Round] = []

    @property
    def num_evaluations(self) -> int:
        r"""Of all rounds, without the pilot."""
        return sum(one.evaluations for one in self.rounds)

    def add(self, draws: Draws, values, noise_features) -> None:
        r"""Take in what a round's draws gave."""
        design = self.design
        y = design.residuals(draws, values, noise_features, self.image_features)
        images, strata, _ = y.shape
        bins = design.bin_of(draws.rows).reshape(images, -1)
        by_bin, squares = torch.zeros(2, images, design.bins, dtype=torch.float64)
        by_bin.scatter_add_(1, bins, y.reshape(images, -1) / (2 * strata))
        # Of a pair the squared difference of what falls into a bin: both draws, one of them, or none.
        squares.scatter_add_(1, bins, y.reshape(images, -1).square())
        pairs = bins.reshape(images, strata, 2)
        alike = torch.where(pairs[..., 0] == pairs[..., 1], -2 * y[..., 0] * y[..., 1], 0.0)
        squares.scatter_add_(1, pairs[..., 0], alike)
        self.rounds.append(
            _Round(
                images=draws.images[:, 0, 0],
                evaluations=y.numel(),
                first=y[..., 0].mean(dim=1),
                second=y[..., 1].mean(dim=1),
                variances=(y[..., 0] - y[..., 1]).square() / (4 * strata**2),
                by_bin=by_bin,
                variances_by_bin=squares / (4 * strata**2),
                counts=torch.bincount(bins.flatten(), minlength=design.bins),
                rows=torch.as_tensor(draws.rows).flatten(),
                left_over=(y.reshape(images, -1) * (design.probabilities / design.widths)[bins]).flatten(),
            )
        )

    def preview(self, draws: Draws, num_pilot: int, values, noise_features) -> BoundEstimate | None:
        r"""The estimate with the part of a round whose values are there, `None` for less than two images."""
        per_image = draws.rows[0].size
        images = len(values) // per_image
        if images < 2 or not self.rounds and images < 8:
            return None
        part = Draws(*(array[:images] for array in draws))
        shape = part.rows.shape
        others = _Sums.__new__(_Sums)
        others.__dict__ = self.__dict__ | {"rounds": list(self.rounds)}
        others.add(part, values[: part.rows.size].reshape(shape), noise_features[: part.rows.size].reshape(*shape, -1))
        return others.estimate(num_pilot)

    def _variance(self, one: _Round) -> tuple[float, float]:
        r"""The Monte Carlo variance of a round's mean, given the frame, and the variance of that number itself."""
        m, share = len(one.images), len(one.images) / len(self.frame)
        if share == 1:
            summands = one.variances.flatten() / m**2
            freedom = len(summands)
        else:
            d = (one.first + one.second) / 2
            between = (d - d.mean()).square() * m / (m - 1)
            summands = ((1 - share) * between + share * one.variances.sum(dim=1)) / m**2
            freedom = m - 1
        variance, n = summands.sum().item(), len(summands)
        # Of few summands the spread says little, but there cannot be more degrees of freedom than these.
        return variance, max(summands.var().item() * n if n > 1 else 0.0, 2 * variance**2 / freedom)

    def _variance_by_bin(self, one: _Round) -> torch.Tensor:
        r"""The same variance of what each bin contributes, `(B,)`."""
        m, share = len(one.images), len(one.images) / len(self.frame)
        between = one.by_bin.var(dim=0) if share < 1 else 0.0
        return ((1 - share) * between + share * one.variances_by_bin.mean(dim=0)) / m

    @property
    def between(self) -> float:
        r"""The variance over images of what the control variate leaves of an image's bound; may come out negative."""
        weights = [len(one.images) for one in self.rounds]
        covariances = [torch.cov(torch.stack([one.first, one.second]))[0, 1].item() for one in self.rounds]
        return sum(w * c for w, c in zip(weights, covariances)) / sum(weights)

    @property
    def frame_variance(self) -> float:
        r"""The variance from having only the frame's images at hand, not all N."""
        share = len(self.frame) / len(self.prior)
        return 0.0 if share == 1 else (1 - share) * max(self.between, 0.0) / len(self.frame)

    def _data_error(self) -> float | None:
        if len(self.prior) == 1:
            return None
        pairs = [torch.stack([self.known[one.images], (one.first + one.second) / 2]) for one in self.rounds]
        weights = [len(one.images) for one in self.rounds]
        covariance = sum(w * torch.cov(pair)[0, 1].item() for w, pair in zip(weights, pairs)) / sum(weights)
        variance = self.known.var().item() + 2 * covariance + self.between
        return math.sqrt(max(variance, 0.0) / len(self.prior))

    def estimate(self, num_pilot: int) -> BoundEstimate:
        r"""The estimate from all rounds."""
        total = self.num_evaluations
        weights = [one.evaluations / total for one in self.rounds]
        by_bin, bin_variance = self.known_by_bin.clone(), torch.zeros_like(self.known_by_bin)
        variance, noise, counts = self.frame_variance, 0.0, torch.zeros(self.design.bins, dtype=torch.int64)
        for weight, one in zip(weights, self.rounds):
            by_bin += weight * one.by_bin.mean(dim=0)
            bin_variance += weight**2 * self._variance_by_bin(one)
            one_variance, one_noise = self._variance(one)
            variance += weight**2 * one_variance
            noise += weight**4 * one_noise
            counts += one.counts
        prior = self.prior.mean().item()
        bits_per_dim = prior + by_bin.sum().item()
        per_image = per_image_decoder = per_image_error = None
        if all(len(one.images) == len(self.prior) for one in self.rounds):
            per_image, per_image_decoder = self.known.clone(), self.known_decoder.clone()
            squares = torch.zeros_like(self.known)
            for weight, one in zip(weights, self.rounds):
                per_image[one.images] += weight * (one.first + one.second) / 2
                per_image_decoder[one.images] += weight * one.by_bin[:, 0]
                squares[one.images] += weight**2 * one.variances.sum(dim=1)
            per_image_error = squares.sqrt()
        edges = self.design.edges
        known_terms = (self.known_by_bin / self.design.widths).repeat_interleave(self.design.widths.long())
        rows = torch.cat([one.rows for one in self.rounds])
        left_over = torch.zeros_like(known_terms).index_add_(0, rows, torch.cat([one.left_over for one in self.rounds]))
        term_counts = torch.bincount(rows, minlength=len(known_terms))
        return BoundEstimate(
            bits_per_dim=bits_per_dim,
            prior=prior,
            bins=[
                Bin(int(edges[b]), int(edges[b + 1]) - 1, by_bin[b].item(), bin_variance[b].sqrt().item(), int(counts[b]))
                for b in range(self.design.bins)
            ],
            monte_carlo_error=math.sqrt(variance),
            data_error=self._data_error(),
            terms=known_terms + left_over / term_counts,
            term_evaluations=term_counts,
            degrees_of_freedom=max(1.0, 2 * variance**2 / noise) if noise > 0 else 1.0,
            per_image=per_image,
            per_image_decoder=per_image_decoder,
            per_image_error=per_image_error,
            num_evaluations=total + num_pilot,
            num_pilot_evaluations=num_pilot,
            num_rounds=len(self.rounds),
        )
