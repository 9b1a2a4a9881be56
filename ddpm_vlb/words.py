r"""Words for numbers."""


def counted(count: int, noun: str) -> str:
    r"""`1 channel`, `3 channels`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
