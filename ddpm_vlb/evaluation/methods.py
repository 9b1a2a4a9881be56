r"""How each likelihood method goes over a data set: draws for the sampled estimate, batches for all others."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

from ..data.frame import BLOCK, Frame
from ..data.sources import Block
from ..likelihoods.full_sweep import SeedSequence, Sweeps, sums_of_batch, sweep
from ..noise import mix
from ..reports.checks import error_of_mean
from ..reports.make import full_report, report_of_estimate, report_of_images
from ..reports.schema import Report
from ..sampled_bound.draw_scorer import known_parts
from .half_precision import bias_entry
from .run import Evaluation, Journal, run_batches
from .sampled import estimate_in_batches, read_known_images

BATCHES_AT_HAND = 4


def evaluate_sampled(e: Evaluation) -> Report:
    r"""An estimate of the bound from some evaluations of some images."""
    images = read_known_images(e.source.blocks(BLOCK), [e.scorer], e.run.seed, e.buffer_bytes)
    in_memory = len(images.frame)
    if e.options["evaluations_per_image"] and in_memory < len(images.numbers):
        raise ValueError(
            f"`buffer_bytes` must hold all {len(images.numbers)} images for each to be evaluated, got room for {in_memory}."
        )
    known = {
        "image_shape": list(images.levels.shape[1:]),
        "data_sha256": [images.sha256],
        "num_images_in_memory": in_memory,
    }
    with e.run.journal(**known) as journal:
        estimate, _ = estimate_in_batches([e.scorer], images, e.run, journal, **e.options)
        bias = bias_entry(e.scorer, e.float32_unet, images, e.run, journal)
    config = e.config | {"buffer_bytes": e.buffer_bytes} | known
    about = {} if estimate.per_image is None else e.source.about(images.numbers)
    return report_of_estimate(estimate, e.scorer.timesteps, len(images.numbers), config, bias | about)


def evaluate_full(e: Evaluation) -> Report:
    r"""Every image at every step."""
    timesteps, dtype = e.scorer.timesteps, e.scorer.dtype
    sweeps, seeds = Sweeps(len(timesteps)), SeedSequence(e.run.seed)
    # For the hash of the data, and a sample of images on which half precision is measured.
    frame = Frame(partial(known_parts, [e.scorer]) if e.scorer.network.is_rounded else None, e.run.seed, buffer_bytes=0)

    def score(block: Block):
        own = [seeds[number] for number in block.numbers.tolist()]
        return *sweep(e.scorer, block.levels, own, block.labels), block.levels[0].numel()

    def to_plain(result) -> dict[str, Any]:
        return sums_of_batch(*result)

    blocks = e.source.blocks(e.run.batch_size)
    with e.run.journal() as journal:
        for block, result in over_batches(e, blocks, frame, journal, score, to_plain, len(timesteps), sweeps.mean_and_error):
            try:
                sweeps.add(result, block.numbers.tolist(), timesteps, dtype)
            except ValueError:
                journal.remove()  # the same command would end here again
                raise
        bias = bias_entry(e.scorer, e.float32_unet, frame.images(), e.run, journal)
    config = e.config | frame.description
    more = bias | e.source.about(frame.numbers)
    return full_report(*sweeps.totals, sweeps.means[1:], sweeps.squares.sum().item(), timesteps[1:], config, more)


def evaluate_columns(e: Evaluation) -> Report:
    r"""A number for each image in each column of the method."""
    dimensions = e.source.num_dimensions
    columns = e.method.start(e.scorer, e.trained, dimensions, e.run.batch_size, e.options)
    frame = Frame(None, e.run.seed, buffer_bytes=0)
    done: list[dict[str, Any]] = []

    def score(block: Block) -> dict[str, Any]:
        return columns.score(block.levels, [mix(e.run.seed, number) for number in block.numbers.tolist()], block.labels)

    def so_far(results) -> tuple[float, ...]:
        values = [value for result in done + results for value in result["bits_per_dim"]]
        return (fmean(values), error_of_mean(values)) if len(values) > 1 else ()

    blocks = e.source.blocks(columns.images_per_batch)
    with e.run.journal() as journal:
        for _, result in over_batches(e, blocks, frame, journal, score, dict, columns.cost or 0, so_far):
            done.append(result)
    return report_of_images(columns.name, done, e.config | frame.description, e.source.about(frame.numbers))


def over_batches(
    e: Evaluation,
    blocks: Iterator[Block],
    frame: Frame,
    journal: Journal,
    score: Callable[[Block], Any],
    to_plain: Callable[[Any], dict[str, Any]],
    cost: int,
    so_far: Callable[[list], tuple[float, ...]],
) -> Iterator[tuple[Block, dict[str, Any]]]:
    r"""The batches of images and their results. A few batches are at hand at a time, so that the data may be larger than
    memory.

    Args:
        e, journal: of the evaluation.
        blocks: the batches.
        frame: is told of all images.
        score, to_plain: as `run_batches`.
        cost: network evaluations of an image, for the progress bar; 0 where nobody knows.
        so_far: from the results of the batches at hand, the number and its error, or nothing.
    """
    workers, progress, total, gone = e.run.workers, e.run.progress, e.source.count, 0
    while batches := list(islice(blocks, BATCHES_AT_HAND * workers.count)):
        # Of the images so far: a batch that the journal has is of the images that stand before it, or it is refused.
        marks = []
        for batch in batches:
            frame.add(*batch)
            marks.append(frame.sha256)
        counts, counted = [len(batch.numbers) for batch in batches], 0
        progress.extend((cost or 1) * sum(counts))

        def marked(index: int, batches=batches):
            return index, score(batches[index])

        def plain(result, marks=marks) -> dict[str, Any]:
            index, scored = result
            return {"images": marks[index], "result": to_plain(scored)}

        def after(results: dict[int, Any], counts=counts) -> None:
            nonlocal counted, gone
            done = sum(counts[index] for index in results)
            progress.update((cost or 1) * (done - counted), *so_far([result["result"] for result in results.values()]))
            gone, counted = gone + done - counted, done
            if total is not None and cost:
                progress.tell(cost * (total - gone), f"for the {cost * total:,} evaluations of {total:,} images")

        results = run_batches(range(len(batches)), marked, plain, journal, workers, after)
        for batch, mark, result in zip(batches, marks, results):
            if result["images"] != mark:
                last = batch.numbers[-1]
                raise ValueError(f"`images` must be those of the journal {str(e.run.path)!r}, got others before {last}.")
            yield batch, result["result"]


# What is not here gives each image its numbers.
ENGINES = {"sampled": evaluate_sampled, "full": evaluate_full}
