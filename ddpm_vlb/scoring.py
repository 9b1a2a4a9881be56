r"""A network and the process that is scored: terms of the bound for any images at any timesteps.

Both ways to score images are made of it: the full sweep, every image at every step, and the sampled evaluation
(`sampled_bound.py`). A batch mixes images and timesteps freely.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from .bound import prior_kl, vlb_terms
from .control_variates import ControlVariates, image_features
from .forward_process import ForwardProcess
from .gaussians import levels_to_samples, nats_to_bits_per_dim, working_dtype
from .noise import keyed_normal, mix
from .reverse_process import ReverseProcess
from .sampled_bound import Draws, order_of

SPECTRUM_IMAGES = 1024
ROUNDING = 1e-12  # relative


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


class Cells(NamedTuple):
    r"""What a draw's row stands for: for each scorer a row of its grid, -1 for none, and a factor, `(K,)` each."""

    rows: torch.Tensor  # (scorers, K)
    factors: torch.Tensor  # (scorers, K)


def match_rows(first: ForwardProcess, second: ForwardProcess) -> Cells:
    r"""Two grids cut at each other's noise levels: sums over cells of (factor times term) are the sums over their rows.

    A transition takes the noise from one level to the next. Where the levels are the same, so are cells and rows; elsewhere a
    transition is cut where the other grid has a level, and its term goes to the pieces by their lengths, as angles
    :math:`\arctan(\sigma_t / \sqrt{\bar\alpha_t})`. Each piece has the steps of both grids that it lies in, whose terms are
    alike under the same noise. The decoders are one cell.
    """
    levels = [
        torch.atan2((1 - f.alphas_cumprod).clamp(min=0).sqrt(), f.alphas_cumprod.sqrt()).double() for f in (first, second)
    ]
    edges = torch.cat(levels).unique()
    # Levels that differ by rounding alone are one. What could be lost between them is nothing: a denoiser's error is at most
    # its input's, D / SNR, and a transition's KL at most D / 2 times the relative change of the SNR.
    edges = edges[torch.cat([torch.ones(1, dtype=torch.bool), edges.diff() > ROUNDING * edges[:-1]])]
    rows, factors = [], []
    for level in levels:
        ends = torch.bucketize(level * (1 + ROUNDING), edges, right=True) - 1  # the edge that each level is
        pieces = torch.arange(len(edges) - 1)
        row = torch.bucketize(pieces, ends, right=True)  # the transition from level row - 1 to level row
        inside = (row > 0) & (row < len(level))
        row = torch.where(inside, row, -1)
        upper = row.clamp(min=1, max=len(level) - 1)  # a grid of one step has no transition, and no row inside
        lengths = edges.diff() / (edges[ends[upper]] - edges[ends[(upper - 1).clamp(min=0)]]).clamp(min=1e-300)
        rows.append(torch.cat([torch.zeros(1, dtype=torch.int64), row]))
        factors.append(torch.cat([torch.ones(1, dtype=torch.float64), torch.where(inside, lengths, 0.0)]))
    rows, factors = torch.stack(rows), torch.stack(factors)
    used = (rows >= 0).any(dim=0)
    return Cells(rows[:, used], factors[:, used])


class DrawScorer:
    r"""Evaluates the draws of `sampled_bound.estimate_bound` for images that lie in memory.

    Args:
        scorers: one; or two whose difference, first minus second, is wanted. Both then meet an image with the same noise, at
            the same noise level or close by (`match_rows`).
        levels: the images, `(M, C, H, W)`.
        positions: where they lie in the data set, ascending, `(M,)`.
        ids: what their draws are keyed by, `(M,)`.
        seed: of the evaluation.
        class_labels: for each scorer, `(M,)` or `None`.

    `num_steps` is the number of rows that may be drawn, `num_evaluations` that of network evaluations so far.
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
        forwards = [scorer.reverse.forward for scorer in scorers]
        if len(forwards) == 1:
            rows = torch.arange(len(forwards[0]))[None]
            self._cells = Cells(rows, torch.ones(rows.shape, dtype=torch.float64))
        else:
            self._cells = match_rows(*forwards)
        self.num_steps = self._cells.rows.shape[1]
        chosen = order_of(ids, np.arange(len(ids)), mix(seed, 0))[:SPECTRUM_IMAGES]
        # Of two grids the mean of both levels, so that it does not matter which is the first.
        there = self._cells.rows >= 0
        signal = torch.stack([f.alphas_cumprod[row.clamp(min=0)].double() for f, row in zip(forwards, self._cells.rows)])
        self._controls = ControlVariates((signal * there).sum(dim=0) / there.sum(dim=0), self._samples(torch.as_tensor(chosen)))

    def cost(self, draws: Draws) -> int:
        r"""Network evaluations that draws take."""
        return int((self._cells.rows[:, torch.as_tensor(draws.rows)] >= 0).sum())

    def batches(self, draws: Draws, batch_size: int) -> Iterator[Draws]:
        r"""The draws in batches."""
        for start in range(0, len(draws.rows), batch_size):
            yield Draws(*(array[start : start + batch_size] for array in draws))

    def check_finite(self, draws: Draws, values: torch.Tensor) -> None:
        r"""Raise `ValueError` for values that are not finite, naming the image and the timestep."""
        bad = (~torch.isfinite(values)).nonzero().flatten()
        if len(bad):
            index = next(index for index, row in enumerate(self._cells.rows[:, int(draws.rows[bad[0]])]) if row >= 0)
            timestep = self.scorers[index].reverse.forward.timesteps[self._cells.rows[index, int(draws.rows[bad[0]])]]
            raise ValueError(
                f"`unet` must give finite outputs, got a term of {values[bad[0]].item()} bits/dim for image"
                f" {int(draws.images[bad[0]])} at timestep {int(timestep)} ({len(bad)} of {len(values)} terms are not finite)."
                f"{' (One of the two networks.)' if len(self.scorers) == 2 else ''}"
                " A float16 network may have overflowed: try bfloat16 or float32."
            )

    @torch.inference_mode()
    def __call__(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Values of a batch in bits/dim, `(B,)`, still on the device, and the features of its noise, `(B, Q)`."""
        places, cells = torch.as_tensor(np.searchsorted(self.positions, draws.images)), torch.as_tensor(draws.rows)
        noise = keyed_normal(draws.keys.tolist(), self.levels.shape[1:])
        values = self._terms(0, places, noise, cells)
        if len(self.scorers) == 2:
            values = values - self._terms(1, places, noise, cells).to(values.device)
        return values, self._controls.noise_features(self._samples(places), noise, cells)

    def _samples(self, places: torch.Tensor) -> torch.Tensor:
        return levels_to_samples(self.levels[places], self.scorers[0].num_pixel_levels)

    def _terms(self, index: int, places, noise, cells) -> torch.Tensor:
        r"""Terms of one scorer, zero where its grid has none."""
        scorer, labels = self.scorers[index], self.class_labels[index]
        rows, factors = self._cells.rows[index, cells], self._cells.factors[index, cells]
        there = rows >= 0
        if not there.any():
            return torch.zeros(len(rows), dtype=torch.float64)
        if not there.all():
            values = self._terms(index, places[there], noise[there], cells[there])
            return torch.zeros(len(rows), dtype=values.dtype, device=values.device).index_copy(
                0, there.nonzero().flatten().to(values.device), values
            )
        levels = self.levels[places]
        timesteps = scorer.reverse.forward.timesteps[rows]
        nats = scorer.terms(scorer.samples(levels), noise, timesteps, None if labels is None else labels[places])
        return nats_to_bits_per_dim(nats * factors.to(nats), levels[0].numel())


def known_parts(scorer: Scorer, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""What is known of images without the network, on the CPU: :math:`L_T` in bits/dim, `(B,)`, and features `(B, P)`."""
    samples = scorer.samples(levels)
    prior = nats_to_bits_per_dim(scorer.prior(samples).cpu().double(), levels[0].numel())
    return prior, image_features(levels_to_samples(levels, scorer.num_pixel_levels))
