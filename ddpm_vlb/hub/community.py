r"""A community pipeline for diffusers: the bound of images under any DDPM checkpoint, and nothing else.

diffusers keeps pipelines of its users in `examples/community`, one file each. That file is made from this module and those that
it imports (`standalone.community_source`): the same maths, without this package's readers, reports and estimators.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import BaseOutput, replace_example_docstring

from ..bound import prior_kl, vlb_terms
from ..checks import check_count, check_finite
from ..forward_process import ForwardProcess
from ..gaussians import nats_to_bits_per_dim
from ..noise import draw_seeds, keyed_noise
from ..noise_schedules import make_betas
from ..parametrizations import KEPT_UNDER
from ..pixel_grid import check_num_pixel_levels, levels_to_samples, samples_to_levels
from ..reverse_process import ReverseProcess

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from diffusers import DiffusionPipeline

        >>> pipe = DiffusionPipeline.from_pretrained("google/ddpm-cifar10-32", custom_pipeline="ddpm_likelihood")
        >>> pipe = pipe.to("cuda")
        >>> images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)  # your test images, 8-bit RGB
        >>> out = pipe(images, generator=torch.Generator().manual_seed(0))
        >>> print(out.bits_per_dim.mean())  # an upper bound on the negative log-likelihood
        >>> print(out.prior.mean(), out.transitions.sum(dim=1).mean(), out.decoder.mean())  # L_T, L_t and L_0
        ```
"""
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
REVERSE = (
    "prediction_type",
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)


@dataclass
class DDPMLikelihoodOutput(BaseOutput):
    r"""
    The variational bound of N images, in bits per dimension.

    Args:
        bits_per_dim (`torch.Tensor` of shape `(N,)`): The bound: `prior + transitions.sum(dim=1) + decoder`.
        prior (`torch.Tensor` of shape `(N,)`): L_T.
        transitions (`torch.Tensor` of shape `(N, T - 1)`): The KL terms L_t, ascending in t.
        decoder (`torch.Tensor` of shape `(N,)`): L_0, the discretised Gaussian decoder.
    """

    bits_per_dim: torch.Tensor
    prior: torch.Tensor
    transitions: torch.Tensor
    decoder: torch.Tensor


class DDPMLikelihoodPipeline(DDPMPipeline):
    r"""
    The variational bound on the negative log-likelihood of images under a DDPM (eq. 5, Ho et al. 2020), over all T steps.

    Parameters:
        unet ([`UNet2DModel`]):
            An unconditional network, with as many output as input channels, or twice as many where variances are learned.
        scheduler ([`DDPMScheduler`]):
            Its configuration is the model: betas, prediction and variance type, clipping.
    """

    def __init__(self, unet: UNet2DModel, scheduler: DDPMScheduler):
        super().__init__(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        images: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        batch_size: int = 64,
        num_pixel_levels: int = 256,
        return_dict: bool = True,
    ) -> DDPMLikelihoodOutput | tuple:
        r"""
        Score images.

        Args:
            images (`torch.Tensor` of shape `(N, C, H, W)`):
                Integers, which are grey levels, or floats in [-1, 1] on the grid of levels.
            generator (`torch.Generator`, *optional*):
                Makes the result reproducible; or a list with one per image. The noise of an image depends on no batch.
            batch_size (`int`, *optional*, defaults to 64):
                Images per network call.
            num_pixel_levels (`int`, *optional*, defaults to 256):
                Number of grey levels; level k stands for 2 k / (num_pixel_levels - 1) - 1.
            return_dict (`bool`, *optional*, defaults to `True`):
                Return a `DDPMLikelihoodOutput` or a tuple.

        Examples:

        Returns:
            `DDPMLikelihoodOutput` or `tuple`: bits per dimension, float64 on the CPU.

        Raises:
            ValueError: images off the grid, a model that cannot be scored, a network whose output is not finite.
        """
        batch_size = check_count("batch_size", batch_size)
        check_num_pixel_levels(num_pixel_levels)
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or not len(images):
            shape = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
            raise ValueError(f"`images` must be a tensor (N, C, H, W) of at least one image, got {shape}.")
        if images.is_floating_point():
            images = samples_to_levels(images, num_pixel_levels)
        # As Python's numbers: beside a uint8 tensor 256 would be 0.
        least, most = images.min().item(), images.max().item()
        if least < 0 or most >= num_pixel_levels:
            raise ValueError(f"`images` must hold levels from 0 to {num_pixel_levels - 1}, got {least} to {most}.")
        config, device = dict(self.scheduler.config), self._execution_device
        if "beta_start" in config:  # a DDPM's network, of whose model another scheduler does not know all
            config |= config.get(KEPT_UNDER, {})
        if config.get("calibration") is not None:
            raise ValueError("`scheduler` must not be calibrated, which is another model, got a calibration. Use ddpm_vlb.")
        missing = [name for name in (*BETAS, *REVERSE) if name not in config]
        if missing:
            raise ValueError(f"`scheduler` must be a DDPMScheduler, got {type(self.scheduler).__name__} without {missing[0]}.")
        forward = ForwardProcess.from_betas(make_betas(**{name: config[name] for name in BETAS}))
        reverse = ReverseProcess(forward, **{name: config[name] for name in REVERSE})
        seeds, was_training = draw_seeds(len(images), generator), self.unet.training
        timesteps, rows = forward.timesteps.tolist(), []
        self.unet.eval()
        # In the network's own dtype, whatever `torch.autocast` the call stands in.
        own = torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()
        try:
            with own, cast(Any, self).progress_bar(total=len(timesteps) * -(-len(images) // batch_size)) as bar:
                for start in range(0, len(images), batch_size):
                    x = levels_to_samples(images[start : start + batch_size].to(device), num_pixel_levels, torch.float64)
                    terms = [prior_kl(forward, x)]
                    noises = keyed_noise(seeds[start : start + batch_size], timesteps, x.shape[1:], device)
                    for timestep, noise in zip(timesteps, noises):
                        x_t = forward.q_sample(x, noise, timestep)
                        model_output = self.unet(x_t.to(self.unet.dtype), timestep).sample
                        terms.append(vlb_terms(reverse, model_output, x, x_t, timestep, num_pixel_levels, validate_args=False))
                        bar.update()
                    rows.append(torch.stack(terms, dim=1).cpu().double())
        finally:
            self.unet.train(was_training)
        bits = nats_to_bits_per_dim(torch.cat(rows), images[0].numel())
        check_finite(bits[:, 1:], timesteps, self.unet.dtype)
        self.maybe_free_model_hooks()
        output = DDPMLikelihoodOutput(bits.sum(dim=1), prior=bits[:, 0], transitions=bits[:, 2:], decoder=bits[:, 1])
        return output if return_dict else output.to_tuple()
