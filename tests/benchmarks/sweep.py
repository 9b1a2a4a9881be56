r"""Time of evaluations against as many bare network forwards: `python tests/benchmarks/sweep.py`.

Of the full sweep of `evaluate_nll`, and of a whole sampled evaluation, pilot, choice of draws, report and all. The ratio of two
nearly equal times is as uncertain as the machine is noisy. The own work is therefore also timed alone, with a network that does
nothing.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch
from cost import CHECKPOINTS, COMMON, common_network
from diffusers import UNet2DModel

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import evaluate

# name: channels, side, batch size, block_out_channels, variance type, steps
CASES = {
    "1 x 8 x 8, batch 64": (1, 8, 64, (32, 64), "fixed_small", 100),
    "1 x 8 x 8, batch 64, learned range": (1, 8, 64, (32, 64), "learned_range", 100),
    "3 x 32 x 32, batch 16": (3, 32, 16, (32, 64), "fixed_small", 15),
    "3 x 32 x 32, batch 16, learned range": (3, 32, 16, (32, 64), "learned_range", 15),
}


# name: batch size, evaluations, rounds: one of the large network takes two minutes
WHOLE = {"the shipped digits, 360 images": (64, 5000, 9), "32 pixels, as google/ddpm-cifar10-32": (64, 256, 2)}


def build(channels, side, widths, variance_type, steps) -> VLBDDPMPipeline:
    unet = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels * (2 if variance_type == "learned_range" else 1),
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    pipe = VLBDDPMPipeline(unet, VLBDDPMScheduler(steps, variance_type=variance_type))
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Nothing(torch.nn.Module):
    """Costs nothing, and gives what a network gives."""

    def __init__(self, unet):
        super().__init__()
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self.repeats = unet.config.out_channels // unet.config.in_channels

    def forward(self, sample, timestep):
        return SimpleNamespace(sample=sample.repeat(1, self.repeats, 1, 1))


@torch.inference_mode()  # as evaluations are, which saves some of a small network's time
def bare(pipe, shape, steps) -> float:
    latents, timesteps = torch.randn(shape), torch.arange(steps).unbind()
    start = time.process_time()
    for timestep in timesteps:
        pipe.unet(latents, timestep)
    return time.process_time() - start


def sweep(pipe, images, batch_size) -> float:
    start = time.process_time()
    pipe.evaluate_nll(images, batch_size=batch_size)
    return time.process_time() - start


def whole_of(name) -> tuple[VLBDDPMPipeline, torch.Tensor]:
    """A pipeline and images of its size."""
    if name in COMMON:
        side, _, widths, attention = COMMON[name]
        pipe = VLBDDPMPipeline(common_network(side, widths, attention).eval(), VLBDDPMScheduler())
        return pipe, torch.randint(256, (64, 3, side, side)).to(torch.uint8)
    return VLBDDPMPipeline.from_pretrained(CHECKPOINTS / "ddpm-vlb-digits"), load_images("digits", split="test").images


def whole(pipe, images, batch_size, evaluations) -> float:
    start = time.process_time()
    report = evaluate(pipe, images, max_evaluations=evaluations, batch_size=batch_size, quiet=True)
    # What is left over to the limit is less than a round.
    return (time.process_time() - start) / report["num_network_evaluations"] * batch_size


def sampled_evaluations(most_rounds) -> None:
    for name, (batch_size, evaluations, rounds) in WHOLE.items():
        rounds = min(rounds, most_rounds)
        pipe, images = whole_of(name)
        shape, steps = (batch_size, *images.shape[1:]), evaluations // batch_size
        pairs = []
        for turn in range(rounds):
            timed = [lambda: bare(pipe, shape, steps) / steps, lambda: whole(pipe, images, batch_size, evaluations)]  # noqa: B023
            seconds = [run() for run in (timed if turn % 2 else timed[::-1])]
            pairs.append(seconds if turn % 2 else seconds[::-1])
        pipe.unet = Nothing(pipe.unet)
        own = 1e3 * statistics.median(whole(pipe, images, batch_size, evaluations) for _ in range(rounds))
        forwards, evaluation = (1e3 * statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"{name:37} {evaluations:4} evaluations, batch {batch_size}  forward {forwards:7.1f} ms  evaluation"
            f" {evaluation:7.1f} ms  ratio {ratio:.3f}  own work {own:.2f} ms = {own / forwards:.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} CPU thread(s), CPU time per step; medians over rounds in turn")
    for name, (channels, side, batch, widths, variance_type, steps) in CASES.items():
        pipe = build(channels, side, widths, variance_type, steps)
        shape = (batch, channels, side, side)
        images = torch.randint(256, shape).to(torch.uint8)
        pairs = []
        for turn in range(arguments.rounds + 1):
            # Each first in every other round, so that a machine that slows down does so for both.
            timed = [lambda: bare(pipe, shape, steps), lambda: sweep(pipe, images, batch)]  # noqa: B023
            seconds = [run() for run in (timed if turn % 2 else timed[::-1])]
            pairs.append(seconds if turn % 2 else seconds[::-1])
        pairs = pairs[1:]
        pipe.unet = Nothing(pipe.unet)
        own = 1e3 * statistics.median(sweep(pipe, images, batch) for _ in range(arguments.rounds)) / steps
        forwards, whole = (1e3 * statistics.median(column) / steps for column in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"{name:37} forward {forwards:6.1f} ms  sweep {whole:6.1f} ms  ratio {ratio:.3f}"
            f"  own work {own:.2f} ms = {own / forwards:.1%}"
        )
    print("A whole sampled evaluation, per batch")
    sampled_evaluations(arguments.rounds)


if __name__ == "__main__":
    main()
