r"""Reports; `schema.py` says what one holds. Names are imported when they are first used."""

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .checks import student_quantile
    from .make import report_of_estimate
    from .merge import merge_reports

_HOMES = {"merge_reports": "merge", "report_of_estimate": "make", "student_quantile": "checks"}
__all__ = ["merge_reports", "report_of_estimate", "student_quantile"]
__getattr__ = names_from(__name__, _HOMES)
