import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ddpm_vlb"

# Lowest first: a module may import those above it in this list.
ROOMS = [
    "__init__",
    "files",
    "standalone",
    "cards",
    "hub",
    "demo_space",
    "gaussians",
    "noise",
    "timestep_samplers",
    "forward_process",
    "noise_schedules",
    "error_model",
    "error_fits",
    "reverse_process",
    "bound",
    "losses",
    "control_variates",
    "sampled_bound",
    "scoring",
    "images",
    "data",
    "sub_schedules",
    "calibrated_model",
    "scheduling_vlb_ddpm",
    "checkpoints",
    "pipeline_vlb_ddpm",
    "convert_openai",
    "importance_weighted",
    "probability_flow",
    "rate_distortion",
    "per_image",
    "reports",
    "sweeps",
    "workers",
    "image_frame",
    "half_precision",
    "evaluation",
    "comparison",
    "calibration",
    "arguments",
    "cli",
    "__main__",
]
KNOW_NOTHING_OF_DIFFUSERS = ROOMS[: ROOMS.index("scheduling_vlb_ddpm")]


def imports(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name) for name in names)


def test_every_module_has_its_place():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ROOMS)


def test_imports_go_downward():
    for module in ROOMS[1:]:
        for level, name in imports(module):
            if level:
                name = name if name in ROOMS else "__init__"
                assert ROOMS.index(name) < ROOMS.index(module), (module, name)


def test_the_maths_knows_nothing_of_diffusers():
    for module in KNOW_NOTHING_OF_DIFFUSERS:
        assert not any(name.split(".")[0] == "diffusers" for level, name in imports(module) if not level), module


def test_importing_the_package_imports_neither_torch_nor_diffusers():
    code = "import sys, ddpm_vlb; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules); print(ddpm_vlb.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "from ddpm_vlb import VLBDDPMScheduler; import sys; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_has_its_function():
    from ddpm_vlb.cli import COMMANDS, build_parser

    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert sorted(commands.choices) == sorted(COMMANDS)


def test_help_is_quick():
    code = "import sys; from ddpm_vlb.cli import build_parser; build_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
