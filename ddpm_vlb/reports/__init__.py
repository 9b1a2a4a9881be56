r"""Reports; `schema.py` says what one holds. Names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checks import student_quantile
    from .make import report_of_estimate
    from .merge import merge_reports

_HOMES = {"merge_reports": "merge", "report_of_estimate": "make", "student_quantile": "checks"}
__all__ = ["merge_reports", "report_of_estimate", "student_quantile"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
