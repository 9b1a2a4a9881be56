r"""Other likelihoods of a data set, where each image has a number of its own: importance-weighted, and that of the ODE."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .gaussians import nats_to_bits_per_dim
from .importance_weighted import log_weights, summarize_weights
from .noise import mix
from .probability_flow import Flow, which_trace
from .scoring import Scorer

ODE_TOLERANCE = 1e-4


class Method(NamedTuple):
    r"""How images are scored.

    Args:
        name: for the report.
        images_per_batch: that go together.
        cost: network evaluations of an image, `None` where only the run tells.
        score: from levels `(B, C, H, W)`, B seeds and classes `(B,)` or `None`, columns of B numbers each, in bits/dim where
            they are bits, and `num_network_evaluations` in all. `"bits_per_dim"` is among the columns.
    """

    name: str
    images_per_batch: int
    cost: int | None
    score: Any


def importance_weighted(scorer: Scorer, k: int, batch_size: int) -> Method:
    r"""See `importance_weighted.py`."""
    steps = len(scorer.reverse.forward)

    def score(levels: torch.Tensor, seeds: Sequence[int], labels: torch.Tensor | None) -> dict[str, Any]:
        weights = log_weights(scorer, levels, seeds, k, labels, batch_size)
        result = summarize_weights(weights, levels[0].numel(), weights.numel() * steps)
        columns = ("bits_per_dim", "vlb", "effective_sample_size")
        return {name: getattr(result, name).tolist() for name in columns} | {
            "num_network_evaluations": result.num_network_evaluations
        }

    return Method(f"iw, k = {k}", max(1, batch_size // k), k * steps, score)


def ode(scorer: Scorer, trained, dimensions: int, trace: str | None) -> Method:
    r"""See `probability_flow.py`."""
    flow, kind = Flow(scorer, trained), which_trace(trace, dimensions)

    def score(levels: torch.Tensor, seeds: Sequence[int], labels: torch.Tensor | None) -> dict[str, Any]:
        # As `ode_nll` with one draw.
        (seed,) = seeds
        probes = 1 if kind == "hutchinson" else None
        nats, evaluations = flow.terms(levels, mix(seed, 0), probes, ODE_TOLERANCE, ODE_TOLERANCE, labels)
        terms = nats_to_bits_per_dim(torch.tensor([nats], dtype=torch.float64), dimensions)
        columns = dict(zip(("density", "dequantisation", "reconstruction"), terms.T.tolist()))
        return columns | {"bits_per_dim": terms.sum(dim=1).tolist(), "num_network_evaluations": evaluations}

    return Method(f"ode, {kind} trace", 1, None, score)


def report_of_images(method: Method, results: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    r"""The report of all images' columns: means, the standard error over images of the number that counts, and each image's."""
    names = [name for name in results[0] if name != "num_network_evaluations"]
    columns = {name: [value for result in results for value in result[name]] for name in names}
    values = torch.tensor(columns["bits_per_dim"], dtype=torch.float64)
    count = len(values)
    return {
        **{name: math.fsum(column) / count for name, column in columns.items()},
        "standard_error": (values.std() / count**0.5).item() if count > 1 else None,
        "method": method.name,
        "num_images": count,
        "num_network_evaluations": sum(result["num_network_evaluations"] for result in results),
        "per_image": columns["bits_per_dim"],
        "config": config,
    }


def format_images(report: dict[str, Any]) -> str:
    r"""Such a report as lines."""
    error = "" if report["standard_error"] is None else f" +- {report['standard_error']:.4f} (standard error over images)"
    lines = [f"{report['bits_per_dim']:.4f} bits/dim{error}: {report['method']}"]
    if report["method"].startswith("iw"):
        size = report["effective_sample_size"]
        lines.append(f"the bound of the same trajectories, each by itself: {report['vlb']:.4f}; {size:.1f} of them count")
    else:
        parts = ("density", "dequantisation", "reconstruction")
        lines.append(", ".join(f"{part} {report[part]:.4f}" for part in parts))
        lines.append("the ODE is another model than the chain: neither of their numbers bounds the other")
    lines.append(f"{report['num_images']} images, {report['num_network_evaluations']} network evaluations")
    return "\n".join(lines)
