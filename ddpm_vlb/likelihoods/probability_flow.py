r"""The likelihood of the probability-flow ODE (Song et al. 2021), image by image.

With :math:`\sigma = \sqrt{(1 - \bar\alpha) / \bar\alpha}` and :math:`u = x_t / \sqrt{\bar\alpha}` the network's noise
prediction is a velocity, and a density that is carried along it changes by its divergence:

.. math::
    \frac{du}{d\sigma} = \hat\epsilon(u, \sigma), \qquad \frac{d \log p(u)}{d\sigma} = -\nabla_u \cdot \hat\epsilon, \qquad
    \log p(u_0) = \log p(u_T) + \int_{\sigma_0}^{\sigma_T} \nabla_u \cdot \hat\epsilon \; d\sigma ,

with :math:`x_T = \sqrt{\bar\alpha_T} u_T` standard normal. It is solved over :math:`\log\sigma`, from the lowest timestep to
the highest; between timesteps :math:`\log\sigma` is a straight line, and the network is asked at fractions of a timestep.

**The end point.** Pixels on a grid have no density. The image is dequantised by the forward process itself, with the noise of
the lowest timestep, :math:`x_0 \sim q(x_0 | x)`, and read back by the model's decoder (Kingma et al. 2021):

.. math:: -\log P(x) \le E_q\left[ -\log p_\mathrm{ODE}(x_0) + \log q(x_0 | x) - \log p(x | x_0) \right].

This is a bound for the model "follow the ODE to :math:`x_0`, then decode". The ODE and the chain of reverse steps have other
marginals unless the network is perfect: neither number bounds the other. No network is trained below the lowest timestep, and
none is asked there.

**The trace** is exact, one derivative for each dimension, or Hutchinson's estimate: its mean over random signs z is that of
:math:`z^\top (\partial\hat\epsilon / \partial u)\, z`, and the signs stay the same along an image's path. Each image is
solved by itself, with steps of its own: what comes out does not depend on which other images there are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..bound import decoder_nll
from ..checks import NonFiniteOutput, check_count
from ..gaussians import nats_to_bits_per_dim
from ..model.scorer import Scorer
from ..noise import keyed_normal, mix
from ..outputs import Shown, mean_of_images
from .method import Columns

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

EXACT_DIMENSIONS = 256  # up to here the trace is exact unless something else is asked for
LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True, repr=False)
class ODENLL(Shown):
    r"""The ODE's bound of N images, float64 on the CPU.

    Args:
        bits_per_dim: `(N,)`, bits/dim, the mean over the draws of :math:`x_0`: `density + dequantisation + reconstruction`.
        density, dequantisation, reconstruction: :math:`-\log p_\mathrm{ODE}(x_0)`, :math:`\log q(x_0 | x)` and
            :math:`-\log p(x | x_0)`, `(N,)`, bits/dim.
        monte_carlo_error: standard error of each image's number over its draws, `(N,)`, bits/dim; NaN for a single draw.
        num_network_evaluations: images that went through the network, copies for derivatives included.
    """

    bits_per_dim: torch.Tensor
    density: torch.Tensor
    dequantisation: torch.Tensor
    reconstruction: torch.Tensor
    monte_carlo_error: torch.Tensor
    num_network_evaluations: int

    def _head(self) -> dict[str, Any]:
        return mean_of_images(self.bits_per_dim, self.num_network_evaluations)

    def _details(self) -> dict[str, Any]:
        return {name: getattr(self, name).mean().item() for name in ("density", "dequantisation", "reconstruction")}

    def _columns(self) -> dict[str, Any]:
        names = ("bits_per_dim", "density", "dequantisation", "reconstruction", "monte_carlo_error")
        return {"image": range(len(self.density))} | {name: getattr(self, name) for name in names}


def ode_nll(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    trace: str | None = None,
    num_probes: int = 1,
    num_draws: int = 1,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    seed: int = 0,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
) -> ODENLL:
    r"""The bound of the probability-flow ODE of a pipeline's network.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images, class_labels: as `evaluate_nll`.
        trace: `"exact"`, or `"hutchinson"` with `num_probes` vectors of signs; by default exact up to 256 dimensions.
        num_draws: of :math:`x_0`, for each image.
        rtol, atol: tolerances of the solver (Dormand-Prince 5(4)), of u and of the logarithm of its density in nats.
        seed: of :math:`x_0` and of the signs; those of an image depend on it and on the image's position alone.
        num_inference_steps, inference_timesteps: of the model whose lowest and highest timestep are the ends and whose decoder
            it is, as `evaluate_nll`.

    Raises:
        ValueError: as `evaluate_nll`; a network with a table of timesteps, which knows no fractions, or in half precision;
            zero terminal SNR, where u is infinite; a single step, which leaves no way to go; tolerances that cannot be kept.
    """
    num_probes, num_draws = check_count("num_probes", num_probes), check_count("num_draws", num_draws)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie in (0, 1), got {value!r}.")
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    flow = Flow(scorer, pipe.scheduler.forward_process())
    levels, labels = scorer.read(images, class_labels)
    dimensions = levels[0].numel()
    probes = num_probes if which_trace(trace, dimensions) == "hutchinson" else None
    parts, evaluations = [], 0
    with scorer.network.evaluating():
        for number in range(len(levels)):
            own = [mix(mix(seed, number), draw) for draw in range(num_draws)]
            label = None if labels is None else labels[number : number + 1]
            for key in own:
                terms, cost = flow.terms(levels[number : number + 1], key, probes, rtol, atol, label)
                parts.append(terms)
                evaluations += cost
    pipe.maybe_free_model_hooks()
    terms = nats_to_bits_per_dim(torch.tensor(parts, dtype=torch.float64).reshape(len(levels), num_draws, 3), dimensions)
    totals, means = terms.sum(dim=2), terms.mean(dim=1)
    spread = totals.std(dim=1) / num_draws**0.5 if num_draws > 1 else torch.full((len(levels),), math.nan, dtype=torch.float64)
    density, dequantisation, reconstruction = means.unbind(dim=1)
    return ODENLL(totals.mean(dim=1), density, dequantisation, reconstruction, spread, evaluations)


def which_trace(trace: str | None, dimensions: int) -> str:
    r"""`"exact"` or `"hutchinson"`: what was asked for, or what becomes so many dimensions."""
    if trace not in (None, "exact", "hutchinson"):
        raise ValueError(f"`trace` must be 'exact' or 'hutchinson', got {trace!r}.")
    return trace or ("exact" if dimensions <= EXACT_DIMENSIONS else "hutchinson")


class Flow:
    r"""The probability-flow ODE of what is scored.

    Args:
        scorer: its grid's lowest and highest timestep are the ends.
        trained: the forward process on all T steps, between whose timesteps fractions lie.

    Raises:
        ValueError: as `ode_nll`.
    """

    def __init__(self, scorer: Scorer, trained):
        forward = scorer.reverse.forward
        if not scorer.network.takes_fractions:
            raise ValueError("`unet` must take fractions of a timestep, got one with a learned table of them.")
        if scorer.network.is_half:
            raise ValueError(
                f"`unet` must be in float32 or float64 for the ODE, whose solver would follow the rounding, got {scorer.dtype}."
            )
        if len(forward) < 2:
            raise ValueError("The ODE must lead from one timestep to another, got a model of a single step.")
        if forward.alphas_cumprod[-1] == 0:
            raise ValueError(
                "The ODE must start where there is some signal, got zero terminal SNR: leave out the last timestep."
            )
        self.scorer, self.reverse = scorer, scorer.reverse
        alphas = trained.alphas_cumprod
        keep = alphas > 0
        log_sigmas = 0.5 * (trained.log_one_minus_alphas_cumprod - trained.log_alphas_cumprod)
        self._log_sigmas, self._timesteps = log_sigmas[keep].numpy(), trained.timesteps[keep].double().numpy()
        ends = forward.timesteps[[0, -1]]
        self.ends = tuple(log_sigmas[ends].tolist())
        self._log_alphas = trained.log_alphas_cumprod[ends].tolist()
        self._log_noise = trained.log_one_minus_alphas_cumprod[ends[0]].item()

    def predicted_noise(self, u: torch.Tensor, log_sigma: float, labels=None) -> torch.Tensor:
        r""":math:`\hat\epsilon(u, \sigma)`, from the prediction of the image as it is clipped; `(B, C, H, W)`, float64."""
        timestep = float(np.interp(log_sigma, self._log_sigmas, self._timesteps))
        sigma = math.exp(log_sigma)
        root = 1 / math.sqrt(1 + sigma**2)  # of alpha bar
        x = u * root
        labels = None if labels is None else labels.expand(len(u))
        prediction, _ = self.reverse.split(
            self.scorer.network(x, torch.tensor(timestep, dtype=torch.float32), labels), u.shape[1]
        )
        prediction = prediction.to(u.dtype)
        image = self.reverse.prediction.flow(u, x, prediction, sigma, root)
        return (u - self.reverse.clip(image)) / sigma

    def divergence(self, u: torch.Tensor, log_sigma: float, probes: torch.Tensor, labels=None):
        r""":math:`\hat\epsilon` at one u, `(1, C, H, W)`, and the mean over probes z, `(P, C, H, W)`, of
        :math:`z^\top (\partial\hat\epsilon / \partial u) z`."""
        copies = u.expand(probes.shape).clone().requires_grad_()
        with torch.enable_grad():
            noise = self.predicted_noise(copies, log_sigma, labels)
            (gradient,) = torch.autograd.grad((noise * probes).sum(), copies)
        return noise[:1].detach(), (gradient * probes).sum(dim=(1, 2, 3))

    @torch.no_grad()
    def terms(self, levels: torch.Tensor, key: int, num_probes: int | None, rtol: float, atol: float, labels=None):
        r"""The parts of one image `(1, C, H, W)` with one draw: :math:`-\log p_\mathrm{ODE}(x_0)`, :math:`\log q(x_0 | x)` and
        :math:`-\log p(x | x_0)` in nats, and how many images went through the network.

        Args:
            levels: the image.
            key: of the draw and the signs.
            num_probes: of Hutchinson's estimate; `None` for the exact trace.
            rtol, atol: of the solver.
            labels: the image's class, `(1,)`.

        Raises:
            ValueError: a network whose output is not finite, tolerances that cannot be kept.
        """
        scorer, forward = self.scorer, self.reverse.forward
        x = scorer.samples(levels)
        noise = keyed_normal([key], levels.shape[1:]).to(x)
        lowest = int(forward.timesteps[0])
        x_0 = forward.q_sample(x, noise, lowest)
        output = scorer.network(x_0, lowest, labels)
        reconstruction = decoder_nll(self.reverse, output, x, x_0, lowest, scorer.num_pixel_levels, validate_args=False).item()
        dimensions = x.numel()
        dequantisation = -0.5 * (noise.square().sum().item() + dimensions * (LOG_2_PI + self._log_noise))

        if num_probes is None:
            probes = torch.eye(dimensions, dtype=x.dtype, device=x.device).reshape(dimensions, *x.shape[1:])
            weight = 1.0
        else:
            signs = keyed_normal([mix(key, 1 + probe) for probe in range(num_probes)], x.shape[1:]).sign()
            probes, weight = signs.to(x), 1 / num_probes
        start = (x_0 * math.exp(-0.5 * self._log_alphas[0])).flatten().cpu().numpy()
        end, integral, calls = self._solve(start, probes, weight, rtol, atol, labels)
        x_end = end * math.exp(0.5 * self._log_alphas[1])
        log_prior = -0.5 * (np.square(x_end).sum() + dimensions * LOG_2_PI)
        # Of u at the top, carried down, and of x there and here.
        log_density = log_prior + 0.5 * dimensions * (self._log_alphas[1] - self._log_alphas[0]) + integral
        if not all(map(math.isfinite, (reconstruction, log_density))):
            raise NonFiniteOutput("others along the ODE", dtype=scorer.dtype)
        return (-log_density, dequantisation, reconstruction), 1 + calls * len(probes)

    def _solve(self, start: np.ndarray, probes: torch.Tensor, weight: float, rtol: float, atol: float, labels):
        r"""u at the upper end, the integral of the divergence, and how often the velocity was asked for."""
        from scipy.integrate import solve_ivp

        shape = (1, *probes.shape[1:])

        def velocity(log_sigma: float, state: np.ndarray) -> np.ndarray:
            u = torch.from_numpy(state[:-1].copy()).reshape(shape).to(probes)
            noise, traces = self.divergence(u, log_sigma, probes, labels)
            # Over log sigma: d sigma is sigma d log sigma.
            change = torch.cat([noise.flatten(), (weight * traces.sum())[None]]) * math.exp(log_sigma)
            change = change.double().cpu().numpy()
            if not np.isfinite(change).all():  # of NaN the solver knows no more than that its steps are too long
                raise NonFiniteOutput("others along the ODE", dtype=self.scorer.dtype)
            return change

        solution = solve_ivp(velocity, self.ends, np.append(start, 0.0), method="RK45", rtol=rtol, atol=atol)
        if not solution.success:
            raise ValueError(
                f"`rtol` and `atol` must be such that the ODE can be solved, got {rtol} and {atol}: {solution.message}"
            )
        return solution.y[:-1, -1], solution.y[-1, -1], solution.nfev


ODE_TOLERANCE = 1e-4


def ode(scorer: Scorer, trained, num_dimensions: int, batch_size: int, options: dict[str, Any]) -> Columns:
    r"""The row `ode` of `methods.METHODS`."""
    flow, kind = Flow(scorer, trained), which_trace(options["trace"], num_dimensions)

    def score(levels: torch.Tensor, seeds: Sequence[int], labels: torch.Tensor | None) -> dict[str, Any]:
        # As `ode_nll` with one draw.
        (seed,) = seeds
        probes = 1 if kind == "hutchinson" else None
        nats, evaluations = flow.terms(levels, mix(seed, 0), probes, ODE_TOLERANCE, ODE_TOLERANCE, labels)
        terms = nats_to_bits_per_dim(torch.tensor([nats], dtype=torch.float64), num_dimensions)
        columns = dict(zip(("density", "dequantisation", "reconstruction"), terms.T.tolist()))
        return columns | {"bits_per_dim": terms.sum(dim=1).tolist(), "num_network_evaluations": evaluations}

    return Columns(f"ode, {kind} trace", 1, None, score)
