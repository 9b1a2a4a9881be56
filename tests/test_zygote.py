r"""Commands in forks of a process that has imported the libraries: they are to be like any other process."""

import os
import shlex
import signal
import subprocess
import time
from contextlib import closing

import psutil
import pytest
from zygote import Zygote, python_of


@pytest.fixture(scope="module")
def zygote():
    with closing(Zygote(libraries=["json"])) as zygote:
        yield zygote


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # which it stays where nobody asks how it ended
    except psutil.NoSuchProcess:
        return False


def test_a_command_has_its_own_folder_environment_and_arguments(zygote, tmp_path):
    code = "import os, sys; print(os.getcwd(), os.environ.get('COLOUR'), sys.argv[1:], __name__, sys.stdin.read() == '')"
    (tmp_path / "script.py").write_text("import beside\n" + code)
    (tmp_path / "beside.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(code)
    expected = f"{tmp_path} {{}} ['--flag', 'two words'] __main__ True\n"
    for command in (["-c", code], [tmp_path / "script.py"], ["-m", "package"]):
        done = zygote.run(*command, "--flag", "two words", cwd=tmp_path, env=os.environ | {"COLOUR": "blue"})
        assert (done.returncode, done.stdout, done.stderr) == (0, expected.format("blue"), "")
        assert zygote.run(*command, "--flag", "two words", cwd=tmp_path).stdout == expected.format("None")


@pytest.mark.parametrize(
    "code, status, error",
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("raise SystemExit('in words')", 1, "in words\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'at the end')", 0, "at the end"),
        ("import sys, threading; threading.Timer(0.1, sys.stderr.write, ['of a thread']).start()", 0, "of a thread"),
    ],
)
def test_it_ends_like_any_other(zygote, code, status, error):
    done = zygote.run("-c", code)
    assert done.returncode == status and done.stderr.endswith(error) and bool(error) == bool(done.stderr)


def test_commands_run_beside_each_other_and_can_be_killed(zygote):
    sleeping, printing = (zygote.start("-c", f"import time; print('x' * 300_000); time.sleep({s})") for s in (100, 0))
    assert len(printing.communicate(10)[0]) == 300_001 and printing.poll() == 0
    assert sleeping.poll() is None and is_running(sleeping.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.01)
    sleeping.kill()
    assert sleeping.wait(10) == -signal.SIGKILL and not is_running(sleeping.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        zygote.run("-c", "import time; time.sleep(100)", timeout=0.2)
    assert zygote.run("-c", "").returncode == 0


def test_ranks_find_each_other(zygote):
    code = "import os; print(*(os.environ[name] for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')))"
    first, second = (done.stdout.split() for done in zygote.run_ranks(2, "-c", code, env=os.environ))
    assert first[:3] == ["0", "0", "2"] and second[:3] == ["1", "1", "2"] and first[3] == second[3]


def test_what_is_read_at_the_start_cannot_be_changed(zygote):
    with pytest.raises(ValueError, match="read at the start, got .*HF_ENDPOINT.* make another Zygote"):
        zygote.start("-c", "", env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1"})


def test_nothing_is_left_when_it_ends(tmp_path):
    zygote = Zygote(libraries=[])
    child = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); time.sleep(100)"
    process = zygote.start("-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    grandchild = int((tmp_path / "pid").read_text())
    assert is_running(process.pid) and is_running(grandchild)
    zygote.close()
    for _ in range(500):
        if not is_running(grandchild):
            break
        time.sleep(0.01)
    assert not is_running(process.pid) and not is_running(grandchild)
    with pytest.raises(OSError):
        zygote.start("-c", "")


def test_what_a_library_sets_in_the_tests_own_process_is_left_out(zygote, monkeypatch):
    monkeypatch.setenv("HF_HUB_SOMETHING", "set since")
    done = zygote.run("-c", "import os; print(os.environ.get('HF_HUB_SOMETHING'))", env=os.environ | {"OURS": "1"})
    assert done.stdout.strip() == "None", done.stderr
    with pytest.raises(ValueError, match="HF_HUB_SOMETHING"):
        zygote.run("-c", "", env=os.environ | {"HF_HUB_SOMETHING": "asked for"})


def test_it_stands_in_for_python(zygote):
    python = shlex.split(python_of(zygote))
    code = "import os, sys; print(sys.stdin.readline().strip(), os.getppid()); sys.exit(3)"
    done = subprocess.run([*python, "-u", "-c", code], input="asked\n", capture_output=True, text=True)
    assert done.stdout == f"asked {zygote._process.pid}\n" and done.returncode == 3
    assert subprocess.run([*python, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode == 128 + signal.SIGKILL


def test_who_reaches_another_ones_takes_along_what_is_its_own(zygote):
    other = Zygote.at(zygote.address)
    assert other.environment == zygote.environment
    theirs, ours = (one.start("-c", "import time; time.sleep(100)") for one in (other, zygote))
    other.close()
    assert theirs.wait(10) == -signal.SIGKILL and ours.poll() is None
    ours.kill()
    assert zygote.run("-c", "").returncode == 0
