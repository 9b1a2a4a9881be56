r"""What a Space of the demo contains: its folder, and the package in one file; nothing else of the machine it comes from."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from .push import push_files
from .repository import check_no_link, strip_paths
from .standalone import standalone_source

NEEDED = ("README.md", "README.ja.md", "requirements.txt", "app.py")
# Folders that are the demo's own; what is no longer in them leaves the Space, too.
FOLDERS = ("vlb_demo", "checkpoints", "examples", "pictures")
SUFFIXES = (".json", ".md", ".npz", ".png", ".py", ".safetensors", ".toml")
# Where the package is carried; the demo imports it from there.
CARRIED = "checkpoints/ddpm-vlb-digits/pipeline.py"


def space_files(folder: str | Path) -> dict[str, Path | bytes]:
    r"""The files of the demo's folder that belong into a Space, by their names there.

    Raises:
        ValueError: a folder that is not the demo's, or links that lead out of it.
    """
    folder = Path(folder)
    missing = [name for name in (*NEEDED, CARRIED.rpartition("/")[0]) if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"`folder` must be the demo's, spaces_demo of a clone, got {str(folder)!r} without {', '.join(missing)}."
        )
    files: dict[str, Path | bytes] = {name: folder / name for name in NEEDED}
    for path in sorted(path for name in FOLDERS for path in (folder / name).rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith((".", "__")) for part in name.parts[:-1]) or name.name.startswith(".")
        if not path.is_file() or hidden or path.suffix not in SUFFIXES or name.name == "pipeline.py":
            continue
        files[name.as_posix()] = path
        if name.name in ("config.json", "model_index.json"):
            content = strip_paths(json.loads(path.read_text(encoding="utf-8")))
            files[name.as_posix()] = (json.dumps(content, indent=2) + "\n").encode()
    for path in files.values():
        if isinstance(path, Path):
            check_no_link(path, folder)
    return files | {CARRIED: standalone_source().encode()}


def push_space(folder: str | Path, repository: str, *, commit_message: str = "Upload the demo", **options: Any) -> CommitInfo:
    r"""Push the demo as a Gradio Space, in one commit; see `push_files` for `options`, and for what is raised besides.

    Args:
        folder: the demo's.
        repository: `name` or `owner/name`; made where it does not exist.

    Raises:
        ValueError: a folder that is not the demo's: nothing is sent.
    """
    files = space_files(folder)
    return push_files(
        lambda name, there: files,
        repository,
        commit_message=commit_message,
        remove=lambda name: name.partition("/")[0] in FOLDERS,
        space_sdk="gradio",
        **options,
    )
