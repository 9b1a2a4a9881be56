r"""What an evaluation costs: `python tests/benchmarks/cost.py [--mnist IDX_FILE]`.

Two factors make the time of `ddpm-vlb evaluate`, and each has its table:

- the time of one network evaluation on one CPU thread, by the size of the images: of the shipped checkpoints, and of untrained
  networks of the shapes that are common at 32, 64 and 256 pixels;
- how many evaluations bring the Monte Carlo error down to a target, pilot included, for the shipped checkpoints.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import evaluate

CHECKPOINTS = Path(__file__).parents[2] / "spaces_demo" / "checkpoints"
TARGETS = (0.05, 0.02, 0.01, 0.005, 0.002)  # standard errors, in bits/dim
COUNTS = (1000, 5000, 100_000)  # one image at all of 1000 steps; a usual evaluation; the most that `evaluate` makes unasked

# name: side, batch size, block_out_channels, blocks with attention on the way down
COMMON = {
    "32 pixels, as google/ddpm-cifar10-32": (32, 16, (128, 256, 256, 256), (1,)),
    "64 pixels, as diffusers' train_unconditional": (64, 4, (128, 128, 256, 256, 512, 512), (4,)),
    "256 pixels, as google/ddpm-cat-256": (256, 1, (128, 128, 256, 256, 512, 512), (4,)),
}


def common_network(side: int, widths: tuple[int, ...], attention: tuple[int, ...]) -> UNet2DModel:
    """Of the usual shape, with random weights: time does not depend on their values."""
    down = ["AttnDownBlock2D" if block in attention else "DownBlock2D" for block in range(len(widths))]
    up = ["AttnUpBlock2D" if block in attention else "UpBlock2D" for block in reversed(range(len(widths)))]
    return UNet2DModel(
        sample_size=side,
        block_out_channels=widths,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=2,
        attention_head_dim=None,
    )


@torch.inference_mode()
def seconds(unet: UNet2DModel, batch_size: int, rounds: int) -> float:
    """CPU time of one evaluation: the median over batches."""
    latents = torch.randn(batch_size, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    spent = []
    for _ in range(rounds + 1):
        start = time.process_time()
        unet(latents, torch.randint(1000, (batch_size,)))
        spent.append((time.process_time() - start) / batch_size)
    return statistics.median(spent[1:])


def duration(value: float) -> str:
    """Two digits, in the largest unit of which there are at least two."""
    unit, size = next((u, s) for u, s in (("d", 86400), ("h", 3600), ("min", 60), ("s", 0)) if value >= 2 * s)
    amount = value / (size or 1)
    return f"{amount:.{1 if amount < 10 else 0}f} {unit}"


def times(rounds: int) -> None:
    print("one CPU thread; CPU time of a network evaluation, and of so many")
    print(f"{'network':46}{'parameters':>12}{'one':>12}" + "".join(f"{count:>10,}" for count in COUNTS))
    networks = {
        f"{side} pixels, ddpm-vlb-{name} (shipped)": (
            VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}").unet,
            64,
        )
        for name, side in (("digits", 8), ("mnist", 28))
    }
    for name, (unet, batch_size) in networks.items():
        row(name, unet, batch_size, rounds)
    for name, (side, batch_size, widths, attention) in COMMON.items():
        row(name, common_network(side, widths, attention), batch_size, rounds if side < 256 else 3)


def row(name: str, unet: UNet2DModel, batch_size: int, rounds: int) -> None:
    each = seconds(unet.eval(), batch_size, rounds)
    parameters = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    cells = "".join(f"{duration(count * each):>10}" for count in COUNTS)
    print(f"{name:46}{parameters:>10.1f} M{1e3 * each:>9.1f} ms{cells}", flush=True)


def evaluations(sets: dict, seeds: int) -> None:
    print("evaluations for a Monte Carlo error, in bits/dim; 95 % of the results are within two of it; means over seeds")
    print(f"{'':46}" + "".join(f"{target:>9}" for target in TARGETS))
    for name, images in sets.items():
        pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINTS / f"ddpm-vlb-{name}")
        cells = []
        for target in TARGETS:
            reports = [
                evaluate(pipe, images, target_se=target, max_evaluations=10**7, seed=seed, quiet=True) for seed in range(seeds)
            ]
            cells.append(statistics.mean(report["num_network_evaluations"] for report in reports))
        steps = pipe.scheduler.config.num_train_timesteps
        head = f"ddpm-vlb-{name}, {len(images.images):,} images, T = {steps}"
        print(f"{head:46}" + "".join(f"{cell:>9,.0f}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="t10k-images-idx3-ubyte.gz")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times(arguments.rounds)
    sets = {"digits": load_images("digits", "test")}
    if arguments.mnist is not None:
        sets["mnist"] = load_images(arguments.mnist)
    evaluations(sets, arguments.seeds)


if __name__ == "__main__":
    main()
