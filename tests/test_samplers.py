r"""Other schedulers of DDPMs' networks (DDIM, Euler ...): scored as the DDPM, and kept as they were."""

import json
import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler, calibrate, upgrade_scheduler
from ddpm_vlb.checkpoints.parts import CheckpointError
from ddpm_vlb.cli import main
from ddpm_vlb.evaluation import evaluate
from ddpm_vlb.hub.cards import model_card
from ddpm_vlb.hub.repository import card_settings, pipeline_files, repository_files
from ddpm_vlb.hub.standalone import community_source
from ddpm_vlb.model.configuration import DDPM, is_of_ddpms
from ddpm_vlb.parametrizations import PIPELINES, SAMPLED_BY_STOCK

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


def many_levels():
    return torch.randint(300, (2, 1, 8, 8), generator=generator()).to(torch.uint16)


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

    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, sample_max_value=2.0, num_pixel_levels=300)
    without = pipe.evaluate_nll(many_levels(), generator=generator()).bits_per_dim
    pipe.save_pretrained(tmp_path / "own")
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "own"))
    assert torch.equal(again.evaluate_nll(many_levels(), generator=generator()).bits_per_dim, without)
    alone = VLBDDPMScheduler.from_pretrained(tmp_path / "own", subfolder="scheduler")
    assert alone.config.sampler["_class_name"] == name and alone.config.num_pixel_levels == 300

    # For diffusers it is what it was, and one save is as the next.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "own")
    assert type(stock).__name__ == PIPELINES.get(name, "DDPMPipeline") and type(stock.scheduler) is cls
    kept = schedulers_file(tmp_path / "own")
    for key, value in schedulers_file(tmp_path / "stock").items():
        # What we changed is ours; the one is infinite, for which JSON has nothing.
        assert key in ("lambda_min_clipped", "sample_max_value") or kept[key] == value
    again.save_pretrained(tmp_path / "next")
    assert schedulers_file(tmp_path / "next") == kept
    if name in SAMPLED_BY_STOCK:
        pipeline = type(stock)
        before = pipeline(stock.unet, cls.from_pretrained(tmp_path / "stock", subfolder="scheduler"))
        assert (drawn(before) == drawn(stock)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SAMPLED_BY_STOCK)
def test_the_code_of_cards_samples(name, channels, tmp_path):
    scheduler = getattr(diffusers, name)(20, steps_offset=0 if name.startswith("DDPM") else 1)
    VLBDDPMPipeline(tiny_unet(channels), scheduler).save_pretrained(tmp_path)
    card = str(model_card(None, repository=str(tmp_path), settings=card_settings(schedulers_file(tmp_path))))
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "num_inference_steps" in block)
    names = {}
    exec(code.replace("pipe(batch_size=16, ", "pipe(batch_size=1, output_type='np', "), names)
    assert names["images"].shape == (1, 8, 8, channels) and np.isfinite(names["images"]).all()


def test_a_calibration_is_kept_beside_it(tmp_path):
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
        kept = pipe.scheduler.config[name] or {}
        assert kept == {key: value for key, value in (again.config[name] or {}).items() if key in kept}


def test_an_assigned_scheduler_takes_the_place_of_the_kept_one(tmp_path):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), PNDMScheduler(**SETTINGS)))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    again = VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.sampler
    assert again["_class_name"] == "DDIMScheduler" and "sampler" not in again


# What cannot be kept faithfully.


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_end": 0.2},
        {"num_train_timesteps": 11},
        {"trained_betas": [0.1] * 10},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"clip_sample": False, "timestep_spacing": "trailing"},
        {"thresholding": True, "steps_offset": 1},
    ],
)
def test_what_both_know_is_said_once(settings, tmp_path):
    r"""Changed by us or by diffusers, in memory or in the file: the two never say different things."""
    DDPMPipeline(tiny_unet(1), DDIMScheduler(**SETTINGS)).save_pretrained(tmp_path / "stock")
    quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "stock")).save_pretrained(tmp_path / "ours")
    changed = VLBDDPMScheduler.from_pretrained(tmp_path / "ours", subfolder="scheduler", **settings)
    expected = VLBDDPMScheduler(**SETTINGS | settings).forward_process().alphas_cumprod
    VLBDDPMPipeline(tiny_unet(1), changed).save_pretrained(tmp_path / "by us")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config, **settings)
    stock.save_pretrained(tmp_path / "by diffusers")
    for name in ("by us", "by diffusers"):
        again = VLBDDPMPipeline.from_pretrained(tmp_path / name).scheduler
        theirs = DiffusionPipeline.from_pretrained(tmp_path / name).scheduler
        assert type(theirs) is DDIMScheduler and again.config.sampler["_class_name"] == "DDIMScheduler"
        assert all(again.config[key] == theirs.config[key] == value for key, value in settings.items())
        assert torch.equal(again.forward_process().alphas_cumprod, expected)


def test_what_was_assigned_is_saved(tmp_path):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), DDIMScheduler(**SETTINGS)))
    pipe.scheduler.config.prediction_type = "v_prediction"
    pipe.save_pretrained(tmp_path)
    assert DiffusionPipeline.from_pretrained(tmp_path).scheduler.config.prediction_type == "v_prediction"
    assert VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.prediction_type == "v_prediction"
    pipe.scheduler.config.sampler = "DDIMScheduler"
    with pytest.raises(ValueError, match="`sampler` must be the configuration of another"):
        pipe.save_pretrained(tmp_path / "no")
    assert "VLBDDPMScheduler" in repr(pipe.scheduler) and not (tmp_path / "no").exists()  # which is no save


@pytest.mark.parametrize("cls", [DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler])
def test_another_put_in_place_by_diffusers_keeps_what_was_scored(cls, tmp_path):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), DDIMScheduler(**SETTINGS)))
    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, num_pixel_levels=300, sample_max_value=2.0)
    pipe.save_pretrained(tmp_path / "ours")
    bound = pipe.evaluate_nll(many_levels(), generator=generator()).bits_per_dim
    stock = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    stock.scheduler = cls.from_config(stock.scheduler.config)
    stock.save_pretrained(tmp_path / "stock")
    for again in (VLBDDPMPipeline.from_pipe(stock), VLBDDPMPipeline.from_pretrained(tmp_path / "stock")):
        assert torch.equal(quiet(again).evaluate_nll(many_levels(), generator=generator()).bits_per_dim, bound)
        kept = again.scheduler.config.sampler
        assert kept is None if cls is DDPMScheduler else kept["_class_name"] == cls.__name__


def test_a_scheduler_in_memory_is_read_with_its_own_defaults():
    for scheduler in (HeunDiscreteScheduler(10), EulerDiscreteScheduler(**SETTINGS), DPMSolverMultistepScheduler(20)):
        upgraded, read = upgrade_scheduler(scheduler), VLBDDPMScheduler.from_config(scheduler.config)
        for name in ("num_train_timesteps", "beta_start", "beta_end", "timestep_spacing", "variance_type"):
            assert read.config[name] == upgraded.config[name], name
        assert read.inference_grid(4) == upgraded.inference_grid(4)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_predict_epsilon_says_the_same_everywhere(cls, tmp_path):
    DDPMPipeline(tiny_unet(1), cls(10)).save_pretrained(tmp_path)
    config = schedulers_file(tmp_path)
    del config["prediction_type"]
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"predict_epsilon": False}))
    for scheduler in (
        VLBDDPMPipeline.from_pretrained(tmp_path).scheduler,
        VLBDDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler"),
        VLBDDPMScheduler.from_config(config | {"predict_epsilon": False}),
    ):
        assert scheduler.config.prediction_type == "sample"


@pytest.mark.parametrize(
    ("scheduler", "settings", "message"),
    [
        (
            HeunDiscreteScheduler(**SETTINGS),
            {"rescale_betas_zero_snr": True},
            "knows this model's rescale_betas_zero_snr",
        ),
        (DDIMScheduler(**SETTINGS), {"beta_schedule": "sigmoid"}, "knows this model's beta_schedule = 'sigmoid', got a DDIM"),
    ],
)
def test_what_the_other_cannot_be_told_is_refused(scheduler, settings, message):
    config = upgrade_scheduler(scheduler).config
    with pytest.raises(ValueError, match=f"`sampler` must be a scheduler that {message}"):
        VLBDDPMScheduler.from_config(config, **settings)
    (name,) = settings
    assert VLBDDPMScheduler.from_config(config, **settings, sampler=None).config[name] == settings[name]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        *((block, "`vlb_ddpm` must be a mapping of settings, got ") for block in (None, [], "x", 1)),
        ({"num_pixel_levels": "many"}, "`num_pixel_levels` must be an integer from 2"),
        ({"calibration": 3}, "`calibration` must be null or a mapping"),
    ],
)
@pytest.mark.parametrize("scheduler", [DDIMScheduler(**SETTINGS), EDMEulerScheduler()], ids=["ddim", "edm"])
def test_a_damaged_block_is_refused(scheduler, block, message, tmp_path):
    quiet(VLBDDPMPipeline(tiny_unet(1), scheduler)).save_pretrained(tmp_path)
    config = schedulers_file(tmp_path) | {"vlb_ddpm": block}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        VLBDDPMPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        VLBDDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")


def test_settings_that_cannot_be_meant_are_refused_by_the_scheduler_too():
    for name, value in (("beta_end", 10**400), ("beta_end", [1]), ("trained_betas", {}), ("prediction_type", 3)):
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            VLBDDPMScheduler.from_config({name: value})


@pytest.mark.parametrize(
    "settings", [{"timestep_type": "continuous"}, {"use_flow_sigmas": True}, {"sigma_data": 0.5}, {"shift": 1.0}]
)
def test_another_process_is_not_taken_under_the_name_of_a_ddpm(settings, tmp_path):
    DDPMPipeline(tiny_unet(1), DDPMScheduler(10)).save_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedulers_file(tmp_path) | settings))
    with pytest.raises(CheckpointError, match="schedulers for the networks of DDPMs, .* with {"):
        VLBDDPMPipeline.from_pretrained(tmp_path)


def test_two_names_and_a_value_that_neither_file_says(tmp_path):
    DDPMPipeline(tiny_unet(1), DDPMScheduler(10)).save_pretrained(tmp_path)
    config = schedulers_file(tmp_path) | {"_class_name": "HeunDiscreteScheduler"}
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(config))
    assert VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.beta_end == 0.02
    del config["beta_end"]
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="must say the beta_end of its scheduler, which 'DDPMScheduler' in the index and"):
        VLBDDPMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("of", [EDMEulerScheduler(sigma_data=0.25), FlowMatchEulerDiscreteScheduler(shift=3.0)])
def test_a_ddpms_scheduler_made_of_another_processs_is_refused(cls, of):
    with pytest.raises(ValueError, match="with {'(shift|sigma_data)': "):
        upgrade_scheduler(cls.from_config(of.config))


def test_a_pipeline_of_diffusers_that_holds_our_scheduler(tmp_path):
    for number, scheduler in enumerate((EDMEulerScheduler(), DDIMScheduler(**SETTINGS))):
        ours = quiet(VLBDDPMPipeline(tiny_unet(1), scheduler))
        DDPMPipeline.from_pipe(ours).save_pretrained(tmp_path / str(number))
        again = VLBDDPMPipeline.from_pretrained(tmp_path / str(number))
        assert again.scheduler.config.num_train_timesteps == ours.scheduler.config.num_train_timesteps


def test_a_subclass_with_arguments_of_its_own():
    class Mine(VLBDDPMScheduler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    assert Mine(10).forward_process().num_train_timesteps == 10


def test_all_steps_are_one_grid_whatever_the_offset():
    scheduler = upgrade_scheduler(DDIMScheduler(**SETTINGS, steps_offset=2))
    assert scheduler.inference_grid(10) == list(range(10))[::-1]
    with pytest.raises(ValueError, match=r"`steps_offset` must leave timesteps in \[0, 10\), got 2 for 9 steps"):
        scheduler.inference_grid(9)


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
        (DDIMScheduler(), "num_inference_steps=50)"),
        (DDIMScheduler(timestep_spacing="trailing"), "num_inference_steps=50)"),
        (DDPMScheduler(), "num_inference_steps=1000)"),
        (DPMSolverMultistepScheduler(), "loads it with its DPMSolverMultistepScheduler, as it was before."),
        (EulerDiscreteScheduler(), "loads it with its EulerDiscreteScheduler, as it was before."),
        (EDMEulerScheduler(), "loads it with its EDMEulerScheduler, as it was before."),
        (FlowMatchEulerDiscreteScheduler(), "loads it with its FlowMatchEulerDiscreteScheduler, as it was before."),
        (DDPMScheduler(timestep_spacing="trailing"), "cannot sample from it (timestep_spacing: trailing)"),
    ],
)
def test_cards_say_what_diffusers_can_sample(scheduler, says):
    saved = json.loads(upgrade_scheduler(scheduler).to_json_string())
    assert says in str(model_card(None, repository="me/it", settings=card_settings(saved)))


def test_cards_are_of_the_scheduler_that_is_there(tmp_path):
    r"""Not of that of the report, which may have been made under another, or before reports named one."""
    pipe = quiet(VLBDDPMPipeline(tiny_unet(1), EulerDiscreteScheduler(**SETTINGS)))
    pipe.save_pretrained(tmp_path)
    report = evaluate(pipe, images(), method="full", quiet=True)
    assert report["config"]["scheduler"] == "EulerDiscreteScheduler"
    old = {key: value for key, value in report["config"].items() if key != "scheduler"}
    for config in (report["config"], old, old | {"scheduler": "DDPMScheduler"}):
        said = {**report, "config": config}
        files = repository_files(pipeline_files(tmp_path), "me/it", said)
        assert "loads it with its EulerDiscreteScheduler" in files["README.md"].decode()
        (tmp_path / "report.json").write_text(json.dumps(said))
        assert main(["card", str(tmp_path), "--num-images=0"]) == 0 == main(["card", "--check", str(tmp_path)])
        assert "loads it with its EulerDiscreteScheduler" in (tmp_path / "README.md").read_text()


def test_the_community_pipeline_reads_what_is_saved(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "pipeline.py").write_text(community_source())
    how = {"custom_pipeline": str(tmp_path / "c"), "trust_remote_code": True}
    for scheduler in (DDIMScheduler(**SETTINGS), PNDMScheduler(**SETTINGS), DPMSolverMultistepScheduler(**SETTINGS)):
        pipe = quiet(VLBDDPMPipeline(tiny_unet(1), scheduler))
        pipe.save_pretrained(tmp_path / "a")
        theirs = quiet(DiffusionPipeline.from_pretrained(tmp_path / "a", **how))(images(), generator=generator())
        ours = pipe.evaluate_nll(images(), generator=generator())
        assert torch.allclose(theirs.bits_per_dim, ours.bits_per_dim, rtol=1e-6)  # of float32 networks in other batches
    pipe.scheduler = calibrate(pipe, torch.cat([images()] * 8), evaluations=64, num_timesteps=3).scheduler
    pipe.save_pretrained(tmp_path / "calibrated")
    with pytest.raises(ValueError, match="`scheduler` must not be calibrated"):
        quiet(DiffusionPipeline.from_pretrained(tmp_path / "calibrated", **how))(images())
    quiet(VLBDDPMPipeline(tiny_unet(1), EDMEulerScheduler())).save_pretrained(tmp_path / "edm")
    with pytest.raises(ValueError, match="`scheduler` must be a DDPMScheduler, got EDMEulerScheduler without beta_start"):
        quiet(DiffusionPipeline.from_pretrained(tmp_path / "edm", **how))(images())
