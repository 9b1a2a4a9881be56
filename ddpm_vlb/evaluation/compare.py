r"""Two models on one data set: the difference of their bounds, from the same images, timesteps and noise.

The difference is a bound like any other to the estimator (`sampled_bound/`), its terms being differences of terms, of far
less variance: the pilot, the control variate and the probabilities are the difference's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checks import check_count, check_integer, check_seed
from ..data.frame import BLOCK, BUFFER_BYTES
from ..data.sources import source_of
from ..likelihoods.methods import MAX_EVALUATIONS, TARGET_SE, most_evaluations
from ..model.memory import check_batch_size
from ..model.scorer import Scorer
from ..reports.checks import to_plain
from ..reports.make import estimate_fields
from ..reports.schema import check_context
from ..reports.show import half_precision_line, legend_lines, own_error
from ..sampled_bound.draws import BoundEstimate
from ..sampled_bound.rules import check_rules
from ..words import counted
from .half_precision import half_precision_bias
from .run import Progress, Run, Workers
from .sampled import estimate_in_batches, read_known_images

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline


@torch.no_grad()
def compare(
    pipes: "Sequence[VLBDDPMPipeline]",
    images: Any,
    *,
    target_se: float | None = None,
    max_evaluations: int | None = None,
    batch_size: int | str = 64,
    seed: int = 0,
    num_inference_steps: Sequence[int | None] = (None, None),
    class_labels: Sequence[Any] = (None, None),
    max_images: int | None = None,
    image_seed: int | None = None,
    buffer_bytes: int = BUFFER_BYTES,
    float32_unets: Sequence[torch.nn.Module | None] = (None, None),
    journal: str | Path | None = None,
    quiet: bool = False,
    workers: Workers | None = None,
    context: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    r"""The difference of two models' bounds of one data set, the first minus the second, from the same images and noise.

    Both models meet each image at the same noise level, or close by where their grids differ, with the same noise, and what
    they have in common cancels.

    Args:
        pipes: two of `VLBDDPMPipeline`, of the same image size and number of levels; may be the same one twice.
        images: as `evaluate`.
        target_se, max_evaluations: as `evaluate`; the error is that of the difference.
        num_inference_steps, class_labels: of each model.
        float32_unets: of each model, as `evaluate`'s `float32_unet`.
        batch_size, seed, max_images, image_seed, buffer_bytes, journal, quiet, workers, context: as `evaluate`.

    Returns:
        `difference`, `monte_carlo_error`, `data_error`, `standard_error`, `monte_carlo_interval`, `confidence_interval`
        (bits/dim), `reliable`, `doubt`, `num_images`, `num_network_evaluations`, and the settings of both models,
        `models`; of half-precision networks `half_precision_bias`, what their precision adds to the difference.

    Raises:
        ValueError: as `evaluate`; models of different images.
    """
    unasked = target_se is None and max_evaluations is None
    if unasked:
        target_se, max_evaluations = TARGET_SE, MAX_EVALUATIONS
    max_evaluations = None if max_evaluations is None else check_integer("max_evaluations", max_evaluations)
    rules = to_plain({"target_se": target_se, "max_evaluations": max_evaluations})
    check_rules(**rules, evaluations_per_image=None)
    seed = check_seed(seed)
    buffer_bytes = check_integer("buffer_bytes", buffer_bytes)
    max_images = None if max_images is None else check_count("max_images", max_images)
    context = check_context(context or {})
    workers = Workers() if workers is None else workers
    scorers = [pipe.scorer(steps) for pipe, steps in zip(pipes, num_inference_steps)]
    _check_alike(scorers)
    batch_size = min(check_batch_size(batch_size, scorer.network) for scorer in scorers)
    which: dict[str, Any] = {"max_images": max_images, "image_seed": image_seed}
    source = source_of(images, scorers[0].network, scorers[0].num_pixel_levels, class_labels[0], **which)
    count = 1 if source.is_stream else len(source.images)
    if unasked:
        num_steps = sum(len(scorer.timesteps) for scorer in scorers)
        rules["max_evaluations"] = most_evaluations(None if source.is_stream else count, num_steps)
    labels = [scorer.network.check_class_labels(given, count) for scorer, given in zip(scorers, class_labels)]
    if source.is_stream and any(given is not None for given in labels):
        raise ValueError("`class_labels` must be left out for a stream, got some.")
    models = [scorer.describe() | {"network_sha256": scorer.network.sha256()} for scorer in scorers]
    progress = Progress(workers, quiet)
    settings = {"method": "compare", "models": models, "seed": seed, "batch_size": batch_size, **rules}
    run = Run(batch_size, seed, settings, None if journal is None else Path(journal), workers, progress)
    try:
        with scorers[0].network.evaluating(), scorers[1].network.evaluating():
            # Each model has classes of its own, or none.
            blocks = replace(source, labels=None).blocks(BLOCK)
            read = read_known_images(blocks, scorers, seed, buffer_bytes)
            numbers = torch.as_tensor(read.numbers[read.frame])
            chosen = [None if given is None else given[numbers] for given in labels]
            known = {
                "data_sha256": read.sha256,
                "num_images_in_memory": len(numbers),
                "labels": [None if given is None else given.tolist() for given in chosen],
            }
            with run.journal(**known) as kept:
                estimate, num_evaluations = estimate_in_batches(scorers, read, run, kept, class_labels=chosen, **rules)
                biases = [
                    half_precision_bias(scorer, unet, read, run, kept, given) if scorer.network.is_rounded else None
                    for scorer, unet, given in zip(scorers, float32_unets, chosen)
                ]
    finally:
        progress.close()
        for pipe in pipes:
            pipe.maybe_free_model_hooks()
    result = _comparison(estimate, num_evaluations, models, len(read.numbers))
    if any(biases):
        result["half_precision_bias"] = _difference(biases)
    return result | {
        "config": {
            "seed": seed,
            "batch_size": batch_size,
            **rules,
            "data_sha256": [read.sha256],
            "num_images_in_memory": len(numbers),
            "buffer_bytes": buffer_bytes,
            **source.settings,
            **({} if image_seed is None else {"max_images": max_images}),
        }
        | context
    }


def _check_alike(scorers: Sequence[Scorer]) -> None:
    r"""Raise `ValueError` unless two models are of the same images."""
    first, second = scorers
    for name, values in (
        ("num_pixel_levels", (first.num_pixel_levels, second.num_pixel_levels)),
        ("image size", (first.network.size, second.network.size)),
        ("in_channels", (first.network.channels, second.network.channels)),
    ):
        if values[0] != values[1]:
            raise ValueError(f"`pipes` must agree in {name} to be compared, got {values[0]} and {values[1]}.")


def _comparison(estimate: BoundEstimate, num_evaluations: int, models, num_images: int) -> dict[str, Any]:
    # Of two grids there are no common timesteps to name.
    report = estimate_fields(estimate, range(len(estimate.terms)), num_images)
    names = ("monte_carlo_error", "data_error", "standard_error", "confidence_level")
    names += ("monte_carlo_interval", "confidence_interval", "reliable", "doubt")
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
        *([f"NOT RELIABLE: {comparison['doubt']}"] if comparison.get("doubt") else []),
        f"these images: {low:+.5f} to {high:+.5f} ({level}; Monte Carlo error {comparison['monte_carlo_error']:.5f})",
    ]
    if comparison["confidence_interval"] is not None:
        low, high = comparison["confidence_interval"]
        lines.append(f"more such images: {low:+.5f} to {high:+.5f} ({level}; {own_error(comparison['data_error'], 5)})")
    if "half_precision_bias" in comparison:
        lines.append(half_precision_line(comparison["half_precision_bias"], "half precision"))
    lines += legend_lines(lines)
    images, evaluations = comparison["num_images"], comparison["num_network_evaluations"]
    counts = f"{counted(images, 'image')}, {counted(evaluations, 'network evaluation')}"
    lines.append(f"{counts}, the same noise for both")
    return "\n".join(lines)
