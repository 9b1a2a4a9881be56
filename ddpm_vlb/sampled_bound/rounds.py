r"""Rounds of sampling and the sums over them."""

import copy
import math
from typing import NamedTuple

import numpy as np
import torch

from .design import Design
from .draws import Bin, BoundEstimate, Draws


class Round(NamedTuple):
    r"""What is kept of the m images of a round."""

    images: np.ndarray
    evaluations: int
    first: torch.Tensor  # d_i1
    second: torch.Tensor  # d_i2
    variances: torch.Tensor  # v_i by stratum, (m, V)
    by_bin: torch.Tensor  # summands of d_i by bin, (m, B)
    variances_by_bin: torch.Tensor  # v_i of these summands, (m, B)
    counts: torch.Tensor  # evaluations by bin
    rows: torch.Tensor  # what was left over at each draw's row: rows and values
    left_over: torch.Tensor


class Sums:
    r"""The rounds so far, and the estimates that they give."""

    def __init__(self, design: Design, prior, image_features, frame):
        self.design, self.prior, self.image_features, self.frame = design, prior.double(), image_features, frame
        # phi_i^T b, summed over the rows of each bin.
        weights = design.coefficients[:, : design.num_image_features] * design.widths[:, None]
        self.known_by_bin = (image_features.mean(dim=0) * weights).sum(dim=1)
        self.known = self.prior + image_features @ weights.sum(dim=0)
        self.known_decoder = image_features @ weights[0]
        self.rounds: list[Round] = []

    @property
    def num_evaluations(self) -> int:
        r"""Evaluations of all rounds, without the pilot."""
        return sum(one.evaluations for one in self.rounds)

    def add(self, draws: Draws, values, noise_features) -> None:
        r"""Take in what a round's draws gave."""
        design = self.design
        y = design.residuals(draws, values, noise_features, self.image_features)
        images, strata, _ = y.shape
        bins = design.bin_of(draws.rows).reshape(images, -1)
        by_bin, squares = torch.zeros(2, images, design.bins, dtype=torch.float64)
        by_bin.scatter_add_(1, bins, y.reshape(images, -1) / (2 * strata))
        # Of a pair the squared difference of what falls into a bin: both draws, one of them, or none.
        squares.scatter_add_(1, bins, y.reshape(images, -1).square())
        pairs = bins.reshape(images, strata, 2)
        alike = torch.where(pairs[..., 0] == pairs[..., 1], -2 * y[..., 0] * y[..., 1], 0.0)
        squares.scatter_add_(1, pairs[..., 0], alike)
        self.rounds.append(
            Round(
                images=draws.images[:, 0, 0],
                evaluations=y.numel(),
                first=y[..., 0].mean(dim=1),
                second=y[..., 1].mean(dim=1),
                variances=(y[..., 0] - y[..., 1]).square() / (4 * strata**2),
                by_bin=by_bin,
                variances_by_bin=squares / (4 * strata**2),
                counts=torch.bincount(bins.flatten(), minlength=design.bins),
                rows=torch.as_tensor(draws.rows).flatten(),
                left_over=(y.reshape(images, -1) * (design.probabilities / design.widths)[bins]).flatten(),
            )
        )

    def preview(self, draws: Draws, num_pilot: int, values, noise_features) -> BoundEstimate | None:
        r"""The estimate with the part of a round whose values are there, `None` for less than two images."""
        per_image = draws.rows[0].size
        images = len(values) // per_image
        if images < 2 or not self.rounds and images < 8:
            return None
        part = Draws(*(array[:images] for array in draws))
        shape = part.rows.shape
        others = copy.copy(self)
        others.rounds = list(self.rounds)
        others.add(part, values[: part.rows.size].reshape(shape), noise_features[: part.rows.size].reshape(*shape, -1))
        return others.estimate(num_pilot)

    def _variance(self, one: Round) -> tuple[float, float]:
        r"""The Monte Carlo variance of a round's mean, given the frame, and the variance of that number itself."""
        m, share = len(one.images), len(one.images) / len(self.frame)
        if share == 1:
            summands = one.variances.flatten() / m**2
            freedom = len(summands)
        else:
            d = (one.first + one.second) / 2
            between = (d - d.mean()).square() * m / (m - 1)
            summands = ((1 - share) * between + share * one.variances.sum(dim=1)) / m**2
            freedom = m - 1
        variance, n = summands.sum().item(), len(summands)
        # Of few summands the spread says little, but there cannot be more degrees of freedom than these.
        return variance, max(summands.var().item() * n if n > 1 else 0.0, 2 * variance**2 / freedom)

    def _variance_by_bin(self, one: Round) -> torch.Tensor:
        r"""The same variance of what each bin contributes, `(B,)`."""
        m, share = len(one.images), len(one.images) / len(self.frame)
        between = one.by_bin.var(dim=0) if share < 1 else 0.0
        return ((1 - share) * between + share * one.variances_by_bin.mean(dim=0)) / m

    @property
    def between(self) -> float:
        r"""The variance over images of what the control variate leaves of an image's bound; may come out negative."""
        weights = [len(one.images) for one in self.rounds]
        covariances = [torch.cov(torch.stack([one.first, one.second]))[0, 1].item() for one in self.rounds]
        return sum(w * c for w, c in zip(weights, covariances)) / sum(weights)

    @property
    def frame_variance(self) -> float:
        r"""The variance from having only the frame's images at hand, not all N."""
        share = len(self.frame) / len(self.prior)
        return 0.0 if share == 1 else (1 - share) * max(self.between, 0.0) / len(self.frame)

    def _data_error(self) -> float | None:
        if len(self.prior) == 1:
            return None
        pairs = [torch.stack([self.known[one.images], (one.first + one.second) / 2]) for one in self.rounds]
        weights = [len(one.images) for one in self.rounds]
        covariance = sum(w * torch.cov(pair)[0, 1].item() for w, pair in zip(weights, pairs)) / sum(weights)
        variance = self.known.var().item() + 2 * covariance + self.between
        return math.sqrt(max(variance, 0.0) / len(self.prior))

    def estimate(self, num_pilot: int) -> BoundEstimate:
        r"""The estimate from all rounds."""
        total = self.num_evaluations
        weights = [one.evaluations / total for one in self.rounds]
        by_bin, bin_variance = self.known_by_bin.clone(), torch.zeros_like(self.known_by_bin)
        variance, noise, counts = self.frame_variance, 0.0, torch.zeros(self.design.bins, dtype=torch.int64)
        for weight, one in zip(weights, self.rounds):
            by_bin += weight * one.by_bin.mean(dim=0)
            bin_variance += weight**2 * self._variance_by_bin(one)
            one_variance, one_noise = self._variance(one)
            variance += weight**2 * one_variance
            noise += weight**4 * one_noise
            counts += one.counts
        prior = self.prior.mean().item()
        bits_per_dim = prior + by_bin.sum().item()
        per_image = per_image_decoder = per_image_error = per_image_freedom = None
        if all(len(one.images) == len(self.prior) for one in self.rounds):
            per_image, per_image_decoder = self.known.clone(), self.known_decoder.clone()
            squares, fourths = torch.zeros(2, len(self.known), dtype=torch.float64)
            for weight, one in zip(weights, self.rounds):
                per_image[one.images] += weight * (one.first + one.second) / 2
                per_image_decoder[one.images] += weight * one.by_bin[:, 0]
                squares[one.images] += weight**2 * one.variances.sum(dim=1)
                fourths[one.images] += weight**4 * one.variances.square().sum(dim=1)
            per_image_error = squares.sqrt()
            # Satterthwaite's, of pairs with 1 each: the fewer, the less alike the strata are. Of single squares it comes out
            # low, at a third where they are normal and alike, which makes up for heavier tails.
            per_image_freedom = torch.where(fourths > 0, squares.square() / fourths, 1.0).clamp(min=1.0)
        edges = self.design.edges
        known_terms = (self.known_by_bin / self.design.widths).repeat_interleave(self.design.widths.long())
        rows = torch.cat([one.rows for one in self.rounds])
        left_over = torch.zeros_like(known_terms).index_add_(0, rows, torch.cat([one.left_over for one in self.rounds]))
        term_counts = torch.bincount(rows, minlength=len(known_terms))
        return BoundEstimate(
            bits_per_dim=bits_per_dim,
            prior=prior,
            bins=[
                Bin(int(edges[b]), int(edges[b + 1]) - 1, by_bin[b].item(), bin_variance[b].sqrt().item(), int(counts[b]))
                for b in range(self.design.bins)
            ],
            monte_carlo_error=math.sqrt(variance),
            data_error=self._data_error(),
            terms=known_terms + left_over / term_counts,
            term_evaluations=term_counts,
            degrees_of_freedom=max(1.0, 2 * variance**2 / noise) if noise > 0 else 1.0,
            per_image=per_image,
            per_image_decoder=per_image_decoder,
            per_image_error=per_image_error,
            per_image_degrees_of_freedom=per_image_freedom,
            num_evaluations=total + num_pilot,
            num_pilot_evaluations=num_pilot,
            num_rounds=len(self.rounds),
        )
