r"""A network in float64, in every part.

`module.double()` leaves one part behind: diffusers makes the embedding of timesteps in float32, whose sines and exponentials
differ by 1e-7 from one library to another. Here it is float64, too.
"""

import math

import torch
from diffusers.models.embeddings import GaussianFourierProjection, Timesteps

from ..model.network import Network


class Float64Timesteps(torch.nn.Module):
    r"""diffusers' `Timesteps`, the sinusoidal embedding of Ho et al., computed in float64.

    Args:
        like: the one that it stands for.
    """

    def __init__(self, like: Timesteps):
        super().__init__()
        self.like = like

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        r"""Embedding of timesteps `(B,)`, `(B, num_channels)`."""
        like, half = self.like, self.like.num_channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - like.downscale_freq_shift)
        frequencies = torch.exp(-math.log(10_000) * exponents).to(timesteps.device)
        angles = like.scale * timesteps.double()[:, None] * frequencies
        parts = (angles.cos(), angles.sin()) if like.flip_sin_to_cos else (angles.sin(), angles.cos())
        return torch.nn.functional.pad(torch.cat(parts, dim=1), (0, like.num_channels % 2))


def in_float64(network: Network) -> Network:
    r"""A copy of a network that computes in float64.

    Raises:
        ValueError: a device without float64; an embedding of timesteps that diffusers makes in float32 alone.
    """
    if network.device.type == "mps":
        raise ValueError(f"`pipe` must be on a device that has float64, got {network.device.type}.")
    module = network.in_float32().double().eval()
    for name, part in list(module.named_modules()):
        if isinstance(part, GaussianFourierProjection):
            raise ValueError("`unet` must have time_embedding_type='positional' or 'learned' to be coded with, got 'fourier'.")
        if isinstance(part, Timesteps):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, Float64Timesteps(part))
    return network.with_module(module)
