r"""Other likelihoods of a data set, where each image has a number of its own: importance-weighted, and that of the ODE."""

from typing import Any, NamedTuple


class Method(NamedTuple):
    r"""How images are scored.

    Args:
        name: for the report.
        images_per_batch: that go together.
        cost: network evaluations of an image, `None` where only the run tells.
        score: from levels `(B, C, H, W)`, B seeds and classes `(B,)` or `None`, columns of B numbers each, in bits/dim where
            they are bits, and `num_network_evaluations` in all. `"bits_per_dim"` is among the columns.
    """

    name: str
    images_per_batch: int
    cost: int | None
    score: Any
