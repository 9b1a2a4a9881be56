import math

import numpy as np
import pytest
import torch
from analytic import GaussianDenoiser, gaussian_bound_and_nll
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny import generator

from ddpm_vlb import VLBDDPMScheduler
from ddpm_vlb.bound import decoder_nll, prior_kl, sampled_transition, step_log_prob, trajectory_bound, transition_kl, vlb_terms
from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.noise_schedules import make_betas
from ddpm_vlb.parametrizations import PREDICTION_TYPES, VARIANCE_TYPES
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.reverse_process import ReverseProcess

BETAS = make_betas("linear", 1000)
FULL = ForwardProcess.from_betas(BETAS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("grid", [None, [900, 333, 4, 1]])
def test_transition_kl_equals_torch_distributions(prediction_type, variance_type, grid):
    forward = ForwardProcess.from_betas(BETAS, grid)
    reverse = ReverseProcess(forward, prediction_type=prediction_type, variance_type=variance_type)
    x, x_t = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    output = draw(3, 2 if reverse.learns_variance else 1, 2, 2, seed=2)
    for t in (4, 333, 900):
        q, p = forward.q_posterior_mean_variance(x, x_t, t), reverse.p_mean_variance(output, x_t, t)
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(q.mean, q.variance.sqrt()), torch.distributions.Normal(p.mean, p.variance.sqrt())
        )
        got = transition_kl(reverse, output, x, x_t, t)
        # The reference subtracts the means: their rounding of 1e-16 stands against a standard deviation of 0.01 and more.
        assert torch.allclose(got, expected.flatten(1).sum(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("grid", [None, [900, 333, 4, 1]])
def test_sampled_transition_is_the_difference_of_the_log_densities(prediction_type, variance_type, grid):
    forward = ForwardProcess.from_betas(BETAS, grid)
    reverse = ReverseProcess(forward, prediction_type=prediction_type, variance_type=variance_type)
    x, x_t, noise = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1), draw(3, 1, 2, 2, seed=3)
    output = draw(3, 2 if reverse.learns_variance else 1, 2, 2, seed=2)
    for t in (4, 333, 900):
        moments = forward.q_posterior_mean_variance(x, x_t, t), reverse.p_mean_variance(output, x_t, t)
        q, p = (torch.distributions.Normal(m.mean, m.variance.sqrt()) for m in moments)
        x_s = q.mean + q.stddev * noise
        got = sampled_transition(reverse, output, x, x_t, t, noise)
        # The reference is a difference of two densities at an x_s that is rounded: of each, z standard deviations off, the
        # rounding of x_s and of the mean moves the logarithm by z times 2 eps (|x_s| + |mean|) / sigma.
        rounding = sum(
            (1 + n.log_prob(x_s).abs()) + ((x_s - n.mean) / n.stddev).abs() * (x_s.abs() + n.mean.abs()) / n.stddev
            for n in (q, p)
        )
        bound = 4 * torch.finfo(torch.float64).eps * rounding.flatten(1).sum(1)
        assert ((got - (q.log_prob(x_s) - p.log_prob(x_s)).flatten(1).sum(1)).abs() <= bound).all()
    mixed = sampled_transition(reverse, output, x, x_t, torch.tensor([4, 333, 900]), noise)
    assert mixed[2] == got[2]


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_the_mean_of_sampled_transition_is_the_kl(variance_type):
    # In each dimension the log-ratio is a polynomial of degree 2 in epsilon, whose mean two nodes of Gauss-Hermite quadrature
    # give exactly: it is the KL but for rounding.
    reverse = ReverseProcess(FULL, variance_type=variance_type)
    x, x_t = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    output = draw(3, 2 if reverse.learns_variance else 1, 2, 2, seed=2)
    for t in (1, 40, 999):
        closed = transition_kl(reverse, output, x, x_t, t)
        nodes = [sampled_transition(reverse, output, x, x_t, t, torch.full_like(x, node)) for node in (-1.0, 1.0)]
        rounding = 8 * torch.finfo(torch.float64).eps * (nodes[0].abs() + nodes[1].abs() + closed)
        assert ((sum(nodes) / 2 - closed).abs() <= rounding).all()
        # And over draws: five standard errors, one in two million is farther off. By the formula at the head of the module the
        # variance of a draw is the sum over dimensions of (e^d - 1)^2 / 2 + delta^2 e^d.
        repeated = [tensor.repeat(2000, 1, 1, 1) for tensor in (output, x, x_t)]
        many = sampled_transition(reverse, *repeated, t, draw(6000, 1, 2, 2, seed=3)).reshape(2000, 3)
        q, p = FULL.q_posterior_mean_variance(x, x_t, t), reverse.p_mean_variance(output, x_t, t)
        ratio = q.variance / p.variance
        variance = ((ratio - 1) ** 2 / 2 + (q.mean - p.mean) ** 2 / p.variance * ratio).flatten(1).sum(1)
        assert ((many.mean(0) - closed).abs() <= 5 * (variance / len(many)).sqrt() + rounding).all()


def test_noise_of_another_shape_is_refused():
    x = draw(2, 1, 2, 2)
    with pytest.raises(ValueError, match="`noise` must have the shape .* of `original_samples`, got \\(1, 1, 2, 2\\)"):
        sampled_transition(ReverseProcess(FULL), x, x, x, 5, x[:1])


def test_prior_kl_equals_torch_distributions():
    x = draw(4, 1, 3, 3)
    for grid in (None, [500, 2], [3]):
        forward = ForwardProcess.from_betas(BETAS, grid)
        q = forward.q_mean_variance(x, int(forward.timesteps[-1]))
        expected = torch.distributions.kl_divergence(
            torch.distributions.Normal(q.mean, q.variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
        )
        assert torch.allclose(prior_kl(forward, x), expected.flatten(1).sum(1), rtol=1e-9)


def test_prior_kl_vanishes_at_zero_terminal_snr():
    forward = ForwardProcess.from_betas(make_betas("linear", 1000, rescale_betas_zero_snr=True))
    assert (prior_kl(forward, draw(2, 1, 3, 3)) == 0).all()


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_the_oracle_networks_floor(schedule):
    # A network that knows the image, in float32: what is left of the KL terms is rounding, below 1e-9 bits/dim over all steps.
    forward = ForwardProcess.from_betas(make_betas(schedule, 4000))
    reverse = ReverseProcess(forward)
    x = levels_to_samples(torch.randint(256, (1, 3, 8, 8), generator=generator()), 256)
    total = torch.zeros(1, dtype=torch.float64)
    for t in range(1, 4000):
        x_t = forward.q_sample(x, draw(1, 3, 8, 8, seed=t), t)
        epsilon = forward.predict_epsilon_from_original(x_t.float().double(), x, t).float()
        kl = transition_kl(reverse, epsilon, x, x_t, t)
        assert (kl >= 0).all()
        total += kl
    assert total.item() / (192 * math.log(2)) < 1e-9


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 999), st.sampled_from(VARIANCE_TYPES))
def test_kl_terms_are_never_negative(seed, t, variance_type):
    reverse = ReverseProcess(FULL, prediction_type="sample", variance_type=variance_type, clip_sample=False)
    x = draw(1, 1, 2, 2, seed=seed)
    for error in (0.0, 1e-12, 1e-6, 1.0):
        output = x + error
        if reverse.learns_variance:
            output = torch.cat([output, draw(1, 1, 2, 2, seed=seed + 1)], dim=1)
        assert (transition_kl(reverse, output, x, draw(1, 1, 2, 2, seed=seed + 2), t) >= 0).all()


def test_mixed_timesteps_agree_with_single_ones_and_carry_gradients():
    for variance_type in VARIANCE_TYPES:
        reverse = ReverseProcess(FULL, variance_type=variance_type, clip_sample=False)
        x = levels_to_samples(torch.randint(256, (4, 1, 2, 2), generator=generator()), 256)
        x_t, steps = draw(4, 1, 2, 2, seed=1), torch.tensor([0, 500, 0, 1])
        output = draw(4, 2 if reverse.learns_variance else 1, 2, 2, seed=2).requires_grad_()
        terms = vlb_terms(reverse, output, x, x_t, steps)
        for i, t in enumerate(steps.tolist()):
            one = vlb_terms(reverse, output[i : i + 1], x[i : i + 1], x_t[i : i + 1], t)
            assert torch.equal(terms[i : i + 1], one)
        terms.sum().backward()
        assert torch.isfinite(output.grad).all() and (output.grad[:, 0] != 0).all()


def test_float_images_off_the_grid_are_refused_by_the_decoder():
    with pytest.raises(ValueError, match="grid"):
        decoder_nll(ReverseProcess(FULL), draw(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.3), draw(1, 1, 2, 2), 0)


# The analytic model: exact terms, exact likelihood.


def analytic_model(betas, grid, **settings):
    forward = ForwardProcess.from_betas(torch.as_tensor(betas), sorted(grid, reverse=True))
    network = GaussianDenoiser(np.cumprod(1 - np.asarray(betas)).tolist(), **settings)
    return ReverseProcess(forward, clip_sample=False), lambda x_t, t: network(x_t, torch.tensor([t])).sample


@pytest.mark.parametrize("level", [0, 100, 255])
def test_terms_are_unbiased_for_the_analytic_model(level):
    betas, grid = BETAS.numpy(), [0, 3, 40, 200, 600, 999]
    reverse, predict = analytic_model(betas, grid)
    x = levels_to_samples(torch.full((20000, 1, 1, 1), level), 256)
    exact, prior, _ = gaussian_bound_and_nll(x[0].item(), betas, grid)
    assert prior_kl(reverse.forward, x[:1]).item() == pytest.approx(prior, rel=1e-9)
    for t, expected in zip(grid, exact):
        x_t = reverse.forward.q_sample(x, draw(*x.shape, seed=t), t)
        terms = vlb_terms(reverse, predict(x_t, t), x, x_t, t)
        # Five standard errors: one in two million draws is farther off.
        assert abs(terms.mean() - expected) <= 5 * terms.std() / math.sqrt(len(terms)), t


@pytest.mark.parametrize("t", [1, 3, 11])
def test_rao_blackwell_per_term(t):
    # log q(x_s | x_t, x) - log p(x_s | x_t) with x_s drawn, against its conditional expectation, the KL.
    reverse, predict = analytic_model(np.linspace(0.02, 0.4, 12), range(12))
    forward = reverse.forward
    x = levels_to_samples(torch.full((50000, 1, 1, 1), 100), 256)
    x_t = forward.q_sample(x, draw(*x.shape), t)
    sampled = sampled_transition(reverse, predict(x_t, t), x, x_t, t, draw(*x.shape, seed=1))
    closed = transition_kl(reverse, predict(x_t, t), x, x_t, t)
    difference = sampled - closed
    assert abs(difference.mean()) <= 5 * difference.std() / math.sqrt(len(x))
    assert closed.var() < sampled.var()


@pytest.mark.parametrize("s", [1.5, 1e-9])
def test_the_two_forms_of_the_bound_have_one_expectation(s):
    betas, grid = np.linspace(0.02, 0.4, 12), list(range(12))
    reverse, predict = analytic_model(betas, grid, s=s)
    x = levels_to_samples(torch.full((20000, 1, 1, 1), 120), 256)
    terms, prior, _ = gaussian_bound_and_nll(x[0].item(), betas, grid, s=s)
    first = trajectory_bound(reverse, predict, x, generator=generator(1))
    closed = prior_kl(reverse.forward, x)
    for t in grid:
        x_t = reverse.forward.q_sample(x, draw(*x.shape, seed=t), t)
        closed = closed + vlb_terms(reverse, predict(x_t, t), x, x_t, t)
    for samples in (first, closed):
        assert abs(samples.mean() - (prior + terms.sum())) <= 5 * samples.std() / math.sqrt(len(samples)) + 1e-9
    if s < 1e-6:  # a denoiser that looks at nothing: the closed forms are constants, the log-ratios are not
        assert closed.std() < 1e-6 < first.std()


def expected_bound(betas, grid, x, num_pixel_levels=256, nodes=100, **model):
    """The package's bound for one pixel, its expectation over the noise by quadrature instead of draws."""
    reverse, predict = analytic_model(betas, grid, **model)
    noise, weight = np.polynomial.hermite_e.hermegauss(nodes)
    noise, weight = torch.tensor(noise).reshape(-1, 1, 1, 1), torch.tensor(weight / weight.sum())
    samples = torch.full_like(noise, x)
    total = prior_kl(reverse.forward, samples)[0]
    for t in reverse.forward.timesteps.tolist():
        x_t = reverse.forward.q_sample(samples, noise, t)
        total = total + (weight * vlb_terms(reverse, predict(x_t, t), samples, x_t, t, num_pixel_levels)).sum()
    return total.item()


def test_the_bound_is_above_the_likelihood_and_tightens_with_steps():
    betas = BETAS.numpy()
    mean_gaps = []
    for stride in (333, 111, 37, 9):
        gaps = []
        for quantile in np.linspace(0.05, 0.95, 10):
            level = int(np.clip(round((stats.norm.ppf(quantile, 0.2, 0.5) + 1) * 127.5), 0, 255))
            x = levels_to_samples(torch.tensor(level), 256).item()
            # Grids with the same ends: 0 and 999. Those of 333, 111 and 37 are nested.
            terms, prior, nll = gaussian_bound_and_nll(x, betas, list(range(0, 1000, stride)))
            bound = expected_bound(betas, list(range(0, 1000, stride)), x)
            assert bound == pytest.approx(prior + terms.sum(), rel=1e-6)
            gaps.append(bound - nll)
        assert min(gaps) >= 0
        mean_gaps.append(np.mean(gaps))
    assert all(coarse > fine for coarse, fine in zip(mean_gaps, mean_gaps[1:]))


def of_a_trajectory(variance_type, grid=(900, 500, 20, 3), num_pixel_levels=17):
    r"""A scheduler on a grid, a trajectory x_-1 (the image), x_0, ... drawn from q, and the network's outputs, ascending."""
    scheduler = VLBDDPMScheduler(variance_type=variance_type, num_pixel_levels=num_pixel_levels)
    scheduler.set_timesteps(timesteps=list(grid))
    forward = scheduler.forward_process(list(grid))
    chain = [levels_to_samples(torch.randint(num_pixel_levels, (3, 1, 4, 4), generator=generator()), num_pixel_levels)]
    noises = [draw(3, 1, 4, 4, seed=seed) for seed in range(len(grid))]
    for t, noise in zip(forward.timesteps.tolist(), noises):
        q = forward.q_step_mean_variance(chain[-1], t)
        chain.append(q.mean + q.variance.sqrt() * noise)

    def predict(x_t, t):
        output = torch.tanh(1.3 * x_t + 0.1 * t / 1000)
        return torch.cat([output, output.sin()], dim=1) if variance_type.startswith("learned") else output

    return scheduler, forward, chain, noises, predict


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_log_probs_of_steps_sum_to_the_first_form_of_the_bound(variance_type):
    scheduler, forward, chain, noises, predict = of_a_trajectory(variance_type)
    total = -torch.distributions.Normal(0.0, 1.0).log_prob(chain[-1]).flatten(1).sum(1)
    for row, t in enumerate(forward.timesteps.tolist()):
        x_s, x_t = chain[row], chain[row + 1]
        q = forward.q_step_mean_variance(x_s, t)
        total += torch.distributions.Normal(q.mean, q.variance.sqrt()).log_prob(x_t).flatten(1).sum(1)
        total -= scheduler.log_prob(x_s, predict(x_t, t), x_t, t, decoder="discretized")
    reverse = scheduler.reverse_process(scheduler.timesteps.tolist())
    expected = trajectory_bound(reverse, predict, chain[0], 17, noises=noises)
    assert (total - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("decoder", ["density", "discretized"])
@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_log_prob_of_a_batch_of_timesteps_is_that_of_each(variance_type, decoder):
    scheduler, forward, chain, _, predict = of_a_trajectory(variance_type)
    steps = forward.timesteps[[0, 2, 0]]  # the decoder's among them
    x_s = torch.stack([chain[row][i] for i, row in enumerate((0, 2, 0))])
    x_t = torch.stack([chain[row + 1][i] for i, row in enumerate((0, 2, 0))])
    output = torch.cat([predict(x_t[i : i + 1], t) for i, t in enumerate(steps.tolist())])
    together = scheduler.log_prob(x_s, output, x_t, steps, decoder=decoder)
    for i, t in enumerate(steps.tolist()):
        one = slice(i, i + 1)
        alone = scheduler.log_prob(x_s[one], output[one], x_t[one], t, decoder=decoder)
        if decoder == "discretized" and t == 3:
            reverse = scheduler.reverse_process(scheduler.timesteps.tolist())
            assert torch.equal(alone, -decoder_nll(reverse, output[one], x_s[one], x_t[one], t, 17))
        else:
            p = scheduler.p_mean_variance(output[one], x_t[one], t, inference_timesteps=scheduler.timesteps.tolist())
            normal = torch.distributions.Normal(p.mean, p.variance.sqrt())
            assert torch.allclose(alone, normal.log_prob(x_s[one]).flatten(1).sum(1), rtol=1e-9)
        assert torch.allclose(together[one], alone, rtol=1e-12) and alone.isfinite().all()
    mean = scheduler.log_prob(x_s, output, x_t, steps, decoder=decoder, reduction="mean")
    assert torch.allclose(mean * 16, together)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_log_prob_of_one_timestep_is_that_of_the_tables(variance_type):
    # With as few operations as it has, of whatever the configuration says by now: of timesteps set anew, too.
    scheduler, _, chain, _, predict = of_a_trajectory(variance_type)
    x_s, x_t = chain[0], chain[-1]
    output = 3 * predict(x_t, 500)
    for changed in (
        {"prediction_type": "epsilon"},
        {"prediction_type": "sample"},
        {"prediction_type": "v_prediction", "clip_sample_range": 0.5},
        {"clip_sample": False},
        {"thresholding": True, "sample_max_value": 2.0},
    ):
        scheduler.register_to_config(**changed)
        for grid in ([999, 500, 0], [500, 7], [500]):
            scheduler.set_timesteps(timesteps=grid)
            for t in grid:
                expected = step_log_prob(scheduler.reverse_process(grid), x_s, output, x_t, t)
                log_prob = scheduler.log_prob(x_s, output, x_t, t)
                assert torch.allclose(log_prob, expected, rtol=1e-12)
                assert torch.equal(scheduler.log_prob(x_s, output, x_t, torch.tensor(t)), log_prob)
    # An overflow that clipping would hide: no number, and no gradient that looks like one.
    output[1, 0, 0, 0] = torch.inf
    log_prob = scheduler.log_prob(x_s, output.requires_grad_(), x_t, 500)
    assert log_prob.isfinite().tolist() == [True, False, True] and log_prob[1].isnan()
    (gradient,) = torch.autograd.grad(log_prob.sum(), output)
    assert gradient[1].isnan().all() and gradient[[0, 2]].isfinite().all()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod + 1e-3
    with pytest.raises(ValueError, match="`alphas_cumprod` must be the scheduler's own"):
        scheduler.log_prob(x_s, output, x_t, 500)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_log_prob_of_what_step_drew(variance_type):
    scheduler, forward, chain, _, predict = of_a_trajectory(variance_type)
    for row, t in enumerate(forward.timesteps.tolist()):
        for dtype in (torch.float64, torch.float32, torch.float16):
            x_t = chain[row + 1].to(dtype)
            output = predict(x_t, t)
            plain = scheduler.step(output, t, x_t, generator=generator(5))
            step = scheduler.step(output, t, x_t, generator=generator(5), return_log_prob=True)
            assert torch.equal(step.prev_sample, plain.prev_sample) and step.prev_sample.dtype == dtype
            assert torch.equal(step.log_prob, scheduler.log_prob(step.prev_sample, output, x_t, t))
            assert step.log_prob.shape == (3,) and step.log_prob.isfinite().all()  # at the last step, too
            as_tuple = scheduler.step(output, t, x_t, generator=generator(5), return_dict=False, return_log_prob=True)
            assert len(as_tuple) == 3 and torch.equal(as_tuple[2], step.log_prob)


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
def test_gradients_of_log_prob_are_those_of_differences(variance_type):
    scheduler, forward, chain, _, predict = of_a_trajectory(variance_type)
    scheduler.register_to_config(clip_sample=False)
    for row, t in enumerate(forward.timesteps.tolist()):
        x_s, x_t = chain[row], chain[row + 1]
        output = predict(x_t, t).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda output, x_t, x_s=x_s, t=t: scheduler.log_prob(x_s, output, x_t, t, decoder="discretized"),
            (output, x_t.clone().requires_grad_()),
            eps=1e-6,
            rtol=1e-4,
        )
        # Of a step with the sample held fixed: not zero, as that of a draw m + sigma epsilon would be in the mean.
        step = scheduler.step(output, t, x_t, generator=generator(5), return_log_prob=True)
        (through_step,) = torch.autograd.grad(step.log_prob.sum(), output)
        again = scheduler.log_prob(step.prev_sample.detach(), output, x_t, t)
        (expected,) = torch.autograd.grad(again.sum(), output)
        assert torch.equal(through_step, expected) and (row == 0 or through_step.abs().max() > 0)


def test_the_mean_of_the_score_of_drawn_steps_is_zero():
    # What makes a policy gradient unbiased, E[d log p / d theta] = 0: draws of `step`, and of `draw_from_decoder` at the end.
    scheduler, forward, chain, _, predict = of_a_trajectory("learned_range")
    scheduler.register_to_config(clip_sample=False)
    count = 4000
    for row, t in ((2, 500), (0, 3)):
        x_t = chain[row + 1][:1, :, :1, :1].repeat(count, 1, 1, 1)
        output = predict(x_t, t).requires_grad_()
        if row:
            drawn = scheduler.step(output.detach(), t, x_t, generator=generator(1)).prev_sample
        else:
            drawn = scheduler.draw_from_decoder(output.detach(), t, x_t, generator(1))
        log_prob = scheduler.log_prob(drawn, output, x_t, t, decoder="discretized")
        (score,) = torch.autograd.grad(log_prob.sum(), output)
        assert (score.mean(0).abs() <= 5 * score.std(0) / count**0.5 + 1e-12).all()


def test_log_prob_refuses():
    scheduler, x = VLBDDPMScheduler(num_pixel_levels=17), torch.zeros(2, 1, 2, 2)
    scheduler.set_timesteps(10)
    for options, message in (
        ({"decoder": "exact"}, "`decoder` must be 'density' or 'discretized', got 'exact'"),
        ({"reduction": None}, "`reduction` must be 'sum' or 'mean', got None"),
        ({"timestep": 901}, "`timesteps` must belong to the sub-sequence of 10 steps"),
        ({"timestep": torch.tensor([0, 100, 200])}, r"`timesteps` must have the shape \(2,\)"),
        ({"prev_sample": x[:1]}, "`noisy_samples` must have the shape .* of `prev_samples`"),
        ({"prev_sample": x + 0.01, "timestep": 0, "decoder": "discretized"}, "grid"),
        ({"model_output": x.repeat(1, 2, 1, 1)}, "`model_output` must have 1 channel"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.log_prob(**{"prev_sample": x, "model_output": x, "sample": x, "timestep": 100} | options)
