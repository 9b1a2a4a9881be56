import pytest
import torch
from scipy import stats
from tiny import generator

from ddpm_vlb.noise import draw_seeds, keyed_noise


def test_seeds_depend_on_position_alone():
    assert draw_seeds(10, generator(3))[:4] == draw_seeds(4, generator(3))
    g = generator(3)
    assert draw_seeds(10, generator(3)) == draw_seeds(3, g) + draw_seeds(7, g)
    assert draw_seeds(2, [generator(1), generator(2)]) == [*draw_seeds(1, generator(1)), *draw_seeds(1, generator(2))]
    with pytest.raises(ValueError, match="`generator` must be one generator or one per image"):
        draw_seeds(3, [generator()])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_noise_is_a_function_of_seed_and_timestep(shape):
    seeds = draw_seeds(4, generator())
    full = dict(enumerate(noise.clone() for noise in keyed_noise(seeds, range(40), shape)))
    for t, noise in zip([39, 17, 3], keyed_noise(seeds[1:3], [39, 17, 3], shape)):
        assert torch.equal(noise, full[t][1:3])
    assert len({noise.sum().item() for rows in full.values() for noise in rows}) == 160


def test_noise_is_standard_normal_and_uncorrelated():
    seeds = draw_seeds(64, generator())
    noise = torch.stack([n.clone() for n in keyed_noise(seeds, range(64), (1, 4, 4))])
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4
    rows = noise.reshape(64 * 64, 16)
    # Correlation of rows that follow each other in t and in the image: standard error 1 / sqrt(65536).
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5
    assert torch.unique(rows[:, 0]).numel() > 4000
