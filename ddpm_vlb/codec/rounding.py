r"""Rounding that two machines agree on.

A network's outputs differ in their last digits from machine to machine, and between batch sizes and numbers of threads on one.
What enters the coder must not. So every output y is rounded to a multiple of some unit, which is coarse beside the differences
and fine beside what the rate would notice. Two machines that differ by less than `band` can then disagree only about a y that
lies within `band` of the middle between two multiples: the encoder writes down which way it went for each of these, and the
decoder, wherever *its* y lies, goes there.

The encoder notes y where :math:`|y / u - \lfloor y / u \rfloor - 1/2| \le b / u`. If the decoder has :math:`|y' - y| < b`, it
rounds what was not noted to the same multiple, since no middle lies between y and y'; and what was noted has the same floor,
as long as :math:`2 b < u / 2`.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Notes:
    r"""Which way some of the values of one network evaluation went.

    Args:
        places: where they are among all values of the evaluation, in the order in which these are rounded.
        is_up: whether it was up.
        size: how many values there are.
    """

    places: list[int] = field(default_factory=list)
    is_up: list[bool] = field(default_factory=list)
    size: int = 0


def round_noting(values: np.ndarray, units: np.ndarray | float, bands: np.ndarray | float, notes: Notes) -> np.ndarray:
    r"""Multiples of `units` next to `values`, float64 integers of the same shape; the doubtful ones are added to `notes`."""
    floors, halves = _split(values, units)
    is_up = halves >= 0
    places = np.flatnonzero((np.abs(halves) <= bands / units).ravel())
    notes.places += (notes.size + places).tolist()
    notes.is_up += is_up.ravel()[places].tolist()
    notes.size += values.size
    return floors + is_up


def round_as_noted(values: np.ndarray, units: np.ndarray | float, notes: Notes) -> np.ndarray:
    r"""What `round_noting` returned, by what it noted; `notes.size` counts the values that were rounded so far."""
    floors, halves = _split(values, units)
    is_up = (halves >= 0).ravel()
    for place, up in zip(notes.places, notes.is_up):
        if notes.size <= place < notes.size + values.size:
            is_up[place - notes.size] = up
    notes.size += values.size
    return floors + is_up.reshape(values.shape)


def _split(values, units):
    scaled = values / units
    floors = np.floor(scaled)
    return floors, scaled - floors - 0.5
