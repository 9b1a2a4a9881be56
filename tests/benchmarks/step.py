r"""Time of `VLBDDPMScheduler.step` against `DDPMScheduler.step`, side by side in one process; then what `return_log_prob=True`
costs, beside the bare steps and beside the network's evaluation without which there is none.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler

CHECKPOINTS = Path(__file__).parents[2] / "spaces_demo" / "checkpoints"

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


@torch.no_grad()
def log_probabilities(name: str, batch_size: int, rounds: int) -> None:
    """A step of sampling from a shipped checkpoint, its parts timed in turn: CPU time, medians."""
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}")
    unet, scheduler = pipe.unet.eval(), pipe.scheduler
    scheduler.set_timesteps(50)
    timestep = int(scheduler.timesteps[25])
    sample = torch.randn(batch_size, *pipe.network.image_shape)
    model_output = unet(sample, timestep).sample
    plain = DDPMScheduler.from_config(scheduler.config)
    plain.set_timesteps(50)
    parts = {
        "network": lambda: unet(sample, timestep),
        "stock": lambda: [plain.step(model_output, timestep, sample) for _ in range(20)],
        "step": lambda: [scheduler.step(model_output, timestep, sample) for _ in range(20)],
        "both": lambda: [scheduler.step(model_output, timestep, sample, return_log_prob=True) for _ in range(20)],
    }
    spent: dict[str, list[float]] = {part: [] for part in parts}
    for turn in range(rounds + 1):
        for part, run in parts.items():
            start = time.process_time()
            run()
            if turn:
                spent[part].append((time.process_time() - start) / (1 if part == "network" else 20))
    network, stock, step, both = (1e6 * statistics.median(spent[part]) for part in parts)
    shape = " x ".join(map(str, sample.shape))
    print(
        f"{name + ', ' + shape:26} network {network:8.0f} us   step: stock {stock:6.1f} us, ours {step:6.1f} us, with it"
        f" {both:6.1f} us: {(both - step) / (network + step):.1%} of network and step"
    )


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
    print("with return_log_prob=True (it), shipped checkpoints: CPU time")
    for name, batch_size in (("digits", 1), ("digits", 64), ("mnist", 1), ("mnist", 64)):
        log_probabilities(name, batch_size, arguments.rounds)


if __name__ == "__main__":
    main()
