r"""A network and the process that is scored: terms of the bound for any images at any timesteps.

Both ways to score images are made of it: the full sweep, every image at every step, and the sampled evaluation
(`sampled_bound.py`). A batch mixes images and timesteps freely.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .bound import prior_kl, vlb_terms
from .control_variates import ControlVariates, image_features
from .gaussians import levels_to_samples, nats_to_bits_per_dim, working_dtype
from .noise import keyed_normal, mix
from .reverse_process import ReverseProcess
from .sampled_bound import Draws, order_of

SPECTRUM_IMAGES = 1024


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
        return levels_to_samples(levels.to(self.device), self.num_pixel_levels, working_dtype(self.device))

    def prior(self, samples: torch.Tensor) -> torch.Tensor:
        r""":math:`L_T` in nats, `(B,)`, on the device."""
        return prior_kl(self.reverse.forward, samples)

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
        if on_device is None:
            on_device = torch.as_tensor(timesteps).to(self.device, non_blocking=True)
        arguments = {} if class_labels is None else {"class_labels": class_labels.to(self.device, non_blocking=True)}
        # Formed in the working dtype, and only then brought to the network's.
        noisy_samples = self.reverse.forward.q_sample(samples, noise.to(self.device), timesteps)
        model_output = self.unet(noisy_samples.to(self.dtype), on_device, **arguments).sample
        # The levels were checked once, on the CPU.
        nats = vlb_terms(
            self.reverse, model_output, samples, noisy_samples, timesteps, self.num_pixel_levels, validate_args=False
        )
        # Clipping would make a number of an overflow.
        finite = torch.isfinite(model_output).flatten(1).all(dim=1)
        return torch.where(finite, nats, torch.nan)


class DrawScorer:
    r"""Evaluates the draws of `sampled_bound.estimate_bound` for images that lie in memory.

    Args:
        scorers: one; or two whose difference, first minus second, is wanted. Of two processes with as many steps the terms at
            one row are subtracted, under the same noise; otherwise the rows of the second follow those of the first, with a
            minus sign.
        levels: the images, `(M, C, H, W)`.
        positions: where they lie in the data set, ascending, `(M,)`.
        class_labels: for each scorer, `(M,)` or `None`.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        levels: torch.Tensor,
        positions: np.ndarray,
        ids: np.ndarray,
        seed: int,
        class_labels: Sequence[torch.Tensor | None] = (None, None),
    ):
        self.scorers, self.levels, self.positions, self.class_labels = tuple(scorers), levels, positions, tuple(class_labels)
        steps = [len(scorer.reverse.forward) for scorer in scorers]
        self.paired = len(steps) == 2 and steps[0] == steps[1]
        self.num_steps = steps[0] if self.paired else sum(steps)
        chosen = order_of(ids, np.arange(len(ids)), mix(seed, 0))[:SPECTRUM_IMAGES]
        self._samples_of = lambda rows: levels_to_samples(levels[rows], scorers[0].num_pixel_levels)
        spectrum = self._samples_of(torch.as_tensor(chosen))
        self._controls = [ControlVariates(scorer.reverse.forward, spectrum) for scorer in scorers]

    @property
    def evaluations_per_draw(self) -> int:
        r"""Network evaluations that a draw costs."""
        return 2 if self.paired else 1

    def batches(self, draws: Draws, batch_size: int) -> Iterator[Draws]:
        r"""The draws in batches."""
        for start in range(0, len(draws.rows), batch_size):
            yield Draws(*(array[start : start + batch_size] for array in draws))

    def check_finite(self, draws: Draws, values: torch.Tensor) -> None:
        r"""Raise `ValueError` for values that are not finite, naming the image and the timestep."""
        bad = (~torch.isfinite(values)).nonzero().flatten()
        if len(bad):
            row, first = int(draws.rows[bad[0]]), self.scorers[0].reverse.forward
            timesteps = first.timesteps if row < len(first) else self.scorers[1].reverse.forward.timesteps
            raise ValueError(
                f"`unet` must give finite outputs, got a term of {values[bad[0]].item()} bits/dim for image"
                f" {int(draws.images[bad[0]])} at timestep {int(timesteps[row % len(first)])} ({len(bad)} of"
                f" {len(values)} terms are not finite). A float16 network may have overflowed: try bfloat16 or float32."
            )

    @torch.inference_mode()
    def __call__(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Values of a batch in bits/dim, `(B,)`, still on the device, and the features of its noise, `(B, Q)`."""
        places = torch.as_tensor(np.searchsorted(self.positions, draws.images))
        levels, rows = self.levels[places], torch.as_tensor(draws.rows)
        noise = keyed_normal(draws.keys.tolist(), levels.shape[1:])
        samples = self._samples_of(places)
        if len(self.scorers) == 1 or self.paired:
            values = self._terms(0, places, levels, noise, rows)
            if self.paired:
                values = values - self._terms(1, places, levels, noise, rows).to(values.device)
            return values, self._controls[0].noise_features(samples, noise, rows)
        first = len(self.scorers[0].reverse.forward)
        values = torch.empty(len(rows), dtype=torch.float64, device=self.scorers[0].device)
        features = None
        for index, chosen in enumerate((rows < first, rows >= first)):
            if not chosen.any():
                continue
            own = rows[chosen] - first * index
            terms = self._terms(index, places[chosen], levels[chosen], noise[chosen], own)
            part = self._controls[index].noise_features(samples[chosen], noise[chosen], own)
            features = torch.zeros(len(rows), part.shape[1], dtype=part.dtype) if features is None else features
            features[chosen] = part
            values[chosen.to(values.device)] = ((1, -1)[index] * terms).to(values)
        return values, features

    def _terms(self, index: int, places, levels, noise, rows) -> torch.Tensor:
        scorer, labels = self.scorers[index], self.class_labels[index]
        timesteps = scorer.reverse.forward.timesteps[rows]
        nats = scorer.terms(scorer.samples(levels), noise, timesteps, None if labels is None else labels[places])
        return nats_to_bits_per_dim(nats.double() if nats.device.type != "mps" else nats, levels[0].numel())


def known_parts(scorer: Scorer, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""What is known of images without the network, on the CPU: :math:`L_T` in bits/dim, `(B,)`, and features `(B, P)`."""
    samples = scorer.samples(levels)
    prior = nats_to_bits_per_dim(scorer.prior(samples).cpu().double(), levels[0].numel())
    return prior, image_features(levels_to_samples(levels, scorer.num_pixel_levels))
