import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from tiny import generator, quiet, tiny_unet
from zygote import shared

import ddpm_vlb
from ddpm_vlb import VLBDDPMPipeline
from ddpm_vlb.hub import standalone
from ddpm_vlb.hub.standalone import card_template, community_source, standalone_source
from ddpm_vlb.pixel_grid import levels_to_samples

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


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_the_community_pipeline_scores_as_the_package_does(variance_type, images, tmp_path):
    r"""One file, loaded by diffusers from a folder as any community pipeline, over a checkpoint that diffusers saved."""
    unet = tiny_unet(out_channels=2 if variance_type == "learned_range" else 1)
    DDPMPipeline(unet, DDPMScheduler(20, variance_type=variance_type)).save_pretrained(tmp_path / "tiny")
    path = tmp_path / "ddpm_likelihood.py"
    path.write_text(community_source())
    assert "ddpm_vlb" not in re.findall(r"^\s*(?:from|import)\s+(\w+)", path.read_text(), flags=re.MULTILINE)
    pipe = quiet(DiffusionPipeline.from_pretrained(tmp_path / "tiny", custom_pipeline=str(path), trust_remote_code=True))
    assert type(pipe).__name__ == "DDPMLikelihoodPipeline" and ">>> out = pipe(images" in type(pipe).__call__.__doc__
    pipe.unet.train()
    out = pipe(images, generator=generator(), batch_size=3)
    expected = quiet(VLBDDPMPipeline.from_pretrained(tmp_path / "tiny")).evaluate_nll(images, 3, generator())
    for name in ("prior", "decoder", "transitions"):
        assert torch.equal(out[name], expected[name]), name
    assert torch.allclose(out.bits_per_dim, expected.bits_per_dim, rtol=1e-12) and pipe.unet.training
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pipe(images, generator=generator(), batch_size=3).bits_per_dim, out.bits_per_dim)
    floats = pipe(levels_to_samples(images, 256, torch.float32), generator=generator(), batch_size=3, return_dict=False)
    assert torch.equal(floats[0], out.bits_per_dim) and len(floats) == 4
    for bad, message in (
        (images[0], "`images` must be a tensor"),
        (images.short() + 256, "`images` must hold levels from 0 to 255, got 256 to"),
        (torch.full((1, 1, 8, 8), 0.5001), "grid"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(bad)


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_the_page_loads_it_so(page, images, tmp_path, monkeypatch):
    DDPMPipeline(tiny_unet(), DDPMScheduler(20)).save_pretrained(tmp_path / "tiny")
    path = tmp_path / "runs" / "community" / "ddpm_likelihood.py"
    path.parent.mkdir(parents=True)
    path.write_text(community_source())
    text = (ROOT / "ddpm_vlb" / "hub" / page).read_text()
    code = re.search(r"<!-- custom pipeline -->\n```python\n(.*?)```", text, flags=re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "images": images}
    exec(code.replace("google/ddpm-cifar10-32", str(tmp_path / "tiny")), names)
    assert names["out"].bits_per_dim.shape == (5,)
