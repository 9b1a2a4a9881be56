r"""The command `ddpm-vlb`, a file a command."""

from .main import build_parser, main

__all__ = ["build_parser", "main"]
