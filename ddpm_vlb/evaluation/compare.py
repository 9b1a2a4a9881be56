r"""Two models on one data set: the difference of their bounds, from the same images, timesteps and noise.

The difference is a bound like any other to the estimator (`sampled_bound.py`), its terms being differences of terms, of far
less variance: the pilot, the control variate and the probabilities are the difference's own.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checks import check_count
from ..data.frame import BLOCK, BUFFER_BYTES, blocks, number_images, read_images, source_of
from ..data.image_sets import StreamedImages
from ..model.network import network_digest
from ..reports.make import report_of_estimate
from ..reports.show import half_precision_line, own_error
from ..sampled_bound.draw_scorer import DrawScorer, known_parts
from ..sampled_bound.draws import BoundEstimate
from ..sampled_bound.estimate import check_rules, estimate_bound
from .evaluate import MAX_EVALUATIONS, TARGET_SE
from .half_precision import half_precision_bias, is_half
from .run import Journal, Progress, Workers
from .sampled import JournaledDraws


@torch.no_grad()
def compare(
    pipes: Sequence[Any],
    images: Any,
    *,
    target_se: float | None = None,
    max_evaluations: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    num_inference_steps: Sequence[int | None] = (None, None),
    class_labels: Sequence[Any] = (None, None),
    max_images: int | None = None,
    buffer_bytes: int = BUFFER_BYTES,
    float32_unets: Sequence[torch.nn.Module | None] = (None, None),
    journal: str | Path | None = None,
    quiet: bool = False,
    workers: Workers | None = None,
    **context: Any,
) -> dict[str, Any]:
    r"""The difference of two models' bounds of one data set, the first minus the second, from the same images and noise.

    Both models meet each image at the same noise level, or close by where their grids differ, with the same noise, and what
    they have in common cancels.

    Args:
        pipes: two `VLBDDPMPipeline`s of the same image size and number of levels; may be the same one twice.
        images: as `evaluate`.
        target_se, max_evaluations: as `evaluate`; the error is that of the difference.
        num_inference_steps, class_labels: of each model.
        float32_unets: of each model, as `evaluate`'s `float32_unet`.
        batch_size, seed, max_images, buffer_bytes, journal, quiet, workers, context: as `evaluate`.

    Returns:
        `difference`, `monte_carlo_error`, `data_error`, `standard_error`, `monte_carlo_interval`, `confidence_interval`
        (bits/dim), `num_images`, `num_network_evaluations`, and the settings of both models, `models`; of half-precision
        networks `half_precision_bias`, what their precision adds to the difference.

    Raises:
        ValueError: as `evaluate`; models of different images.
    """
    first, second = pipes
    if target_se is None and max_evaluations is None:
        target_se, max_evaluations = TARGET_SE, MAX_EVALUATIONS
    check_rules(target_se, max_evaluations, None)
    batch_size = check_count("batch_size", batch_size)
    max_images = None if max_images is None else check_count("max_images", max_images)
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {seed}.")
    workers = Workers() if workers is None else workers
    for name, of in (
        ("num_pixel_levels", lambda pipe: pipe.scheduler.config.num_pixel_levels),
        ("image size", lambda pipe: pipe.image_size),
        ("in_channels", lambda pipe: pipe.unet.config.in_channels),
    ):
        if of(first) != of(second):
            raise ValueError(f"`pipes` must agree in {name} to be compared, got {of(first)} and {of(second)}.")
    scorers = [pipe.scorer(steps) for pipe, steps in zip(pipes, num_inference_steps)]
    source, _, channels, size = source_of(first, images, class_labels[0])
    count = None if isinstance(source, StreamedImages) else len(source)
    labels = [pipe.check_class_labels(given, count or 1) for pipe, given in zip(pipes, class_labels)]
    if count is None and any(one is not None for one in labels):
        raise ValueError("`class_labels` must be left out for a stream, got some.")
    models = [
        pipe.describe_scoring(scorer, steps) | {"network_sha256": network_digest(pipe.unet)}
        for pipe, scorer, steps in zip(pipes, scorers, num_inference_steps)
    ]
    numbered = number_images(source, None, (0, 1), max_images)
    progress = Progress(workers, quiet)
    try:
        with first.evaluating(), second.evaluating():
            image_blocks = blocks(numbered, scorers[0].num_pixel_levels, channels, size, BLOCK)
            read = read_images(image_blocks, partial(known_parts, scorers), seed, buffer_bytes)
            numbers = read.numbers[read.frame]
            chosen = [None if one is None else one[torch.as_tensor(numbers)] for one in labels]
            both = DrawScorer(scorers, read.levels, read.frame, numbers, seed, chosen)
            settings = {
                "method": "compare",
                "models": models,
                "seed": seed,
                "target_se": target_se,
                "max_evaluations": max_evaluations,
                "batch_size": batch_size,
                "data_sha256": read.sha256,
                "num_images_in_memory": len(numbers),
                "labels": [None if one is None else one.tolist() for one in chosen],
            }
            with Journal(None if journal is None else Path(journal), settings, workers) as kept:
                draws = JournaledDraws(both, batch_size, kept, workers, progress)
                estimate = estimate_bound(
                    draws,
                    both.num_steps,
                    read.prior,
                    read.features,
                    seed=seed,
                    target_se=target_se,
                    max_evaluations=max_evaluations,
                    evaluations_per_draw=2,
                    ids=read.numbers,
                    frame=read.frame,
                )
                of_run = {"seed": seed, "batch_size": batch_size, "journal": kept, "workers": workers, "progress": progress}
                biases = [
                    half_precision_bias(scorer, unet, read, of, **of_run) if is_half(scorer) else None
                    for scorer, unet, of in zip(scorers, float32_unets, chosen)
                ]
    finally:
        progress.close()
        for pipe in pipes:
            pipe.maybe_free_model_hooks()
    result = _comparison(estimate, draws.num_evaluations, models, len(read.numbers))
    if any(biases):
        result["half_precision_bias"] = _difference(biases)
    return result | {
        "config": {
            "seed": seed,
            "batch_size": batch_size,
            "target_se": target_se,
            "max_evaluations": max_evaluations,
            "data_sha256": [read.sha256],
            "num_images_in_memory": len(numbers),
            "buffer_bytes": buffer_bytes,
        }
        | context
    }


def _comparison(estimate: BoundEstimate, num_evaluations: int, models, num_images: int) -> dict[str, Any]:
    # Of two grids there are no common timesteps to name.
    report = report_of_estimate(estimate, range(len(estimate.terms)), num_images, {})
    names = ("monte_carlo_error", "data_error", "standard_error", "confidence_level")
    names += ("monte_carlo_interval", "confidence_interval")
    return {
        "difference": report["bits_per_dim"],
        **{name: report[name] for name in names},
        "num_images": num_images,
        "num_network_evaluations": num_evaluations,
        "models": models,
    }


def _difference(biases: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    r"""What half precision adds to the difference, from what it adds to each of the two."""
    first, second = ({"bits_per_dim": 0.0, "monte_carlo_error": 0.0} if bias is None else bias for bias in biases)
    known = [bias for bias in biases if bias is not None]
    return {
        "bits_per_dim": first["bits_per_dim"] - second["bits_per_dim"],
        "monte_carlo_error": math.hypot(first["monte_carlo_error"], second["monte_carlo_error"]),
        "num_network_evaluations": sum(bias["num_network_evaluations"] for bias in known),
        "includes_rounding_of_weights": all(bias["includes_rounding_of_weights"] for bias in known),
    }


def format_comparison(comparison: dict[str, Any], names: Sequence[str]) -> str:
    r"""A comparison as lines."""
    level = f"{comparison['confidence_level']:.0%}"
    low, high = comparison["monte_carlo_interval"]
    lines = [
        f"{names[0]} minus {names[1]}: {comparison['difference']:+.5f} bits/dim",
        f"these images: {low:+.5f} to {high:+.5f} ({level}; Monte Carlo error {comparison['monte_carlo_error']:.5f})",
    ]
    if comparison["confidence_interval"] is not None:
        low, high = comparison["confidence_interval"]
        lines.append(f"more such images: {low:+.5f} to {high:+.5f} ({level}; {own_error(comparison['data_error'], 5)})")
    if "half_precision_bias" in comparison:
        lines.append(half_precision_line(comparison["half_precision_bias"], "half precision"))
    evaluations = comparison["num_network_evaluations"]
    lines.append(f"{comparison['num_images']} images, {evaluations} network evaluations, the same noise for both")
    return "\n".join(lines)
