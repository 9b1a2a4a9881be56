r"""The core of what the package does, in an environment of the declared minimum versions against one of today's.

    python tests/minimum.py FOLDER            (today's environment: writes its numbers to FOLDER/numbers.json)
    python tests/minimum.py FOLDER --compare  (the other one: fails where it has other numbers)

`make test-minimum` does both. Shipped digits are scored, fully and by sampling, by the library and by the command; some are
drawn; the training script takes five steps.

**How far numbers may differ.** Two builds of torch round a network's float32 output differently: by up to 7e-6 where it is of
order 1, the largest difference measured between memory layouts, batch sizes and kernels of one network. Such errors of single
outputs are independent roundings, so a number moves by their sum in quadrature, each times the derivative of the number by that
output. Allowed are 6 of these standard deviations; for n evaluations in place of K steps, sqrt(K / n) times as much. What is
drawn may be off by a hundredth of a grey level, what is trained by `ROUNDING` of it for each step.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from ddpm_vlb import VLBDDPMPipeline, load_images
from ddpm_vlb.pixel_grid import levels_to_samples

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"
ROUNDING = 7e-6
STEPS, EVALUATIONS, TRAINING_STEPS = 50, 32, 5
PACKAGES = "torch diffusers transformers accelerate huggingface_hub safetensors numpy pillow scipy datasets".split()
TRAIN = (
    f"--dataset digits --max_train_steps {TRAINING_STEPS} --train_batch_size 8 --lr_warmup_steps 1 --ddpm_num_steps 20"
    f" --loss_type vlb --eval_nll_every {TRAINING_STEPS} --num_validation_images 8 --evaluations_per_image 4"
    " --num_sample_images 2 --ddpm_num_inference_steps 5"
).split()
UNET = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deviation(pipe: VLBDDPMPipeline, levels: torch.Tensor, timesteps: list[int]) -> float:
    r"""How far `ROUNDING` in every output moves an image's bound over `timesteps`, the worst image: in bits/dim."""
    scheduler, variance = pipe.scheduler, torch.zeros(len(levels), dtype=torch.float64)
    x = levels_to_samples(levels, scheduler.config.num_pixel_levels)
    for t in timesteps:
        noise = torch.randn(x.shape, generator=generator(t))
        x_t = scheduler.add_noise(x.float(), noise, torch.full((len(x),), t))
        with torch.no_grad():
            output = pipe.unet(x_t, t).sample
        output.requires_grad_()
        terms = scheduler.vlb_terms(output, x, x_t, t, inference_timesteps=timesteps)
        gradient = torch.autograd.grad(terms.sum(), output)[0].double()
        variance += (ROUNDING * output.abs().clamp_min(1.0) * gradient).square().flatten(1).sum(dim=1).detach()
    return variance.max().sqrt().item() / (x[0].numel() * math.log(2))


def run(*arguments) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} {arguments[1]} ended with status {done.returncode}:\n{done.stderr[-2000:]}")


def measure(folder: Path) -> dict:
    r"""Score, sample, train; the numbers."""
    pipe = VLBDDPMPipeline.from_pretrained(CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    levels = load_images("digits", split="test", max_images=8).images
    out = pipe.evaluate_nll(levels, num_inference_steps=STEPS, generator=generator())
    few = pipe.evaluate_nll(
        levels, method="sampled", evaluations_per_image=EVALUATIONS, num_inference_steps=STEPS, generator=generator()
    )
    drawn = pipe(batch_size=2, num_inference_steps=20, generator=generator(), output_type="np").images
    report = folder / "report.json"
    run(
        *("-m", "ddpm_vlb", "evaluate", CHECKPOINT, "--dataset", "digits", "--num-inference-steps", STEPS),
        *("--max-evaluations", 2000, "--output", report),
    )
    run(ROOT / "training" / "train_vlb_ddpm.py", *TRAIN, "--unet", json.dumps(UNET), "--output_dir", folder / "trained")
    lines = [json.loads(line) for line in (folder / "trained" / "metrics.jsonl").read_text().splitlines()]
    (trained,) = (line["bits_per_dim"] for line in lines if line.get("split") == "validation")
    return {
        "full sweep": out.bits_per_dim.tolist(),
        "sampled": few.bits_per_dim.tolist(),
        "evaluate": [json.loads(report.read_text())["bits_per_dim"]],
        "samples": drawn.flatten().tolist(),
        "trained": [trained],
        "deviation": deviation(pipe, levels, sorted(map(int, out.timesteps), reverse=True)),
    }


def tolerances(expected: dict) -> dict[str, float]:
    r"""What numbers may be off by, by their names."""
    scores = 6 * expected["deviation"]
    return {
        "full sweep": scores,
        "sampled": scores * math.sqrt(STEPS / EVALUATIONS),
        "evaluate": scores,
        "samples": 0.01 / 16,
        "trained": 6 * (TRAINING_STEPS + 1) * ROUNDING * expected["trained"][0],
    }


def main() -> int:
    r"""Write the numbers, or compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Python {sys.version.split()[0]}, {', '.join(f'{name} {version(name)}' for name in PACKAGES)}", flush=True)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(Path(folder))
    path = arguments.folder / "numbers.json"
    if not arguments.compare:
        path.write_text(json.dumps(numbers))
        return 0
    expected, wrong = json.loads(path.read_text()), 0
    for name, tolerance in tolerances(expected).items():
        pairs = list(zip(numbers[name], expected[name], strict=True))
        off = max(abs(a - b) for a, b in pairs)
        mean = math.fsum(a for a, _ in pairs) / len(pairs)
        wrong += not off <= tolerance  # NaN is wrong, too
        print(f"{name:12} {mean:10.6f}   off by {off:.1e}, allowed {tolerance:.1e}{'' if off <= tolerance else '   WRONG'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
