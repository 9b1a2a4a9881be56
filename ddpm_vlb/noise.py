r"""Noise that is looked up, not drawn in turn: a pure function of (seed, timestep), for images of one shape.

Each image has a seed of its own; its noise at timestep t depends on that seed and on t alone. Batch size, order, the choice
of other timesteps and the number of processes then change a result by no more than float rounding. Training looks its noise,
timesteps and order of examples up in the same way, by (seed, step, position in the global batch), so that a run has no state
of chance to save.

**The noise.** A counter-based generator (Salmon et al. 2011) in integer operations, which are the same on every device. For
the key k and the j-th pair of numbers of a row a word :math:`k + h_j \bmod 2^{64}`, where :math:`h_j` is a hash of j, goes
through a bijection of words: the upper half is put upon the lower (exclusive or), the word is multiplied by an odd constant,
thrice and twice in turn. Its halves, as signed integers, are uniform numbers :math:`u, v \in (-1, 1)`, and two normal ones are
(Box and Muller)

.. math:: \sqrt{-\log u^2}\, \cos \pi v, \qquad \sqrt{-\log u^2}\, \sin \pi v .

Of :math:`|u| \ge 2^{-32}` none is farther out than 6.66, where 3 in :math:`10^{11}` would be. Of n keys some two coincide with
a probability of about :math:`n^2 / 2^{65}`, 1 in 370,000 for :math:`10^7`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

# Of the noise of a key: a journal or a training with other noise cannot be gone on with.
NOISE_VERSION = 2

_MASK = (1 << 64) - 1
_SPLITMIX64 = tuple(map(np.uint64, (1, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 30, 27, 31)))
NUMBERS_AT_ONCE = 2**18  # numbers at a time
# Odd, of 64 bits, as signed integers: those of SplitMix64's finaliser.
FACTORS = tuple(factor - 2**64 for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


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


def keyed_normal(keys: Sequence[int] | np.ndarray, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    r"""Standard normal noise of shape `(len(keys), *shape)`, float32, each row a function of its key alone.

    Args:
        keys: 64 bits each, integers or an array of uint64.
        shape: of a row.
        device: where it is made: the same numbers everywhere, but for the rounding of the device's functions. Nothing waits
            for it.
    """
    device, dimensions = torch.device(device), math.prod(shape)
    own = torch.from_numpy(np.asarray(keys, dtype=np.uint64).reshape(-1).view(np.int64))
    places = _places((dimensions + 1) // 2, device)
    # On a CPU as many rows at a time as its cache holds.
    rows = max(1, NUMBERS_AT_ONCE // dimensions) if device.type == "cpu" else max(1, len(own))
    parts = [_box_muller(_hash(part, places)) for part in to_device(own, device).split(rows)]
    noise = parts[0] if len(parts) == 1 else torch.cat(parts)
    return noise[:, :dimensions].reshape(-1, *shape)


def _hash(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    r"""A word of 64 bits for each key and place, as its lower and upper half: int32, `(keys, places, 2)`."""
    words = torch.empty(len(keys), len(places), dtype=torch.int64, device=places.device).copy_(places).add_(keys[:, None])
    # The halves lie beside each other, the lower one first, on every machine that torch runs on.
    halves = words.view(torch.int32).unflatten(1, (len(places), 2))
    lower, upper = halves.unbind(dim=2)
    lower.bitwise_xor_(upper)
    for factor in FACTORS:
        words.mul_(factor)
        lower.bitwise_xor_(upper)
    return halves


def _box_muller(halves: torch.Tensor) -> torch.Tensor:
    r"""Two normal numbers of each pair of integers `(keys, places, 2)`: `(keys, 2 * places)`, the cosines first."""
    angle, radius = (half.to(torch.float32).add_(0.5).mul_(2.0**-31) for half in halves.unbind(dim=2))
    radius.mul_(radius).log_().mul_(-1.0).sqrt_()
    angle.mul_(math.pi)
    noise = torch.empty(len(angle), 2, angle.shape[1], device=angle.device)
    cosines, sines = noise.unbind(dim=1)
    cosines.copy_(angle).cos_().mul_(radius)
    sines.copy_(angle.sin_()).mul_(radius)
    return noise.flatten(1)


@lru_cache(maxsize=16)
def _places(count: int, device: torch.device) -> torch.Tensor:
    r"""Words of 64 bits for the places of a row, int64."""
    return torch.from_numpy(mix_array(0, np.arange(count)).view(np.int64)).to(device)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    r"""Values of any shape on the device, without a wait for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def keyed_noise(
    seeds: Sequence[int], timesteps: Iterable[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Iterator[torch.Tensor]:
    r"""Standard normal noise, timestep after timestep, for the images with these seeds.

    Args:
        seeds: one per image, length B.
        timesteps: zero-based timesteps, in any order.
        shape: shape of one image, `(C, H, W)`.
        device: as `keyed_normal`.

    Yields:
        For each timestep a float32 tensor of shape `(B, C, H, W)`.
    """
    # Of small images the noise of several timesteps at once: calls cost more than numbers.
    own, steps = np.asarray(seeds, dtype=np.uint64), list(timesteps)
    block = max(1, NUMBERS_AT_ONCE // max(1, len(own) * math.prod(shape)))
    for first in range(0, len(steps), block):
        some = np.array(steps[first : first + block], dtype=np.uint64)
        noise = keyed_normal(mix_array(own, some[:, None]).reshape(-1), shape, device)
        yield from noise.reshape(len(some), len(own), *shape).unbind()


def order_of(ids: np.ndarray, frame: np.ndarray, key: int, count: int | None = None) -> np.ndarray:
    r"""The images of `frame` in an order that the key gives, or the first `count` of them."""
    keys = mix_array(key, ids[frame])  # no two of which are equal, but for equal ids
    if count is not None and count < len(keys):
        first = np.argpartition(keys, count)[:count]
        frame, keys = frame[first], keys[first]
    return frame[np.argsort(keys)]
