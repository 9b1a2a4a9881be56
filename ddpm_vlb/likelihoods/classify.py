r"""Which class an image has: :math:`p(c | x) \propto \pi_c\, p(x | c)`, with the bound in the place of :math:`-\log p(x | c)`.

A class-conditional model is a classifier (Li et al. 2023; Clark & Jaini 2023). Its bounds of one image for all classes differ
by far less than each varies: they are estimated at the same timesteps with the same noise, and a class is dropped as soon as it
has lost (`sampled_bound/elimination.py`, where the level is derived). The first term of the bound, :math:`L_T`, is the same for
all classes.

With `score="simple"` the classes race by :math:`\frac{1}{K} \sum_t E \|\epsilon - \hat\epsilon(x_t, c)\|^2` instead, the sum
of squared errors of the noise averaged over the timesteps, as Li et al. have it. That is no likelihood: its probabilities are
those of a softmax, and it has no bits/dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..checks import NonFiniteOutput, check_count, check_integer
from ..gaussians import nats_to_bits_per_dim
from ..model.memory import check_batch_size
from ..model.scorer import Scorer
from ..noise import draw_seeds, fresh_seed, keyed_normal, mix, mix_array, to_device, uniform_array
from ..outputs import Shown
from ..sampled_bound.design import bin_edges
from ..sampled_bound.elimination import Proposal, Race, learn, looks

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

PILOT_IMAGES, PILOT_CLASSES = 8, 16  # at most
SWEEPS = 100  # evaluations of each class at the most, where nothing is said
FRAME_VALUES = 20_000_000  # draws of classes that are kept at once
PILOT, RACE = range(2)  # what the seed is mixed with
SCORES = ("bound", "simple")


@dataclass(repr=False)
class ClassifierOutput(Shown, BaseOutput):
    r"""
    What [`~VLBDDPMPipeline.classify`] says of N images and C classes.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): The most probable class.
        probabilities (`torch.Tensor` of shape `(N, C)`): p(class | image) from the estimates and the prior.
        bits_per_dim (`torch.Tensor` of shape `(N, C)`): The estimated bound for each class, in bits/dim; `None` with
            `score="simple"`.
        monte_carlo_error (`torch.Tensor` of shape `(N, C)`): Standard error of its difference to the label's, bits/dim; `None`
            with `score="simple"`.
        decided (`torch.Tensor` of shape `(N,)`): Whether all other classes were dropped, at the confidence asked for.
        evaluations (`torch.Tensor` of shape `(N,)`): Network evaluations of each image.
        num_network_evaluations (`int`): Of all images, the pilot's included.
        config (`dict`): What was scored, and how.
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    bits_per_dim: torch.Tensor | None
    monte_carlo_error: torch.Tensor | None
    decided: torch.Tensor
    evaluations: torch.Tensor
    num_network_evaluations: int
    config: dict[str, Any]

    def _head(self) -> dict[str, Any]:
        count = len(self.labels)
        return {"images": count, "decided": int(self.decided.sum()), "network evaluations": self.num_network_evaluations}

    def _details(self) -> dict[str, Any]:
        return {"evaluations of an image": self.evaluations.double().mean().item()}

    def _columns(self) -> dict[str, Any]:
        own = self.probabilities.max(dim=1).values
        names = ("labels", "decided", "evaluations")
        return {"image": range(len(self.labels)), **{name: self[name] for name in names}, "probability": own}


@torch.no_grad()
def classify(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    classes: Sequence[int] | None = None,
    class_prior: Sequence[float] | torch.Tensor | None = None,
    confidence: float = 0.95,
    max_evaluations_per_image: int | None = None,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    num_inference_steps: int | None = None,
    inference_timesteps: Sequence[int] | None = None,
    score: str = "bound",
    callback_on_look: "Callable[[Raced], Any] | None" = None,
) -> ClassifierOutput:
    r"""
    The class of each image, from the bounds that a class-conditional network gives it.

    Args:
        images:
            As [`~VLBDDPMPipeline.evaluate_nll`].
        classes (`list[int]`, *optional*):
            Those to choose from, in this order in what is returned; all of the network's by default, but for the one that
            stands for "no label" where the scheduler's `unlabelled_class` names it.
        class_prior (`list[float]`, *optional*):
            Probabilities of `classes`; equal ones by default.
        confidence (`float`, defaults to 0.95):
            Of all images, at most a share of 1 - confidence is expected to be `decided` for another class than the full
            sweep's.
        max_evaluations_per_image (`int`, *optional*):
            Where to stop undecided; 100 for each class by default.
        batch_size (`int`, defaults to 64):
            Evaluations per network call; they mix images, classes and timesteps. Nothing depends on it beyond rounding.
        generator (`torch.Generator`, *optional*):
            Makes the result reproducible.
        num_inference_steps (`int`, *optional*), inference_timesteps (`list[int]`, *optional*):
            Of the K-step model, as [`~VLBDDPMPipeline.evaluate_nll`].
        score (`str`, defaults to `"bound"`):
            `"simple"` compares squared errors of the noise instead, for comparison with others' numbers.
        callback_on_look (`Callable`, *optional*):
            Called with a [`Raced`] after each look at some of the images: what is known of them so far.

    Returns:
        [`ClassifierOutput`]: tensors on the CPU.

    Raises:
        ValueError: an unconditional network, fewer than two classes, classes that it has not or that are given twice, a prior
            that is none, images that do not fit, a network whose output is not finite.
    """
    options = {
        "classes": classes,
        "class_prior": class_prior,
        "confidence": confidence,
        "max_evaluations_per_image": max_evaluations_per_image,
        "batch_size": batch_size,
        "score": score,
    }
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    unlabelled = pipe.scheduler.config.get("unlabelled_class")
    classifier = Classifier.of(scorer, unlabelled_class=unlabelled, **options)
    levels, _ = scorer.read(images, classifier.classes[0])
    config = classifier.config(seed=fresh_seed(generator))
    (seed,) = draw_seeds(1, generator)
    with scorer.network.evaluating():
        numbers = np.arange(len(levels))
        chosen = classifier.pilot_images(numbers, seed)
        pilot = classifier.pilot(levels[torch.from_numpy(chosen)], chosen, seed)
        raced = classifier.race(levels, numbers, classifier.proposal(pilot), seed, callback_on_look)
    pipe.maybe_free_model_hooks()
    shared = torch.cat([scorer.prior(scorer.samples(part)).cpu().double() for part in levels.split(1024)])
    evaluations = torch.from_numpy(raced.evaluations)
    bits = {
        "bits_per_dim": shared[:, None] + torch.from_numpy(raced.nats),
        "monte_carlo_error": torch.from_numpy(raced.error),
    }
    return ClassifierOutput(
        labels=torch.from_numpy(raced.labels),
        probabilities=torch.from_numpy(raced.probabilities),
        **{name: nats_to_bits_per_dim(x, levels[0].numel()) if score == "bound" else None for name, x in bits.items()},
        decided=torch.from_numpy(raced.decided),
        evaluations=evaluations,
        num_network_evaluations=pilot.size + int(evaluations.sum()),
        config=config,
    )


def check_classes(num_classes: int | None, classes: Sequence[int] | None, unlabelled: int | None = None) -> list[int]:
    r"""The classes to choose from, all but the `unlabelled` one by default, or `ValueError`."""
    if num_classes is None:
        raise ValueError("`unet` must be class-conditional to classify by, got an unconditional network.")
    if classes is None:
        chosen = [one for one in range(num_classes) if one != unlabelled]
    else:
        chosen = [check_integer("classes", one) for one in classes]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not all(0 <= one < num_classes for one in chosen):
        raise ValueError(f"`classes` must be at least two different ones in [0, {num_classes}), got {chosen}.")
    return chosen


def check_prior(prior: Sequence[float] | torch.Tensor | None, count: int) -> np.ndarray:
    r"""The logarithms of the classes' probabilities `(C,)`, or `ValueError`."""
    if prior is None:
        return np.full(count, -np.log(count))
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (count,) or not (values > 0).all() or abs(values.sum() - 1) > 1e-6:
        raise ValueError(
            f"`class_prior` must be {count} positive probabilities that sum to 1, got shape {values.shape} and sum"
            f" {values.sum():.6g}."
        )
    return np.log(values)


class Raced(NamedTuple):
    r"""N images after the race of C classes.

    Args:
        labels: `(N,)`, the class itself.
        probabilities: `(N, C)`.
        nats: estimates of what is compared, `(N, C)`, and the standard `error` of their differences to the label's.
        decided, evaluations: `(N,)`.
        racing: whether a class has not been dropped, `(N, C)`.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    nats: np.ndarray
    error: np.ndarray
    decided: np.ndarray
    evaluations: np.ndarray
    racing: np.ndarray


@dataclass(frozen=True, eq=False)
class Classifier:
    r"""Asks the network about images, rows and classes. What is drawn for an image is keyed by (seed, its number) alone.

    Args:
        scorer: the model.
        classes: to choose from.
        log_prior: their :math:`\log \pi_c`, `(C,)`.
        confidence, max_evaluations_per_image, batch_size, score: as `classify`.
    """

    scorer: Scorer
    classes: list[int]
    log_prior: np.ndarray
    confidence: float
    max_evaluations_per_image: int
    batch_size: int
    score: str

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        *,
        unlabelled_class: int | None = None,
        classes: Sequence[int] | None = None,
        class_prior: Sequence[float] | torch.Tensor | None = None,
        confidence: float = 0.95,
        max_evaluations_per_image: int | None = None,
        batch_size: int = 64,
        score: str = "bound",
    ) -> "Classifier":
        r"""With the arguments of `classify`, or `ValueError`."""
        chosen = check_classes(scorer.network.num_classes, classes, unlabelled_class)
        log_prior = check_prior(class_prior, len(chosen))
        if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
            raise ValueError(f"`confidence` must lie in (0, 1), got {confidence!r}.")
        if score not in SCORES:
            raise ValueError(f"`score` must be 'bound' or 'simple', got {score!r}.")
        batch_size = check_batch_size(batch_size, scorer.network)
        most = SWEEPS * len(chosen) if max_evaluations_per_image is None else max_evaluations_per_image
        if check_count("max_evaluations_per_image", most) < 2 * len(chosen):
            raise ValueError(
                f"`max_evaluations_per_image` must be at least two for each of the {len(chosen)} classes, got {most}."
            )
        return cls(scorer, chosen, log_prior, confidence, most, batch_size, score)

    def config(self, **more: Any) -> dict[str, Any]:
        r"""What a report says of it."""
        own = {"classes": self.classes, "class_prior": np.exp(self.log_prior).tolist()}
        own |= {name: getattr(self, name) for name in ("confidence", "max_evaluations_per_image", "batch_size", "score")}
        return self.scorer.config(**own, **more)

    def pilot_images(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        r"""Which of the images with these numbers the pilot is of."""
        return numbers[np.argsort(mix_array(mix(seed, PILOT), numbers), kind="stable")[:PILOT_IMAGES]]

    def pilot(self, levels: torch.Tensor, numbers: np.ndarray, seed: int) -> np.ndarray:
        r"""Terms at one row of each bin for some images and classes, `(N, bins, classes)`: all classes, if they are few."""
        edges = bin_edges(len(self.scorer.timesteps))
        keys = mix_array(mix_array(mix(seed, PILOT), numbers)[:, None], np.arange(len(edges) - 1))
        rows = edges[:-1] + (uniform_array(keys) * np.diff(edges)).astype(np.int64)
        count = len(self.classes)
        some = np.sort(np.argsort(mix_array(mix(seed, PILOT), np.arange(count)), kind="stable")[:PILOT_CLASSES])
        active = np.isin(np.arange(count), some)[None].repeat(keys.size, axis=0)
        own = np.arange(len(numbers)).repeat(len(edges) - 1)
        values = self._terms(levels, numbers, own, rows.ravel(), keys.ravel(), active)
        return values[:, some].reshape(*keys.shape, -1)

    def proposal(self, pilot: np.ndarray) -> Proposal:
        r"""Where to draw, after a pilot."""
        return learn(pilot, bin_edges(len(self.scorer.timesteps)))

    def race(
        self,
        levels: torch.Tensor,
        numbers: np.ndarray,
        proposal: Proposal,
        seed: int,
        callback_on_look: Callable[[Raced], Any] | None = None,
    ) -> Raced:
        r"""The race of all classes for images with these numbers.

        Args:
            levels: of the images, `(N, C, H, W)`.
            numbers: `(N,)`.
            proposal: where to draw.
            seed: of all that is drawn.
            callback_on_look: as `classify`.
        """
        size = max(1, FRAME_VALUES // (len(self.classes) * (self.max_evaluations_per_image // 2)))
        parts = [
            self._race(levels[first : first + size], numbers[first : first + size], proposal, seed, callback_on_look)
            for first in range(0, len(levels), size)
        ]
        return Raced(*(np.concatenate(part) for part in zip(*parts)))

    def _race(self, levels, numbers, proposal: Proposal, seed: int, callback_on_look) -> Raced:
        count, most = len(numbers), self.max_evaluations_per_image
        race = Race(self.log_prior, proposal.line, count, 1 - self.confidence)
        own, spent, done = mix_array(mix(seed, RACE), numbers), np.zeros(count, dtype=np.int64), 0
        for draws in looks(most // 2):
            cost = race.active.sum(axis=1) * (draws - done)
            going = np.flatnonzero(race.running & (spent + cost <= most))
            if not len(going):
                break
            rows = np.zeros((count, draws - done), dtype=np.int64)
            rows[going] = proposal.rows(own[going], done, draws)
            keys = mix_array(own[going][:, None], np.arange(done, draws))
            active = race.active[going].repeat(draws - done, axis=0)
            at = rows[going].ravel()
            nats = self._terms(levels, numbers, going.repeat(draws - done), at, keys.ravel(), active)
            new = np.full((count, draws - done, len(self.classes)), np.nan)
            new[going] = (nats / proposal.probabilities[at][:, None]).reshape(len(going), draws - done, -1)
            spent[going] += cost[going]
            race.add(new, rows)
            done = draws
            if callback_on_look is not None:
                callback_on_look(self._raced(race, spent))
        return self._raced(race, spent)

    def _raced(self, race: Race, spent: np.ndarray) -> Raced:
        leader, nats, error = race.result()
        probabilities = torch.from_numpy(self.log_prior - nats).softmax(dim=1).numpy()
        labels = np.array(self.classes)[leader]
        return Raced(labels, probabilities, nats, error, ~race.running, spent.copy(), race.active.copy())

    def _terms(
        self,
        levels: torch.Tensor,
        numbers: np.ndarray,
        images: np.ndarray,
        rows: np.ndarray,
        keys: np.ndarray,
        active: np.ndarray,
    ) -> np.ndarray:
        r"""Terms of D draws, `(D, C)`, NaN where a class is not `active` `(D, C)`.

        Args:
            levels, numbers: of the images.
            images, rows, keys: of each draw, `(D,)`: which of them, which row of the grid, and the key of its noise.
        """
        scorer, timesteps = self.scorer, self.scorer.reverse.forward.timesteps
        draws, classes = (torch.from_numpy(part) for part in np.nonzero(active))
        chosen, parts = torch.tensor(self.classes), []
        ask = scorer.terms if self.score == "bound" else scorer.squared_errors
        for chunk in torch.arange(len(draws)).split(self.batch_size):
            own, place = draws[chunk].unique_consecutive(return_inverse=True)
            noise = keyed_normal(keys[own.numpy()], levels.shape[1:], scorer.device)
            samples = scorer.samples(levels[images[own.numpy()]])
            labels = to_device(chosen[classes[chunk]], scorer.device)
            at = timesteps[rows[draws[chunk].numpy()]]
            place = to_device(place, scorer.device)
            parts.append(ask(samples[place], noise[place], at, labels))
        # One wait for the device, for all batches.
        nats = torch.cat(parts).cpu().double()
        bad = (~torch.isfinite(nats)).nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            draw = int(draws[first])
            raise NonFiniteOutput(
                f"a term of {nats[first].item()} nats for class {self.classes[int(classes[first])]}",
                image=int(numbers[images[draw]]),
                timestep=int(timesteps[rows[draw]]),
                share=f"{len(bad)} of {len(nats)} terms are not finite",
                dtype=scorer.dtype,
            )
        values = np.full(active.shape, np.nan)
        values[active] = nats.numpy()
        # The squared errors' mean over the rows, as a sum of terms.
        return values if self.score == "bound" else values / len(timesteps)
