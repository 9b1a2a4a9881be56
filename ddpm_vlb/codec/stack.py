r"""A stack of bits, from which symbols are popped and onto which they are pushed: asymmetric numeral systems (Duda 2015).

The coder is `constriction`'s. Its arithmetic is its own in every part, the error function too, so that the same numbers in give
the same bits on every machine. What it is given here is therefore made of integers: a mean in 64ths of a bin, a standard
deviation of `SCALE_BITS` bits, a window that follows from them.

To pop a symbol and to push it again under the same distribution leaves the stack as it was; that is all that bits-back needs.
"""

import math
from typing import Any

import numpy as np

SCALE_BITS = 8  # of a standard deviation, beside its exponent
POP_WIDTH = 5.0  # standard deviations to either side; every bin has at least 2^-24, and farther ones would be outliers
PUSH_WIDTH = 6.0
MAX_WINDOW = 2**16  # bins to either side
MAX_EXCESS = 2**32  # bins beyond these
CHUNK = 2**16


class DamagedFile(ValueError):
    r"""A file that is not as it was written, or that this machine does not compute alike."""


def load_coder() -> Any:
    r"""The library of the coder, or `ValueError` where it is not installed."""
    try:
        import constriction
    except ImportError as error:
        raise ValueError("`codec` needs constriction: pip install constriction.") from error
    return getattr(constriction, "stream")  # noqa: B009 (no types tell of it)


class Stack:
    r"""Bits, the last of them on top.

    Args:
        words: uint32, what lies on it first; nothing, and no mark either, where it is `None`.
        is_sealed: `False` puts a mark on them, so that they can be told from what comes after; `True` where it is there.
    """

    def __init__(self, words: np.ndarray | None = None, is_sealed: bool = False):
        stream = load_coder()
        self._model = stream.model
        if words is None:
            self._coder = stream.stack.AnsCoder()
            return
        try:
            self._coder = stream.stack.AnsCoder(words.astype(np.uint32), seal=not is_sealed)
        except (ValueError, AssertionError) as error:  # the top word is 0
            raise DamagedFile(f"`data` must hold a stack of bits, got one that is none: {error}") from error

    @property
    def num_bits(self) -> int:
        r"""How many there are."""
        return self._coder.num_valid_bits()

    def words(self) -> np.ndarray:
        r"""All that is on the stack, uint32."""
        return self._coder.get_compressed()

    def unsealed(self) -> np.ndarray:
        r"""What lay on it first, once everything else is popped."""
        try:
            return self._coder.get_compressed(unseal=True)
        except (ValueError, AssertionError) as error:
            raise DamagedFile("`data` must leave what was coded first, got other bits.") from error

    # Integers around a mean, the distribution a Gaussian over the bins, whose ends are open.

    def push(self, values: np.ndarray, means: np.ndarray, scales: np.ndarray) -> None:
        r"""Push integers under Gaussians; what lies outside of the window costs some bits more.

        Args:
            values: int64, `(M,)`.
            means: in 64ths, int64, `(M,)`.
            scales: standard deviations in bins, each of `SCALE_BITS` bits, `(M,)`.
        """
        centres, rest, window = _centred(means, scales, PUSH_WIDTH)
        symbols = values - centres
        if (np.abs(symbols) > window + MAX_EXCESS).any():  # it could be written, and not read
            raise ValueError(f"`pipe` must predict latents within {MAX_EXCESS} bins, got one that is farther off.")
        clipped = symbols.clip(-window - 1, window + 1)
        # What is beyond the ends lies below the symbols: these are popped first and tell of it.
        for excess in (np.abs(symbols) - window - 1)[np.abs(clipped) > window][::-1]:
            self.push_integer(int(excess), MAX_EXCESS)
        self._push(clipped, -window - 1, window + 1, rest, scales)

    def pop(self, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
        r"""What `push` pushed."""
        centres, rest, window = _centred(means, scales, PUSH_WIDTH)
        symbols = self._pop(-window - 1, window + 1, rest, scales)
        for place in np.flatnonzero(np.abs(symbols) > window):
            symbols[place] += int(np.sign(symbols[place])) * self.pop_integer(MAX_EXCESS)
        return symbols + centres

    def draw(self, means: np.ndarray, scale: float) -> np.ndarray:
        r"""Pop integers within some standard deviations of their means, which the bits on the stack choose."""
        scales = np.full(means.shape, scale)
        centres, rest, window = _centred(means, scales, POP_WIDTH)
        return self._pop(-window, window, rest, scales) + centres

    def give_back(self, values: np.ndarray, means: np.ndarray, scale: float) -> None:
        r"""Push what `draw` popped, and with it the bits that chose it."""
        scales = np.full(means.shape, scale)
        centres, rest, window = _centred(means, scales, POP_WIDTH)
        symbols = values - centres
        if (np.abs(symbols) > window).any():
            raise DamagedFile("`data` must hold latents that the forward process gives, got others.")
        self._push(symbols, -window, window, rest, scales)

    def push_levels(self, levels: np.ndarray, num_levels: int, means: np.ndarray, scales: np.ndarray) -> None:
        r"""Push levels under the discretised decoder; `means` and `scales` are in levels, float64."""
        self._push(levels, 0, num_levels - 1, means, scales)

    def pop_levels(self, num_levels: int, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
        r"""What `push_levels` pushed."""
        return self._pop(0, num_levels - 1, means, scales)

    # Symbols with weights of their own.

    def push_weighed(self, symbol: int, weights: np.ndarray) -> None:
        r"""Push a symbol, its probability in proportion to its weight."""
        self._coder.encode_reverse(symbol, self._model.Categorical(weights, perfect=False))

    def pop_weighed(self, weights: np.ndarray) -> int:
        r"""What `push_weighed` pushed."""
        return int(self._coder.decode(self._model.Categorical(weights, perfect=False)))

    # Integers that are all alike, and counts that are nearly always 0.

    def push_integer(self, value: int, size: int) -> None:
        r"""Push an integer in [0, size)."""
        for chunk in _chunks(size):
            self._coder.encode_reverse(value % chunk, self._model.Uniform(chunk))
            value //= chunk

    def pop_integer(self, size: int) -> int:
        r"""What `push_integer` pushed."""
        value = 0
        for chunk in reversed(_chunks(size)):
            value = value * chunk + int(self._coder.decode(self._model.Uniform(chunk)))
        return value

    def push_count(self, count: int, rarity: int) -> None:
        r"""Push a count, which is above 0 with a probability of 2^-rarity."""
        if count:
            self.push_integer(count - 1, 2**32) if count > 15 else None
            self._coder.encode_reverse(min(count, 16) - 1, self._counts)
        self._coder.encode_reverse(int(count > 0), self._rare(rarity))

    def pop_count(self, rarity: int) -> int:
        r"""What `push_count` pushed."""
        if not int(self._coder.decode(self._rare(rarity))):
            return 0
        count = int(self._coder.decode(self._counts)) + 1
        return count if count < 16 else self.pop_integer(2**32) + 1

    @property
    def _counts(self):
        # Halved from one to the next, exactly.
        return self._model.Categorical(np.exp2(-np.arange(1.0, 17.0).clip(max=15.0)), perfect=False)

    def _rare(self, rarity: int):
        return self._model.Categorical(np.array([1 - 2.0**-rarity, 2.0**-rarity]), perfect=False)

    def _push(self, symbols, lowest: int, highest: int, means, scales) -> None:
        model = self._model.QuantizedGaussian(lowest, highest)
        self._coder.encode_reverse(symbols.astype(np.int32), model, means.astype(np.float64), scales.astype(np.float64))

    def _pop(self, lowest: int, highest: int, means, scales) -> np.ndarray:
        if self._coder.is_empty():
            raise DamagedFile("`data` must hold the bits of its images, got too few.")
        model = self._model.QuantizedGaussian(lowest, highest)
        return self._coder.decode(model, means.astype(np.float64), scales.astype(np.float64)).astype(np.int64)


def _centred(means: np.ndarray, scales: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray, int]:
    r"""The bins next to the means, what is left of these, and how many bins are looked at to either side."""
    centres = (means + 32) >> 6
    window = min(max(math.ceil(width * float(scales.max())), 1), MAX_WINDOW)
    return centres, (means - (centres << 6)) / 64.0, window


def _chunks(size: int) -> list[int]:
    r"""Sizes of the digits in which an integer in [0, size) is written, the lowest first."""
    chunks = []
    while size > CHUNK:
        chunks.append(CHUNK)
        size = -(-size // CHUNK)
    return [*chunks, max(size, 2)]


def words_to_bytes(words: np.ndarray) -> bytes:
    r"""Words as bytes, little-endian."""
    return words.astype("<u4").tobytes()


def words_of_bytes(body: bytes) -> np.ndarray:
    r"""Words of bytes; zeros at the end may be left out."""
    return np.frombuffer(body + bytes(-len(body) % 4), "<u4").astype(np.uint32)
