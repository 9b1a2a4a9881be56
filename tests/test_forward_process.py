import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import generator

from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.noise_schedules import BETA_SCHEDULES, make_betas

LINEAR = make_betas("linear", 1000)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_schedules_are_diffusers_own_in_float64(schedule, zero_snr):
    stock = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero_snr)
    betas = make_betas(schedule, 1000, rescale_betas_zero_snr=zero_snr)
    assert betas.dtype == torch.float64
    if not zero_snr:  # float32 betas carry a few roundings; rescaled ones are 1 - ratio and have few digits left
        assert torch.allclose(betas, stock.betas.double(), rtol=5e-7, atol=0)
    forward = ForwardProcess.from_betas(betas)
    # The stock table is a float32 product of 1000 factors: up to 1000 roundings of 6e-8, half of that in the square root.
    assert torch.allclose(forward.sqrt_alphas_cumprod, stock.alphas_cumprod.double().sqrt(), rtol=0, atol=3e-5)
    assert (forward.alphas_cumprod[-1] == 0) == zero_snr


def test_tables_equal_mpmath():
    forward = ForwardProcess.from_betas(LINEAR)
    with mpmath.workdps(50):
        abar, previous = mpmath.mpf(1), None
        for t, beta in enumerate(LINEAR.tolist()):
            previous, abar = abar, abar * (1 - mpmath.mpf(beta))
            if t in (0, 1, 2, 10, 500, 999):
                exact = {
                    "alphas_cumprod": abar,
                    "one_minus_alphas_cumprod": 1 - abar,
                    "betas": mpmath.mpf(beta),
                    "snr": abar / (1 - abar),
                    "posterior_variance": (1 - previous) / (1 - abar) * beta,
                    "posterior_mean_coef1": mpmath.sqrt(previous) * beta / (1 - abar),
                    "posterior_mean_coef2": mpmath.sqrt(1 - mpmath.mpf(beta)) * (1 - previous) / (1 - abar),
                }
                for name, value in exact.items():
                    # T sums of logarithms of size up to 10, each rounded: 1e-13 absolute in log abar, against beta = 0.02.
                    assert getattr(forward, name)[t].item() == pytest.approx(float(value), rel=1e-11), (name, t)


def test_tiny_betas_keep_their_digits():
    betas = torch.tensor([0.5, 1e-12, 0.3], dtype=torch.float64)
    assert torch.allclose(ForwardProcess.from_betas(betas).betas, betas, rtol=1e-15, atol=0)
    grid = ForwardProcess.from_betas(torch.tensor([0.5, 1e-12, 2e-12, 0.3], dtype=torch.float64), [2, 0])
    assert grid.betas[1].item() == pytest.approx(3e-12, rel=1e-11)


def test_q_sample_composes_from_single_steps():
    forward = ForwardProcess.from_betas(LINEAR)
    mean, variance = torch.tensor([[[[0.7]]]], dtype=torch.float64), 0.0
    x = mean
    for t in range(1000):
        step = forward.q_step_mean_variance(mean, t)
        mean, variance = step.mean, (1 - LINEAR[t]) * variance + step.variance
    q = forward.q_mean_variance(x, 999)
    assert torch.allclose(q.mean, mean, rtol=1e-12) and torch.allclose(q.variance, variance, rtol=1e-12)


@settings(max_examples=30)
@given(st.sets(st.integers(0, 999), min_size=2, max_size=12))
def test_bayes_identity_on_any_grid(steps):
    grid = sorted(steps, reverse=True)
    forward = ForwardProcess.from_betas(LINEAR, grid)
    x, x_s, x_t = draw(1, 1, 2, 2), draw(1, 1, 2, 2, seed=1), draw(1, 1, 2, 2, seed=2)

    def log_density(value, gaussian):
        return torch.distributions.Normal(gaussian.mean, gaussian.variance.sqrt()).log_prob(value)

    for t, s in zip(grid, grid[1:]):
        left = log_density(x_s, forward.q_posterior_mean_variance(x, x_t, t)) + log_density(x_t, forward.q_mean_variance(x, t))
        right = log_density(x_t, forward.q_step_mean_variance(x_s, t)) + log_density(x_s, forward.q_mean_variance(x, s))
        # Log-densities reach 1/beta = 1e4 and are computed to 1e-12 of that.
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-7)


def test_posterior_at_the_lowest_step_is_the_image():
    for grid in (None, [999], [700, 20]):
        forward = ForwardProcess.from_betas(LINEAR, grid)
        x, x_t = draw(2, 1, 2, 2), draw(2, 1, 2, 2, seed=1)
        q = forward.q_posterior_mean_variance(x, x_t, int(forward.timesteps[0]))
        assert torch.equal(q.mean, x) and (q.variance == 0).all() and (q.log_variance == -torch.inf).all()


def test_the_grid_of_all_steps_is_the_full_process():
    full, grid = ForwardProcess.from_betas(LINEAR), ForwardProcess.from_betas(LINEAR, range(999, -1, -1))
    assert torch.equal(full.alphas_cumprod, grid.alphas_cumprod) and torch.equal(full.betas, grid.betas)


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(0, 10**6))
def test_conversions_agree(t, seed):
    forward = ForwardProcess.from_betas(LINEAR)
    x, epsilon = draw(2, 1, 2, 2, seed=seed), draw(2, 1, 2, 2, seed=seed + 1)
    x_t, v = forward.q_sample(x, epsilon, t), forward.velocity(x, epsilon, t)
    scale = 1 / forward.sqrt_alphas_cumprod[t].item()
    assert torch.allclose(forward.predict_original_from_epsilon(x_t, epsilon, t), x, atol=1e-14 * scale * 10)
    assert torch.allclose(forward.predict_original_from_velocity(x_t, v, t), x, atol=1e-13)
    noise_scale = 1 / forward.sqrt_one_minus_alphas_cumprod[t].item()
    assert torch.allclose(forward.predict_epsilon_from_original(x_t, x, t), epsilon, atol=1e-14 * noise_scale * 10)
    assert torch.allclose(forward.predict_epsilon_from_velocity(x_t, v, t), epsilon, atol=1e-13)


def test_batched_and_scalar_timesteps_agree():
    forward = ForwardProcess.from_betas(LINEAR)
    x, steps = draw(3, 1, 2, 2), torch.tensor([0, 5, 999])
    batched = forward.q_mean_variance(x, steps)
    for i, t in enumerate(steps.tolist()):
        one = forward.q_mean_variance(x[i : i + 1], t)
        for a, b in zip(batched, one):
            assert torch.equal(a[i : i + 1], b)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ForwardProcess.from_betas(LINEAR).num_train_timesteps = 3


@pytest.mark.parametrize("t", [-1, 1000, 10**9, torch.tensor([3, 1000]), torch.tensor([-1, 3])])
def test_timesteps_out_of_range(t):
    with pytest.raises(ValueError, match=r"`timesteps` must lie in \[0, 1000\), got"):
        ForwardProcess.from_betas(LINEAR).q_mean_variance(draw(2, 1, 2, 2), t)


@pytest.mark.parametrize(
    "t", [0.5, "3", None, True, torch.tensor([0.5, 1.0]), torch.tensor([[1, 2]]), torch.tensor([True, False])]
)
def test_timesteps_that_are_not_integers(t):
    with pytest.raises(ValueError, match="`timesteps` must be"):
        ForwardProcess.from_betas(LINEAR).q_mean_variance(draw(2, 1, 2, 2), t)


def test_timesteps_off_the_grid_or_of_another_batch():
    forward = ForwardProcess.from_betas(LINEAR, [900, 5])
    with pytest.raises(ValueError, match="sub-sequence of 2 steps that is scored, got 6"):
        forward.q_mean_variance(draw(1, 1, 2, 2), 6)
    with pytest.raises(ValueError, match=r"must have the shape \(3,\)"):
        forward.q_mean_variance(draw(3, 1, 2, 2), torch.tensor([5, 900]))


@pytest.mark.parametrize(
    ("grid", "rule"),
    [
        ([], "at least one"),
        ([5, 5], "strictly descending"),
        ([5, 6], "strictly descending"),
        ([1000, 3], r"lie in \[0, 1000\), got 1000"),
        ([3, -1], r"lie in \[0, 1000\), got -1"),
        ([3.5, 1], "integers"),
        (7, "integers"),
    ],
)
def test_bad_subsequences(grid, rule):
    with pytest.raises(ValueError, match=f"`inference_timesteps` must .*{rule}"):
        ForwardProcess.from_betas(LINEAR, grid)


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.5], [1.0, 0.1], [-0.1, 0.2], [0.1, float("nan")]])
def test_betas_that_cannot_be_scored(betas):
    with pytest.raises(ValueError, match=r"`betas` must lie in \(0, 1\)"):
        ForwardProcess.from_betas(torch.tensor(betas))


def test_numpy_integers_are_integers():
    forward = ForwardProcess.from_betas(LINEAR, np.array([10, 3]))
    assert forward.timesteps.tolist() == [3, 10]
    assert forward.rows(np.int64(10), 5) == 1 and forward.rows(np.array([10, 3]), 2).tolist() == [1, 0]
