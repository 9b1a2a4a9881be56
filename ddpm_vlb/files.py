r"""Files and folders that are written whole or not at all: beside their place first, then renamed; by one process at a time.

What is being written, and what says that an output is taken, is held by a lock of the kernel (flock). It ends with its process,
`kill -9` included: what is not held any more lies about for nobody and is removed by the next who writes beside it. A file
that merely exists outlives its process, and the pid in it may be that of another one by then, or of another machine. Where
there are no such locks, on Windows and on some network file systems, nothing is refused, and nothing of others removed.
"""

import ctypes
import io
import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

# Names of files that are being written, and of locks, begin with it.
HIDDEN = ".ddpm-vlb-"
# How often, and how many seconds apart, a lock is tried: one who tidies up has it for an instant.
TRIES, SECONDS_BETWEEN_TRIES = 10, 0.05


def check_output_path(path: str | Path) -> Path:
    r"""A path that can be written to; meant to be asked before the work whose result goes there.

    Raises:
        ValueError: a folder, or a path whose folder does not exist or does not allow writing.
    """
    path = Path(path)
    try:
        allowed = not path.is_dir()
        if allowed and not _is_device(path):
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError:
        allowed = False
    if not allowed:
        raise ValueError(f"`output` must be a file in an existing folder that can be written to, got {str(path)!r}.")
    return path


@contextmanager
def locked(*outputs: str | Path | None, name: str = "output", inside: bool = False) -> Iterator[None]:
    r"""Hold outputs while the work goes on whose results go there: whoever else wants one of them is refused at once.

    Args:
        outputs: files, or folders that are yet to be made; `None` and devices are nobody's.
        name: of the argument, for the message.
        inside: the outputs are folders that stay where they are, and the lock lies in them; else it lies beside.

    Raises:
        ValueError: another process has one of them; the message names it by its pid, and its machine where that is another.
    """
    with ExitStack() as held:
        for output in {Path(output).resolve(): output for output in outputs if output is not None}.values():
            path = Path(output).resolve()  # a link stands for what it names
            if not _is_device(path):
                lock = path / f"{HIDDEN}lock" if inside else path.with_name(f"{HIDDEN}{path.name}.lock")
                held.enter_context(_lock(lock, f"`{name}` must be written by one process at a time, got {str(output)!r}"))
        yield


@contextmanager
def _lock(path: Path, refusal: str) -> Iterator[None]:
    with ExitStack() as stack:
        for left in reversed(range(TRIES)):
            try:
                handle, held = stack.enter_context(_held(path, os.O_RDWR | os.O_CREAT))
                break
            except BlockingIOError:
                if not left:
                    raise ValueError(f"{refusal}, which {_holder(path)} has: wait for it, or choose another.") from None
                time.sleep(SECONDS_BETWEEN_TRIES)
        if not held:
            stack.close()
            path.unlink(missing_ok=True)
            yield
            return
        try:
            with naming(path):
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()} {platform.node()}\n".encode())
            yield
        finally:
            # While it is held, so that it is not another's; in a fork it is not this one's to remove.
            if handle in _handles and _is_at(handle, path):
                path.unlink()


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        pid, machine = lock.read_text(encoding="utf-8").split(maxsplit=1)
        return f"process {pid}" + ("" if machine.strip() == platform.node() else f" on {machine.strip()}")
    return "another process"


def write_atomically(path: str | Path, content: bytes) -> None:
    r"""Write a file beside its place, then rename it there: a crash or a full disk leaves the old file as it was.

    Raises:
        OSError: it cannot be written; the message names `path`.
    """
    path = Path(path).resolve()  # a link keeps pointing to what it names
    with naming(path):
        if _is_device(path):  # written to, never replaced
            path.write_bytes(content)
            return
        remove_dead(path.parent)
        beside = path.with_name(f"{HIDDEN}{secrets.token_hex(8)}")
        try:
            with _held(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, wait=True) as (handle, held):
                with open(handle, "wb", closefd=False) as file:
                    file.write(content)
                    file.flush()
                    os.fsync(handle)
                if held:
                    os.replace(beside, path)
            if not held:
                os.replace(beside, path)  # Windows replaces no file by one that is open
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def remove_dead(folder: Path) -> None:
    r"""Remove what processes that were killed left in a folder: half-written files and locks."""
    for path in folder.glob(f"{HIDDEN}*"):
        with suppress(OSError), _held(path, os.O_RDWR) as (_, held):  # an error is: in use, or not ours
            if held:
                path.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    r"""Have the system's errors say which file they are about: a full disk's name none, others one that the user never saw."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def png_bytes(picture: Any) -> bytes:
    r"""A PIL image or a figure of Matplotlib as a PNG file; a figure at 120 dots an inch."""
    buffer = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=120)
    else:
        picture.save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | Path, picture: Any) -> None:
    r"""Write a PIL image or a figure of Matplotlib as a PNG file, whole or not at all."""
    write_atomically(path, png_bytes(picture))


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    r"""A folder to fill beside `target`; it takes the place of `target`, whole, when the block ends without an error.

    Where the system can exchange two names in one step (Linux), there is no moment without a complete `target`.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    clean_up(target)
    with naming(target), _hidden_folder(target) as folder:
        try:
            yield folder
            sync(folder)
            replace_folder(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def fill_folder(target: str | Path) -> Iterator[Path]:
    r"""A folder to fill inside `target`, which may be there and hold other files; when the block ends without an error, each
    file takes its place in `target`, whole. After an error `target` is as it was."""
    target = Path(target)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target, prefix=".ddpm-vlb-"))
    try:
        yield folder
        sync(folder)
        for path in sorted(folder.rglob("*")):
            place = target / path.relative_to(folder)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(path, place)
    except BaseException:
        if is_new:
            shutil.rmtree(target, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    r"""Put the finished folder `new` in the place of `target`; an old one is removed only after that."""
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        shutil.rmtree(new, ignore_errors=True)  # one who tidies up may be at it too
    else:
        with _hidden_folder(target, "old-") as old:
            target.rename(old / target.name)
            new.rename(target)
            shutil.rmtree(old)


def remove_folder(folder: Path) -> None:
    r"""Remove a folder; one killed in the middle leaves a hidden rest, never half of what the name promises."""
    with _hidden_folder(folder, "gone-") as hidden:
        folder.rename(hidden / folder.name)
        shutil.rmtree(hidden)


def clean_up(target: Path) -> None:
    r"""Put right what processes killed inside `new_folder(target)` left: the old `target` back in its place where it is the
    only complete one, and no hidden folders. What a living process has stays."""
    remove_dead(target.parent)
    for folder in target.parent.glob(f".{escape(target.name)}-*"):
        with suppress(OSError), _held(folder, os.O_RDONLY) as (_, held):
            name = folder.name[1:].rpartition("-old-")[0]  # of `target`, or of one whose name begins with it
            if name and (folder / name).is_dir() and not folder.with_name(name).exists():
                (folder / name).rename(folder.with_name(name))
            if held:
                shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    r"""Have every file of a folder on the disk before it is renamed."""
    for path in (folder, *folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    r"""Hold a folder that is being filled: `clean_up` leaves it alone."""
    with _held(folder, os.O_RDONLY, wait=True):
        yield


@contextmanager
def _hidden_folder(target: Path, kind: str = "") -> Iterator[Path]:
    r"""A new folder beside `target`, held by this process."""
    with ExitStack() as stack:
        while True:
            folder = target.with_name(f".{target.name}-{kind}{secrets.token_hex(4)}")
            folder.mkdir()
            try:
                stack.enter_context(holding(folder))
                break
            except FileNotFoundError:  # removed before it was held, by one who tidies up
                continue
        yield folder


# Those that are locked; a fork, such as a data loader's worker, lets go of them, or they would stay so until it ends.
_handles: set[int] = set()


def _let_go() -> None:
    for handle in _handles:
        os.close(handle)
    _handles.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _held(path: Path, flags: int, wait: bool = False) -> Iterator[tuple[int, bool]]:
    r"""Open a file or a folder and lock it: its handle, and whether it is locked, which it is not where there are no locks.

    Raises:
        BlockingIOError: another process has it locked, unless it is waited for.
    """
    while True:
        handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        _handles.add(handle)
        try:
            held = _flock(handle, wait)
            if not held or _is_at(handle, path):  # else whoever had it before has removed it
                yield handle, held
                return
        finally:
            if handle in _handles:
                _handles.remove(handle)
                os.close(handle)


def _flock(handle: int, wait: bool) -> bool:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.lstat())
    return False


def _is_device(path: Path) -> bool:
    r"""Whether a path is that of a pipe or a device: those are written to as they are."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _exchange(one: Path, other: Path) -> bool:
    r"""Exchange two names in one step (renameat2 with RENAME_EXCHANGE); `False` where the system does not know how."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0
