r"""Training from networks of every kind and noise process, and what comes out of it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from safetensors.torch import load_file, save_file
from tiny import generator, quiet, tiny_condition, tiny_dit, tiny_unet
from zygote import shared

from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.data import load_images
from ddpm_vlb.model.kinds import network_of
from ddpm_vlb.model.preconditioned import preconditioned

SCRIPT = Path(__file__).parents[1] / "training" / "train_vlb_ddpm.py"
FLAGS = [
    "--dataset=digits",
    "--max_train_steps=2",
    "--train_batch_size=8",
    "--ddpm_num_steps=12",
    "--learning_rate=0.01",
    "--lr_warmup_steps=0",
    "--eval_nll_every=2",
    "--num_validation_images=4",
    "--evaluations_per_image=2",
    "--num_sample_images=2",
    "--ddpm_num_inference_steps=2",
]
TINY = {"block_out_channels": [4], "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4}
TINY |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
FAMILIES = {
    "dit": (lambda: tiny_dit(num_embeds_ada_norm=10), DDPMScheduler(12, variance_type="learned_range")),
    "condition": (lambda: tiny_condition(), DDPMScheduler(12)),
    "exploding": (lambda: tiny_unet(center_input_sample=True, time_embedding_type="fourier"), ScoreSdeVeScheduler()),
    "edm": (lambda: tiny_unet(), EDMEulerScheduler()),
    "flow": (lambda: tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=2.0)),
    "new flow": (None, FlowMatchEulerDiscreteScheduler()),
}


@pytest.fixture(autouse=True)
def trainer(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


def train(*arguments, expect=0):
    done = shared().run(SCRIPT, *FLAGS, *arguments)
    assert done.returncode == expect, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_stock_diffusers_loads(family, tmp_path):
    network, scheduler = FAMILIES[family]
    arguments, given = [], None
    if network is None:
        arguments = ["--parametrization=flow", f"--unet={json.dumps(TINY)}", "--loss_type=vlb"]
    else:
        DDPMPipeline(network(), scheduler).save_pretrained(tmp_path / "start")
        arguments = [f"--pretrained_model_name_or_path={tmp_path / 'start'}"]
    if family == "dit":
        arguments += ["--variance_type=learned_range", "--loss_type=hybrid", "--class_conditional"]
    if family == "condition":
        given = {"encoder_hidden_states": torch.randn(1, 3, 6, generator=generator(3))}
        save_file(given, tmp_path / "prompt.safetensors")
        arguments += [f"--network_kwargs={tmp_path / 'prompt.safetensors'}"]
    train(f"--output_dir={tmp_path / 'run'}", *arguments)
    # The network has moved, and is of its class and process.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert type(stock.scheduler) is type(scheduler)
    for name in ("shift", "sigma_data", "sigma_min"):
        assert stock.scheduler.config.get(name) == scheduler.config.get(name)
    if network is not None:
        assert type(stock.unet) is type(network())
        assert any(not torch.equal(a, b) for a, b in zip(stock.unet.parameters(), network().parameters()))
    # What diffusers saves again has the same number.
    stock.save_pretrained(tmp_path / "stock")
    images, options = load_images("digits", "test", 2).images, {"class_labels": [3, 5]} if family == "dit" else {}
    scores = []
    for folder in (tmp_path / "run" / "pipeline", tmp_path / "stock"):
        pipe = quiet(VLBDDPMPipeline.from_pretrained(folder, network_kwargs=given))
        assert pipe.scheduler.config.num_train_timesteps == 12 and pipe.scheduler.config.num_pixel_levels == 17
        scores.append(pipe.evaluate_nll(images, generator=generator(), **options).bits_per_dim)
    assert torch.equal(*scores)
    assert (tmp_path / "run" / "samples" / "step-0000002.png").is_file()


def test_a_run_of_a_flow_goes_on_where_it_stopped(tmp_path):
    flags = ["--parametrization=flow", f"--unet={json.dumps(TINY)}", "--loss_type=vlb", "--lr_scheduler=constant"]
    train(*flags, f"--output_dir={tmp_path / 'once'}")
    train(*flags, f"--output_dir={tmp_path / 'twice'}", "--max_train_steps=1")
    train(*flags, f"--output_dir={tmp_path / 'twice'}", "--resume_from_checkpoint=latest")
    weights = "checkpoint-2/model.safetensors"
    once, twice = (load_file(tmp_path / name / weights) for name in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)


def simple_loss(family, images, noise, timesteps):
    r"""(loss of the objective, levels sigma, the network) in float64."""
    from trainer.objective import Objective

    from ddpm_vlb import upgrade_scheduler

    network, scheduler = FAMILIES[family]
    unet, own = network().double(), upgrade_scheduler(scheduler, num_levels=12)
    objective = Objective(preconditioned(network_of(unet), own), own, "simple", learn_betas=False)
    with torch.no_grad():
        return objective(images, noise, timesteps), own.forward_process().snr[timesteps] ** -0.5, unet


def test_the_simple_loss_is_of_what_the_network_says():
    x, noise = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.randn(4, 1, 8, 8, generator=generator()).double()
    timesteps = torch.tensor([0, 3, 8, 11])
    got, sigma, unet = simple_loss("flow", x, noise, timesteps)
    s = (sigma / (1 + sigma)).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        said = unet((1 - s) * x + s * noise, 1000 * s.flatten()).sample
    # The image is formed from latents up to sigma = 500 wide: so many roundings of float64 more.
    assert torch.allclose(got, (said - (noise - x)).square().mean(dim=(1, 2, 3)), rtol=1e-9)
    got, sigma, unet = simple_loss("exploding", x, noise, timesteps)
    half = (sigma / 2).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        score = unet((x + 1) / 2 + half * noise, half.flatten()).sample
    assert torch.allclose(got, (half * score + noise).square().mean(dim=(1, 2, 3)), rtol=1e-9)
    got, sigma, unet = simple_loss("edm", x, noise, timesteps)
    wide, data = sigma.reshape(-1, 1, 1, 1), 0.5
    root = torch.sqrt(wide**2 + data**2)
    with torch.no_grad():
        said = unet((x + wide * noise) / root, wide.flatten().log() / 4).sample
    # Karras et al. 2022, eq. 8.
    target = (x - data**2 / root**2 * (x + wide * noise)) * root / (wide * data)
    assert torch.allclose(got, (said - target).square().mean(dim=(1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize(
    ("family", "flags", "message"),
    [
        ("flow", ["--prediction_type=v_prediction"], "`prediction_type` must be left out for a network of FlowMatch"),
        ("flow", ["--beta_schedule=sigmoid"], "`beta_schedule` must be left out for a network of FlowMatch"),
        ("flow", ["--loss_type=hybrid"], "`loss_type` must be 'simple' or 'vlb', and `variance_type` fixed"),
        ("flow", ["--variance_type=learned_range"], "`loss_type` must be 'simple' or 'vlb', and `variance_type` fixed"),
        ("flow", ["--parametrization=ddpm"], "`parametrization` must be left out, or what"),
        ("edm", ["--parametrization=flow"], "`parametrization` must be left out, or what"),
        ("edm", ["--ddpm_num_steps=2"], "`num_levels` must be from 3"),
        ("new flow", ["--prompt=a cat"], "`prompt` must go with `pretrained_model_name_or_path`"),
        ("condition", [], "`network_kwargs` must hold 'encoder_hidden_states' for this network"),
        ("dit", ["--variance_type=learned_range"], "`class_conditional` must be on for this DiTTransformer2DModel"),
        ("dit", ["--class_conditional"], "`unet` must have 1 output channel for 1 input channel"),
        ("dit", ["--class_conditional", "--unet={layers_per_block: 1}"], "`unet` must be left out for a DiTTransformer2DModel"),
    ],
)
def test_flags_that_do_not_fit_a_network_are_refused(family, flags, message, tmp_path, capsys):
    import train_vlb_ddpm

    network, scheduler = FAMILIES[family]
    start = ["--parametrization=flow"]
    if network is not None:
        DDPMPipeline(network(), scheduler).save_pretrained(tmp_path / "start")
        start = [f"--pretrained_model_name_or_path={tmp_path / 'start'}"]
    assert train_vlb_ddpm.main([*FLAGS, f"--output_dir={tmp_path / 'run'}", *start, *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run" / "metrics.jsonl").exists()
