r"""Losses whose sums are known and hard to estimate, with the rules of a run."""

import numpy as np
import torch
from scipy.special import ndtri

from ddpm_vlb.noise import mix_array, uniform_array
from ddpm_vlb.sampled_bound.estimate import estimate_bound


class HardWorld:
    r"""Losses that are a number of the image times a number of the row times noise of mean 1; no feature tells of any.

    Args:
        of_images: `(N,)`.
        of_rows: `(K,)`; by default they fall like 1 / t.
        sigma: of the noise, which is lognormal, or, with `normal`, normal.
    """

    def __init__(self, of_images, of_rows, sigma, normal=False):
        self.of_images, self.of_rows = np.broadcast_to(of_images, np.shape(of_images)), np.asarray(of_rows, dtype=float)
        self.sigma, self.normal = sigma, normal
        count = len(self.of_images)
        self.prior = torch.full((count,), 0.001, dtype=torch.float64)
        self.features = torch.tensor(np.stack([np.ones(count), np.random.default_rng(0).normal(size=count)], axis=1))
        self.bounds = self.of_images * self.of_rows.sum() + 0.001

    def __call__(self, draws, preview):
        z, u = (ndtri(uniform_array(mix_array(draws.keys, j)) + 2.0**-54) for j in range(2))
        noise = 1 + self.sigma * z if self.normal else np.exp(self.sigma * z - self.sigma**2 / 2)
        values = self.of_images[draws.images] * self.of_rows[draws.rows] * noise
        return torch.as_tensor(values), torch.as_tensor(np.stack([z, u], axis=-1))

    @torch.inference_mode()
    def estimate(self, seed, **rules):
        return estimate_bound(self, len(self.of_rows), self.prior, self.features, seed=seed, **rules)


def _rows(steps, at=None, share=0.0):
    r"""1 / t, with a spike that has a share of the whole."""
    rows = 1 / (1 + np.arange(float(steps)))
    if at is not None:
        rows[at] = share / (1 - share) * (rows.sum() - rows[at])
    return rows


def _hard(count, some, share):
    r"""Images of which some, alike, have a share of the whole."""
    images = np.ones(count)
    images[:some] = share / (1 - share) * (count - some) / some
    return images


def _to(target):
    return {"target_se": target, "max_evaluations": 100_000}


def _within(evaluations):
    return {"max_evaluations": evaluations}


# The target is relative to the truth.
WORLDS = {
    "normal noise, N = 2000, to 1 %": (lambda: HardWorld(np.ones(2000), _rows(100), 0.5, normal=True), _to(0.01)),
    "lognormal 0.5, N = 100,000, to 1 %": (lambda: HardWorld(np.ones(100_000), _rows(100), 0.5), _to(0.01)),
    "lognormal 0.6, N = 2000, to 2 %": (lambda: HardWorld(np.ones(2000), _rows(100), 0.6), _to(0.02)),
    "lognormal 1, N = 2000, to 2 %": (lambda: HardWorld(np.ones(2000), _rows(100), 1.0), _to(0.02)),
    "lognormal 1, N = 2000, 1500 evaluations": (lambda: HardWorld(np.ones(2000), _rows(100), 1.0), _within(1500)),
    "lognormal 1, N = 2000, 100 evaluations": (lambda: HardWorld(np.ones(2000), _rows(100), 1.0), _within(100)),
    "lognormal 2, N = 300, to 5 %": (lambda: HardWorld(np.ones(300), _rows(50), 2.0), _to(0.05)),
    "a tenth of 100 images ten times as hard, to 3 %": (lambda: HardWorld(_hard(100, 10, 10 / 19), _rows(100), 0.5), _to(0.03)),
    "10 of 1000 images carry 90 %, to 5 %": (lambda: HardWorld(_hard(1000, 10, 0.9), _rows(1000), 0.5), _to(0.05)),
    "1 of 1000 images carries half, to 5 %": (lambda: HardWorld(_hard(1000, 1, 0.5), _rows(1000), 0.5), _to(0.05)),
    "50 of 10,000 images carry 90 %, to 5 %": (lambda: HardWorld(_hard(10_000, 50, 0.9), _rows(1000), 0.5), _to(0.05)),
    "10 of 10,000 images carry half, to 5 %": (lambda: HardWorld(_hard(10_000, 10, 0.5), _rows(1000), 0.5), _to(0.05)),
    "a spike at t = 500 with a tenth, 3000 evaluations": (
        lambda: HardWorld(np.ones(1000), _rows(1000, 500, 0.1), 0.5),
        _within(3000),
    ),
    "a spike at t = 500 with half, 3000 evaluations": (
        lambda: HardWorld(np.ones(1000), _rows(1000, 500, 0.5), 0.5),
        _within(3000),
    ),
    "a spike at t = 999 with half, 3000 evaluations": (
        lambda: HardWorld(np.ones(1000), _rows(1000, 999, 0.5), 0.5),
        _within(3000),
    ),
    "1 image, K = 50, to 5 %": (lambda: HardWorld(np.ones(1), _rows(50), 0.8), _to(0.05)),
    "2 images, K = 50, to 5 %": (lambda: HardWorld(np.array([0.8, 1.2]), _rows(50), 0.5), _to(0.05)),
    "5 images, K = 50, to 5 %": (lambda: HardWorld(np.linspace(0.8, 1.2, 5), _rows(50), 0.5), _to(0.05)),
    "1000 images, K = 1, to 2 %": (lambda: HardWorld(np.ones(1000), _rows(1), 0.5), _to(0.02)),
    "1000 images, K = 3, to 2 %": (lambda: HardWorld(np.ones(1000), _rows(3), 0.5), _to(0.02)),
}

# By these nothing was chosen.
FRESH = {
    "lognormal 0.3, N = 700, K = 5, to 1 %": (lambda: HardWorld(np.ones(700), _rows(5), 0.3), _to(0.01)),
    "lognormal 1.5, N = 5000, to 3 %": (lambda: HardWorld(np.ones(5000), _rows(200), 1.5), _to(0.03)),
    "3 images, K = 30, to 3 %": (lambda: HardWorld(np.array([0.5, 1.0, 2.0]), _rows(30), 0.7), _to(0.03)),
    "12 images, K = 400, to 3 %": (lambda: HardWorld(np.linspace(0.5, 1.5, 12), _rows(400), 0.6), _to(0.03)),
    "images themselves lognormal 1, N = 3000, to 3 %": (
        lambda: HardWorld(np.exp(np.random.default_rng(1).normal(size=3000)), _rows(300), 0.4),
        _to(0.03),
    ),
    "30 of 3000 images carry 60 %, to 4 %": (lambda: HardWorld(_hard(3000, 30, 0.6), _rows(500), 0.7), _to(0.04)),
    "8 of 8000 images carry a third, to 4 %": (lambda: HardWorld(_hard(8000, 8, 1 / 3), _rows(250), 0.5), _to(0.04)),
    "a spike at t = 123 with a third, 2500 evaluations": (
        lambda: HardWorld(np.ones(500), _rows(600, 123, 1 / 3), 0.4),
        _within(2500),
    ),
    "flat over t, normal noise, N = 400, 2000 evaluations": (
        lambda: HardWorld(np.ones(400), np.ones(1000), 0.4, normal=True),
        _within(2000),
    ),
    "lognormal 0.8, N = 200, 300 evaluations": (lambda: HardWorld(np.ones(200), _rows(100), 0.8), _within(300)),
}
