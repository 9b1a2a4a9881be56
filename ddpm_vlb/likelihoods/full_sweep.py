r"""The full sweep: every image at every step, and what a report needs of it, in memory that grows by four numbers an image.

At each step the mean over images and the sum of squares about it are kept, and put together batch by batch (Chan's formula).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..checks import NonFiniteOutput, check_finite
from ..gaussians import nats_to_bits_per_dim
from ..model.scorer import Scorer
from ..noise import draw_seeds, keyed_noise


def sweep(
    scorer: Scorer,
    levels: torch.Tensor,
    seeds: Sequence[int],
    labels: torch.Tensor | None = None,
    step: Callable[[], Any] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Every step for a batch of images, in nats and on the device.

    Args:
        scorer: what is scored.
        levels: images, `(B, C, H, W)`.
        seeds: of their noise, `B` integers.
        labels: classes, `(B,)`.
        step: called once a step.

    Returns:
        The prior term `(B,)` and, ascending in t, decoder and transitions `(B, K)`, NaN where the network's output was
        not finite.
    """
    samples = scorer.samples(levels)
    labels = None if labels is None else labels.to(scorer.device)
    timesteps = scorer.reverse.forward.timesteps
    terms = []
    noises = keyed_noise(seeds, timesteps.tolist(), samples.shape[1:], samples.device)
    for timestep, on_device, noise in zip(timesteps.tolist(), timesteps.to(scorer.device).unbind(), noises):
        terms.append(scorer.terms(samples, noise, timestep, labels, on_device))
        step()
    return scorer.prior(samples), torch.stack(terms, dim=1)


def sweep_images(
    scorer: Scorer,
    levels: torch.Tensor,
    seeds: Sequence[int],
    labels: torch.Tensor | None,
    batch_size: int,
    step: Callable[[], Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""As `sweep`, batch after batch, in bits/dim and on the CPU.

    Raises:
        ValueError: a network whose output is not finite.
    """
    parts = []
    for start in range(0, len(levels), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(sweep(scorer, levels[rows], seeds[rows], None if labels is None else labels[rows], step))
    # The one copy from the device, after the last batch.
    prior, terms = (nats_to_bits_per_dim(torch.cat(x).cpu().double(), levels[0].numel()) for x in zip(*parts))
    check_finite(terms, scorer.timesteps, scorer.dtype)
    return prior, terms


class SeedSequence:
    r"""`seeds[number]`: the seeds that `evaluate_nll` gives to its images when its generator starts from this seed."""

    def __init__(self, seed: int):
        self._seed, self._drawn = seed, []

    def __getitem__(self, number: int) -> int:
        if number >= len(self._drawn):
            self._drawn = draw_seeds(max(1024, 2 * (number + 1)), torch.Generator().manual_seed(self._seed))
        return self._drawn[number]


def sums_of_batch(prior: torch.Tensor, terms: torch.Tensor, num_dimensions: int) -> dict[str, Any]:
    r"""What is kept of a batch, in bits/dim, as plain values.

    Args:
        prior, terms: of `sweep`, `(B,)` and `(B, K)`, in nats.
        num_dimensions: of an image.
    """
    prior, terms = (nats_to_bits_per_dim(x.cpu().double(), num_dimensions) for x in (prior, terms))
    bad = (~torch.isfinite(terms)).nonzero()
    means = terms.mean(dim=0)
    return {
        "bad": bad[0].tolist() if len(bad) else None,
        "prior": prior.tolist(),
        "decoder": terms[:, 0].tolist(),
        "transitions": terms[:, 1:].sum(dim=1).tolist(),
        "means": means.tolist(),
        "squares": (terms - means).square().sum(dim=0).tolist(),
    }


class Sweeps:
    r"""The sums over all batches so far, of a grid of `steps` steps."""

    def __init__(self, steps: int):
        self.prior, self.decoder, self.transitions = [], [], []
        self.count, self.means, self.squares = 0, *torch.zeros(2, steps, dtype=torch.float64)

    def add(self, sums: dict[str, Any], numbers: list[int], timesteps: list[int], dtype: torch.dtype) -> None:
        r"""Take in a batch of images with these numbers, scored by a network of this dtype.

        Raises:
            ValueError: a term that is not finite.
        """
        if sums["bad"] is not None:
            image, row = sums["bad"]
            raise NonFiniteOutput("a term that is not", image=numbers[image], timestep=timesteps[row], dtype=dtype)
        for name in ("prior", "decoder", "transitions"):
            getattr(self, name).extend(sums[name])
        count, means = len(sums["prior"]), torch.tensor(sums["means"], dtype=torch.float64)
        gap, both = means - self.means, self.count + count
        self.squares += torch.tensor(sums["squares"], dtype=torch.float64) + gap.square() * self.count * count / both
        self.means += gap * count / both
        self.count = both

    def mean_and_error(self, more: list[dict[str, Any]]) -> tuple[float, float] | tuple[()]:
        r"""The mean so far with the sums of some more batches, and its standard error; nothing for less than two images."""
        parts = [(self.prior, self.decoder, self.transitions), *((s["prior"], s["decoder"], s["transitions"]) for s in more)]
        values = torch.tensor([sum(terms) for part in parts for terms in zip(*part)], dtype=torch.float64)
        return (values.mean().item(), (values.var() / len(values)).sqrt().item()) if len(values) > 1 else ()

    @property
    def totals(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        r"""Prior, decoder and sum of the transitions of each image, `(N,)`."""
        prior, decoder, transitions = (
            torch.tensor(x, dtype=torch.float64) for x in (self.prior, self.decoder, self.transitions)
        )
        return prior, decoder, transitions
