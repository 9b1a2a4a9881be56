r"""Data sets to reports: full sweeps and sampled evaluations, in one process or several, and on from where they were stopped.

What is drawn for an image is keyed by its number in the data set, and a batch is the same whoever evaluates it: what comes out
depends on no number of processes, no batch size and no interruption, beyond rounding.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checks import check_count
from ..data.frame import BLOCK, BUFFER_BYTES, Frame, Images, blocks, number_images, read_images, source_of
from ..likelihoods.full_sweep import SeedSequence, Sweeps, sums_of_batch
from ..likelihoods.methods import METHODS
from ..model.network import network_digest
from ..model.scorer import Scorer
from ..noise import mix
from ..reports.make import full_report, report_of_estimate, report_of_images
from ..sampled_bound.draw_scorer import DrawScorer, known_parts
from ..sampled_bound.estimate import check_rules, estimate_bound
from .half_precision import half_precision_bias, is_half
from .run import Journal, Progress, Workers, run_batches
from .sampled import JournaledDraws

TARGET_SE = 0.005
MAX_EVALUATIONS = 100_000
BATCHES_AT_HAND = 4


@torch.no_grad()
def evaluate(
    pipe,
    images: Any,
    *,
    method: str = "sampled",
    target_se: float | None = None,
    max_evaluations: int | None = None,
    evaluations_per_image: int | None = None,
    k: int | None = None,
    trace: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
    clip_sample: bool | None = None,
    thresholding: bool | None = None,
    max_images: int | None = None,
    shard: tuple[int, int] = (0, 1),
    buffer_bytes: int = BUFFER_BYTES,
    float32_unet: torch.nn.Module | None = None,
    journal: str | Path | None = None,
    quiet: bool = False,
    workers: Workers | None = None,
    **context: Any,
) -> dict[str, Any]:
    r"""The bound of a data set, with its errors, as a report.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images: any images that `evaluate_nll` takes, or what `data.open_images` or `data.stream_images` returns.
        method: `"sampled"`, an unbiased estimate from few evaluations; `"full"`, every image at every step; `"iw"`, the
            importance-weighted bound (`importance_weighted.py`); `"ode"`, that of the probability-flow ODE
            (`probability_flow.py`), another model.
        target_se: of a sampled evaluation, the Monte Carlo error (bits/dim) at which to stop.
        max_evaluations: of a sampled evaluation, network evaluations at which to stop, if it has not reached `target_se`.
            Where nothing says when to stop, it is at 0.005 bits/dim or 100,000 evaluations.
        evaluations_per_image: of a sampled evaluation, evaluate every image this many times, an even number.
        k: of the importance-weighted bound, trajectories of an image; 16 by default.
        trace: of the ODE, `"exact"` or `"hutchinson"`; exact up to 256 dimensions by default.
        batch_size: images per network call of a full sweep, pairs of image and timestep (or trajectory) of the others.
        seed: of all that is drawn. What comes out depends on no batch size and no number of processes, beyond rounding.
        num_inference_steps, inference_timesteps, class_labels, clip_sample, thresholding: as `evaluate_nll`.
        max_images: the first so many images only.
        shard: (index, count): only images whose number is `index` modulo `count`. `merge_reports` puts shards together.
        buffer_bytes: memory for the images of a sampled evaluation. Of more images than it holds a random sample is evaluated,
            and the error says so.
        float32_unet: of a half-precision network, the one that it was made from: the report says what the bound differs by. By
            default the half-precision weights in float32, of which nothing can be said but what their arithmetic costs.
        journal: a file for what is done so far. It is gone on from where it exists, and stays until the report is written:
            remove it then.
        quiet: no progress bar.
        workers: the processes of this run.
        context: further entries of `config`, such as `dataset`, `split` and `checkpoint`.

    Returns:
        A report; see `make_report`, `report_of_estimate` and `per_image.report_of_images`.

    Raises:
        ValueError: arguments that do not go together, images off the model's grid, a network whose output is not finite, the
            journal of another evaluation.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    for name, value, of in (("k", k, "iw"), ("trace", trace, "ode")):
        if value is not None and method != of:
            raise ValueError(f"`{name}` must be left out unless method={of!r}, got {value!r}.")
    k = 16 if k is None else check_count("k", k)
    rules = {"target_se": target_se, "max_evaluations": max_evaluations, "evaluations_per_image": evaluations_per_image}
    if method != "sampled":
        given = [name for name, value in rules.items() if value is not None]
        if given:
            raise ValueError(f"`{given[0]}` must be left out with method={method!r}, which evaluates everything.")
    else:
        if not any(value is not None for value in rules.values()):
            rules |= {"target_se": TARGET_SE, "max_evaluations": MAX_EVALUATIONS}
        check_rules(**rules)
    _check_shard(shard)
    batch_size = check_count("batch_size", batch_size)
    if max_images is not None:
        max_images = check_count("max_images", max_images)
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must lie in [0, 2^63), got {seed}.")
    workers = Workers() if workers is None else workers
    scorer = pipe.scorer(num_inference_steps, inference_timesteps, clip_sample, thresholding)
    source, labels, channels, size = source_of(pipe, images, class_labels)
    context = {"dataset": getattr(images, "name", "images in memory")} | context
    config = pipe.describe_scoring(scorer, num_inference_steps, inference_timesteps) | {
        "overridden": [n for n, x in (("clip_sample", clip_sample), ("thresholding", thresholding)) if x is not None],
        "network_sha256": network_digest(pipe.unet),
        "batch_size": batch_size,
        "seed": seed,
        "max_images": max_images,
        "shard": {"of": shard[1], "indices": [shard[0]]},
        "num_processes": workers.count,
        **{name: value for name, value in rules.items() if method == "sampled"},
        **({"k": k} if method == "iw" else {"trace": trace} if method == "ode" else {}),
        **context,
    }
    numbered = number_images(source, labels, shard, max_images)
    progress = Progress(workers, quiet)
    path = None if journal is None else Path(journal)
    run = _Run(pipe, scorer, float32_unet, batch_size, seed, config | {"method": method}, path, workers, progress)
    try:
        with pipe.evaluating():
            if method == "full":
                grid = (scorer.num_pixel_levels, channels, size, batch_size)
                return _evaluate_full(run, blocks(numbered, *grid))
            if method in ("iw", "ode"):
                return _evaluate_images(run, numbered, (scorer.num_pixel_levels, channels, size), k, trace)
            grid = (scorer.num_pixel_levels, channels, size, BLOCK)
            images = read_images(blocks(numbered, *grid), partial(known_parts, [scorer]), seed, buffer_bytes)
            if evaluations_per_image and len(images.frame) < len(images.numbers):
                raise ValueError(
                    f"`buffer_bytes` must hold all {len(images.numbers)} images for each to be evaluated, got room for"
                    f" {len(images.frame)}."
                )
            run.config["buffer_bytes"] = buffer_bytes
            return _evaluate_sampled(run, images, rules)
    finally:
        progress.close()
        pipe.maybe_free_model_hooks()


class _Run(NamedTuple):
    r"""What both methods need."""

    pipe: Any
    scorer: Scorer
    float32_unet: torch.nn.Module | None
    batch_size: int
    seed: int
    config: dict[str, Any]
    path: Path | None
    workers: Workers
    progress: Progress

    @property
    def timesteps(self) -> list[int]:
        return self.scorer.reverse.forward.timesteps.tolist()

    def journal(self, **more: Any) -> Journal:
        r"""Refused unless it is of the same model, settings and data; who does the work may change."""
        free = ("num_processes", "device", "buffer_bytes")
        settings = {key: value for key, value in self.config.items() if key not in free}
        return Journal(self.path, settings | more, self.workers)

    def bias(self, images: Images, journal: Journal) -> dict[str, Any]:
        r"""The report's entry on half precision, where there is something to say."""
        if not is_half(self.scorer):
            return {}
        bias = half_precision_bias(
            self.scorer,
            self.float32_unet,
            images,
            images.labels,
            seed=self.seed,
            batch_size=self.batch_size,
            journal=journal,
            workers=self.workers,
            progress=self.progress,
        )
        return {"half_precision_bias": bias}

    def report_config(self, **more: Any) -> dict[str, Any]:
        return {key: value for key, value in self.config.items() if key != "method"} | more


def _evaluate_sampled(run: _Run, images: Images, rules: dict[str, Any]) -> dict[str, Any]:
    numbers = images.numbers[images.frame]
    known = {
        "image_shape": list(images.levels.shape[1:]),
        "data_sha256": [images.sha256],
        "num_images_in_memory": len(numbers),
    }
    draw_scorer = DrawScorer([run.scorer], images.levels, images.frame, numbers, run.seed, [images.labels])
    with run.journal(**known) as journal:
        draws = JournaledDraws(draw_scorer, run.batch_size, journal, run.workers, run.progress)
        estimate = estimate_bound(
            draws,
            draw_scorer.num_steps,
            images.prior,
            images.features,
            seed=run.seed,
            ids=images.numbers,
            frame=images.frame,
            **rules,
        )
        bias = run.bias(images, journal)
    return report_of_estimate(estimate, run.timesteps, len(images.numbers), run.report_config(**known)) | bias


def _evaluate_full(run: _Run, image_blocks) -> dict[str, Any]:
    r"""Sweeps over batches of images."""
    sweeps, seeds, steps = Sweeps(len(run.timesteps)), SeedSequence(run.seed), len(run.timesteps)
    # For the hash of the data, and a sample of images on which half precision is measured.
    frame = Frame(partial(known_parts, [run.scorer]) if is_half(run.scorer) else None, run.seed, buffer_bytes=0)

    def sweep(batch):
        numbers, levels, labels = batch
        return *run.pipe.sweep(run.scorer, levels, [seeds[number] for number in numbers.tolist()], labels), levels[0].numel()

    with run.journal() as journal:
        for numbers, result in _over_batches(
            run, image_blocks, frame, journal, sweep, lambda r: sums_of_batch(*r), steps, sweeps.mean_and_error
        ):
            try:
                sweeps.add(result, numbers.tolist(), run.timesteps)
            except ValueError:
                journal.remove()  # the same command would end here again
                raise
        images = frame.images()
        bias = run.bias(images, journal)
    config = run.report_config(**frame.description)
    return full_report(*sweeps.totals, sweeps.means[1:], sweeps.squares.sum().item(), run.timesteps[1:], config) | bias


def _evaluate_images(run: _Run, numbered, grid: tuple, k: int, trace: str | None) -> dict[str, Any]:
    r"""A number for each image, of another likelihood."""
    first = next(numbered, None)
    if first is None:
        raise ValueError("`images` must hold at least one image, got none.")
    trained, dimensions = run.pipe.scheduler.forward_process(), math.prod(torch.as_tensor(first[1]()).shape)
    options = {"k": k, "trace": trace}
    method = METHODS[run.config["method"]].start(run.scorer, trained, dimensions, run.batch_size, options)
    frame = Frame(None, run.seed, buffer_bytes=0)

    def score(batch) -> dict[str, Any]:
        numbers, levels, labels = batch
        return method.score(levels, [mix(run.seed, number) for number in numbers.tolist()], labels)

    def so_far(results) -> tuple[float, ...]:
        report = report_of_images(method.name, done + results, {}) if done + results else None
        return () if report is None or report["standard_error"] is None else (report["bits_per_dim"], report["standard_error"])

    done: list[dict[str, Any]] = []
    image_blocks = blocks(chain([first], numbered), *grid, method.images_per_batch)
    with run.journal() as journal:
        for _, result in _over_batches(run, image_blocks, frame, journal, score, dict, method.cost or 1, so_far):
            done.append(result)
    return report_of_images(method.name, done, run.report_config(**frame.description))


def _over_batches(run: _Run, image_blocks, frame: Frame, journal: Journal, evaluate, to_plain, cost, so_far) -> Iterator:
    r"""The numbers of each batch of images and its result. A few batches are at hand at a time, so that the data may be larger
    than memory.

    Args:
        run, journal: of the evaluation.
        image_blocks: the batches: numbers, levels, classes.
        frame: is told of all images.
        evaluate, to_plain: as `run_batches`.
        cost: network evaluations of an image, for the progress bar.
        so_far: from the results of the batches at hand, the number and its error, or nothing.
    """
    image_blocks = iter(image_blocks)
    while batches := list(islice(image_blocks, BATCHES_AT_HAND * run.workers.count)):
        # Of the images so far: a batch that the journal has is of the images that stand before it, or it is refused.
        marks = []
        for batch in batches:
            frame.add(*batch)
            marks.append(frame.sha256)
        counts, counted = [len(numbers) for numbers, _, _ in batches], 0
        run.progress.extend(cost * sum(counts))

        def marked(index: int, batches=batches):
            return index, evaluate(batches[index])

        def plain(result, marks=marks) -> dict[str, Any]:
            index, of_batch = result
            return {"images": marks[index], "result": to_plain(of_batch)}

        def after(results: dict[int, Any], counts=counts) -> None:
            nonlocal counted
            done = sum(counts[index] for index in results)
            run.progress.update(cost * (done - counted), *so_far([result["result"] for result in results.values()]))
            counted = done

        results = run_batches(range(len(batches)), marked, plain, journal, run.workers, after)
        for (numbers, _, _), mark, result in zip(batches, marks, results):
            if result["images"] != mark:
                raise ValueError(f"`images` must be those of the journal {str(run.path)!r}, got others before {numbers[-1]}.")
            yield numbers, result["result"]


def _check_shard(shard: tuple[int, int]) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"`shard` must be (index, count) with 0 <= index < count, got {tuple(shard)}.")
