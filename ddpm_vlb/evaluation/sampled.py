r"""Sampled evaluations: draws in batches, by all processes, kept in a journal."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..data.frame import Images, read_images
from ..model.scorer import Scorer
from ..sampled_bound.draw_scorer import DrawScorer, estimate_frame, known_parts
from ..sampled_bound.draws import BoundEstimate, Draws, Preview
from .run import Journal, Progress, Run, Workers, run_batches


def estimate_in_batches(
    scorers: Sequence[Scorer], images: Images, run: Run, journal: Journal, **options: Any
) -> tuple[BoundEstimate, int]:
    r"""`estimate_frame` in batches, by all processes; the estimate, and how many network evaluations it took."""
    draws: list[JournaledDraws] = []

    def evaluating(draw_scorer: DrawScorer) -> JournaledDraws:
        draws.append(JournaledDraws(draw_scorer, run.batch_size, journal, run.workers, run.progress))
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

    `num_evaluations` is that of network evaluations so far.
    """

    def __init__(self, draw_scorer: DrawScorer, batch_size: int, journal: Journal, workers: Workers, progress: Progress):
        self.draw_scorer, self.batch_size = draw_scorer, batch_size
        self.journal, self.workers, self.progress = journal, workers, progress
        self.num_evaluations = 0

    def __call__(self, draws: Draws, preview: Preview) -> tuple[torch.Tensor, torch.Tensor]:
        batches = list(self.draw_scorer.batches(draws, self.batch_size))
        costs, counted = [self.draw_scorer.cost(batch) for batch in batches], 0
        self.progress.extend(sum(costs))
        self.num_evaluations += sum(costs)

        def after(results: dict[int, Any]) -> None:
            nonlocal counted
            done = sum(costs[number] for number in results)
            number = next(number for number in range(len(batches) + 1) if number not in results)
            estimate = preview(*_stack([results[n] for n in range(number)])) if number else None
            shown = () if estimate is None else (estimate.bits_per_dim, estimate.monte_carlo_error)
            self.progress.update(done - counted, *shown)
            counted = done

        results = run_batches(batches, self.draw_scorer, self._plain, self.journal, self.workers, after)
        values, features = _stack(results)
        try:
            self.draw_scorer.check_finite(draws, values)
        except ValueError:
            self.journal.remove()  # the same command would end here again
            raise
        return values, features

    @staticmethod
    def _plain(result: tuple[torch.Tensor, torch.Tensor]) -> list[list]:
        values, features = result
        return [values.tolist(), features.tolist()]


def _stack(results: Sequence[list[list]]) -> tuple[torch.Tensor, torch.Tensor]:
    values = [torch.tensor(values, dtype=torch.float64) for values, _ in results]
    return torch.cat(values), torch.cat([torch.tensor(features, dtype=torch.float64) for _, features in results])
