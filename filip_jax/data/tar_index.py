"""Where the members of tar shards stand, so that any record is one read away; tars are never unpacked.

The index of a shard is a table of equal rows, one per sample: for each kind of member ("jpg", "txt",
"json" …) its offset in units of 512 bytes and its size, both 0 where the sample has none, then the
sample's key. index.json lists the shards and what the rows look like.
"""

import hashlib
import json
import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from filip_jax import folders, storage
from filip_jax.errors import UserError
from filip_jax.progress import Progress
from filip_jax.storage import Found
from filip_jax.workers import run as run_workers

VERSION = 2
FILE = "index.json"
KINDS = 64  # most kinds of members that a shard's index holds
KEY_BYTES = 200
INDEX_BYTES = 1 << 30  # of index.json; a million tars have a quarter of it
HEADER_BYTES = 1 << 16  # of an extended header, which tarfile reads whole
LONG_NUMBER = re.compile(rb"\d{100}")  # tarfile of older Pythons takes the square of its length
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass(frozen=True)
class Shard:
    """What the index knows of one tar.

    Attributes:
        name: of the tar, below the data's folder.
        size, stamp: of the tar: its bytes, and its time or what the bucket says; others are another tar's.
        rows: the samples that have an image, in the order of the tar.
        kinds: of members, in the order of a row's columns, each with how many samples have it.
        key_bytes: width of a row's key.
        problems: counts of what was left out: "no image", "duplicate", "cut off", "not a file" …
        digest: of the table.
    """

    name: str
    size: int
    stamp: str
    rows: int
    kinds: tuple[tuple[str, int], ...]
    key_bytes: int
    problems: dict[str, int]
    digest: str

    @property
    def layout(self) -> struct.Struct:
        """Of one row of the shard's table: offset and size of each kind, then the key."""
        return _layout(len(self.kinds), self.key_bytes)


def row_type(kinds: int, key_bytes: int) -> np.dtype:
    """The same for numpy."""
    return np.dtype([("members", "<u4", (kinds, 2)), ("key", f"S{key_bytes}")])


@lru_cache
def _layout(kinds: int, key_bytes: int) -> struct.Struct:
    return struct.Struct(f"<{2 * kinds}I{key_bytes}s")


def index_shard(file: Found, name: str) -> tuple[Shard, bytes]:
    """The index of one tar: what index.json says of it, and its table.

    A tar that is damaged is read as far as it goes. Links, devices and folders are no members; a
    member's name is only ever compared, so it may be anything.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problems: Counter[str] = Counter()
    with storage.open_stream(file.path) as stream:
        try:
            with tarfile.open(fileobj=_Headers(stream), mode="r:") as tar:
                for member in tar:
                    tar.members = []  # tarfile would keep all of them
                    if member.size < 0:  # older Pythons follow it back, without end
                        raise tarfile.ReadError("a negative size")
                    _add(member, file.size, samples, problems)
        except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError):  # header upon header upon …
            problems["damaged or empty from some point on"] += 1
    whole = {key: members for key, members in samples.items() if any(kind in IMAGES for kind in members)}
    problems["no image"] += len(samples) - len(whole)
    counts = Counter(kind for members in whole.values() for kind in members)
    kinds = sorted(counts.items(), key=lambda item: (item[0] not in IMAGES, -item[1], item[0]))
    problems[f"of kinds beyond {KINDS}"] += sum(count for _, count in kinds[KINDS:])
    del kinds[KINDS:]
    keys = [_short(key) for key in whole]
    key_bytes = max(map(len, keys), default=1)
    table = np.zeros(len(whole), row_type(len(kinds), key_bytes))
    table["key"] = keys
    for column, (kind, _) in enumerate(kinds):
        table["members"][:, column] = [members.get(kind, (0, 0)) for members in whole.values()]
    data = table.tobytes()
    shard = Shard(
        name, file.size, file.stamp, len(whole), tuple(kinds), key_bytes, dict(+problems), hashlib.md5(data).hexdigest()
    )
    return shard, data


class _Headers:
    """A stream of which tarfile gets headers only, none larger than HEADER_BYTES, whatever size it claims."""

    def __init__(self, stream):
        self.seek, self.tell, self.stream = stream.seek, stream.tell, stream

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.stream.read(size)
        if size > tarfile.BLOCKSIZE and LONG_NUMBER.search(data):
            raise tarfile.ReadError("a header of many digits")
        return data


def _add(member: tarfile.TarInfo, size: int, samples: dict, problems: Counter) -> None:
    folder, _, file = member.name.rpartition("/")
    stem, _, kind = file.partition(".")
    if not member.isreg() or member.issparse():
        problems["not a file"] += not member.isdir()
    elif not stem or not kind:
        problems["a name without key or ending"] += 1
    elif member.offset_data + member.size > size:
        problems["cut off"] += 1
    elif member.size >= 1 << 32 or member.offset_data // 512 >= 1 << 32:
        problems["beyond what an index holds: 4 GiB, or 2 TiB into the tar"] += 1
    elif member.size == 0:
        problems["empty"] += 1
    else:
        members = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if kind.lower() in members:
            problems["duplicate"] += 1
        else:
            members[kind.lower()] = (member.offset_data // 512, member.size)


def _short(key: str) -> bytes:
    """The key in UTF-8; of a very long one the beginning and a hash."""
    data = key.encode("utf-8", "surrogateescape").replace(b"\0", b"")
    return data if len(data) <= KEY_BYTES else data[: KEY_BYTES - 32] + hashlib.md5(data).hexdigest().encode()


def read_index(shards: Sequence[Found], root: str, folder: str, processes: int = 0) -> list[Shard]:
    """The index of these tars; what is missing, damaged or of another tar is made and written first.

    Args:
        root: the folder that all paths lie in.
        folder: where the index lies.
        processes: that read tars; 0 reads them in threads of this one.

    Raises:
        UserError: the index can not be written there, or `processes` is negative.
        OSError: a tar can not be read.
        ProcessLost: one of the processes is gone.
    """
    if processes < 0:
        raise UserError(f"processes={processes} must be at least 0")
    known = {shard.name: shard for shard in _stored(folder)}
    names = {file.path: file.path.removeprefix(root).lstrip("/") for file in shards}
    new = [file for file in shards if not _is_of(known.get(names[file.path]), file, folder)]
    if new:
        if not storage.is_remote(folder):
            folders.local_folder(folder, root)
        progress = Progress("indexing tars", len(new))
        for count, shard in enumerate(_indexed(new, [names[file.path] for file in new], folder, processes)):
            known[shard.name] = shard
            progress.advance()
            if count % 1000 == 999:
                _store(folder, known)  # what is done is done, whatever comes
        _store(folder, known)
    return [known[names[file.path]] for file in shards]


def _is_of(shard: Shard | None, file: Found, folder: str) -> bool:
    """Whether the index is this file's, and its table whole; in a bucket a table is only looked at when it is read."""
    if shard is None or (shard.size, shard.stamp) != (file.size, file.stamp):
        return False
    path = table_path(folder, shard)
    try:
        return storage.is_remote(path) or os.path.getsize(path) == shard.rows * shard.layout.size
    except OSError:
        return False


def _indexed(files: Sequence[Found], names: Sequence[str], folder: str, processes: int) -> Iterator[Shard]:
    """The index of each tar, as soon as it is made."""
    if processes:
        yield from run_workers(_maker, (files, names, folder), range(len(files)), processes, "processes")
        return
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(_make, file, name, folder) for file, name in zip(files, names)]
        yield from (done.result() for done in as_completed(made))


def _maker(files: Sequence[Found], names: Sequence[str], folder: str) -> Callable[[int], Shard]:
    return lambda number: _make(files[number], names[number], folder)


def table_path(folder: str, shard: Shard) -> str:
    """Where a shard's table lies."""
    return storage.join(folder, re.sub(r"\W", "_", shard.name) + f".{_digest(shard.name)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _make(file: Found, name: str, folder: str) -> Shard:
    shard, table = index_shard(file, name)
    _write(table_path(folder, shard), table)
    return shard


def _stored(folder: str) -> list[Shard]:
    file = storage.join(folder, FILE)
    if not storage.exists(file):
        return []
    try:
        content: dict[str, Any] = json.loads(storage.read(file, 0, INDEX_BYTES))
        if content["version"] != VERSION:
            return []
        return [_shard(**entry) for entry in content["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise UserError(f"{file} is damaged ({error}): remove it, the index is then made again") from error


def _shard(*, name: str, size: int, stamp: str, rows: int, kinds: list, key_bytes: int, problems: dict, digest: str):
    """A stored entry, which may have come with foreign data."""
    counts = [size, rows, key_bytes, *(count for _, count in kinds), *problems.values()]
    texts = [name, stamp, digest, *(kind for kind, _ in kinds), *problems]
    if not all(type(n) is int and n >= 0 for n in counts) or not all(isinstance(text, str) for text in texts):
        raise ValueError("an entry with wrong types")
    if len(kinds) > KINDS or key_bytes > KEY_BYTES:
        raise ValueError("an entry with wrong sizes")
    return Shard(name, size, stamp, rows, tuple(map(tuple, kinds)), key_bytes, problems, digest)


def _store(folder: str, known: dict[str, Shard]) -> None:
    shards = [asdict(known[name]) for name in sorted(known)]
    _write(storage.join(folder, FILE), json.dumps({"version": VERSION, "shards": shards}).encode())


def _write(path: str, data: bytes) -> None:
    try:
        storage.write(path, data)
    except OSError as error:
        raise UserError(f"the index can not be written: {error}; set `index` to a folder of your own") from error
