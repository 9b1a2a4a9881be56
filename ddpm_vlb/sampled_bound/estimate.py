r"""The bound of a data set from few evaluations, unbiased, with an error that is measured and not assumed.

The bound of image i is :math:`A_i = P_i + \sum_t E_\epsilon\, \ell_t(x_i, \epsilon)`, with the prior term :math:`P_i` in closed
form, and that of a data set of N images is :math:`\bar A`. An evaluation of the network gives one
:math:`\ell_t(x_i, \epsilon)`.

**Pilot.** Some images are evaluated once in each of B bins of timesteps (the decoder's alone is the first; a step of the grid
that is much longer than its neighbours is one too, for its term is as much larger). From these come a
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
then tends to be small as well: with a target the estimate has a bias toward less. It is some 4 % of the error for the digits,
and 7 to 27 % where single losses are lognormal (:math:`\sigma` of 0.6 to 1); intervals of 95 % then cover 93 to 94 %. Other
seeds do not average it out: of the mean of 16 such runs it is 0.1 to 0.5 of that mean's error. A number of evaluations fixed
beforehand brings none.

An image by itself has the error :math:`\sqrt{v_i}`, of V squares, and Satterthwaite's degrees of freedom,
:math:`(\sum_v v_{iv})^2 / \sum_v v_{iv}^2` with :math:`v_{iv}` the summands of :math:`v_i`: V at the most, and few where some
strata have most of the variance.

Everything drawn is a function of (seed, round, image, place): of no batch, order or process.
"""

import math
from functools import partial

import numpy as np
import torch

from ..noise import mix
from .design import Design, bin_edges, pilot_draws, standardize
from .draws import BoundEstimate, Draws, Evaluate, Preview
from .rounds import Sums
from .rules import check_rules

PILOT_EVALUATIONS = 1000
MAX_DRAWS = 2**20  # of a round, which lies in memory
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
        row_sizes: what is known beforehand of how large the terms of the rows are beside each other, `(K,)`; by default that
            neighbours are alike.
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
    edges = bin_edges(num_steps, row_sizes)
    budget = math.inf if max_evaluations is None else max_evaluations // evaluations_per_draw
    planned = len(frame) * evaluations_per_image if evaluations_per_image else budget
    draws = pilot_draws(edges, ids, frame, seed, min(PILOT_EVALUATIONS, planned // 4, count * num_steps // 4))
    num_pilot = draws.rows.size
    if num_pilot + 4 > budget:
        raise ValueError(
            f"`max_evaluations` must leave room for a pilot of {num_pilot * evaluations_per_draw} and a round of"
            f" {4 * evaluations_per_draw}, got {max_evaluations}."
        )
    image_features = standardize(image_features)
    design = Design(edges, draws, *_evaluate(evaluate, draws, lambda values, features: None), image_features)
    sums = Sums(design, prior, image_features, frame)
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


def _evaluate(evaluate: Evaluate, draws: Draws, preview: Preview) -> tuple[torch.Tensor, torch.Tensor]:
    values, features = evaluate(Draws(*(array.reshape(-1) for array in draws)), preview)
    shape = draws.rows.shape
    return values.double().reshape(shape), features.double().reshape(*shape, -1)
