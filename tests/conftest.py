import os
import subprocess

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported, and for every child: two threads are no faster than one on networks this small, several times as
# much work beside other processes, and their sums differ from run to run. Whatever the machine's own setting is.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test asks for more, they sleep while they wait: the processors have other tests to run.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import hub_client
import hub_server
import pytest
import space_server
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling
from zygote import LIBRARIES, OF_TESTS, Zygote, close_shared, python_of

# The same examples in every run, however slow the machine.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


# Begun first, so that no processor is left with a long file at the end: those that start servers, processes and browsers.
LONGEST = (
    "test_hub.py",
    "test_demo_server.py",
    "test_demo_browser.py",
    "test_training.py",
    "test_sampled_bound.py",
    "test_calibration.py",
    "test_demo.py",
    "test_evaluation.py",
    "test_workers.py",
    "test_reports.py",
    "test_comparison.py",
    "test_cli.py",
    "test_probability_flow.py",
)


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="FOLDER", help="where the browser's tests leave pictures of the demo")


def pytest_collection_modifyitems(items):
    r"""The longest files first, the many short ones last."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


# Files that share what takes long to start: the demo's server, a client of the local Hub.
SHARING = {"test_demo_browser.py": "test_demo_server.py"}
SHARING |= dict.fromkeys(
    (
        "test_demo_push.py",
        "test_every_family.py",
        "test_loading.py",
        "test_prompts.py",
        "test_training.py",
        "test_training_families.py",
    ),
    "test_hub.py",
)


class Together(LoadFileScheduling):
    r"""A file's tests stay in one process, for what they share."""

    def _split_scope(self, nodeid):
        name = super()._split_scope(nodeid).rpartition("/")[2]
        return SHARING.get(name, name)


@pytest.hookimpl(optionalhook=True)  # where it is switched off
def pytest_xdist_make_scheduler(config, log):
    return Together(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    r"""Those that share out the tests are forks of a process that has imported the libraries, and ask it for their commands."""
    config.zygote = Zygote(libraries=(*LIBRARIES, *OF_TESTS))
    os.environ["ZYGOTE"] = config.zygote.address
    for spec in specs:
        spec.python = python_of(config.zygote)


def pytest_sessionfinish():
    close_shared()


def pytest_unconfigure(config):
    if hasattr(config, "zygote"):
        config.zygote.close()


@pytest.fixture(scope="session")
def space_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="session")
def space(space_folder):
    r"""The demo's server: its address and process."""
    with space_server.running_space(space_folder) as running:
        yield running


# What takes seconds to import is imported by the tests: the process that hands them out has no use for it.


@pytest.fixture(scope="session")
def hub():
    with hub_server.local_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory):
    r"""A process for which `hub` is the Hub."""
    client = hub_client.Client(hub, tmp_path_factory.mktemp("with"))
    yield client
    client.close()


@pytest.fixture(scope="session")
def stranger(hub, tmp_path_factory):
    r"""Somebody who has diffusers and not this package."""
    stranger = hub_client.Client(hub, tmp_path_factory.mktemp("without"), without_package=True)
    yield stranger
    stranger.close()


@pytest.fixture
def small_disk(tmp_path):
    r"""`small_disk("64k")`: the folder of a file system that holds so much."""
    mounted = []

    def mount(size):
        folder = tmp_path / "disk"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("no tmpfs can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def pipe():
    from tiny import quiet, tiny_unet

    from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler

    return quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17)))


@pytest.fixture
def images():
    import torch

    return torch.randint(17, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
