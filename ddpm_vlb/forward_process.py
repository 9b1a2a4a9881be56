r"""The forward process q, which turns an image into noise in T fixed Gaussian steps (Section 2, Ho et al. 2020).

Timesteps are zero-based: the latent after step `t` is :math:`x_t`, and :math:`\bar\alpha_t` is the diffusers table
``alphas_cumprod[t]``. "Before step 0" is the data :math:`x`, with :math:`\bar\alpha = 1`. A sub-sequence
:math:`\tau_0 < \dots < \tau_{K-1}` of the T steps is itself a diffusion with K steps; let s be the step of the grid below
t (or the data). All that follows holds for the full grid, where s = t - 1, and for any other:

.. math::
    q(x_t | x)   &= N(\sqrt{\bar\alpha_t}\, x,\; (1 - \bar\alpha_t) I)                                  & \text{(eq. 4)} \\
    q(x_t | x_s) &= N(\sqrt{1 - \beta_t}\, x_s,\; \beta_t I), \quad \beta_t = 1 - \bar\alpha_t/\bar\alpha_s & \text{(eq. 2)} \\
    q(x_s | x_t, x) &= N(\tilde\mu_t(x_t, x),\; \tilde\beta_t I)                                        & \text{(eq. 6)} \\
    \tilde\mu_t &= \frac{\sqrt{\bar\alpha_s}\,\beta_t}{1 - \bar\alpha_t} x
                 + \frac{\sqrt{1 - \beta_t}\,(1 - \bar\alpha_s)}{1 - \bar\alpha_t} x_t, \quad
    \tilde\beta_t = \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \beta_t                                   & \text{(eq. 7)}

At the lowest step of the grid the posterior is the data itself: mean :math:`x`, variance 0.

**Precision.** Everything is a function of :math:`a_t = \sum_{s < i \le t} \log(1 - \beta_i)` and of the running sum
:math:`\log\bar\alpha_t`, both made with ``log1p`` in float64; :math:`\beta_t = -\mathrm{expm1}(a_t)` and
:math:`1 - \bar\alpha_t = -\mathrm{expm1}(\log\bar\alpha_t)` then lose no digits, where float32 tables are wrong by up to 5e-3
(relative) at the low-noise end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .checks import integer, to_working, working_dtype
from .gaussians import Gaussian


class Rows:
    r"""Timesteps that were looked up and checked, once for all that is asked about a batch; they stand in their place.

    Args:
        forward: whose rows they are.
        rows: of its tables, int64 on the CPU, `(B,)`.
    """

    def __init__(self, forward: "ForwardProcess", rows: torch.Tensor):
        self.forward, self.rows = forward, rows

    @property
    def timesteps(self) -> torch.Tensor:
        r"""The timesteps themselves, `(B,)`."""
        return self.forward.timesteps[self.rows]

    def __getitem__(self, index: torch.Tensor) -> "Rows":
        return Rows(self.forward, self.rows[index])


@dataclass(frozen=True, eq=False)
class ForwardProcess:
    r"""Frozen float64 tables of a diffusion on a grid of timesteps, and the Gaussians they define.

    Every table has the shape `(K,)`, ascends in t, and lives on the CPU. Build one with `ForwardProcess.from_betas`.

    All methods take `timesteps` as one integer for the whole batch, or as an integer tensor of shape `(B,)`. A tensor on an
    accelerator is read back to be checked, so keep timesteps on the CPU where waiting for the device matters.

    Args:
        timesteps: the grid, ascending, int64, shape `(K,)`.
        log_alphas: :math:`\log(1 - \beta_t)` of the effective beta of each step of the grid; -inf at a step to zero SNR.
        num_train_timesteps: number of steps T of the full process.
    """

    timesteps: torch.Tensor
    log_alphas: torch.Tensor
    num_train_timesteps: int

    @classmethod
    def from_betas(cls, betas: torch.Tensor, inference_timesteps: Sequence[int] | None = None) -> "ForwardProcess":
        r"""Tables for all T steps, or for the sub-sequence `inference_timesteps`.

        Args:
            betas: forward variances, shape `(T,)`; in (0, 1), the last one may be 1 (zero terminal SNR).
            inference_timesteps: strictly descending integers in [0, T); `None` for all T steps.

        Raises:
            ValueError: betas out of range or not finite, a sub-sequence that is empty, not strictly descending, or out of
                range.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64).cpu()
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"`betas` must have the shape (T,) with T >= 1, got {tuple(betas.shape)}.")
        good = (betas > 0) & (betas < 1)
        good[-1] |= betas[-1] == 1
        if not bool(good.all()):
            where = int((~good).nonzero()[0])
            raise ValueError(
                "`betas` must lie in (0, 1), the last one in (0, 1], for the process to be scored,"
                f" got {betas[where].item()!r} at step {where}."
            )
        log_alphas = torch.log1p(-betas)
        if inference_timesteps is None:
            return cls(torch.arange(len(betas)), log_alphas, len(betas))
        grid = torch.tensor(check_inference_timesteps(inference_timesteps, len(betas))[::-1])
        # A sum over each gap; the difference of two running sums would lose the digits that they share.
        used = torch.arange(int(grid[-1]) + 1)
        log_alphas = torch.zeros(len(grid), dtype=torch.float64).index_add(0, torch.searchsorted(grid, used), log_alphas[used])
        return cls(grid, log_alphas, len(betas))

    @classmethod
    def from_log_snr(cls, log_snr: torch.Tensor) -> "ForwardProcess":
        r"""Tables for all T steps from :math:`\log(\bar\alpha_t / (1 - \bar\alpha_t))`, differentiable in it.

        Args:
            log_snr: strictly descending, shape `(T,)`; gradients flow through every table and every Gaussian. Not checked: a
                learnable schedule is monotone by construction.
        """
        log_alphas_cumprod = torch.nn.functional.logsigmoid(log_snr.to("cpu", torch.float64))
        log_alphas = torch.diff(log_alphas_cumprod, prepend=log_alphas_cumprod.new_zeros(1))
        return cls(torch.arange(len(log_alphas)), log_alphas, len(log_alphas))

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def is_learnable(self) -> bool:
        r"""Whether the tables carry gradients; :math:`L_T` then is part of what is minimised."""
        return self.log_alphas.requires_grad

    # Tables. The suffix `_prev` is diffusers' word for the next lower step of the grid.

    @cached_property
    def log_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\log\bar\alpha_t`."""
        return torch.cumsum(self.log_alphas, dim=0)

    @cached_property
    def _log_alphas_cumprod_prev(self) -> torch.Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.log_alphas_cumprod[:-1]])

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\bar\alpha_t`."""
        return torch.exp(self.log_alphas_cumprod)

    @cached_property
    def one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`1 - \bar\alpha_t`, the variance of :math:`q(x_t | x)`."""
        return -torch.expm1(self.log_alphas_cumprod)

    @cached_property
    def sqrt_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\sqrt{\bar\alpha_t}`, the signal's part of :math:`x_t`."""
        return torch.exp(0.5 * self.log_alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\sqrt{1 - \bar\alpha_t}`, the noise's part of :math:`x_t`."""
        return self.one_minus_alphas_cumprod.sqrt()

    @cached_property
    def log_one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`\log(1 - \bar\alpha_t)`."""
        # log1p keeps the digits where alphas_cumprod is small, expm1 where it is close to 1.
        direct, via_one_minus = torch.log1p(-self.alphas_cumprod), self.one_minus_alphas_cumprod.log()
        return torch.where(self.alphas_cumprod < 0.5, direct, via_one_minus)

    @cached_property
    def recip_sqrt_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`1 / \sqrt{\bar\alpha_t}`; infinite at zero SNR."""
        return 1.0 / self.sqrt_alphas_cumprod

    @cached_property
    def recip_sqrt_one_minus_alphas_cumprod(self) -> torch.Tensor:
        r""":math:`1 / \sqrt{1 - \bar\alpha_t}`."""
        return 1.0 / self.sqrt_one_minus_alphas_cumprod

    @cached_property
    def sqrt_alphas(self) -> torch.Tensor:
        r""":math:`\sqrt{1 - \beta_t}` of the effective beta, the decay from :math:`x_s` to :math:`x_t`."""
        return torch.exp(0.5 * self.log_alphas)

    @cached_property
    def betas(self) -> torch.Tensor:
        r"""Effective :math:`\beta_t = 1 - \bar\alpha_t / \bar\alpha_s`, the variance of :math:`q(x_t | x_s)`."""
        return -torch.expm1(self.log_alphas)

    @cached_property
    def log_betas(self) -> torch.Tensor:
        r""":math:`\log\beta_t`."""
        return self.betas.log()

    @cached_property
    def snr(self) -> torch.Tensor:
        r"""Signal-to-noise ratio :math:`\bar\alpha_t / (1 - \bar\alpha_t)`."""
        return 1.0 / torch.expm1(-self.log_alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> torch.Tensor:
        r""":math:`\tilde\beta_t` of eq. 7; 0 at the lowest step."""
        one_minus_prev = -torch.expm1(self._log_alphas_cumprod_prev)
        return one_minus_prev / self.one_minus_alphas_cumprod * self.betas

    @cached_property
    def posterior_log_variance(self) -> torch.Tensor:
        r""":math:`\log\tilde\beta_t`; -inf at the lowest step."""
        # The lowest entry is written down: the derivative of log at 0 would turn the gradient of every table into NaN.
        return torch.cat([self.betas.new_full((1,), -math.inf), torch.log(self.posterior_variance[1:])])

    @cached_property
    def posterior_mean_coef1(self) -> torch.Tensor:
        r"""Coefficient of the data in :math:`\tilde\mu_t`; 1 at the lowest step."""
        return torch.exp(0.5 * self._log_alphas_cumprod_prev) * self.betas / self.one_minus_alphas_cumprod

    @cached_property
    def posterior_mean_coef2(self) -> torch.Tensor:
        r"""Coefficient of :math:`x_t` in :math:`\tilde\mu_t`; 0 at the lowest step."""
        return self.sqrt_alphas * -torch.expm1(self._log_alphas_cumprod_prev) / self.one_minus_alphas_cumprod

    # From timesteps to table rows.

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {step: row for row, step in enumerate(self.timesteps.tolist())}

    @cached_property
    def _row_table(self) -> torch.Tensor:
        r"""The row of each of the T timesteps, -1 where there is none."""
        return torch.full((self.num_train_timesteps,), -1).index_copy_(0, self.timesteps, torch.arange(len(self)))

    def look_up(self, timesteps: int | torch.Tensor | Rows, batch_size: int) -> int | torch.Tensor | Rows:
        r"""`timesteps` as they may be given to every method, looked up where there is one for each image; errors as `rows`."""
        if isinstance(timesteps, Rows) or not isinstance(timesteps, torch.Tensor) or timesteps.ndim == 0:
            return timesteps
        rows = self.rows(timesteps, batch_size)
        return Rows(self, rows) if isinstance(rows, torch.Tensor) else timesteps

    def rows(self, timesteps: int | torch.Tensor | Rows, batch_size: int) -> int | torch.Tensor:
        r"""Rows of the tables for `timesteps`: an int for a scalar, an int64 CPU tensor of shape `(B,)` or `(1,)` otherwise.

        Raises:
            ValueError: timesteps that are not integers, not in [0, T), not on the grid, or neither one nor `batch_size`.
        """
        if isinstance(timesteps, Rows):
            if timesteps.forward is self:
                return timesteps.rows
            timesteps = timesteps.timesteps
        if isinstance(timesteps, (list, tuple, np.ndarray)):
            timesteps = torch.as_tensor(timesteps)
        if not isinstance(timesteps, torch.Tensor) or timesteps.ndim == 0:
            return self._row(timesteps)
        if timesteps.ndim > 1 or timesteps.is_floating_point() or timesteps.dtype == torch.bool:
            raise ValueError(
                "`timesteps` must be an integer or an integer tensor of shape (B,),"
                f" got dtype {timesteps.dtype} and shape {tuple(timesteps.shape)}."
            )
        if len(timesteps) not in (1, batch_size):
            raise ValueError(f"`timesteps` must have the shape ({batch_size},) of the batch, got ({len(timesteps)},).")
        steps = timesteps.cpu().long()
        inside = steps.clamp(0, self.num_train_timesteps - 1)
        rows = self._row_table[inside]
        if not bool(((rows >= 0) & (steps == inside)).all()):
            for step in steps.tolist():
                self._row(step)  # which one it is
        return rows

    def _row(self, timestep) -> int:
        try:
            step = integer(timestep)
        except TypeError:
            raise ValueError(f"`timesteps` must be integers, got {timestep!r}.") from None
        row = self._row_of.get(step)
        if row is None:
            inside = 0 <= step < self.num_train_timesteps
            rule = (
                f"belong to the sub-sequence of {len(self)} steps that is scored"
                if inside
                else f"lie in [0, {self.num_train_timesteps})"
            )
            raise ValueError(f"`timesteps` must {rule}, got {step}.")
        return row

    def gather(self, table: torch.Tensor, timesteps: int | torch.Tensor | Rows, like: torch.Tensor) -> float | torch.Tensor:
        r"""Entries of a `(K,)` table at `timesteps`: a float for one timestep (so that nothing travels to the device;
        of a learnable process a float64 tensor of shape `()`), otherwise a float64 tensor of shape `(B, 1, 1, ...)` on the
        device of `like`.

        Raises:
            ValueError: as `rows`, the batch being that of `like`.
        """
        rows = self.rows(timesteps, len(like))
        if isinstance(rows, int):
            # Of a learnable process a tensor all the same: a float would cut the gradient without a word.
            return table[rows].to(like.device) if table.requires_grad else table[rows].item()
        values = table.index_select(0, rows).reshape(-1, *[1] * (like.ndim - 1))
        # From the host without a wait for the device.
        return values.to(like.device, working_dtype(like.device), non_blocking=like.device.type == "cuda")

    # The Gaussians. All return the working dtype (float64) and the shape of the samples, `(B, C, H, W)`.

    def q_mean_variance(self, original_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows) -> Gaussian:
        r""":math:`q(x_t | x)` (eq. 4) for `original_samples` :math:`x`."""
        (x,) = to_working(original_samples=original_samples)
        mean = self.gather(self.sqrt_alphas_cumprod, timesteps, x) * x
        return self._gaussian(mean, self.one_minus_alphas_cumprod, self.log_one_minus_alphas_cumprod, timesteps)

    def q_step_mean_variance(self, samples: torch.Tensor, timesteps: int | torch.Tensor | Rows) -> Gaussian:
        r""":math:`q(x_t | x_s)` (eq. 2) for `samples` :math:`x_s`, the latents one step of the grid below t (the data at
        the lowest step)."""
        (x,) = to_working(samples=samples)
        mean = self.gather(self.sqrt_alphas, timesteps, x) * x
        return self._gaussian(mean, self.betas, self.log_betas, timesteps)

    def q_posterior_mean_variance(
        self, original_samples: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> Gaussian:
        r""":math:`q(x_s | x_t, x)` (eqs. 6 and 7). At the lowest step this is the data: variance 0, log-variance -inf."""
        mean = self.posterior_mean(original_samples, noisy_samples, timesteps)
        return self._gaussian(mean, self.posterior_variance, self.posterior_log_variance, timesteps)

    def posterior_mean(
        self, original_samples: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> torch.Tensor:
        r""":math:`\tilde\mu_t(x_t, x)` of eq. 7."""
        x, x_t = to_working(original_samples=original_samples, noisy_samples=noisy_samples)
        coef1 = self.gather(self.posterior_mean_coef1, timesteps, x)
        coef2 = self.gather(self.posterior_mean_coef2, timesteps, x_t)
        return coef1 * x + coef2 * x_t

    def _gaussian(self, mean, variance_table, log_variance_table, timesteps) -> Gaussian:
        variance, log_variance = (
            entries if isinstance(entries, torch.Tensor) else mean.new_full((), entries)
            for entries in (self.gather(table, timesteps, mean) for table in (variance_table, log_variance_table))
        )
        return Gaussian(mean, variance.expand(mean.shape), log_variance.expand(mean.shape))

    # x_t from x and epsilon, and the conversions among x, epsilon and v given x_t.

    def q_sample(self, original_samples, noise, timesteps) -> torch.Tensor:
        r""":math:`x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \epsilon`."""
        x, epsilon = to_working(original_samples=original_samples, noise=noise)
        return self._signal(timesteps, x) * x + self._noise(timesteps, x) * epsilon

    def predict_original_from_epsilon(self, noisy_samples, epsilon, timesteps) -> torch.Tensor:
        r""":math:`x = (x_t - \sqrt{1 - \bar\alpha_t}\, \epsilon) / \sqrt{\bar\alpha_t}`; not finite where
        :math:`\bar\alpha_t = 0`."""
        x_t, epsilon = to_working(noisy_samples=noisy_samples, epsilon=epsilon)
        return (x_t - self._noise(timesteps, x_t) * epsilon) * self.gather(self.recip_sqrt_alphas_cumprod, timesteps, x_t)

    def predict_original_from_velocity(self, noisy_samples, velocity, timesteps) -> torch.Tensor:
        r""":math:`x = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v`."""
        x_t, v = to_working(noisy_samples=noisy_samples, velocity=velocity)
        return self._signal(timesteps, x_t) * x_t - self._noise(timesteps, x_t) * v

    def predict_epsilon_from_original(self, noisy_samples, original_samples, timesteps) -> torch.Tensor:
        r""":math:`\epsilon = (x_t - \sqrt{\bar\alpha_t}\, x) / \sqrt{1 - \bar\alpha_t}`."""
        x_t, x = to_working(noisy_samples=noisy_samples, original_samples=original_samples)
        scaled_noise = x_t - self._signal(timesteps, x_t) * x
        return scaled_noise * self.gather(self.recip_sqrt_one_minus_alphas_cumprod, timesteps, x_t)

    def predict_epsilon_from_velocity(self, noisy_samples, velocity, timesteps) -> torch.Tensor:
        r""":math:`\epsilon = \sqrt{1 - \bar\alpha_t}\, x_t + \sqrt{\bar\alpha_t}\, v`."""
        x_t, v = to_working(noisy_samples=noisy_samples, velocity=velocity)
        return self._noise(timesteps, x_t) * x_t + self._signal(timesteps, x_t) * v

    def velocity(self, original_samples, noise, timesteps) -> torch.Tensor:
        r""":math:`v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x` (Salimans & Ho 2022)."""
        x, epsilon = to_working(original_samples=original_samples, noise=noise)
        return self._signal(timesteps, x) * epsilon - self._noise(timesteps, x) * x

    def _signal(self, timesteps, like):
        return self.gather(self.sqrt_alphas_cumprod, timesteps, like)

    def _noise(self, timesteps, like):
        return self.gather(self.sqrt_one_minus_alphas_cumprod, timesteps, like)


def check_inference_timesteps(inference_timesteps: Sequence[int], num_train_timesteps: int) -> list[int]:
    r"""A sub-sequence as a list of ints, after checking it.

    Raises:
        ValueError: not a non-empty, strictly descending sequence of integers in [0, `num_train_timesteps`).
    """
    try:
        steps = [integer(step) for step in inference_timesteps]
    except TypeError:
        raise ValueError(f"`inference_timesteps` must be integers, got {inference_timesteps!r}.") from None
    if not steps:
        raise ValueError("`inference_timesteps` must name at least one timestep, got none.")
    for step in steps:
        if not 0 <= step < num_train_timesteps:
            raise ValueError(f"`inference_timesteps` must lie in [0, {num_train_timesteps}), got {step}.")
    for higher, lower in zip(steps, steps[1:]):
        if lower >= higher:
            raise ValueError(f"`inference_timesteps` must be strictly descending, got {higher} before {lower}.")
    return steps
