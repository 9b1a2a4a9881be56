r"""Every family of networks through every command: folders that diffusers saved, with random weights, in the smallest sizes."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from safetensors.torch import load_file, save_file
from tiny import generator, quiet, tiny_condition, tiny_dit, tiny_unet

from ddpm_vlb import (
    FunctionModel,
    VLBDDPMPipeline,
    VLBDDPMScheduler,
    calibrate,
    compare,
    importance_weighted_nll,
    ode_nll,
    upgrade_scheduler,
)
from ddpm_vlb.cli import main
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion

# The network, the scheduler, and whether it is given something besides.
FAMILIES = {
    "ddpm": (lambda: tiny_unet(), DDPMScheduler(20)),
    "euler": (lambda: tiny_unet(), EulerDiscreteScheduler(20)),
    "class-conditional": (lambda: tiny_unet(num_class_embeds=2), DDPMScheduler(20)),
    "dit": (lambda: tiny_dit(num_embeds_ada_norm=2), DDPMScheduler(20, variance_type="learned_range")),
    "condition": (lambda: tiny_condition(), DDPMScheduler(20)),
    "exploding": (lambda: tiny_unet(center_input_sample=True, time_embedding_type="fourier"), ScoreSdeVeScheduler()),
    "edm": (lambda: tiny_unet(), EDMEulerScheduler()),
    "flow": (lambda: tiny_unet(), FlowMatchEulerDiscreteScheduler(shift=2.0)),
}
LOAD = "from ddpm_vlb import VLBDDPMPipeline; pipe = VLBDDPMPipeline.from_pretrained(name)\n"
REMOTE = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(name, custom_pipeline=name, trust_remote_code=True)
"""
STOCK = "from diffusers import DiffusionPipeline; pipe = DiffusionPipeline.from_pretrained(name)\n"
SCORE = """
import torch
pipe.set_progress_bar_config(disable=True)
if states:
    pipe.network_kwargs = {"encoder_hidden_states": torch.tensor(states)}
x = torch.arange(128).reshape(2, 1, 8, 8).to(torch.uint8)
options = {"class_labels": [0, 1]} if pipe.network.num_classes else {}
out = pipe.evaluate_nll(x, generator=torch.Generator().manual_seed(0), num_inference_steps=4, **options)
result = out.bits_per_dim.tolist()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    r"""A file of images with labels, and one of prompts for each."""
    folder = tmp_path_factory.mktemp("data")
    images = np.random.default_rng(0).integers(256, size=(18, 8, 8, 1), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(18) % 2)
    save_file({"encoder_hidden_states": torch.randn(2, 3, 6, generator=generator(3))}, folder / "prompts.safetensors")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_diffusers_through_every_command(family, data, hub, client, stranger, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network, scheduler = FAMILIES[family]
    DDPMPipeline(network(), scheduler).save_pretrained("stock")
    given = ["--network-kwargs", str(data / "prompts.safetensors")] if family == "condition" else []
    states = torch.randn(2, 3, 6, generator=generator(3)).tolist() if given else None
    classes = family in ("class-conditional", "dit", "condition")
    images = ["--dataset", str(data / "data.npz")]

    def command(*arguments):
        code = main([*arguments, *given])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    command("calibrate", "stock", *images, "--output", "better", "--evaluations=64", "--num-timesteps=3")
    command("evaluate", "better", *images, "--max-evaluations=120", "--output", "better/report.json", "--plot", "terms.png")
    report = json.loads((tmp_path / "better" / "report.json").read_text())
    assert report["config"]["calibration"] and report["config"]["num_class_embeds"] == (2 if classes else None)
    assert (report["config"]["noise_process"] or "DDPM").startswith(
        {"exploding": "variance_exploding", "edm": "edm", "flow": "flow_matching"}.get(family, "DDPM")
    )
    few = ["--max-images=2", "--num-inference-steps=4"]
    command("evaluate", "stock", *images, *few, "--method=full")
    command("evaluate", "stock", *images, *few, "--method=iw", "--k=2")
    command("evaluate", "stock", *images, "--max-images=1", "--method=ode", "--trace=hutchinson", "--rtol=0.1", "--atol=0.1")
    pipe = quiet(VLBDDPMPipeline.from_pretrained("stock"))
    pipe.network_kwargs = load_file(data / "prompts.safetensors") if given else None
    curve = rate_distortion(
        pipe, torch.zeros(2, 1, 8, 8, dtype=torch.uint8), num_inference_steps=3, class_labels=[0, 1] if classes else None
    )
    assert torch.isfinite(curve.rate).all() and torch.all(torch.diff(curve.rate) >= 0) and curve.distortion[-1] == 0
    command("compare", "stock", "better", *images, "--max-evaluations=160")
    assert np.isfinite(json.loads((tmp_path / "comparison.json").read_text())["difference"])
    label = ["--class-label=1"] if classes else []
    command("sample", "better", "--num-images=1", "--num-inference-steps=3", *label)
    command("card", "better", "--num-images=1")
    assert main(["card", "--check", "better"]) == 0
    # The Hub, and three ways to load from there.
    pushed = "from ddpm_vlb.cli import main; result = main(arguments)"
    arguments = ["push", str(tmp_path / "better"), f"me/{family}", *given]
    assert client.run(pushed, arguments=arguments) == 0
    ours = client.run(LOAD + SCORE, name=f"me/{family}", states=states)
    assert ours == client.run(LOAD + SCORE, name=str(tmp_path / "better"), states=states)
    assert stranger.run(REMOTE + SCORE, name=f"me/{family}", states=states) == ours
    named = STOCK + "result = type(pipe.scheduler).__name__, type(pipe.unet).__name__"
    assert stranger.run(named, name=f"me/{family}") == [type(scheduler).__name__, type(network()).__name__]


def test_a_ddpm_and_a_flow_are_compared_on_the_same_levels(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    betas = VLBDDPMScheduler(20).forward_process().betas.tolist()
    flow = upgrade_scheduler(FlowMatchEulerDiscreteScheduler())
    matched = VLBDDPMScheduler.from_config(flow.config, num_train_timesteps=20, trained_betas=betas)
    DDPMPipeline(tiny_unet(), DDPMScheduler(20)).save_pretrained("ddpm")
    VLBDDPMPipeline(tiny_unet(), matched).save_pretrained("flow")
    command = ["compare", "ddpm", "flow", "--dataset", str(data / "data.npz"), "--max-images=4", "--max-evaluations=1000"]
    assert main(command) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "comparison.json").read_text())
    pipes = [quiet(VLBDDPMPipeline.from_pretrained(name)) for name in ("ddpm", "flow")]
    images = torch.from_numpy(np.load(data / "data.npz")["images"][:4]).permute(0, 3, 1, 2)
    full = [pipe.evaluate_nll(images.repeat(50, 1, 1, 1), generator=generator()).bits_per_dim for pipe in pipes]
    difference = (full[0] - full[1]).reshape(50, 4).mean(dim=1)
    # Of 50 sweeps the mean; five standard errors of both.
    error = found["monte_carlo_error"] + difference.std().item() / 50**0.5
    assert abs(found["difference"]) > 10 * error
    assert abs(found["difference"] - difference.mean().item()) < 5 * error
    # Only one of them is given something.
    DDPMPipeline(tiny_condition(), DDPMScheduler(20)).save_pretrained("prompted")
    save_file({"encoder_hidden_states": torch.randn(1, 3, 6, generator=generator(3))}, "prompt.safetensors")
    assert main([*command[:2], "prompted", *command[3:], "--network-kwargs-b=prompt.safetensors"]) == 0, capsys.readouterr().err
    models = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert [model["condition_sha256"] is None for model in models] == [True, False]
    # And of any other levels.
    DDPMPipeline(tiny_unet(), FlowMatchEulerDiscreteScheduler()).save_pretrained("line")
    assert main([*command[:2], "line", *command[3:]]) == 0, capsys.readouterr().err


def test_a_plain_function_in_python(data, tmp_path):
    images = torch.from_numpy(np.load(data / "data.npz")["images"]).permute(0, 3, 1, 2)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    unet = FunctionModel(lambda x, t: network(x) + x * t[:, None, None, None] / 20, (1, 8, 8), takes_fractions=True)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(20)))
    better = quiet(VLBDDPMPipeline(unet, calibrate(pipe, images, evaluations=64, num_timesteps=3, quiet=True).scheduler))
    assert compare([pipe, better], images, max_evaluations=160, quiet=True)["difference"] > 0
    scores = [
        better.evaluate_nll(images[:2]).bits_per_dim,
        importance_weighted_nll(pipe, images[:2], k=2).bits_per_dim,
        ode_nll(pipe, images[:1], trace="hutchinson", rtol=0.1, atol=0.1).bits_per_dim,
        rate_distortion(better, images[:2]).rate,
        better(2, generator(), output_type="pt", num_inference_steps=4).images,
    ]
    assert all(torch.isfinite(score).all() for score in scores)
    with pytest.raises(ValueError, match="FunctionModel"):
        pipe.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
