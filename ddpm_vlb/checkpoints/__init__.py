r"""Checkpoints as others left them."""

from .parts import CheckpointError

__all__ = ["CheckpointError"]
