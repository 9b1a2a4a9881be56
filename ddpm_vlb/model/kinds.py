r"""The kinds of networks: one class each, which says what its images are and how it is called, and a line of `_KINDS`.

==========================  ================================================================================================
`UNet2DModel`               classes in a table, or embedded from numbers or vectors of their own (`class_embed_type`)
`DiTTransformer2DModel`     classes in a table; timesteps one each
`UNet2DConditionModel`      what a prompt became, as `encoder_hidden_states`
==========================  ================================================================================================

What is none of them is taken for a module that is called like a `UNet2DModel`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

from .configuration import NETWORK_RULES, check_configuration
from .network import Network, unwrapped


class UNetNetwork(Network):
    r"""diffusers' `UNet2DModel`, and any module with such a configuration that is called like one.

    Attributes:
        size_multiple: what height and width must be a multiple of, to be halved between the blocks and doubled again.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        super().__init__(module, device)
        config: Any = module.config
        check_configuration({name: getattr(config, name) for name in NETWORK_RULES if hasattr(config, name)}, NETWORK_RULES)
        self.channels = config.in_channels
        self.out_channels = getattr(config, "out_channels", None)
        size = getattr(config, "sample_size", None)
        self.size = size if size is None else tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        self.num_classes = getattr(config, "num_class_embeds", None)
        self.size_multiple = 2 ** max(len(getattr(config, "down_block_types", None) or ()) - 1, 0)
        self._time_embedding = getattr(config, "time_embedding_type", "positional")
        self._takes_logarithm = self._time_embedding == "fourier"
        if isinstance(getattr(module, "_orig_mod", module), UNet2DModel):
            self.takes = ()
        embedding = getattr(config, "class_embed_type", None)
        if embedding is not None:  # in place of a table
            self.num_classes = None
            self.needs = {"class_labels": f"what class_embed_type={embedding!r} embeds, a row for each class"}
        self._num_timesteps = getattr(config, "num_train_timesteps", None) if self._time_embedding == "learned" else None
        # A table of embeddings has a row for each timestep, and none between.
        self.takes_fractions = self._time_embedding != "learned"

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""Raise `ValueError` where it cannot be asked at one of these timesteps, or about images of this (height, width)."""
        if self._takes_logarithm and min(timesteps, default=1) <= 0:
            raise ValueError(
                f"`unet` must have an embedding of timestep {min(timesteps):g}, got time_embedding_type='fourier', which takes"
                " the timestep's logarithm. `inference_timesteps` can name a grid without it."
            )
        if self._num_timesteps is not None and max(timesteps, default=0) >= self._num_timesteps:
            raise ValueError(
                f"`unet` must have an embedding of timestep {max(timesteps)}, got a learned one of"
                f" {self._num_timesteps} timesteps."
            )
        if size is not None and any(length % self.size_multiple for length in size):
            raise ValueError(
                f"`unet` must halve the images evenly, got {self.size_multiple.bit_length()} blocks for"
                f" {size[0]} x {size[1]} pixels."
            )

    def output(self, samples, timesteps, class_labels):
        r"""`(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned."""
        return self.module(samples, timesteps, **self.given(samples, class_labels)).sample


class DiTNetwork(Network):
    r"""diffusers' `DiTTransformer2DModel`.

    Attributes:
        size_multiple: the side of its patches.
    """

    takes = ()

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        super().__init__(module, device)
        config: Any = module.config
        self.channels, self.size = config.in_channels, (config.sample_size, config.sample_size)
        self.out_channels = config.out_channels or config.in_channels
        self.num_classes = config.num_embeds_ada_norm
        self.size_multiple = config.patch_size

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""As `Network.check`."""
        if size is not None and any(length % self.size_multiple for length in size):
            raise ValueError(
                f"`unet` must have images of whole patches, {self.size_multiple} pixels wide, got {size[0]} x {size[1]} pixels."
            )

    def output(self, samples, timesteps, class_labels):
        r"""`(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned."""
        return self.module(samples, timesteps.expand(len(samples)), **self.given(samples, class_labels)).sample


# What `UNet2DConditionModel` takes in `added_cond_kwargs`, by what asks for it.
ADDED = {
    "addition_embed_type": {
        "text_image": ("image_embeds",),
        "text_time": ("text_embeds", "time_ids"),
        "image": ("image_embeds",),
        "image_hint": ("image_embeds", "hint"),
    },
    "encoder_hid_dim_type": {"text_image_proj": ("image_embeds",), "image_proj": ("image_embeds",)},
}


class ConditionNetwork(UNetNetwork):
    r"""diffusers' `UNet2DConditionModel`, in pixel space: what it is given is `encoder_hidden_states`, and what else its
    configuration asks for (`Network.with_conditions`)."""

    def __init__(self, module: torch.nn.Module, device: torch.device | None = None):
        super().__init__(module, device)
        config: Any = module.config
        if config.time_cond_proj_dim is not None:
            raise ValueError(
                f"`unet` must not be distilled from a guided network, got time_cond_proj_dim={config.time_cond_proj_dim}, an"
                " input for the scale of guidance: what it says is no denoiser's prediction, and no bound is known of it."
            )
        # It brings any size up again to what it was, and has the timestep, not its logarithm, where that is not in a table.
        self.size_multiple = 1
        self._takes_logarithm = False
        self.takes = ("encoder_attention_mask", "attention_mask")
        self._width = config.encoder_hid_dim or config.cross_attention_dim
        words = f"a prompt's embeddings (P, length, {self._width})" if isinstance(self._width, int) else "a prompt's embeddings"
        words += ", or be made of a `prompt` where the checkpoint has a text encoder"
        self.needs = {**self.needs, "encoder_hidden_states": words}
        self._added: tuple[str, ...] = ()
        for key, kinds in ADDED.items():
            for name in kinds.get(getattr(config, key), ()):
                self._added += (name,)
                self.needs[name] = (
                    f"as {key}={getattr(config, key)!r} asks for in `added_cond_kwargs`, a row for each condition"
                )

    def given(self, samples: torch.Tensor, class_labels: torch.Tensor | None) -> dict[str, Any]:
        r"""As `Network.given`."""
        arguments: dict[str, Any] = super().given(samples, class_labels)
        if self._added:
            arguments["added_cond_kwargs"] = {name: arguments.pop(name) for name in dict.fromkeys(self._added)}
        return arguments

    def with_conditions(self, conditions: Mapping[str, torch.Tensor] | None) -> Network:
        r"""As `Network.with_conditions`."""
        network = super().with_conditions(conditions)
        states = self.conditions["encoder_hidden_states"]
        if (
            states.ndim != 3
            or not states.is_floating_point()
            or isinstance(self._width, int)
            and states.shape[2] != self._width
        ):
            raise ValueError(
                f"`network_kwargs` must hold {self.needs['encoder_hidden_states']}, got encoder_hidden_states of shape"
                f" {tuple(states.shape)} and {states.dtype}."
            )
        return network


# Kinds of networks by the class of their module; the last that fits is taken.
_KINDS: list[tuple[type, type[Network]]] = [
    (UNet2DModel, UNetNetwork),
    (DiTTransformer2DModel, DiTNetwork),
    (UNet2DConditionModel, ConditionNetwork),
]
# The same for those who read annotations, as diffusers does of its pipelines.
KnownModule = UNet2DModel | DiTTransformer2DModel | UNet2DConditionModel
# What `from_pretrained` loads where a folder does not say.
DEFAULT_MODULE = UNet2DModel


def add_network(module_class: type, network_class: type[Network]) -> None:
    r"""Have modules of a class scored as a kind of networks, and loaded from checkpoints whose index names the class."""
    _KINDS.append((module_class, network_class))


def check_module(module: Any) -> Any:
    r"""The module, or `ValueError` for one that does not say what its images are."""
    if not isinstance(module, Network) and not hasattr(getattr(unwrapped(module), "_orig_mod", unwrapped(module)), "config"):
        raise ValueError(
            f"`unet` must be a {' or a '.join(known_names())}, or say what its images are in a `config` like one, got a"
            f" {type(module).__name__}. `ddpm_vlb.FunctionModel` makes a network of any module or function."
        )
    return module


def network_of(
    module: Any, device: torch.device | None = None, conditions: Mapping[str, torch.Tensor] | None = None
) -> Network:
    r"""The `Network` of a module, given `conditions` (`Network.with_conditions`)."""
    if isinstance(module, Network):
        return module
    module = unwrapped(module)
    # A compiled module stands for the one that it was made from.
    inner = getattr(module, "_orig_mod", module)
    # What is none of them is taken for a module that is called like a UNet2DModel.
    kind = next((kind for cls, kind in reversed(_KINDS) if isinstance(inner, cls)), UNetNetwork)
    network = kind(module, device)
    network.check_inputs()
    return network.with_conditions(conditions)


def known_module_class(library: str, name: str) -> type | None:
    r"""The class of networks of this name in this library that can be scored, if there is one."""
    if not (isinstance(library, str) and library):
        return None
    return next((cls for cls, _ in _KINDS if cls.__name__ == name and f"{cls.__module__}.".startswith(f"{library}.")), None)


def known_names() -> list[str]:
    r"""The names of all classes of diffusers that can be scored."""
    return [cls.__name__ for cls, _ in _KINDS if cls.__module__.startswith("diffusers.")]
