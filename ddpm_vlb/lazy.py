r"""Names of a package that are imported when they are first used, so that importing it costs neither torch nor diffusers."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names_from(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    r"""The `__getattr__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        homes: the names that it gives, and the module below it where each one stands.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{homes[name]}", package), name)

    return __getattr__
