r"""What `train_vlb_ddpm.py` minimises: the scheduler that the flags describe, and the loss of an image."""

import argparse
from typing import Any

import torch

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.checkpoints.prompts import TextParts
from ddpm_vlb.model.network import Network
from ddpm_vlb.model.preconditioned import PreconditionedNetwork
from ddpm_vlb.noise_processes import as_ddpm
from ddpm_vlb.noise_schedules import STOCK_SCHEDULES, LearnedNoiseSchedule, linear_log_snr, make_betas

from .network import public_config


def build_scheduler(
    arguments: argparse.Namespace,
    num_pixel_levels: int,
    unlabelled_class: int | None = None,
    noise_process: dict[str, Any] | None = None,
) -> VLBDDPMScheduler:
    r"""The scheduler that the flags describe, checked to be one that can be scored; of another noise process its levels."""
    if noise_process is not None:
        levels = as_ddpm(noise_process, arguments.ddpm_num_steps)
        own = {"num_pixel_levels": num_pixel_levels, "unlabelled_class": unlabelled_class}
        return VLBDDPMScheduler(**{**levels, **own, "variance_type": arguments.variance_type})
    config = {
        "num_train_timesteps": arguments.ddpm_num_steps,
        "rescale_betas_zero_snr": arguments.rescale_betas_zero_snr,
        "prediction_type": arguments.prediction_type,
        "variance_type": arguments.variance_type,
        "num_pixel_levels": num_pixel_levels,
        "unlabelled_class": unlabelled_class,
    }
    if arguments.beta_schedule == "linear_log_snr":
        process = linear_log_snr(arguments.ddpm_num_steps, arguments.log_snr_max, arguments.log_snr_min)
        config["trained_betas"] = process.betas.tolist()
    else:
        betas = {"beta_start": arguments.beta_start, "beta_end": arguments.beta_end, "beta_schedule": arguments.beta_schedule}
        if arguments.beta_schedule not in STOCK_SCHEDULES:
            betas = {"trained_betas": make_betas(num_train_timesteps=arguments.ddpm_num_steps, **betas).tolist()}
        config.update(betas)
    scheduler = VLBDDPMScheduler(**config)
    scheduler.reverse_process()
    return scheduler


class Objective(torch.nn.Module):
    r"""Network, forward variances and loss as one module, so that every gradient passes through DistributedDataParallel.

    Called with images and noise `(B, C, H, W)`, timesteps `(B,)` and, where there are any, classes `(B,)`; returns the loss of
    each image, `(B,)`.
    """

    def __init__(
        self,
        network: Network,
        scheduler: VLBDDPMScheduler,
        loss_type: str,
        learn_betas: bool,
        text_parts: TextParts | None = None,
    ):
        super().__init__()
        self.text_parts = text_parts
        # `unet` is the module's name in pipelines and checkpoints.
        self.network, self.unet = network, network.module
        self.scheduler, self.loss_type = scheduler, loss_type
        self.noise_schedule = LearnedNoiseSchedule(scheduler.forward_process()) if learn_betas else None

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        forward_process = self.scheduler.forward_process() if self.noise_schedule is None else self.noise_schedule()
        # Formed in float64; autocast, if any, is the network's own affair.
        noisy_images = forward_process.q_sample(images, noise, timesteps)
        model_output = self.network(noisy_images, timesteps, class_labels)
        # A clipped prediction has no gradient.
        loss = self.scheduler.training_loss(
            model_output,
            images,
            noise,
            noisy_images,
            timesteps,
            self.loss_type,
            clip_sample=False,
            thresholding=False,
            forward_process=forward_process,
            validate_args=False,  # they were made of levels
        )
        if self.loss_type == "simple" and isinstance(self.network, PreconditionedNetwork):
            # Of what the network says: the image is a number times that. A score is small where there is much noise.
            how = self.network.preconditioning(torch.as_tensor(timesteps).to(loss.device))
            is_score = self.scheduler.config.noise_process["_class_name"] in ("ScoreSdeVeScheduler", "KarrasVeScheduler")
            loss = loss * ((how.noise if is_score else 1.0) / how.out).square().to(loss.dtype)
        return loss

    def configuration(self) -> dict[str, Any]:
        r"""Of the network and of the scheduler."""
        return {"unet": public_config(self.unet.config), "scheduler": public_config(self.scheduler.config)}

    def pipeline(self) -> VLBDDPMPipeline:
        r"""What is scored, sampled and saved: the network with the betas as plain numbers."""
        scheduler = self.scheduler
        if self.noise_schedule is not None:
            scheduler = VLBDDPMScheduler.from_config(scheduler.config, trained_betas=self.noise_schedule.betas())
        pipe = VLBDDPMPipeline(self.unet, scheduler, self.network.conditions or None)
        pipe.text_parts = self.text_parts
        pipe.set_progress_bar_config(disable=True)
        return pipe
