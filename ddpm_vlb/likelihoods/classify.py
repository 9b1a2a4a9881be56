r"""Which class an image has: :math:`p(c | x) \propto \pi_c\, p(x | c)`, with the bound in the place of :math:`-\log p(x | c)`.

A class-conditional model is a classifier (Li et al. 2023; Clark & Jaini 2023). Its bounds of one image for all classes differ
by far less than each varies: they are estimated at the same timesteps with the same noise, and a class is dropped as soon as it
has lost (`sampled_bound/elimination.py`, where the level is derived). The first term of the bound, :math:`L_T`, is the same for
all classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..checks import NonFiniteOutput, check_count, check_integer
from ..gaussians import nats_to_bits_per_dim
from ..model.scorer import Scorer
from ..noise import draw_seeds, fresh_seed, keyed_normal, mix, mix_array, uniform_array
from ..outputs import Shown
from ..sampled_bound.design import bin_edges
from ..sampled_bound.elimination import Proposal, Race, learn, looks

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

PILOT_IMAGES = 16
SWEEPS = 100  # evaluations of each class at the most, where nothing is said
FRAME_VALUES = 20_000_000  # draws of classes that are kept at once
PILOT, RACE = range(2)  # what the seed is mixed with


@dataclass(repr=False)
class ClassifierOutput(Shown, BaseOutput):
    r"""
    What [`~VLBDDPMPipeline.classify`] says of N images and C classes.

    Args:
        labels (`torch.Tensor` of shape `(N,)`): The most probable class.
        probabilities (`torch.Tensor` of shape `(N, C)`): p(class | image) from the estimates and the prior.
        bits_per_dim (`torch.Tensor` of shape `(N, C)`): The estimated bound for each class, in bits/dim.
        monte_carlo_error (`torch.Tensor` of shape `(N, C)`): Standard error of its difference to the label's, bits/dim.
        decided (`torch.Tensor` of shape `(N,)`): Whether all other classes were dropped, at the confidence asked for.
        evaluations (`torch.Tensor` of shape `(N,)`): Network evaluations of each image.
        num_network_evaluations (`int`): Of all images, the pilot's included.
        config (`dict`): What was scored, and how.
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    bits_per_dim: torch.Tensor
    monte_carlo_error: torch.Tensor
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
) -> ClassifierOutput:
    r"""
    The class of each image, from the bounds that a class-conditional network gives it.

    Args:
        images:
            As [`~VLBDDPMPipeline.evaluate_nll`].
        classes (`list[int]`, *optional*):
            Those to choose from, in this order in what is returned; all of the network's by default. Leave a class out that
            stands for "no label", as networks trained for guidance have.
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

    Returns:
        [`ClassifierOutput`]: tensors on the CPU.

    Raises:
        ValueError: an unconditional network, fewer than two classes, classes that it has not or that are given twice, a prior
            that is none, images that do not fit, a network whose output is not finite.
    """
    scorer = pipe.scorer(num_inference_steps, inference_timesteps)
    chosen = check_classes(scorer.network.num_classes, classes)
    log_prior = check_prior(class_prior, len(chosen))
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1), got {confidence!r}.")
    batch_size = check_count("batch_size", batch_size)
    most = SWEEPS * len(chosen) if max_evaluations_per_image is None else max_evaluations_per_image
    if check_count("max_evaluations_per_image", most) < 2 * len(chosen):
        raise ValueError(f"`max_evaluations_per_image` must be at least two for each of the {len(chosen)} classes, got {most}.")
    levels, _ = scorer.read(images, chosen[0])
    config = scorer.config(
        classes=chosen,
        class_prior=np.exp(log_prior).tolist(),
        confidence=confidence,
        max_evaluations_per_image=most,
        seed=fresh_seed(generator),
        batch_size=batch_size,
    )
    (seed,) = draw_seeds(1, generator)
    asker = _Asker(scorer, levels, chosen, batch_size)
    with scorer.network.evaluating():
        proposal = asker.pilot(mix(seed, PILOT))
        draws = most // 2
        size = max(1, FRAME_VALUES // (len(chosen) * draws))
        parts = [
            asker.race(np.arange(start, min(start + size, len(levels))), proposal, mix(seed, RACE), log_prior, confidence, most)
            for start in range(0, len(levels), size)
        ]
    pipe.maybe_free_model_hooks()
    leader, nats, error, decided, evaluations = (np.concatenate(part) for part in zip(*parts))
    dimensions = levels[0].numel()
    logits = torch.from_numpy(log_prior - nats)
    shared = torch.cat([scorer.prior(scorer.samples(part)).cpu().double() for part in levels.split(1024)])
    return ClassifierOutput(
        labels=torch.tensor(chosen)[torch.from_numpy(leader)],
        probabilities=logits.softmax(dim=1),
        bits_per_dim=nats_to_bits_per_dim(shared[:, None] + torch.from_numpy(nats), dimensions),
        monte_carlo_error=nats_to_bits_per_dim(torch.from_numpy(error), dimensions),
        decided=torch.from_numpy(decided),
        evaluations=torch.from_numpy(evaluations),
        num_network_evaluations=asker.num_evaluations,
        config=config,
    )


def check_classes(num_classes: int | None, classes: Sequence[int] | None) -> list[int]:
    r"""The classes to choose from, or `ValueError`."""
    if num_classes is None:
        raise ValueError("`unet` must be class-conditional to classify by, got an unconditional network.")
    chosen = list(range(num_classes)) if classes is None else [check_integer("classes", one) for one in classes]
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


class _Asker:
    r"""Asks the network about images, rows and classes, and counts."""

    def __init__(self, scorer: Scorer, levels: torch.Tensor, classes: list[int], batch_size: int):
        self.scorer, self.levels, self.batch_size = scorer, levels, batch_size
        self.classes = torch.tensor(classes)
        self.num_evaluations = 0

    def terms(self, images: np.ndarray, rows: np.ndarray, keys: np.ndarray, active: np.ndarray) -> np.ndarray:
        r"""Terms of D draws in nats, `(D, C)`, NaN where a class is not `active` `(D, C)`.

        Args:
            images, rows, keys: of each draw, `(D,)`: which image, which row of the grid, and the key of its noise.
        """
        scorer, timesteps = self.scorer, self.scorer.reverse.forward.timesteps
        draws, classes = (torch.from_numpy(part) for part in np.nonzero(active))
        parts = []
        for chunk in torch.arange(len(draws)).split(self.batch_size):
            own, place = draws[chunk].unique_consecutive(return_inverse=True)
            noise = keyed_normal(keys[own.numpy()].tolist(), self.levels.shape[1:])
            samples = scorer.samples(self.levels[images[own.numpy()]])
            labels = self.classes[classes[chunk]].to(scorer.device)
            at = timesteps[rows[draws[chunk].numpy()]]
            nats = scorer.terms(samples[place.to(samples.device)], noise[place], at, labels).cpu().double()
            bad = (~torch.isfinite(nats)).nonzero().flatten()
            if len(bad):
                first = int(bad[0])
                raise NonFiniteOutput(
                    f"a term of {nats[first].item()} nats for class {int(labels[first])}",
                    image=int(images[draws[chunk[first]]]),
                    timestep=int(at[first]),
                    share=f"{len(bad)} of {len(nats)} terms are not finite",
                    dtype=scorer.dtype,
                )
            parts.append(nats)
        self.num_evaluations += len(draws)
        values = np.full(active.shape, np.nan)
        values[active] = torch.cat(parts).numpy()
        return values

    def pilot(self, key: int) -> Proposal:
        r"""One row of each bin for some of the images and all classes."""
        edges = bin_edges(len(self.scorer.timesteps))
        numbers = np.arange(len(self.levels))
        images = np.argsort(mix_array(key, numbers), kind="stable")[:PILOT_IMAGES]
        keys = mix_array(mix_array(key, images)[:, None], np.arange(len(edges) - 1))
        rows = edges[:-1] + (uniform_array(keys) * np.diff(edges)).astype(np.int64)
        active = np.ones((keys.size, len(self.classes)), dtype=bool)
        values = self.terms(images.repeat(len(edges) - 1), rows.ravel(), keys.ravel(), active)
        return learn(values.reshape(*keys.shape, -1), edges)

    def race(
        self, images: np.ndarray, proposal: Proposal, key: int, log_prior: np.ndarray, confidence: float, most: int
    ) -> tuple[np.ndarray, ...]:
        r"""Leaders, nats, errors, whether decided and evaluations of some images."""
        race = Race(log_prior, proposal.line, len(images), 1 - confidence)
        own, spent, done = mix_array(key, images), np.zeros(len(images), dtype=np.int64), 0
        for count in looks(most // 2):
            cost = race.active.sum(axis=1) * (count - done)
            going = np.flatnonzero(race.running & (spent + cost <= most))
            if not len(going):
                break
            rows = np.zeros((len(images), count - done), dtype=np.int64)
            rows[going] = proposal.rows(own[going], done, count)
            keys = mix_array(own[going][:, None], np.arange(done, count))
            active = race.active[going].repeat(count - done, axis=0)
            new = np.full((len(images), count - done, len(log_prior)), np.nan)
            nats = self.terms(images[going].repeat(count - done), rows[going].ravel(), keys.ravel(), active)
            new[going] = (nats / proposal.probabilities[rows[going].ravel()][:, None]).reshape(len(going), count - done, -1)
            spent[going] += cost[going]
            race.add(new, rows)
            done = count
        return (*race.result(), ~race.running, spent)
