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

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from ..noise import uniform_array

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
