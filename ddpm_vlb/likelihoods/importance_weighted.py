r"""The importance-weighted bound: k trajectories for one image (Burda et al. 2016).

A trajectory :math:`x_{1:T} \sim q(\cdot | x)` has the weight :math:`w = p(x, x_{1:T}) / q(x_{1:T} | x)`, whose mean is p(x).
The logarithm of one weight is the first form of the bound (eq. 3, Ho et al. 2020; `bound.trajectory_bound`), and the logarithm
of a mean of k is closer:

.. math:: L_k = E\left[ -\log \frac1k \sum_{j=1}^k w_j \right], \qquad
    L_1 = L \ge L_2 \ge \dots \to -\log p(x).

Every :math:`L_k` is a bound on the negative log-likelihood of the very model that is sampled; one draw of the trajectories
gives a number above or below, on average above. What is left between :math:`L_k` and :math:`-\log p(x)` falls like 1 / k only
where the weights are of one size. Where they differ by many nats, one of them is all of the sum: `effective_sample_size` says
how many there were in truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..bound import trajectory_bound
from ..checks import NonFiniteOutput, check_count
from ..gaussians import nats_to_bits_per_dim
from ..model.memory import check_batch_size
from ..model.scorer import Scorer
from ..noise import keyed_noise, mix
from ..outputs import Shown, mean_of_images
from .method import Columns

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline


@dataclass(frozen=True, repr=False)
class ImportanceWeightedNLL(Shown):
    r"""The importance-weighted bound of N images, float64 on the CPU.

    Args:
        bits_per_dim: :math:`L_k` of each image, `(N,)`, bits/dim.
        vlb: the mean over its trajectories of :math:`-\log w`, `(N,)`, bits/dim: the bound in its first form.
        effective_sample_size: :math:`(\sum w)^2 / \sum w^2`, from 1 to k, `(N,)`.
        num_network_evaluations: k for each image and step.
    """

    bits_per_dim: torch.Tensor
    vlb: torch.Tensor
    effective_sample_size: torch.Tensor
    num_network_evaluations: int

    def _head(self) -> dict[str, Any]:
        return mean_of_images(self.bits_per_dim, self.num_network_evaluations)

    def _details(self) -> dict[str, Any]:
        return {
            "bound of the same trajectories": self.vlb.mean().item(),
            "effective sample size": self.effective_sample_size.mean().item(),
        }

    def _columns(self) -> dict[str, Any]:
        names = ("bits_per_dim", "vlb", "effective_sample_size")
        return {"image": range(len(self.vlb))} | {name: getattr(self, name) for name in names}


def importance_weighted_nll(
    pipe: "VLBDDPMPipeline",
    images: Any,
    k: int = 16,
    *,
    batch_size: int = 64,
    seed: int = 0,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
) -> ImportanceWeightedNLL:
    r"""The importance-weighted bound of images under a pipeline's model.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images, num_inference_steps, inference_timesteps, class_labels: as `evaluate_nll`.
        k: trajectories of each image.
        batch_size: pairs of image and trajectory per network call.
        seed: of the trajectories; those of an image depend on it and on the image's position alone.

    Raises:
        ValueError: as `evaluate_nll`; a k that is no positive integer.
    """
    k, scorer = check_count("k", k), pipe.scorer(num_inference_steps, inference_timesteps)
    batch_size = check_batch_size(batch_size, scorer.network)
    levels, labels = scorer.read(images, class_labels)
    with scorer.network.evaluating():
        weights = log_weights(scorer, levels, [mix(seed, number) for number in range(len(levels))], k, labels, batch_size)
    pipe.maybe_free_model_hooks()
    return summarize_weights(weights, levels[0].numel(), k * len(levels) * len(scorer.reverse.forward))


@torch.no_grad()
def log_weights(
    scorer: Scorer,
    levels: torch.Tensor,
    seeds: Sequence[int],
    k: int,
    class_labels: torch.Tensor | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    r""":math:`\log w` of k trajectories for each image.

    Args:
        scorer: with the model.
        levels: images, `(B, C, H, W)`.
        seeds: of their trajectories, B integers.
        k: trajectories of each image.
        class_labels: of a class-conditional network, `(B,)`.
        batch_size: pairs of image and trajectory per network call.

    Returns:
        Nats, float64, `(B, k)`.

    Raises:
        ValueError: a network whose output is not finite.
    """
    pairs = [(image, mix(seeds[image], place)) for image in range(len(levels)) for place in range(k)]
    timesteps = scorer.reverse.forward.timesteps.tolist()
    parts = []
    for start in range(0, len(pairs), batch_size):
        rows = torch.tensor([image for image, _ in pairs[start : start + batch_size]])
        samples = scorer.samples(levels[rows])
        predict = partial(scorer.network, class_labels=None if class_labels is None else class_labels[rows])
        keys = [key for _, key in pairs[start : start + batch_size]]
        noises = keyed_noise(keys, timesteps, samples.shape[1:], samples.device)
        parts.append(-trajectory_bound(scorer.reverse, predict, samples, scorer.num_pixel_levels, noises=noises).cpu().double())
    weights = torch.cat(parts).reshape(len(levels), k)
    bad = (~torch.isfinite(weights)).nonzero()
    if len(bad):
        raise NonFiniteOutput("a weight that is not", image=int(bad[0, 0]), dtype=scorer.dtype)
    return weights


def summarize_weights(weights: torch.Tensor, num_dimensions: int, num_network_evaluations: int) -> ImportanceWeightedNLL:
    r"""What the logarithms of weights, `(N, k)`, say of the images."""
    total = torch.logsumexp(weights, dim=1)
    return ImportanceWeightedNLL(
        bits_per_dim=nats_to_bits_per_dim(math.log(weights.shape[1]) - total, num_dimensions),
        vlb=nats_to_bits_per_dim(-weights.mean(dim=1), num_dimensions),
        effective_sample_size=torch.exp(2 * total - torch.logsumexp(2 * weights, dim=1)),
        num_network_evaluations=num_network_evaluations,
    )


def importance_weighted(scorer: Scorer, trained, num_dimensions: int, batch_size: int, options: dict[str, Any]) -> Columns:
    r"""The row `iw` of `methods.METHODS`."""
    k = check_count("k", options["k"])
    steps = len(scorer.reverse.forward)

    def score(levels: torch.Tensor, seeds: Sequence[int], labels: torch.Tensor | None) -> dict[str, Any]:
        weights = log_weights(scorer, levels, seeds, k, labels, batch_size)
        result = summarize_weights(weights, levels[0].numel(), weights.numel() * steps)
        columns = ("bits_per_dim", "vlb", "effective_sample_size")
        return {name: getattr(result, name).tolist() for name in columns} | {
            "num_network_evaluations": result.num_network_evaluations
        }

    return Columns(f"iw, k = {k}", max(1, batch_size // k), k * steps, score)
