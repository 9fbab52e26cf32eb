"""Folders that a run writes, on disks and in buckets: what lies there, and its removal.

Nothing outside of a run's folder is ever removed: each removal names the root that it must stay below, and follows no
symbolic link there. The root may be a link, or lie behind some.
"""

import contextlib
import errno
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from filip_jax import storage
from filip_jax.errors import UserError
from filip_jax.files import remove_abandoned, writing
from filip_jax.small_files import MAX_JSON_BYTES
from filip_jax.walk import INDEX

INNER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def matches(folder: str, pattern: str, deep: bool = False) -> list[str]:
    """The files in `folder` that a pattern with * matches, sorted; with `deep` also those in matching folders.

    `deep` enters no symbolic links.
    """
    if storage.is_remote(folder):
        patterns = [pattern, *([f"{pattern}/**"] if deep else [])]
        return sorted({path for each in patterns for path in storage.matches(folder, each)})
    found = glob.glob(os.path.join(glob.escape(folder), pattern))
    tops = [top for top in found if deep and not os.path.islink(top)]
    inside = [os.path.join(root, name) for top in tops for root, _, names in os.walk(top) for name in names]
    return sorted({path for path in [*found, *inside] if os.path.isfile(path)})


def read_whole(path: str) -> bytes:
    """All bytes, at most MAX_JSON_BYTES, of a file that may be written anew while this process runs.

    Raises:
        OSError: it cannot be read.
    """
    with storage.open_stream(path) as stream:
        return stream.read(MAX_JSON_BYTES)


def local_folder(folder: str, key: str) -> None:
    """Makes a folder for an index that is mapped into memory.

    Raises:
        UserError: it lies in a bucket, cannot be made, or is a symbolic link that came with the data.
    """
    if storage.is_remote(folder):
        raise UserError(f"{key}: set `index` to a local folder, from which texts are read")
    if storage.name_of(folder) == INDEX and os.path.islink(folder):
        raise UserError(
            f"{key}: {folder} is a symbolic link, through which no index is written: set `index` to a folder"
        )
    try:
        with writing(Path(folder)):
            os.makedirs(folder, exist_ok=True)
            remove_abandoned(Path(folder))
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, "it may not be written", folder)
    except OSError as error:
        raise UserError(f"{key}: the index cannot be written: {error}; set `index` to a folder of your own") from error


def first_link(path: str, root: str) -> str:
    """The first symbolic link on the way down from `root`, which itself may be one, to `path`; "" without any."""
    steps = [] if storage.is_remote(path) else _below(path, root)
    ways = (os.path.join(root, *steps[: n + 1]) for n in range(len(steps)))
    return next((way for way in ways if os.path.islink(way)), "")


def check_writable(folder: Path, remedy: str) -> None:
    """Raise a UserError if what should become a folder, or is one, is a symbolic link or cannot be written to."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link, behind which nothing is written: {remedy}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file where a folder is written: move it away")
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written to: change its owner or mode, or give another folder")


def check_unlinked(folder: Path, remedy: str) -> None:
    """Raises a UserError if a folder is a symbolic link, or holds one, or anything but folders and regular files."""
    check_writable(folder, remedy)
    for root, folders, names in os.walk(folder):
        for path in (os.path.join(root, name) for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):
                mode = os.lstat(path).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
                    raise UserError(f"{path} is {kind}, and nothing is written there: remove it")


def remove(paths: Sequence[str], root: str) -> None:
    """Removes files below `root`; one that is not there is none to remove.

    Raises:
        UserError: a path does not lie below `root`.
        OSError: one cannot be removed, or lies behind a symbolic link.
    """
    for path in paths:
        *folders, name = _below(path, root)
        if storage.is_remote(path):
            storage.remove_remote(path)
            continue
        try:
            with _opened(root, folders) as folder:
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            behind = error.errno in (errno.ELOOP, errno.ENOTDIR)
            said = "it lies behind a symbolic link, where nothing is removed" if behind else error.strerror
            raise OSError(error.errno, said, path) from error


def remove_empty_folders(folder: str, root: str) -> None:
    """Removes the folder, below `root`, with all folders in it that hold nothing; buckets have none."""
    *folders, name = _below(folder, root)
    if storage.is_remote(folder):
        return
    with contextlib.suppress(OSError), _opened(root, folders) as parent:
        for _, inner, _, descriptor in os.fwalk(name, topdown=False, dir_fd=parent):
            for each in inner:
                with contextlib.suppress(OSError):
                    os.rmdir(each, dir_fd=descriptor)
        os.rmdir(name, dir_fd=parent)


def _below(path: str, root: str) -> list[str]:
    """The names on the way from `root` to `path`, which may come from a foreign file."""
    start = root.rstrip("/") + "/"
    names = path.removeprefix(start).split("/")
    with contextlib.suppress(UnicodeEncodeError):  # of a lone surrogate, which no name has
        os.fsencode(path)
        if path.startswith(start) and not {"", ".", ".."} & set(names) and "\0" not in path:
            return names
    raise UserError(f"{path} does not lie in {root}: it is left as it is")


@contextlib.contextmanager
def _opened(root: str, folders: Sequence[str]) -> Iterator[int]:
    """The descriptor of a folder below `root` that is reached through no link, whatever changes meanwhile."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folders:
            inner = os.open(name, INNER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)
