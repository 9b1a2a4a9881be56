r"""The tabs of the page: a module each, and words.toml says in which order they stand.

A module has

- `ENDPOINT`: the name of what it computes, in the API;
- `compute`, which returns `(numbers, picture, code)`, or yields it again and again; its docstring is the API's;
- `build(tab, models, model)`, which lays the tab out, and says what follows the choice of a model (`Tab.follows`).

Its name is that of its texts in words.toml.
"""

import importlib
import pkgutil
from types import ModuleType

from ..texts import WORDS


def find_tabs() -> dict[str, ModuleType]:
    r"""The modules of this folder by their names, in their order on the page.

    Raises:
        ValueError: a module that words.toml does not name, or one that it names and that is not here.
    """
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    if found != set(WORDS["tabs"]):
        raise ValueError(f"`tabs` of words.toml must name the modules of tabs/, {sorted(found)}, got {WORDS['tabs']}.")
    return {name: importlib.import_module(f"{__name__}.{name}") for name in WORDS["tabs"]}
