r"""The commands of the READMEs in short forms, for `same_numbers.py`: each writes files of its own."""

from typing import NamedTuple

REPOSITORY = "your-name/ddpm-vlb-digits"
DIGITS = "spaces_demo/checkpoints/ddpm-vlb-digits"
MNIST = "spaces_demo/checkpoints/ddpm-vlb-mnist"
QUICKSTART = "runs/quickstart/pipeline"
CALIBRATED = "runs/quickstart/calibrated"


class Command(NamedTuple):
    r"""What is run, by whom. `again` is run by NEW on OLD's files, too; `hub` with a Hub on this machine."""

    name: str
    line: str
    again: bool = False
    hub: bool = False


TRAIN = (
    "python training/train_vlb_ddpm.py --config training/configs/digits.yaml --output_dir runs/digits --learn_betas"
    " --max_train_steps 4 --train_batch_size 8 --lr_warmup_steps 1 --checkpointing_steps 2 --eval_nll_every 2"
    " --num_validation_images 8 --num_eval_images 4 --evaluations_per_image 4 --num_sample_images 2"
    " --ddpm_num_inference_steps 5"
)
RESUME = f"{TRAIN} --resume_from_checkpoint latest"
COMMANDS = [
    Command("quickstart", "python training/quickstart.py --train-steps 30 --num-images 8"),
    Command("train", TRAIN),
    Command("README's Python", "python HERE/readme_numbers.py readme.json", again=True),
    Command(
        "evaluate",
        f"ddpm-vlb evaluate {DIGITS} --dataset digits --max-evaluations 2000 --plot evaluate.png --output evaluate.json",
    ),
    Command(
        "evaluate --target-se",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --target-se 0.1 --max-evaluations 6000 --seed 1 --output target.json",
        again=True,
    ),
    Command(
        "evaluate --num-inference-steps",
        f"ddpm-vlb evaluate {DIGITS} --dataset digits --num-inference-steps 25 --max-evaluations 1500 --output steps.json",
    ),
    Command(
        "evaluate --per-image",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --max-images 9 --per-image 8 --scores per-image.csv"
        " --plot per-image.png --output per-image.json",
        again=True,
    ),
    Command(
        "evaluate --method full",
        f"ddpm-vlb evaluate {DIGITS} --dataset digits --method full --max-images 2 --plot full.png --scores full.csv"
        " --output full.json",
    ),
    Command(
        "evaluate --method full, settings",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --method full --max-images 5 --num-inference-steps 10"
        " --no-clip-sample --batch-size 3 --output full-steps.json",
        again=True,
    ),
    Command(
        "evaluate --method iw",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --max-images 3 --method iw --k 4 --num-inference-steps 20"
        " --scores iw.csv --output iw.json",
        again=True,
    ),
    Command(
        "evaluate --method ode",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --max-images 1 --method ode --output ode.json",
        again=True,
    ),
    Command(
        "evaluate --method ode --trace",
        f"ddpm-vlb evaluate {DIGITS} --dataset digits --max-images 2 --method ode --trace hutchinson --output trace.json",
    ),
    Command(
        "evaluate --dtype bf16",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --max-images 32 --dtype bf16 --max-evaluations 1500"
        " --output bf16.json",
        again=True,
    ),
    Command(
        "evaluate --quantize, a folder",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset pictures --quantize --per-image 8 --output folder.json",
    ),
    Command(
        "evaluate --quantize, an idx file",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset images-idx3-ubyte --quantize --per-image 8 --output idx.json",
    ),
    Command(
        "evaluate --streaming",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset pictures --streaming --quantize --buffer-mb 1"
        " --max-evaluations 1500 --output stream.json",
    ),
    Command(
        "evaluate, MNIST",
        f"ddpm-vlb evaluate {MNIST} --dataset spaces_demo/examples/ddpm-vlb-mnist.npz --max-evaluations 1100"
        " --output mnist.json",
    ),
    Command(
        "evaluate --method full, MNIST",
        f"ddpm-vlb evaluate {MNIST} --dataset spaces_demo/examples/ddpm-vlb-mnist.npz --max-images 3 --method full"
        " --num-inference-steps 10 --output mnist-full.json",
    ),
    Command(
        "evaluate, two processes",
        f"torchrun --standalone --nproc_per_node 2 -m ddpm_vlb evaluate {QUICKSTART} --dataset digits --max-evaluations 1500"
        " --expected-processes 2 --output two.json",
    ),
    *(
        Command(
            f"evaluate --shard {i}/2",
            f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --shard {i}/2 --max-evaluations 1500 --output half-{i}.json",
        )
        for i in (0, 1)
    ),
    Command("merge", "ddpm-vlb merge half-0.json half-1.json --plot whole.png --output whole.json", again=True),
    *(
        Command(
            f"evaluate --method full --shard {i}/2",
            f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --method full --num-inference-steps 5"
            f" --max-images 7 --shard {i}/2 --output full-half-{i}.json",
        )
        for i in (0, 1)
    ),
    Command(
        "merge --scores",
        "ddpm-vlb merge full-half-0.json full-half-1.json --scores full-whole.csv --output full-whole.json",
        again=True,
    ),
    Command(
        "evaluate --seed",
        f"ddpm-vlb evaluate {DIGITS} --dataset digits --max-evaluations 2000 --seed 1 --output seed.json",
    ),
    Command("merge, two seeds", "ddpm-vlb merge seed.json evaluate.json --output seeds.json", again=True),
    Command(
        "compare",
        f"ddpm-vlb compare {QUICKSTART} {DIGITS} --dataset digits --max-evaluations 3000 --output comparison.json",
        again=True,
    ),
    Command(
        "compare, numbers of steps",
        f"ddpm-vlb compare {DIGITS} {DIGITS} --num-inference-steps-a 10 --num-inference-steps-b 50 --dataset digits"
        " --max-images 64 --max-evaluations 2500 --output comparison-steps.json",
    ),
    Command(
        "calibrate",
        f"ddpm-vlb calibrate {QUICKSTART} --dataset digits --split train --max-images 64 --evaluations 512 --num-timesteps 8"
        f" --plot calibrate.png --output {CALIBRATED}",
    ),
    Command(
        "evaluate, calibrated",
        f"ddpm-vlb evaluate {CALIBRATED} --dataset digits --num-inference-steps 10 --max-evaluations 1500"
        " --output calibrated.json",
        again=True,
    ),
    Command(
        "evaluate, calibrated, best number",
        f"ddpm-vlb evaluate {CALIBRATED} --dataset digits --method full --max-images 3 --output calibrated-full.json",
        again=True,
    ),
    Command(
        "evaluate --no-calibration",
        f"ddpm-vlb evaluate {CALIBRATED} --dataset digits --no-calibration --max-evaluations 1500 --output not-calibrated.json",
    ),
    Command(
        "evaluate --method iw, calibrated",
        f"ddpm-vlb evaluate {CALIBRATED} --dataset digits --max-images 2 --method iw --k 3 --output calibrated-iw.json",
    ),
    Command(
        "sample",
        f"ddpm-vlb sample {QUICKSTART} --num-images 6 --num-inference-steps 20 --seed 3 --output sample.png",
        again=True,
    ),
    Command("sample, MNIST", f"ddpm-vlb sample {MNIST} --num-images 2 --num-inference-steps 10 --output sample-mnist.png"),
    Command(
        "sample --draw-from-decoder",
        f"ddpm-vlb sample {CALIBRATED} --num-images 4 --num-inference-steps 12 --draw-from-decoder --output sample-drawn.png",
        again=True,
    ),
    Command("convert-openai", "ddpm-vlb convert-openai openai.pt converted --image-size 16"),
    Command(
        "evaluate, converted",
        "ddpm-vlb evaluate converted --dataset openai.npz --method full --num-inference-steps 4 --output converted.json",
        again=True,
    ),
    Command(
        "evaluate, for the card",
        f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --max-evaluations 1500 --output {QUICKSTART}/report.json",
    ),
    Command("card", f"ddpm-vlb card {QUICKSTART} --description 'A small DDPM of handwritten digits.' --num-images 4"),
    Command("card --check", f"ddpm-vlb card --check {QUICKSTART}", again=True),
    Command("card --check, digits", f"ddpm-vlb card --check {DIGITS}", again=True),
    Command("card --check, MNIST", f"ddpm-vlb card --check {MNIST}", again=True),
    Command("push", f"ddpm-vlb push {QUICKSTART} {REPOSITORY}", hub=True),
]
# Evaluations that are killed in the middle, by their method.
SMALL_BATCHES = f"{QUICKSTART} --dataset digits --num-inference-steps 30 --max-images 40 --batch-size 1 --output OUTPUT"
KILLED = {
    "sampled": f"ddpm-vlb evaluate {QUICKSTART} --dataset digits --max-evaluations 8000 --batch-size 12 --output OUTPUT",
    "full": f"ddpm-vlb evaluate {SMALL_BATCHES} --method full",
    "iw": f"ddpm-vlb evaluate {SMALL_BATCHES} --method iw --k 2",
    "compare": f"ddpm-vlb compare {QUICKSTART} {DIGITS} --dataset digits --max-evaluations 8000 --batch-size 12"
    " --output OUTPUT",
}

# OLD's repository in the hands of NEW, and on a machine without the package.
LOAD = """
import json, sys, torch
from sklearn.datasets import load_digits
{load}
images = torch.from_numpy(load_digits().images[1437:1441]).to(torch.uint8)[:, None]
out = pipe.evaluate_nll(images, generator=torch.Generator().manual_seed(0))
drawn = pipe(batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np").images
with open("loaded.json", "w") as file:
    json.dump([out.bits_per_dim.tolist(), out.transitions.tolist(), out.config, drawn.tolist()], file)
"""
OURS = LOAD.format(load=f"from ddpm_vlb import VLBDDPMPipeline\npipe = VLBDDPMPipeline.from_pretrained({REPOSITORY!r})")
TRUSTED = LOAD.format(
    load="from diffusers import DiffusionPipeline\nsys.modules['ddpm_vlb'] = None\n"
    f"pipe = DiffusionPipeline.from_pretrained({REPOSITORY!r}, custom_pipeline={REPOSITORY!r}, trust_remote_code=True)"
)
