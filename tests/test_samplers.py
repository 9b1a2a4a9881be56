r"""Other schedulers of DDPMs' networks (DDIM, Euler ...): scored as the DDPM, and kept as they were."""

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, upgrade_scheduler
from ddpm_vlb.checkpoints.parts import CheckpointError
from ddpm_vlb.hub.cards import model_card
from ddpm_vlb.hub.repository import card_settings
from ddpm_vlb.model.configuration import DDPM, is_of_ddpms
from ddpm_vlb.noise_processes import NOISE_PROCESSES
from ddpm_vlb.parametrizations import PIPELINES

# One needs a library that is not installed.
SAMPLERS = [
    name
    for name in dir(diffusers)
    if is_of_ddpms(name) and name not in DDPM and issubclass(getattr(diffusers, name), diffusers.SchedulerMixin)
]
SETTINGS = {"num_train_timesteps": 10, "beta_start": 0.001, "beta_end": 0.1}


def schedulers_file(folder):
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def images():
    return torch.randint(256, (2, 1, 8, 8), generator=generator()).to(torch.uint8)


def drawn(pipe):
    return quiet(pipe)(2, num_inference_steps=5, generator=generator(), output_type="np").images


def test_all_of_diffusers_are_tried():
    assert len(SAMPLERS) >= 14 and {"DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"} <= set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_folder_of_diffusers_is_scored_and_saved_as_it_was(name, tmp_path):
    cls = getattr(diffusers, name)
    DDPMPipeline(tiny_unet(1), cls(**SETTINGS)).save_pretrained(tmp_path / "stock")
    pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "stock"))
    ddpm = quiet(VLBDDPMPipeline(pipe.unet, VLBDDPMScheduler(**SETTINGS, clip_sample=pipe.scheduler.config.clip_sample)))
    bound = pipe.evaluate_nll(images(), generator=generator()).bits_per_dim
    assert torch.equal(ddpm.evaluate_nll(images(), generator=generator()).bits_per_dim, bound)

    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False, num_pixel_levels=256)
    without = pipe.evaluate_nll(images(), generator=generator()).bits_per_dim
    pipe.save_pretrained(tmp_path / "own")
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "own"))
    assert torch.equal(again.evaluate_nll(images(), generator=generator()).bits_per_dim, without)
    alone = VLBDDPMScheduler.from_pretrained(tmp_path / "own", subfolder="scheduler")
    assert alone.config.sampler["_class_name"] == name and alone.config.clip_sample is False

    # For diffusers it is what it was, and one save is as the next.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "own")
    assert type(stock).__name__ == PIPELINES.get(name, "DDPMPipeline") and type(stock.scheduler) is cls
    kept = schedulers_file(tmp_path / "own")
    for key, value in schedulers_file(tmp_path / "stock").items():
        assert key == "lambda_min_clipped" or kept[key] == value  # which is infinite, for which JSON has nothing
    again.save_pretrained(tmp_path / "next")
    assert schedulers_file(tmp_path / "next") == kept
    if name in PIPELINES:
        pipeline = getattr(diffusers, PIPELINES[name])
        before = pipeline(stock.unet, cls.from_pretrained(tmp_path / "stock", subfolder="scheduler"))
        assert (drawn(before) == drawn(stock)).all()


def test_pipelines_sample_what_their_networks_were_trained_on():
    r"""A pipeline of pixels neither scales the noise that it starts from nor passes over the scheduler's generator."""
    for name in [*SAMPLERS, *(name for process in NOISE_PROCESSES for name in process.schedulers)]:
        scheduler = getattr(diffusers, name)()
        if PIPELINES.get(name, "DDPMPipeline") == "DDPMPipeline":
            scaled = float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0
            samples = "generator" in inspect.signature(scheduler.step).parameters and not scaled
            assert samples == (name in PIPELINES), name


def test_a_calibration_is_kept_beside_it(tmp_path):
    from ddpm_vlb import calibrate

    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), DDIMScheduler(**SETTINGS)))
    pipe.scheduler = calibrate(pipe, torch.cat([images()] * 8), evaluations=64, num_timesteps=3).scheduler
    pipe.save_pretrained(tmp_path)
    again = VLBDDPMPipeline.from_pretrained(tmp_path).scheduler
    assert again.calibration is not None and again.config.calibration == pipe.scheduler.config.calibration
    assert again.config.sampler["_class_name"] == "DDIMScheduler"
    assert schedulers_file(tmp_path)["_class_name"] == "DDIMScheduler"


def test_what_a_file_leaves_out_is_as_its_class_has_it(tmp_path):
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "HeunDiscreteScheduler", "num_train_timesteps": 50}')
    assert VLBDDPMScheduler.from_pretrained(tmp_path).config.beta_end == HeunDiscreteScheduler().config.beta_end == 0.012
    # Loaded as diffusers loads it, too.
    DDPMPipeline(tiny_unet(1), HeunDiscreteScheduler(50)).save_pretrained(tmp_path / "stock")
    file = tmp_path / "stock" / "scheduler" / "scheduler_config.json"
    file.write_text((tmp_path / "scheduler_config.json").read_text())
    assert VLBDDPMPipeline.from_pretrained(tmp_path / "stock").scheduler.config.beta_end == 0.012


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(20, trained_betas=np.linspace(0.01, 0.1, 20)),
        DDIMScheduler(np.int64(20), beta_end=np.float32(0.1)),
        EDMEulerScheduler(sigma_data=np.float32(0.25)),
        FlowMatchEulerDiscreteScheduler(shift=np.float32(3)),
    ],
)
def test_numbers_of_numpy_are_saved(scheduler, tmp_path):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), scheduler))
    pipe.save_pretrained(tmp_path)
    again = VLBDDPMPipeline.from_pretrained(tmp_path).scheduler
    assert torch.equal(again.forward_process().alphas_cumprod, pipe.scheduler.forward_process().alphas_cumprod)
    for name in ("sampler", "noise_process"):
        assert again.config[name] == pipe.scheduler.config[name]


def test_an_assigned_scheduler_takes_the_place_of_the_kept_one(tmp_path):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), PNDMScheduler(**SETTINGS)))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    again = VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.sampler
    assert again["_class_name"] == "DDIMScheduler" and "sampler" not in again


# What cannot be kept faithfully.


@pytest.mark.parametrize(
    "settings",
    [{"beta_end": 0.2}, {"num_train_timesteps": 11}, {"trained_betas": [0.1] * 10}, {"rescale_betas_zero_snr": True}],
)
def test_a_scheduler_of_another_model_is_refused(settings, tmp_path):
    own = upgrade_scheduler(EulerDiscreteScheduler(**SETTINGS))
    (name,) = settings
    with pytest.raises(ValueError, match=f"`sampler` must be of the model that is scored, got one with {name} = "):
        VLBDDPMScheduler.from_config(own.config, **settings)
    assert VLBDDPMScheduler.from_config(own.config, **settings, sampler=None).config[name] == settings[name]
    # The same in a file.
    quiet(VLBDDPMPipeline(tiny_unet(1), own)).save_pretrained(tmp_path)
    config = schedulers_file(tmp_path)
    config["vlb_ddpm"].update(settings)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"`sampler` must be of the model that is scored, got one with {name} = "):
        VLBDDPMPipeline.from_pretrained(tmp_path)


def test_a_prediction_that_was_assigned_is_not_saved_under_the_old_one(tmp_path):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), DDIMScheduler(**SETTINGS)))
    pipe.scheduler.config.prediction_type = "v_prediction"
    with pytest.raises(ValueError, match="got one with prediction_type = 'epsilon', not 'v_prediction'"):
        pipe.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert "VLBDDPMScheduler" in repr(pipe.scheduler)  # which is no save


@pytest.mark.parametrize(
    "sampler",
    [
        {"_class_name": "DDPMScheduler", **SETTINGS},
        {"_class_name": "LCMScheduler", **SETTINGS},
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": ["DDIMScheduler"], **SETTINGS},
        {},
        "DDIMScheduler",
    ],
)
def test_what_is_no_other_scheduler_is_refused(sampler):
    with pytest.raises(ValueError, match="`sampler` must be the configuration of another of diffusers' schedulers"):
        VLBDDPMScheduler(**SETTINGS, sampler=sampler)


def test_a_network_is_of_one_process():
    flow = upgrade_scheduler(FlowMatchEulerDiscreteScheduler(), 20)
    with pytest.raises(ValueError, match="`sampler` must be .* beside a `noise_process`"):
        VLBDDPMScheduler.from_config(flow.config, sampler={"_class_name": "DDIMScheduler"})


def test_settings_of_another_process_are_refused_from_a_file(tmp_path):
    DPMSolverMultistepScheduler(use_flow_sigmas=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="schedulers for the networks of DDPMs, .* with {'use_flow_sigmas': True}"):
        VLBDDPMScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        (DDIMScheduler(), 'DDIMPipeline.from_pretrained("me/it")'),
        (EulerDiscreteScheduler(), "diffusers' own pipelines sample no pixels with its EulerDiscreteScheduler."),
        (EDMEulerScheduler(), "diffusers' own pipelines sample no pixels with its EDMEulerScheduler."),
        (FlowMatchEulerDiscreteScheduler(), 'DDPMPipeline.from_pretrained("me/it")'),
    ],
)
def test_cards_say_what_diffusers_can_sample(scheduler, says):
    saved = json.loads(upgrade_scheduler(scheduler).to_json_string())
    assert says in str(model_card(None, repository="me/it", settings=card_settings(saved)))
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), scheduler))
    assert pipe.scorer().describe()["scheduler"] == type(scheduler).__name__
