"""Hashes of what files hold, so that an index of a file is of its content and not of its size and time."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from filip_jax import storage
from filip_jax.data.index_folder import cached_folder, may_write
from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.folders import INDEX
from filip_jax.small_files import read_json

NAME = "hashes.json"
THREADS = 32


def content_hashes(files: Sequence[storage.Found], folder: str) -> list[str]:
    """Return a hash of the content of each file; of a file in a bucket what the bucket says of it.

    Args:
        folder: local, for notes; see `noted_hashes`.
    """

    def hash_of(file: storage.Found) -> str:
        return _state(file) if storage.is_remote(file.path) else sha256_of(file.path)

    return noted_hashes(files, folder, NAME, hash_of)


def noted_hashes(
    files: Sequence[storage.Found], folder: str, name: str, hash_of: Callable[[storage.Found], str]
) -> list[str]:
    """Return a hash of each file, which is not made again while size and times of the file are those of its note.

    Args:
        folder: of the notes, local. Where it may not be written, they go into the user's cache.
        name: of the file of notes, {path: [size and times, hash]}; it keeps those of other files.
        hash_of: makes the hash of a file; called from several threads.
    """
    noted: dict[str, list[str]] = {}
    for place in _places(folder):
        notes = _read(place / name)
        noted |= {file.path: notes[file.path] for file in files if _is_of(file, notes.get(file.path))}
        if all(file.path in noted for file in files):
            return [noted[file.path][1] for file in files]
    left = [file for file in files if file.path not in noted]
    with ThreadPoolExecutor(THREADS) as pool:
        noted |= {file.path: [_state(file), text] for file, text in zip(left, pool.map(hash_of, left))}
    for place in _places(folder):
        if place != Path(folder) or _is_ours(folder):
            with suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
                write_atomically(place / name, json.dumps(_read(place / name) | noted))
                break
    return [noted[file.path][1] for file in files]


def _places(folder: str) -> Iterator[Path]:
    """The folder, and what stands for it where it may not be written."""
    yield Path(folder)
    with suppress(UserError):  # of a user without a home
        yield Path(cached_folder(folder))


def _is_ours(folder: str) -> bool:
    """Return whether a note may be written: not where a stranger's config named it or the data brought a link."""
    return may_write() and not (storage.name_of(folder) == INDEX and os.path.islink(folder))


def _state(file: storage.Found) -> str:
    return f"{file.size} {file.stamp}"


def _is_of(file: storage.Found, note: object) -> bool:
    """Return whether a note, perhaps written by others, describes the file as it is now."""
    return isinstance(note, list) and len(note) == 2 and note[0] == _state(file) and isinstance(note[1], str)


def _read(notes: Path) -> dict[str, Any]:
    try:
        return read_json(notes)
    except (OSError, UserError):
        return {}


def sha256_of(path: str) -> str:
    """Return the hash of a local file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
