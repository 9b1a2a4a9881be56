r"""The reverse process p, the learned Gaussians that turn noise back into an image (Section 3.2, Ho et al. 2020).

A network looks at :math:`x_t` and predicts the noise, the image or the velocity; whichever it is, it amounts to a
prediction :math:`\hat x` of the image. The reverse step puts it where the posterior of the forward process has the image:

.. math:: p(x_s | x_t) = N(\tilde\mu_t(x_t, \hat x),\; \sigma_t^2), \qquad s \text{ the step of the grid below } t.

What the output means, and whether the variance is fixed or predicted, always through its logarithm, is a row each of
`parametrizations.py`.

**The lowest step** has no posterior variance (it is 0): it is the decoder, which must spread its mass over the pixel grid.
There :math:`\tilde\beta` means the posterior variance of the *next* step of the grid, for `fixed_large` too, as in Ho et al.
and Improved DDPM; the upper end of `learned_range` remains the step's own :math:`\beta = 1 - \bar\alpha`. With a single step
there is no next one, and both ends are that :math:`\beta`.

**A calibrated model** has an `ErrorModel` besides: its variances come from what the predictions were measured to be off
(`error_model.py`), at the lowest step the decoder's own, whatever the variance type. Learned ones go into it.
"""

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import NamedTuple

import torch

from .checks import is_number, nan_unless_finite, shown, to_working, working_dtype
from .error_model import ErrorModel, features_of
from .forward_process import ForwardProcess, Rows
from .parametrizations import PREDICTIONS, VARIANCES, Prediction, Variance, row_named
from .words import counted


class ReverseGaussian(NamedTuple):
    r""":math:`p(x_s | x_t)` and the image it was built from; all of the shape `(B, C, H, W)`, float64."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor
    pred_original_sample: torch.Tensor


@dataclass(frozen=True, eq=False)
class ReverseProcess:
    r"""How a network's output becomes :math:`p(x_s | x_t)`: frozen settings beside the forward process they belong to.

    Args:
        forward: the forward process on the grid that is scored.
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.
        variance_type: a row of `parametrizations.VARIANCES`.
        clip_sample, clip_sample_range: clamp the predicted image to [-range, range].
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of the predicted image
            (Section 2.3, Saharia et al. 2022); it takes precedence over clipping, as in diffusers.
        error_model: of a calibrated model.
        trained: the forward process on all T steps, which its learned variances are about.

    Raises:
        ValueError: unknown `prediction_type` or `variance_type`; clipping or thresholding out of range; epsilon prediction at a
            step of zero SNR, from which no image can be predicted.
    """

    forward: ForwardProcess
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    error_model: ErrorModel | None = None
    trained: ForwardProcess | None = None

    def __post_init__(self):
        row_named(PREDICTIONS, "prediction_type", self.prediction_type)
        row_named(VARIANCES, "variance_type", self.variance_type)
        for name in ("clip_sample", "thresholding"):
            if getattr(self, name) not in (True, False):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        for name in ("sample_max_value", "clip_sample_range"):
            if not is_number(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {shown(getattr(self, name))}.")
        ratio = self.dynamic_thresholding_ratio
        if not is_number(ratio) or not 0 <= ratio <= 1:
            raise ValueError(f"`dynamic_thresholding_ratio` must lie in [0, 1], got {shown(ratio)}.")
        self.prediction.check_signal(self.forward.alphas_cumprod[-1].item(), int(self.forward.timesteps[-1]))
        if self.error_model is not None:
            steps = self.forward.num_train_timesteps
            if self.trained is None or len(self.trained) != steps or len(self.error_model.offsets) != steps:
                raise ValueError(f"`error_model` and `trained` must be of all {steps} steps, got others.")

    @property
    def prediction(self) -> Prediction:
        r"""The row of `prediction_type`."""
        return PREDICTIONS[self.prediction_type]

    @property
    def variance(self) -> Variance:
        r"""The row of `variance_type`."""
        return VARIANCES[self.variance_type]

    @property
    def learns_variance(self) -> bool:
        r"""Whether the network has a second half of channels for the variance."""
        return self.variance.is_learned

    @cached_property
    def min_log_variance(self) -> torch.Tensor:
        r"""The posterior's log-variance `(K,)`, with the next step's value (or, with one step, beta's) at the lowest step."""
        table = self.forward.posterior_log_variance.clone()
        table[0] = table[1] if len(table) > 1 else self.forward.log_betas[0]
        return table

    @cached_property
    def max_log_variance(self) -> torch.Tensor:
        r"""The forward log-variance `(K,)`; where variances are fixed, with `min_log_variance` at the lowest step."""
        betas = self.forward.log_betas
        return betas if self.learns_variance else torch.cat([self.min_log_variance[:1], betas[1:]])

    def split(self, model_output: torch.Tensor, num_channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""The network's prediction `(B, C, H, W)` and, where variances are learned, its second half of the same shape; all NaN
        for an image where some of the output is not finite.

        Raises:
            ValueError: a number of channels that does not fit the variance type.
        """
        expected = num_channels * (2 if self.learns_variance else 1)
        if model_output.shape[1] != expected:
            raise ValueError(
                f"`model_output` must have {counted(expected, 'channel')} for {num_channels}-channel images with"
                f" variance_type={self.variance_type!r}, got {model_output.shape[1]}."
            )
        model_output = nan_unless_finite(model_output)
        if not self.learns_variance:
            return model_output, None
        prediction, variance = model_output.split(num_channels, dim=1)
        return prediction, variance

    def check_model_output(
        self, model_output: torch.Tensor, noisy_samples: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""`split`, and a `ValueError` unless the batch and the image size are those of `noisy_samples`."""
        prediction, predicted_variance = self.split(model_output, noisy_samples.shape[1])
        if prediction.shape != noisy_samples.shape:
            raise ValueError(
                "`model_output` must have the batch and image size of `noisy_samples`,"
                f" got {tuple(model_output.shape)} and {tuple(noisy_samples.shape)}."
            )
        return prediction, predicted_variance

    def predict(
        self, model_output: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""The two things the bound needs of :math:`p(x_s | x_t)`: the predicted image and the log-variance.

        Args:
            model_output: the network's output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            noisy_samples: latents :math:`x_t`, `(B, C, H, W)`.
            timesteps: an integer, or an integer tensor `(B,)`.

        Returns:
            Predicted image `(B, C, H, W)`, clipped as configured, and a log-variance that broadcasts with it; float64.

        Raises:
            ValueError: shapes that do not fit, timesteps off the grid.
        """
        (x_t,) = to_working(noisy_samples=noisy_samples)
        prediction, predicted_variance = self.check_model_output(model_output, noisy_samples)
        pred_original_sample = self.clip(self.prediction.original(self.forward, x_t, prediction.to(x_t.dtype), timesteps))
        if self.error_model is None:
            return pred_original_sample, self._log_variance(predicted_variance, x_t, timesteps)
        return pred_original_sample, self._calibrated_log_variance(pred_original_sample, predicted_variance, timesteps)

    def p_mean_variance(
        self, model_output: torch.Tensor, noisy_samples: torch.Tensor, timesteps: int | torch.Tensor | Rows
    ) -> ReverseGaussian:
        r""":math:`p(x_s | x_t)`; at the lowest step, the Gaussian that the decoder integrates over the pixel grid.

        Arguments and errors as `predict`.
        """
        pred_original_sample, log_variance = self.predict(model_output, noisy_samples, timesteps)
        mean = self.forward.posterior_mean(pred_original_sample, noisy_samples, timesteps)
        log_variance = log_variance.expand(mean.shape)
        return ReverseGaussian(mean, log_variance.exp(), log_variance, pred_original_sample)

    def clip(self, x: torch.Tensor) -> torch.Tensor:
        r"""A predicted image `(B, C, H, W)`, clipped as configured."""
        if self.thresholding:
            scale = torch.quantile(x.abs().flatten(1), self.dynamic_thresholding_ratio, dim=1)
            scale = scale.clamp(min=1.0, max=self.sample_max_value).reshape(-1, *[1] * (x.ndim - 1))
            return torch.clamp(x, -scale, scale) / scale
        return x.clamp(-self.clip_sample_range, self.clip_sample_range) if self.clip_sample else x

    @cached_property
    def on_all_steps(self) -> "ReverseProcess":
        r"""The chain of all T steps, not calibrated; `ValueError` where `trained` was not given."""
        if self.trained is None:
            raise ValueError("`trained` must be given where the chain of all steps is asked for, got None.")
        return replace(self, forward=self.trained, error_model=None, trained=None)

    def learned_errors(
        self, predicted_variance: torch.Tensor | None, timesteps: int | torch.Tensor | Rows
    ) -> torch.Tensor | None:
        r"""The squared errors :math:`\hat e` that learned variances stand for on the chain of all steps (`error_model.py`).

        Args:
            predicted_variance: the network's second half, `(B, C, H, W)`, or `None`.
            timesteps: an integer, or an integer tensor `(B,)`.

        Returns:
            `(B, C, H, W)`, not negative; `None` without learned variances.
        """
        if predicted_variance is None:
            return None
        like = predicted_variance.to(working_dtype(predicted_variance.device))
        trained = self.on_all_steps.forward
        variance = self.on_all_steps._log_variance(like, like, timesteps)
        # At t = 0 the posterior variance is 0 and the coefficient 1: the decoder's variance itself.
        posterior, weight = (
            trained.gather(table, timesteps, variance)
            for table in (trained.posterior_variance, trained.posterior_mean_coef1.square())
        )
        return ((variance.exp() - posterior) / weight).clamp(min=0.0)

    @cached_property
    def error_tables(self) -> list[torch.Tensor]:
        r"""The numbers of the error model on the grid, the decoder's at its lowest step: three tables `(K,)`; `ValueError`
        where there is none."""
        model, steps = self.error_model, self.forward.timesteps
        if model is None:
            raise ValueError("`error_model` must be given where its numbers are asked for, got None.")
        pairs = (
            (model.offsets, model.decoder_offsets),
            (model.gains, model.decoder_gains),
            (model.learned_gains, model.decoder_learned_gains),
        )
        return [torch.cat([decoder[steps[:1]], table[steps[1:]]]) for table, decoder in pairs]

    def _calibrated_log_variance(self, pred_original_sample, predicted_variance, timesteps) -> torch.Tensor:
        forward = self.forward
        features = features_of(pred_original_sample, self.learned_errors(predicted_variance, timesteps))
        gathered = (forward.gather(table, timesteps, pred_original_sample) for table in self.error_tables)
        errors = reduce(torch.add, (value * feature for value, feature in zip(gathered, features)))
        # At the lowest step the posterior variance is 0 and the coefficient 1.
        weight = forward.gather(forward.posterior_mean_coef1.square(), timesteps, pred_original_sample)
        posterior = forward.gather(forward.posterior_variance, timesteps, pred_original_sample)
        return (weight * errors + posterior).log()

    def _log_variance(self, predicted, x_t, timesteps) -> torch.Tensor:
        predicted = None if predicted is None else predicted.to(x_t.dtype)
        return self.variance.log_variance(_Ends(self, x_t, timesteps), predicted)


class _Ends:
    r"""The two ends between which variances lie, at some timesteps; each is looked up once, and has one gradient."""

    def __init__(self, reverse: ReverseProcess, like: torch.Tensor, timesteps: int | torch.Tensor | Rows):
        self._reverse, self._like, self._timesteps = reverse, like, timesteps

    @cached_property
    def low(self) -> torch.Tensor:
        r""":math:`\log\tilde\beta_t`, broadcasting with `like`."""
        return self._look_up(self._reverse.min_log_variance)

    @cached_property
    def high(self) -> torch.Tensor:
        r""":math:`\log\beta_t`, broadcasting with `like`."""
        return self._look_up(self._reverse.max_log_variance)

    def _look_up(self, table: torch.Tensor) -> torch.Tensor:
        entries = self._reverse.forward.gather(table, self._timesteps, self._like)
        # `full`, not `as_tensor`: filled on the device, with nothing to copy there.
        return entries if isinstance(entries, torch.Tensor) else self._like.new_full((), entries)
