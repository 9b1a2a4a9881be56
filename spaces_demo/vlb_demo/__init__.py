r"""The demo: a tab a module, each with a function that computes and one that lays it out.

`ddpm_vlb` is the package where it is installed. Elsewhere, as in a Space of its own, it is the single file that travels with
every checkpoint: that file then stands for the package and for each of its modules.
"""

import importlib.util
import sys
from pathlib import Path

SPACE = Path(__file__).parents[1]
CARRIED = SPACE / "checkpoints" / "ddpm-vlb-digits" / "pipeline.py"
# What the demo imports from.
MODULES = (
    "bound",
    "forward_process",
    "gaussians",
    "likelihoods",
    "likelihoods.rate_distortion",
    "noise",
    "noise_schedules",
    "pixel_grid",
)

if importlib.util.find_spec("ddpm_vlb") is None:
    _spec = importlib.util.spec_from_file_location("ddpm_vlb", CARRIED)
    _module = importlib.util.module_from_spec(_spec)
    sys.modules |= {name: _module for name in ("ddpm_vlb", *(f"ddpm_vlb.{name}" for name in MODULES))}
    _spec.loader.exec_module(_module)
