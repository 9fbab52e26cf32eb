"""Files that are whole or absent, whenever the process dies, and that one process writes at a time."""

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filip_jax.errors import UserError

LOCK = ".filip.lock"  # in a folder that one command writes at a time
TEMPORARY = re.compile(r"\.filip_[0-9a-f]{16}\.tmp")
DISKS, DISK_MARK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS), "the file system at"  # errors of a disk, not of a file
MIN_ABANDONED_SECONDS = 3600.0  # without a write, after which a temporary file may be that of a killed process


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames over it; of several processes the last one wins."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(file) as beside:
        beside.write_bytes(data)


def write_png(picture: Any, file: Path) -> None:
    """Writes a picture of Pillow's, whole or not at all."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomically(file, data.getvalue())


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A new file to write to, which takes the place of `file` when the block ends, and goes if the block fails.

    Its name is random, since process ids and host names repeat in containers. A link in the place of `file` is
    replaced; what it leads to stays as it is.

    Raises:
        OSError: it cannot be written; names `file`.
    """
    beside = file.with_name(f".filip_{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield beside
            os.fsync(descriptor)
            os.replace(beside, file)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise named(error, file, beside) from error


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Makes an OSError of the block name the file that it writes, where it names none, and the disk as `named` does."""
    try:
        yield
    except OSError as error:
        raise named(error, file) from error


def named(error: OSError, file: str | Path, beside: Path | None = None) -> OSError:
    """Return the error of a write to `file` with its path and, where a disk refused it, what that disk is.

    Args:
        beside: a temporary name of the file, which nobody knows.
    """
    if not error.errno or DISK_MARK in (error.strerror or ""):
        return error
    path = file if error.filename in (None, str(beside)) else error.filename
    disk = f"{os.strerror(error.errno)}; {_disk(os.path.realpath(path))}" if error.errno in DISKS else error.strerror
    return OSError(error.errno, disk, str(path))


def _disk(path: str) -> str:
    """The file system that a path lies on, and what is left of it."""
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    try:
        status = os.statvfs(path)
    except OSError:
        return f"{DISK_MARK} {path}"
    left, whole = (blocks * status.f_frsize / 2**20 for blocks in (status.f_bavail, status.f_blocks))
    inodes = ", and no inode" if status.f_files and not status.f_favail else ""
    return f"{DISK_MARK} {path} has {left:,.1f} of {whole:,.1f} MiB left{inodes}"


def remove_abandoned(folder: Path, seconds: float = MIN_ABANDONED_SECONDS) -> None:
    """Removes the temporary files of killed processes from a folder, which are those that nobody writes to any more.

    Args:
        seconds: since the last write to them.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # gone meanwhile
            status = file.lstat()
            if TEMPORARY.fullmatch(file.name) and stat.S_ISREG(status.st_mode):
                if time.time() - status.st_mtime >= seconds:
                    file.unlink()


def open_to_append(file: Path) -> IO[bytes]:
    """The file for appending and reading, made if it is not there.

    Raises:
        OSError: it is a symbolic link or no regular file, or it cannot be opened.
    """
    descriptor = os.open(
        file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666
    )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    return os.fdopen(descriptor, "a+b")


@contextlib.contextmanager
def locked(file: Path, busy: str = "") -> Iterator[None]:
    """Holds a lock file, also against other hosts; the lock ends with the process.

    Args:
        busy: the message if another process holds it; the file goes at the end. By default this process waits, and
            the file stays.

    Raises:
        UserError: another process holds it, and `busy` says so.
        OSError: the lock file is a symbolic link or cannot be made.
    """
    with open_to_append(file) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError:  # a file system without locks, where random names must do
            pass
        if busy and not _is_there(handle, file):  # who held it has removed it since
            raise UserError(busy)
        try:
            yield
        finally:
            if busy:
                file.unlink(missing_ok=True)


def _is_there(handle: IO[bytes], file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle.fileno()), file.lstat())
    return False
