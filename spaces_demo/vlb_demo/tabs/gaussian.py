r"""The first tab: a Gaussian, and why one adds logarithms where one could multiply likelihoods."""

import math
from typing import Any

import gradio as gr
import numpy as np
import torch

from .. import pictures
from ..layout import Tab
from ..models import Models
from ..texts import Refusal, T, both, lettering

ENDPOINT = "gaussian"
MAX_POINTS = 1000
MAX_SAMPLES = 500

CODE = """\
import torch

# Likelihood, log-likelihood and negative log-likelihood of the points.
points = torch.tensor({points}).repeat({repeats})
likelihood = points.prod().item()  # in float32, as networks are
log_likelihood = points.double().log().sum().item()
print(likelihood, log_likelihood, -log_likelihood)

# Samples of the Gaussian, and their log-density.
mean = torch.tensor([{mean_1}, {mean_2}], dtype=torch.float64)
covariance = torch.tensor({covariance}, dtype=torch.float64)
noise = torch.randn({num_samples}, 2, generator=torch.Generator().manual_seed({seed}), dtype=torch.float64)
samples = mean + noise @ torch.linalg.cholesky(covariance).T
log_density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(samples)
print(samples.mean(dim=0), -log_density.mean().item())
"""


def parse_points(text: str) -> list[float]:
    r"""Positive numbers, from text with commas or blanks between them."""
    words = str(text).replace("、", ",").replace("，", ",").replace(",", " ").split()
    try:
        points = [float(word) for word in words]
    except ValueError:
        points = []
    if not 1 <= len(points) <= 100 or not all(math.isfinite(point) and point > 0 for point in points):
        raise Refusal("points", got=str(text)[:60])
    return points


def compute(
    mean_1: float, mean_2: float, sigma_1: float, sigma_2: float, correlation: float, num_samples: int, seed: int, points: str,
    repeats: int,
) -> tuple[dict[str, Any], str, str]:  # fmt: skip
    r"""Numbers, picture and code of a two-dimensional Gaussian and of the likelihood of some points.

    Args:
        mean_1, mean_2, sigma_1, sigma_2, correlation: of the Gaussian.
        num_samples, seed: of its samples.
        points: likelihoods of points, any positive numbers.
        repeats: how often the points are added.
    """
    values, repeats, num_samples = parse_points(points), int(repeats), int(num_samples)
    if not (sigma_1 > 0 and sigma_2 > 0 and -1 < correlation < 1):
        raise Refusal("covariance")
    if not (1 <= repeats and len(values) * repeats <= MAX_POINTS):
        raise Refusal("too_many_points", limit=MAX_POINTS, got=len(values) * repeats)
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise Refusal("too_many_samples", limit=MAX_SAMPLES, got=num_samples)
    mean = torch.tensor([mean_1, mean_2], dtype=torch.float64)
    cross = correlation * sigma_1 * sigma_2
    covariance = torch.tensor([[sigma_1**2, cross], [cross, sigma_2**2]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(int(seed))
    factor = torch.linalg.cholesky(covariance)
    samples = mean + torch.randn(num_samples, 2, generator=generator, dtype=torch.float64) @ factor.T
    gaussian = torch.distributions.MultivariateNormal(mean, covariance)
    log_density = gaussian.log_prob(samples)

    repeated = np.tile(np.array(values), repeats)
    with np.errstate(over="ignore", under="ignore"):
        products = np.cumprod(repeated.astype(np.float32))
    sums = np.cumsum(np.log(repeated))
    wrong = _wrong(products)
    numbers = {
        "points": len(repeated),
        "likelihood_float32": float(products[-1]) if np.isfinite(products[-1]) else None,
        "log_likelihood": float(sums[-1]),
        "negative_log_likelihood": -float(sums[-1]),
        "product_fails_at_point": int(wrong[0]) + 1 if len(wrong) else None,
        "sample_mean": samples.mean(dim=0).tolist(),
        "sample_negative_log_likelihood": -log_density.mean().item(),
        "entropy": gaussian.entropy().item(),
    }

    picture = _plots(mean, factor, samples, products, sums)
    rows = [
        (both("likelihood_float32"), f"{products[-1]:.6g}"),
        (both("log_likelihood"), f"{sums[-1]:.6g}"),
        (both("negative_log_likelihood"), f"{-sums[-1]:.6g}"),
        (both("sample_nll"), f"{numbers['sample_negative_log_likelihood']:.4f}"),
        (both("entropy"), f"{numbers['entropy']:.4f}"),
    ]
    code = CODE.format(
        points=values,
        repeats=repeats,
        mean_1=float(mean_1),
        mean_2=float(mean_2),
        covariance=covariance.tolist(),
        num_samples=num_samples,
        seed=int(seed),
    )
    return numbers, picture + pictures.table(rows, strong=(2,)), code


def _plots(mean: torch.Tensor, factor: torch.Tensor, samples: torch.Tensor, products: np.ndarray, sums: np.ndarray) -> str:
    r"""The Gaussian with its samples; and what product and sum of the logarithms say, point after point.

    Args:
        mean, factor: of the Gaussian, `(2,)` and `(2, 2)`, the Cholesky factor of its covariance.
        samples: `(N, 2)`.
        products, sums: of the first likelihoods and of their logarithms.
    """
    wrong = _wrong(products)

    def draw(plane, line) -> None:
        angles = np.linspace(0, 2 * math.pi, 100)
        circle = np.stack([np.cos(angles), np.sin(angles)])
        for radius, alpha in ((1, 0.9), (2, 0.55), (3, 0.3)):
            ellipse = mean.numpy()[:, None] + radius * factor.numpy() @ circle
            plane.plot(*ellipse, color=pictures.BLUE, alpha=alpha)
        plane.plot(*samples.T.numpy(), ".", color=pictures.ORANGE, markersize=3.5, alpha=0.8)
        plane.plot(*mean.numpy(), "+", color=pictures.INK, markersize=9)
        plane.set(xlim=(-10, 10), ylim=(-7.4, 7.4), aspect="equal", xlabel="x₁", ylabel="x₂")
        plane.set_title(lettering("deviations"))
        counts = np.arange(1, len(products) + 1)
        with np.errstate(divide="ignore"):
            logs = np.log10(products, where=products > 0, out=np.full(len(products), np.nan))
        line.plot(counts, sums / math.log(10), color=pictures.BLUE, label=lettering("sum_of_logs"))
        line.plot(counts, logs, ".", color=pictures.ORANGE, markersize=4, label=lettering("product"))
        if len(wrong):
            line.axvline(wrong[0] + 1, color=pictures.RED, linestyle="--", label=lettering("product_fails"))
        line.set(xlabel=lettering("points"), ylabel=lettering("log_likelihood"))
        # Room below what falls, or above what rises, for the legend.
        low, high = line.get_ylim()
        falls = sums[-1] < 0
        line.set_ylim(low - 0.4 * (high - low) * falls, high + 0.4 * (high - low) * (not falls))
        line.legend(loc="lower left" if falls else "upper left")

    return pictures.plot(draw, 2, "A two-dimensional Gaussian with samples; product and sum of likelihoods", height=3.4)


def _wrong(products: np.ndarray) -> np.ndarray:
    r"""Where a product has left what a float can hold."""
    return np.flatnonzero((products == 0) | ~np.isfinite(products))


DEFAULTS = (0.0, 0.0, 2.0, 1.0, 0.6, 200, 0, "0.1, 0.5, 0.2, 0.4", 25)


def build(tab: Tab, models: Models, model: gr.Dropdown) -> None:
    r"""Lay the tab out; no model has anything to do with it."""
    mean_1, mean_2, sigma_1, sigma_2, correlation, num_samples, seed, points, repeats = DEFAULTS
    with tab.controls():
        inputs = [
            gr.Slider(-4, 4, mean_1, step=0.1, label="μ₁"),
            gr.Slider(-4, 4, mean_2, step=0.1, label="μ₂"),
            gr.Slider(0.1, 4, sigma_1, step=0.1, label="σ₁"),
            gr.Slider(0.1, 4, sigma_2, step=0.1, label="σ₂"),
            gr.Slider(-0.95, 0.95, correlation, step=0.05, label=T("correlation")),
            gr.Slider(1, MAX_SAMPLES, num_samples, step=1, label=T("samples")),
            tab.seed(seed),
            gr.Textbox(points, label=T("points"), info=T("points_info"), max_length=1000),
            gr.Slider(1, 100, repeats, step=1, label=T("repeats")),
        ]
    tab.show(compute(*DEFAULTS))
    tab.live(compute, inputs)
