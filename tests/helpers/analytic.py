r"""A model whose bound and likelihood are known: the optimal denoiser of x ~ N(m, s^2), pixels independent.

The denoiser is linear, x_hat = a_t x_t + b_t. Under q(x_t | x) the prediction is Gaussian, which gives every term of the bound
in closed form (the decoder by quadrature). The reverse chain is linear too, so that its marginal over images is a Gaussian,
integrated over the pixel's bin: the exact negative log-likelihood. Written from the equations, in numpy, with none of the
package's formulas.
"""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from scipy import integrate, stats


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """Predicts epsilon for the data N(m, s^2)."""

    @register_to_config
    def __init__(self, alphas_cumprod, m=0.2, s=0.5, sample_size=4, in_channels=1, out_channels=1):
        super().__init__()
        self.register_buffer("alphas_cumprod_", torch.tensor(alphas_cumprod, dtype=torch.float64))
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, sample, timestep):
        abar = self.alphas_cumprod_[timestep].reshape(-1, 1, 1, 1)
        m, s = self.config.m, self.config.s
        gain = s**2 * abar.sqrt() / (s**2 * abar + 1 - abar)
        x_hat = m + gain * (sample - abar.sqrt() * m)
        return SimpleNamespace(sample=(sample - abar.sqrt() * x_hat) / (1 - abar).sqrt())


def gaussian_bound_and_nll(x, betas, grid, m=0.2, s=0.5, levels=256):
    """[L_0, L_1, ...] in expectation, L_T and the exact NLL of one pixel x under `fixed_small`, in nats."""
    abar_all = np.cumprod(1 - np.asarray(betas, dtype=np.longdouble))
    abar = [float(abar_all[t]) for t in grid]
    previous = [1.0, *abar[:-1]]
    half = 1 / (levels - 1)

    def denoiser(a):
        gain = s**2 * np.sqrt(a) / (s**2 * a + 1 - a)
        return gain, m - gain * np.sqrt(a) * m

    beta = [1 - a / p for a, p in zip(abar, previous)]
    variance = [b * (1 - p) / (1 - a) for a, p, b in zip(abar, previous, beta)]
    decoder_variance = variance[1] if len(grid) > 1 else beta[0]

    def log_bin(mean, std):
        low = -np.inf if x <= -1 + half else (x - half - mean) / std
        high = np.inf if x >= 1 - half else (x + half - mean) / std
        if low > 0:
            low, high = -high, -low
        upper = stats.norm.logcdf(high)
        return upper + np.log(-np.expm1(stats.norm.logcdf(low) - upper))

    gain, offset = denoiser(abar[0])
    std_0 = np.sqrt(1 - abar[0])
    decoder, _ = integrate.quad(
        lambda e: -stats.norm.pdf(e) * log_bin(gain * (np.sqrt(abar[0]) * x + std_0 * e) + offset, np.sqrt(decoder_variance)),
        -8,
        8,
        limit=400,
        epsabs=1e-12,
    )
    terms = [decoder]
    for a, p in zip(abar[1:], previous[1:]):
        gain, offset = denoiser(a)
        bias = gain * np.sqrt(a) * x + offset - x
        error = bias**2 + gain**2 * (1 - a)
        terms.append(0.5 * (p / (1 - p) - a / (1 - a)) * error)
    prior = 0.5 * (abar[-1] * x**2 - abar[-1] - np.log(1 - abar[-1]))

    mean, var = 0.0, 1.0
    for i in reversed(range(1, len(grid))):
        a, p, b = abar[i], previous[i], beta[i]
        gain, offset = denoiser(a)
        coef1 = np.sqrt(p) * b / (1 - a)
        slope = coef1 * gain + np.sqrt(a / p) * (1 - p) / (1 - a)
        mean, var = slope * mean + coef1 * offset, slope**2 * var + variance[i]
    gain, offset = denoiser(abar[0])
    nll = -log_bin(gain * mean + offset, np.sqrt(gain**2 * var + decoder_variance))
    return np.array(terms), prior, nll
