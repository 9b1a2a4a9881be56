r"""What a report says of a model as a classifier: a summary of what `ddpm-vlb classify` wrote, of the same network."""

from collections.abc import Mapping
from typing import Any

from .checks import is_of_kind
from .schema import Report

# Of a summary: what it holds, and of which kind.
ENTRIES: dict[str, Any] = {
    "accuracy": float,
    "accuracy_interval": list,
    "num_images": int,
    "num_decided": int,
    "num_network_evaluations": int,
    "evaluations_per_image": float,
    "expected_calibration_error": float,
    "confidence": float,
    "score": str,
    "num_classes": int,
    "dataset": str,
    "split": str | None,
    "seed": int,
    "max_evaluations_per_image": int,
    "max_images": int | None,
    "image_seed": int | None,
    "num_inference_steps": int | None,
}


def with_classes(report: Mapping[str, Any], result: Mapping[str, Any]) -> Report:
    r"""A report with a summary of a classification, as its entry `classification`.

    Args:
        report: of the model.
        result: what `classify_images` returned, with the `dataset` and `split` that the command line adds to its `config`.

    Raises:
        ValueError: a result that is of another network, or of images without labels.
    """
    report = Report.of(report)
    config = result.get("config") or {}
    if "accuracy" not in result:
        raise ValueError("`classes` must be of images with labels for a card, got no accuracy.")
    if config.get("network_sha256") != report.config["network_sha256"]:
        raise ValueError(
            f"`classes` must be of the report's network, got network_sha256 {config.get('network_sha256')!r} for"
            f" {report.config['network_sha256']!r}."
        )
    summary = {name: result[name] for name in ENTRIES if name in result}
    summary |= {name: config.get(name) for name in ENTRIES if name not in summary}
    summary |= {"num_classes": len(config["classes"]), "evaluations_per_image": result["evaluations_per_image"]["mean"]}
    return report | {"classification": check_classification(summary)}


def check_classification(summary: Mapping[str, Any]) -> dict[str, Any]:
    r"""The summary, or `ValueError` unless it has its entries and they agree with each other."""
    summary = dict(summary)
    if summary.keys() != ENTRIES.keys():
        names = ", ".join(sorted(summary.keys() ^ ENTRIES.keys()))
        raise ValueError(f"`classification` must have the entries {', '.join(ENTRIES)}, got others or none of {names}.")
    for name, kind in ENTRIES.items():
        if not is_of_kind(summary[name], kind):
            raise ValueError(f"`classification` must have a number or a word of its kind for {name!r}, got {summary[name]!r}.")
    low, high = summary["accuracy_interval"]
    right = summary["accuracy"] * summary["num_images"]
    if not 0 <= low <= summary["accuracy"] <= high <= 1 or abs(right - round(right)) > 1e-6 * max(1.0, right):
        raise ValueError(
            f"`classification` must have an accuracy of {summary['num_images']} images inside its interval, got"
            f" {summary['accuracy']!r} and {summary['accuracy_interval']!r}."
        )
    if not 0 <= summary["num_decided"] <= summary["num_images"]:
        raise ValueError(f"`classification` must have at most all images decided, got {summary['num_decided']}.")
    return summary
