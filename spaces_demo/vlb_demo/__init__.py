r"""The demo: what all tabs share, and `tabs/`, a module a tab.

`ddpm_vlb` is the package where it is installed. Elsewhere, as in a Space of its own, it is the single file that travels with
every checkpoint: that file then stands for the package and for each of its modules, at whatever path.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

SPACE = Path(__file__).parents[1]
CARRIED = SPACE / "checkpoints" / "ddpm-vlb-digits" / "pipeline.py"


class _Package(ModuleType):
    r"""The single file, as a package that is each of its own modules."""

    __path__: list[str] = []

    def __setattr__(self, name, value):
        # The import system makes every module an attribute of its package. Here that would put the file in the place of what
        # it defines: the function `rate_distortion` stands in a module of that name.
        if value is not self:
            super().__setattr__(name, value)


class _File(SourceFileLoader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name)


class _Carried(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    r"""Finds `ddpm_vlb` in the carried file, and `ddpm_vlb.x` and `ddpm_vlb.x.y`, whatever x and y, in the same."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, module = fullname.partition(".")
        if package != "ddpm_vlb":
            return None
        if not module:
            return importlib.util.spec_from_file_location(package, CARRIED, loader=_File(package, str(CARRIED)))
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec):
        self._file = sys.modules["ddpm_vlb"]
        self._own = self._file.__spec__  # which the import of another name for it overwrites
        return self._file

    def exec_module(self, module):
        module.__spec__ = self._own


if importlib.util.find_spec("ddpm_vlb") is None:
    sys.meta_path.append(_Carried())
