r"""What a run says of itself: a line of `metrics.jsonl` at a time, and the same numbers to the trackers."""

import argparse
import json
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ddpm_vlb.files import write_atomically
from ddpm_vlb.reports.schema import placeless_name


def tracked_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    r"""The arguments for trackers: no token, and nothing of where files lie on this machine."""
    settings = {}
    for name, value in vars(arguments).items():
        if name != "hub_token":
            plain = isinstance(value, (bool, int, float))
            settings[name] = value if plain else placeless_name(str(value))
    return settings


def hide_host(folder: Path) -> None:
    r"""Take the machine's name out of the names of TensorBoard's files, once they are closed."""
    for path in folder.rglob("events.out.tfevents.*"):
        name = path.name.replace(f".{socket.gethostname()}.", ".host.")
        if name != path.name:
            path.rename(path.with_name(name))


class Metrics:
    r"""`metrics.jsonl`, the trackers, and how a resumed run goes on in the file without a line lost or written twice.

    Args:
        accelerator: whose main process writes, and whose trackers are told.
        path: the file; its lines after `step` are taken out.
        step: the one that the run starts from.
        room: entered around each write; see `Checkpoints.room`.
    """

    def __init__(self, accelerator: Accelerator, path: Path, step: int, room: Callable[[], AbstractContextManager]):
        self.accelerator, self.path, self.room, self.start = accelerator, path, room, time.monotonic()
        if accelerator.is_main_process:
            lines = path.read_text().split("\n")[:-1] if path.exists() else []  # what follows the last newline was cut off
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(path, "".join(f"{line}\n" for line in kept).encode())

    def log(self, step: int, **values: Any) -> None:
        r"""Write a line, from the main process."""
        if self.accelerator.is_main_process:
            with self.room(), self.path.open("a") as file:
                line = {"step": step, **values, "seconds": round(time.monotonic() - self.start, 3)}
                file.write(json.dumps(line, allow_nan=False) + "\n")
            prefix = f"{values['split']}/" if "split" in values else ""
            self.accelerator.log({f"{prefix}{k}": v for k, v in values.items() if not isinstance(v, str)}, step=step)
