r"""Checkpoints of openai/improved-diffusion on a `UNet2DModel`, exact to float32 rounding.

The UNet of Nichol & Dhariwal 2021 is the one that diffusers' `UNet2DModel` descends from. What differs, and what becomes of it:

- Queries, keys and values come from one convolution, head by head: (head, [q, k, v], channel) -> three linear layers.
- Time is rescaled to [0, 1000) before its sinusoidal embedding, whatever T is. `UNet2DModel` has no such factor; its *learned*
  embedding, a table with one row per timestep, holds the embeddings of the rescaled timesteps.
- With scale-shift norms, `UNet2DModel` leaves out the norm of the middle attention unless `attn_norm_num_groups` is set.
- They fix the *number of heads*, `UNet2DModel` the *channels per head*, once for the whole network. The two agree where
  attention has as many channels everywhere (CIFAR-10: 256 on every level that has it), and with a single head (LSUN).
  ImageNet-64 has four heads on levels of 384 and of 512 channels, which `UNet2DModel` cannot express: it is refused.

Weights tell the architecture, except for the number of heads and the size of images; nothing in them tells the diffusion.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from ..scheduling_vlb_ddpm import VLBDDPMScheduler

# How the published unconditional models were trained (CIFAR-10, ImageNet-64, LSUN), by their channel multipliers.
IN_4000 = {"diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True, "num_heads": 4}
IN_1000 = {"diffusion_steps": 1000, "noise_schedule": "linear", "rescale_timesteps": False, "num_heads": 1}
PUBLISHED = {
    (1, 2, 2, 2): {"image_size": 32, **IN_4000},
    (1, 2, 3, 4): {"image_size": 64, **IN_4000},
    (1, 1, 2, 2, 4, 4): {"image_size": 256, **IN_1000},
}
NOISE_SCHEDULES = ("linear", "cosine")
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

Weights = dict[str, torch.Tensor]


def load_openai_checkpoint(path: str | Path) -> Weights:
    r"""The weights in a checkpoint file (`model*.pt`, `ema_*.pt`), in float32.

    Raises:
        ValueError: a file that is not there, or holds anything but tensors by name; no code in it is run.
    """
    if not Path(path).is_file():  # nor a pipe, whose reader waits for ever
        raise ValueError(f"`checkpoint` must be a file of weights, got {str(path)!r}, which is no file.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler stumble over
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"`checkpoint` must be a file of weights, got {str(path)!r}: {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise ValueError(f"`checkpoint` must hold tensors by name, got a {type(weights).__name__} in {str(path)!r}.")
    return {str(name): weight.float() for name, weight in weights.items()}


def convert_openai(
    weights: Weights,
    *,
    diffusion_steps: int | None = None,
    noise_schedule: str | None = None,
    rescale_timesteps: bool | None = None,
    num_heads: int | None = None,
    image_size: int | None = None,
    dropout: float = 0.0,
    sigma_small: bool = False,
    predict_xstart: bool = False,
) -> tuple[UNet2DModel, VLBDDPMScheduler]:
    r"""Network and scheduler of an improved-diffusion model; the arguments are the flags it was trained with, by default those
    of the published unconditional model with these channel multipliers.

    `VLBDDPMPipeline(*convert_openai(...))` is its pipeline.

    Args:
        weights: the state dict of its `UNetModel`.
        diffusion_steps: T.
        noise_schedule: `"cosine"` or `"linear"`.
        rescale_timesteps: whether the network was told t * 1000 / T.
        num_heads: heads of every attention.
        image_size: height and width of its images.
        dropout: of further training; it changes no number.
        sigma_small, predict_xstart: as trained; `sigma_small` matters where variances are not learned.

    Raises:
        ValueError: weights that are not such a network's, or that `UNet2DModel` cannot express exactly.
    """
    channels, attention, config, names = _read_architecture(weights)
    given = {
        "diffusion_steps": diffusion_steps,
        "noise_schedule": noise_schedule,
        "rescale_timesteps": rescale_timesteps,
        "num_heads": num_heads,
        "image_size": image_size,
    }
    multipliers = tuple(width / channels[0] for width in channels)
    flags = {**PUBLISHED.get(multipliers, {}), **{name: value for name, value in given.items() if value is not None}}
    for name in given:
        if name not in flags:
            raise ValueError(f"`{name}` must be given for channel multipliers of no published model, {multipliers}.")
        if name in ("diffusion_steps", "num_heads", "image_size") and flags[name] < 1:
            raise ValueError(f"`{name}` must be at least 1, got {flags[name]}.")
    steps, schedule, rescale, heads, size = (flags[name] for name in given)
    if schedule not in NOISE_SCHEDULES:
        raise ValueError(f"`noise_schedule` must be one of {NOISE_SCHEDULES}, got {schedule!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must lie in [0, 1), got {dropout}.")
    config["attention_head_dim"] = _channels_per_head(attention, heads)
    if rescale and steps != 1000:
        config |= {"time_embedding_type": "learned", "num_train_timesteps": steps}
    unet = UNet2DModel(sample_size=size, dropout=dropout, **config)

    converted = dict(_convert_weights(weights, names, heads))
    if config.get("time_embedding_type") == "learned":
        timesteps = torch.arange(steps).float() * (1000.0 / steps)
        converted["time_proj.weight"] = timestep_embedding(timesteps, channels[0])
    expected = {name: weight.shape for name, weight in unet.state_dict().items()}
    found = {name: weight.shape for name, weight in converted.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(
            "`weights` must be those of an improved-diffusion UNetModel, got other shapes for"
            f" {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''} ({len(wrong)} of {len(expected)})."
        )
    infinite = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    if infinite:
        raise ValueError(f"`weights` must be finite, got NaN or infinity in {infinite[0]!r} ({len(infinite)} tensors).")
    unet.load_state_dict(converted)

    learned = config["out_channels"] == 2 * config["in_channels"]
    scale = 1000 / steps  # of the linear schedule, which is given for 1000 steps
    scheduler = VLBDDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2" if schedule == "cosine" else "linear",
        beta_start=scale * 1e-4,
        beta_end=scale * 0.02,
        variance_type="learned_range" if learned else "fixed_small" if sigma_small else "fixed_large",
        prediction_type="sample" if predict_xstart else "epsilon",
        clip_sample=True,  # as in their evaluation
        timestep_spacing="linspace",  # their respacing into K steps
    )
    scheduler.forward_process()  # refuses betas that are none
    return unet.eval(), scheduler


def timestep_embedding(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    r"""Cosines and sines of timesteps `(N,)`, shape `(N, dim)`, float32: Transformer position embeddings, cosines first."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def _channels_per_head(widths: list[int], num_heads: int) -> int | None:
    if num_heads > 1 and len(widths) > 1:
        raise ValueError(
            f"`weights` must have attention of one width for `UNet2DModel`, which knows one number of channels per head: got"
            f" {num_heads} heads on levels of {', '.join(map(str, widths))} channels, that is"
            f" {', '.join(f'{width / num_heads:g}' for width in widths)} channels per head."
        )
    if widths[-1] % num_heads:
        raise ValueError(f"`num_heads` must divide the {widths[-1]} channels of attention, got {num_heads}.")
    return None if num_heads == 1 else widths[-1] // num_heads


def _read_architecture(weights: Weights) -> tuple[list[int], list[int], dict[str, Any], dict[str, str]]:
    r"""The channels of each level, the widths that have attention, the configuration of the `UNet2DModel` but for its heads,
    and where each module of the network has its place in it."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"`weights` must be those of an improved-diffusion UNetModel, got no {name!r}.")
        return weights[name].shape

    names = {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
    }
    names |= {"out.0": "conv_norm_out", "out.2": "conv_out", "label_emb": "class_embedding"}
    count = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("input_blocks.")), default=0)
    levels: list[list[tuple[int, bool]]] = [[]]  # for each level, channels and attention of its blocks
    for index in range(1, count):
        block, down = f"input_blocks.{index}", len(levels) - 1
        if f"{block}.0.op.weight" in weights:
            names[f"{block}.0.op"] = f"down_blocks.{down}.downsamplers.0.conv"
            levels.append([])
            continue
        if not any(name.startswith(f"{block}.") for name in weights):
            raise ValueError(f"`weights` must be of a network that downsamples by convolutions, got no weights for {block!r}.")
        place = len(levels[-1])
        names[f"{block}.0"] = f"down_blocks.{down}.resnets.{place}"
        has_attention = f"{block}.1.qkv.weight" in weights
        if has_attention:
            names[f"{block}.1"] = f"down_blocks.{down}.attentions.{place}"
        levels[-1].append((shape(f"{block}.0.in_layers.2.weight")[0], has_attention))
    if any(len(level) != len(levels[0]) or len(set(level)) != 1 for level in levels):
        raise ValueError(f"`weights` must be of a network whose levels are alike within, got {levels}.")
    layers, attends = len(levels[0]), [level[0][1] for level in levels]
    channels = [level[0][0] for level in levels]
    names |= {f"middle_block.{i}": f"mid_block.{part}" for i, part in enumerate(("resnets.0", "attentions.0", "resnets.1"))}
    for index in range(len(levels) * (layers + 1)):
        up, place = divmod(index, layers + 1)
        block, attention = f"output_blocks.{index}", attends[::-1][up]
        names[f"{block}.0"] = f"up_blocks.{up}.resnets.{place}"
        if attention:
            names[f"{block}.1"] = f"up_blocks.{up}.attentions.{place}"
        if place == layers and up < len(levels) - 1:
            names[f"{block}.{1 + attention}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"

    widths = sorted({width for width, attention in zip(channels, attends) if attention} | {channels[-1]})
    conv_in, conv_out = shape("input_blocks.0.0.weight"), shape("out.2.weight")
    scale_shift = shape("middle_block.0.emb_layers.1.weight")[0] == 2 * channels[-1]
    config = {
        "in_channels": conv_in[1],
        "out_channels": conv_out[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in attends[::-1]],
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
    }
    if "label_emb.weight" in weights:
        config["num_class_embeds"] = shape("label_emb.weight")[0]
    if conv_in[0] != channels[0]:
        raise ValueError(f"`weights` must have the first level as wide as the input, got {channels[0]} and {conv_in[0]}.")
    return channels, widths, config, names


def _convert_weights(weights: Weights, names: dict[str, str], num_heads: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        owner = next((prefix for prefix in (module, *_parents(module)) if prefix in names), None)
        if owner is None:
            raise ValueError(f"`weights` must be those of an improved-diffusion UNetModel, got {name!r} besides.")
        target, inner = names[owner], module.removeprefix(owner).removeprefix(".")
        if inner == "qkv":
            # (head, [q, k, v], channel) -> three times (head, channel)
            parts = weight.flatten(1) if kind == "weight" else weight
            parts = parts.reshape(num_heads, 3, -1, *parts.shape[1:]).transpose(0, 1).flatten(1, 2)
            yield from ((f"{target}.to_{letter}.{kind}", part.contiguous()) for letter, part in zip("qkv", parts))
        elif inner == "proj_out":
            yield f"{target}.to_out.0.{kind}", weight.flatten(1) if kind == "weight" else weight
        else:
            inner = RESNET.get(inner, "group_norm" if inner == "norm" else inner)
            yield f"{target}.{inner}.{kind}" if inner else f"{target}.{kind}", weight


def _parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module
