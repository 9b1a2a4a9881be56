r"""Long computations: watched while they go on, and stopped when nobody waits for them any more.

Gradio can leave a generator, not a function. So the function goes on in a thread of its own, the generator tells how far it
is, and once the generator is left the network refuses the next call: whatever runs ends within one step of it.
"""

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

try:
    # ZeroGPU, on Spaces that have it: the function gets a GPU while it runs.
    import spaces

    gpu = spaces.GPU
except ImportError:

    def gpu(function: Callable) -> Callable:
        r"""As it is, where there is no ZeroGPU."""
        return function


INTERVAL = 0.25  # seconds between two looks


class Stopped(Exception):
    r"""Nobody waits for the result."""


class Pace:
    r"""When to show how far a loop is: after each of some parts of the work, or when it has been silent for long.

    Leaving a loop takes until the next time: what takes long must not be silent.

    Args:
        total: steps of the loop.
        parts: into which they are divided.
    """

    def __init__(self, total: int, parts: int):
        self._every, self._total, self._last = -(-total // parts), total, time.monotonic()

    def due(self, done: int) -> bool:
        r"""Whether to show anything after `done` steps; never after the last."""
        due = done < self._total and (done % self._every == 0 or time.monotonic() - self._last > 2 * INTERVAL)
        if due:
            self._last = time.monotonic()
        return due


class Watch:
    r"""Counts what a network evaluates, and can stop it."""

    def __init__(self):
        self.evaluations = 0
        self.stop = threading.Event()

    def network(self, unet: torch.nn.Module) -> torch.nn.Module:
        r"""The same network, of the same weights, that is watched; the one that is given is not."""
        twin = copy.copy(unet)
        twin._forward_pre_hooks = OrderedDict()
        twin._forward_pre_hooks_with_kwargs = OrderedDict()
        twin.register_forward_pre_hook(self._look)
        return twin

    def _look(self, module: torch.nn.Module, arguments: tuple) -> None:
        if self.stop.is_set():
            raise Stopped
        self.evaluations += len(arguments[0])


def watched(compute: Callable[[], Any], watch: Watch, show: Callable[[int], Any]) -> Iterator[Any]:
    r"""Yields `show(evaluations so far)` again and again; returns what `compute` returns, or raises what it raises."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = compute()
        except BaseException as error:  # handed over to whoever waits
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            thread.join(INTERVAL)
            if not thread.is_alive():
                break
            yield show(watch.evaluations)
    finally:
        watch.stop.set()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
