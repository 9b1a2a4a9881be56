r"""From nothing to a likelihood in one command: train a small DDPM on real digits, and score digits it has never seen.

    python training/quickstart.py

Trains a `UNet2DModel` on scikit-learn's 8 x 8 digits (17 grey levels) on the bound itself, scores held-out digits with the
exact bound over all T steps, and writes to `runs/quickstart/`: the pipeline, `report.json`, a plot of the terms, a grid of
samples and a grid of reverse trajectories. `make quickstart` sets up the environment first.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from tqdm.auto import tqdm

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import format_report, image_grid, make_report, plot_terms, write_report
from ddpm_vlb.files import locked, new_folder
from ddpm_vlb.pixel_grid import levels_to_samples

NUM_PIXEL_LEVELS = 17
BATCH_SIZE = 64


def build_pipeline() -> VLBDDPMPipeline:
    r"""A network of 0.18 M parameters, and T = 100 steps that begin near the width of a grey level."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,  # the velocity, and where the variance lies between its two bounds
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = VLBDDPMScheduler(
        num_train_timesteps=100,
        beta_start=0.003,
        beta_end=0.08,
        prediction_type="v_prediction",
        variance_type="learned_range",
        num_pixel_levels=NUM_PIXEL_LEVELS,
    )
    return VLBDDPMPipeline(unet, scheduler)


def train(pipe: VLBDDPMPipeline, levels: torch.Tensor, num_steps: int, generator: torch.Generator) -> None:
    r"""Minimise the bound over `num_steps` batches of `levels` `(N, C, H, W)`; leaves averaged weights in `pipe.unet`."""
    unet, scheduler = pipe.unet.train(), pipe.scheduler
    num_timesteps = scheduler.config.num_train_timesteps
    optimizer = torch.optim.AdamW(unet.parameters(), lr=3e-3, weight_decay=1e-3)
    lr_scheduler = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=100, num_training_steps=num_steps)
    ema = EMAModel(unet.parameters(), decay=0.995)
    smooth = None
    with tqdm(range(num_steps), desc="training", unit="step", mininterval=1.0) as progress:
        for _ in progress:
            rows = torch.randint(len(levels), (BATCH_SIZE,), generator=generator)
            images = levels_to_samples(levels[rows], NUM_PIXEL_LEVELS, torch.float32)
            noise = torch.randn(images.shape, generator=generator)
            # One t from each of as many equal strata: uniform t, with less variance (as in Kingma et al. 2021).
            strata = (torch.rand((), generator=generator) + torch.arange(BATCH_SIZE) / BATCH_SIZE) % 1.0
            timesteps = (strata * num_timesteps).long().clamp_max(num_timesteps - 1)
            latents = scheduler.add_noise(images, noise, timesteps)
            model_output = unet(latents, timesteps).sample
            loss = scheduler.training_loss(
                model_output, images, noise, latents, timesteps, loss_type="vlb", clip_sample=False
            ).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            progress.set_postfix_str(f"{smooth:.3f} bits/dim", refresh=False)
    ema.copy_to(unet.parameters())
    unet.eval()


def marginal_bits_per_dim(train_levels: torch.Tensor, test_levels: torch.Tensor) -> float:
    r"""Bits/dim of independent pixels, each with its own histogram over the training images (one count added per level)."""
    counts = torch.nn.functional.one_hot(train_levels.long(), NUM_PIXEL_LEVELS).sum(dim=0).double() + 1.0
    log_probability = torch.log2(counts / counts.sum(dim=-1, keepdim=True))
    picked = log_probability.expand(len(test_levels), *log_probability.shape).gather(-1, test_levels.long()[..., None])
    return -picked.mean().item()


@torch.no_grad()
def reverse_trajectories(pipe: VLBDDPMPipeline, count: int, columns: int, generator: torch.Generator) -> list:
    r"""`count` rows of `columns` PIL images: latents from pure noise to an image, evenly spaced over the steps."""
    scheduler = pipe.scheduler
    num_steps = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(num_steps)
    shown = {round(step * num_steps / (columns - 1)) for step in range(columns)}
    latents = torch.randn(count, 1, 8, 8, generator=generator)
    frames = [latents]
    for done, timestep in enumerate(scheduler.timesteps.tolist(), start=1):
        model_output = pipe.unet(latents, timestep).sample
        latents = scheduler.step(model_output, timestep, latents, generator=generator).prev_sample
        if done in shown:
            frames.append(latents)
    pixels = torch.stack(frames, dim=1).flatten(0, 1)
    return pipe.numpy_to_pil((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())


def main() -> None:
    r"""Read the command line, then `run`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--num-images", type=int, default=360, help="held-out digits to score (at most 360)")
    parser.add_argument("--num-samples", type=int, default=64, help="images to sample")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with locked(arguments.output):
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    r"""Train, score, write, once nobody else writes there."""
    start = time.monotonic()
    logging.set_verbosity_error()
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    train_set, test_set = load_images("digits", "train"), load_images("digits", "test", arguments.num_images)
    pipe = build_pipeline()
    num_timesteps = pipe.scheduler.config.num_train_timesteps
    num_parameters = sum(parameter.numel() for parameter in pipe.unet.parameters())
    print(f"data     {len(train_set)} digits to train on, {len(test_set)} held out, 8 x 8 pixels of {NUM_PIXEL_LEVELS} levels")
    print(f"network  UNet2DModel, {num_parameters / 1e6:.2f} M parameters, T = {num_timesteps} steps, learned variances")
    print(f"threads  {torch.get_num_threads()}")
    print(f"work     {arguments.train_steps} training steps of {BATCH_SIZE} images, then", end=" ")
    print(f"{len(test_set)} x {num_timesteps} network evaluations (chosen for a few minutes on two slow cores)", flush=True)

    train(pipe, train_set.images, arguments.train_steps, generator)
    pipe.set_progress_bar_config(desc="scoring", unit="step", mininterval=1.0)
    result = pipe.evaluate_nll(test_set.images, batch_size=120, generator=torch.Generator().manual_seed(arguments.seed))
    report = make_report(result, dataset="digits", split="test", training_steps=arguments.train_steps)
    baselines = {
        "uniform over the levels": math.log2(NUM_PIXEL_LEVELS),
        "per-pixel marginal": marginal_bits_per_dim(train_set.images, test_set.images),
    }

    with new_folder(arguments.output) as folder:
        pipe.save_pretrained(folder / "pipeline")
        write_report(report | {"baselines": baselines}, folder / "report.json")
        plot_terms(report, folder / "terms.png")
        pipe.set_progress_bar_config(desc="sampling", unit="step", mininterval=1.0)
        image_grid(pipe(batch_size=arguments.num_samples, generator=generator).images).save(folder / "samples.png")
        image_grid(reverse_trajectories(pipe, 6, 11, generator), columns=11).save(folder / "trajectories.png")

    print()
    print(format_report(report, baselines))
    print()
    for name, what in (
        ("pipeline", "the model: VLBDDPMPipeline.from_pretrained(...), or stock DDPMPipeline"),
        ("report.json", "all terms, errors and settings"),
        ("terms.png", "the terms of the bound over t"),
        ("samples.png", f"{arguments.num_samples} samples"),
        ("trajectories.png", "six samples on their way from noise to image"),
    ):
        print(f"{arguments.output / name!s:34} {what}")
    print(f"{time.monotonic() - start:.0f} seconds")


if __name__ == "__main__":
    main()
