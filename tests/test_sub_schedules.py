r"""The best chains, against trying them all; tables of steps, against the formula that they stand for."""

import itertools

import numpy as np
import pytest

from ddpm_vlb.calibration.sub_schedules import best_sub_schedules, table_of_steps


def costs(count, seed=0):
    rng = np.random.default_rng(seed)
    steps = np.where(np.tri(count, k=-1) > 0, rng.exponential(size=(count, count)), np.inf)
    return rng.exponential(size=count) * 3, steps, rng.exponential(size=count) * 3


def cost_of(chain, decoder, steps, prior):
    r"""Of a strictly descending chain."""
    return decoder[chain[-1]] + sum(steps[t, s] for t, s in zip(chain, chain[1:])) + prior[chain[0]]


@pytest.mark.parametrize("seed", range(5))
def test_no_chain_is_better(seed):
    count = 9
    parts = costs(count, seed)
    best = best_sub_schedules(*parts, count)
    for length in range(1, count + 1):
        chains = [chain[::-1] for chain in itertools.combinations(range(count), length)]
        values = [cost_of(chain, *parts) for chain in chains]
        assert best.costs[length - 1] == pytest.approx(min(values), rel=1e-12)
        assert best.timesteps(length) == list(chains[int(np.argmin(values))])


def test_fewer_steps_are_found_alike():
    parts = costs(50)
    whole, some = best_sub_schedules(*parts, 50), best_sub_schedules(*parts, 7)
    assert (whole.costs[:7] == some.costs).all() and whole.timesteps(7) == some.timesteps(7)
    assert whole.timesteps(50) == list(range(49, -1, -1))


def test_gaussian_data_cost_the_same_on_every_chain():
    # For x ~ N(0, 1) the error is 1 / (1 + SNR) in a dimension, and with the best variance a step costs
    # log((1 + SNR(s)) / (1 + SNR(t))) / 2: the sum depends on the ends alone.
    snr = np.exp(np.linspace(8, -8, 200))
    deltas = np.geomspace((snr[:-1] - snr[1:]).min(), snr[0], 400)
    table = table_of_steps(snr, deltas, 0.5 * np.log1p(deltas / (1 + snr[:, None])))
    inside = np.tri(200, k=-1) > 0
    exact = 0.5 * np.log((1 + snr[None, :]) / (1 + snr[:, None]))
    # Between 400 lengths over a range of 10^7, h = 0.04 in the logarithm: straight lines err by less than h^2 / 8.
    assert np.allclose(table[inside], exact[inside], rtol=3e-4) and (table[~inside] == np.inf).all()
    # From t = 0 alone can be decoded, for nothing: what is left is (log(1 + SNR(0))) / 2, however many steps there are.
    decoder = np.where(np.arange(200) == 0, 0.0, 50.0)
    best = best_sub_schedules(decoder, table, 0.5 * np.log1p(snr), 200)
    assert np.allclose(best.costs, 0.5 * np.log1p(snr[0]), rtol=3e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d, s, p: (d, s[:-1], p, 3), "`steps` and `prior` must be of 9 timesteps"),
        (lambda d, s, p: (d, s, p[:-1], 3), "`steps` and `prior` must be of 9 timesteps"),
        (lambda d, s, p: (d, s, p, 0), r"`max_steps` must lie in \[1, 9\], got 0"),
        (lambda d, s, p: (d, s, p, 10), r"`max_steps` must lie in \[1, 9\], got 10"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        best_sub_schedules(*change(*costs(9)))
