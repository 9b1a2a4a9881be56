r"""`VLBDDPMScheduler`: the maths of this package behind diffusers' scheduler API.

Two uses of one configuration. *Sampling* keeps the methods, signatures and random streams of `diffusers.DDPMScheduler`, and
reads its coefficients from Python floats. *Scoring* asks for frozen `ForwardProcess` and `ReverseProcess` objects, which
depend on the configuration and on an explicit grid of timesteps alone (`scheduling_bound.py`).
"""

import operator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

# diffusers looks the base class of a saved scheduler up in the module that the pipeline index names.
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from .checks import check_integer, check_num_timesteps
from .forward_process import check_inference_timesteps
from .model.configuration import SchedulerConfig, as_saved, check_sampler_of, check_scheduler_config, plain_values, read_config
from .model.stepping import (
    StepCoefficients,
    add_noise_of_step,
    calibrated_steps,
    predict_original,
    split_output,
    step_coefficients,
    variance_of,
)
from .noise_processes import check_as_ddpm
from .outputs import VLBDDPMSchedulerOutput
from .pixel_grid import to_grid
from .scheduling_bound import BoundMixin

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.get_logger(__name__)


class _Steps(NamedTuple):
    r"""The coefficients of a grid, and what they were made from."""

    timesteps: torch.Tensor
    grid: list[int]
    variance_type: str
    calibration: dict[str, Any] | None
    alphas_cumprod: torch.Tensor
    coefficients: dict[int, StepCoefficients]


class VLBDDPMScheduler(BoundMixin, DDPMScheduler):
    r"""
    A `DDPMScheduler` that knows the likelihood of its model: exact posteriors, and every term of the variational bound.

    Everything `DDPMScheduler` takes and does stays; where it is wrong (log-variance types, noise on the final image, noise in
    low precision, grids with a step -1) this class is right. Timesteps are zero-based.

    What is assigned to an entry of `config` holds for sampling, scoring, reports and files alike. The number of steps and the
    betas, of which the tables were built, are refused when they have changed: make a new scheduler with `from_config`.

    Parameters:
        num_train_timesteps (`int`, defaults to 1000):
            Number of diffusion steps T.
        beta_start (`float`, defaults to 0.0001), beta_end (`float`, defaults to 0.02):
            First and last forward variance.
        beta_schedule (`str`, defaults to `"linear"`):
            `"linear"`, `"scaled_linear"`, `"squaredcos_cap_v2"`, `"sigmoid"` or `"laplace"`.
        trained_betas (`np.ndarray` or `list[float]`, *optional*):
            The forward variances themselves.
        variance_type (`str`, defaults to `"fixed_small"`):
            `"fixed_small"`, `"fixed_small_log"`, `"fixed_large"`, `"fixed_large_log"`, `"learned"` (the network's second half
            is the log-variance) or `"learned_range"`.
        clip_sample (`bool`, defaults to `True`), clip_sample_range (`float`, defaults to 1.0):
            Clamp the predicted image.
        prediction_type (`str`, defaults to `"epsilon"`):
            `"epsilon"`, `"sample"` or `"v_prediction"`.
        thresholding (`bool`, defaults to `False`), dynamic_thresholding_ratio (`float`, defaults to 0.995), sample_max_value
            (`float`, defaults to 1.0): Dynamic thresholding of the predicted image.
        timestep_spacing (`str`, defaults to `"leading"`), steps_offset (`int`, defaults to 0):
            How `set_timesteps` places a sub-sequence.
        rescale_betas_zero_snr (`bool`, defaults to `False`):
            Rescale the betas to zero terminal SNR.
        num_pixel_levels (`int`, defaults to 256):
            Number of grey levels of the images that are scored; level k stands for 2 k / (num_pixel_levels - 1) - 1.
        calibration (`dict`, *optional*):
            What `ddpm-vlb calibrate` measured: better variances, a decoder and sub-schedules for the same network. Where it
            is there, `num_inference_steps=K` means its best K timesteps, in sampling and in scoring.
        noise_process (`dict`, *optional*), sampler (`dict`, *optional*):
            The configuration of the scheduler that the network came with, of another process (flow matching, EDM, variance
            exploding) or another of a DDPM's (DDIM, Euler ...), of which `from_config` makes ours; what is saved is it, with
            ours in it. With a `noise_process`, what `step` and the terms are given is the predicted image, as `pipe.network`
            makes it of what the network says (`noise_processes.py`).
        unlabelled_class (`int`, *optional*):
            The class that stands for "no label", of a network trained for guidance: none to choose by `classify`.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"] = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        variance_type: Literal[
            "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
        ] = "fixed_small",
        clip_sample: bool = True,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        num_pixel_levels: int = 256,
        calibration: dict[str, Any] | None = None,
        noise_process: dict[str, Any] | None = None,
        unlabelled_class: int | None = None,
        sampler: dict[str, Any] | None = None,
    ):
        check_num_timesteps("num_train_timesteps", num_train_timesteps)  # before there are tables of that length
        check_as_ddpm(noise_process, prediction_type, variance_type)
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,  # pyright: ignore[reportArgumentType]  # takes "laplace" too
            trained_betas=trained_betas,
            variance_type=variance_type,
            clip_sample=clip_sample,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.register_to_config(**plain_values(self.config))
        check_sampler_of(self.config)
        self._build_tables()
        self._steps: _Steps | None = None

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        r"""As [`~diffusers.ConfigMixin.from_config`], for any scheduler that `upgrade_scheduler` takes; errors as there."""
        return super().from_config(read_config(config, cls.__name__), return_unused_kwargs, **kwargs)

    def to_json_string(self) -> str:
        r"""The configuration, as JSON; that of its `noise_process` or `sampler` where there is one, with this one in it."""
        return as_saved(super().to_json_string())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {super().to_json_string()}"

    def register_to_config(self, **kwargs):
        r"""As [`~diffusers.ConfigMixin.register_to_config`]; the configuration becomes a `SchedulerConfig`."""
        super().register_to_config(**kwargs)
        self._internal_dict = SchedulerConfig.of(self._internal_dict, type(self))

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> "CommitInfo":
        r"""Push `scheduler_config.json` to the Hub, and a card where the repository has none; numbers that were measured with
        another one leave.

        Arguments, returns and errors as [`~VLBDDPMPipeline.push_to_hub`]; `safe_serialization` and `variant` are about weights,
        of which a scheduler has none.
        """
        # The way to the Hub is looked up when it is wanted: no term of the bound leans on it.
        from .hub.push import push_scheduler

        return push_scheduler(
            self.to_json_string(),
            repo_id,
            config_name=self.config_name,
            subfolder=subfolder,
            commit_message=commit_message or "Upload scheduler",
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
        )

    # Sampling: diffusers' methods.

    def inference_grid(self, num_inference_steps: int) -> list[int]:
        r"""The strictly descending timesteps that `set_timesteps(num_inference_steps)` samples on; changes nothing. They are
        spaced as configured, or the calibration's best.

        Raises:
            ValueError: `num_inference_steps` not in [1, T], an unknown spacing, or a `steps_offset` that leaves [0, T).
        """
        num_steps, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        num_inference_steps = check_integer("num_inference_steps", num_inference_steps)
        if not 1 <= num_inference_steps <= num_steps:
            raise ValueError(f"`num_inference_steps` must lie in [1, {num_steps}], got {num_inference_steps}.")
        if self.calibration is not None:
            return self.calibration.timesteps(num_inference_steps)
        if spacing == "linspace":
            grid = np.linspace(0, num_steps - 1, num_inference_steps).round()[::-1]
        elif spacing == "leading":
            ratio = num_steps // num_inference_steps
            offset = self.config.steps_offset if num_inference_steps < num_steps else 0  # all steps are one grid
            grid = (np.arange(num_inference_steps) * ratio)[::-1] + offset
            if grid[0] >= num_steps:
                raise ValueError(
                    f"`steps_offset` must leave timesteps in [0, {num_steps}), got {offset} for {len(grid)} steps."
                )
        elif spacing == "trailing":
            # `arange` with a fractional step may run one entry too far; the stock scheduler then samples at t = -1.
            grid = np.arange(num_steps, 0, -num_steps / num_inference_steps)[:num_inference_steps].round() - 1
        else:
            raise ValueError(f"`timestep_spacing` must be 'linspace', 'leading' or 'trailing', got {spacing!r}.")
        return check_inference_timesteps(grid.astype(np.int64).tolist(), num_steps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ):
        r"""Set the timesteps that `step` moves along: `num_inference_steps` of them, or `timesteps` themselves.

        Raises:
            ValueError: both or neither given, a grid that is not strictly descending in [0, T), or values in the configuration
                that no step could be made with.
        """
        check_scheduler_config(self.config)
        if num_inference_steps is not None and timesteps is None:
            grid = self.inference_grid(num_inference_steps)
            self.num_inference_steps = len(grid)
        elif timesteps is not None and num_inference_steps is None:
            grid = check_inference_timesteps(timesteps, self.config.num_train_timesteps)
        else:
            raise ValueError(
                "Exactly one of `num_inference_steps` and `timesteps` must be given,"
                f" got {num_inference_steps!r} and {timesteps!r}."
            )
        self.custom_timesteps = timesteps is not None
        self.timesteps = own = torch.tensor(grid, device=device)
        self._use_grid(own, grid)

    def _use_grid(self, timesteps: torch.Tensor, grid: list[int]) -> _Steps:
        self._check_configuration()
        steps, alphas = self._steps, self.alphas_cumprod
        variance_type, calibration = self.config.variance_type, self.config.get("calibration")
        valid = [step for step in grid if 0 <= step < len(alphas)]
        if steps is not None and steps.grid == valid and self._are_of_configuration(steps) and steps.alphas_cumprod is alphas:
            steps = steps._replace(timesteps=timesteps)
        else:
            calibrated = None
            if calibration is not None and valid:
                calibrated = calibrated_steps(self.reverse_process(valid))
            coefficients = step_coefficients(alphas, valid, variance_type, calibrated)
            steps = _Steps(timesteps, valid, variance_type, calibration, alphas, coefficients)
        # At once: other threads find a grid with its own coefficients, or make them anew.
        self._steps = steps
        return steps

    def _are_of_configuration(self, steps: _Steps) -> bool:
        config = self.config
        return steps.variance_type is config.variance_type and steps.calibration is config.get("calibration")

    def _coefficients(self, timestep) -> StepCoefficients:
        steps = self._steps
        # Never set, assigned from outside, or another configuration.
        if steps is None or steps.timesteps is not self.timesteps or not self._are_of_configuration(steps):
            timesteps = self.timesteps
            steps = self._use_grid(timesteps, check_inference_timesteps(timesteps.tolist(), self.config.num_train_timesteps))
        try:
            step = timestep if type(timestep) is int else operator.index(timestep)
        except TypeError:
            raise ValueError(f"`timestep` must be one integer, got {timestep!r}.") from None
        coefficients = steps.coefficients.get(step)
        if coefficients is None:
            raise ValueError(
                f"`timestep` must be one of the scheduler's `timesteps` in [0, {len(self.alphas_cumprod)}), got {step}."
            )
        return coefficients

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        return_log_prob: bool = False,
    ) -> DDPMSchedulerOutput | tuple:
        r"""Draw :math:`x_s \sim p(x_s | x_t)`, s the next lower step of the grid; at the lowest step, return the decoder's
        mean.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            timestep (`int`): Current timestep t; an `int` or a CPU tensor costs no wait for the device.
            sample (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            generator (`torch.Generator`, *optional*): Source of the noise, drawn as `DDPMScheduler` draws it.
            return_dict (`bool`, defaults to `True`): Return a `DDPMSchedulerOutput` or a tuple.
            return_log_prob (`bool`, defaults to `False`): Return `log_prob` besides, what [`~VLBDDPMScheduler.log_prob`] says
                of `prev_sample` held fixed: nats per image, `(B,)`; the density of the decoder's Gaussian at the lowest step,
                at which nothing is drawn.

        Returns:
            `DDPMSchedulerOutput` or `tuple`: `prev_sample` and `pred_original_sample`, in the dtype of `sample` and
            `model_output` combined; half-precision arithmetic is done in float32. With `return_log_prob` a
            `VLBDDPMSchedulerOutput`, with `log_prob` as the third.

        Raises:
            ValueError: a `timestep` off the grid, channels that do not fit, an unknown `prediction_type`.
        """
        c = self._coefficients(timestep)
        arguments = (model_output, sample, timestep)
        predicted_variance = None
        if model_output.shape[1] != sample.shape[1] or variance_of(self.config.variance_type).is_learned:
            model_output, predicted_variance = split_output(model_output, sample.shape[1], self.config.variance_type)
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the batch and image size of `sample`, got {tuple(model_output.shape)}"
                f" and {tuple(sample.shape)}."
            )
        dtype = noise_dtype = model_output.dtype
        mixed = dtype is not sample.dtype or dtype not in (torch.float32, torch.float64)
        if mixed:
            dtype = torch.promote_types(dtype, sample.dtype)
            working = torch.promote_types(dtype, torch.float32)
            model_output, sample = model_output.to(working), sample.to(working)

        pred_original_sample = self._clip(predict_original(self.config.prediction_type, model_output, sample, c))
        if c.is_last:
            # The image; a tensor of its own, so that writing to one output does not change the other.
            prev_sample = pred_original_sample.clone()
        else:
            prev_sample = torch.mul(sample, c.current_sample_coeff)
            prev_sample.add_(pred_original_sample, alpha=c.pred_original_sample_coeff)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=noise_dtype)
            if mixed:
                noise = noise.to(working)
            variance_type = self.config.variance_type
            add_noise_of_step(prev_sample, noise, variance_type, c, pred_original_sample, predicted_variance)
        if mixed:
            prev_sample, pred_original_sample = prev_sample.to(dtype), pred_original_sample.to(dtype)
        if return_log_prob:
            # Of the sample as it is handed on, rounded and all, from the float64 tables: `log_prob` will say the same of it.
            log_prob = self.log_prob(prev_sample.detach(), *arguments)
            output = VLBDDPMSchedulerOutput(prev_sample, pred_original_sample, log_prob)
            return output if return_dict else output.to_tuple()
        if not return_dict:
            return prev_sample, pred_original_sample
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def draw_from_decoder(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        r"""An image of the discretised Gaussian decoder, in place of `step` at the lowest timestep, which gives its mean: the
        Gaussian's number in the bin of a level is that level.

        Arguments as [`~VLBDDPMScheduler.step`]. Returns grid values in [-1, 1] of the shape and dtype of `sample`.
        """
        decoder = self.p_mean_variance(model_output, sample, timestep, inference_timesteps=self.timesteps.tolist())
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        drawn = decoder.mean + torch.exp(0.5 * decoder.log_variance) * noise
        return to_grid(drawn, self.config.num_pixel_levels).to(sample.dtype)

    def _clip(self, x: torch.Tensor) -> torch.Tensor:
        config = self.config
        if config.thresholding:
            return self._threshold_sample(x)
        return x.clamp(-config.clip_sample_range, config.clip_sample_range) if config.clip_sample else x

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        r""":math:`x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon`, formed in float32 or better.

        Args:
            original_samples, noise (`torch.Tensor`): Images and noise of shape `(B, C, H, W)`.
            timesteps (`torch.Tensor`): Integer timesteps of shape `(B,)` or `(1,)`, on the CPU where a wait for the
                accelerator matters.

        Returns:
            `torch.Tensor`: Latents in the dtype of `original_samples`.

        Raises:
            ValueError: timesteps out of range.
        """
        signal, spread = self._signal_and_noise(timesteps, original_samples, noise)
        return (signal * original_samples + spread * noise).to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        r""":math:`v = \sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} x_0`, formed in float32 or better.

        Arguments, returns and errors as [`~VLBDDPMScheduler.add_noise`].
        """
        signal, spread = self._signal_and_noise(timesteps, sample, noise)
        return (signal * noise - spread * sample).to(sample.dtype)

    def _signal_and_noise(self, timesteps, samples, noise) -> tuple[torch.Tensor, torch.Tensor]:
        self._check_configuration()
        if not samples.is_floating_point() or noise.shape != samples.shape:
            raise ValueError(
                "Samples must be floating-point and `noise` of their shape,"
                f" got {samples.dtype} of shape {tuple(samples.shape)} and {tuple(noise.shape)}."
            )
        steps = torch.as_tensor(timesteps).cpu()
        steps = steps[None] if steps.ndim == 0 else steps
        if (
            steps.ndim > 1
            or steps.is_complex()
            or steps.is_floating_point()
            or steps.dtype == torch.bool
            or len(steps) not in (1, len(samples))
        ):
            raise ValueError(
                f"`timesteps` must be one integer or {len(samples)}, got dtype {steps.dtype} and shape {tuple(steps.shape)}."
            )
        steps = steps.long()
        outside = steps[(steps < 0) | (steps >= len(self._log_alphas_cumprod))]
        if outside.numel():
            raise ValueError(f"`timesteps` must lie in [0, {len(self._log_alphas_cumprod)}), got {outside[0].item()}.")
        log_alpha_prod = self._log_alphas_cumprod[steps].reshape(-1, *[1] * (samples.ndim - 1))
        # One rounding to float32 at the end, and float64 for float64 samples.
        dtype = torch.promote_types(samples.dtype, torch.float32)
        coefficients = torch.exp(0.5 * log_alpha_prod), torch.sqrt(-torch.expm1(log_alpha_prod))
        signal, noise = (c.to(dtype).to(samples.device) for c in coefficients)
        return signal, noise
