r"""What a network cannot be asked is refused first, and numbers of NumPy's are numbers."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    SCMScheduler,
    TCDScheduler,
)
from tiny import generator, quiet, tiny_condition, tiny_dit, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.calibration import calibrate, describe
from ddpm_vlb.cli import main
from ddpm_vlb.data import images_to_levels, load_images, quantize
from ddpm_vlb.evaluation import compare, evaluate

TWO_BLOCKS = {
    "block_out_channels": (4, 4),
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
}


def pipe_of(**network):
    return quiet(VLBDDPMPipeline(tiny_unet(**network), VLBDDPMScheduler(20, num_pixel_levels=17)))


def never_asked(pipe):
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    pipe.unet.register_forward_pre_hook(refuse)
    return pipe


def every_way(pipe, images, **options):
    r"""Scoring, evaluating and sampling."""
    yield lambda: pipe.evaluate_nll(images, **options)
    yield lambda: pipe.evaluate_nll(images, method="sampled", **options)
    yield lambda: evaluate(pipe, images, quiet=True, max_evaluations=100, **options)
    yield lambda: pipe(len(images), **options)


# Networks.


@pytest.mark.parametrize(
    "network", [{"class_embed_type": "timestep"}, {"class_embed_type": "identity", "num_class_embeds": 10}]
)
@pytest.mark.parametrize("labels", [None, [0, 1, 2, 3, 4]])
def test_classes_that_are_in_no_table(images, network, labels):
    for way in every_way(never_asked(pipe_of(**network)), images, class_labels=labels):
        with pytest.raises(ValueError, match=f"`network_kwargs` must hold 'class_labels'.*'{network['class_embed_type']}'"):
            way()


def test_embeddings_that_have_no_timestep_zero(images):
    pipe = pipe_of(time_embedding_type="fourier")
    for way in every_way(never_asked(pipe), images, num_inference_steps=5):
        with pytest.raises(ValueError, match="`unet` must have an embedding of timestep 0, got time_embedding_type='fourier'"):
            way()
    pipe = pipe_of(time_embedding_type="fourier")
    assert pipe.evaluate_nll(images, inference_timesteps=[15, 7, 1]).bits_per_dim.isfinite().all()
    assert len(pipe(inference_timesteps=[15, 7, 1]).images) == 1


def test_embeddings_of_fewer_timesteps(images):
    pipe = pipe_of(time_embedding_type="learned", num_train_timesteps=10)
    for way in every_way(never_asked(pipe), images):
        with pytest.raises(ValueError, match="`unet` must have an embedding of timestep 19, got a learned one of 10"):
            way()
    pipe = pipe_of(time_embedding_type="learned", num_train_timesteps=10)
    assert pipe.evaluate_nll(images, inference_timesteps=[9, 0]).bits_per_dim.isfinite().all()


def test_sizes_that_cannot_be_halved(images):
    odd = images[:, :, :7]
    for way in every_way(never_asked(pipe_of(sample_size=(7, 8), **TWO_BLOCKS)), odd):
        with pytest.raises(ValueError, match="`unet` must halve the images evenly, got 2 blocks for 7 x 8 pixels"):
            way()
    # A network that takes any size.
    scoring = list(every_way(never_asked(pipe_of(sample_size=None, **TWO_BLOCKS)), odd))[:-1]
    for way in scoring:
        with pytest.raises(ValueError, match="`unet` must halve the images evenly, got 2 blocks for 7 x 8 pixels"):
            way()
    assert pipe_of(sample_size=None).evaluate_nll(odd, num_inference_steps=2).bits_per_dim.isfinite().all()


def test_networks_that_are_conditional_on_another_picture(images, tmp_path, capsys):
    for kind, network in (("unet", tiny_unet(3, 1)), ("dit", tiny_dit(in_channels=3)), ("unet", tiny_unet(4, 3))):
        pipe = quiet(VLBDDPMPipeline(network, VLBDDPMScheduler(20, num_pixel_levels=17)))
        message = (
            f"{3 + (network.config.out_channels == 3)} input channels and . output channels?: it is conditional on another"
        )
        for way in every_way(never_asked(pipe), images):
            with pytest.raises(ValueError, match=message):
                way()
        pipe.save_pretrained(tmp_path / kind)
        assert main(["evaluate", str(tmp_path / kind), "--dataset", "digits", "--output", str(tmp_path / "r.json")]) == 2
        assert "conditional on another picture" in capsys.readouterr().err
    # As many channels out as in, of which half would be the noise and half its variance.
    scheduler = VLBDDPMScheduler(20, num_pixel_levels=17, variance_type="learned_range")
    for way in every_way(never_asked(quiet(VLBDDPMPipeline(tiny_unet(2), scheduler))), images):
        with pytest.raises(ValueError, match="got 2. It learns no variances, or is conditional on another picture"):
            way()


def test_networks_that_are_distilled(images):
    guided = tiny_condition(time_cond_proj_dim=8)
    states = {"encoder_hidden_states": torch.zeros(1, 3, 6)}
    pipe = quiet(VLBDDPMPipeline(guided, VLBDDPMScheduler(20, num_pixel_levels=17), network_kwargs=states))
    for way in every_way(never_asked(pipe), images):
        with pytest.raises(ValueError, match="`unet` must not be distilled from a guided network, got time_cond_proj_dim=8"):
            way()
    for scheduler in (
        CMStochasticIterativeScheduler(),
        LCMScheduler(),
        TCDScheduler(),
        SCMScheduler(),
        FlowMatchLCMScheduler(),
    ):
        name = type(scheduler).__name__
        with pytest.raises(ValueError, match=f"got {name}. What a consistency model or another distilled network says"):
            VLBDDPMPipeline(tiny_unet(), scheduler)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(prediction_type="sample"), "`prediction_type` must be 'epsilon' or 'v_prediction', got 'sample'"),
        (VLBDDPMScheduler(20, prediction_type="flow_prediction"), "`prediction_type` must be"),
        (
            DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            "with {'use_flow_sigmas': True}",
        ),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "`prediction_type` must be"),
        (EulerDiscreteScheduler(timestep_type="continuous"), "with {'timestep_type': 'continuous'}"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_predictions_that_do_not_fit_a_process(images, scheduler, message):
    with pytest.raises(ValueError, match=message):
        never_asked(quiet(VLBDDPMPipeline(tiny_unet(), scheduler))).evaluate_nll(images)


def test_grids_that_do_not_descend(images):
    pipe = never_asked(pipe_of())
    for grid in ([0, 5, 10], [10, 5, 5], [5, 10, 0], [20, 3]):
        for way in every_way(pipe, images, inference_timesteps=grid):
            with pytest.raises(ValueError, match="`inference_timesteps` must"):
                way()
    with pytest.raises(ValueError, match="`noise_process` must be of a known scheduler, got 'LCMScheduler'"):
        own = VLBDDPMScheduler(20, num_pixel_levels=17, noise_process={"_class_name": "LCMScheduler"})
        never_asked(quiet(VLBDDPMPipeline(tiny_unet(), own))).evaluate_nll(images)


def test_patches_that_do_not_fit(images):
    odd = tiny_dit(out_channels=1, sample_size=7)
    pipe = never_asked(quiet(VLBDDPMPipeline(odd, VLBDDPMScheduler(20, num_pixel_levels=17))))
    for way in every_way(pipe, images[..., :7, :7], class_labels=0):
        with pytest.raises(ValueError, match="`unet` must have images of whole patches, 2 pixels wide, got 7 x 7 pixels"):
            way()


def test_networks_of_two_or_five_channels(tmp_path):
    for channels in (2, 5):
        levels = torch.randint(17, (2, channels, 8, 8), generator=generator()).to(torch.uint8)
        pipe = quiet(VLBDDPMPipeline(tiny_unet(channels), VLBDDPMScheduler(20, num_pixel_levels=17)))
        out = pipe.evaluate_nll(levels, generator=generator())
        pipe.save_pretrained(tmp_path / str(channels))
        again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / str(channels)))
        assert torch.equal(again.evaluate_nll(levels, generator=generator()).bits_per_dim, out.bits_per_dim)
        assert pipe(2, generator(), num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, channels)


def test_networks_in_the_wrappers_of_parallel_training(pipe, images, tmp_path):
    expected = pipe.evaluate_nll(images, generator=generator()).bits_per_dim
    made, put = VLBDDPMPipeline(torch.nn.DataParallel(pipe.unet), pipe.scheduler), pipe_of(seed=1)
    put.unet = torch.nn.DataParallel(pipe.unet)
    for other in (quiet(made), put):
        assert torch.equal(other.evaluate_nll(images, generator=generator()).bits_per_dim, expected)
        other.save_pretrained(tmp_path)
        again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path))
        assert torch.equal(again.evaluate_nll(images, generator=generator()).bits_per_dim, expected)


# Labels.


@pytest.mark.parametrize("labels", [["cat"] * 5, [None] * 5, [[0]] * 5, np.array(["cat"] * 5), "cat", 1.5])
def test_labels_that_are_no_integers(images, labels):
    for way in every_way(never_asked(pipe_of(num_class_embeds=3)), images, class_labels=labels):
        with pytest.raises(ValueError, match="`class_labels` must be 5 integers"):
            way()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64"])
def test_labels_of_every_integer_kind(images, dtype):
    pipe, labels = pipe_of(num_class_embeds=3), [0, 1, 2, 0, 1]
    scores = [
        pipe.evaluate_nll(images, generator=generator(), num_inference_steps=2, class_labels=given).bits_per_dim
        for given in (labels, np.array(labels, dtype=dtype))
    ]
    assert torch.equal(*scores)
    with pytest.raises(ValueError, match=r"`class_labels` must lie in \[0, 3\)"):
        pipe.evaluate_nll(images, class_labels=np.array([3] * 5, dtype=dtype))


@pytest.mark.parametrize("labels", [["cat", "dog"], [0, None], [[0], [1]]])
def test_a_data_set_whose_labels_are_no_classes(tmp_path, labels):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [Image.new("L", (8, 8), level) for level in (0, 1)]
    columns = datasets.Dataset.from_dict({"image": pictures, "label": labels}).cast_column("image", datasets.Image())
    columns.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    loaded = load_images(tmp_path, "test")
    assert loaded.labels is None and loaded.images.shape == (2, 1, 8, 8)


# Numbers of NumPy's.


@pytest.mark.parametrize(
    "options",
    [
        {"seed": np.uint64(2**62)},
        {"batch_size": np.uint8(4)},
        {"max_images": np.int64(3)},
        {"num_inference_steps": np.uint8(5)},
        {"inference_timesteps": np.array([9, 4, 1], dtype=np.uint8)},
        {"evaluations_per_image": np.int16(8)},
        {"shard": np.array([0, 2])},
        {"buffer_bytes": np.int64(10**6)},
        {"clip_sample": np.bool_(True)},
        {"target_se": np.float32(1)},
        {"method": "iw", "k": np.uint8(2), "num_inference_steps": np.int32(3)},
    ],
    ids=lambda options: next(reversed(options)),
)
def test_arguments_of_numpy(pipe, images, options):
    def plain(value):
        return tuple(value.tolist()) if isinstance(value, np.ndarray) else getattr(value, "tolist", lambda: value)()

    rule = {} if {"method", "evaluations_per_image"} & options.keys() else {"max_evaluations": 200}
    given = [options, {name: plain(value) for name, value in options.items()}]
    reports = [json.dumps(dict(evaluate(pipe, images, quiet=True, **rule, **each))) for each in given]
    assert reports[0] == reports[1]


def test_numbers_of_steps_do_not_overflow():
    scheduler = VLBDDPMScheduler(1000)
    assert scheduler.inference_grid(np.uint8(50)) == scheduler.inference_grid(50)
    scheduler.set_timesteps(np.uint8(50))
    assert type(scheduler.num_inference_steps) is int


@pytest.mark.parametrize("cls", [VLBDDPMScheduler, DDPMScheduler])
def test_configurations_of_numpy(images, tmp_path, cls):
    settings = {
        "num_train_timesteps": np.int64(20),
        "beta_end": np.float64(0.03),
        "clip_sample": np.bool_(True),
        "steps_offset": np.int32(0),
    }
    settings |= {"num_pixel_levels": np.int16(17)} if cls is VLBDDPMScheduler else {}
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), cls(**settings)))
    pipe.save_pretrained(tmp_path)
    saved = VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config
    assert {name: saved[name] for name in settings} == {name: value.item() for name, value in settings.items()}
    json.dumps(pipe.evaluate_nll(images, num_inference_steps=np.int64(2)).config)


def test_numbers_of_numpy_elsewhere(pipe, images):
    assert torch.equal(images_to_levels(images, np.int64(17)), images) and torch.equal(quantize(images, np.int64(256)), images)
    assert len(load_images("digits", "test", np.int64(2)).images) == 2
    with pytest.raises(ValueError, match="`max_images` must be an integer, got 2.5"):
        load_images("digits", "test", 2.5)
    json.dumps(compare([pipe, pipe], images, target_se=np.float32(1), seed=np.uint8(3), quiet=True))
    many, numbers = images.repeat(4, 1, 1, 1), {"evaluations": np.int64(640), "num_timesteps": np.uint8(4), "seed": np.int8(1)}
    result = calibrate(pipe, many, quiet=True, target_se=np.float32(100), **numbers)
    assert json.dumps(dict(result.scheduler.config), default=str) and json.dumps(describe(result))
    assert len(pipe(np.uint8(2), generator(), num_inference_steps=np.uint8(3)).images) == 2
