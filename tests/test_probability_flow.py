r"""The probability-flow ODE: against its solution for Gaussian data, against finite differences, image by image."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analytic import GaussianDenoiser
from tiny import generator, quiet, tiny_unet

from ddpm_vlb import VLBDDPMPipeline, VLBDDPMScheduler
from ddpm_vlb.data import load_images
from ddpm_vlb.likelihoods.probability_flow import Flow, ode_nll
from ddpm_vlb.noise import keyed_normal, mix
from ddpm_vlb.pixel_grid import levels_to_samples

ROOT = Path(__file__).parents[1]
STEPS, M, S = 30, 0.2, 0.3


class ContinuousDenoiser(GaussianDenoiser):
    r"""The optimal denoiser of N(M, S^2), at fractions of a timestep too: log sigma is a straight line between timesteps."""

    def __init__(self, alphas_cumprod, prediction_type="epsilon", **options):
        super().__init__(alphas_cumprod, m=M, s=S, **options)
        alphas = np.asarray(alphas_cumprod)
        self.log_sigmas, self.prediction_type = 0.5 * np.log((1 - alphas) / alphas), prediction_type

    def forward(self, sample, timestep, class_labels=None):
        steps = np.arange(len(self.log_sigmas))
        sigma = math.exp(np.interp(float(timestep), steps, self.log_sigmas))
        root = 1 / math.sqrt(1 + sigma**2)
        u = sample / root
        x_hat = M + S**2 / (S**2 + sigma**2) * (u - M)
        epsilon = (u - x_hat) / sigma
        outputs = {"epsilon": epsilon, "sample": x_hat, "v_prediction": root * epsilon - sigma * root * x_hat}
        return SimpleNamespace(sample=outputs[self.prediction_type])


class TwoModes(ContinuousDenoiser):
    r"""The optimal denoiser of pixels from two narrow Gaussians about -0.8 and 0.8, one as likely as the other."""

    def forward(self, sample, timestep, class_labels=None):
        sigma = math.exp(np.interp(float(timestep), np.arange(len(self.log_sigmas)), self.log_sigmas))
        u, variance = sample * math.sqrt(1 + sigma**2), 0.05**2 + sigma**2
        return SimpleNamespace(sample=(u - 0.8 * torch.tanh(0.8 * u / variance)) * sigma / variance)


def gaussian_pipe(prediction_type="epsilon", clip_sample=False, side=4):
    scheduler = VLBDDPMScheduler(STEPS, 0.002, 0.4, clip_sample=clip_sample, prediction_type=prediction_type)
    alphas = scheduler.forward_process().alphas_cumprod.tolist()
    return quiet(VLBDDPMPipeline(ContinuousDenoiser(alphas, prediction_type, sample_size=side), scheduler))


def some_images(count=3):
    return torch.randint(100, 200, (count, 1, 4, 4), generator=generator()).to(torch.uint8)


def solution(forward, x, seed):
    r"""u at the lowest timestep, and -log p of x_0 in bits/dim."""
    a_0, a_t = forward.alphas_cumprod[0].item(), forward.alphas_cumprod[-1].item()
    low, high = ((1 - a) / a for a in (a_0, a_t))
    noise = torch.cat([keyed_normal([mix(mix(seed, number), 0)], x.shape[1:]) for number in range(len(x))]).double()
    u = x + math.sqrt(low) * noise
    growth = (S**2 + high) / (S**2 + low)
    top = (M + (u - M) * math.sqrt(growth)) * math.sqrt(a_t)
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(top) + 0.5 * math.log(a_t / a_0) + 0.5 * math.log(growth)
    return u, -log_density.mean(dim=(1, 2, 3)) / math.log(2)


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4, 1e-5])
def test_the_solvers_error_covers_what_it_is_off_by(side, tolerance):
    # Of a network that is a function of each pixel by itself, any signs give the exact trace.
    pipe = gaussian_pipe(side=side)
    images = torch.randint(100, 200, (4, 1, side, side), generator=generator()).to(torch.uint8)
    got = ode_nll(pipe, images, trace="hutchinson", rtol=tolerance, atol=tolerance, seed=5)
    _, density = solution(pipe.scheduler.forward_process(), levels_to_samples(images, 256), seed=5)
    assert (abs(got.density - density) <= got.solver_error).all()
    assert (got.solver_error < 50 * tolerance).all()


@pytest.mark.parametrize("side", [8, 28])
def test_two_modes(side):
    # A path that turns, solved at the default tolerances; the tighter solution stands for the exact one.
    scheduler = VLBDDPMScheduler(clip_sample=False)
    pipe = quiet(VLBDDPMPipeline(TwoModes(scheduler.forward_process().alphas_cumprod.tolist(), sample_size=side), scheduler))
    images = torch.where(torch.rand(1, 1, side, side, generator=generator()) < 0.5, 26, 229).to(torch.uint8)
    got, tight = (ode_nll(pipe, images, trace="hutchinson", **o) for o in ({}, {"rtol": 1e-6, "atol": 1e-6}))
    off = abs(got.bits_per_dim - tight.bits_per_dim)
    assert off < 1e-4 and off < got.solver_error < 3e-3


@pytest.mark.parametrize("side", [8, 28])
def test_a_clipped_image_whose_divergence_jumps(side):
    pipe = gaussian_pipe(clip_sample=True, side=side)
    images = torch.randint(0, 256, (3, 1, side, side), generator=generator()).to(torch.uint8)
    tight = ode_nll(pipe, images, trace="hutchinson", rtol=1e-6, atol=1e-6)
    for tolerance in (1e-2, 1e-3, 1e-4):
        got = ode_nll(pipe, images, trace="hutchinson", rtol=tolerance, atol=tolerance)
        assert (abs(got.bits_per_dim - tight.bits_per_dim) < got.solver_error).all()


def test_rounding_is_not_enlarged():
    # As with another number of threads. This digit's number moved by 0.008 with it, of which nothing was said.
    def score(dtype):
        pipe = quiet(VLBDDPMPipeline.from_pretrained(ROOT / "spaces_demo" / "checkpoints" / "ddpm-vlb-digits"))
        pipe.unet.to(dtype)
        images = load_images("digits", "test", 4).images[3:]
        return ode_nll(pipe, images, trace="hutchinson", rtol=1e-3, atol=1e-3, seed=1)

    single, double = score(torch.float32), score(torch.float64)
    assert abs(single.bits_per_dim - double.bits_per_dim) < 0.2 * single.solver_error < 0.02


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_gaussian_data(prediction_type):
    r"""du/dsigma = sigma (u - M) / (S^2 + sigma^2): u - M grows like sqrt(S^2 + sigma^2)."""
    pipe, images = gaussian_pipe(prediction_type), some_images()
    forward = pipe.scheduler.forward_process()
    got = ode_nll(pipe, images, trace="hutchinson", rtol=1e-6, atol=1e-6, seed=5)
    a_0 = forward.alphas_cumprod[0].item()
    x, bits = levels_to_samples(images, 256), 16 * math.log(2)
    u, density = solution(forward, x, seed=5)
    # The timestep that the network is told is in single precision.
    assert torch.allclose(got.density, density, atol=2e-6)
    log_q = torch.distributions.Normal(math.sqrt(a_0) * x, math.sqrt(1 - a_0)).log_prob(math.sqrt(a_0) * u)
    assert torch.allclose(got.dequantisation, log_q.sum(dim=(1, 2, 3)) / bits, atol=1e-6)
    assert torch.allclose(got.bits_per_dim, got.density + got.dequantisation + got.reconstruction, rtol=1e-12)


def test_it_is_a_bound_on_a_known_likelihood():
    r"""The ODE takes N(0, 1) at the top to a Gaussian at the lowest timestep, and the decoder that to one over the pixels."""
    pipe, images = gaussian_pipe(), some_images(2)
    forward = pipe.scheduler.forward_process()
    a_0, a_t = forward.alphas_cumprod[0].item(), forward.alphas_cumprod[-1].item()
    low, high = ((1 - a) / a for a in (a_0, a_t))
    shrink = math.sqrt((S**2 + low) / (S**2 + high))
    # u at the lowest timestep is Gaussian: (x_T / sqrt(a_t) - M) shrunk, plus M. Decoded, and integrated over the bin.
    mean, std = M - M * shrink, shrink / math.sqrt(a_t)
    gain = S**2 / (S**2 + low)
    x_hat_mean, x_hat_std = M + gain * (mean - M), gain * std
    decoder = pipe.scheduler.forward_process().posterior_variance[1].item()
    total = math.sqrt(x_hat_std**2 + decoder)
    x = levels_to_samples(images, 256)
    normal = torch.distributions.Normal(x_hat_mean, total)
    nll = -torch.log(normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).sum(dim=(1, 2, 3)) / (16 * math.log(2))
    got = ode_nll(pipe, images, trace="hutchinson", num_draws=60, rtol=1e-2, atol=1e-2)
    assert (got.bits_per_dim > nll - 4 * got.monte_carlo_error).all() and (got.monte_carlo_error > 0).all()


def test_hutchinson_has_the_mean_of_the_exact_trace(pipe, images):
    flow = Flow(pipe.scorer(), pipe.scheduler.forward_process())
    u = torch.randn(1, 1, 8, 8, generator=generator(), dtype=torch.float64)
    identity = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    for place in (0.1, 0.5, 0.9):
        log_sigma = flow.ends[0] + place * (flow.ends[1] - flow.ends[0])
        noise, parts = flow.divergence(u, log_sigma, identity)
        exact = parts.sum().item()
        # By finite differences, with a network in float64.
        pipe.unet.double()
        wide = Flow(pipe.scorer(), pipe.scheduler.forward_process())
        step = 1e-5
        shifted = wide.predicted_noise(u + step * identity, log_sigma) - wide.predicted_noise(u - step * identity, log_sigma)
        differences = (shifted * identity).sum().item() / (2 * step)
        assert wide.divergence(u, log_sigma, identity)[1].sum().item() == pytest.approx(differences, rel=1e-5, abs=1e-5)
        pipe.unet.float()
        assert exact == pytest.approx(differences, rel=1e-3, abs=1e-3)
        signs = torch.randn(2000, 1, 8, 8, generator=generator(1), dtype=torch.float64).sign()
        _, estimates = flow.divergence(u, log_sigma, signs)
        assert abs(estimates.mean() - exact) < 4 * estimates.std() / 2000**0.5
        assert torch.allclose(noise, flow.predicted_noise(u, log_sigma), atol=1e-4)


def test_hutchinson_is_unbiased_from_end_to_end(pipe, images):
    # A coarse solver, the same for both traces: it moves a number by 0.01, and the mean's error is 0.02.
    def nll(trace, seed, **options):
        return ode_nll(pipe, images[:1], trace=trace, seed=seed, rtol=1e-1, atol=1e-1, **options).bits_per_dim

    assert torch.equal(*(nll("hutchinson", 0, num_probes=4, num_draws=1) for _ in range(2)))
    # A seed draws the same x_0 for both, so that their difference is the signs' alone.
    differences = torch.cat([nll("hutchinson", seed) - nll("exact", seed) for seed in range(8)])
    assert 0 < differences.std() and abs(differences.mean()) < 4 * differences.std() / 8**0.5


def test_an_image_has_no_batch_mates(pipe, images):
    together, alone = ode_nll(pipe, images[:3], rtol=1e-2, atol=1e-2), ode_nll(pipe, images[:1], rtol=1e-2, atol=1e-2)
    assert torch.equal(together.bits_per_dim[:1], alone.bits_per_dim)
    assert together.num_network_evaluations > alone.num_network_evaluations
    draws = ode_nll(pipe, images[:1], num_draws=2, rtol=1e-1, atol=1e-1)
    assert draws.monte_carlo_error > 0 and torch.isnan(alone.monte_carlo_error).all()


def test_tolerances_are_kept(pipe, images):
    loose, tight = (ode_nll(pipe, images[:1], rtol=tol, atol=tol) for tol in (1e-2, 1e-3))
    assert (abs(loose.bits_per_dim - tight.bits_per_dim) < loose.solver_error).all()
    assert tight.num_network_evaluations > loose.num_network_evaluations
    # A forward process cut short: from the lowest of these timesteps to the highest.
    part = ode_nll(pipe, images[:1], inference_timesteps=[15, 3], rtol=1e-2, atol=1e-2)
    assert torch.isfinite(part.bits_per_dim).all() and part.dequantisation < tight.dequantisation[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trace": "guess"}, "`trace` must be 'exact' or 'hutchinson', got 'guess'"),
        ({"rtol": 0.0}, r"`rtol` must lie in \(0, 1\), got 0.0"),
        ({"num_draws": 0}, "`num_draws` must be a positive integer, got 0"),
        ({"num_probes": 0}, "`num_probes` must be a positive integer, got 0"),
        ({"num_probes": 4}, "`num_probes` must be left out with the exact trace, got 4"),
        ({"num_inference_steps": 1}, "got a model of a single step"),
        ({"class_labels": 1}, "`class_labels` must be left out"),
    ],
)
def test_bad_arguments(pipe, images, options, message):
    with pytest.raises(ValueError, match=message):
        ode_nll(pipe, images, **options)


def test_models_without_such_a_flow(images):
    zero = VLBDDPMScheduler(20, rescale_betas_zero_snr=True, prediction_type="v_prediction", num_pixel_levels=17)
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), zero))
    with pytest.raises(ValueError, match="got zero terminal SNR: leave out the last timestep"):
        ode_nll(pipe, images)
    rest = ode_nll(pipe, images[:1], inference_timesteps=[18, 0], rtol=1e-2, atol=1e-2)
    assert torch.isfinite(rest.bits_per_dim).all()
    table = tiny_unet(time_embedding_type="learned", num_train_timesteps=20)
    pipe = quiet(VLBDDPMPipeline(table, VLBDDPMScheduler(20, num_pixel_levels=17)))
    with pytest.raises(ValueError, match="`unet` must take fractions of a timestep"):
        ode_nll(pipe, images)
    half = quiet(VLBDDPMPipeline(tiny_unet().to(torch.bfloat16), VLBDDPMScheduler(20, num_pixel_levels=17)))
    with pytest.raises(ValueError, match="`unet` must be in float32 or float64 for the ODE.*got bfloat16"):
        ode_nll(half, images)
    pipe = quiet(VLBDDPMPipeline(tiny_unet(), VLBDDPMScheduler(20, num_pixel_levels=17)))
    pipe.autocast = torch.bfloat16
    with pytest.raises(ValueError, match="`unet` must be in float32 or float64 for the ODE.*got autocast-bfloat16"):
        ode_nll(pipe, images)
