r"""Noise that is looked up, not drawn in turn: a pure function of (seed, timestep), for images of one shape.

Each image has a seed of its own; its noise at timestep t depends on that seed and on t alone. Batch size, order, the choice
of other timesteps and the number of processes then change a result by no more than float rounding. Training looks its noise,
timesteps and order of examples up in the same way, by (seed, step, position in the global batch), so that a run has no state
of chance to save.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1
_SPLITMIX64 = tuple(map(np.uint64, (1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 30, 27, 31)))


def draw_seeds(count: int, generator: torch.Generator | list[torch.Generator] | None = None) -> list[int]:
    r"""`count` seeds, the i-th depending only on the generator's state and on i (or on the i-th generator of a list).

    Raises:
        ValueError: a list of generators of another length than `count`.
    """
    check_generator(generator, count)
    if isinstance(generator, (list, tuple)):
        return [seed for one in generator for seed in draw_seeds(1, one)]
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()


def check_generator(generator: Any, count: int) -> None:
    r"""Raise `ValueError` unless `generator` is a `torch.Generator`, a list of `count` of them, or `None`."""
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    for one in generators:
        if not isinstance(one, torch.Generator) and (one is not None or generators is generator):
            raise ValueError(f"`generator` must be a torch.Generator, a list of them or None, got {one!r}.")
    if generators is generator and len(generators) != count:
        raise ValueError(f"`generator` must be one generator or one per image ({count}), got {len(generator)}.")


def fresh_seed(generator: Any) -> int | None:
    r"""The seed of a generator that nothing has been drawn from yet, `None` for any other."""
    if not isinstance(generator, torch.Generator):
        return None
    seed = generator.initial_seed()
    untouched = torch.Generator(device=generator.device).manual_seed(seed)
    return seed if torch.equal(untouched.get_state(), generator.get_state()) else None


def mix(seed: int, number: int) -> int:
    r"""A 64-bit key of the two in which every bit of both tells on every bit (the finaliser of SplitMix64)."""
    z = (seed + 0x9E3779B97F4A7C15 * (number + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def mix_array(seeds: int | np.ndarray, numbers: int | np.ndarray) -> np.ndarray:
    r"""`mix` of each seed with each number, for uint64 arrays that broadcast with each other."""
    one, golden, first, second, *shifts = _SPLITMIX64
    with np.errstate(over="ignore"):
        z = np.asarray(seeds, dtype=np.uint64) + golden * (np.asarray(numbers, dtype=np.uint64) + one)
        for shift, factor in zip(shifts, (first, second)):
            z ^= z >> shift
            z *= factor
    return z ^ (z >> shifts[2])


def uniform_array(keys: np.ndarray) -> np.ndarray:
    r"""`keyed_uniform` of each key."""
    return (mix_array(keys, 0) >> np.uint64(11)) * 2.0**-53


def keyed_uniform(key: int) -> float:
    r"""A number in [0, 1) that is a function of the key alone."""
    return (mix(key, 0) >> 11) * 2.0**-53


def keyed_normal(keys: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    r"""Standard normal noise of shape `(len(keys), *shape)`, float32 on the CPU, each row a function of its key alone."""
    # torch takes the low 32 bits of a seed. Of n keys about n^2 / 2^33 pairs coincide, 1 in 10^5 and 12,000 in 10^7: other
    # images or other timesteps that share their noise. Each keeps its distribution, so that no estimate is biased.
    generator = torch.Generator()
    noise = torch.empty(len(keys), *shape)
    for row, key in zip(noise.unbind(), keys):
        row.normal_(generator=generator.manual_seed(key))
    return noise


def keyed_noise(seeds: Sequence[int], timesteps: Iterable[int], shape: Sequence[int]) -> Iterator[torch.Tensor]:
    r"""Standard normal noise, timestep after timestep, for the images with these seeds.

    Args:
        seeds: one per image, length B.
        timesteps: zero-based timesteps, in any order; cheapest where neighbours follow each other.
        shape: shape of one image, `(C, H, W)`.

    Yields:
        For each timestep a float32 tensor of shape `(B, C, H, W)` on the CPU, whatever the device it is for.
    """
    # Seeding a generator costs as much as a thousand numbers, so small images get the noise of several timesteps at once.
    # The block is a function of t and of the shape, and the noise still one of (seed, t).
    block = max(1, 1024 // math.prod(shape))
    drawn = None
    for timestep in timesteps:
        if timestep // block != drawn:
            drawn = timestep // block
            noise = keyed_normal([mix(seed, drawn) for seed in seeds], (block, *shape))
        yield noise[:, timestep % block]


def order_of(ids: np.ndarray, frame: np.ndarray, key: int) -> np.ndarray:
    r"""The images of `frame` in an order that the key gives."""
    return frame[np.argsort(mix_array(key, ids[frame]), kind="stable")]
