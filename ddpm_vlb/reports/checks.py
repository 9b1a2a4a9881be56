r"""Whether the numbers of a report are plain and finite, and agree with each other. Which there are, says `schema.py`."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, get_args

from ..likelihoods.method import Method

KIND_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a dictionary",
    type(None): "null",
}


def is_of_kind(value: Any, kind: Any) -> bool:
    r"""Whether a value is of a type, or of one of a union, and no subclass of it; an integer is a float, too."""
    kinds = get_args(kind) or (kind,)
    return object in kinds or type(value) in kinds or (float in kinds and type(value) is int)


def kind_words(kind: Any) -> str:
    r"""A type, or a union of types, in words."""
    return " or ".join(KIND_WORDS[one] for one in get_args(kind) or (kind,))


def check_plain(value: Any, name: str) -> None:
    r"""Raise `ValueError` for anything that is not a plain, finite value: NaN, infinity, a NumPy number, bytes, a date."""
    if type(value) is dict:
        for key, entry in value.items():
            check_plain(entry, f"{name}.{key}")
    elif type(value) is list:
        for index, entry in enumerate(value):
            check_plain(entry, f"{name}[{index}]")
    elif type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(f"`{name}` must be a plain value of Python, got {type(value).__name__}.")
    elif type(value) is float and not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")


def to_plain(value: Any) -> Any:
    r"""What a caller's setting is in JSON: numbers of NumPy and of torch as Python's, tuples as lists, names as texts."""
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def check_numbers(report: Mapping[str, Any], method: Method) -> None:
    r"""Raise `ValueError` unless the numbers of a method's report, all of which are there, agree with each other."""
    full, per_image = method.name == "full", report["per_image"]
    _check_entries("per_image", per_image or (), (float, int))
    if method.columns is None:
        _check_entries("transitions", report["transitions"], (float, int, type(None)))
        _check_entries("timesteps", report["timesteps"], (int,))
    _check_counts(report, full)
    if report["standard_error"] is not None and report["standard_error"] < 0:
        raise ValueError(f"`report` must have a standard error that is not negative, got {report['standard_error']}.")
    if per_image is not None and len(per_image) != report["num_images"]:
        raise ValueError(f"`report` must have one number per image, got {len(per_image)} for {report['num_images']} images.")
    if method.columns is None:
        _check_terms(report, method)
    if per_image is not None:
        _check_same("images whose mean is its total", math.fsum(per_image) / len(per_image), report["bits_per_dim"])
    if full:
        _check_same("transitions that sum to their total", math.fsum(report["transitions"]), report["transitions_total"])
    elif method.columns is None:
        _check_sampled(report)
    error = report["standard_error"]
    if (full or method.columns is not None) and report["num_images"] > 1 and not (per_image is None or error is None):
        _check_same("a standard error that its images have", error_of_mean(per_image), error)


def error_of_mean(values: Sequence[float]) -> float:
    r"""The standard error of the mean of at least two numbers."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _check_entries(name: str, values: Sequence[Any], kinds: tuple[type, ...]) -> None:
    for index, value in enumerate(values):
        if type(value) not in kinds:
            raise ValueError(f"`report.{name}[{index}]` must be a number, got {value!r}.")


def _check_counts(report: Mapping[str, Any], full: bool) -> None:
    config, count, evaluations = report["config"], report["num_images"], report["num_network_evaluations"]
    if count < 1 or evaluations < 1 or (full and evaluations % (count * config["num_steps"])):
        raise ValueError(
            f"`report` must have evaluated {'each image at every step' if full else 'some images'}, got {evaluations} network"
            f" evaluations of {count} images."
        )
    if full and None in report["transitions"]:
        raise ValueError("`report` must have a number for every timestep of a full sweep, got null.")
    grid, all_steps = config["inference_timesteps"], config["num_steps"] >= config["num_train_timesteps"]
    # A sub-sequence may be named that has all steps.
    if (len(grid) != config["num_steps"]) if all_steps and grid is not None else (not all_steps and grid is None):
        raise ValueError(
            f"`report` must name the sub-sequence it is of, and only then, got {config['num_steps']} steps of"
            f" {config['num_train_timesteps']} on {grid}."
        )


def _check_terms(report: Mapping[str, Any], method: Method) -> None:
    steps = report["config"]["num_steps"]
    lengths = len(report["transitions"]), len(report["timesteps"])
    if lengths != (steps - 1, steps - 1):
        raise ValueError(
            f"`report` must have one transition and one timestep per step but the first, got {lengths} for {steps} steps."
        )
    terms = [report["prior"], report["transitions_total"], report["decoder"]]
    # An estimate may lie below zero; a term cannot.
    if min(terms) < 0 and method.name != "sampled":
        raise ValueError(f"`report` must have terms that are not negative, got {terms}.")
    _check_same("terms that sum to its total", sum(terms), report["bits_per_dim"])


def _check_sampled(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the errors, intervals and strata of a sampled report agree with each other."""
    data, noise, freedom = report.get("data_error"), report["monte_carlo_error"], report["degrees_of_freedom"]
    for key, value in (("data_error", data or 0), ("monte_carlo_error", noise), ("degrees_of_freedom", freedom)):
        if type(value) not in (int, float) or value < 0:
            raise ValueError(f"`report` must have a number that is not negative for {key!r}, got {value!r}.")
    if report["standard_error"] is not None:
        _check_same("a standard error of both its errors", math.hypot(noise, data or 0), report["standard_error"])
    for key, error in (("monte_carlo_interval", noise), ("confidence_interval", report["standard_error"])):
        interval = report.get(key)
        if interval is None and error is None or interval is None and key == "confidence_interval":
            continue
        if error is None:
            raise ValueError(f"`report` must have no {key!r} where there is no error, got {interval!r}.")
        if not (isinstance(interval, list) and len(interval) == 2 and all(type(x) in (int, float) for x in interval)):
            raise ValueError(f"`report` must have two numbers for {key!r}, got {interval!r}.")
        _check_same(f"a {key} about its total", sum(interval) / 2, report["bits_per_dim"])
        # Student's quantile is nowhere below the normal one.
        normal = NormalDist().inv_cdf(0.5 + report["confidence_level"] / 2)
        if interval[1] - interval[0] < 2 * normal * error * (1 - 1e-9):
            raise ValueError(f"`report` must have a {key} as wide as its error says, got {interval} for {error}.")
    _check_strata(report)


def _check_strata(report: Mapping[str, Any]) -> None:
    strata, counts, steps = report["strata"], report["evaluations_per_timestep"], report["config"]["num_steps"]
    values: list[Any] = [stratum.get("bits_per_dim") if isinstance(stratum, dict) else None for stratum in strata]
    if not values or any(type(value) not in (int, float) for value in values):
        raise ValueError("`report` must have the bits per dimension of each of its strata.")
    _check_same("a decoder that is its first stratum", values[0], report["decoder"])
    _check_same("strata that sum to its transitions", math.fsum(values[1:]), report["transitions_total"])
    if len(counts) != steps or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"`report` must count the evaluations at each of its {steps} timesteps.")
    if sum(counts) > report["num_network_evaluations"] or any(
        (value is None) != (n == 0) for value, n in zip(report["transitions"], counts[1:])
    ):
        raise ValueError("`report` must have a term where it made evaluations, and evaluations that it counts.")


def _check_same(what: str, got: float, expected: float) -> None:
    if not abs(got - expected) <= 1e-9 * max(1.0, abs(expected)):
        raise ValueError(f"`report` must have {what}, got {got} and {expected}.")
