r"""The command `ddpm-vlb`: score a checkpoint on a data set, sample from it, describe it, push it to the Hub.

A command is a file of this folder with `add(commands)`, which makes its parser and returns it, and `run(arguments)`, which does
the work; and it is in `COMMANDS`. Nothing here imports torch until a command runs, so that help and refusals are quick.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from . import calibrate, card, compare, convert, evaluate, merge, push, push_space, sample

COMMANDS = (evaluate, compare, calibrate, merge, sample, card, push, push_space, convert)


def build_parser() -> argparse.ArgumentParser:
    r"""The command line and its options."""
    parser = argparse.ArgumentParser(prog="ddpm-vlb", description="Likelihoods of DDPM checkpoints, in bits/dim.")
    parser.add_argument("--version", action="version", version=f"ddpm-vlb {__version__}")
    debug = {"action": "store_true", "help": "show where in the code a command was refused"}
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
        if not (isinstance(error, (ValueError, OSError, ImportError)) or is_out_of_memory(error)):
            raise
        if arguments.debug:
            traceback.print_exc()
        print(f"ddpm-vlb {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def is_out_of_memory(error: Exception) -> bool:
    r"""Whether it is torch's word for too little memory; of a CPU's it has none but its message."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main())
