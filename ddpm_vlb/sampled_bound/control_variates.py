r"""Cheap functions of an image and of its noise that go with the terms of the bound, and whose mean is known.

A term :math:`\ell_t(x, \epsilon)` costs a network evaluation. What it has in common with a function
:math:`m_t(x, \epsilon) = \phi(x)^\top b_t + h_t(x, \epsilon)^\top c_t` of known mean need not be estimated:

.. math:: E[\ell_t] = E[m_t] + E[\ell_t - m_t], \qquad E[m_t] = \bar\phi^\top b_t ,

and only the second part, of less variance, is left to chance. (Survey sampling calls it the difference estimator.) With b and
c fixed beforehand the estimate is unbiased whatever they are.

- :math:`\phi(x)`, of each image: how much of it lies between black and white, how rough it is, how bright. Their mean over
  the data set is a sum over its images. An image's bits go with its edges.
- :math:`h_t(x, \epsilon)`, of mean zero given x. While the noise is faint, the network's error is the noise that it could not
  tell from the image: the energy :math:`\sum_d w_d (\epsilon_d^2 - 1)`, over all pixels, over those between the extremes
  (at the extremes it knows the answer) and over the rough ones. When the noise is strong, it is the error of the best linear
  denoiser, the Wiener filter: diagonal in the basis of the discrete cosine transform, with gain
  :math:`G_k = \sqrt{\bar\alpha_t} S_k / (\bar\alpha_t S_k + 1 - \bar\alpha_t)` for a coefficient
  :math:`z_k` of mean :math:`\mu_k` and variance :math:`S_k` over the data,

  .. math:: \hat z_k - z_k = G_k \sqrt{1 - \bar\alpha_t}\, e_k - r_k, \qquad r_k = (1 - \sqrt{\bar\alpha_t} G_k)(z_k - \mu_k),

  whose square has the mean :math:`r_k^2 + G_k^2 (1 - \bar\alpha_t)` over the noise :math:`e`.

Each is divided by a constant of t that brings its standard deviation near 1.
"""

import math
from collections.abc import Iterable, Iterator

import torch

from ..checks import working_dtype
from ..noise import to_device

VALUES_AT_ONCE = 2**22  # numbers at a time


class ControlVariates:
    r"""The functions :math:`h_t` for images that resemble some given ones.

    Args:
        alphas_cumprod: signal levels :math:`\bar\alpha_t` of the steps that are scored, `(K,)`.
        samples: images from which the spectrum and the scales are taken, `(M, C, H, W)`, in [-1, 1], some at a time. Everything
            is computed where they are, and nothing waits for it.
    """

    def __init__(self, alphas_cumprod: torch.Tensor, samples: torch.Tensor | Iterable[torch.Tensor]):
        count, nothing = 0, torch.zeros(())
        means = squares = weights = nothing
        for part in in_parts(samples) if isinstance(samples, torch.Tensor) else samples:
            part = part.to(working_dtype(part.device))
            if not count:
                means = squares = weights = nothing.to(part)
                self._transforms = [_cosine_transform(size).to(part) for size in part.shape[1:]]
            spectrum = self._transform(part)
            # The mean, and the sum of squares about it (Chan's formula).
            variance, mean = torch.var_mean(spectrum, dim=0, correction=0)
            gap, both = mean - means, count + len(part)
            squares = squares + len(part) * variance + gap.square() * (count * len(part) / both)
            means, count = means + gap * (len(part) / both), both
            weights = weights + torch.stack([w.square().sum() for w in _weights(part)])
        self._mean, self._variance = means, squares / count
        # For the energies; the variance of the sum of w (e^2 - 1) is 2 times the sum of w^2.
        self._factors = _reciprocals((2 * weights / count).sqrt())
        self._tables = self._of_rows(alphas_cumprod.detach().to(self._mean))

    def _of_rows(self, alphas_cumprod: torch.Tensor) -> torch.Tensor:
        r"""What the Wiener feature needs of each row, `(K, 5)`: :math:`\bar\alpha, 1 - \bar\alpha,
        \sqrt{\bar\alpha (1 - \bar\alpha)}`, the mean of its first sum, and 1 over its standard deviation."""
        means, deviations = [], []
        for alpha_bar in alphas_cumprod.split(max(1, VALUES_AT_ONCE // self._mean.numel())):
            alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
            inverse = (alpha_bar * self._variance).add_(1 - alpha_bar).reciprocal_()
            spread = (alpha_bar * (1 - alpha_bar)).sqrt() * self._variance * inverse
            rest = inverse.mul_(1 - alpha_bar)
            variance = 2 * spread**4 + 4 * (rest * spread).square() * self._variance
            means.append(spread.square().flatten(1).sum(dim=1))
            deviations.append(variance.flatten(1).sum(dim=1).sqrt())
        noise = 1 - alphas_cumprod
        columns = (
            alphas_cumprod,
            noise,
            (alphas_cumprod * noise).sqrt(),
            torch.cat(means),
            _reciprocals(torch.cat(deviations)),
        )
        return torch.stack(columns, dim=1)

    def noise_features(self, samples: torch.Tensor, noise: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        r""":math:`h_t(x, \epsilon)`, of mean zero over the noise.

        Args:
            samples, noise: images and standard normal noise, `(B, C, H, W)`, where the images are that it was made from.
            rows: steps of each, indices into `alphas_cumprod`, `(B,)`.

        Returns:
            In the working dtype, float64, `(B, 4)`, on the device.
        """
        both = torch.empty(2, *samples.shape, dtype=self._mean.dtype, device=samples.device)
        both[0].copy_(samples)
        both[1].copy_(noise)
        x, e = both.unbind()
        columns = [column.mul_(factor) for column, factor in zip(_energies(x, e), self._factors.unbind())]
        z, z_noise = self._transform(both.flatten(0, 1)).chunk(2)
        columns.append(self._wiener(z, z_noise, rows))
        return torch.stack(columns, dim=1)

    def _wiener(self, z: torch.Tensor, e: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        r"""The last feature, `(B,)`, from the transforms of images and noise, which are overwritten.

        With :math:`q = \bar\alpha S + 1 - \bar\alpha` it is :math:`y = \sqrt{\bar\alpha (1 - \bar\alpha)}\, (S / q)\, e` that
        the noise adds, and :math:`r = (1 - \bar\alpha) (z - \mu) / q`; the sum of :math:`y^2 - 2 r y`, less its mean.
        """
        numbers = self._tables.index_select(0, to_device(rows, e.device)).reshape(-1, 5, 1, 1, 1)
        alpha_bar, noise, root, mean, factor = numbers.unbind(dim=1)
        inverse = (alpha_bar * self._variance).add_(noise).reciprocal_()
        y = e.mul_(inverse).mul_(self._variance).mul_(root)
        error = z.sub_(self._mean).mul_(inverse).mul_(-2.0 * noise).add_(y).mul_(y)
        return error.flatten(1).sum(dim=1).sub_(mean.flatten()).mul_(factor.flatten())

    def _transform(self, values: torch.Tensor) -> torch.Tensor:
        # Along columns, rows and channels; of colours, the first coefficient is the brightness.
        of_channels, of_rows, of_columns = self._transforms
        values = torch.matmul(of_rows, torch.matmul(values, of_columns.T))
        return torch.matmul(of_channels, values.flatten(2)).reshape(values.shape)


def image_features(samples: torch.Tensor) -> torch.Tensor:
    r""":math:`\phi(x)` of images `(B, C, H, W)` in [-1, 1]: in the working dtype, float64, `(B, 4)`, the first a constant 1."""
    samples = samples.to(working_dtype(samples.device))
    _, between, rough = _weights(samples)
    columns = [values.flatten(1).mean(dim=1) for values in (between, rough, samples)]
    return torch.stack([torch.ones_like(columns[0]), *columns], dim=1)


def in_parts(samples: torch.Tensor) -> Iterator[torch.Tensor]:
    r"""Images `(N, C, H, W)`, as many at a time as do not fill the memory."""
    return iter(samples.split(max(1, VALUES_AT_ONCE // samples[0].numel())))


def _energies(samples: torch.Tensor, noise: torch.Tensor) -> list[torch.Tensor]:
    r""":math:`\sum_d w_d (\epsilon_d^2 - 1)` for each of `_weights`, `(B,)` each."""
    energy = (noise * noise).sub_(1.0)
    between = (samples.abs() < 1).to(energy.dtype).mul_(energy)
    rough = torch.zeros_like(energy[:, 0, 0, 0])
    for dim, steps in _steps(samples):
        # Of two neighbours both.
        size = energy.shape[dim]
        pairs = energy.narrow(dim, 1, size - 1) + energy.narrow(dim, 0, size - 1)
        rough = rough.add_(pairs.mul_(steps).flatten(1).sum(dim=1))
    return [energy.flatten(1).sum(dim=1), between.flatten(1).sum(dim=1), rough]


def _steps(samples: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    r"""How far neighbours along rows and along columns are from each other, and the dimension."""
    for dim in (2, 3):
        size = samples.shape[dim]
        yield dim, (samples.narrow(dim, 1, size - 1) - samples.narrow(dim, 0, size - 1)).abs_()


def _weights(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Weights of the pixels, `(B, C, H, W)` each: all, those between the extremes, and the rough ones by how rough."""
    rough = torch.zeros_like(samples)
    for dim, steps in _steps(samples):
        size = samples.shape[dim]
        rough.narrow(dim, 1, size - 1).add_(steps)
        rough.narrow(dim, 0, size - 1).add_(steps)
    return torch.ones_like(samples), (samples.abs() < 1).to(samples.dtype), rough


def _reciprocals(scales: torch.Tensor) -> torch.Tensor:
    r"""1 over each, and 0 of nothing."""
    return torch.where(scales > 0, scales.clamp(min=1e-150 if scales.dtype == torch.float64 else 1e-30).reciprocal(), 0.0)


def _cosine_transform(size: int) -> torch.Tensor:
    r"""The orthonormal discrete cosine transform (type II) of `size` numbers, `(size, size)`."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
