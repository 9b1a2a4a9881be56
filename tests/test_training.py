r"""The training script in processes of its own, killed for real; some of the runs start Python as users do."""

import ast
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from safetensors.torch import load_file
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import estimate_nll
from ddpm_vlb.noise import mix

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "training" / "train_vlb_ddpm.py"
TINY = {
    "block_out_channels": [4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
}
# Everything that has a state: dropout, accumulated parts, averaged weights, learned betas, importance sampling.
FULL = """
dataset: digits
loss_type: vlb
variance_type: learned_range
prediction_type: v_prediction
timestep_sampler: importance
ddpm_num_steps: 12
beta_schedule: linear_log_snr
learn_betas: true
learn_betas_after: 5
learning_rate_betas: 0.02
use_ema: true
random_flip: true
random_shift: 0.3
random_symmetry: 0.5
augment_above_log_snr: 0.5
train_batch_size: 24
gradient_accumulation_steps: 2
max_train_steps: 60  # 2880 examples of 1409: two epochs, and no whole number of batches in either
learning_rate: 0.002
lr_warmup_steps: 10
logging_steps: 1
eval_nll_every: 20
num_validation_images: 28
eval_split: test
num_eval_images: 16
evaluations_per_image: 4
num_sample_images: 2
ddpm_num_inference_steps: 4
checkpointing_steps: 7
"""


def command(*arguments, **flags):
    named = [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}" for name, value in flags.items()]
    return [*map(str, arguments), *named]


def train(*arguments, expect=0, **flags):
    done = shared().run(*command(SCRIPT, *arguments, **flags))
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def metrics(folder, *, times=False):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines if times else [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    r"""A configuration file, and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "full.yaml").write_text(FULL + f"unet: {json.dumps({**TINY, 'dropout': 0.1})}\n")
    train(config=folder / "full.yaml", output_dir=folder / "run")
    return folder


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(full_run, tmp_path):
    output = tmp_path / "run"
    arguments = command(SCRIPT, config=full_run / "full.yaml", output_dir=output, resume_from_checkpoint="latest")

    def lines():
        return (output / "metrics.jsonl").read_text().count("\n") if (output / "metrics.jsonl").exists() else 0

    # Before the first checkpoint, in the middle of an epoch, in the middle of a save, while the best model is published.
    moments = [
        lambda: lines() >= 3,
        lambda: lines() >= 18,
        lambda: (output / ".checkpoint-partial").exists() and lines() >= 30,
        lambda: any(output.glob(".pipeline-*")),
    ]
    for moment in moments:
        process = shared().start(*arguments)
        while process.poll() is None and not moment():
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    # To the end in a Python of its own, with another seed of its hashes.
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    expected = full_run / "run"
    assert metrics(output) == metrics(expected)
    assert [line["step"] for line in metrics(output) if "split" not in line] == list(range(1, 61))
    for name in ("checkpoint-60/model.safetensors", "pipeline/unet/diffusion_pytorch_model.safetensors"):
        assert equal(load_file(output / name), load_file(expected / name))
    states = [torch.load(folder / "checkpoint-60" / "state.pt", weights_only=True) for folder in (output, expected)]
    assert states[0]["ema"]["optimization_step"] == 60 and states[0]["sampler"]["counts"].sum() == 60 * 48
    assert equal(*states)
    assert (output / "pipeline/scheduler/scheduler_config.json").read_text() == (
        expected / "pipeline/scheduler/scheduler_config.json"
    ).read_text()
    assert not list(output.glob(".*"))


def test_the_learning_rate_runs_its_course_whatever_is_accumulated(full_run):
    rates = [line["lr"] for line in metrics(full_run / "run") if "split" not in line]
    warm_up = [0.002 * step / 10 for step in range(1, 11)]
    cosine = [0.001 * (1 + math.cos(math.pi * (step - 10) / 50)) for step in range(11, 61)]
    assert rates == pytest.approx(warm_up + cosine, abs=1e-12)


def test_the_exported_model_is_the_one_that_was_scored(full_run):
    pipe = VLBDDPMPipeline.from_pretrained(full_run / "run" / "pipeline")
    betas = pipe.scheduler.config.trained_betas
    log_snr = torch.log(pipe.scheduler.forward_process().snr)
    steps = torch.diff(log_snr)
    assert len(betas) == 12 and steps.min() / steps.max() > 1.01  # no longer linear
    best = min(
        (line for line in metrics(full_run / "run") if line.get("split") == "validation"), key=lambda x: x["bits_per_dim"]
    )
    # The slice of the training split that was kept out, with the noise of the run.
    images = load_images("digits", "train").images
    slice_ = torch.randperm(len(images), generator=torch.Generator().manual_seed(mix(0, 5)))[len(images) - 28 :]
    estimate = estimate_nll(pipe, images[slice_], [mix(mix(0, 6), index) for index in range(28)], 4)
    assert estimate.bits_per_dim.mean().item() == pytest.approx(
        best["bits_per_dim"], rel=1e-6
    )  # float32 sums, batched otherwise
    parts = best["prior"] + best["transitions"] + best["decoder"]
    assert parts == pytest.approx(best["bits_per_dim"], rel=1e-12)


def test_stock_diffusers_samples_from_the_result(full_run):
    stock = DDPMPipeline.from_pretrained(full_run / "run" / "pipeline")
    stock.set_progress_bar_config(disable=True)
    ours = VLBDDPMPipeline.from_pretrained(full_run / "run" / "pipeline")
    ours.set_progress_bar_config(disable=True)
    assert type(stock.scheduler).__name__ == "DDPMScheduler"
    images = [
        pipe(2, generator=torch.Generator().manual_seed(0), num_inference_steps=12, output_type="np").images
        for pipe in (stock, ours)
    ]
    assert abs(images[0] - images[1]).max() < 1e-4


def test_samples_and_folders_are_what_the_script_says(full_run):
    output = full_run / "run"
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["metrics.jsonl", "pipeline", "samples", "validation.npz", *(f"checkpoint-{step}" for step in (*range(7, 57, 7), 60))]
    )
    assert sorted(path.name for path in (output / "samples").iterdir()) == [f"step-{n:07d}.png" for n in (20, 40, 60)]
    assert Image.open(output / "samples" / "step-0000060.png").size == (68, 2 * 68)
    assert {line["split"] for line in metrics(output) if "split" in line} == {"validation", "held_out"}
    # The slice that no update saw, for a calibration: as many images of the training split as were asked for.
    kept = load_images(output / "validation.npz").images
    train = {image.numpy().tobytes() for image in load_images("digits", "train").images}
    assert len(kept) == 28 and all(image.numpy().tobytes() in train for image in kept)


def test_two_processes_see_what_one_with_the_whole_batch_sees(full_run, tmp_path):
    flags = {"config": full_run / "full.yaml", "max_train_steps": 12, "expected_processes": 2, "unet": {"dropout": 0.0}}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = subprocess.run(
        [
            sys.executable,
            *launch,
            *command(SCRIPT, output_dir=tmp_path / "two", train_batch_size=12, **flags),
        ],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr[-3000:]
    assert "processes: 2 on cpu" in two.stdout
    one = train(output_dir=tmp_path / "one", **{**flags, "expected_processes": 1})
    assert "processes: 1 on cpu" in one.stdout
    pairs = list(zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True))
    for a, b in pairs:
        assert a.keys() == b.keys()
        # Sums of float32 in another order, through 12 updates.
        assert all(b[key] == (a[key] if key == "split" else pytest.approx(a[key], rel=1e-4, abs=1e-6)) for key in a)
    # The first loss is of the same weights.
    assert pairs[0][0]["loss"] == pytest.approx(pairs[0][1]["loss"], rel=1e-6)


def test_a_signal_saves_and_exits(full_run, tmp_path):
    output = tmp_path / "run"
    flags = {"config": full_run / "full.yaml", "output_dir": output, "resume_from_checkpoint": "latest"}
    arguments = command(SCRIPT, **flags, max_train_steps=100_000)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = shared().start(*arguments)
        before = len(metrics(output)) if output.exists() else 0
        while not (output / "metrics.jsonl").exists() or len((output / "metrics.jsonl").read_text().split("\n")) < before + 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 128 + number
        step = metrics(output)[-1]["step"]
        assert f"stopped by {number.name} after step {step}; saved {output}/checkpoint-{step}" in said
        assert (output / f"checkpoint-{step}" / "run.json").exists()


@pytest.mark.parametrize("learning_rate, message", [(1e30, "must be finite, got"), (3e38, "The weights must be finite")])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(full_run, tmp_path, learning_rate, message):
    flags = {"config": full_run / "full.yaml", "output_dir": tmp_path / "run", "eval_nll_every": 0, "checkpointing_steps": 1}
    train(**flags, max_train_steps=3)
    wild = {"learning_rate": learning_rate, "lr_scheduler": "constant", "max_grad_norm": 1e30, "max_train_steps": 9}
    wild["adam_beta1"] = 0.0  # so that a step is the learning rate times a number about 1, and overflows
    stopped = train(**flags, **wild, resume_from_checkpoint="latest", expect=2)
    line = stopped.stderr.strip().split("\n")[-1]
    last = checkpoints(tmp_path / "run")[-1]
    assert message in line and "step" in line and f"The last good checkpoint is {last}" in line
    weights = load_file(last / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def checkpoints(output):
    return sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("size", ["60k", "500k", "1500k"])  # full in safetensors, while the model is published, in torch.save
def test_a_full_disk_loses_nothing(full_run, tmp_path, size):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        flags = {"config": full_run / "full.yaml", "output_dir": tmp_path / "run", "eval_nll_every": 0}
        stopped = train(**flags, expect=2)
        line = stopped.stderr.strip().split("\n")[-1]
        assert "`output_dir` must have room for the run's files" in line and "Traceback" not in stopped.stderr
        found = checkpoints(tmp_path / "run")
        assert (f"The last good checkpoint is {found[-1]}" if found else "There is no checkpoint yet") in line
        assert not list((tmp_path / "run").glob(".*"))
        if found:
            resumed = train(**flags, resume_from_checkpoint="latest", expect=2)  # it loads, and fails where it failed before
            assert "resumed from" in resumed.stdout
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_without_validation_the_latest_model_is_kept_whenever_it_is_killed(full_run, tmp_path):
    output = tmp_path / "run"
    flags = {"config": full_run / "full.yaml", "output_dir": output, "eval_nll_every": 0, "max_train_steps": 14}
    process = shared().start(*command(SCRIPT, **flags))
    while not list(output.glob(".pipeline-*")) or not (output / "checkpoint-7").exists():  # the second time it is published
        assert process.poll() is None
        time.sleep(0.0005)
    process.kill()
    process.wait()
    train(**flags, resume_from_checkpoint="latest")
    ema = torch.load(output / "checkpoint-14" / "state.pt", weights_only=True)["ema"]["shadow_params"]
    published = load_file(output / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert sum(any(torch.equal(weight, shadow) for shadow in ema) for weight in published.values()) == len(published)
    assert not list(output.glob(".*"))


def test_flags_of_a_resumed_run_are_its_own(full_run, tmp_path):
    flags = {"config": full_run / "full.yaml", "output_dir": tmp_path / "run", "eval_nll_every": 0}
    train(**flags, max_train_steps=2, ema_max_decay=0.5)
    train(
        **flags,
        max_train_steps=3,
        ema_max_decay=0.25,
        learning_rate=0.5,
        adam_weight_decay=0.125,
        resume_from_checkpoint="latest",
    )
    state = torch.load(tmp_path / "run" / "checkpoint-3" / "state.pt", weights_only=True)
    assert state["ema"]["decay"] == 0.25 and state["lr_scheduler"]["base_lrs"][0] == 0.5
    assert metrics(tmp_path / "run")[-1]["lr"] == pytest.approx(0.5 * 3 / 10)
    optimizer = torch.load(tmp_path / "run" / "checkpoint-3" / "optimizer.bin", weights_only=True)
    assert optimizer["param_groups"][0]["weight_decay"] == 0.125


def test_streams_and_folders_train_with_bounded_memory(tmp_path):
    digits = load_images("digits", "train", 150).images
    for part, rows in (("train", slice(0, 120)), ("test", slice(120, 150))):
        (tmp_path / "data" / part).mkdir(parents=True)
        for index, image in enumerate(digits[rows]):
            Image.fromarray(image[0].numpy()).save(tmp_path / "data" / part / f"{index:03d}.png")
    common = {"dataset": tmp_path / "data", "split": "train", "num_pixel_levels": 17, "ddpm_num_steps": 10, "unet": TINY}
    common |= {"logging_steps": 1, "eval_nll_every": 4, "num_validation_images": 8, "evaluations_per_image": 4}
    common |= {"eval_split": "test", "num_sample_images": 0, "shuffle_buffer_size": 20, "checkpointing_steps": 5}
    common |= {"lr_scheduler": "constant"}
    train("--streaming", output_dir=tmp_path / "whole", **common, max_train_steps=10)  # 160 examples of 112
    train("--streaming", output_dir=tmp_path / "parts", **common, max_train_steps=5)
    train("--streaming", output_dir=tmp_path / "parts", **common, max_train_steps=10, resume_from_checkpoint="latest")
    # In the middle of the second pass through the shuffled stream too.
    whole, parts = ([line for line in metrics(tmp_path / name) if "split" not in line] for name in ("whole", "parts"))
    assert len(whole) == 10 and whole == parts
    del common["split"]  # the default, where there are parts
    stored = train("--dataloader_num_workers=1", output_dir=tmp_path / "stored", **common, max_train_steps=4)
    assert "images: 112 of (1, 8, 8), 17 levels" in stored.stdout
    train(output_dir=tmp_path / "in-process", **common, max_train_steps=4)
    assert metrics(tmp_path / "stored") == metrics(tmp_path / "in-process")
    Image.new("L", (9, 9)).save(tmp_path / "data" / "train" / "050.png")
    for workers in (0, 1):
        flags = {**common, "eval_nll_every": 0, "dataloader_num_workers": workers, "output_dir": tmp_path / f"bad-{workers}"}
        stopped = train(**flags, max_train_steps=9, expect=2)
        assert "050.png' is (9, 9) uint8" in stopped.stderr and "Traceback" not in stopped.stderr


def test_precision_checkpointing_and_objectives(full_run, tmp_path):
    base = {"config": full_run / "full.yaml", "max_train_steps": 3, "eval_nll_every": 0, "unet": {"dropout": 0.0}}

    def losses(name, *switches, **flags):
        train(*switches, output_dir=tmp_path / name, **{**base, **flags})
        return [line["loss"] for line in metrics(tmp_path / name)]

    expected = losses("float32")
    assert losses("checkpointed", "--gradient_checkpointing") == pytest.approx(expected, rel=1e-5)
    # Half the network's digits, none of the bound's.
    half = losses("bfloat16", mixed_precision="bf16")
    assert half == pytest.approx(expected, rel=0.05) and half != expected
    for loss_type, variance_type in (("simple", "fixed_small"), ("hybrid", "learned_range"), ("hybrid", "learned")):
        plain = losses(f"{loss_type}-{variance_type}", "--no-learn_betas", loss_type=loss_type, variance_type=variance_type)
        assert all(0 < loss < 3 for loss in plain)


def test_trackers(full_run, tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = {"config": full_run / "full.yaml", "output_dir": tmp_path / "run", "max_train_steps": 4, "eval_nll_every": 4}
    train(**flags, report_to="tensorboard")
    folders = {path.parent for path in (tmp_path / "run" / "logs").rglob("events*")}
    found = [tensorboard.EventAccumulator(str(folder)).Reload() for folder in folders]
    (logged,) = [one for one in found if "loss" in one.Tags()["scalars"]]
    assert [event.step for event in logged.Scalars("loss")] == [1, 2, 3, 4]
    assert {"validation/bits_per_dim", "held_out/decoder"} <= set(logged.Tags()["scalars"])
    assert logged.Tags()["images"] == ["samples"]
    # Neither the machine's name nor where its files lie leaves with them.
    for path in (tmp_path / "run" / "logs").rglob("*"):
        assert socket.gethostname() not in path.name
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


PIPELINE = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json")
PIPELINE += ("unet/diffusion_pytorch_model.safetensors",)


def test_push_to_hub(hub, client, full_run, tmp_path):
    flags = {"config": full_run / "full.yaml", "max_train_steps": 2, "eval_nll_every": 0, "output_dir": tmp_path / "run"}
    pull = "from ddpm_vlb import VLBDDPMPipeline; print(VLBDDPMPipeline.from_pretrained('me/digits').scheduler.config)"
    arguments = command(SCRIPT, "--push_to_hub", "--hub_private_repo", hub_model_id="digits", **flags)
    done = client.zygote.run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    repository = hub.repositories["me/digits"]
    assert repository.private and "pushed" in done.stdout
    pushed = repository.files
    assert set(pushed) == {*PIPELINE, "pipeline.py", "README.md"} and b"has not been scored" in pushed["README.md"]
    assert (
        pushed["unet/diffusion_pytorch_model.safetensors"]
        == (tmp_path / "run" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    pulled = client.zygote.run("-c", pull)
    assert pulled.returncode == 0 and "trained_betas" in pulled.stdout, pulled.stderr[-3000:]
    # No Hub in reach: told before anything is trained.
    hub.faults["POST /api/repos/create"] = ["cut"] * 10
    arguments = command(SCRIPT, "--push_to_hub", hub_model_id="digits", **{**flags, "output_dir": tmp_path / "other"})
    done = client.zygote.run(*arguments)
    hub.faults.clear()
    assert done.returncode == 2 and "`push_to_hub`" in done.stderr and not (tmp_path / "other" / "metrics.jsonl").exists()


REFUSED = {
    "unknown flag": (["--learning-rat", "1"], "unrecognized arguments: --learning-rat"),
    "bad choice": (["--loss_type", "mse"], "invalid choice: 'mse'"),
    "unet not a mapping": (["--unet", "3"], "must be a mapping of names to values"),
    "unet key": (["--unet", "{widths: 3}"], "`unet` must hold arguments of UNet2DModel"),
    "unet size": (["--unet", "{sample_size: 32}"], "`unet` must have sample_size = 8 for these images and variances, got 32"),
    "unet halvings": (
        [
            "--unet",
            "{block_out_channels: [16, 16, 16, 16, 16], down_block_types: [DownBlock2D, DownBlock2D, DownBlock2D,"
            " DownBlock2D, DownBlock2D], up_block_types: [UpBlock2D, UpBlock2D, UpBlock2D, UpBlock2D, UpBlock2D]}",
        ],
        "`unet` must halve the images evenly, got 5 blocks for 8 x 8 pixels",
    ),
    "class-conditional": (["--unet", "{num_class_embeds: 3}"], "`unet` must be unconditional"),
    "beta schedule": (["--beta_schedule", "linaer"], "invalid choice: 'linaer'"),
    "variance type": (["--variance_type", "fixed"], "invalid choice: 'fixed'"),
    "zero snr": (["--rescale_betas_zero_snr"], "must not be 'epsilon' where the terminal SNR is zero"),
    "learned zero snr": (
        ["--rescale_betas_zero_snr", "--prediction_type=sample", "--learn_betas", "--loss_type=vlb"],
        "terminal SNR above zero",
    ),
    "learned betas without the bound": (["--learn_betas"], "`learn_betas` must go with loss_type='vlb', got 'simple'"),
    "off the grid": (["--num_pixel_levels", "16"], "`images` must hold levels below num_pixel_levels = 16, got 16"),
    "split": (["--split", "validation"], "`split` must be 'train' or 'test' for the digits, got 'validation'"),
    "held-out split": (["--eval_split", "nope"], "`split` must be 'train' or 'test' for the digits, got 'nope'"),
    "no data": (["--dataset", "/nowhere"], "`dataset` must be a file or folder that exists"),
    "stream of digits": (["--streaming"], "`dataset` must be a folder or a data set of the Hub to be streamed"),
    "all validation": (["--eval_nll_every=1", "--num_validation_images=1437"], "`num_validation_images` must leave images"),
    "scored on what is trained on": (["--eval_split=train"], "must name images that are not trained on, got 'digits'"),
    "one evaluation": (["--evaluations_per_image", "1"], "`evaluations_per_image` must be at least 2, got 1"),
    "rules for the learning rate": (["--lr_scheduler", "piecewise_constant"], "invalid choice: 'piecewise_constant'"),
    "not even YAML": (["--unet", "{a: ["], "must be YAML or JSON"),
    "ema": (["--ema_inv_gamma", "0"], "`ema_inv_gamma` must be positive, got 0"),
    "no steps": (["--max_train_steps", "0"], "`max_train_steps` must be at least 1, got 0"),
    "learning rate": (["--learning_rate", "nan"], "`learning_rate` must be positive, got nan"),
    "limit": (["--checkpoints_total_limit", "0"], "`checkpoints_total_limit` must be at least 1"),
    "tracker": (["--report_to", "wandb"], "`report_to` must be a tracker that is installed, got 'wandb'"),
    "processes": (["--expected_processes", "2"], "`expected_processes` must be what was launched, got 2 for 1"),
    "no checkpoint": (["--resume_from_checkpoint", "/nowhere"], "`resume_from_checkpoint` must be latest or a checkpoint's"),
    "no config": (["--config", "/nowhere.yaml"], "`config` must be a readable YAML file of flags, got '/nowhere.yaml'"),
}


def test_one_file_knows_the_network_and_imports_go_down():
    folder = SCRIPT.parent / "trainer"
    order = re.findall(r"^- `(\w+)`", (folder / "__init__.py").read_text(), flags=re.MULTILINE)
    assert sorted(order) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    for path in [SCRIPT, *folder.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert order.index(node.module) < order.index(path.stem), (path.stem, node.module)
            named = [node.id] if isinstance(node, ast.Name) else [a.name for a in getattr(node, "names", [])]
            assert "UNet2DModel" not in named or path.stem == "network", path


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import train_vlb_ddpm

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield train_vlb_ddpm
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_any_work(name, tmp_path, script, capsys):
    arguments, message = REFUSED[name]
    if name == "tracker" and __import__("importlib.util").util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    argv = ["--dataset", "digits", "--output_dir", str(tmp_path / "run"), *arguments]
    try:
        status = script.main(argv)
    except SystemExit as exit:  # argparse
        status = exit.code
    said = capsys.readouterr().err
    assert status == 2 and message in said and "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_bad_config_files(tmp_path, script, capsys):
    path = tmp_path / "config.yaml"
    for text, message in (
        ("learning_rat: 1", "`config` must hold flags of this script only, got 'learning_rat'"),
        ("config: other.yaml", "`config` must hold flags of this script only, got 'config'"),
        ("use_ema: 1", "`use_ema` must be true or false"),
        ("- 1", "must be a mapping of names to values"),
        ("a: [", "`config` must be a readable YAML file of flags"),
    ):
        path.write_text(text)
        assert script.main(["--dataset=digits", f"--output_dir={tmp_path / 'run'}", f"--config={path}"]) == 2
        assert message in capsys.readouterr().err


def test_the_command_line_wins_over_the_file(tmp_path, script):
    path = tmp_path / "config.yaml"
    path.write_text("dataset: digits\nlearning_rate: 1e-3\nuse_ema: true\nunet: {dropout: 0.5, layers_per_block: 1}\n")
    argv = [f"--config={path}", "--output_dir=x", "--no-use_ema", "--unet={dropout: 0.1}", "--train_batch_size=3"]
    arguments = script.parse_arguments(argv)
    assert (arguments.learning_rate, arguments.use_ema, arguments.train_batch_size) == (1e-3, False, 3)
    assert arguments.unet == {"dropout": 0.1, "layers_per_block": 1} and arguments.lr_scheduler == "cosine"
    assert script.parse_arguments(["--dataset=digits", "--output_dir=x"]).unet == {}


@pytest.mark.parametrize("name", ["digits", "optdigits", "mnist", "cifar10"])
def test_shipped_configurations_describe_a_model(name, script):
    from trainer.network import build_network
    from trainer.objective import build_scheduler

    path = ROOT / "training" / "configs" / f"{name}.yaml"
    data = [] if name == "digits" else ["--dataset=elsewhere"]
    arguments = script.parse_arguments([f"--config={path}", "--output_dir=x", *data])
    assert arguments.dataset == ("digits" if name == "digits" else "elsewhere")
    scheduler = build_scheduler(arguments, 17 if "digits" in name else 256)
    shape = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}.get(name, (1, 8, 8))
    network = build_network(arguments, shape, scheduler.reverse_process().learns_variance)
    assert network(torch.zeros(1, *shape), 0).shape[1] in (shape[0], 2 * shape[0])
    del arguments.config
    assert not any(Path(str(value)).is_absolute() for value in vars(arguments).values())


def test_augmentation(script):
    from trainer.augment import augment

    levels = torch.arange(1, 4, dtype=torch.uint8).expand(4, 1, 2, 3)
    moved = augment(levels, flip=([0.9, 0.9, 0.9, 0.1], 0.5), shift=([0.1, 0.3, 0.5, 0.9], 0.4))
    assert moved[:, 0, 1].tolist() == [[2, 3, 0], [0, 1, 2], [1, 2, 3], [3, 2, 1]] and moved.dtype == torch.uint8
    assert augment(levels) is levels
    # All 8 symmetries, and none above the share.
    square = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3)
    turned = augment(square.expand(9, 1, 3, 3), symmetry=([(i + 0.5) / 10 for i in range(8)] + [0.85], 0.8))
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 8 and torch.equal(turned[8:], square)
    corners = {tuple(sorted(image[0, ::2, ::2].flatten().tolist())) for image in turned}
    assert corners == {(0, 2, 6, 8)} and (turned[:, 0, 1, 1] == 4).all()
    # Some may be left alone whatever is drawn for them.
    moved = augment(levels, flip=([0.1, 0.1, 0.9, 0.9], 0.5), where=torch.tensor([True, False, True, False]))
    assert moved[:, 0, 0, 0].tolist() == [3, 1, 1, 1]


def test_training_starts_from_the_network_of_a_pipeline(full_run, tmp_path):
    # Updates too small for float32 leave what was loaded, in the network and in its moving average.
    pretrained = full_run / "run" / "pipeline"
    flags = {"config": full_run / "full.yaml", "eval_nll_every": 0, "max_train_steps": 1, "learning_rate": 1e-30}
    train(pretrained_model_name_or_path=pretrained, output_dir=tmp_path / "again", **flags)
    weights = "unet/diffusion_pytorch_model.safetensors"
    known = load_file(pretrained / weights)
    assert equal(load_file(tmp_path / "again" / "pipeline" / weights), known)
    # A network that learned no variances gets channels for them that say nothing yet, and keeps its predictions.
    fixed = {"variance_type": "fixed_small", "loss_type": "simple", "timestep_sampler": "uniform"}
    train("--no-learn_betas", output_dir=tmp_path / "fixed", **{**flags, "learning_rate": 1e-3}, **fixed)
    known = load_file(tmp_path / "fixed" / "pipeline" / weights)
    train(pretrained_model_name_or_path=tmp_path / "fixed" / "pipeline", output_dir=tmp_path / "learned", **flags)
    learned = load_file(tmp_path / "learned" / "pipeline" / weights)
    for name, value in known.items():
        if name.startswith("conv_out"):
            mean, variance = learned[name].chunk(2)
            assert torch.equal(mean, value) and variance.abs().max() < 1e-20
        else:
            assert torch.equal(learned[name], value), name


def test_a_network_that_cannot_be_started_from_is_refused(full_run, tmp_path, script, capsys):
    pretrained = full_run / "run" / "pipeline"
    broken = tmp_path / "broken"
    shutil.copytree(pretrained, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    flags = command(config=full_run / "full.yaml", output_dir=tmp_path / "run")
    for path, change, message in (
        (pretrained, ["--prediction_type=epsilon"], "`prediction_type` must be what"),
        (pretrained, ["--unet={block_out_channels: [16]}"], "`unet` must keep the shapes of the pretrained network"),
        (
            pretrained,
            ["--variance_type=fixed_small"],
            "`unet` must have out_channels = 1 for these images",
        ),
        (pretrained, [f"--model_config_name_or_path={pretrained / 'unet'}"], "`model_config_name_or_path` must not be given"),
        (pretrained / "unet", [], "`pretrained_model_name_or_path` must be a DDPM pipeline"),
        (tmp_path / "nowhere", [], "`pretrained_model_name_or_path` must be a DDPM pipeline"),
        (broken, [], "`pretrained_model_name_or_path` must be a DDPM pipeline"),
    ):
        assert script.main([*flags, f"--pretrained_model_name_or_path={path}", *change]) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resuming_another_run_is_refused(full_run, script, capsys, tmp_path):
    flags = command(config=full_run / "full.yaml", output_dir=full_run / "run", resume_from_checkpoint="latest")
    for change, message in (
        (["--unet={layers_per_block: 2}"], "its unet has layers_per_block = 1, this run layers_per_block = 2"),
        (["--ddpm_num_steps=13"], "its scheduler has"),
        (["--seed=1"], "its seed has 0, this run 1"),
        (["--train_batch_size=5"], "its global_batch_size has 48, this run 10"),
        (["--timestep_sampler=uniform"], "its timestep_sampler has 'importance', this run 'uniform'"),
    ):
        assert script.main([*flags, *change]) == 2
        assert message in capsys.readouterr().err
    for older in ([], [f"--resume_from_checkpoint={full_run / 'run' / 'checkpoint-7'}"]):
        assert script.main([*flags[:-1], *older]) == 2
        assert "`output_dir` must not hold another run, or a later part of this one" in capsys.readouterr().err
    broken = tmp_path / "checkpoint-60"
    broken.mkdir()
    (broken / "run.json").write_text((full_run / "run" / "checkpoint-60" / "run.json").read_text())
    (broken / "state.pt").write_bytes(b"not a checkpoint")
    elsewhere = [f"--resume_from_checkpoint={broken}", f"--output_dir={tmp_path / 'other'}"]
    assert script.main([*flags[:-1], *elsewhere]) == 2
    assert "must be a complete checkpoint of this script" in capsys.readouterr().err
