r"""Images on a stack of bits, at the price of the variational bound: Bit-Swap (Kingma, Abbeel & Ho 2019) along a DDPM's chain.

An image x is pushed with all its latents :math:`x_0, \dots, x_{K-1}`, and what chooses the latents is popped: their bits come
back when the image is decoded. On a grid of K timesteps, the lowest first,

.. math::
    \text{pop } x_k \sim q(x_k | x_{k-1}), \quad \text{push } x_{k-1} \text{ under } p(x_{k-1} | x_k), \qquad k = 0, \dots, K-1,

with the image in the place of :math:`x_{-1}`; last, :math:`x_{K-1}` is pushed under
:math:`N(0, I)`. The stack has then grown by

.. math:: \log\frac{q(x_0, \dots, x_{K-1} | x)}{p(x, x_0, \dots, x_{K-1})},

whose mean is the bound. To decode is to do the same backwards. Never more than two latents are in the air, so that only the
first two pops need bits that must lie on the stack already.

**Bins.** A latent is an integer multiple of :math:`\delta_k`, the power of two at or below half of the least standard
deviation that it is popped or pushed with. Densities then cost what they should to the fourth order in
:math:`\delta / \sigma`, since a bin's mass is the density of a Gaussian that is wider by just what rounding adds.

**What two machines must agree on.** The forward process is integer arithmetic here: any q serves, as long as both sides have
the same. A reverse step is made of a network's output, which is rounded by `rounding.py`; what follows is some float64
arithmetic, and its results are rounded in the same way, with a far narrower band. Constants are rounded once, and part of
the digest by which a decoder knows its model.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from ..checks import NonFiniteOutput
from ..gaussians import LN_2, discretized_gaussian_log_likelihood, normal_log_density
from ..model.scorer import Scorer
from .rounding import Notes, round_as_noted, round_noting
from .stack import SCALE_BITS, DamagedFile, Stack
from .summary import Account

BAND = 2.0**-34  # of a network's outputs: 5.8e-11, 5,000 times what float64 was seen to differ by
ARITHMETIC_BAND = 2.0**-42  # of what is made of them: 2.3e-13
BINS_PER_SCALE = 2  # at least, to a standard deviation
MEAN_BITS, LEVEL_BITS, COEFFICIENT_BITS = 6, 12, 20
VARIANCE_UNIT = 2.0**-10
MAX_LATENT = 2**40
LEAST_BITS = 2  # that a value of the last latent takes: its bins are at most half a standard deviation wide
MAX_MEAN = 2.0**50  # in the units that means are rounded to
# How a scorer's description may differ between two who have the same model.
_NOT_THE_MODEL = ("dtype", "device", "versions", "timestep_spacing", "num_inference_steps", "inference_timesteps")


class Step(NamedTuple):
    r"""The constants of a latent: exact, and the same on every machine.

    Args:
        timestep: of the network.
        bin: width :math:`\delta_k`, a power of two.
        coefficient: from the latent below (or from 2 level - n + 1) to the mean of q in 2^-26 bins, an integer.
        scale: standard deviation of q, in bins.
        unit: that the network's output is rounded to, a power of two.
    """

    timestep: int
    bin: float
    coefficient: int
    scale: float
    unit: float

    @property
    def bits(self) -> float:
        r"""Bits of a draw from q, for each dimension."""
        return math.log2(math.sqrt(2 * math.pi * math.e) * self.scale)


def _power_of_two(value: float) -> float:
    return 2.0 ** math.floor(math.log2(value))


def _rounded_scale(value: float) -> float:
    unit = _power_of_two(value) * 2.0**-SCALE_BITS
    return round(value / unit) * unit


@dataclass
class Chain:
    r"""A model as a codec.

    Args:
        scorer: what is scored, its network in float64.
        network_sha256: of the network as it was.
        band: by how much less outputs may differ between the machine that encodes and the one that decodes.
        batch_size: images that the network is asked about at once, at most.
    """

    scorer: Scorer
    network_sha256: str | None
    band: float = BAND
    batch_size: int = 2**20
    account: Account = field(default_factory=Account)

    @cached_property
    def steps(self) -> list[Step]:
        r"""The constants of the latents, the lowest first."""
        reverse = self.scorer.reverse
        forward, levels = reverse.forward, self.scorer.num_pixel_levels
        spread, posterior = forward.betas.sqrt().tolist(), forward.posterior_variance.sqrt().tolist()
        count, steps = len(forward), []
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        for k, timestep in enumerate(forward.timesteps.tolist()):
            above = posterior[k + 1] if k + 1 < count else 1.0
            width = _power_of_two(min(spread[k], above) / BINS_PER_SCALE)
            # The bins of what lies below: of the image, of its levels.
            below = steps[k - 1].bin if k else 1.0 / (levels - 1)
            coefficient = round(forward.sqrt_alphas[k].item() * below / width * 2 ** (MEAN_BITS + COEFFICIENT_BITS))
            original = reverse.prediction.original
            slope = float(original(forward, zero, zero + 1, timestep) - original(forward, zero, zero, timestep))
            slope *= forward.posterior_mean_coef1[k].item()
            scale = posterior[k] if k else 1.0 / (levels - 1)
            unit = min(max(_power_of_two(scale / (128 * abs(slope))), 2.0**-30), 2.0**-4)
            if not 8 * self.band < unit:
                raise ValueError(f"`band` must be less than an eighth of the unit {unit} at t = {timestep}, got {self.band}.")
            steps.append(Step(timestep, width, coefficient, _rounded_scale(spread[k] / width), unit))
        return steps

    @cached_property
    def digest(self) -> bytes:
        r"""SHA-256 of the model: its network, its settings, its constants."""
        described = {key: value for key, value in self.scorer.describe().items() if key not in _NOT_THE_MODEL}
        said = [self.network_sha256, described, self.steps, self.band]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()

    @property
    def start_bits(self) -> float:
        r"""Bits for each dimension that must lie on the stack before an image is pushed, about."""
        return sum(step.bits for step in self.steps[:2])

    # Encoding and decoding of a batch.

    def push(self, stack: Stack, levels: torch.Tensor, class_labels: torch.Tensor | None = None) -> int:
        r"""Push images, levels `(B, C, H, W)`; returns by how many bits the stack was lower in between."""
        lowest = start = stack.num_bits
        shape = tuple(levels.shape)
        below = levels.numpy().astype(np.int64).ravel()
        log_ratio = 0.0
        for k, step in enumerate(self.steps):
            means = self._means(k, below)
            latents = stack.draw(means, step.scale)
            lowest = min(lowest, stack.num_bits)
            notes = Notes()
            reverse = self._reverse(k, latents, shape, class_labels, notes, round_noting)
            log_ratio += self._log_ratio(k, below, latents, reverse)
            self._push_reverse(stack, k, below, reverse)
            before = stack.num_bits
            self._push_notes(stack, k, notes)
            self.account.notes += stack.num_bits - before
            self.account.num_notes += len(notes.places)
            below = latents
        last = self.steps[-1]
        zeros = np.zeros_like(below)
        stack.push(below, zeros, np.full(below.shape, 1 / last.bin))
        log_ratio -= normal_log_density(torch.from_numpy(below * last.bin), 0.0, 0.0).sum().item()
        self.account.images += shape[0]
        self.account.bound += log_ratio / LN_2
        self.account.net += stack.num_bits - start
        return start - lowest

    def pop(self, stack: Stack, shape: tuple[int, ...], class_labels: torch.Tensor | None = None) -> torch.Tensor:
        r"""Pop the images that were pushed last, levels of shape `(B, C, H, W)`."""
        # Before there is memory for it: a few bytes can claim any number of images.
        if stack.num_bits < LEAST_BITS * math.prod(shape):
            raise DamagedFile(f"`data` must hold the bits of its images, got {stack.num_bits} for {math.prod(shape)} values.")
        zeros, last = np.zeros(math.prod(shape), np.int64), self.steps[-1]
        latents = stack.pop(zeros, np.full(zeros.shape, 1 / last.bin))
        for k in range(len(self.steps) - 1, -1, -1):
            if np.abs(latents).max() > MAX_LATENT:
                raise DamagedFile("`data` must hold latents of the model, got larger ones.")
            notes = self._pop_notes(stack, k, math.prod(shape))
            reverse = self._reverse(k, latents, shape, class_labels, notes, round_as_noted)
            below = self._pop_reverse(stack, k, reverse)
            stack.give_back(latents, self._means(k, below), self.steps[k].scale)
            latents = below
        dtype = torch.uint8 if self.scorer.num_pixel_levels <= 256 else torch.int32
        return torch.from_numpy(latents).reshape(shape).to(dtype)

    # The two processes.

    def _means(self, k: int, below: np.ndarray) -> np.ndarray:
        r"""Means of q in 64ths of a bin, in integer arithmetic."""
        values = below if k else 2 * below - (self.scorer.num_pixel_levels - 1)
        return (values * self.steps[k].coefficient + (1 << (COEFFICIENT_BITS - 1))) >> COEFFICIENT_BITS

    @torch.no_grad()
    def _reverse(self, k: int, latents: np.ndarray, shape, class_labels, notes: Notes, rounded) -> "_Reverse":
        r"""p(x_{k-1} | x_k), as the network has it and as it is coded with."""
        scorer, step = self.scorer, self.steps[k]
        noisy = torch.from_numpy(latents * step.bin).reshape(shape)
        # As many at once as fit here; who encoded may have had more memory, or less.
        inputs = noisy.split(self.batch_size)
        labels = [None] * len(inputs) if class_labels is None else class_labels.split(self.batch_size)
        parts = [scorer.network(part.to(scorer.device), step.timestep, own) for part, own in zip(inputs, labels)]
        output = torch.cat(parts)
        if not bool(torch.isfinite(output).all()):
            raise NonFiniteOutput("NaN or infinity", timestep=step.timestep)
        output, channels = output.cpu(), shape[1]
        units = torch.full((1, output.shape[1], 1, 1), VARIANCE_UNIT, dtype=torch.float64)
        units[:, :channels] = step.unit
        how = (units.numpy(), self.band, notes)
        multiples = rounded(output.numpy(), *how) if rounded is round_noting else rounded(output.numpy(), how[0], notes)
        coded = scorer.reverse.p_mean_variance(torch.from_numpy(multiples) * units, noisy, step.timestep)
        # In bins of what lies below, or in levels.
        levels = scorer.num_pixel_levels
        bin_width = self.steps[k - 1].bin if k else 2 / (levels - 1)
        means = (coded.mean.numpy() / bin_width).ravel() + (0 if k else (levels - 1) / 2)
        scales = (0.5 * coded.log_variance).exp().numpy().ravel() / bin_width
        mean_unit = 2.0 ** -(MEAN_BITS if k else LEVEL_BITS)
        if not ((np.abs(means) < MAX_MEAN * mean_unit).all() and (scales > 0).all() and np.isfinite(scales).all()):
            raise NonFiniteOutput("means or standard deviations that no coder holds", timestep=step.timestep)
        scale_units = np.ldexp(1.0, np.frexp(scales)[1] - 1 - SCALE_BITS)  # exact, unlike logarithms
        band = ARITHMETIC_BAND / bin_width
        if rounded is round_noting:
            means, multiples = (
                rounded(means, mean_unit, band, notes),
                rounded(scales, scale_units, ARITHMETIC_BAND * scales, notes),
            )
        else:
            means, multiples = rounded(means, mean_unit, notes), rounded(scales, scale_units, notes)
        return _Reverse(output, noisy, means, multiples * scale_units)

    def _push_reverse(self, stack: Stack, k: int, below: np.ndarray, reverse: "_Reverse") -> None:
        if k:
            stack.push(below, reverse.means.astype(np.int64), reverse.scales)
        else:
            stack.push_levels(below, self.scorer.num_pixel_levels, reverse.means * 2.0**-LEVEL_BITS, reverse.scales)

    def _pop_reverse(self, stack: Stack, k: int, reverse: "_Reverse") -> np.ndarray:
        if k:
            return stack.pop(reverse.means.astype(np.int64), reverse.scales)
        return stack.pop_levels(self.scorer.num_pixel_levels, reverse.means * 2.0**-LEVEL_BITS, reverse.scales)

    # Notes on the stack.

    def _rarity(self, k: int, dimensions: int) -> int:
        r"""-log2 of how often there is something to note, about."""
        expected = 2 * dimensions * self.band / self.steps[k].unit
        return min(max(-math.ceil(math.log2(expected)), 1), 20)

    def _push_notes(self, stack: Stack, k: int, notes: Notes) -> None:
        size = self._size(notes.size)
        for place, is_up in reversed(list(zip(notes.places, notes.is_up))):
            stack.push_integer(2 * place + is_up, size)
        stack.push_count(len(notes.places), self._rarity(k, notes.size))

    def _pop_notes(self, stack: Stack, k: int, dimensions: int) -> Notes:
        # The outputs, the means and the standard deviations of an evaluation.
        total = dimensions * (4 if self.scorer.reverse.learns_variance else 3)
        count = stack.pop_count(self._rarity(k, total))
        if count > total:
            raise DamagedFile("`data` must note a value once, got more notes than values.")
        found = [stack.pop_integer(self._size(total)) for _ in range(count)]
        return Notes([value >> 1 for value in found], [bool(value & 1) for value in found])

    @staticmethod
    def _size(count: int) -> int:
        return 2 * count

    # What the bound says.

    def _log_ratio(self, k: int, below: np.ndarray, latents: np.ndarray, reverse: "_Reverse") -> float:
        r"""log q(x_k | x_{k-1}) - log p(x_{k-1} | x_k) of the model, nats, summed; densities, and the decoder at k = 0."""
        scorer, forward, step = self.scorer, self.scorer.reverse.forward, self.steps[k]
        exact = scorer.reverse.p_mean_variance(reverse.output, reverse.noisy, step.timestep)
        levels = scorer.num_pixel_levels
        under = torch.from_numpy(below.reshape(reverse.noisy.shape))
        under = under * self.steps[k - 1].bin if k else under * (2.0 / (levels - 1)) - 1
        q = normal_log_density(reverse.noisy, forward.sqrt_alphas[k].item() * under, forward.log_betas[k].item())
        if k:
            p = normal_log_density(under, exact.mean, exact.log_variance)
        else:
            how = {"mean": exact.mean, "log_variance": exact.log_variance, "num_pixel_levels": levels}
            p = discretized_gaussian_log_likelihood(under, **how, validate_args=False)
        return (q - p).sum().item()


class _Reverse(NamedTuple):
    r"""The network's output and its latents; means in 64ths of a bin (in 2^-12 levels), scales in bins (in levels)."""

    output: torch.Tensor
    noisy: torch.Tensor
    means: np.ndarray
    scales: np.ndarray
