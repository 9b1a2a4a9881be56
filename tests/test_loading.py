r"""What is asked of a checkpoint before it is loaded: whether it is a DDPM of pixels, its files are files, and it is there."""

import json
import os
import shutil
from logging import Handler

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from diffusers.utils import logging
from hub_client import Failure
from hub_server import upload
from tiny import generator, quiet, tiny_dit, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.checkpoints.openai import load_openai_checkpoint
from ddpm_vlb.hub.push import push_folder

NOT_OF_PIXELS = "`pretrained_model_name_or_path` must be a DDPM of pixels, with a unet and a scheduler and no other part, got"
LOAD = "from ddpm_vlb import VLBDDPMPipeline; VLBDDPMPipeline.from_pretrained(name, **options); result = 'loaded'"


@pytest.fixture
def latent():
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vqvae = VQModel(1, 1, block_out_channels=(4,), norm_num_groups=2, latent_channels=1, num_vq_embeddings=4, **blocks)
    return LDMPipeline(vqvae=vqvae, unet=tiny_unet(), scheduler=DDIMScheduler(clip_sample=False))


# Latent diffusion: the network's images are no images.


def test_pipelines_with_more_parts_are_refused(latent, tmp_path):
    latent.save_pretrained(tmp_path)
    for options in ({}, {"vqvae": None}, {"trust_remote_code": True}, {"unet": tiny_unet(), "scheduler": VLBDDPMScheduler()}):
        with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} vqvae in"):
            VLBDDPMPipeline.from_pretrained(tmp_path, **options)
    # Without an index.
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} vqvae in"):
        VLBDDPMPipeline.from_pretrained(tmp_path)
    shutil.move(tmp_path / "vqvae", tmp_path / "movq")
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} movq in"):
        VLBDDPMPipeline.from_pretrained(tmp_path)


def test_pipelines_of_more_parts_cannot_be_made_into_ours(latent, pipe):
    with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} vqvae in 'LDMPipeline'"):
        VLBDDPMPipeline.from_pipe(latent)
    # By way of another, which keeps in its configuration what it has left out.
    with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} vqvae in 'DDPMPipeline'"):
        VLBDDPMPipeline.from_pipe(DDPMPipeline.from_pipe(latent))
    assert VLBDDPMPipeline.from_pipe(DDPMPipeline.from_pipe(pipe)).unet is pipe.unet


def test_what_lies_beside_a_network_and_is_no_part(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    pipe.unet.save_pretrained(tmp_path / "unet_ema")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "config.json").write_text('{"seed": 0}')
    assert isinstance(VLBDDPMPipeline.from_pretrained(tmp_path).unet, UNet2DModel)
    (tmp_path / "model_index.json").unlink()
    assert isinstance(VLBDDPMPipeline.from_pretrained(tmp_path).unet, UNet2DModel)


# A transformer.


@pytest.fixture
def transformer(tmp_path):
    r"""A folder as `DiTPipeline` saves it, of pixels."""
    scheduler = DDPMScheduler(20, variance_type="learned_range")
    DiTPipeline(transformer=tiny_dit(), vae=None, scheduler=scheduler).save_pretrained(tmp_path / "dit")
    return tmp_path / "dit"


def test_a_transformer_of_pixels_is_scored(transformer, tmp_path, hub, client):
    levels = torch.randint(256, (2, 1, 8, 8), generator=generator()).to(torch.uint8)
    made = VLBDDPMPipeline(tiny_dit(), DDPMScheduler(20, variance_type="learned_range"))
    expected = quiet(made).evaluate_nll(levels, generator=generator(), class_labels=[0, 2]).bits_per_dim
    pipe = quiet(VLBDDPMPipeline.from_pretrained(transformer))
    pipe.save_pretrained(tmp_path / "own")
    (transformer / "model_index.json").rename(tmp_path / "model_index.json")
    without, again = (quiet(VLBDDPMPipeline.from_pretrained(folder)) for folder in (transformer, tmp_path / "own"))
    for each in (pipe, without, again):
        assert torch.equal(each.evaluate_nll(levels, generator=generator(), class_labels=[0, 2]).bits_per_dim, expected)
    # For diffusers it is the same network and scheduler.
    stock = DiffusionPipeline.from_pretrained(tmp_path / "own")
    assert type(stock.unet) is DiTTransformer2DModel and stock.scheduler.config.variance_type == "learned_range"
    # To the Hub and from it, too.
    (tmp_path / "model_index.json").rename(transformer / "model_index.json")
    upload(hub, "others/dit", transformer)
    pushed = "from ddpm_vlb.cli import main; result = main(['push', folder, 'me/dit'])"
    assert client.run(pushed, folder=str(transformer)) == 0 and "unet/config.json" in hub.repositories["me/dit"].files
    kind = "result = type(VLBDDPMPipeline.from_pretrained('others/dit').unet).__name__"
    assert client.run(f"from ddpm_vlb import VLBDDPMPipeline; {kind}") == "DiTTransformer2DModel"


def test_a_transformer_of_latents_is_refused(transformer, tmp_path):
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    DiTPipeline(transformer=tiny_dit(), vae=vae, scheduler=DDIMScheduler()).save_pretrained(tmp_path / "latent")
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} vae in .*Latent diffusion models cannot be scored"):
            VLBDDPMPipeline.from_pretrained(tmp_path / "latent")
        (tmp_path / "latent" / "model_index.json").unlink(missing_ok=True)
    # Two networks, and one of another kind.
    tiny_unet().save_pretrained(transformer / "unet")
    index = json.loads((transformer / "model_index.json").read_text())
    (transformer / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(ValueError, match=f"{NOT_OF_PIXELS} transformer, unet in"):
        VLBDDPMPipeline.from_pretrained(transformer)
    for name in ("model_index.json", "unet/config.json"):
        (transformer / name).unlink()
    config = transformer / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(ValueError, match="a DiTTransformer2DModel or .* got .* with a Flux"):
        VLBDDPMPipeline.from_pretrained(transformer)


# Files.


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.safetensors"],
)
def test_a_pipe_among_the_files_is_refused(pipe, tmp_path, name):
    pipe.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"must hold plain files, got .*{name}"):
        VLBDDPMPipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`folder` must hold"):
        push_folder(tmp_path, "me/it")
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="`checkpoint` must be a file of weights"):
        load_openai_checkpoint(tmp_path / "model.pt")


# Names of folders and repositories.


@pytest.mark.parametrize(
    "name", ["runs/quickstart/pipeline", "./runs", "../runs", "/runs", "~/runs", "runs/", "a--b/c", "a b", ""]
)
def test_a_name_that_no_repository_has_is_a_folder_that_is_missing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be a folder that exists, got"):
        VLBDDPMPipeline.from_pretrained(name)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be a folder that exists, got"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "model.safetensors")


@pytest.mark.parametrize("fault", [None, "gone"])
@pytest.mark.parametrize("name", ["runs/nothing", "nothing"])
def test_the_hub_is_asked_once_for_what_it_does_not_have(hub, client, name, fault):
    hub.requests.clear()
    hub.faults[name] = [fault] * 10
    with pytest.raises(Failure, match=f"must be a folder that exists or a repository of the Hub, got '{name}'"):
        client.run(LOAD, name=name, options={})
    hub.faults.clear()
    assert len([path for _, path, _, _ in hub.requests if name in path]) == 1


def test_repositories_load_from_the_cache(hub, client, pipe, tmp_path):
    from hub_server import Repository

    pipe.save_pretrained(tmp_path / "pipe")
    parts = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")
    cache = {"cache_dir": str(tmp_path / "cache")}
    for name, files in (("me/parts", parts), ("me/whole", (*parts, "model_index.json"))):
        hub.repositories[name] = Repository(private=False)
        hub.repositories[name].commit({file: (tmp_path / "pipe" / file).read_bytes() for file in files}, "made", "main")
        assert client.run(LOAD, name=name, options=cache) == "loaded"
        hub.requests.clear()
        assert client.run(LOAD, name=name, options=cache | {"local_files_only": True}) == "loaded" and not hub.requests
        # The Hub is away: the cache does, and it is not asked again.
        hub.faults[name] = ["gone"] * 20
        assert client.run(LOAD, name=name, options=cache) == "loaded" and len(hub.requests) == 1
        hub.faults.clear()
    # Nothing of it is there.
    with pytest.raises(Failure, match="`pretrained_model_name_or_path` must be"):
        client.run(LOAD, name="me/parts", options={"local_files_only": True, "cache_dir": str(tmp_path / "empty")})


def test_weights_that_the_configuration_has_no_use_for_are_refused(tmp_path):
    r"""diffusers only warns, and scores another network."""
    VLBDDPMPipeline(tiny_unet(1, num_class_embeds=3), VLBDDPMScheduler(20)).save_pretrained(tmp_path / "classes")
    VLBDDPMPipeline.from_pretrained(tmp_path / "classes")
    path = tmp_path / "classes" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_class_embeds": None}))
    verbosity = logging.get_verbosity()
    for level in (verbosity, logging.CRITICAL):
        logging.set_verbosity(level)
        try:
            with pytest.raises(ValueError, match="weights of the network that its configuration describes.*class_embedding"):
                VLBDDPMPipeline.from_pretrained(tmp_path / "classes")
        finally:
            logging.set_verbosity(verbosity)
    # What is loaded by others is theirs to judge, and warned of as far as they want it.
    for level, said in ((logging.WARNING, True), (logging.ERROR, False)):
        logging.set_verbosity(level)
        handler = Kept()
        logging.add_handler(handler)
        try:
            UNet2DModel.from_pretrained(tmp_path / "classes", subfolder="unet")
        finally:
            logging.remove_handler(handler)
            logging.set_verbosity(verbosity)
        assert any("were not used" in text for text in handler.texts) == said


class Kept(Handler):
    r"""Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())
