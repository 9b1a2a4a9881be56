r"""Whether an error that was measured can be believed: the tails of what it was measured from.

Three ways in which a sample does not know its own error, each with a sentence of its own:

- It is small.
- Its largest contributions have no variance. What exceeds a threshold is like a generalised Pareto variable, whose shape k
  says which moments there are: with :math:`k > 1/2` there is no variance. (Pareto-smoothed importance sampling judges its
  weights so: Vehtari et al., arXiv 1507.02646.) The fit is that of Zhang & Stephens (Technometrics 51, 2009), with the prior
  of PSIS. This finds images unlike all others, once one of them was met.
- Its largest contributions are still to come. Losses that are lognormal, of log standard deviation :math:`\sigma`, have every
  moment, but a sample variance of n of them rests on :math:`2n / \kappa` degrees of freedom with the kurtosis
  :math:`\kappa = e^{4\sigma^2} + 2 e^{3\sigma^2} + 3 e^{2\sigma^2} - 4`, of which the sample itself sees next to nothing where
  :math:`\sigma` is large. What it does see is :math:`\sigma`, from the upper half of the losses of rows that are alike.
  (From the lower half differences of two models, which may be next to nothing, would pass for spread.)
"""

import math

import numpy as np

FEWEST_EVALUATIONS = 128
FEWEST_EXCEEDANCES = 5
HEAVIEST_SHAPE = 0.7  # as PSIS
FEWEST_FREEDOM = 10.0


def doubt(evaluations: int, contributions: np.ndarray, values: np.ndarray, bins: np.ndarray) -> str | None:
    r"""Why the error of a mean cannot be trusted, `None` where nothing speaks against it.

    Args:
        evaluations: how many the error rests on.
        contributions: what the mean is of, `(n,)`, of those that were drawn alike.
        values: their losses, `(n,)`.
        bins: which of them are alike, `(n,)`.
    """
    if np.ptp(contributions) <= 1e-9 * np.abs(values).mean():
        return None
    if evaluations < FEWEST_EVALUATIONS:
        return f"{evaluations} evaluations are too few to know their own error"
    shape, exceedances = pareto_shape(np.abs(contributions - np.median(contributions)))
    if shape > HEAVIEST_SHAPE + (1 + HEAVIEST_SHAPE) / exceedances**0.5:
        return f"a few contributions outweigh all others (their tail has the shape {shape:.2f}: no variance can be measured)"
    freedom = 2 * len(values) / lognormal_kurtosis(log_spread(values, bins))
    if freedom < FEWEST_FREEDOM:
        return f"losses spread over orders of magnitude: {evaluations} evaluations have seen too few of the largest"
    return None


def log_spread(values: np.ndarray, bins: np.ndarray) -> float:
    r"""The standard deviation of the logarithms of losses: by what share of the upper half of them is within one of it.

    Args:
        values: the losses, `(n,)`.
        bins: which of them are alike, `(n,)`: their logarithms are taken about the medians of these.
    """
    logs = np.log(np.abs(values).clip(min=1e-300))
    logs = logs[np.lexsort((logs, bins))]
    counts = np.bincount(bins)
    counts = counts[counts > 0]
    first = counts.cumsum() - counts
    medians = (logs[first + (counts - 1) // 2] + logs[first + counts // 2]) / 2
    above = logs - medians.repeat(counts)
    return float(np.quantile(above[above >= 0], math.erf(0.5**0.5)))


def lognormal_kurtosis(spread: float) -> float:
    r"""The variance of the squared deviation of a lognormal in units of the variance's square."""
    x = math.exp(min(spread**2, 100.0))
    return x**4 + 2 * x**3 + 3 * x**2 - 4


def pareto_shape(values: np.ndarray) -> tuple[float, int]:
    r"""The shape k of the tail of positive numbers `(n,)` and from how many it is; -inf where they are too few to tell."""
    values = np.sort(np.asarray(values, dtype=np.float64))
    count = int(min(0.2 * len(values), 3 * len(values) ** 0.5))
    x = values[-count:] - values[-count - 1] if count >= FEWEST_EXCEEDANCES else values[:0]
    x = x[x > 0]
    n = len(x)
    if n < FEWEST_EXCEEDANCES:
        return -math.inf, max(n, 1)
    grid = 30 + int(n**0.5)
    b = 1 / x[-1] + (1 - (grid / (np.arange(1, grid + 1) - 0.5)) ** 0.5) / (3 * x[int(n / 4 + 0.5) - 1])
    b = np.where(b == 0, 1e-300, b)
    k = np.log1p(-b[:, None] * x).mean(axis=1)
    likelihood = n * (np.log(-b / k) - k - 1)
    weights = np.exp(likelihood - likelihood.max())
    best = (b * weights).sum() / weights.sum()
    return float((n * np.log1p(-best * x).mean() + 10 * 0.5) / (n + 10)), n
