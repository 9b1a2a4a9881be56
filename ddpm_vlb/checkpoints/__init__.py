r"""Checkpoints as others left them."""
