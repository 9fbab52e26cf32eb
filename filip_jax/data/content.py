"""Hashes of what files hold, so that an index of a file is of its content and not of its size and time."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filip_jax import storage
from filip_jax.data.index_folder import may_write
from filip_jax.errors import UserError
from filip_jax.files import write_atomically
from filip_jax.folders import INDEX
from filip_jax.small_files import read_json

NAME = "hashes.json"
PIECE = 1 << 20  # bytes


def content_hashes(files: Sequence[storage.Found], folder: str) -> list[str]:
    """Return a hash of the content of each file; of a file in a bucket what the bucket says of it.

    Args:
        folder: local; what was hashed before and did not change since, as the disk says, is noted there and not read again.
    """
    notes = _notes(Path(folder) / NAME)
    found = {file.path: notes.get(file.path) for file in files}
    for file in files:
        state = f"{file.size} {file.stamp}"
        if storage.is_remote(file.path):
            found[file.path] = [state, state]
        elif not isinstance(found[file.path], list) or found[file.path][:1] != [state]:
            found[file.path] = [state, sha256_of(file.path)]
    is_foreign = storage.name_of(folder) == INDEX and os.path.islink(folder)  # through which nothing is written
    if may_write() and not is_foreign and any(notes.get(path) != note for path, note in found.items()):
        with suppress(OSError):  # a folder that may not be written is read again each time
            write_atomically(Path(folder) / NAME, json.dumps(notes | found))
    return [str(found[file.path][-1]) for file in files]


def _notes(file: Path) -> dict[str, list]:
    try:
        return read_json(file)
    except (OSError, UserError):
        return {}


def sha256_of(path: str) -> str:
    """Return the hash of a local file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
