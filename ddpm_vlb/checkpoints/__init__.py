r"""Checkpoints as others left them."""

from .loading import CheckpointError

__all__ = ["CheckpointError"]
