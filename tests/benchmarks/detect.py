r"""How well images that do not belong are found: `python tests/benchmarks/detect.py [--mnist IDX_FILE]`.

For the shipped checkpoints, whose held-out images are cut in two at random: a detector is fitted to one part and scores the
other, and images of kinds that are known to be hard, which a model can find likelier than its data. Three scores are compared
by the area under their ROC curve, the first two from twice as many evaluations: the total, the total less the compressed size,
and ours. Then the false alarms at alpha = 0.05, beside where a count of so many images lies in 95 of 100 cases if the rate is
5 %, and where it lies if the calibration images are drawn anew as well.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage, stats

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.data.complexity import complexity
from ddpm_vlb.evaluation import fit_detector
from ddpm_vlb.evaluation.conformal import area_under_roc

CHECKPOINTS = Path(__file__).parents[2] / "spaces_demo" / "checkpoints"
ALPHA, EVALUATIONS, TOTAL_EVALUATIONS = 0.05, 32, 64


def kinds(images: torch.Tensor, num_levels: int) -> dict[str, torch.Tensor]:
    """Images that do not belong, made from some that do or from nothing."""
    rng, count, side = np.random.default_rng(0), len(images), images.shape[-1]
    blurred = np.stack([ndimage.gaussian_filter(rng.standard_normal((side, side)), side / 7) for _ in range(count)])
    blurred -= blurred.min(axis=(1, 2), keepdims=True)
    blurred /= blurred.max(axis=(1, 2), keepdims=True)
    levels = {
        "of one colour": np.broadcast_to(rng.integers(0, num_levels, (count, 1, 1, 1)), images.shape),
        "inverted": (num_levels - 1) - images.numpy(),
        "smooth": np.round(blurred * (num_levels - 1))[:, None],
        "noise": rng.integers(0, num_levels, images.shape),
        "half as bright": images.numpy() // 2,
        "upside down": images.numpy()[:, :, ::-1],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values).astype(np.uint8)) for name, values in levels.items()}


def totals(pipe: VLBDDPMPipeline, levels: torch.Tensor) -> np.ndarray:
    """Bits/dim of each image."""
    how = {"method": "sampled", "evaluations_per_image": TOTAL_EVALUATIONS, "generator": torch.Generator().manual_seed(0)}
    return pipe.evaluate_nll(levels, **how).bits_per_dim.numpy()


def table(name: str, images: torch.Tensor, num_fit: int, num_each: int) -> None:
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}")
    pipe.set_progress_bar_config(disable=True)
    levels = pipe.scheduler.config.num_pixel_levels
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    start = time.process_time()
    detector = fit_detector(pipe, images[:num_fit], evaluations_per_image=EVALUATIONS)
    held_out = detector(images[num_fit:])
    seconds = time.process_time() - start
    others = images[num_fit:][:num_each]
    plain = totals(pipe, others)
    size = np.array([complexity(image, levels) for image in others])
    num_scored, cost = len(images) - num_fit, 1e3 * seconds / len(images)
    print(f"{name}: {num_fit:,} images to fit, {num_scored:,} scored, {num_each} of each kind; evaluations an image:")
    print(f"{EVALUATIONS}, of the totals {TOTAL_EVALUATIONS} and a pilot; {cost:.0f} ms of CPU time an image")
    print(f"{'AUROC':18}{'total':>10}{'less size':>12}{'detect':>10}{'found at 0.05':>16}")
    for kind, made in kinds(others, levels).items():
        found, their = detector(made), totals(pipe, made)
        sizes = np.array([complexity(image, levels) for image in made])
        pairs = ((plain, their), (plain - size, their - sizes), (held_out.scores, found.scores))
        areas = [area_under_roc(np.r_[a, b], np.arange(len(a) + len(b)) >= len(a)) for a, b in pairs]
        share = (found.p_values <= ALPHA).mean()
        print(f"{kind:18}{areas[0]:10.4f}{areas[1]:12.4f}{areas[2]:10.4f}{share:16.1%}", flush=True)
    count, alarms, n = len(held_out.scores), int((held_out.p_values <= ALPHA).sum()), len(detector.calibration)
    rank = int(ALPHA * (n + 1))
    low, high = stats.binom.ppf([0.025, 0.975], count, ALPHA)
    least, most = stats.betabinom.ppf([0.025, 0.975], count, rank, n + 1 - rank)
    print(f"false alarms at 0.05: {alarms} of {count:,}, {alarms / count:.2%}; {low:.0f} to {high:.0f} at a rate of 5 %, and")
    print(f"{least:.0f} to {most:.0f} with {n:,} calibration images drawn anew (95 %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="t10k-images-idx3-ubyte.gz")
    parser.add_argument("--num-mnist", type=int, default=10_000, help="of its images, half of them to fit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table("digits", load_images("digits", "test").images, 240, 100)
    if arguments.mnist is not None:
        mnist = load_images(arguments.mnist, max_images=arguments.num_mnist).images
        table("mnist", mnist, len(mnist) // 2, 100)


if __name__ == "__main__":
    main()
