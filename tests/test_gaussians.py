import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_vlb.gaussians import discretized_gaussian_log_likelihood, nats_to_bits_per_dim, normal_kl, normal_log_density
from ddpm_vlb.pixel_grid import levels_to_samples, samples_to_levels

finite = st.floats(-50, 50)
log_variances = st.floats(-30, 30)


@given(finite, log_variances, finite, log_variances)
def test_normal_kl_equals_torch_distributions_and_is_never_negative(mean1, log_variance1, mean2, log_variance2):
    arguments = [torch.tensor(v, dtype=torch.float64) for v in (mean1, log_variance1, mean2, log_variance2)]
    kl = normal_kl(*arguments)
    p = torch.distributions.Normal(arguments[0], (0.5 * arguments[1]).exp())
    q = torch.distributions.Normal(arguments[2], (0.5 * arguments[3]).exp())
    expected = torch.distributions.kl_divergence(p, q)
    assert kl >= 0
    # torch's sum of terms of size 1 + |log ratio| cancels: its own rounding, 1e-15 of that size, bounds the difference.
    assert torch.allclose(kl, expected, rtol=1e-12, atol=1e-14 * (2 + abs(log_variance1 - log_variance2)))


@given(finite, log_variances)
def test_normal_kl_is_zero_only_between_equals(mean, log_variance):
    x, v = torch.tensor(mean, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64)
    assert normal_kl(x, v, x, v) == 0
    assert normal_kl(x, v, x, v + 1e-4) > 0


def test_normal_kl_keeps_its_digits_between_nearly_equal_variances():
    for d in (1e-3, 1e-6):
        exact = (mpmath.expm1(d) - d) / 2
        assert float(normal_kl(0.0, d, 0.0, 0.0)) == pytest.approx(float(exact), rel=1e-8)


def exact_log_probability(level, mean, log_variance, num_pixel_levels):
    with mpmath.workdps(60):
        std, half = mpmath.exp(mpmath.mpf(log_variance) / 2), mpmath.mpf(1) / (num_pixel_levels - 1)
        x = mpmath.mpf(2 * level) / (num_pixel_levels - 1) - 1
        low = -mpmath.inf if level == 0 else (x - half - mean) / std
        high = mpmath.inf if level == num_pixel_levels - 1 else (x + half - mean) / std
        if low > 0:
            low, high = -high, -low
        outside = mpmath.erfc(-low / mpmath.sqrt(2)) / 2 + mpmath.erfc(high / mpmath.sqrt(2)) / 2
        if outside < 0.5:
            return mpmath.log1p(-outside)
        return mpmath.log(mpmath.erfc(-high / mpmath.sqrt(2)) / 2 - mpmath.erfc(-low / mpmath.sqrt(2)) / 2)


@pytest.mark.parametrize("num_pixel_levels", [2, 3, 17, 256, 65536])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_decoder_is_exact_out_to_40_sigma(num_pixel_levels, dtype, tolerance):
    for std in (1e-4, 1e-2, 0.3, 5.0):
        for z in (-40, -12, -2.5, -0.01, 0, 1, 8, 40):
            for level in {0, 1, num_pixel_levels // 2, num_pixel_levels - 1}:
                sample = levels_to_samples(torch.tensor(level), num_pixel_levels, dtype)
                mean = torch.tensor(2 * level / (num_pixel_levels - 1) - 1 + z * std, dtype=dtype, requires_grad=True)
                log_variance = torch.tensor(2 * math.log(std), dtype=dtype, requires_grad=True)
                got = discretized_gaussian_log_likelihood(
                    sample, mean=mean, log_variance=log_variance, num_pixel_levels=num_pixel_levels
                )
                expected = exact_log_probability(level, mean.item(), log_variance.item(), num_pixel_levels)
                if abs(expected) > 1e-30:  # below, log P is -0 in float32 and as good as certain in any dtype
                    assert abs((got.item() - expected) / expected) <= tolerance, (std, z, level)
                got.backward()
                assert torch.isfinite(mean.grad) and torch.isfinite(log_variance.grad)
                if abs(z) >= 8 and expected < -1:  # far in the tails, where clamped implementations go flat
                    assert mean.grad != 0 and log_variance.grad != 0, (std, z, level)


@pytest.mark.parametrize("num_pixel_levels", [2, 17, 256, 65536])
def test_decoder_bins_sum_to_one(num_pixel_levels):
    samples = levels_to_samples(torch.arange(num_pixel_levels), num_pixel_levels)
    for mean in (-1.6, -1.0, 0.1234, 0.999, 1 / (num_pixel_levels - 1)):
        for std in (1e-12, 1e-7, 1e-4, 1e-2, 0.7, 20.0):
            log_probability = discretized_gaussian_log_likelihood(
                samples,
                mean=torch.full_like(samples, mean),
                log_variance=2 * math.log(std),
                num_pixel_levels=num_pixel_levels,
            )
            assert abs(log_probability.exp().sum().item() - 1) <= 1e-12


def test_gradients_stay_right_far_beyond_the_tails():
    # Far outside its bin, -log P is quadratic: the slope is the distance to the bin's near edge over the variance.
    for log_variance in (-20.0, -40.0, -60.0):
        mean = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        sample = levels_to_samples(torch.tensor(100), 256)
        discretized_gaussian_log_likelihood(sample, mean=mean, log_variance=log_variance).backward()
        distance = 0.9 - sample.item() - 1 / 255
        assert mean.grad.item() == pytest.approx(-distance * math.exp(-log_variance), rel=1e-6)


def test_gradients_equal_finite_differences():
    samples = levels_to_samples(torch.tensor([0, 7, 8, 16]), 17)
    mean = torch.tensor([-0.8, 0.4, 0.01, 0.5], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([-3.0, -2.0, -5.0, 0.0], dtype=torch.float64, requires_grad=True)

    def log_likelihood(mean, log_variance):
        return discretized_gaussian_log_likelihood(samples, mean=mean, log_variance=log_variance, num_pixel_levels=17)

    assert torch.autograd.gradcheck(log_likelihood, (mean, log_variance))
    assert torch.autograd.gradgradcheck(log_likelihood, (mean, log_variance))


@given(st.integers(2, 65536), st.data())
def test_grid_round_trip_in_float32(num_pixel_levels, data):
    level = data.draw(st.integers(0, num_pixel_levels - 1))
    sample = levels_to_samples(torch.tensor([level]), num_pixel_levels).float()
    assert samples_to_levels(sample, num_pixel_levels).tolist() == [level]


def test_both_usual_ways_of_making_float_images_are_on_the_grid():
    k = torch.arange(256)
    assert samples_to_levels(k.float() / 127.5 - 1, 256).tolist() == k.tolist()
    assert samples_to_levels((k.float() / 255 - 0.5) / 0.5, 256).tolist() == k.tolist()


@pytest.mark.parametrize("value", [0.001, 1.01, -1.01, float("nan"), float("inf"), -float("inf")])
def test_values_off_the_grid_are_refused(value):
    with pytest.raises(ValueError, match=r"`samples` must (lie on the grid|be finite).*got"):
        discretized_gaussian_log_likelihood(torch.tensor([-1.0, value]), mean=torch.zeros(2), log_variance=torch.zeros(2))


@pytest.mark.parametrize("levels", [1, 0, -3, 65537, 2.5, True, "256"])
def test_bad_num_pixel_levels(levels):
    with pytest.raises(ValueError, match="`num_pixel_levels` must be an integer from 2 to 65536, got"):
        discretized_gaussian_log_likelihood(
            torch.zeros(1), mean=torch.zeros(1), log_variance=torch.zeros(1), num_pixel_levels=levels
        )


def test_integer_samples_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        discretized_gaussian_log_likelihood(torch.zeros(1, dtype=torch.uint8), mean=torch.zeros(1), log_variance=0.0)


def test_log_density_equals_torch_distributions():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    expected = torch.distributions.Normal(x.new_tensor(0.3), x.new_tensor(0.5).exp()).log_prob(x)
    assert torch.allclose(normal_log_density(x, 0.3, 1.0), expected, rtol=1e-13)


def test_uniform_decoding_costs_log2_levels():
    nats = torch.tensor([12 * math.log(256.0)], dtype=torch.float64)
    assert nats_to_bits_per_dim(nats, 12).item() == pytest.approx(8.0, rel=1e-15)
