r"""`ddpm-vlb classify`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..files import check_output_path, write_atomically, write_png
from ..reports.show import check_scores_path, write_table
from .common import (
    check_library,
    data_settings,
    hold,
    journal_beside,
    load_pipeline,
    on_grid,
    open_data,
    set_levels,
)
from .options import (
    DEFAULT,
    add_checkpoint_options,
    add_data_options,
    add_network_options,
    add_restart_option,
    add_steps_option,
    check_data_options,
    check_model_options,
    new_command,
)


def add(commands) -> argparse.ArgumentParser:
    r"""The command's parser."""
    parser = new_command(
        commands,
        "classify",
        help="which class, by the bounds that a class-conditional network gives",
        description="Classify images by p(class | image) from the bounds of all classes, estimated at the same timesteps with"
        " the same noise; a class is dropped as soon as it has lost. Says of each image whether the answer is settled. What was"
        " stopped goes on where the same command is given again; `accelerate launch -m ddpm_vlb classify ...` shares the work.",
        examples=(
            "spaces_demo/checkpoints/ddpm-vlb-digits-class --dataset digits --plot classes.png",
            "runs/digits-class/pipeline --dataset digits --classes 3,5,8 --confidence 0.99 --predictions predictions.csv",
            "runs/classes/pipeline --dataset photos --class-prior prior.json --max-evaluations-per-image 500 --score simple",
        ),
    )
    add_checkpoint_options(parser)
    add_data_options(parser)
    parser.add_argument("--classes", help="those to choose from, as 0,1,2 (default: all of the network's)")
    parser.add_argument("--class-prior", metavar="FILE", help="their probabilities, a JSON list (default: all alike)")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        help=f"of all images at most 1 - C are decided otherwise than a full sweep would {DEFAULT}",
    )
    parser.add_argument(
        "--max-evaluations-per-image", type=int, metavar="M", help="where to stop undecided (default: 100 for each class)"
    )
    parser.add_argument(
        "--score",
        choices=("bound", "simple"),
        default="bound",
        help=f"what the classes race by; simple: squared errors of the noise, which are no likelihood {DEFAULT}",
    )
    add_steps_option(parser)
    add_network_options(parser)
    add_restart_option(parser)
    parser.add_argument("--output", default="classes.json", help=f"where the result goes, JSON {DEFAULT}")
    parser.add_argument("--predictions", help="where a table of the images goes: .csv or .parquet")
    parser.add_argument("--plot", help="where a plot of confusion and reliability goes, a PNG file; of labelled images")
    return parser


def run(arguments: argparse.Namespace) -> None:
    r"""Refuse what cannot be, then `classify`."""
    check_data_options(arguments)
    check_model_options(arguments, (arguments.checkpoint, arguments.revision))
    if not 0 < arguments.confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1), got {arguments.confidence!r}.")
    options = {"classes": read_classes(arguments.classes), "class_prior": read_prior(arguments.class_prior)}
    if arguments.predictions is not None:
        check_scores_path(arguments.predictions, "predictions")
        check_library("predictions", "pyarrow")
    if arguments.plot is not None:
        check_library("plot", "matplotlib")
    paths = [check_output_path(path) for path in (arguments.output, arguments.predictions, arguments.plot) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"`output`, `predictions` and `plot` must be different files, got {', '.join(map(str, paths))}.")
    with hold(*paths):
        classify(arguments, paths[0], options)


def read_classes(text: str | None) -> list[int] | None:
    r"""`0,1,2` as a list, or `ValueError`."""
    if text is None:
        return None
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise ValueError(f"`classes` must be integers with commas between them, as 0,1,2, got {text!r}.") from None


def read_prior(file: str | None) -> list[float] | None:
    r"""The probabilities of a file, or `ValueError`."""
    if file is None:
        return None
    try:
        prior = json.loads(Path(file).read_text(encoding="utf-8"))
        return [float(one) for one in prior]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"`class_prior` must be a JSON file of a list of probabilities, got {file!r}: {error}") from error


def classify(arguments: argparse.Namespace, output: Path, options: dict[str, Any]) -> None:
    r"""Classify, write, print, once nobody else writes there."""
    from ..evaluation.classify import classify_images, draw_classification
    from ..progress import progress_bar

    workers, data = open_data(arguments)
    labelled = getattr(data, "labels", None) is not None
    if arguments.plot is not None and not labelled:
        raise ValueError(f"`plot` must be left out for images without labels, got {data.name!r}.")
    pipe, float32_unet = load_pipeline(arguments, arguments.checkpoint, arguments.revision, workers.device)
    set_levels(pipe, arguments.num_pixel_levels)
    journal = journal_beside(output, arguments.restart and not workers.rank)
    with progress_bar(unit="image", desc="classify", disable=workers.rank > 0) as bar:

        def step(count: int, accuracy: float | None) -> None:
            if accuracy is not None:
                bar.set_postfix_str(f"accuracy {accuracy:.4f}", refresh=False)
            bar.update(count)

        result = classify_images(
            pipe,
            on_grid(data, pipe, arguments.quantize),
            seed=arguments.seed,
            step=step,
            max_images=arguments.max_images,
            image_seed=arguments.image_seed,
            confidence=arguments.confidence,
            max_evaluations_per_image=arguments.max_evaluations_per_image,
            batch_size=arguments.batch_size,
            num_inference_steps=arguments.num_inference_steps,
            score=arguments.score,
            float32_unet=float32_unet,
            journal=journal,
            workers=workers,
            **options,
        )
    if workers.rank:
        return
    settings = {"checkpoint": arguments.checkpoint, "revision": arguments.revision, **data_settings(data)}
    result["config"] |= settings | {"quantized": arguments.quantize}
    write_atomically(output, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    if arguments.predictions is not None:
        write_table(table_of(result), arguments.predictions)
    if arguments.plot is not None:
        write_png(arguments.plot, draw_classification(result))
    if journal is not None:
        journal.unlink(missing_ok=True)
    print("\n".join(lines_of(result)))
    print(f"classes: {output}")


def table_of(result: dict[str, Any]) -> dict[str, list]:
    r"""The images' columns."""
    about = result["per_image"]
    columns = {"image": about["image_numbers"], "name": about.get("image_names"), "label": about.get("image_labels")}
    columns |= {"prediction": about["predictions"], **{name: about[name] for name in ("probability", "decided", "evaluations")}}
    return {name: values for name, values in columns.items() if values is not None}


def lines_of(result: dict[str, Any]) -> list[str]:
    r"""A result in a few lines."""
    lines = []
    if "accuracy" in result:
        low, high = result["accuracy_interval"]
        lines += [
            f"accuracy {result['accuracy']:.4f} ({low:.4f} to {high:.4f}, 95%)",
            f"expected calibration error {result['expected_calibration_error']:.4f}",
        ]
    if "half_precision_bias" in result:
        bias = result["half_precision_bias"]
        lines.append(
            f"half precision moves differences between classes by {bias['nats']:+.3g} nats, {bias['largest_nats']:.3g} at the"
            f" most, and the label of {bias['num_labels_changed']} of {bias['num_images']} pilot images"
        )
    of, each = result["num_images"], result["evaluations_per_image"]
    return [
        *lines,
        f"{result['num_decided']} of {of} images decided at a confidence of {result['config']['confidence']:g}",
        f"network evaluations of an image: mean {each['mean']:.1f} (pilot included), median {each['median']:.0f}, 95% at most"
        f" {each['p95']:.0f}, at most {each['max']}",
    ]
