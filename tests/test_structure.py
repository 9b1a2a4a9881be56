import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import diffusers
import pytest
from zygote import shared

PACKAGE = Path(__file__).parents[1] / "ddpm_vlb"

# Lowest first, a file or a family: each may import those above it in this list, whole folders too.
ROOMS = [
    "lazy",
    "__init__",
    "files",
    "words",
    "progress",
    "checks",
    "noise",
    "timestep_samplers",
    "pixel_grid",
    "gaussians",
    "forward_process",
    "noise_schedules",
    "error_model",
    "parametrizations",
    "noise_processes",
    "reverse_process",
    "bound",
    "losses",
    "data",
    "model",
    "outputs",
    "calibration",
    "scheduling_bound",
    "sampled_bound",
    "codec",
    "likelihoods",
    "reports",
    "scheduling_vlb_ddpm",
    "hub",
    "checkpoints",
    "pipeline_vlb_ddpm",
    "evaluation",
    "metrics",
    "cli",
    "__main__",
]
KNOW_NOTHING_OF_DIFFUSERS = ROOMS[: ROOMS.index("data")]
# The maths, which leans on no edge.
CORE = ["scheduling_vlb_ddpm", "forward_process", "reverse_process", "bound", "gaussians", "losses"]
EDGES = ("hub", "reports", "checkpoints", "evaluation", "metrics", "cli")
# Imported by a method when it is called, and by nothing before: (from, to).
LATE = {("scheduling_vlb_ddpm", "hub.push")}
MAX_LINES, MAX_CODE = 450, 80


@cache
def modules():
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
    return module.partition(".")[0]


@cache
def parsed(module):
    return ast.parse(modules()[module].read_text())


def imports(module, late=False):
    r"""(level, name) of what a module imports at its top, or, with `late`, inside of functions; for types alone left out."""
    for statement in parsed(module).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        for node in ast.walk(statement):
            if (node is not statement) != late or not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            if isinstance(node, ast.Import):
                yield from ((0, alias.name) for alias in node.names)
            else:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                yield from ((node.level, name) for name in names)


def own_imports(module, late=False):
    r"""The modules of the package that a module imports."""
    for level, name in imports(module, late):
        if level:
            folder = module.split(".")[:-level]
            target = ".".join([*folder, name])
            yield target if target in modules() else ".".join([*folder, name, "__init__"]).removeprefix("__version__.")


def test_every_module_has_its_place():
    assert sorted({room_of(module) for module in modules()}) == sorted(ROOMS)


def test_imports_go_downward():
    for module in modules():
        for target in own_imports(module):
            room, other = room_of(module), room_of(target)
            assert room == other or ROOMS.index(other) < ROOMS.index(room), (module, target)


def test_files_of_a_family_import_each_other_in_one_direction():
    for room in ROOMS:
        family = {module for module in modules() if room_of(module) == room and module != f"{room}.__init__"}
        left = {module: {target for target in own_imports(module) if target in family} for module in family}
        while left:
            lowest = {module for module, targets in left.items() if not targets & left.keys()}
            assert lowest, f"a circle among {sorted(left)}"
            left = {module: targets for module, targets in left.items() if module not in lowest}


def test_what_is_imported_late_is_known():
    late = {(module, target) for module in modules() if room_of(module) != "cli" for target in own_imports(module, late=True)}
    assert late == LATE


def test_the_maths_knows_nothing_of_diffusers():
    for module in modules():
        if room_of(module) in KNOW_NOTHING_OF_DIFFUSERS:
            assert not any(name.split(".")[0] == "diffusers" for level, name in imports(module) if not level), module


@pytest.mark.parametrize("module", CORE)
def test_the_core_leans_on_no_edge(module):
    code = f"""
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "ddpm_vlb"]:
    del sys.modules[name]
import ddpm_vlb.{module}
reached = sorted(name for name in sys.modules if name.startswith({tuple(f"ddpm_vlb.{edge}" for edge in EDGES)}))
assert not reached, reached
"""
    done = shared().run("-c", code)  # where the libraries are imported already
    assert done.returncode == 0, done.stderr


def test_no_folder_has_the_name_of_one_of_diffusers_pipelines():
    taken = {path.name for path in (Path(diffusers.__file__).parent / "pipelines").iterdir()}
    assert not taken & {path.name for path in PACKAGE.iterdir() if path.is_dir()}


def test_files_and_functions_are_small():
    for path in modules().values():
        lines = path.read_text().split("\n")
        assert len(lines) <= MAX_LINES + 1, path
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                start = body[0].lineno if body else node.end_lineno
                code = [
                    line for line in lines[start - 1 : node.end_lineno] if line.strip() and not line.strip().startswith("#")
                ]
                assert len(code) <= MAX_CODE, (path, node.name, len(code))


def test_importing_the_package_imports_neither_torch_nor_diffusers():
    code = "import sys, ddpm_vlb; assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules); print(ddpm_vlb.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_old_paths_give_the_same():
    import ddpm_vlb
    import ddpm_vlb.likelihoods.rate_distortion as new

    assert all(getattr(ddpm_vlb, name) is not None for name in ddpm_vlb.__all__)
    import ddpm_vlb.rate_distortion as old
    from ddpm_vlb.comparison import compare
    from ddpm_vlb.importance_weighted import importance_weighted_nll
    from ddpm_vlb.probability_flow import ode_nll
    from ddpm_vlb.sub_schedules import best_sub_schedules  # noqa: F401

    assert old is new and new.__spec__.name == "ddpm_vlb.likelihoods.rate_distortion"
    assert (compare, importance_weighted_nll, ode_nll) == (
        ddpm_vlb.compare,
        ddpm_vlb.importance_weighted_nll,
        ddpm_vlb.ode_nll,
    )


def test_every_command_has_its_file():
    from ddpm_vlb.cli.main import COMMANDS, build_parser

    shared = {"__init__", "main", "options", "common"}
    files = {module.removeprefix("cli.") for module in modules() if room_of(module) == "cli"}
    assert files - shared == {command.__name__.rpartition(".")[2] for command in COMMANDS}
    (parsers,) = (action for action in build_parser()._actions if action.dest == "command")
    assert [parser.get_default("run") for parser in parsers.choices.values()] == [command.run for command in COMMANDS]


def test_help_is_quick():
    code = "import sys; from ddpm_vlb.cli import build_parser; build_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_folder_is_installed():
    import tomllib

    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert folders | {"ddpm_vlb.model_cards"} == set(declared)
