r"""What a calibration found, as plain values, lines and a plot."""

from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_png
from .measure import CalibrationResult, rounded

# Of the result, with their standard errors.
MEASURED = ("mean_squared_errors", "decoder_costs")
MEASURED += tuple(f"{name}_standard_error" for name in MEASURED)


def describe(result: CalibrationResult) -> dict[str, Any]:
    r"""What `calibrate` found, as plain values: beside the calibration itself, which lies in the scheduler's configuration."""
    config = result.scheduler.config["calibration"]
    names = ("dataset", "split", "num_images", "num_network_evaluations", "seed", "network_sha256", "num_inference_steps")
    of_images = ("image_column", "label_column", "convert", "resize", "center_crop", "image_seed", "max_images")
    return {
        **{name: config.get(name) for name in names},
        **{name: config[name] for name in of_images if name in config},
        "inference_timesteps": result.timesteps,
        "bits_per_dim": rounded(result.bits_per_dim),
        "standard_error": rounded(result.standard_error),
        "timesteps": config["timesteps"],
        **{name: rounded(getattr(result, name)) for name in MEASURED},
        "kinds": result.kinds,
    }


def format_calibration(result: CalibrationResult) -> str:
    r"""The best bounds by number of steps, as lines."""
    config = result.scheduler.config["calibration"]
    best, total = config["num_inference_steps"], len(result.bits_per_dim)
    counts = sorted({k for k in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 4000) if k < total} | {best, total})
    # No error beside them: what was fitted to these images suits them better than others, by more than theirs would say.
    lines = [f"{'steps':>6}   bits/dim   (of {config['num_images']} images, which the calibration has seen; evaluate others)"]
    for count in counts:
        lines.append(f"{count:>6}   {result.bits_per_dim[count - 1]:8.4f}{'   best' if count == best else ''}")
    kinds = ", ".join(f"{kind}: {result.kinds.count(kind)}" for kind in sorted(set(result.kinds)))
    lines.append(f"variances at {len(result.kinds)} timesteps: {kinds}; {result.num_network_evaluations} network evaluations")
    return "\n".join(lines)


def plot_calibration(result: CalibrationResult, path: str | Path) -> None:
    r"""Draw the best bound over the number of steps, and the prediction's error over t, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = result.scheduler.config["calibration"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    counts = np.arange(1, len(result.bits_per_dim) + 1)
    left.semilogx(counts, result.bits_per_dim)
    best = config["num_inference_steps"]
    left.plot([best], [result.bits_per_dim[best - 1]], "o", label=f"best: {best} steps, {result.bits_per_dim[best - 1]:.3f}")
    left.set_xlabel("number of steps K")
    left.set_ylabel("bits/dim of the best K-step model, images seen")
    left.legend()
    right.semilogy(config["timesteps"], result.mean_squared_errors, ".-", label=r"$E\|x - \hat x\|^2 / D$")
    right.axvspan(result.timesteps[-1], result.timesteps[0], alpha=0.15, label="the best chain")
    right.set_xlabel("timestep t")
    right.legend()
    write_png(path, figure)
