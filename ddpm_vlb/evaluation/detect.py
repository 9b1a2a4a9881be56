r"""Images that do not belong: anomaly scores from the terms of the bound, with p-values that hold.

The likelihood alone is no such score: a picture of one colour can be likelier than the data, under any good model. What gives
it away is where its bits are. The score is therefore made of the **profile**, the terms :math:`L_t` at J timesteps (the
decoder's, and others in equal steps of log-SNR), each the mean of a few draws, and of how far a lossless compressor gets
(`data/complexity.py`); the total less the compressed size (Serra et al. 2020) is one combination of these. With

.. math::
    \phi(x) = (\log L_{t_1}, \dots, \log L_{t_J}, \text{compressed bits per dimension}), \qquad
    z = \frac{h - \mu_h}{\sigma_h}, \quad h(x) = \textstyle\sum_j \log L_{t_j},

it is

.. math:: (\phi - \mu)^\top \Sigma^{-1} (\phi - \mu) + 2 \sqrt{F}\, \max(z, 0)^2 ,

where :math:`\mu` and :math:`\Sigma` are those of held-in images and F is the number of features. The first term is the
distance from what is usual: an image is anomalous on either side, for being too simple as for being too hard (typicality;
Nalisnick et al. 2019, Morningstar et al. 2021, Goodier & Campbell 2023). Spread over F directions it hardly sees an image that
is a little harder at every timestep, which the second term does; its weight makes the two vary about alike. :math:`\Sigma` is
shrunk by as much as so few images call for (OAS, Chen et al. 2010).

Half of the held-in images make these numbers, 1,000 at the most; the others are calibration images, from whose scores the
p-values come (`conformal.py`). Every score is an estimate, and has the noise of its few evaluations in it. The p-values hold
all the same: calibration images and others are scored alike, with as many evaluations and independent noise, so that the noisy
scores are exchangeable where the images are. More evaluations find more; they are not needed for the promise. The network must
not have been trained on any of the held-in images: it knows what it was trained on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..checks import check_count, check_finite, check_seed
from ..data.complexity import complexity
from ..data.sources import Block, Source, source_of
from ..gaussians import nats_to_bits_per_dim
from ..model.memory import check_batch_size
from ..model.scorer import Scorer
from ..noise import keyed_noise, mix
from .conformal import conformal_p_values

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

EVALUATIONS = 32
TIMESTEPS = 8  # J, where there are evaluations for so many
MIN_EVALUATIONS = 2
MIN_IMAGES = 40  # half of them for a mean and a covariance of 9 features
MAX_LEARNED = 1000  # for these, which more make no better; calibration images are worth more
SMALLEST = 1e-6  # nats: terms below it are alike
FIT, SCORE, SPLIT = range(3)  # what the seed is mixed with


class Usual(NamedTuple):
    r"""What is usual for features: :math:`\mu` `(F,)`, :math:`\Sigma^{-1}` `(F, F)`, and mean and deviation of h."""

    mean: np.ndarray
    precision: np.ndarray
    hardness: float
    hardness_deviation: float

    def distance(self, features: "_Features") -> np.ndarray:
        r"""The scores of images, `(N,)`."""
        offset = features.phi - self.mean
        typicality = np.einsum("ni,ij,nj->n", offset, self.precision, offset)
        harder = np.maximum(features.hardness - self.hardness, 0) / self.hardness_deviation
        return typicality + 2 * math.sqrt(len(self.mean)) * harder**2


@dataclass(frozen=True, eq=False)
class Detector:
    r"""Scores images by how far they are from held-in ones; made by `fit_detector`.

    Args:
        scorer: the model.
        timesteps: J timesteps that are looked at, ascending.
        num_draws: evaluations at each of them.
        usual: what held-in images are like.
        calibration: scores of the calibration images, `(n,)`.
        fitted: hashes of the held-in images, calibration images among them.
        num_images: how many held-in images there were.
        seed: of the noise.
        batch_size: images per network call.
    """

    scorer: Scorer
    timesteps: list[int]
    num_draws: int
    usual: Usual
    calibration: np.ndarray
    fitted: frozenset[bytes]
    num_images: int
    seed: int
    batch_size: int

    def __call__(
        self, images: Any, class_labels: Any = None, step: Callable[[int], Any] = lambda count: None, **which: Any
    ) -> "Detection":
        r"""Score images.

        Args:
            images: as `evaluate`.
            class_labels: `(N,)`, for a class-conditional network.
            step: called with a number of network evaluations when they are done.
            which: `max_images` and `image_seed`, as `evaluate`.

        Raises:
            ValueError: images that do not fit the model; a network whose output is not finite.
        """
        source = source_of(images, self.scorer.network, self.scorer.num_pixel_levels, class_labels, **which)
        look = _Look(self.scorer, self.timesteps, self.num_draws, mix(self.seed, SCORE), self.batch_size)
        features = look.at(source, step)
        scores = self.usual.distance(features)
        num_fitted = sum(image in self.fitted for image in features.hashes)
        return Detection(scores, conformal_p_values(self.calibration, scores), source.about(features.numbers), num_fitted)


@dataclass(frozen=True, eq=False)
class Detection:
    r"""What a detector says of N images.

    Args:
        scores: `(N,)`; larger is more anomalous.
        p_values: `(N,)`: of a held-in image it is at most alpha with a probability of at most alpha.
        about: `image_numbers`, and `image_names` and `image_labels` where the data set has them, N each.
        num_fitted: how many of them are among the images that the detector was fitted to: their p-values mean nothing.
    """

    scores: np.ndarray
    p_values: np.ndarray
    about: dict[str, list]
    num_fitted: int


class _Features(NamedTuple):
    r"""Of N images: :math:`\phi` `(N, F)`, h `(N,)`, numbers `(N,)` and hashes."""

    phi: np.ndarray
    hardness: np.ndarray
    numbers: np.ndarray
    hashes: list[bytes]


def fit_detector(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    evaluations_per_image: int = EVALUATIONS,
    batch_size: int = 64,
    seed: int = 0,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
    num_inference_steps: int | None = None,
    step: Callable[[int], Any] = lambda count: None,
    **which: Any,
) -> Detector:
    r"""A detector of images that are not like `images`.

    Args:
        pipe: a `VLBDDPMPipeline`.
        images: held-in images, as `evaluate`; none that the network was trained on.
        evaluations_per_image: network evaluations of each image: a multiple of 8, or fewer.
        batch_size: images per network call; nothing depends on it, beyond rounding.
        seed: of the noise and of the choice of calibration images.
        class_labels: of a class-conditional network.
        num_inference_steps: of the K-step model in place of all steps.
        step: called with a number of network evaluations when they are done.
        which: `max_images` and `image_seed`, as `evaluate`.

    Raises:
        ValueError: too few images, or ones that do not fit the model; fewer steps than evaluations.
    """
    num_timesteps, num_draws = check_evaluations(evaluations_per_image)
    seed, scorer = check_seed(seed), pipe.scorer(num_inference_steps)
    batch_size = check_batch_size(batch_size, scorer.network)
    timesteps = _timesteps(scorer, num_timesteps)
    source = source_of(images, scorer.network, scorer.num_pixel_levels, class_labels, **which)
    if not source.is_stream:
        _check_num_images(min(len(source.images), source.max_images or len(source.images)))
    features = _Look(scorer, timesteps, num_draws, mix(seed, FIT), batch_size).at(source, step)
    count = _check_num_images(len(features.numbers))
    order = np.argsort([mix(mix(seed, SPLIT), number) for number in features.numbers.tolist()])
    learned, held_back = np.split(order, [min(count // 2, MAX_LEARNED)])
    usual = _usual(features.phi[learned], features.hardness[learned])
    calibration = usual.distance(features)[held_back]
    return Detector(scorer, timesteps, num_draws, usual, calibration, frozenset(features.hashes), count, seed, batch_size)


def check_evaluations(evaluations_per_image: int) -> tuple[int, int]:
    r"""Timesteps and draws at each of them, or `ValueError`."""
    evaluations = check_count("evaluations_per_image", evaluations_per_image)
    if evaluations < MIN_EVALUATIONS or evaluations > TIMESTEPS and evaluations % TIMESTEPS:
        raise ValueError(
            f"`evaluations_per_image` must lie in [{MIN_EVALUATIONS}, {TIMESTEPS}] or be a multiple of {TIMESTEPS},"
            f" got {evaluations}."
        )
    return min(evaluations, TIMESTEPS), max(1, evaluations // TIMESTEPS)


def _check_num_images(count: int) -> int:
    if count < MIN_IMAGES:
        raise ValueError(f"`fit` must have at least {MIN_IMAGES} images, got {count}.")
    return count


def _timesteps(scorer: Scorer, count: int) -> list[int]:
    r"""The lowest timestep, and others in equal steps of log-SNR."""
    forward = scorer.reverse.forward
    if len(forward) < count:
        raise ValueError(f"`evaluations_per_image` must be at most the {len(forward)} steps of the model, got {count}.")
    # A terminal SNR of zero has no logarithm.
    log_snr = forward.snr.clamp(min=1e-9).log()[1:]
    rows: list[int] = [0]
    for target in torch.linspace(log_snr[0].item(), log_snr[-1].item(), count - 1).tolist():
        # Each row once: the nearest of those that leave enough for the targets to come.
        left = count - 1 - len(rows)
        free = torch.arange(rows[-1] + 1, len(forward) - left)
        rows.append(int(free[(log_snr[free - 1] - target).abs().argmin()]))
    return forward.timesteps[rows].tolist()


@dataclass(frozen=True)
class _Look:
    r"""How features come from images."""

    scorer: Scorer
    timesteps: list[int]
    num_draws: int
    seed: int
    batch_size: int

    @torch.no_grad()
    def at(self, source: Source, step: Callable[[int], Any]) -> _Features:
        parts, hardness, numbers, hashes = [], [], [], []
        with self.scorer.network.evaluating():
            for block in source.blocks(self.batch_size):
                profile = self._profile(block)
                sizes = [complexity(levels, self.scorer.num_pixel_levels) for levels in block.levels]
                # Where no compressor takes such images there is no such column.
                size = np.empty((len(sizes), 0)) if None in sizes else np.array(sizes, dtype=np.float64)[:, None]
                parts.append(np.concatenate([profile, size], axis=1))
                hardness.append(profile.sum(axis=1))
                numbers.append(block.numbers)
                hashes += [sha256(levels.numpy().tobytes()).digest() for levels in block.levels]
                step(len(sizes) * len(self.timesteps) * self.num_draws)
        if not parts:
            raise ValueError("`images` must hold at least one image, got none.")
        return _Features(np.concatenate(parts), np.concatenate(hardness), np.concatenate(numbers), hashes)

    def _profile(self, block: Block) -> np.ndarray:
        r""":math:`\log L_t`, `(B, J)`."""
        scorer = self.scorer
        samples = scorer.samples(block.levels)
        labels = None if block.labels is None else block.labels.to(scorer.device)
        total = torch.zeros(len(samples), len(self.timesteps), dtype=torch.float64)
        for draw in range(self.num_draws):
            seeds = [mix(mix(self.seed, draw), number) for number in block.numbers.tolist()]
            noises = keyed_noise(seeds, self.timesteps, samples.shape[1:], samples.device)
            terms = [scorer.terms(samples, noise, t, labels) for t, noise in zip(self.timesteps, noises)]
            total += torch.stack(terms, dim=1).cpu().double()
        check_finite(nats_to_bits_per_dim(total, samples[0].numel()), self.timesteps, scorer.dtype)
        return (total / self.num_draws).clamp(min=SMALLEST).log().numpy()


def _usual(phi: np.ndarray, hardness: np.ndarray) -> Usual:
    count, size = phi.shape
    mean, spread = phi.mean(axis=0), phi.std(axis=0) + 1e-9
    correlation = np.cov((phi - mean) / spread, rowvar=False, bias=True)
    squares, trace = np.square(correlation).sum(), np.trace(correlation)
    distance = (count + 1 - 2 / size) * (squares - trace**2 / size)
    shrinkage = 1.0 if distance <= 0 else min(1.0, ((1 - 2 / size) * squares + trace**2) / distance)
    correlation = (1 - shrinkage) * correlation + shrinkage * trace / size * np.eye(size)
    precision = np.linalg.inv(correlation) / np.outer(spread, spread)
    return Usual(mean, precision, hardness.mean(), hardness.std() + 1e-9)
