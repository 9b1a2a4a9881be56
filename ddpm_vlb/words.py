r"""Words for numbers."""

# From how many seconds on a unit is used, and its length.
UNITS = ((172_800.0, 86_400.0, "days"), (5_400.0, 3_600.0, "hours"), (90.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def duration(seconds: float) -> str:
    r"""`40 seconds`, `12 minutes`, `2.5 hours`, `3.1 days`."""
    length, unit = next((length, unit) for least, length, unit in UNITS if seconds >= least)
    return f"{seconds / length:.{1 if length > 60 else 0}f} {unit}"


def counted(count: int, noun: str) -> str:
    r"""`1 channel`, `3 channels`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
