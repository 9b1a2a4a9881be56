r"""Files and folders that are written whole or not at all: beside their place first, then renamed."""

import ctypes
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_output_path(path: str | Path) -> Path:
    r"""A path that can be written to; meant to be asked before the work whose result goes there.

    Raises:
        ValueError: a folder, or a path whose folder does not exist or does not allow writing.
    """
    path = Path(path)
    try:
        allowed = not path.is_dir()
        if allowed and not (path.exists() and not path.is_file()):  # a pipe or a device is written to as it is
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError:
        allowed = False
    if not allowed:
        raise ValueError(f"`output` must be a file in an existing folder that can be written to, got {str(path)!r}.")
    return path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    r"""Have the system's errors say which file they are about: a full disk's name none, others one that the user never saw."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: str | Path, content: bytes) -> None:
    r"""Write a file beside its place, then rename it there: a crash or a full disk leaves the old file as it was."""
    path = Path(path).resolve()  # a link keeps pointing to what it names
    if path.exists() and not path.is_file():  # a pipe or a device is written to, never replaced
        path.write_bytes(content)
        return
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".ddpm-vlb-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files for the owner alone; a report gets the permissions of any new file.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


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
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        folder.chmod(0o777 & ~_umask())
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
        shutil.rmtree(new)
    else:
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-old-"))
        target.rename(old / target.name)
        new.rename(target)
        shutil.rmtree(old)


def remove_folder(folder: Path) -> None:
    r"""Remove a folder; one killed in the middle leaves a hidden rest, never half of what the name promises."""
    hidden = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
    folder.rename(hidden / folder.name)
    shutil.rmtree(hidden)


def clean_up(target: Path) -> None:
    r"""Put right what processes killed inside `new_folder(target)` left: the old `target` back in its place where it is the
    only complete one, and no hidden folders."""
    for old in target.parent.glob(f".{target.name}-old-*/{target.name}"):
        if not target.exists():
            old.rename(target)
    for folder in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    r"""Have every file of a folder on the disk before it is renamed."""
    for path in (folder, *folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    r"""Exchange two names in one step (renameat2 with RENAME_EXCHANGE); `False` where the system does not know how."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
