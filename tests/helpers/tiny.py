r"""Models and noise that most tests take."""

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

from ddpm_vlb import VLBDDPMPipeline


def tiny_unet(channels=1, out_channels=None, seed=0, **overrides) -> UNet2DModel:
    torch.manual_seed(seed)
    config = dict(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels or channels,
        # Residual blocks and nothing between them, for a fifth of the suite's time is here; the digits' network has attention.
        mid_block_type=None,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    return UNet2DModel(**{**config, **overrides}).eval()


def tiny_dit(**overrides):
    torch.manual_seed(0)
    config = dict(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=2,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_embeds_ada_norm=3,
        norm_type="ada_norm_zero",
    )
    return DiTTransformer2DModel(**{**config, **overrides}).eval()


def tiny_condition(**overrides):
    torch.manual_seed(0)
    config = dict(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        cross_attention_dim=6,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    return UNet2DConditionModel(**{**config, **overrides}).eval()


def quiet(pipe: VLBDDPMPipeline) -> VLBDDPMPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sweeps(pipe, images, count, class_labels=None, **options) -> torch.Tensor:
    r"""Bits/dim of `count` full sweeps with other noise each, (count, N): all in one batch, as fast as a few sweeps."""
    if torch.is_tensor(class_labels):
        class_labels = class_labels.repeat(count)
    many = images.repeat(count, 1, 1, 1)
    out = pipe.evaluate_nll(many, len(many), generator(), class_labels=class_labels, **options)
    return out.bits_per_dim.reshape(count, len(images))


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
