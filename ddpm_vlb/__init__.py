r"""Exact variational bounds on the likelihood for DDPMs of the diffusers ecosystem.

Names are imported when they are first used, so that `import ddpm_vlb` costs neither torch nor diffusers.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING

from .lazy import names_from

if TYPE_CHECKING:
    from .calibration import calibrate
    from .checkpoints.loading import upgrade_scheduler
    from .codec import compress, decompress
    from .data import load_images, open_images, quantize
    from .evaluation import compare, evaluate, merge_reports
    from .likelihoods.importance_weighted import importance_weighted_nll
    from .likelihoods.probability_flow import ode_nll
    from .model.function import FunctionModel
    from .pipeline_vlb_ddpm import VLBDDPMPipeline, VLBOutput
    from .scheduling_vlb_ddpm import VLBDDPMScheduler

__version__ = "0.1.0"

_HOMES = {
    "FunctionModel": "model.function",
    "VLBDDPMPipeline": "pipeline_vlb_ddpm",
    "VLBDDPMScheduler": "scheduling_vlb_ddpm",
    "VLBOutput": "pipeline_vlb_ddpm",
    "calibrate": "calibration",
    "compare": "evaluation",
    "compress": "codec",
    "decompress": "codec",
    "evaluate": "evaluation",
    "importance_weighted_nll": "likelihoods.importance_weighted",
    "load_images": "data",
    "merge_reports": "evaluation",
    "ode_nll": "likelihoods.probability_flow",
    "open_images": "data",
    "quantize": "data",
    "upgrade_scheduler": "checkpoints.loading",
}
__all__ = [
    "FunctionModel",
    "VLBDDPMPipeline",
    "VLBDDPMScheduler",
    "VLBOutput",
    "__version__",
    "calibrate",
    "compare",
    "compress",
    "decompress",
    "evaluate",
    "importance_weighted_nll",
    "load_images",
    "merge_reports",
    "ode_nll",
    "open_images",
    "quantize",
    "upgrade_scheduler",
]

# Where modules are that had another place in what was written about this package: old paths give the same modules.
_MOVED = {
    "cards": "hub.cards",
    "comparison": "evaluation.compare",
    "images": "data",
    "importance_weighted": "likelihoods.importance_weighted",
    "probability_flow": "likelihoods.probability_flow",
    "rate_distortion": "likelihoods.rate_distortion",
    "sub_schedules": "calibration.sub_schedules",
    "workers": "evaluation.run",
}


__getattr__ = names_from(__name__, _HOMES)


def __dir__():
    return sorted([*globals(), *_HOMES])


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    r"""Finds the modules of `_MOVED` where they are now."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        return importlib.util.spec_from_loader(fullname, self) if package == __name__ and name in _MOVED else None

    def create_module(self, spec):
        module = importlib.import_module(f".{_MOVED[spec.name.rpartition('.')[2]]}", __name__)
        self._own = module.__spec__  # which the import of another name for it overwrites
        return module

    def exec_module(self, module):
        module.__spec__ = self._own


sys.meta_path.append(_OldPaths())
