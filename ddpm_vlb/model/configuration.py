r"""What the configurations of a network and of a scheduler may say: a rule for every value that is read.

A configuration is a file of others, and the constructors of diffusers take it literally: a T of 10^9 keeps them busy before
anything is refused, a word in the place of a number shows when the first image is scored. Here it shows at once. What a value
*means* is asked where it is used: unknown names of schedules and variances, betas that make no process.
"""

import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from ..checks import MAX_TIMESTEPS, is_integer, is_number, shown
from ..noise_processes import as_ddpm, kept_of, process_as_saved, process_named
from ..parametrizations import KEPT_UNDER
from ..pixel_grid import MAX_PIXEL_LEVELS

MAX_KEY_LENGTH = 256
MAX_SIDE = MAX_CHANNELS = 65_536
MAX_BLOCKS, MAX_LAYERS = 32, 100
# Under these names a configuration is that of a `UNet2DModel`; a file without one is, too.
UNET_NAMES = (None, "UNet2DModel", "UNetUnconditionalModel")


class ConfigurationRule(NamedTuple):
    r"""What a value must be, in words, and whether it is."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> "ConfigurationRule":
        r"""The same, or nothing."""
        return ConfigurationRule(f"null or {self.words}", lambda value: value is None or self.holds(value))

    def list_of(self, least: int, most: int) -> "ConfigurationRule":
        r"""A list of so many such values."""
        return ConfigurationRule(
            f"a list of {least if least == most else f'{least} to {most}'} values, each {self.words}",
            lambda value: isinstance(value, (list, tuple)) and least <= len(value) <= most and all(map(self.holds, value)),
        )


def _integer(least: int, most: int) -> ConfigurationRule:
    return ConfigurationRule(f"an integer from {least} to {most}", lambda value: is_integer(value, least, most))


def _are_betas(value: Any) -> bool:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) and len(value) <= MAX_TIMESTEPS and all(map(is_number, value))


_WORD = ConfigurationRule("a string", lambda value: isinstance(value, str))
_SWITCH = ConfigurationRule("true or false", lambda value: isinstance(value, (bool, int, np.bool_)) and value in (0, 1))
_NUMBER = ConfigurationRule("a number", is_number)
_POSITIVE = ConfigurationRule("a positive number", lambda value: is_number(value) and value > 0)
_SHARE = ConfigurationRule("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
_SIDE = _integer(1, MAX_SIDE)
_CHANNELS = _integer(1, MAX_CHANNELS)

SCHEDULER_RULES = {
    "num_train_timesteps": _integer(1, MAX_TIMESTEPS),
    "beta_start": _NUMBER,
    "beta_end": _NUMBER,
    "beta_schedule": _WORD,
    "trained_betas": ConfigurationRule(f"a list of at most {MAX_TIMESTEPS} numbers", _are_betas).or_null(),
    "variance_type": _WORD.or_null(),
    "clip_sample": _SWITCH,
    "prediction_type": _WORD,
    "thresholding": _SWITCH,
    "dynamic_thresholding_ratio": _SHARE,
    "clip_sample_range": _POSITIVE,
    "sample_max_value": _POSITIVE,
    "timestep_spacing": _WORD,
    "steps_offset": _integer(0, MAX_TIMESTEPS),
    "rescale_betas_zero_snr": _SWITCH,
    "num_pixel_levels": _integer(2, MAX_PIXEL_LEVELS),
    "calibration": ConfigurationRule("a mapping", lambda value: isinstance(value, Mapping)).or_null(),
    "unlabelled_class": _integer(0, 10**9).or_null(),
    "noise_process": ConfigurationRule("a mapping", lambda value: isinstance(value, Mapping)).or_null(),
    "sampler": ConfigurationRule("a mapping", lambda value: isinstance(value, Mapping)).or_null(),
    "predict_epsilon": _SWITCH,
}
NETWORK_RULES = {
    "sample_size": ConfigurationRule(
        f"null, {_SIDE.words}, or two of them", lambda value: value is None or _SIDE.holds(value) or _SIDES.holds(value)
    ),
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_class_embeds": _integer(1, 10_000_000).or_null(),
}
UNET_RULES = NETWORK_RULES | {
    "layers_per_block": _integer(1, MAX_LAYERS),
    "block_out_channels": _CHANNELS.list_of(1, MAX_BLOCKS),
    "down_block_types": _WORD.list_of(1, MAX_BLOCKS),
    "up_block_types": _WORD.list_of(1, MAX_BLOCKS),
    "mid_block_type": _WORD.or_null(),
    "attention_head_dim": _CHANNELS.or_null(),
    "norm_num_groups": _CHANNELS,
    "attn_norm_num_groups": _CHANNELS.or_null(),
    "norm_eps": _POSITIVE,
    "dropout": _SHARE,
    "mid_block_scale_factor": _POSITIVE,
    "downsample_padding": _integer(0, MAX_SIDE),
    "downsample_type": _WORD,
    "upsample_type": _WORD,
    "act_fn": _WORD,
    "add_attention": _SWITCH,
    "center_input_sample": _SWITCH,
    "flip_sin_to_cos": _SWITCH,
    "freq_shift": _NUMBER,
    "time_embedding_type": _WORD,
    "time_embedding_dim": _CHANNELS.or_null(),
    "resnet_time_scale_shift": _WORD,
    "class_embed_type": _WORD.or_null(),
    "num_train_timesteps": _integer(1, MAX_TIMESTEPS).or_null(),
}
_SIDES = _SIDE.list_of(2, 2)


def check_configuration(config: Mapping[str, Any], rules: Mapping[str, ConfigurationRule]) -> None:
    r"""Raise `ValueError` for a value that is not as the rule of its name has it; names without a rule may have any."""
    for name, rule in rules.items():
        if name in config and not rule.holds(config[name]):
            raise ValueError(f"`{name}` must be {rule.words}, got {shown(config[name])}.")


def check_scheduler_config(config: Mapping[str, Any]) -> None:
    r"""`check_configuration` of a scheduler."""
    check_configuration(config, SCHEDULER_RULES)


def check_network_config(config: Mapping[str, Any]) -> None:
    r"""`check_configuration` of a network: of all that a `UNet2DModel` is made from, or of what any kind of network has."""
    if config.get("_class_name") not in UNET_NAMES:
        return
    check_configuration(config, UNET_RULES)
    head, widths = config.get("attention_head_dim"), config.get("block_out_channels")
    if head is None or widths is None:
        return
    # A width that holds no whole head makes attention with none, which divides by their number.
    attended = [width for width, kind in zip(widths, config.get("down_block_types", ())) if kind.startswith("Attn")]
    attended += [widths[-1]] if config.get("add_attention", True) else []
    if attended and min(attended) < head:
        raise ValueError(
            f"`attention_head_dim` must be at most the {min(attended)} channels that attention has in this network, got {head}."
        )


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""Of a configuration, NumPy's numbers as Python's, which reports and files can hold, and NumPy's values in mappings."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(entry) for name, entry in value.items()}
        return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value

    return {name: plain(value) for name, value in config.items() if isinstance(value, (np.generic, Mapping))}


class SchedulerConfig(FrozenDict):
    r"""A configuration with one value for an entry, whether it is read or assigned as an attribute or as an item.

    diffusers' own means to forbid assigning and does not; an entry that was assigned then has two values, of which its
    schedulers compute with the attribute, and save the item.
    """

    @classmethod
    def of(cls, config: Mapping[str, Any], scheduler: type) -> "SchedulerConfig":
        r"""The configuration of a scheduler of a class. diffusers takes what is passed by position, or registered later, for a
        default, and `from_config` would drop it: here defaults are what has the default's value."""
        own = cls(config)
        defaults = {name: one.default for name, one in inspect.signature(scheduler.__init__).parameters.items()}
        if used := own.get("_use_default_values"):
            own["_use_default_values"] = [n for n in used if n in defaults and is_default(own[n], defaults[n])]
        return own

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and self[name] is not value and name in (defaults := self.get("_use_default_values", ())):
            # `from_config` would drop it.
            self["_use_default_values"] = [other for other in defaults if other != name]
        object.__setattr__(self, name, value)
        if not name.startswith("_FrozenDict__"):
            OrderedDict.__setitem__(self, name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)


# What the tables of a scheduler are made of.
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
# What diffusers' schedulers do not know of ours.
OURS = ("num_pixel_levels", "calibration", "unlabelled_class", "noise_process", "sampler")
# For the networks of DDPMs, beside diffusers' own list of these.
LIKE_DDPM = ("DDPMParallelScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler")
# A configuration of one of these, or of none, is that of a `VLBDDPMScheduler` as it is.
DDPM = ("DDPMScheduler", "VLBDDPMScheduler")
# Values of these with which a scheduler is for the network of a DDPM; `shift` and `sigma_data` are what flow matching and EDM
# leave in whatever scheduler is made of theirs.
OF_ANOTHER = ("use_flow_sigmas", "timestep_type", "shift", "sigma_data")
NOT_ANOTHER = (None, False, "discrete")
# What `beta_schedule` may be for all of them.
STOCK_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")


def is_of_ddpms(scheduler: Any) -> bool:
    r"""Whether a class of schedulers, by its name, is for the networks of DDPMs."""
    return scheduler in (*KarrasDiffusionSchedulers.__members__, *LIKE_DDPM, *DDPM) and process_named(scheduler) is None


def not_of_ddpms(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""The settings with which a scheduler is not for the network of a DDPM, though its class is."""
    return {name: config[name] for name in OF_ANOTHER if config.get(name) not in NOT_ANOTHER}


def parameters_of(name: Any) -> dict[str, Any] | None:
    r"""What one of diffusers' schedulers is made from, with its defaults; `None` for what diffusers does not have here."""
    cls = getattr(diffusers, str(name), None)
    # Of what needs a library that is not here there is a placeholder.
    if not isinstance(cls, type) or not issubclass(cls, diffusers.SchedulerMixin):
        return None
    return {key: one.default for key, one in inspect.signature(cls.__init__).parameters.items() if one.default is not one.empty}


def with_sampler(config: Mapping[str, Any], own: str) -> dict[str, Any]:
    r"""What a scheduler of ours is made of for one of diffusers' for a DDPM's network: the DDPM of that network and, of another
    class than a DDPM's (DDIM, Euler ...), what only that class knows as its `sampler`. A configuration of another noise process
    is given back as it is.

    Where an earlier save of ours is in it (`KEPT_UNDER`), that says what the class does not.

    Args:
        config: of a scheduler; without a class that of a DDPM, or of one in memory.
        own: the class that is made of it.

    Raises:
        ValueError: a class of schedulers that cannot be read: with the defaults of a DDPM it would give a number that looks
            right.
    """
    name, config = config.get("_class_name"), dict(config)
    if process_named(name) is not None:
        return config
    is_ddpm, others = name in (None, own, *DDPM), not_of_ddpms(config)
    if name is None and not others.keys() <= {"use_flow_sigmas", "timestep_type"}:
        return config  # which `as_ddpm` refuses for want of a name
    parameters = parameters_of("DDPMScheduler" if is_ddpm else name)
    if others or parameters is None or not (is_ddpm or is_of_ddpms(name)):
        raise ValueError(
            "`config` must be of one of diffusers' schedulers for the networks of DDPMs, of flow matching, EDM or a"
            f" variance-exploding process, got _class_name = {shown(name)}{f' with {others}' if others else ''}."
        )
    # Checkpoints from before diffusers 0.9 say `predict_epsilon=False` for prediction_type="sample".
    if config.pop("predict_epsilon", True) is False:
        config["prediction_type"] = "sample"
    kept, used = kept_of(config), config.pop("_use_default_values", None) or ()
    config.pop(KEPT_UNDER, None)
    # As many of them have it, for whom nothing is drawn.
    without_variance = config.get("variance_type", parameters.get("variance_type", 0)) is None
    if without_variance:
        config.pop("variance_type", None)
    if is_ddpm:
        if name == "DDPMScheduler":
            config.pop("sampler", None)  # of the scheduler in whose place this one was put
        # A default of ours counts as not said; one of another class, which was in memory, does not.
        unsaid = {key for key in used if key in parameters and key in config and is_default(config[key], parameters[key])}
        rest = {key: value for key, value in kept.items() if key not in config}
        return rest | {key: value for key, value in config.items() if key not in unsaid}
    if without_variance:
        del parameters["variance_type"]
    # What a file leaves out is as the other class has it.
    full = kept | parameters | config
    known = {key: full[key] for key in SCHEDULER_RULES if key in full and key not in ("sampler", "noise_process")}
    only = {key: value for key, value in config.items() if key not in SCHEDULER_RULES}
    return known | {"sampler": only | ({"variance_type": None} if without_variance else {})}


def read_config(config: Any, own: str) -> Any:
    r"""What a scheduler of ours is made of, `own` by its class: of any scheduler's configuration the DDPM that its network
    amounts to. What is no mapping is given back.

    Raises:
        ValueError: a class that cannot be read, values that cannot be meant.
    """
    if not isinstance(config, Mapping):
        return config
    config = as_ddpm(with_sampler(config, own))
    check_scheduler_config(config)
    return config


def is_default(value: Any, default: Any) -> bool:
    r"""Whether a value of a configuration is what it was or would be."""
    if isinstance(value, torch.Tensor) and isinstance(default, torch.Tensor):
        return torch.equal(value, default)
    if isinstance(value, (np.ndarray, torch.Tensor)) or isinstance(default, (np.ndarray, torch.Tensor)):
        return type(value) is type(default) and np.array_equal(value, default)
    return value == default


def check_sampler_of(config: Mapping[str, Any]) -> None:
    r"""Raise `ValueError` for a configuration whose `sampler` is none of this network's, or cannot be told of its betas."""
    sampler = config.get("sampler")
    if sampler is None:
        return
    name = sampler.get("_class_name") if isinstance(sampler, Mapping) else None
    parameters, beside = parameters_of(name), config.get("noise_process") is not None
    if name in DDPM or not is_of_ddpms(name) or parameters is None or beside:
        raise ValueError(
            "`sampler` must be the configuration of another of diffusers' schedulers for the networks of DDPMs, got"
            f" {shown(sampler)}{' beside a `noise_process`' * beside}."
        )
    unknown = [key for key in ("rescale_betas_zero_snr",) if config[key] and key not in parameters]
    if config["trained_betas"] is None and config["beta_schedule"] not in STOCK_BETAS:
        unknown.append("beta_schedule")
    if unknown:
        raise ValueError(
            f"`sampler` must be a scheduler that knows this model's {unknown[0]} = {config[unknown[0]]!r}, got a {name}."
            " Leave it out with `from_config(..., sampler=None)`."
        )


def as_saved(own: str) -> str:
    r"""What is saved of a `VLBDDPMScheduler`, from its own JSON. Of a `sampler` that scheduler's configuration, with what it
    shares with ours as we have it, and the rest of ours in it; of a `noise_process` as `process_as_saved`."""
    kept = json.loads(own)
    check_sampler_of(kept)
    sampler = kept.pop("sampler", None)
    if sampler is None:
        return own if kept.get("noise_process") is None else process_as_saved(own)
    del kept["_class_name"]
    parameters = parameters_of(sampler["_class_name"]) or {}
    shared = {key for key in kept if key in parameters and (key != "variance_type" or "variance_type" not in sampler)}
    rest = {key: value for key, value in kept.items() if key not in shared and key != "_diffusers_version"}
    version = {"_diffusers_version": kept["_diffusers_version"]}
    saved = version | sampler | {key: kept[key] for key in shared} | {KEPT_UNDER: rest}
    return json.dumps(saved, indent=2, sort_keys=True) + "\n"
