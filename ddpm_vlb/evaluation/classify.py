r"""A data set's classes: predictions, and what labels say of them.

The images are taken block by block, with `likelihoods.classify` of each. Where the data set says which class is which, the
result has the accuracy with the exact interval of a share (Clopper & Pearson), who is taken for whom, and how far probabilities
can be believed: the **expected calibration error** is the mean over bins of probability of how far the share of right labels
lies from the mean probability there (Naeini et al. 2015).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checks import check_seed
from ..data.sources import source_of
from ..likelihoods.classify import check_classes
from ..noise import mix
from .conformal import binomial_interval

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

BLOCK = 2048  # images at a time; each block has a pilot of its own
NUM_BINS = 10  # of probabilities


def classify_images(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    step: Callable[[int, float | None], Any] = lambda count, accuracy: None,
    max_images: int | None = None,
    image_seed: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    r"""Classify a data set.

    Args:
        pipe: a `VLBDDPMPipeline` with a class-conditional network.
        images, max_images, image_seed: as `evaluate`.
        seed: of all that is drawn.
        labels: true classes `(N,)`; by default the data set's own, where it has any.
        step: called with how many images are done, and the accuracy so far.
        options: of `VLBDDPMPipeline.classify`: `classes`, `class_prior`, `confidence` and so on.

    Returns:
        `predictions`, `probability` and `decided` of each image, with `image_numbers` (and names and labels);
        `evaluations_per_image` (mean, median, p95, max), `num_images`, `num_decided`, `num_network_evaluations`, `config`; and
        of labelled images `accuracy`, `accuracy_interval`, `confusion` `(C, C)` (rows are the labels), `reliability` and
        `expected_calibration_error`.

    Raises:
        ValueError: as `VLBDDPMPipeline.classify`; labels that are not among the classes.
    """
    check_seed(seed)
    classes = check_classes(pipe.network.num_classes, options.get("classes"))
    network = pipe.scorer(options.get("num_inference_steps"), options.get("inference_timesteps")).network
    levels = pipe.scheduler.config.num_pixel_levels
    source = source_of(images, network, levels, classes[0], max_images=max_images, image_seed=image_seed)
    own = source.image_labels if labels is None else labels
    truth = None if own is None else check_labels(own, classes)
    parts: dict[str, list[np.ndarray]] = {"predictions": [], "probability": [], "decided": [], "evaluations": [], "numbers": []}
    total, right, done, config = 0, 0, 0, {}
    for number, block in enumerate(source.blocks(BLOCK)):
        out = pipe.classify(block.levels, generator=torch.Generator().manual_seed(mix(seed, number) % 2**63), **options)
        predicted = out.labels.numpy()
        rows = {"predictions": predicted, "probability": out.probabilities.max(dim=1).values.numpy()}
        rows |= {"decided": out.decided.numpy(), "evaluations": out.evaluations.numpy(), "numbers": block.numbers}
        for name, values in rows.items():
            parts[name].append(values)
        total, done, config = total + out.num_network_evaluations, done + len(predicted), out.config
        if truth is not None:
            right += int((predicted == truth[block.numbers]).sum())
        step(len(predicted), None if truth is None else right / done)
    if not done:
        raise ValueError("`images` must hold at least one image, got none.")
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    evaluations = joined.pop("evaluations")
    result: dict[str, Any] = {
        "num_images": done,
        "num_decided": int(joined["decided"].sum()),
        "num_network_evaluations": total,
        "evaluations_per_image": {
            "mean": total / done,
            "median": float(np.median(evaluations)),
            "p95": float(np.quantile(evaluations, 0.95)),
            "max": int(evaluations.max()),
        },
    }
    if truth is not None:
        result |= _against(truth[joined["numbers"]], joined["predictions"], joined["probability"], classes)
    per_image = {name: joined[name].tolist() for name in ("predictions", "probability", "decided")}
    about = source.about(joined["numbers"])
    # The source has a class for the network to be asked about; what is true is another matter.
    about.pop("image_labels", None)
    if truth is not None:
        about["image_labels"] = truth[joined["numbers"]].tolist()
    config |= {"classes": classes, "seed": seed, **source.settings}
    return result | {"per_image": about | per_image, "config": config}


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
