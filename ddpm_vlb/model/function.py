r"""Networks that are nobody's class: any module or function of latents and timesteps, to be scored.

::

    unet = FunctionModel(lambda x, t: network(x, t / 1000), shape=(1, 28, 28))
    scheduler = VLBDDPMScheduler(1000, trained_betas=betas, prediction_type="epsilon", num_pixel_levels=256)
    pipe = VLBDDPMPipeline(unet, scheduler)

Everything but saving works: what a function does cannot be written down.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput

from ..checks import check_count, is_number, shown
from .kinds import add_network
from .network import Network


class FunctionModel(torch.nn.Module):
    r"""A function as a network.

    Args:
        function: called as `function(x_t, t)`, with latents `(B, C, H, W)` and timesteps `(B,)`, integers for a DDPM; and with
            `class_labels` `(B,)` as the third where there are classes. It returns its prediction, a tensor `(B, C, H, W)`, or
            `(B, 2C, H, W)` where variances are learned. A module is moved, hashed and put into evaluation mode with the
            pipeline.
        shape: (C, H, W) of its images.
        num_classes: of a class-conditional one.
        learns_variance: whether it returns variances, too.
        takes_fractions: whether it can be asked between timesteps, as the probability-flow ODE does.

    Raises:
        ValueError: what cannot be called, or is no shape.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        shape: Sequence[int],
        *,
        num_classes: int | None = None,
        learns_variance: bool = False,
        takes_fractions: bool = False,
    ):
        super().__init__()
        if not callable(function):
            raise ValueError(f"`function` must be callable as function(x_t, t), got {shown(function)}.")
        if not isinstance(shape, (list, tuple)) or len(shape) != 3 or not all(is_number(n) and n == int(n) > 0 for n in shape):
            raise ValueError(f"`shape` must be (C, H, W), got {shown(shape)}.")
        channels, height, width = map(int, shape)
        self.function = function
        self.takes_fractions = takes_fractions
        self.config = FrozenDict(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=2 * channels if learns_variance else channels,
            num_class_embeds=None if num_classes is None else check_count("num_classes", num_classes),
            function=f"{type(function).__module__}.{type(function).__qualname__}",
        )

    @property
    def device(self) -> torch.device:
        r"""Of its weights; the CPU where the function has none."""
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None) -> UNet2DOutput:
        r"""As `UNet2DModel`."""
        arguments = () if class_labels is None else (class_labels,)
        # A copy: a function that works in place would change the latents that its prediction is compared with.
        output = self.function(sample.clone(), timestep.expand(len(sample)).clone(), *arguments)
        expected = (len(sample), self.config["out_channels"], *sample.shape[2:])
        if not isinstance(output, torch.Tensor) or output.shape != expected:
            got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"`function` must return a tensor of shape {expected}, got {got}.")
        return UNet2DOutput(sample=output)


class FunctionNetwork(Network):
    r"""A `FunctionModel`."""

    takes = ()
    why_no_fractions = "a function of which `takes_fractions=True` does not say so"

    def __init__(self, module: Any, device: torch.device | None = None):
        super().__init__(module, device)
        config, self.takes_fractions = module.config, module.takes_fractions
        self.channels, self.size, self.out_channels = config["in_channels"], config["sample_size"], config["out_channels"]
        self.num_classes = config["num_class_embeds"]

    def output(self, samples, timesteps, class_labels):
        r"""`(B, C, H, W)`, or `(B, 2C, H, W)` where variances are learned."""
        return self.module(samples, timesteps, class_labels).sample

    def sha256(self, dtype: torch.dtype | None = None) -> str | None:
        r"""As `Network.sha256`; `None` where the function is no module, whose weights are not at hand."""
        return super().sha256(dtype) if next(self.module.parameters(), None) is not None else None


add_network(FunctionModel, FunctionNetwork)
