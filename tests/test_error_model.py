r"""Variances from the error of predictions: against the KL itself, against the variance types that it contains."""

import math

import numpy as np
import pytest
import torch
from tiny import generator

from ddpm_vlb.bound import transition_kl
from ddpm_vlb.calibration.fits import fit_decoder, fit_errors
from ddpm_vlb.error_model import ErrorModel, features_of, step_costs
from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.gaussians import discretized_gaussian_log_likelihood
from ddpm_vlb.noise_schedules import make_betas
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.reverse_process import ReverseProcess

STEPS = 50
TRAINED = ForwardProcess.from_betas(make_betas("linear", STEPS, beta_start=0.002, beta_end=0.3))


def model(offset=0.0, gain=0.0, learned_gain=0.0, decoder=(0.01, 0.0, 0.0)):
    numbers = [torch.as_tensor(value, dtype=torch.float64).expand(STEPS) for value in (offset, gain, learned_gain, *decoder)]
    return ErrorModel(*numbers)


def reverse(error_model, variance_type="fixed_small", grid=None, **options):
    forward = TRAINED if grid is None else ForwardProcess.from_betas(TRAINED.betas, grid)
    return ReverseProcess(forward, variance_type=variance_type, error_model=error_model, trained=TRAINED, **options)


def some(channels=2):
    shape = (6, 1, 4, 4)
    x = torch.rand(shape, generator=generator(0), dtype=torch.float64) * 2 - 1
    noise = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    output = torch.randn((6, channels, 4, 4), generator=generator(2), dtype=torch.float64)
    output[:, :1] = noise + 0.3 * output[:, :1]
    if channels == 2:
        output[:, 1:] = output[:, 1:].tanh()
    return x, noise, output


@pytest.mark.parametrize("t", [1, 7, 30, 49])
def test_what_went_before_is_in_it(t):
    x, noise, output = some()
    x_t = TRAINED.q_sample(x, noise, t)
    cases = {
        "fixed_small": model(),
        "fixed_large": model(offset=TRAINED.one_minus_alphas_cumprod),
        "learned_range": model(learned_gain=1.0),
    }
    for variance_type, error_model in cases.items():
        out = output if variance_type == "learned_range" else output[:, :1]
        plain = ReverseProcess(TRAINED, variance_type=variance_type).p_mean_variance(out, x_t, t)
        ours = reverse(error_model, variance_type).p_mean_variance(out, x_t, t)
        assert torch.allclose(ours.log_variance, plain.log_variance, rtol=1e-10, atol=1e-12)
        assert torch.equal(ours.mean, plain.mean)


def test_fixed_large_is_one_number_on_every_sub_sequence():
    x, noise, output = some(1)
    grid = [49, 30, 12, 3]
    x_t = TRAINED.q_sample(x, noise, 30)
    sub = ForwardProcess.from_betas(TRAINED.betas, grid)
    plain = ReverseProcess(sub, variance_type="fixed_large").p_mean_variance(output, x_t, 30)
    ours = reverse(model(offset=TRAINED.one_minus_alphas_cumprod), grid=grid).p_mean_variance(output, x_t, 30)
    assert torch.allclose(ours.log_variance, plain.log_variance, rtol=1e-12)


def test_learned_variances_at_the_lowest_step_are_the_decoders():
    x, noise, output = some()
    x_t = TRAINED.q_sample(x, noise, 0)
    plain = ReverseProcess(TRAINED, variance_type="learned_range").p_mean_variance(output, x_t, 0)
    ours = reverse(model(decoder=(1e-9, 0.0, 1.0)), "learned_range").p_mean_variance(output, x_t, 0)
    assert torch.allclose(ours.variance, plain.variance + 1e-9, rtol=1e-10)


@pytest.mark.parametrize("grid, t", [(None, 20), ([45, 20, 2], 20), ([49, 1], 49)])
def test_costs_are_the_kl(grid, t):
    x, noise, output = some()
    forward = TRAINED if grid is None else ForwardProcess.from_betas(TRAINED.betas, grid)
    x_t = forward.q_sample(x, noise, t)
    process = reverse(model(0.02, 0.3, 0.4), "learned_range", grid)
    kl = transition_kl(process, output, x, x_t, t) / 16
    prediction, _ = process.predict(output, x_t, t)
    features = features_of(prediction, process.learned_errors(output[:, 1:], t)).flatten(2)
    errors = torch.tensordot(torch.tensor([0.02, 0.3, 0.4], dtype=torch.float64), features, dims=1)
    row = forward.rows(t, 1)
    delta = forward.snr[row - 1] - forward.snr[row]
    got = step_costs(errors, (x - prediction).square().flatten(1), delta[None])[:, 0]
    assert torch.allclose(got, kl, rtol=1e-9)


def test_a_batch_may_mix_timesteps():
    x, noise, output = some()
    timesteps = torch.tensor([0, 3, 49, 20, 0, 7])
    process = reverse(model(0.02, 0.3, 0.4, (0.01, 0.2, 0.1)), "learned_range")
    x_t = TRAINED.q_sample(x, noise, timesteps)
    together = process.p_mean_variance(output, x_t, timesteps)
    for row, t in enumerate(timesteps.tolist()):
        alone = process.p_mean_variance(output[row : row + 1], x_t[row : row + 1], t)
        assert torch.allclose(together.log_variance[row], alone.log_variance[0], rtol=1e-12)


def test_fits_find_the_numbers_that_made_the_errors():
    shape = (400, 50)
    x_hat = torch.rand(shape, generator=generator(0), dtype=torch.float64) * 2 - 1
    learned = torch.rand(shape, generator=generator(1), dtype=torch.float64) * 0.1
    features, truth = features_of(x_hat, learned), torch.tensor([0.004, 0.05, 0.6], dtype=torch.float64)
    errors = torch.tensordot(truth, features, dims=1)
    squares = errors * torch.randn(shape, generator=generator(2), dtype=torch.float64).square()
    fitted = fit_errors(features, squares, delta=100.0)
    # How well 20,000 observations tell three numbers (the sandwich formula, the variance of r^2 being 2 e^2).
    flat, v = features.flatten(1), 1 + 100.0 * errors.flatten()
    bread = torch.linalg.inv(0.5 * (100.0 * flat / v) @ (100.0 * flat / v).T)
    filling = 0.25 * (flat * 2 * (100.0**2 * errors.flatten()) ** 2 / v**4) @ flat.T
    assert (abs(fitted - truth) < 4 * (bread @ filling @ bread).diagonal().sqrt()).all()

    def cost(values):
        return step_costs(torch.tensordot(values, features, dims=1), squares, torch.tensor([100.0])).mean().item()

    # At the minimum: no change of one number by a per cent is better.
    for place in range(3):
        for factor in (0.99, 1.01):
            other = fitted.clone()
            other[place] *= factor
            assert cost(other) > cost(fitted) - 1e-8
    assert cost(fitted) <= cost(truth)


def test_a_feature_that_explains_nothing_gets_nothing():
    x_hat = torch.ones(100, 50, dtype=torch.float64)  # 1 - x_hat^2 = 0
    squares = 0.01 * torch.randn(100, 50, generator=generator(0), dtype=torch.float64).square()
    fitted = fit_errors(features_of(x_hat, None), squares, 1000.0)
    assert fitted[1] == 0 and fitted[0] == pytest.approx(squares.mean().item(), rel=0.05)


@pytest.mark.parametrize("num_pixel_levels", [2, 17, 256])
def test_the_decoder_is_as_wide_as_the_errors(num_pixel_levels):
    count, sigma = 20000, {2: 0.5, 17: 0.2, 256: 0.1}[num_pixel_levels]
    x_hat = torch.rand(count, generator=generator(0), dtype=torch.float64) * 1.2 - 0.6
    latent = x_hat + sigma * torch.randn(count, generator=generator(1), dtype=torch.float64)
    levels = ((latent + 1) / 2 * (num_pixel_levels - 1)).round().clamp(0, num_pixel_levels - 1)
    samples = levels_to_samples(levels.to(torch.int32), num_pixel_levels)
    features = features_of(x_hat, None)
    fitted = fit_decoder(features, samples, x_hat, num_pixel_levels, torch.tensor([0.5, 0.1], dtype=torch.float64))
    # A discretised Gaussian made them: its variance is what is found, but for chance, of the order of sqrt(2 / N) = 1 %;
    # two levels tell less of it.
    assert torch.tensordot(fitted, features, dims=1).mean() == pytest.approx(
        sigma**2, rel=0.05 if num_pixel_levels > 2 else 0.2
    )

    def nll(log_variance):
        arguments = {"mean": x_hat, "log_variance": log_variance, "num_pixel_levels": num_pixel_levels}
        return -discretized_gaussian_log_likelihood(samples, **arguments).mean().item()

    best = nll(torch.tensordot(fitted, features, dims=1).log())
    assert best <= nll(torch.full_like(x_hat, 2 * math.log(sigma))) + 1e-6


def test_a_sure_decoder_leaves_room_for_a_mistake():
    samples = levels_to_samples(torch.arange(17, dtype=torch.int32).repeat(100), 17)
    fitted = fit_decoder(features_of(samples, None), samples, samples, 17, torch.tensor([0.1, 0.1], dtype=torch.float64))
    # Nothing was ever wrong. The next level is still five standard deviations away, not a thousand.
    assert fitted[0] == pytest.approx((0.2 / 16) ** 2, rel=1e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"offsets": -torch.ones(STEPS)}, "`offsets` must be finite and not negative"),
        ({"gains": torch.full((STEPS,), math.nan)}, "`gains` must be finite and not negative"),
        ({"learned_gains": torch.zeros(3)}, r"`learned_gains` must have the shape \(50,\), got \(3,\)"),
        ({"decoder_offsets": torch.zeros(STEPS)}, "`decoder_offsets` must be positive"),
    ],
)
def test_bad_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        ErrorModel(**(vars(model()) | change))


def test_an_error_model_is_of_all_steps():
    with pytest.raises(ValueError, match="`error_model` and `trained` must be of all 50 steps"):
        ReverseProcess(TRAINED, error_model=model())
    short = ForwardProcess.from_betas(np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="must be of all 2 steps"):
        ReverseProcess(short, error_model=model(), trained=short)
