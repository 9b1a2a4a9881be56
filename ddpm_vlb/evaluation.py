r"""From scored images to a report: means over images, their errors, and files that are written whole or not at all.

**Errors.** The N images are a sample of a population, and each image's bound is an average over noise of which one draw was
taken. The standard deviation of the per-image numbers over :math:`\sqrt N` covers both (`standard_error`). The part due to the
noise alone, given these images (`monte_carlo_error`), is a sum over timesteps, since the draws at different timesteps are
independent; at each timestep the variance over images is at least the noise's (law of total variance), so that

.. math:: \mathrm{Var}_\mathrm{noise}\left[\bar L\right] \le \frac{1}{N} \sum_t \mathrm{Var}_\mathrm{images}[L_t],

of which the smaller of this bound and `standard_error` is reported: an upper bound, not an estimate.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .bound import prior_kl, vlb_terms
from .files import write_atomically
from .gaussians import levels_to_samples, nats_to_bits_per_dim, working_dtype
from .images import images_to_levels
from .noise import keyed_normal, keyed_uniform, mix


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
    """
    count = len(output.bits_per_dim)
    standard_error = monte_carlo_error = None
    if count > 1:
        terms = torch.cat([output.decoder[:, None], output.transitions], dim=1)
        standard_error = (output.bits_per_dim.var() / count).sqrt().item()
        monte_carlo_error = min(standard_error, (terms.var(dim=0).sum() / count).sqrt().item())
    return {
        "bits_per_dim": output.bits_per_dim.mean().item(),
        "standard_error": standard_error,
        "monte_carlo_error": monte_carlo_error,
        "prior": output.prior.mean().item(),
        "transitions": output.transitions.mean(dim=0).tolist(),
        "transitions_total": output.transitions.sum(dim=1).mean().item(),
        "decoder": output.decoder.mean().item(),
        "timesteps": output.timesteps.tolist(),
        "method": "full",
        "num_images": count,
        "num_network_evaluations": output.num_network_evaluations,
        "per_image": output.bits_per_dim.tolist(),
        "config": {**output.config, **context},
    }


class NLLEstimate(NamedTuple):
    r"""An unbiased estimate of the bound of N images, in bits/dim, float64 of shape `(N,)` each."""

    bits_per_dim: torch.Tensor
    prior: torch.Tensor
    transitions: torch.Tensor
    decoder: torch.Tensor
    num_network_evaluations: int


@torch.no_grad()
def estimate_nll(
    pipe, images: Any, seeds: Sequence[int], evaluations_per_image: int = 32, batch_size: int = 256
) -> NLLEstimate:
    r"""The bound of images from a few network evaluations each: a look while training, where a full sweep would take hours.

    :math:`L_T` is in closed form, :math:`L_0` is evaluated once, and :math:`\sum_t L_t` is :math:`(T - 1) / n` times the sum of
    n terms, one timestep drawn from each of n equal strata of [1, T). Timesteps and noise are keyed by the image's seed: two
    networks scored with the same seeds meet the same noise, and their difference has far less error than either number.

    Args:
        pipe: a `VLBDDPMPipeline` with an unconditional network.
        images: N images of any kind that `evaluate_nll` takes.
        seeds: one per image.
        evaluations_per_image: network evaluations of each image, at least 2; all T make a full sweep.
        batch_size: pairs of image and timestep per network call.

    Raises:
        ValueError: fewer than 2 evaluations (1 where T is 1), images or seeds that do not fit, a network whose output is not
            finite.
    """
    scheduler, unet = pipe.scheduler, pipe.unet
    reverse = scheduler.reverse_process()
    num_steps, num_pixel_levels = len(reverse.forward), scheduler.config.num_pixel_levels
    levels = images_to_levels(images, num_pixel_levels, channels=unet.config.in_channels, size=pipe.image_size)
    if len(seeds) != len(levels):
        raise ValueError(f"`seeds` must be one per image ({len(levels)}), got {len(seeds)}.")
    if evaluations_per_image < min(2, num_steps):
        raise ValueError(f"`evaluations_per_image` must be at least {min(2, num_steps)}, got {evaluations_per_image}.")
    drawn = min(evaluations_per_image, num_steps) - 1
    jitter = torch.tensor([[keyed_uniform(mix(seed, place)) for place in range(drawn)] for seed in seeds], dtype=torch.float64)
    places = (torch.arange(drawn) + jitter.reshape(len(seeds), drawn)) / max(drawn, 1)
    transitions = 1 + (places * (num_steps - 1)).long().clamp(max=max(num_steps - 2, 0))
    timesteps = torch.cat([torch.zeros(len(seeds), 1, dtype=torch.int64), transitions], dim=1)

    device, dtype = pipe.device, working_dtype(pipe.device)
    image_of, flat = torch.arange(len(seeds)).repeat_interleave(drawn + 1), timesteps.flatten()
    was_training = unet.training
    unet.eval()
    nats = []
    for chunk in torch.arange(len(flat)).split(batch_size):
        samples = levels_to_samples(levels[image_of[chunk]].to(device), num_pixel_levels, dtype)
        keys = [mix(mix(seeds[image], 2**32), step) for image, step in zip(image_of[chunk].tolist(), flat[chunk].tolist())]
        noise = keyed_normal(keys, samples.shape[1:]).to(device)
        noisy_samples = reverse.forward.q_sample(samples, noise, flat[chunk])
        model_output = unet(noisy_samples.to(unet.dtype), flat[chunk].to(device)).sample
        terms = vlb_terms(reverse, model_output, samples, noisy_samples, flat[chunk], num_pixel_levels, validate_args=False)
        finite = torch.isfinite(model_output).flatten(1).all(dim=1)
        nats.append(torch.where(finite, terms, torch.nan).cpu().double())
    unet.train(was_training)

    num_dimensions = levels[0].numel()
    terms = nats_to_bits_per_dim(torch.cat(nats).reshape(timesteps.shape), num_dimensions)
    if not bool(torch.isfinite(terms).all()):
        image, column = (~torch.isfinite(terms)).nonzero()[0].tolist()
        raise ValueError(
            f"`unet` must give finite outputs, got a term of {terms[image, column].item()} bits/dim for image {image} at"
            f" timestep {int(timesteps[image, column])}."
        )
    samples = levels_to_samples(levels.to(device), num_pixel_levels, dtype)
    prior = nats_to_bits_per_dim(prior_kl(reverse.forward, samples).cpu().double(), num_dimensions)
    total = (num_steps - 1) / max(drawn, 1) * terms[:, 1:].sum(dim=1)
    return NLLEstimate(prior + total + terms[:, 0], prior, total, terms[:, 0], terms.numel())


def write_report(report: dict[str, Any], path: str | Path) -> None:
    r"""Write a report as JSON, whole or not at all.

    Raises:
        ValueError: numbers that are not finite, which JSON does not know.
    """
    write_atomically(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def format_report(report: dict[str, Any], baselines: dict[str, float] | None = None) -> str:
    r"""A report as a table of lines, in bits/dim; `baselines` maps names to bits/dim for comparison."""
    error = report["standard_error"]
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
    lines += [
        f"{report['num_images']} images, {report['num_network_evaluations']} network evaluations",
        "all {num_train_timesteps} steps".format(**config)
        if config["inference_timesteps"] is None
        else "the {num_steps}-step model on a sub-sequence of {num_train_timesteps}".format(**config),
        f"{config['num_pixel_levels']} levels, {config['variance_type']}, clip_sample {str(config['clip_sample']).lower()},"
        f" thresholding {str(config['thresholding']).lower()}, {config['dtype']}",
        f"decoder variance: {config['decoder_variance']}",
    ]
    if config.get("quantized"):
        lines.append(f"the images were brought onto {config['num_pixel_levels']} levels first: another data set")
    return "\n".join(lines)


def plot_terms(report: dict[str, Any], path: str | Path) -> None:
    r"""Draw the terms of the bound over t (log axis, bits/dim) with their running sum, as a PNG file.

    Raises:
        ValueError: a report with timesteps that were not evaluated (`None` in `transitions`).
    """
    import io

    # No pyplot: no global state, and no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timesteps, transitions = report["timesteps"], report["transitions"]
    if None in transitions:
        raise ValueError("`report` must have a term for every timestep to be drawn, got some that were not evaluated.")
    lowest = (report["config"]["inference_timesteps"] or [0])[-1]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.semilogy(timesteps, [max(value, 1e-12) for value in transitions], ".-", markersize=3, label="$L_t$ (KL terms)")
    axes.semilogy([lowest], [max(report["decoder"], 1e-12)], "s", color="tab:red", label="$L_0$ (decoder)")
    last = timesteps[-1] if timesteps else lowest
    axes.semilogy([last], [max(report["prior"], 1e-12)], "D", color="tab:green", label="$L_T$ (prior)")
    axes.set_xlabel("timestep t")
    axes.set_ylabel("bits/dim per term")
    total = axes.twinx()
    running = [report["decoder"]]
    for value in transitions:
        running.append(running[-1] + value)
    total.plot([lowest, *timesteps], running, color="tab:gray", linestyle="--", label="running sum")
    total.set_ylabel("bits/dim, summed from t = 0")
    total.set_ylim(0, 1.05 * max(report["bits_per_dim"], math.ulp(1.0)))
    handles = [*axes.get_legend_handles_labels()[0], *total.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower left")
    error = "" if report["standard_error"] is None else f" $\\pm$ {report['standard_error']:.4f}"
    axes.set_title(f"{report['bits_per_dim']:.4f}{error} bits/dim, {report['num_images']} images")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


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
