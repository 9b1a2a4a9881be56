r"""What the estimator's intervals are worth where losses are hard: spikes in time, images unlike all others, heavy tails.

A line for each world: how often the interval of 95 % covers the truth, how often the estimate says that it
cannot be trusted, how often neither holds, the bias in true standard deviations, the claimed error beside the true one, and the
evaluations. Seeds are others than those with which the estimator's constants were chosen, and so are the worlds of the second
part: nothing was chosen by them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers")]

from hard_worlds import FRESH, WORLDS  # noqa: E402

FIRST_SEED = 10**6


def study(world, rules, repetitions: int) -> list[str]:
    r"""The cells of a world's line."""
    truth = world.bounds.mean()
    rules = {name: value * truth if name == "target_se" else value for name, value in rules.items()}
    estimates = [world.estimate(seed, **rules) for seed in range(FIRST_SEED, FIRST_SEED + repetitions)]
    difference = np.array([one.bits_per_dim for one in estimates]) - truth
    error = np.array([one.monte_carlo_error for one in estimates])
    quantile = stats.t.ppf(0.975, [one.degrees_of_freedom for one in estimates])
    missed = np.abs(difference) > quantile * error
    doubted = np.array([one.doubt is not None for one in estimates])
    spread = difference.std()
    return [
        f"{1 - missed.mean():.3f}",
        f"{doubted.mean():.3f}",
        f"{(missed & ~doubted).mean():.3f}",
        f"{difference.mean() / spread:+.2f}" if spread else "0",
        f"{np.sqrt((error**2).mean()) / spread:.2f}" if spread else "-",
        f"{np.mean([one.num_evaluations for one in estimates]):.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--only", default="", help="worlds whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.repetitions} repetitions of each")
    columns = ("covers", "in doubt", "misses unsaid", "bias / sd", "claimed / true", "evaluations")
    print(f"{'':52}{''.join(f'{column:>16}' for column in columns)}")
    for worlds in (WORLDS, FRESH):
        for name, (make, rules) in worlds.items():
            if arguments.only in name:
                cells = study(make(), rules, arguments.repetitions)
                print(f"{name:52}{''.join(f'{cell:>16}' for cell in cells)}", flush=True)
        print()


if __name__ == "__main__":
    main()
