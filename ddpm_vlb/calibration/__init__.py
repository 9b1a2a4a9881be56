r"""Better variances, decoder and sub-schedules for the same weights."""

from .measure import CalibrationResult, calibrate
from .show import describe, format_calibration, plot_calibration

__all__ = ["CalibrationResult", "calibrate", "describe", "format_calibration", "plot_calibration"]
