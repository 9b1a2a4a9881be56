r"""Exact variational bounds on the likelihood for DDPMs of the diffusers ecosystem.

Names are imported when they are first used, so that `import ddpm_vlb` costs neither torch nor diffusers.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "VLBDDPMScheduler": "scheduling_vlb_ddpm",
    "VLBDDPMPipeline": "pipeline_vlb_ddpm",
    "VLBOutput": "pipeline_vlb_ddpm",
}
__all__ = ["VLBDDPMPipeline", "VLBDDPMScheduler", "VLBOutput", "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
