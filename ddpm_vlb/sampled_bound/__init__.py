r"""The bound of a data set from few evaluations: the estimator.

Names are imported when they are first used: `rules` is asked where nothing is evaluated, and must not cost torch.
"""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .design import bin_edges
    from .estimate import estimate_bound

_HOMES = {"bin_edges": "design", "estimate_bound": "estimate"}
__all__ = ["bin_edges", "estimate_bound"]
__getattr__ = names_from(__name__, _HOMES)
