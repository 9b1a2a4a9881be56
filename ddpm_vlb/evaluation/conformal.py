r"""From scores to p-values that hold for finite samples (Vovk et al. 2005; Bates et al. 2023).

The scores :math:`s_1, \dots, s_n` of n calibration images, which nothing was fitted to, and the score s of another image: if
that image is exchangeable with them, then the rank of s among all n + 1 is uniform but for ties, and

.. math:: p = \frac{1 + \#\{i : s_i \ge s\}}{n + 1}, \qquad P(p \le \alpha) \le \alpha .

Nothing is asked of the score or of the model: a bad score has valid p-values too, and finds nothing. The probability is over
the calibration images as well. Given them, the share of false alarms among many images is a number that was drawn once: with
:math:`l = \lfloor\alpha(n + 1)\rfloor` it follows :math:`\mathrm{Beta}(l, n + 1 - l)` where there are no ties.

**Benjamini-Hochberg.** Of m p-values, those up to the largest :math:`p_{(k)} \le \alpha k / m` are flagged: the expected share
of false ones among the flagged is at most :math:`\alpha`, for p-values with a calibration set in common, too (Bates et al.
2023, theorem 2).
"""

import numpy as np
from scipy.stats import beta, binomtest


def conformal_p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    r"""p-values `(N,)` of `scores` `(N,)`, larger scores being more anomalous, beside `calibration` scores `(n,)`."""
    ascending = np.sort(calibration)
    as_large = len(ascending) - np.searchsorted(ascending, scores, side="left")
    return (1 + as_large) / (len(ascending) + 1)


def false_alarm_interval(num_calibration: int, alpha: float, confidence: float = 0.95) -> tuple[float, float]:
    r"""Where the share of false alarms at `alpha` lies for `confidence` of all calibration sets of this size."""
    rank = int(np.floor(alpha * (num_calibration + 1)))
    if rank == 0:
        return 0.0, 0.0
    tail = (1 - confidence) / 2
    low, high = beta.ppf([tail, 1 - tail], rank, num_calibration + 1 - rank)
    return float(low), float(high)


def benjamini_hochberg(p_values: np.ndarray, alpha: float) -> np.ndarray:
    r"""Which of `p_values` `(N,)` are flagged at a false discovery rate of `alpha`: booleans `(N,)`."""
    ascending = np.sort(p_values)
    good = np.flatnonzero(ascending <= alpha * np.arange(1, len(ascending) + 1) / len(ascending))
    return p_values <= (ascending[good[-1]] if len(good) else 0.0)


def binomial_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""The exact interval of a share (Clopper & Pearson 1934) of which `count` of `total` were seen."""
    interval = binomtest(count, total).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def area_under_roc(scores: np.ndarray, anomalous: np.ndarray) -> float:
    r"""The probability that an anomalous image has a larger score than another, ties counting half.

    Args:
        scores: `(N,)`.
        anomalous: booleans `(N,)`, some true and some false.
    """
    others, own = np.sort(scores[~anomalous]), scores[anomalous]
    ranks = np.searchsorted(others, own, side="left") + np.searchsorted(others, own, side="right")
    return float(ranks.mean() / (2 * len(others)))
