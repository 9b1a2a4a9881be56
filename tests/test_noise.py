import math

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import generator

from ddpm_vlb.noise import draw_seeds, keyed_noise, keyed_normal, mix, mix_array


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


def by_hand(key, place):
    """The two normal numbers of a key at a place, in Python's integers and doubles."""
    mask = 2**64 - 1
    word = (key + mix(0, place)) & mask
    word ^= word >> 32
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        word = word * factor & mask
        word ^= word >> 32
    lower, upper = (half - 2**32 * (half >= 2**31) for half in (word & (2**32 - 1), word >> 32))
    radius = math.sqrt(-math.log(((upper + 0.5) / 2**31) ** 2))
    angle = math.pi * (lower + 0.5) / 2**31
    return radius * math.cos(angle), radius * math.sin(angle)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 1, 1)])
def test_noise_is_what_the_derivation_says(shape):
    keys = [0, 1, 2**63, 2**64 - 1, *draw_seeds(20, generator())]
    noise = keyed_normal(keys, shape)
    assert noise.dtype == torch.float32 and noise.shape == (24, *shape)
    pairs = -(-math.prod(shape) // 2)
    expected = np.array([np.array([by_hand(key, place) for place in range(pairs)]).T.ravel() for key in keys])
    # Roundings of 2^-24: of u^2, which moves the radius r by 2^-24 / r, and r is above 1e-3 here; of the angle, of pi at most.
    assert np.allclose(noise.flatten(1).numpy(), expected[:, : math.prod(shape)], rtol=1e-6, atol=2e-6)


def test_a_row_depends_on_its_key_alone():
    keys = mix_array(1, np.arange(300))
    whole = keyed_normal(keys, (3, 32, 32))  # more than is made at once
    for first, last in ((0, 1), (84, 87), (299, 300), (10, 200)):
        assert torch.equal(keyed_normal(keys[first:last], (3, 32, 32)), whole[first:last])
    assert torch.equal(keyed_normal(keys[:5].tolist(), (3, 32, 32)), whole[:5])
    assert keyed_normal([], (3, 32, 32)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("step", [1, 2**32, 2**63 // 300])
def test_keys_and_places_close_to_each_other_have_nothing_in_common(step):
    # Counted keys, no hashes: the generator alone must tell them apart.
    noise = keyed_normal(np.arange(256, dtype=np.uint64) * np.uint64(step), (4096,)).double()
    n = noise.numel()
    scores = [noise.sum() / n**0.5, (noise.square() - 1).sum() / (2 * n) ** 0.5, noise.pow(3).sum() / (15 * n) ** 0.5]
    for values in (noise, noise.square() - 1):
        for a, b in (
            *((values[d:], values[:-d]) for d in (1, 2, 4, 64)),
            *((values[:, d:], values[:, :-d]) for d in (1, 2, 64, 2048)),
        ):
            scores.append((a * b).sum() / (a * b).square().sum().sqrt())
    # 57 scores in all, standard normal: one beyond 5 once in 30,000 sets of keys.
    assert max(abs(float(score)) for score in scores) < 5


def test_one_bit_of_a_key_changes_half_of_the_noise():
    keys = np.array(draw_seeds(1000, generator()), dtype=np.uint64)
    before = keyed_normal(keys, (64,)) > 0
    for bit in range(64):
        changed = (before != (keyed_normal(keys ^ np.uint64(1 << bit), (64,)) > 0)).double().mean().item()
        assert abs(changed - 0.5) < 5 * 0.5 / 64000**0.5, bit


def test_the_noise_is_the_same_on_the_device():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    keys = mix_array(2, np.arange(64))
    here, there = keyed_normal(keys, (3, 32, 32)), keyed_normal(keys, (3, 32, 32), "cuda").cpu()
    # Each device's log, cos and sin are off by a few units in the last place; see above.
    assert torch.allclose(here, there, rtol=2e-6, atol=4e-6)
