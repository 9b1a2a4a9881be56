r"""A network of another noise process, asked about a DDPM's latents: see `noise_processes.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checks import working_dtype
from ..noise_processes import NoiseProcess, Preconditioning, process_named
from .network import Network


class PreconditionedNetwork(Network):
    r"""What a network of another process amounts to: a network that predicts the image, from a DDPM's latents and timesteps.

    Args:
        network: as it was trained.
        process: for which.
        config: of the scheduler that it was trained with.
        log_sigmas: :math:`\ln\sigma` of the DDPM's T timesteps, float64 `(T,)`. Between them it is a straight line.
    """

    def __init__(self, network: Network, process: NoiseProcess, config: Mapping[str, Any], log_sigmas: torch.Tensor):
        super().__init__(network.module, network._device)
        self._network, self._process, self._config, self._log_sigmas = network, process, config, log_sigmas
        self.channels, self.size, self.out_channels = network.channels, network.size, network.out_channels
        self.num_classes, self.conditions = network.num_classes, network.conditions
        self.takes_fractions, self.why_no_fractions = network.takes_fractions, network.why_no_fractions

    def with_module(self, module: torch.nn.Module) -> Network:
        r"""As `Network.with_module`."""
        network = type(self)(self._network.with_module(module), self._process, self._config, self._log_sigmas)
        network.halves, network.most = self.halves, self.most
        return network

    def preconditioning(self, timesteps: torch.Tensor) -> Preconditioning:
        r"""How the network is asked at timesteps of any shape, fractions too."""
        table = self._log_sigmas.to(timesteps.device, working_dtype(timesteps.device))
        lower = timesteps.floor().long().clamp(0, max(len(table) - 2, 0))
        upper = (lower + 1).clamp(max=len(table) - 1)
        log_sigma = torch.lerp(table[lower], table[upper], timesteps.to(table.dtype) - lower)
        return self._process.precondition(log_sigma.exp(), self._config)

    def answer(self, noisy_samples: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        r"""The predicted image in the dtype of `noisy_samples`; arguments as `Network.answer`."""
        how = self.preconditioning(timesteps)
        shape = (-1, 1, 1, 1) if timesteps.ndim else ()
        scale, skip, out = (number.reshape(shape) for number in (how.scale, how.skip, how.out))
        asked = (scale * noisy_samples + how.shift).to(self.dtype)
        # Times between integers are no longer right in half precision.
        times = how.noise.to(torch.promote_types(self.dtype, torch.float32))
        with self.mixed_precision():
            output = self.checked(self._network.output(asked, times, class_labels))
        image = skip * noisy_samples + out * output.to(noisy_samples.dtype)
        return image.to(noisy_samples.dtype)

    def check(self, timesteps: Sequence[float], size: Sequence[int] | None) -> None:
        r"""As `Network.check`."""
        if not self._network.takes_fractions:
            raise ValueError(
                f"`unet` must take fractions of a timestep for {self._process.name} networks, got"
                f" {self._network.why_no_fractions}."
            )
        asked = self.preconditioning(torch.tensor([float(step) for step in timesteps])).noise.tolist()
        self._network.check(asked, size)


def preconditioned(network: Network, scheduler: Any) -> Network:
    r"""The network as scoring with this scheduler sees it: itself for a DDPM's."""
    config = getattr(scheduler, "config", {}).get("noise_process")
    if config is None or isinstance(network, PreconditionedNetwork):
        return network
    process = process_named(config.get("_class_name"))
    if process is None:
        raise ValueError(f"`noise_process` must be of a known scheduler, got {config.get('_class_name')!r}.")
    forward = scheduler.forward_process()
    log_sigmas = 0.5 * (forward.log_one_minus_alphas_cumprod - forward.log_alphas_cumprod)
    return PreconditionedNetwork(network, process, config, log_sigmas)
