r"""What a run goes on from: folders `checkpoint-N`, written whole or not at all, and read back by the same run or refused."""

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from ddpm_vlb.files import holding, remove_folder, replace_folder, sync


class Checkpoints:
    r"""The checkpoints of an output folder.

    Args:
        output_dir: the folder.
        accelerator: whose state they hold, each process its own.
        limit: newest ones to keep; `None` keeps all.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, limit: int | None):
        self.output_dir, self.accelerator, self.limit = output_dir, accelerator, limit

    def last(self) -> str:
        r"""A sentence on what is safe."""
        found = list_checkpoints(self.output_dir)
        return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint yet."

    @contextmanager
    def room(self, unfinished: Path | None = None) -> Iterator[None]:
        r"""Say of a full disk what is safe; each library has an error of its own for it."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(f"`output_dir` must have room for the run's files, got: {error}. {self.last()}") from error

    def write(self, identity: dict[str, Any], state: dict[str, Any]) -> Path:
        r"""Write `checkpoint-N`, N = `state["step"]`, on all processes, under another name until it is complete.

        Args:
            identity: what must be the same in the run that goes on from it.
            state: what Accelerate does not know of; tensors and plain values.
        """
        accelerator = self.accelerator
        target = self.output_dir / f"checkpoint-{state['step']}"
        partial = self.output_dir / ".checkpoint-partial"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        with holding(partial) if accelerator.is_main_process else nullcontext():
            with self.room(partial):
                accelerator.save_state(str(partial))
                if accelerator.is_main_process:
                    torch.save(state, partial / "state.pt")
                    (partial / "run.json").write_text(json.dumps(identity, indent=2))
                    sync(partial)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                replace_folder(partial, target)  # there is one already where a run was resumed from an older checkpoint
        if accelerator.is_main_process:
            for folder in list_checkpoints(self.output_dir)[: -self.limit if self.limit else 0]:
                remove_folder(folder)
        accelerator.wait_for_everyone()
        return target


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    r"""Say of a damaged checkpoint which one it is: it can make its reader stumble over anything."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"`resume_from_checkpoint` must be a complete checkpoint of this script, got {str(folder)!r}: {error}"
        ) from error


def read_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    r"""The `state` that a checkpoint was written with; what Accelerate keeps in it is not loaded yet.

    Raises:
        ValueError: a folder that is no complete checkpoint, or one of another run than `identity`.
    """
    with reading(folder):
        written = json.loads((folder / "run.json").read_text())
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    now = json.loads(json.dumps(identity))
    for name in now:
        if written.get(name) != now[name]:
            before, after = _first_difference(written.get(name), now[name])
            raise ValueError(
                f"`resume_from_checkpoint` must be a checkpoint of the same run: its {name} has {before}, this run {after}."
            )
    return state


def _first_difference(before: Any, after: Any, name: str = "") -> tuple[str, str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return _first_difference(before.get(key), after.get(key), f"{key} = ")
    return f"{name}{before!r}", f"{name}{after!r}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    r"""The complete checkpoints, oldest first."""
    found = (path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(arguments: argparse.Namespace) -> Path | None:
    r"""The checkpoint to go on from, `None` to start.

    Raises:
        ValueError: a folder that does not exist; an output folder that holds a run, or a part of one, that would be lost.
    """
    wanted, found = arguments.resume_from_checkpoint, list_checkpoints(arguments.output_dir)
    if wanted == "latest":
        return found[-1] if found else None
    if wanted is not None and not Path(wanted).is_dir():
        raise ValueError(f"`resume_from_checkpoint` must be latest or a checkpoint's folder, got {wanted!r}.")
    if wanted is not None and found and found[-1].samefile(wanted):
        return Path(wanted)
    if found or (arguments.output_dir / "pipeline").exists():
        raise ValueError(
            f"`output_dir` must not hold another run, or a later part of this one, got {str(arguments.output_dir)!r}: give"
            " --resume_from_checkpoint latest, or another folder."
        )
    return None if wanted is None else Path(wanted)
