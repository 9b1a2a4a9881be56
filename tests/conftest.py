import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported, and for every child: two threads are no faster than one on networks this small, several times as
# much work beside other processes, and their sums differ from run to run. Whatever the machine's own setting is.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import settings
from zygote import close_shared

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler

torch.set_num_threads(1)  # where torch was there before
# The same examples in every run, however slow the machine.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


# Files of long tests that share nothing, or say in groups what they share.
SPREAD = {"test_sampled_bound.py"}


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="FOLDER", help="where the browser's tests leave pictures of the demo")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    r"""A file's tests stay in one process, for what they share; but those of `SPREAD` go where there is time, at the end."""
    for item in items:
        if item.path.name not in SPREAD and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_sessionfinish():
    close_shared()


def tiny_unet(channels=1, out_channels=None, seed=0, **overrides) -> UNet2DModel:
    torch.manual_seed(seed)
    config = dict(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return UNet2DModel(**{**config, **overrides}).eval()


def quiet(pipe: VLBDDPMPipeline) -> VLBDDPMPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))


@pytest.fixture
def images():
    return torch.randint(17, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def sweeps(pipe, images, count, class_labels=None, **options) -> torch.Tensor:
    r"""Bits/dim of `count` full sweeps with other noise each, (count, N): all in one batch, as fast as a few sweeps."""
    if torch.is_tensor(class_labels):
        class_labels = class_labels.repeat(count)
    many = images.repeat(count, 1, 1, 1)
    out = pipe.evaluate_nll(many, len(many), generator(), class_labels=class_labels, **options)
    return out.bits_per_dim.reshape(count, len(images))


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
