r"""The network that is trained: the one file that knows what a `UNet2DModel` is.

It is built here from the flags, or taken as it is where it is of another kind. Everything else asks the `Network` that stands
for it.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.checks import shown
from ddpm_vlb.model.configuration import check_network_config
from ddpm_vlb.model.kinds import network_of
from ddpm_vlb.model.network import Network
from ddpm_vlb.model.preconditioned import preconditioned

DEFAULTS = {
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 2,
    "attention_head_dim": 32,
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}

MAX_PARAMETERS = 2 * 10**9  # with gradients and Adam's moments 32 GB


def build_network(
    arguments: argparse.Namespace,
    shape: Sequence[int],
    scheduler: VLBDDPMScheduler,
    num_classes: int | None = None,
    pretrained: VLBDDPMPipeline | None = None,
) -> Network:
    r"""The network for images `(C, H, W)`, of so many classes where there are any, as the scheduler sees it: one that is
    trained already, a configuration file's or a small default one, with `--unet`'s arguments over its own.

    Raises:
        ValueError: arguments that make no network, or none for these images and variances.
    """
    reverse = scheduler.reverse_process()
    if pretrained is not None and (pretrained.network.conditions or not isinstance(pretrained.unet, UNet2DModel)):
        unet, conditions = pretrained.unet, pretrained.network_kwargs
        network = preconditioned(network_of(unet, conditions=conditions), scheduler)
        _check_as_it_is(network, arguments, shape, num_classes)
        network.check_out_channels(reverse.learns_variance, reverse.variance_type)
    else:
        trained = None if pretrained is None else pretrained.unet
        config = _configuration(arguments, shape, num_classes, reverse.learns_variance, trained)
        _check_runs(config, shape)
        unet = UNet2DModel(**config)
        network = preconditioned(network_of(unet), scheduler)
        if trained is not None:
            take_weights(unet, trained)
    network.check((0, scheduler.config.num_train_timesteps - 1), shape[1:])
    if arguments.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return network


def _check_as_it_is(network: Network, arguments: argparse.Namespace, shape: Sequence[int], num_classes: int | None) -> None:
    # Of another class, or with conditions: what is made of it is for other images, or none.
    name = type(network.module).__name__
    if arguments.unet:
        raise ValueError(f"`unet` must be left out for a {name} that is trained already, got {shown(arguments.unet)}.")
    if (network.channels, *(network.size or shape[1:])) != tuple(shape):
        size = (network.channels, *(network.size or ()))
        raise ValueError(f"`dataset` must have images of {size} for this {name}, got {tuple(shape)}.")
    if network.num_classes != num_classes:
        raise ValueError(
            f"`class_conditional` must be {'off' if network.num_classes is None else 'on'} for this {name}, with as many"
            f" classes as it has, got {num_classes} for {network.num_classes}."
        )


def _check_runs(config: dict[str, Any], shape: Sequence[int]) -> None:
    # On the device that has shapes but no numbers: a network of any size is tried there in no time.
    check_network_config(config)
    _, height, width = shape
    with torch.device("meta"):
        try:
            unet = UNet2DModel(**config)
        except Exception as error:  # of diffusers, of torch, of Python: whatever the arguments make it stumble over
            reason = str(error)[:300]
            raise ValueError(f"`unet` must hold arguments of UNet2DModel, got {shown(config)}: {reason}") from error
        parameters = sum(weight.numel() for weight in unet.parameters())
        if parameters > MAX_PARAMETERS:
            raise ValueError(f"`unet` must have at most {MAX_PARAMETERS:.0e} parameters, got {parameters:.1e}.")
        halvings = 2 ** (len(unet.config.block_out_channels) - 1)
        if height % halvings or width % halvings:
            raise ValueError(
                f"`unet` must halve the images evenly, got {halvings.bit_length()} blocks for {height} x {width} pixels."
            )
        try:
            classes = {} if unet.config.num_class_embeds is None else {"class_labels": torch.zeros(1, dtype=torch.int64)}
            unet(torch.zeros(1, *shape), 0, **classes)
        except Exception as error:
            reason = str(error)[:300]
            raise ValueError(f"`unet` must describe a network that runs, got {shown(config)}: {reason}") from error


def _configuration(
    arguments: argparse.Namespace,
    shape: Sequence[int],
    num_classes: int | None,
    learns_variance: bool,
    pretrained: UNet2DModel | None,
) -> dict[str, Any]:
    r"""Arguments of `UNet2DModel`, checked against the images `(C, H, W)` and the variances."""
    channels, height, width = shape
    config = dict(DEFAULTS)
    if arguments.model_config_name_or_path:
        config = public_config(UNet2DModel.load_config(arguments.model_config_name_or_path))
    if pretrained is not None:
        config = public_config(pretrained.config)
        if learns_variance and config["out_channels"] == channels:
            del config["out_channels"]
    config |= arguments.unet
    fixed = {"sample_size": height if height == width else (height, width), "in_channels": channels}
    fixed["out_channels"] = 2 * channels if learns_variance else channels
    for name, value in fixed.items():
        if config.setdefault(name, value) not in (value, list(value) if isinstance(value, tuple) else value):
            raise ValueError(f"`unet` must have {name} = {value} for these images and variances, got {config[name]}.")
    if num_classes is None and config.get("num_class_embeds") is not None:
        raise ValueError(
            f"`unet` must be unconditional (no num_class_embeds) without `class_conditional`, got {config['num_class_embeds']}."
        )
    if num_classes is not None and config.setdefault("num_class_embeds", num_classes) != num_classes:
        raise ValueError(
            f"`unet` must have num_class_embeds = {num_classes} for these labels, got {config['num_class_embeds']}."
        )
    return config


def take_weights(unet: UNet2DModel, pretrained: UNet2DModel) -> None:
    r"""Copy the weights. A network without variances gets zeros for them: in the middle of the learned range.

    Raises:
        ValueError: networks of other shapes.
    """
    weights, wanted = pretrained.state_dict(), unet.state_dict()
    if "class_embedding.weight" in wanted and "class_embedding.weight" not in weights:
        weights["class_embedding.weight"] = torch.zeros_like(wanted["class_embedding.weight"])  # adds nothing, to begin with
    for name in ("conv_out.weight", "conv_out.bias"):
        if 2 * len(weights[name]) == len(wanted[name]):
            weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    try:
        unet.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"`unet` must keep the shapes of the pretrained network, got others: {error}") from error


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    r"""Of a configuration of diffusers', what its owner set; not what diffusers keeps beside it."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
