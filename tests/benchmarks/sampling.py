r"""Evaluations that an error takes, and the time of one: `python tests/benchmarks/sampling.py [--mnist IDX_FILE]`.

For the shipped checkpoints, how many network evaluations of the data set bring the Monte Carlo error down to a target:

- uniform t: an image, t and noise at random for each evaluation;
- importance: t with probability proportional to the root of E[L_t^2] (Improved DDPM), that root being known beforehand;
- strata: one evaluation in each of as many equal parts of the distribution by standard deviations, for each image, the same
  number for every image;
- ours: `ddpm_vlb.evaluation.evaluate`, its pilot included, over several seeds.

The first three are computed from a table of evaluations (every image of a sample at one random t of each bin, several times),
granting them what they would have to find out. Ours is run, and the spread of its results over seeds is compared with the error
that it claims. Then the time of a batch: the network's bare forward against what the evaluation does with it.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from sweep import Nothing

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import evaluate
from ddpm_vlb.noise import mix
from ddpm_vlb.sampled_bound.design import bin_edges
from ddpm_vlb.sampled_bound.draw_scorer import DrawScorer
from ddpm_vlb.sampled_bound.draws import Draws

CHECKPOINTS = Path(__file__).parents[2] / "spaces_demo" / "checkpoints"
TARGET = 0.0051  # +- 0.01 at 95 %
BUDGETS = {"digits": 4200, "mnist": 1700}


def table(pipe, levels: torch.Tensor, images: int, repeats: int) -> tuple[np.ndarray, torch.Tensor]:
    """Edges of bins, and terms in bits/dim at a random t of each: (images, bins, repeats)."""
    chosen = torch.randperm(len(levels), generator=torch.Generator().manual_seed(1))[:images]
    places = np.arange(images)
    scorer = DrawScorer([pipe.scorer()], levels[chosen], places, places, 0)
    edges = bin_edges(scorer.num_steps)
    bins = len(edges) - 1
    random = np.random.default_rng(0)
    shape = (images, bins, repeats)
    rows = edges[:-1, None] + (random.random(shape) * np.diff(edges)[:, None]).astype(np.int64)
    where = np.broadcast_to(places[:, None, None], shape)
    draws = Draws(where.reshape(-1), rows.reshape(-1), random.integers(2**63, size=shape).astype(np.uint64).reshape(-1))
    with pipe.network.evaluating():
        values = torch.cat([scorer(batch)[0] for batch in scorer.batches(draws, 256)])
    return edges, values.reshape(shape)


def others(edges: np.ndarray, values: torch.Tensor, num_images: int) -> dict[str, float]:
    """Evaluations for the target of the three estimators that know their distribution beforehand."""
    widths = torch.as_tensor(np.diff(edges)).double()
    second = values.square().mean(dim=(0, 2))
    total = (widths * values.mean(dim=(0, 2))).sum()
    uniform = (widths.sum() * widths * second).sum() - total**2
    importance = (widths * second.sqrt()).sum() ** 2 - total**2
    # Given the image, the variance that is left in each bin; between images nothing is left, as every image is evaluated.
    inside = values.var(dim=2).mean(dim=0).sqrt()
    strata = (widths * inside).sum() ** 2
    needed = {name: v.item() / TARGET**2 for name, v in (("uniform t", uniform), ("importance", importance))}
    needed["strata"] = max(1, math.ceil(strata.item() / TARGET**2 / num_images)) * num_images
    return needed


def ours(pipe, images, seeds: int, **rules) -> list[dict]:
    """Reports over seeds."""
    return [evaluate(pipe, images, seed=mix(7, seed) % 2**63, quiet=True, **rules) for seed in range(seeds)]


def summary(reports: list[dict]) -> str:
    """The evaluations that were made, all counted, and what they brought."""
    values = [report["bits_per_dim"] for report in reports]
    claimed = math.sqrt(statistics.mean(report["monte_carlo_error"] ** 2 for report in reports))
    made = sorted(report["num_network_evaluations"] for report in reports)
    doubted = sum(report["doubt"] is not None for report in reports)
    return (
        f"mean {statistics.mean(values):.4f}, spread {statistics.stdev(values):.4f}, claimed error {claimed:.4f};"
        f" {made[0]:,} to {made[-1]:,} evaluations; {doubted} of {len(reports)} in doubt"
    )


def efficiency(name: str, images, seeds: int) -> None:
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}")
    levels = images.images
    needed = others(*table(pipe, levels, min(len(levels), 360), 4 if name == "digits" else 2), len(levels))
    reports = ours(pipe, images, seeds, target_se=TARGET)
    needed["ours"] = statistics.mean(report["num_network_evaluations"] for report in reports)
    steps = pipe.scheduler.config.num_train_timesteps
    print(f"{name}: {len(levels)} test images, T = {steps}; network evaluations for a Monte Carlo error of {TARGET} bits/dim")
    print(f"  full sweep      {len(levels) * steps:12,}")
    for method, count in needed.items():
        print(f"  {method:15} {round(count):12,}  ratio to ours {count / needed['ours']:.1f}")
    print(f"  ours to the target, {seeds} seeds: {summary(reports)}")
    print(f"  ours within so many, {seeds} seeds: {summary(ours(pipe, images, seeds, max_evaluations=BUDGETS[name]))}")


@torch.inference_mode()
def throughput(name: str, images, rounds: int, batch_size: int) -> None:
    """Time of a batch, bare and in an evaluation; then the network in other clothes."""
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}")
    pipe.unet.eval()
    levels = images.images[:batch_size].repeat(math.ceil(batch_size / len(images.images)), 1, 1, 1)[:batch_size]
    places = np.arange(batch_size)
    random = np.random.default_rng(0)
    steps = pipe.scheduler.config.num_train_timesteps
    keys = random.integers(2**63, size=batch_size).astype(np.uint64)
    draws = Draws(places, random.integers(steps, size=batch_size), keys)
    latents, timesteps = torch.randn(levels.shape), torch.as_tensor(draws.rows)
    variants = {"float32": copy.deepcopy(pipe.unet)}
    variants["channels_last"] = copy.deepcopy(pipe.unet).to(memory_format=torch.channels_last)
    variants["bfloat16"] = copy.deepcopy(pipe.unet).to(torch.bfloat16)
    compiled = copy.deepcopy(pipe.unet)
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            compiled.compile()
            compiled(latents, timesteps)
            variants["compiled"] = compiled
        except Exception as error:  # no compiler on this machine, of which torch has several ways to complain
            print(f"  (not compiled here: {type(error).__name__})")

    def timed(run) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    seconds = {variant: [] for variant in (*variants, "evaluation")}
    scorer = DrawScorer([pipe.scorer()], levels, places, places, 0)
    runs = {variant: lambda u=unet: u(latents.to(u.dtype), timesteps) for variant, unet in variants.items()}
    runs["evaluation"] = lambda: scorer(draws)
    for turn in range(rounds + 1):
        for variant in list(runs)[:: 1 if turn % 2 else -1]:
            spent = timed(runs[variant])
            if turn:
                seconds[variant].append(spent)
    bare = statistics.median(seconds["float32"])
    each = 1e3 * bare / batch_size
    print(f"{name}, batches of {batch_size}: bare forward {each:.2f} ms of CPU time an evaluation; ratios to it")
    network = scorer.scorers[0].network.with_module(Nothing(pipe.unet))
    scorer.scorers = (dataclasses.replace(scorer.scorers[0], network=network),)
    alone = statistics.median(timed(runs["evaluation"]) for _ in range(rounds))
    print(f"  the evaluation's own work, timed alone: {alone / bare:.1%} of a forward")
    for variant in list(seconds)[1:]:
        ratio = statistics.median(b / a for a, b in zip(seconds["float32"], seconds[variant]))
        print(f"  {variant:15} {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="t10k-images-idx3-ubyte.gz")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = {"digits": load_images("digits", "test")}
    if arguments.mnist is not None:
        sets["mnist"] = load_images(arguments.mnist)
    for name, images in sets.items():
        efficiency(name, images, arguments.seeds)
    for name, images in sets.items():
        throughput(name, images, arguments.rounds, 128)


if __name__ == "__main__":
    main()
