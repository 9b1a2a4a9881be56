r"""The scoring half of the scheduler: frozen processes on an explicit grid, and every term of the bound.

What is computed here depends on the configuration and on a grid of timesteps that is given: `set_timesteps` never changes a
bound. (`log_prob` alone is of a step that was taken, by default on the grid that `step` is on.) The maths is in
`forward_process.py`, `reverse_process.py`, `bound.py` and `losses.py`; these are their doors for those who hold a scheduler.
"""

import copy
from typing import Any, Literal, NamedTuple

import torch

from .bound import prior_kl, step_log_prob, vlb_terms
from .calibration.stored import MADE_FOR, Calibration
from .checks import integer, on_cpu
from .forward_process import ForwardProcess, check_inference_timesteps
from .gaussians import Gaussian
from .losses import LOSS_TYPES, hybrid_loss, simple_loss, vlb_loss
from .model.configuration import SCHEDULE_KEYS, is_default
from .model.stepping import StepCoefficients, exact_coefficients, log_density_of_step
from .noise_schedules import make_betas
from .pixel_grid import check_num_pixel_levels
from .reverse_process import ReverseGaussian, ReverseProcess

# What a reverse process is made of besides.
REVERSE_KEYS = (
    "prediction_type",
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "calibration",
)
MAX_SUB_SEQUENCES = 16  # whose tables are kept
InferenceTimesteps = list[int] | tuple[int, ...] | None


class _StepsTaken(NamedTuple):
    r"""The reverse process on the grid that `step` is on, with coefficients unless it is calibrated, and what these were made
    from."""

    made_from: list[Any]
    reverse: ReverseProcess
    coefficients: dict[int, StepCoefficients]


class BoundMixin:
    r"""What `VLBDDPMScheduler` knows of the likelihood; made for a class with diffusers' `config` of a DDPM."""

    config: Any
    alphas_cumprod: torch.Tensor
    timesteps: torch.Tensor

    def _build_tables(self) -> None:
        r"""Build what scoring is made from; called once, when the configuration is there."""
        self._built_from = copy.deepcopy(self._schedule_config())
        self._forward_betas = make_betas(**{name: self.config[name] for name in SCHEDULE_KEYS})
        self._built_alphas_cumprod = self.alphas_cumprod.clone()
        self._log_alphas_cumprod = torch.cumsum(torch.log1p(-self._forward_betas), dim=0)
        self._forward_processes: dict[tuple[int, ...] | None, ForwardProcess] = {}
        self._calibration: Calibration | None = None
        self._steps_taken: _StepsTaken | None = None

    def forward_process(self, inference_timesteps: InferenceTimesteps = None) -> ForwardProcess:
        r"""The forward process on all T steps, or on the strictly descending sub-sequence `inference_timesteps`.

        Raises:
            ValueError: betas that cannot be scored (outside (0, 1), or not T of them), a bad sub-sequence.
        """
        self._check_configuration()
        built = self._built_alphas_cumprod
        if not torch.equal(self.alphas_cumprod.to(built), built):
            raise ValueError(
                "`alphas_cumprod` must be the scheduler's own for the model to be scored, got others. Make a new scheduler with"
                " `from_config(..., trained_betas=...)`."
            )
        num_steps = self.config.num_train_timesteps
        if len(self._forward_betas) != num_steps:
            raise ValueError(
                f"`trained_betas` must have num_train_timesteps = {num_steps} entries for the model to be scored,"
                f" got {len(self._forward_betas)}."
            )
        key = None
        if inference_timesteps is not None:
            key = tuple(check_inference_timesteps(inference_timesteps, num_steps))
        process = self._forward_processes.get(key)
        if process is None:
            process = ForwardProcess.from_betas(self._forward_betas, key)
            # Another thread may forget what this one has just found: what is returned is not looked up again.
            for old in [old for old in list(self._forward_processes) if old is not None][: -MAX_SUB_SEQUENCES + 1]:
                self._forward_processes.pop(old, None)
            self._forward_processes[key] = process
        return process

    def _check_configuration(self) -> None:
        r"""Raise `ValueError` where the configuration does not say any more what the tables were built from."""
        for name, built, now in zip(SCHEDULE_KEYS, self._built_from, self._schedule_config()):
            if not is_default(now, built):
                raise ValueError(
                    f"`{name}` must be what the scheduler was built from, {built!r}, got {now!r}."
                    f" Make a new scheduler with `from_config(..., {name}=...)`."
                )

    def _schedule_config(self) -> list[Any]:
        return [self.config[name] for name in SCHEDULE_KEYS]

    @property
    def calibration(self) -> Calibration | None:
        r"""The calibration of this model, if it has one.

        Raises:
            ValueError: a configuration that holds another model's.
        """
        config = self.config.get("calibration")
        if config is None:
            return None
        calibration = self._calibration
        if calibration is None or calibration.config is not config:
            calibration = Calibration(config, self.forward_process())
        for name in MADE_FOR:
            if config.get(name) != self.config[name]:
                raise ValueError(
                    f"`calibration` must be of this model, got one for {name} = {config.get(name)!r}, not"
                    f" {self.config[name]!r}. Calibrate anew, or leave it out with `from_config(..., calibration=None)`."
                )
        self._calibration = calibration
        return calibration

    def reverse_process(
        self,
        inference_timesteps: InferenceTimesteps = None,
        *,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        forward_process: ForwardProcess | None = None,
        calibrated: bool = True,
    ) -> ReverseProcess:
        r"""The reverse process on the same grid, as configured; `clip_sample` and `thresholding` override the configuration,
        `forward_process` (a learnable one, say) takes the place of the configured one, and is not calibrated.

        Raises:
            ValueError: as `forward_process`; unknown prediction or variance type; epsilon prediction at zero SNR; another
                model's calibration.
        """
        calibration = self.calibration if calibrated and forward_process is None else None
        if forward_process is not None and inference_timesteps is not None:
            raise ValueError("Only one of `forward_process` and `inference_timesteps` may be given, got both.")
        config = self.config
        return ReverseProcess(
            self.forward_process(inference_timesteps) if forward_process is None else forward_process,
            prediction_type=config.prediction_type,
            variance_type=config.variance_type,
            clip_sample=config.clip_sample if clip_sample is None else clip_sample,
            clip_sample_range=config.clip_sample_range,
            thresholding=config.thresholding if thresholding is None else thresholding,
            dynamic_thresholding_ratio=config.dynamic_thresholding_ratio,
            sample_max_value=config.sample_max_value,
            error_model=None if calibration is None else calibration.error_model,
            trained=None if calibration is None else calibration.trained,
        )

    def q_mean_variance(
        self, original_samples: torch.Tensor, timesteps, *, inference_timesteps: InferenceTimesteps = None
    ) -> Gaussian:
        r""":math:`q(x_t | x_0)`; see [`~ddpm_vlb.forward_process.ForwardProcess.q_mean_variance`].

        Args:
            original_samples (`torch.Tensor`): Images of shape `(B, C, H, W)`.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps.
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is scored.

        Returns:
            `Gaussian`: `mean`, `variance`, `log_variance`, each float64 of shape `(B, C, H, W)`.
        """
        return self.forward_process(inference_timesteps).q_mean_variance(original_samples, on_cpu(timesteps))

    def q_step_mean_variance(
        self, samples: torch.Tensor, timesteps, *, inference_timesteps: InferenceTimesteps = None
    ) -> Gaussian:
        r""":math:`q(x_t | x_{t-1})` for `samples` :math:`x_{t-1}`, the latents one step of the grid below `timesteps`.

        Arguments and returns as [`~VLBDDPMScheduler.q_mean_variance`].
        """
        return self.forward_process(inference_timesteps).q_step_mean_variance(samples, on_cpu(timesteps))

    def q_posterior_mean_variance(
        self,
        original_samples: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        *,
        inference_timesteps: InferenceTimesteps = None,
    ) -> Gaussian:
        r"""The exact posterior :math:`q(x_{t-1} | x_t, x_0)` (eqs. 6 and 7, Ho et al. 2020).

        Arguments and returns as [`~VLBDDPMScheduler.q_mean_variance`], with `noisy_samples` the latents :math:`x_t`. At the
        lowest step it is the image itself: variance 0, log-variance -inf.
        """
        forward = self.forward_process(inference_timesteps)
        return forward.q_posterior_mean_variance(original_samples, noisy_samples, on_cpu(timesteps))

    def p_mean_variance(
        self,
        model_output: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        *,
        inference_timesteps: InferenceTimesteps = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
    ) -> ReverseGaussian:
        r"""The model's step :math:`p(x_{t-1} | x_t)`.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            noisy_samples (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps.
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is scored.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*): Override the configuration.

        Returns:
            `ReverseGaussian`: `mean`, `variance`, `log_variance`, `pred_original_sample`, each float64 `(B, C, H, W)`.
        """
        reverse = self.reverse_process(inference_timesteps, clip_sample=clip_sample, thresholding=thresholding)
        return reverse.p_mean_variance(model_output, noisy_samples, on_cpu(timesteps))

    def prior_kl(self, original_samples: torch.Tensor, *, inference_timesteps: InferenceTimesteps = None) -> torch.Tensor:
        r""":math:`L_T` in nats, float64 of shape `(B,)`, for `original_samples` of shape `(B, C, H, W)`."""
        return prior_kl(self.forward_process(inference_timesteps), original_samples)

    def vlb_terms(
        self,
        model_output: torch.Tensor,
        original_samples: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        *,
        inference_timesteps: InferenceTimesteps = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
    ) -> torch.Tensor:
        r"""The terms of the bound: :math:`L_t` (closed-form KL) above the lowest timestep, :math:`L_0` (decoder) at it.

        Arguments as [`~VLBDDPMScheduler.p_mean_variance`], with `original_samples` the images, `(B, C, H, W)`; those at the
        lowest timestep must lie on the pixel grid.

        Returns:
            `torch.Tensor`: Nats, float64 of shape `(B,)`.
        """
        check_num_pixel_levels(self.config.num_pixel_levels)
        reverse = self.reverse_process(inference_timesteps, clip_sample=clip_sample, thresholding=thresholding)
        return vlb_terms(
            reverse, model_output, original_samples, noisy_samples, on_cpu(timesteps), self.config.num_pixel_levels
        )

    def log_prob(
        self,
        prev_sample: torch.Tensor,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        timestep,
        *,
        decoder: Literal["density", "discretized"] = "density",
        reduction: Literal["sum", "mean"] = "sum",
        inference_timesteps: InferenceTimesteps = None,
    ) -> torch.Tensor:
        r""":math:`\log p(x_s | x_t)` of a step that was taken, as policy gradients and importance weights ask for it.

        Differentiable in `model_output`, `sample` and `prev_sample`; a policy gradient takes the last as data
        (`prev_sample.detach()`). A clipped prediction has no gradient where it is clipped: `clip_sample=False` in the
        configuration of a policy. The last step is finite for every variance type: the decoder has a variance.

        Args:
            prev_sample (`torch.Tensor`): The latents :math:`x_s` that the step led to, `(B, C, H, W)`: `step`'s `prev_sample`.
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            sample (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            timestep (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps, on the CPU where a wait for the
                accelerator matters.
            decoder (`str`, defaults to `"density"`): What the lowest timestep has: the `"density"` of the decoder's Gaussian,
                which any image has, or the log-probability of the `"discretized"` decoder, as in the bound, for images on
                the pixel grid (those of `draw_from_decoder`).
            reduction (`str`, defaults to `"sum"`): `"sum"` over the dimensions of an image, or their `"mean"`.
            inference_timesteps (`list[int]`, *optional*): Strictly descending grid of the steps; by default the one that `step`
                is on, `timesteps`.

        Returns:
            `torch.Tensor`: Nats per image (per dimension with `"mean"`), float64 of shape `(B,)`.

        Raises:
            ValueError: shapes that do not fit, timesteps off the grid, images off the pixel grid with `"discretized"`, a model
                that cannot be scored.
        """
        for name, value, known in (
            ("decoder", decoder, ("density", "discretized")),
            ("reduction", reduction, ("sum", "mean")),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be {known[0]!r} or {known[1]!r}, got {value!r}.")
        steps = self._steps_taken_now() if inference_timesteps is None else None
        c = None if steps is None else _coefficients_for(steps, prev_sample, model_output, sample, timestep)
        if steps is not None and c is not None and not (c.is_last and decoder == "discretized"):
            nats = log_density_of_step(steps.reverse, prev_sample, model_output, sample, c)
        else:
            reverse = self.reverse_process(inference_timesteps) if steps is None else steps.reverse
            levels = self.config.num_pixel_levels if decoder == "discretized" else None
            nats = step_log_prob(reverse, prev_sample, model_output, sample, on_cpu(timestep), levels)
        return nats if reduction == "sum" else nats / sample[0].numel()

    def _steps_taken_now(self) -> _StepsTaken:
        r"""Of `timesteps`; made anew when these or the configuration are others."""
        self._check_configuration()
        made_from = [self.timesteps, self.alphas_cumprod, *(self.config.get(name) for name in REVERSE_KEYS)]
        steps = self._steps_taken
        if steps is None or not all(a is b for a, b in zip(made_from, steps.made_from)):
            reverse = self.reverse_process(self.timesteps.tolist())
            steps = _StepsTaken(made_from, reverse, exact_coefficients(reverse) if reverse.error_model is None else {})
            self._steps_taken = steps
        return steps

    def training_loss(
        self,
        model_output: torch.Tensor,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        noisy_samples: torch.Tensor,
        timesteps,
        loss_type: Literal["simple", "vlb", "hybrid"] = "simple",
        *,
        inference_timesteps: InferenceTimesteps = None,
        clip_sample: bool | None = None,
        thresholding: bool | None = None,
        forward_process: ForwardProcess | None = None,
        validate_args: bool = True,
    ) -> torch.Tensor:
        r"""A training objective per image; see [`ddpm_vlb.losses`] for the three.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            original_samples, noise, noisy_samples (`torch.Tensor`): :math:`x_0`, :math:`\epsilon`, and the :math:`x_t` made of
                them, each `(B, C, H, W)`. For `"vlb"` and `"hybrid"` :math:`x_0` must lie on the pixel grid at every t, in
                float32 or float64.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps, on the CPU where a wait for the
                accelerator matters.
            loss_type (`str`, defaults to `"simple"`): `"simple"` (mean squared error per element), `"vlb"`
                (:math:`T L_t` in bits/dim) or `"hybrid"` (`simple + 1e-3 * vlb`).
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is trained.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*): Override the configuration in the bound; a
                clipped prediction has no gradient where it is clipped.
            forward_process (`ForwardProcess`, *optional*): In place of the configured one, and what `noisy_samples` were made
                with; a learnable one (see [`ddpm_vlb.noise_schedules`]) adds its :math:`L_T` to the bound.
            validate_args (`bool`, defaults to `True`): Whether to ask if :math:`x_0` lies on the grid, which waits for the
                accelerator. `False` is for images made of levels.

        Returns:
            `torch.Tensor`: Shape `(B,)`.
        """
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"`loss_type` must be one of {LOSS_TYPES}, got {loss_type!r}.")
        timesteps = on_cpu(timesteps)
        reverse = self.reverse_process(
            inference_timesteps, clip_sample=clip_sample, thresholding=thresholding, forward_process=forward_process
        )
        if loss_type == "simple":
            return simple_loss(reverse, model_output, original_samples, noise, timesteps)
        check_num_pixel_levels(self.config.num_pixel_levels)
        latents = (noisy_samples,) if loss_type == "vlb" else (noise, noisy_samples)
        loss: Any = vlb_loss if loss_type == "vlb" else hybrid_loss
        levels = self.config.num_pixel_levels
        return loss(reverse, model_output, original_samples, *latents, timesteps, levels, validate_args=validate_args)


def _coefficients_for(steps: _StepsTaken, prev_sample, model_output, sample, timestep) -> StepCoefficients | None:
    r"""Of one timestep, where all shapes fit; `None` else, and `step_log_prob` has the words for what does not."""
    if not isinstance(timestep, int) and not (isinstance(timestep, torch.Tensor) and timestep.ndim == 0):
        return None
    channels = sample.shape[1:2].numel() * (2 if steps.reverse.learns_variance else 1)
    expected = (*sample.shape[:1], channels, *sample.shape[2:])
    fits = sample.ndim > 1 and prev_sample.shape == sample.shape and model_output.shape == expected
    if not fits or not all(one.is_floating_point() for one in (prev_sample, model_output, sample)):
        return None
    try:
        return steps.coefficients.get(integer(timestep))
    except TypeError:
        return None
