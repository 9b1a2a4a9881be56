r"""A network and the process that is scored: terms of the bound for any images at any timesteps.

Both ways to score images are made of it: the full sweep, every image at every step, and the sampled evaluation
(`sampled_bound/`). A batch mixes images and timesteps freely.
"""

import copy
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from .. import __version__
from ..bound import prior_kl, vlb_terms
from ..checks import working_dtype
from ..data.levels import images_to_levels
from ..forward_process import Rows
from ..noise import to_device
from ..noise_processes import are_of_line, describe_process, stock_classes
from ..parametrizations import PREDICTIONS, decoder_rule
from ..pixel_grid import check_num_pixel_levels, levels_to_samples
from ..reverse_process import ReverseProcess
from .network import Network
from .preconditioned import preconditioned

# What a report says of the forward process.
SCHEDULE_NAMES = ("beta_schedule", "trained_betas", "beta_start", "beta_end", "rescale_betas_zero_snr")


@dataclass(frozen=True)
class Scorer:
    r"""What is scored.

    Args:
        network: what is asked.
        reverse: the reverse process.
        num_pixel_levels: levels of the images' grid.
        num_inference_steps: as it was asked for, `None` where a grid was named, or nothing.
        on_subsequence: whether it was one of the two.
        overridden: the settings of the scheduler that were.
        schedule: what a report says of the forward process, and the calibration, by their names there.
    """

    network: Network
    reverse: ReverseProcess
    num_pixel_levels: int
    num_inference_steps: int | None = None
    on_subsequence: bool = False
    overridden: tuple[str, ...] = ()
    schedule: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        r"""Where the network computes."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        r"""In which the network computes."""
        return self.network.arithmetic

    @property
    def timesteps(self) -> list[int]:
        r"""The grid that is scored, ascending."""
        return self.reverse.forward.timesteps.tolist()

    def describe(self) -> dict[str, Any]:
        r"""What a report says of the model that is scored."""
        reverse, forward, schedule = self.reverse, self.reverse.forward, self.schedule
        steps = self.num_inference_steps
        return {
            "num_train_timesteps": forward.num_train_timesteps,
            "num_steps": len(forward),
            "num_inference_steps": None if steps is None else int(steps),
            "inference_timesteps": forward.timesteps.flip(0).tolist() if self.on_subsequence else None,
            **{name: schedule.get(name) for name in SCHEDULE_NAMES},
            "prediction_type": reverse.prediction_type,
            "variance_type": reverse.variance_type,
            "decoder_variance": decoder_rule(reverse.variance_type, len(forward), reverse.error_model is not None),
            "noise_process": schedule.get("noise_process"),
            "scheduler": schedule.get("scheduler"),
            "condition_sha256": self.network.condition_sha256,
            "prompt": self.network.prompt,
            "calibration": schedule.get("calibration"),
            "clip_sample": bool(reverse.clip_sample),
            "clip_sample_range": reverse.clip_sample_range,
            "thresholding": bool(reverse.thresholding),
            "dynamic_thresholding_ratio": reverse.dynamic_thresholding_ratio,
            "sample_max_value": reverse.sample_max_value,
            "num_pixel_levels": self.num_pixel_levels,
            "dtype": self.network.precision,
            "device": self.device.type,
            "timestep_spacing": schedule.get("timestep_spacing"),
            "num_class_embeds": self.network.num_classes,
            "versions": {
                "ddpm_vlb": __version__,
                "diffusers": diffusers.__version__,
                "torch": str(torch.__version__),  # a class of its own
                "python": platform.python_version(),
            },
        }

    def config(self, **more: Any) -> dict[str, Any]:
        r"""`describe`, with what was overridden, which network it is, and more."""
        return self.describe() | {"overridden": list(self.overridden), "network_sha256": self.network.sha256(), **more}

    def read(self, images: Any, class_labels: Any = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""Levels `(N, C, H, W)` and classes `(N,)` of images of any kind; `ValueError` where they do not fit the model."""
        levels = images_to_levels(images, self.num_pixel_levels, channels=self.network.channels, size=self.network.size)
        self.network.check((), levels.shape[2:])
        return levels, self.network.check_class_labels(class_labels, len(levels))

    def samples(self, levels: torch.Tensor) -> torch.Tensor:
        r"""Levels as images in [-1, 1] on the device, in the working dtype."""
        return levels_to_samples(to_device(levels, self.device), self.num_pixel_levels, working_dtype(self.device))

    def prior(self, samples: torch.Tensor) -> torch.Tensor:
        r""":math:`L_T` in nats, `(B,)`, on the device."""
        return prior_kl(self.reverse.forward, samples)

    def terms(
        self,
        samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: int | torch.Tensor | Rows,
        class_labels: torch.Tensor | None = None,
        on_device: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""Terms of the bound: the decoder's at the lowest timestep of the grid, KLs above.

        Args:
            samples: images on the grid, `(B, C, H, W)`, on the device.
            noise: standard normal, of the same shape, on the CPU or the device.
            timesteps: one for all, or one each, `(B,)`, on the CPU, looked up or not.
            class_labels: of a class-conditional network, `(B,)`.
            on_device: the same timesteps on the device, where they are there already.

        Returns:
            Nats, `(B,)`, on the device; NaN where the network's output is not finite.
        """
        timesteps = self.reverse.forward.look_up(timesteps, len(samples))
        noisy_samples, model_output = self._ask(samples, noise, timesteps, class_labels, on_device)
        # The levels were checked once, on the CPU.
        return vlb_terms(
            self.reverse, model_output, samples, noisy_samples, timesteps, self.num_pixel_levels, validate_args=False
        )

    def squared_errors(
        self,
        samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: int | torch.Tensor | Rows,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r""":math:`\|\epsilon - \hat\epsilon(x_t)\|^2` summed over the pixels, `(B,)`, by what the network says of the image,
        after clipping; arguments as `terms`."""
        timesteps = self.reverse.forward.look_up(timesteps, len(samples))
        noisy_samples, model_output = self._ask(samples, noise, timesteps, class_labels)
        predicted, _ = self.reverse.predict(model_output, noisy_samples, timesteps)
        # The noise that is in x_t for an image has its error, times sqrt(SNR).
        forward = self.reverse.forward
        snr = forward.snr[forward.rows(timesteps, len(samples))].to(samples.device)
        return (samples - predicted).square().flatten(1).sum(dim=1) * snr

    def _ask(self, samples, noise, timesteps, class_labels, on_device=None) -> tuple[torch.Tensor, torch.Tensor]:
        r""":math:`x_t` and what the network says of it."""
        noisy_samples = self.reverse.forward.q_sample(samples, to_device(noise, self.device), timesteps)
        if on_device is None:
            on_device = timesteps.timesteps if isinstance(timesteps, Rows) else timesteps
        # What is not finite is seen to where the output is read.
        return noisy_samples, self.network.ask(noisy_samples, on_device, class_labels)


def make_scorer(
    network: Network,
    scheduler: Any,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    clip_sample: bool | None = None,
    thresholding: bool | None = None,
    calibrated: bool = True,
) -> Scorer:
    r"""The scorer of a network under a scheduler's configuration.

    Args:
        network: what is asked.
        scheduler: a `VLBDDPMScheduler`.
        num_inference_steps, inference_timesteps, clip_sample, thresholding: as `VLBDDPMPipeline.evaluate_nll`.
        calibrated: `False` leaves a calibration aside.

    Raises:
        ValueError: a model that cannot be scored; another network's calibration.
    """
    if not hasattr(scheduler, "reverse_process"):
        raise ValueError(f"`scheduler` must be a VLBDDPMScheduler for a model to be scored, got {type(scheduler).__name__}.")
    if calibrated:
        check_calibration(scheduler, network)
    num_inference_steps = default_steps(scheduler, num_inference_steps, inference_timesteps, calibrated)
    on_subsequence = num_inference_steps is not None or inference_timesteps is not None
    if num_inference_steps is not None:
        inference_timesteps = scheduler.inference_grid(num_inference_steps)
    config = scheduler.config
    check_num_pixel_levels(config.num_pixel_levels)
    reverse = scheduler.reverse_process(
        inference_timesteps, clip_sample=clip_sample, thresholding=thresholding, calibrated=calibrated
    )
    network = preconditioned(network, scheduler)
    network.check_devices()
    network.check_out_channels(reverse.learns_variance, reverse.variance_type)
    network.check(reverse.forward.timesteps.tolist(), network.size)
    betas = config.trained_betas
    on_line = are_of_line(config)
    betas = None if on_line else betas
    named = "log_snr_line" if on_line else config.beta_schedule
    schedule = {
        "beta_schedule": "trained_betas" if betas is not None else named,
        "trained_betas": None if betas is None else [float(b) for b in betas],
        **{name: config[name] for name in ("beta_start", "beta_end", "timestep_spacing")},
        "rescale_betas_zero_snr": bool(config.rescale_betas_zero_snr),
        "calibration": None if reverse.error_model is None else scheduler.calibration.description,
        "noise_process": describe_process(config.get("noise_process")),
        "scheduler": stock_classes(config)[1],
    }
    overridden = tuple(n for n, x in (("clip_sample", clip_sample), ("thresholding", thresholding)) if x is not None)
    return Scorer(network, reverse, config.num_pixel_levels, num_inference_steps, on_subsequence, overridden, schedule)


def default_steps(
    scheduler: Any, num_inference_steps: int | None, inference_timesteps: Sequence[int] | None, calibrated: bool = True
) -> int | None:
    r"""The number of steps that was asked for, by default the calibration's best; `ValueError` beside a grid."""
    if num_inference_steps is not None and inference_timesteps is not None:
        raise ValueError("Only one of `num_inference_steps` and `inference_timesteps` may be given, got both.")
    calibration = calibration_of(scheduler) if calibrated else None
    if calibration is None or num_inference_steps is not None or inference_timesteps is not None:
        return num_inference_steps
    return calibration.num_inference_steps


def calibration_of(scheduler: Any) -> Any:
    r"""The calibration that a scheduler samples by; another than ours may hold one in its configuration, and knows it not."""
    return scheduler.calibration if hasattr(type(scheduler), "calibration") else None


def scheduler_of_run(scheduler: Any, num_inference_steps: int | None, inference_timesteps: Sequence[int] | None) -> Any:
    r"""A copy of a scheduler for one sampling run, set to its grid: what other threads do with the scheduler does not reach it.
    The scheduler itself shows the last grid, as diffusers' do.

    Args:
        scheduler: any of diffusers'.
        num_inference_steps, inference_timesteps: as `VLBDDPMPipeline.__call__`.

    Raises:
        ValueError: a grid outside the scheduler's, or from zero SNR with a prediction that needs some signal.
    """
    num_inference_steps = default_steps(scheduler, num_inference_steps, inference_timesteps)
    if inference_timesteps is not None:
        grid: dict[str, Any] = {"timesteps": inference_timesteps}
    else:
        default = min(1000, scheduler.config.num_train_timesteps)
        grid = {"num_inference_steps": default if num_inference_steps is None else num_inference_steps}
    own = copy.copy(scheduler)
    own.set_timesteps(**grid)
    prediction, highest = PREDICTIONS.get(own.config.prediction_type), int(own.timesteps.max())
    if prediction is not None:
        # Clipping would make images of an infinite prediction.
        prediction.check_signal(own.alphas_cumprod[highest].item(), highest)
    scheduler.set_timesteps(**grid)
    return own


def check_calibration(scheduler: Any, network: Network) -> None:
    r"""Raise `ValueError` for a calibration of another network."""
    calibration = calibration_of(scheduler)
    if calibration is not None and calibration.config.get("architecture_sha256") != network.architecture_sha256:
        raise ValueError(
            f"`calibration` must be of a network like this one, got one on {calibration.description}, of another"
            " architecture. Calibrate anew, or leave it out with `from_config(..., calibration=None)`."
        )
