import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import GaussianDenoiser, gaussian_bound_and_nll
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.bound import prior_kl, vlb_terms
from ddpm_vlb.error_model import ErrorModel
from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.likelihoods.full_sweep import sweep
from ddpm_vlb.noise import keyed_normal, mix_array
from ddpm_vlb.noise_schedules import make_betas
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.sampled_bound.control_variates import ControlVariates, image_features
from ddpm_vlb.sampled_bound.draw_scorer import DrawScorer, known_parts, match_rows
from ddpm_vlb.sampled_bound.draws import Draws
from ddpm_vlb.sampled_bound.estimate import estimate_bound

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
    prior, features = known_parts([scorer], images)
    assert torch.allclose(prior, prior_kl(scorer.reverse.forward, samples) / BITS, rtol=1e-14)
    assert torch.equal(features, image_features(samples))


# Draws.


@pytest.mark.parametrize("grid", [None, [17, 9, 4, 0]])
def test_draws_are_scored_one_by_one(pipe, images, grid):
    scorer = pipe.scorer(inference_timesteps=grid)
    own = draw_scorer([scorer], images)
    assert own.num_steps == len(grid or range(20))
    draws = make_draws(40, 5, own.num_steps)
    assert own.cost(draws) == 40
    values, features = own(draws)
    expected = [by_hand(pipe, images, *draw, grid=grid) for draw in zip(*draws)]
    assert np.allclose(values, expected, **CLOSE)
    samples = levels_to_samples(images, 17)[torch.as_tensor(draws.images)]
    noise = keyed_normal(draws.keys.tolist(), (1, 8, 8))
    controls = ControlVariates(scorer.reverse.forward.alphas_cumprod, levels_to_samples(images, 17))
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


# Two models: their difference, cell by cell.


def angles(forward):
    return np.arccos(np.sqrt(forward.alphas_cumprod.numpy().astype(np.longdouble))).astype(float)


def cells_by_hand(first, second):
    """Of every cell a row and a factor for each: the decoders, then the pieces between all noise levels from below."""
    levels = [angles(forward) for forward in (first, second)]
    edges = sorted({round(x, 9) for level in levels for x in level})
    cells = [((0, 1.0), (0, 1.0))]
    for low, high in zip(edges, edges[1:]):
        cell = []
        for level in levels:
            rows = [k for k in range(1, len(level)) if level[k - 1] - 1e-8 < low and high < level[k] + 1e-8]
            cell.append((rows[0], (high - low) / (level[rows[0]] - level[rows[0] - 1])) if rows else (-1, 0.0))
        if any(row >= 0 for row, _ in cell):
            cells.append(tuple(cell))
    return cells


# Subsets of one grid, other ends, no level in common, nothing in common but noise, and a single step.
GRIDS = [
    (None, None),
    (None, [17, 9, 4, 0]),
    ([19, 10, 3], [17, 9, 4, 2]),
    ([4, 2, 0], [19, 15, 11]),
    ([7], [19, 7, 3, 0]),
    ([3], [12]),
]


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("steps", [20, 33])
def test_cells_cut_both_grids(grids, steps):
    schedulers = (VLBDDPMScheduler(20), VLBDDPMScheduler(steps, beta_schedule="linear" if steps == 20 else "squaredcos_cap_v2"))
    forwards = [scheduler.reverse_process(grid).forward for scheduler, grid in zip(schedulers, grids)]
    got, expected = match_rows(*forwards), cells_by_hand(*forwards)
    assert got.rows.T.tolist() == [[row for row, _ in cell] for cell in expected]
    assert np.allclose(got.factors.T, [[factor for _, factor in cell] for cell in expected], rtol=0, atol=1e-6)
    for rows, factors, forward in zip(got.rows, got.factors, forwards):
        # Every term is counted once in all.
        totals = torch.zeros(len(forward), dtype=torch.float64).index_add_(0, rows[rows >= 0], factors[rows >= 0])
        assert torch.allclose(totals, torch.ones_like(totals), rtol=1e-12) and (factors[rows < 0] == 0).all()


def test_cells_of_equal_grids_are_their_rows():
    for betas in (
        make_betas("linear", 1000),
        make_betas("linear", 1000, rescale_betas_zero_snr=True),
        make_betas("squaredcos_cap_v2", 4000),
    ):
        forward = ForwardProcess.from_betas(betas)
        cells = match_rows(forward, forward)
        assert torch.equal(cells.rows, torch.arange(len(forward)).expand(2, -1))
        assert torch.allclose(cells.factors, torch.ones_like(cells.factors))
    # A sub-sequence of a grid, of its own cumulative sums: no cells but the grid's rows.
    part = ForwardProcess.from_betas(betas, range(3999, -1, -7))
    cells = match_rows(forward, part)
    assert torch.equal(cells.rows[0], torch.arange(4000)) and cells.rows[1].max() == len(part) - 1


def pair_by_hand(pipes, images, grids, draws, labels=((None,) * 5,) * 2):
    cells = cells_by_hand(*(pipe.scheduler.reverse_process(grid).forward for pipe, grid in zip(pipes, grids)))
    values = []
    for image, cell, key in zip(*draws):
        terms = [
            factor * by_hand(pipe, images, image, row, key, grid, label[image]) if row >= 0 else 0.0
            for pipe, grid, label, (row, factor) in zip(pipes, grids, labels, cells[cell])
        ]
        values.append(terms[0] - terms[1])
    return cells, values


@pytest.mark.parametrize("grids", GRIDS[:5])
def test_pairs_are_differences_under_one_noise(images, grids):
    pipes = make_pipe(seed=0), make_pipe(seed=1)
    scorers = [pipe.scorer(inference_timesteps=grid) for pipe, grid in zip(pipes, grids)]
    pair = draw_scorer(scorers, images)
    draws = make_draws(40, 5, pair.num_steps)
    cells, expected = pair_by_hand(pipes, images, grids, draws)
    assert pair.num_steps == len(cells)
    assert pair.cost(draws) == sum(row >= 0 for cell in draws.rows for row, _ in cells[cell])
    values, features = pair(draws)
    assert values.dtype == torch.float64 and np.allclose(values, expected, **CLOSE)
    # The features are those of the noise level, of the mean of both signal levels where there are two.
    forwards = [scorer.reverse.forward for scorer in scorers]
    samples = scorers[0].samples(images)
    for image, cell, key, feature in zip(*draws, features):
        signal = [forward.alphas_cumprod[row] for forward, (row, _) in zip(forwards, cells[cell]) if row >= 0]
        controls = ControlVariates(torch.stack(signal).mean()[None], samples)
        noise = keyed_normal([int(key)], images.shape[1:])
        alone = controls.noise_features(samples[image : image + 1], noise, torch.zeros(1, dtype=torch.int64))
        assert torch.allclose(feature, alone[0], rtol=1e-9, atol=1e-12)
    if grids[0] == grids[1]:
        assert (draw_scorer([scorers[0], scorers[0]], images)(draws)[0] == 0).all()


def test_batches_with_rows_of_one_model_alone(images):
    pipes, grids = (make_pipe(seed=0), make_pipe(seed=1)), GRIDS[3]
    pair = draw_scorer([pipe.scorer(inference_timesteps=grid) for pipe, grid in zip(pipes, grids)], images)
    draws = make_draws(30, 5, pair.num_steps)
    cells, expected = pair_by_hand(pipes, images, grids, draws)
    for chosen, sign in ((lambda cell: cell[1][0] < 0, 1), (lambda cell: cell[0][0] < 0, -1)):
        mine = np.array([chosen(cells[row]) for row in draws.rows])
        values, _ = pair(Draws(*(x[mine] for x in draws)))
        assert len(values) > 1 and (values.sign() == sign).all()
        assert np.allclose(values, np.array(expected)[mine], **CLOSE)


def test_labels_reach_their_network(images):
    pipes = make_pipe(seed=0, classes=4), make_pipe(seed=1, classes=7)
    labels = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([6, 5, 4, 3, 2])
    draws = make_draws(20, 5, 20)
    scorers = [pipe.scorer() for pipe in pipes]
    _, expected = pair_by_hand(pipes, images, (None, None), draws, [x.tolist() for x in labels])
    assert np.allclose(draw_scorer(scorers, images, labels)(draws)[0], expected, **CLOSE)
    swapped = draw_scorer(scorers, images, (labels[0].flip(0), labels[1]))(draws)[0]
    assert not np.allclose(swapped, expected, atol=1e-3)
    # One without classes and one with, of other steps, so that rows of the second are evaluated by themselves.
    pipes, grids = (make_pipe(seed=2), pipes[1]), ([4, 2, 0], [19, 15, 11])
    mixed = draw_scorer([p.scorer(inference_timesteps=g) for p, g in zip(pipes, grids)], images, (None, labels[1]))
    draws = make_draws(20, 5, mixed.num_steps)
    _, expected = pair_by_hand(pipes, images, grids, draws, [[None] * 5, labels[1].tolist()])
    assert np.allclose(mixed(draws)[0], expected, **CLOSE)


@pytest.mark.parametrize(("cell", "timestep"), [(0, 0), (1, 2), (2, 4), (3, 15), (4, 19)])
def test_values_that_are_not_finite_are_refused_by_name(images, cell, timestep):
    pipe = make_pipe()
    pair = draw_scorer([pipe.scorer(inference_timesteps=grid) for grid in ([4, 2, 0], [19, 15, 11])], images)
    draws = Draws(np.array([4, 2, 3]), np.array([0, cell, 1]), np.arange(3, dtype=np.uint64))
    pair.check_finite(draws, torch.zeros(3))
    for value in (math.nan, math.inf, -math.inf):
        message = f"`unet` must give finite outputs, got a term of {value} bits/dim for image 2 at timestep {timestep} (2 of 3"
        with pytest.raises(ValueError, match=re.escape(message)):
            pair.check_finite(draws, torch.tensor([0.0, value, math.nan]))


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
    for name in ("bits_per_dim", "prior", "transitions_total", "decoder", "monte_carlo_error", "degrees_of_freedom"):
        assert out[name].shape == (5,) and out[name].dtype == torch.float64 and torch.isfinite(out[name]).all()
    assert torch.equal(out.prior, full.prior)
    assert torch.allclose(out.bits_per_dim, out.prior + out.decoder + out.transitions_total, rtol=1e-12)
    assert (out.monte_carlo_error > 0).all()
    # 30, and a pilot of two at each bin.
    assert out.num_network_evaluations > 30 and out.config["seed"] == 3
    json.dumps(out.config)


def test_a_full_sweep_is_what_it_was(pipe, images):
    default, named = (pipe.evaluate_nll(images, generator=generator(), **extra) for extra in ({}, {"method": "full"}))
    assert default.monte_carlo_error is default.degrees_of_freedom is None and default.num_network_evaluations == 100
    for name in ("bits_per_dim", "prior", "transitions", "transitions_total", "decoder"):
        assert torch.equal(default[name], named[name])
    assert torch.allclose(default.transitions.sum(dim=1), default.transitions_total)


ANALYTIC_BETAS = np.linspace(0.02, 0.4, 8)


def analytic_pipe():
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
    pipe, repetitions = analytic_pipe(), 400
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


def test_differences_of_grids_are_unbiased_for_the_analytic_model(exact):
    # One network as a model of 8 steps and as one of 3 of them, which ends earlier: pieces of steps, and steps of one alone.
    grid = [6, 3, 1]
    levels = torch.randint(17, (4, 1, 4, 4), generator=generator(0)).to(torch.uint8)
    coarse = [gaussian_bound_and_nll(2 * k / 16 - 1, ANALYTIC_BETAS, grid[::-1], levels=17)[:2] for k in range(17)]
    coarse = torch.tensor([terms.sum() + prior for terms, prior in coarse]) / math.log(2)
    truth = (exact.sum(dim=1) - coarse)[levels.long()].mean().item()
    pipe = analytic_pipe()
    scorers = pipe.scorer(), pipe.scorer(inference_timesteps=grid)
    (prior, features), (other, _) = (known_parts([scorer], levels) for scorer in scorers)
    estimates = []
    for seed in range(300):
        ids = np.arange(4)
        pair = DrawScorer(scorers, levels, ids, ids, seed)
        estimates.append(
            estimate_bound(
                lambda draws, preview, pair=pair: pair(draws),
                pair.num_steps,
                prior - other,
                features,
                seed=seed,
                max_evaluations=200,
            )
        )
    difference = np.array([one.bits_per_dim for one in estimates]) - truth
    surplus = np.array([one.monte_carlo_error for one in estimates]) ** 2 - difference**2
    for x in (difference, surplus):
        assert abs(x.mean()) < 4 * x.std() / len(x) ** 0.5


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


# Nothing waits for the device: torch's meta device has no values, and every attempt to read some back raises.


@pytest.mark.parametrize("variance_type, calibrated", [("fixed_small", False), ("learned_range", False), ("learned", True)])
def test_scoring_never_waits_for_the_device(images, variance_type, calibrated):
    unet = tiny_unet(out_channels=2 if variance_type.startswith("learned") else 1, num_class_embeds=3).to("meta")
    scheduler = VLBDDPMScheduler(num_train_timesteps=20, num_pixel_levels=17, variance_type=variance_type)
    pipe = quiet(VLBDDPMPipeline(unet, scheduler))
    scorer, labels = pipe.scorer(), torch.tensor([0, 1, 2, 0, 1])
    assert scorer.device.type == "meta"
    if calibrated:
        model = ErrorModel(*torch.full((6, 20), 0.01, dtype=torch.float64))
        reverse = replace(scorer.reverse, error_model=model, trained=scorer.reverse.forward)
        scorer = replace(scorer, reverse=reverse)
    timesteps = torch.tensor([0, 19, 7, 0, 3])
    with torch.no_grad():
        noise = keyed_normal(range(5), (1, 8, 8), "meta")
        for at in (timesteps, 0, 7):
            assert scorer.terms(scorer.samples(images), noise, at, labels).is_meta
            assert scorer.squared_errors(scorer.samples(images), noise, at, labels).is_meta
        other = pipe.scorer(inference_timesteps=[19, 7, 3, 0])
        for scorers in ([scorer], [scorer, other]):
            own = draw_scorer(scorers, images, [labels] * len(scorers))
            assert all(values.is_meta for values in own(make_draws(40, 5, own.num_steps)))
        prior, terms = sweep(scorer, images, [1, 2, 3, 4, 5], labels)
        assert prior.is_meta and terms.shape == (5, 20)
        scheduler.set_timesteps(4)
        latents = torch.empty(5, 1, 8, 8, device="meta")
        for timestep in scheduler.timesteps:
            latents = scheduler.step(unet(latents, timestep, labels.to("meta")).sample, timestep, latents).prev_sample
    assert latents.is_meta
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        latents.sum().item()
