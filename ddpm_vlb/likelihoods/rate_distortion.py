r"""Rate and distortion, and progressive decoding (Section 4.3, Ho et al. 2020).

Read from above, the terms of the bound are messages. The first, of :math:`L_T`, gives the receiver :math:`x_T`; that of
:math:`L_t` takes it from :math:`x_t` to the latent below; the decoder's, :math:`L_0`, leaves the image itself. Whoever holds
:math:`x_t` has received

.. math:: \mathrm{rate}(t) = L_T + \sum_{i > t} L_i

and can already show :math:`\hat x(x_t)`, which is off by

.. math:: \mathrm{distortion}(t) = \sqrt{E \|x - \hat x(x_t)\|^2 / D},

here on the scale of 8-bit pixels, 0 to 255, as in the paper. At the end the rate is the whole bound and the distortion 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..bound import vlb_terms
from ..checks import NonFiniteOutput
from ..gaussians import nats_to_bits_per_dim
from ..model.memory import check_batch_size
from ..model.scorer import Scorer
from ..noise import keyed_noise, mix
from ..outputs import Shown

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

BITS_8 = 127.5  # grey levels of 8 bits to a unit of [-1, 1]


@dataclass(frozen=True, repr=False)
class RateDistortion(Shown):
    r"""The curve, from the noisiest latent to the image itself: K + 1 points, float64 on the CPU.

    Args:
        timesteps: of the latent that the receiver holds, strictly descending, `(K,)`; the last point is the image itself.
        rate, rate_standard_error: bits per dimension received so far, the mean over images, `(K + 1,)`.
        distortion, distortion_standard_error: root mean squared error on the scale 0 to 255, `(K + 1,)`.
        num_network_evaluations: made.
    """

    timesteps: torch.Tensor
    rate: torch.Tensor
    rate_standard_error: torch.Tensor
    distortion: torch.Tensor
    distortion_standard_error: torch.Tensor
    num_network_evaluations: int

    def _head(self) -> dict[str, Any]:
        return {
            "bits/dim": self.rate[-1].item(),
            "standard error": self.rate_standard_error[-1].item(),
            "points": len(self.rate),
            "network evaluations": self.num_network_evaluations,
        }

    def _columns(self) -> dict[str, Any]:
        names = ("rate", "rate_standard_error", "distortion", "distortion_standard_error")
        # The last point is the image itself: what lies below every timestep.
        return {"timestep": [*self.timesteps.tolist(), -1]} | {name: getattr(self, name) for name in names}


@torch.no_grad()
def rate_distortion(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    batch_size: int = 64,
    seed: int = 0,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
) -> RateDistortion:
    r"""The rate-distortion curve of images under a pipeline's model.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images, num_inference_steps, inference_timesteps, class_labels: as `evaluate_nll`; at least two images.
        batch_size: images per network call.
        seed: of the noise.

    Raises:
        ValueError: as `evaluate_nll`; a single image, which has no standard error.
    """
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    batch_size = check_batch_size(batch_size, scorer.network)
    levels, labels = scorer.read(images, class_labels)
    if len(levels) < 2:
        raise ValueError(f"`images` must be at least two, got {len(levels)}.")
    seeds = [mix(seed, number) for number in range(len(levels))]
    parts = []
    with scorer.network.evaluating():
        for rows in torch.arange(len(levels)).split(batch_size):
            batch_labels = None if labels is None else labels[rows]
            parts.append(_terms_and_errors(scorer, levels[rows], [seeds[row] for row in rows.tolist()], batch_labels))
    pipe.maybe_free_model_hooks()
    prior, terms, errors = (torch.cat(part) for part in zip(*parts))
    if not bool(torch.isfinite(terms).all()):
        image, row = (~torch.isfinite(terms)).nonzero()[0].tolist()
        raise NonFiniteOutput("others", image=image, timestep=scorer.timesteps[row], dtype=scorer.dtype)
    num_dimensions, count = levels[0].numel(), len(levels)
    # From above: the prior, then term after term down to the decoder's.
    rates = nats_to_bits_per_dim(torch.cat([prior[:, None], terms.flip(1)], dim=1).cumsum(dim=1), num_dimensions)
    squares = torch.cat([errors.flip(1), torch.zeros(count, 1, dtype=torch.float64)], dim=1) * BITS_8**2
    distortion = squares.mean(dim=0).sqrt()
    # Of a root, to first order.
    spread = squares.std(dim=0) / count**0.5 / (2 * distortion)
    return RateDistortion(
        timesteps=scorer.reverse.forward.timesteps.flip(0),
        rate=rates.mean(dim=0),
        rate_standard_error=rates.std(dim=0) / count**0.5,
        distortion=distortion,
        distortion_standard_error=torch.where(distortion > 0, spread, 0.0),
        num_network_evaluations=terms.numel(),
    )


def _terms_and_errors(scorer: Scorer, levels, seeds, labels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""The prior `(B,)` and the terms `(B, K)` of a batch in nats, and the predictions' squared errors `(B, K)`; ascending."""
    samples, reverse = scorer.samples(levels), scorer.reverse
    terms, errors = [], []
    timesteps = reverse.forward.timesteps.tolist()
    for timestep, noise in zip(timesteps, keyed_noise(seeds, timesteps, samples.shape[1:], samples.device)):
        noisy = reverse.forward.q_sample(samples, noise.to(samples), timestep)
        output = scorer.network(noisy, timestep, labels)
        terms.append(vlb_terms(reverse, output, samples, noisy, timestep, scorer.num_pixel_levels, validate_args=False))
        errors.append((samples - reverse.predict(output, noisy, timestep)[0]).square().flatten(1).mean(dim=1))
    return scorer.prior(samples).cpu(), torch.stack(terms, dim=1).cpu(), torch.stack(errors, dim=1).cpu()


@torch.no_grad()
def progressive_decoding(
    pipe: "VLBDDPMPipeline",
    images: Any,
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
) -> torch.Tensor:
    r"""What the receiver can show when it holds :math:`x_t`, for some t along one trajectory of each image.

    The latents are those of one walk of the forward process, each made from the one below, so that what is seen at a lower
    timestep is the same message read on.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images, class_labels: as `evaluate_nll`.
        timesteps: strictly descending.
        seed: of the walk.

    Returns:
        Predicted images as pixel levels, `(len(timesteps), N, C, H, W)`, uint8 up to 256 levels and int32 above.

    Raises:
        ValueError: as `evaluate_nll`.
    """
    # The network's own prediction at t does not depend on the grid; this one has the walk's latents.
    scorer = pipe.scorer(inference_timesteps=timesteps)
    levels, labels = scorer.read(images, class_labels)
    forward, steps = scorer.reverse.forward, scorer.num_pixel_levels - 1
    latents = scorer.samples(levels)
    seeds = [mix(seed, number) for number in range(len(levels))]
    noises = keyed_noise(seeds, forward.timesteps.tolist(), latents.shape[1:], latents.device)
    shown = []
    with scorer.network.evaluating():
        for timestep, noise in zip(forward.timesteps.tolist(), noises):
            q = forward.q_step_mean_variance(latents, timestep)
            latents = q.mean + q.variance.sqrt() * noise.to(latents)
            prediction, _ = scorer.reverse.predict(scorer.network(latents, timestep, labels), latents, timestep)
            finite = torch.isfinite(prediction).flatten(1).all(dim=1)
            if not bool(finite.all()):
                image = int((~finite).nonzero()[0])
                raise NonFiniteOutput("others", image=image, timestep=timestep, dtype=scorer.dtype)
            shown.append(((prediction + 1) / 2 * steps).round().clamp(0, steps).to(levels.dtype).cpu())
    pipe.maybe_free_model_hooks()
    return torch.stack(shown[::-1])
