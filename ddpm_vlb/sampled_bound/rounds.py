r"""Rounds of draws, and the estimates that they give."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from .design import Design
from .draws import Bin, BoundEstimate, Draws, Number
from .tails import doubt


@dataclass
class Round:
    r"""The values of draws and the design that they are weighed by.

    Args:
        design: what m is, and p.
        draws: images, rows and keys, `(images, strata, draws)`.
        left_over: :math:`\ell_t - m_t` in bits/dim, of the same shape.
        values: :math:`\ell_t` in bits/dim, of the same shape.
        paired: whether images lie in pairs that share their cells, as `Design.draw` has them.
        worth: how much an evaluation of the pilot counts beside one of a later round; `None` in a later round.
        between_before: where images are drawn once, what earlier rounds say of `between` under this design.
    """

    design: Design
    draws: Draws
    left_over: torch.Tensor
    values: torch.Tensor
    paired: bool
    worth: float | None = None
    between_before: float = 0.0

    def __post_init__(self):
        self.images = self.draws.images[:, 0, 0]
        self.rows = torch.as_tensor(self.draws.rows)
        self.y = self.design.weigh(self.draws.rows, self.left_over)
        self.d = self.y.mean(dim=(1, 2))

    @property
    def evaluations(self) -> int:
        r"""How many draws there are."""
        return self.y.numel()

    @property
    def is_double(self) -> bool:
        r"""Whether an image is drawn twice in a stratum."""
        return self.y.shape[2] == 2

    @property
    def between(self) -> float:
        r"""The variance over images of :math:`D_i`, from doubled draws; may come out negative."""
        # Over all images, for the cells of an image's two draws are drawn apart; of pairs there are half as many.
        return torch.cov(self.y.mean(dim=1).T)[0, 1].item() if len(self.images) > 1 else 0.0

    def between_pairs(self, d: torch.Tensor) -> torch.Tensor:
        r"""Summands, for each pair or image, whose mean is the variance over images of `d`, a number of each image."""
        if self.paired:
            even = len(d) // 2 * 2
            return (d[0:even:2] - d[1:even:2]).square() / 2
        return (d - d.mean(dim=0)).square() * len(d) / max(len(d) - 1, 1)

    @cached_property
    def noise(self) -> torch.Tensor:
        r"""Summands of the sum over images of the variances of their means, `(pairs or images, strata)`, from doubled draws.

        Two draws of one image differ by their noise and by their cells; those of the other image of the pair by the same cells.
        """
        y, strata = self.y, self.y.shape[1]
        difference = y[:, :, 0] - y[:, :, 1]
        if not self.paired:
            return difference.square() / (4 * strata**2)
        even = len(y) // 2 * 2
        pairs = (difference[0:even:2] - difference[1:even:2]).square() / (4 * strata**2)
        return torch.cat([pairs, difference[even:].square() / (4 * strata**2)])

    def variance(self, frame_size: int) -> tuple[float, float]:
        r"""The Monte Carlo variance of the mean, given the frame, and the variance of that number itself."""
        summands, freedom = self.summands(frame_size)
        variance, n = summands.sum().item(), len(summands)
        # Of few summands the spread says little, but there cannot be more degrees of freedom than these.
        return variance, max(summands.var().item() * n if n > 1 else 0.0, 2 * variance**2 / max(freedom, 1))

    def summands(self, frame_size: int) -> tuple[torch.Tensor, int]:
        r"""What the Monte Carlo variance is the sum of, and its degrees of freedom at the most."""
        m, share = len(self.images), len(self.images) / frame_size
        if share == 1 and self.is_double:
            summands = self.noise.flatten() / m**2
            return summands, len(summands)
        between = self.between_pairs(self.d)
        between = between / (len(between) * m)
        if not self.is_double:
            # The images' own part of it does not count for those that were met, and the rest is noise.
            own = min(1.0, max(self.between_before, 0.0) / max(between.sum().item() * m, 1e-300))
            return (1 - share * own) * between, len(between) - (not self.paired)
        noise = self.noise.sum(dim=1)
        if self.paired:
            noise = noise[: len(between)]  # an odd image has no partner
        noise = noise * (len(self.images) / (2 * len(between) if self.paired else len(between)))
        return (1 - share) * between + share * noise / m**2, len(between) - (not self.paired)

    def by_bin(self, bins: torch.Tensor, num_bins: int, frame_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        r"""What each bin contributes to the mean, and the Monte Carlo variance of that, `(num_bins,)` each."""
        m, strata, draws = self.y.shape
        share = m / frame_size if self.is_double else 0.0
        of_images = torch.zeros(m, num_bins, dtype=torch.float64)
        of_images.scatter_add_(1, bins.reshape(m, -1), self.y.reshape(m, -1) / (strata * draws))
        variance = torch.zeros(num_bins, dtype=torch.float64)
        if share < 1:
            variance += (1 - share) * self.between_pairs(of_images).mean(dim=0) / m
        if share > 0:
            variance += share * self._noise_by_bin(bins, num_bins) / m**2
        return of_images.mean(dim=0), variance

    def _noise_by_bin(self, bins: torch.Tensor, num_bins: int) -> torch.Tensor:
        r"""The sum of `noise` for what falls into each bin: of a square of sums the products within one bin."""
        even = len(bins) // 2 * 2 if self.paired else 0
        noise = torch.zeros(num_bins, dtype=torch.float64)
        for first, last, images, signs in ((0, even, 2, [1, -1, -1, 1]), (even, len(bins), 1, [1, -1])):
            if first == last:
                continue
            y, where = (
                x[first:last].reshape(-1, images, *x.shape[1:]).transpose(1, 2).reshape(-1, 2 * images) for x in (self.y, bins)
            )
            y = y * torch.tensor(signs)
            alike = where[:, :, None] == where[:, None]
            noise.index_add_(0, where.flatten(), (y * (alike * y[:, None]).sum(dim=2)).flatten())
        return noise / (4 * self.y.shape[1] ** 2)


class Sums:
    r"""The rounds so far, and the estimates that they give."""

    def __init__(self, edges: np.ndarray, prior: torch.Tensor, image_features: torch.Tensor, frame: np.ndarray):
        self.edges, self.prior, self.image_features, self.frame = edges, prior.double(), image_features, frame
        self.rounds: list[Round] = []
        self._judged: tuple[int, str | None] = (0, None)

    def with_round(self, one: Round) -> "Sums":
        r"""These and another."""
        sums = Sums(self.edges, self.prior, self.image_features, self.frame)
        sums.rounds = [*self.rounds, one]
        return sums

    @property
    def num_evaluations(self) -> int:
        r"""Evaluations of all rounds."""
        return sum(one.evaluations for one in self.rounds)

    @property
    def weights(self) -> list[float]:
        r"""Of the rounds, of sum 1: by their evaluations, never by their variances; later ones make up what the pilot lacks.

        What a half of the pilot is worth is nothing of its own, so that its weight goes with no value of it.
        """
        later = [one.evaluations for one in self.rounds if one.worth is None]
        pilot = [one.worth * one.evaluations / self.num_evaluations for one in self.rounds if one.worth is not None]
        return [*pilot, *((1 - sum(pilot)) * evaluations / sum(later) for evaluations in later)]

    @property
    def later(self) -> list[Round]:
        r"""The rounds after the pilot; the pilot where there are none."""
        return [one for one in self.rounds if one.worth is None] or self.rounds

    def _over_images(self, of_round) -> float:
        r"""The mean of what rounds with doubled draws say, by their images; of the pilot only where there are no others."""
        rounds = [one for one in self.later if one.is_double] or [one for one in self.rounds if one.is_double]
        weights = [len(one.images) for one in rounds]
        return sum(w * of_round(one) for w, one in zip(weights, rounds)) / sum(weights)

    @property
    def between(self) -> float:
        r"""The variance over images of what the control variate leaves of an image's bound; may come out negative."""
        return self._over_images(lambda one: one.between)

    @property
    def within(self) -> float:
        r"""The variance of a draw about its image's mean."""
        return self._over_images(lambda one: 2 * one.y.shape[1] * one.noise.sum().item() / len(one.images))

    @property
    def frame_variance(self) -> float:
        r"""The variance from having only the frame's images at hand, not all N."""
        share = len(self.frame) / len(self.prior)
        return 0.0 if share == 1 else (1 - share) * max(self.between, 0.0) / len(self.frame)

    def _known(self, one: Round) -> torch.Tensor:
        r"""What is known of each image's bound, `(N,)`."""
        return self.prior + self.image_features @ one.design.known.sum(dim=0)

    def _data_error(self) -> float | None:
        if len(self.prior) == 1:
            return None

        def variance_of(one: Round) -> float:
            known = self._known(one)
            covariance = torch.cov(torch.stack([known[one.images], one.d]))[0, 1].item() if len(one.images) > 1 else 0.0
            return known.var().item() + 2 * covariance + one.between

        return math.sqrt(max(self._over_images(variance_of), 0.0) / len(self.prior))

    def _of_images(self) -> dict[str, torch.Tensor | None]:
        r"""Each image's own estimate, where all were drawn alike."""
        names = ("per_image", "per_image_decoder", "per_image_error", "per_image_degrees_of_freedom")
        if any(one.paired or not one.is_double or len(one.images) < len(self.prior) for one in self.rounds):
            return dict.fromkeys(names)
        bounds, decoders, squares, fourths = torch.zeros(4, len(self.prior), dtype=torch.float64)
        for weight, one in zip(self.weights, self.rounds):
            noise = one.noise
            bounds += weight * self._known(one)
            decoders += weight * (self.image_features @ one.design.known[0])
            bounds[one.images] += weight * one.d
            decoders[one.images] += weight * (one.y * (one.rows == 0)).mean(dim=(1, 2))
            squares[one.images] += weight**2 * noise.sum(dim=1)
            fourths[one.images] += weight**4 * noise.square().sum(dim=1)
        # Satterthwaite's, of pairs with 1 each: the fewer, the less alike the strata are. Of single squares it comes out
        # low, at a third where they are normal and alike, which makes up for heavier tails.
        freedom = torch.where(fourths > 0, squares.square() / fourths, 1.0).clamp(min=1.0)
        return dict(zip(names, (bounds, decoders, squares.sqrt(), freedom)))

    @property
    def _bins_of_rows(self) -> torch.Tensor:
        widths = np.diff(self.edges)
        return torch.from_numpy(np.arange(len(widths)).repeat(widths))

    def doubt(self) -> str | None:
        r"""Why the error cannot be trusted, `None` where nothing speaks against it."""
        if self._judged[0] < len(self.rounds):
            bins_of_rows = self._bins_of_rows
            parts = [[one.y.flatten(), one.values.flatten(), bins_of_rows[one.rows].flatten()] for one in self.later]
            reason = doubt(self.num_evaluations, *(torch.cat(part).numpy() for part in zip(*parts)))
            self._judged = len(self.rounds), reason
        return self._judged[1]

    def number(self) -> Number:
        r"""The estimate from all rounds, and nothing beside it."""
        features = self.image_features.mean(dim=0)
        value, variance, noise = self.prior.mean().item(), self.frame_variance, 0.0
        for weight, one in zip(self.weights, self.rounds):
            one_variance, one_noise = one.variance(len(self.frame))
            value += weight * ((one.design.known.sum(dim=0) @ features).item() + one.d.mean().item())
            variance += weight**2 * one_variance
            noise += weight**4 * one_noise
        return Number(value, math.sqrt(variance), max(1.0, 2 * variance**2 / noise) if noise > 0 else 1.0)

    def estimate(self, num_evaluations: int, num_unused: int, num_rounds: int) -> BoundEstimate:
        r"""The estimate from all rounds, and what it is made of."""
        bins_of_rows = self._bins_of_rows
        num_bins, num_rows = len(self.edges) - 1, len(bins_of_rows)
        by_bin, bin_variance = torch.zeros(2, num_bins, dtype=torch.float64)
        features = self.image_features.mean(dim=0)
        terms, counts = torch.zeros(2, num_rows, dtype=torch.float64)
        for weight, one in zip(self.weights, self.rounds):
            known = one.design.known @ features
            bins = bins_of_rows[one.rows]
            value, spread = one.by_bin(bins, num_bins, len(self.frame))
            by_bin += weight * (value + torch.zeros_like(by_bin).index_add_(0, bins_of_rows, known))
            bin_variance += weight**2 * spread
            rows = one.rows.flatten()
            terms.index_add_(0, rows, one.left_over.flatten() + known[rows])
            counts += torch.bincount(rows, minlength=num_rows)
        counts_by_bin = torch.zeros_like(by_bin).index_add_(0, bins_of_rows, counts).long()
        of_bins = zip(
            self.edges.tolist(),
            (self.edges - 1).tolist()[1:],
            *(x.tolist() for x in (by_bin, bin_variance.sqrt(), counts_by_bin)),
        )
        number = self.number()
        return BoundEstimate(
            bits_per_dim=number.bits_per_dim,
            monte_carlo_error=number.monte_carlo_error,
            degrees_of_freedom=number.degrees_of_freedom,
            prior=self.prior.mean().item(),
            bins=[Bin(*of_bin) for of_bin in of_bins],
            data_error=self._data_error(),
            terms=terms / counts,
            term_evaluations=counts.long(),
            **self._of_images(),
            num_evaluations=num_evaluations,
            num_pilot_evaluations=num_unused,
            num_rounds=num_rounds,
            doubt=self.doubt(),
        )
