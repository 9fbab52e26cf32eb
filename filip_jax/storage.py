"""Files on disks and in buckets: lists, byte ranges, whole files. The one door of fsspec.

A path is local, gs://… or s3://…; credentials and endpoints are those that gcsfs and s3fs find.
"""

import glob
import io
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from filip_jax import handles
from filip_jax.errors import UserError
from filip_jax.extras import pip_install
from filip_jax.files import write_atomically, writing
from filip_jax.foreign_paths import explain
from filip_jax.small_files import open_regular
from filip_jax.user_paths import Named, is_remote, plain, spread
from filip_jax.walk import say_left_out, say_other_sources, sift, stamp_of, walk

DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}  # scheme: the package that reads it, and the extra of the scheme's name
SMALL = 1 << 20  # bytes
for scheme in ("gs", "gcs", "s3"):  # TensorStore and other processes write past fsspec, which would not notice
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False


def join(folder: str, name: str) -> str:
    """The path of `name` in `folder`; an absolute name stands for itself."""
    if is_remote(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def folder_of(path: str) -> str:
    """What the path's last name lies in."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path) or "."


def name_of(path: str) -> str:
    """The last name of the path."""
    return path.rpartition("/")[2]


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that all files lie in."""
    scheme, found, _ = paths[0].partition("://") if is_remote(paths[0]) else ("", "", "")
    return scheme + found + os.path.commonpath([folder_of(path).removeprefix(scheme + found) for path in paths])


def names_below(path: str, files: Sequence[str]) -> list[str]:
    """Return the names of files below the folder `path`, by which they can be told apart; without their folders if all lie in one.

    Files of something else than a folder, as of a pattern, have their names below the deepest folder that all lie in.
    """
    top = (path.rstrip("/") if is_remote(path) else plain(path)).rstrip("/") + "/"
    if not all(file.startswith(top) for file in files):
        top = common_folder(files)
    return [file.removeprefix(top).lstrip("/") for file in files]


class Found(NamedTuple):
    """A file: its path, its bytes, and a text that differs when it was written anew."""

    path: str
    size: int
    stamp: str


def find(path: str, suffixes: tuple[str, ...], key: str, left_out: Counter[str] | None = None) -> list[Found]:
    """Return all files that `path` names, sorted.

    Args:
        path: a file, a folder, a pattern with * ? [] or braces: "cc3m/{00000..00331}.tar"; what exists literally is no
            pattern, see user_paths.py.
        suffixes: endings, in lower case, of the files that count in a folder, by the rules of walk.py; "" takes every
            file, whatever its name.
        key: the config key of the path, for messages.
        left_out: receives counts by reason of what does not count beside them.

    Raises:
        UserError: nothing there; names from braces that are not there.
    """
    found: dict[str, Found] = {}
    missing, left_out = [], Counter() if left_out is None else left_out
    for place in spread(path, _is_there):
        here = _list(place, suffixes, left_out)
        missing += [] if here else [place.path]
        found |= {file.path: file for file in here}
    if not found:
        endings = " or ".join(suffixes)
        what = (
            f"no {endings} lies in it"
            if _is_there(path)
            else f"there is no such file, nor a folder with {endings} in it"
        )
        raise UserError(f"{key}={path!r}: {what}{say_left_out(left_out)}{say_other_sources(left_out)}{explain(path)}")
    if missing:
        some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise UserError(f"{key}={path!r}: {len(missing)} of {len(missing) + len(found)} files are missing: {some}")
    return sorted(found.values())


def _list(place: Named, suffixes: tuple[str, ...], left_out: Counter[str]) -> list[Found]:
    path, pattern = place
    if not is_remote(path):
        if os.path.isdir(path) and not pattern and "" in suffixes:
            names = (os.path.join(root, name) for root, _, files in os.walk(path) for name in files)
            return [_local(name) for name in names if os.path.isfile(name)]
        if os.path.isdir(path) and not pattern:
            files = walk(path, suffixes, left_out) if suffixes else []
            return [Found(os.path.join(path, name), size, stamp) for name, size, stamp in files]
        names = glob.glob(pattern) if pattern else [path]
        return [_local(name) for name in names if os.path.isfile(name)]
    system, scheme = _system(path), path.split("://")[0]
    with _reaching(path):
        if pattern:
            infos = system.glob(pattern, detail=True)
        else:
            infos = system.find(path, detail=True)
            top = path.partition("://")[2].strip("/")
            below = {name: name.strip("/").removeprefix(top) for name in infos}
            if list(below.values()) != [""] and "" not in suffixes:  # else it is a file
                names = {name: (below[name], info["size"]) for name, info in infos.items()}
                infos = {name: infos[name] for name in sift(names, suffixes, left_out)}
    return _files(scheme, infos)


def find_all(folder: str) -> list[Found]:
    """All files below a folder, sorted; none where there is no such folder.

    Raises:
        OSError: the disk or the bucket fails.
    """
    if not is_remote(folder):
        return sorted(_list(Named(folder), ("",), Counter())) if os.path.isdir(folder) else []
    system, scheme = _system(folder), folder.split("://")[0]
    with _reaching(folder):
        return sorted(_files(scheme, system.find(folder.rstrip("/") + "/", detail=True)))


def _files(scheme: str, infos: Mapping[str, Mapping[str, Any]]) -> list[Found]:
    files = [(name, info) for name, info in infos.items() if info["type"] == "file"]
    return [Found(f"{scheme}://{name}", info["size"], _stamp(info)) for name, info in files]


def _local(path: str) -> Found:
    status = os.stat(path)
    return Found(path, status.st_size, stamp_of(status))


def _stamp(info: Mapping[str, Any]) -> str:
    """What a bucket says of a file's content, or of its time."""
    names = ("ETag", "etag", "md5Hash", "crc32c", "generation", "LastModified", "updated", "mtime")
    return next((str(info[name]) for name in names if info.get(name)), "")


@contextmanager
def _reaching(path: str):
    """Errors of the drivers' own kinds, such as missing credentials, become OSErrors of one line."""
    try:
        yield
    except (OSError, UserError, ImportError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise OSError(f"{path} cannot be reached: {type(error).__name__}: {said}") from error


def read(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `offset` on, fewer where the file ends before; all of them if size is None.

    Raises:
        OSError: the file cannot be read.
    """
    if is_remote(path):
        with _reaching(path):
            return _system(path).cat_file(path, start=offset, end=None if size is None else offset + size)
    handle = handles.open_file(path)
    if size is None or size > SMALL:  # no more memory than there are bytes
        rest = os.fstat(handle.descriptor).st_size - offset
        size = max(0, rest if size is None else min(size, rest))
    return os.pread(handle.descriptor, size, offset)


def open_stream(path: str) -> io.IOBase:
    """The file for reading from its beginning to its end; seeking is possible."""
    if is_remote(path):
        with _reaching(path):
            return _system(path).open(path, "rb", block_size=8 << 20, cache_type="readahead")
    return os.fdopen(open_regular(path), "rb")


def exists(path: str) -> bool:
    """Return whether a file exists.

    Raises:
        OSError: the bucket cannot be reached. Drivers' own `isfile` would say that there is none.
    """
    if not is_remote(path):
        return os.path.isfile(path)
    with _reaching(path):
        try:
            return _system(path).info(path)["type"] == "file"
        except FileNotFoundError:
            return False


def write(path: str, data: bytes) -> None:
    """Writes the file, whole or not at all, and the folders above it.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(path):
        with _reaching(path):
            _system(path).pipe_file(path, data)
    else:
        with writing(Path(path)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), data)
        handles.forget(path)  # the file that was there before


def listed(pattern: str) -> list[str]:
    """The files that a user's pattern names."""
    return [file.path for place in spread(pattern, _is_there) for file in _list(place, (), Counter())]


def matches(folder: str, pattern: str) -> list[str]:
    """The files in a folder that a pattern with * matches; the folder's name is taken literally."""
    place = Named(join(folder, pattern), join(glob.escape(folder), pattern))
    return [file.path for file in _list(place, (), Counter())]


def _is_there(path: str) -> bool:
    """Whether there is a file or a folder of exactly this name."""
    if not is_remote(path):
        return os.path.exists(path)
    with _reaching(path):
        return _system(path).exists(path)


def checksum(path: str) -> str:
    """Return what a bucket says of an object's content, "" if that is nothing: its times and versions do not count."""
    with _reaching(path):
        info = _system(path).info(path)
    return next((str(info[name]) for name in ("md5Hash", "crc32c", "ETag") if info.get(name)), "")


def remove_remote(path: str) -> None:
    """Removes an object of a bucket, if it is there."""
    with _reaching(path), suppress(FileNotFoundError):
        _system(path).rm_file(path)


def _system(path: str) -> fsspec.AbstractFileSystem:
    scheme = path.split("://")[0]
    if scheme not in DRIVERS:
        schemes = " or ".join(f"{name}://" for name in DRIVERS)
        raise UserError(f"{path}: paths are local, {schemes}{explain(path)}")
    logging.getLogger(DRIVERS[scheme]).setLevel(logging.CRITICAL)  # what it logs is raised, too
    try:
        with _reaching(path):
            return fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(f"{path}: the package {DRIVERS[scheme]} is missing: {pip_install(scheme)}") from error
