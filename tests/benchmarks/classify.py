r"""Accuracy over network evaluations: fixed numbers of draws, stages (Li et al. 2023), and a sequential test, on one network.

    python tests/benchmarks/classify.py [--plot FILE]

The shipped class-conditional digits, 360 held-out images, 10 classes. "fixed" takes the class of the smallest mean over n draws
that all classes see, "stages" keeps half of the classes after 4 draws, two after 8 more and decides after n, both at timesteps
drawn evenly and once with the mean squared error of the noise, as published, once with the bound. "ours" is `classify` with
either score, whose pilot is counted. Each line is of one seed; how far another one moves it, two lines say. The last is how
often a decided label is that of nearly a full sweep.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.files import write_png
from ddpm_vlb.noise import keyed_normal, mix_array, uniform_array

ROOT = Path(__file__).parents[2]
DRAWS, CLASSES, SEEDS = 64, 10, 5
# Score, confidence, and evaluations of an image at the most.
SETTINGS = (
    ("bound", 0.05, 120),
    ("bound", 0.05, 300),
    ("bound", 0.3, 200),
    ("bound", 0.5, 400),
    ("bound", 0.95, 1000),
    ("simple", 0.05, 120),
    ("simple", 0.05, 300),
    ("simple", 0.3, 300),
    ("simple", 0.5, 400),
)


@torch.no_grad()
def table(pipe: VLBDDPMPipeline, levels: torch.Tensor, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of each image, draw and class: the bound's term times T, and the squared error of the noise; `(N, draws, C)`."""
    scorer = pipe.scorer()
    forward, count = scorer.reverse.forward, len(levels)
    keys = mix_array(mix_array(11 + 100 * seed, np.arange(count))[:, None], np.arange(draws))
    # Evenly over the timesteps, shifted at random for each image.
    places = (
        uniform_array(mix_array(12 + 100 * seed, np.arange(count)))[:, None] + np.arange(draws) * 0.6180339887498949
    ) % 1.0
    rows = (places * len(forward)).astype(np.int64)
    bound, simple = np.empty((count, draws, CLASSES)), np.empty((count, draws, CLASSES))
    with scorer.network.evaluating():
        for first in range(0, count, 4):
            some = np.arange(first, min(first + 4, count))
            images = some.repeat(draws)
            samples, noise = scorer.samples(levels[images]), keyed_normal(keys[some].ravel().tolist(), levels.shape[1:])
            t = forward.timesteps[rows[some].ravel()]
            noisy = forward.q_sample(samples, noise, t)
            snr = forward.snr[rows[some].ravel()]
            for label in range(CLASSES):
                labels = torch.full((len(t),), label)
                nats = scorer.terms(samples, noise, t, labels)
                bound[some, :, label] = (nats * len(forward)).reshape(len(some), draws).numpy()
                predicted, _ = scorer.reverse.predict(scorer.network(noisy, t, labels), noisy, t)
                error = (samples - predicted).square().flatten(1).sum(dim=1) * snr
                simple[some, :, label] = error.reshape(len(some), draws).numpy()
    return bound, simple


def stages(values: np.ndarray, last: int) -> tuple[np.ndarray, float]:
    """Labels, and evaluations of an image: half of the classes after 4 draws, two after 12, one after `last`."""
    count = values.shape[0]
    active = np.ones((count, CLASSES), dtype=bool)
    spent, done = 0, 0
    for draws, keep in ((4, CLASSES // 2), (12, 2), (last, 1)):
        spent += int(active[0].sum()) * (draws - done)
        means = np.where(active, values[:, :draws].mean(axis=1), np.inf)
        kept = means.argsort(axis=1)[:, :keep]
        active = np.zeros_like(active)
        np.put_along_axis(active, kept, True, axis=1)
        done = draws
    return active.argmax(axis=1), spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--checkpoint", default=ROOT / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits-class")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = VLBDDPMPipeline.from_pretrained(arguments.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    digits = load_images("digits", "test")
    truth = digits.labels.numpy()
    bound, simple = table(pipe, digits.images)
    print(f"digits, {len(truth)} test images, {CLASSES} classes; network evaluations of an image, and accuracy")
    curves: dict[str, list[tuple[float, float]]] = {}

    def show(name: str, evaluations: float, labels: np.ndarray, more: str = "") -> None:
        accuracy = float((labels == truth).mean())
        curves.setdefault(name, []).append((evaluations, accuracy))
        print(f"  {name:34}{evaluations:8.1f}{accuracy:10.4f}{more}", flush=True)

    for draws in (4, 8, 16, 32, DRAWS):
        show("fixed, squared error", CLASSES * draws, simple[:, :draws].mean(axis=1).argmin(axis=1))
    for draws in (4, 8, 16, 32, DRAWS):
        show("fixed, bound", CLASSES * draws, bound[:, :draws].mean(axis=1).argmin(axis=1))
    for last in (16, 32, DRAWS):
        labels, spent = stages(simple, last)
        show("stages, squared error", spent, labels)
    for last in (16, 32, DRAWS):
        labels, spent = stages(bound, last)
        show("stages, bound", spent, labels)
    # What a full sweep would say, nearly: other noise, until next to nothing is in doubt.
    options = {"batch_size": 128, "confidence": 1 - 1e-6, "max_evaluations_per_image": 1500}
    out = pipe.classify(digits.images, generator=torch.Generator().manual_seed(1), **options)
    full = out.labels.numpy()
    show("ours, nearly a full sweep", out.num_network_evaluations / len(truth), full)
    agreed = []
    for score, confidence, most in SETTINGS:
        out = pipe.classify(
            digits.images,
            score=score,
            confidence=confidence,
            max_evaluations_per_image=most,
            batch_size=128,
            generator=torch.Generator().manual_seed(0),
        )
        own, decided = out.labels.numpy(), out.decided.numpy()
        name = "ours, bound" if score == "bound" else "ours, squared error"
        show(name, out.num_network_evaluations / len(truth), own, f"  confidence {confidence}, at most {most}")
        if score == "bound":
            agreed.append(f"{int((own == full)[decided].sum())} of {int(decided.sum())} at {confidence}")
    chance = [table(pipe, digits.images, 8, seed) for seed in range(SEEDS)]
    for which, values in zip(("bound", "squared error"), zip(*chance)):
        right = sorted(float((one.mean(axis=1).argmin(axis=1) == truth).mean()) for one in values)
        print(f"  fixed, {which}, {8 * CLASSES} evaluations, {SEEDS} seeds: {right[0]:.4f} to {right[-1]:.4f}", flush=True)
    print(f"  decided, and as nearly a full sweep has it: {'; '.join(agreed)}")
    if arguments.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for name, points in curves.items():
            if "nearly" in name:
                axes.axhline(points[0][1], linestyle=":", color="grey", label="the bound's full sweep, nearly")
                continue
            axes.plot(*zip(*sorted(points)), "o-", label=name, linewidth=2.5 if name.startswith("ours") else 1.2)
        axes.set(xscale="log", xlabel="network evaluations of an image", ylabel="accuracy", title="digits, 10 classes")
        axes.grid(alpha=0.3)
        axes.legend()
        write_png(arguments.plot, figure)


if __name__ == "__main__":
    main()
