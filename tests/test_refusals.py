r"""What a network cannot be asked is refused first, and numbers of NumPy's are numbers."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDPMParallelScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
    TCDScheduler,
)
from tiny import generator, quiet, tiny_condition, tiny_dit, tiny_unet

from ddpm_vlb import FunctionModel, VLBDDPMPipeline, VLBDDPMScheduler, upgrade_scheduler
from ddpm_vlb.calibration import calibrate, describe
from ddpm_vlb.checkpoints import CheckpointError
from ddpm_vlb.checkpoints.parts import load_parts
from ddpm_vlb.cli import main
from ddpm_vlb.data import images_to_levels, load_images, quantize
from ddpm_vlb.evaluation import compare, evaluate
from ddpm_vlb.likelihoods.importance_weighted import importance_weighted_nll
from ddpm_vlb.likelihoods.rate_distortion import rate_distortion

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


def test_networks_that_bring_any_size_up_again(images):
    states, odd = {"encoder_hidden_states": torch.ones(1, 3, 6)}, images[:, :, :7]
    blocks = {"block_out_channels": (4, 4), "down_block_types": ("CrossAttnDownBlock2D",) * 2}
    unet = tiny_condition(sample_size=(7, 8), up_block_types=("CrossAttnUpBlock2D",) * 2, **blocks)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(20, num_pixel_levels=17), states))
    assert pipe.evaluate_nll(odd, num_inference_steps=2).bits_per_dim.isfinite().all()
    # Its embedding is of the timestep, not of its logarithm.
    unet = tiny_condition(time_embedding_type="fourier")
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(20, num_pixel_levels=17), states))
    assert pipe.evaluate_nll(images, num_inference_steps=2).bits_per_dim.isfinite().all()


def test_conditions_that_a_network_makes_no_use_of(images):
    labels = {"class_labels": torch.zeros(1, 4)}
    for unet, settings in ((tiny_unet(), {}), (tiny_unet(num_class_embeds=3), {"class_labels": 1}), (tiny_dit(), {})):
        own = VLBDDPMScheduler(20, num_pixel_levels=17)
        for way in every_way(never_asked(quiet(VLBDDPMPipeline(unet, own, labels))), images, **settings):
            with pytest.raises(ValueError, match="beside latents, timesteps and labels, nothing, got 'class_labels'"):
                way()
    pipe = quiet(VLBDDPMPipeline(tiny_unet(class_embed_type="identity"), VLBDDPMScheduler(20, num_pixel_levels=17), labels))
    for way in every_way(pipe, images):
        with pytest.raises(ValueError, match=r"`network_kwargs` must fit the network, got class_labels \(1, 4\): "):
            way()


def test_a_module_that_says_nothing_of_its_images(images):
    for function in (torch.nn.Conv2d(1, 1, 1), lambda x, t: x):
        with pytest.raises(ValueError, match="`ddpm_vlb.FunctionModel` makes a network of any module or function"):
            VLBDDPMPipeline(function, VLBDDPMScheduler(20, num_pixel_levels=17)).evaluate_nll(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_that_work_in_place(images, dtype):
    r"""What they do to their arguments reaches nothing of ours."""
    convolution = torch.nn.Conv2d(1, 1, 3, padding=1, dtype=dtype)
    scheduler = VLBDDPMScheduler(20, num_pixel_levels=17)

    def in_place(x, t):
        t.mul_(0)
        return convolution(x.relu_())

    one, other = (
        quiet(VLBDDPMPipeline(FunctionModel(function, (1, 8, 8)).to(dtype), scheduler))
        for function in (in_place, lambda x, t: convolution(x.relu()))
    )
    for pipe in (one, other):
        pipe.unet.convolution = convolution
    numbers = [
        (
            pipe.evaluate_nll(images, generator=generator()).bits_per_dim,
            importance_weighted_nll(pipe, images, k=2).bits_per_dim,
            rate_distortion(pipe, images).distortion,
            pipe(2, generator(), output_type="pt").images,
        )
        for pipe in (one, other)
    ]
    assert all(torch.equal(*pair) for pair in zip(*numbers))


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


FLOW = FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize("named", ["CosineDPMSolverMultistepScheduler", "RectifiedFlowScheduler", ["EDMEulerScheduler"], 7])
@pytest.mark.parametrize("has_index", [False, True])
def test_schedulers_that_diffusers_does_not_have(named, has_index, tmp_path):
    r"""Read with the defaults of a DDPM they would give a number that looks right."""
    DDPMPipeline(tiny_unet(), EDMEulerScheduler()).save_pretrained(tmp_path)
    file, index = tmp_path / "scheduler" / "scheduler_config.json", tmp_path / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": named}))
    if has_index:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", named]}))
    else:
        index.unlink()
    with pytest.raises(CheckpointError):
        VLBDDPMPipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="must have a scheduler that diffusers has here, got _class_name = "):
        load_parts(tmp_path)


@pytest.mark.parametrize("named", ["RectifiedFlowScheduler", "LCMScheduler", "CosineDPMSolverMultistepScheduler"])
def test_configurations_of_schedulers_that_cannot_be_read(named, tmp_path):
    config = {"_class_name": named, "shift": 3.0, "sigma_data": 0.5, "num_train_timesteps": 30}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    for read in (lambda: VLBDDPMScheduler.from_config(config), lambda: VLBDDPMScheduler.from_pretrained(tmp_path)):
        with pytest.raises(
            ValueError, match=f"`config` must be of one of diffusers' schedulers .*, got _class_name = '{named}'"
        ):
            read()

    class Own(VLBDDPMScheduler):
        pass

    Own(30).save_pretrained(tmp_path)
    assert Own.from_pretrained(tmp_path).config.num_train_timesteps == 30
    with pytest.raises(ValueError, match="`noise_process` must be of a known scheduler, got 3"):
        VLBDDPMScheduler(30, noise_process=3)


@pytest.mark.parametrize(
    ("indexed", "configured"),
    [(DDPMScheduler, FLOW), (EDMEulerScheduler, DDPMScheduler), (DDPMScheduler, LCMScheduler), (FLOW, EDMEulerScheduler)],
)
def test_an_index_and_a_configuration_that_disagree(indexed, configured, tmp_path):
    DDPMPipeline(tiny_unet(), indexed()).save_pretrained(tmp_path)
    configured().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(CheckpointError, match=f"got '{indexed.__name__}' and '{configured.__name__}' in"):
        VLBDDPMPipeline.from_pretrained(tmp_path)
    pipe = VLBDDPMPipeline.from_pretrained(tmp_path, scheduler=DDPMScheduler(20))  # as the user says
    assert pipe.scheduler.config.noise_process is None
    # Those of DDPMs stand for each other.
    DDPMPipeline(tiny_unet(), DDPMScheduler(30)).save_pretrained(tmp_path)
    EulerDiscreteScheduler(30).save_pretrained(tmp_path / "scheduler")
    assert VLBDDPMPipeline.from_pretrained(tmp_path).scheduler.config.num_train_timesteps == 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_type": "epsilon"}, "`prediction_type` must be 'sample' with a `noise_process`, got 'epsilon'"),
        ({"variance_type": "learned_range"}, "`variance_type` must be a fixed one with a `noise_process`, got 'learned_range'"),
    ],
)
@pytest.mark.parametrize("scheduler", [FLOW, EDMEulerScheduler, ScoreSdeVeScheduler])
def test_settings_that_another_process_does_not_have(scheduler, settings, message, tmp_path):
    own = upgrade_scheduler(scheduler(), 20)
    with pytest.raises(ValueError, match=message):
        VLBDDPMScheduler.from_config(own.config, **settings)
    quiet(VLBDDPMPipeline(tiny_unet(), own)).save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    config["vlb_ddpm"].update(settings)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        VLBDDPMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("shift", ["three", None, [3.0]])
def test_a_shift_that_is_no_number(shift, tmp_path):
    DDPMPipeline(tiny_unet(), FLOW()).save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shift": shift}))
    with pytest.raises(CheckpointError, match="`shift` must be a positive number, got "):
        VLBDDPMPipeline.from_pretrained(tmp_path)


def test_a_shift_that_was_set(images):
    moved, made = FLOW(), FLOW(shift=3.0)
    moved.set_shift(3.0)
    scores = [
        quiet(VLBDDPMPipeline(tiny_unet(), upgrade_scheduler(scheduler, 20))).evaluate_nll(
            quantize(images, 256), 64, generator()
        )
        for scheduler in (moved, made, FLOW())
    ]
    assert torch.equal(scores[0].bits_per_dim, scores[1].bits_per_dim)
    assert not torch.equal(scores[0].bits_per_dim, scores[2].bits_per_dim)


@pytest.mark.parametrize("scheduler", [DDPMParallelScheduler, DDIMParallelScheduler, DDIMInverseScheduler])
def test_further_schedulers_of_ddpms(images, scheduler, tmp_path):
    DDPMPipeline(tiny_unet(), scheduler(20)).save_pretrained(tmp_path)
    scores = []
    for own in ({}, {"scheduler": DDPMScheduler(20, clip_sample=True)}):
        pipe = quiet(VLBDDPMPipeline.from_pretrained(tmp_path, **own))
        pipe.scheduler.register_to_config(num_pixel_levels=17)
        scores.append(pipe.evaluate_nll(images, generator=generator()).bits_per_dim)
    assert torch.equal(*scores)


def test_networks_without_a_timestep_between_two(images):
    function = FunctionModel(lambda x, t: x, (1, 8, 8))
    pipe = quiet(VLBDDPMPipeline(function, upgrade_scheduler(EDMEulerScheduler(), 20)))
    for way in every_way(never_asked(pipe), quantize(images, 256)):
        with pytest.raises(ValueError, match="must take fractions of a timestep .*, got a function of which `takes_fractions"):
            way()


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
