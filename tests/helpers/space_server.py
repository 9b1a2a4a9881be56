r"""The demo as a Space runs it: a copy of its folder alone, in a virtual environment where `ddpm_vlb` is not installed."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from contextlib import contextmanager
from pathlib import Path

import httpx

SPACE = Path(__file__).parents[2] / "spaces_demo"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
# Without these the browser itself asks for hosts of its maker.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Notes whom a process asks for names and connects to, from its start.
AUDIT = """
import os, sys

def note(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.sendto"):
        where = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        place = where[0] if isinstance(where, tuple) else where
        with open(os.environ["SOCKETS"], "a") as file:
            file.write(f"{place}\\n")

sys.addaudithook(note)
"""


def environment_without_the_package(folder):
    r"""A virtual environment with the libraries of this one, but for `ddpm_vlb`; its Python."""
    venv.create(folder, with_pip=False)
    python = Path(folder) / "bin" / "python"
    libraries = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # A folder that is only named on the path: what it installs in editable mode is not taken along.
    (Path(libraries) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\nimport audit_sockets\n")
    (Path(libraries) / "audit_sockets.py").write_text(AUDIT)
    return python


@contextmanager
def running_space(folder, *arguments, **variables):
    r"""The demo's server: yields (address, process). Whom it talked to is in `folder / "sockets.txt"`, a line each."""
    python = environment_without_the_package(folder / "venv")
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('ddpm_vlb') is not None)"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder / "uploads")}
    clean |= {"SOCKETS": str(folder / "sockets.txt"), **variables}
    subprocess.run([python, "-c", code], check=True, cwd=folder, env=clean)
    shutil.copytree(SPACE, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [python, "app.py", "--port", str(port), *arguments], cwd=folder / "space", env=clean, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(address, verify=False).raise_for_status()  # certificates take longer than the question
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(20)


if sys.path[0] != str(SPACE):
    sys.path.insert(0, str(SPACE))
