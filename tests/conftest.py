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


# Begun first, so that no processor is left with a long file at the end: those that start servers, processes and browsers.
LONGEST = (
    "test_hub.py",
    "test_demo_server.py",
    "test_demo_browser.py",
    "test_training.py",
    "test_calibration.py",
    "test_sampled_bound.py",
    "test_evaluation.py",
    "test_workers.py",
    "test_demo.py",
    "test_cli.py",
    "test_probability_flow.py",
    "test_comparison.py",
)


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="FOLDER", help="where the browser's tests leave pictures of the demo")


def pytest_collection_modifyitems(items):
    r"""The longest files first, the many short ones last."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


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
