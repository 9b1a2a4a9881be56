r"""The demo's folder to the Hub, as a Space: what is sent, and what stays."""

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from hub_client import Failure

import ddpm_vlb
from ddpm_vlb.hub.space import CARRIED, space_files
from ddpm_vlb.hub.standalone import standalone_source

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces_demo"
MAIN = "from ddpm_vlb.cli import main; result = main(arguments)"


@pytest.fixture
def folder(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__", "*.pyi")
    return Path(shutil.copytree(SPACE, tmp_path / "demo", ignore=ignore))


def push(client, *arguments):
    return client.run(MAIN, arguments=["push-space", *map(str, arguments)])


def test_a_space_holds_the_folder_and_the_package(hub, client, folder):
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / "checkpoints" / ".env.json").write_text("{}")
    (folder / "vlb_demo" / "__pycache__").mkdir()
    (folder / "vlb_demo" / "__pycache__" / "bound.py").write_text("")
    (folder / "checkpoints" / "optimizer.bin").write_bytes(b"0")
    (folder / "notes.txt").write_text("mine")
    (folder / CARRIED).write_text("an old one")
    (folder / "checkpoints" / "ddpm-vlb-mnist" / "pipeline.py").write_text("an old one, which the demo does not read")
    config = folder / "checkpoints" / "ddpm-vlb-digits" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "/home/me/runs/7"}))
    assert push(client, "me/bound", "--folder", folder, "--private", "--message", "The demo") == 0
    space = hub.repositories["spaces/me/bound"]
    assert space.private and space.commits[space.head][1] == "The demo"
    sent = {
        path.relative_to(SPACE).as_posix() for path in SPACE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(space.files) == sent - {"checkpoints/ddpm-vlb-mnist/pipeline.py"}
    assert space.files[CARRIED].decode() == standalone_source()
    assert b"/home/me" not in b"".join(space.files.values())
    for name in sent - {CARRIED, "checkpoints/ddpm-vlb-digits/unet/config.json", "checkpoints/ddpm-vlb-mnist/pipeline.py"}:
        if not name.endswith(("config.json", "model_index.json")):
            assert space.files[name] == (SPACE / name).read_bytes()


def test_a_second_push_removes_what_is_gone_and_leaves_what_is_not_its_own(hub, client, folder):
    assert push(client, "me/again", "--folder", folder) == 0
    space = hub.repositories["spaces/me/again"]
    space.commit({**space.files, "mine.txt": b"mine", ".gitattributes": b""}, "by hand", "main")
    (folder / "examples" / "ddpm-vlb-mnist.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "ddpm-vlb-mnist")
    assert push(client, "me/again", "--folder", folder) == 0
    assert {"mine.txt", ".gitattributes"} <= set(space.files)
    assert not [name for name in space.files if name.startswith("checkpoints/ddpm-vlb-mnist") or name.endswith("mnist.json")]


def test_what_is_no_demo_is_not_pushed(hub, client, folder, tmp_path):
    before = len(hub.requests)
    assert push(client, "me/other", "--folder", tmp_path / "nowhere") == 2
    assert push(client, "not a name", "--folder", folder) == 2
    (folder / "examples" / "secret.json").symlink_to("/etc/passwd")
    assert push(client, "me/other", "--folder", folder) == 2
    (folder / "examples" / "secret.json").unlink()
    (folder / "requirements.txt").unlink()
    assert push(client, "me/other", "--folder", folder) == 2
    assert len(hub.requests) == before and "spaces/me/other" not in hub.repositories
    with pytest.raises(ValueError, match=r"`folder` must be the demo's, .* without requirements.txt"):
        space_files(folder)


def test_what_the_hub_refuses(hub, client, folder):
    hub.faults = {"POST /api/spaces/me/bound2/commit": [412]}
    assert push(client, "me/bound2", "--folder", folder) == 2
    assert "app.py" not in hub.repositories["spaces/me/bound2"].files
    hub.faults = {}
    with pytest.raises(Failure):
        client.run("raise ValueError")  # the client itself still answers


def test_the_front_matter_is_what_a_space_needs():
    text = (SPACE / "README.md").read_text()
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)[1])
    assert front["sdk"] == "gradio" and front["license"] == "apache-2.0" and front["suggested_hardware"] == "cpu-basic"
    assert (SPACE / front["app_file"]).is_file() and front["python_version"] == "3.11"
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    assert front["sdk_version"] == pinned["gradio"]
    assert len(front["short_description"]) <= 60  # the Hub's limit


def test_the_requirements_are_all_that_is_imported():
    names = {"PIL": "pillow"}
    needed = {re.split(r"[<>=\[]", line)[0] for line in (SPACE / "requirements.txt").read_text().split()}
    imported = set()
    for path in [SPACE / "app.py", *(SPACE / "vlb_demo").rglob("*.py"), SPACE / CARRIED]:
        for node in ast.walk(ast.parse(path.read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {names.get(name.split(".")[0], name.split(".")[0]) for name in found}
    ours = {"ddpm_vlb", "vlb_demo", "spaces"}
    # markupsafe, starlette and pandas come with gradio, fsspec, tqdm and yaml with huggingface_hub.
    assert (
        imported - set(sys.stdlib_module_names) - ours - {"markupsafe", "starlette", "pandas", "fsspec", "tqdm", "yaml"}
        <= needed
    )
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf'"{name}[\[>=]', extras) for name in needed)


def test_versions_agree():
    text = (SPACE / CARRIED).read_text()
    assert f"# ddpm_vlb {ddpm_vlb.__version__}," in text and os.path.getsize(SPACE / CARRIED) < 700_000
