import json
import math

import numpy as np
import pytest
import torch
from analytic import GaussianDenoiser, gaussian_bound_and_nll
from conftest import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.bound import prior_kl, vlb_terms
from ddpm_vlb.control_variates import ControlVariates, image_features
from ddpm_vlb.gaussians import levels_to_samples
from ddpm_vlb.noise import keyed_normal, mix_array
from ddpm_vlb.sampled_bound import Draws
from ddpm_vlb.scoring import DrawScorer, known_parts

BITS = 64 * math.log(2)  # of an image of 8 x 8 pixels


def make_pipe(seed=0, steps=20, classes=None):
    unet = tiny_unet(seed=seed, num_class_embeds=classes)
    if classes:
        # diffusers starts with embeddings too alike to be told apart.
        torch.nn.init.normal_(unet.class_embedding.weight, std=3.0, generator=generator(seed))
    return quiet(VLBDDPMPipeline(unet, VLBDDPMScheduler(num_train_timesteps=steps, num_pixel_levels=17)))


def make_draws(count, images, rows, seed=0):
    rng = np.random.default_rng(seed)
    return Draws(rng.choice(images, count), rng.integers(rows, size=count), mix_array(seed, np.arange(count)))


def draw_scorer(scorers, images, labels=(None, None)):
    ids = np.arange(len(images))
    return DrawScorer(scorers, images, ids, ids, 0, labels)


@torch.no_grad()
def by_hand(pipe, images, image, row, key, grid=None, label=None):
    """One term in bits/dim, from the scheduler's methods and the network alone."""
    samples = levels_to_samples(images[image : image + 1], 17)
    reverse = pipe.scheduler.reverse_process(grid)
    timestep = int(reverse.forward.timesteps[row])
    noisy = reverse.forward.q_sample(samples, keyed_normal([int(key)], images.shape[1:]), timestep)
    arguments = {} if label is None else {"class_labels": torch.tensor([label])}
    output = pipe.unet(noisy.float(), timestep, **arguments).sample
    return vlb_terms(reverse, output, samples, noisy, timestep, 17).item() / BITS


# float32 networks differ in the last place between batch shapes: 1e-7 of terms of up to 10 bits/dim.
CLOSE = dict(rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("grid", [None, [17, 9, 4, 0]])
def test_terms_are_the_networks(pipe, images, grid):
    scorer = pipe.scorer(inference_timesteps=grid)
    samples, noise = scorer.samples(images), torch.randn(5, 1, 8, 8, generator=generator())
    timesteps = scorer.reverse.forward.timesteps[torch.tensor([0, 1, 2, 3, 1])]
    with torch.no_grad():
        got = scorer.terms(samples, noise, timesteps)
        noisy = scorer.reverse.forward.q_sample(samples, noise, timesteps)
        expected = vlb_terms(scorer.reverse, pipe.unet(noisy.float(), timesteps).sample, samples, noisy, timesteps, 17)
        assert torch.equal(got, expected) and got.dtype == torch.float64
        assert torch.equal(scorer.terms(samples, noise, timesteps, on_device=timesteps), expected)
        one = scorer.terms(samples, noise, int(timesteps[3]))
        assert torch.allclose(one[3], expected[3], **CLOSE)
    assert torch.equal(samples, levels_to_samples(images, 17))
    assert torch.equal(scorer.prior(samples), prior_kl(scorer.reverse.forward, samples))


def test_what_is_not_finite_is_nan_and_nothing_else_is(pipe, images):
    scorer = pipe.scorer()
    stock = pipe.unet.forward

    def broken(sample, timestep, **arguments):
        output = stock(sample, timestep, **arguments)
        output.sample[1, 0, 3, 3], output.sample[3, 0, 0, 0] = math.nan, math.inf
        return output

    noise = torch.randn(5, 1, 8, 8, generator=generator())
    with torch.no_grad():
        expected = scorer.terms(scorer.samples(images), noise, 7)
        pipe.unet.forward = broken
        got = scorer.terms(scorer.samples(images), noise, 7)
    assert torch.isnan(got).tolist() == [False, True, False, True, False]
    assert torch.equal(got[[0, 2, 4]], expected[[0, 2, 4]])


def test_what_is_known_without_the_network(pipe, images):
    scorer = pipe.scorer()
    samples = levels_to_samples(images, 17)
    prior, features = known_parts(scorer, images)
    assert torch.allclose(prior, prior_kl(scorer.reverse.forward, samples) / BITS, rtol=1e-14)
    assert torch.equal(features, image_features(samples))


# Draws.


@pytest.mark.parametrize("grid", [None, [17, 9, 4, 0]])
def test_draws_are_scored_one_by_one(pipe, images, grid):
    scorer = pipe.scorer(inference_timesteps=grid)
    own = draw_scorer([scorer], images)
    assert own.num_steps == len(grid or range(20)) and own.evaluations_per_draw == 1 and not own.paired
    draws = make_draws(40, 5, own.num_steps)
    values, features = own(draws)
    expected = [by_hand(pipe, images, *draw, grid=grid) for draw in zip(*draws)]
    assert np.allclose(values, expected, **CLOSE)
    samples = levels_to_samples(images, 17)[torch.as_tensor(draws.images)]
    noise = keyed_normal(draws.keys.tolist(), (1, 8, 8))
    controls = ControlVariates(scorer.reverse.forward, levels_to_samples(images, 17))
    assert torch.allclose(features, controls.noise_features(samples, noise, torch.as_tensor(draws.rows)), rtol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_values_do_not_depend_on_the_batches(pipe, images, batch_size):
    own, draws = draw_scorer([pipe.scorer()], images), make_draws(40, 5, 20)
    values, features = own(draws)
    parts = [own(batch) for batch in own.batches(draws, batch_size)]
    assert len(parts) == math.ceil(40 / batch_size)
    assert torch.allclose(torch.cat([part[0] for part in parts]), values, **CLOSE)
    assert torch.allclose(torch.cat([part[1] for part in parts]), features, rtol=1e-12, atol=1e-12)


def test_images_in_memory_are_found_by_their_position(pipe, images):
    whole = draw_scorer([pipe.scorer()], images)
    positions = np.array([10, 11, 40, 77, 300])
    part = DrawScorer([pipe.scorer()], images, positions, positions, 0)
    draws = make_draws(30, 5, 20)
    values, _ = part(draws._replace(images=positions[draws.images]))
    assert torch.equal(values, whole(draws)[0])


def test_pairs_are_differences_under_one_noise(images):
    one, other = make_pipe(seed=0), make_pipe(seed=1)
    pair = draw_scorer([one.scorer(), other.scorer()], images)
    assert pair.paired and pair.num_steps == 20 and pair.evaluations_per_draw == 2
    draws = make_draws(30, 5, 20)
    expected = [by_hand(one, images, *draw) - by_hand(other, images, *draw) for draw in zip(*draws)]
    values, features = pair(draws)
    assert np.allclose(values, expected, **CLOSE)
    assert torch.equal(features, draw_scorer([one.scorer()], images)(draws)[1])
    same = draw_scorer([one.scorer(), one.scorer()], images)
    assert (same(draws)[0] == 0).all()


@pytest.mark.parametrize("only", [None, 0, 1])
def test_the_rows_of_the_second_follow_the_firsts_with_a_minus_sign(images, only):
    one, other = make_pipe(seed=0), make_pipe(seed=1, steps=30)
    grid = [28, 20, 11, 5, 2]
    both = draw_scorer([one.scorer(), other.scorer(inference_timesteps=grid)], images)
    assert not both.paired and both.num_steps == 25 and both.evaluations_per_draw == 1
    draws = make_draws(50, 5, 25)
    if only is not None:  # a batch with rows of one of them alone
        draws = Draws(*(x[(draws.rows >= 20) == only] for x in draws))
    values, features = both(draws)
    expected = [
        by_hand(one, images, image, row, key) if row < 20 else -by_hand(other, images, image, row - 20, key, grid)
        for image, row, key in zip(*draws)
    ]
    assert (np.sign(values.numpy()) == np.where(draws.rows < 20, 1, -1)).all()
    assert np.allclose(values, expected, **CLOSE)
    # The features of a row are those of its own process.
    second = draws.rows >= 20
    for pipe, mine, offset, arguments in ((one, ~second, 0, {}), (other, second, 20, {"inference_timesteps": grid})):
        part = Draws(draws.images[mine], draws.rows[mine] - offset, draws.keys[mine])
        if mine.any():
            assert torch.allclose(features[mine], draw_scorer([pipe.scorer(**arguments)], images)(part)[1], rtol=1e-12)


def test_labels_reach_their_network(images):
    one, other = make_pipe(seed=0, classes=4), make_pipe(seed=1, classes=7)
    labels = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([6, 5, 4, 3, 2])
    draws = make_draws(20, 5, 20)
    expected = [
        by_hand(one, images, *draw, label=int(labels[0][draw[0]]))
        - by_hand(other, images, *draw, label=int(labels[1][draw[0]]))
        for draw in zip(*draws)
    ]
    assert np.allclose(draw_scorer([one.scorer(), other.scorer()], images, labels)(draws)[0], expected, **CLOSE)
    swapped = draw_scorer([one.scorer(), other.scorer()], images, (labels[0].flip(0), labels[1]))(draws)[0]
    assert not np.allclose(swapped, expected, atol=1e-3)
    # One with classes, one without, and not the same number of steps.
    plain = make_pipe(seed=2, steps=6)
    mixed = draw_scorer([plain.scorer(), other.scorer()], images, (None, labels[1]))
    draws = make_draws(20, 5, 26)
    expected = [
        by_hand(plain, images, i, row, key) if row < 6 else -by_hand(other, images, i, row - 6, key, label=int(labels[1][i]))
        for i, row, key in zip(*draws)
    ]
    assert np.allclose(mixed(draws)[0], expected, **CLOSE)


def refusal(images, row, value):
    """What `check_finite` says of a value, of 3 rows of one model and then 30 of another."""
    scorers = make_pipe().scorer(inference_timesteps=[17, 9, 4]), make_pipe(steps=30).scorer()
    both = draw_scorer(scorers, images)
    draws = Draws(np.array([4, 2, 3]), np.array([0, row, 7]), np.arange(3, dtype=np.uint64))
    both.check_finite(draws, torch.zeros(3))
    with pytest.raises(ValueError, match="`unet` must give finite outputs") as caught:
        both.check_finite(draws, torch.tensor([0.0, value, math.nan]))
    assert "(2 of 3 terms are not finite)" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("row", "timestep"), [(0, 4), (2, 17), (3, 0), (5, 2)])
def test_values_that_are_not_finite_are_refused_by_name(images, row, timestep):
    for value in (math.nan, math.inf, -math.inf):
        assert f"got a term of {value} bits/dim for image 2 at timestep {timestep} (" in refusal(images, row, value)


@pytest.mark.xfail(strict=True, reason="`row % len(first)` where `row - len(first)` is meant")
def test_so_are_those_of_a_second_model_with_more_than_twice_the_steps(images):
    assert "for image 2 at timestep 25 (" in refusal(images, 28, math.nan)


def test_a_network_of_nans_is_refused(pipe, images):
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(math.nan)
    with pytest.raises(
        ValueError, match=r"`unet` must give finite outputs, got a term of nan bits/dim for image \d at timestep"
    ):
        pipe.evaluate_nll(images, method="sampled", evaluations_per_image=4, generator=generator())


# The pipeline.


def test_sampled_output(pipe, images):
    pipe.unet.train()
    out = pipe.evaluate_nll(images, method="sampled", evaluations_per_image=6, generator=generator(3))
    assert pipe.unet.training
    full = pipe.evaluate_nll(images, generator=generator(3))
    assert out.transitions is None and out.timesteps.tolist() == full.timesteps.tolist()
    for name in ("bits_per_dim", "prior", "transitions_total", "decoder", "monte_carlo_error"):
        assert out[name].shape == (5,) and out[name].dtype == torch.float64 and torch.isfinite(out[name]).all()
    assert torch.equal(out.prior, full.prior)
    assert torch.allclose(out.bits_per_dim, out.prior + out.decoder + out.transitions_total, rtol=1e-12)
    assert (out.monte_carlo_error > 0).all()
    # 30, and a pilot of two at each bin.
    assert out.num_network_evaluations > 30 and out.config["seed"] == 3
    json.dumps(out.config)


def test_a_full_sweep_is_what_it_was(pipe, images):
    default, named = (pipe.evaluate_nll(images, generator=generator(), **extra) for extra in ({}, {"method": "full"}))
    assert default.monte_carlo_error is None and default.num_network_evaluations == 100
    for name in ("bits_per_dim", "prior", "transitions", "transitions_total", "decoder"):
        assert torch.equal(default[name], named[name])
    assert torch.allclose(default.transitions.sum(dim=1), default.transitions_total)


ANALYTIC_BETAS = np.linspace(0.02, 0.4, 8)


def analytic_pipe(steps=8):
    scheduler = VLBDDPMScheduler(8, trained_betas=ANALYTIC_BETAS.tolist(), clip_sample=False, num_pixel_levels=17)
    return quiet(VLBDDPMPipeline(GaussianDenoiser(np.cumprod(1 - ANALYTIC_BETAS).tolist()), scheduler))


@pytest.fixture(scope="module")
def exact():
    """Of each of 17 levels: the decoder, the sum of the KL terms and the prior, in bits."""
    parts = [gaussian_bound_and_nll(2 * k / 16 - 1, ANALYTIC_BETAS, range(8), levels=17)[:2] for k in range(17)]
    return torch.tensor([[terms[0], terms[1:].sum(), prior] for terms, prior in parts]) / math.log(2)


@pytest.mark.parametrize("evaluations", [2, 8])
def test_sampled_scores_are_unbiased_for_the_analytic_model(exact, evaluations):
    # Flat images and mixed ones, the extremes among them: the exact bound of each is the mean over its pixels.
    levels = torch.randint(17, (6, 1, 4, 4), generator=generator(0)).to(torch.uint8)
    levels[0], levels[1], levels[2] = 0, 16, 8
    decoder, transitions, prior = exact[levels.long()].flatten(1, 3).mean(dim=1).T
    pipe, repetitions = analytic_pipe(), 600
    outputs = [
        pipe.evaluate_nll(levels, 512, generator(seed), method="sampled", evaluations_per_image=evaluations)
        for seed in range(repetitions)
    ]
    got = {name: torch.stack([one[name] for one in outputs]) for name in ("decoder", "transitions_total", "bits_per_dim")}
    assert torch.allclose(outputs[0].prior, prior, rtol=1e-9)
    scores = []
    for name, truth in (
        ("decoder", decoder),
        ("transitions_total", transitions),
        ("bits_per_dim", decoder + transitions + prior),
    ):
        difference = got[name] - truth
        scores.append(difference.mean(dim=0) / (difference.std(dim=0) / repetitions**0.5))
    # The squared error against the squared difference to the truth.
    surplus = torch.stack([one.monte_carlo_error for one in outputs]).square() - difference.square()
    scores.append(surplus.mean(dim=0) / (surplus.std(dim=0) / repetitions**0.5))
    # 24 normal deviates: beyond 4.5 once in 6,000 times.
    assert torch.cat(scores).abs().max() < 4.5


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_the_seed_gives_the_numbers_whatever_the_batches(images, batch_size):
    levels = torch.randint(17, (3, 1, 4, 4), generator=generator(0)).to(torch.uint8)
    arguments = {"method": "sampled", "evaluations_per_image": 4}
    pipe = analytic_pipe()
    expected = pipe.evaluate_nll(levels, 32, generator(7), **arguments)
    got = pipe.evaluate_nll(levels, batch_size, generator(7), **arguments)
    # A float64 network.
    assert torch.allclose(got.bits_per_dim, expected.bits_per_dim, rtol=1e-10)
    assert torch.allclose(got.monte_carlo_error, expected.monte_carlo_error, rtol=1e-8)
    other = pipe.evaluate_nll(levels, batch_size, generator(8), **arguments)
    assert (other.bits_per_dim != got.bits_per_dim).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_few_steps_and_a_single_image(pipe, images, steps):
    out = pipe.evaluate_nll(
        images[:1], generator=generator(), num_inference_steps=steps, method="sampled", evaluations_per_image=400
    )
    assert out.timesteps.shape == (steps - 1,)
    if steps == 1:
        assert abs(out.transitions_total.item()) < 1e-9
    # A full sweep has an error too; 200 of them tell the truth to a fraction of the sampled one's.
    many = pipe.evaluate_nll(images[:1].expand(200, 1, 8, 8), 200, generator(1), num_inference_steps=steps)
    error = math.hypot(out.monte_carlo_error.item(), many.bits_per_dim.std().item() / 200**0.5)
    assert abs(out.bits_per_dim.item() - many.bits_per_dim.mean().item()) < 4 * error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "some"}, "`method` must be 'full' or 'sampled', got 'some'"),
        ({"method": None}, "`method` must be 'full' or 'sampled', got None"),
        ({"evaluations_per_image": 4}, "`evaluations_per_image` must be left out with method='full', got 4"),
        ({"method": "sampled", "evaluations_per_image": 5}, "`evaluations_per_image` must be an even number from 2 on, got 5"),
        ({"method": "sampled", "evaluations_per_image": 0}, "`evaluations_per_image` must be an even number from 2 on, got 0"),
        (
            {"method": "sampled", "generator": [generator()] * 5},
            "`generator` must be a single one with method='sampled', got 5",
        ),
        ({"method": "sampled", "generator": 3}, "`generator` must be a torch.Generator"),
        ({"method": "sampled", "batch_size": 0}, "`batch_size` must be a positive integer, got 0"),
        ({"method": "sampled", "num_inference_steps": 21}, r"`num_inference_steps` must lie in \[1, 20\], got 21"),
    ],
)
def test_bad_arguments(pipe, images, arguments, message):
    pipe.unet.forward = None  # would fail if it were called
    with pytest.raises(ValueError, match=message):
        pipe.evaluate_nll(images, **arguments)
