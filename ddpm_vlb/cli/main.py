r"""The command `ddpm-vlb`: score a checkpoint on a data set, sample from it, describe it, push it to the Hub.

A command is a file of this folder with `add(commands)`, which makes its parser and returns it, and `run(arguments)`, which does
the work; and it is in `COMMANDS`. Nothing here imports torch until a command runs, so that help and refusals are quick.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from .. import __version__
from . import (
    calibrate,
    card,
    classify,
    compare,
    compress,
    convert,
    decompress,
    detect,
    evaluate,
    info,
    merge,
    push,
    push_space,
    sample,
)

COMMANDS = (
    evaluate,
    compare,
    classify,
    detect,
    calibrate,
    merge,
    sample,
    compress,
    decompress,
    info,
    card,
    push,
    push_space,
    convert,
)


def build_parser() -> argparse.ArgumentParser:
    r"""The command line and its options."""
    parser = argparse.ArgumentParser(prog="ddpm-vlb", description="Likelihoods of DDPM checkpoints, in bits/dim.")
    parser.add_argument("--version", action="version", version=f"ddpm-vlb {__version__}")
    debug: dict[str, Any] = {"action": "store_true", "help": "show where in the code a command was refused"}
    parser.add_argument("--debug", **debug)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        added = command.add(commands)
        added.set_defaults(run=command.run)
        added.add_argument("--debug", default=argparse.SUPPRESS, **debug)  # may stand at the end, too
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    r"""Run a command line; returns the exit status: 2, with one line on stderr, for anything that the user can mend.

    Whatever else is raised is a fault of this package, or of one underneath, and goes on to the caller: a traceback.
    """
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except Exception as error:
        reason = what_can_be_mended(error)
        if reason is None:
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"ddpm-vlb {arguments.command}: {' '.join(reason.split())}", file=sys.stderr)
        return 2
    return 0


def what_can_be_mended(error: Exception) -> str | None:
    r"""What the user is told, or `None` where it is a fault of the code.

    Of what torch raises besides, that is too little memory (a CPU's has no type of its own), and `--compile` where there is
    nothing to compile with.
    """
    if isinstance(error, (ValueError, OSError, ImportError)):
        return str(error)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, RuntimeError):
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
            return str(error)
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return f"`compile` must be left out where torch cannot compile: {str(error).strip().splitlines()[0]}"
    return None


if __name__ == "__main__":
    sys.exit(main())
