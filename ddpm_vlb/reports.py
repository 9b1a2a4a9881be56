r"""Reports: what was scored, what came out, and how sure it is; as JSON, a table, a plot, and scores of the images.

**Errors.** The N images are a sample of more such images (`data_error`), and each image's bound is an average over noise of
which few draws were taken (`monte_carlo_error`, given these images). A sampled evaluation measures both (`sampled_bound.py`);
`standard_error` is the root of the sum of their squares. After a full sweep the standard deviation of the per-image numbers
over :math:`\sqrt N` covers both (`standard_error`), and the noise's part is bounded: the draws at different timesteps are
independent, and at each timestep the variance over images is at least the noise's (law of total variance), so that

.. math:: \mathrm{Var}_\mathrm{noise}\left[\bar L\right] \le \frac{1}{N} \sum_t \mathrm{Var}_\mathrm{images}[L_t],

of which the smaller of this bound and `standard_error` is reported, and no `data_error`.

**Merging.** Shards of a data set are weighted by their images, more evaluations of the same images (another seed) by their
evaluations: never by their variances, which go with the estimates. Both are independent of each other given the images.
"""

import functools
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .cards import check_report
from .files import write_atomically
from .sampled_bound import BoundEstimate

CONFIDENCE = 0.95
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


def student_quantile(degrees_of_freedom: float) -> float:
    r"""Half the width of a two-sided interval of Student's distribution, in standard errors."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, degrees_of_freedom))


def report_of_estimate(
    estimate: BoundEstimate, timesteps: Sequence[int], num_images: int, config: dict[str, Any]
) -> dict[str, Any]:
    r"""The report of a sampled evaluation.

    Args:
        estimate: of the N images.
        timesteps: of the grid that was scored, ascending, K.
        num_images: N.
        config: what was scored, and with what.

    Returns:
        As `make_report`, and: `data_error`; `monte_carlo_interval`, for the bound of these images, and `confidence_interval`,
        for that of more such images (`None` for a single one), of `confidence_level`; `strata`, the sums over groups of
        timesteps; `evaluations_per_timestep` (K, the pilot's apart). A term of `transitions` is `None` where no evaluation
        fell. `per_image` and `per_image_monte_carlo_error` are `None` unless all images were evaluated alike.
    """
    decoder, total = estimate.bins[0].bits_per_dim, sum(one.bits_per_dim for one in estimate.bins[1:])
    report = {
        "bits_per_dim": estimate.prior + decoder + total,
        "standard_error": None,
        "monte_carlo_error": estimate.monte_carlo_error,
        "data_error": estimate.data_error,
        "degrees_of_freedom": estimate.degrees_of_freedom,
        "prior": estimate.prior,
        "transitions": [value if math.isfinite(value) else None for value in estimate.terms[1:].tolist()],
        "transitions_total": total,
        "decoder": decoder,
        "timesteps": list(timesteps[1:]),
        "strata": [
            {
                "timesteps": [timesteps[one.first], timesteps[one.last]],
                "bits_per_dim": one.bits_per_dim,
                "monte_carlo_error": one.monte_carlo_error,
                "num_network_evaluations": one.num_evaluations,
            }
            for one in estimate.bins
        ],
        "evaluations_per_timestep": estimate.term_evaluations.tolist(),
        "method": "sampled",
        "num_images": num_images,
        "num_network_evaluations": estimate.num_evaluations,
        "per_image": None if estimate.per_image is None else estimate.per_image.tolist(),
        "per_image_monte_carlo_error": None if estimate.per_image_error is None else estimate.per_image_error.tolist(),
        "config": config | {"num_rounds": estimate.num_rounds, "num_pilot_evaluations": estimate.num_pilot_evaluations},
    }
    return _with_intervals(report)


def _with_intervals(report: dict[str, Any]) -> dict[str, Any]:
    r"""The report with the errors and intervals that follow from `monte_carlo_error` and `data_error`."""
    value, freedom = report["bits_per_dim"], report["degrees_of_freedom"]
    noise, images = report["monte_carlo_error"], report["data_error"]

    def interval(error: float, freedom: float) -> list[float]:
        half = student_quantile(freedom) * error
        return [value - half, value + half]

    total = None if images is None else math.hypot(noise, images)
    both = None
    if total:
        # Satterthwaite's, for the sum of two variances.
        both = interval(total, total**4 / (noise**4 / freedom + images**4 / (report["num_images"] - 1)))
    return report | {
        "standard_error": total,
        "confidence_level": CONFIDENCE,
        "monte_carlo_interval": interval(noise, freedom),
        "confidence_interval": both,
    }


def make_report(output, **context: Any) -> dict[str, Any]:
    r"""The report of a `VLBOutput`.

    Args:
        output: what `VLBDDPMPipeline.evaluate_nll` returned for N images.
        context: further entries of `config`, such as the data set and the checkpoint.

    Returns:
        A dictionary of plain Python values: means over images in bits/dim (`bits_per_dim`, `prior`, `transitions`, ascending
        in t as `timesteps` says, `transitions_total`, `decoder`), `standard_error` and `monte_carlo_error` (bits/dim, `None`
        for a single image), `method`, `num_images`, `num_network_evaluations`, `per_image` (bits/dim of each image) and
        `config`.

    Raises:
        ValueError: a sampled output, which lacks what a report says of its timesteps; `evaluate` reports on those.
    """
    if output.transitions is None:
        raise ValueError(
            "`output` must be of method='full', got a sampled one: `ddpm_vlb.evaluation.evaluate` makes reports of those."
        )
    terms = torch.cat([output.decoder[:, None], output.transitions], dim=1)
    squares = (terms - terms.mean(dim=0)).square().sum().item()
    config = {**output.config, **context}
    means = output.transitions.mean(dim=0)
    report = full_report(
        output.prior, output.decoder, output.transitions_total, means, squares, output.timesteps.tolist(), config
    )
    return report | {"num_network_evaluations": output.num_network_evaluations}


def full_report(
    prior: torch.Tensor,
    decoder: torch.Tensor,
    transitions_total: torch.Tensor,
    transitions: torch.Tensor,
    squares: float,
    timesteps: list[int],
    config: dict[str, Any],
) -> dict[str, Any]:
    r"""As `make_report`, from sums.

    Args:
        prior, decoder, transitions_total: of each image in bits/dim, `(N,)`.
        transitions: means over images, ascending in t, `(K - 1,)`.
        squares: the sums of squares of decoder and transitions about their means over images, summed over all steps.
        timesteps: of `transitions`.
        config: what was scored, and with what.
    """
    values = prior + decoder + transitions_total
    count = len(values)
    standard_error = monte_carlo_error = None
    if count > 1:
        standard_error = (values.var() / count).sqrt().item()
        monte_carlo_error = min(standard_error, math.sqrt(squares / (count - 1) / count))
    return {
        "bits_per_dim": values.mean().item(),
        "standard_error": standard_error,
        "monte_carlo_error": monte_carlo_error,
        "prior": prior.mean().item(),
        "transitions": transitions.tolist(),
        "transitions_total": transitions_total.mean().item(),
        "decoder": decoder.mean().item(),
        "timesteps": timesteps,
        "method": "full",
        "num_images": count,
        "num_network_evaluations": count * (len(transitions) + 1),
        "per_image": values.tolist(),
        "config": config,
    }


def merge_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    r"""One report of several: of disjoint shards of a data set, or of more evaluations of the same images.

    Args:
        reports: at least two, of the same model, settings and method.

    Raises:
        ValueError: reports that do not belong together, with the reason: other models, settings or methods, shards or seeds
            that overlap, other images under the same name.
    """
    if len(reports) < 2:
        raise ValueError(f"`reports` must be at least two, got {len(reports)}.")
    for report in reports:
        check_report(report)
        if "shard" not in report["config"] or "data_sha256" not in report["config"]:
            raise ValueError("`reports` must say which images they are of (config.shard, config.data_sha256).")
    # Shards of one seed first: then seeds are of the same images.
    by_seed: dict[str, dict[str, Any]] = {}
    for report in reports:
        key = json.dumps(report["config"]["seed"])
        by_seed[key] = _merge_two(by_seed[key], report) if key in by_seed else report
    return functools.reduce(_merge_two, by_seed.values())


def _merge_two(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    first, second = one["config"], other["config"]
    for name, a, b in (
        [("method", one["method"], other["method"])]
        + [
            (f"config.{key}", first.get(key), second.get(key))
            for key in sorted(first.keys() | second.keys())
            if key not in FREE_SETTINGS
        ]
        + [("config.versions.ddpm_vlb", *(config.get("versions", {}).get("ddpm_vlb") for config in (first, second)))]
    ):
        if a != b:
            raise ValueError(f"`reports` must agree in {name} to be merged, got {a!r} and {b!r}.")
    shards, others = _shards(first), _shards(second)
    if first["shard"]["of"] != second["shard"]["of"]:
        raise ValueError(
            f"`reports` must cut the data set alike, got {first['shard']['of']} and {second['shard']['of']} shards."
        )
    if shards == others:
        return _merge_evaluations(one, other)
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
    return _merge_shards(one, other)


def _shards(config: dict[str, Any]) -> dict[int, str]:
    r"""The shards of a report and what their images hash to."""
    return dict(zip(config["shard"]["indices"], config["data_sha256"]))


def _seeds(config: dict[str, Any]) -> list[int]:
    return config["seed"] if isinstance(config["seed"], list) else [config["seed"]]


def _merge_evaluations(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    common = set(_seeds(one["config"])) & set(_seeds(other["config"]))
    if common or None in _seeds(one["config"]) + _seeds(other["config"]):
        raise ValueError(
            f"`reports` of the same images must have seeds of their own, got {sorted(common, key=str) or None} in both."
        )
    counts = one["num_network_evaluations"], other["num_network_evaluations"]
    weights = [count / sum(counts) for count in counts]
    config = one["config"] | {
        "seed": sorted(_seeds(one["config"]) + _seeds(other["config"])),
        "versions": _versions(one, other),
    }
    merged = _weighted(one, other, weights) | {"num_images": one["num_images"]}
    for key in ("per_image", "per_image_monte_carlo_error"):
        if one.get(key) is not None and other.get(key) is not None:
            pairs = zip(one[key], other[key])
            merged[key] = [(_mean if key == "per_image" else _of_mean)(pair, weights) for pair in pairs]
    data = None
    if one.get("data_error") is not None and other.get("data_error") is not None:
        data = math.sqrt(weights[0] * one["data_error"] ** 2 + weights[1] * other["data_error"] ** 2)
    return _finish(merged, data, config)


def _merge_shards(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    counts = one["num_images"], other["num_images"]
    total = sum(counts)
    weights = [count / total for count in counts]
    shards = _shards(one["config"]) | _shards(other["config"])
    indices = sorted(shards)
    config = one["config"] | {
        "shard": {"of": one["config"]["shard"]["of"], "indices": indices},
        "data_sha256": [shards[index] for index in indices],
        "versions": _versions(one, other),
    }
    merged = _weighted(one, other, weights) | {"num_images": total}
    for key in ("per_image", "per_image_monte_carlo_error"):
        if one.get(key) is not None and other.get(key) is not None:
            merged[key] = _interleave(one, other, key)
    data = None
    if one["method"].startswith("sampled"):
        # Within shards, and between them less what their noise adds.
        squares = 0.0
        for report, count in zip((one, other), counts):
            squares += (count - 1) * count * (report["data_error"] or 0.0) ** 2
            squares += count * (report["bits_per_dim"] - merged["bits_per_dim"]) ** 2
            squares -= count * (1 - count / total) * report["monte_carlo_error"] ** 2
        data = math.sqrt(max(squares, 0.0) / (total - 1) / total)
    return _finish(merged, data, config)


def _versions(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    r"""The versions of both; where they differ, one after the other."""
    first, second = (report["config"].get("versions", {}) for report in (one, other))
    both = {name: {*f"{first.get(name, '?')}".split(", "), *f"{second.get(name, '?')}".split(", ")} for name in first | second}
    return {name: ", ".join(sorted(versions)) for name, versions in both.items()}


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values))


def _of_mean(errors: Sequence[float], weights: Sequence[float]) -> float:
    r"""The standard error of a weighted mean of independent numbers."""
    return math.hypot(*(weight * error for weight, error in zip(weights, errors)))


def _weighted(one: dict[str, Any], other: dict[str, Any], weights: Sequence[float]) -> dict[str, Any]:
    r"""What is a weighted mean of two reports, or a sum, and the Monte Carlo error of it."""
    merged = dict(one)
    for key in ("prior", "transitions_total", "decoder"):
        merged[key] = _mean((one[key], other[key]), weights)
    merged["bits_per_dim"] = merged["prior"] + merged["transitions_total"] + merged["decoder"]
    errors = one["monte_carlo_error"], other["monte_carlo_error"]
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
    merged["per_image"] = merged["per_image_monte_carlo_error"] = None
    if one["method"].startswith("full"):
        merged["transitions"] = [_mean(pair, weights) for pair in zip(one["transitions"], other["transitions"])]
        del merged["per_image_monte_carlo_error"]
        return merged
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
    variances = [(weight * error) ** 2 for weight, error in zip(weights, errors)]
    spread = sum(v**2 / report["degrees_of_freedom"] for v, report in zip(variances, (one, other)))
    merged["degrees_of_freedom"] = sum(variances) ** 2 / spread if spread else 1.0
    return merged


def _interleave(one: dict[str, Any], other: dict[str, Any], key: str) -> list[float]:
    r"""Numbers of images in the order of the data set: image i is in shard i modulo the number of shards."""
    of = one["config"]["shard"]["of"]
    placed = {}
    for report in (one, other):
        indices = report["config"]["shard"]["indices"]
        # An image's place in its report tells its place in the data set: the shards' images take turns.
        numbers = [base + index for base in range(0, of * len(report[key]), of) for index in indices][: len(report[key])]
        placed |= dict(zip(numbers, report[key]))
    return [placed[number] for number in sorted(placed)]


def _finish(merged: dict[str, Any], data_error: float | None, config: dict[str, Any]) -> dict[str, Any]:
    of_one = ("command", "num_images_in_memory", "num_pilot_evaluations", "num_rounds")
    merged |= {"config": {key: value for key, value in config.items() if key not in of_one}}
    if merged["method"].startswith("full"):
        values = torch.tensor(merged["per_image"], dtype=torch.float64)
        merged["standard_error"] = (values.var() / len(values)).sqrt().item()
        if merged["monte_carlo_error"] is None:
            merged["monte_carlo_error"] = merged["standard_error"]  # of single images nothing else is known
        return merged
    return _with_intervals(merged | {"data_error": data_error})


def write_report(report: dict[str, Any], path: str | Path) -> None:
    r"""Write a report as JSON, whole or not at all.

    Raises:
        ValueError: numbers that are not finite, which JSON does not know.
    """
    write_atomically(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def format_report(report: dict[str, Any], baselines: dict[str, float] | None = None) -> str:
    r"""A report as a table of lines, in bits/dim; `baselines` maps names to bits/dim for comparison."""
    error = report["standard_error"]
    sampled = report["method"].startswith("sampled")
    rows = [
        ("L_T   prior", report["prior"], ""),
        (f"L_t   {len(report['transitions'])} KL terms", report["transitions_total"], ""),
        ("L_0   decoder", report["decoder"], ""),
        ("total", report["bits_per_dim"], "" if error is None else f"+- {error:.4f} (standard error)"),
        *((f"baseline: {name}", value, "") for name, value in (baselines or {}).items()),
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'':{width}}   bits/dim", *(f"{name:{width}}   {value:8.4f}  {note}".rstrip() for name, value, note in rows)]
    lines.insert(4, "-" * (width + 11))
    config = report["config"]
    if sampled:
        level = f"{report['confidence_level']:.0%}"
        low, high = report["monte_carlo_interval"]
        lines.append(f"these images: {low:.4f} to {high:.4f} ({level}; Monte Carlo error {report['monte_carlo_error']:.4f})")
        if report["confidence_interval"] is not None:
            low, high = report["confidence_interval"]
            own = own_error(report["data_error"], 4)
            lines.append(f"more such images: {low:.4f} to {high:.4f} ({level}; {own})")
    elif report["monte_carlo_error"] is not None:
        lines.append(f"Monte Carlo error of these images' number: at most {report['monte_carlo_error']:.4f}")
    target = config.get("target_se")
    if sampled and target is not None and report["monte_carlo_error"] > target:
        lines.append(f"stopped at {config['max_evaluations']} evaluations, before a Monte Carlo error of {target}")
    if sampled and config.get("num_images_in_memory", report["num_images"]) < report["num_images"]:
        lines.append(f"evaluated on a random {config['num_images_in_memory']} of these images, which the memory held")
    if "half_precision_bias" in report:
        lines.append(half_precision_line(report["half_precision_bias"], config["dtype"]))
    sweep = report["num_images"] * config["num_steps"]
    evaluations = f"{report['num_images']} images, {report['num_network_evaluations']} network evaluations"
    lines += [
        f"{evaluations} (a full sweep: {sweep}{_hint(report, sweep)})" if sampled else evaluations,
        "all {num_train_timesteps} steps".format(**config)
        if config["inference_timesteps"] is None
        else "the {num_steps}-step model on a sub-sequence of {num_train_timesteps}".format(**config),
        f"{config['num_pixel_levels']} levels, {config['variance_type']}, clip_sample {str(config['clip_sample']).lower()},"
        f" thresholding {str(config['thresholding']).lower()}, {config['dtype']}",
        f"decoder variance: {config['decoder_variance']}",
    ]
    if config.get("calibration"):
        lines.append(f"calibrated on {config['calibration']}")
    shard = config.get("shard")
    if shard and len(shard["indices"]) < shard["of"]:
        lines.append(f"shard {', '.join(map(str, shard['indices']))} of {shard['of']} (counted from 0): a part of the data set")
    if config.get("quantized"):
        lines.append(f"the images were brought onto {config['num_pixel_levels']} levels first: another data set")
    return "\n".join(lines)


def _hint(report: dict[str, Any], sweep: int) -> str:
    return ", which --method full makes for less" if report["num_network_evaluations"] > sweep else ""


def own_error(data_error: float, digits: int) -> str:
    r"""What the images themselves bring of an error, in words: zero is what its estimate is cut off at."""
    return f"the images' own error {data_error:.{digits}f}" if data_error else "the images' own error too small to be seen"


def half_precision_line(bias: dict[str, Any], dtype: str) -> str:
    r"""What half precision adds to a number, as a line."""
    what = "" if bias["includes_rounding_of_weights"] else " (of the arithmetic; the weights were rounded before)"
    return f"{dtype} instead of float32: {bias['bits_per_dim']:+.5f} +- {bias['monte_carlo_error']:.5f} bits/dim{what}"


def plot_terms(report: dict[str, Any], path: str | Path) -> None:
    r"""Draw the terms of the bound over t (log axis, bits/dim) with their running sum, as a PNG file.

    Of a sampled report the terms are those of groups of timesteps, divided by their number, with a band of two Monte Carlo
    standard errors.

    Raises:
        ValueError: a report with timesteps that were not evaluated (`None` in `transitions`) and no strata either.
    """
    # No pyplot: no global state, and no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timesteps, transitions = report["timesteps"], report["transitions"]
    lowest = (report["config"]["inference_timesteps"] or [0])[-1]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    floor = 1e-12
    if report.get("strata"):
        grid = [lowest, *timesteps]
        row_of = {timestep: row for row, timestep in enumerate(grid)}
        edges, means, errors, ends, running = [], [], [], [lowest], [report["decoder"]]
        for stratum in report["strata"][1:]:
            first, last = (row_of[timestep] for timestep in stratum["timesteps"])
            count = last - first + 1
            edges += [grid[first] - 0.5, grid[last] + 0.5]
            means += [stratum["bits_per_dim"] / count] * 2
            errors += [2 * stratum["monte_carlo_error"] / count] * 2
            ends.append(grid[last])
            running.append(running[-1] + stratum["bits_per_dim"])
        lower = [max(mean - error, floor, 0.05 * mean) for mean, error in zip(means, errors)]
        axes.fill_between(edges, lower, [max(m + e, floor) for m, e in zip(means, errors)], alpha=0.3, linewidth=0)
        axes.semilogy(
            edges, [max(mean, floor) for mean in means], label="$L_t$ (KL terms; means over strata, 2 standard errors)"
        )
    elif None in transitions:
        raise ValueError("`report` must have a term for every timestep to be drawn, got some that were not evaluated.")
    else:
        axes.semilogy(timesteps, [max(value, floor) for value in transitions], ".-", markersize=3, label="$L_t$ (KL terms)")
        ends, running = [lowest, *timesteps], [report["decoder"]]
        for value in transitions:
            running.append(running[-1] + value)
    axes.semilogy([lowest], [max(report["decoder"], floor)], "s", color="tab:red", label="$L_0$ (decoder)")
    last = timesteps[-1] if timesteps else lowest
    axes.semilogy([last], [max(report["prior"], floor)], "D", color="tab:green", label="$L_T$ (prior)")
    axes.set_xlabel("timestep t")
    axes.set_ylabel("bits/dim per term")
    total = axes.twinx()
    total.plot(ends, running, color="tab:gray", linestyle="--", label="running sum")
    total.set_ylabel("bits/dim, summed from t = 0")
    total.set_ylim(0, 1.05 * max(report["bits_per_dim"], math.ulp(1.0)))
    handles = [*axes.get_legend_handles_labels()[0], *total.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower left")
    error = "" if report["standard_error"] is None else f" $\\pm$ {report['standard_error']:.4f}"
    axes.set_title(f"{report['bits_per_dim']:.4f}{error} bits/dim, {report['num_images']} images")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def write_scores(report: dict[str, Any], path: str | Path) -> None:
    r"""The images' scores as a table, CSV or Parquet by the name's ending: `image`, `bits_per_dim`, and, where it is known,
    `monte_carlo_error`.

    Raises:
        ValueError: a report without scores of its images, or another ending.
    """
    import pyarrow
    from pyarrow import csv, parquet

    path = Path(path)
    check_scores_path(path)
    if report["per_image"] is None:
        raise ValueError("`report` must have scores of its images: a full sweep, or evaluations of each image, got none.")
    shard = report["config"].get("shard", {"of": 1, "indices": [0]})
    count = len(report["per_image"])
    numbers = [base + index for base in range(0, shard["of"] * count, shard["of"]) for index in shard["indices"]][:count]
    columns = {"image": numbers, "bits_per_dim": report["per_image"]}
    if report.get("per_image_monte_carlo_error") is not None:
        columns["monte_carlo_error"] = report["per_image_monte_carlo_error"]
    buffer = io.BytesIO()
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(pyarrow.table(columns), buffer)
    write_atomically(path, buffer.getvalue())


def check_scores_path(path: str | Path) -> None:
    r"""Raise `ValueError` unless a name ends as `write_scores` can write it."""
    if Path(path).suffix not in (".csv", ".parquet"):
        raise ValueError(f"`scores` must end in .csv or .parquet, got {str(path)!r}.")


def image_grid(images: Sequence, columns: int | None = None):
    r"""PIL images side by side, small ones enlarged without smoothing so that they can be looked at.

    Args:
        images: PIL images of one size.
        columns: images per row; by default as square as it gets.
    """
    from diffusers.utils import make_image_grid
    from PIL import Image, ImageOps

    scale = max(1, 64 // max(images[0].size))
    columns = columns or max(c for c in range(1, len(images) + 1) if len(images) % c == 0 and c * c <= len(images))
    size = tuple(side * scale for side in images[0].size)
    framed = [ImageOps.expand(image.resize(size, Image.NEAREST).convert("RGB"), 2, "slategray") for image in images]
    return make_image_grid(framed, len(images) // columns, columns)
