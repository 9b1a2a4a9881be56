r"""What a network's output means, a row each: its prediction, and the variance of its reverse steps.

**Predictions.** Whatever the network says, with :math:`x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \epsilon` it
amounts to an image that is linear in what it saw and in what it said:

================  ============================  =============================================================================
prediction type   the network's target          the image it amounts to
================  ============================  =============================================================================
`epsilon`         :math:`\epsilon`              :math:`\hat x = (x_t - \sqrt{1 - \bar\alpha_t}\, o) / \sqrt{\bar\alpha_t}`
`sample`          :math:`x`                     :math:`\hat x = o`
`v_prediction`    :math:`\sqrt{\bar\alpha_t}\,  :math:`\hat x = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, o`
                  \epsilon - \sqrt{1 -
                  \bar\alpha_t}\, x`
================  ============================  =============================================================================

**Variances.** With :math:`\tilde\beta_t` the posterior variance and :math:`v` the network's second half of channels, the
logarithm of the variance is a straight line in v:

=====================  ======================================================================================================
`fixed_small(_log)`    :math:`\log\tilde\beta_t`
`fixed_large(_log)`    :math:`\log\beta_t`
`learned`              :math:`v`
`learned_range`        :math:`\tfrac{v + 1}{2} \log\beta_t + \tfrac{1 - v}{2} \log\tilde\beta_t` (eq. 15, Improved DDPM)
=====================  ======================================================================================================

At the lowest step :math:`\tilde\beta` is the next step's (`reverse_process.py`). The kinds `_log` name the same two Gaussians.

A row is read by scoring (`reverse_process.py`, float64), by sampling (`model/stepping.py`, Python floats and the stock
scheduler's order of operations, at whose rounding diffusers' own tests look), by the flow, the losses and the calibration. What
a place does with it, and with how many digits, is its own: the rows share what is meant, not the arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# No torch: cards and the command line read the rows before it is there. Tensors bring their own operations.


@dataclass(frozen=True)
class Prediction:
    r"""A prediction type.

    Args:
        name: as `prediction_type`.
        original: the image, from `ForwardProcess`, :math:`x_t`, the output `(B, C, H, W)` and timesteps.
        target: what the network is trained to say, from `ForwardProcess`, x, :math:`\epsilon` and timesteps.
        step: the image in `step`, from the sample, the output and `StepCoefficients`.
        flow: the image on the probability-flow ODE, from :math:`u = x_t / \sqrt{\bar\alpha}`, :math:`x_t`, the output,
            :math:`\sigma` and :math:`\sqrt{\bar\alpha}`.
        needs_signal: whether there is no image where :math:`\bar\alpha_t = 0`.
    """

    name: str
    original: Callable[..., Any]
    target: Callable[..., Any]
    step: Callable[..., Any]
    flow: Callable[..., Any]
    needs_signal: bool = False

    def check_signal(self, alphas_cumprod: float, timestep: int) -> None:
        r"""Raise `ValueError` where no image can be predicted from latents of this :math:`\bar\alpha_t`."""
        if self.needs_signal and alphas_cumprod == 0:
            raise ValueError(
                f"`prediction_type` must not be {self.name!r} where the terminal SNR is zero: at timestep {timestep}"
                " alphas_cumprod = 0 and the latent holds nothing of the image, so that the noise determines no image. Use"
                " prediction_type='v_prediction' (and a network trained for it)."
            )


def _sample_itself(forward, x_t, output, timesteps):
    forward.rows(timesteps, len(x_t))  # refuses timesteps that are none
    return output


PREDICTIONS = {
    row.name: row
    for row in (
        Prediction(
            "epsilon",
            original=lambda forward, x_t, output, t: forward.predict_original_from_epsilon(x_t, output, t),
            target=lambda forward, x, epsilon, t: epsilon,
            step=lambda x_t, output, c: x_t.sub(output, alpha=c.sqrt_beta_prod).mul_(c.inverse_sqrt_alpha_prod),
            flow=lambda u, x_t, output, sigma, root: u - sigma * output,
            needs_signal=True,
        ),
        Prediction(
            "sample",
            original=_sample_itself,
            target=lambda forward, x, epsilon, t: x,
            step=lambda x_t, output, c: output,
            flow=lambda u, x_t, output, sigma, root: output,
        ),
        Prediction(
            "v_prediction",
            original=lambda forward, x_t, output, t: forward.predict_original_from_velocity(x_t, output, t),
            target=lambda forward, x, epsilon, t: forward.velocity(x, epsilon, t),
            step=lambda x_t, output, c: x_t.mul(c.sqrt_alpha_prod).sub_(output, alpha=c.sqrt_beta_prod),
            flow=lambda u, x_t, output, sigma, root: root * x_t - sigma * root * output,
        ),
    )
}


@dataclass(frozen=True)
class Variance:
    r"""A variance type; `low` and `high` are :math:`\log\tilde\beta_t` and :math:`\log\beta_t`.

    Args:
        name: as `variance_type`.
        decoder: what the decoder's variance is, in words.
        log_variance: from `ends`, whose `low` and `high` are looked up when they are asked for, and v (`None` where variances
            are fixed).
        line: offset and slope of :math:`\log\sigma` in v, from low and high; `None` where variances are fixed.
        above: how far the log-variance lies above low, from v, low and high; `None` where variances are fixed.
        is_large: of the fixed ones, whether it is :math:`\beta_t` above the lowest step.
        for_stock: whether diffusers' own scheduler samples correctly with it.
    """

    name: str
    decoder: str
    log_variance: Callable[..., Any]
    line: Callable[[float, float], tuple[float, float]] | None = None
    above: Callable[..., Any] | None = None
    is_large: bool = False
    for_stock: bool = True

    @property
    def is_learned(self) -> bool:
        r"""Whether the network has a second half of channels for it."""
        return self.line is not None

    def error_numbers(self, one_minus_alphas_cumprod: float) -> tuple[float, float, float]:
        r"""The numbers a, b and g of the error model (`error_model.py`) that amount to it on the chain of all steps."""
        return one_minus_alphas_cumprod if self.is_large else 0.0, 0.0, float(self.is_learned)


NEXT_STEP = "the posterior variance of the next step"
VARIANCES = {
    row.name: row
    for row in (
        Variance("fixed_small", NEXT_STEP, lambda ends, v: ends.low),
        Variance("fixed_small_log", NEXT_STEP, lambda ends, v: ends.low),
        Variance("fixed_large", NEXT_STEP, lambda ends, v: ends.high, is_large=True),
        # The stock scheduler takes a log-variance for a variance here.
        Variance("fixed_large_log", NEXT_STEP, lambda ends, v: ends.high, is_large=True, for_stock=False),
        Variance(
            "learned",
            "the network's log-variance",
            log_variance=lambda ends, v: v,
            line=lambda low, high: (0.0, 0.5),
            above=lambda v, low, high: v - low,
            for_stock=False,  # takes the square root of a log-variance
        ),
        Variance(
            "learned_range",
            "between the posterior variance of the next step and the step's own beta, as the network says",
            log_variance=lambda ends, v: ends.low + 0.5 * (v + 1.0) * (ends.high - ends.low),
            line=lambda low, high: (0.25 * (high + low), 0.25 * (high - low)),
            above=lambda v, low, high: (v + 1).mul_(0.5 * (high - low)),
        ),
    )
}
# What the decoder's variance is, where no row tells.
CALIBRATED_DECODER = "as measured, with decoding from the lowest timestep that is scored"
SINGLE_STEP_DECODER = "the step's own beta (a single step has no next one)"

# Where the saved configuration of a scheduler of another noise process has the DDPM that was scored.
KEPT_UNDER = "vlb_ddpm"
# Diffusers' pipelines that a saved checkpoint names by its scheduler; `DDPMPipeline` for any other.
PIPELINES = {
    "DDIMScheduler": "DDIMPipeline",
    "PNDMScheduler": "PNDMPipeline",
    "ScoreSdeVeScheduler": "ScoreSdeVePipeline",
    "KarrasVeScheduler": "KarrasVePipeline",
}
# With which these sample pixels, of as many channels as they may have, at any number of steps that a card shows.
SAMPLED_BY_STOCK = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")

PREDICTION_TYPES = tuple(PREDICTIONS)
VARIANCE_TYPES = tuple(VARIANCES)
LEARNED_VARIANCE_TYPES = tuple(name for name, row in VARIANCES.items() if row.is_learned)


def row_named(rows: dict[str, Any], argument: str, name: Any) -> Any:
    r"""The row of a name, or `ValueError`, whatever stands in its place."""
    if not isinstance(name, str) or name not in rows:
        raise ValueError(f"`{argument}` must be one of {tuple(rows)}, got {name!r}.")
    return rows[name]


def decoder_rule(variance_type: str, num_steps: int, calibrated: bool) -> str:
    r"""What the decoder's variance is in a model of so many steps, in words."""
    if calibrated:
        return CALIBRATED_DECODER
    row = VARIANCES[variance_type]
    # A log-variance that is the network's own is it at any step.
    return SINGLE_STEP_DECODER if num_steps == 1 and variance_type != "learned" else row.decoder
