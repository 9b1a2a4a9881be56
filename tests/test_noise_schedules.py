import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import generator

from ddpm_vlb import VLBDDPMScheduler
from ddpm_vlb.bound import prior_kl, vlb_terms
from ddpm_vlb.noise_schedules import LearnedNoiseSchedule, linear_log_snr
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.reverse_process import ReverseProcess

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


@pytest.mark.parametrize("beta_schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 100, 1000])
def test_starts_as_the_configured_schedule(beta_schedule, num_steps):
    forward = VLBDDPMScheduler(num_steps, beta_schedule=beta_schedule).forward_process()
    for num_segments in (1, 7, 32):
        learned = LearnedNoiseSchedule(forward, num_segments)()
        # The log-SNR passes through sums of magnitude 20 at most; a beta is a difference of two.
        assert torch.allclose(learned.betas, forward.betas, rtol=1e-8, atol=1e-13)
        assert torch.allclose(learned.log_alphas_cumprod, forward.log_alphas_cumprod, rtol=1e-12, atol=1e-16)


@given(st.lists(st.floats(-2, 2), min_size=8, max_size=8), st.floats(-4, 4), st.sampled_from(SCHEDULES))
def test_betas_stay_between_0_and_1_whatever_the_parameters(log_slopes, offset, beta_schedule):
    schedule = LearnedNoiseSchedule(VLBDDPMScheduler(50, beta_schedule=beta_schedule).forward_process(), 8)
    with torch.no_grad():
        schedule.log_slopes.copy_(torch.tensor(log_slopes))
        schedule.offset.fill_(offset)
    log_snr = schedule.log_snr()
    assert (torch.diff(log_snr) < 0).all()
    betas = torch.tensor(schedule.betas(), dtype=torch.float64)
    assert ((betas > 0) & (betas <= 1)).all()


def test_gradients_are_right():
    schedule = LearnedNoiseSchedule(VLBDDPMScheduler(6, 0.01, 0.4).forward_process(), 3)
    x, x_t = (torch.randn(6, 1, 2, 2, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    x = levels_to_samples(torch.randint(17, x.shape, generator=generator(2)), 17, torch.float64)
    output = torch.randn(6, 2, 2, 2, generator=generator(3), dtype=torch.float64)

    def loss(offset, log_slopes, variance_type):
        forward = torch.func.functional_call(schedule, {"offset": offset, "log_slopes": log_slopes}, ())
        reverse = ReverseProcess(forward, "v_prediction", variance_type, clip_sample=False)
        channels = 2 if reverse.learns_variance else 1
        noisy = forward.q_sample(x, x_t, torch.arange(6))
        terms = vlb_terms(reverse, output[:, :channels], x, noisy, torch.arange(6), 17)
        return terms.sum() + prior_kl(forward, x).sum()

    def loss_one_by_one(offset, log_slopes):
        forward = torch.func.functional_call(schedule, {"offset": offset, "log_slopes": log_slopes}, ())
        reverse = ReverseProcess(forward, "v_prediction", "learned_range", clip_sample=False)
        noisy = [forward.q_sample(x[t : t + 1], x_t[t : t + 1], t) for t in range(6)]
        terms = [vlb_terms(reverse, output[t : t + 1], x[t : t + 1], noisy[t], t, 17) for t in range(6)]
        return torch.cat(terms).sum() + prior_kl(forward, x).sum()

    parameters = (schedule.offset.detach().requires_grad_(), schedule.log_slopes.detach().requires_grad_())
    for variance_type in ("fixed_small", "fixed_large", "learned_range", "learned"):
        assert torch.autograd.gradcheck(lambda *p, v=variance_type: loss(*p, v), parameters)
    # A timestep given as a number carries gradients too.
    assert torch.autograd.gradcheck(loss_one_by_one, parameters)


MEAN, STD, LEVELS = 0.1, 0.25, 64
IMAGES = MEAN + STD * torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(128) + 0.5) / 128).double()
IMAGES = (((IMAGES + 1) / 2 * (LEVELS - 1)).round() / (LEVELS - 1) * 2 - 1).clamp(-1, 1)
NODES, WEIGHTS = map(torch.from_numpy, numpy.polynomial.hermite_e.hermegauss(24))


def expected_bound(forward):
    r"""The bound of data N(MEAN, STD^2), on the grid, under its optimal denoiser, in nats per pixel; the noise is integrated
    out by quadrature, so that nothing is random."""
    x = IMAGES.repeat_interleave(len(NODES)).reshape(-1, 1, 1, 1)
    noise = NODES.repeat(len(IMAGES)).reshape(-1, 1, 1, 1)
    reverse = ReverseProcess(forward, "sample", "fixed_small", clip_sample=False)
    total = prior_kl(forward, x)
    for timestep in range(len(forward)):
        noisy = forward.q_sample(x, noise, timestep)
        alpha_bar = forward.alphas_cumprod[timestep]
        gain = STD**2 * alpha_bar.sqrt() / (STD**2 * alpha_bar + 1 - alpha_bar)
        denoised = MEAN + gain * (noisy - alpha_bar.sqrt() * MEAN)
        total = total + vlb_terms(reverse, denoised, x, noisy, timestep, LEVELS)
    return (total.reshape(len(IMAGES), -1) @ WEIGHTS / WEIGHTS.sum()).mean()


@pytest.mark.parametrize("num_steps", [5, 20])
def test_learning_the_betas_lowers_the_bound_and_the_export_keeps_it(num_steps):
    scheduler = VLBDDPMScheduler(num_steps, 0.02, 0.3, num_pixel_levels=LEVELS)
    schedule = LearnedNoiseSchedule(scheduler.forward_process(), 8)
    before = expected_bound(scheduler.forward_process()).item()
    assert expected_bound(schedule()).item() == pytest.approx(before, rel=1e-10)
    ends = schedule.log_snr().detach()[[0, -1]]
    interior = torch.diff(schedule.log_snr().detach())
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = expected_bound(schedule())
        loss.backward()
        optimizer.step()
    after = expected_bound(schedule()).item()
    exported = VLBDDPMScheduler(num_steps, trained_betas=schedule.betas(), num_pixel_levels=LEVELS)
    assert expected_bound(exported.forward_process()).item() == pytest.approx(after, rel=1e-10)
    # No model codes these images in less than their own entropy; most of what the bound costs above it is gone.
    counts = torch.unique(IMAGES, return_counts=True)[1] / len(IMAGES)
    entropy = -(counts * counts.log()).sum().item()
    assert entropy < after < before - 0.5 * (before - entropy)
    # Both ends moved, and the interior is no rescaled copy.
    assert ((schedule.log_snr().detach()[[0, -1]] - ends).abs() > 0.1).all()
    ratio = torch.diff(schedule.log_snr().detach()) / interior
    assert ratio.max() / ratio.min() > 1.2


def test_linear_log_snr():
    forward = linear_log_snr(11, 6.0, -4.0)
    assert torch.allclose(torch.log(forward.snr), torch.arange(6.0, -5.0, -1.0, dtype=torch.float64))
    assert VLBDDPMScheduler(11, trained_betas=forward.betas.tolist()).forward_process().betas == pytest.approx(forward.betas)


def test_bad_arguments():
    forward = VLBDDPMScheduler(10, rescale_betas_zero_snr=True).forward_process()
    with pytest.raises(ValueError, match="terminal SNR above zero to be learnt from, got zero"):
        LearnedNoiseSchedule(forward)
    with pytest.raises(ValueError, match="`num_segments` must be at least 1, got 0"):
        LearnedNoiseSchedule(VLBDDPMScheduler(10).forward_process(), 0)
    for bad in ((1.0, 1.0), (-1.0, 1.0), (math.inf, 0.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="`log_snr_min` must be below `log_snr_max`"):
            linear_log_snr(10, *bad)
    with pytest.raises(ValueError, match="`num_timesteps` must be an integer from 1 to"):
        linear_log_snr(0, 1.0, -1.0)
