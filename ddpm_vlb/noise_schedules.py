r"""Forward variances: those with a name, and learnable ones, a monotone schedule trained on the bound with the network.

**By name.** A table with the formulas of diffusers, in float64 from the start.

**Learnt.** The forward process is all told by its log-signal-to-noise ratios
:math:`\lambda_t = \log(\bar\alpha_t / (1 - \bar\alpha_t))`, which descend from :math:`\lambda_0` (after the first step, nearly
the image) to :math:`\lambda_{T-1}` (nearly noise). In the limit of many steps the bound depends on the two end points alone
(Section 5, Kingma et al. 2021); at a finite T the spacing between them counts too, and both are learnt here. The schedule is
the configured one, :math:`\lambda^0_t`, seen through an increasing piecewise linear map with M segments of equal width w on
:math:`[\lambda^0_{T-1}, \lambda^0_0]`:

.. math::
    \lambda_t = \lambda^0_{T-1} + c + \sum_{m=1}^{M} e^{\theta_m}\, w_m(\lambda^0_t), \qquad
    w_m(\lambda) = \text{length of segment } m \text{ below } \lambda .

The map starts as the identity (:math:`c = \theta_m = 0`), so that training starts from the configured betas to the last digit
but float rounding. :math:`e^{\theta_m} > 0` keeps :math:`\lambda_t` strictly descending, hence every beta in (0, 1), for
all parameters that do not overflow. c moves the noisy end, the sum of the slopes the clean end, and their distribution the
interior.

The result is a list of betas like any other: `betas()` is what a scheduler takes as `trained_betas`.
"""

import math
from collections.abc import Callable, Sequence

import torch

from .checks import check_num_timesteps
from .forward_process import ForwardProcess


def make_betas(
    beta_schedule: str = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    trained_betas: Sequence[float] | None = None,
    rescale_betas_zero_snr: bool = False,
) -> torch.Tensor:
    r"""The forward variances of a diffusers configuration, in float64.

    The same formulas as `diffusers.DDPMScheduler`, evaluated in float64 from the start.

    Args:
        beta_schedule: one of `BETA_SCHEDULES`; ignored when `trained_betas` is given.
        num_train_timesteps: number of steps T.
        beta_start, beta_end: first and last variance of the schedules that take them.
        trained_betas: the variances themselves, shape `(T,)`.
        rescale_betas_zero_snr: rescale to zero terminal SNR (Algorithm 1, Lin et al. 2023).

    Returns:
        Betas, shape `(T,)`, float64, on the CPU.

    Raises:
        ValueError: unknown `beta_schedule`; more steps than any table could hold.
    """
    check_num_timesteps("num_train_timesteps", num_train_timesteps)
    if trained_betas is not None:
        betas = torch.as_tensor(trained_betas, dtype=torch.float64).clone()
    elif isinstance(beta_schedule, str) and beta_schedule in NAMED_SCHEDULES:
        betas = NAMED_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
    else:
        raise ValueError(f"`beta_schedule` must be one of {tuple(NAMED_SCHEDULES)}, got {beta_schedule!r}.")
    return _rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas


def _linear(steps: int, start: float, end: float) -> torch.Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(steps: int, start: float, end: float) -> torch.Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _sigmoid(steps: int, start: float, end: float) -> torch.Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (end - start) + start


def _cosine_alpha_bar(time: float) -> float:
    # Eq. 17, Nichol & Dhariwal 2021, with their offset s = 0.008.
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_alpha_bar(time: float) -> float:
    # Laplace-distributed log-SNR (Hang et al. 2024), square root and all as diffusers has it.
    log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _betas_from_alpha_bar(alpha_bar, steps: int, max_beta: float = 0.999) -> torch.Tensor:
    betas = [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def _rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    sqrt_alpha_bar = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = sqrt_alpha_bar[0].item(), sqrt_alpha_bar[-1].item()
    alpha_bar = ((sqrt_alpha_bar - last) * (first / (first - last) if first != last else math.nan)) ** 2
    return 1.0 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


# A row each: from T and the first and last beta, betas `(T,)`.
NAMED_SCHEDULES: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda steps, start, end: _betas_from_alpha_bar(_cosine_alpha_bar, steps),
    "sigmoid": _sigmoid,
    "laplace": lambda steps, start, end: _betas_from_alpha_bar(_laplace_alpha_bar, steps),
}
BETA_SCHEDULES = tuple(NAMED_SCHEDULES)
# Those that diffusers' schedulers know by name; any other travels as `trained_betas`.
STOCK_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


class LearnedNoiseSchedule(torch.nn.Module):
    r"""Forward variances with gradients, monotone by construction.

    Args:
        forward: the process to start from, on all its T steps.
        num_segments: number M of segments of the map.

    Raises:
        ValueError: a process with zero terminal SNR, whose last log-SNR is not finite; `num_segments` below 1.
    """

    def __init__(self, forward: ForwardProcess, num_segments: int = 32):
        super().__init__()
        if num_segments < 1:
            raise ValueError(f"`num_segments` must be at least 1, got {num_segments!r}.")
        log_snr = forward.log_alphas_cumprod - forward.log_one_minus_alphas_cumprod
        if not bool(torch.isfinite(log_snr).all()):
            raise ValueError("`forward` must have a terminal SNR above zero to be learnt from, got zero.")
        self._end: torch.Tensor
        self._lengths: torch.Tensor
        edges = torch.linspace(0.0, 1.0, num_segments + 1, dtype=torch.float64) * (log_snr[0] - log_snr[-1])
        above_the_end = log_snr - log_snr[-1]
        lengths = (above_the_end[:, None] - edges[:-1]).clamp(min=0.0).minimum(torch.diff(edges))
        self.register_buffer("_end", log_snr[-1], persistent=False)
        self.register_buffer("_lengths", lengths, persistent=False)
        self.offset = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_slopes = torch.nn.Parameter(torch.zeros(num_segments, dtype=torch.float64))

    def log_snr(self) -> torch.Tensor:
        r""":math:`\lambda_t`, strictly descending, shape `(T,)`, float64."""
        return self._end + self.offset + self._lengths @ torch.exp(self.log_slopes)

    def forward(self) -> ForwardProcess:
        r"""The forward process, its tables carrying gradients to the parameters."""
        return ForwardProcess.from_log_snr(self.log_snr())

    @torch.no_grad()
    def betas(self) -> list[float]:
        r"""The betas as plain numbers: `trained_betas` for any scheduler of diffusers, ours or stock."""
        return self().betas.tolist()


def linear_log_snr(num_timesteps: int, log_snr_max: float, log_snr_min: float) -> ForwardProcess:
    r"""The process whose :math:`\lambda_t` descends in equal steps from `log_snr_max` to `log_snr_min`.

    Every step then takes away the same factor of the signal-to-noise ratio, where the stock schedules lose much of the image
    in their first few steps (Kingma et al. 2021 start from it too).

    Raises:
        ValueError: end points that are not finite or not descending; no timesteps.
    """
    check_num_timesteps("num_timesteps", num_timesteps)
    if not float("-inf") < log_snr_min < log_snr_max < float("inf"):
        raise ValueError(f"`log_snr_min` must be below `log_snr_max`, both finite, got {log_snr_min} and {log_snr_max}.")
    return ForwardProcess.from_log_snr(torch.linspace(log_snr_max, log_snr_min, num_timesteps, dtype=torch.float64))
