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

import math
from functools import partial

import numpy as np
import torch

from ..noise import mix, mix_array, order_of, uniform_array
from .design import Design, Shape, best_probabilities, bin_edges, first_probabilities, fit, split_long, standardize
from .draws import BoundEstimate, Draws, Evaluate, Number, Preview
from .rounds import Round, Sums
from .rules import check_rules

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
