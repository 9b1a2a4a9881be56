r"""Whether the numbers of a report are plain and finite, and agree with each other. Which there are, says `schema.py`.

What follows from other entries is computed again: sums, means, errors, intervals, counts. A report is checked whenever one is
made, read or merged, so that each rule must hold of every true report, those of before among them.
"""

import math
import re
from collections.abc import Mapping, Sequence
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
# What a term that cannot be negative may come out below zero by, in float32.
BELOW_ZERO = 1e-6
LARGEST_PILOT = 1000  # evaluations, and one for each stratum twice


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
    config, count, per_image = report["config"], report["num_images"], report["per_image"]
    _check_entries("per_image", per_image or (), (float, int))
    if method.columns is None:
        _check_entries("transitions", report["transitions"], (float, int, type(None)))
        _check_entries("timesteps", report["timesteps"], (int,))
    _check_grid(config)
    _check_seeds(config["seed"])
    _check_counts(report, method)
    if per_image is not None and len(per_image) != count:
        raise ValueError(f"`report` must have one number per image, got {len(per_image)} for {count} images.")
    _check_images(report)
    error = report["standard_error"]
    _require("a standard error that is not negative", error is None or error >= 0, error)
    _require("no standard error of a single image", error is None or count > 1, error)
    if method.columns is None:
        _check_terms(report, method)
    if per_image is not None:
        _check_same("images whose mean is its total", math.fsum(per_image) / len(per_image), report["bits_per_dim"])
        if method.name != "sampled" and count > 1:
            if error is None:
                raise ValueError("`report` must have a standard error of several images, got None.")
            _check_same("a standard error that its images have", error_of_mean(per_image), error)
    if method.name == "full":
        _check_full(report)
    elif method.columns is None:
        _check_sampled(report)
    if "half_precision_bias" in report:
        _check_half_precision(report["half_precision_bias"], config["dtype"])
    for rule, holds, got in () if method.rules is None else method.rules(report):
        _require(rule, holds, got)


def error_of_mean(values: Sequence[float]) -> float:
    r"""The standard error of the mean of at least two numbers."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def student_quantile(degrees_of_freedom: float, confidence: float = 0.95) -> float:
    r"""Half the width of a two-sided interval of Student's distribution, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 0.5 + confidence / 2))


def freedom_of_sum(noise: float, images: float, freedom: float, report: Mapping[str, Any]) -> float:
    r"""The degrees of freedom of the Monte Carlo error and the images' own together (Satterthwaite).

    The images' own variance is what theirs differ by less what the noise adds, so that however little is left of it, no more
    is known of the sum than N images tell. Reports from before they said whether they are reliable did not know this.
    """
    others = report["num_images"] - 1
    both = math.hypot(noise, images) ** 4 / (noise**4 / freedom + images**4 / others)
    return min(both, others) if "reliable" in report else both


def num_seeds(seed: int | list | None) -> int:
    r"""How many evaluations of the same images a report is of."""
    return len(seed) if isinstance(seed, list) else 1


def num_parts(config: Mapping[str, Any]) -> int:
    r"""Of how many evaluations, each of one shard and one seed, a report is."""
    return len((config.get("shard") or {"indices": [0]})["indices"]) * num_seeds(config["seed"])


def _require(rule: str, holds: bool, got: Any) -> None:
    if not holds:
        raise ValueError(f"`report` must have {rule}, got {got}.")


def _check_same(what: str, got: float, expected: float) -> None:
    _require(what, abs(got - expected) <= 1e-9 * max(1.0, abs(expected)), f"{got} and {expected}")


def _check_entries(name: str, values: Any, kinds: tuple[type, ...], least: float = -math.inf) -> None:
    if type(values) not in (list, tuple):
        raise ValueError(f"`report.{name}` must be a list, got {values!r}.")
    for index, value in enumerate(values):
        if type(value) not in kinds or (value is not None and value < least):
            what = "a number" if least == -math.inf else f"a number from {least:g} on"
            raise ValueError(f"`report.{name}[{index}]` must be {what}, got {value!r}.")


def _check_counts(report: Mapping[str, Any], method: Method) -> None:
    config, count, evaluations = report["config"], report["num_images"], report["num_network_evaluations"]
    wanted, what = None, "some images"
    if method.name == "full":
        # The mean of several sweeps has more to its method than its name.
        sweeps = re.fullmatch(r"full(?:, mean of (\d+) sweeps)?", report["method"])
        if sweeps is None:
            rule = "a method that begins with 'full', of one sweep or the mean of several"
            raise ValueError(f"`report` must have {rule}, got {report['method']}.")
        wanted = count * config["num_steps"] * int(sweeps[1] or 1) * num_seeds(config["seed"])
        what = "each image at every step"
    elif method.columns is None:
        _require("the method 'sampled'", report["method"] == "sampled", report["method"])
    if count < 1 or evaluations < 1 or wanted not in (None, evaluations):
        raise ValueError(
            f"`report` must have evaluated {what}, got {evaluations} network evaluations of {count} images in"
            f" {config['num_steps']} steps."
        )


def _check_grid(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the timesteps that were scored are some of all T."""
    grid, steps, total = config["inference_timesteps"], config["num_steps"], config["num_train_timesteps"]
    if steps != (total if grid is None else len(grid)):
        raise ValueError(
            f"`report` must name the sub-sequence it is of, and only then, got {steps} steps of {total} on {grid}."
        )
    _check_entries("config.inference_timesteps", grid or [], (int,))
    inside = grid is None or total > grid[0] and grid[-1] >= 0 and all(a > b for a, b in zip(grid, grid[1:]))
    _require(f"timesteps that descend within [0, {total})", inside, grid)
    wanted = config["num_inference_steps"]
    _require("as many steps as were asked for", wanted in (None, steps), f"{steps} for {wanted}")
    betas = config.get("trained_betas")
    _require(f"a beta for each of its {total} steps", betas is None or len(betas) == total, betas and len(betas))


def _check_seeds(seed: int | list | None) -> None:
    if isinstance(seed, list):
        _check_entries("config.seed", seed, (int,), least=0)
        _require("several seeds, each once, where it is of several", len(set(seed)) == len(seed) > 1, seed)


def _check_images(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless what a report says of its images is of so many, and of the shards that it names."""
    config, count = report["config"], report["num_images"]
    most = config.get("max_images")
    _require("at most as many images as were to be taken", most is None or count <= most, f"{count} for {most}")
    held = config.get("num_images_in_memory", count)
    _require("at most all images in memory, and all where each has a number", held <= count, f"{held} of {count}")
    if report["per_image"] is not None:
        _require("at most all images in memory, and all where each has a number", held == count, f"{held} of {count}")
    shard, sha256 = config.get("shard") or {"of": 1, "indices": [0]}, config.get("data_sha256")
    if set(shard) != {"of", "indices"} or type(shard["of"]) is not int:
        raise ValueError(f"`report.config.shard` must say how many shards there are and which it is of, got {shard}.")
    of, indices = shard["of"], shard["indices"]
    _check_entries("config.shard.indices", indices, (int,), least=0)
    fits = indices == sorted(set(indices)) and 0 < len(indices) <= count and indices[-1] < of
    _require("shards of those that there are, each once", fits, shard)
    if sha256 is not None:
        texts = all(type(one) is str for one in sha256)
        distinct = texts and len(set(sha256)) == len(sha256) == len(indices)
        _require("a SHA-256 of its images for each of its shards, and other images in each", distinct, sha256)
    shape = config.get("image_shape", [1, 1, 1])
    _check_entries("config.image_shape", shape, (int,), least=1)
    _require("images of the shape (C, H, W)", len(shape) == 3, shape)
    about = {name: report[name] for name in ("image_numbers", "image_names", "image_labels") if name in report}
    for name, values in about.items():
        of_images = report["per_image"] is not None and len(values) == count
        _require(f"{name} of the images in 'per_image', and one for each", of_images, len(values))
    if (numbers := about.get("image_numbers")) is not None:
        _check_entries("image_numbers", numbers, (int,), least=0)
        # Of images taken at random a shard is every so many of those that were taken, whatever their numbers.
        own = config.get("image_seed") is not None or {number % of for number in numbers} == set(indices)
        ascend = own and all(a < b for a, b in zip(numbers, numbers[1:]))
        _require("images of its shards, in their order", ascend, f"{numbers[:8]} for {shard}")


def _check_terms(report: Mapping[str, Any], method: Method) -> None:
    config, transitions = report["config"], report["transitions"]
    steps, lengths = config["num_steps"], (len(transitions), len(report["timesteps"]))
    if lengths != (steps - 1, steps - 1):
        raise ValueError(
            f"`report` must have one transition and one timestep per step but the first, got {lengths} for {steps} steps."
        )
    grid = list(range(steps)) if config["inference_timesteps"] is None else config["inference_timesteps"][::-1]
    _require(
        "the timesteps that were scored, ascending, without the first", report["timesteps"] == grid[1:], report["timesteps"]
    )
    terms = [report["prior"], report["transitions_total"], report["decoder"]]
    # An estimate may lie below zero; a term cannot, and L_T is in closed form.
    exact = (
        terms[:1] if method.name == "sampled" else [*terms, *(value + BELOW_ZERO for value in transitions if value is not None)]
    )
    _require("terms that are not negative", min(exact) >= 0, terms if min(terms) < 0 else min(exact) - BELOW_ZERO)
    _check_same("terms that sum to its total", sum(terms), report["bits_per_dim"])


def _check_full(report: Mapping[str, Any]) -> None:
    transitions, noise, error = report["transitions"], report.get("monte_carlo_error"), report["standard_error"]
    if None in transitions:
        raise ValueError("`report` must have a number for every timestep of a full sweep, got null.")
    _check_same("transitions that sum to their total", math.fsum(transitions), report["transitions_total"])
    _require("images whose numbers are not negative", min(report["per_image"]) >= -BELOW_ZERO, min(report["per_image"]))
    if "monte_carlo_error" in report:
        _require("a Monte Carlo error where it has several images", (noise is None) == (error is None), noise)
    if noise is not None and error is not None:
        # Of shards the errors are put together, of seeds the images: the first is no longer the smaller of two then.
        whole = len((report["config"].get("shard") or {"indices": [0]})["indices"]) == 1
        most = math.inf if num_seeds(report["config"]["seed"]) > 1 else error if whole else error * 2**0.5
        holds = 0 <= noise <= most * (1 + 1e-9)
        _require(
            "a Monte Carlo error that is not negative, and no larger than its standard error", holds, f"{noise} of {error}"
        )
    _check_errors_of_images(report)


def _check_errors_of_images(report: Mapping[str, Any]) -> None:
    errors = report.get("per_image_monte_carlo_error")
    if errors is None:
        return
    _check_entries("per_image_monte_carlo_error", errors, (float, int), least=0)
    _require("an error for each of the images that have a number", len(errors) == len(report["per_image"] or ()), len(errors))
    both = math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
    _check_same("a Monte Carlo error of all its images'", both, report["monte_carlo_error"])
    freedom = report.get("per_image_degrees_of_freedom")  # reports of before have none
    if freedom is not None:
        _check_entries("per_image_degrees_of_freedom", freedom, (float, int), least=1)
        _require("degrees of freedom for each of these errors", len(freedom) == len(errors), len(freedom))


def _check_sampled(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the errors, intervals and strata of a sampled report agree with each other."""
    data, noise, freedom = report.get("data_error"), report["monte_carlo_error"], report["degrees_of_freedom"]
    for key, value, least in (
        ("data_error", data or 0, 0),
        ("monte_carlo_error", noise, 0),
        ("degrees_of_freedom", freedom, 1),
    ):
        if type(value) not in (int, float) or value < least * (1 - 1e-9):
            what = "that is not negative" if least == 0 else f"from {least} on"
            raise ValueError(f"`report` must have a number {what} for {key!r}, got {value!r}.")
    if "reliable" in report:
        doubt = report.get("doubt")
        _require("a 'doubt' where it is not reliable, and nowhere else", report["reliable"] == (doubt is None), doubt)
    count, error, level = report["num_images"], report["standard_error"], report["confidence_level"]
    _require("the images' own error where it has several", (data is None) == (count == 1), f"{data} of {count} images")
    _require("a confidence level between 0 and 1", 0 < level < 1, level)
    if error is not None:
        _check_same("a standard error of both its errors", math.hypot(noise, data or 0), error)
    _check_interval("monte_carlo_interval", report, noise, freedom)
    interval = report.get("confidence_interval")
    if error is None and interval is not None:
        raise ValueError(f"`report` must have no 'confidence_interval' where there is no error, got {interval!r}.")
    if error and data is not None:
        _check_interval("confidence_interval", report, error, freedom_of_sum(noise, data, freedom, report))
    if report["per_image"] is not None and report.get("per_image_monte_carlo_error") is None:
        raise ValueError("`report` must have an error for each of the images that have a number, got none.")
    _check_errors_of_images(report)
    _check_evaluations(report)
    _check_strata(report)


def _check_interval(key: str, report: Mapping[str, Any], error: float, freedom: float) -> None:
    interval = report.get(key)
    if not (isinstance(interval, list) and len(interval) == 2 and all(type(x) in (int, float) for x in interval)):
        raise ValueError(f"`report` must have two numbers for {key!r}, got {interval!r}.")
    half = student_quantile(freedom, report["confidence_level"]) * error
    _check_same(f"a {key} about its total", sum(interval) / 2, report["bits_per_dim"])
    _check_same(f"a {key} as wide as its error and its degrees of freedom say", interval[1] - interval[0], 2 * half)


def _check_evaluations(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the evaluations that are counted are all that were made."""
    config, counts, total = report["config"], report["evaluations_per_timestep"], report["num_network_evaluations"]
    steps = config["num_steps"]
    if len(counts) != steps or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"`report` must count the evaluations at each of its {steps} timesteps, got {counts}.")
    parts = num_parts(config)
    pilot, counted = config.get("num_pilot_evaluations"), sum(counts)
    if pilot is not None:
        holds = pilot >= 0 and counted + pilot == total
    else:  # of merged reports of before nobody knows, but that no pilot is that large
        holds = parts > 1 and 0 <= total - counted <= parts * (LARGEST_PILOT + 2 * len(report["strata"]))
    _require("as many network evaluations as it counts, and its pilot's", holds, f"{total} for {counted} and {pilot}")
    each, most = config.get("evaluations_per_image"), config.get("max_evaluations")
    if parts == 1 and each is not None:
        _require(f"{each} evaluations of each image", counted == each * report["num_images"], counted)
    if parts == 1 and most is not None:
        _require(f"at most {most} network evaluations", total <= most, total)


def _check_strata(report: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` unless the strata are of all timesteps, one after the other, and sum to what is said of these."""
    strata, counts, transitions = report["strata"], report["evaluations_per_timestep"], report["transitions"]
    for index, stratum in enumerate(strata):
        whole = isinstance(stratum, dict) and all(
            type(stratum.get(key)) in kinds
            for key, kinds in (
                ("timesteps", (list,)),
                ("bits_per_dim", (int, float)),
                ("monte_carlo_error", (int, float)),
                ("num_network_evaluations", (int,)),
            )
        )
        if not whole or stratum["monte_carlo_error"] < 0 or stratum["num_network_evaluations"] < 0:
            raise ValueError(
                f"`report.strata[{index}]` must have timesteps, bits per dimension, an error and a count that are not negative,"
                f" got {stratum!r}."
            )
    values = [stratum["bits_per_dim"] for stratum in strata]
    _require("the bits per dimension of each of its strata", bool(values), values)
    _check_same("a decoder that is its first stratum", values[0], report["decoder"])
    _check_same("strata that sum to its transitions", math.fsum(values[1:]), report["transitions_total"])
    if any((value is None) != (n == 0) for value, n in zip(transitions, counts[1:])):
        raise ValueError("`report` must have a term where it made evaluations, and only there.")
    grid = [(report["config"]["inference_timesteps"] or [0])[-1], *report["timesteps"]]
    first = 0
    for index, stratum in enumerate(strata):
        ends = stratum["timesteps"]
        last = grid.index(ends[1]) if len(ends) == 2 and ends[1] in grid else -1
        tiles = last >= first and ends == [grid[first], grid[last]] and (index > 0 or last == 0)
        _require("strata of all its timesteps, one after the other, the decoder's alone first", tiles, ends)
        made, rows = stratum["num_network_evaluations"], range(first, last + 1)
        counted = sum(counts[row] for row in rows)
        _require("strata that count the evaluations at their timesteps", made == counted, f"{made} and {counted} at {ends}")
        if index > 0 and made:
            mean = sum(counts[row] * (transitions[row - 1] or 0.0) for row in rows) / made
            _check_stratum(report, stratum, mean * len(rows))
        first = last + 1
    _require("strata of all its timesteps, one after the other, the decoder's alone first", first == len(grid), len(strata))


def _check_stratum(report: Mapping[str, Any], stratum: Mapping[str, Any], expected: float) -> None:
    r"""A stratum's sum weighs each evaluation by its probability, the mean of its single terms by how often they were made:
    they differ by noise, and in a merged report by how evaluations and images are shared. No true report may be refused, and
    of few evaluations the error may have come out far too small: the bounds are wide."""
    value, count = stratum["bits_per_dim"], stratum["num_network_evaluations"]
    error = max(stratum["monte_carlo_error"], report["monte_carlo_error"])
    share = 0.9 if num_parts(report["config"]) > 1 else min(0.9, 3 / math.sqrt(count))
    most = 30 * error + share * (abs(value) + abs(expected)) + BELOW_ZERO
    rule = f"strata that are about the sum of their terms, at {stratum['timesteps']}"
    _require(rule, abs(value - expected) <= most, f"{value} and {expected}")


def _check_half_precision(bias: Mapping[str, Any], dtype: str) -> None:
    kinds = {
        "bits_per_dim": (int, float),
        "monte_carlo_error": (int, float),
        "num_network_evaluations": (int,),
        "includes_rounding_of_weights": (bool,),
    }
    whole = all(type(bias.get(key)) in of for key, of in kinds.items())
    if not whole or bias["monte_carlo_error"] < 0 or bias["num_network_evaluations"] < 1:
        raise ValueError(
            f"`report.half_precision_bias` must have {', '.join(kinds)}, none of the last three negative, got {bias}."
        )
    # In float32 too: of a network whose weights are kept in fewer digits, by layerwise casting.
    holds = dtype.removeprefix("autocast-") in ("float16", "bfloat16", "float32")
    _require("a bias of half precision only where there is one", holds, f"the dtype {dtype!r}")
