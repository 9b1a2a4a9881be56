import copy
import inspect
import json
import math
import re
import shutil
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from analytic import GaussianDenoiser, gaussian_bound_and_nll
from datasets import Dataset
from datasets import Image as ImageFeature
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import FunctionModel, VLBDDPMPipeline, VLBDDPMScheduler, VLBOutput, ode_nll
from ddpm_vlb.calibration import calibrate
from ddpm_vlb.checkpoints import CheckpointError
from ddpm_vlb.checks import NonFiniteOutput
from ddpm_vlb.codec import compress
from ddpm_vlb.evaluation import compare, estimate_nll, evaluate, make_report
from ddpm_vlb.likelihoods.importance_weighted import importance_weighted_nll
from ddpm_vlb.likelihoods.rate_distortion import progressive_decoding, rate_distortion
from ddpm_vlb.model.configuration import SCHEDULER_RULES, UNET_RULES, check_network_config, check_scheduler_config
from ddpm_vlb.pixel_grid import levels_to_samples

TERMS = ("bits_per_dim", "prior", "transitions", "decoder")


def score(pipe, images, **arguments):
    arguments.setdefault("generator", generator())
    return pipe.evaluate_nll(images, **arguments)


def same(a, b, atol=0.0):
    return all(torch.allclose(a[name], b[name], rtol=0, atol=atol) for name in TERMS)


# What comes out.


def test_output(pipe, images):
    out = score(pipe, images)
    assert isinstance(out, VLBOutput) and len(out.to_tuple()) == 8
    assert out.transitions.shape == (5, 19) and out.timesteps.tolist() == list(range(1, 20))
    assert all(out[name].dtype == torch.float64 and torch.isfinite(out[name]).all() for name in TERMS)
    assert torch.allclose(out.bits_per_dim, out.prior + out.transitions.sum(1) + out.decoder, rtol=1e-14)
    assert (out.transitions >= 0).all() and (out.decoder >= 0).all() and out.num_network_evaluations == 100
    assert out.config["num_pixel_levels"] == 17 and out.config["seed"] == 0 and "next step" in out.config["decoder_variance"]
    json.dumps(out.config)


def test_outputs_share_nothing_with_the_scheduler(pipe, images):
    out = score(pipe, images)
    out.timesteps.add_(1)
    assert score(pipe, images).timesteps.tolist() == list(range(1, 20))


def test_the_seed_is_recorded_only_where_it_reproduces(pipe, images):
    used = generator(5)
    assert score(pipe, images, generator=used).config["seed"] == 5
    assert score(pipe, images, generator=used).config["seed"] is None
    json.dumps(score(pipe, images, num_inference_steps=np.int64(2)).config)


def test_terms_equal_the_schedulers(pipe, images):
    out = score(pipe, images)
    x = levels_to_samples(images, 17)
    prior = pipe.scheduler.prior_kl(x) / (64 * math.log(2))
    assert torch.allclose(out.prior, prior, rtol=1e-13)
    from ddpm_vlb.noise import draw_seeds, keyed_noise

    seeds = draw_seeds(5, generator())
    for t, noise in enumerate(keyed_noise(seeds, range(20), (1, 8, 8))):
        x_t = pipe.scheduler.forward_process().q_sample(x, noise, t)
        with torch.no_grad():
            output = pipe.unet(x_t.float(), t).sample
        expected = pipe.scheduler.vlb_terms(output, x, x_t, t) / (64 * math.log(2))
        got = out.decoder if t == 0 else out.transitions[:, t - 1]
        assert torch.allclose(got, expected, rtol=1e-10)


def test_the_analytic_models_bound():
    betas = np.linspace(0.01, 0.3, 12)
    pipe = quiet(
        VLBDDPMPipeline(
            GaussianDenoiser(np.cumprod(1 - betas).tolist()),
            VLBDDPMScheduler(12, trained_betas=betas.tolist(), clip_sample=False),
        )
    )
    level, count = 150, 400
    out = score(pipe, torch.full((count, 1, 4, 4), level, dtype=torch.uint8), batch_size=100)
    terms, prior, nll = gaussian_bound_and_nll(2 * level / 255 - 1, betas, range(12))
    expected = (prior + terms.sum()) / math.log(2)
    error = (out.bits_per_dim.std() / math.sqrt(count)).item()
    assert abs(out.bits_per_dim.mean().item() - expected) <= 5 * error and error < 0.05
    assert out.bits_per_dim.mean() > nll / math.log(2)


def test_the_printed_interval_covers():
    # Images drawn from all levels alike; the truth is the mean of the exact bounds. A nominal 95 % interval over 400
    # repetitions covers in 380 +- 4.4 of them; n = 50 and a skewed sum cost a little, so 3.5 deviations below are allowed.
    betas = np.linspace(0.02, 0.4, 8)
    scheduler = VLBDDPMScheduler(8, trained_betas=betas.tolist(), clip_sample=False, num_pixel_levels=17)
    pipe = quiet(VLBDDPMPipeline(GaussianDenoiser(np.cumprod(1 - betas).tolist()), scheduler))
    exact = [gaussian_bound_and_nll(2 * k / 16 - 1, betas, range(8), levels=17) for k in range(17)]
    truth = np.mean([terms.sum() + prior for terms, prior, _ in exact]) / math.log(2)
    covered = 0
    for seed in range(400):
        levels = torch.randint(17, (50, 1, 4, 4), generator=generator(seed)).to(torch.uint8)
        report = make_report(score(pipe, levels, generator=generator(1000 + seed)))
        covered += abs(report["bits_per_dim"] - truth) <= 1.96 * report["standard_error"]
    assert 380 - 3.5 * 4.4 <= covered <= 380 + 3.5 * 4.4


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_batch_size_changes_rounding_only(pipe, images, batch_size):
    # float32 networks differ in the last place between batch shapes: 1e-7 of terms of up to 10 bits/dim, summed over 20.
    assert same(score(pipe, images, batch_size=batch_size), score(pipe, images, batch_size=4), atol=2e-5)


def test_the_noise_of_an_image_depends_on_its_position_alone(pipe, images):
    assert same(score(pipe, images), score(pipe, images))
    first = score(pipe, images[:2])
    assert torch.allclose(first.bits_per_dim, score(pipe, images).bits_per_dim[:2], atol=2e-5)
    assert not torch.allclose(score(pipe, images, generator=generator(1)).transitions, score(pipe, images).transitions)
    singles = score(pipe, images, generator=[generator(i) for i in range(5)])
    assert torch.allclose(score(pipe, images[3:4], generator=[generator(3)]).transitions, singles.transitions[3:4], atol=2e-5)


def test_subsequences(pipe, images):
    full = score(pipe, images)
    assert same(score(pipe, images, inference_timesteps=list(range(19, -1, -1))), full, atol=1e-12)
    out = score(pipe, images, inference_timesteps=[17, 4, 2])
    assert out.timesteps.tolist() == [4, 17] and out.config["inference_timesteps"] == [17, 4, 2]
    x = levels_to_samples(images, 17)
    expected = pipe.scheduler.prior_kl(x, inference_timesteps=[17, 4, 2]) / (64 * math.log(2))
    assert torch.allclose(out.prior, expected)
    assert same(score(pipe, images, num_inference_steps=5), score(pipe, images, inference_timesteps=[16, 12, 8, 4, 0]))
    single = score(pipe, images, num_inference_steps=1)
    assert single.transitions.shape == (5, 0) and torch.isfinite(single.bits_per_dim).all()
    assert "single" in single.config["decoder_variance"]


def test_set_timesteps_and_training_mode_are_left_alone(pipe, images):
    pipe.scheduler.set_timesteps(5)
    pipe.unet.train()
    pipe.unet.conv_in.eval()
    before = score(pipe, images)
    assert pipe.unet.training and not pipe.unet.conv_in.training and pipe.scheduler.num_inference_steps == 5
    pipe.unet.eval()
    pipe.scheduler.set_timesteps(7)
    assert same(before, score(pipe, images))


def test_dropout_is_off(images):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(dropout=0.5).train(), VLBDDPMScheduler(5, num_pixel_levels=17)))
    assert same(score(pipe, images), score(pipe, images))


def meanwhile(pipe, other, entries=(1,)):
    r"""At these of its calls, the network first waits for another thread to be done with `other`."""
    calls = []

    def wait(*_):
        calls.append(None)
        if len(calls) in entries:
            thread = Thread(target=other)
            thread.start()
            thread.join()

    return pipe.unet.register_forward_pre_hook(wait)


def test_threads_that_share_a_pipeline_do_not_disturb_each_other(images):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(dropout=0.5).train(), VLBDDPMScheduler(8, num_pixel_levels=17)))
    pipe.unet.conv_in.eval()
    twin = quiet(VLBDDPMPipeline(copy.copy(pipe.unet), pipe.scheduler))  # another module, of the same parts

    def sample():
        return pipe(generator=generator(), num_inference_steps=4, output_type="pt").images

    alone, scored = sample(), score(pipe, images[:2])
    for other in (
        lambda: pipe(num_inference_steps=8),
        lambda: pipe(inference_timesteps=[6, 3], draw_from_decoder=True),
        lambda: twin(num_inference_steps=2),
        lambda: pipe.scheduler.set_timesteps(3),
        lambda: score(twin, images[:2], num_inference_steps=2),
    ):
        with meanwhile(pipe, other, entries=(1, 3)):
            assert torch.equal(sample(), alone)
        with meanwhile(pipe, other):
            assert same(score(pipe, images[:2]), scored)
        assert pipe.unet.training and pipe.unet.conv_out.training and not pipe.unet.conv_in.training
    # As users of diffusers expect, the scheduler shows the last grid.
    pipe(inference_timesteps=[6, 3])
    assert pipe.scheduler.timesteps.tolist() == [6, 3]


def test_the_last_of_several_evaluations_restores_the_mode(pipe):
    pipe.unet.train()
    first, second = pipe.network.evaluating(), pipe.network.evaluating()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in pipe.unet.modules())
    second.__exit__(None, None, None)
    assert all(part.training for part in pipe.unet.modules())
    pipe.unet.eval()
    with pipe.network.evaluating():
        pipe.unet.train()  # as a training loop may
    assert pipe.unet.training


def test_clipping_can_be_overridden(pipe, images):
    clipped, free = score(pipe, images), score(pipe, images, clip_sample=False)
    assert clipped.config["clip_sample"] and not free.config["clip_sample"]
    assert not torch.allclose(clipped.bits_per_dim, free.bits_per_dim)
    assert score(pipe, images, thresholding=True).config["thresholding"]


# Networks.


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variances(images, variance_type):
    pipe = quiet(
        VLBDDPMPipeline(tiny_unet(out_channels=2), VLBDDPMScheduler(10, variance_type=variance_type, num_pixel_levels=17))
    )
    assert torch.isfinite(score(pipe, images).bits_per_dim).all()
    assert pipe(batch_size=2, num_inference_steps=4, output_type="pt").images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks(pipe, images, dtype):
    full = score(pipe, images)
    half = score(pipe.to(dtype), images)
    assert half.config["dtype"] == str(dtype)[6:]
    # The network is rounded, the bound is not: each KL term moves by about eps of the prediction, relative to its own size.
    assert torch.allclose(half.bits_per_dim, full.bits_per_dim, rtol=8 * torch.finfo(dtype).eps)
    assert pipe(output_type="np").images.dtype == np.float32


METHODS = {
    "full": lambda pipe, x: score(pipe, x).bits_per_dim,
    "sampled": lambda pipe, x: score(pipe, x, method="sampled").bits_per_dim,
    "iw": lambda pipe, x: importance_weighted_nll(pipe, x, k=2).bits_per_dim,
    "rate_distortion": lambda pipe, x: rate_distortion(pipe, x).rate,
    "progressive_decoding": lambda pipe, x: progressive_decoding(pipe, x, [9, 3]),
    "stratified": lambda pipe, x: estimate_nll(pipe, x, [0, 1], 4).bits_per_dim,
    "evaluate": lambda pipe, x: torch.tensor(evaluate(pipe, x, quiet=True, max_evaluations=100)["bits_per_dim"]),
    "compare": lambda pipe, x: torch.tensor(
        compare([pipe, pipe], x, num_inference_steps=(20, 5), quiet=True, max_evaluations=200)["difference"]
    ),
    "ode": lambda pipe, x: ode_nll(pipe, x[:1], trace="hutchinson", rtol=0.1, atol=0.1).bits_per_dim,
    "calibrate": lambda pipe, x: torch.as_tensor(
        calibrate(pipe, x.repeat(8, 1, 1, 1), num_timesteps=2, evaluations=32, quiet=True).decoder_costs
    ),
}
# In a copy of the network of its own.
CODEC = {"compress": lambda pipe, x: torch.frombuffer(bytearray(compress(pipe, x)), dtype=torch.uint8)}


@pytest.mark.parametrize("number_of", (METHODS | CODEC).values(), ids=METHODS | CODEC)
def test_autocast_changes_no_number(number_of, pipe, images):
    expected = number_of(pipe, images[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(number_of(pipe, images[:2]), expected) and torch.is_autocast_enabled("cpu")


def test_a_network_with_an_autocast_of_its_own_is_refused(pipe, images):
    def mixed(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return pipe.unet(x, t).sample

    own = quiet(VLBDDPMPipeline(FunctionModel(mixed, (1, 8, 8)), pipe.scheduler))
    # The function has no weights to be of another dtype.
    for number_of in (METHODS[name] for name in ("full", "sampled", "iw", "rate_distortion", "evaluate")):
        with pytest.raises(
            ValueError, match="`unet` must compute in its own dtype, torch.float32, got an output in torch.bfloat16"
        ):
            number_of(own, images[:2])


@pytest.mark.parametrize("name", ["full", "sampled", "iw", "rate_distortion", "progressive_decoding", "evaluate"])
def test_autocast_that_is_asked_for_is_around_the_network_alone(name, pipe, images):
    def mixed(x, t):
        with torch.autocast("cpu", torch.bfloat16):
            return pipe.unet(x, t).sample.float()

    by_hand = quiet(VLBDDPMPipeline(FunctionModel(mixed, (1, 8, 8)), pipe.scheduler))
    expected, exact = METHODS[name](by_hand, images[:2]), METHODS[name](pipe, images[:2])
    pipe.autocast = torch.bfloat16
    assert torch.equal(METHODS[name](pipe, images[:2]), expected) and not torch.equal(exact, expected)
    assert pipe.unet.dtype == torch.float32 and pipe.scorer().config()["dtype"] == "autocast-bfloat16"


def test_autocast_of_sampling_and_of_a_coded_file(pipe, images):
    options = {"num_inference_steps": 5, "output_type": "np"}
    with torch.autocast("cpu", torch.bfloat16):
        expected = pipe(generator=generator(), **options).images
    exact, file = pipe(generator=generator(), **options).images, compress(pipe, images)
    pipe.autocast = torch.bfloat16
    assert np.array_equal(pipe(generator=generator(), **options).images, expected) and not np.array_equal(exact, expected)
    assert compress(pipe, images) == file  # which is the float32 network's, in whatever arithmetic it is read


@pytest.mark.parametrize(
    "dtype, weights, message",
    [
        (torch.float32, torch.float32, "must be torch.bfloat16, torch.float16 or None, got torch.float32"),
        ("bf16", torch.float32, "must be torch.bfloat16, torch.float16 or None, got 'bf16'"),
        (torch.bfloat16, torch.float16, "must be None for a network with weights in torch.float16, got torch.bfloat16"),
    ],
)
def test_an_autocast_that_cannot_be_is_refused(pipe, images, dtype, weights, message):
    pipe.to(weights)
    pipe.autocast = dtype
    for ask in (pipe.evaluate_nll, lambda images: pipe(), lambda images: evaluate(pipe, images, quiet=True)):
        with pytest.raises(ValueError, match=f"`autocast` {re.escape(message)}"):
            ask(images)


def test_mixed_precision_of_accelerate_changes_no_number(pipe, images):
    expected, x, stock = score(pipe, images), torch.zeros(1, 1, 8, 8), pipe.unet.forward
    exact = stock(x, 3).sample
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process, which other tests have begun
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    unet = accelerator.unwrap_model(accelerator.prepare(pipe.unet))  # as in diffusers' own training script
    assert not torch.equal(unet(x, 3).sample, exact)
    mixed = unet.forward
    first, second = pipe.network.evaluating(), pipe.network.evaluating()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(unet(x, 3).sample, exact)
    second.__exit__(None, None, None)
    assert same(score(pipe, images), expected) and unet.forward is mixed
    AcceleratorState._reset_state(reset_partial_state=True)


def test_sampling_under_autocast_is_the_parents(pipe):
    stock = quiet(DDPMPipeline(pipe.unet, DDPMScheduler(num_train_timesteps=20)))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (p(generator=generator(), num_inference_steps=5, output_type="np").images for p in (pipe, stock))
    assert np.abs(ours - theirs).max() <= 0.01


def test_channels_last_and_compiled_networks(pipe, images):
    plain = score(pipe, images)
    pipe.unet.to(memory_format=torch.channels_last)
    assert same(score(pipe, images), plain, atol=2e-5)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert same(score(pipe, images), plain, atol=2e-5)


def test_a_compiled_network_is_asked_about_few_sizes(images):
    r"""What is left over at the end of rounds has any size."""
    unet, asked, sizes = tiny_unet(num_class_embeds=3), set(), set()
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(200, num_pixel_levels=17)))
    many = torch.randint(17, (30, 1, 8, 8), generator=generator(3)).to(torch.uint8)
    labels = torch.arange(30) % 3
    options = {"class_labels": labels, "batch_size": 50, "quiet": True}
    runs = [{"max_evaluations": 700}, {"evaluations_per_image": 4}, {"method": "full", "num_inference_steps": 3}]
    hook = unet.register_forward_pre_hook(lambda module, inputs: asked.add(len(inputs[0])))
    expected = [evaluate(pipe, many, **options, **rules)["bits_per_dim"] for rules in runs]
    hook.remove()

    def backend(graph, inputs):
        sizes.add(max(x.shape[0] for x in inputs if isinstance(x, torch.Tensor) and x.shape[1:] == (1, 8, 8)))
        return graph.forward

    unet.compile(backend=backend, dynamic=False)
    got = [evaluate(pipe, many, **options, **rules)["bits_per_dim"] for rules in runs]
    assert got == pytest.approx(expected, rel=1e-5)
    assert len(sizes) <= 4 < len(asked), (sizes, asked)
    network = pipe.network
    x, t = torch.randn(50, 1, 8, 8, generator=generator()), torch.arange(50)
    whole = network(x, t, labels.repeat(2)[:50])
    for size in (50, 49, 26, 25, 3, 1):
        assert torch.allclose(network(x[:size], t[:size], labels.repeat(2)[:size]), whole[:size], atol=2e-5)
        one = network(x[:size], t[0], labels.repeat(2)[:size])
        assert torch.allclose(one[0], whole[0], atol=2e-5) and len(one) == size


def test_class_conditional_networks(images):
    unet = tiny_unet(num_class_embeds=3)
    pipe = quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(5, num_pixel_levels=17)))
    labels = torch.tensor([0, 1, 2, 0, 1])
    out = score(pipe, images, class_labels=labels)
    assert same(score(pipe, images, class_labels=labels.tolist(), batch_size=2), out, atol=2e-5)
    assert not torch.allclose(score(pipe, images, class_labels=labels.flip(0)).transitions, out.transitions)
    assert pipe(batch_size=2, class_labels=1, output_type="pt").images.shape == (2, 1, 8, 8)
    assert same(score(pipe, images, class_labels=np.int64(1)), score(pipe, images, class_labels=[1] * 5))
    for bad in (None, [0, 1], [0, 1, 2, 3, 0], [0.0] * 5, [-1, 0, 0, 0, 0]):
        with pytest.raises(ValueError, match="`class_labels` must"):
            score(pipe, images, class_labels=bad)
    with pytest.raises(ValueError, match="`class_labels` must"):
        pipe(batch_size=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sampling_refuses_networks_whose_output_is_not_finite(pipe, value):
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(value)
    with pytest.raises(ValueError, match="`unet` must give finite outputs"):
        pipe(num_inference_steps=2)


def test_class_labels_of_an_unconditional_network(pipe, images):
    with pytest.raises(ValueError, match="`class_labels` must be left out"):
        score(pipe, images, class_labels=[0] * 5)


def test_networks_whose_channels_fit_no_variance_type(images):
    for out_channels, variance_type in ((2, "fixed_small"), (1, "learned_range"), (3, "learned")):
        unet = tiny_unet(out_channels=out_channels)
        with pytest.raises(ValueError, match="`unet` must have . output channels? for 1 input channel and"):
            score(VLBDDPMPipeline(unet, VLBDDPMScheduler(5, variance_type=variance_type, num_pixel_levels=17)), images)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_networks_whose_output_is_not_finite(pipe, images, value):
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(value)
    with pytest.raises(ValueError, match="`unet` must give finite outputs.*image 0 at timestep 0"):
        score(pipe, images)


@pytest.mark.parametrize(
    "number_of", [*METHODS.values(), lambda pipe, x: pipe(num_inference_steps=2)], ids=[*METHODS, "sampling"]
)
def test_no_number_is_made_of_an_overflow(number_of, pipe, images):
    assert pipe.scheduler.config.clip_sample  # which would turn an infinite prediction into an end of the range
    stock = pipe.unet.forward

    def overflowing(sample, timestep, **arguments):
        output = stock(sample, timestep, **arguments)
        output.sample = output.sample + sample.new_zeros(8, 8).index_fill(0, torch.tensor([7]), math.inf)
        return output

    pipe.unet.forward = overflowing
    with pytest.raises(NonFiniteOutput, match="`unet` must give finite outputs"):
        number_of(pipe, images[:2])


# Images.


def test_all_kinds_of_images_score_the_same():
    pipe = quiet(VLBDDPMPipeline(tiny_unet(3), VLBDDPMScheduler(4)))
    levels = torch.randint(256, (3, 3, 8, 8), generator=generator()).to(torch.uint8)
    arrays = levels.permute(0, 2, 3, 1).numpy()
    pils = [Image.fromarray(array) for array in arrays]
    dataset = Dataset.from_dict({"picture": pils, "label": [0, 1, 2]}, features=None)
    dataset = dataset.cast_column("picture", ImageFeature())
    kinds = {
        "float32": levels.float() / 127.5 - 1,
        "float64": levels_to_samples(levels, 256),
        "array": arrays,
        "array, channels first": levels.numpy(),
        "list of arrays, channels first": list(levels.numpy()),
        "float array": levels_to_samples(levels, 256).permute(0, 2, 3, 1).numpy(),
        "PIL": pils,
        "list of tensors": list(levels),
        "list of arrays": list(arrays),
        "dataset": dataset,
        "dataset in a format": dataset.with_format("numpy"),
    }
    expected = score(pipe, levels)
    for name, images in kinds.items():
        assert same(score(pipe, images), expected), name
    assert torch.allclose(score(pipe, pils[0]).bits_per_dim, expected.bits_per_dim[:1], atol=2e-5)


def bad_images():
    good = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    on_grid = torch.full((1, 1, 8, 8), -1.0)
    yield "off the grid", on_grid + 0.01, "lie on the grid"
    yield "nan", on_grid * float("nan"), "be finite"
    yield "inf", on_grid * float("inf"), "be finite"
    yield "outside", on_grid * 2, "lie on the grid"
    yield "level too high", good + 17, "below num_pixel_levels = 17, got 17"
    yield "channels", good.expand(1, 3, 8, 8), "have 1 channel, got 3"
    yield "size", torch.zeros(1, 1, 8, 9, dtype=torch.uint8), "8 x 8 pixels, got 8 x 9"
    yield "ndim", good[0, 0, 0], r"shape \(N, C, H, W\)"
    yield "empty", good[:0], "not be empty"
    yield "empty list", [], "not be empty"
    yield "int64", good.long(), "dtype int64"
    yield "bool", good.bool(), "dtype bool"
    yield "half", on_grid.half(), "dtype float16"
    yield "uint16", good.to(torch.uint16), "dtype uint16"
    yield "complex", on_grid.to(torch.complex64), "dtype complex64"
    yield "RGBA", Image.new("RGBA", (8, 8)), "got mode RGBA"
    yield "palette", Image.new("P", (8, 8)), "got mode P"
    yield "16 bit", Image.new("I;16", (8, 8)), "dtype uint16"
    yield "RGB for a grey model", Image.new("RGB", (8, 8)), "have 1 channel, got 3"
    yield "two sizes", [Image.new("L", (8, 8)), Image.new("L", (8, 9))], "all have one size"
    yield "text", "image.png", "must be paths of pictures"
    yield "strings", ["image.png"], "must be paths of pictures"
    yield "None", None, "must be a tensor"
    yield "object array", np.array([[object()]]), "plain arrays"
    yield "masked array", np.ma.masked_array(np.zeros((1, 8, 8, 1), np.uint8)), "plain arrays"
    yield "meta tensor", torch.zeros(1, 1, 8, 8, device="meta"), "dense tensor with values"
    yield "sparse tensor", on_grid.to_sparse(), "dense tensor with values"
    yield "no image column", Dataset.from_dict({"label": [1]}), "one image column"


@pytest.mark.parametrize(("images", "message"), [pytest.param(i, m, id=name) for name, i, m in bad_images()])
def test_bad_images_are_refused_before_any_work(pipe, images, message):
    pipe.unet.forward = None  # would fail if it were called
    with pytest.raises(ValueError, match=f"`images` must.*{message}|`images` {message}"):
        pipe.evaluate_nll(images)


def test_sixteen_bit_images():
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(3, num_pixel_levels=65536)))
    array = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    expected = score(pipe, torch.from_numpy(array)[None, None])
    assert same(score(pipe, Image.fromarray(array)), expected)
    with pytest.raises(ValueError, match="dtype uint8"):
        score(pipe, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0"),
        ({"batch_size": 2.0}, "`batch_size` must be a positive integer"),
        ({"num_inference_steps": 3, "inference_timesteps": [1]}, "Only one of"),
        ({"num_inference_steps": 21}, r"`num_inference_steps` must lie in \[1, 20\], got 21"),
        ({"inference_timesteps": [3, 3]}, "`inference_timesteps` must be strictly descending"),
        ({"inference_timesteps": [20]}, r"`inference_timesteps` must lie in \[0, 20\), got 20"),
        ({"inference_timesteps": []}, "`inference_timesteps` must name at least one"),
        ({"generator": [generator()]}, "`generator` must be one generator or one per image"),
        ({"generator": 0}, "`generator` must be a torch.Generator"),
        ({"generator": [0] * 5}, "`generator` must be a torch.Generator"),
        ({"batch_size": True}, "`batch_size` must be a positive integer"),
    ],
)
def test_bad_arguments(pipe, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.evaluate_nll(images, **arguments)


# Sampling.


@pytest.mark.parametrize("steps", [5, 20])
def test_sampling_is_the_parents(pipe, steps):
    stock = quiet(DDPMPipeline(pipe.unet, DDPMScheduler(num_train_timesteps=20)))
    ours, theirs = (
        p(batch_size=2, generator=generator(), num_inference_steps=steps, output_type="np").images for p in (pipe, stock)
    )
    assert np.abs(ours - theirs).max() <= 1e-3
    assert pipe(generator=generator()).images[0].size == (8, 8)
    assert len(pipe(return_dict=False, inference_timesteps=[15, 3])[0]) == 1


def test_sampling_refuses(pipe):
    for arguments, message in (
        ({"num_inference_steps": 5, "inference_timesteps": [1]}, "Only one of"),
        ({"inference_timesteps": [1, 5]}, "strictly descending"),
        ({"num_inference_steps": 1000}, "`num_inference_steps` must lie"),
        ({"output_type": "latent"}, "`output_type` must be"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"generator": 3}, "`generator` must be a torch.Generator"),
        ({"batch_size": 2, "generator": [generator()]}, "`generator` must be one generator or one per image"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_pictures_of_too_many_channels_are_refused_before_the_steps(channels):
    pipe, calls = quiet(VLBDDPMPipeline(tiny_unet(channels), VLBDDPMScheduler(num_train_timesteps=3))), []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    if channels <= 4:
        assert len(pipe().images[0].getbands()) == channels
        return
    with pytest.raises(ValueError, match="`output_type` must be 'np' or 'pt' for images of 5 channels.*got 'pil'"):
        pipe()
    assert not calls
    assert pipe(output_type="np").images.shape == (1, 8, 8, 5) and pipe(output_type="pt").images.shape == (1, 5, 8, 8)


def test_sampling_from_zero_terminal_snr_is_refused_as_scoring_is(images):
    def pipe_of(prediction_type):
        scheduler = VLBDDPMScheduler(
            8, rescale_betas_zero_snr=True, prediction_type=prediction_type, timestep_spacing="trailing", num_pixel_levels=17
        )
        return quiet(VLBDDPMPipeline(tiny_unet(), scheduler))

    pipe, evaluations = pipe_of("epsilon"), []
    pipe.unet.register_forward_pre_hook(lambda *_: evaluations.append(None))
    for grid in ({}, {"num_inference_steps": 3}, {"inference_timesteps": [7, 0]}):
        messages = []
        for use in (lambda **grid: score(pipe, images, **grid), pipe):
            with pytest.raises(
                ValueError, match="`prediction_type` must not be 'epsilon' where the terminal SNR is zero"
            ) as error:
                use(**grid)
            messages.append(str(error.value))
        assert messages[0] == messages[1] and not evaluations
        assert len(pipe_of("v_prediction")(**grid).images) == 1
    # Below the last timestep there is some signal.
    assert len(pipe(inference_timesteps=[6, 0]).images) == 1
    assert torch.isfinite(score(pipe, images, inference_timesteps=[6, 0]).bits_per_dim).all()


# Checkpoints.


def test_round_trip_and_stock_diffusers(pipe, images, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = quiet(VLBDDPMPipeline.from_pretrained(tmp_path))
    assert again.scheduler.config.num_pixel_levels == 17 and same(score(again, images), score(pipe, images))
    again.save_pretrained(tmp_path / "twice")
    assert same(score(quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "twice")), images), score(pipe, images))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline" and index["scheduler"] == ["diffusers", "DDPMScheduler"]
    stock = quiet(DDPMPipeline.from_pretrained(tmp_path))
    images = [p(generator=generator(), num_inference_steps=20, output_type="np").images for p in (stock, pipe)]
    assert np.abs(images[0] - images[1]).max() <= 1e-3


def test_from_pipe(pipe, images):
    assert same(score(quiet(VLBDDPMPipeline.from_pipe(DDPMPipeline.from_pipe(pipe))), images), score(pipe, images))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("safe", [True, False])
def test_every_layout_loads(tmp_path, flat, index, safe):
    unet = tiny_unet()
    unet.save_pretrained(tmp_path if flat else tmp_path / "unet", safe_serialization=safe)
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 7, "beta_schedule": "linear", "tensor_format": "pt"}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / ("." if flat else "scheduler") / "scheduler_config.json").write_text(json.dumps(config))
    if flat:
        (tmp_path / "scheduler").rmdir()
    if index:
        parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **parts}))
    pipe = VLBDDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.scheduler, VLBDDPMScheduler) and pipe.scheduler.config.num_train_timesteps == 7
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.state_dict().values(), unet.state_dict().values()))
    mine, scheduler = tiny_unet(seed=1), VLBDDPMScheduler(9)
    pipe = VLBDDPMPipeline.from_pretrained(tmp_path, unet=mine, scheduler=scheduler)
    assert pipe.unet is mine and pipe.scheduler is scheduler


def test_configurations_from_before_attention_head_dim_have_one_head(tmp_path):
    unet = tiny_unet(attention_head_dim=None, block_out_channels=(16,), mid_block_type="UNetMidBlock2D")
    VLBDDPMPipeline(unet, VLBDDPMScheduler(5)).save_pretrained(tmp_path)
    path = tmp_path / "unet" / "config.json"
    config = json.loads(path.read_text())
    del config["attention_head_dim"]
    path.write_text(json.dumps({**config, "_diffusers_version": "0.0.4"}))
    x = torch.randn(1, 1, 8, 8, generator=generator())
    with torch.no_grad():
        expected = unet(x, 3).sample
        assert torch.allclose(VLBDDPMPipeline.from_pretrained(tmp_path).unet(x, 3).sample, expected, atol=1e-6)
        assert not torch.allclose(UNet2DModel.from_pretrained(tmp_path / "unet")(x, 3).sample, expected, atol=1e-4)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damaged(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(weights)
    hostile = folder.parent / "hostile"

    def write(content):
        return lambda: weights.write_bytes(content)

    def as_bin(content):
        weights.unlink()
        torch.save(content, weights.with_suffix(".bin"))

    name = "conv_out.bias"
    yield "truncated", write(weights.read_bytes()[:1000]), "complete and readable"
    yield "garbage", write(b"\x10" * 100), "complete and readable"
    yield "no weights", weights.unlink, "complete and readable"
    yield "a weight is missing", lambda: save_file({k: v for k, v in whole.items() if k != name}, weights), f"without {name}"
    yield "a weight has another shape", lambda: save_file({**whole, name: torch.zeros(9)}, weights), "complete and readable"
    yield "a pickle with code", lambda: as_bin({"x": Payload(hostile)}), "complete and readable"
    yield "no scheduler", (folder / "scheduler" / "scheduler_config.json").unlink, "complete and readable"
    yield "no network configuration", (folder / "unet" / "config.json").unlink, "complete and readable"
    yield "index that is not JSON", lambda: (folder / "model_index.json").write_text("{"), "complete and readable"
    yield "nonsense in the configuration", lambda: set_config(folder, norm_num_groups=0), "complete and readable"
    yield "another kind of network", lambda: set_config(folder, _class="UNet3DConditionModel"), "complete and readable"
    yield "empty folder", lambda: [shutil.rmtree(folder), folder.mkdir()], "without config.json"


def set_config(folder, _class=None, **values):
    path = folder / ("model_index.json" if _class else "unet/config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **values, **({"unet": ["diffusers", _class]} if _class else {})}))


@pytest.mark.parametrize("case", range(12))
def test_damaged_checkpoints_are_refused(pipe, tmp_path, case):
    folder = tmp_path / "pipeline"
    pipe.save_pretrained(folder)
    cases = list(damaged(folder))
    assert len(cases) == 12
    _, damage, message = cases[case]
    damage()
    for error in (ValueError, OSError):
        with pytest.raises(error, match=f"`pretrained_model_name_or_path` must.*{message}"):
            VLBDDPMPipeline.from_pretrained(folder, low_cpu_mem_usage=error is OSError)
    assert not (tmp_path / "hostile").exists()


NONSENSE = {
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": ("1000", 10**9, 0, 3.5, True, None, [6]),
        "beta_start": ("0.1", None, 1e400, 10**30),
        "trained_betas": ("x", [0.1, "0.2"], {}, [float("nan")]),
        "clip_sample": ("yes", None, [True], 2),
        "clip_sample_range": ("x", None, 0, -1.0, 10**30, float("nan")),
        "dynamic_thresholding_ratio": ("x", 1.5, None),
        "sample_max_value": ("x", [1.0]),
        "num_pixel_levels": ("17", None, 1, 17.0, 10**9),
        "steps_offset": ("1", -1, None),
        "calibration": ("x", [1]),
        "k" * 1000: (1,),
    },
    "unet/config.json": {
        "sample_size": ("8", [8], {}, {"a": 1}, 3.5, 0, -8, [8, "8"], 10**9),
        "in_channels": ("1", 0, None),
        "layers_per_block": (10**6, "1", None, 0),
        "block_out_channels": ("4", [], [4.5], 4, [10**9]),
        "down_block_types": ("DownBlock2D", [1]),
        "attention_head_dim": (0, "4", 5, [4]),
        "norm_num_groups": (0, "2", None),
        "num_class_embeds": ("3", -1, 1.5),
        "dropout": ("x", 2),
        "k" * 1000: (1,),
    },
    "model_index.json": {"unet": ("x" * 10_000, [["diffusers"] * 10_000, 3]), "k" * 1000: (1,)},
}


def test_configurations_that_cannot_be_meant_are_refused_at_once(pipe, tmp_path):
    r"""Before anything is made of them, with the argument, the rule, and a value that fits a line."""
    pipe.save_pretrained(tmp_path)
    for file, values in NONSENSE.items():
        text = (tmp_path / file).read_text()
        for name, bad in values.items():
            for value in bad:
                (tmp_path / file).write_text(json.dumps({**json.loads(text), name: value}))
                start = time.perf_counter()
                with pytest.raises(CheckpointError) as refused:
                    VLBDDPMPipeline.from_pretrained(tmp_path)
                said = str(refused.value)
                expected = f"`{name}` must " if name in json.loads(text) and file != "model_index.json" else " must "
                assert expected in said and ", got " in said and len(said) < 700, (name, value, said)
                assert time.perf_counter() - start < 1, (name, value)
        too_large = [" " * (33 * 2**20)] if file == "model_index.json" else []
        for damage in ("[1, 2]", "[" * 100_000, '{"a": ' * 100_000, *too_large):
            (tmp_path / file).write_text(damage)
            with pytest.raises(CheckpointError, match=r"^.{10,700}$"):
                VLBDDPMPipeline.from_pretrained(tmp_path)
        (tmp_path / file).write_text(text)
    VLBDDPMPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("values", [{"clip_sample_range": "x"}, {"num_pixel_levels": "17"}, {"sample_max_value": None}])
def test_a_scheduler_that_was_made_of_nonsense_is_refused_where_it_is_used(values, images):
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(num_train_timesteps=5, **values)))
    for use in (lambda: pipe.evaluate_nll(images), lambda: pipe(output_type="np")):
        with pytest.raises(ValueError, match=f"`{next(iter(values))}` must be .*, got"):
            use()
    with pytest.raises(ValueError, match="`num_train_timesteps` must be an integer from 1 to 1000000, got 1000000000"):
        VLBDDPMScheduler(num_train_timesteps=10**9)


def test_configurations_of_the_hub_are_as_the_rules_have_them():
    r"""Those of google/ddpm-cifar10-32 and of pipelines since, whose values are the widest."""
    old = {"attention_head_dim": None, "block_out_channels": [128, 256, 256, 256], "mid_block_scale_factor": 1, "freq_shift": 1}
    kinds = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    check_network_config({"sample_size": 32, "norm_eps": 1e-06, "norm_num_groups": 32, "down_block_types": kinds, **old})
    check_network_config(tiny_unet(sample_size=(8, 16)).config)
    check_network_config({"_class_name": "DiTTransformer2DModel", "norm_num_groups": "any"})
    for scheduler in (DDPMScheduler(), VLBDDPMScheduler(), DDPMScheduler(trained_betas=np.array([0.1, 0.2]))):
        check_scheduler_config(scheduler.config)
    # No argument is without a rule.
    for cls, rules in ((UNet2DModel, UNET_RULES), (VLBDDPMScheduler, SCHEDULER_RULES)):
        assert {*inspect.signature(cls.__init__).parameters} - {"self"} <= set(rules)
    check_scheduler_config({"beta_end": 0.02, "clip_sample": True, "trained_betas": None, "tensor_format": "pt"})


def test_missing_checkpoints_and_hostile_indexes(pipe, tmp_path):
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must"):
        VLBDDPMPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must"):
        VLBDDPMPipeline.from_pretrained("no-such-name/no-such-repository")
    pipe.save_pretrained(tmp_path)
    index = {"_class_name": "DDPMPipeline", "unet": ["os", "system"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must"):
        VLBDDPMPipeline.from_pretrained(tmp_path)
