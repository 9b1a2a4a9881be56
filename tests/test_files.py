import os
import signal
import subprocess
import sys

import pytest

from ddpm_vlb import files
from ddpm_vlb.files import check_output_path, clean_up, fill_folder, locked, new_folder, write_atomically


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
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_old_file(small_disk):
    disk = small_disk("64k")
    write_atomically(disk / "a", b"old")
    with pytest.raises(OSError, match=f"No space left on device: '{disk}/a'"):
        write_atomically(disk / "a", bytes(1 << 20))
    assert (disk / "a").read_bytes() == b"old" and len(list(disk.iterdir())) == 1


def process_in(statement, *lines):
    r"""A process that has entered `with files.STATEMENT:`, has done `lines` in it, and sleeps."""
    program = ["import os, pathlib, time; from ddpm_vlb import files", f"with files.{statement}:"]
    program += [f"    {line}" for line in (*lines, "print(flush=True)", "time.sleep(100)")]
    process = subprocess.Popen([sys.executable, "-c", "\n".join(program)], stdout=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()
    return process


def test_an_output_is_one_processs_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SECONDS_BETWEEN_TRIES", 0.001)
    path = tmp_path / "report.json"
    (tmp_path / "link").symlink_to(path)
    process = process_in(f"locked({str(path)!r})")
    for name in ("report.json", "link"):
        said = f"got '{tmp_path / name}', which process {process.pid} has: wait for it, or choose another."
        with pytest.raises(ValueError, match=f"`output` must be written by one process at a time, {said}"):
            with locked(tmp_path / "other", tmp_path / name):
                pass
    with locked(tmp_path / "other", "/dev/null", None), locked("/dev/null"):  # what it had is free, a device is nobody's
        write_atomically(tmp_path / "other", b"")
    [lock] = tmp_path.glob(".*")  # a living process's: nobody tidied it up
    lock.write_text("7 elsewhere\n")
    with pytest.raises(ValueError, match="which process 7 on elsewhere has: wait"), locked(path):
        pass
    process.kill()
    process.wait()
    assert lock.exists()
    with locked(path), pytest.raises(ValueError, match=f"which process {os.getpid()} has"), locked(path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other"]


def test_a_process_that_is_killed_lets_go_at_once_whoever_it_has_forked(tmp_path):
    (tmp_path / "run").mkdir()
    worker = ["pid = os.fork()", "if not pid: time.sleep(100)", f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(pid))"]
    process = process_in(f"locked({str(tmp_path / 'run')!r}, inside=True)", *worker)
    process.kill()
    process.wait()
    with locked(tmp_path / "run", inside=True):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_where_there_are_no_locks_nothing_is_refused_or_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_flock", lambda handle, wait: False)
    (tmp_path / ".ddpm-vlb-of-whom").touch()
    (tmp_path / ".target-of-whom").mkdir()
    with locked(tmp_path / "a"), locked(tmp_path / "a"):
        write_atomically(tmp_path / "a", b"new")
        with new_folder(tmp_path / "target") as folder:
            fill(folder, "new")
    names = [".ddpm-vlb-of-whom", ".target-of-whom", "a", "target"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names and (tmp_path / "a").read_bytes() == b"new"


def test_what_the_dead_left_is_removed_and_what_the_living_write_is_not(tmp_path):
    target = tmp_path / "target"
    fill_it = f"_held(pathlib.Path({str(tmp_path / '.ddpm-vlb-0')!r}), 0o102)", f"new_folder({str(target)!r})"
    processes = [process_in(statement) for statement in (*fill_it, f"locked({str(target)!r})")]
    there = {path.name for path in tmp_path.iterdir()}
    assert len(there) == 3 and ".ddpm-vlb-0" in there
    clean_up(target)
    write_atomically(tmp_path / "a", b"")
    assert {path.name for path in tmp_path.iterdir()} == {*there, "a"}
    for process in processes:
        process.kill()
        process.wait()
    write_atomically(tmp_path / "a", b"")
    assert [path for path in tmp_path.glob(".*") if path.is_file()] == [] and len(list(tmp_path.glob(".target-*"))) == 1
    with new_folder(target) as folder:
        fill(folder, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "target"]


def test_a_folder_whose_name_only_begins_alike_is_put_back(tmp_path):
    (tmp_path / ".run[1]-2-old-0123abcd" / "run[1]-2").mkdir(parents=True)
    (tmp_path / ".run[1]-2-gone-0123abcd" / "run[1]-2").mkdir(parents=True)
    clean_up(tmp_path / "run[1]")
    assert [path.name for path in tmp_path.iterdir()] == ["run[1]-2"]


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
