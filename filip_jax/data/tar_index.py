"""Where the members of tar shards stand, so that any record is one read away; tars are never unpacked.

The index of a shard is a table of equal rows, one per sample: for each kind of member ("jpg", "txt",
"json" …) its offset in units of 512 bytes and its size, both 0 where the sample has none, then the
sample's key. index.json lists the shards and what the rows look like.
"""

import hashlib
import json
import multiprocessing
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from filip_jax.data import storage
from filip_jax.errors import UserError
from filip_jax.progress import Progress

VERSION = 1
FILE = "index.json"
KINDS = 64  # most kinds of members that a shard's index holds
KEY_BYTES = 200
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


@dataclass(frozen=True)
class Shard:
    """What the index knows of one tar.

    Attributes:
        name: of the tar, below the data's folder.
        size: of the tar in bytes; another size is another tar.
        rows: the samples that have an image, in the order of the tar.
        kinds: of members, in the order of a row's columns, each with how many samples have it.
        key_bytes: width of a row's key.
        problems: counts of what was left out: "no image", "duplicate", "cut off", "not a file" …
    """

    name: str
    size: int
    rows: int
    kinds: tuple[tuple[str, int], ...]
    key_bytes: int
    problems: dict[str, int]

    @property
    def row_type(self) -> np.dtype:
        """Of one row of the shard's table."""
        return np.dtype([("members", "<u4", (len(self.kinds), 2)), ("key", f"S{self.key_bytes}")])

    @property
    def layout(self) -> struct.Struct:
        """Of the same row: offset and size of each kind, then the key."""
        return _layout(len(self.kinds), self.key_bytes)


@lru_cache
def _layout(kinds: int, key_bytes: int) -> struct.Struct:
    return struct.Struct(f"<{2 * kinds}I{key_bytes}s")


def index_shard(path: str, name: str, size: int) -> tuple[Shard, bytes]:
    """The index of one tar: what index.json says of it, and its table.

    A tar that is damaged is read as far as it goes. Links, devices and folders are no members; a
    member's name is only ever compared, so it may be anything.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    problems: Counter[str] = Counter()
    with storage.open_stream(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # tarfile would keep all of them
                    _add(member, size, samples, problems)
        except (tarfile.TarError, ValueError, OverflowError, EOFError):
            problems["damaged or empty from some point on"] += 1
    whole = {key: members for key, members in samples.items() if any(kind in IMAGES for kind in members)}
    problems["no image"] += len(samples) - len(whole)
    counts = Counter(kind for members in whole.values() for kind in members)
    kinds = sorted(counts.items(), key=lambda item: (item[0] not in IMAGES, -item[1], item[0]))[:KINDS]
    keys = [_short(key) for key in whole]
    shard = Shard(name, size, len(whole), tuple(kinds), max(map(len, keys), default=1), dict(+problems))
    table = np.zeros(len(whole), shard.row_type)
    table["key"] = keys
    for column, (kind, _) in enumerate(kinds):
        table["members"][:, column] = [members.get(kind, (0, 0)) for members in whole.values()]
    return shard, table.tobytes()


def _add(member: tarfile.TarInfo, size: int, samples: dict, problems: Counter) -> None:
    folder, _, file = member.name.rpartition("/")
    stem, _, kind = file.partition(".")
    if not member.isreg() or member.issparse():
        problems["not a file"] += not member.isdir()
    elif not stem or not kind:
        problems["a name without key or ending"] += 1
    elif member.offset_data + member.size > size or member.size >= 1 << 32:
        problems["cut off"] += 1
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


def read_index(shards: Sequence[tuple[str, int]], root: str, folder: str, processes: int = 0) -> list[Shard]:
    """The index of these tars; what is missing or of another size is made and written first.

    Args:
        shards: (path, bytes) of each tar.
        root: the folder that all paths lie in.
        folder: where the index lies.
        processes: that read tars; 0 reads them in threads of this one.

    Raises:
        UserError: the index can not be written there.
        OSError: a tar can not be read.
    """
    known = {shard.name: shard for shard in _stored(folder)}
    names = {path: path.removeprefix(root).lstrip("/") for path, _ in shards}
    new = [(path, size) for path, size in shards if getattr(known.get(names[path]), "size", None) != size]
    if new:
        progress = Progress("indexing tars", len(new))
        with _pool(processes) as pool:
            made = [pool.submit(_make, path, names[path], size, folder) for path, size in new]
            for count, done in enumerate(as_completed(made)):
                shard = done.result()
                known[shard.name] = shard
                progress.advance()
                if count % 1000 == 999:
                    _store(folder, known)  # what is done is done, whatever comes
        _store(folder, known)
    return [known[names[path]] for path, _ in shards]


def _pool(processes: int) -> Executor:
    if processes == 0:
        return ThreadPoolExecutor(8)
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))  # threads would not survive a fork


def table_path(folder: str, shard: Shard) -> str:
    """Where a shard's table lies."""
    return storage.join(folder, re.sub(r"\W", "_", shard.name) + f".{_digest(shard.name)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _make(path: str, name: str, size: int, folder: str) -> Shard:
    shard, table = index_shard(path, name, size)
    _write(table_path(folder, shard), table)
    return shard


def _stored(folder: str) -> list[Shard]:
    file = storage.join(folder, FILE)
    if not storage.exists(file):
        return []
    try:
        content: dict[str, Any] = json.loads(storage.read(file))
        if content["version"] != VERSION:
            return []
        return [Shard(**entry | {"kinds": tuple(map(tuple, entry["kinds"]))}) for entry in content["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it, the index is then made again") from error


def _store(folder: str, known: dict[str, Shard]) -> None:
    shards = [asdict(known[name]) for name in sorted(known)]
    _write(storage.join(folder, FILE), json.dumps({"version": VERSION, "shards": shards}).encode())


def _write(path: str, data: bytes) -> None:
    try:
        storage.write(path, data)
    except OSError as error:
        raise UserError(f"the index can not be written: {error}; set `index` to a folder of your own") from error
