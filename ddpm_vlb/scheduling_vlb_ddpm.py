r"""`VLBDDPMScheduler`: the maths of this package behind diffusers' scheduler API.

Two uses of one configuration. *Sampling* keeps the methods, signatures and random streams of `diffusers.DDPMScheduler`, and
reads its coefficients from Python floats. *Scoring* asks for frozen `ForwardProcess` and `ReverseProcess` objects, which
depend on the configuration and on an explicit grid of timesteps alone: `set_timesteps` never changes a bound.
"""

import inspect
import math
import operator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput

# diffusers looks the base class of a saved scheduler up in the module that the pipeline index names.
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from .bound import prior_kl, vlb_terms
from .calibration.stored import MADE_FOR, Calibration
from .checks import on_cpu
from .forward_process import ForwardProcess, check_inference_timesteps
from .gaussians import Gaussian
from .losses import LOSS_TYPES, hybrid_loss, simple_loss, vlb_loss
from .noise_schedules import make_betas
from .parametrizations import LEARNED_VARIANCE_TYPES, PREDICTION_TYPES
from .pixel_grid import check_num_pixel_levels
from .reverse_process import ReverseGaussian, ReverseProcess

logger = logging.get_logger(__name__)

# What the tables are made of.
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
InferenceTimesteps = list[int] | tuple[int, ...] | None


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


class VLBDDPMScheduler(DDPMScheduler):
    r"""
    A `DDPMScheduler` that knows the likelihood of its model: exact posteriors, and every term of the variational bound.

    Everything `DDPMScheduler` takes and does stays; where it is wrong (log-variance types, noise on the final image, noise in
    low precision, grids with a step -1) this class is right. Timesteps are zero-based.

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
    ):
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
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
        # diffusers takes what is passed by position for a default, and `from_config` would drop it.
        parameters = inspect.signature(type(self).__init__).parameters
        if "_use_default_values" in self.config:
            defaults = [n for n in self.config["_use_default_values"] if _is_default(self.config[n], parameters[n].default)]
            self.register_to_config(_use_default_values=defaults)
        self._built_from = self._schedule_config()
        self._forward_betas = make_betas(
            beta_schedule, num_train_timesteps, beta_start, beta_end, trained_betas, rescale_betas_zero_snr
        )
        self._log_alphas_cumprod = torch.cumsum(torch.log1p(-self._forward_betas), dim=0)
        self._forward_processes: dict[tuple[int, ...] | None, ForwardProcess] = {}
        self._step_grid = self._step_config = self._step_key = None  # what the coefficients belong to
        self._step_coefficients: dict[int, StepCoefficients] = {}
        self._calibration: Calibration | None = None

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
    ) -> str:
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

    # Scoring: frozen processes on an explicit grid, and the terms of the bound.

    def forward_process(self, inference_timesteps: InferenceTimesteps = None) -> ForwardProcess:
        r"""The forward process on all T steps, or on the strictly descending sub-sequence `inference_timesteps`.

        Raises:
            ValueError: betas that cannot be scored (outside (0, 1), or not T of them), a bad sub-sequence.
        """
        for name, built, now in zip(SCHEDULE_KEYS, self._built_from, self._schedule_config()):
            if built is not now and not _is_default(now, built):
                raise ValueError(
                    f"`{name}` must be what the scheduler was built from, {built!r}, for the model to be scored, got {now!r}."
                    " Make a new scheduler with `from_config`."
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
        if key not in self._forward_processes:
            if len(self._forward_processes) >= 16:  # forget the oldest sub-sequence
                del self._forward_processes[next(old for old in self._forward_processes if old is not None)]
            self._forward_processes[key] = ForwardProcess.from_betas(self._forward_betas, key)
        return self._forward_processes[key]

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
        if self._calibration is None or self._calibration.config is not config:
            calibration = Calibration(config, self.forward_process())
            for name in MADE_FOR:
                if config.get(name) != self.config[name]:
                    raise ValueError(
                        f"`calibration` must be of this model, got one for {name} = {config.get(name)!r}, not"
                        f" {self.config[name]!r}. Calibrate anew, or leave it out with `from_config(..., calibration=None)`."
                    )
            self._calibration = calibration
        return self._calibration

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
    ) -> torch.Tensor:
        r"""A training objective per image; see [`ddpm_vlb.losses`] for the three.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            original_samples, noise, noisy_samples (`torch.Tensor`): :math:`x_0`, :math:`\epsilon`, and the :math:`x_t` made of
                them, each `(B, C, H, W)`.
            timesteps (`int` or `torch.Tensor` of shape `(B,)`): Zero-based timesteps, on the CPU where a wait for the
                accelerator matters.
            loss_type (`str`, defaults to `"simple"`): `"simple"` (mean squared error per element), `"vlb"`
                (:math:`T L_t` in bits/dim) or `"hybrid"` (`simple + 1e-3 * vlb`).
            inference_timesteps (`list[int]`, *optional*): Strictly descending sub-sequence that is trained.
            clip_sample (`bool`, *optional*), thresholding (`bool`, *optional*): Override the configuration in the bound; a
                clipped prediction has no gradient where it is clipped.
            forward_process (`ForwardProcess`, *optional*): In place of the configured one, and what `noisy_samples` were made
                with; a learnable one (see [`ddpm_vlb.noise_schedules`]) adds its :math:`L_T` to the bound.

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
        loss = vlb_loss if loss_type == "vlb" else hybrid_loss
        return loss(reverse, model_output, original_samples, *latents, timesteps, self.config.num_pixel_levels)

    # Sampling: diffusers' methods.

    def inference_grid(self, num_inference_steps: int) -> list[int]:
        r"""The strictly descending timesteps that `set_timesteps(num_inference_steps)` samples on; changes nothing. They are
        spaced as configured, or the calibration's best.

        Raises:
            ValueError: `num_inference_steps` not in [1, T], an unknown spacing, or a `steps_offset` that leaves [0, T).
        """
        num_steps, spacing = self.config.num_train_timesteps, self.config.timestep_spacing
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, (int, np.integer)):
            raise ValueError(f"`num_inference_steps` must be an integer, got {num_inference_steps!r}.")
        if not 1 <= num_inference_steps <= num_steps:
            raise ValueError(f"`num_inference_steps` must lie in [1, {num_steps}], got {num_inference_steps}.")
        if self.calibration is not None:
            return self.calibration.timesteps(int(num_inference_steps))
        if spacing == "linspace":
            grid = np.linspace(0, num_steps - 1, num_inference_steps).round()[::-1]
        elif spacing == "leading":
            ratio = num_steps // num_inference_steps
            grid = (np.arange(num_inference_steps) * ratio)[::-1] + self.config.steps_offset
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
            ValueError: both or neither given, or a grid that is not strictly descending in [0, T).
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                "Exactly one of `num_inference_steps` and `timesteps` must be given,"
                f" got {num_inference_steps!r} and {timesteps!r}."
            )
        if timesteps is None:
            grid = self.inference_grid(num_inference_steps)
            self.num_inference_steps = num_inference_steps
        else:
            grid = check_inference_timesteps(timesteps, self.config.num_train_timesteps)
        self.custom_timesteps = timesteps is not None
        self.timesteps = torch.tensor(grid, device=device)
        self._use_grid(grid)

    def _use_grid(self, grid: list[int]) -> None:
        self._step_grid, self._step_config = self.timesteps, self.config
        valid = [step for step in grid if 0 <= step < len(self.alphas_cumprod)]
        made_from = (self.config, self.alphas_cumprod)
        if self._step_key is None or self._step_key != valid or any(a is not b for a, b in zip(made_from, self._made_from)):
            self._step_key, self._made_from, self._step_coefficients = valid, made_from, self._compute_coefficients(valid)

    def _coefficients(self, timestep) -> StepCoefficients:
        # Never set, assigned from outside, or another configuration.
        if self._step_grid is not self.timesteps or self._step_config is not self.config:
            self._use_grid(check_inference_timesteps(self.timesteps.tolist(), self.config.num_train_timesteps))
        try:
            step = timestep if type(timestep) is int else operator.index(timestep)
        except TypeError:
            raise ValueError(f"`timestep` must be one integer, got {timestep!r}.") from None
        coefficients = self._step_coefficients.get(step)
        if coefficients is None:
            raise ValueError(
                f"`timestep` must be one of the scheduler's `timesteps` in [0, {len(self.alphas_cumprod)}), got {step}."
            )
        return coefficients

    def _compute_coefficients(self, grid: list[int]) -> dict[int, StepCoefficients]:
        # In float32 and in the stock scheduler's order of operations: diffusers' own tests compare sums of trajectories to
        # places at which the rounding of these tables tells. Near t = 0 that rounding is relative to 1 - alphas_cumprod; the
        # terms of the bound come from float64 tables.
        table = torch.cat([self.alphas_cumprod.cpu(), torch.ones(1)])  # the entry at -1 is the data's
        alpha_prod, alpha_prod_prev = table[torch.tensor(grid, dtype=torch.int64)], table[[*grid[1:], -1]]
        beta_prod, beta_prod_prev = 1 - alpha_prod, 1 - alpha_prod_prev
        alpha = alpha_prod / alpha_prod_prev
        beta = 1 - alpha
        variance = torch.clamp(beta_prod_prev / beta_prod * beta, min=1e-20)
        # Unknown variance types act as `fixed_small`, as in the stock scheduler; scoring refuses them.
        fixed_variance = beta if self.config.variance_type in ("fixed_large", "fixed_large_log") else variance
        columns = StepCoefficients(
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
        steps = [StepCoefficients(*row) for row in zip(*(column.tolist() for column in columns if column is not None))]
        if self.config.get("calibration") is not None and grid:
            steps = [step._replace(calibrated=calibrated) for step, calibrated in zip(steps, self._calibrated_steps(grid))]
        return dict(zip(grid, steps))

    def _calibrated_steps(self, grid: list[int]) -> list[CalibratedStep]:
        reverse = self.reverse_process(grid)
        forward, trained, used = reverse.forward, reverse.trained, reverse.forward.timesteps
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

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple:
        r"""Draw :math:`x_s \sim p(x_s | x_t)`, s the next lower step of the grid; at the lowest step, return the decoder's
        mean.

        Args:
            model_output (`torch.Tensor`): Network output, `(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned.
            timestep (`int`): Current timestep t; an `int` or a CPU tensor costs no wait for the device.
            sample (`torch.Tensor`): Latents :math:`x_t` of shape `(B, C, H, W)`.
            generator (`torch.Generator`, *optional*): Source of the noise, drawn as `DDPMScheduler` draws it.
            return_dict (`bool`, defaults to `True`): Return a `DDPMSchedulerOutput` or a tuple.

        Returns:
            `DDPMSchedulerOutput` or `tuple`: `prev_sample` and `pred_original_sample`, in the dtype of `sample` and
            `model_output` combined; half-precision arithmetic is done in float32.

        Raises:
            ValueError: a `timestep` off the grid, channels that do not fit, an unknown `prediction_type`.
        """
        c = self._coefficients(timestep)
        predicted_variance = None
        if model_output.shape[1] != sample.shape[1] or self.config.variance_type in LEARNED_VARIANCE_TYPES:
            model_output, predicted_variance = self._split(model_output, sample.shape[1])
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

        pred_original_sample = self._predict_original(model_output, sample, c)
        if c.is_last:
            # The image; a tensor of its own, so that writing to one output does not change the other.
            prev_sample = pred_original_sample.clone()
        else:
            prev_sample = torch.mul(sample, c.current_sample_coeff)
            prev_sample.add_(pred_original_sample, alpha=c.pred_original_sample_coeff)
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=noise_dtype)
            if mixed:
                noise = noise.to(working)
            if c.calibrated is not None:
                prev_sample.addcmul_(self._calibrated_std(c.calibrated, pred_original_sample, predicted_variance), noise)
            elif predicted_variance is None:
                prev_sample.add_(noise, alpha=c.fixed_std)
            else:
                offset, slope = self._log_std_line(c)
                if mixed:
                    predicted_variance = predicted_variance.to(working)
                prev_sample.addcmul_(torch.mul(predicted_variance, slope).exp_(), noise, value=math.exp(offset))
        if mixed:
            prev_sample, pred_original_sample = prev_sample.to(dtype), pred_original_sample.to(dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def _predict_original(self, model_output, sample, c: StepCoefficients) -> torch.Tensor:
        config = self.config
        if config.prediction_type == "epsilon":
            x = torch.sub(sample, model_output, alpha=c.sqrt_beta_prod).mul_(c.inverse_sqrt_alpha_prod)
        elif config.prediction_type == "sample":
            x = model_output
        elif config.prediction_type == "v_prediction":
            x = torch.mul(sample, c.sqrt_alpha_prod).sub_(model_output, alpha=c.sqrt_beta_prod)
        else:
            raise ValueError(f"`prediction_type` must be one of {PREDICTION_TYPES}, got {config.prediction_type!r}.")
        if config.thresholding:
            return self._threshold_sample(x)
        return x.clamp(-config.clip_sample_range, config.clip_sample_range) if config.clip_sample else x

    def _calibrated_std(self, c: CalibratedStep, pred_original_sample, predicted_variance) -> torch.Tensor:
        errors = torch.clamp(1 - pred_original_sample.square(), min=0.0).mul_(c.gain).add_(c.offset)
        if predicted_variance is not None and c.learned_gain:
            above = predicted_variance.to(pred_original_sample.dtype)
            if self.config.variance_type == "learned_range":
                above = (above + 1).mul_(0.5 * (c.trained_log_beta - c.trained_log_variance))
            else:
                above = above - c.trained_log_variance
            errors.add_(above.expm1_().clamp_(min=0.0), alpha=c.learned_gain * c.trained_ratio)
        return errors.mul_(c.weight).add_(c.posterior_variance).sqrt_()

    def _log_std_line(self, c: StepCoefficients) -> tuple[float, float]:
        # log sigma = offset + slope v for the network's second half v.
        if self.config.variance_type == "learned":
            return 0.0, 0.5
        low, high = c.min_log_variance, c.max_log_variance
        return 0.25 * (high + low), 0.25 * (high - low)

    def _split(self, model_output: torch.Tensor, num_channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        learned = self.config.variance_type in LEARNED_VARIANCE_TYPES
        if not learned or model_output.shape[1] != 2 * num_channels:
            raise ValueError(
                f"`model_output` must have {2 * num_channels if learned else num_channels} channels for"
                f" {num_channels}-channel samples with variance_type={self.config.variance_type!r},"
                f" got {model_output.shape[1]}."
            )
        return model_output.split(num_channels, dim=1)

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
        return tuple(c.to(dtype).to(samples.device) for c in coefficients)


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)) or isinstance(default, (np.ndarray, torch.Tensor)):
        return value is default
    return value == default
