r"""Reports as JSON, a table, a plot, and scores of the images."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically, write_png
from ..parametrizations import CALIBRATED_DECODER, SINGLE_STEP_DECODER, VARIANCES
from ..words import counted
from .schema import Report

# The errors that are printed, each by a line.
LEGEND = {
    "standard error": "of the mean over such images, for the noise and for having these images and no others",
    "Monte Carlo error": "of the noise alone, for these very images; more evaluations make it smaller",
    "images' own error": "of having these images and no others; more images make it smaller",
}
# What `decoder_variance` of a report says, as a sentence on L_0.
DECODERS = {
    VARIANCES["fixed_small"].decoder: "L_0 decodes with the posterior variance of the step above the lowest one",
    VARIANCES["learned"].decoder: "L_0 decodes with the variance that the network gives for the lowest step",
    VARIANCES[
        "learned_range"
    ].decoder: "L_0 decodes with a variance that the network chooses: at least the posterior variance of"
    " the step above the lowest one, at most the lowest step's own beta",
    CALIBRATED_DECODER: "L_0 decodes with the error that the calibration measured at the lowest step",
    SINGLE_STEP_DECODER: "L_0 decodes with the beta of the only step",
}


def write_report(report: Mapping[str, Any], path: str | Path) -> None:
    r"""Write a report as JSON, whole or not at all.

    Raises:
        ValueError: anything that is no report.
    """
    write_atomically(path, (json.dumps(Report.of(report), indent=2, allow_nan=False) + "\n").encode())


def format_report(report: Mapping[str, Any], baselines: Mapping[str, float] | None = None) -> str:
    r"""A report as lines, in bits/dim; `baselines` maps names to bits/dim for comparison with the terms of the bound."""
    report = Report.of(report)
    if report.method.columns is not None:
        return "\n".join(_column_lines(report))
    lines = [*_term_table(report, baselines or {}), *_error_lines(report)]
    return "\n".join([*lines, *legend_lines(lines), *_setting_lines(report)])


def _column_lines(report: Report) -> Iterator[str]:
    r"""The number, and what it is made of or stands beside; of a method that gives each image numbers of its own."""
    method, columns = report.method, report.method.columns or {}
    error = "" if report["standard_error"] is None else f" +- {report['standard_error']:.4f} (standard error over images)"
    yield f"{report['bits_per_dim']:.4f} bits/dim{error}: {report['method']}"
    if method.line is not None:
        yield method.line.format(**report)
    elif len(columns) > 1:
        yield ", ".join(f"{words} {report[name]:.4f}" for name, words in columns.items() if name != "bits_per_dim")
    if "solver_error" in report:
        yield f"solver's error: within {report['solver_error']:.2g} bits/dim"
    if method.note is not None:
        yield method.note
    yield _counts(report)
    yield from _shard_lines(report)


def _term_table(report: Report, baselines: Mapping[str, float]) -> Iterator[str]:
    r"""The terms of the bound, a rule, their sum, and what it is compared with."""
    error = report["standard_error"]
    terms = [
        ("L_T   prior", report["prior"], ""),
        (f"L_t   {counted(len(report['transitions']), 'KL term')}", report["transitions_total"], ""),
        ("L_0   decoder", report["decoder"], ""),
    ]
    totals = [
        ("total", report["bits_per_dim"], "" if error is None else f"+- {error:.4f} (standard error)"),
        *((f"baseline: {name}", value, "") for name, value in baselines.items()),
    ]
    width = max(len(name) for name, _, _ in terms + totals)

    def lines(rows) -> Iterator[str]:
        yield from (f"{name:{width}}   {value:8.4f}  {note}".rstrip() for name, value, note in rows)

    yield f"{'':{width}}   bits/dim"
    yield from lines(terms)
    yield "-" * (width + 11)
    yield from lines(totals)


def _error_lines(report: Report) -> Iterator[str]:
    r"""How sure the number is, and of what."""
    config, sampled = report.config, report.method.name == "sampled"
    if sampled:
        if report.get("doubt"):
            yield f"NOT RELIABLE: {report['doubt']}"
        level = f"{report['confidence_level']:.0%}"
        low, high = report["monte_carlo_interval"]
        yield f"these images: {low:.4f} to {high:.4f} ({level}; Monte Carlo error {report['monte_carlo_error']:.4f})"
        if report["confidence_interval"] is not None:
            low, high = report["confidence_interval"]
            yield f"more such images: {low:.4f} to {high:.4f} ({level}; {own_error(report['data_error'], 4)})"
        target = config.get("target_se")
        if target is not None and report["monte_carlo_error"] > target:
            yield f"stopped at {config['max_evaluations']} evaluations, before a Monte Carlo error of {target}"
        if config.get("num_images_in_memory", report["num_images"]) < report["num_images"]:
            yield f"evaluated on a random {config['num_images_in_memory']} of these images, which the memory held"
    elif report.get("monte_carlo_error") is not None:
        yield f"these images: Monte Carlo error at most {report['monte_carlo_error']:.4f}"
    if "half_precision_bias" in report:
        yield half_precision_line(report["half_precision_bias"], config["dtype"])
    elif config["dtype"] not in ("float32", "float64"):
        yield f"{config['dtype']} instead of float32: by how much that changes the number was not measured"


def _setting_lines(report: Report) -> Iterator[str]:
    r"""What it cost, and what was scored."""
    config, sweep = report.config, report["num_images"] * report.config["num_steps"]
    evaluations = _counts(report)
    sampled = report.method.name == "sampled"
    yield f"{evaluations} (a full sweep: {sweep}{_hint(report, sweep)})" if sampled else evaluations
    if config["inference_timesteps"] is None:
        yield "all {num_train_timesteps} steps".format(**config)
    else:
        yield "the {num_steps}-step model on a sub-sequence of {num_train_timesteps}".format(**config)
    yield (
        f"{config['num_pixel_levels']} levels, {config['variance_type']}, clip_sample {str(config['clip_sample']).lower()},"
        f" thresholding {str(config['thresholding']).lower()}, {config['dtype']}"
    )
    yield DECODERS.get(config["decoder_variance"], f"decoder variance: {config['decoder_variance']}")
    if config.get("noise_process"):
        yield f"on the noise levels of a DDPM, from a network of {config['noise_process']}"
    if config.get("prompt"):
        each = " or, by its class, ".join(repr(prompt) for prompt in config["prompt"])
        yield f"of an image given the prompt: p(x | {each})"
    elif config.get("condition_sha256"):
        yield "of images given what the network was given (`condition_sha256`)"
    if config.get("calibration"):
        yield f"calibrated on {config['calibration']}"
    yield from _shard_lines(report)
    if config.get("quantized"):
        yield f"the images were brought onto {config['num_pixel_levels']} levels first: another data set"


def legend_lines(lines: Sequence[str]) -> list[str]:
    r"""What each kind of error means that some lines name, where they name several."""
    named = [name for name in LEGEND if any(name in line for line in lines)]
    return [f"  {name}: {LEGEND[name]}" for name in named] if len(named) > 1 else []


def _counts(report: Report) -> str:
    images, evaluations = report["num_images"], report["num_network_evaluations"]
    return f"{counted(images, 'image')}, {counted(evaluations, 'network evaluation')}"


def _shard_lines(report: Report) -> Iterator[str]:
    shard = report.config.get("shard")
    if shard and len(shard["indices"]) < shard["of"]:
        yield f"shard {', '.join(map(str, shard['indices']))} of {shard['of']} (counted from 0): a part of the data set"


def _hint(report: Report, sweep: int) -> str:
    return ", which --method full makes for less" if report["num_network_evaluations"] > sweep else ""


def own_error(data_error: float, digits: int) -> str:
    r"""What the images themselves bring of an error, in words: zero is what its estimate is cut off at."""
    return f"the images' own error {data_error:.{digits}f}" if data_error else "the images' own error too small to be seen"


def half_precision_line(bias: dict[str, Any], dtype: str) -> str:
    r"""What half precision adds to a number, as a line."""
    what = "" if bias["includes_rounding_of_weights"] else " (of the arithmetic; the weights were rounded before)"
    return f"{dtype} instead of float32: {bias['bits_per_dim']:+.5f} +- {bias['monte_carlo_error']:.5f} bits/dim{what}"


def plot_terms(report: Mapping[str, Any], path: str | Path) -> None:
    r"""Write `draw_terms` as a PNG file."""
    write_png(path, draw_terms(report))


def draw_terms(report: Mapping[str, Any]):
    r"""A figure of the terms of the bound over t (log axis, bits/dim) with their running sum.

    Of a sampled report the terms are those of groups of timesteps, divided by their number, with a band of two Monte Carlo
    standard errors.

    Raises:
        ValueError: a report of no such terms (`Report.has_terms`).
    """
    report = Report.of(report)
    if not report.has_terms:
        raise ValueError(f"`report` must have a term for every timestep to be drawn, got none of {report['method']!r}.")
    # No pyplot: no global state, and no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timesteps, transitions = report["timesteps"], report["transitions"]
    lowest = (report.config["inference_timesteps"] or [0])[-1]
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
    known = report["standard_error"] is not None and not report.get("doubt")
    error = f" $\\pm$ {report['standard_error']:.4f}" if known else ""
    axes.set_title(f"{report['bits_per_dim']:.4f}{error} bits/dim, {report['num_images']} images")
    return figure


def write_scores(report: Mapping[str, Any], path: str | Path) -> None:
    r"""The images' scores as a table, CSV or Parquet by the name's ending: `image`, its place in the data set, counted from 0;
    `bits_per_dim`; and, where they are known, its file's `name`, its `label`, `monte_carlo_error` and `degrees_of_freedom`.

    Raises:
        ValueError: a report without scores of its images, or another ending.
    """
    check_scores_path(path)
    report = Report.of(report)
    if report["per_image"] is None:
        raise ValueError("`report` must have scores of its images: a full sweep, or evaluations of each image, got none.")
    columns = {
        "image": report.image_numbers,
        "name": report.get("image_names"),
        "label": report.get("image_labels"),
        "bits_per_dim": report["per_image"],
        "monte_carlo_error": report.get("per_image_monte_carlo_error"),
        "degrees_of_freedom": report.get("per_image_degrees_of_freedom"),
    }
    write_table({name: column for name, column in columns.items() if column is not None}, path)


def write_table(columns: Mapping[str, Any], path: str | Path) -> None:
    r"""Columns of one length as a table, CSV or Parquet by the name's ending."""
    import pyarrow
    from pyarrow import csv, parquet

    path, buffer = Path(path), io.BytesIO()
    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(pyarrow.table(dict(columns)), buffer)
    write_atomically(path, buffer.getvalue())


def check_scores_path(path: str | Path, name: str = "scores") -> None:
    r"""Raise `ValueError` unless a name ends as `write_scores` can write it."""
    if Path(path).suffix not in (".csv", ".parquet"):
        raise ValueError(f"`{name}` must end in .csv or .parquet, got {str(path)!r}.")


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
    framed = [ImageOps.expand(image.resize(size, Image.Resampling.NEAREST).convert("RGB"), 2, "slategray") for image in images]
    return make_image_grid(framed, len(images) // columns, columns)
