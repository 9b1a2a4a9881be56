r"""What a half-precision network adds to the bound: its difference from float32 on the same images, timesteps and noise.

The difference of two networks' bounds is a bound like any other to the estimator (`sampled_bound.py`), and of two networks that
differ by rounding it is so small, and varies so little, that a few hundred evaluations on a few images tell it. It comes on
top of the Monte Carlo error, and no number of evaluations makes it smaller.
"""

import copy
from dataclasses import replace
from typing import Any

import torch

from ..data.frame import Images
from ..model.scorer import Scorer
from ..noise import mix
from ..sampled_bound.draw_scorer import DrawScorer
from ..sampled_bound.estimate import estimate_bound
from .run import Journal, Progress, Workers
from .sampled import JournaledDraws

PAIRS = 512  # of evaluations, one by each network


def is_half(scorer: Scorer) -> bool:
    r"""Whether the network calculates in half precision."""
    return scorer.dtype in (torch.float16, torch.bfloat16)


def half_precision_bias(
    scorer: Scorer,
    float32_unet: torch.nn.Module | None,
    images: Images,
    class_labels: torch.Tensor | None,
    *,
    seed: int,
    batch_size: int,
    journal: Journal,
    workers: Workers,
    progress: Progress,
) -> dict[str, Any]:
    r"""What the half-precision network adds to the bound of images.

    Args:
        scorer: with the half-precision network.
        float32_unet: the network that it was made from; `None` takes its own weights, rounded as they are, in float32.
        images: of the data set, and those of them that are in memory.
        class_labels: of those in memory.
        seed: of the evaluation.
        batch_size, journal, workers, progress: of the run.

    Returns:
        `bits_per_dim`, the difference, half precision minus float32; its `monte_carlo_error`, in bits/dim, that of having only
        some images in memory with it; `num_network_evaluations`, of both networks; `includes_rounding_of_weights`.
    """
    exact = float32_unet
    if exact is None:
        exact = copy.deepcopy(getattr(scorer.unet, "_orig_mod", scorer.unet)).float()
    training = exact.training
    numbers = images.numbers[images.frame]
    both = [scorer, replace(scorer, unet=exact, dtype=torch.float32)]
    draw_scorer = DrawScorer(both, images.levels, images.frame, numbers, seed, [class_labels] * 2)
    draws = JournaledDraws(draw_scorer, batch_size, journal, workers, progress)
    exact.eval()
    try:
        estimate = estimate_bound(
            draws,
            draw_scorer.num_steps,
            torch.zeros_like(images.prior),
            images.features,
            seed=mix(seed, 3),
            max_evaluations=2 * PAIRS,
            evaluations_per_draw=2,
            ids=images.numbers,
            frame=images.frame,
        )
    finally:
        exact.train(training)
    return {
        "bits_per_dim": estimate.bits_per_dim,
        "monte_carlo_error": estimate.monte_carlo_error,
        "num_network_evaluations": draws.num_evaluations,
        "includes_rounding_of_weights": float32_unet is not None,
    }
