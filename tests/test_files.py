import os
import subprocess
import sys

import pytest

from ddpm_vlb import files
from ddpm_vlb.files import check_output_path, clean_up, fill_folder, new_folder, write_atomically


def test_output_paths_are_checked_first(tmp_path):
    assert check_output_path(tmp_path / "a.json") == tmp_path / "a.json"
    for bad in (tmp_path, tmp_path / "nowhere" / "a.json"):
        with pytest.raises(ValueError, match="`output` must be a file in an existing folder"):
            check_output_path(bad)


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    write_atomically("/dev/null", b"new")
    assert not os.path.isfile("/dev/null")


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    code = f"""
import os, signal
from ddpm_vlb import files
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically({str(path)!r}, b"new" * 100000)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_old_file(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        write_atomically(tmp_path / "a", b"old")
        with pytest.raises(OSError):
            write_atomically(tmp_path / "a", bytes(1 << 20))
        assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def fill(folder, content):
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text(content)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for content in ("first", "second"):
        with new_folder(tmp_path / "a" / "target") as folder:
            fill(folder, content)
        assert (tmp_path / "a" / "target" / "sub" / "file").read_text() == content
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["target"]
    with pytest.raises(RuntimeError, match="in the middle"), new_folder(tmp_path / "a" / "target") as folder:
        fill(folder, "third")
        raise RuntimeError("in the middle")
    assert (tmp_path / "a" / "target" / "sub" / "file").read_text() == "second"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["target"]


def test_folders_are_exchanged_in_one_step_on_linux(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "one", tmp_path / "other") == sys.platform.startswith("linux")
    if sys.platform.startswith("linux"):
        assert (tmp_path / "one" / "other").exists() and (tmp_path / "other" / "one").exists()


def test_a_process_killed_while_filling_a_folder_leaves_the_old_one(tmp_path):
    with new_folder(tmp_path / "target") as folder:
        fill(folder, "old")
    code = f"""
import os, signal
from ddpm_vlb.files import new_folder
with new_folder({str(tmp_path / "target")!r}) as folder:
    (folder / "half").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "target" / "sub" / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    clean_up(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_process_killed_between_two_renames_loses_nothing(tmp_path):
    with new_folder(tmp_path / "target") as folder:
        fill(folder, "old")
    code = f"""
import os, pathlib, signal
from ddpm_vlb import files
files._exchange = lambda one, other: False  # a system that cannot exchange
rename = pathlib.Path.rename
def rename_once(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
with files.new_folder({str(tmp_path / "target")!r}) as folder:
    (folder / "new").touch()
    pathlib.Path.rename = rename_once
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not (tmp_path / "target").exists()
    clean_up(tmp_path / "target")
    assert (tmp_path / "target" / "sub" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("moment", ["filling", "moving"])
def test_a_process_killed_while_filling_into_a_folder_loses_nothing(tmp_path, moment):
    fill(tmp_path, "old")
    (tmp_path / "mine").write_text("mine")
    code = f"""
import os, signal
from ddpm_vlb import files
def kill(*paths):
    os.kill(os.getpid(), signal.SIGKILL)
with files.fill_folder({str(tmp_path)!r}) as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("new")
    if {moment!r} == "filling":
        kill()
    os.replace = kill
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "sub" / "file").read_text() == "old" and (tmp_path / "mine").read_text() == "mine"
    with fill_folder(tmp_path) as folder:
        fill(folder, "new")
    assert (tmp_path / "sub" / "file").read_text() == "new" and (tmp_path / "mine").read_text() == "mine"
