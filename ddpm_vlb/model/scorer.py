r"""A network and the process that is scored: terms of the bound for any images at any timesteps.

Both ways to score images are made of it: the full sweep, every image at every step, and the sampled evaluation
(`sampled_bound.py`). A batch mixes images and timesteps freely.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..bound import prior_kl, vlb_terms
from ..checks import working_dtype
from ..pixel_grid import levels_to_samples
from ..reverse_process import ReverseProcess


@dataclass(frozen=True)
class Scorer:
    r"""What is scored.

    Args:
        unet: the network, called as `unet(noisy_samples, timesteps, class_labels=...)`.
        reverse: the reverse process.
        num_pixel_levels: levels of the images' grid.
        device: of the network.
        dtype: of the network's inputs.
    """

    unet: Callable[..., Any]
    reverse: ReverseProcess
    num_pixel_levels: int
    device: torch.device
    dtype: torch.dtype

    def samples(self, levels: torch.Tensor) -> torch.Tensor:
        r"""Levels as images in [-1, 1] on the device, in the working dtype."""
        return levels_to_samples(levels.to(self.device, non_blocking=True), self.num_pixel_levels, working_dtype(self.device))

    def prior(self, samples: torch.Tensor) -> torch.Tensor:
        r""":math:`L_T` in nats, `(B,)`, on the device."""
        return prior_kl(self.reverse.forward, samples)

    def network(
        self, noisy_samples: torch.Tensor, timesteps: int | float | torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""The network's output.

        Args:
            noisy_samples: latents on the device, `(B, C, H, W)`; formed in the working dtype, and only here brought to the
                network's.
            timesteps: one for all, or one each, `(B,)`.
            class_labels: of a class-conditional network, `(B,)`.
        """
        arguments = {} if class_labels is None else {"class_labels": class_labels.to(self.device, non_blocking=True)}
        on_device = torch.as_tensor(timesteps).to(self.device, non_blocking=True)
        return self.unet(noisy_samples.to(self.dtype), on_device, **arguments).sample

    def terms(
        self,
        samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: int | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        on_device: torch.Tensor | None = None,
    ) -> torch.Tensor:
        r"""Terms of the bound: the decoder's at the lowest timestep of the grid, KLs above.

        Args:
            samples: images on the grid, `(B, C, H, W)`, on the device.
            noise: standard normal, of the same shape, on the CPU or the device.
            timesteps: one for all, or one each, `(B,)`, on the CPU.
            class_labels: of a class-conditional network, `(B,)`.
            on_device: the same timesteps on the device, where they are there already.

        Returns:
            Nats, `(B,)`, on the device; NaN where the network's output is not finite.
        """
        if self.device.type == "cuda" and noise.device.type == "cpu":
            noise = noise.pin_memory().to(self.device, non_blocking=True)
        noisy_samples = self.reverse.forward.q_sample(samples, noise.to(self.device, non_blocking=True), timesteps)
        model_output = self.network(noisy_samples, timesteps if on_device is None else on_device, class_labels)
        # The levels were checked once, on the CPU.
        nats = vlb_terms(
            self.reverse, model_output, samples, noisy_samples, timesteps, self.num_pixel_levels, validate_args=False
        )
        # Clipping would make a number of an overflow.
        finite = torch.isfinite(model_output).flatten(1).all(dim=1)
        return torch.where(finite, nats, torch.nan)
