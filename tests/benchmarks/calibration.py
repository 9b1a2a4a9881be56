r"""One network, several ways to set its variances and timesteps: held-out bits/dim by the number of steps K.

    python tests/benchmarks/calibration.py [--mnist t10k-images-idx3-ubyte.gz --mnist-train train-images-idx3-ubyte.gz]

The rows "even spacing" are what `DDPMScheduler.set_timesteps(K)` samples on, with the variances of its `fixed_small` and
`fixed_large`, as the network has learned them, and as Analytic-DPM has them (Bao et al. 2022: the best number for all pixels of
a step, decoder included). "calibrated" is what `ddpm-vlb calibrate` makes of it. What is measured for the last two is measured
on images that no update has seen, or on the training split where nobody knows of such: the table says which.

The network of `training/configs/digits_simple.yaml` is trained first where it is not there (6 minutes on one core).
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.calibration.stored import NUMBERS, log_snr
from ddpm_vlb.data import load_images, open_images
from ddpm_vlb.evaluation import evaluate

ROOT = Path(__file__).parents[2]
SIMPLE = ROOT / "runs" / "digits-simple"
SHIPPED = ROOT / "spaces_demo" / "checkpoints"
STEPS = (10, 25, 50, 100, 250, 1000)


def train_simple() -> Path:
    if not (SIMPLE / "pipeline" / "model_index.json").exists():
        script = [sys.executable, ROOT / "training" / "train_vlb_ddpm.py", "--resume_from_checkpoint=latest"]
        config = ROOT / "training" / "configs" / "digits_simple.yaml"
        subprocess.run([*script, f"--config={config}", f"--output_dir={SIMPLE}"], check=True)
    return SIMPLE / "pipeline"


def with_variances(result, offsets: np.ndarray, decoder: np.ndarray) -> VLBDDPMScheduler:
    r"""The scheduler with one variance for all pixels of a step: e of `error_model.py` at each of the T timesteps."""
    config = result.scheduler.config["calibration"]
    forward = result.scheduler.forward_process()
    zeros = [0.0] * len(forward)
    numbers = dict.fromkeys(NUMBERS, zeros) | {"offsets": offsets.tolist(), "decoder_offsets": decoder.tolist()}
    unused = {"deltas": [1.0], "step_costs": [[1.0]] * len(forward), "decoder_costs": zeros}
    grid = {"timesteps": list(range(len(forward))), "log_snr": log_snr(forward).tolist()}
    return VLBDDPMScheduler.from_config(result.scheduler.config, calibration=config | numbers | unused | grid)


def rows_of(plain: VLBDDPMScheduler, result) -> dict:
    r"""For each way of setting them: a function from K to a scheduler and the arguments of `evaluate`."""
    forward = plain.forward_process()
    large = forward.one_minus_alphas_cumprod.numpy()
    positions, knots = log_snr(forward), result.scheduler.config["calibration"]["timesteps"]
    measured = np.interp(-positions, -positions[knots], result.mean_squared_errors)

    def even(steps: int) -> dict:
        return {"inference_timesteps": plain.inference_grid(steps)}

    def fixed(offsets):
        def scheduler(steps: int) -> VLBDDPMScheduler:
            # The decoder's variance is the posterior's of the next step of the grid (DESIGN: the t = 0 rule).
            grid = plain.forward_process(plain.inference_grid(steps))
            return with_variances(result, offsets, np.full(len(forward), grid.posterior_variance[1].item()))

        return lambda steps: (scheduler(steps), even(steps))

    rows = {
        "even spacing, fixed_small": fixed(np.zeros(len(forward))),
        "even spacing, fixed_large": fixed(large),
        "even spacing, learned range": lambda steps: (plain, even(steps)),
        "even spacing, Analytic-DPM": lambda steps: (with_variances(result, measured, measured), even(steps)),
        "calibrated": lambda steps: (result.scheduler, {"num_inference_steps": steps}),
    }
    if not plain.reverse_process().learns_variance:
        del rows["even spacing, learned range"]
    return rows


def print_table(name: str, folder: Path, calibration_images, split: str, test, target_se: float, budget: int) -> None:
    pipe = VLBDDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    plain = pipe.scheduler
    start = time.perf_counter()
    result = calibrate(pipe, calibration_images, dataset=name, split=split, quiet=True)
    seconds = time.perf_counter() - start
    config = result.scheduler.config["calibration"]
    print(f"{name}: {len(test)} test images; calibrated on {config['num_images']} images ({split}), {seconds:.0f} s")
    print(f"  {'':28}" + "".join(f"{f'K = {steps}':>10}" for steps in STEPS))
    worst = 0.0
    for row, make in rows_of(plain, result).items():
        values = []
        for steps in STEPS:
            pipe.scheduler, arguments = make(steps)
            report = evaluate(pipe, test, target_se=target_se, max_evaluations=budget, quiet=True, **arguments)
            values.append(report["bits_per_dim"])
            worst = max(worst, report["monte_carlo_error"] / report["bits_per_dim"])
        print(f"  {row:28}" + "".join(f"{value:10.4f}" for value in values), flush=True)
    pipe.scheduler = result.scheduler
    report = evaluate(pipe, test, target_se=target_se, max_evaluations=budget, quiet=True)
    error = f"{report['bits_per_dim']:.4f} +- {report['monte_carlo_error']:.4f}"
    chosen = f"K = {config['num_inference_steps']} by the images seen"
    print(f"  calibrated, {chosen}: {error}; decoding from t = {result.timesteps[-1]}")
    print(f"  Monte Carlo errors of the table: at most {worst:.1%} of the number; closer rows are not ranked", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="MNIST's test images")
    parser.add_argument("--mnist-train", type=Path, help="MNIST's training images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_images("digits", "test")
    simple, kept = train_simple(), load_images(SIMPLE / "validation.npz")
    print_table("digits, L_simple", simple, kept, "validation slice", digits, 0.006, 8000)
    train = load_images("digits", "train")
    print_table("digits, ddpm-vlb-digits", SHIPPED / "ddpm-vlb-digits", train, "train", digits, 0.006, 8000)
    if arguments.mnist and arguments.mnist_train:
        sets = open_images(arguments.mnist_train), open_images(arguments.mnist)
        print_table("mnist, ddpm-vlb-mnist", SHIPPED / "ddpm-vlb-mnist", sets[0], "train", sets[1], 0.01, 4000)


if __name__ == "__main__":
    main()
