r"""Rate and distortion: against the sweep's own terms, against closed forms; progressive decoding along one walk."""

import math

import pytest
import torch
from analytic import GaussianDenoiser
from tiny import generator, quiet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.gaussians import nats_to_bits_per_dim
from ddpm_vlb.likelihoods.full_sweep import sweep
from ddpm_vlb.likelihoods.rate_distortion import progressive_decoding, rate_distortion
from ddpm_vlb.noise import keyed_noise, mix
from ddpm_vlb.pixel_grid import levels_to_samples


def test_rates_are_sums_of_the_bounds_terms(pipe, images):
    for options in ({}, {"num_inference_steps": 6}):
        curve = rate_distortion(pipe, images, seed=3, batch_size=2, **options)
        scorer = pipe.scorer(**options)
        with torch.no_grad():
            prior, terms = sweep(scorer, images, [mix(3, number) for number in range(5)])
        prior, terms = (nats_to_bits_per_dim(values, 64) for values in (prior, terms))
        steps = terms.shape[1]
        for place, timestep in enumerate(curve.timesteps.tolist()):
            above = scorer.reverse.forward.timesteps > timestep
            expected = prior + terms[:, above].sum(dim=1)
            assert curve.rate[place].item() == pytest.approx(expected.mean().item(), rel=1e-5)
            assert curve.rate_standard_error[place].item() == pytest.approx(expected.std().item() / 5**0.5, rel=1e-4, abs=1e-9)
        total = prior + terms.sum(dim=1)
        assert curve.rate[-1].item() == pytest.approx(total.mean().item(), rel=1e-5) and curve.distortion[-1] == 0
        assert (curve.rate.diff() >= 0).all() and len(curve.rate) == steps + 1
        assert curve.num_network_evaluations == 5 * steps


def test_distortion_of_a_gaussian_model():
    r"""The denoiser x_hat = a x_t + b: its error on an image is (a sqrt(abar) x + b - x)^2 + a^2 (1 - abar)."""
    m, s, steps = 0.2, 0.5, 10
    scheduler = VLBDDPMScheduler(steps, 0.01, 0.5, clip_sample=False)
    alphas = scheduler.forward_process().alphas_cumprod
    pipe = quiet(VLBDDPMPipeline(GaussianDenoiser(alphas.tolist(), m=m, s=s), scheduler))
    images = torch.randint(256, (500, 1, 4, 4), generator=generator()).to(torch.uint8)
    curve = rate_distortion(pipe, images, batch_size=500)
    x = levels_to_samples(images, 256)
    for place, timestep in enumerate(curve.timesteps.tolist()):
        alpha = alphas[timestep].item()
        gain = s**2 * math.sqrt(alpha) / (s**2 * alpha + 1 - alpha)
        bias = gain * (math.sqrt(alpha) * x - math.sqrt(alpha) * m) + m - x
        expected = 127.5 * (bias.square().mean() + gain**2 * (1 - alpha)).sqrt()
        assert abs(curve.distortion[place] - expected) < 4 * curve.distortion_standard_error[place]


def test_progressive_decoding_follows_one_walk(pipe, images):
    grid = [19, 11, 4, 0]
    shown = progressive_decoding(pipe, images, grid, seed=7)
    assert shown.shape == (4, 5, 1, 8, 8) and shown.dtype == torch.uint8 and shown.max() <= 16
    forward = pipe.scheduler.forward_process(grid)
    latents = levels_to_samples(images, 17)
    noises = keyed_noise([mix(7, number) for number in range(5)], sorted(grid), (1, 8, 8))
    for timestep, noise in zip(sorted(grid), noises):
        q = forward.q_step_mean_variance(latents, timestep)
        latents = q.mean + q.variance.sqrt() * noise
        with torch.no_grad():
            output = pipe.unet(latents.float(), timestep).sample
        expected = pipe.scheduler.p_mean_variance(output, latents, timestep).pred_original_sample
        levels = ((expected + 1) * 8).round()
        assert (abs(shown[grid.index(timestep)] - levels) <= 1).all()  # a rounding of float32 may tip a level
        assert (shown[grid.index(timestep)] == levels).double().mean() > 0.99


def test_what_is_refused(pipe, images):
    with pytest.raises(ValueError, match="`images` must be at least two, got 1"):
        rate_distortion(pipe, images[:1])
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        rate_distortion(pipe, images, batch_size=0)
    with pytest.raises(ValueError, match="`inference_timesteps` must be strictly descending"):
        progressive_decoding(pipe, images, [1, 5])
    pipe.unet.conv_out.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="`unet` must give finite outputs"):
        rate_distortion(pipe, images)
