r"""Data sets to reports: every likelihood, in one process or several, and on from where it was stopped.

What is drawn for an image is keyed by its number in the data set, and a batch is the same whoever evaluates it: what comes out
depends on no number of processes, no batch size and no interruption, beyond rounding.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checks import check_count, check_integer, check_seed, integer
from ..data.frame import BUFFER_BYTES
from ..data.sources import source_of
from ..likelihoods.methods import METHODS, most_evaluations, own_options
from ..model.memory import check_batch_size
from ..reports.checks import to_plain
from ..reports.schema import Report, check_context, check_settings, without_places
from ..sampled_bound.rules import check_rules
from .methods import ENGINES, evaluate_columns
from .run import Evaluation, Progress, Run, Workers

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline


@torch.no_grad()
def evaluate(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    method: str = "sampled",
    batch_size: int | str = 64,
    seed: int = 0,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
    clip_sample: bool | None = None,
    thresholding: bool | None = None,
    max_images: int | None = None,
    image_seed: int | None = None,
    shard: tuple[int, int] = (0, 1),
    buffer_bytes: int = BUFFER_BYTES,
    float32_unet: torch.nn.Module | None = None,
    journal: str | Path | None = None,
    quiet: bool = False,
    workers: Workers | None = None,
    context: Mapping[str, Any] | None = None,
    overridden: Sequence[str] = (),
    **options: Any,
) -> Report:
    r"""The likelihood of a data set, with its errors, as a report.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images: any images that `evaluate_nll` takes, what `data.open_images` or `data.stream_images` returns, or the path of a
            data set.
        method: a row of `likelihoods.methods.METHODS`: `"sampled"`, an unbiased estimate of the bound from few evaluations;
            `"full"`, every image at every step; `"iw"`, the importance-weighted bound; `"ode"`, that of the probability-flow
            ODE, another model.
        batch_size: images per network call of a full sweep, pairs of image and timestep (or trajectory) of the others; `"auto"`
            for as many as fit into memory: 256 (64 on a CPU), halved where they do not, which is said.
        seed: of all that is drawn. What comes out depends on no batch size and no number of processes, beyond rounding.
        num_inference_steps, inference_timesteps, class_labels, clip_sample, thresholding: as `evaluate_nll`.
        max_images: the first so many images only.
        image_seed: takes `max_images` at random instead, by this seed alone: runs with another `seed` are of the same images.
        shard: (index, count): only each `count`-th of those, from the `index`-th on. `merge_reports` puts shards together.
        buffer_bytes: memory for the images of a sampled evaluation. Of more images than it holds a random sample is evaluated,
            and the error says so.
        float32_unet: of a half-precision network, the one that it was made from: the report says what the bound differs by. By
            default the half-precision weights in float32, of which nothing can be said but what their arithmetic costs.
        journal: a file for what is done so far, each line with a checksum. It is gone on from where it exists, and stays until
            the report is written: remove it then.
        quiet: no progress bar.
        workers: the processes of this run.
        context: further settings for the report, such as `dataset`, `split` and `checkpoint`.
        overridden: names of settings of the checkpoint that the caller has changed, for the report.
        options: the method's own. Of `"sampled"`: `target_se`, the Monte Carlo error (bits/dim) at which to stop;
            `max_evaluations`, network evaluations at which to stop if it has not been reached (where nothing says when to stop,
            it is at 0.005 bits/dim, at 100,000 evaluations or at as many as 100 full sweeps take); `evaluations_per_image`, an
            even number, for every image, instead.
            Of `"iw"`: `k`, trajectories of an image, 16 by default. Of `"ode"`: `trace`, `num_probes`, `num_draws`, `rtol` and
            `atol`, as `ode_nll`.

    Returns:
        A report; `reports/schema.py` says what it holds.

    Raises:
        ValueError: arguments that do not go together or that there are none of, images off the model's grid, a network whose
            output is not finite, a batch that does not fit into memory, a journal that is of another evaluation, damaged, or
            without checksums.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    row = METHODS[method]
    unasked = all(options.get(option.name) is None for option in row.options)
    options = own_options(row, options, inspect.signature(evaluate).parameters)
    for option in row.options:
        if option.kind is int and options[option.name] is not None:
            check = check_count if option.positive else check_integer
            options[option.name] = check(option.name, options[option.name])
    if row.name == "sampled":
        check_rules(**options)
    shard = _check_shard(shard)
    row.check_shard(shard)
    seed = check_seed(seed)
    buffer_bytes = check_integer("buffer_bytes", buffer_bytes)
    max_images = None if max_images is None else check_count("max_images", max_images)
    context = check_context(context or {})
    workers = Workers() if workers is None else workers
    scorer = pipe.scorer(num_inference_steps, inference_timesteps, clip_sample, thresholding)
    batch_size = check_batch_size(batch_size, scorer.network)
    which: dict[str, Any] = {"shard": shard, "max_images": max_images, "image_seed": image_seed}
    source = source_of(images, scorer.network, scorer.num_pixel_levels, class_labels, **which)
    if row.name == "sampled" and unasked:
        num_images = None if source.is_stream else len(source.images)
        options["max_evaluations"] = most_evaluations(num_images, len(scorer.timesteps))
    config = scorer.config(
        batch_size=batch_size,
        seed=seed,
        max_images=max_images,
        shard={"of": shard[1], "indices": [shard[0]]},
        num_processes=workers.count,
        **options,
        **{**without_places({"dataset": source.name}), **source.settings, **context},
    )
    config = to_plain(config)
    # What the caller has overridden is said by its values too; journals of before do not name it.
    settings = config | {"method": row.name}
    config = config | {"overridden": [*config["overridden"], *overridden]}
    check_settings(config)  # a report that would be refused is refused before the work
    progress = Progress(workers, quiet)
    path = None if journal is None else Path(journal)
    run = Run(batch_size, seed, settings, path, workers, progress)
    trained = pipe.scheduler.forward_process()
    evaluation = Evaluation(scorer, trained, source, row, options, config, buffer_bytes, float32_unet, run)
    try:
        with scorer.network.evaluating():
            return ENGINES.get(row.name, evaluate_columns)(evaluation)
    finally:
        progress.close()
        pipe.maybe_free_model_hooks()


def _check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    try:
        index, count = (integer(number) for number in shard)
    except (TypeError, ValueError):
        index = count = 0
    if not 0 <= index < count:
        raise ValueError(f"`shard` must be (index, count) with 0 <= index < count, got {shard!r}.")
    return index, count
