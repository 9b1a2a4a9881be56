import math

import numpy as np
import pytest
import torch
from scipy import fft
from tiny import generator

from ddpm_vlb.forward_process import ForwardProcess
from ddpm_vlb.noise_schedules import make_betas
from ddpm_vlb.pixel_grid import levels_to_samples
from ddpm_vlb.sampled_bound.control_variates import ControlVariates, image_features

ZERO_SNR = make_betas("linear", 1000, rescale_betas_zero_snr=True)
# From almost no noise to nothing but noise: alphas_cumprod of 0.9999, 0.9, 0.08, 0.00001 and 0.
GRID = [999, 998, 500, 100, 0]
SHAPES = [(1, 8, 8), (3, 5, 7), (3, 1, 6), (1, 4, 1), (1, 1, 1), (2, 2, 3)]
NAMES = ("all", "between", "rough", "Wiener")


def images(count, shape, seed=0, levels=17):
    """Smooth pictures with some pixels at the extremes, no two pixels of one variance."""
    g = generator(seed)
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in shape[1:])
    phase = 6 * torch.rand(count, shape[0], 1, 1, generator=g)
    waves = torch.sin(rows[:, None] * 0.5 + phase) + torch.cos(columns * 0.9 - phase)
    noisy = waves + (0.3 + 0.1 * rows[:, None]) * torch.randn(count, *shape, generator=g, dtype=torch.float64)
    return levels_to_samples(((noisy.clamp(-1, 1) + 1) / 2 * (levels - 1)).round().to(torch.uint8), levels)


def controls(samples, grid=GRID, betas=ZERO_SNR):
    return ControlVariates(ForwardProcess.from_betas(betas, grid).alphas_cumprod, samples)


def features_of(controls, image, row, draws=20000, seed=1):
    noise = torch.randn(draws, *image.shape, generator=generator(seed))
    return controls.noise_features(image.expand(draws, *image.shape), noise, torch.full((draws,), row))


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_features_have_mean_zero_given_the_image(shape):
    samples = images(30, shape)
    constant = torch.full((1, *shape), 0.5, dtype=torch.float64)
    scores = []
    for image in (samples[0], samples[1], constant[0], -torch.ones(shape, dtype=torch.float64)):
        for row in range(len(GRID)):
            h = features_of(controls(samples), image, row, seed=len(scores))
            assert h.dtype == torch.float64 and h.shape == (20000, 4) and torch.isfinite(h).all()
            varies = h.std(dim=0) > 0
            assert (h[:, ~varies] == 0).all()
            scores += (h.mean(dim=0) / (h.std(dim=0) / len(h) ** 0.5))[varies].tolist()
    # 20 pairs of image and step, up to 4 features each: one of 80 standard normals is beyond 5 once in 20,000 runs. (That the
    # features are skewed, like a chi-square of one degree for a single pixel, moves the tail of a mean of 20,000 by little.)
    assert len(scores) >= 20 and max(map(abs, scores)) < 5


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_noise_features_have_variance_one_on_average(shape):
    # Exactly 1 over the images that gave the scales, up to the noise: the energies' scales are means of squares over images,
    # and the Wiener feature's is made of the variance of each coefficient over images.
    samples = images(50, shape)
    own = controls(samples)
    for row in range(len(GRID)):
        noise = torch.randn(200, *samples.shape, generator=generator(row))
        h = own.noise_features(samples.repeat(200, 1, 1, 1), noise.flatten(0, 1), torch.full((10000,), row))
        # Five standard errors of the mean square; per-image means are zero, so that the mean square is the mean variance.
        squares = h.square()
        error = 5 * squares.std(dim=0) / len(squares) ** 0.5
        expected = torch.tensor([1.0, 1.0, 1.0, 0.0 if GRID[::-1][row] == 999 else 1.0], dtype=torch.float64)
        assert ((squares.mean(dim=0) - expected).abs() <= error).all(), (row, squares.mean(dim=0))
    # And for images of the kind that were not among them, near 1.
    variances = torch.stack([features_of(own, image, 2, draws=2000).var(dim=0) for image in images(20, shape, seed=9)])
    assert (variances.mean(dim=0) > 0.5).all() and (variances.mean(dim=0) < 2).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cosine_transform_is_scipys_and_orthonormal(shape):
    own = controls(images(3, shape))
    values = torch.randn(4, *shape, generator=generator(), dtype=torch.float64)
    got = own._transform(values).numpy()
    assert np.allclose(got, fft.dctn(values.numpy(), axes=(1, 2, 3), norm="ortho"), rtol=0, atol=1e-13)
    for basis, size in zip(own._transforms, shape):
        assert torch.allclose(basis @ basis.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-14)
    assert np.allclose((got**2).sum((1, 2, 3)), values.square().sum((1, 2, 3)).numpy())


def wiener_error(x, noise, alpha_bar, data):
    """Squared error of the best denoiser that is diagonal in the cosine basis, and its mean over the noise; plain numpy."""
    dct = lambda values: fft.dctn(values, axes=(-3, -2, -1), norm="ortho")  # noqa: E731
    z_data = dct(data)
    mu, power = z_data.mean(0), z_data.var(0)
    z = dct(x)
    z_t = dct(np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * noise)
    # Of the coefficient given its noisy version, both Gaussian: the regression line.
    slope = np.sqrt(alpha_bar) * power / (alpha_bar * power + 1 - alpha_bar)
    guess = mu + slope * (z_t - np.sqrt(alpha_bar) * mu)
    bias = mu + slope * np.sqrt(alpha_bar) * (z - mu) - z  # of the guess, on average over the noise
    return ((guess - z) ** 2).sum((-3, -2, -1)), (bias**2 + slope**2 * (1 - alpha_bar)).sum((-3, -2, -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_wiener_feature_is_the_error_of_the_best_linear_denoiser(shape):
    data = images(40, shape)
    own = controls(data)
    x, noise = images(6, shape, seed=3), torch.randn(6, *shape, generator=generator(4), dtype=torch.float64)
    alphas = np.cumprod(1 - ZERO_SNR.numpy())[GRID[::-1]]
    assert alphas[-1] == 0 and alphas[0] > 0.9998
    for row, alpha_bar in enumerate(alphas[:-1]):
        total, mean = wiener_error(x.numpy(), noise.numpy(), alpha_bar, data.numpy())
        got = own.noise_features(x, noise, torch.full((6,), row))[:, 3].numpy()
        # Proportional, with one constant for all images: their variance over noise and data, taken as independent Gaussians.
        z = fft.dctn(data.numpy(), axes=(1, 2, 3), norm="ortho")
        power = z.var(0)
        slope = np.sqrt(alpha_bar) * power / (alpha_bar * power + 1 - alpha_bar)
        spread, rest = slope**2 * (1 - alpha_bar), 1 - np.sqrt(alpha_bar) * slope
        scale = np.sqrt((2 * spread**2 + 4 * rest**2 * spread * power).sum())
        # `total - mean` cancels: 1e-16 of the squared norm of an image, against a scale of its own size but for the last step.
        assert np.allclose(got * scale, total - mean, rtol=1e-9, atol=1e-12), row
    assert (own.noise_features(x, noise, torch.full((6,), 4))[:, 3] == 0).all()


def test_no_other_gain_leaves_less_error():
    data = images(400, (1, 4, 4)).numpy()
    z = fft.dctn(data, axes=(1, 2, 3), norm="ortho")
    power = z.var(0)
    for alpha_bar in (0.99, 0.5, 0.02):
        slope = np.sqrt(alpha_bar) * power / (alpha_bar * power + 1 - alpha_bar)

        def error(factor, a=alpha_bar, slope=slope):
            return ((1 - np.sqrt(a) * factor * slope) ** 2 * power + (factor * slope) ** 2 * (1 - a)).sum()

        assert error(1.0) < min(error(0.99), error(1.01))
        assert wiener_error(data, np.zeros_like(data), alpha_bar, data)[1].mean() == pytest.approx(error(1.0), rel=1e-9)


def test_energies_are_weighted_sums_of_squares():
    samples = images(10, (3, 5, 7))
    noise = torch.randn(10, 3, 5, 7, generator=generator(2))
    got = controls(samples).noise_features(samples, noise, torch.zeros(10, dtype=torch.int64)).numpy()
    x, energy = samples.numpy(), noise.numpy().astype(np.float64) ** 2 - 1
    for column, weights in enumerate((np.ones_like(x), (abs(x) < 1).astype(float), roughness(x))):
        raw = (weights * energy).sum((1, 2, 3))
        assert np.allclose(got[:, column], raw / math.sqrt(2 * (weights**2).sum((1, 2, 3)).mean())), NAMES[column]


def roughness(x):
    """Of each pixel, the absolute differences to its neighbours up, down, left and right, one at a time."""
    out = np.zeros_like(x)
    height, width = x.shape[2:]
    for i in range(height):
        for j in range(width):
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if 0 <= a < height and 0 <= b < width:
                    out[:, :, i, j] += abs(x[:, :, i, j] - x[:, :, a, b])
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_image_features(shape):
    samples = images(9, shape)
    x = samples.numpy()
    features = image_features(samples)
    assert features.dtype == torch.float64 and features.shape == (9, 4)
    mean = lambda values: values.mean((1, 2, 3))  # noqa: E731
    expected = np.stack([np.ones(9), mean((abs(x) < 1).astype(float)), mean(roughness(x)), mean(x)], axis=1)
    assert np.allclose(features.numpy(), expected, rtol=0, atol=1e-13)
    assert torch.allclose(image_features(samples.float()), features, atol=1e-6)


def test_pixels_at_the_extremes_are_told_apart_on_every_grid():
    # -1 and 1 are met exactly by the lowest and highest level, whatever the number of levels; no other level is.
    for levels in (2, 17, 256, 65536):
        samples = levels_to_samples(torch.arange(levels).reshape(1, 1, 1, levels), levels)
        assert image_features(samples)[0, 1].item() == pytest.approx((levels - 2) / levels, abs=1e-12)


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_images_that_are_all_alike_give_finite_features(value):
    samples = torch.full((5, 1, 4, 4), value, dtype=torch.float64)
    own = controls(samples)
    for row in range(len(GRID)):
        h = features_of(own, samples[0], row, draws=50)
        # No spread over the data, hence no Wiener filter; no rough pixels; none between the extremes where all are black.
        assert torch.isfinite(h).all() and (h[:, 2:] == 0).all() and (h[:, 0] != 0).all()
        assert ((h[:, 1] == 0) == (value == -1)).all()
        # Images of another kind than those are finite all the same.
        assert torch.isfinite(features_of(own, images(1, (1, 4, 4))[0], row, draws=50)).all()


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_finite_at_every_step(schedule):
    samples = images(8, (1, 3, 3))
    betas = make_betas(schedule, 1000)
    rows = torch.arange(1000)
    own = controls(samples, None, betas)
    h = own.noise_features(samples[:1].expand(1000, -1, -1, -1), torch.randn(1000, 1, 3, 3, generator=generator()), rows)
    assert torch.isfinite(h).all() and (h[:, 3].abs() > 0).all() and h.abs().max() < 30


def test_rows_belong_to_the_grid_and_examples_to_themselves():
    samples = images(6, (1, 4, 4))
    noise = torch.randn(6, 1, 4, 4, generator=generator())
    rows = torch.tensor([0, 1, 2, 3, 4, 2])
    whole = controls(samples).noise_features(samples, noise, rows)
    full = controls(samples, None)
    timesteps = torch.tensor(GRID[::-1])[rows]
    assert torch.allclose(full.noise_features(samples, noise, timesteps), whole, rtol=1e-12)
    for i in range(6):
        one = controls(samples).noise_features(samples[i : i + 1], noise[i : i + 1], rows[i : i + 1])
        assert torch.allclose(one, whole[i : i + 1], rtol=1e-12, atol=1e-14)
