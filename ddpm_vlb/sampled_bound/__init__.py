r"""The bound of a data set from few evaluations: the estimator.

Names are imported when they are first used: `rules` is asked where nothing is evaluated, and must not cost torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .design import bin_edges
    from .estimate import estimate_bound

_HOMES = {"bin_edges": "design", "estimate_bound": "estimate"}
__all__ = ["bin_edges", "estimate_bound"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
