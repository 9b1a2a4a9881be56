r"""Time of `VLBDDPMScheduler.step` against `DDPMScheduler.step`, side by side in one process."""

import argparse
import statistics
import time

import torch
from diffusers import DDPMScheduler

from ddpm_vlb import VLBDDPMScheduler

CONFIGURATIONS = {
    "epsilon, fixed_small": {},
    "epsilon, learned_range": {"variance_type": "learned_range"},
    "v_prediction, fixed_large": {"prediction_type": "v_prediction", "variance_type": "fixed_large"},
}


def seconds_per_step(scheduler_class, config, model_output, sample, set_timesteps=True) -> float:
    scheduler = scheduler_class(**config)
    start = time.perf_counter()
    if set_timesteps:
        scheduler.set_timesteps(1000)  # as before every run, with nothing left from the run before
    timesteps = list(scheduler.timesteps)
    for timestep in timesteps:
        scheduler.step(model_output, timestep, sample)
    return (time.perf_counter() - start) / len(timesteps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("one CPU thread, 1 x 3 x 32 x 32, 1000 steps a round, fresh schedulers; medians over rounds in turn")
    cases = [(name, config, True) for name, config in CONFIGURATIONS.items()]
    # The stock `step` looks its timestep up only after `set_timesteps`; without it, it is cheaper.
    cases += [(f"{name}, no set_timesteps", config, False) for name, config in CONFIGURATIONS.items()]
    for name, config, set_timesteps in cases:
        sample = torch.randn(1, 3, 32, 32)
        model_output = torch.randn(1, 6 if config.get("variance_type") == "learned_range" else 3, 32, 32)
        classes = DDPMScheduler, VLBDDPMScheduler
        rounds = [
            [seconds_per_step(c, config, model_output, sample, set_timesteps) for c in classes]
            for _ in range(arguments.rounds + 1)
        ]
        rounds = rounds[1:]  # less the warm-up
        stock, ours = (1e6 * statistics.median(column) for column in zip(*rounds))
        ratio = statistics.median(b / a for a, b in rounds)
        print(f"{name:44} stock {stock:6.1f} us   ours {ours:6.1f} us   ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
