r"""One report of several.

Shards of a data set are weighted by their images, more evaluations of the same images (another seed) by their evaluations:
never by their variances, which go with the estimates. Both are independent of each other given the images.
"""

import bisect
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..likelihoods.method import Method
from .checks import error_of_mean
from .make import with_intervals
from .schema import Report, numbers_of_images, settings_that_are

# What a report says of each of its images, one after the other.
ABOUT = ("image_numbers", "image_names", "image_labels")
OF_IMAGES = (*ABOUT, "per_image", "per_image_monte_carlo_error", "per_image_degrees_of_freedom")


def merge_reports(reports: Sequence[Mapping[str, Any]]) -> Report:
    r"""One report of several: of disjoint shards of a data set, or of more evaluations of the same images.

    Args:
        reports: at least two, of the same model, settings and method. Where each image has one number, as with `"iw"` and
            `"ode"`, they must be shards.

    Raises:
        ValueError: reports that do not belong together, with the reason: other models, settings or methods, shards or seeds
            that overlap, other images under the same name; a method whose reports cannot be merged.
    """
    if len(reports) < 2:
        raise ValueError(f"`reports` must be at least two, got {len(reports)}.")
    # What one of them says of the model as a classifier was measured on its own images.
    reports = [Report.of({key: value for key, value in report.items() if key != "classification"}) for report in reports]
    for report in reports:
        if not report.method.merges:
            raise ValueError(f"`reports` must be of a method whose reports can be merged, got {report['method']!r}.")
        if "shard" not in report.config or "data_sha256" not in report.config:
            raise ValueError("`reports` must say which images they are of (config.shard, config.data_sha256).")
    # Shards of one seed first: then seeds are of the same images.
    by_seed: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        key = json.dumps(report.config["seed"])
        by_seed[key] = _merge_two(by_seed[key], report, report.method) if key in by_seed else report
    method = reports[0].method
    return Report(functools.reduce(lambda one, other: _merge_two(one, other, method), by_seed.values()))


def _merge_two(one: Mapping[str, Any], other: Mapping[str, Any], method: Method) -> dict[str, Any]:
    _check_alike(one, other)
    first, second = one["config"], other["config"]
    shards, others = _shards(first), _shards(second)
    if first["shard"]["of"] != second["shard"]["of"]:
        raise ValueError(
            f"`reports` must cut the data set alike, got {first['shard']['of']} and {second['shard']['of']} shards."
        )
    if shards == others:
        return _merge_evaluations(one, other, method)
    common = sorted(shards.keys() & others.keys())
    if any(shards[index] != others[index] for index in common):
        raise ValueError(
            f"`reports` must be of the same images where they are of the same shard, got others in shard {common}."
        )
    if common:
        raise ValueError(
            f"`reports` must be of disjoint shards, or of the same, got shard {common} in both and another in one."
        )
    if first["seed"] != second["seed"]:
        raise ValueError(f"`reports` of several shards must have the same seed, got {first['seed']} and {second['seed']}.")
    _check_disjoint(one, other)
    return _merge_shards(one, other, method)


def _check_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless two reports agree in all that must not differ."""
    first, second, free = one["config"], other["config"], settings_that_are("free")
    names = [name for name in sorted(first.keys() | second.keys()) if name not in free]
    ours = [config.get("versions", {}).get("ddpm_vlb") for config in (first, second)]
    for name, a, b in (
        ("method", one["method"], other["method"]),
        *((f"config.{name}", first.get(name), second.get(name)) for name in names),
        ("config.versions.ddpm_vlb", *ours),
        *((f"whether there is {name}", name in one, name in other) for name in ("half_precision_bias", "monte_carlo_error")),
        ("the timesteps of their strata", *([s["timesteps"] for s in report.get("strata", ())] for report in (one, other))),
    ):
        if a != b:
            raise ValueError(f"`reports` must agree in {name} to be merged, got {a!r} and {b!r}.")


def _check_disjoint(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless reports of other shards are of other images, of one data set cut once."""
    shards, others = _shards(one["config"]), _shards(other["config"])
    place = {sha256: index for index, sha256 in shards.items()}
    for index, sha256 in others.items():
        if sha256 in place:
            raise ValueError(
                f"`reports` of several shards must be of other images each, got the same ones, with the SHA-256 {sha256}, as"
                f" the shards {place[sha256]} and {index}."
            )
    # Of N images shard i has those whose number is i modulo the number of shards: not every N has so many of each.
    of, counts = one["config"]["shard"]["of"], (one["num_images"], other["num_images"])

    def has(indices: Iterable[int], images: int) -> int:
        return sum(len(range(index, images, of)) for index in indices)

    images = bisect.bisect_left(range(of * (counts[0] + 1)), counts[0], key=lambda images: has(shards, images))
    while has(shards, images) == counts[0] and has(others, images) < counts[1]:
        images += 1
    if (has(shards, images), has(others, images)) != counts:
        raise ValueError(
            f"`reports` must be of shards of one data set, got {counts[0]} images in shard {sorted(shards)} and {counts[1]} in"
            f" shard {sorted(others)} of {of}."
        )


def _shards(config: dict[str, Any]) -> dict[int, str]:
    r"""The shards of a report and what their images hash to."""
    return dict(zip(config["shard"]["indices"], config["data_sha256"]))


def _seeds(config: dict[str, Any]) -> list[int]:
    return config["seed"] if isinstance(config["seed"], list) else [config["seed"]]


def _merge_evaluations(one: Mapping[str, Any], other: Mapping[str, Any], method: Method) -> dict[str, Any]:
    if method.columns is not None:
        raise ValueError(
            f"`reports` of method {one['method']!r} must be of disjoint shards, got two of the same images: they do not tell"
            " what the noise adds to their numbers, so that nothing could be said of a mean of them."
        )
    common = set(_seeds(one["config"])) & set(_seeds(other["config"]))
    if common or None in _seeds(one["config"]) + _seeds(other["config"]):
        raise ValueError(
            f"`reports` of the same images must have seeds of their own, got {sorted(common, key=str) or None} in both."
        )
    counts = one["num_network_evaluations"], other["num_network_evaluations"]
    weights = [count / sum(counts) for count in counts]
    config = _config(one, other) | {"seed": sorted(_seeds(one["config"]) + _seeds(other["config"]))}
    merged = _weighted(one, other, weights, method) | {"num_images": one["num_images"]}
    for key in ("per_image", "per_image_monte_carlo_error"):
        if one.get(key) is not None and other.get(key) is not None:
            pairs = zip(one[key], other[key])
            merged[key] = [(_mean if key == "per_image" else _of_mean)(pair, weights) for pair in pairs]
            merged |= {key: values for key in ABOUT if (values := one.get(key, other.get(key))) is not None}
    keys = "per_image_monte_carlo_error", "per_image_degrees_of_freedom"
    if all(report.get(key) is not None for report in (one, other) for key in keys):
        images = zip(*(zip(one[key], other[key]) for key in keys))
        merged[keys[1]] = [_freedom(errors, freedom, weights) for errors, freedom in images]
    data = None
    if one.get("data_error") is not None and other.get("data_error") is not None:
        data = math.sqrt(weights[0] * one["data_error"] ** 2 + weights[1] * other["data_error"] ** 2)
    return _finish(merged, data, config, method)


def _merge_shards(one: Mapping[str, Any], other: Mapping[str, Any], method: Method) -> dict[str, Any]:
    counts = one["num_images"], other["num_images"]
    total = sum(counts)
    weights = [count / total for count in counts]
    shards = _shards(one["config"]) | _shards(other["config"])
    indices = sorted(shards)
    config = _config(one, other) | {
        "shard": {"of": one["config"]["shard"]["of"], "indices": indices},
        "data_sha256": [shards[index] for index in indices],
    }
    if method.columns is not None:
        return _finish(_columns(one, other, weights, method) | {"num_images": total}, None, config, method)
    merged = _weighted(one, other, weights, method) | {"num_images": total}
    if one["per_image"] is not None and other["per_image"] is not None:
        merged |= _interleave(one, other)
    data = None
    if method.name == "sampled":
        # Within shards, and between them less what their noise adds.
        squares = 0.0
        for report, count in zip((one, other), counts):
            squares += (count - 1) * count * (report["data_error"] or 0.0) ** 2
            squares += count * (report["bits_per_dim"] - merged["bits_per_dim"]) ** 2
            squares -= count * (1 - count / total) * report["monte_carlo_error"] ** 2
        data = math.sqrt(max(squares, 0.0) / (total - 1) / total)
    return _finish(merged, data, config, method)


def _config(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    r"""The settings of both, but for seeds and shards."""
    config, pilots = dict(one["config"]), "num_pilot_evaluations"
    known = [report["config"][pilots] for report in (one, other) if pilots in report["config"]]
    if len(known) == 2:
        config[pilots] = sum(known)
    else:  # of merged reports of before nobody knows
        config.pop(pilots, None)
    return config | {"versions": _versions(one, other)}


def _versions(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    r"""The versions of both; where they differ, one after the other."""
    first, second = (report["config"].get("versions", {}) for report in (one, other))
    both = {name: {*f"{first.get(name, '?')}".split(", "), *f"{second.get(name, '?')}".split(", ")} for name in first | second}
    return {name: ", ".join(sorted(versions)) for name, versions in both.items()}


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values))


def _of_mean(errors: Sequence[float], weights: Sequence[float]) -> float:
    r"""The standard error of a weighted mean of independent numbers."""
    return math.hypot(*(weight * error for weight, error in zip(weights, errors)))


def _freedom(errors: Sequence[float], freedom: Sequence[float], weights: Sequence[float]) -> float:
    r"""The degrees of freedom of `_of_mean` (Satterthwaite)."""
    variances = [(weight * error) ** 2 for weight, error in zip(weights, errors)]
    spread = sum(variance**2 / one for variance, one in zip(variances, freedom))
    return sum(variances) ** 2 / spread if spread else 1.0


def _columns(one: Mapping[str, Any], other: Mapping[str, Any], weights: Sequence[float], method: Method) -> dict[str, Any]:
    r"""The means of all columns, and each image's number."""
    of_images = _interleave(one, other)
    names = [*(method.columns or ()), *(["solver_error"] if "solver_error" in one and "solver_error" in other else [])]
    return {
        **{key: value for key, value in one.items() if key not in (*OF_IMAGES, "solver_error")},
        **{name: _mean((one[name], other[name]), weights) for name in names},
        **of_images,
        "bits_per_dim": math.fsum(of_images["per_image"]) / len(of_images["per_image"]),
        "num_network_evaluations": one["num_network_evaluations"] + other["num_network_evaluations"],
    }


def _weighted(one: Mapping[str, Any], other: Mapping[str, Any], weights: Sequence[float], method: Method) -> dict[str, Any]:
    r"""What is a weighted mean of two reports, or a sum, and the Monte Carlo error of it."""
    merged: dict[str, Any] = {key: value for key, value in one.items() if key not in OF_IMAGES} | {"per_image": None}
    for key in ("prior", "transitions_total", "decoder"):
        merged[key] = _mean((one[key], other[key]), weights)
    merged["bits_per_dim"] = merged["prior"] + merged["transitions_total"] + merged["decoder"]
    errors: Any = (one.get("monte_carlo_error"), other.get("monte_carlo_error"))
    merged["monte_carlo_error"] = None if None in errors else _of_mean(errors, weights)
    if "half_precision_bias" in one:
        biases = one["half_precision_bias"], other["half_precision_bias"]
        merged["half_precision_bias"] = {
            "bits_per_dim": _mean([bias["bits_per_dim"] for bias in biases], weights),
            "monte_carlo_error": _of_mean([bias["monte_carlo_error"] for bias in biases], weights),
            "num_network_evaluations": sum(bias["num_network_evaluations"] for bias in biases),
            "includes_rounding_of_weights": all(bias["includes_rounding_of_weights"] for bias in biases),
        }
    merged["num_network_evaluations"] = one["num_network_evaluations"] + other["num_network_evaluations"]
    if method.name == "full":
        merged["transitions"] = [_mean(pair, weights) for pair in zip(one["transitions"], other["transitions"])]
        return merged
    merged["per_image_monte_carlo_error"] = merged["per_image_degrees_of_freedom"] = None
    if "reliable" in one and "reliable" in other:  # as the less so of both
        merged["doubt"] = one.get("doubt") or other.get("doubt")
        merged["reliable"] = merged["doubt"] is None
    else:
        merged = {key: value for key, value in merged.items() if key not in ("reliable", "doubt")}
    counts = list(zip(one["evaluations_per_timestep"], other["evaluations_per_timestep"]))
    merged["evaluations_per_timestep"] = [sum(pair) for pair in counts]
    # Of a single timestep the numbers count by the evaluations that they rest on.
    merged["transitions"] = [
        None if a is None and b is None else (m * (a or 0.0) + n * (b or 0.0)) / (m + n)
        for a, b, (m, n) in zip(one["transitions"], other["transitions"], counts[1:])
    ]
    merged["strata"] = [
        a
        | {
            "bits_per_dim": _mean((a["bits_per_dim"], b["bits_per_dim"]), weights),
            "monte_carlo_error": _of_mean((a["monte_carlo_error"], b["monte_carlo_error"]), weights),
            "num_network_evaluations": a["num_network_evaluations"] + b["num_network_evaluations"],
        }
        for a, b in zip(one["strata"], other["strata"])
    ]
    merged["degrees_of_freedom"] = _freedom(errors, [report["degrees_of_freedom"] for report in (one, other)], weights)
    return merged


def _interleave(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list]:
    r"""What both reports say of their images, in the order of the data set."""
    numbers = numbers_of_images(one) + numbers_of_images(other)
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    both = {"image_numbers": numbers}
    both |= {key: one[key] + other[key] for key in OF_IMAGES[1:] if one.get(key) is not None and other.get(key) is not None}
    return {key: [values[place] for place in order] for key, values in both.items()}


def _finish(merged: dict[str, Any], data_error: float | None, config: dict[str, Any], method: Method) -> dict[str, Any]:
    of_one_run = settings_that_are("of_one_run")
    merged |= {"config": {key: value for key, value in config.items() if key not in of_one_run}}
    if method.name == "sampled":
        return with_intervals(merged | {"data_error": data_error})
    if method.columns is not None:
        return merged | {"standard_error": error_of_mean(merged["per_image"])}
    values = torch.tensor(merged["per_image"], dtype=torch.float64)
    merged["standard_error"] = (values.var() / len(values)).sqrt().item() if len(values) > 1 else None
    if merged["monte_carlo_error"] is None:
        merged["monte_carlo_error"] = merged["standard_error"]  # of single images nothing else is known
    return merged
