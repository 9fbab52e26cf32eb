"""The index of many tars on disk: index.json lists the shards and what the rows of their tables look like."""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from filip_jax import folders, storage
from filip_jax.data.member_names import FIRST_DOT
from filip_jax.data.tar_index import KEY_BYTES, KINDS, Shard, index_shard
from filip_jax.errors import UserError
from filip_jax.progress import Progress
from filip_jax.small_files import parse
from filip_jax.storage import Found
from filip_jax.workers import run as run_workers

VERSION = 3
FILE = "index.json"
MAX_PROCESSES = 4096
INDEX_BYTES = 1 << 30  # of index.json; a million tars have a quarter of it


def read_index(
    shards: Sequence[Found], root: str, folder: str, processes: int = 0, keys: str = FIRST_DOT
) -> list[Shard]:
    """The index of these tars; what is missing, damaged or of another tar is made and written first.

    A tar that has other times than the index notes, as a copy has, is read again; nothing is written if that changes nothing.

    Args:
        root: the folder that all paths lie in.
        folder: where the index lies.
        processes: that read tars; 0 reads them in threads of this one.
        keys: how members' names are split; an index is of one way.

    Raises:
        UserError: the index cannot be written there, a tar is compressed, or `processes` is negative.
        OSError: a tar cannot be read.
        ProcessLost: one of the processes is gone.
    """
    if not 0 <= processes <= MAX_PROCESSES:
        raise UserError(f"processes={processes} must be at least 0 and at most {MAX_PROCESSES}")
    known = {shard.name: shard for shard in _stored(folder)}
    names = {file.path: _below(root, file) for file in shards}
    stale = [file for file in shards if not _is_of(known.get(names[file.path]), file, folder)]
    copies = _copies(stale, names, known, folder, processes, keys)
    known |= copies
    new = [file for file in stale if names[file.path] not in copies]
    if new:
        _check_folder(folder, root)
        progress = Progress("indexing tars", len(new))
        for count, shard in enumerate(_indexed(new, [names[file.path] for file in new], folder, processes, keys)):
            known[shard.name] = shard
            progress.advance()
            if count % 1000 == 999:
                _store(folder, known)  # what is done is done, whatever comes
        _store(folder, known)
    elif copies:
        with suppress(UserError):  # where nothing can be written, they are read again each time
            _check_folder(folder, root)
            _store(folder, known)
    return [known[names[file.path]] for file in shards]


def is_whole(shards: Sequence[Found], root: str, folder: str) -> bool:
    """Return whether a folder holds the index of all these tars, see `read_index`."""
    known = {shard.name: shard for shard in _stored(folder)}
    return all(_is_of(known.get(_below(root, file)), file, folder) for file in shards)


def _below(root: str, file: Found) -> str:
    return file.path.removeprefix(root).lstrip("/")


def _check_folder(folder: str, root: str) -> None:
    if not storage.is_remote(folder):
        folders.local_folder(folder, root)


def _copies(
    files: Sequence[Found], names: dict[str, str], known: dict[str, Shard], folder: str, processes: int, keys: str
) -> dict[str, Shard]:
    """Return the index, by name, of those tars of which nothing but the times is other than the index has it."""
    alike = [file for file in files if _fits(known.get(names[file.path]), file, folder)]
    made = _indexed(alike, [names[file.path] for file in alike], "", processes, keys) if alike else ()
    return {shard.name: shard for shard in made if replace(known[shard.name], stamp=shard.stamp) == shard}


def _is_of(shard: Shard | None, file: Found, folder: str) -> bool:
    """Whether the index is this file's, and its table whole; in a bucket a table is only looked at when it is read."""
    return shard is not None and shard.stamp == file.stamp and _fits(shard, file, folder)


def _fits(shard: Shard | None, file: Found, folder: str) -> bool:
    """The same, whatever the file's times."""
    if shard is None or shard.size != file.size:
        return False
    path = table_path(folder, shard)
    try:
        return storage.is_remote(path) or os.path.getsize(path) == shard.rows * shard.layout.size
    except OSError:
        return False


def _indexed(files: Sequence[Found], names: Sequence[str], folder: str, processes: int, keys: str) -> Iterator[Shard]:
    """The index of each tar, as soon as it is made; without a folder nothing is written."""
    if processes:
        yield from run_workers(_maker, (files, names, folder, keys), range(len(files)), processes, "processes")
        return
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(_make, file, name, folder, keys) for file, name in zip(files, names)]
        yield from (done.result() for done in as_completed(made))


def _maker(files: Sequence[Found], names: Sequence[str], folder: str, keys: str) -> Callable[[int], Shard]:
    return lambda number: _make(files[number], names[number], folder, keys)


def table_path(folder: str, shard: Shard) -> str:
    """Where a shard's table lies."""
    return storage.join(folder, re.sub(r"\W", "_", shard.name) + f".{_digest(shard.name)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _make(file: Found, name: str, folder: str, keys: str) -> Shard:
    shard, table = index_shard(file, name, keys)
    if folder:
        _write(table_path(folder, shard), table)
    return shard


def _stored(folder: str) -> list[Shard]:
    file = storage.join(folder, FILE)
    if not storage.exists(file):
        return []
    try:
        content: dict[str, Any] = parse(storage.read(file, 0, INDEX_BYTES), most=INDEX_BYTES)
        if content["version"] != VERSION:
            return []
        return [_shard(**entry) for entry in content["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{file} is damaged ({error}): remove it, the index is then made again") from error


def _shard(
    *, name: str, size: int, stamp: str, rows: int, kinds: list, key_bytes: int, problems: dict, digest: str, texts: dict
):  # fmt: skip
    """A stored entry, which may have come with foreign data."""
    counts = [size, rows, key_bytes, *(count for _, count in kinds), *problems.values()]
    words = [name, stamp, digest, *(kind for kind, _ in kinds), *problems, *texts, *texts.values()]
    if not all(type(n) is int and n >= 0 for n in counts) or not all(isinstance(word, str) for word in words):
        raise ValueError("an entry with wrong types")
    " ".join(words).encode("utf-8", "surrogateescape")  # raises a ValueError for what no file's name holds
    if len(kinds) > KINDS or key_bytes > KEY_BYTES:
        raise ValueError("an entry with wrong sizes")
    return Shard(name, size, stamp, rows, tuple(map(tuple, kinds)), key_bytes, problems, digest, texts)


def _store(folder: str, known: dict[str, Shard]) -> None:
    shards = [asdict(known[name]) for name in sorted(known)]
    _write(storage.join(folder, FILE), json.dumps({"version": VERSION, "shards": shards}).encode())


def _write(path: str, data: bytes) -> None:
    try:
        storage.write(path, data)
    except OSError as error:
        raise UserError(f"the index cannot be written: {error}; set `index` to a folder of your own") from error
