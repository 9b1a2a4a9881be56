r"""The bound of images from a few evaluations each, one in each stratum of timesteps."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..checks import NonFiniteOutput
from ..gaussians import nats_to_bits_per_dim
from ..noise import keyed_normal, keyed_uniform, mix

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline


class NLLEstimate(NamedTuple):
    r"""An unbiased estimate of the bound of N images, in bits/dim, float64 of shape `(N,)` each."""

    bits_per_dim: torch.Tensor
    prior: torch.Tensor
    transitions: torch.Tensor
    decoder: torch.Tensor
    num_network_evaluations: int


@torch.no_grad()
def estimate_nll(
    pipe: "VLBDDPMPipeline",
    images: Any,
    seeds: Sequence[int],
    evaluations_per_image: int = 32,
    batch_size: int = 256,
    progress: Callable[[int], Any] | None = None,
    class_labels: Any = None,
) -> NLLEstimate:
    r"""The bound of images from a few network evaluations each: a look while training, where a full sweep would take hours.

    :math:`L_T` is in closed form, :math:`L_0` is evaluated once, and :math:`\sum_t L_t` is :math:`(T - 1) / n` times the sum of
    n terms, one timestep drawn from each of n equal strata of [1, T). Timesteps and noise are keyed by the image's seed: two
    networks scored with the same seeds meet the same noise, and their difference has far less error than either number.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images: N images of any kind that `evaluate_nll` takes.
        seeds: one per image.
        evaluations_per_image: network evaluations of each image, at least 2; all T make a full sweep.
        batch_size: pairs of image and timestep per network call.
        progress: told of each call of the network, with how many pairs it had.
        class_labels: `(N,)`, for a class-conditional network.

    Raises:
        ValueError: fewer than 2 evaluations (1 where T is 1), images or seeds that do not fit, a network whose output is not
            finite.
    """
    scorer = pipe.scorer()
    num_steps = len(scorer.reverse.forward)
    levels, labels = scorer.read(images, class_labels)
    if len(seeds) != len(levels):
        raise ValueError(f"`seeds` must be one per image ({len(levels)}), got {len(seeds)}.")
    if evaluations_per_image < min(2, num_steps):
        raise ValueError(f"`evaluations_per_image` must be at least {min(2, num_steps)}, got {evaluations_per_image}.")
    drawn = min(evaluations_per_image, num_steps) - 1
    jitter = torch.tensor([[keyed_uniform(mix(seed, place)) for place in range(drawn)] for seed in seeds], dtype=torch.float64)
    places = (torch.arange(drawn) + jitter.reshape(len(seeds), drawn)) / max(drawn, 1)
    transitions = 1 + (places * (num_steps - 1)).long().clamp(max=max(num_steps - 2, 0))
    timesteps = torch.cat([torch.zeros(len(seeds), 1, dtype=torch.int64), transitions], dim=1)

    image_of, flat = torch.arange(len(seeds)).repeat_interleave(drawn + 1), timesteps.flatten()
    nats = []
    with scorer.network.evaluating():
        for chunk in torch.arange(len(flat)).split(batch_size):
            pairs = zip(image_of[chunk].tolist(), flat[chunk].tolist())
            keys = [mix(mix(seeds[image], 2**32), step) for image, step in pairs]
            noise = keyed_normal(keys, levels.shape[1:], scorer.device)
            own = None if labels is None else labels[image_of[chunk]]
            nats.append(scorer.terms(scorer.samples(levels[image_of[chunk]]), noise, flat[chunk], own).cpu().double())
            if progress is not None:
                progress(len(chunk))

    num_dimensions = levels[0].numel()
    terms = nats_to_bits_per_dim(torch.cat(nats).reshape(timesteps.shape), num_dimensions)
    if not bool(torch.isfinite(terms).all()):
        image, column = (~torch.isfinite(terms)).nonzero()[0].tolist()
        term, timestep = terms[image, column].item(), int(timesteps[image, column])
        raise NonFiniteOutput(f"a term of {term} bits/dim", image=image, timestep=timestep, dtype=scorer.dtype)
    prior = nats_to_bits_per_dim(scorer.prior(scorer.samples(levels)).cpu().double(), num_dimensions)
    total = (num_steps - 1) / max(drawn, 1) * terms[:, 1:].sum(dim=1)
    return NLLEstimate(prior + total + terms[:, 0], prior, total, terms[:, 0], terms.numel())
