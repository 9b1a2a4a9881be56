r"""Networks of full size with random weights: `python tests/benchmarks/full_size.py FOLDER [FOLDER ...]`.

Each folder has the `config.json` and `scheduler_config.json` of a checkpoint, such as google/ddpm-cifar10-32 and
google/ddpm-cat-256 (whose shapes are those of church-256 and celebahq-256 too). What is timed does not depend on the weights:
loading, evaluations, steps of sampling, and a calibration at its smallest setting, each network in a process of its own, with
the peak of that process's memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CALIBRATION = {"num_timesteps": 2, "evaluations": 32}  # the smallest there is
SAMPLING_STEPS = 10


def measure(folder: Path, evaluations: int, batch_size: int, calibrates: bool) -> None:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    from ddpm_vlb import VLBDDPMPipeline
    from ddpm_vlb.calibration import calibrate

    torch.manual_seed(0)
    config, scheduler = (json.loads((folder / name).read_text()) for name in ("config.json", "scheduler_config.json"))
    with tempfile.TemporaryDirectory() as place:
        # As `from_pretrained` reads such configurations, and the weights of a network that was never trained.
        unet = UNet2DModel.from_config({"attention_head_dim": None, **config})
        unet.save_pretrained(Path(place) / "unet")
        DDPMScheduler.from_config(scheduler).save_pretrained(Path(place) / "scheduler")
        index = {
            "_class_name": "DDPMPipeline",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        (Path(place) / "model_index.json").write_text(json.dumps(index))
        start = time.perf_counter()
        pipe = VLBDDPMPipeline.from_pretrained(place)
        loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    side, parameters = config["sample_size"], sum(weight.numel() for weight in pipe.unet.parameters())
    images = torch.randint(256, (16, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    seconds = {"load": loading}
    count = min(16, evaluations, batch_size)
    grid = list(range(max(1, evaluations // count) - 1, -1, -1))

    def timed(name, run):
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start

    timed(f"{len(grid) * count} evaluations", lambda: pipe.evaluate_nll(images[:count], batch_size, inference_timesteps=grid))
    timed(f"{SAMPLING_STEPS} sampling steps", lambda: pipe(num_inference_steps=SAMPLING_STEPS, output_type="pt"))
    if calibrates:
        timed("calibration", lambda: calibrate(pipe, images, batch_size=batch_size, quiet=True, **CALIBRATION))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = f"{parameters / 1e6:.1f} M weights, 3 x {side} x {side}"
    print(f"{folder.name}: {size}, batches of {count}; peak memory {memory:.1f} GiB")
    print("  " + "  ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--no-calibration", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        import torch

        torch.set_num_threads(arguments.threads)
        return measure(arguments.folders[0], arguments.evaluations, arguments.batch_size, not arguments.no_calibration)
    print(f"{arguments.threads} CPU thread(s), float32, random weights")
    for folder in arguments.folders:
        options = [x for x in sys.argv[1:] if not Path(x).is_dir()]
        subprocess.run([sys.executable, __file__, str(folder), *options, "--alone"], check=True)


if __name__ == "__main__":
    main()
