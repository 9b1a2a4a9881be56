r"""A data set's classes: predictions, and what labels say of them.

The images race in parts of a hundred or so (`likelihoods.classify`), after one pilot. What is drawn for an image is keyed by
its number in the data set: what comes out depends on no batch size, no number of processes and no interruption, beyond
rounding. Where the data set says which class is which, the result has the accuracy with the exact interval of a share (Clopper
& Pearson), who is taken for whom, and how far probabilities can be believed: the **expected calibration error** is the mean
over bins of probability of how far the share of right labels lies from the mean probability there (Naeini et al. 2015).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checks import NonFiniteOutput, check_seed
from ..data.frame import Block, Frame
from ..data.sources import Source, source_of
from ..likelihoods.classify import Classifier
from ..reports.checks import to_plain
from ..reports.schema import without_places
from ..sampled_bound.design import bin_edges
from ..sampled_bound.elimination import Proposal
from .conformal import binomial_interval
from .run import Journal, Progress, Run, Workers, run_batches

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

BLOCK = 2048  # images read at a time
PART = 128  # images that race together, and stand in a line of the journal
NUM_BINS = 10  # of probabilities
COLUMNS = ("predictions", "probability", "decided", "evaluations")  # of each image


@torch.no_grad()
def classify_images(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    step: Callable[[int, float | None], Any] = lambda count, accuracy: None,
    max_images: int | None = None,
    image_seed: int | None = None,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    float32_unet: torch.nn.Module | None = None,
    journal: str | Path | None = None,
    workers: Workers | None = None,
    **options: Any,
) -> dict[str, Any]:
    r"""Classify a data set.

    Args:
        pipe: a `VLBDDPMPipeline` with a class-conditional network.
        images, max_images, image_seed, num_inference_steps, inference_timesteps, float32_unet, journal, workers: as `evaluate`.
        seed: of all that is drawn.
        labels: true classes `(N,)`; by default the data set's own, where it has any.
        step: called with how many more images are done, and the accuracy so far.
        options: of `VLBDDPMPipeline.classify`: `classes`, `class_prior`, `confidence` and so on.

    Returns:
        `predictions`, `probability`, `decided` and `evaluations` of each image, with `image_numbers` (and names and labels);
        `evaluations_per_image` (mean, median, p95, max; the mean with the pilot), `num_images`, `num_decided`,
        `num_pilot_evaluations`, `num_network_evaluations`, `config`; of labelled images `accuracy`, `accuracy_interval`,
        `confusion` `(C, C)` (rows are the labels), `reliability` and `expected_calibration_error`; of a network in half
        precision `half_precision_bias`.

    Raises:
        ValueError: as `VLBDDPMPipeline.classify`; labels that are not among the classes; a journal that is of another run.
    """
    seed = check_seed(seed)
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    classifier = Classifier.of(scorer, unlabelled_class=pipe.scheduler.config.get("unlabelled_class"), **options)
    which: dict[str, Any] = {"max_images": max_images, "image_seed": image_seed}
    source = source_of(images, scorer.network, scorer.num_pixel_levels, classifier.classes[0], **which)
    own = source.image_labels if labels is None else labels
    truth = None if own is None else check_labels(own, classifier.classes)
    workers = Workers() if workers is None else workers
    config = classifier.config(seed=seed, max_images=max_images, num_processes=workers.count, **source.settings)
    config |= without_places({"dataset": source.name})
    settings = to_plain(config | {"method": "classify"})
    path = None if journal is None else Path(journal)
    run = Run(classifier.batch_size, seed, settings, path, workers, Progress(workers, quiet=True))
    race = _Race(classifier, source, run, truth, step)
    with scorer.network.evaluating(), run.journal() as kept:
        try:
            race.go(kept, float32_unet)
        except NonFiniteOutput:
            kept.remove()  # the same command would end here again
            raise
    pipe.maybe_free_model_hooks()
    return race.result(config)


class _Race:
    r"""One pass over a data set: a pilot on the first block's images, and part after part, by all processes.

    Args:
        classifier, source, run: as in `classify_images`.
        truth: classes of all images by their numbers, or `None`.
        step: told of what is done.
    """

    def __init__(self, classifier: Classifier, source: Source, run: Run, truth: np.ndarray | None, step: Callable):
        self.classifier, self.source, self.run, self.truth, self.step = classifier, source, run, truth, step
        self.frame = Frame(None, run.seed, buffer_bytes=0)
        self.columns: dict[str, list] = {name: [] for name in COLUMNS}
        self.right = self.done = self.num_pilot_evaluations = 0
        self.bias: dict[str, Any] = {}

    def go(self, journal: Journal, float32_unet: torch.nn.Module | None) -> None:
        r"""All of it."""
        proposal = None
        for block in self.source.blocks(BLOCK):
            if proposal is None:
                proposal = self._pilot(block, journal, float32_unet)
            self._block(block, proposal, journal)

    def _pilot(self, block: Block, journal: Journal, float32_unet: torch.nn.Module | None) -> Proposal:
        classifier, seed = self.classifier, self.run.seed
        chosen = classifier.pilot_images(block.numbers, seed)
        levels = block.levels[torch.from_numpy(np.searchsorted(block.numbers, chosen))]
        askers, includes_weights = [classifier], False
        if classifier.scorer.network.is_rounded:
            exact, includes_weights = classifier.scorer.network.exact(float32_unet)
            askers.append(replace(classifier, scorer=replace(classifier.scorer, network=exact)))

        def ask(which: int) -> list:
            with askers[which].scorer.network.evaluating():
                return askers[which].pilot(levels, chosen, seed).tolist()

        pilots = np.array(run_batches(range(len(askers)), ask, list, journal, self.run.workers, lambda results: None))
        self.num_pilot_evaluations = pilots[0].size
        if len(pilots) > 1:
            self.bias = {"half_precision_bias": self._bias(*pilots, includes_weights=includes_weights)}
        return classifier.proposal(pilots[0])

    def _bias(self, half: np.ndarray, exact: np.ndarray, includes_weights: bool) -> dict[str, Any]:
        r"""What half precision does to the differences between classes, at the same timesteps with the same noise."""
        widths = np.diff(bin_edges(len(self.classifier.scorer.timesteps)))[:, None]
        totals = [(values * widths).sum(axis=1) for values in (half, exact)]
        best = totals[1].argmin(axis=1)
        moved = (totals[0] - totals[1]) - (totals[0] - totals[1])[np.arange(len(best)), best][:, None]
        others = moved[np.arange(moved.shape[1]) != best[:, None]]
        return {
            "nats": float(others.mean()),
            "largest_nats": float(np.abs(others).max()),
            "num_images": len(best),
            "num_labels_changed": int((totals[0].argmin(axis=1) != best).sum()),
            "num_network_evaluations": half.size + exact.size,
            "includes_rounding_of_weights": includes_weights,
        }

    def _block(self, block: Block, proposal: Proposal, journal: Journal) -> None:
        self.frame.add(block.numbers, block.levels, None)
        # Of the images so far: a part that the journal has is of the images that stand before it, or it is refused.
        mark, seen = self.frame.sha256, set[int]()
        parts = list(_cut(len(block.numbers), PART))

        def race(part: slice) -> dict[str, Any]:
            raced = self.classifier.race(block.levels[part], block.numbers[part], proposal, self.run.seed)
            columns = (raced.labels, raced.probabilities.max(axis=1), raced.decided, raced.evaluations)
            return {"images": mark, **{name: column.tolist() for name, column in zip(COLUMNS, columns)}}

        def after(results: dict[int, Any]) -> None:
            new = [number for number in results if number not in seen]
            seen.update(new)
            for number in new:
                predicted = results[number]["predictions"]
                if self.truth is not None:
                    self.right += int((np.array(predicted) == self.truth[block.numbers[parts[number]]]).sum())
                self.done += len(predicted)
                self.step(len(predicted), None if self.truth is None else self.right / self.done)

        results = run_batches(parts, race, dict, journal, self.run.workers, after)
        if any(result["images"] != mark for result in results):
            last = block.numbers[-1]
            raise ValueError(f"`images` must be those of the journal {str(self.run.path)!r}, got others up to {last}.")
        for result in results:
            for name in COLUMNS:
                self.columns[name] += result[name]

    def result(self, config: dict[str, Any]) -> dict[str, Any]:
        r"""What `classify_images` returns."""
        if not self.done:
            raise ValueError("`images` must hold at least one image, got none.")
        numbers, evaluations = self.frame.numbers, np.array(self.columns["evaluations"])
        total = self.num_pilot_evaluations + int(evaluations.sum())
        result: dict[str, Any] = {
            "num_images": self.done,
            "num_decided": int(sum(self.columns["decided"])),
            "num_pilot_evaluations": self.num_pilot_evaluations,
            "num_network_evaluations": total,
            "evaluations_per_image": {
                "mean": total / self.done,
                "median": float(np.median(evaluations)),
                "p95": float(np.quantile(evaluations, 0.95)),
                "max": int(evaluations.max()),
            },
            **self.bias,
        }
        # The source has a class for the network to be asked about; what is true is another matter.
        about = {name: value for name, value in self.source.about(numbers).items() if name != "image_labels"}
        if self.truth is not None:
            truth = self.truth[numbers]
            predicted, probability = (np.array(self.columns[name]) for name in ("predictions", "probability"))
            result |= _against(truth, predicted, probability, self.classifier.classes)
            about["image_labels"] = truth.tolist()
        return result | {"per_image": about | self.columns, "config": config | self.frame.description}


def _cut(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def check_labels(labels: Any, classes: list[int]) -> np.ndarray:
    r"""True classes `(N,)`, or `ValueError` unless all are among those to choose from."""
    truth = np.asarray(labels)
    strange = sorted(set(truth.tolist()) - set(classes))
    if strange:
        raise ValueError(f"`labels` must be among the classes {classes}, got {strange[:5]}.")
    return truth


def _against(truth: np.ndarray, predicted: np.ndarray, probability: np.ndarray, classes: list[int]) -> dict[str, Any]:
    right = predicted == truth
    place = {name: number for number, name in enumerate(classes)}
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, ([place[one] for one in truth.tolist()], [place[one] for one in predicted.tolist()]), 1)
    bins = np.minimum((probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    seen = counts > 0
    means, shares = (np.bincount(bins, weights=x, minlength=NUM_BINS)[seen] / counts[seen] for x in (probability, right))
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": binomial_interval(int(right.sum()), len(right)),
        "confusion": confusion.tolist(),
        "reliability": {"probability": means.tolist(), "accuracy": shares.tolist(), "num_images": counts[seen].tolist()},
        "expected_calibration_error": float((counts[seen] / len(right) * np.abs(means - shares)).sum()),
    }


def draw_classification(result: dict[str, Any]):
    r"""A figure: who is taken for whom, and how far probabilities can be believed; of labelled images."""
    # No pyplot: no global state, and no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes, confusion = result["config"]["classes"], np.array(result["confusion"])
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for row, column in np.argwhere(confusion > 0):
            share = confusion[row, column] / confusion[row].sum()
            left.text(column, row, confusion[row, column], ha="center", va="center", color="white" if share > 0.6 else "black")
        left.set(xticks=range(len(classes)), xticklabels=classes, yticks=range(len(classes)), yticklabels=classes)
    left.set(xlabel="predicted", ylabel="label", title=f"accuracy {result['accuracy']:.4f}")
    reliability = result["reliability"]
    right.plot([0, 1], [0, 1], ":", color="grey")
    right.plot(reliability["probability"], reliability["accuracy"], "o-")
    right.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability", ylabel="share of right labels")
    right.set_title(f"expected calibration error {result['expected_calibration_error']:.4f}")
    return figure
