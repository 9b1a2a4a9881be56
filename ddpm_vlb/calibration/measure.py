r"""Calibration: better variances, a better decoder and better sub-schedules for the weights that are there.

The network is looked at once: some images at some timesteps, with what the images are known to be. From that come, timestep by
timestep, the model of its error (`error_model.py`, fitted in `fits.py`), the cost of steps of any length, and the cost of
decoding from there; then the best chain of every number of steps (`sub_schedules.py`). No weight is changed. The images must
not be those that are reported on, and had better be none that the network was trained on: of those it remembers some, and the
error on them is too small.

**Checked step by step.** Numbers fitted to one half of the images are compared on the other half with two simpler ones: the
variances as they were, and one variance for all pixels. The best of the three is then fitted to all images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..checks import NonFiniteOutput, check_count, check_seed
from ..data.frame import BLOCK, read_images
from ..data.sources import Source, source_of
from ..error_model import features_of, step_costs
from ..gaussians import discretized_gaussian_log_likelihood
from ..model.memory import check_batch_size
from ..model.scorer import Scorer
from ..noise import keyed_normal, mix, mix_array
from ..outputs import Shown
from ..progress import progress_bar
from .fits import fit_decoder, fit_errors
from .stored import FORMAT, MADE_FOR, NUMBERS, Calibration, log_snr

if TYPE_CHECKING:
    from ..pipeline_vlb_ddpm import VLBDDPMPipeline

NUM_TIMESTEPS = 32
EVALUATIONS = 8192
MIN_IMAGES = 16
NUM_LENGTHS = 48
# Variances are fitted for steps that raise the SNR by this factor.
STEP_FACTOR = math.e**2
DECODER_PIXELS = 2**16
DIGITS = 5  # of the numbers in a configuration
# Among numbers of steps whose bounds differ by less than this, in bits/dim, the smallest is taken.
TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class CalibrationResult(Shown):
    r"""What `calibrate` found.

    Args:
        scheduler: the pipeline's, with the calibration in its configuration: `pipe.scheduler = result.scheduler` applies it.
        bits_per_dim: the bound of the best model of K = 1, 2, ... steps, as far as the images of the calibration tell,
            `(T,)`, and its standard error over images, `standard_error`.
        timesteps: of the chain with the best number of steps, strictly descending.
        mean_squared_errors, decoder_costs: at each timestep that was measured, :math:`E \|x - \hat x\|^2 / D`, and what it
            costs to decode from there in bits/dim; their standard errors over draws, `mean_squared_errors_standard_error` and
            `decoder_costs_standard_error`.
        kinds: what was chosen there, `"plain"`, `"one variance"` or `"by pixel"`.
        num_network_evaluations: made.
    """

    scheduler: Any
    bits_per_dim: np.ndarray
    standard_error: np.ndarray
    timesteps: list[int]
    mean_squared_errors: np.ndarray
    mean_squared_errors_standard_error: np.ndarray
    decoder_costs: np.ndarray
    decoder_costs_standard_error: np.ndarray
    kinds: list[str]
    num_network_evaluations: int

    def _head(self) -> dict[str, Any]:
        best = len(self.timesteps)
        return {
            "best steps": f"{best} of {len(self.bits_per_dim)}",
            "bits/dim": float(self.bits_per_dim[best - 1]),
            "standard error": float(self.standard_error[best - 1]),
            "network evaluations": self.num_network_evaluations,
        }

    def _details(self) -> dict[str, Any]:
        return {f"variances, {kind}": self.kinds.count(kind) for kind in sorted(set(self.kinds))}

    def _columns(self) -> dict[str, Any]:
        steps = range(1, len(self.bits_per_dim) + 1)
        return {"num_inference_steps": steps, "bits_per_dim": self.bits_per_dim, "standard_error": self.standard_error}


class _Draws(NamedTuple):
    r"""What is looked at at each timestep: N images, their classes, the keys of their noise, and to which half they belong."""

    levels: torch.Tensor
    labels: torch.Tensor | None
    keys: np.ndarray
    half: torch.Tensor
    num_images: int


class _Look(NamedTuple):
    r"""The network at one timestep: `(N, D)` each, float64."""

    samples: torch.Tensor
    predictions: torch.Tensor
    squared_errors: torch.Tensor
    learned_errors: torch.Tensor | None


class _Fit(NamedTuple):
    r"""At one timestep: the numbers, how they were found, and costs of each draw in nats per dimension."""

    numbers: list[float]
    kind: str
    mean_squares: torch.Tensor  # (N,)
    steps: torch.Tensor  # (N, R)
    decoder: torch.Tensor  # (N,)


@torch.no_grad()
def calibrate(
    pipe: "VLBDDPMPipeline",
    images: Any,
    *,
    num_timesteps: int = NUM_TIMESTEPS,
    evaluations: int = EVALUATIONS,
    target_se: float | None = None,
    max_images: int | None = None,
    image_seed: int | None = None,
    batch_size: int | str = 64,
    seed: int = 0,
    class_labels: int | Sequence[int] | torch.Tensor | None = None,
    quiet: bool = False,
    dataset: str | None = None,
    split: str | None = None,
) -> CalibrationResult:
    r"""Measure what the network's predictions are off by, and choose variances, decoder and sub-schedules by it.

    Args:
        pipe: a `VLBDDPMPipeline`; left as it is.
        images: as `evaluation.evaluate`; best such that the network was not trained on, and not those that are reported on.
        num_timesteps: how many timesteps to look at, evenly spaced over the log-SNR; all T where there are fewer.
        evaluations: of the network, in all.
        target_se: refuse a calibration whose best bound has a larger standard error over its images, in bits/dim.
        max_images: the first so many images only.
        image_seed: takes `max_images` at random instead, by this seed alone.
        batch_size: images per network call.
        seed: of the choice of images and of the noise.
        class_labels: as `evaluate_nll`.
        quiet: no progress bar.
        dataset, split: what the images are, for those who read the calibration.

    Raises:
        ValueError: fewer than 16 images, or too few evaluations or images for `target_se`; images off the model's grid; a model
            that cannot be scored; a network whose output is not finite.
    """
    evaluations = check_count("evaluations", evaluations)
    max_images = None if max_images is None else check_count("max_images", max_images)
    num_timesteps = check_count("num_timesteps", num_timesteps)
    if num_timesteps < 2:
        raise ValueError(f"`num_timesteps` must be at least 2, got {num_timesteps}.")
    if target_se is not None and not 0 < target_se < math.inf:
        raise ValueError(f"`target_se` must be a positive number of bits/dim, got {target_se!r}.")
    seed = check_seed(seed)
    for name, value in (("dataset", dataset), ("split", split)):
        if not isinstance(value, str | None):
            raise ValueError(f"`{name}` must be a name, got {value!r}.")
    scorer = pipe.scorer(calibrated=False)
    batch_size = check_batch_size(batch_size, scorer.network)
    forward = scorer.reverse.forward
    knots = _knots(log_snr(forward), num_timesteps)
    count = evaluations // len(knots)
    if count < MIN_IMAGES:
        raise ValueError(
            f"`evaluations` must be at least {MIN_IMAGES * len(knots)}, {MIN_IMAGES} at each of {len(knots)} timesteps, got"
            f" {evaluations}."
        )
    which: dict[str, Any] = {"max_images": max_images, "image_seed": image_seed}
    source = source_of(images, scorer.network, scorer.num_pixel_levels, class_labels, **which)
    draws = _draw_images(source, count, seed)
    deltas = _deltas(forward.snr.numpy())
    fits = []
    scorer = replace(scorer, reverse=replace(scorer.reverse, trained=forward))
    with scorer.network.evaluating(), progress_bar(count * len(knots), disable=quiet, unit="evaluation") as bar:
        for knot in knots:
            fits.append(_fit(scorer, _look(scorer, draws, knot, batch_size, bar.update), knot, draws.half, deltas))
    pipe.maybe_free_model_hooks()
    config = {
        "format": FORMAT,
        "timesteps": knots,
        "log_snr": rounded(log_snr(forward)[knots]),
        **{name: rounded([fit.numbers[place] for fit in fits]) for place, name in enumerate(NUMBERS)},
        "decoder_costs": rounded([fit.decoder.mean().item() for fit in fits]),
        "deltas": deltas,
        "step_costs": [rounded(fit.steps.mean(dim=0).clamp(min=1e-12)) for fit in fits],
        "mean_square": rounded([scorer.samples(draws.levels).cpu().double().square().mean().item()])[0],
        "num_inference_steps": 1,
        "architecture_sha256": scorer.network.architecture_sha256,
        "network_sha256": scorer.network.sha256(),
        **{name: pipe.scheduler.config[name] for name in MADE_FOR},
        "num_images": draws.num_images,
        "num_network_evaluations": count * len(knots),
        "seed": seed,
        **({} if dataset is None and split is None else {"dataset": dataset, "split": split}),
        **source.settings,
        **({} if image_seed is None else {"max_images": max_images}),
    }
    calibration = Calibration(config, forward)
    schedules = calibration.sub_schedules(len(forward))
    bits = schedules.costs / math.log(2)
    errors = _standard_errors(calibration, fits, schedules, draws.num_images) / math.log(2)
    best = config["num_inference_steps"] = int(np.argmax(bits <= bits.min() + TOLERANCE)) + 1
    if target_se is not None and errors[best - 1] > target_se:
        needed = math.ceil(draws.num_images * (errors[best - 1] / target_se) ** 2)
        raise ValueError(
            f"`images` must be about {needed}, and `evaluations` {needed * len(knots)}, for a standard error of {target_se}"
            f" bits/dim, got {errors[best - 1]:.2g} from {draws.num_images} images and {count * len(knots)} evaluations."
        )
    squares = np.stack([fit.mean_squares.numpy() for fit in fits])
    decoders = np.stack([fit.decoder.numpy() for fit in fits]) / math.log(2)
    return CalibrationResult(
        scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config, calibration=config),
        bits_per_dim=bits,
        standard_error=errors,
        timesteps=schedules.timesteps(best),
        mean_squared_errors=squares.mean(axis=1),
        mean_squared_errors_standard_error=squares.std(axis=1, ddof=1) / math.sqrt(count),
        decoder_costs=decoders.mean(axis=1),
        decoder_costs_standard_error=decoders.std(axis=1, ddof=1) / math.sqrt(count),
        kinds=[fit.kind for fit in fits],
        num_network_evaluations=count * len(knots),
    )


def _draw_images(source: Source, count: int, seed: int) -> _Draws:
    r"""As many images as are looked at at each timestep, drawn at random; where there are fewer, again and again."""
    read = read_images(source.blocks(BLOCK), None, seed, buffer_bytes=0, at_least=count)
    numbers = read.numbers[read.frame]
    order = np.argsort(mix_array(mix(seed, 1), numbers), kind="stable")[:count]
    if len(order) < MIN_IMAGES:
        raise ValueError(f"`images` must be at least {MIN_IMAGES} for a calibration, got {len(order)}.")
    place = np.arange(count)
    chosen = torch.as_tensor(order[place % len(order)])
    return _Draws(
        levels=read.levels[chosen],
        labels=None if read.labels is None else read.labels[chosen],
        keys=mix_array(mix_array(mix(seed, 2), numbers[chosen]), place),
        # Images, not draws, are in one half or the other.
        half=torch.as_tensor(place % len(order) % 2 == 0),
        num_images=len(order),
    )


def _knots(positions: np.ndarray, count: int) -> list[int]:
    r"""Timesteps as evenly spaced over the log-SNR as there are, the first and the last among them."""
    if len(positions) <= count:
        return list(range(len(positions)))
    # Nothing in the very first and last bits of noise is worth a gap elsewhere: steps of zero SNR lie at a limit.
    inside = np.clip(positions, -12.0, 12.0)
    wanted = np.linspace(inside[0], inside[-1], count)
    nearest = {int(np.abs(inside - position).argmin()) for position in wanted}
    return sorted(nearest | {0, len(positions) - 1})


def _deltas(snr: np.ndarray) -> list[float]:
    r"""Lengths of steps, from the shortest of the chain to the longest."""
    gaps = snr[:-1] - snr[1:]
    if not len(gaps):
        return [1.0]
    # Of two steps there is one length.
    return sorted(set(rounded(np.geomspace(gaps[gaps > 0].min(), snr[0] - snr[-1], NUM_LENGTHS))))


def rounded(values: Sequence[float] | torch.Tensor | np.ndarray) -> list[float]:
    r"""Numbers `(N,)` with as many digits as a configuration keeps."""
    return [float(f"{float(value):.{DIGITS}g}") for value in values]


def _look(scorer: Scorer, draws: _Draws, timestep: int, batch_size: int, progress: Callable) -> _Look:
    r"""What the network predicts for noised images, under noise of its own at each timestep."""
    parts: list[list[torch.Tensor]] = [[], [], []]
    reverse = scorer.reverse
    for rows in torch.arange(len(draws.levels)).split(batch_size):
        samples = scorer.samples(draws.levels[rows])
        keys = mix_array(draws.keys[rows.numpy()], timestep)
        noise = keyed_normal(keys, samples.shape[1:], scorer.device)
        noisy = reverse.forward.q_sample(samples, noise, timestep)
        output = scorer.network(noisy, timestep, None if draws.labels is None else draws.labels[rows])
        prediction, _ = reverse.predict(output, noisy, timestep)
        errors = reverse.learned_errors(reverse.check_model_output(output, noisy)[1], timestep)
        for part, values in zip(parts, (samples, prediction, errors)):
            if values is not None:
                part.append(values.flatten(1).cpu().double())
        progress(len(rows))
    samples, predictions = torch.cat(parts[0]), torch.cat(parts[1])
    # Of an output that is not finite every prediction is NaN.
    if not bool(torch.isfinite(predictions).all()):
        raise NonFiniteOutput("others", timestep=timestep, dtype=scorer.dtype)
    return _Look(samples, predictions, (samples - predictions).square(), torch.cat(parts[2]) if parts[2] else None)


def _fit(scorer: Scorer, look: _Look, timestep: int, half: torch.Tensor, deltas: Sequence[float]) -> _Fit:
    r"""The numbers at one timestep."""
    reverse, snr = scorer.reverse, scorer.reverse.forward.snr
    features, squares = features_of(look.predictions, look.learned_errors), look.squared_errors
    # A step of this length; from zero SNR, one to the next timestep.
    delta = max((STEP_FACTOR - 1) * snr[timestep].item(), (snr[timestep - 1] - snr[timestep]).item() if timestep else 0.0)
    numbers = reverse.variance.error_numbers(reverse.forward.one_minus_alphas_cumprod[timestep].item())
    plain = torch.tensor(numbers[: len(features)], dtype=torch.float64)

    def one_variance(rows) -> torch.Tensor:
        return torch.cat([squares[rows].mean()[None], torch.zeros(len(features) - 1, dtype=torch.float64)])

    kinds: dict[str, Callable[[Any], torch.Tensor]] = {
        "plain": lambda rows: plain,
        "one variance": one_variance,
        "by pixel": lambda rows: fit_errors(features[:, rows], squares[rows], delta),
    }

    def cost(values: torch.Tensor, rows) -> float:
        errors = torch.tensordot(values, features[:, rows], dims=1)
        return step_costs(errors, squares[rows], torch.tensor([delta])).mean().item()

    checked = {kind: cost(fit(half), ~half) + cost(fit(~half), half) for kind, fit in kinds.items()}
    kind = min(checked, key=lambda kind: checked[kind])
    numbers = kinds[kind](slice(None))
    chosen = torch.linspace(0, squares.numel() - 1, min(DECODER_PIXELS, squares.numel())).long()
    decoder = fit_decoder(
        features.flatten(1)[:, chosen],
        look.samples.flatten()[chosen],
        look.predictions.flatten()[chosen],
        scorer.num_pixel_levels,
        numbers if bool(numbers.any()) else one_variance(slice(None)),
    )
    decoder_nats = -discretized_gaussian_log_likelihood(
        look.samples,
        mean=look.predictions,
        log_variance=torch.tensordot(decoder, features, dims=1).log(),
        num_pixel_levels=scorer.num_pixel_levels,
        validate_args=False,
    )
    unused = [0.0] * (3 - len(features))
    return _Fit(
        numbers=[*numbers.tolist(), *unused, *decoder.tolist(), *unused],
        kind=kind,
        mean_squares=squares.mean(dim=1),
        steps=step_costs(torch.tensordot(numbers, features, dims=1), squares, torch.tensor(deltas, dtype=torch.float64)),
        decoder=decoder_nats.mean(dim=1),
    )


def _standard_errors(calibration: Calibration, fits: list[_Fit], schedules, num_images: int) -> np.ndarray:
    r"""The standard errors over images of the best chains' bounds, in nats per dimension, `(T,)`."""
    positions, knots = log_snr(calibration.trained), calibration.config["timesteps"]
    deltas, snr = np.log(calibration.config["deltas"]), calibration.trained.snr.numpy()
    weights = np.zeros((len(schedules.costs), len(knots), len(deltas) + 1))  # the last is the decoder's
    for row in range(len(schedules.costs)):
        chain = np.array(schedules.timesteps(row + 1))
        place, share = _between(-positions[chain], -positions[knots])
        lower = np.log(snr[chain[1:]] - snr[chain[:-1]])
        length, part = _between(lower, deltas)
        for near, weight in ((0, 1 - share), (1, share)):
            weights[row, min(place[-1] + near, len(knots) - 1), -1] += weight[-1]
            for far, fraction in ((0, 1 - part), (1, part)):
                where = (np.minimum(place[:-1] + near, len(knots) - 1), np.minimum(length + far, len(deltas) - 1))
                np.add.at(weights[row], where, weight[:-1] * fraction)
    costs = np.stack([np.column_stack([fit.steps.numpy(), fit.decoder.numpy()]) for fit in fits], axis=1)
    totals = costs.reshape(len(costs), -1) @ weights.reshape(len(weights), -1).T
    image = np.arange(len(totals)) % num_images
    means = np.stack([totals[image == number].mean(axis=0) for number in range(num_images)])
    return means.std(axis=0, ddof=1) / math.sqrt(num_images)


def _between(values: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""For each value the place in an ascending grid below it, and how far it is on the way to the next, in [0, 1]."""
    if len(grid) == 1:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
    place = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    return place, np.clip((values - grid[place]) / (grid[place + 1] - grid[place]), 0.0, 1.0)
