r"""The training script in processes of its own, killed for real; some of the runs start Python as users do."""

import ast
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.evaluation import estimate_nll
from ddpm_vlb.files import clean_up
from ddpm_vlb.noise import mix

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "training" / "train_vlb_ddpm.py"
TINY = {
    "block_out_channels": [4],
    "mid_block_type": None,
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


def test_two_nodes_see_what_one_process_with_the_whole_batch_sees(full_run, tmp_path):
    flags = {"config": full_run / "full.yaml", "max_train_steps": 12, "expected_processes": 2, "unet": {"dropout": 0.0}}
    arguments = command(SCRIPT, output_dir=tmp_path / "two", train_batch_size=12, **flags)
    two = shared().run_nodes(2, *arguments, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert [node.returncode for node in two] == [0, 0], [node.stderr[-3000:] for node in two]
    assert "processes: 2 on cpu" in two[0].stdout
    # By the fused optimizer, which is the same but for rounding.
    one = train("--adam_fused", output_dir=tmp_path / "one", **{**flags, "expected_processes": 1})
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


def test_a_folder_is_one_runs_at_a_time(full_run, tmp_path):
    output = tmp_path / "run"
    flags = {"config": full_run / "full.yaml", "output_dir": output, "eval_nll_every": 0, "logging_steps": 1}
    living = shared().start(*command(SCRIPT, **flags, max_train_steps=10000, checkpointing_steps=20))
    while not (output / "checkpoint-20").exists():
        assert living.poll() is None
        time.sleep(0.005)
    others = [shared().start(*command(SCRIPT, **flags, **how)) for how in ({}, {"resume_from_checkpoint": "latest"})]
    for refused in others:
        told = refused.communicate(100)[1]
        said = f"`output_dir` must be written by one process at a time, got {str(output)!r}, which process {living.pid} has"
        assert refused.returncode == 2 and said in told.splitlines()[-1]
    clean_up(output / "pipeline")
    clean_up(output / "checkpoint")
    while len(metrics(output)) < 50 or not (output / "checkpoint-40").exists():  # it goes on undisturbed
        assert living.poll() is None
        time.sleep(0.005)
    living.kill()
    living.wait()
    last = checkpoints(output)[-1]
    step = int(last.name.rpartition("-")[2])
    train(**flags, max_train_steps=step + 2, resume_from_checkpoint="latest")
    assert [line["step"] for line in metrics(output)] == list(range(1, step + 3))
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


def test_a_compiled_network_trains_alike_and_is_saved_as_ever(full_run, tmp_path):
    r"""By the backend that traces as inductor does, and compiles nothing."""
    flags = {"config": full_run / "full.yaml", "max_train_steps": 4, "eval_nll_every": 4, "unet": {"dropout": 0.0}}
    flags["checkpointing_steps"] = 2
    launcher = {"ACCELERATE_DYNAMO_BACKEND": "EAGER"}  # of `accelerate launch --dynamo_backend eager`

    def compiled(**more):
        done = shared().run(*command(SCRIPT, **flags, **more), env=os.environ | launcher)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "parameters, compiled by eager" in done.stdout

    train(output_dir=tmp_path / "eager", **flags)
    compiled(output_dir=tmp_path / "compiled")
    for one, other in zip(metrics(tmp_path / "eager"), metrics(tmp_path / "compiled"), strict=True):
        assert one.pop("split", None) == other.pop("split", None)
        assert other == pytest.approx(one, rel=1e-4)
    compiled(output_dir=tmp_path / "resumed", resume_from_checkpoint=tmp_path / "compiled" / "checkpoint-2")
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "compiled")[2:]
    eager, whole, resumed = (
        load_file(tmp_path / name / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("eager", "compiled", "resumed")
    )
    assert equal(whole, resumed) and whole.keys() == eager.keys()
    DDPMPipeline.from_pretrained(tmp_path / "compiled" / "pipeline")


def test_compiling_is_asked_of_torch(full_run, tmp_path):
    flags = {"config": full_run / "full.yaml", "output_dir": tmp_path / "run", "max_train_steps": 1, "eval_nll_every": 0}
    script, *arguments = command(SCRIPT, "--compile", **flags)
    code = "import runpy, sys, torch._inductor.config as inductor; "
    code += f"inductor.cpp.cxx = (None, {str(tmp_path / 'no-compiler')!r}); "
    code += f"sys.path[0] = {str(Path(script).parent)!r}; runpy.run_path({str(script)!r}, run_name='__main__')"
    # Nothing that was compiled before.
    done = shared().run("-c", code, *arguments, env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == 2 and "`compile` must be left out where torch cannot compile" in done.stderr
    assert "Traceback" not in done.stderr


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
            "{attention_head_dim: 8, block_out_channels: [16, 16, 16, 16, 16],"
            " down_block_types: [DownBlock2D, DownBlock2D, DownBlock2D,"
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
    "no rules for the learning rate": (["--lr_scheduler", "piecewise_constant"], "`lr_step_rules` must be given for"),
    "rules for nothing": (
        ["--lr_step_rules", "1:5,0.1"],
        "`lr_step_rules` must be given for lr_scheduler='piecewise_constant'",
    ),
    "rules that go back": (["--lr_step_rules", "1:5,0.1:5,0.01"], "must be of the form 1:1000,0.1:2000,0.01"),
    "two lengths": (["--num_epochs=2", "--max_train_steps=3"], "Only one of `num_epochs` and `max_train_steps` may be given"),
    "epochs of a stream": (["--streaming", "--num_epochs=2"], "`num_epochs` must be left out for a stream, got 2"),
    "crop of nothing": (["--center_crop"], "`center_crop` must go with a `resolution`"),
    "resolution of digits": (
        ["--resolution=16"],
        "`resolution` must be left out for images that are not 8-bit, got 17",
    ),
    "attention without a head": (
        ["--unet", "{attention_head_dim: 0}"],
        "`attention_head_dim` must be null or an integer",
    ),
    "attention that is too narrow": (["--unet", "{attention_head_dim: 200}"], "`attention_head_dim` must be at most the 128"),
    "layers without end": (["--unet", "{layers_per_block: 1000000}"], "`layers_per_block` must be an integer from 1 to 100"),
    "a network that does not run": (["--unet", "{mid_block_scale_factor: 0}"], "`mid_block_scale_factor` must be a positive"),
    "an embedding without end": (["--unet", "{time_embedding_dim: 1000000000}"], "`time_embedding_dim` must be null or an"),
    "groups that do not divide": (["--unet", "{norm_num_groups: 7}"], "`unet` must"),
    "a network too large for any memory": (
        ["--unet", "{block_out_channels: [65536, 65536, 65536]}"],
        "`unet` must have at most",
    ),
    "steps": (["--ddpm_num_steps=1000000000000"], "`ddpm_num_steps` must be at most 1000000, got 1000000000000"),
    "batch": (["--train_batch_size=1000000000000"], "`train_batch_size` must be at most 1000000, got 1000000000000"),
    "parts": (["--gradient_accumulation_steps=1000000000000"], "`gradient_accumulation_steps` must be at most 1000000"),
    "seed": (["--seed", str(2**63)], "`seed` must be at most 9223372036854775807"),
    "weight decay": (["--adam_weight_decay=nan"], "`adam_weight_decay` must be finite, got nan"),
    "levels": (["--num_pixel_levels=1"], "`num_pixel_levels` must be at least 2, got 1"),
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
    lists = [f"  a{i}: &k{i} [{','.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 9)]
    bomb = "unet:\n  a0: &k0 [x,x,x,x,x,x,x,x,x]\n" + "".join(lists)  # 9^9 words, in 400 bytes
    for text, message in (
        ("learning_rat: 1", "`config` must hold flags of this script only, got 'learning_rat'"),
        ("config: other.yaml", "`config` must hold flags of this script only, got 'config'"),
        ("use_ema: 1", "`use_ema` must be true or false"),
        ("- 1", "must be a mapping of names to values"),
        ("1: 2", "must be a mapping of names to values"),
        ("a: [", "`config` must be a readable YAML file of flags"),
        ("unet: {a: &a 1, b: *a}", "aliases are not taken, got *a"),
        (bomb, "aliases are not taken"),
        ("unet: " + "{a: " * 2000 + "1" + "}" * 2000, "at most 20 levels of nesting are taken"),
        ('{"a": ' * 200_000, "must have at most 1000000 characters"),
        ('{"a": ' * 100_000, "at most 20 levels of nesting are taken"),
        ("seed: " + "9" * 5000, "`config` must be a readable YAML file of flags"),
        ("seed: 2001-99-99", "`config` must be a readable YAML file of flags"),
        (json.dumps({"k" * 100_000: 1}), "`config` must hold flags of this script only"),
        ("ddpm_num_steps: 1000000000000", "`ddpm_num_steps` must be at most 1000000"),
    ):
        path.write_text(text)
        assert script.main(["--dataset=digits", f"--output_dir={tmp_path / 'run'}", f"--config={path}"]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1 and len(said) < 1000


def test_the_command_line_wins_over_the_file(tmp_path, script):
    path = tmp_path / "config.yaml"
    path.write_text("dataset: digits\nlearning_rate: 1e-3\nuse_ema: true\nunet: {dropout: 0.5, layers_per_block: 1}\n")
    argv = [f"--config={path}", "--output_dir=x", "--no-use_ema", "--unet={dropout: 0.1}", "--train_batch_size=3"]
    arguments = script.parse_arguments(argv)
    assert (arguments.learning_rate, arguments.use_ema, arguments.train_batch_size) == (1e-3, False, 3)
    assert arguments.unet == {"dropout": 0.1, "layers_per_block": 1} and arguments.lr_scheduler == "cosine"
    assert script.parse_arguments(["--dataset=digits", "--output_dir=x"]).unet == {}


def test_help_and_refusals_need_no_torch(script):
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import train_vlb_ddpm
assert train_vlb_ddpm.main(["--dataset=digits", "--output_dir=x", "--max_train_steps=0"]) == 2
train_vlb_ddpm.parse_arguments(["--help"])
"""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "piecewise_constant" in done.stdout and "Traceback" not in done.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "yaml" in imported and not imported & {"torch", "diffusers", "accelerate", "numpy"}


def test_the_names_of_choices_are_the_packages(script):
    from diffusers.optimization import SchedulerType
    from trainer import arguments

    from ddpm_vlb import checks, losses, noise_schedules, parametrizations, timestep_samplers

    assert arguments.LOSS_TYPES == losses.LOSS_TYPES and arguments.BETA_SCHEDULES == noise_schedules.BETA_SCHEDULES
    assert arguments.PREDICTION_TYPES == parametrizations.PREDICTION_TYPES
    assert arguments.VARIANCE_TYPES == parametrizations.VARIANCE_TYPES
    assert arguments.TIMESTEP_SAMPLERS == tuple(timestep_samplers.TIMESTEP_SAMPLERS)
    assert arguments.LR_SCHEDULERS == tuple(kind.value for kind in SchedulerType)
    assert arguments.MAX_TIMESTEPS == checks.MAX_TIMESTEPS


def test_stock_names_are_taken_on_the_command_line_and_in_files(script, tmp_path):
    argv = ["--dataset_name=a/b", "--ddpm_beta_schedule=squaredcos_cap_v2", "--logger=tensorboard", "--num_epochs=3"]
    argv += ["--save_images_epochs=10", "--save_model_epochs=5", "--logging_dir=elsewhere", "--output_dir=x"]
    stock = script.parse_arguments(argv)
    assert (stock.dataset, stock.beta_schedule, stock.report_to) == ("a/b", "squaredcos_cap_v2", "tensorboard")
    assert stock.max_train_steps is None and stock.logging_dir == Path("elsewhere")
    path = tmp_path / "stock.yaml"
    path.write_text("train_data_dir: a/b\nddpm_beta_schedule: squaredcos_cap_v2\nnum_epochs: 3\n")
    assert script.parse_arguments([f"--config={path}", "--output_dir=x"]).beta_schedule == "squaredcos_cap_v2"


# As the README of diffusers' examples/unconditional_image_generation has it.
STOCK = """--dataset_name="huggan/flowers-102-categories" --resolution=64 --center_crop --random_flip
--output_dir="ddpm-ema-flowers-64" --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1 --use_ema
--learning_rate=1e-4 --lr_warmup_steps=500 --mixed_precision=no --push_to_hub"""


def test_the_stock_command_line_runs_unchanged(hub, client, tmp_path):
    r"""On pictures of mixed sizes, one of them grey, in a folder of that name; with a network that is small enough."""
    folder = tmp_path / "huggan" / "flowers-102-categories"
    folder.mkdir(parents=True)
    for index, (size, mode) in enumerate((((80, 70), "RGB"), ((64, 200), "RGB"), ((50, 40), "L"))):
        noise = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        Image.fromarray(noise.numpy()).convert(mode).save(folder / f"{index}.png")
    more = ["--save_images_epochs=60", "--save_model_epochs=40", "--num_sample_images=1", "--ddpm_num_inference_steps=2"]
    unet = f"--unet={json.dumps(TINY | {'add_attention': False})}"
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
sys.path.insert(0, {str(SCRIPT.parent)!r})
import train_vlb_ddpm
sys.exit(train_vlb_ddpm.main({[*shlex.split(STOCK), *more, unet]!r}))
"""
    done = client.zygote.run("-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    output = tmp_path / "ddpm-ema-flowers-64"
    assert "images: 3 of (3, 64, 64), 256 levels" in done.stdout and "updates: 19" in done.stdout
    assert sorted(path.name for path in (output / "samples").iterdir()) == ["step-0000012.png", "step-0000019.png"]
    assert "unet/config.json" in hub.repositories["me/ddpm-ema-flowers-64"].files


def test_squares_are_cut_as_torchvision_does(script):
    r"""`Resize` and `CenterCrop` of torchvision, by their definitions: the shorter side, the middle; at random, every place."""
    from trainer.crops import Squares, cut

    from ddpm_vlb.data.image_sets import image_set

    ramp = torch.arange(6, dtype=torch.uint8).expand(4, 6).numpy()
    assert torch.tensor(list(cut(Image.fromarray(ramp), 4, 0.5, 0.5).tobytes())).reshape(4, 4)[0].tolist() == [1, 2, 3, 4]
    squares = Squares(image_set(ramp[None], "a ramp"), 4)
    assert squares[0].shape == (1, 4, 4) and squares[0][0, 0].tolist() == [1, 2, 3, 4]
    firsts = {squares[0, key][0, 0, 0].item() for key in range(40)}
    assert firsts == {0, 1, 2} and torch.equal(squares[0, 7], squares[0, 7])
    large = Image.fromarray(torch.randint(256, (20, 31), dtype=torch.uint8).numpy())
    assert cut(large, 8, 0.5, 0.5).size == (8, 8)


def test_resolutions_at_random_places_and_a_rate_in_steps(tmp_path):
    r"""Keyed by the example's number alone: a run that is resumed meets the same places."""
    (tmp_path / "data").mkdir()
    for index in range(6):
        noise = torch.randint(256, (12, 9 + index), generator=torch.Generator().manual_seed(index)).to(torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "data" / f"{index}.png")
    flags = {"dataset": tmp_path / "data", "resolution": 8, "unet": TINY, "ddpm_num_steps": 10, "train_batch_size": 4}
    flags |= {
        "lr_scheduler": "piecewise_constant",
        "lr_step_rules": "1:2,0.5:4,0.25",
        "logging_steps": 1,
        "learning_rate": 0.01,
    }
    train(output_dir=tmp_path / "whole", max_train_steps=6, **flags)
    train(output_dir=tmp_path / "parts", max_train_steps=3, **flags)
    train(output_dir=tmp_path / "parts", max_train_steps=6, resume_from_checkpoint="latest", **flags)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert [line["lr"] for line in metrics(tmp_path / "whole")] == pytest.approx([0.01, 0.005, 0.005, 0.0025, 0.0025, 0.0025])
    changed = train("--center_crop", output_dir=tmp_path / "parts", resume_from_checkpoint="latest", expect=2, **flags)
    assert "its squares has [8, 'random'], this run [8, 'center']" in changed.stderr


def test_a_small_folder_keeps_a_tenth_for_validation(full_run, tmp_path):
    (tmp_path / "data").mkdir()
    for index, image in enumerate(load_images("digits", "train", 40).images):
        Image.fromarray(image[0].numpy()).save(tmp_path / "data" / f"{index:02d}.png")
    flags = {"dataset": tmp_path / "data", "num_pixel_levels": 17, "ddpm_num_steps": 10, "unet": TINY, "num_sample_images": 0}
    flags |= {"eval_nll_every": 1, "max_train_steps": 1, "evaluations_per_image": 4}
    done = train(output_dir=tmp_path / "run", **flags)
    assert "validation: 4 of 40 images are kept out of training (--num_validation_images)" in done.stdout
    assert "scoring validation" in done.stderr and len(load_images(tmp_path / "run" / "validation.npz").images) == 4
    done = train(output_dir=tmp_path / "more", num_validation_images=30, **flags)
    assert "validation: 30 of 40 images are kept out" in done.stdout


def test_pictures_are_no_reason_to_stop_a_training(tmp_path):
    noise = torch.randint(256, (20, 8, 8, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    __import__("numpy").savez(tmp_path / "five.npz", images=noise)
    flags = {"ddpm_num_steps": 5, "unet": TINY, "max_train_steps": 2, "eval_nll_every": 1, "evaluations_per_image": 2}
    done = train(dataset=tmp_path / "five.npz", output_dir=tmp_path / "five", **flags)
    assert done.stdout.count("no pictures of samples: ") == 1 and "images of 5 channels" in done.stdout
    assert [line["split"] for line in metrics(tmp_path / "five") if "split" in line] == ["validation"] * 2
    # A folder that is none: nothing that happens to a picture is.
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "samples").write_text("a file")
    done = train(dataset="digits", output_dir=tmp_path / "blocked", **flags)
    assert done.stderr.count("no pictures of samples from here on") == 1
    assert (tmp_path / "blocked" / "checkpoint-2").is_dir()


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
    network = build_network(arguments, shape, scheduler)
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


def test_a_policy_gradient_moves_the_reward(tmp_path, pipe, capsys):
    sys.path.insert(0, str(ROOT / "training"))
    import policy_gradient

    rewards = policy_gradient.train(
        pipe, lambda levels: levels.double().mean(dim=(1, 2, 3)), num_iterations=20, num_inference_steps=4, learning_rate=0.03
    )
    # Mean levels of images, from 0 to 16; the mean of a batch varies by a tenth.
    assert min(rewards[-3:]) > max(rewards[:3]) + 0.5
    assert "mean reward" in capsys.readouterr().out
    for options, message in ((["--steps", "0"], "`num_inference_steps` must lie in"), (["--iterations", "0"], "`iterations`")):
        assert policy_gradient.main([*options, "--output", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    arguments = ["--iterations", "1", "--steps", "2", "--output", str(tmp_path / "out")]
    assert policy_gradient.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["after.png", "before.png", "pipeline"]


def test_labels_are_dropped_by_chance(script):
    from trainer.arguments import parse_arguments
    from trainer.augment import drop_labels

    labels, arguments = torch.arange(4000) % 10, Namespace(seed=0, class_dropout=0.1)
    places = range(0, 4000)
    dropped = drop_labels(labels, 10, arguments, 3, places)
    lost = dropped == 10
    assert (dropped == labels)[~lost].all() and abs(int(lost.sum()) - 400) < 5 * 360**0.5
    # By the place in the global batch, whoever has it.
    assert torch.equal(drop_labels(labels[1000:2000], 10, arguments, 3, range(1000, 2000)), dropped[1000:2000])
    assert not torch.equal(drop_labels(labels, 10, arguments, 4, places), dropped)
    assert drop_labels(labels, None, arguments, 3, places) is labels
    for flags, message in (
        (["--class_conditional", "--class_dropout", "1.5"], r"`class_dropout` must lie in \[0, 1\], got 1.5"),
        (["--class_dropout", "0.1"], "`class_dropout` must go with `class_conditional`"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arguments(["--dataset", "digits", "--output_dir", "run", *flags])


def test_classes_of_the_data_set(tmp_path):
    config = ROOT / "training" / "configs" / "digits_class.yaml"
    few = {
        "max_train_steps": 3,
        "eval_nll_every": 3,
        "checkpointing_steps": 3,
        "ddpm_num_steps": 20,
        "evaluations_per_image": 4,
    }
    few |= {"num_validation_images": 10, "num_eval_images": 4, "num_sample_images": 2, "ddpm_num_inference_steps": 3}
    run = tmp_path / "run"
    train(config=config, output_dir=run, unet=TINY | {"attn_norm_num_groups": 2}, class_dropout=0.2, **few)
    pipe = VLBDDPMPipeline.from_pretrained(run / "pipeline")
    # Some labels are kept from it: one class more, which is none to choose.
    assert pipe.network.num_classes == 11 and pipe.scheduler.config.unlabelled_class == 10
    kept = np.load(run / "validation.npz")
    digits = load_images("digits", "train")
    known = {image.numpy().tobytes(): label for image, label in zip(digits.images, digits.labels.tolist())}
    assert [known[image.tobytes()] for image in kept["images"][..., 0]] == kept["labels"].tolist()
    assert pipe.classify(kept["images"][:2], max_evaluations_per_image=20).probabilities.shape == (2, 10)
    scores = [line["bits_per_dim"] for line in metrics(run) if line.get("split") == "held_out"]
    assert len(scores) == 1
    rates = [line["accuracy"] for line in metrics(run) if "accuracy" in line]
    assert len(rates) == 2 and all(0 <= rate <= 1 for rate in rates)
    # diffusers alone samples with labels.
    stock = UNet2DModel.from_pretrained(run / "pipeline", subfolder="unet")
    assert stock(torch.zeros(2, 1, 8, 8), 3, class_labels=torch.tensor([0, 9])).sample.shape == (2, 2, 8, 8)
    plain = tmp_path / "plain.npz"
    np.savez(plain, images=np.zeros((40, 8, 8), dtype=np.uint8))
    for flags, message in (
        ({"dataset": plain, "eval_split": "", "num_validation_images": 4}, "must be left out for images without labels"),
        ({"unet": TINY | {"num_class_embeds": 7}}, "must have num_class_embeds = 10"),
    ):
        refused = train(config=config, output_dir=tmp_path / "no", expect=2, **flags)
        assert message in refused.stderr
