r"""What a save leaves in a folder: what was there, or all that is new, of every scheduler; and what is refused before it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.cli import main
from ddpm_vlb.hub.push import push_folder
from ddpm_vlb.hub.repository import pipeline_files, repository_files


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_weights(pipe, folder):
    saved = VLBDDPMPipeline.from_pretrained(folder).unet
    return all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), saved.parameters(), strict=True))


def test_two_saves_within_one_tick_of_the_clock(pipe, tmp_path, monkeypatch):
    class Coarse:
        def __init__(self, status):
            self._status = status

        def __getattr__(self, name):
            return 0 if name.startswith("st_mtime") else getattr(self._status, name)

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: Coarse(stat(path, **options)))
    for safe in (True, True, False, False, True):
        pipe.save_pretrained(tmp_path, safe_serialization=safe)
        assert same_weights(pipe, tmp_path)
        assert [p.suffix for p in (tmp_path / "unet").iterdir() if p.suffix != ".json"] == [".safetensors" if safe else ".bin"]


def test_a_save_that_fails_leaves_the_folder_as_it_was(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)

    def no_space(*arguments, **options):
        raise OSError("No space left on device")

    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1)
    with monkeypatch.context() as patch:
        # The network is written before the scheduler, or after it: in either order.
        patch.setattr(VLBDDPMScheduler, "save_pretrained", no_space)
        with pytest.raises(OSError, match="No space"):
            pipe.save_pretrained(tmp_path)
        with pytest.raises(OSError, match="No space"):
            pipe.save_pretrained(tmp_path / "new")
    assert content(tmp_path) == before and not (tmp_path / "new").exists()
    pipe.save_pretrained(tmp_path)
    assert same_weights(pipe, tmp_path) and (tmp_path / "notes.txt").read_text() == "mine"


# Schedulers that were put in the place of ours.


def test_the_scheduler_that_is_there_is_saved(pipe, images, tmp_path):
    for cls in (DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler):
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        pipe.save_pretrained(tmp_path)
        stock = DDPMPipeline.from_pretrained(tmp_path).scheduler
        assert type(stock) is cls and stock.config.num_train_timesteps == 20
        assert {k: v for k, v in stock.config.items() if k[0] != "_"} == {
            k: v for k, v in pipe.scheduler.config.items() if k[0] != "_"
        }
        # In our hands it is the DDPM of the network again.
        assert VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.num_pixel_levels == 17
        files = repository_files(pipeline_files(tmp_path), "me/it")
        assert (
            cls.__name__ in files["model_index.json"].decode() and b"Infinity" not in files["scheduler/scheduler_config.json"]
        )
        with pytest.raises(ValueError, match=f"`scheduler` must be a VLBDDPMScheduler for a model.*got {cls.__name__}"):
            pipe.evaluate_nll(images)
    for sampler in ({}, {"sampler": None}):
        pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, **sampler)
        pipe.save_pretrained(tmp_path)
        saved_as = "DDPMScheduler" if sampler else "PNDMScheduler"
        assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", saved_as]


@pytest.mark.parametrize("cls", [DDIMScheduler, DPMSolverMultistepScheduler, DDPMScheduler])
def test_sampling_with_another_scheduler_is_the_parents(pipe, cls):
    pipe.scheduler = cls.from_config(pipe.scheduler.config)
    stock = quiet(DDPMPipeline(pipe.unet, cls.from_config(pipe.scheduler.config)))
    ours, theirs = (p(2, generator(), num_inference_steps=5, output_type="np").images for p in (pipe, stock))
    assert np.array_equal(ours, theirs)
    for arguments in ({"inference_timesteps": [5, 1]}, {"draw_from_decoder": True}):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be left out unless.*{cls.__name__}"):
            pipe(**arguments)


def test_sampling_refuses_schedulers_whose_steps_are_not_a_ddpms(pipe):
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="`scheduler` must be a VLBDDPMScheduler for this network to be sampled.*PNDM"):
        pipe(num_inference_steps=5)
    learned = quiet(VLBDDPMPipeline(tiny_unet(out_channels=2), VLBDDPMScheduler(20, variance_type="learned_range")))
    learned.scheduler = DDIMScheduler.from_config(learned.scheduler.config)
    with pytest.raises(ValueError, match="`scheduler` must be a VLBDDPMScheduler for this network to be sampled.*DDIM"):
        learned(num_inference_steps=5)


# Configurations that JSON has nothing for.


def test_infinite_settings_of_other_schedulers(images, tmp_path):
    solver = DPMSolverMultistepScheduler(num_train_timesteps=20)
    assert solver.config.lambda_min_clipped == -math.inf
    # Loaded, upgraded, or with the other's keys beside its own.
    for scheduler in (solver, DDPMScheduler.from_config(solver.config), VLBDDPMScheduler.from_config(solver.config)):
        quiet(VLBDDPMPipeline(tiny_unet(), scheduler)).save_pretrained(tmp_path)
        config = (tmp_path / "scheduler" / "scheduler_config.json").read_text()
        assert "Infinity" not in config and json.loads(config)["num_train_timesteps"] == 20
        assert VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.num_train_timesteps == 20
    # As stock diffusers saves it.
    DDPMPipeline(tiny_unet(), solver).save_pretrained(tmp_path / "stock")
    assert "-Infinity" in (tmp_path / "stock" / "scheduler" / "scheduler_config.json").read_text()
    assert b"Infinity" not in pipeline_files(tmp_path / "stock")["scheduler/scheduler_config.json"]


@pytest.mark.parametrize("setting", [{"sample_max_value": math.inf}, {"beta_end": math.nan}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(pipe, tmp_path, setting):
    pipe.save_pretrained(tmp_path / "good")
    before = content(tmp_path)
    pipe.scheduler = VLBDDPMScheduler.from_config(pipe.scheduler.config, **setting)
    message = f"`scheduler` must have a configuration that can be saved.*`{next(iter(setting))}` must be a value that JSON"
    for save in (pipe.save_pretrained, pipe.push_to_hub):
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "good" if save == pipe.save_pretrained else "me/it")
    with pytest.raises(ValueError, match="must be a value that JSON can hold"):
        pipe.scheduler.push_to_hub("me/it")
    assert content(tmp_path) == before
    # A folder of somebody else's.
    VLBDDPMScheduler.save_pretrained(pipe.scheduler, tmp_path / "good" / "scheduler")
    with pytest.raises(ValueError, match="must be a value that JSON can hold"):
        push_folder(tmp_path / "good", "me/it")


def test_calibrate_looks_before_it_works(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "pipe")
    VLBDDPMScheduler(20, num_pixel_levels=17, sample_max_value=math.inf).save_pretrained(tmp_path / "pipe" / "scheduler")
    output = str(tmp_path / "calibrated")
    # More evaluations than a test has time for.
    assert (
        main(["calibrate", str(tmp_path / "pipe"), "--dataset", "digits", "--evaluations", "100000000", "--output", output])
        == 2
    )
    assert "`sample_max_value` must be a positive number, got inf" in capsys.readouterr().err
    assert not (tmp_path / "calibrated").exists()
