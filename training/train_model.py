r"""What `train_vlb_ddpm.py` trains: the scheduler and the network that the flags describe, and the loss of an image."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.noise_schedules import LearnedNoiseSchedule, linear_log_snr


def build_scheduler(arguments: argparse.Namespace, num_pixel_levels: int) -> VLBDDPMScheduler:
    r"""The scheduler that the flags describe, checked to be one that can be scored."""
    config = {
        "num_train_timesteps": arguments.ddpm_num_steps,
        "rescale_betas_zero_snr": arguments.rescale_betas_zero_snr,
        "prediction_type": arguments.prediction_type,
        "variance_type": arguments.variance_type,
        "num_pixel_levels": num_pixel_levels,
    }
    if arguments.beta_schedule == "linear_log_snr":
        process = linear_log_snr(arguments.ddpm_num_steps, arguments.log_snr_max, arguments.log_snr_min)
        config["trained_betas"] = process.betas.tolist()
    else:
        betas = {"beta_start": arguments.beta_start, "beta_end": arguments.beta_end, "beta_schedule": arguments.beta_schedule}
        config.update(betas)
    scheduler = VLBDDPMScheduler(**config)
    scheduler.reverse_process()
    return scheduler


def build_unet(arguments: argparse.Namespace, shape: Sequence[int], learns_variance: bool) -> UNet2DModel:
    r"""The network for images `(C, H, W)`: one that is trained already, a configuration file's or a small default one, with
    `--unet`'s arguments over its own.
    """
    channels, height, width = shape
    config = {"block_out_channels": (64, 128, 128), "layers_per_block": 2, "attention_head_dim": 32, "norm_num_groups": 16}
    config |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")}
    config |= {"up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")}
    if arguments.model_config_name_or_path:
        config = _own(UNet2DModel.load_config(arguments.model_config_name_or_path))
    pretrained = load_pretrained(arguments) if arguments.pretrained_model_name_or_path else None
    if pretrained is not None:
        config = _own(pretrained.config)
        if learns_variance and config["out_channels"] == channels:
            del config["out_channels"]
    config |= arguments.unet
    fixed = {"sample_size": height if height == width else (height, width), "in_channels": channels}
    fixed["out_channels"] = 2 * channels if learns_variance else channels
    for name, value in fixed.items():
        if config.setdefault(name, value) not in (value, list(value) if isinstance(value, tuple) else value):
            raise ValueError(f"`unet` must have {name} = {value} for these images and variances, got {config[name]}.")
    if config.get("num_class_embeds") is not None:
        raise ValueError(f"`unet` must be unconditional (no num_class_embeds), got {config['num_class_embeds']}.")
    try:
        unet = UNet2DModel(**config)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"`unet` must hold arguments of UNet2DModel, got {config}: {error}") from error
    halvings = 2 ** (len(unet.config.block_out_channels) - 1)
    if height % halvings or width % halvings:
        raise ValueError(
            f"`unet` must halve the images evenly, got {halvings.bit_length()} blocks for {height} x {width} pixels."
        )
    if pretrained is not None:
        take_weights(unet, pretrained)
    if arguments.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def load_pretrained(arguments: argparse.Namespace) -> UNet2DModel:
    r"""The network of `--pretrained_model_name_or_path`, a pipeline in a folder or on the Hub.

    Raises:
        ValueError: what is no pipeline of a `UNet2DModel`, and one whose output means something else than the run's.
    """
    name = arguments.pretrained_model_name_or_path
    try:
        pipe = VLBDDPMPipeline.from_pretrained(name)
    except Exception as error:  # of diffusers, of the Hub, of a damaged file
        raise ValueError(f"`pretrained_model_name_or_path` must be a DDPM pipeline, got {name!r}: {error}") from error
    trained_for = pipe.scheduler.config.prediction_type
    if trained_for != arguments.prediction_type:
        raise ValueError(
            f"`prediction_type` must be what {name!r} was trained for, {trained_for!r}, got {arguments.prediction_type!r}."
        )
    return pipe.unet


def take_weights(unet: UNet2DModel, pretrained: UNet2DModel) -> None:
    r"""Copy the weights. A network without variances gets zeros for them: in the middle of the learned range.

    Raises:
        ValueError: networks of other shapes.
    """
    weights, wanted = pretrained.state_dict(), unet.state_dict()
    for name in ("conv_out.weight", "conv_out.bias"):
        if 2 * len(weights[name]) == len(wanted[name]):
            weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    try:
        unet.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"`unet` must keep the shapes of the pretrained network, got others: {error}") from error


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


class Objective(torch.nn.Module):
    r"""Network, forward variances and loss as one module, so that every gradient passes through DistributedDataParallel.

    Called with images and noise `(B, C, H, W)` and timesteps `(B,)`; returns the loss of each image, `(B,)`.
    """

    def __init__(self, unet: UNet2DModel, scheduler: VLBDDPMScheduler, loss_type: str, learn_betas: bool):
        super().__init__()
        self.unet, self.scheduler, self.loss_type = unet, scheduler, loss_type
        self.noise_schedule = LearnedNoiseSchedule(scheduler.forward_process()) if learn_betas else None

    def forward(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        forward_process = self.scheduler.forward_process() if self.noise_schedule is None else self.noise_schedule()
        # Formed in float64; autocast, if any, is the network's own affair.
        noisy_images = forward_process.q_sample(images, noise, timesteps)
        model_output = self.unet(noisy_images.to(self.unet.dtype), timesteps.to(images.device)).sample
        # A clipped prediction has no gradient.
        return self.scheduler.training_loss(
            model_output,
            images,
            noise,
            noisy_images,
            timesteps,
            self.loss_type,
            clip_sample=False,
            thresholding=False,
            forward_process=forward_process,
        )

    def pipeline(self) -> VLBDDPMPipeline:
        r"""What is scored, sampled and saved: the network with the betas as plain numbers."""
        scheduler = self.scheduler
        if self.noise_schedule is not None:
            scheduler = VLBDDPMScheduler.from_config(scheduler.config, trained_betas=self.noise_schedule.betas())
        pipe = VLBDDPMPipeline(self.unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe
