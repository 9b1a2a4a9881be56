r"""What a report holds."""

import json
import math
import re
import shlex
from pathlib import Path, PurePath
from statistics import NormalDist
from typing import Any

# What a report says of the model itself.
REPORTED_SETTINGS = (
    "network_sha256",
    "num_train_timesteps",
    "num_steps",
    "inference_timesteps",
    "beta_schedule",
    "trained_betas",
    "beta_start",
    "beta_end",
    "rescale_betas_zero_snr",
    "prediction_type",
    "variance_type",
    "decoder_variance",
    "calibration",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "num_pixel_levels",
)
# Of these, what a user may choose anew when scoring; a report says which were.
OVERRIDABLE = ("clip_sample", "thresholding", "num_pixel_levels")
REPORT_KEYS = {
    "bits_per_dim": float,
    "prior": float,
    "transitions_total": float,
    "decoder": float,
    "standard_error": float,
    "transitions": list,
    "timesteps": list,
    "per_image": list,
    "method": str,
    "num_images": int,
    "num_network_evaluations": int,
    "config": dict,
}
# What a sampled report has besides.
SAMPLED_KEYS = {
    "monte_carlo_error": float,
    "degrees_of_freedom": float,
    "confidence_level": float,
    "monte_carlo_interval": list,
    "strata": list,
    "evaluations_per_timestep": list,
}
# What else of a report may be shown.
FURTHER_KEYS = (
    "monte_carlo_error",
    "data_error",
    "confidence_interval",
    "per_image_monte_carlo_error",
    "half_precision_bias",
)
# Settings of a report's `config` that a reader of its number needs: a number is one of these settings, or it is none.
SETTINGS = {
    "num_train_timesteps": "number of steps T",
    "num_steps": "steps scored",
    "inference_timesteps": "the sub-sequence scored",
    "beta_schedule": "forward variances",
    "prediction_type": "prediction type",
    "variance_type": "reverse variances",
    "decoder_variance": "decoder variance (t = 0)",
    "calibration": "calibrated on",
    "num_pixel_levels": "pixel levels",
    "quantized": "images brought onto these levels first",
    "clip_sample": "clip_sample",
    "thresholding": "thresholding",
    "dtype": "dtype",
    "seed": "seed",
    "split": "split",
}
REQUIRED_SETTINGS = (
    "num_train_timesteps",
    "num_steps",
    "prediction_type",
    "variance_type",
    "decoder_variance",
    "num_pixel_levels",
    "clip_sample",
    "inference_timesteps",
    "num_inference_steps",
    "dtype",
    "seed",
    "dataset",
    "network_sha256",
)
# What else of a report's `config` may be shown; anything else that lies in it stays at home.
FURTHER_SETTINGS = (
    "checkpoint",
    "revision",
    "trained_betas",
    "beta_start",
    "beta_end",
    "rescale_betas_zero_snr",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "overridden",
    "timestep_spacing",
    "num_class_embeds",
    "image_shape",
    "batch_size",
    "device",
    "versions",
    "max_images",
    "shard",
    "data_sha256",
    "buffer_bytes",
    "num_images_in_memory",
    "target_se",
    "max_evaluations",
    "evaluations_per_image",
    "num_pilot_evaluations",
    "num_rounds",
    "num_processes",
    "rows",
    "description",
    "limits",
    "command",
)
# Settings that may differ between reports that are merged; all others must agree.
FREE_SETTINGS = (
    "batch_size",
    "buffer_bytes",
    "checkpoint",
    "command",
    "data_sha256",
    "device",
    "evaluations_per_image",
    "max_evaluations",
    "max_images",
    "num_images_in_memory",
    "num_pilot_evaluations",
    "num_processes",
    "num_rounds",
    "seed",
    "shard",
    "target_se",
    "versions",  # but for this package's own
)


def read_report(path: str | Path) -> dict[str, Any]:
    r"""A report from its file, checked as `check_report` does.

    Raises:
        ValueError: a file that is not there, or not such a report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`report` must be a JSON file of `ddpm-vlb evaluate`, got {str(path)!r}: {error}") from error
    check_report(report)
    return report


def check_report(report: Any) -> None:
    r"""Raise `ValueError` unless a report is complete, of finite Python numbers, and agrees with itself."""
    if not isinstance(report, dict):
        raise ValueError(f"`report` must be a dictionary, got {type(report).__name__}.")
    sampled = str(report.get("method")).startswith("sampled")
    for key, kind in (REPORT_KEYS | (SAMPLED_KEYS if sampled else {})).items():
        if key not in report:
            raise ValueError(f"`report` must have the key {key!r}, got {', '.join(sorted(map(str, report)))}.")
        value = report[key]
        if value is None and (key == "standard_error" and report["num_images"] == 1 or key == "per_image" and sampled):
            continue
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"`report` must have a {kind.__name__} for {key!r}, got {type(value).__name__}.")
    check_plain(report, "report")
    config = report["config"]
    missing = [key for key in REQUIRED_SETTINGS if key not in config]
    if missing:
        raise ValueError(f"`report` must say in its config what was scored, got none of {', '.join(missing)}.")
    count, transitions, per_image = report["num_images"], report["transitions"], report["per_image"]
    for key, kinds in (("transitions", (float, int, type(None))), ("per_image", (float, int)), ("timesteps", (int,))):
        for index, value in enumerate(report[key] or ()):
            if type(value) not in kinds:
                raise ValueError(f"`report.{key}[{index}]` must be a number, got {value!r}.")
    for key in ("num_train_timesteps", "num_steps", "num_pixel_levels"):
        if type(config[key]) is not int or config[key] < 1:
            raise ValueError(f"`report.config.{key}` must be a positive integer, got {config[key]!r}.")
    if not isinstance(config.get("versions", {}), dict):
        raise ValueError(f"`report.config.versions` must be a dictionary, got {config['versions']!r}.")
    full = report["method"].startswith("full")
    if not (sampled or full):
        raise ValueError(f"`report` must have a method that begins with 'full' or 'sampled', got {report['method']!r}.")
    evaluations = report["num_network_evaluations"]
    if count < 1 or evaluations < 1 or (full and evaluations % (count * config["num_steps"])):
        raise ValueError(
            f"`report` must have evaluated {'each image at every step' if full else 'some images'}, got {evaluations} network"
            f" evaluations of {count} images."
        )
    if full and None in transitions:
        raise ValueError("`report` must have a number for every timestep of a full sweep, got null.")
    if (config["num_steps"] < config["num_train_timesteps"]) != (config["inference_timesteps"] is not None):
        raise ValueError(
            f"`report` must name the sub-sequence it is of, and only then, got {config['num_steps']} steps of"
            f" {config['num_train_timesteps']} on {config['inference_timesteps']}."
        )
    if report["standard_error"] is not None and report["standard_error"] < 0:
        raise ValueError(f"`report` must have a standard error that is not negative, got {report['standard_error']}.")
    lengths = (len(transitions), len(report["timesteps"]), count if per_image is None else len(per_image))
    if lengths != (config["num_steps"] - 1, config["num_steps"] - 1, count):
        raise ValueError(
            "`report` must have one transition and one timestep per step but the first, and one number per image, got"
            f" {lengths} for {config['num_steps']} steps and {count} images."
        )
    terms = [report["prior"], report["transitions_total"], report["decoder"]]
    if min(terms) < 0 and not sampled:
        raise ValueError(f"`report` must have terms that are not negative, got {terms}.")
    total = report["bits_per_dim"]
    _check_same("terms that sum to its total", sum(terms), total)
    if per_image is not None:
        _check_same("images whose mean is its total", math.fsum(per_image) / count, total)
    if full:
        _check_same("transitions that sum to their total", math.fsum(transitions), report["transitions_total"])
    else:
        _check_sampled(report)
    if full and count > 1:
        error = math.sqrt(math.fsum((value - total) ** 2 for value in per_image) / (count - 1) / count)
        _check_same("a standard error that its images have", error, report["standard_error"])


def _check_sampled(report: dict[str, Any]) -> None:
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
        if not (isinstance(interval, list) and len(interval) == 2 and all(type(x) in (int, float) for x in interval)):
            raise ValueError(f"`report` must have two numbers for {key!r}, got {interval!r}.")
        _check_same(f"a {key} about its total", sum(interval) / 2, report["bits_per_dim"])
        # Student's quantile is nowhere below the normal one.
        normal = NormalDist().inv_cdf(0.5 + report["confidence_level"] / 2)
        if interval[1] - interval[0] < 2 * normal * error * (1 - 1e-9):
            raise ValueError(f"`report` must have a {key} as wide as its error says, got {interval} for {error}.")
    first, *others = [stratum.get("bits_per_dim") if isinstance(stratum, dict) else None for stratum in report["strata"]] or [
        None
    ]
    if any(type(value) not in (int, float) for value in (first, *others)):
        raise ValueError("`report` must have the bits per dimension of each of its strata.")
    _check_same("a decoder that is its first stratum", first, report["decoder"])
    _check_same("strata that sum to its transitions", math.fsum(others), report["transitions_total"])
    counts = report["evaluations_per_timestep"]
    if len(counts) != report["config"]["num_steps"] or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"`report` must count the evaluations at each of its {report['config']['num_steps']} timesteps.")
    if sum(counts) > report["num_network_evaluations"] or any(
        (value is None) != (n == 0) for value, n in zip(report["transitions"], counts[1:])
    ):
        raise ValueError("`report` must have a term where it made evaluations, and evaluations that it counts.")


def _check_same(what: str, got: float, expected: float) -> None:
    if not abs(got - expected) <= 1e-9 * max(1.0, abs(expected)):
        raise ValueError(f"`report` must have {what}, got {got} and {expected}.")


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


def public_report(report: dict[str, Any], repository: str) -> dict[str, Any]:
    r"""A report as it may be shown: the checkpoint under the name of its repository, no path of this machine, and no setting
    that is not known here."""
    config = {
        key: report["config"][key] for key in report["config"] if key in (*SETTINGS, *FURTHER_SETTINGS, *REQUIRED_SETTINGS)
    }
    if config.get("checkpoint") != repository:
        config.pop("revision", None)  # of another repository
    config |= {"checkpoint": repository, "dataset": public_name(str(config["dataset"]))}
    if config.get("command"):
        config["command"] = shlex.join(public_name(word) for word in shlex.split(config["command"]))
    known = {*REPORT_KEYS, *SAMPLED_KEYS, *FURTHER_KEYS}
    return {key: value for key, value in report.items() if key in known} | {"config": config}


def public_name(name: str) -> str:
    r"""A name as it may be shown: of an absolute path, or one that leads out of a folder, the last part."""
    flag, equals, value = name.partition("=")
    if equals and flag.startswith("--"):
        return f"{flag}={public_name(value)}"
    local = name.startswith(("/", "~", "../", "./", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    return PurePath(name.replace("\\", "/")).name if local else name


def check_context(context: dict[str, Any]) -> dict[str, Any]:
    r"""Further settings that a caller may say, as they are.

    Raises:
        ValueError: a setting that reports do not know.
    """
    known = (*SETTINGS, *REQUIRED_SETTINGS, *FURTHER_SETTINGS)
    for name in context:
        if name not in known:
            raise ValueError(f"`context` must have settings that reports know, got {name!r}.")
    return dict(context)
