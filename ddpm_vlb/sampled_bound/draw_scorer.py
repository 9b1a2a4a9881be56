r"""Images and networks as the estimator sees them: terms for its draws, and what is known without a network.

`estimate_frame` is the one way from scorers and images to an estimate; evaluations, comparisons, the bias of half precision and
`evaluate_nll` all go it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checks import NonFiniteOutput, working_dtype
from ..data.frame import Images
from ..forward_process import ForwardProcess, Rows
from ..gaussians import nats_to_bits_per_dim
from ..model.scorer import Scorer
from ..noise import keyed_normal, mix, order_of, to_device
from .control_variates import ControlVariates, image_features, in_parts
from .draws import BoundEstimate, Draws, Evaluate
from .estimate import estimate_bound

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
