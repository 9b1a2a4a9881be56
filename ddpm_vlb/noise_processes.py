r"""Noise processes beside the DDPM's: what a network was trained on, read as a DDPM, a row each.

Whatever a Gaussian diffusion calls its latents, they are :math:`y = a x + s \epsilon`, and with :math:`\sigma = s / a`

.. math:: x_t = \frac{y / a}{\sqrt{1 + \sigma^2}}, \qquad \bar\alpha_t = \frac{1}{1 + \sigma^2}

is a DDPM's latent, with the same SNR :math:`1 / \sigma^2`. On any descending list of levels the two have the same posteriors,
the same KL terms, the same bound. What differs is how the network F is asked and what its output means, and both are linear in
the latent (the preconditioning of Karras et al. 2022, eq. 7, seen from :math:`x_t`):

.. math:: \hat x = c_\mathrm{skip}(\sigma)\, x_t + c_\mathrm{out}(\sigma)\, F(c_\mathrm{in}(\sigma)\, x_t + c_\mathrm{shift};\,
    c_\mathrm{noise}(\sigma)) .

=======================  ==================================================================================================
process                  :math:`\sigma` and the network
=======================  ==================================================================================================
`flow_matching`          :math:`y = (1 - s) x + s \epsilon`, :math:`\sigma = s / (1 - s)`; F is the velocity
                         :math:`\epsilon - x`, asked at T s: :math:`\hat x = y - s F`
`edm`                    :math:`y = x + \sigma\epsilon`; F as Karras et al., asked at :math:`\tfrac14 \ln\sigma`:
                         :math:`\hat x = \frac{\sigma_d^2 y}{\sigma^2 + \sigma_d^2} + \frac{\sigma\sigma_d F}{\sqrt{\sigma^2 +
                         \sigma_d^2}}` (minus with `v_prediction`)
`variance_exploding`     :math:`y' = x' + \sigma' \epsilon` for images :math:`x' = (x + 1) / 2` in [0, 1], so that
                         :math:`\sigma = 2 \sigma'`; F is the score :math:`-\epsilon / \sigma'` at :math:`\sigma'`:
                         :math:`\hat x = y + 2 \sigma'^2 F`
=======================  ==================================================================================================

**Levels.** A network trained in continuous time has no list of steps: the model that is scored is one of T levels on a straight
line in log-SNR between the ends that its scheduler names. The lowest step alone is longer: it halves the SNR, so that the
decoder's variance, the posterior variance of the next step, is half the lowest level's noise and not next to nothing. The
variances are the posterior's (`fixed_small`), as sampling with many steps amounts to; a calibration fits better ones. Where a
scheduler ends at pure noise (flow matching at s = 1), the line ends one of its steps before.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .checks import MAX_TIMESTEPS, check_count, is_integer, is_number, shown
from .parametrizations import KEPT_UNDER, PIPELINES

NUM_LEVELS = 1000


class Preconditioning(NamedTuple):
    r"""How a network is asked at :math:`\sigma`, and what its output means; each of the shape of :math:`\sigma`."""

    scale: torch.Tensor  # c_in
    shift: float  # c_shift
    noise: torch.Tensor  # c_noise
    skip: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True)
class NoiseProcess:
    r"""A process that networks are trained for.

    Args:
        name: in words of the field, as reports have it.
        schedulers: diffusers' classes of it.
        needed: what their configuration must say, positive numbers.
        precondition: from :math:`\sigma`, float64, and the configuration.
        ends: lowest and highest :math:`\sigma` of the configuration.
        rule: raises `ValueError` for a configuration that cannot be scored.
    """

    name: str
    schedulers: tuple[str, ...]
    needed: tuple[str, ...]
    precondition: Callable[[torch.Tensor, Mapping[str, Any]], Preconditioning]
    ends: Callable[[Mapping[str, Any]], tuple[float, float]]
    rule: Callable[[Mapping[str, Any]], None] = lambda config: None

    def check(self, config: Mapping[str, Any]) -> None:
        r"""Raise `ValueError` for a configuration that no levels can be made of."""
        for name in self.needed:
            if not is_number(config.get(name)) or config[name] <= 0:
                raise ValueError(f"`{name}` must be a positive number, got {config.get(name)!r}.")
        self.rule(config)
        low, high = self.ends(config)
        if not 0 < low < high:
            raise ValueError(f"The noise levels of {config.get('_class_name')} must ascend from above 0, got {low} to {high}.")


def _flow(sigma, config):
    level, root = sigma / (1 + sigma), torch.sqrt(1 + sigma**2)
    scale = root / (1 + sigma)
    return Preconditioning(scale, 0.0, config["num_train_timesteps"] * level, scale, -level)


def _check_flow(config):
    if config.get("invert_sigmas"):
        # Its network is asked at 1 - s, about latents in which signal and noise have changed places.
        raise ValueError(f"`invert_sigmas` must be False for a network to be scored, got {config['invert_sigmas']!r}.")
    if not is_integer(config["num_train_timesteps"], 3, MAX_TIMESTEPS):
        steps = config["num_train_timesteps"]
        raise ValueError(f"`num_train_timesteps` must be an integer from 3 to {MAX_TIMESTEPS}, got {steps!r}.")


def _flow_ends(config):
    steps, shift = config["num_train_timesteps"], 1.0 if config.get("use_dynamic_shifting") else config["shift"]
    low, high = (shift * s / (1 + (shift - 1) * s) for s in (1 / steps, 1 - 1 / steps))
    return low / (1 - low), high / (1 - high)


def _edm(sigma, config):
    root, data = torch.sqrt(1 + sigma**2), config["sigma_data"]
    total = sigma**2 + data**2
    sign = -1.0 if config.get("prediction_type", "epsilon") == "v_prediction" else 1.0
    inverse = total.rsqrt()
    return Preconditioning(root * inverse, 0.0, 0.25 * sigma.log(), data**2 * root / total, sign * sigma * data * inverse)


def _check_edm(config):
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction', got {config['prediction_type']!r}.")


def _exploding(sigma, config):
    root = torch.sqrt(1 + sigma**2)
    return Preconditioning(0.5 * root, 0.5, 0.5 * sigma, root, 0.5 * sigma**2)


def _exploding_ends(config):
    # `ScoreSdeVeScheduler` has the levels of images in [0, 1], which are half as wide; `KarrasVeScheduler` those of [-1, 1].
    width = 2.0 if config.get("_class_name") == "ScoreSdeVeScheduler" else 1.0
    return width * config["sigma_min"], width * config["sigma_max"]


NOISE_PROCESSES = (
    NoiseProcess(
        "flow_matching",
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
        ("num_train_timesteps", "shift"),
        _flow,
        _flow_ends,
        _check_flow,
    ),
    NoiseProcess(
        "edm",
        ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"),
        ("sigma_min", "sigma_max", "sigma_data"),
        _edm,
        lambda config: (config["sigma_min"], config["sigma_max"]),
        _check_edm,
    ),
    NoiseProcess(
        "variance_exploding",
        ("ScoreSdeVeScheduler", "KarrasVeScheduler"),
        ("sigma_min", "sigma_max"),
        _exploding,
        _exploding_ends,
    ),
)


def process_named(scheduler: Any) -> NoiseProcess | None:
    r"""The process of a scheduler's class, by its name; `None` for a DDPM's and for what is unknown."""
    return next((process for process in NOISE_PROCESSES if scheduler in process.schedulers), None)


def check_levels(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` for a number of another process's scheduler that is none, before diffusers computes with it."""
    process = process_named(config.get("_class_name"))
    for name in () if process is None else process.needed:
        if name in config and not is_number(config[name]):
            raise ValueError(f"`{name}` must be a positive number, got {shown(config[name])}.")


def stock_classes(config: Mapping[str, Any]) -> tuple[str, str]:
    r"""Names of diffusers' pipeline and scheduler for what a `VLBDDPMScheduler` is saved as: its `noise_process` or `sampler`,
    if it has one. `DDPMPipeline` loads those too that no pipeline samples pixels with."""
    other = config.get("noise_process") or config.get("sampler")
    name = str(other.get("_class_name")) if isinstance(other, Mapping) else "DDPMScheduler"
    return PIPELINES.get(name, "DDPMPipeline"), name


def describe_process(config: Mapping[str, Any] | None) -> str | None:
    r"""In words, what a network was trained for; `None` of a DDPM's."""
    process = None if config is None else process_named(config.get("_class_name"))
    if process is None or config is None:
        return None
    names = [*process.needed, *(("prediction_type",) if "prediction_type" in config else ())]
    return f"{process.name} ({config['_class_name']}, {', '.join(f'{name} = {config[name]}' for name in names)})"


def level_betas(low: float, high: float, num_levels: int = NUM_LEVELS) -> np.ndarray:
    r"""The betas of so many levels from :math:`\sigma` = `low` to `high`: a straight line in log-SNR, above a lowest step that
    halves the SNR; float64 `(num_levels,)`."""
    top, bottom = -2 * math.log(high), -2 * math.log(low)
    log_snr = np.concatenate([[bottom], np.linspace(bottom - math.log(2), top, num_levels - 1)])
    log_alphas = -np.logaddexp(0.0, -log_snr)
    return -np.expm1(np.diff(log_alphas, prepend=0.0))


def as_ddpm(config: dict[str, Any], num_levels: int | None = None) -> dict[str, Any]:
    r"""What a `VLBDDPMScheduler` is made of for the network of a scheduler of another process.

    Args:
        config: the scheduler's configuration; one of a DDPM is given back as it is.
        num_levels: T of the DDPM; by default that of an earlier save, or `NUM_LEVELS`.

    Raises:
        ValueError: a configuration that no levels can be made of, or that does not say of which class it is.
    """
    if process_named(config.get("_class_name")) is None:
        _check_named(config)
        return config
    kept = kept_of(config)
    original = {key: value for key, value in config.items() if key not in (KEPT_UNDER, "_use_default_values")}
    own = kept if num_levels is None else {}
    num_levels = own.get("num_train_timesteps", NUM_LEVELS) if num_levels is None else num_levels
    return {
        "num_train_timesteps": num_levels,
        "trained_betas": line_betas(original, num_levels),
        "prediction_type": "sample",
        "variance_type": "fixed_small",
        "clip_sample": False,
        "timestep_spacing": "linspace",
        "num_pixel_levels": config.get("num_pixel_levels", 256),
        **own,
        "noise_process": original,
    }


def check_as_ddpm(noise_process: Any, prediction_type: str, variance_type: str) -> None:
    r"""Raise `ValueError` for settings of a `VLBDDPMScheduler` that the network of another process does not have: what it says
    is read as an image, and nothing as a variance."""
    if noise_process is None:
        return
    named = noise_process.get("_class_name") if isinstance(noise_process, Mapping) else noise_process
    if process_named(named) is None:
        raise ValueError(f"`noise_process` must be of a known scheduler, got {shown(named)}.")
    if prediction_type != "sample":
        raise ValueError(f"`prediction_type` must be 'sample' with a `noise_process`, got {prediction_type!r}.")
    if variance_type.startswith("learned"):
        raise ValueError(f"`variance_type` must be a fixed one with a `noise_process`, got {variance_type!r}.")


def _check_named(config: Mapping[str, Any]) -> None:
    # That of a scheduler which was made in memory has no name, and a `VLBDDPMScheduler` defaults for all that it does not say.
    strange = [name for name in ("shift", "sigma_data", "sigma_min") if config.get(name) is not None]
    if strange and "_class_name" not in config and not any(name.startswith(("beta_", "trained_")) for name in config):
        raise ValueError(
            f"`config` must say of which class it is, in `_class_name`, to be another's than a DDPM's, got {strange[0]} ="
            f" {shown(config[strange[0]])} alone. `ddpm_vlb.upgrade_scheduler` takes the scheduler itself."
        )


def process_as_saved(own: str) -> str:
    r"""What is saved of a `VLBDDPMScheduler` with a `noise_process`, from its own JSON: that of the other scheduler, and
    in it what is ours, without betas that can be made again."""
    kept = json.loads(own)
    if are_of_line(kept):
        del kept["trained_betas"]
    return json.dumps({**kept.pop("noise_process"), KEPT_UNDER: kept}, indent=2, sort_keys=True) + "\n"


def kept_of(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""What an earlier save of ours said in the configuration of another scheduler; empty where there was none.

    Raises:
        ValueError: what is no mapping.
    """
    kept = config.get(KEPT_UNDER, {})
    if not isinstance(kept, Mapping):
        raise ValueError(f"`{KEPT_UNDER}` must be a mapping of settings, got {shown(kept)}.")
    return {key: value for key, value in kept.items() if not key.startswith("_") and key not in ("noise_process", "sampler")}


def are_of_line(config: Mapping[str, Any]) -> bool:
    r"""Whether the betas of a `VLBDDPMScheduler` are those of the line that its `noise_process` has by default."""
    process, betas = config.get("noise_process"), config.get("trained_betas")
    return process is not None and betas is not None and list(betas) == line_betas(process, config["num_train_timesteps"])


def line_betas(config: Mapping[str, Any], num_levels: Any) -> list[float]:
    r"""`level_betas` of a scheduler's ends, as a list."""
    process = process_named(config.get("_class_name"))
    if process is None:
        raise ValueError(f"`noise_process` must be of a known scheduler, got {shown(config.get('_class_name'))}.")
    process.check(config)
    num_levels = check_count("num_levels", num_levels)
    low, high = process.ends(config)
    if not 3 <= num_levels <= MAX_TIMESTEPS or high**2 < 4 * low**2:
        raise ValueError(
            f"`num_levels` must be from 3 to {MAX_TIMESTEPS}, between noise levels at least twice as high, got {num_levels}"
            f" from {low:g} to {high:g}."
        )
    return level_betas(low, high, num_levels).tolist()
