r"""How well images that do not belong are found: `python tests/benchmarks/detect.py [--mnist IDX_FILE] [--others DATASET]`.

For the shipped checkpoints and images that they were not trained on. A detector is fitted to some of them and scores others,
and images of kinds that are known to be hard, which a model can find likelier than its data, or of another data set. Three
scores are compared by the area under their ROC curve, the first two from twice as many evaluations: the total, the total less
the compressed size, and ours.

Then the false alarms at alpha = 0.05, of all images, with few evaluations of each: each half is scored by a detector that was
fitted to the other. Of MNIST's halves they are counted beside where such a count lies in 95 of 100 cases if the calibration
images are drawn anew as well, and of both together beside the interval at a rate of 5 %. (Where by chance one half's scores are
larger, fewer of the other are flagged and more of its own: with nearly all images of a half for calibration, and two
detectors that are much alike, the sum varies less than a count of independent images.) The digits are few, and are cut into
halves again and again.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, stats
from sklearn.datasets import load_sample_images

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import Transform, load_images
from ddpm_vlb.data.complexity import complexity
from ddpm_vlb.evaluation import fit_detector
from ddpm_vlb.evaluation.conformal import area_under_roc

CHECKPOINTS = Path(__file__).parents[2] / "spaces_demo" / "checkpoints"
ALPHA, EVALUATIONS, TOTAL_EVALUATIONS, ALARM_EVALUATIONS = 0.05, 32, 64, 4


def kinds(images: torch.Tensor, num_levels: int) -> dict[str, torch.Tensor]:
    """Images that do not belong, made from some that do, from nothing, or from photographs."""
    rng, count, side = np.random.default_rng(0), len(images), images.shape[-1]
    blurred = np.stack([ndimage.gaussian_filter(rng.standard_normal((side, side)), side / 7) for _ in range(count)])
    blurred -= blurred.min(axis=(1, 2), keepdims=True)
    blurred /= blurred.max(axis=(1, 2), keepdims=True)
    levels = {
        "of one colour": np.broadcast_to(rng.integers(0, num_levels, (count, 1, 1, 1)), images.shape),
        "inverted": (num_levels - 1) - images.numpy(),
        "smooth": np.round(blurred * (num_levels - 1))[:, None],
        "noise": rng.integers(0, num_levels, images.shape),
        "photographs": np.round(patches(rng, count, side) / 255 * (num_levels - 1)),
        "half as bright": images.numpy() // 2,
        "upside down": images.numpy()[:, :, ::-1],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values).astype(np.uint8)) for name, values in levels.items()}


def patches(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """Grey patches of scikit-learn's two photographs, `(count, 1, side, side)`."""
    photographs = [np.asarray(Image.fromarray(one).convert("L").reduce(3)) for one in load_sample_images().images]
    chosen = [photographs[number % 2] for number in range(count)]
    corners = [[rng.integers(0, size - side + 1) for size in one.shape] for one in chosen]
    return np.stack([one[top : top + side, left : left + side] for one, (top, left) in zip(chosen, corners)])[:, None]


def enlarged(count: int, side: int) -> torch.Tensor:
    """Digits of scikit-learn's 8 x 8 pixels in the middle of so many, as MNIST's are: 20 x 20, and a margin."""
    small = load_images("digits", "test", max_images=count).images.numpy()[:, 0]
    inner, margin = 20 * side // 28, 4 * side // 28
    large = [np.asarray(Image.fromarray(np.round(one / 16 * 255).astype(np.uint8)).resize((inner, inner), 2)) for one in small]
    return torch.from_numpy(np.pad(np.stack(large), ((0, 0), (margin, margin), (margin, margin))))[:, None]


def totals(pipe: VLBDDPMPipeline, levels: torch.Tensor) -> np.ndarray:
    """Bits/dim of each image."""
    how = {"method": "sampled", "evaluations_per_image": TOTAL_EVALUATIONS, "generator": torch.Generator().manual_seed(0)}
    return pipe.evaluate_nll(levels, **how).bits_per_dim.numpy()


def areas(pipe: VLBDDPMPipeline, images: torch.Tensor, num_fit: int, num_each: int, more: dict[str, torch.Tensor]) -> None:
    levels = pipe.scheduler.config.num_pixel_levels
    start = time.process_time()
    detector = fit_detector(pipe, images[:num_fit], evaluations_per_image=EVALUATIONS)
    others = images[num_fit:][:num_each]
    held_out = detector(others)
    cost = 1e3 * (time.process_time() - start) / (num_fit + len(others))
    plain = totals(pipe, others)
    size = np.array([complexity(image, levels) for image in others])
    print(f"{num_fit:,} images to fit, {len(others):,} others, as many of each kind (or what there are); evaluations an image:")
    print(f"{EVALUATIONS}, of the totals {TOTAL_EVALUATIONS} and a pilot; {cost:.0f} ms of CPU time an image")
    print(f"{'AUROC':18}{'total':>10}{'less size':>12}{'detect':>10}{'found at 0.05':>16}")
    for kind, made in (kinds(others, levels) | more).items():
        found, their = detector(made), totals(pipe, made)
        sizes = np.array([complexity(image, levels) for image in made])
        pairs = ((plain, their), (plain - size, their - sizes), (held_out.scores, found.scores))
        own = [area_under_roc(np.r_[a, b], np.arange(len(a) + len(b)) >= len(a)) for a, b in pairs]
        share = (found.p_values <= ALPHA).mean()
        print(f"{kind:18}{own[0]:10.4f}{own[1]:12.4f}{own[2]:10.4f}{share:16.1%}", flush=True)


def false_alarms(pipe: VLBDDPMPipeline, images: torch.Tensor) -> None:
    halves, alarms = images.tensor_split(2), []
    for fit, scored in (halves, halves[::-1]):
        detector = fit_detector(pipe, fit, evaluations_per_image=ALARM_EVALUATIONS)
        alarms.append(int((detector(scored).p_values <= ALPHA).sum()))
        n = len(detector.calibration)
        rank = int(ALPHA * (n + 1))
        least, most = stats.betabinom.ppf([0.025, 0.975], len(scored), rank, n + 1 - rank)
        print(
            f"false alarms at {ALPHA}, {ALARM_EVALUATIONS} evaluations an image: {alarms[-1]} of {len(scored):,},"
            f" {alarms[-1] / len(scored):.2%};"
        )
        print(f"  {least:.0f} to {most:.0f} with {n:,} calibration images drawn anew (95 %)", flush=True)
    low, high = stats.binom.ppf([0.025, 0.975], len(images), ALPHA)
    share = sum(alarms) / len(images)
    print(f"of both halves {sum(alarms)} of {len(images):,}, {share:.2%}; {low:.0f} to {high:.0f} at a rate of 5 %")


def false_alarms_of_splits(pipe: VLBDDPMPipeline, images: torch.Tensor, num_splits: int) -> None:
    shares = []
    for seed in range(num_splits):
        halves = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))].tensor_split(2)
        alarms = 0
        for fit, scored in (halves, halves[::-1]):
            detector = fit_detector(pipe, fit, evaluations_per_image=ALARM_EVALUATIONS, seed=seed)
            alarms += int((detector(scored).p_values <= ALPHA).sum())
        shares.append(alarms / len(images))
    most = int(ALPHA * (len(detector.calibration) + 1)) / (len(detector.calibration) + 1)
    print(
        f"false alarms at {ALPHA}, {ALARM_EVALUATIONS} evaluations an image, halves cut {num_splits} times:"
        f" {np.mean(shares):.2%} (error {np.std(shares, ddof=1) / num_splits**0.5:.2%}),"
    )
    print(f"  {min(shares):.2%} to {max(shares):.2%}; {most:.2%} expected of {len(detector.calibration)} calibration images")


def table(name: str, images: torch.Tensor, num_fit: int, num_each: int, more: dict[str, torch.Tensor]) -> None:
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}")
    pipe.set_progress_bar_config(disable=True)
    print(f"{name}: {len(images):,} images that it was not trained on")
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    areas(pipe, images, num_fit, num_each, more)
    if len(images) < 1000:
        false_alarms_of_splits(pipe, images, 16)
    else:
        false_alarms(pipe, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="t10k-images-idx3-ubyte.gz")
    parser.add_argument("--num-mnist", type=int, default=10_000, help="of its images")
    parser.add_argument("--others", type=Path, help="images of another data set, which are made grey and as small as MNIST's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table("digits", load_images("digits", "test").images, 240, 120, {})
    if arguments.mnist is not None:
        mnist = load_images(arguments.mnist, max_images=arguments.num_mnist).images
        more = {"digits, enlarged": enlarged(80, mnist.shape[-1])}
        if arguments.others is not None:
            transform = Transform("L", mnist.shape[-1], mnist.shape[-1])
            more[arguments.others.stem[:17]] = load_images(arguments.others, max_images=80, transform=transform).images
        table("mnist", mnist, 400, 80, more)


if __name__ == "__main__":
    main()
