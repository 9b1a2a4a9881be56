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

import torch


class ControlVariates:
    r"""The functions :math:`h_t` for images that resemble some given ones.

    Args:
        alphas_cumprod: signal levels :math:`\bar\alpha_t` of the steps that are scored, `(K,)`.
        samples: images from which the spectrum and the scales are taken, `(M, C, H, W)`, in [-1, 1].
    """

    def __init__(self, alphas_cumprod: torch.Tensor, samples: torch.Tensor):
        samples = samples.double().cpu()
        self._alphas_cumprod = alphas_cumprod.detach().double().cpu()
        self._transforms = [_cosine_transform(size) for size in samples.shape[1:]]
        spectrum = self._transform(samples)
        self._mean = spectrum.mean(dim=0)
        self._variance = spectrum.var(dim=0, unbiased=False)
        # For the energies; the variance of the sum of w (e^2 - 1) is 2 times the sum of w^2.
        self._scales = torch.stack([(2 * w.square().flatten(1).sum(dim=1).mean()).sqrt() for w in _weights(samples)])

    def noise_features(self, samples: torch.Tensor, noise: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        r""":math:`h_t(x, \epsilon)`, of mean zero over the noise.

        Args:
            samples, noise: images and standard normal noise, `(B, C, H, W)`.
            rows: steps of each, indices into `alphas_cumprod`, `(B,)`.

        Returns:
            float64, `(B, 4)`.
        """
        samples, noise = samples.double().cpu(), noise.double().cpu()
        energy = noise.square() - 1
        columns = [
            (w * energy).flatten(1).sum(dim=1) / scale if scale > 0 else torch.zeros(len(samples), dtype=torch.float64)
            for w, scale in zip(_weights(samples), self._scales)
        ]
        alpha_bar = self._alphas_cumprod[rows].reshape(-1, 1, 1, 1)
        gain = alpha_bar.sqrt() * self._variance / (alpha_bar * self._variance + 1 - alpha_bar)
        spread = gain * (1 - alpha_bar).sqrt()
        rest = 1 - alpha_bar.sqrt() * gain
        e = self._transform(noise)
        bias = rest * (self._transform(samples) - self._mean)
        error = (spread.square() * (e.square() - 1) - 2 * bias * spread * e).flatten(1).sum(dim=1)
        variance = (2 * spread**4 + 4 * (rest * spread).square() * self._variance).flatten(1).sum(dim=1)
        columns.append(torch.where(variance > 0, error / variance.sqrt().clamp(min=1e-150), 0.0))
        return torch.stack(columns, dim=1)

    def _transform(self, values: torch.Tensor) -> torch.Tensor:
        # Along channels, rows and columns; of colours, the first coefficient is the brightness.
        return torch.einsum("bchw,ic,jh,kw->bijk", values, *self._transforms)


def image_features(samples: torch.Tensor) -> torch.Tensor:
    r""":math:`\phi(x)` of images `(B, C, H, W)` in [-1, 1]: float64, `(B, 4)`, the first a constant 1."""
    samples = samples.double().cpu()
    _, between, rough = _weights(samples)
    columns = [torch.ones(len(samples), dtype=torch.float64)]
    columns += [values.flatten(1).mean(dim=1) for values in (between, rough, samples)]
    return torch.stack(columns, dim=1)


def _weights(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Weights of the pixels, `(B, C, H, W)` each: all, those between the extremes, and the rough ones by how rough."""
    rough = torch.zeros_like(samples)
    for dim in (2, 3):
        steps = samples.diff(dim=dim).abs()
        size = samples.shape[dim]
        rough.narrow(dim, 1, size - 1).add_(steps)
        rough.narrow(dim, 0, size - 1).add_(steps)
    return torch.ones_like(samples), (samples.abs() < 1).to(samples.dtype), rough


def _cosine_transform(size: int) -> torch.Tensor:
    r"""The orthonormal discrete cosine transform (type II) of `size` numbers, `(size, size)`."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
