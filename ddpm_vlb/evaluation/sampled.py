r"""Sampled evaluations: draws in batches, by all processes, kept in a journal."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..data.frame import Images, read_images
from ..model.scorer import Scorer
from ..sampled_bound.draw_scorer import DrawScorer, estimate_frame, known_parts
from ..sampled_bound.draws import BoundEstimate, Draws, Number, Preview
from .run import Journal, Progress, Run, Workers, run_batches

PILOT_CALLS = 3  # at the most: a look, and both halves of the pilot


def estimate_in_batches(
    scorers: Sequence[Scorer], images: Images, run: Run, journal: Journal, **options: Any
) -> tuple[BoundEstimate, int]:
    r"""`estimate_frame` in batches, by all processes; the estimate, and how many network evaluations it took."""
    draws: list[JournaledDraws] = []

    def evaluating(draw_scorer: DrawScorer) -> JournaledDraws:
        rules = {name: options.get(name) for name in ("target_se", "max_evaluations")}
        draws.append(JournaledDraws(draw_scorer, run.batch_size, journal, run.workers, run.progress, **rules))
        return draws[0]

    estimate = estimate_frame(scorers, images, evaluating, seed=run.seed, **options)
    return estimate, draws[0].num_evaluations


def read_known_images(blocks, scorers: Sequence[Scorer], seed: int, buffer_bytes: int) -> Images:
    r"""One pass over blocks of images, with what is known of them for an estimate."""
    return read_images(blocks, partial(known_parts, scorers), seed, buffer_bytes)


class JournaledDraws:
    r"""`sampled_bound.draws.Evaluate` for a `DrawScorer`: in batches, by all processes, kept in a journal.

    Args:
        draw_scorer: evaluates a batch.
        batch_size: draws in a batch.
        journal, workers, progress: of the run.
        target_se, max_evaluations: when it stops, for those who wait.

    `num_evaluations` is that of network evaluations so far.
    """

    def __init__(
        self,
        draw_scorer: DrawScorer,
        batch_size: int,
        journal: Journal,
        workers: Workers,
        progress: Progress,
        target_se: float | None = None,
        max_evaluations: int | None = None,
    ):
        self.draw_scorer, self.batch_size = draw_scorer, batch_size
        self.journal, self.workers, self.progress = journal, workers, progress
        self._target_se, self._max_evaluations = target_se, max_evaluations
        self.num_evaluations = self._calls = 0

    def __call__(self, draws: Draws, preview: Preview) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(self.draw_scorer.batches(draws, self.batch_size))
        costs, counted = [self.draw_scorer.cost(batch) for batch in batches], 0
        self.progress.extend(sum(costs))
        self.num_evaluations += sum(costs)
        self._calls += 1

        def after(results: dict[int, Any]) -> None:
            nonlocal counted
            done = sum(costs[number] for number in results)
            number = next(number for number in range(len(batches) + 1) if number not in results)
            estimate = preview(*_stack([results[n] for n in range(number)])) if number else None
            shown = () if estimate is None else (estimate.bits_per_dim, estimate.monte_carlo_error)
            self.progress.update(done - counted, *shown)
            counted = done
            self._tell(self.num_evaluations - sum(costs) + done, sum(costs), done, estimate)

        results = run_batches(batches, self.draw_scorer, self._plain, self.journal, self.workers, after)
        values, features = _stack(results)
        try:
            self.draw_scorer.check_finite(draws, values)
        except ValueError:
            self.journal.remove()  # the same command would end here again
            raise
        return values, features

    def _tell(self, spent: int, planned: int, done: int, estimate: Number | None) -> None:
        r"""How long it takes: to the target, once an estimate tells how far it is."""
        target, most = self._target_se, self._max_evaluations or math.inf
        left, aim = planned - done, "for what is planned"
        if estimate is None:
            aim = f"for {planned:,} of them"
            if self._calls <= PILOT_CALLS and (target is not None or most < math.inf):
                aim = "for a first look, which tells what the rest takes"
        elif estimate is not None and target is not None and estimate.monte_carlo_error > target:
            needed = spent * (estimate.monte_carlo_error / target) ** 2
            left, aim = needed - spent, f"to a Monte Carlo error of {target:g} bits/dim"
            if needed > most:
                left, aim = most - spent, f"to {most:,} evaluations, where it stops"
        self.progress.tell(left, aim)

    @staticmethod
    def _plain(result: tuple[torch.Tensor, torch.Tensor]) -> list[list]:
        values, features = result
        return [values.tolist(), features.tolist()]


def _stack(results: Sequence[list[list]]) -> tuple[torch.Tensor, torch.Tensor]:
    values = [torch.tensor(values, dtype=torch.float64) for values, _ in results]
    return torch.cat(values), torch.cat([torch.tensor(features, dtype=torch.float64) for _, features in results])
