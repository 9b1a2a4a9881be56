r"""Bits/dim as a metric of torchmetrics, for training loops that have theirs there.

::

    metric = BitsPerDim(pipe, target_se=0.01)
    for images in validation_loader:
        metric.update(images)
    metric.compute()      # {"bits_per_dim": ..., "standard_error": ..., "monte_carlo_error": ...}
    metric.reset()

What is kept of `update` are the images, and `compute` scores them as one data set, with the network as it is then: a mean of
batch means would weigh a short last batch like a full one, and an error cannot be made from means. The images are put into an
order of their own first. What comes out therefore depends on no order, no batches and no number of processes.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .checks import check_count, check_seed, working_dtype
from .evaluation import evaluate
from .evaluation.run import Workers
from .likelihoods.methods import METHODS, own_options
from .sampled_bound.rules import check_rules

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "`ddpm_vlb.metrics` needs torchmetrics, which is not installed: pip install 'ddpm-vlb[metrics]'."
    ) from error

if TYPE_CHECKING:
    from .pipeline_vlb_ddpm import VLBDDPMPipeline

METRIC_METHODS = ("sampled", "full")


class BitsPerDim(Metric):
    r"""The variational bound of all images that were given, in bits/dim, with its errors: a `torchmetrics.Metric`.

    Args:
        pipe: a `VLBDDPMPipeline`, made of the network in training: `VLBDDPMPipeline(unet, scheduler)`. A copy of the metric
            scores the same network.
        method: `"sampled"`, an unbiased estimate from few evaluations, or `"full"`, every image at every step.
        target_se, max_evaluations, evaluations_per_image: of `"sampled"`, as `evaluate`: the Monte Carlo error at which to
            stop, and so on; by default 0.005 bits/dim or 100,000 network evaluations.
        batch_size: images, or pairs of image and timestep, per network call.
        seed: of all that is drawn. The same seed each epoch compares networks under the same noise.
        num_inference_steps, inference_timesteps, clip_sample, thresholding: as `VLBDDPMPipeline.evaluate_nll`.
        kwargs: of `torchmetrics.Metric`, such as `process_group`.

    Raises:
        ValueError: options that do not go together, or a model that cannot be scored.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    levels: list[torch.Tensor]
    labels: list[torch.Tensor]
    image_shape: torch.Tensor

    def __init__(
        self,
        pipe: "VLBDDPMPipeline",
        *,
        method: str = "sampled",
        target_se: float | None = None,
        max_evaluations: int | None = None,
        evaluations_per_image: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
        num_inference_steps: int | None = None,
        inference_timesteps: Sequence[int] | None = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        **kwargs: Any,
    ):
        # A value that was kept would be that of the network of before.
        super().__init__(**{"compute_with_cache": False} | kwargs)
        if method not in METRIC_METHODS:
            raise ValueError(f"`method` must be 'sampled' or 'full', got {method!r}.")
        stops = {"target_se": target_se, "max_evaluations": max_evaluations, "evaluations_per_image": evaluations_per_image}
        given = {name: value for name, value in stops.items() if value is not None}
        options = own_options(METHODS[method], given, inspect.signature(evaluate).parameters)
        if method == "sampled":
            check_rules(**options)
        self.pipe = pipe
        self._options = given | {
            "method": method,
            "batch_size": check_count("batch_size", batch_size),
            "seed": check_seed(seed),
        }
        self._model = {
            "num_inference_steps": num_inference_steps,
            "inference_timesteps": inference_timesteps,
            "clip_sample": clip_sample,
            "thresholding": thresholding,
        }
        self._scorer()
        # Vectors: a process without images has empty ones, which can be put beside those of the others.
        self.add_state("levels", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.add_state("image_shape", default=torch.zeros(3, dtype=torch.int64), dist_reduce_fx="max")

    def _scorer(self):
        return self.pipe.scorer(**self._model)

    @property
    def _dtype_of_levels(self) -> torch.dtype:
        return torch.uint8 if self.pipe.scheduler.config.num_pixel_levels <= 256 else torch.int32

    def update(self, images: Any, class_labels: Any = None) -> None:
        r"""Add a batch.

        Args:
            images: `(B, C, H, W)`, uint8 levels or floats on the pixel grid in [-1, 1]; whatever else `evaluate_nll` takes.
            class_labels: `(B,)`, for a class-conditional network.

        Raises:
            ValueError: images that are not on the model's pixel grid, or of another size.
        """
        levels, labels = self._scorer().read(images, class_labels)
        shape = torch.tensor(levels.shape[1:], device=self.device)
        if self.image_shape.any() and not torch.equal(shape, self.image_shape):
            raise ValueError(
                f"`images` must have the shape {tuple(self.image_shape.tolist())} of those before, got {tuple(shape.tolist())}."
            )
        if labels is None:
            labels = torch.full((len(levels),), -1)
        self.image_shape = shape
        self.levels.append(levels.flatten().to(self.device, self._dtype_of_levels))
        self.labels.append(labels.to(self.device))

    def compute(self) -> dict[str, torch.Tensor]:
        r"""The bound of all images so far, of all processes, each of which does its part of the work.

        Returns:
            `bits_per_dim`, `standard_error` (of the mean over such images) and `monte_carlo_error` (given these images; of a
            full sweep an upper bound), in bits/dim, scalars on the metric's device; `standard_error` is NaN for a single image.

        Raises:
            ValueError: no images; a network whose output is not finite.
        """
        levels, labels = (torch.cat([*state]) if isinstance(state, list) else state for state in (self.levels, self.labels))
        if not len(levels):
            raise ValueError("`update` must be given images before `compute`, got none.")
        levels = levels.cpu().reshape(-1, *self.image_shape.tolist())
        labels = labels.cpu()
        keys = [(label, image.tobytes()) for label, image in zip(labels.tolist(), levels.numpy())]
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
        report = evaluate(
            self.pipe,
            levels[order].to(torch.uint8 if levels.dtype == torch.uint8 else torch.uint16),
            class_labels=None if labels[0] < 0 else labels[order],
            workers=GroupWorkers(self.process_group if self._is_synced else None, alone=not self._is_synced),
            quiet=True,
            **self._options,
            **self._model,
        )
        values = {name: report[name] for name in ("bits_per_dim", "standard_error", "monte_carlo_error")}
        return {
            name: torch.tensor(torch.nan if value is None else value, dtype=working_dtype(self.device), device=self.device)
            for name, value in values.items()
        }

    def sync(self, *args: Any, **kwargs: Any) -> None:
        r"""As [`~torchmetrics.Metric.sync`]; a process that was given no images takes part all the same."""
        if not self.levels:
            self.levels = [torch.empty(0, dtype=self._dtype_of_levels, device=self.device)]
            self.labels = [torch.empty(0, dtype=torch.int64, device=self.device)]
        super().sync(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BitsPerDim":
        # Collections copy their metrics: a copied network would stay as it was on that day.
        memo[id(self.pipe)] = self.pipe
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new


class GroupWorkers(Workers):
    r"""The processes of a group of torch.distributed, or this one alone."""

    def __init__(self, group: Any, alone: bool):
        self.rank, self.count, self.device, self._group = 0, 1, None, group
        if not alone:
            self.rank, self.count = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)

    def gather(self, part: Any) -> list[Any]:
        r"""What each process has, in their order, for all."""
        if self.count == 1:
            return [part]
        parts = [None] * self.count
        torch.distributed.all_gather_object(parts, part, group=self._group)
        return parts
