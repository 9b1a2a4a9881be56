r"""A step of the reverse process from Python floats: what `VLBDDPMScheduler.step` computes with.

The same Gaussian as `reverse_process.py` tells, in the arithmetic of the samples: coefficients are looked up as floats once a
grid is set, so that a step costs the device a handful of operations and no wait. So does the log-probability of a step, from
coefficients in float64: a ratio of two policies is close to 1, and the rounding of float32 tables alone would move it by more
than it is off.
"""

import math
from typing import NamedTuple

import torch

from ..checks import working_dtype
from ..parametrizations import PREDICTIONS, VARIANCES, Variance, row_named
from ..reverse_process import ReverseProcess
from ..words import counted

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class StepCoefficients(NamedTuple):
    r"""What `step` needs at one timestep, as Python floats (s is the next lower step of the grid)."""

    sqrt_alpha_prod: float
    inverse_sqrt_alpha_prod: float
    sqrt_beta_prod: float
    pred_original_sample_coeff: float
    current_sample_coeff: float
    min_log_variance: float
    max_log_variance: float
    fixed_std: float
    is_last: bool
    calibrated: "CalibratedStep | None" = None


class CalibratedStep(NamedTuple):
    r"""The numbers of a calibrated variance at one timestep (`error_model.py`), as Python floats."""

    posterior_variance: float
    weight: float
    offset: float
    gain: float
    learned_gain: float
    # What learned variances mean on the chain of all steps.
    trained_log_variance: float
    trained_log_beta: float
    trained_ratio: float


def variance_of(variance_type: str) -> Variance:
    r"""The row of a variance type; unknown ones act as `fixed_small`, as in the stock scheduler, and scoring refuses them."""
    known = isinstance(variance_type, str) and variance_type in VARIANCES
    return VARIANCES[variance_type if known else "fixed_small"]


def step_coefficients(
    alphas_cumprod: torch.Tensor, grid: list[int], variance_type: str, calibrated: list[CalibratedStep] | None
) -> dict[int, StepCoefficients]:
    r"""The coefficients at each timestep of a strictly descending grid.

    Args:
        alphas_cumprod: the scheduler's table, `(T,)`.
        grid: timesteps, K.
        variance_type: of the scheduler.
        calibrated: of a calibrated model, K.
    """
    # In float32 and in the stock scheduler's order of operations: diffusers' own tests compare sums of trajectories to
    # places at which the rounding of these tables tells. Near t = 0 that rounding is relative to 1 - alphas_cumprod; the
    # terms of the bound come from float64 tables.
    table = torch.cat([alphas_cumprod.cpu(), torch.ones(1)])  # the entry at -1 is the data's
    alpha_prod, alpha_prod_prev = table[torch.tensor(grid, dtype=torch.int64)], table[[*grid[1:], -1]]
    beta_prod, beta_prod_prev = 1 - alpha_prod, 1 - alpha_prod_prev
    alpha = alpha_prod / alpha_prod_prev
    beta = 1 - alpha
    variance = torch.clamp(beta_prod_prev / beta_prod * beta, min=1e-20)
    fixed_variance = beta if variance_of(variance_type).is_large else variance
    columns: dict[str, torch.Tensor] = dict(
        sqrt_alpha_prod=alpha_prod**0.5,
        inverse_sqrt_alpha_prod=1 / alpha_prod**0.5,
        sqrt_beta_prod=beta_prod**0.5,
        pred_original_sample_coeff=alpha_prod_prev**0.5 * beta / beta_prod,
        current_sample_coeff=alpha**0.5 * beta_prod_prev / beta_prod,
        min_log_variance=torch.log(variance),
        max_log_variance=torch.log(beta),
        fixed_std=fixed_variance**0.5,
        is_last=torch.arange(1, len(grid) + 1) == len(grid),
    )
    rows = zip(*(column.tolist() for column in columns.values()))
    steps = [StepCoefficients(**dict(zip(columns, row))) for row in rows]
    if calibrated is not None:
        steps = [step._replace(calibrated=numbers) for step, numbers in zip(steps, calibrated)]
    return dict(zip(grid, steps))


def exact_coefficients(reverse: ReverseProcess) -> dict[int, StepCoefficients]:
    r"""The coefficients at each timestep of a grid, the decoder's Gaussian at its lowest, from the tables of the bound: what
    `log_density_of_step` takes, of a model that is not calibrated."""
    forward = reverse.forward
    log_variance = reverse.max_log_variance if reverse.variance.is_large else reverse.min_log_variance
    columns: dict[str, torch.Tensor] = dict(
        sqrt_alpha_prod=forward.sqrt_alphas_cumprod,
        inverse_sqrt_alpha_prod=1 / forward.sqrt_alphas_cumprod,
        sqrt_beta_prod=forward.one_minus_alphas_cumprod.sqrt(),
        pred_original_sample_coeff=forward.posterior_mean_coef1,
        current_sample_coeff=forward.posterior_mean_coef2,
        min_log_variance=reverse.min_log_variance,
        max_log_variance=reverse.max_log_variance,
        fixed_std=(0.5 * log_variance).exp(),
        is_last=torch.arange(len(forward)) == 0,
    )
    rows = zip(*(column.tolist() for column in columns.values()))
    return dict(zip(forward.timesteps.tolist(), (StepCoefficients(**dict(zip(columns, row))) for row in rows)))


def log_density_of_step(
    reverse: ReverseProcess,
    prev_sample: torch.Tensor,
    model_output: torch.Tensor,
    sample: torch.Tensor,
    c: StepCoefficients,
) -> torch.Tensor:
    r""":math:`\log p(x_s | x_t)` at one timestep, as `bound.step_log_prob` has it, in fewer operations.

    Args:
        reverse: the model, not calibrated.
        prev_sample, sample: :math:`x_s` and :math:`x_t`, floating-point, `(B, C, H, W)`.
        model_output: `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
        c: the timestep's `exact_coefficients`.

    Returns:
        Nats, shape `(B,)`, in the working dtype; NaN for an image where the output is not finite.
    """
    dtype = working_dtype(sample.device)
    model_output, x_t = model_output.to(dtype), sample.to(dtype)
    prediction, learned = model_output, None
    if reverse.learns_variance:
        prediction, learned = model_output.split(sample.shape[1], dim=1)
    x_0 = reverse.clip(reverse.prediction.step(x_t, prediction, c))
    difference = prev_sample.to(dtype).sub(x_t, alpha=c.current_sample_coeff).sub_(x_0, alpha=c.pred_original_sample_coeff)
    size = sample[0].numel()
    if learned is None or reverse.variance.line is None:
        squares = difference.flatten(1).square().sum(dim=1)
        nats = squares.mul(-0.5 / c.fixed_std**2).sub(size * (math.log(c.fixed_std) + HALF_LOG_TWO_PI))
    else:
        offset, slope = reverse.variance.line(c.min_log_variance, c.max_log_variance)
        log_std = learned * slope + offset
        terms = (difference * torch.exp(-log_std)).square().mul(-0.5).sub(log_std)
        nats = terms.flatten(1).sum(dim=1).sub(size * HALF_LOG_TWO_PI)
    # As `nan_unless_finite`: a product with 1, or with NaN where clipping has made a number of an overflow.
    return nats * (model_output.flatten(1).sum(dim=1) * 0.0 + 1.0)


def calibrated_steps(reverse: ReverseProcess) -> list[CalibratedStep]:
    r"""The numbers of a calibrated model at each timestep of its grid, descending."""
    forward, trained, used = reverse.forward, reverse.on_all_steps.forward, reverse.forward.timesteps
    weight = trained.posterior_mean_coef1.square()
    columns = (
        forward.posterior_variance,
        forward.posterior_mean_coef1.square(),
        *reverse.error_tables,
        trained.posterior_log_variance[used],
        trained.log_betas[used],
        (trained.posterior_variance / weight)[used],
    )
    return [CalibratedStep(*row) for row in zip(*(column.flip(0).tolist() for column in columns))]


def split_output(model_output: torch.Tensor, num_channels: int, variance_type: str) -> tuple[torch.Tensor, ...]:
    r"""The network's prediction and its second half.

    Raises:
        ValueError: a number of channels that does not fit the variance type.
    """
    learned = variance_of(variance_type).is_learned
    if not learned or model_output.shape[1] != 2 * num_channels:
        raise ValueError(
            f"`model_output` must have {counted(2 * num_channels if learned else num_channels, 'channel')} for"
            f" {num_channels}-channel samples with variance_type={variance_type!r},"
            f" got {model_output.shape[1]}."
        )
    return model_output.split(num_channels, dim=1)


def predict_original(
    prediction_type: str, model_output: torch.Tensor, sample: torch.Tensor, c: StepCoefficients
) -> torch.Tensor:
    r"""The image that an output amounts to, before clipping.

    Raises:
        ValueError: an unknown `prediction_type`.
    """
    return row_named(PREDICTIONS, "prediction_type", prediction_type).step(sample, model_output, c)


def add_noise_of_step(
    mean: torch.Tensor,
    noise: torch.Tensor,
    variance_type: str,
    c: StepCoefficients,
    pred_original_sample: torch.Tensor,
    predicted_variance: torch.Tensor | None,
) -> None:
    r"""Add :math:`\sigma_t` times the noise to the mean, in place."""
    row = variance_of(variance_type)
    if c.calibrated is not None:
        mean.addcmul_(_calibrated_std(c.calibrated, row, pred_original_sample, predicted_variance), noise)
    elif predicted_variance is None or row.line is None:
        mean.add_(noise, alpha=c.fixed_std)
    else:
        offset, slope = row.line(c.min_log_variance, c.max_log_variance)
        predicted_variance = predicted_variance.to(mean.dtype)
        mean.addcmul_(torch.mul(predicted_variance, slope).exp_(), noise, value=math.exp(offset))


def _calibrated_std(c: CalibratedStep, row: Variance, pred_original_sample, predicted_variance) -> torch.Tensor:
    errors = torch.clamp(1 - pred_original_sample.square(), min=0.0).mul_(c.gain).add_(c.offset)
    if predicted_variance is not None and row.above is not None and c.learned_gain:
        above = row.above(predicted_variance.to(pred_original_sample.dtype), c.trained_log_variance, c.trained_log_beta)
        errors.add_(above.expm1_().clamp_(min=0.0), alpha=c.learned_gain * c.trained_ratio)
    return errors.mul_(c.weight).add_(c.posterior_variance).sqrt_()
