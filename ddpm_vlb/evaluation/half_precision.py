r"""What a half-precision network adds to the bound: its difference from float32 on the same images, timesteps and noise.

The difference of two networks' bounds is a bound like any other to the estimator (`sampled_bound/`), and of two networks that
differ by rounding it is so small, and varies so little, that a few hundred evaluations on a few images tell it. It comes on
top of the Monte Carlo error, and no number of evaluations makes it smaller.
"""

from dataclasses import replace
from typing import Any

import torch

from ..data.frame import Images
from ..model.scorer import Scorer
from ..noise import mix
from .run import Journal, Run
from .sampled import estimate_in_batches

PAIRS = 512  # of evaluations, one by each network


def half_precision_bias(
    scorer: Scorer,
    float32_unet: torch.nn.Module | None,
    images: Images,
    run: Run,
    journal: Journal,
    class_labels: torch.Tensor | None = None,
) -> dict[str, Any]:
    r"""What the half-precision network adds to the bound of images.

    Args:
        scorer: with the half-precision network.
        float32_unet: the network that it was made from; `None` takes its own weights, rounded as they are, in float32.
        images: of the data set, and those of them that are in memory.
        run, journal: how the work is done.
        class_labels: of those in memory, where they are not `images.labels`.

    Returns:
        `bits_per_dim`, the difference, half precision minus float32; its `monte_carlo_error`, in bits/dim, that of having only
        some images in memory with it; `num_network_evaluations`, of both networks; `includes_rounding_of_weights`.
    """
    exact, includes_weights = scorer.network.exact(float32_unet)
    both = [scorer, replace(scorer, network=exact)]
    labels = images.labels if class_labels is None else class_labels
    with exact.evaluating():
        estimate, num_evaluations = estimate_in_batches(
            both,
            images._replace(prior=torch.zeros(len(images.numbers), dtype=torch.float64)),
            run,
            journal,
            class_labels=[labels] * 2,
            estimate_seed=mix(run.seed, 3),
            max_evaluations=2 * PAIRS,
        )
    return {
        "bits_per_dim": estimate.bits_per_dim,
        "monte_carlo_error": estimate.monte_carlo_error,
        "num_network_evaluations": num_evaluations,
        "includes_rounding_of_weights": includes_weights,
    }


def bias_entry(
    scorer: Scorer, float32_unet: torch.nn.Module | None, images: Images, run: Run, journal: Journal
) -> dict[str, Any]:
    r"""The report's entry on half precision, where there is something to say."""
    if not scorer.network.is_rounded:
        return {}
    return {"half_precision_bias": half_precision_bias(scorer, float32_unet, images, run, journal)}
