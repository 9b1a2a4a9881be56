r"""The likelihood of the probability-flow ODE (Song et al. 2021), image by image.

With :math:`\sigma = \sqrt{(1 - \bar\alpha) / \bar\alpha}` and :math:`u = x_t / \sqrt{\bar\alpha}` the network's noise
prediction is a velocity, and a density that is carried along it changes by its divergence:

.. math::
    \frac{du}{d\sigma} = \hat\epsilon(u, \sigma), \qquad \frac{d \log p(u)}{d\sigma} = -\nabla_u \cdot \hat\epsilon, \qquad
    \log p(u_0) = \log p(u_T) + \int_{\sigma_0}^{\sigma_T} \nabla_u \cdot \hat\epsilon \; d\sigma ,

with :math:`x_T = \sqrt{\bar\alpha_T} u_T` standard normal. It is solved over :math:`\log\sigma`, from the lowest timestep to
the highest; between timesteps :math:`\log\sigma` is a straight line, and the network is asked at fractions of a timestep.

**The solver's error.** What is off by :math:`\delta` in u is off by about :math:`\hat\epsilon^\top \delta / \sigma` in
:math:`\log p`, so that u is known as well as :math:`\log p` needs it where :math:`\delta / \sigma` is small. The state is
therefore the way from the start in units of the noise, :math:`z = (u - u_0) / \sigma`, which begins at 0 and stays of the order
of 1,

.. math:: \frac{dz}{d\log\sigma} = \hat\epsilon - z ,

and beside it the integral of the divergence, which has a tolerance of its own: in nats per dimension, however long the way and
however large the integral. Where the image is clipped the divergence jumps, which the estimate of a step's error in Bogacki and
Shampine's method of the third order sees, and in Dormand and Prince's of the fifth a tenth of it. Tolerances are of a step, and
errors add up. The error that is reported is the difference to a second solution at `LOOSER` times the tolerances, which is
mostly that one's error, and, since two numbers may agree by chance, the tolerance of that one on top.

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
LOOSER = 10.0
LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True, repr=False)
class ODENLL(Shown):
    r"""The ODE's bound of N images, float64 on the CPU.

    Args:
        bits_per_dim: `(N,)`, bits/dim, the mean over the draws of :math:`x_0`: `density + dequantisation + reconstruction`.
        density, dequantisation, reconstruction: :math:`-\log p_\mathrm{ODE}(x_0)`, :math:`\log q(x_0 | x)` and
            :math:`-\log p(x | x_0)`, `(N,)`, bits/dim.
        solver_error: how far `density` may be off for the solver's tolerances, the mean over the draws, `(N,)`, bits/dim.
        monte_carlo_error: standard error of each image's number over its draws, `(N,)`, bits/dim; NaN for a single draw.
        num_network_evaluations: images that went through the network, copies for derivatives included.
    """

    bits_per_dim: torch.Tensor
    density: torch.Tensor
    dequantisation: torch.Tensor
    reconstruction: torch.Tensor
    solver_error: torch.Tensor
    monte_carlo_error: torch.Tensor
    num_network_evaluations: int

    def _head(self) -> dict[str, Any]:
        return mean_of_images(self.bits_per_dim, self.num_network_evaluations)

    def _details(self) -> dict[str, Any]:
        return {name: getattr(self, name).mean().item() for name in ("density", "dequantisation", "reconstruction")}

    def _columns(self) -> dict[str, Any]:
        names = ("bits_per_dim", "density", "dequantisation", "reconstruction", "solver_error", "monte_carlo_error")
        return {"image": range(len(self.density))} | {name: getattr(self, name) for name in names}


def ode_nll(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    trace: str | None = None,
    num_probes: int | None = None,
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
        trace: `"exact"`, or `"hutchinson"`; by default exact up to 256 dimensions.
        num_probes: vectors of signs for Hutchinson's trace, 1 by default.
        num_draws: of :math:`x_0`, for each image.
        rtol, atol: tolerances of a step of the solver (Bogacki-Shampine 3(2)): of u, relative to the noise :math:`\sigma`,
            and of the integral of the divergence, in nats per dimension.
        seed: of :math:`x_0` and of the signs; those of an image depend on it and on the image's position alone.
        num_inference_steps, inference_timesteps: of the model whose lowest and highest timestep are the ends and whose decoder
            it is, as `evaluate_nll`.

    Raises:
        ValueError: as `evaluate_nll`; a network with a table of timesteps, which knows no fractions, or in half precision;
            zero terminal SNR, where u is infinite; a single step, which leaves no way to go; probes for the exact trace;
            tolerances that cannot be kept.
    """
    num_probes = None if num_probes is None else check_count("num_probes", num_probes)
    num_draws = check_count("num_draws", num_draws)
    check_tolerances(rtol, atol)
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    flow = Flow(scorer, pipe.scheduler.forward_process())
    levels, labels = scorer.read(images, class_labels)
    probes = which_probes(trace, num_probes, levels[0].numel())
    with scorer.network.evaluating():
        results = [
            score_image(
                flow,
                levels[number : number + 1],
                mix(seed, number),
                None if labels is None else labels[number : number + 1],
                num_probes=probes,
                num_draws=num_draws,
                rtol=rtol,
                atol=atol,
            )
            for number in range(len(levels))
        ]
    pipe.maybe_free_model_hooks()
    terms, evaluations = torch.stack([terms for terms, _ in results]), sum(cost for _, cost in results)
    parts, means = terms[..., :3], terms.mean(dim=1)
    totals = parts.sum(dim=2)
    spread = totals.std(dim=1) / num_draws**0.5 if num_draws > 1 else torch.full((len(levels),), math.nan, dtype=torch.float64)
    density, dequantisation, reconstruction, solver_error = means.unbind(dim=1)
    return ODENLL(totals.mean(dim=1), density, dequantisation, reconstruction, solver_error, spread, evaluations)


def check_tolerances(rtol: float, atol: float) -> None:
    r"""Raise `ValueError` unless both lie in (0, 1)."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie in (0, 1), got {value!r}.")


def which_trace(trace: str | None, dimensions: int) -> str:
    r"""`"exact"` or `"hutchinson"`: what was asked for, or what becomes so many dimensions."""
    if trace not in (None, "exact", "hutchinson"):
        raise ValueError(f"`trace` must be 'exact' or 'hutchinson', got {trace!r}.")
    return trace or ("exact" if dimensions <= EXACT_DIMENSIONS else "hutchinson")


def which_probes(trace: str | None, num_probes: int | None, dimensions: int) -> int | None:
    r"""How many vectors of signs Hutchinson's trace has; `None` for the exact one."""
    if which_trace(trace, dimensions) == "hutchinson":
        return num_probes or 1
    if num_probes is not None:
        raise ValueError(f"`num_probes` must be left out with the exact trace, got {num_probes}: give trace='hutchinson'.")
    return None


def score_image(
    flow: "Flow",
    levels: torch.Tensor,
    key: int,
    labels: torch.Tensor | None,
    *,
    num_probes: int | None,
    num_draws: int,
    rtol: float,
    atol: float,
) -> tuple[torch.Tensor, int]:
    r"""Density, dequantisation, reconstruction and the solver's error of one image for each draw, `(num_draws, 4)` in bits/dim,
    and how many images went through the network. Arguments as `Flow.terms`."""
    draws = [flow.terms(levels, mix(key, draw), num_probes, rtol, atol, labels) for draw in range(num_draws)]
    terms = torch.tensor([terms for terms, _ in draws], dtype=torch.float64)
    return nats_to_bits_per_dim(terms, levels[0].numel()), sum(cost for _, cost in draws)


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
            raise ValueError(f"`unet` must take fractions of a timestep, got {scorer.network.why_no_fractions}.")
        if scorer.network.is_half:
            raise ValueError(
                "`unet` must be in float32 or float64 for the ODE, whose solver would follow the rounding, got"
                f" {scorer.network.precision}."
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
        r"""The parts of one image `(1, C, H, W)` with one draw: :math:`-\log p_\mathrm{ODE}(x_0)`, :math:`\log q(x_0 | x)`,
        :math:`-\log p(x | x_0)` and the solver's error of the first, in nats, and how many images went through the network.

        Args:
            levels: the image.
            key: of the draw and the signs.
            num_probes: of Hutchinson's estimate; `None` for the exact trace.
            rtol, atol: as `ode_nll`.
            labels: the image's class, `(1,)`.

        Raises:
            ValueError: a network whose output is not finite, tolerances that cannot be kept.
        """
        scorer, forward = self.scorer, self.reverse.forward
        x = scorer.samples(levels)
        noise = keyed_normal([key], levels.shape[1:], x.device).to(x)
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
            signs = keyed_normal([mix(key, 1 + probe) for probe in range(num_probes)], x.shape[1:], x.device).sign()
            probes, weight = signs.to(x), 1 / num_probes
        start = (x_0 * math.exp(-0.5 * self._log_alphas[0])).flatten().cpu().double().numpy()
        (log_density, calls), (looser, more) = (
            self._log_density(start, probes, weight, factor * rtol, factor * atol, labels) for factor in (1.0, LOOSER)
        )
        if not all(map(math.isfinite, (reconstruction, log_density, looser))):
            raise NonFiniteOutput("others along the ODE", dtype=scorer.dtype)
        error = abs(log_density - looser) + LOOSER * atol * dimensions
        return (-log_density, dequantisation, reconstruction, error), 1 + (calls + more) * len(probes)

    def _log_density(self, start: np.ndarray, probes: torch.Tensor, weight: float, rtol: float, atol: float, labels):
        r""":math:`\log p_\mathrm{ODE}(x_0)` in nats, from u at the lower end, and how often the velocity was asked for."""
        from scipy.integrate import solve_ivp

        shape, dimensions = (1, *probes.shape[1:]), len(start)

        def velocity(log_sigma: float, state: np.ndarray) -> np.ndarray:
            sigma, z = math.exp(log_sigma), state[:-1]
            u = torch.from_numpy(start + sigma * z).reshape(shape).to(probes)
            noise, traces = self.divergence(u, log_sigma, probes, labels)
            # Over log sigma: d sigma is sigma d log sigma.
            change = torch.cat([noise.flatten(), (sigma * weight * traces.sum())[None]]).cpu().double().numpy()
            if not np.isfinite(change).all():  # of NaN the solver knows no more than that its steps are too long
                raise NonFiniteOutput("others along the ODE", dtype=self.scorer.dtype)
            change[:-1] -= z
            return change

        # Absolute ones: the solver's smallest relative one is next to nothing. It holds the root mean square over all
        # components below 1, in which the integral, one of D + 1, would count for little.
        tolerances = np.full(dimensions + 1, rtol)
        tolerances[-1] = atol * dimensions / math.sqrt(dimensions + 1)
        relative = 100 * np.finfo(np.float64).eps
        solution = solve_ivp(velocity, self.ends, np.zeros(dimensions + 1), method="RK23", rtol=relative, atol=tolerances)
        if not solution.success:
            raise ValueError(
                f"`rtol` and `atol` must be such that the ODE can be solved, got {rtol} and {atol}: {solution.message}"
            )
        x_end = (start + solution.y[:-1, -1] * math.exp(self.ends[1])) * math.exp(0.5 * self._log_alphas[1])
        log_prior = -0.5 * (np.square(x_end).sum() + dimensions * LOG_2_PI)
        # Of u at the top, carried down, and of x there and here.
        log_density = log_prior + 0.5 * dimensions * (self._log_alphas[1] - self._log_alphas[0]) + solution.y[-1, -1]
        return log_density, solution.nfev


def ode(scorer: Scorer, trained, num_dimensions: int, batch_size: int, options: dict[str, Any]) -> Columns:
    r"""The row `ode` of `methods.METHODS`."""
    how = {name: options[name] for name in ("num_draws", "rtol", "atol")}
    check_tolerances(how["rtol"], how["atol"])
    flow, probes = Flow(scorer, trained), which_probes(options["trace"], options["num_probes"], num_dimensions)

    def score(levels: torch.Tensor, seeds: Sequence[int], labels: torch.Tensor | None) -> dict[str, Any]:
        # As `ode_nll`.
        (seed,) = seeds
        terms, evaluations = score_image(flow, levels, seed, labels, num_probes=probes, **how)
        means = terms.mean(dim=0).tolist()
        columns = {name: [mean] for name, mean in zip(("density", "dequantisation", "reconstruction", "solver_error"), means)}
        return columns | {"bits_per_dim": [sum(means[:3])], "num_network_evaluations": evaluations}

    return Columns(f"ode, {'exact' if probes is None else 'hutchinson'} trace", 1, None, score)
