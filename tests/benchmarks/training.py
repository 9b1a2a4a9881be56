r"""Recipes side by side: held-out bits/dim at equal network, data, batch and number of updates, and the cost of a step.

    python tests/benchmarks/training.py           # trains each recipe (about ten minutes each on one core), scores, prints
    python tests/benchmarks/training.py --steps   # the time of a step of each objective against a plain MSE step

Runs go to `runs/benchmarks/training/` and go on where they were stopped. Every recipe is `training/train_vlb_ddpm.py` on
`training.yaml` beside this file but for the flags named here; the score is the full sweep of `evaluate_nll` over the held-out
digits. (`training/configs/digits.yaml`, the recipe of the checkpoint that is shipped, has four times the updates.)
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import make_report, write_report

ROOT = Path(__file__).parents[2]
SCRIPT, CONFIG = ROOT / "training" / "train_vlb_ddpm.py", Path(__file__).with_suffix(".yaml")
RUNS = ROOT / "runs" / "benchmarks" / "training"

PLAIN = ["--random_shift=0", "--unet={dropout: 0.2}", "--adam_weight_decay=0.05"]  # neither paper moves its images
EPSILON = ["--prediction_type=epsilon", "--ddpm_num_steps=1000", *PLAIN]
LINEAR, COSINE = ([*EPSILON, f"--beta_schedule={name}"] for name in ("linear", "squaredcos_cap_v2"))
LEARNED = ["--learn_betas", "--learn_betas_after=2000", "--learning_rate_betas=0.001", *PLAIN]
RECIPES = {
    "stock: L_simple, fixed_small, linear": [
        *LINEAR,
        "--variance_type=fixed_small",
        "--loss_type=simple",
        "--timestep_sampler=uniform",
    ],
    "Improved DDPM: L_hybrid, learned range, cosine": [*COSINE, "--loss_type=hybrid", "--timestep_sampler=uniform"],
    "Improved DDPM: L_vlb, importance, cosine": [*COSINE, "--loss_type=vlb"],
    "ours, betas learned too, images not moved": LEARNED,
    "ours, images moved": [],
}


def folder_of(name: str) -> Path:
    return RUNS / "".join(c if c.isalnum() else "-" for c in name.lower()).replace("--", "-")


def train_and_score(name: str) -> dict:
    folder = folder_of(name)
    if not (folder / "report.json").exists():
        flags = [f"--config={CONFIG}", f"--output_dir={folder}", "--resume_from_checkpoint=latest", *RECIPES[name]]
        subprocess.run([sys.executable, SCRIPT, *flags], check=True)
        pipe = VLBDDPMPipeline.from_pretrained(folder / "pipeline")
        pipe.set_progress_bar_config(desc="scoring", mininterval=5)
        images = load_images("digits", "test").images
        result = pipe.evaluate_nll(images, batch_size=180, generator=torch.Generator().manual_seed(0))
        write_report(make_report(result, dataset="digits", split="test", description=name), folder / "report.json")
    return json.loads((folder / "report.json").read_text())


def print_table() -> None:
    print("held-out digits (360), bits/dim, full sweep; equal network, data, batch, updates and learning rate")
    print(f"{'recipe':48} {'bits/dim':>18} {'L_T':>7} {'L_t':>7} {'L_0':>7}   T")
    for name in RECIPES:
        r = train_and_score(name)
        score = f"{r['bits_per_dim']:.4f} +- {r['standard_error']:.4f}"
        terms = f"{r['prior']:7.4f} {r['transitions_total']:7.4f} {r['decoder']:7.4f}"
        print(f"{name:48} {score:>18} {terms} {r['config']['num_train_timesteps']:5}", flush=True)


def print_step_times(rounds: int = 15, steps: int = 4) -> None:
    r"""CPU time of `Trainer.update` for each objective, and of a training loop with diffusers' usual lines, in turn."""
    sys.path.insert(0, str(SCRIPT.parent))
    from accelerate import Accelerator
    from diffusers import UNet2DModel
    from trainer.arguments import parse_arguments
    from trainer.data import Data
    from trainer.trainer import Trainer

    accelerator = Accelerator()

    def ours(*flags):
        arguments = parse_arguments([f"--config={CONFIG}", f"--output_dir={tempfile.mkdtemp()}", "--random_shift=0", *flags])
        trainer = Trainer(arguments, accelerator, Data(arguments))
        batches = trainer.data.batches(trainer.plan, 0, (0, 0))
        return trainer, lambda: trainer.update(batches)

    simple = ["--loss_type=simple", "--no-learn_betas", "--no-use_ema", "--variance_type=fixed_small"]
    hybrid = ["--loss_type=hybrid", "--no-learn_betas", "--no-use_ema", "--variance_type=learned_range"]
    vlb = ["--loss_type=vlb", "--no-learn_betas", "--no-use_ema", "--variance_type=learned_range"]
    compiled, compiled_step = ours(*simple)
    compiled.objective.unet.compile(dynamic=False)  # as `--compile`, but the accelerator is one for all
    trainer, simple_step = ours(*simple)

    unet = UNet2DModel.from_config(trainer.objective.unet.config).train()
    scheduler = VLBDDPMScheduler.from_config(trainer.objective.scheduler.config, prediction_type="epsilon")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    images = load_images("digits", "train").images.float() / 8 - 1

    def plain_step():
        batch = images[torch.randint(len(images), (trainer.plan.global_batch_size,))]
        noise = torch.randn(batch.shape)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(batch),))
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(batch, noise, timesteps), timesteps).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    variants = {
        "plain MSE loop": plain_step,
        "simple": simple_step,
        "simple, fused AdamW": ours(*simple, "--adam_fused")[1],
        "simple, compiled": compiled_step,
        "hybrid": ours(*hybrid)[1],
        "vlb": ours(*vlb)[1],
        "vlb, learned betas": ours(*[flag for flag in vlb if flag != "--no-learn_betas"], "--learn_betas")[1],
    }
    times = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, step in variants.items():
            start = time.process_time()
            for _ in range(steps):
                step()
            if round_:  # the first one warms up
                times[name].append((time.process_time() - start) / steps)
    print(f"CPU time of a step, one thread, batch {trainer.plan.global_batch_size} of 8 x 8; medians over rounds in turn,")
    print("of the ratio too: of a step to the plain one of its round")
    for name, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(measured, times["plain MSE loop"]))
        print(f"{name:20} {statistics.median(measured) * 1e3:7.1f} ms   ratio {ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", action="store_true")
    torch.set_num_threads(1)
    print_step_times() if parser.parse_args().steps else print_table()
