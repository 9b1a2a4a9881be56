r"""The best K-step model of a network, for every K, by dynamic programming (after Watson et al. 2021).

The bound of a chain on the timesteps :math:`t_1 < \dots < t_K` is

.. math:: \mathrm{decoder}(t_1) + \sum_{k > 1} \mathrm{step}(t_{k - 1}, t_k) + \mathrm{prior}(t_K),

and the best chain of K steps that ends at t is the best of K - 1 steps that ends at some s below it, and a step from t to s:

.. math:: V_1(t) = \mathrm{decoder}(t), \qquad V_K(t) = \min_{s < t} V_{K - 1}(s) + \mathrm{step}(s, t).

Watson et al. measure a table of T x T costs of steps. Here the cost of a step is known from its upper end t and its length
:math:`\Delta = \mathrm{SNR}(s) - \mathrm{SNR}(t)` (`error_model.py`), and one look at each t will do. Where decoding starts,
and at which noise the chain ends, come out with the rest.
"""

from typing import NamedTuple

import numpy as np


class SubSchedules(NamedTuple):
    r"""The best chains of K = 1, 2, ... steps: `costs[K - 1]` in nats per dimension, `ends[K - 1]` the
    highest timestep, and `before[K - 2, t]` the one below t where t is the K-th."""

    costs: np.ndarray
    ends: np.ndarray
    before: np.ndarray

    def timesteps(self, num_steps: int) -> list[int]:
        r"""The best chain of `num_steps` steps, strictly descending."""
        steps = [int(self.ends[num_steps - 1])]
        for row in range(num_steps - 2, -1, -1):
            steps.append(int(self.before[row, steps[-1]]))
        return steps


def best_sub_schedules(decoder: np.ndarray, steps: np.ndarray, prior: np.ndarray, max_steps: int) -> SubSchedules:
    r"""The best chain of every number of steps up to `max_steps`.

    Args:
        decoder: the cost of decoding from t, `(T,)`.
        steps: `steps[t, s]`, the cost of a step from t to s, `(T, T)`; infinite unless s < t.
        prior: the cost of ending at t, `(T,)`.
        max_steps: at most T.

    Raises:
        ValueError: shapes that do not fit.
    """
    count = len(decoder)
    if steps.shape != (count, count) or prior.shape != (count,):
        raise ValueError(f"`steps` and `prior` must be of {count} timesteps, got {steps.shape} and {prior.shape}.")
    if not 1 <= max_steps <= count:
        raise ValueError(f"`max_steps` must lie in [1, {count}], got {max_steps}.")
    rows = np.arange(count)
    values, buffer = decoder.astype(np.float64), np.empty_like(steps)
    before = np.zeros((max_steps - 1, count), dtype=np.int32)
    costs, ends = [], []
    for step in range(max_steps):
        if step:
            np.add(steps, values, out=buffer)
            before[step - 1] = buffer.argmin(axis=1)
            values = buffer[rows, before[step - 1]]
        ends.append(int(np.argmin(values + prior)))
        costs.append(values[ends[-1]] + prior[ends[-1]])
    return SubSchedules(np.array(costs), np.array(ends), before)


def table_of_steps(snr: np.ndarray, deltas: np.ndarray, costs: np.ndarray) -> np.ndarray:
    r"""The costs of all steps, `(T, T)`, from those at some lengths.

    Args:
        snr: signal-to-noise ratios, descending, `(T,)`.
        deltas: lengths :math:`\Delta`, ascending, `(R,)`.
        costs: of steps of these lengths from each t, `(T, R)`, positive; taken as straight lines between them in logarithms.
    """
    count = len(snr)
    table, logs = np.full((count, count), np.inf), np.log(costs)
    for t in range(1, count):
        table[t, :t] = np.exp(np.interp(np.log(snr[:t] - snr[t]), np.log(deltas), logs[t]))
    return table
