r"""Data sets to reports."""

from ..likelihoods.stratified import NLLEstimate, estimate_nll
from ..reports.make import make_report
from ..reports.merge import merge_reports
from ..reports.show import format_report, image_grid, plot_terms, write_report, write_scores
from .compare import compare, format_comparison
from .detect import Detection, Detector, fit_detector
from .evaluate import evaluate

__all__ = [
    "Detection",
    "Detector",
    "NLLEstimate",
    "compare",
    "estimate_nll",
    "evaluate",
    "fit_detector",
    "format_comparison",
    "format_report",
    "image_grid",
    "make_report",
    "merge_reports",
    "plot_terms",
    "write_report",
    "write_scores",
]
