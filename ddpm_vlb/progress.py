r"""How far a computation is: a bar in a terminal or a notebook, and elsewhere, as in a pipe or a file, a line now and then."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

SECONDS = 10.0  # between two lines; later on a tenth of the time that has gone by


def can_be_redrawn() -> bool:
    r"""Whether what stands on stderr can be drawn over: in a terminal, and in a notebook's cell."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    notebook = shell is not None and "IPKernelApp" in shell.config
    return notebook or sys.stderr.isatty()


def progress_bar(total: int | None = None, *, disable: bool = False, **options: Any) -> Any:
    r"""A `tqdm` bar, or `Lines`.

    Args:
        total: of the work, where it is known.
        disable: nothing at all.
        options: of `tqdm`; `Lines` knows some of them.
    """
    if disable or can_be_redrawn():
        return tqdm(total=total, disable=disable, **options)
    return Lines(total, **options)


class Lines:
    r"""What of `tqdm` is used here, as lines on stderr. What takes no longer than a few seconds prints none.

    Args:
        total, initial, desc, unit, unit_scale: as `tqdm`.
        others: of `tqdm`, and of no meaning here.
    """

    def __init__(
        self, total: int | None = None, initial: int = 0, desc: str = "", unit: str = "it", unit_scale: bool = False, **others
    ):
        self.total, self.n, self._initial = total, initial, initial
        self._how = {"prefix": desc, "unit": unit, "unit_scale": unit_scale}
        self._start = self._last = time.monotonic()
        self._postfix = ""

    def update(self, n: int = 1) -> None:
        r"""So many more are done."""
        self.n += n
        now = time.monotonic()
        if now - self._last >= max(SECONDS, (self._last - self._start) / 10):
            self._last = now
            total: Any = None if self.total is None else max(self.total, self.n)  # a total can be an estimate
            line = tqdm.format_meter(
                self.n, total, now - self._start, ncols=0, initial=self._initial, postfix=self._postfix, **self._how
            )
            print(line.strip(), file=sys.stderr, flush=True)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        r"""What the next line ends with."""
        self._postfix = text

    def refresh(self) -> None:
        r"""Nothing: a line stays as it was printed."""

    def close(self) -> None:
        r"""Nothing is left to do."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
