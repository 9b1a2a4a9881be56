r"""Closed forms of Gaussians, the only distributions a DDPM is made of.

**Kullback-Leibler divergence.** With :math:`d = \log\sigma_1^2 - \log\sigma_2^2`,

.. math::
    D_{KL}(N(\mu_1, \sigma_1^2) \,\|\, N(\mu_2, \sigma_2^2))
        = \tfrac12 \left[ (e^d - 1 - d) + (\mu_1 - \mu_2)^2 e^{-\log\sigma_2^2} \right].

Written with ``expm1`` the first bracket keeps its digits where the two variances nearly agree; neither is negative.

**Discretised Gaussian** (Section 3.3, Ho et al. 2020). The data lie on the grid :math:`x_k = 2k/(n-1) - 1`,
:math:`k = 0, \dots, n-1`, whose bins have the half width :math:`h = 1/(n-1)`; the two end bins are open:

.. math::
    P(x_k) = \Phi\left(\frac{x_k + h - \mu}{\sigma}\right) - \Phi\left(\frac{x_k - h - \mu}{\sigma}\right).

A difference of two numbers close to 1 has no digits left, so the bin is first mirrored into the lower tail, where
:math:`\Phi` is small and :math:`\log\Phi` is exact. With :math:`a > b` its two edges there, in standard deviations,

.. math:: \log P = \log\Phi(a) + \log\left(1 - e^{-(\log\Phi(a) - \log\Phi(b))}\right).

There is no floor and no approximation of :math:`\Phi`: the value and its gradient are exact far beyond 40 standard
deviations, and the n bins sum to 1. (Towards the other end digits go with the width of a bin in standard deviations: 1e-9 of
the value remain at :math:`h/\sigma = 10^{-8}`.)
"""

import math
from typing import NamedTuple

import torch

from .checks import working_dtype
from .pixel_grid import check_num_pixel_levels, levels_to_samples, nearest_levels, samples_to_levels  # noqa: F401

LN_2 = math.log(2.0)


class Gaussian(NamedTuple):
    r"""A diagonal Gaussian; the three tensors share one shape, the variance may be an expanded view."""

    mean: torch.Tensor
    variance: torch.Tensor
    log_variance: torch.Tensor


def normal_kl(mean1, log_variance1, mean2, log_variance2) -> torch.Tensor:
    r"""KL divergence :math:`D_{KL}(N(\mu_1, \sigma_1^2) \| N(\mu_2, \sigma_2^2))`, elementwise.

    Args:
        mean1, log_variance1, mean2, log_variance2: tensors or floats of broadcastable shapes. Half-precision tensors are
            brought to float32 first.

    Returns:
        KL in nats, of the broadcast shape; 0 where the two Gaussians agree, never negative.
    """
    first = [x for x in (mean1, log_variance1, mean2, log_variance2) if isinstance(x, torch.Tensor)]
    device = first[0].device if first else None
    dtype = torch.float32
    for x in first:
        dtype = torch.promote_types(dtype, x.dtype)
    if not first:
        dtype = torch.float64
    mean1, log_variance1, mean2, log_variance2 = (
        torch.as_tensor(x, dtype=dtype, device=device) for x in (mean1, log_variance1, mean2, log_variance2)
    )
    difference = log_variance1 - log_variance2
    return 0.5 * (variance_gap(difference) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def normal_log_density(x: torch.Tensor, mean, log_variance) -> torch.Tensor:
    r"""Log-density :math:`\log N(x; \mu, \sigma^2) = -\tfrac12 [\log 2\pi\sigma^2 + (x - \mu)^2/\sigma^2]`, elementwise.

    Args:
        x, mean, log_variance: tensors, or floats for the last two, of broadcastable shapes.

    Returns:
        Log-density in nats.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    for parameter in (mean, log_variance):
        if isinstance(parameter, torch.Tensor):
            dtype = torch.promote_types(dtype, parameter.dtype)
    x, mean, log_variance = (torch.as_tensor(value, dtype=dtype, device=x.device) for value in (x, mean, log_variance))
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean) ** 2 * torch.exp(-log_variance))


def variance_gap(log_ratio: torch.Tensor) -> torch.Tensor:
    r""":math:`e^d - 1 - d \ge 0`, twice the KL of two Gaussians of equal mean whose log-variances differ by `d`."""
    # The clamp only ever removes a last-place rounding error: the exact value is never negative.
    return (torch.expm1(log_ratio) - log_ratio).clamp_min(0)


def discretized_gaussian_log_likelihood(
    samples: torch.Tensor,
    *,
    mean: torch.Tensor | float,
    log_variance: torch.Tensor | float,
    num_pixel_levels: int = 256,
    validate_args: bool = True,
) -> torch.Tensor:
    r"""Log-probability that a Gaussian, integrated over the bins of the pixel grid, gives to `samples`.

    Exact out to the farthest tails (see the derivation at the head of this module); the arithmetic is float64 whatever
    the dtype of the arguments.

    Args:
        samples: float tensor on the grid :math:`2k/(n-1) - 1`.
        mean, log_variance: parameters of the Gaussian, tensors or floats, broadcastable with `samples`.
        num_pixel_levels: number of levels n of the grid, from 2 to 65536.
        validate_args: check that `samples` lie on the grid; this reads them back from an accelerator. Without the check
            they are taken to their nearest level.

    Returns:
        Log-probabilities in nats, elementwise, in the widest dtype of the three tensors.

    Raises:
        ValueError: `samples` off the grid or not floating-point, `num_pixel_levels` out of range.
    """
    check_num_pixel_levels(num_pixel_levels)
    if not samples.is_floating_point():
        raise ValueError(f"`samples` must be floating-point values on the pixel grid, got dtype {samples.dtype}.")
    output_dtype = samples.dtype
    for parameter in (mean, log_variance):
        if isinstance(parameter, torch.Tensor):
            output_dtype = torch.promote_types(output_dtype, parameter.dtype)
    dtype = working_dtype(samples.device)
    levels = samples_to_levels(samples, num_pixel_levels) if validate_args else nearest_levels(samples, num_pixel_levels)
    levels = levels.to(dtype)
    mean, log_variance = (torch.as_tensor(x, dtype=dtype, device=samples.device) for x in (mean, log_variance))
    inverse_std = torch.exp(-0.5 * log_variance)

    # Edges from the integer level, so that neighbouring bins have one number in common and nothing falls between them.
    lower = ((2 * levels - num_pixel_levels) / (num_pixel_levels - 1) - mean) * inverse_std
    upper = ((2 * levels + 2 - num_pixel_levels) / (num_pixel_levels - 1) - mean) * inverse_std
    # The open end bins: everything below the lowest bin's upper edge, everything above the highest bin's lower edge.
    lowest, highest = _log_ndtr(upper), _log_ndtr(-lower)
    mirrored = lower + upper > 0
    log_cdf_near = torch.where(mirrored, highest, lowest)
    log_cdf_far = _log_ndtr(torch.where(mirrored, -upper, lower))
    inner = log_cdf_near + _log1mexp(log_cdf_near - log_cdf_far)
    log_probability = torch.where(levels <= 0, lowest, torch.where(levels >= num_pixel_levels - 1, highest, inner))
    return log_probability.to(output_dtype)


class _LogNdtr(torch.autograd.Function):
    r""":math:`\log\Phi` with a derivative that stays right in the tail, where torch's own has no digits left by 1e6 sigma."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.special.log_ndtr(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        # phi(x) / Phi(x) = sqrt(2 / pi) / erfcx(-x / sqrt(2))
        return grad_output * math.sqrt(2 / math.pi) / torch.special.erfcx(-x / math.sqrt(2))


_log_ndtr = _LogNdtr.apply


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    r""":math:`\log(1 - e^{-x})` for x > 0, exact at both ends (Maechler 2012), with gradients that stay finite."""
    small = x < LN_2
    # Each branch sees only arguments of its own, so that no infinite derivative is multiplied by the mask's zero.
    below = torch.log(-torch.expm1(-torch.where(small, x, LN_2)))
    above = torch.log1p(-torch.exp(-torch.where(small, LN_2, x)))
    return torch.where(small, below, above)


def nats_to_bits_per_dim(nats: torch.Tensor, num_dimensions: int) -> torch.Tensor:
    r"""Bits per dimension of `nats` per image: :math:`\mathrm{nats} / (D \ln 2)` with :math:`D = C H W`.

    The one place where units are converted. Any shape.
    """
    return nats / (num_dimensions * LN_2)
