r"""`ddpm-vlb detect`."""

import argparse
import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_output_path, write_atomically
from .common import data_settings, hold, labels_for, load_pipeline, on_grid, open_data, set_levels
from .options import (
    DEFAULT,
    add_checkpoint_options,
    add_data_options,
    add_network_options,
    add_steps_option,
    check_data_options,
    check_model_options,
    check_positive,
    new_command,
)

if TYPE_CHECKING:
    from ..evaluation.detect import Detection, Detector

# As `evaluation.detect` has it, which imports torch.
EVALUATIONS = 32
NUM_SHOWN = 5  # of the flagged, the most anomalous first


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "detect",
        help="images that do not belong, with p-values that hold",
        description="Score images by how far the terms of their bound are from those of held-in images, and flag those that do"
        " not belong. Of images like the held-in ones a share of at most alpha is flagged, whatever the model is worth.",
        examples=(
            "runs/quickstart/pipeline --fit digits --dataset scans.npz",
            "runs/mnist/pipeline --fit runs/held-in.npz --dataset incoming --alpha 0.01 --fdr --output detection.json",
            "runs/mnist/pipeline --fit runs/held-in.npz --dataset labelled.npz --anomalous 10 11",
        ),
    )
    add_checkpoint_options(parser)
    parser.add_argument(
        "--fit", required=True, metavar="DATASET", help="held-in images that the network has not been trained on"
    )
    parser.add_argument("--fit-split", help="part of that data set (default: test, where there are parts)")
    parser.add_argument("--max-fit-images", type=int, help="the first so many of them only")
    add_data_options(parser)
    parser.add_argument("--alpha", type=float, default=0.05, help=f"share of false alarms among images that belong {DEFAULT}")
    parser.add_argument("--fdr", action="store_true", help="alpha is that of false ones among the flagged (Benjamini-Hochberg)")
    parser.add_argument(
        "--anomalous", type=int, nargs="+", metavar="LABEL", help="which labels of the data set do not belong, for its AUROC"
    )
    parser.add_argument(
        "--evaluations-per-image",
        type=int,
        default=EVALUATIONS,
        metavar="K",
        help=f"network evaluations of each image, a multiple of 8 or fewer {DEFAULT}",
    )
    add_steps_option(parser)
    add_network_options(parser)
    parser.add_argument("--output", default="detection.json", help=f"where the result goes, JSON {DEFAULT}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `detect`."""
    check_data_options(arguments)
    check_model_options(arguments, (arguments.checkpoint, arguments.revision))
    check_positive("max_fit_images", arguments.max_fit_images)
    if not 0 < arguments.alpha < 1:
        raise ValueError(f"`alpha` must lie in (0, 1), got {arguments.alpha!r}.")
    output = check_output_path(arguments.output)
    with hold(output):
        detect(arguments, output)


def detect(arguments: argparse.Namespace, output: Path) -> None:
    r"""Fit, score, write, print, once nobody else writes there."""
    from ..evaluation.detect import check_evaluations, fit_detector
    from ..progress import progress_bar

    check_evaluations(arguments.evaluations_per_image)
    workers, data = open_data(arguments)
    if workers.count > 1:
        raise ValueError(f"`detect` must run in one process, got {workers.count}.")
    fit_arguments = copy.copy(arguments)
    fit_arguments.dataset, fit_arguments.split = arguments.fit, arguments.fit_split
    _, held_in = open_data(fit_arguments)
    pipe, _ = load_pipeline(arguments, arguments.checkpoint, arguments.revision)
    set_levels(pipe, arguments.num_pixel_levels)
    images, held_in_images = (on_grid(each, pipe, arguments.quantize) for each in (data, held_in))
    anomalous = None if arguments.anomalous is None else which_are(data, arguments.anomalous)
    with progress_bar(unit="evaluation", unit_scale=True) as bar:
        detector = fit_detector(
            pipe,
            held_in_images,
            evaluations_per_image=arguments.evaluations_per_image,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            class_labels=labels_for(pipe, held_in),
            num_inference_steps=arguments.num_inference_steps,
            max_images=arguments.max_fit_images,
            step=bar.update,
        )
        check_alpha(arguments.alpha, detector)
        which = {"max_images": arguments.max_images, "image_seed": arguments.image_seed}
        detection = detector(images, labels_for(pipe, data), bar.update, **which)
    settings = {
        "checkpoint": arguments.checkpoint,
        "revision": arguments.revision,
        "fit": data_settings(held_in),
        **data_settings(data),
        "quantized": arguments.quantize,
        "seed": arguments.seed,
        "dtype": detector.scorer.network.precision,
        "network_sha256": detector.scorer.network.sha256(),
        "condition_sha256": detector.scorer.network.condition_sha256,
        "timesteps": detector.timesteps,
    }
    result = result_of(detector, detection, arguments.alpha, arguments.fdr, anomalous) | {"config": settings}
    write_atomically(output, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    print("\n".join(lines_of(result)))
    print(f"detection: {output}")


def which_are(data: Any, labels: list[int]) -> Any:
    r"""Which images have one of these labels, booleans `(N,)`, or `ValueError`."""
    import numpy as np

    own = getattr(data, "labels", None)
    if own is None:
        raise ValueError(f"`anomalous` must be labels of the data set, got {labels} for {data.name!r}, which has none.")
    anomalous = np.isin(np.asarray(own), labels)
    if anomalous.all() or not anomalous.any():
        raise ValueError(f"`anomalous` must be the labels of some images in {data.name!r}, and not of all, got {labels}.")
    return anomalous


def check_alpha(alpha: float, detector: "Detector") -> None:
    r"""Raise `ValueError` where no p-value could be so small."""
    count = len(detector.calibration)
    if alpha < 1 / (count + 1):
        raise ValueError(
            f"`alpha` must be at least {1 / (count + 1):.2g}, the smallest p-value beside {count} calibration images, got"
            f" {alpha!r}. Give more images to --fit."
        )


def result_of(detector: "Detector", detection: "Detection", alpha: float, fdr: bool, anomalous: Any = None) -> dict[str, Any]:
    r"""What is written of a detection; `anomalous` says which images do not belong, by their numbers, where that is known."""
    from ..evaluation.conformal import area_under_roc, benjamini_hochberg, binomial_interval, false_alarm_interval

    p_values = detection.p_values
    flagged = benjamini_hochberg(p_values, alpha) if fdr else p_values <= alpha
    calibration = len(detector.calibration)
    result: dict[str, Any] = {
        "alpha": alpha,
        "rule": "Benjamini-Hochberg" if fdr else "p <= alpha",
        "num_images": len(p_values),
        "num_flagged": int(flagged.sum()),
        "num_fit_images": detector.num_images,
        "num_calibration_images": calibration,
        "num_images_of_fit": detection.num_fitted,
        "evaluations_per_image": len(detector.timesteps) * detector.num_draws,
        "false_alarm_rate_interval": None if fdr else false_alarm_interval(calibration, alpha),
    }
    numbers = detection.about["image_numbers"]
    if anomalous is not None:
        own = anomalous[numbers]
        if own.all() or not own.any():
            raise ValueError(f"`anomalous` must be the labels of some of the {len(own)} images, and not of all, got others.")
        false_alarms, belonging = int((flagged & ~own).sum()), int((~own).sum())
        result |= {
            "auroc": area_under_roc(detection.scores, own),
            "num_anomalous": int(own.sum()),
            "num_found": int((flagged & own).sum()),
            "num_false_alarms": false_alarms,
            "false_alarms_interval": binomial_interval(false_alarms, belonging),
        }
    per_image = {**detection.about, "score": detection.scores.tolist(), "p_value": p_values.tolist()}
    return result | {"per_image": per_image | {"flagged": flagged.tolist()}}


def lines_of(result: dict[str, Any]) -> list[str]:
    r"""A result in a few lines."""
    of = f"{result['num_flagged']:,} of {result['num_images']:,} images do not belong"
    lines = [f"{of}, by {result['rule']} at alpha = {result['alpha']:g}"]
    if result["false_alarm_rate_interval"] is not None:
        low, high = result["false_alarm_rate_interval"]
        lines.append(
            f"of images that belong at most {result['alpha']:.1%} are expected to be flagged; with these"
            f" {result['num_calibration_images']:,} calibration images it is {low:.1%} to {high:.1%} (95%)"
        )
    if "auroc" in result:
        belonging = result["num_images"] - result["num_anomalous"]
        low, high = result["false_alarms_interval"]
        lines += [
            f"AUROC {result['auroc']:.4f}",
            f"found {result['num_found']:,} of {result['num_anomalous']:,}; false alarms {result['num_false_alarms']:,} of"
            f" {belonging:,}: {result['num_false_alarms'] / belonging:.2%} (95%: {low:.2%} to {high:.2%})",
        ]
    about = result["per_image"]
    numbers, p_values = about["image_numbers"], about["p_value"]
    names = about.get("image_names") or [None] * len(numbers)
    for i in sorted(range(len(numbers)), key=lambda i: (p_values[i], -about["score"][i]))[:NUM_SHOWN]:
        if about["flagged"][i]:
            lines.append(f"  {names[i] or f'image {numbers[i]}'}: p = {p_values[i]:.4f}")
    if result["num_images_of_fit"]:
        lines.append(f"{result['num_images_of_fit']} of the images are among those of --fit: their p-values mean nothing")
    return lines
