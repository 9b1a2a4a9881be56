r"""Cards, and what is pushed to the Hub."""

from .push import HubError, push_folder

__all__ = ["HubError", "push_folder"]
