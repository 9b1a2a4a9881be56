r"""What a report says of a model as a classifier: a summary of what `ddpm-vlb classify` wrote, of the same network."""

from collections.abc import Mapping
from typing import Any

from .checks import is_of_kind, kind_words
from .schema import Report, without_places

# Of a summary: what it holds, and of which kind.
CLASS_ENTRIES: dict[str, Any] = {
    "accuracy": float,
    "accuracy_interval": list,
    "num_images": int,
    "num_decided": int,
    "num_network_evaluations": int,
    "evaluations_per_image": float,
    "expected_calibration_error": float,
    "config": dict,
}
# Of its `config`: what `classify` alone knows, and those rows of `schema.SETTINGS` that its command line can say.
CLASS_SETTINGS: dict[str, Any] = {
    "classes": list,
    "class_prior": list,
    "confidence": float,
    "max_evaluations_per_image": int,
    "score": str,
}
SHARED_SETTINGS = (
    *("dataset", "split", "image_column", "label_column", "convert", "resize", "center_crop", "max_images", "image_seed"),
    *("num_pixel_levels", "quantized", "num_inference_steps", "checkpoint", "revision", "network_kwargs", "prompt"),
    *("dtype", "seed"),
)


def with_classes(report: Mapping[str, Any], result: Mapping[str, Any]) -> Report:
    r"""A report with a summary of a classification, as its entry `classification`.

    Args:
        report: of the model.
        result: what `classify_images` returned, with what the command line adds to its `config`.

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
    summary = {name: result[name] for name in CLASS_ENTRIES if name in result}
    summary["evaluations_per_image"] = result["evaluations_per_image"]["mean"]
    said = {name: config[name] for name in (*CLASS_SETTINGS, *SHARED_SETTINGS) if config.get(name) is not None}
    summary["config"] = without_places(said)
    return report | {"classification": check_classification(summary)}


def check_classification(summary: Mapping[str, Any]) -> dict[str, Any]:
    r"""The summary, or `ValueError` unless it has its entries and they agree with each other."""
    summary = dict(summary)
    if summary.keys() != CLASS_ENTRIES.keys():
        names = ", ".join(sorted(summary.keys() ^ CLASS_ENTRIES.keys()))
        raise ValueError(f"`classification` must have the entries {', '.join(CLASS_ENTRIES)}, got others or none of {names}.")
    config = summary["config"] if isinstance(summary["config"], dict) else {}
    for name, kind in {**CLASS_ENTRIES, **CLASS_SETTINGS, "dataset": str}.items():
        value = summary[name] if name in CLASS_ENTRIES else config.get(name)
        if not is_of_kind(value, kind):
            raise ValueError(f"`classification` must have {kind_words(kind)} for {name!r}, got {value!r}.")
    interval, right = summary["accuracy_interval"], summary["accuracy"] * summary["num_images"]
    low, high = interval if _are_numbers(interval, 2) else (1.0, 0.0)
    if not 0 <= low <= summary["accuracy"] <= high <= 1 or abs(right - round(right)) > 1e-6 * max(1.0, right):
        raise ValueError(
            f"`classification` must have an accuracy of {summary['num_images']} images inside its interval, got"
            f" {summary['accuracy']!r} and {interval!r}."
        )
    if not 0 <= summary["num_decided"] <= summary["num_images"]:
        raise ValueError(f"`classification` must have at most all images decided, got {summary['num_decided']}.")
    if not _are_numbers(config["class_prior"], len(config["classes"])):
        raise ValueError("`classification` must have a probability for each of its classes, got others.")
    return summary


def _are_numbers(values: list, count: int) -> bool:
    return len(values) == count and all(is_of_kind(value, float) for value in values)
