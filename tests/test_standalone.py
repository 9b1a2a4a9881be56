import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers.utils import dynamic_modules_utils
from tiny import generator
from zygote import shared

import ddpm_vlb
from ddpm_vlb.hub import standalone
from ddpm_vlb.hub.standalone import card_template, standalone_source

ROOT = Path(__file__).parents[1]


def test_the_file_is_the_package(tmp_path, pipe, images):
    r"""Another process, which cannot import the package, gives its numbers bit for bit."""
    pipe.save_pretrained(tmp_path / "tiny")
    assert (tmp_path / "tiny" / "pipeline.py").read_text() == standalone_source()
    torch.save(images, tmp_path / "images.pt")
    code = """
import json, sys, torch
sys.modules["ddpm_vlb"] = None
sys.path.insert(0, "tiny")
torch.set_num_threads(1)
import pipeline
pipe = pipeline.VLBDDPMPipeline.from_pretrained("tiny")
pipe.set_progress_bar_config(disable=True)
out = pipe.evaluate_nll(torch.load("images.pt"), generator=torch.Generator().manual_seed(0))
assert pipeline.standalone_source() == open("tiny/pipeline.py").read()
print(json.dumps([out.bits_per_dim.tolist(), out.transitions.tolist(), out.config, pipeline.card_template()]))
"""
    done = shared().run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = pipe.evaluate_nll(images, generator=generator())
    assert json.loads(done.stdout) == [out.bits_per_dim.tolist(), out.transitions.tolist(), out.config, card_template()]


def test_diffusers_finds_nothing_in_it_that_is_not_installed(tmp_path, caplog):
    r"""diffusers names what it takes for missing packages and how to install them; our name is on no package index."""
    path = tmp_path / "pipeline.py"
    path.write_text(standalone_source())
    assert dynamic_modules_utils.check_imports(path) == [] and not caplog.records
    text = path.read_text()
    found = set(re.findall(r"^\s*from\s+(\w+)", text, flags=re.MULTILINE))
    assert "diffusers" in found and "ddpm_vlb" not in found
    assert "pip install ddpm" not in text and not re.search(r"https?://", text)


def test_other_modules_can_be_joined(tmp_path):
    r"""What a demo needs besides, in one file that is imported like any module."""
    source = standalone_source("evaluation.evaluate", "data.sources", "pipeline_vlb_ddpm")
    (tmp_path / "joined.py").write_text(source)
    spec = importlib.util.spec_from_file_location("joined", tmp_path / "joined.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__version__ == ddpm_vlb.__version__ and module.load_images("digits", "test", 2).images.shape == (2, 1, 8, 8)
    assert {"evaluate", "report_of_estimate", "VLBDDPMPipeline", "vlb_loss"} <= set(dir(module))
    tree = ast.parse(source)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"low": "x = 1\n", "high": "from .low import x\nx = 2\n"}, "one meaning to be joined, got two of 'x' in high"),
        ({"low": "import math\n", "high": "from . import low\nmath = 3\n"}, "must import single names"),
        ({"low": "x = 1\n", "high": "from .low import x as y\n"}, "must import single names"),
        ({"low": "x = 1\n", "high": "def f():\n    from . import low\n    return low.x\n"}, "must import single names"),
        (
            {"family/__init__": "from .low import x\n", "family/low": "x = 1\n", "high": "from .family import x\n"},
            "single names",
        ),
        ({"low": "import math as m\n", "high": "from .low import m\nimport cmath as m\n"}, "got two of 'm'"),
    ],
)
def test_what_cannot_be_joined_is_refused(modules, message, tmp_path, monkeypatch):
    monkeypatch.setattr(standalone, "PACKAGE", tmp_path)
    (tmp_path / "__init__.py").write_text('__version__ = "0"\n')
    for name, text in modules.items():
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        standalone_source.__wrapped__("high")


def test_families_are_joined_and_late_imports_come_last(tmp_path, monkeypatch):
    monkeypatch.setattr(standalone, "PACKAGE", tmp_path)
    modules = {
        "__init__": '__version__ = "0"\n',
        "low": "x = 1\n",
        "family/__init__": "from .member import y\n",
        "family/member": "from .other import z\nfrom ..low import x\n\ny = x + z\n",
        "family/other": "from .. import __version__\n\nz = len(__version__)\n",
        "edge": "from .high import f\n\n\ndef g():\n    return f, y\n",
        "high": "from .family.member import y\n\n\ndef f():\n    # Late.\n    from .edge import g\n\n    return g()\n",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    source = standalone_source.__wrapped__("high")
    joined = {}
    exec(source.replace(standalone.RESOURCES, ""), joined)
    assert joined["y"] == 2 and joined["f"]() == (joined["f"], 2)
    assert [line.split()[2] for line in source.splitlines() if line.startswith("# ---- ddpm_vlb/")] == [
        f"ddpm_vlb/{name}.py" for name in ("family/other", "low", "family/member", "high", "edge")
    ]


def test_nothing_of_ours_trusts_remote_code_by_itself():
    files = [path for folder in ("ddpm_vlb", "training", "spaces_demo") for path in (ROOT / folder).rglob("*.py")]
    trusting = [
        f"{path}:{node.value.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
    ]
    assert len(files) > 20 and not trusting
